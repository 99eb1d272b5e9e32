"""The kits of tests/golden, read without kitfs: Python's tarfile takes their layers apart."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"


@cache
def files(kit: str) -> dict[str, bytes]:
    """The files of a kit by path. The Kitfile is not in a layer, so it is left out."""
    by_digest = {hashlib.sha256(content).hexdigest(): content for content in _contents(kit)}
    found = {}
    for entry in tree(kit):
        if entry["type"] == "file" and entry["path"] != "Kitfile":
            found[entry["path"]] = by_digest[entry["sha256"]]
    return found


@cache
def tree(kit: str) -> tuple[dict[str, str], ...]:
    """The entries of a kit, as `kit unpack` wrote them."""
    return tuple(json.loads((GOLDEN / f"{kit}.tree.json").read_text()))


def _contents(kit: str) -> list[bytes]:
    blobs = GOLDEN / kit / "blobs" / "sha256"
    index = json.loads((GOLDEN / kit / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].split(":")[1]).read_text())
    contents = []
    for layer in manifest["layers"]:
        blob = (blobs / layer["digest"].split(":")[1]).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    contents.append(stream.read())
    return contents
