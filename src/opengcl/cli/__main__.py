"""``python -m opengcl.cli``."""

from opengcl.cli.main import main

main()
