"""Names that somebody chose: at a terminal and in a log each is one line, in its own order, and forges none."""

import json
import re

import pytest

from mvad import console
from mvad.console import Reporter, as_document
from mvad.storage.text import one_printable_line, printable_json, shown_name

HARMFUL = ["\n", "\r", "\r\n", "\t", "\b", "\x00", "\x07", "\x1b[2J", "\x7f", "\x85", "\x9b31m", "\u2028", "\u2029"]
HARMFUL += ["\u202e", "\u2066", "\u200f", "\u061c", "\ufeff", "\udcff", "\U000e0001"]
FORGED = "cam2\n2026-11-23 cam1: OK, 0 of 100 images flagged"


@pytest.mark.parametrize("harmful", HARMFUL)
def test_what_would_do_more_than_show_is_escaped(harmful):
    line = one_printable_line(f"a{harmful}b")
    assert line.isprintable()
    assert re.fullmatch(r"a\\[xurntU].*b", line)
    document = printable_json(json.dumps({"a": harmful, "b": [1]}, indent=2, ensure_ascii=False))
    assert document.replace("\n", "").isprintable()
    assert json.loads(document) == {"a": harmful, "b": [1]}


@pytest.mark.parametrize(
    "text", ["bottle", "铝合金 甲", "Prüfplatz", "[red]x[/red]", ":OK:", "a\\nb", "a\u3000b", "🔩", ""]
)
def test_what_only_shows_stays(text):
    assert one_printable_line(text) == text


def test_keys_never_show():
    for uri in ("s3://KEY:SECRET@bucket/a", "s3://KEY:SE/CR+ET@bucket/a", "ftp://KEY:SECRET@host"):
        line = one_printable_line(f"cannot read {uri}: {uri}, for a@b")
        assert "SECRET" not in line.replace("/", "").replace("+", "")
        assert "KEY" not in line
        assert line.endswith("for a@b")
    assert (
        one_printable_line("http://127.0.0.1:8000/ and gs://anonymous@b")
        == "http://127.0.0.1:8000/ and gs://anonymous@b"
    )


@pytest.mark.parametrize("name", ["line1: OK", "a  b", " a", "a ", "", '"a"', "'a'", "a:\tb"])
def test_a_name_that_could_be_more_is_in_quotes(name):
    assert shown_name(name).startswith('"')
    assert shown_name(name).endswith('"')


@pytest.mark.parametrize("name", ["bottle", "metal nut", "L3:OK", "铝合金", "a, b"])
def test_other_names_stay(name):
    assert shown_name(name) == name


@pytest.mark.parametrize("method", ["info", "warn", "result"])
@pytest.mark.parametrize("text", [FORGED, "L3:OK :warning: [bold]x[/bold] [/]", "\x1b[2Jall is well", "s3://K:S@b"])
def test_lines_are_printed_as_they_are(capsys, method, text):
    getattr(Reporter(), method)(text)
    printed = "".join(capsys.readouterr())
    assert printed == ("warning: " if method == "warn" else "") + one_printable_line(text) + "\n"


def test_names_in_tables_forge_no_line(capsys):
    name = "c" * 90 + " 2026-11-23 cam1: OK, 0 of 100 images flagged and more" * 3
    rows = [[name, "1"], [FORGED, "2"], ["L3:OK", "3"], ["cam1  OK  100", "4"], ["", "5"]]
    Reporter().table(["category"], ["a:OK:b\u2028", "[b]"], [[*row, "0"] for row in rows])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["category", '"a:OK:b\\u2028"', "[b]"]
    assert not any(line.startswith(("2026", "cam1")) for line in lines)
    assert [line.split()[-2] for line in lines if line.endswith(" 0")] == ["1", "2", "3", "4", "5"]
    assert max(map(len, lines)) <= console.WIDTH
    text = "".join(line.removeprefix(console.INDENT).removesuffix(" 0").rstrip(" 1") for line in lines[:4])
    assert text.replace(" ", "").strip('"').startswith(name[:100].replace(" ", ""))


def test_wide_characters_in_tables_are_whole(capsys):
    Reporter().table(["category"], ["n"], [["铝合金压铸件左侧面视觉检测工位三号相机白班生产线物料编号甲乙丙" * 4, "7"]])
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split("7")[0].strip() for line in lines[1:]).count("铝合金压铸件") == 4


def test_documents_hold_no_character_that_a_terminal_obeys():
    text = as_document({"summary": [{"category": "a\u202e\x9b\n", "x": float("nan")}]})
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"summary": [{"category": "a\u202e\x9b\n", "x": None}]}
