"""A damaged file of score rows, or an odd mask, costs its category and is named; the others are finished."""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mvad
from helpers.synthetic import draw, finish, write_category
from mvad import results, storage
from mvad.commands import maps
from mvad.errors import ImageError, ResultsError, UsageError
from mvad.exports.rows import files_by_category
from mvad.options import MapOptions, build
from mvad.results import store
from mvad.results.result import EXIT_TOO_MANY_ERRORS
from mvad.results.store import drop_duplicates, read_images, read_scores, read_status, set_aside_damaged
from mvad.storage import to_uri

GRID = np.arange(16, dtype=np.float32).reshape(4, 4)


def rows_of(folder, category, masks=()):
    rows = []
    for number in range(6):
        label = int(number > 2)
        uri = draw(folder / f"images/{category}/{number}.png", number, bool(label))
        mask = masks[number - 3] if label and masks else None
        rows.append(
            {"image_id": f"{category}/{number}.png", "uri": uri, "label": label, "score": float(number), "grid": GRID}
            | {"mask_uri": mask, "defect": "spot" if label else None}
        )
    return rows


@pytest.fixture
def out(tmp_path):
    """Results of the categories ``alpha``, in two files of rows, and ``beta``."""
    folder = tmp_path / "out"
    rows = rows_of(tmp_path, "alpha")
    facts = {"alpha": write_category(folder, "alpha", rows[:3], threshold=2.5)}
    write_category(folder, "alpha", rows[3:], threshold=2.5)
    facts["beta"] = write_category(folder, "beta", rows_of(tmp_path, "beta"), threshold=2.5)
    finish(folder, facts)
    return folder


def with_column(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def rewritten(change):
    def damage(file):
        pq.write_table(change(pq.read_table(file, partitioning=None)), file)

    return damage


def flip(file):
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)


DAMAGES = {
    "no bytes": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "no Parquet": lambda file: file.write_bytes(b"image_id,score\na,1\n"),
    "flipped bytes": flip,
    "another table": rewritten(lambda table: pa.table({"a": [1, 2]})),
    "numbers as ids": rewritten(
        lambda table: with_column(table, "image_id", pa.array(range(len(table)))).drop_columns(["split"])
    ),
    "lists as ids": rewritten(lambda table: with_column(table, "image_id", pa.array([["a"]] * len(table)))),
    "gaps": rewritten(lambda table: with_column(table, "image_id", pa.nulls(len(table), pa.string()))),
    "no status": rewritten(lambda table: table.drop_columns(["status"])),
}


@pytest.fixture(params=DAMAGES)
def damaged(request, out):
    """The file of rows of ``alpha`` that is damaged."""
    file = sorted((out / "scores/alpha").iterdir())[0]
    DAMAGES[request.param](file)
    return file


def test_a_resumed_run_puts_it_aside_and_keeps_the_rest(damaged, out):
    whole = [path for path in out.glob("scores/*/*.parquet") if path != damaged]
    before = {path: path.read_bytes() for path in whole}
    (line,) = set_aside_damaged(to_uri(out))
    assert str(damaged) in line
    assert "put aside" in line
    assert not damaged.exists()
    assert damaged.with_name(f".{damaged.name}.damaged").exists()
    assert {path: path.read_bytes() for path in out.glob("scores/*/*.parquet")} == before
    assert len(drop_duplicates(to_uri(out))) == 9
    assert set_aside_damaged(to_uri(out)) == []
    assert pq.read_table(out / "scores").num_rows == 9  # readers of their own see the rest


def test_what_is_whole_stays_and_other_files_are_nobodys_rows(out):
    (out / "scores/alpha/Thumbs.db").write_bytes(b"x")
    (out / "scores/alpha/notes.parquet").write_bytes(b"x")
    assert set_aside_damaged(to_uri(out)) == []
    assert len(read_status(to_uri(out))) == 12


def test_evaluate_finishes_the_other_categories(damaged, out):
    sound = next(row for row in results.read_summary(to_uri(out)) if row["category"] == "beta")
    (out / "_SUCCESS").unlink(missing_ok=True)
    result = mvad.evaluate(str(out), quiet=True)
    assert result.exit_code == EXIT_TOO_MANY_ERRORS
    alpha, beta, _ = result.summary
    assert alpha["n_scored"] == 0
    assert str(damaged) in alpha["note"]
    assert "score the same images into this folder again" in alpha["note"]
    assert beta == sound
    assert not (out / "_SUCCESS").exists()


def test_evaluate_is_well_again_without_it(damaged, out):
    mvad.evaluate(str(out), quiet=True)
    set_aside_damaged(to_uri(out))
    result = mvad.evaluate(str(out), quiet=True)
    assert (result.exit_code, result.summary[0]["n_scored"]) == (0, 3)


def test_the_report_says_what_is_missing(damaged, out):
    result = mvad.report(str(out), quiet=True)
    assert [error["category"] for error in result.errors] == ["alpha"]
    assert damaged.name in result.errors[0]["error"]
    page = (out / "report.html").read_text()
    assert "alpha is missing on this page" in page
    assert "beta" in page
    with pytest.raises(ResultsError, match=re.escape(damaged.name)):
        mvad.report(str(out), categories="alpha", quiet=True)


def test_maps_of_the_other_categories(damaged, out):
    run, files = results.read_run(to_uri(out)), files_by_category(to_uri(out), None)
    for kind in ("overlay", "npy"):
        styles, errors = maps._styles(to_uri(out), files, run, build(MapOptions, {"format": kind}))
        assert "beta" in styles
        if "alpha" in styles:  # its map columns are whole
            exported = maps.export_file(
                damaged.as_uri(), "alpha", styles["alpha"], "all", to_uri(out / "maps"), storage.Keys()
            )
            errors += exported.errors
        assert {error["category"] for error in errors} <= {"alpha"}
        assert all(damaged.name in error["error"] for error in errors)


def test_a_category_of_nothing_but_damaged_files(out):
    for file in (out / "scores/alpha").iterdir():
        file.write_bytes(b"")
    assert [name for name, _ in results.list_parts(to_uri(out))] == ["alpha", "alpha", "beta"]
    assert mvad.report(str(out), quiet=True).errors


def test_a_file_that_may_not_be_read_is_not_put_aside(out, monkeypatch):
    file = sorted((out / "scores/alpha").iterdir())[0]
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    assert len(read_status(to_uri(out))) == 9  # no file at all to Arrow
    file.unlink()
    file.write_bytes(content[:-9])

    def refuse(uri, limit):
        raise ImageError("permission to read the file was refused")

    monkeypatch.setattr("mvad.storage.read_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot be read \(permission to read the file was refused\)"):
        set_aside_damaged(to_uri(out))
    assert file.exists()


def text(folder):
    (folder / "mask.txt").write_text("mask")
    return (folder / "mask.txt").as_uri()


def truncated_png(folder):
    uri = draw(folder / "cut.png")
    data = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    return uri


def pipe(folder):
    os.mkfifo(folder / "pipe.png")
    return (folder / "pipe.png").as_uri()


MASKS = {
    "missing": lambda folder: (folder / "gone.png").as_uri(),
    "a folder": lambda folder: folder.as_uri(),
    "a device": lambda folder: "file:///dev/zero",
    "a pipe": pipe,
    "text": text,
    "truncated": truncated_png,
    "another scheme": lambda folder: "ftp://host/mask.png",
    "a path": lambda folder: "masks/mask.png",
    "no URI": lambda folder: "http://[::1",
    "control characters": lambda folder: "file:///a\x00b.png",
}


@pytest.mark.parametrize("kind", MASKS)
def test_an_odd_mask_is_a_note_of_its_category(tmp_path, kind):
    folder, mask = tmp_path / "out", (tmp_path / "mask.png").as_uri()
    marked = np.zeros((96, 96), np.uint8)
    marked[40:60, 40:60] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    odd = MASKS[kind](tmp_path)
    masks = {"alpha": [mask, odd, mask], "beta": [mask] * 3}
    facts = {name: write_category(folder, name, rows_of(tmp_path, name, masks[name])) for name in masks}
    finish(folder, facts)
    result = mvad.evaluate(str(folder), quiet=True)
    alpha, beta, _ = result.summary
    assert alpha["note"].startswith("pixel metrics without 1 mask that cannot be used: ")
    assert "\n" not in alpha["note"]
    assert (alpha["image_auroc"], beta["image_auroc"], beta["note"]) == (1.0, 1.0, None)
    assert None not in (alpha["pixel_auroc"], beta["pixel_auroc"])


READERS = {
    "scores": lambda out: read_scores(out, ["image_id", "score"]),
    "images": lambda out: read_images(out, "alpha", ["alpha/1.png", "alpha/4.png"], ["image_id", "score"]),
    "status": lambda out: read_status(out).drop_columns(["file"]).sort_by("image_id"),
}


@pytest.fixture
def replace(out, monkeypatch):
    """A function after which a file of ``alpha`` gets another name each time that files have been listed, so often."""
    listed = store._dataset

    def replace(times):
        names = iter([f"part-{number:024x}.parquet" for number in range(times)])

        def list_and_replace(*arguments):
            dataset, name = listed(*arguments), next(names, None)
            if name is not None:
                file = sorted(out.glob("scores/*alpha/*.parquet"))[0]
                file.rename(file.with_name(name))
            return dataset

        monkeypatch.setattr(store, "_dataset", list_and_replace)

    return replace


@pytest.mark.parametrize("reader", READERS)
def test_rows_are_all_there_while_files_are_replaced(out, replace, reader):
    expected = READERS[reader](to_uri(out))
    replace(times=3)
    assert READERS[reader](to_uri(out)).equals(expected)


@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_replaced_again_and_again_are_a_sentence(out, replace, reader):
    replace(times=100)
    with pytest.raises(ResultsError, match=r"\.parquet was replaced while it was read; try again\.$"):
        READERS[reader](to_uri(out))
