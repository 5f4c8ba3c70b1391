"""The command line: parses arguments, calls the function of the same name, returns the exit code."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from mvad.console import as_document
from mvad.errors import UsageError
from mvad.options import (
    CompareOptions,
    FalseAlarmOptions,
    FitOptions,
    ImageOptions,
    InspectOptions,
    MapOptions,
    PlanOptions,
    ReportOptions,
    RunOptions,
    ScoreOptions,
    ServeOptions,
    UpdateOptions,
)

app = typer.Typer(
    help="Learn what good looks like from images, score new ones, get a table. Runs on a laptop or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Data = Annotated[str, typer.Argument(help="A folder of images, or a CSV or Parquet table of them; a path or a URI.")]
Out = Annotated[str, typer.Option(help="New folder for the results; a path or a URI.")]
Results = Annotated[str, typer.Argument(help="Folder of the results; a path or a URI.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document to standard output, and everything else to standard error."),
]
Models = Annotated[str, typer.Option(help="Folder of fitted models; a path or a URI.")]


def _with_options(
    options: type[ImageOptions] | None = None, answers: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command the fields of an options class as its options, names, defaults and help included.

    What the command returns decides the exit code. If it ``answers``, it has ``--json`` too, which prints what it
    returns; what it prints itself goes to standard error then.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(*, json: bool = False, **arguments: Any) -> None:
            with redirect_stdout(sys.stderr) if json else nullcontext():
                found = command(**arguments)
            if json:
                typer.echo(as_document(found))
            raise typer.Exit(getattr(found, "exit_code", 0))

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        hints = get_type_hints(options, include_extras=True) if options else {}
        extra = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in (fields(options) if options else ())
        ]
        if answers:
            extra.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))
        wrapper.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        return wrapper

    return decorate


@app.command()
@_with_options(RunOptions)
def run(data: Data, *, out: Out, **options: Any) -> Any:
    """Fit, score and evaluate every category under DATA in one job.

    Example: mvad run mvtec --out results
    """
    from mvad.pipeline import flow as pipeline

    return pipeline.run(data, out, **options)


@app.command()
@_with_options(FitOptions)
def fit(data: Data, *, models: Models, **options: Any) -> Any:
    """Fit one model a category from the good images in DATA.

    Example: mvad fit mvtec --models models
    """
    from mvad.pipeline import flow as pipeline

    return pipeline.fit(data, models, **options)


@app.command()
@_with_options(ScoreOptions)
def score(data: Data, *, models: Models, out: Out, **options: Any) -> Any:
    """Score the test images of DATA, or all images of an unlabelled folder.

    Example: mvad score dump --models models --out results
    """
    from mvad.pipeline import flow as pipeline

    return pipeline.score(data, models, out, **options)


@app.command()
@_with_options(ScoreOptions)
def nightly(
    *,
    dump: Annotated[str, typer.Option(help="The night's folder of images; a path or a URI.")],
    models: Models,
    out: Annotated[str, typer.Option(help="Folder of all nights' results; a path or a URI.")],
    date: Annotated[str | None, typer.Option(help="The night's date, as 2026-11-23; default: today.")] = None,
    **options: Any,
) -> Any:
    """Score a night's dump into a folder of its date, with a line a category; safe to repeat.

    Example: mvad nightly --dump incoming --models models --out nights
    """
    from mvad.commands import nightly as night

    return night.nightly(dump, models, out, date, **options)


@app.command()
@_with_options(UpdateOptions)
def update(data: Data, *, models: Models, **options: Any) -> Any:
    """Add the good images in DATA to fitted models, without the old images.

    Example: mvad update new --models models
    """
    from mvad.commands import update as upkeep

    return upkeep.update(data, models, **options)


@app.command("false-alarms")
@_with_options(FalseAlarmOptions)
def false_alarms(data: Data, **options: Any) -> Any:
    """Measure the false-alarm rates that thresholds achieve, over random splits of the good images in DATA.

    Example: mvad false-alarms mvtec --splits 20
    """
    from mvad.commands import false_alarms as promises

    return promises.false_alarms(data, **options)


@app.command()
@_with_options()
def models(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of fitted models; a path or a URI.")],
) -> Any:
    """List the models in a folder.

    Example: mvad models models
    """
    from mvad.commands import update as upkeep

    return upkeep.models(folder)


@app.command()
@_with_options(CompareOptions)
def compare(data: Data, *, out: Out, **options: Any) -> Any:
    """Fit and score every method on every category under DATA, and print one table.

    Example: mvad compare mvtec --out compared --methods patchcore,knn
    """
    from mvad.commands import compare as comparison

    return comparison.compare(data, out, **options)


@app.command()
@_with_options()
def evaluate(
    out: Annotated[str, typer.Argument(help="Folder of the results.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors and warnings only.")] = False,
) -> Any:
    """Compute the summary of results that carry labels anew.

    Example: mvad evaluate results
    """
    from mvad.pipeline import flow as pipeline

    return pipeline.evaluate(out, quiet=quiet)


@app.command("inspect")
@_with_options(InspectOptions)
def inspect_(
    data: Data,
    *,
    out: Annotated[
        str | None,
        typer.Option(help="Page to write (FILE.html), with FILE.parquet and FILE.json beside it; default: none."),
    ] = None,
    **options: Any,
) -> Any:
    """Show what is in DATA before any model: counts, unreadable files, twins, outliers.

    Example: mvad inspect mvtec --out inspect.html
    """
    from mvad import inspection

    return inspection.inspect(data, out, **options)


@app.command()
@_with_options(ReportOptions)
def report(out: Results, **options: Any) -> Any:
    """Write a page on results that opens in any browser, without a network.

    Example: mvad report results
    """
    from mvad import reports

    return reports.report(out, **options)


@app.command()
@_with_options(MapOptions)
def maps(
    out: Results,
    *,
    to: Annotated[str, typer.Option(help="Folder for the pictures; a path or a URI.")],
    **options: Any,
) -> Any:
    """Make pictures of the anomaly maps in results that kept them (--maps), each as large as its image.

    Example: mvad maps results --to maps
    """
    from mvad.commands import maps as map_files

    return map_files.maps(out, to, **options)


@app.command()
@_with_options(ServeOptions, answers=False)
def serve(*, models: Models, **options: Any) -> None:
    """Serve a page on this machine that scores images dropped on it, and the same for programs; until Ctrl-C.

    Example: mvad serve --models models
    """
    from mvad.commands.serve import serve as serve_until_stopped

    serve_until_stopped(models, **options)


@app.command()
@_with_options(PlanOptions)
def plan(**options: Any) -> Any:
    """Say what a cluster would do: hours, what it is bound by, bytes; from what an image costs here.

    Example: mvad plan --images 1e8 --gpus 64 --cores 512
    """
    from mvad.commands.plan import plan

    return plan(**options)


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Write a generated data set in the MVTec layout: three categories, subtle defects, masks.

    Example: mvad sample sample
    """
    from mvad.data.synthetic import sample

    count = sample(folder, seed=seed)
    Console(highlight=False).print(escape(f"{count} images in {folder}"), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong use, 3 too many unreadable files, 1 anything else."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="mvad")
    except UsageError as error:
        Console(stderr=True, highlight=False).print(f"mvad: {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
