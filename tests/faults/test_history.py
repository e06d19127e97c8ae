"""The checker finds each kind of broken promise in a history, and nothing in a right one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.faults.history import Branch, History, Pull, Push, check

WORKERS = ["w0", "w1", "w2"]


def rules(history: History, **options: object) -> set[str]:
    """Return the names of the rules that are broken."""
    return {violation.rule for violation in check(history, **options)}


def recorded(seed: int = 0, calls: int = 300) -> History:
    """Return the history of a right server: overlapping calls, each at a point in its time."""
    rng = random.Random(seed)
    history = History(WORKERS, branches=[Branch("a", "created")])
    clock, sequences = [0.0] * 3, [0] * 3
    free_at = dict.fromkeys((*WORKERS, "r"), 0.0)
    for n in range(calls):
        at = float(n)
        name = rng.choice([w for w in free_at if free_at[w] < at - 0.5] or ["none"])
        if name == "none":
            continue
        start, end = max(free_at[name] + 0.1, at - rng.uniform(0, 3)), at + rng.uniform(0, 3)
        free_at[name] = end
        if name == "r":
            version = int(sum(clock))
            history.pulls.append(Pull("r", start, end, "a", version, (tuple(clock),)))
            continue
        place = WORKERS.index(name)
        clock[place] += 1
        version = int(sum(clock))
        history.pushes.append(Push(name, 1, sequences[place], start, end, "a", "applied", version))
        sequences[place] += 1
    end = max(free_at.values()) + 10
    history.pulls.append(Pull("r", end, end + 1, "a", int(sum(clock)), (tuple(clock),)))
    return history


def change(history: History, index: int, **values: object) -> None:
    """Change a pull."""
    history.pulls[index] = replace(history.pulls[index], **values)


@pytest.mark.parametrize("seed", range(5))
def test_a_right_history_has_no_violations(seed):
    """Overlapping calls in any order are fine as long as each has a point in its time."""
    assert check(recorded(seed)) == []


def test_a_push_of_unknown_outcome_may_have_had_its_effect_or_not():
    """Both are right; an effect that nobody attempted is not."""
    history = recorded()
    last = history.pulls[-1]
    unknown = Push("w0", 9, 0, last.start - 1, last.start - 0.5, "a", "unknown")
    without = replace(history, pushes=[*history.pushes, unknown])
    (w0, *others), version = last.clocks[0], last.version
    applied = replace(last, version=version + 1, clocks=((w0 + 1, *others),))
    history.pulls[-1] = applied

    assert check(without) == []
    assert check(replace(history, pushes=[*history.pushes, unknown])) == []
    assert rules(history) == {"surplus"}


def test_a_double_apply_is_found():
    """The effect of one push is there twice."""
    history = recorded()
    for n, pull in enumerate(history.pulls):
        clock = pull.clocks[0]
        change(history, n, clocks=((clock[0] * 2, *clock[1:]),))

    assert {"surplus", "sum"} <= rules(history)


def test_a_repetition_that_is_applied_again_is_found():
    """It got a version of its own, and was not called a duplicate."""
    history = recorded()
    first = history.pushes[5]
    history.pushes.append(replace(first, start=first.end, end=first.end + 1, version=999))

    assert "duplicate" in rules(history)


def test_a_repetition_with_the_first_outcome_is_right():
    """However late it comes."""
    history = recorded()
    first = history.pushes[5]
    history.pushes.append(replace(first, start=500.0, end=501.0, is_duplicate=True))

    assert check(history) == []


def test_a_lost_apply_is_found():
    """A push was acknowledged, made a version, and changed nothing."""
    history = recorded()
    (w0, *others) = history.pulls[-1].clocks[0]
    change(history, -1, clocks=((w0 - 1, *others),))

    assert {"lost", "sum"} <= rules(history)


def test_a_push_that_vanished_with_its_version_is_found():
    """The numbers fit each other; what was acknowledged is not there all the same."""
    history = recorded()
    (w0, *others), version = history.pulls[-1].clocks[0], history.pulls[-1].version
    change(history, -1, clocks=((w0 - 1, *others),), version=version - 1)

    assert rules(history) & {"lost", "stale", "bytes"}


def test_a_torn_pull_is_found():
    """Some rows are of one version, some of another."""
    history = recorded()
    clock = history.pulls[3].clocks[0]
    change(history, 3, clocks=(clock, (clock[0] + 1, *clock[1:])))

    assert rules(history) == {"torn"}


def test_a_stale_pull_is_found():
    """It began when a newer version had been seen already."""
    history = recorded()
    old = next(pull for pull in history.pulls if pull.version)
    history.pulls.append(replace(old, start=900.0, end=901.0))

    assert rules(history) == {"stale"}


def test_a_pull_from_the_future_is_found():
    """It saw a push that had not begun."""
    history = recorded()
    last = history.pulls[-1]
    change(history, -1, start=1.0, end=1.5)
    history.pulls.append(last)

    assert rules(history) & {"future", "stale"}


def test_two_pushes_of_one_version_are_found():
    """In asynchronous mode each makes one of its own."""
    history = recorded()
    history.pushes[7] = replace(history.pushes[7], version=history.pushes[6].version)

    assert "version" in rules(history)


def test_one_version_with_two_contents_is_found():
    """The key names the bytes."""
    history = recorded()
    last = history.pulls[-1]
    w0, w1, w2 = last.clocks[0]
    history.pulls.append(
        replace(last, start=last.end + 1, end=last.end + 2, clocks=((w0 + 1, w1 - 1, w2),))
    )

    assert "bytes" in rules(history)


def lost_tail(cut: int) -> History:
    """Return a history whose versions after `cut` were lost in a crash, and which went on."""
    history = recorded()
    at = history.pulls[-1].end + 1
    clock = [0.0, 0.0, 0.0]
    for push in history.pushes:
        if push.version is not None and push.version <= cut:
            clock[WORKERS.index(push.worker)] += 1
    history.branches.append(Branch("b", "recovered", "a", cut, cut, at))
    for n in range(5):
        clock[0] += 1
        start = at + n + 1
        history.pushes.append(Push("w0", 5, n, start, start + 0.5, "b", "applied", cut + n + 1))
    history.pulls.append(Pull("r", at + 20, at + 21, "b", cut + 5, (tuple(clock),)))
    return history


def test_a_tail_may_go_where_that_is_promised_and_nowhere_else():
    """Under `always` a crash may cut nothing; under `memory` it may, if it is told."""
    history = lost_tail(cut=40)

    assert check(history, may_cut=True) == []
    assert rules(history) == {"cut"}


def test_a_loss_that_nobody_was_told_of_is_found():
    """The same history under the same incarnation, or under one that began nowhere."""
    history = lost_tail(cut=40)
    untold = [replace(p, incarnation="a") for p in history.pushes]
    pulls = [replace(p, incarnation="a") for p in history.pulls]

    assert rules(replace(history, branches=history.branches[:1]), may_cut=True) == {"cut"}
    assert rules(History(WORKERS, untold, pulls, history.branches[:1]), may_cut=True) >= {"stale"}


def test_a_hole_before_the_cut_is_found():
    """One acknowledged push is missing, and later ones are there."""
    history = lost_tail(cut=40)
    (w0, w1, w2) = history.pulls[-1].clocks[0]
    change(history, -1, clocks=((w0, w1 - 1, w2 + 1),))

    assert rules(history, may_cut=True) == {"lost", "surplus"}


def test_more_than_the_tail_is_found():
    """Under `everysec` what was acknowledged long before the crash must be there."""
    history = lost_tail(cut=40)

    assert rules(history, may_cut=True, tail_s=20.0) == {"tail"}
    assert check(history, may_cut=True, tail_s=1000.0) == []


def test_a_restore_takes_back_and_goes_on():
    """The clock is the checkpoint's again, the version never goes back, nothing else is lost."""
    history = recorded()
    last, kept = history.pulls[-1], 30
    clock = [0.0, 0.0, 0.0]
    for push in history.pushes:
        if push.version is not None and push.version <= kept:
            clock[WORKERS.index(push.worker)] += 1
    base = last.version + 1
    history.branches.append(Branch("b", "restored", "a", kept, base))
    history.pulls.append(
        Pull("r", last.end + 1, last.end + 2, "b", base, (tuple(clock),)),
    )
    wrong = replace(
        history, pulls=[*history.pulls[:-1], replace(history.pulls[-1], version=base + 1)]
    )

    assert check(history) == []
    assert rules(wrong) == {"sum"}


def test_a_synchronous_version_has_a_share_of_each_worker():
    """All entries are the number of steps; a missing share is found."""
    history = History(WORKERS, branches=[Branch("a", "created")], shares=3)
    for step in range(1, 20):
        for worker in WORKERS:
            start = step * 10.0
            push = Push(worker, 1, step - 1, start, start + 5, "a", "applied", step)
            history.pushes.append(push)
        pull = Pull("w0", step * 10 + 6, step * 10 + 7, "a", step, ((float(step),) * 3,))
        history.pulls.append(pull)
    lacking = replace(history, pulls=[*history.pulls])
    lacking.pulls[-1] = replace(lacking.pulls[-1], clocks=((19.0, 18.0, 19.0),))
    twice = replace(history, pushes=[*history.pushes])
    twice.pushes.append(replace(twice.pushes[-1], sequence=99, start=300.0, end=301.0))

    assert check(history) == []
    assert rules(lacking) == {"lost", "sum"}
    assert "version" in rules(twice)


def test_a_long_history_is_checked_in_a_moment():
    """It takes O(n log n): twenty thousand calls are no matter."""
    assert check(recorded(seed=1, calls=20_000)) == []
