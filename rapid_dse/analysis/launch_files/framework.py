"""What a framework's launch file is: its form, its table, and what of a row it cannot say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rapid_dse.analysis.launch_files.field_table import Entry, read
from rapid_dse.analysis.launch_files.file_forms import FileForm, marked


@dataclass(frozen=True)
class LaunchReading:
    """What a launch file says.

    Attributes:
        framework: whose it is.
        keys: override keys with their values, as the fields say them; ``software`` among them where they tell profiles apart.
        marked: overrides from the file's comments.
        unread: fields that were not read, and may matter.
        idle: how many others were not read, which do not change the step.
        notes: what was taken in another sense than it is written.
        used: how many fields were read.
        kind: of workload: training or inference.
    """

    framework: str
    keys: Mapping[str, Any]
    marked: tuple[str, ...]
    unread: tuple[str, ...]
    idle: int
    notes: tuple[str, ...]
    used: int
    kind: str = "training"


@dataclass(frozen=True)
class LaunchFramework:
    """A framework's launch files.

    Attributes:
        name: as ``--to`` has it; ``title``: as its makers write it.
        profiles: the options of ``software`` that are launched so, the usual one first.
        form: of its files.
        table: our keys and its fields.
        idle: starts of fields that change no step time and no memory.
        kind: of workload that they start.
        elsewhere: where else the framework is told what its files do not hold, by the start of our keys.
    """

    name: str
    title: str
    profiles: tuple[str, ...]
    form: FileForm
    table: tuple[Entry, ...]
    idle: tuple[str, ...] = ()
    kind: str = "training"
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def read(self, text: str) -> LaunchReading:
        """What a text says.

        Raises:
            ValueError: where it is none of this form.
        """
        fields = self.form.fields(text)
        read_keys = read(self.table, fields)
        unread_names = [name for name in fields if name not in read_keys.used and not name.startswith("env:")]
        unread = tuple(
            f"{name}={_short(fields[name])}" if fields[name] is not True else name for name in unread_names if not self._is_idle(name)
        )
        keys = {name: value for name, value in read_keys.keys.items() if value is not None or name in _NULLS}
        notes, idle = tuple(read_keys.notes), len(unread_names) - len(unread)
        return LaunchReading(self.name, keys, tuple(marked(text)), unread, idle, notes, len(read_keys.used), self.kind)

    def _is_idle(self, name: str) -> bool:
        bare = re.sub(r"^(--?|sbatch:)", "", name)
        return any(bare == start or re.match(rf"{re.escape(start)}(?![a-zA-Z])", bare) is not None for start in self.idle)


# Keys whose null says something.
_NULLS = frozenset({"model.head_dim", "model.sliding_window"})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
