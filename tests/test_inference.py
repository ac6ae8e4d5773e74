"""Inference: what a step costs by hand and as measured, what requests are promised, and the laws that serving keeps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving_trials import cut, engines, priced, scenario

import rapid_dse as rd
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import operator_model
from rapid_dse.interconnect import transfer
from rapid_dse.model.shapes import MatMul, MicroBatch
from rapid_dse.parallel.engines import resolved
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.inference import pass_parts, serving
from rapid_dse.simulate.inference.crowds import closed_crowd, open_crowd
from rapid_dse.simulate.inference.engine_memory import weight_bytes
from rapid_dse.simulate.inference.passes import EnginePass, PassWork, decode_work, prefill_work, timed
from rapid_dse.simulate.inference.pools import handed_over
from rapid_dse.simulate.inference.products import (
    Product,
    attention_products,
    busiest_rank,
    dense_products,
    expert_products,
    touched_experts,
)
from rapid_dse.simulate.inference.prompts import Prompts
from rapid_dse.simulate.inference.request_lives import accepted
from rapid_dse.simulate.inference.served_kernels import decode_attention, prefill_attention, price_products
from rapid_dse.simulate.inference.widths import cache_bytes_per_token
from rapid_dse.simulate.operator_times import operators
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, unlawful
from rapid_dse.sweep import advice
from rapid_dse.sweep.standing import Aim

ONE = cut()
LATENT = {
    "model.kv_lora_rank": 512, "model.q_lora_rank": 1536, "model.qk_nope_head_dim": 128, "model.qk_rope_head_dim": 64,
    "model.v_head_dim": 128, "model.num_hidden_layers": 61, "model.num_attention_heads": 128, "model.num_key_value_heads": 128,
    "model.hidden_size": 7168, "model.head_dim": 128,
}  # fmt: skip


def run(of: Scenario, work: PassWork) -> EnginePass:
    """A pass with the framework's latencies."""
    return timed(work, of.software.serving)


def dotted(values: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in values.items()}


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ("llama3_1_70b", {}, 80 * 2 * 8 * 128 * 2),  # 320 KiB
        ("llama3_1_8b", {"workload__kv_precision": "fp8"}, 32 * 2 * 8 * 128),
        ("llama3_1_8b", dotted(LATENT), 61 * (512 + 64) * 2),  # DeepSeek-V3: 70,272 bytes
    ],
)
def test_a_token_leaves_so_many_bytes_in_the_cache(model: str, changes: dict[str, Any], expected: int) -> None:
    assert cache_bytes_per_token(scenario(model=model, **changes)) == expected


def drawn_experts(rng: np.random.Generator, tokens: int) -> NDArray[np.int64]:
    """8 of 128 experts a token, which choose those for which their chance, of beta distribution with the parameters 2 and 30, is above a
    number drawn anew for each token and expert; ``(about 8 tokens,)``."""
    chances = rng.beta(2.0, 30.0, 128)
    return np.nonzero(rng.random((tokens, 128)) < chances)[1]


def test_experts_that_a_batch_touches_are_those_of_a_draw() -> None:
    """128 experts, 8 a token: 8 of one token; of 8 and 64 the mean of draws; all of very many."""
    model, rng = scenario(model="qwen3_30b_a3b").model, np.random.default_rng(0)
    for tokens in (1, 8, 64):
        drawn = [len(np.unique(drawn_experts(rng, tokens))) for _ in range(400)]
        assert touched_experts(model, np.array([float(tokens)]))[0] == pytest.approx(np.mean(drawn), rel=0.02)
    assert touched_experts(model, np.array([1.0]))[0] == pytest.approx(8)
    assert touched_experts(model, np.array([1e6]))[0] == pytest.approx(128)


def test_the_busiest_rank_of_experts_is_that_of_a_draw() -> None:
    model, rng, ep = scenario(model="qwen3_30b_a3b").model, np.random.default_rng(1), 8
    for tokens in (1, 16, 256):
        touched, load = [], []
        for _ in range(200):
            chosen = drawn_experts(rng, tokens)
            load.append(np.bincount(chosen // 16, minlength=ep).max())
            touched.append(max(len(np.unique(chosen[chosen // 16 == rank])) for rank in range(ep)))
        found = busiest_rank(model, np.array([float(tokens)]), np.array([ep]))
        assert found[0][0] == pytest.approx(np.mean(touched), rel=0.1)
        assert found[1][0] == pytest.approx(np.mean(load), rel=0.15)


def test_the_busiest_rank_computes_and_permutes_as_many_rows_as_it_is_said_to_have() -> None:
    """Of 8 ranks, with 4,096 tokens of 8 experts each: 4,096 rows on average; of one rank that holds all experts the mean."""
    even, uneven, usual = (scenario("h200", "qwen3_30b_a3b", workload__expert_imbalance=given) for given in (1.0, 2.0, None))
    spread, tokens = cut(num_gpus=8, tp=8, ep=8), np.array([4096.0])
    found = [busiest_rank(of.model, tokens, spread.ep, of.workload.expert_imbalance)[1][0] for of in (even, usual, uneven)]
    assert found[0] == 4096
    assert found[2] == 8192
    assert found[0] < found[1] < found[2]
    works = [decode_work(of, spread, tokens, operator_model(of.hw)) for of in (even, usual, uneven)]
    for less, more in pairwise(works):
        assert less.products[0] < more.products[0]
        assert less.moving[0] < more.moving[0]
    alone = [decode_work(of, cut(num_gpus=8, tp=8, ep=1, etp=8), tokens, operator_model(of.hw)) for of in (even, uneven)]
    assert alone[0].products[0] == alone[1].products[0]
    assert alone[0].moving[0] == alone[1].moving[0]


def test_prefill_is_the_forward_pass_of_training() -> None:
    """The same shapes on the same chip have one price, attention included."""
    of = scenario(software="pytorch", workload__prompt_len=2048)
    device, ones = operator_model(of.hw), np.ones(1, np.int64)
    shape = MicroBatch(ones, ones, ones, ones, 4 * ones, np.zeros(1, bool), 2048)
    (trained,) = operators(of, shape, device).layers
    rows = np.array([4.0 * 2048])
    products = [*attention_products(of.model, ONE, rows, absorbed=False), *dense_products(of.model, ONE, rows)]
    own = price_products(of, products, device, decoding=False)
    assert own.seconds[0] == pytest.approx(trained.matmul_seconds[0].sum())
    attention = prefill_attention(of, ONE, np.array([4.0]), 2048, 2048, device)
    assert attention.seconds[0] == pytest.approx(trained.attention_forward[0])
    assert own.flops[0] + attention.flops[0] == pytest.approx(trained.flops[0], rel=1e-3)


# Seconds of steps of Llama 8B on one H200 (PyTorch 2.11, FlashAttention-2, fused small kernels): sequences, tokens of context or prompt.
DECODED = [
    (1, 512, 4.743e-3), (1, 2048, 4.865e-3), (1, 8192, 5.166e-3), (8, 512, 4.923e-3), (8, 2048, 5.294e-3), (8, 8192, 6.768e-3),
    (64, 512, 6.687e-3), (64, 2048, 11.85e-3), (64, 8192, 33.06e-3), (256, 512, 15.45e-3), (256, 2048, 36.68e-3), (256, 8192, 121.6e-3),
]  # fmt: skip
PREFILLED = [
    (1, 512, 13.57e-3), (1, 1024, 26.05e-3), (1, 2048, 53.05e-3), (1, 4096, 107.96e-3), (1, 8192, 241.8e-3), (4, 512, 48.35e-3),
    (4, 1024, 99.05e-3), (4, 2048, 200.1e-3), (4, 8192, 961.6e-3),
]  # fmt: skip
FUSED = {
    "software": "pytorch",
    "software__decode_attention": "shared",
    "software__layer_latency": 6e-6,
    "software__prefill_efficiency": 1.0,
}


@pytest.mark.parametrize(("batch", "context", "seconds"), DECODED)
def test_a_decode_step_takes_what_was_measured(batch: int, context: int, seconds: float) -> None:
    """Weights of layers and head are read once, 128 KiB of cache for each token of context; FlashAttention-2 pads the four query heads that
    share keys to 128 rows where it does not split the keys."""
    of = scenario("h200", workload__prompt_len=context - 1, workload__decode_len=1, **FUSED)
    step = run(of, decode_work(of, ONE, np.array([float(batch)]), operator_model(of.hw)))
    assert step.total[0] == pytest.approx(seconds, rel=0.08)


@pytest.mark.parametrize(("batch", "length", "seconds"), PREFILLED)
def test_prefill_takes_what_was_measured(batch: int, length: int, seconds: float) -> None:
    of = scenario("h200", **FUSED)
    found = run(of, prefill_work(of, ONE, np.array([float(batch)]), Prompts(length, length), operator_model(of.hw)))
    assert found.total[0] == pytest.approx(seconds, rel=0.08)


def test_a_decode_step_by_hand() -> None:
    """At batch 1 it is the weights that are read: Llama 8B in bf16, all but the look-up table, at the bandwidth that the chip sustains."""
    of = scenario(software__layer_latency=0.0, workload__prompt_len=1, workload__decode_len=1)
    weights = 2 * (32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336) + 128256 * 4096)
    step = run(of, decode_work(of, ONE, np.ones(1), operator_model(of.hw)))
    launches = 32 * 4 + 1
    expected = weights / (of.hw.memory.bandwidth * of.hw.efficiency.memory) + launches * of.hw.kernel_latency
    assert step.products[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("drafts", "acceptance", "expected"), [(0, 0.0, 1.0), (3, 1.0, 4.0), (1, 0.8, 1.8), (2, 0.5, 1.75), (3, 0.0, 1.0)])
def test_drafts_that_are_accepted(drafts: int, acceptance: float, expected: float) -> None:
    assert accepted(drafts, acceptance) == pytest.approx(expected)


LOADS = st.one_of(
    st.builds(lambda n: {"concurrency": n}, st.integers(1, 4096)),
    st.builds(lambda n, k: {"concurrency": n, "num_prompts": k * n}, st.integers(1, 512), st.integers(1, 20)),
    st.builds(lambda n: {"batch_size": n}, st.integers(1, 512)),
    st.builds(lambda r, n: {"request_rate": r, "num_prompts": n}, st.floats(0.01, 1e3), st.integers(1, 10000)),
    st.builds(lambda n: {"num_prompts": n}, st.integers(0, 10000)),
)


@settings(max_examples=60, deadline=None)
@given(
    LOADS,
    st.sampled_from([{}, {"tp": 2}, {"tp": 8}, {"tp": 2, "pp": 4}, {"tp": 4, "pp": 2, "num_gpus": 16}]),
    st.sampled_from(["vllm", "sglang", "tensorrt_llm"]),
    st.sampled_from(["bf16", "fp8", "int4"]),
    st.sampled_from([1, 2, 777]),
)
def test_every_row_holds_what_results_must(
    load: dict[str, float], layout: dict[str, int], software: str, precision: str, generated: int
) -> None:
    of = scenario(software=software, workload__precision=precision, workload__decode_len=generated, workload__length_spread=0.1)
    found = priced(of, {**layout, **load})
    assert unlawful(found) == []
    row = {name: float(column[0]) for name, column in vars(found).items()}
    assert np.isnan(row["tpot_s"]) == (generated == 1)
    assert row["step_time_s"] > 0
    if generated > 1:
        assert sum(row[f"time_{term}_s"] for term in (*TIME_TERMS, "prefill")) == pytest.approx(row["tpot_s"], rel=1e-9)
        assert row["request_latency_s"] == pytest.approx(row["ttft_s"] + (generated - 1) * row["tpot_s"], rel=1e-9)
    assert sum(row[f"memory_{term}_bytes"] for term in MEMORY_TERMS) == pytest.approx(row["peak_memory_bytes"])
    assert row["tokens_per_s"] == pytest.approx(row["requests_per_s"] * generated)


@pytest.mark.parametrize("software", ["vllm", "sglang", "tensorrt_llm"])
@pytest.mark.parametrize("layout", [{"tp": 1}, {"tp": 8}, {"tp": 2, "pp": 2}])
def test_more_requests_under_way_take_longer_each_and_are_served_no_slower(software: str, layout: dict[str, int]) -> None:
    loads = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    found = priced(scenario(software=software), *({**layout, "concurrency": load} for load in loads))
    assert (np.diff(found.tpot_s) > -1e-9).all()
    assert (np.diff(found.ttft_s) > -1e-9).all()
    assert (np.diff(found.tokens_per_s) > 0).all()


@pytest.mark.parametrize("faster", [{"hw__memory__bandwidth": 6e12}, {"hw__clock": 3e9}, {"hw__network__dimensions__0__bandwidth": 2e12}])
def test_a_faster_machine_is_never_slower(faster: dict[str, float]) -> None:
    rows = [{"tp": tp, "concurrency": load} for tp in (1, 2, 8) for load in (1, 16, 128)]
    slow, fast = priced(scenario(), *rows), priced(scenario(**faster), *rows)
    for name in ("ttft_s", "tpot_s", "request_latency_s"):
        assert (getattr(fast, name) <= getattr(slow, name) * (1 + 1e-9)).all(), name


@pytest.mark.parametrize("software", ["vllm", "sglang", "tensorrt_llm"])
def test_slower_steps_never_serve_more_nor_sooner(software: str) -> None:
    """Below and beyond what prompts leave of an engine, with lengths alike and apart, at a rate, in a loop and all at once."""
    rows: list[dict[str, float]] = [{"concurrency": n} for n in (1, 3, 16, 64, 256)]
    rows += [{"num_prompts": n, **rate} for n in (20, 500) for rate in ({}, {"request_rate": 2.0}, {"request_rate": 32.0})]
    for prompt, generated, spread in ((128, 16, 0.0), (4096, 16, 0.1), (1024, 512, 0.0)):
        work = {"workload__prompt_len": prompt, "workload__decode_len": generated, "workload__length_spread": spread}
        fast, slow = (priced(scenario(software=software, **work, software__layer_latency=each), *rows) for each in (2e-5, 4e-5))
        assert (slow.tokens_per_s <= fast.tokens_per_s * 1.002).all()  # between batches that are priced it is straight lines
        assert (slow.request_latency_s >= fast.request_latency_s * 0.998).all()
        assert (slow.tpot_s >= fast.tpot_s * 0.998).all()


def test_a_run_has_no_more_under_way_than_it_sends_and_lasts_until_its_last_request_ends() -> None:
    few, many = (priced(scenario(), {"num_prompts": n}) for n in (20, 10**5))
    assert few.running_requests[0] == 20 < many.running_requests[0]
    assert few.requests_per_s[0] == pytest.approx(20 / few.request_latency_s[0], rel=0.01)  # all of one length end together
    apart = priced(scenario(), {"num_prompts": 20, "request_rate": 0.1})
    assert apart.requests_per_s[0] == pytest.approx(20 / (20 / 0.1 + apart.request_latency_s[0]), rel=1e-3)


@pytest.mark.parametrize(("under_way", "rounds"), [(8, 1), (8, 3), (5, 20)])
def test_prompts_that_a_closed_loops_requests_wait_for_are_those_that_are_counted(under_way: int, rounds: int) -> None:
    """Request by request: the first fill the places, each further one takes that of the oldest; a prompt holds up all that decode."""
    decoding, waits = list[int](), np.zeros(under_way * rounds)
    for new in range(under_way * rounds):
        if len(decoding) == under_way:
            decoding.pop(0)
        waits[decoding] += 1
        decoding.append(new)
    crowd = closed_crowd(np.array([float(under_way)]), np.array([float(rounds)]))
    assert crowd.others[0] == pytest.approx(waits.mean(), abs=0.5)


@pytest.mark.parametrize("life", [2.0, 10.0, 30.0])
def test_the_crowd_of_an_open_loops_run_is_that_of_its_requests_drawn(life: float) -> None:
    """100 requests at 10 a second that all live as long: how many are there beside one, and when a prompt comes."""
    begin = np.arange(100) / 10.0
    beside = np.clip(life - np.abs(begin[:, None] - begin[None, :]), 0.0, None).sum(1).mean() / life
    here = ((begin[:, None] >= begin[None, :]) & (begin[:, None] < begin[None, :] + life)).sum(1).mean()
    crowd = open_crowd(*(np.array([value]) for value in (10.0, 100.0, life, 1e9)))
    assert crowd.running[0] == pytest.approx(beside, rel=0.02)
    assert crowd.others[0] == pytest.approx(here, rel=0.06)


def test_mfu_counts_the_head_once_a_token_that_is_generated() -> None:
    # Llama 3.1 8B with one layer: 1,002 tokens go through it and see half as many keys each in the mean, three through the head
    of = scenario(workload__prompt_len=1000, workload__decode_len=3, model__num_hidden_layers=1)
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    flops = 1002 * (2 * layer + 4 * 501 * 4096) + 3 * 2 * 4096 * 128256
    result = priced(of, {})
    assert result.mfu[0] == pytest.approx(result.requests_per_s[0] * flops / of.hw.peak_flops("bf16"), rel=1e-3)


def test_the_first_token_comes_later_the_longer_the_prompt() -> None:
    lengths, hits = (16, 128, 1024, 3000, 5000, 8192, 65536), (0, 0.5, 0.9)
    found = [priced(scenario(workload__prompt_len=length), {"concurrency": 8}).ttft_s[0] for length in lengths]
    assert (np.diff(found) > 0).all()
    cached = [priced(scenario(workload__prompt_len=8192, workload__prefix_hit=hit), {"concurrency": 1}).ttft_s[0] for hit in hits]
    assert (np.diff(cached) < 0).all()


def test_replicas_share_the_load() -> None:
    """Two engines that serve 64 requests are two times one that serves 32."""
    one, two = priced(scenario(), {"tp": 2, "concurrency": 32}), priced(scenario(), {"tp": 2, "num_gpus": 4, "concurrency": 64})
    assert two.tpot_s[0] == pytest.approx(one.tpot_s[0])
    assert two.requests_per_s[0] == pytest.approx(2 * one.requests_per_s[0])
    assert two.energy_j[0] == pytest.approx(one.energy_j[0])


def test_no_more_replicas_work_than_there_are_requests() -> None:
    one, eight = priced(scenario(), {"concurrency": 1}, {"concurrency": 1, "num_gpus": 8}).requests_per_s
    assert one == pytest.approx(eight)


@pytest.mark.parametrize("pools", [{}, {"num_gpus": 2, "prefill_workers": 1, "decode_workers": 1}])
def test_no_more_are_under_way_than_are_sent(pools: dict[str, float]) -> None:
    """Of a closed loop of eight that sends two in all none waits for its turn; of four engines two have nothing to do."""
    found = priced(scenario(), *({**pools, "num_prompts": 2, **load} for load in ({"concurrency": 2}, {"concurrency": 8})))
    assert found.ttft_s[1] == found.ttft_s[0] < 0.2
    for load in ({}, {"concurrency": 4}):
        apart = priced(scenario(), {**pools, "num_prompts": 2, "num_gpus": 4 * pools.get("num_gpus", 1), "dp": 4, **load})
        assert apart.running_requests[0] == pytest.approx(2, rel=0.02)
        assert apart.requests_per_s[0] == pytest.approx(2 / apart.request_latency_s[0], rel=2e-3)  # the last decodes beside fewer


def test_requests_that_decode_nothing_are_those_of_which_prompts_are_under_way() -> None:
    found = priced(scenario(workload__decode_len=1), {"num_gpus": 2, "prefill_workers": 1, "decode_workers": 1, "concurrency": 4})
    assert found.running_requests[0] == pytest.approx(4, rel=0.02)


def test_two_pools_do_what_their_engines_do() -> None:
    """A pool that has nothing but prompts and one that has nothing but tokens: the slower of the two sets the rate, and a token never waits
    for a prompt."""
    lengths = {"workload__prompt_len": 2048, "workload__decode_len": 512}
    of, prompts_alone = scenario(**lengths), scenario(**lengths | {"workload__decode_len": 1})
    pools = {"num_gpus": 4, "prefill_tp": 1, "decode_tp": 1, "prefill_workers": 2, "decode_workers": 2}
    apart, together = priced(of, {**pools, "concurrency": 16}), priced(of, {"num_gpus": 4, "concurrency": 16})
    assert unlawful(apart) == []
    assert apart.time_prefill_s[0] == 0 < together.time_prefill_s[0]
    decoding = round(float(apart.running_requests[0]) / 2)  # a decode engine has half of what decodes
    batch = priced(of, {"batch_size": decoding})
    assert apart.tpot_s[0] == pytest.approx(batch.tpot_s[0], rel=0.02)
    full = priced(of, {**pools, "decode_workers": 8, "num_gpus": 10})
    assert full.requests_per_s[0] == pytest.approx(2 * priced(prompts_alone, {}).requests_per_s[0], rel=0.05)


def test_sums_are_nccls_where_a_framework_has_no_kernel_of_its_own_for_the_chip() -> None:
    """NCCL's all-reduce of a token's 8 KiB over 8 A100 takes 31 us as measured, one that reads its peers at once a few."""
    own, nccl = scenario("a100", software__fused_all_reduce=None), scenario("a100", software__fused_all_reduce=["hopper"])
    fast, slow = (priced(of, {"tp": 8, "num_gpus": 8, "batch_size": 1}).time_tp_s[0] for of in (own, nccl))
    assert (slow - fast) / (32 * 2) == pytest.approx(30e-6, rel=0.15)


def test_a_sum_in_one_shot_sends_each_rank_all_of_it_and_a_larger_one_takes_no_less() -> None:
    """64 sequences of 8,192 numbers on 8 H200: seven peers' MiB at 380 GB/s of NVLink, which two shots take in a quarter of the time."""
    rows = [{"tp": 8, "num_gpus": 8, "batch_size": size} for size in (64, 128, 129)]
    fastest, few = (priced(scenario("h200", "llama3_1_70b", software__one_shot_tokens=n), *rows).time_tp_s for n in (0, 128))
    latency, link, hop = scenario("h200").software.serving.collective_latency, 450e9 * 0.845, 1.4e-6
    gathered = 2 * 64 * 128256 * 7 / 8 / link  # logits of all, at least
    assert (few[0] - gathered) / 161 == pytest.approx(7 * 64 * 8192 * 2 / link + hop + latency, rel=0.05)
    assert (few[0] - fastest[0]) / 161 == pytest.approx((7 - 7 / 4) * 64 * 8192 * 2 / link - hop, rel=0.05)
    assert few[2] >= few[1] > 1.8 * few[0] - latency * 161


def test_a_scripts_loop_waits_at_each_step_of_a_static_batch_and_a_server_does_not() -> None:
    rows = [{"batch_size": 4}, {"concurrency": 4}]
    without, waiting = priced(scenario(), *rows), priced(scenario(software__script_latency=1e-3), *rows)
    assert waiting.tpot_s - without.tpot_s == pytest.approx([1e-3, 0.0])


def test_a_loop_that_does_not_say_how_many_it_sends_sends_ten_for_each_under_way() -> None:
    found = priced(scenario(), {"concurrency": 32}, {"concurrency": 32, "num_prompts": 320}, {"concurrency": 32, "num_prompts": 10**7})
    assert found.ttft_s[0] == pytest.approx(found.ttft_s[1])
    alone = priced(scenario(workload__decode_len=1, software__admission_latency=0.0), {"concurrency": 1, "num_prompts": 10**7}).ttft_s[0]
    assert found.ttft_s[0] - found.ttft_s[2] == pytest.approx(31 / 2 / 10 * alone, rel=0.3)  # half of the others, a tenth of the run


def test_prompts_of_experts_take_as_long_as_their_launches() -> None:
    """94 layers of experts in 1.5 ms each; as much again where attention is latent."""
    of = scenario(model="qwen3_235b_a22b", workload__prompt_len=16, software__admission_latency=0.0, software__expert_launch=1.5e-3)
    found = priced(of, {"tp": 8, "ep": 8, "num_gpus": 8, "concurrency": 1})
    assert found.ttft_s[0] == pytest.approx(94 * 1.5e-3, rel=0.01)


def test_experts_have_a_row_for_every_copy_of_every_token_that_reaches_them() -> None:
    """Eight ranks of attention put 8,192 tokens each together, of which each has eight copies: DeepSeek-V3's in fp8, 16.6 GB."""
    of = scenario("h200", "deepseek_v3", "tensorrt_llm", workload__precision="fp8")
    rows = 8192 * 8 * 8
    kept = 8192 * 2 * (2 * 7168 + 3 * 18432 // 8 * 8)  # of the dense layers, as before
    found = priced(of, {"num_gpus": 8, "tp": 1, "attention_dp": 8, "ep": 8, "concurrency": 8})
    assert found.memory_activations_bytes[0] == pytest.approx(rows * (3 * 7168 + 5 * 2048) + kept, rel=1e-6)
    assert rows * (3 * 7168 + 5 * 2048) == pytest.approx(16.6e9, rel=0.01)


def test_a_prompt_on_one_of_eight_ranks_keeps_all_of_them_waiting() -> None:
    """Its attention takes as long as eight prompts', one a rank; its experts have an eighth of the tokens."""
    of, engine = scenario("h200", "deepseek_v3", workload__precision="fp8"), cut(num_gpus=8, attention_dp=8, ep=8)
    alone, full = (prefill_work(of, engine, np.array([each]), Prompts(4096, 4096), operator_model(of.hw)) for each in (1 / 8, 1.0))
    assert alone.attention[0] == full.attention[0]
    tokens = expert_products(of.model, engine, np.array([4096.0]), 1 / 8), expert_products(of.model, engine, np.array([512.0]))
    routed = [[product.matmul.m[0] for product in products if product.matmul.routed] for products in tokens]
    assert routed[0] == routed[1]
    assert full.products[0] / 8 < alone.products[0] < full.products[0]
    assert full.joules[0] / 8 < alone.joules[0] < full.joules[0] / 2
    shortest = prefill_work(of, engine, np.array([1 / 8]), Prompts(1, 1), operator_model(of.hw))
    assert shortest.products[0] > 0


@pytest.mark.parametrize(("chosen", "ep", "gathered"), [(8, 8, True), (8, 16, False), (4, 8, False), (16, 16, True)])
def test_tokens_are_gathered_where_experts_lie_on_no_more_ranks_than_a_token_has(chosen: int, ep: int, gathered: bool) -> None:
    """Of 16 GPUs of one domain: gathered 64 tokens of each rank go round a ring, and back; else each token's copies to their experts."""
    of = scenario("gb200", "deepseek_v3", model__num_experts_per_tok=chosen)
    engine, network = cut(num_gpus=16, attention_dp=16, ep=ep, etp=16 // ep), effective_network(of)
    work = decode_work(of, engine, np.array([64.0]), operator_model(of.hw))
    span, hidden, layers = Span((np.array([16.0]), np.ones(1)), (np.ones(1), np.ones(1))), 2.0 * 7168, 58
    gather = transfer.all_gather(16 * 64 * hidden, span, network).seconds[0]
    routed = transfer.all_to_all(np.array([chosen * 64 * hidden]), span, network).seconds[0]
    assert routed < gather
    assert work.ep[0] == pytest.approx(2 * layers * (gather if gathered else routed), rel=1e-6)


def test_prompts_that_wait_for_each_other_come_later_and_keep_decoding_waiting_less() -> None:
    """Of 64 requests of 900 tokens one comes in 14 steps: those of 60 steps share a pass, of which all ranks wait as long as for one."""
    load = {"num_gpus": 8, "tp": 1, "attention_dp": 8, "ep": 8, "concurrency": 64}
    common = {"workload__precision": "fp8", "workload__prompt_len": 7000, "workload__decode_len": 900}
    at_once, held = (priced(scenario("h200", "deepseek_v3", software__attention_dp_wait=wait, **common), load) for wait in (0, 60))
    assert held.time_prefill_s[0] < 0.6 * at_once.time_prefill_s[0]
    assert held.ttft_s[0] > held.tpot_s[0] * 25


def test_a_cache_that_crosses_the_network_takes_its_bytes() -> None:
    """128 KiB for each token of the prompt, over one port of 400 Gb/s at nine tenths."""
    of = scenario(workload__prompt_len=4096)
    seconds = handed_over(of, ONE, ONE)[0]
    assert seconds == pytest.approx(4096 * 128 * 1024 / (50e9 * 0.9), rel=0.05)


def test_an_open_loop_obeys_littles_law_and_saturates_at_what_all_at_once_gives() -> None:
    most = priced(scenario(), {"tp": 1}).requests_per_s[0]
    rates = most * np.array([0.1, 0.5, 0.9])
    found = priced(scenario(), *({"request_rate": rate} for rate in rates))
    assert found.requests_per_s == pytest.approx(rates)
    assert found.running_requests == pytest.approx(rates * (found.ttft_s + (1024 - 1) * found.tpot_s), rel=0.02)
    assert (np.diff(found.ttft_s) > 0).all()
    beyond = priced(scenario(), {"request_rate": 2 * most, "num_prompts": 10**5})  # so many that the run's ends are nothing
    assert beyond.requests_per_s[0] == pytest.approx(most, rel=0.1)  # requests that arrive apart share no passes of prompts
    assert beyond.ttft_s[0] > 0.4 * 10**5 / 2 * (1 / most - 1 / (2 * most))


def test_an_empty_engine_serves_one_request_as_a_static_batch_of_one() -> None:
    found = priced(scenario(software__admission_latency=0.0), {"concurrency": 1}, {"batch_size": 1})
    for name in ("ttft_s", "tpot_s", "request_latency_s", "requests_per_s"):
        column = getattr(found, name)
        assert column[0] == pytest.approx(column[1], rel=0.02)


def test_requests_beyond_the_cache_wait_for_their_turn() -> None:
    """The cache holds so many; twice as many under way are served at the same rate, and each waits for a life of those that run."""
    of = scenario(workload__prompt_len=8192, workload__decode_len=8192)
    capacity = int(priced(of, {"tp": 1}).running_requests[0])
    run = {"num_prompts": 10**6}  # so long that its opening burst is nothing
    full, queued = priced(of, {"concurrency": capacity, **run}), priced(of, {"concurrency": 2 * capacity, **run})
    assert queued.running_requests[0] == capacity
    assert queued.requests_per_s[0] == pytest.approx(full.requests_per_s[0], rel=1e-4)
    assert queued.ttft_s[0] - full.ttft_s[0] == pytest.approx(full.request_latency_s[0], rel=0.02)
    assert queued.fits[0]


def test_a_static_batch_that_does_not_fit_says_so() -> None:
    of = scenario(workload__prompt_len=8192, workload__decode_len=8192)
    found = priced(of, {"batch_size": 1}, {"batch_size": 4096})
    assert found.fits.tolist() == [True, False]


@pytest.mark.parametrize("ranks", [1, 2])
def test_of_a_static_batch_that_does_not_fit_the_largest_that_does_is_named(ranks: int) -> None:
    of = scenario(workload__prompt_len=8192, workload__decode_len=1024)
    found, _ = advice.changes(of, engines({"batch_size": 200, "attention_dp": ranks, "num_gpus": ranks}), Aim("step_time_s", 1))
    (named,) = [int(change.text.split("=")[1]) for change in found if change.text.startswith("workload.batch_size=")]
    fits = priced(of, *({"batch_size": each, "attention_dp": ranks, "num_gpus": ranks} for each in range(1, 200))).fits
    assert named == 1 + np.flatnonzero(fits)[-1] < 200


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tp": 8, "num_gpus": 8}, {"parallel.tp=16 hw.num_gpus=16", "parallel.pp=2 hw.num_gpus=16"}),
        (
            {"num_gpus": 32, "prefill_workers": 2, "prefill_tp": 8, "decode_workers": 1, "decode_tp": 16},
            {"parallel.prefill.tp=16 hw.num_gpus=48", "parallel.prefill.pp=2 hw.num_gpus=48"},
        ),
    ],
)
def test_what_makes_weights_fit_is_a_larger_engine_on_more_gpus(row: dict[str, float], said: set[str]) -> None:
    """810 GB of Llama 3.1 405B in bf16 are 101 GB on each of eight GPUs, 51 on each of sixteen."""
    of = scenario(model="llama3_1_405b")
    assert not priced(of, {**row, "concurrency": 8}).fits[0]
    found, _ = advice.changes(of, engines({**row, "concurrency": 8}), Aim("step_time_s", 1))
    assert {change.text for change in found} == said


def test_a_chip_without_bf16_serves_latent_attention_in_fp16() -> None:
    served = priced(scenario("v100", "moonlight_16b_a3b", workload__precision="fp16"), {"tp": 8, "concurrency": 2})
    assert unlawful(served) == []
    with pytest.raises(ValueError, match="h200 has no such mode"):  # weights of 4 bits alone are the decoding models'
        scenario("h200", "vit_large", workload__precision="fp4")


RULES: list[tuple[dict[str, Any], str]] = [
    ({"tp": 3}, "tp must divide num_attention_heads"),
    ({"tp": 2, "num_gpus": 3}, "must equal hw.num_gpus"),
    ({"ep": 2}, "ep must divide num_experts"),
    ({"pp": 64}, "pp must not exceed num_hidden_layers"),
    ({"batch_size": 4, "concurrency": 4}, "not several"),
    ({"batch_size": 4, "num_prompts": 4}, "a static batch is sent once"),
    ({"tp": 2, "etp": 1}, "etp of a dense model"),
]


@pytest.mark.parametrize(("row", "text"), RULES)
def test_what_breaks_a_rule(row: dict[str, Any], text: str) -> None:
    rule, texts = broken_rules(engines(row), scenario())
    assert text in texts[rule[0]]


def test_experts_must_fit_the_engine() -> None:
    of = scenario(model="qwen3_30b_a3b")
    rows = [{"tp": 4, "ep": 4}, {"tp": 2, "attention_dp": 2, "num_gpus": 4, "ep": 4}, {"tp": 2, "ep": 4}, {"tp": 4, "ep": 2, "etp": 4}]
    rule, texts = broken_rules(engines(*rows), of)
    assert rule[:2].tolist() == [-1, -1]
    assert ["ep does not fit the engine" in texts[each] for each in rule[2:]] == [True, True]
    assert resolved(engines(rows[0])).etp.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"workload__draft_tokens": 2}, "needs draft_acceptance"),
        ({"workload__draft_acceptance": 0.5}, "needs draft_tokens"),
        (
            {"workload__prompt_len": 130000, "workload__decode_len": 2000},
            "up to model.max_position_embeddings=131072 together",
        ),
        (
            {"workload__prompt_len": 2000, "workload__decode_len": 100, "model__max_position_embeddings": 2048},
            "max_position_embeddings=2048",
        ),
        (
            {"workload__prompt_len": 100000, "workload__decode_len": 20000, "workload__length_spread": 0.5},
            "with workload.length_spread=0.5 up to 180000 tokens; allowed: up to model.max_position_embeddings=131072",
        ),
        ({"workload__decode_len": 0}, "too small"),
        ({"workload__seq_len": 4096}, "workload.seq_len=4096 has no effect with workload.kind=inference"),
        ({"parallel__zero": 3}, "parallel.zero=3 has no effect"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        scenario(**changes)


@pytest.mark.parametrize(("model", "experts"), [("llama3_1_8b", False), ("mixtral_8x7b", True)])
def test_a_report_names_the_experts_grid_of_models_that_have_one(tmp_path: Path, model: str, experts: bool) -> None:
    load = ("workload=inference", "workload.concurrency=8", "hw.num_gpus=4", "parallel.tp=4")
    layout = program.done(tmp_path, "hw=h100", f"model={model}", *load).out.split("\n\n")[0]
    assert "tp=4" in layout
    assert (" ep=1" in layout, " etp=4" in layout) == (experts, experts)


def test_a_full_pipeline_goes_as_its_slowest_stage() -> None:
    """The last stage has the head beside its half of the layers: a model of half as many layers, of which each token passes two."""
    lengths = {"workload__prompt_len": 512, "workload__decode_len": 512, "software__step_latency": 0.0, "software__sequence_latency": 0.0}
    whole, half = scenario(**lengths), scenario(**lengths, model__num_hidden_layers=16)
    full = priced(whole, {"pp": 2, "batch_size": 64})
    stage = priced(half, {"batch_size": 32})
    assert full.tpot_s[0] == pytest.approx(2 * stage.tpot_s[0], rel=0.005)
    assert 0 < full.time_bubble_s[0] < 0.1 * full.tpot_s[0]
    alone = priced(whole, {"pp": 2, "batch_size": 1})
    assert alone.time_bubble_s[0] == 0


def test_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    """Four chunks over four stages: seven of the times in which a chunk passes a stage, in place of sixteen."""
    of = scenario(workload__prompt_len=8192, workload__decode_len=1, software__max_batched_tokens=2048, software__admission_latency=0.0)
    one, four = (priced(of, {"pp": pp, "batch_size": 1}).ttft_s[0] for pp in (1, 4))
    assert four / one == pytest.approx(7 / 16, rel=0.03)


@pytest.mark.parametrize("prompt", [2049, 2560, 4096, 5000, 7900, 8193])
def test_a_prompt_fills_each_chunk_before_it_starts_another(prompt: int) -> None:
    """Against the chunks' way through four stages one by one, of which each takes a quarter of what the chunk takes on one GPU."""

    def first_token(tokens: int, pp: int) -> float:
        lengths = {"workload__prompt_len": tokens, "workload__decode_len": 1, "software__max_batched_tokens": 2048}
        return float(priced(scenario(**lengths, software__admission_latency=0.0), {"pp": pp, "batch_size": 1}).ttft_s[0])

    full = prompt // 2048
    filled, all_chunks = first_token(2048 * full, 1), first_token(prompt, 1)
    ends = [0.0] * 4  # when each stage has ended what it has had so far
    for seconds in [filled / full] * full + [all_chunks - filled]:
        arrived = 0.0
        for stage in range(4):
            ends[stage] = arrived = max(arrived, ends[stage]) + seconds / 4
    assert first_token(prompt, 4) == pytest.approx(ends[-1], rel=0.03)  # attention's growth from chunk to chunk is spread evenly


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("load", [{"batch_size": 1}, {"concurrency": 4}])
def test_the_first_token_of_a_longer_prompt_comes_no_sooner(pp: int, load: dict[str, float]) -> None:
    """Also where one more token needs one more chunk, whose layers are launched for it."""
    step = 2048
    lengths = [500, 2000, step - 1, step, step + 1, step + 2, 3000, 2 * step - 1, 2 * step, 2 * step + 1, 6000, 3 * step + 1]
    found = [
        priced(scenario(workload__prompt_len=n, workload__decode_len=16, software__max_batched_tokens=step), {"pp": pp} | load).ttft_s[0]
        for n in lengths
    ]
    assert all(later >= sooner * (1 - 4e-3) for sooner, later in pairwise(found))
    assert found[4] > found[3]
    assert found[9] > found[8]


def test_engines_and_pools_of_a_number_of_gpus_stand_in_one_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 4 GPUs: engines of 1, 2 and 4 GPUs, and 1, 2 or 3 of 4 single GPUs that take prompts, the rest decoding."""
    monkeypatch.chdir(tmp_path)
    keys = {"parallel.tp": [1, 2, 4], "parallel.prefill.workers": [None, 1, 2, 3], "hw.num_gpus": 4, "workload.concurrency": 8}
    rows = rd.sweep(hw="h100", model="llama3_1_8b", workload="inference", **keys).frame()
    rows = rows[rows["status"] == "ok"]
    pools = rows[rows["parallel.prefill.workers"].fillna(0) > 0]
    assert sorted(zip(pools["parallel.prefill.workers"], pools["parallel.decode.workers"], strict=True)) == [(1, 3), (2, 2), (3, 1)]
    assert sorted(rows.drop(pools.index)["parallel.tp"]) == [1, 2, 4]


def test_four_bit_weights_are_read_as_their_kernels_do() -> None:
    """One product of 8,192 by 28,672 on a B200, 16 rows: by hand 132 MB of weights and scales at 0.84 of what HBM streams, and the kernel's
    start. Experts' grouped kernel reads as many bytes at the full rate."""
    of = scenario("b200", workload__precision="fp4")
    rate, rows = of.hw.memory.bandwidth * of.hw.efficiency.memory, np.full(1, 16.0)
    wide, deep = np.full(1, 28672.0), np.full(1, 8192.0)
    alone = Product(MatMul("up", rows, wide, deep), "mlp")
    grouped = Product(MatMul("expert_up", rows, wide / 8, deep, np.full(1, 8.0), routed=True), "experts")
    seconds = [float(price_products(of, [each], operator_model(of.hw), decoding=True).seconds[0]) for each in (alone, grouped)]
    by_hand = 28672 * 8192 * 0.5625 / rate
    assert seconds[0] == pytest.approx(by_hand / 0.84 + of.hw.kernel_latency, rel=0.06)
    assert seconds[1] == pytest.approx(by_hand + of.hw.kernel_latency, rel=0.06)


def test_a_cache_of_32_bits_is_read_in_twice_the_time_of_16() -> None:
    """64 sequences of 8,192 tokens, 8 heads of keys of 128, on an H200: 2.1 GB in 16 bits."""
    found = []
    for cache in ("bf16", "fp32"):
        of = scenario("h200", workload__kv_precision=cache, hw__efficiency__sustained=1.0)
        found.append(decode_attention(of, ONE, np.full(1, 64.0), 8192.0, 1.0, operator_model(of.hw)).seconds[0])
    read = 64 * 8192 * 2 * 8 * 128 * 2 / (of.hw.memory.bandwidth * of.hw.efficiency.memory)
    assert found[1] - found[0] == pytest.approx(read, rel=1e-6)


def test_heat_slows_no_cache_that_is_read() -> None:
    """A decode step's attention on a B200: 64 sequences, 8,192 tokens each, 8 heads of keys of 128 in bf16, 2.1 GB. HBM keeps its pace
    where the clock falls (``sustained``), so that what is left of the fall is the tensor cores' share of the time, a fifth."""
    of = scenario("b200", workload__precision="bf16")
    cooled = scenario("b200", workload__precision="bf16", hw__efficiency__sustained=1.0)
    warm, cool = (decode_attention(each, ONE, np.full(1, 64.0), 8192.0, 1.0, operator_model(each.hw)).seconds[0] for each in (of, cooled))
    assert cool == pytest.approx(64 * 8192 * 2 * 8 * 128 * 2 / (8e12 * 0.755), rel=0.05)
    assert 1.02 < warm / cool < 1.06 < 1 / of.hw.efficiency.sustained


@pytest.mark.parametrize(("precision", "hw"), [("fp4", "b200"), ("fp4", "h100"), ("int4", "h200")])
def test_attention_of_four_bit_experts_has_sixteen_bits(precision: str, hw: str) -> None:
    """GPT-OSS 120B on one GPU by hand: 36 layers of 128 experts of three products of 2,880 by 2,880, a router and attention of 64 and 8
    heads of 64; a table and a head of 201,088 rows, padded to 201,088."""
    of = scenario(hw, model="gpt_oss_120b", workload__precision=precision)
    narrow = 0.5625 if hw == "b200" else 0.516
    attention = 2880 * (64 + 2 * 8) * 64 + 64 * 64 * 2880
    layers = 36 * (128 * 3 * 2880 * 2880 * narrow + 2 * (attention + 128 * 2880))
    assert weight_bytes(of, ONE)[0] == pytest.approx(layers + 2 * 2 * 201088 * 2880, rel=1e-9)


@pytest.mark.parametrize(("rows", "padded"), [(4.0, 12.0), (64.0, 96.0), (512.0, 576.0)])
def test_experts_rows_are_padded_to_tiles(rows: float, padded: float) -> None:
    """An expert has no whole number of tiles of rows: half a tile of 16 to 128 rows, about as many as it has, is multiplied for nothing."""
    of = scenario("h200", model="qwen3_30b_a3b")
    m, n, k, experts = (np.full(1, size) for size in (rows, 1536.0, 2048.0, 128.0))
    cost = price_products(of, [Product(MatMul("up", m, n, k, experts, routed=True), "experts")], operator_model(of.hw), decoding=False)
    assert cost.seconds[0] == operator_model(of.hw).gemm(padded, 1536, 2048, batch=128) / of.hw.efficiency.sustained
    assert cost.flops[0] == 2 * 128 * rows * 1536 * 2048


@pytest.mark.parametrize(("hw", "measured"), [("h100", 2.8e-3), ("h200", 2.5e-3), ("b200", 0.85e-3)])
def test_experts_scaled_in_blocks_take_as_long_as_measured(hw: str, measured: float) -> None:
    """DeepSeek-V3's 32 experts of one rank of 8 with 512 rows each, fp8: TensorRT-LLM took so long with the small kernels around them
    (aiconfigurator-core 0.12, 16,384 tokens, all experts alike), which move 0.6 GB in an eighth of a millisecond or so."""
    of = scenario(hw, model="deepseek_v3", workload__precision="fp8")
    m, experts = np.full(1, 512.0), np.full(1, 32.0)
    products = [MatMul("up", m, np.full(1, 4096.0), np.full(1, 7168.0), experts, routed=True)]
    products.append(MatMul("down", m, np.full(1, 7168.0), np.full(1, 2048.0), experts, routed=True))
    cost = price_products(of, [Product(each, "experts") for each in products], operator_model(of.hw), decoding=False)
    assert 0.7 < cost.seconds[0] * of.hw.efficiency.sustained / measured < 1.0


@pytest.mark.parametrize(
    ("model", "said", "slower"),
    [("qwen3_30b_a3b", None, True), ("mixtral_8x7b", None, False), ("qwen3_30b_a3b", False, False), ("mixtral_8x7b", True, True)],
)
def test_scales_of_tensors_slow_no_experts(model: str, said: bool | None, slower: bool) -> None:
    """Checkpoints of few experts have one scale a tensor: such experts have fp8's rate, those with scales of blocks half of it."""
    seconds = {}
    for precision in ("bf16", "fp8"):
        of = scenario("h200", model=model, workload__precision=precision, model__fp8_block_scales=said)
        m, n, k, experts = (np.full(1, size) for size in (4096.0, 4096.0, 4096.0, 8.0))
        products = [Product(MatMul("up", m, n, k, experts, routed=True), "experts")]
        seconds[precision] = float(price_products(of, products, operator_model(of.hw), decoding=False).seconds[0])
    assert seconds["fp8"] / seconds["bf16"] == pytest.approx(0.92 if slower else 0.53, rel=0.1)


@pytest.mark.parametrize(
    ("hw", "precision", "rate"),
    [("a100", "int4", 138e12), ("h100", "int4", 250e12), ("h200", "int4", 250e12), ("b200", "int4", 268e12), ("h200", "fp4", 380e12)],
)
def test_experts_whose_weights_are_widened_run_as_measured(hw: str, precision: str, rate: float) -> None:
    """Grouped products of 16 bits by 4: vLLM's and SGLang's Marlin (int4) and TensorRT-LLM's (MXFP4) reach so much at 8,192 tokens and more
    (aiconfigurator-core 0.12; medians of the models' layers), on B200 a fifth of what the tensor cores could give."""
    of = scenario(hw, model="qwen3_30b_a3b", workload__precision=precision)
    m, n, k, experts = (np.full(1, size) for size in (1024.0, 4096.0, 7168.0, 64.0))
    product = Product(MatMul("up", m, n, k, experts, routed=True), "experts")
    cost = price_products(of, [product], operator_model(of.hw), decoding=False)
    assert cost.flops[0] / cost.seconds[0] / of.hw.efficiency.sustained == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(("hw", "shorter"), [("b200", 0.5), ("h200", 1.0)])
def test_latents_of_eight_bits_are_multiplied_as_they_are_on_blackwell(hw: str, shorter: float) -> None:
    """256 sequences of 8,192 tokens, 128 heads: products bind, 2 · 128 · (2 · 512 + 64) FLOP a token at 0.6 of the peak."""
    found = []
    for cache in ("bf16", "fp8"):
        of = scenario(hw, model="deepseek_v3", workload__kv_precision=cache)
        cost = decode_attention(of, ONE, np.full(1, 256.0), 8192.0, 1.0, operator_model(of.hw))
        found.append(float(cost.seconds[0]) - 2 * of.hw.kernel_latency)
    assert found[0] == pytest.approx(256 * 8192 * 2 * 128 * (2 * 512 + 64) / (of.hw.peak_flops("bf16") * 0.6), rel=1e-6)
    assert found[1] == pytest.approx(shorter * found[0], rel=1e-6)


def test_rows_that_are_solved_in_blocks_are_served_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static batches, closed and open loops and runs of all at once, in blocks of seven, the last of which has fewer."""
    loads = [{"concurrency": 3.0**power} for power in range(6)] + [{"request_rate": 0.5 * 2.0**power} for power in range(6)]
    loads += [{"batch_size": 2.0**power} for power in range(6)] + [{"num_prompts": 3.0**power} for power in range(1, 6)]
    rows = [{"tp": 2, "pp": 1 + number % 2} | load for number, load in enumerate(loads)]
    together = priced(scenario(), *rows)
    monkeypatch.setattr(serving, "BLOCK", 7)
    for name, column in vars(priced(scenario(), *rows)).items():
        assert np.array_equal(column, getattr(together, name), equal_nan=True), name


def test_parts_of_a_pass_that_are_kept_for_others_are_those_of_their_own() -> None:
    base = scenario(hw="h200", model="mixtral_8x7b", workload__prompt_len=1000, workload__decode_len=200)
    work = {"precision": "fp8", "expert_imbalance": 2.0, "prompt_len": 3000}
    several = [base, *(base.model_copy(update={"workload": base.workload.model_copy(update={name: work[name]})}) for name in work)]
    several += [
        scenario(hw="h200", model="mixtral_8x7b", hw__memory__bandwidth="3 TB/s", workload__prompt_len=1000, workload__decode_len=200)
    ]

    def seconds(of: Scenario) -> list[list[float]]:
        result = priced(of, {"tp": 4, "ep": 4, "concurrency": 16})
        return [result.ttft_s.tolist(), result.tpot_s.tolist(), result.energy_j.tolist()]

    alone = []
    for one in several:
        pass_parts._without_attention.cache_clear()
        alone.append(seconds(one))
    assert [seconds(one) for one in [*several, *several]] == [*alone, *alone]
    assert pass_parts._without_attention.cache_info().hits > 0
    assert len(set(map(repr, alone))) == len(several)


def test_a_request_of_one_token_tells_the_server_from_other_requests_prompts() -> None:
    """Alone it waits for the server that admits it, and among 32 for their prompts besides; no server admits a static batch."""
    of = scenario(workload__prompt_len=1000, workload__decode_len=1)
    alone, among, static = ({"concurrency": 1}, {"concurrency": 32, "num_prompts": 10**7}, {"batch_size": 1})
    found = priced(of, alone, among, static)
    assert found.time_host_s == pytest.approx([of.software.serving.admission_latency] * 2 + [0.0], rel=1e-9, abs=1e-12)
    assert found.time_prefill_s[[0, 2]] == pytest.approx(0.0, abs=1e-9)
    assert found.time_prefill_s[1] > 5 * found.ttft_s[0]
    assert found.time_compute_s[1] + found.time_host_s[1] + found.time_prefill_s[1] == pytest.approx(found.ttft_s[1], rel=1e-9)
