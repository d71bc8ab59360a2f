"""
Raw bytes in, raw bytes out. The compressor that helped to train the model is not needed here, and not loaded.

    python sample.py --prompt='def add('                           the newest run under out/
    python sample.py out/neural --prompt='def add(' --temperature=0
    python sample.py out/neural --file=start.py                    or a prompt on stdin
"""
import codecs
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from mix import BOS, BYTE0, END_RAW, EOS, RAW
from model import (GPT, GPTConfig, KVCache, UserError, command_line, expect, expect_device, flag, next_tail,
                   pack_tails)


def newest_run():
    """The folder under out/ with the newest checkpoint. Raises UserError if there is none."""
    checkpoints = sorted(Path("out").glob("*/ckpt.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError("no run under out/: train one first (python train.py), or name its folder")
    return checkpoints[-1].parent


def load_checkpoint(run, device="cpu"):
    """The dict that train.py saved in folder `run`. Raises UserError if there is none, or only half of one."""
    path = Path(run) / "ckpt.pt"
    if not path.exists():
        raise UserError(f"{run}: no run here, expected a file ckpt.pt in it, as train.py writes")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        checkpoint["config"], checkpoint["options"], checkpoint["step"]
        return checkpoint
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is corrupt or truncated ({type(error).__name__}); restore it or train again") from None


def load_model(run, device="cpu"):
    """(model in eval mode, checkpoint) of a run folder. Raises UserError."""
    checkpoint = load_checkpoint(run, device)
    model = GPT(GPTConfig(**checkpoint["config"])).to(device)
    if "shards" in checkpoint:  # of a run with --fsdp: each of its processes wrote a part
        import torch.distributed.checkpoint as dcp
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be, in one process
        try:
            dcp.load({"model": model.state_dict()}, checkpoint_id=Path(run) / checkpoint["shards"], no_dist=True)
        except (OSError, dcp.api.CheckpointException) as error:
            raise UserError(f"{run}/{checkpoint['shards']} is corrupt or incomplete ({type(error).__name__}); restore it or "
                            "train again") from None
    else:
        model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


def pick(logits, temperature, top_k, top_p, generator):
    """One index per row of logits (B, V): greedy at temperature 0, else sampled from the top_k most likely (0: all) and
    of these the fewest that hold top_p of the probability (nucleus sampling: Holtzman et al., arXiv 1904.09751)."""
    if temperature == 0:
        return logits.argmax(-1)
    p = torch.softmax(logits.float() / temperature, -1)
    if not top_k and top_p == 1:
        return torch.multinomial(p, 1, generator=generator).squeeze(-1)
    p, order = p.sort(-1, descending=True)
    if top_k:
        p[:, top_k:] = 0
    p[p.cumsum(-1) - p > top_p] = 0
    return order.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)


@torch.inference_mode()
def generate(model, prompts, n=1, max_new=256, temperature=0.8, top_k=0, top_p=1.0, seed=0, sentinels=(RAW, END_RAW)):
    """Continue each of `prompts` (bytes) n times. A generator: yields a list of (row, bytes) per step, one for each row
    that goes on, where row = prompt's index * n + completion's index. A row that should end early can be sent back
    in a set: `steps.send(rows)`.

    A row ends at `</raw>` or after max_new bytes. One prefill serves the n completions of a prompt. Text that outgrows the
    context goes on behind its last half. A model with byte heads that generates greedily guesses some bytes ahead and reads
    them together with the next one; as many as it would have written itself are kept, so the output is the same
    (self-speculative decoding; Medusa, arXiv 2401.10774; blockwise decoding, arXiv 1811.03115).
    """
    device, size = model.embed.weight.device, model.config.block_size
    n_guesses = model.config.n_byte_heads if temperature == 0 else 0
    generator = torch.Generator(device).manual_seed(seed)
    texts = [bytearray(prompt) for prompt in prompts]
    ends = [len(prompt) + max_new for prompt in prompts]
    rows, repeat = torch.arange(len(texts), device=device), n
    while max_new and len(rows):
        # prefill: the end of each row's text behind the opening sentinel, padded on the right
        room = min(size, max(size // 2, size - max_new))
        recent = [texts[row][-(room - 1):] for row in rows.tolist()]
        lengths = torch.tensor([len(text) + 1 for text in recent], device=device)
        longest = int(lengths.max())
        padded = torch.tensor([list(b"\0" + text.ljust(longest - 1, b"\0")) for text in recent], device=device)
        idx, tails = padded + BYTE0, pack_tails(padded)  # a leading 0 does not show in the tails
        idx[:, 0] = sentinels[0]
        cache = KVCache(model.config, len(rows), min(size, longest + max_new + n_guesses), device)
        x = model.states(idx, tails, cache=cache)[torch.arange(len(rows), device=device), lengths - 1]
        x, tails = x[:, None], tails.gather(1, lengths[:, None] - 1)
        cache.pos = lengths - 1
        if repeat > 1:
            texts, ends = [text[:] for text in texts for _ in range(n)], [end for end in ends for _ in range(n)]
            again = torch.arange(len(rows), device=device).repeat_interleave(n)
            cache.take(again)
            x, tails, rows, repeat = x[again], tails[again], torch.arange(len(again), device=device), 1
        guesses = torch.empty(len(rows), 0, dtype=torch.long, device=device)  # the bytes behind the last one that were read
        while True:
            # of these ids only the bytes and the closing sentinel can follow: index 256 is the end
            logits = model.raw_logits(x)
            choices = torch.cat((logits[..., BYTE0:BYTE0 + 256], logits[..., sentinels[1], None]), -1)
            chosen = pick(choices.flatten(0, 1), temperature, top_k, top_p, generator).view(choices.shape[:2])
            right = (chosen[:, :-1] == guesses).long().cumprod(1).sum(1)  # guesses to keep, (rows,)
            new = []
            for row, choice, kept in zip(rows.tolist(), chosen.tolist(), right.tolist()):
                text = bytes(byte for byte in choice[:kept + 1] if byte < 256)[:ends[row] - len(texts[row])]
                texts[row] += text
                if text:
                    new.append((row, text))
                if choice[kept] == 256:
                    ends[row] = len(texts[row])
            for row in (yield new) or ():
                ends[row] = len(texts[row])
            live = torch.tensor([len(texts[row]) < ends[row] for row in rows.tolist()], device=device)
            cache.pos += (1 + right) * live
            last = torch.arange(len(rows), device=device), right
            byte, x, tail = chosen[last], x[last], tails[last]
            if live.sum() < 0.75 * len(rows):  # the finished rows run along until it pays to copy the cache without them
                cache.take(live)
                rows, byte, x, tail, live = rows[live], byte[live], x[live], tail[live], live[live]
            room = cache.kv.size(4) - int(cache.pos.max()) if len(rows) else 0
            if room <= 0:
                break
            guesses = model.guess(x)[:, :room - 1] if n_guesses else guesses[:len(rows)]
            fed = torch.cat((byte.clamp(max=255)[:, None], guesses), 1)
            tails = [tail := next_tail(tail, column) for column in fed.unbind(1)]
            tails = torch.stack(tails, 1)
            x = model.states(fed + BYTE0, tails, cache=cache)
        rows = rows[live]


def complete(model, prompts, n=1, stops=(), **settings):
    """The completions (bytes) of each prompt: a list of n for each, cut before the first of `stops` (bytes)."""
    texts = [bytearray() for _ in range(len(prompts) * n)]
    steps, stopped = generate(model, prompts, n, **settings), None
    while True:
        try:
            new = steps.send(stopped)
        except StopIteration:
            break
        stopped = set()
        for row, text in new:
            for byte in text:
                texts[row].append(byte)
                stop = next((stop for stop in stops if texts[row].endswith(stop)), None)
                if stop is not None:
                    del texts[row][len(texts[row]) - len(stop):]
                    stopped.add(row)
                    break
    return [[bytes(text) for text in texts[i:i + n]] for i in range(0, len(texts), n)]


def sentinels_of(mode):
    """The symbols before and after raw text in training with --mode=`mode`."""
    return (BOS, EOS) if mode == "vanilla" else (RAW, END_RAW)


@dataclass
class SampleOptions:
    run: str = flag(None, "folder of a run [the newest under out/]", positional=True, nargs="?")
    prompt: str = flag(None, "text to continue")
    file: str = flag(None, "file with the text to continue; without either, stdin")
    max_new: int = flag(400, "bytes to write at most")
    temperature: float = flag(0.8, "0 is greedy")
    top_k: int = flag(0, "sample from the k most likely bytes; 0: all")
    top_p: float = flag(1.0, "sample from the most likely bytes that hold this much probability")
    seed: int = flag(0, "of the sampling")
    device: str = flag("cpu", "cpu or cuda")


def main(options):
    expect(options, "above 0", "max_new", "top_p")
    expect(options, "of 0 or more", "temperature", "top_k", "seed")
    expect(options, "from 0 to 1", "top_p")
    expect_device(options.device)
    if options.prompt is not None:
        prompt = options.prompt.encode("utf-8", "surrogateescape")
    elif options.file:
        try:
            prompt = Path(options.file).read_bytes()
        except OSError as error:
            raise UserError(f"--file={options.file}: {error.strerror}; expected a readable file") from None
    else:
        prompt = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    model, checkpoint = load_model(options.run or newest_run(), options.device)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character is shown when its last byte is there
    sys.stdout.write(decoder.decode(prompt))
    for step in generate(model, [prompt], 1, options.max_new, options.temperature, options.top_k, options.top_p,
                         options.seed, sentinels_of(checkpoint["options"]["mode"])):
        sys.stdout.write(decoder.decode(b"".join(text for _, text in step)))
        sys.stdout.flush()
    sys.stdout.write(decoder.decode(b"", final=True) + "\n")


if __name__ == "__main__":
    command_line(main, SampleOptions, description="Continues a prompt, byte by byte.")
