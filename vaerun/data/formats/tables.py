"""Tables of Arrow (streams, as HuggingFace's `datasets` keeps them) and Parquet, read by pyarrow from untrusted files.

Before pyarrow decodes anything, what a file declares is compared with its size. Streams must be uncompressed, as
`datasets` writes them: their values then lie in the file and are not copied. Parquet is decoded a few rows at a time.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaerun.data.formats.parquet_pages import pages
from vaerun.data.formats.reading import check_expansion, reading
from vaerun.errors import InputError
from vaerun.storage.untrusted import open_regular

SUFFIXES = (".arrow", ".parquet")
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 26  # of a batch of rows, if each were as large as the largest page
VALUE_BYTES = 16  # of an entry of a dictionary, the largest of what pyarrow keeps per value
THRIFT_BYTES, THRIFT_ITEMS = 1 << 24, 100_000  # of a text and a list in the metadata of a Parquet file
LFS_POINTER = b"version https://git-lfs"
RECORD_BATCH = 3
"""Number of a record batch among the kinds of messages."""


@dataclass(frozen=True)
class Table:
    """One file.

    Attributes:
        path: the file.
        schema: `pyarrow.Schema`.
        rows: number of rows that it declares.
        size: bytes of the file.
        read: yields the record batches of some columns.
    """

    path: Path
    schema: Any
    rows: int
    size: int
    read: Callable[[Sequence[str]], Iterator[Any]]


def import_pyarrow() -> Any:
    """The module. Raises InputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("data=hf needs an extra: pip install 'vaerun[hf]'") from error
    return pyarrow


def open_table(path: Path) -> Table:
    """Open a file of Arrow or Parquet by its content. Raises InputError for others and damaged ones."""
    pyarrow = import_pyarrow()
    with reading(path, "table of Arrow or Parquet"):
        with open_regular(path) as file:
            if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                raise InputError(f"{path}: only Git LFS's pointer to the file: run 'git lfs pull' in its folder")
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if content[:4] == b"PAR1":
            return _open_parquet(path, content, pyarrow)
        if content[:6] == b"ARROW1":
            raise InputError(f"{path}: an Arrow file of random access (Feather); expected a stream: save it as Parquet")
        return _open_stream(path, content, pyarrow)


def _open_stream(path: Path, content: memoryview, pyarrow: Any) -> Table:
    rows = 0
    for message in _messages(content, pyarrow):
        if message.type == "record batch":
            rows += _check_record_batch(message.metadata)
        elif message.type != "schema":
            raise ValueError(f"it has a message of kind {message.type}; datasets writes record batches only")
    schema = pyarrow.ipc.open_stream(pyarrow.py_buffer(content)).schema

    def read(columns: Sequence[str]) -> Iterator[Any]:
        options = pyarrow.ipc.IpcReadOptions(
            use_threads=False, included_fields=[schema.get_field_index(name) for name in columns]
        )
        with reading(path, "table of Arrow"):
            for batch in pyarrow.ipc.open_stream(pyarrow.py_buffer(content), options=options):
                batch.validate(full=True)
                yield batch

    return Table(path, schema, rows, len(content), read)


def _messages(content: memoryview, pyarrow: Any) -> Iterator[Any]:
    reader = pyarrow.ipc.MessageReader.open_stream(pyarrow.py_buffer(content))
    try:
        while True:
            yield reader.read_next_message()
    except StopIteration:
        return


def _check_record_batch(metadata: Any) -> int:
    """The number of rows of a record batch. Raises ValueError if it is compressed (struct.error if it is damaged).

    The metadata are a flatbuffer: tables of fields by number, each found through a table of offsets
    (https://github.com/apache/arrow, format/Message.fbs).
    """
    data = bytes(metadata)

    def field(table: int, number: int) -> int:
        """Position of a field; 0 if it is missing."""
        offsets = table - struct.unpack_from("<i", data, table)[0]
        (size,) = struct.unpack_from("<H", data, offsets)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", data, offsets + 4 + 2 * number)
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return position + struct.unpack_from("<I", data, position)[0]

    message = follow(0)
    kind, header = field(message, 1), field(message, 2)
    if not kind or data[kind] != RECORD_BATCH or not header:
        raise ValueError("a record batch is damaged")
    batch = follow(header)
    length, compression = field(batch, 0), field(batch, 3)
    if compression:
        raise ValueError("its values are compressed, and datasets writes them uncompressed: save it as Parquet")
    rows = struct.unpack_from("<q", data, length)[0] if length else 0
    if rows < 0:
        raise ValueError("a record batch has a negative number of rows")
    return int(rows)


def _open_parquet(path: Path, content: memoryview, pyarrow: Any) -> Table:
    file = pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(pyarrow.py_buffer(content)),
        pre_buffer=False,
        thrift_string_size_limit=THRIFT_BYTES,
        thrift_container_size_limit=THRIFT_ITEMS,
    )

    def read(columns: Sequence[str]) -> Iterator[Any]:
        with reading(path, "table of Parquet"):
            largest = _check_pages(content, columns)
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
            for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                batch.validate(full=True)
                yield batch

    return Table(path, file.schema_arrow, file.metadata.num_rows, len(content), read)


def _check_pages(content: memoryview, columns: Sequence[str]) -> int:
    """The bytes of the largest page. Raises ValueError if all pages of these columns together are too large."""
    total = largest = 0
    for page in pages(content, columns):
        total += page.uncompressed + VALUE_BYTES * page.values
        largest = max(largest, page.uncompressed)
        check_expansion(total, len(content))
    return largest
