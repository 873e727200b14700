"""Functions and methods of libraries, and their effect on labels.

Each takes the flow and the call. It returns a value, or None if the call is to be followed like any
other.
"""

import ast
from collections.abc import Callable

from fairway.audit.records.expressions import CONVERTERS, ENVIRONMENT, Expressions
from fairway.audit.records.trees import last_name
from fairway.audit.records.values import (
    COST,
    ONE_HOT,
    PATH,
    UNKNOWN,
    VAL,
    Call,
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

Method = Callable[[Expressions, Call], Value | None]
METHODS: dict[str, Method] = {}
_NONE = Value(what=Known(None))


def _for(*names: str) -> Callable[[Method], Method]:
    def register(method: Method) -> Method:
        METHODS.update(dict.fromkeys(names, method))
        return method

    return register


def _put_back(flow: Expressions, call: Call, value: Value) -> Value:
    """Rebind the owner of a method to its new value, and return the value."""
    if call.owner is not None:
        flow.rebind(call.owner, value)
    return value


# ---------------------------------------------------------------------------------------------
# Training


@_for("backward")
def _backward(flow: Expressions, call: Call) -> Value:
    """Handle `loss.backward()`, or a helper that takes the loss."""
    if call.arguments and VAL in call.arguments[0].labels:
        flow.differentiated(call.node.args[0], call.arguments[0])
    elif call.owner is not None:
        flow.differentiated(call.owner, call.receiver)
    return UNKNOWN


@_for("step")
def _step(flow: Expressions, call: Call) -> Value:
    """Handle `optimizer.step()`, also with a closure, or through a scaler."""
    for argument in call.values:
        if isinstance(argument.what, Callee):
            flow.run(argument.what, Call(call.node))
    flow.stepped(call.receiver.of(Held) | call.given.of(Held))
    return UNKNOWN


@_for("zero_grad")
def _zero_grad(flow: Expressions, call: Call) -> Value:
    flow.waiting.clear()
    return UNKNOWN


@_for("grad_and_value", "value_and_grad")
def _of_function(flow: Expressions, call: Call) -> Value | None:
    """Handle a function that returns the gradient of its first argument that is a function."""
    losses = [v.what for v in call.values if isinstance(v.what, Callee)]
    return Value(what=Gradient(losses[0], last_name(call.node) != "grad")) if losses else None


@_for("one_hot")
def _one_hot(flow: Expressions, call: Call) -> Value | None:
    labels = call.given.labels
    return Value(labels | {ONE_HOT}) if VAL in labels else None


@_for("zip", "enumerate")
def _in_step(flow: Expressions, call: Call) -> Value | None:
    parts = tuple(call.arguments if last_name(call.node) == "zip" else call.arguments[:1])
    return Value(union(parts), Items(parts, (last_name(call.node),))) if parts else None


@_for("update")
def _update(flow: Expressions, call: Call) -> Value | None:
    """Handle `optimizer.update(model, gradients)`."""
    if len(call.arguments) == 2 and call.arguments[0].of(Held) and call.arguments[1].of(Trained):
        flow.absorb(call.arguments[0], call.arguments[1])
        return UNKNOWN
    return None


@_for("grad")
def _grad(flow: Expressions, call: Call) -> Value | None:
    """Handle `torch.autograd.grad(loss, inputs)`, or the gradient of a function."""
    if call.arguments and isinstance(call.arguments[0].what, Callee):
        return _of_function(flow, call)
    return flow.gradient(call.node.args[0], call.arguments[0]) if call.arguments else None


@_for("load_state_dict")
def _load_state(flow: Expressions, call: Call) -> Value:
    flow.load(call.receiver, call.given)
    return UNKNOWN


@_for("copy_", "set_")
def _copy_into(flow: Expressions, call: Call) -> Value:
    source = call.given
    if VAL in source.labels:
        return _put_back(flow, call, call.receiver.plus(source.without(Held).labels))
    flow.load(call.receiver, source)
    return call.receiver


@_for("add_", "sub_", "addcmul_", "addcdiv_", "lerp_", "mul_", "index_add_", "scatter_add_")
def _add_into(flow: Expressions, call: Call) -> Value:
    source = call.given
    if VAL in source.labels and COST in source.labels:
        return _put_back(flow, call, flow.added(call.node, call.receiver, source))
    flow.absorb(call.receiver, source)
    return call.receiver


@_for("append", "extend", "appendleft", "put", "insert")
def _append(flow: Expressions, call: Call) -> Value:
    source = flow.with_training(call.given)
    if VAL in source.labels and COST in source.labels:
        _put_back(flow, call, flow.added(call.node, call.receiver, source))
    else:
        _put_back(flow, call, call.receiver.plus(source.labels))
    return UNKNOWN


@_for(
    "zero_", "fill_", "reset", "reset_parameters", "uniform_", "normal_", "kaiming_uniform_",
    "zeros_", "ones_", "constant_", "xavier_uniform_", "orthogonal_", "trunc_normal_", "clear",
)  # fmt: skip
def _reset(flow: Expressions, call: Call) -> Value:
    value = call.receiver if call.receiver.of(Held) else call.given
    flow.forget(value)
    return _put_back(flow, call, value.without(Summed))


# ---------------------------------------------------------------------------------------------
# Copies, files


@_for("clone", "deepcopy", "copy", "cpu", "numpy")
def _copied(flow: Expressions, call: Call) -> Value:
    value = call.arguments[0] if call.arguments else call.receiver
    return Value(value.labels) if VAL in value.labels else flow.snapshot(value)


@_for("save", "save_file", "dump", "write", "write_bytes", "savez", "savez_compressed")
def _save(flow: Expressions, call: Call) -> Value:
    for value in call.values:
        flow.save(value)
    return UNKNOWN


@_for("load", "load_file", "read", "read_bytes", "open")
def _load(flow: Expressions, call: Call) -> Value:
    labels = call.labels
    if PATH in labels or VAL in labels:
        return Value(labels - {PATH} | {VAL})
    return Value(labels | {n for n in flow.disk if isinstance(n, Trained)})


@_for(
    "glob", "iglob", "rglob", "sorted", "Path", "join", "exists", "basename", "resolve", "str",
    "list", "format", "replace", "expanduser", "abspath", "dirname", "tuple", "reversed", "set",
    "with_suffix", "with_name", "as_posix", "fspath", "startswith", "endswith", "split",
)  # fmt: skip
def _path(flow: Expressions, call: Call) -> Value | None:
    """Handle operations on names of files, whose result is a name of a file."""
    labels = call.labels
    if not labels and not call.arguments:
        return Value(frozenset({flow.new()}))
    single = call.arguments[0].what if len(call.arguments) == 1 else None
    if isinstance(single, Items):
        return Value(labels, single)
    return flow.with_training(Value(labels)) if labels else None


@_for("next", "next_batch", "popleft", "pop", "get_batch")
def _next(flow: Expressions, call: Call) -> Value:
    """Handle the next item of an iterator: other tokens in every turn."""
    labels = call.labels
    if PATH in labels:
        labels = labels - {PATH} | {VAL}
    if VAL in labels and COST not in labels:
        labels = frozenset(cut(labels, id(call.node), flow.turns[-1:]))
    return Value(labels | set(flow.turns[-1:]))


# ---------------------------------------------------------------------------------------------
# Costs, new tensors, numbers


@_for("cross_entropy", "nll_loss", "log_softmax", "kl_div", "binary_cross_entropy_with_logits")
def _cost(flow: Expressions, call: Call) -> Value:
    labels = call.labels
    target = call.named.get("target", [*call.arguments, UNKNOWN, UNKNOWN][1])
    if target.of(Slice):
        # Only the targets are scored; other pieces are context, or a carried state.
        labels = Value(labels).without(Slice).labels | target.of(Slice)
    return flow.with_training(Value(labels | {COST} if VAL in labels else labels))


@_for(
    "zeros", "ones", "empty", "full", "randn", "rand", "zeros_like", "ones_like", "empty_like",
    "full_like", "randn_like", "rand_like", "new_zeros", "new_empty", "new_full", "defaultdict",
    "Counter", "dict", "bytearray", "deque", "randint", "randperm", "Linear", "Embedding",
    "LayerNorm", "RMSNorm", "Conv1d", "LSTM", "GRU", "MultiheadAttention",
)  # fmt: skip
def _fresh(flow: Expressions, call: Call) -> Value:
    return Value(frozenset({flow.new()}))


@_for("Parameter", "tensor", "as_tensor")
def _parameter(flow: Expressions, call: Call) -> Value:
    value = call.given
    return value if VAL in value.labels else flow.snapshot(value).plus({flow.new()})


@_for(
    "len", "numel", "size", "dim", "isinstance", "hasattr", "type", "id", "nelement", "time",
    "perf_counter", "is_available", "is_initialized", "all_reduce", "barrier", "synchronize",
    "broadcast", "all_gather", "empty_cache", "manual_seed", "isfile", "is_file", "is_dir",
    "isdir", "mkdir",
)  # fmt: skip
def _number(flow: Expressions, call: Call) -> Value:
    return Value(frozenset(n for n in call.labels if isinstance(n, Turn)))


@_for("print", "log", "log0", "info", "debug", "warning", "master_print", "log_fn")
def _printed(flow: Expressions, call: Call) -> Value | None:
    match call.node.args:
        case [ast.JoinedStr() | ast.Constant(value=str()), *_]:
            return UNKNOWN
    return None


@_for("log2")
def _log2(flow: Expressions, call: Call) -> None:
    """Handle a logarithm in bits of a value that is not a plain number."""
    if call.arguments and not isinstance(call.arguments[0].what, Known):
        flow.bits(call.node, call.arguments[0])


# ---------------------------------------------------------------------------------------------
# Python itself


def library(flow: Expressions, name: str, call: Call) -> Value | None:
    """Return the value of a function of Python, or None if it is unknown."""
    if name in ENVIRONMENT and call.arguments:
        return flow.environment(*[*call.arguments, call.named.get("default", _NONE)][:2])
    if name not in CONVERTERS or len(call.arguments) != 1:
        return None
    argument = call.arguments[0]
    if not isinstance(argument.what, Known):
        # A setting whose value is unknown stays a setting.
        return argument if {type(n) for n in argument.labels} == {Switch} else None
    try:
        value = CONVERTERS[name](argument.what.value)
    except (ValueError, TypeError, OverflowError):
        return None
    return Value(argument.labels, Known(value, argument.what.sure))


@_for("lower", "upper", "strip")
def _text(flow: Expressions, call: Call) -> Value | None:
    what, text = call.receiver.what, call.receiver.text
    if text is None or not isinstance(what, Known):
        return None
    return Value(call.receiver.labels, Known(getattr(text, last_name(call.node))(), what.sure))


@_for("add_argument")
def _add_argument(flow: Expressions, call: Call) -> Value:
    """Handle an option of the command line: the logged setting, else its default."""
    known = [v.what.value for v in call.arguments if isinstance(v.what, Known)]
    words = [str(word).lstrip("-").replace("-", "_") for word in known]
    wanted = call.named.get("dest", UNKNOWN).what
    name = str(wanted.value) if isinstance(wanted, Known) else next(iter(words[::-1]), "")
    action = call.named.get("action", UNKNOWN).what
    default = call.named.get("default", _NONE)
    if isinstance(action, Known) and action.value in ("store_true", "store_false"):
        default = Value(what=Known(action.value == "store_false"))
    what = flow.by_default(name, default.what)
    flow.set_part(call.receiver, name, Value(default.labels | {Switch(name)}, what))
    return UNKNOWN


@_for("parse_args", "add_argument_group", "add_mutually_exclusive_group")
def _parse_args(flow: Expressions, call: Call) -> Value | None:
    """Return the parser itself, which has its options as parts."""
    return call.receiver if call.receiver.of(Held) else None


@_for("getattr")
def _getattr(flow: Expressions, call: Call) -> Value:
    if len(call.arguments) < 2 or not isinstance(call.arguments[1].what, Known):
        return UNKNOWN
    name = str(call.arguments[1].what.value)
    found = flow.attribute(call.arguments[0], name)
    if found != UNKNOWN or len(call.arguments) == 2:
        return found
    default = call.arguments[2]
    if isinstance(default.what, Known):
        return Value(default.labels | {Switch(name)}, Known(default.what.value, False))
    return default


@_for("compile", "DDP", "DistributedDataParallel", "script", "disable", "trace", "wrap")
def _same(flow: Expressions, call: Call) -> Value | None:
    return call.arguments[0] if call.arguments else None


@_for("partial")
def _partial(flow: Expressions, call: Call) -> Value | None:
    inner = call.arguments[0].what if call.arguments else None
    if not isinstance(inner, Callee):
        return None
    bound, names = (*inner.bound, *call.arguments[1:]), (*inner.named, *call.named.items())
    return Value(call.arguments[0].labels, Callee(inner.node, inner.scope, bound, names))


@_for("map", "imap", "starmap", "submit", "apply", "apply_async", "checkpoint", "Thread")
def _handed(flow: Expressions, call: Call) -> Value | None:
    """Handle a function that another function calls."""
    for number, value in enumerate(call.values):
        if isinstance(value.what, Callee):
            rest = [Value(v.labels) for v in call.values[number + 1 :]]
            return flow.run(value.what, Call(call.node, arguments=rest))
    return None


@_for("eval", "train", "requires_grad_", "to", "cuda", "float", "bfloat16", "half", "double")
def _itself(flow: Expressions, call: Call) -> Value | None:
    """Handle a method that changes the form of an object and returns it."""
    return Value(call.receiver.labels) if call.owner is not None else None
