"""A slow model of ASTRA-sim with objects and callbacks, written from its rules and not from the engine.

``run`` takes a graph in the form of ``tests/data/astrasim/graphs`` and gives each node's start and end. It knows rings,
fully connected dimensions, switches and their products, derated and failed links, and every collective; it shares no code with
``rapid_dse.network``, so that a rule misread in one of the two shows as a difference.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from reference_links import Action, Clock, Json, Network, Post


@dataclass
class Phase:
    kind: str
    algorithm: str
    size: int
    """bytes that the rank holds at its start"""
    ring: list[int]
    direction: int
    queue: int
    group: bool
    """of fewer ranks than the world"""
    tree: int = 0

    @property
    def final_size(self) -> int:
        if self.algorithm == "doubleBinaryTree":
            return self.size
        n = len(self.ring)
        return {"ALL_GATHER": self.size * n, "REDUCE_SCATTER": self.size // n}.get(self.kind, self.size)


@dataclass(eq=False)
class Stream:
    """One chunk of a collective on one rank."""

    rank: Rank
    tag: Any
    phases: deque[Phase]
    priority: int
    done: Action
    running: bool = False
    phase: Phase = field(init=False)

    def start(self) -> None:
        self.running = True
        if self.phase.algorithm == "doubleBinaryTree":
            tree(self)
        elif self.phase.algorithm == "halvingDoubling":
            Halving(self).start()
        else:
            Credits(self).start()

    @property
    def endpoint(self) -> int:
        return 10 if self.phase.group else self.rank.system.endpoint_delay

    def send(self, dst: int, size: int) -> None:
        self.rank.sim.post.send(self.tag, self.rank.id, dst, size)

    def receive(self, src: int, size: int, got: Action) -> None:
        self.rank.sim.post.receive(self.tag, src, self.rank.id, size, got)

    def handle(self, size: int | None, then: Action) -> None:
        """The endpoint delay, and the reduction of ``size`` bytes if there is one."""
        rank = self.rank
        if size is None:
            rank.after(self.endpoint, then)
        else:
            rank.after(self.endpoint, lambda: rank.after(rank.system.reduction(size), then))


class Credits:
    """Ring and direct: a credit sends the next message."""

    def __init__(self, stream: Stream) -> None:
        self.stream, phase = stream, stream.phase
        self.kind, self.direct = phase.kind, phase.algorithm.startswith("direct")
        n = self.n = len(phase.ring)
        self.message = phase.size if self.kind == "ALL_GATHER" else phase.size // n
        self.to_send = {"ALL_REDUCE": 2 * (n - 1), "ALL_TO_ALL": n * (n - 1) // 2}.get(self.kind, n - 1)
        self.credits = 1
        if self.direct:
            self.to_send = 2 * (n - 1) if self.kind == "ALL_REDUCE" else n - 1
            self.credits = min(int(phase.algorithm[6:] or n - 1), n - 1)
        self.free, self.received, self.distance = 0, 0, 1
        self.packets: deque[tuple[int, int]] = deque()
        self.plain, self.reduced, self.round = 0, 0, 0

    def start(self) -> None:
        for _ in range(self.credits):
            self.add()

    def add(self) -> None:
        """Add a packet: whom it goes to and comes from; its credit comes after the endpoint delay."""
        phase = self.stream.phase
        ring, me = phase.ring, phase.ring.index(self.stream.rank.id)
        step = self.distance * phase.direction
        self.packets.append((ring[(me + step) % self.n], ring[(me - step) % self.n]))
        if self.direct:
            self.distance = self.distance % (self.n - 1) + 1
        self.stream.handle(self.message if self._reduces() else None, self.credit)

    def _reduces(self) -> bool:
        """Packets come in rounds: one a credit that is only passed on, then those that may be reduced."""
        if self.plain == self.reduced == 0:
            self.plain = self.credits
            whole = not self.direct or self.stream.phase.group
            self.reduced = self.credits * (self.n - 1) if whole else self.credits
            self.round += 1
        if self.plain:
            self.plain -= 1
            return False
        self.reduced -= 1
        return self.kind == "REDUCE_SCATTER" or (self.kind == "ALL_REDUCE" and self.round % 2 == 1)

    def credit(self) -> None:
        self.free += 1
        if self.direct and self.kind == "ALL_REDUCE" and self.to_send <= self.n - 1:
            if self.received < self.n - 1:
                return
            for _ in range(self.credits):
                self.pass_on()
        else:
            self.pass_on()
        if self.to_send == 0 and self.free == self.credits:
            self.stream.rank.next_phase(self.stream)

    def pass_on(self) -> None:
        if not (self.packets and self.to_send and self.free):
            return
        dst, src = self.packets.popleft()
        self.to_send -= 1
        self.free -= 1
        self.stream.send(dst, self.message)
        self.stream.receive(src, self.message, self.arrived)

    def arrived(self) -> None:
        self.received += 1
        self.add()


class Halving:
    """Halving-doubling: pairs at distances of powers of two."""

    def __init__(self, stream: Stream) -> None:
        self.stream, phase = stream, stream.phase
        n = len(phase.ring)
        lg = n.bit_length() - 1
        down = [(1 << i, phase.size >> (i + 1)) for i in range(lg)]
        up = [(n >> (i + 1), phase.size << i) for i in range(lg)]
        turn = phase.size >> (lg + 1) << 1  # the size is halved once more before it is doubled: an odd one loses a byte
        back = [(n >> (i + 1), turn << i) for i in range(lg)]
        self.steps = {"REDUCE_SCATTER": down, "ALL_GATHER": up, "ALL_REDUCE": down + back}[phase.kind]
        self.reductions = [] if phase.kind == "ALL_GATHER" else [phase.size >> (i + 1) for i in range(1, lg)]
        self.at = 0

    def start(self) -> None:
        self.stream.handle(None, self.step)

    def step(self) -> None:
        if self.at == len(self.steps):
            self.stream.rank.next_phase(self.stream)
            return
        distance, size = self.steps[self.at]
        ring = self.stream.phase.ring
        peer = ring[ring.index(self.stream.rank.id) ^ distance]
        self.stream.send(peer, size)
        self.stream.receive(peer, size, self.arrived)

    def arrived(self) -> None:
        reduced = self.reductions[self.at] if self.at < len(self.reductions) else None
        self.at += 1
        self.stream.handle(reduced, self.step)


def relatives(n: int, least: bool) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Parents and children in a tree of n = 2^k places: a perfect tree of n - 1 that hangs on a root."""
    parents: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    root, first = (0, 1) if least else (n - 1, 0)

    def hang(low: int, high: int, parent: int) -> None:
        middle = (low + high) // 2
        parents[middle] = parent
        children[parent].append(middle)
        if low < high:
            hang(low, middle - 1, middle)
            hang(middle + 1, high, middle)

    hang(first, first + n - 2, root)
    return parents, children


def tree(stream: Stream) -> None:
    """Double binary tree: up to the root, then down."""
    size, ring, rank = stream.phase.size, stream.phase.ring, stream.rank
    parents, children = relatives(len(ring), stream.phase.tree == 1)
    me = ring.index(rank.id)
    below = [ring[c] for c in children[me]]
    above = ring[parents[me]] if me in parents else None
    waits = len(below)

    def finish() -> None:
        rank.next_phase(stream)

    def leaf() -> None:
        assert above is not None
        stream.send(above, size)
        stream.receive(above, size, lambda: stream.handle(None, finish))

    def down() -> None:
        for child in below:
            stream.send(child, size)
        finish()

    def joined() -> None:
        nonlocal waits
        waits -= 1
        if waits:
            return
        if above is None:
            down()
            return
        stream.send(above, size)
        stream.receive(above, size, lambda: stream.handle(size, down))

    if not below:
        stream.handle(None, leaf)
    for child in below:
        stream.receive(child, size, lambda: stream.handle(size, joined))


@dataclass
class System:
    endpoint_delay: int
    local_mem_bw: float
    splits: int
    running: int
    """chunks of a queue that run at a time"""
    queues: int
    fifo: bool
    baseline: bool
    algorithms: Json

    @staticmethod
    def of(data: Json) -> System:
        queues = data.get("queues-per-dim", 1)
        return System(
            data["endpoint-delay"],
            data["local-mem-bw"],
            data["preferred-dataset-splits"],
            math.ceil(data["active-chunks-per-dimension"] / queues),
            queues,
            data["scheduling-policy"] == "FIFO",
            data["collective-optimization"] == "baseline",
            data,
        )

    def algorithm(self, kind: str, d: int) -> str:
        names: list[str] = self.algorithms[kind.lower().replace("_", "-") + "-implementation"]
        return names[d] if len(names) > 1 else names[0]

    def reduction(self, size: int) -> int:
        """ns; the program counts in bytes a second, which at some multiples of local-mem-bw is 1 ns short."""
        seconds = size / (self.local_mem_bw * 1e9)
        return 3 * math.floor(seconds * 1e9)


class Rank:
    """A rank's own delays, its nodes, and the chunks of its collectives."""

    def __init__(self, sim: Simulation, rank: int, nodes: list[Json]) -> None:
        self.sim, self.id, self.system = sim, rank, sim.system
        self.delays: dict[int, list[Action]] = {}
        self.nodes = {node["id"]: node for node in nodes}
        self.waits = {i: len(set(node["deps"])) for i, node in self.nodes.items()}
        self.ready = sorted(i for i, count in self.waits.items() if count == 0)
        self.children: dict[int, list[int]] = defaultdict(list)
        for i, node in self.nodes.items():
            for parent in set(node["deps"]):
                self.children[parent].append(i)
        self.in_use = {"comp": False, "comm": False}
        self.times: dict[str, list[int | None]] = {}
        self.streams = 0
        self.group_streams: dict[str, int] = defaultdict(int)
        self.priority = 0
        self.trees: dict[tuple[str, int], int] = defaultdict(int)
        dims = range(len(sim.network.dims))
        self.queues: dict[int, list[Stream]] = {q: [] for q in range(len(dims) * self.system.queues)}
        self.running = dict.fromkeys(self.queues, 0)
        self.turns = {(d, use): 0 for d in dims for use in ("all", "first", "last")}

    # --- delays that end in one ns run together, in the place of the first ---

    def after(self, ns: int, action: Action) -> None:
        time = self.sim.clock.now + ns
        if time in self.delays:
            self.delays[time].append(action)
        else:
            self.delays[time] = [action]
            self.sim.clock.at(time, lambda: self._delays_end(time))

    def _delays_end(self, time: int) -> None:
        for action in self.delays[time]:
            action()
        del self.delays[time]

    # --- nodes ---

    def issue(self) -> None:
        waiting, self.ready = self.ready, []
        while waiting:
            i = heapq.heappop(waiting)
            place = {"comp": "comp", "recv": ""}.get(self.nodes[i]["type"], "comm")
            if place and self.in_use[place]:
                heapq.heappush(self.ready, i)
                continue
            if place:
                self.in_use[place] = True
            self.times[str(i)] = [self.sim.clock.now, None]
            self._begin(i, lambda i=i, place=place: self._end(i, place))  # type: ignore[misc]

    def _begin(self, i: int, end: Action) -> None:
        node = self.nodes[i]
        if node["type"] == "comp":
            self.after(max(round(node["dur_us"] * 1000), 1), end)
        elif node["type"] == "coll":
            self._collective(node, end)
        else:
            where = ("node", node["tag"]), node["src"], node["dst"], node["size"]
            (self.sim.post.send if node["type"] == "send" else self.sim.post.receive)(*where, end)

    def _end(self, i: int, place: str) -> None:
        self.times[str(i)][1] = self.sim.clock.now
        if place:
            self.in_use[place] = False
        for child in self.children[i]:
            self.waits[child] -= 1
            if self.waits[child] == 0:
                heapq.heappush(self.ready, child)
        self.issue()

    # --- collectives ---

    def _collective(self, node: Json, end: Action) -> None:
        size, world = node["size"], self.sim.network.ranks
        splits = self.system.splits
        chunk = size // splits
        if node["coll"] != "ALL_GATHER" and chunk < world:
            chunk, size = world, splits * world
        count = math.ceil(size / chunk)
        priority = self.priority
        self.priority += -1 if self.system.fifo else 1
        left = count

        def done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                end()

        group = node.get("pg") or "0"
        for _ in range(count):
            tag: Any = self.streams
            if group != "0":
                tag = group, self.group_streams[group]
                self.group_streams[group] += 1
            self.streams += 1
            self.next_phase(Stream(self, tag, deque(self._phases(node, chunk)), priority, done), first=True)

    def _phases(self, node: Json, size: int) -> Iterator[Phase]:
        dims, kind = self.sim.network.dims, node["coll"]
        members = self.sim.groups.get(node.get("pg") or "0", [])
        if 0 < len(members) < self.sim.network.ranks:
            algorithm = self.system.algorithm(kind, 0) if len(dims) == 1 else "ring"
            use = "first" if kind == "ALL_REDUCE" and not self.system.baseline else "all"
            queue, direction = self._queue(0, use)
            yield Phase(kind, algorithm, size, members, direction, queue, group=True)
            return
        last = len(dims) - 1
        if kind == "ALL_REDUCE" and not self.system.baseline:
            steps = [(d, "REDUCE_SCATTER", "first") for d in range(last)] + [(last, kind, "first")]
            steps += [(d, "ALL_GATHER", "last") for d in reversed(range(last))]
        else:
            order = reversed(range(last + 1)) if kind == "ALL_GATHER" else range(last + 1)
            steps = [(d, kind, "all") for d in order]
        for d, step, use in steps:
            queue, direction = self._queue(d, use)
            ring = [dims[d].moved(self.id, place) for place in range(dims[d].n)]
            phase = Phase(step, self.system.algorithm(kind, d), size, ring, direction, queue, group=False)
            if phase.algorithm == "doubleBinaryTree":
                # each kind of collective has trees of its own in each dimension, and takes them in turns, in all its phases
                phase.tree = self.trees[kind, d] % 2
                self.trees[kind, d] += 1
            size = phase.final_size
            yield phase

    def _queue(self, d: int, use: str) -> tuple[int, int]:
        """Queues of a dimension take turns; those of the second half run the other way round."""
        count = self.system.queues
        if count == 1:
            return d, -1 if use == "last" else 1
        first, number = {"all": (0, count), "first": (0, count // 2), "last": (count // 2, count - count // 2)}[use]
        at = first + self.turns[d, use] % number
        self.turns[d, use] += 1
        return d * count + at, -1 if at >= count // 2 else 1

    def next_phase(self, stream: Stream, first: bool = False) -> None:
        before = None if first else stream.phase.queue
        if not stream.phases:
            stream.done()
        if before is not None:
            self.queues[before].remove(stream)
        if stream.phases:
            stream.phase, stream.running = stream.phases.popleft(), False
            line = self.queues[stream.phase.queue]
            at = 0
            while at < len(line) and (line[at].running or line[at].priority >= stream.priority):
                at += 1
            line.insert(at, stream)
        if before is not None:
            self.running[before] -= 1
            self._start(before)
        if stream.phases or stream in self.queues[stream.phase.queue]:
            self._start(stream.phase.queue)

    def _start(self, queue: int) -> None:
        line = self.queues[queue]
        while self.running[queue] < min(self.system.running, len(line)):
            self.running[queue] += 1
            line[self.running[queue] - 1].start()


class Simulation:
    def __init__(self, data: Json, aware: bool) -> None:
        self.clock = Clock()
        self.system = System.of(data["system"])
        self.groups: dict[str, list[int]] = data.get("comm_groups", {})
        self.network = Network(self.clock, data["network"], aware)
        self.post = Post(self.network)
        self.ranks = [Rank(self, r, data["ranks"].get(str(r), [])) for r in range(self.network.ranks)]

    def run(self) -> dict[str, dict[str, list[int | None]]]:
        for rank in self.ranks:
            rank.issue()
        self.clock.run()
        return {str(rank.id): rank.times for rank in self.ranks}


def run(data: Json, aware: bool) -> dict[str, dict[str, list[int | None]]]:
    """Give each node's start and end, ns; None for what never came."""
    return Simulation(data, aware).run()


def of_row(row: dict[str, str]) -> Json:
    """Give the graph of a row of ``collectives.csv``: that collective on every rank."""
    algorithms = row["algorithm"].split("x")
    system = {
        "scheduling-policy": row["scheduling_policy"],
        "collective-optimization": row["collective_optimization"],
        "endpoint-delay": int(row["endpoint_delay"]),
        "active-chunks-per-dimension": int(row["active_chunks"]),
        "preferred-dataset-splits": int(row["chunks"]),
        "queues-per-dim": int(row["queues_per_dim"]),
        "local-mem-bw": float(row["local_mem_bw"]),
    }
    for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
        system[f"{kind}-implementation"] = algorithms
    sizes = [int(n) for n in row["npus"].split("x")]
    network = {
        "topology": row["topology"].split("x"),
        "npus_count": sizes,
        "bandwidth_GBps": [float(v) for v in row["bandwidth_GBps"].split("x")],
        "latency_ns": [float(v) for v in row["latency_ns"].split("x")],
        "faulty_links": json.loads(row.get("faulty_links") or "[]"),
    }
    node = {"id": 0, "type": "coll", "coll": row["collective"], "size": int(row["size_bytes"]), "deps": []}
    return {"network": network, "system": system, "comm_groups": {}, "ranks": {str(r): [node] for r in range(math.prod(sizes))}}
