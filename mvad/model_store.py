"""Fitted models on disk: arrays and ``model.json`` in ``<models>/<method>/<category>/``; nothing is pickled.

A model that takes the place of another has its arrays in ``versions/<id>/`` below that folder. It is written whole
before ``model.json`` names it, which is one atomic write: whoever reads meanwhile gets the model before, and a writer
that is killed has changed nothing.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import json
import reprlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from mvad import storage
from mvad.data.image_size import TILES, WHOLE_AND_TILES, ImageSize
from mvad.data.images import BIT_DEPTHS, FULL_DEPTH, ignored_share
from mvad.detectors import METHODS, Detector, State, TrainedDetector, find_method
from mvad.detectors.state import ArraySpec
from mvad.errors import ImageError, ModelError, UsageError, failure_reason, one_line
from mvad.features.backbone_spec import BackboneSpec
from mvad.memory import MemoryBudget
from mvad.model_checks import MAX_DOCUMENT_BYTES, check_document, parse_array
from mvad.origins import bank_origins
from mvad.origins.bank_origins import Origins

if TYPE_CHECKING:
    from mvad.features.weights import Network

FORMAT = 2
VERSIONS = "versions"  # folder of a model's versions
CALIBRATION = "calibration"  # name of the array of calibration scores
MAP_PEAKS = "map_peaks"  # of the largest values of the maps of the same images
PATCH_SAMPLE = "patch_sample"  # of the scores of some patches of the same images
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
    def has_origins(self) -> bool:
        """Whether it says which images its vectors come from: see `read_origins`."""
        return self.record.get("origins", {}).keys() >= {*bank_origins.FILES}

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
    map_peaks: NDArray[np.float32] | None = None
    patch_sample: NDArray[np.float32] | None = None
    origins: Origins | None = None


def save_model(folder: str, model: FittedModel, *, keep_earlier: bool = False) -> ModelInfo:
    """Write a model below the URI ``folder``, if need be in the place of another; that is removed unless it is kept."""
    uri = storage.join(folder, model.method.method, storage.folder_name(model.category))
    document, contents = _pack(model)
    document["record"]["saved_at"] = _now()
    replaces = storage.exists(storage.join(uri, "model.json"))
    version = document["model_id"][:VERSION_LENGTH] if replaces else None
    target = uri if version is None else storage.join(uri, VERSIONS, version)
    for file, parts in contents:
        storage.write(storage.join(target, file), *parts)
    if version is not None:
        _write_model(target, document)
        if keep_earlier:
            _keep_in_versions(uri)
    _write_model(uri, document | ({} if version is None else {"version": version}))
    _remove_needless(uri, {"model.json", VERSIONS, *([] if version else (file for file, _ in contents))})
    if version is not None and not keep_earlier:
        _remove_needless(storage.join(uri, VERSIONS), {version})
    return read_model(uri)


def _pack(model: FittedModel) -> tuple[dict[str, Any], list[tuple[str, list[bytes | memoryview]]]]:
    """What ``model.json`` says of a model, and its other files."""
    contents = list(_files(model))  # views of the arrays; a network is packed once
    files, size_bytes = {}, 0
    for file, parts in contents:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            size_bytes += len(part)
        files[file] = digest.hexdigest()
    beside = {} if model.origins is None else bank_origins.to_files(model.origins)
    content = {
        "format": FORMAT,
        "method": model.method.method,
        "category": model.category,
        "settings": model.state.settings,
        "backbone": asdict(model.backbone),
        "weights_sha256": model.weights_sha256,
        "size": _size_content(model.size),
        "files": files,
    }
    record = {**model.record, "bytes": size_bytes, "origins": _stored(beside)}
    contents += [(file, [data]) for file, data in beside.items()]
    return {"model_id": _content_id(content), **content, "record": record}, contents


def _size_content(size: ImageSize) -> dict[str, Any]:
    """The values of a size; models that see no image as a whole have the ids that they had before there were such."""
    return {name: value for name, value in asdict(size).items() if name != "whole" or value is not None}


def model_id(model: FittedModel) -> str:
    """The id that a model has once it is saved."""
    return _pack(model)[0]["model_id"]


def read_fitted(model: ModelInfo) -> FittedModel:
    """All of a stored model, its arrays included, read-only; ModelError if they are damaged."""
    state = State(model.settings, read_arrays(model, recorded_shape(model)))
    scores = read_calibration(model), read_map_peaks(model), read_patch_sample(model)
    method = find_method(model.method)
    origins = None
    with suppress(ModelError):  # without which it scores the same
        origins = read_origins(model)
    return FittedModel(
        model.category, method, state, model.backbone, model.weights_sha256, model.size, model.record, *scores, origins
    )


def _stored(contents: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What the record says of files that are no part of the id."""
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def kept_versions(folder: str, method: str, category: str) -> list[ModelInfo]:
    """The versions that are kept of a model below the URI ``folder``, in the order of their folders' names.

    A version that is damaged, or not whole yet, is left out; its arrays may be damaged: see `ensure_whole`.
    """
    versions = storage.join(folder, method, storage.folder_name(category), VERSIONS)
    found = []
    for name in storage.list_folder(versions) if storage.exists(versions) else ():
        with suppress(UsageError):
            found.append(read_model(storage.join(versions, name)))
    return [model for model in found if (model.method, model.category) == (method, category)]


def use_version(folder: str, version: ModelInfo) -> ModelInfo:
    """Put a kept version in use, by one write of ``model.json``; the model before is among the versions after that.

    ModelError if the version's arrays are damaged; then nothing has changed.
    """
    ensure_whole(version)
    uri = storage.join(folder, version.method, storage.folder_name(version.category))
    document = json.loads(storage.read_bytes(storage.join(version.uri, "model.json"), MAX_DOCUMENT_BYTES))
    _keep_in_versions(uri)
    _write_model(uri, document | {"version": storage.name_of(version.uri)})
    return read_model(uri)


def _write_model(uri: str, document: dict[str, Any]) -> None:
    content = json.dumps(document, indent=2).encode()
    if len(content) > MAX_DOCUMENT_BYTES:
        reason = (
            f"its record takes more than {MAX_DOCUMENT_BYTES:,} bytes, and the model before stays; fit it again to all"
        )
        raise ModelError(_title(uri, document["category"]), reason)
    storage.write(storage.join(uri, "model.json"), content)


def _keep_in_versions(uri: str) -> None:
    """Copy a model whose arrays lie next to its ``model.json`` to a version of its own."""
    with suppress(UsageError):  # a damaged model is nothing to keep
        model = read_model(uri)
        if model.uri == uri:
            beside = [file for file in bank_origins.FILES if storage.exists(storage.join(uri, file))]
            for file in (*model.files, *beside, "model.json"):
                target = storage.join(uri, VERSIONS, model.model_id[:VERSION_LENGTH], file)
                storage.write(target, storage.read(storage.join(uri, file)))


def _remove_needless(uri: str, needed: Collection[str]) -> None:
    """Remove what lies in a folder besides what is needed."""
    storage.remove_unfinished(uri)
    for name in storage.list_folder(uri):
        if name not in needed:
            storage.remove(storage.join(uri, name))


def _files(model: FittedModel) -> Iterator[tuple[str, list[bytes | memoryview]]]:
    """Names and contents of a model's files: a network in one ``.safetensors``, other arrays as one ``.npy`` each."""
    trained = issubclass(model.method, TrainedDetector)
    plain = {} if trained else dict(model.state.arrays)
    if trained:
        yield "network.safetensors", [safetensors.numpy.save(model.state.arrays)]
    if model.calibration is not None:
        plain[CALIBRATION] = model.calibration
    if model.map_peaks is not None:
        plain[MAP_PEAKS] = model.map_peaks
    if model.patch_sample is not None:
        plain[PATCH_SAMPLE] = model.patch_sample
    for name, array in plain.items():
        # What np.save writes, but without a copy of the array, which may take much of the memory.
        array, header = np.ascontiguousarray(array), io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        yield f"{name}.npy", [header.getvalue(), array.reshape(-1).view(np.uint8).data]


def _content_id(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(uri: str) -> ModelInfo:
    """Read ``model.json`` in the folder ``uri`` (a URI); ModelError if it is damaged, or of another mvad's format."""
    try:
        content = json.loads(storage.read_bytes(storage.join(uri, "model.json"), MAX_DOCUMENT_BYTES))
        if content["format"] != FORMAT:
            raise ModelError(
                _title(uri), f"it has format {reprlib.repr(content['format'])}, this mvad reads {FORMAT}; fit it again"
            )
        bit_depth = content["record"].get("bit_depth", FULL_DEPTH)
        if bit_depth not in BIT_DEPTHS:
            raise ValueError(f"its bit depth is {bit_depth}")
        signed = {name: value for name, value in content.items() if name not in ("model_id", "record", "version")}
        if _content_id(signed) != content["model_id"]:
            raise ValueError("its content does not match its id")
        document, version = check_document(content), content.get("version")
        place = uri if version is None else storage.join(uri, VERSIONS, storage.folder_name(version))
    except ImageError as error:
        raise ModelError(_title(uri), f"model.json cannot be read: {error}; fit it again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise ModelError(_title(uri), f"model.json is damaged: {reason}; fit it again") from error
    return ModelInfo(
        model_id=content["model_id"],
        method=document.method,
        category=document.category,
        settings=document.settings,
        backbone=document.backbone,
        weights_sha256=document.weights_sha256,
        size=document.size,
        files=document.files,
        record=content["record"],
        uri=place,
    )


def _title(uri: str, category: str | None = None) -> str:
    """How errors name a model."""
    named = "" if category is None else f" of {category!r}"
    return f"the model{named} in {storage.readable(uri)}"


def read_arrays(model: ModelInfo, shape: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a model's detector, read-only; ModelError if they are damaged, or not what its method needs.

    ``shape`` is that of one image's features by the model's backbone, if it is known.
    """
    return _arrays(model, shape, _read_array)


def map_arrays(model: ModelInfo, shape: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
    """Like `read_arrays`, but ``.npy`` files are memory-mapped, however large they are.

    Files in object storage are copied to this machine first; the copy is removed when nothing maps it any more.
    """
    return _arrays(model, shape, _map_array)


def _arrays(
    model: ModelInfo, shape: Sequence[int] | None, read: Callable[[ModelInfo, str], NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for file in model.files:
        with _naming(model, file):
            if file.endswith(".safetensors"):
                arrays |= safetensors.numpy.load(_read_checked(model, file))
            elif file.removesuffix(".npy") not in (CALIBRATION, MAP_PEAKS, PATCH_SAMPLE):
                arrays[file.removesuffix(".npy")] = read(model, file)
    with _naming(model):
        find_method(model.method).check_state(State(model.settings, arrays), shape)
    return arrays


def read_calibration(model: ModelInfo) -> NDArray[np.float32] | None:
    """Calibration scores, (n,), of a model that has them; ModelError if they are damaged."""
    return _read_scores(model, CALIBRATION)


def read_map_peaks(model: ModelInfo) -> NDArray[np.float32] | None:
    """The largest value of the map of each image that calibrates, (n,), if the model has them; else as above."""
    return _read_scores(model, MAP_PEAKS)


def read_patch_sample(model: ModelInfo) -> NDArray[np.float32] | None:
    """Scores of patches of each image that calibrates, (n, patches), at `sampled_patches`, if the model has them."""
    return _read_scores(model, PATCH_SAMPLE, (None, None))


def read_origins(model: ModelInfo) -> Origins | None:
    """Where the vectors of a model's banks come from; None if it does not say, ModelError if that is damaged."""
    if not model.has_origins:
        return None
    contents = {}
    for file in bank_origins.FILES:
        with _naming(model, file):
            stored = model.record["origins"][file]
            data = storage.read_bytes(storage.join(model.uri, file), min(stored["bytes"], bank_origins.MAX_BYTES))
            if hashlib.sha256(data).hexdigest() != stored["sha256"]:
                raise ValueError("its hash is not that in the record")
            contents[file] = data
    with _naming(model):
        return bank_origins.from_files(contents)


def _read_scores(model: ModelInfo, name: str, shape: tuple[None, ...] = (None,)) -> NDArray[np.float32] | None:
    if f"{name}.npy" not in model.files:
        return None
    with _naming(model, f"{name}.npy"):
        scores = _read_array(model, f"{name}.npy")
        if not scores.size:
            return None
        ArraySpec("float32", shape).check("it", scores)
        return scores


@contextmanager
def _naming(model: ModelInfo, file: str | None = None) -> Iterator[None]:
    """Turn whatever is wrong with a model, or one of its files, into a ModelError that names it."""
    try:
        yield
    except MemoryError:  # says nothing about the model
        raise
    except Exception as error:  # files that are not what they should be raise errors of many types
        reason = one_line(error) if isinstance(error, ValueError) else failure_reason(error)
        if file is not None:
            reason = f"{file} {'cannot be read' if isinstance(error, ImageError | OSError) else 'is damaged'}: {reason}"
        raise ModelError(_title(model.uri, model.category), f"{reason}; fit it again") from error


def _read_array(model: ModelInfo, file: str) -> NDArray[Any]:
    return parse_array(np.frombuffer(_read_checked(model, file), np.uint8))


def _map_array(model: ModelInfo, file: str) -> NDArray[Any]:
    with storage.local_copy(storage.join(model.uri, file)) as path:
        digest = hashlib.sha256()
        with storage.open_regular(path) as stream:
            while part := stream.read(HASH_CHUNK_BYTES):
                digest.update(part)
        _check_hash(model, file, digest.hexdigest())
        return parse_array(np.memmap(path, np.uint8, "r"))


def _read_checked(model: ModelInfo, file: str) -> bytes:
    data = storage.read_bytes(storage.join(model.uri, file), limit=model.record["bytes"])
    _check_hash(model, file, hashlib.sha256(data).hexdigest())
    return data


def _check_hash(model: ModelInfo, file: str, digest: str) -> None:
    if digest != model.files[file]:
        raise ValueError("its hash is not the model's")


class _Found(NamedTuple):
    """What a folder below that of a method holds: a model, or what is wrong with it."""

    uri: str  # of the folder
    method: str
    name: str  # of the folder
    model: ModelInfo | None
    error: ModelError | None = None


def _find(folder: str, methods: Iterable[str]) -> list[_Found]:
    """Read ``model.json`` in all folders of methods below the URI ``folder``; two models of a category are an error."""
    places = [(method, name) for method in methods for name in _list_folder(storage.join(folder, method))]

    def read(place: tuple[str, str]) -> _Found:
        uri = storage.join(folder, *place)
        try:
            return _Found(uri, *place, read_model(uri))
        except ModelError as error:
            return _Found(uri, *place, None, error)

    found = storage.parallel_map(read, places)
    copies: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in found:
        if one.model is not None:
            copies[one.method, one.model.category].append(storage.readable(one.uri))
    for number, one in enumerate(found):
        names = [] if one.model is None else copies[one.method, one.model.category]
        if one.model is not None and len(names) > 1:
            reason = f"there are {len(names)} of them, {', '.join(names[:-1])} and {names[-1]}; move all but one away"
            found[number] = one._replace(error=ModelError(f"the model of category {one.model.category!r}", reason))
    return found


def _list_folder(uri: str) -> list[str]:
    try:
        return storage.list_folder(uri)
    except OSError as error:
        raise UsageError(f"{storage.readable(uri)} cannot be listed ({one_line(error)}); check its name.") from error


def _methods(folder: str) -> list[str]:
    return [name for name in _list_folder(folder) if name in METHODS]


def _misplaced(found: _Found) -> str | None:
    """What to say of a model in a folder that is not named after its category, such as a copy without its original."""
    model = found.model
    if model is None or found.name in (storage.folder_name(model.category), storage.safe_name(model.category)):
        return None
    return f"the model of {model.category!r} lies in {storage.readable(found.uri)}; it is used: there is no other"


def list_models(folder: str) -> list[dict[str, Any]]:
    """One row per model below the URI ``folder``; UsageError if there is none.

    A model that cannot be used has ``damage``, which says why. All that scoring checks is checked, except that the
    backbone has the model's weights and gives features of the recorded shape: that would need PyTorch.
    """
    rows = []
    for found in _find(folder, _methods(folder)):
        row: dict[str, Any] = {"method": found.method, "category": found.name, "note": _misplaced(found)}
        try:
            if found.model is None or found.error is not None:
                raise found.error or ValueError
            model = found.model
            row["category"] = model.category
            calibration = read_calibration(model)
            read_map_peaks(model)
            read_patch_sample(model)
            map_arrays(model, recorded_shape(model))
        except ModelError as error:
            rows.append({**row, "damage": str(error)})
            continue
        row |= {"backbone": model.backbone.name, "model_id": model.model_id}
        row |= {"n_train": model.record["n_train"], "bytes": model.record["bytes"], "input": str(model.size)}
        row |= {"windows": len(model.size.windows), "ignored": ignored_share(model.size)}
        row |= {"tile_levels": TILES if model.size.whole is None else WHOLE_AND_TILES}
        row |= {"n_calibration": 0 if calibration is None else len(calibration), "damage": None}
        row |= {"updates": len(model.record.get("updated_from", []))}
        row |= {"suspects": model.record.get("suspects", [])}
        rows.append(row)
    if not rows:
        raise UsageError(f"no models in {storage.readable(folder)}; make some with: mvad fit DATA --models DIR")
    return rows


def ensure_outside_models(out: str, folder: str) -> None:
    """Make sure that the models' folder (a URI) does not lie in the folder of results ``out``; else UsageError."""
    if storage.lies_in(folder, out):
        raise UsageError(f"the models lie inside {storage.readable(out)}; give --out another folder.")


def stored_model(folder: str, method: str, category: str) -> ModelInfo | None:
    """The model of a method and category below the URI ``folder``, or None; ModelError if ``model.json`` is damaged.

    Its arrays may be damaged: see `ensure_whole`.
    """
    uri = storage.join(folder, method, storage.folder_name(category))
    return read_model(uri) if storage.exists(storage.join(uri, "model.json")) else None


def ensure_whole(model: ModelInfo) -> None:
    """Make sure that a model's arrays are those that it was saved with; all of them are read. Else ModelError."""
    map_arrays(model)  # checks their hashes
    read_calibration(model)
    read_map_peaks(model)
    read_patch_sample(model)


@dataclass(frozen=True)
class ModelSet(Mapping[str, ModelInfo]):
    """Models of a folder (a URI) that can be used, by category, and what is wrong with others."""

    folder: str
    models: Mapping[str, ModelInfo]
    errors: Mapping[str, ModelError]  # by category; from `find_models` by the name of the folder
    notes: Mapping[str, str]  # by category: what a person should know of a model that can be used
    misspelt: Sequence[str] = ()  # what a person should know of categories without a model

    def __getitem__(self, category: str) -> ModelInfo:
        return self.models[category]

    def __iter__(self) -> Iterator[str]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def without(self, errors: Mapping[str, ModelError]) -> ModelSet:
        """The models except those of some categories, which have errors now; UsageError if none is left."""
        models = {name: model for name, model in self.models.items() if name not in errors}
        return replace(self, models=models, errors={**self.errors, **errors}).require_some()

    def require_some(self) -> ModelSet:
        """The set itself; UsageError if no model can be used."""
        if not self.models and len(self.errors) == 1:
            raise next(iter(self.errors.values()))
        if not self.models and self.errors:
            first = next(iter(self.errors.values()))
            raise UsageError(
                f"none of the {len(self.errors)} models in {storage.readable(self.folder)} can be used; first: {first}"
            )
        return self

    @property
    def warnings(self) -> list[str]:
        """What to tell a person, one sentence each."""
        notes = (self.notes[name] for name in self.models if name in self.notes)
        return [*map(str, self.errors.values()), *notes, *self.misspelt]


def find_models(folder: str, method: str | None = None) -> ModelSet:
    """The models below the URI ``folder``.

    A category of which there are two models has none that can be used, and so has one whose own folder is damaged
    while another holds a copy. UsageError if no model can be used, or there are models of several methods and
    ``method`` is None.
    """
    methods = [name for name in _methods(folder) if method in (None, name)]
    readable = storage.readable(folder)
    if len(methods) > 1:
        raise UsageError(f"{readable} holds models of several methods; choose one with --method: {', '.join(methods)}.")
    found = _find(folder, methods)
    if not found:
        raise UsageError(f"no models in {readable}; make some with: mvad fit DATA --models {readable}")
    errors: dict[str, ModelError] = {}
    for one in found:
        if one.error is not None:
            errors[one.name if one.model is None else storage.folder_name(one.model.category)] = one.error
    models, notes = {}, {}
    for one in found:
        if one.model is not None and storage.folder_name(one.model.category) not in errors:
            models[one.model.category] = one.model
            note = _misplaced(one)
            if note is not None:
                notes[one.model.category] = note
    return ModelSet(folder, models, errors, notes).require_some()


def models_for(categories: Sequence[str], models: ModelSet) -> ModelSet:
    """Those of the models that are of one of the categories; UsageError if none of them can be used."""
    found = {name: models[name] for name in categories if name in models}
    folders = {name: storage.folder_name(name) for name in categories}
    errors = {name: models.errors[folder] for name, folder in folders.items() if folder in models.errors}
    if not found and not errors:
        names, known = ", ".join(categories[:5]), ", ".join(sorted(models))
        raise UsageError(f"{storage.readable(models.folder)} has no model for {names}; it has models for: {known}.")
    of_any_case = {name.casefold(): name for name in sorted(models)}
    misspelt = [
        f"there is no model of {name!r}, but one of {of_any_case[name.casefold()]!r}: is that the same category?"
        for name in categories
        if name not in models and name.casefold() in of_any_case
    ]
    return replace(models, models=found, errors=errors, misspelt=misspelt).require_some()


def recorded_shape(model: ModelInfo) -> tuple[int, ...]:
    """The shape of one image's features, as the model records it.

    If an earlier mvad recorded none, it is that by the model's backbone; ModelError if the backbone gives none.
    """
    shape = model.record.get("feature_shape")
    if shape is not None:
        return tuple(shape)
    with _naming(model):
        return _feature_shape(find_method(model.method).feature, model.backbone, model.size)


@functools.lru_cache
def _feature_shape(kind: str, spec: BackboneSpec, size: ImageSize) -> tuple[int, ...]:
    from mvad.features.specs import feature_shapes

    return feature_shapes([kind], spec, size)[kind]


def load_networks(
    models: ModelSet, weights: str | None, budget: MemoryBudget | None = None
) -> tuple[ModelSet, dict[BackboneSpec, Network]]:
    """The networks that models need, by backbone, and the models that they are the right ones for.

    A model has an error if its network cannot be had, leaves nothing of the budget, or is not the one it was fitted
    with. UsageError if no model is left.
    """
    from mvad.features.weights import Network

    errors: dict[str, ModelError] = {}
    for category, model in models.items():
        try:
            recorded_shape(model)
        except ModelError as error:
            errors[category] = error
    models = models.without(errors)
    networks: dict[BackboneSpec, Network] = {}
    failed: dict[BackboneSpec, UsageError] = {}
    for spec in dict.fromkeys(model.backbone for model in models.values()):
        try:
            same = next((other for other in networks.values() if other.spec.name == spec.name), None)
            network = Network.load(spec, weights) if same is None else replace(same, spec=spec)
            if budget is not None:
                budget.after_weights(network.nbytes)
            networks[spec] = network
        except UsageError as error:
            failed[spec] = error
    if not networks:
        raise next(iter(failed.values()))
    errors = {}
    for category, model in models.items():
        title, spec = _title(model.uri, category), model.backbone
        if spec in failed:
            errors[category] = ModelError(title, str(failed[spec]).rstrip("."))
        elif model.weights_sha256 != networks[spec].sha256:
            reason = f"it was fitted with other weights of {spec.name} than those at hand"
            errors[category] = ModelError(title, f"{reason}; give the same ones with --weights, or fit it again")
    return models.without(errors), networks
