"""Rooms import in one direction, the one docs/architecture.md names, and the torch-free rooms stay free of torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "src/llmforge"
BOARD = REPO / "webui"  # llmforge.webui, by setup.py's package_dir
MODULES = sorted([*PACKAGE.rglob("*.py"), *BOARD.rglob("*.py")])
TORCH_FREE = (
    "errors",
    "process",
    "registry",
    "runs",
    "config",
    "data",
    "metrics",
    "bench",
    "gateway",
    "check",
    "chain",
    "webui",
    "cli",
)
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
)  # each takes a second or more to import

CONTRACT = ("train", "llmforge.infer.protocol")  # training generates through this contract and the table of cores


class Rooms(NamedTuple):
    """The line of docs/architecture.md: rooms from left to right, and the groups of those that `|` separates."""

    order: list[str]
    apart: list[set[str]]


def read_line() -> Rooms:
    text = (REPO / "docs/architecture.md").read_text(encoding="utf-8")
    line = re.search(r"^errors,.* <- .*$", text, re.MULTILINE).group()
    groups = [re.split(r"\s*[,|]\s*", group.strip()) for group in line.split("<-")]
    apart = [set(re.split(r"\s*\|\s*", group.strip())) for group in line.split("<-") if "|" in group]
    return Rooms([room for group in groups for room in group], apart)


def room_of(module: str) -> str | None:
    """The room of `llmforge.x.y`; a file at the top that runs commands counts as cli, the package itself as none."""
    parts = module.split(".")
    if parts[0] != "llmforge" or len(parts) == 1:
        return None
    return "cli" if parts[1].endswith("_command") or parts[1] == "__main__" else parts[1]


def module_name(path: Path) -> str:
    if path.is_relative_to(BOARD):
        parts = ("llmforge", *path.relative_to(REPO).with_suffix("").parts)
    else:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a tree; `from llmforge import runs` names llmforge.runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative imports hide the room"
            names = [f"llmforge.{a.name}" for a in node.names] if node.module == "llmforge" else [node.module or ""]
            yield from ((node.lineno, name) for name in names)


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree without what runs later or never: function bodies and `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path):
    rooms = read_line()
    here = room_of(module_name(path))
    if here is None:
        return
    assert here in rooms.order, f"the room {here} is missing in the line of docs/architecture.md"
    wrong = []
    for line, module in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        there = room_of(module)
        if there in (None, here, "__version__") or (here, module) == CONTRACT:
            continue
        between = any({here, there} <= group for group in rooms.apart)
        if between or rooms.order.index(there) > rooms.order.index(here):
            wrong.append(f"{path.relative_to(REPO)}:{line}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(module_name(p)) in TORCH_FREE], ids=module_name)
def test_rooms_without_torch_import_nothing_heavy_at_module_level(path):
    tree = at_module_level(ast.parse(path.read_text(encoding="utf-8")))
    heavy = [f"line {line}: {module}" for line, module in imports_of(tree) if module.split(".")[0] in HEAVY]
    assert not heavy


def test_importing_every_module_without_torch_leaves_torch_out():
    names = [module_name(p) for p in MODULES if room_of(module_name(p)) in TORCH_FREE and p.stem != "__main__"]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_have_no_code_in_their_init():
    full = [str(p.relative_to(REPO)) for p in PACKAGE.rglob("*/__init__.py") if p.stat().st_size]
    assert not full


def test_the_line_is_read_as_written():
    rooms = read_line()
    assert rooms.order[0] == "errors"
    assert rooms.order[-1] == "cli"
    assert {"train", "infer"} in rooms.apart
    assert any({"serve", "export", "eval", "datagen"} <= group for group in rooms.apart)
