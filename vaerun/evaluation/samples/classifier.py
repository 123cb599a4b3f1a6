"""A feature space for comparing samples with data: a small classifier of the data set's labels.

The Frechet distance and precision, recall, density and coverage are usually computed on the features of an Inception
network trained on ImageNet. This network is trained here: three 3x3 convolutions with batch normalisation (Ioffe &
Szegedy 2015) and max pooling, a dense layer of 128 rectified features, and a linear classification layer. Values in its
feature space are comparable only between runs with the same classifier: `Classifier.name` contains the sha256 of its
weights. They must never be called a Frechet Inception distance.

It is trained once per data set, on all labelled training images even if a run uses fewer, by Adam (Kingma & Ba 2015)
with a cosine learning rate, and cached. Interrupted training resumes where it was last saved. It draws from separate
generators, so a run's random numbers do not depend on whether the classifier was in the cache. The same machine trains
the same weights; another device or number of threads adds in a different order, and the weights differ.

It does not use the Trainer: cached classifiers, and the numbers computed with them, depend on every operation of the
training loop, so the loop must not change when the Trainer does.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaerun.data.arrays import Arrays, digest
from vaerun.errors import InputError, RunError
from vaerun.memory import is_out_of_memory
from vaerun.randomness import permutation, seeded_generator
from vaerun.storage.checkpoint import CorruptCheckpoint, load_checkpoint, save_checkpoint
from vaerun.text import print_output, printable
from vaerun.tracking.monitor import SILENT, Monitor

VERSION = 1
"""Increment with every change to this file that changes the trained weights."""
ARCHITECTURE: dict[str, Any] = {"side": 32, "channels": [32, 64, 128], "features": 128}
"""side: larger images are reduced to at most this side by the stride of the first convolution."""
RECIPE: dict[str, Any] = {
    "batch": 128,
    "epochs": 20,
    "least_steps": 200,
    "most_steps": 1500,
    "learning_rate": 3e-3,
    "warm_up": 0.1,
}
"""The number of epochs, within limits on the steps; the learning rate is warmed up over the fraction `warm_up` of them.
It enters the cache key: never change it without VERSION."""
BATCH = 500  # images per batch, for features and predictions
LOCK_POLL_SECONDS = 1.0  # interval for polling a lock that another process holds
SAVE_SECONDS = 30.0  # interval for saving unfinished training


class Classifier:
    """A trained classifier of one data set, in evaluation mode.

    Attributes:
        name: version and data set, with the first 12 hexadecimal digits of the weights' sha256.
        accuracy: fraction of the data set's test images classified correctly, in [0, 1]; None without test labels.
        classes: number of classes.
    """

    def __init__(self, network: nn.Sequential, name: str, accuracy: float | None, classes: int) -> None:
        self.name, self.accuracy, self.classes = name, accuracy, classes
        self._network = network.eval()

    def features(self, x: Tensor) -> Tensor:
        """The last layer's input, float32 [N, 128] on x's device, for images x [N, C, H, W] in [0, 1]."""
        return self._batched(self._network[0], x)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class, int64 [N] on x's device, for images x [N, C, H, W] in [0, 1]."""
        return self._batched(self._network, x).argmax(1)

    def _batched(self, module: nn.Module, x: Tensor) -> Tensor:
        device = next(module.parameters()).device
        with torch.no_grad():
            return torch.cat([module(_prepare(part, device)).to(x.device) for part in x.split(BATCH)])


def load_or_train_classifier(
    arrays: Arrays, name: str, *, folder: Path, device: torch.device | str, monitor: Monitor = SILENT
) -> Classifier:
    """Read the classifier of a data set from `folder`, or train it and write it there.

    One process trains while others wait and then read the file. A damaged file is replaced with a warning. Progress is
    shown on standard error.

    Arguments:
        arrays: the data set, with labels.
        name: of the data set.
        folder: the cache of classifiers, created when needed.
        device: to train and to run on.
        monitor: checked after each step, and while waiting.

    Raises InputError for data without labels or with a single class, and for a folder that is not writable; RunError
    if the file cannot be written or training diverges.
    """
    if arrays.train_labels is None:
        raise InputError(
            f"{name}: a classifier needs labels, but this data set has none: omit metrics that compare features"
        )
    if len(np.unique(arrays.train_labels)) < 2:
        raise InputError(f"{name}: a classifier needs two classes or more: omit metrics that compare features")
    identity = [VERSION, ARCHITECTURE, RECIPE, arrays.sha256 or digest(arrays)]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{key}.pt"
    try:
        if path.exists():  # complete files never change: they need no lock, which a read-only folder would not allow
            return _read(path, arrays, name, device)
    except CorruptCheckpoint:
        pass  # checked again under the lock: another process may be replacing it
    with _locked(path, name, monitor):
        if path.exists():
            try:
                return _read(path, arrays, name, device)
            except CorruptCheckpoint as error:
                _warn_damaged(path, error)
        for stale in folder.glob(f".{path.stem}.*.tmp"):
            stale.unlink(missing_ok=True)  # left by a killed process: this one holds the lock
        unfinished = path.with_suffix(".unfinished.pt")
        state = _train(arrays, name, torch.device(device), monitor, unfinished)
        _save(path, state, monitor)
        unfinished.unlink(missing_ok=True)
    return _restore(state, arrays, name, device)


def _save(path: Path, state: dict[str, Any], monitor: Monitor) -> None:
    # A signal that raises at once would leave the temporary file behind.
    with monitor.deferred():
        save_checkpoint(path, state)


@contextmanager
def _locked(path: Path, name: str, monitor: Monitor) -> Iterator[None]:
    """Hold the lock of a file to be written; the system releases it when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock, announced = FileLock(path.with_suffix(".lock")), False
    while not lock.is_locked:
        monitor.check()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOCK_POLL_SECONDS)
        except Timeout:
            if not announced:
                line = f"vaerun: another process is training the classifier of {name}: waiting for it"
                print_output(line, sys.stderr)
            announced = True
        except (OSError, NotImplementedError) as error:
            raise InputError(
                f"cannot write to {path.parent} ({getattr(error, 'strerror', None) or error}): set VAERUN_CACHE to a "
                "writable folder with free space"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _classes(arrays: Arrays) -> int:
    return 1 + max(int(labels.max()) for labels in (arrays.train_labels, arrays.test_labels) if labels is not None)


def _network(shape: Sequence[int], classes: int) -> nn.Sequential:
    """Images [B, *shape] -> features -> logits [B, classes], with parameters on the meta device."""
    channels, *size = shape
    stride = math.ceil(max(size) / ARCHITECTURE["side"])
    layers: list[nn.Module] = []
    with torch.device("meta"):  # PyTorch's initialisation would draw from the run's generator
        for a, b in pairwise([channels, *ARCHITECTURE["channels"]]):
            layers += [nn.Conv2d(a, b, 2 * stride + 1, stride, stride, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            size = [((length - 1) // stride + 2) // 2 for length in size]
            stride = 1
        width = ARCHITECTURE["features"]
        layers += [nn.Flatten(), nn.Linear(b * math.prod(size), width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        network = nn.Sequential(nn.Sequential(*layers), nn.Linear(width, classes))
    return network.float()


def _initialise(network: nn.Module) -> None:
    """Initialise as He et al. (2015), from a separate generator."""
    source = seeded_generator("cpu", "classifier", "weights")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=source)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()


def _prepare(x: Tensor, device: torch.device) -> Tensor:
    # On CPUs convolutions are two to three times as fast with channels last.
    return x.to(device, torch.float32).contiguous(memory_format=torch.channels_last)


def _pixels(images: np.ndarray) -> Tensor:
    """Images uint8 [N, C, H, W] as float32 in [0, 1]."""
    return torch.from_numpy(np.array(images)).float() / 255


def _batches(count: int, size: int, steps: int) -> Iterator[np.ndarray]:
    """Row indices [size] of each step; every epoch is a new permutation."""
    epoch, rows = 0, np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(rows) < size:
            rows = np.concatenate([rows, permutation(count, "classifier", "epoch", epoch).numpy()])
            epoch += 1
        yield rows[:size]
        rows = rows[size:]


def _learning_rate(step: int, steps: int) -> float:
    """Linear warm-up until it meets the cosine, then the cosine down to 0."""
    warm_up, cosine = (step + 1) / (RECIPE["warm_up"] * steps), (1 + math.cos(math.pi * step / steps)) / 2
    return RECIPE["learning_rate"] * min(warm_up, cosine)


def _warn_damaged(path: Path, error: Exception) -> None:
    line = f"{path} is damaged ({error}); training the classifier again"
    print_output(f"vaerun: warning: {printable(line)}", sys.stderr)


def _resume(network: nn.Module, adam: torch.optim.Adam, unfinished: Path) -> int | None:
    """Restore network and optimiser; return the steps done. A damaged file is removed: None, both are then unusable."""
    if not unfinished.exists():
        return 0
    try:
        state = load_checkpoint(unfinished)
        network.load_state_dict(state["weights"])
        adam.load_state_dict(state["adam"])
        return int(state["step"])
    except (CorruptCheckpoint, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        unfinished.unlink()
        _warn_damaged(unfinished, error)
        return None


def _train(arrays: Arrays, name: str, device: torch.device, monitor: Monitor, unfinished: Path) -> dict[str, Any]:
    """Train the classifier and return its state on the CPU, checkpointing to `unfinished` meanwhile."""
    images, labels = arrays.train_images, torch.from_numpy(np.array(arrays.train_labels))
    network = _network(images.shape[1:], _classes(arrays)).to_empty(device="cpu")
    _initialise(network)
    network.to(memory_format=torch.channels_last).to(device).train()
    size = min(RECIPE["batch"], len(images))
    epoch_steps = RECIPE["epochs"] * math.ceil(len(images) / size)
    steps = min(max(epoch_steps, RECIPE["least_steps"]), RECIPE["most_steps"])
    adam = torch.optim.Adam(network.parameters())
    done = _resume(network, adam, unfinished)
    if done is None:
        return _train(arrays, name, device, monitor, unfinished)
    saved = time.monotonic()
    with (
        monitor.task(f"training the classifier of {name}", steps * size, done=done * size) as task,
        torch.backends.cudnn.flags(enabled=True, deterministic=True),
        torch.enable_grad(),
    ):
        for step, rows in islice(enumerate(_batches(len(images), size, steps)), done, None):
            if step > done and (task.interrupted or time.monotonic() - saved > SAVE_SECONDS):
                now = {"step": step, "weights": network.state_dict(), "adam": adam.state_dict()}
                _save(unfinished, now, task)
                saved = time.monotonic()
            task.check()
            adam.param_groups[0]["lr"] = _learning_rate(step, steps)
            logits = network(_prepare(_pixels(images[rows]), device))
            adam.zero_grad()
            F.cross_entropy(logits, labels[rows].to(device)).backward()
            adam.step()
            task.advance(size)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RunError(f"training the classifier of {name} diverged: its weights are not finite")
    state: dict[str, Any] = {"weights": weights, "accuracy": None}
    if arrays.test_images is not None and arrays.test_labels is not None:
        trained = _restore(state, arrays, name, device)
        correct = 0
        for start in range(0, len(arrays.test_images), BATCH):
            monitor.check()
            part = slice(start, start + BATCH)
            predicted = trained.predict(_pixels(arrays.test_images[part])).numpy()
            correct += int((predicted == arrays.test_labels[part]).sum())
        state["accuracy"] = correct / len(arrays.test_images)
    return state


def _read(path: Path, arrays: Arrays, name: str, device: torch.device | str) -> Classifier:
    """Read a state that `_train` returned. Raises CorruptCheckpoint for anything else."""
    state = load_checkpoint(path)
    try:
        return _restore(state, arrays, name, device)
    except (KeyError, AttributeError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CorruptCheckpoint("it does not hold a classifier of this data set") from error


def _restore(state: dict[str, Any], arrays: Arrays, name: str, device: torch.device | str) -> Classifier:
    weights, classes = state["weights"], _classes(arrays)
    network = _network(arrays.train_images.shape[1:], classes).to_empty(device="cpu")
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last).to(device)
    sha = hashlib.sha256()
    for key, value in sorted(weights.items()):
        sha.update(f"{key} {tuple(value.shape)}\n".encode())
        sha.update(value.numpy().tobytes())
    full = f"vaerun-classifier-v{VERSION} of {name} (sha256 {sha.hexdigest()[:12]})"
    return Classifier(network, full, state["accuracy"], classes)
