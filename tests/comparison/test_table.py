"""The table of a comparison: intervals, paired differences and conclusions; and what is printed of it."""

import numpy as np
import pytest

from mvad.comparison.printed import show_comparison
from mvad.comparison.table import BETTER, NOT_SHOWN, SCHEMA, WORSE, comparison_table
from mvad.comparison.variants import Line
from mvad.console import Reporter

A, B, C = (Line("patchcore", None, name) for name in "abc")
NUMBERS = {"backbone": "b", "n_train": 8, "pixel_auroc": 0.9, "fit_seconds": 1.0, "score_seconds": 2.0, "note": None}
NUMBERS |= {"model_bytes": 1e6, "n_scored": 40, "pixel_ap": None, "pixel_aupro": None}


def cell(auroc, **others):
    return {**NUMBERS, "image_auroc": auroc, **others}


def spread(middle, width=0.01, seed=0):
    return middle + width * np.random.default_rng(seed).standard_normal(1000)


def table_of(lines, cells, samples, categories=("cap", "nut"), reasons=None):
    rows = comparison_table(lines, cells, reasons or {}, categories, samples).to_pylist()
    return {(row["variant"], row["category"]): row for row in rows}, rows


def test_a_difference_is_paired_and_its_interval_decides():
    """Two variants vary together from resample to resample, so a small difference is shown; or apart, and it is not."""
    first = spread(0.90, 0.02)
    samples = {("a", "cap"): {"image_auroc": first}, ("b", "cap"): {"image_auroc": first + spread(0.01, 0.002, 1)}}
    samples["c", "cap"] = {"image_auroc": spread(0.91, 0.02, 2)}
    cells = {(name, "cap"): cell(auroc) for name, auroc in (("a", 0.90), ("b", 0.91), ("c", 0.91))}
    lines = {A: ["a"], B: ["b"], C: ["c"]}
    table, _ = table_of(lines, cells, samples, ["cap"])
    for name, conclusion in (("a", None), ("b", BETTER), ("c", NOT_SHOWN)):
        row = table[name, "cap"]
        assert row["image_auroc_conclusion"] == table[name, "mean"]["image_auroc_conclusion"] == conclusion
        low, high = np.quantile(samples[name, "cap"]["image_auroc"], [0.025, 0.975])
        assert (row["image_auroc_low"], row["image_auroc_high"]) == pytest.approx((low, high))
    difference = samples["b", "cap"]["image_auroc"] - first
    row = table["b", "cap"]
    assert row["image_auroc_difference"] == pytest.approx(0.01)
    assert row["image_auroc_difference_low"] == pytest.approx(np.quantile(difference, 0.025))
    assert row["image_auroc_difference_high"] == pytest.approx(np.quantile(difference, 0.975))
    turned, _ = table_of({B: ["b"], A: ["a"]}, cells, samples, ["cap"])
    assert turned["a", "cap"]["image_auroc_conclusion"] == WORSE
    assert turned["b", "cap"]["image_auroc_difference"] is None


def test_the_mean_of_categories_is_compared_where_both_have_a_number():
    cells = {("a", "cap"): cell(0.8), ("a", "nut"): cell(0.6), ("b", "cap"): cell(0.9)}
    cells["b", "nut"] = cell(None, note="no model: why")
    samples = {key: {"image_auroc": spread(cells[key]["image_auroc"], seed=number)} for number, key in enumerate(cells)
               if cells[key]["image_auroc"] is not None}  # fmt: skip
    table, _ = table_of({A: ["a"], B: ["b"]}, cells, samples)
    mean = table["b", "mean"]
    assert mean["image_auroc_difference"] == pytest.approx(0.1)
    assert mean["image_auroc_conclusion"] == BETTER
    of_a = np.mean([samples["a", name]["image_auroc"] for name in ("cap", "nut")], axis=0)
    assert table["a", "mean"]["image_auroc_low"] == pytest.approx(np.quantile(of_a, 0.025))
    assert table["b", "nut"]["image_auroc_difference"] is table["b", "nut"]["image_auroc_low"] is None


def test_repeats_are_averaged_resample_by_resample():
    cells = {("a1", "cap"): cell(0.8), ("a2", "cap"): cell(0.9)}
    samples = {("a1", "cap"): {"image_auroc": spread(0.8)}, ("a2", "cap"): {"image_auroc": spread(0.9, seed=1)}}
    table, _ = table_of({A: ["a1", "a2"]}, cells, samples, ["cap"])
    both = (samples["a1", "cap"]["image_auroc"] + samples["a2", "cap"]["image_auroc"]) / 2
    assert table["a", "cap"]["image_auroc_high"] == pytest.approx(np.quantile(both, 0.975))
    assert table["a", "cap"]["image_auroc"] == pytest.approx(0.85)


def test_a_metric_without_samples_has_a_difference_and_no_conclusion():
    cells = {("a", "cap"): cell(0.8, pixel_ap=0.5), ("b", "cap"): cell(0.8, pixel_ap=0.6)}
    samples = {(name, "cap"): {"image_auroc": spread(0.8)} for name in "ab"}
    row = table_of({A: ["a"], B: ["b"]}, cells, samples, ["cap"])[0]["b", "cap"]
    assert row["pixel_ap_difference"] == pytest.approx(0.1)
    assert row["pixel_ap_low"] is row["pixel_ap_conclusion"] is row["pixel_ap_difference_low"] is None
    assert row["image_auroc_difference_low"] == row["image_auroc_difference_high"] == 0
    assert row["image_auroc_conclusion"] == NOT_SHOWN
    assert row["pixel_aupro_difference"] is None


def test_seconds_per_image_are_those_of_all_images():
    cells = {("a", "cap"): cell(0.8), ("a", "nut"): cell(0.8, score_seconds=4.0, n_scored=20)}
    table, _ = table_of({A: ["a"]}, cells, {})
    assert table["a", "cap"]["seconds_per_image"] == pytest.approx(0.05)
    assert table["a", "nut"]["seconds_per_image"] == pytest.approx(0.2)
    assert table["a", "mean"]["seconds_per_image"] == pytest.approx(0.1)


def test_columns_are_added_at_the_end():
    earlier = ["method", "shots", "backbone", "category", "repeats", "n_train", "image_auroc", "image_auroc_sd"]
    earlier += ["pixel_auroc", "pixel_aupro", "fit_seconds", "score_seconds", "model_bytes", "note"]
    assert SCHEMA.names[: len(earlier)] == earlier


def test_variants_are_printed_category_by_category_with_what_is_shown(capsys):
    cells = {(name, category): cell(0.8 + 0.1 * number, pixel_ap=0.5)
             for number, name in enumerate("ab") for category in ("cap", "nut")}  # fmt: skip
    samples = {key: {"image_auroc": spread(one["image_auroc"])} for key, one in cells.items()}
    _, rows = table_of({A: ["a"], B: ["b"], C: []}, cells, samples, reasons={C: "no weights"})
    show_comparison(rows, ["cap", "nut"], Reporter())
    out = capsys.readouterr().out.splitlines()
    assert out[0].split("  ")[0] == "category"
    assert [line.split()[:3] for line in out[1:4]] == [["cap", "a", "0.800"], ["cap", "b", "0.900"], ["cap", "c", "-"]]
    assert "+0.100  +0.100 to +0.100  better" in out[2]
    assert out[7].split()[:3] == ["mean", "a", "0.800"]
    assert "pixel AP" in out[10]
    assert "AUPRO" not in "\n".join(out)
    costs = next(number for number, line in enumerate(out) if "ms/image" in line)
    assert out[costs + 1].split() == ["a", "2", "50.0", "2.0"]
    assert out[-1] == "c failed: no weights"
    assert max(map(len, out)) <= 100
    assert not any(line != line.rstrip() and "  " * 30 in line for line in out)


def test_of_many_categories_the_means_are_printed(capsys):
    names = [f"part{number}" for number in range(9)]
    cells = {(name, category): cell(0.8) for name in "ab" for category in names}
    _, rows = table_of({A: ["a"], B: ["b"]}, cells, {}, names)
    show_comparison(rows, names, Reporter())
    out = capsys.readouterr().out
    assert "part3" not in out
    assert "means of 9 categories" in out
