"""What a framework keeps in a GPU's memory beside weights, gradients and optimizer states."""

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.effects import TRAINED
from rapid_dse.config.fields import Bytes
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart
from rapid_dse.config.recompute_entries import ModuleSum


class MemorySettings(SchemaPart):
    """What recomputation repeats, what activations, logits and the allocator take, and which peak is reported."""

    # What selective recomputation makes again: entries of config/recompute, or a sum of them.
    selective_recompute: Annotated[ModuleSum, TRAINED] = "core_attention"
    recomputes_attention: Annotated[bool, TRAINED] = True  # recomputation runs the attention kernel again; false where its output is kept
    # Full recomputation ends where autograd has all that it kept, so that a layer's last product is not run again (early stop of
    # torch.utils.checkpoint without reentrance); false: the whole forward pass runs again.
    recompute_stops_early: Annotated[bool, TRAINED] = False
    # Under sequence parallelism weight gradients read products' inputs, which a rank has a share of and gathers again. Where full
    # recomputation has just gathered them, it keeps them until then (DTensor); false: it gathers once more (Megatron).
    keeps_gathered: Annotated[bool, TRAINED] = False
    extra_gradient_bytes: Annotated[float, Field(ge=0, le=4), TRAINED] = 0.0  # a parameter, where micro-batches accumulate in a second copy
    # What is held at all times beside the model: cuBLAS's workspaces and NCCL's channels (about 0.4 GB a communicator of 2 to 8 GPUs).
    context: Annotated[Bytes, NOT_SERVED] = 5e8
    # Reserved over live activations: the rest is free, but in blocks that fit nothing that is asked for, and so lost to the run.
    fragmentation: Annotated[float, Field(ge=1, le=1.6), TRAINED] = 1.05
    activation_overhead: Annotated[float, Field(ge=0.5, le=3), TRAINED] = 1.0  # kept over the least that autograd needs
    # Bytes a logit that is alive at the peak; null: 16-bit output and gradient, with fp32 copies of both where the loss is whole.
    logit_bytes: Annotated[Annotated[float, Field(ge=2, le=24)] | None, TRAINED] = None
    # Where the sequence is gathered for a layer's products and its gradients are scattered behind them: copies of the whole stream
    # (tokens × hidden, 16 bits) that a layer works on at a time.
    working_copies: Annotated[float, Field(ge=0, le=8), TRAINED] = 0.0
    # Layers whose kernels the host may have launched before the device comes to them, where gathers run beside products: what they read
    # and give is not used again before the device is past it (Tensor.record_stream). CUDA holds 1,024 launches, an eager layer's forward
    # pass is some 45; 0: gathers of which the allocator need not know.
    layers_ahead: Annotated[float, Field(ge=0, le=60), TRAINED] = 0.0
    # The peak that its runs report: of which pipeline stage (worst: the largest of all), and whether it is what tensors take
    # (torch.cuda.max_memory_allocated) or what the allocator holds of the device.
    logged_stage: Annotated[Literal["worst", "first", "last"], TRAINED] = "worst"
    logs_allocated: Annotated[bool, TRAINED] = False  # whether the peak that its runs report is what tensors take
