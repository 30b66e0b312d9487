"""GET /models, loading and unloading, GET /health: of both services at once."""

from typing import Any

from gristmill.classifier.v1 import loaded_model_pb2

from gateway import contract
from gateway.contract import Method
from gateway.dialect import Exchange
from gateway.errors import CallFailedError, reason_of
from gateway.modelnames import model_ref
from services.runtime import standard
from services.runtime.errors import (
    MODEL_NOT_FOUND,
    WRONG_TASK,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)

Json = dict[str, Any]
SERVICES = ("classifier", "generator")
LIST = {name: contract.method(name, "ListLoadedModels") for name in SERVICES}
LOAD = {name: contract.method(name, "LoadModel") for name in SERVICES}
UNLOAD = {name: contract.method(name, "UnloadModel") for name in SERVICES}
HEALTH = {
    name: Method(
        None,
        name,
        f"/{standard.HEALTH}/List",
        standard.HealthListRequest,
        standard.HealthListResponse,
        repeatable=True,
    )
    for name in SERVICES
}
_READY = loaded_model_pb2.LOAD_STATE_READY
_ABSENT = (WRONG_TASK, MODEL_NOT_FOUND)


async def models(exchange: Exchange) -> None:
    """GET /models: of both services."""
    found = []
    for name in SERVICES:
        request = LIST[name].request()
        response = await exchange.ask(LIST[name], request)
        found += [_model(one) for one in response.models]
    await exchange.reply(found)


def _model(one: Any) -> Json:
    return {
        "name": one.model,
        "version": one.version,
        "loaded": one.state == _READY,
        "device": one.device,
    }


async def load(exchange: Exchange) -> None:
    """POST /models/{name}/load: by whichever service the model is for."""
    response = await _wherever(exchange, LOAD)
    await exchange.reply(_model(response.model))


async def unload(exchange: Exchange) -> None:
    """DELETE /models/{name}: it is unloaded, and stays in the registry."""
    await _wherever(exchange, UNLOAD)
    await exchange.reply({"name": exchange.variables["name"], "loaded": False})


async def _wherever(exchange: Exchange, methods: dict[str, Method]) -> Any:
    ref = model_ref(exchange.variables["name"])
    first, second = (methods[name] for name in SERVICES)
    try:
        return await exchange.ask(first, first.request(model=ref))
    except CallFailedError as error:
        if reason_of(error.status) not in _ABSENT:
            raise
    return await exchange.ask(second, second.request(model=ref))


async def health(exchange: Exchange) -> None:
    """GET /health: open to all; the device only for those who may list models."""
    healthy, serving = True, set()
    for name in SERVICES:
        try:
            response = await exchange.ask(HEALTH[name], HEALTH[name].request())
        except CallFailedError:
            healthy = False
            continue
        states = {key: one.status for key, one in response.statuses.items()}
        up = standard.HealthCheckResponse.SERVING
        healthy = healthy and states.get("") == up
        serving |= {
            key.removeprefix("models/")
            for key, state in states.items()
            if key.startswith("models/") and key.count("/") == 1 and state == up
        }
    body = {
        "status": "healthy" if healthy else "unhealthy",
        "models_loaded": sorted(serving),
        "device": await _devices(exchange),
    }
    await exchange.reply(body, 200 if healthy else 503)


async def _devices(exchange: Exchange) -> str | None:
    """What models run on here; None for who may not know, and where nobody says."""
    found: set[str] = set()
    try:
        exchange.metadata = await exchange.admitted(LIST["classifier"])
        for name in SERVICES:
            response = await exchange.ask(LIST[name], LIST[name].request())
            found |= {one.device for one in response.models if one.state == _READY}
    except (Unauthenticated, PermissionDenied, QuotaExceeded, CallFailedError):
        return None
    return ", ".join(sorted(found)) or None
