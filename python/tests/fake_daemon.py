"""A daemon that misbehaves on request. The behaviour of the real daemon is tested with the real one."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Answers to a request: takes the handler, and returns whether it has answered.
Fault = Callable[["Handler"], bool]


class FakeDaemon(ThreadingHTTPServer):
    """Serves `/v1/files/…` from a dictionary by path. Faults are taken one after the other, before each answer."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.etag = '"sha256:first"'
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.connections = 0
        self.sockets: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.connections += 1
        self.sockets.append(connection)
        return connection, address

    def end_connections(self) -> None:
        """Ends the kept connections, as a server does with idle ones."""
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.sockets.clear()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FakeDaemon

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.faults and self.server.faults.pop(0)(self):
            return
        if self.path == "/v1/version":
            self.send(200, json.dumps({"version": "0", "api": 1}).encode())
            return
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.problem(404, "not_found", f"{self.path} is not there")
            return
        asked = self.headers.get("Range")
        if asked is None or self.headers.get("If-Range", self.server.etag) != self.server.etag:
            self.send(200, content, ETag=self.server.etag)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(content), int(last) + 1 if last else len(content))
        if start >= len(content):
            self.send(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
            return
        where = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}", "ETag": self.server.etag}
        self.send(206, content[start:end], **where)

    do_HEAD = do_GET  # noqa: N815

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def problem(self, status: int, kind: str, message: str) -> None:
        self.send(status, json.dumps({"error": {"kind": kind, "message": message}}).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def fake_daemon(files: dict[str, bytes]) -> Iterator[FakeDaemon]:
    """Runs a fake daemon."""
    server = FakeDaemon(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
