"""Runs one engine's passes on the event engine, and says what a batch met on its way through the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.attribution import exposed
from rapid_dse.events.engine_places import PlacedEngine
from rapid_dse.events.engine_quantities import PassDetail
from rapid_dse.events.machine import Machine
from rapid_dse.events.programs.script import Labels, Script, Style
from rapid_dse.events.programs.served_step import TOKEN_BYTES, EngineNodes, Marks, StageShare, Turns, write_stage
from rapid_dse.simulate.inference.passes import stage_layers
from rapid_dse.trace.graph import Ints

ROUNDS = 3  # steps of each batch in flight: after the first two the stages have settled
TERMS = ("compute", "tp", "cp", "ep", "pp")
NodesOf: TypeAlias = Callable[[Labels], Sequence[Sequence[EngineNodes]]]  # of a pass of each length, of each stage


@dataclass(frozen=True)
class EngineTimes:
    """What a pass takes: seconds by term, and of the slowest stage, whose turns a batch waits for where the stages are full."""

    terms: Mapping[str, float]
    slowest: float

    @property
    def total(self) -> float:
        """Seconds of a pass without waiting for other batches."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class EngineTrial:
    """A pass on one engine of a machine: a decode step with ``flying`` batches in the stages (``returns``), or prefill in passes of which
    those of each length have one of the ``details``."""

    scenario: Scenario
    machine: Machine
    engine: PlacedEngine
    details: tuple[PassDetail, ...]
    flying: int
    returns: bool

    @property
    def waits(self) -> str:
        """The term that a rank's waits for others of its stage belong to."""
        return self.details[0].waits

    def of_each_length(self) -> list[EngineTrial]:
        """A trial for the passes of each length."""
        return [replace(self, details=(detail,)) for detail in self.details]

    def turns(self, rounds: int | None = None) -> Turns:
        """How its batches go through the stages; ``rounds`` of each, or as many as it takes to settle."""
        stages = self.engine.stages
        if not self.returns:
            lengths = tuple(length for length, detail in enumerate(self.details) for _ in range(detail.chunks))
            return Turns(stages, len(lengths), lengths, returns=False)
        return Turns(stages, self.flying, (0,) * (self.flying * (rounds or (ROUNDS if stages > 1 else 1))), returns=True)

    def share(self, stage: int, length: int = 0) -> StageShare:
        """What a stage has of a pass of a length."""
        detail, stages = self.details[length], self.engine.stages
        kinds = tuple(detail.order[layer] for layer in stage_layers(self.scenario.model, stages)[stage])
        tokens = TOKEN_BYTES * detail.sequences
        return StageShare(kinds, stage, detail.drafts, len(detail.works) - 1, detail.hop, detail.hop_seconds, tokens)


def stage_with(
    scenario: Scenario, machine: Machine, engines: Sequence[PlacedEngine], peers: Mapping[str, Ints] | None = None, *, groups: bool = True
) -> tuple[runs.Stage, list[Style]]:
    """The network with the groups and peers of some engines, and how each one's transfers become nodes.

    Args:
        peers: more of them, by name.
        groups: whether there is anything within a stage.
    """
    ranks, labels, styles = machine.topology.ranks, Labels(), []
    tables: dict[str, Ints] = {}
    known = dict(peers or {})
    for engine in engines:
        one = runs.stage_on(scenario, machine, engine.groups() if groups else {}, engine.peers(ranks))
        styles.append(replace(one.style, labels=labels, prefix=engine.prefix, apart=scenario.backend.engine == "builtin"))
        tables |= {engine.prefix + name: members for name, members in one.directory.groups.items()}
        known |= {engine.prefix + name: line for name, line in one.directory.peers.items()}
    return runs.Stage(machine, replace(one.directory, groups=tables, peers=known), styles[0]), styles


def write_engine(
    trial: EngineTrial, style: Style, nodes: Sequence[Sequence[EngineNodes]], turns: Turns
) -> tuple[list[Script], list[Marks]]:
    """The program of a rank of each stage; ``nodes``: how the layers of a pass of each length become nodes, stage by stage."""
    scripts, marks = [], []
    for stage in range(trial.engine.stages):
        script = Script(style)
        passes = [(stages[stage], trial.share(stage, length)) for length, stages in enumerate(nodes)]
        marks.append(write_stage(script, passes, turns))
        scripts.append(script)
    return scripts, marks


def roles(ranks: int, engine: PlacedEngine) -> Ints:
    """The script of each rank: that of its stage, or none."""
    roles_of_ranks = np.full(ranks, -1, np.int64)
    roles_of_ranks[engine.flat] = np.arange(engine.stages)[:, None]
    return roles_of_ranks


def run_engine(trial: EngineTrial, nodes: NodesOf, name: str, *, groups: bool) -> tuple[EngineTimes, runs.Run]:
    """Runs passes until they have settled, and follows the last one.

    Args:
        nodes: of a pass of each length, of each stage, once the graph's labels are known.
        groups: whether there is anything within a stage.

    Raises:
        ValueError: what the engine cannot run.
    """
    stage, (style,) = stage_with(trial.scenario, trial.machine, [trial.engine], groups=groups)
    turns = trial.turns()
    scripts, marks = write_engine(trial, style, nodes(style.labels), turns)
    done = runs.run(trial.scenario, stage, scripts, roles(trial.machine.topology.ranks, trial.engine), name)
    return followed(trial, done, marks, turns), done


def followed(trial: EngineTrial, done: runs.Run, marks: Sequence[Marks], turns: Turns) -> EngineTimes:
    """What the last batch met between the ends of its last two passes, or since the run began.

    A batch's time is that of the ranks that it is on, one of each stage (those that end last, and of these those that begin last, whom the
    others of their stages wait for), by what they do; between two stages it is the message's, and the wait for a stage that other batches
    are on: that of chunks of a prompt, which are parts of one, by what the stage does meanwhile.
    """
    way = Way(done, marks, trial.waits, turns.returns)
    last = turns.count - 1
    rail = max(trial.engine.flat.T.tolist(), key=lambda ranks: way.lateness(ranks, last))
    before = last - turns.flying
    at = way.end(rail[-1], turns.stages - 1, before) if turns.returns and before >= 0 else 0
    terms = dict.fromkeys((*TERMS, "bubble"), 0.0)
    for stage, rank in enumerate(rail):
        at = way.through(terms, rank, (stage, last), at)
    counted = (last,) if turns.returns else range(turns.count)
    slowest = max(sum(way.seconds(rank, stage, turn) for turn in counted) for stage, rank in enumerate(rail))
    waited = terms.pop("bubble")
    if turns.stages == 1:
        terms["pp"] += waited
    elif waited > 0:
        slowest = max(slowest, (sum(terms.values()) + waited) / turns.flying)
    return EngineTimes(terms, slowest)


@dataclass(frozen=True)
class Way:
    """A run whose scripts' marks are known; ns."""

    done: runs.Run
    marks: Sequence[Marks]
    waits: str
    returns: bool

    def begin(self, rank: int, stage: int, turn: int) -> int:
        """When a pass begins on a rank of its stage."""
        return int(self.done.result.start_ns[self._row(rank, self.marks[stage].begins[turn])])

    def end(self, rank: int, stage: int, turn: int) -> int:
        """When it ends there."""
        return max(int(self.done.result.end_ns[self._row(rank, node)]) for node in self.marks[stage].ends[turn])

    def lateness(self, ranks: Sequence[int], turn: int) -> tuple[int, int]:
        """When a pass has left a line of ranks, one of each stage, and how late it has begun on them."""
        return self.end(ranks[-1], len(ranks) - 1, turn), sum(self.begin(rank, stage, turn) for stage, rank in enumerate(ranks))

    def seconds(self, rank: int, stage: int, turn: int) -> float:
        """How long it takes there."""
        return (self.end(rank, stage, turn) - self.begin(rank, stage, turn)) / 1e9

    def through(self, terms: dict[str, float], rank: int, place: tuple[int, int], at: int) -> int:
        """Adds what a batch that is ready at ``at`` meets until its pass on the rank ends, and says when that is."""
        stage, turn = place
        begin, end, receive = self.begin(rank, stage, turn), self.end(rank, stage, turn), self.marks[stage].arrives[turn]
        if receive >= 0:
            arrived = int(np.clip(self.done.result.end_ns[self._row(rank, receive)], at, max(at, begin)))
            terms["pp"] += (arrived - at) / 1e9
            if self.returns:
                terms["bubble"] += (max(at, begin) - arrived) / 1e9
            else:
                self._add(terms, rank, arrived, max(at, begin))
        elif begin > at:  # batches before it are on the first stage
            self._add(terms, rank, at, begin)
        self._add(terms, rank, max(at, begin), end)
        return end

    def _add(self, terms: dict[str, float], rank: int, begin: int, end: int) -> None:
        exposed_terms = exposed(self.done.traced, self.done.result, rank, begin, end)
        for term, seconds in exposed_terms.items():
            if seconds:
                known = term if term in TERMS else self.waits  # within a stage ranks wait for each other
                terms[known] += seconds

    @cached_property
    def _first(self) -> Ints:
        return self.done.traced.graph.rank_ptr

    def _row(self, rank: int, node: int) -> int:
        return int(self._first[rank]) + node
