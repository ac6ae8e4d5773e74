"""What the event-driven backends share: layouts are priced one by one, their runs shown to who watches and kept where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import artifacts, runs
from rapid_dse.events.layout_detail import LayoutDetail, one_layout, operators_of
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.results import Priced

Runs: TypeAlias = Mapping[str, runs.Run]
Watch: TypeAlias = Callable[[Runs], None]


def price_each(
    scenario: Scenario,
    layouts: Layouts,
    check: Callable[[LayoutDetail], None],
    simulate: Callable[[LayoutDetail], tuple[Priced, Runs]],
    watch: Watch | None,
    names: Sequence[str] | None,
) -> Priced:
    """Prices layouts one by one, after all of them have passed ``check``.

    Args:
        watch: is shown the runs of each layout by name.
        names: the folder of each layout's artifacts; None: numbers, where there are several.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead, before anything runs.
    """
    runs.check_backend(scenario)
    ready, block = operators_of(scenario, layouts)
    every = [one_layout(scenario, layouts, row, ready, block) for row in range(len(layouts))]
    for one in every:
        check(one)
    parts = []
    for number, one in enumerate(every):
        priced, done = simulate(one)
        parts.append(priced)
        name = names[number] if names else None if len(every) == 1 else f"{number:03d}"
        artifacts.keep(scenario, done, name)
        if watch is not None:
            watch(done)
    return Priced.concatenate(parts)
