"""Share models with scoring actors: one copy per node, or, if memory cannot hold them, files read when needed."""

import bisect
from collections.abc import Iterable
from typing import Any

import ray
from numpy.typing import NDArray

from mvad import storage
from mvad.errors import ModelError
from mvad.model_store import ModelInfo, map_arrays, read_arrays, recorded_shape

STORE_FRACTION = 0.4  # of a node's object store, for models; images need the rest
SMALL_MODEL_BYTES = 4 << 20  # smaller models are read in parallel, larger ones one at a time, to save memory


class Broadcast:
    """The arrays of models, for actors on all nodes; keep it until the last actor has ended.

    Models that fit into `STORE_FRACTION` of the smallest object store are put there once: all actors of a node share
    one read-only copy. The others, of hundreds of categories or with one huge bank, stay in files that actors map into
    memory as they need them, so that memory grows neither with the number of models nor with their size.

    Attributes
    ----------
    errors
        What is wrong with models that were to be put into the store, by id. The others are checked where they are read.
    """

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        self._keys = storage.Keys()  # for actors that map files of object storage
        models = list(models)
        # Actors do without the libraries that know shapes.
        self._shapes = {model.model_id: recorded_shape(model) for model in models}
        free_bytes = STORE_FRACTION * min(_stores(), default=0.0)
        shared = []
        for model in sorted(models, key=lambda model: (model.record["bytes"], model.model_id)):
            free_bytes -= model.record["bytes"]
            if free_bytes < 0:
                break
            shared.append(model)
        small = bisect.bisect_right(shared, SMALL_MODEL_BYTES, key=lambda model: model.record["bytes"])
        put = storage.parallel_map(self._put, shared[:small]) + [self._put(model) for model in shared[small:]]
        self._references: dict[str, ray.ObjectRef] = {}
        self.errors: dict[str, ModelError] = {}
        for model, outcome in zip(shared, put, strict=True):
            if isinstance(outcome, ModelError):
                self.errors[model.model_id] = outcome
            else:
                self._references[model.model_id] = outcome

    def arrays(self, model: ModelInfo) -> dict[str, NDArray[Any]]:
        """The arrays of a model's detector, read-only; ModelError if they are damaged."""
        reference = self._references.get(model.model_id)
        return map_arrays(model, self._shapes[model.model_id]) if reference is None else ray.get(reference)

    def _put(self, model: ModelInfo) -> ray.ObjectRef | ModelError:
        try:
            return ray.put(read_arrays(model, self._shapes[model.model_id]))
        except ModelError as error:
            return error


def _stores() -> list[float]:
    """Size in bytes of the object store of each live node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [resources["object_store_memory"] for resources in nodes if "object_store_memory" in resources]
