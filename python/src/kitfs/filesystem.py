"""An fsspec file system: `kitfs://REF/PATH`.

    import fsspec
    with fsspec.open("kitfs://ghcr.io/org/model:v1/config.json") as file: ...

    import pandas
    pandas.read_parquet("kitfs://ghcr.io/org/data:v1/data/prices.parquet")

REF is a reference as the command takes it, so the first part of the path names a kit. The path in the kit begins
after the tag or digest; `REF//PATH` always works.
"""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import tokenize

from . import _reference
from ._backend import DEFAULT_TIMEOUT_SECONDS, follow, is_pinned, lookup
from ._client import Client
from .errors import BadContentError, NotFoundError, UsageError, read_only

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._types import Entry

__all__ = ["KitfsFile", "KitfsFileSystem"]

# The unit of kitfs' cache. A smaller block makes requests for nothing, a larger one fetches more than a mount would.
_BLOCK_BYTES = 256 * 1024
# Blocks in memory for each open file: 16 MiB.
_MOST_BLOCKS = 64
# A read of this many blocks goes past the cache of blocks: one request is cheaper than many, and the reader seldom
# wants the same bytes twice.
_LARGE_READ_BLOCKS = 4
# As long as kitfs itself takes a tag to name the same kit (`--tag-ttl`).
_LISTINGS_EXPIRY_SECONDS = 60
# Requests of one `cat_ranges` under way: a registry answers each after a round trip, and the daemon has more slots.
_MOST_REQUESTS = 8


class KitfsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The files of kits, read-only.

    The options are those of `kitfs.Client`. Listings are kept for a minute (`listings_expiry_time` seconds), or until
    `invalidate_cache`; `use_listings_cache=False` keeps none.
    """

    protocol: ClassVar[str] = "kitfs"
    root_marker: ClassVar[str] = ""

    def __init__(
        self,
        url: str | None = None,
        *,
        command: str = "kitfs",
        cache_dir: str | None = None,
        options: Sequence[str] = (),
        timeout: float | None = DEFAULT_TIMEOUT_SECONDS,
        **storage_options: Any,
    ) -> None:
        super().__init__(**{"listings_expiry_time": _LISTINGS_EXPIRY_SECONDS, **storage_options})
        self.client = Client(url, command=command, cache_dir=cache_dir, options=options, timeout=timeout)

    @property
    def fsid(self) -> str:
        """The same for all instances: a path names the same kit in each."""
        return "kitfs"

    # --- paths ---

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = str(super()._strip_protocol(path))
        reference, inner = _reference.split(text)
        return _reference.join(reference, inner)

    @classmethod
    def _parent(cls, path: str) -> str:
        reference, inner = _reference.split(cls._strip_protocol(path))
        return _reference.join(reference, inner.rpartition("/")[0])

    @classmethod
    def _split(cls, path: str) -> tuple[str, str]:
        reference, inner = _reference.split(cls._strip_protocol(path))
        if not reference:
            raise UsageError("name a kit: kitfs://HOST/REPOSITORY:TAG/PATH")
        return reference, inner

    # --- listings ---

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:
        """The entries of a directory; the file itself for a file."""
        path = self._strip_protocol(path)
        reference, inner = self._split(path)
        found = None if refresh else self._remembered(path)
        if found is None:
            entries = self.client.entries(reference, inner)
            itself = self._itself(reference, inner, entries)
            if itself["kind"] != "directory":
                target = self._target(reference, itself)
                if target is None or target["kind"] != "directory":
                    found = [self._described(reference, inner, itself, target)]
                else:
                    entries = self.client.entries(reference, target["path"])
            if found is None:
                found = self._listed(reference, entries, inner)
                self.dircache[path] = found
        return found if detail else sorted(info["name"] for info in found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """The facts about a file or directory: name, size, type, mode, mtime, and digest where known.

        A symlink has the type and size of its target, and `islink` and `destination`.
        """
        path = self._strip_protocol(path)
        reference, inner = self._split(path)
        parent = self._remembered(self._parent(path)) if inner else None
        if parent is not None:
            for info in parent:
                if info["name"] == path and info["type"] != "link":
                    return dict(info)
        entries = self.client.entries(reference, inner)
        itself = self._itself(reference, inner, entries)
        if itself["kind"] == "directory":
            self.dircache[path] = self._listed(reference, entries, inner)
            return {"name": path, "size": 0, "type": "directory"}
        target = self._target(reference, itself)
        if target is not None and target["kind"] == "directory":
            info = self._described(reference, inner, itself, None)
            return {**info, "type": "directory"}
        return self._described(reference, inner, itself, target)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a path. One request lists the whole tree."""
        path = self._strip_protocol(path)
        reference, inner = self._split(path)
        if maxdepth is None:
            try:
                entries = self.client.entries(reference, inner, recursive=True)
            except NotFoundError:
                return {} if detail else []
            below = f"{inner}/" if inner else ""
            # Not so for a file, and for a directory behind a symlink.
            if entries and all(entry["path"].startswith(below) for entry in entries):
                infos = {info["name"]: info for info in self._listed(reference, entries)}
                found = {name: info for name, info in infos.items() if withdirs or info["type"] != "directory"}
                if withdirs:
                    found[path] = {"name": path, "size": 0, "type": "directory"}
                return dict(sorted(found.items())) if detail else sorted(found)
        return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forgets the listings of the kit that `path` is in, or all of them."""
        if path is None:
            self.dircache.clear()
        else:
            reference, _ = self._split(path)
            for known in list(self.dircache):
                if self._split(known)[0] == reference:
                    self.dircache.pop(known, None)
        super().invalidate_cache(path)

    def _remembered(self, path: str) -> list[dict[str, Any]] | None:
        try:
            found: list[dict[str, Any]] = self.dircache[path]
        except KeyError:
            return None
        return found

    def _itself(self, reference: str, inner: str, entries: list[Entry]) -> Entry:
        """The entry at a path, whose listing is known already."""

        def listed(at: str) -> list[Entry]:
            return entries if at == inner else self.client.entries(reference, at)

        return lookup(listed, inner)

    def _target(self, reference: str, entry: Entry) -> Entry | None:
        """The entry that a symlink leads to; `None` where it leads to nothing or out of the kit."""
        try:
            return follow(lambda at: self.client.entries(reference, at), entry)
        except (NotFoundError, BadContentError):
            return None

    def _listed(self, reference: str, entries: list[Entry], parent: str | None = None) -> list[dict[str, Any]]:
        """The infos of entries, which are named as children of `parent`, or by their own paths."""
        by_path = {entry["path"]: entry for entry in entries}
        found = []
        for entry in entries:
            target: Entry | None = entry
            if isinstance(entry["kind"], dict):
                followed = _reference.resolved(entry["path"], entry["kind"]["symlink"])
                known = by_path.get(followed or "")
                is_known = known is not None and not isinstance(known["kind"], dict)
                target = known if is_known else self._target(reference, entry)
            name = entry["path"] if parent is None else f"{parent}/{entry['path'].rpartition('/')[2]}"
            found.append(self._described(reference, name, entry, target))
        return found

    def _described(self, reference: str, inner: str, entry: Entry, target: Entry | None) -> dict[str, Any]:
        """The info of an entry. A symlink to a file is a file. Another one is a `link`, so that walking a tree ends."""
        is_link = isinstance(entry["kind"], dict)
        shown = target if target is not None and target["kind"] == "file" else entry
        info: dict[str, Any] = {
            "name": _reference.join(reference, inner),
            "size": shown["size"],
            "type": shown["kind"] if not isinstance(shown["kind"], dict) else "link",
            "mode": shown["mode"],
            "mtime": shown["mtime_seconds"],
            "islink": is_link,
        }
        if isinstance(entry["kind"], dict):
            info["destination"] = entry["kind"]["symlink"]
        for key in ("digest", "digest_claimed", "layer", "missing"):
            if key in shown:
                info[key] = shown[key]
        return info

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether the path is there. A registry that does not answer is an error, and no `False`."""
        try:
            self.info(path, **kwargs)
        except NotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Whether the path is a file. Errors as of `exists`."""
        try:
            return bool(self.info(path)["type"] == "file")
        except NotFoundError:
            return False

    def isdir(self, path: str) -> bool:
        """Whether the path is a directory. Errors as of `exists`."""
        try:
            return bool(self.info(path)["type"] == "directory")
        except NotFoundError:
            return False

    def modified(self, path: str) -> datetime.datetime:
        """When the file was modified."""
        info = self.info(path)
        return datetime.datetime.fromtimestamp(info.get("mtime", 0), tz=datetime.timezone.utc)

    def checksum(self, path: str) -> int:
        """A number that changes with the content: the digest of the file where it is known."""
        etag = self.ukey(path)
        prefix, _, digest = etag.strip('"').partition(":")
        if prefix == "sha256" and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):  # noqa: PLR2004
            return int(digest, 16)
        return int(tokenize(etag), 16)

    def ukey(self, path: str) -> str:
        """A text that changes with the content: the ETag."""
        reference, inner = self._split(path)
        return self.client.file(reference, inner).etag

    # --- reading ---

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file, or a range of them. Negative offsets count from the end."""
        reference, inner = self._split(path)
        if (start or 0) < 0 or (end or 0) < 0:
            size = self.client.file(reference, inner).size
            start = max(0, size + start) if start is not None and start < 0 else start
            end = max(0, size + end) if end is not None and end < 0 else end
        return self.client.read(reference, inner, start or 0, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Ranges of files, several at a time."""
        if max_gap is not None:
            raise NotImplementedError("kitfs joins neighbouring ranges by itself: leave out max_gap")
        if not isinstance(paths, list):
            raise TypeError(f"paths is a {type(paths).__name__}, not a list")
        from_all = starts if isinstance(starts, list) else [starts] * len(paths)
        to_all = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(from_all) != len(paths) or len(to_all) != len(paths):
            raise ValueError("paths, starts and ends have different lengths")

        def read(path: str, start: int | None, end: int | None) -> Any:
            try:
                return self.cat_file(path, start, end, **kwargs)
            except Exception as error:
                if on_error == "return":
                    return error
                raise

        with ThreadPoolExecutor(max_workers=_MOST_REQUESTS) as threads:
            return list(threads.map(read, paths, from_all, to_all))

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        cache_type: str = "blockcache",
        size: int | None = None,
        **kwargs: Any,
    ) -> KitfsFile:
        if mode != "rb":
            self._refuse(path)
        return KitfsFile(
            self,
            path,
            block_size=block_size or _BLOCK_BYTES,
            cache_type=cache_type,
            cache_options=cache_options,
            size=size,
            **kwargs,
        )

    # --- writing ---

    def _refuse(self, path: Any = None, *_: Any, **__: Any) -> NoReturn:
        raise read_only(path)

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = touch = pipe_file = put_file = _refuse


class KitfsFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file. Its bytes are those of one version.

    When its tag moves, a read raises `ChangedError`, or gives bytes of the version that was opened.
    """

    def __init__(
        self,
        fs: KitfsFileSystem,
        path: str,
        *,
        block_size: int,
        cache_type: str,
        cache_options: Mapping[str, Any] | None,
        size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._etag: str | None
        self._reference, self._inner = fs._split(path)
        if size is None or not is_pinned(self._reference):
            size, self._etag, self._reference = fs.client.file(self._reference, self._inner)
        else:
            self._etag = None
        options = dict(cache_options or {})
        if cache_type == "blockcache":
            options.setdefault("maxblocks", _MOST_BLOCKS)
        super().__init__(
            fs,
            path,
            "rb",
            block_size=block_size,
            cache_type=cache_type,
            cache_options=options,
            size=size,
            **kwargs,
        )

    def read(self, length: int | None = -1) -> bytes:
        """Up to `length` bytes; all that follow for -1."""
        rest = max(0, self.size - self.loc)
        wanted = rest if length is None or length < 0 else min(length, rest)
        if self.closed or wanted < _LARGE_READ_BLOCKS * self.blocksize or self.cache.name != "blockcache":
            found: bytes = super().read(wanted)
            return found
        found = self._fetch_range(self.loc, self.loc + wanted)
        self.loc += len(found)
        return found

    def _fetch_range(self, start: int, end: int) -> bytes:
        client: Client = self.fs.client
        return client.read(self._reference, self._inner, start, min(end, self.size), etag=self._etag)
