"""What is tried: changes of options, as data. Names that `FitOptions` does not have are passed over."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from mvad.detectors import find_method
from mvad.errors import UsageError
from mvad.options import FitOptions, as_json, build

Changes = Mapping[str, Any]  # values of options, by name

# By method: steps, of which each tries its changes of what the steps before have chosen.
CANDIDATES: dict[str, Sequence[Sequence[Changes]]] = {
    "patchcore": (
        ({"image_size": 256}, {"image_size": 320}, {"image_size": 384}),
        (
            {"layers": "8,16"},
            {"layers": "8"},
            {"layers": "16"},
            {"layers": "8,16,32", "banks": "layers"},
            {"layers": "4,8,16,32", "banks": "layers"},
        ),
        ({"neighbourhood": 1}, {"neighbourhood": 3}),
        ({"aggregate": "max"}, {"aggregate": "top-1%"}),
        ({"distance": "euclidean"}, {"distance": "cosine"}),
        ({"position_weight": 1.0}, {"position_weight": 3.0}),
        ({"augmentations": "brightness"}, {"augmentations": "rotation"}),
        ({"coreset_ratio": 0.01}, {"coreset_ratio": 0.02}, {"coreset_ratio": 0.1}),
    ),
}


class Cost(NamedTuple):
    """What an image costs to score; less is cheaper."""

    pixels: int  # that go through the network
    bank: int  # vectors to compare patches with, of a model of all images


def alternatives(step: Sequence[Changes], options: FitOptions) -> Iterator[tuple[Changes, FitOptions]]:
    """The changes of a step that make a difference to some options, and the options with them.

    With ``--crop``, which is a part of ``--image-size``, the size stays.
    """
    names = {field.name for field in fields(options)}
    for changes in step:
        if not names.issuperset(changes) or (options.crop is not None and "image_size" in changes):
            continue
        try:
            changed = with_changes(options, changes)
        except UsageError:  # a value that this version, or this backbone, does not know
            continue
        if changed != with_changes(options, {}):
            yield changes, changed


def with_changes(options: FitOptions, changes: Changes) -> FitOptions:
    """Options with some values changed; what a preset has set stays, without its name. UsageError as by `build`."""
    return build(type(options), as_json(options) | {"preset": None} | dict(changes))


def extraction_key(options: FitOptions) -> Hashable:
    """Equal for options with the same features: all options but the parameters of the detector."""
    own = {field.name for field in fields(find_method(options.method).Params)}
    return tuple(repr(value) for name, value in sorted(as_json(options).items()) if name not in own)
