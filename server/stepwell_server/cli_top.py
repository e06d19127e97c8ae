"""`stepwell top`: what a server does at the moment, again and again, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from stepwell_core.errors import ModelNotFound

from stepwell_server.cli_options import AsJson, Url
from stepwell_server.cli_questions import Questions
from stepwell_server.cli_status import age_shown, bytes_shown
from stepwell_server.cli_tables import table, width_of_stdout

if TYPE_CHECKING:  # not needed by a server that starts
    from rich.console import RenderableType
    from rich.table import Table

LEAST_INTERVAL_S, MOST_INTERVAL_S = 0.2, 3600.0
RECENT_S = 60.0
"""Staleness is that of the steps of the last minute."""

NUMBERS = ("version", "versions/s", "pushes/s", "rate", "staleness", "workers")
LEAST_NEEDED = ("optimizer", "mode", "staleness", "rate", "pushes/s", "workers")
"""Columns that a narrow terminal goes without, this one first."""

POINTS = 200  # of a history; enough for a mean, and thinned out so that no peak is missed

Interval = Annotated[
    float,
    typer.Option(
        min=LEAST_INTERVAL_S, max=MOST_INTERVAL_S, help="Seconds from one look to the next."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("top")(top)


def top(
    url: Url = None,
    interval_s: Interval = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show models, versions a second, workers, staleness and MB/s, until Ctrl-C.

    With --json a look is one line, one object. Rates need two looks, so --once takes two.
    """
    with Questions(url) as questions:
        looks = Looks(questions)
        looks.look()
        if once:
            time.sleep(interval_s)
            _print(looks.look(), as_json)
        elif as_json or not has_screen():
            while True:
                time.sleep(interval_s)
                _print(looks.look(), as_json)
        else:
            _watch(looks.look, interval_s)


def has_screen() -> bool:
    """Return whether stdout can be painted again; else each look is printed below the last."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


@dataclass(frozen=True)
class Sight:
    """What of a model was seen at a look, to tell rates by it at the next.

    Attributes:
        time: Of `time.monotonic`.
        incarnation: Of the model; rates are of one.
        version: Of the model.
        pushes: Numbers that each worker used, by worker and epoch.
    """

    time: float
    incarnation: str
    version: int
    pushes: Mapping[tuple[str, int], int]


class Looks:
    """Looks at one server, each compared with the one before.

    Args:
        questions: To the server.
        clock: Seconds.
    """

    def __init__(self, questions: Questions, clock: Callable[[], float] = time.monotonic) -> None:
        self._questions = questions
        self._clock = clock
        self._before: dict[str, Sight] = {}

    def look(self) -> dict[str, Any]:
        """Return what there is now, in plain values; rates are None where there is no look before.

        Raises:
            StepwellError: The server does not answer, or refuses.
        """
        status = self._questions.ask("/readyz", "status")["status"]
        models = self._questions.ask("/v1/models", "models")["models"]
        seen = {}
        for model in models:
            with contextlib.suppress(ModelNotFound):  # it was deleted just now
                seen[model["name"]] = self._model(model)
        self._before = {name: sight for name, (sight, _) in seen.items()}
        return {
            "url": self._questions.url,
            "status": status,
            "time": self._questions.now_s,
            "models": [told for _, told in seen.values()],
        }

    def _model(self, model: dict[str, Any]) -> tuple[Sight, dict[str, Any]]:
        path = f"/v1/models/{model['name']}"
        workers = self._questions.ask(f"{path}/workers", "workers")["workers"]
        since = self._questions.now_s - RECENT_S
        history = f"{path}/history?points={POINTS}&since={since}"
        series = self._questions.ask(history, "series")["series"]
        pushes = {(w["worker"], w["epoch"]): w["last_sequence"] + 1 for w in workers}
        sight = Sight(self._clock(), model["incarnation"], model["version"], pushes)
        rates = _rates(self._before.get(model["name"]), sight)
        per_s = rates["pushes_per_s"]
        stalenesses = series.get("staleness_mean", {"value": []})["value"]
        told = {
            "name": model["name"],
            "version": model["version"],
            "optimizer": model["optimizer"]["class_name"],
            "consistency": model["consistency"]["mode"],
            **rates,
            "bytes_per_s": None if per_s is None else per_s * model["bytes"],
            "staleness": sum(stalenesses) / len(stalenesses) if stalenesses else None,
            "workers": [_worker(worker) for worker in workers if worker["is_open"]],
        }
        return sight, told


def _rates(before: Sight | None, now: Sight) -> dict[str, float | None]:
    """Return versions and pushes a second between two looks; None if there are not two of one."""
    if before is None or before.incarnation != now.incarnation or now.time <= before.time:
        return {"versions_per_s": None, "pushes_per_s": None}
    passed_s = now.time - before.time
    pushes = sum(count - before.pushes.get(key, 0) for key, count in now.pushes.items())
    return {
        "versions_per_s": (now.version - before.version) / passed_s,
        "pushes_per_s": pushes / passed_s,
    }


def _worker(worker: dict[str, Any]) -> dict[str, Any]:
    names = ("last_seen_s", "last_push_s", "is_waiting")  # an older server does not say
    return {"worker": worker["worker"], **{name: worker.get(name) for name in names}}


def _print(told: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(told))
        return
    console = Console(markup=False, highlight=False, width=width_of_stdout())
    console.print(_screen(told, console.width))


def _watch(look: Callable[[], dict[str, Any]], interval_s: float) -> None:
    """Repaint one screen; a server that goes away is said to be, and looked for again."""
    from rich.console import Console
    from rich.live import Live
    from stepwell_core.errors import StepwellError

    console = Console(markup=False, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(_screen(look(), console.width), refresh=True)
            except StepwellError as error:
                live.update(f"{error.message}\n\nCtrl-C ends.", refresh=True)
            time.sleep(interval_s)


def _screen(told: dict[str, Any], width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    moment = time.strftime("%H:%M:%S", time.localtime(told["time"]))
    head = Text(f"{told['url']}  {told['status']}  {moment}\n")
    if not told["models"]:
        return Group(head, Text("there are no models yet"))
    return Group(head, _models(told["models"], width), Text(), _workers(told["models"], width))


def _models(models: list[dict[str, Any]], width: int) -> Table:
    columns = ("model", "version", "versions/s", "pushes/s", "rate", "staleness", "workers")
    rows = [
        (
            model["name"],
            str(model["version"]),
            _number(model["versions_per_s"]),
            _number(model["pushes_per_s"]),
            "-" if model["bytes_per_s"] is None else f"{bytes_shown(model['bytes_per_s'])}/s",
            _number(model["staleness"]),
            str(len(model["workers"])),
            model["consistency"],
            model["optimizer"],
        )
        for model in models
    ]
    return table((*columns, "mode", "optimizer"), rows, width, numbers=NUMBERS, may_go=LEAST_NEEDED)


def _workers(models: list[dict[str, Any]], width: int) -> Table:
    rows = [
        (
            worker["worker"],
            model["name"],
            "waiting" if worker["is_waiting"] else "here",
            _age(worker["last_seen_s"]),
            _age(worker["last_push_s"]),
        )
        for model in models
        for worker in model["workers"]
    ]
    columns = ("worker", "model", "state", "last seen", "last push")
    return table(columns, rows, width, numbers=(), may_go=("last seen", "state"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{age_shown(seconds)} ago"
