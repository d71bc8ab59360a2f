"""
The program that a GPU would run, on a CPU: FlexAttention over block masks, in compiled blocks. All
of torch.compile works as it would there, but for its last stage, which writes the kernels.

test_all.py trains inside `cuda_program`, and compares with the CPU's own path.
"""
import contextlib
import functools
from unittest.mock import patch

import torch
import torch.nn.attention.flex_attention as flex

from lib import attention as masks


@contextlib.contextmanager
def cuda_program():
    """A block in which a CPU trains as a GPU does. Yields a `Graphs`.

    Without effect on `--compile=no`: then only masks are compiled. A function with more variants
    than torch.compile's limit of eight is an error here, where a GPU would give up in silence.
    """
    compile_without_kernels = functools.partial(torch.compile, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    masks.compiled_create_block_mask.cache_clear()
    try:
        # _validate_device says that FlexAttention has no backward pass on a CPU. That is true of
        # its CPU kernel; the plain operations that it falls back on, without kernels, have one
        with (patch.object(masks, "BLOCK_DEVICES", {"cuda", "cpu", "meta"}),
              patch.object(masks, "can_compile", lambda: True),  # no kernel is written here
              patch.object(flex, "_validate_device", lambda query, key, value: None),
              patch.object(torch, "compile", compile_without_kernels),
              torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)):
            yield Graphs()
    finally:
        masks.compiled_create_block_mask.cache_clear()
        torch._dynamo.reset()


class Graphs:
    """What torch.compile has done since `cuda_program` began."""

    def count(self):
        """The number of graphs; one more is seconds of compiling."""
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def breaks(self):
        """How often it had to leave a function to Python."""
        return sum(torch._dynamo.utils.counters["graph_break"].values())
