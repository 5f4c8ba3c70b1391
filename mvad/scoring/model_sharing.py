"""Models on their way to scoring actors: one shared copy a node, or, of more than memory holds, read when needed."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

import ray
from numpy.typing import NDArray

from mvad import storage
from mvad.model_store import ModelInfo, map_arrays, read_arrays

STORE_SHARE = 0.4  # of a node's object store; images on their way need the rest
SMALL = 4 << 20  # bytes of a model; such ones are read side by side, others one by one, for want of memory


class Broadcast:
    """The arrays of models, for actors on all nodes; keep it until the last of them has ended.

    Those that fit into `STORE_SHARE` of the smallest object store are put there, once: all actors of a node look at one
    read-only copy. The others, of hundreds of categories or of one huge bank, stay in files, which actors look at as
    they need them, so that memory grows neither with the number of models nor with their size.

    Raises
    ------
    UsageError
        The arrays of a model that is put into the store are damaged.
    """

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        left = STORE_SHARE * min(_stores(), default=0.0)
        shared = []
        for model in sorted(models, key=lambda model: (model.record["bytes"], model.model_id)):
            left -= model.record["bytes"]
            if left < 0:
                break
            shared.append(model)
        small = bisect.bisect_right(shared, SMALL, key=lambda model: model.record["bytes"])
        put = storage.parallel_map(_put, shared[:small]) + [_put(model) for model in shared[small:]]
        self._references = {model.model_id: reference for model, reference in zip(shared, put, strict=True)}

    @property
    def shared(self) -> frozenset[str]:
        """The ids of the models that are in the object store."""
        return frozenset(self._references)

    def arrays(self, model: ModelInfo) -> dict[str, NDArray[Any]]:
        """The arrays of a model's detector, read-only; UsageError if they are read here and damaged."""
        reference = self._references.get(model.model_id)
        return map_arrays(model) if reference is None else ray.get(reference)


def _put(model: ModelInfo) -> ray.ObjectRef:
    return ray.put(read_arrays(model))


def _stores() -> list[float]:
    """Bytes of the object store of each node that works."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [own["object_store_memory"] for own in nodes if "object_store_memory" in own]
