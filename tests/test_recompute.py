"""What recomputation keeps and runs again: entries of config/recompute, sums of them, and a number of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from trials import layouts, legal, priced, scenario

from rapid_dse.config.recompute_entries import entries, module_names, named
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.model import recompute
from rapid_dse.model.architecture import architecture
from rapid_dse.model.shapes import ONE
from rapid_dse.parallel.layouts import broken_rules

WIDE, TOKENS, HIDDEN = 14336, 8192, 4096  # of Llama 3.1 8B, one sequence a micro-batch
ROW = {"num_gpus": 4, "tp": 4, "global_batch_size": 4, "recompute": "selective"}
HOST = {"software__host_layer": 0.0, "software__host_micro_batch": 0.0, "software__host_collective_layer": 0.0}


def with_modules(modules: str | None, model: str = "llama3_1_8b", **changes: Any) -> Scenario:
    return scenario("h100", model, "nemo", parallel__recompute_modules=modules, **HOST, **changes)


def of_layer(modules: str, model: str = "llama3_1_8b") -> recompute.Recomputation:
    return recompute.selective(with_modules(modules, model))[-1]


def again(of: Scenario, number: int = -1) -> dict[str, float]:
    """Products and small kernels of a kind of layer that selective recomputation repeats, with their share."""
    kind, some = architecture(of.model).kinds[number], recompute.selective(of)[number]
    products = {each.name: share for each, share in zip(kind.products(ONE), some.products, strict=True)}
    small = {each.name: share for each, share in zip(kind.small_kernels(ONE, of.software), some.small, strict=True)}
    return {name: share for name, share in (products | small).items() if share}


@pytest.mark.parametrize(
    ("modules", "model", "repeated"),
    [
        ("layernorm", "llama3_1_8b", {"attention_norm", "mlp_norm"}),
        ("mlp", "llama3_1_8b", {"mlp_up", "activation", "mlp_down"}),
        ("moe_act", "qwen3_30b_a3b", {"activation"}),
        ("layernorm+moe_act", "qwen3_30b_a3b", {"attention_norm", "mlp_norm", "activation"}),
        ("moe", "qwen3_30b_a3b", {"router", "routing", "spread", "expert_padding", "expert_up", "activation", "expert_down"}),
        ("mla_up_proj", "deepseek_v3", {"queries", "keys_values", "joined"}),
        ("mlp", "qwen3_30b_a3b", set()),
        ("core_attn", "llama3_1_8b", set()),
    ],
)
def test_what_is_not_kept_is_made_again_by_what_makes_it(modules: str, model: str, repeated: set[str]) -> None:
    """As Megatron Core's documentation of --recompute-modules has it."""
    assert again(with_modules(modules, model)) == dict.fromkeys(repeated, 1.0)


def test_transfers_of_a_module_run_again_with_it() -> None:
    mlp, moe, norms = of_layer("mlp"), of_layer("moe", "qwen3_30b_a3b"), of_layer("layernorm")
    assert (mlp.gathers, mlp.scatters, mlp.dispatched) == ((0, 1), (0, 1), 0)
    assert (moe.gathers, moe.scatters, moe.dispatched, moe.combined) == ((0, 1), (0, 1), 1, 1)
    assert not norms.exchanges
    assert of_layer("core_attn").core == 1


def test_a_tensor_that_is_forgotten_has_all_its_makers_run_again() -> None:
    """What the kernel reads is not kept, nor what the projection reads: norm, gather, projection and rotation make it again."""
    of = with_modules(None)
    (kind,) = architecture(of.model).kinds
    entry = entries()["layernorm"].model_copy(update={"forgets": ("qkv", "qkv_input")})
    found = recompute.recomputation(kind, of.software, [entry])
    small = {each.name: share for each, share in zip(kind.small_kernels(ONE, of.software), found.small, strict=True)}
    assert found.products == (1, 0, 0, 0)
    assert small == {"attention_norm": 1, "rotary": 1, "attention_residual": 0, "mlp_norm": 0, "activation": 0, "mlp_residual": 0}
    assert found.gathers == (1, 0)


def test_memory_and_time_of_an_mlp_that_runs_again() -> None:
    """Three tensors of the intermediate size are not kept, 2 bytes each, a quarter of them on each of 4 ranks; the step has the time of
    an MLP's products, activation and exchanges more, 32 layers and 4 micro-batches."""
    plain, mlp = (priced(with_modules(modules), ROW) for modules in ("core_attn", "mlp"))
    kept = 3 * TOKENS * WIDE / 4 * 2
    assert (plain.memory_activations_bytes - mlp.memory_activations_bytes)[0] == pytest.approx(31 * kept, rel=0.03)
    assert mlp.time_tp_s[0] > plain.time_tp_s[0] * 1.1
    flops = 6 * TOKENS * HIDDEN * WIDE / 4
    products = 4 * 32 * flops / (0.75 * 989e12)
    attention = 4 * 32 * 2 * TOKENS**2 * HIDDEN / 4 / (0.5 * 989e12)  # which core_attn runs again, causal
    assert mlp.time_compute_s[0] - plain.time_compute_s[0] == pytest.approx(products - attention, rel=0.35)


def test_norms_are_kept_no_more() -> None:
    """Inputs of qkv and of the MLP, 2 bytes an element under sequence parallelism of 4 ranks; one layer's are whole while it runs."""
    plain, less = (priced(with_modules(modules), ROW) for modules in ("core_attn", "layernorm"))
    assert (plain.memory_activations_bytes - less.memory_activations_bytes)[0] == pytest.approx(31 * 2 * TOKENS * HIDDEN / 4 * 2)


@pytest.mark.parametrize(("modules", "recomputed"), [("core_attn", "selective"), ("layernorm", "selective"), ("mlp", "selective")])
def test_what_is_kept_lies_between_all_and_the_input(modules: str, recomputed: str) -> None:
    rows = [ROW | {"recompute": each} for each in ("none", "full")]
    all_, input_ = priced(with_modules(None), *rows).memory_activations_bytes
    some = priced(with_modules(modules), ROW | {"recompute": recomputed}).memory_activations_bytes[0]
    assert input_ < some <= all_


def test_layers_that_run_again_are_counted() -> None:
    """8 of a stage's 32 layers run again: a quarter of what full recomputation takes more and of what it keeps less."""
    rows = [ROW | {"recompute": each, "global_batch_size": 1} for each in ("none", "full")]
    none, full = (priced(with_modules(None), row) for row in rows)
    some = priced(with_modules(None, parallel__recompute_layers=8), rows[1])
    assert (some.time_compute_s - none.time_compute_s)[0] == pytest.approx((full.time_compute_s - none.time_compute_s)[0] / 4)
    assert (some.time_tp_s - none.time_tp_s)[0] == pytest.approx((full.time_tp_s - none.time_tp_s)[0] / 4)
    # while a layer runs backward all that it made is alive, whatever it kept
    alive = full.memory_activations_bytes + 31 / 32 * (none.memory_activations_bytes - full.memory_activations_bytes)
    assert full.memory_activations_bytes[0] < some.memory_activations_bytes[0] < alive[0] * 1.05


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_flattened"])
@pytest.mark.parametrize(
    ("model", "changes", "row"),
    [
        ("llama3_1_8b", {"parallel__recompute_modules": "layernorm+mlp"}, {"recompute": "selective"}),
        ("llama3_1_8b", {"parallel__recompute_layers": 1}, {"recompute": "full"}),
        ("qwen3_30b_a3b", {"parallel__recompute_modules": "moe"}, {"recompute": "selective", "ep": 2}),
    ],
)
def test_backends_agree(backend: str, model: str, changes: dict[str, Any], row: dict[str, Any]) -> None:
    small = {"model__num_hidden_layers": 2, "backend__network": "ideal"} | HOST
    table = layouts({"num_gpus": 8, "tp": 4, "pp": 2, "global_batch_size": 4} | row)
    here = scenario("h100", model, "nemo", **small, **changes)
    there = scenario("h100", model, "nemo", backend__name=backend, **small, **changes)
    closed, run = price(here, legal(here, table)), price(there, table)
    assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02)
    assert run.peak_memory_bytes[0] == closed.peak_memory_bytes[0]


def test_every_entry_names_what_some_layer_has() -> None:
    """A word of an entry that no tensor, step or word of the language is would change nothing."""
    models = [with_modules(None, model, model__dropout=True) for model in ("llama3_1_8b", "qwen3_30b_a3b", "deepseek_v3")]
    of = [(part, each.software.model_copy(update={"fused_activation": False})) for each in models
          for kind in architecture(each.model).kinds for part in kind.parts]  # fmt: skip
    tensors = {(type(part).__name__.lower(), tensor.name) for part, software in of for tensor in part.tensors(ONE, software)}
    steps = {(type(part).__name__.lower(), step.name) for part, _ in of for step in part.steps()}
    words = {"input", "products", "first_products", "second_products", "small", "all"}
    for name, entry in entries().items():
        for listed, known in (((*entry.forgets, *(entry.keeps or ())), tensors), ((*entry.also_reruns, *(entry.reruns or ())), steps)):
            for word in listed:
                assert word in words or any(word in (one, f"{part}.{one}") for part, one in known), (name, word)


def test_every_product_and_small_kernel_is_a_step() -> None:
    for model in ("llama3_1_8b", "qwen3_30b_a3b", "deepseek_v3", "gpt"):
        of = scenario("h100", model)
        for kind in architecture(of.model).kinds:
            steps = {step.name for part in kind.parts for step in part.steps()}
            assert {each.name for each in (*kind.products(ONE), *kind.small_kernels(ONE, of.software))} <= steps, model


def test_sums_are_in_order_and_refused_where_a_module_is_none() -> None:
    assert with_modules("moe_act+layernorm").parallel.recompute_modules == "layernorm+moe_act"
    assert set(module_names()) >= {"core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "every_other_matmul"}
    with pytest.raises(ValueError, match=r"parallel.recompute_modules='mpl': 'mpl' is no module; expected .*layernorm"):
        with_modules("mpl")
    with pytest.raises(ValueError, match="is no module"):
        named("layernorm+")


def test_a_module_that_no_layer_has_is_said_to_have_no_effect(tmp_path: Path) -> None:
    wish = ("parallel.recompute=selective", "parallel.recompute_modules=moe_act+mlp", "hw.num_gpus=8", "workload.global_batch_size=8")
    said = program.done(tmp_path, "model=llama3_1_8b", *wish).err
    assert "parallel.recompute_modules=moe_act has no effect here: no layer of the model has what it makes again" in said
    assert "recompute_modules=mlp" not in said


@pytest.mark.parametrize(
    ("changes", "recompute", "rule"),
    [
        ({"parallel__recompute_modules": "mlp"}, "full", "parallel.recompute_modules goes with recompute=selective alone"),
        ({"parallel__recompute_layers": 4}, "selective", "parallel.recompute_layers goes with recompute=full alone"),
        (
            {"parallel__recompute_modules": "every_other_matmul", "software__enforce": True},
            "selective",
            "nemo does not offer recompute_modules",
        ),
    ],
)
def test_a_setting_of_another_mode_is_refused(changes: dict[str, Any], recompute: str, rule: str) -> None:
    of = scenario("h100", "llama3_1_8b", "nemo", **changes)
    broken, texts = broken_rules(layouts(ROW | {"recompute": recompute}), of)
    assert rule in texts[broken[0]]


def test_more_layers_that_run_again_are_slower_and_keep_less() -> None:
    found = [priced(with_modules(None, parallel__recompute_layers=each), ROW | {"recompute": "full"}) for each in (1, 8, 31, 32, 64)]
    times, kept = (np.array([getattr(each, name)[0] for each in found]) for name in ("step_time_s", "memory_activations_bytes"))
    assert (np.diff(times) >= 0).all()
    assert (np.diff(kept) <= 0).all()
    assert times[3] == times[4]
