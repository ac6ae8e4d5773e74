"""What the schema knows of a training framework: what it fuses, overlaps, and costs beside the kernels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rapid_dse.config.effects import Only, Where
from rapid_dse.config.fields import Bytes, Frozen, Seconds, ShareOrZero
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.hardware import FlashKernelName
from rapid_dse.config.measured_boxes import MeasuredRuns
from rapid_dse.config.offers import Offers

UNFUSED = Only(Where("software.attention", ("unfused",)), Where("hw.attention_kernels", ((),)))
FP8 = Only(Where("workload.precision", ("fp8",)))
Dtype = Literal["fp32", "bf16", "fp16"]
LibraryGeneration = Literal["early", "current"]


class Software(Frozen):
    """A framework's profile. Every number holds across models, sizes and chips; ``calibrate`` fits those that ``FREE`` lists."""

    name: str
    measured: tuple[MeasuredRuns, ...] = ()  # the measured runs behind it, which say how far its predictions may be trusted
    # Parameters of ``FREE`` that single kernels or steps on one GPU have told alone: fits of whole runs leave them as they are.
    known: tuple[str, ...] = ()
    # What its jobs can be launched with. What it does not offer is illegal; enforce=false prices it, and ``outside`` says so.
    offers: Offers = Offers()
    enforce: bool = True
    # kernels
    attention: Literal["flash", "unfused"] = "flash"
    # Behind attention=flash: the fused kernels that the framework can call. The chip's preferred one of them runs; where it has none of
    # them, attention is unfused. ``flash_kernel`` names one that must run: a chip that lacks it is refused.
    flash_kernels: tuple[FlashKernelName, ...] = ("flash2", "ck")
    flash_kernel: FlashKernelName | None = None
    # Whose speed fused attention has. early: libraries of 2023 and 2024 (FlashAttention 2.0, cuDNN to 9.1, PyTorch to 2.4); current: of
    # 2025 and 2026 (PyTorch 2.11 with its FlashAttention-2, cuDNN 9.19).
    library_generation: Annotated[LibraryGeneration, Only(Where("software.attention", ("flash",)))] = "current"
    fused_softmax: Annotated[bool, UNFUSED] = True  # behind attention=unfused: scale, mask and softmax are one kernel
    fused_rotary: bool = True  # autograd keeps no rotated copy of queries and keys
    fused_activation: bool = True  # autograd keeps no activated gate beside the MLP's inputs
    # The loss over the vocabulary. whole: fp32 copies of all logits and of their gradient beside the 16-bit ones; fused: one kernel that
    # overwrites the logits with their gradient; chunked: head and loss run chunk after chunk, and only one chunk's logits are alive.
    loss: Literal["whole", "fused", "chunked"] = "whole"
    dropout: bool = False
    # Times the HBM bytes of fully fused norms, residuals, rotary embedding and activation: 1 is one kernel for each, eager PyTorch 2 to 4.
    elementwise_traffic: Annotated[float, Field(ge=0.5, le=8)] = 2.0
    # Speed of matrix products in the framework against the same shapes run alone: other kernels' cache and power, stream switches.
    matmul_efficiency: Annotated[float, Field(ge=0.5, le=1.2)] = 0.95
    fp8_recipe: Annotated[Literal["delayed", "tensorwise", "rowwise", "tensorwise + fp8 all-gather"], FP8] = "tensorwise"
    # Who casts. transformer_engine (delayed and tensorwise scaling): 8-bit copies of weights and of their transposes stay all step long,
    # and inputs of products are kept in 8 bits; torchao (the other recipes are its own): operands are cast at each use.
    fp8_library: Annotated[Literal["transformer_engine", "torchao"], FP8] = "transformer_engine"
    # Transformer Engine's fp8 parameters: weights of products stay in 8 bits, with their transposes, and have no 16-bit copies.
    fp8_parameters: Annotated[bool, FP8] = False
    # Passes over both operands that an fp8 product costs (cast, transpose, amax), each 2 bytes read and 1 written an element.
    fp8_cast_passes: Annotated[float, Field(ge=0, le=6), FP8] = 1.0
    selective_recompute: Literal["core_attention", "every_other_matmul"] = "core_attention"
    cp_balanced: bool = True  # ring attention deals the sequence out in zigzag, so that causal work is even
    recomputes_attention: bool = True  # recomputation runs the attention kernel again; false where its output is kept
    # Full recomputation ends where autograd has all that it kept, so that a layer's last product is not run again (early stop of
    # torch.utils.checkpoint without reentrance); false: the whole forward pass runs again.
    recompute_stops_early: bool = False
    # Products of weight gradients add to a 32-bit gradient in place (Megatron's fused accumulation); false: they write one of 16 bits.
    fused_accumulation: bool = True
    # host
    host_layer: Seconds = 1e-3  # host time of a layer's forward and backward for a micro-batch, its launches included
    host_collective_layer: Seconds = 2e-4  # what tensor-parallel collectives add to that
    host_micro_batch: Seconds = 1e-3  # host time of a micro-batch
    # How the host's time for a micro-batch and the device's make one: null: the host runs far ahead, and the longer one counts; a number p:
    # each waits for the other kernel by kernel, and both count, (hostᵖ + deviceᵖ)^(1/p).
    launch_norm: Annotated[float, Field(ge=1, le=20)] | None = None
    host_step: Seconds = 1e-2  # data loading, logging, the optimizer's launches: exposed once a step
    # overlap: the share of the compute at hand that a transfer can hide behind
    dp_overlap: ShareOrZero = 0.8
    parameter_gather_overlap: ShareOrZero = 0.3  # of ZeRO 1 and 2: the gather of new weights behind the next forward pass
    tp_overlap: Annotated[ShareOrZero, Only(Where("software.async_tp", (True,)))] = (
        0.5  # share of tensor-parallel transfers that hide where async_tp is on
    )
    tp_backward_overlap: ShareOrZero = 0.2  # share of the backward pass's that hide behind the weight gradient
    cp_overlap: ShareOrZero = 0.9
    pp_overlap: ShareOrZero = 0.5  # of sends and receives of interleaved schedules
    # Of each second of a transfer that hides behind the layers' compute, what this compute takes longer for it: NCCL's kernels hold SMs (16
    # to 32 of 132), and what they send and add up passes through HBM. One GPU alone has none of it.
    overlap_slowdown: ShareOrZero = 0.0
    async_tp: bool = False
    gradient_bucket: Annotated[Bytes, Field(gt=0)] = 100e6  # gradients are reduced in calls of this size
    gradient_bucket_per_rank: Bytes = 0.0  # a bucket is no smaller than this times the ranks that share gradients
    scatter_overlap: ShareOrZero | None = None  # of ZeRO 1's reduce-scatter of gradients; null: dp_overlap
    # Calls a layer that gather ZeRO 1's and 2's new weights: 0 is one contiguous buffer, else each tensor pays the latency of the group.
    gather_calls_per_layer: Annotated[float, Field(ge=0, le=20)] = 0.0
    # ZeRO 2 and 3 keep their gradients sharded: each micro-batch's are reduced behind its backward. false: micro-batches accumulate whole
    # gradients without synchronisation, and the last one's backward reduces the sum. without_pipelines: the former at pp = 1, the latter
    # at pp > 1, as frameworks do it: FSDP2, Megatron-FSDP (grad_reduce_every_bprop), Composer and DeepSpeed's ZeRO 2 and 3 reduce with each
    # backward; Megatron-LM's pipelines run under no_sync until the last micro-batch (schedules.py, whose distributed optimizer is often
    # called ZeRO 2), torch.distributed.pipelining's, which torchtitan runs, under set_requires_gradient_sync(False) (stage.py).
    reduce_each_micro_batch: bool | Literal["without_pipelines"] = "without_pipelines"
    # FSDP: under ZeRO 3 the shards are the fp32 master weights, of which gathers make 16-bit copies; else 16-bit shards stay beside them.
    master_shards: bool = False
    send_receive: Seconds = 2e-5  # host and synchronisation cost of one pipeline send with its receive
    # data types
    gradient_dtype: Dtype = "fp32"  # of the gradient that is kept and reduced
    reduce_dtype: Dtype | None = None  # of the gradient on the wire; null: gradient_dtype
    extra_gradient_bytes: Annotated[float, Field(ge=0, le=4)] = 0.0  # a parameter, where micro-batches accumulate in a second copy
    # A parameter: master weight and two moments, 4 bytes each. 8: moments of 16 bits; 6: a 16-bit master copy too; 4: no master weight.
    optimizer_bytes: Annotated[float, Field(ge=0, le=16)] = 12.0
    # With states of 12 bytes; other states change it in proportion to what a fused optimizer moves, 34 bytes with 12: the states read and
    # written, a 32-bit gradient read by clipping and by the step, the 16-bit weight written.
    optimizer_traffic: Annotated[float, Field(ge=8, le=200)] = 34.0  # HBM bytes a parameter of clipping and the optimizer's step
    # structure
    pipeline_split: Literal["megatron", "balanced", "even"] = "megatron"
    # memory
    logs_first_stage: bool = False  # the peak that its runs report is the first pipeline stage's, not the worst one's
    # What is held at all times beside the model: cuBLAS's workspaces and NCCL's channels (about 0.4 GB a communicator of 2 to 8 GPUs).
    context: Bytes = 5e8
    # Reserved over live activations: the rest is free, but in blocks that fit nothing that is asked for, and so lost to the run.
    fragmentation: Annotated[float, Field(ge=1, le=1.6)] = 1.05
    activation_overhead: Annotated[float, Field(ge=0.5, le=3)] = 1.0  # kept over the least that autograd needs
    # Bytes a logit that is alive at the peak; null: 16-bit output and gradient, with fp32 copies of both where the loss is whole.
    logit_bytes: Annotated[float, Field(ge=2, le=24)] | None = None
    # Copies of the whole stream that the head's stage keeps under tensor parallelism, whatever tp: gathers before the head and its loss.
    head_copies: Annotated[float, Field(ge=0, le=60)] = 0.0
    # Copies of the whole stream (tokens × hidden, 16 bits) that a tensor-parallel embedding keeps a micro-batch in flight.
    embedding_copies: Annotated[float, Field(ge=0, le=8)] = 0.0

    @model_validator(mode="after")
    def _known_are_free(self) -> Software:
        names = [parameter.name for parameter in FREE]
        for name in self.known:
            if name not in names:
                raise ValueError(f"known has {name}, which no fit changes; expected some of {', '.join(names)}")
        return self

    @property
    def peak_logit_bytes(self) -> float:
        """Bytes a logit that is alive at the peak, as ``logit_bytes`` says or by how the loss runs."""
        if self.logit_bytes is not None:
            return self.logit_bytes
        return 10.0 if self.loss == "whole" else 4.0

    @property
    def master_bytes(self) -> float:
        """Bytes a parameter of the master weight among the optimizer's states: what they have beyond two moments of 16 bits, at most 4."""
        return min(4.0, max(0.0, self.optimizer_bytes - 4.0))

    @property
    def update_traffic(self) -> float:
        """HBM bytes a parameter of clipping and the optimizer's step, with the states that ``optimizer_bytes`` says."""
        return self.optimizer_traffic * (2 * self.optimizer_bytes + 10) / 34

    @property
    def keeps_fp8(self) -> bool:
        """Whether weights and activations are kept in 8 bits where products run in fp8."""
        return self.fp8_library == "transformer_engine" and self.fp8_recipe in ("delayed", "tensorwise")


FREE: tuple[FreeParameter, ...] = (
    FreeParameter("elementwise_traffic", 2.0, 0.7, 6.0, "times fused traffic", "how many of the small kernels it fuses"),
    FreeParameter("matmul_efficiency", 0.95, 0.07, 1.1, "share", "its GEMM library's choice of kernels, and what runs beside them"),
    FreeParameter("fp8_cast_passes", 1.0, 0.4, 4.0, "passes", "whether casts, transposes and maxima are fused into neighbours"),
    FreeParameter("host_layer", 1e-3, 1.5e-3, 1e-2, "s", "Python and launch time of a layer"),
    FreeParameter("host_collective_layer", 2e-4, 5e-4, 1e-2, "s", "Python and launch time of a layer's collectives"),
    FreeParameter("host_micro_batch", 1e-3, 3e-3, 5e-2, "s", "Python time of a micro-batch"),
    FreeParameter("host_step", 1e-2, 2e-2, 0.5, "s", "data loading, logging, optimizer launches"),
    FreeParameter("dp_overlap", 0.8, 0.2, 1.0, "share", "bucketing and prefetch"),
    FreeParameter("scatter_overlap", 0.8, 0.3, 1.0, "share", "whether a reduce-scatter is queued behind the backward pass or beside it"),
    FreeParameter("parameter_gather_overlap", 0.3, 0.3, 1.0, "share", "prefetch of updated weights"),
    FreeParameter("overlap_slowdown", 0.0, 0.15, 1.0, "share", "how many SMs its collectives hold while kernels run"),
    FreeParameter("tp_overlap", 0.5, 0.2, 1.0, "share", "pipelining of tensor-parallel transfers with products"),
    FreeParameter("tp_backward_overlap", 0.2, 0.2, 1.0, "share", "input-gradient transfers beside weight gradients"),
    FreeParameter("pp_overlap", 0.5, 0.3, 1.0, "share", "asynchronous sends"),
    FreeParameter("send_receive", 2e-5, 1e-4, 1e-2, "s", "stream synchronisation around sends"),
    FreeParameter("gather_calls_per_layer", 0.0, 6.0, 20.0, "calls", "whether weights are gathered tensor by tensor"),
    FreeParameter("cp_overlap", 0.9, 0.1, 1.0, "share", "ring attention's transfers beside its kernels"),
    FreeParameter("optimizer_traffic", 34.0, 15.0, 200.0, "bytes a parameter", "fused or for-each optimizer"),
)

# What measured peaks of memory may fit.
FREE_MEMORY: tuple[FreeParameter, ...] = (
    FreeParameter("optimizer_bytes", 12.0, 1.0, 16.0, "bytes a parameter", "its optimizer's states and buckets"),
    FreeParameter("extra_gradient_bytes", 1.0, 1.5, 4.0, "bytes a parameter", "a second copy that micro-batches accumulate in"),
    FreeParameter("logit_bytes", 10.0, 3.0, 24.0, "bytes a logit", "fp32 copies that its loss makes"),
    FreeParameter("head_copies", 0.0, 20.0, 60.0, "streams", "what it gathers before the head"),
    FreeParameter("activation_overhead", 1.0, 0.1, 3.0, "times the least", "what its modules save beyond need"),
    FreeParameter("embedding_copies", 1.0, 3.0, 8.0, "streams", "what its embedding saves"),
    FreeParameter("context", 5e8, 1e9, 5e9, "bytes", "buffers that the allocator holds at all times"),
    FreeParameter("fragmentation", 1.05, 0.05, 1.6, "times live bytes", "how its tensors come and go"),
)
