"""The client over fork, forkserver and spawn; over the end of the node, of other clients, of itself."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.conftest import in_child
from penstock.errors import PenstockError, StaleVersionError, UnavailableError

MIB = 1024 * 1024
LARGE = b"".join(b"%07d\n" % number for number in range(500_000))
SMALL = {f"small/{number}": bytes([number]) * (1000 + number) for number in range(40)}
PATHS = [f"/data/{name}" for name in SMALL]


@pytest.fixture
def lake(machine: Any) -> Iterator[Any]:
    remote = machine.remote({"large.bin": LARGE, **SMALL})
    machine.client = penstock.connect(machine.home.name)
    machine.client.attach("s3://bucket", "/data", endpoint=remote.endpoint, credentials="anonymous", freshness="1h")
    yield machine
    machine.client.close()


def read_all(client: Any, file: Any, offset: int) -> bool:
    """Whether a client and a file that came from another process read what is right."""
    contents = client.read_many(PATHS)
    return (
        file.tell() == offset and file.read() == LARGE[offset:] and list(map(bytes, contents)) == list(SMALL.values())
    )


def metric(lake: Any, name: str) -> int:
    return int(lake.control().status()["metrics"][name])


def test_a_fork_in_mid_read_leaves_both_processes_right(lake: Any) -> None:
    file = lake.client.open("/data/large.bin")
    assert file.read(1000) == LARGE[:1000]

    def child() -> None:
        assert file.read(MIB) == LARGE[1000 : 1000 + MIB]
        assert read_all(lake.client, lake.client.open("/data/large.bin"), 0)
        file.close()

    in_child(child)
    assert file.tell() == 1000
    assert file.read() == LARGE[1000:]


def test_a_child_reads_on_a_complete_file_without_the_node(lake: Any) -> None:
    lake.client.core.prefetch(["/data/large.bin"])
    file = lake.client.open("/data/large.bin")
    lake.kill()
    in_child(lambda: pytest.fail("wrong bytes") if file.read() != LARGE else None)
    assert file.read() == LARGE


def test_views_of_a_parent_stay_right_in_its_child_whatever_the_parent_reads_next(lake: Any) -> None:
    views = lake.client.read_many(PATHS)
    to_child, to_parent = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(to_child[0], 1)
        os._exit(0 if list(map(bytes, views)) == list(SMALL.values()) else 1)
    del views
    for turn in range(20):
        shuffled = PATHS[turn:] + PATHS[:turn]
        lake.client.read_many(shuffled)
    os.write(to_child[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for end in (*to_child, *to_parent):
        os.close(end)


def test_what_a_child_drops_is_not_given_back_for_its_parent(lake: Any) -> None:
    views = lake.client.read_many(PATHS)
    file = lake.client.open("/data/large.bin")

    def child() -> None:
        nonlocal views, file
        views = None
        file.close()

    in_child(child)
    for _ in range(5):
        lake.client.read_many(PATHS[::-1])
    assert list(map(bytes, views)) == list(SMALL.values())
    assert file.read() == LARGE


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_client_and_file_work_in_processes_started_by(lake: Any, method: str) -> None:
    file = lake.client.open("/data/large.bin")
    file.seek(4321)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.starmap(read_all, [(lake.client, file, 4321)] * 4, chunksize=1))
    assert file.read(10) == LARGE[4321:4331]


def test_a_client_pickles_as_where_it_connects_to(lake: Any) -> None:
    copy = pickle.loads(pickle.dumps(lake.client))
    assert copy.stat("/data/large.bin").size == len(LARGE)
    assert copy.control.path == lake.client.control.path
    core = pickle.loads(pickle.dumps(lake.client.core))
    assert core.ping() == lake.client.core.ping()


VANISHING = """
import os, sys
import penstock
client = penstock.connect(sys.argv[1], start=False)
for number in range(100):
    if os.fork() == 0:
        views = client.read_many(sys.argv[2:])
        files = [client.open("/data/large.bin") for _ in range(3)]
        files[0].read(1000)
        os.write(1, b"x")
        os.read(0, 1)
        os._exit(1)
os.write(1, b"p")
os.read(0, 1)
"""


def test_a_hundred_clients_that_vanish_leave_nothing_behind(lake: Any) -> None:
    lake.client.read_many(PATHS)
    process = subprocess.Popen(
        [sys.executable, "-c", VANISHING, str(lake.home.name), *PATHS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    try:
        said = b""
        while len(said) < 101:
            piece = process.stdout.read1(200)
            assert piece, "the clients ended early"
            said += piece
        assert metric(lake, "clients") >= 100
        assert metric(lake, "leases") >= 300
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    lake.until(lambda: metric(lake, "clients") <= 1)
    lake.until(lambda: metric(lake, "leases") == 0)
    lake.until(lambda: metric(lake, "memory_used_bytes") == 0)
    node_files = len(list(Path(f"/proc/{lake.pid()}/fd").iterdir()))
    assert node_files < 150


def test_a_child_that_lives_on_does_not_hold_what_its_parent_held(lake: Any) -> None:
    script = (
        "import os, sys, penstock\n"
        "client = penstock.connect(sys.argv[1], start=False)\n"
        "files = [client.open('/data/large.bin') for _ in range(7)]\n"
        "print(os.getpid(), flush=True) if os.fork() == 0 else os._exit(0)\n"
        "os.read(0, 1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(lake.home.name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        lake.until(lambda: metric(lake, "leases") == 0)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_an_idle_client_gives_back_what_it_closed_also_while_the_node_had_no_time(lake: Any) -> None:
    files = [lake.client.open("/data/large.bin") for _ in range(3000)]
    assert metric(lake, "leases") >= 3000
    pid = lake.client.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    for file in files:
        file.close()
    os.kill(pid, signal.SIGCONT)
    lake.until(lambda: metric(lake, "leases") == 0)


def test_a_client_connects_again_after_the_node_was_restarted(lake: Any) -> None:
    client = lake.client
    client.core.prefetch([PATHS[0]])
    complete, partial = client.open(PATHS[0]), client.open("/data/large.bin")
    views = client.read_many(PATHS[:5])
    assert partial.read(10) == LARGE[:10]
    lake.kill()
    with pytest.raises(UnavailableError, match="penstock up"):
        client.stat("/data/large.bin")
    assert complete.read() == SMALL["small/0"]
    assert list(map(bytes, views)) == list(SMALL.values())[:5]
    penstock.connect(lake.home.name)
    assert client.stat("/data/large.bin").size == len(LARGE)
    assert partial.read() == LARGE[10:]
    assert list(map(bytes, client.read_many(PATHS))) == list(SMALL.values())


def test_an_idle_client_survives_a_restart_without_an_error(lake: Any) -> None:
    assert lake.client.stat("/data/large.bin").size == len(LARGE)
    lake.kill()
    penstock.connect(lake.home.name)
    assert lake.client.stat("/data/large.bin").size == len(LARGE)


def test_a_file_whose_version_is_gone_after_a_restart_is_stale(lake: Any) -> None:
    partial = lake.client.open("/data/large.bin")
    partial.read(10)
    lake.client.detach("/data")
    lake.kill()
    penstock.connect(lake.home.name)
    with pytest.raises((StaleVersionError, FileNotFoundError)):
        partial.read()
    assert partial.tell() == 10


def test_without_a_node_the_message_says_so(machine: Any) -> None:
    client = penstock.connect(machine.home.name, start=False)
    with pytest.raises(UnavailableError, match="no node is running") as caught:
        client.stat("/")
    assert isinstance(caught.value, PenstockError)
    assert caught.value.advice
    assert "penstock up" in caught.value.advice


def test_a_hundred_connects_at_once_start_one_node(machine: Any) -> None:
    script = (
        "import os, sys, penstock\n"
        "pids = []\n"
        "for _ in range(100):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        status = 1\n"
        "        try:\n"
        "            client = penstock.connect(sys.argv[1])\n"
        "            os.write(1, b'%d\\n' % client.status()['pid'])\n"
        "            status = 0\n"
        "        finally:\n"
        "            os._exit(status)\n"
        "    pids.append(pid)\n"
        "sys.exit(any(os.waitpid(pid, 0)[1] for pid in pids))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(machine.home.name)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    nodes = done.stdout.split()
    assert len(nodes) == 100
    assert set(nodes) == {str(machine.pid())}


def test_a_signal_ends_a_wait_and_the_client_goes_on(machine: Any) -> None:
    remote = machine.remote({}, bytes_per_s=100_000)
    remote.put_object("bucket", "slow.bin", LARGE)
    client = penstock.connect(machine.home.name)
    client.attach("s3://bucket", "/data", endpoint=remote.endpoint, credentials="anonymous", freshness="1h")

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def read_for(seconds: float, file: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        file.read()

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with client.open("/data/slow.bin") as file:
            with pytest.raises(Stop):
                read_for(0.3, file)
            assert not client.why("/data/slow.bin")["complete"], "the signal ended the wait, not the end of the file"
            assert file.tell() == 0
            assert file.read(10) == LARGE[:10]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.stat("/data/slow.bin").size == len(LARGE)
    client.close()
    machine.until(lambda: metric(machine, "leases") == 0)


def test_threads_that_read_while_others_fork_never_hang_a_child(lake: Any) -> None:
    lake.client.core.evict(["/data/large.bin"])
    file = lake.client.open("/data/large.bin")
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        while not done.is_set():
            offset = time.monotonic_ns() % (len(LARGE) - 5000)
            if file.pread(5000, offset) != LARGE[offset : offset + 5000]:
                wrong.append(offset)
            lake.client.read_many(PATHS[:3])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(15):

            def child(offset: int = turn * 100_000) -> None:
                signal.alarm(60)
                assert file.pread(100, offset) == LARGE[offset : offset + 100]
                assert bytes(lake.client.read_many(PATHS[:1])[0]) == SMALL["small/0"]

            in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_program_that_waits_for_its_children_never_waits_for_the_node(machine: Any) -> None:
    script = (
        "import os, penstock\n"
        "print(penstock.connect().status()['pid'])\n"
        "try: print(os.wait())\n"
        "except ChildProcessError: print('no child')\n"
    )
    program = machine.spawn(sys.executable, "-W", "error", "-c", script)
    said, complaints = program.communicate(timeout=30)
    assert said == f"{machine.pid()}\nno child\n"
    assert complaints == ""
