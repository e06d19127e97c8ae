"""Push, Adam, pull: 102 MB and 4 KB, ours beside the peers, all in one run and in turn.

A peer that cannot be installed has no figure, and so no bar of it is met.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.contenders import (
    HTTP,
    IN_PLACE,
    MEMORY,
    MXNET,
    NAIVE,
    RAY,
    TENSORFLOW,
    TORCH,
    push_pull_s,
)
from benchmarks.measure import Result, Row, at_least, medians_told, ms, not_measured, shown, us
from benchmarks.peers.environments import ENVIRONMENTS, Environment, NotInstalled
from benchmarks.programs import Program

SIZE, SMALL_SIZE = 25_600_000, 1 << 10
ROUNDS = 11

NAMES = {
    "torch_rpc": TORCH,
    "mxnet_kvstore": MXNET,
    "tensorflow_ps": TENSORFLOW,
    "ray_actor": RAY,
}
"""Of each environment's program."""

LARGE_BARS = (
    (HTTP, TORCH, 1.7),
    (HTTP, MXNET, 2.8),
    (HTTP, TENSORFLOW, 4.0),
    (MEMORY, RAY, 1.2),
    (IN_PLACE, RAY, 1.5),
)
"""Ours, a peer, and how many times faster ours has to be."""

Turns = dict[str, Callable[[], float]]


def run(
    size: int = SIZE, rounds: int = ROUNDS, environments: Sequence[Environment] = ENVIRONMENTS
) -> Result:
    """Measure everything."""
    missing = {NAMES[each.name]: why for each in environments if (why := _missing(each))}
    with contextlib.ExitStack() as stack:
        turns: Turns = {}
        ours = stack.enter_context(Program("peers.stepwell_worker", size, SMALL_SIZE))
        turns |= {turn: partial(ours.seconds, turn) for turn in ours.facts["turns"]}
        turns |= _turns(stack.enter_context(Program("peers.naive_http", size)), NAIVE)
        for each in environments:
            if NAMES[each.name] not in missing:
                sizes = (size, SMALL_SIZE) if each.has_small_call else (size,)
                program = Program(f"peers.{each.name}", *sizes, python=each.interpreter)
                found = _turns(stack.enter_context(program), NAMES[each.name])
                turns |= _paused(program, found) if each.polls else found
        seconds = medians_told(turns, rounds)
    return Result(rows(seconds, missing), seconds)


def rows(seconds: dict[str, float], missing: dict[str, str]) -> list[Row]:
    """Return the figures against their bars.

    Args:
        seconds: Medians; ours at least.
        missing: Why a peer has none, by name.
    """
    return [*_large_rows(seconds, missing), *_small_rows(seconds, missing)]


def _missing(environment: Environment) -> str | None:
    """Return why a peer cannot take part, after trying to install it."""
    try:
        environment.install()
    except NotInstalled as error:
        return f"not installed: {error}"
    return None


def _turns(program: Program, name: str) -> Turns:
    return {f"{name}/{turn}": partial(program.seconds, turn) for turn in program.facts["turns"]}


def _paused(program: Program, turns: Turns) -> Turns:
    """Return turns of a program that is stopped while others have theirs."""

    def taken(turn: Callable[[], float]) -> float:
        program.resume()
        try:
            return turn()
        finally:
            program.pause()

    program.pause()
    return {name: partial(taken, turn) for name, turn in turns.items()}


def _large_rows(seconds: dict[str, float], missing: dict[str, str]) -> Iterator[Row]:
    for ours, peer, bar in LARGE_BARS:
        what = f"push + pull 102 MB, {ours}: faster than {peer}"
        mine, theirs = push_pull_s(seconds, ours), push_pull_s(seconds, peer)
        assert mine is not None, "ours is always measured"
        if theirs is None:
            yield not_measured(what, f">= {bar:g} x", missing.get(peer, "not asked for"))
        else:
            yield at_least(what, theirs / mine, bar, f"{ms(mine)} against {ms(theirs)}")


def _small_rows(seconds: dict[str, float], missing: dict[str, str]) -> Iterator[Row]:
    mine = seconds[f"{HTTP}/small"]
    what = "4 KB push with its step, p50, over HTTP: faster than a Ray actor call without one"
    theirs = seconds.get(f"{RAY}/small")
    if theirs is None:
        yield not_measured(what, ">= 2 x", missing.get(RAY, "not asked for"))
    else:
        yield at_least(what, theirs / mine, 2, f"{us(mine)} against {us(theirs)}")
    if (theirs := seconds.get(f"{TORCH}/small")) is not None:
        what = "the same: faster than torch RPC with a step"
        yield shown(what, theirs / mine, f"{us(mine)} against {us(theirs)}")
