"""Entry point for ``ray job submit``: the command ``mvad inspect`` with the same options.

A file named as the standard library's ``inspect`` would take its place in every job of this folder.
"""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["inspect", *sys.argv[1:]])
