"""Entry point for ``ray job submit``: the command ``mvad compare`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
