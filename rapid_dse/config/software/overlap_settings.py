"""Which transfers a framework hides behind which compute, and in what calls it sends them."""

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import Bytes, ShareOrZero
from rapid_dse.config.host_link import OFFLOADED_IN_LAYERS
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart


class OverlapSettings(SchemaPart):
    """Shares of the compute at hand that transfers can hide behind, and the sizes of the calls that carry gradients and weights."""

    dp_overlap: Annotated[ShareOrZero, TRAINED] = 0.8  # share of gradient reductions that hides behind the backward pass
    scatter_overlap: Annotated[ShareOrZero | None, TRAINED] = None  # of ZeRO 1's reduce-scatter of gradients; null: dp_overlap
    all_reduce_overlap: Annotated[ShareOrZero | None, TRAINED] = None  # of ZeRO 0's all-reduce of gradients; null: dp_overlap
    # Of ZeRO 1 and 2: the gather of new weights behind the next forward pass.
    parameter_gather_overlap: Annotated[ShareOrZero, TRAINED] = 0.3
    tp_overlap: Annotated[ShareOrZero, Only(Where("software.async_tp", (True,)))] = (
        0.5  # share of tensor-parallel transfers that hide where async_tp is on
    )
    tp_backward_overlap: Annotated[ShareOrZero, TRAINED] = 0.2  # share of the backward pass's that hide behind the weight gradient
    async_tp: Annotated[bool, NOT_SERVED] = False  # whether tensor-parallel transfers are cut up and run beside their products
    cp_overlap: Annotated[ShareOrZero, NOT_SERVED] = 0.9  # share of context-parallel transfers that hides behind attention
    # Of copies between a GPU and its host behind a layer's pass, where activations or weights are offloaded: the share of the pass.
    offload_overlap: Annotated[ShareOrZero, Only(*OFFLOADED_IN_LAYERS)] = 1.0
    pp_overlap: Annotated[ShareOrZero, TRAINED] = 0.5  # of sends and receives of interleaved schedules
    # Of each second of a transfer that hides behind the layers' compute, what this compute takes longer for it: NCCL's kernels hold SMs (16
    # to 32 of 132), and what they send and add up passes through HBM. One GPU alone has none of it.
    overlap_slowdown: Annotated[ShareOrZero, NOT_SERVED] = 0.0
    gradient_bucket: Annotated[Bytes, Field(gt=0), TRAINED] = 100e6  # gradients are reduced in calls of this size
    gradient_bucket_per_rank: Annotated[Bytes, TRAINED] = 0.0  # a bucket is no smaller than this times the ranks that share gradients
    # Calls a layer that gather ZeRO 1's and 2's new weights: 0 is one contiguous buffer, else each tensor pays the latency of the group.
    gather_calls_per_layer: Annotated[float, Field(ge=0, le=20), TRAINED] = 0.0
    # ZeRO 2 and 3 keep their gradients sharded: each micro-batch's are reduced behind its backward. false: micro-batches accumulate whole
    # gradients without synchronisation, and the last one's backward reduces the sum. without_pipelines: the former at pp = 1, the latter
    # at pp > 1, as frameworks do it: FSDP2, Megatron-FSDP (grad_reduce_every_bprop), Composer and DeepSpeed's ZeRO 2 and 3 reduce with each
    # backward; Megatron-LM's pipelines run under no_sync until the last micro-batch (schedules.py, whose distributed optimizer is often
    # called ZeRO 2), torch.distributed.pipelining's, which torchtitan runs, under set_requires_gradient_sync(False) (stage.py).
    reduce_each_micro_batch: Annotated[bool | Literal["without_pipelines"], TRAINED] = "without_pipelines"
