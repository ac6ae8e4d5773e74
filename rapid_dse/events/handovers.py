"""Caches that cross the network between two pools while both work: how long one takes, and what it costs those that it meets."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from rapid_dse.events import runs
from rapid_dse.events.engine_backends import EngineBackend
from rapid_dse.events.engine_places import handover_names, handover_peers
from rapid_dse.events.engine_runs import ROUNDS, EngineTrial, NodesOf, Way, stage_with, write_engine
from rapid_dse.events.programs.script import After, Script, copy_of
from rapid_dse.events.programs.served_step import APART, Marks, Turns, write_handover
from rapid_dse.simulate.inference.pools import Handover

MOST_STEPS = 6  # decode steps of a run beside a cache's transfer; of one that takes longer a part is sent


@dataclass(frozen=True)
class _Sent:
    """A prompt's cache on its way: ``pieces`` after each other, each of ``size`` bytes for each of a rank's peers, in ``seconds`` (closed
    form); ``sends`` and ``takes``: peers of a rank of either pool."""

    pieces: int
    size: float
    seconds: float
    sends: int
    takes: int


@dataclass(frozen=True)
class _Ends:
    """Seconds after which the prompts, the decode steps and the cache's transfer have ended."""

    prompts: float
    decoding: float
    handed: float


def measure_handover(
    backend: EngineBackend, trials: tuple[EngineTrial, EngineTrial], step: float, cache: tuple[float, float]
) -> tuple[Handover, dict[str, runs.Run]]:
    """A pass of prompts and decode steps, once with the cache of an earlier prompt on its way between them and once without.

    Args:
        trials: of a pass of prompts and of a decode step, on one machine.
        step: what the latter takes alone, s.
        cache: its bytes, and the seconds that it takes in closed form.
    """
    nodes = [backend.write(trial, "pools") for trial in trials] if backend.write else []
    size, seconds = cache
    if not nodes or seconds == 0:
        return Handover(), {}
    share = min(1.0, MOST_STEPS * step / seconds)
    rounds = max(ROUNDS, ceil(share * seconds / step) + 1)
    _, sends, takes = handover_peers((trials[0].engine, trials[1].engine), trials[0].machine.topology.ranks)
    pieces = len(APART) * ceil(trials[0].scenario.model.num_hidden_layers / len(APART))  # about a layer's cache at a time
    parts = sends * trials[0].engine.copy.size
    sent = _Sent(pieces, share * size / pieces / parts, share * seconds / pieces / sends, sends, takes)
    written = (nodes[0][0], nodes[1][0])
    alone, _ = _run(backend, trials, written, rounds, None)
    last_run, done = _run(backend, trials, written, rounds, sent)
    handover = Handover(
        slower=max(1.0, last_run.handed / share / seconds),  # not through other ranks' ports, which the engine's routes may take
        decode_delay=max(0.0, last_run.decoding - alone.decoding) / share,
        prompt_delay=max(0.0, last_run.prompts - alone.prompts) / share,
    )
    return handover, {"pools": done}


def _run(
    backend: EngineBackend, trials: tuple[EngineTrial, EngineTrial], nodes: tuple[NodesOf, NodesOf], rounds: int, sent: _Sent | None
) -> tuple[_Ends, runs.Run]:
    first, second = trials
    ranks = first.machine.topology.ranks
    known, _, _ = handover_peers((first.engine, second.engine), ranks)
    prefixes = {"to": first.engine.prefix, "from": second.engine.prefix}
    peers = {prefixes[name.split()[0]] + name: line for name, line in known.items()}
    stage, styles = stage_with(first.scenario, first.machine, [first.engine, second.engine], peers, groups=backend.groups)
    scripts: list[Script] = []
    role = np.full(ranks, -1, np.int64)
    ends: list[tuple[EngineTrial, list[Marks], Turns]] = []
    last: dict[int, After] = {}  # of ranks that take a part: their last receives
    for trial, style, written in zip(trials, styles, nodes, strict=True):
        turns = trial.turns(rounds)
        own, marks = write_engine(trial, style, written(style.labels), turns)
        for number, script in enumerate(own):
            role[trial.engine.flat[number]] = len(scripts)
            scripts.append(script)
            if sent is not None:
                busy = copy_of(script)
                role[trial.engine.copy[number]] = len(scripts)
                scripts.append(busy)
                last |= dict.fromkeys(trial.engine.copy[number].tolist(), _write_part(busy, sent, sends=trial is first))
        ends.append((trial, marks, turns))
    done = runs.run(first.scenario, stage, scripts, role, "pools")
    takers = second.engine.copy.ravel().tolist() if sent is not None else []
    handed = max((_ended(done, rank, node) for rank in takers for node in last[rank]), default=0.0)
    prompts, decoding = (_end(done, *end) for end in ends)
    return _Ends(prompts, decoding, handed), done


def _write_part(script: Script, sent: _Sent, *, sends: bool) -> After:
    """A rank's part of a cache's transfer."""
    names = handover_names(sent.sends if sends else sent.takes, sends)
    return write_handover(script, names, sent.size, sent.seconds, sent.pieces, sends=sends)


def _ended(done: runs.Run, rank: int, node: int) -> float:
    """When a node of a rank has ended, s."""
    return float(done.result.end_ns[done.traced.graph.rank_ptr[rank] + node]) / 1e9


def _end(done: runs.Run, trial: EngineTrial, marks: list[Marks], turns: Turns) -> float:
    """When the last pass of an engine has ended, s."""
    way = Way(done, marks, trial.waits, turns.returns)
    return max(way.end(rank, turns.stages - 1, turns.count - 1) for rank in trial.engine.flat[-1].tolist()) / 1e9
