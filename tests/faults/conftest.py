"""Runs of servers that are killed, two at a time: they mostly wait for a server to start."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.crashes import run
from tests.faults.plans import Plan, Report


class Runs:
    """The runs of one module, begun in their order, two at a time."""

    def __init__(self, plans: dict[str, Plan], folders: pytest.TempPathFactory) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._reports: dict[str, Future[Report]] = {
            name: self._pool.submit(run, plan, folders.mktemp("run"))
            for name, plan in plans.items()
        }

    def __getitem__(self, name: str) -> Report:
        """Wait for a run, and return what was seen."""
        return self._reports[name].result()

    def close(self) -> None:
        """Begin no more runs."""
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """Return the runs of the module's `PLANS` whose tests were chosen."""
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if item.module is request.module and hasattr(item, "callspec")
    }
    plans = {name: plan for name, plan in request.module.PLANS.items() if name in chosen}
    runs = Runs(plans, tmp_path_factory)
    yield runs
    runs.close()
