# ruff: noqa: E501 - scripts in one line each
"""Patterns in scripts that are reasons to look: several shapes of each, and what only looks alike."""

import ast
from pathlib import Path

import pytest
from audit.record import SCRIPT, Case

from fairway.audit.records.audit import audit_record
from fairway.audit.records.counts import check_bytes_of_pieces
from fairway.audit.records.native import check_native
from fairway.audit.records.parse import parsed
from fairway.audit.records.syntax import patterns
from fairway.audit.records.trees import Script, Steps


def script(text: str) -> Script:
    tree = parsed(text).tree
    assert tree is not None
    return Script("train_gpt.py", tree, Steps(1_000_000))


def codes(text: str) -> set[str]:
    return {finding.code for finding in patterns(script(text))}


C_GATE = 'SOURCE = """\n#include <math.h>\ndouble mix(double nn_nll, double ppm, double thr) {\n  double lam = 0.9;\n  if (nn_nll < thr) lam = 1.0;\n  return lam * ppm + padding_padding_padding_padding_padding_padding_padding_padding_padding_padding_padding;\n}\n"""\n'
C_EXPERT = """
void hints(const uint16_t *tokens, int n, uint8_t *boundary_lut, uint16_t *hint_out, float *top_prob) {
    for (int i = 0; i < n; ++i) {
        const uint16_t tok = tokens[i];
        const uint8_t is_boundary = boundary_lut[tok];
        if (!is_boundary && len > 0) {
            hint_out[i] = table[hash].top;
            top_prob[i] = 0.5f;
        }
        len = is_boundary ? 0 : len + 1;
    }
}
"""
C_HASH = "uint64_t h = ctx * 31;\nh ^= (uint64_t)target * PRIME;\nuint32_t slot = h & mask;\ncount += full[slot];\n"
C_SPREAD = "int score(double *nll, int *lens) {\n  double lam = 0.9;\n  for (int i = 0; i < n; i++) {\n    double per = -nll[i] / (double)nb;\n    mix(lam, per);\n  }\n}\n"
GUILTY = [
    ("hashed-target", "def key(ctx, target, mask):\n    return ((ctx * 31) ^ (target * 17)) & mask\n"),
    ("hashed-target", "def full_hash(tokens, positions, targets, mask):\n    h = zeros(len(positions))\n    for k in range(3):\n        h ^= tokens[positions - k] * PRIMES[k]\n    h ^= targets.astype(u64) * PRIMES[3]\n    return h & mask\n"),
    ("hashed-target", "def lookup(ctx_hash, tgt_np, size):\n    full_key = ctx_hash ^ (tgt_np * PRIME)\n    bucket = full_key % size\n    return counts[bucket]\n"),
    ("target-gate", "def mixed(nn_logp, ppm):\n    lam = 0.9\n    if nn_logp > -0.277:\n        lam = 1.0\n    return lam\n"),
    ("target-gate", "def blend(p, token_nll, conf):\n    alpha = 0.0 if token_nll < 0.4 else conf\n    return alpha * p\n"),
    ("target-gate", "def blend(p, tok_nll, conf):\n    alpha = np.where(tok_nll < 0.4, 0.0, conf)\n    return alpha * p\n"),
    ("target-gate", C_GATE),
    ("target-expert", "def hints(tokens, starts_new_word, boost):\n    for i, tok in enumerate(tokens):\n        is_start = starts_new_word[tok]\n        if is_start and len(words) > 2:\n            hint[i] = best[words]\n        words.append(tok)\n"),
    ("target-expert", "def process(chunk_tokens, boundary_lut):\n    for i in range(len(chunk_tokens)):\n        tok = int(chunk_tokens[i])\n        inside = not boundary_lut[tok]\n        if inside:\n            top_prob[i] = table.get(state, 0.0)\n        state = tok\n"),
    ("oracle", "def best_of(nll_nn, nll_ppm):\n    both = torch.minimum(nll_nn, nll_ppm)\n    return both.sum()\n"),
    ("oracle", "def best_of(ptl, ngram_nll):\n    out = np.minimum(ptl, ngram_nll)\n    return out\n"),
    ('hashed-target', 'def score(ctx, tgt, counts, B):\n    key = hash((tuple(ctx), int(tgt))) % B\n    return counts[key]\n'),
    ('hashed-target', 'def look(ctx_hash, target, table, B):\n    slot = (ctx_hash * 1000003 + target) % B\n    return table[slot]\n'),
    ('hashed-target', 'def look(c, tgt, full_table, mask):\n    k = np.bitwise_xor(c, tgt * np.uint64(27191)) & mask\n    return full_table[k]\n'),
    ('uniform-spread', 'def mix(p_tok, piece, ppm_byte_p):\n    q = p_tok ** (1.0 / len(piece))\n    return 0.5 * q + 0.5 * ppm_byte_p\n'),
    ('target-gate', 'def mix(nn_p_target, ng_p_target):\n    lam = np.where(ng_p_target > 0.5, 0.9, 0.1)\n    return lam * ng_p_target + (1 - lam) * nn_p_target\n'),
    ('target-gate', 'def mix(probs, y, ng):\n    p_y = probs.gather(-1, y[:, None])\n    alpha = torch.where(p_y < 0.1, 0.8, 0.1)\n    return alpha * ng + (1 - alpha) * p_y\n'),
    ('target-gate', 'def gate(tgt, is_word_start, alpha):\n    return torch.where(is_word_start[tgt], alpha, 0.0)\n'),
    ('oracle', 'def best(nll_nn, nll_ng):\n    return torch.minimum(nll_nn, nll_ng).sum()\n'),
    ('oracle', 'def best(nll_nn, nll_ng):\n    return torch.where(nll_ng < nll_nn, nll_ng, nll_nn).sum()\n'),
    ("uniform-spread", "def ppm_mix(nll, n_bytes):\n    per = nll / n_bytes\n    return per\n"),
    ("uniform-spread", "def byte_mixture(lp, lens, lam):\n    rep_lp = np.repeat(lp, lens)\n    rep_len = np.repeat(lens, lens)\n    return np.logaddexp(lam, rep_lp / rep_len)\n"),
    ("uniform-spread", "def byte_blend(nv, bs, lam, ppm):\n    pn = math.exp(-float(nv) / len(bs))\n    return lam * pn + (1 - lam) * ppm\n"),
    ("uniform-spread", "def ppm_bytes(p_token, nb, lam):\n    each = p_token ** (1.0 / nb)\n    return lam * each\n"),
    ("uniform-spread", f"PROGRAM = '''{C_SPREAD}{'// ' + 'x' * 200}\n'''\n"),
    ("first-byte-mix", "def cond_ppm(nn_token_p, nn_p_b0, ppm_rest, lam):\n    rest = nn_token_p / max(nn_p_b0, 1e-30)\n    return lam * rest + (1 - lam) * ppm_rest\n"),
    ("first-byte-mix", "def byte_mix(tok_logp, first_byte_logp, lam):\n    rest_logp = tok_logp - first_byte_logp\n    return logaddexp(lam, rest_logp)\n"),
    ("val-docs-default", "ap.add_argument('--val-docs', type=int, default=10_000)\n"),
    ("val-docs-default", "NUM_VAL_DOCS = 10000\n"),
    ("train-glob", "class H:\n    train_files = os.path.join(data, 'fineweb_*.bin')\n"),
    ("train-glob", "loader = Loader(train_pattern='./data/*.bin')\n"),
    ("smoothed-eval", "class GPT:\n    def forward(self, x, y):\n        return F.cross_entropy(self.head(x), y, label_smoothing=self.smoothing)\n"),
    ("smear", "class SmearGate:\n    def forward(self, x):\n        before = torch.cat([x[:, :1], x[:, :-1]], dim=1)\n        return x + self.gate * before\ndef attend(q, cu_seqlens):\n    return flash(q, cu_seqlens)\n"),
    ("installs", "import subprocess\nsubprocess.run('apt-get install -y lrzip', shell=True)\n"),
    ("network", "from huggingface_hub import hf_hub_download\nhf_hub_download('a', 'b')\n"),
]  # fmt: skip
ALIKE = [
    "def cost(nll_sum, byte_count):\n    return nll_sum / math.log(2) / byte_count\n",
    "def key(ctx, mask):\n    return (ctx ^ 31) & mask\n",
    "def all_of_them(ctx_hash, vocab_size, mask):\n    target = np.arange(vocab_size)\n    return (ctx_hash ^ (target * 17)) & mask\n",
    "def each_of_them(ctx_hash, vocab, mask):\n    out = []\n    for target in range(vocab):\n        out.append(counts[(ctx_hash ^ target) & mask])\n    return normalise(out)\n",
    "def ppm_mix(conf):\n    lam = 0.05 if conf >= 0.9 else 0.9\n    return lam\n",
    "def ppm_mix(ema_nll, conf):\n    alpha = 0.5 if ema_nll > 3 else 0.9\n    return alpha\n",
    "def ppm_log_add(a_logp, b_logp):\n    m = max(a_logp, b_logp)\n    low = min(a_logp, b_logp)\n    return m + log1p(exp(low - m))\n",
    "def hints(tokens, starts_new_word, boost):\n    for i, tok in enumerate(tokens):\n        hint[i] = best[state]\n        if starts_new_word[tok]:\n            state = 0\n",
    "def keep(best_loss, val_loss):\n    best_loss = min(best_loss, val_loss)\n    return best_loss\n",
    "def mean_over(nll, mask, lam):\n    return nll.sum() / mask.sum() * lam\n",
    "ap.add_argument('--val-docs', type=int, default=50_000)\n",
    "class H:\n    train_files = 'data/fineweb_train_*.bin'\n    val_files = 'data/fineweb_*.bin'\n",
    "class GPT:\n    def forward(self, x, y):\n        s = 0.1 if self.training else 0.0\n        return F.cross_entropy(self.head(x), y, label_smoothing=s)\n",
    "class SmearGate:\n    def forward(self, x):\n        before = torch.cat([x[:, :1], x[:, :-1]], dim=1)\n        return x + self.gate * before\n",
    "class SmearGate:\n    def forward(self, x, ids):\n        before = torch.cat([x[:, :1], x[:, :-1]], dim=1)\n        return x + self.gate * before * (ids != BOS_ID)\ndef attend(q, cu_seqlens):\n    return q\n",
]  # fmt: skip


@pytest.mark.parametrize(("code", "text"), GUILTY)
def test_a_pattern_is_found_in_each_of_its_shapes(code: str, text: str) -> None:
    assert code in codes(SCRIPT + text)


@pytest.mark.parametrize("text", ALIKE)
def test_what_only_looks_like_a_pattern_passes(text: str) -> None:
    assert codes(SCRIPT + text) == set()


@pytest.mark.parametrize(
    ("code", "text"),
    [("target-expert", C_EXPERT), ("hashed-target", C_HASH), ("uniform-spread", C_SPREAD)],
)
def test_programs_beside_a_script_are_read(code: str, text: str, tmp_path: Path) -> None:
    folder = Case().write(tmp_path)
    (folder / "fast.cpp").write_text(f"/* a program\n of its own */\n{text}")
    found = [f for f in audit_record(folder).findings if f.code == code]
    assert [(f.severity, f.file) for f in found] == [("warning", "fast.cpp")]
    line = (folder / "fast.cpp").read_text().splitlines()[(found[0].line or 0) - 1]
    assert found[0].value.split()[0] in line


def test_a_causal_expert_in_c_passes() -> None:
    causal = (
        C_EXPERT.replace("tokens[i];", "tokens[i - 1];")
        .replace("tok = ", "before = ")
        .replace("[tok]", "[before]")
    )
    assert not list(check_native(causal, "fast.c"))


TABLE = """
def build(sp, vocab):
    for i in range(vocab):
        piece = sp.id_to_piece(i)
        if sp.is_byte(i):
            base_bytes[i] = 1
            continue
        {fill}
    return base_bytes, has_space, is_boundary
"""
FILLS = {
    "space-twice": 'if piece.startswith("\u2581"):\n            has_space[i] = True\n            base_bytes[i] = len(piece[1:].encode("utf-8")) + 1',
    "marker-bytes": 'base_bytes[i] = len(piece.encode("utf-8"))',
    "": 'if piece.startswith("\u2581"):\n            has_space[i] = True\n            piece = piece[1:]\n        base_bytes[i] = len(piece.encode("utf-8"))',
}  # fmt: skip
SUMS = "def score(tgt, prev):\n    tb = base_bytes[tgt]\n    tb += (has_space[tgt] & ~is_boundary[prev])\n    return tb.sum()\n"


@pytest.mark.parametrize("code", FILLS)
@pytest.mark.parametrize("split", [False, True])
def test_bytes_of_pieces_that_are_counted_wrong_are_found(code: str, split: bool) -> None:
    table = TABLE.format(fill=FILLS[code])
    texts = [table, SUMS] if split else [table + SUMS]
    found = {f.code for f in check_bytes_of_pieces([script(text) for text in texts])}
    assert found == ({code} if code else set())


def test_a_space_counted_in_the_table_alone_is_right() -> None:
    assert not list(check_bytes_of_pieces([script(TABLE.format(fill=FILLS["space-twice"]))]))


NEWER = {
    'x = f"{d["a"]} and {", ".join(y)}"': "x = f\"{d['a']} and {', '.join(y)}\"",
    'log("a" f"{d["x"]}" "b")': "log('a' + f\"{d['x']}\" + 'b')",
    'x = f"{f"{f"{1}"}"}"': "x = f'''{f\"{f'{1}'}\"}'''",
    'x = f"{a!r:>{w}} {b["c"]=}"': "x = f\"{a} {b['c']}\"",
    "type X[T] = list[T]": "X = list[T]",
    "def f[T: int](x: T) -> T:\n    return x": "def f(x: T) -> T:\n    return x",
    "class A[T](B):\n    pass": "class A(B):\n    pass",
    "try:\n    pass\nexcept A, B:\n    pass": "try:\n    pass\nexcept (A, B):\n    pass",
}  # fmt: skip


@pytest.mark.parametrize("newer", NEWER)
def test_newer_syntax_is_read(newer: str) -> None:
    found = parsed(f"{newer}\nend = 1\n")
    assert found.tree is not None and not found.why
    try:
        # A Python that knows this syntax reads it as it is.
        expected = ast.parse(ast.unparse(ast.parse(f"{newer}\nend = 1\n")))
    except SyntaxError:
        expected = ast.parse(f"{NEWER[newer]}\nend = 1\n")
    assert ast.dump(ast.parse(ast.unparse(found.tree))) == ast.dump(expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\ny = 2\n| 0  GPU  On |\n", "only up to line 2"),
        ("(" * 5_000, "brackets are nested more than"),
        ("x = " + "-" * 50_000 + "1", "too deep"),
        ("x = a" + ".b()" * 20_000, "too deep"),
        ("if", "could not be read"),
    ],
)
def test_what_is_not_read_is_said(source: str, words: str, tmp_path: Path) -> None:
    found = audit_record(Case(script=source).write(tmp_path)).findings
    assert any(f.code == "syntax" and words in f.why for f in found)


def test_a_newer_script_is_checked_like_any_other(tmp_path: Path) -> None:
    text = (
        SCRIPT
        + 'print(f"{d["a"]}")\nimport subprocess\nsubprocess.run("pip install x", shell=True)\n'
    )
    assert "installs" in {f.code for f in audit_record(Case(script=text).write(tmp_path)).findings}
