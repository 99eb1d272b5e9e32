"""Makes kits that `kitfs pack` does not make: with symlinks, and with names of any bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MODELKIT = "application/vnd.kitops.modelkit"


def layout(folder: Path, files: dict[bytes, bytes], links: dict[bytes, bytes]) -> str:
    """Writes an OCI layout with a kit of one data set, `data`, and returns its reference.

    `files` are contents by path, `links` targets by path; paths begin below `data`.
    """
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        folders = {name.rpartition(b"/")[0] for name in [*files, *links]} - {b""}
        for name in sorted({b"", *folders}):
            archive.addfile(_member(name, tarfile.DIRTYPE))
        for name, content in files.items():
            member = _member(name, tarfile.REGTYPE)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = _member(name, tarfile.SYMTYPE)
            member.linkname = os.fsdecode(target)
            archive.addfile(member)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "odd"}, "datasets": [{"name": "data", "path": "data"}]}
    config = _blob(blobs, json.dumps(kitfile).encode(), f"{MODELKIT}.config.v1+json")
    layer = _blob(blobs, stream.getvalue(), f"{MODELKIT}.dataset.v1.tar")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": f"{MODELKIT}.manifest.v1+json",
        "config": config,
        "layers": [layer],
    }
    entry = _blob(blobs, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}:v1"


def _member(name: bytes, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(os.fsdecode(b"data/" + name).rstrip("/"))
    member.type = kind
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    member.mtime = 1_700_000_000
    return member


def _blob(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
