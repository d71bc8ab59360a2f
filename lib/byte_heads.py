"""
Multi-byte prediction: heads that guess the bytes after the next one, so that greedy generation can
write several bytes a step (Medusa, arXiv 2401.10774; EvaByte, the paper's backbone, has such
heads). A guess is kept only where the model itself would have written that byte, so the text is the
same.

runs/byte_heads.py trains them after the model, on its frozen states, and writes byte_heads.pt into
the run's folder; sample.py writes with them through `Guessing`.
"""
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from lib.attention import next_suffix
from lib.options import UserError
from lib.views import write_torch

NO_TARGET = -100  # F.cross_entropy's ignore_index


class ByteHeads(nn.Module):
    """An MLP for each head; head h guesses the byte that comes h + 1 bytes after the next one.

    unembedding: the model's rows of all that can follow raw text, (ids, C), of which the last 256
    are the bytes. The heads use them as they are.
    """
    def __init__(self, n_heads, mlp_hidden, unembedding):
        super().__init__()
        self.n_heads = n_heads
        self.first_byte = len(unembedding) - 256  # an id
        n_embd = unembedding.size(1)
        self.gate_up = nn.Linear(n_embd, n_heads * 2 * mlp_hidden, bias=False)
        self.down = nn.Parameter(torch.empty(n_heads, mlp_hidden, n_embd))
        # the model's, so it is in no file of the heads, and is not trained
        self.register_buffer("unembedding", unembedding.detach(), persistent=False)
        nn.init.normal_(self.gate_up.weight, std=0.02)
        nn.init.normal_(self.down, std=0.01)

    def forward(self, x):
        """What each head makes of the model's final states x (..., C): (..., heads, C)."""
        hidden = self.gate_up(x).unflatten(-1, (self.n_heads, -1))  # (..., heads, 2 * mlp_hidden)
        gate, up = hidden.chunk(2, dim=-1)
        x = x.unsqueeze(-2) + torch.einsum("...hm,hmc->...hc", F.silu(gate) * up, self.down)
        return F.rms_norm(x, (x.size(-1),))

    def loss(self, x, targets):
        """The mean cross-entropy, in nats, of the heads' guesses.

        x: final states (B, T, C) of raw contexts; targets: the next ids (B, T), or NO_TARGET. Each
        head looks one further on than the one before it, as long as the text does:

            targets    b    c    >    .        after a, b, c and the closing sentinel >
            head 0     c    >    .    .
            head 1     >    .    .    .
        """
        logits = F.linear(self(x), self.unembedding)  # (B, T, heads, ids)
        ahead = targets
        goes_on = torch.ones_like(targets, dtype=torch.bool)  # no sentinel has come yet
        guessed = []  # for each head (B, T)
        for _ in range(self.n_heads):
            goes_on = goes_on & (ahead >= self.first_byte)
            ahead = F.pad(ahead[:, 1:], (0, 1), value=NO_TARGET)  # one symbol further on
            guessed.append(ahead.masked_fill(~goes_on, NO_TARGET))
        return F.cross_entropy(logits.flatten(0, -2), torch.stack(guessed, dim=-1).flatten(),
                               ignore_index=NO_TARGET)

    def guess(self, x):
        """The most likely bytes (..., heads) after the next one, from final states x (..., C)."""
        return F.linear(self(x), self.unembedding[-256:]).argmax(dim=-1)

    def save(self, path):
        """Write the file that `load_byte_heads` reads. Raises UserError."""
        write_torch(path, {"n_heads": self.n_heads, "mlp_hidden": self.down.size(1),
                           "weights": self.state_dict()})


def load_byte_heads(folder, model):
    """The heads in a run's folder, for its model; None where there are none. Raises UserError for
    another model's, and for a file that can't be read."""
    path = Path(folder) / "byte_heads.pt"
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        heads = ByteHeads(saved["n_heads"], saved["mlp_hidden"], model.raw_unembedding())
        heads.load_state_dict(saved["weights"])
    except Exception as error:  # a cut file can raise anything
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: no byte heads of this model ({reason}); delete it, or run "
                        f"python runs/byte_heads.py {folder}") from None
    return heads.to(heads.unembedding.device)


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
    def __init__(self, heads, *arguments):
        super().__init__(*arguments)
        self.heads = heads
        self.guesses = self.suffix[:, :0]  # (B, guesses): none at first

    def write(self, chosen):
        """Write what was chosen after each right guess, and forget what was read beyond."""
        device = self.states.device
        right = torch.tensor(chosen, device=device)[:, :-1] == self.guesses
        n_right = right.long().cumprod(dim=1).sum(dim=1)  # (B,) guesses before the first wrong one
        row = torch.arange(len(n_right), device=device)
        self.states = self.states[row, n_right][:, None]  # (B, 1, C)
        self.suffix = self.suffix[row, n_right][:, None]  # (B, 1)
        self.cache.filled = self.cache.filled - self.guesses.size(1) + n_right
        return super().write([row[:1 + n] for row, n in zip(chosen, n_right.tolist())])

    def read(self):
        """Read the byte that was written last in each text, and guesses of those after it."""
        room = self.cache.length - int(self.cache.filled.max())
        self.guesses = self.heads.guess(self.states[:, 0])[:, :room - 1]
        new = torch.cat((self.last_bytes(), self.guesses), dim=1)  # (B, 1 + guesses)
        suffixes = [self.suffix[:, 0]]
        for byte in new.unbind(dim=1):
            suffixes.append(next_suffix(suffixes[-1], byte))
        self.suffix = torch.stack(suffixes[1:], dim=1)
        self.states = self.model.states(new + self.heads.first_byte, self.suffix, cache=self.cache)
        self.cache.filled = self.cache.filled + new.size(1)
