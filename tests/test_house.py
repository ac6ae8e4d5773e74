"""The structure of the package: which rooms import which, how long modules are, and that a name stands for one thing."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from schema_keys import SECTIONS, keys

import rapid_dse

PACKAGE = Path(rapid_dse.__file__).parent
ROOMS = (
    "common",
    "config",
    "imports",
    "parallel",
    "model",
    "device",
    "trace",
    "interconnect",
    "cost",
    "simulate",
    "events",
    "sweep",
    "analysis",
    "api",
    "explorer",
)
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All that a file's syntax tree holds."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in the file it does."""
    known, found = set(NAMES.values()), set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module for alias in node.names}
    return {name for name in found if name.split(".")[0] == "rapid_dse"}


def room(name: str) -> str | None:
    """The room that a module lies in; None for commands, which lie in none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_above_its_room(path: Path) -> None:
    own = room(NAMES[path])
    if own is None:
        return
    others = {name: room(name) for name in imported(path)}
    allowed = {*ROOMS[: ROOMS.index(own) + 1], None if own == "analysis" else own}
    wrong = sorted(name for name, other in others.items() if other not in allowed and name != "rapid_dse")
    assert not wrong, f"{NAMES[path]} imports {', '.join(wrong)}, which stand below {own}"


def test_every_folder_is_a_room() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


def test_no_two_modules_have_one_name() -> None:
    counted = Counter(path.stem for path in MODULES if path.name not in ("__init__.py", "__main__.py"))
    assert not [name for name, count in counted.items() if count > 1]


def test_no_two_classes_have_one_name() -> None:
    modules = [node for path in MODULES for node in nodes(path) if isinstance(node, ast.Module)]
    counted = Counter(node.name for module in modules for node in module.body if isinstance(node, ast.ClassDef))
    assert not [name for name, count in counted.items() if count > 1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split the module"
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.body[0].lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > 40}, "split the function"


WORDS_WITHOUT_A_NOUN = {"found", "moved", "held", "left", "shown", "beside", "each"}
KEYS = {"each"}  # of search, and of what is made of it


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_say_what_they_are(path: Path) -> None:
    names = {node.id for node in nodes(path) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in nodes(path) if isinstance(node, ast.arg)}
    names |= {node.name for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    fields = {node.target.id for node in nodes(path) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    assert not {name for name in names if name.strip("_") in WORDS_WITHOUT_A_NOUN and not (name in KEYS and name in fields)}, "add a noun"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_a_meaning_beside_its_field(section: str) -> None:
    """Pages of the documentation list it."""
    assert not [key.name for key in keys(section) if not key.meaning]
