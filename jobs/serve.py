"""Entry point for ``ray job submit``: the command ``mvad serve`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
