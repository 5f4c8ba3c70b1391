"""The task that decides on scored images and writes their rows; apart, because its workers need no PyTorch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mvad import storage
from mvad.process import end_in_time
from mvad.results.schema import constant, score_table
from mvad.results.store import write_part
from mvad.results.verdicts import decide
from mvad.runtime.stage_totals import StageTotals
from mvad.scoring.jobs import ScoringJob

COPIED = ("error", "width", "height", "score", "patch_scores", "patch_grid", "regions", "anomalous_area")
RECEIPT = pa.schema([pa.field("job", pa.int32()), pa.field("rows", pa.int64())])


@dataclass(frozen=True)
class WriteScores:
    """Task that writes a block of scored images, one file per job, and returns how many rows each job got.

    ``images`` refers to the table of images that ``row`` points into.
    """

    jobs: Sequence[ScoringJob]
    images: ray.ObjectRef
    totals: StageTotals
    keys: storage.Keys = field(default_factory=storage.Keys)  # for OUT

    def __call__(self, scored: pa.Table) -> pa.Table:
        end_in_time()
        self.totals.add_retries()
        counts = {number: len(rows) for number, rows in write_rows(ray.get(self.images), scored, self.jobs)}
        columns = {"job": pa.array([*counts], pa.int32()), "rows": pa.array([*counts.values()], pa.int64())}
        return pa.table(columns, RECEIPT)


def write_rows(images: pa.Table, scored: pa.Table, jobs: Sequence[ScoringJob]) -> Iterator[tuple[int, pa.Table]]:
    """Write the score rows of scored images, one file per job, and yield them with the number of their job.

    ``scored`` has the columns of `columns.SCORED`; its ``row`` points into ``images``.
    """
    for number in np.unique(scored["job"].to_numpy()).tolist():
        part = scored.filter(pc.equal(scored["job"], number))
        rows = score_rows(images.take(part["row"]), part, jobs[number])
        write_part(jobs[number].out, rows)
        yield number, rows


def score_rows(images: pa.Table, scored: pa.Table, job: ScoringJob) -> pa.Table:
    """The score rows of images: their rows of the manifest, and columns of `columns.SCORED` by one job's model."""
    columns = {name: scored[name] for name in COPIED}
    columns["status"] = pc.if_else(pc.is_valid(scored["error"]), "error", "ok")
    model = job.model
    facts = {"model_id": model.model_id, "method": model.method, "backbone": model.backbone.name}
    columns |= {name: constant(fact, len(scored), pa.string()) for name, fact in facts.items()}
    return score_table(images, job.origin, columns | decide(scored["score"].combine_chunks(), job.rule))
