"""Programs of ranks, and the graph that they make: a program is written once a kind of rank, and repeated for all of its kind.

A ``Script`` lists one rank's nodes; groups and peers in it are names, which ``assemble`` looks up for each rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, COMPUTE, RECEIVE, SEND, WORLD, Graph, Groups, Ints

After = tuple[int, ...]
COUNTED = 4096
MOST_WRITTEN, MOST_NODES = 5 * 10**6, 250 * 10**6  # nodes of a graph's scripts, and of the graph: about 2 GB, and 25 GB
MAIN, GRADIENTS, RING, PIPELINE, HOST = range(5)  # communication streams, and what the host does beside its device
CHUNKS = 2  # of each collective: on store-and-forward links one goes up to a switch while another comes down


@dataclass
class Labels:
    """What nodes are called: a name, and how their time splits over the terms of a result (shares that add up to 1)."""

    names: list[str] = field(default_factory=list)
    shares: list[Mapping[str, float]] = field(default_factory=list)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, name: str, term: str) -> int:
        """The label of that name whose time is all of one term."""
        key = (name, term)
        if key not in self._known:
            self._known[key] = self.mixed(name, {term: 1.0})
        return self._known[key]

    def mixed(self, name: str, shares: Mapping[str, float]) -> int:
        """A new label whose time splits by ``shares``."""
        self.names.append(name)
        self.shares.append(shares)
        return len(self.names) - 1


@dataclass
class Style:
    """How transfers become nodes.

    ``ideal``: one node each, which takes the closed form's time; else the phases that their group has on the network's dimensions.
    ``streams``: whether transfers that hide behind others have streams of their own. ``phases``: members of each phase by group.
    ``switched``: what switches that reduce leave of a ring's bytes in an all-reduce, for each phase by group; none: all of them.
    ``apart``: whether caches that go from pool to pool have streams of their own whatever the others have: network cards read them from
    memory, beside kernels of collectives. ``prefix``: what stands before the names of groups and peers, where a graph has several layouts.
    ``nodes`` counts what the graph's scripts have, in steps of ``COUNTED``.
    """

    ideal: bool
    streams: bool
    phases: Mapping[str, Sequence[int]]
    labels: Labels
    switched: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prefix: str = ""
    apart: bool = False
    nodes: int = 0


@dataclass(frozen=True)
class Message:
    """What a group or a peer is sent: ``size`` bytes, of a collective the full buffer (what each rank has before a reduction or after a
    gather); the ``seconds`` that it takes in closed form, and the ``term`` of a result that they are."""

    size: float
    seconds: float
    term: str
    tag: int = 0
    stream: int = MAIN


@dataclass
class Script:
    """One rank's nodes in ascending id; columns as in ``Graph``, ``where`` names the group or the peer.

    ``batch`` is the micro-batch that each node belongs to (-1: none): the one that is ``at`` hand when it is written.
    """

    style: Style
    kind: list[int] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    collective: list[int] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    tag: list[int] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    batch: list[int] = field(default_factory=list)
    after: list[After] = field(default_factory=list)
    at: int = -1

    def __len__(self) -> int:
        return len(self.kind)

    def _add(
        self,
        kind: int,
        after: After,
        label: int,
        message: Message,
        where: str = "",
        collective: int = 0,
    ) -> After:
        if len(self.kind) % COUNTED == COUNTED - 1:
            self.style.nodes += COUNTED
            check_size(self.style.nodes, "to write")
        self.kind.append(kind)
        self.duration.append(max(1, round(message.seconds * 1e9)))
        self.size.append(max(1, round(message.size)) if kind != COMPUTE else 0)
        self.collective.append(collective)
        self.where.append(f"{self.style.prefix}{where}" if where else "")
        self.tag.append(message.tag)
        self.stream.append(message.stream if self.style.streams else MAIN)
        self.label.append(label)
        self.batch.append(self.at)
        self.after.append(after)
        return (len(self.kind) - 1,)

    def work(self, after: After, seconds: float, label: int) -> After:
        """Computation of a labelled kind; what takes no time makes no node."""
        return after if seconds <= 0 else self._add(COMPUTE, after, label, Message(0.0, seconds, ""))

    def compute(self, after: After, seconds: float, name: str, term: str = "compute") -> After:
        """Computation; what takes no time makes no node."""
        return self.work(after, seconds, self.style.labels.of(name, term))

    def launch(self, after: After, seconds: float) -> After:
        """What the host does beside the device; what takes no time makes no node."""
        label = self.style.labels.of("launching", "host")
        return after if seconds <= 0 else self._add(COMPUTE, after, label, Message(0.0, seconds, "", stream=HOST))

    def exchange(self, after: After, kind: str, group: str, message: Message) -> After:
        """A collective over the rank's ``group``, of a ``kind`` in COLLECTIVES."""
        members, size, term = self.style.phases.get(group), message.size, message.term
        if not members or size <= 0:
            return after
        label = self.style.labels.of(f"{term} {kind.lower().replace('_', '-')}", term)
        if self.style.ideal:
            whole = size / int(np.prod(members)) if kind == "ALL_GATHER" else size
            return self._add(COLLECTIVE, after, label, replace(message, size=whole), f"{group}/all", COLLECTIVES.index(kind))
        switched = self.style.switched.get(group, ())
        for step, phase, chunk in _steps(kind, members, size):
            chunk = chunk * switched[phase] if switched and step == "ALL_REDUCE" else chunk
            # ASTRA-sim cuts a collective into whole bytes, and sends one chunk more where some are left
            whole = CHUNKS * (1 if step == "ALL_GATHER" else members[phase])
            chunk = whole * max(1, round(chunk / whole))
            after = self._add(
                COLLECTIVE, after, label, replace(message, size=chunk, seconds=0.0), f"{group}/{phase}", COLLECTIVES.index(step)
            )
        return after

    def spread(self, after: After, group: str, sizes: Sequence[float], seconds: float, term: str, stream: int = MAIN) -> After:
        """Tokens to those members of the rank's ``group`` that need them, once to each part of the group.

        Args:
            sizes: bytes that go to the places of each dimension on which the group has members, inner to outer, the sender's own among
                them.
            seconds: what the closed form says.
        """
        members = self.style.phases.get(group)
        if not members or not sizes or max(sizes) <= 0:
            return after
        kind, label = COLLECTIVES.index("ALL_TO_ALL"), self.style.labels.of(f"{term} dispatch", term)
        if self.style.ideal:
            return self._add(COLLECTIVE, after, label, Message(max(sizes), seconds, term, stream=stream), f"{group}/all", kind)
        carried = sizes if len(sizes) == len(members) else [sum(sizes) / len(sizes)] * len(members)
        for phase, size in enumerate(carried):
            whole = CHUNKS * members[phase]
            bytes_a_rank = whole * max(1, round(size / whole))
            after = self._add(COLLECTIVE, after, label, Message(bytes_a_rank, 0.0, term, stream=stream), f"{group}/{phase}", kind)
        return after

    def send(self, after: After, peer: str, message: Message) -> After:
        """A message to the rank's ``peer``."""
        return self._add(SEND, after, self.style.labels.of(f"{message.term} send", message.term), message, peer)

    def hand_over(self, after: After, peer: str, message: Message) -> After:
        """A message to the rank's ``peer`` that network cards take from memory to memory."""
        sent = self.send(after, peer, message)
        if self.style.apart:
            self.stream[sent[0]] = message.stream
        return sent

    def receive(self, after: After, peer: str, size: float, term: str, tag: int = 0) -> After:
        """The receive of the message that ``peer`` sends this rank."""
        label = self.style.labels.of(f"{term} receive", term)
        return self._add(RECEIVE, after, label, Message(size, 0.0, term, tag), peer)


def joined(first: After, second: After) -> After:
    """What waits for both."""
    return tuple(dict.fromkeys((*first, *second)))


def copy_of(script: Script) -> Script:
    """A script of the same nodes, to write on."""
    columns: dict[str, Any] = {name: list(value) for name, value in vars(script).items() if isinstance(value, list)}
    return replace(script, **columns)


def _steps(kind: str, members: Sequence[int], size: float) -> list[tuple[str, int, float]]:
    """A collective's phases over the dimensions of its group: (collective, phase, bytes as ``Graph.size`` counts them)."""
    before = [size]
    for count in members:
        before.append(before[-1] / count)
    down = [("REDUCE_SCATTER", phase, before[phase]) for phase in range(len(members))]
    up = [("ALL_GATHER", phase, before[phase + 1]) for phase in reversed(range(len(members)))]
    if kind == "REDUCE_SCATTER":
        return down
    if kind == "ALL_GATHER":
        return up
    if kind == "ALL_REDUCE":
        last = len(members) - 1
        return [*down[:-1], ("ALL_REDUCE", last, before[last]), *up[1:]]
    return [(kind, phase, size) for phase in range(len(members))]


@dataclass(frozen=True)
class Traced:
    """A graph with what its nodes are: ``label`` ``(nodes,)`` indexes ``labels``, ``batch`` ``(nodes,)`` is the micro-batch of each (-1:
    none); ``role`` ``(ranks,)`` is each rank's script."""

    graph: Graph
    label: NDArray[np.int32]
    labels: Labels
    batch: NDArray[np.int32]
    role: Ints


@dataclass(frozen=True)
class Directory:
    """Who is in which group and who is whose peer.

    ``groups`` has ``(groups, members)`` places by name; ``peers`` the peer of every place by name, ``(ranks,)``, -1 for none.
    """

    groups: Mapping[str, Ints]
    peers: Mapping[str, Ints]


_DTYPES: Mapping[str, type[np.signedinteger[Any]]] = {
    **dict.fromkeys(("id", "duration", "size", "group", "peer", "tag"), np.int64),
    **dict.fromkeys(("label", "batch"), np.int32),
    **dict.fromkeys(("kind", "collective", "stream"), np.int8),
}  # of a graph's columns
_WRITTEN = [column for column in _DTYPES if column not in ("id", "group", "peer")]  # those that a script has as they are


def assemble(ranks: int, scripts: Sequence[Script], role: Ints, directory: Directory, name: str = "") -> Traced:
    """The graph in which rank r runs ``scripts[role[r]]``; a rank of role -1 has nothing to do, and does that for 1 ns."""
    labels = scripts[0].style.labels
    idle = Script(scripts[0].style)
    idle.compute((), 1e-9, "idle", "bubble")
    every = [*scripts, idle]
    role = np.where(role < 0, len(scripts), role)
    groups, place = _group_table(ranks, directory, every)
    lengths = np.array([len(script) for script in every], np.int64)[role]
    first = np.concatenate(([0], np.cumsum(lengths)))
    width = np.array([sum(map(len, script.after)) for script in every], np.int64)[role]
    first_dep = np.concatenate(([0], np.cumsum(width)))
    n = int(first[-1])
    check_size(n, "in all")
    columns = {column: np.zeros(n, dtype) for column, dtype in _DTYPES.items()}
    ptr, deps = np.zeros(n + 1, np.int64), np.zeros(int(first_dep[-1]), np.int64)
    ptr[-1] = first_dep[-1]
    for number, script in enumerate(every):
        on = np.flatnonzero(role == number)
        if not len(on):
            continue
        _write(script, first[on][:, None] + np.arange(len(script)), columns)
        _look_up(script, on, first, place, directory, columns)
        inside, flat = _dependencies(script)
        ptr[first[on][:, None] + np.arange(len(script))] = first_dep[on][:, None] + inside
        deps[first_dep[on][:, None] + np.arange(len(flat))] = first[on][:, None] + flat
    label, batch = columns.pop("label"), columns.pop("batch")
    named: dict[str, Any] = {"duration_ns": columns.pop("duration"), **columns}
    rank = np.repeat(np.arange(ranks), lengths)
    return Traced(Graph(ranks=ranks, rank=rank, deps_ptr=ptr, deps=deps, groups=groups, name=name, **named), label, labels, batch, role)


def _write(script: Script, rows: Ints, columns: Mapping[str, Ints]) -> None:
    """Writes what all ranks of a script have alike, to the ``rows`` of each, ``(ranks, n_nodes)``."""
    columns["id"][rows] = np.arange(len(script))
    for column in _WRITTEN:
        columns[column][rows] = np.array(getattr(script, column), _DTYPES[column])


def _dependencies(script: Script) -> tuple[Ints, Ints]:
    """Where each node's dependencies begin, ``(n_nodes,)``, and the dependencies of all nodes, one after the other."""
    counts = np.array([len(after) for after in script.after], np.int64)
    return np.cumsum(counts) - counts, np.array([node for after in script.after for node in after], np.int64)


def check_size(nodes: int, what: Literal["to write", "in all"]) -> None:
    """Raises ``ValueError`` where a graph is larger than a machine holds."""
    most = MOST_WRITTEN if what == "to write" else MOST_NODES
    if nodes > most:
        raise ValueError(
            f"the step's graph has {nodes:,} nodes {what} or more; allowed: up to {most:,}; fewer micro-batches or GPUs have fewer, "
            "and backend=analytical has none"
        )


def _group_table(ranks: int, directory: Directory, scripts: Sequence[Script]) -> tuple[Groups, dict[tuple[str, int], Ints]]:
    """All groups in one table, and by name and stream which of them a rank is in.

    A group has a communicator on each stream that it takes collectives to: which of two that run beside each other begins first may differ
    from rank to rank, and collectives find each other by their number in a communicator.
    """
    apart = {
        (where, stream)
        for script in scripts
        for where, stream, kind in zip(script.where, script.stream, script.kind, strict=True)
        if kind == COLLECTIVE and stream != MAIN
    }
    tables, place, count = [], {}, 0
    for key in [*((name, MAIN) for name in directory.groups), *sorted(apart)]:
        members = directory.groups[key[0]]
        of = np.full(ranks, WORLD, np.int64)
        of[members] = count + np.arange(len(members))[:, None]
        place[key] = of
        tables.append(members)
        count += len(members)
    sizes = np.concatenate([np.full(len(table), table.shape[1]) for table in tables]) if tables else np.zeros(0, np.int64)
    ptr = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    flat = np.concatenate([table.ravel() for table in tables]) if tables else np.zeros(0, np.int64)
    return Groups(np.arange(1, count + 1), ptr, flat.astype(np.int64)), place


def _look_up(
    script: Script, on: Ints, first: Ints, place: Mapping[tuple[str, int], Ints], directory: Directory, columns: Mapping[str, Ints]
) -> None:
    """Fills the groups and peers of the ranks ``on`` that run ``script``."""
    where, kind, stream = np.array(script.where), np.array(script.kind), np.array(script.stream)
    columns["group"][first[on][:, None] + np.arange(len(script))] = WORLD
    for name in np.unique(where[where != ""]).tolist():
        at = np.flatnonzero(where == name)
        if kind[at[0]] != COLLECTIVE:
            columns["peer"][first[on][:, None] + at] = directory.peers[name][on][:, None]
            continue
        for number in np.unique(stream[at]).tolist():
            of = at[stream[at] == number]
            columns["group"][first[on][:, None] + of] = place[name, number][on][:, None]
