"""What the sweeper does once it is asked to: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from rapid_dse.sweep.compose import from_hydra
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan


def run(arguments: Sequence[str], config: DictConfig) -> int:
    """Prices the space that ``arguments`` span over ``config``, their composition; the exit code of the driver."""
    from rapid_dse.sweep.driver import run as drive

    planned = plan(read(arguments), from_hydra(config))
    if planned.search.name != "grid":
        raise ValueError(f"search={planned.search.name}: not part of this version; allowed: grid")
    return drive(planned.portions, planned.search, planned.debug)
