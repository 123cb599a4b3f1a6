"""The sizes that a Parquet file declares, read before the file is decoded.

A page of a few bytes can declare two gigabytes, and one value of a dictionary can be repeated by every row. The
library allocates what a page declares, tells nobody beforehand, and ends the process on some damaged metadata that it
is asked for. So the metadata at the end of the file, and the header of each page, are read here. They are in Thrift's
compact protocol (https://github.com/apache/parquet-format).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

FOOTER_BYTES = 1 << 24  # of the metadata of a file: typically a kilobyte for each group of rows
MAXIMUM_ITEMS = 1_000_000  # structures and list entries in the metadata
MAXIMUM_DEPTH = 16

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
ROW_GROUPS, COLUMNS = 4, 1  # of a file, and of a group of rows
FILE_PATH, METADATA = 1, 3  # of a column of a group
PATH, NUM_VALUES, COMPRESSED_BYTES, DATA_OFFSET, DICTIONARY_OFFSET = 3, 5, 7, 9, 11  # of its metadata
UNCOMPRESSED_SIZE, COMPRESSED_SIZE, DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 2, 3, 5, 7, 8  # of a page
VALUES = 1  # of all three kinds of page


@dataclass(frozen=True)
class Page:
    """What a page declares: its size in bytes once it is decompressed, and its number of values."""

    uncompressed: int
    values: int


def pages(file: memoryview, names: Collection[str]) -> Iterator[Page]:
    """The pages of some columns, where the library will look for them.

    Raises ValueError, IndexError, KeyError, TypeError or AttributeError for damaged files.
    """
    size = int.from_bytes(file[-8:-4], "little")
    if not size <= min(FOOTER_BYTES, len(file) - 8):
        raise ValueError(f"its metadata have {size} bytes, more than the file or the limit of {FOOTER_BYTES}")
    metadata = _Reader(file[-8 - size : -8]).structure()
    for group in metadata[ROW_GROUPS]:
        for column in group[COLUMNS]:
            chunk = column[METADATA]
            if bytes(chunk[PATH][0]).decode("utf-8") in names:
                if column.get(FILE_PATH):
                    raise ValueError("its values are in another file")
                yield from _pages_of(file, chunk)


def _pages_of(file: memoryview, chunk: dict[int, Any]) -> Iterator[Page]:
    at = chunk[DATA_OFFSET]
    if 0 < chunk.get(DICTIONARY_OFFSET, 0) < at:
        at = chunk[DICTIONARY_OFFSET]
    end, seen = at + chunk[COMPRESSED_BYTES], 0
    if not 0 <= at <= end <= len(file):
        raise ValueError("a column lies outside the file")
    while seen < chunk[NUM_VALUES] and at < end:
        reader = _Reader(file, at)
        header = reader.structure()
        data = header.get(DATA_PAGE) or header.get(DATA_PAGE_V2)
        values = (data or header.get(DICTIONARY_PAGE) or {}).get(VALUES, 0)
        uncompressed, compressed = header[UNCOMPRESSED_SIZE], header[COMPRESSED_SIZE]
        if min(values, uncompressed, compressed) < 0:
            raise ValueError("a page has a negative size")
        at = reader.at + compressed
        seen += values if data else 0
        yield Page(uncompressed, values)


class _Reader:
    """Reads values in Thrift's compact protocol, from a position on."""

    def __init__(self, content: memoryview, at: int = 0) -> None:
        self.content, self.at, self.items = content, at, 0

    def structure(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a structure by number; text is a view of its bytes."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 0x0F
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self.items += 1
        if depth > MAXIMUM_DEPTH or self.items > MAXIMUM_ITEMS:
            raise ValueError("its metadata are too large")
        if kind in (I16, I32, I64):
            return self._integer()
        if kind == STRUCT:
            return self.structure(depth + 1)
        if kind in (LIST, SET):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 0x0F, depth + 1) for _ in range(length)]
        length = self._varint() if kind == BINARY else {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}[kind]
        self.at += length
        return self.content[self.at - length : self.at]

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number in its metadata is too long")
