"""Sessions, and pushes that wait for those of others."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from tests import servers
from tests.server.calls import (
    LAYOUT,
    Worker,
    assert_problem,
    create,
    filled,
    image,
    new_name,
    packed,
    payload,
    pull,
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A client of a server that answers a waiting push almost at once."""
    with (
        servers.hosted(tmp_path_factory.mktemp("impatient"), push_wait_s=0.02) as server,
        servers.http(server.url) as client,
    ):
        yield client


def sync(workers: int, **fields: str) -> dict:
    """Return the mode in which so many gradients make a step."""
    return {"mode": "sync", "workers": workers, **fields}


def ask(worker: Worker, sequence: int = 0, wait_s: float = 0.0, **query):
    """Ask what became of a push."""
    query = {"epoch": worker.epoch, "wait_s": wait_s, **query}
    return worker.http.get(f"{worker.path}/workers/{worker.name}/pushes/{sequence}", params=query)


def waiting_push(pool: ThreadPoolExecutor, worker: Worker, *arguments, **fields) -> Future:
    """Start a push, and return when the server has it and lets it wait."""
    future = pool.submit(worker.try_push, *arguments, **fields)
    deadline = time.monotonic() + servers.DEADLINE_S
    while ask(worker, worker.sequence).status_code != 202:
        assert time.monotonic() < deadline, "the push never waited"
        assert not future.done(), future.result().text
    return future


def test_sessions_have_epochs_that_never_repeat_and_tell_of_the_one_before(http):
    """A worker that comes back learns what became of its last push."""
    path = create(http)
    first = Worker(http, path)
    pushed = first.push()

    other, second = Worker(http, path, "w1"), Worker(http, path)

    assert first.opened["previous"] is None
    assert second.opened["previous"] == {
        "epoch": first.epoch,
        "last_sequence": 0,
        "result": pushed,
    }
    assert first.epoch < other.epoch < second.epoch
    assert second.opened["version"] == 1


def test_sessions_are_listed_in_the_order_in_which_they_were_opened(http):
    """With what they did."""
    path = create(http)
    for name in ("b", "a"):
        Worker(http, path, name).push()
    http.delete(f"{path}/workers/b")

    listed = http.get(f"{path}/workers").json()["workers"]

    assert [(w["worker"], w["is_open"], w["last_sequence"]) for w in listed] == [
        ("b", False, 0),
        ("a", True, 0),
    ]


def test_workers_are_listed_with_what_was_counted_of_their_pushes(http):
    """Bytes, staleness now and of almost all, and drops; over all sessions of a worker."""
    path = create(http, on_nonfinite="drop")
    slow, fast = Worker(http, path, "slow"), Worker(http, path, "fast")
    for version in range(9):
        fast.push(version=version)
    slow.push(version=0)
    slow.push(filled(np.nan), version=10)
    Worker(http, path, "slow")

    counted = {w["worker"]: w for w in http.get(f"{path}/workers").json()["workers"]}

    names = ("received_bytes", "staleness", "staleness_p95", "drops")
    nbytes = LAYOUT.nbytes
    assert [counted["fast"][name] for name in names] == [9 * nbytes, 0, 0, 0]
    assert [counted["slow"][name] for name in names] == [2 * nbytes, 0, 9, 1]


def test_a_session_is_opened_with_msgpack_too(http):
    """A header without payload; a payload behind it is refused."""
    path = create(http)
    headers = {"Content-Type": "application/msgpack"}
    body = packed({"worker": "w0"})

    assert http.post(f"{path}/workers", content=body, headers=headers).status_code == 201
    answer = http.post(f"{path}/workers", content=body + packed({}, b"x"), headers=headers)
    assert_problem(answer, 400, "malformed_message")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_input"),
        ({"worker": None}, "invalid_input"),
        ({"worker": ["w0"]}, "invalid_input"),
        ({"worker": "w0", "epoch": 1}, "invalid_input"),
        ({"worker": "W0"}, "invalid_name"),
        ({"worker": "a/b"}, "invalid_name"),
        ({"worker": ""}, "invalid_name"),
    ],
)
def test_a_worker_that_breaks_a_rule_opens_nothing(http, body, code):
    """No name becomes a session unchecked."""
    path = create(http)

    assert_problem(http.post(f"{path}/workers", json=body), 422, code)
    assert http.get(f"{path}/workers").json() == {"workers": []}


def test_closing_what_is_not_open_says_why(http):
    """No such worker, an older session, one that is closed already."""
    path = create(http)
    assert_problem(http.delete(f"{path}/workers/w0"), 404, "worker_not_found")
    old, new = Worker(http, path), Worker(http, path)

    fenced = http.delete(f"{path}/workers/w0", params={"epoch": old.epoch})
    closed = http.delete(f"{path}/workers/w0", params={"epoch": new.epoch})
    again = http.delete(f"{path}/workers/w0", params={"epoch": new.epoch})

    assert_problem(fenced, 409, "fenced")
    assert closed.status_code == 204
    assert_problem(again, 409, "session_expired")


def test_the_result_of_a_push_can_be_asked_for_again(http):
    """One that was made, one that was not, and one that nobody could have made."""
    path = create(http)
    worker = Worker(http, path)
    result = worker.push()

    assert ask(worker).json() == {**result, "duplicate": True}
    assert assert_problem(ask(worker, 1), 404, "push_not_found")["expected"] == 1
    assert_problem(ask(worker, -1), 422, "invalid_input")
    assert_problem(ask(worker, epoch=worker.epoch + 1), 409, "unknown_session")
    assert_problem(ask(worker, wait_s=-1.0), 422, "invalid_input")
    assert_problem(ask(worker, wait_s=float("nan")), 422, "invalid_input")


def test_another_history_answers_for_no_push_and_closes_no_session(http):
    """A model that was deleted and created again gives the same epochs away, for other pushes."""
    path = create(http)
    old = Worker(http, path)
    assert http.delete(path).status_code == 204
    create(http, name=path.rpartition("/")[2])
    new = Worker(http, path)
    result = new.push()
    meant = {"epoch": old.epoch, "incarnation": old.incarnation}

    asked = ask(old, incarnation=old.incarnation)
    closed = http.delete(f"{path}/workers/w0", params=meant)
    mine = ask(new, incarnation=new.incarnation)

    assert old.epoch == new.epoch
    for refused in (asked, closed):
        problem = assert_problem(refused, 409, "stale_incarnation")
        assert problem["incarnation"] == new.incarnation
    assert mine.json() == ask(new).json() == {**result, "duplicate": True}
    assert http.delete(f"{path}/workers/w0", params={"epoch": new.epoch}).status_code == 204


def test_many_results_later_a_push_is_answered_as_settled_before(http):
    """The last 64 results are kept, and an older push still has no second effect."""
    path = create(http)
    worker = Worker(http, path)
    for _ in range(70):
        worker.push()

    answer = worker.try_push(sequence=0).json()

    assert (answer["outcome"], answer["duplicate"], answer["version"]) == (
        "settled_before",
        True,
        70,
    )


def test_the_weighted_mean_of_all_workers_makes_one_step_and_answers_all_at_once(http, pool):
    """Nobody is answered before, and all are told the same version."""
    path = create(http, values=filled(0.0), consistency=sync(3))
    workers = [Worker(http, path, f"w{number}") for number in range(3)]
    first = waiting_push(pool, workers[0], 2.0, weight=1.0)
    second = waiting_push(pool, workers[1], 4.0, weight=2.0)
    assert http.get(path).json()["version"] == 0

    last = workers[2].push(8.0, weight=5.0)

    results = [first.result().json(), second.result().json(), last]
    assert [(r["outcome"], r["version"], r["duplicate"]) for r in results] == [
        ("applied", 1, False)
    ] * 3
    assert (pull(http, path)["bias"] == -0.5 * (2 + 8 + 40) / 8).all()


def test_the_order_in_which_gradients_arrive_does_not_change_a_bit(http, pool):
    """They are reduced in the order of the workers' names."""
    rng = np.random.default_rng(3)
    gradients = {
        name: {
            "dense/kernel": rng.standard_normal((3, 4)).astype("float32"),
            "bias": rng.standard_normal(4) * 10.0**power,
        }
        for power, name in enumerate("abc")
    }
    pulled = []
    for order in ("abc", "cab", "bca"):
        path = create(http, consistency=sync(3))
        workers = {name: Worker(http, path, name) for name in "abc"}
        futures = [waiting_push(pool, workers[name], gradients[name]) for name in order[:2]]
        workers[order[2]].push(gradients[order[2]])
        assert [future.result().status_code for future in futures] == [200, 200]
        pulled.append(payload(pull(http, path)))

    assert pulled[0] == pulled[1] == pulled[2]


def test_a_retry_of_a_waiting_push_joins_it(http, pool):
    """Sent twice, counted once; both are answered with the step, one as a repetition."""
    path = create(http, values=filled(0.0), consistency=sync(2))
    one, two = Worker(http, path, "w0"), Worker(http, path, "w1")
    first = waiting_push(pool, one, 2.0)
    again = pool.submit(one.try_push, 2.0)

    two.push(2.0)

    answers = [first.result().json(), again.result().json()]
    assert sorted(answer["duplicate"] for answer in answers) == [False, True]
    assert {answer["version"] for answer in answers} == {1}
    assert (pull(http, path)["bias"] == -1.0).all()


def test_another_push_of_a_session_whose_push_waits_is_refused(http, pool):
    """One push in flight a session."""
    path = create(http, consistency=sync(2))
    one, two = Worker(http, path, "w0"), Worker(http, path, "w1")
    first = waiting_push(pool, one)

    assert_problem(one.try_push(sequence=1), 409, "push_in_flight")

    two.push()
    assert first.result().json()["version"] == 1


def test_a_push_that_waits_too_long_is_answered_202_and_then_asked_for(impatient):
    """The body is not sent again; `wait_s` is no longer than the server likes."""
    path = create(impatient, consistency=sync(2))
    one, two = Worker(impatient, path, "w0"), Worker(impatient, path, "w1")

    waits = one.try_push(2.0)
    still = ask(one, wait_s=3600.0)
    made = two.push(2.0)
    settled = ask(one, wait_s=3600.0)

    assert (waits.status_code, waits.json()["outcome"]) == (202, "waiting")
    assert (still.status_code, still.json()["outcome"]) == (202, "waiting")
    assert settled.status_code == 200
    assert settled.json() == {**made, "duplicate": True}


def test_asking_again_and_again_for_a_waiting_push_uses_up_nothing(impatient):
    """Those who were answered are forgotten; the list of waiters does not grow."""
    path = create(impatient, "patience", consistency=sync(2))
    worker = Worker(impatient, path)
    worker.try_push()

    answers = {ask(worker).status_code for _ in range(50)}

    assert answers == {202}


def test_a_worker_that_leaves_releases_the_others(http, pool):
    """Nobody waits for who is gone; its own gradient, if it waited, is not in the step."""
    path = create(http, values=filled(0.0), consistency=sync(3))
    workers = [Worker(http, path, f"w{number}") for number in range(3)]
    stays = waiting_push(pool, workers[0], 2.0)
    leaves = waiting_push(pool, workers[1], 100.0)
    http.delete(f"{path}/workers/w1")
    assert_problem(leaves.result(), 503, "unavailable")
    assert not stays.done()

    http.delete(f"{path}/workers/w2")

    assert stays.result().json()["version"] == 1
    assert (pull(http, path)["bias"] == -1.0).all()


def test_where_gradients_are_added_on_arrival_one_that_leaves_sends_all_back(http, pool):
    """Its own cannot be taken out of the sum; the others send theirs again, and it counts once."""
    path = create(http, values=filled(0.0), consistency=sync(3, reduction="arrival"))
    workers = [Worker(http, path, f"w{number}") for number in range(3)]
    stays = waiting_push(pool, workers[0], 2.0)
    leaves = waiting_push(pool, workers[1], 100.0)
    http.delete(f"{path}/workers/w1")
    for answer in (stays.result(), leaves.result()):
        assert_problem(answer, 503, "unavailable")

    again = waiting_push(pool, workers[0], 2.0)
    workers[2].push(4.0)

    assert again.result().json()["version"] == 1
    assert (pull(http, path)["bias"] == -1.5).all()


def test_a_waiting_push_of_a_fenced_session_is_refused_and_not_counted(http, pool):
    """A new process takes over; when the old one asks again it learns that it is fenced."""
    path = create(http, values=filled(0.0), consistency=sync(2))
    old, other = Worker(http, path, "w0"), Worker(http, path, "w1")
    waits = waiting_push(pool, old, 100.0)

    new = Worker(http, path, "w0")

    assert_problem(waits.result(), 503, "unavailable")
    assert_problem(old.try_push(100.0), 409, "fenced")
    future = waiting_push(pool, new, 2.0)
    other.push(2.0)
    assert future.result().json()["version"] == 1
    assert (pull(http, path)["bias"] == -1.0).all()


def test_a_gradient_that_was_computed_at_an_older_version_is_dropped(http, pool):
    """Its sequence number is used up, so the worker goes on with the next."""
    path = create(http, consistency=sync(1))
    worker = Worker(http, path)
    worker.push(version=0)

    late = worker.push(version=0)

    assert (late["outcome"], late["version"]) == ("dropped_late", 1)
    assert worker.push(version=1)["outcome"] == "applied"


@pytest.mark.parametrize("change", ["finalize", "overwrite", "restore"])
def test_a_change_by_an_administrator_lets_nobody_wait_for_ever(http, pool, change):
    """Who waited is told at once to send it again, and then learns why."""
    ema = {"class_name": "SGD", "config": {"learning_rate": 1.0, "use_ema": True}}
    path = create(http, consistency=sync(2), optimizer=ema)
    one, two = Worker(http, path, "w0"), Worker(http, path, "w1")
    step = waiting_push(pool, one, version=0)
    two.push(version=0)
    step.result()
    one.sequence = 1
    waits = waiting_push(pool, one, version=1)

    if change == "finalize":
        http.post(f"{path}/finalize")
    elif change == "overwrite":
        lists = {name: array.tolist() for name, array in filled(0.0).items()}
        http.put(f"{path}/parameters", json={"parameters": lists})
    else:
        checkpoint = http.get(f"{path}/checkpoints").json()["checkpoints"][0]["id"]
        http.post(f"{path}/checkpoints/{checkpoint}/restore")

    assert_problem(waits.result(), 503, "unavailable")
    again = one.try_push(version=1)
    if change == "finalize":
        assert again.json()["outcome"] == "dropped_late"
    else:
        assert_problem(again, 409, "stale_incarnation")


def test_deleting_a_model_answers_those_who_wait(http, pool):
    """404, at once."""
    path = create(http, consistency=sync(2))
    worker = Worker(http, path)
    Worker(http, path, "w1")
    waits = waiting_push(pool, worker)

    assert http.delete(path).status_code == 204

    assert_problem(waits.result(), 404, "model_not_found")


def test_workers_in_rounds_make_one_version_a_round(http, pool):
    """Four workers, ten rounds, ten versions, and every gradient in exactly one of them."""
    path = create(http, new_name(), values=filled(0.0), consistency=sync(4))
    workers = [Worker(http, path, f"w{number}") for number in range(4)]

    def run(worker: Worker) -> list[int]:
        return [worker.push(-2.0, version=number)["version"] for number in range(10)]

    versions = list(pool.map(run, workers))

    assert versions == [list(range(1, 11))] * 4
    assert (pull(http, path)["bias"] == 10.0).all()


def test_what_waits_is_no_change(http, pool):
    """A push that waits is in memory alone: nothing that can be seen of the model differs."""
    path = create(http, consistency=sync(2))
    one, two = Worker(http, path, "w0"), Worker(http, path, "w1")
    before = image(http, path)

    waits = waiting_push(pool, one)

    assert image(http, path) == before
    two.push()
    assert waits.result().status_code == 200
