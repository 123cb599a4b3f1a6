"""One table from errors to exit codes and lines, for every command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from vaerun.cli.console import reporting_errors
from vaerun.cli.output_dir import OutputDir
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.storage.run_dir import RunDirLocked

ERRORS = [
    (InputError("a\nb"), 2, "program: error: a b\n"),
    (RunDirLocked("in use"), 2, "program: error: in use\n"),
    (RunError("no space"), 1, "program: error: no space\n"),
    (Interrupted(signal.SIGINT), 130, "program: stopped by SIGINT; run the same command again to resume\n"),
    (Interrupted(signal.SIGTERM, "start over"), 75, "program: stopped by SIGTERM; start over\n"),
    (KeyboardInterrupt(), 130, "program: interrupted\n"),
]


@pytest.mark.parametrize(("error", "code", "line"), ERRORS)
def test_an_error_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with reporting_errors("program") as outcome:
        raise error
    assert (outcome.exit_code, *capsys.readouterr()) == (code, "", line)


def test_an_error_that_was_reported_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    error = RunError("above")
    error.reported = True
    with reporting_errors("program") as outcome:
        raise error
    assert (outcome.exit_code, *capsys.readouterr()) == (1, "", "")


def test_without_an_error_the_code_is_the_commands() -> None:
    with reporting_errors("program") as outcome:
        outcome.exit_code = 1
    assert outcome.exit_code == 1


@pytest.mark.parametrize("bug", [KeyError("x"), SystemExit(3)])
def test_a_bug_keeps_its_traceback(bug: BaseException) -> None:
    with pytest.raises(type(bug)), reporting_errors("program"):
        raise bug


def test_only_empty_folders_that_were_made_are_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    output_dir = OutputDir()
    output_dir.expect(tmp_path / "there" / "new" / "run")
    (tmp_path / "there" / "new" / "run").mkdir(parents=True)
    output_dir.expect(tmp_path / "there" / "new" / "run")  # its name is asked for again
    output_dir.remove_empty()
    assert (tmp_path / "there").is_dir()
    assert not (tmp_path / "there" / "new").exists()
    (tmp_path / "there" / "new" / "run").mkdir(parents=True)
    (tmp_path / "there" / "new" / "result.json").touch()
    output_dir.remove_empty()
    assert [path.name for path in (tmp_path / "there" / "new").iterdir()] == ["result.json"]
