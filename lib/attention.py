"""
The sample mask: attention is causal and stays inside a sample, of which a context holds several.

A sample's positions are neighbors, so most of the T x T pairs are not allowed. On CUDA
FlexAttention skips the blocks without any, on a CPU our strips do. model.py attends with the mask,
train.py makes it.
"""
import functools
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


STRIP = 64                # queries that a CPU attends from at once
BLOCK_DEVICES = {"cuda"}  # where FlexAttention has a backward pass; lib/cuda_on_cpu.py adds a CPU


def sample_mask(sample):
    """A mask for `attend`; `sample` (B, T) has the number of the sample that each position is in.

    Numbers rise from left to right. This is what either kind of mask allows:

        (query >= key) & (sample[query] == sample[key])
    """
    in_blocks = sample.device.type in BLOCK_DEVICES
    return block_mask(sample) if in_blocks else StripMask(sample)


def attend(q, k, v, mask):
    """Attention of q to k and v, (B, n_head, T, head_dim).

    mask: from `sample_mask`; or bool (B, 1, T, keys), true where it is allowed; None: causal.
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask)
    if isinstance(mask, StripMask):
        return mask.attend(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class StripMask:
    """For each strip of STRIP queries, the stretch of keys that at least one of them may see.

    Of three samples in a context, the second strip sees from where its first query's sample begins:

        sample    1 1 1 1 2 2 2 2 2 2 3 3        (B = 1, T = 12, STRIP = 6)
        strip 2               q q q q q q
        keys              k k k k k k k k        8 of the 12
    """
    def __init__(self, sample):
        B, T = sample.shape
        position = torch.arange(T, device=sample.device)
        self.strips = []  # (queries, keys, allowed), two slices and a bool (B, 1, queries, keys)
        for start in range(0, T, STRIP):
            stop = min(start + STRIP, T)
            in_first_sample = sample == sample[:, start:start + 1]           # (B, T)
            first_key = int(in_first_sample.int().argmax(dim=1).min())
            queries, keys = slice(start, stop), slice(first_key, stop)
            causal = position[queries, None] >= position[None, keys]         # (queries, keys)
            same_sample = sample[:, queries, None] == sample[:, None, keys]  # (B, queries, keys)
            allowed = (causal & same_sample)[:, None]
            self.strips.append((queries, keys, allowed))

    def attend(self, q, k, v):
        strips = []
        for queries, keys, allowed in self.strips:
            strips.append(F.scaled_dot_product_attention(
                q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=allowed))
        return torch.cat(strips, dim=2)


@torch.no_grad()  # else there would be one graph for training and another for validation
def block_mask(sample):
    """The mask as FlexAttention takes it, on any device."""
    B, T = sample.shape

    def allowed(b, head, query, key):
        return (query >= key) & (sample[b, query] == sample[b, key])

    # if it is not compiled, create_block_mask makes the dense T x T mask first
    in_blocks = sample.device.type in BLOCK_DEVICES
    create = compiled_create_block_mask() if in_blocks else create_block_mask
    return create(allowed, B, None, T, T, device=sample.device)


@functools.cache
def compiled_create_block_mask():
    return torch.compile(create_block_mask)


SUFFIX_BYTES = 7  # of the 8 in an int64, so that a suffix is never negative


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
