"""
Which device, in which precision, and how tensors get there. train.py, sample.py and eval.py ask for
theirs here.
"""
import torch

from lib.options import UserError


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
