# ruff: noqa: E501 - scripts as people write them
"""Scripts as records have them: a loader, an evaluation, a loop of training, what comes after."""

import textwrap

import pytest

from fairway.audit.records.flow import Flow
from fairway.audit.records.order import check_order
from fairway.audit.records.parse import parsed
from fairway.audit.records.trees import Steps

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
