"""The package and its metadata."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from typing import get_type_hints

import pytest

import kitfs
from golden import REPOSITORY
from kitfs import _types


def test_the_version_is_that_of_kitfs() -> None:
    cargo = re.search(r'^version = "(.*)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)
    assert cargo is not None
    assert kitfs.__version__ == importlib.metadata.version("kitfs") == cargo[1]


def test_the_license_is_that_of_kitfs() -> None:
    assert (REPOSITORY / "python" / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_public_functions_are_documented_and_typed() -> None:
    for name in kitfs.__all__:
        public = getattr(kitfs, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, name
        if inspect.isfunction(public):
            signature = inspect.signature(public)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(it.annotation is not inspect.Parameter.empty for it in signature.parameters.values()), name


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason="Python 3.9 evaluates no `X | None`, and the package does not either"
)
def test_types_of_values_evaluate() -> None:
    for name in _types.__all__:
        if name != "EntryKind":
            assert get_type_hints(getattr(kitfs, name)), name


def test_importing_the_package_imports_no_fsspec() -> None:
    source = inspect.getsource(kitfs)
    assert "fsspec" not in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
