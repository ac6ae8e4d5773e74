"""One pass of an inference engine as its programs take it: seconds and bytes of a layer of each kind, of the head, of drafts.

``seconds`` of transfers are the closed form's, with the framework's latency of each exchange; where the network has no closed form they
are those of switches in its place, and time nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.serving_settings import ServingSettings
from rapid_dse.events.layer_quantities import seconds_alone
from rapid_dse.events.programs.layer_program import Exchange, ExpertRoute, Half, LayerWork
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.pass_parts import PassParts
from rapid_dse.simulate.inference.passes import LATENT_KERNELS, Drafted, drafting, on_last_stage
from rapid_dse.simulate.inference.prompts import Prompts
from rapid_dse.simulate.inference.served_kernels import KernelCost, exchanges_by_gathers, shots_of_sum

FloatColumn = NDArray[np.float64]

STAGE, TP, CP = "ep", "tp", "cp"  # groups: all ranks of a stage, those that share products, those that share attention
NOTHING = Exchange(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PassDetail:
    """One pass of an engine.

    Attributes:
        works: a layer of each kind, the dense ones first, and of what drafts are made; ``heads``: the head's kernels with the gather of its
            logits, of the model and of drafts.
        order: the kind of each of the model's layers.
        drafts: how many drafts the last stage makes behind each pass.
        hop: bytes that a rank sends to the next stage, ``hop_seconds`` in closed form.
        sequences: on an attention rank, whose tokens the last stage sends to the first where passes follow each other.
        chunks: such passes, of which one follows the other through the stages; 1 of a decode step.
    """

    works: tuple[LayerWork, ...]
    heads: tuple[Half, ...]
    order: tuple[int, ...]
    drafts: int
    hop: float
    hop_seconds: float
    sequences: float
    chunks: int

    def by_library(self) -> PassDetail:
        """The same pass with all sums by a library's all-reduce."""
        works = []
        for work in self.works:
            first, second = (
                replace(half, exchanges=tuple(replace(exchange, shots=0) for exchange in half.exchanges)) for half in work.halves
            )
            works.append(replace(work, halves=(first, second)))
        return replace(self, works=tuple(works))

    @property
    def waits(self) -> str:
        """The term that a rank's waits for others of its stage belong to."""
        every = [
            exchange.term
            for work in self.works
            for half in work.halves
            for exchange in half.exchanges
            if exchange.reduce + exchange.gather > 0
        ]
        routed = any(half.route is not None and half.route.seconds > 0 for work in self.works for half in work.halves)
        return "tp" if "tp" in every else "ep" if routed else "cp" if every else "pp"


def decode_detail(scenario: Scenario, cut: Degrees, rows: float, parts: Drafted) -> PassDetail:
    """A decode step of ``rows`` sequences on an attention rank, its drafts included; ``cut`` has one row."""
    verified, made = parts
    detail = replace(_detail(scenario, cut, verified, 1.0), sequences=rows)
    if made is None:
        return detail
    draft = _detail(drafting(scenario), on_last_stage(cut), made, 1.0)
    drafts = scenario.workload.draft_tokens or 0
    return replace(detail, works=(*detail.works, *draft.works), heads=(*detail.heads, *draft.heads), drafts=drafts)


def prefill_details(
    scenario: Scenario, cut: Degrees, sequences: float, parts: Sequence[PassParts], prompts: Prompts
) -> tuple[PassDetail, ...]:
    """The passes of each length that compute ``sequences`` prompts of an attention rank."""
    efficiency = scenario.software.serving.prefill_efficiency
    every = [_detail(scenario, cut, of_length, efficiency) for of_length in parts]
    return tuple(replace(detail, sequences=sequences, chunks=chunks.count) for detail, chunks in zip(every, prompts.chunks, strict=True))


def _detail(scenario: Scenario, cut: Degrees, parts: PassParts, efficiency: float) -> PassDetail:
    model, moves = scenario.model, parts.exchanges
    kinds = [part for part in (parts.mlp, parts.routed) if part is not None]
    works = tuple(_layer(scenario, cut, parts, kind, efficiency) for kind in kinds)
    first = parts.mlp is not None
    return PassDetail(
        works=works,
        heads=(_head(scenario, parts, efficiency),),
        order=tuple(int(first and model.has_experts(layer)) for layer in range(model.num_hidden_layers)),
        drafts=0,
        hop=float(moves.stream[0] / cut.tp[0]),
        hop_seconds=seconds_alone(moves.hop),
        sequences=0.0,
        chunks=1,
    )


def _seconds(cost: KernelCost, parts: PassParts, serving: ServingSettings, efficiency: float) -> float:
    """Of products, with the casts of their inputs, as the framework runs them."""
    return float((cost.seconds[0] + cost.casts * parts.cast[0]) / efficiency) + cost.waits * serving.quantize_latency


def _layer(scenario: Scenario, cut: Degrees, parts: PassParts, kind: KernelCost, efficiency: float) -> LayerWork:
    """A layer whose second half is ``kind``: the dense MLP, or experts."""
    serving, moves = scenario.software.serving, parts.exchanges
    latency = serving.collective_latency * (moves.at.tp.size[0] > 1)
    small = serving.layer_latency * (1.0 + LATENT_KERNELS * bool(scenario.model.kv_lora_rank))
    around = _seconds(parts.around, parts, serving, efficiency) + float(parts.glue[0]) / efficiency + small
    queries = _gather(moves.queries, 2.0 * moves.stream, CP, 0.0)
    summed = _sum(scenario, moves.reduced, moves.stream, TP, latency, parts)
    attention = Half(
        "attention",
        around,
        0.0,
        0.0,
        (replace(queries, term="cp"), summed),
        attention_forward=float(parts.attention.seconds[0]) / efficiency,
    )
    own = _seconds(kind, parts, serving, efficiency)
    if kind is parts.routed:
        half = _experts(scenario, cut, parts, own + serving.expert_latency)
    elif bool(moves.several[0]) and not scenario.model.num_experts:
        # the tokens of all attention ranks are gathered and scattered
        way = (seconds_alone(moves.mlp) + latency) / 2
        whole = float(moves.everyone[0])
        both = Exchange(whole, whole, way, way, 0.0, 0.0, scattered=True, group=STAGE, skew=latency / 2)
        half = Half("mlp", own, 0.0, 0.0, (both,))
    else:
        half = Half("mlp", own, 0.0, 0.0, (summed,))
    return LayerWork((attention, half), tp=int(cut.tp[0]), stream=NOTHING)


def _experts(scenario: Scenario, cut: Degrees, parts: PassParts, seconds: float) -> Half:
    """The half of a layer with experts: tokens go to their experts and back, or are summed over the stage."""
    moves = parts.exchanges
    wide = moves.at.tp * moves.at.cp
    latency = scenario.software.serving.collective_latency * (wide.size[0] > 1)
    if not moves.several[0]:
        return Half("experts", seconds, 0.0, 0.0, (_sum(scenario, moves.experts, moves.stream, STAGE, latency, parts),))
    gathers = bool(exchanges_by_gathers(scenario, moves.routed, moves.everyone, wide, cut.ep)[0])
    route = ExpertRoute(
        size=float((moves.everyone if gathers else moves.routed)[0]),
        seconds=seconds_alone(moves.experts) / 2 + latency,
        kinds=("ALL_GATHER", "REDUCE_SCATTER") if gathers else ("ALL_TO_ALL", "ALL_TO_ALL"),
        skew=latency,
    )
    return Half("experts", seconds, 0.0, 0.0, (), route=route)


def _head(scenario: Scenario, parts: PassParts, efficiency: float) -> Half:
    """The product with the vocabulary, and the gather of its logits."""
    serving, moves = scenario.software.serving, parts.exchanges
    latency = serving.collective_latency * (moves.at.tp.size[0] > 1)
    seconds = _seconds(parts.head, parts, serving, efficiency)
    return Half("head", seconds, 0.0, 0.0, (_gather(moves.logits, moves.logit_bytes, TP, latency),))


def _gather(gather: Transfer, size: FloatColumn, group: str, latency: float) -> Exchange:
    return Exchange(0.0, float(size[0]), seconds_alone(gather) + latency, 0.0, 0.0, 0.0, scattered=True, group=group, skew=latency)


def _sum(scenario: Scenario, gather: Transfer, size: FloatColumn, group: str, latency: float, parts: PassParts) -> Exchange:
    at = parts.exchanges.at
    span = at.tp if group == TP else at.tp * at.cp
    shots, summed = shots_of_sum(scenario, size, span)
    seconds, ranks = seconds_alone(gather) + latency, int(np.ravel(span.size)[0])
    return Exchange(float(summed[0]), 0.0, 0.0, 0.0, seconds, 0.0, group=group, skew=latency, shots=int(shots[0]), ranks=ranks)
