"""Looking up a path by listings, against a tree that knows the truth."""

from __future__ import annotations

import itertools
import posixpath
from typing import TYPE_CHECKING, Any, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kitfs
from kitfs._backend import follow, lookup

if TYPE_CHECKING:
    from kitfs import Entry

# A directory, the content of a file, or the target of a symlink.
Node = Union[dict[str, Any], bytes, str]

# Few names, so that a directory often has an entry of its own name. Targets go up first, because `..` behind a
# symlink means another folder.
NAMES = st.sampled_from(["a", "b"])
TARGETS = st.builds(
    lambda ups, names: "/".join([".."] * ups + names) or ".",
    st.integers(0, 2),
    st.lists(NAMES, max_size=2),
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=1), TARGETS),
    lambda nodes: st.dictionaries(NAMES, nodes, max_size=2),
    max_leaves=8,
)
ROOTS = st.dictionaries(NAMES, TREES, max_size=2)
# Every path of four names at most.
PATHS = ["/".join(names) for length in range(5) for names in itertools.product("ab", repeat=length)]


class MissingError(Exception):
    """No such path, or one that goes in a circle or leaves the tree."""


class Model:
    """A tree, listed as the daemon does."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def at(self, path: str, *, follows: bool, links: int = 0) -> tuple[str, Node]:
        """The real path and the node of a path."""
        real, node = "", self.root
        pending = [name for name in path.split("/") if name]
        while pending:
            name = pending.pop(0)
            if not isinstance(node, dict) or name not in node:
                raise MissingError
            place, child = posixpath.join(real, name), node[name]
            if isinstance(child, str) and (pending or follows):
                target = posixpath.normpath(posixpath.join(real, child))
                if links > 40 or target.startswith(".."):
                    raise MissingError
                place, child = self.at("" if target == "." else target, follows=True, links=links + 1)
            real, node = place, child
        return real, node

    def entries(self, path: str) -> list[Entry]:
        try:
            real, node = self.at(path, follows=path.endswith("/"))
        except MissingError:
            raise kitfs.NotFoundError(path) from None
        if isinstance(node, dict):
            return [entry(posixpath.join(real, name), child) for name, child in sorted(node.items())]
        return [entry(real, node)]


def entry(path: str, node: Node) -> Entry:
    kind = {"symlink": node} if isinstance(node, str) else "directory" if isinstance(node, dict) else "file"
    return {"path": path, "kind": kind, "mode": 0, "size": 0, "mtime_seconds": 0}


@settings(max_examples=300)
@given(ROOTS)
def test_a_path_is_what_the_tree_has_there(root: dict[str, Any]) -> None:
    model = Model(root)
    for path in PATHS:
        try:
            real, node = model.at(path, follows=False)
        except MissingError:
            with pytest.raises(kitfs.NotFoundError):
                lookup(model.entries, path)
            continue
        found = lookup(model.entries, path)
        assert found["kind"] == entry(real, node)["kind"], path
        assert isinstance(node, dict) or found["path"] == real, path


@settings(max_examples=300)
@given(ROOTS)
def test_a_symlink_leads_to_its_target_or_is_an_error(root: dict[str, Any]) -> None:
    model = Model(root)
    for path in PATHS:
        try:
            real, node = model.at(path, follows=True)
        except MissingError:
            with pytest.raises((kitfs.NotFoundError, kitfs.BadContentError)):
                follow(model.entries, lookup(model.entries, path))
            continue
        found = follow(model.entries, lookup(model.entries, path))
        assert found["kind"] == ("directory" if isinstance(node, dict) else "file"), path
        assert isinstance(node, dict) or found["path"] == real, path


def test_a_file_of_its_folders_name_behind_a_symlink_is_a_file() -> None:
    model = Model({"a": {"a": b""}, "b": "a"})
    assert lookup(model.entries, "b/a")["kind"] == "file"
    assert lookup(model.entries, "b")["kind"] == {"symlink": "a"}
