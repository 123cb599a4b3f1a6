"""The processes of one run (trainer.processes): started together, and ended together.

torchrun would do this too. It turns every end into exit code 1 and a page of its own about it, where a run has more to
say: saved and stopped (75, 130), bad input (2), failed (1), each in one line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

from vaerun.signals import install_handler

TICK_SECONDS = 0.1
GRACE_SECONDS = 30.0  # for the others, once one has failed


def supervise(file: str, processes: int) -> int:
    """Run the job of this file by so many processes and return the exit code: that of the first which failed, or 0.

    Signals are passed on to all of them. When one fails the others are ended.
    """
    from torch.distributed import TCPStore

    # The processes meet here; a port that is only looked up for one of them could be somebody else's by then.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, frame: FrameType | None = None) -> None:
        for member in members:
            if member.poll() is None:
                member.send_signal(signum)

    install_handler(pass_on)
    meeting = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes),
    }  # fmt: skip
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "vaerun.launch.worker", file, str(rank)]
        members.append(subprocess.Popen(command, env=dict(os.environ) | meeting | own))
    while all(member.poll() in (None, 0) for member in members):
        if all(member.poll() == 0 for member in members):
            return 0
        time.sleep(TICK_SECONDS)
    failed = next((rank, code) for rank, m in enumerate(members) if (code := m.poll()) not in (None, 0))
    _end(members)
    rank, code = failed
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (by hand, or by the system when memory ran out)" if name == "SIGKILL" else ""
        print(f"vaerun: error: process {rank} of {processes} was killed by {name}{hint}", file=sys.stderr)
        return 1
    return code


def _end(members: list[subprocess.Popen[bytes]]) -> None:
    """The others notice by themselves that one is gone, and leave; those that do not are killed."""
    end = time.monotonic() + GRACE_SECONDS
    for member in members:
        try:
            member.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.kill()
            member.wait()
