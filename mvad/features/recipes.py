"""Recipes for backbones: values of options that are not given.

For Vision Transformers of the DINOv2 and DINOv3 families, with registers or not, that of AnomalyDINO (Damm et al.,
arXiv 2405.14529): tokens of the last block after the final norm, compared by cosine distance to the nearest one, not
averaged over neighbours; the score of an image is the mean of its 1 % most abnormal patches.

EfficientNet-Lite is small, and a larger input costs little: the side at which accuracy gains most for the time
(`docs/methods.md`).
"""

from typing import Any, NamedTuple

from mvad.features.backbone_spec import NEIGHBOURHOOD, PACKAGED, BackboneSpec

IMAGE_SIZE = 256  # pixels
DEFAULTS: dict[str, Any] = {"image_size": IMAGE_SIZE, "layers": None, "neighbourhood": NEIGHBOURHOOD, "norm": False}
ANOMALY_DINO: dict[str, Any] = {
    "image_size": 448,
    "neighbourhood": 1,
    "norm": True,
    "distance": "cosine",
    "aggregate": "top-1%",
    "reweight": 0,
}
EFFICIENTNET_LITE: dict[str, Any] = {"image_size": 320}
FAMILIES = ("dinov2", "dinov3")  # in the names of their transformers
DETECTOR_OPTIONS = ("distance", "aggregate", "reweight")  # parameters of a detector that recipes set


class Recipe(NamedTuple):
    """Values of options, by name, and what a command calls them."""

    values: dict[str, Any]
    title: str  # empty: nothing is said, since it is only another default


def has_recipe(name: str) -> bool:
    """Whether a backbone may have a recipe, by its name alone."""
    return name in PACKAGED or any(family in name for family in FAMILIES)


def recipe(spec: BackboneSpec) -> Recipe | None:
    """The values of options that are advised for a backbone; None if no recipe is known.

    For transformers, the side of images is the nearest multiple of the patches' side.
    """
    if spec.name in PACKAGED:
        return Recipe(EFFICIENTNET_LITE, title="")
    if spec.patch == 1 or not has_recipe(spec.name):
        return None
    side = round(ANOMALY_DINO["image_size"] / spec.patch) * spec.patch
    last_block = int(spec.stages[-1]) + 1  # stages of timm's transformers are indices of blocks
    return Recipe({**ANOMALY_DINO, "image_size": side, "layers": [last_block]}, "the recipe of AnomalyDINO")
