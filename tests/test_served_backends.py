"""Inference on the execution backends: what they agree on where nothing is congested, what congestion, faults and pools add, the laws."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from astra_stand_in import install
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_spread import EVENT_BACKENDS
from serving_trials import engines, scenario

from rapid_dse.events.backends import price
from rapid_dse.events.cache import FOLDER, MODE_VARIABLE
from rapid_dse.events.programs.script import Labels, Script, Style
from rapid_dse.events.programs.served_step import StageShare, Turns, write_stage
from rapid_dse.events.runs import Run
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.results import TIME_TERMS, Priced, unlawful

HYBRID, HIERARCHICAL, FLATTENED = EVENT_BACKENDS
Row = dict[str, float]

LAYERS: dict[str, Any] = {"model__num_hidden_layers": 6}
MIXTURE = LAYERS | {"model__num_experts": 16, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 3584}
LATENT: dict[str, Any] = {"hw": "h200", "model": "deepseek_v3", "workload__precision": "fp8", "model__num_hidden_layers": 7}
DRAFTED = LATENT | {"workload__draft_tokens": 2, "workload__draft_acceptance": 0.7}
LONG = LAYERS | {"workload__prompt_len": 16384, "software__max_batched_tokens": 4096}
POOLS: Row = {"prefill_tp": 2, "decode_tp": 4, "prefill_workers": 2, "decode_workers": 1, "num_gpus": 8, "concurrency": 32}
WIDE_POOLS: Row = {"prefill_tp": 8, "prefill_ep": 8, "decode_tp": 1, "decode_attention_dp": 16, "decode_ep": 16, "num_gpus": 24}

KINDS: dict[str, tuple[dict[str, Any], Row]] = {
    "one GPU": (LAYERS, {"concurrency": 16}),
    "static": (LAYERS, {"tp": 2, "batch_size": 8}),
    "grouped heads": ({}, {"tp": 8, "concurrency": 64}),
    "heads of their own": (LAYERS | {"model": "llama2_7b", "hw": "a100"}, {"tp": 4, "concurrency": 16}),
    "windows": (LAYERS | {"model__sliding_window": 512}, {"tp": 2, "concurrency": 16}),
    "full pipeline": ({}, {"tp": 2, "pp": 4, "concurrency": 64}),
    "stages of unequal layers": ({}, {"pp": 3, "concurrency": 48}),
    "fewer requests than stages": (LAYERS, {"pp": 4, "concurrency": 2}),
    "chunks": (LONG, {"tp": 2, "pp": 4, "concurrency": 8}),
    "a full chunk and a short one": (LONG | {"workload__prompt_len": 4500}, {"tp": 2, "pp": 4, "concurrency": 2}),
    "three chunks and half of one": (LONG | {"workload__prompt_len": 14300}, {"tp": 1, "pp": 2, "concurrency": 4}),
    "experts over tp": (MIXTURE, {"tp": 8, "ep": 8, "concurrency": 64}),
    "attention dp, experts": (MIXTURE, {"tp": 1, "attention_dp": 8, "ep": 8, "num_gpus": 8, "concurrency": 128}),
    "two nodes, stages": (
        MIXTURE | {"model__n_shared_experts": 1},
        {"tp": 2, "attention_dp": 4, "ep": 8, "pp": 2, "num_gpus": 16, "concurrency": 128},
    ),
    "attention dp, dense": (LAYERS, {"tp": 2, "attention_dp": 4, "num_gpus": 8, "concurrency": 128}),
    "context": (LAYERS, {"tp": 2, "cp": 4, "num_gpus": 8, "concurrency": 32}),
    "latent": (LATENT, {"tp": 8, "ep": 8, "concurrency": 32}),
    "latent, stages": (LATENT, {"tp": 1, "attention_dp": 8, "ep": 8, "pp": 2, "num_gpus": 16, "concurrency": 128}),
    "drafts": (DRAFTED, {"tp": 8, "ep": 8, "pp": 2, "concurrency": 32}),
    "open loop": (LAYERS, {"tp": 4, "request_rate": 4.0}),
    "a prompt alone": (LAYERS | {"workload__decode_len": 1}, {"tp": 4, "pp": 2, "concurrency": 4}),
    "pools": (LAYERS | {"workload__prompt_len": 4096}, POOLS),
    "pools of experts": (MIXTURE | {"workload__prompt_len": 4096}, WIDE_POOLS | {"concurrency": 64}),
    "pools with stages": (LAYERS, {"prefill_tp": 2, "prefill_pp": 3, "decode_tp": 2, "decode_pp": 2, "num_gpus": 10, "concurrency": 32}),
}
FIGURES = ("tpot_s", "ttft_s", "request_latency_s", "tokens_per_s")


def _priced(values: dict[str, Any], *rows: Row, backend: str = "analytical", runs: dict[str, Run] | None = None, **more: Any) -> Priced:
    of, table = scenario(**values | {"backend__name": backend} | more), engines(*rows)
    rule, texts = broken_rules(table, of)
    assert (rule < 0).all(), [texts[index] for index in set(rule[rule >= 0])]
    return price(of, table, None if runs is None else runs.update)


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_the_first_token_of_a_longer_prompt_comes_no_sooner_on_graphs(backend: str) -> None:
    """A chunk that is full, one token more, half a chunk more, two chunks and one token more, over two stages."""
    found = [
        _priced(LONG | {"workload__prompt_len": prompt}, {"tp": 2, "pp": 2, "batch_size": 1}, backend=backend).ttft_s[0]
        for prompt in (4096, 4097, 6144, 8192, 8193)
    ]
    assert all(later > sooner for sooner, later in pairwise(found)), found


@pytest.mark.parametrize("kind", KINDS)
def test_ideal_links_give_what_closed_forms_say(kind: str) -> None:
    values, row = KINDS[kind]
    closed = _priced(values, row)
    for backend in EVENT_BACKENDS:
        found = _priced(values, row, backend=backend, backend__network="ideal")
        for name in FIGURES:
            assert getattr(found, name)[0] == pytest.approx(getattr(closed, name)[0], rel=0.02, nan_ok=True), (backend, name)
        for term in (*TIME_TERMS, "prefill"):
            expected, of = getattr(closed, f"time_{term}_s")[0], 0.02 * float(closed.step_time_s[0])
            assert getattr(found, f"time_{term}_s")[0] == pytest.approx(expected, abs=of), (backend, term)


@pytest.mark.parametrize("network", ["congestion_aware", "congestion_unaware", "fair"])
@pytest.mark.parametrize("kind", ["two nodes, stages", "a prompt alone", "pools with stages"])
def test_terms_add_up_on_every_network_and_memory_is_the_closed_forms(kind: str, network: str) -> None:
    values, row = KINDS[kind]
    closed = _priced(values, row)
    for backend in (HYBRID, FLATTENED) if network == "fair" else (HIERARCHICAL,):
        found = _priced(values, row, backend=backend, backend__network=network)
        assert unlawful(found) == []
        assert found.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.25)
        assert found.peak_memory_bytes[0] == pytest.approx(closed.peak_memory_bytes[0], rel=0.05)
        for term in ("compute", "host"):
            assert getattr(found, f"time_{term}_s")[0] > 0


class _Alone:
    """Layers and heads of given seconds, by themselves."""

    def layers(self, script: Script, after: tuple[int, ...], kind: int, count: int) -> tuple[int, ...]:
        return script.compute(after, count * (kind + 1) * 1e-3, "layers")

    def head(self, script: Script, after: tuple[int, ...], number: int) -> tuple[int, ...]:
        return script.compute(after, 2e-3, f"head {number}")


def test_a_stages_program_has_each_batch_come_back_to_the_first_stage() -> None:
    """Three stages, two batches in flight, two rounds: who sends to whom, and what waits for what."""
    style, scripts = Style(True, True, {}, Labels()), []
    kinds = ((0, 0, 1), (1,), (0, 1))
    marks = []
    for stage, own in enumerate(kinds):
        script = Script(style)
        marks.append(write_stage(script, [(_Alone(), StageShare(own, stage, 1, 0, 100.0, 0.0, 4.0))], Turns(3, 2, (0,) * 4, returns=True)))
        scripts.append(script)
    received = [[scripts[stage].tag[node] for node in marks[stage].arrives if node >= 0] for stage in range(3)]
    sent = [[tag for tag, where, kind in zip(script.tag, script.where, script.kind, strict=True) if where == "next"] for script in scripts]
    assert received[1] == sent[0]
    assert received[2] == sent[1]
    assert received[0] == sent[2]
    assert len(received[0]) == 2  # the second round of both batches
    seconds = [sum(script.duration) - len(script.tag) + len([w for w in script.where if not w]) for script in scripts]
    assert [s // 10**6 for s in seconds] == [4 * 4, 4 * 2, 4 * (3 + 2 + 1 + 2)]


@pytest.mark.parametrize("flying", [1, 2, 3])
def test_a_pipeline_goes_round_as_a_small_simulation_of_it_does(flying: int) -> None:
    """A batch starts on a stage when it has come from the one before and the stage has ended the batch before it."""
    values = LAYERS | {"model__num_hidden_layers": 7, "software__step_latency": 0.0, "software__sequence_latency": 0.0}
    row: Row = {"pp": 3, "batch_size": float(flying)}
    runs: dict[str, Run] = {}
    found = _priced(values, row, backend=FLATTENED, backend__network="ideal", runs=runs)
    blocks: dict[str, Run] = {}
    _priced(values, row, backend=HYBRID, backend__network="ideal", runs=blocks)
    ends = blocks["decode_stage"].result.end_ns / 1e9  # three kernels of a layer, a moment, the head
    layer, head = float(ends[2]), float(ends[-1] - ends[-2])
    passes = [3 * layer, 2 * layer, 2 * layer + head]
    free, ready = [0.0] * 3, [0.0] * flying
    for turn in range(8 * flying):
        at = ready[turn % flying]
        for number, seconds in enumerate(passes):
            at = free[number] = max(at, free[number]) + seconds
        before, ready[turn % flying] = ready[turn % flying], at
    assert found.tpot_s[0] - found.time_pp_s[0] == pytest.approx(at - before, rel=0.005)


def test_a_pass_that_was_run_before_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MODE_VARIABLE, "CACHE_READWRITE")
    first = _priced(LAYERS, {"tp": 2, "concurrency": 8}, backend=FLATTENED)
    entries = sorted((tmp_path / FOLDER).iterdir())
    assert len(entries) == 2  # of prefill and of decoding
    monkeypatch.setattr("rapid_dse.interconnect.engine.run_graph", None)
    again = _priced(LAYERS, {"tp": 2, "concurrency": 8}, backend=FLATTENED)
    assert again.tpot_s[0] == first.tpot_s[0]


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_a_faulty_link_slows_the_engine_that_crosses_it(backend: str) -> None:
    """Of rank 3 to its node's switch; of the second of two engines as of the first."""
    for row, fault in (({"tp": 8, "concurrency": 64}, [3, 8]), ({"tp": 8, "num_gpus": 16, "concurrency": 128}, [11, 17])):
        steps = [
            float(_priced(LAYERS, row, backend=backend, hw__network__faulty_links=[[*fault, factor]] if factor < 1 else []).time_tp_s[0])
            for factor in (1.0, 0.5, 0.25)
        ]
        assert steps[0] < steps[1] < steps[2], fault


def test_a_faulty_rail_slows_what_goes_from_stage_to_stage() -> None:
    row: Row = {"tp": 8, "pp": 2, "concurrency": 64}
    rail = {"hw__network__faulty_links": [[3, 21, 0.001]]}  # 16 places, the switches of two nodes, those of eight rails: 3's is 21
    for backend in (HIERARCHICAL, FLATTENED):
        healthy, slow = _priced(LAYERS, row, backend=backend), _priced(LAYERS, row, backend=backend, **rail)
        assert slow.time_pp_s[0] > 5 * healthy.time_pp_s[0], backend
    with pytest.raises(ValueError, match="no group of ranks within a stage crosses"):
        _priced(LAYERS, row, backend=HYBRID, **rail)


def test_a_faulty_rail_slows_a_cache_that_goes_from_pool_to_pool() -> None:
    """Half of the bytes of 4,096 tokens cross the faulty link of the first GPU, at a hundredth of its rate."""
    values, row = KINDS["pools"]
    healthy, slow = (
        _priced(values, row, backend=FLATTENED, backend__network="fair", hw__network__faulty_links=fault) for fault in ([], [[0, 18, 0.01]])
    )
    of = scenario(**values)
    rate = of.hw.network.dimensions[1].bandwidth * of.hw.network.dimensions[1].utilization
    assert slow.ttft_s[0] - healthy.ttft_s[0] == pytest.approx(0.5 * 4096 * 6 * 4096 / rate * 99, rel=0.2)


# All places on one network whose ports carry whatever goes on: all-to-alls of tokens and caches that come in.
SHARED_PORTS: dict[str, Any] = {
    "hw__network__dimensions": [
        {"topology": "switch", "size": 32, "bandwidth": "5 GB/s", "latency": "1 us", "utilization": 1.0, "energy": "10 pJ/bit"}
    ],
    "hw__gpus_per_node": 32,
}


def test_a_cache_that_comes_in_beside_all_to_alls_slows_them_by_no_more_than_the_port_carries() -> None:
    """The taker's port carries the cache and its tokens. On fair links its all-to-alls' seven messages share the port with those of the
    cache: while all-to-alls run they are slower by some of the eighth part that they lose, and never by more than the cache takes alone."""
    values = MIXTURE | SHARED_PORTS | {"workload__prompt_len": 4096, "software__layer_latency": 0.0, "software__expert_latency": 0.0}
    row: Row = {"prefill_tp": 1, "decode_tp": 1, "decode_attention_dp": 8, "decode_ep": 8, "num_gpus": 9, "concurrency": 512}
    closed = _priced(values, row)
    alone, beside = (_priced(values, row, backend=backend, backend__network="fair") for backend in (HYBRID, FLATTENED))
    assert alone.time_prefill_s[0] == closed.time_prefill_s[0] == 0
    port = 4096 * 6 * 4096 / 5e9 * float(beside.requests_per_s[0])  # tokens · layers · bytes of a layer over the port, requests/s
    step = float(beside.tpot_s[0] - beside.time_prefill_s[0])
    longer, exchanging = float(beside.time_prefill_s[0]) / step, float(beside.time_ep_s[0]) / step
    assert 0.4 / 8 * exchanging * port < longer < port
    assert beside.tpot_s[0] > alone.tpot_s[0]


def test_caches_do_not_meet_decode_steps_on_networks_of_their_own() -> None:
    values = LAYERS | {"workload__prompt_len": 4096}
    row = POOLS | {"prefill_tp": 4, "num_gpus": 12}
    found = _priced(values, row, backend=FLATTENED, backend__network="fair")
    assert found.time_prefill_s[0] == pytest.approx(0, abs=1e-3 * float(found.tpot_s[0]))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands in for ASTRA-sim's two binaries."""
    pytest.importorskip("chakra")
    return {network: install(tmp_path_factory.mktemp(network), network) for network in ("congestion_aware", "congestion_unaware")}


@pytest.mark.parametrize(
    ("backend", "network", "row"),
    [
        (HIERARCHICAL, "congestion_unaware", {"tp": 2, "pp": 2, "concurrency": 4}),
        (FLATTENED, "congestion_aware", {"tp": 2, "pp": 2, "concurrency": 4}),
    ],
)
def test_astra_sims_files_give_the_same_times(backend: str, network: str, row: Row, programs: dict[str, Path]) -> None:
    values = LAYERS | {"model__num_hidden_layers": 2, "backend__network": network, "backend__streams": 1}
    astra = {"backend__engine": "astrasim", "backend__astrasim__binary": str(programs[network])}
    own = _priced(values, row, backend=backend)
    found = _priced(values, row, backend=backend, **astra)
    for name in FIGURES:
        assert getattr(found, name)[0] == getattr(own, name)[0], name


MESH: dict[str, Any] = {
    "hw__network__dimensions": [
        {"topology": "switch", "size": 8, "bandwidth": "400 GB/s", "latency": "1 us", "utilization": 0.9, "energy": "10 pJ/bit"},
        {"topology": "mesh", "size": 4, "bandwidth": "50 GB/s", "latency": "1 us", "utilization": 0.9, "energy": "10 pJ/bit"},
    ]
}


@pytest.mark.parametrize(
    ("backend", "row", "values", "words"),
    [
        ("analytical", {"tp": 8, "concurrency": 8}, {"hw__network__faulty_links": [[3, 8, 0.5]]}, ["faulty_links", FLATTENED]),
        ("analytical", {"tp": 8, "concurrency": 8}, MESH, ["mesh", FLATTENED]),
        (HYBRID, {"tp": 8, "pp": 2, "concurrency": 8}, MESH, ["mesh", "stage to stage", FLATTENED]),
        (HYBRID, {"tp": 8, "concurrency": 8}, {"hw__network__faulty_links": [[3, 8, 0]]}, ["no way round", "above 0"]),
        (FLATTENED, {"tp": 8, "concurrency": 8}, {"hw__network__faulty_links": [[3, 4, 0.5]]}, ["no link"]),
        (HYBRID, {"tp": 8, "concurrency": 8}, {"backend__network": "ideal", "hw__network__faulty_links": [[3, 8, 0.5]]}, ["ideal"]),
        (HYBRID, {"tp": 8, "concurrency": 8}, {"backend__engine": "astrasim", "backend__network": "fair"}, ["ASTRA-sim", "fair"]),
        (
            FLATTENED,
            {"tp": 1, "attention_dp": 8, "ep": 8, "pp": 2, "num_gpus": 16, "concurrency": 8},
            MIXTURE | {"backend__engine": "astrasim", "backend__astrasim__binary": "/bin/true"},
            ["run all-to-all direct", "builtin"],
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_use_instead(backend: str, row: Row, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"allowed|use|devices") as refused:
        _priced(values, row, backend=backend)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_networks_without_a_closed_form_are_priced() -> None:
    row: Row = {"tp": 8, "pp": 4, "concurrency": 64}
    for backend in (HIERARCHICAL, FLATTENED):
        found = _priced(LAYERS | MESH, row, backend=backend)
        assert unlawful(found) == []
        assert found.time_pp_s[0] > 0


def test_a_timeline_of_each_pass_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {"backend__artifacts__timeline": True}
    for backend, folder in (("analytical", "analytical"), (FLATTENED, "astra_flat")):
        _priced(LAYERS, {"tp": 2, "pp": 2, "concurrency": 8}, backend=backend, **wanted)
        for name in ("prefill", "decode"):
            trace = json.loads((tmp_path / "output/inference" / folder / name / "timeline.json").read_text())
            names = {event["name"] for event in trace["traceEvents"]}
            assert {"pp send", "head"} <= names or {"pp send", "layers"} <= names


def test_a_row_is_the_same_alone_and_in_a_table() -> None:
    rows: list[Row] = [{"tp": tp, "pp": pp, "concurrency": load} for tp, pp, load in ((1, 1, 4), (2, 2, 64), (1, 3, 9))]
    together = _priced(LAYERS, *rows, backend=FLATTENED)
    for number, row in enumerate(rows):
        alone = _priced(LAYERS, row, backend=FLATTENED)
        for name in FIGURES:
            assert getattr(alone, name)[0] == getattr(together, name)[number]


FASTER: tuple[dict[str, Any], ...] = (
    {"hw__network__dimensions__0__bandwidth": 9e11},
    {"hw__network__dimensions__1__bandwidth": 1e11},
    {"hw__network__dimensions__0__latency": 1e-7},
    {"hw__memory__bandwidth": 6e12},
    {"hw__clock": 2.2e9},
)
LAYOUTS = st.sampled_from(
    [
        {"tp": 8},
        {"tp": 2, "pp": 2},
        {"tp": 2, "pp": 3},
        {"pp": 7},
        {"tp": 1, "attention_dp": 4, "num_gpus": 4},
        {"tp": 2, "cp": 2, "num_gpus": 4},
    ]
)


@settings(max_examples=6, deadline=None)
@given(LAYOUTS, st.sampled_from(FASTER), st.sampled_from([1, 7, 61]), st.sampled_from(EVENT_BACKENDS))
def test_a_faster_machine_is_never_slower(layout: Row, faster: dict[str, Any], load: int, backend: str) -> None:
    values = LAYERS | {"model__num_hidden_layers": 7, "backend__network": "fair"}
    slow, fast = (_priced(values, layout | {"concurrency": load}, backend=backend, **more) for more in ({}, faster))
    for name in ("ttft_s", "tpot_s", "request_latency_s"):
        assert getattr(fast, name)[0] <= getattr(slow, name)[0] * (1 + 1e-5), (
            name
        )  # a request that ends sooner brings the next prompt sooner


MORE = (
    ({"workload__prompt_len": 1994}, ("ttft_s", "request_latency_s")),
    ({"model__num_hidden_layers": 9}, FIGURES[:3]),
    ({"model__hidden_size": 8192, "model__head_dim": 128}, FIGURES[:3]),
)


@settings(max_examples=5, deadline=None)
@given(LAYOUTS, st.sampled_from(MORE), st.sampled_from([1, 7, 61]), st.sampled_from(EVENT_BACKENDS))
def test_more_work_is_never_faster(layout: Row, more: tuple[dict[str, Any], tuple[str, ...]], load: int, backend: str) -> None:
    values = LAYERS | {"model__num_hidden_layers": 7, "workload__prompt_len": 997, "backend__network": "fair"}
    little, much = (_priced(values | changes, layout | {"concurrency": load}, backend=backend) for changes in ({}, more[0]))
    for name in more[1]:
        assert getattr(much, name)[0] >= getattr(little, name)[0] * (1 - 1e-5), name


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([1, 2, 7, 13]),
    st.sampled_from([{}, {"pp": 7}, {"tp": 2}, {"tp": 4, "pp": 3}]),
    st.sampled_from([{"concurrency": 1}, {"concurrency": 17}, {"batch_size": 3}, {}, {"request_rate": 0.7, "num_prompts": 13}]),
    st.sampled_from([1, 2, 127]),
    st.sampled_from(EVENT_BACKENDS),
)
def test_rows_of_odd_sizes_hold_what_results_must(layers: int, layout: Row, load: Row, generated: int, backend: str) -> None:
    layout = {name: min(size, layers) if name == "pp" else size for name, size in layout.items()}
    values = {"model__num_hidden_layers": layers, "workload__prompt_len": 997, "workload__decode_len": generated}
    found = _priced(values, layout | load, backend=backend)
    assert unlawful(found) == []
    assert found.step_time_s[0] > 0
