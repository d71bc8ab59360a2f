"""
Trains byte heads on a finished model, on its frozen states: they guess the bytes after the next one
(lib/byte_heads.py). sample.py then writes greedily with them, the same text in fewer steps.

    python train.py --out=out/neural
    python runs/byte_heads.py out/neural        writes out/neural/byte_heads.pt
    python sample.py out/neural --temperature=0 --prompt='def add('
"""
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.attention import sample_mask  # noqa: E402
from lib.byte_heads import ByteHeads  # noqa: E402
from lib.options import UserError, command_line, expect, flag  # noqa: E402
from lib.parallel import resolve_device  # noqa: E402
from lib.run import newest_run  # noqa: E402
from mix import Mixer, prepare  # noqa: E402
from sample import Run  # noqa: E402


@dataclass
class HeadsOptions:
    run: str = flag(None, "folder of a run [the newest under out/]", positional=True, nargs="?")
    n_heads: int = flag(4, "heads, each of which guesses one byte further ahead")
    budget: float = flag(2.5e6, "symbols to train on")
    batch_size: int = flag(8, "contexts in a step")
    lr: float = flag(0.0, "peak learning rate; 0: 0.512 / width")
    device: str = flag("cpu", "cpu, cuda, mps or auto")


def raw_contexts(options, block_size, total_steps):
    """A Mixer of the run's training data, in raw bytes alone: no proxy is needed. Raises
    UserError."""
    options = replace(options, proxy="none", mix=0.0)
    views, _, _ = prepare(options, block_size)
    return Mixer(views, options, block_size, total_steps)


def train_heads(model, mixer, options):
    """ByteHeads trained on the final states of `model`, which stays as it is."""
    config = model.config
    # as wide as the model's own MLPs
    heads = ByteHeads(options.n_heads, config.mlp_hidden, model.raw_unembedding())
    device = model.embed.weight.device
    heads.to(device)
    peak = options.lr or 0.512 / config.n_embd
    optimizer = torch.optim.AdamW(heads.parameters(), lr=peak, betas=(0.9, 0.95))
    for step in tqdm(range(mixer.total_steps), desc="byte heads"):
        done = step / mixer.total_steps
        rise = min(1.0, 20 * (done + 0.01))  # over the first twentieth
        fall = 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = peak * rise * (0.1 + 0.9 * fall)
        batch = mixer.batch(step, range(options.batch_size))
        names = ("idx", "targets", "suffix", "sample")
        idx, targets, suffix, numbers = (batch[name].to(device) for name in names)
        with torch.no_grad():  # the model is finished: only the heads learn
            states = model.states(idx, suffix, sample_mask(numbers))
        loss = heads.loss(states, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return heads, loss.item()


def main(options):
    expect(options, "above 0", "n_heads", "budget", "batch_size")
    expect(options, "of 0 or more", "lr")
    run = Run.load(options.run or newest_run(), resolve_device(options.device))
    if run.options.mix == 1:
        raise UserError(f"{run.folder}: trained with --mix=1, so it reads no raw bytes")
    block_size = run.model.config.block_size
    steps = max(1, round(options.budget / (options.batch_size * block_size)))
    mixer = raw_contexts(run.options, block_size, steps)
    heads, loss = train_heads(run.model, mixer, options)
    path = run.folder / "byte_heads.pt"
    heads.save(path)
    print(f"{path}: {options.n_heads} heads, {loss:.2f} nats a guess after {steps:,} steps")


if __name__ == "__main__":
    command_line(main, HeadsOptions, description="Trains byte heads on a finished model.")
