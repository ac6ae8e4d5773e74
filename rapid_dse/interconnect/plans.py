"""From a collective to chunks and phases, as ASTRA-sim cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.records import ALG_DIRECT, ALG_HALVING, ALG_RING, ALG_TREE, halving_t, phase_t, plan_t, tree_t
from rapid_dse.interconnect.records import ALL_GATHER as AG
from rapid_dse.interconnect.records import ALL_REDUCE as AR
from rapid_dse.interconnect.records import ALL_TO_ALL as A2A
from rapid_dse.interconnect.records import REDUCE_SCATTER as RS
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.trace.graph import COLLECTIVES, LARGEST

GROUP_ENDPOINT_NS = 10  # ASTRA-sim's fast path, which sub-groups take whatever the setting says
ANY_QUEUE, FIRST_HALF, LAST_HALF = range(3)


@dataclass(frozen=True, slots=True)
class Step:
    """One phase to be: a collective over one dimension."""

    collective: int
    dim: int
    n: int
    stride: int
    half: int
    algorithm: str


@dataclass(slots=True)
class PlanTables:
    """Builds the engine's tables of plans; rows are shared by all collectives of one kind, size and group size."""

    system: SystemSettings
    sizes: Sequence[int]
    """Ranks along each dimension of the network."""
    plans: list[tuple[int, int, int, int]] = field(default_factory=list)
    phases: list[tuple[int, ...]] = field(default_factory=list)
    halving: list[tuple[int, int, int]] = field(default_factory=list)
    trees: dict[int, int] = field(default_factory=dict)
    tree_links: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, collective: int, size: int, group_size: int | None) -> int:
        """Add a collective of ``size`` bytes over the world (None) or a group; returns its row.

        Raises ValueError for what ASTRA-sim would hang on or abort at.
        """
        name = COLLECTIVES[collective]
        chunk, chunks = self._chunks(collective, size)
        first = len(self.phases)
        steps = self._world_steps(collective) if group_size is None else [self._group_step(collective, group_size)]
        if not steps:
            raise ValueError(f"{name} over one rank: a collective needs at least 2")
        for step in steps:
            chunk = self._add_phase(step, chunk, collective, group_size is None)
        self.plans.append((chunks, len(self.phases) - first, first, int(group_size is None)))
        return len(self.plans) - 1

    def _chunks(self, collective: int, size: int) -> tuple[int, int]:
        splits = self.system.splits
        ranks = int(np.prod(self.sizes))
        chunk = size // splits
        if collective == AG:
            if chunk == 0:
                raise ValueError(f"ALL_GATHER of {size} bytes in {splits} splits: it must have at least a byte a split")
        elif chunk < ranks:
            chunk = ranks
            size = splits * chunk
        return chunk, -(-size // chunk)

    def _world_steps(self, collective: int) -> list[Step]:
        name = COLLECTIVES[collective]
        strides = np.concatenate(([1], np.cumprod(self.sizes)))
        dims = [d for d, n in enumerate(self.sizes) if n > 1]

        def step(kind: int, d: int, half: int) -> Step:
            algorithm = self.system.algorithm(name, d, len(self.sizes))
            return Step(kind, d, self.sizes[d], int(strides[d]), half, algorithm)

        if collective == AR and self.system.collective_optimization == "localBWAware":
            inner, last = dims[:-1], dims[-1:]
            return (
                [step(RS, d, FIRST_HALF) for d in inner]
                + [step(AR, d, FIRST_HALF) for d in last]
                + [step(AG, d, LAST_HALF) for d in reversed(inner)]
            )
        return [step(collective, d, ANY_QUEUE) for d in (reversed(dims) if collective == AG else dims)]

    def _group_step(self, collective: int, n: int) -> Step:
        name = COLLECTIVES[collective]
        if n < 2:
            raise ValueError(f"{name} over a group of {n} rank: a collective needs at least 2")
        algorithm = self.system.algorithm(name, 0, 1) if len(self.sizes) == 1 else self.system.group_algorithms.get(name, "ring")
        if algorithm == "doubleBinaryTree":
            raise ValueError(f"{name} over a group of {n} ranks: doubleBinaryTree runs over the whole world only")
        half = FIRST_HALF if collective == AR and self.system.collective_optimization == "localBWAware" else ANY_QUEUE
        return Step(collective, 0, n, 1, half, algorithm)

    def _add_phase(self, step: Step, data: int, origin: int, world: bool) -> int:
        """Add a phase on ``data`` bytes a rank; returns the bytes a rank holds after it."""
        n, kind = step.n, step.collective
        endpoint = self.system.endpoint_delay if world else GROUP_ENDPOINT_NS
        size = data if kind == AG else data // n
        total = 2 * (n - 1) if kind == AR else n * (n - 1) // 2 if kind == A2A else n - 1
        algorithm, parallel, unreduced, period, table = ALG_RING, 1, 1, n, 0
        if step.algorithm.startswith("direct"):
            window = int(step.algorithm[6:] or n - 1)
            algorithm, parallel = ALG_DIRECT, min(window, n - 1)
            total = 2 * (n - 1) if kind == AR else n - 1
            unreduced, period = parallel, parallel + parallel * (1 if world else n - 1)
        elif step.algorithm in ("halvingDoubling", "doubleBinaryTree"):
            if n & (n - 1):
                raise ValueError(f"{step.algorithm} over {n} ranks: it needs a power of two")
            if step.algorithm == "halvingDoubling":
                table, total, period = self._add_halving(step, data)
                algorithm = ALG_HALVING
            else:
                algorithm, table, size = ALG_TREE, self._tree(n), data
        reduction = self._reduction(size)
        row = (size, reduction, endpoint, algorithm, kind, n, total, parallel, unreduced, period)
        self.phases.append((*row, step.dim, step.stride, table, step.half, 0, origin))
        if algorithm == ALG_TREE or kind in (AR, A2A):
            return data
        return data * n if kind == AG else data // n

    def _reduction(self, size: int) -> int:
        """Time to reduce ``size`` bytes, ns: two reads and a write, each in whole ns by ASTRA-sim's order of rounding.

        The program divides by bytes a second and multiplies by 1e9. At 2 % of the multiples of local_mem_bw that is 1 ns below
        the quotient: 24,000 bytes at 1,600 GB/s take 3 · 14 ns, not 3 · 15.
        """
        time = size / (self.system.local_mem_bw * 1e9) * 1e9
        if time > LARGEST:
            raise ValueError(f"local-mem-bw is {self.system.local_mem_bw:g} GB/s, at which {size} bytes take longer than 2^53 ns")
        return 3 * int(time)

    def _add_halving(self, step: Step, data: int) -> tuple[int, int, int]:
        n, kind = step.n, step.collective
        if kind == A2A:
            raise ValueError("ALL_TO_ALL by halvingDoubling: there is none, use ring or direct")
        levels = n.bit_length() - 1
        total = 2 * levels if kind == AR else levels
        first = len(self.halving)
        distance, size, growing = (n // 2, data, True) if kind == AG else (1, data // 2, False)
        for _ in range(total + 1):
            self.halving.append((distance, size, self._reduction(size)))
            distance, size = (distance // 2, size * 2) if growing else (distance * 2, size // 2)
            if distance == n and kind == AR:
                growing, distance, size = True, n // 2, size * 2
        if min(size for _, size, _ in self.halving[first : first + total]) == 0:
            raise ValueError(f"halvingDoubling of {data} bytes over {n} ranks: messages come down to 0 bytes, use ring or direct")
        return first, total, levels

    def _tree(self, n: int) -> int:
        """Row of the max tree of n ranks; the min tree follows it."""
        if n not in self.trees:
            self.trees[n] = len(self.tree_links)
            for root_last in (True, False):
                self.tree_links.extend(_tree_rows(n, root_last))
        return self.trees[n]

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Give the engine's tables: plans, phases, steps of halving-doubling, trees."""
        plans = np.zeros(max(len(self.plans), 1), plan_t)
        for i, (chunks, phases, first, world) in enumerate(self.plans):
            plans[i] = (chunks, phases, first, world, -1)
        rows = np.array(self.phases or [(0,) * len(phase_t.names or ())], phase_t)
        trees = np.array(self.tree_links or [(0, 0, 0)], tree_t)
        return plans, rows, np.array(self.halving or [(0, 0, 0)], halving_t), trees


def _tree_rows(n: int, root_last: bool) -> list[tuple[int, int, int]]:
    """Parent, left and right child of each rank: a perfect binary tree of n - 1 ranks, numbered in order,
    under a root.
    """
    rows = np.full((n, 3), -1, np.int64)
    shift = 0 if root_last else 1
    root = n - 1 if root_last else 0

    def hang(first: int, count: int, parent: int) -> int:
        middle = first + count // 2
        rows[middle, 0] = parent
        if count > 1:
            rows[middle, 1] = hang(first, count // 2, middle)
            rows[middle, 2] = hang(middle + 1, count // 2, middle)
        return middle

    rows[root, 1 if root_last else 2] = hang(shift, n - 1, root)
    return [(int(a), int(b), int(c)) for a, b, c in rows]
