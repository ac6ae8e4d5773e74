"""What the schema knows of a cluster: what the jobs on it meet, whichever framework they run."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import Bytes, BytesPerSecond, Count, Frozen, Seconds, Share, ShareOrZero, Watts
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.model_kinds import NOT_SERVED


def _pairs(value: Any) -> Any:
    """A mapping as pairs, which are hashable; a table of results writes it as text, ``8: 95 GB/s, 16: 50 GB/s``."""
    if isinstance(value, str):
        return tuple(tuple(part.split(":", 1)) if ":" in part else (part, None) for part in value.strip("{} ").split(","))
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _bus_bandwidth(value: Any) -> Any:
    """nccl-tests prints GB/s: a bare number is meant so, in a table's text too."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value  # with a unit
    return float(value) * 1e9 if isinstance(value, int | float) and not isinstance(value, bool) and value < 1e6 else value


WHOLE_RUN = Only(Where("workload.train_tokens"))
Nodes = Annotated[Count, BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.strip().isdigit() else value)]
BusBandwidth = Annotated[BytesPerSecond, BeforeValidator(_bus_bandwidth)]


class Cluster(Frozen):
    """The fabric between nodes and the nodes' hosts, as jobs meet them: what the chip's data sheets leave open.

    Attributes:
        gpu_spread: standard deviation of its GPUs' speed under the power limit, over the mean: chips of one kind differ, and stand in
            different air. A step waits for the slowest of its GPUs. 0.015: on five clusters GPUs lay within 8 % in the mean, of some
            hundreds each (Sinha et al., "Not All GPUs Are Created Equal", SC 2022), which is five to six deviations; NVIDIA's own
            jobs of 64 to 2,048 H100 slow down by as much.
        allreduce_busbw: what nccl-tests gives there: by number of nodes (of 2 and more) the bus bandwidth of an all-reduce of 1 GB and
            more over all their GPUs, GB/s. ``fabric_efficiency``, ``hop_latency`` and ``trees`` follow from it, and are not given beside
            it; null: those hold.
        nics_per_gpu: network cards a GPU, of the bandwidth that ``hw.network`` has beyond the node, which is a card's for each GPU: 0.5
            where a node of 8 has four.
        fabric_efficiency: share of these cards' bandwidth that collectives between nodes reach.
        hop_latency: what a hop between nodes costs beyond the link's own latency, s.
        node_skew: what a blocking collective of a layer waits for each further node that its group spans, s.
        trees: whether NCCL's trees hold: false where all-reduces run around rings alone, so that their bus bandwidth falls as 1/nodes.
        all_reduce_wait: what an all-reduce of gradients waits for each further rank of its group, s.
        host_slowdown: times as long as usual that the host launches a layer of a job over several nodes whose tensor-parallel
            group fills a node of 8; of one of t ranks t / 8 times that, and never less than 1: the node's ranks launch one after
            the other. So none runs ahead of the others (``software.layers_ahead``).
        memory_taken: device memory of which the allocator of a job there gets nothing, bytes: the driver's, and the buffers of NCCL and
            of the fabric. ``hw.memory.usable`` is no more than what it leaves of ``hw.memory.capacity``. 0: that holds as it is.
        gpu_mtbf: hours between failures that stop a job, a GPU: a job of n GPUs is stopped every gpu_mtbf / n hours. 50,000: Llama 3's
            16,384 H100 had 419 unexpected interruptions in 54 days (arXiv 2407.21783, section 3.3.4), one every 50,700 GPU-hours.
        restart_time: from a failure until the job's processes run again, s; reading the checkpoint comes on top. 10 minutes: 5 to 20 at
            Meta's research clusters (arXiv 2410.21680).
        checkpoint_bandwidth: bytes/s at which the storage takes or gives a checkpoint. 100 GB/s is a middling one; Llama 3's took 2 TB/s.
        pue: power of the whole site over that of its computers (power usage effectiveness).
        node_power: what a node draws beside its GPUs, W: CPUs, memory, NICs, fans; its share of switches.
    """

    name: str  # the option that the cluster comes from
    gpu_spread: Annotated[ShareOrZero, Field(le=0.2), NOT_SERVED] = 0.015
    allreduce_busbw: Annotated[tuple[tuple[Nodes, BusBandwidth], ...], BeforeValidator(_pairs)] | None = None
    nics_per_gpu: Annotated[float, Field(ge=0.05, le=4)] = 1.0
    fabric_efficiency: Annotated[Share, Field(ge=0.05)] = 1.0
    hop_latency: Annotated[Seconds, Field(le=2e-3)] = 5e-6
    node_skew: Annotated[Seconds, Field(le=5e-3), NOT_SERVED] = 5e-5
    trees: Annotated[bool, TRAINED] = True
    all_reduce_wait: Annotated[Seconds, Field(le=2e-3), TRAINED] = 0.0
    host_slowdown: Annotated[float, Field(ge=1, le=50), NOT_SERVED] = 1.0
    memory_taken: Bytes = 0.0
    gpu_mtbf: Annotated[float, Field(ge=1, le=1e9), WHOLE_RUN] = 5e4
    restart_time: Annotated[Annotated[Seconds, Field(le=1e6)], WHOLE_RUN] = 600.0
    checkpoint_bandwidth: Annotated[BytesPerSecond, WHOLE_RUN] = 1e11
    pue: Annotated[float, Field(ge=1, le=10)] = 1.0
    node_power: Annotated[Watts, Field(le=1e6)] = 0.0

    @model_validator(mode="after")
    def _measured_or_given(self) -> Self:
        if self.allreduce_busbw is None:
            return self
        if not self.allreduce_busbw:
            raise ValueError("allreduce_busbw is empty; expected GB/s by number of nodes, as {8:95,16:50}, or null")
        for nodes, _ in self.allreduce_busbw:
            if nodes < 2:
                raise ValueError(f"allreduce_busbw has {nodes} node; expected numbers of nodes from 2 on")
        for name in ("fabric_efficiency", "hop_latency", "trees"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)}: follows from allreduce_busbw; give one of the two")
        return self


# What ``calibrate`` may fit of a cluster.
FREE_CLUSTER: tuple[FreeParameter, ...] = (
    FreeParameter(
        "cluster.fabric_efficiency", 1.0, 0.3, 1.0, "share", "its NCCL plugin and channels, and what else the network cards carry"
    ),
    FreeParameter("cluster.hop_latency", 5e-6, 2e-5, 1e-3, "s", "its NCCL plugin's proxy threads"),
    FreeParameter("cluster.node_skew", 5e-5, 2e-4, 2e-3, "s", "how evenly processes run ahead on several hosts"),
    FreeParameter("cluster.all_reduce_wait", 0.0, 1e-4, 2e-3, "s", "proxy threads that wait for cores at each step of an all-reduce"),
    FreeParameter("cluster.host_slowdown", 1.0, 2.0, 20.0, "times", "launches that wait for each other's cores"),
)
