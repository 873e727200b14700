import copy
import json
import re

import pytest
from report.example import (
    Reader,
    example_results,
    example_steps,
    numbers_in,
    report,
    role,
    spending,
    stage,
    tool,
)

from fairway.base.errors import UserError
from fairway.report import write_report
from fairway.report.derive import derive
from fairway.report.plots import Bar, label_at

HOSTILE = '<script>alert("1")</script> & \x00\x1b[31m\ud800 $x$ \u202e'


def test_a_score_whose_audit_failed_is_not_claimed(tmp_path):
    results = example_results()
    results["audit"] = {"passed": False, "verdict": "invalid", "findings": [], "probes": []}
    assert "did not pass, so no score is claimed" in report(tmp_path, results)[0]


def test_the_headline_names_score_size_time_and_text(tmp_path):
    text, _ = report(tmp_path)
    headline = re.sub(r"<[^>]+>", "", re.search(r"<h1>.*?</h1>", text, re.DOTALL)[0])
    assert headline == (
        "An artifact of 812.0 kB predicts 128,004 bytes of held-out text at 1.9872 bits per byte "
        "after 3 min 12 s of training; on the same bytes the strongest compressor, xz -9e "
        "(primed), takes 2.1235."
    )


def test_every_number_of_the_page_is_in_the_json(tmp_path):
    text, numbers = report(tmp_path)
    shown = Reader(text).numbers
    assert len(shown) > 100
    assert {value for value, _ in shown} <= numbers_in(numbers)
    assert numbers["results"] == example_results()


def test_every_number_is_shown_as_the_value_it_carries(tmp_path):
    for value, shown in Reader(report(tmp_path)[0]).numbers:
        match = re.match(
            r"^([\N{MINUS SIGN}+]?[\d,]+(?:\.(\d+))?(?:e-\d+)?)( (?!MB|kB|min).*)?$", shown
        )
        if match is None:
            assert shown in ("812.0 kB", "128.0 kB", "3 min 12 s"), shown
            continue
        read = float(match[1].replace(",", "").replace("\N{MINUS SIGN}", "-"))
        rounding = 0.5 * 10.0 ** -len(match[2] or "")
        assert read == pytest.approx(value, abs=rounding * 1.0001, rel=0.05 if "e" in shown else 0)


def test_sections_sum_to_the_file_and_a_gap_is_shown(tmp_path):
    derived = derive(example_results(), [])
    assert sum(part["value"] for part in derived["sections"]) == 812_004
    assert [part["name"] for part in derived["sections"]] == ["header", "codes"]
    results = example_results()
    results["artifact"]["bytes"] += 1
    gap = derive(results, [])["sections"][-1]
    assert (gap["name"], gap["value"]) == ("not attributed", 1)
    assert "not attributed" in report(tmp_path, results)[0]


def test_seconds_show_what_no_stage_accounts_for():
    parts = {part["name"]: part for part in derive(example_results(), [])["seconds"]}
    assert parts["between the stages"]["value"] == pytest.approx(210.0 - 14.2 - 192.34)
    assert sum(part["percent"] for part in parts.values()) == pytest.approx(100.0)


def test_comparison_with_compressors_is_relative_to_theirs():
    rows = derive(example_results(), [])["baselines"]
    assert [(row["tool"], row["way"]) for row in rows[2:4]] == [("zstd", "cold"), ("xz", "primed")]
    assert rows[0]["model_percent"] == pytest.approx(100 * (1.98717 - 2.35123) / 2.35123)


def test_a_comparison_on_a_part_of_the_text_is_told(tmp_path):
    results = example_results()
    assert "The compressors read" not in report(tmp_path, results)[0]
    assert "The compressors read" not in report(tmp_path, {**results, "baselines": {}})[0]
    for found in results["baselines"].values():
        found["text_bytes"] = 64_000
    told = report(tmp_path, results)[0]
    assert "The compressors read the first 64,000 of these bytes" in re.sub("<[^>]*>", "", told)
    assert "on the first 64.0 kB the strongest compressor" in re.sub("<[^>]*>", "", told)


def test_the_limit_counts_artifact_and_code():
    derived = derive(example_results(), [])
    assert derived["shipped_bytes"] == 813_004
    assert derived["shipped_percent"] == pytest.approx(100 * 813_004 / 16_000_000)


def test_events_are_read_from_the_steps():
    steps = example_steps(100)
    found = {event["name"]: event["step"] for event in derive(example_results(), steps)["events"]}
    falls = next(step["step"] for step in steps if step["lr"] < 1.0)
    assert found == {"warm-down": falls, "recurrence on": 36, "stop": 100}


def test_a_run_without_recurrence_or_warm_down_only_stops():
    steps = [{**step, "looping": False, "lr": 1.0} for step in example_steps(20)]
    events = derive(example_results(), steps)["events"]
    assert [event["name"] for event in events] == ["stop"]


def test_smoothed_loss_is_the_mean_of_neighbours():
    steps = example_steps(300)
    curve = derive(example_results(), steps)["curve"]
    losses = [step["loss"] for step in steps]
    assert curve["smooth_steps"] == 7
    assert curve["smooth"][50] == pytest.approx(sum(losses[47:54]) / 7)
    assert curve["last_smooth_loss"] == pytest.approx(sum(losses[-4:]) / 4)


def test_long_curves_are_thinned_but_keep_their_end(tmp_path):
    steps = example_steps(10_000)
    text, numbers = report(tmp_path, steps=steps)
    curve = numbers["derived"]["curve"]
    assert curve["steps"] == 10_000 and curve["every"] == 7
    assert len(curve["loss"]) <= 1502
    assert curve["seconds"][-1] == steps[-1]["seconds"]
    assert len(text) < 600_000


def test_equal_input_gives_equal_bytes(tmp_path):
    assert report(tmp_path, example_results())[0] == report(tmp_path)[0]


def test_nothing_is_fetched_or_run(tmp_path):
    text, _ = report(tmp_path)
    tags = Reader(text).tags
    assert not {"script", "link", "iframe", "img", "object", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        for name in ("href", "xlink:href"):
            assert not re.match(r"(\w+:)?//|javascript:", attributes.get(name) or "")
    assert "url(http" not in text and "@import" not in text
    policy = [found.get("content", "") for tag, found in tags if tag == "meta"]
    assert any("default-src 'none'" in content for content in policy)


def test_ids_are_unique(tmp_path):
    found = [
        attributes["id"] for _, attributes in Reader(report(tmp_path)[0]).tags if "id" in attributes
    ]
    assert len(found) == len(set(found)) > 0


def hostile(value):
    """The same results with every text, name and version replaced by a hostile one."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_is_shown_and_never_obeyed(tmp_path):
    results = hostile(example_results())
    results["stages"][HOSTILE] = stage(1.5)
    results["baselines"][HOSTILE] = tool(2.5, 2.4)
    results["weights"]["roles"][HOSTILE] = role(0.0)
    results["seconds"][HOSTILE] = 1.0
    results["config"][HOSTILE] = HOSTILE
    results["versions"][HOSTILE] = HOSTILE
    text, _ = report(tmp_path, results)
    reader = Reader(text)
    assert not any(tag == "script" for tag, _ in reader.tags)
    assert "<script" not in text and "\x00" not in text and "\x1b" not in text
    assert text.count("&lt;script&gt;") > 15
    assert any('<script>alert("1")</script>' in words for words in reader.words)


def test_the_tables_of_where_the_bits_go_add_up_to_the_score(tmp_path):
    text, numbers = report(tmp_path)
    found = numbers["derived"]["spending"]
    assert found["stage"] == "sliding" and found["beside"] is None
    for division in ("kinds", "frequency", "place", "context"):
        assert sum(one["bpb"] for one in found[division]) == pytest.approx(1.98717)
        assert [one["percent"] for one in found[division]] == pytest.approx([25.0, 75.0])
    assert found["kinds"][0]["token_bits"] == pytest.approx(0.25 * 128_004 * 1.98717 / 30_000)
    assert "Where the bits go" in text and '<code class="token">&lt;b&gt;</code>' in text
    assert "sliding window</th>" not in text


def test_a_score_that_learns_stands_beside_the_frozen_model(tmp_path):
    results = example_results()
    results["stages"]["ttt"] = {**stage(1.9), "spending": spending(1.9)}
    results["headline"] = "ttt"
    text, numbers = report(tmp_path, results)
    kinds = numbers["derived"]["spending"]["kinds"]
    assert sum(one["plain_bpb"] for one in kinds) == pytest.approx(1.98717)
    assert '<th scope="col">sliding window</th>' in text
    del results["stages"]["ttt"]["spending"]
    assert "Where the bits go" not in report(tmp_path, results)[0]


def test_earlier_runs_stand_beside_the_loss(tmp_path):
    out = tmp_path / "report.html"
    earlier = [(HOSTILE, example_steps(500)), ("_short", example_steps(1)), ("none", [])]
    write_report(tmp_path, example_results(), example_steps(), out, earlier)
    text = out.read_text(encoding="utf-8")
    assert "the latest 2 that are" in text and "<script" not in text
    assert text.count("this run</text>") == 2 and text.count("\u200b_short</text>") == 2
    found = json.loads((tmp_path / "report.json").read_text())["derived"]["earlier"]
    assert [len(one["curve"]["loss"]) <= 201 for one in found] == [True, True]
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert {value for value, _ in Reader(text).numbers} <= numbers_in(numbers)
    assert "earlier runs" not in report(tmp_path)[0]


def test_words_of_tables_are_not_broken(tmp_path):
    text, _ = report(tmp_path)
    styles = text.split("<style>")[1].split("</style>")[0]
    rules = re.findall(r"([^{}]+)\{[^{}]*overflow-wrap: anywhere", styles)
    names = {name.strip() for rule in rules for name in rule.split(",")}
    # What others wrote may break, as a path or a digest: no cell of a table as such.
    assert names and not [name for name in names if re.search(r"\b(table|th|td|dd)\b", name)]


def test_prompt_and_continuation_are_marked_apart(tmp_path):
    text, _ = report(tmp_path)
    assert '<p class="sample"><mark>The function</mark> returns None.</p>' in text


@pytest.mark.parametrize(
    "missing",
    ["samples", "baselines", "weights", "config", "versions", "machine", "recipe_hash", "proof"],
)
def test_optional_parts_may_be_missing(tmp_path, missing):
    results = example_results()
    del results[missing]
    text, _ = report(tmp_path, results)
    assert text.endswith("</html>\n") and "1.9872 bits per byte" in text


def test_void_fractions_say_of_which_weights_they_are(tmp_path):
    text, _ = report(tmp_path)
    assert "void fraction, unrounded" in text and "at most as large as the mean size" in text
    for name, value in (("of the weight average", "0.5781"), ("of the artifact", "0.5057")):
        assert f"Void fraction {name}" in text and value in text
    assert "as #1858 logs)" not in text
    results = example_results()
    results["stages"]["ttt"] = {**stage(1.93333), "void_fraction": 0.5069}
    text, _ = report(tmp_path, results)
    assert "Void fraction after test-time training (as #1858 logs)" in text and "0.5069" in text


def test_a_proof_gets_a_section(tmp_path):
    results = example_results()
    text, _ = report(tmp_path, results)
    for part in ("Proof by decoding", "adapters learn", "1,401 bytes", "+0.081 %", "byte for byte"):
        assert part in text
    results["proof"] = None
    assert "Proof by decoding" not in report(tmp_path, results)[0]


def test_an_audit_gets_a_section(tmp_path):
    results = example_results()
    probe = {
        "stage": "sliding", "name": "P1 substitution", "rules": ["C2"], "did": "summed <b>",
        "samples": 12, "worst": 2e-16, "position": 3, "verdict": "invalid", "why": "not <i>one",
        "power": "a leak of 0.01 nats at 2% of places: 90%",
    }  # fmt: skip
    finding = {
        "severity": "warning", "code": "order", "why": "lengths", "file": "a", "line": 7,
        "value": "<script>",
    }  # fmt: skip
    results["audit"] = {
        "passed": False, "verdict": "invalid", "findings": [finding], "probes": [probe],
    }  # fmt: skip
    page, _ = report(tmp_path, results)
    told = page.split("<h2>Audit</h2>")[1].split("</section>")[0]
    assert "it cannot become a submission" in told and "a:7" in told
    assert "a leak of 0.01 nats at 2% of places: 90%" in told
    assert "not &lt;i&gt;one" in told and "&lt;script&gt;" in told and "<script>" not in told


def test_later_stages_get_a_bar_and_a_row(tmp_path):
    results = example_results()
    results["stages"]["ttt"] = stage(1.93333)
    results["later"] = {"bytes": 1}
    text, _ = report(tmp_path, results)
    assert text.count("artifact, test-time training") >= 3 and "1.9333" in text


def test_gains_of_test_time_training_stand_beside_what_they_are_over(tmp_path):
    results = example_results()
    assert "Gain of test-time" not in report(tmp_path, results)[0]
    results["gains"] = {"side_by_side": 0.02211, "sliding": -0.0004, "<b>": 7.0}
    page, _ = report(tmp_path, results)
    for part in ("over windows side by side", "0.0221 bpb", "over the sliding window", "0.0004"):
        assert part in page
    assert "without learning" not in page and "<b>: 7" not in page


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_short_runs_have_a_page(tmp_path, count):
    text, _ = report(tmp_path, steps=example_steps(count))
    assert ("Loss over time" in text) == (count > 0)


def test_unprimed_compressors_and_uncoded_weights_leave_dashes(tmp_path):
    results = example_results()
    for found in results["baselines"].values():
        found.update(primed_bytes=None, primed_bpb=None, primed_with_bytes=0)
    results["weights"]["pooled"].update(code_entropy_bits=None, zero_mass=None, row_kurtosis=None)
    results["text"].update(train_bytes=None, train_documents=None)
    text, _ = report(tmp_path, results)
    assert ", primed" not in text and "<td>&ndash;</td>" in text


def test_a_partly_scored_text_is_said_to_be_so(tmp_path):
    results = example_results()
    for found in results["stages"].values():
        found["bytes"] = 64_002
    text, numbers = report(tmp_path, results)
    assert numbers["derived"]["scored_percent"]["sliding"] == 50.0
    assert "All bars code the same" not in text and "on the same bytes" not in text
    assert '<data value="64002">64,002</data> bytes of held-out text' in text


def test_the_page_links_to_the_run_and_to_nothing_else(tmp_path):
    for name in ("results.json", "model.bin", ".hidden", "run.lock"):
        (tmp_path / name).write_text("x")
    (tmp_path / "shards").mkdir()
    text, _ = report(tmp_path, example_results())
    links = [found["href"] for tag, found in Reader(text).tags if tag == "a"]
    assert links == ["report.json", "model.bin", "results.json"]


def test_no_temporary_file_is_left(tmp_path):
    report(tmp_path, example_results())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("key", ["recipe", "text", "train", "stages", "artifact", "seconds"])
def test_unfinished_results_are_one_sentence(tmp_path, key):
    results = example_results()
    del results[key]
    with pytest.raises(UserError, match=f"results lack '{key}'; let the run finish"):
        report(tmp_path, results)
    assert list(tmp_path.iterdir()) == []


def test_results_without_the_last_score_are_refused(tmp_path):
    results = example_results()
    del results["stages"]["sliding"]
    with pytest.raises(UserError, match=r"lack 'stages\.sliding'"):
        report(tmp_path, results)


@pytest.mark.parametrize("schema", [None, 2, "1"])
def test_another_schema_is_refused(tmp_path, schema):
    results = {**copy.deepcopy(example_results()), "schema": schema}
    with pytest.raises(UserError, match="this version reads schema 1"):
        report(tmp_path, results)


def test_no_number_of_a_bar_is_crossed_by_the_line() -> None:
    sizes = {"stage": 1.58, "headline": 1.65, "cold": 2.4, "primed": 1.2}
    bars = [Bar(kind, bpb, kind) for kind, bpb in sizes.items()]
    assert [label_at(bar, bars) for bar in bars] == [1.65, 1.65, 2.4, 1.2]
    assert label_at(bars[0], [bars[0], bars[2]]) == 1.58
