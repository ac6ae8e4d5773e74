"""Lines of a journal that say where they stand and what they hold: lost, doubled and changed lines are seen.

A line is what Optuna writes, a JSON object, with one more key at its end: the line's number in the file and a checksum of all that
stands before that key and of the number. Optuna's own programs read such lines, and write lines without that key, which are taken
as they are.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_KEY = b',"rapid_dse":"'
_SHORT = 100  # characters of a text that others may have too
_END = b'"}'


def marked(log: dict[str, Any], number: int) -> bytes:
    """A log as the line of that number, its end included."""
    text = json.dumps(log, separators=(",", ":")).encode()[:-1]
    return b"%s%s%d:%08x%s\n" % (text, _KEY, number, _checksum(text, number), _END)


def _checksum(text: bytes, number: int) -> int:
    return zlib.crc32(b"%d" % number, zlib.crc32(text))


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose names and texts are those of all other lines: a study keeps each trial's, and they say the same again and again."""
    return {sys.intern(name): sys.intern(value) if type(value) is str and len(value) < _SHORT else value for name, value in pairs}


@dataclass
class LineReader:
    """Reads lines one after the other, from the file's first.

    Attributes:
        next: the number that the next line of the file has.
        accepted: how many lines were good.
        damages: what is wrong with the others, a sentence each.
    """

    next: int = 0
    accepted: int = 0
    damages: list[str] = field(default_factory=list)

    def log(self, line: bytes) -> dict[str, Any] | None:
        """What a whole line holds; None where it is damaged, or stands there twice."""
        text, key, mark = line.rstrip(b"\r\n").rpartition(_KEY)
        if not key:
            return self._unmarked(line)
        number, _, checksum = mark.removesuffix(_END).partition(b":")
        if not (number.isdigit() and checksum == b"%08x" % _checksum(text, int(number)) and mark.endswith(_END)):
            return self._left_out("it does not match its checksum")
        if int(number) < self.next:
            self.damages.append(f"line {int(number) + 1} stands there twice")
            return None
        if int(number) > self.next:
            self.damages.append(f"{int(number) - self.next} lines before line {int(number) + 1} are lost")
        self.next = int(number) + 1
        self.accepted += 1
        record: dict[str, Any] = json.loads(text + b"}", object_pairs_hook=_shared)
        return record

    def _unmarked(self, line: bytes) -> dict[str, Any] | None:
        """A line of another program: any object."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return self._left_out("it is no JSON")
        if not isinstance(record, dict) or "op_code" not in record:
            return self._left_out("it is no line of a journal")
        if not _is_readable(record):
            return self._left_out("Optuna cannot read it")
        self.next += 1
        self.accepted += 1
        return record

    def _left_out(self, what: str) -> dict[str, Any] | None:
        self.damages.append(f"line {self.next + 1} is left out: {what}")
        self.next += 1
        return None


def _is_readable(record: Mapping[str, Any]) -> bool:
    """Whether Optuna can read a line of another program: one that it cannot would make the whole journal unreadable.

    It is read by itself, into a study with one trial.
    """
    from optuna.storages.journal._storage import JournalStorageReplayResult

    mappings = ("user_attr", "system_attr", "user_attrs", "system_attrs")
    if not all(isinstance(record.get(name, {}), dict) for name in mappings):
        return False
    if not all(isinstance(record.get(name, 0), int) for name in ("study_id", "trial_id")):
        return False
    begun = [
        {"op_code": 0, "worker_id": "", "study_name": "", "directions": [1]},
        {"op_code": 4, "worker_id": "", "study_id": 0, "datetime_start": None},
    ]
    alone = {**record, **{name: 0 for name in ("study_id", "trial_id") if name in record}}
    try:
        JournalStorageReplayResult("-").apply_logs([*begun, alone])
    except Exception:  # whatever the line's values make of Optuna's code
        return False
    return True
