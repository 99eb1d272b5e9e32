"""References and paths, taken apart as the command does (src/cli/reference.rs has the same cases)."""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs import _reference

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("reference", "separator", "path"),
    [
        ("ghcr.io/org/model:v1", "/", "a/b:c"),
        ("127.0.0.1:5000/model:v1", "/", ""),
        ("127.0.0.1:5000/model", "", ""),
        ("localhost/org/model:v1", "/", "a"),
        ("org/model:v1", "/", "a"),
        (f"ghcr.io/org/model@{DIGEST}", "/", "a@b"),
        (f"ghcr.io/org/model:v1@{DIGEST}", "/", "a"),
        (DIGEST, "/", "a"),
        ("ghcr.io/org/model", "", ""),
        ("ghcr.io/org/model", "//", "a/b"),
        ("model", "//", "a:b/c"),
        ("oci:elsewhere/a:v1/b", "", ""),
    ],
)
def test_a_path_begins_after_the_tag_or_digest(reference: str, separator: str, path: str) -> None:
    assert _reference.split(f"{reference}{separator}{path}") == (reference, path)


@pytest.mark.parametrize(
    ("reference", "path"),
    [("kits/a", "c/d"), ("kits/a/b", "c/d"), ("kits/a:v1", "c:d/e"), (f"kits/a@{DIGEST}", "c"), ("x:y:v1", "z")],
)
def test_the_folder_of_a_layout_is_the_longest_that_is_one(
    reference: str, path: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("kits/a/b", "x:y"):
        os.makedirs(folder)
    for folder in ("kits/a", "kits/a/b", "x:y"):
        with open(f"{folder}/oci-layout", "w") as file:
            file.write("{}")
    assert _reference.split(f"oci:{reference}/{path}") == (f"oci:{reference}", path)
    assert _reference.join(f"oci:{reference}", path) == f"oci:{reference}/{path}"


REFERENCES = st.sampled_from(
    ["ghcr.io/org/model:v1", "ghcr.io/model", "model", "oci:/nowhere/x:v1", f"h.io/m@{DIGEST}"]
)
# Names of any bytes, as a tar may have them.
NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: b"/" not in name and b"\0" not in name)
PATHS = st.lists(NAMES.filter(lambda name: name not in (b".", b"..")), max_size=4).map(b"/".join).map(os.fsdecode)


@given(REFERENCES, PATHS)
def test_a_joined_path_splits_again(reference: str, path: str) -> None:
    assert _reference.split(_reference.join(reference, path)) == (reference, path)


@given(PATHS)
def test_any_path_survives_a_url(path: str) -> None:
    quoted = _reference.quoted("ghcr.io/org/model:v1", path)
    assert quoted.isascii()
    reference, _, rest = quoted.partition("/")
    assert unquote_to_bytes(reference) == b"ghcr.io/org/model:v1"
    assert unquote_to_bytes(rest) == os.fsencode(path)


def test_a_short_reference_is_one_part_of_a_url() -> None:
    assert _reference.quoted("model:1", "a b") == "localhost%2Fmodel:1/a%20b"
    assert _reference.quoted(DIGEST, "a") == f"{DIGEST}/a"


def test_encoded_bytes_of_json_are_decoded() -> None:
    assert _reference.decoded("a%25b/%FF%0A") == "a%b/\udcff\n"
    assert _reference.decoded("ü") == "ü"


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        ("a/link", "b", "a/b"),
        ("a/link", "../b/./c", "b/c"),
        ("link", "a/..", ""),
        ("a/link", "../../b", None),
        ("link", "/etc/passwd", None),
        ("link", "..", None),
    ],
)
def test_a_symlink_names_a_path_in_the_kit_or_none(link: str, target: str, path: str | None) -> None:
    assert _reference.resolved(link, target) == path


@pytest.mark.parametrize(
    ("reference", "pinned"),
    [
        ("ghcr.io/org/model:v1", f"ghcr.io/org/model@{DIGEST}"),
        ("127.0.0.1:5000/model", f"127.0.0.1:5000/model@{DIGEST}"),
        ("127.0.0.1:5000/model:v1", f"127.0.0.1:5000/model@{DIGEST}"),
        ("model:v1", f"model@{DIGEST}"),
        ("model", f"model@{DIGEST}"),
        (f"ghcr.io/org/model:v1@{DIGEST}", f"ghcr.io/org/model:v1@{DIGEST}"),
        (DIGEST, DIGEST),
        ("oci:kits/a", f"oci:kits/a@{DIGEST}"),
        ("oci:kits/a:v1", f"oci:kits/a@{DIGEST}"),
        ("oci:kits/a:ghcr.io/org/model:v1", None),
        ("oci:nowhere:v1", None),
    ],
)
def test_a_pinned_reference_has_the_digest(
    reference: str, pinned: str | None, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("kits/a")
    with open("kits/a/index.json", "w") as file:
        file.write("{}")
    assert _reference.pinned(reference, DIGEST) == pinned


def test_a_relative_folder_becomes_absolute(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _reference.absolute("oci:./kits:v1") == f"oci:{os.getcwd()}/./kits:v1"
    assert _reference.absolute("oci:/srv/kits:v1") == "oci:/srv/kits:v1"
    assert _reference.absolute("ghcr.io/org/model:v1") == "ghcr.io/org/model:v1"
