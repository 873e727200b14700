"""Hooks of MkDocs: pages that are made from files outside docs/, and the list of all settings."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from fairway.config.settings import Config, settings

ROOT = Path(__file__).parent.parent
# Pages of the site, and the files that they are made from.
OUTSIDE = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from other files."""
    made = {page: (ROOT / source).read_text() for page, source in OUTSIDE.items()}
    made["settings.md"] = settings_page()
    for page, text in made.items():
        files.append(File.generated(config, page, content=relinked(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page with links that hold inside the site."""
    return relinked(markdown)


def relinked(text: str) -> str:
    """Return a text whose links to files of the repository lead to pages of the site."""
    for page, source in OUTSIDE.items():
        text = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({page}", text)
    return re.sub(r"\]\((\.\./)?docs/", "](", text)


def settings_page() -> str:
    """Return a page with every setting, its default and its help."""
    sections: dict[str, list[str]] = {}
    for name, item, value in settings(Config()):
        section = name.rpartition(".")[0] or "run"
        help_text = item.metadata["help"].replace("|", "\\|")
        sections.setdefault(section, []).append(f"| `{name}` | `{value!r}` | {help_text} |")
    tables = [
        "\n".join(
            [f"## {section}\n", "| setting | default | what it does |", "|---|---|---|", *rows]
        )
        for section, rows in sections.items()
    ]
    intro = (
        "# Settings\n\nChange a setting with `--set SECTION.FIELD=VALUE`. A recipe may have other "
        "values than these defaults; `fairway run RECIPE --dry-run` prints them."
    )
    return "\n\n".join([intro, *tables]) + "\n"
