"""Fitted models on disk: ``<models>/<method>/<category>/`` with arrays and ``model.json``; nothing is pickled."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from mvad import storage
from mvad.backbones import BackboneSpec
from mvad.detectors import METHODS, Detector, State
from mvad.errors import UsageError
from mvad.options import ImageSize

FORMAT = 1


@dataclass(frozen=True)
class ModelInfo:
    """What ``model.json`` says.

    Attributes
    ----------
    model_id
        SHA-256 of everything below it but ``record``: equal only for models that score alike.
    settings
        The detector's parameters.
    backbone, weights_sha256
        The network, and `backbones.fingerprint` of its weights.
    size
        Image geometry in pixels.
    files
        SHA-256 of each file of arrays.
    record
        How it came to be: counts, unreadable training files, versions, seconds; and the bytes of its arrays.
    """

    model_id: str
    method: str
    category: str
    settings: dict[str, Any]
    backbone: BackboneSpec
    weights_sha256: str
    size: ImageSize
    files: dict[str, str]
    record: dict[str, Any]
    uri: str

    @property
    def threshold(self) -> float | None:
        """The score above which an image is an anomaly, if the method sets one."""
        return self.settings.get("threshold")


def save_model(
    folder: str,
    category: str,
    method: type[Detector],
    state: State,
    backbone: BackboneSpec,
    weights_sha256: str,
    size: ImageSize,
    record: dict[str, Any],
) -> ModelInfo:
    """Write a model below the URI ``folder``; ``model.json`` last, so that a folder with one is complete."""
    place = storage.join(folder, method.method, storage.folder_name(category))
    storage.remove(storage.join(place, "model.json"))
    files, size_bytes = {}, 0
    for file, data in _files(method, state.arrays):
        storage.write(storage.join(place, file), data)
        files[file] = hashlib.sha256(data).hexdigest()
        size_bytes += len(data)
    content = {
        "format": FORMAT,
        "method": method.method,
        "category": category,
        "settings": state.settings,
        "backbone": asdict(backbone),
        "weights_sha256": weights_sha256,
        "size": asdict(size),
        "files": files,
    }
    model_id = _content_id(content)
    text = json.dumps({"model_id": model_id, **content, "record": {**record, "bytes": size_bytes}}, indent=2)
    storage.write(storage.join(place, "model.json"), text.encode())
    return read_model(place)


def _files(method: type[Detector], arrays: dict[str, NDArray[Any]]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a model's files: a network in one ``.safetensors``, other arrays as ``.npy`` each."""
    if method.trained:
        yield "network.safetensors", safetensors.numpy.save(arrays)
        return
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        yield f"{name}.npy", buffer.getvalue()


def _content_id(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(place: str) -> ModelInfo:
    """Read ``model.json`` in the folder ``place`` (a URI), and check it against its own id.

    Raises
    ------
    UsageError
        It is damaged, or of a format this version does not know.
    """
    where = storage.display(place)
    try:
        content = json.loads(storage.read(storage.join(place, "model.json")))
        model_id, record = content.pop("model_id"), content.pop("record")
        if content["format"] != FORMAT:
            raise UsageError(
                f"the model in {where} has format {content['format']}, this mvad reads {FORMAT}; fit it again."
            )
        if _content_id(content) != model_id or content["method"] not in METHODS:
            raise ValueError("its content does not match its id")
        backbone: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["backbone"].items()
        }
        return ModelInfo(
            model_id=model_id,
            method=content["method"],
            category=content["category"],
            settings=content["settings"],
            backbone=BackboneSpec(**backbone),
            weights_sha256=content["weights_sha256"],
            size=ImageSize(**content["size"]),
            files=content["files"],
            record=record,
            uri=place,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the model in {where} is damaged ({error}); fit it again.") from error


def read_arrays(model: ModelInfo) -> dict[str, NDArray[Any]]:
    """The arrays of a model, each checked against its hash; UsageError if one is damaged."""
    arrays: dict[str, NDArray[Any]] = {}
    for file, sha256 in model.files.items():
        place = storage.join(model.uri, file)
        try:
            data = storage.read(place)
        except OSError as error:
            raise UsageError(f"{storage.display(place)} cannot be read ({error}); fit the model again.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UsageError(f"{storage.display(place)} is damaged: its hash is not the model's; fit the model again.")
        if file.endswith(".npy"):
            arrays[file.removesuffix(".npy")] = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            arrays |= safetensors.numpy.load(data)
    return arrays


def find_models(folder: str, method: str | None = None) -> dict[str, ModelInfo]:
    """The models below the URI ``folder``, by category.

    Raises
    ------
    UsageError
        There are none, or several methods and none was named.
    """
    methods = [name for name in storage.list_folder(folder) if name in METHODS]
    if method is not None:
        methods = [name for name in methods if name == method]
    where = storage.display(folder)
    if len(methods) > 1:
        raise UsageError(f"{where} holds models of several methods; choose one with --method: {', '.join(methods)}.")
    places = [
        storage.join(folder, name, child)
        for name in methods
        for child in storage.list_folder(storage.join(folder, name))
    ]
    models = [read_model(place) for place in places if storage.exists(storage.join(place, "model.json"))]
    if not models:
        raise UsageError(f"no models in {where}; make some with: mvad fit DATA --models {where}")
    return {model.category: model for model in models}
