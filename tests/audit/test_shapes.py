# ruff: noqa: E501 - scripts as people write them
"""One fault in many shapes is found; what honest scripts do in as many shapes accuses nobody."""

import textwrap

import pytest
from audit.test_order import found

from fairway.audit.records.flow import Flow
from fairway.audit.records.order import check_order
from fairway.audit.records.parse import parsed
from fairway.audit.records.trees import Steps

GUILTY: dict[str, tuple[str, str]] = {
    "a class that trains": (
        """
class Adapter:
    def __init__(self, model, tokens):
        self.model, self.tokens = model, tokens
        self.opt = torch.optim.AdamW(model.parameters())
    def run(self, epochs):
        for e in range(epochs):
            for i in range(0, len(self.tokens) - 1, 512):
                x, y = self.tokens[i:i+512], self.tokens[i+1:i+513]
                loss = F.cross_entropy(self.model(x), y)
                self.opt.zero_grad(); loss.backward(); self.opt.step()
Adapter(model, held).run(3)
print('val_bpb', evaluate(model, held))
""",
        "val-training",
    ),
    "a loader of a data set": (
        """
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(held[:-1].view(-1, 512), held[1:].view(-1, 512))
opt = torch.optim.AdamW(model.parameters())
for epoch in range(4):
    for x, y in DataLoader(data, batch_size=8, shuffle=True):
        opt.zero_grad()
        model(x, y).mean().backward()
        opt.step()
print(evaluate(model, held))
""",
        "val-training",
    ),
    "gradients of a function": (
        """
from torch.func import grad_and_value, functional_call
params = dict(model.named_parameters())
def loss_fn(params, x, y):
    return functional_call(model, params, (x, y)).mean()
for start in range(0, held.numel()-1, 512):
    x, y = piece(held, start, 512)
    g, v = grad_and_value(loss_fn)(params, x, y)
    params = {k: p - 0.1 * g[k] for k, p in params.items()}
model.load_state_dict(params)
print(evaluate(model, held))
""",
        "val-training",
    ),
    "a scaler of gradients": (
        """
scaler = torch.cuda.amp.GradScaler()
opt = torch.optim.AdamW(model.parameters())
for start in range(0, held.numel()-1, 512):
    x, y = piece(held, start, 512)
    loss = model(x, y).mean()
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
print(evaluate(model, held))
""",
        "val-training",
    ),
    "a helper that differentiates": (
        """
opt = torch.optim.AdamW(model.parameters())
for start in range(0, held.numel()-1, 512):
    x, y = piece(held, start, 512)
    loss = model(x, y).mean()
    accelerator.backward(loss)
    opt.step()
print(evaluate(model, held))
""",
        "val-training",
    ),
    "both texts joined": (
        """
both = torch.cat([text, held])
fit(model, both, 1)
print(evaluate(model, held))
""",
        "val-training",
    ),
    "pieces cut before": (
        """
chunks = [piece(held, s, 512) for s in range(0, held.numel()-1, 512)]
opt = torch.optim.SGD(model.parameters(), lr=1)
for x, y in chunks:
    model(x, y).mean().backward(); opt.step(); opt.zero_grad()
total = 0.0
for x, y in chunks:
    with torch.no_grad():
        total += model(x, y).sum().item()
print(total / math.log(2))
""",
        "val-training",
    ),
    "a layer for every piece": (
        """
total = 0.0
for start in range(0, held.numel()-1, 1024):
    x, y = piece(held, start, 1024)
    lora = nn.Linear(8, 8)
    opt = torch.optim.Adam(lora.parameters())
    for _ in range(8):
        loss = model(x, y, delta=lora).mean()
        opt.zero_grad(); loss.backward(); opt.step()
    with torch.no_grad():
        total += model(x, y, delta=lora).sum().item()
print(total / math.log(2))
""",
        "slot",
    ),
    "gradients by hand": (
        """
total = 0.0
for start in range(0, held.numel()-1, 1024):
    x, y = piece(held, start, 1024)
    with torch.no_grad():
        logits = model.head(model.body(x))
        bias = torch.zeros(1024)
        for _ in range(5):
            p = torch.softmax(logits + bias, -1)
            bias -= 0.1 * (p - F.one_hot(y, 1024)).mean(0)
        total += F.cross_entropy(logits + bias, y, reduction='sum').item()
print(total / math.log(2))
""",
        "trained-before-scored",
    ),
    "the better of two scores": (
        """
first = evaluate(model, held)
fit(model, held, 1)
second = evaluate(model, held)
print('val_bpb', min(first, second))
""",
        "val-training",
    ),
    "an average of trained weights": (
        """
ema = copy.deepcopy(model)
opt = torch.optim.SGD(model.parameters(), lr=1)
for start in range(0, held.numel()-1, 512):
    x, y = piece(held, start, 512)
    model(x, y).mean().backward(); opt.step(); opt.zero_grad()
    with torch.no_grad():
        for a, b in zip(ema.parameters(), model.parameters()):
            a.mul_(0.9).add_(b, alpha=0.1)
print(evaluate(ema, held))
""",
        "val-training",
    ),
    "both texts in turn": (
        """
loaders = {'train': load(h.train_files), 'val': load(h.val_files)}
for split in ('train', 'val'):
    fit(model, loaders[split], 1)
print(evaluate(model, loaders['val']))
""",
        "val-training",
    ),
}
INNOCENT: dict[str, str] = {
    "helper named train_on_val not called": """
def train_on_val_tokens(model):
    fit(model, held, 5)
print(evaluate(model, held))
""",
    "score first, generator": """
def chunks(stream, n):
    for s in range(0, stream.numel() - 1, n):
        yield piece(stream, s, n)
opt = torch.optim.SGD(model.parameters(), lr=1)
total = 0.0
for x, y in chunks(held, 1024):
    with torch.no_grad():
        total += model(x, y).sum().item()
    for _ in range(3):
        opt.zero_grad(); model(x, y).mean().backward(); opt.step()
print(total / math.log(2))
""",
    "score first, class": """
class Ttt:
    def __init__(self, model):
        self.model, self.total = model, 0.0
        self.opt = torch.optim.SGD(model.parameters(), lr=1)
    def score(self, x, y):
        with torch.no_grad():
            self.total += self.model(x, y).sum().item()
    def learn(self, x, y):
        self.opt.zero_grad()
        self.model(x, y).mean().backward()
        self.opt.step()
    def run(self, stream):
        for start in range(0, stream.numel() - 1, 1024):
            x, y = piece(stream, start, 1024)
            self.score(x, y)
            self.learn(x, y)
        return self.total / math.log(2)
print(Ttt(model).run(held))
""",
    "score list then train list": """
opt = torch.optim.SGD(model.parameters(), lr=1)
total = 0.0
for c in range(0, held.numel() - 1, 32768):
    windows = [piece(held, s, 1024) for s in range(c, c + 32768, 1024)]
    with torch.no_grad():
        for x, y in windows:
            total += model(x, y).sum().item()
    for epoch in range(3):
        for x, y in windows:
            opt.zero_grad(); model(x, y).mean().backward(); opt.step()
print(total / math.log(2))
""",
    "score first with pre computed nll": """
opt = torch.optim.SGD(model.parameters(), lr=1)
nlls = []
start = 0
while start < held.numel() - 1:
    x, y = piece(held, start, 1024)
    nll = model(x, y)
    nlls.append(nll.detach().sum())
    opt.zero_grad(); nll.mean().backward(); opt.step()
    start += 1024
print(sum(nlls) / math.log(2))
""",
    "validation in training loop": """
opt = torch.optim.AdamW(model.parameters())
for step in range(1000):
    if step % 100 == 0:
        model.eval()
        val_loss = evaluate(model, held)
        print(f"step:{step} val_bpb:{val_loss}")
        model.train()
    x, y = piece(text, step * 512, 512)
    loss = model(x, y).mean()
    opt.zero_grad(); loss.backward(); opt.step()
print(evaluate(model, held))
""",
    "early stopping on validation": """
best, kept = 9.0, None
for epoch in range(10):
    fit(model, text, 1)
    bpb = evaluate(model, held)
    if bpb < best:
        best, kept = bpb, {k: v.clone() for k, v in model.state_dict().items()}
model.load_state_dict(kept)
print(evaluate(model, held))
""",
    "gptq on training text": """
hessians = {}
for s in range(0, 64):
    x, y = piece(text, s * 512, 512)
    with torch.no_grad():
        hidden = model.body(x)
        hessians['a'] = hessians.get('a', 0) + hidden.T @ hidden
packed = {k: quant(v, hessians) for k, v in model.state_dict().items()}
model.load_state_dict(packed)
print(evaluate(model, held))
""",
    "switched off by default": """
if os.environ.get("PRE_TTT", "0") == "1":
    fit(model, held, 3)
print(evaluate(model, held))
""",
    "switched off by a word": """
PRE = os.environ.get("PRE_TTT", "0").lower() in ("1", "true", "yes")
if PRE:
    fit(model, held, 3)
print(evaluate(model, held))
""",
    "a layer for every document, scored first": """
total = 0.0
docs = [(0, 900), (900, 5000)]
for a, b in docs:
    lora = nn.Linear(8, 8)
    opt = torch.optim.Adam(lora.parameters())
    for s in range(a, b, 256):
        x, y = piece(held, s, 256)
        with torch.no_grad():
            total += model(x, y, delta=lora).sum().item()
        opt.zero_grad(); model(x, y, delta=lora).mean().backward(); opt.step()
print(total / math.log(2))
""",
    "unigram cache of scored tokens": """
counts = torch.ones(1024)
total = 0.0
for s in range(0, held.numel() - 1, 256):
    x, y = piece(held, s, 256)
    with torch.no_grad():
        p = torch.softmax(model.head(model.body(x)), -1)
        mix = 0.9 * p + 0.1 * counts / counts.sum()
        total += -torch.log(mix.gather(-1, y[:, None])).sum().item()
    counts.scatter_add_(0, y, torch.ones_like(y))
print(total / math.log(2))
""",
    "online bias after scoring": """
bias = torch.zeros(1024)
total = 0.0
for s in range(0, held.numel() - 1, 256):
    x, y = piece(held, s, 256)
    with torch.no_grad():
        logits = model.head(model.body(x)) + bias
        total += F.cross_entropy(logits, y, reduction='sum').item()
        p = torch.softmax(logits, -1)
        bias -= 0.1 * (p - F.one_hot(y, 1024)).mean(0)
print(total / math.log(2))
""",
    "val split of train file": """
train_tokens, val_tokens = text[:-65536], text[-65536:]
fit(model, train_tokens, 1)
print(evaluate(model, load(h.val_files)))
""",
    "distillation on train, val name in function": """
def distil(student, teacher, stream):
    opt = torch.optim.AdamW(student.parameters())
    for s in range(0, stream.numel() - 1, 512):
        x, y = piece(stream, s, 512)
        loss = F.kl_div(student(x, y), teacher(x, y))
        opt.zero_grad(); loss.backward(); opt.step()
def validate_and_distil(model, val_stream, train_stream):
    evaluate(model, val_stream)
    distil(model, copy.deepcopy(model), train_stream)
    return evaluate(model, val_stream)
print(validate_and_distil(model, held, text))
""",
    "random tokens compile warm-up": """
opt = torch.optim.SGD(model.parameters(), lr=1)
x = torch.randint(0, 1024, (8, 512))
model(x, x).mean().backward(); opt.step(); opt.zero_grad()
fit(model, text, 1)
print(evaluate(model, held))
""",
    "phased: trains on prefix scored, then continues": """
opt = torch.optim.SGD(model.parameters(), lr=1)
total = 0.0
bounds = [0, 1000, 2000, 3000]
for a, b in zip(bounds[:-1], bounds[1:]):
    with torch.no_grad():
        for s in range(a, b, 100):
            x, y = piece(held, s, 100)
            total += model(x, y).sum().item()
    for s in range(0, b, 100):
        x, y = piece(held, s, 100)
        opt.zero_grad(); model(x, y).mean().backward(); opt.step()
print(total / math.log(2))
""",
}


@pytest.mark.parametrize("name", GUILTY)
def test_a_fault_is_found_in_every_shape(name: str) -> None:
    script, code = GUILTY[name]
    assert [(f.severity, f.code) for f in found(script)] == [("invalid", code)]


@pytest.mark.parametrize("name", INNOCENT)
def test_an_honest_script_is_accused_of_nothing(name: str) -> None:
    assert found(INNOCENT[name]) == []


def test_gradients_of_another_library() -> None:
    script = """
loss_and_grad = nn.value_and_grad(model, lambda m, x, y: m(x, y).mean())
opt = torch.optim.AdamW(model.parameters())
for start in range(0, held.numel() - 1, 512):
    x, y = piece(held, start, 512)
    loss, grads = loss_and_grad(model, x, y)
    opt.update(model, grads)
print(evaluate(model, held))
"""
    assert [(f.severity, f.code) for f in found(script)] == [("invalid", "val-training")]
    assert found(script.replace("piece(held", "piece(text")) == []


# A script as records have it: a loader, an evaluation, a loop of training, and what comes after.
RECORD = """
import os, glob, math, copy
import numpy as np
import torch, torch.nn.functional as F
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
class Settings:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    ttt_epochs = int(os.environ.get("TTT_EPOCHS", 3))
    seq = 1024
class GPT(nn.Module):
    def forward(self, x, y):
        return F.cross_entropy(self.logits(x), y)
def read_shard(file):
    return torch.from_numpy(np.fromfile(file, dtype="<u2", offset=1024).astype(np.int64))
def held_out(pattern, seq_len):
    files = sorted(glob.glob(pattern))
    tokens = torch.cat([read_shard(f) for f in files]).contiguous()
    return tokens[: (tokens.numel() - 1) // seq_len * seq_len + 1]
class Stream:
    def __init__(self, pattern):
        self.files = sorted(glob.glob(pattern)); self.pos = 0
        self.tokens = read_shard(self.files[0])
    def take(self, n):
        chunk = self.tokens[self.pos:self.pos + n]; self.pos += n
        return chunk
class Batches:
    def __init__(self, pattern, rank, world_size, device):
        self.stream = Stream(pattern); self.rank = rank
    def batch(self, n, seq):
        local = self.stream.take(n + 1).to(torch.int64)
        return local[:-1].reshape(-1, seq), local[1:].reshape(-1, seq)
def bits_of(args, model, val_tokens, device):
    loss_sum = torch.zeros((), device=device); count = torch.zeros((), device=device)
    model.eval()
    with torch.inference_mode():
        for s in range(0, val_tokens.numel() - 1, args.seq):
            x = val_tokens[s:s + args.seq].to(device); y = val_tokens[s + 1:s + args.seq + 1].to(device)
            loss_sum += model(x, y).to(torch.float64) * y.numel(); count += y.numel()
    if dist.is_initialized():
        dist.all_reduce(loss_sum); dist.all_reduce(count)
    model.train()
    val_loss = loss_sum / count
    return float(val_loss.item()), float(val_loss.item() / math.log(2.0))
def main():
    args = Settings()
    device = torch.device("cuda")
    val_tokens = held_out(args.val_files, args.seq)
    base_model = GPT().to(device)
    model = DDP(torch.compile(base_model))
    train_loader = Batches(args.train_files, 0, 1, device)
    opts = [torch.optim.AdamW(base_model.parameters(), lr=1e-3)]
    for step in range(1000):
        x, y = train_loader.batch(8192, args.seq)
        loss = model(x, y)
        loss.backward()
        for o in opts: o.step()
{body}    val_loss, val_bpb = bits_of(args, model, val_tokens, device)
    print(f"final val_loss:{{val_loss:.4f}} val_bpb:{{val_bpb:.4f}}")
if __name__ == "__main__":
    main()
"""
AFTER_TRAINING = {
    "a loader of the wrong files": """
ttt_loader = Batches(args.val_files, 0, 1, device)
for step in range(200):
    x, y = ttt_loader.batch(8192, args.seq)
    loss = model(x, y)
    loss.backward()
    for o in opts: o.step()
""",
    "a file mapped": """
mm = np.memmap(sorted(glob.glob(args.val_files))[0], dtype=np.uint16, mode="r")
for i in range(100):
    j = np.random.randint(0, len(mm) - 1025)
    x = torch.from_numpy(mm[j:j+1024].astype(np.int64)); y = torch.from_numpy(mm[j+1:j+1025].astype(np.int64))
    model(x, y).backward()
    for o in opts: o.step()
""",
    "a function inside": """
def adapt():
    for s in range(0, val_tokens.numel() - 1, args.seq):
        l = base_model(val_tokens[s:s+args.seq], val_tokens[s+1:s+args.seq+1])
        l.backward(); opts[0].step(); opts[0].zero_grad()
for _ in range(args.ttt_epochs): adapt()
""",
    "rows in random order": """
seqs = val_tokens[:-1].view(-1, args.seq); tgts = val_tokens[1:].view(-1, args.seq)
perm = torch.randperm(seqs.size(0))
for i in range(0, seqs.size(0), 32):
    idx = perm[i:i+32]
    l = base_model(seqs[idx], tgts[idx]); l.backward(); opts[0].step()
""",
    "files by another name": """
args.train_files = args.val_files
tl = Batches(args.train_files, 0, 1, device)
x, y = tl.batch(8192, args.seq)
l = model(x, y); l.backward(); opts[0].step()
""",
    "a layer that is merged": """
lora = nn.Linear(8, 8)
lopt = torch.optim.Adam(lora.parameters(), lr=1e-3)
for s in range(0, val_tokens.numel() - 1, args.seq):
    h = base_model.hidden(val_tokens[s:s+args.seq])
    l = F.cross_entropy(lora(h), val_tokens[s+1:s+args.seq+1])
    lopt.zero_grad(); l.backward(); lopt.step()
base_model.head.weight.data.add_(lora.weight)
""",
    "saved and loaded": """
for s in range(0, val_tokens.numel() - 1, args.seq):
    l = base_model(val_tokens[s:s+args.seq], val_tokens[s+1:s+args.seq+1]); l.backward(); opts[0].step()
torch.save(base_model.state_dict(), "final.pt")
fresh = GPT(); fresh.load_state_dict(torch.load("final.pt"))
model = fresh
""",
}
HONEST_AFTER_TRAINING = {
    "eval every": """
for step in range(10):
    if step % 5 == 0:
        vl, vb = bits_of(args, model, val_tokens, device)
        print(f"step:{step} val_bpb:{vb:.4f}")
    x, y = train_loader.batch(8192, args.seq)
    loss = model(x, y); loss.backward(); opts[0].step()
""",
    "gptq on train": """
calib = Batches(args.train_files, 0, 1, device)
for _ in range(64):
    x, y = calib.batch(8192, args.seq)
    with torch.no_grad(): base_model(x, y)
base_model.load_state_dict(gptq(base_model))
""",
    "warm up restore": """
state = copy.deepcopy(base_model.state_dict())
x, y = train_loader.batch(8192, args.seq)
loss = model(x, y); loss.backward(); opts[0].step()
base_model.load_state_dict(state)
""",
    "ttt score first": """
total = 0.0
for c in range(0, val_tokens.numel() - 1, 32768):
    with torch.no_grad():
        for s in range(c, min(c + 32768, val_tokens.numel() - 1), args.seq):
            total += base_model(val_tokens[s:s+args.seq], val_tokens[s+1:s+args.seq+1]).item()
    for e in range(args.ttt_epochs):
        for s in range(c, min(c + 32768, val_tokens.numel() - 1), args.seq):
            l = base_model(val_tokens[s:s+args.seq], val_tokens[s+1:s+args.seq+1]); l.backward(); opts[0].step(); opts[0].zero_grad()
print(f"ttt val_bpb:{total / math.log(2.0):.4f}")
return
""",
    "reptile on train": """
for step in range(10):
    x, y = train_loader.batch(8192, args.seq)
    inner = copy.deepcopy(base_model)
    iopt = torch.optim.SGD(inner.parameters(), lr=0.1)
    inner(x, y).backward(); iopt.step()
    for p, q in zip(base_model.parameters(), inner.parameters()):
        p.data.lerp_(q.data, 0.1)
""",
}


def whole(body: str) -> list[tuple[str, str]]:
    """Return what is found in a record's script with some statements after its training."""
    tree = parsed(RECORD.format(body=textwrap.indent(body.strip() + "\n", "    "))).tree
    assert tree is not None
    flow = Flow(Steps(200_000))
    flow.follow("train_gpt.py", tree)
    return [(f.severity, f.code) for f in check_order(flow, {}, {})]


@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_a_record_that_learns_its_text_is_found(name: str) -> None:
    assert whole(AFTER_TRAINING[name]) == [("invalid", "val-training")]


@pytest.mark.parametrize("name", HONEST_AFTER_TRAINING)
def test_a_record_that_does_not_is_accused_of_nothing(name: str) -> None:
    assert whole(HONEST_AFTER_TRAINING[name]) == []


def test_a_quantiser_calibrated_on_the_text_is_asked_about() -> None:
    calibrated = "rounded = collect_hessians(base_model, {}, 64)"
    assert whole(calibrated.format("val_tokens")) == [("warning", "val-calibration")]
    assert whole(calibrated.format("train_loader")) == []
