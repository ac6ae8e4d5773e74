"""ZeRO's stages as what they shard: the table of its paper, and that nothing beside it knows what a stage's number means."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np

import rapid_dse
from rapid_dse.parallel.zero_stages import Sharding

PACKAGE = Path(rapid_dse.__file__).parent


def test_each_stage_shards_what_the_paper_says() -> None:
    """arXiv 1910.02054, figure 1: none; P_os; P_os+g; P_os+g+p. New weights are gathered once a step while parameters stay whole."""
    found = Sharding.of(np.array([0, 1, 2, 3]))
    assert found.optimizer.tolist() == [False, True, True, True]
    assert found.gradients.tolist() == [False, False, True, True]
    assert found.parameters.tolist() == [False, False, False, True]
    assert found.gathers_once.tolist() == [False, True, True, False]
    assert found.optimizer_alone.tolist() == [False, True, False, False]
    assert len(set(found.in_passes.tolist())) == 3
    assert found.in_passes[0] == found.in_passes[1]


def test_physics_asks_what_is_sharded_and_compares_no_stage() -> None:
    for room in ("simulate", "events", "model", "interconnect", "cost"):
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    sides = [node.left, *node.comparators]
                    assert not any(isinstance(side, ast.Attribute) and side.attr == "zero" for side in sides), f"{path}:{node.lineno}"
