"""The HTTP client against a daemon that misbehaves."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import kitfs
from fake_daemon import FakeDaemon, Handler, fake_daemon
from kitfs import _http

if TYPE_CHECKING:
    from collections.abc import Iterator

KIT = "h.io/model:v1"
CONTENT = bytes(range(256)) * 8


@pytest.fixture
def server() -> Iterator[FakeDaemon]:
    with fake_daemon({"a": CONTENT, "b": CONTENT[::-1], "empty": b""}) as server:
        yield server


@pytest.fixture
def client(server: FakeDaemon) -> kitfs.Client:
    client = kitfs.Client(server.url, timeout=60)
    # The first request looks for the version of the interface; a fault is for those behind it.
    assert client.backend == "http"
    return client


def answer(status: int, body: bytes = b"", **headers: str) -> object:
    def fault(handler: Handler) -> bool:
        handler.send(status, body, **{name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def test_ranges_are_those_of_the_file(client: kitfs.Client) -> None:
    assert client.read(KIT, "a") == CONTENT
    assert client.read(KIT, "a", 5, 9) == CONTENT[5:9]
    assert client.read(KIT, "a", 2000) == CONTENT[2000:]
    assert client.read(KIT, "a", 2000, 10**9) == CONTENT[2000:]
    assert client.read(KIT, "a", 10**9, 10**9 + 1) == b""
    assert client.read(KIT, "a", 7, 7) == b""
    assert client.read(KIT, "empty") == client.read(KIT, "empty", 0, 10) == b""


def test_a_connection_is_kept(client: kitfs.Client, server: FakeDaemon) -> None:
    for _ in range(5):
        client.read(KIT, "a", 0, 1)
    assert server.connections == 1


def test_a_kept_connection_that_ended_is_replaced(client: kitfs.Client, server: FakeDaemon) -> None:
    client.read(KIT, "a", 0, 1)
    server.end_connections()
    assert client.read(KIT, "a", 1, 2) == CONTENT[1:2]
    assert server.connections == 2


def test_a_daemon_that_ends_each_connection_is_an_error(client: kitfs.Client, server: FakeDaemon) -> None:
    def end(handler: Handler) -> bool:
        handler.close_connection = True
        return True

    server.faults = [end] * 3
    with pytest.raises(kitfs.DaemonError, match="ended the connection"):
        client.read(KIT, "a")


def test_an_answer_that_breaks_off_is_an_error(client: kitfs.Client, server: FakeDaemon) -> None:
    def break_off(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Length", "10")
        handler.send_header("Content-Range", f"bytes 0-9/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(b"12345")
        handler.close_connection = True
        return True

    server.faults = [break_off] * 2
    with pytest.raises(kitfs.DaemonError, match="broke off after 5 bytes"):
        client.read(KIT, "a", 0, 10)
    server.faults = []
    assert client.read(KIT, "a", 0, 10) == CONTENT[:10]


@pytest.mark.parametrize(
    "fault",
    [
        answer(200, CONTENT),
        answer(206, CONTENT[1:11], Content_Range=f"bytes 1-10/{len(CONTENT)}"),
        answer(206, CONTENT[:9], Content_Range=f"bytes 0-8/{len(CONTENT)}"),
        answer(206, CONTENT[:9], Content_Range=f"bytes 0-9/{len(CONTENT)}"),
        answer(206, CONTENT[:10]),
        answer(206, CONTENT[:10], Content_Range="bytes 0-9/*"),
    ],
)
def test_another_range_than_the_wanted_one_is_refused(client: kitfs.Client, server: FakeDaemon, fault: object) -> None:
    server.faults = [fault]  # type: ignore[list-item]
    with pytest.raises(kitfs.DaemonError, match="range"):
        client.read(KIT, "a", 0, 10)


def test_a_file_that_changed_is_no_mixture_of_two_versions(client: kitfs.Client, server: FakeDaemon) -> None:
    file = client.file(KIT, "a")
    assert tuple(file) == (len(CONTENT), '"sha256:first"', KIT)
    assert client.read(KIT, "a", 0, 10, etag=file.etag) == CONTENT[:10]
    server.etag, server.files["a"] = '"sha256:second"', b"other" * 100
    for start, end in ((0, 10), (20, None), (0, None)):
        with pytest.raises(kitfs.ChangedError, match="open it again"):
            client.read(KIT, "a", start, end, etag=file.etag)


def test_an_open_file_stays_with_its_version(client: kitfs.Client, server: FakeDaemon) -> None:
    with client.open(KIT, "a", block_size=16) as file:
        assert file.read(10) == CONTENT[:10]
        server.etag, server.files["a"] = '"sha256:second"', b"other" * 100
        with pytest.raises(kitfs.ChangedError):
            file.read(100)


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "usage", kitfs.UsageError),
        (404, "not_found", kitfs.NotFoundError),
        (403, "forbidden", kitfs.UnauthorizedError),
        (403, "unauthorized", kitfs.UnauthorizedError),
        (503, "unavailable", kitfs.UnavailableError),
        (502, "bad_content", kitfs.BadContentError),
        (507, "cache", kitfs.CacheError),
        (500, "internal", kitfs.KitfsError),
        (500, "a kind of a later version", kitfs.KitfsError),
    ],
)
def test_failures_have_their_kinds(
    client: kitfs.Client, server: FakeDaemon, status: int, kind: str, error: type[kitfs.KitfsError]
) -> None:
    def fail(handler: Handler) -> bool:
        handler.problem(status, kind, f"why: {kind}")
        return True

    for ask in (lambda: client.read(KIT, "a"), lambda: client.file(KIT, "a"), lambda: client.entries(KIT)):
        server.faults = [fail] * 2
        with pytest.raises(error, match=f"why: {kind}"):
            ask()
        server.faults = []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b"\xff" * 100])
def test_a_failure_without_words_has_the_kind_of_its_status(
    client: kitfs.Client, server: FakeDaemon, body: bytes
) -> None:
    server.faults = [answer(404, body)]  # type: ignore[list-item]
    with pytest.raises(kitfs.NotFoundError, match="404"):
        client.read(KIT, "a")


def test_an_answer_that_is_no_json_is_an_error(client: kitfs.Client, server: FakeDaemon) -> None:
    server.faults = [answer(200, b"[{")]  # type: ignore[list-item]
    with pytest.raises(kitfs.DaemonError, match="no JSON"):
        client.entries(KIT)


def test_answers_have_a_limit(client: kitfs.Client, server: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_MOST_JSON_BYTES", 10)
    server.faults = [answer(200, b"[" + b" " * 100 + b"]")]  # type: ignore[list-item]
    with pytest.raises(kitfs.BadContentError, match="102 bytes"):
        client.entries(KIT)

    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b" " * 100)
        handler.close_connection = True
        return True

    server.faults = [endless]
    with pytest.raises(kitfs.BadContentError, match="more than 10"):
        client.entries(KIT)


def test_a_silent_daemon_is_given_up(server: FakeDaemon) -> None:
    client = kitfs.Client(server.url, timeout=0.5)
    assert client.backend == "http"
    release = threading.Event()

    def silence(handler: Handler) -> bool:
        release.wait(60)
        handler.close_connection = True
        return True

    server.faults = [silence]
    try:
        with pytest.raises(kitfs.KitfsTimeoutError, match=r"0\.5 s") as caught:
            client.read(KIT, "a")
        assert isinstance(caught.value, TimeoutError)
    finally:
        release.set()


def test_a_daemon_that_is_not_there_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(kitfs.DaemonError, match=f":{port} cannot be reached"):
            kitfs.Client(f"http://127.0.0.1:{port}").info(KIT)


def test_another_version_of_the_interface_is_refused(server: FakeDaemon) -> None:
    server.faults = [answer(200, b'{"api": 2}')]  # type: ignore[list-item]
    with pytest.raises(kitfs.DaemonError, match="another version"):
        kitfs.Client(server.url).info(KIT)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "http://x/?a=b", "http://x:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(kitfs.UsageError):
        kitfs.Client(url).info(KIT)


def test_the_address_may_come_from_the_environment(server: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITFS_URL", server.url)
    assert kitfs.Client().read(KIT, "a", 0, 3) == CONTENT[:3]


def test_threads_share_a_client(client: kitfs.Client) -> None:
    def read(start: int) -> bool:
        return client.read(KIT, "a", start, start + 9) == CONTENT[start : start + 9]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(400)))


def test_a_forked_child_has_connections_of_its_own(client: kitfs.Client, server: FakeDaemon) -> None:
    client.read(KIT, "a", 0, 1)
    # A thread of the parent holds every lock at the fork.
    pool = client._choose()._pool  # type: ignore[attr-defined]
    with client._lock, pool._lock:
        child = os.fork()
        if child == 0:
            is_right = all(client.read(KIT, "a", at, at + 5) == CONTENT[at : at + 5] for at in range(100))
            os._exit(0 if is_right else 1)
    for at in range(100):
        assert client.read(KIT, "b", at, at + 5) == CONTENT[::-1][at : at + 5]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert server.connections == 2


def test_a_client_travels_between_processes(client: kitfs.Client) -> None:
    assert pickle.loads(pickle.dumps(client)).read(KIT, "a", 0, 3) == CONTENT[:3]
    filesystem = pickle.loads(pickle.dumps(client.filesystem()))
    assert filesystem.cat_file(f"{KIT}/a", 0, 3) == CONTENT[:3]
