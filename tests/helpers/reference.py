"""PatchCore written plainly in NumPy, one loop per sum, for small arrays only."""

import numpy as np


def patch_features(stages):
    """(n, c, h, w) maps -> (n, h, w, C): 3x3 means, zeros beyond the border, resized to the first grid."""
    height, width = stages[0].shape[2:]
    return np.concatenate([_bilinear(_mean3(stage), height, width) for stage in stages], axis=1).transpose(0, 2, 3, 1)


def _mean3(maps):
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = maps.shape[2:]
    out = np.zeros(maps.shape)
    for row in range(3):
        for column in range(3):
            out += padded[:, :, row : row + height, column : column + width]
    return out / 9


def _bilinear(maps, height, width):
    rows, columns = maps.shape[2:]
    out = np.empty((*maps.shape[:2], height, width))
    for y in range(height):
        for x in range(width):
            # Pixel centres are at halves; beyond the outermost centres the border value is repeated.
            v = np.clip((y + 0.5) * rows / height - 0.5, 0, rows - 1)
            u = np.clip((x + 0.5) * columns / width - 0.5, 0, columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = v - top, u - left
            upper = maps[:, :, top, left] * (1 - b) + maps[:, :, top, right] * b
            lower = maps[:, :, bottom, left] * (1 - b) + maps[:, :, bottom, right] * b
            out[:, :, y, x] = upper * (1 - a) + lower * a
    return out


def greedy_coreset(points, size):
    """Greedy k-centre, one centre per step, starting with the point farthest from the mean."""
    points = np.asarray(points, np.float64)
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmax())]
    distances = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < size and distances.max() > 0:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen), distances.max()


def image_score(patches, bank, b):
    """Equations 6 and 7 of arXiv 2106.08265 for the patches (p, c) of one image; b = 0: no re-weighting."""
    distances = np.array([[np.linalg.norm(patch - centre) for centre in bank] for patch in patches.astype(np.float64)])
    nearest = distances.argmin(axis=1)
    patch_scores = distances.min(axis=1)
    worst = patch_scores.argmax()
    score = patch_scores[worst]
    if b >= 2 and len(bank) >= 2:
        centre = bank[nearest[worst]].astype(np.float64)
        around = np.argsort([np.linalg.norm(other - centre) for other in bank], kind="stable")[:b]
        total = sum(np.exp(distances[worst, other]) for other in around)
        score = (1 - np.exp(distances[worst, nearest[worst]]) / total) * score
    return score, patch_scores


def patch_space(train, distance, regularisation):
    """What brings (n, c) patches into the space where they are compared: whitened, and of length 1 for the cosine."""
    train = np.asarray(train, np.float64)
    mean, matrix = np.zeros(train.shape[1]), np.eye(train.shape[1])
    if regularisation:
        mean = train.mean(axis=0)
        covariance = sum(np.outer(patch - mean, patch - mean) for patch in train) / len(train)
        values, vectors = np.linalg.eigh(covariance + regularisation * np.trace(covariance) / len(mean) * matrix)
        matrix = vectors @ np.diag(values**-0.5) @ vectors.T

    def bring(patches):
        patches = (np.asarray(patches, np.float64) - mean) @ matrix
        lengths = np.linalg.norm(patches, axis=-1, keepdims=True)
        return patches / np.where(lengths > 0, lengths, 1) if distance == "cosine" else patches

    return bring


def space_score(patches, bank, distance, b, share=None):
    """Image score and patch scores in such a space: the mean of a share of them, or the largest, re-weighted."""

    def between(one, other):
        return 1 - one @ other if distance == "cosine" else np.linalg.norm(one - other)

    distances = np.array([[between(patch, centre) for centre in bank] for patch in patches])
    patch_scores = distances.min(axis=1)
    if share is not None:
        return np.sort(patch_scores)[::-1][: max(1, round(share * len(patches)))].mean(), patch_scores
    worst = patch_scores.argmax()
    nearest = distances[worst].argmin()
    around = np.argsort([between(other, bank[nearest]) for other in bank], kind="stable")[:b]
    weights = np.exp(distances[worst])
    return (1 - weights[nearest] / weights[around].sum()) * patch_scores[worst], patch_scores
