"""The double binary tree's schedule of one chunk, as a rank runs it.

The whole chunk goes up one tree and down again.
"""

from __future__ import annotations

from rapid_dse.interconnect.calendar import free_token, push, take_token
from rapid_dse.interconnect.phases import bundle, credit, insert, keep_early, post_message
from rapid_dse.interconnect.records import ALG_TREE, POSTED_LATE, State, compiled
from rapid_dse.interconnect.rows import endpoint_at, phase_at, run, token_at, tree_at

PARENT, LEFT, RIGHT = range(3)
BEGIN, SEND_UP, WAIT_PARENT, WAIT_TWO, WAIT_ONE, SEND_DOWN, END = range(7)


@compiled
def start_phase(s: State, ep: int) -> None:
    """Begin an endpoint's part in its phase."""
    p = phase_at(s, endpoint_at(s, ep).phase)
    if p.algorithm == ALG_TREE:
        tree_step(s, ep, False)
        return
    for _ in range(p.parallel):
        insert(s, ep, take_token(s))


@compiled
def receive(s: State, ep: int, i: int) -> None:
    """Hand message i to the endpoint that has posted its receive."""
    e = endpoint_at(s, ep)
    if phase_at(s, e.phase).algorithm == ALG_TREE:
        free_token(s, i)
        tree_step(s, ep, True)
        return
    e.received += 1
    insert(s, ep, i)


@compiled
def arrive(s: State, i: int) -> None:
    """Take message i in at its destination, or keep it there until its receive is posted."""
    ep = token_at(s, i).own
    e = endpoint_at(s, ep)
    if phase_at(s, e.phase).algorithm == ALG_TREE:
        role = 1 << token_at(s, i).k
        free_token(s, i)
        if e.free & role:
            e.free ^= role
            tree_step(s, ep, True)
        else:
            e.early |= role
    elif token_at(s, i).k < e.sent:
        e.received += 1
        insert(s, ep, i)
    else:
        keep_early(s, ep, i)


@compiled
def end_bundle(s: State, ep: int) -> bool:
    """Go on at the end of an endpoint's delay; True when its part in the phase is done."""
    if phase_at(s, endpoint_at(s, ep).phase).algorithm == ALG_TREE:
        return tree_step(s, ep, False)
    return credit(s, ep)


@compiled
def relative(s: State, ep: int, there: int, role: int) -> int:
    """Place of the parent, left or right child of place ``there``; -1 if it has none."""
    row = tree_at(s, endpoint_at(s, ep).tree + there)
    return int(row.parent if role == PARENT else row.left if role == LEFT else row.right)


@compiled
def tree_post(s: State, ep: int, role: int) -> None:
    """Post the receive from the parent or a child."""
    e = endpoint_at(s, ep)
    bit = 1 << role
    if e.early & bit:
        e.early ^= bit
        i = take_token(s)
        token_at(s, i).kind = POSTED_LATE
        token_at(s, i).own = ep
        push(s, i, run(s).now)
    else:
        e.free |= bit


@compiled
def tree_send(s: State, ep: int, role: int) -> None:
    """Send the chunk to the parent or a child; the message says what the sender is to its receiver."""
    e = endpoint_at(s, ep)
    there = relative(s, ep, e.pos, role)
    back = PARENT
    if role == PARENT:
        back = LEFT if relative(s, ep, there, LEFT) == e.pos else RIGHT
    post_message(s, ep, there, back, phase_at(s, e.phase).size)


@compiled
def tree_bundle(s: State, ep: int, reduces: bool, state: int) -> None:
    """Pass the chunk through the endpoint of a rank and go to the next state."""
    bundle(s, ep, take_token(s), phase_at(s, endpoint_at(s, ep).phase).reduction if reduces else -1)
    endpoint_at(s, ep).state = state


@compiled
def tree_step(s: State, ep: int, received: bool) -> bool:
    """Advance a rank's part by a message that came, or by a delay that ended; True when its part is done."""
    pos = endpoint_at(s, ep).pos
    left_child = relative(s, ep, pos, LEFT)
    if left_child < 0 and relative(s, ep, pos, RIGHT) < 0:
        return leaf_step(s, ep)
    if relative(s, ep, pos, PARENT) < 0:
        return root_step(s, ep, LEFT if left_child >= 0 else RIGHT)
    return inner_step(s, ep, received)


@compiled
def leaf_step(s: State, ep: int) -> bool:
    """Advance a leaf: up after a delay, then the parent's message, then a delay."""
    state = endpoint_at(s, ep).state
    if state == BEGIN:
        tree_bundle(s, ep, False, SEND_UP)
    elif state == SEND_UP:
        tree_send(s, ep, PARENT)
        tree_post(s, ep, PARENT)
        endpoint_at(s, ep).state = WAIT_PARENT
    elif state == WAIT_PARENT:
        tree_bundle(s, ep, False, END)
    return state == END  # type: ignore[no-any-return]


@compiled
def root_step(s: State, ep: int, child: int) -> bool:
    """Advance the root: its only child's message is reduced and goes back."""
    state = endpoint_at(s, ep).state
    if state == BEGIN:
        tree_post(s, ep, child)
        endpoint_at(s, ep).state = WAIT_ONE
    elif state == WAIT_ONE:
        tree_bundle(s, ep, True, SEND_DOWN)
    else:
        tree_send(s, ep, child)
    return state == SEND_DOWN  # type: ignore[no-any-return]


@compiled
def inner_step(s: State, ep: int, received: bool) -> bool:
    """Advance an inner node: both children's messages up, then the parent's down to both."""
    e = endpoint_at(s, ep)
    state = e.state
    if state == BEGIN:
        tree_post(s, ep, LEFT)
        tree_post(s, ep, RIGHT)
        e.state = WAIT_TWO
    elif received:
        tree_bundle(s, ep, True, WAIT_ONE if state == WAIT_TWO else SEND_UP if state == WAIT_ONE else SEND_DOWN)
    elif e.reduced < 1:
        e.reduced += 1
    elif state == SEND_UP:
        tree_send(s, ep, PARENT)
        tree_post(s, ep, PARENT)
        e.state = WAIT_PARENT
    elif state == SEND_DOWN:
        tree_send(s, ep, LEFT)
        tree_send(s, ep, RIGHT)
        return True
    return False
