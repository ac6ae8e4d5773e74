"""The contract of a strategy.

- A strategy keeps no state: all that it knows is the study, the space and the turn. So a study that was killed goes on as if it
  had not been, and the samplers of several processes need not know of each other.
- All randomness comes from the turn's seed, which is made of search.seed and the trial's number.
- What it proposes may be illegal: the study maps it onto the nearest legal layout that was not tried.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.sweep.search.study_space import SearchSpace, Variant

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Turn:
    """What a strategy knows when it chooses.

    Attributes:
        number: the trial's, from 0.
        space: the study's.
        distributions: the dimensions as Optuna knows them.
        seeds: search.seed, and what tells processes that share a study from each other.
        bar: marks a variant's layouts that cannot win.
    """

    number: int
    space: SearchSpace
    distributions: Mapping[str, BaseDistribution]
    seeds: tuple[int, ...]
    bar: Callable[[Variant], None]

    def draw(self) -> dict[str, Any]:
        """A variant, each as likely, and one of its layouts that are left, each as likely."""
        return self.space.draw(self.rng(), self.bar)

    def seed(self, *salt: int) -> int:
        """32 bits that this turn and ``salt`` alone decide."""
        return int(np.random.SeedSequence([*self.seeds, self.number, *salt]).generate_state(1)[0])

    def rng(self) -> np.random.Generator:
        """Random numbers of this turn."""
        return np.random.default_rng([*self.seeds, self.number])


class Strategy(ABC):
    """Chooses the parameters of a trial."""

    name: str
    startup: int = 0  # trials at the start that are drawn evenly from the legal layouts

    def check(self, space: SearchSpace, n_objectives: int) -> None:  # noqa: B027 most search every space
        """Raises ``ValueError``, with what to use instead, where the strategy cannot search the space."""

    def propose(self, turn: Turn) -> Mapping[str, Any] | None:
        """The parameters themselves, or None to ask the sampler."""
        return turn.draw() if turn.number < self.startup else None

    @abstractmethod
    def sampler(self, turn: Turn) -> BaseSampler:
        """An Optuna sampler for this turn."""
