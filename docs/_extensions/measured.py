"""The table of what was measured, from `benchmarks/results`.

As a program it prints the table; with ``--write`` it puts it into README.md instead.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
NOTHING = "No results are kept in this checkout yet: `make bench` measures and keeps them.\n"
SECTION = re.compile(r"(?<=<!-- measured: begin -->\n).*?(?=<!-- measured: end -->)", re.DOTALL)


def newest_bars(having: str = "bar") -> list[dict[str, Any]]:
    """Every bar as it was measured last, each with the run it comes from.

    Args:
        having: only measurements that have this; ``peers`` are not on every machine.
    """
    bars: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text())
        run = {name: document.get(name) for name in ("when", "commit", "machine", "load_before", "peers")}
        for bar in document["bars"]:
            if bar.get(having):
                bars[bar["bar"]] = bar | {"run": run}
    return sorted(bars.values(), key=lambda bar: bar["bar"])


def table() -> str:
    """One row a bar, met or not, with both sides."""
    bars = newest_bars()
    if not bars:
        return NOTHING
    lines = ["| What | Measured | Bar | | Both sides, medians |", "|---|---|---|---|---|"]
    for bar in bars:
        value, limit = f"{bar['value']:.3g}{bar['unit']}", f"{bar['relation']} {bar['limit']:g}{bar['unit']}"
        met = "met" if bar["met"] else "**missed**"
        lines.append(f"| {bar['bar']} | {value} | {limit} | {met} | {'; '.join(map(side_text, bar['sides']))} |")
    lines += ["", *runs(bars), ""]
    lines += [
        "Both sides of a row come from one run, in turns. Everything runs on that one machine, the store too.",
        "",
    ]
    return "\n".join(lines)


def runs(bars: list[dict[str, Any]]) -> list[str]:
    """Where and with which commits bars were measured, a line each."""
    # A plus: something was changed that the commit does not have.
    found = {
        (commit[:10] + "+" * commit.endswith("+"), describe(bar["run"]["machine"]))
        for bar in bars
        for commit in [bar["run"]["commit"]]
    }
    return [f"Measured on {machine}, commit `{commit}`." for commit, machine in sorted(found)]


def median(seconds: list[float]) -> float:
    """Of the repeats."""
    return statistics.median(seconds)


def each(seconds: list[float]) -> str:
    """Every repeat."""
    return " ".join(f"{one:.4g}" for one in seconds)


def side_text(side: dict[str, Any]) -> str:
    """One side: its name, median time and whatever else it counted."""
    parts = [f"{median(side['seconds']):.3g} s"] if side["seconds"] else []
    parts += [f"{value:.4g} {name}" for name, value in side["figures"].items()]
    return f"{side['name']} {', '.join(parts)}".replace("|", "\\|")


def describe(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    memory_gib = machine["memory_bytes"] / (1 << 30)
    return f"{machine['cores']} cores of {machine['processor']}, {memory_gib:.0f} GiB, Linux {machine['kernel']}"


def write(readme: Path) -> None:
    """Replaces the section of a README."""
    text, count = SECTION.subn(lambda _: table(), readme.read_text())
    assert count == 1, f"{readme} has no section for what was measured"
    readme.write_text(text)


def main(arguments: list[str]) -> None:
    """Prints the table, or writes it where everybody reads it: only who is told to changes a file of the checkout."""
    if arguments == ["--write"]:
        write(ROOT / "README.md")
    else:
        sys.stdout.write(table())


if __name__ == "__main__":
    main(sys.argv[1:])
