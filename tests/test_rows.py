"""What every row of results holds, whatever was priced; and that a row that does not is an error with a reason."""

from __future__ import annotations

import gc
import os
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from drawn_rows import CHIPS, SOFTWARE, drawn
from generated import CHOICES, portion

from rapid_dse.config import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.bounds import lower_bound
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.sweep import table
from rapid_dse.sweep.portion import Portion

ROWS = 200_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 20_000
# Null in a row of training: other workloads' quantities, and what there is nothing to say of.
OF_INFERENCE = {"ttft_s", "tpot_s", "request_latency_s", "requests_per_s", "running_requests", "time_prefill_s"}
OF_A_WHOLE_RUN = ["train_time_s", "train_cost_usd", "train_energy_j", "goodput"]
MAY_BE_NULL = OF_INFERENCE | {"reason", "outside", "expected_error", "parallel.stage_layers", "parallel.etp"}


def table_of(found: Scenario, layouts: Layouts) -> Any:
    """The result rows of legal layouts, a data frame."""
    choices = {**CHOICES, "hw": found.hw.name, "model": found.model.name, "software": found.software.name}
    return table.priced_table(Portion(found, choices, {}, layouts, np.full(len(layouts), -1), ())).to_pandas()


def test_every_row_holds_what_a_row_must() -> None:
    """Numbers that are finite and at least 0, sums that add up, times above the bound that no backend's can come below."""
    seen: Counter[str] = Counter()
    for number, (found, layouts) in enumerate(drawn(ROWS, 12)):
        rows = table_of(found, layouts)
        where = (number, found.hw.name, found.model.name, found.software.name)
        assert set(rows["status"]) <= {"ok", "oom"}, (where, set(rows["reason"].dropna()))
        seen.update(dict(rows["status"].value_counts()) | {found.hw.name: 1, found.software.name: 1, found.workload.precision: 1})
        seen.update({"empty stages": int(number_of_empty(found, layouts) > 0), "own split": int(found.parallel.stage_layers is not None)})
        whole_run = found.workload.train_tokens is not None
        seen.update({"whole runs": int(whole_run)})
        assert whole_run or rows[OF_A_WHOLE_RUN].isna().all(axis=None), where
        null = MAY_BE_NULL if whole_run else MAY_BE_NULL.union(OF_A_WHOLE_RUN)
        full = rows[[name for name in rows.columns if name not in null]]
        assert not full.isna().any(axis=None), (where, full.columns[full.isna().any()])
        for name in full.select_dtypes("float"):
            assert (np.isfinite(full[name]) & (full[name] >= 0)).all(), (where, name)
        for name in ("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "peak_memory_bytes", "mfu", "energy_j"):
            assert (rows[name] > 0).all(), (where, name)
        for whole, terms in (
            ("step_time_s", [f"time_{t}_s" for t in TIME_TERMS]),
            ("peak_memory_bytes", [f"memory_{t}_bytes" for t in MEMORY_TERMS]),
        ):
            np.testing.assert_allclose(rows[terms].sum(axis=1), rows[whole], rtol=1e-9, err_msg=str(where))
        assert (rows["fits"] == (rows["peak_memory_bytes"] <= found.hw.memory.usable)).all()
        assert (rows["fits"] == (rows["status"] == "ok")).all()
        if number % 4 == 0:
            assert (lower_bound(found, layouts) <= rows["step_time_s"]).all(), where
    assert seen["ok"] > ROWS / 5 < seen["oom"] * 2
    assert seen["own split"] > 5 < seen["empty stages"]
    assert seen["whole runs"] > 20 < number - seen["whole runs"]
    assert not {*CHIPS, *SOFTWARE, "bf16", "fp16", "fp8", "tf32", "fp32"} - seen.keys()


def test_a_row_has_the_same_results_alone_as_in_its_table() -> None:
    """Parts are priced once for layouts that are alike in what a part depends on; nothing depends on more than is said."""
    rng = np.random.default_rng(4)
    for number, (found, layouts) in enumerate(drawn(3000, 23)):
        rows = rng.integers(0, len(layouts), 6)
        whole = price(found, layouts).take(rows)
        alone = Priced.concatenate([price(found, layouts.take(np.array([row]))) for row in rows])
        for field in fields(Priced):
            where = f"{number} {found.hw.name} {found.model.name} {found.software.name}, rows {rows}: {field.name}"
            np.testing.assert_array_equal(getattr(alone, field.name), getattr(whole, field.name), err_msg=where)


def test_what_was_priced_is_gone_with_its_table() -> None:
    """A table that pointed back at itself would keep all its columns until Python looks for circles: several tables' worth at once."""
    found, layouts = next(drawn(200, 5))
    price(found, layouts)
    gc.collect()
    gc.disable()
    try:
        price(found, layouts.take(np.arange(len(layouts))))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(thing).__name__ for thing in gc.garbage if type(thing).__module__.startswith("rapid_dse")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def number_of_empty(found: Scenario, layouts: Layouts) -> int:
    """Layouts with more stages than layers."""
    return int((layouts.pp > found.model.num_hidden_layers).sum())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("time_pp_s", np.nan, "time_pp_s is no finite number of at least 0"),
        ("time_bubble_s", -1e-30, "time_bubble_s is no finite number of at least 0"),
        ("energy_j", np.inf, "energy_j is no finite number of at least 0"),
        ("step_time_s", 0.0, "the times do not add up to step_time_s"),
        ("peak_memory_bytes", 1e9, "the terms do not add up to peak_memory_bytes"),
        ("tokens_per_s", 0.0, "tokens_per_s is not above 0"),
    ],
)
def test_a_row_that_breaks_a_law_is_an_error_with_a_reason(monkeypatch: pytest.MonkeyPatch, column: str, value: float, reason: str) -> None:
    """The first of two rows that could be priced breaks one; the other stays what it is."""

    def wrong(scenario: Scenario, layouts: Layouts, **_: Any) -> Priced:
        found = price(scenario, layouts)
        changed = getattr(found, column).copy()
        changed[0] = value
        return replace(found, **{column: changed})

    right = table.priced_table(portion()).to_pylist()
    monkeypatch.setattr(table, "price", wrong)
    rows = table.priced_table(portion()).to_pylist()
    assert (rows[0]["status"], rows[0]["reason"]) == ("error", f"could not be priced: {reason}")
    assert rows[0]["step_time_s"] is rows[0]["fits"] is None
    assert [row | {"elapsed_s": 0} for row in rows[1:]] == [row | {"elapsed_s": 0} for row in right[1:]]
