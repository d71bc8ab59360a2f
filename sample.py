"""
Raw bytes in, raw bytes out. The compressor that helped to train the model is not needed here,
and is not loaded.

Text stands after the sentinel that opened raw samples in training, and ends where the model writes
the closing one. This is a language model's usual generation, in bytes: a KV cache, temperature,
top-k and top-p. (For eval.py's comparisons a Run reads and writes a proxy's symbols, too.)

    python sample.py --prompt='def add('                           the newest run under out/
    python sample.py out/neural --prompt='def add(' --temperature=0
    python sample.py out/neural < start.py                         the prompt from stdin
"""
import codecs
import functools
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib.attention import next_suffix
from lib.byte_heads import Guessing, load_byte_heads
from lib.options import UserError, command_line, expect, flag
from lib.parallel import resolve_device
from lib.run import (Results, load_checkpoint, load_shards, newest_run, restore_options,
                     restore_weights)
from lib.tables import with_progress
from lib.views import file_id
from lib.write_view import complete_in_symbols, read_prompts, write_view
from mix import BOS, COMP, END_COMP, END_RAW, EOS, RAW, MixOptions, format_view, suffixes
from model import BYTE0, PROXY0, GPT, GPTConfig, KVCache
from proxies import load_proxy

# -----------------------------------------------------------------------------
# choosing what comes next


def pick(logits, temperature, top_k=0, top_p=1.0, generator=None):
    """The index (...) of one of the choices in each row of logits (..., V).

    Greedy at temperature 0. Else drawn from the top_k most likely (0: from all) and, of these, from
    the fewest that hold the share top_p of their probability (nucleus sampling: Holtzman et al.,
    arXiv 1904.09751). Raises UserError for NaN logits.
    """
    if logits.isnan().any():
        raise UserError("the model's output is not a number (NaN): its training has failed")
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = torch.softmax(logits.float().flatten(0, -2) / temperature, dim=-1)  # (rows, V)
    if top_k == 0 and top_p == 1:
        return torch.multinomial(p, 1, generator=generator).view(logits.shape[:-1])
    p, order = p.sort(dim=-1, descending=True)
    if top_k:
        p[:, top_k:] = 0
        p /= p.sum(dim=-1, keepdim=True)
    mass_before = p.cumsum(dim=-1) - p  # the probability of all choices before each
    p[mass_before >= top_p] = 0
    drawn = torch.multinomial(p, 1, generator=generator)
    return order.gather(-1, drawn).view(logits.shape[:-1])


# -----------------------------------------------------------------------------
# texts that are being written

ENDED = 256          # among the choices for the next byte: the closing sentinel
WORTH_A_COPY = 0.75  # the cache is copied when fewer than this share of its rows go on


def find_stop(text, stops):
    """Where the stop that is completed first begins in `text`, or None."""
    found = []
    for stop in stops:
        start = text.find(stop)
        if start >= 0:
            found.append((start + len(stop), start))
    return min(found)[1] if found else None


@dataclass
class Text:
    """A prompt and what is written after it. It ends with the closing sentinel, with one of
    `stops`, or after max_new bytes."""
    row: int  # its number among all texts
    prompt: bytes
    max_new: int
    stops: tuple
    written: bytes = b""
    ended: bool = False

    def write(self, choices):
        """Add bytes, the last of which may be ENDED, as far as it goes on. Returns the new ones."""
        n_before = len(self.written)
        for choice in choices:
            if self.ended or choice == ENDED:
                self.ended = True
                break
            self.written += bytes([choice])
            stopped = any(self.written.endswith(stop) for stop in self.stops)
            self.ended = stopped or len(self.written) == self.max_new
        return self.written[n_before:]

    def recent(self, block_size):
        """All of it if it fits in a context with a sentinel, otherwise its last half context."""
        text = self.prompt + self.written
        return text if 1 + len(text) <= block_size else text[-(block_size // 2):]


class Batch:
    """Texts that are continued side by side. Each has a row of the KV cache.

    A step: from its `logits` a byte is chosen for each text, they are written, texts that are done
    are dropped, and the others' new bytes are read.
    """
    def __init__(self, model, texts, sentinels, max_new):
        self.model = model
        self.texts = texts
        opening, self.closing = sentinels
        device = model.embed.weight.device
        block_size = model.config.block_size
        recent = [text.recent(block_size) for text in texts]
        distinct = list(dict.fromkeys(recent))  # completions of a prompt start alike: read it once
        shown = []  # (symbols, suffixes) of each
        for text in distinct:
            text = np.frombuffer(text, np.uint8).astype(np.int64)
            shown.append((np.append(opening, text + BYTE0), np.append(0, suffixes(text))))
        longest = max(len(symbols) for symbols, _ in shown)
        cache_length = min(block_size, longest + max_new)
        self.cache = KVCache(model.config, len(shown), cache_length, device)
        states = read_prompts(model, self.cache, shown)  # after the last byte of each
        suffix = torch.tensor([its_suffixes[-1] for _, its_suffixes in shown], device=device)

        # each text goes on from a copy of its own
        rows = torch.tensor([distinct.index(text) for text in recent], device=device)
        self.cache.take(rows)
        self.states = states[rows][:, None]  # (B, 1, C)
        self.suffix = suffix[rows][:, None]  # (B, 1)

    def logits(self):
        """Logits (B, 1, 257) of what comes next: each of the bytes, or ENDED.

        The other special ids can't follow raw text: they are left out here, though eval.py's bits
        per byte still pay for their probability.
        """
        logits = self.model.raw_logits(self.states)  # (B, 1, PROXY0)
        return torch.cat((logits[..., BYTE0:], logits[..., self.closing, None]), dim=-1)

    def write(self, chosen):
        """Add what was chosen, a list for each text. Returns [(its row, its new bytes), ...]."""
        step = []
        for text, choices in zip(self.texts, chosen):
            new = text.write(choices)
            if new:
                step.append((text.row, new))
        return step

    def drop_texts(self):
        """Drop texts that have ended, when enough of them have, and those whose context is full."""
        full = (self.cache.filled >= self.cache.length).tolist()
        live = [i for i, text in enumerate(self.texts) if not text.ended and not full[i]]
        if any(full) or len(live) < WORTH_A_COPY * len(self.texts):
            self.texts = [self.texts[i] for i in live]
            rows = torch.tensor(live, dtype=torch.long, device=self.states.device)
            self.cache.take(rows)
            self.states = self.states[rows]
            self.suffix = self.suffix[rows]

    def last_bytes(self):
        """The byte (B, 1) that was written last in each text."""
        # one that has ended may have none; what it reads does not matter
        last = [text.written[-1] if text.written else 0 for text in self.texts]
        return torch.tensor(last, device=self.states.device)[:, None]

    def read(self):
        """Let the model read the byte that was written last in each text."""
        byte = self.last_bytes()
        self.suffix = next_suffix(self.suffix, byte)
        self.states = self.model.states(byte + BYTE0, self.suffix, cache=self.cache)
        self.cache.filled = self.cache.filled + 1


class GuessingBatch(Guessing, Batch):
    """A Batch that writes several bytes a step, greedily: lib/byte_heads.py guesses them."""


# -----------------------------------------------------------------------------
# generation


@torch.inference_mode()
def generate(model, prompts, n=1, max_new=256, stops=(), temperature=0.8, top_k=0, top_p=1.0,
             seed=0, sentinels=(RAW, END_RAW), heads=None):
    """Continue each of `prompts` (bytes) n times. Yields, for each step, [(row, new bytes), ...].

    row = index of the prompt * n + index of the completion. A row ends with the closing sentinel,
    with one of `stops` (bytes), or after max_new bytes. heads: of lib/byte_heads.py; greedy text is
    then written several bytes a step.

    A text whose context is full leaves its batch, and its last half context is read again in the
    next one. When it leaves depends on its own length alone, so greedy text does not depend on the
    prompts beside it.
    """
    generator = torch.Generator(model.embed.weight.device).manual_seed(seed)
    new_batch = Batch
    if heads is not None and temperature == 0:
        new_batch = functools.partial(GuessingBatch, heads)
    texts = []
    for prompt in prompts:
        for _ in range(n):
            texts.append(Text(len(texts), prompt, max_new, stops))
    unfinished = texts
    while unfinished:  # again only for texts whose context was full
        batch = new_batch(model, unfinished, sentinels, max_new)
        while batch.texts:
            # a byte for each text, (B, 1); with heads one after each of their guesses, too
            chosen = pick(batch.logits(), temperature, top_k, top_p, generator)
            yield batch.write(chosen.tolist())
            batch.drop_texts()
            if batch.texts:
                batch.read()
        unfinished = [text for text in texts if not text.ended]


def complete(model, prompts, n=1, **settings):
    """The completions (bytes) of each prompt, a list of n for each; they end with their stop.

    settings: those of `generate`.
    """
    texts = [b""] * (len(prompts) * n)
    for step in generate(model, prompts, n, **settings):
        for row, new in step:
            texts[row] += new
    return [texts[i:i + n] for i in range(0, len(texts), n)]


# -----------------------------------------------------------------------------
# a run: the model, and what belongs to it

ROWS_AT_ONCE = 256  # completions that are written side by side


class Run:
    """A trained model, ready to be used.

    options: the options of its training, a dict; `.options` has those that say how text was shown.
    folder: where its proxy is, and what was measured of it; None of a model that was not saved.
    made_from: the ids of its corpus and its proxy; {} if they are not known.
    """
    def __init__(self, model, options, folder=None, made_from={}):
        self.model = model
        self.trained_with = options
        names = [field.name for field in fields(MixOptions)]
        known = {name: options[name] for name in names if name in options}
        self.options = MixOptions(**known)  # one that an old run does not know has its default
        self.folder = Path(folder) if folder else None
        self.made_from = made_from
        self.device = model.embed.weight.device
        self.results = Results(folder)

    @classmethod
    def load(cls, folder, device="cpu"):
        """The run in a folder. Raises UserError if there is none, or none that can be read."""
        checkpoint = load_checkpoint(folder)
        config = restore_options(folder, "config", GPTConfig, checkpoint["config"])
        model = GPT(config).to(device)
        if "shards" in checkpoint:  # of a run with --fsdp: each of its processes wrote a part
            load_shards(folder, checkpoint, {"model": model.state_dict()})
        else:
            restore_weights(folder, model, checkpoint["model"])
        # version 1 hashed otherwise: its ids can't be compared
        made_from = checkpoint["made_from"] if checkpoint["version"] > 1 else {}
        return cls(model.eval(), checkpoint["options"], folder, made_from)

    @functools.cached_property
    def heads(self):
        """The byte heads in its folder, or None. Raises UserError for another model's."""
        return load_byte_heads(self.folder, self.model) if self.folder else None

    @functools.cached_property
    def proxy(self):
        """The proxy, loaded when it is asked for: raw bytes do without. Raises UserError if the
        file is missing, or is not the one that the model was trained with."""
        path = self.folder / "proxy.pt"
        if not path.exists():
            raise UserError(f"{self.folder}: no proxy.pt in it, so the model can't read or write "
                            "symbols")
        proxy = load_proxy(path, "restore the file")
        if self.made_from.get("proxy") not in (None, file_id(path)):
            raise UserError(f"{path} is not the proxy that the run was trained with; restore it")
        return proxy

    def sentinels(self, view):
        """(opening, closing): the symbols around a view, "raw" or "comp", in training."""
        if self.options.mode == "vanilla":
            return BOS, EOS
        return (RAW, END_RAW) if view == "raw" else (COMP, END_COMP)

    def view(self, view, text, symbols=None):
        """The View of a text, bytes, as training shows it. symbols: the proxy's for this text, if
        they are known."""
        raw = np.frombuffer(text, np.uint8)
        if view == "raw":
            return format_view("raw", raw, mode=self.options.mode)
        if symbols is None:
            symbols = self.proxy.encode(text)
        return format_view("comp", raw, symbols, self.proxy.symbol_lengths, self.options.mode)

    def continue_view(self, prompts, view, rests=None, temperature=0.0, seed=0):
        """The symbols, counted from 0, that the model writes up to the end of a view, a list for
        each prompt. prompts, rests: as of `write_view` in lib/write_view.py."""
        generator = torch.Generator(self.device).manual_seed(seed)
        pick_one = functools.partial(pick, temperature=temperature, generator=generator)
        cache = KVCache(self.model.config, len(prompts), self.model.config.block_size, self.device)
        if view == "raw":
            first_id, symbol_bytes = BYTE0, [bytes([byte]) for byte in range(256)]
        else:
            first_id, symbol_bytes = PROXY0, self.proxy.symbol_bytes()
        closing = self.sentinels(view)[1]
        return write_view(self.model, cache, prompts, first_id, closing, symbol_bytes, pick_one,
                          rests)

    def complete(self, prompts, n=1, stops=(), view="raw", seed=0, **settings):
        """The completions (bytes) of each prompt, a list of n for each; cut where a stop begins.

        view: what the model reads and writes; through the proxy it is `complete_in_symbols` of
        lib/write_view.py. settings: max_new and temperature. Raises UserError.
        """
        if view == "raw":
            write = functools.partial(complete, self.model, stops=stops, heads=self.heads,
                                      sentinels=self.sentinels("raw"))
        else:
            write = functools.partial(complete_in_symbols, self)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
        at_once = max(1, ROWS_AT_ONCE // n)
        completions = [None] * len(prompts)
        for start in with_progress(range(0, len(prompts), at_once), "completing"):
            batch = by_length[start:start + at_once]
            texts = write([prompts[i] for i in batch], n, seed=seed + start, **settings)
            for i, its_texts in zip(batch, texts):
                completions[i] = [text[:find_stop(text, stops)] for text in its_texts]
        return completions


# -----------------------------------------------------------------------------
# python sample.py


@dataclass
class SampleOptions:
    run: str = flag(None, "folder of a run [the newest under out/]", positional=True, nargs="?")
    prompt: str = flag(None, "text to continue; without it, stdin")
    max_new: int = flag(400, "bytes to write at most")
    temperature: float = flag(0.8, "temperature of the sampling; 0 is greedy")
    top_k: int = flag(0, "number of most likely bytes to sample from; 0: all")
    top_p: float = flag(1.0, "nucleus sampling: the most likely bytes up to this total probability")
    seed: int = flag(0, "seed of the sampling")
    device: str = flag("cpu", "cpu, cuda, mps or auto")


def read_prompt(options):
    """The prompt, bytes."""
    if options.prompt is not None:
        return options.prompt.encode("utf-8", "surrogateescape")
    no_input = sys.stdin is None or sys.stdin.isatty()
    return b"" if no_input else sys.stdin.buffer.read()


def main(options):
    expect(options, "above 0", "max_new", "top_p")
    expect(options, "of 0 or more", "temperature", "top_k")
    expect(options, "from 0 to 2**63 - 1", "seed")
    expect(options, "from 0 to 1", "top_p")
    device = resolve_device(options.device)
    prompt = read_prompt(options)
    run = Run.load(options.run or newest_run(), device)
    steps = generate(run.model, [prompt], max_new=options.max_new, temperature=options.temperature,
                     top_k=options.top_k, top_p=options.top_p, seed=options.seed,
                     sentinels=run.sentinels("raw"), heads=run.heads)
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
