"""Synthetic defects on images of good products, with masks of what was changed.

The kinds follow CutPaste (arXiv 2104.04015, section 2.2: thin patches of the image, cut out and pasted elsewhere) and
DRAEM (arXiv 2108.07610, section 3.2: another texture blended in where Perlin noise is high), and add blur, stains,
scratches and missing parts. How much of a defect is seen is drawn at random, because defects that are all easy to find
tell no detectors apart.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.uint8]  # (height, width, 3)
Mask = NDArray[np.bool_]  # (height, width)
Values = NDArray[np.float32]

SIZES = {"small": (0.001, 0.01), "large": (0.01, 0.1)}  # share of the image's area
OPACITY = (0.15, 1.0)
MIN_CHANGE = 4.0  # grey levels: mean absolute difference of the changed pixels
MIN_USABLE = 0.5  # share of a defect that must lie where the model looks
TRIES = 20
MIN_PIXELS = 4  # of a defect


class Defect(NamedTuple):
    """An image with a defect."""

    image: Pixels
    mask: Mask  # the pixels that may differ from the good image


class Part(NamedTuple):
    """Where a defect lies: a box of the image, and in it how much of each pixel is replaced, 0 to 1."""

    rows: slice
    columns: slice
    shape: Values


def add_defect(
    image: Pixels,
    kind: str,
    size: str,
    random: Generator,
    texture: Pixels | None = None,
    seen: Mask | None = None,
) -> Defect:
    """Add one defect to an image of a good product; the image itself is left as it is.

    Parameters
    ----------
    image : (height, width, 3) uint8
    kind, size
        One of `KINDS`, and of `SIZES`.
    texture : (height, width, 3) uint8 of any size
        Another image, for the kinds that blend in a texture; by default it is this image, transformed.
    seen : (height, width) bool
        Where the model looks; at least half of the defect lies there. By default that is everywhere.

    Raises
    ------
    ValueError
        No visible defect was found, as on an image of which the model sees nothing.
    """
    for attempt in range(2 * TRIES):
        draw = KINDS[kind] if attempt < TRIES else stain  # a blur of a plain surface, say, is never seen
        low, high = SIZES[size]
        share = low * (high / low) ** random.random()
        changed, mask = draw(image, random, share, texture)
        if mask.sum() < MIN_PIXELS or (seen is not None and (mask & seen).sum() < MIN_USABLE * mask.sum()):
            continue
        where = mask if seen is None else mask & seen
        difference = changed[where].astype(np.float32) - image[where]
        if np.abs(difference).mean() >= MIN_CHANGE:
            return Defect(changed, mask)
    raise ValueError(f"no visible defect of the kind {kind} was found")


def scar(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Paste a thin, rotated cut of the same image elsewhere: CutPaste (scar)."""
    part = _placed(image, random, _bar(image, random, share, aspect=random.uniform(3, 8)))
    height, width = part.shape.shape
    top, left = _corner(image, height, width, random)
    content = image[top : top + height, left : left + width] * random.uniform(0.7, 1.3) + random.uniform(-25, 25, 3)
    return _blended(image, part, content, _opacity(random))


def texture_blob(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Blend in another texture where Perlin noise is high: DRAEM."""
    part = _placed(image, random, _noise_shape(image, random, share))
    height, width = part.shape.shape
    if texture is None:  # another place of the image, turned, and with its colours in another order
        texture = np.rot90(image[..., random.permutation(3)], int(random.integers(1, 4)))
        texture = np.ascontiguousarray(255 - texture if random.random() < 0.5 else texture)
    scale = max(height / len(texture), width / texture.shape[1], random.uniform(0.3, 1.0))
    sides = max(width, round(scale * texture.shape[1])), max(height, round(scale * len(texture)))
    scaled = np.asarray(Image.fromarray(texture).resize(sides, Image.Resampling.BILINEAR))
    top, left = _corner(scaled, height, width, random)
    content = scaled[top : top + height, left : left + width].astype(np.float32)
    return _blended(image, part, content, _opacity(random))


def blur(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Blur a part of the image, as a smear or a worn surface."""
    part = _placed(image, random, _noise_shape(image, random, share))
    sigma = random.uniform(0.02, 0.2) * math.sqrt(part.shape.size)
    margin = math.ceil(2 * sigma)
    (top, rows), (left, columns) = (_widened(one, margin) for one in (part.rows, part.columns))
    around = image[rows, columns].astype(np.float32)
    content = gaussian_filter(around, (sigma, sigma, 0), mode="nearest", truncate=2.0)
    content = content[top : top + part.shape.shape[0], left : left + part.shape.shape[1]]
    return _blended(image, part, content, _opacity(random))


def stain(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Tint a part of the image with one colour, less towards its border."""
    part = _placed(image, random, _noise_shape(image, random, share))
    softness = 0.1 * math.sqrt(part.shape.size)
    inner = part.shape * np.clip(2 * gaussian_filter(part.shape, softness), 0.3, 1)
    colour = np.array(random.integers(0, 256, 3), np.float32)
    if random.random() < 0.5:  # of one hue with the image, as of dirt or oil
        colour = np.full(3, random.integers(0, 256), np.float32)
    content = np.broadcast_to(colour, (*part.shape.shape, 3))
    return _blended(image, part._replace(shape=inner.astype(np.float32)), content, _opacity(random))


def scratch(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Draw a thin, bent line that is lighter or darker than what is below it."""
    part = _placed(image, random, _line(image, random, share))
    shift = random.choice([-1, 1]) * random.uniform(20, 200)
    content = image[part.rows, part.columns] + np.float32(shift)
    return _blended(image, part, content, random.uniform(*OPACITY))


def missing(image: Pixels, random: Generator, share: float, texture: Pixels | None = None) -> Defect:
    """Remove a part: fill it with the mean colour of the image, or of what surrounds it."""
    shape = _bar(image, random, share, aspect=random.uniform(1, 2))
    part = _placed(image, random, _noise_shape(image, random, share) if random.random() < 0.5 else shape)
    around = image[part.rows, part.columns].reshape(-1, 3) if random.random() < 0.5 else image.reshape(-1, 3)
    noise = random.normal(0, 2, (*part.shape.shape, 1))
    return _blended(image, part, around.mean(axis=0) + noise, _opacity(random))


KINDS: dict[str, Callable[[Pixels, Generator, float, Pixels | None], Defect]] = {
    "scar": scar,
    "texture": texture_blob,
    "blur": blur,
    "stain": stain,
    "scratch": scratch,
    "missing": missing,
}
TEXTURED = ("texture",)  # kinds that blend in another image, if there is one


def _opacity(random: Generator) -> float:
    return float(random.uniform(*OPACITY))


def _blended(image: Pixels, part: Part, content: NDArray[np.floating], opacity: float) -> Defect:
    """An image with a part replaced by the content, as much as its shape and the opacity say."""
    changed, mask = image.copy(), np.zeros(image.shape[:2], bool)
    weight = opacity * part.shape[..., None]
    before = image[part.rows, part.columns].astype(np.float32)
    mixed = np.rint(before * (1 - weight) + np.asarray(content, np.float32) * weight).clip(0, 255).astype(np.uint8)
    marked = part.shape > 0
    changed[part.rows, part.columns][marked] = mixed[marked]
    mask[part.rows, part.columns] = marked
    return Defect(changed, mask)


def _placed(image: Pixels, random: Generator, shape: Values) -> Part:
    """A shape, cut to the image's size, at a random place of it."""
    height, width = (min(side, full) for side, full in zip(shape.shape, image.shape[:2], strict=True))
    top, left = _corner(image, height, width, random)
    return Part(slice(top, top + height), slice(left, left + width), shape[:height, :width])


def _corner(image: Pixels, height: int, width: int, random: Generator) -> tuple[int, int]:
    """The first row and column of a random place of a box on an image."""
    return int(random.integers(0, image.shape[0] - height + 1)), int(random.integers(0, image.shape[1] - width + 1))


def _widened(part: slice, margin: int) -> tuple[int, slice]:
    """A part of an axis with a margin, and where in it the part begins; the end of the axis cuts it by itself."""
    start = max(0, part.start - margin)
    return part.start - start, slice(start, part.stop + margin)


def _bar(image: Pixels, random: Generator, share: float, aspect: float) -> Values:
    """A rotated rectangle of a share of the image's area: 0 or 1."""
    area = share * image.shape[0] * image.shape[1]
    half_width, half_length = math.sqrt(area / aspect) / 2, math.sqrt(area * aspect) / 2
    angle = random.uniform(0, math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    reach_x = abs(half_length * cosine) + abs(half_width * sine)
    reach_y = abs(half_length * sine) + abs(half_width * cosine)
    rows, columns = np.ogrid[-reach_y:reach_y:1, -reach_x:reach_x:1]
    along, across = columns * cosine + rows * sine, rows * cosine - columns * sine
    return ((np.abs(along) <= half_length) & (np.abs(across) <= half_width)).astype(np.float32)


def _noise_shape(image: Pixels, random: Generator, share: float) -> Values:
    """A blob with a ragged border, of a share of the image's area: 0 or 1."""
    area = share * image.shape[0] * image.shape[1]
    aspect = math.exp(random.uniform(-0.7, 0.7))
    height, width = (max(3, round(math.sqrt(2.5 * area * ratio))) for ratio in (aspect, 1 / aspect))
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    noise = perlin_noise(height, width, int(2 ** random.integers(1, 4)), random)
    height_map = 1.2 * noise - (rows**2 + columns**2)
    n_pixels = max(1, min(round(area), height_map.size))
    return (height_map >= np.partition(height_map.ravel(), -n_pixels)[-n_pixels]).astype(np.float32)


def _line(image: Pixels, random: Generator, share: float) -> Values:
    """A bent line, one to a few pixels wide, of at most a share of the image's area: 0 to 1."""
    height, width = image.shape[:2]
    thickness = max(1.0, random.uniform(0.002, 0.008) * math.sqrt(height * width))
    length = min(share * height * width / thickness, random.uniform(0.1, 0.5) * math.hypot(height, width))
    n_steps = 12
    angles = random.uniform(0, 2 * math.pi) + np.cumsum(random.normal(0, 0.15, n_steps))
    steps = length / n_steps * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.concatenate([[[0.0, 0.0]], np.cumsum(steps, axis=0)])
    points += thickness - points.min(axis=0)
    right, bottom = (math.ceil(value + thickness) for value in points.max(axis=0).tolist())
    drawing = Image.new("L", (right, bottom))
    ImageDraw.Draw(drawing).line([tuple(point) for point in points.tolist()], fill=255, width=round(thickness))
    return np.asarray(drawing, np.float32) / np.float32(255)


def perlin_noise(height: int, width: int, cells: int, random: Generator) -> Values:
    """Perlin noise with so many cells along each side, about -1 to 1: (height, width).

    Random gradients at the corners of the cells, interpolated by 6 t^5 - 15 t^4 + 10 t^3 (Perlin, Improving noise,
    SIGGRAPH 2002).
    """
    angles = random.uniform(0, 2 * math.pi, (cells + 1, cells + 1))
    rows, columns = (np.linspace(0, cells, side, endpoint=False) for side in (height, width))
    row, column = rows.astype(int), columns.astype(int)
    y, x = (rows - row)[:, None], (columns - column)[None]
    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (y, x))

    def corner(down: int, right: int) -> NDArray[np.float64]:
        angle: NDArray[np.float64] = angles[np.ix_(row + down, column + right)]
        return np.cos(angle) * (x - right) + np.sin(angle) * (y - down)

    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    noise = math.sqrt(2) * (top * (1 - fade_y) + bottom * fade_y)
    return np.asarray(noise, np.float32)
