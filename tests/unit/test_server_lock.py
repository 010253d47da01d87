"""One node a home: who gets the lock, what is cleared, how long a start waits for a node that is leaving."""

import fcntl
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.home import Home, locate
from penstock.server import lock as locks
from penstock.server.lock import AlreadyRunningError, NodeLock
from penstock.server.process import default_cache_bytes


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = locate(tmp_path / "h", {})
    made.prepare()
    return made


@pytest.fixture
def held(home: Home) -> Iterator[NodeLock]:
    lock = NodeLock(home)
    lock.acquire()
    yield lock
    lock.release()


def listening(home: Home) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home.control_socket))
    listener.listen()
    return listener


def test_a_second_node_is_refused_with_the_pid_of_the_first(home: Home, held: NodeLock) -> None:
    with listening(home), pytest.raises(AlreadyRunningError, match=f"pid={os.getpid()}"):
        NodeLock(home).acquire()


def test_a_start_waits_for_a_node_that_no_longer_answers(home: Home, held: NodeLock) -> None:
    second = NodeLock(home)
    release = threading.Timer(0.2, held.release)
    release.start()
    second.acquire(handover_s=20)
    second.release()
    release.join()


def test_a_node_that_never_lets_go_is_told(home: Home, held: NodeLock) -> None:
    with pytest.raises(AlreadyRunningError):
        NodeLock(home).acquire(handover_s=0)


def test_what_a_dead_node_left_is_cleared(home: Home) -> None:
    listening(home).close()
    home.node_file.write_text("{}")
    home.data_socket.write_text("")
    lock = NodeLock(home)
    lock.acquire()
    assert not home.control_socket.exists()
    assert not home.data_socket.exists()
    assert not home.node_file.exists()
    lock.announce({"version": "1"})
    assert json.loads(home.node_file.read_text()) == {"pid": os.getpid(), "version": "1"}
    lock.release()
    assert not home.node_file.exists()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Home]:
    """A home whose path is too long for sockets in it."""
    made = locate(tmp_path / ("f" * 120), {})
    made.prepare()
    yield made
    shutil.rmtree(made.run, ignore_errors=True)


def test_a_run_directory_that_stands_in_goes_with_its_node(far: Home) -> None:
    lock = NodeLock(far)
    lock.acquire()
    far.start_lock_file.touch()
    lock.release()
    assert not far.run.exists()
    lock.acquire()
    assert far.lock_file.exists()
    lock.release()
    assert not far.run.exists()


def test_a_run_directory_stays_while_a_start_is_under_way_or_others_have_something_in_it(far: Home) -> None:
    lock = NodeLock(far)
    lock.acquire()
    with far.start_lock_file.open("ab") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        lock.release()
        assert {each.name for each in far.run.iterdir()} == {"node.lock", "start.lock"}
    (far.run / "theirs").touch()
    lock.acquire()
    lock.release()
    assert [each.name for each in far.run.iterdir()] == ["theirs"]


def test_who_waited_for_a_lock_that_is_removed_takes_the_next_one(far: Home) -> None:
    first, second = NodeLock(far), NodeLock(far)
    first.acquire()
    release = threading.Timer(0.2, first.release)
    release.start()
    second.acquire(handover_s=20)
    release.join()
    assert far.lock_file.read_text() == f"{os.getpid()}\n"
    with listening(far), pytest.raises(AlreadyRunningError):
        NodeLock(far).acquire()
    second.release()


def test_nobody_answers_where_a_socket_was_left(home: Home) -> None:
    assert not locks.answers(home)
    with listening(home):
        assert locks.answers(home)
    assert not locks.answers(home)


def test_the_default_cache_is_a_share_of_what_is_free_and_chosen_once(home: Home) -> None:
    size = default_cache_bytes(home)
    facts = os.statvfs(home.cache)
    assert 0 < size <= 50 << 30
    assert size <= facts.f_bavail * facts.f_frsize * 0.25
    (home.state / "default-cache-size").write_text("12345")
    assert default_cache_bytes(home) == 12345
    (home.state / "default-cache-size").write_text("damaged")
    assert default_cache_bytes(home) == pytest.approx(size, rel=0.1)
