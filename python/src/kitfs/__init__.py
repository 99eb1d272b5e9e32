"""Reads ModelKits from registries without pulling them.

    import kitfs

    with kitfs.mount("ghcr.io/org/llama:8b") as models:
        tokenizer = json.load(open(models / "tokenizer.json"))

    with kitfs.open("ghcr.io/org/llama:8b", "config.json", "r") as file: ...
    fsspec.open("kitfs://ghcr.io/org/llama:8b/config.json")

The package runs the command `kitfs`, or speaks HTTP with its daemon (`kitfs daemon start --listen 127.0.0.1:PORT`).
Guide: docs/python.md of kitfs.
"""

from __future__ import annotations

import logging
from typing import IO, TYPE_CHECKING, Any

from ._client import Client
from ._mount import Mount
from ._types import (
    ComparedFile,
    ComparedVersion,
    Comparison,
    Entry,
    EntryKind,
    Failure,
    FileChange,
    IndexEntryInfo,
    IndexInfo,
    KitInfo,
    LayerChange,
    LayerInfo,
    MountStatus,
    RemoteInfo,
    Switch,
    WarmedFolder,
    WarmedLayer,
    WarmReport,
)
from ._version import __version__
from .errors import (
    BadContentError,
    CacheError,
    ChangedError,
    CommandMissingError,
    DaemonError,
    KitfsError,
    KitfsTimeoutError,
    MountpointError,
    NotFoundError,
    ReadOnlyError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence


__all__ = [
    "BadContentError",
    "CacheError",
    "ChangedError",
    "Client",
    "CommandMissingError",
    "ComparedFile",
    "ComparedVersion",
    "Comparison",
    "DaemonError",
    "Entry",
    "EntryKind",
    "Failure",
    "FileChange",
    "IndexEntryInfo",
    "IndexInfo",
    "KitInfo",
    "KitfsError",
    "KitfsTimeoutError",
    "LayerChange",
    "LayerInfo",
    "Mount",
    "MountStatus",
    "MountpointError",
    "NotFoundError",
    "ReadOnlyError",
    "RemoteInfo",
    "Switch",
    "UnauthorizedError",
    "UnavailableError",
    "UsageError",
    "WarmReport",
    "WarmedFolder",
    "WarmedLayer",
    "__version__",
    "diff",
    "info",
    "mount",
    "open",
    "status",
    "warm",
    "warm_to",
]

logging.getLogger("kitfs").addHandler(logging.NullHandler())

_default: Client | None = None


def _client(given: Client | None) -> Client:
    """The client of a call: the given one, or one for all calls without."""
    global _default  # noqa: PLW0603
    if given is not None:
        return given
    # Two threads may both make one; either will do.
    if _default is None:
        _default = Client()
    return _default


def mount(
    reference: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    filters: str | Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    overlay: bool | str | os.PathLike[str] = False,
    hydrate: str | None = None,
    options: Sequence[str] = (),
    timeout: float | None = None,
    client: Client | None = None,
) -> Mount:
    """Mounts a kit, at a new directory if none is given.

        with kitfs.mount("ghcr.io/org/model:v1") as kit:
            model = load(kit / "weights/model.safetensors")

    The mount ends with the block, with `Mount.unmount`, or with this process, also where that is killed.

    - `filters`: only these layers, such as `"model"` or `["datasets:train", "kitfile"]`.
    - `labels`: choose the kit of an index.
    - `overlay`: make the files writable. The changes go to the folder that `overlay` names; for `True` to a folder
      below `~/.local/share/kitfs` that belongs to `directory`.
    - `hydrate`: files to complete in the background, `"begun"`, `"all"` or `"none"`.
    - `options`: further options of `kitfs mount`, such as `["--no-passthrough"]`.
    - `timeout`: how many seconds mounting may take. `None` waits as long as `kitfs mount` does: the first look at a
      compressed kit reads all of it.
    """
    return _client(client).mount(
        reference,
        directory,
        filters=filters,
        labels=labels,
        overlay=overlay,
        hydrate=hydrate,
        options=options,
        timeout=timeout,
    )


def open(  # noqa: A001
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
    client: Client | None = None,
) -> IO[Any]:
    """Opens a file of a kit for reading, without a mount: `"rb"` for bytes, `"r"` for text.

    Blocks of 256 KiB (`block_size`) stay in memory, 16 MiB for each open file. `cache_type` and `cache_options` are
    those of fsspec; `"none"` keeps nothing.
    """
    return _client(client).open(
        reference,
        path,
        mode,
        encoding=encoding,
        errors=errors,
        newline=newline,
        block_size=block_size,
        cache_type=cache_type,
        cache_options=cache_options,
    )


def info(reference: str, *, client: Client | None = None) -> KitInfo | IndexInfo:
    """The Kitfile and the layers of a kit; of an index the kits to choose from."""
    return _client(client).info(reference)


def diff(before: str, after: str, path: str = "", *, content: bool = False, client: Client | None = None) -> Comparison:
    """The differences between two versions of a kit, or of the file or directory `path` in them.

    kitfs compares digests and reads no file. Where nothing tells, a change has the kind `maybe`; with `content`
    kitfs then compares the bytes, which it may have to download.
    """
    return _client(client).diff(before, after, path, content=content)


def status(*, client: Client | None = None) -> list[MountStatus]:
    """The mounts of the daemon; none where no daemon runs."""
    return _client(client).status()


def warm(
    reference: str,
    *paths: str,
    filters: str | Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    timeout: float | None = None,
    client: Client | None = None,
) -> WarmReport:
    """Downloads a kit, or files and directories of it, into the cache, and checks the digests.

    Waits as long as bytes come, unless `timeout` gives a number of seconds. Raises where a layer fails; the error's
    `report` then has what came.
    """
    return _client(client).warm(reference, *paths, filters=filters, labels=labels, timeout=timeout)


def warm_to(
    reference: str,
    folder: str | os.PathLike[str],
    *,
    delete: bool = False,
    filters: str | Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    timeout: float | None = None,
    client: Client | None = None,
) -> WarmedFolder:
    """Fills or updates a plain folder with a kit, for places without FUSE.

    `delete` removes files that the kit no longer has. Files of the user are never overwritten.
    """
    return _client(client).warm_to(reference, folder, delete=delete, filters=filters, labels=labels, timeout=timeout)
