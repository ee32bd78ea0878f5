"""The command line: a file per command parses options, calls one function, prints results."""

from robustcli.cli.main import main

__all__ = ["main"]
