"""The README's commands are found by .ci/run, and what the repository promises of its files holds."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "end"), [("run", "&& .venv/bin/vaerun"), ("test", "-m 'not slow and not nightly'")])
def test_ci_finds_the_command(name: str, end: str) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    extract = re.search(r"command=\$\((awk .*) README.md\)", script)
    assert extract is not None
    words = extract.group(1).replace("$1", name)
    found = subprocess.run(["bash", "-c", f"{words} README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert found.stdout.strip().endswith(end)
    assert len(found.stdout.splitlines()) == 1
