"""From a scenario and layouts to results: one entry for every backend."""

from __future__ import annotations

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.simulate.results import Priced


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts under ``scenario.backend``.

    Raises:
        ValueError: where the backend or the workload does not go with the scenario, with what to use instead.
    """
    from rapid_dse.simulate.training import price as price_training  # a backend is imported when it is used

    if scenario.backend.name != "analytical":
        raise ValueError(f"backend={scenario.backend.name}: not part of this version; allowed: analytical")
    if scenario.workload.kind != "training":
        raise ValueError(f"workload.kind={scenario.workload.kind}: not part of this version; allowed: training")
    return price_training(scenario, layouts)
