"""Models whose layers are of several kinds: what they are by hand, and that they cost what their kinds do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_spread import TWO_KINDS
from trials import layouts, legal, priced, scenario

from rapid_dse.config import Model, Scenario
from rapid_dse.config.run import Workload
from rapid_dse.model.architecture import architecture, matrix_parameters, model_flops_per_token, split_by_rule, split_of
from rapid_dse.model.parameters import count
from rapid_dse.parallel.schedules.stage_maps import LOOPED
from rapid_dse.parallel.stages import stages
from rapid_dse.simulate.held_weights import layer_weights, stage_weights
from rapid_dse.simulate.layer_memory import layer_activations

ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW, FULL = "sliding_attention", "full_attention"


def model(**fields: Any) -> Model:
    """A model of which ``fields`` say what counts here."""
    usual = {"name": "test", "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4}
    return Model(**(usual | {"intermediate_size": 128, "vocab_size": 256} | fields))


def order(of: Model) -> list[str]:
    """The name of each layer's kind."""
    found = architecture(of)
    return [found.kinds[kind].name for kind in found.order]


class TestSegments:
    def test_dense_first_and_experts_after(self) -> None:
        found = architecture(model(**ROUTED, first_k_dense_replace=3))
        segments = [(segment.kind.name, segment.count) for segment in found.segments()]
        assert segments == [("embedding", 1), (f"{FULL} + mlp", 3), (f"{FULL} + experts", 5), ("head", 1)]

    def test_experts_in_every_other_layer(self) -> None:
        found = order(model(**ROUTED, interleave_moe_layer_step=2))
        assert found == [f"{FULL} + mlp", f"{FULL} + experts"] * 4

    def test_a_pattern_of_windows_is_repeated_over_the_layers(self) -> None:
        found = order(model(num_hidden_layers=8, sliding_window=16, layer_types=[WINDOW, WINDOW, FULL]))
        assert [name.split(" ")[0] for name in found] == [WINDOW, WINDOW, FULL, WINDOW, WINDOW, FULL, WINDOW, WINDOW]
        assert model(sliding_window=16, layer_types=f"{WINDOW}, {FULL}").layer_types == (WINDOW, FULL)  # as tables write it

    def test_kinds_of_two_patterns_meet(self) -> None:
        found = architecture(
            model(
                sliding_window=16,
                layer_types=[WINDOW, WINDOW, FULL, FULL],
                num_experts=4,
                num_experts_per_tok=1,
                moe_intermediate_size=32,
                interleave_moe_layer_step=2,
            )
        )
        assert found.order == (0, 1, 2, 3) * 2
        assert found.counts == (2, 2, 2, 2)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"layer_types": [WINDOW]}, "needs sliding_window"),
            ({"layer_types": [FULL], "sliding_window": 8}, "sliding_window=8 has no effect"),
            ({"layer_types": [], "sliding_window": 8}, r"layer_types=\[\]"),
            ({"layer_types": [WINDOW], "sliding_window": 8, "kv_lora_rank": 4}, "latent attention"),
            (ROUTED | {"first_k_dense_replace": 8}, "none of num_hidden_layers=8"),
            (ROUTED | {"interleave_moe_layer_step": 9}, "none of num_hidden_layers=8"),
        ],
    )
    def test_what_says_nothing_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model(**fields)


class TestParameters:
    def test_windows_as_in_gemma_change_none(self) -> None:
        """Gemma 3 4B's text model by hand, its MLP gated and of 10,240: windows of 1,024 on five layers of six."""
        gemma = model(
            hidden_size=2560,
            num_hidden_layers=34,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            intermediate_size=10240,
            vocab_size=262208,
            tie_word_embeddings=True,
            qk_norm=True,
            sliding_window=1024,
            layer_types=[*[WINDOW] * 5, FULL],
        )
        attention = 2560 * 256 * (8 + 4 + 4) + 8 * 256 * 2560
        layer = attention + 3 * 2560 * 10240 + 2 * 2560 + 2 * 256
        assert count(gemma).total == 262208 * 2560 + 34 * layer + 2560
        assert architecture(gemma).counts == (29, 5)
        windows = 1024 - 1024**2 / (2 * 8192)
        scores = 12 * 8 * 256 * (29 * windows + 5 * 8192 / 2)
        assert model_flops_per_token(gemma, Workload(seq_len=8192)) == pytest.approx(6 * matrix_parameters(gemma) + scores, rel=1e-12)

    def test_a_dense_layer_first_as_in_deepseek_moe(self) -> None:
        """DeepSeekMoE 16B (deepseek-ai/deepseek-moe-16b-base config.json): layer 0 is dense, 27 have 64 experts of 1,408, 6 of them a
        token, and 2 shared ones. The makers publish 16.4 billion parameters, 2.8 billion of them active."""
        deepseek = model(
            hidden_size=2048,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            intermediate_size=10944,
            vocab_size=102400,
            num_experts=64,
            num_experts_per_tok=6,
            moe_intermediate_size=1408,
            n_shared_experts=2,
            first_k_dense_replace=1,
        )
        attention, expert = 4 * 2048**2, 3 * 2048 * 1408
        dense, mixed = attention + 3 * 2048 * 10944, attention + 2048 * 64 + (64 + 2) * expert
        outside, norms = 2 * 102400 * 2048, (2 * 28 + 1) * 2048
        found = count(deepseek)
        assert found.total == outside + norms + dense + 27 * mixed
        assert found.active == outside + norms + dense + 27 * (mixed - 58 * expert)
        assert found.total == pytest.approx(16.4e9, rel=0.01)
        assert found.active == pytest.approx(2.8e9, rel=0.02)
        assert matrix_parameters(deepseek) == dense + 27 * (mixed - 58 * expert) + 102400 * 2048

    @pytest.mark.parametrize("name", TWO_KINDS)
    def test_all_stages_hold_the_models_parameters(self, name: str) -> None:
        of = scenario(**TWO_KINDS[name])
        rows = legal(of, layouts(*({"num_gpus": pp, "pp": pp, "global_batch_size": 64} for pp in (1, 2, 4))))
        split = split_of(of)
        for row, pp in enumerate((1, 2, 4)):
            every = stages(split, rows.take(np.array([row])))
            held = stage_weights(of, rows.take(np.array([row])), every).total
            place = {int(position): float(total) for position, total in zip(every.position[:, 0], held[:, 0], strict=True)}
            if len(place) == pp:
                assert sum(place.values()) == pytest.approx(count(of.model).total, rel=5e-4)


class TestSplits:
    def test_kinds_of_each_chunk_by_hand(self) -> None:
        """10 layers, the first three dense, over 2 stages of 2 chunks: 3, 3, 2, 2 layers, chunk after chunk over the stages."""
        of = model(num_hidden_layers=10, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=32, first_k_dense_replace=4)
        split = split_by_rule(of, "even")
        assert split.kinds_of_chunks(2, 2) == [[(0, 0, 0), (1, 1)], [(0, 1, 1), (1, 1)]]
        assert split.of_kinds(2, 2, LOOPED).tolist() == [[[3, 0], [0, 2]], [[1, 2], [0, 2]]]

    def test_a_balance_by_cost_gives_dense_layers_more_room(self) -> None:
        """Layers of 16,384 + 3 · 64 · w parameters: three of w = 1,024 cost as much as many of experts that see 8 each."""
        of = model(
            num_hidden_layers=9, intermediate_size=1024, vocab_size=1, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8
        ).model_copy(update={"first_k_dense_replace": 3})
        found = split_by_rule(of, "balanced").layers(2, 1)
        dense, mixed = 4 * 64**2 + 3 * 64 * 1024, 4 * 64**2 + 2 * 64 + 3 * 64 * 8
        share = (3 * dense + 6 * mixed + 64) / 2
        first = next(n for n in range(10) if sum(([dense] * 3 + [mixed] * 6)[:n]) >= share)
        assert found == [first, 9 - first]

    @given(
        layers=st.integers(4, 40), dense=st.integers(0, 3), step=st.sampled_from([1, 2, 3]), pp=st.sampled_from([1, 2, 3, 4]),
        chunks=st.sampled_from([1, 2]), rule=st.sampled_from(["megatron", "even", "balanced"]),
    )  # fmt: skip
    def test_every_layer_is_in_one_chunk_and_in_order(self, layers: int, dense: int, step: int, pp: int, chunks: int, rule: str) -> None:
        of = model(
            num_hidden_layers=layers,
            num_experts=4,
            num_experts_per_tok=1,
            moe_intermediate_size=32,
            first_k_dense_replace=min(dense, layers - step) if layers > step else 0,
            interleave_moe_layer_step=step if layers > step else 1,
        )
        held = split_by_rule(of, rule).kinds_of_chunks(pp, chunks)
        passed = [kind for chunk in range(chunks) for stage in range(pp) for kind in held[stage][chunk]]
        assert tuple(passed) == architecture(of).order


COLUMNS = ("time_compute_s", "time_tp_s", "time_ep_s", "memory_parameters_bytes", "memory_gradients_bytes", "memory_optimizer_bytes")


class TestCosts:
    """On one pipeline stage layers cost one after the other: a model of two kinds costs what its kinds' shares do."""

    ROWS = ({"num_gpus": 8, "tp": 8, "zero": 1}, {"num_gpus": 16, "tp": 4, "cp": 2, "recompute": "full", "sequence_parallel": False})

    def _mean(self, mixed: dict[str, Any], pure: list[tuple[float, dict[str, Any]]], columns: tuple[str, ...]) -> None:
        exact = {f"software__{name}_overlap": 0.0 for name in ("tp", "tp_backward", "cp", "dp", "parameter_gather")}
        exact |= {"software__host_layer": 0.0, "software__host_collective_layer": 0.0, "software__host_micro_batch": 0.0}
        found = priced(scenario(**exact, **mixed), *self.ROWS)
        parts = [(share, priced(scenario(**exact, **changes), *self.ROWS)) for share, changes in pure]
        for name in columns:
            np.testing.assert_allclose(getattr(found, name), sum(share * getattr(each, name) for share, each in parts), rtol=1e-6)

    def test_windows_and_full_attention(self) -> None:
        usual = {"workload__seq_len": 16384, "model__num_hidden_layers": 12}
        window = usual | {"model__sliding_window": 2048}
        self._mean(window | {"model__layer_types": [WINDOW, WINDOW, FULL]}, [(2 / 3, window), (1 / 3, usual)], COLUMNS)

    def test_dense_layers_and_experts(self) -> None:
        usual = {"model__num_hidden_layers": 12}
        experts = usual | {"model__num_experts": 4, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 4096}
        for fields in ({"model__first_k_dense_replace": 3}, {"model__interleave_moe_layer_step": 2}):
            share = 3 / 12 if "model__first_k_dense_replace" in fields else 1 / 2
            self._mean(experts | fields, [(share, usual), (1 - share, experts)], COLUMNS)

    def test_activations_are_each_kinds_own(self) -> None:
        of = scenario(**TWO_KINDS["dense first"])
        dense, mixed = layer_activations(of, layouts({"num_gpus": 8, "tp": 8}))
        alone = [layer_activations(scenario(**changes), layouts({"num_gpus": 8, "tp": 8}))[0] for changes in (
            {}, TWO_KINDS["dense first"] | {"model__first_k_dense_replace": 0})]  # fmt: skip
        np.testing.assert_allclose([dense, mixed], alone)
        weights = layer_weights(of, layouts({"num_gpus": 8, "tp": 8}))
        assert weights[0].experts is None
        assert weights[1].experts is not None

    @pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved_1f1b", "zero_bubble"])
    def test_two_kinds_that_are_alike_cost_what_one_does(self, schedule: str) -> None:
        """A window as long as the sequence changes nothing, so that a pattern with it is a model of one kind."""
        row = {"num_gpus": 16, "tp": 2, "pp": 4, "vpp": 2 if schedule == "interleaved_1f1b" else 1, "schedule": schedule, "zero": 1}
        rows = [row, row | {"zero": 3, "recompute": "full"}]
        one = priced(scenario(), *rows)
        two = priced(scenario(model__sliding_window=8192, model__layer_types=[WINDOW, FULL, FULL]), *rows)
        tolerance = 5e-3 if schedule in ("1f1b", "interleaved_1f1b") else 1e-9  # those are run pass by pass
        for name in ("step_time_s", "peak_memory_bytes", "energy_j", "mfu", "time_bubble_s"):
            np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=tolerance, err_msg=name)


LARGE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 14336}


def test_a_stage_with_less_work_waits() -> None:
    """Dense layers that cost little stand on the first stage: each micro-batch waits for the others, as 1F1B run pass by pass has it.

    Two stages of F and B seconds a micro-batch: the step is that of the slower one, and the faster one's passes once.
    """
    of = scenario(
        model__num_hidden_layers=8,
        **{f"model__{name}": value for name, value in LARGE.items()},
        model__first_k_dense_replace=4,
        model__vocab_size=128,
        software__host_layer=0.0,
        software__host_collective_layer=0.0,
        software__host_micro_batch=0.0,
        software__host_step=0.0,
        software__send_receive=0.0,
    )
    found = priced(of, {"num_gpus": 2, "pp": 2, "global_batch_size": 16, "zero": 0})
    halves = (_half({}), _half({f"model__{name}": value for name, value in LARGE.items()}))
    alone = (priced(each, {"num_gpus": 1, "global_batch_size": 16, "zero": 0}) for each in halves)
    faster, slower = (float(each.time_compute_s[0]) for each in alone)
    assert float(found.time_compute_s[0] + found.time_bubble_s[0]) == pytest.approx(slower + faster / 16, rel=0.01)


def _half(changes: dict[str, Any]) -> Scenario:
    """One stage of that pipeline as a model of its own."""
    hosts = {f"software__host_{name}": 0.0 for name in ("layer", "collective_layer", "micro_batch", "step")}
    return scenario(model__num_hidden_layers=4, model__vocab_size=128, **hosts, **changes)
