"""What an inspection says of a folder before any model is fitted."""

import io
import json
import re

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

import mvad
from helpers.browser import visit
from helpers.tiles import paint
from helpers.wide_samples import png16
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.layouts import left_out_row, left_out_table
from mvad.data.manifest import SCHEMA, Manifest
from mvad.errors import UsageError
from mvad.html import charts
from mvad.inspection import Inspection, embedding, findings, outliers, page, print_inspection, table
from mvad.inspection.distributed import DIMENSIONS
from mvad.inspection.measure import measure, measure_batch, sharpness, thumbnail
from mvad.options import InspectOptions
from mvad.search import duplicates
from mvad.search.coreset import random_projection
from mvad.search.fingerprints import FINGERPRINT_SIDE
from mvad.storage import FileEntry

MAX_PIXELS = 10**7


def scene(seed, side=120):
    """A smooth random picture over stripes that all scenes share, (side, side) float."""
    random = np.random.default_rng(seed)
    rough = gaussian_filter(random.normal(size=(side, side)), side / 24)
    common = 60 * np.sin(np.arange(side) / 9)[:, None] * np.ones(side)
    return 128 + common + 25 * rough / rough.std()


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, **options)
    return path


def measured(paths, size=None, bit_depth=16):
    uris = np.array([path.as_uri() for path in paths], object)
    batch = {"row": np.arange(len(uris)), "uri": uris, "category": np.full(len(uris), "a", object)}
    return measure_batch(batch, size, MAX_PIXELS, {"a": bit_depth}, first_page=False)


def test_what_is_measured(tmp_path):
    grey = np.zeros((20, 30), np.uint8)
    grey[:, 15:] = 200
    path = save(tmp_path / "half.png", grey)
    measurement, image = measure(path.as_uri(), MAX_PIXELS)
    assert (measurement.format, measurement.mode, measurement.width, measurement.height) == ("PNG", "L", 30, 20)
    assert measurement.bytes == path.stat().st_size
    assert (measurement.brightness, measurement.contrast) == (100, 100)
    # Two of 30 columns are next to the step; their Laplacian is -200 and 200.
    assert measurement.sharpness == pytest.approx(np.sqrt(2 / 30 * 200**2) / 100, rel=1e-5)
    assert image.size == (30, 20)
    assert measurement.fingerprint.shape == (FINGERPRINT_SIDE, FINGERPRINT_SIDE)
    broken = tmp_path / "broken.png"
    broken.write_bytes(path.read_bytes()[:60])
    bad, image = measure(broken.as_uri(), MAX_PIXELS)
    assert image is None
    assert bad.error
    assert (bad.bytes, bad.format) == (60, "")
    assert measure((tmp_path / "none.png").as_uri(), MAX_PIXELS)[0].bytes == -1
    assert "max-pixels" in measure(path.as_uri(), 100)[0].error
    assert thumbnail(broken.as_uri(), MAX_PIXELS) == b""
    small = Image.open(io.BytesIO(thumbnail(save(tmp_path / "long.png", np.zeros((50, 400))).as_uri(), MAX_PIXELS)))
    assert small.size == (128, 16)


def test_sharpness_falls_with_blur_and_not_with_light():
    picture = Image.fromarray(paint(np.random.default_rng(0))[0])
    sharp = sharpness(np.asarray(picture))
    assert sharpness(np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))) < 0.5 * sharp
    assert sharpness((np.asarray(picture) * 0.5).round().astype(np.uint8)) == pytest.approx(sharp, rel=0.05)
    assert sharpness(np.full((1, 1), 7, np.uint8)) == 0


def test_pixels_for_the_backbone_are_those_of_scoring(tmp_path):
    from mvad.data.images import load_image

    path = save(tmp_path / "a.png", scene(0))
    size = ImageSize.square(64, 48)
    np.testing.assert_array_equal(measured([path], size)["pixels"][0], load_image(path.as_uri(), size, MAX_PIXELS)[0])


def test_twelve_bits_in_sixteen_are_not_dark(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png16(np.full((8, 8), 4095, np.uint16)))
    assert measured([path], bit_depth=12)["brightness"].tolist() == [255]
    assert thumbnail(path.as_uri(), MAX_PIXELS, 12) != thumbnail(path.as_uri(), MAX_PIXELS)


def test_the_same_pixels_in_other_files(tmp_path):
    first = save(tmp_path / "a.png", scene(0))
    copy = tmp_path / "b.png"
    copy.write_bytes(first.read_bytes())
    paths = [save(tmp_path / "x.png", scene(1)), first, copy, save(tmp_path / "c.bmp", scene(0))]
    columns = measured(paths)
    np.testing.assert_array_equal(duplicates.exact_duplicates(columns["pixel_digest"]), [-1, 0, 0, 0])
    np.testing.assert_array_equal(duplicates.exact_duplicates(columns["file_digest"]), [-1, 0, 0, -1])
    # The same values in another shape make another picture.
    flat = measured([save(tmp_path / "d.png", np.zeros((4, 6))), save(tmp_path / "e.png", np.zeros((6, 4)))])
    np.testing.assert_array_equal(duplicates.exact_duplicates(flat["pixel_digest"]), [-1, -1])


def variants(tmp_path):
    """Copies of scene 0 that a person would call the same picture."""
    light = np.linspace(0.75, 1.15, 120)
    yield save(tmp_path / "bright.png", scene(0) * 1.2)
    yield save(tmp_path / "dark.png", scene(0) * 0.6)
    yield save(tmp_path / "side.png", scene(0) * light)
    yield save(tmp_path / "again.jpg", scene(0), quality=50)
    small = tmp_path / "small.png"
    Image.open(tmp_path / "again.jpg").resize((60, 60)).save(small)
    yield small


def test_near_duplicates_under_another_light_size_and_compression(tmp_path):
    others = [save(tmp_path / f"{seed}.png", scene(seed)) for seed in range(30)]
    copies = list(variants(tmp_path))
    near = duplicates.near_duplicates(measured([*others, *copies])["fingerprint"])
    np.testing.assert_array_equal(near.group, [0, *[-1] * 29, *[0] * len(copies)])
    assert (near.similarity[near.group == 0] > duplicates.MIN_CORRELATION).all()
    assert np.isnan(near.similarity[1:30]).all()
    members = np.flatnonzero(near.group == 0)
    assert set(near.nearest[members]) <= set(members)
    assert all(near.nearest[member] != member for member in members)


def test_near_duplicates_among_few_images_or_copies_of_one(tmp_path):
    few = [save(tmp_path / f"{seed}.png", scene(seed)) for seed in range(3)]
    copy = tmp_path / "copy.jpg"
    Image.open(few[0]).save(copy, quality=95)
    near = duplicates.near_duplicates(measured([*few, copy])["fingerprint"])
    np.testing.assert_array_equal(near.group, [0, -1, -1, 0])
    one = duplicates.near_duplicates(np.repeat(measured(few[:1])["fingerprint"], 20, axis=0))
    assert set(one.group) == {0}
    black = duplicates.near_duplicates(np.zeros((20, FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8))
    assert set(black.group) == {-1}
    assert len(duplicates.near_duplicates(np.zeros((0, FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8)).group) == 0


def test_the_search_in_cells_finds_what_the_exact_one_finds():
    random = np.random.default_rng(0)
    fingerprints = random.integers(0, 256, (600, FINGERPRINT_SIDE, FINGERPRINT_SIDE)).astype(np.uint8)
    fingerprints[1::2] = np.clip(fingerprints[::2] * 0.9 + 5, 0, 255)
    exact = duplicates.near_duplicates(fingerprints)
    assert len(set(exact.group)) == 300
    in_cells = duplicates.near_duplicates(fingerprints, max_exact_images=100)
    np.testing.assert_array_equal(in_cells.group, exact.group)


def test_images_that_differ_in_few_ways_are_not_duplicates():
    random = np.random.default_rng(0)
    phases = np.arange(FINGERPRINT_SIDE) * 2 * np.pi / 8
    grids = []
    for x, y in random.uniform(0, 2 * np.pi, (90, 2)):
        holes = 60 * (np.sin(phases + x)[:, None] + np.sin(phases + y))
        holes += random.normal(0, 12, (FINGERPRINT_SIDE, FINGERPRINT_SIDE))
        grids.append(np.clip(128 + holes, 0, 255).astype(np.uint8))
    fingerprints = np.stack([*grids, *grids[:5]])
    fingerprints[90:] = fingerprints[90:] * 0.9
    near = duplicates.near_duplicates(fingerprints)
    assert set(range(90, 95)) | set(range(5)) <= set(np.flatnonzero(near.group >= 0))
    assert (near.group[5:90] < 0).mean() > 0.8
    vectors = duplicates._unit(duplicates._remove_lighting(fingerprints[:90])[0])
    centred = duplicates._unit(vectors - vectors.mean(axis=0))
    products = (centred @ centred.T)[np.triu_indices(90, 1)]
    assert (products > duplicates.MIN_CORRELATION).sum() > 20  # false duplicates without the chance level
    assert duplicates.chance_level(centred) > 0.95


def test_the_chance_level_is_what_chance_reaches():
    random = np.random.default_rng(0)
    for dimensions in (4, 10, 40):
        vectors = random.normal(size=(400, dimensions)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        products = (vectors @ vectors.T)[np.triu_indices(400, 1)]
        # Half a pair is expected above the level, but many above four fifths of it.
        assert (products > duplicates.chance_level(vectors)).sum() <= 4
        assert (products > 0.8 * duplicates.chance_level(vectors)).sum() > 10


def test_outliers_and_their_reasons():
    random = np.random.default_rng(0)
    brightness = random.normal(120, 5, 40).astype(np.float32)
    contrast = np.full(40, 30, np.float32)
    sharp = random.normal(0.5, 0.02, 40).astype(np.float32)
    features = random.normal(size=(40, 16)).astype(np.float32) * 0.1
    brightness[3], brightness[4], sharp[5], contrast[6] = 20, 230, 0.1, 0.5
    features[7] += 5
    train = np.arange(40) < 30
    scores = outliers.find_outliers(brightness, contrast, sharp, features, train)
    reasons = {row: reason for row, reason in enumerate(scores.reasons) if reason}
    assert reasons == {
        3: "much darker",
        4: "much brighter",
        5: "blurred",
        6: "nearly one colour",
        7: "looks unlike the others",
    }
    expected = 0.6745 * (brightness - np.median(brightness[train]))
    expected /= np.median(np.abs(brightness[train] - np.median(brightness[train])))
    np.testing.assert_allclose(scores.brightness, expected, rtol=1e-5)
    few = outliers.find_outliers(brightness[:5], contrast[:5], sharp[:5], None, train[:5])
    assert np.isnan(few.brightness).all()
    assert few.reasons == [""] * 5


def test_embeddings_are_the_same_each_time_and_keep_different_images_apart():
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 1, (12, 8)), random.normal(9, 1, (12, 8))]).astype(np.float32)
    for method in ("pca", "tsne"):
        flat = embedding.embed(features, method)
        left, right = flat[:12], flat[12:]
        assert np.linalg.norm(left.mean(axis=0) - right.mean(axis=0)) > 2 * left.std()
    np.testing.assert_array_equal(embedding.embed(features, "pca"), embedding.embed(features, "pca"))


def test_embeddings_are_bounded():
    images = rows(image_id=[f"{number:03}" for number in range(40)], error=["bad"] + [None] * 39)
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float16)
    drawn = embedding.add_embedding(images, features, "pca", max_category_points=10)["map_x"].to_pylist()
    assert [number for number, x in enumerate(drawn) if x is not None] == [1, 5, 9, 14, 18, 22, 26, 31, 35, 39]


def test_a_projection_keeps_lengths():
    features = torch.randn(50, 1280, generator=torch.Generator().manual_seed(0))
    assert random_projection(features[:, :20], DIMENSIONS, seed=0).shape == (50, 20)
    projected = random_projection(features, DIMENSIONS, seed=0)
    assert projected.shape == (50, DIMENSIONS)
    assert abs(float((projected.norm(dim=1) / np.sqrt(1280)).mean()) - 1) < 0.1


def rows(**columns):
    """An image table with some columns set."""
    count = len(columns["image_id"])
    values = {"uri": ["file:///x"] * count, "category": ["c"] * count, "split": ["train"] * count} | columns
    width = {"width": [10] * count, "height": [10] * count, "format": ["PNG"] * count, "mode": ["RGB"] * count}
    plain = {"brightness": [100.0] * count, "contrast": [30.0] * count, "sharpness": [1.0] * count}
    values = width | plain | values
    return pa.table({name: values.get(name, [None] * count) for name in table.IMAGES.names}, schema=table.IMAGES)


def findings_of(images, left_out=()):
    rows = [left_out_row(FileEntry(name, f"file:///x/{name}"), "cap", "no place") for name in left_out]
    return findings.find_all(Manifest("file:///x", images.select(SCHEMA.names), left_out_table(rows)), images)


def test_findings_of_duplicates_name_the_leak():
    images = rows(
        image_id=list("abcdefgh"),
        split=["train"] * 4 + ["test"] * 4,
        label=[0, 0, 0, 0, 0, 0, 1, 1],
        defect=["good"] * 6 + ["dent"] * 2,
        mask_uri=[None] * 7 + ["file:///m"],
        duplicate_group=[0, 0, None, None, 0, 1, 1, None],
        near_group=[None, None, 0, 0, None, 0, None, None],
    )
    levels = {finding.text.split(":")[0]: finding.level for finding in findings_of(images)}
    assert levels["1 of 2 good test images is an exact duplicate of a training image"] == "warning"
    assert levels["1 of 2 good test images is a near duplicate of a training image"] == "warning"
    assert levels["1 training image is an exact duplicate of another"] == "note"
    assert levels["1 training image is a near duplicate of another"] == "note"
    assert levels["1 good test image is an exact duplicate of a defective one"] == "warning"
    assert levels["1 of 2 defective images has no mask and is left out of pixel metrics."] == "note"
    assert levels["there are only 4 training images; see --shots."] == "note"


def test_findings_of_light_format_and_absence():
    train, test = 20, 10
    images = rows(
        image_id=[f"{number:03}" for number in range(train + test)],
        split=["train"] * train + ["test"] * test,
        label=[0] * (train + test),
        brightness=[100.0 + number % 5 for number in range(train)] + [80.0] * test,
        format=["PNG"] * train + ["JPEG"] * test,
        width=[10] * train + [30] * test,
        outlier=["blurred"] + [None] * (train + test - 1),
    )
    texts = [finding.text for finding in findings_of(images, left_out="abc")]
    assert any("good test images are darker than the training images overall" in text for text in texts)
    assert any("training images are PNG RGB, but good test images are JPEG RGB" in text for text in texts)
    assert any("aspect ratios (width / height) range from 1.00 to 3.00" in text for text in texts)
    assert any("no defective test images" in text for text in texts)
    assert any("1 training image is an outlier: '000' (blurred)" in text for text in texts)
    assert any("3 files are left out" in text for text in texts)
    assert not findings_of(rows(image_id=[f"{number}" for number in range(train)], label=[0] * train))


def test_the_same_finding_of_many_categories_is_one_line_that_names_some_of_them(capsys):
    """Numbers that differ become ranges, examples are left out, and warnings come before notes."""
    tables = [
        rows(
            image_id=[f"{category}/{number}" for number in range(n_train)],
            category=[category] * n_train,
            label=[0] * n_train,
            format=["PNG", "JPEG"] * (n_train // 2),
            outlier=["blurred", "dark"] + [None] * (n_train - 2),
        )
        for n_train, category in enumerate("stuvwxyz", start=4)
        if n_train % 2 == 0
    ]
    tables.append(rows(category=["12 a: b"], label=[0], image_id=["12 a: b/0"]))
    images = pa.concat_tables(tables)
    found = findings_of(images)
    assert [str(one) for one in findings.shared(found)] == [
        "s, u, w, y: 2 training images are outliers; check before fitting.",
        "s, u, w, y: there are only 4-10 training images; see --shots.",
        '"12 a: b": there is only 1 training image; see --shots.',
    ]
    more = [finding._replace(category=f"part {number}") for finding in found[:1] for number in range(14)]
    (finding,) = findings.shared([found[0], *more])
    assert str(finding).startswith(
        "s, part 0, part 1 and 12 more categories: 2 training images are outliers, such as 's/0' ("
    )
    assert [one.category for one in finding.findings][-1] == "part 13"  # nothing is lost

    manifest = Manifest("file:///x", images.select(SCHEMA.names), left_out_table([]))
    print_inspection(Inspection(0, [], images=images, findings=found), manifest, InspectOptions(), Reporter())
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["warning: s, u, w, y: 2 training images are outliers; check before fitting."]
    assert len([line for line in printed.out.splitlines() if line.startswith("note: ")]) == 2


def test_numbers_in_names_and_formats_are_no_ranges():
    said = [
        findings.Finding("note", "c", f"{count:,} images{example}, are PNG I;16, but {count / 2:.2f} of it", example)
        for count, example in ((7, ", such as 'a 7'"), (1200, ", such as 'b'"))
    ]
    (finding,) = findings.shared(said)
    assert finding.text == "7-1,200 images, are PNG I;16, but 3.50-600.00 of it"
    other = findings.Finding("note", "", "2 files are left out"), findings.Finding("note", "", "3 files are left out")
    assert [str(one) for one in findings.shared(other)] == ["2 files are left out", "3 files are left out"]


def ticks(chart):
    """Position and label of the ticks of a chart's axis."""
    ticks_and_label = re.findall(r'<text class="tick" x="([\d.]+)"[^>]*>([^<]+)</text>', chart.svg)
    return [(float(position), label) for position, label in ticks_and_label[:-1]]  # the last is the axis label


def test_a_histogram_counts_every_image():
    groups = {"train": np.zeros(10, np.float32), "good": np.full(5, 100, np.float32)}
    chart = charts.histogram(groups, quantity="x")
    assert [sum(int(row[column]) for row in chart.rows) for column in (1, 2)] == [10, 5]
    assert all(0 <= position <= charts.WIDTH for position, _ in ticks(chart))
    for log in (False, True):
        assert len(ticks(charts.histogram({"train": np.float32([7])}, log=log))) >= 2
    series = charts.series_of(["train", "good", *map(str, range(9))])
    assert len({(one.style, one.marker) for one in series.values()}) == 11


def test_a_logarithmic_axis_has_round_numbers():
    labels = [label for _, label in ticks(charts.histogram({"good": np.geomspace(0.1, 1, 50)}, log=True))]
    assert labels == ["0.1", "0.2", "0.3", "0.4", "0.6", "1"]


HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def test_names_are_escaped_and_shown_in_full():
    images = rows(
        image_id=[f"{HOSTILE}{number}" for number in range(12)],
        category=[HOSTILE] * 12,
        split=["train"] * 6 + ["test"] * 6,
        label=[0] * 9 + [1] * 3,
        defect=["good"] * 9 + [f"{HOSTILE}dent"] * 3,
        near_group=[0, 0] + [None] * 10,
        outlier=["blurred"] + [None] * 11,
        map_x=[float(number) for number in range(12)],
        map_y=[0.0] * 12,
        error=[None] * 11 + [f"{HOSTILE} is damaged"],
    )
    facts = {"data": HOSTILE, "made": "now", "seconds": 1.0, "n_images": 12, "versions": {"mvad": "1"}}
    summary = table.category_rows(images)
    html = page.render_page(facts, summary, findings_of(images), images, {0: b"jpeg"}, InspectOptions())
    assert "<script" not in html.lower()
    assert "7 * 7" in html
    assert html.count("&lt;script&gt;") > 20
    assert "javascript" not in html.lower()
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html
    assert "can no longer be read" in html


def test_the_page_is_bounded_however_many_categories_there_are():
    count = 60
    names = [f"{number:03}" for number in range(count)]
    images = rows(
        image_id=[f"{a}/{b}" for a in names for b in range(10)], category=[a for a in names for _ in range(10)]
    )
    shown = page.sections(images)
    assert len(shown) == page.MAX_SECTIONS
    assert len(page.pictured_rows(images)) <= page.MAX_PICTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two categories with one of everything that can go wrong."""
    root = tmp_path_factory.mktemp("inspected") / "data"
    for number in range(33):
        name = "alpha" if number < 21 else "beta"
        subfolder = ("train/good", "train/good", "train/good", "train/good", "test/good", "test/good", "test/dent")[
            number % 7
        ]
        random = np.random.default_rng(number)
        save(root / name / subfolder / f"{number:03}.png", scene(number, 96) + random.normal(0, 3, (96, 96)))
    alpha = root / "alpha"
    (alpha / "test/good/copy.png").write_bytes((alpha / "train/good/000.png").read_bytes())
    (alpha / "train/good/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    picture = Image.open(alpha / "train/good/001.png")
    picture.save(alpha / "test/good/near.jpg", quality=70)
    picture.point(lambda value: value * 0.1).save(alpha / "train/good/dark.png")
    picture.filter(ImageFilter.GaussianBlur(6)).save(alpha / "train/good/out_of_focus.png")
    return root


@pytest.fixture(scope="module")
def inspected(folder, ray_local):
    out = folder.parent / "page.html"
    return out, mvad.inspect(str(folder), str(out), image_size=64, actors=1, quiet=True)


def test_inspect_end_to_end(folder, inspected, capsys):
    out, result = inspected
    assert result.exit_code == 0
    images = {row["image_id"]: row for row in result.images.to_pylist()}
    assert len(images) == 33 + 5
    broken = images["alpha/train/good/broken.png"]
    assert broken["error"]
    assert (broken["bytes"], broken["brightness"], broken["width"]) == (8, None, None)
    assert [row["image_id"] for row in result.errors] == ["alpha/train/good/broken.png"]
    copy, original = images["alpha/test/good/copy.png"], images["alpha/train/good/000.png"]
    assert copy["duplicate_group"] == original["duplicate_group"] is not None
    assert copy["sha256"] == original["sha256"]
    near = images["alpha/test/good/near.jpg"]
    assert near["near_group"] == images["alpha/train/good/001.png"]["near_group"] is not None
    assert near["near_similarity"] > 0.9
    assert "much darker" in images["alpha/train/good/dark.png"]["outlier"]
    assert "blurred" in images["alpha/train/good/out_of_focus.png"]["outlier"]
    assert all(row["map_x"] is not None for row in images.values() if row["error"] is None)
    warnings = [finding.text for finding in result.findings if finding.level == "warning"]
    assert any("1 image cannot be read" in text for text in warnings)
    assert any(
        text.startswith("1 of 8 good test images is an exact duplicate of a training image") for text in warnings
    )
    assert any(text.startswith("1 of 8 good test images is a near duplicate of") for text in warnings)
    assert any("training images are outliers" in text for text in warnings)
    stored = pq.read_table(out.with_suffix(".parquet"))
    assert stored.equals(result.images)
    counted = duckdb.sql(f"select count(*) from read_parquet('{out.with_suffix('.parquet')}') where error is not null")
    assert counted.fetchall() == [(1,)]
    summary = json.loads(out.with_suffix(".json").read_text())
    assert [row["category"] for row in summary["categories"]] == ["alpha", "beta"]
    assert (summary["n_errors"], summary["categories"][0]["n_train"]) == (1, 15)
    assert summary["errors"] == result.errors
    html = out.read_text()
    assert html.count("data:image/jpeg;base64,") > 20
    assert "broken.png" in html
    with pytest.raises(UsageError, match="exists; choose another --out"):
        mvad.inspect(str(folder), str(out))
    with pytest.raises(UsageError, match=r"ends in \.html"):
        mvad.inspect(str(folder), str(out.with_suffix(".txt")))


def test_without_features_everything_else_is_the_same_and_nothing_is_written(folder, inspected, capsys):
    before = sorted(folder.parent.iterdir())
    result = mvad.inspect(str(folder), features=False, max_errors="0")
    assert result.exit_code == 3
    assert sorted(folder.parent.iterdir()) == before
    dropped = ["unusual_z", "outlier", "map_x", "map_y"]
    assert result.images.drop_columns(dropped).equals(inspected[1].images.drop_columns(dropped))
    assert result.images["unusual_z"].null_count == len(result.images)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[1].split()[:4] == ["category", "train", "good", "defect"]
    assert max(len(line) for line in lines if not line.startswith("note: ")) <= 100
    assert "warning: alpha: " in captured.err
    assert "exit code 3" in captured.err


def test_the_page_in_a_browser(inspected, browser):
    out, result = inspected
    for scheme, width in (("light", 1200), ("dark", 390)):
        with visit(browser, out, viewport={"width": width, "height": 800}, color_scheme=scheme) as visited:
            tab = visited.page
            assert visited.messages == []
            assert [url for url in visited.requests if not url.startswith("data:")] == [out.as_uri()]
            # The policy allows the style sheet, nothing overflows, every picture is decoded.
            assert tab.evaluate("getComputedStyle(document.querySelector('.tiles')).display") == "grid"
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert tab.evaluate("[...document.images].every(image => image.alt)")
            assert tab.locator("section.category").count() == 2
            assert tab.locator(".map > svg > g").count() == len(result.images) - len(result.errors)
            tab.keyboard.press("Tab")
            assert tab.evaluate("document.activeElement.className") == "skip"
