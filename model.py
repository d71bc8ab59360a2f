"""
The byte transformer: a pre-norm decoder with rotary positions, QK-norm and a SwiGLU MLP, no biases,
an untied head.

Proxy compression (Zheng et al. 2026, arXiv 2602.04289, "the paper" in these files) trains one model
on two views of its text: raw bytes, and the symbols that a compressor makes of them. Nothing in a
transformer has to change for that. Bytes and the compressor's symbols are ids of one vocabulary,

    0 .. 63   special symbols, 7 in use    64 .. 319   the 256 bytes    320 ..   the proxy's symbols

and the loss is next-symbol cross-entropy. Two optional inputs of `forward` help the model to learn:

- `mask` keeps attention inside a sample, since a training context holds several of them.
- `suffix` is, for each position, the last 7 bytes of its view's text read so far, packed into an
  int64 (an eighth would reach the sign). With `ngram=6` the model adds to its input the hashed
  embeddings of the n-grams of 2 to 6 bytes that end there, as BLT does (arXiv 2412.09871, section
  3.2.1). They belong to a place in the text: a raw byte and a proxy symbol that end at the same
  place get the same features. So the two views meet at the input.

A small model carries more over from one view to the other if it is also `aligned`. Positions then
count bytes of text (a symbol stands at its last one), so a distance means the same in both views. A
proxy symbol's input embedding is its own plus that of its last byte, the one just read; its row of
the output layer is its own plus that of its first byte, the one that comes next. This needs a proxy
whose every symbol stands for known bytes: true of the tokenizer and the neural coder, not of gzip.

Inference needs raw bytes only, except for a model trained with --mix=1, which never saw any.

    python model.py                             the sizes: parameters, FLOPs, KV cache
    python model.py --plan --size=7B --fsdp     will it fit on the GPUs, and how long will it take?
"""
from dataclasses import dataclass, replace

import lib  # first: it says what is missing or too old
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lib.attention import attend, ngram_hashes
from lib.options import UserError, command_line, expect_one_of
from lib.plan import PlanOptions, print_plan, print_sizes

BYTE0, PROXY0 = 64, 320  # the ids of byte 0 and of the proxy's first symbol
NO_TARGET = -100         # where there is nothing to predict: F.cross_entropy's ignore_index

# 1.5B is the paper's. 0.5B to 14B follow its shape, with an MLP of four times the width, and their
# names count the proxy's 65,536 symbols, as in the paper. 124M has GPT-2's shape and name; with so
# many symbols it would be 214M.
SIZES = {  # n_layer, n_embd, n_head, mlp_hidden, block_size
    "nano":  (4, 64, 2, 192, 768),
    "micro": (4, 128, 4, 384, 768),
    "mini":  (5, 192, 6, 512, 768),
    "midi":  (6, 288, 6, 768, 768),
    "small": (6, 384, 6, 1024, 768),
    "124M":  (12, 768, 12, 3072, 1024),
    "0.5B":  (24, 1024, 16, 4096, 16384),
    "1.5B":  (20, 2048, 16, 8192, 16384),
    "4B":    (24, 3072, 24, 12288, 16384),
    "7B":    (24, 4096, 32, 16384, 16384),
    "14B":   (32, 5120, 40, 20480, 16384),
}


@dataclass
class GPTConfig:
    n_layer: int
    n_embd: int
    n_head: int
    mlp_hidden: int
    block_size: int               # symbols in a training context
    vocab_size: int = PROXY0
    ngram: int = 0                # longest byte n-gram that has an embedding, 2 to 7; 0: none
    ngram_buckets: int = 2 ** 15  # rows of the hashed table, a power of two
    aligned: bool = False         # positions count bytes; proxy symbols add their end bytes' rows

    @classmethod
    def named(cls, size, **changes):
        """The config of a named size. Raises UserError for an unknown name."""
        expect_one_of("size", size, SIZES)
        return replace(cls(*SIZES[size]), **changes)


# -----------------------------------------------------------------------------
# the layers


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotary_angles(positions, head_dim):
    """(cos, sin) of the rotation at `positions` (B, T), each float32 (B, 1, T, head_dim / 2)."""
    channel = torch.arange(0, head_dim, 2, device=positions.device)
    frequency = 10000.0 ** (-channel / head_dim)
    angle = positions[:, None, :, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x, rotary):
    cos, sin = rotary
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, rotary, mask, cache):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, n_head, T, head_dim)
        q = norm(rotate(q, rotary)).to(v.dtype)  # the float32 angles have made it float32
        k = norm(rotate(k, rotary)).to(v.dtype)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = attend(q, k, v, mask)  # (B, n_head, T, head_dim)
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
    """x (B, T, C), the residual stream, and `rotary` stay float32 in bfloat16 training, too; matrix
    products are bfloat16. So FSDP must not cast a block's inputs (lib/parallel.py)."""

    def __init__(self, config, layer):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, rotary, mask, cache):
        x = x + self.attn(norm(x), rotary, mask, cache)
        x = x + self.mlp(norm(x))
        return x


class NgramEmbedding(nn.Module):
    """The sum of hashed embeddings of the last 2 to n bytes of text that end at each position."""

    def __init__(self, config):
        super().__init__()
        self.n = config.ngram
        self.table = nn.EmbeddingBag(config.ngram_buckets, config.n_embd, mode="sum")

    def forward(self, suffix):
        """Features (B, T, C) for suffixes (B, T), from `pack_suffix`; 0 where there is no text."""
        rows = ngram_hashes(suffix, self.n, self.table.num_embeddings)  # (B, T, n - 1)
        features = self.table(rows.flatten(0, -2)).view(*suffix.shape, -1)
        has_text = (suffix != 0).unsqueeze(-1)
        return features * has_text


def maybe_checkpoint(function, *inputs, recompute):
    """function(*inputs). With `recompute` only the inputs are kept for the backward pass, which
    computes the rest again (activation checkpointing): that takes less memory and more time."""
    if recompute and torch.is_grad_enabled():
        # nothing is drawn at random in there, so no generator's state has to be kept
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)


# -----------------------------------------------------------------------------
# the loss

# The loss is computed in chunks of positions; small ones cost time: each reads the whole head.
GPU_POSITIONS = 2048    # in a chunk on a GPU
CPU_POSITIONS = 256     # in a chunk on a CPU, at least
CHUNK_LOGITS = 2 ** 19  # with few ids a CPU's chunk is larger, up to 2 MB of logits: a core's cache
KEPT_LOGITS = 2 ** 26   # if a group (loss_groups) has more, the backward pass recomputes them


def cross_entropy(states, unembedding, targets):
    """Cross-entropy (N,) in nats of targets (N,) after states (N, C); 0 where NO_TARGET is."""
    logits = F.linear(states, unembedding).float()  # (N, vocabulary)
    return F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="none")


def chunk_positions(vocab_size, device):
    """How many positions a chunk of the loss has. device: "cpu", or any other type."""
    if device != "cpu":
        return GPU_POSITIONS
    return max(CPU_POSITIONS, CHUNK_LOGITS // vocab_size)


def chunked_cross_entropy(states, unembedding, targets):
    """The same as `cross_entropy`, in chunks; above KEPT_LOGITS only one chunk's exist at a time.

    The logits of 16,384 positions and 65,856 symbols would take 4.3 GB, their gradient as much.
    """
    at_once = chunk_positions(len(unembedding), states.device.type)
    recompute = len(states) * len(unembedding) > KEPT_LOGITS
    losses = []
    for some_states, some_targets in zip(states.split(at_once), targets.split(at_once)):
        losses.append(maybe_checkpoint(cross_entropy, some_states, unembedding, some_targets,
                                       recompute=recompute))
    return torch.cat(losses)


def loss_groups(idx):
    """The positions of idx (B, T) with a raw byte, and all others, (2, N) each: rows, columns."""
    is_raw = (idx >= BYTE0) & (idx < PROXY0)
    return is_raw.nonzero().T, (~is_raw).nonzero().T


# -----------------------------------------------------------------------------
# the model


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram = NgramEmbedding(config) if config.ngram else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.aligned:
            assert config.vocab_size > PROXY0, "aligned: there are no proxy symbols to align"
            n_proxy = config.vocab_size - PROXY0
            self.register_buffer("n_bytes", torch.ones(config.vocab_size, dtype=torch.long))
            self.register_buffer("first_byte", torch.full((n_proxy,), BYTE0))  # an id
            self.register_buffer("last_byte", torch.full((n_proxy,), BYTE0))   # an id
        self.recompute = False  # activation checkpointing: only each block's input is kept
        self.init_weights()

    def init_weights(self):
        """Normal(0, 0.02), smaller for what writes to the residual stream (GPT-2, section 2.3)."""
        for name, p in self.named_parameters():
            writes_to_residual = name.endswith(("proj.weight", "down.weight"))
            std = 0.02 / (2 * self.config.n_layer) ** 0.5 if writes_to_residual else 0.02
            whole = torch.empty(p.shape, device=p.device)
            nn.init.normal_(whole, std=std)
            if hasattr(p, "device_mesh"):  # sharded: all draw the same matrix, each keeps its part
                from torch.distributed.tensor import distribute_tensor  # takes half a second
                whole = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
            with torch.no_grad():
                p.copy_(whole)

    def set_symbol_bytes(self, symbol_bytes):
        """Tell an aligned model what each of the proxy's symbols stands for, a list of bytes."""
        # a tokenizer's id may stand for nothing: then any byte will do
        first = [text[0] if text else 0 for text in symbol_bytes]
        last = [text[-1] if text else 0 for text in symbol_bytes]
        lengths = [len(text) for text in symbol_bytes]
        self.first_byte.copy_(BYTE0 + torch.tensor(first))
        self.last_byte.copy_(BYTE0 + torch.tensor(last))
        # bytes and special symbols: one position each (once more: `to_empty` lost __init__'s ones)
        self.n_bytes[:PROXY0] = 1
        self.n_bytes[PROXY0:] = torch.tensor(lengths)

    def forward(self, idx, targets=None, suffix=None, mask=None, cache=None, groups=None):
        """Logits (B, T, vocab_size) of what follows each of idx (B, T), or the loss of `targets`.

        targets: (B, T), NO_TARGET where there is nothing to predict. The loss is (B, T) in nats, 0
            without a target: no mean, since bits per byte need sums over chosen positions.
        suffix: int64 (B, T), from `pack_suffix`; None: no n-gram features.
        mask: from `sample_mask`; None is plainly causal. Not with a cache, which makes its own.
        cache: a KVCache; idx continues its rows. The caller then advances `cache.filled`.
        groups: `loss_groups(idx)`, made with the batch; None: made here, which stalls a GPU.
        """
        x = self.states(idx, suffix, mask, cache)
        if targets is None:
            return self.logits(x)
        after_raw, after_other = groups or loss_groups(idx)
        return self.loss(x, targets, after_raw, after_other)

    def states(self, idx, suffix=None, mask=None, cache=None):
        """The final states (B, T, n_embd), normed: all of `forward` but the output layer."""
        n_bytes = self.n_bytes[idx] if self.config.aligned else torch.ones_like(idx)  # (B, T)
        if cache is None:
            positions = n_bytes.cumsum(1)  # over all samples: attention sees differences alone
        else:
            positions, mask = cache.begin(n_bytes)
        rotary = rotary_angles(positions, self.config.n_embd // self.config.n_head)
        x = self.embed_symbols(idx, suffix)  # (B, T, C)
        for block in self.blocks:
            x = maybe_checkpoint(block, x, rotary, mask, cache, recompute=self.recompute)
        return norm(x)

    def embed_symbols(self, idx, suffix):
        """The input (B, T, C): symbols, in an aligned model their last bytes, n-gram features."""
        x = self.embed(idx)
        if self.config.aligned:
            last_byte = self.last_byte[(idx - PROXY0).clamp(min=0)]
            is_proxy = (idx >= PROXY0).unsqueeze(-1)
            x = x + self.embed(last_byte) * is_proxy
        if self.ngram is not None and suffix is not None:
            x = x + self.ngram(suffix)
        return x

    def unembedding(self):
        """The output layer (vocab_size, C). Aligned: a proxy symbol's row plus its first byte's."""
        weight = self.head.weight
        if not self.config.aligned:
            return weight
        first_rows = F.embedding(self.first_byte, weight)
        return torch.cat((weight[:PROXY0], weight[PROXY0:] + first_rows))

    def raw_unembedding(self):
        """The rows of all that can follow a raw byte, special symbols and bytes: (PROXY0, C)."""
        return self.head.weight[:PROXY0]

    def logits(self, x):
        """Logits (..., vocab_size) from final states x (..., C)."""
        return F.linear(x, self.unembedding())

    def raw_logits(self, x):
        """Logits (..., PROXY0) of what follows a raw byte, from final states x (..., C)."""
        return F.linear(x, self.raw_unembedding())

    def loss(self, x, targets, after_raw, after_other):
        """Cross-entropy (B, T) in nats of `targets` (B, T) after the final states x (B, T, C).

        after_raw, after_other: the positions at which the model has just read a raw byte, and all
        others, from `loss_groups`.

        Not in the paper: after a raw byte only a byte or a closing sentinel can follow; so there
        the softmax is over the first PROXY0 ids only, as in a model of raw bytes. That is cheaper
        too. Elsewhere, also after sentinels, it is over all ids, as in the paper. A raw sample and
        then a compressed one, no pair, with 1,024 proxy symbols, one of them p7:

            read            <raw>   d    e    </raw>  <comp>   p7   </comp>
            target            d     e  </raw>  none     p7   </comp>  none
            softmax over    1,344  320  320           1,344  1,344
        """
        losses = torch.zeros(targets.shape, device=x.device)
        raw, other = tuple(after_raw), tuple(after_other)  # each an index into (B, T)
        losses[raw] = chunked_cross_entropy(x[raw], self.raw_unembedding(), targets[raw])
        losses[other] = chunked_cross_entropy(x[other], self.unembedding(), targets[other])
        return losses

    def split_parameters(self):
        """(embeddings, matrices): what is looked up, and what multiplies, the head too."""
        embeddings, matrices = [], []
        for name, p in self.named_parameters():
            is_embedding = name.startswith(("embed", "ngram"))
            (embeddings if is_embedding else matrices).append(p)
        return embeddings, matrices

    def n_params(self, embeddings=True):
        """The number of parameters; without `embeddings`, of those in matrix products."""
        _, matrices = self.split_parameters()
        return sum(p.numel() for p in (self.parameters() if embeddings else matrices))

    def compile_blocks(self):
        """torch.compile, block by block: they share a graph, and FSDP can gather between them."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True)


# -----------------------------------------------------------------------------
# the KV cache, for generation


class KVCache:
    """Keys and values of every layer, in float32, for a batch of rows that may differ in length.

    Two rows, of five and of three symbols, read one more symbol each, X and Y:

        slot       0 1 2 3 4 5
        row 0      a b c d e X        filled = 5: X goes to slot 5, and attends to 0 .. 5
        row 1      a b c Y . .        filled = 3: Y goes to slot 3, and attends to 0 .. 3

    A forward pass begins with `begin`; each layer then calls `update`; at last the caller advances
    `filled`, since only it knows which symbols were padding. Slots from `filled` on, as after row
    1's Y, are empty or hold padding: they are overwritten before the row can attend to them.
    """
    def __init__(self, config, batch_size, length, device=None):
        self.length = length  # symbols that there is room for
        head_dim = config.n_embd // config.n_head
        shape = (config.n_layer, 2, batch_size, config.n_head, length, head_dim)
        self.kv = torch.zeros(shape, device=device)
        self.filled = torch.zeros(batch_size, dtype=torch.long, device=device)  # slots in use, (B,)
        # [row, s]: the position that a row has reached after its first s symbols
        self.reached = torch.zeros(batch_size, length + 1, dtype=torch.long, device=device)
        self.slots = None  # (B, T) where the symbols of the present forward pass go
        self.end = 0       # nothing is stored from here on

    def begin(self, n_bytes):
        """Choose the slots that `update` writes to: once for each forward pass, before its layers.

        n_bytes: how many positions each of the next symbols (B, T) moves on. Returns the symbols'
        positions (B, T) and the mask (B, 1, T, end), true where a symbol may attend to a slot.
        """
        T = n_bytes.size(1)
        steps = torch.arange(T, device=self.filled.device)
        self.slots = self.filled[:, None] + steps
        self.end = int(self.filled.max()) + T
        stored = torch.arange(self.end, device=self.filled.device)
        mask = stored <= self.slots[:, None, :, None]           # (B, 1, T, end)

        before = self.reached.gather(1, self.filled[:, None])   # (B, 1)
        positions = before + n_bytes.cumsum(1)                  # (B, T)
        self.reached.scatter_(1, self.slots + 1, positions)
        return positions, mask

    def update(self, layer, k, v):
        """Store k and v (B, n_head, T, head_dim) of a layer; return all that is stored there."""
        rows = torch.arange(len(self.filled), device=self.filled.device)[:, None]
        for stored, new in zip(self.kv[layer], (k, v)):
            # indices around a slice: their dimensions come first, so (B, T, n_head, head_dim)
            stored[rows, :, self.slots] = new.transpose(1, 2)
        return self.kv[layer, :, :, :, :self.end]

    def take(self, rows):
        """Keep `rows` (an index tensor), in that order; a row that is listed twice is repeated."""
        self.kv = self.kv[:, :, rows]
        self.filled = self.filled[rows]
        self.reached = self.reached[rows]


# -----------------------------------------------------------------------------
# python model.py


def main(options):
    if options.vocab_size < PROXY0:
        raise UserError(f"--vocab_size={options.vocab_size}: expected at least {PROXY0}, the "
                        "special symbols and the bytes")
    if options.plan:
        config = GPTConfig.named(options.size, vocab_size=options.vocab_size)
        print_plan(options, GPT, config, chunk_positions(options.vocab_size, "cuda"))
    else:
        sizes = {size: GPTConfig.named(size, vocab_size=options.vocab_size) for size in SIZES}
        print_sizes(options, GPT, sizes)


if __name__ == "__main__":
    command_line(main, PlanOptions, description="Prints the model's sizes, or a training's plan.")
