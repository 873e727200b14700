"""The last lines of a verb: a sample of the model's text, and the next commands."""

import textwrap
from pathlib import Path
from typing import Any

from fairway.base.terminal import command, line

# The width of the text in columns, and the number of characters of a sample.
_WIDTH, _SAMPLE = 80, 300
_INDENT = "  "


def sample_lines(results: dict[str, Any]) -> list[str]:
    """Return how the artifact continued a document that it had not seen, from the run's samples.

    They were drawn with fixed seeds when the run was scored, so nothing is computed here.
    """
    found = next((one for one in results["samples"] if one["text"].strip()), None)
    if found is None:
        return []
    prompt, text = (line(" ".join(found[part].split())) for part in ("prompt", "text"))
    shown = f"{prompt} | {text}"
    shown = shown if len(shown) <= _SAMPLE else f"{shown[:_SAMPLE]}..."
    head = "A sample: the beginning of a held-out document | and what the model wrote:"
    return [head, *textwrap.wrap(shown, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def next_lines(folder: Path) -> list[str]:
    """Return the commands that are useful after scoring a run, each with its purpose."""
    text = "README.md" if Path("README.md").is_file() else "YOUR-TEXT.txt"
    steps = [
        (("sample", folder, "--prompt", "The"), "let the model continue a text"),
        (("serve", folder), "see what each token costs"),
        (("score", folder, text), "score a text of your own"),
        (("compress", text, "--artifact", folder), "compress a file with it"),
        (("runs", folder.parent, "--html", "runs.html"), "compare it with other runs"),
    ]
    return ["What next:", *_aligned([(command(*words), told) for words, told in steps])]


def _aligned(steps: list[tuple[str, str]]) -> list[str]:
    """Return commands with their meanings beside them, or below them if a line is too long."""
    width = max(len(words) for words, _ in steps)
    longest = max(len(told) for _, told in steps)
    if len(_INDENT) + width + 2 + longest <= _WIDTH:
        return [f"{_INDENT}{words:{width}}  {told}" for words, told in steps]
    return [
        text for words, told in steps for text in (f"{_INDENT}{told}:", f"{2 * _INDENT}{words}")
    ]


def then(verb: str, folder: Path) -> str:
    """Return a line with the command of the next verb of a pipeline."""
    return f"next: {command(verb, folder)}"
