"""The bytes of code that count with a run's artifact: measured on its own bundle, or declared."""

from fairway.base.errors import UserError
from fairway.base.terminal import command
from fairway.bundle.build import bundle_bytes, bundle_key
from fairway.config.settings import Config, declares_code
from fairway.config.written import fixed_digest
from fairway.pipeline.folder import RunFolder, key_of
from fairway.quantise.estimate import counted
from fairway.train.steps import Say

# The key of the measured size in the memory of a run.
CODE = "code"


def known_code(config: Config, folder: RunFolder) -> int:
    """Return the bytes of code that count with a run's artifact.

    Raises UserError if they are not measured, as in a run of an earlier version.
    """
    found = folder.proposed.get(CODE) or folder.memory.get(CODE)
    if found is None and not declares_code(config.pack):
        raise UserError(
            f"the bytes of code of {folder.path} are not measured yet; run "
            f"`{command('pack', folder.path)}`, then `{command('score', folder.path)}`"
        )
    return counted(config.pack, found["bytes"] if found else 0)


def measure_code(config: Config, folder: RunFolder, say: Say, packing: bool = False) -> int:
    """Return the bytes of code of a run with these settings; its stages write them into its memory.

    Sources edited since the last measurement count when an artifact is packed, but not when it is
    scored: the number belongs to the code at the time of packing.
    """
    if declares_code(config.pack):
        return counted(config.pack, 0)
    settings, sources = fixed_digest(config), key_of({"bundle": bundle_key(config)})
    for found in (folder.proposed.get(CODE), folder.memory.get(CODE)):
        if found is None or found["settings"] != settings:
            continue
        if found["sources"] == sources or not packing:
            return int(found["bytes"])
    size = bundle_bytes(config)
    say(f"code: the bundle of these settings has {size:,} bytes")
    folder.propose(code={"bytes": size, "settings": settings, "sources": sources})
    return size
