"""Triton's interpreter without its repetitions: the same results in less time.

At every launch of a kernel it looks through `triton.language` for what it replaces, for every
number it makes a table of all types, and for every block it checks and writes down its type. What
it found is kept here. It also computes whether whole numbers overflow, and without its debugging
does nothing with the answer.
"""

from typing import Any


def quicken() -> None:
    """Let the interpreter of this process keep what it finds; do nothing without Triton."""
    try:
        from triton.runtime import interpreter

        _keep_replacements(interpreter)
        _keep_types(interpreter)
        _keep_blocks(interpreter.tl.block_type)
        options = interpreter.interpreter_builder.options
        if not options.debug:
            object.__setattr__(options, "sanitize_overflow", False)
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


def _keep_blocks(block_type: Any) -> None:
    start, known = block_type.__init__, {}

    def starting(self: Any, element_ty: Any, shape: Any) -> None:
        if element_ty.is_ptr():
            start(self, element_ty, shape)
            return
        # A shape has constants of the language in it, or plain numbers.
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in known:
            start(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    block_type.__init__ = starting
