# ruff: noqa: E501 - scripts in one line each
"""What a script trains on before it scores it, found by following its data: guilty and innocent."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from audit.record import Case

from fairway.audit.findings import Finding
from fairway.audit.records.audit import audit_record
from fairway.audit.records.flow import Flow
from fairway.audit.records.order import check_order
from fairway.audit.records.parse import parsed
from fairway.audit.records.trees import Steps

HEAD = """
import glob, math, os, copy
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
class Hyper:
    train_files = "data/fineweb_train_*.bin"
    val_files = os.path.join("data", "fineweb_val_*.bin")
    epochs = int(os.environ.get("EPOCHS", "3"))
    early = bool(int(os.environ.get("EARLY", "1")))
class GPT(nn.Module):
    def forward(self, x, y, delta=None):
        return F.cross_entropy(self.head(self.body(x)), y, reduction="none")
def load(pattern):
    return torch.cat([torch.from_numpy(np.fromfile(f, dtype="<u2")) for f in sorted(glob.glob(pattern))])
def piece(stream, start, n):
    part = stream[start : start + n + 1].long()
    return part[:-1], part[1:]
def evaluate(model, stream):
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        for start in range(0, stream.numel() - 1, 1024):
            x, y = piece(stream, start, 1024)
            total += model(x, y).sum()
            count += y.numel()
    return total.item() / count / math.log(2.0)
def fit(model, stream, epochs):
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for start in range(0, stream.numel() - 1, 512):
            x, y = piece(stream, start, 512)
            loss = model(x, y).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
h = Hyper()
held = load(h.val_files)
text = load(h.train_files)
model = GPT().cuda()
"""
LOOP = """
opt = torch.optim.SGD(model.parameters(), lr=1e-3)
total, count = 0.0, 0
for start in range(0, held.numel() - 1, 1024):
{body}
print("val_bpb", total / count / math.log(2))
"""
SCORE = """    with torch.no_grad():
        x, y = piece(held, start, 1024)
        total += model(x, y).sum().item()
        count += y.numel()
"""
TRAIN = """    x, y = piece(held, start, 1024)
    for _ in range(h.epochs):
        opt.zero_grad()
        model(x, y).mean().backward()
        opt.step()
"""
SLOT = """
for start in range(0, held.numel() - 1, 1024):
    x, y = piece(held, start, 1024)
    hidden = model.body(x).detach()
    delta = torch.zeros(1, 1, 512, requires_grad=True)
    tune = torch.optim.AdamW([delta], lr=0.01)
    for _ in range(8):
        nll = F.cross_entropy(model.head(hidden + delta).transpose(1, 2), y, reduction="none")
        tune.zero_grad()
        {loss}.backward()
        tune.step()
    nll = F.cross_entropy(model.head(hidden + delta).transpose(1, 2), y, reduction="none")
    total += nll[:, s:].sum().item()
print(total / count / math.log(2))
"""
GUILTY: dict[str, tuple[str, str]] = {
    "fitted before packing": (
        "fit(model, text, 1)\nfit(model, held, h.epochs)\ntorch.save(model.state_dict(), 'm.pt')\n"
        "again = GPT()\nagain.load_state_dict(torch.load('m.pt'))\nprint(evaluate(again, held))",
        "val-training",
    ),
    "between two scores": (
        "print(evaluate(model, held))\nfit(model, held, 5)\nprint(evaluate(model, held))", "val-training",
    ),
    "by a closure": (
        "lbfgs = torch.optim.LBFGS(model.parameters())\ndef closure():\n    loss = model(held[:-1], held[1:]).mean()\n"
        "    loss.backward()\n    return loss\nfor _ in range(9):\n    lbfgs.step(closure)\nprint(evaluate(model, held))",
        "val-training",
    ),
    "by gradients of its own": (
        "for start in range(0, held.numel(), 64):\n    x, y = piece(held, start, 64)\n"
        "    grads = torch.autograd.grad(model(x, y).mean(), list(model.parameters()))\n    with torch.no_grad():\n"
        "        for p, g in zip(model.parameters(), grads):\n            p.add_(g, alpha=-0.1)\nprint(evaluate(model, held))",
        "val-training",
    ),
    "a copy that is scored": (
        "other = copy.deepcopy(model)\nfit(other, held, 2)\nprint(evaluate(other, held))", "val-training",
    ),
    "weights averaged in": (
        "fit(model, held, 1)\nema = {k: v.clone() for k, v in model.state_dict().items()}\nbest = GPT()\n"
        "best.load_state_dict(ema)\nprint(evaluate(best, held))",
        "val-training",
    ),
    "handed on": (
        "def timed(name, run, *args, **kwargs):\n    return run(*args, **kwargs)\n"
        "timed('a', fit, model, held, epochs=h.epochs)\nprint(timed('b', evaluate, model, stream=held))",
        "val-training",
    ),
    "a loader of the wrong files": (
        "class Loader:\n    def __init__(self, pattern):\n        self.stream = load(pattern)\n"
        "    def next(self, n):\n        return piece(self.stream, np.random.randint(0, 99), n)\n"
        "loader = Loader(h.val_files)\nopt = torch.optim.AdamW(model.parameters())\nfor step in range(1000):\n"
        "    x, y = loader.next(64)\n    model(x, y).mean().backward()\n    opt.step()\nprint(evaluate(model, held))",
        "val-training",
    ),
    "trained, then scored": (LOOP.format(body=TRAIN + SCORE), "trained-before-scored"),
    "last epoch scored": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\ntotal = torch.zeros(())\nfor epoch in range(h.epochs):\n"
        "    for start in range(0, held.numel(), 64):\n        x, y = piece(held, start, 64)\n        nll = model(x, y)\n"
        "        if epoch == h.epochs - 1:\n            total += nll.detach().sum()\n        opt.zero_grad()\n"
        "        nll.mean().backward()\n        opt.step()\nprint(total / math.log(2))",
        "last-epoch",
    ),
    "sums set back in every epoch": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\ntotal = torch.zeros(())\nfor epoch in range(h.epochs):\n"
        "    total.zero_()\n    for start in range(0, held.numel(), 64):\n        x, y = piece(held, start, 64)\n"
        "        nll = model(x, y)\n        total += nll.detach().sum()\n        opt.zero_grad()\n"
        "        nll.mean().backward()\n        opt.step()\nprint(total / math.log(2))",
        "last-epoch",
    ),
    "a vector for the window's targets": ("total, count, s = 0.0, 1, 960" + SLOT.format(loss="nll.mean()"), "slot"),
    "masked to what is scored": ("total, count, s = 0.0, 1, 960" + SLOT.format(loss="nll[:, s:].mean()"), "slot"),
}  # fmt: skip
WARNED: dict[str, tuple[str, str]] = {
    "a vector for what was scored": (
        "total, count, s = 0.0, 1, 960" + SLOT.format(loss="nll[:, :s].mean()"), "slot-context",
    ),
    "a vector for a context by another name": (
        "total, count = 0.0, 1\nstride = 64" + SLOT.replace("{loss}", "nll[:, :upto].mean()").replace(
            "    delta =", "    wlen = x.numel()\n    upto = max(wlen - stride, 0) if start > 0 else 0\n    s = 0 if start == 0 else max(wlen - stride, 0)\n    delta ="
        ), "slot-context",
    ),
    "adapted, then scored again": (
        LOOP.format(body=SCORE + TRAIN) + "print(evaluate(model, held))", "second-pass",
    ),
    "a warm-up that is set back": (
        "kept = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}\nfit(model, held, 1)\n"
        "model.load_state_dict(kept, strict=True)\nfit(model, text, 1)\nprint(evaluate(model, held))",
        "val-warm-up",
    ),
    "a warm-up on the text": (
        "probe = GPT()\nfit(probe, held, 1)\ndel probe\nprint(evaluate(model, held))", "val-warm-up",
    ),
}  # fmt: skip
INNOCENT = {
    "validation handed to an evaluation": (
        "def train(model, text, held):\n    fit(model, text, 1)\n    for step in range(9):\n        evaluate(model, held)\n"
        "    return model\nprint(evaluate(train(model, text, held), held))"
    ),
    "scored, then trained": LOOP.format(body=SCORE + TRAIN),
    "scored, then trained, by a function": (
        "def learn(model, stream, start, epochs):\n    opt = torch.optim.SGD(model.parameters(), lr=1)\n"
        "    for _ in range(epochs):\n        x, y = piece(stream, start, 1024)\n        opt.zero_grad()\n"
        "        model(x, y).mean().backward()\n        opt.step()\n" + LOOP.format(body=SCORE + "    learn(model, held, start, h.epochs)\n")
    ),
    "first epoch scored": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\ntotal = torch.zeros(())\n"
        "for start in range(0, held.numel(), 64):\n    for epoch in range(h.epochs):\n        x, y = piece(held, start, 64)\n"
        "        nll = model(x, y)\n        if epoch == 0:\n            total += nll.detach().sum()\n"
        "        opt.zero_grad()\n        nll.mean().backward()\n        opt.step()\nprint(total / math.log(2))"
    ),
    "one epoch": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\ntotal = torch.zeros(())\nfor epoch in range(1):\n"
        "    for start in range(0, held.numel(), 64):\n        x, y = piece(held, start, 64)\n        nll = model(x, y)\n"
        "        total += nll.detach().sum()\n        opt.zero_grad()\n        nll.mean().backward()\n        opt.step()\n"
        "print(total / math.log(2))"
    ),
    "no epochs": "fit(model, held, 0)\nprint(evaluate(model, held))",
    "never called": "def pre():\n    fit(model, held, 9)\nprint(evaluate(model, held))",
    "switched off": "if False:\n    fit(model, held, 9)\nprint(evaluate(model, held))",
    "set back": (
        "kept = {k: v.detach().clone() for k, v in model.state_dict().items()}\n"
        "with torch.no_grad():\n    x, y = piece(held, 0, 64)\n    model(x, y)\nfit(model, text, 1)\n"
        "model.load_state_dict(kept)\nprint(evaluate(model, held))"
    ),
    "gradients of training text": (
        "ttt = copy.deepcopy(model)\nfit(ttt, text[:4096], 5)\nprint(evaluate(ttt, held))"
    ),
    "a part held out of training text": (
        "val_tokens = text[-100000:]\nfit(model, val_tokens, 1)\nprint(evaluate(model, held))"
    ),
    "the piece before": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\nbefore, total = None, 0.0\n"
        "for start in range(0, held.numel(), 64):\n    if before is not None:\n        opt.zero_grad()\n"
        "        model(*before).mean().backward()\n        opt.step()\n    x, y = piece(held, start, 64)\n"
        "    with torch.no_grad():\n        total += model(x, y).sum().item()\n    before = (x, y)\nprint(total / math.log(2))"
    ),
    "a state that is carried": (
        "opt = torch.optim.SGD(model.parameters(), lr=1)\nstate, before, total, start = None, None, 0.0, 0\n"
        "while start + 64 < held.numel():\n    x, y = piece(held, start, 64)\n    if before is not None:\n"
        "        opt.zero_grad()\n        F.cross_entropy(model(before[0]), before[1]).backward()\n        opt.step()\n"
        "    with torch.no_grad():\n        logits, state = model(x, state=state)\n"
        "        total += F.cross_entropy(logits, y).item()\n    before = (x, y)\n    start += 64\nprint(total / math.log(2))"
    ),
    "files that a switch would replace": (
        "on_held = bool(int(os.environ.get('TRAIN_ON_HELD', '0')))\n"
        "files = os.path.join('data', 'fineweb_val_*.bin' if on_held else 'fineweb_train_*.bin')\n"
        "fit(model, load(files), 1)\nprint(evaluate(model, held))"
    ),
    "files in one dictionary": (
        "conf = {'train_files': h.train_files, 'val_files': h.val_files}\nconf.update(settings())\n"
        "fit(model, load(conf['train_files']), 1)\nprint(evaluate(model, load(conf['val_files'])))"
    ),
    "a diagnosis of the training": (
        "def adapt(model, x, y):\n    opt = torch.optim.SGD(model.parameters(), lr=1)\n    shown = 0.0\n"
        "    for _ in range(h.epochs):\n        loss = model(x, y).mean()\n        opt.zero_grad()\n        loss.backward()\n"
        "        opt.step()\n        shown += loss.item()\n    print('loss', shown)\n" + LOOP.format(body=SCORE + "    adapt(model, x, y)\n")
    ),
}  # fmt: skip


def found(
    script: str, settings: Mapping[str, str] | None = None, claimed: Sequence[str] = ()
) -> list[Finding]:
    tree = parsed(HEAD + script).tree
    assert tree is not None
    flow = Flow(Steps(200_000), settings=settings or {})
    flow.follow("train_gpt.py", tree)
    assert flow.finished
    return list(check_order(flow, settings or {}, {}, claimed))


@pytest.mark.parametrize("name", GUILTY)
def test_training_before_scoring_is_found(name: str) -> None:
    script, code = GUILTY[name]
    findings = found(script)
    assert [(f.severity, f.code) for f in findings] == [("invalid", code)]
    line = (HEAD + script).splitlines()[(findings[0].line or 0) - 1]
    assert any(word in line for word in ("backward", "grad(")), line


@pytest.mark.parametrize("name", WARNED)
def test_what_may_be_right_is_a_warning(name: str) -> None:
    script, code = WARNED[name]
    assert [(f.severity, f.code) for f in found(script)] == [("warning", code)]


@pytest.mark.parametrize("name", INNOCENT)
def test_an_honest_order_is_not_accused(name: str) -> None:
    assert found(INNOCENT[name]) == []


SWITCHED = "if h.early:\n    print('early: fitting starts')\n    fit(model, held, 5)\nprint(evaluate(model, held))"


@pytest.mark.parametrize(
    ("settings", "log", "readme", "expected"),
    [
        ({}, "", "", "warning"),
        ({"early": "True"}, "", "", "invalid"),
        ({"early": "0"}, "", "", None),
        ({}, "early: fitting starts\n", "", "invalid"),
        ({}, "    print('early: fitting starts')\n", "", None),
        ({}, "", "```\nEARLY=1 torchrun train_gpt.py\n```\n", "invalid"),
        ({}, "", "```\nEARLY=0 torchrun train_gpt.py\n```\n", None),
        (
            {},
            "",
            "```\nEARLY=0 torchrun train_gpt.py\nSEED=1 torchrun train_gpt.py\n```\n",
            "warning",
        ),
        (
            {},
            "",
            "```\nEARLY=1 torchrun train_gpt.py\nSEED=1 torchrun train_gpt.py\n```\n",
            "warning",
        ),
    ],
)
def test_logs_and_commands_decide_what_ran(
    settings: dict[str, str], log: str, readme: str, expected: str | None, tmp_path: Path
) -> None:
    case = Case(script=HEAD + SWITCHED, settings=dict.fromkeys((42, 314, 999), settings))
    case.extra = {42: log}
    case.readme = readme or case.readme
    if not settings and not log and (not readme or expected == "warning"):
        # A log that shows nothing of a part that prints says that it did not run.
        case.script = case.script.replace("    print('early: fitting starts')\n", "")
    findings = [f for f in audit_record(case.write(tmp_path)).findings if f.code == "val-training"]
    assert [f.severity for f in findings] == ([expected] if expected else [])


def test_a_script_spread_over_files_is_followed(tmp_path: Path) -> None:
    body = HEAD.partition("h = Hyper()")
    folder = Case(
        script="from tools import *\nfrom tools import fit as polish\nimport tools\nh = tools.Hyper()\n"
        "held, model = load(h.val_files), GPT()\npolish(model, held, 3)\nprint(tools.evaluate(model, held))\n"
    ).write(tmp_path)
    (folder / "tools.py").write_text(body[0])
    findings = [f for f in audit_record(folder).findings if f.code == "val-training"]
    assert [(f.severity, f.file) for f in findings] == [("invalid", "tools.py")]


# ---------------------------------------------------------------------------------------------
# Which score is claimed, and what decides a switch

ADAPTED = """
def log0(text):
    print(text)
loss = evaluate(model, held)
log0(f"plain_exact val_bpb:{loss:.8f}")
fit(model, held, 3)
again = evaluate(model, held)
log0("adapted_exact val_bpb:%.8f" % again)
"""


@pytest.mark.parametrize(
    ("claimed", "severity"),
    [
        ("plain_exact val_bpb:1.08100000", "warning"),
        ("adapted_exact val_bpb:1.02000000", "invalid"),
        ("another val_bpb:1.02000000", "invalid"),
    ],
)
def test_what_comes_before_another_score_than_the_claimed_convicts_nobody(
    claimed: str, severity: str
) -> None:
    assert [f.severity for f in found(ADAPTED, claimed=[claimed])] == [severity]


def test_a_helper_that_prints_by_name_tells_its_scores_apart() -> None:
    script = (
        "def timed(name, run, *args):\n    bpb = run(*args)\n    print(f'{name} val_bpb:{bpb:.6f}')\n"
        "timed('quantized', evaluate, model, held)\nfit(model, held, 2)\ntimed('tuned', evaluate, model, held)\n"
    )
    severities = [
        [f.severity for f in found(script, claimed=[f"{name} val_bpb:1.050000"])]
        for name in ("quantized", "tuned")
    ]
    assert severities == [["warning"], ["invalid"]]


SWITCHES = {
    "another name for the environment": "_e = os.environ.get\non = bool(int(_e('TTT_ON', '{}')))",
    "the environment by another name": "from os import environ as env\non = env.get('TTT_ON', default='{}') == '1'",
    "a helper with a kind": "def setting(name, default, kind=str):\n    return kind(os.environ.get(name, default))\non = setting('TTT_ON', {}, int)",
    "getenv": "from os import getenv\non = int(getenv('TTT_ON', '{}'))",
    "the command line": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--ttt-on', type=int, default={})\non = p.parse_args().ttt_on",
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_read_however_a_script_asks_for_them(name: str) -> None:
    script = SWITCHES[name] + "\nif on:\n    fit(model, held, 3)\nprint(evaluate(model, held))"
    assert found(script.format(0)) == []
    assert [f.severity for f in found(script.format(1))] == ["warning"]
    assert [f.severity for f in found(script.format(0), {"ttt_on": "1"})] == ["invalid"]
    assert found(script.format(1), {"ttt_on": "0"}) == []


def test_a_switch_of_which_nothing_is_known_does_not_convict() -> None:
    script = "cfg = yaml.safe_load(open('run.yaml'))\nif cfg['ttt_on']:\n    fit(model, held, 3)\nprint(evaluate(model, held))"
    script = script.replace("cfg['ttt_on']", "cfg.ttt_on")
    assert [f.severity for f in found(script)] == ["warning"]
