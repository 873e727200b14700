"""Examples for the help of every verb: a command and its effect."""

from typing import Any

from typer.core import TyperCommand

from fairway.cli.options import show_values

# The first commands in the output of `fairway` without arguments.
START = (
    ("run demo", "train and score a model of English"),
    ("data build FILES --out my-data", "prepare your own text"),
    ('sample runs/demo --prompt "The"', "let the model continue a text"),
)

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "run demo",
        "run demo --set train.budget_s=1200 --out runs/long",
        "run demo --live tensorboard --sample-every 30",
    ),
    "train": ("train demo --set train.budget_s=60", "train demo --resume"),
    "pack": ("pack runs/demo --budget 900000", "pack runs/demo --account"),
    "score": ("score runs/demo", "score runs/demo README.md"),
    "unpack": ("unpack runs/demo --out weights.safetensors",),
    "prove": (
        "prove runs/demo text.md --out text.fwp",
        "prove --decode text.fwp --artifact runs/demo --out again.md",
    ),
    "compress": ("compress text.md --artifact runs/demo --compare",),
    "decompress": ("decompress text.md.fwz --artifact runs/demo --out again.md",),
    "sample": ('sample runs/demo --prompt "Returns the" --temperature 0.5',),
    "tune": (
        "tune runs/demo README.md --out readme.safetensors",
        'sample runs/demo --adapter readme.safetensors --prompt "The"',
    ),
    "serve": ("serve runs/demo", "serve runs/demo runs/long --port 8080"),
    "audit": ("audit runs/demo", "audit --scorer scorer.py --tokens ids.json --bytes 5000"),
    "audit-record": ("audit-record records/my-record", "audit-record records --html page.html"),
    "bundle": ("bundle pr1858 --explain", "bundle demo --plain"),
    "seeds": ("seeds demo --seeds 42 314 999", "seeds demo --record my-record"),
    "submit": ("submit runs/seed-42 runs/seed-314 --track non_record --out my-record",),
    "verify": ("verify my-record",),
    "runs": ("runs --html runs.html", "runs --export csv --out runs.csv"),
    "export": ("export runs/demo --out demo-hf --format transformers",),
    "push": ("push runs/demo owner/name --private",),
    "load": ("load owner/name --out runs/loaded",),
    "plan": ("plan --seconds 200 --bytes 2000000",),
    "ablate": (
        "ablate demo --arm wide:model.mlp_dim=1024 --pairs 8",
        "ablate demo --arm wide:model.mlp_dim=1024 --dry-run",
    ),
    "transfer": ("transfer runs/short runs/long",),
    "report": ("report runs/demo",),
    "compare": ("compare runs/a runs/b", "compare runs/pr1858 pr1858"),
    "doctor": ("doctor", "doctor --json"),
    "build": (
        "data build notes/ more.jsonl.zst --out my-data --vocab-size 4096",
        "data build --embedded --out english",
    ),
    "fetch": ("data fetch --out sp8192 --shards 1",),
    "show": ("data show my-data",),
}


class Verb(TyperCommand):
    """A verb whose help ends with examples; one that takes a recipe lists the recipes, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        show_values(self, ctx)
        parts = [_block("Examples", [f"fairway {words}" for words in EXAMPLES[self.name or ""]])]
        if any(item.name == "recipe" for item in self.params):
            parts.insert(0, _block("Recipes", recipe_lines()))
        self.epilog = "\n\n".join(parts)
        super().format_help(ctx, formatter)


def start_lines() -> str:
    """Return the help of `fairway` without arguments: its purpose, and three first commands."""
    lines = [f"fairway {words:33} {meaning}" for words, meaning in START]
    return "Train, pack and prove small language models.\n\n" + _block("Start here", lines)


def recipe_lines() -> list[str]:
    """Return every recipe with the first line of its documentation."""
    from fairway.recipes import RECIPES

    width = max(map(len, RECIPES))
    return [f"{name:{width}}  {_first(made.__doc__)}" for name, made in RECIPES.items()]


def _first(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _block(title: str, lines: list[str]) -> str:
    # Brackets would be parsed as markup.
    return "\n".join([f"{title}:", *lines]).replace("[", "\\[")
