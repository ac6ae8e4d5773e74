"""What the sweeper does once it is asked to: the underscore keeps Hydra's plugin discovery from importing this."""

from __future__ import annotations

from collections.abc import Sequence

from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan


def run(arguments: Sequence[str]) -> int:
    """Prices the space that ``arguments`` span; the exit code of the driver."""
    from rapid_dse.sweep.driver import run as drive

    planned = plan(read(arguments))
    return drive(planned.portions, planned.search, planned.debug)
