"""Many steps in one call, without the GIL: pass, choose, publish, repeat.

Tokens are published in buffers that Python reads while the call runs; a stop flag is looked at
once a pass. A sequence that ends leaves the batch; the others go on. One that still has tokens to
read does so in the same passes, a chunk in each, so that the others never wait for more than that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import from_dtype

from engine.native.forward import forward
from engine.native.jit import helper, njit
from engine.native.record import write_step
from engine.native.sample import SEQUENCE, UNUSABLE, choose
from engine.native.simd import atomic_load, atomic_store, read_i64, write_i64
from engine.native.team import barrier

RUNNING, END_OF_TEXT, LENGTH, CONTEXT, FAILED = range(5)

_INT = np.int64

# How a call is controlled; one record.
CONTROL = np.dtype(
    [
        ("decoding", _INT),  # 0: a single pass whose logits are for the caller
        ("stop", _INT),  # address of an int64 that Python sets: end after this token
        ("rows", _INT),  # sequences still going
        ("published", _INT),  # address of that field in the first SEQUENCE record
        ("record_bytes", _INT),  # of a SEQUENCE record
        ("active", _INT),  # address of int64 [rows]: the sequences still going
        ("choosing", _INT),  # address of int64 [rows]: the sequence of each row of logits
        ("most", _INT),  # rows of a pass
        ("chunk", _INT),  # rows of a pass that may be read where others are written
        ("weights", _INT),  # address of the threads' scratch for sample.choose
        ("weights_bytes", _INT),  # of each thread
        ("vocab", _INT),
        ("context", _INT),
    ]
)

SEQUENCES_TYPE = from_dtype(SEQUENCE)[::1]
CONTROL_TYPE = from_dtype(CONTROL)[::1]


@helper
def _add_row(p: Any, row: int, token: int, position: int) -> None:
    write_i64(p.tokens + 8 * row, token)
    write_i64(p.positions + 8 * row, position)


@helper
def _room(c: Any, sequences: Any) -> Any:
    """How many unread tokens the next pass may take: all that fit where nobody would wait."""
    room = c.most - c.rows  # each sequence has a row beside
    for i in range(c.rows):
        if sequences[read_i64(c.active + 8 * i)].unread_left == 0:
            return min(room, c.chunk)
    return room


@helper
def _describe(p: Any, c: Any, sequences: Any) -> None:
    """The next pass: of each active sequence its unread tokens, as far as there is room, in turn;
    and its new token where nothing is left to be read before it."""
    room = _room(c, sequences)
    row, segments, wanted = 0, 0, 0
    for i in range(c.rows):
        number = read_i64(c.active + 8 * i)
        s = sequences[number]
        s.reading = min(room, s.unread_left)
        room -= s.reading
        first = row
        for j in range(s.reading):
            _add_row(p, row, read_i64(s.unread + 8 * j), s.length + j)
            row += 1
        if s.reading == s.unread_left:
            _add_row(p, row, s.token, s.length + s.reading)
            write_i64(p.wanted_rows + 8 * wanted, row)
            write_i64(c.choosing + 8 * wanted, number)
            wanted += 1
            row += 1
        if row > first:
            write_i64(p.segment_first + 8 * segments, first)
            write_i64(p.segment_rows + 8 * segments, row - first)
            write_i64(p.segment_cache + 8 * segments, s.cache)
            segments += 1
    p.rows = row
    p.segments = segments
    p.wanted = wanted


@helper
def _take(s: Any, published: int, context: int) -> None:
    """Account for a pass and the token that came of it; its status says whether it goes on."""
    s.length += 1
    if s.token == UNUSABLE:
        s.status = FAILED
        return
    write_i64(s.out + 8 * s.published, s.token)
    s.index += 1
    s.room -= 1
    atomic_store(published, s.published + 1)
    if s.token == s.stop:
        s.status = END_OF_TEXT
    elif s.room == 0:
        s.status = LENGTH
    elif s.length + 1 >= context:
        s.status = CONTEXT


@helper
def _advance(p: Any, c: Any, sequences: Any) -> None:
    """After a pass: publish the tokens, drop the sequences that have ended, describe the next."""
    going = 0
    for i in range(c.rows):
        number = read_i64(c.active + 8 * i)
        s = sequences[number]
        chose = s.reading == s.unread_left
        s.length += s.reading
        s.unread += 8 * s.reading
        s.unread_left -= s.reading
        if chose:
            _take(s, c.published + number * c.record_bytes, c.context)
        if s.status == RUNNING:
            write_i64(c.active + 8 * going, number)
            going += 1
    c.rows = 0 if atomic_load(c.stop) != 0 else going
    _describe(p, c, sequences)


@njit
def run(
    kernel: Any,
    head_kernel: Any,
    thread: int,
    model: Any,
    linears: Any,
    work: Any,
    sequences: Any,
    control: Any,
) -> None:
    """One thread's part: a single pass, or decoding until all sequences have ended.

    One entry for both, so that everything is compiled once.
    """
    p, c = work[0], control[0]
    many = c.decoding != 0
    if many:
        if thread == 0:
            _describe(p, c, sequences)
        barrier(p.barrier, p.threads)
    going = True
    while going:
        forward(kernel, head_kernel, thread, model, linears, work)
        if many:
            for row in range(thread, p.wanted, p.threads):
                s = sequences[read_i64(c.choosing + 8 * row)]
                logits = p.logits + row * p.logits_stride
                s.token = choose(logits, c.vocab, s, c.weights + thread * c.weights_bytes)
                if s.steps != 0 and s.token != UNUSABLE:
                    write_step(logits, c.vocab, s)
            barrier(p.barrier, p.threads)
            if thread == 0:
                _advance(p, c, sequences)
            barrier(p.barrier, p.threads)
        going = many and c.rows > 0
