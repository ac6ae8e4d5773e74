"""Dropout is the model's: what it costs where a model has it, and who says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from test_launch_files import FRAMEWORKS, back, composer, one
from trials import layouts, priced, scenario

from rapid_dse.analysis.launch_files.exported import exported
from rapid_dse.analysis.launch_files.launched import launched
from rapid_dse.events.backends import price
from rapid_dse.imports.file_options import read_option
from rapid_dse.model.architecture import architecture
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.operator_times import elementwise_bytes
from rapid_dse.sweep.places import home

DATA = Path(__file__).parent / "data" / "hugging_face"
ROW = {"num_gpus": 8, "global_batch_size": 64, "zero": 0, "recompute": "none"}


@pytest.mark.parametrize(
    ("model", "software", "dropout", "drops"),
    [
        ("gpt3_175b", "megatron_lm", None, True),  # arguments.py: 0.1 unless set
        ("gpt3_175b", "nemo", None, False),
        ("gpt3_175b", "nemo", True, True),
        ("gpt3_175b", "megatron_lm", False, False),
        ("llama3_1_8b", "megatron_lm", None, False),  # its config.json has none, whatever its framework does unasked
        ("qwen3_30b_a3b", "megatron_deepspeed", None, False),
        ("llama3_1_8b", "megatron_lm", True, True),
    ],
)
def test_a_model_says_it_else_its_framework(model: str, software: str, dropout: bool | None, drops: bool) -> None:
    """What either says costs what the other does."""
    said = {} if dropout is None else {"model__dropout": dropout}
    found, as_told = (priced(scenario("h100", model, software, **each), ROW) for each in (said, {"model__dropout": drops}))
    opposite = priced(scenario("h100", model, software, model__dropout=not drops), ROW)
    assert found.step_time_s == as_told.step_time_s
    assert found.peak_memory_bytes == as_told.peak_memory_bytes
    assert (found.step_time_s > opposite.step_time_s) == drops
    assert (found.peak_memory_bytes > opposite.peak_memory_bytes) == drops


@pytest.mark.parametrize("attention", ["flash", "unfused"])
@pytest.mark.parametrize("model", ["gpt3_175b", "llama2_13b", "deepseek_v2"])
def test_masks_are_a_byte_an_element(model: str, attention: str) -> None:
    """Korthikanti et al. (arXiv 2205.05198, section 4.1): a mask of 1 byte behind attention and one behind the MLP, of the stream; unfused
    a mask of the scores too, and the weights that are left beside those that the softmax gave."""
    usual = {"software__attention": attention, "workload__seq_len": 1024, "software__activation_overhead": 1.0}
    with_, without = (scenario("a100", model, "nemo", model__dropout=each, **usual) for each in (True, False))
    row = layouts({"num_gpus": 8, "tp": 1, "recompute": "none", "micro_batch_size": 2})
    kept = [float(layer_activations(of, row)[-1][0]) for of in (with_, without)]
    tokens, heads, hidden = 2 * 1024, with_.model.num_attention_heads, with_.model.hidden_size
    scores = tokens * heads * 1024 * 3 if attention == "unfused" else 0
    assert kept[0] - kept[1] == pytest.approx(2 * tokens * hidden + scores, rel=1e-9)


@pytest.mark.parametrize("model", ["gpt3_175b", "llama2_13b", "deepseek_v2"])
def test_a_mask_is_written_and_read(model: str) -> None:
    """Behind attention and behind the MLP, forward and backward: a byte an element of the stream."""
    with_, without = (scenario("a100", model, "nemo", model__dropout=each, workload__seq_len=1024) for each in (True, False))
    shape = MicroBatch.of(layouts({"num_gpus": 8}), with_.workload)
    moved = [np.array(elementwise_bytes(of, architecture(of.model).kinds[0], shape))[:, 0] for of in (with_, without)]
    np.testing.assert_allclose(moved[0] - moved[1], 2 * 1024 * with_.model.hidden_size, rtol=1e-12)


def test_inference_drops_nothing() -> None:
    settings = ("model=gpt3_175b", "workload=inference", "hw.num_gpus=8", "parallel.tp=8", "workload.batch_size=4", "software=pytorch")
    beside = ([], ["model.dropout=true"], ["software.dropout=true"])
    rows = [one(*settings, "software.enforce=false", "workload.decode_len=16", *each) for each in beside]
    steps = [float(price(row.scenario, row.layouts).step_time_s[0]) for row in rows]
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("model=llama3_1_8b", "software.dropout=true"), "software.dropout has no effect here: it has one with model.dropout=null"),
        (("model=gpt", "software.dropout=false"), None),
        (("model=gpt", "model.dropout=true"), None),
    ],
)
def test_the_frameworks_default_is_of_models_that_do_not_say(settings: tuple[str, ...], said: str | None, tmp_path: Path) -> None:
    ended = program.done(tmp_path, *settings, "hw.num_gpus=8", "parallel.tp=8", "workload.global_batch_size=8")
    assert [line for line in ended.err.splitlines() if "no effect" in line] == ([said] if said else [])


@pytest.mark.parametrize(
    ("name", "changes", "drops"),
    [
        ("gpt2", {}, True),
        ("gpt2", {"resid_pdrop": 0, "attn_pdrop": 0}, False),  # that of embeddings alone is not priced
        ("llama3_1_8b", {}, False),
        ("llama3_1_8b", {"attention_dropout": 0.1}, True),
        ("llama3_1_8b", {"attention_dropout": None}, False),
        ("deepseek_v3", {}, False),  # the file does not say: transformers' default is 0
        ("phi_4", {"resid_pdrop": 0.05}, True),
        ("pythia_6_9b", {"hidden_dropout": 0.1}, True),
        ("vit_base", {"hidden_dropout_prob": 0.1}, True),
    ],
)
def test_a_config_json_says_it(name: str, changes: dict[str, Any], drops: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(json.loads((DATA / f"{name}.json").read_text()) | changes))
    found = read_option("model", tmp_path / "config.json", home())
    assert found.option["dropout"] is drops
    assert all(found.taken[key] == "model.dropout" for key, value in changes.items() if value)


def test_gpt_2_without_rates_has_transformers_default(tmp_path: Path) -> None:
    tree = {key: value for key, value in json.loads((DATA / "gpt2.json").read_text()).items() if not key.endswith("_pdrop")}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_option("model", tmp_path / "config.json", home()).option["dropout"] is True


@pytest.mark.parametrize("value", [1.5, -0.1, "much", True, [], {}])
def test_a_rate_that_is_none_is_one_line(value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(json.loads((DATA / "llama3_1_8b.json").read_text()) | {"attention_dropout": value}))
    with pytest.raises(ValueError, match=r"attention_dropout.*expected a") as error:
        read_option("model", tmp_path / "config.json", home())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize(
    ("name", "model", "fields"),
    [
        ("megatron_lm", "gpt3_175b", "--attention-dropout {rate}|--hidden-dropout {rate}"),
        ("nemo", "llama3_1_8b", "attention_dropout: {rate}|hidden_dropout: {rate}"),
        ("llm_foundry", "gpt", "attn_pdrop: {rate}|resid_pdrop: {rate}"),
        ("torchtitan", "llama3_1_8b", ""),
        ("nanotron", "gpt", ""),
        ("deepspeed", "gpt", ""),
    ],
)
def test_launch_files_say_it(name: str, model: str, fields: str, drops: bool, tmp_path: Path) -> None:
    """By their own fields where the framework has them, else in a comment, or beside the file."""
    zero = "parallel.zero=0" if name in ("nanotron", "deepspeed") else "parallel.zero=3"
    row = one(f"model={model}", f"software={name}", f"model.dropout={str(drops).lower()}", zero, "parallel.recompute=none")
    file = exported(row, FRAMEWORKS[name], composer())
    for field in fields.split("|") if fields else ():
        assert field.format(rate=0.1 if drops else 0.0) in file.text
    assert ("model.dropout=true" in file.unsaid) == (drops and not fields)
    found = back(file, tmp_path).scenario
    assert found.model.drops_out(found.software.kernels.dropout) is drops


@pytest.mark.parametrize(
    ("flags", "drops", "noted"),
    [
        ("", True, False),
        ("--attention-dropout 0.0 --hidden-dropout 0.0", False, False),
        ("--attention-dropout 0", True, True),  # the other's default is 0.1
        ("--attention-dropout=0.1 --hidden-dropout=0.1", True, False),
    ],
)
def test_flags_of_megatron_are_read(flags: str, drops: bool, noted: bool) -> None:
    sizes = "--num-layers 8 --hidden-size 1024 --num-attention-heads 8 --seq-length 1024 --vocab-size 51200 --global-batch-size 64 --swiglu"
    reading = FRAMEWORKS["megatron_lm"].read(f"torchrun --nnodes 1 --nproc-per-node 8 pretrain_gpt.py {sizes} --bf16 {flags}")
    assert not reading.unread
    assert any("dropout is taken as on in both places" in note for note in reading.notes) == noted
    found = launched(reading, (), composer()).portion.scenario
    assert found.model.dropout is drops
    other = launched(reading, ["model=llama3_1_8b"], composer()).portion.scenario
    assert other.model.dropout is drops, "how it is trained is the file's, whichever model"
