"""Links and messages of the slow model (reference_network.py): a clock, routes, servers, and who waits for what."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Action = Callable[[], None]
Json = dict[str, Any]


class Clock:
    """Events by time; those of one ns in the order they were made."""

    def __init__(self) -> None:
        self.now = 0
        self._events: list[tuple[int, int, Action]] = []
        self._made = 0

    def at(self, time: int, action: Action) -> None:
        heapq.heappush(self._events, (time, self._made, action))
        self._made += 1

    def run(self) -> None:
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


@dataclass
class Dim:
    kind: str
    n: int
    stride: int
    bandwidth: float
    """bytes per ns"""
    latency: float

    def place(self, rank: int) -> int:
        return rank // self.stride % self.n

    def moved(self, rank: int, place: int) -> int:
        return rank + (place - self.place(rank)) * self.stride

    def hops(self, src: int, dst: int) -> int:
        apart = abs(self.place(src) - self.place(dst))
        return {"Ring": min(apart, self.n - apart), "FullyConnected": 1, "Switch": 2}[self.kind]


class Network:
    """Routes and delays; ``send`` calls back when the message is there."""

    def __init__(self, clock: Clock, data: Json, aware: bool) -> None:
        self.clock, self.aware = clock, aware
        self.dims: list[Dim] = []
        self.ranks = 1
        columns = [data[key] for key in ("topology", "npus_count", "bandwidth_GBps", "latency_ns")]
        for kind, n, bandwidth, latency in zip(*columns, strict=True):
            self.dims.append(Dim(kind, n, self.ranks, bandwidth * (1 << 30) / 1e9, latency))
            self.ranks *= n
        self.factors = {}
        for a, b, factor in data.get("faulty_links", []):
            self.factors[a, b] = self.factors[b, a] = factor
        self.busy: set[tuple[int, int]] = set()
        self.queues: dict[tuple[int, int], deque[tuple[list[int], int, Action]]] = defaultdict(deque)

    def switch(self, d: int, rank: int) -> int:
        """Device id: after the ranks, dimension by dimension."""
        before = sum(self.ranks // dim.n for dim in self.dims[:d] if dim.kind == "Switch")
        dim = self.dims[d]
        return self.ranks + before + rank % dim.stride + rank // (dim.stride * dim.n) * dim.stride

    def within(self, d: int, src: int, dst: int) -> Iterator[int]:
        """Devices after ``src`` up to ``dst``, which differ in dimension d alone."""
        dim = self.dims[d]
        if dim.kind == "Switch":
            yield self.switch(d, src)
        if dim.kind == "Ring":
            ahead = (dim.place(dst) - dim.place(src)) % dim.n
            step = 1 if ahead <= dim.n - ahead else -1
            at = dim.moved(src, (dim.place(src) + step) % dim.n)
            while at != dst:
                yield at
                at = dim.moved(at, (dim.place(at) + step) % dim.n)
        yield dst

    def route(self, src: int, dst: int) -> list[int]:
        usual = self._usual_route(src, dst)
        return usual if self._healthy(usual) else self._route_round(src, dst)

    def _healthy(self, devices: list[int]) -> bool:
        return all(self.factors.get(link, 1.0) > 0 for link in pairwise(devices))

    def _route_round(self, src: int, dst: int) -> list[int]:
        """A failed link is stopped before, one step goes on in the next dimension, and the failed dimension is left for later."""
        devices, order = [src], list(reversed(range(len(self.dims))))
        for _ in range(2 * len(self.dims)):
            for d in order:
                stopped = False
                while not stopped and self.dims[d].place(devices[-1]) != self.dims[d].place(dst):
                    step = self._step(d, devices[-1], self.dims[d].place(dst))
                    stopped = not self._healthy([devices[-1], *step])
                    if stopped:
                        aside = (d + 1) % len(self.dims)
                        step = self._step(aside, devices[-1], (self.dims[aside].place(devices[-1]) + 1) % self.dims[aside].n)
                        assert self._healthy([devices[-1], *step]), "this model knows one way round alone"
                    devices += step
            if devices[-1] == dst:
                return devices
            order.reverse()
        raise AssertionError((src, dst))

    def _step(self, d: int, rank: int, place: int) -> list[int]:
        """Devices up to the next rank on the way to a place of dimension d."""
        devices = list(self.within(d, rank, self.dims[d].moved(rank, place)))
        return devices[:1] if self.dims[d].kind == "Ring" else devices

    def _usual_route(self, src: int, dst: int) -> list[int]:
        devices = [src]
        for d in reversed(range(len(self.dims))):
            goal = self.dims[d].moved(devices[-1], self.dims[d].place(dst))
            if goal != devices[-1]:
                devices += self.within(d, devices[-1], goal)
        return devices

    def link_dim(self, a: int, b: int) -> tuple[int, Dim]:
        for d, dim in enumerate(self.dims):
            if max(a, b) < self.ranks:
                if dim.place(a) != dim.place(b):
                    return d, dim
            elif dim.kind == "Switch" and self.switch(d, min(a, b)) == max(a, b):
                return d, dim
        raise AssertionError((a, b))

    def send(self, src: int, dst: int, size: int, arrived: Action) -> None:
        if self.aware:
            self._forward(self.route(src, dst), size, arrived)
            return
        dim = next(dim for dim in self.dims if dim.place(src) != dim.place(dst))
        self.clock.at(self.clock.now + int(dim.hops(src, dst) * dim.latency + size / dim.bandwidth), arrived)

    def _forward(self, route: list[int], size: int, arrived: Action) -> None:
        if len(route) == 1:
            arrived()
            return
        link = route[0], route[1]
        if link in self.busy:
            self.queues[link].append((route, size, arrived))
        else:
            self._occupy(link, route, size, arrived)

    def _occupy(self, link: tuple[int, int], route: list[int], size: int, arrived: Action) -> None:
        self.busy.add(link)
        dim = self.link_dim(*link)[1]
        occupied = size / (dim.bandwidth * self.factors.get(link, 1.0))
        self.clock.at(self.clock.now + int(dim.latency + occupied), lambda: self._forward(route[1:], size, arrived))
        self.clock.at(self.clock.now + int(occupied), lambda: self._release(link))

    def _release(self, link: tuple[int, int]) -> None:
        self.busy.remove(link)
        if self.queues[link]:
            self._occupy(link, *self.queues[link].popleft())


Key = tuple[Any, ...]


class Post:
    """Matches the k-th send of a key (tag, source, destination, size) with its k-th receive."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sends: dict[Key, int] = defaultdict(int)
        self.receives: dict[Key, int] = defaultdict(int)
        self.there: set[Key] = set()
        self.wanted: dict[Key, Action] = {}

    def send(self, tag: Any, src: int, dst: int, size: int, sent: Action | None = None) -> None:
        key = (tag, src, dst, size)
        match = (*key, self.sends[key])
        self.sends[key] += 1

        def arrived() -> None:
            if sent:
                sent()
            if match in self.wanted:
                self.wanted.pop(match)()
            else:
                self.there.add(match)

        self.network.send(src, dst, size, arrived)

    def receive(self, tag: Any, src: int, dst: int, size: int, got: Action) -> None:
        key = (tag, src, dst, size)
        match = (*key, self.receives[key])
        self.receives[key] += 1
        if match in self.there:
            clock = self.network.clock
            clock.at(clock.now, got)
        else:
            self.wanted[match] = got
