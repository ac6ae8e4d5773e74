"""How far the engine counts time: no single delay above 2^53 ns, no run above 2^60 ns (36 years)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.topology import Links, Topology, longest_route
from rapid_dse.trace.graph import LARGEST


def check_delays(topology: Topology, layout: Links, sizes: NDArray[np.int64]) -> None:
    """Raise ValueError where a message of one of ``sizes`` bytes is longer on its way, or on one link, than the engine counts."""
    links = layout.links[(layout.source >= 0) & ~layout.failed]
    if not len(links) or not len(sizes):
        return
    latency, largest, slowest = float(links["latency"].max()), int(sizes.max()), float(links["bandwidth"].min())
    if latency * longest_route(topology) > LARGEST:
        raise ValueError(f"latency is {latency:g} ns, with which messages take longer than 2^53 ns; it must be less")
    if largest > LARGEST * slowest:
        raise ValueError(
            f"bandwidth is {slowest * 1e9 / (1 << 30):g} GB/s on the slowest link, on which a message of {largest} bytes takes longer "
            "than 2^53 ns; it must be more"
        )


def check_end(slots: NDArray[Any]) -> None:
    """Raise ValueError where events were left in the calendar's ``slots``: they lay beyond its end."""
    if (slots["head"] >= 0).any():
        raise ValueError("the run takes longer than 2^60 ns (36 years), which the engine does not count; check sizes, times and bandwidths")
