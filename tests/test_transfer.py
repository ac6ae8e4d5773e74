"""What transfers put on each network dimension, counted hop by hop; what hides behind what; energy by the dimension that a byte crosses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from test_closed_form import NODES, TOPOLOGIES, span
from trials import layouts, legal, price, priced, random_layouts, scenario

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.cost.overlap import Window, exposed
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.parallel.layouts import Layouts, broken_rules

ONE = np.ones(1)


def crossed(ranks: Sequence[int], sizes: Sequence[int], closed: bool) -> list[float]:
    """Hops between neighbours in ``ranks`` that cross each dimension, over the number of hops; ``closed`` adds the one that ends a ring."""
    hops = list(zip(ranks, ranks[1:] + ranks[:1] if closed else ranks[1:], strict=False))
    counts = [0] * len(sizes)
    for a, b in hops:
        inside = int(np.prod(sizes))
        for level in reversed(range(len(sizes))):
            inside //= sizes[level]
            if a // inside != b // inside:
                counts[level] += 1
                break
    return [count / len(hops) for count in counts]


@pytest.mark.parametrize("sizes", [(8, 1), (8, 4), (1, 8), (4, 2)])
class TestBytesOfAGroup:
    """A group that fills ``sizes`` places of each dimension, rank by rank."""

    def test_ring(self, sizes: tuple[int, int]) -> None:
        ranks, count = list(range(sizes[0] * sizes[1])), sizes[0] * sizes[1]
        moved = transfer.all_gather(1e9, span(*sizes), NODES)
        flow = 1e9 * (count - 1) / count
        np.testing.assert_allclose(moved.sent[:, 0], [flow * share for share in crossed(ranks, sizes, closed=True)])
        twice = transfer.all_reduce(1e9, span(*sizes), NODES)
        np.testing.assert_allclose(twice.sent, 2 * moved.sent)

    def test_pipeline(self, sizes: tuple[int, int]) -> None:
        ranks = list(range(sizes[0] * sizes[1]))
        moved = transfer.send_to_next(1e6, span(*sizes), NODES)
        np.testing.assert_allclose(moved.sent[:, 0], [1e6 * share for share in crossed(ranks, sizes, closed=False)])

    def test_all_to_all(self, sizes: tuple[int, int]) -> None:
        count = sizes[0] * sizes[1]
        inside = sum(1 for peer in range(1, count) if peer < sizes[0])
        moved = transfer.all_to_all(1e9, span(*sizes), NODES)
        np.testing.assert_allclose(moved.sent[:, 0], [1e9 * inside / count, 1e9 * (count - 1 - inside) / count])


def test_a_switch_that_reduces_carries_a_buffer_once() -> None:
    machine, size = TOPOLOGIES["in_switch"], 1e9
    moved = transfer.all_reduce(size, span(8, 1), machine)
    assert moved.sent[0, 0] == pytest.approx(size * (1 + 1 / 8))


def test_a_fabric_that_reduces_carries_each_ones_share_once() -> None:
    """16 nodes of 8: the ring within a node, then each GPU's eighth up once, and the sum down."""
    moved = transfer.all_reduce(1e9, span(8, 16), TOPOLOGIES["in_fabric"])
    np.testing.assert_allclose(moved.sent[:, 0], [2 * 7 / 8 * 1e9, 1e9 / 8])
    # levels of 4 and 4 beyond nodes of one: a switch of the lower level hands one buffer on for the four below it
    moved = transfer.all_reduce(1e9, span(1, 4, 4), TOPOLOGIES["everywhere"])
    np.testing.assert_allclose(moved.sent[:, 0], [0.0, 1e9, 1e9 / 4])


@pytest.mark.parametrize("machine", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("run", [transfer.all_gather, transfer.all_reduce, transfer.all_to_all, transfer.send_to_next, transfer.pass_round])
def test_a_port_is_taken_for_no_longer_than_the_transfer_takes(run: Any, machine: Any) -> None:
    for members in ((2.0,), (8.0,), (2.0, 4.0), (8.0, 4.0), (1.0, 4.0)):
        group = span(*members, *[1.0] * (len(machine.dimensions) - len(members)))
        for size in (1e3, 1e6, 1e9):
            moved = run(size, group, machine)
            assert (moved.busy <= moved.seconds * (1 + 1e-12)).all()
            assert (moved.busy >= 0).all()


def one(seconds: float, busy: float) -> Transfer:
    return Transfer(np.array([seconds]), np.zeros((1, 1)), np.array([[busy]]))


@pytest.mark.parametrize(
    ("seconds", "busy", "share", "other", "shown"),
    [
        (8, 8, 1.0, 0, 0),  # 8 s hide in 10
        (12, 12, 1.0, 0, 2),
        (8, 8, 1.0, 6, 4),  # another transfer takes the port for 6 of the 10 s: 4 are left
        (8, 2, 1.0, 6, 0),  # mostly latency: 2 s of the port fit into the 4 that are left
        (8, 8, 0.5, 6, 6),  # half of the free 4 s
        (8, 8, 1.0, 12, 8),  # the port is never free
    ],
)
def test_what_shows_of_a_transfer_behind_ten_seconds(seconds: float, busy: float, share: float, other: float, shown: float) -> None:
    window = Window(10 * ONE, other * np.ones((1, 1)))
    assert exposed(one(seconds, busy), share, window)[0] == pytest.approx(max(0.0, shown))


class TestNoCardCarriesMoreThanItCan:
    """Mixtral 8x7B on 128 H100 with gathers of weights, ring attention and all-to-alls behind the same computation."""

    HIDDEN, LAYERS, KV_WIDTH, EXPERT, EXPERTS, CHOSEN, SEQ, NODE = 4096, 32, 1024, 14336, 8, 2, 8192, 8

    @pytest.fixture
    def of(self) -> Scenario:
        return scenario(model="mixtral_8x7b", software="megatron_lm", workload__seq_len=self.SEQ)

    def over_nodes(self, stride: int, count: int) -> float:
        """Share of a ring's hops that leave a node: ``count`` ranks, ``stride`` apart."""
        ranks = [member * stride for member in range(count)]
        return (
            sum(a // self.NODE != b // self.NODE for a, b in zip(ranks, ranks[1:] + ranks[:1], strict=True)) / count if count > 1 else 0.0
        )

    def sent(self, row: dict[str, int], gradient: int) -> float:
        """Bytes that the mean GPU's card sends to other nodes in a step, at least: layers alone, without recomputation."""
        tp, cp, dp, ep, etp = (row[name] for name in ("tp", "cp", "dp", "ep", "expert_tp"))
        shared, alike = cp * dp, tp * cp * dp // (etp * ep)  # ranks with the same dense weights, and with the same part of the same experts
        dense = self.HIDDEN * (2 * self.HIDDEN + 2 * self.KV_WIDTH) / tp
        experts = self.EXPERTS / ep * 3 * self.HIDDEN * self.EXPERT / etp
        gathers = [(dense, shared, tp), (experts, alike, etp * ep)]
        each = sum(
            size * (2 * 2 + gradient) * (count - 1) / count * self.over_nodes(stride, count) for size, count, stride in gathers
        )  # gathered in 16 bits forward and backward, gradients scattered
        tokens = row["micro_batch_size"] * self.SEQ / cp
        keys = tokens * 2 * (self.KV_WIDTH / tp) * 2
        ring = 3 * (cp - 1) * keys * self.over_nodes(tp, cp)
        outside = sum(member * etp // self.NODE != 0 for member in range(ep)) / ep
        rows = tokens / (tp if row["sequence_parallel"] else 1) * self.CHOSEN * self.HIDDEN * 2
        routed = 4 * rows * outside
        return self.LAYERS * row["num_micro_batches"] * (each + ring + routed)

    def test_step_is_no_shorter_than_its_card_is_busy(self, of: Scenario) -> None:
        every = random_layouts(of, 128, 512, 100_000)
        table = every.take((every.pp == 1) & (every.zero == 3) & (every.cp * every.tp <= self.NODE * 2))
        assert len(table) > 100
        names = ("tp", "cp", "dp", "ep", "expert_tp", "micro_batch_size", "sequence_parallel", "num_micro_batches")
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(getattr(table, name).tolist() for name in names), strict=True)]
        dtype = of.software.precision.reduce_dtype or of.software.precision.gradient_dtype
        bytes_ = np.array([self.sent(row, {"fp32": 4, "bf16": 2, "fp16": 2}[dtype]) for row in rows])
        fabric = of.hw.network.dimensions[1]
        rate = fabric.bandwidth * fabric.utilization * of.cluster.fabric_efficiency
        assert (price(of, table).step_time_s >= bytes_ / rate).all()

    @pytest.mark.parametrize("backend", ["analytical", "hybrid", "full_astrasim_flattened"])
    def test_not_even_on_links_where_nothing_contends(self, backend: str) -> None:
        hiding = {"software__dp_overlap": 1.0, "software__cp_overlap": 1.0, "model__num_hidden_layers": self.LAYERS}
        row = {"tp": 8, "cp": 2, "dp": 8, "ep": 4, "micro_batch_size": 1, "sequence_parallel": False}
        of = scenario(model="mixtral_8x7b", workload__seq_len=self.SEQ, backend__name=backend, backend__network="ideal", **hiding)
        found = priced(of, {"num_gpus": 128, "zero": 3, "global_batch_size": 16, **row})
        fabric = of.hw.network.dimensions[1]
        rate = fabric.bandwidth * fabric.utilization * of.cluster.fabric_efficiency
        assert found.step_time_s[0] >= self.sent({**row, "expert_tp": 8, "num_micro_batches": 2}, gradient=4) / rate


class TestEnergy:
    """What the network adds to a step's energy: with costs of bytes alone, and of one dimension at a time."""

    @staticmethod
    def joules(of: Scenario, table: Layouts, inner: float, outer: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A GPU's energy of a step on the network alone, where a byte within a node costs ``inner`` J and one between nodes ``outer``."""
        spent = []
        for prices in ((inner, outer), (0.0, 0.0)):
            dimensions = tuple(d.model_copy(update={"energy": e}) for d, e in zip(of.hw.network.dimensions, prices, strict=True))
            network = of.hw.network.model_copy(update={"dimensions": dimensions})
            hw = of.hw.model_copy(update={"energy": of.hw.energy.model_copy(update={"tdp": 1e30}), "network": network})
            spent.append(price(of.model_copy(update={"hw": hw}), legal(of, table)).energy_j / table.num_gpus)
        return spent[0] - spent[1]

    def test_gradients_of_a_node_stay_in_it(self) -> None:
        of = scenario(model="llama3_1_8b", software="megatron_lm")
        table = layouts({"num_gpus": 8, "tp": 1, "zero": 0, "global_batch_size": 8})
        # 8.03e9 fp32 gradients, summed around a ring of 8 or in the node's switch; at 10 pJ/bit: 1.125 or 1.75 times 32.1 GB
        spent = self.joules(of, table, inner=8 * 10e-12, outer=1.0)[0]
        whole = 8.03e9 * 4 * 8 * 10e-12
        assert whole * 1.125 * 0.98 < spent < whole * 1.75 * 1.02

    def test_a_byte_costs_what_its_dimension_does_whichever_parallelism_sends_it(self) -> None:
        of = scenario(model="llama3_1_8b", software="megatron_lm", workload__seq_len=4096)
        every = {
            "tp": {"tp": 8, "zero": 0, "global_batch_size": 8},
            "cp": {"cp": 8, "zero": 0, "global_batch_size": 8},
            "dp": {"zero": 0, "global_batch_size": 8},
            "pp": {"pp": 8, "zero": 0, "global_batch_size": 8},
        }
        for name, row in every.items():
            assert self.joules(of, layouts({"num_gpus": 8, **row}), inner=0.0, outer=1.0)[0] == pytest.approx(0, abs=1e-6), name
            # one GPU a node: all of it is between nodes
            lone = of.model_copy(update={"hw": of.hw.model_copy(update={"network": one_a_node(of), "gpus_per_node": 1})})
            assert self.joules(lone, layouts({"num_gpus": 8, **row}), inner=1.0, outer=0.0)[0] == pytest.approx(0, abs=1e-6), name

    def test_tensor_parallel_over_two_nodes(self) -> None:
        of = scenario(model="llama3_1_8b", software="megatron_lm", model__num_key_value_heads=16, workload__seq_len=4096)
        row = {"num_gpus": 16, "tp": 16, "zero": 0, "global_batch_size": 1, "sequence_parallel": True, "recompute": "none"}
        # a layer has 4 gathers and 4 scatters of 4096 x 4096 x 2 bytes and 2 gathers more for weight gradients; 15/16 of a buffer passes
        # each link of the ring, and 2 of its 16 hops lie between the nodes
        layers = 32 * (4 + 4 + 2) * 4096 * 4096 * 2 * 15 / 16 * 2 / 16
        spent = self.joules(of, layouts(row), inner=0.0, outer=1.0)[0]
        assert 0.999 * layers < spent < 1.1 * layers  # embedding, head and loss are beside the layers

    def test_zero_three_gathers_and_recomputation_are_counted(self) -> None:
        of = scenario(model="llama3_1_8b", software="torchtitan", workload__seq_len=4096)
        plain, sharded = (
            self.joules(of, layouts({"num_gpus": 8, "global_batch_size": 8, "zero": zero}), inner=1.0, outer=0.0)[0] for zero in (0, 3)
        )
        gathers = 2 * 32 * 218_112_000 * 2 * 7 / 8  # forward and backward, 218 million parameters a layer in 16 bits
        assert sharded - plain > 0.9 * gathers - 1.75 * 8.03e9 * 4
        full, selective = (
            self.joules(of, layouts({"num_gpus": 8, "tp": 8, "global_batch_size": 8, "recompute": mode}), inner=1.0, outer=0.0)[0]
            for mode in ("full", "selective")
        )
        # full recomputation runs a layer's two gathers and two scatters once more, and keeps what it gathers for the weight gradients
        again = 8 * 32 * (2 + 2 - 2) * 4096 * 4096 * 2 * 7 / 8
        assert full - selective == pytest.approx(again, rel=0.02)


def one_a_node(of: Scenario) -> Any:
    """The scenario's network with one GPU a node."""
    inner, outer = of.hw.network.dimensions
    return of.hw.network.model_copy(update={"dimensions": (inner.model_copy(update={"size": 1}), outer)})


class TestTheHostSetsThePace:
    """Small micro-batches, whose launches take longer than their kernels."""

    SMALL: ClassVar[dict[str, int]] = {
        "model__hidden_size": 3072,
        "model__num_hidden_layers": 24,
        "model__num_attention_heads": 24,
        "model__num_key_value_heads": 24,
        "model__intermediate_size": 8192,
        "model__vocab_size": 32000,
    }

    @pytest.mark.parametrize("software", ["megatron_lm", "nemo", "torchtitan", "nanotron", "llm_foundry", "megatron_deepspeed"])
    def test_faster_memory_links_and_fewer_tokens_are_no_slower(self, software: str) -> None:
        first = scenario(model="llama", software=software, workload__seq_len=512, **self.SMALL)
        table = random_layouts(first, 64, 256, 800)
        slow = price(first, table).step_time_s
        memory = first.hw.memory.bandwidth
        for change in (
            {"workload__seq_len": 256},
            {"hw__memory__bandwidth": 4 * memory},
            {"hw__clock": 1.5 * first.hw.clock},
            {"hw__network__dimensions__0__bandwidth": 900e9},
            {"hw__network__dimensions__1__bandwidth": 100e9},
        ):
            of = scenario(model="llama", software=software, **{"workload__seq_len": 512, **self.SMALL, **change})
            possible = broken_rules(table, of)[0] < 0
            # the exceptions of docs/physics.md: schedules that run weight gradients by themselves
            rows = table.take(possible)
            slack = np.full(len(rows), 1e-9)
            for name, more in (("zero_bubble", 5e-5), ("zb_v", 1e-2), ("zb_2p", 1e-2), ("dualpipe_v", 1.5e-2)):
                slack[rows.schedule == SCHEDULES.index(name)] = more
            assert (price(of, rows).step_time_s <= slow[possible] * (1 + slack)).all(), change

    @pytest.mark.parametrize("software", ["megatron_lm", "torchtitan", "nanotron", "llm_foundry"])
    def test_faster_memory_and_fewer_tokens_are_no_slower(self, software: str) -> None:
        rows = [{"global_batch_size": 512, "micro_batch_size": size, "zero": zero} for size in (1, 4) for zero in (0, 1)]
        times = []
        for seq_len, terabytes in ((512, 3), (256, 3), (128, 3), (128, 6), (128, 12)):
            of = scenario(model="llama", software=software, workload__seq_len=seq_len, hw__memory__bandwidth=terabytes * 1e12, **self.SMALL)
            times.append(priced(of, *rows).step_time_s)
        for slower, faster in pairwise(times):
            assert (faster <= slower * (1 + 1e-9)).all()
