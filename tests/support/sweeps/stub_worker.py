"""Stands in for vaerun.launch.worker in tests, without torch: `python -I -S stub_worker.py JOBFILE`.

It locks the folder, writes result.json, saves and stops on signals and once standard input closes, and exits with the
worker's codes. The environment variable STUB says what else it does, {seed: action}; it notes what happens to it in the
file STUB_NOTES, one line of JSON each.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

BUSY, STOPPED = 74, 75

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder, seed = Path(job["folder"]), job["settings"]["seed"]
actions = json.loads(os.environ.get("STUB", "{}")).get(str(seed), "ok")
received: list[int] = []


def note(**what: Any) -> None:
    with open(os.environ["STUB_NOTES"], "a", encoding="utf-8") as file:  # one atomic append
        file.write(json.dumps({"seed": seed, "pid": os.getpid(), "time": time.time(), **what}) + "\n")


def attempts() -> int:
    lines = Path(os.environ["STUB_NOTES"]).read_text(encoding="utf-8").splitlines()
    return sum(1 for line in map(json.loads, lines) if line["seed"] == seed and "begin" in line)


def wait_for(key: str, count: int) -> None:
    """Wait until this many jobs have noted `key`."""
    while sum(key in json.loads(line) for line in Path(os.environ["STUB_NOTES"]).read_text().splitlines()) < count:
        time.sleep(0.01)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    note(end=code)
    sys.stdout.flush()
    os._exit(code)


def record(status: str, error: str | None = None, **more: Any) -> dict[str, Any]:
    relative = job["folder"].removeprefix(os.environ["STUB_SWEEP"] + "/")
    plan = json.loads(Path(os.environ["STUB_SWEEP"], "sweep.json").read_text(encoding="utf-8"))
    (entry,) = [e for e in plan["jobs"] if e["folder"] == relative]
    s = job["settings"]
    result = {
        "schema": 1, "status": status, "fingerprint": entry["fingerprint"], "command": ["vaerun", *job["words"]],
        "model": s["model"]["name"], "data": s["data"]["name"], "estimator": s["estimator"]["name"], "seed": seed,
        "metrics": {}, "details": {}, "protocol": {"family": "likelihood"}, "timing": {}, "environment": {},
        "error": error, "ended": time.time(), **more,
    }  # fmt: skip
    temporary = folder / f".result.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, folder / "result.json")
    return result


def begin() -> None:
    """Lock the folder, as a run does once it can no longer be rejected."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    until = time.monotonic() + 1
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > until:
                tell("vaerun: another run is using it")
                leave(BUSY)
            time.sleep(0.02)
    path = folder / "result.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if before is not None and before["status"] == "ok":
        print("already finished", flush=True)
        leave(0)
    note(train=None if before is None else before["status"])
    record("running")


def request(signum: int, frame: FrameType | None) -> None:
    received.append(signum)
    note(signal=signal.Signals(signum).name)


def watch() -> None:
    while os.read(0, 1):
        pass
    note(parent="gone")
    os.kill(os.getpid(), signal.SIGTERM)


def work(seconds: float, deaf: bool = False) -> None:
    """Train for this long, unless asked to stop."""
    until = time.monotonic() + seconds
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 1, "train/elbo": -12.5}) + "\n")
    while time.monotonic() < until:
        if received and not deaf:
            time.sleep(1.2 if actions == "slow:30" else 0)  # saving takes a while
            record("interrupted", "stopped")
            tell("vaerun: stopped; run the same command again to resume")
            leave(130 if received[0] == signal.SIGINT else STOPPED)
        time.sleep(0.01)


def main() -> None:
    action = actions if isinstance(actions, str) else actions[min(attempts(), len(actions) - 1)]
    what, _, value = action.partition(":")
    what, _, since = what.partition("@")  # raise@train2:why raises once two jobs train
    note(begin=action, threads=os.environ.get("OMP_NUM_THREADS"), gpu=os.environ.get("CUDA_VISIBLE_DEVICES"))
    if what == "unready":  # signals still have their default action
        time.sleep(float(value))
        return
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, request)
    threading.Thread(target=watch, daemon=True).start()
    if what == "refused":
        tell("vaerun: warning: this is not it\nvaerun: error: the data are not there: " + value)
        leave(2)
    if what == "early":
        tell(value)
        leave(1)
    if what == "silent":
        leave(int(value))
    begin()
    if since:
        wait_for(since.rstrip("0123456789"), int(since.lstrip("abcdefghijklmnopqrstuvwxyz")))
    if what == "raise":
        record("failed", value)
        tell(f"vaerun: error: {value}")
        leave(1)
    if what == "bug":
        tell("Traceback (most recent call last):\n  File ...\nValueError: " + value)
        record("failed", "ValueError: " + value)
        leave(1)
    if what == "killed":
        note(killed=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory":
        tell("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB")
        record("failed", "CUDA out of memory. Tried to allocate 20.00 GiB")
        leave(1)
    if what == "unfinished":  # a library that ends the process, and calls that success
        leave(0)
    if what in ("signal", "group"):  # the system's signal to the launcher, or to it and to the job
        os.kill(os.getppid(), int(value))
        if what == "group":
            os.kill(os.getpid(), int(value))
        work(30)
    if what == "twice":
        os.kill(os.getppid(), int(value))
        time.sleep(0.5)
        os.kill(os.getppid(), int(value))
        work(30, deaf=True)
    work(float(value) if what in ("sleep", "deaf", "crash", "slow") else 0.0, deaf=what == "deaf")
    record("ok", metrics={"val/elbo": -100.0 - seed, "test/log_likelihood": -90.0 - seed})
    if what == "crash":  # at the interpreter's end, with everything written
        note(end=-11)
        os.kill(os.getpid(), signal.SIGSEGV)
    leave(0)


main()
