"""The loops of the mixture on a small vocabulary: bounds by hand, sums by brute force, figures.

What is coded with these loops must be decoded by them years later, so their figures are pinned.
"""

import copy
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch

from fairway.config.settings import MixtureConfig
from fairway.data.tokens import ByteTable, Tokenizer
from fairway.score.experts import mixing, ppm
from fairway.score.experts.mixture import Helpers, experts_of

PIECES = [
    b"", b"", b"a", b"b", b"c", b" ", b" a", b" ab", b" abc", b"ab", b"abc", b"bc", b"ca", b" b",
    b" bca", b"cab", b"abcab", b"a", b"bb",
]  # fmt: skip
V, BOS = len(PIECES), 1
Changes = dict[str, Any]


def vocabulary() -> Tokenizer:
    """Return what experts read of a tokenizer."""
    leading = np.array([piece.startswith(b" ") for piece in PIECES])
    boundary = np.array([not piece for piece in PIECES])
    base = np.array([len(piece) - space for piece, space in zip(PIECES, leading, strict=True)])
    made = SimpleNamespace(
        piece_bytes=PIECES, table=ByteTable(base.astype(np.int16), leading, boundary), bos_id=BOS
    )
    return cast(Tokenizer, made)


def helpers(tokens: int = 40, **changes: Any) -> Helpers:
    changes = {"memory_mb": 8, "match_min": 4, "tilt_bits": 10, **changes}
    with tiny.tuned(changes):
        return Helpers(vocabulary(), MixtureConfig(**changes), tokens)


def source() -> np.ndarray:
    """Return two documents in which phrases come again and break off."""
    draw = np.random.default_rng(1)
    phrase = [6, 11, 13, 4, 16, 8, 3, 3, 12, 7]
    other = draw.integers(2, V, 12).tolist()
    ids = [BOS, *phrase, *other, *phrase, 2, 17, *phrase[:7], 9, BOS, *phrase, 14, *phrase]
    return np.array([*ids, 0, 5, *other, *phrase, 10, *[16] * 4, *[16] * 4])


def model(count: int) -> torch.Tensor:
    """Return log-probabilities of some positions, the more peaked the later."""
    logits = np.random.default_rng(5).normal(0, 1, (count, V)) * np.linspace(0.5, 6, count)[:, None]
    return torch.from_numpy(logits).log_softmax(-1)


def costs(found: Helpers, ids: np.ndarray) -> np.ndarray:
    return found.start(model(len(ids) - 1), ids[1:], ids[:-1])()


# fmt: off
CONFIGS: list[tuple[Changes, list[float]]] = [
    (
        {"experts": "ppm", "order": 8, "escapes": "C"},
        [442.843871643, 88.7961863504, 8.42950943852, 313.027913031, 280.330832619, 0, 0,
         0, 0, 20, 1, 0, 0],
    ),
    (
        {"experts": "ppm"},
        [449.080829509, 90.3591118253, 9.06525182114, 313.43597019, 281.037044815, 0, 0,
         0, 0, 20, 1, 0, 0],
    ),
    (
        {"experts": "ppm", "variant": "B", "weight": 0.3, "switch": 1.0},
        [267.463880028, 55.3890920218, 2.62403447291, 108, 32.4, 97, 11904, 0, 0, 20, 1, 0, 0],
    ),
    (
        {"experts": "match"},
        [547.78879568, 94.4536777913, 10.698135525, 324, 291.6, 0, 0, 61, 480,
         17.513670932, 1.59108323837, 238, 35],
    ),
    (
        {"experts": "match", "variant": "B", "match_rate": 0.3},
        [509.394321609, 91.5016074716, 8.45300342894, 324, 291.6, 97, 11904, 61, 480,
         10.3922058672, 11.7467819851, 238, 35],
    ),
    (
        {"experts": "ppm match", "switch": 0.1, "match_rate": 0.5},
        [430.125599361, 87.8770104906, 8.68628423112, 315.125482152, 281.634237857, 0, 0,
         61, 480, 16.2803727942, 10.8107642702, 238, 35],
    ),
    (
        {"experts": "ppm match tilt", "variant": "B", "escapes": "C",
         "order": 3, "switch": 0.1},
        [309.866847238, 71.2654731036, 2.82256966676, 315.447060671, 281.765435754, 97,
         11904, 61, 480, 19.5925530349, 1.38132838225, 238, 35],
    ),
    (
        {"experts": "ppm match tilt", "exclusion": False, "switch": 1.0, "weight":
         0.5, "match_min": 6},
        [419.895661562, 75.8582135176, 9.07116810097, 180, 90, 0, 0, 49, 497,
         20.131206418, 1.26171823657, 238, 35],
    ),
    (
        {"experts": "ppm match", "variant": "B", "exclusion": False, "weight": 0.2},
        [264.536392444, 60.1067824132, 1.25121692811, 76.7408090771, 22.2714745214, 97,
         11904, 61, 480, 19.5543522414, 1.11005662064, 238, 35],
    ),
]
# fmt: on
NAMES = [" ".join(map(str, changes.values())) for changes, _ in CONFIGS]


@pytest.mark.parametrize(("changes", "figures"), CONFIGS, ids=NAMES)
def test_costs_and_what_is_learned_are_these_figures(
    changes: Changes, figures: list[float]
) -> None:
    found, ids = helpers(**changes), source()
    nats = costs(found, ids)
    e = found._state
    assert [
        nats.sum(), nats[20:40].sum(), nats[-1], e.weights.sum(), (e.weights**2).sum(),
        e.stops[:, 0].sum(), (e.stops**2).sum(), (e.hits[:, 0] * np.arange(16)).sum(),
        (e.hits[:, 1] * np.arange(16)).sum(), e.gains.sum(), (e.gains[:, 1] ** 2).sum(),
        float(e.follow[1]), float(e.follow[2]),
    ] == pytest.approx(figures, rel=1e-9, abs=1e-12)  # fmt: skip


@pytest.mark.parametrize("at", [3, 36, 61])
@pytest.mark.parametrize(("changes", "_"), CONFIGS, ids=NAMES)
def test_every_next_token_together_makes_one(changes: Changes, _: Any, at: int) -> None:
    """Each token is tried in turn from the same state, by the loops that charge for it."""
    found, ids = helpers(**changes), source()
    table = model(len(ids) - 1)
    if at > 0:
        found.start(table[:at], ids[1 : at + 1], ids[:at])()
    tried = [
        float(copy.deepcopy(found).start(table[at : at + 1], np.array([v]), ids[at : at + 1])()[0])
        for v in range(V)
    ]
    assert math.fsum(np.exp(-np.array(tried))) == pytest.approx(1.0, abs=1e-12)
    assert max(tried) < math.inf and min(tried) > 0.0
    row = found.row(table[at].numpy(), int(ids[at]))
    assert -row == pytest.approx(tried, rel=1e-9)


def test_parts_of_a_text_give_what_the_whole_gives() -> None:
    ids = source()
    for changes, _ in CONFIGS:
        found, table = helpers(**changes), model(len(ids) - 1)
        parts = [
            found.start(table[a:b], ids[a + 1 : b + 1], ids[a:b])()
            for a, b in ((0, 1), (1, 3), (3, 40), (40, len(ids) - 1))
        ]
        assert np.concatenate(parts).tolist() == costs(helpers(**changes), ids).tolist()


def test_a_tilted_model_alone_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all weight on the model, every token as a hint in turn, and none."""
    config: Changes = {"experts": "ppm tilt", "weight": 1.0}
    ids = source()[:45]
    count = len(ids) - 1
    token, gain = np.arange(count) % (V + 1) - 1, np.linspace(0.1, 9.0, count)
    token[::4] = ids[1::4]
    token[5::9] = -1
    found = helpers(**config)
    assert found.tilt is not None
    monkeypatch.setattr(found.tilt, "read", lambda _: mixing.Hints(token, gain))
    nats = found.start(model(count), ids[1:], ids[:-1])()
    p = model(count).exp().numpy()
    added = np.where(token >= 0, p[np.arange(count), token] * gain, 0.0)
    tilted = p[np.arange(count), ids[1:]] + np.where(token == ids[1:], added, 0.0)
    assert nats == pytest.approx(-np.log(tilted / (1 + added)), rel=1e-9)
    assert (token == 0).any() and (token == -1).any()


# ---------------------------------------------------------------------------------------------
# Repeats


def experts(text: bytes = b"", **changes: Any) -> mixing.Experts:
    """Return experts that have heard some bytes."""
    changes = {"experts": "match ppm", "match_min": 4, "memory_mb": 8, **changes}
    with tiny.tuned(changes):
        made = experts_of(MixtureConfig(**changes), 8, 1000)
    for symbol in text:
        mixing.heard(made, symbol)
    return made


@pytest.mark.parametrize(
    ("text", "place", "length"),
    [
        (b"abcdXabc", None, 0),
        (b"abcdXabcd", 4, 4),
        (b"abcdXabcdX", 5, 5),
        (b"abcdXabcdY", None, 0),
        (b"zabcdXzabcd", 5, 5),
        (b"abc" * 3, 6, 6),
        (b"abcd" * 3 + b"abc", 11, 11),
        (bytes(range(40)) + b"x" + bytes(range(40)), 40, 40),
        (b"aaaa", None, 0),
        (b"aaaaa", 4, 4),
    ],
)
def test_a_repeat_is_found_and_followed(text: bytes, place: int | None, length: int) -> None:
    follow = experts(text).follow
    assert (follow[0], follow[2]) == (len(text), length), follow
    assert place is None or follow[1] == place


def test_a_repeat_is_looked_for_by_its_shortest_length_alone() -> None:
    text = b"abcdefgXabcdefg"
    assert experts(text, match_min=7).follow[2] == 7
    assert experts(text, match_min=8).follow[2] == 0
    # The last one of several is followed.
    assert experts(b"abcd1abcd2abcd").follow[1:3].tolist() == [9, 4]


def test_a_repeat_is_told_apart_up_to_400_bytes() -> None:
    assert experts(b"ab" * 300).follow[2] == 400
    assert experts(b"ab" * 200).follow[2] == 398
    # Found in the middle of a long one: 32 bytes are compared.
    text = bytes(range(60))
    e = experts(text + b"\xff" + text[:40])
    assert e.follow[2] == 40
    e.follow[2] = 0
    mixing.heard(e, 40)
    assert e.follow[1:3].tolist() == [41, 32]


@pytest.mark.parametrize(
    ("shortest", "places", "lengths", "follow", "heads"),
    [
        (4, 176_068, 270, [600, 582, 0, 2_216_457], 119_930),
        (7, 165_072, 96, [600, 582, 0, 2_616_857], 494_189),
        (11, 147_930, 0, [600, 334, 0, 1_388_525], 1_052_386),
    ],
)
def test_a_full_table_of_repeats_forgets_as_its_hash_says(
    shortest: int, places: int, lengths: int, follow: list[int], heads: int
) -> None:
    """Which of two strings a place keeps decides what is found: 64 places for 600 bytes."""
    e = experts(match_min=shortest)._replace(heads=np.zeros(64, np.int32))
    found = np.zeros(2, np.int64)
    for symbol in np.random.default_rng(3).integers(0, 3, 600) * 100:
        mixing.heard(e, int(symbol))
        found += e.follow[1:3]
    assert (found.tolist(), e.follow.tolist()) == ([places, lengths], follow)
    assert int((e.heads.astype(np.int64) * np.arange(64)).sum()) == heads


def test_lengths_in_buckets() -> None:
    e = experts()
    lengths = [4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 20, 36, 68, 132, 196, 260, 400]
    found = [mixing.length_bucket(e, length) for length in lengths]
    assert found == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8, 10, 12, 14, 15, 15, 15]


def test_the_share_of_a_repeat_by_hand() -> None:
    e = experts()
    e.hits[3] = 2.0, 5.0
    e.gains[3] = 0.5, 0.75
    own = 5.5 / 8.0
    stretched = 0.5 * math.log(0.2 / 0.8) + 0.75 * math.log(own / (1 - own))
    kept = 1 / (1 + math.exp(-stretched))
    assert mixing.kept_share(e, 3, 0.2) == pytest.approx(kept, rel=1e-12)
    for hit in (0, 1):
        e = experts()
        e.hits[3], e.gains[3] = (2.0, 5.0), (0.5, 0.75)
        mixing._learn_repeat(e, 3, 0.2, hit)
        error = 0.02 * (hit - kept)
        assert e.gains[3].tolist() == pytest.approx(
            [0.5 + error * math.log(0.25), 0.75 + error * math.log(own / (1 - own))], rel=1e-12
        )
        assert e.hits[3].tolist() == [2.0 + (hit == 0), 5.0 + (hit == 1)]
        assert e.hits[2].tolist() == [0.0, 0.0] and e.gains[2].tolist() == [1.0, 0.25]


def test_nothing_is_surer_than_30_nats_nor_stretched_beyond_a_millionth() -> None:
    e = experts()
    edge = math.log(1e-6 / (1 - 1e-6))
    assert mixing._stretch(0.0) == mixing._stretch(1e-7) == pytest.approx(edge, rel=1e-12)
    assert mixing._stretch(1.0) == mixing._stretch(1 - 1e-7) == pytest.approx(-edge, rel=1e-9)
    assert mixing._stretch(2e-6) == pytest.approx(math.log(2e-6 / (1 - 2e-6)), rel=1e-12)
    assert mixing._stretch(0.5) == 0.0
    for gain, sum_ in (
        (2.1, 2.1),
        (2.17, 2.17),
        (2.18, 30 / -edge),
        (9.0, 30 / -edge),
        (-9.0, 30 / edge),
    ):
        e.gains[0] = gain, 0.0
        found = mixing.kept_share(e, 0, 1.0)
        assert found == pytest.approx(1 / (1 + math.exp(sum_ * edge)), rel=1e-9)
        # What is left for other bytes is never nothing.
        assert 1 - found == pytest.approx(1 / (1 + math.exp(-sum_ * edge)), rel=1e-2, abs=0)


@pytest.mark.parametrize(
    ("before", "hit", "expected"),
    [
        (1 - 1e-6, True, (0.25, -1.0)),
        (1 - 1e-7, False, (0.25, -1.0)),
        (0.4, True, (0.5 * 0.3, 2.4)),
        (0.4, False, (0.25 * 0.7 / 0.6, 0.4)),
    ],
)
def test_a_repeat_speaks_unless_the_model_is_sure(
    before: float, hit: bool, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "kept_share", lambda *_: 0.3)
    speak = getattr(mixing._with_repeat, "py_func", mixing._with_repeat)
    assert speak(experts(), 2, before, hit, 0.5, 0.25) == pytest.approx(expected)
    assert mixing.SURE == 1 - 1e-6


# ---------------------------------------------------------------------------------------------
# One node


def test_buckets_of_nodes_by_hand() -> None:
    assert mixing.BUCKETS == 360
    assert mixing.weight_bucket(0, -1, 0.0) == 0
    assert mixing.weight_bucket(0, 0, 0.0) == 12
    assert mixing.weight_bucket(1, 2, 0.5) == 1 * 120 + 3 * 12 + 6
    assert mixing.weight_bucket(2, 8, 1.0) == mixing.weight_bucket(9, 8, 1.0) == 359
    assert mixing.weight_bucket(0, -1, 0.99) == 11
    assert mixing.weight_bucket(0, -1, 0.08) == 0


def test_a_weight_moves_to_who_was_right_and_a_little_back() -> None:
    e = experts(weight=0.8, switch=0.25)
    mixing._learn_weight(e, 4, 0.5, 0.1)
    assert e.weights[4] == pytest.approx(0.75 * (0.4 / 0.42) + 0.25 * 0.8, rel=1e-12)
    assert e.weights[3] == e.weights[5] == 0.8


def test_how_often_tokens_end_somewhere_by_hand() -> None:
    found = helpers(experts="ppm", variant="B")
    trie, e = found.tries.trie, found._state
    names = [*found.tries.trees[0].names, *found.tries.trees[1].names]
    where = {name: n for n, name in reversed(list(enumerate(names)))}
    root, ab, abc = where[b""], where[b"ab"], where[b" bc"]
    assert mixing.ends_here(e, trie, root) == 0.01, "control tokens end at the root"
    assert mixing.ends_here(e, trie, ab) == 0.5
    assert mixing.ends_here(e, trie, abc) == 0.0, "no token ends there"
    assert mixing.ends_here(e, trie, where[b"abcab"]) == 1.0, "nothing goes on from there"
    e.stops[ab], e.stops[root] = (3.0, 1.0), (1.0, 7.0)
    assert mixing.ends_here(e, trie, ab) == pytest.approx((3 + 2 * 0.5) / 6)
    assert mixing.ends_here(e, trie, root) == pytest.approx((1 + 2 * 0.01) / 10)


def test_children_and_paths() -> None:
    found = helpers(experts="ppm")
    trie, names = found.tries.trie, found.tries.trees[0].names
    where = {name: n for n, name in enumerate(names)}
    for name, node in where.items():
        for symbol in b"abc d\xff":
            child = where.get(name + bytes([symbol]), -1)
            assert mixing.child_of(trie, node, symbol) == child
        out = np.full(9, -7)
        assert mixing._path(trie, node, out) == len(name)
        assert out[: len(name) + 1].tolist() == [where[name[:n]] for n in range(len(name) + 1)]
        assert (out[len(name) + 1 :] == -7).all()


@pytest.mark.parametrize("exclusion", [True, False])
def test_shares_of_children_sum_to_one(exclusion: bool) -> None:
    found = helpers(experts="ppm", exclusion=exclusion)
    costs(found, source())
    trie, e, row = found.tries.trie, found._state, np.empty(256)
    for node in range(len(found.tries.trees[0].names)):
        children = [s for s in range(256) if mixing.child_of(trie, node, s) >= 0]
        given = [mixing.ppm_share(e, trie, node, e.past, s, row) for s in children]
        assert not children or math.fsum(g[0] for g in given) == pytest.approx(1.0, abs=1e-12)
        if len(children) == 1:
            assert given == [(1.0, 1.0, -1)]
    assert ppm.room(e.words).forgone == 0


# ---------------------------------------------------------------------------------------------
# Hints, repeats and ends of documents together


@pytest.mark.parametrize("variant", ["A", "B"])
def test_hints_along_a_repeat_leave_sums_at_one(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token in turn, where the hint may share its first bytes with the repeat."""
    found, ids, at = helpers(experts="ppm match tilt", variant=variant), source(), 60
    table = model(len(ids) - 1)
    found.start(table[:at], ids[1 : at + 1], ids[:at])()
    follow = found._state.follow
    assert follow[2] > 0 and found.tilt is not None
    expected = bytes(found._state.text[follow[1] : follow[1] + 2])
    hints = [v for v in range(V) if PIECES[v][:1] == expected[:1]]
    assert len(hints) > 2
    for hint in [*hints, 4]:
        read = mixing.Hints(np.array([hint]), np.array([3.0]))
        monkeypatch.setattr(found.tilt, "read", lambda _, read=read: read)
        tried = [
            copy.deepcopy(found).start(table[at : at + 1], np.array([v]), ids[at : at + 1])()[0]
            for v in range(V)
        ]
        assert math.fsum(np.exp(-np.array(tried))) == pytest.approx(1.0, abs=1e-12), hint


def test_a_repeat_goes_on_after_a_document() -> None:
    phrase = [6, 11, 13, 4, 16, 8]
    ids = np.array([BOS, *phrase, 3, 5, *phrase[:4], BOS])
    found = helpers(experts="match")
    costs(found, ids)
    assert found._state.follow[2] > 0


def test_a_place_of_other_bytes_is_no_repeat() -> None:
    found = helpers(experts="match")
    found._state = found._state._replace(heads=np.zeros(4, np.int32))
    assert costs(found, source()).sum() == pytest.approx(587.3736282617, rel=1e-9)
