"""Entry point for ``ray job submit``: the command ``mvad models`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["models", *sys.argv[1:]])
