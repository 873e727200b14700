"""The code beside exported weights: the package's own model in a file without Fairway."""

import ast
import functools

from fairway.bundle.flatten import flatten_module
from fairway.bundle.modules import source_text
from fairway.version import VERSION

MODEL_FILE, WORDS_FILE = "modeling_fairway.py", "tokenization_fairway.py"
_OPERATIONS = "fairway.model.ops"
_HEAD = '''"""{what}

Written by Fairway {version} out of its own modules, with plain formulas in the place of kernels.
{use}
"""

'''
_USES = {
    MODEL_FILE: (
        "A language model trained by Fairway, in PyTorch.",
        "In Python: `load(folder)` returns the model, `model(ids)` its logits, and\n"
        "`model.generate(ids)` a continuation. transformers finds FairwayForCausalLM here\n"
        "(trust_remote_code=True).",
    ),
    WORDS_FILE: (
        "The tokenizer of a language model trained by Fairway.",
        "In Python: `open_words(folder)` returns it, with `encode` and `decode`. transformers\n"
        "finds FairwayTokenizer here (trust_remote_code=True).",
    ),
}


@functools.cache
def program(file: str) -> str:
    """Return the text of one of the two files: the same for every model."""
    if file == MODEL_FILE:
        names = ("load", "FairwayModel", "Past", "for_transformers")
        flat = flatten_module("fairway.export.core", names, {_OPERATIONS: _plain()})
    else:
        flat = flatten_module(
            "fairway.export.words", ("open_words", "Words", "for_transformers"), {}
        )
    what, use = _USES[file]
    return _HEAD.format(what=what, version=VERSION, use=use) + flat.text


def _plain() -> str:
    """Return the elementwise operations with every lean path replaced by its plain formula."""
    tree = ast.parse(source_text(_OPERATIONS))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    lean = {name.removesuffix("_plain") for name in defined if name.endswith("_plain")} & defined
    kept = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name in lean)]
    same = [ast.parse(f"{name} = {name}_plain").body[0] for name in sorted(lean)]
    return ast.unparse(ast.Module([*kept, *same], []))
