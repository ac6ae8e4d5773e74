"""A pass through the model on columns of engines: decode steps and prefill, by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.serving_settings import ServingSettings
from rapid_dse.cost.energy import moved_energy, sent_energy
from rapid_dse.device import OperatorModel
from rapid_dse.interconnect import transfer
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.pass_parts import PassParts, parts_of
from rapid_dse.simulate.inference.products import Product, attention_products, dense_layers, dense_products, expert_products
from rapid_dse.simulate.inference.prompts import Chunks, PromptColumns, Prompts, passes_taken
from rapid_dse.simulate.inference.served_kernels import KernelCost, decode_attention, over_windows, prefill_attention

FloatColumn = NDArray[np.float64]
Lengths: TypeAlias = tuple[FloatColumn | float, FloatColumn | float]

# What latent attention has more of small kernels, as a share of a plain layer's: two norms, latents and rotary parts split, cast, joined.
LATENT_KERNELS = 2.0
# Context lengths at which decoding is sampled, from -1 to 1, and their weights: Gauss's of four points, written out.
NODES = (
    np.array([-0.8611363115940526, -0.33998104358485626, 0.33998104358485626, 0.8611363115940526]),
    np.array([0.34785484513745357, 0.6521451548625464, 0.6521451548625464, 0.34785484513745357]),
)


@dataclass(frozen=True)
class PassWork:
    """What one pass through all stages takes alone, before a framework's latencies, ``(n,)`` each.

    Seconds of ``products``, of ``attention``, of what small kernels and casts move (``moving``), of the transfers by parallelism, and of
    the ``slowest`` stage without its sends, which has ``slowest_layers``, ``slowest_experts`` of them with experts; how many ``layers``,
    ``latent_layers``, ``expert_layers``, ``casts`` of a product's input (as many to fp8 as take as long), and exchanges of tensor and
    expert parallelism (``tp_calls``, ``ep_calls``) it has, each of which has a latency of its own; ``joules`` of the work of a whole
    engine, idle power left out; seconds, among these, of what has the tokens of all attention ranks (``of_all_ranks``): layers of experts,
    or MLPs over the whole stage, and the exchanges around them; and of the ``head``, which of a prompt sees the last token.
    """

    products: FloatColumn
    attention: FloatColumn
    moving: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    slowest: FloatColumn
    slowest_layers: FloatColumn
    slowest_experts: FloatColumn
    layers: FloatColumn
    latent_layers: FloatColumn
    expert_layers: FloatColumn
    casts: FloatColumn
    tp_calls: FloatColumn
    ep_calls: FloatColumn
    joules: FloatColumn
    of_all_ranks: FloatColumn
    head: FloatColumn

    def times(self, count: FloatColumn | float) -> PassWork:
        """So many such passes."""
        return PassWork(*(getattr(self, field.name) * count for field in fields(self)))

    def __add__(self, other: PassWork) -> PassWork:
        """This pass, then the other."""
        return PassWork(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def table(self) -> FloatColumn:
        """All columns, ``(n_columns, n)``."""
        return np.array([getattr(self, field.name) for field in fields(self)])


@dataclass(frozen=True)
class EnginePass:
    """Seconds of one pass through all stages as the framework runs it, by what takes them, and of its ``slowest`` stage; ``joules`` of
    the work of a whole engine, idle power left out. All arrays have one shape."""

    products: FloatColumn
    attention: FloatColumn
    small: FloatColumn
    experts: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    slowest: FloatColumn
    joules: FloatColumn

    @cached_property
    def compute(self) -> FloatColumn:
        """Seconds of all kernels."""
        return self.products + self.attention + self.small + self.experts

    @cached_property
    def total(self) -> FloatColumn:
        """Seconds of the pass."""
        return self.compute + self.tp + self.cp + self.ep + self.pp

    def overlapped(self, count: int, ahead: int = 0) -> EnginePass:
        """The same as ``count`` passes of equal length of which each follows the one before through the stages, behind ``ahead`` others."""
        if count == 1 and not ahead:
            return self
        share = passes_taken(count, ahead, self.slowest / self.total) / count
        return replace(self, **{name: getattr(self, name) * share for name in _SECONDS})

    def __add__(self, other: EnginePass) -> EnginePass:
        """This pass, then the other."""
        return EnginePass(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


_SECONDS = ("products", "attention", "small", "experts", "tp", "cp", "ep", "pp")


def timed(work: PassWork, serving: ServingSettings, efficiency: float = 1.0) -> EnginePass:
    """The pass with the framework's latencies.

    Args:
        efficiency: speed of its kernels against the same kernels alone.
    """
    kernels, sent = work.products + work.attention + work.moving, work.tp + work.cp + work.ep
    small = _small_kernels(work, serving)
    experts = work.expert_layers * serving.expert_latency
    a_layer, of_experts = _latencies(work, serving)
    waits = a_layer * work.slowest_layers + of_experts * work.slowest_experts
    return EnginePass(
        products=work.products / efficiency,
        attention=work.attention / efficiency,
        small=work.moving / efficiency + small,
        experts=experts,
        tp=work.tp + work.tp_calls * serving.collective_latency,
        cp=work.cp,
        ep=work.ep + work.ep_calls * serving.collective_latency,
        pp=work.pp,
        slowest=work.slowest * (kernels / efficiency + sent) / (kernels + sent) + waits,
        joules=work.joules,
    )


def _small_kernels(work: PassWork, serving: ServingSettings) -> FloatColumn:
    """Seconds of the framework's latencies of all layers."""
    return (work.layers + LATENT_KERNELS * work.latent_layers) * serving.layer_latency + work.casts * serving.quantize_latency


def _latencies(work: PassWork, serving: ServingSettings) -> tuple[FloatColumn, FloatColumn]:
    """Seconds of the framework's latencies, of a layer, and of experts in one."""
    small, experts = _small_kernels(work, serving), work.expert_layers * serving.expert_latency
    a_layer = (small + work.tp_calls * serving.collective_latency) / work.layers
    return a_layer, (experts + work.ep_calls * serving.collective_latency) / np.maximum(1.0, work.expert_layers)


def through_stages(works: Sequence[PassWork], chunks: Sequence[Chunks], serving: ServingSettings, efficiency: float) -> EnginePass:
    """All passes of some prompts, of which each follows the one before through the stages; ``works``: of all of a length together."""
    whole, ahead = None, 0
    for work, of_length in zip(works, chunks, strict=True):
        one = timed(work, serving, efficiency).overlapped(of_length.count, ahead)
        whole, ahead = one if whole is None else whole + one, ahead + of_length.count
    assert whole is not None
    return whole


def decode_parts(
    scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel, queries: float = 1.0, lengths: Lengths | None = None
) -> PassParts:
    """A step that gives each of ``rows`` sequences of an attention rank ``queries`` tokens, on average over the contexts of a request.

    Args:
        lengths: tokens of a request's prompt, and those generated; None: the scenario's.
    """
    asked = scenario.workload.lengths if lengths is None else lengths
    mean = over_windows(scenario, lambda step: _attended(step, cut, rows, queries, device, asked))
    return parts_of(scenario, cut, (rows * queries, rows * queries, 1.0), mean, device, decoding=True)


def decode_work(scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel, queries: float = 1.0) -> PassWork:
    """What such a step takes."""
    return _combined(scenario, cut, decode_parts(scenario, cut, rows, device, queries))


def _attended(scenario: Scenario, cut: Degrees, rows: FloatColumn, queries: float, device: OperatorModel, lengths: Lengths) -> KernelCost:
    """Attention of a layer of such a step."""
    prompt, generated = lengths
    points, weights = NODES
    contexts = prompt + np.maximum(1.0, generated * (1 + points[:, None]) / 2) + np.zeros(len(rows))
    every = np.arange(len(contexts) * len(rows)) % len(rows)  # all rows at the first context, then at the next
    cost = decode_attention(scenario, cut.take(every), rows.take(every), contexts.reshape(-1), queries, device)
    shares = (weights / 2)[:, None]
    columns = (cost.seconds, cost.flops, cost.hbm_bytes, cost.joules)
    seconds, flops, hbm_bytes, joules = (added(column.reshape(len(contexts), -1) * shares) for column in columns)
    return KernelCost(seconds, flops, hbm_bytes, joules)


def drafted_work(scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel, lengths: Lengths | None = None) -> PassWork:
    """A decode step with its drafts: each is made by one more layer and the head, on the last stage and one after the other; one pass
    verifies them all."""
    return drafted(scenario, cut, drafted_parts(scenario, cut, rows, device, lengths))


Drafted: TypeAlias = tuple[PassParts, PassParts | None]  # the pass that verifies drafts, and the one that makes a draft


def drafted_parts(scenario: Scenario, cut: Degrees, rows: FloatColumn, device: OperatorModel, lengths: Lengths | None = None) -> Drafted:
    """The parts of such a step; ``lengths``: as of ``decode_parts``."""
    drafts = scenario.workload.draft_tokens or 0
    verified = decode_parts(scenario, cut, rows, device, 1.0 + drafts, lengths)
    return verified, decode_parts(drafting(scenario), on_last_stage(cut), rows, device, lengths=lengths) if drafts else None


def drafted(scenario: Scenario, cut: Degrees, parts: Drafted) -> PassWork:
    """The work of a step's parts."""
    verified, made = parts
    if made is None:
        return _combined(scenario, cut, verified)
    work = _combined(drafting(scenario), on_last_stage(cut), made).times(scenario.workload.draft_tokens or 0)
    none = np.zeros_like(work.slowest)
    return _combined(scenario, cut, verified, work) + replace(work, slowest=none, slowest_layers=none, slowest_experts=none, head=none)


def on_last_stage(cut: Degrees) -> Degrees:
    """The same engines with one stage alone."""
    return replace(cut, pp=np.ones_like(cut.pp))


def drafting(scenario: Scenario) -> Scenario:
    """The layer and the head that make a draft, as a model of their own."""
    layer = scenario.model.model_copy(update={"num_hidden_layers": 1, "first_k_dense_replace": 0})
    return scenario.model_copy(update={"model": layer})


def prefill_parts(
    scenario: Scenario, cut: Degrees, sequences: FloatColumn, prompts: Prompts | PromptColumns, device: OperatorModel
) -> tuple[PassParts, ...]:
    """One pass of each length that compute ``sequences`` prompts of an attention rank; the head sees the last token of each.

    Below one, so large a share of attention's ranks has a prompt, and the others wait for it.
    """
    most = np.maximum(1.0, sequences)
    attention = over_windows(scenario, lambda step: prefill_attention(step, cut, most, prompts.queries, prompts.keys, device))
    every = []
    for chunk in prompts.chunks:
        tokens = np.maximum(1.0, most * prompts.queries / cut.cp * chunk.share)
        counts = tokens, np.maximum(1.0, most * chunk.share), np.minimum(1.0, sequences)
        parts = parts_of(scenario, cut, counts, attention.times(chunk.share), device, decoding=False)
        busy = {name: replace(part, joules=part.joules * counts[2]) for name in _ON_ITS_OWN if (part := getattr(parts, name)) is not None}
        every.append(replace(parts, **busy))
    return tuple(every)


_ON_ITS_OWN = ("around", "attention", "head")  # parts of an attention rank with its own tokens alone


def prefill_work(scenario: Scenario, cut: Degrees, sequences: FloatColumn, prompts: Prompts, device: OperatorModel) -> PassWork:
    """All of these passes, one after the other."""
    first, *others = prefilled(scenario, cut, prefill_parts(scenario, cut, sequences, prompts, device), prompts)
    return sum(others, first)


def prefilled(scenario: Scenario, cut: Degrees, parts: Sequence[PassParts], prompts: Prompts | PromptColumns) -> tuple[PassWork, ...]:
    """The work of all passes of each length, of which one has these parts."""
    counts = [chunk.count for chunk in prompts.chunks]
    return tuple(_combined(scenario, cut, one).times(count) for one, count in zip(parts, counts, strict=True))


def _combined(scenario: Scenario, cut: Degrees, parts: PassParts, drafts: PassWork | None = None) -> PassWork:
    """The whole pass through all stages, on the last of which ``drafts`` are made beside it."""
    moves, layers, dense = parts.exchanges, parts.layers, parts.dense
    counted = [(parts.around, layers), (parts.attention, layers), (parts.head, 1)]
    counted += [(part, count) for part, count in ((parts.mlp, dense), (parts.routed, layers - dense)) if part is not None]
    casts = sum(part.casts * count for part, count in counted)
    cast_waits = float(sum(part.waits * count for part, count in counted))
    ones, none = np.ones(len(cut.tp)), np.zeros(len(cut.tp))
    experts = moves.experts.times(layers - dense)
    nothing = experts.times(0)
    by_term = {
        "tp": moves.reduced.times(layers) + moves.mlp.times(dense) + moves.logits + transfer.either(moves.several, nothing, experts),
        "cp": moves.queries.times(layers),
        "ep": transfer.either(moves.several, experts, nothing),
        "pp": moves.hop.times(np.maximum(0, cut.pp - 1)),
    }
    small = moved_energy(scenario.hw, layers * parts.glue_bytes + casts * parts.cast_bytes)
    joules = sum((part.joules * count for part, count in counted), small)
    joules = joules + sent_energy(scenario.hw, np.asarray(sum(move.sent for move in by_term.values())))
    tp_calls, ep_calls = _calls(parts)
    work = PassWork(
        products=sum((part.seconds * count for part, count in counted if part is not parts.attention), none),
        attention=parts.attention.seconds * layers,
        moving=layers * parts.glue + casts * parts.cast,
        **{name: move.seconds for name, move in by_term.items()},
        slowest=none,
        slowest_layers=none,
        slowest_experts=none,
        layers=layers * ones,
        latent_layers=layers * ones * bool(scenario.model.kv_lora_rank),
        expert_layers=(layers - dense) * ones,
        casts=cast_waits * ones,
        tp_calls=tp_calls,
        ep_calls=ep_calls,
        joules=joules * cut.wide,
        of_all_ranks=_of_all_ranks(parts),
        head=parts.head.seconds + moves.logits.seconds,
    )
    slowest, slowest_layers, slowest_experts = _slowest(scenario, cut, parts, drafts, _latencies(work, scenario.software.serving))
    return replace(work, slowest=slowest, slowest_layers=slowest_layers, slowest_experts=slowest_experts)


def _of_all_ranks(parts: PassParts) -> FloatColumn:
    """Seconds of what has the tokens of all attention ranks, beside which a router and shared experts are little."""
    if parts.routed is not None:
        return np.asarray((parts.layers - parts.dense) * (parts.routed.seconds + parts.exchanges.experts.seconds))
    assert parts.mlp is not None
    return np.asarray(parts.dense * (parts.mlp.seconds + parts.exchanges.mlp.seconds))


def _calls(parts: PassParts) -> tuple[FloatColumn, FloatColumn]:
    """How many exchanges of tensor and of expert parallelism a pass has."""
    at, several, dense, layers = parts.exchanges.at, parts.exchanges.several, parts.dense, parts.layers
    wide = (at.tp * at.cp).size > 1
    of_experts = wide * float(layers - dense)
    tp_calls = (at.tp.size > 1) * (layers + dense + 1.0) + np.where(several, 0.0, of_experts)
    return np.asarray(tp_calls, np.float64), np.where(several, 2.0 * of_experts, 0.0)


def _slowest(
    scenario: Scenario, cut: Degrees, parts: PassParts, drafts: PassWork | None, latencies: tuple[FloatColumn, FloatColumn]
) -> tuple[FloatColumn, FloatColumn, FloatColumn]:
    """Seconds of the stage that takes longest with the ``latencies`` of a layer and of experts in one, but without them, ``(n,)``: its
    layers, and on the last stage the head and the ``drafts`` that are made there; how many layers it has, and with experts."""
    moves = parts.exchanges
    seconds_a_stage = parts.around.seconds + parts.attention.seconds + parts.glue + parts.around.casts * parts.cast
    seconds_a_stage = seconds_a_stage + moves.reduced.seconds + moves.queries.seconds
    head, more, experts = (
        parts.head.seconds + parts.head.casts * parts.cast + moves.logits.seconds,
        np.zeros_like(seconds_a_stage),
        np.zeros_like(seconds_a_stage),
    )
    if drafts is not None:
        head = head + sum(getattr(drafts, name) for name in BUSY)
        more, experts = drafts.layers, drafts.expert_layers
    dense, routed = seconds_a_stage, seconds_a_stage
    if parts.mlp is not None:
        dense = seconds_a_stage + parts.mlp.seconds + parts.mlp.casts * parts.cast + moves.mlp.seconds
    if parts.routed is not None:
        routed = seconds_a_stage + parts.routed.seconds + parts.routed.casts * parts.cast + moves.experts.seconds
    slowest, longest = np.zeros((3, len(seconds_a_stage))), np.zeros_like(seconds_a_stage)
    for pp in sorted(set(cut.pp.tolist())):
        rows = np.flatnonzero(cut.pp == pp)
        for without, count, last in _stage_kinds(scenario.model, pp):
            seconds = without * dense[rows] + count * routed[rows] + last * head[rows]
            stage = np.stack([seconds, without + count + last * more[rows], count + last * experts[rows]])
            whole = seconds + stage[1] * latencies[0][rows] + stage[2] * latencies[1][rows]
            slowest[:, rows] = np.where(whole > longest[rows], stage, slowest[:, rows])
            longest[rows] = np.maximum(whole, longest[rows])
    return slowest[0], slowest[1], slowest[2]


BUSY = ("products", "attention", "moving", "tp", "cp", "ep")


@lru_cache(maxsize=1024)
def _stage_kinds(model: Model, pp: int) -> frozenset[tuple[int, int, bool]]:
    """Layers without and with experts of a pipeline's stages, and whether it is the last; alike ones once."""
    without = np.cumsum([0, *(not model.has_experts(layer) for layer in range(model.num_hidden_layers))])
    dense = [int(without[layers.stop] - without[layers.start]) for layers in stage_layers(model, pp)]
    return frozenset(
        (own, len(layers) - own, stage == pp - 1) for stage, (own, layers) in enumerate(zip(dense, stage_layers(model, pp), strict=True))
    )


def stage_layers(model: Model, pp: int) -> list[range]:
    """The layers of each stage: as many each, and of those that are left one more on the first ones."""
    layers_a_stage, extra = divmod(model.num_hidden_layers, pp)
    ends = [layers_a_stage * stage + min(stage, extra) for stage in range(pp + 1)]
    return [range(begin, end) for begin, end in pairwise(ends)]


def all_products(scenario: Scenario, cut: Degrees, tokens: FloatColumn, *, decoding: bool) -> list[Product]:
    """The products of one layer of each kind that the model has."""
    model = scenario.model
    products = attention_products(model, cut, tokens, absorbed=decoding)
    if dense_layers(model):
        products += dense_products(model, cut, tokens)
    return products + (expert_products(model, cut, tokens) if model.num_experts else [])
