"""Runs graphs for the event-driven backends, on the built-in engine or on ASTRA-sim, and says no to what cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.hardware import Network
from rapid_dse.config.run import Backend
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.cache import FOLDER, cache_mode, run_key, shared
from rapid_dse.events.machine import Machine
from rapid_dse.events.programs.script import CHUNKS, Directory, Labels, Script, Style, Traced, assemble
from rapid_dse.interconnect.closed_form import has_closed_form, switch_share
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.chakra import load_schema
from rapid_dse.trace.graph import COLLECTIVES, Graph, Ints

if TYPE_CHECKING:
    from rapid_dse.events.astrasim.adapter import AstraSimEngine

STREAMS = 4  # kinds of transfers that can have a stream of their own


@dataclass(frozen=True)
class Stage:
    """Where a graph runs: the network, the groups on it by name, and how transfers become nodes."""

    cluster: Machine
    directory: Directory
    style: Style


@dataclass(frozen=True)
class Run:
    """A graph and what became of it; ``cluster`` says which places its ranks have."""

    traced: Traced
    cluster: Machine
    result: RunResult

    @property
    def topology(self) -> Topology:
        """The network that it ran on."""
        return self.cluster.topology

    @property
    def slowest(self) -> int:
        """The rank that ends last; of several the first."""
        return int(self.result.finish_ns.argmax())


def check_backend(scenario: Scenario) -> None:
    """Refuses what no event-driven backend can run, before anything runs.

    Raises:
        ValueError: with the key, why, and what to use instead.
    """
    cache_mode()
    backend, network = scenario.backend, scenario.hw.network
    if backend.network == "ideal" and not has_closed_form(network):
        raise ValueError(
            "backend.network=ideal: its links take the closed form's time, which mesh, torus, oversubscription and faulty links have "
            "not; allowed with them: congestion_aware, congestion_unaware, fair"
        )
    if network.faulty_links and backend.network == "congestion_unaware":
        raise ValueError("backend.network=congestion_unaware: it does not see hw.network.faulty_links; allowed: congestion_aware, fair")
    if backend.engine == "astrasim":
        _check_astrasim(scenario)
    if backend.engine == "astrasim" or backend.artifacts.persist:
        load_schema()


def _check_astrasim(scenario: Scenario) -> None:
    backend = scenario.backend
    if backend.network not in ("congestion_aware", "congestion_unaware"):
        raise ValueError(
            f"backend.network={backend.network}: ASTRA-sim has no such network; allowed with backend.engine=astrasim: "
            "congestion_aware, congestion_unaware"
        )
    if backend.streams not in (None, 1):
        raise ValueError(f"backend.streams={backend.streams}: ASTRA-sim runs one communication stream a rank; allowed with it: 1")
    for index, dimension in enumerate(scenario.hw.network.dimensions):
        if dimension.topology in ("mesh", "fat_tree") or dimension.oversubscription > 1:
            raise ValueError(
                f"hw.network.dimensions.{index}.topology={dimension.topology}: ASTRA-sim has rings, full connection and switches; "
                "use backend.engine=builtin"
            )
    _astra_sim(backend)


def check_links(cluster: Machine) -> None:
    """Refuses faulty links that are no links of the layout's network.

    Raises:
        ValueError: with the key, and how links are named.
    """
    from rapid_dse.interconnect.topology import lay_out

    topology = cluster.topology
    try:
        links = lay_out(topology)
    except ValueError as error:
        switches = topology.ranks + np.arange(len(lay_out(Topology(topology.dimensions)).devices))
        named = f"; its switches are devices {switches[0]} to {switches[-1]}" if len(switches) else ""
        sizes = "x".join(str(dimension.size) for dimension in topology.dimensions)
        raise ValueError(f"hw.network.{error}: it has {topology.ranks} places ({sizes}){named}; allowed: ends of one link") from None
    if len(topology.dimensions) == 1 and links.failed.any():
        raise ValueError("hw.network.faulty_links: a link of factor 0 has no way round in one dimension; allowed: a factor above 0")


def check_engine(scenario: Scenario, ep: int, *parts: Topology) -> None:
    """Refuses networks, or parts of them, that ASTRA-sim's binary has not or whose groups it would run otherwise, where it is the engine.

    All-to-alls are experts'. The binary is asked by small runs whose times are known.

    Raises:
        ValueError: with the key, and what to use instead.
    """
    if scenario.backend.engine != "astrasim":
        return
    from rapid_dse.events.astrasim.limits import check_groups

    for part in parts:
        check_groups(system_of(scenario, part), [name for name in COLLECTIVES if name != "ALL_TO_ALL" or ep > 1])
    for part in parts:
        if part.ranks > 1:  # a single rank's graph runs on the built-in engine
            _astra_sim(scenario.backend).check(part, scenario.backend.network, scenario.hw.network.faulty_links)


def own_streams(backend: Backend) -> bool:
    """Whether transfers that hide have streams of their own: never where the ranks follow ASTRA-sim's rules, unless asked for."""
    if backend.streams is None:
        return backend.network in ("fair", "ideal")
    return backend.streams > 1


def stage_on(scenario: Scenario, cluster: Machine, groups: Mapping[str, Ints], peers: Mapping[str, Ints]) -> Stage:
    """The groups on a network: whole where links are ideal, else phase by phase; groups of one rank have no transfers.

    Args:
        groups: ``(groups, members)`` places by name.
        peers: the place that each place talks to, by name, ``(places,)``, -1 for none.
    """
    ideal = scenario.backend.network == "ideal"
    table: dict[str, Ints] = {}
    phases: dict[str, Sequence[int]] = {}
    switched: dict[str, Sequence[float]] = {}
    for name, members in groups.items():
        if members.shape[1] == 1:
            continue
        parts = [members] if ideal else cluster.phases(members)
        phases[name] = [part.shape[1] for part in parts]
        if not ideal:
            switched[name] = [_switch_share(scenario.hw.network, cluster, part) for part in parts]
        table |= {f"{name}/all" if ideal else f"{name}/{i}": part for i, part in enumerate(parts)}
    style = Style(ideal, own_streams(scenario.backend), phases, Labels(), switched)
    return Stage(cluster, Directory(table, peers), style)


def _switch_share(network: Network, cluster: Machine, members: Ints) -> float:
    """What the switches of the dimension along which ``members`` ``(groups, members)`` lie leave of a ring's bytes in an all-reduce."""
    along = [axis for axis, column in enumerate(cluster.coordinates(members)) if (column != column[:, :1]).any()]
    if len(along) != 1:
        return 1.0  # one ring through several dimensions
    number = cluster.dimension[along[0]]
    return switch_share(network.dimensions[number], number == 0, members.shape[1])


def run(scenario: Scenario, stage: Stage, scripts: Sequence[Script], role: Ints, name: str) -> Run:
    """Makes the graph and runs it.

    Raises:
        ValueError: what the engine cannot run, and a graph that deadlocks.
    """
    topology = stage.cluster.topology
    traced = assemble(topology.ranks, scripts, role, stage.directory, name)
    result = _engine(scenario, topology, traced)
    if result.deadlocked:
        waiting = int(result.waiting[0]) if len(result.waiting) else 0
        raise ValueError(f"backend={scenario.backend.name}: the graph deadlocks at {traced.graph.node_name(waiting)}")
    return Run(traced, stage.cluster, result)


def _engine(scenario: Scenario, topology: Topology, traced: Traced) -> RunResult:
    backend, system, graph = scenario.backend, system_of(scenario, topology), traced.graph
    simulate, version = _simulator(backend, topology)
    cache = shared(Path(FOLDER), cache_mode())
    if cache.mode == "NO_CACHE":
        return simulate(graph, topology, system, backend.network)
    key = run_key(graph, topology, system, backend.network, version)
    return cache.run(key, lambda: simulate(graph, topology, system, backend.network))


def _simulator(backend: Backend, topology: Topology) -> tuple[Callable[[Graph, Topology, SystemSettings, str], RunResult], str]:
    """The engine that runs a graph, and its name and version."""
    if backend.engine == "astrasim" and topology.ranks > 1:
        simulator = _astra_sim(backend)
        return simulator.run, simulator.version
    from rapid_dse.interconnect.engine import run_graph  # numba is loaded when something runs
    from rapid_dse.interconnect.event_runs import engine_version

    return run_graph, engine_version()


def _astra_sim(backend: Backend) -> AstraSimEngine:
    from rapid_dse.events.astrasim.adapter import AstraSimEngine

    binary = backend.astrasim.binary
    return AstraSimEngine.find(Path(binary) if binary else None, backend.astrasim.timeout)


def system_of(scenario: Scenario, topology: Topology) -> SystemSettings:
    """ASTRA-sim's settings: rings, but all links at once where a dimension connects fully, and in all-to-alls, as libraries run them."""
    direct = tuple("direct" if d.kind == "FullyConnected" and d.size > 2 else "ring" for d in topology.dimensions)
    memory = scenario.hw.memory.bandwidth / 1e9
    groups = {}
    if len(direct) > 1:
        # a ring in a fully connected dimension would use one of a rank's links, where libraries use them all
        groups = dict.fromkeys(COLLECTIVES, "direct") if "direct" in direct else {"ALL_TO_ALL": "direct"}
    return SystemSettings(
        algorithms=dict.fromkeys(COLLECTIVES, direct) | {"ALL_TO_ALL": ("direct",) * len(direct)},
        splits=CHUNKS,
        active_chunks=CHUNKS * (STREAMS if own_streams(scenario.backend) else 1),  # no stream waits for another one's chunks
        local_mem_bw=memory,
        scheduling_policy="FIFO",
        group_algorithms=groups,
    )


def neighbours(groups: Ints, places: int, shift: int) -> Ints:
    """The member ``shift`` places on in each rank's group, ``(places,)``; -1 for ranks of no group."""
    peer = np.full(places, -1, np.int64)
    peer[groups] = np.roll(groups, -shift, axis=1)
    return peer
