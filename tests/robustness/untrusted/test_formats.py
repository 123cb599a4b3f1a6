"""Untrusted files of other projects' formats: one line each, no more memory than a file deserves, no code."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from support.robustness.untrusted import peak_bytes, watch_side_effects

from vaerun.data import sources
from vaerun.data.cache import load_arrays
from vaerun.data.formats import reading, tables
from vaerun.data.formats.parquet_pages import pages
from vaerun.errors import InputError

GIB = 1 << 30
MEMORY = GIB // 4


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def assert_refused(path: Path, *words: str, data: str = "file") -> None:
    """One line that names the file; nothing is started, contacted or written outside the cache; little memory."""
    before = peak_bytes()
    with pytest.raises(InputError) as caught, watch_side_effects() as effects:
        load_arrays(data, getattr(sources, data), path=str(path))
    assert "\n" not in str(caught.value)
    for word in (path.name, *words):
        assert word in str(caught.value)
    assert peak_bytes() - before < MEMORY
    assert effects.started == effects.connected == []
    assert all("cache" in name for name in effects.written), effects.written
    assert not Path("pwned").exists()


def idx(shape: tuple[int, ...], content: bytes, code: int = 8) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(shape: tuple[int, ...], values: bytes, flags: int = 9, name: bytes = b"train_images") -> bytes:
    parts = [(6, struct.pack("<II", flags, 0)), (5, struct.pack(f"<{len(shape)}i", *shape)), (1, name), (2, values)]
    return element(14, b"".join(element(kind, part) for kind, part in parts))


def mat(content: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content


def npy(shape: tuple[int, ...], content: bytes, kind: str = "|u1") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def zlib_bomb(declared: int) -> bytes:
    """A compressed element of 1 GiB of zeros in 1 MB, which declares this size."""
    packer = zlib.compressobj(9)
    head = struct.pack("<II", 14, declared) + matrix((1 << 15, 1 << 15), b"")[8:-8]
    block = packer.compress(head + struct.pack("<II", 2, 1 << 30))
    for _ in range(1 << 10):
        block += packer.compress(bytes(1 << 20))
    return element(15, block + packer.flush())


def gzip_bomb() -> bytes:
    """A header of 3 GiB of pixels, and 1 GiB of them in 1 MB."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(idx((3, 1 << 15, 1 << 15), b""))
        for _ in range(1 << 10):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


FILES: dict[str, tuple[str, Callable[[], bytes], list[str]]] = {
    "IDX: shape": ("a.idx", lambda: idx((1 << 31, 28, 28), bytes(99)), ["declares 2147483648 x 28 x 28 values"]),
    "IDX: compressed shape": (
        "a.gz",
        lambda: gzip.compress(idx((1 << 31, 28, 28), bytes(99))),
        ["declares 1683627180032"],
    ),
    "IDX: bomb": ("a.gz", gzip_bomb, ["declares 3221225472 bytes of data"]),
    "IDX: cut": ("a.idx", lambda: idx((3, 2, 2), bytes(11)), ["holds less"]),
    "IDX: more": ("a.idx", lambda: idx((3, 2, 2), bytes(13)), ["holds more"]),
    "IDX: header": ("a.idx", lambda: idx((3, 2, 2), b"")[:9], ["damaged or cut off"]),
    "IDX: gzip cut": ("a.gz", lambda: gzip.compress(idx((9, 9, 9), os.urandom(729)))[:-30], ["damaged or cut off"]),
    "IDX: gzip twice": (
        "a.gz",
        lambda: gzip.compress(gzip.compress(idx((3, 2, 2), bytes(12)))),
        ["not a readable IDX"],
    ),
    "IDX: no images": ("a.idx", lambda: idx((0, 28, 28), b""), ["empty"]),
    "npy: shape": ("a.npy", lambda: npy((10**12, 8, 8), bytes(64)), ["does not match its"]),
    "npy: negative": ("a.npy", lambda: npy((-1, 8, 8), bytes(64)), ["does not match its"]),
    "npy: objects": ("a.npy", lambda: npy((1,), pickle.dumps(Payload()), "|O"), ["Object arrays are rejected"]),
    "npy: items of no size": ("a.npy", lambda: npy((10**15,), b"", "|V0"), ["does not match its"]),
    "MATLAB: shape": (
        "a.mat",
        lambda: mat(matrix((1 << 30, 1 << 20), bytes(64))),
        ["has 64 values, which do not make"],
    ),
    "MATLAB: product": ("a.mat", lambda: mat(matrix((1 << 30, 1 << 30, 16, 0), b"")), ["not a readable MATLAB file"]),
    "MATLAB: negative": ("a.mat", lambda: mat(matrix((-8, -8), bytes(64))), ["do not make an array"]),
    "MATLAB: no dimensions": ("a.mat", lambda: mat(matrix((), bytes(64))), ["not a readable MATLAB file"]),
    "MATLAB: length": ("a.mat", lambda: mat(struct.pack("<II", 14, 2**32 - 1) + bytes(64)), ["it is cut off"]),
    "MATLAB: bomb": ("a.mat", lambda: mat(zlib_bomb(2**32 - 1)), ["declares 4294967295 bytes of data"]),
    "MATLAB: bomb that lies": ("a.mat", lambda: mat(zlib_bomb(4096)), ["not a readable MATLAB file"]),
    "MATLAB: objects": (
        "a.mat",
        lambda: mat(matrix((1, 1), bytes(8), 3) + matrix((1, 1), bytes(8), 17)),
        ["no arrays"],
    ),
    "MATLAB: cells in cells": ("a.mat", lambda: mat(element(14, element(14, b"") * 1000)), ["not a readable MATLAB"]),
    "MATLAB: name": ("a.mat", lambda: mat(matrix((8, 8), bytes(64), name=b"\xff\x1b[31m")), ["not a readable MATLAB"]),
    "amat: one line": ("binarized_mnist_train.amat", lambda: b"1 " * (1 << 22), ["binarized_mnist_valid.amat"]),
    "pickle": ("a.pkl", lambda: pickle.dumps(Payload()), ["never opened"]),
    "pickle of another name": ("data_batch_1", lambda: pickle.dumps(Payload()), ["never opened"]),
    "pickle as npy": ("a.npy", lambda: pickle.dumps(Payload()), ["never opened"]),
    "nothing": ("a.npy", lambda: b"", ["not a readable"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_claim_more_than_they_hold(tmp_path: Path, name: str) -> None:
    file, content, words = FILES[name]
    (tmp_path / file).write_bytes(content())
    assert_refused(tmp_path / file, *words)


def test_a_line_of_a_thousand_million_columns(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        with open(tmp_path / f"binarized_mnist_{part}.amat", "wb") as file:
            for _ in range(20):
                file.write(b"1 " * (1 << 20))
            file.truncate(2 * 10**9)  # the rest is a hole
    assert_refused(tmp_path / "binarized_mnist_train.amat", "line 1 is longer than")


@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte", "binarized_mnist_train.amat", "a.mat", "a.npy", "a.parquet"]
)
def test_names_that_wait(tmp_path: Path, name: str) -> None:
    """Pipes, and links to devices, alone and in a folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / name)
    for data in ("file", "hf"):
        with pytest.raises(InputError):
            load_arrays(data, getattr(sources, data), path=str(folder / name))
        with pytest.raises(InputError):
            load_arrays(data, getattr(sources, data), path=str(folder))
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    for data in ("file", "hf"):
        with pytest.raises(InputError):
            load_arrays(data, getattr(sources, data), path=str(folder / name))


def test_a_file_that_is_as_large_as_it_says(tmp_path: Path) -> None:
    """Black images compress a thousand times; up to 1 GiB they are read."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx((3000, 28, 28), bytes(3000 * 784))))
    assert load_arrays("file", sources.file, path=str(tmp_path / "a.gz")).train_images.shape == (2700, 1, 28, 28)
    savemat(tmp_path / "a.mat", {"images": np.zeros((3000, 28, 28), np.uint8)}, do_compression=True)
    assert load_arrays("file", sources.file, path=str(tmp_path / "a.mat")).train_images.shape == (2700, 1, 28, 28)


# -- tables -----------------------------------------------------------------------------------------------------------

pa = pytest.importorskip("pyarrow", reason="needs the extra hf")
pq = pytest.importorskip("pyarrow.parquet")


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "png")
    return buffer.getvalue()


def images(count: int, content: bytes | None = None) -> pa.Table:
    return pa.table({"image": pa.array([content or png()] * count)})


def write_stream(path: Path, content: pa.Table, **options: str) -> bytearray:
    with pa.ipc.new_stream(str(path), content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)
    return bytearray(path.read_bytes())


def write_repeated(path: Path, content: bytes, rows: int) -> None:
    """A column of one value, kept once."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([content]))
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=False)


def test_a_value_that_every_row_repeats(tmp_path: Path) -> None:
    """A dictionary of one text of 1 MB; 100,000 rows would take 100 GB."""
    write_repeated(path := tmp_path / "a.parquet", bytes(1 << 20), 100_000)
    assert path.stat().st_size < 1 << 20
    assert_refused(path, "row 0: cannot be read as an image", data="hf")


def test_rows_of_one_image(tmp_path: Path) -> None:
    """10,000,000 times the same image of 64 x 64: 40 GB of pixels in a few kilobytes."""
    write_repeated(path := tmp_path / "a.parquet", png(64), 10**7)
    assert path.stat().st_size < 1 << 20
    before = peak_bytes()
    with pytest.raises(InputError, match=r"10000000 image files of \d+ bytes would take 40960000000 bytes of pixels"):
        load_arrays("hf", sources.hf, path=str(path))
    assert peak_bytes() - before < MEMORY


def varint(value: int) -> bytes:
    """A positive integer in Thrift's compact protocol."""
    value, content = 2 * value, b""
    while value >= 0x80:
        value, content = value >> 7, content + bytes([value & 0x7F | 0x80])
    return content + bytes([value])


def test_a_page_that_claims_two_gigabytes(tmp_path: Path) -> None:
    """A page header may declare any size up to 2 GiB; this one is of 128 MiB of zeros, compressed."""
    content = pa.table({"image": pa.array([bytes(1 << 27)], pa.binary())})
    pq.write_table(content, path := tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    del content
    data = path.read_bytes()
    (page,) = pages(memoryview(data), ["image"])
    assert page.uncompressed >= 1 << 27
    assert data.count(varint(page.uncompressed)) == 1
    path.write_bytes(data.replace(varint(page.uncompressed), varint(2**31 - 1)))
    assert_refused(path, "declares 2147483663 bytes of data", data="hf")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_stream(tmp_path: Path, compression: str) -> None:
    """Its buffers would be allocated by the sizes that they declare."""
    write_stream(tmp_path / "a.arrow", images(1000), compression=compression)
    assert_refused(tmp_path / "a.arrow", "its values are compressed", "Parquet", data="hf")


def test_a_stream_that_claims_more_rows_than_it_has(tmp_path: Path) -> None:
    content = write_stream(tmp_path / "a.arrow", images(1000))
    for rows in (1 << 40, 999, 1001):
        for at in [i for i in range(0, len(content) - 8) if content[i : i + 8] == struct.pack("<q", 1000)]:
            changed = content.copy()
            changed[at : at + 8] = struct.pack("<q", rows)
            (tmp_path / "a.arrow").write_bytes(changed)
            assert_refused(tmp_path / "a.arrow", data="hf")


def test_a_stream_with_a_dictionary(tmp_path: Path) -> None:
    write_stream(tmp_path / "a.arrow", pa.table({"image": pa.array([png()] * 9).dictionary_encode()}))
    assert_refused(tmp_path / "a.arrow", "message of kind dictionary", data="hf")


def test_types_that_repeat_their_values(tmp_path: Path) -> None:
    """Views may overlap, and runs have any length: such columns are no images."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([10**9], pa.int32()), pa.array([1]))
    for column in (runs, pa.array([[1, 2]] * 3, pa.list_view(pa.int64())), pa.array([png()] * 3, pa.binary_view())):
        write_stream(tmp_path / "a.arrow", pa.table({"image": column}))
        assert_refused(tmp_path / "a.arrow", "none of its columns (image) holds images", data="hf")


def test_a_pickle_in_a_schema(tmp_path: Path) -> None:
    """Old versions of pyarrow unpickled extension types of this name (CVE-2023-47248)."""
    extension = {"name": "arrow.py_extension_type", "metadata": pickle.dumps(Payload())}
    metadata = {f"ARROW:extension:{key}": value for key, value in extension.items()}
    field = pa.field("image", pa.binary(), metadata=metadata)
    content = pa.table([pa.array([b"x"])], schema=pa.schema([field]))
    write_stream(tmp_path / "a.arrow", content)
    pq.write_table(content, tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        assert_refused(tmp_path / name, "cannot be read as an image", data="hf")


@pytest.mark.parametrize("text", ["{", "[]", '{"info": {"features": 3}}', "[" * 100_000, '{"info": {}}', "\ud800"])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    content = images(9).replace_schema_metadata({"huggingface": text.encode("utf-8", "surrogatepass")})
    write_stream(tmp_path / "a.arrow", content)
    assert_refused(tmp_path / "a.arrow", "description by datasets", data="hf")


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    """Found by fuzzing: names of columns, and of the fields of a structure, that are not UTF-8."""
    write_stream(tmp_path / "a.arrow", pa.table({"image": pa.array([{"bytes": png()}] * 9)}))
    content = (tmp_path / "a.arrow").read_bytes()
    for name in (b"image", b"bytes"):
        assert content.count(name) == 1
        (tmp_path / "a.arrow").write_bytes(content.replace(name, b"\x8e" + name[1:]))
        assert_refused(tmp_path / "a.arrow", "not a readable table", data="hf")


def test_names_of_classes_that_are_none(tmp_path: Path) -> None:
    for names in ([1], "ab", ["x" * 10**6], {"a": 1}):
        features = {"label": {"_type": "ClassLabel", "names": names}}
        content = images(9).append_column("label", pa.array([0] * 9))
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        write_stream(tmp_path / "a.arrow", content)
        assert_refused(tmp_path / "a.arrow", "the names of its classes", data="hf")


def test_a_state_that_leads_elsewhere(tmp_path: Path) -> None:
    """Only names within the folder are opened."""
    folder = tmp_path / "saved"
    folder.mkdir()
    write_stream(tmp_path / "secret.arrow", images(9))
    write_stream(folder / "data.arrow", images(9))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    assert_refused(folder, "secret.arrow is missing", data="hf")


def test_damaged_tables(tmp_path: Path) -> None:
    """Cut at and changed in any place: a line, or images of the same number."""
    random = np.random.RandomState(0)
    pq.write_table(images(20), tmp_path / "a.parquet", compression="zstd")
    write_stream(tmp_path / "a.arrow", images(20))
    for name in ("a.parquet", "a.arrow"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            changed = bytearray(whole[: random.randint(len(whole))] if random.rand() < 0.3 else whole)
            for at in random.randint(len(changed), size=2) if changed else ():
                changed[at] = random.randint(256)
            (tmp_path / name).write_bytes(changed)
            with contextlib.suppress(InputError):
                found = load_arrays("hf", sources.hf, path=str(tmp_path / name), cached=False)
                assert len(found.train_images) == 18


def test_limits_are_those_of_archives() -> None:
    """1 GiB, or a hundred times the file."""
    reading.check_expansion(1 << 30, 10)
    reading.check_expansion(200 << 30, 2 << 30)
    with pytest.raises(ValueError, match="declares"):
        reading.check_expansion((1 << 30) + 1, 10)
    assert tables.BATCH_BYTES <= MEMORY
