"""What brings tokens into the order of the experts and back: the kernels of each way, by dispatcher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.software.expert_settings import ONCE_A_PART, ExpertSettings
from rapid_dse.model.layers.part import Counted, SmallKernel
from rapid_dse.model.shapes import FloatColumn, MicroBatch
from rapid_dse.parallel.distinct_parts import parts_of_groups

# Kernels that an eager layer starts for its routing, forward and backward: casts, softmax, choice and its sort, counts, offsets of groups
# and their padding, gathers, weights, sums. Under a CUDA graph a layer of Qwen3-30B takes 0.11 ms beside its products and rows (an H200).
# Megatron Core's, whose moe_router_fusion is off unless it is asked for, and in Megatron Bridge's recipes, starts as many (core 0.16,
# moe_utils.py, router.py, token_dispatcher.py): 11 for the choice and its map, 14 for the balancing loss, 15 for counts and maps of rows.
EAGER_KERNELS = 40.0, 20.0
ALONE = Counted((0.0, 0.0), (0.0, 0.0))  # one kernel that moves what it is said to move


def permutation_kernels(
    model: Model, shape: MicroBatch, rows: FloatColumn, experts: ExpertSettings, logits: FloatColumn
) -> list[SmallKernel]:
    """Kernels between the router and the experts, and back.

    Args:
        rows: rows of the rank's experts, ``(n_shapes,)``; ``logits``: bytes that the router's softmax and choice move in fp32.
    """
    if experts.permutation == "eager":
        return _eager(model, shape, rows, logits)
    routing = SmallKernel("routing", 0.0, 0.0, logits)
    if experts.permutation == "fused":
        tokens, copies = shape.norm_tokens * model.hidden_size, model.num_experts_per_tok / np.where(shape.same_tokens, shape.ep, 1)
        # where nothing arrives, copies are sorted as they are made
        sorted_ = 2.0 * rows * model.hidden_size * ((shape.ep < model.num_experts) & ~np.asarray(shape.same_tokens))
        spread, summed = 2.0 * copies * tokens + sorted_, (copies + 1) * tokens + sorted_
        return [routing, SmallKernel("spread", spread, spread), SmallKernel("weighted_sum", summed, summed)]
    there, back = _of_library(model, shape, rows, experts)
    return [
        replace(routing, counted=Counted((0.0, 0.0), EAGER_KERNELS)),
        SmallKernel("spread", there, there, counted=ALONE),
        SmallKernel("weighted_sum", back, back, counted=ALONE),
    ]


def padding_kernels(model: Model, shape: MicroBatch, rows: FloatColumn, experts: ExpertSettings) -> list[SmallKernel]:
    """Copies of the rank's ``rows``, ``(n_shapes,)``, that fill up each expert's to what products in fewer than 16 bits take, and back:
    what goes in and what comes out, each read and written (Megatron Core, moe/experts.py, quantization_padding and _unpadding); their
    gradients the other way round."""
    if experts.expert_padding == "fused" or experts.dispatcher == "hybridep":
        return []
    elements = 4.0 * rows * model.hidden_size * shape.fills_up
    return [SmallKernel("expert_padding", elements, elements, counted=ALONE)]


def _of_library(model: Model, shape: MicroBatch, rows: FloatColumn, experts: ExpertSettings) -> tuple[FloatColumn, FloatColumn]:
    """Elements that Transformer Engine's kernels move to the experts, and back; the gradient of each moves as much the other way.

    A token is read once, however many rows it becomes (``transformer_engine/pytorch/triton/permutation.py``). Sent as rows, they are made
    before they go, and where a rank has several experts sorted by expert when they have come, and back. Sent once to each rank, rows are
    made of the tokens that have come. All tokens gathered, sums are written for every one of them.
    """
    hidden, sent, share = model.hidden_size, shape.norm_tokens, np.where(shape.gathers_rows, shape.etp, 1)
    if experts.dispatcher == "alltoall":
        sorted_ = 2.0 * rows * (shape.ep < model.num_experts)
        streams_moved = (1 + model.num_experts_per_tok) * sent + sorted_
        return streams_moved * hidden, streams_moved * hidden
    routing = (model.num_experts, model.num_experts_per_tok, model.n_group or 1, model.topk_group or model.n_group or 1)
    arrived = sent * share * parts_of_groups(routing, shape.ep)
    summed = arrived if experts.dispatcher in ONCE_A_PART else sent * share * shape.ep
    return (arrived + rows) * hidden, (rows + summed) * hidden


def _eager(model: Model, shape: MicroBatch, received: FloatColumn, logits: FloatColumn) -> list[SmallKernel]:
    """The same as PyTorch's kernels one by one. There: ``index_select`` reads and writes each row; its gradient is an ``index_add``.
    Back: rows are weighted, read and written, and added into their tokens; backward the tokens' gradients are gathered, weighted, and
    multiplied with the rows for the weights' gradients. What has arrived from other ranks is sorted by expert, and back."""
    rows = shape.norm_tokens * model.hidden_size * model.num_experts_per_tok
    arrived = (shape.ep < model.num_experts) & (shape.ep * shape.etp > 1) & ~np.asarray(shape.same_tokens)
    sorted_ = received * model.hidden_size * 2.0 * arrived
    return [
        SmallKernel("routing", 0.0, 0.0, logits, Counted((0.0, 0.0), EAGER_KERNELS)),
        SmallKernel("spread", 2.0 * rows + sorted_, rows + sorted_, counted=Counted((0.0, rows), (0.0, 0.0))),
        SmallKernel("weighted_sum", 3.0 * rows + sorted_, 6.0 * rows + sorted_, counted=Counted((rows, 0.0), (0.0, 0.0))),
    ]
