"""Images come in portions while others are still being listed: each once, and the same as in a single listing."""

import itertools
import threading
import time

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mvad
from helpers.tiles import tree
from helpers.waits import wait_until
from mvad import results, storage
from mvad.data import listing
from mvad.data.layouts import plain
from mvad.data.listing import Listing, in_portions
from mvad.data.manifest import SCHEMA, read_manifest
from mvad.errors import UsageError
from mvad.options import DataOptions
from mvad.results.store import drop_rows
from mvad.runtime.stage_totals import StageTotals
from mvad.storage import FileEntry, to_uri


def table(*names):
    return plain.read(
        "file:///", [FileEntry(f"cap/{name}.png", f"file:///cap/{name}.png") for name in names], None
    ).table


def names(portion):
    return [name.removeprefix("cap/").removesuffix(".png") for name in portion["image_id"].to_pylist()]


IMMEDIATELY = {"wait_s": 0.0, "min_rows": 1, "max_pending_rows": 1 << 18}


@pytest.fixture
def page_by_page(monkeypatch):
    """One portion per folder, as if each took long to list."""

    def one_by_one(tables, **_):
        portions = [table for table in tables if len(table)]
        yield from ((table, False) for table in portions)
        yield SCHEMA.empty_table(), True

    monkeypatch.setattr(listing, "in_portions", one_by_one)
    return monkeypatch


def test_a_quick_listing_is_a_single_portion():
    patient = {"wait_s": 10.0, "min_rows": 2048, "max_pending_rows": 1 << 18}
    ((portion, ended),) = in_portions([table("a"), table("b"), table()], **patient)
    assert names(portion) == ["a", "b"]
    assert ended
    ((empty, ended),) = in_portions([], **patient)
    assert empty.schema == SCHEMA
    assert ended


def test_portions_grow_and_tables_are_taken_while_the_consumer_is_busy():
    taken = {name: threading.Event() for name in "abcdef"}
    go_on = {name: threading.Event() for name in "abcdef"}

    def slow():
        for name in "abcdef":
            go_on[name].wait(10)
            yield table(f"{name}1", f"{name}2")
            taken[name].set()  # when the next one is asked for

    go_on["a"].set()
    portions = in_portions(slow(), **IMMEDIATELY)
    assert [names(portion) for portion, _ in itertools.islice(portions, 1)] == [["a1", "a2"]]
    go_on["b"].set()
    go_on["c"].set()
    assert taken["c"].wait(10)  # while nobody asks for a portion
    portion, ended = next(portions)
    assert names(portion) == ["b1", "b2", "c1", "c2"]
    assert not ended
    go_on["d"].set()  # two rows, fewer than twice the four of the portion before
    assert taken["d"].wait(10)
    threading.Timer(0.2, lambda: [go_on[name].set() for name in "ef"]).start()
    portion, ended = next(portions)
    assert names(portion) == ["d1", "d2", "e1", "e2", "f1", "f2"]
    assert ended
    assert next(portions, None) is None


def test_the_number_of_pending_rows_is_limited():
    asked, threads = [], set(threading.enumerate())

    def endless():
        for number in itertools.count():
            asked.append(number)
            yield table(f"{number}")

    portions = in_portions(endless(), wait_s=0.0, min_rows=1, max_pending_rows=3)
    for _ in range(5):
        before = len(asked)
        portion, _ = next(portions)
        assert 1 <= len(portion) <= 3
        time.sleep(0.05)
        assert len(asked) <= before + 8  # the last portion, what is pending, and one more
    portions.close()
    wait_until(lambda: threads.issuperset(threading.enumerate()), "the end of the thread")


def test_an_error_of_the_listing_reaches_the_consumer():
    def broken():
        yield table("a")
        raise UsageError("the store is gone.")

    with pytest.raises(UsageError, match="the store is gone"):
        list(in_portions(broken(), **IMMEDIATELY))


DUMP = (
    "line1/2026/a.png",
    "line1/b.webp",
    "line2/c.bmp",
    "line2/notes.txt",
    "line3/empty.txt",
    "top.png",
    ".hid/d.png",
)


@pytest.mark.parametrize("options", [{}, {"categories": "line1"}, {"category": "all"}, {"layout": "plain"}])
def test_portions_are_the_manifest(tmp_path, page_by_page, options):
    """The dump has folders without images, images without a folder, and hidden ones."""
    tree(tmp_path, *DUMP)
    manifest = read_manifest(str(tmp_path), DataOptions(**options))
    images = Listing(str(tmp_path), DataOptions(**options))
    assert not images.ended
    assert set(images.categories) >= set(manifest.categories)
    portions = list(images)
    assert len(portions) > 1
    joined = pa.concat_tables(portions).sort_by([("category", "ascending"), ("image_id", "ascending")])
    assert joined.equals(manifest.table)
    assert images.ended
    assert images.categories == manifest.categories
    assert images.n_images == images.n_test == manifest.n_images
    assert images.left_out.equals(manifest.left_out)
    assert images.others == manifest.others
    assert list(images.tally.lines({})) == list(manifest.tally.lines({}))


@pytest.mark.parametrize(
    ("paths", "options"),
    [
        (("cap/train/good/a.png", "cap/test/bad/b.png", "cap/test/good/c.png"), {}),  # a labelled tree
        (("test/bad/b.png", "train/good/a.png"), {}),  # a single category as ROOT
        (DUMP, {"limit": 1}),
    ],
)
def test_what_depends_on_all_files_is_listed_completely_first(tmp_path, page_by_page, paths, options):
    tree(tmp_path, *paths)
    manifest = read_manifest(str(tmp_path), DataOptions(**options))
    images = Listing(str(tmp_path), DataOptions(**options))
    assert images.ended
    assert images.categories == manifest.categories
    assert images.n_images == manifest.n_images
    (portion,) = images
    assert portion.equals(manifest.split("test"))
    assert images.n_test == len(portion)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (("a/x.txt",), {}, "no images under"),
        (DUMP, {"layout": "mvtec"}, "none where the mvtec layout keeps them"),
        (("top.png", "a/x.txt"), {}, "their category is unknown"),
        (("a/b.png",), {"categories": "cap"}, "unknown category 'cap'; .* has: a"),
    ],
)
def test_bad_input_has_the_messages_of_the_manifest(tmp_path, paths, options, message):
    tree(tmp_path, *paths)
    for read in (read_manifest, Listing):
        with pytest.raises(UsageError, match=message):
            read(str(tmp_path), DataOptions(**options))
    with pytest.raises(UsageError, match=r"no such folder: .* does not exist"):
        Listing(str(tmp_path / "nowhere"), DataOptions())


def test_an_unknown_category_is_an_error_before_the_listing_ends(tmp_path, page_by_page):
    tree(tmp_path, *DUMP)
    with pytest.raises(UsageError, match=r"unknown category 'cap'; .* has: line1, line2, line3"):
        Listing(str(tmp_path), DataOptions(categories="cap"))


PARTS = st.sampled_from(["test", "train", "good", "ok", "bad", "cap", "split_csv"])
PATHS = st.lists(PARTS, min_size=0, max_size=4).map(lambda parts: "/".join([*parts, "a.png"]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(paths=st.lists(PATHS, min_size=1, max_size=6, unique=True))
def test_what_is_surely_plain_is_plain(tmp_path_factory, paths):
    root = tree(tmp_path_factory.mktemp("dump"), *paths)
    if plain.surely_plain(to_uri(root), storage.list_subfolders(to_uri(root))):
        manifest = read_manifest(str(root), DataOptions(category="any"))
        assert manifest.categories == ["any"]  # other layouts ignore --category
        assert manifest.n_images == len(paths)


def test_scoring_in_portions_gives_the_rows_of_a_single_portion(tmp_path, tiles, base_run, page_by_page):
    """A resumed run too; a folder without images is not a category, one without a model has error rows."""
    dump, models = tmp_path / "dump", str(base_run[0] / "models")
    for name in ("alpha/spot", "beta/good"):
        category, kind = name.split("/")
        (dump / category).mkdir(parents=True, exist_ok=True)
        (dump / name).symlink_to(tiles / category / "test" / kind)
    tree(dump, "empty/notes.txt", "gamma/a.png")
    options, totals, get_totals = {"actors": 1, "quiet": True}, [], StageTotals.get
    page_by_page.setattr(StageTotals, "get", lambda stage: totals.append(get_totals(stage)) or totals[-1])
    result = mvad.score(str(dump), models, str(tmp_path / "out"), **options)
    # Every portion has an actor of its own, whose seconds count in full.
    seconds = [row["score_seconds"] for row in result.summary[:-1] if row["score_seconds"] is not None]
    assert sum(seconds) == pytest.approx(sum(totals[-1].seconds.values()))
    rows = results.read_scores(to_uri(tmp_path / "out"), ["image_id", "score", "error"])
    assert [row["category"] for row in result.summary] == ["alpha", "beta", "gamma", "mean"]
    assert [error["image_id"] for error in result.errors] == ["gamma/a.png"]
    lost = [name for name in rows["image_id"].to_pylist() if name.startswith("beta/")][::2]
    drop_rows(to_uri(tmp_path / "out"), lost)
    mvad.score(str(dump), models, str(tmp_path / "out"), **options)
    assert results.read_scores(to_uri(tmp_path / "out"), ["image_id", "score", "error"]).equals(rows)
    page_by_page.undo()
    whole = mvad.score(str(dump), models, str(tmp_path / "whole"), **options)
    assert results.read_scores(to_uri(tmp_path / "whole"), ["image_id", "score", "error"]).equals(rows)
    assert [row["category"] for row in whole.summary] == ["alpha", "beta", "gamma", "mean"]
