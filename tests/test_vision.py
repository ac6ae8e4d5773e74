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
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture, model_flops_per_token
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
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
