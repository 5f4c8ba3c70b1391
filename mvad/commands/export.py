import time
from typing import Annotated

from typer import Argument

from mvad import storage
from mvad.console import Reporter, plural
from mvad.errors import ImageError, UsageError
from mvad.onnx_export.choice import choose_model, original_model
from mvad.onnx_export.result import Comparison, ExportResult
from mvad.options import ExportOptions, takes
from mvad.scoring.jobs import decision_rule
from mvad.storage.text import shown_name

MAX_FILE_BYTES = 1 << 31
VERDICTS = {True: "anomalous", False: "good", None: "no verdict"}


@takes(ExportOptions)
def export(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder of a model, or of models; a path or a URI.")],
    options: ExportOptions,
) -> ExportResult:
    """Export a model as one ONNX file that scores images the same without mvad, or check such a file.

    The file takes the pixels of an upright image of any size. With ``check``, images are scored by both; exit code 1 if
    a score differs by more than rounding, or a verdict differs. A file that is there already is then checked and not
    replaced.

    Raises
    ------
    UsageError
        There is no such model, or it cannot be exported; or with ``check``, there are no images, or the file is not the
        export of this model.

    Examples
    --------
    >>> mvad.export("models/patchcore/weave", out="weave.onnx", quiet=True).exit_code
    0
    """
    report, target = Reporter(options.quiet), None if options.out is None else storage.to_uri(options.out)
    info, network = choose_model(storage.to_uri(model), options)
    rule, started, name = decision_rule(info, options), time.monotonic(), options.out or "the export"
    if options.check and target is not None and storage.exists(target):
        content, seconds = _read(target), 0.0
    else:
        from mvad.onnx_export.model import export_model

        content = export_model(info, network, rule).SerializeToString()
        seconds = time.monotonic() - started
        if target is not None:
            storage.write(target, content)
            name = storage.readable(target)
            report.result(f"{shown_name(info.category)}: {name}, {len(content) / 1e6:.1f} MB, in {seconds:.1f} s")
    result = ExportResult(info.model_id, None if target is None else name, len(content), round(seconds, 3))
    if options.check:
        from mvad.onnx_export.check import Exported, compare

        exported = Exported(content, name, info)
        result.comparison = compare(exported, original_model(info, network, options), options, report)
        _print(result.comparison, report)
    return result


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, MAX_FILE_BYTES)
    except ImageError as error:
        raise UsageError(
            f"{storage.readable(uri)} cannot be checked: {error}; give another file with --out."
        ) from error


def _print(comparison: Comparison, report: Reporter) -> None:
    """Say how much scores and maps differ, and which verdicts."""
    text = f"scores of {plural(comparison.n_images, 'image')} differ by at most {comparison.largest_difference:.1e}"
    if comparison.largest_map_difference is not None:
        text += f", maps by {comparison.largest_map_difference:.1e}"
    report.result(f"{text} of their values, and {plural(len(comparison.verdicts), 'verdict')}")
    for one in comparison.verdicts:
        mvad, exported = (VERDICTS[one[name]] for name in ("is_anomaly", "exported_is_anomaly"))
        scores = f"scores {one['score']:.6g} and {one['exported_score']:.6g}"
        report.result(f"  {one['image_id']!r}: {mvad} in mvad, {exported} in the export ({scores})")
    if not comparison.is_same:
        report.warn("the export does not score as mvad does: do not use it, and export the model again")
