"""One fault in many shapes is found; what honest scripts do in as many shapes accuses nobody."""

import pytest
from audit.test_order import found

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
