"""Entry point for ``ray job submit``: the command ``mvad run`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
