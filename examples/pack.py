"""Packs a folder with a Kitfile as kit does (uncompressed tar layers) and sends it: pack.py FOLDER REF."""

import hashlib
import http.client
import io
import json
import os
import stat
import sys
import tarfile

import yaml


def entries(kitfile):
    """The entries that become layers, in kit's order, with the type of the layer."""
    model = kitfile.get("model")
    if model and "path" in model:
        yield "model", model
    for part in (model or {}).get("parts", []):
        yield "modelpart", part
    for section, kind in [("code", "code"), ("datasets", "dataset"), ("docs", "docs"), ("prompts", "code")]:
        for entry in kitfile.get(section, []):
            yield kind, entry


def walk(folder, path):
    """The ancestors of a path and all below it, in lexical order."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        yield "/".join(parts[:depth])
    yield path
    if os.path.isdir(os.path.join(folder, path)):
        for name in sorted(os.listdir(os.path.join(folder, path))):
            for below in walk(folder, f"{path}/{name}"):
                if below.startswith(f"{path}/"):
                    yield below


def tar(folder, path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for name in dict.fromkeys(walk(folder, path)):
            status = os.stat(os.path.join(folder, name))
            member = tarfile.TarInfo(name)
            member.mode = stat.S_IMODE(status.st_mode)
            member.uid = 1000
            if stat.S_ISDIR(status.st_mode):
                member.type = tarfile.DIRTYPE
                writer.addfile(member)
            else:
                member.size = status.st_size
                with open(os.path.join(folder, name), "rb") as content:
                    writer.addfile(member, content)
    return archive.getvalue()[: archive.tell()]


class Registry:
    def __init__(self, reference):
        host, _, rest = reference.partition("/")
        self.repository, _, self.tag = rest.rpartition(":")
        self.connection = http.client.HTTPConnection(host, timeout=60)

    def request(self, method, path, body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer

    def blob(self, content, media_type):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        there = self.request("HEAD", f"/v2/{self.repository}/blobs/{digest}").status == 200
        if not there:
            place = self.request("POST", f"/v2/{self.repository}/blobs/uploads/").headers["Location"]
            place = place[place.index("/v2/") :]
            answer = self.request(
                "PUT", f"{place}&digest={digest}", content, Content_Type="application/octet-stream"
            )
            assert answer.status == 201, answer.status
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def manifest(self, manifest):
        answer = self.request(
            "PUT",
            f"/v2/{self.repository}/manifests/{self.tag}",
            json.dumps(manifest),
            Content_Type="application/vnd.oci.image.manifest.v1+json",
        )
        assert answer.status == 201, answer.status
        return answer.headers["Docker-Content-Digest"]


def main(folder, reference):
    with open(os.path.join(folder, "Kitfile"), encoding="utf-8") as file:
        kitfile = yaml.safe_load(file)
    registry = Registry(reference)
    layers = []
    for kind, entry in entries(kitfile):
        path = os.path.normpath(entry["path"])
        layer = registry.blob(tar(folder, path), f"application/vnd.kitops.modelkit.{kind}.v1.tar")
        entry["digest"] = entry["diffId"] = layer["digest"]
        layers.append(layer | {"annotations": {"org.cncf.model.filepath": path}})
    config = registry.blob(
        json.dumps(kitfile, separators=(",", ":")).encode(),
        "application/vnd.kitops.modelkit.config.v1+json",
    )
    digest = registry.manifest(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.kitops.modelkit.manifest.v1+json",
            "config": config,
            "layers": layers,
        }
    )
    print(f"pushed {reference}  {digest[:19]}")


main(sys.argv[1], sys.argv[2])
