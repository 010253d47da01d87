"""Long work with real progress: preload, evict, verify. Owns their state on disk, their queue and their threads.

A job is a document (:mod:`~penstock.jobs.document`) kept by a store (:mod:`~penstock.jobs.store`), moved by a run
(:mod:`~penstock.jobs.run`) and scheduled by the runner (:mod:`~penstock.jobs.runner`). A job killed with its node
goes on from its last checkpoint. Never holds more than some pages of a walk, however large the tree is; never
touches bytes of content: the core does that, with background priority.
"""

from penstock.jobs.document import Job, JobKind, JobState
from penstock.jobs.runner import JobLimits, JobRunner
from penstock.jobs.store import JobStore
from penstock.jobs.tree import Tree

__all__ = ["Job", "JobKind", "JobLimits", "JobRunner", "JobState", "JobStore", "Tree"]
