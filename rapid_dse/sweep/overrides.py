"""What a command line asks for: overrides in Hydra's grammar, sorted into options of groups, values, and what is swept."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rapid_dse.config.parts import keys_of
from rapid_dse.config.scenario import Scenario, known_key, siblings, unknown_key, without_parts
from rapid_dse.config.units import shortened
from rapid_dse.imports.file_options import is_file_option, kind_of_run
from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.sweep.pairs import ZIP, Pairs, check_pairs, mappings_of, parts_of, side_by_side, text_of_pairs
from rapid_dse.sweep.places import GUARDED_SCHEME, home, search_paths
from rapid_dse.sweep.plain_overrides import plain_override
from rapid_dse.sweep.trusting import TRUST

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Glob, Override

GROUPS = ("hw", "cluster", "model", "parallel", "workload", "software", "backend", "search")
MOST_VALUES = 100_000  # of one key
LAYOUT = "parallel"  # the group whose options are layouts
SWEEPS = "sweeps"  # the group of named sweeps: +sweeps=NAME
# Keys that take the word all: every value that can be legal. How many GPUs share one copy of the shards is told in numbers.
ALL_KEYS = tuple(key for key in COLUMN_OF if key.startswith("parallel.") and key != "parallel.shard_group")
_OF_WORKLOAD = {"inference": {"software": "vllm"}}  # options of other groups that a workload takes where none is named


@dataclass(frozen=True)
class Values:
    """What one key is swept over; ``None`` is every value that can be legal (the word all)."""

    items: tuple[Any, ...] | None


@dataclass(frozen=True)
class Interval:
    """The numbers from ``low`` to ``high``, both included; ``log`` where factors count and not differences."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Given:
    """A command line's overrides.

    Attributes:
        options: one option a group, as ``hw: h100``; ``sweeps`` is the named sweep.
        values: one value a key.
        swept: what a group or a key is swept over.
        hydra: overrides of Hydra's own configuration, as written.
        paired: keys that are swept together, a tuple of settings each: ``zip(parallel.tp=1,2;parallel.pp=4,2)``.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Values | Interval] = field(default_factory=dict)
    hydra: tuple[str, ...] = ()
    paired: tuple[Pairs, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether files may say what the command line alone may say else."""
        return self.values.get(TRUST) is True


def read(arguments: Sequence[str]) -> Given:
    """Sorts the overrides of a command line; the last one of a key counts.

    Raises:
        ValueError: one line, where the grammar is broken, a key is unknown, or a kind of override is not supported.
    """
    options: dict[str, str] = {}
    values: dict[str, Any] = {}
    swept: dict[str, Values | Interval] = {}
    arguments = [guarded_folders(text) for text in arguments]
    hydra = [text for text in arguments if text.lstrip("+").startswith("hydra.searchpath")]
    paired: list[Pairs] = []
    for text in arguments:
        if text.startswith("zip("):
            paired.append(_pairs(text, hydra))
            continue
        if plain_override(text) is None and (override := _parsed(text)).is_hydra_override():
            _check_hydra(override, text)
            hydra += [text] if text not in hydra else []
            continue
        key, choices = _setting(text, text, hydra)
        options.pop(key, None), values.pop(key, None), swept.pop(key, None)
        if isinstance(choices, Values | Interval):
            swept[key] = choices
        elif key in GROUPS or key == SWEEPS:
            options[key] = choices
        else:
            values[key] = choices
    check_pairs(paired, [*options, *values, *swept])
    together = [key for pairs in paired for key in pairs[0]]
    return Given(*usual_options(options, values, [*swept, *together]), swept, tuple(hydra), tuple(paired))


def usual_options(options: Mapping[str, str], values: Mapping[str, Any], named: Collection[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The options with those that follow from the workload, and the values without workload.kind, which is an option's.

    Args:
        named: groups and keys that are given in another way.

    Raises:
        ValueError: where workload.kind and the option contradict each other.
    """
    options, values = dict(options), dict(values)
    kind = values.get("workload.kind")
    if kind is not None and isinstance(kind, str) and kind in ("training", "inference"):
        if options.setdefault("workload", kind) != kind:
            raise ValueError(f"workload.kind={kind} and workload={options['workload']} contradict each other; allowed: workload alone")
        del values["workload.kind"]
    model = options.get("model", "")
    if "workload" not in {*options, *named} and is_file_option("model", model):
        kind = kind_of_run(model)
        options |= {} if kind is None else {"workload": kind}
    for group, option in _OF_WORKLOAD.get(options.get("workload", ""), {}).items():
        if group not in named and SWEEPS not in options:
            options.setdefault(group, option)
    return options, values


def _pairs(text: str, hydra: Sequence[str]) -> Pairs:
    """The settings that ``zip(a=1,2;b=3,4)`` stands for; ``ValueError`` where it is none."""
    values: dict[str, Values | Interval] = {}
    for part in parts_of(text):
        key, value = _setting(part, part, hydra)
        values[key] = value if isinstance(value, Values | Interval) else Values((value,))
    return _side_by_side(text, values)


def _side_by_side(text: str, known_values: Mapping[str, Values | Interval]) -> Pairs:
    for key, values in known_values.items():
        if isinstance(values, Interval) or values.items is None:
            raise ValueError(f"{text}: {key} has no list; allowed: as many values of each, as parallel.tp=1,2")
        if key in (LAYOUT, SWEEPS):
            raise ValueError(f"{key}: cannot be swept; allowed: one value")
    return side_by_side(text, {key: values.items or () for key, values in known_values.items() if isinstance(values, Values)})


def option_folders(hydra: Sequence[str] = ()) -> list[Path]:
    """The folders that hold groups, in the order in which they are looked in: the program's, the user's, and those of hydra.searchpath."""
    folders = [home() / "conf", *search_paths(Path.cwd())]
    for text in hydra:
        override = _parsed(text)
        if override.key_or_group == "hydra.searchpath":
            folders += [Path(folder.split("://", 1)[-1]) for folder in _folders(override)]
    return list(dict.fromkeys(folders))


def guarded_folders(text: str) -> str:
    """An override of hydra.searchpath with folders whose files are looked at before they are loaded; any other one as it is."""
    if not text.lstrip("+").startswith("hydra.searchpath"):
        return text
    override = _parsed(text)
    if override.key_or_group != "hydra.searchpath":
        return text
    listed = [
        folder if "://" in folder and not folder.startswith("file://") else f"{GUARDED_SCHEME}://{folder.split('://', 1)[-1]}"
        for folder in _folders(override)
    ]
    return f"hydra.searchpath=[{','.join(repr(folder) for folder in listed)}]"


def _folders(override: Override) -> list[str]:
    listed = override.value()
    return [str(_plain(folder)) for folder in (listed if isinstance(listed, list) else [listed])]


def options_of(group: str, hydra: Sequence[str] = ()) -> list[str]:
    """The names of a group's options."""
    return sorted({path.stem for folder in option_folders(hydra) for path in (folder / group).glob("*.yaml")})


def _check_hydra(override: Override, text: str) -> None:
    """Refuses what would take the sweep out of this program's hands, and options that are no names."""
    key = override.key_or_group
    if key == "hydra/sweeper" or key.startswith("hydra.sweeper") or key == "hydra.mode":
        raise ValueError(f"{text}: sweeps are tables here, and no other sweeper prices them; leave it out")
    if "/" in key and not isinstance(override.value(), str | None):
        raise ValueError(f"{text}: allowed: the name of an option of Hydra's")


def read_space(space: Mapping[str, Any]) -> tuple[dict[str, Values | Interval], tuple[Pairs, ...]]:
    """What a sweep file's ``search.space`` sweeps: a list of values, or text as on a command line (all, "1,2,4", "range(1,5)",
    "interval(2e12,6e12)"); and what it pairs: ``zip: {parallel.tp: [1, 2], parallel.pp: [4, 2]}``, or a list of such.

    Raises:
        ValueError: as ``read``.
    """
    swept = {key: _of_space(key, value) for key, value in space.items() if key != ZIP}
    lists = [({key: _of_space(key, value) for key, value in one.items()}, one) for one in mappings_of(space.get(ZIP))]
    paired = tuple(_side_by_side(text_of_pairs(one), listed) for listed, one in lists)
    check_pairs(paired, swept)
    return swept, paired


def _of_space(key: str, value: Any) -> Values | Interval:
    check_key(key)
    if isinstance(value, str):
        _, values = _setting(f"{key}={value}", f"search.space.{key}={value}")
        return values if isinstance(values, Values | Interval) else Values((values,))
    return Values(tuple(value) if isinstance(value, list | tuple) else (value,))


def check_key(key: str) -> None:
    """Raises ValueError, with the nearest spelling, where no group and no part of the schema has that name."""
    if key in GROUPS or key == SWEEPS or known_key(key):
        return
    if known_key(without_parts(key)) and key.count(".") > 1:
        raise ValueError(f"{key}: no such key; did you mean {without_parts(key)!r}? (parts group keys in files alone)")
    path = key.split(".")
    names = siblings(path)
    if not difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5):
        near = _nearest_anywhere(path[-1])
        if near:
            raise ValueError(f"{key}: no such key; did you mean {near!r}? (--help lists the keys)")
    raise ValueError(unknown_key(key, names))


def _nearest_anywhere(name: str) -> str | None:
    # tp=8 and workload.num_gpus=64 have the right name and the wrong place.
    keys: dict[str, str] = {}
    for section, field_info in Scenario.model_fields.items():
        model = field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            keys.update({leaf: f"{section}.{leaf}" for leaf in keys_of(model)})
    near = difflib.get_close_matches(name, list(keys), n=1, cutoff=0.75)
    return keys[near[0]] if near else None


def _parsed(text: str) -> Override:
    if "=" not in text and not text.startswith("~"):
        raise ValueError(f"{text!r} is no override; allowed: key=value, as parallel.tp=8")
    from hydra.errors import HydraException

    from rapid_dse.sweep.grammar import parser

    try:
        parsed: Override = parser().parse_overrides([text])[0]
        return parsed
    except HydraException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0][:200] if lines else "empty"
        if set("<>") & set(text):
            why = """a text with < or > needs quotes, as 'search.constraints=["ttft_s<=0.5"]'"""
        raise ValueError(f"{shortened(text)} is no override ({why}); allowed: key=value, as parallel.tp=8") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in brackets
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "it has a number of too many digits"
        raise ValueError(f"{shortened(text)} is no override ({why}); allowed: key=value, as parallel.tp=8") from None


def _setting(text: str, said: str, hydra: Sequence[str] = ()) -> tuple[str, Any]:
    """An override's key with its single value, or ``Values`` or an ``Interval`` where it sweeps; ``said`` is what messages call it."""
    plain = plain_override(text)
    if plain is None:
        override = _parsed(text)
        return override.key_or_group, _values(override, said, hydra)
    key, items = plain
    check_key(key)
    return key, _distinct(key, list(items), said) if len(items) > 1 else _single(key, items[0], said)


def _values(override: Override, text: str, hydra: Sequence[str]) -> Any:
    key = override.key_or_group
    if override.is_delete():
        raise ValueError(f"{text}: a key cannot be deleted; allowed: key=value")
    if override.package is not None:
        raise ValueError(f"{text}: packages are not supported; allowed: {key}=<option>")
    check_key(key)
    if override.is_interval_sweep():
        return _interval(override, text)
    if override.is_sweep_override():
        from hydra.core.override_parser.types import Glob

        parsed_value = override.value()
        if isinstance(parsed_value, Glob):
            return _matching(key, parsed_value, text, hydra)
        return _distinct(key, _swept_items(override, parsed_value, text), text)
    return _single(key, override.value(), text)


def _single(key: str, value: Any, text: str) -> Any:
    if value == "all" and key in ALL_KEYS:
        return Values(None)
    if (key in GROUPS or key == SWEEPS) and not isinstance(value, str):
        raise ValueError(f"{text}: allowed: the name of an option, as hw=h100")
    return value


def _matching(key: str, pattern: Glob, text: str, hydra: Sequence[str]) -> Values:
    """The options of a group that a pattern matches: model=glob(llama3*), model=glob([llama*,qwen*],exclude=*405b)."""
    if key not in GROUPS or key == LAYOUT:
        raise ValueError(f"{text}: patterns are for names of options; allowed: glob(...) for {', '.join(sorted({*GROUPS} - {LAYOUT}))}")
    names = [str(name) for name in pattern.filter(options_of(key, hydra))]
    if not names:
        raise ValueError(f"{text}: no option matches; there are {', '.join(options_of(key, hydra))}")
    return Values(tuple(names))


def _swept_items(override: Override, value: Any, text: str) -> list[Any]:
    from decimal import InvalidOperation

    from hydra.core.override_parser.types import RangeSweep

    try:
        if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
            count = (value.stop - value.start) / value.step  # a step of 0 divides by 0
            if count > MOST_VALUES:
                raise ValueError(f"{count:,.0f} values; allowed: up to {MOST_VALUES:,}")
        return [_plain(item) for item in override.sweep_iterator()]
    except InvalidOperation:  # of decimal: nan is neither below nor above the end
        raise ValueError(f"{text}: nan; allowed: range(start,stop[,step]) of numbers") from None
    except ZeroDivisionError:
        raise ValueError(f"{text}: a step of 0; allowed: range(start,stop[,step]) with another step") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text}: {error}") from None


def _interval(override: Override, text: str) -> Interval:
    from hydra.core.override_parser.types import IntervalSweep

    key, value = override.key_or_group, override.value()
    assert isinstance(value, IntervalSweep)
    assert value.start is not None
    assert value.end is not None
    if key in COLUMN_OF or key in GROUPS or key == SWEEPS:
        raise ValueError(f"{text}: an interval has no end of values; allowed for {key}: a list (1,2,4), range(start,stop[,step]) or all")
    if unknown := value.tags - {"log"}:
        raise ValueError(f"{text}: {', '.join(sorted(unknown))}: no such tag; allowed: log, as tag(log, interval(1e12,8e12))")
    low, high, log = float(value.start), float(value.end), "log" in value.tags
    if not low < high or (log and low <= 0):
        raise ValueError(f"{text}: allowed: a lower end below the upper one" + ", above 0 where factors count" * log)
    return Interval(low, high, log)


def _distinct(key: str, items: list[Any], text: str) -> Values:
    if not items:
        raise ValueError(f"{text}: no value is left to sweep; allowed: at least one")
    if "all" in items and key in ALL_KEYS:
        if items == ["all"]:
            return Values(None)
        raise ValueError(f"{text}: all stands alone; allowed: {key}=all, or a list without it")
    return Values(tuple({repr(item): item for item in items}.values()))


def _plain(item: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    return item.text if isinstance(item, QuotedString) else item


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The same overrides as Hydra takes them: a key that a YAML file leaves out is added, and so is a named sweep.

    The word all becomes a choice: Hydra leaves those to the sweeper. Options that follow from others are named.
    """
    given, arguments = read(arguments), [guarded_folders(text) for text in arguments]
    named = {_parsed(text).key_or_group for text in arguments}
    rewritten = [f"{group}={option}" for group, option in given.options.items() if group not in named]
    for text in arguments:
        override = _parsed(text)
        bare = text.lstrip("+")
        if override.key_or_group == "workload.kind" and "workload.kind" not in {*given.values, *given.swept}:
            continue  # it is an option of its group
        if override.is_hydra_override():
            rewritten.append(text)
        elif override.key_or_group in ALL_KEYS and override.value() == "all":
            rewritten.append(f"++{override.key_or_group}=choice(all)")
        elif override.key_or_group == SWEEPS:
            rewritten.append(f"+{bare}")
        else:
            rewritten.append(bare if override.key_or_group in GROUPS else f"++{bare}")
    return rewritten
