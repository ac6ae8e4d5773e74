"""Energy: products and copies against what an H200 was measured to take, steps counted by hand, and what a power limit does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import serving_trials
from trials import layouts, legal, price, scenario

from rapid_dse.analysis.steps import predict_steps
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import attention_energy, gpu_energy, most_watts, moved_energy, product_energy
from rapid_dse.parallel.kind_rules import of_rows
from rapid_dse.simulate.energy_trust import energy_error
from rapid_dse.simulate.results import unlawful

CUBE = 2.0 * 8192**3  # FLOP
OPERANDS = 3 * 2.0 * 8192**2  # bytes
# Loads of 2 s on an H200 (NVML's counter): FLOP and bytes of one call, seconds of a call with what lies between calls, joules measured.
LOADS = [
    ("bf16", CUBE, OPERANDS, 2.01219 / 700, 980.157 / 700),  # half of the time idle: no limit in sight
    ("bf16", CUBE, OPERANDS, 2.08203 / 1246, 1453.17 / 1246),  # at the power limit
    ("fp8", CUBE, OPERANDS, 2.10093 / 2392, 1447.26 / 2392),  # at the power limit
    ("fp32", CUBE, OPERANDS, 2.00007 / 93, 1290.46 / 93),
    ("bf16", 0.0, 8e9, 2.00711 / 1067, 1397.93 / 1067),  # a buffer that is read
    ("bf16", 3.7581e9, 2.3593e8, 1.98673 / 34225, 1324.7 / 34225),  # a product of 16 rows
]


@pytest.mark.parametrize(("precision", "flops", "moved", "seconds", "measured"), LOADS)
def test_what_an_h200_was_measured_to_take(precision: str, flops: float, moved: float, seconds: float, measured: float) -> None:
    hw = scenario("h200").hw
    dynamic = product_energy(hw, precision, np.array(flops)) + moved_energy(hw, np.array(moved))
    assert float(gpu_energy(hw, dynamic, np.array(seconds))) == pytest.approx(measured, rel=0.09)


def test_one_product_by_hand() -> None:
    # 1.1 TFLOP at 1.02 pJ, 403 MB at 16.5 pJ a bit, and 122 W for 2.87 ms
    hw = scenario("h200").hw
    by_hand = 1.0995e12 * 1.02e-12 + 402.65e6 * 8 * 16.5e-12 + 122 * 2.87e-3
    found = gpu_energy(hw, product_energy(hw, "bf16", np.array(CUBE)) + moved_energy(hw, np.array(OPERANDS)), np.array(2.87e-3))
    assert float(found) == pytest.approx(by_hand, rel=1e-4)
    # in 1.65 ms it would draw 833 W: 122 and 98.3 % of the 578 that are left, 690 W, is what it takes
    assert float(gpu_energy(hw, np.array(1.175), np.array(1.65e-3))) == pytest.approx(690.2 * 1.65e-3, rel=1e-3)


def test_attention_takes_more_for_a_flop_than_a_product() -> None:
    # FlashAttention-2 1.8 pJ/FLOP and cuDNN's 1.05 at about 1,650 MHz, measured; a product's 1.02 there: (1650 / 1980)^0.8
    hw, one = scenario("h200").hw, np.ones(1)
    there = (1650 / 1980) ** 0.8
    assert float(attention_energy(hw, "bf16", "flash2", one)[0]) * there == pytest.approx(1.8e-12, rel=0.1)
    assert float(attention_energy(hw, "bf16", "cudnn", one)[0]) * there == pytest.approx(1.05e-12, rel=0.1)


def arithmetic_alone(**changes: Any) -> Scenario:
    """Of a chip that takes a joule for a FLOP and nothing for anything else."""
    of = scenario(model="llama", **changes)
    dimensions = tuple(each.model_copy(update={"energy": 0.0}) for each in of.hw.network.dimensions)
    energy = of.hw.energy.model_copy(update={"flop": {"bf16": 1.0}, "hbm": 0.0, "l2": 0.0, "idle": 0.0, "tdp": 1e30})
    hw = of.hw.model_copy(update={"energy": energy, "network": of.hw.network.model_copy(update={"dimensions": dimensions})})
    return of.model_copy(update={"hw": hw})


SMALL = {
    "model__hidden_size": 1024,
    "model__num_hidden_layers": 4,
    "model__num_attention_heads": 8,
    "model__num_key_value_heads": 2,
    "model__intermediate_size": 4096,
    "model__vocab_size": 32000,
    "workload__seq_len": 2048,
}


@pytest.mark.parametrize(("recompute", "again", "attention"), [("none", 0, 3.5), ("full", 1, 4.5), ("selective", 0, 4.5)])
def test_arithmetic_of_a_step_by_hand(recompute: str, again: int, attention: float) -> None:
    """Every product three times, its layers' a fourth time where they are recomputed; attention backward five products for two."""
    of = arithmetic_alone(**SMALL)
    table = layouts({"num_gpus": 2, "tp": 2, "recompute": recompute, "global_batch_size": 4})
    tokens = 4 * 2048
    layer = 2 * tokens * 1024 * (1024 + 2 * 256 + 1024 + 3 * 4096)
    scores = 4 * tokens * 2048 / 2 * 1024 * {"flash3": 1.1, "cudnn": 1.1, "flash2": 1.9}[of.attention_kernel]
    head = 2 * tokens * 1024 * 32000
    by_hand = 4 * ((3 + again) * layer + attention * scores) + 3 * head
    assert price(of, legal(of, table)).energy_j[0] == pytest.approx(by_hand, rel=2e-3)


LIMITS = [700.0, 600.0, 450.0, 300.0, 140.0]
TRAINED = {"num_gpus": 16, "tp": 8, "global_batch_size": 32}
BACKENDS = ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"]


def trained(limit: float | None, backend: str = "analytical") -> Scenario:
    """A model of two layers on H200 held to a limit."""
    few = {"model__num_hidden_layers": 2, "workload__seq_len": 4096}
    return scenario("h200", **few, **({} if limit is None else {"hw__power_limit": limit}), backend__name=backend)


def requests(limit: float | None) -> serving_trials.Scenario:
    """64 requests at a time on one H200."""
    return serving_trials.scenario("h200", **({} if limit is None else {"hw__power_limit": limit}))


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_a_lower_limit_is_never_faster_and_takes_no_more_than_it_says(kind: str) -> None:
    table = legal(trained(None), layouts(TRAINED, {"num_gpus": 16, "tp": 2, "zero": 3, "global_batch_size": 64}, {"num_gpus": 16, "pp": 2}))
    found, before = [], None
    for limit in [None, *LIMITS]:
        if kind == "training":
            of, rows = trained(limit), table
        else:
            of, rows = (
                requests(limit),
                serving_trials.engines({"num_gpus": 8, "tp": 8, "concurrency": 256}, {"num_gpus": 1, "concurrency": 8}),
            )
        result = price(of, rows)
        assert unlawful(result) == []
        assert (result.power_w_per_gpu >= of.hw.energy.idle).all()
        assert (result.power_w_per_gpu <= most_watts(of.hw, limit or 700.0) * (1 + 1e-9)).all()
        if before is not None:
            assert (result.step_time_s >= before.step_time_s * (1 - 1e-9)).all()
            assert (result.tokens_per_s <= before.tokens_per_s * (1 + 1e-9)).all()
            if limit >= 400:  # below, idle power for longer takes more than a lower voltage saves
                assert (result.energy_j <= before.energy_j * (1 + 1e-9)).all()
        before = result
        found.append(result.step_time_s)
    np.testing.assert_array_equal(found[0], found[1])  # its own limit changes nothing
    assert (found[-1] > 2 * found[0]).all()


@pytest.mark.parametrize(
    ("model", "changes", "row"),
    [
        ("vit_base", {}, {"num_gpus": 8, "micro_batch_size": 64, "global_batch_size": 1024}),
        ("lstm", {"model__num_hidden_layers": 2, "workload__seq_len": 64}, {"num_gpus": 4, "tp": 4, "sequence_parallel": False}),
        (
            "gemm",
            {"parallel__gemm_sharding": "2d"},
            {"num_gpus": 8, "tp": 8, "global_batch_size": 8192, "recompute": "none", "sequence_parallel": False},
        ),
        ("llama3_1_8b", {"model__num_hidden_layers": 2, "workload__trainable": "lora"}, {"num_gpus": 8, "tp": 2}),
    ],
    ids=["images", "recurrence", "product", "adapters"],
)
def test_every_kind_of_work_draws_idle_power_and_is_no_faster_at_a_lower_limit(
    model: str, changes: dict[str, Any], row: dict[str, Any]
) -> None:
    before = None
    for limit in (None, 500.0, 200.0):
        of = scenario("h200", model, **changes, **({} if limit is None else {"hw__power_limit": limit}))
        table = layouts({"zero": 0, **row})
        found = price(of, legal(of, of_rows(table, of) if model == "gemm" else table))
        idle = of.hw.energy.idle * row["num_gpus"] * float(found.step_time_s[0])
        assert float(found.energy_j[0]) >= idle * (1 - 1e-12)
        assert float(found.power_w_per_gpu[0]) <= most_watts(of.hw, limit or 700.0) * (1 + 1e-9)
        if before is not None:
            assert float(found.step_time_s[0]) >= float(before.step_time_s[0]) * (1 - 1e-9)
        before = found


def test_a_limit_that_nothing_meets_changes_nothing() -> None:
    row = legal(trained(None), layouts(TRAINED))
    free, held = price(trained(None), row), price(trained(float(price(trained(None), row).power_w_per_gpu[0]) + 30.0), row)
    assert {name: float(getattr(free, name)[0]) for name in ("step_time_s", "energy_j", "mfu")} == {
        name: float(getattr(held, name)[0]) for name in ("step_time_s", "energy_j", "mfu")
    }


def test_a_product_at_a_lower_limit_by_hand() -> None:
    """Arithmetic alone, as fast as the clock: of P dynamic watts at the own limit, P · s^1.8 are left at a share s of the clock."""
    of = trained(None)
    free = price(of, legal(of, layouts({"num_gpus": 1, "global_batch_size": 8})))
    idle, watts = of.hw.energy.idle, float(free.power_w_per_gpu[0])
    limit = 450.0
    share = ((most_watts(of.hw, limit) - idle) / (watts - idle)) ** (1 / 1.8)
    held = trained(limit)
    slower = price(held, layouts({"num_gpus": 1, "global_batch_size": 8}))
    # HBM's part of the joules and of the time does not follow the clock: the two nearly cancel
    assert free.step_time_s[0] / slower.step_time_s[0] == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_the_same_rule(backend: str) -> None:
    row = layouts(TRAINED)
    closed, simulated = price(trained(400.0), row), price(trained(400.0, backend), row)
    most = most_watts(trained(400.0).hw, 400.0)
    for found in (closed, simulated):
        assert found.energy_j[0] == pytest.approx(16 * most * found.step_time_s[0], rel=1e-9)
        assert unlawful(found) == []
    assert simulated.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.05)
    assert simulated.step_time_s[0] > price(trained(None, backend), row).step_time_s[0]


@pytest.mark.parametrize(
    ("limit", "said"),
    [(122.0, "draws 122 W whatever it does; allowed: above 122 W, up to 700 W"), (701.0, "has a limit of its own of 700 W")],
)
def test_a_limit_that_cannot_be_held_is_refused(limit: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trained(limit)


def test_terms_of_bytes_stay_where_they_travel() -> None:
    """Twice the joules a byte of HBM add what HBM's bytes take, whatever else the step does."""
    of = trained(None)
    row = legal(of, layouts(TRAINED))

    def joules(hbm: float) -> float:
        energy = of.hw.energy.model_copy(update={"hbm": hbm, "tdp": 1e30})
        return float(price(of.model_copy(update={"hw": of.hw.model_copy(update={"energy": energy})}), row).energy_j[0])

    none, once, twice = (joules(each) for each in (0.0, 1e-10, 2e-10))
    assert twice - once == pytest.approx(once - none, rel=1e-9)
    # at least weights and activations of each product once, for each of its three passes and two micro-batches on every GPU
    weights = 2 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) / 8
    assert once - none > 16 * 16 * 3 * 2 * weights * 1e-10


# Joules of whole steps of an H200: Llama 8B's widths, 2 layers of 4,096 tokens, eager, compiled, compiled in fp8; and 4 layers of the 1B's
# on 2,048, which the power limit hardly holds (NVML's counter over 1.1 s).
STEPS = [
    ({}, 16.549),
    ({"mode": "compile"}, 15.688),
    ({"mode": "compile", "fp8": True}, 12.525),
    ({"layers": 4, "hidden": 2048, "head_dim": 64, "ffn": 8192, "seq": 2048, "params": 243286000.0}, 6.307),
]


def test_whole_steps_of_an_h200() -> None:
    plain = {"hw": "h200", "layers": 2, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocab": 128256}
    plain |= {"seq": 4096, "mb": 1, "accum": 1, "mode": "eager", "recompute": "none", "head": False, "opt": "bf16", "attn": "flash"}
    plain |= {"fp8": False, "params": 436224000.0}
    table = pd.DataFrame([plain | changed | {"energy_j": joules} for changed, joules in STEPS])
    np.testing.assert_allclose(predict_steps(table)["predicted.energy_j"], table["energy_j"], rtol=0.06)


def test_error_to_expect_of_energy() -> None:
    """At its limit a chip draws the limit, so that time's error is energy's; below power adds its own; of chips without a meter it is not
    known."""
    hw, time = scenario("h100").hw, np.array([0.06, 0.06, np.nan])
    found = energy_error(hw, time, np.array([690.1, 500.0, 500.0]))
    np.testing.assert_allclose(found, [0.06, (0.06**2 + 0.085**2) ** 0.5, np.nan])
    held = hw.model_copy(update={"power_limit": 500.0})
    assert energy_error(held, time[:1], np.array([most_watts(hw, 500.0)]))[0] == 0.06
    assert np.isnan(energy_error(scenario("a100").hw, time, np.array([300.0] * 3))).all()
