"""The pages of ``docs/`` are complete and current."""

import re

import pytest

from helpers.cli_page import cli_page
from helpers.tiles import ROOT

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
