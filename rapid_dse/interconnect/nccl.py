"""What NCCL itself costs: figures of its protocols and algorithms that hold on every fabric.

Sources: NCCL 2.19 to 2.27, ``src/graph/tuning.cc`` (``baseLatencies``, ``hwLatencies``, protocol bandwidth factors); Hu et al.,
"Demystifying NCCL" (arXiv 2507.04786), on the protocols. What tuning.cc gives only as relative costs is fitted to the measured rows
(``rapid_dse.analysis.measured_collectives``), one value for all chips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's protocols.

    ``start``, seconds, 1 us to 100 us: from launch of the collective's kernel to its first send, and the end's hand-over.
    ``hop``, seconds, 0 to 20 us: what a step adds to the link's own latency: LL polls a flag in each 8 bytes, LL128 in each 128,
    Simple fences and posts a whole chunk.
    ``efficiency``, share of the link's bandwidth, 0 to 1: LL sends 4 bytes of flag with 4 of data, LL128 8 with 120.
    ``ramp``, seconds, 0 to 50 us: time of the chunk that fills a pipeline. A message of x seconds cut into the best number of
    chunks takes (√x + √ramp)² (Thakur 2005, section 4.3; Chan et al. 2007, section 6), so bandwidth rises slowly with size.
    """

    start: float
    hop: float
    efficiency: float
    ramp: float


@dataclass(frozen=True)
class Nccl:
    """Parameters of NCCL that no fabric changes.

    ``tree``, 0.3 to 1: share of a link's bandwidth that the double binary tree keeps busy (tuning.cc's treeCorrectionFactor).
    ``switch_reduction``, 0.5 to 1: share of the ring's bandwidth that multicast and reduction in the switch reach (NVLS; taken for SHARP).
    ``switch_start``, seconds, 0 to 100 us: NVLS's first and last synchronisation of all members through the switch.
    ``message``, seconds, 0 to 10 us: a peer's message in a grouped send and receive (all-to-all), one after the other.
    """

    low_latency: Protocol = field(default=Protocol(start=2e-6, hop=0.85e-6, efficiency=0.21, ramp=9e-6))
    low_latency_128: Protocol = field(default=Protocol(start=27.5e-6, hop=2.0e-6, efficiency=0.92, ramp=0.25e-6))
    simple: Protocol = field(default=Protocol(start=26.5e-6, hop=1.6e-6, efficiency=1.0, ramp=1.2e-6))
    send: Protocol = field(default=Protocol(start=2.6e-6, hop=1.0e-6, efficiency=1.0, ramp=0.1e-6))
    tree: float = 0.8
    switch_reduction: float = 0.81
    switch_start: float = 32e-6
    message: float = 0.5e-6

    @cached_property
    def ring_protocols(self) -> npt.NDArray[np.float64]:
        """Start, hop, efficiency and ramp of the protocols that a ring or a tree may run, ``(4, n_protocols)``."""
        protocols = (self.low_latency, self.low_latency_128, self.simple)
        return np.array([[getattr(protocol, name) for protocol in protocols] for name in ("start", "hop", "efficiency", "ramp")])


DEFAULT = Nccl()
