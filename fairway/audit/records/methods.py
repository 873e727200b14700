"""Functions and methods that a followed script calls, and what they do to labels.

Each takes the flow, the call, what the method belongs to (or the function itself), and the
arguments; it returns a value, or None if the call is to be followed like any other.
"""

import ast
from collections.abc import Callable
from typing import Any

from fairway.audit.records.expressions import ENVIRONMENT, Expressions
from fairway.audit.records.values import (
    COST,
    ONE_HOT,
    PATH,
    UNKNOWN,
    VAL,
    Callee,
    Gradient,
    Held,
    Items,
    Known,
    Slice,
    Summed,
    Switch,
    Trained,
    Turn,
    Value,
    cut,
    union,
)

Method = Callable[[Expressions, ast.Call, Value, list[Value], dict[str, Value]], Value | None]
METHODS: dict[str, Method] = {}


def _for(*names: str) -> Callable[[Method], Method]:
    def register(method: Method) -> Method:
        for name in names:
            METHODS[name] = method
        return method

    return register


def _given(arguments: list[Value], named: dict[str, Value]) -> Value:
    return Value(union([*arguments, *named.values()]))


# ---------------------------------------------------------------------------------------------
# Training


@_for("backward")
def _backward(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """`loss.backward()`, or a helper that is given the loss."""
    if arguments and VAL in arguments[0].labels:
        flow.differentiated(node.args[0], arguments[0])
    elif isinstance(node.func, ast.Attribute):
        flow.differentiated(node.func.value, receiver)
    return UNKNOWN


@_for("step")
def _step(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """`optimizer.step()`, also with a closure, or through a scaler."""
    for argument in [*arguments, *named.values()]:
        if isinstance(argument.what, Callee):
            flow.run(node, argument.what, [], {})
    flow.stepped(receiver.of(Held) | _given(arguments, named).of(Held))
    return UNKNOWN


@_for("zero_grad")
def _zero_grad(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    flow.waiting.clear()
    return UNKNOWN


@_for("grad_and_value", "value_and_grad")
def _of_function(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """A function that gives a gradient, of the first function that is named."""
    losses = [v.what for v in [*arguments, *named.values()] if isinstance(v.what, Callee)]
    return Value(what=Gradient(losses[0], not _is_grad(node))) if losses else None


def _is_grad(node: ast.Call) -> bool:
    return getattr(node.func, "attr", getattr(node.func, "id", "")) == "grad"


@_for("one_hot")
def _one_hot(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    labels = _given(arguments, named).labels
    return Value(labels | {ONE_HOT}) if VAL in labels else None


@_for("zip")
def _zip(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if not arguments:
        return None
    return Value(union(arguments), Items(tuple(arguments), ("zip",)))


@_for("update")
def _update(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """`optimizer.update(model, gradients)`."""
    if len(arguments) == 2 and arguments[0].of(Held) and arguments[1].of(Trained):
        flow.absorb(arguments[0], arguments[1])
        return UNKNOWN
    return None


@_for("grad")
def _grad(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """`torch.autograd.grad(loss, inputs)`, or the gradient of a function."""
    if arguments and isinstance(arguments[0].what, Callee):
        return METHODS["value_and_grad"](flow, node, receiver, arguments, named)
    return flow.gradient(node.args[0], arguments[0]) if arguments else None


@_for("load_state_dict")
def _load_state(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    flow.load(receiver, _given(arguments, named))
    return UNKNOWN


@_for("copy_", "set_")
def _copy_into(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    source = _given(arguments, named)
    if VAL in source.labels:
        grown = receiver.plus(source.without(Held).labels)
        flow.rebind(node.func.value, grown)
        return grown
    flow.load(receiver, source)
    return receiver


@_for("add_", "sub_", "addcmul_", "addcdiv_", "lerp_", "mul_", "index_add_", "scatter_add_")
def _add_into(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    source = _given(arguments, named)
    if VAL in source.labels and COST in source.labels:
        grown = flow.added(node, receiver, source)
        flow.rebind(node.func.value, grown)
        return grown
    flow.absorb(receiver, source)
    return receiver


@_for("append", "extend", "appendleft", "put", "insert")
def _append(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    source = flow.with_training(_given(arguments, named))
    if VAL in source.labels and COST in source.labels:
        grown = flow.added(node, receiver, source)
    else:
        grown = receiver.plus(source.labels)
    if isinstance(node.func, ast.Attribute):
        flow.rebind(node.func.value, grown)
    return UNKNOWN


@_for(
    "zero_", "fill_", "reset", "reset_parameters", "uniform_", "normal_", "kaiming_uniform_",
    "zeros_", "ones_", "constant_", "xavier_uniform_", "orthogonal_", "trunc_normal_", "clear",
)  # fmt: skip
def _reset(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    value = receiver if receiver.of(Held) else _given(arguments, named)
    flow.forget(value)
    value = value.without(Summed)
    if isinstance(node.func, ast.Attribute):
        flow.rebind(node.func.value, value)
    return value


# ---------------------------------------------------------------------------------------------
# Copies, files


@_for("clone", "deepcopy", "copy", "cpu", "numpy")
def _copied(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    value = arguments[0] if arguments else receiver
    return Value(value.labels) if VAL in value.labels else flow.snapshot(value)


@_for("save", "save_file", "dump", "write", "write_bytes", "savez", "savez_compressed")
def _save(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    for value in [*arguments, *named.values()]:
        flow.save(value)
    return UNKNOWN


@_for("load", "load_file", "read", "read_bytes", "open")
def _load(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    source = Value(receiver.labels | _given(arguments, named).labels)
    if PATH in source.labels or VAL in source.labels:
        return Value(source.labels - {PATH} | {VAL})
    trained = {n for n in flow.disk if isinstance(n, Trained)}
    return Value(source.labels | trained)


@_for(
    "glob", "iglob", "rglob", "sorted", "Path", "join", "exists", "basename", "resolve", "str",
    "list", "format", "replace", "expanduser", "abspath", "dirname", "tuple", "reversed", "set",
    "with_suffix", "with_name", "as_posix", "fspath", "startswith", "endswith", "split",
)  # fmt: skip
def _path(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """What is done to names of files gives names of files."""
    value = _given(arguments, named)
    labels = value.labels | receiver.labels
    if not labels and not arguments:
        return Value(frozenset({flow.new()}))
    single = arguments[0].what if len(arguments) == 1 else None
    if isinstance(single, Items):
        return Value(labels, single)
    return flow.with_training(Value(labels)) if labels else None


@_for("next", "next_batch", "popleft", "pop", "get_batch")
def _next(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """The next of something: other tokens in every turn."""
    labels = receiver.labels | _given(arguments, named).labels
    if PATH in labels:
        labels = labels - {PATH} | {VAL}
    if VAL in labels and COST not in labels:
        labels = frozenset(cut(labels, id(node), flow.turns[-1:]))
    return Value(labels | set(flow.turns[-1:]))


# ---------------------------------------------------------------------------------------------
# Costs, new tensors, numbers


@_for("cross_entropy", "nll_loss", "log_softmax", "kl_div", "binary_cross_entropy_with_logits")
def _cost(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    labels = receiver.labels | _given(arguments, named).labels
    target = named.get("target", arguments[1] if len(arguments) > 1 else UNKNOWN)
    if target.of(Slice):
        # What is scored are the targets; other pieces are context, or a state that was carried.
        labels = Value(labels).without(Slice).labels | target.of(Slice)
    return flow.with_training(Value(labels | {COST} if VAL in labels else labels))


@_for(
    "zeros", "ones", "empty", "full", "randn", "rand", "zeros_like", "ones_like", "empty_like",
    "full_like", "randn_like", "rand_like", "new_zeros", "new_empty", "new_full", "defaultdict",
    "Counter", "dict", "bytearray", "deque", "randint", "randperm", "Linear", "Embedding",
    "LayerNorm", "RMSNorm", "Conv1d", "LSTM", "GRU", "MultiheadAttention",
)  # fmt: skip
def _fresh(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    return Value(frozenset({flow.new()}))


@_for("Parameter", "tensor", "as_tensor")
def _parameter(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    value = _given(arguments, named)
    return Value(value.labels) if VAL in value.labels else flow.snapshot(value).plus({flow.new()})


@_for(
    "len", "numel", "size", "dim", "isinstance", "hasattr", "type", "id", "nelement", "time",
    "perf_counter", "is_available", "is_initialized", "all_reduce", "barrier", "synchronize",
    "broadcast", "all_gather", "empty_cache", "manual_seed", "isfile", "is_file", "is_dir",
    "isdir", "mkdir",
)  # fmt: skip
def _number(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    given = _given(arguments, named)
    kept = {n for n in receiver.labels | given.labels if isinstance(n, Turn)}
    return Value(frozenset(kept))


@_for("print", "log", "log0", "info", "debug", "warning", "master_print", "log_fn")
def _printed(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if node.args and isinstance(node.args[0], ast.JoinedStr):
        return UNKNOWN
    first = node.args[0] if node.args else None
    text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return UNKNOWN if text else None


@_for("log2")
def _log2(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """A logarithm in bits of something that is no plain number."""
    if arguments and not isinstance(arguments[0].what, Known):
        flow.bits(node, arguments[0])
    return None


# ---------------------------------------------------------------------------------------------
# Python itself


def library(
    flow: Expressions, name: str, arguments: list[Value], named: dict[str, Value]
) -> Value | None:
    """Return what a function of Python gives; None where nothing is known of it."""
    if name in ENVIRONMENT and arguments:
        given = [*arguments, named.get("default", Value(what=Known(None)))]
        return flow.environment(given[0], given[1])
    kinds: dict[str, Callable[[Any], object]] = {
        "int": int, "float": float, "bool": bool, "str": str,
    }  # fmt: skip
    if name not in kinds or len(arguments) != 1:
        return None
    known = arguments[0].what
    if not isinstance(known, Known):
        # A setting of which only the name is known stays one.
        return arguments[0] if {type(n) for n in arguments[0].labels} == {Switch} else None
    try:
        value = kinds[name](known.value)
    except (ValueError, TypeError, OverflowError):
        return None
    return Value(arguments[0].labels, Known(value, known.sure))


@_for("lower", "upper", "strip")
def _text(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if isinstance(receiver.what, Known) and isinstance(receiver.what.value, str):
        text = getattr(receiver.what.value, node.func.attr)()
        return Value(receiver.labels, Known(text, receiver.what.sure))
    return None


@_for("add_argument")
def _add_argument(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """An option of the command line: its default, unless the logs list the setting."""
    known = [v.what.value for v in arguments if isinstance(v.what, Known)]
    words = [str(word).lstrip("-").replace("-", "_") for word in known]
    wanted = named.get("dest", UNKNOWN).what
    name = str(wanted.value) if isinstance(wanted, Known) else next(iter(words[::-1]), "")
    action = named.get("action", UNKNOWN).what
    default = named.get("default", Value(what=Known(None)))
    if isinstance(action, Known) and action.value in ("store_true", "store_false"):
        default = Value(what=Known(action.value == "store_false"))
    what = flow.by_default(name, default.what)
    for held in receiver.of(Held):
        flow.parts.setdefault(held, {})[name] = Value(default.labels | {Switch(name)}, what)
    return UNKNOWN


@_for("parse_args", "add_argument_group", "add_mutually_exclusive_group")
def _parse_args(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """Options are parts of what they were added to."""
    return receiver if receiver.of(Held) else None


@_for("getattr")
def _getattr(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if len(arguments) < 2 or not isinstance(arguments[1].what, Known):
        return UNKNOWN
    found = flow.attribute(arguments[0], str(arguments[1].what.value))
    if found == UNKNOWN and len(arguments) > 2:
        default = arguments[2]
        if isinstance(default.what, Known):
            name = str(arguments[1].what.value)
            return Value(default.labels | {Switch(name)}, Known(default.what.value, False))
        return default
    return found


@_for("compile", "DDP", "DistributedDataParallel", "script", "disable", "trace", "wrap")
def _same(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    return arguments[0] if arguments else None


@_for("partial")
def _partial(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if arguments and isinstance(arguments[0].what, Callee):
        inner = arguments[0].what
        bound, names = (*inner.bound, *arguments[1:]), (*inner.named, *named.items())
        return Value(arguments[0].labels, Callee(inner.node, inner.scope, bound, names))
    return None


@_for("enumerate")
def _enumerate(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    if not arguments:
        return None
    return Value(arguments[0].labels, Items((arguments[0],), ("enumerate",)))


@_for("map", "imap", "starmap", "submit", "apply", "apply_async", "checkpoint", "Thread")
def _handed(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """A function that is called by something else."""
    values = [*arguments, *named.values()]
    for number, value in enumerate(values):
        if isinstance(value.what, Callee):
            rest = [Value(v.labels) for v in values[number + 1 :]]
            return flow.run(node, value.what, rest, {})
    return None


@_for("eval", "train", "requires_grad_", "to", "cuda", "float", "bfloat16", "half", "double")
def _itself(flow, node, receiver, arguments, named):  # type: ignore[no-untyped-def]
    """What changes the form of something and gives it back."""
    return Value(receiver.labels) if isinstance(node.func, ast.Attribute) else None
