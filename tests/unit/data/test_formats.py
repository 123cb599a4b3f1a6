"""Files as other projects distribute them, written here by other means: struct, gzip, scipy, numpy."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from vaerun.data import sources
from vaerun.data.arrays import Arrays
from vaerun.data.cache import load_arrays
from vaerun.data.formats import amat
from vaerun.data.formats import omniglot as omniglot_module
from vaerun.data.formats.matlab import read_matlab
from vaerun.errors import InputError

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (30, 5, 7)).astype(np.uint8)
IMAGES[0, 0, 0] = 255
LABELS = np.arange(30) % 4
BINARY = (RANDOM.rand(12, 784) < 0.3).astype(np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))


def load(path: Path) -> Arrays:
    return load_arrays("file", sources.file, path=str(path))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def write_idx(path: Path, array: np.ndarray, code: int = 0x08) -> None:
    content = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, form: str = "{}-{}-idx{}-ubyte.gz", test: str = "t10k") -> None:
    folder.mkdir(exist_ok=True)
    for part, rows in (("train", slice(20)), (test, slice(20, None))):
        write_idx(folder / form.format(part, "images", 3), IMAGES[rows])
        write_idx(folder / form.format(part, "labels", 1), LABELS[rows].astype(np.uint8))


def assert_mnist(arrays: Arrays, images: np.ndarray = IMAGES) -> None:
    assert arrays.test_images is not None
    assert arrays.split == "official"
    np.testing.assert_array_equal(np.concatenate([arrays.train_images, arrays.test_images])[:, 0], images)
    np.testing.assert_array_equal(arrays.train_labels, LABELS[:20])
    np.testing.assert_array_equal(arrays.test_labels, LABELS[20:])


# -- IDX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["{}-{}-idx{}-ubyte.gz", "{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "kmnist-{}-{}-idx{}-ubyte"]
)
def test_idx(tmp_path: Path, form: str) -> None:
    """As the authors name the files, unpacked, and as Kaggle renames them; a folder, or one of its files."""
    write_mnist(tmp_path / "raw", form)
    (tmp_path / "raw" / "readme.txt").touch()
    assert_mnist(load(tmp_path / "raw"))
    assert_mnist(load(tmp_path / "raw" / form.format("t10k", "labels", 1)))
    assert_mnist(load_arrays("npz", sources.npz, path=str(tmp_path / "raw")))  # the older name of data=file


def test_a_file_of_a_set_is_read_again_when_another_one_has_changed(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw")
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    assert load(path).train_labels.tolist() == LABELS[:20].tolist()  # type: ignore[union-attr]
    write_idx(tmp_path / "raw" / "train-labels-idx1-ubyte.gz", (3 - LABELS[:20]).astype(np.uint8))
    assert load(path).train_labels.tolist() == (3 - LABELS[:20]).tolist()  # type: ignore[union-attr]


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw", "emnist-letters-{}-{}-idx{}-ubyte.gz", test="test")
    arrays = load(tmp_path / "raw")
    assert_mnist(arrays, IMAGES.transpose(0, 2, 1))
    assert any("turned upright" in note for note in arrays.notes)


def test_several_sets_of_emnist_in_a_folder(tmp_path: Path) -> None:
    for name in ("letters", "digits"):
        write_mnist(tmp_path / "raw", f"emnist-{name}-{{}}-{{}}-idx{{}}-ubyte.gz", test="test")
    refused(tmp_path / "raw", "emnist-digits, emnist-letters", "set data.path to one of the files")
    assert_mnist(load(tmp_path / "raw" / "emnist-digits-train-images-idx3-ubyte.gz"), IMAGES.transpose(0, 2, 1))


def test_parts_of_a_set_of_idx_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw")
    for name in ("t10k-images-idx3", "t10k-labels-idx1", "train-labels-idx1"):
        (tmp_path / "raw" / f"{name}-ubyte.gz").unlink()
    arrays = load(tmp_path / "raw")
    assert arrays.split == "vaerun: 10% test by seed 0"
    assert (len(arrays.train_images), arrays.train_labels) == (18 * 1, None)
    (tmp_path / "raw" / "train-images-idx3-ubyte.gz").rename(tmp_path / "raw" / "t10k-images-idx3-ubyte.gz")
    refused(tmp_path / "raw", "no training images", "train-images-idx3-ubyte.gz")


@pytest.mark.parametrize(("code", "kind"), [(0x0C, ">i4"), (0x0E, ">f8"), (0x0B, ">i2")])
def test_idx_of_other_types(tmp_path: Path, code: int, kind: str) -> None:
    write_idx(tmp_path / "images.idx", IMAGES.astype(kind), code)
    arrays = load(tmp_path / "images.idx")
    assert arrays.test_images is not None
    whole = np.concatenate([arrays.test_images, arrays.train_images])
    rows = np.concatenate([arrays.part_ids("test"), arrays.part_ids("train")])
    np.testing.assert_array_equal(whole[:, 0], IMAGES[rows])


# -- .npy -------------------------------------------------------------------------------------------------------------


def test_npy(tmp_path: Path) -> None:
    """Images alone: a tenth is for testing, and every image is named by its row."""
    np.save(tmp_path / "images.npy", IMAGES)
    arrays = load(tmp_path / "images.npy")
    assert arrays.test_images is not None
    assert (len(arrays.train_images), len(arrays.test_images), arrays.train_labels) == (27, 3, None)
    np.testing.assert_array_equal(arrays.train_images[:, 0], IMAGES[arrays.part_ids("train")])


def test_npy_of_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([IMAGES, None], dtype=object), allow_pickle=True)
    refused(tmp_path / "images.npy", "images.npy", "Object arrays are rejected")


# -- MATLAB -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab(tmp_path: Path, compressed: bool) -> None:
    """MATLAB's order of axes, [H, W, N]; other variables are not read."""
    train, test = IMAGES[:20].transpose(1, 2, 0), IMAGES[20:].transpose(1, 2, 0)
    content: dict[str, Any] = {"train_images": train, "train_labels": LABELS[:20, None] + 1.0, "test_images": test}
    content |= {"test_labels": LABELS[20:, None] + 1.0, "about": "text", "s": {"a": 1}, "c": np.array([1, "x"], object)}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    assert_mnist(load(tmp_path / "a.mat"))


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?", ">i4", ">f8"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4, 3, 2), (2, 0)])
def test_matlab_s_arrays(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = RANDOM.randint(0, 2, shape).astype(kind)
    for compressed in (False, True):
        savemat(
            tmp_path / "a.mat", {"a": array, "name_of_more_than_four_letters": array + 1}, do_compression=compressed
        )
        found = read_matlab(tmp_path / "a.mat")
        np.testing.assert_array_equal(found["a"], array)
        np.testing.assert_array_equal(found["name_of_more_than_four_letters"], array + 1)
    assert found["a"].dtype.kind == np.dtype(kind).kind


def test_matlab_of_a_big_endian_machine_with_values_packed_into_few_bytes(tmp_path: Path) -> None:
    """As MATLAB writes doubles that are small integers: class double, values uint8."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = [(6, struct.pack(">II", 6, 0)), (5, struct.pack(">2i", 2, 3)), (1, b"labels"), (2, bytes(range(6)))]
    content = element(14, b"".join(element(kind, part) for kind, part in parts))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + content)
    np.testing.assert_array_equal(read_matlab(tmp_path / "a.mat")["labels"], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM", ["version 7.3 (HDF5)", "-v7"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), ["version 7.3 (HDF5)"]),
        (struct.pack("<5I", 0, 2, 2, 0, 2) + b"x\0" + bytes(32), ["another version", "-v7"]),
    ],
)
def test_matlab_of_other_versions(tmp_path: Path, start: bytes, words: list[str]) -> None:
    (tmp_path / "a.mat").write_bytes(start)
    refused(tmp_path / "a.mat", "a.mat", *words)


def test_matlab_without_images(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"about": "text", "s": {"a": 1}})
    refused(tmp_path / "a.mat", "contains no arrays", "required: train_images")
    savemat(tmp_path / "a.mat", {"X": IMAGES * 1j})
    refused(tmp_path / "a.mat", "X has complex numbers")


# -- Omniglot of Burda et al. -----------------------------------------------------------------------------------------


def write_omniglot(path: Path, counts: tuple[int, int], labels: bool = True) -> dict[str, np.ndarray]:
    """chardata.mat, with pixels column by column; its levels are multiples of 1/255."""
    content: dict[str, np.ndarray] = {}
    for prefix, count in zip(("", "test"), counts, strict=True):
        content[f"{prefix}data"] = RANDOM.randint(0, 256, (784, count)) / 255
        if labels:
            content[f"{prefix}target"] = np.eye(50)[:, np.arange(count) % 3]
            content[f"{prefix}targetchar"] = 1.0 + (np.arange(count) % 2)[None]
    savemat(path, content, do_compression=True)
    return content


def test_omniglot_of_burda_et_al(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot_module, "COUNTS", (12, 8))
    content = write_omniglot(tmp_path / "chardata.mat", (12, 8))
    arrays = load(tmp_path / "chardata.mat")
    assert arrays.test_images is not None
    assert (arrays.train_images.shape, arrays.test_images.shape) == ((12, 1, 28, 28), (8, 1, 28, 28))
    for row, column, image in ((0, 0, 0), (27, 0, 5), (3, 9, 11)):
        level = content["data"][28 * column + row, image] * 255
        assert arrays.train_images[image, 0, row, column] == round(level)
    assert arrays.split == "official, Burda et al. (2016)"
    assert arrays.warnings == ()
    # Alphabets 1, 2, 3, 1, ... and characters 1, 2, 1, 2, ...: six classes, sorted.
    assert arrays.class_names is not None
    assert [arrays.class_names[i] for i in arrays.train_labels[:3]] == [  # type: ignore[index]
        "alphabet 1 character 1",
        "alphabet 2 character 2",
        "alphabet 3 character 1",
    ]
    np.testing.assert_array_equal(arrays.test_labels, arrays.train_labels[:8])  # type: ignore[index]


def test_omniglot_of_another_size(tmp_path: Path) -> None:
    write_omniglot(tmp_path / "chardata.mat", (12, 8), labels=False)
    arrays = load(tmp_path / "chardata.mat")
    assert (arrays.split, arrays.train_labels) == ("data and testdata of 12 and 8 images", None)
    assert "results do not compare with published ones" in arrays.warnings[0]


# -- binarised MNIST --------------------------------------------------------------------------------------------------


def write_amat(folder: Path, counts: dict[str, int] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    first = 0
    for part, count in (counts or {"train": 6, "valid": 4, "test": 2}).items():
        np.savetxt(folder / f"binarized_mnist_{part}.amat", BINARY[first : first + count], fmt="%d")
        first += count


def test_binarised_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amat, "COUNTS", {"train": 6, "valid": 4, "test": 2})
    monkeypatch.setattr(amat, "CHUNK_BYTES", 2000)  # a line has 1568
    write_amat(tmp_path / "raw")
    for path in (tmp_path / "raw", tmp_path / "raw" / "binarized_mnist_valid.amat"):
        arrays = load(path)
        assert arrays.test_images is not None
        assert arrays.validation_images is not None
        parts = [arrays.train_images, arrays.validation_images, arrays.test_images]
        assert [part.shape for part in parts] == [(n, 1, 28, 28) for n in (6, 4, 2)]
        np.testing.assert_array_equal(np.concatenate(parts).reshape(12, 784), BINARY * 255)
        assert arrays.split == "official, fixed binarisation of Larochelle and Murray (2011)"
        assert arrays.warnings == ()


def test_binarised_mnist_of_another_size(tmp_path: Path) -> None:
    write_amat(tmp_path / "raw")
    arrays = load(tmp_path / "raw")
    assert arrays.split == "files of 6/4/2 images"
    assert "50,000/10,000/10,000 images, these 6/4/2: results do not compare" in arrays.warnings[0]


def test_binarised_mnist_with_a_file_missing(tmp_path: Path) -> None:
    write_amat(tmp_path / "raw", {"train": 6})
    refused(tmp_path / "raw", "but not binarized_mnist_valid.amat, binarized_mnist_test.amat")


LINE = b" ".join([b"1"] * 784) + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["it is empty"]),
        (LINE + LINE[2:], ["line 2 has 783 numbers"]),
        (LINE + LINE[:-1] + b" 5\n", ["line 2 has something else than 0, 1 and spaces"]),
        (LINE[:-2] + b"10\n", ["line 1 has something else"]),
        (LINE * 3 + LINE[:500], ["line 4 has 250 numbers"]),
        (LINE * 3 + "é".encode("latin-1") + LINE, ["line 4 has something else"]),
    ],
)
def test_amat_of_other_content(tmp_path: Path, content: bytes, words: list[str]) -> None:
    write_amat(tmp_path / "raw")
    (tmp_path / "raw" / "binarized_mnist_test.amat").write_bytes(content)
    refused(tmp_path / "raw", "binarized_mnist_test.amat", *words)


def test_amat_with_windows_line_ends_and_a_blank_last_line(tmp_path: Path) -> None:
    (tmp_path / "a.amat").write_bytes(LINE.replace(b"\n", b"\r\n") * 2 + b"\n" + LINE[:-1])
    np.testing.assert_array_equal(amat.read_amat(tmp_path / "a.amat"), np.full((3, 28, 28), 255))


# -- which format it is -----------------------------------------------------------------------------------------------


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refused(tmp_path / "a", "without files of MNIST's format", "data=folder")
    (tmp_path / "a" / "train").mkdir()
    (tmp_path / "a" / "train" / "0.parquet").touch()
    refused(tmp_path / "a", f"data=hf data.path={tmp_path / 'a'}")
    (tmp_path / "b").mkdir()
    write_mnist(tmp_path / "b")
    write_amat(tmp_path / "b")
    refused(tmp_path / "b", "files of IDX and binarised MNIST")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pkl", b"x", ["a pickle, which may run code and is never opened", "numpy.savez"]),
        ("data_batch_1", b"\x80\x02}q\x01.", ["a pickle"]),
        ("a.parquet", b"PAR1", ["data=hf data.path="]),
        ("a.bin", b"ARROW1\0\0", ["data=hf data.path="]),
        ("a.csv", b"1,2,3\n", ["a.csv: not a readable .npz file"]),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8bxx", ["train-images-idx3-ubyte.gz: not a readable IDX file"]),
        ("a.gz", gzip.compress(b"hello"), ["a.gz: not a readable IDX file"]),
    ],
)
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, *words)


def test_an_npz_file_by_either_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=IMAGES[:20], test_images=IMAGES[20:])
    file, npz = load(tmp_path / "a.npz"), load_arrays("npz", sources.npz, path=str(tmp_path / "a.npz"))
    assert file.sha256 == npz.sha256
    refused(tmp_path / "none.npz", "none.npz: no such file")
