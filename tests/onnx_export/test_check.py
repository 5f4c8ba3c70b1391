"""``mvad export --check``: an export that scores otherwise is found."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import mvad
from helpers.exported import fit, tiles
from mvad.cli import main
from mvad.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of models, with one of two categories each, and images."""
    root = tmp_path_factory.mktemp("check")
    fit("patchcore", root / "models")
    fit("patchcore", root / "models", category="other", seed=1, coreset_ratio=0.3)
    for part, defect in (("good", False), ("spot", True)):
        (root / "images" / part).mkdir(parents=True)
        for number, image in enumerate(tiles(3, seed=5, defect=defect)):
            image.save(root / "images" / part / f"{number}.png")
    mvad.export(str(root / "models/patchcore/tile"), out=str(root / "tile.onnx"), quiet=True)
    return root


@pytest.fixture
def export(folder, tmp_path):
    """A copy of the export, to be damaged."""
    return shutil.copy(folder / "tile.onnx", tmp_path / "tile.onnx")


def check(folder, out, **options):
    where = str(folder / "models/patchcore/tile")
    return mvad.export(
        where, out=None if out is None else str(out), check=str(folder / "images"), quiet=True, **options
    )


def falsify(file, change):
    """Change the arrays of an export by a function of each, which gives None for those that stay."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        changed = change(numpy_helper.to_array(tensor))
        if changed is not None:
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, file)


def is_bank(array):
    return array.ndim == 2 and array.shape[1] == 152


def test_an_export_scores_as_the_model_does(folder, export):
    result = check(folder, export)
    assert (result.exit_code, result.comparison.n_images, result.comparison.errors) == (0, 6, [])
    assert result.comparison.largest_difference <= 1e-5
    assert result.comparison.largest_map_difference <= 1e-5
    assert result.comparison.verdicts == []
    assert check(folder, None).comparison == result.comparison


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_it_does_with_either_engine(folder, export, engine):
    assert check(folder, export, engine=engine).comparison.largest_difference <= 1e-4


def test_a_bank_with_other_vectors_is_found(folder, export, capsys):
    falsify(export, lambda array: array[::-1] * np.float32(1.01) if is_bank(array) else None)
    result = check(folder, export)
    assert result.exit_code == 1
    assert result.comparison.largest_difference > 1e-4
    assert result.comparison.largest_image
    assert "the export does not score as mvad does: do not use it" in capsys.readouterr().err


def test_another_map_is_found_where_scores_are_the_same(folder, export):
    falsify(export, lambda array: array * 1.01 if array.shape == (32, 4) else None)
    comparison = check(folder, export).comparison
    assert comparison.largest_difference <= 1e-5
    assert comparison.largest_map_difference > 1e-3
    assert not comparison.is_same


def test_verdicts_that_differ_are_named(folder, export, capsys):
    """The file was exported with another threshold than the check is told."""
    arguments = [str(folder / "models/patchcore/tile"), "--out", str(export), "--check", str(folder / "images")]
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments, "--threshold", "0"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "'good/0.png': anomalous in mvad, good in the export (scores " in printed
    with pytest.raises(SystemExit):
        main(["export", *arguments, "--threshold", "0", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 1
    verdicts = document["comparison"]["verdicts"]
    assert [one["image_id"] for one in verdicts] == [f"good/{number}.png" for number in range(3)]
    assert {(one["is_anomaly"], one["exported_is_anomaly"]) for one in verdicts} == {(True, False)}


def test_a_file_that_is_there_is_checked_and_not_replaced(folder, export):
    before = export.read_bytes()
    assert check(folder, export).n_bytes == len(before)
    assert export.read_bytes() == before
    mvad.export(str(folder / "models/patchcore/tile"), out=str(export), threshold="1", quiet=True)
    assert export.read_bytes() != before


def test_files_that_are_no_export_of_the_model_are_refused(folder, export):
    other = str(folder / "models/patchcore/other")
    with pytest.raises(UsageError, match=r"tile\.onnx is the export of another model"):
        mvad.export(other, out=str(export), check=str(folder / "images"), quiet=True)
    with pytest.raises(UsageError, match=r"models cannot be checked: .*; give another file with --out\."):
        check(folder, folder / "models")
    export.write_bytes(export.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"tile\.onnx is no model that ONNX Runtime can run"):
        check(folder, export)


def test_unreadable_images_are_named_and_the_others_compared(folder, export, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    where = str(folder / "models/patchcore/tile")
    with pytest.raises(UsageError, match=r"no image below .* could be scored"):
        mvad.export(where, out=str(export), check=str(images), quiet=True)
    tiles(1)[0].save(images / "good.png")
    comparison = mvad.export(where, out=str(export), check=str(images), quiet=True).comparison
    assert (comparison.n_images, [one["image_id"] for one in comparison.errors]) == (1, ["broken.png"])


def test_which_model_is_said_by_its_folder_or_its_category(folder, tmp_path):
    models, out = str(folder / "models"), str(tmp_path / "tile.onnx")
    chosen = mvad.export(models, category="tile", out=out, quiet=True)
    assert chosen.model_id == check(folder, out).model_id
    with pytest.raises(UsageError, match=r"holds several models; choose one with --category: other, tile\."):
        mvad.export(models, out=out, quiet=True)
    with pytest.raises(UsageError, match="is a model of the category 'tile', not 'cap'"):
        mvad.export(f"{models}/patchcore/tile", category="cap", out=out, quiet=True)
    with pytest.raises(UsageError, match="there is nothing to do; give --out FILE, --check FOLDER, or both"):
        mvad.export(models, category="tile", quiet=True)
