"""One table says how this program's keys and a framework's fields go together; it is read from left to right and from right to left.

A file is fields by name: flags of a command line (``--seq-length``), or dotted paths of a document (``parallelism.tp``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rapid_dse.analysis.reasons.chosen import settings
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.sweep.compose import value_at

Fields = Mapping[str, Any]
MISSING = object()
DROPOUT_RATE = 0.1  # what is written where dropout runs; no cost depends on the rate
# What files say in place of a key, and becomes one once the number of GPUs, or of layers, is known: micro-batches a step of each replica,
# copies of what ZeRO shards, layers of each chunk of a pipeline (chunk after chunk, stage after stage in each); and network cards of a node
# that collectives may use.
ACCUMULATION, INSTANCES, CHUNKS, CARDS = "accumulation", "shard_instances", "chunk_layers", "network_cards"


@dataclass(frozen=True)
class LaunchedRun:
    """A layout under a scenario, its values by override key."""

    scenario: Scenario
    layout: Layouts
    software: str

    def __getitem__(self, key: str) -> Any:
        if key == "software":
            return self.software
        if key == "parallel.cp_kind":
            return self.scenario.cp_kind
        return settings(self.layout)[key] if key in self.layout.keys.values() else value_at(self.scenario, key)

    def count(self, key: str) -> int:
        """A whole number."""
        return int(self[key])

    @property
    def replicas(self) -> int:
        """GPUs that hold the same weights, before ZeRO: dp · cp."""
        return self.count("parallel.dp") * self.count("parallel.cp")

    @property
    def shards(self) -> int:
        """GPUs that share one copy of what ZeRO shards."""
        return int(self.layout.shards[0])

    @property
    def drops_out(self) -> bool:
        """Whether dropout runs."""
        return self.scenario.model.drops_out(self["software.dropout"])

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step."""
        return int(self.layout.num_micro_batches[0])


@dataclass
class FieldsRead:
    """The fields of a file while they are read.

    Attributes:
        fields: all of them.
        keys: override keys that were read so far.
        used: names of fields that were read.
        notes: what a reader should know of what was read.
    """

    fields: Fields
    keys: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def take(self, *names: str, default: Any = None) -> Any:
        """The value of the first of the fields that the file has; all of them count as read."""
        present = [name for name in names if name in self.fields]
        self.used.update(present)
        return self.fields[present[0]] if present else default

    def number(self, *names: str, default: Any = None) -> Any:
        """As ``real``, a whole number."""
        quantity = self.real(*names)
        return default if quantity is None else int(quantity)

    def real(self, *names: str, default: Any = None) -> Any:
        """The first number that one of the fields has; where all of them are none (a variable that nothing sets) that is noted."""
        present = {name: self.fields[name] for name in names if self.fields.get(name) is not None}
        self.used.update(name for name in names if name in self.fields)
        for value in present.values():
            try:
                quantity = float(str(value).replace("_", ""))
            except ValueError:
                continue
            if math.isfinite(quantity):
                return quantity
        self.notes += [f"{name}={value}: is no number here" for name, value in present.items()]
        return default

    def flag(self, *names: str) -> bool:
        """As ``take``, true where the field is given and not false."""
        value = self.take(*names, default=False)
        return str(value).strip().lower() not in ("false", "0", "no", "none", "")


class Entry(ABC):
    """A line of the table."""

    @abstractmethod
    def write(self, run: LaunchedRun) -> dict[str, Any]:
        """The framework's fields that say it; none where there is nothing to say."""

    @abstractmethod
    def read(self, fields: FieldsRead) -> dict[str, Any]:
        """The override keys that they say."""


@dataclass(frozen=True)
class SameNumber(Entry):
    """A number that both have, in the same unit.

    ``aliases`` are names that other versions have; ``default`` is what its absence says, where it says something.
    """

    key: str
    name: str
    aliases: tuple[str, ...] = ()
    default: Any = MISSING

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        value = run[self.key]
        return {} if value is None else {self.name: value}

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        value = fields.number(self.name, *self.aliases, default=self.default)
        return {} if value is MISSING else {self.key: value}


@dataclass(frozen=True)
class NamedChoice(Entry):
    """A choice: ``names`` are the framework's words for this program's; ``default`` is what its absence says.

    Values of which the framework has no word are not said.
    """

    key: str
    name: str
    names: Mapping[Any, Any]
    default: Any = MISSING
    aliases: tuple[str, ...] = ()

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        word = self.names.get(run[self.key], MISSING)
        return {} if word is MISSING else {self.name: word}

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        word = fields.take(self.name, *self.aliases, default=MISSING)
        if word is MISSING or word is None:
            return {} if self.default is MISSING else {self.key: self.default}
        for mine, theirs in self.names.items():
            if str(theirs).lower() == str(word).lower():
                return {self.key: mine}
        fields.notes.append(f"{self.name}={word}: has no counterpart here")
        return {}


@dataclass(frozen=True)
class SwitchFlag(Entry):
    """A switch: it is on where the key has the value ``on``, else the key is ``off``.

    ``inverted``: the framework's switch is off where this one is on; ``spoken``: a document says false too, a command line leaves it out.
    """

    key: str
    name: str
    on: Any = True
    off: Any = False
    aliases: tuple[str, ...] = ()

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        return {self.name: run[self.key] == self.on}

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        return {self.key: self.on if fields.flag(self.name, *self.aliases) else self.off}


@dataclass(frozen=True)
class DropoutRates(Entry):
    """Rates of dropout, which run where one is above 0; ``usual``: what each is in a file that has a model and not this rate, None: a
    recipe elsewhere says it."""

    names: tuple[str, ...]
    usual: float | None

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        return dict.fromkeys(self.names, DROPOUT_RATE if run.drops_out else 0.0)

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        given = {name: fields.real(name) for name in self.names}
        if "model.hidden_size" not in fields.keys and all(rate is None for rate in given.values()):
            return {}
        rates = {name: self.usual if rate is None else rate for name, rate in given.items()}
        told = {rate > 0 for rate in rates.values() if rate is not None}
        if len(told) > 1:
            said = " and ".join(f"{name}={rate:g}" for name, rate in rates.items() if rate is not None)
            fields.notes.append(f"{said}: dropout is taken as on in both places")
        return {"model.dropout": any(told)} if told else {}


@dataclass(frozen=True)
class TwoWays(Entry):
    """Fields and keys that hang together: two functions that turn one into the other and back."""

    writer: Callable[[LaunchedRun], dict[str, Any]]
    reader: Callable[[FieldsRead], dict[str, Any]]

    def write(self, run: LaunchedRun) -> dict[str, Any]:
        return self.writer(run)

    def read(self, fields: FieldsRead) -> dict[str, Any]:
        return self.reader(fields)


def constant(**fields: Any) -> Entry:
    """Fields that a file needs whatever the run; a dot in a name is written as two underscores."""
    written = {name.replace("__", "."): value for name, value in fields.items()}

    def reader(fields: FieldsRead) -> dict[str, Any]:
        for name in written:
            fields.take(name)
        return {}

    return TwoWays(lambda _: dict(written), reader)


def written(table: tuple[Entry, ...], run: LaunchedRun) -> dict[str, Any]:
    """All fields of a run, in the table's order."""
    return {name: value for entry in table for name, value in entry.write(run).items()}


def read(table: tuple[Entry, ...], fields: Fields) -> FieldsRead:
    """What fields say, line by line of the table: a line may look at what those above it have read."""
    fields_read = FieldsRead(fields)
    for entry in table:
        fields_read.keys.update(entry.read(fields_read))
    return fields_read


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A document as dotted paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nested(fields: Fields) -> dict[str, Any]:
    """Dotted paths as a document."""
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
