"""A mount that ends with a `with` block, or with the process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import KitfsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ._command import Command

logger = logging.getLogger("kitfs")


class Mount(os.PathLike[str]):
    """A mounted kit. `os.fspath(mount)` is its directory, and `mount / "weights"` a path in it.

    The mount ends with the `with` block, with `unmount`, or with the process that made it, however that ends. A forked
    child, and a copy by pickle, use the mount and never end it.
    """

    def __init__(self, command: Command | None, reference: str, path: Path) -> None:
        """Not for users: see `kitfs.mount`. Without a command, the mount belongs to another process."""
        self.path = path
        self.reference = reference
        self._command = command
        self._owner = os.getpid()
        self._is_mounted = True
        self._lock = threading.Lock()

    @classmethod
    def _begin(
        cls,
        command: Command,
        reference: str,
        directory: str | os.PathLike[str] | None,
        flags: Sequence[str],
        timeout: float | None,
    ) -> Mount:
        if directory is None:
            # kitfs makes the directory and removes it with the mount. Nobody can guess the name.
            path = Path(tempfile.gettempdir(), f"kitfs-{secrets.token_hex(8)}")
        else:
            path = Path(directory).absolute()
        mount = cls(command, reference, path)
        subcommand = ["mount", f"--while-pid={os.getpid()}", *flags]
        try:
            line = command.output(subcommand, reference, str(path), networked=True, timeout=timeout)
        except KitfsError as error:
            if error.kind == "timeout":
                mount._undo()
            raise
        except BaseException:
            # Ctrl-C: the command may have mounted already.
            mount._undo()
            raise
        logger.info("mounted %s", line.decode(errors="replace").strip())
        return mount

    @property
    def digest(self) -> str:
        """The digest of the manifest that is mounted; that of a mount which follows a tag changes."""
        return os.getxattr(self.path, "user.kitfs.digest").decode()

    @property
    def is_mounted(self) -> bool:
        """Whether `unmount` has not ended the mount yet."""
        return self._is_mounted

    def unmount(self) -> None:
        """Ends the mount. Files that programs have open, or have mapped, can still be read.

        Does nothing a second time, or in a forked child.
        """
        # Before the lock: in a forked child, a thread of the parent may hold it for ever.
        if self._command is None or os.getpid() != self._owner:
            return
        with self._lock:
            if self._is_mounted:
                self._end(self._command)
                self._is_mounted = False

    def _end(self, command: Command) -> None:
        try:
            command.output(["umount"], str(self.path), timeout=command.timeout)
        except KitfsError as error:
            if not _is_there(self.path):
                return
            logger.info(
                "%s: the mount is taken out of the file tree, and ends with its readers (%s)",
                self.path,
                error,
            )
            command.output(["umount", "--lazy"], str(self.path), timeout=command.timeout)

    def _undo(self) -> None:
        with contextlib.suppress(KitfsError):
            self.unmount()

    def __reduce__(self) -> tuple[Any, ...]:
        return Mount, (None, self.reference, self.path)

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.unmount()
        except KitfsError as failure:
            if error is None:
                raise
            # The error of the block says more. The mount ends with the process at the latest.
            logger.warning("%s cannot be unmounted: %s", self.path, failure)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"<kitfs.Mount {self.reference} at {self.path}>"


def _is_there(path: Path) -> bool:
    """Whether something is mounted at the path. A mount whose daemon is gone counts: its root cannot be looked at."""
    try:
        return os.path.ismount(path) or (not path.exists() and path in path.parent.iterdir())
    except OSError:
        return True
