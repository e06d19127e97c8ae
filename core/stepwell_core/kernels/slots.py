"""Slots travel as tuples of arrays; here they are cut, read and written, by the tuple's length.

Numba unrolls a tuple only where its length is spelled out. A rule with more slots than these needs
one function more in each of the three tables.
"""

from __future__ import annotations

from stepwell_core.kernels.compiler import Kernel, inline


def _cut_0(slots, start, stop):  # type: ignore[no-untyped-def]
    return ()


def _cut_1(slots, start, stop):  # type: ignore[no-untyped-def]
    return (slots[0][start:stop],)


def _cut_2(slots, start, stop):  # type: ignore[no-untyped-def]
    return slots[0][start:stop], slots[1][start:stop]


def _cut_3(slots, start, stop):  # type: ignore[no-untyped-def]
    return slots[0][start:stop], slots[1][start:stop], slots[2][start:stop]


def _read_0(slots, i):  # type: ignore[no-untyped-def]
    return ()


def _read_1(slots, i):  # type: ignore[no-untyped-def]
    return (slots[0][i],)


def _read_2(slots, i):  # type: ignore[no-untyped-def]
    return slots[0][i], slots[1][i]


def _read_3(slots, i):  # type: ignore[no-untyped-def]
    return slots[0][i], slots[1][i], slots[2][i]


# `updated` is what a rule returns: the parameter first, then its slots.


def _write_0(slots, i, updated):  # type: ignore[no-untyped-def]
    pass


def _write_1(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]


def _write_2(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]
    slots[1][i] = updated[2]


def _write_3(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]
    slots[1][i] = updated[2]
    slots[2][i] = updated[3]


CUT: tuple[Kernel, ...] = (_cut_0, _cut_1, _cut_2, _cut_3)
"""`CUT[n](slots, start, stop)`: the same part of each of n slots."""

READ: tuple[Kernel, ...] = (_read_0, _read_1, _read_2, _read_3)
"""`READ[n](slots, i)`: element i of each of n slots."""

WRITE: tuple[Kernel, ...] = (_write_0, _write_1, _write_2, _write_3)
"""`WRITE[n](slots, i, updated)`: what the rule returned for element i, into n slots."""

inline(*CUT, *READ, *WRITE)
