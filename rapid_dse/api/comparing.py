"""``rd.diff``: two trials term by term, or two sets of results row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rapid_dse.api.studies import Results
from rapid_dse.api.trials import TrialRow
from rapid_dse.sweep.compose import value_at
from rapid_dse.sweep.overrides import GROUPS
from rapid_dse.sweep.restored import trial_of
from rapid_dse.sweep.show import SECTIONS

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("status", "step_time_s", "peak_memory_bytes", "mfu", "cost_usd")


def diff(a: TrialRow | Results, b: TrialRow | Results) -> pd.DataFrame:
    """What tells two trials, or two sets of results, apart.

    Of two trials: a line a setting that differs, and a line a term of step time (s) and memory (bytes), with ``a``, ``b`` and
    ``difference`` = a − b, the largest first. Of two sets of results: a line for each configuration that both have, by the override keys
    that they share, with the figures of both and the ``ratio`` of step times, a / b.

    Raises:
        TypeError: a trial against results; ValueError: results that share no configuration.
    """
    if isinstance(a, TrialRow) and isinstance(b, TrialRow):
        return _trials(a, b)
    if isinstance(a, Results) and isinstance(b, Results):
        return _results(a, b)
    raise TypeError("diff takes two trials, or two results")


def _trials(a: TrialRow, b: TrialRow) -> pd.DataFrame:
    import pandas as pd

    lines: list[dict[str, Any]] = [
        {"kind": "setting", "name": key, "a": of_a, "b": of_b, "difference": None} for key, (of_a, of_b) in _settings(a, b).items()
    ]
    for kind, whole, of_a, of_b in (("time_s", "step_time_s", a.times, b.times), ("memory_bytes", "peak_memory_bytes", a.memory, b.memory)):
        lines.append(_line(kind, "total", getattr(a, whole), getattr(b, whole)))
        terms = [_line(kind, term, of_a.get(term, 0.0), of_b.get(term, 0.0)) for term in dict.fromkeys([*of_a, *of_b])]
        lines += sorted(terms, key=lambda line: -abs(line["difference"]))
    return pd.DataFrame(lines, columns=["kind", "name", "a", "b", "difference"]).set_index(["kind", "name"])


def _settings(a: TrialRow, b: TrialRow) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, with the value of both; of what one was not given, what its scenario has."""
    keys = dict.fromkeys(name for trial in (a, b) for name in trial if name.split(".")[0] in SECTIONS)
    differing = {key: (_setting(a, key), _setting(b, key)) for key in keys if a.get(key) != b.get(key)}
    return {key: pair for key, pair in differing.items() if pair[0] != pair[1]}


def _setting(trial: TrialRow, key: str) -> Any:
    """The value of an override key; of one that was not given, what its scenario has."""
    if trial.get(key) is not None or key in GROUPS:
        return trial.get(key)
    behind = trial_of(trial.row)
    return None if behind is None else value_at(behind.scenario, key)


def _line(kind: str, name: str, a: float, b: float) -> dict[str, Any]:
    return {"kind": kind, "name": name, "a": a, "b": b, "difference": a - b}


def _results(a: Results, b: Results) -> pd.DataFrame:
    first, second = a.frame(), b.frame()
    keys = [name for name in first.columns if name in second.columns and str(name).split(".")[0] in SECTIONS and name != "backend"]
    shared = [name for name in keys if not (_single(first[name]) and _single(second[name]))]
    for frame in (first, second):
        for name in shared:
            frame[name] = frame[name].astype(str)
    columns = [*shared, *FIGURES]
    merged = first[columns].merge(second[columns], on=shared or None, how="inner" if shared else "cross", suffixes=("_a", "_b"))
    if merged.empty:
        raise ValueError(f"the results have no configuration in common; they were compared by {', '.join(map(str, shared))}")
    return merged.assign(ratio=merged["step_time_s_a"] / merged["step_time_s_b"])


def _single(column: Any) -> bool:
    """Whether all rows have one value, so that the column tells none of them apart."""
    return bool(column.nunique(dropna=False) <= 1)
