"""Records built from published cases: what is wrong is found, and only that."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from audit.record import BYTES_PER_TOKEN, README, SCRIPT, Case

from fairway.audit.records.audit import RecordAudit, audit_record
from fairway.base.errors import UserError
from fairway.submission.published import record


def found(audit: RecordAudit) -> dict[str, str]:
    """Return the codes of what was found with their severity, notes left out."""
    return {f.code: f.severity for f in audit.findings if f.severity != "note"}


def of(case: Case, folder: Path) -> dict[str, str]:
    return found(audit_record(case.write(folder)))


def test_a_sound_record_is_left_alone(tmp_path: Path) -> None:
    audit = audit_record(Case().write(tmp_path))
    assert audit.findings == ()
    assert audit.valid
    assert audit.facts["seeds"] == [314, 42, 999]
    stage = audit.facts["stages"][audit.facts["claimed_stage"]]
    assert (stage["mean"], stage["sd"]) == pytest.approx((1.081001, 0.000367), abs=1e-6)


def test_the_inconsistencies_of_1858_are_found(tmp_path: Path) -> None:
    readme = README.replace("2 epochs", "3 epochs").replace("TTT_EPOCHS=2", "TTT_CHUNK_SIZE=48")
    audit = audit_record(Case(readme=readme, claim={"steps": 3770}).write(tmp_path))
    assert found(audit) == dict.fromkeys(["steps", "readme-epochs", "unread-variable"], "warning")
    by_code = {f.code: f for f in audit.findings}
    assert by_code["unread-variable"].value == "TTT_CHUNK_SIZE"
    assert by_code["unread-variable"].place == "README.md:6"
    assert by_code["steps"].value == "3770 claimed, 4621 to 4630 in the logs"


def test_the_code_size_of_1855_is_not_that_of_its_script(tmp_path: Path) -> None:
    case = Case(seeds=record("pr1855").seeds, shipped_bytes=158_429, hessian_s=4.9)
    case.val_tokens, case.bytes_per_token = 47_851_520, 151_074_309 / 47_851_520
    case.readme = case.readme.replace("1.0810", "1.0611")
    audit = audit_record(case.write(tmp_path))
    assert found(audit) == {"code-size": "warning", "calibration-time": "warning"}
    code = next(f for f in audit.findings if f.code == "code-size")
    assert code.value == "31,999 counted, 158,429 shipped"
    assert "16,033,980 bytes, above the limit" in code.why


def wrong_claim(case: Case) -> None:
    case.claim = {"val_bpb": 1.0790, "seed_results": {}}
    case.readme = case.readme.replace("1.0810", "1.0790")


def one_seed(case: Case) -> None:
    case.claim = {"val_bpb": 1.08062}
    case.readme = case.readme.replace("1.0810", "1.08062")


def harmless(case: Case) -> None:
    """Differences that mean nothing, and stages by other names in every log."""
    case.settings = {
        42: {"train_log_every": "500", "matrix_lr": "0.0220", "run_id": "a"},
        314: {"train_log_every": "100", "matrix_lr": "0.022", "run_id": "b"},
    }
    case.script += "train_log_every = run_id = 1\n"
    case.extra = {seed.seed: f"best_{seed.seed} val_bpb:{seed.bpb['adapted'] - 0.001}\n"
                  for seed in case.seeds}  # fmt: skip
    case.claim = {"val_bpb": 1.08021, "seed_results": {}}
    case.readme = case.readme.replace("1.0810", "1.0802")


EPOCHS = "".join(f"prequant_ttt:epoch {n}/21 loss:2.{99 - n} time:8s\n" for n in range(1, 22))
CHUNKS = "".join(f"ttt chunk {c} epoch {n}/3 loss:2.8\n" for c in range(9) for n in (1, 2, 3))


def mixture(line: str, bpb: float = 1.05001) -> Callable[[Case], None]:
    """Return a change that claims a last score which a line tells in its own words."""

    def change(case: Case) -> None:
        case.extra = dict.fromkeys((42, 314, 999), line.format(bpb=bpb) + "\n")
        case.claim = {"val_bpb": bpb, "seed_results": dict.fromkeys(("42", "314", "999"), bpb)}
        case.readme = case.readme.replace("1.0810", str(bpb))

    return change


CASES: dict[str, tuple[Callable[[Case], object], dict[str, str]]] = {
    "what differs without harm": (harmless, {"claim-unproven": "warning"}),
    "one GPU": (
        lambda c: [
            setattr(c, "eval_s", 3000.0),
            c.settings.update({s: {"world_size": "1"} for s in (42, 314, 999)}),
            setattr(c, "script", SCRIPT + "world_size = 1\n"),
        ],
        {},
    ),
    "a seed's score of another log": (
        lambda c: c.claim.update(seed_results={"42": 1.0950}), {"seed-score": "warning"},
    ),
    "over the cap": (lambda c: c.change(42, artifact_bytes=16_020_000), {"over-cap": "invalid"}),
    "the first seed's bytes": (
        lambda c: c.claim.update(bytes_total=15_995_838), {"bytes-not-largest": "warning"},
    ),
    "training too long": (lambda c: c.change(42, train_s=603.2), {"train-time": "invalid"}),
    "training late by a step": (lambda c: c.change(42, train_s=600.3), {"train-time": "warning"}),
    "calibration after the budget": (
        lambda c: setattr(c, "hessian_s", 15.6), {"calibration-time": "warning"},
    ),
    "evaluation too long": (lambda c: setattr(c, "eval_s", 688.0), {"eval-time": "invalid"}),
    "mixed seeds": (
        lambda c: c.settings.update({999: {"matrix_lr": "0.026"}}), {"mixed-config": "invalid"},
    ),
    "a setting of another script": (
        lambda c: c.settings.update({42: {"ttt_hash_embed": "True"}}),
        {"other-settings": "warning", "foreign-log": "warning"},
    ),
    "eight million tokens": (lambda c: setattr(c, "val_tokens", 8_000_000), {"subset": "invalid"}),
    "ten thousand documents": (
        lambda c: setattr(c, "val_tokens", 9_662_464), {"subset": "invalid"},
    ),
    "five million tokens": (
        lambda c: setattr(c, "val_tokens", 5_000_000), {"part-of-text": "warning"},
    ),
    "spaces counted twice": (
        lambda c: setattr(c, "bytes_per_token", BYTES_PER_TOKEN * 1.16714),
        {"denominator": "invalid"},
    ),
    "sentinels counted": (
        lambda c: setattr(c, "bytes_per_token", BYTES_PER_TOKEN * 1.0895),
        {"denominator": "invalid"},
    ),
    "a claim of no log": (wrong_claim, {"claim": "invalid"}),
    "the best seed as the mean": (one_seed, {"one-seed-claimed": "warning"}),
    "a wrong spread": (lambda c: c.claim.update(val_bpb_std=0.0001), {"sd": "warning"}),
    "a wrong seed": (
        lambda c: c.claim.update(seed_results={"42": 1.07}), {"seed-score": "invalid"},
    ),
    "a seed without a log": (
        lambda c: c.claim.update(seeds=[42, 314, 999, 7]), {"no-log-of-seed": "warning"},
    ),
    "gates at work": (
        lambda c: c.extra.update({42: "ngram total=47851520 within_gate=9870000 word_gate=0\n"}),
        {"target-gate": "invalid"},
    ),
    "hints outside the clock": (
        lambda c: [
            c.settings.setdefault(s, {}).update(ngram_hint_precompute_outside="True")
            for s in (42, 314, 999)
        ] + [setattr(c, "script", SCRIPT + "ngram_hint_precompute_outside = 1\n")],
        {"outside-clock": "warning"},
    ),
    "epochs over the text before its score": (
        lambda c: c.before.update(dict.fromkeys((42, 314, 999), EPOCHS)),
        {"ttt-before-score": "invalid"},
    ),
    "epochs over the text by another name": (
        lambda c: c.before.update({42: EPOCHS.replace("prequant_ttt:epoch ", "ttt_epoch:")}),
        {"ttt-before-score": "invalid"},
    ),
    "epochs of every chunk, after it is scored": (
        lambda c: c.before.update({42: CHUNKS}), {},
    ),
    "epochs of training": (
        lambda c: c.before.update({42: EPOCHS.replace("prequant_ttt:", "train ")}), {},
    ),
    "a second pass": (
        lambda c: c.before.update({42: "ngram: Pass 1 done\nngram: starting Pass 2 (rescore)\n"}),
        {"second-pass": "invalid"},
    ),
    "rescoring by number": (
        lambda c: c.before.update({42: "pass1 chunk:1\nngram_pass2: rescoring 15 chunks\n"}),
        {"second-pass": "invalid"},
    ),
    "a second pass that is off": (
        lambda c: c.before.update({42: "two_pass: False\npass2_enabled: 0\n"}), {},
    ),
    "warm-up on validation tokens": (
        lambda c: c.before.update({42: "ttt_lora: warming up compile on validation tokens\n"}),
        {"warm-up": "warning"},
    ),
    "warm-up on random tokens": (
        lambda c: c.before.update({42: "ttt_lora: warm-up (random tokens, no val data)\n"}), {},
    ),
    "a mixture of a part of the text": (
        mixture("ppm_mix bytes=29365687 mix_bpb={bpb}\nppm_time:9s subset=8000000 tokens"),
        {"subset": "invalid"},
    ),
    "a mixture of the whole text": (
        mixture("ppm_mix bytes=151078222 mix_bpb={bpb} ppm_only=2.27"), {},
    ),
    "a mixture that one of eight processes counted": (
        mixture("ppm_mix tokens=5067520 bytes=18884777 mix_bpb={bpb}"), {},
    ),
    "the score of a mixture beside the loss of the model": (
        mixture("quantized_mix val_loss:2.79135 val_bpb:{bpb}"), {},
    ),
    "nats per byte": (mixture("final val_loss:0.72781 val_bpb:1.05001"), {}),
    "a mixture with the bytes of sentinels": (
        mixture("ppm_mix bytes=164594398 mix_bpb={bpb}"), {"denominator": "invalid"},
    ),
    "the score of SLOT": (mixture("final_slot val_bpb:{bpb}"), {"slot-score": "warning"}),
    "more bytes than the text has": (
        lambda c: setattr(c, "bytes_per_token", BYTES_PER_TOKEN * 1.21), {"denominator": "invalid"},
    ),
    "a gain that adaptation does not give": (
        mixture("final_ttt_lora val_bpb:{bpb}", 0.78295), {"adaptation-gain": "warning"},
    ),
    "a gain that nothing valid gives": (
        mixture("final_ngram val_bpb:{bpb}", 0.39678), {"unusual-gain": "warning"},
    ),
    "the last of several epochs": (
        lambda c: c.before.update(
            {42: EPOCHS.replace("prequant_ttt:", "ttt ").replace("loss:2.78", "loss:2.78 bpb=1.01")}
        ),
        {"last-epoch": "invalid"},
    ),
    "shards that mark the default of a script": (
        lambda c: setattr(c, "train_shards", 1499), {"val-in-train": "warning"},
    ),
    "steps of a seed": (
        lambda c: c.claim.update(seed_results={"42": {"val_bpb": 1.08061893, "steps": 3770}}),
        {"seed-steps": "warning"},
    ),
    "bytes of a seed": (
        lambda c: c.claim.update(
            seeds={"42": {"val_bpb": 1.08061893, "artifact_bytes": 15_900_000}}, seed_results={}
        ),
        {"seed-bytes": "warning"},
    ),
    "seconds of a seed": (
        lambda c: c.claim.update(
            seed_results=[{"seed": 42, "bpb": 1.08061893, "train_time_ms": 580_000}]
        ),
        {"seed-time": "warning"},
    ),
    "the end of the step that crosses the budget": (lambda c: c.change(42, train_s=600.04), {}),
    "unpacked code counted, packed code shipped": (
        lambda c: [
            c.change(s, code_bytes=68_000, artifact_bytes=15_970_000) for s in (42, 314, 999)
        ] + [setattr(c, "shipped_bytes", 20_000)],
        {},
    ),
    "words that differ": (
        lambda c: [
            c.settings.update({999: {"data_dir": "new", "loop_start": "late"}}),
        ],
        {"mixed-config": "warning"},
    ),
    "the model's bytes as those of all": (
        lambda c: c.claim.update(bytes_total=15_976_144), {},
    ),
    "names of runs that hold the seed": (
        lambda c: [
            c.settings.update({s: {"exp": f"best-{s}-a", "s": str(s)} for s in (42, 314, 999)}),
            setattr(c, "script", SCRIPT + "exp = s = 1\n"),
        ],
        {},
    ),
    "evaluations that together take too long": (
        lambda c: setattr(c, "eval_s", 550.0), {"eval-sum": "warning"},
    ),
    "work before the clock starts": (
        lambda c: c.before.update(
            {42: "ngram_tilt:precompute_outside_timer_done elapsed=168.20s total_targets=9\n"}
        ),
        {"outside-clock": "warning"},
    ),
    "another score of a seed in the README": (
        lambda c: setattr(c, "readme", README + "\n| seed | bpb |\n|---|---|\n| 42 | 1.0751 |\n"),
        {"readme-score": "warning"},
    ),
    "rounded scores of seeds in the README": (
        lambda c: setattr(c, "readme", README + "\n| seed | bpb |\n|---|---|\n| 42 | 1.0806 |\n"),
        {},
    ),
    "another score in the README": (
        lambda c: setattr(c, "readme", c.readme.replace("1.0810", "0.9946")),
        {"readme-score": "warning"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_found_and_nothing_else(name: str, tmp_path: Path) -> None:
    change, expected = CASES[name]
    case = Case()
    change(case)
    assert of(case, tmp_path) == expected


@pytest.mark.parametrize(
    ("spread", "severity"), [({"sd": 0.00037}, {}), ({"std": "0.0004"}, {}), ({"sd": 1}, {})]
)
def test_spreads_that_are_right_or_no_spreads_pass(
    spread: dict[str, object], severity: dict[str, str], tmp_path: Path
) -> None:
    assert of(Case(claim=spread), tmp_path) == severity


def test_published_records_are_not_accused(tmp_path: Path) -> None:
    for name in ("pr1413", "pr1514", "pr1874", "pr1953"):
        published = record(name)
        case = Case(seeds=published.seeds, hessian_s=3.4, val_tokens=published.scored_tokens)
        case.bytes_per_token = published.text_bytes / published.scored_tokens
        mean = sum(s.bpb["adapted"] for s in case.seeds) / 3
        case.readme = case.readme.replace("1.0810", f"{mean:.4f}")
        assert of(case, tmp_path / name) == {}, name


@pytest.mark.parametrize(
    "claim",
    [
        {"track": "non-record-unlimited-compute-16mb"},
        {"name": "Non-record: what does not work"},
        {"submission_type": "non_record"},
    ],
)
def test_another_track_has_no_budget(claim: dict[str, str], tmp_path: Path) -> None:
    case = Case(claim=dict(claim), eval_s=5000.0)
    audit = audit_record(case.change(42, train_s=3000.0).write(tmp_path))
    assert audit.valid
    codes = sorted(f.code for f in audit.findings)
    assert codes == ["eval-time", "eval-time", "eval-time", "train-time"]


# ---------------------------------------------------------------------------------------------
# What is missing, damaged, or meant to hurt


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path) -> None:
    codes = {"no-readme", "no-submission", "no-script", "no-log"}
    audit = audit_record(tmp_path)
    assert codes <= {f.code for f in audit.findings}
    assert audit.valid
    with pytest.raises(UserError, match="does not exist"):
        audit_record(tmp_path / "none")


def test_binary_junk_is_survived(tmp_path: Path) -> None:
    Case().write(tmp_path)
    junk = bytes(range(256)) * 100
    for name in ("README.md", "train_gpt.py", "train_seed42.log", "other.log", "model.bin"):
        (tmp_path / name).write_bytes(junk)
    audit = audit_record(tmp_path)
    assert {"syntax", "no-log-of-seed"} <= {f.code for f in audit.findings}
    for claim in (b"\xff\xfe{", b"[1, 2]", b'{"val_bpb": NaN', b"[" * 100_000):
        (tmp_path / "submission.json").write_bytes(claim)
        assert found(audit_record(tmp_path))["json"] == "warning"


@pytest.mark.parametrize("value", [None, True, "x", [1], {}, 1e400, -1, "1" * 400])
def test_any_json_is_survived(value: object, tmp_path: Path) -> None:
    names = ("val_bpb", "seeds", "seed_results", "bytes_total", "steps", "track", "val_bpb_std")
    audit_record(Case(claim=dict.fromkeys(names, value)).write(tmp_path))


def test_hostile_names_links_and_pipes_are_left_alone(tmp_path: Path) -> None:
    folder = Case().write(tmp_path / "record")
    secret = tmp_path / "secret.log"
    secret.write_text("quantized val_loss:1.0 val_bpb:0.5\n")
    (folder / "link.log").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.log")
    (folder / "\x1b[31m<script>\n.log").write_text("step:1/2 train_time:1ms\n")
    audit = audit_record(folder)
    assert {f.file for f in audit.findings if f.code == "skipped"} == {"link.log", "pipe.log", "up"}
    assert not [name for name in audit.facts["files"] if "\x1b" in name or "\n" in name]
    assert found(audit) == {}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["steps", "scores", "one line", "noise", "short lines"])
def test_a_huge_log_takes_seconds(kind: str, tmp_path: Path) -> None:
    lines = {
        "steps": b"step:1234/20000 train_loss:3.2 train_time:156789ms step_avg:127.06ms\n",
        "scores": b"quantized val_loss:2.83711422 val_bpb:1.09833533 eval_time:19115ms\n",
        "one line": b"val_bpb 1.5 ",
        "short lines": b"x\n",
        "noise": b"loading a shard of tokens for the next of many batches to come, and waiting\n",
    }
    Case().write(tmp_path)
    with (tmp_path / "train_seed42.log").open("ab") as stream:
        block = lines[kind] * (1_000_000 // len(lines[kind]))
        for _ in range(8):
            stream.write(block)
    start_s = time.process_time()
    audit_record(tmp_path)
    # 8 of 100 MB; a second on a core of its own, more on one that others share.
    assert time.process_time() - start_s < 2.5


SAID = [
    ("1. **Training on val set is the single biggest gain**", "told-training"),
    ("- Pre-quant TTT trains on validation data, baked into the artifact", "told-training"),
    ("### Two-Pass N-gram Rescoring", "told-second-pass"),
    ("Pass two: rescore the first chunks with the full cache", "told-second-pass"),
    ("- [x] No training on validation data", ""),
    ("TTT trains on validation tokens that were already scored", ""),
    ("You can't cheat by training on the validation set before you evaluate", ""),
    ("Single-pass: no two-pass rescoring", ""),
]


@pytest.mark.parametrize(("line", "code"), SAID)
def test_what_the_readme_admits_is_asked_about(line: str, code: str, tmp_path: Path) -> None:
    case = Case()
    case.readme += f"\n{line}\n"
    assert of(case, tmp_path) == ({code: "warning"} if code else {})


def again(size_bytes: int) -> str:
    """Return the log of an evaluation that packs a trained model again."""
    return (
        "seed: 42\n"
        f"Total submission size quantized+brotli: {size_bytes} bytes\n"
        "val_tokens: 40540160\nquantized val_loss:2.79000000 val_bpb:1.08000000 eval_time:9000ms\n"
    )


@pytest.mark.parametrize(
    ("size_bytes", "found_codes"), [(15_994_574, {}), (16_040_000, {"over-cap"})]
)
def test_a_model_that_is_packed_again_counts_as_it_was_scored(
    size_bytes: int, found_codes: set[str], tmp_path: Path
) -> None:
    case = Case(
        seeds=record("pr1858").seeds[:1], claim={"val_bpb": 1.08, "bytes_total": 15_994_574}
    )
    seed = case.seeds[0].seed
    case = case.change(seed, artifact_bytes=16_020_000)
    case.claim["seed_results"] = {str(seed): {"val_bpb": 1.08}}
    folder = case.write(tmp_path)
    (folder / "requant.txt").write_text(again(size_bytes).replace("42", str(seed)))
    codes = {f.code for f in audit_record(folder).findings if f.severity == "invalid"}
    assert codes == set(found_codes)


@pytest.mark.parametrize(
    ("folder", "severity"),
    [("./data/fineweb10B_sp8192", "invalid"), ("./data/own_mix_v0", "warning")],
)
def test_another_text_than_the_challenges_is_asked_about(
    folder: str, severity: str, tmp_path: Path
) -> None:
    files = {"val_files": f"{folder}/fineweb_val_*.bin"}
    case = Case(settings=dict.fromkeys((42, 314, 999), files), bytes_per_token=5.0)
    assert of(case, tmp_path).get("denominator") == severity


@pytest.mark.parametrize(
    ("name", "data"), [("a.txt", b""), ("a.log", b"hello\n"), ("a.dat", b"\0")]
)
def test_a_file_alone_that_is_no_log_is_not_judged(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert "no-log" in {finding.code for finding in audit_record(tmp_path / name).findings}
