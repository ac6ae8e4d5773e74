"""A timeline of what the closed forms say: a trial's pipeline, or an engine's passes, on links that take the closed form's own time."""

from __future__ import annotations

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import artifacts, served_rows
from rapid_dse.events.backends import hierarchical
from rapid_dse.events.layout_detail import one_layout, operators_of
from rapid_dse.parallel.layouts import Layouts


def keep_timeline(scenario: Scenario, layouts: Layouts, name: str | None) -> None:
    """Draws a single analytical trial, where ``backend.artifacts.timeline`` asks for it, in a folder of that name.

    Raises:
        OSError: where a file cannot be written.
    """
    ideal = {"name": "full_astrasim_hierarchical", "network": "ideal", "engine": "builtin"}
    drawn = scenario.model_copy(update={"backend": scenario.backend.model_copy(update=ideal)})
    if scenario.workload.kind == "inference":
        done = served_rows.measured(drawn, layouts)
        artifacts.keep(scenario, {part: done[part] for part in ("prefill", "decode", "pools") if part in done}, name)
        return
    ready, block = operators_of(drawn, layouts)
    _, done = hierarchical.run_step(one_layout(drawn, layouts, 0, ready, block))
    artifacts.keep(scenario, {"pipeline": done["pipeline"]}, name)
