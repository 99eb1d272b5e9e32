"""Runs the command `kitfs`, and reads kits with it.

Commands without a daemon keep the cache folder to themselves, so two readers at a time need a daemon. The backend
starts one before its first read, as `kitfs mount` does; the daemon ends after ten minutes without use.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any, cast

from . import _reference
from ._backend import File, changed, follow, is_pinned, lookup
from ._fork import renew_in_child
from .errors import (
    CommandMissingError,
    KitfsError,
    KitfsTimeoutError,
    NotFoundError,
    UsageError,
    error_of_exit_code,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._types import Comparison, Entry, IndexInfo, KitInfo, MountStatus

logger = logging.getLogger("kitfs")

# How long the daemon stays that this package starts: as long as one that `kitfs mount` starts.
_IDLE_EXIT = "10m"
# The exit code of `kitfs diff` where the versions differ.
_DIFFERENT = 1
# The exit code of `kitfs daemon status` without a daemon.
_NO_DAEMON = 9


class Command:
    """The command, and the options that each call of it gets.

    `options` go to the subcommands that reach a registry, such as `--plain-http`.
    """

    def __init__(
        self,
        program: str = "kitfs",
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        options: Sequence[str] = (),
        timeout: float | None = None,
    ) -> None:
        self.program = program
        self.cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        self.options = tuple(options)
        self.timeout = timeout

    def arguments(self, subcommand: Sequence[str], *arguments: str, networked: bool = False) -> list[str]:
        """The command line. References and paths follow `--`, so none is taken for an option."""
        cache = [] if self.cache_dir is None else ["--cache-dir", self.cache_dir]
        network = self.options if networked else ()
        tail = ["--", *arguments] if arguments else []
        return [self.program, *subcommand, *cache, *network, *tail]

    def run(
        self, subcommand: Sequence[str], *arguments: str, networked: bool = False, timeout: float | None
    ) -> tuple[int, bytes, str]:
        """Runs a subcommand to its end: exit code, output, and messages. `timeout` is in seconds."""
        line = self.arguments(subcommand, *arguments, networked=networked)
        logger.debug("running %s", line)
        try:
            done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
        except FileNotFoundError:
            raise CommandMissingError(
                f"the command `{self.program}` was not found: install kitfs, or give its path as `command`"
            ) from None
        except subprocess.TimeoutExpired:
            words = " ".join(line[1:])
            raise KitfsTimeoutError(f"`kitfs {words}` took longer than {timeout} s: give a longer timeout") from None
        return done.returncode, done.stdout, done.stderr.decode(errors="replace").strip()

    def output(
        self, subcommand: Sequence[str], *arguments: str, networked: bool = False, timeout: float | None
    ) -> bytes:
        """Runs a subcommand that must succeed, and gives its output. Its warnings are logged."""
        code, output, messages = self.run(subcommand, *arguments, networked=networked, timeout=timeout)
        if code != 0:
            raise error_of_exit_code(code, _message(subcommand, code, messages))
        _log_warnings(messages)
        return output

    def json(self, subcommand: Sequence[str], *arguments: str, networked: bool = False) -> Any:
        """Runs a subcommand with `--json`."""
        subcommand = [*subcommand, "--json"]
        output = self.output(subcommand, *arguments, networked=networked, timeout=self.timeout)
        return parsed(output, subcommand)

    def daemon_status(self) -> dict[str, Any] | None:
        """The daemon of the cache folder; `None` where none runs."""
        code, output, messages = self.run(["daemon", "status", "--json"], timeout=self.timeout)
        if code == _NO_DAEMON:
            return None
        if code != 0:
            raise error_of_exit_code(code, _message(["daemon", "status"], code, messages))
        return cast("dict[str, Any]", parsed(output, ["daemon", "status"]))

    def start_daemon(self) -> None:
        """Starts the daemon, if it does not run."""
        self.output(["daemon", "start", "--idle-exit", _IDLE_EXIT], timeout=self.timeout)

    def warm(self, subcommand: Sequence[str], *arguments: str, timeout: float | None = None) -> Any:
        """Runs `kitfs warm`, which prints its report also where a part failed. The error then has the report."""
        code, output, messages = self.run([*subcommand, "--json"], *arguments, networked=True, timeout=timeout)
        report = parsed(output, subcommand) if output.strip() else None
        if code != 0:
            error = error_of_exit_code(code, _message(subcommand, code, messages))
            error.report = report
            raise error
        _log_warnings(messages)
        return report

    def diff(self, before: str, after: str, path: str, *, content: bool = False) -> Any:
        """Compares two versions. The exit codes of the command are those of diff(1)."""
        paths = [path] if path else []
        subcommand = ["diff", "--json", *(["--content"] if content else [])]
        code, output, messages = self.run(subcommand, before, after, *paths, networked=True, timeout=self.timeout)
        if code not in (0, _DIFFERENT) or not output.strip():
            raise self._why_not_compared(before, after, path, _message(subcommand, code, messages))
        _log_warnings(messages)
        return parsed(output, subcommand)

    def _why_not_compared(self, before: str, after: str, path: str, message: str) -> KitfsError:
        """The error of a comparison. Every failure has exit code 2, so those of other commands tell the kind."""
        absent = []
        for reference in (before, after):
            try:
                self.json(["info"], reference, networked=True)
            except KitfsError as error:
                return error
            try:
                self.json(["ls"], explicit(reference, path), networked=True)
            except NotFoundError as error:
                absent.append(error)
        return absent[0] if len(absent) == 2 else KitfsError(message)  # noqa: PLR2004


class CommandBackend:
    """Reads kits with `kitfs ls`, `kitfs cat` and so on."""

    name = "command"

    def __init__(self, command: Command) -> None:
        self._command = command
        self._has_daemon = False
        self._renew()
        renew_in_child(self)

    def _renew(self) -> None:
        """See `Renewable`."""
        self._lock = threading.Lock()

    def _need_daemon(self) -> None:
        with self._lock:
            if self._has_daemon:
                return
            if self._command.daemon_status() is None:
                self._command.start_daemon()
            self._has_daemon = True

    def entries(self, reference: str, path: str, *, recursive: bool = False) -> list[Entry]:
        """See `Backend`."""
        self._need_daemon()
        flags = ["-R"] if recursive else []
        entries: list[Entry] = self._command.json(["ls", *flags], explicit(reference, path), networked=True)
        return entries

    def file(self, reference: str, path: str) -> File:
        """See `Backend`. Without a digest of the file, that of the kit and the path name the content.

        The reference is pinned, so that a read needs one run of the command.
        """

        def entries(at: str) -> list[Entry]:
            return self.entries(reference, at)

        entry = follow(entries, lookup(entries, path))
        if entry["kind"] != "file":
            raise UsageError(f"`{path or reference}` is a directory, not a file")
        kit = self.info(reference)["digest"]
        name = entry.get("digest") or f"{kit}/{entry['path']}"
        return File(entry["size"], f'"{name}"', _reference.pinned(reference, kit) or reference)

    def read(self, reference: str, path: str, start: int, end: int | None, *, etag: str | None = None) -> bytes:
        """See `Backend`. By a tag, the version is looked at before the read."""
        if end is not None and end <= start:
            return b""
        self._need_daemon()
        if etag is not None and not is_pinned(reference) and self.file(reference, path).etag != etag:
            raise changed(reference, path)
        part = [f"--offset={start}", *([] if end is None else [f"--length={end - start}"])]
        where = explicit(reference, path)
        return self._command.output(["cat", *part], where, networked=True, timeout=self._command.timeout)

    def info(self, reference: str) -> KitInfo | IndexInfo:
        """See `Backend`."""
        return cast("KitInfo | IndexInfo", self._command.json(["info"], reference, networked=True))

    def diff(self, before: str, after: str, path: str, *, content: bool = False) -> Comparison:
        """See `Backend`."""
        return cast("Comparison", self._command.diff(before, after, path, content=content))

    def status(self) -> list[MountStatus]:
        """See `Backend`."""
        return cast("list[MountStatus]", self._command.json(["status"]))


def parsed(output: bytes, words: Sequence[str]) -> Any:
    """The JSON output of a command."""
    try:
        return json.loads(output)
    except ValueError as error:
        message = f"the output of `kitfs {' '.join(words)}` is no JSON ({error}): is this command kitfs?"
        raise KitfsError(message) from None


def explicit(reference: str, path: str) -> str:
    """`REF//PATH`, which is always taken apart as it was meant."""
    return f"{reference}//{path}" if path else reference


def _message(words: Sequence[str], code: int, messages: str) -> str:
    """The messages of a failed command in one line, without the name of the program."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if not lines:
        return f"`kitfs {' '.join(words)}` ended with exit code {code}"
    return "; ".join(line.removeprefix("kitfs: ") for line in lines)


def _log_warnings(messages: str) -> None:
    for line in messages.splitlines():
        if line.strip():
            logger.warning("%s", line.strip())
