"""The demo: worker processes train a network on handwritten digits through a server.

Everything is real: the images, the processes, the sockets, the checkpoint. `run` returns what came
of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import stepwell
from rich.console import Console
from stepwell_core.errors import InvalidArgument

from stepwell_server.demo import digits, lanes, network, picture, processes, progress
from stepwell_server.demo.chaos import LEASE_S, LEAST_WORKERS, Chaos, plan
from stepwell_server.demo.recipes import Mode, Optimizer, Recipe, consistency, recipe
from stepwell_server.demo.worker import Record, Task

EVALUATE_EVERY_S = 0.25
STALLED_S = 120.0
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        mode: Of consistency.
        optimizer: Which recipe.
        workers: How many.
        steps: Pushes a worker; None takes the recipe's.
        seed: Of parameters and batches.
        model: Name of the model.
        url: A server that runs already; None starts one for the demo.
        has_own_workers: False waits for workers that others start with `stepwell demo-worker`.
        replaces: Delete a model of that name first.
        folder: Where everything is kept; None takes a new folder in ./stepwell-demo.
        has_chaos: Kill, stop and add workers meanwhile; see `chaos.py`.

    Raises:
        InvalidArgument: Chaos is asked for with too few workers, or with those of others.
    """

    mode: Mode = "async"
    optimizer: Optimizer = "adam"
    workers: int = 4
    steps: int | None = None
    seed: int = 0
    model: str = "digits"
    url: str | None = None
    has_own_workers: bool = True
    replaces: bool = False
    folder: Path | None = None
    has_chaos: bool = False

    def __post_init__(self) -> None:
        """Refuse options that do not go together."""
        if not self.has_chaos:
            return
        if self.workers < LEAST_WORKERS:
            raise InvalidArgument(
                f"--chaos kills workers, so there are {LEAST_WORKERS} or more: --workers "
                f"{LEAST_WORKERS}. Received: {self.workers}"
            )
        if not self.has_own_workers:
            raise InvalidArgument(
                "--chaos kills workers that the demo has started, and no others: leave "
                "--no-own-workers out"
            )

    @property
    def recipe(self) -> Recipe:
        """The settings of this run."""
        steps = {} if self.steps is None else {"steps_per_worker": self.steps}
        return recipe(self.optimizer, self.mode, workers=self.workers, **steps)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        accuracy: On the held-out images, 0..1.
        pushes: Made by all workers.
        pushes_per_s: Of all workers together.
        version: Of the model at the end.
        seconds: From the first push to the last.
        checkpoint: Path of the last checkpoint, or its name on a server elsewhere.
        picture: Path of the training curve.
        parameters_sha256: Of the parameters' bytes, in layout order.
        mode: Of consistency.
        optimizer: By name.
        workers: How many.
        seed: Of the run.
        chaos: How often workers were killed, stopped, added, restarted; None without chaos.
        chaos_picture: Path of the picture of who came and went; None without chaos.
    """

    accuracy: float
    pushes: int
    pushes_per_s: float
    version: int
    seconds: float
    checkpoint: str
    picture: str
    parameters_sha256: str
    mode: str
    optimizer: str
    workers: int
    seed: int
    chaos: dict[str, int] | None = None
    chaos_picture: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def run(options: Options, console: Console) -> Outcome:
    """Run the demo to its end.

    Args:
        options: What to run.
        console: Where progress is shown.

    Raises:
        DemoFailed: A process ended that should not have.
        StepwellError: The server refused something.
    """
    folder = options.folder or _new_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _server(options, folder) as url, stepwell.Client(url) as client:
        console.print(f"server {url}, everything is kept in {folder}")
        return _Run(options, folder, client, url, console).to_its_end()


def _new_folder() -> Path:
    return Path("stepwell-demo") / datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")


@contextlib.contextmanager
def _server(options: Options, folder: Path) -> Iterator[str]:
    if options.url is not None:
        yield options.url
        return
    with processes.server(folder / "data", folder / "server.log") as url:
        yield url


class _Run:
    """One run, from the model's creation to the picture."""

    def __init__(
        self, options: Options, folder: Path, client: stepwell.Client, url: str, console: Console
    ) -> None:
        self._options = options
        self._folder = folder
        self._url = url
        self._console = console
        self._images = digits.load_digits_split()
        self._records: list[Record] = []
        self._evaluations: list[picture.Evaluation] = []
        self._began = time.monotonic()
        self._chaos: Chaos | None = None
        self._starts = 0  # of workers, so that no two see the same batches
        self._model = self._create(client)

    def _create(self, client: stepwell.Client) -> stepwell.Model:
        options = self._options
        if options.replaces and options.model in client.models():
            client.delete_model(options.model)
        lease_s = LEASE_S if options.has_chaos else None
        return client.create_model(
            options.model,
            network.initial_parameters(options.seed),
            optimizer=options.recipe.optimizer,
            consistency=consistency(options.mode, options.workers, lease_s=lease_s),
        )

    def to_its_end(self) -> Outcome:
        pushes = self._options.workers * self._options.recipe.steps_per_worker
        own = self._options.workers if self._options.has_own_workers else 0
        tasks = [self._task(f"w{index}") for index in range(own)]
        names = [task.worker for task in tasks]
        if self._goes_by_version:
            view = progress.View(names, self._options.recipe.versions, "steps")
        else:
            view = progress.View(names, pushes)
        with progress.shown(view, self._console):
            if self._options.has_own_workers:
                self._watch(processes.Workers(self._url, tasks, self._folder), view)
            else:
                self._wait_for_others()
        return self._finish(pushes)

    @property
    def _goes_by_version(self) -> bool:
        """Whether workers end at a version, not after a number of pushes."""
        return self._options.has_chaos or not self._options.recipe.counts_pushes

    def _task(self, worker: str) -> Task:
        recipe = self._options.recipe
        self._starts += 1
        return Task(
            model=self._options.model,
            worker=worker,
            index=self._starts - 1,
            steps=recipe.steps_per_worker,
            batch_size=recipe.batch_size,
            seed=self._options.seed,
            until=recipe.versions if self._goes_by_version else None,
        )

    def _watch(self, workers: processes.Workers, view: progress.View) -> None:
        if self._options.has_chaos:
            blows = plan(self._options.seed, self._options.workers)
            self._chaos = Chaos(blows, workers, self._task)
        try:
            while workers.is_running:
                for record in workers.reported():
                    self._records.append(record)
                    view.add(record)
                workers.check()
                self._do_harm(view.version)
                if self._is_time_to_evaluate():
                    view.evaluated(self._evaluate(self._model.pull()))
                time.sleep(_PAUSE_S)
            workers.join()
            self._records += workers.reported()
        finally:
            workers.stop()

    def _do_harm(self, version: int) -> None:
        if self._chaos is None:
            return
        for deed in self._chaos.go_on(version / self._options.recipe.versions):
            self._console.print(f"{deed.kind} {deed.worker} at version {version}")

    def _wait_for_others(self) -> None:
        """Wait until workers that somebody else runs have pushed what they are to push.

        Raises:
            DemoFailed: Nothing was pushed for `STALLED_S`.
        """
        wanted = self._options.recipe.versions
        made, moved = 0, time.monotonic()
        while made < wanted:
            now = self._model.describe()["iterations"]
            if now != made:
                made, moved = now, time.monotonic()
            elif time.monotonic() - moved > STALLED_S:
                raise processes.DemoFailed(
                    f"The workers made {made} of {wanted} steps, and none for {STALLED_S:.0f} s; "
                    "look at their logs"
                )
            if made and self._is_time_to_evaluate():
                self._evaluate(self._model.pull())
            time.sleep(EVALUATE_EVERY_S)

    def _is_time_to_evaluate(self) -> bool:
        last = self._evaluations[-1]["seconds"] if self._evaluations else 0.0
        return time.monotonic() - self._began > last + EVALUATE_EVERY_S

    def _evaluate(self, parameters: stepwell.Parameters) -> float:
        accuracy = network.accuracy(parameters, self._images.test_images, self._images.test_labels)
        seconds = time.monotonic() - self._began
        self._evaluations.append(
            {"version": parameters.version, "seconds": seconds, "accuracy": accuracy}
        )
        return accuracy

    def _finish(self, pushes: int) -> Outcome:
        options = self._options
        parameters = self._model.pull()
        accuracy = self._evaluate(parameters)
        checkpoint = self._model.checkpoint()
        place = self._folder / "data" / options.model / "checkpoints" / checkpoint.id
        seconds = self._seconds()
        outcome = Outcome(
            accuracy=accuracy,
            pushes=len(self._records) or pushes,
            pushes_per_s=round((len(self._records) or pushes) / seconds, 1),
            version=parameters.version,
            seconds=round(seconds, 3),
            checkpoint=checkpoint.id if options.url else str(place),
            picture=str(self._folder / "training.png"),
            parameters_sha256=sha256_of(parameters),
            mode=options.mode,
            optimizer=options.optimizer,
            workers=options.workers,
            seed=options.seed,
            chaos=None if self._chaos is None else self._chaos.counts,
            chaos_picture=None if self._chaos is None else str(self._folder / "chaos.png"),
        )
        self._draw(outcome)
        (self._folder / "result.json").write_text(json.dumps(outcome.to_json(), indent=1) + "\n")
        return outcome

    def _seconds(self) -> float:
        """From the first push to the last; of workers elsewhere, from the first look on."""
        if self._records:
            began = min(record.began for record in self._records)
            return max(record.ended for record in self._records) - began
        return self._evaluations[-1]["seconds"] - self._evaluations[0]["seconds"] or 1e-9

    def _draw(self, outcome: Outcome) -> None:
        pushes: list[picture.Push] = [
            {
                "version": record.version,
                "seconds": record.ended - self._began,
                "worker": record.worker,
                "loss": record.loss,
            }
            for record in self._records
        ]
        summary = (
            f"{outcome.workers} workers, {outcome.mode}, {outcome.optimizer}: "
            f"{outcome.pushes:,} pushes in {outcome.seconds:.1f} s, "
            f"held-out accuracy {outcome.accuracy:.1%}"
        )
        history = picture.History(pushes, self._evaluations)
        picture.draw(outcome.picture, history, "Handwritten digits through Stepwell", summary)
        if self._chaos is not None and outcome.chaos_picture is not None:
            lanes.draw(outcome.chaos_picture, lanes.seen(self._model, self._chaos.deeds), summary)


def sha256_of(parameters: stepwell.Parameters) -> str:
    """Return the hash of all parameters' bytes, in layout order."""
    digest = hashlib.sha256()
    for array in parameters.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
