"""Programs that know nothing of Penstock, over a mount. What they read is compared by checksums."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mount.lake import KIB, MIB, WAYS, MountedLake, digest, digests_below, digests_of, run

SIZES = [0, 1, 4095, 4096, 65535, 65536, MIB, MIB + 1, 5 * MIB + 17]
NEEDLE = b"a needle in the lake"
NEEDLE_IN = {"names/with spaces.txt", "deep/a/b/c/d/leaf", "size-5242897"}


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def tree_files() -> dict[str, bytes]:
    """Sizes around every limit, names of every kind, a deep directory and a full one."""
    files = {f"size-{size}": content(size, size) for size in SIZES}
    names = ["with spaces.txt", "größe-日本語", ".hidden", "-dash", "quote'\"$`", "x" * 255]
    files |= {f"names/{name}": content(number, 5000 + number) for number, name in enumerate(names)}
    files |= {f"deep/{'/'.join('abcd'[:depth])}/leaf": content(depth, 3000 + depth) for depth in range(1, 5)}
    files |= {f"many/{number:03}.bin": content(number, 1000 + number) for number in range(150)}
    for path in NEEDLE_IN:
        files[path] = files[path][:-100] + NEEDLE + files[path][-100 + len(NEEDLE) :]
    return files


FILES = tree_files()


@pytest.fixture(scope="module", params=WAYS)
def tree(lake: MountedLake, request: pytest.FixtureRequest) -> Path:
    return lake.show(FILES, request.param)


def test_cp_copies_a_tree(tree: Path, tmp_path: Path) -> None:
    run("cp", "-r", tree, tmp_path / "copy")
    assert digests_below(tmp_path / "copy") == digests_of(FILES)


@pytest.mark.parametrize("size", [2 * MIB, 20 * MIB])
def test_a_file_that_was_just_read_for_the_first_time_is_copied_by_the_next_program_too(
    lake: MountedLake, tmp_path: Path, size: int
) -> None:
    files = {f"file {number}": content(number, size) for number in range(3)}
    tree = lake.show(files)
    for name, known in files.items():
        for turn in range(3):
            # It compares what it looked at with what it opened.
            run("cp", tree / name, tmp_path / f"{name}-{turn}")
            assert digest((tmp_path / f"{name}-{turn}").read_bytes()) == digest(known)


def test_a_file_that_became_complete_after_it_was_looked_at_is_the_same_file(lake: MountedLake, tmp_path: Path) -> None:
    known = content(7, 20 * MIB)
    path = lake.show({"large": known}) / "large"
    before = path.lstat()
    lake.client.preload(lake.tree_path(path)).wait()
    run("cp", path, tmp_path / "copy")
    assert digest((tmp_path / "copy").read_bytes()) == digest(known)
    with path.open("rb") as file:
        assert os.fstat(file.fileno()).st_ino == path.lstat().st_ino == before.st_ino


def test_tar_packs_a_tree_and_finds_no_difference_afterwards(tree: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    run("tar", "-C", tree, "-cf", packed, ".")
    assert run("tar", "-C", tree, "--compare", "-f", packed) == b""
    (tmp_path / "copy").mkdir()
    run("tar", "-C", tmp_path / "copy", "-xf", packed)
    assert digests_below(tmp_path / "copy") == digests_of(FILES)


def test_grep_finds_what_is_there_and_nothing_else(tree: Path) -> None:
    found = run("grep", "-rlZF", NEEDLE.decode(), ".", cwd=tree).decode().rstrip("\0").split("\0")
    assert {name.removeprefix("./") for name in found} == NEEDLE_IN
    assert run("grep", "-rlF", "no such needle anywhere", ".", cwd=tree, code=1) == b""


def test_find_knows_every_size(tree: Path) -> None:
    rows = run("find", tree, "-type", "f", "-printf", r"%s %P\0").decode().rstrip("\0").split("\0")
    told = {path: int(size) for size, _, path in (row.partition(" ") for row in rows)}
    assert told == {path: len(content) for path, content in FILES.items()}
    large = run("find", tree, "-size", "+64k", "-printf", r"%P\0").decode().rstrip("\0").split("\0")
    assert set(large) == {path for path, content in FILES.items() if len(content) > 64 * KIB}
    empty = run("find", tree, "-empty", "-printf", "%P")
    assert empty == b"size-0"


def test_du_adds_up_to_what_was_put(tree: Path) -> None:
    total = int(run("du", "-s", "--apparent-size", "--block-size=1", tree).split()[0])
    assert total == sum(map(len, FILES.values()))


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_brings_everything_once(tree: Path, tmp_path: Path) -> None:
    command = ["rsync", "-a", "--checksum", "--itemize-changes", f"{tree}/", f"{tmp_path}/copy/"]
    first = run(*command).decode().splitlines()
    assert sum(line.startswith(">f") for line in first) == len(FILES)
    assert digests_below(tmp_path / "copy") == digests_of(FILES)
    second = run(*command, "--stats").decode()
    assert "Number of regular files transferred: 0\n" in second
    assert "\n>" not in second


def test_cmp_finds_the_first_byte_that_differs_and_only_where_one_does(tree: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    for size in SIZES:
        local.write_bytes(FILES[f"size-{size}"])
        run("cmp", tree / f"size-{size}", local)
    changed = bytearray(FILES["size-1048577"])
    changed[777_777] ^= 1
    local.write_bytes(changed)
    assert b"byte 777778," in run("cmp", tree / "size-1048577", local, code=1)


def test_many_programs_at_once_read_the_same(tree: Path) -> None:
    names = run("find", tree, "-type", "f", "-print0")
    command = ["xargs", "-0", "-P", "6", "-n", "20", "sha256sum", "--zero"]
    done = subprocess.run(command, input=names * 2, capture_output=True, timeout=80, check=True)
    rows = [row.split("  ", 1) for row in done.stdout.decode().rstrip("\0").split("\0")]
    assert len(rows) == 2 * len(FILES)
    assert {str(Path(path).relative_to(tree)): told for told, path in rows} == digests_of(FILES)


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """A bare repository with packed and loose objects, and the checksums of what it holds."""
    work, bare = tmp_path / "work", tmp_path / "bare.git"
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    run("git", *author, "init", "-q", work)
    for name, size in (("small", 3000), ("large", 3 * MIB)):
        (work / name).write_bytes(content(size, size))
    run("git", *author, "-C", work, "add", ".")
    run("git", *author, "-C", work, "commit", "-q", "-m", "first")
    run("git", *author, "clone", "-q", "--bare", work, bare)
    run("git", "-C", bare, "gc", "-q")
    (work / "small").write_bytes(content(1, 4000))
    run("git", *author, "-C", work, "commit", "-q", "-a", "-m", "second")
    run("git", "-C", work, "push", "-q", bare, "main")
    return bare, [digest((work / name).read_bytes()) for name in ("small", "large")]


@pytest.mark.parametrize(("url", "way"), [("{}", "open"), ("file://{}", "no-open")])
def test_git_clones_from_a_bare_repository(
    lake: MountedLake, repository: tuple[Path, list[str]], tmp_path: Path, url: str, way: str
) -> None:
    bare, wanted = repository
    stored = {str(path.relative_to(bare)): path.read_bytes() for path in bare.rglob("*") if path.is_file()}
    shown = lake.show(stored, way)
    run("git", "clone", "-q", url.format(shown), tmp_path / "clone")
    run("git", "-C", tmp_path / "clone", "fsck", "--full", "--strict")
    assert run("git", "-C", shown, "rev-list", "--count", "main") == b"2\n"
    assert [digest((tmp_path / "clone" / name).read_bytes()) for name in ("small", "large")] == wanted


def test_programs_run_from_a_mount_whose_files_may_be_executed(lake: MountedLake) -> None:
    git = Path(shutil.which("git") or "")
    script = b'#!/bin/sh\necho "from $1"\n. "${0%/*}/part.sh"\n'
    stored = {"run.sh": script, "part.sh": b"echo part\n", "git": git.read_bytes()}
    shown = lake.show(stored)
    assert len(stored["git"]) > MIB, "it is mapped while it is brought"
    with pytest.raises(PermissionError):
        run(shown / "run.sh")
    target = lake.machine.target("executable")
    lake.machine("mount", str(target), "--path", lake.tree_path(shown), "--file-mode", "0555")
    try:
        assert run(target / "run.sh", "a mount") == b"from a mount\npart\n"
        assert run(target / "git", "--version") == run(git, "--version")
    finally:
        lake.machine.control().umount(str(target), lazy=True)


VERIFY = [
    "--verify=crc32c",
    "--verify_state_save=0",
    "--verify_fatal=1",
    "--bs=32k",
    "--size=6m",
    "--output-format=terse",
    "--thread",
]


@pytest.fixture(scope="module")
def written_by_fio(lake: MountedLake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that fio wrote, and one of which a bit was turned."""
    if shutil.which("fio") is None:
        pytest.skip("needs fio")
    local = tmp_path_factory.mktemp("fio") / "written"
    run("fio", "--name=write", "--rw=write", "--do_verify=0", f"--filename={local}", *VERIFY)
    right = local.read_bytes()
    wrong = bytearray(right)
    wrong[3 * MIB + 12_345] ^= 4
    return lake.show({"right": right, "wrong": bytes(wrong)} | {f"cold{n}": right for n in range(4)})


@pytest.mark.parametrize(
    "options",
    [
        ["--rw=read", "--ioengine=psync", "--filename=cold0"],
        ["--rw=randread", "--ioengine=psync", "--filename=cold1"],
        ["--rw=randread", "--ioengine=mmap", "--filename=cold2"],
        ["--rw=randread", "--ioengine=psync", "--direct=1", "--filename=cold3"],
        ["--rw=randread", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--filename=right"],
        ["--rw=randread", "--ioengine=psync", "--numjobs=4", "--filename=right"],
        ["--rw=read", "--ioengine=mmap", "--filename=right"],
    ],
    ids=lambda options: "-".join(part.partition("=")[2] for part in options),
)
def test_fio_verifies_what_it_wrote_elsewhere(written_by_fio: Path, options: list[str]) -> None:
    run("fio", "--name=verify", "--readonly", "--allow_file_create=0", *options, *VERIFY, cwd=written_by_fio)


def test_fio_would_see_a_wrong_bit(written_by_fio: Path) -> None:
    command: list[Any] = ["fio", "--name=verify", "--readonly", "--rw=read", "--filename=wrong", *VERIFY]
    done = subprocess.run(command, cwd=written_by_fio, capture_output=True, timeout=80, text=True)
    assert done.returncode != 0
    assert "verify" in done.stdout + done.stderr
