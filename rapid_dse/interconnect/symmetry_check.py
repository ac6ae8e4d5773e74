"""What a folded run (one rank in the place of all) must watch to be identical with the full run.

All ranks have the same history as long as whatever happens on a rank or on a link within one ns happens in an order
that is the same for all of them. Events of one ns run in the order they were made, so two that were made at different
times are safe, and so is what one event does after the other. Two that were made in the same ns may have been made on
different ranks, whose order differs from place to place: the run is flagged, and its result thrown away. Messages to
one endpoint commute: they are interchangeable.
"""

from __future__ import annotations

from rapid_dse.interconnect.records import State, inlined
from rapid_dse.interconnect.rows import link_at, rank_at, run


@inlined
def came_to_link(s: State, link: int) -> None:
    """Note that the running event brings a message to a link."""
    at = link_at(s, link)
    if at.touched == run(s).now and at.touched_step != run(s).step and at.touched_made == run(s).event_made:
        run(s).ambiguous = 1
    at.touched = run(s).now
    at.touched_step = run(s).step
    at.touched_made = run(s).event_made


@inlined
def came_to_rank(s: State, rank: int, endpoint: int) -> None:
    """Note that the running event acts on a rank; ``endpoint`` is the one that it brings a message to, or -1."""
    at = rank_at(s, rank)
    same = at.touched == run(s).now and at.touched_made == run(s).event_made
    if same and (endpoint < 0 or at.touched_endpoint != endpoint):
        run(s).ambiguous = 1
    at.touched = run(s).now
    at.touched_made = run(s).event_made
    at.touched_endpoint = endpoint
