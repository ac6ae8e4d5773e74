"""A training step: one worked out by hand, what must add up, what must never slow it down, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from trials import layouts, memory_terms, priced, random_layouts, scenario, time_terms

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.device import AttentionCall, AttentionSizes, operator_model
from rapid_dse.events.backends import price
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.schedules import SPLITS_BACKWARD
from rapid_dse.parallel.span import Span
from rapid_dse.simulate import training
from rapid_dse.simulate.results import Priced


def span(inside: float, nodes: float) -> Span:
    """Neighbours of a group: ``inside`` members a node, over ``nodes`` nodes."""
    one = np.ones(1)
    return Span((inside * one, nodes * one), (one, one))


class TestByHand:
    """A Llama of 8 layers on 32 H100: tp 2 · cp 2 · dp 4 · pp 2, ZeRO 1, selective recomputation, sequence parallelism, 1F1B.

    Only the seconds of single kernels and collectives are asked of the device and network models; all else is worked out here.
    """

    GPUS, TP, CP, DP, PP, BATCH, MICRO, SEQ = 32, 2, 2, 4, 2, 64, 2, 4096
    HIDDEN, LAYERS, HEADS, KV, WIDE, VOCAB = 2048, 8, 16, 4, 5632, 32000
    HEAD = HIDDEN // HEADS

    @pytest.fixture
    def trial(self) -> tuple[Scenario, dict[str, float]]:
        trial = scenario(
            model="llama",
            workload__seq_len=self.SEQ,
            model__hidden_size=self.HIDDEN,
            model__num_hidden_layers=self.LAYERS,
            model__num_attention_heads=self.HEADS,
            model__num_key_value_heads=self.KV,
            model__intermediate_size=self.WIDE,
            model__vocab_size=self.VOCAB,
            model__dropout=False,
            software__elementwise_traffic=1.5,
            software__matmul_efficiency=0.9,
            software__tp_backward_overlap=0.2,
            software__cp_overlap=0.1,
            software__dp_overlap=0.5,
            software__parameter_gather_overlap=0.25,
            software__gradient_bucket=50e6,
            software__gradient_bucket_per_rank=0.0,
            cluster__fabric_efficiency=0.8,
            cluster__hop_latency=2e-6,
            software__send_receive=3e-5,
            software__host_step=0.01,
            software__host_layer=1e-3,
            software__optimizer_traffic=34.0,
        )
        row = {"tp": self.TP, "cp": self.CP, "pp": self.PP, "dp": self.DP, "num_gpus": self.GPUS, "micro_batch_size": self.MICRO}
        result = priced(trial, row | {"global_batch_size": self.BATCH, "schedule": "1f1b"})
        return trial, {f.name: float(getattr(result, f.name)[0]) for f in fields(result)}

    def test_step_time(self, trial: tuple[Scenario, dict[str, float]]) -> None:
        of, found = trial
        device, hw = operator_model(of.hw), of.hw
        inner, outer = hw.network.dimensions
        fabric = outer.model_copy(update={"utilization": outer.utilization * 0.8, "latency": outer.latency + 2e-6})
        network = hw.network.model_copy(update={"dimensions": (inner, fabric)})

        # --- compute: a rank has 2 sequences of 4096 / 2 tokens, 8 of the query heads, 2 of the KV heads, half of the MLP.
        tokens, heads, kv, wide = 2 * 2048, 8, 2, 2816
        matrices = [(2048, (heads + 2 * kv) * 128), (heads * 128, 2048), (2048, 2 * wide), (wide, 2048)]  # (in, out); gate and up are one

        def products(shapes: list[tuple[int, int]]) -> tuple[float, float, float]:
            """Seconds forward (tokens, out, in), of input gradients (tokens, in, out) and weight gradients (out, in, tokens)."""
            slower = 0.9 * hw.efficiency.sustained
            forward = sum(float(device.gemm(tokens, n, k)) for k, n in shapes) / slower
            inputs = sum(float(device.gemm(tokens, k, n)) for k, n in shapes) / slower
            weights = sum(float(device.gemm(n, k, tokens, accumulate=True)) for k, n in shapes) / slower
            return forward, inputs, weights

        forward, inputs, weights = products(matrices)
        # Causal ring attention in zigzag on two ranks (arXiv 2310.01889): 2,048 queries of each sequence against the rank's own 2,048 keys,
        # causally, then half of the other rank's rectangle. The two results are merged: 10 bytes an element (read in 16 bits, summed in
        # fp32) and 6 for the last write; forward the outputs, backward the gradients of queries, keys and values.
        elements = 2 * 2048 * 128 * np.array([heads, heads + 2 * kv])
        attend, attend_back = (
            float(
                device.attention(
                    AttentionSizes(2, heads, kv, 2048, 2048, 128, causal=True), AttentionCall(direction=way, kernel=of.attention_kernel)
                )
                + device.attention(
                    AttentionSizes(2, heads, kv, 2048, 1024, 128, causal=False), AttentionCall(direction=way, kernel=of.attention_kernel)
                )
                + device.elementwise(16.0 * count)
            )
            / hw.efficiency.sustained
            for way, count in zip(("forward", "backward"), elements, strict=True)
        )
        # Fused elementwise passes, 2 bytes each: over the stream (its tokens shared by tp: sequence parallelism) two norms (read, write;
        # backward read 2, write) and two residual sums (read 2, write; backward read, write), rotary embedding over the rank's queries
        # and keys, SwiGLU (read gate and up, write; backward read both and the gradient, write both).
        stream, rotated, gated = tokens // 2 * 2048 * 2, tokens * 128 * (heads + kv) * 2, tokens * wide * 2
        glue = float(device.elementwise(1.5 * (10 * stream + 2 * rotated + 3 * gated)))
        glue_back = float(device.elementwise(1.5 * (10 * stream + 2 * rotated + 5 * gated)))
        layer_forward = forward + attend + glue
        layer_backward = inputs + weights + attend_back + glue_back
        layer_compute = layer_forward + layer_backward + attend  # selective: core attention once more (arXiv 2205.05198)

        # --- tensor parallelism with sequence parallelism (arXiv 2205.05198, section 4.2.2): gather and scatter around attention and MLP
        # in each direction, and a gather more of each product's input for the weight gradient. A fifth hides backward.
        activation, pair = tokens * 2048 * 2, span(2, 1)
        gather = float(closed_form.all_gather(activation, pair, network)[0])
        scatter = float(closed_form.reduce_scatter(activation, pair, network)[0])
        tp_forward = 2 * (gather + scatter)
        tp_backward = 0.8 * (2 * (gather + scatter) + 2 * gather)
        assert 0.2 / 0.8 * tp_backward < weights  # there is enough to hide behind

        # --- context parallelism: K and V go one hop around forward, K, V and their gradients backward; a tenth of attention hides it.
        keys = tokens * kv * 128 * 2 * 2
        hop = float(closed_form.send_recv(keys, pair, network)[0])
        cp_forward, cp_backward = max(0.0, hop - 0.1 * attend), max(0.0, 2 * hop - 0.1 * attend_back)
        assert cp_forward > 0
        cp_backward += cp_forward  # core attention is recomputed on keys that come around once more

        # --- the pipeline: 4 layers a stage; embedding first (reads and writes the stream, and its gradient), head and loss last.
        # The vocabulary, padded to a multiple of 128 · 2, is 32000 itself: 16000 rows a rank. The loss moves 46 bytes a logit.
        head_forward, head_inputs, head_weights = products([(2048, 16000)])
        head = head_forward + head_inputs + head_weights + float(device.elementwise(46 * tokens * 16000))
        embedding = float(device.elementwise(3 * activation))
        layer = layer_compute + tp_forward + tp_backward + cp_forward + cp_backward
        # The look-up's sum is scattered, its gradient gathered. What the head reads is gathered, the loss reduces three fp32 numbers a
        # token, then the head's input is gathered again and its gradient scattered, a fifth of that behind the weight gradient.
        looked_up = scatter + gather
        reduced = float(closed_form.all_reduce(tokens * 4, pair, network)[0])
        headed = gather + 3 * reduced + 0.8 * (gather + scatter)
        assert 0.2 * (gather + scatter) < head_weights
        # A send to the other stage, each tensor-parallel rank its half, across nodes (neighbours are 16 ranks apart); something is
        # launched for what is sent and for what is received.
        hops = float(closed_form.send_recv(activation / 2, span(1, 2), network)[0]) + 2 * 3e-5
        first, last = 4 * layer + embedding + looked_up + hops, 4 * layer + head + headed + hops
        assert last > first
        micro_batches = 64 // (4 * 2)
        bubble = first  # one pass through the only other stage: (p - 1)(F + B) if it were equal

        # --- the end of the step, on the first stage: parameters of 4 layers and of the look-up on a rank, gradients in fp32 over cp · dp.
        layer_parameters = 2048 * 128 * (2 * heads + 2 * kv) + 3 * 2048 * wide + 2 * 2048
        parameters = 4 * layer_parameters + 16000 * 2048
        group = span(4, 2)  # stride tp: 4 of its 8 members a node
        calls = -(-4 * parameters // 50_000_000)
        sync = calls * float(closed_form.reduce_scatter(4 * parameters / calls, group, network)[0])
        last_bucket = max(50e6, 4 * 16000 * 2048)  # the look-up's gradient, which comes last, is not split over buckets
        shown = max(sync - 0.5 * 4 * (layer_backward + attend + tp_backward + cp_backward), sync * last_bucket / (4 * parameters))
        weights_gather = float(closed_form.all_gather(2 * parameters, group, network)[0])
        shown += max(0.0, weights_gather - 0.25 * 4 * (layer_forward + tp_forward + cp_forward))
        optimizer = float(device.elementwise(34 * parameters / 8))
        # each rank's norms have seen half of the tokens: the pair sums their gradients, two norms of 2048 in each of the 4 layers
        norms = float(closed_form.all_reduce(4 * 2 * 2048 * 4, pair, network)[0])

        by_hand = {
            "compute": micro_batches * (4 * layer_compute + head),
            "tp": micro_batches * (4 * (tp_forward + tp_backward) + headed) + norms,
            "cp": micro_batches * 4 * (cp_forward + cp_backward),
            "ep": 0.0,
            "pp": micro_batches * hops,
            "dp": shown,
            "bubble": bubble,
            "optimizer": optimizer,
            "host": 0.01,
        }
        assert {name: found[f"time_{name}_s"] for name in by_hand} == pytest.approx(by_hand, rel=1e-9)
        assert found["step_time_s"] == pytest.approx(sum(by_hand.values()), rel=1e-9)
        assert min(value for name, value in by_hand.items() if name != "ep") > 0

    def test_rates_and_cost(self, trial: tuple[Scenario, dict[str, float]]) -> None:
        of, found = trial
        seconds = found["step_time_s"]
        matrices = 8 * (2048 * 2048 * 2 + 2 * 2048 * 512 + 3 * 2048 * 5632) + 2048 * 32000
        attention = 6 * 8 * 2048 * 4096  # forward 2 · 2 · s · h a token and layer, causal half of it, three times that in all
        assert found["tokens_per_s"] == pytest.approx(64 * 4096 / seconds)
        assert found["tokens_per_s_per_gpu"] == pytest.approx(64 * 4096 / seconds / 32)
        assert found["mfu"] == pytest.approx((6 * matrices + attention) * 64 * 4096 / seconds / (32 * 132 * 4096 * 1.83e9))
        assert found["cost_usd"] == pytest.approx(2.99 / 3600 * 32 * seconds)
        assert 32 * of.hw.energy.idle * seconds < found["energy_j"] < 32 * of.hw.energy.tdp * seconds

    def test_memory(self, trial: tuple[Scenario, dict[str, float]]) -> None:
        """The last stage holds less in flight but the logits; here the first is the fullest."""
        of, found = trial
        tokens = 2 * 2048
        layer = 2048 * 128 * (2 * 8 + 2 * 2) + 3 * 2048 * 2816 + 2 * 2048
        parameters = 4 * layer + 16000 * 2048
        # Korthikanti et al., section 4.1, for SwiGLU and grouped queries: inputs of two norms and two products (2 bytes × the stream,
        # shared by tp), queries, keys, values, the core's output, gate, up and their product; flash keeps 4 bytes of log-sum-exp.
        shared = 4 * 2 * tokens // 2 * 2048
        kept = shared + 2 * tokens * 8 * 128 * 2 + 2 * 2 * tokens * 2 * 128 + 3 * 2 * tokens * 2816 + 4 * tokens * 8
        first = 2 * 4 * kept  # p = 2 micro-batches in flight on the first stage
        logits = tokens * 16000 * 6  # Megatron's loss in place: 16-bit output, and an fp32 copy that becomes the gradient
        last = 4 * kept + logits
        worst = max(first, last)
        by_hand = {
            "parameters": 2 * parameters,
            "gradients": 4 * parameters,
            "optimizer": 12 * parameters / 8,
            "activations": worst,
            "kv_cache": 0.0,
            "gathered": 0.0,
            "buffers": (of.software.memory.fragmentation - 1) * worst + 50e6,
            "framework": of.software.memory.context,
        }
        assert {name: found[f"memory_{name}_bytes"] for name in by_hand} == pytest.approx(by_hand, rel=1e-9)
        assert found["peak_memory_bytes"] == pytest.approx(sum(by_hand.values()), rel=1e-9)


EXPERTS = {"model__num_experts": 8, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 14336}
SWITCH = {"topology": "switch", "size": None, "bandwidth": 1e11, "latency": 1e-6, "utilization": 0.9, "energy": 1e-10}

# Chips, models and frameworks between them have every option of the profiles; each gets a table of random legal layouts.
SETTINGS: dict[str, dict[str, Any]] = {
    "8b": {},
    "gpt3_nanotron": {"hw": "a100", "model": "gpt3_175b", "software": "nanotron", "workload__precision": "fp16"},
    "405b_fp8": {"model": "llama3_1_405b", "software": "nemo", "workload__precision": "fp8"},
    "gpt_v100": {"hw": "v100", "model": "gpt", "software": "deepspeed", "workload__precision": "fp16", "workload__seq_len": 2048},
    "70b_b200": {"hw": "b200", "model": "llama3_1_70b", "software": "torchtitan"},
    "unfused": {"hw": "a100", "software": "megatron_deepspeed", "software__attention": "unfused", "software__fused_softmax": False},
    "fsdp": {"hw": "l40s", "software": "llm_foundry", "software__reduce_each_micro_batch": True, "workload__seq_len": 4096},
    "window": {"hw": "mi300x", "model": "llama3_1_70b", "model__sliding_window": 1024, "model__head_dim": 192},
    "experts": {"model": "qwen3_30b_a3b", "workload__seq_len": 4096},
    "shared_experts": EXPERTS | {"model__n_shared_experts": 2, "software": "nemo", "workload__precision": "fp8"},
    "host": {"model": "llama2_13b", "software__host_layer": 2e-2, "software__host_step": 0.05, "software__host_micro_batch": 1e-3},
}


# A step that waits for its host has no law in the device: what gets faster there leaves transfers less to hide behind.
UNHINDERED = {f"software__{name}": 0.0 for name in ("host_layer", "host_collective_layer", "host_micro_batch")}


@cache
def drawn(name: str) -> Layouts:
    """Random legal layouts of 512 GPUs, 4,000 where there are as many."""
    return random_layouts(scenario(**SETTINGS[name]), 512, 512, 4000)


@cache
def table(name: str, count: int = 1500, **changes: float) -> tuple[Scenario, Layouts]:
    """A scenario and the first ``count`` layouts, of which none depends on the changes."""
    return scenario(**(SETTINGS[name] | changes)), drawn(name).take(slice(0, count))


@cache
def prices(name: str, **changes: float) -> Priced:
    """Of the whole table."""
    return price(*table(name, **changes))


@pytest.mark.parametrize("name", SETTINGS)
class TestEveryTable:
    def test_terms_are_not_negative_and_add_up(self, name: str) -> None:
        of, result = table(name)[0], prices(name)
        times, sizes = time_terms(result), memory_terms(result)
        for term, values in (times | sizes).items():
            assert (values >= 0).all(), term
        np.testing.assert_allclose(sum(times.values()), result.step_time_s, rtol=1e-9)
        np.testing.assert_allclose(sum(sizes.values()), result.peak_memory_bytes, rtol=1e-9)
        np.testing.assert_array_equal(result.fits, result.peak_memory_bytes <= of.hw.memory.usable)
        assert (result.step_time_s > 0).all()
        assert ((result.mfu > 0) & (result.mfu < 1)).all()

    def test_a_gpu_draws_between_idle_and_its_limit(self, name: str) -> None:
        (of, rows), result = table(name), prices(name)
        watts = result.energy_j / result.step_time_s / rows.num_gpus
        assert (watts > of.hw.energy.idle).all()
        assert (watts <= of.hw.energy.tdp * (1 + 1e-12)).all()
        np.testing.assert_allclose(result.cost_usd, of.hw.price / 3600 * rows.num_gpus * result.step_time_s)

    def test_a_row_is_priced_alike_alone_and_in_any_company(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "CHUNK", 1000)
        of, rows = table(name, count=4000)  # more than a chunk
        whole = price(of, rows)
        order = np.random.default_rng(1).permutation(len(rows))
        _same(price(of, rows.take(order)), whole, order)
        for row in order[:12]:
            _same(price(of, rows.take(np.array([row]))), whole, np.array([row]))


def _same(result: Priced, whole: Priced, rows: np.ndarray) -> None:
    for f in fields(Priced):
        np.testing.assert_array_equal(getattr(result, f.name), getattr(whole, f.name)[rows], err_msg=f.name)


class TestRefused:
    """What this version does not price it says, rather than price something else."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hw__network__dimensions": [SWITCH | {"topology": "torus"}]}, r"dimensions\.0\.topology=torus"),
        ],
    )
    def test_by_the_pricing(self, changes: dict[str, Any], message: str) -> None:
        of = scenario(**changes)
        with pytest.raises(ValueError, match=message):
            price(of, layouts({}))

    def test_groups_that_the_networks_dimensions_do_not_hold(self) -> None:
        """Where a dimension carries tp alone, tp is its size: another layout was priced as if it fitted."""
        of = scenario(hw__network__dimensions=[SWITCH | {"size": 8, "parallelisms": ["tp"]}, SWITCH])
        assert priced(of, {"tp": 8}).step_time_s > 0
        with pytest.raises(ValueError, match="tp is not the size 8 of network dimension 0"):
            price(of, layouts({"tp": 8}, {"tp": 4}))

    @pytest.mark.parametrize(("chip", "precision"), [("a100", "fp8"), ("v100", "fp8"), ("v100", "bf16")])
    def test_by_the_schema_where_the_chip_lacks_the_precision(self, chip: str, precision: str) -> None:
        with pytest.raises(ValueError, match=f"workload.precision={precision}: {chip} has no such mode"):
            scenario(hw=chip, workload__precision=precision)


def faster(of: Scenario, part: str, factor: float) -> Scenario:
    """The same scenario with a clock, HBM, or a network dimension's bandwidth or latency changed by ``factor``."""
    hw = of.hw
    if part == "clock":
        hw = hw.model_copy(update={"clock": hw.clock * factor})
    elif part == "hbm":
        hw = hw.model_copy(update={"memory": hw.memory.model_copy(update={"bandwidth": hw.memory.bandwidth * factor})})
    else:
        name, index = part.split()
        dimensions = list(hw.network.dimensions)
        place = int(index)
        dimensions[place] = dimensions[place].model_copy(update={name: getattr(dimensions[place], name) * factor})
        hw = hw.model_copy(update={"network": hw.network.model_copy(update={"dimensions": tuple(dimensions)})})
    return of.model_copy(update={"hw": hw})


CHANGES = [("clock", 1.2), ("hbm", 1.4), ("bandwidth 0", 1.5), ("bandwidth 1", 2.0), ("latency 0", 0.5), ("latency 1", 0.2)]
SLACK = 1 + 1e-9


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "host"])
class TestLaws:
    @pytest.mark.parametrize(("part", "factor"), CHANGES)
    def test_better_hardware_never_slows(self, name: str, part: str, factor: float) -> None:
        of, rows = table(name, **UNHINDERED)
        before, after = prices(name, **UNHINDERED).step_time_s, price(faster(of, part, factor), rows).step_time_s
        # Where transfers fill a zero-bubble slot, faster weight gradients leave it as long but fill less of the tail.
        slack = np.where(SPLITS_BACKWARD.take(rows.schedule), np.where(rows.zero >= 2, 1.007, 1 + 1e-5), SLACK)
        assert (after <= before * slack).all()
        assert (after < before).any()

    def test_recomputation_buys_memory_with_time(self, name: str) -> None:
        of, rows = table(name, **UNHINDERED)
        none, selective, full = (price(of, replace(rows, recompute=np.full(len(rows), code))) for code in range(3))
        # Where exchanges of experts take longer than what is computed in a pair of passes, what runs again hides more of them, and
        # passes of dualpipe_v that run alone at a step's ends, which the same share of them is exposed in, are shorter.
        slack = np.where(rows.schedule == SCHEDULES.index("dualpipe_v"), 1.001, SLACK)
        assert (none.step_time_s <= selective.step_time_s * slack).all()
        assert (selective.step_time_s <= full.step_time_s * SLACK).all()
        assert (none.peak_memory_bytes >= selective.peak_memory_bytes / SLACK).all()
        assert (selective.peak_memory_bytes >= full.peak_memory_bytes / SLACK).all()

    def test_a_schedule_with_less_bubble_is_no_slower(self, name: str) -> None:
        """1F1B as GPipe, or better where stages differ; ZB-H1 at most that, where no transfer would hide behind weight gradients, which it
        runs too late for that; to 1 %, within which 1F1B's formula has what stages and hosts wait for each other, of which ZB-H1 is run."""
        hides = {f"software__{overlap}_overlap": 0.0 for overlap in ("tp_backward", "dp")} | {"software__async_tp": False}
        of, rows = table(name, **hides)
        rows = rows.take((rows.pp > 1) & (rows.vpp == 1) & (rows.num_micro_batches >= rows.pp))
        gpipe, alternating, _, zero_bubble = (price(of, replace(rows, schedule=np.full(len(rows), code))) for code in (1, 2, 3, 4))
        assert (alternating.step_time_s <= gpipe.step_time_s * SLACK).all()
        assert (alternating.step_time_s > 0.8 * gpipe.step_time_s).all()
        assert (zero_bubble.step_time_s < alternating.step_time_s * 1.01).all()
        assert (zero_bubble.step_time_s < alternating.step_time_s).mean() > 0.99
        assert (alternating.peak_memory_bytes <= gpipe.peak_memory_bytes * SLACK).all()


def test_full_recomputation_costs_about_a_forward_pass() -> None:
    """A third of forward and backward more, less what is not layers (arXiv 2205.05198, section 5: 30 to 40 %)."""
    none, full = priced(
        scenario(model="llama3_1_70b"), *({"tp": 8, "pp": 4, "recompute": mode} for mode in ("none", "full"))
    ).time_compute_s
    assert 1.28 < full / none < 1.4


def test_doubling_the_batch_doubles_what_micro_batches_take() -> None:
    rows = ({"tp": 4, "pp": 4, "global_batch_size": batch} for batch in (256, 512, 768))
    result = priced(scenario(), *rows)
    for term in ("compute", "pp"):
        once, twice, _ = getattr(result, f"time_{term}_s")
        assert twice == pytest.approx(2 * once)
    once, twice, thrice = result.time_tp_s
    assert thrice - twice == pytest.approx(twice - once)
    assert 0 < 2 * once - twice < 1e-3  # the sum of the norms' gradients, once a step
    assert result.time_bubble_s[0] == pytest.approx(result.time_bubble_s[1])
    assert result.time_optimizer_s[0] == result.time_optimizer_s[1]


def test_bubbles_of_a_balanced_pipeline() -> None:
    """With a head of no weight, and no transfers around it, the stages are equal: (p - 1) / m of the slots for 1F1B, that over v
    interleaved."""
    of = scenario(
        model="llama3_1_70b", model__vocab_size=128, software__pipeline_split="even", software__dp_overlap=1.0, software__pp_overlap=0.0
    )
    common = {"num_gpus": 8, "pp": 4, "global_batch_size": 64}
    plain, two, five = (
        price(of, layouts(common | {"schedule": "interleaved_1f1b" if vpp > 1 else "1f1b", "vpp": vpp})) for vpp in (1, 2, 5)
    )
    slots = float((plain.time_compute_s + plain.time_tp_s + plain.time_pp_s)[0])
    assert float(plain.time_bubble_s[0]) == pytest.approx(3 / 32 * slots, rel=2e-3)
    sends = float(plain.time_pp_s[0])
    for vpp, result in ((2, two), (5, five)):
        assert float(result.time_pp_s[0]) == pytest.approx(vpp * sends)  # a send for each chunk
        slots = float((result.time_compute_s + result.time_tp_s + result.time_pp_s)[0])
        assert float(result.time_bubble_s[0]) == pytest.approx(3 / 32 / vpp * slots, rel=2e-3)


def test_dp_auto_takes_what_the_others_leave() -> None:
    of = scenario()
    automatic = priced(of, {"tp": 4, "cp": 2, "pp": 2, "num_gpus": 64})
    given = priced(of, {"tp": 4, "cp": 2, "pp": 2, "num_gpus": 64, "dp": 4})
    _same(automatic, given, np.array([0]))


def test_zero_3_hides_no_more_than_its_network_carries() -> None:
    """Its gathers take the network all through the last backward pass where they are slower than it: the reduction then shows in full."""
    of = scenario("l40s", software="llm_foundry", workload__seq_len=2048)
    row = {"num_gpus": 256, "global_batch_size": 256, "zero": 3}
    slow = faster(of, "bandwidth 1", 0.05)
    shown = priced(slow, row).time_dp_s[0]
    group = span(float(of.hw.gpus_per_node), 256 / of.hw.gpus_per_node)
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    gather = float(closed_form.all_gather(2 * layer, group, slow.hw.network)[0])
    scatter = float(closed_form.reduce_scatter(4 * 32 * layer, group, slow.hw.network)[0])
    compute = float(priced(slow, row).time_compute_s[0])
    assert 64 * gather > 10 * compute  # far slower than all there is to hide behind
    assert shown > 64 * gather + scatter - compute


def test_what_is_recomputed_with_ring_attention_needs_the_ring_again() -> None:
    """A third of the ring's time forward, two backward; core attention alone (selective) or the whole layer again: one third more."""
    of = scenario(model="llama3_1_70b", software__cp_overlap=0.0)
    rows = ({"tp": 8, "cp": 8, "recompute": mode} for mode in ("none", "selective", "full"))
    none, selective, full = priced(of, *rows).time_cp_s
    assert selective == full == pytest.approx(4 / 3 * none)
    others = scenario(model="llama3_1_70b", software="torchtitan", software__cp_overlap=0.0)  # every other product: attention is kept
    assert priced(others, {"tp": 8, "cp": 8}).time_cp_s == pytest.approx(none)


def test_reducing_after_every_micro_batch_is_never_faster() -> None:
    """With buckets as large as a layer, so that both send the same messages; the look-up's gradient, which comes last, shows either way."""
    once, each = (
        scenario(software="torchtitan", software__gradient_bucket=872e6, software__reduce_each_micro_batch=word) for word in (False, True)
    )
    rows = [
        {"zero": zero, "tp": tp, "global_batch_size": batch, "num_gpus": 256}
        for zero in (1, 2, 3)
        for tp in (1, 2)
        for batch in (256, 1024)
    ]
    before, after = priced(once, *rows).step_time_s, priced(each, *rows).step_time_s
    sharded = np.array([row["zero"] >= 2 for row in rows])
    np.testing.assert_array_equal(after[~sharded], before[~sharded])
    assert (after >= before / SLACK)[sharded].all()
    slow = faster(once, "bandwidth 1", 0.1), faster(each, "bandwidth 1", 0.1)
    row = {"zero": 2, "num_gpus": 256, "global_batch_size": 4096}
    assert priced(slow[1], row).time_dp_s > 2 * priced(slow[0], row).time_dp_s


def test_what_hides_of_an_all_reduce_is_its_own_share() -> None:
    """8 GPUs of a node sum 8.03 billion fp32 gradients after the backward pass, in 9 calls; what ZeRO 1 scatters hides as before."""
    whole, after = (
        scenario(model="llama3_1_8b", software__dp_overlap=1.0, software__gradient_bucket=4e9, software__all_reduce_overlap=share)
        for share in (None, 0.0)
    )
    rows = [{"num_gpus": 8, "zero": zero, "global_batch_size": 64} for zero in (0, 1)]
    before, found = priced(whole, *rows).time_dp_s, priced(after, *rows).time_dp_s
    assert found[0] == pytest.approx(9 * float(closed_form.all_reduce(4 * 8_030_261_248 / 9, span(8, 1), whole.hw.network)[0]))
    assert found[0] > 5 * before[0]
    assert found[1] == before[1]


def test_zero_bubbles_save_the_other_stages_weight_gradients_twice() -> None:
    """ZB-H1 against 1F1B on equal stages: 2 (p - 1) W less (arXiv 2401.10241, table 1), W the weight gradients of a stage's 20 layers."""
    ends = {"model__vocab_size": 128, "software__pipeline_split": "even", "software__tp_backward_overlap": 0.0}
    of = scenario(model="llama3_1_70b", **ends)
    rows = ({"tp": 8, "pp": 4, "global_batch_size": 64, "schedule": word} for word in ("1f1b", "zero_bubble"))
    plain, zero_bubble = priced(of, *rows).time_bubble_s
    device = operator_model(of.hw)
    shapes = [(10 * 128, 8192), (8192, 1024), (2 * 3584, 8192), (8192, 3584)]  # (out, in) of a rank at tp 8, 8,192 tokens
    weights = sum(float(device.gemm(n, k, 8192, accumulate=True)) for n, k in shapes)
    weights /= of.hw.efficiency.sustained * of.software.kernels.matmul_efficiency
    assert plain - zero_bubble == pytest.approx(2 * 3 * 20 * weights)


def test_a_host_that_runs_ahead_shows_where_it_is_longer_one_that_waits_always() -> None:
    """Host and device of equal time make 2^(1/3) of it at a norm of 3; a host of no time makes none."""
    plain = UNHINDERED | {"software__host_step": 0.0}
    row = {"num_gpus": 8, "tp": 8}
    device = float(priced(scenario(**plain), row).step_time_s[0]) - float(priced(scenario(**plain), row).time_optimizer_s[0])
    slots = 256 * 32
    equal = plain | {"software__host_layer": device / slots}
    for norm, ratio in ((None, 1.0), (3, 2 ** (1 / 3)), (1, 2.0)):
        found = priced(scenario(**equal, software__launch_norm=norm), row)
        assert float(found.time_host_s[0]) == pytest.approx((ratio - 1) * device, abs=1e-3 * device)
    assert float(priced(scenario(**plain, software__launch_norm=3), row).time_host_s[0]) == 0
