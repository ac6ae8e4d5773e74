"""backend=full_astrasim_flattened: the whole step as one graph on the event engine, congestion between all transfers included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.layout_detail import LayoutDetail, closed_form_passes
from rapid_dse.events.one_by_one import Watch, price_each
from rapid_dse.events.programs.whole_step import LayerPasses
from rapid_dse.events.quantities import stage_works
from rapid_dse.events.step_runs import priced, stage_for, stage_script
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.results import Priced


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
    runs.check_engine(one.scenario, one.degree("ep"), cluster.topology)


def run_step(one: LayoutDetail) -> tuple[Priced, dict[str, runs.Run]]:
    """The results of one layout, and the run of its graph."""
    cluster = one.cluster()
    stage = stage_for(one, cluster, cluster.rank, one.experts)
    passes = LayerPasses(one.works, one.around)
    works = stage_works(one, closed_form_passes(one))
    scripts = [stage_script(one, stage.style, number, work, passes) for number, work in enumerate(works)]
    role = np.full(cluster.topology.ranks, -1, np.int64)
    role[cluster.rank] = np.arange(one.degree("pp"))[:, None, None, None]
    done = runs.run(one.scenario, stage, scripts, role, "step")
    return priced(one, done), {"step": done}
