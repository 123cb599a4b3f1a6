"""Small data sets in the formats of other projects, and mutations of their files."""

from __future__ import annotations

import gzip
import io
import json
import random as random_
import struct
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from support.robustness.mutation import mutate_bytes, mutate_json, mutate_npy, mutate_text

Random = random_.Random
IMAGES = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
LABELS = (np.arange(30) % 3).astype(np.uint8)
HAVE_TABLES = find_spec("pyarrow") is not None


def mutate_file(random: Random, base: bytes) -> bytes:
    """Change bytes anywhere, or only at the start or the end, where formats declare sizes."""
    how = random.randrange(4)
    size = min(len(base), random.choice((16, 64, 256, 1024)))
    if how == 0:
        return mutate_bytes(random, base[:size]) + base[size:]
    if how == 1:
        return base[: len(base) - size] + mutate_bytes(random, base[len(base) - size :])
    return mutate_bytes(random, base)


@cache
def array_files() -> dict[str, dict[str, bytes]]:
    """Files by name, of each data set that `data=file` reads."""

    def idx(array: np.ndarray) -> bytes:
        return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

    def mat(compressed: bool, **arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        savemat(buffer, arrays, do_compression=compressed)
        return buffer.getvalue()

    pixels = np.random.RandomState(0).rand(784, 20)
    characters = {"target": np.eye(50)[:, np.arange(12) % 3], "targetchar": 1.0 + np.arange(12)[None] % 2}
    lines = [" ".join(str(int(level > 0.7)) for level in image) + "\n" for image in pixels.T]
    npy = io.BytesIO()
    np.save(npy, IMAGES)
    named = {"train_images": IMAGES.transpose(1, 2, 0), "train_labels": LABELS[:, None]}
    return {
        "IDX": {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx1-ubyte": idx(LABELS)},
        "IDX, compressed": {"train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES))},
        "npy": {"a.npy": npy.getvalue()},
        "MATLAB": {"a.mat": mat(False, **named)},
        "MATLAB, compressed": {"a.mat": mat(True, **named)},
        "Omniglot": {"chardata.mat": mat(True, data=pixels[:, :12], testdata=pixels[:, 12:], **characters)},
        "amat": {f"binarized_mnist_{part}.amat": "".join(lines).encode() for part in ("train", "valid", "test")},
    }  # fmt: skip


@cache
def table_files() -> dict[str, dict[str, bytes]]:
    """Files by name, of each data set that `data=hf` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def png(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        return buffer.getvalue()

    def table(**columns: pa.Array) -> pa.Table:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.table({**columns, "label": pa.array(LABELS, pa.int64())}).replace_schema_metadata(metadata)

    def stream(content: pa.Table) -> bytes:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=10)
        return sink.getvalue()

    def parquet(content: pa.Table, compression: str, version: str = "1.0") -> bytes:
        sink = io.BytesIO()
        pq.write_table(content, sink, compression=compression, data_page_version=version, row_group_size=10)
        return sink.getvalue()

    files = table(image=pa.array([{"bytes": png(image), "path": None} for image in IMAGES]))
    lists = table(image=pa.array(IMAGES.tolist(), pa.list_(pa.list_(pa.uint8()))))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": None}
    return {
        "stream": {"a.arrow": stream(files)},
        "stream of lists": {"a.arrow": stream(lists)},
        "Parquet": {"a.parquet": parquet(files, "snappy")},
        "Parquet, version 2": {"a.parquet": parquet(files, "zstd", "2.0")},
        "Parquet of lists": {"a.parquet": parquet(lists, "none")},
        "parts": {"train.parquet": parquet(files, "gzip"), "test.parquet": parquet(files, "lz4")},
        "saved": {"data-00000-of-00001.arrow": stream(files), "state.json": json.dumps(state).encode()},
    }


def write_mutated(random: Random, folder: Path, sets: dict[str, dict[str, bytes]]) -> Path:
    """Write one of the data sets with one file mutated; returns the file or the folder to open."""
    kind = random.choice(sorted(sets))
    changed = random.choice(sorted(sets[kind]))
    for name, content in sets[kind].items():
        if name == changed:
            if name.endswith(".amat") and random.random() < 0.5:
                content = mutate_text(random, content.decode()).encode("utf-8", "surrogatepass")
            elif name.endswith(".json"):
                content = mutate_json(random, json.loads(content))
            elif name.endswith(".npy"):
                content = mutate_npy(random, IMAGES)
            else:
                content = mutate_file(random, content)
        (folder / name).write_bytes(content)
    return folder if len(sets[kind]) > 1 else folder / changed
