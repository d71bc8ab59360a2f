"""
What the model is told of its text besides the symbols: which sample each position is in, so that
attention stays inside it, and the bytes that end there, for the n-gram features.

A sample's positions are neighbours, so most of the T x T pairs of a context are not allowed. On
CUDA FlexAttention skips the blocks without any; on a CPU, and without Triton, our strips do.
train.py makes the mask, mix.py the suffixes; model.py attends with the one and looks the other up.
"""
import functools

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lib.options import UserError
from lib.parallel import can_compile

STRIP = 64                # queries that a CPU attends from at once
BLOCK_DEVICES = {"cuda"}  # where FlexAttention has a backward pass; runs/cuda_on_cpu.py adds a CPU
# else torch takes its kernel for decoding where contexts are below 128; it spills 38 kB there
KERNEL_OPTIONS = {"BACKEND": "TRITON"}
FLOAT32_MEMORY = 148_480  # bytes of shared memory that a block of heads of 128 takes in float32


@torch.no_grad()  # else validation would compile a graph of its own for the mask
def sample_mask(sample):
    """A mask for `attend`; `sample` (B, T) has the number of the sample that each position is in.

    Numbers rise from left to right. A query may see the keys of its sample up to its own position.
    """
    if sample.device.type not in BLOCK_DEVICES or not can_compile():
        return StripMask(sample)
    B, T = sample.shape

    def allowed(b, head, query, key):
        return (query >= key) & (sample[b, query] == sample[b, key])

    return compiled_create_block_mask()(allowed, B, None, T, T, device=sample.device)


@functools.cache
def compiled_create_block_mask():
    return torch.compile(create_block_mask)  # else it would make the dense T x T mask first


def attend(q, k, v, mask):
    """Attention of q to k and v, (B, n_head, T, head_dim).

    mask: from `sample_mask`; or bool (B, 1, T, keys), true where it is allowed; None: causal.
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, kernel_options=KERNEL_OPTIONS)
    if isinstance(mask, StripMask):
        return mask.attend(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def expect_kernel_fits(head_dim, dtype, device):
    """Raise UserError where heads are too large for a GPU's shared memory: in float32, those of 128
    fit an A100, but no consumer card. dtype: "float32" or "bfloat16"."""
    if not device.startswith("cuda") or dtype == "bfloat16" or head_dim < 128:
        return
    card = torch.cuda.get_device_properties(device)
    if card.shared_memory_per_block_optin < FLOAT32_MEMORY:
        raise UserError(f"--dtype=float32: attention with heads of {head_dim} does not fit in the "
                        f"shared memory of the {card.name}; use --dtype=bfloat16, or a --size with "
                        "smaller heads")


class StripMask:
    """For each strip of STRIP queries, the stretch of keys that at least one of them may see.

    Of three samples in a context, the second strip sees from where its first query's sample begins:

        sample    1 1 1 1 2 2 2 2 2 2 3 3        (B = 1, T = 12, STRIP = 6)
        strip 2               q q q q q q
        keys              k k k k k k k k        8 of the 12
    """
    def __init__(self, sample):
        T = sample.size(1)
        position = torch.arange(T, device=sample.device)
        self.strips = []  # (queries, keys, allowed), two slices and a bool (B, 1, queries, keys)
        for start in range(0, T, STRIP):
            stop = min(start + STRIP, T)
            # the first position that the strip's first query may see, in any of the rows
            can_be_seen = sample >= sample[:, start, None]                # (B, T)
            first_key = int(can_be_seen.int().argmax(dim=1).min())  # argmax returns the first one
            queries, keys = slice(start, stop), slice(first_key, stop)
            not_after = position[queries, None] >= position[keys]         # (queries, keys)
            same_sample = sample[:, queries, None] == sample[:, None, keys]
            self.strips.append((queries, keys, (not_after & same_sample)[:, None]))

    def attend(self, q, k, v):
        strips = []
        for queries, keys, allowed in self.strips:
            strips.append(F.scaled_dot_product_attention(
                q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=allowed))
        return torch.cat(strips, dim=2)


# -----------------------------------------------------------------------------
# suffixes

SUFFIX_BYTES = 7  # of the 8 in an int64, so that a suffix is never negative
# arbitrary: products with SPREAD and FINISH spread the bits; START makes each n begin elsewhere
SPREAD, START, FINISH = 0x4F1BBCDCBFA53E0B, 0x632BE59BD9B4E019, 0x2545F4914F6CDD1D


def pack_suffix(text):
    """The last SUFFIX_BYTES bytes at each position of `text`, packed: an int64 tensor (..., T).

    text: byte values, an integer tensor (..., T). The lowest byte of a suffix is the one at its
    position,

        text        a     b       c
        suffix      0x61  0x6162  0x616263

    A suffix of 0 means "no text here" (or NUL bytes alone): it has no n-gram features.
    """
    text = text.long()
    suffix = text.clone()
    for distance in range(1, min(SUFFIX_BYTES, text.size(-1))):
        suffix[..., distance:] |= text[..., :-distance] << (8 * distance)
    return suffix


def next_suffix(suffix, byte):
    """The suffix after one more `byte`, for generation: ints, or int64 tensors of one shape."""
    return ((suffix << 8) | byte) & (2 ** (8 * SUFFIX_BYTES) - 1)


def ngram_hashes(suffix, longest, buckets):
    """A row of a hashed table for each n-gram, 2 to `longest` bytes, that ends with a suffix.

    suffix: (...); returns (..., longest - 1), each below `buckets`, a power of two. Multiplicative
    hashing (Knuth, vol. 3, section 6.4). int64 products wrap around in torch, on purpose here: the
    bits that run over the top are not needed.
    """
    rows = []
    for n in range(2, longest + 1):
        last_n_bytes = suffix & (256 ** n - 1)
        h = last_n_bytes * SPREAD + n * START // 8  # n * START // 8 is below 2**63
        h = (h ^ (h >> 29)) * FINISH
        rows.append((h >> 33) & (buckets - 1))
    return torch.stack(rows, dim=-1)
