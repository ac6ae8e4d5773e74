"""Overrides that the page was given: the command line's own, less what names files, programs and machines; and what they span."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapid_dse.imports.file_options import SUFFIXES
from rapid_dse.sweep import driver, idle, restored
from rapid_dse.sweep.chunks import seconds_of
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.one_trial import illegal, priced_row
from rapid_dse.sweep.overrides import GROUPS, SWEEPS, Given, options_of, read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.search.study_space import SearchSpace
from rapid_dse.sweep.space import Axes, axes, plan_of, single

# Keys that name files, programs and machines: they are for whoever has a shell.
REFUSED = ("hydra", "debug", "backend.astrasim", "backend.artifacts", "search.results_dir", "search.storage", "search.launcher",
           "search.launcher_address", "search.space")  # fmt: skip
MOST_LETTERS = 20_000
_UNIT_SLASH = re.compile(r"(?<=[A-Za-z$])/(?=(s|h|FLOP|byte|bit|B|b)\b)")
_FILE = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\b", re.IGNORECASE)
_PLAIN = re.compile(r"[\w.+-]+")
_COMPOSING = threading.Lock()  # Hydra's composition is one of a process


@contextmanager
def composing() -> Iterator[None]:
    """While this is open no other thread composes."""
    with _COMPOSING:
        yield


@dataclass(frozen=True)
class Prospect:
    """What a launch would do.

    Attributes:
        overrides: as the command line takes them.
        study: its name.
        trials: layouts that are priced, or trials that are sampled.
        seconds: of one core, roughly.
        scenarios: combinations of what is no layout.
        left_out: layouts that the enumeration leaves out, by the rule that they break.
        lines: on settings without effect.
    """

    overrides: tuple[str, ...]
    study: str
    trials: int
    seconds: float
    scenarios: int
    left_out: Mapping[str, int]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class PricedWhatIf:
    """A trial that was asked for: its row, the portion behind it, and lines on settings without effect."""

    row: Mapping[str, Any]
    portion: Portion
    lines: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The overrides in a text, as a shell takes words.

    Raises:
        ValueError: where it cannot be read, or holds what the page does not take.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"overrides: {len(text):,} letters; allowed: at most {MOST_LETTERS:,}")
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ValueError(
            f"overrides: cannot be read ({error}); allowed: key=value with blanks between, a blank in a value in quotes"
        ) from None
    for word in words:
        _require_no_path(word)
    return words


def _require_no_path(word: str) -> None:
    """Raises ``ValueError`` where an override is an option of the command, or may name a file."""
    if word.startswith("-"):
        raise ValueError(f"{word}: is an option of the command; allowed here: overrides, as parallel.tp=8")
    bare = _UNIT_SLASH.sub("", word)
    if "/" in bare or "\\" in bare or ".." in bare or "${" in bare or _FILE.search(bare):
        raise ValueError(
            f"{word}: names a file or a folder; allowed here: names of options, as model=llama3_1_8b (files: on the command line)"
        )


def given_of_words(words: Sequence[str]) -> Given:
    """The overrides, sorted as the command line's are.

    Raises:
        ValueError: what the command line says of them, or a key that is not for the page.
    """
    given = read(words)
    keys = [*given.values, *given.swept, *(key for pairs in given.paired for key in pairs[0])]
    for text in given.hydra:
        raise ValueError(f"{text}: is for the command line; allowed here: keys of {', '.join(GROUPS)}")
    for key in keys:
        if any(key == word or key.startswith(f"{word}.") for word in REFUSED):
            raise ValueError(f"{key}: names files, programs or machines, and is for the command line; allowed here: other keys")
    return given


def priced_what_if(words: Sequence[str]) -> PricedWhatIf:
    """Prices one trial by closed forms.

    Raises:
        ValueError: what the command line says of it, or a backend that simulates.
    """
    with composing():
        given = given_of_words(words)
        portion = single(given)
    if portion.scenario.backend.name != "analytical":
        raise ValueError(
            f"backend={portion.scenario.backend.name}: is simulated, which may take long; allowed here: backend=analytical, or a sweep"
        )
    if portion.rule[0] >= 0:
        raise ValueError(illegal(portion, words))
    lines = [*idle.of_trial(given, portion.scenario), *idle.of_files([portion])]
    return PricedWhatIf(priced_row(portion), portion, tuple(lines))


def prospect_of(words: Sequence[str]) -> Prospect:
    """What a sweep of these overrides would price, and how long that takes; nothing is priced.

    Raises:
        ValueError: what the command line says of them.
    """
    with composing():
        given = given_of_words(words)
        with hydra_ready():
            swept = axes(given)
            if swept.base.tree["search"]["name"] == "optuna":
                return _sampled(words, swept)
            planned = plan_of(swept)
    portions = planned.portions
    study = planned.search.study or driver.default_study(portions)
    driver.require_study(study)
    driver.aim_of(planned.search, portions)
    left_out: dict[str, int] = {}
    for portion in portions:
        for reason, count in portion.rejected.items():
            left_out[reason] = left_out.get(reason, 0) + count
    lines = [*idle.of_sweep(planned.keys, [portion.scenario for portion in portions]), *idle.of_files(portions)]
    seconds = sum(len(portion.layouts) * seconds_of(portion.scenario) for portion in portions)
    return Prospect(tuple(words), study, sum(len(portion.layouts) for portion in portions), seconds, len(portions), left_out, tuple(lines))


_SECONDS_ASKED = 0.005  # of one core, in which a sampler proposes a trial and its row is stored


def _sampled(words: Sequence[str], swept: Axes) -> Prospect:
    search, _ = swept.run_settings()
    settings = SearchSpace(swept).settings()
    study = search.study or driver.default_study(settings)
    driver.require_study(study)
    seconds = search.n_trials * (_SECONDS_ASKED + seconds_of(settings[0].scenario))
    return Prospect(tuple(words), study, search.n_trials, seconds, len(settings), {}, ())


def overrides_of_row(row: Mapping[str, Any]) -> list[str]:
    """The overrides that compose a row of results again."""
    words = []
    for key, value in row.items():
        if value is None or not restored.is_override(key) or (key == "parallel.schedule" and value == "none"):
            continue
        text = str(value).lower() if isinstance(value, bool) else f"{value:.17g}" if isinstance(value, float) else str(value)
        words.append(f"{key}={_as_value(key, text)}")
    return words


def _as_value(key: str, text: str) -> str:
    """A text that Hydra takes as it is; lists of names, which rows hold with commas, in brackets."""
    return f"[{text}]" if key in ("model.layer_types", "parallel.stage_layers") else quoted_for_hydra(text)


def quoted_for_hydra(text: str) -> str:
    """A text as one value of an override."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def command_of(words: Sequence[str], sweep: bool, root: Path | None = None) -> str:
    """What the overrides are on a command line."""
    where = [] if root is None or str(root) == "results" else [f"search.results_dir={root}"]
    return f"python -m rapid_dse {shlex.join([*(['-m'] if sweep else []), *words, *where])}"


def options_by_group() -> dict[str, list[str]]:
    """The options that the form offers."""
    return {group: options_of(group) for group in ("hw", "cluster", "model", "software", "workload", SWEEPS)}
