"""The ranks of one run (trainer.processes): processes that start and end together.

Not torchrun, which turns every failure into exit code 1 and a page of text: a run distinguishes saved and stopped
(75, 130), bad input (2) and failed (1), each with one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import FrameType

from vaerun.launch.job import describe_exit
from vaerun.signals import install_handler

TICK_SECONDS = 0.1
GRACE_SECONDS = 30.0  # for the other ranks, once one has failed


def launch_ranks(job_file: str, world_size: int) -> int:
    """Run a job as `world_size` processes and return the exit code: that of the first rank to fail, or 0.

    Signals are forwarded to all ranks. If one fails, the others are ended.
    """
    from torch.distributed import TCPStore

    # The ranks rendezvous here. A port that was only probed for them could be taken by the time they bind it.
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
        print(f"vaerun: error: process {rank} of {world_size} was {describe_exit(code)}", file=sys.stderr)
        return 1
    return code


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the other ranks, which notice by themselves that one is lost, and kill those that do not leave."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
