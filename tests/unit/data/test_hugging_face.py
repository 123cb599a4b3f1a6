"""Tables of Arrow and Parquet, written by pyarrow as HuggingFace's `datasets` writes them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaerun.data import sources
from vaerun.data.arrays import Arrays
from vaerun.data.cache import load_arrays
from vaerun.errors import InputError

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (30, 5, 7)).astype(np.uint8)
LABELS = np.arange(30) % 3
NAMES = ["zebra", "ant", "mole"]
IMAGE, LABEL = {"_type": "Image"}, {"names": NAMES, "_type": "ClassLabel"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"data=hf needs an extra: pip install 'vaerun\[hf\]'"):
        load(tmp_path / "a.parquet")


pa = pytest.importorskip("pyarrow", reason="needs the extra hf")
pq = pytest.importorskip("pyarrow.parquet")


def load(path: Path, **options: Any) -> Arrays:
    return load_arrays("hf", sources.hf, path=str(path), options={"channels": None, **options})


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def table(rows: Sequence[int], features: dict[str, Any] | None = None, **columns: Any) -> Any:
    """Images and labels of some rows, with columns replaced or added, and described by datasets' features."""
    files = [{"bytes": png(IMAGES[row]), "path": f"{row}.png"} for row in rows]
    content = {"image": pa.array(files, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    content |= {"label": pa.array(LABELS[list(rows)])} | columns
    features = {"image": IMAGE, "label": LABEL} if features is None else features
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({name: column for name, column in content.items() if column is not None}).replace_schema_metadata(
        metadata if features else None
    )


def write_arrow(path: Path, content: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema, **options) as writer:
        writer.write_table(content, max_chunksize=4)


def write_saved(folder: Path, *shards: Any, **state: Any) -> None:
    """A data set as `save_to_disk` leaves it."""
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_arrow(folder / name, shard)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None} | state)
    )
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def assert_parts(arrays: Arrays, parts: dict[str, Sequence[int]]) -> None:
    for part in ("train", "validation", "test"):
        images, labels = getattr(arrays, f"{part}_images"), getattr(arrays, f"{part}_labels")
        if part not in parts:
            assert images is None
        else:
            np.testing.assert_array_equal(images[:, 0], IMAGES[list(parts[part])])
            np.testing.assert_array_equal(labels, LABELS[list(parts[part])])
    assert arrays.class_names == tuple(NAMES)
    assert arrays.split == "official"


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_save_to_disk(tmp_path: Path) -> None:
    """Parts in folders, in shards, with a work file of datasets' next to them."""
    root = tmp_path / "saved"
    write_saved(root / "train", table(range(9)), table(range(9, 14)))
    write_saved(root / "test", table(range(14, 20)))
    write_saved(root / "validation", table(range(20, 30)))
    write_arrow(root / "train" / "cache-0123456789abcdef.arrow", table(range(3)))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "validation"]}))
    arrays = load(root)
    assert_parts(arrays, {"train": range(14), "test": range(14, 20), "validation": range(20, 30)})
    assert "given parts: train, test, validation" in arrays.notes
    assert "images of column image, labels of label" in arrays.notes


def test_save_to_disk_of_one_part(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved", table(range(30)))
    arrays = load(tmp_path / "saved")
    assert arrays.split == "vaerun: 10% test by seed 0"
    np.testing.assert_array_equal(arrays.train_images[:, 0], IMAGES[arrays.part_ids("train")])


def test_a_download_of_parquet_files(tmp_path: Path) -> None:
    """As on the hub, and as it lies in the hub's cache: links to files elsewhere."""
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for name, rows in {
        "train-00000-of-00002-0123abcdef": range(9),
        "train-00001-of-00002-dead0123": range(9, 14),
        "test-00000-of-00001": range(14, 20),
    }.items():
        pq.write_table(table(rows), tmp_path / f"{name}.blob")
        (folder / f"{name}.parquet").symlink_to(tmp_path / f"{name}.blob")
    (tmp_path / "repository" / "README.md").touch()
    assert_parts(load(tmp_path / "repository"), {"train": range(14), "test": range(14, 20)})


def test_the_cache_of_datasets(tmp_path: Path) -> None:
    write_arrow(tmp_path / "mnist" / "mnist-train.arrow", table(range(20)))
    write_arrow(tmp_path / "mnist" / "mnist-test.arrow", table(range(20, 30)))
    assert_parts(load(tmp_path / "mnist"), {"train": range(20), "test": range(20, 30)})


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_one_parquet_file(tmp_path: Path, compression: str, version: str) -> None:
    pq.write_table(
        table(range(30)),
        path := tmp_path / "a.parquet",
        compression=compression,
        data_page_version=version,
        row_group_size=7,
    )
    arrays = load(path)
    assert arrays.test_images is not None
    for part, images in (("train", arrays.train_images), ("test", arrays.test_images)):
        np.testing.assert_array_equal(images[:, 0], IMAGES[arrays.part_ids(part)])


def test_parts_that_are_left_out(tmp_path: Path) -> None:
    for name, rows in {"train": range(20), "test": range(20, 25), "extra": range(25, 30)}.items():
        pq.write_table(table(rows), tmp_path / f"{name}-00000-of-00001.parquet")
    arrays = load(tmp_path)
    assert_parts(arrays, {"train": range(20), "test": range(20, 25)})
    assert "left out, of no part: extra-00000-of-00001.parquet" in arrays.notes


def test_folders_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or folder")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mnist.py").write_text("import os; os._exit(1)")
    refused(tmp_path / "a", "no tables (.arrow, .parquet) found", "scripts of a data set are never run", "save_to_disk")
    for name in ("b/plain/train.parquet", "b/other/train.parquet", "c/test.parquet", "d/train-00000-of-00002.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(range(5)), tmp_path / name)
    refused(tmp_path / "b", "other/train.parquet and plain/train.parquet look like different data sets")
    load(tmp_path / "b" / "plain")
    refused(tmp_path / "c", "no training part", f"data.path={tmp_path / 'c' / 'test.parquet'}")
    load(tmp_path / "c" / "test.parquet")
    refused(tmp_path / "d", "1 of 2 tables train-*-of-00002 are there", "incomplete")


def test_saved_data_sets_that_are_refused(tmp_path: Path) -> None:
    write_saved(tmp_path / "a", table(range(5)), _indices_data_files=[{"filename": "indices.arrow"}])
    refused(tmp_path / "a", "flatten_indices()")
    write_saved(tmp_path / "b", table(range(5)), table(range(5)))
    (tmp_path / "b" / "data-00001-of-00002.arrow").unlink()
    refused(tmp_path / "b", "data-00001-of-00002.arrow is missing")
    for content in ("{", "[]", "{}", '{"_data_files": [{"filename": 3}]}'):
        (tmp_path / "b" / "state.json").write_text(content)
        refused(tmp_path / "b", "state.json: not a readable state of a saved data set")
    (tmp_path / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path / "train-00000-of-00001.parquet", "git lfs pull")


# -- columns ----------------------------------------------------------------------------------------------------------


def test_columns_that_are_not_read(tmp_path: Path) -> None:
    extra = pa.array([f"caption {i}" for i in range(30)])
    pq.write_table(table(range(30), id=pa.array(range(30)), caption=extra), path := tmp_path / "a.parquet")
    assert "columns not read: id, caption" in load(path).notes
    arrays = load(path, label_column="none")
    assert arrays.train_labels is None
    assert "columns not read: label, id, caption" in arrays.notes
    np.testing.assert_array_equal(load(path, label_column="id").class_names, [str(i) for i in range(30)])


def test_columns_that_are_asked_about(tmp_path: Path) -> None:
    fine = {"image": IMAGE, "fine_label": LABEL, "coarse_label": LABEL}
    columns = {"fine_label": pa.array(LABELS), "coarse_label": pa.array(LABELS), "label": None}
    pq.write_table(table(range(30), fine, **columns), path := tmp_path / "a.parquet")
    refused(path, "fine_label, coarse_label could each be the labels: set data.label_column to one of them (or none)")
    assert load(path, label_column="coarse_label").class_names == tuple(NAMES)
    refused(path, "data.label_column=x is not a column", "choose fine_label, coarse_label", label_column="x")
    refused(path, "data.image_column=fine_label cannot be images: choose image", image_column="fine_label")
    two = table(range(30))
    pq.write_table(two.append_column("mask", two.column("image")), path)
    refused(path, "columns image, mask could each be the images: set data.image_column to one of them")
    load(path, image_column="mask")
    pq.write_table(pa.table({"a": [1, 2]}), path)
    refused(path, "none of its columns (a) holds images")


def test_labels_that_are_text(tmp_path: Path) -> None:
    """Classes in the order of their names; also as a categorical of pandas."""
    names = pa.array([NAMES[label] for label in LABELS])
    for column in (names, names.dictionary_encode(), names.cast(pa.large_string())):
        pq.write_table(table(range(30), {}, label=column), path := tmp_path / "a.parquet")
        arrays = load(path)
        assert arrays.class_names == ("ant", "mole", "zebra")
        found = [arrays.class_names[label] for label in arrays.train_labels]  # type: ignore[union-attr]
        assert found == [NAMES[label] for label in LABELS[arrays.part_ids("train")]]


def test_labels_that_are_missing(tmp_path: Path) -> None:
    """A test part whose labels are withheld has none; otherwise a row is named."""
    pq.write_table(table(range(20)), tmp_path / "train.parquet")
    pq.write_table(table(range(20, 30), label=pa.array([-1] * 10)), tmp_path / "test.parquet")
    arrays = load(tmp_path)
    assert arrays.test_labels is None
    assert "the labels of the test part are withheld (-1)" in arrays.notes
    path = tmp_path / "train.parquet"
    pq.write_table(table(range(20), label=pa.array([0] * 5 + [None] * 15)), path)
    refused(path, "row 5 has no label", "data.label_column=none")
    load(path, label_column="none")
    pq.write_table(table(range(20), label=pa.array(["x" * 1000] * 20)), path)
    refused(path, "row 0 is no name of a class", "data.label_column=none")


def test_images_of_several_forms(tmp_path: Path) -> None:
    """Bytes alone; nested lists, such as an Array2D; sizes and channels as for a folder."""
    files = [png(image) for image in IMAGES]
    for column in (pa.array(files), pa.array(files, pa.large_binary())):
        pq.write_table(table(range(30), image=column), path := tmp_path / "a.parquet")
        arrays = load(path)
        np.testing.assert_array_equal(arrays.train_images[:, 0], IMAGES[arrays.part_ids("train")])
    assert load(path, image_size=4, channels=3).train_images.shape == (27, 3, 4, 4)
    flat = pa.array(IMAGES.reshape(-1))
    fixed = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 7), 5)
    for column in (pa.array(IMAGES.tolist()), pa.array(IMAGES.tolist(), pa.large_list(pa.list_(pa.uint8()))), fixed):
        for file in (path, tmp_path / "a.arrow"):
            content = table(range(30), image=column)
            pq.write_table(content, file) if file == path else write_arrow(file, content)
            arrays = load(file)
            np.testing.assert_array_equal(arrays.train_images[:, 0], IMAGES[arrays.part_ids("train")])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (
            pa.array([{"path": "/etc/passwd"}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            ["row 0 has no image, or only the path of one"],
        ),
        ([{"bytes": png(IMAGES[0]), "path": None}, None], ["row 1 has no image"]),
        ([{"bytes": png(IMAGES[0])}, {"bytes": b"%!PS-Adobe-3.0"}], ["row 1", "cannot be read as an image"]),
        ([{"bytes": png(IMAGES[0])}, {"bytes": png(IMAGES[0, 1:])}], ["images differ in size", "row 1"]),
        ([[[1, 2], [3, 4]], [[1, 2], [3]]], ["its images differ in shape"]),
        ([[[1, 2], [3, 4]], None], ["some are missing"]),
        ([[[1, 2], [3, 4]], [[1, 2], [3, None]]], ["some of its pixels are missing"]),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, column: Any, words: list[str]) -> None:
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "a.parquet", *words)


def test_tables_with_different_columns(tmp_path: Path) -> None:
    pq.write_table(table(range(20)), tmp_path / "train.parquet")
    pq.write_table(table(range(20, 30), label=None, y=pa.array(LABELS[20:])), tmp_path / "test.parquet")
    refused(tmp_path, "test.parquet: its columns image and label are not those of", "train.parquet")
