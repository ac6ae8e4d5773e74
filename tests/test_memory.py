"""What a GPU holds: published counts, what shards and schedules change, and the stage that is fullest."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from trials import layouts, memory_terms, priced, random_layouts, scenario

from rapid_dse.analysis.fit import logged_peak
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import operator_model
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture, split_by_rule
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.schedules import STAGE_MAPS
from rapid_dse.parallel.stages import Stages, stages
from rapid_dse.simulate.held_weights import layer_weights, stage_weights
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.memory import peak_memory
from rapid_dse.simulate.operator_times import elementwise_bytes, operators

SLACK = 1 + 1e-9
SETTINGS: dict[str, dict[str, Any]] = {
    "8b": {},
    "gpt3_nanotron": {"hw": "a100", "model": "gpt3_175b", "software": "nanotron"},
    "405b": {"model": "llama3_1_405b", "software": "nemo"},
    "70b_torchtitan": {"model": "llama3_1_70b", "software": "torchtitan"},
    "unfused": {"hw": "a100", "model": "llama2_13b", "software": "megatron_deepspeed", "software__attention": "unfused"},
}


@cache
def table(name: str, count: int = 2000) -> tuple[Scenario, Layouts]:
    of = scenario(**SETTINGS[name])
    return of, random_layouts(of, 512, 512, count)


GPT = {"hw": "a100", "model": "gpt3_175b", "workload__seq_len": 2048, "software__attention": "unfused"}


class TestActivationsOfALayer:
    """Korthikanti et al. (arXiv 2205.05198), table 2: bytes a layer of a GPT with dropout, s tokens, b sequences, h wide, a heads."""

    S, B, H, A = 2048, 4, 12288, 96

    def bytes_of(self, tp: int, sequence_parallel: bool, recompute: str, **changes: Any) -> float:
        of = scenario(**(GPT | changes))
        row = {"tp": tp, "sequence_parallel": sequence_parallel, "recompute": recompute, "micro_batch_size": self.B, "num_gpus": 64}
        return float(layer_activations(of, layouts(row))[0][0])

    @pytest.mark.parametrize("tp", [1, 2, 8])
    def test_published_rows(self, tp: int) -> None:
        sbh, scores = self.S * self.B * self.H, 5 * self.A * self.S / self.H
        assert self.bytes_of(1, False, "none") == pytest.approx(sbh * (34 + scores), rel=1e-3)
        assert self.bytes_of(tp, False, "none") == pytest.approx(sbh * (10 + (24 + scores) / tp), rel=1e-3)
        assert self.bytes_of(tp, True, "none") == pytest.approx(sbh / tp * (34 + scores), rel=1e-3)
        assert self.bytes_of(tp, True, "selective") == pytest.approx(sbh / tp * 34, rel=1e-3)
        assert self.bytes_of(tp, False, "full") == 2 * sbh

    def test_flash_attention_keeps_no_scores(self) -> None:
        assert self.bytes_of(8, True, "none", software__attention="flash") == self.bytes_of(8, True, "selective")

    def test_context_parallelism_divides_them(self) -> None:
        of = scenario(model="llama3_1_70b")
        ((one, four),) = layer_activations(of, layouts({"tp": 8}, {"tp": 8, "cp": 4}))
        assert four == pytest.approx(one / 4)


def all_stages(split: np.ndarray[Any, Any], head: int = -1) -> Stages:
    """Every stage of one layout as a candidate, ``split`` being the layers of each, ``(pp, 1)``, ``head`` the stage that has it."""
    place, none = np.arange(len(split))[:, None], np.zeros((len(split), 0, 1), np.int64)
    return Stages(place, split, place, np.cumsum(split, axis=0) - split, place == 0, place == head % len(split), none, none, split[None])


@pytest.mark.parametrize(
    "name", ["llama2_7b", "llama3_1_8b", "llama3_1_70b", "llama3_1_405b", "gpt3_175b", "mixtral_8x7b", "qwen3_30b_a3b"]
)
def test_one_gpus_parameters_are_the_models(name: str) -> None:
    """At tp = pp = 1: the published count, but for padding and the final norm; all stages together hold as many."""
    of = scenario(model=name, workload__seq_len=2048)
    total = count(of.model).total
    held = float(priced(of, {"num_gpus": 1, "zero": 0}).memory_parameters_bytes[0])
    assert held == pytest.approx(2 * total, rel=5e-4)
    rows = layouts({"tp": 1, "pp": 4, "num_gpus": 4})
    split = np.array(split_by_rule(of.model, "megatron").layers(4, 1))[:, None]
    every = stage_weights(of, rows, all_stages(split)).total.sum()
    tied = count(of.model).embedding if of.model.tie_word_embeddings else 0  # first and last stage hold a copy each
    assert every == pytest.approx(total + tied, rel=5e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_zero_shards_optimizer_then_gradients_then_parameters(name: str) -> None:
    of, rows = table(name)
    results = [price(of, replace(rows, zero=np.full(len(rows), stage))) for stage in range(4)]
    shards = rows.dp * rows.cp
    # The fullest stage may be another one; where there is one only, each stage of ZeRO divides its term exactly.
    single = rows.pp == 1
    for term, stage in (("optimizer", 1), ("gradients", 2), ("parameters", 3)):
        if term == "gradients" and not of.software.kernels.fused_accumulation:
            continue  # without a buffer they take the activations' place as the backward pass goes on: which of them the peak has changes
        before, after = (memory_terms(results[each])[term][single] for each in (stage - 1, stage))
        # FSDP's shards of parameters are the master weights: 4 bytes instead of 2
        wider = 2 if term == "parameters" and of.software.precision.master_shards else 1
        np.testing.assert_allclose(after, before * np.where(shards[single] > 1, wider, 1) / shards[single])
    # More sharding never takes more, but for the shard itself beside what is whole for a while (a stage of one or two layers).
    for less, more, term in ((0, 1, None), (1, 2, "gradients"), (2, 3, "parameters")):
        shard = memory_terms(results[more])[term] if term else 0.0
        # gradients that take the activations' place one by one are few at the peak, where the layer that is reduced is whole
        placed = (rows.num_micro_batches == 1) & (more == 2) & (not of.software.kernels.fused_accumulation)
        allowed = np.where(placed, 1.005, SLACK)
        assert (results[more].peak_memory_bytes <= (results[less].peak_memory_bytes + shard) * allowed).all()
    deep = of.model.num_hidden_layers / rows.pp >= 8
    sharded = deep & (shards > 1)
    for less, more in ((0, 1), (1, 2), (2, 3)):
        # pipelines keep gradients whole until the last micro-batch's are reduced
        once = rows.num_micro_batches == 1
        saves = sharded & (single | once) & ~(once & (not of.software.kernels.fused_accumulation)) if more == 2 else sharded
        assert (results[more].peak_memory_bytes[saves] < results[less].peak_memory_bytes[saves]).all()
    alone = shards == 1
    np.testing.assert_allclose(results[0].peak_memory_bytes[alone], results[3].peak_memory_bytes[alone])


@pytest.mark.parametrize("name", SETTINGS)
def test_sequence_parallelism_keeps_less(name: str) -> None:
    of, rows = table(name)
    # what a host has launched ahead of the device gathers the sequence for is held with sequence parallelism alone
    memory = of.software.memory.model_copy(update={"layers_ahead": 0.0, "working_copies": 0.0})
    of = of.model_copy(update={"software": of.software.model_copy(update={"memory": memory})})
    rows = rows.take(rows.tp > 1)
    without, within = (price(of, replace(rows, sequence_parallel=np.full(len(rows), each))) for each in (False, True))
    # the fullest stage may be another one, with more activations and less of the rest
    assert (within.peak_memory_bytes < without.peak_memory_bytes).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fullest_stage_is_found_among_all(name: str) -> None:
    """The peak is that of the worst stage when every stage is a candidate."""
    of, rows = table(name, count=400)
    rule = of.software.pipeline.pipeline_split
    peaks = price(of, rows).peak_memory_bytes
    for row in np.flatnonzero(rows.pp > 1)[:60]:
        one = rows.take(np.array([row]))
        pp, chunks, stage_map = int(one.pp[0]), int(one.chunks[0]), STAGE_MAPS[int(one.stage_map[0])]
        split = np.array(split_by_rule(of.model, rule).layers(pp, chunks, stage_map))[:, None]
        every = all_stages(split, int(one.head_stage[0]))
        assert float(peak_memory(of, one, every).peak[0]) == pytest.approx(float(peaks[row]), rel=1e-12)
        assert len(stages(split_by_rule(of.model, rule), one).layers) == 4


@pytest.mark.parametrize("split", [(1, 9, 10, 3, 9, 0), (0, 8, 7, 6, 5, 6), (4, 4, 8, 8, 8, 0)], ids=str)
def test_the_fullest_stage_of_a_users_split_is_found_among_all(split: tuple[int, ...]) -> None:
    of = scenario(parallel__stage_layers=split)
    rows = layouts(
        *({"num_gpus": 24, "pp": 6, "global_batch_size": 4 * m, "schedule": word, "recompute": mode, "zero": zero}
          for word in ("gpipe", "1f1b", "zero_bubble") for m in (6, 30) for mode in ("none", "full") for zero in (0, 3))
    )  # fmt: skip
    peaks, every = price(of, rows).peak_memory_bytes, all_stages(np.array(split)[:, None])
    for row in range(len(rows)):
        assert float(peak_memory(of, rows.take(np.array([row])), every).peak[0]) == pytest.approx(float(peaks[row]), rel=1e-12)


def test_schedules_hold_what_is_published() -> None:
    """First stage of 8, 64 micro-batches: m for GPipe, p for 1F1B and ZB-H1, 1 + (p - 1)/(p v) of that interleaved."""
    of = scenario(model="llama3_1_70b", model__vocab_size=128, software__fragmentation=1.0)
    common = {"num_gpus": 64, "tp": 8, "pp": 8, "global_batch_size": 64, "recompute": "none"}
    rows = [common | {"schedule": word} for word in ("gpipe", "1f1b", "zero_bubble")]
    rows += [common | {"schedule": "interleaved_1f1b", "vpp": vpp} for vpp in (2, 5)]
    gpipe, alternating, zero_bubble, two, five = priced(of, *rows).memory_activations_bytes
    layer = float(layer_activations(of, layouts(rows[0]))[0][0])
    assert gpipe == pytest.approx(64 * 10 * layer, rel=1e-4)  # here the last stage is as full, and has a few logits
    assert alternating == zero_bubble == pytest.approx(8 * 10 * layer)
    assert two == pytest.approx(8 * 10 * layer * (1 + 7 / 16))
    assert five == pytest.approx(8 * 10 * layer * (1 + 7 / 40))


def test_zero_bubble_keeps_what_late_weight_gradients_need() -> None:
    """GPT-3 with flash attention, no dropout, 8 stages of 12 layers: of the 34 bytes a token and hidden unit that Korthikanti et al. count,
    2 are the masks that are not there, so that M_B is 32 and 4 bytes a head of log-sum-exp; M_W is 32 (Qi et al., arXiv 2401.10241,
    section 3.1): 14 of inputs, 18 of gradients. The last stage holds one micro-batch whole and 7 for their weight gradients."""
    of = scenario(hw="a100", model="gpt3_175b", workload__seq_len=2048, model__dropout=False, software__fragmentation=1.0)
    row = {"num_gpus": 64, "tp": 8, "pp": 8, "global_batch_size": 64, "recompute": "none", "zero": 0}
    rows = layouts(row | {"schedule": "zero_bubble"}, row | {"schedule": "1f1b"})
    last = stages(split_by_rule(of.model, "even"), rows)
    last = Stages(*(getattr(last, f.name)[..., 3:, :] if f.name == "of_kinds" else getattr(last, f.name)[3:] for f in fields(Stages)))
    late, plain = peak_memory(of, rows, last).activations
    each = 2048 * 12288 / 8 * 32
    assert late - plain == pytest.approx(12 * 7 * each, rel=1e-9)
    assert late / plain > 4


def test_full_recomputation_keeps_inputs_and_one_whole_layer() -> None:
    of = scenario(model="llama3_1_70b", model__vocab_size=128)
    rows = layouts(*({"tp": 8, "pp": 4, "global_batch_size": 64, "recompute": mode} for mode in ("none", "full")))
    ((none, full),) = layer_activations(of, rows)
    assert full == 2 * 8192 * 8192 / 8
    assert float(price(of, rows).memory_activations_bytes[1]) == pytest.approx(4 * 20 * full + none - full)


def test_does_not_fit_is_a_result() -> None:
    of = scenario(model="llama3_1_405b")
    result = priced(of, {"num_gpus": 8, "tp": 8, "global_batch_size": 8}, {"num_gpus": 16384, "tp": 8, "pp": 16, "recompute": "full"})
    assert result.fits.tolist() == [False, True]
    assert result.peak_memory_bytes[0] > of.hw.memory.usable > result.peak_memory_bytes[1]
    assert np.isfinite(result.step_time_s).all()


def test_fp32_is_twice_as_wide() -> None:
    """Weights, activations and what travels are 4 bytes wide; the weights are their own master copy: 16 bytes a parameter, as in bf16."""
    row = {"num_gpus": 16, "tp": 8, "pp": 2, "zero": 0, "recompute": "none"}
    narrow, wide = (priced(scenario(workload__precision=word), row) for word in ("bf16", "fp32"))
    assert wide.memory_parameters_bytes == 2 * narrow.memory_parameters_bytes
    assert wide.memory_optimizer_bytes == pytest.approx(narrow.memory_optimizer_bytes * 8 / 12)
    log_sum_exp = 2 * 16 * 4 * 8192 * 4  # of flash attention, fp32 either way: 2 micro-batches of 16 layers, 4 heads
    scores = 2 * 16 * 4 * 8192.0**2 * 4  # which no flash kernel keeps out of memory where operands have 32 bits
    assert wide.memory_activations_bytes == pytest.approx(2 * narrow.memory_activations_bytes - log_sum_exp + scores)
    assert (wide.time_tp_s > 1.7 * narrow.time_tp_s).all()
    assert (wide.time_compute_s > 1.5 * narrow.time_compute_s).all()


def test_transformer_engine_keeps_fp8_copies_of_what_products_read() -> None:
    """A layer of Llama 3.1 70B at tp 8, 8,192 tokens: inputs of qkv and up, of out and of down in one byte instead of two, and attention's
    own 16-bit output beside the copy; torchao's recipes keep the 16-bit inputs."""
    row = {"tp": 8, "recompute": "none"}
    kept = {}
    for precision in ("bf16", "fp8"):
        for recipe in ("delayed", "rowwise"):
            of = scenario(model="llama3_1_70b", workload__precision=precision, software__fp8_recipe=recipe)
            kept[precision, recipe] = float(layer_activations(of, layouts(row))[0][0])
    assert kept["fp8", "rowwise"] == kept["bf16", "rowwise"] == kept["bf16", "delayed"]
    saved = 8192 * (2 * 8192 / 8 + 28672 / 8 - 8192 / 8)
    assert kept["fp8", "delayed"] == pytest.approx(kept["bf16", "delayed"] - saved)


PARAMETERS = 8_030_261_248  # of Llama 3.1 8B


@pytest.mark.parametrize(("software", "bytes_"), [("torchtitan", 16), ("torchtitan_eager", 16), ("llm_foundry", 16), ("deepspeed", 18)])
def test_fsdp_has_no_16_bit_weights_beside_its_shards(software: str, bytes_: int) -> None:
    """Weight, gradient and two moments of 4 bytes each; DeepSpeed's ZeRO 3 has 16-bit shards too."""
    terms = memory_terms(priced(scenario(software=software), {"num_gpus": 64, "zero": 3}))
    states = sum(terms[name][0] for name in ("parameters", "gradients", "optimizer"))
    assert states == pytest.approx(bytes_ * PARAMETERS / 64, rel=5e-4)


@pytest.mark.parametrize("zero", [2, 3])
def test_accumulation_without_synchronisation_keeps_whole_gradients(zero: int) -> None:
    """Two micro-batches on each of 64 GPUs: 4 bytes a parameter, and a 64th of that where each micro-batch is reduced, or where there is
    one alone."""
    for each, batch, shards in ((True, 128, 64), (False, 128, 1), (False, 64, 64)):
        of = scenario(software__reduce_each_micro_batch=each)
        found = priced(of, {"num_gpus": 64, "zero": zero, "global_batch_size": batch}).memory_gradients_bytes[0]
        assert found == pytest.approx(4 * PARAMETERS / shards, rel=5e-4)


@pytest.mark.parametrize(
    ("states", "plain", "fsdp", "wide", "traffic"), [(12, 14, 12, 12, 34), (8, 10, 8, 8, 26), (6, 8, 6, 8, 22), (4, 6, 6, 8, 18)]
)
def test_narrow_optimizer_states(states: int, plain: int, fsdp: int, wide: int, traffic: int) -> None:
    """Bytes of weights and states a parameter. 8: moments of 16 bits and a master weight of 32; 6: of 16; 4: none, the 16-bit weight is
    stepped itself. Beside a 16-bit weight (2); as FSDP's shards, which are the master weights; under fp32, whose weights are 4 bytes. The
    step moves the states twice, the gradient twice and the weight: 2 · states + 10."""
    row = {"num_gpus": 64, "zero": 3}
    for software, precision, expected in (("deepspeed", "bf16", plain), ("torchtitan", "bf16", fsdp), ("deepspeed", "fp32", wide)):
        of = scenario(software=software, workload__precision=precision, software__optimizer_bytes=states)
        terms = memory_terms(priced(of, row))
        assert terms["parameters"][0] + terms["optimizer"][0] == pytest.approx(expected * PARAMETERS / 64, rel=5e-4)
    one = {"num_gpus": 1, "zero": 0}
    seconds = priced(scenario(software__optimizer_bytes=states), one).time_optimizer_s[0]
    whole = priced(scenario(), one).time_optimizer_s[0]
    assert seconds / whole == pytest.approx(traffic / 34, rel=1e-3)


def test_zero_3_gathers_table_and_head() -> None:
    """Llama 3.1 8B: at the head its table and the last layer are whole in 16 bits, and the table's gradient in 32."""
    table, layer = 128256 * 4096, 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336 + 2 * 4096
    found = priced(scenario(software="torchtitan"), {"num_gpus": 64, "zero": 3}).memory_gathered_bytes[0]
    assert found == pytest.approx(2 * (layer + table) + 4 * table)
    inner = priced(scenario(software="torchtitan", model__vocab_size=128), {"num_gpus": 64, "zero": 3}).memory_gathered_bytes[0]
    assert inner == pytest.approx(2 * 2 * layer + 4 * layer)


def test_transformer_engine_keeps_8_bit_weights_and_transposes() -> None:
    """Llama 3.1 8B: 2 bytes more for each weight of a layer's products; none with fp8 parameters (8-bit weight and transpose instead of the
    16-bit weight), none where torchao casts at each use; under ZeRO 3 for two layers that are gathered."""
    products = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
    row = {"num_gpus": 64, "zero": 1}
    settings = {"megatron_lm": 2, "nemo": 0, "torchtitan": 0}
    for software, extra in settings.items():
        narrow, wide = (memory_terms(priced(scenario(software=software, workload__precision=word), row)) for word in ("fp8", "bf16"))
        assert narrow["parameters"][0] - wide["parameters"][0] == pytest.approx(extra * 32 * products)
    narrow, wide = (memory_terms(priced(scenario(workload__precision=word), row | {"zero": 3})) for word in ("fp8", "bf16"))
    assert narrow["parameters"][0] == wide["parameters"][0]
    assert narrow["gathered"][0] - wide["gathered"][0] == pytest.approx(2 * 2 * products)


def test_experts_that_nobody_shares_stay_whole_under_zero_3() -> None:
    """Mixtral, one expert a GPU on 8 of them: each expert's 8-bit weight and transpose stay, attention's are kept for two layers."""
    expert, attention = 3 * 4096 * 14336, 4096 * (2 * 4096 + 2 * 1024)
    row = {"num_gpus": 8, "ep": 8, "zero": 3}
    narrow, wide = (memory_terms(priced(scenario(model="mixtral_8x7b", workload__precision=word), row)) for word in ("fp8", "bf16"))
    assert narrow["parameters"][0] - wide["parameters"][0] == pytest.approx(32 * 2 * expert)
    assert narrow["gathered"][0] - wide["gathered"][0] == pytest.approx(2 * 2 * attention)
    zero_3, zero_2 = (memory_terms(priced(scenario(model="mixtral_8x7b"), row | {"zero": zero}))["parameters"][0] for zero in (3, 2))
    dense = count(scenario(model="mixtral_8x7b").model).total - 32 * 8 * expert
    assert zero_2 - zero_3 == pytest.approx(2 * dense * 7 / 8, rel=1e-3)


def test_a_fused_loss_keeps_no_fp32_logits() -> None:
    """4 bytes a logit against 10, or 6 where one fp32 copy is all: 8,192 tokens of 128,256 logits, on the stage of the head."""
    row, words = {"num_gpus": 8, "zero": 3}, ("fused", "whole", "in_place")
    fused, plain, once = (priced(scenario(software__loss=word), row).memory_activations_bytes[0] for word in words)
    assert plain - fused == pytest.approx(6 * 8192 * 128256)
    assert once - fused == pytest.approx(2 * 8192 * 128256)
    told = priced(scenario(software__loss="fused", software__logit_bytes=10), row).memory_activations_bytes[0]
    assert told == plain


TINY = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 2048}
TINY |= {"vocab_size": 50304, "mlp_type": "gelu", "tie_word_embeddings": True}
SPREAD = {"sequence_parallel": True, "recompute": "none", "tp": 2, "pp": 4}
LOGGED: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("gpt", TINY, {"num_gpus": 8, "sequence_parallel": False, "recompute": "none", "pp": 4, "zero": 0, "micro_batch_size": 4}, 2.212e9),
    ("mixtral_8x7b", {}, SPREAD | {"num_gpus": 64, "ep": 8, "vpp": 8, "etp": 1, "schedule": "interleaved_1f1b"}, 35.51e9),
    ("mixtral_8x7b", {"vocab_size": 256000}, SPREAD | {"num_gpus": 128, "ep": 4, "etp": 2, "global_batch_size": 1024}, 26.50e9),
]


@pytest.mark.parametrize(("model", "sizes", "row", "measured"), LOGGED)
def test_the_last_rank_logs_what_its_tensors_take(model: str, sizes: dict[str, Any], row: dict[str, Any], measured: float) -> None:
    """Megatron-LM's own golden values on H100 (tests/functional_tests, mem-max-allocated-bytes): a small GPT at pp 4, Mixtral 8x7B over 64
    and 128 GPUs. The first stage holds more micro-batches than the last one, whose rank writes the log."""
    changes = {f"model__{name}": value for name, value in sizes.items()} | {"workload__seq_len": 1024 if model == "gpt" else 4096}
    of, cut = scenario("h100", model, **changes, software__gradient_dtype="fp32"), layouts(row)
    # the busiest rank of Mixtral's learned routing has more rows than the mean
    assert float(logged_peak(of, cut)[0]) == pytest.approx(measured, rel=0.02 if model == "gpt" else 0.08)
    assert float(logged_peak(of, cut, worst=True)[0]) > 1.05 * measured


def test_a_chunked_loss_holds_one_chunk_and_the_gradients_that_it_has_made() -> None:
    """131,072 tokens, 151,936 logits (151,936 = 1,187 · 128), 4,096 hidden: 151,936 / 4,096 is 37.1, so that Liger makes 38 chunks of
    131,072 / 38 = 3,450 tokens, rounded up to 4,096: 32 of them. 4 bytes a logit of one chunk; 16-bit gradients of the head's inputs and
    of its weights. The loss moves 8 bytes a logit, and 31 times reads and writes the weights' gradient; whole 46 bytes a logit."""
    sizes = {"model__hidden_size": 4096, "model__vocab_size": 151936, "workload__seq_len": 131072}
    row = {"num_gpus": 8, "zero": 3, "recompute": "full"}
    chunked, fused = (priced(scenario(software__loss=word, **sizes), row).memory_activations_bytes[0] for word in ("chunked", "fused"))
    made = 2 * 4096 * (131072 + 151936)
    assert fused - chunked == pytest.approx(4 * 151936 * (131072 - 4096) - made)
    shape = MicroBatch(*(np.ones(1, np.int64) for _ in range(5)), np.zeros(1, bool), 131072)
    tokens, table = 131072, 4096 * 151936
    for word, moved in (("whole", 46 * tokens * 151936), ("fused", 8 * tokens * 151936), ("chunked", 8 * tokens * 151936 + 31 * 4 * table)):
        of = scenario(software__loss=word, **sizes)
        assert operators(of, shape, operator_model(of.hw)).loss_bytes[0] == pytest.approx(moved)


def test_biases_and_norms_of_queries_and_keys_by_hand() -> None:
    """Llama 3.1 8B at tp 2: 16 of 32 heads and 4 of 8 KV heads of 128 a rank, 8,192 tokens, 4,096 bytes a stream row at 16 bits."""
    row = {"tp": 2, "sequence_parallel": True, "num_gpus": 64, "recompute": "none"}
    plain, biased, normed = (scenario(**changes) for changes in ({}, {"model__attention_bias": True}, {"model__qk_norm": True}))
    weights = [float(layer_weights(of, layouts(row))[0].dense[0]) for of in (plain, biased, normed)]
    assert weights[1] - weights[0] == 16 * 128 + 2 * 4 * 128
    assert weights[2] - weights[0] == 2 * 128
    kept = [float(layer_activations(of, layouts(row))[0][0]) for of in (plain, biased, normed)]
    assert kept[1] == kept[0]
    # what the norms read is kept for their backward pass, beside what they give to attention
    assert kept[2] - kept[0] == pytest.approx(2 * 8192 * (16 + 4) * 128 * plain.software.memory.activation_overhead)
    one = MicroBatch(*(np.array([n]) for n in (2, 1, 1, 2, 1)), np.array([True]), 8192)
    (forward, backward), (before, behind) = (elementwise_bytes(of, architecture(of.model).kinds[0], one) for of in (normed, plain))
    assert forward - before == 2 * 2 * 8192 * (16 + 4) * 128  # reads and writes
    assert backward - behind == 3 * 2 * 8192 * (16 + 4) * 128  # reads two and writes one


@pytest.mark.parametrize(
    ("hw", "hidden", "layers", "seq_len", "gpus", "batch", "micro_batch"),
    [("a100", 2560, 32, 8192, 8, 144, 3), ("a100_40gb", 2048, 24, 2048, 32, 320, 10)],
)
def test_the_fullest_published_runs_of_llm_foundry_fit(
    hw: str, hidden: int, layers: int, seq_len: int, gpus: int, batch: int, micro_batch: int
) -> None:
    """Runs of its benchmark tables (3B and 1.3B of MPT, FSDP, no recomputation) ran at more than nine tenths of the card's memory, which a
    share of 88.5 % that is taken for usable on every chip calls out of memory."""
    of = scenario(
        hw=hw,
        model="gpt",
        software="llm_foundry",
        model__hidden_size=hidden,
        model__num_hidden_layers=layers,
        model__num_attention_heads=hidden // 128,
        model__num_key_value_heads=hidden // 128,
        model__intermediate_size=4 * hidden,
        model__vocab_size=50368,
        workload__seq_len=seq_len,
    )
    row = {"num_gpus": gpus, "global_batch_size": batch, "micro_batch_size": micro_batch, "zero": 3, "recompute": "none"}
    result = priced(of, row)
    assert result.fits[0]
    assert result.peak_memory_bytes[0] > 0.9 * of.hw.memory.capacity


def test_pipelines_reduce_gradients_once_a_step() -> None:
    """ZeRO 2 without pipelines reduces the gradients of each of 16 micro-batches, a pipeline their sum once, as ZeRO 1 does.

    ZeRO 1 reduces gradients of 4 bytes once and gathers weights of 2, so that two thirds of its time are one reduction.
    """
    nothing_hides = {"software__dp_overlap": 0.0, "software__parameter_gather_overlap": 0.0, "software__scatter_overlap": 0.0}
    of = scenario(**nothing_hides)
    alone, piped = (
        price(of, layouts(*({"num_gpus": 16, "pp": pp, "zero": zero, "global_batch_size": 256 // pp} for zero in (1, 2)))) for pp in (1, 2)
    )
    assert (alone.time_dp_s[1] - alone.time_dp_s[0]) / 15 == pytest.approx(2 / 3 * alone.time_dp_s[0], rel=0.15)
    assert piped.time_dp_s[1] == pytest.approx(piped.time_dp_s[0])
    assert piped.memory_gradients_bytes[1] == piped.memory_gradients_bytes[0]
