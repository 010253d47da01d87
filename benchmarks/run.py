"""``python -m benchmarks.run [WHAT...]``: measures bars, prints both sides, keeps the numbers.

Without WHAT it runs all; the first word of several names is all of them. Peers take part where the work is theirs, too,
if their programs are on this machine. Exit code 0 when every bar is met, 1 when one is missed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks import report, workloads
from benchmarks.lab import Lab
from benchmarks.measure import LeftOutError
from benchmarks.peers import NEVER_RUN, PEERS

if TYPE_CHECKING:
    from benchmarks.measure import Verdict


def main(arguments: list[str]) -> int:
    modules = _workloads()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure the bars.")
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of: {' '.join(modules)}")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is measured (default 5)")
    parser.add_argument("--scratch", type=Path, help="directory on a local disk for homes and files (default TMPDIR)")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    parser.add_argument("--no-peers", action="store_true", help="leave out other programs that mount buckets")
    options = parser.parse_args(arguments)
    chosen = [name for what in options.what or modules for name in _meant(what, modules)]
    unknown = [what for what in options.what if not _meant(what, modules)]
    if unknown:
        parser.error(f"no workload {unknown[0]!r}; there are: {' '.join(modules)}")
    peers = [peer for peer in PEERS if peer.found and not options.no_peers]
    known = companions(without=options.no_peers)
    for companion in known:
        print(f"{companion['name']}: {companion['version'] or companion['missing']}")
    load = os.getloadavg()[0]
    print(f"load before, of {os.cpu_count()} processors: {load:.2f}")
    # So that what is mounted is taken away, too, when this is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    verdicts: list[Verdict] = []
    failed, left_out = [], {}
    for name in chosen:
        print(f"== {name}: {modules[name].__doc__.splitlines()[0]}", flush=True)
        lab = Lab(options.scratch, options.repeats, peers)
        try:
            for verdict in modules[name].run(lab):
                verdicts.append(verdict)
                report.show(verdict)
        except LeftOutError as error:
            left_out[name] = str(error)
            print(f"left out: {error}", flush=True)
        except Exception:  # noqa: BLE001 - the other bars are worth measuring all the same
            failed.append(name)
            traceback.print_exc()
        finally:
            lab.close()
    if verdicts and not options.no_keep:
        circumstances = {"what": chosen, "load_before": load, "left_out": left_out, "peers": known}
        print(f"kept in {report.keep(verdicts, circumstances)}")
    missed = [verdict.bar for verdict in verdicts if not verdict.met]
    print(f"{len(verdicts) - len(missed)} met, {len(missed)} missed, {len(failed)} workloads failed")
    return 1 if missed or failed else 0


def companions(*, without: bool) -> list[dict[str, str]]:
    """Every peer that is known: what takes part, and why the others do not."""
    described = []
    for peer in PEERS:
        missing = "left out by --no-peers" if without else "" if peer.found else "not found on this machine"
        version = "" if missing else peer.version_text()
        described.append({"name": peer.name, "version": version, "options": peer.options, "missing": missing})
    untried = "not compared: nobody has run it in these comparisons yet"
    return described + [{"name": name, "version": "", "options": "", "missing": untried} for name in NEVER_RUN]


def _meant(what: str, modules: dict[str, ModuleType]) -> list[str]:
    """A workload by its name, or every one of a group: ``mount`` is ``mount-small``, ``mount-large``…"""
    return [what] if what in modules else [name for name in modules if name.startswith(f"{what}-")]


def _workloads() -> dict[str, ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(workloads.__path__))
    modules = [importlib.import_module(f"benchmarks.workloads.{name}") for name in names]
    return {module.WHAT: module for module in modules}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
