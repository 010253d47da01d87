"""One file per bar. Each has ``WHAT`` (its name on the command line) and ``run(lab) -> list[Verdict]``."""
