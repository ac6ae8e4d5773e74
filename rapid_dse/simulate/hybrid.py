"""backend=hybrid: a transformer layer on the event engine, the pipeline and the end of the step in closed form."""

from __future__ import annotations

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.simulate.blocks import measured_layer, run_layer
from rapid_dse.simulate.quantities import one_layout, operators_of
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.runs import check_backend
from rapid_dse.simulate.training import result_columns, step_time


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead.
    """
    check_backend(scenario)
    ready, block = operators_of(scenario, layouts)
    parts = []
    for row in range(len(layouts)):
        one = one_layout(scenario, layouts, row, ready, block)
        times, _ = run_layer(one, one.cluster())
        layer = measured_layer(one, times)
        step = step_time(scenario, one.layout, one.block, one.found, one.groups, one.moved, ready.device, layer)
        parts.append(result_columns(scenario, one.layout, one.block, one.found, one.moved, step))
    return Priced.concatenate(parts)
