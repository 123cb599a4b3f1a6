"""The README's commands are found by .ci/run, and what the documentation names exists."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""Documents that describe the tree as it is; the changelog also names what has gone."""
TOP = ("vaerun", "tests", "docs", "configs", "scripts", ".ci")


@pytest.mark.parametrize(("name", "end"), [("run", "&& .venv/bin/vaerun"), ("test", "-m 'not slow and not nightly'")])
def test_ci_finds_the_command(name: str, end: str) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    extract = re.search(r"command=\$\((awk .*) README.md\)", script)
    assert extract is not None
    words = extract.group(1).replace("$1", name)
    done = subprocess.run(["bash", "-c", f"{words} README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert done.stdout.strip().endswith(end)
    assert len(done.stdout.splitlines()) == 1


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def quoted(path: Path) -> list[str]:
    """What a document has in single backticks."""
    return re.findall(r"`([^`\n]+)`", prose(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=identifier)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@cache
def tracked() -> set[str]:
    return {str(p.relative_to(ROOT)) for top in TOP for p in (ROOT / top).rglob("*")}


def missing_paths(words: list[str]) -> Iterator[str]:
    """Quoted paths into the source tree at which there is nothing; bare names of test files count too.

    A part in capitals stands for any name, as in `configs/GROUP/`.
    """
    for word in words:
        name = re.sub(r"\b[A-Z]+\b", "*", word.partition("::")[0].rstrip("/"))
        if not re.fullmatch(r"[\w./*-]+", name):
            continue
        if name.startswith(tuple(f"{top}/" for top in TOP)):
            exists = any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()
        elif re.fullmatch(r"test_\w+\.py", name):
            exists = any(path.endswith(f"/{name}") for path in tracked())
        else:
            continue
        if not exists:
            yield word


@pytest.mark.parametrize("path", CURRENT, ids=identifier)
def test_quoted_paths_exist(path: Path) -> None:
    assert list(missing_paths(quoted(path))) == []


@pytest.mark.parametrize("path", [ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.*"))], ids=identifier)
def test_paths_in_scripts_exist(path: Path) -> None:
    words = re.findall(r"(?:vaerun|tests|scripts|docs)/[\w/]+\.\w+", path.read_text(encoding="utf-8"))
    assert list(missing_paths(words)) == []


def test_a_missing_path_is_found() -> None:
    words = ["vaerun/nowhere.py", "test_nowhere.py", "tests/*/nowhere", "vaerun/cli/", "docs", "outputs/DATA"]
    assert list(missing_paths(words)) == words[:3]


def definitions(source: str) -> set[str]:
    """Names that a module defines: functions, classes, Class.member and top-level variables."""
    names = set()

    def add(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                names.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))

    add(ast.parse(source).body, "")
    return names


@cache
def all_tests() -> set[str]:
    """Names of all tests."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in definitions(file.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("path", CURRENT, ids=identifier)
def test_quoted_tests_exist(path: Path) -> None:
    names = [word.partition("::")[2] or word for word in quoted(path)]
    named = {name for name in names if re.fullmatch(r"test_\w+", name)}
    assert named - all_tests() == set()


def section(path: Path, heading: str) -> str:
    """A section of a document, from its heading to the next one."""
    text = path.read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, f"{path.name} has no section '{heading}'"
    return match.group(1)


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of a section's table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


TASKS = rows(section(ROOT / "CONTRIBUTING.md", "Where to change what"))


def missing_symbols(text: str) -> Iterator[str]:
    """Symbols that are not defined in the file that they are quoted with: `file.py` (`symbol`, `Class.member`)."""
    for name, symbols in re.findall(r"`([\w./]+\.py)` \(((?:`[\w.]+`(?:, )?)+)\)", text):
        defined = definitions((ROOT / name).read_text(encoding="utf-8"))
        yield from (f"{name}: {symbol}" for symbol in re.findall(r"`([\w.]+)`", symbols) if symbol not in defined)


def test_places_to_find_exist() -> None:
    assert list(missing_symbols(section(ROOT / "CONTRIBUTING.md", "Where to find what"))) == []


def test_there_are_ten_tasks() -> None:
    assert len(TASKS) == 10
    assert len({task for task, *_ in TASKS}) == 10


@pytest.mark.parametrize("row", TASKS, ids=lambda row: row[0].replace(" ", "_"))
def test_a_task_names_its_room_files_and_symbols(row: list[str]) -> None:
    _, room, start, others = row
    rooms = re.findall(r"`(vaerun/\w+)`", room)
    assert rooms
    assert all((ROOT / name / "__init__.py").is_file() for name in rooms)
    assert any(f"`{name}/" in start for name in rooms)
    assert re.search(r"\.py` \(`", start), "it should name a symbol to start from"
    assert list(missing_symbols(f"{start} {others}")) == []


def test_a_missing_symbol_is_found() -> None:
    text = "`vaerun/errors.py` (`InputError`, `Nobody`), `vaerun/text.py` (`printable`) and `vaerun/text.py` (`no.one`)"
    assert list(missing_symbols(text)) == ["vaerun/errors.py: Nobody", "vaerun/text.py: no.one"]


def layers(name: str) -> Any:
    """A constant of tests/unit/test_layers.py."""
    source = (ROOT / "tests/unit/test_layers.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise AssertionError(f"test_layers.py has no {name}")


def test_the_layout_has_every_package_at_its_level() -> None:
    layout = rows(section(ROOT / "CONTRIBUTING.md", "How the code is laid out"))
    documented = {name: level for level, cell, _ in layout for name in re.findall(r"`(vaerun/[\w.]+)`", cell)}
    levels = {name: int(level) for name, level in documented.items() if level}
    assert levels == {f"vaerun/{name}": level for name, level in layers("LEVELS").items()}
    helpers = {path for path in (ROOT / "vaerun").glob("[!_]*.py") if path.stem not in layers("MOVED")}
    unlevelled = {name for name, level in documented.items() if not level}
    assert unlevelled == {f"vaerun/{path.name}" for path in helpers} | {"vaerun/storage"}
