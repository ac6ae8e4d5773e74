"""How the next trial is chosen: one strategy a file behind ``base.Strategy``; a file is imported when its strategy is used."""

from __future__ import annotations

from importlib import import_module

from rapid_dse.sweep.search.strategies.base import Strategy


def strategy(name: str) -> Strategy:
    """The strategy that search.sampler names."""
    strategy_class = import_module(f"{__name__}.{name}").STRATEGY
    assert isinstance(strategy_class, Strategy)
    return strategy_class
