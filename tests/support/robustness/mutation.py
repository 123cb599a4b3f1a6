"""Mutations of text, structures and files, as functions of a seeded generator."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import math
import pickle
import random as random_
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

Random = random_.Random

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 1e-320, math.inf, -math.inf, math.nan, 2**31, 2**63, 2**64,
    -(2**63),
    10**40, "", " ", "null", "~", "x", "0", "-1", "1e400", "nan", ".inf", "true", "a,b", "[1", "{a", "???",
    "${oc.env:HOME}",
    "${", "../..", "/", "/etc/passwd", "/dev/zero", "~root", "a\0b", "\x1b[31m", "\u202e", "é漢\U0001f600",
    "a" * 5000, "a\nb",
    "=cmd()", "| x |", "[a](javascript:b)", "\\input{x}", "%s%n", "{0}", "<b>", [], {}, [[]], [{}], {"": {}},
    {"_target_": "os.system"},
    {"a": [1, {"b": None}]}, [None], [1, 2, 3], ["a", 1], [0] * 200, [math.nan],
]  # fmt: skip
LETTERS = "abz019_-.,:;=+~@!?#$%&*()[]{}<>|\\/'\"` \t\n\0\x1b\x7f\u202e\ufeffé漢\U0001f600"


def odd_value(random: Random) -> Any:
    return copy.deepcopy(random.choice(ODD_VALUES))


def mutate_text(random: Random, base: str) -> str:
    """Insert, delete, duplicate or replace a few characters, or cut the text off."""
    letters = list(base)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at, how = random.randint(0, len(letters)), random.randrange(6)
        if how == 0:
            letters.insert(at, random.choice(LETTERS))
        elif how == 1:
            del letters[at : at + random.randint(1, 4)]
        elif how == 2:
            letters[at:at] = letters[at : at + random.randint(1, 30)]
        elif how == 3:
            letters[at : at + 1] = random.choice(LETTERS)
        elif how == 4:
            letters[at:at] = str(random.choice([w for w in ODD_VALUES if not isinstance(w, list | dict)]))
        else:
            del letters[at if random.random() < 0.2 else len(letters) :]
    return "".join(letters)


def mutate_bytes(random: Random, base: bytes) -> bytes:
    """Change a few bytes, or delete, duplicate or zero a part."""
    data = bytearray(base)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at, how, length = random.randint(0, len(data)), random.randrange(7), random.choice((1, 2, 4, 8, 64, 1000))
        if how == 0 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        elif how == 1:
            data[at : at + length] = random.randbytes(length)
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        elif how == 4:
            data[at : at + length] = bytes(length)
        elif how == 5:
            data[at : at + length] = random.choice((b"\xff", b"\x7f", b"\x80")) * length
        elif random.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutate_structure(random: Random, value: Any) -> Any:
    """Replace, delete, rename or exchange a few values of a nested structure."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or random.random() < 0.01:
            return odd_value(random)
        parent, key = random.choice(places)
        other, at = random.choice(places)
        how = random.randrange(6)
        if how <= 1:
            parent[key] = odd_value(random)
        elif how == 2:
            del parent[key]
        elif how == 3 and isinstance(parent, dict):
            renamed = str(odd_value(random)) if random.random() < 0.5 else f"{key}{random.choice(LETTERS)}"
            parent[renamed] = parent.pop(key)
        elif how == 4:
            parent[key] = copy.deepcopy(other[at])
        elif isinstance(parent[key], str):
            parent[key] = mutate_text(random, parent[key])
        elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = random.choice(
                (parent[key] * -1, parent[key] + 1, parent[key] * 1.5, str(parent[key]), [parent[key]])
            )
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutate_document(random: Random, value: Any, dump: Callable[[Any], str]) -> bytes:
    """Serialise a structure, mutated before or after."""
    if random.random() < 0.6:
        try:
            return dump(mutate_structure(random, value)).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError, RecursionError):
            pass
    return mutate_bytes(random, dump(value).encode())


def mutate_json(random: Random, value: Any) -> bytes:
    return mutate_document(random, value, json.dumps)


def mutate_npy(random: Random, base: np.ndarray) -> bytes:
    """An .npy file with another dtype or shape, or with a mutated header or mutated bytes."""
    how, array = random.randrange(8), base
    if how == 0:
        kind = random.choice(["f4", "f8", "i8", "u2", "i1", "?", "U3", "S2", "c8", "M8[s]", "f2", ">i4", "O"])
        with contextlib.suppress(ValueError, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = base.astype(kind)
    elif how == 1:
        shape = [random.choice((0, 1, 2, 3, 5)) for _ in range(random.randrange(6))]
        array = np.resize(base, shape)
    elif how == 2:
        array = np.atleast_1d(base)[: random.randrange(3)]
    elif how == 3 and base.ndim:
        array = np.moveaxis(base, 0, -1)
    elif how == 4:
        array = np.array(odd_value(random), dtype=object)
    buffer = io.BytesIO()
    try:
        np.save(buffer, array, allow_pickle=True)
    except (ValueError, TypeError, pickle.PicklingError):
        np.save(buffer, base)
    data = buffer.getvalue()
    if how == 5:  # the header alone
        end = data.index(b"\n") if b"\n" in data else 128
        return mutate_bytes(random, data[:end]) + data[end:]
    if how == 6:
        number = str(random.choice((10**6, 10**12, 10**20, -1, 0))).encode()
        return data.replace(str(base.shape[0] if base.ndim else 1).encode(), number, 1)
    return mutate_bytes(random, data) if how == 7 else data


def mutate_npz(random: Random, arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file with one mutated array, or with mutated bytes."""
    buffer = io.BytesIO()
    kind = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    changed = random.choice(list(arrays)) if random.random() < 0.7 else None
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, array in arrays.items():
            if name == changed and random.random() < 0.1:
                continue
            member = io.BytesIO()
            np.save(member, array)
            data = mutate_npy(random, array) if name == changed else member.getvalue()
            shown = mutate_text(random, name) if name == changed and random.random() < 0.1 else name
            member_name = f"{shown}.npy" if random.random() < 0.98 else shown
            # zipfile cuts names at a NUL and cannot write an empty one.
            archive.writestr(member_name if member_name.partition("\0")[0] else "x", data)
    return buffer.getvalue() if changed is not None else mutate_bytes(random, buffer.getvalue())


def mutate_checkpoint(random: Random, state: dict[str, Any]) -> bytes:
    """A checkpoint with mutated values or tensors, with a mutated pickle in a valid archive, or with mutated bytes."""
    how = random.randrange(4)
    if how == 0:
        changed = mutate_structure(random, state)
    elif how == 1:
        changed = copy.deepcopy(state)
        places = [(p, k) for p, k in _places(changed) if isinstance(p[k], torch.Tensor)]
        parent, key = random.choice(places)
        parent[key] = mutate_tensor(random, parent[key])
    else:
        changed = state
    buffer = io.BytesIO()
    torch.save(changed, buffer, _use_new_zipfile_serialization=random.random() < 0.97)
    data = buffer.getvalue()
    if how == 2:
        return mutate_bytes(random, data)
    if how == 3 and data[:2] == b"PK":
        clean = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(clean, "w") as new:
            chosen = "data.pkl" if random.random() < 0.8 else random.choice(old.namelist())
            for name in old.namelist():
                new.writestr(name, mutate_bytes(random, old.read(name)) if name.endswith(chosen) else old.read(name))
        return clean.getvalue()
    return data


def mutate_tensor(random: Random, base: torch.Tensor) -> Any:
    """A tensor with another dtype, shape or content."""
    choices: list[Callable[[], Any]] = [
        lambda: base.double(), lambda: base.half(), lambda: base.to(torch.int64), lambda: base.bool(),
        lambda: base.flatten(),
        lambda: base[None], lambda: base[:0] if base.ndim else base, lambda: base * math.nan, lambda: base + 1e30,
        lambda: base.new_zeros(10**4, 10), lambda: base.to_sparse() if base.ndim else base, lambda: base.tolist(),
        lambda: base.numpy(), lambda: torch.nn.Parameter(base.float()), lambda: base.to("meta"),
        lambda: base.expand(3, *base.shape), lambda: base.to(torch.complex64),
    ]  # fmt: skip
    return random.choice(choices)()


@cache
def originals() -> tuple[bytes, ...]:
    """Files as the built-in sources download them: idx, mat, an archive of pickles, and one that is none of these."""
    images = np.random.RandomState(0).randint(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    idx = gzip.compress(struct.pack(">4I", 2051, 40, 8, 8) + images.tobytes())
    mat = io.BytesIO()
    savemat(mat, {"X": images.transpose(2, 3, 1, 0), "y": np.arange(40)})
    batch = pickle.dumps({"data": images.reshape(40, -1), "labels": list(range(40))}, 2)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for member in ("cifar-10-batches-py/data_batch_1", "../../escaped", "/tmp/escaped"):
            info = tarfile.TarInfo(member)
            info.size = len(batch)
            archive.addfile(info, io.BytesIO(batch))
    return idx, mat.getvalue(), tar.getvalue(), b"<html>"
