"""Entry point for ``ray job submit``: the command ``mvad benchmark`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
