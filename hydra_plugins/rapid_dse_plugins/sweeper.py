"""The sweeper behind ``-m``: a sweep is a table, not a job a trial."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TableSweeper(Sweeper):  # type: ignore[misc]
    """Composes each combination of groups once and hands their layouts, as columns, to the driver."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the sweep that the overrides describe.

        Raises:
            SystemExit: with the driver's exit code where it is not 0: Hydra passes no return value on.
            ValueError: one line, where an override is wrong.
        """
        from hydra_plugins.rapid_dse_plugins import _sweep  # heavy: only when a sweep runs

        code = _sweep.run(arguments)
        if code:
            raise SystemExit(code)
        return code
