"""An inference engine's ranks on the machine, or those of the two engines of disaggregated pools side by side, and their groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.engine_quantities import CP, STAGE, TP
from rapid_dse.events.machine import Machine, cluster_of, joined
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.inference.pass_parts import ORDER
from rapid_dse.trace.graph import Ints


@dataclass(frozen=True)
class PlacedEngine:
    """One engine: ``cut`` (one row), and its ranks' places ``(pp, cp, tp)``; attention's copies stand beside cp. ``prefix`` of the names of
    its groups and peers in graphs that have another one beside it."""

    cut: Degrees
    places: Ints
    prefix: str = ""

    @property
    def stages(self) -> int:
        """Its pipeline stages."""
        return len(self.places)

    @property
    def flat(self) -> Ints:
        """``(pp, ranks of a stage)``."""
        return self.places.reshape(self.stages, -1)

    @property
    def copy(self) -> Ints:
        """The ranks that have the cache of one request, ``(pp, ranks)``: those of one of attention's copies."""
        return self.places[:, : int(self.cut.cp[0])].reshape(self.stages, -1)

    def groups(self) -> dict[str, Ints]:
        """The groups of its ranks by name."""
        _, cp, tp = self.places.shape
        return {TP: self.places.reshape(-1, tp), CP: self.places.transpose(0, 2, 1).reshape(-1, cp), STAGE: self.flat}

    def peers(self, ranks: int) -> dict[str, Ints]:
        """The ranks of the next and the previous stage by name, the first stage behind the last one."""
        lines = self.flat.T
        return {way: runs.neighbours(lines, ranks, shift) for way, shift in (("next", 1), ("previous", -1))}


def place_engine(scenario: Scenario, cut: Degrees, replicas: int = 1) -> tuple[Machine, list[PlacedEngine]]:
    """So many engines of one kind, one after the other."""
    machine = cluster_of(_degrees(cut, replicas), ORDER, effective_network(scenario))
    return machine, [PlacedEngine(cut, machine.rank[:, replica]) for replica in range(replicas)]


def place_pools(scenario: Scenario, cuts: tuple[Degrees, Degrees]) -> tuple[Machine, tuple[PlacedEngine, PlacedEngine]]:
    """A prefill engine and a decode engine: on nodes of their own, side by side along the outermost dimension of the network."""
    network = effective_network(scenario)
    alone = [cluster_of(_degrees(cut, 1), ORDER, _healthy(network)) for cut in cuts]
    machine, places = joined(network, alone)
    first, second = (
        PlacedEngine(cut, place.reshape(one.rank[:, 0].shape), prefix)
        for cut, place, one, prefix in zip(cuts, places, alone, ("prefill ", "decode "), strict=True)
    )
    return machine, (first, second)


def _healthy(network: Network) -> Network:
    return network.model_copy(update={"faulty_links": ()})


def _degrees(cut: Degrees, replicas: int) -> dict[str, int]:
    tp, attention, pp = int(cut.tp[0]), int(cut.cp[0] * cut.attention_dp[0]), int(cut.pp[0])
    return {"tp": tp, "cp": attention, "pp": pp, "dp": replicas, "ep": 1}


def handover_peers(engines: tuple[PlacedEngine, PlacedEngine], ranks: int) -> tuple[dict[str, Ints], int, int]:
    """Who hands which part of a request's cache to whom: each rank that has a part of it on either engine has as large a one as the others.

    Returns:
        the peers by name (``to 0``, ``to 1``, … of the first engine's ranks, ``from 0``, … of the second's), and how many each has.
    """
    source, target = engines[0].copy.ravel(), engines[1].copy.ravel()
    parts = np.arange(lcm(len(source), len(target)))
    senders, takers = source[parts * len(source) // len(parts)], target[parts * len(target) // len(parts)]
    sends, takes = len(parts) // len(source), len(parts) // len(target)
    peers = {name: np.full(ranks, -1, np.int64) for name in (*handover_names(sends, True), *handover_names(takes, False))}
    for part, (sender, taker) in enumerate(zip(senders.tolist(), takers.tolist(), strict=True)):
        peers[f"to {part % sends}"][sender] = taker
        peers[f"from {part % takes}"][taker] = sender
    return peers, sends, takes


def handover_names(count: int, sends: bool) -> list[str]:
    """Names of the peers to whom a rank sends its parts, or from whom it has them."""
    return [f"{'to' if sends else 'from'} {number}" for number in range(count)]
