"""Entry point for ``ray job submit``: the command ``mvad nightly`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]])
