"""One trial as a row of results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rapid_dse.parallel.layouts import CODES, POOLS
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.table import priced_table


def priced_row(portion: Portion) -> dict[str, Any]:
    """The row of a portion's only layout, which is legal: all columns, plain values.

    Raises:
        ValueError: what pricing raises, which in a sweep is the row's reason.
    """
    search = portion.scenario.search.model_copy(update={"fail_fast": True})
    alone = replace(portion, scenario=portion.scenario.model_copy(update={"search": search}))
    row: dict[str, Any] = priced_table(alone).to_pylist()[0]
    if row["status"] not in ("ok", "oom"):
        raise ValueError(row["reason"])
    return row


def illegal(portion: Portion, overrides: Sequence[str] = ()) -> str:
    """What is said of a trial whose layout breaks a rule: what was asked for, unless the rule says it; the rule; and the values of what it
    is about."""
    reason = portion.reasons[int(portion.rule[0])]
    if "=" in reason:
        return reason
    values = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in _counts_named(reason, portion).items()
    )
    asked = f"{' '.join(overrides)}: " if overrides else ""
    return f"{asked}{reason}" + (f" (here {values})" if values else "")


def _counts_named(reason: str, portion: Portion) -> dict[str, float]:
    """The numbers of the layout, the model and the workload that a rule names, in its order; 0 stands for none. Of a pool's rule
    (prefill.ep …) the degrees are the pool's, of one about both pools those that it names with theirs."""
    layouts = portion.layouts
    known = {name: getattr(part, name) for part in (portion.scenario.model, portion.scenario.workload) for name in type(part).model_fields}
    known |= {name: getattr(layouts, name)[0].item() for name in layouts.keys if name not in CODES}
    both = [word for word in re.findall(r"[a-z_][\w.]*", reason) if word.split(".")[0] in POOLS]
    pool = next((f"{name}." for name in POOLS if reason.startswith(f"{name}.")), "")
    if len({word.split(".")[0] for word in both}) > 1:
        pool, known = "", known | {word: known[word.replace(".", "_")] for word in both}
    words = [word if word in known else word.rsplit(".", 1)[-1] for word in re.findall(r"[a-z_][\w.]*", reason)]
    own = {word: f"{pool}{word}" for word in words if pool and f"{pool[:-1]}_{word}" in known}
    named = {own.get(word, word): known[f"{pool[:-1]}_{word}" if word in own else word] for word in words if word in own or word in known}
    return {word: value for word, value in named.items() if type(value) in (int, float) and value > 0}
