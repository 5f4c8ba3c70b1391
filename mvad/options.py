"""Every option of every command: its type, default and one line of help, written once.

Options come in groups. A command's options are a sum of groups, and nothing that the command would ignore. The command
line and the Python functions read the same classes; a detector's parameters are its own (`detectors.base.Detector`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from typer import Argument, Option
from typer.models import OptionInfo

from mvad import storage
from mvad.calibration import RULES, UNKNOWN_PRODUCT
from mvad.data.augmentation import AUGMENTATIONS, Augmentation
from mvad.data.image_size import (
    EXACT,
    SMOOTHING,
    TILES,
    Decoding,
    ImageSize,
    Smoothing,
    TileLevels,
    fitting_size,
    tiled_size,
)
from mvad.data.sampling import N_VARIANTS
from mvad.detectors import METHODS, Detector, Shardable, find_method
from mvad.errors import UsageError
from mvad.features.backbone_spec import MAX_NEIGHBOURHOOD
from mvad.features.recipes import ANOMALY_DINO, DEFAULTS, DETECTOR_OPTIONS, EFFICIENTNET_LITE, IMAGE_SIZE, has_recipe
from mvad.memory import MemoryBudget, parse_bytes

PRESETS: dict[str, dict[str, Any]] = {  # option values, by name of the preset
    "patchcore-paper": {  # arXiv 2106.08265, section 4.1
        "image_size": 256,
        "crop": 224,
        "coreset_ratio": 0.1,
        "max_vectors": 1_000_000_000,
    },
}

# Titles that are not named here are those of one command, and come first, or of a detector's parameters.
PANEL_ORDER = {"Images": 1, "Decisions": 2, "Backbone": 3, "Augmentation": 5, "Few-shot": 5, "Cluster": 6, "Output": 7}
PANEL_ORDER |= {"Alarms": 6}
PANEL_ORDER |= {str(method.Params.__doc__): 4 for method in METHODS.values()}

Options = TypeVar("Options")


def split_commas(value: Any) -> Any:
    """Split ``"a,b"``, or each string of a list, at its commas; None and an empty list are None."""
    words = [value] if isinstance(value, str | int | float) else list(value or ())
    parts = [part.strip() for word in words for part in str(word).split(",")]
    if words and not any(parts):
        raise ValueError("the list is empty; separate names by commas")
    return [part for part in parts if part] or None


def as_list(value: Any) -> Any:
    """Let one string be a list of it; an empty list is None."""
    return [value] if isinstance(value, str) else list(value or ()) or None


TUNABLE = ("patchcore",)  # methods with candidates in `tuning.candidates`
MIN_SIDE = 32  # pixels of a model's input
LARGE_SIDE = 512  # pixels: smaller images are not cut into windows by themselves
AUTO = "auto"  # value of --category
ALL_CATEGORIES = "*"  # key of a threshold for the categories that have none of their own


COSTS = {"missed": "missed", "false-alarm": "false_alarm"}  # kinds of mistakes, and their names in Python


def parse_costs(value: Any) -> Any:
    """Costs of mistakes from a text such as ``missed=100,false-alarm=1``; other values as they are."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(",")]
    try:
        costs = {COSTS[name.strip()]: float(number) for name, _, number in parts}
    except (KeyError, ValueError):
        costs = {}
    if costs.keys() != {*COSTS.values()} or not all(0 <= cost < math.inf for cost in costs.values()):
        raise ValueError(f"{value!r} does not give both costs, such as missed=100,false-alarm=1")
    return costs


def parse_thresholds(value: Any) -> Any:
    """Thresholds by category, from ``"0.7"``, which is for all, or ``"weave=0.7,bracket=0.9"``; None is None."""
    if value is None or isinstance(value, Mapping):
        return value
    thresholds = {}
    for part in split_commas(value) or ():
        category, _, number = part.rpartition("=")
        try:
            thresholds[category.strip() or ALL_CATEGORIES] = float(number)
        except ValueError:
            raise ValueError(f"{number!r} is not a number; give 0.7, or weave=0.7,bracket=0.9") from None
    return thresholds


SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}  # by unit of a time


def parse_seconds(text: str | float) -> float:
    """A time such as 90s, 10m or 1.5h in seconds; UsageError if it is not a time."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(text).strip())
    if not match or not float(match[1]):
        raise UsageError(f"--budget {str(text)!r} is not a time such as 90s, 10m or 1h.")
    return float(match[1]) * SECONDS[match[2]]


def _check_limit(value: str) -> str:
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value.strip()):
        raise ValueError("give a count (20) or a share (5%)")
    return value.strip()


def _check_tile_size(value: str) -> str:
    if value not in ("auto", "none") and not (value.isdecimal() and int(value) >= MIN_SIDE):
        raise ValueError(f"give auto, none, or the side of a window in pixels, at least {MIN_SIDE}")
    return value


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("give an odd number, 1 for no averaging")
    return value


def _check_hosts(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", name):
            raise ValueError(f"{name!r} is no name of a host; leave out https://, the port and the path")
    return names


if TYPE_CHECKING:
    MethodName = str
    Rule = str
else:
    MethodName = Literal[tuple(METHODS)]
    Rule = Literal[RULES]

Layout = Literal["auto", "mvtec", "mvtec_ad_2", "mvtec_loco", "visa", "real_iad", "kolektor", "plain"]
LAYOUT_HELP = (
    "How DATA is laid out; mvtec includes BTAD, MPDD, and folders of good and defective images; plain has no labels."
)
Names = Annotated[list[str] | None, BeforeValidator(split_commas)]
Repeated = Annotated[list[str] | None, BeforeValidator(as_list)]
HostNames = Annotated[Names, AfterValidator(_check_hosts)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=MIN_SIDE)]
Neighbourhood = Annotated[int, Field(ge=1, le=MAX_NEIGHBOURHOOD), AfterValidator(_check_odd)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
Thresholds = Annotated[
    dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None, BeforeValidator(parse_thresholds)
]

Data = Annotated[
    str, Argument(metavar="DATA", help="A folder of images, or a CSV or Parquet table of them; a path or a URI.")
]
NewData = Annotated[  # None if images come from elsewhere
    str | None,
    Argument(
        metavar="[DATA]",
        help="A folder of images, or a CSV or Parquet table of them; a path or a URI. Not with --reviewed.",
        default_factory=lambda: None,
        show_default=False,
    ),
]
ModelCategory = Annotated[str, Option("--category", help="Category of the model.")]
HistoryCategory = Annotated[str | None, Option("--category", help="With --history, of this category alone.")]
Out = Annotated[str, Option(help="New folder for the results; a path or a URI.")]
Models = Annotated[str, Option(help="Folder of fitted models; a path or a URI.")]
FALSE_ALARM_RATE = Option(help="Share of good images that may be flagged.")
MODELS = Option(help="Folder of the models, for their calibration scores.", show_default="as in run.json")
DECISION = ("threshold_rule", "false_alarm_rate", "fdr", "uncertain_rate", "threshold")  # options that decide on images
Results = Annotated[str, Argument(metavar="RESULTS", help="Folder of results; a path or a URI.")]


def _bytes(help: str, default: str) -> Any:
    return Option(help=help, metavar="SIZE", show_default=default)


def _by_recipe(name: str, default: Any) -> str:
    """How ``--help`` shows the default of an option that depends on the backbone: see `features.recipes`.

    ``default`` is that of most methods; those whose own is what the recipes say are named.
    """
    advised = ANOMALY_DINO[name]
    alike = [method.method for method in METHODS.values() if _defaults_of(method).get(name) == advised]
    return f"{default}; {advised} for {', '.join([*alike, 'DINOv2'])} and DINOv3"


def _sizes_by_backbone() -> str:
    """How ``--help`` shows the default side of the model's input."""
    return _by_recipe("image_size", f"{IMAGE_SIZE}; {EFFICIENTNET_LITE['image_size']} for EfficientNet-Lite")


def _defaults_of(method: type[Detector]) -> dict[str, Any]:
    return {field.name: field.default for field in fields(method.Params)}


def _commas(help: str, example: str) -> Any:
    return Option(help=f"{help}, comma-separated.", metavar=example)


group = functools.partial(dataclass, frozen=True, kw_only=True, config=ConfigDict(defer_build=True, extra="forbid"))


class Group:
    """A group of options; its docstring is the title of its panel in ``--help``."""

    def __post_init__(self) -> None:
        """Check what no single option can: each group calls the check of the next."""


@group()
class OutputOptions(Group):
    """Output"""

    quiet: Annotated[bool, Option("--quiet", help="Print errors and warnings only.")] = False


@group()
class NewRunOptions(Group):
    """Output"""

    new_run: Annotated[bool, Option("--new-run", help="Replace the results or models of an earlier run.")] = False


@group()
class CategoryOptions(Group):
    """Images"""

    categories: Annotated[Names, _commas("Use these categories only", "A,B")] = None


@group()
class PixelOptions(Group):
    """Images"""

    max_pixels: Annotated[Positive, Option(help="Treat an image with more pixels than this as an error.")] = 100_000_000


@group()
class FileOptions(PixelOptions):
    """Images"""

    max_errors: Annotated[
        str,
        AfterValidator(_check_limit),
        Option(help="Exit with code 3 if more files than this are unreadable: a count, or a share such as 5%."),
    ] = "10%"

    def allowed_errors(self, n_images: int) -> int:
        """How many of ``n_images`` files may be unreadable before the exit code is 3."""
        if self.max_errors.endswith("%"):
            return int(float(self.max_errors[:-1]) / 100 * n_images)
        return int(self.max_errors)


@group()
class PageOptions(Group):
    """Images"""

    pages: Annotated[
        Literal["single", "first"],
        Option(help="Files of several pages or frames: single refuses them, first uses their first one."),
    ] = "single"

    @property
    def first_page(self) -> bool:
        """Whether the first of several pages is used."""
        return self.pages == "first"


@group()
class DataOptions(CategoryOptions, FileOptions, PageOptions):
    """Images"""

    category: Annotated[
        str | None, Option(help="Name of the only category of a plain folder, instead of its sub-folders' names.")
    ] = None
    layout: Annotated[Layout, Option(help=LAYOUT_HELP)] = "auto"
    limit: Annotated[
        Positive | None, Option(help="Use at most N images per category and split, evenly spaced.", metavar="N")
    ] = None


@group()
class NetworkOptions(Group):
    """Backbone"""

    weights: Annotated[
        str | None, Option(help="Your own copy of the backbone's weights: .safetensors, or .pth with tensors only.")
    ] = None
    engine: Annotated[
        Literal["auto", "onnx", "torch"],
        Option(help="What runs the backbone on CPUs; onnx is about twice as fast as torch. GPUs use torch."),
    ] = "auto"


@group()
class BackboneOptions(NetworkOptions):
    """Backbone"""

    backbone: Annotated[
        str | None,
        Option(
            help="A torchvision ResNet (wide_resnet50_2, ...) or Vision Transformer, efficientnet_lite0, or timm:NAME.",
            show_default="resnet50; vit_b_16 for vit-knn",
        ),
    ] = None
    layers: Annotated[
        list[Positive] | None,
        BeforeValidator(split_commas),
        Option(
            help="Layers that patch features are made of: strides in pixels (4, 8, 16, 32), or a transformer's blocks "
            "counted from 1, comma-separated.",
            metavar="A,B",
            show_default="strides 8,16; blocks at 1/2 and 3/4 of the depth; the last block for DINOv2 and DINOv3",
        ),
    ] = None
    neighbourhood: Annotated[
        Neighbourhood | None,
        Option(
            help="Side of the square of neighbours that patch features are averaged over, odd; 1: no averaging.",
            show_default=_by_recipe("neighbourhood", DEFAULTS["neighbourhood"]),
        ),
    ] = None
    norm: Annotated[
        bool | None,
        Option(
            "--norm/--no-norm",
            help="Apply a transformer's final norm to the patch tokens of each layer.",
            show_default="no-norm; norm for DINOv2 and DINOv3",
        ),
    ] = None
    image_size: Annotated[
        Side | None,
        Option(
            help="Side of the model's input, in pixels; images that are not square keep their shape at the same area.",
            show_default=_sizes_by_backbone(),
        ),
    ] = None
    crop: Annotated[
        Side | None,
        Option(
            help="Squeeze images to a square, and crop its centre of this side.", show_default="the whole image is seen"
        ),
    ] = None
    tile_size: Annotated[
        str,
        BeforeValidator(str),
        AfterValidator(_check_tile_size),
        Option(
            help="Look at images through overlapping windows of this side, in pixels; auto: of --image-size, if images "
            "are large (more than twice that and 512 pixels a side).",
            metavar="auto|none|N",
        ),
    ] = "auto"
    tile_levels: Annotated[
        TileLevels,
        Option(
            help="What is seen of images that are looked at through windows: the windows, or also the whole image, "
            "squeezed to --image-size, by a memory bank of its own (patchcore)."
        ),
    ] = TILES
    tile_overlap: Annotated[
        float, Field(ge=0, le=0.75), Option(help="Overlap of neighbouring windows, at least, as a share of their side.")
    ] = 0.125
    scale: Annotated[
        float, Field(gt=0, le=4), Option(help="Resize images by this factor before they are cut into windows.")
    ] = 1.0
    smoothing: Annotated[
        Smoothing,
        Option(help="Standard deviation of the Gaussian that smooths anomaly maps, in pixels of the input; 0: none."),
    ] = SMOOTHING
    decode: Annotated[
        Decoding,
        Option(
            help="fast decodes JPEG files of large images at a half, a quarter or an eighth of their size, at least "
            "twice that of the model's input; part of the model, since scores differ a little."
        ),
    ] = EXACT
    ignore: Annotated[
        str | None,
        Option(
            help="A picture that is white where images are not to be looked at, for all categories.",
            metavar="FILE",
            show_default="ignore.png in a category's folder, if there is one",
        ),
    ] = None
    preset: Annotated[
        Literal["patchcore-paper"] | None,  # the keys of `PRESETS`
        Option(help="Options of a published experiment: 256 pixels, the centre 224, a coreset of 10 %."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._apply_preset()
        if self.crop is not None and self.tile_size not in ("auto", "none"):
            raise UsageError("--crop and --tile-size exclude each other; leave one of them out.")
        if self.tile_levels != TILES and (self.crop is not None or self.tile_size == "none"):
            other = "--crop" if self.crop is not None else "--tile-size none"
            raise UsageError(f"--tile-levels {self.tile_levels} needs windows; leave out {other}.")
        depends = self.image_size is None and has_recipe(self.backbone or "")
        if self.crop is not None and self.crop > self.side and not depends:
            raise UsageError(f"--crop {self.crop} is larger than the image size {self.side}.")

    def _apply_preset(self) -> None:
        """Set the options of the preset; UsageError if one of them is given otherwise."""
        defaults = {field.name: field.default for field in fields(type(self))}  # type: ignore[arg-type]
        for name, value in PRESETS.get(self.preset or "", {}).items():
            if name in defaults:
                if getattr(self, name) not in (defaults[name], value):
                    option = f"--{name.replace('_', '-')}"
                    raise UsageError(f"--preset {self.preset} sets {option} {value}; leave one of the two out.")
                object.__setattr__(self, name, value)

    @property
    def side(self) -> int:
        """Side in pixels of an input that is square."""
        return IMAGE_SIZE if self.image_size is None else self.image_size

    @property
    def keeps_shape(self) -> bool:
        """Whether the model's input has the shape of the images."""
        return self.crop is None

    def size_for(self, height: float, width: float, cell: int, *, windows: bool = False) -> ImageSize:
        """The size of the model's input for images of ``height`` x ``width`` pixels: see `fitting_size`, `tiled_size`.

        ``windows`` says whether the method can look through windows.
        """
        return replace(self._input_size(height, width, cell, windows), smoothing=self.smoothing, decode=self.decode)

    def _input_size(self, height: float, width: float, cell: int, windows: bool) -> ImageSize:
        if self.crop is not None:
            return ImageSize.square(self.side, self.crop)
        seen = math.sqrt(height * width) * self.scale
        is_large = seen > max(2 * self.side, LARGE_SIDE)
        if windows and self.tile_size != "none" and (self.tile_size != "auto" or is_large):
            tile = self.side if self.tile_size == "auto" else int(self.tile_size)
            size = tiled_size(height * self.scale, width * self.scale, tile, self.tile_overlap, cell)
            if size.window is None or self.tile_levels == TILES:
                return size
            squeezed = fitting_size(self.side, width / height, cell).crop
            return replace(size, whole=(min(squeezed[0], size.height), min(squeezed[1], size.width)))
        return fitting_size(self.side, width / height, cell)


@group()
class ClusterOptions(Group):
    """Cluster"""

    address: Annotated[
        str | None, Option(help="Ray cluster to use.", show_default="the one a job runs in, else this machine")
    ] = None
    actors: Annotated[
        Positive | None,
        Option(help="Number of actors that run the backbone.", show_default="one per GPU, or per four CPU cores"),
    ] = None
    batch_size: Annotated[Positive, Option(help="Images per actor call; never changes a score.")] = 32
    memory_limit: Annotated[
        Bytes, _bytes("Memory of the driver and of each actor; larger memory banks are built piecewise.", "2GiB")
    ] = 2 << 30

    def __post_init__(self) -> None:
        super().__post_init__()
        MemoryBudget(self.memory_limit)  # raises if that is too little

    @property
    def memory_budget(self) -> MemoryBudget:
        """What ``memory_limit`` leaves for images and features."""
        return MemoryBudget(self.memory_limit)


@group()
class JobOptions(DataOptions, NetworkOptions, ClusterOptions, OutputOptions):
    """The options of every job that runs a backbone on images."""


@group()
class BitDepthOptions(DataOptions):
    """Images"""

    bit_depth: Annotated[
        Literal["auto", "8", "10", "12", "14", "16"],
        BeforeValidator(str),
        Option(help="Bits of images in 16-bit files that do not state them; auto measures up to 64 training images."),
    ] = "auto"


@group()
class SeedOptions(Group):
    """Method"""

    seed: Annotated[Natural, Option(help="Seed of everything that is random.")] = 0


@functools.cache
def _options_of(params: type) -> type:
    """A detector's parameters as options: those that recipes set are None unless they are given.

    Of parameters that inherit from those of another detector, these are only their own.
    """
    if any(inspect.get_annotations(parent) for parent in params.__mro__[1:]):
        hints, own = get_type_hints(params, include_extras=True), inspect.get_annotations(params)
        values = {field.name: field.default for field in fields(params) if field.name in own}
        annotations = {name: hints[name] for name in own}
        return group()(type(params.__name__, (), {"__annotations__": annotations, "__doc__": params.__doc__, **values}))
    defaults = {field.name: field.default for field in fields(params) if field.name in DETECTOR_OPTIONS}
    if not defaults:
        return params
    hints = get_type_hints(params, include_extras=True)
    names = [name for name in hints if name in defaults or name in inspect.get_annotations(params)]
    annotations = {
        name: _or_none(name, hints[name], defaults[name]) if name in defaults else hints[name] for name in names
    }
    namespace = {"__annotations__": annotations, "__doc__": params.__doc__, **dict.fromkeys(defaults)}
    return group()(type(params.__name__, (params,), namespace))


def _or_none(name: str, hint: Any, default: Any) -> Any:
    """The annotation of an option that is None unless it is given."""
    kind, *details = get_args(hint)
    option = next(copy.copy(detail) for detail in details if isinstance(detail, OptionInfo))
    option.show_default = _by_recipe(name, default)
    for detail in details:
        if not isinstance(detail, OptionInfo):
            kind = Annotated[kind, detail]
    return Annotated[kind | None, option]


@group()
class DetectorOptions(*map(_options_of, METHODS.params)):  # type: ignore[misc]
    """The parameters of all detectors; each reads its own."""


def recipe_defaults(method: str) -> dict[str, Any]:
    """The values, by name, of the options that recipes set, where there is no recipe: the method's own."""
    own = _defaults_of(find_method(method))
    return DEFAULTS | {name: own[name] for name in DETECTOR_OPTIONS if name in own}


@group()
class AugmentationOptions(Group):
    """Augmentation"""

    augmentations: Annotated[
        list[Literal[AUGMENTATIONS]] | None,  # type: ignore[valid-type]
        BeforeValidator(split_commas),
        Option(
            help="Also learn from variants of the good images, which differ by some of: brightness, rotation (up to 5 "
            "degrees), quarter-turns, flips; comma-separated.",
            metavar="A,B",
            show_default="none; with --shots rotated, shifted and flipped",
        ),
    ] = None
    variant_count: Annotated[
        Positive | None, Option(help="Variants per image.", metavar="N", show_default="1; 8 with --shots")
    ] = None
    flips: Annotated[
        Literal["auto", "none", "horizontal", "vertical", "both"],
        Option(help="Flips among the variants; auto uses those that change the image little."),
    ] = "auto"

    @property
    def augmentation(self) -> Augmentation:
        """How variants differ from their image."""
        return Augmentation(None if self.augmentations is None else tuple(self.augmentations), self.flips)


@group()
class VariantOptions(AugmentationOptions):
    """Few-shot"""

    shot_seed: Annotated[Natural, Option(help="Seed of which training images --shots picks.")] = 0
    augment: Annotated[
        bool,
        Option("--augment/--no-augment", help="With --shots, also learn from variants of the images."),
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentations and not self.augment:
            raise UsageError("--augmentations and --no-augment exclude each other; leave one of them out.")


@group()
class FoldOptions(Group):
    """Decisions"""

    calibration: Annotated[
        Literal["loo", "folds", "none"],
        Option(
            help="Calibrate by the good images: loo scores each without its own patches in the memory bank (other "
            "methods use folds), folds by a model that never saw it."
        ),
    ] = "loo"
    folds: Annotated[Natural, Option(help="Number of folds of the good images; 0: no calibration.")] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise UsageError("--folds 1 leaves nothing to learn from; give 2 or more, or 0 for no calibration.")

    @property
    def calibrates(self) -> bool:
        """Whether models are calibrated."""
        return self.folds > 0 and self.calibration != "none"

    def leaves_out(self, method: type[Detector]) -> bool:
        """Whether images calibrate by being left out of a bank of all of them."""
        can = issubclass(method, Shardable) and method.leaves_out_rows
        return self.calibrates and self.calibration == "loo" and can


@group()
class SuspectOptions(Group):
    """Decisions"""

    drop_suspects: Annotated[
        bool,
        Option(
            "--drop-suspects",
            help="Leave out training images that score unlike the others, and may not be good; they are named anyway.",
        ),
    ] = False


@group()
class MethodOptions(JobOptions, BitDepthOptions, BackboneOptions, DetectorOptions, SeedOptions, FoldOptions):
    """Method"""

    method: Annotated[MethodName, Option(help="The detector.")] = "patchcore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_levels == TILES:
            return
        if not find_method(self.method).has_levels:
            able = ", ".join(name for name, method in METHODS.items() if method.has_levels)
            raise UsageError(f"--tile-levels {self.tile_levels} is for {able}, not for {self.method}; leave it out.")
        if not self.calibrates:
            raise UsageError(
                f"--tile-levels {self.tile_levels} compares the levels by scores that calibrate; leave out "
                "--calibration none and --folds 0."
            )

    @property
    def rows_per_image(self) -> int:
        """Rows that a detector gets for each training image."""
        return 1


@group()
class FitOptions(MethodOptions, VariantOptions, NewRunOptions, SuspectOptions):
    """Few-shot"""

    shots: Annotated[
        Positive | None, Option(help="Learn from N training images per category, picked by --shot-seed.", metavar="N")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_suspects and not self.calibrates:
            raise UsageError("--drop-suspects needs scores that calibrate; leave out --calibration none and --folds 0.")
        if self.variant_count and self.rows_per_image == 1:
            raise UsageError("--variant-count needs --augmentations, which say how variants differ, or --shots.")

    @property
    def rows_per_image(self) -> int:
        """Rows that a detector gets for each training image: the image, then its variants."""
        if self.shots is not None:
            return 1 + (self.variant_count or N_VARIANTS) if self.augment else 1
        return 1 + (self.variant_count or 1) if self.augmentations else 1


@group()
class ModelChoice(Group):
    """Models"""

    method: Annotated[MethodName | None, Option(help="Use the models of this method; needed if there are several.")] = (
        None
    )


@group()
class RuleOptions(Group):
    """Decisions"""

    threshold_rule: Annotated[
        Rule | None,
        Option(
            help="How the threshold follows from calibration; sigma is mean + 3 standard deviations.",
            show_default="conformal; sigma for knn and vit-knn",
        ),
    ] = None


@group()
class VerdictOptions(RuleOptions):
    """Decisions"""

    uncertain_rate: Annotated[
        Share | None,
        Option(
            help="Call images uncertain that are flagged at this higher rate only, for people to look at.",
            show_default="no image is uncertain",
        ),
    ] = None
    threshold: Annotated[
        Thresholds,
        Option(
            help="A fixed threshold instead, for all categories or for some (A=0.7,B=0.9).",
            metavar="X",
            show_default="from calibration",
        ),
    ] = None

    def fixed_threshold(self, category: str) -> float | None:
        """The threshold that is given for a category; None if it follows from calibration."""
        thresholds = self.threshold or {}
        return thresholds.get(category, thresholds.get(ALL_CATEGORIES))

    @property
    def threshold_categories(self) -> list[str]:
        """The categories that a threshold is given for by name."""
        return [name for name in self.threshold or () if name != ALL_CATEGORIES]


@group()
class DecisionOptions(VerdictOptions):
    """Decisions"""

    false_alarm_rate: Annotated[Share, FALSE_ALARM_RATE] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uncertain_rate is not None and self.uncertain_rate <= self.false_alarm_rate:
            raise UsageError(
                f"--uncertain-rate {self.uncertain_rate:g} must be above --false-alarm-rate {self.false_alarm_rate:g}."
            )


@group()
class BatchOptions(VerdictOptions):
    """Decisions"""

    fdr: Annotated[
        Share | None,
        Option(help="Flag by Benjamini-Hochberg instead, with this share of false alarms among flagged images."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fdr is not None and self.fixed_threshold(ALL_CATEGORIES) is not None:
            raise UsageError("--fdr and a --threshold for all categories exclude each other; give one of them.")


@group()
class ResumeOptions(Group):
    """Images"""

    recheck: Annotated[
        Literal["content", "name"],
        Option(help="Which images with a row count as new: those whose size or time has changed too, or none."),
    ] = "content"
    settle: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option(help="Wait until files have not changed for so many seconds; leave those that do for the next run."),
    ] = 2.0


@group()
class ScoreOptions(ModelChoice, JobOptions, DecisionOptions, BatchOptions, ResumeOptions, NewRunOptions):
    """Decisions"""

    maps: Annotated[
        Literal["none", "anomalous", "all"],
        Option(help="Images that keep their patch scores in the results; anomalous includes uncertain."),
    ] = "none"
    max_regions: Annotated[
        Positive, Option(help="Keep at most N regions per image, largest peak first.", metavar="N")
    ] = 20


def _listing_of(options: DataOptions, **changed: Any) -> DataOptions:
    """The same options of listing images, but for all categories, and what is changed."""
    listed = {field.name: getattr(options, field.name) for field in fields(DataOptions)}  # type: ignore[arg-type]
    return build(DataOptions, listed | {"categories": None} | changed)


@group()
class MixedOptions(ScoreOptions):
    """Images"""

    category: Annotated[
        str | None,
        Option(
            help="Name of the only category of a plain folder, instead of its sub-folders' names; auto: each image is "
            "assigned to the category whose good images it is most like."
        ),
    ] = None
    unknown_above: Annotated[
        Share,
        Option(
            help="With --category auto, the product is unknown if more of the image than this share is unlike good "
            "images of every category."
        ),
    ] = 0.8

    @property
    def is_mixed(self) -> bool:
        """Whether each image is assigned to a category."""
        return self.category == AUTO

    @property
    def listing(self) -> DataOptions:
        """How the images are listed: those of a mixed dump as of an unknown product, until they are assigned."""
        if not self.is_mixed:
            return self
        return _listing_of(self, category=UNKNOWN_PRODUCT)

    def candidates(self, modelled: Collection[str]) -> list[str]:
        """The categories that images of a mixed dump may be assigned to, of those that have a model."""
        return sorted(modelled if self.categories is None else self.categories)


@group()
class AlarmOptions(Group):
    """Alarms"""

    notify: Annotated[
        Repeated,
        Option(
            help="Send the verdicts to this URL, as JSON by HTTP POST; may be repeated.",
            metavar="URL",
            show_default="nobody",
        ),
    ] = None
    notify_insecure: Annotated[
        bool, Option("--notify-insecure", help="Let --notify send by http:// to other machines, without encryption.")
    ] = False
    email: Annotated[
        Repeated,
        Option(
            help="Send the table to this address, through the server in MVAD_SMTP_HOST; may be repeated.",
            metavar="ADDRESS",
            show_default="nobody",
        ),
    ] = None
    prometheus: Annotated[
        str | None,
        Option(help="Write gauges to this .prom file, for the textfile collector of node_exporter.", metavar="FILE"),
    ] = None


@group()
class NightOptions(ScoreOptions):
    """Images"""

    layout: Annotated[Layout, Option(help=LAYOUT_HELP)] = "plain"  # a stray folder called test changes nothing
    expect: Annotated[
        Names,
        Option(
            help="Exit with code 4 if one of these categories has no image tonight: all, none, or names.",
            metavar="A,B",
            show_default="all that have a model",
        ),
    ] = None

    def expected_categories(self, modelled: Collection[str]) -> list[str]:
        """The categories that must have images, of those that have a model."""
        if self.expect == ["none"]:
            return []
        if self.expect not in (None, ["all"]):
            return list(self.expect)
        chosen = self.categories if self.category in (None, AUTO) else [self.category]
        return sorted(modelled if chosen is None else {*chosen} & {*modelled})


@group()
class NightlyOptions(NightOptions, MixedOptions, AlarmOptions):
    """Images"""


@group()
class WatchOptions(NightOptions):
    """Images"""

    interval: Annotated[
        float, Field(gt=0, allow_inf_nan=False), Option(help="Seconds between two looks at the folder.")
    ] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.category == AUTO:
            raise UsageError("mvad watch does not assign images to categories; use mvad nightly --category auto.")
        if self.limit is not None:
            raise UsageError("--limit picks some of all images, of which more are to come; leave it out.")
        if self.new_run:
            raise UsageError("--new-run replaces a night that is over; replace it with mvad nightly, or leave it out.")

    @property
    def listing(self) -> DataOptions:
        """How the images are listed: of all categories, since those of ``categories`` may have no image yet."""
        return _listing_of(self)


@group()
class EvaluateOptions(BatchOptions, OutputOptions):
    """Decisions"""

    false_alarm_rate: Annotated[Share | None, Option(help=FALSE_ALARM_RATE.help, show_default="as before")] = None
    models: Annotated[str | None, MODELS] = None
    cost: Annotated[
        dict[str, float] | None,
        BeforeValidator(parse_costs),
        Option(
            help="What mistakes cost: show which threshold would cost least, by what reviewers said of the images.",
            metavar="missed=100,false-alarm=1",
            show_default="no costs",
        ),
    ] = None

    @property
    def decides(self) -> bool:
        """Whether an option is given that decides on the images again."""
        return any(getattr(self, name) is not None for name in DECISION)

    def decision(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """How to decide again: as the ``earlier`` options of the run, except for what is given.

        A rate, a rule, --fdr and a threshold for all categories replace each other. Thresholds of some categories are
        added. A band of uncertain images ends where the false-alarm rate is no longer below its rate.
        """
        values = {name: earlier.get(name, getattr(DecisionOptions, name, None)) for name in DECISION}
        given = {name: getattr(self, name) for name in DECISION if getattr(self, name) is not None}
        if given.keys() & {"false_alarm_rate", "threshold_rule", "fdr"}:
            values |= {"fdr": None, "threshold": None}
        if ALL_CATEGORIES in given.get("threshold", ()):
            values |= {"fdr": None, "threshold": None}
        if "threshold" in given:
            given["threshold"] = (values["threshold"] or {}) | given["threshold"]
        values |= given
        band, rate = values["uncertain_rate"], values["false_alarm_rate"]
        if "uncertain_rate" not in given and band is not None and band <= rate:
            values["uncertain_rate"] = None
        return values


@group()
class TuningOptions(Group):
    """Tuning"""

    budget: Annotated[
        Seconds,
        Option(
            help="Time for choosing options, all categories together; what it leaves untried is said.",
            metavar="10m",
            show_default="10m",
        ),
    ] = 600.0


@group()
class RunTuningOptions(TuningOptions):
    """Tuning"""

    tune: Annotated[bool, Option("--tune", help="First choose the options of each category, as mvad tune does.")] = (
        False
    )


def _check_tunable(options: FitOptions) -> None:
    """UsageError if there is nothing to choose."""
    if options.method not in TUNABLE:
        raise UsageError(f"--method {options.method} has no options to tune; choose one of: {', '.join(TUNABLE)}.")
    if options.shots is not None:
        raise UsageError("--shots leaves too few images to choose options by; leave it out.")
    if options.tile_levels != TILES:
        raise UsageError(f"images seen through windows are not tuned; leave out --tile-levels {options.tile_levels}.")


@group()
class TuneOptions(FitOptions, TuningOptions):
    """Method"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tunable(self)


@group()
class RunOptions(FitOptions, ScoreOptions, RunTuningOptions):
    """Method"""

    method: Annotated[MethodName, Option(help="The detector.")] = "patchcore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune:
            _check_tunable(self)


@group()
class CompareOptions(
    JobOptions, BitDepthOptions, BackboneOptions, DetectorOptions, SeedOptions, VariantOptions, NewRunOptions
):
    """Method"""

    methods: Annotated[
        Names,
        Option(help="Compare these methods, comma-separated.", metavar="A,B", show_default="all; none with --variants"),
    ] = None
    variants: Annotated[
        str | None,
        Option(
            help="Compare variants of options: a TOML file with a table of options of mvad fit for each. Methods are "
            "compared too if --methods names them.",
            metavar="FILE",
        ),
    ] = None
    shots: Annotated[
        list[Positive] | None,
        BeforeValidator(split_commas),
        _commas("In addition to all training images, learn from N per category", "1,5,16"),
    ] = None
    shot_repeats: Annotated[
        Positive, Option(help="Picks per number of shots, seeded --shot-seed and up; the table has their mean.")
    ] = 3

    @property
    def method_names(self) -> list[str]:
        """The methods asked for, each once; none by themselves if there are variants."""
        if self.methods is None and self.variants is not None:
            return []
        names = list(METHODS) if self.methods in (None, ["all"]) else self.methods
        return [find_method(name).method for name in dict.fromkeys(names)]

    def common_with(self, kind: type[Group]) -> dict[str, Any]:
        """The values of the options that another kind has too, but for ``shots``, of which there are several here."""
        names = option_names(type(self)) & option_names(kind) - {"shots"}
        return {name: getattr(self, name) for name in names}

    def fit_options(
        self, method: str, shots: int | None = None, repeat: int = 0, values: Mapping[str, Any] = MappingProxyType({})
    ) -> RunOptions:
        """The options of fitting one method to all training images, or to the ``repeat``-th pick of a few.

        ``values`` are those of a variant, which replace options of the comparison.
        """
        changed = self.common_with(RunOptions) | dict(values)
        changed |= {"method": method, "shots": shots, "shot_seed": changed["shot_seed"] + repeat}
        if not changed["augment"] or (shots is None and not changed["augmentations"]):
            changed["variant_count"] = None
        # Methods are compared by rank, without thresholds; the levels of an image are by scores that calibrate.
        folds = 0 if changed["tile_levels"] == TILES else RunOptions.folds
        return RunOptions(**changed | {"folds": folds, "maps": "all"})


@group()
class FalseAlarmOptions(MethodOptions, RuleOptions):
    """Splits"""

    splits: Annotated[Positive, Option(help="Random splits of the good images.")] = 20
    fresh: Annotated[Share, Option(help="Share of the good images that are held out to count false alarms.")] = 1 / 3
    rates: Annotated[
        list[Share], BeforeValidator(split_commas), _commas("False-alarm rates to ask for", "0.01,0.05")
    ] = (0.01, 0.05)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_levels != TILES:
            raise UsageError(f"splits are scored at one level alone; leave out --tile-levels {self.tile_levels}.")


@group()
class UpdateOptions(ModelChoice, JobOptions, SeedOptions, FoldOptions, SuspectOptions, RuleOptions):
    """Update"""

    reference: Annotated[
        Natural,
        Option(help="Score up to N test images per category before and after, to show the change.", metavar="N"),
    ] = 64
    reviewed: Annotated[
        str | None,
        Option(
            help="Instead of DATA, learn the images of these nights that reviewers said to be good.", metavar="NIGHTS"
        ),
    ] = None
    reviewed_since: Annotated[
        str | None,
        Option(help="Learn what was said to be good from this date on.", metavar="DATE", show_default="all of it"),
    ] = None
    allow_missed: Annotated[
        Natural,
        Option(
            help="With --reviewed, update a model even if up to N known defects that it flags are flagged no more.",
            metavar="N",
        ),
    ] = 0
    false_alarm_rate: Annotated[Share, FALSE_ALARM_RATE] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reviewed is None and (self.reviewed_since is not None or self.allow_missed):
            option = "--allow-missed" if self.reviewed_since is None else "--reviewed-since"
            raise UsageError(f"{option} is for --reviewed NIGHTS; give that too.")
        if self.reviewed is not None and (self.category or self.limit or self.layout != "auto"):
            raise UsageError("--category, --layout and --limit are for DATA, not for --reviewed; leave them out.")


@group()
class ModelsOptions(ModelChoice, OutputOptions):
    """Models"""

    history: Annotated[bool, Option("--history", help="List the versions of each model instead.")] = False


@group()
class RollbackOptions(ModelChoice, OutputOptions):
    """Models"""

    to: Annotated[
        str | None,
        Option(
            help="The version to use, by the first characters of its id, as --history shows it.",
            metavar="ID",
            show_default="the one before",
        ),
    ] = None


@group()
class ExportOptions(ModelChoice, PixelOptions, NetworkOptions, DecisionOptions, OutputOptions):
    """Export"""

    format: Annotated[Literal["onnx"], Option(help="The format of the file.")] = "onnx"
    out: Annotated[
        str | None, Option(help="The file to write; a path or a URI.", show_default="none, for --check alone")
    ] = None
    check: Annotated[
        str | None,
        Option(
            help="Score the images below this folder by the model and by the export, and compare; a file that is there "
            "already is not written again.",
            metavar="FOLDER",
            show_default="no check",
        ),
    ] = None
    category: Annotated[str | None, Option(help="The model of this category; needed if MODEL holds several.")] = None
    int8: Annotated[
        bool,
        Option(
            "--int8",
            help="Let the backbone compute with 8-bit integers: such a file is smaller, and has scores and a threshold "
            "of its own.",
        ),
    ] = False
    data: Annotated[
        str | None,
        Option(
            help="With --int8: good images, to learn from again; laid out as for mvad fit, or a folder of them.",
            metavar="FOLDER",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None and self.check is None:
            raise UsageError("there is nothing to do; give --out FILE, --check FOLDER, or both.")
        if self.data is not None and not self.int8:
            raise UsageError("--data is for --int8, which makes a file of its own of good images; leave it out.")


@group()
class InspectOptions(JobOptions, BitDepthOptions, NewRunOptions):
    """Features"""

    backbone: Annotated[str, Option(help="The network whose features show what is unusual.")] = "efficientnet_lite0"
    image_size: Annotated[Side, Option(help="Resize images to this side, in pixels, for the backbone.")] = 224
    features: Annotated[
        bool, Option("--features/--no-features", help="Without features there is no feature map and no outliers.")
    ] = True
    ignore_masks: Annotated[
        str | None,
        Option(
            help="Write DIR/CATEGORY/ignore.png where good images vary most, to start a mask of what to ignore from.",
            metavar="DIR",
        ),
    ] = None
    embedding: Annotated[
        Literal["pca", "tsne"], Option(help="Projection of the feature map; tsne of up to 1,000 images per category.")
    ] = "pca"

    @property
    def size(self) -> ImageSize:
        """The geometry of the backbone's input."""
        return ImageSize.square(self.image_size)


@group()
class NightsOptions(Group):
    """Nights"""

    since: Annotated[str | None, Option(help="Take the nights from this date on.", metavar="DATE")] = None
    until: Annotated[str | None, Option(help="Take the nights up to this date.", metavar="DATE")] = None


@group()
class ReportOptions(NightsOptions, CategoryOptions, FileOptions, OutputOptions):
    """Report"""

    to: Annotated[str | None, Option(help="File to write; a path or a URI.", show_default="OUT/report.html")] = None
    models: Annotated[str | None, MODELS] = None
    pictures: Annotated[Natural, Option(help="Show at most N images per category.", metavar="N")] = 24


@group()
class MapOptions(CategoryOptions, FileOptions, OutputOptions):
    """Maps"""

    format: Annotated[
        Literal["overlay", "png16", "npy"],
        Option(help="overlay: the image with its map in colours; png16, npy: the map alone, for other programs."),
    ] = "overlay"
    only: Annotated[
        Literal["all", "anomalous", "mistakes"], Option(help="Which of the images that kept their map.")
    ] = "all"
    address: Annotated[str | None, Option(help="Ray cluster to use.", show_default="this machine")] = None


@group()
class RegionsOptions(CategoryOptions, FileOptions, OutputOptions):
    """Regions"""

    format: Annotated[
        Literal["csv", "coco", "yolo", "labelme", "mask-png"],
        Option(
            help="csv: a row per region; coco: a JSON file; the others: a file per image. mask-png needs kept maps."
        ),
    ] = "csv"
    only: Annotated[
        Literal["all", "anomalous", "mistakes"], Option(help="Which of the images that have regions, even if none.")
    ] = "all"


@group()
class ResultsOptions(NightsOptions, OutputOptions):
    """Rows"""

    where: Annotated[
        str | None, Option(help="Take the rows for which this SQL expression of columns is true.", metavar="SQL")
    ] = None
    order: Annotated[
        str | None,
        Option(help="Sort by these SQL expressions.", metavar="SQL", show_default="night, category, image_id"),
    ] = None
    limit: Annotated[Positive | None, Option(help="Take the first N rows.", metavar="N")] = None
    columns: Annotated[
        Names,
        Option(
            help="Write these columns, comma-separated; all: every column.",
            metavar="A,B",
            show_default="those for people",
        ),
    ] = None
    format: Annotated[
        Literal["csv", "xlsx", "parquet", "json", "jsonl", "fiftyone", "label-studio"] | None,
        Option(
            help="fiftyone, label-studio: a JSON file for these programs, with verdicts and regions.",
            show_default="as the suffix of --out, else csv",
        ),
    ] = None
    out: Annotated[
        str | None, Option(help="File to write; a path or a URI.", metavar="FILE", show_default="standard output")
    ] = None


@group()
class CompactOptions(OutputOptions):
    """Nights"""

    before: Annotated[
        str | None, Option(help="Take the nights before this date.", metavar="DATE", show_default="all nights")
    ] = None


@group()
class PlanOptions(NetworkOptions, OutputOptions):
    """Plan"""

    images: Annotated[float, Field(ge=1), Option(help="Images to score; 1e8 is understood.")] = 1e6
    gpus: Annotated[Natural, Option(help="GPUs of the cluster.")] = 0
    cores: Annotated[Positive, Option(help="CPU cores of the cluster.")] = 1
    data: Annotated[str | None, Option(help="Images to measure with.", show_default="the generated sample")] = None
    backbone: Annotated[str, Option(help="The backbone to measure with.")] = "efficientnet_lite0"
    image_size: Annotated[
        Side | None, Option(help="Side of the model's input, in pixels.", show_default=_sizes_by_backbone())
    ] = None
    coreset_ratio: Annotated[Share, Option(help="Share of the training patches kept in the memory bank.")] = 0.1
    gpu_speedup: Annotated[
        float, Field(gt=0), Option(help="Without a GPU here to measure: the cores that one is worth.")
    ] = 50.0


@group()
class DoctorOptions(OutputOptions):
    """Ray"""

    ray: Annotated[bool, Option("--ray", help="Also start Ray, or join the cluster, which takes seconds more.")] = False
    address: Annotated[str | None, Option(help="Ray cluster to look for.", show_default="as for other commands")] = None


@group()
class ServeOptions(ModelChoice, CategoryOptions, NetworkOptions, DecisionOptions, OutputOptions):
    """Server"""

    results: Annotated[
        str | None,
        Option(help="Results of nights, or of one run, for the pages Nights and Review.", show_default="no such pages"),
    ] = None
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 serves every network, without a password.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=0, le=65_535), Option(help="Port to listen on; 0: any that is free.")] = 8000
    allow_host: Annotated[
        HostNames, _commas("Other names of the demo, as in the address that a browser shows", "A,B")
    ] = None
    max_pixels: Annotated[Positive, Option(help="Refuse images with more pixels than this.")] = 100_000_000
    max_upload: Annotated[Bytes, _bytes("Maximum size of one request.", "32MB")] = 32 << 20
    max_files: Annotated[Positive, Option(help="Maximum number of images per request.")] = 16
    memory_limit: Annotated[Bytes, _bytes("Memory for models; the least recently used are dropped.", "2GiB")] = 2 << 30
    image_memory: Annotated[Bytes, _bytes("Memory for images that are decoded at once; the others wait.", "2GiB")] = (
        2 << 30
    )
    address: Annotated[str | None, Option(help="Ray cluster to use.", show_default="this machine")] = None


@group()
class PredictOptions(PixelOptions, PageOptions, NetworkOptions, DecisionOptions):
    """Decisions"""


@group()
class EstimatorOptions(FitOptions, PredictOptions):
    """Method"""


def option_names(kind: type[Group]) -> set[str]:
    """The names of a kind's options."""
    return {field.name for field in fields(kind)}  # type: ignore[arg-type]


def as_json(options: Any) -> dict[str, Any]:
    """The options as plain values for ``run.json``; URLs to notify are without what may be secret in them."""
    values = asdict(options)
    if values.get("notify"):
        values["notify"] = [storage.readable(url) for url in values["notify"]]
    return values


# Options that change no score, and those that say where to find what is compared by its content.
_VOLATILE = {"quiet", "new_run", "max_errors", "address", "actors", "batch_size", "weights", "recheck", "settle"}
_VOLATILE |= {"preset"}  # whose options are compared themselves
_VOLATILE |= {"budget"}  # choices are kept with the models
_IMAGE_CHOICE = {"category", "categories", "limit", "layout", "ignore"}  # `fitted.identify` compares masks


def run_identity(options: RunOptions | CompareOptions) -> dict[str, Any]:
    """The options that a run must have in common with an earlier one to go on with it."""
    return {name: value for name, value in as_json(options).items() if name not in _VOLATILE}


def fit_identity(options: FitOptions) -> dict[str, Any]:
    """The options that a model depends on, besides its images."""
    names = {field.name for field in fields(FitOptions)} - _VOLATILE - _IMAGE_CHOICE
    return {name: getattr(options, name) for name in sorted(names)}


def build(kind: type[Options], values: dict[str, Any]) -> Options:
    """Make options of the given kind; UsageError, in one sentence, if a value is wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise UsageError(_sentence(error)) from None


def takes(kind: type[Options]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command take its options as an object, as keywords, or as both, where keywords win.

    The command itself is written with one parameter ``options`` of the given kind.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*arguments: Any, options: Any = None, **keywords: Any) -> Any:
            values = {} if options is None else asdict(options)
            values |= {name: value for name, value in keywords.items() if name not in names}
            others = {name: value for name, value in keywords.items() if name in names}
            return command(*arguments, **others, options=build(kind, values))

        signature = inspect.signature(command, eval_str=True)
        names = [name for name in signature.parameters if name != "options"]
        parameters = [signature.parameters[name] for name in names]
        parameters.append(inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        call.__signature__ = inspect.Signature([*parameters, *keywords_of(kind)])  # type: ignore[attr-defined]
        call.options = kind  # type: ignore[attr-defined]
        return call

    return decorate


def keywords_of(kind: type) -> list[inspect.Parameter]:
    """The options of a kind as keyword parameters, those of its first group first."""
    hints, defaults = get_type_hints(kind, include_extras=True), {field.name: field.default for field in fields(kind)}
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hints[name])
        for names in panels(kind).values()
        for name in names
    ]


def panels(kind: type) -> dict[str, list[str]]:
    """The names of a kind's options by the title of their panel in ``--help``: the docstring of their group."""
    titles: dict[str, list[str]] = {}
    for part in kind.__mro__:
        title = (part.__doc__ or "").strip()
        for name in inspect.get_annotations(part):
            if not any(name in names for names in titles.values()):
                titles.setdefault(title, []).append(name)
    return dict(sorted(titles.items(), key=lambda panel: PANEL_ORDER.get(panel[0], 0)))


def _sentence(error: ValidationError) -> str:
    """What is wrong with the first wrong option."""
    first = error.errors()[0]
    kind, value = first["type"], first["input"]
    option = "--" + str(first["loc"][0]).replace("_", "-")
    if kind == "unexpected_keyword_argument":
        return f"{option} is no option of this command."
    limits = {
        "greater_than_equal": "is too small; the minimum is {ge:g}",
        "greater_than": "must be above {gt:g}",
        "less_than_equal": "is too large; the maximum is {le:g}",
        "less_than": "must be below {lt:g}",
        "literal_error": "is unknown; choose one of: {expected}",
        "value_error": "is wrong: {error}",
        "int_parsing": "is not a whole number",
        "float_parsing": "is not a number",
    }
    text = limits.get(kind, "is wrong: " + first["msg"][:1].lower() + first["msg"][1:])
    shown = repr(value) if isinstance(value, str) else value
    return f"{option} {shown} {text.format(**first.get('ctx', {}))}."
