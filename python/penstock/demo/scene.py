"""What the demo plays on: a directory that goes away, a simulated remote with files in it, a node with a client."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from penstock.demo.node import stop_node
from penstock.demo.plain_gets import PlainStore
from penstock.errors import CorruptError, NoSpaceError, PenstockError
from penstock.home import locate

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from penstock._native import Remote
    from penstock.client import Client
    from penstock.client.control import Control

__all__ = ["Scene"]

SMALL_FILES = 512
SMALL_BYTES = 112 * 1024
LARGE_BYTES = 256 << 20
FIRST_BYTE_MS = 30.0
CONNECTION_BYTES_PER_S = 60_000_000
TOTAL_BYTES_PER_S = 400_000_000
BUCKET = "demo"
MOUNT = "/demo"
LARGE_KEY = "large/model.bin"
TABLE_KEY = "tables/trips.parquet"

_NEEDED_BYTES = 1_500_000_000
_BLOCK_BYTES = 1 << 20
_SEED = 20


class Scene:
    """Everything that must be taken down again, however the demo ends.

    Attributes:
        client: of the throw-away node.
        plain: the same bucket, asked without Penstock.
        keys: the small files, in listing order.
        checksums: CRC-32 of every object by key.
        mounted: where the store is mounted; ``None`` where it cannot be, and before :meth:`mount`.
        no_mount: why it cannot be.
    """

    client: Client
    plain: PlainStore
    mounted: Path | None = None
    no_mount = ""
    _directory: Path
    _control: Control
    _remote: Remote

    def __init__(self) -> None:
        self.keys = [f"train/{number:05}.bin" for number in range(SMALL_FILES)]
        self.checksums: dict[str, int] = {}
        self._undo = ExitStack()
        self._random = random.Random(_SEED)  # noqa: S311 - test data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever presses Ctrl-C twice would leave a node and its files behind.
        with _uninterrupted():
            self._undo.close()

    def open_store(self) -> None:
        """Makes the directory and starts the simulated remote in it.

        Raises:
            NoSpaceError: the temporary directory is too full for the demo.
        """
        place = Path(tempfile.gettempdir())
        if shutil.disk_usage(place).free < _NEEDED_BYTES:
            advice = "set TMPDIR to a directory on a larger disk"
            raise NoSpaceError("start the demo", f"it needs 1.5 GB free in {place}", advice)
        self._directory = Path(tempfile.mkdtemp(prefix="penstock-demo-", dir=place))
        self._undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
        from penstock._native import Remote

        root = str(self._directory / "store")
        self._remote = Remote(root, FIRST_BYTE_MS, CONNECTION_BYTES_PER_S, TOTAL_BYTES_PER_S)
        self._undo.callback(self._remote.stop)
        self.plain = PlainStore(self._remote.endpoint, BUCKET)

    def fill_store(self) -> None:
        """Puts the small files and the large one into the store, past its delay."""
        for key in self.keys:
            self.put(key, self._random.randbytes(SMALL_BYTES))
        block = self._random.randbytes(_BLOCK_BYTES)
        # Every MiB differs from the others, so that one in the wrong place is noticed.
        parts = (number.to_bytes(8, "big") + block[8:] for number in range(LARGE_BYTES // _BLOCK_BYTES))
        self.put(LARGE_KEY, b"".join(parts))

    def put(self, key: str, content: bytes) -> None:
        """Puts one object into the store, past its delay, and remembers its checksum."""
        self._remote.put_object(BUCKET, key, content)
        self.checksums[key] = zlib.crc32(content)

    def start_node(self) -> None:
        """Starts a node in a home of its own and attaches the store, without keys."""
        from penstock.client import connect
        from penstock.client.control import Control
        from penstock.policies.attachments import request

        home = self._directory / "home"
        self._undo.callback(stop_node, home)
        # What configures the user's own node is not for this one; libraries that open URLs find it by the home.
        self._undo.enter_context(_variables({"PENSTOCK_HOME": str(home)}))
        with chdir(self._directory):
            self.client = connect(home)
        self._undo.callback(self.client.close)
        wanted = request(f"s3://{BUCKET}/", MOUNT, endpoint=self._remote.endpoint, credentials="anonymous")
        self._control = Control(locate(home).control_socket)
        self._control.attach(wanted)

    def mount(self) -> None:
        """Mounts the store, where this machine and this user can."""
        from penstock.policies.mounts import request

        target = self._directory / "mount"
        target.mkdir()
        try:
            self._control.mount(request(str(target), MOUNT))
        except PenstockError as error:
            self.no_mount = str(error)
            return
        self.mounted = target
        self._undo.callback(self._unmount, target)

    def _unmount(self, target: Path) -> None:
        self.mounted = None
        # The node takes it away in any case, when it stops.
        with suppress(PenstockError):
            self._control.umount(str(target), lazy=True)

    def counters(self) -> dict[str, int]:
        """What was asked of the store so far."""
        return dict(self._remote.counters())

    def check(self, key: str, content: Buffer) -> None:
        """Compares content with what was put; a demo that shows wrong bytes fast shows nothing.

        Raises:
            CorruptError: they differ.
        """
        if zlib.crc32(content) != self.checksums[key]:
            raise CorruptError(f"check {key}", "it came back with other bytes than were put", "report this")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _variables(ours: dict[str, str]) -> Iterator[None]:
    before = {name: value for name, value in os.environ.items() if name.startswith("PENSTOCK_")}
    for name in before:
        del os.environ[name]
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)
