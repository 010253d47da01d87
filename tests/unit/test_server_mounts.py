"""The book of mounts over a kernel and a core that are not real: nesting, healing, refusals, documents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from penstock.errors import (
    AlreadyExistsError,
    BusyError,
    DiskError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    TimedOutError,
    UnavailableError,
)
from penstock.policies.mounts import KernelMount, TargetFacts, Way, lies_in, request
from penstock.server import mounts as books
from penstock.server.mounter import Holder, Mounted
from penstock.server.mounts import MountBook, Surroundings
from penstock.server.snapshots import SnapshotFiles


class Kernel:
    """The kernel's table, its directories, and who uses them; stands in for the process that mounts."""

    def __init__(self) -> None:
        self.mounts: list[KernelMount] = []
        self.out_of_sight: list[KernelMount] = []
        self.states: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.used: dict[str, Holder] = {}
        self.refuse: dict[str, Exception] = {}
        self.privileged = True
        self.settled: list[str] = []
        self.writable: list[str] = []
        self.devices_of_images: list[list[str]] = []
        self._devices = 40

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def table(self) -> list[KernelMount]:
        return list(self.mounts)

    def look(self, target: str, directories: Any = ()) -> tuple[TargetFacts, list[str]]:
        path = self.links.get(target, target)
        return TargetFacts(path, self.states.get(path, "directory"), True), [self.links.get(x, x) for x in directories]

    def mount(self, target: str, *, allow_other: bool, writable: bool, inside: str | None) -> Mounted:
        if target in self.refuse:
            raise self.refuse[target]
        if writable:
            self.writable.append(target)
        self._devices += 1
        self.mounts.append(KernelMount(f"0:{self._devices}", target, "fuse.penstock", "penstock"))
        return Mounted(self._devices, self.privileged)

    def check_image(self) -> None:
        if "image" in self.refuse:
            raise self.refuse["image"]

    def mount_image(self, target: str, image: str, devices: list[str]) -> None:
        if image in self.refuse or target in self.refuse:
            raise self.refuse.get(image) or self.refuse[target]
        self._devices += 1
        self.mounts.append(KernelMount(f"0:{self._devices}", target, "erofs", image))
        self.devices_of_images.append(devices)

    def settle(self, target: str, device: str) -> None:
        if target in self.refuse:
            raise self.refuse[target]
        self.settled.append(target)

    def unmount(self, target: str, *, lazy: bool) -> bool:
        inside = [each for each in self.mounts if lies_in(each.point, target)]
        if not any(each.point == target for each in inside):
            return True
        if not lazy and (len(inside) > 1 or any(lies_in(path, target) for path in self.used)):
            return False
        self.states.pop(target, None)
        self.out_of_sight += inside if lazy else []
        self.mounts = [each for each in self.mounts if each not in inside]
        return True

    def holders(self, target: str) -> tuple[list[Holder], bool]:
        return [holder for path, holder in self.used.items() if lies_in(path, target)], False

    def points(self) -> list[str]:
        return [each.point for each in self.mounts]


class Core:
    """Serves by number, as long as it is told to."""

    def __init__(self) -> None:
        self.served: dict[int, dict[str, Any]] = {}
        self.refuse: Exception | None = None

    def serve_mount(self, fd: int, options_json: str) -> str:
        if self.refuse is not None:
            raise self.refuse
        options = json.loads(options_json)
        known = {"id": fd, **options, "alive": True, "open_files": 0, "data_devices": [4096]}
        self.served[fd] = known
        return json.dumps(known)

    def mounts(self) -> str:
        return json.dumps(list(self.served.values()))

    def end_mount(self, mount_id: int) -> None:
        self.served.pop(mount_id, None)


def open_all(paths: Any) -> dict[str, Way]:
    return {path: Way("open", f"asked for {path}", writable="written" in path) for path in paths}


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel, self.core = Kernel(), Core()
        self.attached = ["/data"]
        self.own: dict[str, str] = {"/home/h": "the home"}
        self.missing: set[str] = set()
        self.book = self.restarted()

    def surroundings(self) -> Surroundings:
        return Surroundings(
            attached=lambda: list(self.attached),
            check_directory=self._check,
            own_directories=lambda: self.own,
            snapshot=self._find,
            run=self.directory,
            images=self.directory,
            ways=open_all,
        )

    def restarted(self) -> MountBook:
        book = MountBook(self.directory, self.core, self.surroundings(), lambda: self.kernel)  # type: ignore[arg-type,return-value]
        assert book.load() == []
        return book

    def _find(self, name: str) -> SnapshotFiles:
        if name in self.missing:
            raise NotFoundError(f"find snapshot {name}", "there is none of that name")
        return SnapshotFiles("/data/x", Path(f"/h/{name}.snapshot"))

    def _check(self, path: str) -> None:
        if path in self.missing:
            raise NotFoundError(f"mount {path}", "nothing there")

    def mount(self, target: str = "/m", path: str = "/", **options: Any) -> dict[str, Any]:
        reuse = options.pop("reuse", False)
        return self.book.mount(request(target, path, **options), reuse=reuse)

    def attach(self, path: str) -> None:
        self.attached.append(path)
        self.book.follow()

    def detach(self, path: str, *, lazy: bool = False, fails: bool = False) -> None:
        with self.book.without(path, lazy=lazy):
            if fails:
                raise DiskError("detach", "full")
            self.attached.remove(path)

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in self.directory.glob("*.json")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    now = [1000.0]
    monkeypatch.setattr(books.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance  # type: ignore[return-value]


def test_a_mount_is_a_root_and_a_nested_mount_for_each_attachment(bench: Bench) -> None:
    bench.attached += ["/data/inner", "/other"]
    shown = bench.mount(owner="7:8", allow_other=True)
    assert bench.kernel.points() == ["/m", "/m/data", "/m/data/inner", "/m/other"]
    assert bench.kernel.settled == bench.kernel.points()
    assert [each["path"] for each in shown["kernel_mounts"]] == ["/", "/data", "/data/inner", "/other"]
    assert (shown["state"], shown["problem"]) == ("mounted", None)
    assert {(each["uid"], each["gid"], each["allow_other"]) for each in bench.core.served.values()} == {(7, 8, True)}
    assert [each["why"] for each in bench.core.served.values()][1] == "asked for /data"
    [document] = bench.documents()
    assert (document["target"], document["path"], document["uid"]) == ("/m", "/", 7)


def test_files_belong_to_the_nodes_user_unless_told_otherwise(bench: Bench) -> None:
    bench.mount()
    assert {each["uid"] for each in bench.core.served.values()} == {os.getuid()}


def test_only_what_is_written_is_mounted_to_be_written_also_by_the_next_node(bench: Bench) -> None:
    bench.attached += ["/data/written", "/written"]
    shown = bench.mount(umask="002")
    writable = ["/m/data/written", "/m/written"]
    assert bench.kernel.writable == writable
    assert [each["target"] for each in shown["kernel_mounts"] if each["writable"]] == writable
    modes = {each["target"]: (each["file_mode"], each["directory_mode"]) for each in bench.core.served.values()}
    assert modes == {"/m": (0o444, 0o555), "/m/data": (0o444, 0o555)} | dict.fromkeys(writable, (0o644, 0o755))
    bench.book.close()
    bench.kernel.writable.clear()
    bench.restarted().check()
    assert bench.kernel.writable == writable
    bench.kernel.writable.clear()
    bench.attach("/new-and-written")
    assert bench.kernel.writable == []


def test_without_privilege_one_kernel_mount_shows_everything(bench: Bench) -> None:
    bench.kernel.privileged = False
    bench.mount()
    bench.attach("/other")
    assert bench.kernel.points() == ["/m"]
    bench.kernel.used["/m/data/x"] = Holder(7, "python", "/m/data/x")
    bench.detach("/data")
    bench.attached.append("/written")
    assert bench.book.problems() == []
    assert "/written can only be read here" in bench.mount("/other")["problem"]
    assert bench.mount("/alone", "/written")["problem"] is None
    bench.book.umount("/alone", lazy=False)
    bench.detach("/written")
    assert bench.book.problems() == []


def test_what_is_attached_below_appears_and_what_is_detached_goes(bench: Bench) -> None:
    bench.mount()
    bench.attach("/new")
    assert bench.kernel.points() == ["/m", "/m/data", "/m/new"]
    bench.detach("/new")
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert len(bench.core.served) == 2


def test_an_attachment_outside_of_what_is_mounted_changes_nothing(bench: Bench) -> None:
    bench.mount(path="/data")
    bench.attach("/other")
    assert bench.kernel.points() == ["/m"]


def test_an_attachment_above_nested_ones_takes_them_in(bench: Bench) -> None:
    bench.attached = ["/data/inner"]
    bench.mount()
    bench.kernel.used["/m/data/inner/x"] = Holder(7, "python", "/m/data/inner/x")
    bench.attach("/data")
    assert bench.kernel.points() == ["/m", "/m/data", "/m/data/inner"]
    assert [each.point for each in bench.kernel.out_of_sight] == ["/m/data/inner"]
    assert len(bench.core.served) == 4, "whoever has files open there reads on"


def test_detach_names_who_uses_it_and_changes_nothing_but_lazily_it_goes(bench: Bench) -> None:
    bench.mount()
    bench.kernel.used["/m/data/x"] = Holder(7, "python", "/m/data/x")
    with pytest.raises(BusyError, match=r"python \(pid 7, /m/data/x\); stop that, or `penstock detach /data --lazy`"):
        bench.detach("/data")
    assert bench.attached == ["/data"]
    assert bench.kernel.points() == ["/m", "/m/data"]
    bench.detach("/data", lazy=True)
    assert bench.kernel.points() == ["/m"]
    assert bench.attached == []


def test_a_detach_that_fails_leaves_the_mount_as_it_was(bench: Bench) -> None:
    bench.mount()
    with pytest.raises(DiskError):
        bench.detach("/data", fails=True)
    assert bench.kernel.points() == ["/m", "/m/data"]


def test_a_detach_that_the_core_refuses_because_others_lie_below_takes_nothing_away(bench: Bench) -> None:
    bench.attached += ["/data/inner"]
    bench.mount()
    before = list(bench.kernel.mounts)
    with pytest.raises(DiskError):
        bench.detach("/data", fails=True)
    assert bench.kernel.mounts == before


@pytest.mark.parametrize(("attached", "path"), [("/data", "/data"), ("/data", "/data/part"), ("/up/data", "/up")])
def test_what_a_mount_shows_is_not_detached_under_it(bench: Bench, attached: str, path: str) -> None:
    bench.attached = [attached]
    bench.mount(path=path)
    with pytest.raises(BusyError, match=rf"{path} is mounted at /m; `penstock umount /m` first"):
        bench.detach(attached, lazy=True)
    assert bench.kernel.points()[0] == "/m"


def test_the_root_of_the_tree_stays_when_what_is_attached_there_goes(bench: Bench) -> None:
    bench.attached = ["/"]
    bench.mount()
    bench.detach("/")
    assert bench.kernel.points() == ["/m"]


def test_a_nested_mount_that_fails_is_a_problem_and_tried_again(bench: Bench, clock: Any) -> None:
    bench.kernel.refuse["/m/data"] = UnavailableError("mount /m/data", "no such directory")
    assert bench.mount()["problem"] == "mount /m/data: no such directory"
    assert bench.book.problems() == ["mount /m/data: no such directory"]
    bench.kernel.refuse.clear()
    clock(60)
    bench.book.check()
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert bench.book.problems() == []


def test_a_mount_that_nobody_serves_leaves_nothing(bench: Bench) -> None:
    bench.core.refuse = PermissionDeniedError("serve", "no")
    with pytest.raises(PermissionDeniedError):
        bench.mount()
    assert (bench.kernel.points(), bench.documents(), bench.book.all()) == ([], [], [])


def test_a_mount_that_does_not_answer_leaves_nothing(bench: Bench) -> None:
    bench.kernel.refuse = {"/m": TimedOutError("mount /m", "silent")}
    mount = bench.kernel.mount
    bench.kernel.mount = lambda target, **options: _served(bench, mount, target, options)  # type: ignore[method-assign]
    with pytest.raises(TimedOutError):
        bench.mount()
    assert (bench.kernel.points(), bench.core.served, bench.documents()) == ([], {}, [])


def _served(bench: Bench, mount: Any, target: str, options: Any) -> Mounted:
    failure = bench.kernel.refuse.pop(target)
    mounted: Mounted = mount(target, **options)
    bench.kernel.refuse[target] = failure
    return mounted


def test_a_mount_whose_document_cannot_be_kept_is_undone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.server.mount_store.write_atomically", full)
    with pytest.raises(DiskError, match="No space left"):
        bench.mount()
    assert bench.kernel.points() == []
    assert bench.book.all() == []


def test_the_same_directory_is_refused_unless_the_same_mount_is_wanted(bench: Bench) -> None:
    first = bench.mount()
    with pytest.raises(AlreadyExistsError, match="`penstock umount /m` first"):
        bench.mount()
    assert bench.mount(reuse=True)["id"] == first["id"]
    with pytest.raises(AlreadyExistsError):
        bench.mount(path="/data", reuse=True)


def test_links_are_followed_before_anything_is_decided(bench: Bench) -> None:
    bench.kernel.links = {"/link": "/m", "/home/h": "/disk/h"}
    assert bench.mount("/link")["target"] == "/m"
    bench.book.umount("/link", lazy=False)
    assert bench.kernel.points() == []
    with pytest.raises(InvalidInputError, match="/disk/h, the home, lies in it"):
        bench.mount("/disk")


def test_no_mount_goes_into_another(bench: Bench) -> None:
    bench.mount()
    with pytest.raises(InvalidInputError, match="lies in /m, a mount of this node"):
        bench.mount("/m/data/deep")


def test_a_path_that_the_tree_has_not_is_refused(bench: Bench) -> None:
    bench.missing = {"/none"}
    with pytest.raises(NotFoundError):
        bench.mount(path="/none")


def test_umount_takes_the_innermost_first_and_forgets(bench: Bench) -> None:
    bench.attached += ["/data/inner"]
    bench.mount()
    bench.book.umount("/m", lazy=False)
    assert (bench.kernel.points(), bench.documents(), bench.core.served) == ([], [], {})
    assert bench.restarted().all() == []


def test_umount_names_who_uses_it_and_changes_nothing(bench: Bench) -> None:
    bench.mount()
    bench.kernel.used["/m"] = Holder(9, "bash", "/m")
    with pytest.raises(BusyError, match=r"bash \(pid 9, /m\); stop that, or `penstock umount /m --lazy`"):
        bench.book.umount("/m", lazy=False)
    assert bench.kernel.points() == ["/m", "/m/data"]
    bench.book.umount("/m", lazy=True)
    assert (bench.kernel.points(), bench.documents()) == ([], [])
    assert bench.book.in_use(), "files are still open in it"


def test_what_was_taken_before_a_busy_root_is_mounted_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mount()
    bench.kernel.used["/m"] = Holder(9, "bash", "/m")
    unseen = [([], True)]
    holders = bench.kernel.holders
    monkeypatch.setattr(bench.kernel, "holders", lambda target: unseen.pop() if unseen else holders(target))
    with pytest.raises(BusyError):
        bench.book.umount("/m", lazy=False)
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert len(bench.core.served) == 2


def test_umount_of_what_is_no_mount_says_what_it_is(bench: Bench) -> None:
    bench.mount()
    with pytest.raises(NotFoundError, match="it is a part of the mount /m"):
        bench.book.umount("/m/data", lazy=False)
    with pytest.raises(NotFoundError, match="`penstock mounts` shows where it is"):
        bench.book.umount("/elsewhere", lazy=False)
    bench.kernel.mounts.append(KernelMount("0:9", "/other", "fuse.penstock", "penstock"))
    with pytest.raises(NotFoundError, match="a mount of another node"):
        bench.book.umount("/other", lazy=False)
    bench.kernel.states["/other"] = "dead"
    bench.book.umount("/other", lazy=False)
    assert bench.kernel.points() == ["/m", "/m/data"]


def test_what_somebody_unmounted_is_noticed_and_forgotten(bench: Bench) -> None:
    bench.mount()
    bench.kernel.unmount("/m", lazy=True)
    bench.book.check()
    assert (bench.book.all(), bench.documents()) == ([], [])


def test_what_somebody_unmounted_a_moment_ago_can_be_mounted_at_once(bench: Bench) -> None:
    bench.mount()
    bench.kernel.unmount("/m", lazy=True)
    bench.mount(path="/data")
    assert bench.kernel.points() == ["/m"]
    assert len(bench.documents()) == 1


def test_a_nested_mount_that_somebody_unmounted_comes_back(bench: Bench) -> None:
    bench.mount()
    bench.kernel.unmount("/m/data", lazy=True)
    bench.book.check()
    assert bench.kernel.points() == ["/m", "/m/data"]


def test_a_mount_whose_session_ended_is_made_again(bench: Bench) -> None:
    bench.mount()
    root = next(iter(bench.core.served))
    bench.core.served[root]["alive"] = False
    bench.kernel.states["/m"] = "dead"
    bench.book.check()
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert all(each["alive"] for shown in bench.book.all() for each in shown["kernel_mounts"])


def test_a_killed_node_leaves_dead_mounts_that_the_next_one_replaces(bench: Bench) -> None:
    first = bench.mount()
    dead = [each.device for each in bench.kernel.mounts]
    bench.kernel.states["/m"] = "dead"
    bench.core.served.clear()
    book = bench.restarted()
    assert [(each["id"], each["state"]) for each in book.all()] == [(first["id"], "waiting")]
    assert book.in_use()
    book.check()
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert not set(dead) & {each.device for each in bench.kernel.mounts}
    assert [(each["id"], each["state"]) for each in book.all()] == [(first["id"], "mounted")]


def test_a_mount_that_fails_at_start_is_a_problem_tried_again_and_replaceable(bench: Bench, clock: Any) -> None:
    bench.mount()
    bench.book.close()
    bench.kernel.states["/m"] = "missing"
    book = bench.restarted()
    book.check()
    assert book.problems() == ["mount /m: there is no such directory; mkdir -p /m"]
    assert [each["state"] for each in book.all()] == ["failed"]
    del bench.kernel.states["/m"]
    book.check()
    assert bench.kernel.points() == [], "not at every check"
    clock(60)
    book.check()
    assert bench.kernel.points() == ["/m", "/m/data"]
    assert book.problems() == []


def test_a_failed_mount_can_be_mounted_by_hand_or_forgotten(bench: Bench) -> None:
    bench.mount()
    bench.book.close()
    bench.kernel.states["/m"] = "missing"
    bench.book = bench.restarted()
    bench.book.check()
    del bench.kernel.states["/m"]
    assert bench.mount(path="/data")["state"] == "mounted"
    assert [each["path"] for each in bench.documents()] == ["/data"]
    bench.book.close()
    bench.book = bench.restarted()
    bench.book.umount("/m", lazy=False)
    assert bench.documents() == []


def test_a_stopping_node_takes_mounts_away_and_keeps_their_documents(bench: Bench) -> None:
    bench.mount()
    bench.mount("/n", "/data")
    bench.kernel.used["/m/data/x"] = Holder(7, "python", "/m/data/x")
    bench.book.close()
    assert bench.kernel.points() == []
    assert len(bench.documents()) == 2
    with pytest.raises(UnavailableError, match="the node stops"):
        bench.mount("/o")
    bench.book.check()
    assert len(bench.documents()) == 2, "its own work is not taken for somebody's"


def test_a_local_directory_is_not_attached_where_the_node_would_read_itself(bench: Bench) -> None:
    bench.mount()
    bench.kernel.links["/link"] = "/m/data"
    for directory in ("/m", "/m/data", "/", "/link"):
        with (
            pytest.raises(InvalidInputError, match="the node would read itself"),
            bench.book.apart_from(directory, "/x"),
        ):
            pytest.fail("it was let in")
    with bench.book.apart_from("/elsewhere", "/x"):
        pass


def test_damaged_documents_are_told_and_kept(bench: Bench) -> None:
    bench.mount()
    (bench.directory / "broken.json").write_text("{")
    newer = next(bench.directory.glob("[0-9a-f]*.json")).read_text().replace('"format": 1', '"format": 2')
    (bench.directory / "newer.json").write_text(newer)
    book = MountBook(bench.directory, bench.core, bench.surroundings())
    problems = book.load()
    assert [("damaged" in each) or ("another version" in each) for each in problems] == [True, True]
    assert len(book.all()) == 1
    assert len(list(bench.directory.iterdir())) == 3


def test_a_snapshot_is_an_image_whose_data_goes_out_of_sight(bench: Bench) -> None:
    [kernel] = bench.mount("/s", snapshot="v1")["kernel_mounts"]
    [image] = bench.kernel.mounts
    assert (image.point, image.kind, kernel["target"]) == ("/s", "erofs", "/s")
    [hidden] = bench.kernel.out_of_sight
    assert bench.kernel.devices_of_images == [[f"{hidden.point}/0"]]
    assert not Path(hidden.point).exists()
    assert bench.core.served[kernel["id"]]["snapshot"]["shown"] == "devices"
    bench.attach("/data/x/y")
    bench.detach("/data")
    assert bench.kernel.points() == ["/s"]
    bench.book.umount("/s", lazy=False)
    assert (bench.kernel.points(), bench.core.served, bench.documents()) == ([], {}, [])


def test_where_no_image_can_be_mounted_a_snapshot_is_files_and_says_why(bench: Bench) -> None:
    bench.kernel.refuse["image"] = PermissionDeniedError("mount an image", "only root may")
    [kernel] = bench.mount("/s", snapshot="v1")["kernel_mounts"]
    assert (kernel["way"], kernel["snapshot"]["shown"]) == ("no-open", "files")
    assert kernel["why"].endswith("not as an image: only root may")
    assert bench.kernel.mounts[0].kind == "fuse.penstock"


def test_nothing_is_left_of_an_image_that_the_kernel_refuses(bench: Bench) -> None:
    bench.kernel.refuse["/s"] = UnavailableError("mount /s", "the kernel refuses the image")
    with pytest.raises(UnavailableError, match="refuses the image"):
        bench.mount("/s", snapshot="v1")
    assert (bench.kernel.points(), bench.core.served) == ([], {})
    assert list(bench.directory.iterdir()) == []


def test_the_image_of_a_killed_node_is_replaced_and_can_be_unmounted_without_its_snapshot(bench: Bench) -> None:
    bench.mount("/s", snapshot="v1")
    bench.core.served.clear()
    bench.book = bench.restarted()
    bench.book.check()
    assert bench.kernel.points() == ["/s"]
    [mounted] = bench.book.all()
    assert (mounted["state"], mounted["snapshot"], len(bench.core.served)) == ("mounted", "v1", 1)
    bench.missing.add("v1")
    bench.core.served.clear()
    bench.book = bench.restarted()
    bench.book.check()
    [mounted] = bench.book.all()
    assert (mounted["state"], "none of that name" in mounted["problem"]) == ("failed", True)
    bench.book.umount("/s", lazy=False)
    assert (bench.kernel.points(), bench.documents()) == ([], [])
