"""Groups on the machine, against ranks counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rapid_dse.config.hardware import Network
from rapid_dse.events.machine import AXES, cluster_of
from rapid_dse.parallel.placement import place
from rapid_dse.parallel.span import Span

ORDER = ("tp", "cp", "ep", "dp", "pp")


def network(
    *sizes: int | None,
    parallelisms: tuple[tuple[str, ...] | None, ...] | None = None,
    allocations: tuple[int | None, ...] | None = None,
) -> Network:
    lists, parts = parallelisms or (None,) * len(sizes), allocations or (None,) * len(sizes)
    common = {"topology": "switch", "bandwidth": 1e11, "latency": 1e-6, "utilization": 1.0, "energy": 0.0}
    each = zip(sizes, lists, parts, strict=True)
    return Network.model_validate({"dimensions": [{**common, "size": s, "parallelisms": p, "allocation": a} for s, p, a in each]})


def members(span: Span) -> list[tuple[float, ...]]:
    return list(zip(*(column.tolist() for column in span.members), strict=True))


def test_groups_that_divide() -> None:
    placed = place({"tp": [8, 4, 16, 1], "dp": [8, 4, 4, 64], "pp": [1, 4, 1, 1]}, ORDER, network(8, None))
    assert members(placed.tp) == [(8, 1), (4, 1), (8, 2), (1, 1)]
    assert members(placed.dp) == [(1, 8), (2, 2), (1, 4), (8, 8)]
    assert members(placed.pp) == [(1, 1), (1, 4), (1, 1), (1, 1)]
    assert placed.legal is None


@pytest.mark.parametrize(
    ("tp", "dp", "expected"), [(6, 8, (2, 3)), (3, 8, (1, 3)), (3, 2, (3, 1)), (6, 1, (6, 1)), (12, 2, (4, 3)), (24, 1, (8, 3))]
)
def test_groups_that_do_not_divide_a_node_are_as_wide_as_the_worst_one(tp: int, dp: int, expected: tuple[float, ...]) -> None:
    assert members(place({"tp": tp, "dp": dp}, ORDER, network(8, None)).tp) == [expected]


def test_the_least_filled_node_of_contiguous_groups() -> None:
    for degree, groups in itertools.product(range(1, 25), (8, 16)):
        ranks = np.arange(degree * groups)
        least = min(np.unique(ranks[ranks // degree == group] // 8, return_counts=True)[1].min() for group in range(groups))
        span = place({"tp": degree, "dp": groups}, ORDER, network(8, None)).tp
        assert span.members[0][0] == (least if degree * groups > 8 else degree), degree


def test_one_group_of_all_ranks_is_cut_where_the_nodes_end() -> None:
    # 14 GPUs are a node of 8 and 6 of the next, 30 are three of 8 and 6: of every second rank, 4, 4, 4 and 3
    placed = place({"tp": [1, 2], "dp": [14, 15]}, ORDER, network(8, None))
    assert placed.dp.members[0].tolist() == [6, 3]


# Racks of 72 GPUs in trays of 4.
RACKS = network(72, None, allocations=(4, None))


@pytest.mark.parametrize(
    ("degrees", "machine", "expected"),
    [
        # 64 of each rack: 8 tensor-parallel groups, 8 members of each data-parallel group, in 4 racks
        ({"tp": 8, "dp": 32}, RACKS, {"tp": (8, 1), "dp": (8, 4), "gradient": (8, 4)}),
        ({"dp": 256, "ep": 64}, RACKS, {"dp": (64, 4), "ep": (64, 1), "expert_gradient": (1, 4)}),
        ({"tp": 4, "cp": 2, "dp": 4, "pp": 8}, RACKS, {"cp": (2, 1), "dp": (4, 1), "gradient": (8, 1), "pp": (2, 4)}),
        ({"dp": 64}, RACKS, {"dp": (64, 1)}),
        ({"dp": 72}, RACKS, {"dp": (72, 1)}),  # a whole rack is not left half empty
        ({"tp": 3, "dp": 96}, RACKS, {"tp": (3, 1), "dp": (24, 4)}),  # 72 is 3 · 24
        ({"dp": 80}, RACKS, {"dp": (40, 2)}),
        ({"dp": 192, "ep": 48}, RACKS, {"ep": (48, 1), "dp": (48, 4)}),  # 64 would cut every second group of experts
        ({"dp": 90}, RACKS, {"dp": (18, 5)}),  # no half of it is whole trays: a rack of 72, and 18 in the next
        ({"tp": 8, "dp": 32}, network(36, None, allocations=(4, None)), {"dp": (4, 8)}),  # 32 of 36
        ({"tp": 8, "dp": 70}, network(72, 8, allocations=(4, None)), {"dp": (7, 10)}),  # 56 a rack would take ten racks
        ({"tp": 6, "dp": 8}, network(8, None, allocations=(8, None)), {"tp": (2, 3)}),  # nodes are given out whole
        ({"tp": 6, "dp": 8}, network(8, None, allocations=(1, None)), {"tp": (6, 1), "dp": (1, 8)}),  # two of each node stay idle
        ({"tp": 8, "dp": 6, "pp": 8}, network(8, 8, None, allocations=(None, 1, None)), {"dp": (1, 6, 1), "pp": (1, 1, 8)}),
    ],
)
def test_racks_are_filled_so_far_that_no_group_is_cut(
    degrees: dict[str, int], machine: Network, expected: dict[str, tuple[float, ...]]
) -> None:
    placed = place(degrees, ORDER, machine)
    assert {name: members(getattr(placed, name))[0] for name in expected} == expected


def test_the_ranks_of_a_rack_counted_one_by_one() -> None:
    """Each rank in its rack: the most whole trays whose border cuts no group unevenly; spans and the event engine's places are these."""
    random = np.random.default_rng(1)
    for _ in range(100):
        degrees = {name: int(random.choice((1, 2, 3, 4, 6, 8))) for name in ("tp", "cp", "dp", "pp")}
        ranks = np.arange(np.prod(list(degrees.values()))).reshape([degrees[name] for name in AXES])
        groups = {name: np.moveaxis(ranks, axis, -1).reshape(-1, degrees[name]) for axis, name in enumerate(AXES)}
        groups["gradient"] = np.moveaxis(ranks, 3, 0).reshape(-1, degrees["dp"] * degrees["cp"])  # by stage and tensor-parallel rank

        def parts(filled: int, group: np.ndarray) -> set[int]:
            return {count for row in group // filled for count in np.unique(row, return_counts=True)[1].tolist()}

        even = [n for n in range(72, 0, -4) if ranks.size <= 72 or all(len(parts(n, group)) == 1 for group in groups.values())]
        if not even:
            continue
        placed, cluster = place(degrees, ORDER, RACKS), cluster_of({**degrees, "ep": 1}, ORDER, RACKS)
        for name, group in groups.items():
            assert getattr(placed, name).members[0][0] == parts(even[0], group).pop(), (degrees, name)
        if ranks.size > 72:
            assert (cluster.coordinates(cluster.rank)[-1] == ranks // even[0]).all(), degrees


def test_three_dimensions_and_sizes() -> None:
    placed = place({"tp": 2, "cp": 2, "dp": 64, "pp": 2}, ORDER, network(8, 4, None))
    assert members(placed.dp) == [(2, 4, 8)]
    assert members(placed.gradient) == [(4, 4, 8)]
    assert members(placed.pp) == [(1, 1, 2)]
    assert placed.gradient.size.tolist() == [128.0]


def test_experts_lie_inside_the_data_parallel_ranks() -> None:
    degrees = {"tp": 2, "cp": 2, "dp": 16, "ep": [1, 2, 8, 32]}
    inner = place(degrees, ORDER, network(8, None))
    assert members(inner.ep) == [(1, 1), (2, 1), (4, 2), (4, 8)]
    assert members(inner.expert_gradient) == [(4, 8), (2, 8), (1, 4), (1, 1)]
    outer = place(degrees, ("tp", "cp", "dp", "ep", "pp"), network(8, None))
    assert members(outer.ep) == [(1, 1), (1, 2), (1, 8), (4, 8)]
    assert members(outer.expert_gradient) == [(4, 8), (4, 4), (4, 1), (1, 1)]


def test_another_order_puts_the_pipeline_inside() -> None:
    placed = place({"tp": 2, "pp": 4, "dp": 8, "cp": 2}, ("pp", "cp", "tp", "ep", "dp"), network(8, None))
    assert members(placed.pp) == [(4, 1)]
    assert members(placed.tp) == [(1, 2)]
    assert members(placed.gradient) == [(2, 8)]  # cp in the node, dp across, tp between them


def test_sizes_multiply_to_the_degree() -> None:
    random = np.random.default_rng(0)
    degrees = {name: random.integers(1, 13, 500) for name in ("tp", "cp", "dp", "pp")}
    degrees["ep"] = np.where(random.random(500) < 0.5, degrees["dp"], 1)
    placed = place(degrees, ORDER, network(8, 4, None))
    for name, degree in degrees.items():
        np.testing.assert_allclose(getattr(placed, name).size, degree, rtol=1e-12)
    np.testing.assert_allclose(placed.gradient.size, degrees["dp"] * degrees["cp"], rtol=1e-12)
    np.testing.assert_allclose(placed.expert_gradient.size, degrees["dp"] * degrees["cp"] // degrees["ep"], rtol=1e-12)


def test_listed_parallelisms_ride_on_their_dimension() -> None:
    machine = network(8, None, parallelisms=(("tp", "cp"), ("dp", "pp")))
    placed = place({"tp": [4, 8, 2], "cp": [2, 1, 2], "dp": 4, "pp": 2}, ORDER, machine)
    assert members(placed.tp) == [(4, 1), (8, 1), (2, 1)]
    assert members(placed.dp)[0] == (1, 4)
    assert placed.legal is not None
    assert np.broadcast_to(placed.legal, 3).tolist() == [True, True, False]
    assert "size 8" in placed.reasons[0][0]


def test_what_no_dimension_carries() -> None:
    machine = network(8, 8, parallelisms=(("tp",), ("dp",)))
    placed = place({"tp": 8, "dp": 8, "pp": [1, 2]}, ORDER, machine)
    assert placed.legal is not None
    assert placed.legal.tolist() == [True, False]


def test_experts_on_a_dimension_of_their_own() -> None:
    machine = network(8, None, parallelisms=(("tp", "ep"), ("cp", "dp", "pp")))
    placed = place({"tp": 2, "ep": [4, 8], "dp": 16}, ORDER, machine)
    assert members(placed.ep)[0] == (4, 1)
    assert members(placed.dp)[0] == (4, 4)
    assert members(placed.expert_gradient)[0] == (1, 4)
    assert placed.legal is not None
    assert placed.legal.tolist() == [True, False]


def test_too_many_ranks_for_a_closed_network() -> None:
    placed = place({"tp": 8, "dp": [8, 16]}, ORDER, network(8, 8))
    assert placed.legal is not None
    assert placed.legal.tolist() == [True, False]


def test_a_parallelism_on_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"dimensions\.1\.parallelisms has tp.*allowed"):
        place({"tp": 8}, ORDER, network(8, None, parallelisms=(("tp",), ("tp", "dp"))))
