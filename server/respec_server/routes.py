"""The HTTP routes of a server with a drafter: push, look, roll back."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from respec_server.access import require_admin
from respec_server.push_metrics import PushMetrics
from respec_server.refusal import Refusal
from respec_server.schemas import (
    ErrorAnswer,
    PushAnswer,
    PushOptions,
    RollbackAnswer,
    RollbackOptions,
    SchemaAnswer,
    Sha256,
    Source,
    StateAnswer,
)
from respec_server.service import DrafterService, Engine
from sglang_respec.config import RespecConfig

MAX_JSON_BYTES = 1 << 20
CLIENT_LEFT = 499  # nobody hears it; the name is nginx's

REFUSALS = {
    400: "Not a safetensors file, a wrong hash, or wrong parameters",
    401: "The administrator's key is missing or wrong",
    403: "Not from this machine, or a path outside the folder",
    404: "No drafter, no such file, or a version whose weights are not kept",
    408: "The sender stalled",
    409: "Another push is under way or came first",
    413: "Too large",
    415: "A compressed body",
    422: "Tensors that do not fit; all of them are listed",
    503: "Staging failed",
    507: "No room",
}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with its references filled in: OpenAPI looks for them elsewhere."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {k: _inlined(v, definitions) for k, v in schema.items() if k != "$defs"}


_SOURCE = Source.model_json_schema()
PUSH_BODY = {
    "requestBody": {
        "required": True,
        "description": "A safetensors file under any content type but application/json; or JSON "
        "that names a file of the server's or a process group.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": _inlined(_SOURCE, _SOURCE["$defs"])},
        },
    }
}


class RefusingRoute(APIRoute):
    """Turns every refusal into its status and one body, whatever app it is mounted on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refusal as refusal:
                return _refused(refusal)
            except (RequestValidationError, ValidationError) as error:
                return _refused(Refusal(400, "bad_request", _first_error(error)))
            except HTTPException as error:  # FastAPI's own, for bytes that are no JSON text
                return _refused(Refusal(error.status_code, "bad_request", f"{error.detail}."))
            except ClientDisconnect:
                return Response(status_code=CLIENT_LEFT)

        return answer


def make_router(engine: Engine, config: RespecConfig, *, admin_api_key: str | None) -> APIRouter:
    """The routes for one engine. Raises `RespecError` if a configured folder cannot be used."""
    service = DrafterService(engine, config, PushMetrics())
    atexit.register(service.close)
    router = APIRouter(route_class=RefusingRoute, tags=["drafter"])

    def admin(request: Request) -> None:
        require_admin(request.headers, request.client.host if request.client else None,
                      admin_api_key)  # fmt: skip

    @router.post(
        "/update_drafter",
        response_model=PushAnswer,
        dependencies=[Depends(admin)],
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507),
        openapi_extra=PUSH_BODY,
    )
    async def update_drafter(
        request: Request,
        options: Annotated[PushOptions, Query()],
        content_sha256: Annotated[Sha256 | None, Header()] = None,
    ) -> PushAnswer:
        """Swap the drafter's weights between two decode steps, or refuse and change nothing."""
        if "content-encoding" in request.headers:
            raise Refusal(415, "compressed", "Send the body without Content-Encoding.")
        if _media_type(request) != "application/json":
            return await service.push_body(
                request.stream(), options, size=_length(request), sha256=content_sha256
            )
        source = Source.model_validate_json(await _json_body(request))
        if (source.path is None) == (source.group is None):
            raise Refusal(400, "bad_request", "Give one of path and group.")
        if source.path is not None:
            return await service.push_path(source.path, options, sha256=content_sha256)
        assert source.group is not None
        return await service.push_group(source.group, options)

    @router.get("/drafter", response_model=StateAnswer, responses=_refusals(401, 404))
    async def drafter() -> Any:
        """Versions, what each was worth, the guard, and what became of the pushes."""
        return await service.state()

    @router.get("/drafter/schema", response_model=SchemaAnswer, responses=_refusals(401, 404))
    async def drafter_schema() -> Any:
        """The tensors a push must hold, with their whole shapes."""
        return (await service.schema()).to_dict()

    @router.post(
        "/drafter/rollback",
        response_model=RollbackAnswer,
        dependencies=[Depends(admin)],
        responses=_refusals(400, 401, 403, 404, 409, 503),
    )
    async def rollback(
        options: Annotated[RollbackOptions | None, Body()] = None,
    ) -> RollbackAnswer:
        """Bring an earlier drafter back, as a new version; without `to` the one before."""
        return await service.rollback(options.to if options is not None else None)

    return router


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorAnswer, "description": REFUSALS[code]} for code in codes}


def _refused(refusal: Refusal) -> JSONResponse:
    problems = [
        {"tensor": p.tensor, "problem": p.problem, "expected": p.expected, "got": p.got}
        for p in refusal.problems
    ]
    error = {"code": refusal.code, "message": str(refusal), "problems": problems}
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
    return JSONResponse({"error": error}, refusal.status, headers)


def _first_error(error: RequestValidationError | ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(each) for each in first["loc"])
    return f"{where}: {first['msg']}."


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _length(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


async def _json_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise Refusal(413, "too_large", f"JSON bodies are at most {MAX_JSON_BYTES} bytes.")
    return bytes(body)
