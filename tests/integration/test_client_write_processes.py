"""Writing over threads and forks, over the end of the node and of the writer."""

import gc
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import penstock
from integration.conftest import in_child, make_writable_lake
from penstock.errors import DiskError, NoSpaceError, NotFoundError, PenstockError, UnavailableError

MIB = 1024 * 1024
LARGE = b"".join(b"%07d\n" % number for number in range(500_000))


@pytest.fixture
def lake(machine: Any) -> Iterator[Any]:
    made = make_writable_lake(machine)
    yield made
    made.client.close()


def content_of(lake: Any, path: str) -> bytes:
    with lake.client.open(path) as file:
        return bytes(file.read())


def used_bytes(lake: Any) -> int:
    return int(lake.control().status()["stage"]["used_bytes"])


def in_strict_child(work: Callable[[], None]) -> None:
    """Runs ``work`` in a forked child, where a warning is a failure too."""

    def strictly() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            work()

    in_child(strictly)


@pytest.mark.parametrize("size", [1000, 2 * MIB])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_in_a_forked_child_a_file_is_closed_and_its_parent_writes_on(lake: Any, mode: str, size: int) -> None:
    def data(letter: str) -> Any:
        return letter.encode() * size if mode == "wb" else letter * size

    files = [lake.client.open("/runs/a", mode), lake.client.open("/runs/b", mode)]
    for file in files:
        file.write(data("p"))

    def child() -> None:
        first = files.pop(0)
        assert first.closed
        with pytest.raises(ValueError, match=r"another process|closed"):
            first.write(data("c"))
        for call in (first.flush, first.tell, first.fileno):
            with pytest.raises(ValueError, match=r"another process|closed"):
                call()
        first.close()
        first.discard()
        files.clear()
        gc.collect()
        with lake.client.open("/runs/c", "wb") as own:
            own.write(b"the child's own")

    in_strict_child(child)
    for file in files:
        assert not file.closed
        file.write(data("q"))
        file.close()
    for path in ("/runs/a", "/runs/b"):
        assert content_of(lake, path) == b"p" * size + b"q" * size
    assert content_of(lake, "/runs/c") == b"the child's own"
    lake.client.persist("/runs", timeout=60)
    lake.until(lambda: used_bytes(lake) == 0)


def test_a_fork_while_another_thread_writes_leaves_both_right(lake: Any) -> None:
    stop = threading.Event()
    written = 0
    file = lake.client.open("/runs/a", "wb")

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            written += file.write(LARGE)
            if file.tell() > 64 * MIB:
                file.seek(0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        lake.until(lambda: written)
        for _ in range(10):
            before = written
            in_strict_child(lambda: pytest.fail("open in the child") if not file.closed else gc.collect() and None)
            lake.until(lambda before=before: written > before)
    finally:
        stop.set()
        writer.join()
    file.seek(0)
    file.truncate(0)
    file.write(b"the end")
    file.close()
    assert content_of(lake, "/runs/a") == b"the end"


def test_threads_share_a_file_without_tearing_what_each_writes(lake: Any) -> None:
    lines = [[b"%02d %06d %s\n" % (thread, line, b"x" * (line % 5000)) for line in range(400)] for thread in range(8)]
    with lake.client.open("/runs/a", "wb") as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: [file.write(line) for line in part], lines))
    found = content_of(lake, "/runs/a").splitlines(keepends=True)
    assert sorted(found) == sorted(line for part in lines for line in part)
    for thread, part in enumerate(lines):
        assert [line for line in found if line.startswith(b"%02d " % thread)] == part


def test_many_small_files_by_many_threads_are_all_there_at_once_and_in_the_source_later(lake: Any) -> None:
    contents = {f"/runs/many/{number}": LARGE[number : number + 1000 * number] for number in range(200)}

    def write(item: tuple[str, bytes]) -> None:
        with lake.client.open(item[0], "wb", durability="local") as file:
            file.write(item[1])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, contents.items()))
    assert {f"/runs/many/{entry.name}" for entry in lake.client.list("/runs/many")} == set(contents)
    assert list(map(bytes, lake.client.read_many(list(contents)))) == list(contents.values())
    lake.client.persist("/runs", timeout=60)
    assert lake.client.status()["stage"]["files"] == 0
    found = {f"/runs/many/{path.name}": path.read_bytes() for path in (lake.root / "many").iterdir()}
    assert found == contents


def test_a_node_that_was_killed_and_started_again_takes_a_small_file(lake: Any) -> None:
    file = lake.client.open("/runs/a", "wb")
    file.write(b"small")
    lake.kill()
    lake("up")
    file.close()
    assert content_of(lake, "/runs/a") == b"small"


def test_a_draft_that_its_node_lost_is_an_error_that_says_so_and_is_kept(lake: Any) -> None:
    with lake.client.open("/runs/a", "wb") as file:
        file.write(b"the one before")
    files = [lake.client.open(path, "wb") for path in ("/runs/a", "/runs/b")]
    for file in files:
        file.write(LARGE)
    lake.kill()
    lake("up")
    # Its lease has the number that one of the lost drafts had: it must not be taken for it.
    other = lake.client.open("/runs/other", "wb")
    other.write(LARGE)
    for file in files:
        with pytest.raises(UnavailableError, match=r"restarted.*write the file again"):
            file.close()
        assert file.closed
    assert content_of(lake, "/runs/a") == b"the one before"
    for path in ("/runs/b", "/runs/other"):
        with pytest.raises(NotFoundError):
            lake.client.stat(path)
    assert [each["size"] for each in lake.client.status()["stage"]["recovered"]] == [len(LARGE)] * 2
    other.close()
    assert content_of(lake, "/runs/other") == LARGE


def test_while_no_node_runs_a_close_is_an_error_and_leaves_nothing(lake: Any) -> None:
    files = {name: lake.client.open(f"/runs/{name}", "wb") for name in ("small", "large")}
    files["small"].write(b"small")
    files["large"].write(LARGE)
    lake.kill()
    for file in files.values():
        with pytest.raises(UnavailableError):
            file.close()
        assert file.closed
    lake("up")
    assert [entry.name for entry in lake.client.list("/runs")] == []


def test_what_was_closed_survives_the_end_of_the_node_and_reaches_the_source(lake: Any) -> None:
    contents = {"/runs/small": b"small", "/runs/large": LARGE}
    for path, content in contents.items():
        with lake.client.open(path, "wb", durability="local") as file:
            file.write(content)
    lake.kill()
    lake("up")
    for path, content in contents.items():
        assert content_of(lake, path) == content
    lake.client.persist("/runs", timeout=60)
    for path, content in contents.items():
        assert (lake.root / path.removeprefix("/runs/")).read_bytes() == content


def test_a_disk_that_fails_is_an_error_of_the_write_and_the_file_is_never_committed(lake: Any) -> None:
    def child() -> None:
        with lake.client.open("/runs/a", "wb") as file:
            file.write(b"the one before")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        file = lake.client.open("/runs/a", "wb")
        with pytest.raises(DiskError, match=r"write /runs/a: .*too large"):
            file.write(LARGE)
        with pytest.raises(DiskError):
            file.write(b"more")
        with pytest.raises(DiskError, match="close /runs/a"):
            file.close()
        assert content_of(lake, "/runs/a") == b"the one before"

    in_strict_child(child)
    assert content_of(lake, "/runs/a") == b"the one before"


def test_a_stage_that_is_full_is_an_error_of_the_write_and_the_space_comes_back(machine: Any) -> None:
    machine.root = machine.files("source", {})
    machine.root.mkdir(exist_ok=True)
    machine("up", PENSTOCK_STAGE__SIZE="6MiB")
    client = machine.client = penstock.connect(machine.home.name)
    client.attach(f"file://{machine.root}", "/runs", writable=True)
    with pytest.raises(NoSpaceError, match="write /runs/a"), client.open("/runs/a", "wb") as file:
        file.writelines([LARGE, LARGE])
    machine.until(lambda: client.status()["stage"]["used_bytes"] == 0)
    with pytest.raises(NotFoundError):
        client.stat("/runs/a")
    # More would be asked for in advance than there is.
    with client.open("/runs/b", "wb") as file:
        file.write(LARGE)
        file.write(LARGE[: MIB + 1])
    assert content_of(machine, "/runs/b") == LARGE + LARGE[: MIB + 1]
    client.close()


LEAVING = """
import sys
import penstock
client = penstock.connect(sys.argv[1], start=False)
file = client.open("/runs/left", "wb")
file.write(b"x" * (2 << 20))
small = client.open("/runs/small", "w")
small.write("text")
print("written", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kill", [False, True])
def test_what_a_process_that_ends_had_not_closed_is_discarded(lake: Any, kill: bool) -> None:
    process = lake.spawn(sys.executable, "-c", LEAVING, str(lake.home.name), stdin=True)
    assert process.stdout.readline() == "written\n"
    assert used_bytes(lake) >= 2 * MIB
    if kill:
        process.kill()
    process.communicate("\n" if not kill else None)
    lake.until(lambda: used_bytes(lake) == 0)
    assert [entry.name for entry in lake.client.list("/runs")] == []


def test_an_interrupted_close_says_that_it_is_not_known_what_became_of_it(lake: Any) -> None:
    def child() -> None:
        class Alarm(Exception):
            pass

        def ring(*_: object) -> None:
            raise Alarm

        signal.signal(signal.SIGALRM, ring)
        lake.client.core.ping()
        file = lake.client.open("/runs/a", "wb")
        file.write(b"small")
        os.kill(lake.pid(), signal.SIGSTOP)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Alarm) as caught:
                file.close()
            assert "close /runs/a: the node may have committed it" in "".join(caught.value.__notes__)
        finally:
            os.kill(lake.pid(), signal.SIGCONT)

    in_strict_child(child)


def with_something_staged(machine: Any) -> penstock.Client:
    """A client of a node whose source is away, and has not got what replaces ``/runs/a``."""
    remote = machine.remote({})
    client = penstock.connect(machine.home.name)
    client.attach(
        "s3://bucket", "/runs", endpoint=remote.endpoint, credentials="anonymous", writable=True, freshness="1h"
    )
    # So that it is known what the later write replaces.
    with client.open("/runs/a", "wb", durability="source") as file:
        file.write(b"the one before")
    remote.stop()
    with client.open("/runs/a", "wb", durability="local") as file:
        file.write(b"staged")
    return client


def test_a_source_that_is_away_does_not_keep_a_close_at_local_and_persist_names_what_is_left(machine: Any) -> None:
    client = with_something_staged(machine)
    with client.open("/runs/a") as file:
        assert file.read() == b"staged"
    with pytest.raises(TimeoutError, match=r"persist /runs: .*bucket/a") as caught:
        client.persist("/runs", timeout=0.5)
    assert isinstance(caught.value, PenstockError)
    assert client.status()["stage"]["files"] == 1
    client.close()


def test_a_client_that_is_gone_waits_for_no_upload(machine: Any) -> None:
    client = with_something_staged(machine)
    script = (
        "import penstock, sys; c = penstock.connect(sys.argv[1], start=False); print(1, flush=True); c.persist('/')"
    )
    process = machine.spawn(sys.executable, "-c", script, str(machine.home.name))
    assert process.stdout.readline() == "1\n"
    machine.until(lambda: client.status()["clients"] == 2)
    process.kill()
    process.communicate()
    machine.until(lambda: client.status()["clients"] == 1)
    assert client.status()["stage"]["files"] == 1
    client.close()
