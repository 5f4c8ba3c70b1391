"""The options of a benchmark."""

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Argument, Option

from mvad.errors import UsageError

PARTS = ("jobs", "peer", "algorithms", "forward", "plan", "start", "growth", "windows", "gpu")
GPU_STAGES = ("agreement", "jobs", "network", "decoding", "search", "coreset", "windows", "compiled")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is measured, and how often."""

    data: Annotated[
        str | None,
        Argument(metavar="[DATA]", help="A folder in the MVTec layout.", show_default="the generated sample"),
    ] = None
    out: Annotated[str, Option(help="JSON file for all numbers.")] = "benchmark.json"
    categories: Annotated[str | None, Option(help="The category to measure.", show_default="the first in DATA")] = None
    backbones: Annotated[
        str, Option(help="Backbones, comma separated; all but efficientnet_lite0 get random weights.")
    ] = "efficientnet_lite0"
    engine: Annotated[Literal["auto", "onnx", "torch"], Option(help="What runs the backbone, as for mvad fit.")] = (
        "auto"
    )
    image_size: Annotated[int, Option(min=32, help="Side in pixels of the square that the backbone sees.")] = 224
    coreset_ratio: Annotated[float, Option(help="Share of the training patches that the memory bank keeps.")] = 0.1
    images: Annotated[int, Option(min=1, help="Number of images to score; test images are repeated to reach it.")] = (
        2000
    )
    repeats: Annotated[int, Option(min=1, help="Measurements of scoring, after a warm-up.")] = 3
    fit_repeats: Annotated[int, Option(min=1, help="Measurements of fitting, after a warm-up.")] = 3
    parts: Annotated[
        str,
        Option(
            help="What to measure, comma separated: jobs (fitting and scoring, next to the floor), peer (anomalib, "
            "installed on first use), algorithms, forward (ways of running the network), plan (needs jobs), start (of "
            "a command), growth, windows (of images of 12 megapixels), gpu (what a GPU does, in eight minutes at most)."
        ),
    ] = "jobs,peer,algorithms,forward,plan"
    peer_fit: Annotated[bool, Option(help="Measure fitting with anomalib too, which may take long.")] = True
    peer_folder: Annotated[str, Option(help="Folder of anomalib's environment.")] = "~/.cache/mvad/anomalib"
    growth: Annotated[str, Option(help="Numbers of images of the part growth, comma separated.")] = (
        "1000,2000,4000,8000,16000"
    )
    gpu: Annotated[str, Option(help="Stages of the part gpu, comma separated.")] = ",".join(GPU_STAGES)
    memory_limit: Annotated[str, Option(help="Memory limit of the parts growth and gpu.")] = "2GiB"
    quiet: Annotated[bool, Option("--quiet", help="Print no tables.")] = False

    def __post_init__(self) -> None:
        unknown = [part for part in self.part_names if part not in PARTS]
        if unknown:
            raise UsageError(f"--parts {unknown[0]!r} is unknown; choose from: {', '.join(PARTS)}.")
        unknown = [stage for stage in self.gpu_stages if stage not in GPU_STAGES]
        if unknown:
            raise UsageError(f"--gpu {unknown[0]!r} is unknown; choose from: {', '.join(GPU_STAGES)}.")
        if not all(word.isdecimal() for word in _words(self.growth)):
            raise UsageError(f"--growth {self.growth!r} is not a list of numbers such as 1000,2000.")

    @property
    def part_names(self) -> list[str]:
        return _words(self.parts)

    @property
    def backbone_names(self) -> list[str]:
        return _words(self.backbones)

    @property
    def gpu_stages(self) -> list[str]:
        return _words(self.gpu)

    @property
    def growth_sizes(self) -> list[int]:
        return [int(word) for word in _words(self.growth)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
