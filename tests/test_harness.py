"""The adapter for lm-evaluation-harness: costs by hand, real requests, and lm_eval itself."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Nothing here is fetched.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from fairway.base.errors import UserError
from fairway.harness import FairwayLM

FIXED: dict[str, Any] = {"threads": 1, "dtype": "float32", "matmul": "highest"}
CLOSE = {"abs": 1e-4, "rel": 1e-6}
LONG = "It was the text that every byte is in. The model predicts a small token.\n" * 4
LONGER = LONG * 3


@pytest.fixture(scope="module")
def lm(smoke_run: Path) -> FairwayLM:
    return FairwayLM(str(smoke_run), **FIXED)


def asked(*args: Any) -> Instance:
    return Instance(request_type="loglikelihood", doc={}, arguments=args, idx=0)


def loglikelihood(lm: FairwayLM, *pairs: tuple[Any, Any]) -> list[tuple[float, bool]]:
    return lm.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)


def rolling(lm: FairwayLM, *texts: Any) -> list[float]:
    return lm.loglikelihood_rolling([asked(text) for text in texts], disable_tqdm=True)


def generate(lm: FairwayLM, options: Any, *contexts: Any) -> list[str]:
    return lm.generate_until([asked(context, options) for context in contexts], disable_tqdm=True)


# ---------------------------------------------------------------------------------------------
# What a continuation costs


def rows(lm: FairwayLM, ids: list[int]) -> np.ndarray:
    """Return log p of all tokens behind each of these, by the plain model on a whole window."""
    length = lm.model.score_config.seq_len
    padded = torch.tensor([ids + [0] * (length - len(ids))])
    with torch.no_grad():
        logits = lm.model.model.logits(lm.model.model.hidden(padded)[0, : len(ids)])
    return np.asarray(logits.double().log_softmax(1))


def by_hand(lm: FairwayLM, context: str, text: str) -> tuple[float, bool]:
    """Return the answer by the rule as docs/api.md has it, one token after another."""
    own, packer = lm.model, lm.model.packer
    length, stride = own.score_config.seq_len, own.score_config.stride
    ids = [own.tokenizer.bos_id, *packer.document(context + text).tolist()]
    before = len(context.encode())
    chosen = [
        place
        for place in range(1, len(ids))
        if len(packer.unpack_document(np.array(ids[1 : place + 1]))) > before
        or len(packer.unpack_document(np.array(ids[1:place], np.int64))) >= before
    ]
    nats, greedy = 0.0, True
    known: dict[int, np.ndarray] = {}
    for place in chosen if text else []:
        if len(chosen) <= length:
            start = max(0, len(ids) - 1 - length)
        else:
            # The first of the windows 0.., stride.., 2 stride.. that reaches this place.
            start = max(0, -(-(place - length) // stride)) * stride
        if start not in known:
            known[start] = rows(lm, ids[start : start + length])
        row = known[start][place - 1 - start]
        nats += float(row[ids[place]])
        greedy = greedy and int(row.argmax()) == ids[place]
    return nats, greedy


PLAIN = [
    ("The model learns", " a token."),
    ("The model learns", " a token. It was the text that every byte is in."),
    ("The model learns a", " token"),
    ("It was the text that", " every byte is in."),
    ("", "The model learns"),
    ("", "a"),
    ("The", " model"),
    ("The model predicts a small token.\nIt", " was"),
    ("1 2 3", " 4"),
    ("na\u00efve", " r\u00e9sum\u00e9"),
    ("\u4f60\u597d", "\u4e16\u754c"),
    ("The", " \U0001f600"),
    ("", "\U0001f600\U0001f600"),
    ("The\r\nmodel", "\r\nlearns"),
    ("a\tb", "\tc"),
    ("The  model", "  learns"),
    ("\x00", "\x00\x01"),
    ("The model", "\nlearns"),
    ("The model\n", "learns"),
]
AWKWARD = [
    ("The model", ""),
    ("", ""),
    ("The model ", ""),
    ("\n", ""),
    ("The model", "\n"),
    ("The model", "\n\n"),
    ("The model", " "),
    ("The model", "\t"),
    ("The model", "\r\n"),
    ("The model", "\u00a0"),
    ("The model", "\u3000"),
    ("The model", "  \n  "),
    ("", "\n"),
    ("", " "),
    ("", "   "),
    ("", " The model"),
    ("", "\nThe model\n"),
    (" ", "The model"),
    (" ", " "),
    ("  ", "The"),
    ("\n", "\n"),
    ("\n\nThe model", " learns"),
    ("The model ", "learns"),
    ("The model  ", "learns"),
    ("The model \n", " learns "),
    ("The mod", "el learns"),
    ("The t", "oken"),
    ("The", "re"),
    ("na", "\u00efve"),
    ("e", "\u0301"),
    ("\ufb01", "\ufb01"),
    ("The", "\u2581model"),
    ("\u2581", "\u2581"),
    ("The\u200b", "\u200bmodel"),
    ("\ufeffThe", " model"),
    ("\u0e2a\u0e27\u0e31\u0e2a", "\u0e14\u0e35"),
    ("<s>", "</s><pad><unk><0x0A>"),
    ("The\u2028", "\u0085model"),
    ("\x1b[31m", "\x07"),
    ("\ufffd", "\ufffd"),
]
LARGE = [
    (LONG, "It was"),
    (LONG, " "),
    (LONG, ""),
    (LONG, LONG),
    ("", LONG),
    ("The", LONGER),
    (LONGER, LONGER),
    (LONGER, "\n"),
]


@pytest.mark.parametrize(("context", "text"), PLAIN + AWKWARD)
def test_a_continuation_costs_its_tokens(lm: FairwayLM, context: str, text: str) -> None:
    [(nats, greedy)] = loglikelihood(lm, (context, text))
    expected = by_hand(lm, context, text)
    assert nats == pytest.approx(expected[0], **CLOSE)
    assert greedy == expected[1]
    assert (nats == 0.0) == (text == "")


@pytest.mark.parametrize("number", range(len(LARGE)))
def test_beyond_the_window_nothing_is_cut(lm: FairwayLM, number: int) -> None:
    context, text = LARGE[number]
    assert len(lm.model.packer.document(context + text)) > lm.max_length
    [(nats, _)] = loglikelihood(lm, (context, text))
    assert nats == pytest.approx(by_hand(lm, context, text)[0], **CLOSE)


def test_at_least_forty_awkward_pairs() -> None:
    pairs = PLAIN + AWKWARD + LARGE
    assert len(set(pairs)) == len(pairs) >= 60 and len(AWKWARD) >= 40


@pytest.mark.parametrize(("context", "text"), [*PLAIN[:4], *PLAIN[6:12], *AWKWARD[28:31]])
def test_costs_are_those_of_logprobs(lm: FairwayLM, context: str, text: str) -> None:
    own = lm.model
    costs = own.logprobs(context + text)
    count = len(costs) - len(own.packer.document(context))
    assert loglikelihood(lm, (context, text))[0][0] == pytest.approx(costs[-count:].sum(), **CLOSE)


def test_a_long_continuation_costs_what_logprobs_says(lm: FairwayLM) -> None:
    text = LONGER.strip()
    costs = lm.model.logprobs(text)
    assert len(costs) > 2 * lm.max_length
    context = "It was the text"
    start = len(lm.model.packer.document(context))
    [(whole, _), (rest, _)] = loglikelihood(lm, ("", text), (context, text[len(context) :]))
    assert whole == pytest.approx(costs.sum(), **CLOSE)
    assert rest == pytest.approx(costs[start:].sum(), **CLOSE)
    assert rolling(lm, text) == pytest.approx([costs.sum()], **CLOSE)


def test_greedy_is_what_greedy_decoding_writes(lm: FairwayLM) -> None:
    for context in ("The model", "It", LONG):
        [written] = generate(lm, {"max_gen_toks": 1}, context)
        [(_, right), (_, wrong)] = loglikelihood(lm, (context, written), (context, written + "x"))
        ids = lm.model.packer.document(context + written)
        joined = len(ids) == len(lm.model.packer.document(context)) + 1
        assert not joined or right
        assert not wrong or written == ""


@pytest.mark.long
def test_answers_do_not_depend_on_what_is_asked_beside(smoke_run: Path, lm: FairwayLM) -> None:
    pairs = PLAIN + AWKWARD + LARGE
    together = loglikelihood(lm, *pairs)
    assert loglikelihood(lm, *pairs[::-1]) == pytest.approx(np.array(together[::-1]), **CLOSE)
    few = PLAIN + AWKWARD[:10] + LARGE[:3]
    wanted = np.array(loglikelihood(lm, *few))
    for size in (1, 3, "7"):
        other = FairwayLM(str(smoke_run), batch_size=size, **FIXED)
        assert np.array(loglikelihood(other, *few)) == pytest.approx(wanted, **CLOSE)
    texts = [context + text for context, text in pairs]
    assert rolling(lm, *texts) == pytest.approx([rolling(lm, text)[0] for text in texts], **CLOSE)


def test_requests_share_passes(lm: FairwayLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    states = lm.model.model.states

    def counted(x_BTD: torch.Tensor, rope: Any) -> torch.Tensor:
        sizes.append(len(x_BTD))
        return states(x_BTD, rope)

    monkeypatch.setattr(lm.model.model, "states", counted)
    loglikelihood(lm, *PLAIN)
    assert sum(sizes) == len(PLAIN) and len(sizes) == 2


# ---------------------------------------------------------------------------------------------
# Whole texts


@pytest.mark.parametrize("text", ["", *(text for _, text in AWKWARD[:20] if text), LONG])
def test_a_whole_text_costs_every_byte(lm: FairwayLM, text: str) -> None:
    [nats] = rolling(lm, text)
    # A text of blanks alone says nothing, and costs nothing.
    assert nats == pytest.approx(by_hand(lm, "", text if text.strip() else "")[0], **CLOSE)
    ids = lm.model.packer.document(text)
    assert lm.model.packer.unpack_document(ids) == text.encode()


def test_texts_of_other_bytes_have_other_costs(lm: FairwayLM) -> None:
    inside = ["\n", "\r\n", "\r", "\n\n", " ", "  ", "\t", "\u2028"]
    outside = [" The model", "The model ", "The model\n", "The model\r\n", "\nThe model"]
    texts = [*(f"The{blanks}model" for blanks in inside), *outside]
    costs = rolling(lm, *texts)
    assert len({round(cost, 6) for cost in costs}) == len(texts)


# ---------------------------------------------------------------------------------------------
# Texts written


def test_texts_are_those_that_generate_writes(lm: FairwayLM) -> None:
    contexts = ["", "The", "The model ", "It was\n", LONG, LONGER, "The"]
    written = generate(lm, {"max_gen_toks": 20, "until": []}, *contexts)
    alone = [lm.model.generate(text, max_tokens=20, temperature=0) for text in contexts]
    assert written == alone
    assert any(alone)


@pytest.fixture
def said(lm: FairwayLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make the model say one text, whatever is asked."""
    text = "one two\n\nthree \u20ac Q: four"
    ids = [*lm.model.packer.pack(text.encode()).tolist(), lm.model.tokenizer.bos_id]
    place = iter(ids)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(place)]), 300).float() * 1e4

    monkeypatch.setattr(lm.model.model, "logits", logits)
    yield text


@pytest.mark.parametrize(
    ("until", "left"),
    [
        (None, "one two\n\nthree \u20ac Q: four"),
        ([], "one two\n\nthree \u20ac Q: four"),
        ("", "one two\n\nthree \u20ac Q: four"),
        (["", "five"], "one two\n\nthree \u20ac Q: four"),
        ("two", "one "),
        (["two"], "one "),
        ("\n\n", "one two"),
        (("Q:", "three"), "one two\n\n"),
        (["three", "e two"], "on"),
        ("\u20ac", "one two\n\nthree "),
        (["ree \u20ac Q"], "one two\n\nth"),
        (["o", "on"], ""),
        (["four"], "one two\n\nthree \u20ac Q: "),
    ],
)
def test_a_text_ends_before_the_first_stop(lm: FairwayLM, said: str, until: Any, left: str) -> None:
    assert generate(lm, {"until": until}, "The") == [left]


def test_what_is_no_character_may_be_a_stop(lm: FairwayLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter([*lm.model.packer.pack(b"one \xff\xe2\x82 two").tolist(), lm.model.tokenizer.bos_id])

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(ids)]), 300).float() * 1e4

    monkeypatch.setattr(lm.model.model, "logits", logits)
    assert generate(lm, {"until": ["\ufffd"]}, "The") == ["one "]


def test_no_stop_is_needed(lm: FairwayLM, said: str) -> None:
    assert generate(lm, {}, "The") == [said]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_the_length_is_bounded(lm: FairwayLM, said: str, name: str) -> None:
    assert generate(lm, {name: 3}, "The") == [
        lm.model.packer.unpack(lm.model.packer.pack(said.encode())[:3]).decode()
    ]


def test_the_bound_of_the_model_holds_where_a_task_has_none(smoke_run: Path, lm: FairwayLM) -> None:
    short = FairwayLM(str(smoke_run), max_gen_toks=4, **FIXED)
    assert generate(short, {}, "The") == generate(lm, {"max_gen_toks": 4}, "The")
    assert generate(short, {"max_gen_toks": 0}, "The") == [""]


def test_do_sample_draws(smoke_run: Path, lm: FairwayLM) -> None:
    greedy = generate(lm, {"max_gen_toks": 8}, "The")
    same = [
        {"do_sample": False, "temperature": 9.0},
        {"do_sample": False, "top_p": 0.5},
        {"do_sample": True, "temperature": 0},
        {"temperature": 0.0},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 0.0},
        {"do_sample": True, "temperature": 1e-38},
        {"do_sample": None, "temperature": None, "until": None, "top_k": None},
    ]
    for options in same:
        assert generate(lm, {"max_gen_toks": 8, **options}, "The") == greedy
    for options in ({"do_sample": True}, {"temperature": 1.5}, {"do_sample": True, "top_k": 0}):
        wish = {"max_gen_toks": 8, **options}
        drawn = generate(lm, wish, "The", "It", "The", "The")
        assert drawn != 4 * greedy
        # Repeated requests differ, and the same evaluation gives the same texts.
        assert len({drawn[0], drawn[2], drawn[3]}) == 3
        assert generate(lm, wish, "The", "The", "The", "It") == [*drawn[:1], *drawn[2:], drawn[1]]
    seeds = [FairwayLM(str(smoke_run), seed=seed, **FIXED) for seed in (1, 1, 2)]
    one, again, other = (
        generate(lm, {"do_sample": True, "max_gen_toks": 8}, "The") for lm in seeds
    )
    assert one == again != other


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"untill": ["a"]}, "unknown generation setting 'untill'; did you mean 'until'?"),
        ({"num_beams": 4}, "unknown generation setting 'num_beams'; "),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number of 0 or more"),
        ({"temperature": -1}, "temperature is -1; it must be a number of 0 or more"),
        ({"temperature": math.nan}, "temperature is nan; it must be"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it must be true or false"),
        ({"do_sample": 1}, "do_sample is 1; it must be true or false"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number of 1 or more"),
        ({"top_p": 2}, "top_p is 2; it must be a number from 0 to 1"),
        ({"max_gen_toks": -1}, "max_gen_toks is -1; it must be a whole number of 0 or more"),
        ({"max_gen_toks": 2.5}, "max_gen_toks is 2.5; it must be"),
        ({"max_new_tokens": "x"}, "max_new_tokens is 'x'; it must be a whole number"),
        ({"max_gen_toks": 1, "max_tokens": 2}, "max_gen_toks and max_tokens name one bound"),
        ({"until": 5}, "until is 5; it must be text"),
        ({"until": [None]}, "until is None; it must be text"),
        ({"until": ["\ud800"]}, "until has half a character"),
        ({7: 1}, "unknown generation setting '7'"),
        ("until", "generation settings are 'until'; they must be names = values"),
        (None, "generation settings are None; they must be"),
    ],
)
def test_wishes_that_cannot_be_met(lm: FairwayLM, options: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(lm, options, "The")
    assert str(caught.value).startswith(told)


def test_texts_that_are_none(lm: FairwayLM) -> None:
    for odd in ("a\ud800", "\udcff"):
        for ask in (lambda odd=odd: loglikelihood(lm, (odd, "a")), lambda odd=odd: rolling(lm, odd),
                    lambda odd=odd: loglikelihood(lm, ("a", odd)),
                    lambda odd=odd: generate(lm, {}, odd)):  # fmt: skip
            with pytest.raises(UserError, match="half a character"):
                ask()
    for odd in (None, 5, b"a", ["a"]):
        with pytest.raises(UserError, match="must be text"):
            loglikelihood(lm, ("a", odd))
        with pytest.raises(UserError, match="must be text"):
            rolling(lm, odd)
        with pytest.raises(UserError, match="must be text"):
            generate(lm, {}, odd)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pretrained": "x"}, "unknown model argument 'pretrained'; "),
        ({"max_lenght": 5}, "unknown model argument 'max_lenght'; did you mean 'max_length'?"),
        ({"device": "mps"}, "device is 'mps'; it must be cpu or cuda"),
        ({"device": "cuda:1"}, "device is 'cuda:1'; it must be cpu or cuda"),
        ({"dtype": "float16"}, "runtime.dtype is 'float16'; choose one of auto, bfloat16, float32"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of 1 or more"),
        ({"batch_size": "auto:4"}, "batch_size is 'auto:4'; it must be a whole number, or auto"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"max_batch_size": -1}, "max_batch_size is -1; it must be a whole number of 1 or more"),
        ({"max_length": 0}, "max_length is 0; it must be a whole number from 1 to 64"),
        ({"max_length": 10**6}, "max_length is 1,000,000; it must be a whole number from 1 to 64"),
        ({"max_gen_toks": -5}, "max_gen_toks is -5; it must be"),
        ({"seed": "x"}, "seed is 'x'; it must be a whole number"),
        ({"threads": -1}, "runtime.threads is -1; it must be between 0 and 1,024"),
        ({"path": ""}, "there is no model; name an artifact or a run: --model_args path=PATH"),
        ({"path": "a\0b"}, "path is 'a\\x00b'; it must be the name of a file"),
        ({"path": "\ud800"}, "path is '\\ud800'; it must be the name of a file"),
        ({"path": 5.5}, "path is 5.5; it must be the name of a file"),
        ({"path": 5}, "the artifact 5 does not exist"),
        ({"tokenizer": "\ud800"}, "tokenizer is '\\ud800'; it must be the name of a file"),
        ({"path": "nowhere"}, "the artifact nowhere does not exist"),
        ({"tokenizer": "nowhere"}, "the tokenizer nowhere does not exist"),
    ],
)
def test_arguments_that_cannot_be_honoured(
    smoke_run: Path, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        FairwayLM.create_from_arg_obj({"path": str(smoke_run), **FIXED, **arguments}, {})
    assert str(caught.value).startswith(told)


def test_arguments_have_an_effect(smoke_run: Path, lm: FairwayLM) -> None:
    made = FairwayLM.create_from_arg_string(
        f"path={smoke_run},threads=1,dtype=float32,matmul=highest,max_length=16,max_gen_toks=3",
        {"batch_size": 2, "max_batch_size": None, "device": "cpu"},
    )
    assert (made.batch_size, made.max_length, made.max_gen_toks) == (2, 16, 3)
    assert made.device == torch.device("cpu") and (made.rank, made.world_size) == (0, 1)
    [(short, _)], [(whole, _)] = (loglikelihood(m, (LONG, "The model")) for m in (made, lm))
    assert short != pytest.approx(whole, abs=1e-6)
    window = made.model.packer.document(LONG + "The model")[-17:-1].tolist()
    assert short == pytest.approx(
        sum(rows(lm, window)[-n - 1][token] for n, token in enumerate(
            made.model.packer.document(LONG + "The model")[::-1][:count(lm, LONG, "The model")])),
        **CLOSE,
    )  # fmt: skip
    wide = FairwayLM(str(smoke_run), dtype="bfloat16", threads=1)
    assert loglikelihood(wide, (LONG, "The model"))[0][0] not in (short, whole)
    capped = FairwayLM(str(smoke_run), batch_size=8, max_batch_size=2, **FIXED)
    assert capped.batch_size == 2
    assert FairwayLM(str(smoke_run), max_batch_size=3, device="auto", **FIXED).batch_size == 3


def count(lm: FairwayLM, context: str, text: str) -> int:
    document = lm.model.packer.document
    return len(document(context + text)) - len(document(context))


def test_there_is_no_chat_template(lm: FairwayLM) -> None:
    assert lm.chat_template() == lm.chat_template(False) == ""
    for call in (lambda: lm.chat_template(True), lambda: lm.apply_chat_template([])):
        with pytest.raises(UserError, match="an artifact has no chat template; leave out"):
            call()
    assert lm.model.tokenizer.digest in lm.tokenizer_name
