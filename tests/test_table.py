"""The result table: every layout a row, with all columns, under a key of its content."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from generated import ONE, many, portion, scenario
from machine import slowness
from serving_trials import engines
from serving_trials import scenario as served_scenario

from rapid_dse.events.backends import price
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.enumeration import grid
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.inference.lots import lots
from rapid_dse.simulate.inference.pricing import price as served
from rapid_dse.simulate.inference.pricing import price_together
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep import identity, table
from rapid_dse.sweep.chunks import contained, take
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import single

FIXED_TEXT = """
hw model software backend hw.num_gpus workload.kind workload.seq_len workload.global_batch_size workload.precision parallel.tp
parallel.cp parallel.dp parallel.pp parallel.ep parallel.vpp parallel.zero parallel.sequence_parallel parallel.micro_batch_size
parallel.recompute parallel.schedule parallel.shard_group parallel.etp parallel.order parallel.stage_layers
    key status reason step_time_s tokens_per_s tokens_per_s_per_gpu mfu fits
peak_memory_bytes memory_parameters_bytes memory_gradients_bytes memory_optimizer_bytes memory_activations_bytes
memory_kv_cache_bytes memory_gathered_bytes memory_buffers_bytes memory_framework_bytes time_compute_s time_tp_s time_cp_s
time_ep_s time_pp_s time_dp_s time_bubble_s time_optimizer_s time_host_s energy_j energy_j_per_token power_w_per_gpu cost_usd
ttft_s tpot_s request_latency_s
requests_per_s running_requests time_prefill_s usd_per_million_tokens train_time_s train_cost_usd train_energy_j goodput
elapsed_s expected_error outside
"""
FIXED = [*FIXED_TEXT.split(), "cluster"]


def test_legal_rows_are_priced_and_illegal_ones_say_why() -> None:
    rows = table.priced_table(portion()).to_pylist()
    assert [row["parallel.tp"] for row in rows] == [1, 8, 32, 3]
    assert [row["status"] for row in rows] == ["oom", "ok", "ok", "invalid"]
    assert rows[0]["reason"] == "needs more memory than hw.memory.usable"
    assert rows[1]["reason"] is None
    assert rows[3]["reason"] == "tp must divide num_attention_heads"
    priced = price(scenario(), grid({**ONE, "tp": [1, 8, 32]}))
    for f in fields(Priced):
        values = getattr(priced, f.name).tolist()
        assert [row[f.name] for row in rows[:3]] == [None if value != value else value for value in values], f.name
        assert rows[3][f.name] is None
    assert all(row["fits"] == (row["status"] == "ok") for row in rows[:3])
    assert all(row["elapsed_s"] > 0 for row in rows)


def test_columns_are_the_fixed_ones_and_what_was_given() -> None:
    made = table.priced_table(
        portion(keys={"hw.memory.bandwidth": 3e12, "software.attention": "flash", "hw.network.faulty_links": [[0, 1, 0.5]]})
    )
    assert set(made.column_names) == {*FIXED, "hw.memory.bandwidth", "software.attention", "hw.network.faulty_links"}
    row = made.slice(1, 1).to_pylist()[0]
    assert row["hw.memory.bandwidth"] == 3e12
    assert row["hw.network.faulty_links"] == "[[0, 1, 0.5]]"
    assert (row["parallel.recompute"], row["parallel.schedule"]) == ("selective", "none")
    assert (row["hw"], row["model"], row["software"], row["backend"]) == ("h100", "llama3_1_8b", "megatron_lm", "analytical")


def test_portions_priced_together_have_the_rows_that_each_has_alone() -> None:
    """Training and serving, one model's and another's, legal, refused and out of memory, with keys of some portions alone, and requests of
    other lengths, of which some take several passes."""
    asked = ["model=llama3_1_8b", "workload=inference", "workload.batch_size=4", "hw.num_gpus=8", "parallel.tp=4"]
    served = single(read([*asked, "workload.prompt_len=2000", "workload.decode_len=900"]))
    pools = ["workload.concurrency=9", "hw.num_gpus=6", "parallel.prefill.tp=2", "parallel.decode.tp=4", "model=llama3_1_8b"]
    pooled = single(read(["workload=inference", *pools, "workload.prompt_len=77", "workload.decode_len=5"]))

    def asking(portion: Portion, prompt: int, generated: int) -> Portion:
        workload = served.scenario.workload.model_copy(update={"prompt_len": prompt, "decode_len": generated})
        return replace(portion, scenario=served.scenario.model_copy(update={"workload": workload}))

    portions = [
        portion(keys={"hw.price": 2, "software.attention": "flash", "hw.network.faulty_links": [[0, 1, 0.5]]}),
        served,
        portion(many(1), keys={"hw.price": 2.5, "software.async_tp": True}, parallel__stage_layers=[16, 16], model__num_hidden_layers=32),
        portion(grid({**ONE, "tp": [3, 5]}), keys={"software.attention": "unfused"}, model__intermediate_size=11008),
        replace(served, layouts=served.layouts.take(np.zeros(2, int)), rule=np.array([-1, 0]), reasons=("a rule",)),
        portion(many(2), keys={"hw.price": None}, hw__memory__usable=1e9),
        asking(served, 30000, 40),
        asking(served, 90, 600),
        asking(pooled, 7000, 1),
    ]
    assert [1, 4, 6, 7, 8] in lots([(each.scenario, each.layouts) for each in portions])
    told: list[int] = []
    made = table.priced_tables(portions, told.append).to_pylist()
    assert sorted(told) == [1, 1, 1, 1, 1, 2, 2, 2, 4]
    alone = pa.concat_tables(map(table.priced_table, portions), promote_options="permissive").to_pylist()
    assert [row | {"elapsed_s": 0} for row in made] == [row | {"elapsed_s": 0} for row in alone]
    assert Counter(row["status"] for row in made) == {"ok": 7, "oom": 3, "invalid": 5}


LOADS: dict[str, dict[str, list[float]]] = {
    "closed loops": {"concurrency": [1, 7, 300], "num_prompts": [0, 40, 5000]},
    "open loops": {"request_rate": [0.1, 2, 5], "num_prompts": [0, 40, 5000]},
    "batches": {"batch_size": [1, 7, 300]},
    "all at once": {"num_prompts": [1, 50, 3000]},
    "every kind": {"concurrency": [7, 0, 0], "request_rate": [0, 2, 0], "batch_size": [0, 0, 7]},
}
LENGTHS = [(2000, 900, [0, 1, 2]), (30000, 40, [2]), (90, 600, [1, 0]), (500, 1, [0, 1]), (64, 1, [2])]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("software", ["vllm", "tensorrt_llm", "sglang"])
def test_engines_priced_together_have_the_results_that_each_table_has_alone(load: str, software: str) -> None:
    """Prompts that take one pass or several, requests of one token or more; each table has some of the engines, so that grids of batches
    begin and end elsewhere."""
    asked = ["model=deepseek_v3", "workload=inference", "hw=h200", "hw.num_gpus=16", "parallel.tp=8", f"software={software}"]
    one = single(read([*asked, "workload.length_spread=0.2"]))
    columns = {name: np.array(values) for name, values in LOADS[load].items()}
    columns |= {"tp": np.array([8, 2, 1]), "attention_dp": np.array([1, 2, 8]), "pp": np.array([2, 4, 2]), "dp": np.ones(3, int)}
    columns |= {"etp": np.ones(3, int), "ep": np.array([8, 4, 8])}
    layouts = replace(one.layouts.take(np.zeros(3, int)), **columns)
    assert isinstance(layouts, Engines)
    tables = []
    for prompt, generated, rows in LENGTHS:
        workload = one.scenario.workload.model_copy(update={"prompt_len": prompt, "decode_len": generated})
        tables.append((one.scenario.model_copy(update={"workload": workload}), layouts.take(np.array(rows))))
    for found, alone in zip(price_together(tables), [price(*own) for own in tables], strict=True):
        for name, column in vars(alone).items():
            np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)


@pytest.mark.parametrize(("prompt", "generated", "spread"), [(2000, 64, 0.0), (700, 2, 0.2), (33, 1, 0.0)])
@pytest.mark.parametrize("software", ["vllm", "tensorrt_llm", "sglang"])
def test_a_served_row_is_the_same_alone_and_beside_others(software: str, prompt: int, generated: int, spread: float) -> None:
    """Engines with one attention rank and with several, on pipelines and not, under every load; those of pools follow from searches that
    begin beyond what is asked for, and agree as nearly as these end."""
    changes = {"workload__prompt_len": prompt, "workload__decode_len": generated, "workload__length_spread": spread}
    of = served_scenario("h200", "gpt_oss_20b", software, **changes)
    loads = [{"concurrency": 1}, {"concurrency": 6, "num_prompts": 100}, {"concurrency": 300}, {"request_rate": 2.0}, {"num_prompts": 50}]
    kinds = [
        {"tp": tp, "pp": pp, "attention_dp": ranks, "ep": tp * ranks} for tp, pp, ranks in ((1, 1, 1), (2, 2, 1), (1, 1, 2), (1, 2, 8))
    ]
    rows: list[dict[str, float]] = [
        kind | {"num_gpus": kind["tp"] * kind["pp"] * kind["attention_dp"]} | load for kind in kinds for load in loads
    ]
    together = served(of, engines(*rows))
    for number, row in enumerate(rows):
        for name, column in vars(served(of, engines(row))).items():
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(column[0], getattr(together, name)[number], err_msg=f"{name} of {row}")
    pools = {f"{pool}_{name}": degree for pool in ("prefill", "decode") for name, degree in (("tp", 1), ("workers", 1))}
    rows = [pools | {"num_gpus": 2} | load for load in loads]
    together = served(of, engines(*rows))
    for number, row in enumerate(rows):
        alone = served(of, engines(row))
        for name in ("ttft_s", "tpot_s", "requests_per_s", "request_latency_s"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[number], rtol=1e-6, err_msg=f"{name} of {row}")


def test_an_empty_portion_is_an_empty_table() -> None:
    made = table.priced_table(take(portion(), slice(0, 0)))
    assert len(made) == 0
    assert set(made.column_names) == set(FIXED)


def test_a_trial_that_raises_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_tp_32(found: Any, layouts: Layouts, **given: Any) -> Priced:
        if (layouts.tp == 32).any():
            raise ZeroDivisionError("no such thing")
        return price(found, layouts)

    monkeypatch.setattr(table, "price", fails_at_tp_32)
    rows = table.priced_table(portion()).to_pylist()
    assert [row["status"] for row in rows] == ["oom", "ok", "error", "invalid"]
    assert rows[2]["reason"] == "ZeroDivisionError: no such thing"
    assert rows[1]["step_time_s"] > 0
    with pytest.raises(ZeroDivisionError):
        table.priced_table(portion(search__fail_fast=True))


def test_a_scenario_that_cannot_be_priced_fails_in_every_row() -> None:
    rows = table.priced_table(portion(layouts=many(3000), hw__operator_model="measured", hw__measured_table="no/such.csv")).to_pylist()
    assert {row["status"] for row in rows} == {"error"}
    assert "no/such.csv" in rows[0]["reason"]


def test_keys_tell_layouts_and_scenarios_apart_and_nothing_else() -> None:
    layouts = grid({**ONE, "tp": [1, 2, 4, 8], "pp": [1, 2], "zero": [0, 1, 2, 3], "recompute": [0, 1, 2], "micro_batch_size": [1, 2]})
    lanes = identity.keys(scenario(), layouts)
    assert len(np.unique(lanes, axis=0)) == len(np.unique(np.stack([getattr(layouts, f.name) for f in fields(layouts)]), axis=1).T)
    one = many(1)
    base = identity.keys(scenario(), one)
    same: list[dict[str, Any]] = [{"search__jobs": 2}, {"debug__hw_snapshots": True}, {"parallel__tp": 4}, {"hw__num_gpus": 8}]
    same += [{"workload__global_batch_size": 7}, {"backend__artifacts__persist": True}, {"software__attention": "flash"}]
    for changes in same:
        assert (identity.keys(scenario(**changes), one) == base).all(), changes
    different: list[dict[str, Any]] = [{"workload__seq_len": 4096}, {"hw__price": 1.0}, {"parallel__order": ["cp", "tp", "ep", "dp", "pp"]}]
    for changes in different:
        assert (identity.keys(scenario(**changes), one) != base).all(), changes
    assert (identity.keys(scenario(), one, code="0" * 32) != base).all(), "the pricing code is part of the key"


def test_a_key_does_not_depend_on_the_rows_beside_it() -> None:
    layouts = many(1000)
    assert (identity.keys(scenario(), layouts)[500:501] == identity.keys(scenario(), layouts.take(slice(500, 501)))).all()


def test_hex_and_lanes_are_the_same_thing() -> None:
    lanes = np.random.default_rng(0).integers(0, 2**63, (100, 2)).astype(np.uint64)
    digits = identity.hex_bytes(lanes)
    assert (identity.from_hex(digits) == lanes).all()
    assert (identity.from_hex([bytes(row).decode() for row in digits]) == lanes).all()
    assert bytes(digits[0]).decode() == lanes[0].tobytes().hex()
    assert contained(lanes, lanes[::2]).tolist() == [True, False] * 50


def test_the_code_hash_is_of_all_that_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in identity.PRICING_SOURCES:
        source = tmp_path / name
        source.parent.mkdir(exist_ok=True)
        source.write_text("x = 1\n") if name.endswith(".py") else source.mkdir()
    (tmp_path / "sweep").mkdir()
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "sweep" / "identity.py"))
    plain = identity.code_hash.__wrapped__
    before = plain()
    (tmp_path / "sweep" / "driver.py").write_text("y = 1\n")
    assert plain() == before, "the driver prices nothing"
    (tmp_path / "simulate" / "memory.py").write_text("y = 1\n")
    assert plain() != before


def test_a_row_costs_less_than_a_microsecond_beside_its_price() -> None:
    found = portion(layouts=many(50_000))
    table.priced_table(found)  # imports
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        made = table.priced_table(found)
        best = min(best, time.perf_counter() - start - made["elapsed_s"][0].as_py() * len(made))
    assert best < 50_000 * 4e-6 * slowness(), "some headroom for a busy machine; it is 0.2 µs a row on an idle one"
