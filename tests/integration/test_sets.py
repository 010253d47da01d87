"""Sets of files appear as a whole or not at all: here when they are committed, everywhere when the source has them."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import pickle
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import penstock
from penstock import _native
from penstock.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

MIB = 1 << 20
CONTENTS = {
    "meta.json": b"{}",
    "model/a.bin": os.urandom(3 * MIB + 7),
    "model/b.bin": os.urandom(300_000),
    "empty": b"",
}
SET = "/runs/exp1/step-1000"
PERSIST_S = 120.0


class Bucket:
    """A simulated remote that can go away and come back, as a plain client of S3 sees it."""

    def __init__(self, directory: Path) -> None:
        self._root, self._port, self._remote = directory / "sea", 0, None
        self.rise()
        self._ask("PUT", "/bucket")

    def rise(self) -> None:
        self._remote: Any = _native.Remote(str(self._root), port=self._port)
        self._port = int(self._remote.endpoint.rpartition(":")[2])

    def fall(self) -> None:
        self._remote.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def keys(self) -> list[str]:
        listed = ElementTree.fromstring(self._ask("GET", "/bucket?list-type=2"))
        return [key.text or "" for key in listed.iter() if key.tag.endswith("Key")]

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/bucket/{key}")

    def remove(self, key: str) -> None:
        self._ask("DELETE", f"/bucket/{key}")

    def _ask(self, method: str, target: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status < 300, (method, target, answer.status, body)
        return body


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(tmp_path)
    yield made
    made.fall()


@pytest.fixture
def runs(machine: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # What was uploaded is read while the source is away, however full the disk of this machine is.
    monkeypatch.setenv("PENSTOCK_CACHE__FREE_SPACE_FLOOR", "0")
    machine.client = attached(machine, bucket)
    yield machine
    machine.client.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Any]:
    """Another machine, which knows nothing of what the first one did."""
    from integration.conftest import Machine

    made = Machine(tmp_path / "elsewhere")
    yield made
    made.close()


def attached(machine: Any, bucket: Bucket) -> Any:
    client = penstock.connect(machine.home.name)
    url, options = "s3://bucket/runs", {"endpoint": bucket.endpoint, "region": "us-east-1", "credentials": "anonymous"}
    client.attach(url, "/runs", writable=True, freshness="60s", **options)
    return client


def commit(client: Any, path: str = SET, contents: dict[str, bytes] | None = None, **options: Any) -> None:
    with client.commit(path, **options) as files:
        for name, content in (contents or CONTENTS).items():
            files.write(name, content)


def seen(client: Any, path: str = SET) -> dict[str, bytes]:
    """Everything below a path, by a walk and reads."""
    names = [entry.name for entry in client.walk(path) if not entry.is_directory]
    return {name: bytes(client.open(f"{path}/{name}").read()) for name in names}


def test_contract_5_a_set_appears_when_its_block_ends_and_not_before(runs: Any, bucket: Bucket) -> None:
    client = runs.client
    with client.commit(SET) as files:
        for name, content in CONTENTS.items():
            files.write(name, content)
        assert [entry.name for entry in client.walk("/runs")] in ([], ["exp1"]), "not even its name"
        with pytest.raises(NotFoundError):
            client.stat(f"{SET}/meta.json")
    assert seen(client) == CONTENTS
    assert [entry.name for entry in client.list("/runs/exp1")] == ["step-1000"]
    assert [entry.name for entry in client.list(SET)] == ["empty", "meta.json", "model"]
    assert client.stat(f"{SET}/model").is_directory
    assert [bytes(view) for view in client.read_many([f"{SET}/{name}" for name in CONTENTS])] == [*CONTENTS.values()]
    client.persist(SET, timeout=PERSIST_S)
    assert seen(client) == CONTENTS
    keys = bucket.keys()
    manifests = [key for key in keys if "/.penstock-set." in key]
    assert manifests == ["runs/exp1/.penstock-set.step-1000"]
    assert len(keys) == 1 + len(CONTENTS)
    for key in set(keys) - {*manifests}:
        assert bucket.get(key) == CONTENTS[key.split("/", 3)[3]], "a plain client reads ordinary objects"


def test_another_home_sees_a_set_whole_whichever_way_it_asks(runs: Any, bucket: Bucket, elsewhere: Any) -> None:
    commit(runs.client, durability="source")
    runs.client.open("/runs/exp1/plain", "wb").close()
    runs.client.persist("/runs", timeout=PERSIST_S)
    other = attached(elsewhere, bucket)
    assert bytes(other.open(f"{SET}/model/a.bin").read()) == CONTENTS["model/a.bin"], "by its name alone"
    assert seen(other) == CONTENTS
    assert [entry.name for entry in other.list("/runs/exp1")] == ["plain", "step-1000"]
    tree = fsspec.filesystem("penstock", home=str(elsewhere.home.name))
    assert tree.cat(f"{SET}/meta.json") == b"{}"
    assert sorted(tree.find(SET)) == sorted(f"{SET}/{name}" for name in CONTENTS)
    other.close()


def test_nothing_of_a_set_is_elsewhere_before_all_of_it_is(runs: Any, bucket: Bucket, elsewhere: Any) -> None:
    with runs.client.commit(SET) as files:
        for name, content in CONTENTS.items():
            files.write(name, content)
        runs.client.persist("/runs", timeout=PERSIST_S)
        assert len(bucket.keys()) == len(CONTENTS)
        other = attached(elsewhere, bucket)
        assert [entry.name for entry in other.walk("/runs")] in ([], ["exp1"])
        with pytest.raises(NotFoundError):
            other.stat(f"{SET}/meta.json")
        bucket.fall()
    assert seen(runs.client) == CONTENTS, "here it is published"
    bucket.rise()
    runs.client.persist(SET, timeout=PERSIST_S)
    other.detach("/runs")
    other.close()
    other = attached(elsewhere, bucket)
    assert seen(other) == CONTENTS
    other.close()


def test_a_block_that_ends_by_an_exception_leaves_nothing(runs: Any, bucket: Bucket) -> None:
    client = runs.client

    def fail_halfway() -> None:
        with client.commit(SET) as files:
            files.write("a", b"1")
            client.persist("/runs", timeout=PERSIST_S)
            files.write("b", bytes(MIB))
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail_halfway()
    client.persist("/runs", timeout=PERSIST_S)
    assert bucket.keys() == []
    with pytest.raises(NotFoundError):
        client.stat(SET)
    with pytest.raises(InvalidInputError, match="nothing was written"), client.commit(SET):
        pass
    commit(client)
    assert seen(client) == CONTENTS


def test_a_killed_node_has_lost_no_published_set_and_shows_none_that_was_not(runs: Any, bucket: Bucket) -> None:
    bucket.fall()
    commit(runs.client)
    files = runs.client.commit("/runs/exp1/step-2000")
    files.write("a", b"1")
    runs.kill()
    client = runs.client = penstock.connect(runs.home.name)
    assert seen(client) == CONTENTS, "while the source is away"
    bucket.rise()
    with pytest.raises(NotFoundError):
        client.stat("/runs/exp1/step-2000/a")
    client.persist(SET, timeout=PERSIST_S)
    runs.kill()
    client = runs.client = penstock.connect(runs.home.name)
    assert seen(client) == CONTENTS
    assert [entry.name for entry in client.list("/runs/exp1")] == ["step-1000"]
    # What was written before the node was killed is still a part of it.
    again = pickle.loads(pickle.dumps(files))
    again.write("b", b"2")
    again.publish()
    assert seen(client, "/runs/exp1/step-2000") == {"a": b"1", "b": b"2"}
    assert [one.crc32c for one in client.set_files("/runs/exp1/step-2000")] == [
        f"{_native.crc32c(content):08x}" for content in (b"1", b"2")
    ]


def test_a_set_changes_as_a_whole_or_not_at_all(runs: Any, bucket: Bucket, elsewhere: Any) -> None:
    client = runs.client
    commit(client, durability="source")
    with pytest.raises(ReadOnlyError, match="part of the set"):
        client.remove(f"{SET}/meta.json")
    with pytest.raises(ReadOnlyError, match="part of the set"), client.open(f"{SET}/meta.json", "wb") as file:
        file.write(b"x")
    with pytest.raises(ReadOnlyError, match="part of the set"):
        client.mkdir(f"{SET}/more")
    with pytest.raises(ReadOnlyError, match="part of the set"):
        client.rename(f"{SET}/meta.json", "/runs/exp1/meta.json")
    with pytest.raises(UnsupportedError, match="set of files"):
        client.rename("/runs/exp1", "/runs/exp2")
    with pytest.raises(AlreadyExistsError):
        client.commit(SET)
    with (
        pytest.raises(InvalidInputError, match="kept for sets"),
        client.open("/runs/exp1/.penstock-set.x", "wb") as file,
    ):
        file.write(b"x")
    for name in ("../a", "/a", "a//b", ""):
        with pytest.raises(InvalidInputError):
            runs.client.commit("/runs/exp1/step-9").write(name, b"x")
    other = attached(elsewhere, bucket)
    assert seen(other) == CONTENTS
    assert "removed 1 set" in runs("rm", "-r", SET).stdout
    with pytest.raises(NotFoundError):
        client.stat(f"{SET}/meta.json")
    client.persist("/runs", timeout=PERSIST_S)
    assert bucket.keys() == []
    commit(client, contents={"again": b"1"})
    assert seen(client) == {"again": b"1"}
    fsspec.filesystem("penstock", home=str(runs.home.name)).rm("/runs/exp1", recursive=True)
    client.persist("/runs", timeout=PERSIST_S)
    assert bucket.keys() == []
    other.close()


def _write_part(pickled: bytes, rank: int) -> None:
    files = pickle.loads(pickled)
    with files.open(f"part-{rank}.bin") as file:
        file.write(bytes([rank]) * (MIB + rank))


def test_several_processes_write_into_one_set(runs: Any) -> None:
    with runs.client.commit(SET) as files:
        pickled = pickle.dumps(files)
        writers = [
            multiprocessing.get_context("spawn").Process(target=_write_part, args=(pickled, rank)) for rank in (1, 2)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
            assert writer.exitcode == 0
    assert seen(runs.client) == {f"part-{rank}.bin": bytes([rank]) * (MIB + rank) for rank in (1, 2)}


def test_what_was_published_is_not_discarded_even_by_a_node_that_knows_nothing_of_it(runs: Any, bucket: Bucket) -> None:
    files = runs.client.commit(SET)
    late = pickle.dumps(files)
    files.write("a", b"1")
    files.publish()
    runs.client.persist(SET, timeout=PERSIST_S)
    runs.kill()
    shutil.rmtree(runs.home.name)
    runs.client = attached(runs, bucket)
    with pytest.raises(InvalidInputError, match="published"):
        pickle.loads(late).discard()
    assert seen(runs.client) == {"a": b"1"}


def test_two_homes_that_commit_one_path_keep_both_and_show_one(runs: Any, bucket: Bucket, elsewhere: Any) -> None:
    other = attached(elsewhere, bucket)
    first, second = runs.client.commit(SET), other.commit(SET)
    first.write("mine", b"1")
    second.write("theirs", b"2")
    second.publish()
    other.persist("/runs", timeout=PERSIST_S)
    bucket.fall()
    first.publish()
    assert seen(runs.client) == {"mine": b"1"}
    bucket.rise()
    runs.until(lambda: runs.client.status()["stage"]["conflicts"])
    (kept,) = [one for one in runs.client.sets("/runs") if one.state == "conflict"]
    assert (kept.path, kept.files) == (SET, 1)
    assert runs.until(lambda: seen(runs.client)) == {"theirs": b"2"}
    other.close()


def test_a_mount_shows_a_set_at_once_and_refuses_to_change_a_part_of_it(runs: Any, can_mount: None) -> None:
    target = runs.target()
    runs("mount", str(target), "--path", "/runs")
    assert not (target / "exp1").exists()
    commit(runs.client)
    shown = {name: (target / "exp1/step-1000" / name).read_bytes() for name in CONTENTS}
    assert shown == CONTENTS
    runs.client.persist(SET, timeout=PERSIST_S)
    assert sorted(each.name for each in (target / "exp1/step-1000").iterdir()) == ["empty", "meta.json", "model"]
    with pytest.raises(OSError, match="Read-only"):
        (target / "exp1/step-1000/meta.json").unlink()
    with pytest.raises(OSError, match="Read-only"):
        (target / "exp1/step-1000/more").write_bytes(b"x")
    runs.client.remove_set(SET)
    assert not (target / "exp1/step-1000/meta.json").exists()
    runs("umount", str(target))


def test_ckpt_shows_verifies_restores_and_removes_whole_checkpoints(runs: Any, bucket: Bucket) -> None:
    for step in (1000, 2000, 3000):
        commit(runs.client, f"/runs/exp1/step-{step}", durability="source" if step == 3000 else None)
    assert "the source has every" in runs("ckpt", "watch", "/runs/exp1").stdout
    shown = runs.json("ckpt", "ls", "/runs/exp1")
    assert [each["path"].rpartition("-")[2] for each in shown] == ["1000", "2000", "3000"]
    assert {each["state"] for each in shown} == {"source"}
    assert [each["durability"] for each in shown] == ["local", "local", "source"]
    assert "verified: 4 files" in runs("ckpt", "restore", SET, "--verify").stdout
    local = runs.directory / "restored"
    runs("ckpt", "restore", SET, str(local), "--verify")
    assert {name: (local / name).read_bytes() for name in CONTENTS} == CONTENTS
    runs("ckpt", "restore", SET, str(local), check=1)
    assert "would remove /runs/exp1/step-1000" in runs("ckpt", "gc", "/runs/exp1", "--keep", "1", "--dry-run").stdout
    assert len(runs.json("ckpt", "ls", "/runs/exp1")) == 3
    runs("ckpt", "gc", "/runs/exp1", "--keep", "1")
    runs("ckpt", "persist", "/runs", "--timeout", "60s")
    assert [each["path"] for each in runs.json("ckpt", "ls", "/runs/exp1")] == ["/runs/exp1/step-3000"]
    assert len(bucket.keys()) == 1 + len(CONTENTS), "of the others nothing is left"


def test_what_was_left_behind_is_shown_and_removed_when_it_is_old(runs: Any) -> None:
    from penstock.cli.ckpt import LEFT_AFTER_S, to_remove

    files = runs.client.commit(SET)
    files.write("a", b"1")
    (left,) = runs.client.sets("/runs/exp1")
    assert (left.state, left.path, left.files) == ("unpublished", "/runs/exp1", 1)
    now_s = left.created_ms / 1000
    assert to_remove([left], 1, now_s + 60) == ([], [])
    assert to_remove([left], 1, now_s + LEFT_AFTER_S + 60) == ([], [left])
    runs.client.core.discard_set(left.path, left.id, True)
    assert runs.client.sets("/runs/exp1") == []
