"""The command line: one module a group of commands, and the tables that they print."""

from treadle.cli.commands import app, main

__all__ = ["app", "main"]
