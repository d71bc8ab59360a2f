"""
Which device, and in which precision. train.py, sample.py and eval.py ask for theirs here.
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
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device={device}: expected auto, cpu, cuda or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device={device}: this torch sees no CUDA device; use --device=cpu")
    if kind == "mps" and not has_mps:
        raise UserError(f"--device={device}: this torch sees no MPS device; use --device=cpu")
    return device


def fast_dtype(device):
    """bfloat16 where the device has matrix units for it, else float32."""
    if device.startswith("cuda"):
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        has_units = torch.cpu.get_capabilities().get("amx_bf16", False)
    else:
        has_units = False
    return "bfloat16" if has_units else "float32"
