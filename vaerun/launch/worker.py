"""Worker process: `python -m vaerun.launch.worker JOBFILE...`, started by vaerun.launch.process.

vaerun.launch.ranks starts it, too, once per rank of a run, as `JOBFILE RANK`.

The job file holds the validated settings, so that exactly what was checked is run, without composing it again. Standard
input is a pipe whose other end the parent keeps open: when it closes, the parent has exited, and the run saves and
stops. The exit codes are those of `vaerun`, and EXIT_BUSY. With several jobs, each leaves its exit code in
EXIT_CODE_FILE and its errors in job.log, in its own folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vaerun.deprecation import silence_torch_warnings
from vaerun.errors import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_RESUMABLE,
    InputError,
    Interrupted,
    RunError,
    error_line,
)
from vaerun.memory import is_out_of_memory, reporting_out_of_memory
from vaerun.signals import install_handler


def _exit_early(signum: int, frame: FrameType | None = None) -> None:
    """Exit at once: nothing needs saving yet, and an exception must not interrupt an import."""
    os._exit(EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUMABLE)


def _watch_parent() -> None:
    """Make this process save and stop when standard input is closed."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def main(path: str, is_rank: bool = False) -> int:
    """Run the job described by a job file and return the exit code.

    Arguments:
        path: path of the job file.
        is_rank: whether this process is one of the ranks of trainer.processes.
    """
    # Until torch is imported and the run installs its handlers, a signal simply ends the process.
    install_handler(_exit_early)
    _watch_parent()
    record = _read(path)
    processes = record["settings"]["trainer"]["processes"]
    if processes > 1 and not is_rank:
        from vaerun.launch.ranks import launch_ranks

        return launch_ranks(path, processes)
    from vaerun.launch.job import read_job, worker_exit_code

    silence_torch_warnings()
    from vaerun.run.experiment import Experiment
    from vaerun.signals import ShutdownSignal

    try:
        job = read_job(record)
        stop = ShutdownSignal(on_immediate=_exit_early)
        Experiment(job.settings, job.folder, job.overrides, job.hydra, stop).run()
    except (InputError, RunError, Interrupted) as error:
        code = worker_exit_code(error)
        sys.stdout.flush()
        if not error.reported:  # a locked folder is not an error: the parent waits
            print(f"vaerun: {error}" if code == EXIT_BUSY else error_line(error), file=sys.stderr)
        return code
    except Exception as error:  # a bug: print the traceback, which goes to the job's log
        if is_out_of_memory(error):
            raise
        traceback.print_exc()
        return EXIT_FAILED
    finally:
        install_handler(signal.SIG_IGN)  # the run has saved or finished: a late signal must not change the exit code
    return 0


def run_several(paths: Sequence[str]) -> int:
    """Run several jobs in this process, on a GPU concurrently, and return 0; each job leaves its own exit code."""
    install_handler(_exit_early)
    _watch_parent()
    records = [_read(path) for path in paths]
    from vaerun.launch.job import EXIT_CODE_FILE, read_job, worker_exit_code

    silence_torch_warnings()
    from vaerun.launch.replicas import format_error, run_jobs
    from vaerun.run.result import JOB_LOG
    from vaerun.signals import ShutdownSignal

    jobs = [read_job(record) for record in records]

    def on_end(index: int, error: BaseException | None) -> None:
        folder = jobs[index].folder
        with contextlib.suppress(OSError):  # the parent falls back to the exit code of the process
            if error is not None:
                with open(folder / JOB_LOG, "a", encoding="utf-8") as log:
                    log.write(format_error(error) + "\n")
            (folder / EXIT_CODE_FILE).write_text(str(worker_exit_code(error)), encoding="ascii")

    with ShutdownSignal(on_immediate=_exit_early) as stop, stop.deferred():
        run_jobs(jobs, stop, on_end)
    install_handler(signal.SIG_IGN)
    return 0


def _run(words: list[str]) -> int:
    try:
        with reporting_out_of_memory(RunError, "memory ran out: lower sweep.jobs or sweep.together"):
            if len(words) > 1 and not words[1].isdigit():
                return run_several(words)
            return main(words[0], is_rank=len(words) > 1)
    except RunError as error:
        print(error_line(error), file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
