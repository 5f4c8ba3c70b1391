from typing import Annotated

from typer import Argument, Option

from mvad.console import Reporter, plural
from mvad.data.synthetic import write_sample
from mvad.options import OutputOptions, takes


@takes(OutputOptions)
def sample(
    folder: Annotated[str, Argument(metavar="DIR", help="New folder for the data set; a path or a URI.")],
    seed: Annotated[int, Option(help="Seed of everything that is random.")] = 0,
    *,
    options: OutputOptions,
) -> int:
    """Write a generated data set in the MVTec layout: three categories, subtle defects, masks.

    Returns
    -------
    The number of images, without masks.

    Raises
    ------
    UsageError
        The folder is not empty.

    Examples
    --------
    >>> mvad.sample("sample", quiet=True)
    276
    """
    count = write_sample(folder, seed)
    Reporter(options.quiet).result(f"{plural(count, 'image')} in {folder}")
    return count
