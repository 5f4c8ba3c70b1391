"""A generated data set in the MVTec layout: images as large as those of line cameras, with defects of 10 to 40 pixels.

``plate`` is brushed metal with a printed serial number and code, different in every image, that ``ignore.png`` covers.
They say a lot and a number in it, and the plates to test are of another lot than those to learn from. ``board`` is a
panel of equal units, each a chip among solder pads. ``strip`` is a long woven band. Light, grain and the phase of the
texture differ from image to image. A defect is clear at full size and next to nothing once the image is squeezed to
256 x 256 pixels. Surfaces are painted in shades of grey, then coloured.
"""

import io
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mvad import storage
from mvad.data.synthetic import require_new_folder

JPEG_QUALITY = 92
EDGE = 80  # pixels between the centre of a defect and the border of the image, at least
REACH = 32  # pixels around the centre of a defect that it may change
MIN_ALPHA = 0.1  # pixels with less of a defect than this stay as they are

FIELD = (2980, 2620, 3820, 2860)  # of a plate: left, top, right, bottom of the serial number and code
FIELD_JITTER, FIELD_MARGIN = 3, 12
METAL_SHADE = 0.55
CODE_MODULES, MODULE = 24, 8  # modules along a side of the code, pixels along a side of a module
LOT_MODULES = 16  # rows of the code that say the lot
LOT_CHARACTERS, NUMBER_DIGITS = 6, 4  # that a serial number consists of
UNIT, PITCH, PAD_RADIUS = 512, 32, 8.0  # of a board: sides of a unit and of the square around a pad
THREAD, PHASES = 12.0, 32  # of a strip: pixels from thread to thread, and steps of it that are painted

Grey = NDArray[np.floating[Any]]  # (rows, columns), 0 to 1; float32 if it is a whole image
Mask = NDArray[np.bool_]
Random = np.random.Generator


@dataclass
class Surface:
    """A product without light and noise.

    Attributes
    ----------
    grey
        What a good product looks like.
    bare
        What it looks like where its topmost part is missing.
    spots
        By defect: rows and columns where it may be, (n, 2); a defect without an entry may be anywhere.
    """

    grey: Grey
    bare: Grey
    spots: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict)


@dataclass
class Window:
    """The surroundings of a defect: two views of a surface, and the distance of each pixel from the centre."""

    grey: Grey
    bare: Grey
    y: Grey
    x: Grey


@dataclass(frozen=True)
class Category:
    """How a product is painted, its defects, the colours of its shades, what is ignored, and what is printed there.

    Rows of ``colours`` are a shade and its red, green and blue, all 0 to 255. ``print_label`` takes a surface, and what
    the lot and the rest of the label are drawn by.
    """

    paint: Callable[[Random], Surface]
    defects: dict[str, Callable[[Window, Random], tuple[Grey, Grey]]]
    colours: NDArray[np.float64]
    ignored: Callable[[], Mask] | None = None
    print_label: Callable[[Grey, Random, Random], None] | None = None


def write_large_sample(
    folder: str, seed: int = 0, *, n_train: int = 24, n_test_good: int = 20, n_test_per_defect: int = 10
) -> int:
    """Write the data set into a new ``folder`` (a path or URI) and return its number of images, without masks.

    The same seed gives the same pixels. With the default counts it takes about 620 MB, and a minute of one core.
    UsageError if the folder is not empty.
    """
    root = require_new_folder(folder)
    count = 0
    for name, category in CATEGORIES.items():
        if category.ignored is not None:
            _save_mask(storage.join(root, name, "ignore.png"), category.ignored())
        splits = {"train/good": n_train, "test/good": n_test_good}
        splits |= {f"test/{defect}": n_test_per_defect for defect in category.defects}
        for split, n_images in splits.items():
            for index in range(n_images):
                image, mask = paint_image(name, split, index, seed)
                _save(storage.join(root, name, split, f"{index:03}.jpg"), image)
                if mask is not None:
                    defect = split.removeprefix("test/")
                    _save_mask(storage.join(root, name, "ground_truth", defect, f"{index:03}_mask.png"), mask)
                count += 1
    return count


def paint_image(
    name: str, split: str, index: int, seed: int = 0, *, with_defect: bool = True
) -> tuple[Image.Image, Mask | None]:
    """Paint one image of a category, and the mask of its defect if the split is one of ``test/<defect>``.

    The four arguments alone decide on the pixels. ``with_defect=False`` paints the same product before its defect.
    """
    category = CATEGORIES[name]
    defect = split.removeprefix("test/")
    splits = ["train/good", "test/good", *(f"test/{each}" for each in category.defects)]
    number = list(CATEGORIES).index(name)
    key = [seed, number, splits.index(split), index]
    surface_random, camera_random, defect_random = np.random.default_rng(key).spawn(3)
    surface = category.paint(surface_random)
    if category.print_label is not None:
        lot_random = np.random.default_rng([seed, number, split == "train/good"])
        category.print_label(surface.grey, lot_random, surface_random)
    mask = None
    if defect in category.defects and with_defect:
        mask = _add_defect(surface, category, defect, defect_random)
    return _photograph(surface.grey, category.colours, camera_random), mask


def _add_defect(surface: Surface, category: Category, defect: str, random: Random) -> Mask:
    """Change the surface in a small window and return where."""
    height, width = surface.grey.shape
    spots = surface.spots.get(defect, random.uniform(0, (height, width), (64, 2)))
    rows, columns = spots.T
    allowed = (np.minimum(rows, height - rows) >= EDGE) & (np.minimum(columns, width - columns) >= EDGE)
    if category.ignored is not None:
        left, top, right, bottom = _grow(FIELD, FIELD_MARGIN + REACH)
        allowed &= (rows < top) | (rows > bottom) | (columns < left) | (columns > right)
    row, column = random.choice(spots[allowed])
    top, left = int(row) - REACH, int(column) - REACH
    y, x = np.mgrid[top : top + 2 * REACH, left : left + 2 * REACH].astype(np.float32)
    inside = (slice(top, top + 2 * REACH), slice(left, left + 2 * REACH))
    window = Window(surface.grey[inside], surface.bare[inside], y - np.float32(row), x - np.float32(column))
    changed, alpha = category.defects[defect](window, random)
    mask = np.zeros((height, width), bool)
    mask[inside] = alpha > MIN_ALPHA
    np.copyto(window.grey, changed, where=mask[inside])
    return mask


def _photograph(grey: Grey, colours: NDArray[np.float64], random: Random) -> Image.Image:
    """Add what a camera adds, uneven and varying light and sensor noise, and give each shade its colour."""
    height, width = grey.shape
    tilts = random.uniform(-0.06, 0.06, 2)
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    grey *= (random.uniform(0.93, 1.07) * (1 + tilts[0] * y)).astype(np.float32)[:, None]
    grey *= ((1 + tilts[1] * x) * (1 - 0.06 * x**2)).astype(np.float32)
    _add_rows(grey, _noise_line(random), 0.007, random)
    np.clip(grey, 0, 1, out=grey)
    grey *= 255
    grey += 0.5
    shades = Image.fromarray(grey.astype(np.uint8))
    curves = [np.interp(np.arange(256), colours[:, 0], channel).round().astype(int) for channel in colours[:, 1:].T]
    return Image.merge("RGB", [shades.point(curve.tolist()) for curve in curves])


def _noise_line(random: Random, length: int = 1) -> Grey:
    """Draw a long line of noise with a standard deviation of 1, smooth over ``length`` pixels, without outliers."""
    line = random.standard_normal(1 << 20, dtype=np.float32)
    for _ in range(2 if length > 1 else 0):
        sums = np.cumsum(line, dtype=np.float64)
        line = (sums[length:] - sums[:-length]).astype(np.float32)
    return np.clip(line / line.std(), -3, 3)


def _add_rows(grey: Grey, line: Grey, strength: float, random: Random, thickness: int = 1) -> None:
    """Add to each row, or to each few rows, a piece of the line that starts anywhere."""
    height, width = grey.shape
    pieces = sliding_window_view(line * np.float32(strength), width)
    starts = np.repeat(random.integers(0, len(pieces), -(-height // thickness)), thickness)
    for row in range(0, height, 128):
        grey[row : row + 128] += pieces[starts[row : min(row + 128, height)]]


def _clouds(shape: tuple[int, int], scale: int, strength: float, random: Random) -> Grey:
    """Draw smooth noise of a given standard deviation with spots of about ``scale`` pixels, without outliers."""
    height, width = shape
    coarse = random.standard_normal((height // scale, width // scale), dtype=np.float32).clip(-2.5, 2.5) * strength
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _soft(distance: Grey, softness: float = 0.7) -> Grey:
    """Return 1 inside an outline, where the distance from it is negative, and 0 outside."""
    return 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))


def _grow(box: tuple[int, int, int, int], margin: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left - margin, top - margin, right + margin, bottom + margin


def _plate(random: Random) -> Surface:
    grey = np.full((3072, 4096), METAL_SHADE, np.float32)
    for length, strength in ((60, 0.018), (9, 0.014)):
        _add_rows(grey, _noise_line(random, length), strength, random, thickness=2)
    for scale, strength in ((96, 0.014), (12, 0.012)):
        grey += _clouds(grey.shape, scale, strength, random)
    return Surface(grey, bare=grey)


def _print_serial(grey: Grey, lot_random: Random, random: Random) -> None:
    """Print a label with a serial number and a code on a plate, a few pixels off its place."""
    left, top, right, bottom = FIELD
    across, down = random.integers(-FIELD_JITTER, FIELD_JITTER + 1, 2)
    label = Image.new("L", (right - left, bottom - top), 205)
    draw = ImageDraw.Draw(label)
    draw.rectangle((4, 4, label.width - 5, label.height - 5), outline=40, width=4)
    modules = random.random((CODE_MODULES, CODE_MODULES)) < 0.5
    modules[:LOT_MODULES] = lot_random.random((LOT_MODULES, CODE_MODULES)) < 0.5
    modules[0], modules[:, -1] = np.arange(CODE_MODULES) % 2 == 0, np.arange(CODE_MODULES) % 2 == 1
    modules[:, 0], modules[-1] = True, True
    code = np.where(modules, 30, 205).astype(np.uint8).repeat(MODULE, 0).repeat(MODULE, 1)
    label.paste(Image.fromarray(code), (24, 24))
    lot = lot_random.choice(list(string.ascii_uppercase + string.digits), LOT_CHARACTERS)
    serial = "".join([*lot, *random.choice(list(string.digits), NUMBER_DIGITS)])
    font = ImageFont.load_default_imagefont()
    width, height = (int(value) for value in font.getbbox(serial)[2:])
    text = Image.new("L", (width, height), 205)
    ImageDraw.Draw(text).text((0, 0), serial, fill=30, font=font)
    label.paste(text.resize((width * 9, height * 9), Image.Resampling.NEAREST), (252, 70))
    place = grey[top + down : bottom + down, left + across : right + across]
    place[:] = np.asarray(label, np.float32) / 255 + 0.5 * (place - METAL_SHADE)  # the grain shows through


def _ignored_field() -> Mask:
    left, top, right, bottom = _grow(FIELD, FIELD_MARGIN)
    ignored = np.zeros((3072, 4096), bool)
    ignored[top:bottom, left:right] = True
    return ignored


def _board(random: Random) -> Surface:
    shift = random.uniform(-4, 4, 2).astype(np.float32)
    y, x = (np.mgrid[0:UNIT, 0:UNIT].astype(np.float32) - shift[:, None, None]) % UNIT
    from_pad = np.hypot(y % PITCH - PITCH / 2, x % PITCH - PITCH / 2)
    from_middle = np.maximum(np.abs(y - UNIT / 2), np.abs(x - UNIT / 2))  # a square's outline is at a constant one
    along = np.minimum(np.abs(y - UNIT / 2), np.abs(x - UNIT / 2))
    pins = _soft(np.maximum(np.abs(along % 16 - 8) - 4, np.abs(from_middle - 112) - 10)) * (along < 96)
    lanes = _soft(np.abs(y % PITCH - PITCH / 2) - 2.5) * _soft(136 - from_middle)
    unit_bare = 0.34 + 0.07 * lanes
    unit_bare += (0.68 - unit_bare) * pins
    unit_bare += (0.15 - unit_bare) * _soft(from_middle - 106)
    pad = _soft(from_pad - PAD_RADIUS) * (from_middle > 128)
    bare = np.tile(unit_bare, (3072 // UNIT, 4096 // UNIT))
    for scale, strength in ((96, 0.012), (10, 0.012)):
        bare += _clouds(bare.shape, scale, strength, random)
    _add_rows(bare, _noise_line(random, 2), 0.010, random)
    n_rows, n_columns = 3072 // PITCH, 4096 // PITCH
    tin = np.tile(pad * (0.68 - unit_bare), (3072 // UNIT, 4096 // UNIT)).reshape(n_rows, PITCH, n_columns, PITCH)
    tin *= 1 + 0.10 * random.uniform(-1, 1, (n_rows, 1, n_columns, 1)).astype(np.float32)
    cell_y, cell_x = np.mgrid[0:n_rows, 0:n_columns]
    has_pad = np.maximum(np.abs(cell_y % 16 - 7.5), np.abs(cell_x % 16 - 7.5)) > 4
    pads = np.argwhere(has_pad) * PITCH + PITCH / 2 + shift
    pairs = np.argwhere(has_pad[:, :-1] & has_pad[:, 1:]) * PITCH + [PITCH / 2, PITCH] + shift
    return Surface(bare + tin.reshape(bare.shape), bare, {"missing_pad": pads, "bridge": pairs})


def _strip(random: Random) -> Surface:
    height, width = 1024, 8192
    phase = (np.arange(2 * PHASES, dtype=np.float32) + 0.5) / PHASES  # of two threads
    warp = np.abs(np.sin(np.pi * phase))[None, :] ** 0.6
    weft = np.abs(np.sin(np.pi * phase))[:, None] ** 0.6
    over = (phase[None, :] < 1) == (phase[:, None] < 1)
    cell = np.where(over, 0.40 + 0.36 * warp * (0.6 + 0.4 * weft), 0.34 + 0.36 * weft * (0.6 + 0.4 * warp))
    bare_cell = np.broadcast_to(0.18 + 0.20 * weft, cell.shape).astype(np.float32)
    pitch, skew = random.uniform(0.97, 1.03) * THREAD, random.uniform(-0.004, 0.004)
    bend = _clouds((height, width), 128, 1.2, random)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    offsets = 100 + random.uniform(0, 2, 2)  # keeps what is bent below the first thread positive
    u = (bend + x + skew * y) / pitch + np.float32(offsets[0])
    v = (bend + y - skew * x) / pitch + np.float32(offsets[1])
    row_phase, column_phase = (v * PHASES).astype(np.int32), (u * PHASES).astype(np.int32)
    place = (row_phase % (2 * PHASES)) * (2 * PHASES) + column_phase % (2 * PHASES)
    grey, bare = cell.astype(np.float32).ravel()[place], bare_cell.ravel()[place]
    for threads in (row_phase // PHASES, column_phase // PHASES):
        shades = 1 + 0.03 * random.uniform(-1, 1, int(threads.max()) + 1).astype(np.float32)
        grey *= shades[threads]
    yarn = _clouds((height, width), 8, 0.018, random) + _clouds((height, width), 64, 0.012, random)
    grey += yarn
    bare += yarn
    rows = np.arange(EDGE, height - EDGE, 32)
    picks, columns = np.nonzero(np.diff(np.floor(u[rows] - 0.5)))  # where the middle of a thread is
    return Surface(grey, bare, {"broken_thread": np.stack([rows[picks], columns + 1], axis=1).astype(float)})


def _blob(window: Window, random: Random, radius: float) -> Grey:
    """Draw the distance from the outline of an irregular round spot."""
    angle = np.arctan2(window.y, window.x)
    first, second = random.uniform(0, 2 * np.pi, 2)
    wobble = 1 + 0.14 * np.cos(2 * angle + np.float32(first)) + 0.08 * np.cos(3 * angle + np.float32(second))
    return np.hypot(window.y, window.x) - radius * wobble


def _pit(window: Window, random: Random) -> tuple[Grey, Grey]:
    """Dent the surface: one side of the dent is dark, the other reflects the light."""
    radius, light = random.uniform(5.5, 10.5), random.uniform(0, 2 * np.pi)
    towards_light = (window.x * np.cos(light) + window.y * np.sin(light)) / radius
    alpha = _soft(_blob(window, random, radius))
    return window.grey * (1 + alpha * (0.6 * towards_light - 0.15)), alpha


def _scratch(window: Window, random: Random) -> tuple[Grey, Grey]:
    """Draw a slightly bent dark line with a bright lip."""
    length, width = random.uniform(24, 34), random.uniform(2.6, 3.6)
    angle, bend = random.uniform(0, np.pi), random.uniform(-0.15, 0.15)
    along = window.x * np.cos(angle) + window.y * np.sin(angle)
    across = window.y * np.cos(angle) - window.x * np.sin(angle) - bend * along**2 / length
    ends = _soft(np.abs(along) - length / 2)
    line = ends * _soft(np.abs(across) - width / 2, 0.45)
    lip = ends * _soft(np.abs(across - width) - width / 2, 0.45)
    return window.grey * (1 - 0.5 * line + 0.35 * lip), np.maximum(line, lip)


def _missing_pad(window: Window, random: Random) -> tuple[Grey, Grey]:
    alpha = _soft(np.hypot(window.y, window.x) - PAD_RADIUS - 2, 0.5)
    return window.grey + alpha * (window.bare - window.grey), alpha


def _bridge(window: Window, random: Random) -> tuple[Grey, Grey]:
    """Join two pads by solder; the window's centre is halfway between them."""
    width = random.uniform(6, 10)
    waist = width / 2 * (0.8 + 0.2 * (window.x / 8) ** 2)
    alpha = _soft(np.abs(window.y) - waist, 0.6) * _soft(np.abs(window.x) - 11)
    return window.grey + alpha * (random.uniform(0.62, 0.72) - window.grey), alpha


def _speck(window: Window, random: Random) -> tuple[Grey, Grey]:
    alpha = _soft(_blob(window, random, random.uniform(6, 9)), 0.9)
    return window.grey * (1 - 0.6 * alpha), alpha


def _broken_thread(window: Window, random: Random) -> tuple[Grey, Grey]:
    """Take a piece of a thread away; the window's centre is on its middle."""
    alpha = _soft(np.abs(window.x) - THREAD / 2 + 0.5, 0.6) * _soft(np.abs(window.y) - random.uniform(10, 17), 0.9)
    return window.grey + alpha * (window.bare - window.grey), alpha


METAL = np.array([(0, 4, 5, 6), (255, 248, 251, 255)], float)
SOLDER_RESIST = np.array(
    [(0, 6, 8, 8), (38, 34, 36, 40), (87, 32, 92, 62), (105, 52, 124, 86), (170, 186, 184, 172), (255, 255, 252, 245)],
    float,
)
LINEN = np.array([(0, 0, 0, 0), (255, 255, 246, 226)], float)

CATEGORIES = {
    "plate": Category(_plate, {"pit": _pit, "scratch": _scratch}, METAL, _ignored_field, _print_serial),
    "board": Category(_board, {"missing_pad": _missing_pad, "bridge": _bridge}, SOLDER_RESIST),
    "strip": Category(_strip, {"speck": _speck, "broken_thread": _broken_thread}, LINEN),
}


def _save(uri: str, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    storage.write(uri, buffer.getvalue())


def _save_mask(uri: str, mask: Mask) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=3)
    storage.write(uri, buffer.getvalue())
