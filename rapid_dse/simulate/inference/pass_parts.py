"""What a pass through an engine's stages is made of, part by part: kernels of each kind of layer, the head, and every exchange."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added, distinct, numbered, rows_of
from rapid_dse.common.remembered import remembered
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import architecture
from rapid_dse.model.layers.embedding import padded_vocab
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.engines import Degrees
from rapid_dse.parallel.placement import Placement, place
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.inference.products import (
    attention_products,
    busiest_rank,
    dense_layers,
    dense_products,
    expert_products,
    head_product,
)
from rapid_dse.simulate.inference.served_kernels import KernelCost, exchange, price_groups, small_all_reduce
from rapid_dse.simulate.inference.widths import ACTIVATION
from rapid_dse.simulate.operator_times import counted_seconds, elementwise_bytes

FloatColumn = NDArray[np.float64]
Counts: TypeAlias = tuple[FloatColumn, FloatColumn, FloatColumn | float]

ORDER = ("tp", "cp", "ep", "pp", "dp")  # of an engine's ranks, inner to outer; attention ranks stand in the place of cp
MOST_KEPT = 1024  # rows of a pass whose parts are kept for others
CAST_BYTES = 3.0  # a number of a product's input that is cast from 16 to 8 bits: read and written


@dataclass(frozen=True)
class Exchanges:
    """The transfers of a pass one by one, ``(n,)`` each.

    Attributes:
        at: where the engine's groups lie; attention's ranks stand in the place of cp.
        several: whether a stage has several attention ranks.
        reduced: the sum over tp after attention; ``mlp`` what follows a dense layer's MLP: the same sum, or beside several attention ranks
            of a dense model a gather and a scatter of all tokens.
        experts: what a layer of experts exchanges: tokens there and back where there are several attention ranks, else one sum over the
            stage.
        queries: what attention gathers over cp, a layer; ``logits`` of the last tokens over tp; ``hop`` from stage to stage.
        stream: bytes of the activations of an attention rank's tokens; ``everyone`` of all attention ranks'; ``routed`` of the copies that
            a rank sends to experts; ``logit_bytes`` of the gathered logits.
    """

    at: Placement
    several: NDArray[np.bool_]
    reduced: Transfer
    mlp: Transfer
    experts: Transfer
    queries: Transfer
    logits: Transfer
    hop: Transfer
    stream: FloatColumn
    everyone: FloatColumn
    routed: FloatColumn
    logit_bytes: FloatColumn


@dataclass(frozen=True)
class PassParts:
    """A pass part by part.

    Kernels of attention's half of a layer (``around``: its projections, ``attention`` itself), of an MLP, of experts, of the ``head``; None
    where the model has no such layer. ``glue``: seconds of what a layer's small kernels move, ``cast`` of a product's input that is cast;
    ``glue_bytes`` and ``cast_bytes``: HBM bytes of these.
    ``dense`` and ``layers``: layers without experts, and all.
    """

    around: KernelCost
    attention: KernelCost
    mlp: KernelCost | None
    routed: KernelCost | None
    head: KernelCost
    glue: FloatColumn
    cast: FloatColumn
    glue_bytes: FloatColumn
    cast_bytes: FloatColumn
    exchanges: Exchanges
    dense: int
    layers: int


def parts_of(
    scenario: Scenario,
    cut: Degrees,
    counts: Counts,
    attention: KernelCost,
    device: OperatorModel,
    *,
    decoding: bool,
) -> PassParts:
    """The parts of a pass with that attention in each layer.

    Args:
        counts: tokens of the attention rank that has the most, those of them that the head sees, and what attention's ranks have on average
            over the most that one has.
    """
    parts = _without_attention if len(cut.tp) <= MOST_KEPT else _without_attention.__wrapped__
    return PassParts(attention=attention, **parts(_Asked(_of_any_requests(scenario), cut, counts, device, decoding)))


class _Asked:
    """A pass whose parts beside attention are asked for; equal to another one where all that they depend on is: the parts of the
    configuration by identity, columns by their numbers; none of them changes."""

    def __init__(self, scenario: Scenario, cut: Degrees, counts: Counts, device: OperatorModel, decoding: bool) -> None:
        self.scenario, self.cut, self.counts, self.device, self.decoding = scenario, cut, counts, device, decoding
        columns = (*(getattr(cut, column.name) for column in fields(cut)), *counts)
        numbers = tuple(column.tobytes() if isinstance(column, np.ndarray) else column for column in columns)
        parts = (scenario.hw, scenario.model, scenario.software, scenario.cluster)
        self._all = (*map(id, parts), scenario.workload, decoding, type(device), *numbers)
        self._hash = hash(self._all)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._all == other._all


@remembered(64)
def _of_any_requests(scenario: Scenario) -> Scenario:
    """The scenario with nothing said of its requests, of which a pass's parts beside attention do not depend."""
    unsaid = dict.fromkeys(("prompt_len", "decode_len", "batch_size", "concurrency", "request_rate", "num_prompts"))
    work = scenario.workload.model_copy(update={**unsaid, "length_spread": 0.0, "prefix_hit": 0.0})
    return scenario.model_copy(update={"workload": work})


@lru_cache(maxsize=128)
def _without_attention(asked: _Asked) -> dict[str, Any]:
    """The fields of ``PassParts`` but attention; cases of one model on one chip that differ in the lengths of their requests have many of
    them alike."""
    scenario, cut, counts, device, decoding = asked.scenario, asked.cut, asked.counts, asked.device, asked.decoding
    tokens, ends, share = counts
    model = scenario.model
    dense, layers = dense_layers(model), model.num_hidden_layers
    shape, cast = _shape(scenario, cut, tokens, share), CAST_BYTES * tokens * model.hidden_size
    glue = _glue_bytes(scenario, shape)
    products = {"around": attention_products(model, cut, tokens, absorbed=decoding), "head": [head_product(model, cut, ends)]}
    if dense:
        products["mlp"] = dense_products(model, cut, tokens, share)
    if layers > dense:
        products["routed"] = expert_products(model, cut, tokens, share, scenario.workload.expert_imbalance)
    priced = dict(zip(products, price_groups(scenario, list(products.values()), device, decoding=decoding), strict=True))
    return {
        "around": priced["around"],
        "mlp": priced.get("mlp"),
        "routed": priced.get("routed"),
        "head": priced["head"],
        "glue": _streaming(glue, device) + _eager(scenario, shape, device),
        "cast": _streaming(cast, device),
        "glue_bytes": glue,
        "cast_bytes": cast,
        "exchanges": _exchanges(scenario, cut, counts),
        "dense": dense,
        "layers": layers,
    }


def _glue_bytes(scenario: Scenario, shape: MicroBatch) -> FloatColumn:
    """HBM bytes that norms, rotary embedding, activation and routing move in the mean layer."""
    model = architecture(scenario.model)
    every = [count * elementwise_bytes(scenario, kind, shape)[0] for count, kind in zip(model.counts, model.kinds, strict=True)]
    return np.asarray(added(every) / len(model.order))


def _eager(scenario: Scenario, shape: MicroBatch, device: OperatorModel) -> FloatColumn:
    """Seconds of the mean layer's eager kernels that are counted one by one."""
    model = architecture(scenario.model)
    every = [count * counted_seconds(scenario, kind, shape, device, 0) for count, kind in zip(model.counts, model.kinds, strict=True)]
    return np.asarray(added(every) / len(model.order))


def _shape(scenario: Scenario, cut: Degrees, tokens: FloatColumn, share: FloatColumn | float) -> MicroBatch:
    """A pass's tokens as a micro-batch of sequences of one token; those of one attention rank are on all ranks of its experts."""
    model, work, ones = scenario.model, scenario.workload, np.ones_like(cut.tp)
    load = work.expert_load(cut.ep)
    if model.num_experts and work.expert_capacity is None:
        engine = np.maximum(1.0, tokens * share * (cut.attention_dp * cut.cp))
        load = busiest_rank(model, engine, cut.ep, work.expert_imbalance)[1] * cut.ep / (engine * model.num_experts_per_tok)
    same = cut.attention_dp * cut.cp == 1
    return MicroBatch(cut.tp, ones, cut.ep, cut.etp, tokens, np.zeros(len(tokens), bool), 1, load, same_tokens=same)  # type: ignore[arg-type]  # tokens need not be whole


def _streaming(hbm_bytes: FloatColumn, device: OperatorModel) -> FloatColumn:
    """Seconds in which small kernels move bytes, their latencies left to ``layer_latency`` and ``quantize_latency``."""
    return np.maximum(0.0, device.elementwise(hbm_bytes) - device.elementwise(0.0))


def _places(scenario: Scenario, cut: Degrees) -> Placement:
    """Where the groups of an engine lie: tensor-parallel ranks next to each other, then those of cp and of attention's copies."""
    columns = {"tp": cut.tp, "cp": cut.cp * cut.attention_dp, "pp": cut.pp}
    first, kind = distinct([numbered(column) for column in columns.values()])  # of a grid of batches, the engines of one
    degrees = {name: column.take(first) for name, column in columns.items()} | {"dp": np.ones_like(first), "ep": np.ones_like(first)}
    return rows_of(replace(place(degrees, ORDER, effective_network(scenario)), reasons=()), kind)


def _exchanges(scenario: Scenario, cut: Degrees, counts: Counts) -> Exchanges:
    tokens, ends, share = counts
    model, network, at = scenario.model, effective_network(scenario), _places(scenario, cut)
    stream, wide = tokens * model.hidden_size * ACTIVATION, at.tp * at.cp
    several = cut.attention_dp * cut.cp > 1
    everyone = stream * (cut.attention_dp * cut.cp) * share
    reduced = small_all_reduce(scenario, stream, at.tp)
    mlp = reduced
    if not model.num_experts:  # MLPs over the whole stage: where attention has several ranks their tokens are gathered and scattered
        mlp = transfer.either(several, transfer.all_gather(everyone, wide, network).times(2), reduced)
    experts = transfer.nothing(network, len(tokens))
    routed = stream / cut.tp * model.num_experts_per_tok
    if model.num_hidden_layers > dense_layers(model):
        there = exchange(scenario, routed, everyone, wide, cut.ep).times(2)
        experts = transfer.either(several, there, small_all_reduce(scenario, stream, wide))
    logit_bytes = ends * padded_vocab(model, cut.tp) * ACTIVATION
    return Exchanges(
        at=at,
        several=several,
        reduced=reduced,
        mlp=mlp,
        experts=experts,
        # each rank of cp attends with all queries to its keys: queries and partial outputs go round
        queries=transfer.all_gather(2.0 * stream, at.cp, network).times(cut.cp > 1),
        logits=transfer.all_gather(logit_bytes, at.tp, network),
        hop=transfer.send_to_next(stream / cut.tp, at.pp, network),
        stream=stream,
        everyone=everyone,
        routed=routed,
        logit_bytes=logit_bytes,
    )
