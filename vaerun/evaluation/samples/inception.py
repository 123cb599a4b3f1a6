"""Inception features for the Frechet inception distance (Heusel et al. 2017), from weights that the user provides.

FID is defined by one network: the Inception v3 of 2015 with TensorFlow's resizing and pooling, its 2048 pooled features
and its weights. Neither the network nor its weights are part of vaerun. The network is torch-fidelity's (Obukhov et al.
2020; pip install 'vaerun[fid]'); the weights are a file named by the user, and nothing is downloaded. Distances from
other weights are not comparable to published ones. The SHA-256 of the published file starts with PUBLISHED_SHA256.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaerun.defaults import own_defaults
from vaerun.errors import InputError, RunError
from vaerun.memory import is_out_of_memory
from vaerun.storage.safe_pickle import read_tensors
from vaerun.storage.untrusted import open_regular

PUBLISHED_SHA256 = "6726825d"  # part of the released file's name, weights-inception-2015-12-05-6726825d.pth
NETWORK_NAME = "inception-v3-compat"  # torch-fidelity's name for it
FEATURES, CLASSES = 2048, 1008
BATCH = 32  # images at once: at 299 x 299 an image and its activations take about 20 MB


def check_inception(weights: Path) -> str:
    """Check that the network can be built from a file of Inception weights; returns the file's SHA-256 (hexadecimal).

    Raises InputError as inception_features does.
    """
    _network(weights)
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inception_features(weights: Path, *, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Return a function from images [N, C, H, W] in [0, 1] to Inception's pooled features [N, 2048] (float32).

    Pixels are rounded to 256 levels, which the network expects; grey images are expanded to three channels. The
    function raises InputError for images that are neither grey nor RGB, RunError for images that are not finite.

    Arguments:
        weights: the released state_dict of torch-fidelity's FeatureExtractorInceptionV3. It is read as plain values and
            tensors; code in it is rejected, never run.
        device: where the network runs, and where the features are.

    Raises InputError if the file does not exist or holds something else, or torch-fidelity is not installed.
    """
    network = _network(weights).to(device)

    def features(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"Inception features need grey or RGB images, got {images.shape[1]} channels")
        if not bool(images.isfinite().all()):
            raise RunError("Inception features need finite images, but some are not: check the generator's losses")
        with torch.no_grad():
            parts = []
            for part in images.split(BATCH):
                pixels = (part.to(device) * 255).round().clamp(0, 255).to(torch.uint8)
                parts.append(network(pixels.expand(-1, 3, -1, -1))[0])
        return torch.cat(parts) if parts else torch.empty(0, FEATURES, dtype=torch.float32, device=device)

    return features


def _read(weights: Path) -> dict[str, Tensor]:
    if not weights.is_file():
        raise InputError(f"no such file: {weights}; FID needs Inception's weights, which vaerun does not download")
    try:
        with open_regular(weights) as file:
            released = hashlib.file_digest(file, "sha256").hexdigest().startswith(PUBLISHED_SHA256)
        # The released file may predate torch's zip format, the only one whose contents can be inspected beforehand.
        values = torch.load(weights, map_location="cpu", weights_only=True) if released else read_tensors(weights)
    except OSError as error:
        raise InputError(f"cannot read Inception's weights {weights}: {error.strerror}") from None
    except Exception as error:  # zipfile, pickle and torch raise a dozen exception types for other files
        if is_out_of_memory(error):
            raise
        values = None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise InputError(
            f"{weights} does not hold Inception's weights: it must be a state_dict of tensors, without code"
        )
    last = values.get("fc.weight")
    if last is None or last.shape != (CLASSES, FEATURES):
        actual = "is missing" if last is None else f"has shape {tuple(last.shape)}"
        raise InputError(
            f"{weights} does not hold the weights of FID's network: fc.weight {actual}, not {(CLASSES, FEATURES)} "
            "(torchvision's Inception is another network)"
        )
    return values


def _network(weights: Path) -> Any:
    values = _read(weights)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise InputError("FID needs the package torch-fidelity: pip install 'vaerun[fid]'") from None
    # The package's torch.load would run any code in the file: it is given the values read here instead.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    buffer.seek(0)
    with own_defaults(), torch.random.fork_rng(devices=[]):  # layers draw initial weights, which are then overwritten
        try:
            return FeatureExtractorInceptionV3(NETWORK_NAME, ["2048"], feature_extractor_weights_path=buffer)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{weights} does not hold the weights of FID's network: {reason}") from None
