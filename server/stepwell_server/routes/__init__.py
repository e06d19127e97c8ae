"""The REST resources: one file a resource. `ROUTERS` is what the application includes."""

from fastapi import APIRouter

from stepwell_server.routes import (
    checkpoints,
    consistency,
    gradients,
    health,
    models,
    optimizer,
    parameters,
    workers,
)

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    models.router,
    parameters.router,
    gradients.router,
    optimizer.router,
    consistency.router,
    workers.router,
    checkpoints.router,
)
