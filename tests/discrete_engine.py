"""An engine that serves requests one by one: what closed forms of a closed loop are held against.

Steps take what the closed forms price them at; which requests are in one follows from each request's own tokens, rank and turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

import numpy as np
from serving_trials import engines

from rapid_dse.config.scenario import Scenario
from rapid_dse.simulate.inference.pricing import prepare
from rapid_dse.simulate.inference.serving import Engine

MOST = 1024  # sequences up to which steps are priced


@dataclass
class Request:
    """``length``: tokens that it generates, of which so many are ``missing``; the share of its prompt that is still to be computed
    (``prompt``); when it arrived, and had its first."""

    arrived: float
    length: int
    rank: int
    missing: int = 0
    prompt: float = 1.0
    first: float = 0.0


@dataclass
class Fared:
    """Means over a run's requests, s and requests a second."""

    tpot: float
    ttft: float
    rate: float


@dataclass
class DiscreteEngine:
    """One engine, which takes prompts as its scheduler says, with steps of a scenario."""

    of: Scenario
    row: dict[str, float]
    seconds: dict[tuple[float, float, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = engines(self.row | {"concurrency": MOST})
        part = prepare(self.of, table)[0]
        self.engine = Engine(self.of, part.costs[0], part.kinds[0])
        self.ranks = int(self.engine.cut.attention_dp[0])
        serving = self.of.software.serving
        self.first, self.wait, self.admission = serving.scheduler == "prefill_first", serving.attention_dp_wait, serving.admission_latency
        self.fit = max(1.0, serving.max_batched_tokens / self.of.workload.lengths[0])

    def step(self, fullest: float, prompts: float, rows: int) -> float:
        """Seconds of a step of so many sequences on the fullest rank, with so many prompts on the fullest one of all, and on all, beside
        it: attention waits for the fullest rank, experts compute what all have."""
        key = (fullest, prompts, rows)
        if key not in self.seconds:
            engine, mean = self.engine, np.array([prompts / self.ranks])
            decoding = engine.step(np.array([float(max(rows, 1) * self.ranks)]))
            where, of_fullest = (engine.costs.prefill.at(engine.kind, of_rank) for of_rank in (mean, np.array([float(fullest)])))
            uneven = of_fullest.of(engine.prefill_of_fullest) + where.of(engine.prefill_of_all)
            alone = np.maximum(where.of(engine.prefill_slowest), uneven) * bool(prompts)
            spared = engine._spared(decoding, mean * self.ranks, where) if rows and prompts and not self.first else 0.0
            self.seconds[key] = float((decoding.total * bool(rows) + alone * (1.0 - spared))[0])
        return self.seconds[key]

    def serve(self, running: int, sent: int, seed: int = 0, *, whole: bool = False) -> Fared:
        """A closed loop of so many requests, each that ends followed by another; of a ``whole`` run by none when as many as are ``sent``
        have begun, and all of them count."""
        rng, length, spread = np.random.default_rng(seed), self.of.workload.lengths[1], self.of.workload.length_spread
        drawn = rng.uniform(length * (1 - spread), length * (1 + spread), sent if whole else sent + 2 * running)
        lengths = iter(np.maximum(2, np.rint(drawn)).astype(int).tolist())
        loads, now, waited, waiting, decoding, ended = [0] * self.ranks, 0.0, 0, [], [], []  # type: ignore[var-annotated]  # lists of requests

        def arrive() -> None:
            missing = next(lengths, 0)
            if not missing:
                return
            rank = min(range(self.ranks), key=loads.__getitem__)
            loads[rank] += 1
            waiting.append(Request(now, missing, rank))

        for _ in range(running):
            arrive()
        while len(ended) < sent:
            here = [request for request in waiting if request.arrived + self.admission <= now]
            taken = [part for rank in range(self.ranks) for part in self._that_fit([each for each in here if each.rank == rank])]
            rows = np.bincount([request.rank for request in decoding], minlength=self.ranks)
            if taken and self.wait and len({request.rank for request, _ in taken}) < self.ranks:
                waited += 1
                if waited < self.wait and rows.min() > 0:
                    taken = []
                else:
                    waited = 0
            elif taken:
                waited = 0
            if not taken and not decoding:
                now = min(request.arrived for request in waiting) + self.admission
                continue
            prompts = np.bincount([request.rank for request, _ in taken], [share for _, share in taken], minlength=self.ranks).round(6)
            alone = bool(taken) and self.first
            now += self.step(prompts.max(), prompts.sum(), 0 if alone else int(rows.max()))
            for request in [] if alone else list(decoding):
                request.missing -= 1
                if not request.missing:
                    decoding.remove(request)
                    loads[request.rank] -= 1
                    ended.append((now, request))
                    arrive()
            for request, share in taken:
                request.prompt -= share
                if request.prompt < 1e-9:
                    waiting.remove(request)
                    request.first, request.missing = now, request.length - 1
                    decoding.append(request)
        steady = ended if whole else ended[sent // 4 :]
        tokens = [(end - request.first) / (request.length - 1) for end, request in steady]
        first = [request.first - request.arrived for _, request in steady]
        rate = sent / now if whole else (len(steady) - 1) / (steady[-1][0] - steady[0][0])
        return Fared(float(np.mean(tokens)), float(np.mean(first)), rate)

    def _that_fit(self, waiting: list[Request]) -> list[tuple[Request, float]]:
        """Those of a rank's prompts that a step takes, in their order, and which share of each: what is left of a step is a part of one."""
        taken, room = [], self.fit
        for request in waiting:
            share = min(request.prompt, room)
            if share > 1e-9:
                taken.append((request, share))
                room -= share
        return taken


@dataclass
class DiscretePool:
    """Engines that compute prompts alone, with a queue for each of attention's ranks; what follows takes ``rest`` seconds."""

    engine: DiscreteEngine
    workers: int = 1

    def serve(self, running: int, sent: int, rest: float, seed: int = 0) -> Fared:
        """A closed loop of so many requests that come to the engines in turn; ``tpot`` is none."""
        rng, spread = np.random.default_rng(seed), self.engine.of.workload.length_spread
        queues: list[list[list[float]]] = [[[] for _ in range(self.engine.ranks)] for _ in range(self.workers)]
        free, turn, waits = [0.0] * self.workers, count(), []
        coming = [(rng.uniform(0.0, rest), next(turn)) for _ in range(running)]
        heapify(coming)
        while len(waits) < sent:
            begins = [max(free[at], min((ready for rank in queues[at] for ready in rank), default=inf)) for at in range(self.workers)]
            now, at = min((begin, at) for at, begin in enumerate(begins))
            if coming and coming[0][0] <= now:
                arrived, number = heappop(coming)
                ranks = queues[number % self.workers]
                min(ranks, key=len).append(arrived + self.engine.admission)
                continue
            taken = [[ready for ready in rank if ready <= now][: int(self.engine.fit)] for rank in queues[at]]
            free[at] = now + self._pass(max(map(len, taken)), sum(map(len, taken)))
            for rank, prompts in zip(queues[at], taken, strict=True):
                del rank[: len(prompts)]
                for ready in prompts:
                    waits.append((free[at], free[at] - ready + self.engine.admission))
                    heappush(coming, (free[at] + rest * rng.uniform(1 - spread, 1 + spread), next(turn)))
        steady = waits[sent // 4 :]
        rate = (len(steady) - 1) / (steady[-1][0] - steady[0][0])
        return Fared(np.nan, float(np.mean([wait for _, wait in steady])), rate)

    def _pass(self, fullest: int, prompts: int) -> float:
        """Seconds of a pass of so many prompts, so many of them on the fullest rank, which ends no sooner than its launches."""
        engine = self.engine.engine
        late = engine.costs.prefill.at(engine.kind, np.array([prompts / self.engine.ranks])).of(engine.prefill_late)[0]
        return self.engine.step(fullest, prompts, 0) + float(late)
