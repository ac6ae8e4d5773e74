"""Arrow columns straight from numpy's memory.

``pyarrow.array`` imports pandas to see whether it was handed a Series, which costs a small sweep a third of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """A column of numbers or truth values, null where ``absent`` is set; both ``(n_rows,)``. Numbers are not copied."""
    import pyarrow as pa

    validity = _bits(~absent) if absent is not None and absent.any() else None
    data = _bits(values) if values.dtype == np.bool_ else pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [validity, data])


def texts(values: Sequence[str]) -> pa.Array:
    """A column of texts, ``(n_rows,)``."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(flags, bitorder="little"))
