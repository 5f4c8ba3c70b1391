"""Every option of every command: its name, default and one line of help, written once.

The command line, the ``jobs/`` entry points and the Python functions all read these classes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from typer import Option

from mvad.calibration import RULES
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.memory import MemoryBudget, parse_bytes

MAPS = ("none", "anomalous", "all")
MAP_FORMATS = ("overlay", "png16", "npy")
MAP_CHOICES = ("all", "anomalous", "mistakes")
FLIPS = ("none", "horizontal", "vertical", "both")
ENGINES = ("auto", "onnx", "torch")
LAYOUTS = ("auto", "mvtec", "visa", "plain")
EMBEDDINGS = ("pca", "tsne")
PARTS = ("jobs", "peer", "algorithms", "forward", "plan", "growth")  # of a benchmark

LAST_PORT = 65_535
VARIANTS = 8  # of an image, beside itself
PUBLISHED_RESIZE, PUBLISHED_CROP = 256, 224  # PatchCore, arXiv 2106.08265, section 4.1


Address = Annotated[
    str | None,
    Option(help="The Ray cluster to use; default: the one a job runs in, or else this machine alone."),
]
Weights = Annotated[
    str | None,
    Option(help="A copy of the backbone's weights: .safetensors, or .pth holding only tensors."),
]
Engine = Annotated[
    str,
    Option(
        help="What runs the backbone on CPUs: torch, onnx (about twice as fast; pip install 'mvad[onnx]'), or auto: "
        "onnx where it is installed. On GPUs it is torch."
    ),
]
ScoreMethod = Annotated[
    str | None, Option(help="Score with the models of this method; needed where there are several.")
]
FalseAlarmRate = Annotated[
    float, Option(help="Share of good images that may be flagged; see the README for what it promises.")
]
ThresholdRule = Annotated[
    str | None,
    Option(
        help="How the threshold follows from calibration: conformal, tolerance or sigma (mean + 3 deviations).",
        show_default="conformal; sigma for knn and vit-knn",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of every command that looks at images, wherever they come from."""

    categories: Annotated[str | None, Option(help="Only these categories, comma separated.")] = None
    max_pixels: Annotated[int, Option(help="An image that decodes to more pixels than this is an error.")] = 100_000_000
    quiet: Annotated[bool, Option("--quiet", help="Print errors and warnings only.")] = False

    def __post_init__(self) -> None:
        _at_least(self, "max_pixels", 1)

    @property
    def category_names(self) -> list[str] | None:
        """The categories asked for, or None for all."""
        if self.categories is None:
            return None
        names = [name.strip() for name in self.categories.split(",") if name.strip()]
        if not names:
            raise UsageError("--categories names no category; give some, such as --categories bottle,cable.")
        return names


@dataclass(frozen=True, kw_only=True)
class JobOptions(ImageOptions):
    """Options of every command that opens image files."""

    max_errors: Annotated[
        str,
        Option(help="Exit with code 3 if more files than this are unreadable: a count, or a share such as 5%."),
    ] = "100%"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.allowed_errors(0)

    def allowed_errors(self, n_images: int) -> int:
        """How many of ``n_images`` files may be unreadable before the exit code is 3."""
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", self.max_errors.strip())
        if not match:
            raise UsageError(f"--max-errors {self.max_errors!r} is neither a count (20) nor a share (5%).")
        count, share = match.groups()
        return int(count) if count is not None else int(float(share) / 100 * n_images)


@dataclass(frozen=True, kw_only=True)
class CommonOptions(JobOptions):
    """Options of every command that reads images of a data set."""

    weights: Weights = None
    category: Annotated[
        str | None,
        Option(help="Name of the one category of a plain folder of images, instead of its sub-folders."),
    ] = None
    layout: Annotated[str, Option(help="How DATA is laid out: auto, mvtec (BTAD too), visa or plain.")] = "auto"
    limit: Annotated[
        int | None,
        Option(help="At most this many images of a category and split, evenly spaced: for a quick try."),
    ] = None
    actors: Annotated[
        int | None, Option(help="Actors that run the backbone; default: one a GPU, or else one every four CPU cores.")
    ] = None
    batch_size: Annotated[int, Option(help="Images handed to an actor at a time; never changes a score.")] = 32
    engine: Engine = "auto"
    memory_limit: Annotated[
        str,
        Option(
            help="Memory that the driver and each actor may use; beyond it, a bank is merged from coresets of shards."
        ),
    ] = "2GiB"
    address: Address = None
    new_run: Annotated[bool, Option("--new-run", help="Replace the results or models of an earlier run.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("limit", 1), ("actors", 1), ("batch_size", 1)):
            _at_least(self, name, least)
        _one_of("engine", self.engine, ENGINES)
        _one_of("layout", self.layout, LAYOUTS)
        _ = self.budget

    @property
    def budget(self) -> MemoryBudget:
        """What ``memory_limit`` leaves for images."""
        return MemoryBudget(parse_bytes(self.memory_limit))


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions):
    """What models are made of, whatever the method; the defaults are those of the PatchCore paper."""

    backbone: Annotated[
        str | None,
        Option(
            help="A torchvision ResNet (wide_resnet50_2, ...) or Vision Transformer, efficientnet_lite0, or timm:NAME.",
            show_default="resnet50; vit_b_16 for vit-knn",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Option(help="Side in pixels of the square the model sees; default: 256, cropped to its centre 224."),
    ] = None
    crop: Annotated[
        int | None,
        Option(help="Keep only the centre of this side after resizing; default: all of --image-size."),
    ] = None
    coreset_ratio: Annotated[float, Option(help="Share of the training patches kept in the memory bank.")] = 0.1
    projection: Annotated[
        int, Option(help="Dimensions of the random projection that the coreset is chosen in; 0: none.")
    ] = 128
    reweight: Annotated[
        int, Option(help="Neighbours b in the paper's re-weighting of the image score; 0 turns it off.")
    ] = 9
    neighbours: Annotated[int, Option(help="Neighbours k of knn and vit-knn, cut to the number of good images.")] = 50
    top_features: Annotated[
        int, Option(help="Features that knn and vit-knn keep: those that vary most among good images; 0: all.")
    ] = 500
    epochs: Annotated[
        int | None, Option(help="Epochs at most of methods that train; fewer when held-out images gain no more.")
    ] = None
    learning_rate: Annotated[float | None, Option(help="Learning rate of methods that train.")] = None
    shot_seed: Annotated[int, Option(help="Seed of which training images --shots picks.")] = 0
    augment: Annotated[
        bool,
        Option("--augment/--no-augment", help="With --shots, learn from rotated, shifted and flipped copies too."),
    ] = True
    flips: Annotated[
        str,
        Option(help="Flips among those copies: none, horizontal, vertical, both, or auto (those that change little)."),
    ] = "auto"
    seed: Annotated[int, Option(help="Seed of everything else that is random.")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("flips", self.flips, ("auto", *FLIPS))
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise UsageError(f"--learning-rate {self.learning_rate} is not above 0.")
        for name, least in (
            ("epochs", 1),
            ("image_size", 32),
            ("crop", 32),
            ("projection", 0),
            ("reweight", 0),
            ("neighbours", 1),
            ("top_features", 0),
            ("shot_seed", 0),
            ("seed", 0),
        ):
            _at_least(self, name, least)
        if not 0 < self.coreset_ratio <= 1:
            raise UsageError(f"--coreset-ratio {self.coreset_ratio} is not in the range above 0 up to 1.")
        size = self.size
        if size.crop > size.resize:
            raise UsageError(f"--crop {size.crop} is larger than the image size {size.resize}.")

    @property
    def size(self) -> ImageSize:
        if self.image_size is None:
            return ImageSize(resize=PUBLISHED_RESIZE, crop=self.crop or PUBLISHED_CROP)
        return ImageSize(resize=self.image_size, crop=self.crop or self.image_size)


@dataclass(frozen=True, kw_only=True)
class FitOptions(ModelOptions):
    """Options of fitting."""

    method: Annotated[
        str,
        Option(help="The detector: patchcore, knn, vit-knn, autoencoder, feature-autoencoder, vae or vae-fewshot."),
    ] = "patchcore"
    shots: Annotated[
        int | None, Option(help="Learn from so many training images of each category, picked by --shot-seed.")
    ] = None

    folds: Annotated[
        int,
        Option(
            help="Calibrate on good images by so many folds, each scored by a model that never saw it; 0: no threshold."
        ),
    ] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "shots", 1)
        _at_least(self, "folds", 0)
        if self.folds == 1:
            raise UsageError("--folds 1 leaves nothing to learn from; give 2 or more, or 0 for no calibration.")

    @property
    def copies(self) -> int:
        """Images that a detector gets for each training image: itself, and its variants right behind it."""
        return 1 + VARIANTS if self.shots is not None and self.augment else 1


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(CommonOptions):
    """Options of scoring; what the model was fitted with is read from the model."""

    method: ScoreMethod = None
    maps: Annotated[
        str, Option(help="Which images keep their grid of patch scores in the results: none, anomalous or all.")
    ] = "none"
    false_alarm_rate: FalseAlarmRate = 0.01
    threshold_rule: ThresholdRule = None
    fdr: Annotated[
        float | None,
        Option(help="Flag by Benjamini-Hochberg instead: the share of false alarms among a category's flagged images."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("maps", self.maps, MAPS)
        if self.threshold_rule is not None:
            _one_of("threshold-rule", self.threshold_rule, RULES)
        for name in ("false_alarm_rate", "fdr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} is not between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(JobOptions):
    """Options of the report."""

    to: Annotated[
        str | None,
        Option(help="File to write; a path or a URI.", show_default="OUT/report.html"),
    ] = None
    models: Annotated[
        str | None,
        Option(help="Folder of the models, for their calibration scores.", show_default="where they were used from"),
    ] = None
    pictures: Annotated[int, Option(help="Images shown of a category, at most; 0: none.")] = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "pictures", 0)


@dataclass(frozen=True, kw_only=True)
class MapOptions(JobOptions):
    """Options of making pictures of anomaly maps."""

    format: Annotated[
        str,
        Option(help="overlay: the image with its map in colours; png16 or npy: the map alone, for other programs."),
    ] = "overlay"
    only: Annotated[
        str, Option(help="Of the images that kept their map: all, anomalous (flagged), or mistakes (where labelled).")
    ] = "all"
    address: Address = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("format", self.format, MAP_FORMATS)
        _one_of("only", self.only, MAP_CHOICES)


@dataclass(frozen=True, kw_only=True)
class FalseAlarmOptions(FitOptions):
    """Options of measuring achieved false-alarm rates."""

    splits: Annotated[int, Option(help="Random splits.")] = 20
    fresh: Annotated[float, Option(help="Share of the good images that are not fitted to, but counted.")] = 1 / 3
    rates: Annotated[str, Option(help="The false-alarm rates asked for, comma separated.")] = "0.01,0.05"
    threshold_rule: Annotated[
        str | None, Option(help="The rule: conformal, tolerance or sigma.", show_default="that of the method")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "splits", 1)
        if self.threshold_rule is not None:
            _one_of("threshold-rule", self.threshold_rule, RULES)
        if not 0 < self.fresh < 1 or not all(0 < rate < 1 for rate in self.rates_asked):
            raise UsageError("--fresh and --rates are shares between 0 and 1.")

    @property
    def rates_asked(self) -> list[float]:
        """The numbers of ``rates``."""
        try:
            return [float(word) for word in self.rates.split(",")]
        except ValueError:
            raise UsageError(f"--rates {self.rates!r} is not a list of shares such as 0.01,0.05.") from None


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(CommonOptions):
    """Options of adding images to models."""

    method: Annotated[str | None, Option(help="Update the models of this method; needed where there are several.")] = (
        None
    )
    folds: Annotated[int, Option(help="Calibrate on the new images by so many folds; 0: leave the calibration.")] = 5
    reference: Annotated[
        int, Option(help="At most so many test images of a category are scored before and after, to show the change.")
    ] = 64
    seed: Annotated[int, Option(help="Seed of the folds.")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "folds", 0)
        _at_least(self, "reference", 0)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """Options of looking at images before any model."""

    backbone: Annotated[str, Option(help="The network whose features show what is unusual, as for mvad fit.")] = (
        "efficientnet_lite0"
    )
    image_size: Annotated[int, Option(help="Side in pixels of the square that the backbone sees.")] = 224
    features: Annotated[
        bool,
        Option(
            "--features/--no-features", help="Without: no backbone, no map, and nothing that looks unlike the rest."
        ),
    ] = True
    embedding: Annotated[
        str, Option(help="How the map of the features is drawn: pca, or tsne (of at most 1,000 images a category).")
    ] = "pca"

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "image_size", 32)
        _one_of("embedding", self.embedding, EMBEDDINGS)

    @property
    def size(self) -> ImageSize:
        return ImageSize(resize=self.image_size, crop=self.image_size)


@dataclass(frozen=True, kw_only=True)
class RunOptions(FitOptions, ScoreOptions):
    """Options of the main job: those of fitting and of scoring."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    """Options of comparing methods."""

    methods: Annotated[str, Option(help="The methods, comma separated, or all.")] = "all"
    shots: Annotated[
        str | None,
        Option(help="Besides all training images, learn from so few: numbers, comma separated, such as 1,5,16."),
    ] = None
    shot_repeats: Annotated[
        int, Option(help="Picks for each number of shots, seeded --shot-seed and the next; the table has their mean.")
    ] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "shot_repeats", 1)
        if any(shots < 1 for shots in self.shot_counts):
            raise UsageError(f"--shots {self.shots!r} asks for less than one image.")

    @property
    def shot_counts(self) -> list[int]:
        """The numbers of ``shots``, in rising order."""
        try:
            return sorted({int(word) for word in (self.shots or "").split(",") if word.strip()})
        except ValueError:
            raise UsageError(f"--shots {self.shots!r} is not a list of numbers such as 1,5,16.") from None

    def of_fit(self, method: str, shots: int | None = None, repeat: int = 0) -> FitOptions:
        """The options of fitting one method to all training images, or to the ``repeat``-th pick of a few."""
        common = {field.name: getattr(self, field.name) for field in fields(ModelOptions)}
        return FitOptions(**{**common, "shot_seed": self.shot_seed + repeat}, method=method, shots=shots, folds=0)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(JobOptions):
    """Options of measuring speed and memory."""

    backbones: Annotated[
        str, Option(help="Backbones, comma separated; all but the embedded one with random weights.")
    ] = "efficientnet_lite0"
    engine: Engine = "auto"
    image_size: Annotated[int, Option(help="Side in pixels of the square the model sees.")] = 224
    coreset_ratio: Annotated[float, Option(help="Share of the training patches kept in the memory bank.")] = 0.1
    images: Annotated[int, Option(help="Images that are scored: the test images, over and over.")] = 2000
    repeats: Annotated[int, Option(help="Measurements of scoring, after a warm-up.")] = 3
    fit_repeats: Annotated[int, Option(help="Measurements of fitting, after a warm-up.")] = 3
    parts: Annotated[
        str,
        Option(
            help="What is measured, comma separated: jobs (fit and score beside the floor), peer (anomalib, installed "
            "on first use), algorithms, forward (ways of running the network), plan (needs jobs), growth."
        ),
    ] = "jobs,peer,algorithms,forward,plan"
    peer_fit: Annotated[
        bool, Option("--peer-fit/--no-peer-fit", help="Measure anomalib's fit too, which may take long.")
    ] = True
    peer_folder: Annotated[str, Option(help="Where anomalib's environment is kept.")] = "~/.cache/mvad/anomalib"
    growth: Annotated[str, Option(help="Numbers of images, comma separated, of the table of seconds and memory.")] = (
        "1000,2000,4000,8000,16000"
    )
    memory_limit: Annotated[str, Option(help="Memory limit of that table's runs.")] = "2GiB"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "images", "repeats", "fit_repeats"):
            _at_least(self, name, 1)
        _one_of("engine", self.engine, ENGINES)
        for part in self.part_names:
            _one_of("parts", part, PARTS)
        _ = self.growth_sizes

    @property
    def part_names(self) -> list[str]:
        return [name.strip() for name in self.parts.split(",") if name.strip()]

    @property
    def backbone_names(self) -> list[str]:
        return [name.strip() for name in self.backbones.split(",") if name.strip()]

    @property
    def growth_sizes(self) -> list[int]:
        try:
            return [int(word) for word in self.growth.split(",") if word.strip()]
        except ValueError:
            raise UsageError(f"--growth {self.growth!r} is not a list of numbers such as 1000,2000.") from None


@dataclass(frozen=True, kw_only=True)
class PlanOptions(JobOptions):
    """Options of saying what a cluster would do."""

    images: Annotated[float, Option(help="Images to score; 1e8 is understood.")] = 1e6
    gpus: Annotated[int, Option(help="GPUs of the cluster.")] = 0
    cores: Annotated[int, Option(help="CPU cores of the cluster.")] = 1
    data: Annotated[str | None, Option(help="Images to measure with; default: the generated sample.")] = None
    backbone: Annotated[str, Option(help="The backbone to measure with.")] = "efficientnet_lite0"
    weights: Annotated[str | None, Option(help="A copy of its weights.")] = None
    engine: Engine = "auto"
    image_size: Annotated[int, Option(help="Side in pixels of the square the model sees.")] = 224
    coreset_ratio: Annotated[float, Option(help="Share of the training patches kept in the memory bank.")] = 0.1
    gpu_speedup: Annotated[
        float, Option(help="Where no GPU is here to measure: how many cores one is taken to be worth.")
    ] = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("images", 1), ("gpus", 0), ("cores", 1), ("image_size", 32)):
            _at_least(self, name, least)
        _one_of("engine", self.engine, ENGINES)
        if self.gpu_speedup <= 0:
            raise UsageError(f"--gpu-speedup {self.gpu_speedup} is not above 0.")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ImageOptions):
    """Options of the demo page."""

    method: ScoreMethod = None
    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0: every network of this machine, and without a password.")
    ] = "127.0.0.1"
    port: Annotated[int, Option(help="Port to listen on; 0: any that is free.")] = 8000
    weights: Weights = None
    engine: Engine = "auto"
    false_alarm_rate: FalseAlarmRate = 0.01
    threshold_rule: ThresholdRule = None
    max_upload: Annotated[str, Option(help="The most that one request may upload.")] = "32MB"
    max_files: Annotated[int, Option(help="Images that one request may upload; the page sends them one by one.")] = 16
    memory_limit: Annotated[
        str, Option(help="Memory for models; those used longest ago make budget, and are read anew when needed.")
    ] = "2GiB"
    address: Address = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_files", 1), ("port", 0)):
            _at_least(self, name, least)
        if self.port > LAST_PORT:
            raise UsageError(f"--port {self.port} is no port; the greatest is {LAST_PORT}.")
        _one_of("engine", self.engine, ENGINES)
        _ = self.judging
        for name in ("max_upload", "memory_limit"):
            if not parse_bytes(getattr(self, name)):
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} leaves room for nothing.")

    @property
    def judging(self) -> ScoreOptions:
        """The options of scoring that decide what is anomalous."""
        return ScoreOptions(false_alarm_rate=self.false_alarm_rate, threshold_rule=self.threshold_rule)


def as_json(options: JobOptions) -> dict[str, Any]:
    """The options as plain values for ``run.json``."""
    return asdict(options)


def _at_least(options: object, name: str, least: int) -> None:
    value = getattr(options, name)
    if value is not None and value < least:
        raise UsageError(f"--{name.replace('_', '-')} {value} is too small; the least is {least}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"--{name} {value!r} is unknown; choose one of: {', '.join(allowed)}.")
