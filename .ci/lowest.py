"""Prints the lowest versions that pyproject.toml allows as exact pins: `name>=X` as `name==X`."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
    if pin := re.match(r"([\w.-]+)>=([\w.]+)$", requirement):
        print(f"{pin[1]}=={pin[2]}")
