"""A proxy for any TCP stream that misbehaves when it is told to: what stands between two of our processes in a test.

It runs on a thread of its own. What is switched holds for connections that are open already, too.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Upstream = tuple[str, int] | Path

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, whatever is still to be sent
BLOCK = 65536


class Mode(StrEnum):
    PASS = "pass"
    DELAY = "delay"  # each block waits
    SILENT = "silent"  # accepts, and holds every byte until the mode changes
    DROP = "drop"  # accepts, and throws every byte away; connections that lost some are reset when the mode changes
    REFUSE = "refuse"  # nobody listens, and open connections are reset


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)
        self.passed = 0
        self.lost_bytes = False
        self.committing = False

    def reset(self) -> None:
        for writer in self.writers:
            end: socket.socket | None = writer.get_extra_info("socket")
            if end is not None and end.family != socket.AF_UNIX and end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxy:
    """Listens on loopback and passes on to ``upstream``: an address, or the path of a Unix socket."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.delay_seconds = 0.0
        self.commits_cut = 0
        self.connections = 0
        self.port = 0
        self._mode = Mode.PASS
        self._commits_to_cut = 0
        self._bytes_to_cut: int | None = None
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._run(self._listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def mode(self) -> Mode:
        return self._mode

    def switch(self, mode: Mode, *, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self._run(self._switch(mode))

    def cut_after_commits(self, count: int = 1) -> None:
        """Reset the next connections whose COMMIT has been carried out, in place of the server's answer to it."""
        self._commits_to_cut = count

    def cut_after_bytes(self, count: int | None) -> None:
        """Reset each connection once so many more bytes have passed, in both directions together."""
        for link in list(self._links):
            link.passed = 0
        self._bytes_to_cut = count

    def reset_all(self) -> None:
        """Reset every connection that is open now."""
        self._run(self._reset_all())

    def close(self) -> None:
        self._run(self._switch(Mode.REFUSE))
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]  # the same one ever after

    async def _switch(self, mode: Mode) -> None:
        self._mode = mode
        for link in list(self._links):
            if link.lost_bytes:
                link.reset()
        if mode is Mode.SILENT:
            self._may_pass.clear()
        else:
            self._may_pass.set()
        if mode is Mode.REFUSE:
            if self._server:
                self._server.close()
                self._server = None
            await self._reset_all()
        elif self._server is None:
            await self._listen()

    async def _finish(self) -> None:
        """Let what was reset come to its end; what waits for something that will not come is ended."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            _, waiting = await asyncio.wait(rest, timeout=0.5)
            for task in waiting:
                task.cancel()
        await asyncio.sleep(0.01)  # what was aborted is closed on the loop's next turn

    async def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._may_pass.wait()
        if self._mode is Mode.REFUSE:
            _Link(to_client, to_client).reset()
            return
        try:
            if isinstance(self.upstream, Path):
                from_server, to_server = await asyncio.open_unix_connection(str(self.upstream))
            else:
                from_server, to_server = await asyncio.open_connection(*self.upstream)
        except OSError:
            _Link(to_client, to_client).reset()
            return
        link = _Link(to_client, to_server)
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, from_client, to_server, is_from_client=True)),
            asyncio.create_task(self._pump(link, from_server, to_client, is_from_client=False)),
        ]
        self._pumps.update(pumps)
        await asyncio.wait(pumps)
        self._pumps.difference_update(pumps)
        self._links.discard(link)
        for writer in link.writers:
            writer.close()

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_from_client: bool
    ) -> None:
        try:
            while data := await source.read(BLOCK):
                await self._may_pass.wait()
                if self._mode is Mode.DELAY:
                    await asyncio.sleep(self.delay_seconds)
                if self._mode is Mode.DROP:
                    link.lost_bytes = True
                    continue
                if link.committing and not is_from_client:
                    # The server has answered, so it has committed; the client will never hear of it.
                    self.commits_cut += 1
                    link.reset()
                    return
                if is_from_client and self._commits_to_cut and b"COMMIT" in data:
                    self._commits_to_cut -= 1
                    link.committing = True
                target.write(data)
                await target.drain()
                link.passed += len(data)
                if self._bytes_to_cut is not None and link.passed > self._bytes_to_cut:
                    link.reset()
                    return
            if target.can_write_eof():
                target.write_eof()
        except OSError:
            link.reset()
