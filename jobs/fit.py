"""Entry point for ``ray job submit``: the command ``mvad fit`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
