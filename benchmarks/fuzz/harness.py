"""Requests of lm-evaluation-harness: any texts, odd settings, odd arguments of the model."""

import dataclasses
import json
import math
import random
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from everywhere import documents
from specimens import PROVENANCE, PUNY, quantised

from fairway.base.files import read_json
from fairway.config.settings import PackConfig, ScoreConfig
from fairway.config.written import to_dict
from fairway.data.build import build_data
from fairway.data.folder import DataFolder
from fairway.harness import FairwayLM
from fairway.pack.artifact import save_artifact

from . import Case, Files

REQUEST = "request.json"
LENGTH, STRIDE = 48, 16
_FIXED: dict[str, Any] = {"threads": 1, "dtype": "float32", "matmul": "highest"}
_PIECES = (
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x00", "\x1b[2J", "\u2581"),
    *("The model", " learns a token.", "the", "1 2 3", "\u4f60\u597d", "\u0e2a\u0e27", "\ufb01"),
    *("e\u0301", "\U0001f600", "\ufffd", "\ufeff", "\u200b", "<s>", "</s>", "<0x0A>", "Q: ", "A:"),
)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 17, 2**63, 0.5, -0.5, 1e-38, 5e-324, 1e308, math.inf),
    *(math.nan, "", "x", "auto", "5", "\ud800", "a\0b", [], ["x", ""], {}, [None], [["a"]]),
)
_SETTINGS = (
    *("until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks", "max_tokens"),
    *("num_beams", "", "untill", "\ud800"),
)
_ARGUMENTS = (
    *("batch_size", "max_batch_size", "max_length", "max_gen_toks", "seed", "device", "dtype"),
    *("threads", "tokenizer", "pretrained", "path", "kernels", "attention", "matmul", ""),
)


class Requests:
    """Requests of the three kinds, and models made with arguments."""

    name = "request"

    def specimens(self) -> list[Files]:
        """Return a request of each kind."""
        texts = {"context": "The model", "text": " learns a token."}
        options = {"until": ["\n"], "max_gen_toks": 5}
        kinds = ("loglikelihood", "loglikelihood_rolling", "generate_until", "arguments")
        return [
            {REQUEST: json.dumps({"kind": kind, **texts, "options": options, "given": {}}).encode()}
            for kind in kinds
        ]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Write other texts, settings and arguments."""
        request = json.loads(files[REQUEST])
        for name in ("context", "text"):
            request[name] = _text(rng)
        if rng.random() < 0.03:
            request[rng.choice(("context", "text"))] = rng.choice(_ODD)
        for _ in range(rng.randrange(3)):
            name = rng.choice(_SETTINGS)
            bounded = name in ("max_gen_toks", "max_tokens")
            # How many tokens a task asks for is its own affair.
            values = tuple(v for v in _ODD if type(v) is not int or v < 99) if bounded else _ODD
            request["options"][name] = rng.choice(values)
        if rng.random() < 0.3:
            request["options"]["until"] = [_text(rng)[:3] for _ in range(rng.randrange(3))]
        if request["kind"] == "arguments":
            name = rng.choice(_ARGUMENTS)
            # Where arithmetic is left open, the machine is measured: 2 s and 130 MB by design.
            measured = name in _FIXED
            values = tuple(v for v in _ODD if not (measured and v in (0, "auto")))
            request["given"] = {name: rng.choice(values)}
        return Case({REQUEST: json.dumps(request).encode()}, True, request["kind"])

    def read(self, folder: Path) -> Any:
        """Return what the adapter answers."""
        request = read_json(folder / REQUEST)
        lm = _model()
        if request["kind"] == "arguments":
            given = {"path": _artifact(), **_FIXED, **request["given"]}
            FairwayLM.create_from_arg_obj(given, {})
            return None
        asked = {
            "loglikelihood": (request["context"], request["text"]),
            "loglikelihood_rolling": (request["text"],),
            "generate_until": (request["context"], request["options"]),
        }[request["kind"]]
        # The second stands beside the first in one pass; it is the answer's own check.
        other = ("beside", *asked[1:]) if len(asked) == 2 else ("beside",)
        requests = [SimpleNamespace(args=args) for args in (asked, other)]
        return getattr(lm, request["kind"])(requests, disable_tqdm=True)[0]

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the plain model, a window and a token at a time."""
        data = case.changes.get(REQUEST, files[REQUEST])
        assert isinstance(data, bytes)
        request = json.loads(data)
        if request["kind"] == "arguments":
            return ""
        if request["kind"] == "generate_until":
            return _wrong_text(request["context"], request["options"], found)
        if request["kind"] == "loglikelihood":
            nats, greedy = by_hand(_model(), request["context"], request["text"])
            return "" if _close(found[0], nats) and found[1] == greedy else f"{nats}, not {found}"
        # A text of blanks alone costs nothing.
        nats, _ = by_hand(_model(), "", request["text"] if request["text"].strip() else "")
        return "" if _close(found, nats) else f"{nats}, not {found}"


def _text(rng: random.Random) -> str:
    count = rng.choice((0, 1, 1, 2, 3, 5, 9, 300)) if rng.random() < 0.2 else rng.randrange(5)
    pieces = []
    for _ in range(count):
        if rng.random() < 0.7:
            pieces.append(rng.choice(_PIECES))
        else:
            pieces.append(chr(rng.choice((rng.randrange(0x80), rng.randrange(0x110000)))))
    return "".join(pieces)


def _close(found: float, nats: float) -> bool:
    return abs(found - nats) <= 1e-4 + 1e-6 * abs(nats)


def _wrong_text(context: str, options: dict[str, Any], found: str) -> str:
    """Compare a greedy text with what `generate` writes, cut at its first stop."""
    lm = _model()
    manner = options.get("temperature") or 0
    drawn = options.get("do_sample") or (options.get("do_sample") is None and manner)
    stops = options.get("until") or []
    stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
    if any(stop in found for stop in stops):
        return f"{found!r} has a stop in it"
    if drawn:
        return ""
    most = next(
        (options[n] for n in ("max_gen_toks", "max_tokens") if options.get(n) is not None), 256
    )
    whole = lm.model.generate(context, max_tokens=most, temperature=0)
    wanted = whole[: min((at for stop in stops if (at := whole.find(stop)) >= 0), default=None)]
    return "" if found == wanted else f"{wanted!r}, not {found!r}"


def by_hand(lm: FairwayLM, context: str, text: str) -> tuple[float, bool]:
    """Return the cost of a continuation by the rule in docs/api.md, and whether it is greedy."""
    own, packer = lm.model, lm.model.packer
    ids = [own.tokenizer.bos_id, *packer.document(context + text).tolist()]
    if packer.unpack_document(np.array(ids[1:], np.int64)) != (context + text).encode():
        raise AssertionError("the tokens stand for another text")
    size, before = 0, len(context.encode())
    chosen = []
    for place in range(1, len(ids)):
        begin, size = size, len(packer.unpack_document(np.array(ids[1 : place + 1])))
        if size > before or begin >= before:
            chosen.append(place)
    nats, greedy, known = 0.0, True, {}
    for place in chosen if text else []:
        if len(chosen) <= LENGTH:
            start = max(0, len(ids) - 1 - LENGTH)
        else:
            start = max(0, -(-(place - LENGTH) // STRIDE)) * STRIDE
        if start not in known:
            known[start] = _rows(lm, ids[start : start + LENGTH])
        row = known[start][place - 1 - start]
        nats += float(row[ids[place]])
        greedy = greedy and int(row.argmax()) == ids[place]
    return nats, greedy


@torch.no_grad()
def _rows(lm: FairwayLM, ids: list[int]) -> np.ndarray:
    padded = torch.tensor([ids + [0] * (LENGTH - len(ids))])
    logits = lm.model.model.logits(lm.model.model.hidden(padded)[0, : len(ids)])
    return np.asarray(logits.double().log_softmax(1))


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def _artifact() -> str:
    """Return an artifact of a tiny model with a tokenizer."""
    place = Path(_place().name)
    build_data(documents(30), place / "data", vocab_size=300, val_share=0.2, shard_tokens=20_000)
    model = dataclasses.replace(PUNY, vocab_size=300)
    score = ScoreConfig(seq_len=LENGTH, stride=STRIDE, check_positions=2)
    save_artifact(
        place / "artifact.fwy",
        quantised(model),
        model,
        PackConfig(with_tokenizer=True),
        DataFolder.open(place / "data").tokenizer,
        PROVENANCE | {"score": to_dict(score)},
    )
    return str(place / "artifact.fwy")


@cache
def _model() -> FairwayLM:
    return FairwayLM(_artifact(), **_FIXED)
