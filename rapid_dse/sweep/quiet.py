"""A sweep or a search that is run without Hydra's sweeper; where the answer is taken from the rows, nothing goes to standard output."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.sweep import driver, idle
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.console import console
from rapid_dse.sweep.overrides import Given
from rapid_dse.sweep.space import Axes, axes, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from rapid_dse.config.run import Search


@dataclass(frozen=True)
class PricedStudy:
    """A study that was priced.

    Attributes:
        name: of the study; its rows are in ``folder``.
        code: the exit code: 0, 1 where every trial failed, 130 after Ctrl-C.
        search: its settings.
        left_out: layouts that the enumeration left out, by the rule that they break; of a grid.
    """

    name: str
    folder: Path
    code: int
    search: Search
    left_out: Mapping[str, int] = field(default_factory=dict)


def priced_study(given: Given, say: Callable[[list[str]], None], err: Console | None = None) -> PricedStudy:
    """Prices what a command line spans.

    Args:
        say: is given the lines on settings without effect.
        err: takes progress and notices; None: nothing does.

    Raises:
        ValueError: one line, as of a sweep.
    """
    err = err or nowhere()
    with hydra_ready():
        axes_of_study = axes(given)
        say(idle.of_hydra(given))
        return (
            _searched(axes_of_study, say, err) if axes_of_study.base.tree["search"]["name"] == "optuna" else _grid(axes_of_study, say, err)
        )


def nowhere() -> Console:
    """A console that keeps what it is told to itself."""
    from rich.console import Console

    return Console(file=io.StringIO())


def of_stderr() -> Console:
    """Standard error's."""
    return console(stderr=True)


def _grid(axes_of_study: Axes, say: Callable[[list[str]], None], err: Console) -> PricedStudy:
    planned = plan_of(axes_of_study)
    say(idle.of_sweep(planned.keys, [portion.scenario for portion in planned.portions]))
    say(idle.of_files(planned.portions))
    name = planned.search.study or driver.default_study(planned.portions)
    code = driver.run(planned.portions, planned.search, planned.debug, nowhere(), err)
    left_out: Counter[str] = Counter()
    for portion in planned.portions:
        left_out.update(portion.rejected)
    return PricedStudy(name, Path(planned.search.results_dir) / name, code, planned.search, dict(left_out.most_common()))


def _searched(axes_of_study: Axes, say: Callable[[list[str]], None], err: Console) -> PricedStudy:
    from rapid_dse.sweep.search.running import run as run_search  # Optuna takes a second to import
    from rapid_dse.sweep.search.study_space import SearchSpace

    search, _ = axes_of_study.run_settings()
    name = search.study or driver.default_study(SearchSpace(axes_of_study).settings())
    code = run_search(axes_of_study, nowhere(), err)
    return PricedStudy(name, Path(search.results_dir) / name, code, search)


def shown_study(given: Given, say: Callable[[list[str]], None]) -> int:
    """Prices and reports a sweep that Hydra's grammar has no words for, or that needs no Hydra; the exit code.

    Raises:
        ValueError: one line, as of a sweep.
    """
    with hydra_ready():
        axes_of_study = axes(given)
        if axes_of_study.base.tree["search"]["name"] == "optuna":
            from rapid_dse.sweep.search.running import run as run_search  # Optuna takes a second to import

            say(idle.of_sweep(axes_of_study.every_key, list(islice(axes_of_study.scenarios(), idle.ASKED))))
            return run_search(axes_of_study)
        planned = plan_of(axes_of_study)
        say(idle.of_sweep(planned.keys, [portion.scenario for portion in planned.portions]))
        say(idle.of_files(planned.portions))
        return driver.run(planned.portions, planned.search, planned.debug)
