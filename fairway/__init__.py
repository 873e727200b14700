"""Fairway trains, packs and proves small language models.

Reading order, which is also the order in which modules may import one another:
version, base, config, recipes | data | model, machine | train | quantise | pack | score | api,
tuning | prove | audit | report | bundle | export | planning | pipeline | submission | studies |
costing, harness, serve, cli, __main__.
Importing this loads nothing heavy.
"""

import os
import sys

# `python -m fairway` adds the current folder to the module path, and that folder may contain a
# foreign `json.py`. At this point only Fairway itself has been imported.
_started = sys.orig_argv[-len(sys.argv)].partition(".")[0] if sys.argv[:1] == ["-m"] else ""
_ours = _started == "fairway" or (_started.startswith("-") and _started.endswith("mfairway"))
if _ours and not sys.flags.safe_path:
    del sys.path[0]

from fairway.version import VERSION as __version__  # noqa: E402

# Read once, when torch starts its thread pool. Threads that wait actively on two shared cores can
# make every operation ten times slower than one thread. Passive waiting has no measurable cost on a
# free machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fairway.api import LanguageModel, load
    from fairway.pipeline.interactive import results, run

__all__ = ["LanguageModel", "__version__", "load", "results", "run"]


def __getattr__(name: str) -> object:
    """Import the Python API on first use, so that `import fairway` does not cost a torch import."""
    if name in ("load", "LanguageModel"):
        from fairway import api

        return getattr(api, name)
    if name in ("run", "results"):
        from fairway.pipeline import interactive

        return getattr(interactive, name)
    raise AttributeError(f"module 'fairway' has no attribute {name!r}")
