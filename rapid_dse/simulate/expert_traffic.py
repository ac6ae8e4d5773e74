"""What takes tokens to their experts and back: bytes and transfers of each dispatcher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.expert_settings import ONCE_A_PART
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.distinct_parts import parts_of_groups
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]

# SMs that a dispatcher's kernels hold while they run: DeepSeek-V3 (arXiv 2412.19437, section 3.2.2), DeepEP's README (20 to 24 of 132);
# HybridEP what performance recipes give it (Megatron Bridge 0.6.2, perf_recipes: moe_hybridep_num_sms). Of NCCL's kernels
# ``software.overlap_slowdown`` says it.
HELD_SMS = {"deepep": 20, "hybridep": 32}


@dataclass(frozen=True)
class Route:
    """One way to the experts or back, as the layouts' dispatcher goes it.

    Attributes:
        size: bytes: of the whole gathered buffer under ``allgather``, else what a rank sends, its own experts' rows included: of rows, or
            where a token goes once to each part, of tokens.
        copies: of each network dimension, inner to outer, into how many of the parts that it joins the mean token goes,
            ``(n_dimensions, n_layouts)``; None unless it goes once to each.
    """

    size: FloatColumn
    copies: NDArray[np.float64] | None = None


def token_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of the tokens that a rank has for the experts, ``(n_layouts,)``: its share of them under sequence parallelism."""
    tokens = MicroBatch.of(layouts, scenario.workload).tokens
    return tokens * (scenario.model.hidden_size * compute_bytes(scenario)) / np.where(layouts.sequence_parallel, layouts.tp, 1)


def routed_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of the rows of a rank's tokens, each once for each of its experts, ``(n_layouts,)``: as the busiest rank has them."""
    load = scenario.workload.expert_load(layouts.ep)
    return token_bytes(scenario, layouts) * scenario.model.num_experts_per_tok * load


def shared_rows(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of what the ranks that share an expert gather: their rows, or all tokens of the group where those are gathered."""
    if gathers_tokens(scenario):
        return token_bytes(scenario, layouts) * layouts.ep * layouts.expert_tp
    return routed_bytes(scenario, layouts) * layouts.expert_tp


def route(scenario: Scenario, layouts: Layouts, group: Span) -> Route:
    """What each exchange carries over a group of ep ranks."""
    dispatcher, tokens = scenario.software.experts.dispatcher, token_bytes(scenario, layouts)
    if gathers_tokens(scenario):
        return Route(tokens * layouts.ep)
    if dispatcher in ONCE_A_PART:
        return Route(tokens * scenario.workload.expert_load(layouts.ep), _copies(scenario.model, group))
    return Route(routed_bytes(scenario, layouts))


def gathers_tokens(scenario: Scenario) -> bool:
    """Whether all tokens are gathered, and the sums scattered back."""
    return scenario.software.experts.dispatcher == "allgather"


def expert_exchange(scenario: Scenario, carried: Route, group: Span, network: Network) -> Transfer:
    """One exchange, to the experts or back, over a group of ep ranks."""
    if gathers_tokens(scenario):
        return transfer.all_gather(carried.size, group, network)  # a sum that is scattered is a gather reversed
    if carried.copies is not None:
        return transfer.dispatch(carried.size, list(carried.copies), group, network)
    return transfer.all_to_all(carried.size, group, network)


def held_sms(scenario: Scenario) -> float:
    """Share of the SMs that an exchange which hides takes from the compute beside it."""
    return HELD_SMS.get(scenario.software.experts.dispatcher, 0) / scenario.hw.sms


def alone_share(layouts: Layouts) -> FloatColumn:
    """Share of a step's passes that have none of another micro-batch beside them where ``software.expert_overlap`` pairs a forward with a
    backward pass, ``(n_layouts,)``: on the last stage the forward passes up to the first backward one, pp through each of its chunks but
    the last and one there, and as many backward ones at the end (Megatron Core, pipeline_parallel/combined_1f1b.py). Without a pipeline it
    is the first micro-batch's forward pass and the last one's backward pass."""
    passes = layouts.num_micro_batches * layouts.chunks
    return np.asarray(np.minimum((layouts.chunks - 1) * layouts.pp + 1, passes) / passes, dtype=np.float64)


def _copies(model: Model, group: Span) -> NDArray[np.float64]:
    """Parts that the mean token goes to, by dimension: those of one place of the dimension each, all over the group."""
    routing = (model.num_experts, model.num_experts_per_tok, model.n_group or 1, model.topk_group or model.n_group or 1)
    copies, below = [], np.ones(())
    for members in group.members:
        copies.append(parts_of_groups(routing, group.size / below))
        below = below * members
    return np.stack(np.broadcast_arrays(*copies))
