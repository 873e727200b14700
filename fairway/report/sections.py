"""The sections of the report page in reading order, each a function from results to HTML.

If results are missing, because a stage was left out, the section is empty.
"""

from typing import Any

from fairway.quantise.weights import VOID_RULE
from fairway.report.html import (
    DASH,
    Html,
    code,
    esc,
    figure,
    join,
    meter,
    note,
    num,
    pairs,
    printable,
    section,
    strong,
    table,
    time_of,
)
from fairway.report.plots import (
    NARROW_IN,
    WIDE_IN,
    Bar,
    Line,
    bars_figure,
    lines_figure,
    loss_figure,
)
from fairway.score.baselines import TOOL_NAMES
from fairway.score.experts.published import described
from fairway.score.ways import BESIDE

Values = dict[str, Any]

_STAGES = {
    "raw": "raw weights",
    "ema": "weight average",
    "quantised": "artifact",
    "sliding": "artifact, sliding window",
    "ttt": "artifact, test-time training",
    "mixture": "artifact with experts",
    "documents": "artifact, documents alone",
}


def stage_name(stage: str) -> str:
    """Return the page's name for a stage of results.json."""
    return _STAGES.get(stage, printable(stage))


def tool_name(tool: str) -> str:
    """Return the page's name for a compressor of results.json."""
    return TOOL_NAMES.get(tool, printable(tool))


def scores(results: Values, derived: Values) -> Html:
    """Return the bars of bits per byte and the table of compressors."""
    rows = derived["baselines"]
    bars = [
        Bar(stage_name(name), stage["bpb"], "headline" if name == results["headline"] else "stage")
        for name, stage in results["stages"].items()
    ]
    bars += [Bar(f"{tool_name(row['tool'])}, {row['way']}", row["bpb"], row["way"]) for row in rows]
    whole = derived["scored_whole"]
    scope = "All bars code the same" if whole else "The model codes the share given below of all"
    caption = Html(
        f"{scope} {num(results['text']['bytes'])} bytes (n = {num(results['text']['documents'])} "
        "documents). Neither the artifact's own bytes nor the compressors' programs are counted."
    )
    if (part := derived["compressed_bytes"]) is not None:
        caption = Html(f"{caption} The compressors read the first {num(part)} of these bytes.")
    drawings = [bars_figure(bars, width_in) for width_in in (WIDE_IN, NARROW_IN)]
    drawing = figure(drawings[0], drawings[1], "Bits per byte by stage and compressor", caption)
    told = [Html(f"<p>{esc(text)}.</p>") for text in results.get("warnings", [])]
    tables = _baselines(rows, results.get("baselines", {}))
    return section("Bits per byte", drawing, *told, *tables)


def _baselines(rows: list[Values], tools: Values) -> list[Html]:
    if not rows:
        return []
    cells = [
        [
            esc(f"{tool_name(row['tool'])}, {row['way']}"),
            num(row["bytes"]),
            num(row["bpb"], ".4f"),
            num(row["model_percent"], "+.1f"),
        ]
        for row in rows
    ]
    primed = [(name, tool["primed_with_bytes"]) for name, tool in tools.items()]
    cold = "A cold compressor sees the validation text alone."
    seen = join([Html(f"{esc(tool_name(name))} {num(size)}") for name, size in primed], ", ")
    ways = Html(
        f"{cold} A primed one reads the end of the training text first. This is the fairer "
        f"comparison, because the model has read training text too. Bytes of it: {seen}."
    )
    how = [
        Html(f"<b>{esc(tool_name(name))}</b>: {esc(tool['how'])}.") for name, tool in tools.items()
    ]
    heads = ["compressor", "size (bytes)", "bits per byte", "model, compared (%)"]
    shown = ways if any(size for _, size in primed) else Html(cold)
    return [table(heads, cells), note(shown), note(join(how, " "))]


def loss(derived: Values) -> Html:
    """Return the training loss and learning rate over time, with the events marked."""
    curve, events = derived["curve"], derived["events"]
    if curve is None:
        return Html("")
    thinned = f" (one in {num(curve['every'])} drawn)" if curve["every"] > 1 else ""
    when = [
        Html(f"{esc(event['name'])} at {num(event['seconds'], ',.1f', ' s')}") for event in events
    ]
    caption = Html(
        f"Loss of the training batch at each of n = {num(curve['steps'])} steps{thinned}; the "
        f"strong line is a centred mean (n = {num(curve['smooth_steps'])}) and ends at "
        f"{num(curve['last_smooth_loss'], '.4f')} nats/token. The picture leaves out the steep "
        f"start ({num(curve['first_loss'], '.3f')} at the first step). Events: {join(when, ', ')}."
    )
    drawings = [loss_figure(curve, events, width_in) for width_in in (WIDE_IN, NARROW_IN)]
    label = "Training loss and learning rate over time"
    own = figure(drawings[0], drawings[1], label, caption)
    return section("Loss over time", own, _beside(derived))


def _beside(derived: Values) -> Html:
    """Return the losses of this run and of earlier runs of the same folder, if there are any."""
    earlier = derived["earlier"]
    if not earlier:
        return Html("")
    lines = [Line("this run", derived["curve"], own=True)]
    lines += [Line(printable(one["name"]), one["curve"]) for one in earlier]
    ends = join(
        [
            Html(f"{esc(one['name'])} {num(one['curve']['last_smooth_loss'], '.4f')}")
            for one in earlier
        ],
        ", ",
    )
    caption = Html(
        "Smoothed training loss of this run and of earlier runs of the same folder on the same "
        f"text, the latest {len(earlier)} that are there. They end at {ends}. A loss that is "
        "made differently (another batch, another weighting) is not a better model: compare scores."
    )
    drawings = [lines_figure(lines, width_in) for width_in in (WIDE_IN, NARROW_IN)]
    label = "Training loss of this run and of earlier runs"
    return figure(drawings[0], drawings[1], label, caption)


def made(results: Values) -> Html:
    """Return what was run: recipe, model, text, machine and versions, with digests."""
    text, train = results["text"], results["train"]
    machine, versions = results.get("machine", {}), results.get("versions", {})
    training = Html(
        f"{num(train['steps'])} steps, {num(train['tokens'])} tokens in "
        f"{time_of(train['seconds'])} ({num(train['tokens_per_s'], ',.0f')} tokens/s), final loss "
        f"{num(train['final_loss'], '.4f')} nats/token"
    )
    facts = [
        ("Recipe", Html(f"{esc(results['recipe'])} {code(results.get('recipe_hash'))}")),
        *_own_recipe(results.get("recipe_origin")),
        ("Seed", num(results["seed"], "d")),
        ("Model", num(results["model"]["parameters"], ",", " parameters")),
        ("Training", training),
        ("Training text", _amount(text, "train_")),
        ("Held-out text", _amount(text, "")),
        ("Corpus digest", code(text.get("data_digest"))),
        ("Held-out digest", code(text.get("digest"))),
        ("Artifact digest", code(results["artifact"].get("digest"))),
        ("Machine", esc(", ".join(f"{name} {value}" for name, value in machine.items()))),
        ("Versions", esc(", ".join(f"{name} {value}" for name, value in versions.items()))),
    ]
    return section("What was done", pairs(facts, "facts"))


def _own_recipe(origin: Values | None) -> list[tuple[str, Html]]:
    """Return the files of a recipe's code, if it is not one of Fairway's."""
    if origin is None:
        return []
    files = [Html(f"{esc(name)} {code(digest)}") for name, digest in origin["files"].items()]
    package = [esc(origin["package"])] if origin["package"] else []
    return [("Recipe from", join([*package, *files], ", "))]


def _amount(text: Values, prefix: str) -> Html:
    units = ("bytes", "tokens", "documents")
    known = [unit for unit in units if text.get(prefix + unit) is not None]
    return join([num(text[prefix + unit], ",", f" {unit}") for unit in known], ", ")


def artifact(results: Values, derived: Values) -> Html:
    """Return the bytes of the artifact against its limit, and by section with their sum."""
    found, percent = results["artifact"], derived["shipped_percent"]
    limit = Html(
        f'<p class="limit">{num(derived["shipped_bytes"])} of {num(found["limit_bytes"])} bytes '
        f"allowed ({num(percent, '.1f', ' %')}): artifact {num(found['bytes'])}, code "
        f"{num(found['code_bytes'])} ({esc(found['code'])}).{meter(percent)}</p>"
    )
    total = [Html("file"), num(found["bytes"]), DASH, Html("")]
    parts = _share_rows(derived["sections"], ",")
    return section("Bytes", limit, table(["section", "bytes", "share (%)", ""], parts, total))


def _share_rows(parts: list[Values], spec: str) -> list[list[Html]]:
    return [
        [
            esc(part["name"]),
            num(part["value"], spec),
            num(part["percent"], ".2f"),
            meter(part["percent"]),
        ]
        for part in parts
    ]


def weights(results: Values) -> Html:
    """Return the weight statistics by role and what they mean."""
    found = results.get("weights")
    if not found:
        return Html("")
    heads = ["role", "tensors", "weights", "row kurtosis", "code entropy (bits)"]
    heads += ["zero mass", "void fraction, unrounded"]
    rows = [_weight_row(role, values) for role, values in found["roles"].items()]
    meanings = [
        Html(f"<b>{esc(name.replace('_', ' '))}</b>: {esc(text)}.")
        for name, text in found.get("meanings", {}).items()
    ]
    total = _weight_row("all", found["pooled"])
    parts = [table(heads, rows, total), note(join(meanings, " "))]
    return section("Weights", *parts, _void_fractions(results))


def _void_fractions(results: Values) -> Html:
    """Return one figure for three states of the weights; #1858 logs one of them."""
    fractions = results["weights"]["void_fractions"]
    ttt = results["stages"].get("ttt", {})
    facts = [
        ("Void fraction of the weight average", num(fractions["average"], ".4f")),
        ("Void fraction of the artifact", num(fractions["artifact"], ".4f")),
    ]
    if "void_fraction" in ttt:
        name = "Void fraction after test-time training (as #1858 logs)"
        facts.append((name, num(ttt["void_fraction"], ".4f")))
    return Html(f"{pairs(facts, 'facts')}{note(esc(f'This is {VOID_RULE}.'))}")


def _weight_row(role: str, found: Values) -> list[Html]:
    return [
        esc(role),
        num(found["tensors"]),
        num(found["weights"]),
        num(found["row_kurtosis"], ".3f"),
        num(found["code_entropy_bits"], ".3f"),
        num(found["zero_mass"], ".4f"),
        num(found["unrounded_void_fraction"], ".4f"),
    ]


def checks(results: Values, derived: Values) -> Html:
    """Return every stage's score with its checks."""
    heads = ["score", "bits per byte", "nats/token", "tokens (n)", "bytes", "of the text (%)"]
    heads += ["full sums", "worst |sum - 1|"]
    rows = [
        [
            strong(stage_name(name)) if name == results["headline"] else esc(stage_name(name)),
            num(stage["bpb"], ".4f"),
            num(stage["nats_per_token"], ".4f"),
            num(stage["tokens"]),
            num(stage["bytes"]),
            num(derived["scored_percent"][name], ".2f"),
            num(stage.get("checked_positions")),
            num(stage.get("worst_sum_error"), ".1e"),
        ]
        for name, stage in results["stages"].items()
    ]
    meaning = (
        "Bits per byte are bits divided by the UTF-8 bytes of the raw text. Fairway checked that "
        "the bytes of the tokens add up to that number. Full sums: the number of random positions "
        "at which other code than the scorer's added up the probabilities of the whole vocabulary. "
        "The last column is the largest difference of such a sum from 1."
    )
    return section("Scores and checks", table(heads, rows), note(esc(meaning)), _gains(results))


def _gains(results: Values) -> Html:
    """Return the gain of test-time training over the artifact's other scores."""
    found = results.get("gains") or {}
    facts = [
        (f"Gain of test-time training {words}", num(found[gain], ".4f", " bpb"))
        for gain, (_, words) in BESIDE.items()
        if gain in found
    ]
    return pairs(facts, "facts") if facts else Html("")


def experts(results: Values) -> Html:
    """Return the gain of experts, and the figures of the published mixture."""
    mixture, published = results["stages"].get("mixture"), results.get("published_mixture")
    parts: list[Html] = []
    if mixture:
        facts = [
            ("Experts", esc(mixture["experts"])),
            ("Model", esc(_METHODS.get(mixture["base"], printable(mixture["base"])))),
            ("Bits per byte", num(mixture["bpb"], ".4f")),
            ("Bits per byte without experts", num(mixture["base_bpb"], ".4f")),
            ("Gain", num(mixture["gain_bpb"], ".4f")),
            ("Time", time_of(mixture["seconds"])),
        ]
        meaning = (
            "The experts learn each token after its cost is on record. The mixture of model and "
            "experts is one distribution over tokens. Its sums are checked in the table above."
        )
        parts += [pairs(facts, "facts"), note(esc(meaning))]
    if published:
        parts.append(_published(published))
    return section("Experts", *parts) if parts else Html("")


def _published(found: Values) -> Html:
    sums = found["sums"]
    facts = [
        (f"Published mixture ({printable(found['label'])})", num(found["bpb"], ".4f")),
        ("Mixed", esc(described(found["base"]))),
        ("The model on the same tokens", num(found["model_bpb"], ".4f")),
        ("Left out: tokens without bytes", num(found["free_bpb"], ".4f")),
        ("PPM alone", num(found["ppm_bpb"], ".4f")),
        ("Sum over the vocabulary, mean", num(sums["mean"], ".3f")),
        ("Sum, geometric mean", num(sums["geometric_mean"], ".3f")),
        ("Sum, least to most", Html(f"{num(sums['least'], '.3f')} to {num(sums['most'], '.3f')}")),
        ("Positions summed", num(sums["positions"])),
        ("Bytes where the gate fired", num(100 * found["gate_share"], ".1f", " %")),
        ("Of all tokens", num(100 * found["coverage"], ".1f", " %")),
    ]
    meaning = (
        "The mixture of pull request 1858 as published is not a distribution: its probabilities of "
        "all tokens sum to more than one. So its figure is not a score, and no text can be decoded "
        "with it. It leaves out the cost of tokens without bytes (the beginnings of documents), "
        "which the scores above include. It is shown only for comparison."
    )
    return Html(f"{pairs(facts, 'facts')}{note(esc(meaning))}")


_METHODS = {
    "sliding": "the artifact under its sliding window",
    "sgd": "the artifact; all weights learn from the scored text",
    "lora": "the artifact; adapters learn each document",
}


def proof(results: Values, derived: Values) -> Html:
    """Return the facts of the proof: the text that was coded and restored, and its cost."""
    found = results.get("proof")
    if not found:
        return Html("")
    method = _METHODS.get(found["method"], printable(found["method"]))
    coded = Html(
        f"{num(found['bytes'])} bytes of held-out text ({num(found['tokens'])} tokens in "
        f"{num(found['streams'])} streams)"
    )
    facts = [
        ("Text", coded),
        ("Predicted by", esc(method)),
        ("Coded", num(found["coded_bytes"], ",", " bytes")),
        ("Bits per byte, coded", num(found["bpb"], ".4f")),
        ("Bits per byte, ledger", num(found["ledger_bpb"], ".4f")),
        ("Coded against ledger", num(derived["proof_percent"], "+.3f", " %")),
        ("Cost of whole-number frequencies", num(found["frequency_bits"], ".3f", " bits")),
        ("Coding", time_of(found["code_s"])),
        ("Decoding, with its process", time_of(found["decode_s"])),
    ]
    meaning = (
        "A new process restored this text, byte for byte, from the artifact and the coded file. "
        "The ledger scored the same streams. They are shorter than the text of the scores above. "
        "The header of the file is not counted."
    )
    return section("Proof by decoding", pairs(facts, "facts"), note(esc(meaning)))


def seconds(results: Values, derived: Values) -> Html:
    """Return the seconds of every stage of the run."""
    total = [Html("total"), num(results["seconds"].get("total"), ",.1f"), DASH, Html("")]
    parts = _share_rows(derived["seconds"], ",.1f")
    return section("Time", table(["stage", "seconds", "share (%)", ""], parts, total))


def samples(results: Values) -> Html:
    """Return the sampled continuations; prompts are marked."""
    texts = [
        Html(f'<p class="sample"><mark>{esc(item["prompt"])}</mark>{esc(item["text"])}</p>')
        for item in results.get("samples") or []
    ]
    meaning = (
        [note(esc("Bold: the prompt. Plain: what the artifact wrote after it."))] if texts else []
    )
    return section("Sampled continuations", *meaning, *texts)


def settings(results: Values) -> Html:
    """Return every setting of the recipe, in columns."""
    tree: Values = results.get("config", {})
    flat = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    for group, values in tree.items():
        if isinstance(values, dict):
            flat |= {f"{group}.{name}": value for name, value in values.items()}
    items = [(name, esc(value)) for name, value in flat.items()]
    return section("Every setting", pairs(items, "settings") if items else Html(""))
