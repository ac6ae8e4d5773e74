"""Groups on the machine, against ranks counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rapid_dse.config.hardware import Network
from rapid_dse.network.placement import Span, place

ORDER = ("tp", "cp", "ep", "dp", "pp")


def network(*sizes: int | None, parallelisms: tuple[tuple[str, ...] | None, ...] | None = None) -> Network:
    lists = parallelisms or (None,) * len(sizes)
    common = {"topology": "switch", "bandwidth": 1e11, "latency": 1e-6, "utilization": 1.0, "energy": 0.0}
    return Network.model_validate({"dimensions": [{**common, "size": s, "parallelisms": p} for s, p in zip(sizes, lists, strict=True)]})


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
