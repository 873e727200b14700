"""Triton's interpreter without its repetitions: the same results in less time.

At every launch of a kernel it looks through `triton.language` for what it replaces, and for every
number it makes a table of all types. What it found is kept here.
"""

from typing import Any


def quicken() -> None:
    """Let the interpreter of this process keep what it finds; do nothing without Triton."""
    try:
        from triton.runtime import interpreter

        _keep_replacements(interpreter)
        _keep_types(interpreter)
    except (ImportError, AttributeError):
        # Another version has other parts, and takes its time.
        return


def _keep_replacements(interpreter: Any) -> None:
    """Replace what a kernel calls once, and leave it so: nothing else calls it without a GPU."""
    replace, done, kept = interpreter._patch_builtin, set(), interpreter._LangPatchScope()

    def once(place: Any, builder: Any, scope: Any) -> None:
        if place not in done:
            done.add(place)
            replace(place, builder, kept)

    interpreter._patch_builtin = once


def _keep_types(interpreter: Any) -> None:
    find, known = interpreter._get_np_dtype, {}

    def keeping(kind: Any) -> Any:
        scalar = kind.scalar
        if scalar.is_ptr():
            return find(kind)
        if scalar.name not in known:
            known[scalar.name] = find(kind)
        return known[scalar.name]

    interpreter._get_np_dtype = keeping
