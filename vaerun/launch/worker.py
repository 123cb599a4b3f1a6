"""A run as a process of its own: `python -m vaerun.launch.worker JOBFILE...`, started by vaerun.launch.process.

The job's file holds the checked settings, so nothing is composed again and what runs is what was checked. Standard
input is a pipe that the process which started the run holds open: when it closes, that process is gone, and the run
saves and stops. Exit codes: those of `vaerun`, and EXIT_BUSY. Of several jobs each has its own in the file ENDED of its
folder, and what it says is in its own job.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vaerun.errors import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_RESUMABLE
from vaerun.signals import install_handler

ENDED = ".ended"


def silence_torch_warnings() -> None:
    """Silence torch's warning of its own use of torch.jit inside torch.func: no user can do anything about it."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*is deprecated")


def _leave_early(signum: int, frame: FrameType | None = None) -> None:
    os._exit(
        EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUMABLE
    )  # nothing has begun; imports do not bear being interrupted


def _watch_parent() -> None:
    """Ask this process to save and stop once standard input ends."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str, member: bool = False) -> int:
    """Run the job of this file and return the exit code.

    Arguments:
        path: of the job's file.
        member: this is one of the processes of trainer.processes.
    """
    # Until the run looks out for signals itself (it imports torch first) one means: nothing has begun, leave.
    install_handler(_leave_early)
    _watch_parent()
    job: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    processes = job["settings"]["trainer"]["processes"]
    if processes > 1 and not member:
        from vaerun.launch.ranks import supervise

        return supervise(path, processes)
    from omegaconf import OmegaConf

    from vaerun.config.settings import check
    from vaerun.errors import InputError, Interrupted, RunError

    silence_torch_warnings()
    from vaerun.run.execute import execute
    from vaerun.signals import ShutdownSignal
    from vaerun.storage.run_dir import RunDirLocked

    try:
        settings, folder = check(OmegaConf.create(job["settings"])), Path(job["folder"])
        execute(settings, folder, job["words"], job["hydra"], ShutdownSignal(outside=_leave_early))
    except RunDirLocked as error:
        return _told(EXIT_BUSY, error)
    except InputError as error:
        return _told(2, error)
    except RunError as error:
        return _told(1, error)
    except Interrupted as error:
        return _told(error.exit_code, error)
    except Exception:  # a bug of ours: with its traceback, in the job's own log
        traceback.print_exc()
        return 1
    finally:
        install_handler(signal.SIG_IGN)  # saved, or over: a second signal must not change the exit code
    return 0


def together(paths: Sequence[str]) -> int:
    """Run the jobs of these files in this process, on a GPU at once, and return 0; each leaves word of its own end."""
    install_handler(_leave_early)
    _watch_parent()
    jobs: list[dict[str, Any]] = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    from omegaconf import OmegaConf

    from vaerun.config.settings import check

    silence_torch_warnings()
    from vaerun.launch.replicas import Member, exit_code, run_together, told
    from vaerun.run.result import JOB_LOG
    from vaerun.signals import ShutdownSignal

    members = [
        Member(check(OmegaConf.create(job["settings"])), Path(job["folder"]), job["words"], job["hydra"])
        for job in jobs
    ]

    def ended(number: int, error: BaseException | None) -> None:
        folder = members[number].folder
        with contextlib.suppress(OSError):  # then the process's own end says it
            if error is not None:
                with open(folder / JOB_LOG, "a", encoding="utf-8") as log:
                    log.write(told(error) + "\n")
            (folder / ENDED).write_text(str(exit_code(error)), encoding="ascii")

    with ShutdownSignal(outside=_leave_early) as stop, stop.deferred():
        run_together(members, stop, ended)
    install_handler(signal.SIG_IGN)
    return 0


def _told(code: int, why: BaseException) -> int:
    from vaerun.text import printable

    sys.stdout.flush()
    if not getattr(why, "reported", False):
        print(f"vaerun: {'error: ' if code in (1, 2) else ''}{printable(why)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if len(sys.argv) > 2 and not sys.argv[2].isdigit():
        sys.exit(together(sys.argv[1:]))
    sys.exit(main(sys.argv[1], member=len(sys.argv) > 2))
