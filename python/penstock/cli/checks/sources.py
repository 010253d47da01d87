"""Each attached source: does it answer, as whom, how fast, with what clock."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from penstock.cli.checks.finding import Finding, Level
from penstock.errors import (
    PenstockError,
    PermissionDeniedError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
)
from penstock.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.client import Client

    Probe = Callable[[str], dict[str, Any]]

__all__ = ["check"]

NOTABLE_SKEW_S = 60.0
REFUSED_SKEW_S = 900.0
"""S3 refuses signatures that are 15 minutes off."""

SLOW_LATENCY_MS = 500.0
SAMPLE_BYTES = 16 << 20
SAMPLE_MIN_BYTES = 1 << 20
ENTRIES_LOOKED_AT = 2000


def check(client: Client, attachments: list[dict[str, Any]], probe: Probe) -> Iterator[Finding]:
    """Everything about every attachment.

    Args:
        client: reads through the node.
        attachments: as the control API shows them.
        probe: asks the source at a path, and returns the attachment with what the node noticed.
    """
    if not attachments:
        yield Finding("sources", Level.OK, "nothing is attached", "penstock attach s3://bucket/prefix /data")
    for attachment in attachments:
        subject = f"source {attachment['path']}"
        try:
            known = probe(attachment["path"])
        except PenstockError as error:
            yield Finding(subject, Level.FAILURE, str(error), repair(attachment, error))
            continue
        yield latency(subject, known)
        yield identity(known)
        if known["clock_skew_s"] is not None:
            yield clock(subject, known["clock_skew_s"])
        if known["weak"]:
            text = "tells versions apart by size and time only: a change within its time step may go unseen"
            yield Finding(subject, Level.WARNING, text, "penstock attachments --json")
        others = [each["path"] for each in attachments if each is not attachment]
        yield throughput(client, attachment["path"], others)


def repair(attachment: dict[str, Any], error: PenstockError) -> str:
    """What helps with a source that did not answer as it should."""
    if isinstance(error, PermissionDeniedError):
        return "penstock down && penstock up   # once credentials or rights are repaired: an attachment has none itself"
    if isinstance(error, (UnavailableError, TimedOutError, RateLimitedError)):
        return "penstock doctor   # once it answers again; nothing else is needed then"
    return f"penstock detach {attachment['path']}, then attach anew"


def latency(subject: str, attachment: dict[str, Any]) -> Finding:
    """How long the source takes for one small answer."""
    text = f"{attachment['url']} answers in {attachment['latency_ms']:.0f} ms"
    if attachment["latency_ms"] > SLOW_LATENCY_MS:
        return Finding(subject, Level.WARNING, text, "use an endpoint or region nearer to you")
    return Finding(subject, Level.OK, text)


def identity(attachment: dict[str, Any]) -> Finding:
    """Who we are to the source; never a secret."""
    subject = f"source {attachment['path']}"
    reference = attachment["source"].get("credentials")
    if reference is None:
        return Finding(subject, Level.OK, "needs no credentials")
    who = attachment["identity"] or "not told yet"
    return Finding(subject, Level.OK, f"credentials {reference}: {who}")


def clock(subject: str, skew_s: float) -> Finding:
    """How far the clocks are apart; positive where this machine's is ahead."""
    text = (
        f"this machine's clock is {format_duration(abs(skew_s))} {'ahead of' if skew_s > 0 else 'behind'} the source's"
    )
    if abs(skew_s) >= REFUSED_SKEW_S:
        return Finding(subject, Level.FAILURE, f"{text}; signatures are refused", "timedatectl set-ntp true")
    if abs(skew_s) >= NOTABLE_SKEW_S:
        return Finding(subject, Level.WARNING, text, "timedatectl set-ntp true")
    return Finding(subject, Level.OK, "its clock and this machine's agree")


def throughput(client: Client, root: str, others: Sequence[str] = ()) -> Finding:
    """Reads some of a file that is not cached yet; says so when everything looked at is.

    Args:
        client: reads through the node.
        root: where the source is attached.
        others: where others are; what lies below those is theirs.
    """
    subject = f"source {root}"
    try:
        path, size = _sample(client, root, others)
        if path is None:
            return Finding(subject, Level.OK, "throughput not measured: found no file above 1 MiB that is not cached")
        buffer = bytearray(min(size, SAMPLE_BYTES))
        begun = time.perf_counter()
        with client.open(path) as stream:
            taken = stream.readinto(buffer)
        elapsed = time.perf_counter() - begun
    except PenstockError as error:
        return Finding(subject, Level.FAILURE, str(error), "penstock status")
    text = f"{format_rate(taken / elapsed)} over {format_size(taken)} of {path}"
    return Finding(subject, Level.OK, text)


def _sample(client: Client, root: str, others: Sequence[str]) -> tuple[str | None, int]:
    below = tuple(f"{other}/" for other in others if len(other) > len(root))
    for entry in itertools.islice(client.walk(root), ENTRIES_LOOKED_AT):
        if entry.is_directory or entry.size < SAMPLE_MIN_BYTES:
            continue
        path = f"{root.rstrip('/')}/{entry.name}"
        if not path.startswith(below) and client.why(path)["cached_bytes"] == 0:
            return path, entry.size
    return None, 0
