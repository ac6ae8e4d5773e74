"""Settings that were made and change nothing: a line each, said before anything is priced."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import ValidationError

from rapid_dse.config import effects
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.recompute import without_effect
from rapid_dse.sweep.overrides import Given
from rapid_dse.sweep.portion import Portion

# Of Hydra's own configuration: where it looks for files; it starts no jobs here, and writes no files.
HYDRA = ("hydra.searchpath",)
MODULES = "parallel.recompute_modules"
ASKED = 64  # combinations of what a study lists that are asked which settings have no effect


def of_trial(given: Given, scenario: Scenario) -> list[str]:
    """Of the overrides of one trial."""
    return [*of_hydra(given), *_in_vain(scenario, given.values, "trial")]


def _in_vain(scenario: Scenario, keys: Collection[str], command: str) -> list[str]:
    """As ``effects.in_vain``, with modules of recomputation that no layer of the model has."""
    asked = MODULES in keys and scenario.workload.kind == "training" and _is_whole(scenario.model)
    modules = without_effect(scenario) if asked else []
    return [
        *effects.in_vain(scenario, keys, command),
        *(f"{MODULES}={name} has no effect here: no layer of the model has what it makes again" for name in modules),
    ]


def _is_whole(model: Model) -> bool:
    """Whether a model holds the rules of its schema: one that does not fills the columns of rows that are refused, and has no layers."""
    try:
        Model.model_validate(model.model_dump(warnings="none"))
    except ValidationError:
        return False
    return True


def of_sweep(keys: Sequence[str], scenarios: Sequence[Scenario]) -> list[str]:
    """Of a sweep, beside ``of_hydra``: what has an effect in none of its scenarios.

    Args:
        keys: what the command line and the sweep file set.
    """
    lines: dict[str, None] | None = None
    for scenario in scenarios:
        idle_keys = _in_vain(scenario, keys, "sweep")
        lines = dict.fromkeys(line for line in (idle_keys if lines is None else lines) if line in idle_keys)
        if not lines:
            break
    return list(lines or ())


def of_table(portions: Sequence[Portion]) -> list[str]:
    """Of a table of cases: columns that have an effect in none of the scenarios in which they have a value."""
    effective: set[str] = set()
    lines: dict[str, str] = {}
    for portion in portions:
        asked = [key for key in portion.keys if key not in effective]
        line_of_key = {line.split(" ", 1)[0]: line for line in effects.in_vain(portion.scenario, asked, "table")}
        effective.update(key for key in asked if key not in line_of_key)
        lines |= line_of_key
    return [line for key, line in lines.items() if key not in effective]


def of_files(portions: Sequence[Portion]) -> list[str]:
    """What is priced otherwise than imported files have it."""
    return list(dict.fromkeys(text for portion in portions for text in portion.said))


def of_hydra(given: Given) -> list[str]:
    """Of the overrides of Hydra's own configuration."""
    keys = [text.split("=", 1)[0].lstrip("+~") for text in given.hydra]
    return [f"{key} has no effect here: no job of Hydra's is started, and it writes no files" for key in keys if key not in HYDRA]
