"""Models on disk that are damaged although all hashes are right: one sentence each, and nobody else's trouble."""

import base64
import io
import json
import math
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from helpers.damage import saved, seal, seal_files, spoilt
from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import MAX_SIDE
from mvad.detectors import METHODS, TrainedDetector
from mvad.detectors.networks import PatchVAE
from mvad.detectors.patchcore import LATER_SETTINGS
from mvad.errors import ModelError
from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec
from mvad.model_checks import parse_array
from mvad.model_store import (
    FittedModel,
    list_models,
    map_arrays,
    read_arrays,
    read_calibration,
    read_model,
    save_model,
)
from mvad.storage import to_uri

CHANNELS = 6
SHAPES = {"patches": (4, 4, CHANNELS), "stages": (4, 4, CHANNELS), "pooled": (CHANNELS,), "pixels": (32, 32, 3)}
RECORD = {"n_train": 8, "errors": [{"image_id": "a.png", "error": "empty"}], "fit_seconds": 1.0}
SPEC = BackboneSpec("resnet50", ("layer2", "layer3", "layer4"), (0.5,) * 3, (0.5,) * 3)
NO_SPEC = BackboneSpec(NO_BACKBONE, (), (), ())
SIZE = ImageSize.square(64)
TRAINED = [name for name, method in METHODS.items() if issubclass(method, TrainedDetector)]
BANKS = [name for name in METHODS if name not in (*TRAINED, "subspace")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a sound model of each method."""
    folder = tmp_path_factory.mktemp("models")
    for name, method in METHODS.items():
        generator = torch.Generator().manual_seed(1)
        features = torch.rand((8, *SHAPES[method.feature]), generator=generator)
        detector = method(**({"epochs": 1} if name in TRAINED else {}))
        if name == "vae-fewshot":
            detector.pretrain([features.flip(0)])
        state = detector.fit(features).state
        spec, scores = (NO_SPEC if method.feature == "pixels" else SPEC), np.linspace(1, 2, 8, dtype=np.float32)
        record = RECORD | {"feature_shape": SHAPES[method.feature]}
        save_model(to_uri(folder), FittedModel("cap", method, state, spec, "abc", SIZE, record, scores))
    return folder


@pytest.fixture
def place(models, tmp_path):
    """A function that copies the model of a method, and gives its folder."""

    def copy(method):
        folder = tmp_path / "models" / method / "cap"
        shutil.copytree(models / method / "cap", folder)
        return folder

    return copy


def open_in_full(folder):
    """What scoring does with a model; both ways to read its arrays find what is wrong with them."""
    model = read_model(to_uri(folder))
    read_calibration(model)
    shape = SHAPES[METHODS[model.method].feature]
    errors = []
    for read in (read_arrays, map_arrays):
        try:
            read(model, shape)
        except ModelError as error:
            errors.append(str(error))
    assert len(errors) in (0, 2)
    if errors:
        read_arrays(model, shape)


def check_is_refused(folder, part):
    with pytest.raises(ModelError) as raised:
        open_in_full(folder)
    text = str(raised.value)
    assert part in text
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 600
    (row,) = list_models(to_uri(folder.parents[1]))
    assert row["damage"].partition(" cannot be used: ")[0] == text.partition(" cannot be used: ")[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_model_is_taken(place, method):
    folder = place(method)
    open_in_full(folder)
    seal_files(folder)
    open_in_full(folder)
    (row,) = list_models(to_uri(folder.parents[1]))
    assert (row["damage"], row["note"], row["n_calibration"]) == (None, None, 8)


def declared(shape, descr="<f4", data=b"\0" * 16):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + data


ARRAY_SHAPES = [(), (0,), (3,), (2, 5), (1, 2, 3, 4), (10**6, 0)]
TYPES = ["<f4", "<f8", "<f2", ">f4", "<i8", "<i4", "|u1", "|b1", "<u2"]


@pytest.mark.parametrize("shape", ARRAY_SHAPES, ids=str)
@pytest.mark.parametrize("descr", TYPES)
def test_an_array_file_is_read_as_numpy_reads_it(shape, descr):
    array = np.arange(math.prod(shape)).astype(descr).reshape(shape)
    found = parse_array(np.frombuffer(saved(array), np.uint8))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array, strict=True)


def test_an_array_file_is_read_without_the_parser_of_python(monkeypatch):
    """It fails now and then in processes with several threads."""

    def fail(*arguments, **options):
        raise SystemError("AST constructor recursion depth mismatch (before=42, after=39)")

    monkeypatch.setattr("ast.parse", fail)
    np.testing.assert_array_equal(parse_array(np.frombuffer(saved(np.eye(3)), np.uint8)), np.eye(3))


BANK_DAMAGES = {
    "NaN": (lambda bank: saved(spoilt(bank, np.nan)), "NaN or infinity"),
    "infinity": (lambda bank: saved(spoilt(bank, -np.inf)), "NaN or infinity"),
    "no vectors": (lambda bank: saved(bank[:0]), "has the shape 0 x"),
    "narrower": (lambda bank: saved(bank[:, :-1].copy()), ""),
    "wider": (lambda bank: saved(np.hstack([bank, bank])), ""),
    "one vector": (lambda bank: saved(bank[0]), "has the shape"),
    "a number": (lambda bank: saved(bank[0, 0]), "has the shape of one number"),
    "three axes": (lambda bank: saved(bank[None]), "has the shape 1 x"),
    "float64": (lambda bank: saved(bank.astype(np.float64)), "holds float64 values, not float32"),
    "float16": (lambda bank: saved(bank.astype(np.float16)), "holds float16 values, not float32"),
    "big-endian": (lambda bank: saved(bank.astype(">f4")), ">f4"),
    "integers": (lambda bank: saved(bank.astype(np.int32)), "holds int32 values, not float32"),
    "complex": (lambda bank: saved(bank.astype(np.complex64)), "not numbers"),
    "text": (lambda bank: saved(bank.astype("U5")), "not numbers"),
    "records": (lambda bank: saved(np.zeros(3, [("a", "f4")])), "not numbers"),
    "objects": (lambda bank: saved(bank.astype(object), allow_pickle=True), "not numbers"),
    "by columns": (lambda bank: saved(np.asfortranarray(bank)), "column by column"),
    "truncated": (lambda bank: saved(bank)[:-3], "it declares"),
    "trailing bytes": (lambda bank: saved(bank) + b"x", "it declares"),
    "huge": (lambda bank: declared((10**12, 10**6)), "it declares"),
    "too large to count": (lambda bank: declared((1 << 62, 1 << 62)), "it declares"),
    "empty but huge": (lambda bank: declared((0, 1 << 62), data=b""), "bank.npy is damaged"),
    "negative": (lambda bank: declared((-2, -2)), "it declares"),
    "version 2": (lambda bank: b"\x93NUMPY\x02\x00" + saved(bank)[8:], "another version"),
    "no array": (lambda bank: b"PK\x03\x04" * 9, "no NumPy file"),
    "a nested header": (lambda bank: b"\x93NUMPY\x01\x00\x40\x1f" + b"(" * 8000, "no NumPy file"),
    "nothing": (lambda bank: b"", "bank.npy"),
}


@pytest.mark.parametrize("damage", BANK_DAMAGES)
@pytest.mark.parametrize("method", BANKS)
def test_a_damaged_bank_is_one_sentence(place, method, damage):
    folder, (change, part) = place(method), BANK_DAMAGES[damage]
    (folder / "bank.npy").write_bytes(change(np.load(folder / "bank.npy")))
    seal_files(folder)
    check_is_refused(folder, part or "bank")


@pytest.mark.parametrize("columns", [[-1, 0], [0, CHANNELS], [0, 0], [3, 1], [[0, 1]], [0.0, 1.0], [], [0]], ids=str)
def test_columns_that_do_not_fit(place, columns):
    folder = place("knn")
    array = np.array(columns, np.float32 if columns == [0.0, 1.0] else np.int64)
    (folder / "columns.npy").write_bytes(saved(array))
    (folder / "bank.npy").write_bytes(saved(np.ones((3, 2), np.float32)))
    seal_files(folder)
    check_is_refused(folder, "columns")


NETWORK_DAMAGES = {
    "NaN": lambda tensors, name: {**tensors, name: spoilt(tensors[name], np.nan)},
    "infinity": lambda tensors, name: {**tensors, name: spoilt(tensors[name], np.inf)},
    "float64": lambda tensors, name: {**tensors, name: tensors[name].astype(np.float64)},
    "another shape": lambda tensors, name: {**tensors, name: tensors[name][..., :-1].copy()},
    "no values": lambda tensors, name: {**tensors, name: tensors[name][:0]},
    "a tensor less": lambda tensors, name: {key: tensors[key] for key in tensors if key != name},
    "a tensor more": lambda tensors, name: {**tensors, "more": tensors[name]},
}


@pytest.mark.parametrize("damage", NETWORK_DAMAGES)
@pytest.mark.parametrize("method", TRAINED)
def test_a_damaged_network_is_one_sentence(place, method, damage):
    folder = place(method)
    tensors = safetensors.numpy.load((folder / "network.safetensors").read_bytes())
    name = min(tensors)
    changed = NETWORK_DAMAGES[damage](tensors, name)
    (folder / "network.safetensors").write_bytes(safetensors.numpy.save(changed))
    seal_files(folder)
    check_is_refused(folder, "more" if damage == "a tensor more" else name)


@pytest.mark.parametrize("damage", ["truncated", "no network", "a huge header", "nothing"])
@pytest.mark.parametrize("method", TRAINED)
def test_a_network_file_that_is_none(place, method, damage):
    folder = place(method)
    data = (folder / "network.safetensors").read_bytes()
    changed = {
        "truncated": data[:-5],
        "no network": b"{}" * 50,
        "a huge header": b"\xff" * 7 + b"\x7f" + data[8:],
        "nothing": b"",
    }
    (folder / "network.safetensors").write_bytes(changed[damage])
    seal_files(folder)
    check_is_refused(folder, "network.safetensors is damaged")


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ({"channels": CHANNELS, "latent": 8, "hidden": 64}, "has the shape"),
        ({"channels": CHANNELS, "latent": 16, "hidden": 10**30}, "shape"),
        ({"channels": CHANNELS, "latent": 16, "hidden": 10**9}, "shape"),
        ({"channels": CHANNELS, "latent": 16}, "shape"),
        ({"channels": 5, "latent": 16, "hidden": 64}, "takes 5 features"),
        ({"channels": "6", "latent": 16, "hidden": 64}, "shape"),
        ({"channels": -6, "latent": 16, "hidden": 64}, "shape"),
        ({"channels": True, "latent": 16, "hidden": 64}, "shape"),
        ({}, "shape"),
    ],
)
def test_sizes_of_a_network(place, sizes, part):
    folder = place("vae")
    document = json.loads((folder / "model.json").read_text())
    document["settings"]["shape"] = sizes
    seal(folder, document)
    check_is_refused(folder, part)


def test_a_network_that_its_method_cannot_feed(place):
    folder, sizes = place("vae"), {"channels": CHANNELS, "latent": 8, "hidden": 64}
    tensors = {name: tensor.numpy() for name, tensor in PatchVAE(**sizes).state_dict().items()}
    (folder / "network.safetensors").write_bytes(safetensors.numpy.save(tensors))
    document = json.loads((folder / "model.json").read_text())
    document["settings"]["shape"] = sizes
    seal(folder, document)
    seal_files(folder)
    check_is_refused(folder, "8 latent variables, not 16")


CALIBRATION_DAMAGES = {
    "NaN": np.full(4, np.nan, np.float32),
    "infinity": np.array([1, np.inf], np.float32),
    "2-d": np.ones((4, 2), np.float32),
    "no axes": np.float32(3),
    "float64": np.ones(4),
    "integers": np.ones(4, np.int8),
    "objects": np.array([None, 1], object),
}


@pytest.mark.parametrize("damage", CALIBRATION_DAMAGES)
def test_a_damaged_calibration_is_one_sentence(place, damage):
    folder = place("patchcore")
    (folder / "calibration.npy").write_bytes(saved(CALIBRATION_DAMAGES[damage], allow_pickle=True))
    seal_files(folder)
    check_is_refused(folder, "calibration.npy is damaged")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def bomb():
    """A small PNG that decodes to a huge mask, in base64."""
    file = io.BytesIO()
    Image.new("1", (4 * MAX_SIDE, MAX_SIDE)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


WRONG = {
    "method": ["magic", 3, None, ["patchcore"]],
    "category": ["", 3, None, ["cap"]],
    "settings": [None, [], "x", {}],
    "weights_sha256": [None, 3],
    "backbone": [None, "resnet50", {}, {"name": "resnet50"}],
    "backbone.name": [None, 3],
    "backbone.stages": [None, 3, [], [[1]], ["layer2"], [{}]],
    "backbone.mean": [None, ["0.5"] * 3, [0.5], [float("nan")] * 3, 0.5],
    "backbone.std": [None, [0.0] * 3, [-1.0] * 3, [0.5], [float("inf")] * 3],
    "backbone.patch": [None, 0, -16, "16", 1.5],
    "size": [None, 64, {}, {"resize": 64}],
    "size.crop": [0, -64, "64", 65, 64.5, True, None, [64], [64, 65], [64, "64"], [64, 64, 64], {"height": 64}],
    "size.resize": [10**9, 32, None, [64, 10**9], [64, 32]],
    "size.window": [0, "32", True, [32], [32, 0], [32, 128], [128, 32], [40, 32], {"height": 32}],
    "size.overlap": [-0.1, 1.0, "0.1", None, float("nan")],
    "size.cell": [0, -32, "32", None, 1.5],
    "size.ignore": [3, "", "no base64!", "AAAA", ["AAAA"], bomb()],
    "files": [None, [], "bank.npy", {"../bank.npy": "0"}, {"gone.npy": 3}, {"bank.txt": "0"}, {"/etc/x.npy": "0"}, {}],
    "record": [None, [], {}],
    "record.n_train": [None, -1, "8", 8.5, [8]],
    "record.feature_shape": ["4", 4, [0, 4, 6], [4.5], [-1]],
    "record.errors": [None, 3, ["a.png"], [{"image_id": 3, "error": "x"}]],
    "record.fit_seconds": [None, "1", -1.0, float("nan"), float("inf")],
    "record.bytes": [None, -1, "10", 1.5],
    "record.updated_from": [None, 3, "abc", [3]],
    "format": [None, "2", 3, [2]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_in_the_document_is_one_sentence(place, name, value):
    folder = place("patchcore")
    document = json.loads((folder / "model.json").read_text())
    *parents, key = name.split(".")
    part = document
    for parent in parents:
        part = part[parent]
    part[key] = value
    seal(folder, document)
    check_is_refused(folder, "")


@pytest.mark.parametrize("name", ["method", "category", "settings", "backbone", "size", "files", "record", "format"])
def test_a_value_that_the_document_lacks(place, name):
    folder = place("patchcore")
    document = json.loads((folder / "model.json").read_text())
    del document[name]
    seal(folder, document)
    check_is_refused(folder, name)


@pytest.mark.parametrize(
    "value", ["9", None, True, [], {}, -1, 1.5, float("nan"), float("inf"), nested(50), "x" * 10**5]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_setting_is_one_sentence(place, method, value):
    folder = place(method)
    original = json.loads((folder / "model.json").read_text())
    for name, sound in original["settings"].items():
        if value == sound == []:
            continue
        if isinstance(sound, float) and (value == float("inf") or (value == 1.5 and name != "coreset_ratio")):
            continue  # as good as any
        if (isinstance(sound, dict) and isinstance(value, dict)) or (
            value is None and (method in TRAINED or sound is None)
        ):
            continue
        seal(folder, {**original, "settings": {**original["settings"], name: value}})
        with pytest.raises(ModelError, match=f"setting {name}|cannot be used"):
            open_in_full(folder)


@pytest.mark.parametrize("method", METHODS)
def test_settings_that_are_missing_or_unknown(place, method):
    folder = place(method)
    original = json.loads((folder / "model.json").read_text())
    for name in original["settings"].keys() - LATER_SETTINGS:
        seal(
            folder,
            {**original, "settings": {key: original["settings"][key] for key in original["settings"] if key != name}},
        )
        check_is_refused(folder, f"lacks the setting {name}")
    seal(folder, {**original, "settings": {**original["settings"], "speed": 9}})
    check_is_refused(folder, "a setting 'speed'")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": 2}',
        b'{"format": 2, "model_id": 3}',
        b'{"format": 1' + b"0" * 5000 + b"}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_text_that_is_no_document(place, text):
    folder = place("patchcore")
    (folder / "model.json").write_bytes(text)
    check_is_refused(folder, "")


def test_files_are_read_within_their_limits(place, monkeypatch):
    folder = place("patchcore")
    with open(folder / "bank.npy", "ab") as file:
        file.truncate(1 << 40)  # sparse
    model = read_model(to_uri(folder))
    with pytest.raises(ModelError, match=r"bank.npy cannot be read: the file is larger than"):
        read_arrays(model, SHAPES["patches"])
    monkeypatch.setattr("mvad.model_store.MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(ModelError, match=r"model.json cannot be read: the file is larger than 100 bytes"):
        read_model(to_uri(folder))


@pytest.mark.parametrize("file", ["bank.npy", "calibration.npy", "model.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "device"])
def test_what_is_no_file_does_not_hang(place, file, kind):
    folder = place("patchcore")
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    elif kind == "folder":
        (folder / file).mkdir()
    elif kind == "device":
        (folder / file).symlink_to("/dev/zero")
    check_is_refused(folder, f"{file} cannot be read")
