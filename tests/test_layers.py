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

# Free for all; they know nothing but each other.
HELPERS = {
    "errors", "randomness", "files", "plugins", "stopping", "events", "foreign", "archives", "plain_yaml", "printed",
}  # fmt: skip

LEVELS = {
    "nets": 0,
    "data": 0,
    "distributions": 1,
    "models": 2,
    "inference": 3,
    "estimators": 3,
    "objectives": 4,
    "training": 5,
    "evaluation": 5,
    "report": 6,
    "run": 7,
    "sweep": 8,
    "bench": 8,
    "cli": 9,
}
"""From architecture.md. Packages of one level do not know each other."""

SAME_LEVEL = {
    ("evaluation", "training.signals"),
    ("evaluation", "training.checkpoint"),  # states written whole or not at all
    ("evaluation", "training.tensors"),  # files of tensors, weighed before they are read
    ("evaluation", "training.shown"),  # progress lines
}
NARROWER = {
    "training": {"data", "objectives"},  # knows objectives and batches only
    "report": set[str](),  # reads files only
}
SEES_CONFIG = {"run", "sweep", "cli"}  # besides these:
SCHEMA = {"settings", "allowed", "schema"}
BELOW = {("settings", "allowed"), ("settings", "schema"), ("allowed", "schema")}
CONFIG = {"hydra", "omegaconf"}


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
        if top in CONFIG and own not in SEES_CONFIG | SCHEMA:
            found.append(f"{module}:{line} imports {name}: only run, cli and settings.py see the configuration")
        if top != "vaerun":
            continue
        target = inner.split(".")[0]
        if own in HELPERS or own in SCHEMA:
            allowed = target in HELPERS or (own, target) in BELOW
        elif own == "" or target in HELPERS or target == own:  # own == "": vaerun/__init__.py, which offers all
            allowed = True
        elif target in SCHEMA:
            allowed = own in SEES_CONFIG
        elif target not in LEVELS:
            allowed = False
        elif own in NARROWER:
            allowed = target in NARROWER[own]
        else:
            allowed = LEVELS[target] < LEVELS[own] or any(
                own == o and (inner == t or inner.startswith(t + ".")) for o, t in SAME_LEVEL
            )
        if not allowed:
            found.append(f"{module}:{line} imports {name}")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_a_level() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages == LEVELS.keys()
    assert {p.stem for p in ROOT.glob("*.py")} == HELPERS | SCHEMA | {"__init__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_layers(path: Path) -> None:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if package else parts)
    assert violations(path.read_text(encoding="utf-8"), module, package) == []


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
    "evaluation, other than signals": ("evaluation.importance", "from vaerun.training.loop import train"),
    "training and models": ("training.loop", "from vaerun.models import LatentModel"),
    "report": ("report.table", "from vaerun.nets import MLPEncoder"),
    "helper": ("files", "from vaerun.nets import MLPEncoder"),
    "settings below run": ("models.latent", "from vaerun.settings import Settings"),
    "configuration": ("training.loop", "from omegaconf import DictConfig"),
    "else branch": ("nets.mlp", "if TYPE_CHECKING:\n    pass\nelse:\n    import vaerun.models"),
    "command line": ("run.execute", "from vaerun.cli.main import main"),
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
        ("evaluation.importance", "from vaerun.training.signals import Stop"),
        ("training.loop", "from vaerun.objectives import Objective"),
        ("run.execute", "from vaerun.settings import Settings"),
        ("cli.main", "from vaerun.run.execute import execute"),
        ("files", "from vaerun.errors import RunError"),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    "name", ["vaerun", "vaerun.cli.main", "vaerun.cli.compose", "vaerun.cli.data", "vaerun.settings"]
)
def test_import_is_light(name: str) -> None:
    heavy = "{'torch', 'torchvision', 'sklearn', 'tensorboard', 'matplotlib'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
