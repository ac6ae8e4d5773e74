"""Laws of serving, on loads and engines drawn at random: faster machines serve no less and no later, more requests get no fewer tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from law_cases import FASTER, SERVING, Trial, trials
from serving_trials import engines, priced, scenario

from rapid_dse.simulate.inference.pricing import prepare
from rapid_dse.simulate.inference.serving import Engine

MOST = settings.default.max_examples // 40
FEWER = settings(max_examples=max(1, MOST), derandomize=MOST <= 1, suppress_health_check=list(HealthCheck), deadline=None)
SOLVED = 1e-3  # how near fixed points and straight lines between batches come
WAVES = 1.5e-2  # kernels' last waves, which are fuller or emptier
RAMPS = 5e-2  # of an open loop: ends of a run of few requests
UNDER_WAY = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512])


@pytest.mark.parametrize("kind", SERVING)
@FEWER
@given(st.data(), st.sampled_from(sorted(FASTER)))
def test_a_faster_machine_serves_no_fewer_requests_and_none_later(kind: str, data: Any, faster: str) -> None:
    """Static batches, closed and open loops, all at once. The time to the first token and that between tokens alone may trade places:
    prompts that are done sooner bring more requests to decode beside each other, and with all at once in pools whole requests take longer.
    """
    trial: Trial = data.draw(trials(kind, "analytical"))
    slow, fast = trial.price(), trial.with_values(FASTER[faster](trial.scenario())).price()
    assert (fast.requests_per_s >= slow.requests_per_s * (1 - SOLVED)).all()
    asked = trial.layouts
    alone = asked.batch_size + asked.concurrency + asked.request_rate > 0 if kind == "pools" else np.ones(len(asked), bool)  # type: ignore[attr-defined]  # engines
    assert (fast.request_latency_s <= slow.request_latency_s * (1 + SOLVED))[alone].all()


@pytest.mark.parametrize("kind", SERVING)
@FEWER
@given(st.data(), st.sampled_from([2, 3, 5, 8, None]), st.sampled_from([0, 100]))
def test_more_requests_under_way_are_served_no_slower_and_decode_no_faster(kind: str, data: Any, generated: int | None, sent: int) -> None:
    """However few steps they decode, and also where prompts wait until each attention rank has one (TensorRT-LLM's balance)."""
    trial: Trial = data.draw(trials(kind, "analytical"))
    trial = trial if generated is None else trial.with_values({"workload.decode_len": generated})
    row = data.draw(st.integers(0, len(trial.layouts) - 1))
    for wait in (0, 60):
        found = of_loads(
            trial.with_values({"software.attention_dp_wait": wait}), row, {"concurrency": UNDER_WAY, "num_prompts": 0 * UNDER_WAY + sent}
        ).price()
        assert (found.tokens_per_s[1:] >= found.tokens_per_s[:-1] * (1 - WAVES)).all()
        if trial.scenario().workload.lengths[1] == 1:
            continue
        running = found.running_requests[1:] >= UNDER_WAY[1:] * 0.999
        assert (found.tpot_s[1:] >= found.tpot_s[:-1] * (1 - WAVES))[running].all()


@pytest.mark.parametrize("kind", SERVING)
@FEWER
@given(st.data(), st.sampled_from([0, 100, 1000]), st.sampled_from([0, 60]))
def test_requests_that_come_faster_are_served_no_sooner(kind: str, data: Any, sent: int, wait: int) -> None:
    """From an empty engine to beyond what it keeps up with, where the queue grows for as long as requests come."""
    trial: Trial = data.draw(trials(kind, "analytical")).with_values({"software.attention_dp_wait": wait})
    rates = 0.05 * 1.4 ** np.arange(28)
    row = data.draw(st.integers(0, len(trial.layouts) - 1))
    found = of_loads(trial, row, {"request_rate": rates, "num_prompts": np.full(len(rates), sent)}).price()
    kept_up = (found.requests_per_s >= rates * (1 - SOLVED)) | (sent > 0)
    assert (found.tokens_per_s[1:] >= found.tokens_per_s[:-1] * (1 - RAMPS)).all()
    assert (found.request_latency_s[1:] >= found.request_latency_s[:-1] * (1 - RAMPS))[kept_up[1:]].all()
    if trial.scenario().workload.lengths[1] > 1:
        assert (found.tpot_s[1:] >= found.tpot_s[:-1] * (1 - RAMPS))[kept_up[1:]].all()


@pytest.mark.parametrize("kind", SERVING)
@FEWER
@given(st.data(), st.sampled_from([{"concurrency": 1}, {"concurrency": 48}, {"batch_size": 8}, {"request_rate": 1.0, "num_prompts": 200}]))
def test_a_request_that_generates_more_takes_longer(kind: str, data: Any, load: dict[str, float]) -> None:
    """From one token on."""
    trial: Trial = data.draw(trials(kind, "analytical"))
    if kind == "pools" and "batch_size" in load:
        return
    some = of_loads(trial, data.draw(st.integers(0, len(trial.layouts) - 1)), {name: np.array([value]) for name, value in load.items()})
    found = [some.with_values({"workload.decode_len": length}).price() for length in (1, 2, 3, 5, 8, 16, 64)]
    alike = np.array([result.running_requests[0] for result in found]) >= load.get("concurrency", 0) * 0.999
    taken = np.array([result.request_latency_s[0] for result in found])
    assert (taken[1:] >= taken[:-1] * (1 - WAVES))[alike[1:]].all()


@pytest.mark.parametrize("kind", SERVING)
@FEWER
@given(st.data())
def test_the_first_token_comes_later_the_longer_the_prompt(kind: str, data: Any) -> None:
    """No sooner, where the host sets the pace."""
    trial: Trial = data.draw(trials(kind, "analytical"))
    some = of_loads(trial, data.draw(st.integers(0, len(trial.layouts) - 1)), {"concurrency": np.array([1, 8])})
    first = np.stack([some.with_values({"workload.prompt_len": length}).price().ttft_s for length in (64, 256, 1024, 4096, 16384)])
    assert (first[1:] >= first[:-1] * (1 - SOLVED)).all()
    assert (first[-1] > first[0]).all()


@pytest.mark.parametrize(
    ("asked", "changes", "engine", "running"),
    [
        (("b200", "gpt_oss_20b", "nim"), {"decode_len": 24, "precision": "fp8"}, {"pp": 2, "attention_dp": 16, "ep": 16}, (4, 8, 16)),
        (("gb200", "gpt_oss_20b", "sglang"), {"decode_len": 1024}, {"tp": 8, "pp": 4, "attention_dp": 2, "ep": 16}, (4, 8)),
        (("l40s", "qwen3_30b_a3b", "vllm"), {"decode_len": 1024}, {"tp": 2, "ep": 2}, (8, 16)),
        (("mi300x", "llama3_1_8b", "sglang"), {"decode_len": 8, "precision": "fp8"}, {"tp": 8}, (256, 1024)),
        (("h100", "llama3_1_8b", "tensorrt_llm"), {"decode_len": 2}, {}, (100, 1000, 2000)),
        (("h200", "llama2_7b", "vllm"), {"decode_len": 127}, {}, (256, 512)),
        (("b200", "gpt_oss_20b", "sglang"), {"decode_len": 1}, {"attention_dp": 16, "ep": 16}, (16, 32, 64, 200)),
        (("b200", "gpt_oss_20b", "sglang"), {"decode_len": 64}, {"attention_dp": 16, "ep": 16}, (16, 32, 64, 200)),
        (("gb200", "deepseek_v3", "sglang"), {"decode_len": 2}, {"tp": 8, "pp": 4, "attention_dp": 8, "ep": 64}, (32, 64)),
    ],
)
def test_requests_of_one_length_have_their_first_token_later_the_longer_the_prompt(
    asked: tuple[str, str, str], changes: dict[str, Any], engine: dict[str, int], running: tuple[int, ...]
) -> None:
    """From one token on: of longer prompts fewer share a pass, which no request is the sooner for."""
    gpus = engine.get("tp", 1) * engine.get("pp", 1) * engine.get("attention_dp", 1)
    rows = [engine | {"num_gpus": gpus, "concurrency": load, "num_prompts": 10**7} for load in running]
    changes = {f"workload__{key}": value for key, value in changes.items()} | {"workload__length_spread": 0}
    changes |= {"model__max_position_embeddings": None}
    lengths = (1, 2, 3, 8, 64, 256, 1024, 1365, 1500, 2048, 4096)
    found = [priced(scenario(*asked, **changes, workload__prompt_len=length), *rows) for length in lengths]
    first, kept = np.stack([of.ttft_s for of in found]), np.stack([of.running_requests for of in found]) >= np.array(running) * 0.999
    assert (first[1:] >= first[:-1] * (1 - 5 * SOLVED))[kept[1:]].all()
    assert (first[-1] > first[0]).all()


@pytest.mark.parametrize(
    ("asked", "row"), [(("l40s", "gpt_oss_20b"), {"tp": 2, "ep": 2, "num_gpus": 2}), (("h100", "llama3_1_8b"), {"num_gpus": 1})]
)
def test_rows_that_decode_beside_prompts_have_logits_of_their_own(asked: tuple[str, str], row: dict[str, float]) -> None:
    """One layer, whose head takes longer than all else: a pass of 512 prompts of one token beside 512 decoding rows takes as long as a
    decode step of 1,024 rows. First tokens came a tenth sooner with two tokens in a prompt than with one where those rows had no logits."""
    changes = {"model__num_hidden_layers": 1, "workload__decode_len": 2, "workload__length_spread": 0.2}
    row, rows, first = row | {"concurrency": 1024, "num_prompts": 10**7}, np.array([512.0]), []
    for length in (1, 2, 3, 8):
        of = scenario(*asked, "tensorrt_llm", **changes, workload__prompt_len=length)
        first.append(priced(of, row).ttft_s[0])
        part = prepare(of, engines(row))[0]
        engine = Engine(of, part.costs[0], part.kinds[0])
        step, where = engine.step(rows), engine.costs.prefill.at(engine.kind, rows)
        both = step.device + where.of(engine.prefill_busy) * (1.0 - engine._spared(step, rows, where))
        assert length > 1 or both == pytest.approx(engine.step(2.0 * rows).device, rel=0.03)
    assert all(more > less for less, more in pairwise(first))


def test_a_host_launches_experts_beside_the_fullest_rank_and_beside_decoding() -> None:
    """36 ms for 24 layers: each attention rank's prompts are done before, also those of the rank that has several, and what decodes."""
    engine = {"num_gpus": 32, "pp": 2, "attention_dp": 16, "ep": 16, "num_prompts": 10**7}
    changes = {"workload__decode_len": 24, "workload__precision": "fp8", "workload__length_spread": 0}
    for length in (64, 256, 512):
        of = scenario("b200", "gpt_oss_20b", "nim", workload__prompt_len=length, **changes)
        found, serving = priced(of, *(engine | {"concurrency": running} for running in (8, 16))), of.software.serving
        assert found.ttft_s == pytest.approx(serving.admission_latency + 24 * serving.expert_launch + found.tpot_s / 2, rel=0.02)


def test_prompts_that_share_one_pass_wait_for_no_other() -> None:
    """Requests of one token: all that end together come together again, so that more of them never end the loop's one pass in two."""
    of = scenario("a100", "llama3_1_70b", "tensorrt_llm", workload__prompt_len=181, workload__decode_len=1, workload__length_spread=0)
    found = priced(of, *({"num_gpus": 8, "tp": 8, "concurrency": n, "num_prompts": 10**7} for n in range(8, 45)))
    assert (np.diff(found.requests_per_s) >= -SOLVED * found.requests_per_s[:-1]).all()


def test_a_run_on_pools_is_no_longer_the_more_are_under_way() -> None:
    """Up to all that are sent: decode steps of more requests take less of each, while prompts bring them."""
    changes = {"model__num_hidden_layers": 4, "workload__prompt_len": 1000, "workload__decode_len": 64, "workload__length_spread": 0.2}
    pools = {"num_gpus": 13, "prefill_tp": 4, "prefill_workers": 3, "decode_tp": 1, "decode_workers": 1, "num_prompts": 1000}
    found = priced(scenario("b200", "llama3_1_70b", "tensorrt_llm", **changes), *(pools | {"concurrency": n} for n in UNDER_WAY))
    assert (np.diff(found.requests_per_s) >= -SOLVED * found.requests_per_s[:-1]).all()


def test_pools_have_no_more_requests_under_way_than_they_were_asked_for() -> None:
    """Little's law, of requests of one token, whose passes grow by leaps with the rate."""
    of = scenario("a100", "llama3_1_70b", "tensorrt_llm", workload__prompt_len=111, workload__decode_len=1, workload__length_spread=0)
    pools = {"num_gpus": 28, "prefill_tp": 1, "prefill_pp": 2, "prefill_workers": 2, "decode_tp": 4, "decode_pp": 2, "decode_workers": 3}
    loads = np.array([1, 8, 40, 57, 64, 71, 80, 100])
    found = priced(of, *(pools | {"concurrency": running, "num_prompts": 10**7} for running in loads))
    assert found.requests_per_s * found.request_latency_s == pytest.approx(loads, rel=1e-3)
    assert (found.running_requests <= loads * (1 + SOLVED)).all()


@pytest.mark.parametrize(("capacity", "sent"), [(16.0, 10**7), (80.0, 100)])
def test_pools_whose_prompts_set_the_pace_serve_no_fewer_the_more_there_are(capacity: float, sent: int) -> None:
    """Of engines that hold one prompt at a time, and of a run that is hardly longer than its opening burst."""
    memory = {"hw__memory__capacity": capacity * 1e9, "hw__memory__usable": capacity * 1e9}
    of = scenario(workload__prompt_len=1000, workload__decode_len=5, **memory)
    pools = {"num_gpus": 5, "prefill_tp": 1, "prefill_workers": 3, "decode_tp": 1, "decode_workers": 2, "num_prompts": sent}
    found = priced(of, *(pools | {"concurrency": running} for running in UNDER_WAY))
    assert (found.requests_per_s[1:] >= found.requests_per_s[:-1] * (1 - SOLVED)).all()
    assert (found.request_latency_s[1:] >= found.request_latency_s[:-1] * (1 - SOLVED)).all()
    # those under way, over what of its life a request is: Little's law, from one request on
    assert found.request_latency_s[0] * found.requests_per_s[0] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("asked", "changes", "engine", "sent"),
    [
        (("mi300x", "qwen3_30b_a3b", "vllm"), {"prompt_len": 4096, "decode_len": 24}, {"tp": 2, "ep": 2}, 1000),
        (("l40s", "qwen3_30b_a3b", "nim"), {"prompt_len": 97, "decode_len": 2}, {"attention_dp": 8, "pp": 4, "ep": 8}, 100),
        (("gb200", "qwen3_30b_a3b", "vllm"), {"prompt_len": 7000, "decode_len": 309}, {"tp": 4, "ep": 4}, 1000),
    ],
)
def test_runs_that_are_hardly_more_than_their_burst_are_no_shorter_the_fewer_are_under_way(
    asked: tuple[str, str, str], changes: dict[str, int], engine: dict[str, int], sent: int
) -> None:
    """As many are sent in all, of which up to all are under way; loops that go on for ever lose as much where prompts fill them."""
    of = scenario(*asked, **{f"workload__{key}": value for key, value in changes.items()}, workload__length_spread=0.2)
    gpus = engine.get("tp", 1) * engine.get("pp", 1) * engine.get("attention_dp", 1)
    loads = np.unique(np.geomspace(1, sent, 40).astype(int)).tolist()
    found = priced(of, *(engine | {"num_gpus": gpus, "concurrency": running, "num_prompts": sent} for running in loads))
    assert (found.requests_per_s[1:] >= found.requests_per_s[:-1] * (1 - 3 * SOLVED)).all()


@pytest.mark.parametrize("software", ["vllm", "sglang", "tensorrt_llm"])
def test_two_tokens_take_no_less_than_one_where_all_requests_are_sent_at_once(software: str) -> None:
    """Also behind short prompts, of which one pass takes all."""
    for prompt in (6, 97, 2000):
        taken = [
            priced(
                scenario("a100", "llama3_1_8b", software, workload__prompt_len=prompt, workload__decode_len=length),
                *({"num_gpus": 1, "concurrency": sent, "num_prompts": sent} for sent in (2, 16, 64, 500)),
            ).request_latency_s
            for length in (1, 2, 3, 5)
        ]
        assert (np.diff(taken, axis=0) >= -WAVES * np.stack(taken[:-1])).all()


def test_pipelines_that_decode_little_serve_no_fewer_the_more_there_are() -> None:
    """A prompt goes through the later stages beside the steps of others, which counts in its life as in how often requests end."""
    changes = {"workload__prompt_len": 181, "workload__decode_len": 2, "workload__precision": "fp8", "workload__length_spread": 0.2}
    of = scenario("mi300x", "llama3_1_70b", "sglang", **changes)
    found = priced(of, *({"tp": 4, "pp": 2, "concurrency": running, "num_prompts": 10 * running} for running in UNDER_WAY))
    assert (found.requests_per_s[1:] >= found.requests_per_s[:-1] * (1 - SOLVED)).all()
    assert (found.tpot_s[1:] >= found.tpot_s[:-1] * (1 - SOLVED)).all()


def test_ranks_that_share_passes_decode_no_sooner_the_faster_requests_come() -> None:
    """Longer lives let more prompts share a pass, which makes them shorter: what answers itself is found, and not the last of two turns."""
    changes = {"workload__prompt_len": 33_000, "workload__decode_len": 24, "workload__precision": "fp8", "workload__length_spread": 0.2}
    of = scenario("gb200", "qwen3_30b_a3b", "tensorrt_llm", model__max_position_embeddings=None, **changes)
    engine = {"num_gpus": 8, "tp": 2, "attention_dp": 4, "ep": 8, "num_prompts": 2000}
    found = priced(of, *(engine | {"request_rate": rate} for rate in np.linspace(1.0, 7.0, 25)))
    assert (found.tpot_s[1:] >= found.tpot_s[:-1] * (1 - 5 * SOLVED)).all()


def test_short_prompts_at_random_decode_no_sooner_the_faster_they_come() -> None:
    """Of which thousands would fit a pass, and a few share one."""
    changes = {"workload__prompt_len": 1, "workload__decode_len": 5, "workload__precision": "fp8", "workload__length_spread": 0.2}
    of = scenario("b200", "llama2_7b", "tensorrt_llm", **changes)
    found = priced(of, *({"num_gpus": 4, "tp": 4, "request_rate": rate, "num_prompts": 10**7} for rate in np.linspace(100, 400, 13)))
    assert (found.tpot_s[1:] >= found.tpot_s[:-1] * (1 - SOLVED)).all()


def test_ranks_whose_prompts_last_for_several_steps_share_passes() -> None:
    """With all of three requests a rank before their first token, each rank has a prompt: two tokens take less than ten, and hardly longer
    than one."""
    changes = {"workload__prompt_len": 26_000, "workload__precision": "fp8", "model__max_position_embeddings": None}
    engine = {"num_gpus": 16, "attention_dp": 16, "concurrency": 50, "num_prompts": 50}
    taken = [
        priced(scenario("b200", "deepseek_v3", "tensorrt_llm", workload__decode_len=length, **changes), engine).request_latency_s[0]
        for length in (1, 2, 10)
    ]
    assert taken[0] < taken[1] < taken[2]
    assert taken[1] < 1.25 * taken[0]


@pytest.mark.parametrize("sent", [15, 20])
def test_pools_serve_a_run_no_slower_the_faster_its_requests_come(sent: int) -> None:
    """Also where all come nearly at once: each waits for half of the others' prompts at most."""
    of = scenario(model__num_hidden_layers=4, workload__prompt_len=1673, workload__decode_len=8)
    pools = {"num_gpus": 5, "prefill_tp": 1, "prefill_workers": 3, "decode_tp": 1, "decode_workers": 2, "num_prompts": sent}
    found = priced(of, *(pools | {"request_rate": rate} for rate in np.geomspace(1, 10_000, 40)))
    assert (found.tokens_per_s[1:] >= found.tokens_per_s[:-1] * (1 - RAMPS)).all()


def test_a_pass_of_a_pool_holds_no_more_prompts_than_are_sent() -> None:
    """Three requests that come within a millisecond have their first tokens nearly as soon as three that come at once."""
    changes = {"workload__prompt_len": 96, "workload__decode_len": 2, "workload__precision": "fp8", "workload__length_spread": 0.2}
    of = scenario("l40s", "llama3_1_8b", "tensorrt_llm", **changes)
    pools = {"num_gpus": 8, "prefill_tp": 2, "prefill_pp": 2, "prefill_workers": 1, "decode_tp": 2, "decode_pp": 2, "decode_workers": 1}
    at_once, soon = priced(of, *(pools | {"num_prompts": 3} | load for load in ({}, {"request_rate": 10_000.0}))).ttft_s
    assert at_once < soon < 1.5 * at_once


def test_the_slowest_stage_is_the_one_with_the_latencies_of_its_layers() -> None:
    """13 layers on four stages: the first has four, the last three and the head, which takes longer but for a layer's latency."""
    engine = {"num_gpus": 16, "tp": 4, "pp": 4, "concurrency": 100, "num_prompts": 10**7}
    changes = {"model__num_hidden_layers": 13, "workload__prompt_len": 6, "workload__decode_len": 1968}
    slow = scenario("gb200", "llama2_7b", "nim", **changes)
    fast = scenario("gb200", "llama2_7b", "nim", **changes, hw__network__dimensions__0__bandwidth=9e12)
    assert priced(fast, engine).requests_per_s[0] >= priced(slow, engine).requests_per_s[0] * (1 - SOLVED)


def of_loads(trial: Trial, row: int, loads: dict[str, Any]) -> Trial:
    """One engine of a trial under several loads."""
    count = len(next(iter(loads.values())))
    engine = trial.layouts.take(np.full(count, row))
    none = np.zeros(count, np.int64)
    asked = {"concurrency": none, "batch_size": none, "request_rate": none.astype(float), "num_prompts": none} | loads
    return replace(trial, layouts=replace(engine, **asked))


@pytest.mark.parametrize("faster", ["first links", "first links ten times", "clock", "memory"])
def test_pools_of_pipelines_whose_hosts_launch_experts_are_no_slower_on_a_faster_machine(faster: str) -> None:
    """A stage's host launches the stage's own layers: a pass ends no later than the slower of both does."""
    asked = ("b200", "gpt_oss_20b", "sglang")
    load = {"workload__prompt_len": 1446, "workload__decode_len": 8, "workload__precision": "fp8"}
    changes = {key.replace(".", "__"): value for key, value in FASTER[faster](scenario(*asked, **load)).items()}
    pools = {"num_gpus": 28, "prefill_tp": 2, "prefill_pp": 2, "prefill_workers": 3, "decode_tp": 8, "decode_pp": 2, "decode_ep": 8}
    slow, fast = (priced(scenario(*asked, **load, **more), pools | {"decode_workers": 1, "concurrency": 200}) for more in ({}, changes))
    assert fast.requests_per_s[0] >= slow.requests_per_s[0] * (1 - SOLVED)


@pytest.mark.parametrize("generated", [1, 2, 3])
def test_a_host_launches_one_pass_of_experts_after_the_other(generated: int) -> None:
    """However little decodes: 48 layers at 1.415 ms, of which each pass takes as many prompts of 7,000 tokens as 8,192 have."""
    of = scenario(
        "gb200", "qwen3_30b_a3b", "tensorrt_llm", workload__prompt_len=7000, workload__decode_len=generated, workload__precision="fp8"
    )
    engine, most = {"num_gpus": 8, "tp": 8, "ep": 8}, 8192 / 7000 / (48 * of.software.serving.expert_launch)
    loads = [{"concurrency": running, "num_prompts": 10**7} for running in (1, 2, 5, 64)] + [{"num_prompts": 500}]
    loads += [{"request_rate": rate, "num_prompts": 1000} for rate in (10.0, 24.0)]
    found = priced(of, *(engine | load for load in loads))
    assert (found.requests_per_s <= most * (1 + SOLVED)).all()
    # 1,000 requests that come 24 a second wait, on average, for half of those that come while others are launched
    queue = 500 * (1 / most - 1 / 24.0)
    assert queue < found.ttft_s[-1] < 1.1 * queue + 0.5


@pytest.mark.parametrize(
    ("asked", "changes", "engine"),
    [
        (("l40s", "llama2_7b", "sglang"), {"prompt_len": 3029, "decode_len": 3}, {"tp": 8}),
        (("l40s", "llama3_1_70b", "sglang"), {"prompt_len": 1673, "decode_len": 2, "draft_tokens": 2, "draft_acceptance": 0.7}, {"tp": 2}),
    ],
)
def test_prompts_first_serve_no_fewer_than_one_request_alone(
    asked: tuple[str, str, str], changes: dict[str, Any], engine: dict[str, int]
) -> None:
    """Of few tokens, which wait for others' prompts no longer than if requests came one after the other."""
    of = scenario(*asked, **{f"workload__{key}": value for key, value in changes.items()}, workload__precision="fp8")
    found = priced(of, *(engine | {"concurrency": running, "num_prompts": 10**7} for running in (1, 2, 3, 4, 6, 8, 16, 64)))
    for served in (found.requests_per_s, found.tpot_s):
        assert (served[1:] >= served[:-1] * (1 - SOLVED)).all()
