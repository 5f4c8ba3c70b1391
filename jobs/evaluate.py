"""Entry point for ``ray job submit``: the command ``mvad evaluate`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
