"""Entry point for ``ray job submit``: the command ``mvad plan`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
