"""A data set on the device: three disjoint splits of uint8 images, from which batches are made on the device."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaerun.data.arrays import Arrays
from vaerun.data.spec import ImageSpec
from vaerun.data.transforms import Transform
from vaerun.errors import InputError
from vaerun.randomness import batch_uniform, fixed_uniform

FEW_ON = 1 / 200  # pixels of 0 and 1 that were read as 0..255 are on with a probability of 1/255 at most
SPLIT_SEED = 20190609  # seed of the validation split and of per-image noise, independent of the run's seed


@dataclass(frozen=True)
class Batch:
    """A batch of images as seen by the model.

    Attributes:
        x: [B, C, H, W] float32.
        labels: [B] int64, or None if the data has none.
        classes: number of classes.
        log_det: log|det| of the transform, [B] nats.
        rows: indices of the images within their split, [B].
    """

    x: Tensor
    labels: Tensor | None
    classes: int
    log_det: Tensor
    rows: Tensor

    @property
    def c(self) -> Tensor | None:
        """One-hot labels [B, classes] float32, computed on access; None if the data has no labels."""
        return None if self.labels is None else one_hot(self.labels, self.classes)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 [B] -> float32 [B, classes]; unlike torch's, without host-device synchronisation."""
    return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).float()


class Split:
    """One split of a data set.

    Arguments:
        name: train, validation or test.
        images: uint8 [N, C, H, W] on the device.
        labels: int64 [N] on the device, or None.
        classes: number of classes.
        transform: pixels -> x.
        binarised: whether the images are already binarised.
        ids: row in the source (int64) or file name (str) of each image, [N]; None: 0, 1, 2, ...
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Tensor | None,
        classes: int,
        transform: Transform,
        binarised: bool,
        ids: np.ndarray | None = None,
    ) -> None:
        self.name, self.images, self.labels, self.classes = name, images, labels, classes
        self.transform, self.binarised = transform, binarised
        self.ids = np.arange(len(images)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def one_hot(self, labels: Tensor) -> Tensor:
        """int64 [B] -> float32 [B, classes]."""
        return one_hot(labels, self.classes)

    def training_batch(self, rows: Tensor) -> Batch:
        """The images with indices `rows` [B] (on the device), with fresh noise from torch's global generator."""
        pixels = self.images[rows]
        options = {"dtype": torch.float32, "device": pixels.device}
        return self._batch(pixels, rows, rows, lambda: batch_uniform(pixels.shape, 0, **options))

    def batches(self, size: int, images: int | None = None) -> Iterator[Batch]:
        """The first `images` images (None: all) in order, `size` at a time, each with its fixed noise."""
        stop = len(self) if images is None else min(images, len(self))
        for start in range(0, stop, size):
            yield self.batch(start, min(start + size, stop))

    def batch(self, start: int, stop: int) -> Batch:
        """Images start..stop-1, each with its fixed noise."""
        pixels = self.images[start:stop]
        noise = (self.image_shape, start, stop, pixels.device, SPLIT_SEED, "dequantize", self.name)
        rows = torch.arange(start, stop, device="cpu")
        return self._batch(pixels, slice(start, stop), rows, lambda: fixed_uniform(*noise))

    def select(self, rows: Sequence[int]) -> Batch:
        """Images `rows`, each with the noise that it has in `batch`."""
        parts = [self.batch(row, row + 1) for row in rows]
        labels = [part.labels for part in parts if part.labels is not None]
        return Batch(
            torch.cat([part.x for part in parts]),
            torch.cat(labels) if labels else None,
            self.classes,
            torch.cat([part.log_det for part in parts]),
            torch.tensor(rows, device="cpu"),
        )

    def _batch(self, pixels: Tensor, index: Any, rows: Tensor, uniform: Any) -> Batch:
        x, log_det = self.transform(pixels, uniform, self.binarised)
        labels = None if self.labels is None else self.labels[index]
        return Batch(x, labels, self.classes, log_det, rows)


class ImageData:
    """Train, validation and test splits, with the statistics that models need and the facts that results report.

    Arguments:
        name: of the data set.
        arrays: as prepared.
        validation: number (or fraction below 1) of training images to hold out for validation, chosen by a fixed seed;
            the same images for any `train_images`. Has no effect on a data set with a validation part of its own.
        train_images: number of the remaining training images to use, the first ones; None: all.
        transform: pixels -> x.
        device: device of the images.

    Raises InputError if the data has too few images.
    """

    def __init__(
        self,
        name: str,
        arrays: Arrays,
        *,
        validation: float,
        train_images: int | None = None,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.sha256, self.split_name = name, arrays.sha256, arrays.split
        self.transform = transform = transform or Transform()
        self.arrays = arrays
        total, given = len(arrays.train_images), arrays.validation_images
        if given is not None:
            validation = 0
        validation = round(validation * total) if 0 < validation < 1 else validation
        if not math.isfinite(validation) or validation != int(validation):
            raise InputError(f"data.validation must be an integer or a fraction below 1, got {validation}")
        validation = int(validation)
        if not 0 <= validation < total:
            raise InputError(
                f"data.validation must be between 0 and {total - 1} ({name} has {total}), got {validation}"
            )
        order = np.random.RandomState(SPLIT_SEED).permutation(total)
        held_out, rest = np.sort(order[:validation]), np.sort(order[validation:])
        if train_images is not None:
            if not 0 < train_images <= len(rest):
                raise InputError(
                    f"data.train_images must be between 1 and {len(rest)} (the training images of {name} without "
                    f"{validation} for validation), got {train_images}"
                )
            rest = rest[:train_images]
        if arrays.test_images is None:
            raise InputError(f"data set {name} has no test images: its source must return or split off a test part")

        parts = ["train", "test"] if given is None else ["train", "test", "validation"]
        labelled = all(getattr(arrays, f"{part}_labels") is not None for part in parts)
        self.class_names: tuple[str, ...] = ()
        if labelled:
            self.class_names = arrays.class_names or _numbers(getattr(arrays, f"{part}_labels") for part in parts)
        self.classes = len(self.class_names)

        def make_split(split: str, part: str, rows: np.ndarray | None) -> Split:
            images, labels = getattr(arrays, f"{part}_images"), getattr(arrays, f"{part}_labels")
            pixels, ids = _tensor(images, rows).to(device), arrays.part_ids(part)
            label_tensor = _tensor(labels, rows).to(device) if labelled else None
            binarised = transform.binarize == "fixed" or (transform.binarize == "dynamic" and split != "train")
            if binarised:
                _binarize_in_place(pixels, split)
            ids = ids if rows is None else ids[rows]
            return Split(split, pixels, label_tensor, self.classes, transform, binarised, ids)

        self.train = make_split("train", "train", rest)
        validation_rows = ("train", held_out) if given is None else ("validation", None)
        self.validation = make_split("validation", *validation_rows)
        self.test = make_split("test", "test", None)
        self.mean, self.variance = self._moments()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.train.image_shape

    @property
    def spec(self) -> ImageSpec:
        """What a model of these images must know."""
        logit = self.transform.logit
        return ImageSpec(self.name, self.image_shape, self.classes, self.binary, logit, self.mean, self.variance)

    @property
    def unseen_classes(self) -> tuple[str, ...]:
        """Names of the classes without a training image."""
        if self.train.labels is None:
            return ()
        counts = torch.bincount(self.train.labels, minlength=self.classes).tolist()
        return tuple(name for name, count in zip(self.class_names, counts, strict=True) if not count)

    @property
    def no_labels(self) -> str:
        """Why there are no labels to use."""
        return self.arrays.unlabelled or f"data set {self.name} has no labels"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines on what is probably a mistake, in the data as read and as the model sees them."""
        lines = list(self.arrays.warnings)
        if self.unseen_classes:
            lines.append(f"no training image is of class {shorten(self.unseen_classes)}")
        on = float(self.mean.mean())
        if self.binary and not FEW_ON <= on <= 1 - FEW_ON:
            colour = "black" if on < 0.5 else "white"
            lines.append(
                f"{on:.2%} of the training pixels are on: the images are all but {colour}, and log-likelihoods near 0 "
                "nats are no achievement; check the scale of the stored pixels"
            )
        return tuple(lines)

    def class_index(self, label: Any) -> int:
        """Index of a class, given by its name or, if no class has this name, by its index.

        Raises InputError for a class that does not exist.
        """
        name = unicodedata.normalize("NFC", str(label))
        if name in self.class_names:
            return self.class_names.index(name)
        if isinstance(label, int) and 0 <= label < self.classes:
            return label
        raise InputError(f"evaluation.label={label}: the classes are {shorten(self.class_names)}")

    @property
    def dimensions(self) -> int:
        """D = C H W."""
        return int(np.prod(self.image_shape))

    @cached_property
    def binary(self) -> bool:
        """Whether every x is 0 or 1, as a Bernoulli likelihood requires."""
        if self.transform.binarize != "none":
            return True
        if self.transform.dequantize:
            return False
        parts = (part for split in (self.train, self.validation, self.test) for part in split.images.split(1024))
        return all(bool(((pixels == 0) | (pixels == 255)).all()) for pixels in parts)  # stops at the first that is not

    @property
    def validation_split(self) -> str:
        """Where the validation images come from."""
        if self.arrays.validation_images is not None:
            return f"{len(self.validation)} images, given"
        return f"{len(self.validation)} training images by seed {SPLIT_SEED}"

    @property
    def protocol(self) -> dict[str, Any]:
        """The facts that must match for two results to be comparable."""
        t = self.transform
        return {
            "binarize": t.binarize,
            "dequantize": t.dequantize,
            "logit": t.logit,
            "images": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
            "split": self.split_name,
            "validation_split": self.validation_split,
            "data_sha256": self.sha256,
        }

    def _moments(self) -> tuple[Tensor, float]:
        """Mean [C, H, W] of x over the training split, and the variance of x about it, averaged over pixels."""
        raw = not self.transform.logit  # moments of the stored pixels suffice, and are faster
        first, second = torch.zeros(self.dimensions, dtype=torch.float64, device="cpu"), 0.0
        for start in range(0, len(self.train), 512):  # fits into a CPU's caches
            stop = min(start + 512, len(self.train))
            pixels = self.train.images[start:stop].float() if raw else self.train.batch(start, stop).x
            rows = pixels.flatten(1)
            first += torch.mv(rows.T, torch.ones_like(rows[:, 0])).cpu().double()
            second += float(torch.dot(rows.flatten(), rows.flatten()))
        scale = 255 if raw else 1
        mean = first / (len(self.train) * scale)
        variance = second / (len(self.train) * self.dimensions * scale**2) - float(mean.square().mean())
        if raw:
            mean, variance = self.transform.moments(mean, variance)
        # A constant data set has variance 0; 1e-6 is far below one grey level squared.
        return mean.view(self.image_shape).float().to(self.train.images.device), max(variance, 1e-6)


def shorten(names: Sequence[str]) -> str:
    """The first ten names."""
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


def _tensor(array: np.ndarray, rows: np.ndarray | None) -> Tensor:
    """A copy of the rows (None: all) as a tensor; the array may be a read-only memory map."""
    return torch.from_numpy(np.array(array) if rows is None else np.asarray(array[rows]))


def _binarize_in_place(pixels: Tensor, split: str) -> None:
    """Replace uint8 grey values by 0 or 255, P(255) = grey / 255, with fixed noise for each image of the split."""
    for start in range(0, len(pixels), 4096):
        part = pixels[start : start + 4096]
        noise = fixed_uniform(part.shape[1:], start, start + len(part), part.device, SPLIT_SEED, "binarize", split)
        pixels[start : start + 4096] = (noise < part.to(torch.float32) / 255).to(torch.uint8) * 255


def _numbers(labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """Names of classes that are known by their labels only."""
    return tuple(map(str, range(1 + max(int(part.max()) for part in labels))))
