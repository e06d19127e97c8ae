"""What a model is, in plain values for people and clients."""

from __future__ import annotations

from typing import Any

from stepwell_core.definition import Definition
from stepwell_core.engine import Engine


def describe(engine: Engine) -> dict[str, Any]:
    """Return what a model is, and at which version; see `HostedModel.read`."""
    counters, definition = engine.counters, engine.definition
    return {
        **_described(definition),
        "incarnation": engine.incarnation,
        "version": counters.version,
        "parameters_version": counters.parameters_version,
        "iterations": counters.iterations,
        "loss_scale": engine.loss_scale,
        "open_sessions": len(engine.ledger.open_workers),
    }


def _described(definition: Definition) -> dict[str, Any]:
    values = definition.to_json()
    del values["created_with"], values["created_consistency"]
    return {
        **values,
        "layout": definition.layout.hash,
        "parameters": definition.layout.size,
        "bytes": definition.layout.nbytes,
        "slots": [*definition.rule.slots],
    }
