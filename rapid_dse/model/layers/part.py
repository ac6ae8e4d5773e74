"""The protocol of a layer's parts: what pricing and memory ask of attention, an MLP, experts, the embedding table, the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.run import GemmSharding
from rapid_dse.config.software import Software
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch, mean_context
from rapid_dse.parallel.layouts import IntColumn

Number = FloatColumn | float


@dataclass(frozen=True)
class PartParameters:
    """Parameters (weights, not bytes) of a part on one rank, by who shares them; columns or plain numbers.

    Attributes:
        products: of matrices, divided by tp; ``biases``: of those, divided alike.
        norms, added, router: whole on each tensor-parallel rank: scales of norms, biases that are added after a reduction, the router.
        experts: of the matrices of the rank's routed experts; ``expert_biases``: theirs.
        adapters: of low-rank adapters, and ``expert_adapters`` of those beside routed experts; ``frozen``: these alone are trained.
    """

    products: Number = 0.0
    biases: Number = 0.0
    norms: float = 0.0
    added: float = 0.0
    router: float = 0.0
    experts: Number = 0.0
    expert_biases: Number = 0.0
    adapters: Number = 0.0
    expert_adapters: Number = 0.0
    frozen: bool = False

    @property
    def trained(self) -> PartParameters:
        """Those that have gradients."""
        return PartParameters(adapters=self.adapters, expert_adapters=self.expert_adapters) if self.frozen else self

    @property
    def whole(self) -> float:
        """Those that each tensor-parallel rank holds whole: under sequence parallelism it sees a share of the tokens alone."""
        return self.norms + self.added + self.router

    @property
    def dense(self) -> Number:
        """Those that all data- and context-parallel ranks hold alike."""
        return self.products + self.biases + self.whole + self.adapters

    @property
    def routed(self) -> Number:
        """Those that only the ranks hold alike which have the same experts."""
        return self.experts + self.expert_biases + self.expert_adapters


@dataclass(frozen=True)
class CoreAttention:
    """The attention kernel of a rank: heads and key-value heads, ``(n_shapes,)`` each, the width of a head's query and key, the window
    in tokens (None: all of the sequence), the width of a head's value (None: as wide), and whether a query sees only what is before it."""

    heads: FloatColumn
    kv_heads: FloatColumn
    head_dim: int
    window: int | None
    v_head_dim: int | None = None
    causal: bool = True

    def context(self, seq_len: float) -> float:
        """Keys that a query sees on average."""
        return mean_context(self.window, seq_len) if self.causal else float(seq_len)

    @property
    def value_dim(self) -> int:
        """Width of a head's value, and of what the kernel gives."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def mean_dim(self) -> float:
        """Mean width of the two products: of queries with keys, and of what comes of that with values."""
        return (self.head_dim + self.value_dim) / 2


@dataclass(frozen=True)
class Tensor:
    """What a part makes of one micro-batch on a rank, and autograd may keep.

    Attributes:
        elements: ``(n_shapes,)``.
        width: ``activation``: as wide as activations are; ``input``: of a product, which reads it in 8 bits where the library keeps fp8
            copies; ``core_input``: the same, beside the kernel's own 16-bit one; ``byte``; ``fp32``.
        product: whether a product gives it.
        kept: whether something needs it in the backward pass; else its gradient alone is made.
        core: whether it stands within the attention kernel: a fused one writes it nowhere.
        first: of what a product gives, the share that is kept where every other product is repeated (``MatMul.second`` are the others).
    """

    name: str
    elements: FloatColumn
    width: Literal["activation", "input", "core_input", "byte", "fp32"] = "activation"
    product: bool = False
    kept: bool = True
    core: bool = False
    first: Number = 0.5


@dataclass(frozen=True)
class Counted:
    """What eager kernels do beside streaming, forward and backward: elements that ``index_add`` adds into their place by an atomic each,
    ``(n_shapes,)``, and how many kernels there are, each of which takes a kernel's latency."""

    added: tuple[Number, Number]
    kernels: tuple[float, float]


@dataclass(frozen=True)
class SmallKernel:
    """HBM passes of a fully fused norm, residual sum, activation or the like, elements, ``(n_shapes,)`` each.

    Attributes:
        fp32: bytes that move in fp32 whatever the activations' width, in each direction.
        counted: the passes are those of eager kernels, counted one by one: ``software.elementwise_traffic`` does not multiply them.
    """

    name: str
    forward: Number
    backward: Number
    fp32: Number = 0.0
    counted: Counted | None = None


@dataclass(frozen=True)
class ForwardStep:
    """What runs in a part's forward pass: a product, a small kernel, the attention kernel (``core``) or a transfer, with the tensor that it
    reads and those that it makes. A tensor that no part lists is never kept."""

    name: str
    reads: str
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Exchanged:
    """What ranks that share products gather before a part and scatter after it, or reduce after it: the activations between layers.

    Attributes:
        routed: it is the rows of routed experts instead, over the ranks that share an expert, which gather them where they have tokens
            of their own (``MicroBatch.gathers_rows``); else a tensor-parallel group's, which gathers under sequence parallelism.
        reduced: whether it is reduced where it is not scattered.
        cast: whether it may be cast to fp8 before it is gathered.
        again: whether the backward pass gathers it again for the weight gradient.
        low_rank: elements a token of what an adapter makes, which is reduced in place of the activations; 0: no adapter's.
        alone: it is gathered and nothing is scattered after it, whether or not the sequence is shared.
    """

    routed: bool = False
    reduced: bool = True
    cast: bool = True
    again: bool = True
    low_rank: int = 0
    alone: bool = False


@dataclass(frozen=True)
class GridMove:
    """A collective of the ranks along one side of a grid that shares a part's products, before what it gathers is multiplied or after what
    it sums has been.

    Attributes:
        elements: of the whole buffer, ``(n_shapes,)``.
        ranks, stride: how many ranks of the tensor-parallel group take part, and how far apart they stand in it, ``(n_shapes,)``.
        backward: in the backward pass; else in the forward pass. ``times``: how often it runs, one after the other.
    """

    kind: Literal["ALL_GATHER", "REDUCE_SCATTER", "ALL_REDUCE"]
    elements: FloatColumn
    ranks: IntColumn
    stride: IntColumn
    backward: bool = False
    times: Number = 1.0


@dataclass(frozen=True)
class Part:
    """One part of a layer, or of what stands around the layers. A part overrides what it has; the rest is nothing."""

    model: Model

    @property
    def family(self) -> str:
        """What the part is called in entries of ``config/recompute``."""
        return type(self).__name__.lower()

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """Parameters on one rank."""
        return PartParameters()

    def products(self, shape: MicroBatch) -> list[MatMul]:
        """The matrix products of the forward pass on one rank."""
        return []

    def attention(self, shape: MicroBatch) -> CoreAttention | None:
        """The attention kernel, where it has one."""
        return None

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """What its small kernels move."""
        return []

    def steps(self) -> tuple[ForwardStep, ...]:
        """Its forward pass in order; products and small kernels are named as above, transfers ``GATHER`` and so on of the part."""
        return ()

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """What it makes, and autograd may keep; the first is its input."""
        return []

    def exchanged(self) -> tuple[Exchanged, ...]:
        """What tensor parallelism exchanges around it."""
        return ()

    def moves(self, shape: MicroBatch) -> tuple[GridMove, ...]:
        """What ranks of a grid exchange, beside what ``exchanged`` says."""
        return ()

    def gathered(self, shape: MicroBatch) -> FloatColumn:
        """Elements of weights that a rank gathers beside its own while they are multiplied."""
        return np.zeros(len(shape.tp))

    def sharded(self, sharding: GemmSharding) -> Self:
        """The part as ``parallel.gemm_sharding`` divides it."""
        return self

    def operations(self) -> float | None:
        """Operations of its forward pass where nothing is fused, as PyTorch launches them one by one; None: not counted."""
        return None

    def gradient_operations(self, software: Software) -> float:
        """Operations of its backward pass beside those that answer the forward pass's, as PyTorch launches them one by one."""
        return 0.0

    def carried(self, shape: MicroBatch) -> FloatColumn:
        """Elements of state that a micro-batch carries from step to step."""
        return np.zeros(len(shape.tp))

    def library_launches(self, steps: int) -> float:
        """Kernels that a library launches by its own loop over so many steps of a sequence, forward and backward."""
        return 0.0

    def launches(self) -> float | None:
        """Kernels that the host launches for its forward pass; None: as many as a transformer's part of its place has."""
        return None

    def ring(self, shape: MicroBatch) -> FloatColumn | None:
        """Elements of keys and values that a context-parallel rank hands on; None where it hands nothing on."""
        return None

    def copies(self) -> int:
        """Experts that each token is sent to; 0 where it stays."""
        return 0

    def token_state(self, shape: MicroBatch) -> FloatColumn:
        """Elements of state that a token leaves on one rank for those behind it, ``(n,)``; ``remembered`` of them at most are kept."""
        return np.zeros(len(shape.tp))

    def remembered(self, tokens: int) -> int:
        """Of so many tokens, those whose state is still needed."""
        return tokens


def norm_parameters(model: Model, width: int) -> int:
    """Of one norm: a scale, and a bias beside it in layernorm."""
    return 2 * width if model.norm == "layernorm" else width


def residual(model: Model, stream: FloatColumn, mask: float) -> tuple[FloatColumn, FloatColumn]:
    """Elements that adding a half's output to the stream moves, forward and backward: two read and one written, a mask of dropout beside
    them. Scaled by a learned vector first (``layer_scale``), the output is read and written once more, and backward read twice, for its own
    gradient and the vector's, and written."""
    scaled = 1.0 if model.layer_scale else 0.0
    return stream * (3 + mask + 2 * scaled), stream * (2 + mask + 3 * scaled)
