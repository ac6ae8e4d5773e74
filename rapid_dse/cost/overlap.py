"""What hides behind what: a transfer hides behind computation, in what other transfers leave free of the ports that it needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.transfer import Transfer

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Time in which a transfer may hide.

    Attributes:
        seconds: how long it is, ``(n_layouts,)``.
        busy: seconds of it for which other transfers take the port of each network dimension, ``(n_dimensions, n_layouts)``.
    """

    seconds: FloatColumn
    busy: NDArray[np.float64]


@dataclass(frozen=True)
class Occupied:
    """What a transfer takes, without the bytes that it sends.

    Attributes:
        seconds: how long it takes alone, ``(n_layouts,)``.
        busy: seconds for which it takes the port of each network dimension, ``(n_dimensions, n_layouts)``.
    """

    seconds: FloatColumn
    busy: NDArray[np.float64]

    @classmethod
    def by(cls, transfer: Transfer) -> Occupied:
        """What a transfer takes."""
        return cls(transfer.seconds, transfer.busy)


def exposed(transfer: Transfer | Occupied, share: float | FloatColumn, window: Window) -> FloatColumn:
    """Seconds of a transfer that do not hide in ``share`` of a window, ``(n_layouts,)``.

    A transfer takes its own time of the window, and of each port that it needs the time that others leave. So no port is busy for longer
    than the window and what is exposed.
    """
    free = share * np.maximum(0.0, window.seconds - window.busy)
    late = np.max(transfer.busy - free, axis=0, initial=0.0)
    exposed_seconds: FloatColumn = np.maximum(late, transfer.seconds - share * window.seconds)
    return exposed_seconds


def exposed_beside(seconds: FloatColumn, share: float | FloatColumn, compute: FloatColumn) -> FloatColumn:
    """Seconds that do not hide in ``share`` of so much computation, where nothing else needs their way."""
    exposed_seconds: FloatColumn = np.maximum(0.0, seconds - share * compute)
    return exposed_seconds
