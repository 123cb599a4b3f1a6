"""The data of a run do not depend on what a user has set: the same bytes as ever, whatever torch's defaults."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from support.models.user_state import STATES, user_state
from torch import Tensor

from vaerun.data.arrays import Arrays
from vaerun.data.dataset import ImageData
from vaerun.data.transforms import Transform

TRANSFORMS = {
    "plain": Transform(),
    "fixed": Transform(binarize="fixed"),
    "dynamic": Transform(binarize="dynamic"),
    "dequantize": Transform(dequantize=True),
    "logit": Transform(dequantize=True, logit=True),
}
# As drawn before types and devices were explicit, in the order of `drawn`; logarithms differ between processors.
RECORDED = {
    "plain": "9b5f9bcb19f5 40fbbbd8c6f3 fdaf64c20ec0 6b6c49d0fb52 17564f01c227 752c434cf276",
    "fixed": "8adc62236460 bd4836b9044c 1d26cfe68141 39ebb19cba44 235894711277 8fab13d112a5",
    "dynamic": "40c325da4b69 bd4836b9044c 1d26cfe68141 39ebb19cba44 17564f01c227 752c434cf276",
    "dequantize": "29b3f4414c68 de3f98976231 bfc7c28a66e3 f78df18097b4 17564f01c227 191c2a51eb9b",
}


def sha(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def drawn(mode: str) -> list[str]:
    """Everything that is drawn for a data set, and its mean image."""
    source = np.random.RandomState(0)
    pixels = [source.randint(0, 256, (n, 1, 9, 7), dtype=np.uint8) for n in (700, 300)]
    labels = [np.arange(len(part)) % 3 for part in pixels]
    arrays = Arrays(pixels[0], labels[0], pixels[1], labels[1], "official")
    data = ImageData("x", arrays, validation=50, transform=TRANSFORMS[mode])
    torch.manual_seed(3)
    training = data.train.training_batch(torch.arange(20, device="cpu"))
    test, some = data.test.batch(3, 280), data.test.select([5, 280])
    return [
        sha(training.x, training.log_det),
        sha(test.x, test.log_det, test.rows),
        sha(some.x, some.log_det, some.rows),
        sha(data.validation.batch(0, 50).x),
        sha(data.train.images),
        sha(data.mean),
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", TRANSFORMS)
def test_data_do_not_depend_on_global_state(mode: str, state: str) -> None:
    with user_state("nothing"):
        usual = drawn(mode)
    with user_state(state):
        assert drawn(mode) == usual
    assert mode == "logit" or usual == RECORDED[mode].split()
