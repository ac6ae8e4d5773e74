"""A training run from its first token to its last: how long it takes with what fails on the way, what it costs, and what it draws.

Failures come at random, so many an hour for each GPU. After one the job starts again from its last checkpoint, and does again what it had
done since. The expected time of work done in segments of τ seconds, each followed by a checkpoint of C seconds, with a mean time M
between failures of the whole job and R seconds of restart, is (Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", Future Generation Computer Systems 22, 2006, section 2)

    M · exp(R / M) · (exp((τ + C) / M) − 1) / τ

for each second of work. Its inverse is the goodput; the interval is the one that makes it largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.parameters import count
from rapid_dse.parallel.layouts import IntColumn, Layouts

FloatColumn = NDArray[np.float64]

HOUR = 3600.0
# What an asynchronous checkpoint stops a job for beside its copy, s: ranks wait for each other and plan who writes what. Published stalls
# are 0.78 s (Llama 3 70B on 1,856 H200, torchtitan), 0.59 s (405B on 8,960 GPUs, ByteCheckpoint), 0.34 s (7B on 1,488, the same), 0.2 s
# (65B on 1,536 H800, DLRover), of which the copy of a rank's share is 10 ms.
ASYNCHRONOUS_STALL = 0.5
_NEWTON_STEPS = 40
_LEAST = 1e-9  # of jobs that fail before they have restarted, again and again


@dataclass(frozen=True)
class Interruptions:
    """What stops a job of so many GPUs, ``(n_layouts,)`` each, s.

    ``between``: mean time between failures; ``stall``: how long a checkpoint stops the job; ``restart``: from a failure until the job
    trains again; ``least``: the shortest interval between checkpoints.
    """

    between: FloatColumn
    stall: FloatColumn
    restart: FloatColumn
    least: FloatColumn

    @property
    def interval(self) -> FloatColumn:
        """Seconds of work between checkpoints that make the goodput largest, ``(n_layouts,)``.

        At the optimum x = τ / M obeys (1 − x) · exp(x + C / M) = 1; there x + ln(1 − x) + C / M = 0, which is concave in x and has one root
        between 0 and 1. Newton's steps from beyond the root stay beyond it.
        """
        share = np.maximum(self.stall / self.between, 1e-14)
        x = np.minimum(np.sqrt(2 * share), 1 - 1e-12)  # Young's interval, which is beyond the root
        for _ in range(_NEWTON_STEPS):
            value = x + np.log1p(-x) + share
            x = np.clip(x + value * (1 - x) / x, 1e-12, 1 - 1e-15)
        best: FloatColumn = np.maximum(x * self.between, self.least)
        return best

    def goodput(self, interval: FloatColumn) -> FloatColumn:
        """Share of a job's time in which it makes progress that lasts, ``(n_layouts,)``, with checkpoints so many seconds of work apart."""
        with np.errstate(over="ignore"):
            lost = np.exp(self.restart / self.between) * np.expm1((interval + self.stall) / self.between) * self.between / interval
        return np.maximum(_LEAST, 1 / lost)


@dataclass(frozen=True)
class WholeRun:
    """Of ``workload.train_tokens``, ``(n_layouts,)`` each: seconds with all that is lost, dollars, joules, and the share that is useful."""

    train_time_s: FloatColumn
    train_cost_usd: FloatColumn
    train_energy_j: FloatColumn
    goodput: FloatColumn


def whole_run(scenario: Scenario, layouts: Layouts, step_s: FloatColumn, step_j: FloatColumn) -> WholeRun | None:
    """The run of ``workload.train_tokens`` in steps of so many seconds and joules; None where that is not set."""
    if scenario.workload.train_tokens is None:
        return None
    stops = interruptions(scenario, layouts.num_gpus, step_s)
    goodput = stops.goodput(stops.interval)
    steps = np.ceil(scenario.workload.train_tokens / (layouts.global_batch_size * float(scenario.workload.seq_len)))
    seconds = steps * step_s / goodput
    return WholeRun(seconds, scenario.hw.price / HOUR * layouts.num_gpus * seconds, steps * step_j / goodput, goodput)


def interruptions(scenario: Scenario, num_gpus: IntColumn, step_s: FloatColumn) -> Interruptions:
    """What stops jobs of so many GPUs on the scenario's cluster.

    A checkpoint holds weights and optimizer states once, whatever shards or copies them. Asynchronous ones stop the job until each GPU has
    copied its share into its host's memory; the write goes on beside the next steps, of which it must end before the next checkpoint, and
    what it had not yet written is lost too.
    """
    cluster = scenario.cluster
    state = checkpoint_bytes(scenario)
    write = np.full(len(num_gpus), state / cluster.checkpoint_bandwidth)
    asynchronous = scenario.software.host.async_checkpoint
    stall = write
    if asynchronous:
        assert scenario.hw.host is not None, "the schema asks for it"
        stall = ASYNCHRONOUS_STALL + state / num_gpus / scenario.hw.host.link_bandwidth
    restart = cluster.restart_time + write + (write if asynchronous else 0.0)  # a checkpoint is read as fast as it is written
    return Interruptions(cluster.gpu_mtbf * HOUR / num_gpus, stall, restart, np.maximum(step_s, write if asynchronous else 0.0))


def checkpoint_bytes(scenario: Scenario) -> float:
    """Bytes of a checkpoint: weights, unless the master weights are what is kept, and the optimizer's states."""
    precision = scenario.software.precision
    weights = 0.0 if precision.master_shards else 4.0 if scenario.workload.precision in ("fp32", "tf32") else 2.0
    return count(scenario.model, scenario.workload.seq_len).total * (weights + precision.optimizer_bytes)
