"""/metrics, /healthz and /readyz over plain HTTP, for Prometheus and process managers.

A thread of its own serves them; each answer is computed in the event loop, so a loop that hangs makes
/healthz fail, as it should.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ANSWER_SECONDS = 5.0
_CONNECTION_SECONDS = 5.0  # a silent client must not hold its thread for ever

Answer = tuple[int, str, bytes]
Responder = Callable[[str], Awaitable[Answer]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's error."""


class HttpServer:
    """Serves GET requests through `respond`, which runs in the event loop."""

    def __init__(self, host: str, port: int, respond: Responder) -> None:
        loop = asyncio.get_running_loop()

        class Handler(BaseHTTPRequestHandler):
            timeout = _CONNECTION_SECONDS

            def do_GET(self) -> None:
                try:
                    future = asyncio.run_coroutine_threadsafe(_call(respond, self.path), loop)
                    status, content_type, body = future.result(_ANSWER_SECONDS)
                except TimeoutError:
                    status, content_type, body = 503, "text/plain", b"the event loop does not answer\n"
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not logged."""

        self._server = _Server((host, port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


async def _call(respond: Responder, path: str) -> Answer:
    return await respond(path)
