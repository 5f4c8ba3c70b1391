"""The tables that a benchmark prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def new_table(*headers: str, title: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    return table


def show(console: Console, name: str, measurements: dict[str, Any]) -> None:
    """Print the measurements of one backbone."""
    title = f"\n{name}, {measurements['image_size']} pixels, --coreset-ratio {measurements['coreset_ratio']}"
    table = new_table("what", "mvad", "other", "ratio", title=title)
    for cells in [*_job_rows(measurements), *_algorithm_rows(measurements)]:
        table.add_row(*cells)
    if table.row_count:
        console.print(table)
    peer = measurements.get("peer", {})
    for name, value in (
        ("image AUROC", measurements.get("auroc")),
        ("image AUROC of anomalib with mvad's bank", peer.get("auroc_with_our_bank")),
        ("image AUROC of anomalib with its own bank", peer.get("auroc")),
    ):
        if value is not None:
            console.print(f"{name}: {value:.4f}")
    if "first_result_seconds" in measurements:
        first = statistics.median(measurements["first_result_seconds"])
        console.print(f"first result of a run, once Ray runs, after {first:.1f} s")
    if "ray_overhead" in measurements:
        console.print(f"overhead of Ray in the flow: {measurements['ray_overhead']:.1%} of the floor")
    for row in measurements.get("plan", []):
        rates = [row[f"{source}_images_per_second"] for source in ("predicted", "measured")]
        console.print("plan, {} cores: {:.1f} images/s; measured: {:.1f}".format(row["cores"], *rates))
    if "peak_bytes" in measurements:
        memory = ", ".join(f"{process} {size / 2**20:.0f} MiB" for process, size in measurements["peak_bytes"].items())
        console.print(f"peak private memory: {memory}", soft_wrap=True)
    if "shards" in measurements:
        _show_shards(console, measurements["shards"])
    if "forward" in measurements:
        table = new_table("one image, one thread", "ms", "largest difference")
        for row in measurements["forward"]:
            table.add_row(row["way"], f"{row['milliseconds']:.1f}", f"{row['difference']:.0e}")
        console.print(table)


def _job_rows(measurements: dict[str, Any]) -> list[list[str]]:
    peer, rows = measurements.get("peer"), []
    if "fit_seconds" in measurements:
        ours = statistics.median(measurements["fit_seconds"])
        if peer and "fit_seconds" in peer:
            theirs = peer["fit_seconds"]
            rows.append(["fit: anomalib", f"{ours:.1f} s", f"{theirs:,.1f} s", f"{theirs / ours:.1f}"])
        else:
            rows.append(["fit", f"{ours:.1f} s", "-", "-"])
    if "calibrated_fit_seconds" in measurements:
        calibrated = statistics.median(measurements["calibrated_fit_seconds"])
        ratio = f"{calibrated / ours:.2f} x its time"
        rows.append(["fit with thresholds: without", f"{calibrated:.1f} s", f"{ours:.1f} s", ratio])
    if "score_images_per_second" not in measurements:
        return rows
    rate = statistics.median(measurements["score_images_per_second"])
    if peer:
        theirs = statistics.median(peer["score_images_per_second"])
        rows.append(["score: anomalib, same bank", f"{rate:.1f}/s", f"{theirs:.1f}/s", f"{rate / theirs:.1f}"])
    for what, ours_key, other_key, ratio_key in (
        ("score: floor from its start", "score", "floor_from_its_start", "above_floor_from_its_start"),
        ("score: floor, running", "score", "floor", "above_floor"),
        ("score without starting: floor", "flow", "floor", "flow_above_floor"),
    ):
        if ratio_key in measurements:
            one, other = (statistics.median(measurements[f"{key}_images_per_second"]) for key in (ours_key, other_key))
            rows.append([what, f"{one:.1f}/s", f"{other:.1f}/s", f"{measurements[ratio_key]:.2f} x its time"])
    return rows


def _algorithm_rows(measurements: dict[str, Any]) -> list[list[str]]:
    rows = []
    for part, what, unit, scale in (
        ("coreset", "coreset: plain greedy", "s", 1.0),
        ("search", "search per image: all patches, FAISS", "ms", 1e3),
    ):
        if part in measurements:
            ours, other = (measurements[part][key] * scale for key in ("seconds", "other_seconds"))
            rows.append([what, f"{ours:.1f} {unit}", f"{other:,.1f} {unit}", f"{other / ours:.1f}"])
    return rows


def _show_shards(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = new_table("coreset", "vectors", "covering radius", "recorded bound", "image AUROC")
    for row in rows:
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.4f}"
        cells = [f"{row['vectors']:,}", f"{row['radius']:.3f}", f"{row['bound']:.3f}", auroc]
        table.add_row("exact" if row["shards"] == 1 else f"merged from {row['shards']} shards", *cells)
    console.print(table)


def show_start(console: Console, name: str, start: dict[str, Any]) -> None:
    """Print how long a command takes to start."""
    first, whole = (statistics.median(start[key]) for key in ("first_result_seconds", "seconds"))
    command = f"{name}: a command that scores {start['images']} images"
    console.print(f"{command} has its first result after {first:.1f} s, and ends after {whole:.1f} s")


def show_growth(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print seconds and memory by number of images."""
    headers = ("images", "fit s", "driver MiB", "actor MiB", "bank", "score s", "images/s", "driver MiB", "actor MiB")
    table = new_table(*headers)
    for row in rows:
        sizes = [f"{row[key] / 2**20:.0f}" for key in ("fit_driver", "fit_actor", "score_driver", "score_actor")]
        table.add_row(
            f"{row['images']:,}",
            f"{row['fit_seconds']:.1f}",
            *sizes[:2],
            f"{row['bank']:,}",
            f"{row['score_seconds']:.1f}",
            f"{row['images'] / row['score_seconds']:.1f}",
            *sizes[2:],
        )
    console.print(table)
