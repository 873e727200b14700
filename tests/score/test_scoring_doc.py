import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "scoring.md"


def test_example_prints_what_the_page_says() -> None:
    """The example predictor runs, and scores what the page claims."""
    code, output = re.search(
        r"```python\n(.*?)```.*?```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/scoring.md", "exec"), {})
    assert printed.getvalue() == output
