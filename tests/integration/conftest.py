"""A machine of its own for every test: a home, a command line, a node that is gone afterwards whatever happened."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.client.control import Control
from penstock.errors import PenstockError
from penstock.home import Home, locate
from penstock.policies.mounts import KernelMount, lies_in, parse_mountinfo
from penstock.server.mounter import Mounter

DEADLINE_S = 30.0


class Machine:
    """One home and the processes that use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home: Home = locate(directory / "home", {})
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "AWS_"))}
        self.environment = {**kept, "PENSTOCK_HOME": str(self.home.name), "PENSTOCK_NODE__IDLE_TIMEOUT": "5min"}
        self._processes: list[subprocess.Popen[str]] = []
        self._pids: set[int] = set()
        self._remotes: list[Any] = []
        self.as_another: list[str] = []
        """Put before every command: who the user of this machine is."""

    def __call__(self, *arguments: str, check: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``penstock`` with arguments and checks how it ended; ``None`` checks nothing."""
        command = [*self.as_another, sys.executable, "-m", "penstock.cli", *arguments]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env={**self.environment, **environment},
                cwd=self.directory,
                timeout=90,
            )
        finally:
            self._note()
        if check is not None:
            assert done.returncode == check, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str, **environment: str) -> Any:
        """What ``penstock … --json`` prints."""
        return json.loads(self(*arguments, "--json", **environment).stdout)

    def spawn(self, *command: str, stdin: bool = False, **environment: str) -> subprocess.Popen[str]:
        """A process of this machine that runs beside the test; its standard input is empty, or open."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **environment},
            cwd=self.directory,
        )
        self._processes.append(process)
        return process

    def control(self) -> Control:
        """The control API of the node."""
        self._note()
        return Control(self.home.control_socket)

    def pid(self) -> int:
        """Process id that the node says it has."""
        self._note()
        return int(json.loads(self.home.node_file.read_text())["pid"])

    def kill(self) -> None:
        """Ends the node as a crash would, and waits until it is gone."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: not alive(pid))

    def until(self, condition: Callable[[], Any], limit_s: float = DEADLINE_S) -> Any:
        """Waits for a condition with a deadline; returns what it returned."""
        deadline = time.monotonic() + limit_s
        while True:
            if value := condition():
                return value
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)

    def files(self, name: str, contents: dict[str, bytes]) -> Path:
        """A local directory with files, to be attached."""
        root = self.directory / name
        for path, content in contents.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        return root

    def target(self, name: str = "mnt") -> Path:
        """An empty directory to mount on."""
        made = self.directory / name
        made.mkdir()
        return made

    def mounted(self) -> list[KernelMount]:
        """What the kernel has mounted at or below the machine's directory, what is nested after what it lies in."""
        table = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
        return [each for each in table if lies_in(each.point, str(self.directory))]

    def remote(self, objects: dict[str, bytes], *, first_byte_ms: float = 1.0, bytes_per_s: int = 1 << 30) -> Any:
        """A simulated remote with these objects in its bucket ``bucket``."""
        from penstock import _native

        remote = _native.Remote(str(self.directory / "remote"), first_byte_ms, 1 << 30, bytes_per_s)
        self._remotes.append(remote)
        connection = http.client.HTTPConnection(remote.endpoint.removeprefix("http://"), timeout=30)
        for target, content in [("/bucket", b""), *((f"/bucket/{key}", body) for key, body in objects.items())]:
            connection.request("PUT", target, content)
            response = connection.getresponse()
            response.read()
            assert response.status == 200, (target, response.status)
        connection.close()
        return remote

    def close(self) -> None:
        """Ends everything that was started."""
        for remote in self._remotes:
            remote.stop()
        self._note()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in self._pids:
            if is_node(pid):
                os.kill(pid, signal.SIGKILL)
        self.until(lambda: not any(is_node(pid) for pid in self._pids))
        # Without their node they answer at once; what is nested in a dead mount goes with it.
        with Mounter() as mounter:
            for each in reversed(self.mounted()):
                mounter.unmount(each.point, lazy=True)
        assert self.mounted() == []
        if self.home.run_stands_in():
            # A node that was killed leaves it, outside of the directory of the test.
            shutil.rmtree(self.home.run, ignore_errors=True)

    def _note(self) -> None:
        try:
            self._pids.add(int(json.loads(self.home.node_file.read_text())["pid"]))
        except (FileNotFoundError, ValueError, KeyError):
            return


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_node(pid: int) -> bool:
    """Whether that process is a node: its number may be somebody else's by now."""
    try:
        return alive(pid) and b"penstock.server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine without a node; the first command that needs one starts it."""
    made = Machine(tmp_path)
    yield made
    made.close()


def in_child(work: Callable[[], object]) -> None:
    """Runs ``work`` in a forked child and fails when it failed there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:  # whatever it is, the parent is told
            sys.__stderr__.write(f"in the child: {type(error).__name__}: {error}\n")
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def make_writable_lake(machine: Machine) -> Any:
    """The machine with an empty directory attached at ``/runs``, to be written, and a client of its node."""
    lake: Any = machine
    lake.root = machine.files("source", {})
    lake.root.mkdir(exist_ok=True)
    lake.client = penstock.connect(machine.home.name)
    lake.client.attach(f"file://{lake.root}", "/runs", writable=True)
    return lake


def why_no_mounts() -> str | None:
    """Why nothing can be mounted here, as without root or in a container without FUSE; ``None`` where it can."""
    directory = Path(tempfile.mkdtemp(prefix="penstock-can-mount-"))
    try:
        with Mounter() as mounter:
            os.close(mounter.mount(str(directory), allow_other=False).descriptor)
            mounter.unmount(str(directory), lazy=True)
    except PenstockError as error:
        return error.reason
    finally:
        directory.rmdir()
    return None


@pytest.fixture(scope="session")
def can_mount() -> None:
    """Skips where nothing can be mounted."""
    if reason := why_no_mounts():
        pytest.skip(f"needs the right to mount: {reason}")
