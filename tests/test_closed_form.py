"""Collectives in closed form: figures worked by hand, and laws that hold on every topology."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import closed_form as cf
from rapid_dse.interconnect.nccl import Nccl, Protocol
from rapid_dse.parallel.placement import Floats, place
from rapid_dse.parallel.span import Span

COLLECTIVES = (cf.all_reduce, cf.all_gather, cf.reduce_scatter, cf.all_to_all, cf.send_recv, cf.broadcast)
FREE = Protocol(0.0, 0.0, 1.0, 0.0)
BANDWIDTH_ONLY = Nccl(FREE, FREE, FREE, FREE, tree=0.8, switch_reduction=0.9, switch_start=0.0, message=0.0)


def dimension(topology: str, size: int | None, bandwidth: float, **changes: Any) -> dict[str, Any]:
    return {"topology": topology, "size": size, "bandwidth": bandwidth, "latency": 2e-6, "utilization": 1.0, "energy": 0.0, **changes}


def network(*dimensions: dict[str, Any], **changes: Any) -> Network:
    return Network.model_validate({"dimensions": dimensions, **changes})


def span(*members: float) -> Span:
    return Span(tuple(np.asarray([float(m)]) for m in members), tuple(np.ones(1) for _ in members))


NODES = network(dimension("switch", 8, 100e9), dimension("switch", None, 10e9))
TOPOLOGIES = {
    "switch": NODES,
    "in_switch": network(dimension("switch", 8, 100e9, in_network_reduction=True), dimension("switch", None, 10e9)),
    "in_fabric": network(dimension("switch", 8, 100e9), dimension("switch", None, 10e9, in_network_reduction=True)),
    "everywhere": network(
        dimension("switch", 8, 100e9, in_network_reduction=True),
        dimension("switch", 4, 20e9, in_network_reduction=True),
        dimension("fat_tree", None, 10e9, in_network_reduction=True),
    ),
    "fully_connected": network(dimension("fully_connected", 8, 140e9), dimension("switch", None, 10e9)),
    "ring": network(dimension("ring", 8, 100e9), dimension("ring", 8, 20e9)),
    "cabled": network(dimension("switch", 8, 150e9, cabling=[0.2, 0.3, 0.6, 0.3, 0.3, 0.6, 1.0]), dimension("switch", None, 10e9)),
    "hierarchy": network(dimension("fully_connected", 2, 100e9), dimension("switch", 4, 20e9), dimension("fat_tree", None, 10e9)),
}


def without_latency(machine: Network) -> Network:
    return machine.model_copy(update={"dimensions": tuple(part.model_copy(update={"latency": 0.0}) for part in machine.dimensions)})


def seconds(run: Any, size: float, group: Span, machine: Network) -> float:
    return float(run(size, group, without_latency(machine), BANDWIDTH_ONLY)[0])


def test_ring_of_eight() -> None:
    assert seconds(cf.all_reduce, 1e9, span(8, 1), NODES) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)
    assert seconds(cf.all_gather, 1e9, span(8, 1), NODES) == pytest.approx(7 / 8 * 1e9 / 100e9)
    assert seconds(cf.reduce_scatter, 1e9, span(8, 1), NODES) == pytest.approx(7 / 8 * 1e9 / 100e9)
    assert seconds(cf.all_to_all, 1e9, span(8, 1), NODES) == pytest.approx(7 / 8 * 1e9 / 100e9)
    assert seconds(cf.send_recv, 1e9, span(8, 1), NODES) == pytest.approx(1e9 / 100e9)
    assert seconds(cf.broadcast, 1e9, span(8, 1), NODES) == pytest.approx(1e9 / 100e9)


def test_racks_of_72_that_groups_of_powers_of_two_fill_to_64() -> None:
    racks = network(dimension("switch", 72, 900e9, allocation=4), dimension("switch", None, 10e9))
    placed = place({"tp": [1, 8], "dp": [256, 32], "ep": [64, 1]}, ("tp", "cp", "ep", "dp", "pp"), racks)
    # Of all 256 ranks 64 a rack send out on cards of their own: 640 GB/s; a rack's border across groups of 8 would leave 8 cards, 80 GB/s.
    gathered = cf.all_gather(1e9, placed.gradient, without_latency(racks), BANDWIDTH_ONLY)
    assert gathered[0] == pytest.approx(255 / 256 * 1e9 / 640e9)
    # each tensor-parallel rank's 32 replicas lie 8 to a rack
    assert gathered[1] == pytest.approx(31 / 32 * 1e9 / 80e9)
    # 64 experts' ranks are inside a rack, and nothing that they exchange leaves it
    exchanged = cf.all_to_all(1e9, placed.ep, without_latency(racks), BANDWIDTH_ONLY)
    assert exchanged[0] == pytest.approx(63 / 64 * 1e9 / 900e9)


def test_two_nodes_of_eight_cross_with_all_their_cards() -> None:
    assert seconds(cf.all_reduce, 1e9, span(8, 2), NODES) == pytest.approx(2 * 15 / 16 * 1e9 / 80e9)
    assert seconds(cf.all_gather, 1e9, span(8, 2), NODES) == pytest.approx(15 / 16 * 1e9 / 80e9)
    # Half of each rank's buffer goes to the other node, through its own card.
    assert seconds(cf.all_to_all, 1e9, span(8, 2), NODES) == pytest.approx(0.5 * 1e9 / 10e9)
    assert seconds(cf.send_recv, 1e9, span(8, 2), NODES) == pytest.approx(1e9 / 10e9)


def test_wide_nodes_are_bound_by_what_joins_them_inside() -> None:
    fast = network(dimension("switch", 8, 50e9), dimension("switch", None, 10e9))
    assert seconds(cf.all_gather, 1e9, span(8, 2), fast) == pytest.approx(15 / 16 * 1e9 / 50e9)


def test_one_member_a_node_has_one_card() -> None:
    assert seconds(cf.all_reduce, 1e9, span(1, 4), NODES) == pytest.approx(2 * 3 / 4 * 1e9 / 10e9)
    assert seconds(cf.all_gather, 1e9, span(1, 4), NODES) == pytest.approx(3 / 4 * 1e9 / 10e9)


def test_the_switch_adds_up_what_passes_it() -> None:
    machine = TOPOLOGIES["in_switch"]
    assert seconds(cf.all_reduce, 1e9, span(8, 1), machine) == pytest.approx(9 / 8 * 1e9 / 90e9)
    assert seconds(cf.all_reduce, 1e9, span(8, 2), machine) == pytest.approx(2 * 15 / 16 * 1e9 / 80e9)  # not across nodes


def test_the_fabrics_switches_add_up_what_nodes_send() -> None:
    """A GPU sends its eighth of the node's sum up once and gets it back once, at 90 % of its card's 10 GB/s; or the node's ring counts."""
    machine = TOPOLOGIES["in_fabric"]
    assert seconds(cf.all_reduce, 1e9, span(1, 4), machine) == pytest.approx(1e9 / 9e9)  # a ring: 1.5 buffers at 10 GB/s
    assert seconds(cf.all_reduce, 1e9, span(1, 2), machine) == pytest.approx(1e9 / 10e9)  # which is faster for two
    assert seconds(cf.all_reduce, 1e9, span(8, 2), machine) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)  # more than 1/8 / 9e9
    assert seconds(cf.all_reduce, 1e9, span(8, 1), machine) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)  # no fabric in it
    assert seconds(cf.all_gather, 1e9, span(1, 4), machine) == pytest.approx(3 / 4 * 1e9 / 10e9)  # nothing to add up
    both = network(*(part.model_copy(update={"in_network_reduction": True}).model_dump() for part in machine.dimensions))
    assert seconds(cf.all_reduce, 1e9, span(8, 2), both) == pytest.approx(1 / 8 * 1e9 / 9e9)  # more than 9/8 / 90e9 within the node


def test_a_fabric_reduces_only_where_all_its_switches_do() -> None:
    """Two levels beyond nodes of one: the upper one gets a buffer for four of the lower one's ports, and must add it up too."""
    half = network(dimension("switch", 4, 20e9, in_network_reduction=True), dimension("switch", None, 2e9))
    plain = network(dimension("switch", 4, 20e9), dimension("switch", None, 2e9))
    assert seconds(cf.all_reduce, 1e9, span(4, 4), half) == seconds(cf.all_reduce, 1e9, span(4, 4), plain)
    tree = TOPOLOGIES["everywhere"]
    assert seconds(cf.all_reduce, 1e9, span(1, 4, 4), tree) == pytest.approx(max(1e9 / 18e9, 1e9 / 4 / 9e9))


def test_a_switch_hands_on_what_one_has_to_all() -> None:
    """72 GPUs on one switch: a ring has 71 steps of 2 us and the protocol's 0.85 us, the switch two of 2 us and 1.6 us after its 32 us."""
    rack = network(dimension("switch", 72, 900e9, in_network_reduction=True))
    ring = network(dimension("switch", 72, 900e9))
    for run in (cf.all_gather, cf.reduce_scatter):
        assert float(run(0.0, span(72), rack)[0]) == pytest.approx(32e-6 + 2 * (2e-6 + 1.6e-6))
        assert float(run(0.0, span(72), ring)[0]) == pytest.approx(2e-6 + 71 * (2e-6 + 0.85e-6))
    # the whole of a large buffer comes down a link that multicast fills to 90 %; a ring brings it but for the rank's own part
    assert seconds(cf.all_gather, 1e9, span(72), rack) == pytest.approx(71 / 72 * 1e9 / 900e9)


def test_full_connection_uses_the_links_among_its_members() -> None:
    machine = TOPOLOGIES["fully_connected"]
    assert seconds(cf.all_reduce, 1e9, span(2, 1), machine) == pytest.approx(2 / 2 * 1e9 / 20e9)
    assert seconds(cf.all_reduce, 1e9, span(8, 1), machine) == pytest.approx(2 * 7 / 8 * 1e9 / 140e9)
    assert seconds(cf.send_recv, 1e9, span(8, 1), machine) == pytest.approx(1e9 / 20e9)


def test_part_of_a_ring_has_one_direction_and_shares_it_with_groups_in_between() -> None:
    machine = TOPOLOGIES["ring"]
    assert seconds(cf.all_gather, 1e9, span(8, 1), machine) == pytest.approx(7 / 8 * 1e9 / 100e9)
    assert seconds(cf.all_gather, 1e9, span(4, 1), machine) == pytest.approx(3 / 4 * 1e9 / 50e9)
    placed = place({"tp": 2, "dp": 4}, ("tp", "cp", "ep", "dp", "pp"), machine)
    assert seconds(cf.all_gather, 1e9, placed.dp, machine) == pytest.approx(3 / 4 * 1e9 / 50e9)


def test_cabling() -> None:
    machine = TOPOLOGIES["cabled"]
    assert seconds(cf.all_gather, 1e9, span(2, 1), machine) == pytest.approx(1 / 2 * 1e9 / 30e9)
    assert seconds(cf.all_gather, 1e9, span(4, 1), machine) == pytest.approx(3 / 4 * 1e9 / 90e9)


def test_latency_of_a_small_ring() -> None:
    nccl = Nccl(low_latency=Protocol(5e-6, 1e-6, 0.5, 0.0))
    assert float(cf.all_reduce(0.0, span(4, 1), NODES, nccl)[0]) == pytest.approx(5e-6 + 6 * (2e-6 + 1e-6))
    assert float(cf.all_gather(0.0, span(2, 4), NODES, nccl)[0]) == pytest.approx(5e-6 + 7 * (2e-6 + 1e-6))


def test_a_tree_saves_latency_on_many_nodes() -> None:
    small = [float(cf.all_reduce(1024, span(8, nodes), NODES)[0]) for nodes in (16, 256)]
    assert small[1] < 2 * small[0]
    assert float(cf.all_gather(1024, span(8, 256), NODES)[0]) > 8 * float(cf.all_gather(1024, span(8, 16), NODES)[0])


def test_a_tree_of_few_nodes_sends_less_than_two_buffers_across() -> None:
    """Two trees of half the buffer over nodes (child, parent): sums go up and come down once. Four cards of 10 GB/s a node, at 0.8."""

    def most_sent(trees: list[list[tuple[int, int]]]) -> float:
        sent: Counter[int] = Counter()
        for tree in trees:
            for child, parent in tree:
                sent.update((child, parent))
        return max(sent.values()) / 2

    two, four = most_sent([[(1, 0)], [(0, 1)]]), most_sent([[(0, 1), (2, 1), (1, 3)], [(1, 2), (3, 2), (2, 0)]])
    three = most_sent(
        [[(2, 0), (1, 2)], [(0, 1), (2, 0)]]
    )  # as NCCL lays them (ncclGetDtree): of odd numbers the second is the first, shifted
    assert (two, three, four) == (1.0, 1.5, 2.0)
    assert seconds(cf.all_reduce, 1e9, span(4, 3), NODES) == pytest.approx(min(2 * 11 / 12, three / 0.8) * 1e9 / 40e9)
    assert seconds(cf.all_reduce, 1e9, span(4, 2), NODES) == pytest.approx(two * 1e9 / (0.8 * 40e9))  # a ring takes 7/4 of it
    ring = 2 * 15 / 16 * 1e9 / 40e9
    assert seconds(cf.all_reduce, 1e9, span(4, 4), NODES) == pytest.approx(min(ring, four * 1e9 / (0.8 * 40e9)))
    narrow = network(dimension("switch", 8, 30e9), dimension("switch", None, 10e9))  # members of a chain send up and down: two buffers
    assert seconds(cf.all_reduce, 1e9, span(4, 2), narrow) == pytest.approx(2 * 7 / 8 * 1e9 / 30e9)  # of 2 / (0.8 · 30) the lesser


def members_of(machine: Network) -> list[tuple[float, ...]]:
    outer = [(1.0,), (2.0,), (4.0,), (8.0,)]
    inner = [(float(m),) for m in (1, 2, 4, machine.dimensions[0].size or 8) if m <= (machine.dimensions[0].size or 8)]
    middle = [(1.0,), (4.0,)] if len(machine.dimensions) == 3 else [()]
    return [i + m + o for i in inner for m in middle for o in outer]


@pytest.mark.parametrize("machine", TOPOLOGIES.values(), ids=TOPOLOGIES.keys())
@pytest.mark.parametrize("run", COLLECTIVES, ids=lambda run: run.__name__)
class TestConformance:
    def test_a_group_of_one_costs_nothing(self, run: Any, machine: Network) -> None:
        alone = span(*(1.0 for _ in machine.dimensions))
        assert run(np.asarray([0.0, 1.0, 1e12]), alone, machine).tolist() == [0.0, 0.0, 0.0]

    def test_monotone_in_bytes(self, run: Any, machine: Network) -> None:
        sizes = np.logspace(0, 12, 400)
        for members in members_of(machine):
            times = run(sizes, span(*members), machine)
            assert np.all(np.diff(times) >= 0)
            assert np.all(np.isfinite(times))

    def test_never_beats_the_bandwidth(self, run: Any, machine: Network) -> None:
        sizes = np.logspace(0, 12, 50)
        for members in members_of(machine):
            assert np.all(run(sizes, span(*members), machine) >= bound(run, sizes, members, machine) * (1 - 1e-12)), members

    def test_time_is_that_of_the_bandwidth_in_the_end(self, run: Any, machine: Network) -> None:
        for members in members_of(machine):
            twice = run(np.asarray([1e13, 2e13]), span(*members), machine)
            if twice[0] > 0:
                assert twice[1] / twice[0] == pytest.approx(2.0, rel=1e-2)

    def test_columns_are_their_rows(self, run: Any, machine: Network) -> None:
        rows = members_of(machine)
        columns = Span(tuple(np.asarray(column) for column in zip(*rows, strict=True)), tuple(np.ones(len(rows)) for _ in rows[0]))
        sizes = np.logspace(2, 9, len(rows))
        together = run(sizes, columns, machine)
        assert together.shape == (len(rows),)
        one_by_one = [float(run(float(size), span(*members), machine)[0]) for size, members in zip(sizes, rows, strict=True)]
        np.testing.assert_allclose(together, one_by_one, rtol=1e-12)

    def test_scalars(self, run: Any, machine: Network) -> None:
        members = tuple(np.asarray(2.0) for _ in machine.dimensions)
        assert np.shape(run(1e6, Span(members, members), machine)) == ()


def bound(run: Any, sizes: Floats, members: tuple[float, ...], machine: Network) -> Floats:
    """What must leave the ranks of one part for the others, over all their links, at the least."""
    group = float(np.prod(members))
    slowest = np.zeros(sizes.shape)
    below = 1.0
    for held, part in zip(members, machine.dimensions, strict=True):
        if held > 1:
            parts = group / below
            share = {"all_reduce": 2 * (parts - 1) / parts, "all_to_all": below * (1 - 1 / parts)}.get(run.__name__, (parts - 1) / parts)
            # what a switch anywhere adds up, a rank sends once
            if run.__name__ == "all_reduce" and any(each.in_network_reduction for each in machine.dimensions):
                share = 1.0
            slowest = np.maximum(slowest, sizes * share / (below * part.bandwidth * part.utilization))
        below *= held
    return slowest


@pytest.mark.parametrize(
    ("machine", "key"),
    [
        (network(dimension("mesh", 8, 1e11)), "hw.network.dimensions.0.topology=mesh"),
        (network(dimension("switch", 8, 1e11), dimension("torus", None, 1e10)), "hw.network.dimensions.1.topology=torus"),
        (network(dimension("fat_tree", None, 1e10, oversubscription=2.0)), "hw.network.dimensions.0.oversubscription=2"),
        (network(dimension("switch", 8, 1e11), faulty_links=[(0, 1, 0.5)]), "hw.network.faulty_links"),
    ],
    ids=["mesh", "torus", "oversubscription", "faults"],
)
@pytest.mark.parametrize("run", COLLECTIVES, ids=lambda run: run.__name__)
def test_what_has_no_closed_form_is_refused_with_who_takes_it(run: Any, machine: Network, key: str) -> None:
    with pytest.raises(ValueError, match="hybrid, full_astrasim_hierarchical, full_astrasim_flattened") as refusal:
        run(1e6, span(*(2.0 for _ in machine.dimensions)), machine)
    assert str(refusal.value).startswith(key)


@pytest.mark.parametrize("key", ["in_network_reduction", "oversubscription"])
def test_only_switches_reduce_and_are_shared(key: str) -> None:
    for topology in ("ring", "torus", "mesh", "fully_connected"):
        with pytest.raises(ValueError, match=rf"{key}=.* with topology={topology}, which has no switches; allowed with it"):
            network(dimension(topology, 8, 1e11, **{key: True if key == "in_network_reduction" else 2.0}))
    network(dimension("switch", 8, 1e11, **{key: True if key == "in_network_reduction" else 2.0}))


def test_cabling_needs_a_share_for_each_count() -> None:
    with pytest.raises(ValueError, match="cabling has 2 shares with size=8"):
        network(dimension("switch", 8, 1e11, cabling=[0.5, 1.0]))
