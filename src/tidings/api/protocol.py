"""HTTP below the web application: what is not even a request is answered by a problem, too."""

from __future__ import annotations

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from tidings.api.replies import SECURITY_HEADERS, error_reply
from tidings.errors import TidingsError, TooLarge, ValidationFailed

HEAD_LINE_BYTES_MAX = 16 * 1024
"""The longest request line and the longest header: the longest cursor and token fit."""


class Runner(web.AppRunner):
    """Runs a web application whose every reply is its own, also to what is not HTTP."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_LINE_BYTES_MAX,
            **made._kwargs,
        )


class _Server(web.Server):
    """Makes the protocol of each connection."""

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """One HTTP connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to what could not be read, after which the connection is closed.

        What it was is not logged: it may be anything, a token among them.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("The reply has begun already.") from exc
        if status >= 500:
            self.log_exception("A request was not answered.", exc_info=exc)
            error: TidingsError = TidingsError("Something went wrong.")
        elif isinstance(exc, LineTooLong):
            error = TooLarge(f"A line of a request's head has at most {HEAD_LINE_BYTES_MAX} bytes.")
        else:
            error = ValidationFailed("This is not HTTP/1.1 as RFC 9112 has it.")
        response = error_reply(error)
        response.headers.update(SECURITY_HEADERS)
        response.force_close()
        return response
