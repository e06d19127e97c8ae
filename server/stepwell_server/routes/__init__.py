"""The REST resources: one file a resource. `ROUTERS` is what the application includes."""

from fastapi import APIRouter

from stepwell_server.routes import (
    checkpoints,
    consistency,
    dashboard,
    gradients,
    health,
    history,
    memory,
    metrics,
    models,
    optimizer,
    parameters,
    state,
    workers,
)

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    dashboard.router,
    metrics.router,
    models.router,
    parameters.router,
    gradients.router,
    memory.router,
    optimizer.router,
    consistency.router,
    workers.router,
    history.router,
    checkpoints.router,
    state.router,
)
