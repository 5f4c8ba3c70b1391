"""What fitting leaves of a detector, and the checks of such a state that comes from files."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

VALUES_PER_CHUNK = 1 << 20  # that are checked at a time: a bank may take most of the memory


class State(NamedTuple):
    """The result of fitting, which is all that a model on disk holds of a detector."""

    settings: dict[str, Any]  # JSON values
    arrays: dict[str, NDArray[Any]]  # what was learnt
    seconds: float = 0.0  # how long fitting took
    loo_scores: NDArray[np.float32] | None = None  # (n,): see `base.LeaveOneOut`
    chosen: NDArray[np.int64] | None = None  # see `base.Detector`; no part of what scoring needs


class ArraySpec(NamedTuple):
    """The type of an array, and its shape: None is a length of at least one that the settings do not determine."""

    dtype: str
    shape: tuple[int | None, ...]

    def check(self, name: str, array: NDArray[Any]) -> None:
        """Check an array in row-major order of that type, shape and finite values; else ValueError."""
        if array.dtype != np.dtype(self.dtype):
            raise ValueError(f"{name} holds {array.dtype} values, not {self.dtype}")
        fits = len(self.shape) == array.ndim and all(
            length == wanted if wanted is not None else length > 0
            for length, wanted in zip(array.shape, self.shape, strict=True)
        )
        if not fits:
            wanted_shape = " x ".join("any" if length is None else str(length) for length in self.shape)
            raise ValueError(f"{name} has the shape {_shape(array)}, not {wanted_shape or 'of one number'}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not stored row by row")
        check_finite(name, array)


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "of one number"


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError if an array holds NaN or infinity."""
    values = array.reshape(-1)
    for start in range(0, len(values), VALUES_PER_CHUNK):
        if not np.isfinite(values[start : start + VALUES_PER_CHUNK]).all():
            raise ValueError(f"{name} holds NaN or infinity")


def check_arrays(arrays: Mapping[str, NDArray[Any]], specs: Mapping[str, ArraySpec]) -> None:
    """Raise ValueError if these are not the arrays that the specs describe, no more and no fewer."""
    _check_names("array", arrays, specs)
    for name, spec in specs.items():
        spec.check(name, arrays[name])


def check_settings(settings: Mapping[str, Any], expected: Mapping[str, Any], params: type) -> None:
    """Raise ValueError if settings from JSON have other names or types than those ``expected`` of an unfitted detector.

    ``params``, a pydantic dataclass, knows more of its own fields. Numbers among the rest are finite and not negative.
    """
    _check_names("setting", settings, expected)
    names = {field.name for field in fields(params)}
    try:
        text = json.dumps({name: value for name, value in settings.items() if name in names})
        TypeAdapter(params).validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise ValueError(f"the setting {name} is {reprlib.repr(settings[name])}: {problem['msg']}") from None
    for name, example in expected.items():
        if name not in names and not _is_alike(settings[name], example):
            raise ValueError(f"the setting {name} is {reprlib.repr(settings[name])}, and not like {example!r}")


def _is_alike(value: Any, example: Any) -> bool:
    if isinstance(value, bool) or not isinstance(example, int | float):
        return type(value) is type(example)
    kinds = int if isinstance(example, int) else int | float
    return isinstance(value, kinds) and value >= 0 and math.isfinite(value)


def _check_names(kind: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        raise ValueError(f"it lacks the {kind} {min(missing)}")
    if unknown:
        raise ValueError(f"it has a {kind} {reprlib.repr(min(unknown))} that its method does not know")
