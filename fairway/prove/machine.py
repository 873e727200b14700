"""The machine whose arithmetic a coded file needs, and the check that this machine computes the
same.

Decoding repeats the encoder's floating-point numbers to the bit. They depend on library versions,
the processor's instructions, the precision and the number of threads. So a file names them all, and
a machine that differs refuses it. The file names no host.
"""

import hashlib
import platform
from dataclasses import asdict, dataclass, replace

import numba
import numpy as np
import torch

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.settings import Config, RuntimeConfig
from fairway.machine.plan import DTYPES, Plan, make_plan, require_gpus
from fairway.model.attention import why_not
from fairway.model.gpt import GPT
from fairway.prove.coder import Decoder
from fairway.prove.walk import Coded, Course, Frozen, Segment, walk

# The positions that the fingerprint reads in one pass, and those that it reads one by one.
_READ, _STEPS = 24, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Versions, processor and settings; two machines with equal fields compute the same numbers."""

    torch: str
    numpy: str
    numba: str
    processor: str
    instructions: str
    gpu: str
    device: str
    dtype: str
    matmul: str
    threads: int
    attention: str
    kernels: str

    def runtime(self) -> RuntimeConfig:
        """Return the settings that reproduce this arithmetic; UserError for impossible ones."""
        config = RuntimeConfig(
            device=self.device,
            dtype=self.dtype,
            matmul=self.matmul,
            threads=self.threads,
            attention=self.attention,
            kernels=self.kernels,
        )
        check(Config(runtime=config))
        if "auto" in asdict(config).values() or not config.threads:
            raise UserError("the file leaves settings of its arithmetic open; it is damaged")
        return config


def coding_plan(runtime: RuntimeConfig, exact: bool = True) -> Plan:
    """Return the plan for coding: full float32 and plain formulas, unless the user chooses others.

    One token at a time gains nothing from bfloat16 on a CPU: every step would cast all weights. On
    a GPU it halves what steps read of the past and takes a tenth of the time to read windows. So a
    GPU uses bfloat16 and kernels, unless the result must be `exact`, as for the difference between
    a proof and its score. Attention is a backend that PyTorch ships compiled.
    """
    dtype, matmul, backend = runtime.dtype, runtime.matmul, runtime.attention
    kernels = "plain" if exact and runtime.kernels == "auto" else runtime.kernels
    cuda = runtime.device != "cpu" and torch.cuda.is_available()
    if dtype == "auto":
        dtype = "bfloat16" if cuda and not exact else "float32"
    if matmul == "auto":
        matmul = "highest"
    if backend == "auto" and cuda:
        ready = ("flash", "efficient")
        backend = next(name for name in ready if not why_not(name, "cuda", DTYPES[dtype]))
    return make_plan(
        replace(runtime, dtype=dtype, matmul=matmul, attention=backend, kernels=kernels)
    )


def this_machine(plan: Plan) -> Machine:
    """Return this machine under a plan."""
    return Machine(
        torch=str(torch.__version__),
        numpy=np.__version__,
        # On a CPU its compiled loops compute the element-wise steps.
        numba="off" if numba.config.DISABLE_JIT else numba.__version__,
        processor=platform.machine(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name() if plan.device == "cuda" else "",
        device=plan.device,
        dtype=plan.dtype,
        matmul=plan.matmul,
        threads=plan.threads,
        attention=plan.attention,
        kernels=plan.kernels,
    )


def plan_of(machine: Machine) -> Plan:
    """Return the plan of a coded file.

    Raises UserError with the first difference if this machine differs.
    """
    if machine.device == "cuda":
        require_gpus(1, f"it was coded on the GPU {machine.gpu}", "decode it where there is one")
    plan = make_plan(machine.runtime())
    here = asdict(this_machine(plan))
    for name, there in asdict(machine).items():
        if here[name] != there:
            raise UserError(
                f"it was coded with {name} {there}, here it is {here[name]}; decode on a machine "
                f"where {name} is {there}, because only equal arithmetic can decode it"
            )
    return plan


def fingerprint(model: GPT, rows: int, seq_len: int, bos_id: int) -> str:
    """Return 16 hex digits of a digest of the model's frequencies here, on a walk of made-up
    tokens.

    Two machines with equal fields may still add in another order; then their fingerprints differ.
    """
    read = min(_READ, seq_len // 2)
    steps = min(_STEPS, seq_len - read)
    segments = (Segment(0, 0, read), Segment(0, read, read + steps))
    course = Course((read + steps,) * rows, rows, seq_len, bos_id, segments)
    made_up = bytes(range(256)) * (1 + rows * (read + steps) // 64)
    walked = walk(model, course, Coded(Decoder(made_up)), Frozen(model), lambda count: None)
    numbers = np.concatenate((np.concatenate(walked.ids), np.concatenate(walked.nats)))
    return hashlib.sha256(numbers.astype(np.float64).tobytes()).hexdigest()[:16]
