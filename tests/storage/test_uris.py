"""Names of files and folders, without any I/O."""

import hashlib
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.tiles import ROOT
from mvad import storage
from mvad.storage import safe_name

SURROGATES = st.text(st.characters(), max_size=300)  # lone surrogates too
SAFE_CHARACTERS = string.ascii_letters + string.digits + "-_."
NEARLY_SAFE = st.text(SAFE_CHARACTERS + " =/\u00e9\x00", max_size=60)
NAMES = SURROGATES | NEARLY_SAFE
WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def hashed(name, stem):
    return f"{stem}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


@pytest.mark.parametrize("name", ["bottle", "metal_nut", "line-3", "01", "pcb1.5", "a" * 40, "category"])
def test_a_short_safe_name_stays_as_it_is(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("n" * 255, "n" * 40),
        ("a" * 41, "a" * 40),
        ("\u74f6" * 29, "name"),
        ("__HIVE_DEFAULT_PARTITION__", "HIVE_DEFAULT_PARTITION"),
        ("two\nlines\x07", "two_lines"),
        ("\udcff\udcfe", "name"),
        ("", "name"),
        (".", "name"),
        ("..", "name"),
        (".hidden", "hidden"),
        ("_metadata", "metadata"),
        ("trailing.", "trailing"),
        ("trailing ", "trailing"),
        ("CON", "CON"),
        ("con", "con"),
        ("lpt1.txt", "lpt1_txt"),
        ("a=b", "a_b"),
        ("a/b", "a_b"),
        ("a b", "a_b"),
        ("Bottle", "Bottle"),
        ("BOTTLE", "BOTTLE"),
        ("bottle-0123456789abcdef", "bottle-0123456789abcdef"),  # ends like the hash of another name
    ],
)
def test_any_other_name_has_a_hash(name, stem):
    assert safe_name(name) == hashed(name, stem)


def test_names_that_differ_by_capitals_only_differ_without_them():
    names = ["bottle", "Bottle", "BOTTLE", "bOTTLE"]
    assert len({safe_name(name).lower() for name in names}) == len(names)


@given(NAMES)
@example("con.txt")
@example("AUX.")
@example("x" * 39 + ".y")
@example("\ud800")
def test_a_safe_name_is_one_short_folder_on_every_system(name):
    folder = safe_name(name)
    assert folder == safe_name(name)
    assert 0 < len(folder.encode("ascii")) <= 60
    assert set(folder) <= set(SAFE_CHARACTERS)
    assert folder[0] not in "._-"
    assert folder[-1] != "."
    assert folder.split(".")[0].lower() not in WINDOWS_DEVICES


@given(st.lists(NAMES | st.sampled_from(["a", "A", "a-00000000", "con", "CON"]), unique=True, min_size=2, max_size=20))
def test_different_names_differ_in_more_than_capitals(names):
    assert len({safe_name(name).casefold() for name in names}) == len(names)


@given(NAMES)
def test_the_safe_name_of_a_name_is_not_that_of_its_result(name):
    folder = safe_name(name)
    assert folder == name or safe_name(folder) != folder


@pytest.mark.parametrize("options", ["", "?endpoint_override=http://store:9000/a&scheme=http"])
def test_the_parts_of_a_uri_leave_its_options_alone(options):
    uri = storage.join(f"s3://plant/nights{options}", "date=2026-11-23", "a b#1%.parquet")
    assert storage.name_of(uri) == "a b#1%.parquet"
    assert storage.name_of(storage.parent(uri)) == "date=2026-11-23"
    assert storage.join(storage.parent(uri), storage.name_of(uri)) == uri
    assert storage.sibling(uri, "x") == storage.join(f"s3://plant/nights{options}", "date=2026-11-23", "x")


def test_nobody_cuts_a_uri_by_hand():
    """Behind the last slash there may be connection options, which have slashes themselves."""
    cut = re.compile(r"""(uri|folder|root|target|source|out)s?(\[\d\])?\.r?(partition|split)\(["']/["']""")
    found = [
        f"{file.name}: {line}"
        for file in (ROOT / "mvad").rglob("*.py")
        for line in file.read_text().splitlines()
        if cut.search(line)
    ]
    assert cut.search('uris[0].rsplit("/", 2)')
    assert found == []
