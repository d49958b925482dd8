"""``python -m poky``."""

from poky.cli import main

main()
