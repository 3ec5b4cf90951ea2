"""serve: a page and an interface for programs, of trained models on this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detection.description import EACH
from errors import Interrupted, UsageError
from experiment.machine.device import choose_device
from experiment.machine.memory import one_line_when_full
from experiment.model_config import ServeConfig
from experiment.show.names import Names
from experiment.use.finding import Finder
from experiment.use.latency import warm_up
from experiment.use.unused import refuse_unused_weights
from methods import load

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

EXTRA = "requirements-serve.txt"
PACKAGES = ("fastapi", "uvicorn", "python_multipart")
ADVICE = "give fewer models, or choose another --gpu"
WAITING = 2048  # connections that are not taken yet
PATIENCE = 5  # seconds that requests have at the end


def serve(config: ServeConfig) -> int:
    """Serve models until Ctrl-C.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: packages that are missing, a port in use, no model, a model of a table, no folder.
        DataError: a model that cannot be used, or no memory.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}: pip install -r {EXTRA}")
    with closing(listening(config.host, config.port)) as own, service(config) as app:
        port = own.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        click.echo(f"Serving on http://{host}:{port}/ until Ctrl-C", err=True)
        if not _is_local(config.host):
            click.echo(f"Whoever reaches {config.host} can use it: there is no password", err=True)
        with suppress(Interrupted):  # it has no other end
            server(app).run(sockets=[own])
    return 0


def server(app: FastAPI) -> Server:
    """What answers requests by an application, and says nothing but its own faults."""
    import uvicorn  # late, as all of these packages: other commands do without

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # of what is sent, its sender is told
    more = {"server_header": False, "access_log": False, "log_level": "error", "lifespan": "off"}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=PATIENCE, **more))


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: the port is in use, or this machine has no such host.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(kind)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such host ({getattr(error, 'strerror', error)})") from error
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
        own.listen(WAITING)
    except OSError as error:
        own.close()
        raise UsageError(
            f"--port {port} at {host}: {error.strerror}; choose another --port (0: one that is free)"
        ) from error
    return own


@contextmanager
def service(config: ServeConfig) -> Iterator[FastAPI]:
    """The application, with its models loaded and its folders begun.

    Raises:
        UsageError, DataError: as serve.
    """
    from experiment.serve.app import make_app
    from experiment.serve.engine import Engine
    from experiment.serve.scored import Scored

    with one_line_when_full(ADVICE):
        finders = _finders(config)
    engine = Engine(finders)
    scored = Scored(engine)
    try:
        with one_line_when_full(ADVICE):
            for finder in finders.values():
                engine.submit(warm_up, finder.model, config.warm_up).result()
        if config.folder is not None:
            scored.take_folder(config.folder)
        if config.watch is not None:
            scored.watch(config.watch)
        hosts = ("localhost", "127.0.0.1", "::1", config.host.lower()) if _is_local(config.host) else ()
        yield make_app(engine, scored, hosts, config.max_upload * 1_000_000, config.max_images)
    finally:
        scored.stop()
        engine.close()


def _finders(config: ServeConfig) -> dict[str, Finder]:
    """The models by their folders' names, which are numbered where two are the same."""
    device, names, found = choose_device((config.gpu,)), Names(), {}
    for folder in config.models:
        model = load(folder, device, config.backbone_weights)
        refuse_unused_weights(model, config.backbone_weights)
        if model.table is not None:
            raise UsageError(f"'{folder}' is a model of a table, and serve is of images: use predict")
        if model.description.mask_of_interest == EACH:
            raise UsageError(f"'{folder}' wants a mask of interest of every image, and serve has none: use predict")
        name = str(names.take(Path(folder.resolve().name)))
        found[name] = Finder(model, folder, config.max_pixels)
    return found


def _is_local(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
