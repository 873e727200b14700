import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def test_worked_example_prints_what_the_page_says() -> None:
    """If this fails, the format or a config field changed: paste the new output into the page."""
    code, output = re.search(
        r"```python\n(.*?)```.*?```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/format.md", "exec"), {})
    assert printed.getvalue() == output
