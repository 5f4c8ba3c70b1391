"""Entry point for ``ray job submit``: the command ``mvad score`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
