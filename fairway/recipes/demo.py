"""Recipes that run on a laptop: `demo` in minutes on real text, `smoke` in seconds for tests."""

from dataclasses import replace

from fairway.config.settings import (
    AuditConfig,
    Config,
    DataConfig,
    MixtureConfig,
    ModelConfig,
    OptimConfig,
    PackConfig,
    ProveConfig,
    QuantConfig,
    ScoreConfig,
    TrainConfig,
    TttConfig,
)


def demo() -> Config:
    """Model of English for a laptop: six minutes on two CPU cores.

    `fairway run demo` takes `demo_small` or `demo_wide`, whichever suits the machine's speed
    (`pipeline/sizes.py`). The settings here are those of `demo_small`.
    """
    return Config(
        recipe="demo",
        data=DataConfig(val_share=0.04, case_ops=True, val_bytes=128_000),
        model=ModelConfig(
            vocab_size=4096,
            num_layers=3,
            dim=128,
            num_heads=2,
            num_kv_heads=1,
            mlp_dim=512,
            rope_dims=64,
            rope_train_len=128,
            parallel_from=1,
            loop_first=1,
            loop_last=1,
            loop_extra=0,
            embed_bf16=False,
            smear=True,
        ),
        optim=OptimConfig(
            matrix_lr=0.032,
            embed_lr=0.05,
            momentum_start=0.85,
            momentum=0.9,
            momentum_warmup_steps=200,
            scalar_lr=0.04,
            ema_decay=None,
            ema_share=0.02,
        ),
        train=TrainConfig(
            budget_s=200.0,
            reserve_s=8.0,
            seq_len=128,
            batch_tokens=2048,
            micro_tokens=2048,
            warmup_steps=2,
        ),
        quant=QuantConfig(matrix_bits=8, calibration_tokens=32_768, min_numel=4096),
        pack=PackConfig(codec="cabac", with_tokenizer=True),
        score=ScoreConfig(seq_len=128, truncate=False),
        ttt=TttConfig(
            method="lora",
            lora_lr=0.003,
            lora_rank=32,
            lora_alpha=64.0,
            lora_chunks="32",
            lora_logit_factor=0.95,
            lora_frozen_share=0.4,
        ),
        mixture=MixtureConfig(experts="ppm match", base="lora"),
        prove=ProveConfig(bytes=8_000),
        audit=AuditConfig(budget_s=10.0),
    )


def demo_small() -> Config:
    """Demo for slow machines: 1.1 million weights, about 850 steps."""
    base = demo()
    return replace(base, recipe="demo_small")


def demo_wide() -> Config:
    """Demo for fast machines: 2.8 million weights, about 1,000 steps."""
    base = demo()
    return replace(
        base,
        recipe="demo_wide",
        model=replace(
            base.model,
            vocab_size=6144,
            num_layers=4,
            dim=192,
            num_heads=3,
            mlp_dim=768,
            rope_dims=16,
            rope_train_len=256,
            parallel_from=2,
            loop_last=2,
            smear=False,
        ),
        optim=replace(base.optim, matrix_lr=0.05, embed_lr=0.03),
        train=replace(base.train, seq_len=256, batch_tokens=4096, micro_tokens=4096),
        score=replace(base.score, seq_len=256),
        ttt=replace(base.ttt, lora_lr=0.002),
    )


def smoke() -> Config:
    """Tiny demo: all stages within seconds."""
    base = demo()
    return replace(
        base,
        recipe="smoke",
        data=replace(base.data, case_ops=False, val_bytes=8_000),
        model=replace(
            base.model,
            vocab_size=512,
            num_layers=4,
            dim=64,
            mlp_dim=128,
            rope_dims=8,
            rope_train_len=256,
            parallel_from=3,
            loop_last=2,
            loop_extra=1,
            smear=False,
        ),
        optim=replace(base.optim, matrix_lr=0.05, embed_lr=0.03),
        train=replace(
            base.train,
            clock="steps",
            steps=12,
            seq_len=64,
            batch_tokens=1024,
            micro_tokens=512,
        ),
        quant=QuantConfig(calibration_tokens=2048, min_numel=1024),
        pack=replace(base.pack, codec="brotli"),
        score=replace(base.score, seq_len=64, stride=16, batch_windows=16, check_positions=8),
        ttt=TttConfig(method="sgd", chunk_tokens=256, epochs=1, lr=0.02),
        mixture=MixtureConfig(),
        prove=replace(base.prove, bytes=400),
        audit=AuditConfig(budget_s=0.5, tokens=64),
    )
