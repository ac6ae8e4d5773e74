"""The execution backends: what they agree on where nothing is congested, what congestion and faults add, what they refuse."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astra_stand_in import install
from layout_spread import EVENT_BACKENDS, MIXTURE, SPREAD, Case, case

from rapid_dse.config import Scenario
from rapid_dse.events.backends import price
from rapid_dse.events.cache import FOLDER, MODE_VARIABLE, AstraCache
from rapid_dse.events.runs import Run
from rapid_dse.interconnect.engine import run_graph
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.simulate.slots import host_layer_seconds

HIERARCHICAL, FLATTENED = EVENT_BACKENDS[1:]


def _priced(one: Case, backend: str, **more: Any) -> Priced:
    return price(one.scenario(backend, **more), one.layouts())


def test_a_graph_that_was_run_before_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = case(num_gpus=8, tp=8, sequence_parallel=1, global_batch_size=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MODE_VARIABLE, "CACHE_READWRITE")
    first = float(_priced(one, FLATTENED).step_time_s[0])
    (entry,) = (tmp_path / FOLDER).iterdir()
    assert float(_priced(one, FLATTENED).step_time_s[0]) == first
    cache = AstraCache(tmp_path / FOLDER)
    kept = cache.get(entry.stem)
    assert kept is not None
    cache.put(entry.stem, replace(kept, start_ns=2 * kept.start_ns, end_ns=2 * kept.end_ns, finish_ns=2 * kept.finish_ns))
    assert float(_priced(one, FLATTENED).step_time_s[0]) > 1.5 * first
    entry.write_bytes(b"torn")
    assert float(_priced(one, FLATTENED).step_time_s[0]) == first
    assert f"{entry.name} is damaged" in caplog.text


def test_the_spread_is_wide() -> None:
    assert len({str(one) for one in SPREAD}) >= 50


@pytest.mark.parametrize("one", SPREAD, ids=str)
def test_ideal_links_give_the_closed_forms_step(one: Case) -> None:
    of, layouts = one.scenario("analytical"), one.layouts()
    closed = float(price(of, layouts).step_time_s[0])
    for backend in EVENT_BACKENDS:
        if backend == HIERARCHICAL and not _runs_hierarchically(one, of):
            continue
        found = price(one.scenario(backend, backend__network="ideal"), layouts)
        assert float(found.step_time_s[0]) == pytest.approx(closed, rel=0.02), backend


@pytest.mark.parametrize(("schedule", "pp", "chunks"), [("1f1b", 1, 1), ("1f1b", 4, 1), ("gpipe", 2, 1), ("interleaved_1f1b", 2, 2)])
@pytest.mark.parametrize("backend", EVENT_BACKENDS[1:])
def test_a_step_that_the_host_paces_takes_its_launches_on_any_links(backend: str, schedule: str, pp: int, chunks: int) -> None:
    """What ZeRO 3 gathers hides behind waits for the host: 8 micro-batches follow each other, behind those that other stages' passes take
    before the first and after the last one arrive."""
    settings = {"model__num_hidden_layers": 2 * pp * chunks, "software__dp_overlap": 1.0, "backend__network": "ideal"}
    virtual = {"vpp": chunks} if chunks > 1 else {}
    one = case(schedule, model="vit_base", num_gpus=2 * pp, pp=pp, zero=3, global_batch_size=16, settings=settings, **virtual)
    of = one.scenario(backend)
    launches = 2 * chunks * float(host_layer_seconds(of, one.layouts())[0]) + of.software.host.host_micro_batch
    for bandwidth in ("225 GB/s", "450 GB/s", "1800 GB/s"):
        found = _priced(one, backend, hw__network__dimensions__0__bandwidth=bandwidth)
        expected = of.software.host.host_step + (8 + (pp - 1) / chunks) * launches + float(found.time_optimizer_s[0])
        assert float(found.step_time_s[0]) == pytest.approx(expected, rel=1e-5), bandwidth


# A job of 16 in small racks of 9 given out one by one, of which groups of 8 fill 8; a job of 128 in racks of 72, of which they fill 64.
SMALL_RACKS: dict[str, Any] = {"hw__network__dimensions__0__size": 9, "hw__network__dimensions__0__allocation": 1}
RACKS = [
    (case(hw="gb200", num_gpus=16, tp=8, sequence_parallel=1, global_batch_size=8, settings=SMALL_RACKS), EVENT_BACKENDS),
    (case(hw="gb200", num_gpus=128, tp=2, sequence_parallel=1, pp=4, zero=0, global_batch_size=64), ("hybrid", FLATTENED)),
    (case(hw="gb200", model="qwen3_30b_a3b", num_gpus=128, ep=64, global_batch_size=128), ("hybrid", FLATTENED)),
]


@pytest.mark.parametrize(("one", "backends"), RACKS, ids=[str(one) for one, _ in RACKS])
def test_racks_that_are_filled_in_part_are_the_same_in_every_backend(one: Case, backends: tuple[str, ...]) -> None:
    closed = _priced(one, "analytical")
    for backend in backends:
        found = _priced(one, backend, backend__network="ideal")
        assert float(found.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.02), backend
        aware = _priced(one, backend)  # places that no rank takes change nothing either
        assert float(aware.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.2), backend


def _runs_hierarchically(one: Case, of: Scenario) -> bool:
    """Whether tp and cp fill the first network dimension exactly, or there are none."""
    first, block = of.hw.network.dimensions[0].size or 0, one.degree("tp") * one.degree("cp")
    return block in (1, min(first, one.degree("num_gpus"))) and (block == 1 or of.parallel.order[0] == "tp")


def test_most_of_the_spread_runs_hierarchically() -> None:
    assert sum(_runs_hierarchically(one, one.scenario("analytical")) for one in SPREAD) > len(SPREAD) * 2 / 3


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_terms_add_up_and_memory_is_the_closed_forms(backend: str) -> None:
    one = case(num_gpus=64, tp=8, sequence_parallel=1, pp=4, global_batch_size=16, zero=3)
    found, closed = _priced(one, backend), _priced(one, "analytical")
    step = float(found.step_time_s[0])
    terms = [float(getattr(found, f"time_{term}_s")[0]) for term in TIME_TERMS]
    assert min(terms) >= 0
    assert sum(terms) == pytest.approx(step, rel=1e-9)
    for term in ("compute", "tp", "pp", "dp", "bubble", "optimizer"):
        assert float(getattr(found, f"time_{term}_s")[0]) > 0, term
    for term in MEMORY_TERMS:
        assert getattr(found, f"memory_{term}_bytes")[0] == getattr(closed, f"memory_{term}_bytes")[0]


def test_two_groups_on_one_link_are_slower_together_by_what_the_links_say() -> None:
    """The gradients of both tensor-parallel ranks ride on one ring of links; hierarchical lets one of them stand for both."""
    one = case(num_gpus=8, tp=2, sequence_parallel=1, cp=4, zero=0, global_batch_size=1)
    settings: dict[str, Any] = {"hw__network__dimensions": [RING | {"size": 8}], "backend__streams": 1}
    runs: dict[str, Run] = {}
    flat = price(one.scenario(FLATTENED, **settings), one.layouts(), runs.update)
    above = price(one.scenario(HIERARCHICAL, **settings), one.layouts(), runs.update)
    busy = {name: run.result.links.busy_ns for name, run in runs.items()}
    # what the links carry beyond the layers, of which the block's run shows one
    shared, one_group = (busy["step"] - 32 * busy["block_0_0"]).max() / 1e9, busy["pipeline"].max() / 1e9
    assert shared == pytest.approx(2 * one_group, rel=0.01)
    assert flat.time_dp_s[0] == pytest.approx(shared, rel=0.01)  # the link never rests
    assert one_group <= above.time_dp_s[0] < 1.15 * one_group  # alone, a ring waits for its own last message now and then
    assert flat.step_time_s[0] - above.step_time_s[0] == pytest.approx(flat.time_dp_s[0] - above.time_dp_s[0], rel=0.01)


RING: dict[str, Any] = {
    "topology": "ring",
    "bandwidth": "100 GB/s",
    "latency": "1 us",
    "utilization": 0.9,
    "energy": "10 pJ/bit",
}


def test_flattened_is_slower_than_hierarchical_where_pipelines_and_gradients_share_links() -> None:
    one = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, zero=0, global_batch_size=8)
    overlapped = {"software__dp_overlap": 1.0, "backend__streams": 4}
    flat, above = (_priced(one, backend, **overlapped) for backend in (FLATTENED, HIERARCHICAL))
    assert flat.step_time_s[0] >= above.step_time_s[0] * (1 - 1e-3)


@pytest.mark.parametrize("network", ["congestion_aware", "congestion_unaware", "fair"])
def test_every_network_model_prices_every_backend(network: str) -> None:
    one = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=8)
    closed = float(_priced(one, "analytical").step_time_s[0])
    for backend in EVENT_BACKENDS:
        assert float(_priced(one, backend, backend__network=network).step_time_s[0]) == pytest.approx(closed, rel=0.35), backend


def test_overlap_hides_what_blocking_shows() -> None:
    one = case(num_gpus=16, zero=1, global_batch_size=32)
    blocking, hidden = (_priced(one, FLATTENED, software__dp_overlap=share) for share in (0.0, 1.0))
    assert hidden.time_dp_s[0] < 0.5 * blocking.time_dp_s[0]
    assert hidden.step_time_s[0] < blocking.step_time_s[0]


def test_gradients_are_reduced_once_a_step() -> None:
    runs: dict[str, Run] = {}
    for batch in (16, 64):
        one = case(num_gpus=8, zero=0, global_batch_size=batch)
        price(one.scenario(FLATTENED), one.layouts(), lambda found, batch=batch: runs.update({str(batch): found["step"]}))
    assert runs["16"].result.links.bytes.sum() == runs["64"].result.links.bytes.sum()


def test_zero_3_gathers_every_layer_of_every_pass() -> None:
    one, runs = case(num_gpus=8, zero=3, global_batch_size=16), {}
    price(one.scenario(FLATTENED), one.layouts(), runs.update)
    graph = runs["step"].traced.graph
    gathers = (graph.collective == 2) & (graph.kind == 1) & (graph.rank == 0)
    assert gathers.sum() == 2 * (32 * 2 + 2)  # each micro-batch: 32 layers forward and backward, table and head
    scatters = (graph.collective == 1) & (graph.kind == 1) & (graph.rank == 0)
    assert scatters.sum() == 2 * (32 + 2)


def test_a_switchs_faulty_link_is_found_in_every_part_of_the_network() -> None:
    one = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=8)
    node, rail = [[3, 32, 0.25]], [[3, 39, 0.25]]  # of rank 3: 32 is its node's switch, 36 + 3 that of its rail
    for backend in EVENT_BACKENDS:
        healthy, slow = (float(_priced(one, backend, hw__network__faulty_links=fault).step_time_s[0]) for fault in ([], node))
        assert slow > 1.1 * healthy, backend
        if backend != "hybrid":
            assert float(_priced(one, backend, hw__network__faulty_links=rail).step_time_s[0]) > healthy, backend
    with pytest.raises(ValueError, match="crosses"):
        _priced(one, "hybrid", hw__network__faulty_links=rail)


def test_a_faulty_link_slows_the_ranks_that_cross_it() -> None:
    one = case(num_gpus=16, tp=8, sequence_parallel=1, global_batch_size=8)
    # 16 places, then the two nodes' switches: 16 is the first
    times = [_priced(one, FLATTENED, hw__network__faulty_links=[[3, 16, factor]] if factor < 1 else []) for factor in (1.0, 0.5, 0.25)]
    steps = [float(found.step_time_s[0]) for found in times]
    assert steps[0] < steps[1] < steps[2]
    ring = {"hw__network__dimensions": [RING | {"size": 8}, {**RING, "topology": "switch", "size": None}]}
    inside = [_priced(one, "hybrid", **ring, hw__network__faulty_links=fault) for fault in ([], [[0, 1, 0.5]])]
    assert inside[0].step_time_s[0] < inside[1].step_time_s[0]


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_a_slow_link_slows_the_experts_that_share_it(backend: str) -> None:
    one = case(num_gpus=16, ep=8, global_batch_size=16, settings=MIXTURE)
    healthy, slow = (_priced(one, backend, hw__network__faulty_links=fault) for fault in ([], [[0, 16, 0.25]]))
    assert slow.time_ep_s[0] > 1.5 * healthy.time_ep_s[0] > 0
    closed = _priced(one, "analytical")
    assert healthy.time_ep_s[0] == pytest.approx(closed.time_ep_s[0], rel=0.35)


# Fully connected within a node, where groups use all links at once.
ALL_LINKS: dict[str, Any] = {
    "hw__network__dimensions": [RING | {"size": 8, "topology": "fully_connected"}, RING | {"size": None, "topology": "switch"}]
}


@pytest.mark.parametrize(
    ("backend", "changes", "settings", "words"),
    [
        ("analytical", {}, {"hw__network__faulty_links": [[0, 1, 0.5]]}, ["faulty_links", FLATTENED]),
        ("hybrid", {}, {"hw__network__faulty_links": [[0, 18, 0.5]]}, ["faulty_links", FLATTENED]),
        (FLATTENED, {}, {"hw__network__faulty_links": [[0, 1, 0.5]]}, ["no link", "switches are devices"]),
        (FLATTENED, {}, {"hw__network__faulty_links": [[0, 99999, 0.5]]}, ["no link"]),
        ("hybrid", {}, {"backend__network": "ideal", "hw__network__faulty_links": [[0, 16, 0.5]]}, ["ideal", "congestion_aware"]),
        (FLATTENED, {}, {"backend__network": "congestion_unaware", "hw__network__faulty_links": [[0, 16, 0.5]]}, ["congestion_aware"]),
        ("hybrid", {}, {"hw__network__faulty_links": [[0, 16, 0]]}, ["no way round", "above 0", FLATTENED]),
        (HIERARCHICAL, {}, {"hw__network__faulty_links": [[0, 16, 0]]}, ["no way round", "above 0", FLATTENED]),
        (HIERARCHICAL, {"tp": 4}, {}, ["exactly tp and cp", "hybrid"]),
        (HIERARCHICAL, {"tp": 16, "num_gpus": 32, "global_batch_size": 16}, {}, ["exactly tp and cp", FLATTENED]),
        ("hybrid", {}, {"backend__engine": "astrasim", "backend__network": "fair"}, ["ASTRA-sim", "congestion_aware"]),
        ("hybrid", {}, {"backend__engine": "astrasim", "backend__streams": 2}, ["stream"]),
        (
            FLATTENED,
            {},
            ALL_LINKS | {"backend__engine": "astrasim", "backend__astrasim__binary": "/bin/true"},
            ["run all-reduce direct", "builtin"],
        ),
        (
            FLATTENED,
            {"ep": 2},
            MIXTURE | {"backend__engine": "astrasim", "backend__astrasim__binary": "/bin/true"},
            ["run all-to-all direct", "builtin"],
        ),
        (
            HIERARCHICAL,
            {"tp": 2, "cp": 4},
            ALL_LINKS | {"backend__engine": "astrasim", "backend__astrasim__binary": "/bin/true"},
            ["run all-reduce direct", "builtin"],
        ),
        ("hybrid", {}, {"backend__engine": "astrasim", "backend__astrasim__binary": "/no/such/binary"}, ["/no/such/binary"]),
        (
            "hybrid",
            {"tp": 1, "sequence_parallel": 0, "global_batch_size": 16},
            {"backend__engine": "astrasim"},
            ["no ASTRA-sim binary", "ASTRA_SIM_BIN"],
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_use_instead(
    backend: str, changes: dict[str, int], settings: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something ran before the refusal")

    monkeypatch.setattr("rapid_dse.interconnect.engine.run_graph", never)
    monkeypatch.delenv("ASTRA_SIM_BIN", raising=False)
    model = {key: value for key, value in settings.items() if key.startswith("model")}
    one = case(settings=model, **({"num_gpus": 16, "tp": 8, "sequence_parallel": 1, "global_batch_size": 8} | changes))
    with pytest.raises(ValueError, match=words[0]) as refusal:
        _priced(one, backend, **settings)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("topology", ["mesh", "torus"])
def test_networks_without_closed_form_run_on_the_engine(topology: str) -> None:
    one = case(num_gpus=16, tp=8, sequence_parallel=1, global_batch_size=8)
    changes = {"hw__network__dimensions": [RING | {"size": 8, "topology": topology}, {**RING, "topology": "switch", "size": None}]}
    with pytest.raises(ValueError, match="no closed form"):
        _priced(one, "analytical", **changes)
    found = [float(_priced(one, backend, **changes).step_time_s[0]) for backend in EVENT_BACKENDS]
    assert max(found) < 1.2 * min(found)


def test_ranks_that_stand_elsewhere_cost_more() -> None:
    one = case(num_gpus=64, tp=8, sequence_parallel=1, pp=8, global_batch_size=16)
    inside = _priced(one, FLATTENED)
    outside = _priced(one, FLATTENED, parallel__order=["pp", "tp", "cp", "ep", "dp"])
    assert outside.time_tp_s[0] > 3 * inside.time_tp_s[0]
    assert outside.step_time_s[0] > inside.step_time_s[0]


def test_a_large_graph_and_its_run_have_every_rank() -> None:
    one, runs = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=4), {}
    price(one.scenario(FLATTENED), one.layouts(), runs.update)
    done: Run = runs["step"]
    assert done.traced.graph.ranks == 32
    done.traced.graph.check()
    assert (done.result.end_ns >= done.result.start_ns).all()
    again = run_graph(done.traced.graph, done.topology, _system(one, done), "congestion_aware")
    assert np.array_equal(again.end_ns, done.result.end_ns)


def _system(one: Case, done: Run) -> Any:
    from rapid_dse.events.runs import system_of

    return system_of(one.scenario(FLATTENED), done.topology)


# One dimension each, since that is all that the real program's congestion-aware network has.
ON_ASTRA_SIM = [
    ("hybrid", case(num_gpus=16, tp=8, sequence_parallel=1, pp=2, global_batch_size=4)),
    ("hybrid", case(num_gpus=8, tp=2, cp=4, global_batch_size=4, recompute=2)),
    (HIERARCHICAL, case(num_gpus=16, tp=8, pp=2, global_batch_size=4)),
    (HIERARCHICAL, case("gpipe", num_gpus=8, pp=4, global_batch_size=8)),
    (FLATTENED, case(num_gpus=8, tp=2, sequence_parallel=1, pp=2, global_batch_size=4, zero=3)),
    (FLATTENED, case("zero_bubble", num_gpus=8, tp=2, pp=4, global_batch_size=4)),
    ("hybrid", case(num_gpus=8, tp=2, sequence_parallel=1, ep=4, global_batch_size=8, settings=MIXTURE)),
    (FLATTENED, case(num_gpus=8, cp=2, pp=2, ep=4, global_batch_size=8, settings=MIXTURE)),
    (FLATTENED, case("interleaved_1f1b", num_gpus=8, tp=2, sequence_parallel=1, cp=2, pp=2, vpp=2, global_batch_size=2, zero=0)),
]


def _same_on_astra_sim(backend: str, one: Case, network: str, binary: Path | None) -> None:
    settings = {"backend__network": network, "backend__astrasim__binary": binary and str(binary)}
    built_in, astra = (_priced(one, backend, backend__engine=engine, **settings) for engine in ("builtin", "astrasim"))
    for term in TIME_TERMS:
        assert getattr(built_in, f"time_{term}_s")[0] == getattr(astra, f"time_{term}_s")[0], term
    assert built_in.step_time_s[0] == astra.step_time_s[0]


@pytest.mark.skipif("ASTRA_SIM_BIN" not in os.environ, reason="ASTRA_SIM_BIN names no binary: build ASTRA-sim's congestion-aware backend")
@pytest.mark.parametrize(("backend", "one"), ON_ASTRA_SIM, ids=str)
def test_astra_sim_gives_the_same_times(backend: str, one: Case) -> None:
    _same_on_astra_sim(backend, one, "congestion_aware", None)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands in for ASTRA-sim's two binaries."""
    pytest.importorskip("chakra")
    return {network: install(tmp_path_factory.mktemp(network), network) for network in ("congestion_aware", "congestion_unaware")}


@pytest.mark.parametrize(("backend", "one"), ON_ASTRA_SIM, ids=str)
def test_what_astra_sim_is_given_and_gives_back_is_the_whole_run(backend: str, one: Case, programs: dict[str, Path]) -> None:
    """The same times come out of the files, by way of a program that knows nothing but them."""
    network = "congestion_unaware" if one.schedule == "gpipe" else "congestion_aware"
    _same_on_astra_sim(backend, one, network, programs[network])
    calls = programs[network].parent / "calls"
    runs = [line for line in calls.read_text().splitlines() if not line.startswith("4 ranks, 4 nodes")]  # the question what it is
    calls.write_text("")
    assert len(runs) == (2 if backend == HIERARCHICAL and one.degree("tp") > 1 else 1)


def test_a_binary_that_has_not_the_network_is_refused_before_anything_runs(
    programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's congestion-aware program: networks of several dimensions, and faulty links of one that it would ignore."""
    program, one = programs["congestion_aware"], case(num_gpus=16, tp=8, sequence_parallel=1, global_batch_size=8)
    astra = {"backend__engine": "astrasim", "backend__astrasim__binary": str(program)}
    flat = {"hw__network__dimensions": [RING | {"size": 16}]}
    monkeypatch.setattr("rapid_dse.events.runs.assemble", None)
    with pytest.raises(ValueError, match=r"a network of 2 dimensions: .*does not run one of two"):
        _priced(one, FLATTENED, **astra)
    for backend in ("hybrid", FLATTENED):
        # in hybrid the first block, ranks 0 to 7, is healthy
        with pytest.raises(ValueError, match=r"faulty_links: .* ignores them, as upstream's does"):
            _priced(one, backend, **astra, **flat, hw__network__faulty_links=[[8, 9, 0.25]])


def _link_bytes(one: Case, **settings: Any) -> float:
    runs: dict[str, Run] = {}
    price(one.scenario(FLATTENED, **settings), one.layouts(), runs.update)
    return float(runs["step"].result.links.bytes.sum())


def test_what_switches_add_up_takes_its_own_bytes_of_the_engines_links() -> None:
    """All-reduces of 8 ranks in a node put 9/8 of a buffer on links, at 81 % of the bandwidth, where a ring puts 2 · 7/8; of 4 nodes one
    buffer at 81 % for a ring's 2 · 3/4."""
    inside = case(num_gpus=8, tp=8, global_batch_size=1, settings={"model__num_hidden_layers": 2})
    switched, ring = (_link_bytes(inside, hw__network__dimensions__0__in_network_reduction=on) for on in (True, False))
    assert switched / ring == pytest.approx(9 / 8 / 0.81 / (2 * 7 / 8), rel=1e-3)
    across = case(num_gpus=4, zero=0, global_batch_size=4, settings={"model__num_hidden_layers": 2})
    node, fabric = RING | {"size": 1}, RING | {"topology": "switch", "size": None}
    switched, ring = (
        _link_bytes(across, hw__gpus_per_node=1, hw__network__dimensions=[node, fabric | {"in_network_reduction": on}])
        for on in (True, False)
    )
    assert switched / ring == pytest.approx(1 / 0.81 / (2 * 3 / 4), rel=1e-3)


def test_what_crosses_leaves_is_slower_by_the_oversubscription() -> None:
    """Two stages of 32 GPUs, a leaf switch each, whose sends cross at once: by eight links up in place of 32, four follow each other."""
    settings = {"model__num_hidden_layers": 2, "parallel__order": ["tp", "cp", "ep", "dp", "pp"]}
    one = case(num_gpus=64, pp=2, global_batch_size=32, settings=settings)
    tree = RING | {"size": None, "topology": "fat_tree"}
    wide, narrow = (
        float(_priced(one, FLATTENED, hw__network__dimensions=[tree | {"oversubscription": over}]).step_time_s[0]) for over in (1, 4)
    )
    assert narrow - wide == pytest.approx(3 * 8192 * 4096 * 2 / (100e9 * 0.9), rel=0.01)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_a_buffer_of_any_size_is_sent_once(layers: int) -> None:
    """ASTRA-sim cuts a buffer in two by whole bytes and sends a third such part where a byte is left."""
    one = case(num_gpus=8, zero=0, global_batch_size=8, settings={"model__num_hidden_layers": layers, "model__vocab_size": 1024})
    weights = layers * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 1024 * 4096
    # 8 ranks send 2 · 7/8 of the gradients each, up to the switch and down
    ring = _link_bytes(one, hw__network__dimensions__0__in_network_reduction=False)
    assert ring == pytest.approx(2 * 8 * 2 * 7 / 8 * 4 * weights, rel=1e-3)


def test_backends_agree_on_sums_in_a_fabrics_switches() -> None:
    """One reduction of all gradients, so that the call's size is the same everywhere; with it in the switches a step is shorter."""
    one = case(num_gpus=32, tp=8, zero=0, global_batch_size=8, settings={"software__gradient_bucket": 1e12})
    node, fabric = RING | {"topology": "switch", "size": 8}, RING | {"topology": "switch", "size": None, "bandwidth": "10 GB/s"}
    steps = {}
    for on in (True, False):
        network = {"hw__network__dimensions": [node, fabric | {"in_network_reduction": on}]}
        closed = float(_priced(one, "analytical", **network).step_time_s[0])
        for backend in EVENT_BACKENDS:
            found = _priced(one, backend, backend__network="ideal", **network)
            assert float(found.step_time_s[0]) == pytest.approx(closed, rel=0.02), backend
        steps[on] = closed
    # 1 / 0.81 of a buffer in place of 2 · 3/4 through each card, of an eighth of the model in fp32
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 129_024 * 4096
    assert steps[False] - steps[True] == pytest.approx((1.5 - 1 / 0.81) * weights / 8 * 4 / 9e9, rel=0.05)
