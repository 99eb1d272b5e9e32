#!/usr/bin/env python3
"""Writes an OCI layout with a ModelKit of one data set: data_set.py FOLDER BYTES."""

import hashlib
import io
import json
import os
import random
import sys
import tarfile


def main(folder, size):
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs)

    def blob(content, media_type):
        digest = hashlib.sha256(content).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(content)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(content)}

    content = random.Random(1)
    archive = io.BytesIO()
    files = 100
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(files):
            member = tarfile.TarInfo(f"data/part-{number}.bin")
            member.size = size // files
            tar.addfile(member, io.BytesIO(content.randbytes(member.size)))
    layer = blob(archive.getvalue(), "application/vnd.kitops.modelkit.dataset.v1.tar")
    config = {
        "manifestVersion": "1.0",
        "package": {"name": "users"},
        "datasets": [{"name": "data", "path": "data"}],
    }
    config = blob(json.dumps(config).encode(), "application/vnd.kitops.modelkit.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.kitops.modelkit.manifest.v1+json",
        "config": config,
        "layers": [layer],
    }
    manifest = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    for name, value in [("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})]:
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file)


main(sys.argv[1], int(sys.argv[2]))
