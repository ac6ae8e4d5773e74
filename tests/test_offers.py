"""What frameworks offer, from their documentation; rows beyond that; what automatic settings become; what enumeration draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import program
import pytest
import serving_trials
import trials

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.sweep.cases import group_cases
from rapid_dse.sweep.outside import outside
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
GPUS = {"num_gpus": 64, "global_batch_size": 256}
PIPE = GPUS | {"pp": 4}
INTERLEAVED = PIPE | {"vpp": 2}

# (framework, layout, None where it is offered, else what the rule names).
TABLE: list[tuple[str, dict[str, Any], str | None]] = [
    # Megatron Core user guide, "Parallelism strategies": 1F1B, with --num-layers-per-virtual-pipeline-stage interleaved; no other.
    ("megatron_lm", PIPE | {"schedule": "1f1b"}, None),
    ("megatron_lm", INTERLEAVED | {"schedule": "interleaved_1f1b"}, None),
    ("megatron_lm", PIPE | {"schedule": "zero_bubble"}, "zero_bubble"),
    ("megatron_lm", PIPE | {"schedule": "gpipe"}, "gpipe"),
    ("megatron_lm", GPUS | {"zero": 0}, None),
    ("megatron_lm", GPUS | {"zero": 3}, None),  # Megatron-FSDP
    ("megatron_lm", PIPE | {"zero": 2}, "zero 2 with pipelines"),  # Megatron-FSDP: "not compatible with pipeline parallelism"
    ("megatron_lm", PIPE | {"zero": 3}, "zero 3 with pipelines"),
    ("megatron_lm", PIPE | {"zero": 3, "num_gpus": 4}, None),  # one replica: there is nothing to shard over
    ("nemo", INTERLEAVED | {"cp": 2, "tp": 2, "schedule": "interleaved_1f1b"}, None),
    ("nemo", PIPE | {"schedule": "zero_bubble"}, "zero_bubble"),
    ("nemo", PIPE | {"schedule": "dualpipe_v"}, "dualpipe_v"),
    ("nemo", PIPE | {"zero": 3}, "zero 3 with pipelines"),
    # torchtitan docs/: FSDP2 (HSDP by data_parallel_replicate_degree), PyTorch's schedules, sequence parallelism with each TP plan.
    ("torchtitan", GPUS | {"zero": 3}, None),
    ("torchtitan", GPUS | {"zero": 3, "shard_group": 8}, None),
    ("torchtitan", GPUS | {"zero": 1}, "zero 1 without pipelines"),
    ("torchtitan", GPUS | {"zero": 0}, "zero 0 without pipelines"),
    ("torchtitan", PIPE | {"zero": 2, "schedule": "zero_bubble"}, None),
    ("torchtitan", PIPE | {"zero": 3, "schedule": "gpipe"}, None),
    ("torchtitan", PIPE | {"zero": 3, "schedule": "zb_v"}, None),  # ZBVZeroBubble
    ("torchtitan", PIPE | {"zero": 3, "schedule": "dualpipe_v"}, None),  # DualPipeV
    ("torchtitan", PIPE | {"zero": 3, "schedule": "zb_2p"}, "zb_2p"),
    ("torchtitan", GPUS | {"zero": 3, "tp": 2, "sequence_parallel": False}, "tp > 1 without sequence_parallel"),
    ("torchtitan_eager", GPUS | {"zero": 1}, "zero 1 without pipelines"),
    # nanotron README: "AFAB and 1F1B schedules for PP", "ZeRO-1 optimizer".
    ("nanotron", PIPE | {"recompute": "none", "schedule": "gpipe"}, None),
    ("nanotron", PIPE | {"recompute": "full", "schedule": "1f1b"}, None),
    ("nanotron", INTERLEAVED | {"recompute": "none", "schedule": "interleaved_1f1b"}, "interleaved_1f1b"),
    ("nanotron", GPUS | {"recompute": "none", "zero": 2}, "zero 2 without pipelines"),
    ("nanotron", GPUS | {"recompute": "none", "shard_group": 8}, "shard_group under zero 1"),
    ("nanotron", GPUS | {"recompute": "selective"}, "recompute selective"),
    ("nanotron", GPUS | {"recompute": "none", "cp": 2}, "cp > 1"),
    # DeepSpeed docs, "Pipeline Parallelism": its engine is not compatible with ZeRO-2 and ZeRO-3, and trains by 1F1B.
    ("deepspeed", GPUS | {"recompute": "full", "zero": 3}, None),
    ("deepspeed", GPUS | {"recompute": "full", "zero": 3, "shard_group": 8}, None),  # MiCS
    ("deepspeed", PIPE | {"recompute": "full", "zero": 1}, None),
    ("deepspeed", PIPE | {"recompute": "full", "zero": 2}, "zero 2 with pipelines"),
    ("deepspeed", PIPE | {"recompute": "full", "schedule": "gpipe"}, "gpipe"),
    ("deepspeed", GPUS | {"recompute": "full", "tp": 2, "sequence_parallel": True}, "sequence_parallel"),
    ("deepspeed", GPUS | {"recompute": "full", "zero": 3, "cp": 4}, None),
    ("deepspeed", GPUS | {"recompute": "full", "zero": 3, "cp": 4, "tp": 2, "sequence_parallel": False}, "cp > 1 with tp > 1"),
    ("megatron_deepspeed", PIPE | {"zero": 0, "cp": 2}, "cp > 1 with pp > 1"),
    ("megatron_deepspeed", PIPE | {"zero": 0}, None),
    ("megatron_deepspeed", PIPE | {"zero": 3}, "zero 3 with pipelines"),
    # LLM Foundry: Composer's FSDP, FULL_SHARD or SHARD_GRAD_OP, and activation checkpointing of whole blocks.
    ("llm_foundry", GPUS | {"recompute": "full", "zero": 3}, None),
    ("llm_foundry", GPUS | {"recompute": "none", "zero": 2}, None),
    ("llm_foundry", GPUS | {"recompute": "none", "zero": 0}, "zero 0 without pipelines"),
    ("llm_foundry", GPUS | {"recompute": "none", "zero": 3, "tp": 2}, "tp > 1"),
    ("llm_foundry", PIPE | {"recompute": "none", "zero": 3}, "pp > 1"),
    ("llm_foundry", GPUS | {"recompute": "selective", "zero": 3}, "recompute selective"),
    ("tensorrt_llm", GPUS, "training"),
    # PyTorch's own wrappers: DDP, ZeroRedundancyOptimizer, fully_shard.
    ("pytorch", GPUS | {"zero": 3}, None),
    ("pytorch_compile", GPUS | {"zero": 1, "tp": 2}, "tp > 1"),
]


def of(software: str, enforce: bool = True, **changes: Any) -> Scenario:
    return trials.scenario(software=software, software__enforce=enforce, **changes)


# (framework, chip, model, engine, workload, None where it is offered, else what the rule names).
SERVED: list[tuple[str, str, str, dict[str, float], dict[str, Any], str | None]] = [
    # vLLM docs/serving/expert_parallel_deployment: EP_SIZE = TP_SIZE x DP_SIZE, or tensor parallelism within experts.
    ("vllm", "h100", "qwen3_30b_a3b", {"tp": 8, "ep": 8}, {}, None),
    ("vllm", "h100", "qwen3_30b_a3b", {"tp": 8}, {}, None),
    ("vllm", "h100", "qwen3_30b_a3b", {"tp": 8, "ep": 4}, {}, "ep > 1 with etp > 1"),
    ("vllm", "h100", "qwen3_30b_a3b", {"prefill_tp": 4, "decode_tp": 4, "decode_ep": 2, "num_gpus": 8}, {}, "ep > 1 with etp > 1"),
    ("vllm", "h100", "qwen3_30b_a3b", {"tp": 2, "attention_dp": 4, "ep": 8}, {}, None),
    ("vllm", "h100", "llama3_1_8b", {"tp": 2, "attention_dp": 4}, {}, "attention_dp > 1 of a dense model"),
    ("vllm", "h100", "llama3_1_8b", {"tp": 4, "cp": 2}, {}, "cp > 1"),
    ("sglang", "h100", "qwen3_30b_a3b", {"tp": 8, "ep": 4}, {}, None),  # --ep-size
    ("sglang", "h100", "llama3_1_8b", {"tp": 2, "attention_dp": 4}, {}, None),
    ("tensorrt_llm", "h100", "qwen3_30b_a3b", {"tp": 8, "ep": 4}, {}, None),  # moe_expert_parallel_size
    ("tensorrt_llm", "h100", "llama3_1_8b", {"tp": 2, "attention_dp": 4}, {}, "attention_dp > 1 of a dense model"),
    # vLLM --kv-cache-dtype: auto, bfloat16, fp8, fp8_e4m3, fp8_e5m2; TensorRT-LLM: fp8, nvfp4, and int8 of its engine builder
    ("vllm", "h100", "llama3_1_8b", {"tp": 8}, {"kv_precision": "fp8"}, None),
    ("vllm", "b200", "llama3_1_8b", {"tp": 8}, {"kv_precision": "fp4"}, "kv_precision fp4 on b200"),
    ("vllm", "h100", "llama3_1_8b", {"tp": 8}, {"kv_precision": "int8"}, "kv_precision int8"),
    ("tensorrt_llm", "h100", "llama3_1_8b", {"tp": 8}, {"kv_precision": "int8"}, None),
    ("tensorrt_llm", "b200", "llama3_1_8b", {"tp": 8}, {"kv_precision": "fp4"}, None),
    ("tensorrt_llm", "h100", "llama3_1_8b", {"tp": 8}, {"kv_precision": "fp4"}, "kv_precision fp4 on h100"),
]


@pytest.mark.parametrize(("framework", "hw", "model", "engine", "work", "named"), SERVED)
def test_what_serving_frameworks_offer(
    framework: str, hw: str, model: str, engine: dict[str, float], work: dict[str, Any], named: str | None
) -> None:
    of = serving_trials.scenario(hw, model, framework, software__enforce=True, **{f"workload__{key}": value for key, value in work.items()})
    rule, texts = broken_rules(serving_trials.engines({"num_gpus": 8, "concurrency": 8, **engine}), of)
    assert (rule[0] < 0) == (named is None)
    assert named is None or f"{framework} does not offer {named}" in texts[rule[0]]


@pytest.mark.parametrize(("software", "row", "lacks"), TABLE)
def test_a_layout_is_offered_or_a_rule_says_that_it_is_not(software: str, row: dict[str, Any], lacks: str | None) -> None:
    table = trials.layouts(row)
    rule, texts = broken_rules(table, of(software))
    said = None if rule[0] < 0 else texts[rule[0]].split("; ")[0]
    assert said == (None if lacks is None else f"{software} does not offer {lacks} (software.enforce=false prices it)")
    assert broken_rules(table, of(software, enforce=False))[0].tolist() == [-1]
    codes, remarks = outside(of(software, enforce=False), table)
    remark = None if codes[0] < 0 else remarks[codes[0]]
    if lacks is None:
        assert remark is None
    else:
        assert remark is not None
        assert f"{lacks}: not offered by {software}" in remark


@pytest.mark.parametrize(
    ("software", "precision", "lacks"), [("nanotron", "fp8", True), ("torchtitan", "fp16", True), ("nemo", "fp8", False)]
)
def test_precisions(software: str, precision: str, lacks: bool) -> None:
    table = trials.layouts(GPUS | {"zero": 3 if software == "torchtitan" else 1, "recompute": "none"})
    rule, texts = broken_rules(table, of(software, workload__precision=precision))
    assert (rule[0] >= 0) == lacks
    assert not lacks or texts[rule[0]].startswith(f"{software} does not offer precision {precision} (software.enforce=false")


@pytest.mark.parametrize(
    ("row", "lacks"),
    [
        ({"recompute": "selective"}, None),
        ({"recompute": "full"}, "recompute full with expert_overlap"),
        ({"pp": 2, "schedule": "1f1b"}, "expert_overlap in a pipeline without chunks"),
        ({"pp": 2, "vpp": 2, "schedule": "interleaved_1f1b"}, None),
    ],
)
def test_exchanges_beside_other_passes(row: dict[str, Any], lacks: str | None) -> None:
    """Megatron Core asserts both of overlap_moe_expert_parallel_comm (transformer_config.py)."""
    table = trials.layouts({"num_gpus": 16, "ep": 8, "global_batch_size": 64} | row)
    for overlaps in (True, False):
        rule, texts = broken_rules(table, of("nemo", model="mixtral_8x7b", software__expert_overlap=overlaps))
        assert (rule[0] >= 0) == (overlaps and lacks is not None)
        assert rule[0] < 0 or texts[rule[0]].startswith(f"nemo does not offer {lacks} (software.enforce=false")


def test_two_remarks_of_a_row_are_joined_and_a_row_without_has_none() -> None:
    table = trials.layouts(PIPE | {"zero": 2, "schedule": "gpipe"}, PIPE, PIPE | {"schedule": "zero_bubble"})
    codes, texts = outside(of("megatron_lm", enforce=False), table)
    assert [None if code < 0 else texts[code] for code in codes] == [
        "zero 2 with pipelines: not offered by megatron_lm; schedule gpipe: not offered by megatron_lm",
        None,
        "schedule zero_bubble: not offered by megatron_lm",
    ]


def test_a_table_has_the_rule_as_reason_and_the_remark_in_outside(tmp_path: Path) -> None:
    """Row by row: offered; not offered; the same priced; not legal whatever the framework."""
    (tmp_path / "cases.csv").write_text(
        "software.enforce,parallel.pp,parallel.schedule,parallel.tp\n,4,1f1b,8\n,4,zero_bubble,8\nfalse,4,zero_bubble,8\nfalse,4,zero_bubble,3\n"
    )
    program.done(tmp_path, "cases.csv", "--out", "out.csv", module="rapid_dse.evaluate")
    found = pd.read_csv(tmp_path / "out.csv").astype(object)
    found = found.where(found.notna(), None)
    assert [status in ("ok", "oom") for status in found["status"]] == [True, False, True, False]
    assert found["reason"][1] == (
        "megatron_lm does not offer zero_bubble (software.enforce=false prices it); it offers 1f1b, interleaved_1f1b"
    )
    assert found["reason"][3] == "tp must divide num_attention_heads"
    assert [text and "not offered" in text for text in found["outside"]] == [False, None, True, None]
    assert found["outside"][2].startswith("schedule zero_bubble: not offered by megatron_lm; ")


def test_a_trial_is_refused_or_says_what_is_not_offered(tmp_path: Path) -> None:
    wish = ("hw.num_gpus=64", "parallel.tp=8", "parallel.pp=4", "parallel.schedule=zero_bubble")
    assert "megatron_lm does not offer zero_bubble" in program.one_line(program.run(tmp_path, *wish))
    assert "outside: schedule zero_bubble: not offered by megatron_lm" in program.done(tmp_path, *wish, "software.enforce=false").out


def test_every_profile_says_what_it_offers() -> None:
    for path in sorted((ROOT / "conf" / "software").glob("*.yaml")):
        offered = trials.scenario(software=path.stem).software.offers
        named = {"parallelisms", "schedules", "zero", "zero_with_pipelines", "shard_group", "recompute", "precisions"}
        assert offered.workloads == ("inference",) or named <= offered.model_fields_set, path.stem


AUTOMATIC = [
    ("megatron_lm", 1, 1, "selective", True),
    ("torchtitan", 3, 3, "selective", True),
    ("nanotron", 1, 1, "none", True),
    ("deepspeed", 1, 1, "none", False),
]


@pytest.mark.parametrize(("software", "alone", "piped", "recompute", "sequence_parallel"), AUTOMATIC)
def test_automatic_settings_are_the_usual_ones_or_what_is_offered(
    software: str, alone: int, piped: int, recompute: str, sequence_parallel: bool
) -> None:
    swept = plan(read([f"software={software}", "hw.num_gpus=32", "parallel.tp=2", "parallel.pp=1,4"])).portions[0]
    assert (swept.rule < 0).all()
    assert swept.layouts.zero.tolist() == [alone, piped]
    assert swept.layouts.recompute.tolist() == [RECOMPUTE.index(recompute)] * 2
    assert swept.layouts.sequence_parallel.tolist() == [sequence_parallel] * 2
    every = plan(read([f"software={software}", "hw.num_gpus=32", "parallel.tp=2", "parallel.pp=all"])).portions[0]
    assert set(every.layouts.zero.tolist()) == {alone, piped}
    assert set(every.layouts.sequence_parallel.tolist()) == {sequence_parallel}


def _space(*more: str) -> Any:
    keys = [f"parallel.{name}=all" for name in ("pp", "cp", "zero", "recompute", "schedule", "vpp")]
    return plan(read(["model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=64", *keys, *more])).portions[0]


@pytest.mark.parametrize("software", ["megatron_lm", "torchtitan", "nanotron", "llm_foundry", "deepspeed"])
def test_enumeration_draws_what_is_offered_and_counts_the_rest(software: str) -> None:
    """What is left of the mathematics' space is what has no remark there, and the rest is counted by rule."""
    offered, whole = _space(f"software={software}"), _space(f"software={software}", "software.enforce=false")
    codes, _ = outside(whole.scenario, whole.layouts)
    assert len(offered.layouts) == int((codes < 0).sum()) < len(whole.layouts)
    counted = sum(count for text, count in offered.rejected.items() if "does not offer" in text)
    assert counted == int((codes >= 0).sum())
    assert (broken_rules(offered.layouts, offered.scenario)[0] < 0).all()


def test_context_parallelism_is_enumerated_the_way_that_is_offered() -> None:
    """DeepSpeed has no ring: without a word its ranks trade heads, and every degree is drawn; where both are offered it is the ring."""
    deepspeed, megatron = _space("software=deepspeed"), _space("software=megatron_lm")
    assert (deepspeed.scenario.cp_kind, megatron.scenario.cp_kind) == ("ulysses", "ring")
    assert set(deepspeed.layouts.cp.tolist()) == {1, 2, 4, 8, 16}
    assert deepspeed.layouts.pp[deepspeed.layouts.cp > 1].max() == 1, "its ranks trade heads beside data parallelism alone"
    ring = plan(read(["software=deepspeed", "parallel.cp=2", "parallel.cp_kind=ring"])).portions[0]
    assert ring.reasons[ring.rule[0]].startswith("deepspeed does not offer cp_kind ring")


def test_zero_is_enumerated_wherever_replicas_share() -> None:
    """cp 8 at dp 1 shards over eight ranks: every stage of ZeRO is there; one rank alone has one."""
    found = plan(read(["model=llama3_1_8b", "hw.num_gpus=8", "parallel.cp=1,8", "parallel.tp=1,8", "parallel.zero=all"])).portions[0]
    rows = found.layouts
    assert sorted(rows.zero[(rows.cp == 8) & (rows.dp == 1)].tolist()) == [0, 1, 2, 3]
    assert rows.zero[rows.tp == 8].tolist() == [0]
    ring = rows.take((rows.cp == 8) & np.isin(rows.zero, (0, 3)))
    weights = price(found.scenario, ring).memory_parameters_bytes
    assert weights[1] == pytest.approx(weights[0] / 8)


@pytest.mark.skipif(not DATA.is_dir(), reason="the measured runs are not here")
@pytest.mark.parametrize("name", ["training_cases.csv", "training_reports.csv"])
def test_every_measured_run_is_offered(name: str) -> None:
    """What was measured can be launched; mixtures of experts break another rule, having a grid of ranks of their own."""
    frame = pd.read_csv(DATA / name, dtype={"software.cp_balanced": object})
    for group in group_cases(frame):
        portion = group.portion
        broken = [portion.reasons[rule] for rule in portion.rule if rule >= 0]
        assert not [text for text in broken if "does not offer" in text]
        assert not broken or portion.scenario.model.num_experts
