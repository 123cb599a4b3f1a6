"""Inception features for the Frechet inception distance (Heusel et al. 2017), where the user has the weights.

FID is defined by one network: the Inception v3 of 2015 with TensorFlow's own resizing and pooling, its 2048 pooled
features, its weights. Neither network nor weights are part of vaerun. The network is torch-fidelity's (Obukhov et al.
2020; pip install 'vaerun[fid]'); the weights are a file that the user names: nothing is downloaded. Other weights give
other distances, which compare with no published one; the published file's SHA-256 begins with STANDARD.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaerun.errors import InputError, RunError
from vaerun.storage.safe_pickle import read_tensors
from vaerun.storage.untrusted import open_regular

PUBLISHED_SHA256 = "6726825d"  # the released file is named after it: weights-inception-2015-12-05-6726825d.pth
NETWORK_NAME = "inception-v3-compat"  # the package's own
FEATURES, CLASSES = 2048, 1008
BATCH = 32  # images at a time: resized to 299 x 299 they and what the network makes of them take some 20 MB each


def check_inception(weights: Path) -> str:
    """The SHA-256 of a file of Inception weights (hexadecimal), once a network has been made of it.

    Raises InputError as inception_features does.
    """
    _network(weights)
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inception_features(weights: Path, *, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """A function from images [N, C, H, W] in [0, 1] to Inception's pooled features [N, 2048] (float32, on the device).

    Pixels are rounded to 256 levels, which is what the network takes; grey images are repeated to three channels. The
    function raises InputError for images that are neither grey nor RGB, RunError for images that are not finite.

    Arguments:
        weights: state_dict of torch-fidelity's FeatureExtractorInceptionV3, as released. It is read as values and
            tensors: code in it is refused, not run.
        device: where the network runs.

    Raises InputError when there is no such file, when torch-fidelity is not installed, or when the file holds something
    else.
    """
    network = _network(weights).to(device)

    def features(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"Inception features need grey or RGB images, got {images.shape[1]} channels")
        if not bool(images.isfinite().all()):
            raise RunError("Inception features need finite images, and some are not: look at the generator's losses")
        with torch.no_grad():
            parts = []
            for part in images.split(BATCH):
                pixels = (part.to(device) * 255).round().clamp(0, 255).to(torch.uint8)
                parts.append(network(pixels.expand(-1, 3, -1, -1))[0])
        return torch.cat(parts) if parts else torch.empty(0, FEATURES, dtype=torch.float32, device=device)

    return features


def _read(weights: Path) -> dict[str, Tensor]:
    if not weights.is_file():
        raise InputError(f"there is no file {weights}: FID needs Inception's weights, which vaerun does not download")
    try:
        with open_regular(weights) as file:
            released = hashlib.file_digest(file, "sha256").hexdigest().startswith(PUBLISHED_SHA256)
        # The released file may be of a torch from before it wrote archives, which do say beforehand what they hold.
        values = torch.load(weights, map_location="cpu", weights_only=True) if released else read_tensors(weights)
    except OSError as error:
        raise InputError(f"cannot read Inception's weights {weights}: {error.strerror}") from None
    except Exception:  # zipfile, pickle and torch know a dozen kinds for a file that is something else
        values = None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise InputError(f"{weights} does not hold Inception's weights: it must be a state_dict of tensors and no code")
    last = values.get("fc.weight")
    if last is None or last.shape != (CLASSES, FEATURES):
        found = "is missing" if last is None else f"has shape {tuple(last.shape)}"
        raise InputError(
            f"{weights} does not hold the weights of FID's network: fc.weight {found}, not {(CLASSES, FEATURES)} "
            "(torchvision's Inception is another network)"
        )
    return values


def _network(weights: Path) -> Any:
    values = _read(weights)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise InputError("FID needs the package torch-fidelity: pip install 'vaerun[fid]'") from None
    # The package's own torch.load runs whatever code a file holds. It is handed what was read here, not the file.
    safe = io.BytesIO()
    torch.save(values, safe)
    safe.seek(0)
    with torch.random.fork_rng(devices=[]):  # layers draw the weights that are then overwritten
        try:
            return FeatureExtractorInceptionV3(NETWORK_NAME, ["2048"], feature_extractor_weights_path=safe)
        except RuntimeError as error:
            wrong = " ".join(str(error).split())[:200]
            raise InputError(f"{weights} does not hold the weights of FID's network: {wrong}") from None
