"""Shared by the tests: the command, a registry with the golden kits, and a daemon with a cache of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

import kitfs
from golden import GOLDEN, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

# The machine may be loaded by others, so no example has a deadline. A fixture lives for all examples of a property.
settings.register_profile(
    "kitfs", deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("kitfs")

# The kits that the registry has.
KITS = ("article", "comp-none", "comp-gzip", "small5k")
# Generous: a loaded machine takes its time to start a process.
WAIT_SECONDS = 120.0


class Machine(NamedTuple):
    """A command, a cache folder and a registry."""

    command: str
    cache: str
    registry: str

    def reference(self, kit: str, tag: str = "v1") -> str:
        return f"{self.registry}/golden/{kit}:{tag}"

    def run(self, *arguments: str) -> str:
        """Runs the command, which must succeed."""
        line = [self.command, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout


def _command() -> str:
    given = os.environ.get("KITFS")
    for candidate in [given] if given else [str(REPOSITORY / "target/debug/kitfs"), shutil.which("kitfs")]:
        if candidate and Path(candidate).is_file():
            return candidate
    raise pytest.UsageError("there is no kitfs: run scripts/test-python.sh, or set KITFS to the program")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def _registry(command: str, folder: Path) -> Iterator[str]:
    """An empty docker-registry, or `kitfs serve` over the golden kits where there is none."""
    program = shutil.which("docker-registry") or shutil.which("docker-registry", path="/usr/sbin:/sbin")
    # Another process may take the port first.
    for _ in range(3):
        port = _free_port()
        if program is not None:
            config = folder / "registry.yml"
            config.write_text(
                "version: 0.1\nlog: {level: error}\n"
                f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
                f'http: {{addr: "127.0.0.1:{port}"}}\n'
            )
            line = [program, "serve", str(config)]
        else:
            layouts = [f"oci:{GOLDEN / kit}:v1=golden/{kit}:v1" for kit in KITS]
            line = [command, "serve", *layouts, "--listen", f"127.0.0.1:{port}"]
        with (folder / "registry.log").open("ab") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            if _wait_for_port(port, process):
                yield f"127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            process.wait()
    raise RuntimeError(f"no registry starts: {(folder / 'registry.log').read_text()[-2000:]}")


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    command = _command()
    # The path of a socket has 107 bytes at most, so the folder of pytest is too long.
    with tempfile.TemporaryDirectory(prefix="kitfs-py-") as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder, "home")
        home.mkdir()
        # No test reads the user's cache, credentials, configuration or daemon.
        for name in [name for name in os.environ if name.startswith(("KITFS_", "KITOPS_", "XDG_", "AWS_", "DOCKER_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("KITFS_CACHE_DIR", str(Path(folder, "cache")))
        patch.setenv("PATH", f"{Path(command).parent}{os.pathsep}{os.environ['PATH']}")
        with _registry(command, Path(folder)) as registry:
            made = Machine(command, str(Path(folder, "cache")), registry)
            made.run("daemon", "start", "--listen", "127.0.0.1:0")
            try:
                for kit in KITS:
                    made.run("copy", f"oci:{GOLDEN / kit}:v1", made.reference(kit))
                yield made
            finally:
                made.run("daemon", "stop")


@pytest.fixture(scope="session")
def url(machine: Machine) -> str:
    """The address of the daemon's HTTP interface."""
    status = json.loads(machine.run("daemon", "status", "--json"))
    return str(status["http"])


@pytest.fixture(params=["http", "command"])
def client(machine: Machine, request: pytest.FixtureRequest) -> kitfs.Client:
    """A client for each of the two backends."""
    if request.param == "http":
        return kitfs.Client(request.getfixturevalue("url"), timeout=WAIT_SECONDS)
    # An option makes the client run the command; this one changes nothing.
    return kitfs.Client(options=["--retries=5"], timeout=WAIT_SECONDS)
