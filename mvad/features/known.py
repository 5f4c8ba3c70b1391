"""What is known of backbones from earlier commands.

It takes seconds to import the libraries that networks are built with, which those who drive a job do not need
otherwise. Networks of timm by other names than `backbone_spec.PACKAGED` are looked up each time: anybody may register
some.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from mvad.features.backbone_spec import NEIGHBOURHOOD, BackboneSpec
from mvad.features.cache import BACKBONE, cached


def describe(
    name: str, layers: Iterable[int] | None = None, neighbourhood: int = NEIGHBOURHOOD, norm: bool = False
) -> BackboneSpec:
    """See `backbones.describe`."""
    return _describe(name, None if layers is None else tuple(layers), neighbourhood, norm)


@functools.cache
def _describe(name: str, layers: tuple[int, ...] | None, neighbourhood: int, norm: bool) -> BackboneSpec:
    def look_up() -> dict[str, Any]:
        from mvad.features import backbones

        return asdict(backbones.describe(name, layers, neighbourhood, norm=norm))

    return TypeAdapter(BackboneSpec).validate_python(_known(["describe", name, layers, neighbourhood, norm], look_up))


@functools.cache
def network_shapes(kinds: tuple[str, ...], spec: BackboneSpec, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """See `backbones.network_shapes`."""

    def look_up() -> dict[str, tuple[int, ...]]:
        from mvad.features import backbones

        return backbones.network_shapes(kinds, spec, height, width)

    shapes = _known(["shapes", spec.name, asdict(spec), kinds, height, width], look_up)
    return {kind: tuple(shape) for kind, shape in shapes.items()}


@functools.cache
def layer_channels(spec: BackboneSpec) -> tuple[int, ...]:
    """See `backbones.layer_channels`."""

    def look_up() -> tuple[int, ...]:
        from mvad.features import backbones

        return backbones.layer_channels(spec)

    return tuple(_known(["channels", spec.name, asdict(spec)], look_up))


def _known(name: Sequence[Any], look_up: Callable[[], Any]) -> Any:
    """A JSON value from the cache, or else from ``look_up``; the second part of its name is that of the backbone."""
    if name[1].startswith("timm:"):
        return look_up()
    return json.loads(cached(name, BACKBONE, lambda: json.dumps(look_up()).encode()))
