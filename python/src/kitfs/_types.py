"""The values of the JSON output, as docs/operations.md ("For programs") and docs/api.md describe them.

A newer kitfs may add fields. Each class names the fields that this package was written for. In a class with
`total=False`, a field is missing where it has no value.
"""

from __future__ import annotations

from typing import Any, TypedDict, Union

__all__ = [
    "ComparedFile",
    "ComparedVersion",
    "Comparison",
    "Entry",
    "EntryKind",
    "Failure",
    "FileChange",
    "IndexEntryInfo",
    "IndexInfo",
    "KitInfo",
    "LayerChange",
    "LayerInfo",
    "MountStatus",
    "RemoteInfo",
    "Switch",
    "WarmReport",
    "WarmedFolder",
    "WarmedLayer",
]

EntryKind = Union[str, dict[str, str]]
"""`"file"`, `"directory"` or `{"symlink": TARGET}`."""


class Failure(TypedDict):
    """A failure of a part of the work."""

    kind: str
    message: str


class _EntryFields(TypedDict):
    path: str
    kind: EntryKind
    mode: int
    size: int
    mtime_seconds: int


class Entry(_EntryFields, total=False):
    """A file, directory or symlink of a kit. `path` begins at the kit's root."""

    layer: int
    digest: str
    digest_claimed: bool
    missing: str


class _LayerInfoFields(TypedDict):
    role: str
    media_type: str
    digest: str
    blob_bytes: int


class LayerInfo(_LayerInfoFields, total=False):
    """A layer of a kit."""

    name: str | None
    path: str | None


class RemoteInfo(TypedDict):
    """A data set that lies in another kit or in an S3 store."""

    name: str | None
    path: str
    place: str
    etag: str | None


class KitInfo(TypedDict):
    """A kit. `kitfile` is the text of its Kitfile."""

    reference: str
    digest: str
    family: str
    kitfile: str | None
    layers: list[LayerInfo]
    remote: list[RemoteInfo]
    warnings: list[str]


class IndexEntryInfo(TypedDict):
    """A kit to choose from an index."""

    digest: str
    original_tag: str | None
    platform: str | None
    labels: dict[str, str]


class IndexInfo(TypedDict):
    """An index: several kits under one tag."""

    reference: str
    digest: str
    family: str
    entries: list[IndexEntryInfo]
    warnings: list[str]


class ComparedVersion(TypedDict):
    """One of two versions that were compared."""

    reference: str
    digest: str


class _ComparedFileFields(TypedDict):
    kind: EntryKind
    size: int
    mode: int
    mtime_seconds: int


class ComparedFile(_ComparedFileFields, total=False):
    """A file of one version."""

    digest: str
    digest_claimed: bool


class _FileChangeFields(TypedDict):
    kind: str
    path: str


# `from` is a keyword, so the class form cannot spell it.
_FileChangeOptions = TypedDict(
    "_FileChangeOptions",
    {"from": str, "before": ComparedFile, "after": ComparedFile, "claimed": bool},
    total=False,
)


class FileChange(_FileChangeFields, _FileChangeOptions):
    """A file that differs. `kind` is added, removed, changed, renamed, mode or maybe."""


class LayerChange(TypedDict):
    """A layer of the versions. `kind` is same, added or removed."""

    kind: str
    digest: str
    name: str
    blob_bytes: int
    missing_bytes: int


class Switch(TypedDict):
    """The bytes that a switch from the earlier to the later version fetches."""

    new_bytes: int
    missing_bytes: int
    fetched_bytes: int


class _ComparisonFields(TypedDict):
    before: ComparedVersion
    after: ComparedVersion
    changes: list[FileChange]
    same_files: int
    claimed_same_files: int
    layers: list[LayerChange]
    switch: Switch
    warnings: list[str]


class Comparison(_ComparisonFields, total=False):
    """The differences between two versions."""

    missing: list[str]


class _MountStatusFields(TypedDict):
    mountpoint: str
    reference: str
    digest: str
    entries: int
    total_bytes: int
    resident_bytes: int
    state: Any
    mounted_at: int
    warnings: list[str]
    last_failure: str | None
    passthrough: Any
    hydrate: Any


class MountStatus(_MountStatusFields, total=False):
    """A mount."""

    labels: list[str]
    overlay: str
    owner: int
    moved_to: str
    follow_failure: str
    unchecked_bytes: int
    hydrate_mode: str
    readahead: dict[str, Any]


class WarmedLayer(TypedDict):
    """A layer after `warm`. `failure` says why not all of it came."""

    digest: str
    wanted_bytes: int
    resident_bytes: int
    is_complete: bool
    state: Any
    failure: Failure | None


class _WarmReportFields(TypedDict):
    layers: list[WarmedLayer]
    warnings: list[str]


class WarmReport(_WarmReportFields, total=False):
    """The outcome of `warm`."""

    missing: list[str]


class WarmedFolder(TypedDict, total=False):
    """The outcome of `warm` with a folder (`to`)."""

    reference: str
    folder: str
    written_files: int
    unchanged_files: int
    failures: list[Any]
