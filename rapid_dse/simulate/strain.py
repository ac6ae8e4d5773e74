"""Which jobs run under strain (``software.strained``), and the profile that each is priced with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Hardware
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts


def strained(scenario: Scenario, layouts: Layouts) -> NDArray[np.bool_]:
    """Whether each job runs under strain, ``(n_layouts,)``: as ``software.strained`` says, or by pipelines and nodes."""
    software = scenario.software
    if software.strained is not None:
        return np.full(len(layouts), software.strained)
    nodes = nodes_of(scenario.hw, layouts)
    return (nodes > 1) & ((layouts.pp > 1) | (nodes >= (software.strained_nodes or np.inf)))


def nodes_of(hw: Hardware, layouts: Layouts) -> NDArray[np.float64]:
    """The nodes that each layout's GPUs are, a part of one included, ``(n_layouts,)``; 1 where the whole machine is one node."""
    if hw.node_dimensions == len(hw.network.dimensions):
        return np.ones(len(layouts))
    return np.asarray(layouts.num_gpus / hw.gpus_per_node)


def by_state(scenario: Scenario, layouts: Layouts) -> list[tuple[Scenario, NDArray[np.intp]]]:
    """The scenario of each state that layouts run in, with the positions of those that do; every layout is in one."""
    if scenario.software.strain_changes:
        under = strained(scenario, layouts)
        states = [(False, np.flatnonzero(~under)), (True, np.flatnonzero(under))]
    else:
        states = [(False, np.arange(len(layouts)))]
    return [(_in_state(scenario, state), rows) for state, rows in states if len(rows)]


def _in_state(scenario: Scenario, state: bool) -> Scenario:
    return scenario.model_copy(update={"software": scenario.software.in_state(state)})
