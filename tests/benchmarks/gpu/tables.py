"""The tables of the part ``gpu``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.tables import new_table

Row = Mapping[str, Any]
Cell = Callable[[Row], str]

MIB = 1 << 20


def _number(name: str, form: str, scale: float = 1.0) -> Cell:
    return lambda row: format(row[name] * scale, form) if row.get(name) is not None else "-"


def _network(row: Row) -> str:
    return f"{row['backbone']}, {row['side']}"


MEMORY: tuple[str, Cell] = ("MiB", _number("peak_bytes", ",.0f", 1 / MIB))
NETWORK: dict[str, Cell] = {
    "network": _network,
    "batch": _number("batch", ",.0f"),
    "way": lambda row: row["way"],
    "images/s": _number("images_per_second", ",.0f"),
    "largest difference": lambda row: row["error"] if "error" in row else _number("difference", ".0e")(row),
    MEMORY[0]: MEMORY[1],
}
COLUMNS: dict[str, dict[str, Cell]] = {
    "agreement": {
        "method": lambda row: row["method"],
        "images": _number("images", ",.0f"),
        "runs differ by": _number("runs_difference", ".0e"),
        "verdicts": _number("runs_verdicts", ",.0f"),
        "one model": _number("float32_difference", ".0e"),
        "its verdicts": _number("float32_verdicts", ",.0f"),
        "one model, TF32": _number("tf32_difference", ".0e"),
        "verdicts with it": _number("tf32_verdicts", ",.0f"),
    },
    "jobs": {
        "network": _network,
        "fit s": _number("fit_seconds", ".1f"),
        "score/s": lambda row: f"{row['scored_images'] / row['score_seconds']:,.0f}",
        "flow/s": _number("flow_images_per_second", ",.0f"),
        "decoding/s": lambda row: f"{row['rates']['decoding']:,.0f}",
        "network/s": lambda row: f"{row['rates']['network']:,.0f}",
        "search/s": lambda row: f"{row['rates']['search']:,.0f}",
        "busy": _number("score_gpu_busy", ".0%"),
        "MiB": _number("score_peak_bytes", ",.0f", 1 / MIB),
        "limit": lambda row: row["limit"],
    },
    "network": NETWORK,
    "compiled": NETWORK,
    "decoding": {
        "way": lambda row: row["way"],
        "images/s": _number("images_per_second", ",.0f"),
        "largest difference": _number("largest_difference", ",.0f"),
        "mean": _number("mean_difference", ".2f"),
        MEMORY[0]: MEMORY[1],
    },
    "search": {
        "bank": lambda row: f"{row['bank']:,} x {row['channels']:,}",
        "worst patch, images/s": _number("worst_images_per_second", ",.0f"),
        "all patches, images/s": _number("all_images_per_second", ",.1f"),
        "difference": _number("largest_difference", ".0e"),
        "other neighbours": _number("other_neighbours", ",.0f"),
        MEMORY[0]: MEMORY[1],
    },
    "coreset": {
        "patches": _number("patches", ",.0f"),
        "centres": _number("centres", ",.0f"),
        "rows at a time": _number("rows_per_chunk", ",.0f"),
        "s": _number("seconds", ".1f"),
        "CPU s": _number("cpu_seconds", ".1f"),
        "same choices": _number("same_choices", ",.0f"),
        MEMORY[0]: MEMORY[1],
    },
    "windows": {
        "image": lambda row: row["image"],
        "windows": _number("windows", ",.0f"),
        "bank": _number("bank", ",.0f"),
        "fit s": _number("fit_seconds", ".1f"),
        "decode s": _number("decode_seconds", ".2f"),
        "network s": _number("forward_seconds", ".2f"),
        "network and search s": _number("score_seconds", ".2f"),
        "of decode and network": _number("ratio", ".2f"),
        "difference": _number("largest_difference", ".0e"),
        MEMORY[0]: MEMORY[1],
    },
}


def show_rows(console: Console, stage: str, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print rows in the columns of a stage."""
    columns = COLUMNS[stage]
    table = new_table(*columns, title=f"\n{title}")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console.print(table)


def show_gpu(console: Console, stage: str, measured: Mapping[str, Any]) -> None:
    """Print what one stage measured."""
    rows = [row for row in measured["rows"] if "runs_on" not in row]
    show_rows(console, stage, rows, f"gpu: {stage}, {measured['seconds']:.0f} s")
    for row in [{"error": measured["error"]}, *measured["rows"]]:
        if row.get("error") and "way" not in row:
            console.print(f"{stage} did not end well: {row['error']}", soft_wrap=True)
