import time
from typing import Annotated

from typer import Argument

from mvad import storage
from mvad.console import Reporter, plural
from mvad.errors import ImageError, UsageError
from mvad.features.weights import Network
from mvad.model_store import ModelInfo
from mvad.onnx_export.choice import choose_model, original_model
from mvad.onnx_export.result import FLOAT32, INT8, MAX_AUROC_LOSS, Comparison, ExportResult, Int8Comparison
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
    replaced. With ``int8``, the file has scores and a threshold of its own, from the good images ``data``. Its check
    is the image AUROC on labelled images: a file that loses more than 0.002 of it is not written, and exit code 1.

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
    started, name = time.monotonic(), options.out or "the export"
    is_there = options.check is not None and target is not None and storage.exists(target)
    content = _read(target) if target is not None and is_there else _exported(info, network, options, report)
    seconds = 0.0 if is_there else round(time.monotonic() - started, 3)
    precision = INT8 if options.int8 else FLOAT32
    result = ExportResult(info.model_id, name if is_there else None, precision, len(content), seconds)
    is_new = target is not None and not is_there
    if is_new and not (options.int8 and options.check):
        _write(content, target, info, result, report)
    if options.check:
        result.comparison = _check(content, name, info, network, options, report)
        result.precision = INT8 if isinstance(result.comparison, Int8Comparison) else FLOAT32
        if is_new and options.int8 and result.comparison.passes:  # a file that is worse is not written
            _write(content, target, info, result, report)
    return result


def _exported(info: ModelInfo, network: Network, options: ExportOptions, report: Reporter) -> bytes:
    """The content of a new file."""
    from mvad.onnx_export.model import export_model, refuse

    if not options.int8:
        return export_model(info, network, decision_rule(info, options)).SerializeToString()
    from mvad.onnx_export.images import good_images, labelled_images
    from mvad.onnx_export.int8 import ensure_int8, fit_int8

    refuse(info)
    ensure_int8(info, network)
    if options.data is None:
        raise UsageError("an INT8 file learns from good images again; give them with --data FOLDER.")
    if options.check is not None:
        labelled_images(options.check, info)  # whether there are some, before minutes of work
    int8 = fit_int8(info, network, good_images(options.data, info), options)
    report.errors(int8.errors, "the file")
    n_images, n_before = int8.n_images, info.record.get("n_train")
    report.info(f"INT8: learnt from {plural(n_images, 'good image')}, ranges of {int8.n_range_images} of them")
    if n_images != n_before:
        report.warn(f"the model itself was fitted to {n_before} images, and the INT8 file to {n_images}")
    if int8.rule.caveat is not None:
        report.warn(int8.rule.caveat)
    return export_model(info, network, int8.rule, int8).SerializeToString()


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, MAX_FILE_BYTES)
    except ImageError as error:
        raise UsageError(
            f"{storage.readable(uri)} cannot be checked: {error}; give another file with --out."
        ) from error


def _write(content: bytes, target: str | None, info: ModelInfo, result: ExportResult, report: Reporter) -> None:
    assert target is not None
    storage.write(target, content)
    result.file = storage.readable(target)
    size, note = f"{len(content) / 1e6:.1f} MB", ""
    if result.precision == INT8:
        note = "; INT8: its scores and threshold are its own, not those of the model"
    report.result(f"{shown_name(info.category)}: {result.file}, {size}, in {result.seconds:.1f} s{note}")


def _check(
    content: bytes,
    name: str,
    info: ModelInfo,
    network: Network,
    options: ExportOptions,
    report: Reporter,
) -> Comparison:
    """Compare a file with its model, and say by how much they differ."""
    from mvad.onnx_export.check import Exported, compare, compare_int8
    from mvad.onnx_export.images import labelled_images

    exported = Exported(content, name, info)
    if options.int8 and not exported.is_int8:
        raise UsageError(f"{name} is a file in float32, not in INT8; leave out --int8, or give another --out.")
    original = original_model(info, network, options)
    if not exported.is_int8:
        comparison = compare(exported, original, options, report)
        _print(comparison, report)
        return comparison
    of_int8 = compare_int8(labelled_images(options.check or "", info), exported, original, options, report)
    _print_int8(of_int8, report)
    return of_int8


def _print_int8(comparison: Int8Comparison, report: Reporter) -> None:
    """Say how well an INT8 file tells images apart, next to the model."""
    ours, its = comparison.image_auroc, comparison.exported_image_auroc
    report.result(
        f"image AUROC of {plural(comparison.n_images, 'image')}, {comparison.n_defective} of them defective: "
        f"{ours:.4f} of the model, {its:.4f} of the INT8 file ({its - ours:+.4f})"
    )
    verdicts = plural(len(comparison.verdicts), "other verdict")
    report.result(f"{verdicts}; {comparison.ms_per_image:.1f} ms per image")
    _print_verdicts(comparison, "the INT8 file", report)
    if not comparison.passes:
        report.warn(
            f"the INT8 file loses {comparison.auroc_loss:.4f} of image AUROC, and {MAX_AUROC_LOSS} is allowed: do not "
            "use it, and export the model without --int8"
        )


def _print(comparison: Comparison, report: Reporter) -> None:
    """Say how much scores and maps differ, and which verdicts."""
    text = f"scores of {plural(comparison.n_images, 'image')} differ by at most {comparison.largest_difference:.1e}"
    if comparison.largest_map_difference is not None:
        text += f", maps by {comparison.largest_map_difference:.1e}"
    verdicts = plural(len(comparison.verdicts), "verdict")
    report.result(f"{text} of their values, and {verdicts}; {comparison.ms_per_image:.1f} ms per image")
    _print_verdicts(comparison, "the export", report)
    if not comparison.passes:
        report.warn("the export does not score as mvad does: do not use it, and export the model again")


def _print_verdicts(comparison: Comparison, where: str, report: Reporter) -> None:
    for one in comparison.verdicts:
        mvad, exported = (VERDICTS[one[name]] for name in ("is_anomaly", "exported_is_anomaly"))
        scores = f"scores {one['score']:.6g} and {one['exported_score']:.6g}"
        report.result(f"  {one['image_id']!r}: {mvad} in mvad, {exported} in {where} ({scores})")
