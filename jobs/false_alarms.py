"""Entry point for ``ray job submit``: the command ``mvad false-alarms`` with the same options."""

import sys

from mvad.cli import main

if __name__ == "__main__":
    main(["false-alarms", *sys.argv[1:]])
