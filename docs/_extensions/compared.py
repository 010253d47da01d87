"""Penstock beside other programs that mount buckets, from `benchmarks/results`: values, who is better, raw figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import measured

NOTHING = (
    "No comparison is kept in this checkout yet: `make bench WHAT=mount` makes one with every peer that it finds, and "
    "keeps it.\n"
)


def page() -> str:
    """Everything about peers, under headings of the third level."""
    bars = measured.newest_bars(having="peers")
    if not bars:
        return NOTHING
    parts = [who(bars), values(bars), better(bars), raw(bars)]
    return "\n".join(line for part in parts for line in part) + "\n"


def who(bars: list[dict[str, Any]]) -> Iterator[str]:
    """Versions and options of those that took part, and why others did not."""
    known = {peer["name"]: peer for bar in bars for peer in bar["run"]["peers"]}
    yield from ("| Peer | Version | Options |", "|---|---|---|")
    for peer in known.values():
        if peer["missing"]:
            yield f"| {peer['name']} | – | {peer['missing']} |"
        else:
            yield f"| {peer['name']} | {cell(peer['version'])} | `{cell(peer['options'])}` |"
    yield ""
    yield from measured.runs(bars)
    loads = sorted({f"{bar['run']['load_before']:.2f}" for bar in bars})
    yield f"Load of the machine before: {', '.join(loads)}."
    yield ""


def values(bars: list[dict[str, Any]]) -> Iterator[str]:
    """One row a bar: the same figure for everybody."""
    names = peer_names(bars)
    yield f"| What | Bar | Penstock | {' | '.join(names)} |"
    yield f"|---|---|---|{'---|' * len(names)}"
    for bar in bars:
        others = {peer["side"]["name"]: peer for peer in bar["peers"]}
        cells = [value_text(bar, others[name]) if name in others else "–" for name in names]
        limit = f"{bar['relation']} {bar['limit']:g}{bar['unit']}"
        yield f"| {bar['bar']} | {limit} | {number(bar['value'])}{bar['unit']} | {' | '.join(cells)} |"
    yield ""


def better(bars: list[dict[str, Any]]) -> Iterator[str]:
    """Every figure where a peer is ahead of Penstock."""
    yield from ("### Where a peer is better", "")
    found = [
        f"- {bar['bar']}: {peer['side']['name']} {value_text(bar, peer)}, Penstock {number(bar['value'])}{bar['unit']}"
        for bar in bars
        for peer in bar["peers"]
        if is_better(bar, peer)
    ]
    yield from found or ["In none of these figures."]
    yield ""


def raw(bars: list[dict[str, Any]]) -> Iterator[str]:
    """Every repeat of every side with its processor time, and how it was done."""
    yield from ("### Raw results", "")
    yield "Seconds of each repeat; processor seconds are medians: of the reader, and of what serves it."
    yield ""
    for bar in bars:
        yield from (f"**{bar['bar']}**", "", "| Side | Seconds | Processor | Counted | How |", "|---|---|---|---|---|")
        for side in [*bar["sides"], *(peer["side"] for peer in bar["peers"])]:
            seconds = f"gave up: {side['failure']}" if side["failure"] else measured.each(side["seconds"])
            processor = ", ".join(f"{name} {measured.median(times):.2f}" for name, times in side["cpu_s"].items())
            counted = ", ".join(f"{figure:.4g} {name}" for name, figure in side["figures"].items())
            yield f"| {side['name']} | {cell(seconds)} | {processor} | {counted} | {cell(side['how'])} |"
        yield ""


def is_better(bar: dict[str, Any], peer: dict[str, Any]) -> bool:
    """Whether a peer's figure is ahead, whichever way the bar looks."""
    if peer["value"] is None:
        return False
    higher = bar["relation"] == "≥"
    return bool(peer["value"] > bar["value"] if higher else peer["value"] < bar["value"])


def value_text(bar: dict[str, Any], peer: dict[str, Any]) -> str:
    """A peer's figure, or why there is none; what is better than Penstock stands out."""
    if peer["value"] is None:
        return f"gave up: {cell(peer['side']['failure'])}"
    text = f"{number(peer['value'])}{bar['unit']}"
    return f"**{text}**" if is_better(bar, peer) else text


def peer_names(bars: list[dict[str, Any]]) -> list[str]:
    """Everybody who has a figure or a reason, each once."""
    return sorted({peer["side"]["name"] for bar in bars for peer in bar["peers"]})


def number(value: float) -> str:
    """Three digits that count, without an exponent where people would write none."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cell(text: str) -> str:
    """Text that fits one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
