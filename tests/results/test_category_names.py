"""Results of categories with any name, as other programs read them; and results of the older form."""

import json
import shutil

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mvad
from helpers.synthetic import finish, write_category
from mvad import results
from mvad.comparison.printed import show_comparison
from mvad.comparison.table import comparison_table
from mvad.comparison.variants import Line
from mvad.console import Reporter
from mvad.options import ReportOptions
from mvad.reports.page import read_overview
from mvad.results.printed import print_night, print_summary
from mvad.storage import folder_name, to_uri

HARD = [
    "x" * 255,
    "铝合金压铸件左侧面视觉检测工位三号相机白班生产线物料编号甲乙丙",
    "Αλουμινένιο_περίβλημα_αριστερή_πλευρά_κάμερα_3_γραμμή",
    "__HIVE_DEFAULT_PARTITION__",
    "a=b",
    "line\nbreak\x07",
    "..",
    "01",
    "1",
    "Cap",
    "cap",
    "mean",
    " ",
    "100%",
    "\\udcff",
]


def rows(name, count=2):
    return [
        {"image_id": f"{name}/{n}.png", "uri": f"file:///{n}.png", "score": n, "label": n % 2} for n in range(count)
    ]


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    out = tmp_path_factory.mktemp("hard")
    finish(out, {name: write_category(out, name, rows(name)) for name in HARD})
    return out


def test_every_folder_is_short_and_holds_one_category(hard):
    folders = list((hard / "scores").iterdir())
    assert len({folder.name.lower() for folder in folders}) == len(HARD)
    for folder in folders:
        assert folder.name.isascii()
        assert "=" not in folder.name
        assert len(folder.name) <= 60
        for file in folder.iterdir():
            statistics = pq.ParquetFile(file).metadata.row_group(0).column(2).statistics
            assert pq.read_schema(file).names[2] == "category"
            assert statistics.min == statistics.max


def test_other_programs_read_every_name(hard):
    expected = sorted(name for name in HARD for _ in range(2))
    place = str(hard / "scores")
    assert sorted(pandas.read_parquet(place)["category"]) == expected
    assert sorted(polars.read_parquet(f"{place}/**/*.parquet")["category"]) == expected
    assert sorted(polars.read_parquet(f"{place}/", hive_partitioning=True)["category"]) == expected
    found = duckdb.sql(f"select category from read_parquet('{place}/*/*.parquet')").fetchall()
    assert sorted(name for (name,) in found) == expected
    part = next((hard / "scores").glob("*/*.parquet"))
    assert set(pandas.read_parquet(part)["category"]) < set(HARD)
    joined = pandas.read_parquet(place).merge(pandas.read_parquet(hard / "summary.parquet"), on="category")
    assert len(joined) == len(expected) + 2  # a category may be called mean


@pytest.mark.parametrize("name", HARD)
def test_a_category_is_read_by_its_name(hard, name):
    table = results.read_scores(to_uri(hard), category=name)
    assert table["category"].to_pylist() == [name] * 2
    assert results.read_images(to_uri(hard), name, [f"{name}/1.png"], ["score"])["score"].to_pylist() == [1.0]
    assert [category for category, _ in results.list_parts(to_uri(hard), name)] == [name]


def test_a_category_called_mean_is_no_mean(tmp_path, capsys):
    """In every table, the mean is the last row, whatever categories are called."""
    images = [{"image_id": f"{n}.png", "uri": f"file:///{n}.png", "score": n, "label": n % 2} for n in range(4)]
    calibration = {"calibration": range(100), "threshold": 2.5}
    names = ("cap", "mean")
    facts = {
        name: write_category(
            tmp_path, name, [{**row, "image_id": f"{name}/{row['image_id']}"} for row in images], **calibration
        )
        for name in names
    }
    summary = finish(tmp_path, facts)
    assert [row["category"] for row in summary] == ["cap", "mean", "mean"]
    assert [row["n_good"] for row in summary] == [2, 2, 4]
    for print_table, lines in ((print_summary, 3), (print_night, 2)):
        print_table(Reporter(), summary, facts, to_uri(tmp_path))
        out = capsys.readouterr().out.split("most anomalous")[0].splitlines()
        assert [line.split()[0] for line in out[1 : 1 + lines]] == ["cap", "mean", "all"][:lines]
        assert sum(line.startswith("mean") for line in out[: 1 + lines]) == 1
    overview = read_overview(to_uri(tmp_path), {"categories": facts}, ReportOptions())
    assert {category.name: category.summary["n_good"] for category in overview.categories} == {"cap": 2, "mean": 2}
    assert overview.mean["n_good"] == 4


def test_a_category_called_mean_is_compared(capsys):
    numbers = {
        "backbone": "b",
        "n_train": 8,
        "pixel_auroc": None,
        "pixel_aupro": None,
        "pixel_ap": None,
        "fit_seconds": 1.0,
    }
    numbers |= {"score_seconds": 1.0, "model_bytes": 1e6, "n_scored": 8}
    cells = {("knn", "cap"): {**numbers, "image_auroc": 0.5, "note": None}}
    cells["knn", "mean"] = {**numbers, "image_auroc": None, "note": "no model: why"}
    rows = comparison_table({Line("knn"): ["knn"]}, cells, {}, ["cap", "mean"]).to_pylist()
    show_comparison(rows, ["cap", "mean"], Reporter())
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:4] == ["method", "cap", "mean", "mean"]
    assert out[1].split()[:4] == ["knn", "0.500", "failed", "0.500"]
    assert out[-1] == "knn failed on mean: no model: why"


def older(out):
    """Bring results to their older form: a folder per category with a Hive key, and no such column in the files."""
    for folder in list((out / "scores").iterdir()):
        for file in folder.iterdir():
            table = pq.read_table(file, partitioning=None)
            place = out / "scores" / f"category={folder_name(table['category'][0].as_py())}"
            place.mkdir(exist_ok=True)
            pq.write_table(table.drop_columns(["category"]), place / file.name)
        shutil.rmtree(folder)


def test_results_of_the_older_form_are_read(base_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    expected = results.read_scores(to_uri(out))
    older(out)
    assert results.read_scores(to_uri(out)).equals(expected)
    assert results.read_scores(to_uri(out), category="beta")["category"].to_pylist() == ["beta"] * 8
    assert [name for name, _ in results.list_parts(to_uri(out))] == ["alpha", "beta"]
    assert mvad.evaluate(str(out), quiet=True).summary == base_run[1].summary
    mvad.report(str(out), quiet=True)
    assert (out / "report.html").exists()


def test_results_of_the_older_form_are_resumed(base_run, tiles, tmp_path):
    out, models = tmp_path / "out", str(base_run[0] / "models")
    mvad.score(str(tiles), models, str(out), categories="alpha", actors=1, quiet=True)
    older(out)
    before = results.read_scores(to_uri(out))
    mvad.score(str(tiles), models, str(out), actors=1, quiet=True)
    after = results.read_scores(to_uri(out))
    assert len(after) == 16
    assert after.filter(pa.compute.equal(after["category"], "alpha")).equals(before)
    assert sorted(folder.name for folder in (out / "scores").iterdir()) == ["beta", "category=alpha"]
    run = json.loads((out / "run.json").read_text())
    assert (run["n_rows"], len(run["earlier_runs"])) == (16, 1)
