"""Data-parallel training: every rank holds all data and all parameters, and computes one shard of each batch.

The loss of a shard is its sum over images divided by the size B of the whole batch, so that gradients are summed over
ranks, not averaged: ragged batches are exact, and a rank without images adds zero. Every rank draws the noise of the
whole batch and slices it (vaerun/randomness.py). The loss curve therefore matches that of a single process, up to the
order of summation.

All decisions that end or alter the loop are based on values shared by all ranks: a single all-reduce carries gradients,
loss and pending requests (a signal, a due checkpoint). Only rank 0 writes files and validates, and broadcasts the
outcome.
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
    """Another process of the run has exited; it reports the cause itself."""


@dataclass(frozen=True)
class BatchShard:
    """The images of a batch that one rank computes.

    Attributes:
        start, stop: range of rows of the batch that the model sees, at least one.
        valid: number of these rows that count: all, or none if the batch has fewer images than there are ranks.
        images: size B of the whole batch.
    """

    start: int
    stop: int
    valid: int
    images: int

    @property
    def rows(self) -> slice:
        """The shard's rows of the batch."""
        return slice(self.start, self.stop)

    def mean(self, loss: Tensor) -> Tensor:
        """Contribution [] of losses [rows] to the mean over the whole batch."""
        return loss.mean() if self.valid == self.images else loss[: self.valid].sum() / self.images

    def sum(self, metric: Tensor) -> Tensor:
        """Sum [] of a metric [rows] over the valid rows."""
        return metric[: self.valid].sum()


def shard_for_rank(images: int, rank: int, size: int) -> BatchShard:
    """The shard of one of `size` ranks: consecutive rows, whose number differs by at most one between ranks.

    A rank without images computes the first image with weight zero, so that the same parameters have gradients on all
    ranks.
    """
    start, stop = images * rank // size, images * (rank + 1) // size
    return BatchShard(start, stop, stop - start, images) if stop > start else BatchShard(0, 1, 0, images)


class Ranks:
    """The processes of one run, as seen by one of them. By default a single process, for which everything is a no-op.

    Arguments:
        rank: rank of this process, from 0.
        size: number of processes.
        device: device of this process; None: determined by trainer.device.
        store: store in which a failing rank leaves the cause under the key `failed`, for its peers to report.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | None = None, store: dist.Store | None = None
    ) -> None:
        self.rank, self.size, self.device, self._store = rank, size, device, store
        self._parent = os.getppid()
        self._stop, self._due = ShutdownSignal(), lambda: False
        self._requests: tuple[Tensor, Any] | None = None  # requests of the current step
        # Reading the requests of the current step would wait for the GPU; those of the previous step have arrived.
        self._lag = int(device is not None and device.type == "cuda")
        self._in_flight: deque[tuple[Tensor, Any] | None] = deque()
        self._collective_error: BaseException | None = None

    @contextmanager
    def shard(self, images: int) -> Iterator[BatchShard]:
        """This rank's shard of a batch of `images` images; inside, noise is drawn for the whole batch and sliced."""
        shard = shard_for_rank(images, self.rank, self.size)
        with batch_slice(shard.start, shard.stop, images) if self.size > 1 else contextlib.nullcontext():
            yield shard

    def exchange_requests(self, stop: ShutdownSignal, due: Callable[[], bool]) -> None:
        """Exchange requests with every gradient reduction: signals on any rank, and checkpoints due on rank 0."""
        self._stop, self._due = stop, due

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients over ranks in place, with one reduction per dtype, and return the summed loss.

        Half-precision gradients are summed in float32. Pending requests travel with the first reduction.

        Arguments:
            parameters: parameters of the phase; the same ones must have gradients on every rank.
            loss: contribution of this rank to the mean, [].
        """
        if self.size == 1:
            return loss
        if os.getppid() != self._parent and self._stop.signum is None:
            self._stop.signum = signal.SIGTERM  # the launcher has exited: nothing else would end this process
        # One signal per rank, and whether a checkpoint is due.
        requests = torch.zeros(self.size + 1, pin_memory=self._lag > 0)
        requests[self.rank] = self._stop.signum or 0
        requests[-1] = float(self.rank == 0 and self._due())
        groups: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(torch.promote_types(parameter.dtype, torch.float32), []).append(parameter)
        head = [requests, loss.detach().reshape(1)]
        for dtype, group in groups.items():
            parts = head + [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group]
            flat = torch.cat([part.to(loss.device, dtype, non_blocking=True) for part in parts])
            with self._raising_peer_lost():
                dist.all_reduce(flat)
            summed = list(flat.split([len(part) for part in parts]))
            if head:
                self._store_requests(summed.pop(0))
                loss, head = summed.pop(0)[0].to(loss.dtype), []
            for parameter, gradient in zip(group, summed, strict=True):
                if parameter.grad is not None:
                    parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return loss

    def _store_requests(self, requests: Tensor) -> None:
        self._requests = requests, lambda: None
        if self._lag:
            copied = torch.cuda.Event()
            self._requests = requests.to("cpu", non_blocking=True), copied.synchronize
            copied.record()

    def pending_requests(self) -> tuple[int | None, bool]:
        """Return a signal received by any rank, and whether a checkpoint is due; to be called once after each step.

        All ranks get the same answer; on a GPU, that of the previous step.
        """
        if self.size == 1:
            return self._stop.signum, self._due()
        self._in_flight.append(self._requests)
        self._requests = None
        ready = self._in_flight.popleft() if len(self._in_flight) > self._lag else None
        if ready is None:
            return None, False
        requests, wait = ready
        wait()
        *signals, due = (int(request) for request in requests.tolist())
        if due:
            self._in_flight.clear()  # later requests are for the same checkpoint
        return next((s for s in signals if s), None), bool(due)

    def check_signal(self, stop: ShutdownSignal, signum: int | None) -> None:
        """Raise Interrupted if a signal was received; with several ranks, the one returned by `pending_requests`."""
        if self.size == 1:
            stop.check()
        elif signum is not None:
            raise self.mark_collective(Interrupted(signum))

    def mark_collective(self, error: E) -> E:
        """Mark an error as raised by all ranks, so that they can exit together, and return it."""
        self._collective_error = error
        return error

    def is_collective(self, error: BaseException) -> bool:
        """Whether all ranks raise this error, so that only one needs to report it."""
        return error is self._collective_error

    def on_rank_zero(self, function: Callable[[], T] | None) -> T:
        """Call the function on rank 0 only, and return its result on every rank.

        The result must consist of plain values. InputError, RunError and Interrupted are re-raised on all ranks.
        """
        if self.rank == 0:
            assert function is not None
            if self.size == 1:
                return function()
            try:
                value = function()
            except BaseException as error:
                failure: tuple[Any, Any] = PeerLost, "process 0 of this run failed"
                if isinstance(error, InputError | RunError | Interrupted):
                    failure = type(error), error.signum if isinstance(error, Interrupted) else str(error)
                    self.mark_collective(error)
                with contextlib.suppress(PeerLost):
                    self._broadcast(failure)
                raise
            self._broadcast((None, value))
            return value
        error_type, value = self._broadcast(None)
        if error_type is None:
            return value
        raise error_type(value) if error_type is PeerLost else self.mark_collective(error_type(value))

    def _broadcast(self, value: Any) -> Any:
        objects = [value]
        with self._raising_peer_lost():
            dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
        return objects[0]

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum each value over ranks; the names must be the same on all ranks."""
        if self.size == 1 or not values:
            return dict(values)
        flat = torch.stack([values[name].double() for name in sorted(values)])
        with self._raising_peer_lost():
            dist.all_reduce(flat)
        return {name: total.to(values[name].dtype) for name, total in zip(sorted(values), flat, strict=True)}

    def all_true(self, flags: Tensor) -> Tensor:
        """Element-wise logical AND over ranks."""
        if self.size == 1:
            return flags
        minimum = flags.to(torch.int32)
        with self._raising_peer_lost():
            dist.all_reduce(minimum, dist.ReduceOp.MIN)
        return minimum.bool()

    def assert_ranks_equal(self, values: Callable[[], Mapping[str, Any]]) -> None:
        """Raise RunError on all ranks unless every value is bitwise equal on all of them.

        Arguments:
            values: returns (nested) tensors and plain values by name; the error quotes the names.
        """
        if self.size == 1:
            return
        digests = {name: digest(value) for name, value in values().items()}
        expected = self.on_rank_zero(lambda: digests)
        equal = self.all_true(torch.tensor([digests[name] == expected[name] for name in digests])).tolist()
        if not all(equal):
            names = " and ".join(name for name, same in zip(digests, equal, strict=True) if not same)
            raise self.mark_collective(
                RunError(
                    f"trainer.processes={self.size}: {names} differ between processes: run the same command again to "
                    "resume from the last checkpoint, or set trainer.processes=1"
                )
            )

    def barrier(self) -> None:
        """Wait until all ranks have arrived. Raises PeerLost if one has exited."""
        self.all_true(torch.ones(1))

    @contextmanager
    def _raising_peer_lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # The message from gloo, without file and line.
            cause = str(error).partition("\n")[0].partition(". ")[0].rpartition("] ")[2]
            with contextlib.suppress(RuntimeError):  # the store may be gone, too
                if self._store is not None and self._store.check(["failed"]):
                    cause = self._store.get("failed").decode()
            raise PeerLost(f"another process of this run has ended: {cause}") from error


def digest(value: Any) -> str:
    """Hash of the bits of tensors and the repr of plain values, in arbitrarily nested mappings and sequences."""
    blake2b = hashlib.blake2b(digest_size=16)

    def update(node: Any) -> None:
        if isinstance(node, Tensor):
            blake2b.update(f"{node.dtype}{tuple(node.shape)}".encode())
            blake2b.update(node.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(node, Mapping):
            for key, child in node.items():
                blake2b.update(repr(key).encode())
                update(child)
        elif isinstance(node, list | tuple):
            for child in node:
                update(child)
        else:
            blake2b.update(repr(node).encode())

    update(value)
    return blake2b.hexdigest()
