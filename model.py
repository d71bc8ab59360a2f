"""
The byte transformer: a pre-norm decoder with rotary positions, QK-norm and a SwiGLU MLP, no biases, an untied head.

The idea of proxy compression (Zheng et al. 2026, arXiv 2602.04289; "the paper" in these files) needs nothing more: raw bytes
and the proxy's symbols are just different ids of one vocabulary, and the loss is plain next-symbol cross-entropy. Two
things go beyond a plain GPT, both optional inputs of `forward`:

- `mask` keeps attention inside a sample, since one context holds several of them (see `sample_mask`).
- `tail` is the text that ends at each position, its last 7 bytes packed in one integer. With `ngram=6` the model adds
  hashed embeddings of the last 2 to 6 of these bytes to its input (BLT, arXiv 2412.09871, sec. 3.2.1, has such features
  for patches). They belong to the place in the text, not to the symbol, so a raw byte and a proxy symbol which end at
  the same place get the same features: the two views meet at the input.

And one setting lets a small model carry over more of what it learns from one view to the other. An `aligned` model counts
positions in bytes of text, so that distances mean the same in both views; and to the rows of a proxy symbol it adds, at
the input, that of its last byte, at the output, that of its first. Inference still needs raw bytes only.

    python model.py                             every size with its parameters, FLOPs a symbol, KV-cache bytes a token
    python model.py --plan --size=7B --fsdp     the memory that a training needs on each GPU, and how long it takes
"""
import argparse
import dataclasses
import difflib
import functools
import itertools
import os
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

# name: (n_layer, n_embd, n_head, mlp_hidden, block_size). 1.5B is the paper's; the other large sizes keep its
# MLP of four times the width and are named, as there, by what they weigh with the proxy's vocabulary.
SIZES = {
    "nano":  (4, 64, 2, 192, 448),
    "micro": (4, 128, 4, 384, 448),
    "mini":  (5, 192, 6, 512, 448),
    "midi":  (6, 288, 6, 768, 448),
    "small": (6, 384, 6, 1024, 512),
    "124M":  (12, 768, 12, 3072, 1024),
    "0.5B":  (24, 1024, 16, 4096, 16384),
    "1.5B":  (20, 2048, 16, 8192, 16384),
    "4B":    (24, 3072, 24, 12288, 16384),
    "7B":    (24, 4096, 32, 16384, 16384),
    "14B":   (32, 5120, 40, 20480, 16384),
}
ATTEND_AT_ONCE = 64       # positions, on the CPU
BYTE0, PROXY0 = 64, 320   # ids of byte 0 and of the proxy's first symbol; mix.py has the whole vocabulary
LOSS_CHUNKS = 16          # pieces in which the loss is computed, more where one would have more logits than this:
LOGITS_AT_ONCE = 2 ** 26


class UserError(ValueError):
    """A mistake of the user's: its message is the one line that they see (`command_line` prints it)."""


@dataclass
class GPTConfig:
    vocab_size: int = 320
    n_layer: int = 4
    n_embd: int = 128
    n_head: int = 4
    mlp_hidden: int = 384
    block_size: int = 448        # symbols in a training context
    ngram: int = 0               # longest byte n-gram with an embedding, 2 to 7; 0: none
    ngram_buckets: int = 2 ** 15  # rows of the hashed table, a power of two
    n_byte_heads: int = 0        # bytes behind the next one that are guessed too, to generate faster
    aligned: bool = False        # proxy symbols stand where their bytes do, and share the rows of these

    @classmethod
    def named(cls, size, **changes):
        """The config of a named size. Raises UserError for an unknown name."""
        if size not in SIZES:
            raise UserError(f"unknown size {size!r}: expected one of {', '.join(SIZES)}{nearest(size, SIZES)}")
        n_layer, n_embd, n_head, mlp_hidden, block_size = SIZES[size]
        config = cls(n_layer=n_layer, n_embd=n_embd, n_head=n_head, mlp_hidden=mlp_hidden, block_size=block_size)
        return dataclasses.replace(config, **changes)

# -----------------------------------------------------------------------------
# the two optional inputs

TAIL = 7  # bytes of text in a tail: 7 of the 8 in an int64, so it is never negative


def pack_tails(text):
    """The last TAIL bytes at each position of `text`, an integer tensor or array (..., T) of byte values: int64 (..., T).

    Lowest byte: the one at the position itself. A tail of 0 means "no text here" and switches the features off.
    """
    last = text.astype("int64") if hasattr(text, "astype") else text.long()
    tails = last + 0  # a copy
    for k in range(1, min(TAIL, text.shape[-1])):
        tails[..., k:] |= last[..., :-k] << (8 * k)
    return tails


def next_tail(tail, byte):
    """The tail after one more `byte`: both int64 tensors of one shape. `pack_tails` for generation, a byte at a time."""
    return ((tail << 8) | byte) & (2 ** (8 * TAIL) - 1)


def sample_mask(doc):
    """Causal attention that stays inside a sample; `doc` (B, T) holds sample ids. Blockwise, since a sample is short.

    On CUDA a FlexAttention BlockMask. On the CPU a list of bool tensors (B, 1, ATTEND_AT_ONCE, K), true where attention is
    allowed: for so many positions at a time, over the last K positions up to the last of them, before which none sees any.
    """
    B, T = doc.shape
    if doc.is_cuda:
        return block_mask(doc)
    causal = torch.ones(T, T, dtype=torch.bool, device=doc.device).tril()
    mask, blocks = (causal & (doc[:, :, None] == doc[:, None, :]))[:, None], []
    for start in range(0, T, ATTEND_AT_ONCE):
        rows = mask[:, :, start:start + ATTEND_AT_ONCE]
        first = int(rows.any(0).any(0).any(0).int().argmax())  # the first position that any of them may attend to
        blocks.append(rows[..., first:start + ATTEND_AT_ONCE].contiguous())
    return blocks


def block_mask(doc):
    """`sample_mask` as a BlockMask, on any device: FlexAttention skips the blocks in which nothing may be attended to."""
    B, T = doc.shape

    def same_sample(b, h, q, k):
        return (q >= k) & (doc[b, q] == doc[b, k])
    create = compiled_block_mask() if doc.is_cuda else create_block_mask  # eager, it makes the dense mask first
    return create(same_sample, B, None, T, T, device=doc.device)


@functools.cache
def compiled_block_mask():
    return torch.compile(create_block_mask)


class KVCache:
    """Keys and values of all layers, (n_layer, 2, B, n_head, length, head_dim), for rows that may differ in length.

    A row's next symbol goes to `pos[row]`. What lies beyond is garbage of a longer neighbour's prompt, and is overwritten
    before the row gets there.
    """
    def __init__(self, config, batch, length, device=None, dtype=torch.float32):
        head_dim = config.n_embd // config.n_head
        self.kv = torch.zeros(config.n_layer, 2, batch, config.n_head, length, head_dim, device=device, dtype=dtype)
        self.pos = torch.zeros(batch, dtype=torch.long, device=device)
        self.bytes = torch.zeros(batch, length + 1, dtype=torch.long, device=device)  # before each symbol, and behind the last
        self.end = 0  # no row is longer than this: attention looks no further

    def update(self, layer, k, v, positions):
        """Write k, v (B, n_head, T, head_dim) at `positions` (B, T); return all keys and values up to `end`."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        for cached, new in zip(self.kv[layer], (k, v)):
            cached[rows, :, positions] = new.transpose(1, 2).to(cached.dtype)
        return self.kv[layer, :, :, :, :self.end].to(k.dtype)

    def places(self, n_bytes):
        """Where in the text the next symbols end, (B, T), given the bytes that each stands for."""
        ends = self.bytes.gather(1, self.pos[:, None]) + n_bytes.cumsum(1)
        self.bytes.scatter_(1, self.pos[:, None] + 1 + torch.arange(n_bytes.size(1), device=ends.device), ends)
        return ends

    def take(self, rows):
        """Keep `rows` (an index tensor), in that order: drops finished rows, or repeats a prefill for n completions."""
        self.kv, self.pos, self.bytes = self.kv[:, :, rows], self.pos[rows], self.bytes[rows]

# -----------------------------------------------------------------------------
# the transformer


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, rotary, mask, update_cache=None):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        (q, k), v = norm(rotate(qkv[:2], *rotary)).to(x.dtype), qkv[2]
        if update_cache is not None:
            k, v = update_cache(k, v)
        if isinstance(mask, BlockMask):
            y = flex_attention(q, k, v, block_mask=mask)
        elif isinstance(mask, list):
            ends = itertools.accumulate(block.size(2) for block in mask)
            y = torch.cat([F.scaled_dot_product_attention(
                q[:, :, end - block.size(2):end], *(x[:, :, end - block.size(3):end] for x in (k, v)), attn_mask=block)
                for block, end in zip(mask, ends)], dim=2)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * config.mlp_hidden, bias=False)
        self.down = nn.Linear(config.mlp_hidden, config.n_embd, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x, *attention_inputs):
        x = x + self.attn(norm(x), *attention_inputs)
        return x + self.mlp(norm(x))


class ByteHeads(nn.Module):
    """What the states (..., n_embd) say of the bytes behind the next one: (..., n_byte_heads, n_embd), from an MLP for each."""
    def __init__(self, config):
        super().__init__()
        self.n = config.n_byte_heads
        self.gate_up = nn.Linear(config.n_embd, self.n * 2 * config.mlp_hidden, bias=False)
        self.down = nn.Parameter(torch.empty(self.n, config.mlp_hidden, config.n_embd))

    def forward(self, x):
        gate, up = self.gate_up(x).unflatten(-1, (self.n, -1)).chunk(2, dim=-1)
        return norm(x.unsqueeze(-2) + torch.einsum("...nh,nhc->...nc", F.silu(gate) * up, self.down))


class NgramEmbedding(nn.Module):
    """The sum of hashed embeddings of the last 2 to n bytes of text that end at each position. One table serves all n."""
    # odd and arbitrary: they spread the bits of a product
    SPREAD, STEP, MIX = 0x4F1BBCDCBFA53E0B, 0x632BE59BD9B4E019, 0x2545F4914F6CDD1D

    def __init__(self, config):
        super().__init__()
        if not 2 <= config.ngram <= TAIL:
            raise UserError(f"ngram={config.ngram}: expected 0 for none, or 2 to {TAIL} bytes")
        self.n, self.buckets = config.ngram, config.ngram_buckets
        self.table = nn.EmbeddingBag(config.ngram_buckets, config.n_embd, mode="sum")

    def hashes(self, tail):
        """Table rows, (..., n-1) for tails (...): multiplicative hashing of each n-gram, from another start for each n."""
        grams = [(tail & (256 ** n - 1)) * self.SPREAD + n * self.STEP // 8 for n in range(2, self.n + 1)]
        grams = torch.stack(grams, dim=-1)
        return ((grams ^ (grams >> 29)) * self.MIX >> 33) & (self.buckets - 1)

    def forward(self, tail):
        features = self.table(self.hashes(tail).view(-1, self.n - 1)).view(*tail.shape, self.table.embedding_dim)
        return features * (tail != 0).unsqueeze(-1)


def raw_positions_first(idx):
    """(order, n_raw): a permutation (B*T,) of the positions of idx (B, T), those of raw bytes first, and their number."""
    raw = ((idx >= BYTE0) & (idx < PROXY0)).flatten()
    return (~raw).to(torch.uint8).argsort(stable=True), int(raw.sum())


def chunk_rows(n, vocab_size):
    """How many of n positions the loss takes at once."""
    return max(1, min(-(-n // LOSS_CHUNKS), LOGITS_AT_ONCE // vocab_size))


def chunk_loss(x, weight, y, raw=None):
    """Cross-entropy (N,) of targets y (N,) after states x (N, C). No proxy symbol can follow where raw (N,) is true."""
    logits = F.linear(x, weight).float()
    if raw is not None:
        logits = logits.masked_fill(raw[:, None] & (torch.arange(len(weight), device=x.device) >= PROXY0), -torch.inf)
    return F.cross_entropy(logits, y, ignore_index=-100, reduction="none")


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram = NgramEmbedding(config) if config.ngram else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.byte_heads = ByteHeads(config) if config.n_byte_heads else None  # the last to draw its weights
        if config.aligned:  # how many bytes each id stands for, and the ids of a proxy symbol's first and last one
            self.register_buffer("n_bytes", torch.ones(config.vocab_size, dtype=torch.long))
            self.register_buffer("ends", torch.full((2, config.vocab_size - PROXY0), BYTE0))
        self.chunk_loss = chunk_loss
        self.recompute = False  # activation checkpointing: keep only each block's input for the backward pass
        self.init_weights()

    def init_weights(self):
        """Normal(0, 0.02), scaled down where a matrix writes to the residual stream (GPT-2, sec. 2.3)."""
        for name, p in self.named_parameters():
            residual = name.endswith(("proj.weight", "down.weight", "heads.down"))
            whole = torch.empty(p.shape, device=p.device)
            nn.init.normal_(whole, std=0.02 / (2 * self.config.n_layer) ** 0.5 if residual else 0.02)
            if hasattr(p, "device_mesh"):  # sharded: every process draws the same matrix and keeps its part
                from torch.distributed.tensor import distribute_tensor  # takes half a second to import
                whole = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
            with torch.no_grad():
                p.copy_(whole)

    def spell(self, spellings):
        """Tell an aligned model what each proxy symbol stands for, a list of bytes."""
        self.n_bytes.fill_(1)[PROXY0:] = torch.tensor([len(text) for text in spellings])
        self.ends[:] = torch.tensor([[BYTE0 + (text or b"\0")[end] for text in spellings] for end in (0, -1)])

    def compile_parts(self):
        """torch.compile, piece by piece: the blocks share one compiled code, and FSDP can gather between them."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True)
        self.chunk_loss = torch.compile(chunk_loss, fullgraph=True, dynamic=False)

    def forward(self, idx, targets=None, tail=None, mask=None, cache=None, raw_first=None):
        """Logits (B, T, vocab_size) of the symbol after each of `idx` (B, T), or, given `targets`, the loss of each.

        targets: (B, T), -100 where there is nothing to predict; the result is then (B, T) in nats, 0 there.
        tail: int64 (B, T) from `pack_tails`. mask: from `sample_mask`; None is plainly causal.
        cache: a KVCache; idx then continues its rows, and the caller moves `cache.pos` on by what was valid.
        raw_first: what the function of that name makes of idx; a loader that gives it spares the GPU a wait.
        """
        x = self.states(idx, tail, mask, cache)
        if targets is None:
            return self.logits(x)
        return self.loss(x, targets, *(raw_first or raw_positions_first(idx)))

    def states(self, idx, tail=None, mask=None, cache=None):
        """The final states (B, T, n_embd), normed: all of `forward` but the head."""
        B, T = idx.shape
        positions = torch.arange(T, device=idx.device)
        if cache is not None:
            positions = cache.pos[:, None] + positions
            first, last = torch.stack(cache.pos.aminmax()).tolist()
            cache.end = last + T
            if first < last or 0 < first and T > 1:  # else all there is may be attended to, or plainly causal
                mask = torch.arange(cache.end, device=idx.device) <= positions[:, None, :, None]
        places = positions
        if self.config.aligned:
            places = cache.places(self.n_bytes[idx]) if cache is not None else self.n_bytes[idx].cumsum(1)
        head_dim = self.config.n_embd // self.config.n_head
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, device=idx.device) / head_dim)
        angle = (places[..., None] * frequency).unsqueeze(-3)  # (1, T, head_dim/2) or (B, 1, T, head_dim/2)
        rotary = angle.cos(), angle.sin()

        x = self.embed(idx)
        if self.config.aligned:
            last = self.embed(self.ends[1][(idx - PROXY0).clamp(min=0)])
            x = x + last * (idx >= PROXY0).unsqueeze(-1)
        if self.ngram is not None and tail is not None:
            x = x + self.ngram(tail)
        for layer, block in enumerate(self.blocks):
            update_cache = cache and functools.partial(cache.update, layer, positions=positions)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, mask, use_reentrant=False)
            else:
                x = block(x, rotary, mask, update_cache)
        return norm(x)

    def loss(self, x, targets, order, n_raw):
        """Cross-entropy (B, T) of `targets` (B, T) after the final states x (B, T, C).

        Behind a raw byte come only bytes and special symbols, never a proxy's: the softmax of these positions is over the
        first PROXY0 ids. They come first in `order`, so most chunks of them never touch the proxy's columns. Where all
        logits would not fit well in memory a chunk's are made in the backward pass once more, so the peak grows with
        the chunk and not with batch x vocabulary.
        """
        x, y, vocab = x.flatten(0, 1), targets.flatten(), self.config.vocab_size
        rows = chunk_rows(len(y), vocab)
        whole, bytes_only, losses = self.output_rows(), self.head.weight[:PROXY0], []
        for start in range(0, len(y), rows):
            at = order[start:start + rows]
            left = n_raw - start  # raw positions from here on
            inputs = (x[at], bytes_only, y[at]) if left >= len(at) else (x[at], whole, y[at])
            if 0 < left < len(at) and vocab > PROXY0:
                inputs += torch.arange(len(at), device=x.device) < left,
            if len(y) * vocab <= LOGITS_AT_ONCE:
                losses.append(self.chunk_loss(*inputs))
            else:
                losses.append(checkpoint(self.chunk_loss, *inputs, use_reentrant=False))
        losses = torch.cat(losses)[order.argsort().view(targets.shape)]
        if self.byte_heads and torch.is_grad_enabled():
            guesses = self.byte_head_loss(x, targets, order[:n_raw])
            losses = losses + (guesses - guesses.detach())  # for the gradient of the byte heads; nothing else changes
        return losses

    def byte_head_loss(self, x, targets, at):
        """Cross-entropy (B, T) of the bytes behind the next one, at the positions `at` of raw bytes, over all byte heads.

        The states x (B*T, C) and the head are taken as they are (Medusa-1, arXiv 2401.10774, sec. 2.2.1): the model learns
        exactly what it learns without byte heads.
        """
        states, weight = self.byte_heads(x[at].detach()), self.head.weight[:PROXY0].detach()
        ahead, inside, losses = targets, True, []
        for guessed in states.unbind(1):
            inside = inside & (ahead >= BYTE0)  # no sentinel so far, so the sample goes on
            ahead = F.pad(ahead[:, 1:], (0, 1), value=-100)
            y = ahead.masked_fill(~inside, -100).flatten()[at]
            losses.append(self.chunk_loss(guessed, weight, y))
        return torch.zeros(len(x), device=x.device).index_copy(0, at, torch.stack(losses).sum(0)).view(targets.shape)

    def guess(self, x):
        """The bytes (..., n_byte_heads) that probably come behind the next one, from final states x (..., n_embd)."""
        return F.linear(self.byte_heads(x), self.head.weight[BYTE0:PROXY0]).argmax(-1)

    def output_rows(self):
        """The head's weight (vocab_size, n_embd). Aligned, a proxy symbol's row adds to that of its first byte."""
        if not self.config.aligned:
            return self.head.weight
        weight = self.head.weight
        return torch.cat((weight[:PROXY0], weight[PROXY0:] + F.embedding(self.ends[0], weight)))

    def logits(self, x):
        """Logits (..., vocab_size) from final states x (..., n_embd)."""
        return F.linear(x, self.output_rows())

    def raw_logits(self, x):
        """Logits of the first PROXY0 ids, all that can follow raw text, from final states x (..., n_embd)."""
        return F.linear(x, self.head.weight[:PROXY0])

    def n_params(self, embeddings=True):
        """Parameters; without `embeddings` only those that multiply: blocks and head, not the look-up tables."""
        tables = [self.embed, self.ngram]
        lookups = sum(p.numel() for table in tables if table is not None for p in table.parameters())
        return sum(p.numel() for p in self.parameters()) - (0 if embeddings else lookups)

    def flops_per_symbol(self, raw_share=0.0):
        """Training FLOPs, forward and backward: 6 a multiplying parameter, 12 an attended symbol, channel and layer
        (PaLM, arXiv 2204.02311, appendix B; causal attention is counted in full, as there). raw_share: the share of
        positions behind a raw byte, whose loss needs only PROXY0 columns of the head."""
        c = self.config
        spared = raw_share * c.n_embd * max(0, c.vocab_size - PROXY0)
        if self.byte_heads:  # only on raw bytes; the head gets no gradient of theirs
            spared += (1 - raw_share) * sum(p.numel() for p in self.byte_heads.parameters())
            spared -= raw_share * c.n_byte_heads * c.n_embd * PROXY0 * 2 / 3
        return 6 * (self.n_params(embeddings=False) - spared) + 12 * c.n_layer * c.n_embd * c.block_size

# -----------------------------------------------------------------------------
# the command line, for every file: options are a dataclass, its fields the flags


def nearest(word, words):
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def flag(default, help, **metadata):
    """A dataclass field that is a command-line flag. metadata: `choices`, or `nargs` and such of argparse."""
    return dataclasses.field(default=default, metadata=dict(help=help, **metadata))


RULES = {"above 0": lambda x: x > 0, "of 0 or more": lambda x: x >= 0, "from 0 to 1": lambda x: 0 <= x <= 1}


def expect(options, rule, *names):
    """Raises UserError for the first of the flags `names` that breaks `rule`, a key of RULES."""
    for name in names:
        if not RULES[rule](getattr(options, name)):
            raise UserError(f"--{name}={getattr(options, name)}: expected a number {rule}")


def expect_device(device):
    """Raises UserError for CUDA where there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device={device}: this torch sees no CUDA device; use --device=cpu")


def parse(options, argv=None, **parser_settings):
    """An instance of the dataclass `options` from `--name=value` flags. Raises UserError naming the flag that is off."""
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(message)
    parser = Parser(**parser_settings, formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100,
                    max_help_position=28), allow_abbrev=False)
    for f in dataclasses.fields(options):
        more = {k: v for k, v in f.metadata.items() if k not in ("help", "positional")}
        shown = "" if f.default in (None, "", ()) else f" [{f.default}]"
        names = [f.name] if f.metadata.get("positional") else [f"--{f.name}"]
        if isinstance(f.default, bool):
            more["action"] = argparse.BooleanOptionalAction
        else:
            if f.default is not None and "nargs" not in more:
                more.setdefault("type", type(f.default))
            more["metavar"] = f.name.upper()
        choices = f" ({', '.join(more['choices'])})" if "choices" in more else ""
        help = (f.metadata["help"] + choices + shown).replace("%", "%%")
        parser.add_argument(*names, default=f.default, help=help, **more)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        flags = [s for s in parser._option_string_actions if s.startswith("--")]
        raise UserError(f"unknown flag {name}{nearest(name, flags)} (--help lists them)")
    return options(**vars(args))


def command_line(main, options, **parser_settings):
    """`main(parse(options))`; a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130."""
    try:
        main(parse(options, **parser_settings))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes meet the same error
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        sys.exit(0)


def print_sizes(options):
    print(f"with a vocabulary of {options.vocab_size:,} symbols: 64 special, 256 bytes, the rest the proxy's")
    print(f"{'size':>6} {'layers':>6} {'width':>6} {'heads':>5} {'context':>8} {'parameters':>15} {'not tables':>15} "
          f"{'FLOPs/symbol':>13} {'KV bytes/token':>14}")
    for size in SIZES:
        config = GPTConfig.named(size, vocab_size=options.vocab_size, ngram=options.ngram)
        with torch.device("meta"):  # no memory is touched: 14B costs as little as micro
            model = GPT(config)
        kv_bytes = 2 * config.n_layer * config.n_embd * 2  # keys and values, 2 bytes each in bf16
        print(f"{size:>6} {config.n_layer:6} {config.n_embd:6} {config.n_head:5} {config.block_size:8,} "
              f"{model.n_params():15,} {model.n_params(embeddings=False):15,} {model.flops_per_symbol():13.2e} "
              f"{kv_bytes:14,}")


def kept_for_backward(config, micro_batch, dtype, recompute):
    """Bytes that a micro-batch keeps for its backward pass (without weights), eager: (the blocks', the loss's).

    Counted, not estimated: the model runs on fake tensors, which have shapes and no memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # a storage that is freed could hand its address to another
        return tensor
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model, idx = GPT(config), torch.zeros(micro_batch, config.block_size, dtype=torch.long)
            model.recompute = recompute
            weights = {p.untyped_storage()._cdata for p in model.parameters()}
            x = model.states(idx, idx)
            blocks = sum(kept.values())
            model.loss(x, idx, torch.zeros(idx.numel(), dtype=torch.long), 0)
            return blocks, sum(kept.values()) - blocks
    finally:
        torch.set_default_dtype(torch.float32)


def memory(config, options):
    """{what: bytes on a device} of a training step at its peak: the last of several micro-batches, so gradients are there."""
    with torch.device("meta"):
        model = GPT(config)
    n, block = model.n_params(), sum(p.numel() for p in model.blocks[0].parameters())
    shards = options.gpus if options.fsdp else 1
    half = options.dtype == "bfloat16"
    dtype, size = (torch.bfloat16, 2) if half else (torch.float32, 4)
    blocks, loss = kept_for_backward(config, options.micro_batch, dtype, options.activation_checkpointing)
    rows = chunk_rows(options.micro_batch * config.block_size, config.vocab_size)
    logits = loss + 3 * 4 * rows * config.vocab_size  # of a chunk there are logits, log-probabilities and gradients
    if options.activation_checkpointing:  # one block at a time is computed again, when the logits are gone
        two, one = (kept_for_backward(dataclasses.replace(config, n_layer=layers), options.micro_batch, dtype, False)[0]
                    for layers in (2, 1))
        blocks, logits = blocks + two - one, max(0, logits - (two - one))
    if shards > 1:  # FSDP gathers all but the blocks, the block at work and the next one; and there are their gradients
        in_use = 2 * size * (n - (config.n_layer - 2) * block)
    else:
        in_use = size * n * half  # autocast's copies
    return {"parameters": 4 * n / shards, "gradients": 4 * n / shards, "optimizer state": 8 * n / shards,
            "weights in use": in_use, "activations": blocks, "logits": logits}


def plan(options):
    """Prints whether a training fits on the GPUs, and how long it takes. Raises UserError."""
    expect(options, "above 0", "gpus", "gpu_memory", "micro_batch", "budget", "tflops", "mfu")
    expect(options, "of 0 or more", "block_size")
    expect(options, "from 0 to 1", "mfu")
    config = GPTConfig.named(options.size, vocab_size=options.vocab_size, ngram=options.ngram)
    config.block_size = options.block_size or config.block_size
    need, savers = memory(config, options), ("activation_checkpointing", "fsdp")
    print(f"{options.size} on {options.gpus} GPUs of {options.gpu_memory:g} GB, {options.dtype}, micro-batch of "
          f"{options.micro_batch} x {config.block_size:,} symbols" + "".join(f", --{name}" for name in savers if getattr(options, name)))
    for name, size in need.items():
        print(f"  {name:16} {size / 1e9:8.2f} GB a GPU")
    fits = sum(need.values()) <= 1e9 * options.gpu_memory
    print(f"  {'in all':16} {sum(need.values()) / 1e9:8.2f} GB a GPU: {'fits' if fits else 'does not fit'}, eager; "
          "torch.compile keeps less")
    for name in savers:
        if not fits and not getattr(options, name):
            options = dataclasses.replace(options, **{name: True})
            total = sum(memory(config, options).values())
            print(f"  with --{name} it takes {total / 1e9:8.2f} GB")
            fits = total <= 1e9 * options.gpu_memory
    with torch.device("meta"):
        flops = GPT(config).flops_per_symbol() * options.budget
    days = flops / (options.gpus * options.tflops * 1e12 * options.mfu) / 86400
    print(f"  {options.budget:.2g} symbols are {flops:.2e} FLOPs: {days:.3g} days at {options.mfu:.0%} of "
          f"{options.tflops:g} TFLOP/s a GPU")


def main(options):
    plan(options) if options.plan else print_sizes(options)


@dataclass
class SizeOptions:
    vocab_size: int = flag(64 + 256 + 65536, "symbols: 320 and the proxy's")
    ngram: int = flag(0, "longest byte n-gram with an embedding; 0: none")
    plan: bool = flag(False, "print the memory and the time that a training takes instead")
    size: str = flag("1.5B", f"of the model to plan for: {', '.join(SIZES)}")
    gpus: int = flag(8, "number of devices")
    gpu_memory: float = flag(80.0, "of one, in GB")
    tflops: float = flag(989.0, "peak of one in bfloat16, in TFLOP/s (989: H100)")
    mfu: float = flag(0.4, "share of this peak that the training reaches; 0.4 is usual for compiled models of this kind")
    budget: float = flag(1e11, "symbols to train on")
    micro_batch: int = flag(1, "contexts that a device takes at once")
    block_size: int = flag(0, "symbols in a context; 0: the size's")
    dtype: str = flag("bfloat16", "of the computation", choices=("bfloat16", "float32"))
    fsdp: bool = flag(False, "as in train.py")
    activation_checkpointing: bool = flag(False, "as in train.py")


if __name__ == "__main__":
    command_line(main, SizeOptions, description="Prints the sizes of the model, or a plan for training one.")
