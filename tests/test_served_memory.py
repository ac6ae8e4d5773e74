"""What a GPU that serves holds: the cache at its fullest, counted by hand."""

from __future__ import annotations

import pytest
from serving_trials import priced, scenario

import rapid_dse as rd

A_TOKEN = 32 * 2 * 8 * 128 * 2  # bytes in the cache of Llama 3.1 8B
SHORT = {"workload__prompt_len": 1024, "workload__decode_len": 8192}


def test_a_static_batch_holds_all_of_its_tokens_in_the_last_step() -> None:
    """Twenty times 9,216 tokens of 128 KiB are 24 GB; with 15 GB of weights they fit a GPU of 32 GB no more, 20 times 5,120 would."""
    found = priced(scenario(**SHORT), {"batch_size": 20})
    assert found.memory_kv_cache_bytes[0] == 20 * 9216 * A_TOKEN
    assert not priced(scenario(hw__memory__usable=32e9, **SHORT), {"batch_size": 20}).fits[0]


def test_the_longest_of_a_static_batch_sets_its_end() -> None:
    found = priced(scenario(workload__length_spread=0.25, **SHORT), {"batch_size": 4})
    assert found.memory_kv_cache_bytes[0] == 4 * 1.25 * 9216 * A_TOKEN


def test_in_a_loop_one_request_is_at_its_end_while_the_others_are_where_they_are_on_average() -> None:
    found = priced(scenario(**SHORT), {"concurrency": 1}, {"concurrency": 4}, {"concurrency": 4, "attention_dp": 2, "num_gpus": 2})
    expected = [9216, 9216 + 3 * (1024 + 4096), 9216 + 1024 + 4096]
    assert found.memory_kv_cache_bytes == pytest.approx([tokens * A_TOKEN for tokens in expected])


def test_an_engine_whose_cache_does_not_hold_one_whole_request_does_not_fit() -> None:
    """Two H100 have 12 GB each beside half of Llama 3.1 70B: a request of 101,024 tokens takes 16.5, and 8.4 on average."""
    of = scenario(model="llama3_1_70b", workload__prompt_len=1024, workload__decode_len=100_000)
    assert not priced(of, {"tp": 2, "concurrency": 1}).fits[0]


def test_a_pool_of_prompts_holds_the_prompts_of_a_pass_and_nothing_that_is_generated() -> None:
    """At most eight prompts of 1,024 tokens share a step of 8,192. What is generated afterwards lies on eight other GPUs."""
    pools = {"num_gpus": 9, "prefill_tp": 1, "prefill_workers": 1, "decode_tp": 8, "decode_workers": 1, "concurrency": 256}
    found = priced(scenario(workload__prompt_len=1024, workload__decode_len=64), pools)
    assert found.memory_parameters_bytes[0] == pytest.approx(16e9, rel=0.02)
    prompts = found.memory_kv_cache_bytes[0] / (1024 * A_TOKEN)
    assert prompts in range(3, 9)


def test_the_layer_that_makes_drafts_lies_beside_the_others() -> None:
    """DeepSeek-V3's module for the next token but one has 11.5 billion parameters beside embedding and head; here over eight GPUs, in fp8,
    with the router in 16 bits and the latents' down-projections on each. Its cache is a 61st of the others' more."""
    routed, attention = 257 * 3 * 7168 * 2048, 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    a_gpu = (routed + attention) / 8 + 7168 * (1536 + 512 + 64) + 2 * 256 * 7168
    row = {"tp": 8, "num_gpus": 8, "concurrency": 8}
    plain, drafted = (
        priced(scenario("h200", "deepseek_v3", workload__precision="fp8", **drafts), row)
        for drafts in ({}, {"workload__draft_tokens": 1, "workload__draft_acceptance": 0.8})
    )
    assert drafted.memory_parameters_bytes[0] - plain.memory_parameters_bytes[0] == pytest.approx(a_gpu, rel=1e-3)
    assert drafted.memory_kv_cache_bytes[0] == pytest.approx(plain.memory_kv_cache_bytes[0] * 62 / 61)


@pytest.mark.parametrize(("software", "share"), [("vllm", 0.1), ("tensorrt_llm", 0.001)])
def test_a_share_of_memory_that_holds_no_request_is_a_reason_with_the_least_that_does(software: str, share: float) -> None:
    """vLLM: "No available memory for the cache blocks. Try increasing gpu_memory_utilization". By hand 16.1 GB of weights, 0.8 of
    activations, 2 of workspace and 0.27 of one request are 0.23 of 84.2 GB."""
    asked = {"hw": "h100", "model": "llama3_1_8b", "workload": "inference", "num_gpus": 1, "concurrency": 8, "software": software}
    with pytest.raises(ValueError, match=rf"software.memory_fraction={share} leaves no room for one request; allowed here: ") as caught:
        rd.simulate(**asked, **{"software.memory_fraction": share})
    least = float(str(caught.value).split(": ")[-1].split()[0])
    assert software != "vllm" or least == pytest.approx(19.2e9 / 84.2e9, abs=0.004)
    assert rd.simulate(**asked, **{"software.memory_fraction": least})["running_requests"] >= 1


def test_where_weights_alone_do_not_fit_no_request_runs() -> None:
    assert priced(scenario(model="llama3_1_70b"), {"concurrency": 8}).running_requests[0] == 0
