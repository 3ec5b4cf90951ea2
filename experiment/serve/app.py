"""The service's addresses: the page, what programs ask, and how it is."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from errors import DataError, UsageError
from experiment.serve.answers import Asked
from experiment.serve.bodies import Limited
from experiment.serve.counters import Counted, Counters
from experiment.serve.engine import Engine
from experiment.serve.scored import Scored
from files import readable

PAGE = Path(__file__).with_name("page.html")
PATHS = ("/", "/models", "/predict", "/scored", "/scored/{number}", "/health", "/metrics")
AT_ONCE = 16  # requests with images that are read at once; the others wait
LONGEST_NAME = 200
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OF_PAGE = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def make_app(engine: Engine, scored: Scored, hosts: Sequence[str], most_bytes: int, most_images: int) -> FastAPI:
    """The application.

    Args:
        engine: with the models.
        scored: images that are scored beside requests.
        hosts: the names that it is asked under; empty: any.
        most_bytes, most_images: of a request.
    """
    counters, slots = Counters(), asyncio.Semaphore(AT_ONCE)

    def check_host(request: Request) -> None:
        if hosts and _host(request.headers.get("host", hosts[0])) not in hosts:
            raise HTTPException(400, f"this service is asked as {hosts[0]}, not under another name")

    app = FastAPI(dependencies=[Depends(check_host)], openapi_url=None)  # its pages of documentation need the network
    app.add_middleware(Limited, most=most_bytes)
    app.add_middleware(Counted, counters=counters, paths=PATHS)
    _answer_errors(app)

    async def done(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.wrap_future(engine.submit(function, *args))

    def count(name: str | None, told: dict[str, Any]) -> dict[str, Any]:
        model = next(iter(engine.finders)) if name is None else name
        counters.images[model, "anomalous" if told["decision"] else "normal"] += 1
        return told

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html", headers=OF_PAGE)

    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        return [_described(name, engine) for name in engine.finders]

    @app.post("/predict")
    async def predict(request: Request, asked: Annotated[Asked, Depends(_asked)]) -> dict[str, Any]:
        engine.finder(asked.model)
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(415, "expected multipart/form-data with an image as a file in it")
        async with slots, request.form(max_files=most_images, max_fields=most_images) as form:
            uploads = [own for _, own in form.multi_items() if isinstance(own, UploadFile)]
            if not uploads:
                raise HTTPException(400, "no image in the request: send it as a file of multipart/form-data")
            told = [await done(engine.of_upload, own.file, _shown(own.filename), asked) for own in uploads]
        return {"model": asked.model or next(iter(engine.finders)), "images": [count(asked.model, own) for own in told]}

    @app.get("/scored")
    async def rows(since: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        return scored.since(since)

    @app.get("/scored/{number}")
    async def one(number: int, asked: Annotated[Asked, Depends(_asked)]) -> dict[str, Any]:
        row = scored.row(number)
        engine.finder(asked.model)
        return await done(engine.of_file, Path(row.path), row.name, asked)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "models": list(engine.finders)}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _host(header: str) -> str:
    """The name in a request's head, without a port."""
    name = header.strip().lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


def _asked(
    model: str | None = None,
    threshold: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    pixel_threshold: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    min_area: Annotated[int, Query(ge=1)] = 1,
    regions: bool = True,
    map: bool = False,
    picture: bool = False,
) -> Asked:
    return Asked(model, threshold, pixel_threshold, min_area, regions, map, picture)


def _described(name: str, engine: Engine) -> dict[str, Any]:
    """What is told of a model."""
    model = engine.finder(name).model
    thresholds, known = model.thresholds, model.thresholds.false_alarms
    return {
        "name": name,
        "title": model.description.title,
        "detector": model.description.detector,
        "threshold": thresholds.image,
        "pixel_threshold": thresholds.pixel,
        "draws_maps": model.description.draws_maps,
        "said": thresholds.said,
        "false_alarms": None if known is None else known._asdict(),
    }


def _shown(name: str | None) -> str:
    """What an upload is called in answers: the last part of its name, which is never a path of this machine."""
    return readable((name or "").replace("\\", "/").rpartition("/")[2])[:LONGEST_NAME] or "image"


def _answer_errors(app: FastAPI) -> None:
    """Answer whatever goes wrong by one line, {"error": ...}."""

    def answered(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": " ".join(readable(text).split())}, status)

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        return answered(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answered(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(DataError)
    async def unreadable(_: Request, error: DataError) -> Response:
        return answered(422, str(error))

    @app.exception_handler(UsageError)
    async def unknown(_: Request, error: UsageError) -> Response:
        return answered(404, str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return answered(400, "the request ended too early")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answered(500, "a fault of the service: its standard error says more")
