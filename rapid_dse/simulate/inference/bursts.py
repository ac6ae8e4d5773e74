"""The burst that opens a closed loop, and the end of a run.

All requests of the first round arrive at once. Their prompts are computed in full passes, one after the other, so that they start to
generate one after the other, and so they end: what follows them comes as slowly as prompts are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.simulate.inference.request_lives import SteppingEngine

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Burst:
    """Requests that arrive at once, ``(n_rows,)`` each: seconds to the ``first`` token, the mean of all, beside no decoding; and
    until the last has ended (``lasts``)."""

    first: FloatColumn
    lasts: FloatColumn


class BurstingEngine(SteppingEngine):
    """Engines of a table, and bursts of requests on them."""

    @property
    def _prompts_first(self) -> bool:
        """Whether all prompts that wait run before the next decode step."""
        return self.scenario.software.serving.scheduler == "prefill_first" and self.decodes

    def burst(self, running: FloatColumn) -> Burst:
        """So many requests that arrive at once, and are followed by none; they are shared out to as many batches as are in flight.

        Where prompts share the pass with decoding, those decode beside the k passes behind the first one that have had theirs: with s steps
        of decoding each request the engine takes s + k of them, beside s / (s + k) of the requests on average.
        """
        serving, steps = self.scenario.software.serving, self.later / self.steps_tokens
        batches = np.maximum(1.0, self._in_flight(running))
        full = self._full_pass(running / batches)
        behind = np.maximum(0.0, running - full.together)  # prompts in other passes than a request's own
        begun = serving.admission_latency + full.late + full.whole
        prompts = behind * full.where.of(self.prefill_ends) / full.together  # no pass ends sooner than its host launches it
        if self._prompts_first or not self.decodes:
            decode = steps * self.step(running).total
            return Burst(begun + 0.5 * prompts, begun + prompts + decode)
        lasting = self.steps_a_pass / batches
        passes = behind / full.together * lasting  # in steps of the engine
        decoding = self.step(running, steps / (steps + passes))
        spared = self._spared(decoding, full.together, full.where)
        engine = behind * (1.0 - spared) * full.alone + (passes + steps) * decoding.total
        return Burst(begun + 0.5 * prompts, begun + np.maximum(engine, prompts))

    def tail(self, running: FloatColumn, rounds: FloatColumn) -> FloatColumn:
        """Seconds by which a run of so many rounds lasts longer than its requests keep the engine busy.

        When none is left to start, those that run end one by one, over as many steps as lengths have drifted apart. Half of the requests
        are in these on average, and a step of half as many takes more than half as long.
        """
        spread, steps = self.scenario.workload.length_spread, self.later / self.steps_tokens
        if not spread or not self.decodes:
            return np.zeros_like(running)
        drifted = np.minimum(1.0, 2.0 * spread * np.sqrt(np.minimum(rounds, 1e12)))
        idle = np.maximum(0.0, self.step(running, 0.5).total - 0.5 * self.step(running).total)
        return np.asarray(steps * drifted * idle)
