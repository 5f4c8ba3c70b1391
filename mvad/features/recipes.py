"""The recipes of papers for backbones: values of options that are not given.

For Vision Transformers of the DINOv2 and DINOv3 families, with registers or not, that of AnomalyDINO (Damm et al.,
arXiv 2405.14529): tokens of the last block after the final norm, compared by cosine distance to the nearest one, not
averaged over neighbours; the score of an image is the mean of its 1 % most abnormal patches.
"""

from typing import Any

from mvad.features.backbone_spec import NEIGHBOURHOOD, BackboneSpec

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
FAMILIES = ("dinov2", "dinov3")  # in the names of their transformers
DETECTOR_OPTIONS = ("distance", "aggregate", "reweight")  # parameters of a detector that recipes set


def has_recipe(name: str) -> bool:
    """Whether a backbone may have a recipe, by its name alone."""
    return any(family in name for family in FAMILIES)


def recipe(spec: BackboneSpec) -> dict[str, Any]:
    """The values of options that its paper advises for a backbone; {} if no recipe is known.

    The side of images is the nearest multiple of the patches' side.
    """
    if spec.patch == 1 or not has_recipe(spec.name):
        return {}
    side = round(ANOMALY_DINO["image_size"] / spec.patch) * spec.patch
    last_block = int(spec.stages[-1]) + 1  # stages of timm's transformers are indices of blocks
    return {**ANOMALY_DINO, "image_size": side, "layers": [last_block]}
