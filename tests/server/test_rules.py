"""Rules that are changed while a model trains, when there is no memory for them."""

from __future__ import annotations

import pytest
from stepwell_core.consistency import Async, Buffered, Sync
from stepwell_core.errors import DoesNotFit
from stepwell_core.layout import Layout

from tests.server.registries import definition, push, run


@pytest.mark.parametrize(
    "mode", [Buffered(2), Sync(2, reduction="arrival")], ids=["buffered", "arrival"]
)
def test_a_mode_that_there_is_no_memory_for_is_refused_before_it_is_written_down(
    tmp_path, monkeypatch, mode
):
    """Training goes on; and a start does not fail of what the change would have failed of."""

    async def before(registry):
        model, _ = await registry.create(definition(), None, exist_ok=False)

        new_arenas = Layout.new_arenas

        def fails(layout, *arguments):
            if layout is model.engine.layout:  # and not one of the rehearsal before
                raise MemoryError
            return new_arenas(layout, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Layout, "new_arenas", fails)
            with pytest.raises(DoesNotFit, match="no memory"):
                await model.rules.set_consistency(mode)
        return await push(model)

    async def after(registry):
        model = registry.get("m")
        return model.definition.consistency, model.engine.counters.version

    versions = run(tmp_path, before, durability="everysec", is_clean=False)

    assert versions == [1]
    assert run(tmp_path, after, durability="everysec") == (Async(), 1)
