"""poky://bucket/key for fsspec, against a real service."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from poky.client.filesystem import PokyFileSystem
from tests.conftest import Database
from tests.service import Client, Service, running
from tests.test_access import Maker

pytestmark = pytest.mark.inside


@pytest.fixture
def files(service: Service) -> Iterator[PokyFileSystem]:
    made = fsspec.filesystem("poky", url=service.url)
    assert isinstance(made, PokyFileSystem)
    yield made
    fsspec.spec.AbstractFileSystem.clear_instance_cache()


def test_a_file_is_an_object(files: PokyFileSystem, client: Client, bucket: str) -> None:
    path = f"poky://{bucket}/a/b/text"
    with fsspec.open(path, "wt", url=files.storage_options["url"]) as file:
        file.write("one\n" * 3000)
    stored = client.get(f"/kv/{bucket}/a/b/text")
    assert stored.body == b"one\n" * 3000
    with files.open(path) as file:
        file.seek(4 * 2999 - 1)
        assert file.read() == b"\none\n"
    assert files.cat(path) == stored.body
    assert files.cat_file(path, 4, 8) == b"one\n"
    assert files.cat_file(path, -4, None) == b"one\n"
    assert files.cat_file(path, 20_000, 30_000) == b""
    found = files.info(path)
    assert (found["size"], found["type"], found["etag"]) == (12_000, "file", stored.etag)
    assert files.ukey(path) == stored.etag
    assert files.modified(path).tzinfo
    with pytest.raises(FileNotFoundError):
        files.open(f"{bucket}/a/b/missing")
    with pytest.raises(FileNotFoundError):
        files.cat(f"{bucket}/a/b")


def test_folders_are_what_keys_have_before_a_slash(files: PokyFileSystem, bucket: str) -> None:
    for key in ("a", "a/b/c", "a/b/d", "a/e", "f"):
        files.pipe_file(f"{bucket}/{key}", key.encode())
    assert bucket in files.ls("", detail=False)
    assert files.ls(f"poky://{bucket}", detail=False) == [
        f"{bucket}/{name}" for name in ("a", "a", "f")
    ]
    assert files.ls(f"{bucket}/a", detail=False) == [f"{bucket}/a/b", f"{bucket}/a/e"]
    assert [each["type"] for each in files.ls(f"{bucket}/a")] == ["directory", "file"]
    assert files.ls(f"{bucket}/f", detail=False) == [f"{bucket}/f"]
    assert files.isdir(f"{bucket}/a/b")
    assert not files.exists(f"{bucket}/a/x")
    with pytest.raises(FileNotFoundError):
        files.ls(f"{bucket}/x")
    assert sorted(files.find(bucket)) == [
        f"{bucket}/{key}" for key in ("a", "a/b/c", "a/b/d", "a/e", "f")
    ]
    assert files.glob(f"{bucket}/a/*/d") == [f"{bucket}/a/b/d"]
    files.cp_file(f"{bucket}/a/e", f"{bucket}/g/h")
    files.mv(f"{bucket}/f", f"{bucket}/g/f")
    assert files.cat(files.find(f"{bucket}/g")) == {
        f"{bucket}/g/f": b"f",
        f"{bucket}/g/h": b"a/e",
    }
    files.rm(f"{bucket}/a/b", recursive=True)
    assert files.find(f"{bucket}/a/b") == []
    with pytest.raises(FileNotFoundError):
        files.rm_file(f"{bucket}/a/b/c")


def test_what_a_file_system_can_but_objects_cannot_is_refused(
    files: PokyFileSystem, bucket: str
) -> None:
    files.pipe({f"{bucket}/k": b"one", f"{bucket}/folder/k": b"two"})
    with pytest.raises(NotImplementedError, match="whole"):
        files.open(f"{bucket}/k", "ab")
    assert files.cat(f"{bucket}/k") == b"one"
    for refused in (
        lambda: files.cat_file(f"{bucket}/folder"),
        lambda: files.cat_file(f"{bucket}/folder", 0, 1),
        lambda: files.open(f"{bucket}/folder"),
        lambda: files.modified(f"{bucket}/folder"),
        lambda: files.ukey(f"{bucket}/folder"),
    ):
        with pytest.raises(FileNotFoundError):
            refused()
    for path in (f"{bucket}/folder/../k", "..", f"../kv/{bucket}/k", f"{bucket}/./k"):
        assert not files.exists(path)
        assert not files.isdir(path)
        with pytest.raises(OSError, match=r"\.\."):
            files.rm_file(path)
    assert files.find(bucket) == [f"{bucket}/folder/k", f"{bucket}/k"]


def test_a_file_can_be_made_by_one_alone(files: PokyFileSystem, bucket: str) -> None:
    with files.open(f"{bucket}/lock", "xb") as file:
        file.write(b"me")
    with pytest.raises(FileExistsError), files.open(f"{bucket}/lock", "xb") as file:
        file.write(b"another")
    assert files.cat(f"{bucket}/lock") == b"me"


def test_no_reader_gets_halves_of_two_values(
    files: PokyFileSystem, client: Client, bucket: str
) -> None:
    client.put(f"/kv/{bucket}/k", b"a" * 100_000)
    with files.open(f"{bucket}/k", cache_type="none") as file:
        assert file.read(1000) == b"a" * 1000
        client.put(f"/kv/{bucket}/k", b"b" * 100_000)
        with pytest.raises(OSError, match="/k"):
            file.read(1000)


def test_it_needs_a_url_and_sends_a_token(
    database: Database,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.delenv("POKY_URL", raising=False)
    with pytest.raises(ValueError, match="POKY_URL"):
        PokyFileSystem(skip_instance_cache=True)
    log = tmp_path_factory.mktemp("files") / "log"
    token = Maker(database)(f"read,write:{bucket}")
    with running(database.dsn_service, log, access="tokens") as service:
        monkeypatch.setenv("POKY_URL", service.url)
        with pytest.raises(PermissionError):
            PokyFileSystem(skip_instance_cache=True).cat(f"{bucket}/k")
        monkeypatch.setenv("POKY_TOKEN", token)
        files = PokyFileSystem(skip_instance_cache=True)
        files.pipe(f"{bucket}/k", b"v")
        assert files.cat(f"{bucket}/k") == b"v"


def test_the_root_is_a_folder_of_buckets(files: PokyFileSystem, bucket: str) -> None:
    root = files.info("poky://")
    assert (root["name"], root["type"], root["size"]) == ("", "directory", 0)
    assert files.isdir("")
    assert bucket in files.ls("", detail=False)
