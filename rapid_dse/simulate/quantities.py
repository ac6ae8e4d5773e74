"""What one layout's graphs are made of: the seconds and bytes that the closed forms price, as plain numbers.

``seconds`` of transfers are the closed form's; where the network has none (mesh, torus, faulty links) they are those of switches in
its place, and serve only to tell how long the host has, never to time a transfer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.network import closed_form
from rapid_dse.network.cluster import AXES, Cluster, cluster_of
from rapid_dse.simulate.block import Block, framework_block
from rapid_dse.simulate.communication import Traffic, effective_network, gradient_bytes
from rapid_dse.simulate.memory import layer_parameters, vocabulary_parameters
from rapid_dse.simulate.operators import compute_bytes
from rapid_dse.simulate.slots import launched_slot
from rapid_dse.simulate.stages import Stages, split_chunks
from rapid_dse.simulate.strain import by_state
from rapid_dse.simulate.training import (
    Groups,
    Layer,
    Prepared,
    bucket,
    gathered_bytes,
    gradient_sync,
    host_layer_seconds,
    layer_gathers,
    layer_time,
    price_operators,
    scatter_overlap,
    setting,
    weight_gather,
)
from rapid_dse.trace.block import Half, LayerWork
from rapid_dse.trace.pipeline import StageWork


@dataclass(frozen=True)
class Priced1:
    """One layout with all that is known of it before any graph runs; columns have one row."""

    scenario: Scenario
    layout: Layouts
    ready: Prepared
    block: Block
    found: Stages
    groups: Groups
    moved: Traffic
    layer: Layer
    work: LayerWork

    def degree(self, name: str) -> int:
        """A column's only value."""
        return int(getattr(self.layout, name)[0])

    def cluster(self) -> Cluster:
        """Where its ranks stand."""
        degrees = {name: self.degree(name) for name in (*AXES, "ep")}
        return cluster_of(degrees, self.scenario.parallel.order, effective_network(self.scenario))


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
    [(scenario, _)] = by_state(scenario, layout)
    assumed = with_closed_form(scenario)
    found, groups, moved = setting(assumed, layout)
    layer = layer_time(assumed, layout, own, moved, groups)
    work = _layer_work(scenario, layout, own, groups, moved, ready, int(ready.where[row]))
    return Priced1(scenario, layout, ready, own, found, groups, moved, layer, work)


def _layer_work(
    scenario: Scenario, layout: Layouts, block: Block, groups: Groups, moved: Traffic, ready: Prepared, shape: int
) -> LayerWork:
    software, model = scenario.software, scenario.model
    tp, cp, sequence = int(layout.tp[0]), int(layout.cp[0]), bool(layout.sequence_parallel[0])
    full, selective = (bool(layout.recompute[0] == code) for code in (RECOMPUTE_FULL, RECOMPUTE_SELECTIVE))
    core = selective and software.selective_recompute == "core_attention"
    again_attention = (full or core) and software.recomputes_attention
    tokens = float(layout.micro_batch_size[0]) * scenario.workload.seq_len / cp
    stream = tokens * model.hidden_size * compute_bytes(scenario)
    span, network = groups.placement.tp, groups.network
    skew = software.node_skew * float(np.ravel(span.size / span.members[0] - 1)[0])
    gather, scatter, reduce = (
        float(np.ravel(price(stream, span, network))[0]) + skew
        for price in (closed_form.all_gather, closed_form.reduce_scatter, closed_form.all_reduce)
    )
    hops = cp - 1
    return LayerWork(
        halves=_halves(block, ready, shape),
        again=float(block.selective_recompute[0]) if selective and not core else 0.0,
        again_attention=again_attention,
        full=full,
        tp=tp,
        sequence_parallel=sequence and tp > 1,
        stream=stream,
        gather=gather,
        scatter=scatter,
        reduce=reduce,
        skew=skew,
        ring=hops,
        keys=float(moved.cp_bytes[0]) / (3 * hops) if hops else 0.0,
        hop=float(moved.cp_forward[0]) / hops if hops else 0.0,
        tp_hidden=software.tp_overlap if software.async_tp else 0.0,
        tp_backward_hidden=software.tp_backward_overlap,
        cp_hidden=software.cp_overlap,
    )


def _halves(block: Block, ready: Prepared, shape: int) -> tuple[Half, Half]:
    """Attention's and the MLP's seconds; elementwise work and casts are shared out in proportion to the products."""
    alone = ready.alone
    products = alone.matmul_seconds[:, :-1, shape]
    first = products[:, :2].sum(axis=1) / products.sum(axis=1)
    attention_forward, attention_backward = float(block.attention_forward[0]), float(block.attention_backward[0])
    weight = float(block.weight_gradient[0])
    forward = float(block.layer_forward[0]) - attention_forward
    backward = float(block.layer_backward[0]) - attention_backward - weight

    def half(name: str, share: np.ndarray[tuple[int], np.dtype[np.float64]], kernels: bool) -> Half:
        own = (attention_forward, attention_backward) if kernels else (0.0, 0.0)
        return Half(name, forward * float(share[0]), backward * float(share[1]), weight * float(share[2]), *own)

    return half("attention", first, True), half("mlp", 1 - first, False)


def stage_works(one: Priced1, forward: float, backward: float) -> list[StageWork]:
    """What each stage does beside its layers, first to last.

    Args:
        forward: seconds of a layer's forward pass with its transfers, to tell what the host has to wait out; ``backward`` likewise.
    """
    pp, vpp = one.degree("pp"), one.degree("vpp") if one.degree("pp") > 1 else 1
    chunks = split_chunks(one.scenario.model, one.scenario.software.pipeline_split, pp, vpp)
    return [_stage_work(one, stage, chunks[stage], forward, backward) for stage in range(pp)]


def _stage_work(one: Priced1, stage: int, chunks: list[int], forward: float, backward: float) -> StageWork:
    scenario, layout, groups = with_closed_form(one.scenario), one.layout, one.groups
    software, layers, pp = scenario.software, sum(chunks), one.degree("pp")
    parameters = _parameters(one, stage, layers)
    each = one.degree("zero") >= 2 and software.reduce_each_micro_batch
    ranks, zero = one.degree("dp") * one.degree("cp"), one.degree("zero")
    left = parameters - layers * float(layer_parameters(scenario, layout)[0]) if each else parameters
    sent = np.array([left * gradient_bytes(scenario)])
    reduce = float(gradient_sync(scenario, layout, np.maximum(sent, 1.0), groups)[0])
    calls = int(np.ceil(sent / bucket(scenario, layout))[0])
    gather = float(weight_gather(scenario, layout, np.array([parameters]), np.array([layers]), groups)[0])
    per_layer, during = (float(column[0]) for column in layer_gathers(scenario, layout, groups))
    held = parameters / (ranks if zero >= 1 else 1)
    head, table = stage == pp - 1, float(vocabulary_parameters(scenario, layout)[0]) * gathered_bytes(scenario)
    return StageWork(
        chunks=tuple(chunks),
        embedding=float(one.block.embedding[0]) if stage == 0 else 0.0,
        head_forward=float(one.block.head_forward[0]) if head else 0.0,
        head_backward=float(one.block.head_backward[0]) if head else 0.0,
        stall=_stall(one, layers, stage, forward, backward),
        host_step=software.host_step,
        optimizer=float(np.ravel(one.ready.device.elementwise(np.array([held * software.optimizer_traffic])))[0]),
        ranks=ranks,
        zero=zero,
        sent=float(sent[0]) if ranks > 1 else 0.0,
        sync=reduce if ranks > 1 else 0.0,
        calls=max(1, calls),
        gathered=parameters * compute_bytes(scenario) if zero in (1, 2) else 0.0,
        gather=gather,
        table=table if zero >= 3 and (stage == 0 or head) else 0.0,
        table_gather=float(np.ravel(closed_form.all_gather(table, groups.placement.gradient, groups.network))[0]),
        layer_gathered=float(layer_parameters(scenario, layout)[0]) * gathered_bytes(scenario) if zero >= 3 else 0.0,
        layer_gather=per_layer,
        layer_scattered=float(layer_parameters(scenario, layout)[0]) * gradient_bytes(scenario) if each else 0.0,
        layer_scatter=during - per_layer if each else 0.0,
        dp_hidden=scatter_overlap(software) if zero == 1 else software.dp_overlap,
        gather_hidden=software.parameter_gather_overlap,
        wait=max(0.0, calls * software.strained_all_reduce_wait * (ranks - 1) - software.dp_overlap * layers * backward)
        if zero == 0
        else 0.0,
        tree=software.strained_trees,
    )


def _parameters(one: Priced1, stage: int, layers: int) -> float:
    """Parameters that a rank of a stage holds."""
    scenario, layout, last = one.scenario, one.layout, one.degree("pp") - 1
    table = float(vocabulary_parameters(scenario, layout)[0])
    tables = (stage == 0) + (stage == last) - (stage == 0 == last and scenario.model.tie_word_embeddings)
    learned = scenario.model.position_embedding == "learned" and stage == 0
    positions = scenario.workload.seq_len * scenario.model.hidden_size if learned else 0.0
    return layers * float(layer_parameters(scenario, layout)[0]) + tables * table + positions


def _stall(one: Priced1, layers: int, stage: int, forward: float, backward: float) -> float:
    """Seconds of a micro-batch that a stage's device waits for the host's launches."""
    software, pp = one.scenario.software, one.degree("pp")
    head = float(one.block.head_forward[0] + one.block.head_backward[0]) if stage == pp - 1 else 0.0
    sends = 2.0 * one.degree("vpp")
    hops = (sends - (stage in (0, pp - 1))) * float(one.moved.pp_hop[0]) + sends * software.send_receive if pp > 1 else 0.0
    layer = forward + backward + float(one.layer.dp[0])
    device = layers * layer + head + (float(one.block.embedding[0]) if stage == 0 else 0.0) + hops
    host = layers * float(host_layer_seconds(one.scenario, one.layout)[0]) + software.host_micro_batch
    return float(launched_slot(software, np.array(device), np.array(host))) - device
