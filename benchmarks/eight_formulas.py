"""What float8 costs a model, by formulas on a CPU: roundings of the MLP's products, and trainings.

    python benchmarks/eight_formulas.py errors ARTIFACT TOKENIZER TEXT
    python benchmarks/eight_formulas.py train PARTS WORDS...     # WORDS as for `fairway run`

`errors` runs 1,024 tokens forward and backward and prints for each layer, from the first to the
last, relative errors of the results and gradients of its MLP with the units of
`fairway.model.gpu.eight`, and of the square with its measured largest value as the scale. Then it
prints the loss of 8,192 tokens without and with float8 in the forward pass. `train` is `fairway
run`, with scales by measured largest values in the products that PARTS names: f forward, d
gradients of inputs, w gradients of weights, such as `fdw`.
"""

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from score import read_text, read_weights
from torch import Tensor

from fairway.api import model_from
from fairway.cli.main import main as fairway
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model import operations

VALUE, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
MOST = {VALUE: 448.0, GRADIENT: 57_344.0}
PLAIN_MLP = operations.Operations.mlp


def rounded(x: Tensor, unit: Tensor | float, dtype: torch.dtype = VALUE) -> Tensor:
    most = MOST[dtype]
    return (x / unit).clamp(-most, most).to(dtype).to(x.dtype) * unit


def measured(x: Tensor, dtype: torch.dtype = VALUE) -> Tensor:
    return rounded(x, x.abs().amax().clamp_min(1e-30) / MOST[dtype], dtype)


def square_of(h: Tensor, leak: float) -> Tensor:
    return torch.where(h > 0, h, leak * h).square()


def slope_of(h: Tensor, leak: float) -> Tensor:
    return torch.where(h > 0, 2 * h, 2 * leak**2 * h)


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def bounds(up: Tensor, down: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the bounds of inputs, of h, and of the slope's product beside the gradient's."""
    root = math.sqrt(up.shape[1])
    most_h = root * up.norm(dim=1).amax()
    return root, most_h, 2 * most_h * root * down.norm(dim=0).amax()


def forward(x: Tensor, up: Tensor, down: Tensor, leak: float) -> tuple[Tensor, ...]:
    """Return (rounded inputs, h, square before and after rounding, result)."""
    root, most_h, _ = bounds(up, down)
    x8 = rounded(x, root / MOST[VALUE])
    h = x8 @ measured(up).T
    square = square_of(h, leak)
    square8 = rounded(square, most_h.square() / MOST[VALUE])
    return x8, h, square, square8, square8 @ measured(down).T


class Errors(torch.autograd.Function):
    """An exact MLP that notes what float8 would change, in `found`."""

    found: ClassVar[list[dict[str, float]]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, leak: float) -> Tensor:
        ctx.save_for_backward(x, up, down)
        ctx.leak = leak
        return square_of(x @ up.T, leak) @ down.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, up, down), leak = ctx.saved_tensors, ctx.leak
        x8, h8, square, square8, y8 = forward(x, up, down, leak)
        dy8, unit = measured(dy), dy.abs().amax() * bounds(up, down)[2] / MOST[GRADIENT]
        dh = (dy8 @ measured(down)) * slope_of(h8, leak)
        dh8 = rounded(dh, unit, GRADIENT)
        h = x @ up.T
        exact, true = square_of(h, leak), (dy @ down) * slope_of(h, leak)
        d_up, d_down = flat(true).T @ flat(x), flat(dy).T @ flat(exact)
        Errors.found.append({
            "result": apart(y8, exact @ down.T),
            "gradient of the input": apart(dh8 @ measured(up), true @ up),
            "gradient of up": apart(flat(dh8).T @ flat(x8), d_up),
            "gradient of down": apart(flat(dy8).T @ flat(square8), d_down),
            "rounding of the square": apart(square8, square),
            "  with its measured scale": apart(measured(square), square),
            "rounding of the gradient of h": apart(dh8, dh),
            "  with its measured scale, e4m3": apart(measured(dh), dh),
        })  # fmt: skip
        return true @ up, d_up, d_down, None


class Trained(torch.autograd.Function):
    """An MLP whose products are rounded in some parts."""

    parts = ""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, leak: float) -> Tensor:
        def at(part: str, value: Tensor) -> Tensor:
            return measured(value) if part in Trained.parts else value

        h = at("f", x) @ at("f", up).T
        square = square_of(h, leak)
        ctx.save_for_backward(at("w", x), at("d", up), at("d", down), h, at("w", square))
        ctx.leak = leak
        return at("f", square) @ at("f", down).T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, h, square = ctx.saved_tensors
        along, across = (measured(dy) if part in Trained.parts else dy for part in "dw")
        dh = (along @ down) * slope_of(h, ctx.leak)
        dh_along, dh_across = (measured(dh) if part in Trained.parts else dh for part in "dw")
        return dh_along @ up, flat(dh_across).T @ flat(x), flat(across).T @ flat(square), None


def use(mlp: Any) -> None:
    """Let every plain MLP without adapters compute u + mlp(g, up, scaled down, leak)."""

    def joined(self: Any, u: Tensor, g: Tensor, layers: Any, leak: float, scale: Tensor,
               extra: Any) -> Tensor:  # fmt: skip
        if extra is not None or (mlp == Trained.apply and not torch.is_grad_enabled()):
            return PLAIN_MLP(self, u, g, layers, leak, scale, extra)
        up, down = (layer.weight.to(g.dtype) for layer in layers)
        added: Tensor = u + mlp(g, up, down * scale.to(g.dtype)[:, None], leak)
        return added

    operations.Operations.mlp = joined  # type: ignore[method-assign, assignment]


def errors(artifact: str, tokenizer: str, text: str) -> None:
    state, config = read_weights(Path(artifact))
    ids = read_text(Tokenizer.load(Path(tokenizer)), Path(text), 8193).ids[:8193].astype("int64")
    plan = make_plan(RuntimeConfig(device="cpu", dtype="float32"))
    plan.apply()
    model = model_from(state, config, plan, True).requires_grad_(True)
    use(Errors.apply)
    windows = torch.as_tensor(ids).unfold(0, 2049, 2048)
    model(windows[:1, :1024], windows[:1, 1:1025]).backward()
    for name in Errors.found[0]:
        print(f"{name:32}", "  ".join(f"{row[name]:.4f}" for row in Errors.found[::-1]))
    with torch.no_grad():
        for name, mlp in (("without", Errors.apply), ("with", lambda *of: forward(*of)[-1])):
            use(mlp)
            loss = sum(float(model(w[None, :-1], w[None, 1:])) for w in windows) / len(windows)
            print(f"loss of 8,192 tokens {name} float8 in the forward pass: {loss:.4f} nats")


def main() -> None:
    verb, *words = sys.argv[1:] or [""]
    if verb == "errors" and len(words) == 3:
        errors(*words)
    elif verb == "train" and words:
        Trained.parts, sys.argv = words[0], ["fairway", "run", *words[1:]]
        use(Trained.apply)
        fairway()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
