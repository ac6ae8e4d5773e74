"""A pass through the model on columns of engines: decode steps and prefill, by term."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.serving_settings import ServingSettings
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
    Product,
    attention_products,
    dense_layers,
    dense_products,
    expert_products,
    head_product,
)
from rapid_dse.simulate.inference.served_kernels import (
    KernelCost,
    decode_attention,
    exchange,
    over_windows,
    prefill_attention,
    price_products,
    small_all_reduce,
)
from rapid_dse.simulate.inference.widths import ACTIVATION
from rapid_dse.simulate.operator_times import elementwise_bytes

FloatColumn = NDArray[np.float64]

ORDER = ("tp", "cp", "ep", "pp", "dp")  # of an engine's ranks, inner to outer; attention ranks stand in the place of cp
CAST_BYTES = 3.0  # a number of a product's input that is cast from 16 to 8 bits: read and written
NODES = np.polynomial.legendre.leggauss(4)  # context lengths at which decoding is sampled, and their weights


@dataclass(frozen=True)
class PassWork:
    """What one pass through all stages takes alone, before a framework's latencies, ``(n,)`` each.

    Seconds of ``products``, of ``attention``, of what small kernels and casts move (``moving``), and of the transfers by parallelism; how
    many ``layers``, ``expert_layers``, ``casts`` of a product's input, and exchanges of tensor and expert parallelism (``tp_calls``,
    ``ep_calls``) it has, each of which has a latency of its own; FLOP, HBM bytes and joules of what is sent of a whole engine.
    """

    products: FloatColumn
    attention: FloatColumn
    moving: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    layers: FloatColumn
    expert_layers: FloatColumn
    casts: FloatColumn
    tp_calls: FloatColumn
    ep_calls: FloatColumn
    flops: FloatColumn
    moved: FloatColumn
    joules_sent: FloatColumn

    def times(self, count: float) -> PassWork:
        """So many such passes."""
        return PassWork(*(getattr(self, each.name) * count for each in fields(self)))

    def __add__(self, other: PassWork) -> PassWork:
        """This pass, then the other."""
        return PassWork(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def reshaped(self, *shape: int) -> PassWork:
        """The same columns as arrays of another shape."""
        return PassWork(*(getattr(self, each.name).reshape(shape) for each in fields(self)))


@dataclass(frozen=True)
class EnginePass:
    """Seconds of one pass through all stages as the framework runs it, by what takes them; FLOP, HBM bytes and joules of what is sent of a
    whole engine. All arrays have one shape."""

    products: FloatColumn
    attention: FloatColumn
    small: FloatColumn
    experts: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    flops: FloatColumn
    moved: FloatColumn
    joules_sent: FloatColumn

    @property
    def compute(self) -> FloatColumn:
        """Seconds of all kernels."""
        return self.products + self.attention + self.small + self.experts

    @property
    def total(self) -> FloatColumn:
        """Seconds of the pass."""
        return self.compute + self.tp + self.cp + self.ep + self.pp


def timed(work: PassWork, serving: ServingSettings, efficiency: float = 1.0) -> EnginePass:
    """The pass with the framework's latencies.

    Args:
        efficiency: speed of its kernels against the same kernels alone.
    """
    return EnginePass(
        products=work.products / efficiency,
        attention=work.attention / efficiency,
        small=work.moving / efficiency + work.layers * serving.layer_latency + work.casts * serving.quantize_latency,
        experts=work.expert_layers * serving.expert_latency,
        tp=work.tp + work.tp_calls * serving.collective_latency,
        cp=work.cp,
        ep=work.ep + work.ep_calls * serving.collective_latency,
        pp=work.pp,
        flops=work.flops,
        moved=work.moved,
        joules_sent=work.joules_sent,
    )


@dataclass(frozen=True)
class Prompts:
    """Prompts that are computed in passes of so many sequences: ``queries`` tokens of each, the last of ``keys``, in ``chunks`` passes."""

    queries: float
    keys: float
    chunks: int


def decode_work(scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel, queries: float = 1.0) -> PassWork:
    """A step that gives each of ``rows`` sequences of an attention rank ``queries`` tokens, on average over the contexts of a request."""
    mean = over_windows(scenario, lambda each: _attended(each, cut, rows, queries, device))
    return _work(scenario, cut, rows * queries, rows * queries, mean, device, decoding=True)


def _attended(scenario: Scenario, cut: Degrees, rows: FloatColumn, queries: float, device: OperatorModel) -> KernelCost:
    """Attention of a layer of such a step."""
    prompt, generated = scenario.workload.lengths
    points, weights = NODES
    attention: list[tuple[float, KernelCost]] = []
    for point, weight in zip(points, weights, strict=True):
        context = prompt + max(1.0, generated * (1 + point) / 2)
        attention.append((weight / 2, decode_attention(scenario, cut, rows, context, queries, device)))
    return KernelCost(
        *(np.sum([share * getattr(each, name) for share, each in attention], axis=0) for name in ("seconds", "flops", "moved"))
    )


def drafted_work(scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel) -> PassWork:
    """A decode step with its drafts: each is made by one more layer and the head, one after the other; one pass verifies them all."""
    drafts = scenario.workload.draft_tokens or 0
    verified = decode_work(scenario, cut, rows, device, 1.0 + drafts)
    if not drafts:
        return verified
    layer = scenario.model.model_copy(update={"num_hidden_layers": 1, "first_k_dense_replace": 0})
    one = scenario.model_copy(update={"model": layer})
    return verified + decode_work(one, cut, rows, device).times(drafts)


def prefill_work(scenario: Scenario, cut: Degrees, sequences: FloatColumn, prompts: Prompts, device: OperatorModel) -> PassWork:
    """All passes that compute ``sequences`` prompts of an attention rank; the head sees the last token of each."""
    attention = over_windows(scenario, lambda each: prefill_attention(each, cut, sequences, prompts.queries, prompts.keys, device))
    tokens = np.maximum(1.0, sequences * prompts.queries / cut.cp / prompts.chunks)
    whole = KernelCost(attention.seconds / prompts.chunks, attention.flops / prompts.chunks, attention.moved / prompts.chunks)
    one = _work(scenario, cut, tokens, np.maximum(1.0, sequences / prompts.chunks), whole, device, decoding=False)
    return one.times(prompts.chunks)


def _work(
    scenario: Scenario,
    cut: Degrees,
    tokens: FloatColumn,
    ends: FloatColumn,
    attention: KernelCost,
    device: OperatorModel,
    *,
    decoding: bool,
) -> PassWork:
    model = scenario.model
    dense, layers = dense_layers(model), model.num_hidden_layers
    around = price_products(scenario, attention_products(model, cut, tokens, absorbed=decoding), device, decoding=decoding)
    mlp = price_products(scenario, dense_products(model, cut, tokens), device, decoding=decoding) if dense else None
    routed = price_products(scenario, expert_products(model, cut, tokens), device, decoding=decoding) if layers > dense else None
    head = price_products(scenario, [head_product(model, cut, ends)], device, decoding=decoding)
    counted = [(around, layers), (attention, layers), (head, 1)]
    counted += [(part, count) for part, count in ((mlp, dense), (routed, layers - dense)) if part is not None]
    casts = sum(part.casts * count for part, count in counted)
    moves, (tp_calls, ep_calls) = _moves(scenario, cut, tokens, ends, _places(scenario, cut))
    energy = np.array([dimension.energy for dimension in scenario.hw.network.dimensions])
    ones, none = np.ones(len(tokens)), np.zeros(len(tokens))
    flops, moved = (sum((getattr(part, name) * count for part, count in counted), none) for name in ("flops", "moved"))
    return PassWork(
        products=sum((part.seconds * count for part, count in counted if part is not attention), none),
        attention=attention.seconds * layers,
        moving=layers * _glue(scenario, cut, tokens, device) + casts * _cast(scenario, tokens, device),
        **{name: move.seconds for name, move in moves.items()},
        layers=layers * ones,
        expert_layers=(layers - dense) * ones,
        casts=casts * ones,
        tp_calls=tp_calls * ones,
        ep_calls=ep_calls * ones,
        flops=flops * cut.wide,
        moved=moved * cut.wide,
        joules_sent=energy @ np.asarray(sum(move.sent for move in moves.values())) * cut.wide,
    )


def _glue(scenario: Scenario, cut: Degrees, tokens: FloatColumn, device: OperatorModel) -> FloatColumn:
    """Seconds of what norms, rotary embedding, activation and routing move of the mean layer, their latencies left to ``layer_latency``."""
    ones = np.ones_like(cut.tp)
    shape = MicroBatch(cut.tp, ones, cut.ep, cut.etp, tokens, np.zeros(len(tokens), bool), 1, scenario.workload.expert_load(cut.ep))  # type: ignore[arg-type]  # tokens need not be whole
    model = architecture(scenario.model)
    every = [count * elementwise_bytes(scenario, kind, shape)[0] for count, kind in zip(model.counts, model.kinds, strict=True)]
    moved = np.sum(every, axis=0) / len(model.order)
    return np.maximum(0.0, device.elementwise(moved) - device.elementwise(0.0))


def _cast(scenario: Scenario, tokens: FloatColumn, device: OperatorModel) -> FloatColumn:
    """Seconds that scaling and casting the input of a narrow product moves bytes, its latency left to ``quantize_latency``."""
    moved = CAST_BYTES * tokens * scenario.model.hidden_size
    return np.maximum(0.0, device.elementwise(moved) - device.elementwise(0.0))


def _places(scenario: Scenario, cut: Degrees) -> Placement:
    """Where the groups of an engine lie: tensor-parallel ranks next to each other, then those of cp and of attention's copies."""
    degrees = {"tp": cut.tp, "cp": cut.cp * cut.attention_dp, "pp": cut.pp, "dp": np.ones_like(cut.tp), "ep": np.ones_like(cut.tp)}
    return place(degrees, ORDER, effective_network(scenario))


def _moves(
    scenario: Scenario, cut: Degrees, tokens: FloatColumn, ends: FloatColumn, at: Placement
) -> tuple[dict[str, Transfer], tuple[FloatColumn, FloatColumn]]:
    """The transfers of a pass by term, and how many exchanges of tensor and of expert parallelism there are."""
    model, network = scenario.model, effective_network(scenario)
    layers, dense = model.num_hidden_layers, dense_layers(model)
    stream, wide = tokens * model.hidden_size * ACTIVATION, at.tp * at.cp
    several = cut.attention_dp * cut.cp > 1
    reduced = small_all_reduce(scenario, stream, at.tp)
    # MLPs over the whole stage: one more sum, or where attention has several ranks their tokens are gathered and scattered
    all_tokens = stream * (cut.attention_dp * cut.cp)
    gathered = transfer.all_gather(all_tokens, wide, network).times(2)
    after_dense = transfer.either(several, gathered if not model.num_experts else reduced, reduced)
    tp = reduced.times(layers) + after_dense.times(dense)
    none = transfer.nothing(network, len(tokens))
    ep = none
    if layers > dense:
        summed = small_all_reduce(scenario, stream, wide)
        routed = stream / cut.tp * model.num_experts_per_tok
        there = exchange(scenario, routed, all_tokens, wide).times(2)
        tp = tp + transfer.either(several, none, summed).times(layers - dense)
        ep = transfer.either(several, there, none).times(layers - dense)
    logits = transfer.all_gather(ends * padded_vocab(model, cut.tp) * ACTIVATION, at.tp, network)
    # each rank of cp attends with all queries to its keys: queries and partial outputs go round
    cp = transfer.all_gather(2.0 * stream, at.cp, network).times(np.where(cut.cp > 1, layers, 0))
    hop = transfer.send_to_next(stream / cut.tp, at.pp, network).times(np.maximum(0, cut.pp - 1))
    shared, apart = at.tp.size > 1, several & (wide.size > 1)
    summed_calls = np.where(several, 0.0, (wide.size > 1) * float(layers - dense))
    tp_calls: FloatColumn = np.asarray(shared * (layers + dense + 1.0) + summed_calls, np.float64)
    ep_calls: FloatColumn = np.asarray(apart * 2.0 * (layers - dense), np.float64)
    return {"tp": tp + logits, "cp": cp, "ep": ep, "pp": hop}, (tp_calls, ep_calls)


def all_products(scenario: Scenario, cut: Degrees, tokens: FloatColumn, *, decoding: bool) -> list[Product]:
    """The products of one layer of each kind that the model has."""
    model = scenario.model
    found = attention_products(model, cut, tokens, absorbed=decoding)
    if dense_layers(model):
        found += dense_products(model, cut, tokens)
    return found + (expert_products(model, cut, tokens) if model.num_experts else [])
