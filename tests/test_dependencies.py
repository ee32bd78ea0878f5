"""What is imported is declared, and what `make` installs is what pyproject.toml allows."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robustcli.adapters.foreign_hubs import OLDEST_TRANSFORMERS
from robustcli.data.hub_datasets import OLDEST_DATASETS
from robustcli.evaluation import diagnosis
from robustcli.models.scan import cpu
from tests.test_architecture import statements

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
GUARDED = {
    "triton": "comes with torch's CUDA builds; without it its scan backend is off",
    "segmentation_models_pytorch": "the extra `smp`; without it its networks say how to install it",
    "onnx": "the extra `onnx`; without it the parameters of an ONNX file are not counted",
    "onnxruntime": "the extra `onnx`; without it ONNX files say how to install it",
    "datasets": "the extra `hf`; without it `--data hf:` says how to install it",
    "transformers": "the extra `hf`; without it `hf:` names say how to install it",
    "open_clip": "the extra `clip`; without it `open-clip:` names say how to install it",
    "nnunetv2": "compared with where it is installed",
    "mlflow": "the extra `mlflow`; `robust publish` says how to install it",
    "wandb": "the extra `wandb`; `robust publish` says how to install it",
    "trackio": "the extra `trackio`; `robust publish` says how to install it",
    "ray": "the extra `ray`; `--engine ray` says how to install it",
    "submitit": "the extra `slurm`; `--engine slurm` says how to install it",
    "yaml": "comes with huggingface-hub; reads back what that wrote",
    "_typeshed": "exists for the type checker alone",
}


def requirements(*texts: str) -> dict[str, Requirement]:
    """By canonical name."""
    parsed = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


RUN = requirements(*PROJECT["dependencies"])
DEV = requirements(*EXTRAS["dev"])


def imported(folder: str) -> set[str]:
    """The first names of all modules that files under `folder` import, at any depth."""
    names: set[str] = set()
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for node, _ in statements(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - {"robustcli", "tests", "__main__"}


def test_what_is_imported_is_declared() -> None:
    providers = packages_distributions()
    for folder in ("robustcli", "tests", "benchmarks", "recipes"):
        declared = RUN if folder == "robustcli" else RUN | DEV
        packages = {
            name: {canonicalize_name(package) for package in providers.get(name, ())}
            for name in imported(folder) - GUARDED.keys()
        }
        assert packages
        assert {name: by for name, by in packages.items() if not by & declared.keys()} == {}


def lowest_pins() -> dict[str, Requirement]:
    script = [sys.executable, str(REPOSITORY / ".ci" / "lowest.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True)
    return requirements(*printed.stdout.splitlines())


def test_the_oldest_environment_takes_every_lowest_bound() -> None:
    pins = lowest_pins()
    bounded = {n: r for n, r in (RUN | DEV).items() if r.specifier}
    assert pins.keys() == bounded.keys() >= RUN.keys()
    for name, requirement in bounded.items():
        assert str(requirement.specifier) == str(pins[name].specifier).replace("==", ">=")


def constraints(python: str) -> dict[str, str]:
    """The version that constraints.txt names for each package on Linux with `python`."""
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    machine = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_machine": "x86_64",
    }  # fmt: skip
    missing: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line.split("#")[0].strip() or "nothing")
        if requirement.specifier and not (
            requirement.marker and not requirement.marker.evaluate(machine)
        ):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in missing
            missing[canonicalize_name(requirement.name)] = pin.version
    return missing


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_are_complete_and_allowed(python: str) -> None:
    pins = constraints(python)
    for name, requirement in (RUN | DEV).items():
        assert requirement.specifier.contains(pins[name]), name
    assert pins["opencv-python"] == pins["opencv-python-headless"]  # they share their files


def test_torch_and_torchvision_are_named_as_a_pair_and_left_open_above() -> None:
    """Torchvision 0.N works beside torch 2.(N-15) only; pip finds it by torchvision's own pin."""
    for pins in map(constraints, PYTHONS):
        torch, torchvision = (pins[name].split(".") for name in ("torch", "torchvision"))
        assert (torch[0], torchvision[0]) == ("2", "0")
        assert int(torchvision[1]) == int(torch[1]) + 15
    for name in ("torch", "torchvision"):
        assert [clause.operator for clause in RUN[name].specifier] == [">="]


def test_the_cpu_kernels_name_the_numba_releases_that_they_are_tested_with() -> None:
    (lowest,) = RUN["numba"].specifier
    assert (lowest.version, constraints("3.11")["numba"]) == cpu.TESTED


def test_the_diagnosis_knows_every_extra():
    declared = {
        extra: tuple(canonicalize_name(Requirement(text).name) for text in texts)
        for extra, texts in EXTRAS.items()
        if extra != "dev"
    }
    known = {extra: tuple(map(canonicalize_name, some)) for extra, some in diagnosis.EXTRAS.items()}
    assert known == declared


def test_the_oldest_versions_in_messages_are_those_that_are_declared():
    declared = requirements(*EXTRAS["hf"])
    for package, oldest in (("transformers", OLDEST_TRANSFORMERS), ("datasets", OLDEST_DATASETS)):
        (bound,) = declared[package].specifier
        assert bound.operator == ">="
        assert bound.version == ".".join(map(str, oldest))


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_what_is_installed_of_an_extra_is_not_older_than_declared(extra):
    for requirement in requirements(*EXTRAS[extra]).values():
        assert requirement.specifier, f"{requirement.name} has no oldest version"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if requirement.name == "transformers":  # peft needs it; an older one is refused when used
            continue
        assert requirement.specifier.contains(installed, prereleases=True)
