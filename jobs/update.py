"""Entry point for ``ray job submit``: the command ``mvad update`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["update", *sys.argv[1:]])
