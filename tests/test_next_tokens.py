"""Layers that predict further tokens: DeepSeek-V3's module by hand, where it stands, what it adds to time, memory and transfers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from layout_spread import BLOCKING, MIXTURE
from trials import layouts, legal, memory_terms, priced, scenario, time_terms

from rapid_dse.config.run import Workload
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture_of, matrix_parameters, model_flops_per_token, split_of
from rapid_dse.model.parameters import count, prediction_parameters
from rapid_dse.parallel.schedules import STAGE_MAPS
from rapid_dse.simulate.arrangement import arrangement

HIDDEN, VOCABULARY = 7168, 129280  # of DeepSeek-V3
AHEAD = {"model__num_nextn_predict_layers": 1}
SEQ = 8192


def test_parameters_of_deepseeks_module() -> None:
    """README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: the main model has 671 B, the module 11.5 B of its own beside embedding and head (0.9 B
    each), which it shares; the files hold 685 B, 14 B of them the module's."""
    model = scenario("h100", "deepseek_v3", **AHEAD).model
    assert count(model).total == count(scenario("h100", "deepseek_v3").model).total == pytest.approx(671e9, rel=0.001)
    own = prediction_parameters(model)
    attention = HIDDEN * 1536 + 1536 * 128 * 192 + HIDDEN * 576 + 512 * 128 * 256 + 128 * 128 * HIDDEN
    experts = 257 * 3 * HIDDEN * 2048 + HIDDEN * 256
    norms = 5 * HIDDEN + 1536 + 512
    assert own == 2 * HIDDEN * HIDDEN + attention + experts + norms
    assert own == pytest.approx(11.5e9, rel=0.01)
    assert own + 2 * VOCABULARY * HIDDEN == pytest.approx(14e9, rel=0.05)


def test_flops_of_one_prediction() -> None:
    """A token goes through a layer, the projection of two streams and the head once more."""
    model = scenario("h100", "llama3_1_8b", **AHEAD).model
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    more = layer + 2 * 4096 * 4096 + 4096 * 128256
    assert matrix_parameters(model, 1) - matrix_parameters(model) == more
    plain = scenario("h100", "llama3_1_8b").model
    added = model_flops_per_token(model, Workload()) - model_flops_per_token(plain, Workload())
    assert added == pytest.approx(6 * more + 12 * 32 * 128 * SEQ / 2)


@pytest.mark.parametrize(("schedule", "chunks"), [("interleaved_1f1b", 2), ("dualpipe_v", 2)])
def test_it_stands_behind_the_last_layer(schedule: str, chunks: int) -> None:
    of = scenario("h100", "llama3_1_8b", **AHEAD)
    row = layouts({"num_gpus": 4, "pp": 4, "vpp": chunks if schedule == "interleaved_1f1b" else 1, "schedule": schedule})
    split, stage_map = split_of(of), STAGE_MAPS[int(row.stage_map[0])]
    assert sum(map(sum, split.chunks(4, chunks, stage_map))) == 32
    held = split.kinds_of_chunks(4, chunks, stage_map)
    last = int(row.head_stage[0])
    behind = [(stage, chunk) for stage, own in enumerate(held) for chunk, kinds in enumerate(own) if 1 in kinds]
    assert behind == [(last, 1 if chunks == 2 else 0)]
    assert held[last][behind[0][1]][-1] == 1
    assert architecture_of(of).kinds[1].name == "next_token + full_attention + mlp"


def test_a_stage_more_of_work_and_memory_by_hand() -> None:
    """At pp = 1 the step is longer by a layer, its projection and the head; parameters, gradients and states grow by the module's."""
    rows = {"num_gpus": 1, "global_batch_size": 1, "recompute": "none", "zero": 0}
    less, more = (priced(scenario("h100", "llama3_1_8b", model__num_hidden_layers=4, **each), rows) for each in ({}, AHEAD))
    own = 2 * 4096 * 4096 + 3 * 4096 + 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert (more.memory_parameters_bytes - less.memory_parameters_bytes)[0] == 2 * own
    optimizer = scenario().software.precision.optimizer_bytes
    assert (more.memory_optimizer_bytes - less.memory_optimizer_bytes)[0] == optimizer * own
    layer = priced(scenario("h100", "llama3_1_8b", model__num_hidden_layers=5), rows).time_compute_s[0] - less.time_compute_s[0]
    head = 3 * 2 * SEQ * 4096 * 128256 / 800e12  # at no more than the chip sustains
    assert (more.time_compute_s - less.time_compute_s)[0] > layer + head


def test_the_last_stage_looks_tokens_up_too() -> None:
    """In a pipeline both ends have the table, and sum its gradient; in one that bends back they are one."""
    of, plain = (scenario("h100", "llama3_1_8b", **each) for each in (AHEAD, {}))
    row = {"num_gpus": 4, "pp": 4, "global_batch_size": 16, "zero": 0}
    table = 128256 * 4096
    assert arrangement(plain, layouts(row)).end.tied.sent.sum() == 0
    assert arrangement(of, layouts(row)).end.tied.sent.sum() == pytest.approx(2 * (1 / 2) * 4 * table, rel=1e-3)  # fp32, a ring of two
    bent = layouts(row | {"schedule": "dualpipe_v", "recompute": "none"})
    assert arrangement(of, bent).end.tied.sent.sum() == 0


LAYERS = {"model__num_hidden_layers": 8}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_gpus": 8, "pp": 4, "tp": 2, "recompute": "full"}, LAYERS),
    ({"num_gpus": 8, "tp": 4, "sequence_parallel": False, "zero": 3}, LAYERS | {"software__tp_backward_overlap": 0.3}),
    ({"num_gpus": 4, "pp": 4, "schedule": "dualpipe_v", "recompute": "none"}, LAYERS),
    ({"num_gpus": 8, "ep": 4, "pp": 2, "tp": 2, "recompute": "selective"}, LAYERS | MIXTURE | {"model__num_nextn_predict_layers": 2}),
]


@pytest.mark.parametrize(("row", "changes"), CASES, ids=lambda each: "-".join(f"{k}{v}" for k, v in each.items()))
def test_backends_agree(row: dict[str, Any], changes: dict[str, Any]) -> None:
    of, table = BLOCKING | AHEAD | changes, layouts({"global_batch_size": 16} | row)
    closed = price(scenario(**of), legal(scenario(**of), table))
    assert np.allclose(sum(time_terms(closed).values()), closed.step_time_s, rtol=1e-12)
    assert np.allclose(sum(memory_terms(closed).values()), closed.peak_memory_bytes, rtol=1e-12)
    for backend in ("hybrid", "full_astrasim_flattened"):
        run = price(scenario(backend__name=backend, backend__network="ideal", **of), table)
        assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02), backend
        assert run.peak_memory_bytes[0] == closed.peak_memory_bytes[0]


def test_a_config_brings_its_layers(tmp_path: Path) -> None:
    file = Path(__file__).parent / "data" / "hugging_face" / "deepseek_v3.json"
    settings = (f"model={file}", "hw.num_gpus=2048", "parallel.pp=16", "parallel.ep=64", "software.enforce=false")
    ended = program.done(tmp_path, *settings, "workload.global_batch_size=2048")
    assert "671 B parameters, 37.6 B active and 11.6 B that predict further tokens" in ended.out
    assert architecture_of(scenario(**AHEAD, workload__kind="inference", workload__prompt_len=8, workload__decode_len=8)).predictions == 0


def test_no_layer_of_an_image_predicts_a_token() -> None:
    with pytest.raises(ValueError, match=r"model\.num_nextn_predict_layers=1 has no effect with model.kind=vit"):
        scenario("h100", "vit_base", **AHEAD)
