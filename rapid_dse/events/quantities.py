"""What one layout's graphs are made of: the seconds and bytes that the closed forms price, as plain numbers.

``seconds`` of transfers are the closed form's; where the network has none (mesh, torus, faulty links) they are those of switches in
its place, and serve only to tell how long the host has, never to time a transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.machine import AXES, Machine, cluster_of
from rapid_dse.events.programs.end_programs import EndWork
from rapid_dse.events.programs.layer_program import Exchange, Half, LayerWork
from rapid_dse.events.programs.stage_work import SharedWeights, StageWork
from rapid_dse.interconnect import closed_form
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.parallel import schedules
from rapid_dse.parallel.expert_groups import ExpertGroups, expert_groups
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.parallel.schedules.schedule import Schedule
from rapid_dse.parallel.span import Halves, Span
from rapid_dse.simulate.arrangement import Arrangement, arrangement, groups_of
from rapid_dse.simulate.communication import TensorParallel, Traffic, effective_network, exchanged, gradient_bytes, node_wait, routed_bytes
from rapid_dse.simulate.layer import Layer, layer_time, slowed_block
from rapid_dse.simulate.layer_work import Block, framework_block
from rapid_dse.simulate.memory import Weights, layer_weights, reduces_each, vocabulary_parameters
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.replicated import replicated_bytes
from rapid_dse.simulate.sharding import (
    ShardGroups,
    bucket,
    embedding_weights,
    gathered_bytes,
    gradient_sync,
    scatter_overlap,
    sharded_passes,
    weight_gather,
)
from rapid_dse.simulate.slots import host_layer_seconds, launched_slot
from rapid_dse.simulate.stages import Split
from rapid_dse.simulate.step import update_seconds
from rapid_dse.simulate.training import Prepared, price_operators
from rapid_dse.simulate.vocabulary import LOSS_REDUCTIONS, loss_bytes, tied_table

FloatColumn = NDArray[np.float64]

GRADIENTS, EXPERT_GRADIENTS = "gradients", "expert gradients"  # groups that share dense weights, and experts
REPLICAS = " of replicas"  # after a group's name: the ranks that hold the same shard, where each of several groups has all shards


@dataclass(frozen=True)
class Priced1:
    """One layout with all that is known of it before any graph runs; columns have one row."""

    scenario: Scenario
    layout: Layouts
    ready: Prepared
    block: Block
    groups: ShardGroups
    arranged: Arrangement
    layer: Layer
    work: LayerWork
    around: EndWork

    def degree(self, name: str) -> int:
        """A column's only value."""
        return int(getattr(self.layout, name)[0])

    @property
    def schedule(self) -> Schedule:
        """Its pipeline schedule."""
        return schedules.SCHEDULE_CLASSES[self.degree("schedule")]

    def _degrees(self) -> dict[str, int]:
        return {name: self.degree(name) for name in (*AXES, "ep")} | {"etp": self.degree("expert_tp")}

    def cluster(self) -> Machine:
        """Where its ranks stand."""
        return cluster_of(self._degrees(), self.scenario.parallel.order, effective_network(self.scenario))

    @property
    def experts(self) -> ExpertGroups:
        """Which of a stage's ranks exchange tokens, and which hold the same experts."""
        return expert_groups(self._degrees(), self.scenario.parallel.order, self.scenario.hw.network)


def has_closed_form(network: Network) -> bool:
    """Whether closed forms price this network."""
    try:
        closed_form.require_closed_form(network)
    except ValueError:
        return False
    return True


def with_closed_form(scenario: Scenario) -> Scenario:
    """The scenario itself, or one with switches where its network has no closed form."""
    network = scenario.hw.network
    if has_closed_form(network):
        return scenario
    dimensions = tuple(
        d.model_copy(update={"topology": "switch", "oversubscription": 1.0})
        if d.topology in ("mesh", "torus") or d.oversubscription > 1
        else d
        for d in network.dimensions
    )
    healthy = network.model_copy(update={"dimensions": dimensions, "faulty_links": ()})
    return scenario.model_copy(update={"hw": scenario.hw.model_copy(update={"network": healthy})})


def operators_of(scenario: Scenario, layouts: Layouts) -> tuple[Prepared, Block]:
    """The operators of all layouts, priced together; the block has a row a layout.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    ready = price_operators(scenario, layouts)
    return ready, framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)


def one_layout(scenario: Scenario, layouts: Layouts, row: int, ready: Prepared, block: Block) -> Priced1:
    """All about the layout at ``row``."""
    layout, own = layouts.take(slice(row, row + 1)), block.take(np.array([row]))
    assumed = with_closed_form(scenario)
    groups, arranged = groups_of(assumed, layout), arrangement(assumed, layout)
    layer = layer_time(assumed, layout, own, arranged)
    slowed = slowed_block(scenario.software, layout, own, layer)
    work = _layer_work(scenario, layout, slowed, groups, arranged.traffic, ready, int(ready.where[row]))
    return Priced1(scenario, layout, ready, own, groups, arranged, layer, work, _end_work(scenario, layout, own, arranged, work))


def _end_work(scenario: Scenario, layout: Layouts, block: Block, arranged: Arrangement, work: LayerWork) -> EndWork:
    """Embedding, head and loss."""
    weight = float(block.head_weight_gradient[0])
    head = Half("head", float(block.head_forward[0]), float(block.head_backward[0]) - weight, weight, (work.stream,))
    skew = work.stream.skew
    loss = Exchange(float(loss_bytes(scenario, layout)[0]), 0.0, 0.0, 0.0, _seconds(arranged.vocabulary.loss), 0.0, skew=skew)
    size = float(replicated_bytes(scenario, layout, arranged.stages.layers[0])[0])  # the first stage's, which ends the step
    whole = Exchange(size, 0.0, 0.0, 0.0, _seconds(arranged.end.replicated), 0.0)
    return EndWork(
        embedding=float(block.embedding[0]),
        head=head,
        loss=Half("loss", 0.0, 0.0, 0.0, (loss,)),
        reductions=LOSS_REDUCTIONS,
        replicated=Half("replicated", 0.0, 0.0, 0.0, (whole,)),
        hidden=scenario.software.overlap.tp_backward_overlap,
    )


def _layer_work(
    scenario: Scenario, layout: Layouts, block: Block, groups: ShardGroups, moved: Traffic, ready: Prepared, shape: int
) -> LayerWork:
    software = scenario.software
    tp, cp, sequence = int(layout.tp[0]), int(layout.cp[0]), bool(layout.sequence_parallel[0])
    full, selective = (bool(layout.recompute[0] == code) for code in (RECOMPUTE_FULL, RECOMPUTE_SELECTIVE))
    core = selective and software.memory.selective_recompute == "core_attention"
    again_attention = (full or core) and software.memory.recomputes_attention
    hops = cp - 1
    return LayerWork(
        halves=_halves(scenario, layout, block, groups, moved, ready.alone.matmul_seconds[:, :-1, shape]),
        again=float(block.selective_recompute[0]) if selective and not core else 0.0,
        again_attention=again_attention,
        full=full,
        tp=tp,
        sequence_parallel=sequence and tp > 1,
        ring=hops,
        keys=float(moved.cp_keys[0]) if hops else 0.0,
        hop=float(moved.cp_hop.seconds[0]) if hops else 0.0,
        stream=_exchange(scenario, layout, moved.stream, groups.placement.tp),
        tp_hidden=software.overlap.tp_overlap if software.overlap.async_tp else 0.0,
        tp_backward_hidden=software.overlap.tp_backward_overlap,
        cp_hidden=software.overlap.cp_overlap,
    )


def _exchange(scenario: Scenario, layout: Layouts, each: TensorParallel, group: Span) -> Exchange:
    return Exchange(
        float(each.size[0]),
        float(each.gathered[0]),
        gather=_seconds(each.gather),
        scatter=_seconds(each.scatter),
        reduce=_seconds(each.reduce),
        again=_seconds(each.again),
        scattered=bool(each.scattered(layout.sequence_parallel)[0]),
        group="tp" if each.gathers is None else "etp",
        skew=float(np.ravel(node_wait(scenario, group))[0]),
    )


def _halves(
    scenario: Scenario, layout: Layouts, block: Block, groups: ShardGroups, moved: Traffic, products: NDArray[np.float64]
) -> tuple[Half, Half]:
    """Attention's and the MLP's seconds; elementwise work and casts are shared out in proportion to the products' ``(3, n_matmuls)``."""
    first = products[:, :2].sum(axis=1) / products.sum(axis=1)
    attention_forward, attention_backward = float(block.attention_forward[0]), float(block.attention_backward[0])
    weight = float(block.weight_gradient[0])
    forward = float(block.layer_forward[0]) - attention_forward
    backward = float(block.layer_backward[0]) - attention_backward - weight
    tp, etp = groups.placement.tp, groups.placement.etp
    around = [
        tuple(_exchange(scenario, layout, each, tp if each.gathers is None else etp) for each in half)
        for half in exchanged(scenario, layout, groups.placement, groups.network)
    ]

    def half(number: int, share: NDArray[np.float64]) -> Half:
        seconds = forward * float(share[0]), backward * float(share[1]), weight * float(share[2])
        return Half(("attention", "mlp")[number], *seconds, around[number])

    attention = replace(half(0, first), attention_forward=attention_forward, attention_backward=attention_backward)
    mlp = replace(half(1, 1 - first), spared=float(block.spared[0]))
    if not scenario.model.num_experts:
        return attention, mlp
    return attention, replace(mlp, routed=float(routed_bytes(scenario, layout)[0]), route=float(moved.ep_exchange.seconds[0]))


def _seconds(one: Transfer) -> float:
    """How long a transfer of the only layout takes alone."""
    return float(np.ravel(one.seconds)[0])


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of the passes that stages are made of, transfers and all: of one layer, of all of the embedding's, of the head's."""

    forward: float
    backward: float
    embedding: float
    head: float


def closed_form_passes(one: Priced1) -> PassSeconds:
    """As closed forms have them."""
    around = one.layer.ends.beside(one.block)
    seconds = (
        one.layer.forward,
        one.layer.backward,
        around.embedding + around.embedding_backward,
        around.head_forward + around.head_backward,
    )
    return PassSeconds(*(float(np.ravel(each)[0]) for each in seconds))


def stage_works(one: Priced1, passes: PassSeconds) -> list[StageWork]:
    """What each stage does beside its passes, first to last; ``passes`` tell what the host has to wait out."""
    pp, held = one.degree("pp"), one.degree("chunks") if one.degree("pp") > 1 else 1
    chunks = Split.of(one.scenario).chunks(pp, held, one.schedule.stage_map)
    return [_stage_work(one, stage, chunks[stage], passes) for stage in range(pp)]


def _stage_work(one: Priced1, stage: int, chunks: list[int], passes: PassSeconds) -> StageWork:
    scenario, layout, groups = with_closed_form(one.scenario), one.layout, one.groups
    software, layers = scenario.software, sum(chunks)
    weights = _weights(one, stage, layers)
    each = bool(reduces_each(software, layout)[0])
    zero, ranks = one.degree("zero"), one.degree("dp") * one.degree("cp")
    left = weights.times(0.0 if each else gradient_bytes(scenario))
    copies = ranks if zero == 0 else ranks // int(layout.shards[0])  # ranks that sum the same gradients in an all-reduce
    held = one.degree("expert_copies")  # ranks that hold the same experts
    of_experts = held if zero == 0 else held // one.degree("expert_shards")
    others = copies - 1 + (0 if weights.experts is None else of_experts - 1)
    sent = np.ravel(left.total)
    calls = int(np.ceil(sent / bucket(scenario, layout))[0])
    tied = tied_table(scenario, layout, groups.placement, groups.network)
    head, apart = stage == one.degree("head_stage"), one.degree("head_stage") > 0 or not scenario.model.tie_word_embeddings
    table = Weights(vocabulary_parameters(scenario, layout))
    return StageWork(
        chunks=tuple(chunks),
        stall=_stall(one, layers, stage, passes),
        host_step=software.host.host_step,
        optimizer=float(np.ravel(update_seconds(scenario, layout, weights, one.ready.device))[0]),
        zero=zero,
        shared=_shared(one, weights, left, layers),
        calls=max(1, calls),
        embedding=_table(one, embedding_weights(scenario, layout)) if stage == 0 else None,
        head=_table(one, table) if head and apart else None,
        tied=float(tied.size[0]) if stage == 0 or head else 0.0,
        tied_reduce=_seconds(tied.reduction),
        dp_hidden=scatter_overlap(software) if zero == 1 else software.overlap.dp_overlap,
        gather_hidden=software.overlap.parameter_gather_overlap,
        wait=max(0.0, calls * groups.cluster.all_reduce_wait * others - software.overlap.dp_overlap * layers * passes.backward),
        tree=groups.cluster.trees,
    )


def _shared(one: Priced1, weights: Weights, left: Weights, layers: int) -> tuple[SharedWeights, ...]:
    """What moves of a stage's ``weights`` in each group that shares some; ``left`` bytes of gradients are reduced at the step's end."""
    scenario, layout, placement = with_closed_form(one.scenario), one.layout, one.groups.placement
    of_layer = layer_weights(scenario, layout)
    groups = (
        (GRADIENTS, "dense", placement.gradient, placement.halves),
        (EXPERT_GRADIENTS, "experts", placement.expert_gradient, placement.expert_halves),
    )
    zero, shared = one.degree("zero"), []
    for name, kind, span, halves in groups:
        if getattr(weights, kind) is None or float(np.ravel(span.size)[0]) == 1:
            continue
        # as if the group's weights were all there are
        shard = span if halves is None else halves.shard
        alone = replace(one.groups, placement=replace(placement, gradient=shard, halves=None))
        cut = replace(one.groups, placement=replace(placement, gradient=span, halves=halves))
        held, layer, sent = (Weights(np.atleast_1d(getattr(each, kind))) for each in (weights, of_layer, left))
        sync = gradient_sync(scenario, layout, sent, alone).seconds
        moved = {
            "sent": sent.dense,
            "sync": sync,
            "gathered": held.dense * compute_bytes(scenario) * (zero in (1, 2)),
            "gather": weight_gather(scenario, layout, held, np.array([layers]), alone).seconds,
            "across": gradient_sync(scenario, layout, sent, cut).seconds - sync,
        }
        shared.append(_shared_weights(name, halves, moved | _each_time(one, layer, alone, cut)))
    return tuple(shared)


def _shared_weights(name: str, halves: Halves | None, moved: Mapping[str, FloatColumn]) -> SharedWeights:
    """Those of a group by its name; ``moved``: fields of ``SharedWeights``, columns of one row."""
    numbers = {key: float(np.ravel(column)[0]) for key, column in moved.items()}
    return SharedWeights(name, **numbers, replicas="" if halves is None else name + REPLICAS)


def _each_time(one: Priced1, weights: Weights, alone: ShardGroups, cut: ShardGroups) -> dict[str, FloatColumn]:
    """What moves of some dense ``weights`` with each pass, as fields of ``SharedWeights``.

    Args:
        alone: the group that shares one copy of the shards; ``cut``: with those that hold the same shard.
    """
    scenario, layout = with_closed_form(one.scenario), one.layout
    passes = sharded_passes(scenario, layout, alone, weights)
    across = sharded_passes(scenario, layout, cut, weights).backward.seconds - passes.backward.seconds
    return {
        "layer_gathered": weights.dense * gathered_bytes(scenario) * (layout.zero >= 3),
        "layer_gather": passes.forward.seconds,
        "layer_scattered": weights.dense * gradient_bytes(scenario) * reduces_each(scenario.software, layout),
        "layer_scatter": passes.backward.seconds,
        "shards": alone.placement.gradient.size,
        "layer_across": across,
    }


def _table(one: Priced1, weights: Weights) -> SharedWeights | None:
    """What moves of embedding table or head with each pass; None where ZeRO does not shard what passes read or give."""
    placement = one.groups.placement
    if one.degree("zero") < 2 or float(np.ravel(placement.gradient.size)[0]) == 1:
        return None
    alone = replace(one.groups, placement=replace(placement, gradient=placement.shard, halves=None))
    return _shared_weights(GRADIENTS, placement.halves, _each_time(one, weights, alone, one.groups))


def _weights(one: Priced1, stage: int, layers: int) -> Weights:
    """Parameters that a rank of a stage holds."""
    scenario, layout, last = one.scenario, one.layout, one.degree("head_stage")
    table = float(vocabulary_parameters(scenario, layout)[0])
    tables = (stage == 0) + (stage == last) - (stage == 0 == last and scenario.model.tie_word_embeddings)
    learned = scenario.model.position_embedding == "learned" and stage == 0
    positions = scenario.workload.seq_len * scenario.model.hidden_size if learned else 0.0
    held = layer_weights(scenario, layout).times(layers)
    return Weights(held.dense + tables * table + positions, held.experts)


def _stall(one: Priced1, layers: int, stage: int, passes: PassSeconds) -> float:
    """Seconds of a micro-batch that a stage's device waits for the host's launches."""
    software, pp = one.scenario.software, one.degree("pp")
    tables = one.layer.tables
    embedding, head = passes.embedding + float(tables.embedding[0]), passes.head + float(tables.head[0])
    around = embedding * (stage == 0) + head * (stage == one.degree("head_stage"))
    chunks = one.degree("chunks")
    sends = float(one.schedule.stage_map.sends(np.array(stage), np.array(pp), np.array(chunks)))
    hops = sends * _seconds(one.arranged.traffic.pp_hop) + 2.0 * chunks * software.pipeline.send_receive if pp > 1 else 0.0
    layer = passes.forward + passes.backward + float(one.layer.dp[0])
    device = layers * layer + around + hops
    host = layers * float(host_layer_seconds(one.scenario, one.layout)[0]) + software.host.host_micro_batch
    return float(launched_slot(software, np.array(device), np.array(host))) - device
