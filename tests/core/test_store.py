"""A version never changes while it is held, and the writer never waits for a reader."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from stepwell_core.errors import VersionsExhausted
from stepwell_core.layout import Layout, Tensor
from stepwell_core.store import SMALL_MODEL_BYTES, SPARE_STEPS_AFTER_WAIT, Store, Version

LAYOUT = Layout([Tensor("kernel", (3,), "float32"), Tensor("bias", (2,), "float64")])


def new_store(spares: int | None = None) -> Store:
    """Return a store of zeros."""
    return Store(LAYOUT, LAYOUT.new_arenas(0.0), 0, {}, spares)


def write(store: Store, number: int) -> bool:
    """Make one step that fills all arenas with `number`; return whether it was made in place."""
    claim = store.claim()
    for array in claim.target.values():
        array.fill(number)
    store.publish(number)
    return claim.source is claim.target


def test_hold_gives_the_current_version_and_its_number():
    """A reader sees what was published last."""
    store = new_store()
    write(store, 1)

    version = store.hold()

    assert version is not None
    assert version.number == store.number == 1
    assert version.arenas is store.current
    assert all((array == 1).all() for array in version.arenas.values())


def test_a_step_is_in_place_when_nobody_holds():
    """Without readers there is one buffer and no copy."""
    store = new_store()
    arenas = store.current

    steps_in_place = [write(store, number) for number in (1, 2, 3)]

    assert steps_in_place == [True, True, True]
    assert store.current is arenas


def test_a_held_version_keeps_its_bytes_and_its_number():
    """Steps beside a reader go to another buffer."""
    store = new_store()
    held = store.hold()
    assert held is not None

    steps_in_place = [write(store, number) for number in (1, 2)]

    assert steps_in_place == [False, True]
    assert held.number == 0
    assert all((array == 0).all() for array in held.arenas.values())
    assert store.number == 2


def test_readers_of_one_version_share_its_buffer():
    """A version is in use until the last of its readers has let go."""
    store = new_store(spares=1)
    first, second = store.hold(), store.hold()
    assert first is second is not None
    write(store, 1)

    store.release(first)

    assert (first.arenas["float32"] == 0).all()
    with pytest.raises(VersionsExhausted):
        store.hold()
    store.release(second)
    assert store.hold() is not None


def test_a_buffer_that_was_let_go_is_used_again():
    """Readers that come and go cost one spare, not one a step."""
    store = new_store(spares=3)
    seen = set()

    for number in range(1, 20):
        held = store.hold()
        assert held is not None
        write(store, number)
        seen |= {id(held.arenas), id(store.current)}
        store.release(held)

    assert len(seen) == 2


def test_hold_gives_nothing_during_a_step_in_place_and_the_next_steps_use_a_spare():
    """A reader waits for one step at most; then the writer keeps out of its way for a while."""
    store = new_store()
    claim = store.claim()
    assert claim.source is claim.target

    assert store.hold() is None
    store.publish(1)
    steps_in_place = [write(store, number) for number in range(2, SPARE_STEPS_AFTER_WAIT + 3)]

    assert steps_in_place == [False] * SPARE_STEPS_AFTER_WAIT + [True]


def test_hold_gives_the_old_version_during_a_step_into_a_spare():
    """A step beside readers does not stop new ones."""
    store = new_store()
    assert store.hold() is not None
    claim = store.claim()
    claim.target["float32"].fill(7)

    held = store.hold()

    assert held is not None
    assert held.number == 0
    assert (held.arenas["float32"] == 0).all()


def test_a_hold_that_would_leave_the_writer_no_buffer_is_refused():
    """Readers of old versions use up the spares; the writer goes on in place."""
    store = new_store(spares=2)
    for number in (1, 2):
        assert store.hold() is not None
        write(store, number)

    with pytest.raises(VersionsExhausted, match="2 older versions"):
        store.hold()

    assert write(store, 3)
    assert store.number == 3


def test_the_refusal_ends_when_one_old_version_is_let_go():
    """`VersionsExhausted` is worth another try."""
    store = new_store(spares=1)
    old = store.hold()
    assert old is not None
    write(store, 1)
    with pytest.raises(VersionsExhausted):
        store.hold()

    store.release(old)
    current = store.hold()

    assert current is not None
    assert current.number == 1


def test_without_spares_nobody_reads_and_every_step_is_in_place():
    """A store of one buffer is the writer's own."""
    store = new_store(spares=0)

    with pytest.raises(VersionsExhausted):
        store.hold()

    assert write(store, 1)


@pytest.mark.parametrize(("nbytes", "spares"), [(SMALL_MODEL_BYTES - 4, 3), (SMALL_MODEL_BYTES, 1)])
def test_large_models_have_one_spare(nbytes, spares):
    """Three spares are cheap for small models only."""
    layout = Layout([Tensor("kernel", (nbytes // 4,), "float32")])
    store = Store(layout, {"float32": np.zeros(0, np.float32)}, 0, {})

    assert store._spare_limit == spares


class StoreMachine(RuleBasedStateMachine):
    """Readers hold and release while a writer claims, writes and publishes, in any order."""

    held = Bundle("held")

    @initialize(spares=st.integers(0, 3))
    def begin(self, spares: int) -> None:
        self.spares = spares
        self.store = new_store(spares)
        self.number = 0
        self.last_seen = 0
        self.claimed = None
        self.readers: list[tuple[Version, int]] = []
        self.buffers = {id(self.store.current): self.store.current}

    def old_versions(self) -> set[int]:
        current = self.store.current
        return {id(v.arenas) for v, _ in self.readers if v.arenas is not current}

    @rule(target=held)
    def hold(self):
        in_place = self.claimed is not None and self.claimed.target is self.store.current
        current_is_held = any(v.arenas is self.store.current for v, _ in self.readers)
        is_exhausted = not current_is_held and len(self.old_versions()) >= self.spares
        try:
            version = self.store.hold()
        except VersionsExhausted:
            assert is_exhausted
            assert not in_place
            return None
        assert (version is None) == in_place
        if version is None:
            return None
        assert not is_exhausted
        assert version.number == self.number >= self.last_seen
        self.last_seen = version.number
        self.readers.append((version, version.number))
        return self.readers[-1]

    @rule(reader=consumes(held))
    def release(self, reader) -> None:
        if reader is not None:
            self.readers.remove(reader)
            self.store.release(reader[0])

    @precondition(lambda self: self.claimed is None)
    @rule()
    def claim(self) -> None:
        self.claimed = self.store.claim()
        assert self.claimed.source is self.store.current
        self.buffers[id(self.claimed.target)] = self.claimed.target
        for array in self.claimed.target.values():
            array.fill(-1)  # half a step: nobody may see this

    @precondition(lambda self: self.claimed is not None)
    @rule()
    def publish(self) -> None:
        self.number += 1
        for array in self.claimed.target.values():
            array.fill(self.number)
        self.store.publish(self.number)
        self.claimed = None

    @invariant()
    def held_versions_have_not_changed(self) -> None:
        for version, number in self.readers:
            assert version.number == number
            assert all((array == number).all() for array in version.arenas.values())

    @invariant()
    def the_number_is_that_of_the_last_step(self) -> None:
        assert self.store.number == self.number

    @invariant()
    def there_are_no_more_buffers_than_the_current_one_and_the_spares(self) -> None:
        assert len(self.buffers) <= 1 + self.spares  # all are kept alive here, so ids are unique


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=50)


def test_readers_on_other_threads_never_see_half_a_step():
    """Every element that a reader sees belongs to one version, and versions never go back."""
    layout = Layout([Tensor("kernel", (1 << 16,), "float32")])
    store = Store(layout, layout.new_arenas(0.0), 0, {}, spares=2)
    looks_wanted, readers = 150, 3
    done = [threading.Event() for _ in range(readers)]
    faults: list[str] = []

    def read(index: int) -> None:
        looks, last = 0, -1
        try:
            while looks < looks_wanted:
                try:
                    version = store.hold()
                except VersionsExhausted:
                    continue
                if version is None:
                    continue
                elements = version.arenas["float32"]
                if elements.min() != version.number or elements.max() != version.number:
                    faults.append(f"torn: {version.number}, {elements.min()}, {elements.max()}")
                if version.number < last:
                    faults.append(f"went back from {last} to {version.number}")
                last = version.number
                looks += 1
                store.release(version)
        finally:
            done[index].set()

    threads = [threading.Thread(target=read, args=(index,)) for index in range(readers)]
    for thread in threads:
        thread.start()
    number = 0
    while not all(event.is_set() for event in done):
        number += 1
        claim = store.claim()
        elements = claim.target["float32"]
        half = elements.size // 2
        elements[:half] = number
        elements[half:] = number
        store.publish(number)
    for thread in threads:
        thread.join()

    assert not faults
    assert number > 0


def test_a_checkpoint_can_hold_when_slow_readers_hold_the_rest() -> None:
    """The reserved hold is never refused, and the next step still does not touch what is held."""
    # Arrange
    layout = Layout([Tensor("w", (4,), "float32")])
    store = Store(layout, layout.new_arenas(0.0), 0, {}, spares=1)
    slow = store.hold()
    assert slow is not None
    _step(store, 1)
    with pytest.raises(VersionsExhausted):
        store.hold()

    # Act
    reserved = store.hold(is_reserved=True)
    assert reserved is not None
    _step(store, 2)

    # Assert
    assert (reserved.arenas["float32"] == 1).all()
    assert (slow.arenas["float32"] == 0).all()
    assert (store.current["float32"] == 2).all()
    store.release(reserved)
    store.release(slow)
    _step(store, 3)
    assert (store.current["float32"] == 3).all()


def _step(store: Store, number: int) -> None:
    claim = store.claim()
    claim.target["float32"][...] = number
    store.publish(number)


def test_an_abandoned_buffer_is_never_written_again() -> None:
    """Who reads on without holding sees the version that it held, for as long as it likes."""
    store = new_store(spares=1)
    held = store.hold()
    assert held is not None

    store.abandon(held)
    steps_in_place = [write(store, number) for number in (1, 2, 3)]

    assert steps_in_place == [False, True, True]
    assert all((array == 0).all() for array in held.arenas.values())
    assert store.hold() is not None


def test_an_abandoned_old_version_makes_room_for_another() -> None:
    """A reader that is given up stands in nobody's way."""
    store = new_store(spares=1)
    old = store.hold()
    assert old is not None
    write(store, 1)

    store.abandon(old)
    current = store.hold()
    write(store, 2)

    assert current is not None
    assert (old.arenas["float32"] == 0).all()
    assert (current.arenas["float32"] == 1).all()


def test_parameters_that_moved_stay_the_same_and_later_steps_stay_in_the_new_memory() -> None:
    """The version is the same one, and no buffer of the old kind is used again."""
    store = new_store(spares=3)
    older = store.hold()
    write(store, 1)
    reader = store.hold()
    assert older is not None
    assert reader is not None
    made: list[dict[str, np.ndarray]] = []

    def allocate() -> dict[str, np.ndarray]:
        made.append(LAYOUT.new_arenas(None))
        return made[-1]

    store.move(allocate(), allocate)
    after = store.hold()
    assert after is not None
    store.release(reader)
    store.release(older)
    for number in range(2, 9):
        write(store, number)
        assert any(store.current is arenas for arenas in made)

    assert (reader.number, after.number) == (1, 1)
    assert all((array == 1).all() for array in after.arenas.values())
    assert len(made) <= 3
