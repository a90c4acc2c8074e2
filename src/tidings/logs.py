"""Structured logs: one line per event, never a message text, a token, a query or a name.

Modules log through `structlog.get_logger()`; what libraries log through `logging` arrives here
too, as its logger's name and the kind of its exception only, since their texts may quote what
clients sent. Exceptions are logged as their types and the places they passed, without texts.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from tidings.config import LogForm

LINES_WAITING_MAX = 10_000
"""Lines that wait for a slow reader of the log; further ones are dropped and counted."""
FLUSH_INTERVAL_S = 0.05
CLOSE_TIMEOUT_S = 1.0
PLACES_MAX = 30
"""Innermost places of an exception that are logged."""
GROUP_MAX = 5
"""Exceptions of a group that are logged."""


class Stream(Protocol):
    """Where lines go: standard error, or a buffer in tests."""

    def write(self, text: str, /) -> Any:
        """Take a text of whole lines."""

    def flush(self) -> Any:
        """Hand it on."""


class LineWriter:
    """Writes lines from a thread of its own, so that a reader that stopped never stops the loop.

    Lines come out in order, within FLUSH_INTERVAL_S and at the latest with `close`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._is_closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Take a line, or drop and count it when too many wait."""
        if len(self._waiting) >= LINES_WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(line)
        if not self._wake.is_set():
            self._wake.set()

    debug = info = warning = error = critical = exception = msg

    def close(self) -> None:
        """Write what waits; give up on a reader that takes nothing for CLOSE_TIMEOUT_S."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_closing or self._waiting:
            self._wake.wait()
            if not self._is_closing:
                time.sleep(FLUSH_INTERVAL_S)
            self._wake.clear()
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._dropped:
                lines.append(f'{{"event":"lines_dropped","count":{self._dropped}}}')
                self._dropped = 0
            if lines:
                try:
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()
                except (OSError, ValueError):
                    return  # nobody reads any more; msg() stays bounded


class _Bridge(logging.Handler):
    """Brings what libraries log into our lines, without their texts."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        report = log.error if record.levelno >= logging.ERROR else log.warning
        report("library", logger=record.name, place=record.funcName, exc_info=record.exc_info)


def describe_exception(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Replace `exc_info` by the exception's type, the types that caused it and its places.

    Of a group each exception is told, too, GROUP_MAX at most.
    """
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event.update(_described(error))
    return event


def _described(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-PLACES_MAX:]
    told: dict[str, Any] = {
        "exception": type(error).__name__,
        "places": [
            f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}"
            for frame in frames
        ],
    }
    cause = error.__cause__ or error.__context__
    if cause is not None:
        told["cause"] = type(cause).__name__
    if isinstance(error, BaseExceptionGroup):
        told["exceptions"] = [_described(each) for each in error.exceptions[:GROUP_MAX]]
    return told


def _json(event: dict[str, Any], **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


def configure_command() -> None:
    """For a command, whose standard output is for results: warnings alone, on standard error."""
    structlog.configure(
        processors=[describe_exception, structlog.dev.ConsoleRenderer(colors=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def configure(form: LogForm, stream: Stream) -> LineWriter | None:
    """Send this process's logs to the stream. Close the writer at the end; None when off."""
    if form == "off":
        structlog.configure(processors=[_drop], logger_factory=structlog.ReturnLoggerFactory())
        logging.getLogger().handlers = [logging.NullHandler()]
        return None
    if form == "auto":
        is_terminal = getattr(stream, "isatty", lambda: False)()
        form = "console" if is_terminal else "json"
    writer = LineWriter(stream)
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_json)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=True)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            describe_exception,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Bridge(logging.WARNING)]
    root.setLevel(logging.WARNING)
    return writer


def _drop(_logger: object, _name: str, _event: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent
