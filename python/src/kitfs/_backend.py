"""The two backends that read a kit without a mount: the daemon's HTTP interface and the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, NamedTuple, Protocol

from . import _reference
from .errors import BadContentError, ChangedError

if TYPE_CHECKING:
    from ._types import Comparison, Entry, IndexInfo, KitInfo, MountStatus

DEFAULT_TIMEOUT_SECONDS = 600.0
"""How long a call waits for the daemon or the command. kitfs itself gives up on a silent registry after 5 minutes
(`--read-deadline`, `--open-timeout`), and its message says more than a timeout; so this is twice as long."""

# As many symlinks as Linux follows for one path (path_resolution(7)).
_MOST_LINKS = 40


class File(NamedTuple):
    """A file as a reader has to know it before the first read."""

    size: int
    etag: str
    """Names the content: equal texts mean equal bytes."""
    reference: str
    """The reference to read it by: pinned to the version, where the backend cannot compare ETags by itself."""


class Backend(Protocol):
    """Reads kits. Each method is safe to call from several threads, and in a forked child."""

    name: str

    def entries(self, reference: str, path: str, *, recursive: bool = False) -> list[Entry]:
        """The entries of a directory, or the entry of the file or symlink that `path` names.

        Paths begin at the kit's root. Those of entries have passed the symlinks in `path`. A slash at the end has a
        symlink followed.
        """
        ...

    def file(self, reference: str, path: str) -> File:
        """Size and validator of a file. Symlinks are followed."""
        ...

    def read(self, reference: str, path: str, start: int, end: int | None, *, etag: str | None = None) -> bytes:
        """The bytes `start..end`, cut at the end of the file; to its end for `None`.

        With the `etag` of an earlier `file`, raises `ChangedError` where the content is another one by now.
        """
        ...

    def info(self, reference: str) -> KitInfo | IndexInfo:
        """The kit, or the index."""
        ...

    def diff(self, before: str, after: str, path: str, *, content: bool = False) -> Comparison:
        """The differences of two versions, by digests; with `content` also by bytes where no digest tells."""
        ...

    def status(self) -> list[MountStatus]:
        """The mounts."""
        ...


def lookup(entries: Callable[[str], list[Entry]], path: str) -> Entry:
    """The entry at `path`, with its real path. Of a directory only path and kind are known.

    `entries` lists a path, as `Backend.entries` does for one kit.
    """
    found = entries(path)
    directory: Entry = {"path": path, "kind": "directory", "mode": 0o755, "size": 0, "mtime_seconds": 0}
    parent, _, name = path.rpartition("/")
    if not name or not found:
        return directory
    places = [_reference.decoded(entry["path"]) for entry in found]
    if places[0] == path:
        return found[0]
    is_listing = len(found) > 1 or places[0].rpartition("/")[0] == path
    if is_listing or places[0].rpartition("/")[2] != name:
        return directory
    # A symlink led to a file of this name, or to a directory whose only entry has this name. The slash has the parent
    # followed, which may be the symlink.
    siblings = entries(f"{parent}/")
    return next((it for it in siblings if _reference.decoded(it["path"]).rpartition("/")[2] == name), directory)


def follow(entries: Callable[[str], list[Entry]], entry: Entry) -> Entry:
    """The file or directory that an entry stands for: its target, where the entry is a symlink.

    Raises `NotFoundError` for a link to nothing, and `BadContentError` for one that leaves the kit or goes in a circle.
    """
    path = _reference.decoded(entry["path"])
    link = path
    seen: set[str] = set()
    # A circle is noticed when it closes, because each look may be a run of the command.
    while link not in seen and len(seen) < _MOST_LINKS:
        seen.add(link)
        kind = entry["kind"]
        if not isinstance(kind, dict):
            return entry
        target = _reference.decoded(kind["symlink"])
        followed = _reference.resolved(link, target)
        if followed is None:
            raise BadContentError(f"`{path}` leads out of the kit, to `{target}`")
        entry = lookup(entries, followed)
        link = _reference.decoded(entry["path"])
    raise BadContentError(f"`{path}` goes in a circle, or through more than {_MOST_LINKS} symlinks")


def is_pinned(reference: str) -> bool:
    """Whether the reference has a digest, so that its content never changes."""
    return "@sha256:" in reference or reference.startswith("sha256:")


def changed(reference: str, path: str) -> ChangedError:
    """The error about a file that is another one by now."""
    return ChangedError(f"`{path}` of {reference} has changed since it was opened: open it again")
