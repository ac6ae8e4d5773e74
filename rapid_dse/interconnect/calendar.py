"""The calendar of events: a timing wheel of five levels whose slots are first-in first-out lists.

A token that is due in the present block of 2^12 ns lies in the slot of its ns; a later one lies in the slot of its
block, one or more levels up, and moves down when its block begins. Both ways keep the order in which tokens were
made, so events of one ns run in that order and no sequence number is stored or compared.
"""

from __future__ import annotations

import numpy as np

from rapid_dse.interconnect.records import State, compiled, inlined, trailing_zeros
from rapid_dse.interconnect.rows import run, slot_at, token_at, word_at

BITS = 12
SLOTS = 1 << BITS
MASK = SLOTS - 1
WORDS = SLOTS >> 6
LEVELS = 5  # 2^60 ns


@inlined
def take_token(s: State) -> int:
    """Take a token off the free list; when there is none, flag it and hand out the scratch token 0."""
    i = run(s).free_tokens
    if i < 0:
        run(s).overflow = 1
        return 0
    run(s).free_tokens = token_at(s, i).next
    return i  # type: ignore[no-any-return]


@inlined
def free_token(s: State, i: int) -> None:
    """Put a token back on the free list."""
    token_at(s, i).next = run(s).free_tokens
    run(s).free_tokens = i


@inlined
def append(s: State, slot: int, i: int) -> None:
    """Put token i at the end of a slot's list."""
    at = slot_at(s, slot)
    token_at(s, i).next = -1
    if at.head < 0:
        at.head = i
        word_at(s, slot >> 6).bits |= np.uint64(1) << np.uint64(slot & 63)
    else:
        token_at(s, at.tail).next = i
    at.tail = i


@inlined
def push(s: State, i: int, time: int) -> None:
    """Schedule token i for ``time`` ns, behind all that are already due then."""
    token_at(s, i).time = time
    token_at(s, i).made = run(s).now
    place(s, i, time)


@inlined
def place(s: State, i: int, time: int) -> None:
    """Put token i into the slot that its time has now."""
    far = time ^ run(s).now
    level = 0
    while far >= SLOTS and level < LEVELS - 1:
        far >>= BITS
        level += 1
    append(s, (level << BITS) | ((time >> (BITS * level)) & MASK), i)


@inlined
def empty_slot(s: State, slot: int) -> None:
    """Note that a slot's list has run out."""
    slot_at(s, slot).head = -1
    word_at(s, slot >> 6).bits &= ~(np.uint64(1) << np.uint64(slot & 63))


@compiled
def next_slot(s: State, level: int, first: int) -> int:
    """Find the first filled slot of a level at or after ``first``; -1 if none is."""
    if first >= SLOTS:
        return -1
    word = first >> 6
    bits = word_at(s, level * WORDS + word).bits & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(first & 63))
    while bits == 0:
        word += 1
        if word == WORDS:
            return -1
        bits = word_at(s, level * WORDS + word).bits
    return (word << 6) | int(trailing_zeros(bits))


@compiled
def open_block(s: State) -> bool:
    """Move to the next block that holds tokens and spread them over the levels below; False when all is empty."""
    for level in range(1, LEVELS):
        slot = next_slot(s, level, ((run(s).now >> (BITS * level)) & MASK) + 1)
        if slot < 0:
            continue
        span = BITS * level
        run(s).now = ((run(s).now >> (span + BITS)) << (span + BITS)) | (slot << span)
        at = (level << BITS) | slot
        i = slot_at(s, at).head
        empty_slot(s, at)
        while i >= 0:
            after = token_at(s, i).next
            place(s, i, token_at(s, i).time)
            i = after
        return True
    return False


@compiled
def next_time(s: State) -> int:
    """Find the time of the next token in ns, opening blocks on the way; -1 when none is left."""
    while True:
        slot = next_slot(s, 0, run(s).now & MASK)
        if slot >= 0:
            return int((run(s).now >> BITS) << BITS) | slot
        if not open_block(s):
            return -1
