"""What a cluster makes of a job: its fabric, what measured bus bandwidths tell of it, hosts that launch in turn, and fits of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from trials import layouts, priced, scenario

from rapid_dse import calibrate
from rapid_dse.analysis.fit import typical_base
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.simulate.communication import cluster_of, effective_network
from rapid_dse.sweep.cases import group_cases

ROW = {"num_gpus": 32, "tp": 2, "global_batch_size": 256}
CALM = {f"software__{name}": 0.0 for name in ("host_layer", "host_collective_layer", "host_micro_batch", "host_step", "dp_overlap")}


def on(of: Scenario, **cluster: object) -> Scenario:
    """The scenario on a cluster of its own, with GPUs as alike as before."""
    return of.model_copy(update={"cluster": Cluster.model_validate({"name": "mine", "gpu_spread": of.cluster.gpu_spread, **cluster})})


def test_ranks_of_a_host_launch_in_turn() -> None:
    """32 layers of 20 ms a micro-batch, twice as long with tp 2 where eight ranks take eight times as long: 16 micro-batches."""
    calm = CALM | {"software__host_layer": 20e-3}
    of = on(scenario(**calm), host_slowdown=8)
    row = ROW | {"micro_batch_size": 1}
    result = priced(of, row)
    kernels = float((result.time_compute_s + result.time_tp_s)[0])
    assert float(result.time_host_s[0]) + kernels == pytest.approx(
        16 * 32 * 20e-3 * 2, rel=1e-3
    )  # norms are summed over tp once a step beside
    alone = row | {"tp": 1}
    assert priced(of, alone).step_time_s == priced(scenario(**calm), alone).step_time_s  # one rank waits for no other
    inside = {"num_gpus": 8, "tp": 2, "global_batch_size": 64}
    assert priced(of, inside).step_time_s == priced(scenario(**calm), inside).step_time_s  # nor do jobs of one node


def test_each_bucket_of_gradients_waits_for_each_further_rank() -> None:
    """All-reduces alone: 16 ranks, buckets of 1 GB; reduce-scatters of ZeRO 1 do not wait."""
    of = scenario(**CALM, software__gradient_bucket=1e9)
    without, within = (priced(on(of, all_reduce_wait=wait), ROW | {"zero": 0}).time_dp_s[0] for wait in (0, 1e-3))
    sent = 4 * (8.03e9 / 2)  # fp32 gradients of the 8B model on two ranks
    assert within - without == pytest.approx(np.ceil(sent / 1e9) * 15 * 1e-3)
    without, within = (priced(on(of, all_reduce_wait=wait), ROW | {"zero": 1}).time_dp_s[0] for wait in (0, 1e-3))
    assert within == without


def test_rings_alone_and_slow_hops_cost_time() -> None:
    of, row = scenario(**CALM), {"num_gpus": 256, "zero": 0}
    healthy = float(priced(on(of), row).step_time_s[0])
    assert float(priced(on(of, trees=False), row).step_time_s[0]) > healthy
    assert float(priced(on(of, hop_latency="100 us"), row).step_time_s[0]) > healthy


def test_two_gpus_a_card_send_at_half_the_speed() -> None:
    """Groups of a GPU in each of four nodes, two groups a card: what a ring moves, 3/2 of the 4 GB of fp32 gradients, over half a card."""
    of, row = scenario(**CALM), {"num_gpus": 32, "tp": 8, "global_batch_size": 256, "zero": 0}
    card = of.hw.network.dimensions[1]
    seconds = float(priced(on(of, nics_per_gpu=0.5), row).time_dp_s[0])
    assert seconds == pytest.approx(1.5 * 4 * 8.03e9 / 8 / (card.bandwidth * card.utilization / 2), rel=0.05)


class TestBusBandwidth:
    """nccl-tests' figures by nodes, GB/s: two that a cluster's users measured, and laws."""

    FALLING = {8: 95, 16: 50, 32: 27, 64: 13}  # noqa: RUF012
    STEADY = {8: 210, 16: 200, 32: 180, 64: 160}  # noqa: RUF012

    def test_bandwidth_that_falls_as_one_over_nodes_is_that_of_rings(self) -> None:
        found = cluster_of(on(scenario(), allreduce_busbw=self.FALLING))
        assert not found.trees
        # a ring of 512 ranks crosses nodes 64 times a round: 1 GB at 13 GB/s is 154 ms, two rounds; a hop between nodes costs about 1 ms
        assert found.hop_latency == pytest.approx(2 * 511 / 512 * 1e9 / 13e9 / (2 * 64), rel=0.15)

    def test_steady_bandwidth_is_a_share_of_the_fabric(self) -> None:
        of = scenario()
        found = cluster_of(on(of, allreduce_busbw=dict.fromkeys((4, 8, 16), 200)))
        card = of.hw.network.dimensions[1]
        assert 8 * card.bandwidth * card.utilization * found.fabric_efficiency == pytest.approx(200e9, rel=0.12)

    def test_units_and_the_network_that_jobs_meet(self) -> None:
        """By numbers alone GB/s, as an override and as the text of a table's cell."""
        units = {nodes: f"{rate} GB/s" for nodes, rate in self.STEADY.items()}
        cell = ",".join(f"{nodes}:{rate}" for nodes, rate in self.STEADY.items())
        plain, *others = (effective_network(on(scenario(), allreduce_busbw=table)) for table in (self.STEADY, units, f"{{{cell}}}", cell))
        assert others == [plain] * 3
        assert plain.dimensions[0] == scenario().hw.network.dimensions[0]  # the node stays as it is

    @pytest.mark.parametrize(
        ("cluster", "says"),
        [
            ({"allreduce_busbw": {1: 100}}, "expected numbers of nodes from 2 on"),
            ({"allreduce_busbw": {8: -1}}, "allreduce_busbw"),
            ({"allreduce_busbw": {}}, "allreduce_busbw is empty; expected GB/s by number of nodes"),
            ({"allreduce_busbw": {8: 95}, "fabric_efficiency": 0.5}, "follows from allreduce_busbw"),
            ({"fabric_efficiency": 0}, "fabric_efficiency"),
            ({"host_slowdown": 0.5}, "host_slowdown"),
        ],
    )
    def test_refused(self, cluster: dict[str, object], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            on(scenario(), **cluster)


def runs(rows: int = 40) -> pd.DataFrame:
    """Jobs of two models on 16 nodes, half of them on a cluster whose hosts and all-reduces are slow."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "hw.num_gpus": 128,
            "model": rng.choice(["llama3_8b", "llama2_13b"], rows),
            "software": "nanotron",
            "cluster": rng.choice(["nanotron_healthy", "nanotron_degraded"], rows),
            "workload.seq_len": 4096,
            "workload.global_batch_size": 256,
            "parallel.tp": rng.choice([2, 4, 8], rows),
            "parallel.micro_batch_size": rng.choice([1, 2, 4], rows),
            "parallel.zero": rng.choice([0, 1], rows),
            "parallel.recompute": "none",
        }
    )
    seconds = np.empty(rows)
    for group in group_cases(frame):
        of = group.portion.scenario
        fabric = {"fabric_efficiency": 0.7, "hop_latency": 5e-6, "node_skew": 5e-5}
        slow = {"host_slowdown": 6.0, "all_reduce_wait": 1e-4, "trees": False} if of.cluster.name == "nanotron_degraded" else {}
        profile = typical_base(of.software).model_copy(update={"host_layer": 8e-3})
        truth = of.model_copy(update={"software": profile, "cluster": of.cluster.model_copy(update=fabric | slow)})
        seconds[group.rows] = price(truth, group.portion.layouts).step_time_s
    return frame.assign(**{"measured.step_time_s": seconds})


def test_a_fit_tells_clusters_apart_and_from_the_framework(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs().to_csv("runs.csv", index=False)
    names = [f"cluster.nanotron_degraded.{name}" for name in ("host_slowdown", "all_reduce_wait", "fabric_efficiency")]
    names += ["cluster.nanotron_healthy.fabric_efficiency", "host_layer"]
    assert calibrate.main(["runs.csv", "--software", "nanotron", "--out", "mine", "--parameters", ",".join(names)]) == 0
    read = {path.stem: yaml.safe_load(path.read_text()) for path in (tmp_path / "conf/cluster").iterdir()}
    assert read["mine_nanotron_degraded"]["host_slowdown"] == pytest.approx(6.0, rel=0.05)
    assert read["mine_nanotron_degraded"]["all_reduce_wait"] == pytest.approx(1e-4, rel=0.15)
    assert read["mine_nanotron_degraded"]["trees"] is False
    assert read["mine_nanotron_healthy"]["fabric_efficiency"] == pytest.approx(0.7, abs=0.1)
    profile = yaml.safe_load((tmp_path / "conf/software/mine.yaml").read_text())
    assert profile["host"]["host_layer"] == pytest.approx(8e-3, rel=0.05)
    assert {box["cluster"] for box in profile["measured"]} == {"mine_nanotron_degraded", "mine_nanotron_healthy"}
    assert "software=mine cluster=mine_nanotron_degraded or cluster=mine_nanotron_healthy" in capsys.readouterr().out


def test_the_same_clusters_serve_any_framework() -> None:
    for software in ("nanotron", "megatron_lm", "torchtitan"):
        of = scenario(software=software)
        sick = on(of, trees=False, hop_latency="90 us", host_slowdown=5)
        row = layouts({"num_gpus": 256, "tp": 8, "pp": 2, "zero": 1, "global_batch_size": 512})
        assert price(sick, row).step_time_s[0] > price(on(of), row).step_time_s[0]


def test_what_a_cluster_takes_of_the_memory_is_not_usable() -> None:
    """Of 80 GiB; a chip of which less is usable keeps that, and the keys of a scenario read again are the same."""
    gib = 2.0**30
    of = scenario(cluster__memory_taken="10.5 GiB")
    assert of.hw.memory.usable == 69.5 * gib
    assert Scenario.model_validate(of.model_dump()).hw.memory.usable == 69.5 * gib
    assert scenario(cluster__memory_taken="10.5 GiB", hw__memory__usable="60 GiB").hw.memory.usable == 60 * gib
    row = {"num_gpus": 8, "tp": 8, "micro_batch_size": 1, "global_batch_size": 8}
    assert priced(of, row).peak_memory_bytes == priced(scenario(), row).peak_memory_bytes
    with pytest.raises(ValueError, match=r"memory_taken=.* has 8.589934592e\+10 bytes; allowed: less"):
        scenario(cluster__memory_taken="80 GiB")
