"""The consistency mode of a model, and changing it while workers push."""

import pytest
from stepwell_core.layout import Layout, Tensor

from tests.server.calls import (
    Worker,
    assert_problem,
    create,
    definition,
    described,
    filled,
    pull,
)

TIMES = {"lease_s": 30.0, "patience_s": None}
ASYNC = {"mode": "async", "max_staleness": None, "on_stale": "accept", **TIMES}
SYNC = {"mode": "sync", "workers": 3, "on_leave": "shrink", "reduction": "order", **TIMES}


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (None, ASYNC),
        ("async", ASYNC),
        ({"mode": "async"}, ASYNC),
        ({"mode": "sync", "workers": 3}, SYNC),
        (
            {"mode": "sync", "workers": 3, "reduction": "arrival"},
            {**SYNC, "reduction": "arrival"},
        ),
        (
            {"mode": "quorum", "workers": 3, "quorum": 2, "lease_s": 5},
            {"mode": "quorum", "workers": 3, "quorum": 2, **TIMES, "lease_s": 5},
        ),
        ({"mode": "buffered", "size": 4}, {"mode": "buffered", "size": 4, **TIMES}),
        ({"mode": "bounded", "bound": 2}, {"mode": "bounded", "bound": 2, **TIMES}),
    ],
)
def test_the_mode_is_the_one_that_was_asked_for(http, given, mode):
    """Asynchronous unless told otherwise."""
    path = create(http, consistency=given)

    assert http.get(f"{path}/consistency").json() == mode


def switch(http, path, **mode):
    """Change the mode."""
    answer = http.patch(f"{path}/consistency", json=mode)
    assert answer.status_code == 200, answer.text
    return answer.json()


def waiting_push(http, path, pool, worker, value):
    """Return the future of a push that waits for others by now."""
    future = pool.submit(worker.try_push, value)
    while not any(w["is_waiting"] for w in there(http, path) if w["worker"] == worker.name):
        assert not future.done(), future.result().text
    return future


def there(http, path):
    """Return what is said of the workers who are there."""
    return [w for w in http.get(f"{path}/workers").json()["workers"] if "is_waiting" in w]


def test_a_push_that_waits_at_a_barrier_is_a_step_when_that_is_taken_away(http, pool):
    """Decided anew: under the new mode nobody else is needed."""
    path = create(http, values=filled(0.0), consistency={"mode": "sync", "workers": 2})
    one = Worker(http, path, "w0")
    Worker(http, path, "w1")
    waits = waiting_push(http, path, pool, one, -2.0)

    switch(http, path, mode="async")

    assert waits.result().json()["outcome"] == "applied"
    assert (pull(http, path)["bias"] == 1.0).all()
    assert described(http, path)["version"] == 1


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_a_push_goes_on_waiting_under_another_barrier(http, pool, reduction):
    """Into a running sum too: its own memory is free then, and its effect is the same."""
    path = create(http, values=filled(0.0), consistency={"mode": "sync", "workers": 3})
    one, two = Worker(http, path, "w0"), Worker(http, path, "w1")
    waits = waiting_push(http, path, pool, one, -2.0)

    switch(http, path, mode="sync", workers=2, reduction=reduction)

    assert two.push(-4.0)["outcome"] == "applied"
    assert waits.result().json()["version"] == 1
    assert (pull(http, path)["bias"] == 1.5).all()


def test_a_push_whose_gradient_is_in_a_sum_comes_again(http, pool):
    """It cannot be taken out; its worker is told to send it again, and nothing is lost."""
    mode = {"mode": "sync", "workers": 2, "reduction": "arrival"}
    path = create(http, values=filled(0.0), consistency=mode)
    one = Worker(http, path, "w0")
    Worker(http, path, "w1")
    waits = waiting_push(http, path, pool, one, -2.0)

    switch(http, path, mode="async")

    assert_problem(waits.result(), 503, "unavailable")
    assert one.push(-2.0)["outcome"] == "applied"
    assert (pull(http, path)["bias"] == 1.0).all()


def test_what_was_gathered_makes_a_step_before_the_mode_changes(http):
    """It was acknowledged, so it is not lost."""
    path = create(http, values=filled(0.0), consistency={"mode": "buffered", "size": 3})
    worker = Worker(http, path, "w0")
    outcomes = [worker.push(-2.0)["outcome"], worker.push(-4.0)["outcome"]]

    switch(http, path, mode="async")

    assert outcomes == ["buffered", "buffered"]
    assert described(http, path)["version"] == 1
    assert (pull(http, path)["bias"] == 1.5).all()
    assert worker.push(-1.0)["outcome"] == "applied"


def test_what_was_gathered_stays_where_only_the_size_changes(http):
    """Another size is no reason for a step."""
    path = create(http, values=filled(0.0), consistency={"mode": "buffered", "size": 5})
    worker = Worker(http, path, "w0")
    worker.push(-2.0)

    switch(http, path, mode="buffered", size=2)

    assert worker.push(-4.0)["outcome"] == "applied"
    assert (pull(http, path)["bias"] == 1.5).all()


def test_a_worker_that_runs_ahead_waits_for_its_turn(http, pool):
    """Its push is taken as soon as the slowest one has caught up."""
    path = create(http, values=filled(0.0), consistency={"mode": "bounded", "bound": 1})
    fast, slow = Worker(http, path, "fast"), Worker(http, path, "slow")
    fast.push(-1.0)

    waits = waiting_push(http, path, pool, fast, -1.0)
    before = described(http, path)["version"]
    slow.push(-1.0)

    assert before == 1
    assert waits.result().json()["outcome"] == "applied"
    assert described(http, path)["version"] == 3


def test_a_change_of_mode_lets_who_waits_for_its_turn_go_on(http, pool):
    """Nobody is ahead of anybody then."""
    path = create(http, values=filled(0.0), consistency={"mode": "bounded", "bound": 1})
    fast = Worker(http, path, "fast")
    Worker(http, path, "slow")
    fast.push(-1.0)
    waits = waiting_push(http, path, pool, fast, -1.0)

    switch(http, path, mode="async")

    assert waits.result().json()["outcome"] == "applied"


def test_a_gradient_that_is_too_stale_is_dropped_and_told(http):
    """The limit counts changes of the parameters."""
    mode = {"mode": "async", "max_staleness": 1, "on_stale": "reject"}
    path = create(http, values=filled(0.0), consistency=mode)
    worker = Worker(http, path, "w0")
    outcomes = [worker.push(-1.0, version=0)["outcome"] for _ in range(3)]

    assert outcomes == ["applied", "applied", "dropped_stale"]
    assert_problem(worker.try_push(-1.0), 422, "invalid_input")  # it does not say its version


def test_a_model_that_was_changed_is_still_the_one_that_was_created(http):
    """Creating it again with `exist_ok` finds it, as for hyperparameters."""
    path = create(http, consistency={"mode": "sync", "workers": 2})
    switch(http, path, mode="async")
    name = path.rpartition("/")[2]

    again = http.post(
        "/v1/models",
        json={**definition(name), "consistency": {"mode": "sync", "workers": 2}, "exist_ok": True},
    )

    assert again.status_code == 200, again.text
    assert http.get(f"{path}/consistency").json()["mode"] == "async"


@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "bulk"}, {"mode": "sync"}, {"mode": "sync", "workers": 0}, {},
        {"mode": "async", "workers": 3}, {"mode": "quorum", "workers": 2, "quorum": 3},
        {"mode": "bounded", "bound": 1, "lease_s": 0},
    ],
)  # fmt: skip
def test_a_mode_that_cannot_be_is_refused_and_nothing_changes(http, mode):
    """422 says what there is."""
    path = create(http)

    answer = http.patch(f"{path}/consistency", json=mode)

    assert answer.status_code == 422
    assert http.get(f"{path}/consistency").json() == ASYNC


def test_a_mode_that_there_is_no_room_for_is_refused_and_nothing_changes(http):
    """507 with the arithmetic; a barrier of so many keeps too many gradients."""
    layout = Layout([Tensor("w", (1 << 20,), "float32")])
    path = create(http, values=filled(0.0, layout), layout=layout)

    answer = http.patch(f"{path}/consistency", json={"mode": "sync", "workers": 10_000})

    assert_problem(answer, 507, "does_not_fit")
    assert http.get(f"{path}/consistency").json() == ASYNC


def test_a_session_ends_with_its_lease_and_the_others_go_on(http, pool):
    """The step is made without the worker that is silent, and that is told when it comes back."""
    mode = {"mode": "sync", "workers": 2, "lease_s": 0.3}
    path = create(http, values=filled(0.0), consistency=mode)
    lives, dies = Worker(http, path, "lives"), Worker(http, path, "dies")

    future = pool.submit(lives.try_push, -2.0)
    while not future.done():
        lives.heartbeat()

    assert future.result().json()["outcome"] == "applied"
    assert (pull(http, path)["bias"] == 1.0).all()
    assert_problem(dies.try_push(-2.0), 409, "session_expired")


def test_a_heartbeat_says_for_how_long_and_where_the_model_is(http):
    """And is refused for a session that there is not."""
    path = create(http, consistency={"mode": "async", "lease_s": 17.0})
    worker = Worker(http, path, "w0")
    worker.push(-1.0)

    beat = worker.heartbeat()

    assert beat.json() == {"lease_s": 17.0, "version": 1, "parameters_version": 1}
    newer = Worker(http, path, "w0")
    assert_problem(worker.heartbeat(), 409, "fenced")
    assert newer.heartbeat().status_code == 200
