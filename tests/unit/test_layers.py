"""Layers: each package imports only from lower ones; read off the syntax tree, so imports in functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vaerun

ROOT = Path(vaerun.__file__).parent

HELPERS = ("deprecation", "text", "errors", "memory", "signals", "randomness", "incidental", "defaults", "plotting")
HELPERS += ("storage",)
"""Free for all; each imports only those before it."""

LEVELS = {
    "tracking": 0,
    "nets": 0,
    "data": 0,
    "distributions": 1,
    "models": 2,
    "inference": 3,
    "estimators": 3,
    "objectives": 4,
    "distributed": 5,
    "training": 6,
    "evaluation": 6,
    "report": 7,
    "config": 7,
    "run": 8,
    "launch": 9,
    "sweep": 10,
    "bench": 10,
    "cli": 11,
}
"""Packages of one level do not know each other."""

MOVED = {"plugins"}
"""Root modules that forward to their new place, with a DeprecationWarning, for one release."""

NARROWER = {
    "tracking": set[str](),
    "config": set[str](),  # imported before torch
    "distributed": {"data", "objectives"},
    "training": {"data", "objectives", "distributed", "tracking"},  # knows objectives and batches only
    "report": {"tracking"},  # reads files only
}
SEES_CONFIG = {"config", "run", "launch", "sweep", "cli"}
HYDRA = {"hydra", "omegaconf"}


def _is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", None)
    return name == "TYPE_CHECKING"


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: what stands under `if TYPE_CHECKING:` does not."""
    yield node
    children = node.orelse if _is_type_checking(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    for child in children:
        yield from _walk(child)


def imports(source: str, module: str, package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; `from a import b` gives a.b, for b may be a module."""
    for node in _walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, package: bool = False) -> list[str]:
    """What a module (dotted name within vaerun, e.g. models.joint) imports and should not."""
    own = module.split(".")[0]
    found = []
    for line, name in imports(source, f"vaerun.{module}", package):
        top, _, inner = name.partition(".")
        if top in HYDRA and own not in SEES_CONFIG:
            found.append(f"{module}:{line} imports {name}: only {', '.join(sorted(SEES_CONFIG))} see the configuration")
        if top != "vaerun":
            continue
        target = inner.split(".")[0]
        if own in HELPERS:
            allowed = target in HELPERS[: HELPERS.index(own) + 1]
        elif own == "" or target in HELPERS or target == own:  # own == "": vaerun/__init__.py, which offers all
            allowed = True
        elif own in MOVED:
            allowed = target == "config"
        elif target not in LEVELS:
            allowed = False
        elif target == "config":
            allowed = own in SEES_CONFIG
        elif own in NARROWER:
            allowed = target in NARROWER[own]
        else:
            allowed = LEVELS[target] < LEVELS[own]
        if not allowed:
            found.append(f"{module}:{line} imports {name}")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_a_level() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    modules = {p.stem for p in ROOT.glob("*.py")} - {"__init__"}
    assert packages | modules == {*LEVELS, *HELPERS, *MOVED}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_layers(path: Path) -> None:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if package else parts)
    assert violations(path.read_text(encoding="utf-8"), module, package) == []


def imported_modules(path: Path) -> set[str]:
    """Modules of vaerun that a module imports, wherever in it."""
    module = ".".join(["vaerun", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    found = set()
    for _, name in imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"):
        while name and name not in NAMES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    reached = {name: {name} for name in graph}
    changed = True
    while changed:
        changed = False
        for name, targets in graph.items():
            more = set().union(*(reached[target] for target in targets)) - reached[name]
            reached[name] |= more
            changed |= bool(more)
    groups = {frozenset(o for o in reached[name] if name in reached[o]) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


NAMES = {
    ".".join(["vaerun", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in MODULES
}


def test_no_import_circles() -> None:
    assert circles({name: imported_modules(path) for name, path in NAMES.items()}) == []


def test_circles_are_found() -> None:
    graph: dict[str, set[str]] = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set(), "f": {"e"}}
    assert circles(graph) == [["a", "b", "c"]]


PLANTED = {
    "upward": ("models.joint", "from vaerun.inference import Laplace"),
    "upward, whole module": ("nets.mlp", "import vaerun.distributions.normal as n"),
    "upward, in a function": ("data.cache", "def f():\n    from vaerun.run.build import build_data"),
    "upward, in a class": ("nets.mlp", "class A:\n    def f(self):\n        import vaerun.models"),
    "from the package itself": ("nets.mlp", "from vaerun import models"),
    "relative": ("models.joint", "from ..inference.laplace import Laplace"),
    "relative, package": ("models.joint", "from .. import inference"),
    "siblings": ("estimators.elbo", "from vaerun.inference.common import check_steps"),
    "siblings at the bottom": ("nets.mlp", "from vaerun.data.dataset import Batch"),
    "training and evaluation": ("evaluation.likelihood.importance", "from vaerun.training.trainer import train"),
    "training and models": ("training.loop", "from vaerun.models import LatentModel"),
    "report": ("report.table", "from vaerun.nets import MLPEncoder"),
    "helper": ("storage.atomic", "from vaerun.nets import MLPEncoder"),
    "settings below config": ("models.latent", "from vaerun.config.settings import Settings"),
    "configuration": ("training.loop", "from omegaconf import DictConfig"),
    "else branch": ("nets.mlp", "if TYPE_CHECKING:\n    pass\nelse:\n    import vaerun.models"),
    "command line": ("run.experiment", "from vaerun.cli.main import main"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_the_checker_sees(case: str) -> None:
    module, source = PLANTED[case]
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nets.mlp", "if TYPE_CHECKING:\n    from vaerun.models import LatentModel"),
        ("nets.mlp", "if typing.TYPE_CHECKING:\n    from vaerun.models import LatentModel"),
        ("nets.mlp", "from vaerun.errors import InputError"),
        ("nets.mlp", "from vaerun.nets.init import linear"),
        ("nets.mlp", "from .init import linear"),
        ("evaluation.likelihood.importance", "from vaerun.signals import Stop"),
        ("training.loop", "from vaerun.objectives import Objective"),
        ("run.experiment", "from vaerun.config.settings import Settings"),
        ("cli.main", "from vaerun.run.experiment import Experiment"),
        ("storage.atomic", "from vaerun.errors import RunError"),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    "name", ["vaerun", "vaerun.cli.main", "vaerun.cli.compose", "vaerun.cli.data", "vaerun.config.settings"]
)
def test_import_is_light(name: str) -> None:
    heavy = "{'torch', 'torchvision', 'sklearn', 'tensorboard', 'matplotlib'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
