"""The chips that conf/hw describes, by name."""

from __future__ import annotations

from rapid_dse.config.hardware import Hardware
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of
from rapid_dse.sweep.places import home


def chips() -> dict[str, Hardware]:
    """Every chip of conf/hw, composed as a trial composes it."""
    names = sorted(path.stem for path in (home() / "conf" / "hw").glob("*.yaml"))
    with hydra_ready():
        return {name: scenario_of(composed({"hw": name}).tree)[0].hw for name in names}
