"""Runs the command line: `python -m robustcli` is the same as `robust`."""

from robustcli.cli import main

main()
