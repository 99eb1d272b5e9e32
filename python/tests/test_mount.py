"""Mounts that end with a block, an exception, a call or a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import golden
import kitfs
from conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Machine

pytestmark = pytest.mark.fuse


@pytest.fixture
def article(machine: Machine) -> str:
    return machine.reference("article")


def is_gone(path: Path) -> bool:
    """Whether nothing is mounted at the path, and no mount of kitfs is known there."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return str(path) not in mounted and str(path) not in {mount["mountpoint"] for mount in kitfs.status()}


def wait_until_gone(path: Path) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not is_gone(path):
        assert time.monotonic() < until, f"{path} stays mounted"
        time.sleep(0.1)


def test_a_mount_ends_with_its_block(article: str) -> None:
    with kitfs.mount(article) as kit:
        assert (kit / "src" / "train.py").read_bytes() == golden.files("article")["src/train.py"]
        assert Path(kit).is_dir()
        assert os.fspath(kit) == str(kit) == str(kit.path)
        assert sorted(os.listdir(kit)) == ["Kitfile", "data", "models", "src"]
        assert kit.digest == kitfs.info(article)["digest"]
        assert [mount["owner"] for mount in kitfs.status() if mount["mountpoint"] == str(kit)] == [os.getpid()]
        assert kit.is_mounted
    assert is_gone(kit.path)
    assert not kit.path.exists()
    assert not kit.is_mounted


def test_a_mount_ends_with_an_exception_of_its_block(article: str) -> None:
    with pytest.raises(ZeroDivisionError), kitfs.mount(article) as kit:
        raise ZeroDivisionError
    assert is_gone(kit.path)


def test_a_mount_may_be_ended_by_a_call(article: str, tmp_path: Path) -> None:
    kit = kitfs.mount(article, tmp_path / "kit")
    assert kit.path == tmp_path / "kit"
    kit.unmount()
    kit.unmount()
    assert is_gone(kit.path)


def test_a_directory_of_the_user_stays(article: str, tmp_path: Path) -> None:
    with kitfs.mount(article, tmp_path):
        assert (tmp_path / "Kitfile").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_somebody_else_has_ended_is_no_error(article: str, machine: Machine) -> None:
    with kitfs.mount(article) as kit:
        machine.run("umount", str(kit))


def test_open_files_can_be_read_after_the_block(article: str) -> None:
    with contextlib.ExitStack() as stack:
        with kitfs.mount(article) as kit:
            file = stack.enter_context((kit / "data" / "dataset.csv").open("rb"))
            first = file.read(10)
        assert first + file.read() == golden.files("article")["data/dataset.csv"]
    wait_until_gone(kit.path)
    assert not kit.path.exists()


HOLDER = """
import sys, time, kitfs
kit = kitfs.mount(sys.argv[1])
print(kit, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_mount_ends_with_its_process(article: str, end: signal.Signals) -> None:
    with _holder(HOLDER, article) as (holder, path):
        assert (path / "Kitfile").exists()
        holder.send_signal(end)
        holder.wait(WAIT_SECONDS)
        wait_until_gone(path)
        until = time.monotonic() + WAIT_SECONDS
        while path.exists():
            assert time.monotonic() < until, f"{path} is left"
            time.sleep(0.1)


@contextlib.contextmanager
def _holder(program: str, article: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    line = [sys.executable, "-c", program, article]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        try:
            assert holder.stdout is not None
            yield holder, Path(holder.stdout.readline().strip())
        finally:
            holder.kill()


def test_a_forked_child_leaves_the_mount_of_its_parent(article: str) -> None:
    with kitfs.mount(article) as kit:
        child = os.fork()
        if child == 0:
            # As a worker that leaves the block of its parent.
            kit.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert (kit / "Kitfile").exists()


def _read_first(mount: kitfs.Mount) -> bytes:
    with mount as kit:
        return (kit / "src" / "train.py").read_bytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_use_a_mount_and_leave_it(article: str, method: str) -> None:
    with kitfs.mount(article) as kit:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as workers:
            assert workers.submit(_read_first, kit).result() == golden.files("article")["src/train.py"]
        assert (kit / "Kitfile").exists()
    assert is_gone(kit.path)


def test_a_lock_of_the_parent_does_not_stop_a_forked_child(article: str) -> None:
    with kitfs.mount(article) as kit:
        with kit._lock:
            child = os.fork()
            if child == 0:
                kit.unmount()
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_filters_and_overlays_are_those_of_the_command(article: str, tmp_path: Path) -> None:
    with kitfs.mount(article, filters=["code", "kitfile"]) as kit:
        assert sorted(os.listdir(kit)) == ["Kitfile", "src"]
    with kitfs.mount(article, filters="datasets") as kit:
        assert sorted(os.listdir(kit)) == ["data"]
    with kitfs.mount(article, tmp_path / "kit", overlay=tmp_path / "changes") as kit:
        (kit / "new").write_text("new")
        (kit / "src" / "train.py").unlink()
    with kitfs.mount(article, tmp_path / "kit", overlay=tmp_path / "changes") as kit:
        assert (kit / "new").read_text() == "new"
        assert not (kit / "src" / "train.py").exists()


def test_failures_have_their_kinds(article: str, tmp_path: Path) -> None:
    with pytest.raises(kitfs.NotFoundError):
        kitfs.mount(f"{article}-nothing")
    with pytest.raises(kitfs.UsageError):
        kitfs.mount(article, filters="nonsense")
    with pytest.raises(kitfs.UsageError):
        kitfs.mount(article, options="--nonempty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(kitfs.MountpointError):
        kitfs.mount(article, tmp_path)


def test_mounts_are_in_the_status(article: str) -> None:
    with kitfs.mount(article) as kit:
        found = [mount for mount in kitfs.status() if mount["mountpoint"] == str(kit)]
        assert [mount["reference"] for mount in found] == [article]
    assert is_gone(kit.path)
