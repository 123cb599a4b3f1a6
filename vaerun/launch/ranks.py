"""Launches the ranks of one run (trainer.processes), which start and end together.

Used instead of torchrun, which reports every failure as exit code 1 and a page of text. Here the exit codes 75 and 130
(stopped after saving), 2 (bad input) and 1 (failed) and the one-line errors are preserved.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import FrameType

from vaerun.launch.job import describe_exit
from vaerun.signals import install_handler
from vaerun.text import print_output

TICK_SECONDS = 0.1
GRACE_SECONDS = 30.0  # time for the other ranks to exit once one has failed


def launch_ranks(job_file: str, world_size: int) -> int:
    """Run a job as `world_size` processes and return the exit code of the first rank to fail, or 0.

    Signals are forwarded to all ranks. If one rank fails, the others are terminated.
    """
    from torch.distributed import TCPStore

    # Host the rendezvous here: a port that was merely probed could be taken before the ranks bind it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: FrameType | None = None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    install_handler(forward)
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(world_size),
    }  # fmt: skip
    for rank in range(world_size):
        variables = rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "vaerun.launch.worker", job_file, str(rank)]
        ranks.append(subprocess.Popen(command, env=dict(os.environ) | variables))
    while all(process.poll() in (None, 0) for process in ranks):
        if all(process.poll() == 0 for process in ranks):
            return 0
        time.sleep(TICK_SECONDS)
    rank, code = next((rank, code) for rank, p in enumerate(ranks) if (code := p.poll()) not in (None, 0))
    _end(ranks)
    if code < 0:
        print_output(f"vaerun: error: process {rank} of {world_size} was {describe_exit(code)}", sys.stderr)
        return 1
    return code


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the other ranks, which notice that a peer is lost, and kill those that do not exit in time."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
