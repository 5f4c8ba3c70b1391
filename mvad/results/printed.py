"""What a person reads after a run: verdicts first, and with labels what they would be at other false-alarm rates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mvad import calibration, storage
from mvad.console import Reporter, number, plural
from mvad.results.summary import N_MOST_ANOMALOUS
from mvad.storage.text import shown_name

NO_IMAGES = "NO IMAGES"  # state of a category that was expected
STATES = ("OK", "LOOK", "DRIFT", "NO VERDICT", "NOT SCORED", NO_IMAGES)  # of a category, the most urgent last
MAX_LINES = 20  # categories that have a line of their own below the table

Row = Mapping[str, Any]
# Prints the rows of a summary, with what ``run.json`` says of the categories, the URI of the results, and categories
# that were expected and have no image.
PrintTable = Callable[[Reporter, Sequence[Row], Mapping[str, Row], str, Sequence[str]], None]


def print_summary(
    report: Reporter, rows: Sequence[Row], categories: Mapping[str, Row], out: str, missing: Sequence[str] = ()
) -> None:
    """Print the verdicts of a run in OUT (a URI): on labelled images how many are right, else which images to look at.

    ``rows`` are those of the summary, the last one of all categories; ``categories`` is what ``run.json`` says of them.
    Nothing is ``missing`` but in a night.
    """
    *rows, total = rows
    labelled = [row for row in rows if row["n_good"] or row["n_defect"]]
    others = [row for row in rows if not (row["n_good"] or row["n_defect"])]
    if labelled:
        all_labelled = [total] if len(labelled) > 1 and not others else []
        _print_labelled(report, labelled, all_labelled, _has_band(categories))
        _print_outcomes(report, labelled, categories)
    if others:
        _print_unlabelled(report, others, _has_band(categories))
        print_most_anomalous(report, others, categories, out)


def _print_labelled(report: Reporter, rows: Sequence[Row], total: Sequence[Row], with_band: bool) -> None:
    cells = []
    for name, row in [*((row["category"], row) for row in rows), *(("all", row) for row in total)]:
        found = row["n_found"]
        missed = None if found is None else row["n_defect"] - found
        counts = [row["n_train"], row["n_good"], row["n_defect"], found, missed, row["n_false_alarms"]]
        counts += [row["n_uncertain"]] * with_band + [row["n_error"]]
        cells.append([name, *map(_count, counts), number(row["image_auroc"], 3)])
    numbers = ["learnt from", "good", "defective", "found", "missed", "false alarms"]
    report.table(["category"], [*numbers, *["uncertain"] * with_band, "errors", "AUROC"], cells)
    mean = total[0] if total else rows[0]
    if mean["pixel_auroc"] is not None:
        average = " on average" if total else ""
        pixel = [number(mean[name], 3) for name in ("pixel_auroc", "pixel_ap", "pixel_aupro")]
        report.result("pixel AUROC {}, AP {}, AUPRO {}".format(*pixel) + average)
    for row in rows:
        if row["note"]:
            report.result(f"{shown_name(row['category'])}: {row['note']}")


def _print_outcomes(report: Reporter, rows: Sequence[Row], categories: Mapping[str, Row]) -> None:
    """Print how many defects are found at several false-alarm rates, the category that misses the most first."""
    lines = []
    for row in rows:
        facts = categories.get(row["category"], {})
        if row["n_defect"] and facts.get("outcomes"):
            found = {one["rate"]: (one["n_found"], one["n_needed"]) for one in facts["outcomes"]}
            at_rate = found.get(facts.get("false_alarm_rate"), (None, 0))[0]
            decided = None if row["n_found"] == at_rate else row["n_found"]
            lines.append(
                (
                    row["n_found"] / row["n_defect"],
                    calibration.found_line(row["category"], row["n_defect"], found, decided),
                )
            )
    lines.sort(key=lambda line: line[0])
    for _, line in lines[:MAX_LINES]:
        report.result(line)
    if len(lines) > MAX_LINES:
        report.result(f"and {plural(len(lines) - MAX_LINES, 'category', 'categories')} that find more: see run.json")


def _print_unlabelled(report: Reporter, rows: Sequence[Row], with_band: bool) -> None:
    cells = [
        [row["category"], _count(row["n_train"]), _count(row["n_scored"]), *_decisions(row, with_band)] for row in rows
    ]
    report.table(["category"], ["learnt from", "images", *_decision_titles(with_band)], cells)
    for row in rows:
        if row["note"] and not row["n_scored"]:
            report.result(f"{shown_name(row['category'])}: {row['note']}")


def _decision_titles(with_band: bool) -> list[str]:
    return ["flagged", "rate", *["uncertain"] * with_band, "errors", "drift"]


def _decisions(row: Row, with_band: bool) -> list[str]:
    """The cells of a category whose images carry no labels."""
    decided = row["n_scored"] and row["threshold"] is not None
    cells = [_count(row["n_flagged"]), f"{row['n_flagged'] / row['n_scored']:.1%}"] if decided else ["-", "-"]
    cells += [_count(row["n_uncertain"])] * with_band
    return [*cells, _count(row["n_error"]), _drift(row)]


def _drift(row: Row) -> str:
    if row["drifted"] is None:
        return "-"
    return f"{row['drift_median_shift']:+.1f}" if row["drifted"] else "no"


def print_most_anomalous(report: Reporter, rows: Sequence[Row], categories: Mapping[str, Row], out: str) -> None:
    """Print the most anomalous images of all categories, and how to see them."""
    cells = [
        [image["image_id"], f"{image['score']:.4g}", number(image["p_value"], 4), image["verdict"] or "-"]
        for image in most_anomalous(rows, categories)
    ]
    if not cells:
        return
    report.table(["most anomalous"], ["score", "p-value", "verdict"], cells)
    report.result(f"to see them: mvad report {storage.readable(out)}")


def most_anomalous(rows: Sequence[Row], categories: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The most anomalous images of all categories: image_id, category, score, p_value, threshold, verdict.

    Scores of categories differ in scale. So p-values are compared first, then how far scores exceed the threshold.
    """
    images = []
    for row in rows:
        threshold = row["threshold"] or 1.0
        for image in categories.get(row["category"], {}).get("most_anomalous", ()):
            p_value = 1.0 if image["p_value"] is None else image["p_value"]
            whole = {**image, "category": row["category"], "threshold": row["threshold"]}
            images.append((p_value, -image["score"] / threshold, image["image_id"], whole))
    return [image for *_, image in sorted(images, key=lambda entry: entry[:3])[:N_MOST_ANOMALOUS]]


def print_night(
    report: Reporter, rows: Sequence[Row], categories: Mapping[str, Row], out: str, missing: Sequence[str] = ()
) -> None:
    """Print a night's verdicts as `print_summary` does, but those that a night needs: one line per category.

    ``missing`` are categories that were expected and have no image.
    """
    rows = rows[:-1]
    with_band = _has_band(categories)
    cells = []
    for row in rows:
        images = _count(row["n_scored"] + row["n_error"])
        note = row["note"] or "" if not row["n_scored"] else ""
        cells.append([row["category"], state(row), images, *_decisions(row, with_band), note])
    blank = ["-"] * (len(_decision_titles(with_band)))
    cells += [[category, NO_IMAGES, "0", *blank, ""] for category in missing]
    report.table(["category", "state"], ["images", *_decision_titles(with_band)], cells, ["note"])
    print_most_anomalous(report, rows, categories, out)


def state(row: Row) -> str:
    """What a person has to do about a category tonight, in a word or two, from its row of the summary."""
    if not row["n_scored"]:
        return "NOT SCORED"
    if row["category"] == calibration.UNKNOWN_PRODUCT:
        return "LOOK"
    if row["threshold"] is None:
        return "NO VERDICT"
    if row["drifted"]:
        return "DRIFT"
    return "LOOK" if row["n_flagged"] or row["n_uncertain"] else "OK"


def _has_band(categories: Mapping[str, Row]) -> bool:
    """Whether images of some category can be uncertain."""
    return any(facts.get("uncertain_threshold") is not None for facts in categories.values())


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
