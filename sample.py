"""
Raw bytes in, raw bytes out. The compressor that helped to train the model is not needed here,
and is not loaded.

Text stands after the sentinel that opened raw samples in training, and ends where the model writes
the closing one. This is a language model's usual generation, in bytes: a KV cache, temperature,
top-k and top-p. (One section, for eval.py's comparisons, reads and writes a proxy's symbols.)

    python sample.py --prompt='def add('                           the newest run under out/
    python sample.py out/neural --prompt='def add(' --temperature=0
    python sample.py out/neural --file=start.py                    or a prompt on stdin
"""
import codecs
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib.byte_heads import Guessing
from lib.run import (load_checkpoint, load_shards, newest_run, restore_options,
                            restore_weights)
from lib.parallel import resolve_device
from lib.options import UserError, command_line, expect, flag
from lib.attention import next_suffix, pack_suffix
from lib.write_view import write_view
from mix import BOS, END_COMP, END_RAW, EOS, RAW, MixOptions, format_view
from model import BYTE0, PROXY0, GPT, GPTConfig, KVCache


def load_model(run, device="cpu"):
    """(model, ready to be used, and checkpoint) of a run's folder. Raises UserError."""
    checkpoint = load_checkpoint(run)
    config = restore_options(run, "config", GPTConfig, checkpoint["config"])
    model = GPT(config).to(device)
    if "shards" in checkpoint:  # of a run with --fsdp: each of its processes wrote a part
        load_shards(run, checkpoint, {"model": model.state_dict()})
    else:
        restore_weights(run, model, checkpoint["model"])
    return model.eval(), checkpoint


def mix_options(run, checkpoint):
    """The MixOptions that a run was trained with. Raises UserError."""
    names = {field.name for field in fields(MixOptions)}
    saved = {name: value for name, value in checkpoint["options"].items() if name in names}
    return restore_options(run, "options", MixOptions, saved)


def raw_sentinels(mode):
    """(opening, closing): the symbols around raw text in training with --mode=`mode`."""
    return (BOS, EOS) if mode == "vanilla" else (RAW, END_RAW)


# -----------------------------------------------------------------------------
# choosing what comes next


GREEDY_BELOW = 1e-6  # a temperature, at which all but the most likely have next to no chance


def pick(logits, temperature, top_k, top_p, generator):
    """The index (B,) of one of the choices in each row of logits (B, V).

    Greedy at temperature 0. Else drawn from the top_k most likely (0: from all) and, of these, from
    the fewest that hold the share top_p of their probability (nucleus sampling: Holtzman et al.,
    arXiv 1904.09751). Raises UserError for NaN logits.
    """
    if logits.isnan().any():
        raise UserError("the model's output is not a number (NaN): its training has failed")
    if temperature < GREEDY_BELOW:
        return logits.argmax(dim=-1)
    p = torch.softmax(logits.float() / temperature, dim=-1)
    if top_k == 0 and top_p == 1:
        return torch.multinomial(p, 1, generator=generator).squeeze(-1)
    p, order = p.sort(dim=-1, descending=True)
    if top_k:
        p[:, top_k:] = 0
        p /= p.sum(dim=-1, keepdim=True)
    mass_before = p.cumsum(dim=-1) - p  # the probability of all choices before each
    p[mass_before >= top_p] = 0
    drawn = torch.multinomial(p, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1)


# -----------------------------------------------------------------------------
# a batch of texts that share a KV cache

ENDED = 256          # among the choices for the next byte: the closing sentinel
WORTH_A_COPY = 0.75  # the cache is copied when fewer than this share of its rows go on


class Batch:
    """Texts of any length that are continued side by side. Each has a row of the cache.

    A step is `choose` (what comes next?), `take` (which rows go on?) and `read` (what was chosen).
    """
    def __init__(self, model, texts, sentinels, max_new):
        self.model = model
        opening, self.closing = sentinels
        device = model.embed.weight.device
        block_size = model.config.block_size
        recent = [keep_recent(text, block_size) for text in texts]
        distinct = list(dict.fromkeys(recent))  # completions of a prompt start alike: read it once
        lengths = torch.tensor([len(text) for text in distinct], device=device)
        longest = int(lengths.max())

        # a 0 in front, in the sentinel's place, and zeros at the end, to which no text attends
        rows = [list(b"\0" + text.ljust(longest, b"\0")) for text in distinct]
        padded = torch.tensor(rows, device=device)  # (B, 1 + longest)
        idx = padded + BYTE0
        idx[:, 0] = opening
        suffix = pack_suffix(padded)
        cache_length = min(block_size, 1 + longest + max_new)
        self.cache = KVCache(model.config, len(distinct), cache_length, device)
        states = model.states(idx, suffix, cache=self.cache)  # (B, 1 + longest, C)

        # go on from the last byte of each text: it is at len(text), since the sentinel is at 0
        which = torch.tensor([distinct.index(text) for text in recent], device=device)
        self.states = states[which, lengths[which]][:, None]  # (B, 1, C)
        self.suffix = suffix[which, lengths[which]][:, None]  # (B, 1)
        self.cache.filled = 1 + lengths
        # each text goes on from its prompt's row of the cache
        self.cache.take(which)

    def choose_after_each(self, pick_one):
        """What should follow each of the n symbols that were read last: bytes or ENDED, (B, n)."""
        logits = self.model.raw_logits(self.states)          # (B, n, PROXY0)
        byte_logits = logits[..., BYTE0:BYTE0 + 256]
        end_logit = logits[..., self.closing].unsqueeze(-1)
        choices = torch.cat((byte_logits, end_logit), dim=-1)  # (B, n, 257)
        return pick_one(choices.flatten(0, 1)).view(choices.shape[:2])

    def choose(self, pick_one):
        """What comes next: for each row [byte] or [ENDED]; in a GuessingBatch several bytes."""
        return self.choose_after_each(pick_one).tolist()

    def full(self):
        """Of each row, whether it has no room for another symbol."""
        return (self.cache.filled >= self.cache.length).tolist()

    def room(self):
        """How many symbols every row has room for."""
        return self.cache.length - int(self.cache.filled.max())

    def take(self, rows):
        """Go on with these rows, a list of indices, in this order."""
        rows = torch.tensor(rows, device=self.states.device)
        self.cache.take(rows)
        self.states = self.states[rows]
        self.suffix = self.suffix[rows]

    def read(self, last):
        """Let the model read the byte that was chosen last in each row, (B,)."""
        self.read_bytes(last[:, None])

    def read_bytes(self, new):
        """Read the bytes `new` (B, n)."""
        suffixes = []
        suffix = self.suffix[:, -1]
        for byte in new.unbind(dim=1):
            suffix = next_suffix(suffix, byte)
            suffixes.append(suffix)
        self.suffix = torch.stack(suffixes, dim=1)
        self.states = self.model.states(new + BYTE0, self.suffix, cache=self.cache)
        self.cache.filled = self.cache.filled + new.size(1)

    def forget(self, n):
        """Forget the last n (B,) symbols that were read."""
        row = torch.arange(len(n), device=n.device)
        last = self.states.size(1) - 1 - n
        self.states = self.states[row, last][:, None]
        self.suffix = self.suffix[row, last][:, None]
        self.cache.filled = self.cache.filled - n


class GuessingBatch(Guessing, Batch):
    """A Batch that writes several bytes a step, greedily, with the model's byte heads: its `choose`
    and `read` are those of lib/byte_heads.py."""


def keep_recent(text, block_size):
    """All of a text if it fits in a context with a sentinel, otherwise its last half context."""
    return text if 1 + len(text) <= block_size else text[-(block_size // 2):]


# -----------------------------------------------------------------------------
# generation


@torch.inference_mode()
def generate(model, prompts, n=1, max_new=256, stops=(), temperature=0.8, top_k=0, top_p=1.0,
             seed=0, sentinels=(RAW, END_RAW)):
    """Continue each of `prompts` (bytes) n times. Yields, for each step, [(row, new bytes), ...].

    row = index of the prompt * n + index of the completion. A row ends with the closing sentinel,
    with one of `stops` (bytes), or after max_new bytes. It is not cut at a stop, and with byte
    heads may go on after it; `complete` cuts.

    A row whose context is full leaves its batch, and its last half context is read again in the
    next one. That depends on its own length alone: so what is written greedily after a prompt does
    not depend on the prompts beside it.
    """
    generator = torch.Generator(model.embed.weight.device).manual_seed(seed)

    def pick_one(logits):
        return pick(logits, temperature, top_k, top_p, generator)

    guesses = temperature < GREEDY_BELOW and model.config.n_byte_heads > 0
    batch_class = GuessingBatch if guesses else Batch
    texts = [prompt for prompt in prompts for _ in range(n)]
    prompt_length = [len(text) for text in texts]
    left = [max_new] * len(texts)  # bytes that each row may still write; 0: it has ended
    while any(left):  # each turn has a cache of its own; a row that outgrows it waits for the next
        # the batch's i-th text is that of row rows[i]
        rows = [row for row in range(len(texts)) if left[row] > 0]
        batch = batch_class(model, [texts[row] for row in rows], sentinels, max(left))
        while True:
            chosen = batch.choose(pick_one)  # a list for each row
            step = []
            for row, choice in zip(rows, chosen):
                if left[row] == 0:
                    continue  # it has ended, and stays in the batch until the cache is copied
                # ENDED can only come last: all before it was guessed, and guesses are bytes
                new = bytes(byte for byte in choice if byte != ENDED)[:left[row]]
                texts[row] += new
                left[row] -= len(new)
                if ENDED in choice or find_stop(texts[row][prompt_length[row]:], stops) is not None:
                    left[row] = 0
                if new:
                    step.append((row, new))
            yield step

            full = batch.full()
            live = [i for i, row in enumerate(rows) if left[row] > 0 and not full[i]]
            if not live:
                break
            if any(full) or len(live) < WORTH_A_COPY * len(rows):
                batch.take(live)
                rows = [rows[i] for i in live]
                chosen = [chosen[i] for i in live]
            # what a row that has ended reads does not matter: any byte
            last = [0 if choice[-1] == ENDED else choice[-1] for choice in chosen]
            batch.read(torch.tensor(last, device=model.embed.weight.device))


def find_stop(text, stops):
    """Where the stop that is completed first begins in `text`, or None."""
    found = []
    for stop in stops:
        start = text.find(stop)
        if start >= 0:
            found.append((start + len(stop), start))
    return min(found)[1] if found else None


def complete(model, prompts, n=1, stops=(), **settings):
    """The completions (bytes) of each prompt, a list of n for each; cut where a stop begins.

    settings: those of `generate`.
    """
    texts = [b""] * (len(prompts) * n)
    for step in generate(model, prompts, n, stops=stops, **settings):
        for row, new in step:
            texts[row] += new
    texts = [text[:find_stop(text, stops)] for text in texts]
    return [texts[i:i + n] for i in range(0, len(texts), n)]


# -----------------------------------------------------------------------------
# in a proxy's symbols, for eval.py: the tokenizer model, and translation


def continue_views(model, prompts, first_id, closing, symbol_bytes, temperature=0.0, seed=0,
                   rests=None):
    """What the model writes inside a given view, of bytes or of symbols: see `write_view` in
    lib/write_view.py, whose arguments these are."""
    device = model.embed.weight.device
    generator = torch.Generator(device).manual_seed(seed)

    def pick_one(logits):
        return pick(logits, temperature, 0, 1.0, generator)

    cache = KVCache(model.config, len(prompts), model.config.block_size, device)
    return write_view(model, cache, prompts, first_id, closing, symbol_bytes, pick_one, rests)


def complete_in_symbols(model, proxy, symbol_bytes, prompts, n=1, stops=(), max_new=256,
                        temperature=0.8, seed=0):
    """`complete`, but reading and writing the proxy's symbols: what a tokenizer model does. Each
    view is written to its end, and only then cut by `max_new` and `stops`.

    Token healing: the last bytes of a prompt may share a symbol with what follows. The model does
    not read these `rests` but writes them once more, in symbols as it has seen them in training. Of
    a prompt it reads at most half of a context, so that there is room to write.
    """
    shown, rests = [], []
    for prompt in prompts:
        given, rest = proxy.encode_prompt(prompt)
        raw = np.frombuffer(prompt[:len(prompt) - len(rest)], np.uint8)
        view = format_view("comp", raw, given, proxy.symbol_lengths)
        # the opening sentinel and the last half context, without the closing sentinel
        start = max(1, len(view.symbols) - model.config.block_size // 2)
        ids = np.append(view.symbols[0], view.symbols[start:-1])
        suffix = np.append(view.suffix[0], view.suffix[start:-1])
        shown += [(ids, suffix)] * n
        rests += [rest] * n
    written = continue_views(model, shown, PROXY0, END_COMP, symbol_bytes, temperature, seed, rests)
    texts = []
    for rest, symbols in zip(rests, written):
        text = proxy.decode(symbols)[len(rest):][:max_new]  # nothing but the rest can come first
        texts.append(text[:find_stop(text, stops)])
    return [texts[i:i + n] for i in range(0, len(texts), n)]


# -----------------------------------------------------------------------------
# python sample.py


@dataclass
class SampleOptions:
    run: str = flag(None, "folder of a run [the newest under out/]", positional=True, nargs="?")
    prompt: str = flag(None, "text to continue")
    file: str = flag(None, "file with the text to continue; without either, stdin")
    max_new: int = flag(400, "bytes to write at most")
    temperature: float = flag(0.8, "temperature of the sampling; 0 is greedy")
    top_k: int = flag(0, "number of most likely bytes to sample from; 0: all")
    top_p: float = flag(1.0, "nucleus sampling: the most likely bytes up to this total probability")
    seed: int = flag(0, "seed of the sampling")
    device: str = flag("cpu", "cpu, cuda, mps or auto")


def read_prompt(options):
    """The prompt, bytes. Raises UserError for a file that can't be read."""
    if options.prompt is not None and options.file:
        raise UserError(f"--prompt={options.prompt} --file={options.file}: expected one of them")
    if options.prompt is not None:
        return options.prompt.encode("utf-8", "surrogateescape")
    if options.file:
        try:
            return Path(options.file).read_bytes()
        except OSError as error:
            raise UserError(f"--file={options.file}: {error.strerror}; expected a readable "
                            "file") from None
    no_input = sys.stdin is None or sys.stdin.isatty()
    return b"" if no_input else sys.stdin.buffer.read()


def main(options):
    expect(options, "above 0", "max_new", "top_p")
    expect(options, "of 0 or more", "temperature", "top_k")
    expect(options, "from 0 to 2**63 - 1", "seed")
    expect(options, "from 0 to 1", "top_p")
    device = resolve_device(options.device)
    prompt = read_prompt(options)
    run = options.run or newest_run()
    model, checkpoint = load_model(run, device)
    run_options = mix_options(run, checkpoint)
    steps = generate(model, [prompt], max_new=options.max_new, temperature=options.temperature,
                     top_k=options.top_k, top_p=options.top_p, seed=options.seed,
                     sentinels=raw_sentinels(run_options.mode))
    # a character is shown when its last byte is there
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    sys.stdout.write(decoder.decode(prompt))
    for step in steps:
        for _, new in step:
            sys.stdout.write(decoder.decode(new))
        sys.stdout.flush()
    sys.stdout.write(decoder.decode(b"", final=True) + "\n")


if __name__ == "__main__":
    command_line(main, SampleOptions, description="Continues a prompt, byte by byte.")
