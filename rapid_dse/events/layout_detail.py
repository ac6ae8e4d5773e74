"""One layout with all that its graphs are made from: its operators priced, its groups placed, its layers in closed form.

``seconds`` of transfers are the closed form's; where the network has none (mesh, torus, faulty links) they are those of switches in
its place, and serve only to tell how long the host has, never to time a transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.layer_quantities import layer_works, seconds_alone
from rapid_dse.events.machine import AXES, Machine, cluster_of
from rapid_dse.events.programs.end_programs import EndWork
from rapid_dse.events.programs.layer_program import Exchange, Half, LayerWork
from rapid_dse.interconnect.closed_form import with_closed_form
from rapid_dse.model.architecture import architecture_of
from rapid_dse.parallel import schedules
from rapid_dse.parallel.expert_groups import ExpertGroups, expert_groups
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.schedules.schedule import Schedule
from rapid_dse.simulate.arrangement import Arrangement, arrangement, groups_of
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.layer import Layers, layer_time, slowed_block
from rapid_dse.simulate.layer_work import Block, LayerBlock, framework_block
from rapid_dse.simulate.replicated import replicated_bytes
from rapid_dse.simulate.shard_copies import with_copies
from rapid_dse.simulate.sharding import ShardGroups
from rapid_dse.simulate.training import Prepared, price_operators
from rapid_dse.simulate.vocabulary import LOSS_REDUCTIONS, loss_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayoutDetail:
    """One layout with all that is known of it before any graph runs; columns have one row. ``works``: a layer of each kind."""

    scenario: Scenario
    layout: Layouts
    ready: Prepared
    block: Block
    groups: ShardGroups
    arranged: Arrangement
    layers: Layers
    works: tuple[LayerWork, ...]
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


def operators_of(scenario: Scenario, layouts: Layouts) -> tuple[Prepared, Block]:
    """The operators of all layouts, priced together; the block has a row a layout.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    ready = price_operators(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)
    return ready, with_copies(scenario, layouts, block, ready.device)


def one_layout(scenario: Scenario, layouts: Layouts, row: int, ready: Prepared, block: Block) -> LayoutDetail:
    """All about the layout at ``row``."""
    layout, own = layouts.take(slice(row, row + 1)), block.take(np.array([row]))
    assumed = with_closed_form(scenario)
    groups, arranged = groups_of(assumed, layout), arrangement(assumed, layout)
    layers = layer_time(assumed, layout, own, arranged)
    works = layer_works(scenario, layout, slowed(scenario, layout, own, layers), (groups, arranged), (ready, int(ready.where[row])))
    works = tuple(
        replace(work, copies_forward=float(layer.copies_forward[0]), copies_backward=float(layer.copies_backward[0]))
        for work, layer in zip(works, layers.of_kinds, strict=True)
    )
    around = _end_work(scenario, layout, own, arranged, works[0])
    return LayoutDetail(scenario, layout, ready, own, groups, arranged, layers, works, around)


def slowed(scenario: Scenario, layout: Layouts, block: Block, layers: Layers) -> list[LayerBlock]:
    """Layers of each kind with what the transfers that they hide make them take longer."""
    return [slowed_block(scenario, layout, own, layer) for own, layer in zip(block.layers, layers.of_kinds, strict=True)]


def _end_work(scenario: Scenario, layout: Layouts, block: Block, arranged: Arrangement, work: LayerWork) -> EndWork:
    """Embedding, head and loss."""
    weight, trained = float(block.head_weight_gradient[0]), scenario.workload.trains_all
    stream = work.stream if trained else replace(work.stream, again=0.0)
    around = (stream,) if architecture_of(scenario).shares_ends else ()
    read = tuple(end.times(1 + architecture_of(scenario).predictions) for end in around)
    head = Half("head", float(block.head_forward[0]), float(block.head_backward[0]) - weight, weight, read)
    loss = Exchange(
        float(loss_bytes(scenario, layout)[0]), 0.0, 0.0, 0.0, seconds_alone(arranged.vocabulary.loss), 0.0, skew=work.stream.skew
    )
    size = float(replicated_bytes(scenario, layout, arranged.stages.of_kinds[:, 0])[0])  # the first stage's, which ends the step
    whole = Exchange(size, 0.0, 0.0, 0.0, seconds_alone(arranged.end.replicated), 0.0)
    return EndWork(
        embedding=float(block.embedding[0]),
        looked_up=Half("look-up", 0.0, 0.0, 0.0, around),
        head=head,
        loss=Half("loss", 0.0, 0.0, 0.0, (loss,)),
        reductions=LOSS_REDUCTIONS,
        replicated=Half("replicated", 0.0, 0.0, 0.0, (whole,)),
        hidden=scenario.software.overlap.tp_backward_overlap,
        trained=trained,
    )


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of the passes that stages are made of, transfers and all: of a layer of each kind (``layers``, forward and backward), of all
    of the embedding's, of the head's."""

    layers: tuple[tuple[float, float], ...]
    embedding: float
    head: float

    def backward(self, kinds: Sequence[int]) -> float:
        """Of the backward passes of layers of such kinds."""
        return sum(self.layers[kind][1] for kind in kinds)


def closed_form_passes(one: LayoutDetail) -> PassSeconds:
    """As closed forms have them."""
    around = one.layers.ends.added_to(one.block)
    layers = tuple((float(layer.forward[0]), float(layer.backward[0])) for layer in one.layers.of_kinds)
    ends = around.embedding + around.embedding_backward, around.head_forward + around.head_backward
    return PassSeconds(layers, *(float(np.ravel(end)[0]) for end in ends))
