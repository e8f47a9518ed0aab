"""`python -m sctune` is `sctune`."""

from sctune.cli import main

main()
