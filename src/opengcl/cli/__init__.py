"""The command line, one file a group of subcommands."""

from opengcl.cli.main import app, main

__all__ = ["app", "main"]
