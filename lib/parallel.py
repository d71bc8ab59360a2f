"""
Training on several devices: what torchrun needs. train.py calls it.

One process trains alone, or torchrun starts one for each device: then the model is replicated (DDP)
or sharded (FSDP2), gradients are averaged, and each process computes its rows of the same global
batch.
"""
import contextlib
import os
import signal
import sys
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from lib.options import UserError


class Processes:
    """Those that train together, seen from one of them. torchrun's environment says which."""

    def __init__(self, device):
        """device: as `resolve_device` returns it. Raises UserError where they can't share it."""
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        self.is_first = self.rank == 0
        if device.startswith("cuda") and self.world_size > 1:
            self.device = own_cuda_device(device)
            torch.cuda.set_device(self.device)

    def connect(self):
        """Meet the other processes. What is on the CPU travels by gloo: small things need no
        GPU."""
        if self.world_size > 1:
            self.store, rank, world_size = next(dist.rendezvous("env://"))
            backend = "cpu:gloo,cuda:nccl" if self.device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, store=self.store, rank=rank, world_size=world_size)

    def disconnect(self):
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def print0(self, *values):
        """Print once, whatever the number of processes."""
        if self.is_first:
            print(*values)

    def quiet_others(self):
        """A block in which only the first process prints."""
        return contextlib.nullcontext() if self.is_first else contextlib.redirect_stdout(None)

    def rows(self, n):
        """This process's share of n rows, a range; the shares together are all of them."""
        return range(self.rank, n, self.world_size)

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

    def expect_even_shares(self, options, *names):
        """Check that the processes can share what these options count. Raises UserError."""
        for name in names:
            if getattr(options, name) % self.world_size:
                raise UserError(f"--{name}={getattr(options, name)}: expected a multiple of the "
                                f"{self.world_size} processes")

    @contextlib.contextmanager
    def one_line_if_one_is_lost(self, advice):
        """A block in which the end of another process ends this one too, with one line in all.

        advice(): the end of that line.
        """
        try:
            yield
        except RuntimeError as error:
            says_lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.world_size == 1 or not says_lost:
                raise
            is_first_to_say = self.store.add("lost", 1) == 1
            if is_first_to_say:
                print(f"error: a process of this job ended {advice()}", file=sys.stderr)
            sys.exit(2)


def own_cuda_device(device):
    """The CUDA device of this process of several, each of which has another. Raises UserError."""
    here, n_devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if device != "cuda":
        raise UserError(f"--device={device}: all processes of torchrun would train on that one; "
                        "use --device=cuda")
    if here > n_devices:
        raise UserError(f"--nproc_per_node={here}: expected at most one process for each of the "
                        f"{n_devices} CUDA devices of this machine")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def shard(model, dtype):
    """FSDP2: shard the model over all processes, block by block. Call it before the weights are
    there."""
    settings = {}
    if dtype == "bfloat16":
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, **settings)
    fully_shard(model, **settings)


def replicate(model, processes):
    """What to call in the model's place: the model itself, or DDP around it."""
    if processes.world_size == 1 or isinstance(model, FSDPModule):
        return model
    # torch.compile would cut its graphs where a message of DDP begins. That is for models that are
    # compiled whole: messages can leave between our blocks as it is
    torch._dynamo.config.optimize_ddp = False
    return DistributedDataParallel(model)


def gradient_sync(ddp_model, last):
    """A block for a forward and backward pass, whose gradients DDP sends if it is a step's `last`.

    FSDP sends those of every micro-batch: else each device would keep the whole gradient, in
    float32, until the last one. Of 7B that is 28 GB, and not 3.5 on each of eight.
    """
    if isinstance(ddp_model, DistributedDataParallel) and not last:
        return ddp_model.no_sync()
    return contextlib.nullcontext()


def autocast(model, device, dtype):
    """Mixed precision; not for a sharded model, which has a policy of its own."""
    enabled = dtype == "bfloat16" and not isinstance(model, FSDPModule)
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=enabled)


def clip_gradients(parameters, clip):
    """Scale the gradients down to the norm `clip`; returns their norm before, a tensor ()."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def skip_bad_step(norm, parameters, optimizer):
    """Make the next `optimizer.step` harmless if the gradient's norm is not finite.

    Returns 1.0 for such a step, else 0.0, a tensor (): looking at it would make the host wait for a
    GPU.
    """
    bad = (~norm.isfinite()).float()
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # as GradScaler asks
        optimizer.found_inf = bad  # a fused optimizer does nothing at all where this is 1
    if not bad.is_cpu or bad > 0:
        # any other one must at least not take a NaN into its momentum
        for p in parameters:
            gradient = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
            gradient.masked_fill_(bad > 0, 0.0)
    return bad


def whole_weights(model, sharded):
    """The state dict of a model, gathered from all processes if it is sharded."""
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=sharded))


# -----------------------------------------------------------------------------
# signals


class StopSignals:
    """A block in which Ctrl-C and SIGTERM only set `received`, so that a step can be finished
    first.

    A second Ctrl-C ends the process at once.
    """
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


def resolve_device(device):
    """The device that a --device flag means: `auto` is CUDA, else MPS, else the CPU.

    Raises UserError for one that is not there.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if has_mps else "cpu"
    kind, _, number = device.partition(":")
    is_numbered = kind == "cuda" and number.isdecimal()
    if kind not in ("cpu", "cuda", "mps") or (":" in device and not is_numbered):
        raise UserError(f"--device={device}: expected auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device={device}: this torch sees no CUDA device; use --device=cpu")
    if is_numbered and int(number) >= torch.cuda.device_count():
        raise UserError(f"--device={device}: expected a number below {torch.cuda.device_count()}, "
                        "the CUDA devices of this machine")
    if kind == "mps" and not has_mps:
        raise UserError(f"--device={device}: this torch sees no MPS device; use --device=cpu")
    return device


def is_here(device):
    """Is the device that a --device flag means there?"""
    try:
        resolve_device(device)
    except UserError:
        return False
    return True


def fast_dtype(device):
    """bfloat16 where the device has matrix units for it, else float32."""
    if device.startswith("cuda"):
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        has_units = torch.cpu.get_capabilities().get("amx_bf16", False)
    else:
        has_units = False
    return "bfloat16" if has_units else "float32"


def precision_note(device, dtype):
    """What to add where a GPU's precision is printed: why it is float32, if it had to be."""
    if dtype != "float32" or not device.startswith("cuda") or fast_dtype(device) == "bfloat16":
        return ""
    return f" (the {torch.cuda.get_device_name(device)} has no bfloat16 units)"


def to_device(tensor, device):
    """A copy of a CPU's tensor on `device`, which a GPU makes while the CPU goes on."""
    if device.startswith("cuda"):
        tensor = tensor.pin_memory()  # from any other memory the CPU waits for the copy
    return tensor.to(device, non_blocking=True)
