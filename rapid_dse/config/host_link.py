"""What the schema knows of a GPU's way to the memory of its host."""

from typing import Literal

from rapid_dse.config.effects import Where
from rapid_dse.config.fields import BytesPerSecond, Frozen

Offloaded = Literal["activations", "optimizer", "weights"]
OFFLOADED: tuple[Offloaded, ...] = ("activations", "optimizer", "weights")
# Where the host's memory holds something, and where layers fetch it with each micro-batch.
OFFLOADING = tuple(Where(f"parallel.offload_{state}") for state in OFFLOADED)
OFFLOADED_IN_LAYERS = (Where("parallel.offload_activations"), Where("parallel.offload_weights"))


class HostLink(Frozen):
    """``link_bandwidth``: what long copies between GPU and host reach in one direction, bytes/s (PCIe, or NVLink-C2C); both directions go
    at once. ``memory_bandwidth``: what the CPUs' cores reach of their memory's bandwidth, the share of one GPU, bytes/s."""

    link_bandwidth: BytesPerSecond
    memory_bandwidth: BytesPerSecond
