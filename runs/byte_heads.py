"""
Several bytes a step: heads that guess what comes after the next byte (Medusa, arXiv 2401.10774;
EvaByte, the paper's backbone, has such heads).

They are trained on a finished model's frozen states. Writing greedily, the model then reads the
byte that it has chosen together with the guesses of those after it. A guess is right where the
model, having read all before it, chooses that same byte. Those up to the first wrong one are kept,
and the cache forgets the rest; so the text is, up to rounding, the one that would have been written
a byte at a time (blockwise decoding, arXiv 1811.03115).

    read       r  e  t  x     "r" was chosen before; "e", "t" and "x" are guesses
    chosen     e  t  u  .     after each of them: "e" and "t" were right, "x" was not
    written    e  t  u        and "u" is read in the next step, with new guesses

    python train.py --out=out/neural
    python runs/byte_heads.py out/neural                       writes out/neural/byte_heads.pt
    python runs/byte_heads.py out/neural --prompt='def add('   as sample.py with --temperature=0
"""
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.attention import sample_mask  # noqa: E402
from lib.options import UserError, command_line, expect, flag  # noqa: E402
from lib.parallel import resolve_device  # noqa: E402
from lib.run import newest_run  # noqa: E402
from lib.views import write_torch  # noqa: E402
from mix import Mixer, prepare, suffixes  # noqa: E402
from model import BYTE0, NO_TARGET  # noqa: E402
from sample import Run, Text, next_choices, pick, prompt_given, read_texts  # noqa: E402

# -----------------------------------------------------------------------------
# the heads


class ByteHeads(nn.Module):
    """An MLP for each head; head h guesses the byte that comes h + 1 bytes after the next one.

    unembedding: the model's rows of all that can follow raw text, (ids, C), of which the last 256
    are the bytes. The heads use them as they are.
    """
    def __init__(self, n_heads, mlp_hidden, unembedding):
        super().__init__()
        self.n_heads = n_heads
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
            goes_on = goes_on & (ahead >= BYTE0)
            ahead = F.pad(ahead[:, 1:], (0, 1), value=NO_TARGET)  # one symbol further on
            guessed.append(ahead.masked_fill(~goes_on, NO_TARGET))
        return F.cross_entropy(logits.flatten(0, -2), torch.stack(guessed, dim=-1).flatten(),
                               ignore_index=NO_TARGET)

    def guess(self, x):
        """The most likely bytes (..., heads) after the next one, from final states x (..., C)."""
        return F.linear(self(x), self.unembedding[BYTE0:]).argmax(dim=-1)


def load_heads(path, model):
    """The heads in a file, of the shapes that this model needs. Those of an earlier checkpoint fit
    too: the text is the same, in more steps. Raises UserError otherwise."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        heads = ByteHeads(saved["n_heads"], saved["mlp_hidden"], model.raw_unembedding())
        heads.load_state_dict(saved["weights"])
    except Exception:  # a cut file can raise anything
        raise UserError(f"{path}: no byte heads of this model there; train them without "
                        "--prompt") from None
    return heads.to(model.embed.weight.device)


# -----------------------------------------------------------------------------
# training them


def raw_contexts(options, block_size, total_steps):
    """A Mixer of the run's training data, in raw bytes alone: no proxy is needed. Raises
    UserError."""
    options = replace(options, proxy="none", mix=0.0)
    views, _, _ = prepare(options, block_size)
    return Mixer(views, options, block_size, total_steps)


def train_heads(model, mixer, options):
    """(ByteHeads trained on the final states of `model`, which stays as it is; their last loss)"""
    # as wide as the model's own MLPs
    heads = ByteHeads(options.n_heads, model.config.mlp_hidden, model.raw_unembedding())
    device = model.embed.weight.device
    heads.to(device)
    peak = options.lr or 0.512 / model.config.n_embd
    optimizer = torch.optim.AdamW(heads.parameters(), lr=peak, betas=(0.9, 0.95))
    for step in tqdm(range(mixer.total_steps), desc="byte heads"):
        done = step / mixer.total_steps
        rise = min(1.0, 20 * (done + 0.01))  # from 0.2, over the first 25th of the steps
        fall = 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = peak * rise * (0.1 + 0.9 * fall)
        batch = mixer.batch(step, range(options.batch_size))
        names = ("idx", "targets", "suffix", "sample")
        idx, targets, suffix, sample = (batch[name].to(device) for name in names)
        with torch.no_grad():  # the model is finished: only the heads learn
            states = model.states(idx, suffix, sample_mask(sample))
        loss = heads.loss(states, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return heads, loss.item()


# -----------------------------------------------------------------------------
# writing with them


@torch.inference_mode()
def write_greedily(model, heads, prompt, max_new, sentinels):
    """(the greedy text after a prompt, bytes, as `generate` of sample.py writes it; in how many
    steps)"""
    opening, closing = sentinels
    device = model.embed.weight.device
    text = Text(prompt)
    n_steps = 0
    while not text.ended:  # again where the context was full
        cache, states, _ = read_texts(model, [text], opening, max_new)  # (1, C)
        guesses = []
        while True:
            # what is chosen after the byte that was chosen before, and after each of its guesses
            chosen = pick(next_choices(model, states, closing), temperature=0).tolist()
            n_right = 0
            while n_right < len(guesses) and guesses[n_right] == chosen[n_right]:
                n_right += 1
            for choice in chosen[:n_right + 1]:
                text.write(choice, (), max_new)
            n_steps += 1
            cache.filled -= len(guesses) - n_right  # forget what was read beyond
            room = cache.length - int(cache.filled)
            if text.ended or room == 0:
                break

            guesses = heads.guess(states[n_right])[:room - 1].tolist()
            shown = text.prompt + text.written + bytes(guesses)
            shown = np.frombuffer(shown, np.uint8).astype(np.int64)
            n_new = 1 + len(guesses)
            idx = torch.from_numpy(BYTE0 + shown[-n_new:]).to(device)
            suffix = torch.from_numpy(suffixes(shown)[-n_new:]).to(device)
            states = model.states(idx[None], suffix[None], cache=cache)[0]  # (1 + guesses, C)
            cache.filled += n_new
    return text.written, n_steps


# -----------------------------------------------------------------------------
# python runs/byte_heads.py


@dataclass
class HeadsOptions:
    run: str = flag(None, "folder of a run [the newest under out/]", positional=True, nargs="?")
    prompt: str = flag(None, "text to continue with the heads; without it, they are trained")
    max_new: int = flag(400, "bytes to write at most")
    n_heads: int = flag(4, "heads, each of which guesses one byte further ahead")
    budget: float = flag(2.5e6, "symbols to train on")
    batch_size: int = flag(8, "contexts in a step")
    lr: float = flag(0.0, "peak learning rate; 0: 0.512 / width")
    device: str = flag("cpu", "cpu, cuda, mps or auto")


def main(options):
    expect(options, "above 0", "max_new", "n_heads", "budget", "batch_size")
    expect(options, "of 0 or more", "lr")
    run = Run.load(options.run or newest_run(), resolve_device(options.device))
    if run.options.mix == 1:
        raise UserError(f"{run.folder}: trained with --mix=1, so it reads no raw bytes")
    path = run.folder / "byte_heads.pt"
    if options.prompt is not None:
        prompt = prompt_given(options)
        heads = load_heads(path, run.model)
        sentinels = run.sentinels("raw")
        written, n_steps = write_greedily(run.model, heads, prompt, options.max_new, sentinels)
        sys.stdout.buffer.write(prompt + written + b"\n")
        print(f"{len(written):,} bytes in {n_steps:,} steps", file=sys.stderr)
        return

    block_size = run.model.config.block_size
    n_steps = max(1, round(options.budget / (options.batch_size * block_size)))
    mixer = raw_contexts(run.options, block_size, n_steps)
    heads, loss = train_heads(run.model, mixer, options)
    write_torch(path, {"n_heads": heads.n_heads, "mlp_hidden": heads.down.size(1),
                       "weights": heads.state_dict()})
    print(f"{path}: {heads.n_heads} heads, {loss:.2f} nats a guess after {n_steps:,} steps")


if __name__ == "__main__":
    command_line(main, HeadsOptions, description="Trains byte heads, and writes with them.")
