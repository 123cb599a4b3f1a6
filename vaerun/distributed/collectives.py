"""One run over several processes: each has all of the data and of the parameters, and a part of every batch.

The gradient of a batch's mean loss is the sum over processes of that of (sum over own images) / B, B of the whole
batch, so that a ragged batch is exact and a process that has no image of it adds zero. Noise is drawn for the whole
batch everywhere and sliced (vaerun/randomness.py). Hence the loss curve is one process's, up to the order of addition.

Every decision that ends or changes the loop is made of numbers that all processes hold in common: gradients, loss and
what each has to say (a signal, a checkpoint that is due) travel in one sum. What is written, and what is measured on
other images than the batch's, is the first process's affair, and its outcome is told to the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vaerun.errors import InputError, Interrupted, RunError
from vaerun.randomness import batch_slice
from vaerun.signals import ShutdownSignal

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class PeerLost(RunError):
    """Another process of the run has ended, which tells of it itself."""


@dataclass(frozen=True)
class BatchShard:
    """Which images of a batch are this process's.

    Attributes:
        start, stop: rows of the batch that the model is to see, at least one.
        own: how many of them count: all, or none where the batch has fewer images than there are processes.
        images: of the whole batch, B.
    """

    start: int
    stop: int
    own: int
    images: int

    @property
    def place(self) -> slice:
        """The rows to take."""
        return slice(self.start, self.stop)

    def mean(self, loss: Tensor) -> Tensor:
        """Loss [rows] -> its part of the mean over the whole batch."""
        return loss.mean() if self.own == self.images else loss[: self.own].sum() / self.images

    def sum(self, metric: Tensor) -> Tensor:
        """[rows] -> sum over own images."""
        return metric[: self.own].sum()


def shard_of(images: int, rank: int, size: int) -> BatchShard:
    """The share of process `rank` of `size`: consecutive rows, as many as any other's or one less or more.

    A process without an image of its own takes the first one, and counts it for nothing: its model runs as all others'
    do, so whatever has no gradient has none there either.
    """
    start, stop = images * rank // size, images * (rank + 1) // size
    return BatchShard(start, stop, stop - start, images) if stop > start else BatchShard(0, 1, 0, images)


class Ranks:
    """The processes of one run, as one of them sees them. Without arguments: a run of one, to which nothing is added.

    Arguments:
        rank: of this process, from 0.
        size: number of processes.
        device: this process's; None: the run's own choice.
        store: where a process that fails leaves the cause, as `failed`, for those that lose it.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | None = None, store: dist.Store | None = None
    ) -> None:
        self.rank, self.size, self.device, self._store = rank, size, device, store
        self._parent = os.getppid()
        self._stop, self._due = ShutdownSignal(), lambda: False
        self._words: tuple[Tensor, Any] | None = None  # of the step that is being made
        # Reading a GPU's numbers waits for it: those of the step before are there already, and as good for all.
        self._lag = int(device is not None and device.type == "cuda")
        self._waiting: deque[tuple[Tensor, Any] | None] = deque()
        self._agreed: BaseException | None = None

    @contextmanager
    def shard(self, images: int) -> Iterator[BatchShard]:
        """This process's share of a batch of so many images; inside, batch noise is drawn for all of it and sliced."""
        own = shard_of(images, self.rank, self.size)
        with batch_slice(own.start, own.stop, images) if self.size > 1 else contextlib.nullcontext():
            yield own

    def listen(self, stop: ShutdownSignal, due: Callable[[], bool]) -> None:
        """From now on each reduction tells the others of a signal to this process and, from the first, what is due."""
        self._stop, self._due = stop, due

    def reduce(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum gradients and loss over all processes, in place of each one's own; one sum for each dtype.

        Gradients below single precision are summed in it. What each process has to say goes with the first sum.

        Arguments:
            parameters: of the phase; the same have a gradient everywhere.
            loss: this process's part of the mean.
        """
        if self.size == 1:
            return loss
        if os.getppid() != self._parent and self._stop.signum is None:
            self._stop.signum = signal.SIGTERM  # the launcher has gone, and nobody is left to end this process
        words = torch.zeros(self.size + 1, pin_memory=self._lag > 0)
        words[self.rank] = self._stop.signum or 0
        words[-1] = float(self.rank == 0 and self._due())
        groups: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(torch.promote_types(parameter.dtype, torch.float32), []).append(parameter)
        head = [words, loss.detach().reshape(1)]
        for dtype, group in groups.items():
            parts = head + [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group]
            flat = torch.cat([part.to(loss.device, dtype, non_blocking=True) for part in parts])
            with self._together():
                dist.all_reduce(flat)
            summed = list(flat.split([len(part) for part in parts]))
            if head:
                self._keep(summed.pop(0))
                loss, head = summed.pop(0)[0].to(loss.dtype), []
            for parameter, gradient in zip(group, summed, strict=True):
                if parameter.grad is not None:
                    parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return loss

    def _keep(self, words: Tensor) -> None:
        self._words = words, lambda: None
        if self._lag:
            there = torch.cuda.Event()
            self._words = words.to("cpu", non_blocking=True), there.synchronize
            there.record()

    def pending_requests(self) -> tuple[int | None, bool]:
        """After a step: the signal that any process has had, if one, and whether a checkpoint is due; same for all.

        On a GPU as of the step before.
        """
        if self.size == 1:
            return self._stop.signum, self._due()
        self._waiting.append(self._words)
        self._words = None
        ready = self._waiting.popleft() if len(self._waiting) > self._lag else None
        if ready is None:
            return None, False
        words, wait = ready
        wait()
        *signals, due = (int(word) for word in words.tolist())
        if due:
            self._waiting.clear()  # said before this one was met
        return next((s for s in signals if s), None), bool(due)

    def check(self, stop: ShutdownSignal, signum: int | None) -> None:
        """Raises Interrupted on every process where `wishes` told of a signal."""
        if self.size == 1:
            stop.check()
        elif signum is not None:
            raise self.agreed(Interrupted(signum))

    def agreed(self, error: E) -> E:
        """The error as it is, known to be raised by all processes, so that they can leave together."""
        self._agreed = error
        return error

    def shared(self, error: BaseException) -> bool:
        """Whether all processes raise this error, so that one of them is enough to tell of it."""
        return error is self._agreed

    def on_rank_zero(self, function: Callable[[], T] | None) -> T:
        """What the function gives on the first process; the others wait for it and do not call theirs.

        What it gives must be plain values. InputError, RunError and Interrupted are raised by all.
        """
        if self.rank == 0:
            assert function is not None
            if self.size == 1:
                return function()
            try:
                found = function()
            except BaseException as error:
                word: tuple[Any, Any] = PeerLost, "the first process of this run failed"
                if isinstance(error, InputError | RunError | Interrupted):
                    word = type(error), error.signum if isinstance(error, Interrupted) else str(error)
                    self.agreed(error)
                with contextlib.suppress(PeerLost):
                    self._tell(word)
                raise
            self._tell((None, found))
            return found
        kind, found = self._tell(None)
        if kind is None:
            return found
        raise kind(found) if kind is PeerLost else self.agreed(kind(found))

    def _tell(self, word: Any) -> Any:
        box = [word]
        with self._together():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over processes, each with the same names."""
        if self.size == 1 or not values:
            return dict(values)
        flat = torch.stack([values[name].double() for name in sorted(values)])
        with self._together():
            dist.all_reduce(flat)
        return {name: total.to(values[name].dtype) for name, total in zip(sorted(values), flat, strict=True)}

    def all_true(self, flags: Tensor) -> Tensor:
        """Logical and over processes, of any shape."""
        if self.size == 1:
            return flags
        found = flags.to(torch.int32)
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return found.bool()

    def assert_ranks_equal(self, things: Callable[[], Mapping[str, Any]]) -> None:
        """Raises RunError, on all processes, unless each thing has the same bits on all of them.

        Arguments:
            things: gives them by their names in words; tensors and plain values, also in mappings and sequences.
        """
        if self.size == 1:
            return
        mine = {name: digest(thing) for name, thing in things().items()}
        firsts = self.on_rank_zero(lambda: mine)
        same = self.all_true(torch.tensor([mine[name] == firsts[name] for name in mine])).tolist()
        if not all(same):
            names = " and ".join(name for name, equal in zip(mine, same, strict=True) if not equal)
            raise self.agreed(
                RunError(
                    f"trainer.processes={self.size}: {names} should be the same on all processes and differ: run the "
                    "same command again to go on from the last checkpoint, or set trainer.processes=1"
                )
            )

    def barrier(self) -> None:
        """Wait until all processes are here. Raises Lost where one has ended before."""
        self.all_true(torch.ones(1))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            cause = str(error).partition("\n")[0].partition(". ")[0].rpartition("] ")[2]  # gloo's, without its source
            with contextlib.suppress(RuntimeError):  # the store may have gone too
                if self._store is not None and self._store.check(["failed"]):
                    cause = self._store.get("failed").decode()
            raise PeerLost(f"another process of this run has ended: {cause}") from error


def digest(thing: Any) -> str:
    """Of the bits of tensors and the representation of plain values, in mappings and sequences as deep as they go."""
    found = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            for key, value in part.items():
                found.update(repr(key).encode())
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)
        else:
            found.update(repr(part).encode())

    add(thing)
    return found.hexdigest()
