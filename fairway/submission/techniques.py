"""The techniques that a recipe uses and their sources; a submission's credits come from here."""

from collections.abc import Callable

from fairway.config.checks import layer_windows
from fairway.config.settings import Config

_Used = Callable[[Config], bool]

# (name, source, whether a config uses it)
_TECHNIQUES: tuple[tuple[str, str, _Used], ...] = (
    ("depth recurrence", "#1331, #1445", lambda c: c.model.loop_extra > 0),
    (
        "parallel residuals in late blocks",
        "#1412, #1477",
        lambda c: c.model.parallel_from < c.model.num_layers,
    ),
    ("two lanes in parallel blocks", "#1204, #1529, #1530", lambda c: c.model.lanes > 1),
    ("XSA: attention without its own value", "#478, #1019", lambda c: True),
    ("gain of normalised queries", "#1217, #1276, #1493", lambda c: c.model.qk_gain != 1.0),
    ("U-Net skips with gates", "#289", lambda c: c.model.num_layers > 1),
    (
        "attention windows",
        "Beltagy et al. 2020, arXiv 2004.05150",
        lambda c: any(layer_windows(c.model)) or bool(c.train.windows),
    ),
    ("documents that do not see one another", "#1530", lambda c: c.train.documents),
    ("gates of heads", "#1667", lambda c: c.model.gate_features > 0),
    ("SmearGate with a mask at BOS", "#1667, #1851, #1855", lambda c: c.model.smear),
    ("MuonEq-R", "Jordan et al. 2024; #1217", lambda c: True),
    (
        "Polar Express",
        "Amsel et al. 2025, arXiv 2505.16932; #1344",
        lambda c: c.optim.newton_schulz == "polar_express",
    ),
    (
        "momentum of several ages",
        "modded-nanogpt track 3, #357",
        lambda c: c.optim.momentum_buffers > 1,
    ),
    ("Newton-Muon", "arXiv 2604.01472", lambda c: c.optim.newton > 0),
    ("NorMuon", "arXiv 2510.05491", lambda c: c.optim.row_beta > 0),
    ("cautious weight decay", "modded-nanogpt track 3", lambda c: c.optim.cautious),
    ("moving average of the weights", "#1421, #1445", lambda c: True),
    (
        "GPTQ with SDClip",
        "Frantar et al. 2023, arXiv 2210.17323; #1394",
        lambda c: c.quant.method == "gptq",
    ),
    (
        "LQER: corrections of low rank",
        "Zhang et al. 2024, arXiv 2402.02446; #1797, #1874",
        lambda c: c.quant.lqer_rank > 0,
    ),
    ("sliding-window evaluation", "#1493", lambda c: c.score.stride < c.score.seq_len),
    ("score-first test-time training by chunks", "#1413", lambda c: c.ttt.method == "sgd"),
    ("score-first adapters by document", "#1530", lambda c: c.ttt.method == "lora"),
)


def techniques(config: Config) -> list[tuple[str, str]]:
    """Return (technique, credit) for each listed technique that a recipe uses."""
    return [(name, credit) for name, credit, used in _TECHNIQUES if used(config)]
