"""From a scenario and layouts to results: one entry for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.run import Artifacts
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.results import Priced

if TYPE_CHECKING:
    from rapid_dse.events.one_by_one import Watch

BACKENDS = {
    "analytical": "rapid_dse.simulate.training",
    "hybrid": "rapid_dse.events.backends.hybrid",
    "full_astrasim_hierarchical": "rapid_dse.events.backends.hierarchical",
    "full_astrasim_flattened": "rapid_dse.events.backends.flattened",
}
SERVED = dict.fromkeys(BACKENDS, "rapid_dse.events.served_rows") | {"analytical": "rapid_dse.simulate.inference.pricing"}


def price(scenario: Scenario, layouts: Layouts, watch: Watch | None = None, names: Sequence[str] | None = None) -> Priced:
    """Prices legal, resolved layouts under ``scenario.backend``, on chips that ``hw.power_limit`` may hold below their own.

    Args:
        watch: is shown the runs of each layout by name, where the backend is event-driven.
        names: a folder a layout for what ``backend.artifacts`` keeps of it; None: the backend's own folder, or numbers in it.

    Raises:
        ValueError: where the backend or the workload does not go with the scenario, with what to use instead.
    """
    if scenario.hw.power_limit is None:
        return _price(scenario, layouts, watch, names)
    from rapid_dse.simulate.power_limit import at_clock, limited

    backend = scenario.backend.model_copy(update={"artifacts": Artifacts()})
    priced = limited(scenario, layouts, lambda variant: _price(variant.model_copy(update={"backend": backend}), layouts, None, None))
    if watch is not None or scenario.backend.artifacts.wanted:  # the run that is kept is the one at the clock that was found
        for row, clock in enumerate(priced.clock.tolist()):
            here = names[row : row + 1] if names else None if len(layouts) == 1 else [f"{row:03d}"]
            _price(at_clock(scenario, clock), layouts.take(np.array([row])), watch, here)
    return priced.priced


def _price(scenario: Scenario, layouts: Layouts, watch: Watch | None, names: Sequence[str] | None) -> Priced:
    """As ``price``, of chips at their own limit."""
    inference = scenario.workload.kind == "inference"
    backend = import_module((SERVED if inference else BACKENDS)[scenario.backend.name])  # a backend is imported when it is used
    priced: Priced
    if scenario.backend.name != "analytical":
        priced = backend.price(scenario, layouts, watch, names)
        return priced
    priced = backend.price(scenario, layouts)
    if scenario.backend.artifacts.timeline and len(layouts) == 1:
        from rapid_dse.events.drawn import keep_timeline

        keep_timeline(scenario, layouts, names[0] if names else None)
    return priced
