"""A seal on Parquet files: a digest of every byte, which stands before the footer, where readers of Parquet do not look.

Parquet's own checksums are those of pages. The footer, which holds the schema and where each column lies, has none: a flipped bit there
can rename a column, or move it, and every other reader takes the file as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAGIC = b"rdseseal"
_DIGEST = 32  # bytes of SHA-256
WIDTH = len(MAGIC) + _DIGEST
_TAIL = 8  # bytes behind the footer: its length and Parquet's own magic
_PIECE = 1 << 20


def sealed(data: memoryview) -> tuple[memoryview, bytes, memoryview]:
    """A Parquet file's bytes with its seal, in the three parts that are to be written one after the other."""
    start = len(data) - _TAIL - int.from_bytes(data[-_TAIL : 4 - _TAIL], "little")
    return data[:start], MAGIC + hashlib.sha256(data).digest(), data[start:]


def is_whole(path: Path) -> bool | None:
    """Whether a file's bytes are those that its seal was made of; None where it has no seal.

    Raises:
        OSError: where the file cannot be read.
    """
    with path.open("rb") as file:
        place = _place(file)
        if place is None:
            return None
        file.seek(place)
        mark = file.read(WIDTH)
        if sum(a != b for a, b in zip(mark, MAGIC, strict=False)) > 1:  # one byte may be damaged too
            return None
        digest = hashlib.sha256()
        for piece in _around(file, place):
            digest.update(piece)
        return digest.digest() == mark[len(MAGIC) :]


def _place(file: IO[bytes]) -> int | None:
    """Where a seal would begin; None in a file that is too short for one, or has no footer."""
    size = file.seek(0, 2)
    if size < WIDTH + _TAIL:
        return None
    file.seek(size - _TAIL)
    place = size - _TAIL - int.from_bytes(file.read(4), "little") - WIDTH
    return place if place > 0 else None


def _around(file: IO[bytes], place: int) -> Iterator[bytes]:
    """The file's bytes without the seal's."""
    file.seek(0)
    rest = place
    while rest:
        piece = file.read(min(rest, _PIECE))
        if not piece:
            return
        rest -= len(piece)
        yield piece
    file.seek(place + WIDTH)
    while piece := file.read(_PIECE):
        yield piece
