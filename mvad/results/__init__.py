"""The results folder: tables of scores and summaries, and the record of the run; every name imported here is public."""
# ruff: noqa: F401

from mvad.results.schema import SCORES, SUMMARY
from mvad.results.store import (
    clear,
    ensure_outside,
    ensure_writable,
    list_parts,
    read_by_category,
    read_errors,
    read_finished_run,
    read_images,
    read_part,
    read_run,
    read_scores,
    read_summary,
    write_json,
    write_summary,
)
