"""The pages of ``docs/`` are complete and current."""

import re

import duckdb
import pytest

from helpers.cli_page import cli_page
from helpers.score_files import write_rows
from helpers.tiles import ROOT
from mvad.exports.label_studio import CONFIG

PAGES = [ROOT / "README.md", ROOT / "cluster/README.md", *sorted(ROOT.glob("docs/*.md"))]


def test_the_page_of_the_command_line_is_current():
    assert (ROOT / "docs/cli.md").read_text() == cli_page(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), flags=re.M)
            assert anchor[1:] in {heading_anchor(heading) for heading in headings}, f"{page.name}: {target}{anchor}"


def heading_anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_links_every_page():
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/{page.name})" in readme for page in ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_a_table_ends_with_an_empty_line_and_has_as_many_cells_in_each_row(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.M):
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(rows)) == 1, table.splitlines()[0]
    assert not re.search(r"^\|.*\n(?=[^|\n])", text, flags=re.M)


def section(page, heading):
    return re.search(rf"^## {heading}\n(.*?)^## ", (ROOT / page).read_text(), flags=re.S | re.M)[1]


def test_the_queries_of_a_year_of_nights_count_old_and_new_rows(tmp_path, monkeypatch):
    later = ["night", "scored_at", "method", "backbone"]
    flagged, good = {"is_anomaly": True, "regions": []}, {"is_anomaly": False}
    write_rows(tmp_path / "nights/date=2026-11-22", "cap", [{"image_id": "a", **flagged}, {"image_id": "b"}], later)
    write_rows(tmp_path / "nights/date=2026-11-23", "cap", [{"image_id": "a", **good}])
    write_rows(tmp_path / "nights/date=2026-11-23", "lid", [{"image_id": "c", **flagged}, {"image_id": "d", **flagged}])
    monkeypatch.chdir(tmp_path)
    text = section("docs/results.md", "A year of nights")
    of_pandas, of_polars = {}, {}
    for code, names in zip(
        re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M), (of_pandas, of_polars), strict=True
    ):
        exec(code, names)
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, flags=re.S | re.M)
    found = [
        [tuple(row) for row in of_pandas["counts"].reset_index().itertuples(index=False)],
        of_polars["counts"].rows(),
        duckdb.sql(sql).fetchall(),
    ]
    expected = [("2026-11-22", "cap", 2, 1), ("2026-11-23", "cap", 1, 0), ("2026-11-23", "lid", 2, 2)]
    assert [[(str(date), *counts) for date, *counts in rows] for rows in found] == [expected] * 3
    assert set(later) <= {*of_pandas["rows"].columns} & {*of_polars["rows"].collect_schema().names()}


def test_the_labels_for_label_studio_are_those_of_the_tasks():
    (config,) = re.findall(r"^```xml\n(.*?)^```", (ROOT / "docs/results.md").read_text(), flags=re.S | re.M)
    assert config == CONFIG
