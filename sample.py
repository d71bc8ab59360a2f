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
import functools
import sys
from dataclasses import dataclass, fields

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib.attention import next_suffix
from lib.options import UserError, command_line, expect, flag
from lib.parallel import resolve_device
from lib.run import Results, load_checkpoint, load_weights, newest_run, restore_options
from lib.tables import with_progress
from lib.views import file_id
from lib.write_view import complete_in_symbols, prefill, write_view
from mix import BOS, COMP, END_COMP, END_RAW, EOS, RAW, MixOptions, format_view, suffixes
from model import BYTE0, PROXY0, GPT, GPTConfig, KVCache
from proxies import load_proxy  # not from lib.proxy, as proxies.py enters its classes there

# -----------------------------------------------------------------------------
# choosing what comes next


def pick(logits, temperature, top_k=0, top_p=1.0, generator=None):
    """The index (B,) of one of the V choices in each row of logits (B, V).

    Greedy at temperature 0. Else drawn from the top_k most likely (0: from all) and, of these, from
    the fewest that hold the share top_p of their probability (nucleus sampling: Holtzman et al.,
    arXiv 1904.09751). Raises UserError for NaN logits.
    """
    if logits.isnan().any():
        raise UserError("the model's output is not a number (NaN): its training has failed")
    if temperature < 1e-6:  # as good as greedy; one near 1e-38 divides to infinity
        return logits.argmax(dim=-1)
    p = torch.softmax(logits.float() / temperature, dim=-1)  # (B, V)
    if top_k == 0 and top_p == 1:
        return torch.multinomial(p, 1, generator=generator).squeeze(1)
    p, order = p.sort(dim=-1, descending=True)  # order: which choice stands in each column now
    if top_k:
        p[:, top_k:] = 0
        p /= p.sum(dim=-1, keepdim=True)
    mass_before = p.cumsum(dim=-1) - p  # the probability of all choices before each
    p[mass_before >= top_p] = 0
    drawn = torch.multinomial(p, 1, generator=generator)  # (B, 1) columns
    return order.gather(1, drawn).squeeze(1)


# -----------------------------------------------------------------------------
# generation

ENDED = 256          # among the choices for the next byte: the closing sentinel
WORTH_A_COPY = 0.75  # ended rows are dropped, by a copy, when fewer than this share go on


@dataclass
class Text:
    """A prompt and what is written after it."""
    prompt: bytes
    written: bytes = b""
    ended: bool = False

    def write(self, choice, stops, max_new):
        """Write a byte, or ENDED; nothing once it has ended."""
        if self.ended or choice == ENDED:
            self.ended = True
            return
        self.written += bytes([choice])
        self.ended = self.written.endswith(stops) or len(self.written) == max_new

    def recent(self, block_size):
        """All of it if it fits in a context with a sentinel, otherwise its last half context."""
        text = self.prompt + self.written
        return text if 1 + len(text) <= block_size else text[-(block_size // 2):]


def read_texts(model, texts, opening, max_new):
    """Start a cache: the model reads each Text into a row of it, with room for max_new bytes.

    Returns (the KVCache, states (B, C) and suffixes (B,), each text's last bytes packed).
    """
    device = model.embed.weight.device
    block_size = model.config.block_size
    recent = [text.recent(block_size) for text in texts]
    distinct = list(dict.fromkeys(recent))  # completions of a prompt start alike: read it once
    shown = []  # (symbols, suffixes) of each
    for text in distinct:
        raw = np.frombuffer(text, np.uint8).astype(np.int64)
        shown.append((np.append(opening, raw + BYTE0), np.append(0, suffixes(raw))))
    longest = max(len(symbols) for symbols, _ in shown)
    cache = KVCache(model.config, len(shown), min(block_size, longest + max_new), device)
    states = prefill(model, cache, shown)
    suffix = torch.tensor([its_suffixes[-1] for _, its_suffixes in shown], device=device)

    # each text goes on from a copy of its own
    rows = torch.tensor([distinct.index(text) for text in recent], device=device)
    cache.take(rows)
    return cache, states[rows], suffix[rows]  # (B, C), (B,)


def next_choices(model, states, closing):
    """Logits (B, 257) of what comes after states (B, C) of raw text: each of the bytes, or ENDED.

    Nothing else can follow raw text, or the sentinel before it: it is left out here, though
    eval.py's bits per byte still pay for its probability.
    """
    logits = model.raw_logits(states)  # (B, PROXY0)
    return torch.cat((logits[:, BYTE0:], logits[:, closing, None]), dim=1)


@torch.inference_mode()
def generate(model, prompts, n=1, max_new=256, stops=(), temperature=0.8, top_k=0, top_p=1.0,
             seed=0, sentinels=(RAW, END_RAW)):
    """Continue each of `prompts` (bytes) n times. Yields the Texts, n of the first prompt, n of the
    second and so on, after each step, which adds a byte to those that go on.

    A text ends with the closing sentinel, with one of `stops` (a tuple of bytes), or after max_new
    bytes. One whose context is full waits until the others are done, or full too; then its last
    half context is read, and it goes on from there. Where this happens depends on its own length
    alone: but for rounding, greedy text does not depend on the prompts beside it.
    """
    opening, closing = sentinels
    device = model.embed.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    texts = []
    for prompt in prompts:
        texts += [Text(prompt) for _ in range(n)]
    # a round reads all that go on into a new cache; one that is full leaves `live` till the next
    while live := [text for text in texts if not text.ended]:
        cache, states, suffix = read_texts(model, live, opening, max_new)
        while live:
            logits = next_choices(model, states, closing)  # (B, 257)
            picked = pick(logits, temperature, top_k, top_p, generator)  # (B,)
            for text, choice in zip(live, picked.tolist()):
                text.write(choice, stops, max_new)
            yield texts

            # drop texts whose context is full, at once, and ended ones, once they are many
            full = (cache.filled == cache.length).tolist()  # a list of bool
            going_on = [i for i, text in enumerate(live) if not text.ended and not full[i]]
            if any(full) or len(going_on) < WORTH_A_COPY * len(live):
                live = [live[i] for i in going_on]
                rows = torch.tensor(going_on, dtype=torch.long, device=device)
                cache.take(rows)
                picked, suffix = picked[rows], suffix[rows]

            # read what was written; what an ended text reads does not matter
            if live:
                byte = picked.clamp(max=255)  # (B,)
                suffix = next_suffix(suffix, byte)
                states = model.states((BYTE0 + byte)[:, None], suffix[:, None], cache=cache)[:, 0]
                cache.filled = cache.filled + 1  # the cache has stored a symbol for each row


def complete(model, prompts, n=1, **settings):
    """The completions (bytes) of each prompt, a list of n for each; they end with their stop.

    settings: those of `generate`.
    """
    texts = []
    for texts in generate(model, prompts, n, **settings):
        pass  # only the last step counts
    written = [text.written for text in texts]
    return [written[i:i + n] for i in range(0, len(written), n)]


# -----------------------------------------------------------------------------
# a run: the model, and what belongs to it

ROWS_AT_ONCE = 256  # completions written side by side; more only if one prompt has more


class Run:
    """A trained model, ready to be used.

    trained_with: the options of its training, a dict; .options is a MixOptions made of it.
    results: what was measured of it, a Results; the proxy is in the same folder.
    made_from: the ids of its corpus and its proxy; {} if they are not known.
    """
    def __init__(self, model, trained_with, results, made_from={}):
        self.model = model
        self.trained_with = trained_with
        names = {field.name for field in fields(MixOptions)}
        # an option that an old run lacks takes its default
        known = {name: trained_with[name] for name in names & trained_with.keys()}
        self.options = MixOptions(**known)
        self.folder = results.folder
        self.made_from = made_from
        self.device = model.embed.weight.device
        self.results = results

    @classmethod
    def load(cls, folder, device="cpu"):
        """The run in a folder. Raises UserError if there is none, or none that can be read."""
        results = Results(folder)  # first: a training may save again while this loads
        checkpoint = load_checkpoint(folder)
        config = restore_options(folder, "config", GPTConfig, checkpoint["config"])
        model = GPT(config).to(device)
        load_weights(folder, checkpoint, model)
        # version 1 hashed otherwise: its ids can't be compared
        made_from = checkpoint["made_from"] if checkpoint["version"] > 1 else {}
        return cls(model.eval(), checkpoint["options"], results, made_from)

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
            return format_view(raw, mode=self.options.mode)
        if symbols is None:
            symbols = self.proxy.encode(text)
        return format_view(raw, symbols, self.proxy.symbol_lengths, self.options.mode)

    def continue_view(self, prompts, view, max_symbols, rests=None, temperature=0.0, seed=0):
        """What the model writes up to the end of a view: for each prompt bytes or proxy symbols,
        both numbered from 0. It stops after max_symbols, or where the context is full.

        prompts: not bytes, but (symbols, suffix) of each. They and rests are as in `write_view`.
        """
        config = self.model.config
        longest = max(len(symbols) for symbols, _ in prompts)
        cache_length = min(config.block_size, longest + max_symbols)
        cache = KVCache(config, len(prompts), cache_length, self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        pick_one = functools.partial(pick, temperature=temperature, generator=generator)
        if view == "raw":
            first_id, symbol_bytes = BYTE0, [bytes([byte]) for byte in range(256)]
        else:
            first_id, symbol_bytes = PROXY0, self.proxy.symbol_bytes()
        _, closing = self.sentinels(view)
        return write_view(self.model, cache, prompts, first_id, closing, symbol_bytes, pick_one,
                          max_symbols, rests)

    def complete(self, prompts, n=1, stops=(), view="raw", seed=0, **settings):
        """The completions (bytes) of each prompt, a list of n for each; cut where a stop begins.

        view: what the model reads and writes; through the proxy it is `complete_in_symbols` of
        lib/write_view.py. settings: max_new and temperature. Raises UserError.
        """
        if view == "raw":
            write = functools.partial(complete, self.model, stops=stops,
                                      sentinels=self.sentinels("raw"))
        else:
            write = functools.partial(complete_in_symbols, self)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
        at_once = max(1, ROWS_AT_ONCE // n)  # prompts
        completions = [[] for _ in prompts]
        for start in with_progress(range(0, len(prompts), at_once), "completing"):
            batch = by_length[start:start + at_once]
            texts = write([prompts[i] for i in batch], n, seed=seed + start, **settings)
            for i, its_texts in zip(batch, texts):
                for text in its_texts:
                    starts = [text.find(stop) for stop in stops if stop in text]
                    # no stop in the text: None, so the slice keeps all of it
                    completions[i].append(text[:min(starts, default=None)])
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


def prompt_given(options):
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
    run = Run.load(options.run or newest_run(), resolve_device(options.device))
    if run.options.mix == 1:
        raise UserError(f"{run.folder}: trained with --mix=1, so it reads no raw bytes; python "
                        f"eval.py {run.folder} --view=comp measures it")
    prompt = prompt_given(options)
    steps = generate(run.model, [prompt], max_new=options.max_new, temperature=options.temperature,
                     top_k=options.top_k, top_p=options.top_p, seed=options.seed,
                     sentinels=run.sentinels("raw"))
    terminal = sys.stdout.buffer
    terminal.write(prompt)
    n_shown = 0
    for (text,) in steps:
        terminal.write(text.written[n_shown:])
        terminal.flush()
        n_shown = len(text.written)
    terminal.write(b"\n")


if __name__ == "__main__":
    command_line(main, SampleOptions, description="Continues a prompt, byte by byte.")
