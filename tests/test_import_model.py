"""Hugging Face's config.json as options: parameters as the makers publish them, kinds that are not modelled refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import program
import pytest
import yaml

import rapid_dse as rd
from rapid_dse.analysis.model_card import card
from rapid_dse.config.model import Model
from rapid_dse.imports.checked import checked_model
from rapid_dse.imports.file_options import read_option
from rapid_dse.model.parameters import count
from rapid_dse.sweep.places import home

DATA = Path(__file__).parent / "data" / "hugging_face"

# Parameters in the repositories' safetensors (all, active; GLM's 12 B active are without embedding and head, which are added), and bytes
# a token in a 16-bit KV cache worked out from the published dimensions: 2 (keys, values) × 2 B × layers × KV heads × head; latent
# attention: 2 B × layers × (latent + rotary part).
PUBLISHED: dict[str, tuple[float, float, int]] = {
    "llama3_1_8b": (8_030_261_248, 8_030_261_248, 4 * 32 * 8 * 128),
    "mistral_7b_v0_1": (7_241_732_096, 7_241_732_096, 4 * 32 * 8 * 128),
    "mixtral_8x7b": (46_702_792_704, 12.9e9, 4 * 32 * 8 * 128),
    "qwen2_5_7b": (7_615_616_512, 7_615_616_512, 4 * 28 * 4 * 128),
    "qwen3_30b_a3b": (30_532_122_624, 3.3e9, 4 * 48 * 4 * 128),
    "deepseek_v3": (671e9, 37e9, 2 * 61 * (512 + 64)),
    "kimi_k2": (1.04e12, 32e9, 2 * 61 * (512 + 64)),
    "glm_4_5_air": (106e9, 12e9 + 2 * 151552 * 4096, 4 * 46 * 8 * 128),
    "gemma_2b": (2_506_172_416, 2_506_172_416, 4 * 18 * 1 * 256),
    "gemma_3_27b": (27.0e9, 27.0e9, 4 * 62 * 16 * 128),  # the language model of the 27.4 B, without the vision tower of 0.42 B
    "phi_4": (14_659_507_200, 14_659_507_200, 4 * 40 * 10 * 128),
    "pythia_6_9b": (6_857_302_016, 6_857_302_016, 4 * 32 * 32 * 128),
    "falcon_40b": (41_303_293_952, 41_303_293_952, 4 * 60 * 8 * 64),
    "olmo_2_7b": (7_298_617_344, 7_298_617_344, 4 * 32 * 32 * 128),
    "vit_base": (86_567_656, 86_567_656, 0),
    "gpt_oss_20b": (20_914_757_184, 3.61e9 + 201088 * 2880, 4 * 24 * 8 * 64),  # its active ones are told without the embedding
}
# How near the count comes: exact where all of the published figure is modelled; rounded figures to their last digit; norms over the
# full width (OLMo 2) and biases of experts (gpt-oss) are not counted.
NEAR = {"gemma_3_27b": 2e-3, "deepseek_v3": 2e-3, "kimi_k2": 1.5e-2, "glm_4_5_air": 1e-2, "olmo_2_7b": 1e-4, "gpt_oss_20b": 2e-3}
# What the schema has to have before a family composes.
NEEDS = {"vit_base": "image_size"}


def modelled(name: str) -> bool:
    """Whether the schema has what the family needs."""
    needed = NEEDS.get(name, "hidden_size")
    return needed in Model.model_fields or needed in str(Model.model_fields["mlp_type"].annotation)


def read(name: str) -> Model:
    return checked_model(read_option("model", DATA / f"{name}.json", home()).option)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    if not modelled(name):
        pytest.skip(f"{NEEDS[name]} is no key of the schema")
    parameters, active, cached = PUBLISHED[name]
    found = card(read(name))
    assert found.parameters == pytest.approx(parameters, rel=NEAR.get(name, 0))
    assert found.active_parameters == pytest.approx(active, rel=0.035 if active != parameters else NEAR.get(name, 0))
    assert found.kv_bytes_per_token == cached


def test_gpt_2_counts_its_learned_positions() -> None:
    assert count(read("gpt2"), positions=1024).total == 124_439_808  # the published figure of the 124M model


@pytest.mark.parametrize("name", [each.stem for each in sorted(DATA.glob("*.json")) if not modelled(each.stem)])
def test_a_kind_that_is_not_modelled_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    line = program.one_line(program.run(tmp_path, f"model={DATA / name}.json"))
    assert "a kind that is not modelled" in line
    assert "vision transformer" in line


@pytest.mark.parametrize("name", ["llama3_1_8b", "qwen3_30b_a3b", "mixtral_8x7b"])
def test_a_file_and_the_shipped_option_are_the_same_model(name: str) -> None:
    shipped = checked_model(yaml.safe_load((home() / f"conf/model/{name}.yaml").read_text()))
    own = read(name)
    beside = {"name": shipped.name, "max_position_embeddings": own.max_position_embeddings or shipped.max_position_embeddings}  # if untold
    assert own.model_copy(update=beside) == shipped


def test_every_key_is_taken_or_listed_with_a_reason() -> None:
    for path in sorted(DATA.glob("*.json")):
        if not modelled(path.stem):
            continue
        tree = json.loads(path.read_text())
        found = read_option("model", path, home())
        keys = {*found.taken, *(key.split(".")[0] for key in found.not_taken)}
        assert not {*tree.get("text_config", tree)} - keys, path.name
        assert all(found.not_taken.values())
        assert not [key for key, why in found.not_taken.items() if why.startswith("not a key")], path.name


@pytest.mark.parametrize(
    ("name", "changes", "fields"),
    [
        ("mistral_7b_v0_1", {}, {"sliding_window": 4096}),
        ("mistral_7b_v0_1", {"sliding_window": 32768}, {}),  # as long as the longest sequence: no window
        ("qwen2_5_7b", {}, {}),  # a window that is switched off
        ("qwen2_5_7b", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}, {"sliding_window": 4096}),
        ("falcon_40b", {"new_decoder_architecture": False, "num_kv_heads": None}, {"num_key_value_heads": 1}),
        ("falcon_40b", {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": None}, {"num_key_value_heads": 128}),
        ("qwen3_30b_a3b", {"mlp_only_layers": [0, 1]}, {"first_k_dense_replace": 2}),
        ("deepseek_v3", {}, {"n_group": 8, "topk_group": 4, "first_k_dense_replace": 3}),
        ("deepseek_v3", {"n_group": 1, "topk_group": 1}, {"first_k_dense_replace": 3}),
        ("qwen3_30b_a3b", {"shared_expert_intermediate_size": 1536}, {"n_shared_experts": 2}),
        ("qwen3_30b_a3b", {"decoder_sparse_step": 2}, {"interleave_moe_layer_step": 2}),
        ("qwen2_5_7b", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, {"fp8_block_scales": True}),
        ("qwen3_30b_a3b", {"quantization_config": {"quant_method": "fp8"}}, {"fp8_block_scales": False}),
        (
            "falcon_40b",
            {"model_type": "RefinedWebModel", "new_decoder_architecture": False, "num_kv_heads": None},
            {"num_key_value_heads": 1},
        ),
    ],
)
def test_what_a_file_says_in_other_words(name: str, changes: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    tree = json.loads((DATA / f"{name}.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(tree))
    found = read_option("model", tmp_path / "config.json", home()).option
    assert {key: found[key] for key in fields} == fields
    assert ("n_group" in found) == ("n_group" in fields)
    assert ("fp8_block_scales" in found) == ("fp8_block_scales" in fields)
    assert "layer_types" not in found
    if name != "falcon_40b":
        assert ("sliding_window" in found) == ("sliding_window" in fields)


@pytest.mark.parametrize(("every", "windowed"), [(6, 22), (3, 18), (1, 0)])
def test_each_of_so_many_layers_of_gemma_has_no_window(every: int, windowed: int, tmp_path: Path) -> None:
    """26 layers: the 6th, 12th, 18th and 24th look at all tokens, or each third of them, or each."""
    sizes = {
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "vocab_size": 262144,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
    }
    (tmp_path / "config.json").write_text(
        json.dumps(sizes | {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": every})
    )
    found = read_option("model", tmp_path / "config.json", home())
    types = found.option.get("layer_types", ["full_attention"])
    assert [types[layer % len(types)] for layer in range(26)].count("sliding_attention") == windowed
    assert found.taken["sliding_window_pattern"] == "model.layer_types"


WRONG: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no json": ("{", "cannot be read as json"),
    "a list": ("[1]", "expected keys with values"),
    "a family that is unknown": ({"model_type": "mamba"}, "model_type=mamba"),
    "linear attention": ({"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]}, "linear or state-space"),
    "an indexer": ({"model_type": "deepseek_v32", "index_topk": 2048}, "indexer (index_topk)"),
    "dense layers between": ({"model_type": "qwen3_moe", "moe_layer_freq": 2}, "moe_layer_freq"),
    "a width that is missing": ({"model_type": "llama", "hidden_size": None}, "hidden_size or n_embd or d_model is missing"),
    "text for a number": ({"model_type": "llama", "num_hidden_layers": "many"}, "model.num_hidden_layers='many'"),
    "layers of too few kinds": ({"model_type": "llama", "layer_types": ["full_attention"]}, "has 1 kinds and num_hidden_layers is 2"),
    "no list of kinds": ({"model_type": "llama", "layer_types": "full_attention"}, "expected a list, a kind for each layer"),
    "yes for a number": ({"model_type": "llama", "num_hidden_layers": True}, "model.num_hidden_layers=true"),
    "heads that do not divide": ({"model_type": "llama", "num_key_value_heads": 5}, "num_key_value_heads=5"),
}


@pytest.mark.parametrize(("content", "part"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_one_line(content: dict[str, Any] | str, part: str, tmp_path: Path) -> None:
    whole = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 128, "intermediate_size": 256}
    text = content if isinstance(content, str) else json.dumps(whole | content)
    (tmp_path / "config.json").write_text(text)
    for module, argument in (("rapid_dse", "model=./config.json"), ("rapid_dse.import_model", "config.json")):
        assert part in program.one_line(program.run(tmp_path, argument, module=module))


def test_files_and_folders_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in program.one_line(program.run(tmp_path, "model=./config.json"))
    assert "is a folder" in program.one_line(program.run(tmp_path, "model=./"))
    (tmp_path / "chip.yaml").write_text("sms: 3\n")
    assert "has no hidden_size" in program.one_line(program.run(tmp_path, "model=./chip.yaml"))
    assert "says nothing of tensor_cores_per_sm" in program.one_line(program.run(tmp_path, "hw=./chip.yaml"))


def test_a_trial_a_sweep_and_a_table_take_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text((DATA / "llama3_1_8b.json").read_text())
    trial = program.done(tmp_path, "model=./mine/config.json", "parallel.tp=8")
    assert "8.03 B parameters" in trial.out
    program.done(tmp_path, "-m", "model=./mine/config.json,llama3_1_8b", "parallel.tp=2,8")
    rows = program.rows(tmp_path)
    assert [path.name.startswith("h100-mine+llama3_1_8b-") for path in (tmp_path / "results").iterdir()] == [True]
    seconds = rows.pivot_table(index="parallel.tp", columns="model", values="step_time_s")
    assert (seconds["./mine/config.json"] == seconds["llama3_1_8b"]).all()
    (tmp_path / "cases.csv").write_text("model,parallel.tp\n./mine/config.json,2\nllama3_1_8b,2\n")
    program.done(tmp_path, "cases.csv", "--out", "out.csv", module="rapid_dse.evaluate")


def test_a_file_of_ones_own_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "fast.yaml").write_text((home() / "conf/hw/h100.yaml").read_text().replace("3.35 TB/s", "6.7 TB/s"))
    plain, fast = (program.done(tmp_path, f"hw={hw}", "model=llama3_1_8b", "parallel.tp=8").out for hw in ("h100", "./fast.yaml"))
    assert plain.splitlines()[3] != fast.splitlines()[3]


def test_importing_writes_an_option_and_lists_all_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((DATA / "deepseek_v3.json").read_text())
    ended = program.done(tmp_path, "config.json", "--out", "v3", module="rapid_dse.import_model")
    assert "671 B parameters, 37.6 B active; KV cache 70,272 bytes a token" in ended.out
    written = yaml.safe_load((tmp_path / "conf/model/v3.yaml").read_text())
    assert written["kv_lora_rank"] == 512
    again = program.run(tmp_path, "config.json", "--out", "v3", module="rapid_dse.import_model")
    assert "is there already" in program.one_line(again)
    report = json.loads(program.done(tmp_path, "config.json", "--dry-run", "--json", module="rapid_dse.import_model").out)
    assert report["file"] is None
    assert report["model"]["kv_bytes_per_token"] == 70272


def test_a_gated_gelu_costs_what_a_gated_silu_does() -> None:
    plain, gated, silu = (rd.simulate(model="llama3_1_8b", num_gpus=16, tp=2, mlp_type=kind) for kind in ("gelu", "geglu", "swiglu"))
    assert gated.step_time_s == silu.step_time_s > plain.step_time_s
    assert gated.peak_memory_bytes == silu.peak_memory_bytes


@pytest.mark.parametrize("name", [each.stem for each in sorted(DATA.glob("*.json"))])
def test_every_family_goes_through_to_a_result(name: str) -> None:
    if not modelled(name):
        pytest.skip(f"{NEEDS[name]} is no key of the schema")
    text: tuple[dict[str, Any], ...] = (
        {"seq_len": 1024, "global_batch_size": 64},
        {"workload": "inference", "concurrency": 8, "prompt_len": 256, "decode_len": 64},
    )
    images: tuple[dict[str, Any], ...] = ({"global_batch_size": 64}, {"workload": "inference", "batch_size": 8})
    for workload in text if read(name).of_kind.decodes else images:
        row = rd.simulate(workload, model=DATA / f"{name}.json", num_gpus=16, tp=2)
        assert row.status in ("ok", "oom")
        assert row.step_time_s > 0
