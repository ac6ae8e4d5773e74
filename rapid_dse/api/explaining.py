"""Why a trial takes what it takes: the explanation of ``python -m rapid_dse.explain``, as a value."""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from rapid_dse.analysis.reasons import explanation, told
from rapid_dse.analysis.reasons.chosen import restored

if TYPE_CHECKING:
    from rapid_dse.analysis.reasons.explanation import Explanation
    from rapid_dse.api.trials import TrialRow


@dataclass(frozen=True, repr=False)
class Explained:
    """An explanation; ``print`` it, or take ``to_dict()``, whose keys docs/json.md lists."""

    of: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``explain --json`` prints them."""
        return explanation.to_dict(self.of)

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        told.tell(Console(file=out, width=160, highlight=False), self.of)
        return out.getvalue()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def explained(of: TrialRow, against: TrialRow | None) -> Explained:
    """The explanation of a trial, and its difference to another."""
    other = None if against is None else restored(against.row)
    return Explained(explanation.explained(restored(of.row), other))
