"""The web application: images in, scores, labels and heat maps out; health, metrics, the model's card and a page."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sctune import __version__
from sctune.deploy.model import Model, score_digest
from sctune.serve.auth import Guard
from sctune.serve.batching import Batcher, BatchScore
from sctune.serve.limits import RETRY_S, Bodies, Limits, RequestError, read_body
from sctune.serve.metrics import CONTENT_TYPE, Metrics
from sctune.serve.page import SECURITY, docs_page, drop_page
from sctune.serve.uploads import JSON_KEY, Upload, find_uploads
from sctune.urls import without_secrets

FORMAT_VERSION = 1


class ImageResult(BaseModel):
    """One image: what was found, or `error` and nothing else."""

    name: str = Field(description="File name as it was sent, or its place in the request")
    score: float | None = Field(None, description="Higher is more anomalous")
    label: str | None = Field(None, description="anomalous above the threshold, else normal; null without a threshold")
    brightness: float | None = Field(None, description="Mean of the pixels as the model takes them, 0 to 255")
    contrast: float | None = Field(None, description="Standard deviation of these pixels")
    width: int | None = Field(None, description="Of the image as it was sent, in pixels")
    height: int | None = None
    note: str | None = Field(None, description="What the image holds beside what is scored; only where there is such")
    heat_map: str | None = Field(None, description="The image under its heat map, a PNG as base64; with heat_map=true")
    error: str | None = None


class ModelIdentity(BaseModel):
    """Which model answers. address: as it was opened; digest: SHA-256 of configuration and weights."""

    address: str
    study: str | None
    trial: str | None
    digest: str


class Prediction(BaseModel):
    format_version: int = FORMAT_VERSION
    model: ModelIdentity
    threshold: float | None
    results: list[ImageResult]


class ImageError(BaseModel):
    name: str
    error: str


class Refusal(BaseModel):
    """results: one for each image of a request in which none can be read."""

    error: str
    results: list[ImageError] | None = None


class ModelDocument(BaseModel):
    """The model for people. meta: what its maker wrote down; threshold_line: the threshold in words."""

    format_version: int = FORMAT_VERSION
    model: ModelIdentity
    threshold: dict[str, Any] | None
    threshold_line: str | None
    image_size: int
    resize: str
    meta: dict[str, Any]
    card: str | None


@dataclass(frozen=True)
class Access:
    """What auth.Guard needs. token_digest: None for no token; local_names: None where others can reach the server."""

    token_digest: bytes | None = None
    local_names: Sequence[str] | None = ()


class Service:
    """A model with what counts and bounds its use. address: as people know it."""

    def __init__(self, model: Model, address: str, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.bodies = Bodies(limits)
        self.batcher = Batcher(model, limits)
        study, trial = model.meta.get("study"), model.meta.get("trial")
        self.identity = ModelIdentity(
            address=address,
            study=None if study is None else str(study),
            trial=None if trial is None else str(trial),
            digest=score_digest(model),
        )
        self.metrics = Metrics(model, __version__, self.identity.digest)
        self.threshold = None if model.threshold is None else model.threshold.value

    async def predict(self, request: Request, with_heat: bool) -> Prediction:
        """Raises RequestError; of several images only what is wrong with all of them is an error of the request."""
        with self.bodies.room() as room:
            uploads = await find_uploads(request.headers, await read_body(request, room), self.limits)
            good = [(upload.name, upload.content) for upload in uploads if upload.error is None]
            scored = iter(await self.batcher.score(good, with_heat))
            found = [upload.error if upload.error is not None else next(scored) for upload in uploads]
        results = [self._result(*pair) for pair in zip(uploads, found, strict=True)]
        if all(result.error is not None for result in results):
            text = results[0].error if len(results) == 1 else f"none of {len(results)} images: {results[0].error}"
            raise RequestError(400, str(text), [{"name": one.name, "error": str(one.error)} for one in results])
        return Prediction(model=self.identity, threshold=self.threshold, results=results)

    def document(self) -> ModelDocument:
        model = self.model
        plain = {name: value for name, value in model.meta.items() if isinstance(value, str | int | float | bool)}
        return ModelDocument(
            model=self.identity,
            threshold=None if model.threshold is None else model.threshold.to_dict(),
            threshold_line=None if model.threshold is None else model.threshold.line(),
            image_size=model.config.data.image_size,
            resize=model.config.data.resize,
            meta={name: without_secrets(value) if isinstance(value, str) else value for name, value in plain.items()},
            card=model.parts.card,
        )

    def _result(self, upload: Upload, found: BatchScore | str) -> ImageResult:
        if isinstance(found, str):
            self.metrics.image(None, None)
            return ImageResult(name=upload.name, error=found)
        label = self.model.labels(found.score)[0]
        self.metrics.image(found.score, label)
        measured = {"score": found.score, "label": label, **found.image.measures}
        if found.image.note is not None:
            measured["note"] = found.image.note
        if found.heat_map is not None:
            measured["heat_map"] = base64.b64encode(found.heat_map).decode()
        # what is not set is left out of the answer
        return ImageResult(name=upload.name, **measured)


_BODY: Mapping[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": [JSON_KEY],
                "additionalProperties": False,
                "properties": {JSON_KEY: {"type": "array", "items": {"type": "string", "format": "byte"}}},
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Refusal, "description": text}
    for code, text in {
        400: "No image in the body, or none that can be read",
        401: "The token is missing or another one",
        403: "A page of another site asks, or under another name of the host",
        408: "The body did not arrive in time",
        413: "Larger than the limit, or too many images",
        415: "A content type that holds no images",
        422: "A document or parameter of another form",
        503: "Too many images wait; Retry-After says when to ask again",
    }.items()
}


def make_app(service: Service, access: Access) -> ASGIApp:
    """The application, its metrics outermost: they count what is refused too."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.stop()

    # FastAPI's own page of documentation fetches its scripts from the internet
    app = FastAPI(
        title="sctune", version=__version__, lifespan=life, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    _add_predict(app, service)
    _add_about(app, service)
    _add_pages(app)
    _add_refusals(app)
    paths = {"/predict", "/health", "/ready", "/metrics", "/model", "/", "/docs", "/openapi.json"}
    return Counted(Guard(app, access.token_digest, access.local_names), service.metrics, paths)


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        response_model_exclude_unset=True,
        responses=_REFUSALS,
        openapi_extra={"requestBody": dict(_BODY)},
        summary="Score images",
    )
    async def predict(request: Request, heat_map: bool = False) -> Prediction:
        """Files of a form, base64 in JSON or one raw image; an image that cannot be read has its own `error`."""
        return await service.predict(request, heat_map)


def _add_about(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the server lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: _REFUSALS[503]}, summary="Whether it takes images now")
    async def ready() -> dict[str, str]:
        if service.batcher.is_full:
            raise RequestError(503, "as many images wait as may")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, summary="Numbers in Prometheus' text format")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(service.batcher.waiting), media_type=CONTENT_TYPE)

    @app.get("/model", summary="The model: threshold, card, licence")
    async def model() -> ModelDocument:
        return service.document()


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(drop_page(), headers=SECURITY)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=SECURITY)


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, problem: RequestError) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_S)} if problem.status == 503 else None
        each = {"results": list(problem.results)} if problem.results else {}
        return JSONResponse({"error": str(problem), **each}, problem.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> JSONResponse:
        text = {404: "no such page; see /docs", 405: f"{request.method} is not for this page; see /docs"}
        return JSONResponse({"error": text.get(problem.status_code, problem.detail)}, problem.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def bug(_: Request, problem: Exception) -> JSONResponse:
        # raised again behind this answer, so that the traceback is in the server's log
        return JSONResponse({"error": f"the server failed ({type(problem).__name__}); its log says where"}, 500)


class Counted:
    """ASGI: counts every answer by path and status, paths that do not exist under one name."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.perf_counter() - start)
