from typing import Annotated

from typer import Argument, Option

from mvad.console import Reporter, plural
from mvad.data.large_samples import write_large_sample
from mvad.data.synthetic import write_sample
from mvad.options import OutputOptions, takes


@takes(OutputOptions)
def sample(
    folder: Annotated[str, Argument(metavar="DIR", help="New folder for the data set; a path or a URI.")],
    seed: Annotated[int, Option(help="Seed of everything that is random.")] = 0,
    large: Annotated[
        bool, Option("--large", help="Images of 4096 x 3072 and 8192 x 1024 pixels with defects of 10 to 40 pixels.")
    ] = False,
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
    count = write_large_sample(folder, seed) if large else write_sample(folder, seed)
    Reporter(options.quiet).result(f"{plural(count, 'image')} in {folder}")
    return count
