"""Errors by kind.

Each error is an `OSError`, so code that handles file errors handles these too. Most of them are also the built-in
error that Python has for the case: a path that is missing raises `NotFoundError`, which is a `FileNotFoundError`.

The kinds are those of the command's exit codes and of the HTTP interface (docs/api.md).
"""

from __future__ import annotations

import errno
from typing import Any

__all__ = [
    "BadContentError",
    "CacheError",
    "ChangedError",
    "CommandMissingError",
    "DaemonError",
    "KitfsError",
    "KitfsTimeoutError",
    "MountpointError",
    "NotFoundError",
    "ReadOnlyError",
    "UnauthorizedError",
    "UnavailableError",
    "UsageError",
    "error_of_exit_code",
    "error_of_kind",
    "read_only",
]


class KitfsError(OSError):
    """A failure of kitfs; the base of all errors of this package.

    `str(error)` is the message. `kind` is the word that the HTTP interface has for the failure.
    """

    kind: str = "internal"
    _errno: int = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(self._errno, message)
        self.message = message
        self.report: Any = None
        """The report of the command, where it made one in spite of the failure (`kitfs.warm`)."""

    def __str__(self) -> str:
        return self.message

    # Errors travel between processes: a worker of a data loader hands its error to the parent.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message,), {"report": self.report}


class UsageError(KitfsError, ValueError):
    """The request itself is wrong: a malformed reference or filter, or a directory in the place of a file."""

    kind = "usage"
    _errno = errno.EINVAL


class NotFoundError(KitfsError, FileNotFoundError):
    """No such kit, tag, repository or path."""

    kind = "not_found"
    _errno = errno.ENOENT


class UnauthorizedError(KitfsError, PermissionError):
    """Credentials are missing or refused, or the daemon belongs to another user."""

    kind = "unauthorized"
    _errno = errno.EACCES


class UnavailableError(KitfsError, ConnectionError):
    """The registry or the network does not work."""

    kind = "unavailable"
    _errno = errno.EHOSTUNREACH


class BadContentError(KitfsError):
    """The content is no kit, is malformed, or has another digest than its manifest says."""

    kind = "bad_content"


class MountpointError(KitfsError):
    """The mountpoint is missing, not empty, busy, or no mount of kitfs."""

    kind = "mountpoint"
    _errno = errno.EBUSY


class CacheError(KitfsError):
    """The cache folder is held by another process, cannot be written, or is full."""

    kind = "cache"
    _errno = errno.ENOSPC


class DaemonError(KitfsError, ConnectionError):
    """The daemon does not run or does not answer."""

    kind = "daemon"
    _errno = errno.ECONNREFUSED


class KitfsTimeoutError(KitfsError, TimeoutError):
    """The daemon or the command was silent for longer than the timeout."""

    kind = "timeout"
    _errno = errno.ETIMEDOUT


class ChangedError(KitfsError):
    """The file was replaced while it was open, because its tag names another version now.

    Open the file again. A reference with a digest (`REPOSITORY@sha256:…`) never changes.
    """

    kind = "changed"
    _errno = errno.ESTALE


class CommandMissingError(KitfsError):
    """The command `kitfs` is not installed, or is not in `PATH`."""

    kind = "command_missing"
    _errno = errno.ENOEXEC


class ReadOnlyError(KitfsError, NotImplementedError):
    """Kits are read-only; `kitfs.mount(ref, overlay=True)` makes a writable view."""

    kind = "read_only"
    _errno = errno.EROFS


_BY_KIND: dict[str, type[KitfsError]] = {
    error.kind: error
    for error in (
        UsageError,
        NotFoundError,
        UnauthorizedError,
        UnavailableError,
        BadContentError,
        MountpointError,
        CacheError,
        DaemonError,
    )
}
# The daemon serves another user.
_BY_KIND["forbidden"] = UnauthorizedError

# docs/operations.md, "Exit codes".
_BY_EXIT_CODE: dict[int, type[KitfsError]] = {
    2: UsageError,
    3: NotFoundError,
    4: UnauthorizedError,
    5: UnavailableError,
    6: BadContentError,
    7: MountpointError,
    8: CacheError,
    9: DaemonError,
}


def error_of_kind(kind: str, message: str) -> KitfsError:
    """The error for a kind of the HTTP interface. A kind that this version does not know is a `KitfsError`."""
    return _BY_KIND.get(kind, KitfsError)(message)


def error_of_exit_code(code: int, message: str) -> KitfsError:
    """The error for an exit code of the command."""
    return _BY_EXIT_CODE.get(code, KitfsError)(message)


def read_only(path: str | None = None) -> ReadOnlyError:
    """The error of everything that would write."""
    where = f"`{path}`: " if path else ""
    return ReadOnlyError(f"{where}kits are read-only; `kitfs.mount(ref, overlay=True)` makes a writable view of one")
