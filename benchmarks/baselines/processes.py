"""Starting Python, alone and with what a command line needs anyway.

Library: the interpreter that runs this; ``import typer`` is what every command pays. Bytecode is cached.
"""

import subprocess
import sys
import time
from pathlib import Path

HOW_TYPER = "python -c 'import typer'"
HOW_BARE = "python -c pass"
PENSTOCK = str(Path(sys.executable).with_name("penstock"))
"""The console script beside the interpreter that runs this."""


def run(arguments: list[str]) -> float:
    """Seconds until the interpreter has ended."""
    start = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def typer() -> float:
    return run([sys.executable, "-c", "import typer"])


def bare() -> float:
    return run([sys.executable, "-c", "pass"])
