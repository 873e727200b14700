"""The page of the served models: one file that loads nothing from elsewhere."""

import base64
import hashlib
from functools import cache
from importlib import resources

import jinja2

from fairway.report.style import CSS, TOKENS_CSS
from fairway.serve.asked import MAX_TEXT_BYTES, MAX_TOKENS
from fairway.serve.models import Desk
from fairway.version import VERSION


def _file(name: str) -> str:
    return (resources.files("fairway.serve") / name).read_text(encoding="utf-8")


SCRIPT = _file("page.js")
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Only this script may run, whatever text the page contains, and no other server is contacted.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@cache
def _template() -> jinja2.Template:
    settings = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True}
    return jinja2.Environment(**settings, lstrip_blocks=True).from_string(_file("page.html"))  # type: ignore[arg-type]


def page(desk: Desk) -> str:
    """Return the page of a desk."""
    artifacts = [one for one in desk.served.values() if not one.stage]
    return _template().render(
        style=CSS + TOKENS_CSS + _file("page.css"),
        script=SCRIPT,
        version=VERSION,
        models=[(one.name, one.described) for one in desk.served.values()],
        records=[(one.name, one.described) for one in desk.records.values()],
        first=desk.first.name,
        beside=artifacts[1].name if len(artifacts) > 1 else "",
        most_tokens=MAX_TOKENS,
        most_bytes=MAX_TEXT_BYTES,
    )
