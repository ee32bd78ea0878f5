"""Checks that a release can be published; `make check-release` runs it in its own environment.

Builds the sdist and the wheel, and says of each check whether it passed. The exit code is the
number of checks that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
MOST_BYTES = 10_000_000
NVIDIA = re.compile(r"nvidia-|cuda-")
"""Packages that torch installs, under NVIDIA's own licence, which not all of them name."""
BUNDLED = ("robustcli/assets/", "robustcli/reports/templates/")
# Licences under which a package may be used beside ours (Apache-2.0) without further duties on the
# user's own code. Copyleft limited to the package's own files (MPL, LGPL) is among them.
FREE = re.compile(
    r"apache|\bmit\b|bsd|isc|python software foundation|\bpsf|mpl|mozilla|hpnd|zlib|unlicense|"
    r"public domain|cc0|lgpl|lesser|historical permission|0bsd|mit-cmu|nvidia|boost|libpng",
    re.IGNORECASE,
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""All dependencies must have wheels for them; interpreters are needed for `--python` alone."""
TRY = ("eval", "--model", "resnet-pico", "--transform", "identity", "--limit", "20", "--out", "run")


def main() -> int:
    """Runs every check; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", action="append", help="An interpreter to install into; repeatable."
    )
    pythons = parser.parse_args().python or [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        dist = Path(folder)
        _run(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
        (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
        checks: dict[str, Callable[[], Iterator[str]]] = {
            "metadata": lambda: _told(
                sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)
            ),
            "contents": lambda: contents(wheel, sdist),
            "version": lambda: version(wheel),
            "links of the documents": links,
            "vulnerabilities": vulnerabilities,
        }
        for version_number in PYTHONS:
            checks[f"wheels of all dependencies for Python {version_number}"] = (
                lambda number=version_number: resolvable(number)
            )
        for python in pythons:
            checks[f"wheel in {python}"] = lambda python=python: installed(python, wheel, dist)
        checks[f"sdist in {pythons[0]}"] = lambda: installed(pythons[0], sdist, dist)
        return sum([not _passes(name, check) for name, check in checks.items()])


def _passes(name: str, check: Callable[[], Iterator[str]]) -> bool:
    faults = list(check())
    print(f"{'FAILED' if faults else 'passed'}: {name}", flush=True)
    for fault in faults:
        print(f"  {fault}", flush=True)
    return not faults


def contents(wheel: Path, sdist: Path) -> Iterator[str]:
    """Faults in what the two archives hold."""
    size = wheel.stat().st_size
    print(f"  {wheel.name}: {size / 1e6:.2f} MB; {sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB")
    if size >= MOST_BYTES:
        yield f"the wheel has {size:,} bytes, of at most {MOST_BYTES:,}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    yield from (
        f"`{n}` is in the wheel" for n in names if not n.startswith(("robustcli/", "robustcli-"))
    )
    tracked = _run("git", "-C", str(ROOT), "ls-files", "robustcli").splitlines()
    yield from (f"`{name}` is missing in the wheel" for name in tracked if name not in names)
    yield from (
        f"nothing of `{part}` is in the wheel"
        for part in BUNDLED
        if not any(n.startswith(part) for n in names)
    )
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    yield from (f"`{name}` is missing in the sdist" for name in tracked if name not in packed)


def version(wheel: Path) -> Iterator[str]:
    """Faults in what CITATION.cff and CHANGELOG.md say of the version."""
    released = wheel.name.split("-")[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    yield from (
        f"CITATION.cff has no `{key}`"
        for key in ("cff-version", "message", "title", "authors")
        if not citation.get(key)
    )
    if citation["version"] != released:
        yield f"CITATION.cff is of {citation['version']}, the wheel of {released}"
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## {released}" not in log and "## Unreleased" not in log:
        yield f"CHANGELOG.md has neither a section `{released}` nor `Unreleased`"


def links() -> Iterator[str]:
    """Links of the documents to files or headings that are not there."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for target in _targets(document):
            place, _, heading = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            linked = (document.parent / place).resolve() if place else document
            if not linked.exists():
                yield f"{document.relative_to(ROOT)}: `{target}` is not there"
            elif heading and linked.suffix == ".md" and heading not in _headings(linked):
                yield f"{document.relative_to(ROOT)}: `{target}` has no such heading"


def _targets(document: Path) -> Iterator[str]:
    for token in MarkdownIt().parse(document.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def _headings(document: Path) -> set[str]:
    tokens = MarkdownIt().parse(document.read_text(encoding="utf-8"))
    titles = [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def vulnerabilities() -> Iterator[str]:
    """Known vulnerabilities of the tested versions, from PyPI's own database."""
    audit = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"),
         "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        yield f"pip-audit gave no answer: {audit.stderr.strip()[-500:]}"
        return
    for package in packages:
        for known in package.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "no version"
            yield f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}"


def resolvable(python: str) -> Iterator[str]:
    """Faults where `pip install` or `make` find no wheels for `python`, such as `3.14`.

    uv decides it without that interpreter. The platform is Linux with glibc 2.28, as torch's.
    """
    resolve = [
        sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary", ":all:",
        "--python-version", python, "--python-platform", "x86_64-manylinux_2_28",
        str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    yield from _told(*resolve)
    yield from _told(*resolve, "--extra", "dev", "--constraint", str(ROOT / "constraints.txt"))


def installed(python: str, archive: Path, folder: Path) -> Iterator[str]:
    """Faults of `archive` installed into a new environment of `python`."""
    place = folder / "environment"
    shutil.rmtree(place, ignore_errors=True)
    try:
        _run(python, "-m", "venv", str(place))
        _run(str(place / "bin/python"), "-m", "pip", "install", "--quiet", str(archive))
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        robust = str(place / "bin/robust")
        for command in (["--version"], ["doctor"], ["list", "models"], list(TRY)):
            _run(robust, *command, cwd=work)
        report = (work / "run/report.md").read_text(encoding="utf-8")
        if "resnet-pico" not in report:
            yield "the report of an evaluation does not name its model"
        yield from licences(place)
    except RuntimeError as error:
        yield str(error)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def licences(place: Path) -> Iterator[str]:
    """Packages of the environment at `place` under a licence that is not known to be free."""
    listed = _run(
        sys.executable,
        "-m",
        "piplicenses",
        "--python",
        str(place / "bin/python"),
        "--format",
        "json",
        "--from",
        "all",
    )
    for package in json.loads(listed):
        names = [v for k, v in package.items() if k.startswith("License") and v != "UNKNOWN"]
        if NVIDIA.match(package["Name"]):
            continue
        if not any(FREE.search(name) for name in names):
            yield f"{package['Name']} {package['Version']}: licence {', '.join(names) or 'unknown'}"


def _told(*command: str) -> Iterator[str]:
    try:
        _run(*command)
    except RuntimeError as error:
        yield str(error)


def _run(*command: str, cwd: Path | None = None) -> str:
    """The standard output of `command`; raises RuntimeError with all of its output."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-1500:]
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
