"""INT8 files: fitted again to what the quantised backbone computes, and compared by AUROC."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import mvad
from helpers.exported import fit, run, tiles
from mvad.cli import main
from mvad.errors import UsageError
from mvad.features.specs import prepare
from mvad.in_process import model as in_process
from mvad.model_store import model_id, read_model
from mvad.onnx_export import int8, result
from mvad.onnx_export.choice import choose_model
from mvad.onnx_export.images import good_images, labelled_images
from mvad.options import ExportOptions, PredictOptions
from mvad.storage import to_uri

METHODS = ("patchcore", "subspace", "knn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of a product, its data, and an INT8 file."""
    root = tmp_path_factory.mktemp("int8")
    for method in METHODS:
        fit(method, root / "models")
    for part, images in (
        ("train/good", tiles(8)),
        ("test/good", tiles(4, seed=5)),
        ("test/spot", tiles(4, seed=6, defect=True)),
        ("ground_truth/spot", tiles(1)),
    ):
        (root / "tile" / part).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(root / "tile" / part / f"{number}.png")
    export(root, out=root / "int8.onnx")
    return root


def export(folder, out=None, method="patchcore", **options):
    defaults = {"int8": True, "data": str(folder / "tile")}
    where = str(folder / "models" / method / "tile")
    return mvad.export(where, out=out and str(out), quiet=True, **{**defaults, **options})


def fit_again(folder, method="patchcore"):
    """The model, its backbone, and what is learnt again for an INT8 file."""
    options = ExportOptions(out="tile.onnx")
    info, network = choose_model(to_uri(str(folder / "models" / method / "tile")), options)
    return info, network, int8.fit_int8(info, network, good_images(str(folder / "tile"), info), options)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_backbone_in_floats_the_same_model_is_learnt_again(folder, method, monkeypatch):
    monkeypatch.setattr(int8, "quantise", lambda graph, inputs: graph)
    info, _, again = fit_again(folder, method)
    assert model_id(again.fitted) == info.model_id
    assert again.rule.threshold == mvad.load_model(folder / "models" / method / "tile").threshold


@pytest.mark.parametrize("method", METHODS)
def test_the_file_scores_as_a_model_with_the_quantised_backbone(folder, method, tmp_path, monkeypatch):
    info, network, again = fit_again(folder, method)
    export(folder, tmp_path / "int8.onnx", method)
    spec = prepare([again.fitted.method.feature], network, info.size, "onnx")
    quantised = dataclasses.replace(spec, graph=again.graph)
    monkeypatch.setattr(in_process, "prepare", lambda *arguments: quantised)
    model = in_process.Model(again.fitted, network, PredictOptions())
    assert model.threshold == again.rule.threshold
    for image in [*tiles(3, seed=5), *tiles(3, seed=6, defect=True)]:
        found, expected = run(tmp_path / "int8.onnx", image), model.predict(image)
        np.testing.assert_allclose(found["score"], expected.score, rtol=1e-5)
        assert (found["p_value"], found["is_anomaly"]) == (expected.p_value, expected.is_anomaly)


def test_its_convolutions_have_weights_of_7_bits_with_a_scale_per_channel(folder):
    graph = onnx.load(folder / "int8.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 20
    for node in convolutions:
        inputs, weights = (makers[name] for name in node.input[:2])
        assert (inputs.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        values, scales = (arrays[name] for name in weights.input[:2])
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 64
        assert len(scales) == len(values)


def test_the_file_says_that_it_is_int8_and_has_standard_operators_only(folder):
    model = onnx.load(folder / "int8.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["mvad.precision"] == "int8"
    assert facts["mvad.note"] == "an INT8 file: its scores and its threshold are its own, and not those of the model"
    assert (facts["mvad.int8_images"], facts["mvad.int8_ranges"]) == ("8", "8")
    assert facts["mvad.model_id"] == read_model(to_uri(str(folder / "models/patchcore/tile"))).model_id
    assert [opset.domain for opset in model.opset_import] == [""]


def test_the_same_images_give_the_same_file(folder, tmp_path):
    export(folder, tmp_path / "again.onnx", data=str(folder / "tile/train/good"))
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "int8.onnx").read_bytes()


def test_a_check_prints_both_aurocs_and_what_the_file_is(folder, tmp_path, capsys):
    """It knows an INT8 file without being told."""
    arguments = ["export", str(folder / "models/patchcore/tile"), "--check", str(folder / "tile")]
    new = [*arguments, "--out", str(tmp_path / "new.onnx"), "--int8", "--data", str(folder / "tile")]
    for command in (new, [*arguments, "--out", str(folder / "int8.onnx")]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        printed = capsys.readouterr().out
        assert not ended.value.code
        assert "image AUROC of 8 images, 4 of them defective: 1.0000 of the model, 1.0000 of the INT8 file" in printed
        assert ("INT8: its scores and threshold are its own, not those of the model" in printed) == (command is new)
    assert (tmp_path / "new.onnx").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(folder / "int8.onnx"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["precision"], document["comparison"]["exported_image_auroc"]) == ("int8", 1.0)


def test_a_file_that_loses_auroc_is_found(folder, tmp_path, capsys):
    model = onnx.load(folder / "int8.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.shape[1] == 152:  # the bank
            tensor.CopyFrom(numpy_helper.from_array(array[:, ::-1].copy(), tensor.name))
    onnx.save(model, tmp_path / "worse.onnx")
    found = export(folder, tmp_path / "worse.onnx", check=str(folder / "tile/test"))
    loss = found.comparison.auroc_loss
    assert loss > 0.002
    assert found.exit_code == 1
    assert f"loses {loss:.4f} of image AUROC, and 0.002 is allowed: do not use it" in capsys.readouterr().err


def test_a_file_that_loses_auroc_is_not_written(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result, "MAX_AUROC_LOSS", -0.1)
    found = export(folder, tmp_path / "worse.onnx", check=str(folder / "tile"))
    assert (found.exit_code, found.file) == (1, None)
    assert not (tmp_path / "worse.onnx").exists()
    assert "export the model without --int8" in capsys.readouterr().err


def test_labels_and_good_images_are_found_in_folders_of_several_kinds(folder):
    model = read_model(to_uri(str(folder / "models/patchcore/tile")))
    expected = [*(f"good/{number}.png" for number in range(4)), *(f"spot/{number}.png" for number in range(4))]
    found = labelled_images(str(folder / "tile/test"), model)
    assert [one.image_id for one in found] == expected
    assert [one.is_defective for one in found] == 4 * [False] + 4 * [True]
    assert sorted(one.uri for one in labelled_images(str(folder), model)) == sorted(one.uri for one in found)
    learnt = [*good_images(str(folder), model).values()]
    assert len(learnt) == 8
    for data in ("tile", "tile/train", "tile/train/good"):
        assert [*good_images(str(folder / data), model).values()] == learnt


def test_unreadable_images_are_named_and_the_others_learnt_from(folder, tmp_path, capsys):
    for number, image in enumerate(tiles(6)):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    export(folder, tmp_path / "int8.onnx", data=str(tmp_path))
    printed = capsys.readouterr().err
    assert "'0.png': " in printed
    assert "the model itself was fitted to 8 images, and the INT8 file to 5" in printed
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"\x89PNG\r\n\x1a\nno image")
    with pytest.raises(UsageError, match=r"none of 6 images can be read, the first is .*0\.png\."):
        export(folder, tmp_path / "none.onnx", data=str(tmp_path))


def test_what_has_no_int8_file_is_refused_in_a_sentence(folder, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match=r"--data is for --int8"):
        export(folder, out, int8=False)
    with pytest.raises(UsageError, match=r"give them with --data FOLDER\."):
        export(folder, out, data=None)
    with pytest.raises(UsageError, match=r"does not have both good and defective images of 'tile'"):
        export(folder, out, check=str(folder / "tile/test/good"))
    fit("patchcore", tmp_path / "models", category="cap")
    (tmp_path / "models/patchcore/cap").rename(tmp_path / "models/patchcore/tile")
    with pytest.raises(UsageError, match=r"tile has no good images to learn from of 'cap'; its images are of tile\."):
        export(tmp_path, out, data=str(folder / "tile"))
    fit("autoencoder", folder / "models")
    with pytest.raises(UsageError, match=r"models of the method autoencoder cannot be exported with --int8"):
        export(folder, out, method="autoencoder")
    export(folder, tmp_path / "float.onnx", int8=False, data=None)
    with pytest.raises(UsageError, match=r"float\.onnx is a file in float32, not in INT8"):
        export(folder, tmp_path / "float.onnx", check=str(folder / "tile/test"))
    assert not out.exists()
