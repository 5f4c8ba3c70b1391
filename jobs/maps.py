"""Entry point for ``ray job submit``: the command ``mvad maps`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["maps", *sys.argv[1:]])
