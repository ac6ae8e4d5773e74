"""python -m rapid_dse.advise: a launch file's run predicted, held against what was measured, and made better."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from program import done, one_line, run

from rapid_dse.analysis.launch_files.exported import exported
from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS
from rapid_dse.events.backends import price
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import single

MODULE = "rapid_dse.advise"
# Measured runs: NVIDIA/dgxc-benchmarking v25.04, nemo_megatron/README_175b.md (GPT-3 175B, 256 H100, bf16): 8.408 s a step; nanotron's
# runs of a Llama of 8.86 billion parameters on 128 H100, tp 16 there, which is over two nodes: 2.605 s; ml/llm-foundry,
# scripts/train/benchmarking/README.md (MPT 1B, 32 A100 40 GB).
NEMO = (
    *("software=nemo", "hw=h100", "hw.num_gpus=256", "cluster=eos", "model=gpt3_175b", "workload.seq_len=2048", "model.vocab_size=51200"),
    *("workload.global_batch_size=512", "parallel.tp=4", "parallel.pp=8", "parallel.vpp=6", "parallel.recompute=none"),
)
NANOTRON = (
    *("software=nanotron", "hw=h100", "hw.num_gpus=128", "cluster=nanotron_healthy", "model=llama", "model.hidden_size=4096"),
    *("model.intermediate_size=14336", "model.vocab_size=131072", "workload.seq_len=4096", "workload.global_batch_size=256"),
    *("parallel.micro_batch_size=8", "parallel.zero=0"),
)
FOUNDRY = (
    *("software=llm_foundry", "hw=a100_40gb", "hw.num_gpus=32", "cluster=mosaic", "model=gpt", "model.hidden_size=2048"),
    *("model.num_hidden_layers=24", "model.num_attention_heads=16", "model.num_key_value_heads=16", "model.intermediate_size=8192"),
    *("model.vocab_size=50368", "workload.seq_len=2048", "workload.global_batch_size=320", "parallel.micro_batch_size=10"),
)
SLOW = "hw.network.dimensions.1.bandwidth='50 Gb/s'"


@cache
def one(*overrides: str) -> Portion:
    with hydra_ready():
        return single(read(overrides))


def seconds(*overrides: str) -> float:
    found = one(*overrides)
    return float(price(found.scenario, found.layouts).step_time_s[0])


def written(folder: Path, name: str, *overrides: str) -> Path:
    file = exported(one(*overrides), FRAMEWORKS[name])
    path = folder / f"{name}{file.suffix}"
    path.write_text(file.text)
    return path


def advised(path: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(path.parent, str(path), "--json", *arguments, module=MODULE).out)
    return found


def test_a_fabric_of_50_gigabits_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "nemo", *NEMO)
    # as an override of the command line, and in the file's own comment
    slow = advised(path, SLOW)
    assert slow["spoilt"] == "hw.network.dimensions.1.bandwidth"
    assert slow["suspects"][0]["usual"] == 50e9
    assert slow["suspects"][0]["gain_s"] == pytest.approx(seconds(*NEMO, SLOW) - seconds(*NEMO), rel=1e-9)
    assert advised(written(tmp_path, "nemo", *NEMO, SLOW))["spoilt"] == "hw.network.dimensions.1.bandwidth"


def test_a_fabric_of_50_gigabits_that_only_the_measured_time_shows_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "nemo", *NEMO)
    found = advised(path, "--measured", f"{seconds(*NEMO, SLOW)}s")
    assert found["as_predicted"] is False
    assert found["spoilt"] == found["causes"][0]["key"] == "hw.network.dimensions.1.bandwidth"
    assert found["causes"][0]["value"] == pytest.approx(50e9 / 8, rel=2e-3), "solved: it is what the run had"
    for cause in found["causes"]:
        if cause["key"] not in ("software.dp_overlap", "parallel.recompute"):
            assert cause["step_time_s"] == pytest.approx(found["measured_step_time_s"], rel=1e-3), "each alone explains it"
            assert sum(cause["more_s"].values()) == pytest.approx(cause["step_time_s"] - found["predicted"]["step_time_s"], rel=1e-6)
    text = done(tmp_path, str(path), "--measured", f"{seconds(*NEMO, SLOW):.3f} s", module=MODULE).out
    assert "as if 1 of a node's 8 network cards carried it" in text
    assert "gradients and weights +" in text


def test_the_run_as_it_was_measured_has_nothing_spoilt(tmp_path: Path) -> None:
    found = advised(written(tmp_path, "nemo", *NEMO), "--measured", "8.408s")
    assert found["as_predicted"] is True
    assert (found["spoilt"], found["causes"], found["suspects"]) == (None, [], [])


def test_a_tensor_parallel_group_across_nodes_is_named(tmp_path: Path) -> None:
    spoilt = (*NANOTRON, "parallel.tp=16")
    found = advised(written(tmp_path, "nanotron", *spoilt), "--measured", "2.605s")
    assert found["as_predicted"] is True, "such a run was measured"
    assert found["spoilt"] == "parallel.tp"
    assert (found["suspects"][0]["value"], found["suspects"][0]["usual"]) == (16, 8)
    assert found["suspects"][0]["gain_s"] == pytest.approx(seconds(*spoilt) - seconds(*NANOTRON, "parallel.tp=8"), rel=1e-9)
    assert "parallel.tp" not in [each["key"] for each in advised(written(tmp_path, "nanotron", *NANOTRON, "parallel.tp=8"))["suspects"]]


def test_recomputation_that_memory_does_not_need_is_named(tmp_path: Path) -> None:
    spoilt = (*FOUNDRY, "parallel.recompute=full")
    found = advised(written(tmp_path, "llm_foundry", *spoilt))
    assert found["spoilt"] == "parallel.recompute"
    assert (found["suspects"][0]["value"], found["suspects"][0]["usual"], found["suspects"][0]["fits"]) == ("full", "none", True)
    assert found["suspects"][0]["gain_s"] == pytest.approx(seconds(*spoilt) - seconds(*FOUNDRY, "parallel.recompute=none"), rel=1e-9)
    # where memory does need it nobody blames it
    needed = (*FOUNDRY[:-1], "parallel.micro_batch_size=20", "workload.global_batch_size=640", "parallel.recompute=full")
    assert advised(written(tmp_path, "llm_foundry", *needed))["spoilt"] is None


@pytest.mark.parametrize("name", ["megatron_lm", "nemo"])
def test_what_a_model_brings_with_it_is_no_mistake(name: str, tmp_path: Path) -> None:
    """The host of a mixture of experts waits for each layer's routing, whichever dense model stands for it in a script."""
    usual = (f"software={name}", "hw=h100", "hw.num_gpus=64", "model=qwen3_30b_a3b", "workload.global_batch_size=64", "parallel.ep=8")
    found = advised(written(tmp_path, name, *usual))
    assert found["predicted"]["time_s"]["host"] > 0
    assert not [each["key"] for each in found["suspects"] if each["key"].startswith(("hw.", "cluster.", "software."))]


def test_overlap_that_a_script_does_not_ask_for_is_named(tmp_path: Path) -> None:
    usual = ("software=megatron_lm", "hw=a100", "hw.num_gpus=64", "model=llama3_1_8b", "workload.global_batch_size=64")
    path = written(tmp_path, "megatron_lm", *usual)
    script = "\n".join(line for line in path.read_text().splitlines() if "--overlap" not in line)
    path.write_text(script)
    found = advised(path)
    assert found["spoilt"] == "software.dp_overlap"
    assert found["suspects"][0]["usual"] == 0.8


def test_cards_that_a_script_leaves_out_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "megatron_lm", "hw=h100", "hw.num_gpus=256", "model=llama3_1_70b", "parallel.tp=4", "parallel.pp=4")
    path.write_text(path.read_text().replace("torchrun", "export NCCL_IB_HCA=mlx5_0\ntorchrun", 1))
    found = advised(path)
    assert found["spoilt"] == "hw.network.dimensions.1.bandwidth"
    assert found["suspects"][0]["value"] == pytest.approx(50e9 / 8)
    assert any("NCCL_IB_HCA" in note for note in found["notes"])


def test_neighbours_are_faster_and_fit_and_the_best_is_the_best_of_all(tmp_path: Path) -> None:
    found = advised(written(tmp_path, "nemo", *NEMO))
    assert all(each["fits"] and each["more_step_time_s"] < 0 for each in found["neighbours"])
    assert found["best"]["fits"]
    assert found["best"]["step_time_s"] <= min([found["predicted"]["step_time_s"], *(each["step_time_s"] for each in found["neighbours"])])
    best = found["best"]["settings"]
    keys = ("tp", "cp", "pp", "vpp", "zero", "micro_batch_size", "recompute", "schedule", "sequence_parallel")
    again = [f"parallel.{key}={str(best[f'parallel.{key}']).lower()}" for key in keys]
    given = [text for text in NEMO if not text.startswith("parallel.")]
    assert seconds(*given, *again) == pytest.approx(found["best"]["step_time_s"], rel=1e-12)


def test_what_nobody_said_is_said(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}')
    found = advised(tmp_path / "ds.json", "model=llama3_1_8b", "hw.num_gpus=16")
    assert {"hw=h100", "cluster=reference", "workload.seq_len=8192"} <= set(found["assumed"])
    out = done(tmp_path, "ds.json", "model=llama3_1_8b", "hw.num_gpus=16", module=MODULE).out
    assert "taken as: hw=h100" in out


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": 64, "zero_optimization": {"stage": 1}, "fp16": {"enabled": true}}')
    given = ("ds.json", "model=llama3_1_8b", "hw.num_gpus=16")
    assert "give one, as model=" in one_line(run(tmp_path, "ds.json", module=MODULE))
    assert "hw.num_gpus=64" in one_line(run(tmp_path, "ds.json", "model=llama3_1_8b", module=MODULE))
    assert "--measured=fast" in one_line(run(tmp_path, *given, "--measured", "fast", module=MODULE))
    assert "above 0" in one_line(run(tmp_path, *given, "--measured", "0s", module=MODULE))
    assert "no such key" in one_line(run(tmp_path, *given, "parallel.tpp=2", module=MODULE))
    assert "are a sweep" in one_line(run(tmp_path, *given, "parallel.tp=1,2", module=MODULE))
    assert "cannot run: tp must divide" in one_line(
        run(tmp_path, "ds.json", "model=llama3_1_8b", "hw.num_gpus=18", "parallel.tp=3", module=MODULE)
    )
    assert "no framework whose launch files are known" in one_line(run(tmp_path, *given, "--framework", "jax", module=MODULE))
    assert "No such file" in one_line(run(tmp_path, "none.json", module=MODULE))


def test_a_server_is_judged_by_its_serve_command(tmp_path: Path) -> None:
    bench = "vllm bench serve --random-input-len 1024 --random-output-len 256 --max-concurrency 32"
    (tmp_path / "serve.sh").write_text(f"vllm serve x --tensor-parallel-size 2 --data-parallel-size 4\n{bench}\n")
    given = ("hw=h100", "model=llama3_1_8b")
    found = advised(tmp_path / "serve.sh", *given)
    job = ("workload=inference", "workload.prompt_len=1024", "workload.decode_len=256", "workload.concurrency=32", "hw.num_gpus=8")
    assert found["predicted"]["step_time_s"] == pytest.approx(seconds(*given, *job, "parallel.tp=2"), rel=1e-12)
    assert found["best"]["step_time_s"] <= min(seconds(*given, *job, f"parallel.tp={tp}") for tp in (1, 2, 4, 8)) * (1 + 1e-12)
    assert {each["key"] for each in found["neighbours"]} == {"parallel.tp"}
    slow = "hw.memory.bandwidth='1 TB/s'"
    assert advised(tmp_path / "serve.sh", *given, slow)["spoilt"] == "hw.memory.bandwidth"
