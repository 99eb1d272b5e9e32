"""Real programs, each from the mount and from an unpacked copy, cold and cached.

What they load is compared by a checksum: a difference ends the case.
"""

import contextlib
import json
import os
import time

from kits import images, made_by, prepare, safetensors
from measuring import LOG_SECONDS, Case, Row, by_curl_and_tar, confirmed
from processes import drop_caches, run
from servers import Way
from subjects import Copy, Kitfs, reader

MIB = 1 << 20


def programs(bench):
    """The cases, by name; a program that is not installed has none."""
    cases = [
        program(bench, "safetensors", f"safetensors + numpy, 10 shards of {bench.tensor_mib} MiB",
                lambda: prepare(bench, f"safetensors-{bench.tensor_mib}m",
                                safetensors(10, bench.tensor_mib * MIB)), "load_safetensors.py"),
    ]
    if bench.torch:
        cases.append(program(
            bench, "torch-data", f"torch.utils.data, {bench.images} files of 100 KiB, 2 workers",
            lambda: prepare(bench, f"images-{bench.images}", images(bench.images, 100 << 10)),
            "load_images.py"))
    if bench.llama:
        def gguf():
            # The environment is installed after the cases were named.
            maker = [bench.venv_python, os.path.join(bench.scripts, "make_gguf.py")]
            return prepare(bench, "gguf", made_by(maker, "model.gguf"))

        cases.append(program(
            bench, "llama", "llama-cpp-python, a small GGUF", gguf, "load_llama.py"))
    return cases


def program(bench, name, title, kit, script):
    def load(folder):
        argv = [bench.venv_python, os.path.join(bench.scripts, script), folder]
        return json.loads(run(argv, env=bench.environment()).splitlines()[-1])

    @contextlib.contextmanager
    def filled():
        """A mount whose files are all in the cache and confirmed."""
        with Kitfs(bench, kit(), bench.registry.port) as subject:
            reader(bench, "check", *files(subject.folder))
            confirmed(subject)
            yield subject

    def cold(*_):
        packed = kit()
        with Way(bench, bench.registry, False) as way:
            warm_up()
            packed.into_memory()
            with Kitfs(bench, packed, way.port) as subject:
                sample = load(subject.folder)
                # Small files have come by now: mounting is to this row what downloading is to curl.
                sample["mounted"] = subject.mount_seconds
                sample["seconds"] += subject.mount_seconds
                sample["cpu"], sample["rss"] = subject.cpu(), subject.peak()
            time.sleep(LOG_SECONDS)
            sample["requests"], sample["fetched"] = way.counts()
        return sample

    def warm_up():
        """Programs and libraries come from the page cache, the kit does not."""
        drop_caches()
        bench.claim_memory()
        for tool in (bench.kitfs, "curl", "tar"):
            run([tool, "--version"])
        run([bench.venv_python, os.path.join(bench.scripts, script)], env=bench.environment())

    def again(subject, hot):
        warm_up()
        if hot:
            load(subject.folder)
        before = subject.cpu() if subject.pid else None
        sample = load(subject.folder)
        if subject.pid:
            sample["cpu"], sample["rss"] = subject.cpu() - before, subject.peak()
        return sample

    def download(*_):
        return by_curl_and_tar(bench, kit(), load, warm_up)

    return Case(name, title, [
        Row("curl and tar, then load", download),
        Row("kitfs, cold", cold),
        Row("ext4 copy, from disk", lambda *_: again(Copy(kit()), False)),
        Row("kitfs, cached, from disk", lambda subject, _: again(subject, False),
            against="ext4 copy, from disk"),
        Row("ext4 copy, hot", lambda *_: again(Copy(kit()), True)),
        Row("kitfs, cached, hot", lambda subject, _: again(subject, True),
            against="ext4 copy, hot"),
    ], filled)


def files(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
