"""One request's life on an engine among others: what decode steps and passes of prompts take, and how long a request lasts.

A request's life sets how many prompts arrive in it, and these how long it lasts. In a closed loop more arrivals make lives longer, and
longer lives make arrivals rarer: one length of life agrees with itself, and is found between two bounds, so that faster steps never come
out as a longer life. In an open loop arrivals are given, and the crowd grows with the life: it is followed upwards from an empty engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.crowds import Crowd, Load, either_crowd, open_crowd
from rapid_dse.simulate.inference.distinct_steps import Between, Costs
from rapid_dse.simulate.inference.products import dense_layers

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

BRACKETS = 12  # evaluations of a closed loop's life
LITTLE_ROUNDS = 40  # of Little's law
LEAST_DECODING = 0.05  # share of its life that a request decodes at least
CAPTURED = {"none": 1.0, "modules": 0.25, "full_iteration": 0.0}  # share of a layer's launches that are left to the host
MOST_SPARED = 0.5  # of a pass of prompts: what decoding rows that share it save at most


@dataclass(frozen=True)
class DecodeStep:
    """A decode step: where it stands in the tables, its sequences on an attention rank, seconds of the device, of the host beside it, and
    of unequal stages."""

    where: Between
    rows: FloatColumn
    device: FloatColumn
    host: FloatColumn
    bubble: FloatColumn

    @property
    def total(self) -> FloatColumn:
        """Seconds of the step."""
        return self.device + self.host + self.bubble


@dataclass(frozen=True)
class PromptPass:
    """A pass of prompts: where it stands in the tables, how many it takes ``together``, its seconds (``whole``), those by which a
    ``prompt`` keeps the engine from decoding, those that others wait for one (``alone``: decoding that goes along delays them too), and for
    which it is held back on average until others have come (``hold``)."""

    where: Between
    together: FloatColumn
    whole: FloatColumn
    prompt: FloatColumn
    alone: FloatColumn
    hold: FloatColumn


@dataclass(frozen=True)
class Life:
    """One request's life among a crowd, ``(n_rows,)`` each: from the first to the last token (``decode``), from start to first token
    (``first``), the seconds that the engine needs for the prompts of all that run (``least``)."""

    crowd: Crowd
    step: DecodeStep
    passed: PromptPass
    decode: FloatColumn
    first: FloatColumn
    least: FloatColumn

    @property
    def total(self) -> FloatColumn:
        """Seconds, but never less than the engine needs."""
        return np.maximum(self.decode + self.first, self.least)


class SteppingEngine:
    """Engines of a table: ``costs`` of their kinds, and which kind each row has; their steps and lives."""

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
        self.prefill_busy = np.maximum(self.prefill_pass.total - self.prefill_pass.pp, plain)
        self.decode_beside = self.decode_pass.attention + self.decode_pass.pp  # of a step: what a pass of prompts does not spare
        # experts' launches run ahead beside decode steps: they delay the prompt, and nothing that decodes
        launches = launched(scenario, prompts.layers, prompts.expert_layers)
        self.prefill_late = np.maximum(0.0, launches - self.prefill_total)
        # of the engine's passes of prompts one ends whenever its slowest stage does
        self.prefill_slowest = np.maximum(prefill.slowest, plain / costs.cut.pp)

    def step(self, running: FloatColumn, decoding: FloatColumn | float = 1.0) -> DecodeStep:
        """A decode step of so many requests, of which such a share decodes at a time."""
        rows = np.maximum(1.0, running * decoding / self.ranks)
        where = self.costs.decode.at(self.kind, rows)
        device = where.of(self.decode_total)
        return DecodeStep(where, rows, device, self._host(rows, device), self._bubble(running, where, device))

    def _host(self, rows: FloatColumn, device: FloatColumn) -> FloatColumn:
        """What the host adds to a decode step of ``rows`` sequences on an attention rank that takes the device so long."""
        serving = self.scenario.software.serving
        launches = self.launches * CAPTURED[self.scenario.software.host.cuda_graphs]
        return np.maximum(0.0, launches - device) + serving.step_latency + serving.sequence_latency * rows

    def _bubble(self, running: FloatColumn, where: Between, device: FloatColumn) -> FloatColumn:
        """What a pass waits for the slowest stage, through which as many batches go one after the other as are in flight: one a stage, but
        no more than there are requests on an attention rank."""
        in_flight = np.minimum(self.cut.pp, running / self.cut.attention_dp)
        return np.where(self.cut.pp > 1, np.maximum(0.0, in_flight * where.of(self.decode_pass.slowest) - device), 0.0)

    def closed_life(self, crowd: Crowd, grouped: NDArray[np.bool_]) -> Life:
        """A request's life in a closed loop.

        Args:
            grouped: whether requests that had their prompts together stay together.
        """
        running, steps = crowd.running, self.later / self.steps_tokens
        full = self.step(running)
        # where every pass takes prompts a request meets so many of them, in one of which is its own
        passed = self._prompts(crowd, full, running / (steps + 1.0), grouped)
        low = steps * self.step(running, LEAST_DECODING).total + self.scenario.software.serving.admission_latency + passed.whole
        waits = (crowd.others + crowd.longest * passed.together + running) * passed.alone + passed.whole * (1.0 + running)
        high = 2.0 * low + (steps + 1.0) * full.total + waits + passed.where.of(self.prefill_late) + passed.hold

        def life(at: FloatColumn) -> Life:
            return self._life(crowd, at, running / at, (full, passed), grouped)

        return life(solved(lambda at: life(at).total, low, high))

    def open_life(self, load: Load, closed: Crowd, grouped: NDArray[np.bool_]) -> Life:
        """The same where rows with a rate have as many requests under way as Little's law has at it, at most as many as can run or are
        sent: followed upwards from an empty engine; ``closed``: the crowd of the others."""
        open_, life = load.rate > 0, np.full(len(load.rate), 1e-9)
        at_rest = self.closed_life(closed, grouped).total if not open_.all() else life
        met = closed.running / (self.later / self.steps_tokens + 1.0)
        arrived = np.where(open_, 0.0, met)
        for _ in range(LITTLE_ROUNDS):
            crowd = either_crowd(open_, open_crowd(load.rate, load.prompts, life, self.capacity), closed)
            life = np.where(open_, life, at_rest)
            full = self.step(crowd.running)
            passed = self._prompts(crowd, full, arrived, grouped)
            open_rates = self._life(crowd, life, np.where(open_, load.rate, closed.running / life), (full, passed), grouped)
            # prompts that come in a step and in what those of a pass lengthen it by share the next one
            arrived = np.where(open_, load.rate * (full.total * bool(self.later) + passed.together * passed.prompt), met)
            life = open_rates.total
        return open_rates

    @cached_property
    def least_a_prompt(self) -> FloatColumn:
        """Seconds a prompt of passes that are full."""
        return self._full_pass(self.capacity).alone

    def behind(self, crowd: Crowd, passed: PromptPass) -> FloatColumn:
        """Seconds that a request waits where prompts come faster than full passes of them are computed."""
        return crowd.behind(np.minimum(passed.prompt, self.least_a_prompt))

    def _full_pass(self, running: FloatColumn) -> PromptPass:
        """A pass of as many prompts as fit, of so many requests."""
        together = np.maximum(1.0, np.minimum(self.costs.together[self.kind] * self.cut.attention_dp, running))
        where = self.costs.prefill.at(self.kind, together / self.cut.attention_dp)
        alone = where.of(self.prefill_slowest) / together
        return PromptPass(where, together, where.of(self.prefill_total), alone, alone, np.zeros_like(alone))

    def _habits(self, running: FloatColumn, grouped: NDArray[np.bool_]) -> tuple[FloatColumn, FloatColumn, FloatColumn]:
        """How requests of one length that have had their prompts in one pass, and so end together, keep those that follow them together:
        share of a pass's prompts that come so; how many at least; share of requests of which all are one round."""
        serving, scheduler = self.scenario.software.serving, self.scenario.software.serving.scheduler
        alike = np.where(grouped & (scheduler != "chunked"), serving.in_step, 0.0)
        group = np.where(grouped & (scheduler != "prefill_first"), np.minimum(serving.prompts_together, running), 1.0)
        return alike, group, alike * (scheduler == "prefill_first")  # prompts that run first hold all decoding up

    def _life(
        self, crowd: Crowd, life: FloatColumn, rate: FloatColumn, steps_of: tuple[DecodeStep, PromptPass], grouped: NDArray[np.bool_]
    ) -> Life:
        """How long a request lasts where so many arrive a second, and it would last so long.

        Args:
            steps_of: a step in which all requests decode, and the pass that a prompt shares.
        """
        serving, (full, passed), steps = self.scenario.software.serving, steps_of, self.later / self.steps_tokens
        _, group, rounds = self._habits(crowd.running, grouped)
        queue = crowd.queue(rate, passed.prompt, passed.alone, np.where(grouped, passed.together, 1.0))
        if (open_ := np.isfinite(crowd.spacing)).any():
            own = crowd.waits_for_passes(rate, passed.alone * passed.together, passed.together, self.least_a_prompt)
            queue = np.where(open_, np.maximum(own, self.behind(crowd, passed)), queue)
        round_wait = np.maximum(0.0, crowd.running * passed.alone - passed.whole) / 2.0
        behind = passed.whole * (np.maximum(1.0, group / passed.together) - 1.0) / 2.0  # passes that a group takes
        first = (
            serving.admission_latency
            + passed.whole
            + passed.where.of(self.prefill_late)
            + passed.hold
            + rounds * crowd.steady * round_wait
            + (1.0 - rounds) * (queue + crowd.steady * behind + 0.5 * full.total * crowd.busy)
        )
        decoding = np.minimum(np.maximum(1.0 - first / life, LEAST_DECODING), 1.0)
        step = self.step(crowd.running, decoding)
        waiting = serving.decode_wait * (0.5 * rounds + decoding * (1.0 - rounds))
        decode = steps * step.total + waiting * passed.prompt * crowd.others * bool(steps)
        return Life(crowd, step, passed, np.asarray(decode), np.asarray(first), (crowd.others + 1.0) * passed.prompt)

    def _prompts(self, crowd: Crowd, full: DecodeStep, arrived: FloatColumn, grouped: NDArray[np.bool_]) -> PromptPass:
        """The pass that a prompt shares with those that come beside it by habit, or that have come since the last pass began (``arrived``);
        ``full``: a step in which all requests decode."""
        scheduler, steps = self.scenario.software.serving.scheduler, self.later / self.steps_tokens
        alike, group, rounds = self._habits(crowd.running, grouped)
        most = self._full_pass(crowd.running)
        share = group if scheduler == "chunked" else alike * most.together
        by_itself = np.clip(np.maximum(share, arrived), 1.0, most.together)
        together, hold = self._hold(crowd.running, by_itself, arrived, full)
        where = self.costs.prefill.at(self.kind, together / self.cut.attention_dp)
        spared = np.zeros_like(together)
        if scheduler != "prefill_first" and steps:  # decoding goes along: its products and launches are the pass's own
            passes = (1.0 - 0.5 * rounds) * crowd.others / together  # that a request meets; no more of its steps than it has go along
            spared = self._spared(full, together, where) * np.minimum(1.0, steps / np.maximum(passes, 1e-12))
        alone = where.of(self.prefill_slowest) / together
        return PromptPass(where, together, where.of(self.prefill_total), (1.0 - spared) * alone, alone, hold)

    def _hold(self, running: FloatColumn, together: FloatColumn, arrived: FloatColumn, full: DecodeStep) -> tuple[FloatColumn, FloatColumn]:
        """Prompts that share a pass, and seconds that they wait for it on average, where they are held back until each of attention's ranks
        has one, or for so many steps; none is where some rank has nothing to decode, as long as that lasts.

        Args:
            together: prompts that share a pass anyway; ``arrived`` in a step.
        """
        ranks, most = self.cut.attention_dp, float(self.scenario.software.serving.attention_dp_wait)
        decoding = np.clip(running / ranks - 1.0, 0.0, 1.0)  # share of the time in which all ranks decode, about
        steps = decoding * np.minimum(most, ranks / np.maximum(arrived, 1e-12))
        waits = together < ranks
        return np.where(waits, np.maximum(together, steps * arrived), together), np.where(waits, 0.5 * steps * full.total, 0.0)

    def _spared(self, step: DecodeStep, together: FloatColumn, where: Between) -> FloatColumn:
        """By which share of a pass of prompts one with decoding in it is shorter than both apart, sends between stages left out: weights
        are read and kernels launched once, the arithmetic of the decoding rows stays."""
        prompts = together / self.cut.attention_dp + step.rows / self.costs.prompts.queries
        whole = where.of(self.prefill_busy)
        more = self.costs.prefill.at(self.kind, prompts).of(self.prefill_busy) - whole
        own = step.device - step.where.of(self.decode_beside)
        return np.clip((own - more) / whole, 0.0, MOST_SPARED)


def solved(answer: Callable[[FloatColumn], FloatColumn], low: FloatColumn, high: FloatColumn) -> FloatColumn:
    """Where ``answer(x)`` is x, between bounds at which it is not below x and not above it: false position on logarithms, by which the end
    that stays counts half (Illinois)."""
    low, high = np.log(low), np.log(high)
    below, above = np.log(answer(np.exp(low))) - low, np.log(answer(np.exp(high))) - high
    side = np.zeros(len(low), np.int8)
    for _ in range(BRACKETS):
        gap = np.maximum(below - above, 1e-300)
        middle = np.minimum(np.maximum(low + (high - low) * below / gap, low), high)
        off = np.log(answer(np.exp(middle))) - middle
        up = off > 0
        above = np.where(up, np.where(side == 1, above / 2, above), off)
        below = np.where(up, off, np.where(side == -1, below / 2, below))
        low, high = np.where(up, middle, low), np.where(up, high, middle)
        side = np.where(up, 1, -1).astype(np.int8)
    return np.exp(middle)


def launched(scenario: Scenario, layers: FloatColumn | float, experts: FloatColumn | float) -> FloatColumn:
    """Seconds in which the host launches so many layers, of which so many have experts, kernel by kernel."""
    software = scenario.software
    a_layer = software.host.host_layer * software.host.host_without_gradients / 3  # forward, of forward and backward
    of_experts = software.serving.expert_launch * (2.0 if scenario.model.kv_lora_rank else 1.0)
    return np.asarray((layers - experts) * a_layer + experts * of_experts)


def accepted(drafts: int, acceptance: float) -> float:
    """Tokens that a step gives on average: each draft counts where those before it were accepted, and the model adds one of its own."""
    return sum(acceptance**k for k in range(drafts + 1))
