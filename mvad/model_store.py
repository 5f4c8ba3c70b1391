"""Fitted models on disk: arrays and ``model.json`` in ``<models>/<method>/<category>/``; nothing is pickled.

A model that takes the place of another has its arrays in ``versions/<id>/`` below that folder. It is written whole
before ``model.json`` names it, which is one atomic write: whoever reads meanwhile gets the model before, and a writer
that is killed has changed nothing.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import BIT_DEPTHS, FULL_DEPTH
from mvad.detectors import METHODS, Detector, State, TrainedDetector
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.memory import MemoryBudget

if TYPE_CHECKING:
    from mvad.features.weights import Network

FORMAT = 2
VERSIONS = "versions"  # folder of a model's versions
CALIBRATION = "calibration"  # name of the array of calibration scores
VERSION_LENGTH = 12  # characters of a model's id that name its folder
HASH_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class ModelInfo:
    """What ``model.json`` says."""

    model_id: str  # SHA-256 of all that follows except ``record``: equal only for models that give equal scores
    method: str
    category: str
    settings: dict[str, Any]  # the detector's parameters
    backbone: BackboneSpec
    weights_sha256: str  # `weights.fingerprint` of the backbone's weights
    size: ImageSize
    files: dict[str, str]  # SHA-256 of each array file
    # How it was made: counts, unreadable training files, versions, seconds; and the size of its arrays in bytes.
    record: dict[str, Any]
    uri: str

    @property
    def bit_depth(self) -> int:
        """Bits of images whose files do not state them; models that do not record it were fitted to all 16."""
        return int(self.record.get("bit_depth", FULL_DEPTH))

    @property
    def calibrated(self) -> bool:
        """Whether there are calibration scores."""
        return f"{CALIBRATION}.npy" in self.files


@dataclass(frozen=True)
class FittedModel:
    """A model on its way to disk: what `ModelInfo` says, with the state and the calibration scores themselves."""

    category: str
    method: type[Detector]
    state: State
    backbone: BackboneSpec
    weights_sha256: str
    size: ImageSize
    record: dict[str, Any]
    calibration: NDArray[np.float32] | None = None


def save_model(folder: str, model: FittedModel, *, keep_earlier: bool = False) -> ModelInfo:
    """Write a model below the URI ``folder``, if need be in the place of another; that is removed unless it is kept."""
    uri = storage.join(folder, model.method.method, storage.folder_name(model.category))
    files, size_bytes = {}, 0
    for file, parts in _files(model):
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            size_bytes += len(part)
        files[file] = digest.hexdigest()
    content = {
        "format": FORMAT,
        "method": model.method.method,
        "category": model.category,
        "settings": model.state.settings,
        "backbone": asdict(model.backbone),
        "weights_sha256": model.weights_sha256,
        "size": asdict(model.size),
        "files": files,
    }
    document: dict[str, Any] = {
        "model_id": _content_id(content),
        **content,
        "record": {**model.record, "bytes": size_bytes},
    }
    replaces = storage.exists(storage.join(uri, "model.json"))
    version = document["model_id"][:VERSION_LENGTH] if replaces else None
    target = uri if version is None else storage.join(uri, VERSIONS, version)
    for file, parts in _files(model):
        storage.write(storage.join(target, file), *parts)
    if version is not None:
        _write_model(target, document)
        if keep_earlier:
            _keep_in_versions(uri)
    _write_model(uri, document | ({} if version is None else {"version": version}))
    _remove_needless(uri, {"model.json", VERSIONS, *([] if version else files)})
    if version is not None and not keep_earlier:
        _remove_needless(storage.join(uri, VERSIONS), {version})
    return read_model(uri)


def _write_model(uri: str, document: dict[str, Any]) -> None:
    storage.write(storage.join(uri, "model.json"), json.dumps(document, indent=2).encode())


def _keep_in_versions(uri: str) -> None:
    """Copy a model whose arrays lie next to its ``model.json`` to a version of its own."""
    with suppress(UsageError):  # a damaged model is nothing to keep
        model = read_model(uri)
        if model.uri == uri:
            for file in (*model.files, "model.json"):
                target = storage.join(uri, VERSIONS, model.model_id[:VERSION_LENGTH], file)
                storage.write(target, storage.read(storage.join(uri, file)))


def _remove_needless(uri: str, needed: Collection[str]) -> None:
    """Remove what lies in a folder besides what is needed."""
    storage.remove_unfinished(uri)
    for name in storage.list_folder(uri):
        if name not in needed and not storage.is_unfinished(name):
            storage.remove(storage.join(uri, name))


def _files(model: FittedModel) -> Iterator[tuple[str, list[bytes | memoryview]]]:
    """Names and contents of a model's files: a network in one ``.safetensors``, other arrays as one ``.npy`` each."""
    trained = issubclass(model.method, TrainedDetector)
    plain = {} if trained else dict(model.state.arrays)
    if trained:
        yield "network.safetensors", [safetensors.numpy.save(model.state.arrays)]
    if model.calibration is not None:
        plain[CALIBRATION] = model.calibration
    for name, array in plain.items():
        # What np.save writes, but without a copy of the array, which may take much of the memory.
        array, header = np.ascontiguousarray(array), io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        yield f"{name}.npy", [header.getvalue(), array.reshape(-1).view(np.uint8).data]


def _content_id(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(uri: str) -> ModelInfo:
    """Read ``model.json`` in ``uri`` (a URI) and check its id; UsageError if it is damaged or of an unknown format."""
    readable = storage.readable(uri)
    try:
        content = json.loads(storage.read(storage.join(uri, "model.json")))
        model_id, record, version = content.pop("model_id"), content.pop("record"), content.pop("version", None)
        if content["format"] != FORMAT:
            raise UsageError(
                f"the model in {readable} has format {content['format']}, this mvad reads {FORMAT}; fit it again."
            )
        if record.get("bit_depth", FULL_DEPTH) not in BIT_DEPTHS:
            raise ValueError(f"its bit depth is {record['bit_depth']}")
        if _content_id(content) != model_id or content["method"] not in METHODS:
            raise ValueError("its content does not match its id")
        backbone: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["backbone"].items()
        }
        network, size = BackboneSpec(**backbone), ImageSize(**content["size"])
        if version is not None:
            uri = storage.join(uri, VERSIONS, storage.folder_name(version))
        plain = {name: content[name] for name in ("method", "category", "settings", "weights_sha256", "files")}
        return ModelInfo(model_id=model_id, backbone=network, size=size, record=record, uri=uri, **plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the model in {readable} is damaged ({error}); fit it again.") from error


def read_arrays(model: ModelInfo) -> dict[str, NDArray[Any]]:
    """The arrays of a model's detector, each checked against its hash; UsageError if one is damaged."""
    return _arrays(model, _read_array)


def map_arrays(model: ModelInfo) -> dict[str, NDArray[Any]]:
    """Like `read_arrays`, but ``.npy`` files are memory-mapped, however large they are.

    Files in object storage are copied to this machine first; the copy is removed when nothing maps it any more.
    """
    return _arrays(model, _map_array)


def _arrays(model: ModelInfo, read: Callable[[ModelInfo, str], NDArray[Any]]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for file in model.files:
        if file.endswith(".safetensors"):
            arrays |= safetensors.numpy.load(_read_checked(model, file))
        elif file != f"{CALIBRATION}.npy":
            arrays[file.removesuffix(".npy")] = read(model, file)
    return arrays


def _map_array(model: ModelInfo, file: str) -> NDArray[Any]:
    uri = storage.join(model.uri, file)
    try:
        with storage.local_copy(uri) as path:
            with open(path, "rb") as stream:
                digest = hashlib.sha256()
                while part := stream.read(HASH_CHUNK_BYTES):
                    digest.update(part)
            _check(model, file, digest.hexdigest())
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{storage.readable(uri)} cannot be read ({error}); fit the model again.") from error


def read_calibration(model: ModelInfo) -> NDArray[np.float32] | None:
    """Calibration scores, (n,), of a model that has them; UsageError if they are damaged."""
    scores = _read_array(model, f"{CALIBRATION}.npy") if model.calibrated else np.empty(0, np.float32)
    return scores if len(scores) else None


def _read_array(model: ModelInfo, file: str) -> NDArray[Any]:
    return np.load(io.BytesIO(_read_checked(model, file)), allow_pickle=False)


def _read_checked(model: ModelInfo, file: str) -> bytes:
    uri = storage.join(model.uri, file)
    try:
        data = storage.read(uri)
    except OSError as error:
        raise UsageError(f"{storage.readable(uri)} cannot be read ({error}); fit the model again.") from error
    _check(model, file, hashlib.sha256(data).hexdigest())
    return data


def _check(model: ModelInfo, file: str, digest: str) -> None:
    if digest != model.files[file]:
        uri = storage.readable(storage.join(model.uri, file))
        raise UsageError(f"{uri} is damaged: its hash is not the model's; fit the model again.")


def list_models(folder: str) -> list[dict[str, Any]]:
    """One row per model below the URI ``folder``, with ``damage`` if it cannot be read; UsageError if there is none."""
    rows = []
    for method in (name for name in storage.list_folder(folder) if name in METHODS):
        for child in storage.list_folder(storage.join(folder, method)):
            row: dict[str, Any] = {"method": method, "category": child}
            try:
                model = read_model(storage.join(folder, method, child))
                calibration = read_calibration(model)
                read_arrays(model)
            except UsageError as error:
                rows.append({**row, "damage": str(error)})
                continue
            row |= {"category": model.category, "backbone": model.backbone.name, "model_id": model.model_id}
            row |= {"n_train": model.record["n_train"], "bytes": model.record["bytes"], "crop": model.size.crop}
            row |= {"n_calibration": 0 if calibration is None else len(calibration), "damage": None}
            rows.append({**row, "updates": len(model.record.get("updated_from", []))})
    if not rows:
        raise UsageError(f"no models in {storage.readable(folder)}; make some with: mvad fit DATA --models DIR")
    return rows


def ensure_outside_models(out: str, folder: str) -> None:
    """Make sure that the models' folder (a URI) does not lie in the folder of results ``out``; else UsageError."""
    if storage.lies_in(folder, out):
        raise UsageError(f"the models lie inside {storage.readable(out)}; give --out another folder.")


def stored_model(folder: str, method: str, category: str) -> ModelInfo | None:
    """The model of a method and category below the URI ``folder``; None if there is none, or it is damaged."""
    uri = storage.join(folder, method, storage.folder_name(category))
    if not storage.exists(storage.join(uri, "model.json")):
        return None
    try:
        model = read_model(uri)
        map_arrays(model)  # checks their hashes
        read_calibration(model)
    except UsageError:
        return None
    return model


def models_for(categories: Sequence[str], models: Mapping[str, ModelInfo], folder: str) -> dict[str, ModelInfo]:
    """Those of the models in ``folder`` (a URI) that are of one of the categories; UsageError if none is."""
    category_models = {name: models[name] for name in categories if name in models}
    if not category_models:
        names, known = ", ".join(categories[:5]), ", ".join(sorted(models))
        raise UsageError(f"{storage.readable(folder)} has no model for {names}; it has models for: {known}.")
    return category_models


def load_networks(
    models: Iterable[ModelInfo], weights: str | None, budget: MemoryBudget | None = None
) -> dict[BackboneSpec, Network]:
    """The networks that models need, by backbone.

    UsageError if the weights cannot be had, are not those a model was fitted with, or leave nothing of the budget.
    """
    from mvad.features.weights import Network

    models = list(models)
    networks = {spec: Network.load(spec, weights) for spec in dict.fromkeys(model.backbone for model in models)}
    for model in models:
        if model.weights_sha256 != networks[model.backbone].sha256:
            raise UsageError(
                f"the model of {model.category!r} was fitted with other weights of {model.backbone.name} than those at "
                "hand; give the same ones with --weights, or fit it again."
            )
    for network in networks.values():
        if budget is not None:
            budget.after_weights(network.nbytes)
    return networks


def find_models(folder: str, method: str | None = None) -> dict[str, ModelInfo]:
    """The models below the URI ``folder``, by category.

    UsageError if there are none, or models of several methods and ``method`` is None.
    """
    methods = [name for name in storage.list_folder(folder) if name in METHODS and method in (None, name)]
    readable = storage.readable(folder)
    if len(methods) > 1:
        raise UsageError(f"{readable} holds models of several methods; choose one with --method: {', '.join(methods)}.")
    folders = [storage.join(folder, name) for name in methods]
    uris = [storage.join(parent, child) for parent in folders for child in storage.list_folder(parent)]
    complete = storage.parallel_map(lambda uri: storage.exists(storage.join(uri, "model.json")), uris)
    models = storage.parallel_map(read_model, itertools.compress(uris, complete))
    if not models:
        raise UsageError(f"no models in {readable}; make some with: mvad fit DATA --models {readable}")
    return {model.category: model for model in models}
