"""backend=full_astrasim_flattened: the whole step as one graph on the event engine, congestion between all transfers included."""

from __future__ import annotations

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.simulate import runs
from rapid_dse.simulate.quantities import Priced1, one_layout, operators_of, stage_works
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.steps import priced, stage_for, stage_script
from rapid_dse.trace.flattened import LayerPasses


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead.
    """
    runs.check_backend(scenario)
    ready, block = operators_of(scenario, layouts)
    parts = []
    for row in range(len(layouts)):
        one = one_layout(scenario, layouts, row, ready, block)
        parts.append(priced(one, run_step(one)))
    return Priced.concatenate(parts)


def run_step(one: Priced1) -> runs.Run:
    """Runs the step's graph."""
    cluster = one.cluster()
    stage = stage_for(one, cluster, cluster.rank)
    layer = one.layer
    works = stage_works(one, float(layer.forward[0]), float(layer.backward[0]))
    scripts = [stage_script(one, stage.style, number, work, LayerPasses(one.work)) for number, work in enumerate(works)]
    role = np.full(cluster.topology.ranks, -1, np.int64)
    role[cluster.rank] = np.arange(one.degree("pp"))[:, None, None, None]
    return runs.run(one.scenario, stage, scripts, role, "step")
