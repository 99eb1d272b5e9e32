"""Clients over real kits: by HTTP and by the command, with the same results."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import golden
import kit_builder
import kitfs

if TYPE_CHECKING:
    from conftest import Machine


def test_info_has_the_kitfile_and_the_layers(client: kitfs.Client, machine: Machine) -> None:
    info = client.info(machine.reference("article"))
    assert "name: AIProjectName" in str(info.get("kitfile"))
    index = json.loads((golden.GOLDEN / "article" / "index.json").read_text())
    assert info["digest"] == index["manifests"][0]["digest"]
    with pytest.raises(kitfs.NotFoundError):
        client.info(machine.reference("article", "nothing"))
    with pytest.raises(kitfs.UsageError):
        client.info("UPPER/CASE:v1")


def test_diff_names_the_files_that_differ(client: kitfs.Client, machine: Machine) -> None:
    same = client.diff(machine.reference("article"), f"oci:{golden.GOLDEN}/article:v1")
    assert (same["changes"], same["same_files"]) == ([], len(golden.files("article")) + 1)
    compared = client.diff(machine.reference("article"), machine.reference("comp-none"), "src")
    kinds = {change["path"]: change["kind"] for change in compared["changes"]}
    assert kinds["src/train.py"] == "removed"
    with pytest.raises(kitfs.NotFoundError):
        client.diff(machine.reference("article"), machine.reference("article", "nothing"))
    with pytest.raises(kitfs.NotFoundError):
        client.diff(machine.reference("article"), machine.reference("comp-none"), "nothing")


def test_diff_may_compare_bytes(client: kitfs.Client, machine: Machine) -> None:
    before, after = machine.reference("comp-none"), machine.reference("comp-gzip")
    assert {change["kind"] for change in client.diff(before, after)["changes"]} == {"maybe"}
    assert client.diff(before, after, content=True)["changes"] == []


def test_entries_are_those_of_the_command(client: kitfs.Client, machine: Machine) -> None:
    entries = client.entries(machine.reference("article"), recursive=True)
    assert [entry["path"] for entry in entries] == [entry["path"] for entry in golden.tree("article")]


ODD_NAMES = (b"sp ace", b"per%25cent", b"\xff\xfe", "\u00fc\U0001f600".encode(), b"a#b?c=d&e+f", b"new\nline", b"a:b@c")


@pytest.fixture(scope="module")
def odd(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kit with symlinks, and with names of any bytes."""
    files = {name: name for name in ODD_NAMES}
    files |= {b"plain": b"plain", b"deep/deep": b"deep in deep", b"one/one": b"one in one"}
    links = {b"link": b"plain", b"far": b"deep", b"deep/up": b"../plain", b"deep/two": b"../one"}
    links |= {b"nowhere": b"missing", b"circle": b"circle", b"out": b"../../out"}
    reference = machine.reference("odd")
    machine.run("copy", kit_builder.layout(tmp_path_factory.mktemp("odd"), files, links), reference)
    return reference


def test_names_of_any_bytes_are_read(client: kitfs.Client, odd: str) -> None:
    fs = client.filesystem()
    names = {name.rpartition("/")[2] for name in fs.find(odd)}
    for name in ODD_NAMES:
        assert os.fsdecode(name) in names
        assert fs.cat_file(f"{odd}/data/{os.fsdecode(name)}") == name
        assert client.diff(odd, odd, f"data/{os.fsdecode(name)}")["changes"] == []


def test_symlinks_stand_for_their_targets(client: kitfs.Client, odd: str) -> None:
    fs = client.filesystem()
    link = fs.info(f"{odd}/data/link")
    assert (link["type"], link["size"], link["islink"], link["destination"]) == ("file", 5, True, "plain")
    assert fs.cat_file(f"{odd}/data/link") == fs.cat_file(f"{odd}/data/deep/up") == b"plain"
    assert client.file(odd, "data/link") == client.file(odd, "data/plain")
    # A link to a folder is followed when it is named, and not when a tree is walked.
    assert fs.isdir(f"{odd}/data/far")
    assert fs.ls(f"{odd}/data/far", detail=False) == [f"{odd}/data/far/{name}" for name in ("deep", "two", "up")]
    # A listing that is remembered would answer.
    fs.invalidate_cache()
    assert fs.isfile(f"{odd}/data/far/deep")
    assert fs.cat_file(f"{odd}/data/far/deep") == b"deep in deep"
    # A folder with one entry of the folder's own name is no file.
    fs.invalidate_cache()
    assert fs.isdir(f"{odd}/data/far/two")
    assert fs.isdir(f"{odd}/data/deep/two")
    assert fs.cat_file(f"{odd}/data/far/two/one") == b"one in one"
    types = {info["name"].rpartition("/")[2]: info["type"] for info in fs.ls(f"{odd}/data")}
    assert (types["link"], types["far"], types["nowhere"], types["circle"], types["out"]) == (
        "file",
        *["link"] * 4,
    )
    assert f"{odd}/data/far/deep" not in fs.find(odd)
    assert fs.find(f"{odd}/data/far") == [f"{odd}/data/far/deep", f"{odd}/data/far/two", f"{odd}/data/far/up"]
    with pytest.raises(kitfs.NotFoundError):
        client.file(odd, "data/nowhere")
    with pytest.raises(kitfs.KitfsError):
        client.file(odd, "data/circle")


def test_an_open_file_has_the_bytes_of_one_version(client: kitfs.Client, machine: Machine) -> None:
    first = golden.files("article")["src/train.py"]
    machine.run("tag", "--force", machine.reference("article"), "replaced")
    reference = machine.reference("article", "replaced")
    with client.open(reference, "src/train.py", block_size=512) as file:
        assert file.read(100) == first[:100]
        machine.run("copy", "--force", f"oci:{golden.GOLDEN}/comp-none:v1", reference)
        try:
            assert file.read() == first[100:]
        except kitfs.ChangedError:
            assert client.backend == "http"


def test_threads_share_a_client(client: kitfs.Client, machine: Machine) -> None:
    content = golden.files("article")["data/dataset.csv"]
    reference = machine.reference("article")

    def read(start: int) -> bool:
        return client.read(reference, "data/dataset.csv", start, start + 100) == content[start : start + 100]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(0, 4000, 100)))


def _is_right(work: tuple[kitfs.Client, str, int]) -> bool:
    client, reference, start = work
    found = client.read(reference, "data/dataset.csv", start, start + 100)
    return found == golden.files("article")["data/dataset.csv"][start : start + 100]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader_share_a_client(client: kitfs.Client, machine: Machine, method: str) -> None:
    reference = machine.reference("article")
    assert _is_right((client, reference, 0))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as workers:
        assert all(workers.map(_is_right, [(client, reference, start) for start in range(0, 2000, 100)]))


def test_the_daemon_is_found_by_itself(machine: Machine, url: str) -> None:
    client = kitfs.Client()
    assert client.backend == "http"
    assert client.read(machine.reference("article"), "src/train.py") == golden.files("article")["src/train.py"]


def test_without_http_the_command_reads(machine: Machine, tmp_path: Path) -> None:
    client = kitfs.Client(cache_dir=tmp_path / "cache")
    try:
        assert client.backend == "command"
        assert client.read(machine.reference("article"), "src/train.py") == golden.files("article")["src/train.py"]
    finally:
        machine.run("daemon", "stop", "--cache-dir", str(tmp_path / "cache"))


def test_a_daemon_at_another_address_is_found_again(machine: Machine, tmp_path: Path) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    reference, expected = machine.reference("article"), golden.files("article")["src/train.py"]
    client = kitfs.Client(cache_dir=tmp_path / "cache")
    try:
        machine.run("daemon", "start", "--listen", "127.0.0.1:0", *cache)
        assert client.read(reference, "src/train.py") == expected
        assert client.backend == "http"
        machine.run("daemon", "stop", *cache)
        assert client.read(reference, "src/train.py") == expected
        assert client.backend == "command"
    finally:
        machine.run("daemon", "stop", *cache)


def test_a_missing_command_is_named() -> None:
    client = kitfs.Client(command="/nowhere/kitfs")
    for ask in (lambda: client.info("h.io/x:v1"), lambda: client.warm("h.io/x:v1"), lambda: client.mount("h.io/x:v1")):
        with pytest.raises(kitfs.CommandMissingError, match="/nowhere/kitfs"):
            ask()
    assert not isinstance(kitfs.CommandMissingError("x"), FileNotFoundError)


def test_a_silent_command_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "kitfs"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    client = kitfs.Client(command=str(program), options=["--plain-http"], timeout=0.5)
    for ask in (lambda: client.info("h.io/x:v1"), lambda: client.read("h.io/x:v1", "a")):
        with pytest.raises(kitfs.KitfsTimeoutError):
            ask()


def test_options_reach_the_command(tmp_path: Path) -> None:
    program = tmp_path / "kitfs"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{tmp_path}/arguments\necho "{{}}"\n')
    program.chmod(0o755)
    client = kitfs.Client(command=str(program), cache_dir="/srv/cache", options=["--plain-http"])
    client.info("--h.io/x:v1")
    expected = ["info", "--json", "--cache-dir", "/srv/cache", "--plain-http", "--", "--h.io/x:v1"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected


def test_warm_brings_the_kit_to_the_cache(machine: Machine, tmp_path: Path) -> None:
    client = kitfs.Client(cache_dir=tmp_path / "cache")
    report = client.warm(machine.reference("article"))
    assert [layer["is_complete"] for layer in report["layers"]] == [True] * 3
    assert len(client.warm(machine.reference("article"), "src/train.py", "src/lib")["layers"]) == 1
    with pytest.raises(kitfs.NotFoundError):
        client.warm(machine.reference("article"), "nothing")


def test_warm_fills_a_folder(machine: Machine, tmp_path: Path) -> None:
    client = kitfs.Client(cache_dir=tmp_path / "cache")
    report = client.warm_to(machine.reference("article"), tmp_path / "kit", filters="code")
    assert report["written_files"] == 3
    assert (tmp_path / "kit" / "src" / "train.py").read_bytes() == golden.files("article")["src/train.py"]


def test_the_functions_of_the_module_use_the_daemon(machine: Machine, url: str) -> None:
    reference = machine.reference("article")
    assert kitfs.info(reference)["digest"].startswith("sha256:")
    assert kitfs.diff(reference, reference)["changes"] == []
    assert kitfs.warm(reference, "Kitfile")["layers"] == []
    content = golden.files("article")["data/dataset.csv"]
    with kitfs.open(reference, "data/dataset.csv") as file:
        assert file.read() == content
    with kitfs.open(reference, "data/dataset.csv", "r", encoding="utf-8", newline="") as file:
        assert file.readline() == content.decode().splitlines(keepends=True)[0]
    with pytest.raises(kitfs.ReadOnlyError):
        kitfs.open(reference, "Kitfile", "w")
    with pytest.raises(kitfs.UsageError):
        kitfs.open(reference, "Kitfile", "b")


def test_calls_are_logged(client: kitfs.Client, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="kitfs"):
        client.info(machine.reference("article"))
    assert any(record.name == "kitfs" for record in caplog.records)


def test_the_package_is_quiet_without_logging(machine: Machine, url: str) -> None:
    code = f"import kitfs; kitfs.info({machine.reference('article')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")
