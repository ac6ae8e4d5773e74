"""Vision transformers: parameters and products against timm's published counts, and what follows from patches, a missing mask, and
one token that is classified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import serving_trials
from trials import layouts, legal, memory_terms, priced, scenario, time_terms

from rapid_dse.config.run import Workload
from rapid_dse.device import operator_model
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture, model_flops_per_token
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.host_launches import end_seconds, gradient_launches
from rapid_dse.simulate.operator_times import counted_seconds
from rapid_dse.simulate.training import price_operators
from rapid_dse.sweep.space import Setting, layouts_of

# timm's results/model_metadata: parameters; GMACs of an image where it lists them.
TIMM = {"vit_base": (86_567_656, 17.58), "vit_large": (304_326_632, 61.60), "vit_huge": (632_045_800, 167.40)}
PIXELS = {"vit_base": 197, "vit_large": 197, "vit_huge": 257, "vit_7b": 261}


@pytest.mark.parametrize("name", TIMM)
def test_parameters_and_products_are_timms(name: str) -> None:
    model = scenario(model=name).model
    parameters, gmacs = TIMM[name]
    assert count(model).total == parameters
    assert model_flops_per_token(model, Workload(seq_len=PIXELS[name])) * PIXELS[name] / 6e9 == pytest.approx(gmacs, rel=2e-3)


def test_the_seven_billion_are_counted_part_by_part() -> None:
    hidden, wide = 4096, 8192
    attention = 4 * hidden**2 + hidden  # no biases on queries, keys and values, one on the way back
    mlp = 3 * hidden * wide + 2 * wide + hidden
    layer = attention + mlp + 2 * 2 * hidden + 2 * hidden  # two norms with biases, two scales
    around = 3 * 16**2 * hidden + hidden + 5 * hidden + 2 * hidden  # patches, class token and registers, last norm
    assert count(scenario(model="vit_7b").model).total == 40 * layer + around == 6_716_030_976


def test_a_layers_products_by_hand() -> None:
    one = scenario(model="vit_base")
    shape = MicroBatch.of(layouts({"num_gpus": 2, "tp": 2, "sequence_parallel": False, "micro_batch_size": 4}), one.workload)
    kind = architecture(one.model).kinds[0]
    shapes = {each.name: (each.m[0], each.n[0], each.k[0]) for each in kind.products(shape)}
    assert shapes == {
        "qkv": (788, 3 * 384, 768),
        "attention_output": (788, 768, 384),
        "mlp_up": (788, 1536, 768),
        "mlp_down": (788, 768, 1536),
    }
    patches, head = (end.products(shape)[0] for end in (architecture(one.model).embedding, architecture(one.model).head))
    assert (patches.m[0], patches.n[0], patches.k[0]) == (4 * 196, 768, 768)  # of 16 · 16 pixels in 3 channels
    assert (head.m[0], head.n[0], head.k[0]) == (4, 1000, 768)
    core = kind.attention(shape)
    assert core is not None
    assert core.context(197) == 197


def test_an_unmasked_layer_has_twice_the_attention_of_a_causal_one() -> None:
    """The same layer as a transformer of text, whose queries see half of the keys on average."""
    dimensions = {f"model__{name}": getattr(scenario(model="vit_base").model, name) for name in ("hidden_size", "num_hidden_layers")}
    dimensions |= {"model__num_attention_heads": 12, "model__num_key_value_heads": 12, "model__intermediate_size": 3072}
    text = scenario(model="gpt", workload__seq_len=197, **dimensions).model
    image = scenario(model="vit_base").model
    per_token = [model_flops_per_token(model, Workload(seq_len=197)) - 6 * 12 * (4 * 768**2 + 2 * 768 * 3072) for model in (image, text)]
    ends = 6 * (196 * 768**2 + 768 * 1000) / 197, 6 * 768 * text.vocab_size
    assert per_token[0] - ends[0] == pytest.approx(12 * 12 * 768 * 197)
    assert per_token[1] - ends[1] == pytest.approx(12 * 12 * 768 * 197 / 2)


def test_a_sequence_is_filled_up_to_what_its_ranks_share() -> None:
    one = scenario(model="vit_base")
    rows = [
        {"num_gpus": 4, "tp": 4},
        {"num_gpus": 4, "cp": 4},
        {"num_gpus": 8, "tp": 2, "cp": 4},
        {"num_gpus": 4, "tp": 4, "sequence_parallel": False},
    ]
    table = legal(one, layouts(*rows))
    assert (MicroBatch.of(table, one.workload).tokens * table.cp).tolist() == [200, 200, 200, 197]


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("changes", [{}, {"parallel__offload_activations": 0.5}], ids=["resident", "offloaded"])
def test_results_hold_what_every_result_holds(name: str, changes: dict[str, Any]) -> None:
    one = scenario(model=name, **changes)
    rows: list[dict[str, Any]] = [{"num_gpus": 8, "tp": tp, "zero": zero, "recompute": "full"} for tp in (1, 4) for zero in (0, 3)]
    found = priced(one, *rows, {"num_gpus": 8, "pp": 4, "micro_batch_size": 2}, {"num_gpus": 8, "cp": 2})
    assert all((column >= 0).all() and np.isfinite(column).all() for column in (time_terms(found) | memory_terms(found)).values())
    assert np.sum(list(time_terms(found).values()), axis=0) == pytest.approx(found.step_time_s)
    assert found.tokens_per_s * found.step_time_s == pytest.approx(256 * PIXELS[name])


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
@pytest.mark.parametrize("row", [{"tp": 4}, {"tp": 1, "zero": 3}, {"tp": 4, "pp": 2}], ids=str)
def test_backends_agree(backend: str, row: dict[str, Any]) -> None:
    settings = {"hw__network__dimensions__0__size": 4 if row["tp"] > 1 else None} if row["tp"] > 1 else {}
    settings |= {"hw__gpus_per_node": 4} if row["tp"] > 1 else {}
    row = {"num_gpus": 8, "global_batch_size": 64, "micro_batch_size": 8} | row
    closed = priced(scenario(model="vit_base", **settings), row)
    found = priced(scenario(model="vit_base", backend__name=backend, backend__network="ideal", **settings), row)
    assert float(found.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.02)


def test_the_convolution_of_patches_runs_without_tensor_cores() -> None:
    """Of 256 images as long as three products of 50,176 patches, 768 channels out and 768 pixels in would take in fp32, forward and for
    its weights' gradient alike; nothing needs the gradient of pixels."""
    one = scenario(hw="h200", model="vit_base", software="pytorch")
    table = layouts({"num_gpus": 1, "micro_batch_size": 256, "global_batch_size": 256, "zero": 0, "sequence_parallel": False})
    ready = price_operators(one, table)
    flops = 2 * 256 * 196 * 768 * 768
    forward, _, weights = ready.alone.embedding.seconds[:, 0]
    assert forward == pytest.approx(3 * flops / (one.hw.peak_flops("fp32") * 0.77) / 0.96, rel=0.05)
    assert weights == pytest.approx(forward, rel=0.05)
    assert float(ready.alone.embedding.forward_joules[0]) == pytest.approx(flops * 10.3e-12)


# Measured on one H200 (PyTorch 2.11): rows, columns of 16 bits, seconds.
ALONE = {
    "layer norm": (16384, 4096, 0.103e-3),
    "its gradients": (8192, 8192, 0.262e-3),
    "GELU": (16384, 8192, 0.146e-3),
    "its gradient": (8192, 8192, 0.100e-3),
    "sum": (4096, 8192, 0.0475e-3),
}


@pytest.mark.parametrize(("part", "name", "way", "width"), [
    ("layer norm", "mlp_norm", 0, 1), ("its gradients", "mlp_norm", 1, 1),
    ("GELU", "activation", 0, 4), ("its gradient", "activation", 1, 4),
    ("sum", "mlp_residual", 0, 1), ("sum", "mlp_residual", 1, 1),
])  # fmt: skip
def test_eager_kernels_take_what_they_take_alone(part: str, name: str, way: int, width: int) -> None:
    rows, columns, seconds = ALONE[part]
    one = scenario(
        hw="h200", model="gpt", software="pytorch", model__hidden_size=columns // width, model__intermediate_size=columns * 4 // width,
        model__num_attention_heads=16, model__num_key_value_heads=16, workload__seq_len=rows,
    )  # fmt: skip
    table = layouts({"num_gpus": 1, "micro_batch_size": 1, "global_batch_size": 1, "zero": 0, "sequence_parallel": False})
    shape, kind = MicroBatch.of(table, one.workload), architecture(one.model).kinds[0]
    shares = [float(kernel.name == name) for kernel in kind.small_kernels(shape, one.software)]
    assert sum(shares) == 1
    found = counted_seconds(one, kind, shape, operator_model(one.hw), way, shares)
    assert float(found[0]) == pytest.approx(seconds, rel=0.1)


def test_an_eager_backward_pass_sums_biases_and_joins_what_was_split() -> None:
    """Four sums of biases' gradients a layer, a join and a copy of those of queries, keys and values: six operations of 24 in a layer of
    Llama, two thirds of whose time are its backward pass."""
    eager, compiled, fused = (
        scenario(hw="h200", model="vit_base", software=name) for name in ("pytorch", "pytorch_compile", "megatron_lm")
    )
    assert gradient_launches(eager) == pytest.approx(6 / 24 * 2 / 3)
    assert gradient_launches(compiled) == gradient_launches(fused) == 0
    table = layouts({"num_gpus": 1, "micro_batch_size": 64, "global_batch_size": 64, "zero": 0, "sequence_parallel": False})
    shape, kind = MicroBatch.of(table, eager.workload), architecture(eager.model).kinds[0]
    stream = 64 * 197 * 768
    for one, passes in ((compiled, 9 + 2 * 3), (fused, 0)):
        counted = [kernel for kernel in kind.small_kernels(shape, one.software) if kernel.counted]
        assert sum(float(np.ravel(kernel.backward)[0]) for kernel in counted) == passes * stream
    assert end_seconds(eager) == pytest.approx(2e-3 * 5 / 24)  # convolution, join, sum; norm, product
    assert end_seconds(compiled) == 0


NAMES = "model,workload,hw.num_gpus,parallel.tp,parallel.pp,workload.batch_size,workload.seq_len,workload.concurrency,model.patch_size\n"
CASES = """vit_large,inference,1,,,1,,,
vit_large,inference,1,,,64,,,
vit_large,inference,8,4,2,64,,,
vit_large,inference,8,4,,64,,,
vit_large,inference,4,4,,65,,,
vit_large,inference,8,,,65,,,
vit_large,inference,1,,,,,8,
vit_large,,8,,,,512,,
vit_large,,8,,,,,,15
vit_large,inference,3,3,,,,,
"""


def test_a_table_of_batches_that_run_forward(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(NAMES + CASES)
    program.done(tmp_path, "cases.csv", "--out", "out.parquet", "--keep-going", module="rapid_dse.evaluate")
    import pandas as pd

    out = pd.read_parquet(tmp_path / "out.parquet")
    ran = out[out["status"].eq("ok")]
    assert len(ran) == 5
    assert ran["step_time_s"].eq(ran["ttft_s"]).all()
    assert ran["tpot_s"].isna().all()
    assert (ran["requests_per_s"] * ran["step_time_s"]).round(6).tolist() == [1, 64, 64, 64, 65]
    assert out.loc[1, "step_time_s"] > 4 * out.loc[0, "step_time_s"]
    assert out.loc[2, "time_pp_s"] > 0
    assert out.loc[3, "step_time_s"] < out.loc[2, "step_time_s"]  # two engines of 4 against stages one after the other
    # 303 M parameters a rank's share, 16 bits; half of it on each stage
    assert out.loc[1, "memory_parameters_bytes"] == pytest.approx(2 * 304_326_632)
    assert out.loc[3, "memory_parameters_bytes"] == pytest.approx(2 * 304_326_632 / 4, rel=0.03)
    said = out["reason"].tolist()
    for row, text in (
        (5, "dp must divide batch_size"),
        (6, "a model that decodes nothing runs a batch forward: batch_size, and no concurrency"),
        (7, "workload.seq_len=512: an image of 224 pixels a side in patches of 16 and 1 prefix tokens are 197 tokens"),
        (8, "image_size=224 is no multiple of patch_size=15"),
        (9, "tp must divide num_attention_heads"),
    ):
        assert text in said[row]


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("vit_large", {"hw.num_gpus": 16, "parallel.tp": 8, "parallel.pp": 2, "workload.batch_size": 64}),
        ("vit_large", {"hw.num_gpus": 8, "workload.batch_size": 64}),
        ("gemm", {"hw.num_gpus": 8, "parallel.tp": 8, "parallel.gemm_sharding": "2d"}),
        ("lstm", {"hw.num_gpus": 8, "parallel.tp": 8, "workload.batch_size": 64, "workload.seq_len": 64, "model.vocab_size": 32000}),
    ],
    ids=["two stages", "replicas", "product", "recurrence"],
)
def test_backends_agree_on_a_pass_forward(backend: str, model: str, settings: dict[str, Any]) -> None:
    served = {"workload__kind": "inference", "workload__prompt_len": 1024, "workload__decode_len": 1024}
    given = served | {key.replace(".", "__"): value for key, value in settings.items()}

    def found(name: str) -> Any:
        network = {"backend__network": "ideal"} if name != "analytical" else {}
        of = scenario(model=model, software="vllm", backend__name=name, **given, **network)
        table, rule, reasons, _ = layouts_of(Setting(of, None, {}, {}), {})
        assert rule[0] < 0, reasons[rule[0]]
        return price(of, table)

    closed, run = found("analytical"), found(backend)
    for name in ("step_time_s", "time_compute_s", "time_tp_s", "time_pp_s", "energy_j"):
        assert float(getattr(run, name)[0]) == pytest.approx(float(getattr(closed, name)[0]), rel=0.02, abs=1e-7), name


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
def test_a_batch_waits_for_its_host_by_what_its_device_takes_on_that_backend(backend: str) -> None:
    """Launches of a few images take longer than all that the device does: as long as on links of any speed, with any network."""
    seconds, row = [], serving_trials.engines({"num_gpus": 8, "tp": 2, "cp": 4, "batch_size": 1})
    for network, bandwidth in (("ideal", 450e9), ("fair", 450e9), ("fair", 45e11)):
        one = serving_trials.scenario(
            model="vit_base", software="pytorch", backend__name=backend, backend__network=network,
            model__num_hidden_layers=3, hw__network__dimensions__0__bandwidth=bandwidth,
        )  # fmt: skip
        seconds.append(float(price(one, row).step_time_s[0]))
    assert seconds == pytest.approx([seconds[0]] * 3, rel=1e-9)
