"""The seed system at full size: `pr1858`, its base `pr1493`, and a trial on one GPU.

Every setting of the published runs stands here, also where it is the default: this file is what
readers set beside the records. Facts: the logs and sources of the two pull requests.
"""

from dataclasses import replace

from fairway.config.settings import (
    AUTO,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PackConfig,
    QuantConfig,
    ScoreConfig,
    TrainConfig,
    TttConfig,
)


def pr1858() -> Config:
    """#1858's seed runs: 35,944,536 parameters, 588 s of training on up to 8 GPUs, then GPTQ.

    The text is not here: name a folder by data.source. Declared are the bytes of #1858's code, so
    that the model has the same room; a run to be submitted counts its bundle, by
    `--set pack.code_bytes=auto`. `quant.fit` keeps the clip multiplier where it fits.
    """
    return Config(
        recipe="pr1858",
        seed=42,
        data=DataConfig(source=""),
        model=_model(),
        optim=_optim(),
        train=TrainConfig(
            clock="wall",
            budget_s=600.0,
            reserve_s=12.0,
            seq_len=2048,
            batch_tokens=786_432,
            micro_tokens=98_304,
            loop_from=0.35,
            warmup_steps=20,
        ),
        quant=_quant(),
        pack=PackConfig(codec="brotli", shuffle=2, limit_bytes=16_000_000, code_bytes=20_177),
        score=ScoreConfig(seq_len=2048, stride=64, batch_windows=32, truncate=True),
        ttt=TttConfig(
            method="sgd",
            budget_s=600.0,
            chunk_tokens=32_768,
            epochs=2,
            lr=0.005,
            momentum=0.9,
            grad_clip=1.0,
        ),
    )


def _model() -> ModelConfig:
    return ModelConfig(
        vocab_size=8192,
        num_layers=11,
        dim=512,
        embed_dim=0,
        num_heads=8,
        num_kv_heads=4,
        mlp_dim=2048,
        rope_dims=16,
        rope_base=10_000.0,
        rope_train_len=2048,
        # #1493's code has 5.0 as its default; all of its record runs and #1858's set 5.25.
        qk_gain=5.25,
        xsa_layers=11,
        leak=0.5,
        softcap=30.0,
        layer_scale=True,
        parallel_from=7,
        skips=True,
        skip_gates=True,
        loop_first=3,
        loop_last=5,
        loop_extra=2,
        tie_embeddings=True,
        embed_bf16=True,
        embed_std=0.005,
        smear=False,
    )


def _optim() -> OptimConfig:
    return OptimConfig(
        matrix_lr=0.022,
        matrix_wd=0.095,
        momentum=0.99,
        momentum_start=0.92,
        momentum_warmup_steps=1500,
        newton_schulz="fixed",
        newton_schulz_steps=5,
        row_normalise=True,
        embed_lr=0.03,
        embed_wd=0.085,
        head_lr=0.008,
        scalar_lr=0.02,
        scalar_wd=0.02,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        grad_clip=0.3,
        warmdown_share=0.72,
        min_lr=0.0,
        ema_decay=0.9965,
        ema_share=None,
    )


def _quant() -> QuantConfig:
    return QuantConfig(
        matrix_bits=6,
        matrix_sigmas=12.85,
        embed_bits=8,
        embed_sigmas=20.0,
        method="gptq",
        # 64 batches of one rank.
        calibration_tokens=64 * 98_304,
        damp=0.01,
        block=128,
        act_order=True,
        min_numel=65_536,
        fit=True,
    )


def pr1493() -> Config:
    """#1493's record runs, the base of #1858: one system, with fewer bytes of code beside it.

    The logs' settings are equal but for test-time training: 3 epochs per chunk there, 2 in #1858.
    """
    base = pr1858()
    return replace(
        base,
        recipe="pr1493",
        pack=replace(base.pack, code_bytes=16_594),
        ttt=replace(base.ttt, epochs=3),
    )


def pr1858_proxy() -> Config:
    """#1858 on one GPU: one micro-batch per step and 150 s of training; calibration comes on top.

    The budget is 150 s plus the reserve that #1858 keeps for calibration. The weight average
    spans 0.025 of the run. #1858's 0.9965 spans 286 steps: 0.063 of its 4,550, but 0.28 of the
    about 1,000 here, so the average lagged behind the falling rate and still held 3 % of the
    initial weights (1.2280 bpb against 1.1970 of the raw weights).
    """
    base = pr1858()
    return replace(
        base,
        recipe="pr1858_proxy",
        optim=replace(base.optim, ema_decay=None, ema_share=0.025),
        train=replace(base.train, budget_s=162.0, batch_tokens=98_304),
    )


def best() -> Config:
    """#1858's model and training with what was found to pay here; docs/LOG.md has the measurements.

    Dependent quantisation fills the limit through Fairway's own coder (a third of the damage at
    equal bytes), and adapters learn every document. After 150 s of training on one H200 both
    together end 0.0069 bpb below `pr1858_proxy`. The weight average spans a share of the run, so
    that the recipe holds for other budgets. Experts beside the model gained nothing at this size.
    """
    base = pr1858()
    return replace(
        base,
        recipe="best",
        optim=replace(base.optim, ema_decay=None, ema_share=0.063),
        quant=replace(
            base.quant,
            method="trellis",
            rate_price=0.12,
            column_steps=True,
            fill=True,
            fit=False,
            calibration_tokens=2_097_152,
        ),
        pack=replace(base.pack, codec="cabac", code_bytes=AUTO),
        ttt=replace(base.ttt, method="lora", lora_documents=128),
    )
