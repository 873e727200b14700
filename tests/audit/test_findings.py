"""Findings in order, and what follows from them."""

from fairway.audit.findings import Finding, holds, ordered


def test_the_gravest_come_first_and_nothing_twice() -> None:
    note = Finding("note", "n", "why")
    bad, worse = Finding("invalid", "b", "why", "b.log", 3), Finding("invalid", "a", "why", "a", 9)
    assert ordered([note, bad, worse, bad]) == (worse, bad, note)
    assert (bad.place, note.place, Finding("note", "c", "w", "x").place) == ("b.log:3", "", "x")


def test_only_what_is_invalid_breaks_a_record() -> None:
    assert holds([Finding("warning", "w", "why"), Finding("note", "n", "why")])
    assert not holds([Finding("invalid", "i", "why")])
