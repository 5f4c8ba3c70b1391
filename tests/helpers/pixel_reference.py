"""Pixel metrics written plainly in NumPy from all pixels at once, for small images only.

``masks`` and ``maps`` are lists of (height, width) bool and float32, one of each per image, of any sizes.
"""

import numpy as np
from scipy.ndimage import label

EIGHT_NEIGHBOURS = np.ones((3, 3))


def auroc(masks, maps):
    """The share of pairs of a defective and a good pixel that are in the right order; ties count half."""
    marked, values = pixels(masks, maps)
    good, defective = np.sort(values[~marked]), values[marked]
    below, not_above = (np.searchsorted(good, defective, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(good))


def aupro(masks, maps, limit=0.3):
    """AUPRO as MVTec's evaluation defines it: the area below the curve over all thresholds, by trapezoids.

    Regions are 8-connected.
    Points of a score in common are one point. A limit between two points is interpolated; points at the limit count,
    so a vertical rise there adds nothing.
    """
    regions = defect_regions(masks)
    marked, values = pixels(masks, maps)
    x, y = [0.0], [0.0]
    for threshold in np.unique(values)[::-1]:
        x.append(float((values[~marked] >= threshold).mean()))
        y.append(float(np.mean([(maps[number][region] >= threshold).mean() for number, region in regions])))
    return area(x, y, 0, limit) / limit


def aupimo(masks, maps, low=1e-5, high=1e-4):
    """AUPIMO, arXiv 2401.01984: the mean over defective images of each one's own area, over all thresholds.

    The false-positive rate is the mean of those of images without a defect. Where it jumps from zero, true-positive
    rates are those without false positives.
    """
    good = [values for mask, values in zip(masks, maps, strict=True) if not mask.any()]
    areas = []
    for mask, values in zip(masks, maps, strict=True):
        if not mask.any():
            continue
        x, y = [], []
        before = rate = 0.0
        for threshold in np.unique(np.concatenate([image.ravel() for image in [*good, values]]))[::-1]:
            if rate > high:
                break
            rate = float(np.mean([(image >= threshold).mean() for image in good]))
            found = float((values[mask] >= threshold).mean())
            if rate > 0:
                if not x:
                    x, y = [min(np.log(low), np.log(rate)), np.log(rate)], [before, before]
                x.append(float(np.log(rate)))
                y.append(found)
            before = found
        areas.append(area(x, y, np.log(low), np.log(high)) / np.log(high / low))
    return float(np.mean(areas))


def touched(masks, maps, threshold):
    """The share of defect regions of which a pixel reaches the threshold."""
    return float(np.mean([(maps[number][region] >= threshold).any() for number, region in defect_regions(masks)]))


def defect_regions(masks):
    """Each connected region of each mask: the image's number, and (height, width) bool."""
    regions = []
    for number, mask in enumerate(masks):
        marks, count = label(mask, EIGHT_NEIGHBOURS)
        regions += [(number, marks == mark) for mark in range(1, count + 1)]
    return regions


def pixels(masks, maps):
    """All pixels in a row: whether they are defective, and their values."""
    return np.concatenate([mask.ravel() for mask in masks]), np.concatenate([values.ravel() for values in maps])


def area(x, y, low, high):
    """The area below a curve between two places, segment by segment; each segment is straight."""
    total = 0.0
    for left, right, foot, top in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        begin, end = max(left, low), min(right, high)
        if begin < end:
            slope = (top - foot) / (right - left)
            total += (end - begin) * (foot + slope * ((begin + end) / 2 - left))
    return total
