"""
Where a training runs: its device, and torchrun's other processes. train.py calls it.

One process trains alone, or torchrun starts one for each device: then the model is replicated (DDP)
or sharded (FSDP2), gradients are averaged, and each process computes its rows of the same global
batch.
"""
import contextlib
import importlib.util
import os
import shutil
import signal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lib.options import UserError, warn_once

# -----------------------------------------------------------------------------
# the device


def resolve_device(device):
    """The device that a --device flag means: `auto` is CUDA, else MPS, else the CPU. Raises
    UserError for one that is not there."""
    here = []
    if torch.cuda.is_available():
        here += ["cuda"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        here.append("mps")
    here.append("cpu")
    if device == "auto":
        return here[0]
    if device not in here:
        raise UserError(f"--device={device}: expected auto, or one that torch sees here: "
                        f"{', '.join(here)}")
    return device


def kind_of(device):
    """`cuda` of `cuda:1`: what torch calls a device's type."""
    return device.partition(":")[0]


def fast_dtype(device):
    """bfloat16 where the device has matrix units for it, else float32."""
    has_units = False
    if kind_of(device) == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        if not has_units:
            warn_once(f"float32: the {torch.cuda.get_device_name(device)} has no bfloat16 units")
    elif device == "cpu":
        has_units = torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bfloat16" if has_units else "float32"


def can_compile():
    """Whether torch.compile can work on a card. Triton writes the kernels, and compiles a few lines
    of C that start them: on Windows it is not there, and in a slim container no compiler."""
    compilers = [os.environ.get("CC", "gcc"), "gcc", "clang"]
    has_compiler = any(shutil.which(compiler) for compiler in compilers)
    return has_compiler and bool(importlib.util.find_spec("triton"))


def should_compile(device):
    """What --compile=auto means: does torch.compile pay off on this device, and can it work?"""
    if kind_of(device) != "cuda":
        return False  # on a CPU it takes a minute and gains 10 percent
    if can_compile():
        return True
    warn_once("not compiled: torch.compile needs Triton and a C compiler (gcc or clang) here; "
              "training works without them, and takes longer")
    return False


def to_device(tensor, device):
    """A copy of a CPU's tensor on `device`, which a GPU makes while the CPU goes on."""
    if kind_of(device) == "cuda":
        tensor = tensor.pin_memory()  # from any other memory the CPU waits for the copy
    return tensor.to(device, non_blocking=True)


# -----------------------------------------------------------------------------
# the processes


class Processes:
    """Those that train together, seen from one of them. torchrun's environment says which."""

    def __init__(self, device):
        """device: as `resolve_device` returns it. Raises UserError where they can't share it."""
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))  # on all machines together
        self.device = device
        self.is_first = self.rank == 0
        if kind_of(device) == "cuda" and self.world_size > 1:
            self.device = own_cuda_device(device)
            torch.cuda.set_device(self.device)

    def connect(self):
        """Meet the other processes."""
        if self.world_size > 1:
            # what is on the CPU travels by gloo, so that small things need no GPU
            is_cuda = kind_of(self.device) == "cuda"
            dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")

    def disconnect(self):
        if self.world_size > 1:
            dist.barrier()  # who leaves first would look lost to the others
            dist.destroy_process_group()

    def print0(self, *values):
        """Print once, whatever the number of processes."""
        if self.is_first:
            print(*values)

    def quiet_others(self):
        """A block in which only the first process prints."""
        return contextlib.nullcontext() if self.is_first else contextlib.redirect_stdout(None)

    def micro_batches(self, n, at_once):
        """This process's share of the rows 0 .. n-1, a list of ranges of up to `at_once` rows. The
        shares of all processes together are all of the rows."""
        rows = range(self.rank, n, self.world_size)
        return [rows[i:i + at_once] for i in range(0, len(rows), at_once)]

    def sum(self, value):
        """The sum of a number over all processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def from_first(self, make):
        """What `make()` returns in the first process, in each; what it raises, all raise."""
        values = [None, None]  # the value, the error
        if self.is_first:
            try:
                values[0] = make()
            except Exception as error:
                values[1] = error
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        value, error = values
        if error is not None:
            raise error
        return value

    def expect_same(self, value):
        """Check that all have prepared the same `value`: were two machines' proxies different, one
        symbol would mean two things in one training. Raises UserError, in each process."""
        if self.world_size == 1:
            return
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f"process {rank} has prepared {other}, process 0 {values[0]}: give "
                                "all machines one cache (NANOPROXY_CACHE), or a copy of it")

    def expect_even_shares(self, options, *names):
        """Check that the processes can share what these options count. Raises UserError."""
        for name in names:
            if getattr(options, name) % self.world_size:
                raise UserError(f"--{name}={getattr(options, name)}: expected a multiple of the "
                                f"{self.world_size} processes")


def own_cuda_device(device):
    """The CUDA device of this process of several, each of which has another. Raises UserError."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])  # processes on this machine, of WORLD_SIZE in all
    n_devices = torch.cuda.device_count()
    if device != "cuda":
        raise UserError(f"--device={device}: all processes of torchrun would train on that one; "
                        "use --device=cuda")
    if here > n_devices:
        raise UserError(f"--nproc_per_node={here}: expected at most one process for each of the "
                        f"{n_devices} CUDA devices of this machine")
    return f"cuda:{os.environ['LOCAL_RANK']}"


# -----------------------------------------------------------------------------
# one model on all of them


def shard(model, dtype, processes):
    """FSDP2: shard the model over all processes, block by block, before its weights are there.

    It computes what DDP does with --no-muon, under the same autocast: a block's matrices are sent
    in the bfloat16 that autocast would make of them. Embeddings, residual stream and rotary angles
    stay float32, and gradients are added up in it.
    """
    # without a mesh it takes the machine's accelerator, whatever --device says
    mesh = init_device_mesh(kind_of(processes.device), (processes.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=getattr(torch, dtype), reduce_dtype=torch.float32,
        cast_forward_inputs=False)  # those are the residual stream and the angles
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)  # the rest of it


def replicate(model, processes):
    """What to call in the model's place: the model itself, or DDP around it."""
    if processes.world_size == 1 or isinstance(model, FSDPModule):
        return model
    # torch.compile would cut its graphs where a message of DDP begins. That is for models that are
    # compiled whole: messages can leave between our blocks as it is
    torch._dynamo.config.optimize_ddp = False
    # gradients lie in the messages' buckets: a copy would take 4 bytes a parameter more
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def gradient_sync(wrapped, last):
    """A block for a forward and backward pass, whose gradients DDP sends if it is a step's `last`.

    FSDP sends those of every micro-batch: else each device would keep the whole gradient, in
    float32, until the last one. Of 7B that is 28 GB, and not 3.5 on each of eight.
    """
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


def autocast(device, dtype):
    """Mixed precision: matrix products in bfloat16, norms and the residual stream in float32."""
    return torch.autocast(kind_of(device), dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def clip_gradients(parameters, clip):
    """Scale the gradients down to the norm `clip`; returns their norm before, a tensor ()."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of all shards


# -----------------------------------------------------------------------------
# signals


class StopSignals:
    """A block in which Ctrl-C and SIGTERM only set `received`, so that a step can be finished
    first. A second Ctrl-C ends the process at once."""
    def __enter__(self):
        self.received = False
        self.previous = {number: signal.signal(number, self.handle)
                         for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def handle(self, number, frame):
        self.received = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
