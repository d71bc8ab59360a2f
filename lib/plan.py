"""
Will a training in bfloat16 fit on the GPUs, and how long will it take? Memory is counted on tensors
without storage, so no GPU is needed for the answer.

model.py prints the sizes and the plan (python model.py --plan); train.py counts its FLOPs here.
The class GPT is an argument, since a file of lib/ imports none of the lesson.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from lib.options import expect, flag


@dataclass
class PlanOptions:
    vocab_size: int = flag(64 + 256 + 65536, "number of symbols: 320, and the proxy's")
    plan: bool = flag(False, "plan of a training's memory and time, in place of the sizes")
    size: str = flag("1.5B", "size to plan for, one that is printed without --plan")
    gpus: int = flag(8, "number of devices")
    gpu_memory: float = flag(80.0, "memory of a device, in GB")
    tflops: float = flag(989.0, "peak of a device in bfloat16, in TFLOP/s (989: H100)")
    mfu: float = flag(0.4, "share of this peak that training reaches; 0.4 is usual when compiled")
    budget: float = flag(1e11, "symbols to train on")
    micro_batch: int = flag(1, "contexts that a device takes at once")
    block_size: int = flag(0, "symbols in a context; 0: the size's own")
    sample_length: int = flag(500, "symbols in a sample: with the mask attention skips all others; "
                              "0: as many as in a context")
    fsdp: bool = flag(False, "sharding over the devices, as in train.py")
    activation_checkpointing: bool = flag(False, "activations computed twice, as in train.py")


# -----------------------------------------------------------------------------
# FLOPs


def flops_per_symbol(model, byte_rows=0, raw_share=0.0, attended=None):
    """Training FLOPs of a symbol, forward and backward, on average.

    6 for each parameter that multiplies, 12 for each attended symbol, channel and layer (PaLM,
    arXiv 2204.02311, appendix B).

    byte_rows, raw_share: the share raw_share of all positions hold a raw byte, and their loss needs
        only so many rows of the output layer.
    attended: symbols that a position attends to, on average: what a GPU with the sample mask has to
        do. None: the whole context, as if nothing were masked, which is PaLM's count, and that of
        train.py's --flops.
    """
    config = model.config
    multiplying = model.n_params(embeddings=False)
    multiplying -= raw_share * config.n_embd * (config.vocab_size - byte_rows)
    if attended is None:
        attended = config.block_size
    return 6 * multiplying + 12 * config.n_layer * config.n_embd * attended


def mean_of_drawn(pool, values):
    """The mean of `values`, one for each sample of the corpus, over what a Pool of mix.py draws."""
    of_sources = [values[samples].mean() if len(samples) else 0.0 for samples in pool.sources]
    return np.average(of_sources, weights=pool.chances)


def expected_raw_share(mixer):
    """The share of a training's positions that hold a raw byte, expected from its schedule and the
    lengths of its views: it depends on no seed."""
    raw_bytes = mixer.views.raw.lengths.astype(np.int64)  # (samples,)
    symbols = raw_bytes                                   # of raw bytes only, where none is drawn
    if mixer.options.mix > 0:
        symbols = mixer.views.comp.lengths.astype(np.int64)
    # the raw bytes of each sample, shown as each kind, and all its symbols, sentinels included
    shown = [("raw", raw_bytes, raw_bytes + 2), ("comp", 0 * raw_bytes, symbols + 2),
             ("pair", raw_bytes, raw_bytes + symbols + 4)]
    means = np.ones((3, 3))  # of each kind, over what is drawn of it
    for row, (kind, n_raw, n) in zip(means, shown):
        pool = mixer.pools[kind]
        if len(pool.samples):
            row[:] = [mean_of_drawn(pool, values) for values in (n_raw, n, n ** 2)]
    raw, length, length_squared = means.T

    share = 0.0
    steps = np.linspace(0, mixer.total_steps, 1001)
    for step in steps:
        chance = np.array(list(mixer.probabilities(step).values()))  # raw, comp, pair
        mean_raw, mean_length = chance @ raw, chance @ length
        # The end of a context is met by a sample in proportion to its length, and half of that lies
        # beyond, on average (renewal theory): so long samples are cut more than short ones
        cut = chance * length_squared / (2 * mean_length)
        drawn = mixer.block_size + cut.sum()
        raw_in_context = drawn * mean_raw / mean_length - (cut * raw / length).sum()
        share += raw_in_context / mixer.block_size
    return float(share / len(steps))


# -----------------------------------------------------------------------------
# the sizes


def model_without_memory(GPT, config):
    """A GPT whose parameters have shapes and no storage: 14B costs as little as nano."""
    with torch.device("meta"):
        return GPT(config)


def print_sizes(options, GPT, sizes):
    """A line for each of `sizes`, {name: config}."""
    print(f"with a vocabulary of {options.vocab_size:,} symbols: 64 special, 256 bytes, the rest "
          "the proxy's")
    print(f"{'size':>6} {'layers':>6} {'width':>6} {'heads':>5} {'context':>8} {'parameters':>15} "
          f"{'not embeddings':>15} {'FLOPs/symbol':>13} {'KV bytes/symbol':>16}")
    for size, config in sizes.items():
        model = model_without_memory(GPT, config)
        kv_bytes = config.n_layer * 2 * config.n_embd * 2  # keys and values, in bfloat16
        print(f"{size:>6} {config.n_layer:6} {config.n_embd:6} {config.n_head:5} "
              f"{config.block_size:8,} {model.n_params():15,} "
              f"{model.n_params(embeddings=False):15,} "
              f"{flops_per_symbol(model):13.2e} {kv_bytes:16,}")


# -----------------------------------------------------------------------------
# memory


def kept_for_backward(GPT, config, micro_batch, recompute):
    """Bytes that a micro-batch keeps for its backward pass, eager: (by the blocks, by the loss).

    Counted, not estimated: the model runs on fake tensors, which have shapes and no storage. Its
    weights do not count, nor do their copies in bfloat16.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second
    kept = {}  # storages by their address; kept alive, or another could get it

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def n_bytes():
        return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)

    with (FakeTensorMode(), torch.autocast("cpu", torch.bfloat16),
          saved_tensors_hooks(keep, lambda tensor: tensor)):
        model = GPT(config)
        model.recompute = recompute
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):  # the rest stays float32
                module.weight = torch.nn.Parameter(module.weight.bfloat16())
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        idx = torch.zeros(micro_batch, config.block_size, dtype=torch.long)
        x = model.states(idx)
        blocks = n_bytes()
        # of the positions only the number counts here
        none, all_of_them = torch.zeros(2, 0).long(), torch.zeros(2, idx.numel()).long()
        model.loss(x, idx, after_raw=none, after_other=all_of_them)
        return blocks, n_bytes() - blocks


def weights_in_use(model, sharded):
    """Bytes of the copies of weights and gradients that a step computes in, besides the float32
    ones."""
    if not sharded:  # autocast's copies of all matrices
        return 2 * model.n_params(embeddings=False)
    # FSDP gathers the block at work and the next one in bfloat16, and has their gradients, those of
    # one in float32 too, while they are added up. What is outside of blocks, embeddings and output
    # layer, stays gathered in float32 with its gradients, and autocast copies the output layer
    block = sum(p.numel() for p in model.blocks[0].parameters())
    outside = model.n_params() - model.config.n_layer * block
    gathered = 2 * 2 * block + 4 * outside
    gradients = 2 * 2 * block + 4 * block + 4 * outside
    return gathered + gradients + 2 * model.head.weight.numel()


def memory(options, GPT, config, loss_positions):
    """{what: bytes on a device} at the peak of a training step.

    The peak is in the last of several micro-batches, when there are gradients already.
    loss_positions: how many a chunk of the loss has.
    """
    model = model_without_memory(GPT, config)
    n = model.n_params()
    sharded = options.fsdp and options.gpus > 1
    shards = options.gpus if sharded else 1

    recompute = options.activation_checkpointing
    blocks, loss = kept_for_backward(GPT, config, options.micro_batch, recompute)
    # a chunk of the loss has logits, log-probabilities and gradients, each in float32
    logits = loss + 3 * 4 * loss_positions * config.vocab_size
    one_block = 0
    if recompute:  # one block at a time is computed again, when the logits are gone
        one_layer = replace(config, n_layer=1)
        one_block, _ = kept_for_backward(GPT, one_layer, options.micro_batch, recompute=False)
    return {
        "parameters": 4 * n / shards,
        "gradients": 4 * n / shards,
        # what DDP sends from; only the last micro-batch's backward pass moves the gradients there
        "DDP's buckets": 4 * n if options.gpus > 1 and not sharded else 0,
        "optimizer state": 8 * n / shards,  # of AdamW: two moments; the fused one needs no more
        "weights in use": weights_in_use(model, sharded),
        "activations": blocks,
        "logits or block": max(logits, one_block),
    }


# -----------------------------------------------------------------------------
# the plan


def print_plan(options, GPT, config, loss_positions):
    """Print whether a training fits on the GPUs, and how long it takes. Raises UserError.

    config: of the size that is planned for. loss_positions: as in `memory`.
    """
    expect(options, "above 0", "gpus", "gpu_memory", "micro_batch", "budget", "tflops", "mfu")
    expect(options, "of 0 or more", "block_size", "sample_length")
    expect(options, "from 0 to 1", "mfu")
    config = replace(config, block_size=options.block_size or config.block_size)
    print(f"{options.size} on {options.gpus} GPUs of {options.gpu_memory:g} GB, bfloat16, "
          f"micro-batch of {options.micro_batch} x {config.block_size:,} symbols")
    parts = memory(options, GPT, config, loss_positions)
    for name, size in parts.items():
        print(f"  {name:16} {size / 1e9:8.2f} GB a GPU")
    total = sum(parts.values())
    fits = total <= 1e9 * options.gpu_memory
    print(f"  {'in all':16} {total / 1e9:8.2f} GB a GPU: {'fits' if fits else 'does not fit'}, "
          "eager, with AdamW (Muon holds one moment, not two); torch.compile keeps less")

    # a sample's first symbol attends to one, its last to all: to half of it, on average
    length = min(options.sample_length or config.block_size, config.block_size)
    model = model_without_memory(GPT, config)
    flops = options.budget * flops_per_symbol(model, attended=(length + 1) / 2)
    seconds = flops / (options.gpus * options.tflops * 1e12 * options.mfu)
    print(f"  {options.budget:.2g} symbols are {flops:.2e} FLOPs: {seconds / 86400:.3g} days at "
          f"{options.mfu:.0%} of {options.tflops:g} TFLOP/s a GPU")
