"""Entry point for ``ray job submit``: the command ``mvad report`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
