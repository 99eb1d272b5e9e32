"""Packages from PyPI, in a virtual environment of their own below the benchmark's folder."""

import os
import sys

from processes import run

# The commands and modules that a package is there for, by the name that pip knows.
# ratarmount reads over http by fsspec and aiohttp, but asks for neither.
ALWAYS = {"ratarmount": "bin/ratarmount", "fsspec": "fsspec", "aiohttp": "aiohttp",
          "numpy": "numpy", "safetensors": "safetensors"}
TORCH = {"torch": "torch"}
LLAMA = {"llama-cpp-python": "llama_cpp", "gguf": "gguf"}
# torch brings 5 GB along, and llama-cpp-python is compiled.
INSTALL_SECONDS = 3600
# Ten minutes of compiling instead of an hour: without pictures and sound, and hardly optimised.
# The case measures how weights arrive, and the mount and the copy use the same library.
COMPILING = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF "
                           "-DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1"}


def install(bench, wanted):
    """Makes sure that packages are there; returns the environment's Python."""
    folder = os.path.join(bench.home, "venv")
    python = os.path.join(folder, "bin/python")
    # pip comes last: where it is missing, something broke off.
    if not os.path.exists(os.path.join(folder, "bin/pip")):
        bench.say("making a virtual environment")
        run([sys.executable, "-m", "venv", "--clear", folder])
    for package, proof in wanted.items():
        if not is_there(bench, python, proof):
            bench.say(f"installing {package} from PyPI")
            run([python, "-m", "pip", "install", "--quiet", package],
                env=os.environ | COMPILING, timeout=INSTALL_SECONDS)
    return python


def is_there(bench, python, proof):
    if "/" in proof:
        return os.path.exists(os.path.join(bench.home, "venv", proof))
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    return os.spawnv(os.P_WAIT, python, [python, "-c", find, proof]) == 0
