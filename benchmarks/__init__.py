"""The bars: what Penstock does beside what the machine does without it, in one run.

``baselines/`` has one file per thing Penstock is compared with, ``workloads/`` one per bar. ``python -m
benchmarks.run [WHAT...]`` runs them, prints both sides and keeps the numbers in ``results/``.
"""
