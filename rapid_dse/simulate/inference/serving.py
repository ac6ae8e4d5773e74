"""Requests on one engine, without a simulation of each: static batches, closed and open loops, all at once.

In a closed loop every request that ends brings the next one, so that each running request sees the prompts of all others once in its own
life. An open loop is one of as many requests as Little's law has at its rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rapid_dse.simulate.inference.closed_loop import LoopingEngine
from rapid_dse.simulate.inference.crowds import Load, place_wait, rounds_of, sent_rate
from rapid_dse.simulate.inference.distinct_steps import Between
from rapid_dse.simulate.inference.request_lives import Life

FloatColumn = NDArray[np.float64]
Columns = TypeVar("Columns", bound=Any)

BLOCK = 10_000  # rows that are solved together: their columns stay in a core's cache, which is a third faster


@dataclass(frozen=True)
class Served:
    """How requests fare on an engine, ``(n_rows,)`` each.

    Attributes:
        running: requests that run at a time; ``capacity``: as many as can.
        rows: sequences of an attention rank in a decode step.
        step: where a decode step stands in the tables; ``host``: what the host adds to it; ``bubble``: what unequal stages do.
        wait: of a token on others' prefill, s.
        tpot: from token to token, s; ``tokens`` that a step gives a request.
        first: from start to first token, s; ``queue``: from arrival to start.
        life: from arrival to the last token, s.
        rate: requests a second; ``most``: the most that the engine can keep up with.
        prefill: where a pass of prompts stands in the tables, and ``together`` how many it takes.
    """

    running: FloatColumn
    capacity: FloatColumn
    rows: FloatColumn
    step: Between
    host: FloatColumn
    bubble: FloatColumn
    wait: FloatColumn
    tpot: FloatColumn
    tokens: FloatColumn | float
    first: FloatColumn
    queue: FloatColumn
    life: FloatColumn
    rate: FloatColumn
    most: FloatColumn
    prefill: Between
    together: FloatColumn


class Engine(LoopingEngine):
    """Engines of a table, and how requests fare on them."""

    def serve(self, load: Load) -> Served:
        """How requests fare under each load."""
        if len(self.kind) > 1.5 * BLOCK:
            blocks = [slice(first, first + BLOCK) for first in range(0, len(self.kind), BLOCK)]
            return joined([self.part(block).serve(load.part(block)) for block in blocks])
        if load.static.all():
            return self._static(load)
        grouped, forever = (load.rate <= 0) & (self.scenario.workload.length_spread == 0), np.full(len(load.rate), np.inf)
        sent = np.where(load.prompts > 0, np.maximum(1.0, load.prompts), np.inf)
        running = np.minimum(np.minimum(load.concurrency, self.capacity), sent)
        most, served_life, lasts = forever, None, np.ones_like(running)
        if not (load.rate > 0).all():
            served_life, lasts = self.closed_run(running, rounds_of(load.prompts, running), grouped)
        if (load.rate > 0).any():
            full = self.closed_life(self.capacity, grouped)
            placed = (load.prompts > 0) & (load.prompts <= self.capacity)  # more than can be sent have a place
            most = np.where(placed, 1.0 / self.least_alone, self.capacity / full.total)
            open_life = self.open_life(load, most, full)
            served_life = open_life if served_life is None else either(load.rate > 0, open_life, served_life)
        assert served_life is not None
        served = self._served(served_life, load, most, running / lasts)
        return either(load.static, self._static(load), served) if load.static.any() else served

    def _served(self, solved_life: Life, load: Load, most: FloatColumn, closed: FloatColumn) -> Served:
        """Of closed loops, so many requests a second."""
        open_, life = load.rate > 0, solved_life.total
        running = solved_life.crowd.running
        queue = np.where(open_, place_wait(load, life, self.capacity, most), _queued(load, running, closed))
        flow = np.where(open_, sent_rate(load, life, most), closed)
        tpot = solved_life.decode / self.later if self.decodes else np.full(len(flow), np.nan)
        return Served(
            running=running,
            capacity=self.capacity,
            rows=solved_life.step.rows,
            step=solved_life.step.where,
            host=solved_life.step.host,
            bubble=solved_life.step.bubble,
            wait=np.maximum(0.0, tpot - solved_life.step.total / self.steps_tokens) if self.decodes else np.zeros(len(flow)),
            tpot=tpot,
            tokens=self.steps_tokens,
            first=solved_life.first,
            queue=queue,
            life=queue + life,
            rate=flow,
            most=most,
            prefill=solved_life.passed.where,
            together=solved_life.passed.together,
        )

    def _static(self, load: Load) -> Served:
        """A batch that starts and ends together: all prompts first, then decode steps until the longest request ends."""
        batch = np.where(np.isfinite(load.concurrency), np.maximum(1.0, load.concurrency), 1.0)
        stepped = self.step(batch)
        on_rank = batch / self.cut.attention_dp
        together = np.minimum(on_rank, self.costs.together[self.kind])
        pass_where = self.costs.prefill.at(self.kind, together)
        passes = on_rank / together
        alone = pass_where.of(self.prefill_total) + pass_where.of(self.prefill_late)
        first = alone + (passes - 1.0) * pass_where.of(self.prefill_slowest)
        host = stepped.host + self.scenario.software.serving.script_latency
        step = (stepped.device + host + stepped.bubble) / self.steps_tokens
        longest = 1.0 + self.scenario.workload.length_spread
        rate = batch / (first + self.later * longest * step)
        room = self.costs.room
        return Served(
            running=batch,
            capacity=np.maximum(1.0, np.floor(room.cache / room.ended))[self.kind] * self.cut.attention_dp,
            rows=stepped.rows,
            step=stepped.where,
            host=host,
            bubble=stepped.bubble,
            wait=np.zeros(len(batch)),
            tpot=step if self.decodes else np.full(len(batch), np.nan),
            tokens=self.steps_tokens,
            first=first,
            queue=np.zeros(len(batch)),
            life=first + self.later * step,
            rate=rate,
            most=rate,
            prefill=pass_where,
            together=together * self.cut.attention_dp,
        )


def _queued(load: Load, running: FloatColumn, flow: FloatColumn) -> FloatColumn:
    """What requests beyond those that run wait for their turn: in a closed loop all of them go round; at once, half of those sent."""
    waiting = np.where(np.isfinite(load.concurrency), load.concurrency - running, np.maximum(0.0, load.prompts - running) / 2.0)
    return np.asarray(np.maximum(0.0, waiting) / flow)


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts: dataclasses of columns, and of such; what is no column is the first part's."""
    merged = {}
    for field in fields(parts[0]):
        every = [getattr(part, field.name) for part in parts]
        if is_dataclass(every[0]):
            merged[field.name] = joined(every)
        elif isinstance(every[0], np.ndarray):
            merged[field.name] = np.concatenate(every)
    return replace(parts[0], **merged)


def either(mask: NDArray[np.bool_], one: Columns, other: Columns) -> Columns:
    """``one`` where ``mask`` is set, else ``other``: dataclasses of columns, and of such."""
    merged = {}
    for field in fields(one):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(here):
            merged[field.name] = either(mask, here, there)
        elif isinstance(here, np.ndarray):
            merged[field.name] = np.where(mask, here, there)
    return replace(other, **merged)
