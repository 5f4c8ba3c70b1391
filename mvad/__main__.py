"""``python -m mvad``."""

from mvad.cli import main

main()
