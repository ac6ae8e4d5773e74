"""How a framework runs a mixture of experts: what takes tokens to their experts, and what hides it."""

from typing import Annotated, Literal

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import ShareOrZero
from rapid_dse.config.parts import SchemaPart
from rapid_dse.config.software.precision_settings import CAST

EXPERTS = Only(Where("model.num_experts"))
Dispatcher = Literal["allgather", "alltoall", "deepep", "hybridep"]
ExpertProducts = Literal["grouped", "streams", "looped"]
ONCE_A_PART = ("deepep", "hybridep")  # dispatchers that send a token once to each part of a group that needs it


class ExpertSettings(SchemaPart):
    """The exchange of tokens among the ranks that hold the experts.

    ``dispatcher``: ``allgather`` gathers all ranks' tokens, from which each takes what its experts need, and scatters the sums back;
    ``alltoall`` sends a row for each of a token's experts (NCCL); ``deepep`` and ``hybridep`` (DeepEP, and its form for NVLink domains
    that span nodes) send a token once to each domain, and within it once to each rank, that has experts of its.
    """

    dispatcher: Annotated[Dispatcher, EXPERTS, TRAINED] = "alltoall"
    # A rank's experts of one layer. grouped: one kernel over all of them (torch._grouped_mm); streams: a product of the library each, on
    # streams beside each other (Transformer Engine's GroupedLinear); looped: a product each, one after the other.
    expert_products: Annotated[ExpertProducts, EXPERTS] = "streams"
    # What brings rows into the order of the experts, and back. fused: a kernel each way, as fast as the framework's other small ones;
    # transformer_engine: its kernels (Megatron Core's --moe-permute-fusion), which read a token once and move nothing beside, behind a
    # choice of experts whose kernels start one by one; eager: PyTorch's index_select and index_add, whose atomics add element by element.
    permutation: Annotated[Literal["fused", "transformer_engine", "eager"], EXPERTS] = "fused"
    # Biases of routed experts (model.linear_bias) and limits of their activation (model.swiglu_limit). fused: within products and
    # activation; eager: PyTorch's kernels around them, in 32 bits, but under a graph of the whole step.
    expert_bias: Annotated[Literal["fused", "eager"], EXPERTS, TRAINED] = "fused"
    # Rows of each expert filled up to a multiple of what products in fewer than 16 bits take. fused: by what sends or permutes them;
    # copied: around the products, there and back (Transformer Engine's Fp8Padding), but under hybridep, which fills up as it sends, and
    # where a capacity says how many rows there are.
    expert_padding: Annotated[Literal["fused", "copied"], EXPERTS, CAST, TRAINED] = "fused"
    # Where a router's weight multiplies a row: its activation within the expert (Megatron Core, in one kernel with SwiGLU), or what the
    # expert gives, which autograd keeps for the weight's gradient.
    expert_weighting: Annotated[Literal["activation", "output"], EXPERTS, TRAINED] = "output"
    # Exchanges run beside another micro-batch's passes (Megatron Core's --overlap-moe-expert-parallel-comm): a forward pass of one with a
    # backward pass of another.
    expert_overlap: Annotated[bool, EXPERTS, TRAINED] = False
    # Share of the passes' compute that exchanges can then hide behind.
    ep_overlap: Annotated[ShareOrZero, Only(Where("software.expert_overlap", (True,)))] = 0.8
