"""Fine-tuning by low-rank adapters: a step by hand, what frozen weights spare in time, transfers and memory, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from layout_spread import BLOCKING
from trials import layouts, legal, memory_terms, priced, scenario, time_terms

from rapid_dse.config.lora_names import HUGGING_FACE_MODULES, MEGATRON_MODULES
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture, matrix_parameters, model_flops_per_token
from rapid_dse.model.layers.adapted import Adapters
from rapid_dse.model.parameters import adapter_parameters
from rapid_dse.model.shapes import ONE
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.layer_work import framework_block
from rapid_dse.simulate.training import prepare

SEQ, HIDDEN, KEYS, WIDE, RANK = 8192, 4096, 1024, 14336, 16  # of Llama 3.1 8B
QUERY, VALUE = RANK * (HIDDEN + HIDDEN), RANK * (HIDDEN + KEYS)  # parameters of an adapter beside q_proj and v_proj
ROW = {"num_gpus": 8, "global_batch_size": 8, "zero": 0, "recompute": "none"}


def tuned(model: str = "llama3_1_8b", software: str = "nemo", targets: str = "q_proj,v_proj", **changes: Any) -> Scenario:
    """A scenario in which adapters alone are trained."""
    return scenario("h100", model, software, workload__trainable="lora", workload__lora_targets=targets.split(","), **changes)


@pytest.mark.parametrize(
    ("model", "targets", "published"),
    [
        ("llama3_1_8b", "q_proj,v_proj", 6_815_744),  # PEFT's print_trainable_parameters of Llama 3 8B at rank 16
        ("llama3_1_8b", "all-linear", 41_943_040),  # the same
        ("llama3_1_8b", "linear_qkv", 32 * RANK * (HIDDEN + HIDDEN + 2 * KEYS)),  # one adapter for queries, keys and values
        ("mixtral_8x7b", "up_proj", 32 * 8 * RANK * (4096 + 14336)),  # one for each expert
        ("deepseek_v3", "kv_a_proj_with_mqa", 61 * RANK * (7168 + 576)),
    ],
)
def test_adapters_have_as_many_parameters_as_published(model: str, targets: str, published: int) -> None:
    of = tuned(model, targets=targets)
    assert adapter_parameters(of.model, of.workload) == published


def test_one_step_by_hand() -> None:
    """Each of 8 GPUs has one sequence of 8,192 tokens, plain data parallelism, nothing recomputed."""
    rings = {"hw__network__dimensions__0__in_network_reduction": False}
    of, whole, row = tuned(**rings), scenario("h100", "llama3_1_8b", "nemo", **rings), layouts(ROW)
    adapters = 32 * (QUERY + VALUE)
    # FLOP a token: frozen matrices forward and for their input's gradient, adapters for their weights' too; attention as ever
    matrices, scores = matrix_parameters(of.model), 12 * 32 * 32 * 128 * SEQ / 2
    assert model_flops_per_token(of.model, of.workload) == pytest.approx(4 * matrices + 6 * adapters + scores, rel=1e-12)
    found, full = priced(of, ROW), priced(whole, ROW)
    rate = 8 * SEQ / found.step_time_s[0]
    assert found.mfu[0] == pytest.approx(rate * model_flops_per_token(of.model, of.workload) / (8 * of.hw.peak_flops("bf16")))
    # bytes of states: 16-bit weights of all, 16-bit gradients and 12 bytes of states of adapters (one micro-batch, no buffer beyond)
    assert found.memory_parameters_bytes[0] == pytest.approx(full.memory_parameters_bytes[0] + 2 * adapters)
    assert found.memory_optimizer_bytes[0] == pytest.approx(of.software.precision.optimizer_bytes * adapters)
    assert 0 < found.memory_gradients_bytes[0] <= 2 * adapters
    # bytes of gradients: a ring of 8 sends 2 · 7/8 of them
    sent = arrangement(of, row).end.gradients.sent.sum()
    assert sent == pytest.approx(2 * 7 / 8 * 2 * adapters, rel=1e-9)
    # the weight gradients of a layer are those of four narrow products
    ready = prepare(of, row)
    narrow = [(RANK, HIDDEN, SEQ), (HIDDEN, RANK, SEQ), (RANK, HIDDEN, SEQ), (KEYS, RANK, SEQ)]
    alone = [
        ready.device.gemm(*(np.array([float(n)]) for n in each), precision="bf16", accumulate=of.software.kernels.fused_accumulation)
        for each in narrow
    ]
    block = framework_block(of, ready.shape, ready.alone, ready.device).layers[0]
    expected = sum(float(each[0]) for each in alone) / of.hw.efficiency.sustained / of.software.kernels.matmul_efficiency
    assert block.weight_gradient[0] == pytest.approx(expected)


def test_inputs_of_products_without_adapters_are_not_kept() -> None:
    """Beside attention's input, which both adapters read, and what each gives between its matrices, nothing is needed for a weight
    gradient; attention's output stays for its own kernel."""
    row = layouts(ROW)
    (full,), (less,) = layer_activations(scenario("h100", "llama3_1_8b", "nemo"), row), layer_activations(tuned(), row)
    spared = (HIDDEN + WIDE) * 2  # inputs of the MLP's projections
    overhead = tuned().software.memory.activation_overhead
    assert (full - less)[0] == pytest.approx(SEQ * (spared - 2 * RANK * 2) * overhead)


def test_zero_3_gathers_all_and_reduces_adapters() -> None:
    of, row = tuned(software="torchtitan"), layouts(ROW | {"zero": 3})
    (passes,) = arrangement(of, row).sharded
    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * WIDE + 2 * HIDDEN
    gathered = 7 / 8 * 2 * (layer + QUERY + VALUE)
    assert passes.forward.sent.sum() == pytest.approx(gathered)
    reduced = 7 / 8 * 4 * (QUERY + VALUE)  # fp32 gradients of FSDP
    assert passes.backward.sent.sum() == pytest.approx(gathered + reduced)
    found = priced(of, ROW | {"zero": 3})
    adapters, frozen = 32 * (QUERY + VALUE), 32 * layer + 2 * 128256 * HIDDEN
    # frozen shards are as wide as they compute, those that are stepped in fp32
    assert found.memory_parameters_bytes[0] == pytest.approx((2 * frozen + 4 * adapters) / 8, rel=1e-4)
    assert found.memory_optimizer_bytes[0] == pytest.approx(8 * adapters / 8)


def test_ranks_share_adapters_as_they_share_products() -> None:
    """At tp = 4 a rank has a quarter of both matrices, of columns' and of rows' products; what a latent is projected to is whole."""
    for targets, parameters in (("q_proj", QUERY / 4), ("down_proj", RANK * (WIDE + HIDDEN) / 4)):
        kind = architecture(tuned().model, Adapters(RANK, (targets,))).kinds[0]
        held = kind.parameters(replace(ONE, tp=np.array([4])))
        assert sum(float(np.ravel(each.adapters)[0]) for each in held) == pytest.approx(parameters)
    latent = architecture(tuned("deepseek_v3", targets="q_a_proj").model, Adapters(RANK, ("q_a_proj",))).kinds[0]
    for one in (ONE, replace(ONE, tp=np.array([4]))):
        assert float(np.ravel(latent.parameters(one)[0].adapters)[0]) == RANK * (7168 + 1536)


def test_columns_of_the_second_matrix_are_gathered_beside_rows() -> None:
    """Megatron Bridge's ParallelLinearAdapter beside linear_proj: gather_output of 8,192 · 4,096 numbers, 3/4 of them from others; the sum
    of what the first matrix gives before it."""
    rings, row = {"hw__network__dimensions__0__in_network_reduction": False}, layouts({"num_gpus": 4, "tp": 4, "global_batch_size": 1})
    moved, before = (
        arrangement(of, legal(of, row)).transfers.layers[0]
        for of in (tuned(targets="o_proj", **rings), scenario("h100", "llama3_1_8b", "nemo", **rings))
    )
    more = 3 / 4 * SEQ * HIDDEN * 2 + 2 * 3 / 4 * SEQ * RANK * 2
    assert (moved.tp_forward.sent - before.tp_forward.sent).sum() == pytest.approx(more)


def test_what_adapters_exchange() -> None:
    rings, row = {"hw__network__dimensions__0__in_network_reduction": False}, layouts({"num_gpus": 4, "tp": 4, "global_batch_size": 1})
    moved, before = (
        arrangement(of, legal(of, row)).transfers.layers[0]
        for of in (tuned(targets="q_proj", **rings), scenario("h100", "llama3_1_8b", "nemo", **rings))
    )
    # one reduction of what the first matrix gives: 2 · 3/4 of 8,192 · 16 numbers
    assert (moved.tp_forward.sent - before.tp_forward.sent).sum() == pytest.approx(2 * 3 / 4 * SEQ * RANK * 2)
    # the MLP's input is not gathered again: no weight gradient reads it
    assert moved.tp_gather_again.sent.sum() == pytest.approx(before.tp_gather_again.sent.sum() / 2)


LAYERS = {"model__num_hidden_layers": 4}
EXPERTS = LAYERS | {"model__num_experts": 8, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 3584}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_gpus": 8, "tp": 2, "pp": 2, "sequence_parallel": True, "recompute": "none"}, LAYERS),
    ({"num_gpus": 8, "zero": 3, "recompute": "full"}, LAYERS | {"workload__lora_targets": ["down_proj"]}),
    ({"num_gpus": 4, "pp": 4, "schedule": "zero_bubble", "recompute": "none"}, LAYERS),
    ({"num_gpus": 8, "tp": 2, "etp": 2, "ep": 2, "sequence_parallel": True}, EXPERTS),
]


@pytest.mark.parametrize(("row", "changes"), CASES, ids=lambda each: "-".join(f"{k}{v}" for k, v in each.items()))
def test_backends_agree(row: dict[str, Any], changes: dict[str, Any]) -> None:
    of = BLOCKING | {"workload__trainable": "lora"} | changes
    table = layouts({"global_batch_size": 16} | row)
    here = scenario("h100", "llama3_1_8b", "nemo", **of)
    closed = price(here, legal(here, table))
    assert np.allclose(sum(time_terms(closed).values()), closed.step_time_s, rtol=1e-12)
    assert np.allclose(sum(memory_terms(closed).values()), closed.peak_memory_bytes, rtol=1e-12)
    backends = ["hybrid", "full_astrasim_flattened", *(["full_astrasim_hierarchical"] if row.get("tp", 1) * row.get("cp", 1) == 1 else [])]
    for backend in backends:
        run = price(scenario("h100", "llama3_1_8b", "nemo", backend__name=backend, backend__network="ideal", **of), table)
        assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02), backend
        assert run.peak_memory_bytes[0] == closed.peak_memory_bytes[0]


def test_frozen_weights_are_never_more() -> None:
    """Of one narrow adapter a layer: less time, fewer bytes and joules than of all weights, whatever ZeRO and recomputation."""
    rows = [ROW | {"zero": zero, "recompute": recompute} for zero in range(4) for recompute in ("none", "selective", "full")]
    less, more = priced(tuned(targets="o_proj"), *rows), priced(scenario("h100", "llama3_1_8b", "nemo"), *rows)
    assert (less.step_time_s < more.step_time_s).all()
    assert (less.peak_memory_bytes < more.peak_memory_bytes).all()
    assert (less.energy_j < more.energy_j).all()


@pytest.mark.parametrize("name", ["gpt3_175b", "deepseek_v3", "moonlight_16b_a3b", "mixtral_8x7b"])
def test_models_name_the_modules_of_their_products(name: str) -> None:
    model = scenario(model=name).model
    products = [product for kind in architecture(model).kinds for product in kind.products(ONE)]
    every = {module for product in products for module, _ in product.modules} | {product.megatron for product in products}
    assert set(model.linear_modules) == every - {""}
    for product in products:
        assert sum(float(np.ravel(share)[0]) for _, share in product.modules) == pytest.approx(1 if product.modules else 0)
    assert every - {""} <= {*HUGGING_FACE_MODULES, *MEGATRON_MODULES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload__lora_rank": 8}, "workload.lora_rank=8 has no effect with workload.trainable=full"),
        ({"workload__trainable": "lora", "workload__lora_rank": 0}, "workload.lora_rank=0: too small; expected at least 1"),
        ({"workload__trainable": "lora", "workload__lora_targets": ["query"]}, "query.*expected one of 'all-linear', 'q_proj'"),
        ({"workload__trainable": "lora", "workload__lora_targets": []}, "adapts nothing; allowed: all-linear, or modules such as"),
        ({"workload__trainable": "lora", "workload__lora_targets": ["q_a_proj"]}, "q_a_proj is no module of llama3_1_8b; it has q_proj"),
        ({"workload__trainable": "lora", "workload__lora_targets": ["q_proj", "linear_qkv"]}, "adapts a product twice"),
        ({"workload__trainable": "half"}, "expected one of 'full' or 'lora'"),
    ],
)
def test_what_cannot_be_tuned_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenario("h100", "llama3_1_8b", "nemo", **changes)


def test_rules_of_adapters() -> None:
    rows = layouts({"num_gpus": 8, "tp": 8, "global_batch_size": 8})
    rule, texts = broken_rules(rows, tuned(workload__lora_rank=12))
    assert texts[rule[0]] == "tp must divide lora_rank"
    rule, texts = broken_rules(rows, tuned(software="megatron_lm", software__enforce=True))
    assert "megatron_lm does not offer trainable lora" in texts[rule[0]]
    rule, _ = broken_rules(rows, tuned(software__enforce=True))
    assert rule[0] < 0


def test_a_trial_says_how_much_is_trained(tmp_path: Path) -> None:
    settings = ("model=llama3_1_8b", "software=nemo", "hw.num_gpus=8", "workload.trainable=lora", "workload.lora_targets=[q_proj,v_proj]")
    ended = program.done(tmp_path, *settings, "workload.global_batch_size=8")
    assert "8.03 B parameters and 6.82 M of adapters that are trained (0.085 %)" in ended.out
    assert "outside: trainable (no run with lora was measured)" in ended.out
