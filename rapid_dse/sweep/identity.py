"""What makes two trials the same: content hashes of the configuration, of a layout, and of the code that prices them.

A trial's key is ``configuration XOR code``, 128 bits each. So the configuration behind a key can be told from the key and its
file's code hash, and rows that older code priced are recognised as the same question (``configurations``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rapid_dse.common.columns import together
from rapid_dse.common.remembered import remembered
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import COLUMN_OF, OPTIONAL, Layouts

Lanes = NDArray[np.uint64]

# What decides a price: a change in any of these files makes stored rows those of older code.
PRICING_SOURCES = (
    "config",
    "parallel",
    "model",
    "device",
    "interconnect",
    "trace",
    "cost",
    "simulate",
    "events",
    "common/columns.py",
    "common/lazy_rows.py",
    "common/remembered.py",
)
# Parts of a scenario that no price depends on, or that the layout's own columns hold.
_NOT_CONTENT: dict[str, Any] = {
    "search": True,
    "debug": True,
    "parallel": {key.split(".")[1] for key in COLUMN_OF if key.startswith("parallel.")},
    "hw": {"num_gpus"},
    "workload": {key.split(".")[1] for key in COLUMN_OF if key.startswith("workload.")},
    "backend": {"artifacts"},
}
_CONTENT = sorted(name for name in Scenario.model_fields if _NOT_CONTENT.get(name) is not True)
# splitmix64's step, shifts and multipliers, and MurmurHash3's multipliers for the second lane.
_STEP, _SHIFTS, _LAST_SHIFT = np.uint64(0x9E3779B97F4A7C15), (np.uint64(30), np.uint64(27)), np.uint64(31)
_MULTIPLIERS = [
    np.array(both, np.uint64)[:, None] for both in ((0xBF58476D1CE4E5B9, 0xFF51AFD7ED558CCD), (0x94D049BB133111EB, 0xC4CEB9FE1A85EC53))
]
SLOW = 8  # columns that change least from row to row, the first ones: of training all degrees
RUN = 4  # layouts that are alike in them, in the mean, from which it is worth to look at each such run once
PIECE = 16384  # layouts whose keys are worked out at a time: they stay in the processor's cache


@cache
def code_hash() -> str:
    """32 hex digits of the content of everything that prices a trial; read once a process."""
    package, digest = Path(__file__).parent.parent, hashlib.blake2b(digest_size=16)
    for name in PRICING_SOURCES:
        source = package / name
        for path in sorted(source.rglob("*"), key=str) if source.is_dir() else [source]:
            if "__pycache__" not in path.parts and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.as_posix().removeprefix(package.as_posix())}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def configuration_text(scenario: Scenario) -> str:
    """A text that is equal for scenarios that price equally: no search, no debug, no column of ``Layouts``.

    Fields at their defaults are left out, so that a field that a later version adds does not make all stored rows strangers.
    """
    table = scenario.hw.measured_table
    if not table or not Path(table).is_file():
        return _text(scenario)
    tree = _tree(scenario)  # its content prices, not its name; a missing file is reported where it is read
    return _compact(tree | {"measured": hashlib.blake2b(Path(table).read_bytes(), digest_size=16).hexdigest()})


@remembered(256)
def _text(scenario: Scenario) -> str:
    """``configuration_text`` of a scenario without a table of measured times."""
    texts = ((name, _part_text(getattr(scenario, name), name)) for name in _CONTENT)
    return "{" + ",".join(f'"{name}":{text}' for name, text in texts if text) + "}"


@remembered(256)
def _part_text(part: BaseModel, name: str) -> str:
    """What a part of a scenario, which others may share, adds to ``configuration_text``; empty where it is as it is by default."""
    tree = {} if part == Scenario.model_fields[name].default else _part_tree(part, name)
    return _compact(tree) if tree else ""


def _part_tree(part: BaseModel, name: str) -> dict[str, Any]:
    return _without_empty(part.model_dump(mode="json", exclude=_NOT_CONTENT.get(name), exclude_defaults=True))


def _tree(scenario: Scenario) -> dict[str, Any]:
    return _without_empty(scenario.model_dump(mode="json", exclude=_NOT_CONTENT, exclude_defaults=True))


def _compact(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"))


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    # A part whose only changes are not content is left as {}, where one without changes is left out.
    return {key: kept for key, value in tree.items() if (kept := _without_empty(value) if isinstance(value, dict) else value) != {}}


def keys(scenario: Scenario, layouts: Layouts, code: str | None = None) -> Lanes:
    """The key of every layout under a scenario, ``(n_layouts, 2)``; ``code`` None is the running code's hash."""
    return keys_of([scenario], [layouts], code)


def keys_of(scenarios: Sequence[Scenario], tables: Sequence[Layouts], code: str | None = None) -> Lanes:
    """``keys`` of tables of one kind of layouts, one behind the other, each under a scenario of its own."""
    seeds = np.frombuffer(b"".join(map(_seed, scenarios)), np.uint64).reshape(-1, 2).T
    columns = {name: together([getattr(table, name) for table in tables]) for name in tables[0].keys}
    n_rows = sum(map(len, tables))
    seeds = seeds if len(tables) == 1 else seeds.repeat([len(table) for table in tables], axis=1)
    lanes, code_lanes = np.empty((n_rows, 2), np.uint64), from_hex([code or code_hash()])
    for start in range(0, n_rows, PIECE):
        rows = slice(start, start + PIECE)
        of_rows = seeds if len(tables) == 1 else seeds[:, rows]
        np.bitwise_xor(_mixed(of_rows, {name: column[rows] for name, column in columns.items()}).T, code_lanes, out=lanes[rows])
    return lanes


def _seed(scenario: Scenario) -> bytes:
    """What a scenario brings to the keys of its layouts: both lanes."""
    return hashlib.blake2b(configuration_text(scenario).encode(), digest_size=16).digest()


def _mixed(seeds: Lanes, columns: Mapping[str, NDArray[Any]]) -> Lanes:
    """What the columns of some layouts make of both lanes of a seed, ``(2, n_layouts)``; of one seed, ``(2, 1)``, or of one for each.

    Layouts that follow each other in a space have the same first columns for long: what those make of the seed is worked out once for each
    such run of layouts.
    """
    names = list(columns)
    first, n_rows = [columns[name] for name in names[:SLOW]], len(columns[names[0]])
    changes = reduce(np.logical_or, (column[1:] != column[:-1] for column in first))
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    in_runs = seeds.shape[1] == 1 and len(begins) * RUN < n_rows
    state = np.repeat(seeds, (len(begins) if in_runs else n_rows) // seeds.shape[1], axis=1)
    for place, name in enumerate(names):
        if in_runs and place == SLOW:
            state = np.repeat(state, np.diff(begins, append=n_rows), axis=1)
        column = columns[name]
        state = _with(state, name, _bits(column.take(begins) if in_runs and place < SLOW else column))
    return state


def _with(state: Lanes, name: str, column: Lanes) -> Lanes:
    """``state`` with a column mixed in, which may change ``state``."""
    if name not in OPTIONAL:
        _mix(state, column)
    elif (given := column != OPTIONAL[name]).any():
        # what is not given is no part of a key, so that a column that a version adds does not make all stored rows strangers
        mixed = state.copy()
        _mix(mixed, column | np.uint64(1 + list(OPTIONAL).index(name) << 56))
        state = np.where(given, mixed, state)
    return state


def _bits(column: NDArray[Any]) -> Lanes:
    return column.view(np.uint64) if column.dtype == np.float64 else column.astype(np.uint64)


def _mix(state: Lanes, column: Lanes) -> None:
    """splitmix64's step, in place, of both lanes, ``(2, n_layouts)``: a bijection of ``state ^ column``, so that no two columns' values
    are confused."""
    np.bitwise_xor(state, column, out=state)
    state += _STEP  # wraps around, as it should
    for shift, multipliers in zip(_SHIFTS, _MULTIPLIERS, strict=True):
        state ^= state >> shift
        state *= multipliers
    state ^= state >> _LAST_SHIFT


def hex_bytes(lanes: Lanes) -> NDArray[np.uint8]:
    """32 lower-case hex digits a row, ``(n_rows, 32)`` ASCII codes."""
    digits: NDArray[np.uint8] = _hex_pairs()[np.ascontiguousarray(lanes).view(np.uint16)].view(np.uint8).reshape(len(lanes), 32)
    return digits


@cache
def _hex_pairs() -> NDArray[np.uint32]:
    """The four hex digits of any two bytes that lie one behind the other, by the bytes read as one number, ``(65536,)``."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    return np.stack([digits[every >> 4], digits[every & 15]], axis=1).ravel().view(np.uint32)


def texts(scenario: Scenario, layouts: Layouts) -> list[str]:
    """The key of every layout under a scenario, as results show it."""
    return [bytes(key).decode() for key in hex_bytes(keys(scenario, layouts))]


def from_hex(texts: list[str] | NDArray[np.uint8]) -> Lanes:
    """The lanes of hex digits: a list of texts or ``(n_rows, 32)`` ASCII codes.

    Raises:
        ValueError: where a text has not 32 characters.
    """
    codes = np.frombuffer("".join(texts).encode(), np.uint8).reshape(-1, 32) if isinstance(texts, list) else texts
    # '0'..'9' are 0x30.., 'a'..'f' 0x61..: the low four bits, and nine more for letters.
    digits = (codes & 0x0F) + 9 * (codes >> 6)
    packed = np.ascontiguousarray((digits[:, 0::2] << 4) | digits[:, 1::2], dtype=np.uint8)
    return packed.view(np.uint64).reshape(-1, 2)


def digest_of(lanes: Lanes) -> str:
    """32 hex digits that name a set of keys in their order."""
    return hashlib.blake2b(np.ascontiguousarray(lanes).tobytes(), digest_size=16).hexdigest()


def digest_of_scenarios(scenarios: Iterable[Scenario]) -> str:
    """8 hex digits of what the scenarios are, in any order: their own number of GPUs and batch included, which are columns of layouts.

    Other columns of layouts are no part of it, so that a sweep over more values of tp goes on in the same study.
    """
    texts = sorted(
        {f"{configuration_text(scenario)} {scenario.hw.num_gpus} {scenario.workload.global_batch_size}" for scenario in scenarios}
    )
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=4).hexdigest()
