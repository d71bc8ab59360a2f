"""
Multi-byte prediction: heads that guess the bytes after the next one, so that greedy generation
can write several bytes a step (Medusa, arXiv 2401.10774; EvaByte, the paper's backbone, has such
heads).

model.py builds `ByteHeads` for --n_byte_heads; sample.py writes with them through `Guessing`.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class ByteHeads(nn.Module):
    """An MLP for each head; head h guesses the byte that comes h + 1 bytes after the next one."""

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_byte_heads
        self.gate_up = nn.Linear(config.n_embd, self.n_heads * 2 * config.mlp_hidden, bias=False)
        self.down = nn.Parameter(torch.empty(self.n_heads, config.mlp_hidden, config.n_embd))

    def forward(self, x):
        """The state that each head makes of the model's final states x (..., C): (..., heads,
        C)."""
        hidden = self.gate_up(x).unflatten(-1, (self.n_heads, -1))  # (..., heads, 2 * mlp_hidden)
        gate, up = hidden.chunk(2, dim=-1)
        x = x.unsqueeze(-2) + torch.einsum("...hm,hmc->...hc", F.silu(gate) * up, self.down)
        return F.rms_norm(x, (x.size(-1),))

    def loss(self, x, targets, after_raw, unembedding, byte0, cross_entropy):
        """Cross-entropy (B, T) in nats of the bytes after the next one, summed over the heads.

        x: the final states (B, T, C); targets: the next symbols (B, T). Only the positions
        `after_raw` have a loss. byte0: the id of byte 0; ids below it are sentinels. cross_entropy:
        as `chunked_cross_entropy` in model.py.

        The states and the output layer are taken as they are (Medusa-1, section 2.2.1): the model
        learns exactly what it learns without byte heads.
        """
        B, T, C = x.shape
        states = self(x.detach().view(B * T, C)[after_raw])  # (N, heads, C)
        goes_on = torch.ones_like(targets, dtype=torch.bool)  # has the text gone on as far as here?
        ahead = targets
        losses = 0.0
        for head in range(self.n_heads):
            goes_on = goes_on & (ahead >= byte0)
            ahead = F.pad(ahead[:, 1:], (0, 1), value=-100)  # one symbol further on
            guessed = ahead.masked_fill(~goes_on, -100).flatten()[after_raw]
            losses = losses + cross_entropy(states[:, head], unembedding.detach(), guessed)
        return torch.zeros(B * T, device=x.device).index_copy(0, after_raw, losses).view(B, T)

    def guess(self, x, unembedding):
        """The most likely bytes (..., heads) after the next one, from final states x (..., C).

        unembedding: the 256 rows of the bytes, (256, C).
        """
        return F.linear(self(x), unembedding).argmax(dim=-1)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())


class Guessing:
    """Makes a batch of sample.py guess ahead: `class GuessingBatch(Guessing, Batch)`.

    Each step reads the byte that was chosen together with the heads' guesses of those after it. A
    guess is right where the model, having read all before it, chooses that same byte; those up to
    the first wrong one are kept, and the cache forgets the rest. So the text is the one that would
    have been written a byte at a time (blockwise decoding, arXiv 1811.03115).

        read       r  e  t  x     "r" was chosen before; "e", "t" and "x" are guesses
        chosen     e  t  u  .     after each of them: "e" and "t" were right, "x" was not
        written    e  t  u        and "u" is read in the next step, with new guesses
    """
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.guesses = self.suffix.new_empty(len(self.suffix), 0)  # (B, guesses): none at first

    def take(self, rows):
        super().take(rows)
        self.guesses = self.guesses[rows]

    def choose(self, pick_one):
        """The bytes that come next in each row: as many as were guessed rightly, and one more."""
        chosen = self.choose_after_each(pick_one)  # (B, 1 + guesses)
        right = chosen[:, :-1] == self.guesses
        n_right = right.long().cumprod(dim=1).sum(dim=1)  # (B,) guesses before the first wrong one
        self.forget(self.guesses.size(1) - n_right)
        return [row[:1 + n] for row, n in zip(chosen.tolist(), n_right.tolist())]

    def read(self, last):
        """Read the last byte that was chosen in each row, (B,), and guesses of those after it."""
        guesses = self.model.guess(self.states[:, -1])
        self.guesses = guesses[:, :self.room() - 1]
        self.read_bytes(torch.cat((last[:, None], self.guesses), dim=1))
