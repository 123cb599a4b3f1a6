"""An untrusted checkpoint runs no code, and takes no more memory than its file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.robustness.untrusted import assert_harmless, open_all, peak_bytes
from support.runs.commands import assert_same_bits
from support.runs.evaluating import SMALL

from vaerun.storage.checkpoint import CorruptCheckpoint, load_checkpoint, save_checkpoint

GIB = 1 << 30


class Call:
    """Pickled as a function call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive(
    path: Path, content: bytes, storages: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED
) -> Path:
    """An archive as torch.save writes it, with this pickle."""
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return path


def announced(
    items: int,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    rebuilt: tuple[Any, ...] | None = None,
    kind: Callable[[Any], Any] = list,
) -> bytes:
    """The pickle of {"x": tensor}, with this declaration of the tensor.

    Arguments:
        rebuilt: state of the tensor, as a `kind`: torch calls set_(storage, *rebuilt).
    """

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, Storage) else None

    class Storage:
        pid = ("storage", torch.FloatStorage, "0", "cpu", items)

    class Tensor:
        def __reduce__(self) -> Any:
            how = torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())
            return how if rebuilt is None else (*how, kind((Storage(), *rebuilt)))

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"x": Tensor()})
    return buffer.getvalue()


def refused(path: Path) -> str:
    before = peak_bytes()
    with pytest.raises(CorruptCheckpoint) as caught:
        load_checkpoint(path)
    assert peak_bytes() - before < GIB // 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_that_a_checkpoint_may_hold_comes_back(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16,
              torch.int32, torch.int64, torch.bool, torch.complex64)  # fmt: skip
    state = {
        "types": {str(d): torch.ones(2, 3, dtype=torch.float32).to(d) for d in dtypes},
        "views": [base[3:], base.view(3, 4).T, base[:0], torch.tensor(2.0), torch.zeros(1).expand(5, 7)],
        "plain": (1, -(2**60), 2**70, 1.5, True, None, "é", [], {}, float("inf")),
        "module": torch.nn.BatchNorm1d(3).state_dict(),
        "optimiser": torch.optim.Adam([torch.nn.Parameter(base.clone())]).state_dict(),
        "generator": torch.get_rng_state(),
    }
    save_checkpoint(tmp_path / "a.pt", state)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert_same_bits(
        {k: v for k, v in state.items() if k != "plain"}, {k: v for k, v in loaded.items() if k != "plain"}
    )
    assert loaded["plain"] == state["plain"]
    assert loaded["views"][0].untyped_storage().data_ptr() == loaded["views"][1].untyped_storage().data_ptr()


CALLS: dict[str, Callable[[], Any]] = {
    "system": lambda: Call(os.system, "touch pwned"),
    "eval": lambda: Call(eval, "open('pwned', 'w')"),
    "getattr": lambda: Call(getattr, "x", "join"),
    "bytearray": lambda: Call(bytearray, 10**12),
    "tensor of a size": lambda: Call(torch.Tensor, 10**11),
    "numpy": lambda: Call(__import__("numpy").zeros, 10**11),
    "set": lambda: {1, 2},
    "parameter": lambda: torch.nn.Parameter(torch.ones(1)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrap", ["archive", "bare pickle", "torch.save", "legacy"])
def test_no_function_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrap: str) -> None:
    monkeypatch.chdir(tmp_path)
    value, path = {"objective": CALLS[name]()}, tmp_path / "best.pt"
    if wrap == "archive":
        archive(path, pickle.dumps(value, 2))
    elif wrap == "bare pickle":
        path.write_bytes(pickle.dumps(value, 2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=wrap == "torch.save")
    message = refused(path)
    assert "archive" in message if wrap in ("bare pickle", "legacy") else "not only tensors" in message
    assert not (tmp_path / "pwned").exists()


def test_no_script_is_loaded(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickle.dumps({"objective": 1}, 2))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/constants.pkl", pickle.dumps(()))
        file.writestr("archive/code/__torch__.py", "boom")
    assert load_checkpoint(path) == {"objective": 1}  # of which torch sees the state alone


SIZES: dict[str, tuple[int, int, tuple[int, ...], tuple[int, ...]]] = {
    "storage larger than its data": (10**12, 0, (10**12,), (1,)),
    "storage smaller than its data": (1, 0, (1,), (1,)),
    "tensor larger than its storage": (4, 0, (10**11,), (1,)),
    "offset beyond it": (4, 4, (1,), (1,)),
    "negative offset": (4, -1, (1,), (1,)),
    "negative size": (4, 0, (-1,), (1,)),
    "negative stride": (4, 3, (4,), (-1,)),
    "strides beyond it": (4, 0, (2, 2), (3, 1)),
    "one number as billions": (4, 0, (10**6, 10**6), (0, 0)),
    "one number as millions": (4, 0, (5000, 5000), (0, 0)),
    "rank": (4, 0, (2, 2), (1,)),
    "rank of a million": (4, 0, (1,) * 10**6, (1,) * 10**6),
    "sizes of thousands of bits": (4, 0, (2**2000,) * 64, (0,) * 64),
    "a size that is true": (4, 0, (True,), (1,)),
    "a size with a point": (4, 0, (1.0,), (1,)),  # type: ignore[dict-item]
    "a size in words": (4, 0, ("1",), (1,)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_do_not_fit_the_file(tmp_path: Path, name: str) -> None:
    assert "tensor" in refused(archive(tmp_path / "a.pt", announced(*SIZES[name]), {"0": bytes(16)}))


def test_a_size_that_fits(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", announced(4, 0, (2, 2), (2, 1)), {"0": struct.pack("4f", 1, 2, 3, 4)})
    assert load_checkpoint(path)["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("kind", "word"), [(list, "sets the state"), (dict.fromkeys, "key of type"), (tuple, "sets the state")]
)
def test_a_tensor_is_not_made_anew(tmp_path: Path, kind: Callable[[Any], Any], word: str) -> None:
    """torch's unpickler would give it a size other than the validated one."""
    content = announced(4, 0, (4,), (1,), (0, (10**12,), (0,)), kind)
    assert word in refused(archive(tmp_path / "a.pt", content, {"0": bytes(16)}))


def test_a_dictionary_has_its_own_functions(tmp_path: Path) -> None:
    ordered = OrderedDict(x=1)
    ordered.values = 1  # type: ignore[assignment, method-assign]
    assert "sets the state" in refused(archive(tmp_path / "a.pt", pickle.dumps(ordered, 2)))


HEAD, DOUBLED = b"\x80\x02}", b")q\x01" + b"h\x01\x86q\x01" * 60  # a tuple of two tuples of two tuples ...


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (HEAD + DOUBLED + b"K\x01s.", "key of type tuple"),
        (HEAD + b"(" + DOUBLED + b"K\x01u.", "key of type tuple"),
        (HEAD + b"X\x01\x00\x00\x00x" + DOUBLED + b"s.", "too many values"),
        (HEAD + b"X\x01\x00\x00\x00xccollections\nOrderedDict\n" + DOUBLED + b"Rs.", "torch.save does not write"),
        (HEAD + b"X\x01\x00\x00\x00x]q\x01(" + b"h\x01" * 3 + b"es.", "recursion"),
        (HEAD + b"X\x01\x00\x00\x00x" + b"]" * 100_000 + b"a" * 99_999 + b"s.", "recursion"),
        (HEAD + b"]K\x01K\x01s.", "not a dictionary"),
    ],
    ids=["key", "keys", "value", "ordered", "itself", "deep", "list"],
)
def test_a_few_bytes_that_would_take_for_ever(tmp_path: Path, content: bytes, word: str) -> None:
    assert word in refused(archive(tmp_path / "a.pt", content))


def test_a_dictionary_is_not_copied_again_and_again(tmp_path: Path) -> None:
    large = dict.fromkeys(range(1000))
    content = pickle.dumps([Call(OrderedDict, large) for _ in range(1000)], 2)
    assert "torch.save does not write" in refused(archive(tmp_path / "a.pt", content))


def test_bombs(tmp_path: Path) -> None:
    zeros = bytes(64 << 20)
    path = archive(tmp_path / "a.pt", announced(len(zeros) // 4, 0, (1,), (1,)), {"0": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compression" in refused(path)
    # An index into the reader's memory, for which the reader written in C allocates.
    assert refused(archive(path, b"\x80\x02}r\xff\xff\xff\x7f" + b"j\x00\x00\x00\x00.")) != ""
    assert refused(archive(path, b"\x80\x04\x95" + b"\xff" * 8 + b".")) != ""
    assert refused(archive(path, b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f.")) != ""
    assert "no state" in refused(archive(path, bytes(9 << 20)))


def test_two_readers_see_one_archive(tmp_path: Path) -> None:
    """Two members with one name: which one is read depends on the reader."""
    path = archive(tmp_path / "a.pt", pickle.dumps({"x": 1}, 2))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data.pkl", pickle.dumps({"x": Call(os.system, "touch pwned")}, 2))
    assert "share a name" in refused(path)


def test_parts_that_overlap(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", announced(1 << 20, 0, (1,), (1,)), {"0": bytes(4 << 20)})
    content = path.read_bytes()
    start = content.rindex(b"PK\x01\x02")  # the entry of the data in the directory, once more under another name
    end = content.rindex(b"PK\x05\x06")
    entry = content[start:end].replace(b"archive/data/0", b"archive/data/1")
    tail = bytearray(content[end:])
    struct.pack_into(
        "<HHII", tail, 8, 5, 5, end - content.index(b"PK\x01\x02") + len(entry), content.index(b"PK\x01\x02")
    )
    path.write_bytes(content[:end] + entry + bytes(tail))
    assert "overlap" in refused(path)


@pytest.mark.parametrize("name", ["system", "bytearray"])
def test_opened_in_all_ways(
    copied: Callable[..., Path], command_environment: None, capsys: Any, env: dict[str, str], name: str
) -> None:
    run = copied("model=vae", *SMALL)
    torch.save({"objective": CALLS[name]()}, run / "checkpoints" / "best.pt")
    (run / "checkpoints" / "last.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes())
    opened = open_all(run, capsys)
    assert (opened.codes.pop("load_run"), opened.codes.pop("eval")) == (2, 2)
    assert set(opened.codes.values()) == {0}  # tables read no checkpoint
    assert_harmless(opened, run, Path(env["VAERUN_CACHE"]))
