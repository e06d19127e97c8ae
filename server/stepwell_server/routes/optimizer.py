"""The optimizer of a model: look at it, change hyperparameters live."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from stepwell_core import keras_config

from stepwell_server import bodies
from stepwell_server.model import HostedModel
from stepwell_server.routes.access import PREFIX, TheModel, answer
from stepwell_server.rules import optimizer_tag

router = APIRouter(tags=["optimizer"])


@router.get(PREFIX + "/optimizer")
async def get_optimizer(request: Request, model: TheModel) -> Response:
    """Return the optimizer as Keras serializes it."""
    return _described(request, model)


@router.patch(PREFIX + "/optimizer")
async def set_hyperparameters(request: Request, model: TheModel) -> Response:
    """Change hyperparameters from the next step on: `{"learning_rate": 0.0001}`.

    With `If-Match` the change is made only if nobody else changed the optimizer in between.
    """
    values = keras_config.hyperparameters(
        type(model.definition.rule), await bodies.read_fields(request)
    )
    await model.rules.set_hyperparameters(values, request.headers.get("if-match"))
    return _described(request, model)


def _described(request: Request, model: HostedModel) -> Response:
    definition = model.definition
    return answer(
        request,
        keras_config.serialize(definition.optimizer),
        headers={"ETag": optimizer_tag(definition)},
    )
