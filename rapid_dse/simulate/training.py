"""Training layouts priced in closed form: from a scenario and a table of layouts to result columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Shared
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel, operator_model
from rapid_dse.interconnect import closed_form
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.simulate.account import joules_of, results
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.layer import layer_columns, layers_alone
from rapid_dse.simulate.layer_kinds import LayerKinds, micro_batch_times, tables_of
from rapid_dse.simulate.layer_work import Block, distinct_shapes, framework_block
from rapid_dse.simulate.memory import shared_memory
from rapid_dse.simulate.operator_times import Operators, operators
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.shard_copies import with_copies
from rapid_dse.simulate.slowest import slowest_gpu
from rapid_dse.simulate.step import passes_of_layout, shared_steps, step_time
from rapid_dse.simulate.uneven import pass_seconds

FloatColumn = NDArray[np.float64]

CHUNK = 262144  # layouts priced together: more share more, and what is worked out by layouts goes block by block anyway


@dataclass(frozen=True)
class Prepared:
    """What the operators of a table's layouts cost alone; ``where`` says which shape each layout has, ``(n_layouts,)``."""

    device: OperatorModel
    shape: MicroBatch
    where: IntColumn
    alone: Operators


def prepare(scenario: Scenario, layouts: Layouts) -> Prepared:
    """Prices the operators of all distinct micro-batch shapes.

    Raises:
        ValueError: where the network has no closed form, the chip lacks the precision, or the model is none that can be priced.
    """
    closed_form.require_closed_form(scenario.hw.network)
    return price_operators(scenario, layouts)


def price_operators(scenario: Scenario, layouts: Layouts) -> Prepared:
    """Prices the operators of all distinct micro-batch shapes, whatever the network.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    device = operator_model(scenario.hw)
    shape, where = distinct_shapes(layouts, scenario.workload, "num_gpus")
    gpus = np.ones(len(shape.tp))
    gpus[where] = layouts.num_gpus
    return Prepared(device, shape, where, operators(scenario, shape, device, slowest_gpu(scenario.cluster, gpus)))


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts in closed form.

    Returns:
        result columns, ``(n_layouts,)`` each, SI units.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    ready = prepare(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device)
    chunks = [slice(start, start + CHUNK) for start in range(0, max(1, len(layouts)), CHUNK)]
    tables = [(layouts, ready.where)] if len(chunks) == 1 else ((layouts.take(rows), ready.where[rows]) for rows in chunks)
    pieces = (piece for table, where in tables for piece in _price_chunk(scenario, table, block, where, ready.device))
    return Priced.in_pieces(len(layouts), pieces)


def step_seconds(scenario: Scenario, layouts: Layouts, ready: Prepared) -> FloatColumn:
    """Step times alone, s, ``(n_layouts,)``, of layouts whose operators are priced: what a fit needs, many times over."""
    shapes = framework_block(scenario, ready.shape, ready.alone, ready.device)
    block = with_copies(scenario, layouts, shapes.take(ready.where), ready.device)
    return step_time(scenario, layouts, block, arrangement(scenario, layouts), ready.device).total


def pipeline_passes(scenario: Scenario, layout: Layouts) -> FloatColumn:
    """Seconds of each pass of one layout's pipeline, by kind and place (``uneven.pass_seconds``).

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    ready = prepare(scenario, layout)
    shapes = framework_block(scenario, ready.shape, ready.alone, ready.device)
    block, arranged = with_copies(scenario, layout, shapes.take(ready.where), ready.device), arrangement(scenario, layout)
    return pass_seconds(scenario, int(layout.schedule[0]), passes_of_layout(scenario, layout, block, arranged))


def _price_chunk(scenario: Scenario, layouts: Layouts, shapes: Block, where: IntColumn, device: OperatorModel) -> Iterator[Priced]:
    """Prices layouts, whose block is the one at ``where`` in ``shapes``; the layers of layouts that are alike in them are priced once."""
    arranged = arrangement(scenario, layouts)
    first, kind = layouts.alike.by(*layer_columns(scenario))
    some, there = layouts.take(first), arranged.take(first)
    kinds = LayerKinds(kind, some, there, with_copies(scenario, some, shapes.take(where[first]), device))
    alone = layers_alone(scenario, some, kinds.block, there)
    times = Shared(micro_batch_times(scenario, kinds, alone.of_kinds, alone.ends), kind)
    tables = tables_of(scenario, layouts, arranged, kind, alone)
    steps = shared_steps(scenario, layouts, arranged, device, (times, tables))
    return results(
        scenario, layouts, steps, joules_of(scenario, layouts, kinds, arranged), shared_memory(scenario, layouts, arranged.of_stages)
    )
