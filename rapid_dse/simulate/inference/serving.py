"""Requests on one engine, without a simulation of each: static batches, closed and open loops, all at once.

In a closed loop every request that ends brings the next one, so that each running request sees the prompts of all others once in its own
life. How long that life is, how many requests decode at a time, and how many prompts share a pass follow from each other: a fixed point,
found for all rows at once. An open loop is a closed one of as many requests as Little's law has at its rate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.distinct_steps import Between, Costs
from rapid_dse.simulate.inference.passes import EnginePass
from rapid_dse.simulate.inference.products import dense_layers

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

ROUNDS = 14  # of the fixed point; of 1,700 measured loads all but one in a hundred then move by less than 1e-4
STRIDE = 0.8  # share of the way to what comes out that each goes: full steps swing where prompts take most of a life
LITTLE_ROUNDS = 40  # of Little's law, which moves by halves
CAPTURED = {"none": 1.0, "modules": 0.25, "full_iteration": 0.0}  # share of a layer's launches that are left to the host


@dataclass(frozen=True)
class Load:
    """What an engine is asked for, ``(n_rows,)`` each: requests under way at most (infinite: all at once), or requests a second (0: none
    is given); ``prompts``: how many are sent in all, 0: for ever; ``static``: requests that start and end together."""

    concurrency: FloatColumn
    rate: FloatColumn
    prompts: FloatColumn
    static: NDArray[np.bool_]


@dataclass(frozen=True)
class Served:
    """How requests fare on an engine, ``(n_rows,)`` each.

    Attributes:
        running: requests that run at a time; ``capacity``: as many as can.
        rows: sequences of an attention rank in a decode step.
        step: a decode step by term; ``host``: what the host adds to it; ``bubble``: what unequal stages do.
        wait: of a token on others' prefill, s.
        tpot: from token to token, s; ``tokens`` that a step gives a request.
        first: from start to first token, s; ``queue``: from arrival to start.
        life: from arrival to the last token, s.
        rate: requests a second; ``most``: the most that the engine can keep up with.
        prefill: one pass of prompts, and ``together`` how many prompts it takes.
    """

    running: FloatColumn
    capacity: FloatColumn
    rows: FloatColumn
    step: EnginePass
    host: FloatColumn
    bubble: FloatColumn
    wait: FloatColumn
    tpot: FloatColumn
    tokens: float
    first: FloatColumn
    queue: FloatColumn
    life: FloatColumn
    rate: FloatColumn
    most: FloatColumn
    prefill: EnginePass
    together: FloatColumn


@dataclass(frozen=True)
class _Life:
    """One request's life in a closed loop of ``running`` requests."""

    running: FloatColumn
    where: Between
    rows: FloatColumn  # sequences of an attention rank in a step
    step: FloatColumn
    host: FloatColumn  # part of a step, as is
    bubble: FloatColumn
    decode: FloatColumn  # seconds from the first to the last token
    first: FloatColumn
    prompt: FloatColumn  # seconds of the engine that a prompt takes
    together: FloatColumn
    pass_where: Between

    @property
    def total(self) -> FloatColumn:
        """Seconds, but never less than the engine needs for as many prompts as run."""
        return np.maximum(self.decode + self.first, self.running * self.prompt)


class Engine:
    """Engines of a table: ``costs`` of their kinds, and which kind each row has."""

    def __init__(self, scenario: Scenario, costs: Costs, kind: IntColumn) -> None:
        self.scenario, self.costs, self.kind = scenario, costs, kind
        self.cut: Degrees = costs.cut.take(kind)
        work, software = scenario.workload, scenario.software
        self.steps_tokens = accepted(work.draft_tokens or 0, work.draft_acceptance or 0.0)
        self.later = float(work.lengths[1] - 1)  # tokens behind the first
        self.ranks = (self.cut.attention_dp * self.cut.pp).astype(np.float64)
        self.capacity = costs.room.requests[kind] * self.cut.attention_dp
        layers, prompts = scenario.model.num_hidden_layers, costs.prefill.work
        self.launches = float(launched(scenario, layers, layers - dense_layers(scenario.model)))
        self.decode_pass = costs.decode.passes(software.serving)
        self.prefill_pass = prefill = costs.prefill.passes(software.serving, software.serving.prefill_efficiency, costs.prompts.chunks)
        self.decode_total = self.decode_pass.total
        plain = launched(scenario, prompts.layers, 0.0)
        self.prefill_total = np.maximum(self.prefill_pass.total, plain)
        # experts' launches run ahead beside decode steps: they delay the prompt, and nothing that decodes
        launches = launched(scenario, prompts.layers, prompts.expert_layers)
        self.prefill_late = np.maximum(0.0, launches - self.prefill_total)
        # of the engine's passes of prompts one ends whenever its slowest stage does
        self.prefill_slowest = np.maximum(prefill.slowest, plain / costs.cut.pp)

    def at(self, running: FloatColumn) -> tuple[Between, FloatColumn, FloatColumn]:
        """Where a decode step of so many requests stands in the tables, its sequences on an attention rank, and its device's seconds."""
        rows = np.maximum(1.0, running / self.ranks)
        where = self.costs.decode.at(self.kind, rows)
        return where, rows, where.of(self.decode_total)

    def step(self, running: FloatColumn) -> FloatColumn:
        """Seconds of a decode step of so many requests that all decode."""
        where, rows, device = self.at(running)
        return device + self.host(rows, device) + self.bubble(running, where, device)

    def host(self, rows: FloatColumn, device: FloatColumn) -> FloatColumn:
        """What the host adds to a decode step of ``rows`` sequences on an attention rank that takes the device so long."""
        serving = self.scenario.software.serving
        left = self.launches * CAPTURED[self.scenario.software.host.cuda_graphs]
        return np.maximum(0.0, left - device) + serving.step_latency + serving.sequence_latency * rows

    def bubble(self, running: FloatColumn, where: Between, device: FloatColumn) -> FloatColumn:
        """What a pass waits for the slowest stage, through which as many batches go one after the other as are in flight: one a stage, but
        no more than there are requests on an attention rank."""
        in_flight = np.minimum(self.cut.pp, running / self.cut.attention_dp)
        return np.where(self.cut.pp > 1, np.maximum(0.0, in_flight * where.of(self.decode_pass.slowest) - device), 0.0)

    def life(self, running: FloatColumn, grouped: NDArray[np.bool_]) -> _Life:
        """The fixed point of a closed loop of so many running requests.

        Args:
            grouped: whether requests that had their prompts together stay together.
        """
        decoding, life = np.full(len(running), 0.9), self.decode_seconds(running)
        found = self._round(running, decoding, life, grouped)
        for _ in range(ROUNDS):
            decoding = decoding + STRIDE * (found.decode / np.maximum(found.total, 1e-12) - decoding)
            life = life * (found.total / life) ** STRIDE
            found = self._round(running, decoding, life, grouped)
        return found

    def decode_seconds(self, running: FloatColumn) -> FloatColumn:
        """A first guess of a request's life: decoding alone."""
        return np.asarray(
            (self.later + 1.0) / self.steps_tokens * self.costs.decode.at(self.kind, running / self.ranks).of(self.decode_total)
        )

    def _round(self, running: FloatColumn, decoding: FloatColumn, life: FloatColumn, grouped: NDArray[np.bool_]) -> _Life:
        serving, scheduler = self.scenario.software.serving, self.scenario.software.serving.scheduler
        where, rows, device = self.at(running * decoding)
        host, bubble = self.host(rows, device), self.bubble(running, where, device)
        step = device + host + bubble
        most = np.maximum(1.0, np.minimum(self.costs.together[self.kind] * self.cut.attention_dp, running))
        # requests of one length that have had their prompts in one pass end together, and those that follow them start together
        # attention's copies take theirs together, since experts wait for all of them
        least = np.minimum(self.cut.attention_dp, most)
        alike = np.where(grouped & (scheduler != "chunked"), serving.in_step, 0.0)
        group = np.where(grouped & (scheduler != "prefill_first"), np.minimum(serving.prompts_together, running), 1.0)
        arriving = running / np.maximum(life, 1e-12) * step
        together = np.clip(np.maximum(np.maximum(group, alike * most), arriving), least, most)
        pass_where = self.costs.prefill.at(self.kind, np.maximum(1.0, together / self.cut.attention_dp))
        whole = pass_where.of(self.prefill_total)
        beside = whole
        if scheduler != "prefill_first":  # decoding goes along: its products and launches are the pass's own
            spared = step - where.of(self.decode_pass.attention)
            beside = np.maximum(whole - spared * (self.later > 0), 0.5 * whole)
        prompt = beside / whole * pass_where.of(self.prefill_slowest) / together
        others = np.maximum(0.0, running - 1.0)
        rounds = alike * (scheduler == "prefill_first")  # prompts hold all decoding up, so that all requests of a round end together
        waiting = serving.decode_wait * (0.5 * rounds + decoding * (1.0 - rounds))
        decode = self.later / self.steps_tokens * step + waiting * prompt * others * (self.later > 0)
        busy = np.minimum(running * prompt / np.maximum(life, 1e-12), 0.95)
        queue = np.minimum(busy * prompt * np.where(grouped, together, 1.0) / (2.0 * (1.0 - busy)), others * prompt / 2.0)
        round_wait = np.maximum(0.0, running * prompt - whole) / 2.0
        behind = whole * (np.maximum(1.0, group / together) - 1.0)  # passes that a group takes
        first = (
            serving.admission_latency
            + whole
            + pass_where.of(self.prefill_late)
            + rounds * round_wait
            + (1.0 - rounds) * (queue + behind + 0.5 * step * (others > 0))
        )
        return _Life(running, where, rows, step, host, bubble, np.asarray(decode), np.asarray(first), prompt, together, pass_where)

    def serve(self, load: Load) -> Served:
        """How requests fare under each load."""
        grouped = (load.rate <= 0) & (self.scenario.workload.length_spread == 0)
        most = np.full(len(load.rate), np.inf)
        if (load.rate > 0).any():
            most = self.capacity / self.life(self.capacity, grouped).total
        running = np.minimum(load.concurrency, self.capacity)
        if (load.rate > 0).any():
            running = np.where(load.rate > 0, self._little(load.rate), running)
        found = self.life(running, grouped)
        served = self._served(found, load, most)
        return _where(load.static, self._static(load), served) if load.static.any() else served

    def _little(self, rate: FloatColumn) -> FloatColumn:
        """Requests that run at an arrival rate: rate · life, at most as many as can. Both fixed points are found together."""
        running, apart = np.ones_like(rate), np.zeros(len(rate), bool)
        found = self._round(running, np.full(len(rate), 0.9), self.decode_seconds(running), apart)
        for _ in range(LITTLE_ROUNDS):
            running = 0.5 * running + 0.5 * np.clip(rate * found.total, 1e-9, self.capacity)
            found = self._round(running, found.decode / np.maximum(found.total, 1e-12), found.total, apart)
        return running

    def _served(self, found: _Life, load: Load, most: FloatColumn) -> Served:
        open_, spread = load.rate > 0, self.scenario.workload.length_spread
        keeps_up = load.rate < most
        flow = np.where(open_ & keeps_up, load.rate, found.running / found.total)
        rounds = np.where(load.prompts > 0, np.maximum(1.0, load.prompts / found.running), np.inf)
        burst = np.where(open_, 0.0, burst_wait(np.maximum(0.0, found.running - 1.0) * found.prompt, rounds))
        queue = np.where(open_, _waiting(load, found, self.capacity, most), _queued(load, found, flow))
        tail = np.where(open_, 1.0, tail_share(rounds, spread))
        flow = np.where(open_, flow, found.running / (found.total + burst) * tail)
        tpot = found.decode / self.later if self.later else np.full(len(flow), np.nan)
        step = found.where.all_of(self.decode_pass)
        return Served(
            running=np.minimum(found.running, flow * (found.total + burst)) if open_.all() else found.running,
            capacity=self.capacity,
            rows=found.rows,
            step=step,
            host=found.host,
            bubble=found.bubble,
            wait=np.maximum(0.0, tpot - found.step / self.steps_tokens) if self.later else np.zeros(len(flow)),
            tpot=tpot,
            tokens=self.steps_tokens,
            first=found.first + burst,
            queue=queue,
            life=queue + found.first + burst + found.decode,
            rate=flow,
            most=most,
            prefill=found.pass_where.all_of(self.prefill_pass),
            together=found.together,
        )

    def _static(self, load: Load) -> Served:
        """A batch that starts and ends together: all prompts first, then decode steps until the longest request ends."""
        batch = np.where(np.isfinite(load.concurrency), np.maximum(1.0, load.concurrency), 1.0)
        where, rows, device = self.at(batch)
        host, bubble = self.host(rows, device), self.bubble(batch, where, device)
        on_rank = np.maximum(1.0, batch / self.cut.attention_dp)
        together = np.minimum(on_rank, self.costs.together[self.kind])
        pass_where = self.costs.prefill.at(self.kind, together)
        passes = on_rank / together
        alone = pass_where.of(self.prefill_total) + pass_where.of(self.prefill_late)
        first = alone + (passes - 1.0) * pass_where.of(self.prefill_slowest)
        host = host + self.scenario.software.serving.script_latency
        step = (device + host + bubble) / self.steps_tokens
        longest = 1.0 + self.scenario.workload.length_spread
        rate = batch / (first + self.later * longest * step)
        return Served(
            running=batch,
            capacity=self.capacity,
            rows=rows,
            step=where.all_of(self.decode_pass),
            host=host,
            bubble=bubble,
            wait=np.zeros(len(batch)),
            tpot=step if self.later else np.full(len(batch), np.nan),
            tokens=self.steps_tokens,
            first=first,
            queue=np.zeros(len(batch)),
            life=first + self.later * step,
            rate=rate,
            most=rate,
            prefill=pass_where.all_of(self.prefill_pass),
            together=together * self.cut.attention_dp,
        )


def launched(scenario: Scenario, layers: FloatColumn | float, experts: FloatColumn | float) -> FloatColumn:
    """Seconds in which the host launches so many layers, of which so many have experts, kernel by kernel."""
    software = scenario.software
    a_layer = software.host.host_layer * software.host.host_without_gradients / 3  # forward, of forward and backward
    of_experts = software.serving.expert_launch * (2.0 if scenario.model.kv_lora_rank else 1.0)
    return np.asarray((layers - experts) * a_layer + experts * of_experts)


def accepted(drafts: int, acceptance: float) -> float:
    """Tokens that a step gives on average: each draft counts where those before it were accepted, and the model adds one of its own."""
    return sum(acceptance**k for k in range(drafts + 1))


def burst_wait(prompts: FloatColumn, rounds: FloatColumn) -> FloatColumn:
    """What the burst that opens a run adds to the mean time to the first token, s.

    All requests of the first round arrive at once and wait for each other's prompts, half of them on average. They start to generate one
    after the other, and so they end: what follows them arrives as slowly as prompts are taken.

    Args:
        prompts: seconds that the prompts of all running requests take.
        rounds: requests that each running one is followed by in the whole run, itself included; infinite: for ever.
    """
    return np.asarray(np.where(np.isfinite(rounds), 0.5 * prompts / np.minimum(rounds, 1e12), 0.0))


def tail_share(rounds: FloatColumn, spread: float) -> FloatColumn:
    """The mean rate of a run over that of its steady state: when no request is left to start, those that run end one by one, over as much
    of a life as lengths have drifted apart."""
    finite = np.minimum(rounds, 1e12)
    return np.asarray(1.0 / (1.0 + 0.5 * np.minimum(1.0, 2.0 * spread * np.sqrt(finite)) / finite))


def _queued(load: Load, found: _Life, flow: FloatColumn) -> FloatColumn:
    """What requests beyond those that run wait for their turn: in a closed loop all of them go round; at once, half of those sent."""
    waiting = np.where(np.isfinite(load.concurrency), load.concurrency - found.running, np.maximum(0.0, load.prompts - found.running) / 2.0)
    return np.asarray(np.maximum(0.0, waiting) / flow)


def _waiting(load: Load, found: _Life, capacity: FloatColumn, most: FloatColumn) -> FloatColumn:
    """What a request of an open loop waits for one of ``capacity`` places.

    Below capacity M/G/c by Sakasegawa (1977), lives nearly constant: good to some 10 % where places are many. Beyond it the queue grows
    for as long as requests arrive, and the mean request waits for half of it.
    """
    used = np.minimum(load.rate / most, 0.999)
    below = 0.5 * used ** (np.sqrt(2.0 * (capacity + 1.0)) - 1.0) / (1.0 - used) * found.total / capacity
    beyond = np.maximum(0.0, load.prompts / 2.0 * (1.0 / most - 1.0 / np.maximum(load.rate, 1e-12)))
    return np.asarray(np.where(load.rate < most, below, beyond))


def _where(mask: NDArray[np.bool_], one: Served, other: Served) -> Served:
    names = ("running", "rows", "host", "bubble", "wait", "tpot", "first", "queue", "life", "rate", "most", "together")
    columns = {name: np.where(mask, getattr(one, name), getattr(other, name)) for name in names}
    return replace(other, **columns, step=_either(mask, one.step, other.step), prefill=_either(mask, one.prefill, other.prefill))


def _either(mask: NDArray[np.bool_], one: EnginePass, other: EnginePass) -> EnginePass:
    return EnginePass(*(np.where(mask, getattr(one, each.name), getattr(other, each.name)) for each in fields(one)))
