"""A run started as a child process, so that whatever happens to it happens to it alone.

The processes are the operating system's: a pool of workers (loky, joblib) is lost as a whole with one killed worker,
and submitit's local executor starts all jobs at once and notices a killed one after some 17 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from vaerun.config.settings import Settings
from vaerun.errors import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_RESUMABLE, InputError, RunError
from vaerun.launch.worker import ENDED
from vaerun.run.result import JOB_LOG, RESULT, now, read_result, write_config
from vaerun.storage.atomic import write_atomically
from vaerun.storage.json_files import write_json
from vaerun.storage.run_dir import RunDirLocked, lock_run_dir

GRACE_SECONDS = 120.0  # for saving, from the request to stop to SIGKILL


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        settings: checked.
        folder: the run directory, absolute.
        words: the command's, for the record.
        hydra: Hydra's own configuration as yaml, for the record.
        fingerprint: of the run ("" where it is not known yet).
    """

    settings: Settings
    folder: Path
    words: list[str]
    hydra: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Ending:
    """How a child ended: `code` as its exit status (negative: by that signal)."""

    code: int

    @property
    def cause(self) -> str:
        """In words."""
        if self.code >= 0:
            return f"ended with exit code {self.code}" + ("" if self.code else " before it had a result")
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = ": by hand, or by the system when memory ran out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"


FINISHED, FAILED, STOPPED, BUSY_ELSEWHERE = "finished", "failed", "stopped", "busy"


@dataclass(frozen=True)
class Verdict:
    """What became of a run: FINISHED, FAILED and why, STOPPED (as it was asked to), or BUSY_ELSEWHERE."""

    state: str
    why: str = ""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a child: this process's, with the same vaerun and what else was importable here."""
    here = os.getcwd()
    paths = [str(Path(__file__).resolve().parents[2])]
    paths += [here] if "" in sys.path or here in sys.path else []
    paths += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return dict(os.environ) | own | dict(extra or {})


def command(*files: Path) -> list[str]:
    """That runs the jobs of these files."""
    return [sys.executable, "-m", "vaerun.launch.worker", *map(str, files)]


class Attempt:
    """One attempt at a job, as it begins: its file is written, its folder made.

    Raises OSError, InputError or RunError where that cannot be done.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.file = job, job.folder / ".job.json"
        settings = replace(job.settings, trainer=replace(job.settings.trainer))
        if settings.trainer.resume == "never":
            settings.trainer.resume = "auto"  # the folder of its own has been chosen
        record = {"settings": asdict(settings), "folder": str(job.folder), "words": job.words, "hydra": job.hydra}
        job.folder.mkdir(parents=True, exist_ok=True)
        self.before = read_result(job.folder)
        write_atomically(self.file, json.dumps(record).encode())  # not write_json: an infinite setting stays so
        (job.folder / ENDED).unlink(missing_ok=True)
        log = job.folder / JOB_LOG
        self.log_from = log.stat().st_size if log.exists() else 0

    def ending(self, of_process: Ending) -> Ending:
        """Of this run among others in one process: what it has left word of, else the process's."""
        try:
            return Ending(int((self.job.folder / ENDED).read_text(encoding="ascii")))
        except (OSError, ValueError):
            return of_process


class Child:
    """A run in a process of its own (of several, with trainer.processes above 1), or several runs in one.

    Arguments:
        job: to run; its folder is made.
        extra: variables of its environment.
        log: print to job.log in its folder, appended; else where this process prints to.
        company: other jobs that the process runs at the same time.

    Raises InputError where a folder cannot be written into, or no process can be started.
    """

    def __init__(
        self, job: Job, extra: Mapping[str, str] | None = None, log: bool = True, company: Sequence[Job] = ()
    ) -> None:
        self.job = job
        self.sent: set[int] = set()
        target: IO[Any] | None = None
        try:
            self.attempts = [Attempt(one) for one in (job, *company)]
            if log:
                target = open(job.folder / JOB_LOG, "ab")  # noqa: SIM115
            self.process = subprocess.Popen(
                command(*(attempt.file for attempt in self.attempts)),
                stdin=subprocess.PIPE,
                stdout=target,
                stderr=subprocess.STDOUT if log else None,
                env=environment(extra),
                start_new_session=True,  # Ctrl-C reaches the process that started it, which passes it on
            )
        except (OSError, RunError) as error:
            raise InputError(f"cannot start a run in {job.folder}: {error}") from error
        finally:
            if target is not None:
                target.close()

    def signal(self, signum: int) -> None:
        """Pass on a signal; nothing where the child has ended.

        SIGINT goes as SIGTERM: a Python that is only starting may lose the former as an exception inside an import.
        """
        signum = signal.SIGTERM if signum == signal.SIGINT else signum
        if self.process.poll() is None:
            self.sent.add(signum)
            self.process.send_signal(signum)

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        self.sent.add(signal.SIGKILL)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()

    def abandon(self) -> None:
        """Kill it and leave nothing of it behind."""
        self.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self, timeout: float | None = None) -> Ending | None:
        """How it ended, or None where it has not within so many seconds."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self.process.stdin is not None:
            self.process.stdin.close()
        return Ending(code)

    def verdict(self, ending: Ending, asked: int | None = None, why: str = "") -> Verdict:
        """What became of the run; see `verdicts`."""
        return self.verdicts(ending, asked, why)[0]

    def verdicts(self, ending: Ending, asked: int | None = None, why: str = "") -> list[Verdict]:
        """What became of each run; a failure, and why, is then in its result.json, whoever had to write it.

        Arguments:
            ending: of the process.
            asked: the signal by which this process was asked to stop, which may have reached the child as well.
            why: it failed, and this is the reason.
        """
        if len(self.attempts) == 1:
            return [self._verdict(self.attempts[0], ending, asked, why)]
        return [self._verdict(attempt, attempt.ending(ending), asked, why) for attempt in self.attempts]

    def _verdict(self, attempt: Attempt, ending: Ending, asked: int | None, why: str) -> Verdict:
        job = attempt.job
        if ending.code == EXIT_BUSY:
            return Verdict(BUSY_ELSEWHERE)
        try:
            found = read_result(job.folder)
        except InputError as error:
            return Verdict(FAILED, str(error))
        new = found is not None and found != attempt.before  # of this attempt
        if found is not None and found["status"] == "ok" and found["fingerprint"] == job.fingerprint:
            return Verdict(FINISHED)  # though the process may have fallen over while it was left
        signals = self.sent | ({asked} if asked is not None else set())
        # Of several processes the exit code does not say that they saved and stopped; their record does.
        saved = new and found is not None and found["status"] == "interrupted"
        # Asked before it had begun, it may have ended in any way.
        if (
            signals
            and not why
            and (ending.code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) or -ending.code in signals or saved or not new)
        ):
            return Verdict(STOPPED)
        # Of several processes the first may only have recorded that another one is gone; the log says why.
        several = job.settings.trainer.processes > 1
        if not (why or several) and ending.code == 1 and new and found is not None and found["status"] == "failed":
            return Verdict(FAILED, str(found.get("error")))
        if not why and ending.code > 0:
            why = last_error_line(job.folder, attempt.log_from) or ""
        return Verdict(FAILED, settle(job, why or ending.cause))


def settle(job: Job, why: str) -> str:
    """See to it that result.json says that this run failed, and why, and return the reason.

    A run that finished stands; so do what another configuration recorded, and a run that another process has taken up.
    """
    try:
        with lock_run_dir(job.folder):
            before = read_result(job.folder)
            if before is None:
                write_config(job.folder, asdict(job.settings), job.words, job.hydra)
                write_json(job.folder / RESULT, _record(job, why))
            elif before["fingerprint"] == job.fingerprint and before["status"] != "ok":
                write_json(job.folder / RESULT, before | {"status": "failed", "ended": now(), "error": why})
    except (RunDirLocked, InputError, RunError, OSError) as error:  # the reason is told in any case
        return f"{why} ({error})"
    return why


def _record(job: Job, why: str) -> dict[str, Any]:
    """Of a run that failed before it had one."""
    s = job.settings
    return {
        "schema": 1, "status": "failed", "started": None, "ended": now(), "fingerprint": job.fingerprint,
        "command": ["vaerun", *job.words], "model": s.model.name, "data": s.data.name, "estimator": s.estimator.name,
        "seed": s.seed, "metrics": {}, "details": {}, "protocol": {}, "timing": {}, "environment": {}, "error": why,
    }  # fmt: skip


def last_error_line(folder: Path, start: int = 0) -> str | None:
    """The error line that a job printed last, from its log as of byte `start`."""
    try:
        with open(folder / JOB_LOG, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    said = [line for line in lines if line.strip()]
    if not said:
        return None
    found = next((line for line in reversed(said) if line.startswith("vaerun: error: ")), said[-1])
    return found.removeprefix("vaerun: error: ").strip()
