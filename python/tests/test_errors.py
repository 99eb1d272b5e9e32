"""Errors by kind."""

from __future__ import annotations

import errno
import pickle

import pytest

import kitfs
from kitfs import errors

ALL = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", ALL)
def test_each_error_is_one_of_kitfs_and_of_files(kind: type[kitfs.KitfsError]) -> None:
    error = kind("the message")
    assert isinstance(error, kitfs.KitfsError)
    assert isinstance(error, OSError)
    assert str(error) == "the message"
    assert isinstance(error.errno, int)


@pytest.mark.parametrize("kind", ALL)
def test_errors_travel_between_processes(kind: type[kitfs.KitfsError]) -> None:
    error = kind("the message")
    error.report = {"layers": []}
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno, again.report) == (kind, "the message", error.errno, error.report)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        ("not_found", FileNotFoundError),
        ("unauthorized", PermissionError),
        ("forbidden", PermissionError),
        ("unavailable", ConnectionError),
        ("usage", ValueError),
        ("daemon", ConnectionError),
    ],
)
def test_errors_are_those_that_python_has(kind: str, builtin: type[Exception]) -> None:
    assert isinstance(errors.error_of_kind(kind, "x"), builtin)


def test_an_unknown_kind_is_an_error_too() -> None:
    assert type(errors.error_of_kind("a kind of a later version", "x")) is kitfs.KitfsError
    assert type(errors.error_of_exit_code(77, "x")) is kitfs.KitfsError


def test_a_write_is_refused_as_by_a_read_only_file_system() -> None:
    error = errors.read_only("a")
    assert error.errno == errno.EROFS
    assert isinstance(error, NotImplementedError)
