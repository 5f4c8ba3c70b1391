"""A generated data set in the MVTec layout: three categories with good images, subtle defects and their masks.

``weave`` is a woven texture. ``perforated`` is a sheet with a regular grid of holes. ``bracket`` is a part with two
screws on a background, in a slightly different pose in every image. Lighting, grain and fine structure differ from
image to image. Some defects are no stronger than that, so a method must know what the surface looks like, not only how
bright it is.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.errors import UsageError

SIDE = 256

Pixels = NDArray[np.float64]  # (SIDE, SIDE, 3), 0 to 1
Alpha = NDArray[np.float64]  # (SIDE, SIDE), 0 to 1: the share of the defect in each pixel
Structure = dict[str, Any]  # where the structures of a surface are, so that defects can be placed on them
Random = np.random.Generator

ROWS, COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(float)


def write_sample(
    folder: str, seed: int = 0, *, n_train: int = 48, n_test_good: int = 16, n_test_per_defect: int = 6
) -> int:
    """Write the data set into a new ``folder`` (a path or URI) and return its number of images, without masks.

    The same seed gives the same pixels. UsageError if the folder is not empty.
    """
    root = require_new_folder(folder)
    count = 0
    for number, (category, (paint, defects)) in enumerate(CATEGORIES.items()):
        random = np.random.default_rng([seed, number])
        for split, n_images in (("train/good", n_train), ("test/good", n_test_good)):
            for index in range(n_images):
                uri = storage.join(root, category, split, f"{index:03}.png")
                _save(uri, _photograph(paint(random)[0], random))
                count += 1
        for defect, add_defect in defects.items():
            for index in range(n_test_per_defect):
                surface, structure = paint(random)
                surface, alpha = add_defect(surface, structure, random)
                image_uri = storage.join(root, category, "test", defect, f"{index:03}.png")
                _save(image_uri, _photograph(surface, random))
                mask_uri = storage.join(root, category, "ground_truth", defect, f"{index:03}_mask.png")
                _save(mask_uri, (alpha > 0.25).astype(np.float64))
                count += 1
    return count


def require_new_folder(folder: str) -> str:
    """Return the URI of a folder to write a data set into; UsageError if it is not empty."""
    root = storage.to_uri(folder)
    if storage.list_folder(root):
        raise UsageError(f"{folder} is not empty; give a new folder.")
    return root


def _save(uri: str, pixels: NDArray[np.float64]) -> None:
    buffer = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG", compress_level=3)
    storage.write(uri, buffer.getvalue())


def _blur(values: NDArray[np.float64], sigma: float | tuple[float, ...], mode: str = "reflect") -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(values, sigma, mode=mode)


def _noise(random: Random, sigma: float) -> NDArray[np.float64]:
    """Draw smooth noise with a standard deviation of 1."""
    from scipy.ndimage import zoom

    step = 1 if sigma < 8 else 2 if sigma < 16 else 4  # wide noise needs no fine grid
    field = _blur(random.standard_normal((SIDE // step, SIDE // step)), sigma / step, mode="wrap")
    field = zoom(field, step, order=1, mode="grid-wrap", grid_mode=True)
    return field / field.std()


def _photograph(surface: Pixels, random: Random) -> Pixels:
    """Add what a camera adds: uneven and varying light, a little blur, sensor noise."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.12)
    slope = ((COLUMNS - SIDE / 2) * np.cos(angle) + (ROWS - SIDE / 2) * np.sin(angle)) / SIDE
    light = random.uniform(0.92, 1.08) * (1 + strength * slope)
    sharp = _blur(surface * light[..., None], (0.6, 0.6, 0))
    return sharp + random.normal(0, 0.012, surface.shape)


def _weave(random: Random) -> tuple[Pixels, Structure]:
    period, tilt = random.uniform(11.5, 12.5), random.uniform(-0.04, 0.04)
    bend = 1.2 * _noise(random, 24)
    u = (COLUMNS + tilt * ROWS + bend + random.uniform(0, period)) * np.pi / period
    v = (ROWS - tilt * COLUMNS + bend + random.uniform(0, period)) * np.pi / period
    over = np.floor(u / np.pi) + np.floor(v / np.pi)
    warp, weft = np.abs(np.sin(u)) ** 0.6, np.abs(np.sin(v)) ** 0.6
    height = np.where(over % 2 == 0, 0.45 + 0.55 * warp * (0.6 + 0.4 * weft), 0.35 + 0.5 * weft * (0.6 + 0.4 * warp))
    height = height * (1 + 0.05 * _noise(random, 1.0)) + 0.03 * _noise(random, 12)
    return height[..., None] * np.array([0.62, 0.60, 0.55]), {}


def _perforated(random: Random) -> tuple[Pixels, Structure]:
    pitch, radius = 32.0, random.uniform(8.6, 9.2)
    dx, dy, turn = random.uniform(0, pitch), random.uniform(0, pitch), np.deg2rad(random.uniform(-1.5, 1.5))
    x = COLUMNS * np.cos(turn) + ROWS * np.sin(turn) + dx
    y = -COLUMNS * np.sin(turn) + ROWS * np.cos(turn) + dy
    cell_x, cell_y = np.round(x / pitch), np.round(y / pitch)
    distance = np.hypot(x - cell_x * pitch, y - cell_y * pitch)
    hole = 1 / (1 + np.exp((distance - radius) / 0.6))
    rim = np.exp(-(((distance - radius - 1.2) / 1.2) ** 2)) * (
        0.5 + 0.5 * np.cos(np.arctan2(y - cell_y * pitch, x - cell_x * pitch) - 0.8)
    )
    brushed = _blur(random.standard_normal((SIDE, SIDE)), (0.7, 14), mode="wrap")
    sheet = 0.60 + 0.04 * brushed / brushed.std() + 0.16 * rim
    grey = sheet * (1 - hole) + 0.12 * hole
    cells = {"x": cell_x, "y": cell_y, "distance": distance, "sheet": sheet, "radius": radius}
    return np.repeat(grey[..., None], 3, axis=2) * np.array([0.97, 1.0, 1.03]), cells


def _bracket(random: Random) -> tuple[Pixels, Structure]:
    turn = np.deg2rad(random.uniform(-6, 6))
    x0, y0 = SIDE / 2 + random.uniform(-7, 7), SIDE / 2 + random.uniform(-7, 7)
    x = (COLUMNS - x0) * np.cos(turn) + (ROWS - y0) * np.sin(turn)
    y = -(COLUMNS - x0) * np.sin(turn) + (ROWS - y0) * np.cos(turn)
    outside = np.hypot(np.maximum(np.abs(x) - 68, 0), np.maximum(np.abs(y) - 34, 0)) - 16
    body = 1 / (1 + np.exp(outside / 0.7))
    edge = np.exp(-(((outside + 4) / 3) ** 2))
    slot = 1 / (1 + np.exp((np.hypot(np.maximum(np.abs(x) - 16, 0), y) - 9) / 0.7))
    metal = 0.55 + 0.03 * _noise(random, 1.5) + 0.03 * _noise(random, 10) + 0.10 * edge
    belt = 0.20 + 0.025 * _noise(random, 2.5) + 0.015 * _noise(random, 20)
    grey = belt * (1 - body) + metal * body
    grey = grey * (1 - slot) + belt * slot
    screws = []
    bare = grey.copy()
    for side in (-1, 1):
        sx, sy = x - side * 58, y
        distance = np.hypot(sx, sy)
        head = 1 / (1 + np.exp((distance - 14) / 0.7))
        spin = random.uniform(0, np.pi)
        cross = np.minimum(
            np.abs(sx * np.cos(spin) + sy * np.sin(spin)), np.abs(-sx * np.sin(spin) + sy * np.cos(spin))
        )
        drive = (1 / (1 + np.exp((cross - 1.8) / 0.5))) * (distance < 9)
        dome = 0.74 - 0.10 * (distance / 14) ** 2 + 0.05 * (sx - sy) / 14 - 0.45 * drive
        grey = grey * (1 - head) + dome * head
        seat = 1 / (1 + np.exp((distance - 7) / 0.7))
        screws.append((head, bare * (1 - seat) + 0.10 * seat))
    structure = {"screws": screws, "inside": (outside < -4) & (np.abs(y) < 46) & (slot < 0.1)}
    return np.repeat(grey[..., None], 3, axis=2) * np.array([1.0, 0.99, 0.95]), structure


def _random_position(structure: Structure, random: Random, margin: int = 36) -> tuple[float, float]:
    """Draw a position on the product, as row and column."""
    if "inside" in structure:
        rows, columns = np.nonzero(structure["inside"])
        pick = random.integers(len(rows))
        return float(rows[pick]), float(columns[pick])
    row, column = random.uniform(margin, SIDE - margin, 2)
    return float(row), float(column)


def _blend(surface: Pixels, alpha: Alpha, colour: NDArray[np.float64] | float) -> tuple[Pixels, Alpha]:
    return surface * (1 - alpha[..., None]) + np.asarray(colour) * alpha[..., None], alpha


def _blob(structure: Structure, random: Random, radius: float, softness: float) -> Alpha:
    """Draw an irregular round spot."""
    row, column = _random_position(structure, random)
    wobble = 0.25 * radius * _noise(random, radius / 1.5)
    stretch, angle = random.uniform(0.7, 1.4), random.uniform(0, np.pi)
    x, y = COLUMNS - column, ROWS - row
    a, b = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    return 1 / (1 + np.exp((np.hypot(a * stretch, b / stretch) + wobble - radius) / softness))


def _curve(structure: Structure, random: Random, length: float, width: float, bend: float) -> Alpha:
    """Draw a thin curve of a given length and width, in pixels."""
    row, column = _random_position(structure, random, margin=48)
    steps = np.arange(-length / 2, length / 2, 0.5)
    turns = _blur(random.standard_normal(len(steps)), 12, mode="nearest")
    angles = random.uniform(0, np.pi) + bend * np.cumsum(turns - turns.mean()) / 10
    rows, columns = row + np.cumsum(np.sin(angles)) * 0.5, column + np.cumsum(np.cos(angles)) * 0.5
    rows, columns = rows - rows.mean() + row, columns - columns.mean() + column
    distance = np.full((SIDE, SIDE), np.inf)
    for y, x in zip(rows[::2], columns[::2], strict=True):
        np.minimum(distance, np.hypot(ROWS - y, COLUMNS - x), out=distance)
    return 1 / (1 + np.exp((distance - width / 2) / 0.45))


def _stain(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    alpha = _blob(structure, random, random.uniform(9, 16), 2.0)
    tint = random.choice([0.72, 0.78, 1.22]) * np.array([1.0, 0.97, 0.90])
    return _blend(surface, alpha, surface * tint)


def _cut(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    alpha = _curve(structure, random, random.uniform(22, 45), random.uniform(1.6, 2.6), bend=0.2)
    lip = np.roll(alpha, (1, 1), (0, 1)) * (1 - alpha)
    return _blend(surface + 0.10 * lip[..., None], alpha, surface * 0.45)


def _hole(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    return _blend(surface, _blob(structure, random, random.uniform(4, 7), 0.6), 0.10)


def _contamination(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    alpha = np.zeros((SIDE, SIDE))
    row, column = _random_position(structure, random)
    for _ in range(random.integers(3, 7)):
        y, x = row + random.normal(0, 7), column + random.normal(0, 7)
        alpha = np.maximum(alpha, 1 / (1 + np.exp((np.hypot(ROWS - y, COLUMNS - x) - random.uniform(1.8, 3.2)) / 0.5)))
    shade = random.choice([0.30, 0.78])
    return _blend(surface, alpha, shade * np.array([1.0, 0.92, 0.80]))


def _thread(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    alpha = _curve(structure, random, random.uniform(45, 80), random.uniform(1.6, 2.4), bend=1.0)
    return _blend(surface, 0.85 * alpha, np.array([0.66, 0.66, 0.70]))


def _bulge(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    """Push threads apart: the texture is distorted, its colours stay."""
    from scipy.ndimage import map_coordinates

    row, column = _random_position(structure, random, margin=48)
    x, y = COLUMNS - column, ROWS - row
    radius = random.uniform(16, 22)
    falloff = np.exp(-((np.hypot(x, y) / radius) ** 2))
    positions = np.stack([ROWS - 0.55 * y * falloff, COLUMNS - 0.55 * x * falloff])
    warped = [map_coordinates(surface[..., channel], positions, order=1, mode="reflect") for channel in range(3)]
    return np.stack(warped, axis=2), (falloff > 0.3).astype(float)


def _missing_hole(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    row, column = (int(value) for value in _random_position(structure, random, margin=48))
    cell = (structure["x"] == structure["x"][row, column]) & (structure["y"] == structure["y"][row, column])
    alpha = cell * (1 / (1 + np.exp((structure["distance"] - structure["radius"] - 2.5) / 0.5)))
    smooth = np.median(structure["sheet"]) + 0.04 * _noise(random, 2.0)
    return _blend(surface, alpha, smooth[..., None])


def _oval_hole(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    """Punch one hole too wide: a crescent of sheet is missing."""
    row, column = (int(value) for value in _random_position(structure, random, margin=48))
    cell = (structure["x"] == structure["x"][row, column]) & (structure["y"] == structure["y"][row, column])
    angle = random.uniform(0, 2 * np.pi)
    ring = 1 / (1 + np.exp((structure["distance"] - structure["radius"] - 4.5) / 0.6))
    rows, columns = np.nonzero(cell)
    side = np.cos(angle) * (COLUMNS - columns.mean()) + np.sin(angle) * (ROWS - rows.mean()) > 0
    alpha = cell * ring * side * (structure["distance"] > structure["radius"] - 1)
    return _blend(surface, alpha, 0.12)


def _missing_screw(surface: Pixels, structure: Structure, random: Random) -> tuple[Pixels, Alpha]:
    head, bare = structure["screws"][random.integers(2)]
    return _blend(surface, head, bare[..., None] * np.array([1.0, 0.99, 0.95]))


Paint = Callable[[Random], tuple[Pixels, Structure]]
AddDefect = Callable[[Pixels, Structure, Random], tuple[Pixels, Alpha]]

CATEGORIES: dict[str, tuple[Paint, dict[str, AddDefect]]] = {
    "weave": (_weave, {"stain": _stain, "cut": _cut, "hole": _hole, "thread": _thread, "distortion": _bulge}),
    "perforated": (
        _perforated,
        {
            "stain": _stain,
            "cut": _cut,
            "contamination": _contamination,
            "missing_hole": _missing_hole,
            "oval_hole": _oval_hole,
        },
    ),
    "bracket": (
        _bracket,
        {"stain": _stain, "cut": _cut, "contamination": _contamination, "missing_part": _missing_screw},
    ),
}
