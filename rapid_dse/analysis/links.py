"""Which links of a network hold an event-driven run up: those that are busy for the largest share of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rapid_dse.events.runs import Run

SHOWN = 3


def busiest_links(runs: Mapping[str, Run]) -> str:
    """A few lines a run: the busiest links, how long they were busy and what they carried; links that are alike are counted."""
    lines = []
    for name, run in runs.items():
        links, span = run.result.links, run.result.makespan_ns
        used = np.flatnonzero(links.busy_ns > 0)
        if not len(used):
            continue
        lines.append(f"\nbusiest links of {name.replace('_', ' ')} ({span / 1e9:.4g} s):")
        busy, count = np.unique(links.busy_ns[used], return_counts=True)
        for level, alike in list(zip(busy.tolist(), count.tolist(), strict=True))[: -SHOWN - 1 : -1]:
            first = int(used[np.argmax(links.busy_ns[used] == level)])
            more = f" and {alike - 1} like it" if alike > 1 else ""
            ends = f"{_device(run, int(links.source[first]))} to {_device(run, int(links.target[first]))}"
            lines.append(f"  {100 * level / span:5.1f} %  {links.bytes[first] / 1e9:.4g} GB  {ends}{more}")
    return "\n".join(lines)


def _device(run: Run, number: int) -> str:
    return f"rank {number}" if number < run.topology.ranks else f"switch {number}"
