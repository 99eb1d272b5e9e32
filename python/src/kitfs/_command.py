"""Runs the command `kitfs`, and reads kits with it.

Commands without a daemon keep the cache folder to themselves, so two readers at a time need a daemon. The backend
starts one before its first read, as `kitfs mount` does; the daemon ends after ten minutes without use.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any, cast

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

# The bytes of a file that are read from the pipe at once, where bytes before a range are passed over.
_PIECE_BYTES = 1 << 20
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

    def is_there(self) -> bool:
        """Whether the program is installed."""
        return shutil.which(self.program) is not None

    def arguments(self, subcommand: Sequence[str], *arguments: str, networked: bool = False) -> list[str]:
        """The command line. References and paths follow `--`, so none is taken for an option."""
        cache = [] if self.cache_dir is None else ["--cache-dir", self.cache_dir]
        network = self.options if networked else ()
        tail = ["--", *arguments] if arguments else []
        return [self.program, *subcommand, *cache, *network, *tail]

    def run(
        self,
        subcommand: Sequence[str],
        *arguments: str,
        networked: bool = False,
        timeout: float | None = None,
    ) -> tuple[int, bytes, str]:
        """Runs a subcommand to its end: exit code, output, and messages. `timeout` is in seconds."""
        line = self.arguments(subcommand, *arguments, networked=networked)
        logger.debug("running %s", line)
        try:
            done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
        except FileNotFoundError:
            raise self._missing() from None
        except subprocess.TimeoutExpired:
            raise self._silent(line, timeout) from None
        return done.returncode, done.stdout, done.stderr.decode(errors="replace").strip()

    def text(
        self,
        subcommand: Sequence[str],
        *arguments: str,
        networked: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Runs a subcommand that must succeed, and gives its output. Its warnings are logged."""
        code, output, messages = self.run(subcommand, *arguments, networked=networked, timeout=timeout)
        if code != 0:
            raise error_of_exit_code(code, _message(subcommand, code, messages))
        _log_warnings(messages)
        return output.decode(errors="surrogateescape")

    def json(
        self,
        subcommand: Sequence[str],
        *arguments: str,
        networked: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Runs a subcommand with `--json`."""
        subcommand = [*subcommand, "--json"]
        text = self.text(subcommand, *arguments, networked=networked, timeout=timeout)
        return parsed(text, subcommand)

    def daemon_status(self) -> dict[str, Any] | None:
        """The daemon of the cache folder; `None` where none runs."""
        code, output, messages = self.run(["daemon", "status", "--json"], timeout=self.timeout)
        if code == _NO_DAEMON:
            return None
        if code != 0:
            raise error_of_exit_code(code, _message(["daemon", "status"], code, messages))
        return cast("dict[str, Any]", parsed(output.decode(errors="surrogateescape"), ["daemon", "status"]))

    def start_daemon(self) -> None:
        """Starts the daemon, if it does not run."""
        self.text(["daemon", "start", "--idle-exit", _IDLE_EXIT], timeout=self.timeout)

    def warm(self, subcommand: Sequence[str], *arguments: str, timeout: float | None = None) -> Any:
        """Runs `kitfs warm`, which prints its report also where a part failed. The error then has the report."""
        code, output, messages = self.run([*subcommand, "--json"], *arguments, networked=True, timeout=timeout)
        report = parsed(output.decode(errors="surrogateescape"), subcommand) if output.strip() else None
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
        return parsed(output.decode(errors="surrogateescape"), subcommand)

    def _why_not_compared(self, before: str, after: str, path: str, message: str) -> KitfsError:
        """The error of a comparison. Every failure has exit code 2, so those of other commands tell the kind."""
        absent = []
        for reference in (before, after):
            try:
                self.json(["info"], reference, networked=True, timeout=self.timeout)
            except KitfsError as error:
                return error
            try:
                self.json(["ls"], explicit(reference, path), networked=True, timeout=self.timeout)
            except NotFoundError as error:
                absent.append(error)
        return absent[0] if len(absent) == 2 else KitfsError(message)  # noqa: PLR2004

    def _missing(self) -> CommandMissingError:
        return CommandMissingError(
            f"the command `{self.program}` was not found: install kitfs, or give its path as `command`"
        )

    def _silent(self, line: Sequence[str], timeout: float | None) -> KitfsTimeoutError:
        words = " ".join(line[1:])
        return KitfsTimeoutError(f"`kitfs {words}` took longer than {timeout} s: give a longer timeout")


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
        entries: list[Entry] = self._command.json(
            ["ls", *flags], explicit(reference, path), networked=True, timeout=self._command.timeout
        )
        return entries

    def file(self, reference: str, path: str) -> File:
        """See `Backend`. Without a digest of the file, that of the kit and the path name the content."""

        def entries(at: str) -> list[Entry]:
            return self.entries(reference, at)

        entry = follow(entries, lookup(entries, path))
        if entry["kind"] != "file":
            raise UsageError(f"`{path or reference}` is a directory, not a file")
        digest = entry.get("digest")
        if digest is None:
            kit = self.info(reference)["digest"]
            digest = f"{kit}/{entry['path']}"
        return File(entry["size"], f'"{digest}"')

    def read(self, reference: str, path: str, start: int, end: int | None, *, etag: str | None = None) -> bytes:
        """See `Backend`. The version is checked before each read, so a reference with a digest reads faster."""
        if end is not None and end <= start:
            return b""
        self._need_daemon()
        if etag is not None and not is_pinned(reference) and self.file(reference, path).etag != etag:
            raise changed(reference, path)
        return self._cat(explicit(reference, path), start, end)

    def _cat(self, argument: str, start: int, end: int | None) -> bytes:
        line = self._command.arguments(["cat"], argument, networked=True)
        logger.debug("running %s for bytes %s to %s", line, start, end)
        with tempfile.TemporaryFile() as messages:
            try:
                process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
            except FileNotFoundError:
                raise self._command._missing() from None
            deadline = _Deadline(process, self._command.timeout)
            try:
                at_end, content = _range_of(cast("IO[bytes]", process.stdout), start, end)
                cast("IO[bytes]", process.stdout).close()
                # With the range read, the command ends at its next write.
                if not at_end:
                    process.terminate()
                code = process.wait()
            finally:
                deadline.cancel()
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if deadline.is_over:
                raise self._command._silent(line, self._command.timeout)
            if at_end and code != 0:
                messages.seek(0)
                text = messages.read().decode(errors="replace").strip()
                raise error_of_exit_code(code, _message(["cat"], code, text))
            return content

    def info(self, reference: str) -> KitInfo | IndexInfo:
        """See `Backend`."""
        return cast(
            "KitInfo | IndexInfo",
            self._command.json(["info"], reference, networked=True, timeout=self._command.timeout),
        )

    def diff(self, before: str, after: str, path: str, *, content: bool = False) -> Comparison:
        """See `Backend`."""
        return cast("Comparison", self._command.diff(before, after, path, content=content))

    def status(self) -> list[MountStatus]:
        """See `Backend`."""
        return cast("list[MountStatus]", self._command.json(["status"], timeout=self._command.timeout))


def parsed(text: str, words: Sequence[str]) -> Any:
    """The JSON output of a command."""
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"the output of `kitfs {' '.join(words)}` is no JSON ({error}): is this command kitfs?"
        raise KitfsError(message) from None


def explicit(reference: str, path: str) -> str:
    """`REF//PATH`, which is always taken apart as it was meant."""
    return f"{reference}//{path}" if path else reference


def _range_of(pipe: IO[bytes], start: int, end: int | None) -> tuple[bool, bytes]:
    """The range of a stream, and whether the stream was read to its end."""
    passed = 0
    while passed < start:
        piece = pipe.read(min(_PIECE_BYTES, start - passed))
        if not piece:
            return True, b""
        passed += len(piece)
    if end is None:
        return True, pipe.read()
    content = pipe.read(end - start)
    return len(content) < end - start, content


class _Deadline:
    """Kills a process that takes longer than `seconds`; never for `None`."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float | None) -> None:
        self.is_over = False
        self._process = process
        self._timer = None if seconds is None else threading.Timer(seconds, self._end)
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        self._process.kill()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _message(words: Sequence[str], code: int, messages: str) -> str:
    """The message of a failed command: its last line, without the name of the program."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if not lines:
        return f"`kitfs {' '.join(words)}` ended with exit code {code}"
    return "; ".join(line.removeprefix("kitfs: ") for line in lines)


def _log_warnings(messages: str) -> None:
    for line in messages.splitlines():
        if line.strip():
            logger.warning("%s", line.strip())
