"""The client: finds the daemon, and reads kits by HTTP or by the command."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from typing import IO, TYPE_CHECKING, Any, Callable, TypeVar, cast

from ._backend import DEFAULT_TIMEOUT_SECONDS
from ._command import Command, CommandBackend
from ._fork import renew_in_child
from ._http import HttpBackend
from ._mount import Mount
from ._reference import decoded
from .errors import DaemonError, UnauthorizedError, UsageError, read_only

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._backend import Backend, File
    from ._types import Comparison, Entry, IndexInfo, KitInfo, MountStatus, WarmedFolder, WarmReport
    from .filesystem import KitfsFileSystem

logger = logging.getLogger("kitfs")

T = TypeVar("T")

# How long the choice of the command stands. A daemon may start with HTTP meanwhile, or end. Looking for it takes a run
# of the command, a few hundredths of a second.
_COMMAND_STANDS_SECONDS = 10.0


class Client:
    """Reads kits, mounts them, and asks the daemon.

    `url` is the address of a daemon (`kitfs daemon start --listen 127.0.0.1:PORT`). Without it the client takes
    `KITFS_URL`, or asks `kitfs daemon status` for the address; where the daemon has none, the client runs the command
    for each call.

    `command` is the program, `cache_dir` its cache folder, and `options` are further options of the command for
    registries, such as `["--plain-http"]`. With `options` the client always runs the command, because the daemon's
    HTTP interface has no such options.

    `timeout` is how many seconds a call waits for the daemon or the command; `None` waits for ever.

    A client may be used by several threads, in forked children, and may be pickled.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        command: str = "kitfs",
        cache_dir: str | os.PathLike[str] | None = None,
        options: Sequence[str] = (),
        timeout: float | None = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        if isinstance(options, str):
            raise UsageError(f"options is the text {options!r}: give a list of options")
        self._given = (
            url,
            command,
            None if cache_dir is None else os.fspath(cache_dir),
            tuple(options),
            timeout,
        )
        self._timeout = timeout
        self._command = Command(command, cache_dir=cache_dir, options=options, timeout=timeout)
        self._url = url or os.environ.get("KITFS_URL") or None
        if options and url:
            raise UsageError("options are for the command, and url is for HTTP: give one of them")
        if options:
            self._url = None
        self._backend: Backend | None = None
        self._chosen_at = 0.0
        self._renew()
        renew_in_child(self)

    def _renew(self) -> None:
        """See `Renewable`."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _client, self._given

    def __repr__(self) -> str:
        return f"<kitfs.Client {self._url or self._command.program}>"

    # --- reading ---

    def entries(self, reference: str, path: str = "", *, recursive: bool = False) -> list[Entry]:
        """The entries of a directory of a kit, or that of the file or symlink at `path`.

        Paths begin at the kit's root, and are texts as `os.fsdecode` makes them.
        """
        found = self._ask(lambda backend: backend.entries(reference, path, recursive=recursive))
        for entry in found:
            entry["path"] = decoded(entry["path"])
            if isinstance(entry["kind"], dict):
                entry["kind"] = {name: decoded(target) for name, target in entry["kind"].items()}
        return found

    def file(self, reference: str, path: str) -> File:
        """Size and ETag of a file. The ETag is its digest where that is known."""
        return self._ask(lambda backend: backend.file(reference, path))

    def read(
        self, reference: str, path: str, start: int = 0, end: int | None = None, *, etag: str | None = None
    ) -> bytes:
        """The bytes `start..end` of a file, cut at its end.

        With the `etag` of an earlier `file`, raises `ChangedError` where the tag names another version by now.
        """
        if start < 0 or (end is not None and end < 0):
            raise UsageError(f"bytes {start} to {end}: offsets are not negative")
        return self._ask(lambda backend: backend.read(reference, path, start, end, etag=etag))

    def info(self, reference: str) -> KitInfo | IndexInfo:
        """The Kitfile and the layers of a kit; the kits of an index."""
        return self._ask(lambda backend: backend.info(reference))

    def diff(self, before: str, after: str, path: str = "", *, content: bool = False) -> Comparison:
        """The differences between two versions of a kit, or of the file or directory `path` in them.

        kitfs compares digests and reads no file. Where nothing tells, a change has the kind `maybe`; with `content`
        kitfs then compares the bytes, which it may have to download.
        """
        compared = self._ask(lambda backend: backend.diff(before, after, path, content=content))
        for change in compared["changes"]:
            change["path"] = decoded(change["path"])
            if "from" in change:
                change["from"] = decoded(change["from"])
        if "missing" in compared:
            compared["missing"] = [decoded(path) for path in compared["missing"]]
        return compared

    def status(self) -> list[MountStatus]:
        """The mounts of the daemon; none where no daemon runs."""
        return self._ask(lambda backend: backend.status())

    # --- files ---

    def filesystem(self) -> KitfsFileSystem:
        """The fsspec file system with the options of this client."""
        from .filesystem import KitfsFileSystem  # noqa: PLC0415

        url, command, cache_dir, options, timeout = self._given
        return KitfsFileSystem(url, command=command, cache_dir=cache_dir, options=options, timeout=timeout)

    def open(
        self,
        reference: str,
        path: str,
        mode: str = "rb",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        block_size: int | None = None,
        cache_type: str = "blockcache",
        cache_options: Mapping[str, Any] | None = None,
    ) -> IO[Any]:
        """Opens a file of a kit. See `kitfs.open`."""
        if set(mode) & set("wax+"):
            raise read_only(path)
        if mode not in ("rb", "br", "r", "rt", "tr"):
            raise UsageError(f"the mode {mode!r} is neither 'rb' nor 'r'")
        is_text = "b" not in mode
        if not is_text and (encoding or errors or newline):
            raise UsageError("bytes have no encoding: open the file with mode 'r'")
        binary = self.filesystem().open(
            f"{reference}//{path}",
            "rb",
            block_size=block_size,
            cache_type=cache_type,
            cache_options=cache_options,
        )
        if not is_text:
            return cast("IO[bytes]", binary)
        return io.TextIOWrapper(binary, encoding=encoding, errors=errors, newline=newline)

    # --- by the command ---

    def warm(
        self,
        reference: str,
        *paths: str,
        filters: str | Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> WarmReport:
        """Downloads a kit, or files and directories of it, into the cache, and checks the digests.

        Waits as long as bytes come, unless `timeout` gives a number of seconds. Raises where a layer fails; the
        error's `report` then has what came.
        """
        subcommand = ["warm", *_filters(filters), *_labels(labels)]
        report = self._command.warm(subcommand, reference, *paths, timeout=timeout)
        if "missing" in report:
            report["missing"] = [decoded(path) for path in report["missing"]]
        return cast("WarmReport", report)

    def warm_to(
        self,
        reference: str,
        folder: str | os.PathLike[str],
        *,
        delete: bool = False,
        filters: str | Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> WarmedFolder:
        """Fills or updates a plain folder with a kit, for places without FUSE.

        `delete` removes files that the kit no longer has. Files of the user are never overwritten.
        """
        flags = ["--delete"] if delete else []
        subcommand = ["warm", f"--to={os.fspath(folder)}", *flags, *_filters(filters), *_labels(labels)]
        return cast("WarmedFolder", self._command.warm(subcommand, reference, timeout=timeout))

    def mount(
        self,
        reference: str,
        directory: str | os.PathLike[str] | None = None,
        *,
        filters: str | Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        overlay: bool | str | os.PathLike[str] = False,
        hydrate: str | None = None,
        options: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Mount:
        """Mounts a kit. See `kitfs.mount`."""
        if isinstance(options, str):
            raise UsageError(f"options is the text {options!r}: give a list of options")
        flags = [*_filters(filters), *_labels(labels), *options]
        if overlay is True:
            flags.append("--overlay")
        elif overlay is not False:
            flags.append(f"--overlay={os.fspath(overlay)}")
        if hydrate is not None:
            flags.append(f"--hydrate={hydrate}")
        return Mount._begin(self._command, reference, directory, flags, timeout)

    # --- the daemon ---

    @property
    def backend(self) -> str:
        """The backend that the client reads by now: `http` or `command`."""
        return self._choose().name

    def _ask(self, operation: Callable[[Backend], T]) -> T:
        backend = self._choose()
        try:
            return operation(backend)
        except DaemonError:
            # The daemon may have been started again, at another port.
            if self._url is not None or backend.name == "command":
                raise
            self._forget(backend)
            again = self._choose()
            if isinstance(again, HttpBackend) and again.url == cast("HttpBackend", backend).url:
                raise
            logger.info("the daemon has another address by now: reading by %s", again.name)
            return operation(again)

    def _choose(self) -> Backend:
        with self._lock:
            backend = self._backend
            is_old = time.monotonic() - self._chosen_at > _COMMAND_STANDS_SECONDS
            if backend is not None and (backend.name == "http" or not is_old):
                return backend
            chosen: Backend | None = None
            if self._url is not None:
                chosen = self._checked(self._url)
            elif not self._command.options:
                chosen = self._found()
            if chosen is None:
                # A new one looks for the daemon again, which ends after a time without use.
                chosen = CommandBackend(self._command)
            logger.debug("reading by %s", chosen.name)
            self._backend, self._chosen_at = chosen, time.monotonic()
            return chosen

    def _found(self) -> HttpBackend | None:
        """The daemon that runs, if it has an HTTP interface that this user may ask."""
        status = self._command.daemon_status()
        address = None if status is None else status.get("http")
        if not isinstance(address, str) or not address:
            return None
        try:
            return self._checked(address)
        except UnauthorizedError as error:
            logger.info("reading by the command: %s", error)
            return None

    def _checked(self, address: str) -> HttpBackend:
        backend = HttpBackend(address, self._timeout)
        backend.check()
        return backend

    def _forget(self, backend: Backend) -> None:
        with self._lock:
            if self._backend is backend:
                self._backend = None


def _client(
    url: str | None, command: str, cache_dir: str | None, options: tuple[str, ...], timeout: float | None
) -> Client:
    return Client(url, command=command, cache_dir=cache_dir, options=options, timeout=timeout)


def _filters(filters: str | Iterable[str]) -> list[str]:
    return [f"--filter={text}" for text in ([filters] if isinstance(filters, str) else filters)]


def _labels(labels: Mapping[str, str] | None) -> list[str]:
    return [f"--label={key}={value}" for key, value in (labels or {}).items()]
