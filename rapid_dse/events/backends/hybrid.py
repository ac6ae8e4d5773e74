"""backend=hybrid: a transformer layer on the event engine, the pipeline and the end of the step in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.layer_runs import blocks_of, check_failed_links, faulty_blocks, measured_layers, run_layers
from rapid_dse.events.layout_detail import LayoutDetail
from rapid_dse.events.machine import Machine
from rapid_dse.events.one_by_one import Watch, price_each
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.account import result_columns
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.step import step_time


def price(scenario: Scenario, layouts: Layouts, watch: Watch | None = None, names: Sequence[str] | None = None) -> Priced:
    """Prices legal, resolved layouts one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead.
    """
    return price_each(scenario, layouts, check, run_step, watch, names)


def check(one: LayoutDetail) -> None:
    """Refuses a layout that this backend cannot run; ``ValueError`` with what to use instead."""
    cluster = one.cluster()
    runs.check_links(cluster)
    _require_closed_form_outside(one, cluster)
    experts = one.experts
    check_failed_links(cluster, experts)
    runs.check_engine(one.scenario, one.degree("ep"), cluster.part(cluster.rank[0, experts.blocks[0]])[0].topology)


def run_step(one: LayoutDetail) -> tuple[Priced, dict[str, runs.Run]]:
    """The results of one layout, and the runs of its blocks: a healthy one, or those with faulty links."""
    cluster = one.cluster()
    blocks = list(faulty_blocks(cluster, one.experts)) or [(0, 0)]
    times_of_kinds = [run_layers(one, cluster, block) for block in blocks]
    # every other stage and replica waits for the slowest
    of_kinds = zip(*(times for times, _ in times_of_kinds), strict=True)
    slowest = [max(kind, key=lambda times: times.seconds("forward") + times.seconds("backward")) for kind in of_kinds]
    step = step_time(one.scenario, one.layout, one.block, one.arranged, one.ready.device, measured_layers(one, slowest))
    priced = result_columns(one.scenario, one.layout, one.block, one.arranged, step)
    return priced, {name: run for _, kept in times_of_kinds for name, run in kept.items()}


def _require_closed_form_outside(one: LayoutDetail, cluster: Machine) -> None:
    """Refuses networks and faults that only closed forms would meet here: those of gradients and of the pipeline.

    Raises:
        ValueError: with the key and the backends that take it.
    """
    network, outside = one.scenario.hw.network, "allowed with it: backend=full_astrasim_hierarchical, full_astrasim_flattened"
    spans = (one.groups.placement.gradient, one.groups.placement.pp)
    for index, dimension in enumerate(network.dimensions):
        alone = network.model_copy(update={"dimensions": (dimension,), "faulty_links": ()})
        try:
            closed_form.require_closed_form(alone)
        except ValueError:
            if any(float(np.ravel(span.members[index])[0]) > 1 for span in spans):
                raise ValueError(
                    f"hw.network.dimensions.{index}.topology={dimension.topology} carries gradients or stages, which hybrid prices in "
                    f"closed form, and it has none; {outside}"
                ) from None
    for fault in network.faulty_links:
        if not blocks_of(cluster, one.experts, fault):
            raise ValueError(
                f"hw.network.faulty_links has {list(fault)}, which no tensor-, context- or expert-parallel group crosses: "
                f"hybrid prices all else in closed form; {outside}"
            )
