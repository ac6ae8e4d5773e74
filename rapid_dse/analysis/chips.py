"""The chips that conf/hw describes, by name."""

from __future__ import annotations

from collections.abc import Collection

from rapid_dse.config.hardware import Hardware
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of
from rapid_dse.sweep.places import home


def chips(wanted: Collection[str] | None = None) -> dict[str, Hardware]:
    """Every chip of conf/hw, or those of them that are ``wanted``, composed as a trial composes them."""
    names = sorted(path.stem for path in (home() / "conf" / "hw").glob("*.yaml"))
    names = [name for name in names if wanted is None or name in wanted]
    with hydra_ready():
        return {name: scenario_of(composed({"hw": name}).tree)[0].hw for name in names}
