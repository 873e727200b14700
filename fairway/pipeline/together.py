"""Messages between the processes of a run; only the first process reads the run's folder."""

import json
from collections.abc import Mapping
from typing import Any

from fairway.base.errors import UserError
from fairway.machine.peers import peers
from fairway.machine.ranks import Ranks
from fairway.pipeline.folder import RunFolder, key_of


def told(value: Any) -> Any:
    """Return the first process's value on every process; it must be ready for JSON."""
    return json.loads(peers().tell(json.dumps(value)))


def share_memory(folder: RunFolder, ranks: Ranks) -> None:
    """Send the first process's present memory of a run to every process."""
    if ranks.world > 1:
        folder.memory, folder.proposed = told([folder.memory, folder.proposed])


def is_due(folder: RunFolder, ranks: Ranks, stage: str, reads: Mapping[str, Any]) -> bool:
    """Return whether the first process decides that a stage must run.

    Raises UserError on a process whose files or settings differ from those of the first one.
    """
    key, done = key_of(reads), ranks.first and folder.is_done(stage, reads)
    expected, done = told([key, done])
    if key != expected:
        raise UserError(
            f"process {ranks.rank} has other files or settings for '{stage}' than process 0; all "
            "hosts need the same run folder, data, settings and version of Fairway"
        )
    return not done
