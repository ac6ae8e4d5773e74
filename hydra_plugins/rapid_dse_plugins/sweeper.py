"""The sweeper behind ``-m``: a sweep is a table, not a job a trial."""

from __future__ import annotations

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TableSweeper(Sweeper):  # type: ignore[misc]
    """Composes each combination of groups once and hands their layouts, as columns, to the driver."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> int:
        """Runs the sweep that the overrides describe; the driver's exit code.

        Raises:
            ValueError: one line, where an override is wrong.
        """
        from hydra_plugins.rapid_dse_plugins import _sweep  # heavy: only when a sweep runs

        return _sweep.run(arguments, self.config)
