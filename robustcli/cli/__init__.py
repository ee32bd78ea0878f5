"""The command line: parse, build a config, call one function, print. Nothing heavy at import."""

from robustcli.cli.main import main

__all__ = ["main"]
