"""
Will a training fit on the GPUs, and how long will it take? Memory is counted on tensors without
storage, so no GPU is needed for the answer.

model.py prints the sizes and the plan (python model.py --plan); train.py counts its FLOPs here.
The class GPT is an argument, since model.py imports this file.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from lib.options import expect, flag


@dataclass
class PlanOptions:
    vocab_size: int = flag(64 + 256 + 65536, "number of symbols: 320, and the proxy's")
    ngram: int = flag(0, "longest byte n-gram with an embedding; 0: none")
    plan: bool = flag(False, "plan of a training's memory and time, in place of the sizes")
    size: str = flag("1.5B", "size to plan for, one that is printed without --plan")
    gpus: int = flag(8, "number of devices")
    gpu_memory: float = flag(80.0, "memory of a device, in GB")
    tflops: float = flag(989.0, "peak of a device in bfloat16, in TFLOP/s (989: H100)")
    mfu: float = flag(0.4, "share of this peak that training reaches; 0.4 is usual when compiled")
    budget: float = flag(1e11, "symbols to train on")
    micro_batch: int = flag(1, "contexts that a device takes at once")
    block_size: int = flag(0, "symbols in a context; 0: the size's own")
    dtype: str = flag("bfloat16", "precision of the computation", choices=("bfloat16", "float32"))
    fsdp: bool = flag(False, "sharding over the devices, as in train.py")
    activation_checkpointing: bool = flag(False, "activations computed twice, as in train.py")


def flops_per_symbol(model, byte_rows, raw_share=0.0):
    """Training FLOPs of a symbol, forward and backward, on average.

    6 for each parameter that multiplies, 12 for each attended symbol, channel and layer (PaLM,
    arXiv 2204.02311, appendix B; causal attention is counted in full, as there). raw_share: the
    share of positions that hold a raw byte, whose loss needs only `byte_rows` rows of the output
    layer.
    """
    config = model.config
    multiplying = model.n_params(embeddings=False)
    multiplying -= raw_share * config.n_embd * max(0, config.vocab_size - byte_rows)
    if model.byte_heads is not None:  # they work on raw bytes only
        multiplying -= (1 - raw_share) * model.byte_heads.n_params()
        # each head reads the byte rows once more. These get no gradient, nor do the states that the
        # heads read: 2 of 3 matrix products are left
        multiplying += raw_share * config.n_byte_heads * config.n_embd * byte_rows * 2 / 3
        multiplying -= raw_share * model.byte_heads.gate_up.weight.numel() / 3
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return 6 * multiplying + attention


def expected_raw_share(mixer):
    """The share of a training's positions that hold a raw byte, expected from its schedule and the
    lengths of its views: it depends on no seed.
    """
    parts = mixer.views.parts
    raw_lengths = np.concatenate([np.diff(part.raw_offsets) for part in parts])
    # how many symbols each sample takes if it is shown as each kind, with its sentinels
    symbols = {"raw": raw_lengths + 2}
    if mixer.options.mix > 0:
        comp_lengths = np.concatenate([np.diff(part.comp_offsets) for part in parts])
        symbols["comp"] = comp_lengths + 2
        symbols["pair"] = raw_lengths + comp_lengths + 4
    raw = {kind: mixer.pools[kind].mean(raw_lengths) for kind in symbols}
    raw["comp"] = 0.0
    length = {kind: mixer.pools[kind].mean(symbols[kind]) for kind in symbols}
    length_squared = {kind: mixer.pools[kind].mean(symbols[kind] ** 2) for kind in symbols}

    shares = []
    for step in np.linspace(0, mixer.total_steps, 1001):
        chances = {kind: chance for kind, chance in mixer.probabilities(step).items() if chance > 0}
        mean_length = sum(chance * length[kind] for kind, chance in chances.items())
        mean_raw = sum(chance * raw[kind] for kind, chance in chances.items())
        cut = cut_raw = 0.0
        for kind, chance in chances.items():
            # The end of a context is met by a sample in proportion to its length, and half of that
            # lies beyond, on average (renewal theory): so long samples are cut more than short ones
            cut_of_kind = chance * length_squared[kind] / (2 * mean_length)
            cut += cut_of_kind
            cut_raw += cut_of_kind * raw[kind] / length[kind]
        drawn = mixer.block_size + cut
        n_raw = drawn * mean_raw / mean_length - cut_raw
        shares.append(n_raw / mixer.block_size)
    return float(np.mean(shares))


# -----------------------------------------------------------------------------
# the sizes


def model_without_memory(GPT, config):
    """A GPT whose parameters have shapes and no storage: 14B costs as little as nano."""
    with torch.device("meta"):
        return GPT(config)


def print_sizes(options, GPT, named, sizes, byte_rows):
    """A line for each of `sizes`. named: a size's config, given its name."""
    print(f"with a vocabulary of {options.vocab_size:,} symbols: 64 special, 256 bytes, "
          "the rest the proxy's")
    print(f"{'size':>6} {'layers':>6} {'width':>6} {'heads':>5} {'context':>8} {'parameters':>15} "
          f"{'not embeddings':>15} {'FLOPs/symbol':>13} {'KV bytes/symbol':>16}")
    for size in sizes:
        config = named(size, vocab_size=options.vocab_size, ngram=options.ngram)
        model = model_without_memory(GPT, config)
        kv_bytes = config.n_layer * 2 * config.n_embd * 2  # keys and values, in bfloat16
        print(f"{size:>6} {config.n_layer:6} {config.n_embd:6} {config.n_head:5} "
              f"{config.block_size:8,} {model.n_params():15,} "
              f"{model.n_params(embeddings=False):15,} "
              f"{flops_per_symbol(model, byte_rows):13.2e} {kv_bytes:16,}")


# -----------------------------------------------------------------------------
# the plan


class KeptTensors:
    """Counts the bytes that autograd keeps for the backward pass, without those of the weights."""

    def __init__(self):
        self.sizes = {}     # of each storage
        self.weights = set()
        self.alive = []     # a storage that is freed could hand its address to another

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.sizes[storage._cdata] = storage.nbytes()
        self.alive.append(tensor)
        return tensor

    def total(self):
        return sum(self.sizes.values())


def model_at_work(GPT, config, dtype, sharded):
    """A GPT whose weights have the precisions in which a step computes with them."""
    if dtype == "float32":
        return GPT(config)
    if sharded:  # FSDP gathers all weights in bfloat16, and gives all inputs in it
        torch.set_default_dtype(torch.bfloat16)
        return GPT(config)
    # autocast multiplies by bfloat16 copies; the rest, and so the sum over the blocks, is float32
    model = GPT(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.bfloat16())
    return model


def kept_for_backward(GPT, config, micro_batch, dtype, sharded, recompute):
    """Bytes that a micro-batch keeps for its backward pass, eager: (by the blocks, by the loss).

    Counted, not estimated: the model runs on fake tensors, which have shapes and no storage. Its
    weights do not count, nor do their copies in bfloat16.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second
    kept = KeptTensors()
    mixed = dtype == "bfloat16" and not sharded
    try:
        with (FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=mixed),
              saved_tensors_hooks(kept.keep, lambda tensor: tensor)):
            model = model_at_work(GPT, config, dtype, sharded)
            model.recompute = recompute
            kept.weights = {p.untyped_storage()._cdata for p in model.parameters()}
            idx = torch.zeros(micro_batch, config.block_size, dtype=torch.long)
            x = model.states(idx, idx)
            blocks = kept.total()
            no_position = torch.zeros(0, dtype=torch.long)
            every_position = torch.arange(idx.numel())
            model.loss(x, idx, after_raw=no_position, after_other=every_position)
            return blocks, kept.total() - blocks
    finally:
        torch.set_default_dtype(torch.float32)


def one_block(GPT, config, *settings):
    """Bytes that a single block keeps for its backward pass. settings: micro_batch, dtype and
    sharded, as `kept_for_backward` takes them."""
    one, two = (kept_for_backward(GPT, replace(config, n_layer=n_layer), *settings,
                                  recompute=False)[0] for n_layer in (1, 2))
    return two - one


def weights_in_use(model, dtype, sharded):
    """Bytes of the copies of weights and gradients in which a step computes, besides the float32
    ones: (of all, of a single block)."""
    n = model.n_params()
    n_block = sum(p.numel() for p in model.blocks[0].parameters())
    bytes_in_use = 2 if dtype == "bfloat16" else 4
    if sharded:
        # FSDP gathers the block at work, the next one, and all that is outside of blocks; and has
        # their gradients, those of a block also in float32, while they are added up
        gathered = n - (model.config.n_layer - 2) * n_block
        in_use = 2 * bytes_in_use * gathered + 4 * n_block
        return in_use, in_use
    if dtype == "bfloat16":  # autocast's copies, which it keeps until the forward pass is over
        return 2 * model.n_params(embeddings=False), 2 * n_block
    return 0, 0


def memory(options, config, GPT, loss_positions):
    """{what: bytes on a device} at the peak of a training step.

    The peak is in the last of several micro-batches, when there are gradients already.
    loss_positions: how many a chunk of the loss has.
    """
    model = model_without_memory(GPT, config)
    n = model.n_params()
    sharded = options.fsdp and options.gpus > 1
    shards = options.gpus if sharded else 1
    settings = options.micro_batch, options.dtype, sharded

    blocks, loss = kept_for_backward(GPT, config, *settings, options.activation_checkpointing)
    all_weights, weights_of_a_block = weights_in_use(model, options.dtype, sharded)
    # a chunk of the loss has logits, log-probabilities and gradients, each in float32
    logits = loss + 3 * 4 * loss_positions * config.vocab_size
    peak = {"weights in use": all_weights, "activations": blocks, "logits": logits}
    if options.activation_checkpointing:
        # later one block at a time is computed again, when the logits are gone
        again = blocks + one_block(GPT, config, *settings)
        later = {"weights in use": weights_of_a_block, "activations": again, "logits": 0}
        peak = max(peak, later, key=lambda parts: sum(parts.values()))
    return {
        "parameters": 4 * n / shards,
        "gradients": 4 * n / shards,
        "optimizer state": 8 * n / shards,  # of AdamW: two moments
        **peak,
    }


def print_plan(options, config, GPT, byte_rows, loss_positions):
    """Print whether a training fits on the GPUs, and how long it takes. Raises UserError.

    config: of the size that is planned for. byte_rows, loss_positions: as in `flops_per_symbol`,
    `memory`.
    """
    expect(options, "above 0", "gpus", "gpu_memory", "micro_batch", "budget", "tflops", "mfu")
    expect(options, "of 0 or more", "block_size")
    expect(options, "from 0 to 1", "mfu")
    config = replace(config, block_size=options.block_size or config.block_size)
    savers = ("activation_checkpointing", "fsdp")
    used = "".join(f", --{name}" for name in savers if getattr(options, name))
    print(f"{options.size} on {options.gpus} GPUs of {options.gpu_memory:g} GB, {options.dtype}, "
          f"micro-batch of {options.micro_batch} x {config.block_size:,} symbols{used}")

    parts = memory(options, config, GPT, loss_positions)
    for name, size in parts.items():
        print(f"  {name:16} {size / 1e9:8.2f} GB a GPU")
    total = sum(parts.values())
    available = 1e9 * options.gpu_memory
    verdict = "fits" if total <= available else "does not fit"
    print(f"  {'in all':16} {total / 1e9:8.2f} GB a GPU: {verdict}, eager, with AdamW; "
          "torch.compile keeps less")
    added = []
    for name in savers:
        helps = not getattr(options, name) and (name != "fsdp" or options.gpus > 1)
        if total > available and helps:
            added.append(f"--{name}")
            options = replace(options, **{name: True})
            total = sum(memory(options, config, GPT, loss_positions).values())
            print(f"  with {' and '.join(added)} it takes {total / 1e9:8.2f} GB")

    flops = options.budget * flops_per_symbol(model_without_memory(GPT, config), byte_rows)
    seconds = flops / (options.gpus * options.tflops * 1e12 * options.mfu)
    print(f"  {options.budget:.2g} symbols are {flops:.2e} FLOPs: {seconds / 86400:.3g} days at "
          f"{options.mfu:.0%} of {options.tflops:g} TFLOP/s a GPU")
