"""A cache of simulated graphs by content: graph, topology, system settings, network, engine and its version.

Many processes may use one folder: an entry is written aside and moved into place, and read whole. An entry is a checksum
of the rest, a line of JSON that tells the numbers and the lengths of the arrays, and the arrays' bytes. The modes are
RAPID-LLM's (``RAPID_ASTRA_CACHE_MODE``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.engine import LinkUse, RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import Graph

MODE_VARIABLE = "RAPID_ASTRA_CACHE_MODE"
MODES = ("NO_CACHE", "CACHE_READONLY", "CACHE_READWRITE")
FOLDER = "astra_cache"
SUFFIX, UNFINISHED = ".run", ".tmp"
DEFAULT_LIMIT = 1 << 30
LOOKS_A_LIMIT = 64
ABANDONED_S = 3600
_LOG = logging.getLogger(__name__)


def cache_mode() -> str:
    """Read the mode from the environment; ValueError for an unknown one."""
    mode = os.environ.get(MODE_VARIABLE) or "CACHE_READWRITE"
    if mode not in MODES:
        raise ValueError(f"{MODE_VARIABLE} is {mode!r}, it must be one of {', '.join(MODES)}")
    return mode


def run_key(graph: Graph, topology: Topology, system: SystemSettings, network: str, engine: str) -> str:
    """Hash all that a result follows from; ``engine`` names the engine and its version."""
    settings = {"topology": asdict(topology), "system": asdict(system), "network": network, "engine": engine}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=dict).encode())
    digest.update(str(graph.ranks).encode())
    columns = (
        "rank",
        "id",
        "kind",
        "deps_ptr",
        "deps",
        "duration_ns",
        "size",
        "collective",
        "group",
        "peer",
        "tag",
        "stream",
    )
    arrays = [getattr(graph, name) for name in columns] + [graph.groups.ids, graph.groups.ptr, graph.groups.ranks]
    for array in arrays:
        digest.update(f"{array.dtype.str}{len(array)}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@cache
def shared(folder: Path, mode: str) -> AstraCache:
    """Give the process's one cache of a folder."""
    return AstraCache(folder, mode)


@dataclass(slots=True)
class AstraCache:
    """A folder of results."""

    folder: Path
    mode: str = "CACHE_READWRITE"
    limit_bytes: int = DEFAULT_LIMIT
    """When the entries take more, those that were not used for longest go. A process looks at its first entry and then
    once in 1/64 of the limit, for looking takes longer the more there are."""
    _unseen: int | None = field(default=None, init=False)
    """Bytes written since the last look."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"cache mode is {self.mode!r}, it must be one of {', '.join(MODES)}")
        if self.limit_bytes <= 0:
            raise ValueError(f"the cache's size limit is {self.limit_bytes} bytes, it must be > 0")

    def run(self, key: str, simulate: Callable[[], RunResult]) -> RunResult:
        """Give the cached result of a key, or simulate and keep it."""
        entry = self.get(key)
        if entry is None:
            entry = simulate()
            self.put(key, entry)
        return entry

    def get(self, key: str) -> RunResult | None:
        """Look a result up; a damaged entry is reported and is a miss."""
        if self.mode == "NO_CACHE":
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.warning("cache entry %s cannot be read: %s", path, error)
            return None
        try:
            result = _unpack(key, data)
        except (ValueError, KeyError, TypeError) as error:
            _LOG.warning("cache entry %s is damaged and not used: %s", path, error)
            return None
        if self.mode == "CACHE_READWRITE":
            try:
                os.utime(path)  # the time of use, by which entries go
            except OSError as error:
                _LOG.debug("cache entry %s is gone: %s", path, error)
        return result

    def put(self, key: str, result: RunResult) -> None:
        """Keep a result, unless the mode forbids it; a folder that takes none is reported."""
        if self.mode != "CACHE_READWRITE":
            return
        entry = _pack(key, result)
        try:
            self._write(self.folder / f"{key}{SUFFIX}", entry)
            self._unseen = self.limit_bytes if self._unseen is None else self._unseen + len(entry)
            if self._unseen * LOOKS_A_LIMIT >= self.limit_bytes:
                self._shrink()
                self._unseen = 0
        except OSError as error:
            _LOG.warning("cache folder %s takes no entry: %s", self.folder, error)

    def _write(self, path: Path, entry: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(entry)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _shrink(self) -> None:
        entries = []
        for entry in os.scandir(self.folder):
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue  # another process was faster
            if entry.name.endswith(SUFFIX):
                entries.append((stat.st_mtime_ns, stat.st_size, entry.path))
            elif entry.name.endswith(UNFINISHED) and stat.st_mtime < time.time() - ABANDONED_S:
                Path(entry.path).unlink(missing_ok=True)  # its process was killed
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:
            if total <= self.limit_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


def _pack(key: str, result: RunResult) -> bytes:
    use = result.links
    arrays = [result.start_ns, result.end_ns, result.finish_ns, result.waiting]
    arrays += [use.source.astype(np.int64), use.target.astype(np.int64), use.bytes, use.busy_ns]
    body = b"".join(np.ascontiguousarray(a, np.int64).tobytes() for a in arrays)
    head = {
        "key": key,
        "makespan_ns": result.makespan_ns,
        "hops": result.hops,
        "delays": result.delays,
        "folded": result.folded,
        "lengths": [len(a) for a in arrays],
    }
    content = json.dumps(head).encode() + b"\n" + body
    return hashlib.sha256(content).digest() + content


def _unpack(key: str, data: bytes) -> RunResult:
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[size:]).digest() != data[:size]:
        raise ValueError("its checksum differs")
    line, _, body = data[size:].partition(b"\n")
    head = json.loads(line)
    if head["key"] != key:
        raise ValueError("it holds another graph's result")
    flat = np.frombuffer(body, np.int64)
    arrays: list[NDArray[np.int64]] = np.split(flat, np.cumsum(head["lengths"])[:-1])
    start, end, finish, waiting, source, target, nbytes, busy = arrays
    return RunResult(
        makespan_ns=int(head["makespan_ns"]),
        start_ns=start,
        end_ns=end,
        finish_ns=finish,
        links=LinkUse(source.astype(np.int32), target.astype(np.int32), nbytes, busy),
        waiting=waiting,
        hops=int(head["hops"]),
        delays=int(head["delays"]),
        folded=bool(head["folded"]),
    )
