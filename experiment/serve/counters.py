"""What has been asked and answered, counted, in the text format that Prometheus reads."""

import time
from collections import Counter
from typing import Any

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Counters:
    """Requests and their seconds by path, and images by model and decision."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.within: Counter[tuple[str, float]] = Counter()

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request that was answered."""
        self.requests[path, status] += 1
        self.seconds[path] += seconds
        self.within.update((path, bucket) for bucket in BUCKETS if seconds <= bucket)

    def text(self) -> str:
        """All of it."""
        lines = _head("simplenet_requests_total", "counter", "Requests answered.")
        of_path: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'simplenet_requests_total{{path="{path}",status="{status}"}} {count}')
            of_path[path] += count
            errors[path] += count * (status >= 400)
        lines += _head("simplenet_errors_total", "counter", "Requests answered with an error.")
        lines += [f'simplenet_errors_total{{path="{path}"}} {count}' for path, count in errors.items()]
        name = "simplenet_request_seconds"
        lines += _head(name, "histogram", "Seconds from a request to its answer.")
        for path, count in of_path.items():
            within = [(f"{bucket:g}", self.within[path, bucket]) for bucket in BUCKETS]
            lines += [f'{name}_bucket{{path="{path}",le="{le}"}} {own}' for le, own in [*within, ("+Inf", count)]]
            lines.append(f'{name}_sum{{path="{path}"}} {self.seconds[path]:.6f}')
            lines.append(f'{name}_count{{path="{path}"}} {count}')
        lines += _head("simplenet_images_total", "counter", "Images scored for requests.")
        for (model, decision), count in sorted(self.images.items()):
            label = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'simplenet_images_total{{model="{label}",decision="{decision}"}} {count}')
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


class Counted:
    """An application of which every request is counted.

    Args:
        app: the application.
        counters: what counts.
        paths: those that are told apart.
    """

    def __init__(self, app: Any, counters: Counters, paths: tuple[str, ...]) -> None:
        self.app = app
        self.counters = counters
        self.paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = next((own for own in self.paths if _is_of(scope["path"], own)), "other")
            self.counters.count(path, status, time.perf_counter() - start)


def _is_of(path: str, own: str) -> bool:
    """Whether a path is one of those that a route stands for."""
    start, brace, _ = own.partition("{")
    return path.startswith(start) if brace else path == own
