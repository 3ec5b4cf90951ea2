"""The bodies of requests: read piece by piece, up to a limit, and to their end before a refusal is sent."""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import HTTPException

PATIENCE = 60.0  # seconds that a next piece is waited for
REFUSED_PATIENCE = 30.0  # seconds that the rest of what is refused is read for


class Limited:
    """An application that is given bodies of limited size.

    Whoever is refused while it still sends would see a broken connection and no answer: the rest is read, and thrown
    away piece by piece, before the answer is sent. Who waits for a "100 Continue" is answered at once.

    Args:
        app: the application.
        most: bytes of a request's body.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive, dict(scope["headers"]), self.most)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                await body.throw_away()
            await send(message)

        await self.app(scope, body.receive, answer)


class _Body:
    def __init__(self, receive: Any, headers: dict[bytes, bytes], most: int) -> None:
        self._receive = receive
        self._most = most
        length = headers.get(b"content-length", b"")
        self._declared = int(length) if length.isdigit() else 0
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"  # for what receive lets it have
        self._read = 0
        self.is_read = not self._declared and b"transfer-encoding" not in headers

    async def receive(self) -> Any:
        """The next piece.

        Raises:
            HTTPException: the body is too large, or no piece comes.
        """
        if self._declared > self._most:
            raise self._too_large()
        try:
            message = await asyncio.wait_for(self._receive(), None if self.is_read else PATIENCE)
        except asyncio.TimeoutError as error:
            raise HTTPException(408, f"the request did not go on for {PATIENCE:g} seconds") from error
        self._note(message)
        if self._read > self._most:
            raise self._too_large()
        return message

    async def throw_away(self) -> None:
        """Read what is left of a body that nobody wants."""
        if self.is_read or (self._waits and not self._read):
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_on(), REFUSED_PATIENCE)

    async def _read_on(self) -> None:
        while not self.is_read:
            self._note(await self._receive())

    def _note(self, message: Any) -> None:
        self._read += len(message.get("body", b""))
        self.is_read = self.is_read or not message.get("more_body", False)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._most / 1e6:g} MB (--max_upload of serve)")
