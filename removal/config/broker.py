"""How messages reach a worker: nothing that lies in a queue can end the worker that reads it.

Celery and kombu refuse much of what they cannot use, but not all. removal.config.celery puts the two transports in the
place of kombu's own, under the same URLs; RabbitMQ's gives and takes whole messages, and needs no other.
"""

import os
import random
import time
import uuid
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from pathlib import Path
from queue import Empty
from typing import Any

import structlog
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message
from kombu.transport import filesystem, redis, virtual
from kombu.utils.json import dumps, loads

log = structlog.get_logger()

# What reading something that is no message raises; a lost connection raises others.
UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, ContentDisallowed, DecodeError)


def _say_unreadable(error: Exception) -> None:
    # The type alone: an error's text may quote what could not be read.
    log.warning("message_unreadable", error=type(error).__name__)


class CarefulConsumer(Consumer):
    """Rejects a message that Celery cannot make a task of. Left alone, it would end one worker after the other."""

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], Any]:
        handle = super().create_task_handler(*arguments, **options)

        def on_task_received(message: Message) -> Any:
            try:
                return handle(message)
            except UNREADABLE as error:
                _say_unreadable(error)
                if not message.acknowledged:
                    message.reject_log_error(log, self.connection_errors)  # type: ignore[attr-defined]  # not in stubs

        return on_task_received


class _Careful(virtual.Transport):
    """Throws away what has not the shape of a message."""

    def _deliver(self, message: Any, queue: str | None) -> None:
        try:
            super()._deliver(message, queue)
        except UNREADABLE as error:
            _say_unreadable(error)


# --- a folder: the broker where none is named ---


def _write_whole(file: Path, text: str) -> None:
    """Write a file that has its name only once it is whole: nobody finds it empty (celery/kombu#1551)."""
    unfinished = file.with_name(f"{uuid.uuid4()}.unfinished")
    try:
        unfinished.write_text(text)
        unfinished.rename(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


class FolderChannel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # kombu's own name for it
        # Named so that they sort by age.
        _write_whole(Path(self.data_folder_out, f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"), dumps(payload))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for name in sorted(os.listdir(self.data_folder_in)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            file = Path(self.data_folder_in, name)
            try:
                content = file.read_bytes()
                file.unlink()  # it belongs to whoever is the first to do this
            except OSError:
                continue
            try:
                return loads(content.decode())
            except UNREADABLE as error:
                _say_unreadable(error)
        raise Empty

    def get_table(self, exchange: str) -> list[Any]:
        try:
            return list(super().get_table(exchange))
        except UNREADABLE as error:
            _say_unreadable(error)
            return []  # whoever consumes writes it anew

    def _queue_bind(self, exchange: str, routing_key: str | None, pattern: str | None, queue: str) -> None:
        file = self._exchange_file(exchange)  # type: ignore[attr-defined]  # newer than the stubs
        file.parent.mkdir(exist_ok=True)
        bound = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        with (file.parent / "lock").open("w") as lock:
            flock(lock, LOCK_EX)
            table = self.get_table(exchange)
            if bound not in table:
                _write_whole(file, dumps([bound, *table]))


class FolderTransport(_Careful, filesystem.Transport):
    Channel = FolderChannel

    @property
    def polling_interval(self) -> float:
        """Seconds between two looks. Never the same: of several workers, the same one would always be the first."""
        return self._polling_interval * random.uniform(0.5, 1.5)  # noqa: S311  # nothing secret

    @polling_interval.setter
    def polling_interval(self, seconds: float) -> None:
        self._polling_interval = seconds


# --- Redis, where whoever reaches it can put anything in the list that is our queue ---


class RedisChannel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in the stubs
        except ValueError as error:  # not JSON, or not even text
            _say_unreadable(error)
            raise Empty from None


class RedisTransport(_Careful, redis.Transport):
    Channel = RedisChannel
