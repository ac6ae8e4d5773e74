"""What the schema knows of a training framework: what it fuses, overlaps, and costs beside the kernels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.fields import Bytes, Count, Frozen, Seconds, ShareOrZero

Dtype = Literal["fp32", "bf16", "fp16"]


class Software(Frozen):
    """A framework's profile. Every number holds across models, sizes and chips; ``calibrate`` fits those marked free.

    Attributes are grouped: kernels, host, overlap, data types, memory.
    """

    name: str
    # kernels
    attention: Literal["flash", "unfused"] = "flash"
    flash_version: Literal[1, 2, 3] = 2
    fused_softmax: bool = True
    fused_cross_entropy: bool = False
    dropout: bool = False
    elementwise_passes: Annotated[float, Field(ge=0, le=60)] = 10.0  # free: extra reads or writes of (tokens, hidden) a layer, forward
    matmul_efficiency: Annotated[float, Field(ge=0.4, le=1.1)] = 1.0  # free: matrix products in the framework against alone
    fp8_recipe: Literal["tensorwise", "rowwise", "tensorwise + fp8 all-gather"] = "tensorwise"
    # host
    launch_s: Seconds = 4e-6  # free: host time to launch one kernel
    host_layer_s: Seconds = 0.0  # free: host time a layer's forward costs beyond its launches
    host_micro_batch_s: Seconds = 0.0  # free: host time a micro-batch costs
    host_step_s: Seconds = 0.0  # free: data loading, logging, optimizer launch of a step
    # overlap: the share of a transfer that can hide behind compute where there is enough of it
    dp_overlap: ShareOrZero = 0.9
    tp_overlap: ShareOrZero = 0.0
    cp_overlap: ShareOrZero = 0.9
    pp_overlap: ShareOrZero = 0.0
    async_tp: bool = False
    gradient_bucket: Bytes = 100e6
    send_receive_s: Seconds = 0.0  # free: host and synchronisation cost of a pipeline send and receive
    # data types
    gradient_dtype: Dtype = "fp32"  # of the accumulated gradient, in memory
    reduce_dtype: Dtype | None = None  # of the gradient on the wire; null: as gradient_dtype
    optimizer_bytes: Annotated[float, Field(ge=0, le=16)] = 12.0  # master weight and two moments, bytes a parameter
    # structure
    pipeline_split: Literal["megatron", "balanced", "even"] = "megatron"
    # memory
    context: Bytes = 1e9  # CUDA context, cuBLAS workspaces, NCCL's fixed buffers
    fragmentation: Annotated[float, Field(ge=1, le=1.5)] = 1.05  # reserved over allocated
    communicator: Bytes = 0.0  # NCCL buffers a communicator
    streams_per_layer: Count = 1
