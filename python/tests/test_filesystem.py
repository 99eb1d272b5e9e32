"""The fsspec file system over real kits, by HTTP and by the command."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, Callable

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden
import kitfs

if TYPE_CHECKING:
    from conftest import Machine
    from kitfs.filesystem import KitfsFileSystem


@pytest.fixture
def fs(client: kitfs.Client) -> KitfsFileSystem:
    return client.filesystem()


@pytest.fixture
def article(machine: Machine) -> str:
    return machine.reference("article")


def test_the_protocol_is_registered(machine: Machine, url: str, article: str) -> None:
    with fsspec.open(f"kitfs://{article}/src/train.py", "rb", url=url) as file:
        assert file.read() == golden.files("article")["src/train.py"]
    assert "kitfs" in fsspec.available_protocols()


def test_find_has_the_files_of_the_kit(fs: KitfsFileSystem, article: str) -> None:
    expected = sorted(f"{article}/{entry['path']}" for entry in golden.tree("article") if entry["type"] == "file")
    assert fs.find(article) == expected
    below = fs.find(article, withdirs=True, detail=True)
    assert below == {**fs.find(article, withdirs=True, detail=True, maxdepth=9), article: below[article]}
    assert fs.find(f"{article}/src/train.py") == [f"{article}/src/train.py"]
    assert fs.find(f"{article}/nothing") == []
    assert fs.find(f"kitfs://{article}/src/") == [name for name in expected if "/src/" in name]


def test_ls_and_info_agree_with_what_kit_unpacks(fs: KitfsFileSystem, article: str) -> None:
    for entry in golden.tree("article"):
        name = f"{article}/{entry['path']}"
        info = fs.info(name)
        parent = {child["name"]: child for child in fs.ls(fs._parent(name))}
        assert parent[name]["type"] == info["type"] == {"file": "file", "dir": "directory"}[entry["type"]]
        if entry["type"] == "file":
            assert (info["size"], parent[name]["size"]) == (int(entry["size"]),) * 2
            assert info["mode"] & 0o777 == int(entry["mode"], 8)
    assert fs.ls(f"{article}/Kitfile", detail=False) == [f"{article}/Kitfile"]
    assert fs.isdir(article)
    assert fs.isdir(f"{article}/src")
    assert fs.isfile(f"{article}/src/train.py")
    assert fs.modified(f"{article}/Kitfile").year >= 2024


def test_glob_finds_files_by_pattern(fs: KitfsFileSystem, article: str) -> None:
    assert fs.glob(f"kitfs://{article}/src/*.py") == [f"{article}/src/train.py"]
    assert fs.glob(f"{article}/**/*.py") == [
        f"{article}/src/lib/__init__.py",
        f"{article}/src/lib/util.py",
        f"{article}/src/train.py",
    ]
    assert fs.glob(f"{article}/nothing*") == []


def test_a_layout_folder_is_read_as_a_registry(fs: KitfsFileSystem) -> None:
    for reference in (f"oci:{golden.GOLDEN}/article", f"oci:{golden.GOLDEN}/article:v1"):
        assert fs.cat_file(f"kitfs://{reference}/src/train.py") == golden.files("article")["src/train.py"]
        assert fs.glob(f"{reference}//src/*.py") == fs.glob(f"{reference}/src/*.py") == [f"{reference}/src/train.py"]


def test_a_large_folder_lists(fs: KitfsFileSystem, machine: Machine) -> None:
    reference = machine.reference("small5k")
    expected = [f"{reference}/{entry['path']}" for entry in golden.tree("small5k") if entry["type"] == "file"]
    assert len(expected) > 5000
    assert fs.find(reference) == sorted(expected)


@given(data=st.data())
def test_any_range_has_the_golden_bytes(fs: KitfsFileSystem, machine: Machine, data: st.DataObject) -> None:
    kit = data.draw(st.sampled_from(["article", "comp-none", "comp-gzip"]))
    path, content = data.draw(st.sampled_from(sorted(golden.files(kit).items())))
    bound = st.one_of(st.none(), st.integers(-len(content) - 2, len(content) + 2))
    start, end = data.draw(bound), data.draw(bound)
    assert fs.cat_file(f"{machine.reference(kit)}/{path}", start, end) == content[_slice(start, end, len(content))]


def _slice(start: int | None, end: int | None, size: int) -> slice:
    """Python's slice, which means the same."""
    first, last, _ = slice(start, end).indices(size)
    return slice(first, last)


@given(data=st.data())
def test_an_open_file_is_a_file_of_the_same_bytes(fs: KitfsFileSystem, machine: Machine, data: st.DataObject) -> None:
    path, content = data.draw(st.sampled_from(sorted(golden.files("comp-gzip").items())))
    reference = io.BytesIO(content)
    # The command is started for each block, so small ones would take minutes.
    block = data.draw(st.sampled_from([64, 4096, None] if fs.client.backend == "http" else [None]))
    with fs.open(f"{machine.reference('comp-gzip')}/{path}", block_size=block) as file:
        assert file.size == len(content)
        steps = st.tuples(st.sampled_from(["read", "seek", "readline", "readinto"]), st.integers(0, len(content) + 10))
        for step, number in data.draw(st.lists(steps, max_size=8)):
            if step == "read":
                assert file.read(number) == reference.read(number)
            elif step == "seek":
                assert file.seek(number) == reference.seek(number)
            elif step == "readline":
                assert file.readline() == reference.readline()
            else:
                buffers = bytearray(number % 1000), bytearray(number % 1000)
                assert file.readinto(buffers[0]) == reference.readinto(buffers[1])
                assert buffers[0] == buffers[1]
            assert file.tell() == reference.tell()
        file.seek(0)
        assert file.read() == content


def test_ranges_of_several_files_come_together(fs: KitfsFileSystem, article: str) -> None:
    files = golden.files("article")
    paths = ["data/dataset.csv", "src/train.py", "data/dataset.csv", "nothing"]
    found = fs.cat_ranges([f"{article}/{path}" for path in paths], [0, 5, 44000, 0], [10, 8, 44897, 1])
    assert found[:3] == [files["data/dataset.csv"][:10], files["src/train.py"][5:8], files["data/dataset.csv"][44000:]]
    assert isinstance(found[3], kitfs.NotFoundError)
    with pytest.raises(kitfs.NotFoundError):
        fs.cat_ranges([f"{article}/nothing"], 0, 1, on_error="raise")


def test_text_and_copies(fs: KitfsFileSystem, article: str, tmp_path: Any) -> None:
    content = golden.files("article")["data/dataset.csv"]
    with fs.open(f"{article}/data/dataset.csv", "r", encoding="utf-8") as file:
        assert file.read() == content.decode()
    fs.get(f"{article}/data/", f"{tmp_path}/data", recursive=True)
    assert (tmp_path / "data" / "dataset.csv").read_bytes() == content
    assert fs.head(f"{article}/data/dataset.csv", 7) == content[:7]
    assert fs.tail(f"{article}/data/dataset.csv", 7) == content[-7:]


def test_a_path_that_is_missing_is_not_found(fs: KitfsFileSystem, article: str) -> None:
    for path in (f"{article}/nothing", f"{article}/src/nothing/x", f"{article}-nothing/x"):
        for ask in (fs.info, fs.ls, fs.cat_file, fs.open, fs.checksum):
            with pytest.raises(FileNotFoundError):
                ask(path)
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)


def test_a_folder_is_no_file(fs: KitfsFileSystem, article: str) -> None:
    for ask in (fs.open, fs.cat_file, fs.checksum):
        with pytest.raises(kitfs.UsageError, match="directory"):
            ask(f"{article}/src")


def test_a_registry_that_is_away_is_no_missing_file(fs: KitfsFileSystem) -> None:
    # Nobody listens on port 1.
    with pytest.raises(kitfs.UnavailableError):
        fs.exists("127.0.0.1:1/golden/article:v1/Kitfile")


def test_a_kit_must_be_named(fs: KitfsFileSystem) -> None:
    with pytest.raises(kitfs.UsageError, match="name a kit"):
        fs.ls("kitfs://")


def test_writes_are_refused(fs: KitfsFileSystem, article: str, tmp_path: Any) -> None:
    path = f"{article}/Kitfile"
    (tmp_path / "x").write_bytes(b"x")
    writes: list[Callable[[], object]] = [
        lambda: fs.open(path, "wb"),
        lambda: fs.open(path, "a"),
        lambda: fs.open(path, "xb"),
        lambda: fs.pipe(path, b"x"),
        lambda: fs.pipe_file(path, b"x"),
        lambda: fs.write_text(path, "x"),
        lambda: fs.put(f"{tmp_path}/x", path),
        lambda: fs.put_file(f"{tmp_path}/x", path),
        lambda: fs.rm(path),
        lambda: fs.rm_file(path),
        lambda: fs.rmdir(f"{article}/src"),
        lambda: fs.mkdir(f"{article}/new"),
        lambda: fs.makedirs(f"{article}/new/newer"),
        lambda: fs.mv(path, f"{path}2"),
        lambda: fs.cp_file(path, f"{path}2"),
        lambda: fs.copy(path, f"{path}2"),
        lambda: fs.touch(path),
    ]
    for write in writes:
        with pytest.raises(kitfs.ReadOnlyError, match="read-only"):
            write()


def test_the_checksum_names_the_content(fs: KitfsFileSystem, machine: Machine, article: str) -> None:
    same = fs.checksum(f"{article}/src/train.py")
    assert isinstance(same, int)
    assert fs.checksum(f"{article}/src/train.py") == same
    assert fs.checksum(f"{article}/src/lib/util.py") != same
    kitfile = next(entry for entry in golden.tree("article") if entry["path"] == "Kitfile")
    assert fs.checksum(f"{article}/Kitfile") == int(kitfile["sha256"], 16)
    assert fs.ukey(f"{article}/Kitfile") == f'"sha256:{kitfile["sha256"]}"'


def test_file_systems_and_files_travel_between_processes(fs: KitfsFileSystem, article: str) -> None:
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file(f"{article}/src/train.py", 0, 9) == golden.files("article")["src/train.py"][:9]
    with fs.open(f"{article}/src/train.py") as file:
        file.seek(5)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.read() == golden.files("article")["src/train.py"][5:]


def test_other_file_systems_may_cache_this_one(machine: Machine, url: str, article: str, tmp_path: Any) -> None:
    for cache in ("simplecache", "filecache", "blockcache"):
        options = {cache: {"cache_storage": str(tmp_path / cache)}, "kitfs": {"url": url}}
        with fsspec.open(f"{cache}::kitfs://{article}/src/train.py", **options) as file:
            assert file.read() == golden.files("article")["src/train.py"]


def test_listings_are_kept_until_they_are_forgotten(
    fs: KitfsFileSystem, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.run("tag", "--force", machine.reference("article"), "moving")
    reference = machine.reference("article", "moving")
    fs.invalidate_cache()
    before = fs.ls(reference)
    asked: list[str] = []
    entries = fs.client.entries

    def entries_asked(reference: str, path: str) -> list[kitfs.Entry]:
        asked.append(path)
        return entries(reference, path)

    monkeypatch.setattr(fs.client, "entries", entries_asked)
    assert fs.ls(reference) == before
    assert asked == []
    fs.invalidate_cache(f"{reference}/src")
    assert fs.ls(reference) == before
    assert asked == [""]
