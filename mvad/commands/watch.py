from typing import Annotated

from typer import Argument, Option

from mvad import watching
from mvad.options import Models, WatchOptions, takes
from mvad.results.result import Result


@takes(WatchOptions)
def watch(
    folder: Annotated[str, Argument(metavar="DIR", help="The folder that images arrive in; a path or a URI.")],
    models: Models,
    out: Annotated[str, Option(help="Folder of all nights' results; a path or a URI.")],
    *,
    options: WatchOptions,
) -> Result:
    """Score images as they arrive in DIR into OUT/date=TODAY, with models that stay loaded; until Ctrl-C.

    A night ends at midnight, or with the command. `mvad nightly` of the same folder and night goes on with it.

    Raises
    ------
    UsageError
        As for `nightly`, but an empty folder is none; or the options ask for what only a whole night allows.
    KeyboardInterrupt
        It was stopped; the night is finished.
    """
    return watching.Watch(folder, models, out, options).run()
