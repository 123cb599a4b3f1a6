"""What a user may have set before calling vaerun: torch's defaults, seeds, and how numpy and Python complain."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch
from support.models.precision import set_precision

STATES = ["nothing", "float64", "float16", "device", "threads", "seeds", "strict", "plots"]


@contextmanager
def user_state(name: str) -> Iterator[None]:
    """One of STATES, starting from torch's own defaults; what was set before is back afterwards.

    The default device is `meta`, which holds no values: whatever is created there cannot be read.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    seeds = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    set_precision(torch.float32)
    with np.errstate(), warnings.catch_warnings(), mpl.rc_context():
        try:
            if name == "float64":
                torch.set_default_dtype(torch.float64)
            elif name == "float16":
                torch.set_default_dtype(torch.float16)
            elif name == "device":
                torch.set_default_device("meta")
            elif name == "threads":
                torch.set_num_threads(threads + 1)
            elif name == "seeds":
                torch.manual_seed(11), np.random.seed(12), random.seed(13)  # noqa: NPY002
            elif name == "strict":
                np.seterr(all="raise")
                warnings.simplefilter("error", RuntimeWarning)
            elif name == "plots":
                mpl.rcParams.update({"figure.dpi": 31, "savefig.bbox": "tight", "lines.linewidth": 9, "font.size": 21})
            yield
        finally:
            torch.set_default_device(None)
            torch.set_num_threads(threads)
            set_precision(dtype)
            torch.set_rng_state(seeds[0]), np.random.set_state(seeds[1]), random.setstate(seeds[2])  # noqa: NPY002
