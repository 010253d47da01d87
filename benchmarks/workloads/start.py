"""Starting the command line and importing the package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.baselines import processes
from benchmarks.measure import Side, Verdict

if TYPE_CHECKING:
    from benchmarks.lab import Lab

WHAT = "start"


def run(lab: Lab) -> list[Verdict]:
    sides = {
        "help": Side("penstock --help", "the console script"),
        "typer": Side("import typer", processes.HOW_TYPER),
        "import": Side("import penstock", "python -c 'import penstock'"),
        "bare": Side("bare Python", processes.HOW_BARE),
    }
    for _ in range(lab.repeats * 3):
        sides["help"].seconds.append(processes.run([processes.PENSTOCK, "--help"]))
        sides["typer"].seconds.append(processes.typer())
        sides["import"].seconds.append(processes.run([sys.executable, "-c", "import penstock"]))
        sides["bare"].seconds.append(processes.bare())
    ratio = sides["help"].median_s / sides["typer"].median_s
    extra = (sides["import"].median_s - sides["bare"].median_s) * 1000
    return [
        Verdict("penstock --help ÷ python -c 'import typer'", ratio, "≤", 1.5, "", [sides["help"], sides["typer"]]),
        Verdict("import penstock beyond bare Python", extra, "≤", 30, " ms", [sides["import"], sides["bare"]]),
    ]
