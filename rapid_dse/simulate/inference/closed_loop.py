"""Requests in a closed loop: each that ends is followed by another, so that as many are under way all the time.

Their prompts come when others end, and these end with steps: a request's life is counted in the engine's steps. With K of them in a life,
each of the others ends in any one with the chance q = 1 / K. How many prompts share a pass, how many passes a request meets and how many
requests decode beside it follow from q alone, and K from what a step then takes. All of it goes one way: with more requests, or more of
them ending, a step holds prompts more often, more of them share a pass, and it takes no less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import rows_of
from rapid_dse.simulate.inference.bursts import BurstingEngine
from rapid_dse.simulate.inference.crowds import Crowd, closed_crowd
from rapid_dse.simulate.inference.distinct_steps import Between
from rapid_dse.simulate.inference.fixed_points import RootSearch, settled
from rapid_dse.simulate.inference.rank_prompts import fullest_rank, gathered, spread_of
from rapid_dse.simulate.inference.request_lives import DecodeStep, Life, PromptPass

FloatColumn = NDArray[np.float64]
Positions = NDArray[np.intp]

ATTENTION_TILE = 128  # queries that a kernel of attention computes together, of FlashAttention-2 and -3


@dataclass(frozen=True)
class EngineStep:
    """One step of the engine, ``(n_rows,)`` each: its decoding, the pass of prompts that may share it, prompts of others that come in it
    (``come``), seconds of these (``prompts``) and of all (``total``; where nothing is decoded those of a pass); ``own``: how many prompts
    share a request's own pass; ``own_slowest``: seconds of the slowest stage in that."""

    decoding: DecodeStep
    passed: PromptPass
    come: FloatColumn
    prompts: FloatColumn
    total: FloatColumn
    own: FloatColumn
    own_slowest: FloatColumn


@dataclass(frozen=True)
class Lived:
    """A life of so many steps of the engine (``answer``) where requests end as often as a guess of it says: the step, and seconds that its
    prompt waits, ``(n_rows,)`` each."""

    answer: FloatColumn
    step: EngineStep
    waits: FloatColumn


@dataclass(frozen=True)
class Habits:
    """What requests of a loop do, however long they live, ``(n_rows,)`` each.

    Attributes:
        crowd: those that are under way.
        grouped: whether all have one length, so that those that had their prompts together end together.
        group: prompts that come together so.
        share: how many share a pass at least, where none is held back.
        rounds: share of requests of which all are one round: all prompts, then all tokens.
        behind: seconds that a prompt waits for those of its group in the passes before its own; as many follow it.
        batches: that go through the stages one after the other.
        room: prompts that a step of the engine takes at most, ``most`` that a pass does; ``full``: a pass of so many; ``launched``: seconds
            a prompt of it, at least those in which the host launches it.
        in_turn: seconds of a life over those that run, at most: an engine serves fewer at a time where that is faster.
    """

    crowd: Crowd
    grouped: NDArray[np.bool_]
    group: FloatColumn
    share: FloatColumn
    rounds: FloatColumn
    behind: FloatColumn
    batches: FloatColumn
    room: FloatColumn
    most: FloatColumn
    full: PromptPass
    launched: FloatColumn
    in_turn: FloatColumn

    @cached_property
    def most_often(self) -> FloatColumn:
        """Chance that a request ends in a step at most, with as many prompts as a step takes."""
        return np.minimum(1.0, self.room / np.maximum(self.crowd.others, 1e-12))

    @cached_property
    def queue_power(self) -> FloatColumn:
        """Of a queue before steps that take so many prompts: the power of the share of them that is taken."""
        return np.sqrt(2.0 * (self.room + 1.0)) - 1.0

    @cached_property
    def always_spare(self) -> FloatColumn:
        """Share of steps' prompts that is spare at least, since requests of a loop are so many and no more."""
        return 1.0 / np.sqrt(1.0 + self.crowd.running)


class LoopingEngine(BurstingEngine):
    """Engines of a table, and lives of requests on them in closed loops."""

    def closed_life(self, running: FloatColumn, grouped: NDArray[np.bool_]) -> Life:
        """A request's life in a closed loop of so many that goes on for ever; ``grouped``: whether all have one length."""
        return self._looped(self._habits(closed_crowd(running, np.full_like(running, np.inf)), grouped))[0]

    def closed_run(self, running: FloatColumn, rounds: FloatColumn, grouped: NDArray[np.bool_]) -> tuple[Life, FloatColumn]:
        """The mean life of a run of so many rounds of so many requests under way, and seconds that the run lasts a round.

        Requests of the burst that opens it wait for each other's prompts, and meet half of them in their decoding. The run lasts as long as
        the burst does alone, and for every round behind it as long as a request lives in a loop that goes on for ever.
        """
        habits = self._habits(closed_crowd(running, np.full_like(running, np.inf)), grouped)
        endless, search = self._looped(habits)
        life, _ = self._looped(replace(habits, crowd=closed_crowd(running, rounds)), search)
        opening, burst, serving = 1.0 / rounds, self.burst(running), self.scenario.software.serving
        lasts = opening * (burst.lasts + self.tail(running, rounds)) + (1.0 - opening) * endless.total
        waited = burst.first - (serving.admission_latency + life.passed.late + life.passed.hold + life.passed.whole)
        if serving.scheduler != "prefill_first" and self.decodes:  # measured bursts share passes as those do that follow them
            waited = np.maximum(waited, 0.5 * np.maximum(0.0, running - life.passed.together) * life.passed.alone)
        return replace(life, first=life.first + opening * waited), lasts

    def _looped(self, habits: Habits, alike: RootSearch | None = None) -> tuple[Life, RootSearch]:
        """A life of such habits, and the search for its steps; ``alike``: that for nearly such a life."""
        own = self._own_steps
        search = RootSearch.above(own) if alike is None else RootSearch.above(own, alike.at, alike.slope)
        lived, search = settled(lambda steps, rows: self._lived(habits, steps, rows), search)
        return self._life(habits, lived.step, lived.waits), search

    def _lived(self, habits: Habits, steps: FloatColumn, rows: Positions | None) -> Lived:
        """A life where each request ends once in so many steps, or as often as the engine takes others; of some rows alone."""
        if rows is not None:
            return self.part(rows)._lived(rows_of(habits, rows), steps, None)
        chance = np.minimum(1.0 / steps, habits.most_often)
        step = self._engine_step(habits, chance)
        waits = self._waits(habits, chance, step)
        return Lived(self._steps_of_life(habits, step, waits), step, waits)

    def _habits(self, crowd: Crowd, grouped: NDArray[np.bool_]) -> Habits:
        """Requests of one length keep together, each framework's in its way."""
        serving = self.scenario.software.serving
        first, chunked = serving.scheduler == "prefill_first", serving.scheduler == "chunked"
        group = np.where(grouped & (not first), np.minimum(serving.prompts_together, crowd.running), 1.0)
        alike = np.where(grouped & (not chunked), serving.in_step, 0.0)
        # a prompt that is shorter than a tile of attention takes as long as one
        of_rank = alike * (not first) * np.minimum(self.costs.together.take(self.kind), serving.max_batched_tokens / ATTENTION_TILE)
        most = self._most_together(crowd.running)
        in_step = np.minimum(of_rank * self.attention_dp, self.attention_dp * gathered(np.maximum(1.0, of_rank), self._spread))
        share = np.minimum(np.maximum(group if chunked else in_step, 1.0), most)
        a_prompt = self.costs.prefill.at(self.kind, share / self.attention_dp).of(self.prefill_slowest) / share
        behind = a_prompt * np.maximum(0.0, group - share) / 2.0
        batches = np.maximum(1.0, self._in_flight(crowd.running))
        room, full = self._room(batches), self._full_pass(crowd.running)
        launched = full.where.of(self.prefill_ends) / full.together
        # of as many a request's own pass takes all others of its batch
        in_turn, together = self._life_apart(np.ones_like(share), np.ones_like(share)), 1.0 + batches * (share - 1.0)
        if (apart := (alike > 0) & (crowd.running > together)).any():
            of_pass = (self._life_apart(together, share) + behind) / together
            in_turn = np.where(apart, np.minimum(in_turn, of_pass), in_turn)
        return Habits(crowd, grouped, group, share, alike * first, behind, batches, room, most, full, launched, in_turn)

    def _life_apart(self, running: FloatColumn, together: FloatColumn) -> FloatColumn:
        """Seconds of a life of so many requests, those of each batch in one pass of prompts, so that none waits for prompts of others."""
        where = self.costs.prefill.at(self.kind, together / self.attention_dp)
        whole = self._uneven(together, where, together) * where.of(self.prefill_total)
        begun = np.maximum(whole, where.of(self.prefill_total) + self.late(where))
        steps = self.later / self.steps_tokens + 0.5 * (running > 1.0)  # a prompt waits for half of the step that it finds
        return np.asarray(self.scenario.software.serving.admission_latency + begun + steps * self.step(running).total * self.decodes)

    @cached_property
    def _own_steps(self) -> FloatColumn:
        """Steps of the engine that a request needs: of its tokens, and of its prompt where that is computed beside decoding."""
        steps = self.later / self.steps_tokens
        if self._prompts_first:
            return np.full(len(self.kind), np.maximum(steps, 1.0))
        return np.full(len(self.kind), steps + (self.steps_a_pass if self.decodes else 1.0))

    def _room(self, batches: FloatColumn) -> FloatColumn:
        """Prompts that a step of the engine takes at most, with a pass of each of the batches in flight."""
        if self._prompts_first:
            return np.full_like(batches, np.inf)
        a_pass = self.most_a_step if self.decodes else self.fit_a_pass
        return np.asarray(a_pass * batches)

    def _engine_step(self, habits: Habits, chance: FloatColumn) -> EngineStep:
        """A step of the engine in which each request ends with such a chance.

        Of n others in a batch q n end in a step; a pass is where any does, at random in 1 − (1 − q)^n of the steps, of one length one after
        the other. Prompts that come with a request's own are in no other of its steps.
        """
        crowd, steps = habits.crowd, self.later / self.steps_tokens
        batches, most = habits.batches, habits.most
        others = crowd.others / batches
        ended = others * chance
        held_prompts, held_steps = self._held_back((others + 1.0) * chance, np.ones_like(chance), at_random=True)
        share = np.minimum(np.maximum(habits.share, held_prompts), most)
        together = np.minimum(np.maximum(self._by_chance(habits, others, chance), share), most)
        own = np.minimum(np.maximum(1.0 + ended, share), most)
        before_or_after = np.maximum(0.0, habits.group - share)
        elsewhere = np.maximum(0.0, others + 1.0 - own - before_or_after) * chance / np.maximum(1.0 - chance, 1e-12)
        come = batches * np.minimum(ended, elsewhere)
        decoding = self.step(crowd.running, np.minimum(1.0, steps * chance))
        passed, own_slowest = self._pass(habits, decoding, (together, own), held_steps * decoding.total)
        prompts = come * passed.prompt
        total = decoding.total + prompts if self.decodes else passed.alone * together * batches
        return EngineStep(decoding, passed, come, prompts, total, own, own_slowest)

    def _by_chance(self, habits: Habits, others: FloatColumn, chance: FloatColumn) -> FloatColumn:
        """Prompts of a pass that come by chance: where any of so many others ends in the steps for which it lasts, all that do."""
        lasting = self.steps_a_pass * others
        come = lasting * chance
        one_by_one = np.maximum(1.0, come)
        if habits.grouped.all():  # logarithms take as long as the rest of a step
            return one_by_one
        any_ended = -np.expm1(lasting * np.log1p(-np.minimum(chance, 1.0 - 1e-12)))
        return np.where(habits.grouped, one_by_one, np.maximum(1.0, come / np.maximum(any_ended, 1e-300)))

    def _pass(
        self, habits: Habits, decoding: DecodeStep, takes: tuple[FloatColumn, FloatColumn], hold: FloatColumn
    ) -> tuple[PromptPass, FloatColumn]:
        """A pass of prompts beside such decoding, held back so long, and seconds of the slowest stage in a request's own pass; it ``takes``
        so many, that of a request itself so many."""
        together, own = takes
        where, own_where = (self.costs.prefill.at(self.kind, prompts / self.attention_dp) for prompts in takes)
        slowest = where.of(self.prefill_slowest)
        even, uneven = slowest / together, self._uneven(together, where, habits.most)
        alone = even * uneven
        of_mean, own_slowest = own_where.of(self.prefill_total), own_where.of(self.prefill_slowest)
        own_uneven = self._uneven(own, own_where, habits.most)
        whole = own_uneven * of_mean
        late = np.maximum(0.0, of_mean + self.late(own_where) - whole)
        joins = self.decodes and self.scenario.software.serving.scheduler != "prefill_first"
        prompt = alone - self._spared(decoding, together, where) * even if joins else alone
        passed = PromptPass(where, together, whole, late, prompt, alone, habits.full.least, hold)
        return passed, own_uneven * own_slowest

    def _uneven(self, together: FloatColumn, where: Between, most: FloatColumn) -> FloatColumn | float:
        """Seconds of a pass of so many prompts, of ``most`` at most, that have come to attention's ranks at random, over those of as many
        on each, which stands in the tables at ``where``: attention's as many as the fullest rank has, experts' as many as a mean one."""
        at_random = (self._spread > 0) & (most > self.attention_dp)
        if not at_random.any():
            return 1.0
        grid, mean = self.costs.prefill, together / self.attention_dp
        fullest = grid.at(self.kind, fullest_rank(mean, np.maximum(1.0, most / self.attention_dp), self._spread))
        # where some ranks have none the fullest of the others has one
        of_fullest = grid.at(self.kind, np.minimum(1.0, mean)).of(self.prefill_of_fullest) * fullest.of(self.prefill_of_fullest)
        uneven = (of_fullest / self._fullest_of_one + where.of(self.prefill_of_all)) / where.of(self.prefill_slowest)
        return np.where(at_random, np.maximum(1.0, uneven), 1.0)

    @cached_property
    def _fullest_of_one(self) -> FloatColumn:
        """Seconds of what waits for the fullest of attention's ranks in a pass of one prompt on each."""
        return self.costs.prefill.at(self.kind, np.ones(len(self.kind))).of(self.prefill_of_fullest)

    @cached_property
    def _spread(self) -> FloatColumn:
        """How far the fullest of attention's ranks lies above their mean, over the root of that."""
        return spread_of(self.attention_dp)

    def _steps_of_life(self, habits: Habits, step: EngineStep, waits: FloatColumn) -> FloatColumn:
        """Steps of the engine in a request's life, of which its prompt waits for some seconds."""
        through = np.maximum(0.0, step.passed.whole - step.own_slowest)  # the stages behind the slowest one, beside other steps
        outside = self._outside(habits, step.passed) + waits + through
        return np.asarray(self._own_steps + outside / np.maximum(step.total, 1e-12))

    def _outside(self, habits: Habits, passed: PromptPass) -> FloatColumn:
        """Seconds until a prompt's first token that are none of the engine's steps: the server, the host, and prompts that it waits for
        by habit."""
        by_habit = passed.hold + habits.crowd.steady * habits.behind
        return np.asarray(self.scenario.software.serving.admission_latency + passed.late + by_habit)

    def _waits(self, habits: Habits, chance: FloatColumn, step: EngineStep) -> FloatColumn:
        """Seconds that a prompt waits: for half of the step that it finds, and for those in front of it where steps are nearly full.

        Long steps are met more often than short ones: of a step of t seconds, which a pass of a prolongs with the chance p, half is
        (t + (t + a) p a / (t + p a)) / 2. Prompts that run first wait for half of a step or of a pass. The queue is that of M/D/c by
        Sakasegawa (1977), of steps that serve as many prompts as they take, and no longer than a loop's requests make it.
        """
        crowd, room, passed = habits.crowd, habits.room, step.passed
        decoding, a_pass = step.decoding.total * self.decodes, passed.prompt * passed.together
        share_of_passes = step.prompts / np.maximum(decoding + step.prompts, 1e-12)
        if self._prompts_first:  # a step takes all that wait
            return np.asarray(crowd.steady * crowd.busy * 0.5 * (decoding * (1.0 - share_of_passes) + a_pass * share_of_passes))
        if self.decodes:
            half = 0.5 * (decoding + (decoding + a_pass) * share_of_passes)
        else:  # of the passes of others, of which there is none where all share one
            half = 0.5 * step.prompts * np.where(habits.grouped, np.minimum(1.0, 1.0 / chance - 1.0), 1.0)
        full = np.minimum(1.0, crowd.others * chance / room)
        queued = 0.5 * full**habits.queue_power / (room * (1.0 - full + habits.always_spare))
        return np.asarray(crowd.steady * (half * crowd.busy + queued * (decoding + step.prompts)))

    def _life(self, habits: Habits, step: EngineStep, waits: FloatColumn) -> Life:
        """A request's life, of such steps of the engine, of which its prompt waits for some seconds."""
        steps, crowd = self.later / self.steps_tokens, habits.crowd
        decoding, passed, rounds = step.decoding, step.passed, habits.rounds
        accompanied = np.minimum(1.0, step.come * steps) * self.decodes  # chance that any request decodes in the pass of a prompt
        own_steps = steps + accompanied * (self._own_steps - steps)
        outside = self._outside(habits, passed)
        first = outside + passed.whole + (1.0 - rounds) * waits + rounds * (self._first_of_round(habits) - passed.late - passed.whole)
        if self._prompts_first:
            # of those that ended in the same step what a pass does not take comes before it or after
            in_front = (1.0 - rounds) * passed.alone * np.maximum(0.0, 1.0 + step.come - habits.most) / 2.0
            first = first + in_front
            behind = np.maximum(0.0, crowd.others + 1.0 - habits.full.together) * habits.full.least
            met = (1.0 - rounds) * (steps - 1.0) * step.prompts + in_front + rounds * 0.5 * behind
        else:
            spared = (passed.alone - passed.prompt) * passed.together
            # a host that is late launches the pass while decoding goes on
            first = first + np.maximum(0.0, (own_steps - steps) * decoding.total - accompanied * spared - passed.late)
            met = steps * step.prompts + habits.behind
        decode = np.asarray(steps * decoding.total + self.scenario.software.serving.decode_wait * met * self.decodes)
        first = np.maximum(first, self._needed(habits, step, own_steps) - decode)
        in_turn = np.maximum(habits.in_turn * crowd.running - decode, outside + passed.whole)
        return Life(crowd, decoding, passed, decode, np.asarray(np.minimum(first, in_turn)))

    def _first_of_round(self, habits: Habits) -> FloatColumn:
        """Seconds of prompts until a request's first token where all come together, in full passes that follow each other: it waits for
        half of those before its own, or where nothing is decoded for all others'."""
        full, crowd = habits.full, habits.crowd
        behind = crowd.steady * np.maximum(0.0, crowd.running - full.together) * habits.launched
        return np.asarray(full.late + full.whole + (0.5 if self.decodes else 1.0) * behind)

    def _needed(self, habits: Habits, step: EngineStep, own_steps: FloatColumn) -> FloatColumn:
        """Seconds of the engine for the prompts and steps of all that run, no request of which lives shorter: it takes no more prompts in a
        step than its tokens hold, and computes a pass of each batch at most in one; its host launches full passes one after the other."""
        passed, rounds, full = step.passed, habits.rounds, habits.full
        elsewhere = np.maximum(0.0, habits.crowd.others + 1.0 - step.own) * passed.prompt
        prompts = step.own_slowest * passed.prompt / passed.alone + elsewhere
        of_round = np.maximum(full.together, habits.crowd.others + 1.0) * full.least
        prompts = prompts + rounds * (of_round - prompts)
        in_passes = np.inf if self._prompts_first else passed.together * habits.batches
        fewest = np.maximum(own_steps, (habits.crowd.others + 1.0) / np.minimum(habits.room, in_passes))
        engine = prompts + fewest * step.decoding.total * self.decodes
        return np.maximum(engine, habits.launched * (habits.crowd.others + 1.0))
