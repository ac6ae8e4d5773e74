"""The multi-rank graph of computation and communication, as arrays.

Nodes are rows, sorted by rank and within a rank by id; all that the event engine, the Chakra files and ASTRA-sim's
adapter need about a node is a column. Dependencies are in compressed rows: node ``i`` waits for
``deps[deps_ptr[i]:deps_ptr[i + 1]]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

COMPUTE, COLLECTIVE, SEND, RECEIVE = range(4)
NODE_KINDS = ("comp", "coll", "send", "recv")
COLLECTIVES = ("ALL_REDUCE", "REDUCE_SCATTER", "ALL_GATHER", "ALL_TO_ALL")
WORLD = -1
STREAMS = 64
LARGEST = 1 << 53  # bytes, ids and ns in files: a double holds whole numbers up to there


def is_whole(value: Any) -> bool:
    """Tell whether a value of a file is a whole number that the tables hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


@dataclass(frozen=True, slots=True)
class Groups:
    """Communication groups: group ``ids[g]`` has the ranks ``ranks[ptr[g]:ptr[g + 1]]``, in the order of their ring."""

    ids: Ints
    """int64[groups], > 0."""
    ptr: Ints
    """int64[groups + 1]."""
    ranks: Ints
    """int64[sum of sizes]."""

    @staticmethod
    def of(groups: Mapping[int, Sequence[int]]) -> Groups:
        """Build from ``{id: ranks}``."""
        sizes = [len(ranks) for ranks in groups.values()]
        flat = [rank for ranks in groups.values() for rank in ranks]
        ptr = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))) if sizes else np.zeros(1)
        return Groups(np.array(list(groups), np.int64), ptr.astype(np.int64), np.array(flat, np.int64))

    def members(self, g: int) -> Ints:
        """Give the ranks of the g-th group, int64[size]."""
        return self.ranks[self.ptr[g] : self.ptr[g + 1]]

    def __len__(self) -> int:
        return len(self.ids)


NO_GROUPS = Groups(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph of ``ranks`` ranks and n nodes.

    The constructor takes the columns as they are; ``check()`` tells what is wrong with them, for graphs that users
    wrote.
    """

    ranks: int
    rank: Ints
    """int64[n], ascending."""
    id: Ints
    """int64[n], ascending and unique within a rank: ready nodes start in this order."""
    kind: NDArray[np.int8]
    """int8[n]: COMPUTE, COLLECTIVE, SEND or RECEIVE."""
    deps_ptr: Ints
    """int64[n + 1]."""
    deps: Ints
    """int64: rows of this table, of the same rank."""
    duration_ns: Ints
    """int64[n]: of computation; with ``ideal`` links also of collectives and sends. Unused otherwise."""
    size: Ints
    """int64[n] bytes: the full buffer of a rank for all-reduce, reduce-scatter and all-to-all, its shard for
    all-gather; the message for send and recv."""
    collective: NDArray[np.int8]
    """int8[n]: place in COLLECTIVES; unused for other nodes."""
    group: Ints
    """int64[n]: place in ``groups``, or WORLD."""
    peer: Ints
    """int64[n]: the other rank of a send or recv."""
    tag: Ints
    """int64[n]: of a send or recv."""
    stream: NDArray[np.int8]
    """int8[n]: which of its rank's communication streams a collective or send takes; ASTRA-sim has but stream 0. Computation above 0 is
    the host's, beside the device's."""
    groups: Groups = field(default=NO_GROUPS)
    name: str = ""

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def rank_ptr(self) -> Ints:
        """First node of each rank, int64[ranks + 1]."""
        return np.searchsorted(self.rank, np.arange(self.ranks + 1)).astype(np.int64)

    def node_name(self, i: int) -> str:
        """Name node i as users know it."""
        return f"node {self.id[i]} of rank {self.rank[i]}"

    def check(self) -> None:
        """Raise ValueError when the graph has an unknown rank, a negative size or time, a bad group, or a cycle."""
        _check_nodes(self)
        _check_groups(self)
        _check_acyclic(self)


def _first(bad: NDArray[np.bool_]) -> int | None:
    where = np.flatnonzero(bad)
    return int(where[0]) if len(where) else None


def _check_nodes(graph: Graph) -> None:
    present = np.bincount(graph.rank, minlength=graph.ranks) if len(graph) else np.zeros(graph.ranks)
    if len(present) > graph.ranks:
        raise ValueError(f"a node is on rank {len(present) - 1}: there are ranks 0 to {graph.ranks - 1}")
    if (present == 0).any():
        raise ValueError(f"rank {int(np.argmin(present))} has no node: every rank needs one")
    same = (np.diff(graph.rank) == 0) & (np.diff(graph.id) <= 0)
    if (i := _first(same)) is not None:
        raise ValueError(f"{graph.node_name(i + 1)}: ids must be unique within a rank")
    talks = graph.kind != COMPUTE
    if (i := _first(talks & (graph.size < 0))) is not None:
        raise ValueError(f"{graph.node_name(i)}: size is {graph.size[i]} bytes, it must be > 0")
    if (i := _first(talks & (graph.size == 0))) is not None:
        raise ValueError(f"{graph.node_name(i)}: size is 0 bytes, it must be > 0 (ASTRA-sim hangs on empty messages)")
    if (i := _first(graph.duration_ns < 0)) is not None:
        raise ValueError(f"{graph.node_name(i)}: its time is {graph.duration_ns[i]} ns, it must be >= 0")
    pair = graph.kind >= SEND
    if (i := _first(pair & ((graph.peer < 0) | (graph.peer >= graph.ranks)))) is not None:
        raise ValueError(f"{graph.node_name(i)}: its peer is rank {graph.peer[i]}, there are ranks 0 to {graph.ranks - 1}")
    if (i := _first(pair & (graph.peer == graph.rank))) is not None:
        raise ValueError(f"{graph.node_name(i)}: it sends to or receives from its own rank, it must be another one")


def _check_groups(graph: Graph) -> None:
    groups = graph.groups
    for g in range(len(groups)):
        members = groups.members(g)
        if groups.ids[g] <= 0:
            raise ValueError(f"group {groups.ids[g]}: ids of groups must be > 0")
        bad = members[(members < 0) | (members >= graph.ranks)]
        if len(bad):
            raise ValueError(f"group {groups.ids[g]} has rank {bad[0]}: there are ranks 0 to {graph.ranks - 1}")
        if len(np.unique(members)) < len(members):
            raise ValueError(f"group {groups.ids[g]} names a rank twice")
    used = np.flatnonzero((graph.kind == COLLECTIVE) & (graph.group != WORLD))
    member = np.zeros(0, np.int64)
    if len(used):
        owner = np.repeat(np.arange(len(groups)), np.diff(groups.ptr))
        known = np.unique(owner * graph.ranks + groups.ranks)
        keys = graph.group[used] * graph.ranks + graph.rank[used]
        member = used[~np.isin(keys, known)]
    if len(member):
        i = int(member[0])
        raise ValueError(f"{graph.node_name(i)}: rank {graph.rank[i]} is not in its group {groups.ids[graph.group[i]]}")


def _check_acyclic(graph: Graph) -> None:
    owner = np.repeat(np.arange(len(graph)), np.diff(graph.deps_ptr))
    forward = graph.deps < owner
    if forward.all():
        return  # every node waits for lower ones only
    waits = np.diff(graph.deps_ptr).astype(np.int64)
    order = np.argsort(graph.deps, kind="stable")
    children, ptr = owner[order], np.searchsorted(graph.deps[order], np.arange(len(graph) + 1))
    ready = list(np.flatnonzero(waits == 0))
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        for child in children[ptr[i] : ptr[i + 1]]:
            waits[child] -= 1
            if waits[child] == 0:
                ready.append(child)
    if done < len(graph):
        stuck = int(np.flatnonzero(waits > 0)[0])
        raise ValueError(f"{graph.node_name(stuck)} waits for itself: the dependencies have a cycle")


_COLUMNS = ("duration_ns", "size", "collective", "group", "peer", "tag", "stream")


class GraphBuilder:
    """Collects nodes one by one and in any order of ranks.

    For small graphs and files (columns are faster for large ones).
    """

    def __init__(self, ranks: int, groups: Mapping[int, Sequence[int]] | None = None, name: str = "") -> None:
        self.ranks = ranks
        self.groups = Groups.of(groups or {})
        self.name = name
        self._place = {int(g): i for i, g in enumerate(self.groups.ids)}
        self._rows: list[tuple[Any, ...]] = []
        self._deps: list[Sequence[int]] = []

    def _add(self, rank: int, node: int, kind: int, deps: Sequence[int], **columns: int) -> None:
        row = {"group": WORLD} | columns
        self._rows.append((rank, node, kind, *(row.get(name, 0) for name in _COLUMNS)))
        self._deps.append(deps)

    def compute(self, rank: int, node: int, duration_ns: int, deps: Sequence[int] = ()) -> None:
        """Add computation of ``duration_ns``; 0 becomes 1, as ASTRA-sim has it."""
        self._add(rank, node, COMPUTE, deps, duration_ns=duration_ns or 1)

    def collective(
        self,
        rank: int,
        node: int,
        kind: str,
        size: int,
        group: int | None = None,
        deps: Sequence[int] = (),
    ) -> None:
        """Add a rank's part in a collective over the group of that id, or over the world.

        ValueError if it is unknown.
        """
        if kind not in COLLECTIVES:
            raise ValueError(f"node {node} of rank {rank}: collective {kind!r} is none of {', '.join(COLLECTIVES)}")
        if group is not None and group not in self._place:
            raise ValueError(f"node {node} of rank {rank}: there is no group {group}")
        place = WORLD if group is None else self._place[group]
        self._add(rank, node, COLLECTIVE, deps, size=size, collective=COLLECTIVES.index(kind), group=place)

    def send(self, rank: int, node: int, peer: int, size: int, tag: int, deps: Sequence[int] = ()) -> None:
        """Add a send to rank ``peer``."""
        self._add(rank, node, SEND, deps, size=size, peer=peer, tag=tag)

    def receive(self, rank: int, node: int, peer: int, size: int, tag: int, deps: Sequence[int] = ()) -> None:
        """Add a receive from rank ``peer``."""
        self._add(rank, node, RECEIVE, deps, size=size, peer=peer, tag=tag)

    def move_last(self, stream: int) -> None:
        """Put the node that was added last on another communication stream."""
        self._rows[-1] = (*self._rows[-1][:-1], stream)

    def build(self) -> Graph:
        """Sort the nodes and check them; raises ValueError as ``Graph.check`` does, and for an unknown dependency."""
        table = np.array(self._rows, np.int64).reshape(-1, 10)
        order = np.lexsort((table[:, 1], table[:, 0]))
        place = {(int(table[i, 0]), int(table[i, 1])): at for at, i in enumerate(order)}
        deps: list[int] = []
        ptr = [0]
        for i in order:
            rank, node = int(table[i, 0]), int(table[i, 1])
            for dep in self._deps[i]:
                if (rank, dep) not in place:
                    raise ValueError(f"node {node} of rank {rank} waits for node {dep}, which the rank does not have")
                deps.append(place[rank, dep])
            ptr.append(len(deps))
        rows = table[order]
        if (i := _first((rows[:, 9] < 0) | (rows[:, 9] >= STREAMS))) is not None:
            raise ValueError(f"node {rows[i, 1]} of rank {rows[i, 0]}: stream is {rows[i, 9]}, it must be in 0 … {STREAMS - 1}")
        graph = Graph(
            ranks=self.ranks,
            rank=rows[:, 0],
            id=rows[:, 1],
            kind=rows[:, 2].astype(np.int8),
            deps_ptr=np.array(ptr, np.int64),
            deps=np.array(deps, np.int64),
            duration_ns=rows[:, 3],
            size=rows[:, 4],
            collective=rows[:, 5].astype(np.int8),
            group=rows[:, 6],
            peer=rows[:, 7],
            tag=rows[:, 8],
            stream=rows[:, 9].astype(np.int8),
            groups=self.groups,
            name=self.name,
        )
        graph.check()
        return graph
