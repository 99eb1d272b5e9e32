"""Reads kits over the daemon's HTTP interface (docs/api.md)."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, cast
from urllib.parse import quote, urlencode, urlsplit

from . import _reference
from ._backend import File, changed
from ._fork import renew_in_child
from .errors import (
    BadContentError,
    DaemonError,
    KitfsError,
    KitfsTimeoutError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
    error_of_kind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._types import Comparison, Entry, IndexInfo, KitInfo, MountStatus

logger = logging.getLogger("kitfs")

# Loopback answers a connection at once; another host of the network may need a resolver and a retransmission.
_CONNECT_TIMEOUT_SECONDS = 10.0
# Idle connections that are kept: as many as one `cat_ranges` uses. The daemon has 128 connections for all processes.
_MOST_IDLE = 8
# The longest JSON answer. A listing of a million files has about 200 MB.
_MOST_JSON_BYTES = 1 << 30
# The longest answer with an error: one message.
_MOST_ERROR_BYTES = 1 << 16
_API = 1

_FIRST_ERROR = 400
_OK, _PARTIAL, _RANGE_NOT_SATISFIABLE = 200, 206, 416
_BY_STATUS: dict[int, type[KitfsError]] = {
    400: UsageError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


class Answer(NamedTuple):
    """An answer whose body was read."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Pool:
    """Connections to one server. Threads share them; each request has one to itself."""

    def __init__(self, url: str, timeout: float | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"`{url}` is no address of a daemon: write http://127.0.0.1:PORT")
        try:
            self._port = parts.port
        except ValueError:
            raise UsageError(f"`{url}` has no valid port") from None
        self._host = parts.hostname
        self._is_tls = parts.scheme == "https"
        self._timeout = timeout
        self.url = url
        self.prefix = parts.path.rstrip("/")
        self._renew()
        renew_in_child(self)

    def _renew(self) -> None:
        """See `Renewable`."""
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Closes the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        most_bytes: int | None = None,
        check: Callable[[int, http.client.HTTPMessage], None] | None = None,
    ) -> Answer:
        """Sends a request and reads the whole answer, which may have `most_bytes` at most.

        `check` sees status and headers before the body is read, and may raise an error in its place.

        A kept connection may have been closed by the server meanwhile. The request is then sent again, over a new
        one: `GET` and `HEAD` change nothing.
        """
        while True:
            connection, is_kept = self._take()
            try:
                answer = self._exchange(connection, method, target, headers, most_bytes, check)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                connection.close()
                if is_kept:
                    self.close()
                    continue
                raise DaemonError(f"the daemon at {self.url} ended the connection: {error}") from error
            except socket.timeout:
                connection.close()
                raise KitfsTimeoutError(
                    f"the daemon at {self.url} was silent for {self._timeout} s: give a longer timeout"
                ) from None
            except http.client.IncompleteRead as error:
                connection.close()
                raise DaemonError(
                    f"the daemon at {self.url} broke off after {len(error.partial)} bytes; its log has the reason"
                ) from None
            except http.client.HTTPException as error:
                connection.close()
                raise DaemonError(f"the daemon at {self.url} gave a broken answer: {error!r}") from error
            except KitfsError:
                connection.close()
                raise
            except OSError as error:
                connection.close()
                raise DaemonError(f"the daemon at {self.url} cannot be reached: {error}") from error
            except BaseException:
                # KeyboardInterrupt: the rest of the answer is still on its way.
                connection.close()
                raise
            self._put(connection)
            return answer

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        most_bytes: int | None,
        check: Callable[[int, http.client.HTTPMessage], None] | None,
    ) -> Answer:
        if connection.sock is None:
            connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout)
        connection.request(method, self.prefix + target, headers=dict(headers))
        response = connection.getresponse()
        length = response.length
        if response.status >= _FIRST_ERROR:
            most_bytes = _MOST_ERROR_BYTES
        elif check is not None:
            check(response.status, response.headers)
        if most_bytes is not None and length is not None and length > most_bytes:
            raise BadContentError(f"the daemon at {self.url} sends {length} bytes, more than {most_bytes}")
        # Without a length, one byte more than allowed tells that there are too many.
        body = response.read(None if length is not None or most_bytes is None else most_bytes + 1)
        if most_bytes is not None and len(body) > most_bytes:
            raise BadContentError(f"the daemon at {self.url} sends more than {most_bytes} bytes")
        return Answer(response.status, response.headers, body)

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        timeout = _CONNECT_TIMEOUT_SECONDS
        if self._timeout is not None:
            timeout = min(timeout, self._timeout)
        return kind(self._host, self._port, timeout=timeout), False

    def _put(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:
            return
        with self._lock:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()


class HttpBackend:
    """Reads kits over `/v1/`."""

    name = "http"

    def __init__(self, url: str, timeout: float | None) -> None:
        self._pool = Pool(url, timeout)
        self.url = self._pool.url

    def check(self) -> None:
        """Checks that a daemon answers whose interface this package knows."""
        version = self._json("/v1/version")
        if not isinstance(version, dict) or version.get("api") != _API:
            raise DaemonError(f"{self.url} speaks another version of the interface: {version!r}; update `kitfs`")

    def entries(self, reference: str, path: str, *, recursive: bool = False) -> list[Entry]:
        """See `Backend`."""
        query = "?recursive=true" if recursive else ""
        return cast("list[Entry]", self._json(f"/v1/entries/{_place(reference, path)}{query}"))

    def file(self, reference: str, path: str) -> File:
        """See `Backend`."""
        answer = self._get("HEAD", f"/v1/files/{_place(reference, path)}", {})
        if answer.status != _OK:
            # An answer to HEAD has no body, so that to GET has the message.
            self._fail(self._get("GET", f"/v1/files/{_place(reference, path)}", _range(0, 1)), path)
            raise KitfsError(f"{self.url} answers HEAD with {answer.status}, and GET without a failure")
        _check_file(answer.headers, path or reference)
        size = answer.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise DaemonError(f"{self.url} does not say how long `{path}` is")
        if "ETag" not in answer.headers:
            raise DaemonError(f"{self.url} gives no ETag for `{path}`")
        return File(int(size), answer.headers["ETag"], reference)

    def read(self, reference: str, path: str, start: int, end: int | None, *, etag: str | None = None) -> bytes:
        """See `Backend`."""
        if end is not None and end <= start:
            return b""
        is_whole = start == 0 and end is None
        headers = {} if is_whole else _range(start, end)
        if etag is not None and not is_whole:
            headers["If-Range"] = etag

        def check(status: int, found: http.client.HTTPMessage) -> None:
            _check_file(found, path or reference)
            if etag is not None and found.get("ETag", etag) != etag:
                raise changed(reference, path)
            if not is_whole:
                self._check_range(status, found, start, end, path)

        answer = self._get("GET", f"/v1/files/{_place(reference, path)}", headers, check=check)
        if answer.status == _RANGE_NOT_SATISFIABLE:
            return b""
        self._fail(answer, path)
        return answer.body

    def info(self, reference: str) -> KitInfo | IndexInfo:
        """See `Backend`."""
        return cast("KitInfo | IndexInfo", self._json(f"/v1/info/{_place(reference, '').rstrip('/')}"))

    def diff(self, before: str, after: str, path: str, *, content: bool = False) -> Comparison:
        """See `Backend`."""
        query = {"from": _reference.absolute(before), "to": _reference.absolute(after)}
        if path:
            query["path"] = path
        if content:
            query["content"] = "true"
        return cast("Comparison", self._json("/v1/diff?" + urlencode(query, errors="surrogateescape", quote_via=quote)))

    def status(self) -> list[MountStatus]:
        """See `Backend`."""
        return cast("list[MountStatus]", self._json("/v1/mounts"))

    def close(self) -> None:
        """Closes the idle connections."""
        self._pool.close()

    def _get(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        most_bytes: int | None = None,
        check: Callable[[int, http.client.HTTPMessage], None] | None = None,
    ) -> Answer:
        logger.debug("%s %s%s %s", method, self.url, target, headers)
        return self._pool.request(method, target, headers, most_bytes=most_bytes, check=check)

    def _json(self, target: str) -> Any:
        answer = self._get("GET", target, {}, most_bytes=_MOST_JSON_BYTES)
        self._fail(answer, target)
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise DaemonError(f"{self.url}{target} is no JSON: {error}") from None

    def _fail(self, answer: Answer, what: str) -> None:
        """Raises the error that the answer is, if it is one."""
        if answer.status in (_OK, _PARTIAL):
            return
        try:
            error = json.loads(answer.body)["error"]
            kind, message = str(error["kind"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            error = _BY_STATUS.get(answer.status, KitfsError)
            raise error(f"{self.url} answers `{what}` with {answer.status}") from None
        raise error_of_kind(kind, message)

    def _check_range(
        self, status: int, headers: http.client.HTTPMessage, start: int, end: int | None, path: str
    ) -> None:
        """Checks that the answer is the range of the request, or its part before the end of the file."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if status != _PARTIAL or found is None:
            raise DaemonError(f"{self.url} ignores the range of a request for `{path}`")
        first, last, size = (int(number) for number in found.groups())
        wanted = size if end is None else min(end, size)
        if (first, last + 1) != (start, wanted) or headers.get("Content-Length") != str(wanted - start):
            raise DaemonError(f"{self.url} sends another range of `{path}` than bytes {start} to {wanted}")


def _check_file(headers: http.client.HTTPMessage, path: str) -> None:
    """Checks that the answer has the bytes of a file, and not the entries of a directory."""
    if headers.get_content_type() == "application/json" and "ETag" not in headers:
        raise UsageError(f"`{path}` is a directory, not a file")


def _place(reference: str, path: str) -> str:
    return _reference.quoted(_reference.absolute(reference), path)


def _range(start: int, end: int | None) -> dict[str, str]:
    return {"Range": f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"}
