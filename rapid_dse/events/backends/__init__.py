"""From a scenario and layouts to results: one entry for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

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


def price(scenario: Scenario, layouts: Layouts, watch: Watch | None = None, names: Sequence[str] | None = None) -> Priced:
    """Prices legal, resolved layouts under ``scenario.backend``.

    Args:
        watch: is shown the runs of each layout by name, where the backend is event-driven.
        names: a folder a layout for what ``backend.artifacts`` keeps of it; None: the backend's own folder, or numbers in it.

    Raises:
        ValueError: where the backend or the workload does not go with the scenario, with what to use instead.
    """
    if scenario.workload.kind == "inference":
        if scenario.backend.name != "analytical":
            raise ValueError(f"backend={scenario.backend.name}: prices training alone; allowed with workload=inference: analytical")
        from rapid_dse.simulate.inference import pricing

        return pricing.price(scenario, layouts)
    backend = import_module(BACKENDS[scenario.backend.name])  # a backend is imported when it is used
    priced: Priced
    if scenario.backend.name != "analytical":
        priced = backend.price(scenario, layouts, watch, names)
        return priced
    priced = backend.price(scenario, layouts)
    if scenario.backend.artifacts.timeline and len(layouts) == 1:
        from rapid_dse.events.drawn import keep_timeline

        keep_timeline(scenario, layouts, names[0] if names else None)
    return priced
