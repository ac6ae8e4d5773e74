"""What the sweeper does once it is asked to: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from omegaconf import DictConfig

from rapid_dse.sweep import idle
from rapid_dse.sweep.compose import Composed, from_hydra, hydra_ready
from rapid_dse.sweep.overrides import Given, read
from rapid_dse.sweep.space import axes, plan


def run(arguments: Sequence[str], config: DictConfig) -> int:
    """Prices the space that ``arguments`` span over ``config``, their composition; the exit code of the driver."""
    folders = [f"'{folder}'" for folder in config.hydra.searchpath or ()]  # which Hydra keeps to itself
    beside = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    given = read([*beside, *arguments])
    base = from_hydra(config, given.trusted)
    if base.tree["search"]["name"] == "optuna":
        return _search(given, base)
    from rapid_dse.sweep.driver import run as drive

    planned = plan(given, base)
    _say([*idle.of_sweep(planned.keys, [portion.scenario for portion in planned.portions]), *idle.of_files(planned.portions)])
    return drive(planned.portions, planned.search, planned.debug)


def _search(given: Given, base: Composed) -> int:
    from rapid_dse.sweep.search.running import run as search  # Optuna takes a second to import

    with hydra_ready():
        found = axes(given, base)
        _say(idle.of_sweep(found.every_key, list(islice(found.scenarios(), idle.ASKED))))
        return search(found)


def _say(lines: Sequence[str]) -> None:
    from rapid_dse.sweep.driver import console

    err = console(stderr=True)
    for line in lines:
        err.print(line, highlight=False, markup=False, soft_wrap=True)
