"""What may be mounted where, and which kernel mounts one mount is made of."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotDirectoryError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.policies import mounts
from penstock.policies.attachments import WAYS
from penstock.policies.mounts import KernelMount, Place, TargetFacts

TABLE = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
40 27 0:39 / /mnt/lake ro,nosuid,nodev - fuse.penstock penstock ro,user_id=0
41 40 0:40 / /mnt/lake/data ro,nosuid,nodev shared:9 - fuse.penstock penstock ro,user_id=0
43 27 0:51 / /mnt/with\040blank\134and\012more rw - tmpfs some\040source rw

"""


def test_a_request_is_complete() -> None:
    asked = mounts.request("/mnt/lake", "/data//", owner="1000:100", directory_mode="0755", umask="027")
    assert asked == {
        "target": "/mnt/lake",
        "path": "/data",
        "snapshot": None,
        "uid": 1000,
        "gid": 100,
        "file_mode": None,
        "directory_mode": 0o755,
        "umask": 0o027,
        "allow_other": False,
    }
    assert mounts.request("/mnt/lake")["uid"] is None
    assert mounts.request("/mnt/lake", snapshot="train-v1")["snapshot"] == "train-v1"


@pytest.mark.parametrize(
    ("arguments", "options", "needle"),
    [
        (("mnt/lake",), {}, "not absolute"),
        (("/",), {}, "root directory"),
        (("//",), {}, "root directory"),
        (("/mnt/\0",), {}, "NUL"),
        (("/mnt/\udcff",), {}, "not UTF-8"),
        (("/mnt", "data"), {}, "begin with /"),
        (("/mnt",), {"owner": "root"}, "not UID:GID"),
        (("/mnt",), {"owner": "1:4294967295"}, "not UID:GID"),
        (("/mnt",), {"owner": "١:١"}, "not UID:GID"),
        (("/mnt",), {"file_mode": "u+r"}, "--file-mode"),
        (("/mnt",), {"directory_mode": "4755"}, "--directory-mode"),
        (("/mnt",), {"umask": "8"}, "--umask"),
    ],
)
def test_what_cannot_be_right_is_refused_with_what_to_write(arguments: Any, options: Any, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle):
        mounts.request(*arguments, **options)


def test_every_attachment_below_is_nested_after_what_it_lies_in() -> None:
    attached = ["/data/inner/deep", "/data", "/other", "/data/inner", "/database"]
    assert mounts.plan("/mnt/lake", "/", attached) == [
        Place("/", "/mnt/lake"),
        Place("/data", "/mnt/lake/data"),
        Place("/data/inner", "/mnt/lake/data/inner"),
        Place("/data/inner/deep", "/mnt/lake/data/inner/deep"),
        Place("/database", "/mnt/lake/database"),
        Place("/other", "/mnt/lake/other"),
    ]


def test_an_attachment_at_the_mounts_path_or_above_is_the_root_itself() -> None:
    assert mounts.plan("/m", "/data", ["/data", "/", "/data/x", "/database"]) == [
        Place("/data", "/m"),
        Place("/data/x", "/m/x"),
    ]
    assert mounts.plan("/m", "/data/part", ["/data"]) == [Place("/data/part", "/m")]


PATHS = st.lists(st.sampled_from("ab"), max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(PATHS, st.lists(PATHS))
def test_a_plan_has_the_root_first_and_nothing_before_what_it_lies_in(path: str, attached: list[str]) -> None:
    places = mounts.plan("/m", path, attached)
    assert places[0] == Place(path, "/m")
    assert len(set(places)) == len(places)
    for number, place in enumerate(places):
        assert not any(mounts.lies_in(earlier.target, place.target) for earlier in places[:number])
        assert place.target == os.path.normpath("/m/" + os.path.relpath(place.path, path))


def test_the_kernels_table_is_read_with_its_escapes_and_optional_fields() -> None:
    table = mounts.parse_mountinfo(TABLE)
    assert len(table) == 5
    assert mounts.mount_at(table, "/mnt/lake") == KernelMount("0:39", "/mnt/lake", "fuse.penstock", "penstock")
    assert table[4] == KernelMount("0:51", "/mnt/with blank\\and\nmore", "tmpfs", "some source")
    assert [each.point for each in mounts.mounts_below(table, "/mnt/lake")] == ["/mnt/lake/data"]
    assert mounts.mount_at(table, "/mnt") is None


def test_the_topmost_of_several_mounts_on_one_directory_counts() -> None:
    table = [KernelMount("0:1", "/m", "tmpfs", "x"), KernelMount("0:2", "/m", "ext4", "/dev/sdb")]
    found = mounts.mount_at(table, "/m")
    assert found is not None
    assert found.device == "0:2"


EMPTY = TargetFacts("/mnt/new", "directory", True)


@pytest.mark.parametrize(
    ("facts", "ours", "kind", "needle"),
    [
        (TargetFacts("/mnt/lake", "directory", False), True, AlreadyExistsError, "`penstock umount /mnt/lake` first"),
        (TargetFacts("/mnt/lake", "directory", False), False, AlreadyExistsError, "another node's tree"),
        (TargetFacts("/proc", "directory", False), False, AlreadyExistsError, "proc of proc is mounted there"),
        (TargetFacts("/mnt/new", "missing", False), False, NotFoundError, "mkdir -p /mnt/new"),
        (TargetFacts("/mnt/new", "file", False), False, NotDirectoryError, "not a directory"),
        (TargetFacts("/mnt/new", "directory", False), False, AlreadyExistsError, "not empty"),
        (TargetFacts("/mnt/new", "Permission denied", False), False, UnavailableError, "Permission denied"),
        (TargetFacts("/home/me/penstock/cache/x", "directory", True), False, InvalidInputError, "lies in /home/me"),
        (TargetFacts("/home/me/penstock", "directory", True), False, InvalidInputError, "the home of the node"),
        (TargetFacts("/home", "directory", True), False, InvalidInputError, "lies in it"),
    ],
)
def test_a_directory_that_cannot_carry_a_mount_is_refused_with_the_reason(
    facts: TargetFacts, ours: bool, kind: type[PenstockError], needle: str
) -> None:
    own = {"/home/me/penstock": "the home of the node"}
    with pytest.raises(kind, match=needle):
        mounts.check_target(facts, mounts.parse_mountinfo(TABLE), own, is_ours=ours)


def test_an_empty_directory_is_taken() -> None:
    mounts.check_target(EMPTY, mounts.parse_mountinfo(TABLE), {"/mnt/newer": "a source"}, is_ours=False)


@pytest.mark.parametrize(
    ("wish", "freshness", "sample", "way"),
    [
        ("auto", {"seconds": 60.0}, mounts.Sample(10, 10 * 112 * 1024), "no-open"),
        ("auto", "immutable", mounts.Sample(1, 1024 * 1024), "no-open"),
        ("auto", {"seconds": 60.0}, mounts.Sample(2, 3 * 1024 * 1024), "open"),
        ("auto", {"seconds": 0.5}, mounts.Sample(10, 10), "open"),
        ("auto", {"seconds": 0.0}, mounts.Sample(10, 10), "open"),
        ("auto", {"seconds": 60.0}, mounts.Sample(0, 0), "open"),
        ("auto", {"seconds": 60.0}, None, "open"),
        ("open", {"seconds": 60.0}, mounts.Sample(10, 10), "open"),
        ("no-open", {"seconds": 0.0}, None, "no-open"),
    ],
)
def test_small_files_that_are_believed_in_for_a_while_need_no_open(
    wish: str, freshness: dict[str, float] | str, sample: mounts.Sample | None, way: str
) -> None:
    chosen = mounts.choose_way({"way": wish, "freshness": freshness, "write": None}, sample)
    assert (chosen.name, chosen.writable) == (way, False)
    assert chosen.why


@pytest.mark.parametrize("wish", WAYS)
def test_what_is_written_is_opened_whatever_its_files_are_like_and_whatever_is_wished(wish: str) -> None:
    document = {"way": wish, "freshness": {"seconds": 60.0}, "write": {"durability": "local"}}
    assert mounts.choose_way(document, mounts.Sample(10, 10)) == mounts.Way("open", "its files are written", True)
    assert not mounts.depends_on_files(document)


@pytest.mark.parametrize(
    ("options", "read", "written"),
    [
        ({}, (0o444, 0o555), (0o644, 0o755)),
        ({"umask": "027"}, (0o440, 0o550), (0o640, 0o750)),
        ({"file_mode": "0444"}, (0o444, 0o555), (0o444, 0o755)),
        ({"directory_mode": "0777", "umask": "0002"}, (0o444, 0o775), (0o644, 0o775)),
        ({"file_mode": "0000"}, (0, 0o555), (0, 0o755)),
    ],
)
def test_an_owner_may_write_where_files_are_written_unless_other_rights_are_asked_for(
    options: dict[str, str], read: tuple[int, int], written: tuple[int, int]
) -> None:
    document = mounts.request("/mnt", **options)  # type: ignore[arg-type]
    assert mounts.modes(document, writable=False) == read
    assert mounts.modes(document, writable=True) == written
