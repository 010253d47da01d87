"""Kernel mounts of the tree: what may be asked for, where it may go, and which kernel mounts it is made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from penstock.errors import AlreadyExistsError, InvalidInputError, NotDirectoryError, NotFoundError, UnavailableError
from penstock.policies.attachments import check_tree_path
from penstock.policies.snapshots import check_name
from penstock.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "FILE_SYSTEM",
    "IMAGE",
    "SOURCE",
    "KernelMount",
    "MountOptions",
    "Place",
    "Sample",
    "TargetFacts",
    "Way",
    "check_local_path",
    "check_target",
    "choose_way",
    "depends_on_files",
    "lies_in",
    "modes",
    "mount_at",
    "mounts_below",
    "parse_mountinfo",
    "plan",
    "request",
]

FILE_SYSTEM = "fuse.penstock"
"""Type of our mounts in the kernel's table."""

SOURCE = "penstock"
"""What the kernel's table says is mounted."""

IMAGE = "erofs"
"""Type of an image that the kernel mounts by itself; its source is the file of the image."""

READ_MODES = (0o444, 0o555)
"""Rights of files and of directories where nothing is written, unless others are asked for."""

WRITE_MODES = (0o644, 0o755)
"""The same where they are written."""

SMALL_BYTES = 1024 * 1024
"""Files up to this size on average are small: opening them is most of the work."""

NO_OPEN_FRESHNESS_S = 1.0
"""Facts have to be believed for so long that a name can stand for a file without being opened."""

_OWNER = re.compile(r"(\d{1,10}):(\d{1,10})", re.ASCII)
_MODE = re.compile(r"[0-7]{1,4}", re.ASCII)
_LARGEST_ID = (1 << 32) - 2
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountOptions(TypedDict, total=False):
    """What may be said of a mount besides where it goes."""

    owner: str | None
    """``UID:GID`` that files and directories show; ``None`` takes the node's user."""
    file_mode: str | None
    """Rights that files show, in octal; ``0444`` by default, ``0644`` where they are written."""
    directory_mode: str | None
    """Rights that directories show, in octal; ``0555`` by default, ``0755`` where they are written."""
    umask: str | None
    """Rights taken from both, in octal."""
    allow_other: bool
    """Let every user in, as far as owner and modes do; else only the node's user gets in."""


class Place(NamedTuple):
    """One kernel mount: a path of the tree and the directory where the kernel shows it."""

    path: str
    target: str


class Way(NamedTuple):
    """How the kernel gets at the bytes of one kernel mount."""

    name: str
    """``open`` or ``no-open``; see :func:`choose_way`."""
    why: str
    writable: bool = False
    """Whether files are written there."""


class Sample(NamedTuple):
    """Some files below a path."""

    files: int
    size_bytes: int


class KernelMount(NamedTuple):
    """One line of the kernel's table of mounts."""

    device: str
    """``major:minor`` of the file system."""
    point: str
    """Directory that it is mounted on."""
    kind: str
    """Type of the file system."""
    source: str
    """What is mounted."""


class TargetFacts(NamedTuple):
    """What was seen at the directory that a mount is asked for."""

    path: str
    """Without links."""
    state: str
    """``directory``, ``missing``, ``file``, ``dead`` (a mount without its server), else why it cannot be looked at."""
    empty: bool


def request(
    target: str, path: str = "/", snapshot: str | None = None, **options: Unpack[MountOptions]
) -> dict[str, Any]:
    """The body of a mount request, checked as far as it can be without looking.

    Args:
        target: absolute path of the directory that will show the tree.
        path: path of the tree that is shown there.
        snapshot: name of a snapshot that is shown instead; ``path`` means nothing then.
        options: see :class:`MountOptions`.

    Raises:
        InvalidInputError: one of them cannot be right; the message says which and what to write.
    """
    uid, gid = _owner(options.get("owner"))
    return {
        "target": check_local_path(target),
        "path": check_tree_path(path),
        "snapshot": snapshot if snapshot is None else check_name(snapshot),
        "uid": uid,
        "gid": gid,
        "file_mode": _mode("--file-mode", options.get("file_mode")),
        "directory_mode": _mode("--directory-mode", options.get("directory_mode")),
        "umask": _mode("--umask", options.get("umask")) or 0,
        "allow_other": options.get("allow_other", False),
    }


def modes(document: Mapping[str, Any], *, writable: bool) -> tuple[int, int]:
    """Rights of files and of directories in one kernel mount.

    Args:
        document: of the mount: what was asked for.
        writable: whether files are written there.
    """
    files, directories = WRITE_MODES if writable else READ_MODES
    asked = [document["file_mode"], document["directory_mode"]]
    shown = [default if mode is None else mode for mode, default in zip(asked, (files, directories), strict=True)]
    return shown[0] & ~document["umask"], shown[1] & ~document["umask"]


def plan(target: str, path: str, attached: Iterable[str]) -> list[Place]:
    """The kernel mounts that one mount is made of: its root, and nested in it one for each attachment below.

    An attachment at exactly ``path``, or above it, is shown by the root itself.

    Args:
        target: directory of the root, without links.
        path: path of the tree that the root shows.
        attached: paths of all attachments.
    Returns:
        In the order in which they have to be mounted: the root first, what is nested after what it lies in.
    """
    below = sorted(each for each in set(attached) if each != path and lies_in(each, path))
    return [Place(path, target)] + [Place(each, target + each[len(path.rstrip("/")) :]) for each in below]


def choose_way(document: Mapping[str, Any], sample: Sample | None) -> Way:
    """How the kernel gets at the bytes of one kernel mount, and why.

    ``no-open``: it opens nothing and keeps the pages of what it has read, for as long as a name is believed to mean the
    same version; warm files cost no request. ``open``: it opens every file, and reads by itself what is cached. What is
    written is always opened: who wrote a file has to be told how its close went.

    Args:
        document: of the attachment; its ``way`` is one of :data:`penstock.policies.attachments.WAYS`.
        sample: some of its files; ``None`` where they could not be looked at.
    """
    if document["write"] is not None:
        return Way("open", "its files are written", writable=True)
    if document["way"] != "auto":
        return Way(document["way"], "the attachment says so")
    if not depends_on_files(document):
        return Way("open", "facts are believed for less than a second")
    if sample is None or not sample.files:
        return Way("open", "nothing is known of its files yet")
    mean = sample.size_bytes / sample.files
    if mean <= SMALL_BYTES:
        return Way("no-open", f"its files are small, {format_size(mean)} on average")
    return Way("open", f"its files are large, {format_size(mean)} on average")


def depends_on_files(document: Mapping[str, Any]) -> bool:
    """Whether :func:`choose_way` needs to know some files of an attachment."""
    if document["way"] != "auto" or document["write"] is not None:
        return False
    freshness = document["freshness"]
    return isinstance(freshness, str) or freshness["seconds"] >= NO_OPEN_FRESHNESS_S


def lies_in(path: str, ancestor: str) -> bool:
    """Whether a path is another one or below it; for paths of the tree and local ones alike."""
    return path == ancestor or path.startswith(ancestor.rstrip("/") + "/")


def parse_mountinfo(text: str) -> list[KernelMount]:
    """The kernel's table of mounts, ``/proc/self/mountinfo``, in its order: what lies on top comes later."""
    mounts = []
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        separator = fields.index("-", 6)
        kind, source = fields[separator + 1], fields[separator + 2]
        mounts.append(KernelMount(fields[2], _plain(fields[4]), kind, _plain(source)))
    return mounts


def mount_at(mounts: Sequence[KernelMount], point: str) -> KernelMount | None:
    """What is mounted at a directory; the topmost where several are."""
    return next((each for each in reversed(mounts) if each.point == point), None)


def mounts_below(mounts: Sequence[KernelMount], point: str) -> list[KernelMount]:
    """What is mounted strictly below a directory."""
    return [each for each in mounts if each.point != point and lies_in(each.point, point)]


def check_local_path(target: str) -> str:
    """An absolute path of a directory that could be mounted on, as it was given.

    Raises:
        InvalidInputError: it is relative, the machine's root, or has a NUL or text that is not UTF-8 in it.
    """
    action = f"mount {target!r}"
    if not target.startswith("/"):
        raise InvalidInputError(action, "the directory's path is not absolute", "write it from / on")
    if "\0" in target:
        raise InvalidInputError(action, "the directory's path contains a NUL byte")
    try:
        target.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(action, "the directory's path is not UTF-8") from None
    if target.strip("/") == "":
        raise InvalidInputError(action, "that is the machine's root directory", "name an empty directory")
    return target


def check_target(facts: TargetFacts, mounts: Sequence[KernelMount], own: Mapping[str, str], *, is_ours: bool) -> None:
    """Refuses a directory that cannot be mounted on, or must not.

    Args:
        facts: what is there; a dead mount of ours has been taken away before.
        mounts: the kernel's table.
        own: directories that the node reads or writes by itself, without links, each with what it is.
        is_ours: this node has mounted there.

    Raises:
        NotFoundError: there is nothing.
        NotDirectoryError: it is no directory.
        AlreadyExistsError: something is mounted there, or in it.
        InvalidInputError: the node would read itself through it.
        UnavailableError: it cannot be looked at.
    """
    action = f"mount {facts.path}"
    there = mount_at(mounts, facts.path)
    if is_ours:
        raise AlreadyExistsError(action, "the tree is mounted there already", f"`penstock umount {facts.path}` first")
    if there is not None:
        raise AlreadyExistsError(action, *_occupant(there))
    if facts.state == "missing":
        raise NotFoundError(action, "there is no such directory", f"mkdir -p {facts.path}")
    if facts.state == "file":
        raise NotDirectoryError(action, "it is not a directory", "name an empty directory")
    if facts.state != "directory":
        raise UnavailableError(action, f"it cannot be looked at: {facts.state}", "choose another directory")
    for directory, what in own.items():
        if lies_in(facts.path, directory):
            raise InvalidInputError(action, f"it lies in {directory}, {what}", "choose a directory outside of it")
        if lies_in(directory, facts.path):
            raise InvalidInputError(action, f"{directory}, {what}, lies in it", "choose another directory")
    if not facts.empty:
        raise AlreadyExistsError(action, "the directory is not empty", "mount on an empty one")


def _occupant(there: KernelMount) -> tuple[str, str]:
    if there.kind == FILE_SYSTEM:
        return "another node's tree is mounted there", f"choose another directory, or `umount {there.point}`"
    return f"{there.kind} of {there.source} is mounted there", "choose another directory"


def _owner(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    found = _OWNER.fullmatch(text)
    if found is None or max(int(found[1]), int(found[2])) > _LARGEST_ID:
        raise InvalidInputError(f"read --owner {text!r}", "it is not UID:GID", "write two numbers, as in 1000:1000")
    return int(found[1]), int(found[2])


def _mode(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    mode = int(text, 8) if _MODE.fullmatch(text) else None
    if mode is None or mode > 0o777:
        raise InvalidInputError(f"read {flag} {text!r}", "it is not a mode", "write it in octal, 0000 to 0777")
    return mode


def _plain(field: str) -> str:
    """A field of the table without its escapes: blank, tab, newline and backslash are in octal."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)
