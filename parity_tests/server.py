"""An HTTP server on 127.0.0.1 that serves one file well, or badly in one of many ways."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_REQUESTS = 200
LONGEST_STALL = 3.0  # seconds


class BadServer(ThreadingHTTPServer):
    """Serves ``content`` under ``/<behaviour>/<name>``; counts requests and keeps their Range headers.

    ``files`` holds what ``/file/<name>`` serves.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.files = content, {}
        self.ranges: list[str | None] = []
        self.stop_stalling = threading.Event()

    def url(self, behaviour: str, name: str = "data.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/{name}"


@contextmanager
def serving(content: bytes = b"") -> Iterator[BadServer]:
    server = BadServer(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stop_stalling.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: BadServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        behaviour = self.path.split("/")[1]
        if len(server.ranges) > MOST_REQUESTS:
            self.send_error(500, "enough")
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            _BEHAVIOURS[behaviour](self)
        self.close_connection = True

    def start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def asked(self) -> int:
        """Where the range begins that is asked for, 0 without one."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    def serve(self, content: bytes, most: int | None = None, **headers: object) -> None:
        """The content from where it is asked, but only ``most`` bytes of what was announced."""
        begin = self.asked()
        if begin >= len(content) > 0:
            self.start(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        rest = content[begin:]
        headers = {"Content_Length": len(rest), **headers}
        if begin:
            self.start(206, Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}", **headers)
        else:
            self.start(200, **headers)
        self.wfile.write(rest[:most])


def _file(handler: _Handler) -> None:
    handler.serve(handler.server.files[handler.path.split("/")[-1].partition("?")[0]])


def _no_ranges(handler: _Handler) -> None:
    del handler.headers["Range"]
    handler.serve(handler.server.content)


def _cut_without_ranges(handler: _Handler) -> None:
    handler.start(Content_Length=len(handler.server.content))
    handler.wfile.write(handler.server.content[:5000])


def _stall(handler: _Handler) -> None:
    """Some of it, then silence."""
    handler.serve(handler.server.content, most=8000)
    handler.wfile.flush()
    handler.server.stop_stalling.wait(LONGEST_STALL)


def _trickle(handler: _Handler) -> None:
    handler.start(Content_Length=len(handler.server.content))
    until = time.monotonic() + LONGEST_STALL
    while time.monotonic() < until and not handler.server.stop_stalling.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def _flaky(handler: _Handler) -> None:
    if len(handler.server.ranges) <= 2:
        handler.start(503, Retry_After=0, Content_Length=0)
    else:
        handler.serve(handler.server.content)


def _changing(handler: _Handler) -> None:
    """Breaks off; then it is another version of the file."""
    if len(handler.server.ranges) == 1:
        handler.serve(handler.server.content, most=5000)
        handler.server.content = bytes(reversed(handler.server.content))
    else:
        handler.serve(handler.server.content)


def _unending(handler: _Handler) -> None:
    """No length announced, and more than there should be."""
    handler.start()
    for _ in range(100):
        handler.wfile.write(handler.server.content)


_BEHAVIOURS: dict[str, Callable[[_Handler], None]] = {
    "file": _file,
    "good": lambda handler: handler.serve(handler.server.content),
    "no_ranges": _no_ranges,
    "cut": lambda handler: handler.serve(handler.server.content, most=4000),
    "cut_without_ranges": _cut_without_ranges,
    "stall": _stall,
    "trickle": _trickle,
    "flaky": _flaky,
    "changing": _changing,
    "unending": _unending,
    "announces_more": lambda handler: handler.serve(
        handler.server.content, Content_Length=len(handler.server.content) + 1000
    ),
    "announces_less": lambda handler: handler.serve(handler.server.content, Content_Length=1000),
    "wrong": lambda handler: handler.serve(bytes(len(handler.server.content))),
    "gone": lambda handler: handler.start(404, Content_Length=0),
    "page": lambda handler: handler.serve(b"<html>sign in</html>", Content_Type="text/html; charset=utf-8"),
    "gzip": lambda handler: handler.serve(gzip.compress(handler.server.content), Content_Encoding="gzip"),
    "redirect": lambda handler: handler.start(302, Location="/good/data.bin", Content_Length=0),
    "loop": lambda handler: handler.start(302, Location="/loop/data.bin", Content_Length=0),
    "elsewhere": lambda handler: handler.start(302, Location="file:///etc/passwd", Content_Length=0),
    "other_range": lambda handler: handler.start(206, Content_Range="bytes 7-9/10", Content_Length=3),
}
