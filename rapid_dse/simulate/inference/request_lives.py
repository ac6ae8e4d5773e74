"""One request's life on an engine among others: what decode steps and passes of prompts take, and how long a request lasts.

A request's life sets how many prompts arrive in it, and these how long it lasts. In an open loop arrivals are given, and the crowd grows
with the life: it is followed upwards from an empty engine. Closed loops are those of ``closed_loop``.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added, rows_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.simulate.inference.crowds import Crowd, Load, open_crowd, waits_for_passes
from rapid_dse.simulate.inference.distinct_steps import Between, Costs
from rapid_dse.simulate.inference.fixed_points import RootSearch, settled
from rapid_dse.simulate.inference.passes import BUSY
from rapid_dse.simulate.inference.products import dense_layers
from rapid_dse.simulate.inference.rank_prompts import until_each_has_one

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

LITTLE_ROUNDS = 24  # of Little's law at most; most rows need eight
STAYS = 1e-8  # share of a time by which it changes no more
FIRST_ROUNDS = 4  # of these, in which what is waited for before decoding settles
FULLEST = 1.0 - 1e-6  # share of the time that prompts take at most
LEAST_DECODING = 0.05  # share of its life that a request decodes at least
CAPTURED = {"none": 1.0, "modules": 0.25, "full_iteration": 0.0}  # share of a layer's launches that are left to the host
OF_LENGTHS = ("later", "queries", "steps_tokens")  # of an engine, that follow from the lengths of its requests
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

    @cached_property
    def total(self) -> FloatColumn:
        """Seconds of the step."""
        return self.device + self.host + self.bubble


@dataclass(frozen=True)
class PromptPass:
    """A pass of prompts: where it stands in the tables, how many it takes ``together``, its seconds (``whole``), for which its first tokens
    wait for the host that launches it (``late``), those by which a ``prompt`` keeps the engine from decoding, those that others wait for
    one (``alone``: decoding that goes along delays them too; in passes that are full, ``least``), and for which it is held back on average
    until others have come (``hold``)."""

    where: Between
    together: FloatColumn
    whole: FloatColumn
    late: FloatColumn
    prompt: FloatColumn
    alone: FloatColumn
    least: FloatColumn
    hold: FloatColumn


@dataclass(frozen=True)
class Life:
    """One request's life among a crowd, ``(n_rows,)`` each: from the first to the last token (``decode``), from start to first token
    (``first``), s."""

    crowd: Crowd
    step: DecodeStep
    passed: PromptPass
    decode: FloatColumn
    first: FloatColumn

    @property
    def total(self) -> FloatColumn:
        """Seconds."""
        return self.decode + self.first


@dataclass(frozen=True)
class Coming:
    """Prompts that come at random, ``(n_rows,)`` each: so many a second, of which ``most`` fit a pass, and seconds of the decode step
    beside it (``turn``; None: nothing is decoded)."""

    rate: FloatColumn
    most: FloatColumn
    turn: FloatColumn | None = None


@dataclass(frozen=True)
class Sharing:
    """How many prompts share a pass, ``(n_rows,)``."""

    answer: FloatColumn


class SteppingEngine:
    """Engines of a table: ``costs`` of their kinds, and which kind each row has; their steps and lives."""

    def __init__(self, scenario: Scenario, costs: Costs, kind: IntColumn) -> None:
        self.scenario, self.costs = scenario, costs
        self.place(kind)
        work, software = scenario.workload, scenario.software
        # tokens behind the first, and those of a prompt that are computed; of engines that are joined, columns of their rows
        self.later: FloatColumn | float = float(work.lengths[1] - 1)
        self.queries: FloatColumn | float = costs.prompts.queries
        self.decodes = bool(self.later)
        # that a step gives: no more than there are, whatever drafts are accepted
        accepted_tokens = accepted(work.draft_tokens or 0, work.draft_acceptance or 0.0)
        self.steps_tokens: FloatColumn | float = min(accepted_tokens, max(1.0, self.later))
        layers, prompts = scenario.model.num_hidden_layers, costs.prefill.work
        self.launches = float(launched(scenario, layers, layers - dense_layers(scenario.model)))
        self.decode_pass = costs.decode.passes(software.serving)
        self.prefill_pass = prefill = costs.prefill.passes(software.serving, software.serving.prefill_efficiency)
        self.decode_total = self.decode_pass.total
        plain = launched(scenario, prompts.layers, 0.0)
        self.prefill_total = np.maximum(self.prefill_pass.total, plain)
        self.prefill_busy = np.maximum(self.prefill_pass.total - self.prefill_pass.pp, plain)
        self.prefill_head, self.decode_head = prompts.head / software.serving.prefill_efficiency, costs.decode.work.head
        # of a pass of prompts what grows with the tokens of rows that decode beside them, and of a step what such a pass does not spare
        self.prefill_products = self.prefill_busy - self.prefill_pass.attention - self.prefill_head
        self.decode_beside = self.decode_pass.attention + self.decode_pass.pp
        # experts' launches run ahead beside decode steps: they delay the prompt, and nothing that decodes
        launches = launched(scenario, prompts.layers, prompts.expert_layers)
        self.prefill_late = np.maximum(0.0, launches - self.prefill_total)
        # of the engine's passes of prompts one ends whenever its slowest stage does
        self.prefill_slowest = np.maximum(prefill.slowest, plain / costs.cut.pp)
        # where nothing is decoded the device has nothing else to do while the host launches experts, a stage's by each stage's own host
        self.prefill_ends = np.maximum(self.prefill_slowest, launches / costs.cut.pp)
        if not self.decodes:
            self.prefill_total, self.prefill_slowest = np.maximum(self.prefill_total, launches), self.prefill_ends
            self.prefill_late = np.zeros_like(self.prefill_total)
        # of the slowest stage what has the tokens of all attention ranks, and what has those of the fullest
        self.prefill_of_all = prefill.slowest * prompts.of_all_ranks / added(getattr(prompts, name) for name in BUSY)
        self.prefill_of_fullest = prefill.slowest - self.prefill_of_all

    def place(self, kind: IntColumn) -> None:
        """Sets what rows of such kinds have."""
        self.kind, self.cut = kind, self.costs.cut.take(kind)
        self.attention_dp, self.pp = self.cut.attention_dp.astype(np.float64), self.cut.pp.astype(np.float64)
        self.ranks = self.attention_dp * self.pp
        self.capacity = self.costs.room.requests.take(kind) * self.attention_dp
        self.fit_a_pass = self.costs.together.take(kind) * self.attention_dp  # prompts

    def part(self, rows: Any) -> Self:
        """The same engines of some rows, a slice or positions."""
        part = copy(self)
        for name in [name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)]:
            del vars(part)[name]  # of all rows
        part.place(self.kind[rows])
        for name in OF_LENGTHS:
            if isinstance(of_rows := getattr(self, name), np.ndarray):
                setattr(part, name, of_rows[rows])
        return part

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
        """What a pass waits for the slowest stage, through which as many batches go one after the other as are in flight."""
        if not self._piped.any():
            return np.zeros_like(device)
        return np.asarray(self._piped * np.maximum(0.0, self._in_flight(running) * where.of(self.decode_pass.slowest) - device))

    def _in_flight(self, running: FloatColumn) -> FloatColumn:
        """Batches that go through the stages one after the other: one a stage, but no more than there are requests on an attention rank."""
        return np.asarray(np.minimum(self.pp, running / self.attention_dp))

    @cached_property
    def _piped(self) -> NDArray[np.bool_]:
        """Whether there are several stages."""
        return self.pp > 1.0

    def late(self, where: Between) -> FloatColumn:
        """Seconds by which launches of experts delay the prompts of such passes, and nothing that decodes."""
        return where.of(self.prefill_late) if self.prefill_late.any() else np.zeros_like(where.share)

    def _turn(self, running: FloatColumn, step: DecodeStep) -> FloatColumn:
        """Seconds between the steps of two batches in flight."""
        return np.asarray(step.total * self.decodes / np.maximum(1.0, self._in_flight(running)))

    def _shared(self, coming: Coming, alike: RootSearch | None = None) -> RootSearch:
        """Prompts that share a pass where they come at random: all that have come during the last pass and the step beside it; ``alike``:
        the search for nearly as many."""
        one = np.ones_like(coming.rate)
        search = RootSearch.above(one) if alike is None else RootSearch.above(one, alike.at, alike.slope)
        return settled(lambda shared, rows: self._together(coming, shared, rows), search)[1]

    def _together(self, coming: Coming, shared: FloatColumn, rows: IntColumn | None) -> Sharing:
        """Prompts that share a pass where passes last as long as those of so many (``shared``); of some rows alone.

        A pass that no prompt has come for is none, so that of m that come on average m / (1 − exp(−m)) share one. With r that come in a
        turn and u the share of the time that prompts take, m (1 − u / (1 − exp(−m))) = r: m is r / (1 − u) where many come in a turn,
        −ln(1 − u) where none does.
        """
        if rows is not None:
            return self.part(rows)._together(rows_of(coming, rows), shared, None)
        seconds = self.alone_a_prompt(shared)
        used, turned = np.minimum(coming.rate * seconds, FULLEST), 0.0 if coming.turn is None else coming.rate * coming.turn
        met = np.maximum(turned / (1.0 - used) - np.log1p(-used) * np.exp(-turned), 1e-9)
        return Sharing(np.minimum(np.maximum(met / -np.expm1(-met), 1.0), coming.most))

    def alone_a_prompt(self, together: FloatColumn) -> FloatColumn:
        """Seconds a prompt of passes of so many where nothing is decoded."""
        where = self.costs.prefill.at(self.kind, together / self.attention_dp)
        return np.asarray(where.of(self.prefill_ends) / together)

    def prompts_alone(self, rate: FloatColumn, delay: float, sent: FloatColumn) -> PromptPass:
        """The pass that a prompt shares where so many come a second, at random, of as many as are ``sent`` in all, and nothing is decoded.

        Args:
            delay: seconds that each prompt takes more.
        """
        most = self._most_together(np.minimum(self.capacity, sent))
        together = self._shared(Coming(rate, most)).at
        where = self.costs.prefill.at(self.kind, together / self.attention_dp)
        alone, least = self.alone_a_prompt(together) + delay, self.alone_a_prompt(most) + delay
        whole, late = where.of(self.prefill_total), self.late(where)
        return PromptPass(where, together, whole, late, alone, alone, least, np.zeros_like(alone))

    def _most_together(self, running: FloatColumn) -> FloatColumn:
        """Prompts that fit a pass, of so many requests."""
        return np.maximum(1.0, np.minimum(self.fit_a_pass, running))

    def open_life(self, load: Load, most: FloatColumn, full: Life) -> Life:
        """A request's life where so many come a second: as many are under way as Little's law has, followed upwards from an empty engine.

        Args:
            most: requests a second that the engine keeps up with; those beyond wait for a place.
            full: a life in the closed loop of as many as have a place: as long as that one, decoding never lasts.
        """
        serving, steps = self.scenario.software.serving, self.later / self.steps_tokens
        rate = np.clip(load.rate, 1e-12, most)
        decode, before = np.zeros_like(rate), np.full_like(rate, 1e-9)
        search, sharing = None, None
        for turns in range(LITTLE_ROUNDS):
            crowd = open_crowd(rate, load.prompts, before + decode, self.capacity)
            step = self.step(crowd.running, np.clip(decode / (before + decode), LEAST_DECODING, 1.0))
            come = rate * crowd.met_share
            sharing = self._shared(Coming(come, self._most_together(crowd.most), self._turn(crowd.running, step)), sharing)
            ended = come * decode / np.maximum(steps, 1e-12)  # of those that decode, in a step
            passed = self._prompts(crowd, step, sharing.at, ended)
            waited, before = before, passed.whole + passed.late + passed.hold
            # as much of decoding is a wait for prompts as of the time
            busy = np.minimum(come * serving.decode_wait * passed.prompt, 1.0 - 1e-9)
            lasts = np.minimum(steps * step.total / (1.0 - busy), full.decode)
            if turns >= FIRST_ROUNDS:
                search = RootSearch.above(np.full_like(rate, 1e-12), decode) if search is None else search
                search, _ = search.after(lasts)
                lasts = search.at
            stays = (np.abs(lasts - decode) <= STAYS * decode) & (np.abs(before - waited) <= STAYS * waited)
            if stays.all():
                break
            decode, before = np.where(stays, decode, lasts), np.where(stays, waited, before)
        launched = self._launched(passed, crowd.most)
        queue = waits_for_passes(rate * launched.prompt, launched, crowd.longest)
        first = serving.admission_latency + before + queue + 0.5 * step.total * crowd.busy * self.decodes
        return Life(crowd, step, passed, decode, first)

    def _launched(self, passed: PromptPass, most: FloatColumn) -> PromptPass:
        """A pass as the prompts behind it wait for it, of so many requests at most: its host launches one pass after the other."""
        if not (self.prefill_ends > self.prefill_slowest).any():
            return passed
        ends, least = passed.where.of(self.prefill_ends) / passed.together, self.alone_a_prompt(self._most_together(most))
        late = ends > passed.alone
        return replace(passed, prompt=np.where(late, ends, passed.prompt), alone=np.where(late, ends, passed.alone), least=least)

    @cached_property
    def most_a_step(self) -> FloatColumn:
        """Prompts whose tokens fill a step, on all of attention's ranks."""
        return np.asarray(self.scenario.software.serving.max_batched_tokens / self.queries * self.attention_dp, np.float64)

    @cached_property
    def steps_a_pass(self) -> FloatColumn | float:
        """Steps that a pass of prompts lasts which are longer than a step."""
        return np.maximum(1.0, self.queries / self.scenario.software.serving.max_batched_tokens)

    @cached_property
    def least_alone(self) -> FloatColumn:
        """Seconds a prompt of passes that are full, where nothing is decoded."""
        return self.alone_a_prompt(self._most_together(self.capacity))

    def _full_pass(self, running: FloatColumn) -> PromptPass:
        """A pass of as many prompts as fit, of so many requests."""
        together = self._most_together(running)
        where = self.costs.prefill.at(self.kind, together / self.attention_dp)
        alone = where.of(self.prefill_slowest) / together
        whole, late = where.of(self.prefill_total), self.late(where)
        return PromptPass(where, together, whole, late, alone, alone, alone, np.zeros_like(alone))

    def _prompts(self, crowd: Crowd, full: DecodeStep, shared: FloatColumn, ended: FloatColumn) -> PromptPass:
        """The pass that a prompt of an open loop shares with those that come beside it at random (``shared``); ``full``: a decode step of
        those that are under way, of which so many end in one."""
        scheduler, steps = self.scenario.software.serving.scheduler, self.later / self.steps_tokens
        most = self._full_pass(crowd.most)
        held_prompts, held_steps = self._held_back(ended, np.maximum(shared, 1.0), at_random=False)
        together = np.minimum(np.maximum(np.maximum(shared, 1.0), held_prompts), most.together)
        where = self.costs.prefill.at(self.kind, together / self.attention_dp)
        spared = np.zeros_like(together)
        if scheduler != "prefill_first" and self.decodes:  # decoding goes along: its products and launches are the pass's own
            passes = crowd.others / together  # that a request meets; no more of its steps than it has go along
            spared = self._spared(full, together, where) * np.minimum(1.0, steps / np.maximum(passes, 1e-12))
        alone = where.of(self.prefill_slowest) / together
        whole, late = where.of(self.prefill_total), self.late(where)
        return PromptPass(where, together, whole, late, (1.0 - spared) * alone, alone, most.least, held_steps * full.total)

    def _held_back(self, ended: FloatColumn, at_once: FloatColumn, *, at_random: bool) -> tuple[FloatColumn, FloatColumn]:
        """Prompts that share a pass, and steps that they wait for it on average, where they are held back until each of attention's ranks
        has one, or for so many steps, or until some rank has nothing to decode.

        How many these are depends on how many requests decode. With fewer than two on each rank most that end leave theirs with nothing to
        decode. Prompts do not wait then, and yet passes are priced as no more frequent than with two on each, so that fewer requests never
        decode later than more of them.

        Args:
            ended: requests that end in a step, and are followed by others.
            at_once: prompts that share a pass anyway.
            at_random: whether prompts come to ranks at random, those of requests that ended there; else to each in turn.
        """
        ranks, most = self.attention_dp, float(self.scenario.software.serving.attention_dp_wait) * self.decodes
        several = ranks > 1
        if not most or not several.any():
            return np.ones_like(ended), np.zeros_like(ended)
        of_two = 2.0 * ranks * self.steps_tokens / np.maximum(self.later, 1.0)  # that end in a step with two on each rank
        lone = np.clip(of_two / np.maximum(ended, 1e-12) - 1.0, 0.0, 1.0)  # share that leaves its rank with nothing to decode
        decoding = 2.0 * ranks * ended / of_two
        until = until_each_has_one(ranks, decoding) if at_random else ranks
        others = np.minimum(until - 1.0, most * np.maximum(ended, of_two))
        held_prompts = (1.0 + others) * np.minimum(1.0, ended / of_two)
        come = np.maximum(0.0, held_prompts - at_once)  # for which a prompt waits; those that come to it wait half as long
        waits = (1.0 - lone) * come * (1.0 + 0.5 * come) / (1.0 + come) / np.maximum(ended, 1e-12)
        return np.where(several, held_prompts, 1.0), np.where(several, waits, 0.0)

    def _spared(self, step: DecodeStep, together: FloatColumn, where: Between) -> FloatColumn:
        """By which share of a pass of prompts one with decoding in it is shorter than both apart, sends between stages left out: weights
        are read and kernels launched once, the arithmetic of the decoding rows stays."""
        grid, rows, on_rank = self.costs.prefill, step.rows / self.queries, together / self.attention_dp
        fit = grid.most(self.kind) - rows  # a step that is full has fewer prompts in it
        alone = where if (fit >= on_rank).all() else grid.at(self.kind, np.minimum(on_rank, fit))
        more = grid.at(self.kind, on_rank + rows).of(self.prefill_products) - alone.of(self.prefill_products)
        # the head is one for the last tokens of prompts and the rows that decode
        heads = self.costs.decode.at(self.kind, step.rows + on_rank).of(self.decode_head)
        own = step.device - step.where.of(self.decode_beside) + where.of(self.prefill_head) - heads
        return np.asarray(np.minimum(np.maximum((own - np.maximum(more, 0.0)) / where.of(self.prefill_busy), 0.0), MOST_SPARED))


def launched(scenario: Scenario, layers: FloatColumn | float, experts: FloatColumn | float) -> FloatColumn:
    """Seconds in which the host launches so many layers, of which so many have experts, kernel by kernel."""
    software = scenario.software
    a_layer = software.host.host_layer * software.host.host_without_gradients / 3  # forward, of forward and backward
    of_experts = software.serving.expert_launch * (2.0 if scenario.model.kv_lora_rank else 1.0)
    return np.asarray((layers - experts) * a_layer + experts * of_experts)


def accepted(drafts: int, acceptance: float) -> float:
    """Tokens that a step gives on average: each draft counts where those before it were accepted, and the model adds one of its own."""
    return sum(acceptance**k for k in range(drafts + 1))
