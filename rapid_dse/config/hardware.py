"""What the schema knows of a chip and of the network around it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rapid_dse.config.effects import Only, Where
from rapid_dse.config.fields import (
    Bytes,
    BytesPerSecond,
    Count,
    Degree,
    DollarsPerHour,
    Frozen,
    Hertz,
    JoulesPerByte,
    JoulesPerFlop,
    Seconds,
    Share,
    Watts,
)
from rapid_dse.config.host_link import OFFLOADING, HostLink
from rapid_dse.config.measured_boxes import Architecture
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.nodes import dimensions_in_node, with_gpus_in_node
from rapid_dse.config.units import shortened

# ``int8`` and ``int4``: weights of 8 and 4 bits under 16-bit arithmetic; ``fp4``: NVFP4, weights and inputs of products of 4 bits.
Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8", "int4"]
KvPrecision = Literal["fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4"]
# Bytes of an operand of a product. TF32 is a mode of the tensor cores: its operands are stored as fp32.
# Bytes an element, with its share of the scales where hardware scales blocks: NVFP4 has a byte for 16 elements.
NARROW_BYTES: dict[str, float] = {"fp8": 1.0, "fp4": 0.5625}
PRECISION_BYTES: dict[str, float] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5, "int8": 2, "int4": 2}
WEIGHTS_ALONE = ("int8", "int4")  # narrow weights, which are widened to 16 bits on their way to the tensor cores
Parallelism = Literal["tp", "cp", "ep", "dp", "pp"]
# Fused attention: FlashAttention 1 to 3, cuDNN's, Triton's, and AMD's of the composable kernel library.
FlashKernelName = Literal["flash1", "flash2", "flash3", "cudnn", "triton", "ck", "efficient"]
Topology = Literal["ring", "fully_connected", "switch", "mesh", "torus", "fat_tree"]

Rate = Annotated[float, Field(ge=1e-3, le=1e9)]  # FLOP per SM and clock


class TensorRates(Frozen):
    """Dense FLOP of matrix products per SM and clock, by precision; null where the chip has no such mode.

    ``fp32`` is IEEE single precision: NVIDIA's chips have no tensor cores for it, so it is the rate of the fp32 lanes (two FLOP a
    lane and clock); AMD's have matrix cores for it. ``tf32`` is NVIDIA's and AMD's tensor-core mode on operands stored as fp32. All
    rates are of ``hw.clock``: where a maker states one of another clock, the rate is that figure divided by SMs and ``hw.clock``.
    """

    fp32: Rate
    tf32: Rate | None = None
    bf16: Rate | None = None  # bfloat16
    fp16: Rate | None = None  # half precision
    fp8: Rate | None = None  # 8-bit floats
    fp4: Rate | None = None  # 4-bit floats (NVFP4)


class Level(Frozen):
    """One level of the memory hierarchy: size in bytes, bandwidth in bytes/s, both of the whole chip."""

    size: Bytes  # bytes of the whole chip
    bandwidth: BytesPerSecond  # bytes/s of the whole chip


class Memory(Frozen):
    """HBM (or GDDR), bytes: ``usable`` is what the driver leaves to a process's allocator, its own context taken off.

    What an allocator cannot use of that is the framework's: ``software.fragmentation``, ``software.context``.
    """

    capacity: Annotated[Bytes, Field(ge=1e6)]  # bytes of HBM or GDDR that the chip has
    usable: Annotated[Bytes, Field(ge=1e6)]
    bandwidth: BytesPerSecond  # of HBM or GDDR, as the maker states it

    @model_validator(mode="after")
    def _usable_fits(self) -> Self:
        if self.usable > self.capacity:
            raise ValueError(f"usable = {self.usable:g} bytes is above capacity; allowed: up to {self.capacity:g} bytes")
        return self


class Efficiency(Frozen):
    """What the chip holds of its data-sheet figures under load; the same for every framework, fitted to kernels only.

    ``clock`` is the share of the boost clock that dense matrix products hold within the power limit, ``tensor`` the share of the
    peak that a full wave of large tiles issues at that clock, ``memory`` and ``l2`` the shares of bandwidth that streaming
    kernels reach. ``sustained`` is what a step of training holds of the speed that products and attention reach in short
    benchmarks: heat and the power limit lower the clock over minutes, which a benchmark of milliseconds does not see.
    ``vector`` is the share of the fp32 peak that large fp32 products issue (null: as ``tensor``): an SM with 128 fp32 lanes spends
    each issue slot on them, so that loads and addresses take slots from the products. ``fp4`` is that of fp4 products (null: as
    ``tensor``): where an instruction multiplies more than libraries' kernels feed it.
    """

    clock: Share
    tensor: Share
    memory: Share
    l2: Share
    sustained: Share = 1.0
    vector: Share | None = None
    fp4: Share | None = None

    def issued(self, precision: str) -> float:
        """Share of the peak that a full wave of large tiles issues in the precision, at the clock that is held."""
        own = {"fp32": self.vector, "fp4": self.fp4}.get(precision)
        return self.tensor if own is None else own


class Energy(Frozen):
    """Energy of work at the chip's highest clock: joules per FLOP of products by precision (with what their operands take on chip), per
    byte by level; ``idle`` watts flow whatever the chip does; ``tdp``: its own power limit, at which ``efficiency`` was measured."""

    flop: dict[Precision, JoulesPerFlop]  # of a FLOP of a matrix product, by precision
    hbm: JoulesPerByte  # of a byte read from or written to HBM
    l2: JoulesPerByte  # of a byte of L2
    idle: Watts
    tdp: Watts  # the most that a GPU draws

    @model_validator(mode="after")
    def _idle_leaves_power(self) -> Self:
        if self.idle >= self.tdp:
            raise ValueError(f"idle = {self.idle:g} W is not below tdp; allowed: below {self.tdp:g} W")
        return self

    @model_validator(mode="after")
    def _products_draw_power(self) -> Self:
        if not {"fp32", "bf16", "fp16"} & set(self.flop):
            raise ValueError(f"flop has the precisions {', '.join(self.flop) or 'none'}; allowed: bf16, fp16 or fp32 among them")
        return self


class NetworkDimension(Frozen):
    """One level of the network, inner to outer.

    ``bandwidth`` is what one GPU can send into the dimension, bytes/s in one direction, ``latency`` a hop's, s; ``size`` the
    members (null: what the inner dimensions leave); ``utilization`` the share of the bandwidth that long transfers reach;
    ``parallelisms`` those that ride on it (null: placed by ``parallel.order``); ``energy`` a byte moved. ``cabling``, where links are
    uneven (DGX-1's hybrid cube mesh): the share of the bandwidth that rings through the first 2, 3, … members find links for,
    0 to 1 each, one a number of members up to ``size``; null: what the topology gives. ``allocation``: members that jobs are given
    together, 1 to ``size``; a job may then leave others idle, so that its groups stay inside (GB200: racks of 72 GPUs in trays of 4, of
    which groups of powers of two fill 64); null: all ``size``, every job fills the dimension. ``in_network_reduction``: its switches add
    up what they are sent (NVLink SHARP in the innermost dimension, where they also send one's data to all; SHARP in others, for
    all-reduces). ``oversubscription``, 1 and more: bandwidth of the links below a leaf switch (up to 32 members) over that of the links
    above it; it slows what crosses leaves, in event-driven backends alone.
    """

    topology: Topology  # how the GPUs or nodes of this dimension are connected
    size: Degree | None
    bandwidth: BytesPerSecond
    latency: Seconds
    utilization: Share
    energy: JoulesPerByte
    parallelisms: tuple[Parallelism, ...] | None = None
    in_network_reduction: bool = False
    oversubscription: Annotated[float, Field(ge=1, le=1e6)] = 1.0
    cabling: tuple[Share, ...] | None = None
    allocation: Degree | None = None

    @model_validator(mode="after")
    def _cabling_of_every_count(self) -> Self:
        if self.cabling is not None and len(self.cabling) != (self.size or 0) - 1:
            raise ValueError(f"cabling has {len(self.cabling)} shares with size={self.size}; allowed: one each for 2 to size members")
        return self

    @model_validator(mode="after")
    def _switches_reduce_and_are_shared(self) -> Self:
        if self.topology not in ("switch", "fat_tree"):
            for key, value, none in (
                ("in_network_reduction", self.in_network_reduction, False),
                ("oversubscription", self.oversubscription, 1),
            ):
                if value != none:
                    raise ValueError(f"{key}={value} with topology={self.topology}, which has no switches; allowed with it: {none}")
        return self

    @model_validator(mode="after")
    def _allocation_is_a_part(self) -> Self:
        if self.allocation is not None and (self.size is None or self.allocation > self.size):
            raise ValueError(f"allocation={self.allocation} with size={self.size}; allowed: null, or 1 to size, where size is a number")
        return self


class Network(Frozen):
    """The dimensions, inner to outer, and links that are derated: (source, destination, factor of the bandwidth left)."""

    dimensions: Annotated[tuple[NetworkDimension, ...], Field(min_length=1, max_length=4)]
    # links that carry less: source, destination, and the share of the bandwidth that is left
    faulty_links: tuple[tuple[int, int, float], ...] = ()

    @model_validator(mode="after")
    def _only_outermost_open(self) -> Self:
        for index, dimension in enumerate(self.dimensions[:-1]):
            if dimension.size is None:
                raise ValueError(f"dimensions.{index}.size is null; allowed: an integer (only the outermost may be null)")
        for source, destination, factor in self.faulty_links:
            ends = min(source, destination) >= 0 and max(source, destination) < 2**21 and source != destination
            if not ends or not (factor == 0 or 1e-6 <= factor <= 1):
                raise ValueError(
                    f"faulty_links has [{shortened(source)}, {shortened(destination)}, {factor}]; "
                    "allowed: two different devices and a factor of 0, or from 1e-6 to 1"
                )
        return self


class Hardware(Frozen):
    """A cluster of one kind of chip.

    ``gpus_per_node``: GPUs that reach each other without the fabric (on GB200 a rack, whose trays of 4 share one NVLink switch); the
    node's dimensions of the network hold as many, see ``nodes``; null: as many as all dimensions but the outermost hold.
    ``kernel_latency``: what the smallest kernel takes on the device. ``cluster``: thread blocks that share one read of an operand
    (1: the chip has no such mode; 4 on Hopper and Blackwell, whose GEMMs run in clusters of 2 × 2 blocks with multicast loads).
    ``architecture``: the generation of chips that share its cores; measured runs on one of them say something of the others, and where
    none were measured no error of a prediction is known (null: a chip of a kind of its own).
    ``attention_kernels``: the fused attention kernels that are built for the chip, the one to prefer first; none on a V100.
    ``exponentials``: exponentials an SM computes a clock in its special-function units, which softmax waits for.
    ``tensor_memory``: the tensor cores add up in a memory of their own (Blackwell), so that they multiply while the threads of the block
    compute the softmax of another tile. ``host``: the way to the host's memory, which offloading takes; null: not known.
    ``power_limit``: what the chip may draw, W, between idle power and its own limit (null: ``energy.tdp``): where its work asks for more,
    its clock falls. ``launch_pace``: how long the node's CPU takes to run a framework's Python and to launch kernels, over a DGX H100's
    (two Xeon 8480C): a core of it alone, as PyTorch launches from one thread.
    """

    name: str  # the option that the chip comes from
    architecture: Architecture | None = None
    like: str | None = None  # the chip whose figures stand for what this one's data sheet does not say; null: its file says all
    num_gpus: Degree = 64  # GPUs that the job has
    gpus_per_node: Degree
    sms: Count  # streaming multiprocessors (compute units on AMD)
    tensor_cores_per_sm: Count  # matrix cores of each
    clock: Hertz  # highest clock, at which the rates above hold
    tensor_flop_per_sm_clock: TensorRates
    registers: Level
    shared_memory: Level
    l2: Level
    memory: Memory
    efficiency: Efficiency
    kernel_latency: Seconds
    cluster: Annotated[Count, Field(le=16)] = 1
    attention_kernels: tuple[FlashKernelName, ...] = ()
    exponentials: Annotated[float, Field(ge=0.1, le=1e4)] = 16.0
    tensor_memory: bool = False
    host: Annotated[HostLink | None, Only(*OFFLOADING, Where("software.async_checkpoint", (True,)))] = None
    launch_pace: Annotated[float, Field(ge=0.1, le=10), Only(Where("software.host_pace")), NOT_SERVED] = 1.0
    energy: Energy
    power_limit: Watts | None = None  # what it may draw; null: energy.tdp. Where work asks for more, the clock falls
    price: DollarsPerHour  # of one GPU for an hour, its share of node and network included
    network: Network
    # how matrix products are priced: arithmetic and HBM alone; tiles through the memory hierarchy; a table of measured times
    operator_model: Literal["roofline", "tiled", "measured"] = "tiled"
    # folder or file of measured operator times
    measured_table: Annotated[str | None, Only(Where("hw.operator_model", ("measured",)))] = None

    @model_validator(mode="before")
    @classmethod
    def _node_follows(cls, tree: Any) -> Any:
        return with_gpus_in_node(tree)

    @model_validator(mode="after")
    def _power_limit_can_be_held(self) -> Self:
        if self.power_limit is None:
            return self
        idle, most = self.energy.idle, self.energy.tdp
        if not idle < self.power_limit <= most:
            why = f"draws {idle:g} W whatever it does" if self.power_limit <= idle else f"has a limit of its own of {most:g} W"
            raise ValueError(f"power_limit = {self.power_limit:g} W: the chip {why}; allowed: above {idle:g} W, up to {most:g} W")
        if self.operator_model == "measured":
            raise ValueError(
                "power_limit with operator_model=measured, whose times are of the limit that they were measured at; allowed: null"
            )
        return self

    @property
    def node_dimensions(self) -> int:
        """How many dimensions of the network, from the innermost, lie within a node."""
        dimensions = dimensions_in_node([dimension.size for dimension in self.network.dimensions], self.gpus_per_node)
        assert dimensions is not None  # the scenario has this checked
        return dimensions

    def require_one_node(self) -> None:
        """Raises ``ValueError`` where a node does not end where a dimension of the network does."""
        sizes = [dimension.size for dimension in self.network.dimensions]
        if dimensions_in_node(sizes, self.gpus_per_node) is None:
            listed = " · ".join(str(size) for size in sizes if size is not None)
            raise ValueError(
                f"hw.gpus_per_node={self.gpus_per_node} and hw.network.dimensions of sizes {listed} contradict each other: a node is the "
                "first dimension, or the first ones; allowed: one of the two keys, and the other follows"
            )

    def peak_flops(self, precision: str) -> float:
        """Dense peak of matrix products, FLOP/s. ``ValueError`` where the chip lacks the precision."""
        rate: float | None = getattr(self.tensor_flop_per_sm_clock, self.arithmetic(precision))
        if rate is None:
            raise ValueError(
                f"workload.precision={precision}: {self.name} has no such mode; it has {', '.join(self.precisions)}; where tokens are "
                f"decoded also {', '.join(WEIGHTS_ALONE)}, of which weights alone are so narrow"
            )
        return rate * self.sms * self.clock

    def arithmetic(self, precision: str) -> str:
        """The precision in which products are multiplied: of narrow weights alone that of 16 bits."""
        wide = "bf16" if self.tensor_flop_per_sm_clock.bf16 is not None else "fp16"
        return wide if precision in WEIGHTS_ALONE else precision

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which the chip multiplies matrices."""
        return tuple(name for name, rate in self.tensor_flop_per_sm_clock if rate is not None)
