"""Disaggregated systems: prompts run on one pool of engines, tokens are generated on another, and caches cross the network between them.

The slower pool sets the most that the system can serve. Below it a request's life at a rate of requests is known, and it grows with the
rate, so that the rate at which as many requests are under way as the load says is found by secants.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.engines import Degrees
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.inference.crowds import CRITICAL, Load, burst_wait, open_crowd, rounds_of, sent_rate, waits_for_passes
from rapid_dse.simulate.inference.fixed_points import RootSearch, settled
from rapid_dse.simulate.inference.request_lives import PromptPass
from rapid_dse.simulate.inference.serving import Engine, Served
from rapid_dse.simulate.inference.widths import cache_bytes_per_token

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

BURST_ROUNDS = 4  # evaluations of how long the last request of a burst decodes
FASTEST = 1.0 - 1e-9  # of the most that a system can serve
BUSIEST = 0.98  # share of what it can compute at most that a pool is asked for, where its queue is that of one which lasts for ever


@dataclass(frozen=True)
class Flow:
    """A request's way through both pools at a rate, ``(n_rows,)`` each, s: the pass that its prompt shares (``passed``), for which it waits
    (``queue``); until its prompt is computed, its cache's transfer, and from the first to the last token; ``running`` requests on a decode
    engine; ``delayed``: by how much of their own time decode steps are longer for the caches that come in beside them."""

    passed: PromptPass
    queue: FloatColumn
    prompt: FloatColumn
    transfer: FloatColumn
    decode: FloatColumn
    running: FloatColumn
    delayed: FloatColumn

    @property
    def life(self) -> FloatColumn:
        """Seconds from the start of the prompt to the last token."""
        return self.prompt + self.transfer + self.decode


@dataclass(frozen=True)
class Handover:
    """What a cache's way between pools takes beside other traffic: ``slower`` than alone by so many times; seconds by which it delays the
    decode steps that it meets (``decode_delay``) and the prompts (``prompt_delay``)."""

    slower: float = 1.0
    decode_delay: float = 0.0
    prompt_delay: float = 0.0


ALONE = Handover()


@dataclass(frozen=True)
class Rate:
    """Requests a second, ``(n_rows,)``."""

    answer: FloatColumn


class Pools:
    """Both pools of a table's systems, with how many engines each has."""

    def __init__(
        self, scenario: Scenario, engines: tuple[Engine, Engine], workers: tuple[FloatColumn, FloatColumn], handover: Handover = ALONE
    ) -> None:
        self.scenario, (self.prefill, self.decode) = scenario, engines
        self.workers, self.handover = workers, handover
        self.least = self.prefill.least_alone + handover.prompt_delay  # seconds a prompt where passes are full
        self.transfer = handover.slower * handed_over(scenario, self.prefill.cut, self.decode.cut)
        full, delay = self._decode_seconds(self.decode.capacity, np.zeros_like(self.least)), handover.decode_delay
        # requests that end: capacity = rate · full · (1 + delay · rate), solved for an engine's rate
        rate = 2.0 * self.decode.capacity / np.maximum(full + np.sqrt(full * full + 4.0 * delay * full * self.decode.capacity), 1e-12)
        self.most = np.minimum(workers[0] / self.least, workers[1] * rate)

    def _decode_seconds(self, running: FloatColumn, rate: FloatColumn) -> FloatColumn:
        """From a request's first token to its last, where an engine takes so many caches a second."""
        steps = self.decode.later / self.decode.steps_tokens * self.decode.step(running).total
        return np.asarray(steps * (1.0 + self.handover.decode_delay * rate))

    def flow(self, rate: FloatColumn, sent: FloatColumn | None = None) -> Flow:
        """What a request meets where so many arrive a second, of so many that are ``sent`` in all (0 or None: for ever)."""
        passed, queue, prompt = self._prompts(rate / self.workers[0], np.zeros_like(rate) if sent is None else sent / self.workers[0])
        running = np.ones_like(rate)
        rate_a_worker = rate / self.workers[1]
        for _ in range(8):  # requests that decode at a time follow from how long they take, and that from how many they are
            decode = self._decode_seconds(running, rate_a_worker)
            running = np.clip(rate_a_worker * decode, 1e-9, self.decode.capacity)
            if sent is not None:
                running = np.where(
                    sent > 0, open_crowd(rate_a_worker, sent / self.workers[1], decode, self.decode.capacity).running, running
                )
        decode, delayed = self._decode_seconds(running, rate_a_worker), self.handover.decode_delay * rate_a_worker
        return Flow(passed, queue, prompt + queue, self.transfer, decode, running, delayed)

    def _prompts(self, rate: FloatColumn, sent: FloatColumn) -> tuple[PromptPass, FloatColumn, FloatColumn]:
        """The pass of a prompt where so many come to an engine a second, of so many in all (0: for ever), seconds that it waits for it, and
        those until it is computed then: it shares the pass with those that come while one runs, and waits for no more than a run so short
        gathers where as many come as are computed."""
        delay, serving = self.handover.prompt_delay, self.scenario.software.serving
        passed = self.prefill.prompts_alone(np.minimum(rate, BUSIEST / self.least), delay, np.where(sent > 0, sent, np.inf))
        used = np.minimum(rate, BUSIEST / self.least) * passed.alone
        whole = passed.whole + passed.late + np.minimum(1.0, used) * delay
        queue = waits_for_passes(used, passed, np.where(sent > 0, CRITICAL * np.sqrt(sent), np.inf))
        # of few that are sent each waits for half of the others' prompts, if all come at once
        queue = np.where(sent > 0, np.minimum(queue, 0.5 * np.maximum(0.0, sent - 1.0) * passed.alone), queue)
        return passed, queue, np.asarray(serving.admission_latency + whole)

    def serve(self, load: Load) -> Served:
        """How requests fare under each load."""
        open_ = load.rate > 0
        asked = np.minimum(load.concurrency, np.where(load.prompts > 0, np.maximum(1.0, load.prompts), np.inf))
        rate = np.where(open_, np.minimum(load.rate, self.most), self._closed(asked))
        flow = self.flow(rate, np.where(open_, load.prompts, 0.0) if open_.any() else None)
        # where a life is longer from some rate on, a loop has no more requests under way than it was asked for
        sooner = np.where(open_, 0.0, np.clip(flow.life - asked / rate, 0.0, flow.queue))
        flow = replace(flow, prompt=flow.prompt - sooner, queue=flow.queue - sooner)
        under_way = rate * flow.life
        rounds = rounds_of(load.prompts, np.maximum(under_way, 1.0))
        # those that open a run wait for each other's prompts, and not in the queue of those that follow
        burst = np.where(open_, 0.0, burst_wait(under_way * self.least / self.workers[0], rounds) - flow.queue / rounds)
        beyond = np.where(np.isfinite(load.concurrency), load.concurrency - under_way, np.maximum(0.0, load.prompts - under_way) / 2.0)
        late = load.prompts / 2.0 * np.maximum(0.0, 1.0 / self.most - 1.0 / np.maximum(load.rate, 1e-12))
        queue = np.where(open_, late, np.maximum(0.0, beyond) / rate)
        opening = self._burst_lasts(flow, under_way) + self.decode.tail(flow.running, rounds)
        closed = under_way / (flow.life + (opening - flow.life) / rounds)
        # the last request's queue is that of prompts before it, which count in the time of all that are sent
        return self._served(
            flow, queue, burst, np.where(open_, sent_rate(load, flow.life - flow.queue, self.most), np.minimum(rate, closed))
        )

    def _burst_lasts(self, flow: Flow, requests: FloatColumn) -> FloatColumn:
        """Seconds until the last of so many requests ends that arrive at once, and are followed by none.

        Their prompts are computed in full passes, so that they begin to decode over t seconds, and each decodes for D. While the last one
        does, those end that began before it: of n requests n (1 - t / 2D) are beside each other on average, n D / 2t where t is above D.
        """
        engine = requests / self.workers[0]
        begun = np.maximum(0.0, engine - flow.passed.together) * self.least
        decode = flow.decode
        for _ in range(BURST_ROUNDS):
            over = begun / np.maximum(decode, 1e-12)
            running_share = np.where(over < 1.0, 1.0 - 0.5 * over, 0.5 / np.maximum(over, 1.0))
            running = np.minimum(requests / self.workers[1] * running_share, self.decode.capacity)
            decode = self._decode_seconds(running, requests / self.workers[1] / np.maximum(begun + decode, 1e-12))
        return np.asarray(flow.prompt - flow.queue + begun + flow.transfer + decode)

    def part(self, rows: IntColumn) -> Pools:
        """The same systems of some rows."""
        part = copy(self)
        part.prefill, part.decode = self.prefill.part(rows), self.decode.part(rows)
        prefill, decode = self.workers
        part.workers = prefill.take(rows), decode.take(rows)
        part.least, part.transfer, part.most = (column.take(rows) for column in (self.least, self.transfer, self.most))
        return part

    def _closed(self, concurrency: FloatColumn) -> FloatColumn:
        """The rate at which so many requests are under way; the most, where even more could be."""
        slowest = self._under_way(concurrency, self.most * FASTEST, None).answer  # a life never lasts longer than at the most
        search = RootSearch.above(np.minimum(slowest, self.most / 2.0), slowest)
        return settled(lambda rate, rows: self._under_way(concurrency, rate, rows), search)[1].at

    def _under_way(self, concurrency: FloatColumn, rate: FloatColumn, rows: IntColumn | None) -> Rate:
        """The rate at which so many requests would be under way if they lived as long as at some rate; of some rows alone."""
        if rows is not None:
            return self.part(rows)._under_way(concurrency.take(rows), rate, None)
        return Rate(np.minimum(concurrency / self.flow(rate).life, self.most * FASTEST))

    def _served(self, flow: Flow, queue: FloatColumn, burst: FloatColumn, rate: FloatColumn) -> Served:
        decode, later = self.decode, self.decode.later
        step = decode.step(flow.running)
        first = flow.prompt + flow.transfer + burst
        # that decode at a time; where nothing is decoded, whose prompts are under way
        running = flow.running if later else rate * first / self.workers[1]
        return Served(
            running=running,
            capacity=decode.capacity,
            step=step.where,
            host=step.host,
            bubble=step.bubble,
            wait=flow.decode / max(later, 1.0) * flow.delayed / (1.0 + flow.delayed),
            rows=step.rows,
            tpot=flow.decode / later if later else np.full(len(rate), np.nan),
            tokens=decode.steps_tokens,
            first=first,
            queue=queue,
            life=queue + first + flow.decode,
            rate=rate,
            most=self.most,
            prefill=flow.passed.where,
            together=flow.passed.together,
        )


def handed_over(scenario: Scenario, prefill: Degrees, decode: Degrees) -> FloatColumn:
    """Seconds in which a prompt's cache crosses the outermost dimension of the network: each GPU of the smaller side sends or takes its
    share of it, over its own port."""
    network = effective_network(scenario)
    prompt, _ = scenario.workload.lengths
    inner = np.ones(len(prefill.tp))
    members = tuple(2.0 * inner if at == len(network.dimensions) - 1 else inner for at in range(len(network.dimensions)))
    ports = np.minimum(prefill.tp * prefill.cp * prefill.pp, decode.tp * decode.cp * decode.pp)
    size = prompt * cache_bytes_per_token(scenario) / ports
    return closed_form.send_recv(size, Span(members, tuple(inner for _ in members)), network)
