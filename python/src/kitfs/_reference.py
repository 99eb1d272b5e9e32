"""Splits `REF/PATH` as the command does.

A path begins at the first `/` after the tag or digest; `REF//PATH` always works. In `oci:FOLDER/PATH` the folder is
the longest leading path that is an OCI layout. Write `//` before the path when a kit in a layout has a full name
(`oci:FOLDER:ghcr.io/org/model:v1//PATH`).

Paths in kits are bytes. In Python they are texts, with bytes that are not UTF-8 as surrogates, as `os.fsdecode` makes
them.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

_OCI = "oci:"


def split(text: str) -> tuple[str, str]:
    """Splits `REF[/PATH]` into the reference and the path. The path has no slashes at its ends."""
    reference, separator, path = text.partition("//")
    if not separator:
        end = _layout_end(text) if text.startswith(_OCI) else _registry_end(text)
        reference, path = text[:end], text[end:]
    return reference, clean(path)


def join(reference: str, path: str) -> str:
    """Joins a reference and a path, so that `split` gives both again."""
    path = clean(path)
    if not path:
        return reference
    short = f"{reference}/{path}"
    return short if split(short) == (reference, path) else f"{reference}//{path}"


def clean(path: str) -> str:
    """A path without empty components and `.`, and without slashes at its ends."""
    return "/".join(component for component in path.split("/") if component not in ("", "."))


def absolute(reference: str) -> str:
    """The reference with an absolute folder, because the daemon has another working directory."""
    if not reference.startswith(_OCI):
        return reference
    # os.path.normpath would drop `..` behind a symlink; the command does not either.
    return _OCI + posixpath.join(Path.cwd().as_posix(), reference[len(_OCI) :])


def pinned(reference: str, digest: str) -> str | None:
    """The reference with the digest of its manifest, which never changes; `None` for a form that cannot have one."""
    if "@sha256:" in reference or reference.startswith("sha256:"):
        return reference
    if reference.startswith(_OCI):
        folder, colon, tag = reference[len(_OCI) :].rpartition(":")
        whole = reference[len(_OCI) :]
        folder = whole if _is_layout(whole) else folder
        is_clear = folder == whole or (colon and "/" not in tag and _is_layout(folder))
        return f"{_OCI}{folder}@{digest}" if is_clear else None
    name = reference.rpartition("/")[2]
    tag_bytes = len(name) - len(name.partition(":")[0])
    return f"{reference[: len(reference) - tag_bytes]}@{digest}"


def resolved(link: str, target: str) -> str | None:
    """The path that a symlink names, seen from the kit's root; `None` where it leads out of the kit."""
    if target.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    if path == ".." or path.startswith("../"):
        return None
    return clean(path)


def decoded(text: str) -> str:
    """A path of the JSON output, where `%`, control bytes and bytes that are not UTF-8 are written `%XX`."""
    return os.fsdecode(unquote_to_bytes(text)) if "%" in text else text


def quoted(reference: str, path: str) -> str:
    """`REF/PATH` for a URL. The slashes of the reference are encoded, so that it is one part of the URL.

    A reference without a slash is one of kit's local storage, whose host is `localhost`.
    """
    is_short = "/" not in reference and not reference.startswith("sha256:")
    whole = f"localhost/{reference}" if is_short else reference
    inner = clean(path) + ("/" if clean(path) and path.endswith("/") else "")
    return quote_from_bytes(os.fsencode(whole), safe=":@") + "/" + quote_from_bytes(os.fsencode(inner), safe="/")


def _registry_end(text: str) -> int:
    """The end of the reference in `[HOST/]REPOSITORY[:TAG|@DIGEST][/PATH]`."""
    repository = 0
    host, slash, _ = text.partition("/")
    # A colon before the first slash begins a port, except in a bare digest.
    if slash and not text.startswith("sha256:") and ("." in host or ":" in host):
        repository = len(host) + 1
    selectors = [at for at in (text.find(":", repository), text.find("@", repository)) if at >= 0]
    if not selectors:
        return len(text)
    end = text.find("/", min(selectors))
    return end if end >= 0 else len(text)


def _layout_end(text: str) -> int:
    """The end of the reference in `oci:FOLDER[:TAG|@DIGEST][/PATH]`; the whole text where no part is a layout."""
    ends = [at for at in range(len(_OCI) + 1, len(text)) if text[at] == "/"] + [len(text)]
    for end in reversed(ends):
        folder = text[len(_OCI) : end]
        name = folder.rfind("/") + 1
        selectors = [at for at in range(name, len(folder)) if folder[at] in ":@"]
        candidates = [folder] + [folder[:at] for at in {*selectors[:1], *selectors[-1:]}]
        if any(candidate and _is_layout(candidate) for candidate in candidates):
            return end
    return len(text)


def _is_layout(folder: str) -> bool:
    # One of the two is enough: the message about the other one then names the layout.
    return any(Path(folder, name).is_file() for name in ("index.json", "oci-layout"))
