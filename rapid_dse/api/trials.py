"""``rd.simulate``: one trial, with its row, its terms and why it is so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rapid_dse.api.keywords import Settings, given_of, warn
from rapid_dse.sweep import figures, idle, show
from rapid_dse.sweep.one_trial import illegal, priced_row
from rapid_dse.sweep.space import single

if TYPE_CHECKING:
    from rapid_dse.api.explaining import Explained

_TIME, _MEMORY = ("time_", "_s"), ("memory_", "_bytes")


@dataclass(frozen=True, repr=False)
class TrialRow(Mapping[str, Any]):
    """One layout on one machine: a row of results, SI units, None where there is no value.

    ``trial["step_time_s"]`` is a column, ``trial.times`` and ``trial.memory`` are the terms that add up to step time and peak.
    """

    row: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.row[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def status(self) -> str:
        """ok, oom (does not fit in memory), invalid (a rule is broken) or error; ``trial["reason"]`` says why."""
        return str(self.row["status"])

    @property
    def fits(self) -> bool:
        """Whether the peak is within hw.memory.usable."""
        return bool(self.row["fits"])

    @property
    def step_time_s(self) -> float:
        """Seconds a step; NaN where it could not be priced."""
        return _number(self.row["step_time_s"])

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all GPUs."""
        return _number(self.row["tokens_per_s"])

    @property
    def mfu(self) -> float:
        """The model's FLOP over the peak's, a share."""
        return _number(self.row["mfu"])

    @property
    def peak_memory_bytes(self) -> float:
        """Bytes of the fullest GPU."""
        return _number(self.row["peak_memory_bytes"])

    @property
    def cost_usd(self) -> float:
        """US dollars a step."""
        return _number(self.row["cost_usd"])

    @property
    def energy_j(self) -> float:
        """Joules a step of all GPUs."""
        return _number(self.row["energy_j"])

    @property
    def expected_error(self) -> float | None:
        """The relative error to expect of the step time, of a served row of its time between tokens; None where nothing like it was
        measured."""
        error: float | None = self.row.get("expected_error")
        return error

    @property
    def outside(self) -> str | None:
        """Which settings no measured run had; None where there are none."""
        text: str | None = self.row.get("outside")
        return text

    @property
    def times(self) -> dict[str, float]:
        """Seconds of a step by term."""
        return self._terms(*_TIME)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of the peak by term."""
        return self._terms(*_MEMORY)

    def _terms(self, head: str, tail: str) -> dict[str, float]:
        return {
            name.removeprefix(head).removesuffix(tail): _number(value)
            for name, value in self.row.items()
            if name.startswith(head) and name.endswith(tail) and value is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """All columns, as plain values."""
        return dict(self.row)

    def explain(self, against: TrialRow | None = None) -> Explained:
        """Why it takes what it takes, and where another one differs: what ``python -m rapid_dse.explain`` prints.

        Raises:
            ValueError: where a row was not priced.
        """
        from rapid_dse.api.explaining import explained

        return explained(self, against)

    def __repr__(self) -> str:
        if self.row["step_time_s"] is None:
            return f"<Trial {show.layout_text(self.row)}: {show.status_text(self.row)}>"
        error = show.expected_text(self.expected_error)
        memory = figures.size(self.peak_memory_bytes)
        verdict = "fits" if self.fits else "does not fit"
        time = f"{figures.seconds(self.step_time_s)} {error} {show.priced_unit(self.row)}"
        return f"<Trial {show.layout_text(self.row)}: {time}, {memory}, {verdict}>"

    def _repr_html_(self) -> str:
        from rapid_dse.api.html import trial_html

        return trial_html(self)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def simulate(keys: Settings | None = None, /, **settings: Any) -> TrialRow:
    """Prices one trial.

    ``rd.simulate(hw="h100", model="llama3_1_70b", tp=8, pp=2, num_gpus=64)``; full keys stand in a mapping:
    ``rd.simulate({"hw.memory.bandwidth": "4 TB/s"}, tp=8)``.

    Args:
        keys: settings by full or short key.
        settings: settings by short key, or the option of a group (hw, cluster, model, workload, software, backend).

    Raises:
        ValueError: what the command line says of a wrong key, value, file or layout.
    """
    given = given_of(keys, settings)
    portion = single(given)
    if portion.rule[0] >= 0:
        raise ValueError(illegal(portion))
    warn([*idle.of_trial(given, portion.scenario), *idle.of_files([portion])])
    return TrialRow(priced_row(portion))
