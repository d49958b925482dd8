"""A TCP proxy on loopback that can be told to misbehave: the network between two processes."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from dataclasses import dataclass


@dataclass
class Weather:
    """What the network does now. Delays in seconds; chances are per piece of data."""

    lost: float = 0.0  # chance that the connection swallows everything from now on
    refused: bool = False  # connections are closed, new ones too
    delay: float = 0.0  # before every answer
    jitter: float = 0.0  # up to so much more
    late: float = 0.0  # before every request


class Gates:
    """The thread in which all gates of a stack live."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open(self, target: int) -> Gate:
        """A gate to a port of loopback."""
        return asyncio.run_coroutine_threadsafe(Gate.create(target), self._loop).result(5)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class Gate:
    """One listening port and its weather, which may change at any time."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.weather = Weather()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def create(cls, target: int) -> Gate:
        gate = cls(target)
        server = await asyncio.start_server(gate._carry, "127.0.0.1", 0)
        gate.port = server.sockets[0].getsockname()[1]
        return gate

    def fair(self) -> None:
        """Good weather again; what was swallowed stays swallowed."""
        self.weather = Weather()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.weather.refused:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        with suppress(OSError, ConnectionError):
            await asyncio.gather(
                self._pump(reader, back, is_answer=False), self._pump(there, writer, is_answer=True)
            )
        for end in (writer, back):
            end.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        swallowing = False
        while data := await source.read(65536):
            weather = self.weather
            if weather.refused:
                raise ConnectionResetError
            swallowing = swallowing or random.random() < weather.lost
            if swallowing:
                continue
            if is_answer and (weather.delay or weather.jitter):
                await asyncio.sleep(weather.delay + random.random() * weather.jitter)
            if not is_answer and weather.late:
                await asyncio.sleep(weather.late)
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError
