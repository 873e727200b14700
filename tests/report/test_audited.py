"""The page of audited records: one table that sorts without anything from elsewhere."""

import base64
import hashlib
import re
from pathlib import Path

from fairway.audit.findings import Finding
from fairway.audit.records.audit import RecordAudit
from fairway.report.audited import is_page, records_page


def audit(name: str, *findings: Finding, **facts: object) -> RecordAudit:
    return RecordAudit(Path(name), findings, dict(facts))


BAD = Finding("invalid", "subset", "why", "<b>.log", 3, "<script>alert(1)</script>\x1b")
ASKED = Finding("warning", "sd", "why")


def test_records_stand_in_one_table_the_gravest_first() -> None:
    page = records_page([audit("clean"), audit("asked", ASKED), audit("bad", BAD)])
    names = re.findall(r'<a href="#r\d">(\w+)</a>', page)
    assert names == ["bad", "asked", "clean"]
    assert "3 records, 1 invalid, 1 to ask about, 1 clean" in page
    assert page.count("<details id=") == 3 and is_page(page.encode())


def test_nothing_of_a_record_is_obeyed_and_only_the_own_script_runs() -> None:
    page = records_page([audit("<img src=x>", BAD)])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 and "<img" not in page and "\x1b" not in page
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", page)


def test_columns_hold_the_numbers_that_they_sort_by() -> None:
    logs = [{"seed": 1, "steps": 4_626, "total_bytes": 15_990_000.0, "train_s": 588.04}]
    page = records_page([audit("a", logs=logs, claims={"bpb": 1.081}), audit("b")])
    assert '<data value="4626">4,626</data>' in page
    assert '<data value="1.081">1.081</data>' in page
    assert "&ndash;" in page


def test_a_page_of_nothing_is_a_page() -> None:
    assert "0 records, none" in records_page([])
