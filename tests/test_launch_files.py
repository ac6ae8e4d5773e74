"""Launch files of frameworks: written from rows, read back, and read as people have them."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from program import done, one_line, run

from rapid_dse.analysis.launch_files import megatron_core
from rapid_dse.analysis.launch_files.exported import LaunchFile, exported, fields_of
from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS, read_file
from rapid_dse.analysis.launch_files.launched import Composer, launched
from rapid_dse.analysis.launch_files.shell_script import fields_of as script_fields
from rapid_dse.analysis.launch_files.torchtitan import FLAVORS
from rapid_dse.analysis.reasons.chosen import settings
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import split_of
from rapid_dse.sweep.chunks import take
from rapid_dse.sweep.compose import hydra_ready, value_at
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import plan, single

PUBLISHED = Path(__file__).parent / "data" / "launch"
JOB = ("parallel=all", "hw.num_gpus=64", "workload.global_batch_size=128", "workload.seq_len=4096")
ROWS = 50 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 15  # of each framework; make fuzz reads back more
MODELS = {
    "megatron_lm": ("llama3_1_8b", "gpt3_175b", "qwen3_30b_a3b"),
    "nemo": ("llama3_1_70b", "gpt3_175b", "mixtral_8x7b"),
    "torchtitan": ("llama3_1_8b", "llama3_1_405b"),
    "deepspeed": ("gpt3_175b", "llama3_1_8b"),
    "nanotron": ("llama2_7b", "llama3_1_70b"),
    "llm_foundry": ("gpt", "llama3_1_8b"),
    "vllm": ("llama3_1_70b", "qwen3_235b_a22b"),
    "sglang": ("llama3_1_8b", "qwen3_30b_a3b"),
    "tensorrt_llm": ("llama3_1_70b", "qwen3_235b_a22b"),
}
SERVED = ("workload=inference", "parallel=all", "hw.num_gpus=16", "workload.prompt_len=2048", "workload.decode_len=256")
# What the frameworks' own fields cannot say, beside the machine.
UNSAID = {
    "nemo": {"hw.num_gpus"},
    "deepspeed": {"model", "workload.seq_len", "parallel.pp", "parallel.cp"},
    # several servers; what has no flag: experts cut otherwise than over all GPUs or none, attention copied beside dense layers
    "vllm": {"model", "hw.num_gpus", "parallel.cp", "parallel.ep", "parallel.etp", "parallel.attention_dp"},
    "sglang": {"model", "hw.num_gpus", "parallel.etp"},
}


@cache
def composer() -> Composer:
    return Composer()


@cache
def rows(name: str) -> tuple[Portion, ...]:
    """Random legal layouts of a framework, over its models."""
    drawn, found = random.Random(name), list[Portion]()
    for number, model in enumerate(MODELS[name]):
        with hydra_ready():
            job = (
                JOB
                if FRAMEWORKS[name].kind == "training"
                else (*SERVED, "workload.concurrency=64" if number else "workload.request_rate=2.5")
            )
            whole = plan(read([f"model={model}", f"software={name}", *job])).portions[0]
        count = ROWS * (number + 1) // len(MODELS[name]) - ROWS * number // len(MODELS[name])
        found += [take(whole, np.array([drawn.randrange(len(whole.layouts))])) for _ in range(count)]
    return tuple(found)


def one(*overrides: str) -> Portion:
    with hydra_ready():
        return single(read(overrides))


def back(file: LaunchFile, folder: Path, *overrides: str) -> Portion:
    """The trial that a written file starts; where it has no comments the command line says what it cannot."""
    path = folder / f"run{file.suffix}"
    path.write_text(file.text)
    reading = read_file(path)
    assert reading.framework == file.framework
    assert not reading.unread
    beside = overrides if FRAMEWORKS[file.framework].form.comments else (*file.unsaid, *overrides)
    return launched(reading, beside, composer()).portion


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_file_that_is_read_back_gives_the_same_layout(name: str, tmp_path: Path) -> None:
    allowed = UNSAID.get(name, set()) | {"hw"}
    assert len(rows(name)) == ROWS
    for row in rows(name):
        file = exported(row, FRAMEWORKS[name], composer())
        found = back(file, tmp_path)
        assert settings(found.layouts) == settings(row.layouts)
        if FRAMEWORKS[name].kind == "inference":
            continue
        pp, vpp = int(row.layouts.pp[0]), int(row.layouts.vpp[0])
        assert split_of(found.scenario).chunks(pp, vpp) == split_of(row.scenario).chunks(pp, vpp), "the same split over stages"
        assert {text.split("=")[0] for text in file.unsaid} <= allowed, "all else is said by the framework's own fields"
    same = price(row.scenario, row.layouts), price(found.scenario, found.layouts)
    assert same[0].step_time_s[0] == pytest.approx(same[1].step_time_s[0], rel=1e-12), "and the same price"


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert found["source"]
    assert found["version"]
    return found


# What torchrun takes, and a variable of the environment.
OF_TORCHRUN = ("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "env:CUDA_DEVICE_MAX_CONNECTIONS")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_field_is_one_that_the_framework_publishes(name: str) -> None:
    known = published(name)
    fields = {*known["fields"], *known.get("later", []), *OF_TORCHRUN}
    for row in rows(name):
        for field in fields_of(row, FRAMEWORKS[name]):
            held = [".".join(field.split(".")[:count]) for count in range(1, field.count(".") + 2)]
            # what lies below a field that takes a mapping of its own is that mapping's
            inner = name == "llm_foundry" and field.startswith(("model.attn_config.", "model.ffn_config."))
            inner = inner or field.startswith("model.activation_func.")
            assert field in fields or (inner and any(each in fields for each in held)), field


def test_precisions_of_recipes_are_those_that_megatron_bridge_registers() -> None:
    from rapid_dse.analysis.launch_files.nemo import _PRECISIONS

    assert set(_PRECISIONS.values()) <= set(published("nemo")["mixed_precision"])


# Fields below one that takes a mapping of a class of its own, which is another than the file's.
_OF_OTHERS = (
    *("model.activation_func.", "model.attn_config.", "model.ffn_config."),
    # megatron-core's MLATransformerConfig
    *("model.q_lora_rank", "model.kv_lora_rank", "model.qk_head_dim", "model.qk_pos_emb_head_dim", "model.v_head_dim"),
    "peft.",  # megatron.bridge.peft.lora.LoRA: dim, target_modules
    *("zero_optimization.offload_optimizer.", "zero_optimization.offload_param."),  # deepspeed/runtime/zero/offload_config.py
)
SPECIAL = {
    "megatron_lm": [
        ("model=llama3_1_70b", "parallel.pp=4", "parallel.stage_layers=[19,21,21,19]"),
        ("model=llama3_1_70b", "parallel.zero=3", "parallel.shard_group=8"),
        ("model=llama3_1_70b", "workload.precision=fp8", "software.fp8_recipe=delayed", "software.async_tp=true", "parallel.tp=4"),
        ("model=gpt3_175b", "software.dp_overlap=0", "software.attention=unfused", "software.loss=fused", "parallel.tp=8"),
        ("model=llama3_1_405b", "parallel.pp=8", "parallel.vpp=8", "parallel.tp=8", "workload.precision=fp16"),
        ("model=llama", "model.sliding_window=1024", "model.head_dim=64", "model.qk_norm=true", "model.attention_bias=true"),
        ("model=llama3_1_8b", "hw=a100", "cluster=selene", "hw.network.dimensions.1.bandwidth=50 Gb/s", "workload.precision=tf32"),
        ("model=llama3_1_8b", "parallel.recompute=full", "parallel.recompute_layers=5", "parallel.pp=2"),
        ("model=llama3_1_8b", "parallel.recompute=full", "parallel.recompute_layers=4", "parallel.pp=4", "parallel.vpp=2"),
        ("model=deepseek_v2", "parallel.recompute=selective", "parallel.recompute_modules=layernorm+mla_up_proj+moe_act", "parallel.ep=8"),
        ("model=llama3_1_8b", "parallel.offload_optimizer=0.7", "parallel.pp=2"),
        ("model=llama3_1_8b", "parallel.offload_activations=0.25", "parallel.offload_weights=0.25", "parallel.offload_optimizer=1"),
        ("model=llama3_1_8b", "parallel.offload_weights=0.5"),
        ("model=llama3_1_8b", "parallel.offload_activations=0.3"),  # no whole number of layers: it stands in a comment
        ("model=llama3_1_8b", "parallel.cp=4", "parallel.cp_kind=ulysses", "workload.packing=0.25"),
        ("model=llama3_1_8b", "model.num_nextn_predict_layers=1", "parallel.pp=4", "parallel.stage_layers=[9,9,9,5]"),
        ("model=llama3_1_8b", "software=megatron_deepspeed", "parallel.zero=1", "parallel.tp=2", "parallel.sequence_parallel=false"),
    ],
    "torchtitan": [
        ("model=llama3_1_8b", "parallel.shard_group=8", "workload.precision=fp8", "software.fp8_recipe=rowwise"),
        ("model=llama3_1_8b", "workload.precision=fp8", "software.fp8_recipe=tensorwise + fp8 all-gather"),
        ("model=llama2_7b", "software=torchtitan_eager", "parallel.zero=2"),
        ("model=llama3_1_8b", "parallel.pp=4", "parallel.stage_layers=[9,8,8,7]", "software.async_tp=true", "parallel.tp=2"),
        ("model=llama3_1_8b", "parallel.pp=2", "parallel.schedule=zero_bubble", "parallel.recompute=none"),
        ("model=llama3_1_8b", "parallel.offload_optimizer=1", "parallel.offload_weights=1"),
        ("model=llama3_1_8b", "parallel.pp=4", "parallel.schedule=zb_v", "parallel.recompute=none"),
        ("model=llama3_1_8b", "parallel.pp=4", "parallel.schedule=dualpipe_v", "parallel.recompute=none"),
    ],
    "nemo": [
        ("model=llama3_1_70b", "workload.precision=fp8", "parallel.tp=4", "parallel.pp=4", "parallel.vpp=5"),
        ("model=llama3_1_70b", "software.async_tp=false", "software.loss=in_place", "software.gradient_dtype=fp32", "parallel.zero=2"),
        ("model=llama3_1_8b", "parallel.recompute=full", "parallel.recompute_layers=5", "parallel.offload_optimizer=0.5"),
        ("model=qwen3_30b_a3b", "parallel.recompute_modules=layernorm+moe", "parallel.ep=8", "parallel.recompute=selective"),
        ("model=llama3_1_8b", "parallel.offload_weights=0.5", "parallel.cp=2", "parallel.cp_kind=ulysses"),
        ("model=llama3_1_8b", "workload.trainable=lora", "workload.lora_rank=32", "parallel.tp=2"),
        ("model=llama3_1_8b", "workload.trainable=lora", "workload.lora_targets=[q_proj,v_proj]"),
        ("model=deepseek_v2", "workload.trainable=lora", "workload.lora_targets=[linear_q_up_proj,linear_proj]", "parallel.ep=8"),
        ("model=deepseek_v2", "model.num_nextn_predict_layers=1", "parallel.ep=8"),
    ],
    "nanotron": [("model=gpt", "parallel.tp=2"), ("model=llama", "parallel.tp=4", "parallel.pp=2", "workload.precision=fp16", "hw=a100")],
    "deepspeed": [
        ("model=llama3_1_8b", "parallel.zero=3", "parallel.recompute=full"),
        ("model=mixtral_8x7b", "parallel.ep=8", "parallel.tp=2"),
        ("model=llama3_1_8b", "parallel.zero=3", "parallel.offload_optimizer=0.5", "parallel.offload_weights=1", "parallel.recompute=none"),
        ("model=llama3_1_8b", "parallel.zero=2", "parallel.offload_activations=1", "parallel.recompute=full"),
        ("model=llama3_1_8b", "parallel.zero=3", "workload.trainable=lora", "parallel.recompute=none"),
        (
            *("model=llama3_1_8b", "parallel.zero=3", "parallel.zero_hpz_partition_size=8", "parallel.recompute=none"),
            *("software.zero_quantized_weights=true", "software.zero_quantized_gradients=true"),
        ),
        ("model=llama3_1_8b", "parallel.zero=3", "parallel.cp=4", "parallel.cp_kind=ulysses", "parallel.recompute=none"),
    ],
    "llm_foundry": [
        ("model=gpt", "parallel.zero=2", "parallel.shard_group=8", "parallel.recompute=full"),
        ("model=llama", "workload.precision=fp16", "model.sliding_window=2048", "model.qk_norm=true"),
    ],
}


def rare(name: str, overrides: tuple[str, ...]) -> Portion:
    """A trial of a framework under these overrides."""
    given_ = [text for text in overrides if not text.startswith("hw.network")]
    given_ += [f"{text.split('=')[0]}='{text.split('=')[1]}'" for text in overrides if text.startswith("hw.network")]
    given_ = [
        f"{key}='{value}'" if " " in value and "'" not in value else f"{key}={value}" for key, value in (t.split("=", 1) for t in given_)
    ]
    software = [] if any(text.startswith("software=") for text in overrides) else [f"software={name}"]
    return one(*software, *given_)


@pytest.mark.parametrize(("name", "overrides"), [(name, each) for name, all_ in SPECIAL.items() for each in all_])
def test_settings_that_are_rare_come_back_too(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    row = rare(name, overrides)
    assert row.rule[0] < 0, row.reasons[int(row.rule[0])]
    file = exported(row, FRAMEWORKS[name], composer())
    found = back(file, tmp_path)
    assert settings(found.layouts) == settings(row.layouts)
    assert found.choices["software"] == row.choices["software"]
    prices = [float(price(each.scenario, each.layouts).step_time_s[0]) for each in (row, found)]
    assert prices[0] == pytest.approx(prices[1], rel=1e-12), file.unsaid
    known = {*published(name)["fields"], *published(name).get("later", []), *OF_TORCHRUN}
    for field in fields_of(row, FRAMEWORKS[name]):
        assert field in known or field.startswith(_OF_OTHERS), field
    memory = [float(price(each.scenario, each.layouts).peak_memory_bytes[0]) for each in (row, found)]
    assert memory[0] == pytest.approx(memory[1], rel=1e-12), file.unsaid


MEGATRON = r"""
#!/bin/bash
#SBATCH --nodes=16
#SBATCH --gpus-per-node=8   # a node
# tensor parallel within a node
GPUS_PER_NODE=8
TP=8
PP=$((8 * 2))
MODEL_SIZE=${MODEL_SIZE:-175}
export CUDA_DEVICE_MAX_CONNECTIONS=1
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $SLURM_NNODES
)
GPT_MODEL_ARGS=(
    --num-layers 96
    --hidden-size 12288          # GPT-3
    --num-attention-heads 96
    --seq-length 2048
    --max-position-embeddings 2048
)
TRAINING_ARGS="--micro-batch-size 1 --global-batch-size 1536 --train-iters 500000 --lr 6.0e-5 \
    --fp16 --recompute-activations"
MODEL_PARALLEL_ARGS=(
	--tensor-model-parallel-size ${TP}
	--pipeline-model-parallel-size $PP
	--num-layers-per-virtual-pipeline-stage 2
	--sequence-parallel
	--use-distributed-optimizer
	--some-flag-of-the-future 3
)
NCCL_DEBUG=INFO torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \
    ${GPT_MODEL_ARGS[@]} \
    $TRAINING_ARGS \
    ${MODEL_PARALLEL_ARGS[@]} \
    --vocab-size=51200 --data-path /data/my_text_document --split 949,50,1
"""


@pytest.mark.parametrize(
    ("overrides", "name", "lacks"),
    [
        (("parallel.zero=3",), "nanotron", ["nanotron does not offer zero 3 without pipelines; it offers zero 0, 1 there"]),
        (("parallel.zero=3",), "megatron_lm", []),
        (
            ("parallel.zero=3", "parallel.pp=2", "software.enforce=false"),
            "megatron_lm",
            ["Megatron-LM does not offer zero 3 with pipelines; it offers zero 0, 1 there"],
        ),
    ],
)
def test_what_a_framework_lacks_is_said_beside_its_file(overrides: tuple[str, ...], name: str, lacks: list[str]) -> None:
    row = one("model=llama3_1_8b", "hw=h100", "hw.num_gpus=64", "parallel.recompute=none", *overrides)
    notes = exported(row, FRAMEWORKS[name], composer()).notes
    assert [note for note in notes if "offer" in note] == lacks


@pytest.mark.parametrize(
    ("overrides", "connections", "formats", "meets"),
    [
        (("hw=h100", "hw.num_gpus=64", "parallel.tp=4"), "1", False, True),
        (("hw=h100", "hw.num_gpus=8", "parallel.cp=2"), "1", False, False),
        (("hw=h100", "hw.num_gpus=64", "parallel.pp=2"), "", False, True),
        (("hw=b200", "hw.num_gpus=64", "parallel.tp=4"), "", False, True),
        (("hw=h100", "hw.num_gpus=64", "parallel.tp=2", "parallel.zero=3"), "", True, True),
    ],
)
def test_scripts_hold_what_megatron_asserts_before_it_starts(
    overrides: tuple[str, ...], connections: str, formats: bool, meets: bool
) -> None:
    """validate_args of megatron-core 0.19.2: CUDA_DEVICE_MAX_CONNECTIONS is 1 with tp or cp before Blackwell, and is not with
    Megatron-FSDP, which writes checkpoints in one format; torchrun's nodes meet at an address."""
    text = exported(one("model=llama3_1_8b", *overrides), FRAMEWORKS["megatron_lm"], composer()).text
    tells = 'torchrun() { echo "${CUDA_DEVICE_MAX_CONNECTIONS-}"; echo "$@"; }\n'
    bash = ["bash", "-eu", "-c", tells + text]
    said, given = subprocess.run(bash, env={"MASTER_ADDR": "node-0"}, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == connections
    assert ("--ckpt-format fsdp_dtensor" in given) is formats
    assert ("--rdzv-backend c10d --rdzv-endpoint node-0:29500 pretrain_gpt.py" in given) is meets


def test_a_script_with_variables_arrays_and_sums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train_gpt3_175b_distributed.sh"
    path.write_text(MEGATRON)
    reading = read_file(path)
    assert reading.framework == "megatron_lm"
    assert reading.unread == ("--some-flag-of-the-future=3",)
    found = launched(reading, ["hw=a100"], composer())
    layout = settings(found.portion.layouts)
    expected = {
        "hw.num_gpus": 128,
        "parallel.tp": 8,
        "parallel.pp": 16,
        "parallel.vpp": 3,
        "parallel.dp": 1,
        "parallel.micro_batch_size": 1,
    }
    expected |= {
        "workload.global_batch_size": 1536,
        "parallel.recompute": "selective",
        "parallel.zero": 1,
        "parallel.sequence_parallel": True,
    }
    assert expected.items() <= layout.items()
    model = found.portion.scenario.model
    assert (model.num_hidden_layers, model.hidden_size, model.intermediate_size, model.mlp_type) == (96, 12288, 4 * 12288, "gelu")
    assert (model.position_embedding, model.norm, model.tie_word_embeddings, model.linear_bias) == ("learned", "layernorm", True, True)
    assert found.portion.scenario.workload.precision == "fp16"
    assert value_at(found.portion.scenario, "software.dp_overlap") == 0, "there is no --overlap-grad-reduce"
    assert found.assumed == ("cluster=reference",)


def test_flags_end_at_the_program_and_take_several_words() -> None:
    found = script_fields(
        "N=4\nA='--lr 1e-4 --bf16'\nB=\"$A --data-path x y\"\npython run.py $B --a_b=$((N * (2 + 1) / 2)) --c $UNSET --d ${M:-7}"
    )
    assert found == {"--lr": "1e-4", "--bf16": True, "--data-path": "x y", "--a-b": "6", "--c": "$UNSET", "--d": "7", "env:N": "4"}


@given(st.lists(st.integers(0, 9), min_size=2, max_size=24))
def test_layouts_of_pipelines_are_read_as_they_are_written(chunks: list[int]) -> None:
    text = megatron_core.layout_text(chunks)
    assert text.startswith("E")
    assert text.endswith("L")
    assert megatron_core.layout_counts(text) == chunks


def test_megatrons_own_example_of_a_layout_is_read() -> None:
    # arguments.py, --pipeline-model-parallel-layout: "Et|(tt|)*3,m|m||L" has one layer, three times two, then stages without layers
    assert megatron_core.layout_counts("Et|(tt|)*3,m|m||L") == [1, 2, 2, 2, 0, 0, 0, 0]


NANOTRON = """
general: {project: bench, run: 1}
model:
  dtype: bfloat16
  model_config: {hidden_size: 2048, num_hidden_layers: 16, num_attention_heads: 32, num_key_value_heads: 8, intermediate_size: 8192,
                 vocab_size: 131072, hidden_act: silu, is_llama_config: true, tie_word_embeddings: true}
optimizer: {zero_stage: 1, weight_decay: 0.01}
parallelism: {dp: 4, tp: 2, pp: 2, pp_engine: 1f1b, tp_mode: REDUCE_SCATTER, tp_linear_async_communication: true}
tokens: {sequence_length: 4096, micro_batch_size: 2, batch_accumulation_per_replica: 8, train_steps: 100}
"""
TITAN = """
[model]
name = "llama3"
flavor = "8B"
converters = ["quantize.linear.float8"]
[training]
local_batch_size = 2
seq_len = 8192
[parallelism]
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
[activation_checkpoint]
mode = "selective"
selective_ac_option = "2"
[compile]
enable = true
[float8]
enable_fsdp_float8_all_gather = true
"""
ZERO = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_prefetch_bucket_size": 5e7},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}
FOUNDRY = """
max_seq_len: 2048
global_train_batch_size: 256
device_train_microbatch_size: auto
precision: amp_bf16
model: {name: mpt_causal_lm, d_model: 4096, n_heads: 32, n_layers: 32, expansion_ratio: 4, vocab_size: 50368, no_bias: true,
        attn_config: {alibi: true, attn_impl: flash}}
fsdp_config: {sharding_strategy: FULL_SHARD, activation_checkpointing: true, mixed_precision: PURE}
optimizer: {name: decoupled_adamw}
"""


def read_text(text: str, name: str, folder: Path, *overrides: str) -> tuple[dict[str, Any], Portion, tuple[str, ...]]:
    path = folder / name
    path.write_text(text)
    reading = read_file(path)
    found = launched(reading, overrides, composer())
    assert not reading.unread
    return settings(found.portion.layouts), found.portion, reading.notes


def test_files_of_other_frameworks_are_read_as_people_have_them(tmp_path: Path) -> None:
    layout, portion, _ = read_text(NANOTRON, "bench.yaml", tmp_path)
    assert (layout["hw.num_gpus"], layout["workload.global_batch_size"], layout["parallel.zero"]) == (16, 4 * 2 * 8, 1)
    assert value_at(portion.scenario, "software.async_tp")
    layout, portion, notes = read_text(TITAN, "llama3_8b.toml", tmp_path, "hw.num_gpus=16")
    assert (layout["parallel.dp"], layout["parallel.zero"], layout["workload.global_batch_size"]) == (8, 3, 16)
    assert value_at(portion.scenario, "software.fp8_recipe") == "tensorwise + fp8 all-gather"
    assert portion.choices["model"] == "llama3_1_8b"
    assert any("selective_ac_option=2" in note for note in notes)
    layout, portion, _ = read_text(json.dumps(ZERO), "ds_config.json", tmp_path, "hw.num_gpus=8", "model=llama3_1_8b")
    assert (layout["workload.global_batch_size"], layout["parallel.zero"], value_at(portion.scenario, "software.dp_overlap")) == (64, 3, 0)
    layout, portion, notes = read_text(FOUNDRY, "mpt.yaml", tmp_path, "hw.num_gpus=8", "parallel.micro_batch_size=4")
    assert (layout["parallel.recompute"], layout["parallel.zero"], portion.scenario.model.mlp_type) == ("full", 3, "gelu")
    assert any("alibi" in note for note in notes)
    assert any("auto" in note for note in notes)


def test_serve_commands_are_read_as_people_have_them(tmp_path: Path) -> None:
    bench = "vllm bench serve --random-input-len 1000 --random-output-len 200 --max-concurrency 32 --num-prompts 320"
    text = f"vllm serve meta-llama/Llama-3.1-70B -tp 4 --data-parallel-size=2 --quantization fp8 --max-num-seqs 256\n{bench}\n"
    layout, portion, _ = read_text(text, "serve.sh", tmp_path, "model=llama3_1_70b", "hw=h100")
    expected = {"hw.num_gpus": 8, "parallel.tp": 4, "parallel.dp": 2, "workload.concurrency": 32, "workload.num_prompts": 320}
    assert expected.items() <= layout.items()
    assert (portion.scenario.workload.lengths, portion.scenario.workload.precision) == ((1000, 200), "fp8")
    assert value_at(portion.scenario, "software.max_num_seqs") == 256
    # tp-size are all GPUs of attention's copies: 16 = 2 copies of 8
    text = "python3 -m sglang.launch_server --model-path x --tp 16 --dp 2 --enable-dp-attention --ep 16 --mem-fraction-static 0.8"
    given_ = ("model=qwen3_235b_a22b", "hw=h200", "workload.prompt_len=512", "workload.decode_len=128", "hw.num_gpus=16")
    layout, portion, _ = read_text(text, "sglang.sh", tmp_path, *given_)
    expected = {"parallel.tp": 8, "parallel.attention_dp": 2, "parallel.ep": 16, "parallel.dp": 1}
    assert expected.items() <= layout.items()
    assert portion.choices["software"] == "sglang"


def test_torchtitans_own_split_over_stages_is_taken(tmp_path: Path) -> None:
    # 32 layers over 4 stages: embedding and output weigh a layer each, so that 34 go 9, 9, 8, 8: 8, 9, 8, 7 layers
    text = '[model]\nname = "llama3"\nflavor = "8B"\n[training]\nlocal_batch_size = 8\nglobal_batch_size = 64\n[parallelism]\n'
    layout, portion, _ = read_text(text + "pipeline_parallel_degree = 4\n", "pp.toml", tmp_path, "hw.num_gpus=16")
    assert portion.scenario.parallel.stage_layers == (8, 9, 8, 7)
    assert (layout["parallel.schedule"], layout["parallel.micro_batch_size"], layout["parallel.zero"]) == ("1f1b", 1, 2)


def test_flavors_have_the_dimensions_of_the_models_that_they_stand_for() -> None:
    # torchtitan/models/llama3/__init__.py: dim, n_layers, n_heads, n_kv_heads
    dims = {"8B": (4096, 32, 32, 8), "70B": (8192, 80, 64, 8), "405B": (16384, 126, 128, 8)}
    for option, (name, flavor) in FLAVORS.items():
        if name == "llama3":
            model = one(f"model={option}").scenario.model
            assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.num_key_value_heads) == dims[flavor]


def test_a_written_yaml_and_toml_and_json_are_what_their_parsers_read() -> None:
    import tomllib

    parsers = {".yaml": yaml.safe_load, ".toml": tomllib.loads, ".json": json.loads}
    for name in ("nemo", "torchtitan", "deepspeed", "nanotron", "llm_foundry"):
        file = exported(rows(name)[0], FRAMEWORKS[name], composer())
        assert isinstance(parsers[file.suffix](file.text), dict)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("export")
    done(where, "-m", "model=llama3_1_8b", "parallel.tp=1,2", "parallel.zero=1,3", "search.study=small")
    return where


def keys(folder: Path) -> Iterator[dict[str, Any]]:
    import pandas as pd

    yield from pd.read_parquet(folder / "results" / "small").to_dict("records")


def test_the_command_writes_what_is_launched(folder: Path) -> None:
    module = {"module": "rapid_dse.export"}
    row = next(row for row in keys(folder) if row["parallel.tp"] == 2 and row["parallel.zero"] == 3)
    printed = done(folder, "results/small", "--key", row["key"][:12], **module)
    assert "--tensor-model-parallel-size 2" in printed.out
    assert "--data-parallel-sharding-strategy optim_grads_params" in printed.out
    found = json.loads(done(folder, "results/small", "--key", row["key"], "--to", "deepspeed", "--json", **module).out)
    assert found["key"] == row["key"]
    assert json.loads(found["text"])["zero_optimization"]["stage"] == 3
    assert {"hw=h100", "model=llama3_1_8b", "workload.seq_len=8192"} <= set(found["unsaid"])
    written = done(folder, "results/small", "--to", "deepspeed", "--out", "ds.json", **module)
    assert (folder / "ds.json").read_text().startswith("{")
    assert "python -m rapid_dse.advise ds.json hw=h100" in written.err
    assert "priced for software=megatron_lm" in written.err


def test_what_is_wrong_is_one_line(folder: Path, tmp_path: Path) -> None:
    module = {"module": "rapid_dse.export"}
    assert "megatron_lm, nemo" in one_line(run(folder, "results/small", "--to", "jax", **module))
    assert "no row has it" in one_line(run(folder, "results/small", "--key", "zz", **module))
    for name, text, says in (
        ("a.json", "{", "is no JSON"),
        ("b.toml", "x", "is no TOML"),
        ("c.yaml", "{", "is no YAML"),
        ("d.yaml", "- 1", "holds no fields"),
        ("e.sh", "echo hello", "has no field of"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=says):
            read_file(tmp_path / name)
    (tmp_path / "f.json").write_text(json.dumps(ZERO))
    with pytest.raises(ValueError, match="the model is not in this file"):
        launched(read_file(tmp_path / "f.json"), ["hw.num_gpus=8"], composer())
    with pytest.raises(ValueError, match="the number of GPUs is not in this file"):
        launched(read_file(tmp_path / "f.json"), ["model=llama3_1_8b"], composer())
    with pytest.raises(ValueError, match="cannot run: tp must divide"):
        launched(read_file(tmp_path / "f.json"), ["model=llama3_1_8b", "hw.num_gpus=6", "parallel.tp=3"], composer())


SCRIPT_OF_MEMORY = """
torchrun --nproc-per-node 8 --nnodes 4 pretrain_gpt.py --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 \\
  --num-attention-heads 32 --swiglu --seq-length 8192 --micro-batch-size 1 --global-batch-size 64 --bf16 --use-distributed-optimizer \\
  --context-parallel-size 4 --cp-comm-type a2a --recompute-granularity selective --recompute-modules layernorm mlp shared_experts \\
  --optimizer-cpu-offload --optimizer-offload-fraction 0.25 --cpu-offloading-num-layers 16 --mtp-num-layers 1
"""


def test_memory_that_a_script_saves_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(SCRIPT_OF_MEMORY)
    reading = read_file(tmp_path / "train.sh")
    assert not reading.unread
    assert reading.notes == ("--recompute-modules=layernorm mlp shared_experts: taken as layernorm mlp",)
    found = launched(reading, ["hw=h100"], composer()).portion.scenario
    parallel = found.parallel
    assert (parallel.cp_kind, parallel.recompute_modules) == ("ulysses", "layernorm+mlp")
    assert (parallel.offload_optimizer, parallel.offload_activations, parallel.offload_weights) == (0.25, 0.5, 0.0)
    assert found.model.num_nextn_predict_layers == 1


def test_layers_that_a_script_repeats_are_counted_a_stage(tmp_path: Path) -> None:
    """Megatron Core's block method repeats so many layers of each chunk of a stage."""
    text = SCRIPT_OF_MEMORY.replace("selective --recompute-modules layernorm mlp shared_experts", "full --recompute-method block")
    stages = "--recompute-num-layers 2 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4"
    (tmp_path / "train.sh").write_text(
        text.replace("--context-parallel-size 4 --cp-comm-type a2a", stages).replace("--mtp-num-layers 1", "")
    )
    found = launched(read_file(tmp_path / "train.sh"), ["hw=h100"], composer()).portion
    assert found.scenario.parallel.recompute_layers == 2 * 2
    assert settings(found.layouts)["parallel.vpp"] == 2


def test_what_deepspeed_offloads_is_read(tmp_path: Path) -> None:
    zero = ZERO["zero_optimization"] | {"offload_optimizer": {"device": "cpu", "ratio": 0.3}, "offload_param": {"device": "nvme"}}  # type: ignore[operator]
    (tmp_path / "ds.json").write_text(json.dumps(ZERO | {"zero_optimization": zero}))
    reading = read_file(tmp_path / "ds.json")
    found = launched(reading, ["hw=h100", "hw.num_gpus=8", "model=llama3_1_8b"], composer()).portion.scenario.parallel
    assert (found.offload_optimizer, found.offload_weights) == (0.3, 1.0)
    assert "zero_optimization.offload_param.device=nvme: taken as the host's memory" in reading.notes


def test_adapters_of_a_recipe_are_read(tmp_path: Path) -> None:
    recipe = {"model": {"tensor_model_parallel_size": 2}, "train": {"global_batch_size": 16, "micro_batch_size": 1}}
    recipe["peft"] = {
        "_target_": "megatron.bridge.peft.canonical_lora.CanonicalLoRA",
        "dim": 8,
        "target_modules": ["linear_q", "linear_fc2"],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    work = launched(
        read_file(tmp_path / "run.yaml"), ["hw=h100", "hw.num_gpus=8", "model=llama3_1_8b"], composer()
    ).portion.scenario.workload
    assert (work.trainable, work.lora_rank, work.lora_targets) == ("lora", 8, ("down_proj", "q_proj"))


def test_the_best_that_keeps_limits_is_launched(tmp_path: Path) -> None:
    """Of three loads the largest gives most tokens; between the times of a token of the two others only these keep a limit."""
    loads = ("hw=h100", "model=llama3_1_8b", "workload=inference", "hw.num_gpus=1", "workload.concurrency=4,64,256")
    done(tmp_path, "-m", *loads, "search.study=loads")
    times = sorted(program.rows(tmp_path)["tpot_s"])
    asked, limit = ("results/loads", "--by", "tokens_per_s_per_gpu"), f"tpot_s<={(times[1] + times[2]) / 2}"
    assert "--max-concurrency 256" in done(tmp_path, *asked, module="rapid_dse.export").out
    kept = done(tmp_path, *asked, "--constraint", limit, module="rapid_dse.export")
    assert "--max-concurrency 64" in kept.out
    assert f"the best by tokens_per_s_per_gpu with {limit}" in kept.err
    told = one_line(run(tmp_path, *asked, "--constraint", "tpot_s<=1e-9", module="rapid_dse.explain"))
    assert "no row keeps it" in told
