"""Overrides, composition and the space that they span."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rapid_dse.layouts import CODES, KEYS
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of, with_values
from rapid_dse.sweep.overrides import Values, for_hydra, read, read_space
from rapid_dse.sweep.space import plan, single


def test_overrides_are_sorted_and_the_last_of_a_key_counts() -> None:
    given = read(
        ["hw=h100,a100", "parallel.tp=1,2", "parallel.tp=8", "workload.seq_len=range(1,4)", "parallel.pp=all", "hydra.verbose=true"]
    )
    assert given.values == {"parallel.tp": 8}
    assert given.swept == {"hw": Values(("h100", "a100")), "workload.seq_len": Values((1, 2, 3)), "parallel.pp": Values(None)}
    assert given.hydra == ("hydra.verbose=true",)


def test_a_sweep_file_may_write_lists_words_and_ranges() -> None:
    found = read_space({"hw": ["h100"], "parallel.tp": "all", "parallel.pp": "range(1,3)", "parallel.zero": 3})
    assert found == {"hw": Values(("h100",)), "parallel.tp": Values(None), "parallel.pp": Values((1, 2)), "parallel.zero": Values((3,))}


def test_hydra_gets_keys_as_additions_and_all_as_a_choice() -> None:
    assert for_hydra(["hw=a100", "parallel.tp=all", "software.async_tp=true", "sweeps=x"]) == [
        "hw=a100",
        "++parallel.tp=choice(all)",
        "++software.async_tp=true",
        "+sweeps=x",
    ]


def test_values_reach_absent_keys_and_list_entries_and_leave_the_tree_alone() -> None:
    with hydra_ready():
        base = composed({"hw": "h200"})
    values: dict[str, Any] = {
        "software.async_tp": True,
        "hw.network.dimensions.0.bandwidth": "100 GB/s",
        "hw.network.faulty_links": [[0, 1, 0.5]],
        "hw.memory": {"bandwidth": "1 TB/s"},
        "hw.energy.flop.bf16": 1e-12,
    }
    scenario, broken = scenario_of(with_values(base.tree, values))
    assert broken is None
    assert base.choices["hw"] == "h200"
    assert scenario.software.async_tp
    assert scenario.hw.network.dimensions[0].bandwidth == 100e9
    assert scenario.hw.network.faulty_links == ((0, 1, 0.5),)
    assert scenario.hw.memory.bandwidth == 1e12
    assert scenario_of(base.tree)[0].hw.network.dimensions[0].bandwidth == 450e9


def layout(*arguments: str) -> dict[str, Any]:
    portion = single(read(arguments))
    found = {name: getattr(portion.layouts, name)[0].item() for name in KEYS}
    return found | {name: CODES[name][found[name]] for name in CODES}


def test_defaults_follow_the_degrees() -> None:
    assert layout() | {"dp": 64, "sequence_parallel": False, "schedule": "none", "recompute": "selective", "zero": 1} == layout()
    assert layout("parallel.tp=8", "parallel.pp=2") | {"dp": 4, "sequence_parallel": True, "schedule": "1f1b"} == layout(
        "parallel.tp=8", "parallel.pp=2"
    )
    assert layout("parallel.pp=2", "parallel.vpp=2")["schedule"] == "interleaved_1f1b"
    assert layout("parallel.recompute=none")["recompute"] == "none"
    assert layout("parallel.dp=auto", "hw.num_gpus=8")["dp"] == 8


def test_groups_and_scenario_keys_span_portions_and_layout_keys_span_columns() -> None:
    planned = plan(read(["hw=h100,a100", "workload.seq_len=4096,8192", "parallel.tp=1,2,4", "workload.global_batch_size=512,1024"]))
    assert [(p.choices["hw"], p.scenario.workload.seq_len) for p in planned.portions] == [
        ("h100", 4096),
        ("h100", 8192),
        ("a100", 4096),
        ("a100", 8192),
    ]
    assert all(len(portion.layouts) == 6 for portion in planned.portions)
    assert planned.portions[1].keys == {"workload.seq_len": 8192}


def test_an_automatic_schedule_counts_no_rejections_of_its_own() -> None:
    (portion,) = plan(read(["parallel.vpp=all", "parallel.pp=4"])).portions
    assert portion.layouts.vpp.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [CODES["schedule"][code] for code in portion.layouts.schedule] == ["1f1b"] + ["interleaved_1f1b"] * 7
    assert not portion.rejected


def test_a_rule_between_scenario_keys_is_a_row_in_a_sweep() -> None:
    good, bad = plan(read(["hw=h100,a100", "workload.precision=fp8", "parallel.tp=1,2"])).portions
    assert np.all(good.rule == -1)
    assert bad.rule.tolist() == [0, 0]
    assert "fp8" in bad.reasons[0]


def test_a_named_sweep_names_its_study_and_its_keys() -> None:
    planned = plan(read(["sweeps=llama3_1_405b_16384gpus", "parallel.micro_batch_size=1"]))
    assert planned.search.study == "llama3_1_405b_16384gpus"
    assert [portion.choices["hw"] for portion in planned.portions] == ["h100", "h200", "b200"]
    assert set(planned.portions[0].layouts.micro_batch_size.tolist()) == {1}


@pytest.mark.parametrize("name", ["llama3_1_405b_16384gpus"])
def test_the_large_sweep_has_a_hundred_thousand_layouts(name: str) -> None:
    planned = plan(read([f"+sweeps={name}"]))
    assert sum(len(portion.layouts) for portion in planned.portions) >= 100_000
