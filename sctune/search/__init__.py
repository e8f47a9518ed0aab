"""Searching: `run_search(options)` and `resume(name)` do what the command line does."""

# ray reads its switches when it is imported, so they are set before any module of this package can import it
from sctune.search.cluster.connection import prepare_environment

prepare_environment()

from sctune.search.plan.options import SearchOptions  # noqa: E402
from sctune.search.run.driver import resume, run_search  # noqa: E402

__all__ = ["SearchOptions", "resume", "run_search"]
