from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fairway.config.settings import ModelConfig, QuantConfig
from fairway.model.gpt import GPT, build
from fairway.quantise import calibrate
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.gptq import dequantise, quantise_model

TINY = ModelConfig(
    vocab_size=300, num_layers=4, dim=16, num_heads=2, num_kv_heads=1, mlp_dim=32, rope_dims=4,
    parallel_from=3, loop_first=1, loop_last=2, loop_extra=1,
)  # fmt: skip
TOKENS = 3 * 2 * 8


def alive(config: ModelConfig = TINY) -> GPT:
    """A model whose output projections are not the zeros they start as."""
    model = build(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.set_looping(True)
    return model


def batches(count: int = 3) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield torch.randint(0, 300, (2, 8), generator=generator)


def matrices(model: GPT) -> list[str]:
    return [name for name, weight in model.named_parameters() if name.endswith(".weight")]


def plain_hessians(model: GPT) -> dict[str, Tensor]:
    """Every input of every matrix, kept whole and multiplied in float64 at the end."""
    inputs: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kept = inputs.setdefault(f"{name}.weight", [])
            module.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0].detach()))
    finals = [model.hidden(ids).detach() for ids in batches()]
    inputs["tok_emb.weight"] = finals
    rows = {name: torch.cat([x.flatten(0, -2) for x in kept]) for name, kept in inputs.items()}
    return {name: (x.double().T @ x.double()).float() for name, x in rows.items()}


def test_equals_inputs_kept_whole() -> None:
    found = collect_hessians(alive(), batches(), matrices(alive()))
    expected = plain_hessians(alive())
    assert set(found) == set(expected)
    for name, hessian_CC in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], hessian_CC, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("looping", "visits"), [(True, 2), (False, 1)])
def test_looped_blocks_count_every_visit(looping: bool, visits: int) -> None:
    model = alive()
    model.set_looping(looping)
    names = ["blocks.1.attn.c_q.weight", "blocks.3.attn.c_q.weight", "tok_emb.weight"]
    found = collect_hessians(model, batches(), names)
    # Inputs are normalised, so a trace counts positions: times width, times 1 / (layer + 1).
    traces = [float(found[name].trace()) for name in names]
    expected = [visits * TOKENS * 16 / 2, TOKENS * 16 / 4, TOKENS * 16]
    assert traces == pytest.approx(expected, rel=1e-3)


def test_matrices_that_read_one_tensor_share_one_hessian() -> None:
    found = collect_hessians(alive(), batches(), matrices(alive()))

    def sharing(layer: int) -> list[bool]:
        names = [f"blocks.{layer}.{part}.weight" for part in ("attn.c_k", "attn.c_v", "mlp.fc")]
        return [found[name] is found[f"blocks.{layer}.attn.c_q.weight"] for name in names]

    # The MLP of block 3, which is parallel, reads the attention's input; that of block 0 does not.
    assert sharing(0) == [True, True, False] and sharing(3) == [True, True, True]


def test_an_input_that_is_shared_only_at_times_is_noticed() -> None:
    collector = calibrate._Collector()
    one, other = torch.ones(2, 3), torch.ones(2, 3)
    collector.add("q", one)
    collector.add("k", one)
    collector.add("q", one + 1)
    with pytest.raises(AssertionError, match="k shares its input with q on some visits only"):
        collector.add("k", other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_products_of_bfloat16_are_exact_and_added_in_float32() -> None:
    x_NC = torch.randn(4099, 72, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = calibrate.gram(x_NC.cuda()).cpu()
    assert found.dtype == torch.float32
    wanted = (x_NC.double().T @ x_NC.double()).float()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-2)


def test_only_named_matrices_are_collected() -> None:
    found = collect_hessians(alive(), batches(), ["blocks.0.mlp.proj.weight"])
    assert {name: tuple(h.shape) for name, h in found.items()} == {
        "blocks.0.mlp.proj.weight": (32, 32)
    }


def test_model_is_left_as_it_was() -> None:
    model = alive().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    collect_hessians(model, batches(), matrices(model))
    assert model.training and model.looping
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


def test_hooks_go_when_a_batch_fails() -> None:
    model = alive()
    with pytest.raises(IndexError):
        collect_hessians(model, [torch.full((1, 4), 999)], matrices(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.long
def test_autocast_is_off_and_bfloat16_activations_are_added_in_float32() -> None:
    model = alive()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = collect_hessians(model, batches(), ["tok_emb.weight"])
    torch.testing.assert_close(
        plain["tok_emb.weight"], plain_hessians(alive())["tok_emb.weight"], rtol=1e-4, atol=1e-3
    )
    model.compute_dtype = torch.bfloat16
    rough = collect_hessians(model, batches(), ["tok_emb.weight"])["tok_emb.weight"]
    assert rough.dtype == torch.float32
    assert float(rough.trace()) == pytest.approx(TOKENS * 16, rel=0.02)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        collect_hessians(alive(), [], ["tok_emb.weight"])
    with pytest.raises(KeyError, match="nowhere"):
        collect_hessians(alive(), batches(), ["nowhere.weight"])


def test_calibrated_codes_predict_better_than_rounded_ones() -> None:
    model = alive()
    config = QuantConfig(matrix_bits=4, embed_bits=4, min_numel=64, matrix_sigmas=3, embed_sigmas=3)
    hessians = collect_hessians(model, batches(30), matrices(model))
    errors = {}
    with torch.no_grad():
        ids = torch.cat(list(batches(30)))
        wanted = model.logits(model.hidden(ids))
        for method in ("gptq", "round"):
            quantised = quantise_model(model.state_dict(), hessians, replace(config, method=method))
            other = alive()
            other.load_state_dict(dequantise(quantised))
            off = other.logits(other.hidden(ids)) - wanted
            errors[method] = float(off.square().mean())
    assert errors["gptq"] < 0.9 * errors["round"]
