"""The house: which room may import which, what stays out, and what each says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "robustcli"
# Each room may import those below it. Rooms on one line do not import each other.
FLOORS = (
    ("robustcli.__main__",),
    ("robustcli.cli",),
    ("robustcli",),
    ("robustcli.api", "robustcli.timm_models"),
    ("robustcli.reports",),
    ("robustcli.explanation",),
    ("robustcli.finetuning",),
    ("robustcli.training",),
    ("robustcli.verification",),
    ("robustcli.evaluation",),
    ("robustcli.tasks",),
    ("robustcli.adapters",),
    ("robustcli.nnunet",),
    ("robustcli.metrics", "robustcli.data", "robustcli.transforms"),
    ("robustcli.models",),
    ("robustcli.models.scan",),
    ("robustcli.core",),
)
LEVEL = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ("core", "data", "metrics", "transforms", "reports", "cli")
TORCHES = {"torch", "torchvision", "timm"}
NAMES_TORCH = {"robustcli.core.ranks"}  # inside functions, where several processes talk


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The innermost room of FLOORS that `module` is in; the package's own file is a room too."""
    inside = [room for room in LEVEL if module == room or module.startswith(f"{room}.")]
    room = max(inside, key=len)
    assert room != "robustcli" or module == room, f"`{module}` is in no room: add it to FLOORS"
    return room


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def statements(node: ast.AST, function: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """All statements in `node`, at any depth, and whether each is in a function."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.stmt):
                yield child, function
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from statements(child, function or inside)


@cache
def import_nodes(file: Path, functions: bool = True) -> list[ast.Import | ast.ImportFrom]:
    """All import statements of `file`, with `functions` also those in functions."""
    return [
        node
        for node, inside in statements(tree_of(file))
        if isinstance(node, ast.Import | ast.ImportFrom) and (functions or not inside)
    ]


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports."""
    for node in import_nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"relative import in {file}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


def only_version(file: Path) -> bool:
    """Whether all that `file` imports from the package's own file is its version."""
    nodes = [n for n in import_nodes(file) if isinstance(n, ast.ImportFrom)]
    names = {alias.name for n in nodes if n.module == "robustcli" for alias in n.names}
    return names <= {"__version__"}


def wrong_arrows(module: str) -> list[str]:
    home, file = room_of(module), MODULES[module]
    package_imports = {name for name in imports(file) if name.split(".")[0] == "robustcli"}
    if only_version(file):
        package_imports.discard("robustcli")
    rooms = {name: room_of(name) for name in package_imports}
    return [name for name, room in rooms.items() if room != home and LEVEL[room] >= LEVEL[home]]


def test_no_room_imports_a_higher_one_or_its_neighbour() -> None:
    arrows = {module: wrong_arrows(module) for module in MODULES}
    assert {module: wrong for module, wrong in arrows.items() if wrong} == {}


def test_no_modules_import_each_other() -> None:
    """Imports in functions count too; those of the package's version do not."""
    graph = {
        module: {name for name in imports(file) if name in MODULES} - {module, "robustcli"}
        for module, file in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_test_sees_wrong_arrows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from robustcli.transforms import registry\n"
        "import robustcli.evaluation.plan\nfrom robustcli.data import tar\n"
        "from robustcli.models import scan\nfrom robustcli.core.errors import RunError\n"
    )
    monkeypatch.setitem(MODULES, "robustcli.data.x", file)
    names_found = wrong_arrows("robustcli.data.x")
    assert sorted(names_found) == ["robustcli.evaluation.plan", "robustcli.transforms.registry"]
    monkeypatch.setitem(MODULES, "robustcli.models.scan.x", file)
    assert "robustcli.models.scan" not in wrong_arrows("robustcli.models.scan.x")
    monkeypatch.setitem(MODULES, "robustcli.core.x", file)
    assert "robustcli.models.scan" in wrong_arrows("robustcli.core.x")


def in_rooms(rooms: tuple[str, ...]) -> list[str]:
    return [m for m in MODULES if m.split(".")[1:2] and m.split(".")[1] in rooms]


def test_rooms_without_torch_do_not_name_it() -> None:
    modules = {*in_rooms(WITHOUT_TORCH)} - NAMES_TORCH
    named = {(m, n) for m in modules for n in imports(MODULES[m]) if n.split(".")[0] in TORCHES}
    assert named == set()


def loaded_by(*modules: str) -> set[str]:
    """What is in `sys.modules` after importing `modules` in a fresh interpreter."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, check=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    return set(child.stdout.split())


def test_importing_them_does_not_load_torch_either() -> None:
    modules = [*in_rooms(WITHOUT_TORCH), "robustcli.evaluation.cell_table"]
    assert "robustcli.reports.render" in modules
    assert not loaded_by(*modules) & TORCHES


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pandas", "pyarrow", "PIL", "matplotlib", "imgaug"}
    heavy |= {"pydantic", "rich"}
    assert not loaded_by(*in_rooms(("cli",))) & heavy


def test_every_module_says_what_it_is() -> None:
    for module, file in MODULES.items():
        docstring = ast.get_docstring(tree_of(file))
        assert docstring, module
        assert docstring.splitlines()[0].endswith((".", ":", "?")), module


UNIX_ONLY = {"resource", "fcntl", "pwd", "grp", "termios", "posix"}


def test_what_windows_lacks_is_imported_where_it_is_used() -> None:
    names = {
        (module, name)
        for module, file in MODULES.items()
        for node in import_nodes(file, functions=False)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert not {(module, name) for module, name in names if name in UNIX_ONLY}


def test_tables_are_read_with_the_numbers_that_were_written() -> None:
    """By default, pandas before 3.1 changes the last bit of a third of all numbers."""
    for module, file in MODULES.items():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("read_csv"):
                assert ast.unparse(node.func) == "read_csv" or module == "robustcli.core.io", module


def rooms_table() -> str:
    """The table of rooms, from the first line of each room's docstring, in the order of FLOORS."""
    lines = ["| package | subject |", "|---|---|"]
    for rooms in FLOORS:
        for room in rooms:
            file = REPOSITORY / room.replace(".", "/") / "__init__.py"
            if room != "robustcli" and file.is_file():
                doc = ast.get_docstring(ast.parse(file.read_text())) or ""
                path = room.removeprefix("robustcli.").replace(".", "/")
                lines.append(f"| `{path}/` | {doc.splitlines()[0]} |")
    return "\n".join(lines)


def test_the_table_of_rooms_in_the_documentation_is_that_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert rooms_table() in page, f"docs/architecture.md needs this table:\n{rooms_table()}"


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md", *(f"docs/{n}.md" for n in ("architecture", "kernels", "reliability"))],
)
def test_the_files_that_the_documentation_names_exist(page: str) -> None:
    """A file is named by its path, from any folder on, or by its name alone."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    files = [f"/{file.relative_to(REPOSITORY)}" for file in REPOSITORY.glob("[!.]*/**/*.py")]
    named = re.findall(r"`([a-z_0-9/]+\.py)`", text)
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []
    for name, path in re.findall(r"`(\w+)` (?:in |\()`([a-z_0-9/]+\.py)`", text):
        defining = [file for file in files if file.endswith(f"/{path}")]
        texts = [(REPOSITORY / file[1:]).read_text(encoding="utf-8") for file in defining]
        assert any(re.search(rf"(?m)^(def |class )?{name}\b", text) for text in texts), (
            f"{name} in {path}"
        )


def test_no_file_name_stands_in_two_rooms() -> None:
    rooms: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name not in {"__init__.py", "base.py", "config.py", "record.py"}:
            rooms.setdefault(file.name, []).append(str(file.relative_to(PACKAGE)))
    assert [names_found for names_found in rooms.values() if len(names_found) > 1] == []


# Public names that stand in several modules because they mean the same in each of them.
PROTOCOLS = {
    *("build", "VARIANTS"),  # families of networks
    *("create", "with_weights"),  # builders: ours, timm's, segmentation-models-pytorch's
    "default_cfgs",  # timm's registration of models
    "command",  # of the command line
    # Commands as functions of `api`, and each one's function in its room.
    *("evaluate", "explain", "export", "predict", "publish", "verify"),
}
# The scan exports two functions; inside, names follow the languages of kernels (load, store).
PRIVATE_ROOM = "robustcli.models.scan"


def public_names(tree: ast.Module) -> set[str]:
    """What a module itself defines without a leading underscore."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def names_of_several_modules(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Where each public name stands that several modules define and that is no protocol's.

    The file of a network is read alone: its classes may be named as another network's, if only
    their own file uses them.
    """
    imported = {
        (node.module, alias.name)
        for tree in trees.values()
        for node, _ in statements(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules: dict[str, list[str]] = {}
    for module, tree in trees.items():
        of_network = module.startswith("robustcli.models.")
        for name in public_names(tree) - PROTOCOLS:
            if not of_network or name[0].islower() or (module, name) in imported:
                modules.setdefault(name, []).append(module)
    return {name: places for name, places in modules.items() if len(places) > 1}


def test_no_public_name_has_two_meanings() -> None:
    trees = {
        module: tree_of(file)
        for module, file in MODULES.items()
        if not module.startswith(PRIVATE_ROOM)
    }
    assert names_of_several_modules(trees) == {}
    second = ast.parse("class Layout: ...")
    doubled = names_of_several_modules(trees | {"robustcli.data.x": second})
    assert doubled == {"Layout": ["robustcli.data.layouts", "robustcli.data.x"]}
