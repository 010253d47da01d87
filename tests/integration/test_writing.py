"""Writing end to end: through client and command line into real stores, which plain HTTP and boto3 then look at."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock import _native
from penstock.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    IsDirectoryError,
    NotEmptyError,
    NotFoundError,
    ReadOnlyError,
    TimedOutError,
)

MIB = 1 << 20
SMALL, LARGE = os.urandom(1000), os.urandom(20 * MIB + 12345)
SIZES = {"empty": b"", "one": b"1", "small": SMALL, "record": os.urandom(256 << 10), "draft": os.urandom(300_000)}
PERSIST_S = 120.0


class Sea:
    """A simulated remote that can go away and come back, as a plain HTTP client sees it."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "sea"
        self._port = 0
        self._remote: Any = None
        self.rise()
        assert self.ask("PUT", "")[0] == 200

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._remote.counters())

    def rise(self) -> None:
        self._remote = _native.Remote(str(self._root), port=self._port)
        self._port = int(self._remote.endpoint.rpartition(":")[2])

    def fall(self) -> None:
        self._remote.stop()

    def put_while_away(self, contents: dict[str, bytes]) -> None:
        self.change_while_away({**contents})

    def change_while_away(self, contents: dict[str, bytes | None]) -> None:
        """Others reach it, by another port; the machine does not. What is ``None`` is removed."""
        port, self._port = self._port, 0
        self.rise()
        for key, content in contents.items():
            if content is None:
                self.delete(key)
            else:
                self.put(key, content)
        self.fall()
        self._port = port

    def ask(self, method: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, f"/bucket/{key}" if key else "/bucket", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def put(self, key: str, content: bytes) -> None:
        assert self.ask("PUT", key, content)[0] == 200

    def delete(self, key: str) -> None:
        assert self.ask("DELETE", key)[0] == 204

    def get(self, key: str) -> bytes | None:
        status, content = self.ask("GET", key)
        return content if status == 200 else None


@pytest.fixture
def sea(tmp_path: Path) -> Iterator[Sea]:
    made = Sea(tmp_path)
    yield made
    made.fall()


@pytest.fixture
def runs(machine: Any, sea: Sea) -> Any:
    """A machine with the sea attached at /runs, to be written; what is known of it is believed for long."""
    attach(machine, sea)
    return machine


def attach(machine: Any, sea: Sea, *options: str) -> Any:
    settings = ("--credentials", "anonymous", "--writable", "--freshness", "1h", *options)
    return machine("attach", "s3://bucket/runs", "/runs", "--endpoint", sea.endpoint, *settings)


@pytest.fixture
def client(runs: Any) -> Iterator[penstock.Client]:
    with penstock.connect(runs.home.name, start=False) as made:
        yield made


def write(client: penstock.Client, path: str, content: bytes, **options: Any) -> None:
    with client.open(path, "wb", **options) as file:
        file.write(content)


def write_half(client: penstock.Client, path: str, content: bytes) -> None:
    with client.open(path, "wb") as file:
        file.write(content)
        raise ZeroDivisionError


def read(client: penstock.Client, path: str) -> bytes:
    with client.open(path) as file:
        return file.read()


def staged(machine: Any) -> dict[str, Any]:
    return dict(machine.control().status()["stage"])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept_in(directory: Path, content: bytes) -> bool:
    """Whether some file below a directory has exactly these bytes."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.stat().st_size == len(content))
    return any(path.read_bytes() == content for path in files)


def test_contract_2_a_written_file_is_seen_by_every_open_stat_and_listing_that_follows(
    runs: Any, client: penstock.Client
) -> None:
    for name, content in {**SIZES, "deep/er/large": LARGE}.items():
        write(client, f"/runs/{name}", content)
        assert digest(read(client, f"/runs/{name}")) == digest(content)
        assert client.stat(f"/runs/{name}").size == len(content)
    assert {entry.name for entry in client.list("/runs")} == {*SIZES, "deep"}
    assert "deep/er/large" in {entry.name for entry in client.walk("/runs")}
    assert runs("ls", "/runs/deep/er").stdout == "large\n"
    write(client, "/runs/small", b"again")
    assert read(client, "/runs/small") == b"again"
    client.remove("/runs/small")
    assert "small" not in {entry.name for entry in client.list("/runs")}
    with pytest.raises(NotFoundError):
        client.stat("/runs/small")


def test_a_plain_client_of_the_source_finds_ordinary_objects(runs: Any, client: penstock.Client, sea: Sea) -> None:
    contents = {**SIZES, "deep/large": LARGE}
    # The attach has tried what the source can do.
    completed = sea.counters["complete_upload"]
    for name, content in contents.items():
        write(client, f"/runs/{name}", content)
    client.persist("/runs", timeout=PERSIST_S)
    for name, content in contents.items():
        assert digest(sea.get(f"runs/{name}") or b"") == digest(content), name
    assert sea.counters["complete_upload"] == completed + 1, "the large one went in parts"
    asked = sea.counters["get"]
    for name, content in contents.items():
        assert digest(read(client, f"/runs/{name}")) == digest(content), name
    assert sea.counters["get"] == asked, "what was written is cached"
    client.remove("/runs/deep/large")
    client.persist("/runs", timeout=PERSIST_S)
    assert sea.get("runs/deep/large") is None
    assert staged(runs)["files"] == 0


def test_an_open_file_stays_the_version_it_was_opened_with(runs: Any, client: penstock.Client) -> None:
    write(client, "/runs/a", b"first")
    with client.open("/runs/a") as before:
        write(client, "/runs/a", b"second")
        client.persist("/runs", timeout=PERSIST_S)
        client.remove("/runs/a")
        assert before.read() == b"first"


def test_contract_5_a_file_that_an_exception_leaves_never_replaces_a_good_one(
    client: penstock.Client, sea: Sea
) -> None:
    write(client, "/runs/a", b"good")
    for size in (10, 5 * MIB):
        with pytest.raises(ZeroDivisionError):
            write_half(client, "/runs/a", b"x" * size)
    assert read(client, "/runs/a") == b"good"
    client.persist("/runs", timeout=PERSIST_S)
    assert sea.get("runs/a") == b"good"


def test_what_shall_be_new_is_refused_where_something_is(machine: Any, sea: Sea) -> None:
    sea.put("runs/theirs", b"theirs")
    attach(machine, sea)
    with penstock.connect(machine.home.name, start=False) as client:
        write(client, "/runs/mine", b"mine")
        for path in ("/runs/mine", "/runs/theirs"):
            with pytest.raises(AlreadyExistsError), client.open(path, "xb") as file:
                file.write(b"new")
        with client.open("/runs/new", "xb") as file:
            file.write(b"new")
        assert [read(client, f"/runs/{name}") for name in ("mine", "theirs", "new")] == [b"mine", b"theirs", b"new"]


def test_contract_4_at_durability_source_a_close_returns_when_the_source_has_it(
    client: penstock.Client, sea: Sea
) -> None:
    write(client, "/runs/small", SMALL, durability="source")
    assert sea.get("runs/small") == SMALL
    write(client, "/runs/large", LARGE, durability="source")
    assert digest(sea.get("runs/large") or b"") == digest(LARGE)


def test_the_durability_of_an_attachment_holds_where_a_call_says_nothing(machine: Any, sea: Sea) -> None:
    options = ("--credentials", "anonymous", "--writable", "--durability", "source")
    told = machine("attach", "s3://bucket", "/final", "--endpoint", sea.endpoint, *options).stdout
    assert "closed once the source has it" in told
    assert machine("attachments").stdout.splitlines()[1].split()[4] == "source"
    with penstock.connect(machine.home.name, start=False) as client:
        write(client, "/final/a", SMALL)
        assert sea.get("a") == SMALL


def test_down_tells_what_waits_and_the_next_node_brings_it(runs: Any, sea: Sea) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        leave(client, sea)
        write(client, "/runs/small", SMALL)
        write(client, "/runs/large", LARGE)
    assert (staged(runs)["files"], staged(runs)["bytes"]) == (2, len(SMALL) + len(LARGE))
    assert "2 files, 20.0 MiB not in the source yet" in runs("status").stdout
    assert "not in their source yet: 2 files, 20.0 MiB" in runs("down").stderr
    runs("up")
    with penstock.connect(runs.home.name, start=False) as client:
        assert digest(read(client, "/runs/large")) == digest(LARGE)
        assert read(client, "/runs/small") == SMALL
        sea.rise()
        client.persist("/runs", timeout=PERSIST_S)
    assert digest(sea.get("runs/large") or b"") == digest(LARGE)
    assert sea.get("runs/small") == SMALL
    assert "nothing waits for its source" in runs("status").stdout
    assert runs("down").stderr == ""


def test_contract_4_a_node_that_is_killed_after_a_close_has_lost_nothing(runs: Any, sea: Sea) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        write(client, "/runs/gone", b"gone soon")
        client.persist("/runs", timeout=PERSIST_S)
        list(client.walk("/runs"))
        sea.fall()
        contents = {**SIZES, "large": LARGE}
        for name, content in contents.items():
            write(client, f"/runs/{name}", content)
        client.remove("/runs/gone")
    runs.kill()
    sea.rise()
    runs("up")
    with penstock.connect(runs.home.name, start=False) as client:
        for name, content in contents.items():
            assert digest(read(client, f"/runs/{name}")) == digest(content), name
        assert {entry.name for entry in client.list("/runs")} == set(contents)
        client.persist("/runs", timeout=PERSIST_S)
    for name, content in contents.items():
        assert digest(sea.get(f"runs/{name}") or b"") == digest(content), name
    assert sea.get("runs/gone") is None


def test_what_nobody_had_closed_when_the_node_died_is_kept_aside_and_told(runs: Any) -> None:
    script = (
        "import penstock, sys\n"
        "file = penstock.connect().open('/runs/half', 'wb')\n"
        "file.write(b'h' * (3 << 20)); file.flush(); print('written', flush=True); sys.stdin.read()"
    )
    writer = runs.spawn(sys.executable, "-c", script, stdin=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    runs.kill()
    writer.kill()
    runs("up")
    assert len(staged(runs)["recovered"]) == 1
    assert "not closed when the node ended" in runs("status").stdout
    assert kept_in(runs.home.stage / "recovery", b"h" * (3 << 20))
    assert runs("ls", "/runs").stdout == ""


def test_contract_5_what_somebody_else_changed_meanwhile_is_a_conflict_and_both_are_kept(
    machine: Any, sea: Sea
) -> None:
    ours = {"a": SIZES["draft"], "new": SMALL, "theirs": b"ours"}
    sea.put("runs/a", b"first")
    attach(machine, sea, "--freshness", "10s")
    with penstock.connect(machine.home.name, start=False) as client:
        assert [entry.name for entry in client.list("/runs")] == ["a"]
        assert read(client, "/runs/a") == b"first"
        sea.fall()
        for name, content in ours.items():
            write(client, f"/runs/{name}", content)
        sea.put_while_away({"runs/a": b"theirs", "runs/theirs": b"theirs, too"})
        sea.rise()
        with pytest.raises(ConflictError):
            client.persist("/runs", timeout=PERSIST_S)
        machine.until(lambda: staged(machine)["files"] == 0)
        assert [sea.get(f"runs/{name}") for name in ours] == [b"theirs", SMALL, b"theirs, too"]
        assert staged(machine)["conflicts"] == 2
        assert "/runs/a is in conflict, both contents are kept" in machine("status").stdout
        machine.kill()
        machine("up")
        assert staged(machine)["conflicts"] == 2
        assert kept_in(machine.home.stage, ours["a"])
        assert kept_in(machine.home.stage, ours["theirs"])
        machine.until(lambda: read(client, "/runs/a") == b"theirs")
        write(client, "/runs/a", b"ours again")
        machine.until(lambda: sea.get("runs/a") == b"ours again")


def test_a_read_only_attachment_refuses_with_what_to_do(machine: Any, sea: Sea) -> None:
    sea.put("a", b"theirs")
    machine("attach", "s3://bucket", "/data", "--endpoint", sea.endpoint, "--credentials", "anonymous")
    with penstock.connect(machine.home.name, start=False) as client:
        for content in (SMALL, LARGE):
            with pytest.raises(ReadOnlyError, match="--writable"):
                write(client, "/data/a", content)
        with pytest.raises(ReadOnlyError):
            client.remove("/data/a")
        with pytest.raises(NotFoundError):
            write(client, "/nowhere/a", SMALL)
    (machine.directory / "local").write_bytes(SMALL)
    assert "[read-only]" in machine("cp", "-f", "local", "/data/a", check=1).stderr
    assert "[read-only]" in machine("rm", "/data/a", check=1).stderr
    assert sea.get("a") == b"theirs"


def test_what_is_no_whole_file_is_refused_clearly(client: penstock.Client) -> None:
    write(client, "/runs/d/a", b"x")
    for mode in ("ab", "r+b", "a"):
        with pytest.raises(IsDirectoryError):
            client.open("/runs/d", mode)
    with pytest.raises(IsDirectoryError):
        write(client, "/runs/d", b"x")
    with pytest.raises(IsDirectoryError):
        client.remove("/runs/d")
    assert read(client, "/runs/d/a") == b"x"


def leave(client: penstock.Client, sea: Sea) -> None:
    """The sea goes away once it is known what is there."""
    write(client, "/runs/before", SMALL)
    client.persist("/runs", timeout=PERSIST_S)
    list(client.walk("/runs"))
    sea.fall()


def test_what_waits_holds_its_attachment(runs: Any, client: penstock.Client, sea: Sea) -> None:
    leave(client, sea)
    write(client, "/runs/a", SMALL)
    with pytest.raises(BusyError, match="penstock persist /runs"):
        client.detach("/runs")
    assert "[busy]" in runs("detach", "/runs", "--lazy", check=1).stderr
    late = runs("persist", "/runs", "--timeout", "500ms", check=1).stderr
    assert "[timeout]" in late
    assert "runs/a" in late
    assert runs("persist", "/runs", "--no-wait").stdout.startswith("the source has not got s3://bucket/runs/a")
    with pytest.raises(TimedOutError):
        client.persist("/runs/a", timeout=0.2)
    sea.rise()
    for wait in ("--wait", "--no-wait"):
        assert runs("persist", "/runs/a", wait).stdout == "the source has everything below /runs/a\n"
    client.detach("/runs")
    assert sea.get("runs/a") == SMALL


def test_cp_and_rm_bring_files_in_around_and_out_again(runs: Any, sea: Sea) -> None:
    contents = {f"deep/{number:03}": os.urandom(1000 + number) for number in range(100)} | {"large": LARGE}
    root = runs.files("in", contents)
    assert "copied 101 files" in runs("cp", "-r", "in", "/runs/set").stdout
    assert "copied 101 files" in runs("cp", "-r", "/runs/set", "/runs/copy").stdout
    runs("cp", "-r", "penstock:///runs/copy", "out")
    for name, content in contents.items():
        assert digest((runs.directory / "out" / name).read_bytes()) == digest(content), name
    refused = runs("cp", "-r", str(root), "/runs/set/", check=None)
    assert "copied 101 files" in refused.stdout, "into the directory, beside what is there"
    again = runs("cp", "in/large", "/runs/set/large", check=1)
    assert "add -f" in again.stderr
    assert "copied 1 file" in runs("cp", "-f", "in/large", "/runs/set/large").stdout
    assert "lies in what is copied" in runs("cp", "-r", "/runs/set", "/runs/set/again", check=2).stderr
    partly = runs("rm", "-r", "/runs/none", "/runs/copy", "/runs/set", check=1)
    assert "[not-found]" in partly.stderr
    assert "removed 303 files; 1 failed" in partly.stdout
    assert runs("ls", "/runs").stdout == ""
    runs("persist", "/runs", "--timeout", "2min")
    assert sea.get("runs/set/large") is None


@pytest.mark.parametrize("source", ["file", "memory"])
def test_directories_and_memory_are_written_too(machine: Any, source: str) -> None:
    lake = machine.files("lake", {"theirs": b"theirs"})
    url = f"file://{lake}" if source == "file" else "memory://scratch"
    machine("attach", url, "/data", "--writable")
    with penstock.connect(machine.home.name, start=False) as client:
        for name, content in {**SIZES, "deep/large": LARGE}.items():
            write(client, f"/data/{name}", content)
        client.remove("/data/one")
        client.persist("/data", timeout=PERSIST_S)
        for name, content in SIZES.items():
            assert name == "one" or read(client, f"/data/{name}") == content
        assert digest(read(client, "/data/deep/large")) == digest(LARGE)
    if source == "file":
        assert digest((lake / "deep/large").read_bytes()) == digest(LARGE)
        names = {path.name for path in lake.iterdir() if not path.name.startswith(".")}
        assert names == {"deep", "draft", "empty", "record", "small", "theirs"}


@pytest.fixture
def moto(machine: Any) -> Iterator[Any]:
    """A store of somebody else with an empty bucket, as boto3 sees it."""
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "penstock", "aws_secret_access_key": "penstock-secret", "region_name": "us-east-1"}
    store = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", config=Config(s3={"addressing_style": "path"}), **keys
    )
    store.create_bucket(Bucket="theirs")
    machine.environment |= {"AWS_ACCESS_KEY_ID": "penstock", "AWS_SECRET_ACCESS_KEY": "penstock-secret"}
    yield store
    store.close()
    server.stop()


def test_a_store_of_others_takes_what_is_written_and_boto_reads_it(machine: Any, moto: Any) -> None:
    endpoint = moto.meta.endpoint_url
    machine("attach", "s3://theirs/runs", "/runs", "--endpoint", endpoint, "--credentials", "env", "--writable")
    contents = {**SIZES, "large": LARGE}
    with penstock.connect(machine.home.name, start=False) as client:
        for name, content in contents.items():
            write(client, f"/runs/{name}", content)
        write(client, "/runs/gone", SMALL)
        client.remove("/runs/gone")
        client.persist("/runs", timeout=PERSIST_S)
    for name, content in contents.items():
        found = moto.get_object(Bucket="theirs", Key=f"runs/{name}")
        assert digest(found["Body"].read()) == digest(content), name
        assert found["Metadata"]["penstock-operation"]
    assert {each["Key"] for each in moto.list_objects_v2(Bucket="theirs")["Contents"]} == {
        f"runs/{name}" for name in contents
    }


def test_a_mount_shows_what_was_written(machine: Any, sea: Sea, can_mount: None) -> None:
    attach(machine, sea)
    target = machine.target()
    machine("mount", str(target), "--path", "/runs")
    with penstock.connect(machine.home.name, start=False) as client:
        for content in (SMALL, LARGE):
            write(client, "/runs/a", content)
            assert digest((target / "a").read_bytes()) == digest(content)
        assert [each.name for each in target.iterdir()] == ["a"]
        client.remove("/runs/a")
        assert list(target.iterdir()) == []
        (target / "b").write_bytes(SMALL)
        assert read(client, "/runs/b") == SMALL
    machine("umount", str(target))


def test_a_rename_is_seen_at_once_and_a_name_that_was_never_uploaded_never_comes_to_the_source(
    runs: Any, sea: Sea, client: penstock.Client
) -> None:
    write(client, "/runs/cold/a", b"cold")
    client.persist("/runs")
    content = os.urandom(1 << 20)
    sea.fall()
    write(client, "/runs/x.tmp", content)
    client.rename("/runs/x.tmp", "/runs/x")
    assert digest(read(client, "/runs/x")) == digest(content)
    with pytest.raises(NotFoundError):
        client.stat("/runs/x.tmp")
    sea.rise()
    runs("mv", "/runs/cold", "/runs/warm")
    assert read(client, "/runs/warm/a") == b"cold"
    assert not any(entry.name == "cold" for entry in client.list("/runs"))
    write(client, "/runs/y", b"y")
    with pytest.raises(AlreadyExistsError):
        client.rename("/runs/y", "/runs/x", replace=False)
    assert "[already-exists]" in runs("mv", "--no-replace", "/runs/y", "/runs/x", check=1).stderr
    runs("attach", f"file://{runs.files('other', {'a': b'a'})}", "/other", "--writable")
    assert "[cross-device]" in runs("mv", "/runs/y", "/other/y", check=1).stderr
    runs("persist", "/runs")
    assert digest(sea.get("runs/x") or b"") == digest(content)
    assert sea.get("runs/x.tmp") is None
    assert (sea.get("runs/warm/a"), sea.get("runs/cold/a")) == (b"cold", None)


def test_directories_are_made_kept_and_removed(runs: Any, sea: Sea, client: penstock.Client) -> None:
    runs("mkdir", "/runs/a", "/runs/b")
    runs("mkdir", "-p", "/runs/b", "/runs/c/d")
    assert "[already-exists]" in runs("mkdir", "/runs/a", check=1).stderr
    runs("touch", "/runs/a/DONE")
    assert [entry.name for entry in client.list("/runs")] == ["a", "b", "c"]
    with pytest.raises(NotEmptyError):
        client.rmdir("/runs/a")
    client.remove("/runs/a/DONE")
    client.rmdir("/runs/b")
    runs("persist", "/runs")
    assert [entry.name for entry in client.list("/runs")] == ["a", "c"]
    assert (sea.get("runs/a/"), sea.get("runs/b/"), sea.get("runs/c/d/")) == (b"", None, b"")
    runs("rm", "-r", "/runs/a", "/runs/c")
    runs("persist", "/runs")
    assert list(client.list("/runs")) == []
    assert sea.get("runs/c/d/") is None


def test_a_rename_of_what_the_store_has_moves_no_byte_through_this_machine(machine: Any, sea: Sea) -> None:
    large = os.urandom(9 * MIB)
    for key, content in {"runs/cold/deep/large": large, "runs/cold/small": SMALL, "runs/cold/single": LARGE}.items():
        sea.put(key, content)
    attach(machine, sea)
    before = sea.counters
    with penstock.connect(machine.home.name, start=False) as client:
        client.rename("/runs/cold/single", "/runs/best")
        machine("mv", "/runs/cold", "/runs/warm")
        assert {entry.name for entry in client.list("/runs")} == {"best", "warm"}
        client.persist("/runs", timeout=PERSIST_S)
        spent = {name: count - before[name] for name, count in sea.counters.items()}
        assert read(client, "/runs/warm/small") == SMALL
    assert spent["copy"] >= 3
    assert (spent["get"], spent["put"], spent["upload_part"]) == (0, 0, 0)
    assert digest(sea.get("runs/warm/deep/large") or b"") == digest(large)
    assert digest(sea.get("runs/best") or b"") == digest(LARGE)
    assert sea.get("runs/cold/small") is None
    assert sea.get("runs/cold/single") is None


def test_a_store_that_ignores_the_conditions_of_copies_renames_all_the_same(machine: Any, moto: Any) -> None:
    moto.put_object(Bucket="theirs", Key="moved/a", Body=SMALL, Metadata={"colour": "blue"})
    endpoint = moto.meta.endpoint_url
    machine("attach", "s3://theirs/moved", "/runs", "--endpoint", endpoint, "--credentials", "env", "--writable")
    with penstock.connect(machine.home.name, start=False) as client:
        client.rename("/runs/a", "/runs/b")
        client.persist("/runs", timeout=PERSIST_S)
    found = moto.get_object(Bucket="theirs", Key="moved/b")
    assert found["Body"].read() == SMALL
    assert found["Metadata"]["colour"] == "blue"
    assert {each["Key"] for each in moto.list_objects_v2(Bucket="theirs", Prefix="moved/")["Contents"]} == {"moved/b"}
