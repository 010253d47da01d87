"""What ``penstock doctor`` looks at: one module a subject, each returning findings.

Looks; leaves nothing behind but the home's directories.

A check that itself fails is a finding too; nothing here raises for what it finds.
"""

from penstock.cli.checks.finding import Finding, Level, worst

__all__ = ["Finding", "Level", "worst"]
