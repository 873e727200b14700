"""One file out of the modules that a recipe needs, as readable as they were.

What is taken away before names are followed: annotations, docstrings, assertions, the sentences of
refusals, and the functions of `CUTS`. What is replaced: the config, whose defaults become the
recipe's values. What remains then is what the entry reaches.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fairway.bundle.fold import fold_module, replaced_settings, types_of
from fairway.bundle.modules import bound_names, is_kernel, load_modules, resolve
from fairway.bundle.shake import Item, again, items_of, shake
from fairway.bundle.shorten import library_names
from fairway.bundle.specialise import drop_empty, specialise
from fairway.bundle.trees import Transformer, walk
from fairway.config.settings import Config, fixed_digest, to_dict
from fairway.model.paths import unfit
from fairway.quantise.fit import LARGEST

ENTRY = "fairway.pipeline.solo"


def entry_name(name: str) -> str:
    """Return what the entry, or the config's class, is called in the flat program."""
    return {"main": "G_fairway_solo__main", "Config": "G_fairway_config__Config"}[name]


_ENTRIES = [entry_name("main"), entry_name("Config")]

# What a bundle does without, and why; the text takes the place of the function's body.
CUTS = {
    # The recipe was checked when the bundle was made.
    "fairway.config.checks.check": "pass",
    "fairway.config.checks.check_model": "pass",
    "fairway.config.checks.check_ttt": "pass",
    "fairway.train.preflight.preflight": "pass",
    # Bars are for people who wait; a log has the step lines.
    "fairway.base.progress.progress": "yield lambda *count: None",
    # What the report shows of the weights decides nothing.
    "fairway.quantise.weights.weight_statistics": "return {}",
    "fairway.pack.model.matrix_statistics": "return []",
    # A bundle's run is one go: it keeps no state to continue from.
    "fairway.train.loop.Training.save": "pass",
    "fairway.train.muon.Optimisers.state": "return {}",
    "fairway.data.loader.ShuffledLoader.state": "return None",
    # Its folder is new, and so is every file in it.
    "fairway.base.files.atomic_file": "with path.open('xb') as stream: yield stream",
    # It reads its own files alone.
    "fairway.base.files.opened": "return path.open('rb')",
    "fairway.base.files.read_bytes": "return path.read_bytes()",
    "fairway.base.files.parse_json": "return json.loads(text)",
    "fairway.base.files.read_json": "return json.loads(path.read_bytes())",
    # What it reads back it wrote itself, and its digest is right.
    "fairway.pack.codec._brotli": "return brotli.decompress(data)",
    "fairway.pack.codec._lzma": "return lzma.decompress(data, lzma.FORMAT_RAW, None, _LZMA_CHAIN)",
    # The digests of a data folder cover its shards, and its own digest is in the score.
    "fairway.data.shards.open_shard": "return np.memmap(path, '<u2', 'r', HEADER_BYTES)",
    "fairway.data.shards.check_vocabulary": "pass",
    # The tokenizer was checked when its data folder was made, whose digest is in the score.
    "fairway.data.spmodel._check_charsmap": "pass",
    "fairway.data.spmodel._check_trainer": "pass",
    "fairway.data.spmodel._check_pieces": "pass",
    # A header whose digest is right was written by this program, from fields of these types.
    "fairway.config.settings.from_dict": "return kind(**values)",
    "fairway.pack.artifact._parse": "return json.loads(text)",
    "fairway.pack.artifact._check_provenance": "pass",
    "fairway.pack.artifact._check_sections": "pass",
    "fairway.pack.artifact._check_sizes": "pass",
    "fairway.pack.artifact._require_hex": "pass",
    "fairway.pack.artifact._whole": "return value",
    "fairway.pack.artifact._with_keys": "return value",
    "fairway.pack.codec._require_codec": "pass",
    "fairway.pack.codec._require_stride": "pass",
    # Whether a backend runs is asked; why not, nobody reads.
    "fairway.model.attention._check_width": "pass",
    "fairway.model.attention._missing_cudnn": "return not torch.backends.cudnn.version()",
    "fairway.model.attention._missing_flash": (
        "return not torch.backends.cuda.is_flash_attention_available()"
    ),
    "fairway.model.attention._missing_fa4": (
        "found = importlib.util.find_spec; "
        "return not (found('cutlass') and found('flash_attn') and found('flash_attn.cute'))"
    ),
    "fairway.model.attention.why_not": (
        "return name not in ('plain', 'sdpa') and (device != 'cuda' or name not in ('efficient', "
        "'flex') and (dtype not in (torch.bfloat16, torch.float16) or "
        "torch.cuda.get_device_capability()[0] < _OLDEST_GENERATION[name] or _MISSING[name]()))"
    ),
    "fairway.base.units.duration": "return f'{seconds:.0f} s'",
}


# An artifact without trellises, column orders, logarithmic steps and those of columns, its digests
# right.
PLAIN_CUTS = {
    "fairway.pack.layout.form_of": "return PLAIN",
    "fairway.pack.layout.section_trellis": "return 0",
    "fairway.pack.layout.section_bits": (
        "return 16 if spec.kind != 'codes' else max(t.bits for t in matrices(spec, quantised))"
    ),
    "fairway.pack.layout.section_bytes": (
        "if spec.kind == 'vectors':\n"
        "  return b''.join(_vector_bytes(tensor, quantised) for tensor in spec.tensors)\n"
        " found = matrices(spec, quantised)\n"
        " if spec.kind == 'codes':\n"
        "  return b''.join(codes_bytes(t.codes.numpy(), 'i1') for t in found)\n"
        " return b''.join(t.scale.numpy().astype('<f2').tobytes() for t in found)"
    ),
    "fairway.pack.layout.SectionSpec.raw_bytes": "return 0",
    "fairway.pack.layout._require_codes": "pass",
    "fairway.pack.layout._require_finite": "pass",
    "fairway.pack.layout._require_steps": "pass",
    "fairway.pack.layout.Loaded._matrix": (
        "codes_RC, bits, _ = self._codes[name]; "
        "return QuantisedTensor(codes_RC, _tensor(self.steps[name]), bits)"
    ),
    "fairway.pack.layout.Loaded.add": (
        "for tensor, values in split(spec, raw, bits):\n"
        "  name, read = tensor.name, _tensor(values)\n"
        "  if spec.kind == 'codes':\n"
        "    self._codes[name] = read.reshape(tensor.shape[::-1]).T.contiguous(), bits, trellis\n"
        "  elif spec.kind == 'scales': self.steps[name] = values\n"
        "  else: self._vectors[name] = read.float().reshape(tensor.shape)"
    ),
    "fairway.pack.layout.split": (
        "values = np.frombuffer(raw, 'i1' if spec.kind == 'codes' else '<f2')\n"
        " size = lambda t: t.shape[0] if spec.kind == 'scales' else math.prod(t.shape)\n"
        " ends = np.cumsum([size(t) for t in spec.tensors])\n"
        " return [(t, values[end - size(t) : end]) for t, end in zip(spec.tensors, ends)]"
    ),
    "fairway.pack.artifact._flag": "return value",
}


# Where no text is encoded anew, normalisation does not matter, and the library's own reading of a
# tokenizer says all.
_PARSE = (
    "import sentencepiece as s; m = s.SentencePieceProcessor(model_proto=data); "
    "ids = range(m.vocab_size()); "
    "other = lambda i: m.is_control(i) or m.is_unknown(i) or m.is_unused(i); "
    "return ModelFile([m.id_to_piece(i) for i in ids], "
    "[BYTE if m.is_byte(i) else CONTROL if other(i) else 1 for i in ids], True)"
)

# What rounding on plain grids leaves as it is, in a file of the first version.
_PLAIN: dict[str, dict[str, Any]] = {
    "QuantisedTensor": {"scale_steps": None, "trellis": 0, "order": None, "columns": None},
    "Form": {"version": 1, "log_steps": False, "orders": False, "columns": False},
}

# Errors whose sentences a bundle leaves to the line of the traceback.
REFUSALS = ("UserError", "LedgerError", "ValueError", "AssertionError", "RuntimeError")


@dataclass
class Flat:
    """The kept items, the outside names they use, and the recipe."""

    items: list[Item]
    externals: set[str]
    config: Config


def flatten(config: Config) -> Flat:
    """Return what a recipe's run needs, in one scope and in the order in which it must stand.

    Settings that some reached code changes are no constants. Which code is reached depends on the
    constants: so at first all those count as changed that any code changes, then those that the
    code changes which was reached so, and so on until nothing more falls away.
    """
    changed = replaced_settings([module.tree for module in load_modules(ENTRY).values()])
    # What is nearly reached is more than what is, so that the end is the same, and sooner.
    nearly = _reached(config, changed)
    changed = replaced_settings([item.node for item in nearly.items])
    while True:
        flat = _specialised(_reached(config, changed))
        found = replaced_settings([item.node for item in flat.items])
        if found == changed:
            return flat
        changed = found


def _reached(config: Config, changed: frozenset[str]) -> Flat:
    """Return what the entry reaches where all settings but the changed ones are constants."""
    modules = load_modules(ENTRY)
    types = types_of(config, changed)
    plain = config.pack.codec != "cabac" and config.quant.method in ("gptq", "round")
    if plain:
        types.values |= _PLAIN
    found: set[str] = set()
    cuts = CUTS | {"fairway.config.settings.fixed_digest": f"return {fixed_digest(config)!r}"}
    if plain:
        cuts |= PLAIN_CUTS
        cuts |= {f"fairway.pack.orders.{name}_orders": "pass" for name in ("pack", "unpack")}
    # Sections are in the recipe's codec, and no other is ever read.
    if config.pack.codec != "cabac":
        cuts["fairway.pack.streams.decode_section"] = "pass"
    if config.pack.codec in ("cabac", "brotli"):
        cuts["fairway.pack.codec.decompress"] = "return unshuffle(brotli.decompress(data), stride)"
    # Documents go side by side for adapters alone.
    if config.ttt.method != "lora":
        cuts["fairway.score.ledger.Ledger._require_unscored"] = "pass"
    # Predictions move on inside their events for experts alone.
    if not config.mixture.experts:
        cuts["fairway.score.ledger.Ledger._advanced"] = "pass"
    if not unfit(config.model):
        cuts["fairway.model.paths.unfit"] = "pass"
    if not config.data.val_bytes:
        cuts["fairway.data.spmodel.parse_model"] = _PARSE
    for module in modules.values():
        found |= _cut(cuts, module.name, module.tree)
        types.learn(module.tree)
    assert found == cuts.keys(), f"cuts of what is not there: {sorted(cuts.keys() - found)}"
    for module in modules.values():
        if module.name == "fairway.config.settings":
            _fix_config(module.tree, config)
        if module.name == "fairway.quantise.fit":
            _set(module.tree, "LARGEST", LARGEST)
        if module.name == "fairway.model.attention":
            _prune_backends(module.tree, config)
        fold_module(module.tree, types)
        _Stripper().visit(module.tree)
    resolve(modules)
    kept, externals = shake(items_of(modules), _ENTRIES)
    _drop_settings(kept)
    kept, externals = shake(again(kept), _ENTRIES)
    return Flat(kept, externals, config)


def _specialised(flat: Flat) -> Flat:
    """Return what is still reached once parameters that are constants are such."""
    libraries = library_names()
    while specialise(flat.items, libraries) | drop_empty(flat.items, libraries):
        flat = Flat(*shake(again(flat.items), _ENTRIES), flat.config)
    return flat


def _cut(cuts: dict[str, str], name: str, tree: ast.Module) -> set[str]:
    """Make the cuts in a module; return their names."""
    found: set[str] = set()
    for node in walk(tree):
        inside = [tree] if node is tree else [node] if isinstance(node, ast.ClassDef) else []
        for item in (n for place in inside for n in place.body if isinstance(n, ast.FunctionDef)):
            middle = f".{node.name}" if isinstance(node, ast.ClassDef) else ""
            if text := cuts.get(f"{name}{middle}.{item.name}"):
                found.add(f"{name}{middle}.{item.name}")
                item.body = _body(text)
    return found


def _body(text: str) -> list[ast.stmt]:
    function = ast.parse(f"def f():\n {text}").body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.body


# Sections that an artifact's header holds whole.
_WHOLE = ("ModelConfig", "ScoreConfig")


def _drop_settings(items: list[Item]) -> None:
    """Leave out settings that nothing reads: what they are is in the recipe's digest."""
    read = {
        node.attr if isinstance(node, ast.Attribute) else node.arg
        for item in items
        for node in walk(item.node)
        if isinstance(node, ast.Attribute | ast.keyword)
    }
    for item in items:
        node = item.node
        if item.module != "fairway.config.settings" or not isinstance(node, ast.ClassDef):
            continue
        if not node.name.endswith(_WHOLE):
            node.body = [n for n in node.body if _setting(n) in (*read, "")] or [ast.Pass()]


def _setting(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return ""


def _prune_backends(tree: ast.Module, config: Config) -> None:
    """Leave out attention that neither the recipe's choice nor the program itself names."""
    asked = config.runtime.attention
    order = {target.id: value for target, value in _constants_of(tree)}["AUTO_ON_CUDA"]
    possible = set(ast.literal_eval(order)) if asked == "auto" else {asked, "plain"}
    for target, value in _constants_of(tree):
        if target.id in ("BACKENDS", "_MISSING") and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            kept = [(k, v) for k, v in pairs if k and ast.literal_eval(k) in possible]
            value.keys, value.values = [k for k, _ in kept], [v for _, v in kept]


def _set(tree: ast.Module, name: str, value: float) -> None:
    """Give a constant of a module, which it computes from the settings' bounds, as a number."""
    node = next(n for n in tree.body if bound_names(n) == {name})
    assert isinstance(node, ast.AnnAssign)
    node.value = ast.Constant(value)


def _constants_of(tree: ast.Module) -> Iterator[tuple[ast.Name, ast.expr]]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            yield target, value


def _fix_config(tree: ast.Module, config: Config) -> None:
    """Turn the config's classes into plain ones whose defaults are the recipe's values."""
    values: dict[str, dict[str, Any]] = {}
    top = to_dict(config)
    values["Config"] = {k: v for k, v in top.items() if not isinstance(v, dict)}
    for key, value in top.items():
        if isinstance(value, dict):
            values[type(getattr(config, key)).__name__] = value
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name not in values:
            continue
        node.decorator_list = [ast.parse("dataclass(frozen=True)", mode="eval").body]
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if item.target.id in values[node.name]:
                    item.value = ast.parse(repr(values[node.name][item.target.id])).body[0].value  # type: ignore[attr-defined]
                else:
                    item.value = ast.parse(f"{ast.unparse(item.annotation)}()").body[0].value  # type: ignore[attr-defined]


class _Stripper(Transformer):
    """Drops annotations, docstrings, assertions and the sentences of refusals."""

    def __init__(self) -> None:
        self.fields = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if is_kernel(node):
            _drop_docstring(node)
            return node
        fields, self.fields = self.fields, False
        node.returns = None
        a = node.args
        for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
            if arg:
                arg.annotation = None
        self.generic_visit(node)
        self.fields = fields
        _drop_docstring(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        fields = self.fields
        dataclass = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
        self.fields = dataclass or any("NamedTuple" in ast.unparse(base) for base in node.bases)
        for item in node.decorator_list if dataclass else ():
            if isinstance(item, ast.Call):
                # What guards against mistakes while writing, not what the program means.
                item.keywords = [k for k in item.keywords if k.arg not in ("slots", "kw_only")]
        self.generic_visit(node)
        self.fields = fields
        _drop_docstring(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self.fields:
            node.annotation = ast.Constant(0)
            return node
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Pass()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        # Types only for readers.
        if name in ("cast", "typing.cast"):
            return node.args[1]
        if name == "_refuse":
            node.args = [ast.Constant(0)]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        call = node.exc
        if isinstance(call, ast.Call) and ast.unparse(call.func) in REFUSALS:
            node.exc, node.cause = call.func, None
        return node

    def visit_Try(self, node: ast.Try) -> Any:
        self.generic_visit(node)
        # Without its sentence a refusal says less than the error that led to it.
        if not node.finalbody and all(_only_refuses(handler) for handler in node.handlers):
            return [*node.body, *node.orelse]
        return node


def _only_refuses(handler: ast.ExceptHandler) -> bool:
    first = handler.body[0]
    call = first.exc if isinstance(first, ast.Raise) else first
    call = call.value if isinstance(call, ast.Expr) else call
    # `visit_Raise` has been here: a refusal is its class alone.
    name = call.func if isinstance(call, ast.Call) else call
    return name is not None and ast.unparse(name) in (*REFUSALS, "_refuse")


def _drop_docstring(node: ast.FunctionDef | ast.ClassDef) -> None:
    first = node.body[0]
    value = first.value if isinstance(first, ast.Expr) else None
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        node.body = node.body[1:] or [ast.Pass()]
