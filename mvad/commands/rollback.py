from typing import Annotated, NamedTuple

from typer import Argument

from mvad import fitting, storage
from mvad.console import Reporter
from mvad.options import ModelCategory, RollbackOptions, takes
from mvad.storage.text import shown_name


class RollbackResult(NamedTuple):
    """The ids of the model that was in use, and of the version that is now."""

    category: str
    model_before: str
    model_id: str


@takes(RollbackOptions)
def rollback(
    folder: Annotated[str, Argument(metavar="DIR", help="Folder of fitted models; a path or a URI.")],
    category: ModelCategory,
    options: RollbackOptions,
) -> RollbackResult:
    """Put an earlier version of a model back in use; nothing is deleted, and the one in use stays among the versions.

    The version is checked first. It is in use from one moment to the next, also if the command is killed.

    Raises
    ------
    UsageError
        There is no such model or version, or several versions have such ids, or the version is damaged.

    Examples
    --------
    >>> mvad.rollback("models", "weave", quiet=True).category
    'weave'
    """
    report, uri = Reporter(options.quiet), storage.to_uri(folder)
    storage.ensure_writable_folder(uri)
    before, model = fitting.roll_back(uri, category, options.method, options.to)
    report.result(f"{shown_name(category)}: version {model.model_id[:12]} is in use, {before[:12]} was before")
    return RollbackResult(category, before, model.model_id)
