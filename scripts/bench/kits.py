"""Kits to measure with: made once of random bytes, pushed, and kept unpacked beside.

An OCI layout is written layer by layer and pushed by skopeo; see docs/format/tar.md for what is in
a layer. The unpacked copy on the same disk is what `kit unpack` would leave: it is the native
baseline, and what nginx serves to peers.
"""

import hashlib
import json
import os
import shutil
import tarfile

from processes import run

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.kitops.modelkit.config.v1+json"
LAYER_TYPE = "application/vnd.kitops.modelkit.{role}.v1.tar"
PIECE = 4 << 20


class Kit:
    """A kit in the registry, and its unpacked copy."""

    def __init__(self, bench, name, described):
        self.repository = f"bench/{name}"
        self.copy = os.path.join(bench.home, "copies", name)
        self.copy_path = f"copies/{name}"
        self.layers = described["layers"]
        self.bench = bench

    def reference(self, port):
        return f"127.0.0.1:{port}/{self.repository}:v1"

    def blob_url(self, port, layer=0):
        return f"http://127.0.0.1:{port}/v2/{self.repository}/blobs/{self.layers[layer]['digest']}"

    def blob_path(self, layer=0):
        """The layer's blob in the registry's storage, below the folder that nginx serves."""
        hexadecimal = self.layers[layer]["digest"].split(":")[1]
        blobs = "registry/docker/registry/v2/blobs/sha256"
        return f"{blobs}/{hexadecimal[:2]}/{hexadecimal}/data"

    def into_memory(self, by_nginx=False):
        """Brings the files of a server into the page cache, because a real server has a disk of its own.
        The next measurement finds its memory ready."""
        os.sync()
        files = [os.path.join(self.bench.home, self.blob_path(it)) for it in range(len(self.layers))]
        if by_nginx:
            files += [os.path.join(folder, name)
                      for folder, _, names in os.walk(self.copy) for name in names]
        piece = bytearray(PIECE)
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(piece):
                    pass
        self.bench.claim_memory()


def prepare(bench, name, write_files):
    """The kit `name`; `write_files(folder)` fills the copy and returns (role, path) of each layer.

    A layer's path is a file or a folder of the copy.
    """
    described = os.path.join(bench.home, "kits", name + ".json")
    if not os.path.exists(described):
        bench.say(f"making the kit {name}")
        os.makedirs(os.path.dirname(described), exist_ok=True)
        copy = os.path.join(bench.home, "copies", name)
        shutil.rmtree(copy, ignore_errors=True)
        os.makedirs(copy)
        layers = push(bench, name, copy, write_files(copy))
        with open(described + ".new", "w") as file:
            json.dump({"layers": layers}, file)
        os.rename(described + ".new", described)
    with open(described) as file:
        return Kit(bench, name, json.load(file))


def push(bench, name, copy, parts):
    layout = os.path.join(bench.home, "layout")
    shutil.rmtree(layout, ignore_errors=True)
    os.makedirs(os.path.join(layout, "blobs/sha256"))
    layers = [write_layer(layout, copy, role, path) for role, path in parts]
    config = write_json(layout, kitfile(layers))
    manifest = {
        "schemaVersion": 2,
        "config": dict(config, mediaType=CONFIG_TYPE),
        "layers": [{
            "mediaType": LAYER_TYPE.format(role=it["role"]), "digest": it["digest"],
            "size": it["size"], "annotations": {"org.cncf.model.filepath": it["path"]},
        } for it in layers],
        "annotations": {"ml.kitops.modelkit.cli-version": "1.15.0"},
    }
    manifest = dict(write_json(layout, manifest), mediaType=MANIFEST_TYPE,
                    annotations={"org.opencontainers.image.ref.name": "v1"})
    for file, text in [("index.json", {"schemaVersion": 2, "manifests": [manifest]}),
                       ("oci-layout", {"imageLayoutVersion": "1.0.0"})]:
        with open(os.path.join(layout, file), "w") as out:
            json.dump(text, out)
    target = f"docker://127.0.0.1:{bench.registry.port}/bench/{name}:v1"
    run(["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
         f"oci:{layout}:v1", target], env=bench.environment())
    shutil.rmtree(layout)
    return layers


def kitfile(layers):
    """The config: the Kitfile as JSON."""
    entry = lambda it: {"path": it["path"], "digest": it["digest"], "diffId": it["digest"]}
    of = lambda role: [entry(it) for it in layers if it["role"] == role]
    text = {"manifestVersion": "1.0.0", "package": {"name": "bench"}}
    if models := of("model"):
        text["model"] = dict(models[0], parts=of("modelpart"))
    if datasets := of("dataset"):
        text["datasets"] = datasets
    return text


def write_layer(layout, copy, role, path):
    blobs = os.path.join(layout, "blobs/sha256")
    with open(os.path.join(blobs, "new"), "wb") as raw:
        out = Hashed(raw)
        whole = os.path.join(copy, path)
        if os.path.isdir(whole):
            write_member(out, copy, path)
            for file in sorted(os.listdir(whole)):
                write_member(out, copy, f"{path}/{file}")
        else:
            write_member(out, copy, path)
        out.write(bytes(1024))
    hexadecimal = out.digest.hexdigest()
    os.rename(os.path.join(blobs, "new"), os.path.join(blobs, hexadecimal))
    return {"role": role, "path": path, "digest": f"sha256:{hexadecimal}", "size": out.size}


def write_member(out, copy, path):
    header = tarfile.TarInfo(path)
    whole = os.path.join(copy, path)
    if os.path.isdir(whole):
        header.type, header.mode = tarfile.DIRTYPE, 0o755
        out.write(header.tobuf(tarfile.USTAR_FORMAT))
        return
    header.size = os.path.getsize(whole)
    out.write(header.tobuf(tarfile.PAX_FORMAT))
    with open(whole, "rb") as file:
        while piece := file.read(PIECE):
            out.write(piece)
    out.write(bytes(-header.size % 512))


def write_json(layout, value):
    text = json.dumps(value, separators=(",", ":")).encode()
    hexadecimal = hashlib.sha256(text).hexdigest()
    with open(os.path.join(layout, "blobs/sha256", hexadecimal), "wb") as file:
        file.write(text)
    return {"digest": f"sha256:{hexadecimal}", "size": len(text)}


class Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, raw):
        self.raw, self.digest, self.size = raw, hashlib.sha256(), 0

    def write(self, piece):
        self.raw.write(piece)
        self.digest.update(piece)
        self.size += len(piece)


def write_random(path, size):
    with open(path, "wb") as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(PIECE, left)))


def big_file(size):
    """One file of random bytes, as one model layer."""
    def write(folder):
        write_random(os.path.join(folder, "weights.bin"), size)
        return [("model", "weights.bin")]
    return write


def shards(count, size):
    """Files of random bytes, each a layer of its own, as kit cuts imported models."""
    def write(folder):
        names = [f"shard-{at:02}.bin" for at in range(count)]
        for name in names:
            write_random(os.path.join(folder, name), size)
        return [("model", names[0])] + [("modelpart", name) for name in names[1:]]
    return write


def safetensors(count, size):
    """Shards of safetensors with their index; each has tensors of up to 8 MiB."""
    def write(folder):
        parts, weights, tensor = [], {}, min(size // 2, 8 << 20)
        for at in range(count):
            name = f"model-{at + 1:05}-of-{count:05}.safetensors"
            header = {}
            for index, start in enumerate(range(0, size, tensor)):
                key = f"layers.{at}.weight.{index}"
                end = min(start + tensor, size)
                header[key] = {"dtype": "F32", "shape": [(end - start) // 4],
                               "data_offsets": [start, end]}
                weights[key] = name
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(os.path.join(folder, name), "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for start in range(0, size, PIECE):
                    file.write(os.urandom(min(PIECE, size - start)))
            parts.append(("modelpart" if at else "model", name))
        index = {"metadata": {"total_size": count * size}, "weight_map": weights}
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
            json.dump(index, file)
        return parts + [("modelpart", "model.safetensors.index.json")]
    return write


def images(count, size):
    """A folder of small files in one dataset layer."""
    def write(folder):
        os.mkdir(os.path.join(folder, "images"))
        for at in range(count):
            write_random(os.path.join(folder, "images", f"{at:05}.jpg"), size)
        return [("dataset", "images")]
    return write


def made_by(argv, path):
    """One model file that a command makes; the folder is its last argument."""
    def write(folder):
        run(argv + [folder], timeout=600)
        return [("model", path)]
    return write
