"""Names, attributes and refusals: what the kernel tells programs that only look, and those that would write."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.lake import WAYS, MountedLake, files_below, run

NAMES = {
    "with spaces and ümläuts": None,
    "日本語": None,
    "👩‍🚀": None,
    "e\N{COMBINING ACUTE ACCENT}": None,
    "\N{LATIN SMALL LETTER E WITH ACUTE}": None,
    ".hidden": None,
    "...": None,
    "-rf": None,
    "~": None,
    "#%?&+=:;,'\"!*|<>()[]{}^`$": None,
    "back\\slash": None,
    "x" * 255: None,
    "ß" * 127: None,
    # Keys that no directory should hold have names that say so.
    "new\nline": "@%new%0Aline",
    "tab\t": "@%tab%09",
}
"""Keys, and the name by which they are shown where it is another one."""

CONTENT = b"0123456789" * 1000
PLAIN = {"file": CONTENT, "directory/inner": b"inner", "never-read": CONTENT}


@pytest.fixture(scope="module", params=WAYS)
def named(lake: MountedLake, request: pytest.FixtureRequest) -> Path:
    return lake.show({name: name.encode() for name in NAMES}, request.param)


@pytest.fixture(scope="module", params=WAYS)
def plain(lake: MountedLake, request: pytest.FixtureRequest) -> Path:
    return lake.show(PLAIN, request.param)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_names_are_listed_as_they_are_and_lead_to_their_objects(named: Path) -> None:
    wanted = {shown or name: name.encode() for name, shown in NAMES.items()}
    for name, content in wanted.items():
        assert (named / name).read_bytes() == content, "found without a listing"
    assert names_in(named) == set(wanted)
    assert files_below(named) == wanted
    listed = run("find", named, "-type", "f", "-printf", r"%f\0").decode().rstrip("\0").split("\0")
    assert set(listed) == set(wanted)


def test_names_in_other_words_are_not_there(named: Path) -> None:
    for name in ("WITH SPACES AND ÜMLÄUTS", "x" * 254, "日本", "new\nline", "%2E%2E%2E", " "):
        assert not (named / name).exists()
    with pytest.raises(FileNotFoundError):
        (named / os.fsdecode(b"\xff\xfe")).stat()


def test_a_name_may_have_255_bytes_and_none_more(named: Path) -> None:
    assert (named / ("x" * 255)).stat().st_size == 255
    for name in ("x" * 256, "ß" * 128):
        for call in (Path.stat, Path.read_bytes, names_in, os.listxattr):
            with pytest.raises(OSError, match="File name too long"):
                call(named / name)
    assert os.pathconf(named, "PC_NAME_MAX") == 255


def test_a_path_through_a_file_leads_nowhere(plain: Path) -> None:
    with pytest.raises(NotADirectoryError):
        (plain / "file/inner").stat()
    with pytest.raises(NotADirectoryError):
        names_in(plain / "file")
    with pytest.raises(IsADirectoryError):
        (plain / "directory").read_bytes()


def test_stat_says_what_is_there(plain: Path) -> None:
    told = (plain / "file").stat()
    assert stat.S_ISREG(told.st_mode)
    assert stat.S_IMODE(told.st_mode) == 0o444
    assert (told.st_size, told.st_blocks) == (len(CONTENT), -(-len(CONTENT) // 512))
    assert (told.st_uid, told.st_gid) == (os.getuid(), os.getgid())
    assert told.st_nlink == 1
    assert told.st_mtime > 1e9
    assert (plain / "file").stat() == told, "nothing changes by being looked at"
    directory = (plain / "directory").stat()
    assert stat.S_ISDIR(directory.st_mode)
    assert stat.S_IMODE(directory.st_mode) == 0o555
    numbers = [told.st_ino, directory.st_ino, (plain / "directory/inner").stat().st_ino]
    assert len(set(numbers)) == 3
    entries = {entry.name: entry.inode() for entry in os.scandir(plain)}
    assert entries["file"] == told.st_ino
    assert entries["directory"] == directory.st_ino


def test_attributes_of_penstock_are_read_as_extended_attributes(lake: MountedLake, plain: Path) -> None:
    path = plain / "never-read"
    shown = lake.tree_path(plain)

    def read(name: str) -> str:
        return os.getxattr(path, f"user.penstock.{name}").decode()

    assert set(os.listxattr(path)) == {f"user.penstock.{name}" for name in ("source", "version", "cached", "etag")}
    assert read("source") == f"s3://bucket{shown}/never-read"
    assert read("cached") == "0"
    client = lake.client.stat(f"{shown}/never-read")
    assert read("version") == client.version
    assert read("etag").strip('"') == client.version.strip('"')
    assert path.read_bytes() == CONTENT
    assert read("cached") == str(len(CONTENT))
    for name in ("user.other", "security.capability", "user.penstock.none"):
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(path, name)


def test_a_directory_says_where_it_comes_from(lake: MountedLake, plain: Path) -> None:
    told = os.getxattr(plain, "user.penstock.source").decode()
    assert told.startswith(f"s3://bucket{lake.tree_path(plain)}")


def test_space_is_that_of_the_cache(lake: MountedLake, plain: Path) -> None:
    space = os.statvfs(plain)
    [tier] = lake.machine.control().status()["cache"]["tiers"]
    assert space.f_blocks * space.f_frsize == pytest.approx(tier["size_bytes"], abs=space.f_frsize)
    assert 0 < space.f_bfree <= space.f_blocks
    assert space.f_bavail == space.f_bfree
    assert space.f_namemax == 255
    assert space.f_flag & os.ST_RDONLY
    assert len(run("df", "-h", plain).splitlines()) == 2


CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda root: (root / "file").open("r+b"),
    "open for appending": lambda root: (root / "file").open("ab"),
    "open and cut": lambda root: (root / "file").open("wb"),
    "create": lambda root: (root / "new").touch(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "rmdir": lambda root: (root / "directory").rmdir(),
    "unlink": lambda root: (root / "file").unlink(),
    "rename": lambda root: (root / "file").rename(root / "new"),
    "replace": lambda root: (root / "file").replace(root / "directory/inner"),
    "chmod": lambda root: (root / "file").chmod(0o644),
    "chown": lambda root: os.chown(root / "file", 1, 1),
    "truncate": lambda root: os.truncate(root / "file", 5),
    "utime": lambda root: os.utime(root / "file", (1, 1)),
    "symlink": lambda root: (root / "new").symlink_to("file"),
    "link": lambda root: (root / "new").hardlink_to(root / "file"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "setxattr": lambda root: os.setxattr(root / "file", "user.mine", b"x"),
    "removexattr": lambda root: os.removexattr(root / "file", "user.penstock.version"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_can_be_changed(plain: Path, change: str) -> None:
    with pytest.raises(OSError) as caught:
        CHANGES[change](plain)
    assert caught.value.errno == errno.EROFS
    assert (plain / "file").read_bytes() == CONTENT
    assert names_in(plain) == {"file", "directory", "never-read"}


def test_locks_work_among_programs_of_this_machine(plain: Path) -> None:
    with (plain / "file").open("rb") as first, (plain / "file").open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_UN)


@pytest.mark.parametrize("way", WAYS)
def test_a_large_directory_is_listed_whole_while_it_is_walked_again(lake: MountedLake, way: str) -> None:
    names = {f"{number:05}" for number in range(5000)}
    large = lake.show({}, way) / "large"
    prefix = large.relative_to(lake.root)
    lake.remote.put_synthetic("bucket", [f"{prefix}/{name}" for name in names], b"content of each")
    assert names_in(large) == names
    found = []
    with os.scandir(large) as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) % 500 == 0:
                assert names_in(large) == names
    assert sorted(found) == sorted(names)
    told = run("find", large, "-type", "f", "-size", "15c").splitlines()
    assert len(told) == 5000


def test_content_is_the_same_through_a_second_mount(lake: MountedLake, plain: Path) -> None:
    target = lake.machine.target(f"second-{plain.parent.name}")
    lake.machine("mount", str(target), "--path", lake.tree_path(plain))
    try:
        assert files_below(target) == PLAIN
    finally:
        lake.machine.control().umount(str(target), lazy=True)
