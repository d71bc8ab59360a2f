"""
Generation inside a view, in that view's symbols. sample.py's Run calls it for what inference on raw
bytes does not need: models that write a proxy's symbols, and translation from one view to the
other. Only `prefill` reads every prompt, raw ones too.
"""
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lib.attention import next_suffix
from lib.options import UserError


def prefill(model, cache, prompts):
    """Read prompts of any length, each (symbols, suffix), two int64 arrays, into an empty cache.
    Returns the model's states (B, C) after each of them."""
    device = model.embed.weight.device
    lengths = torch.tensor([len(symbols) for symbols, _ in prompts], device=device)
    symbols = [torch.from_numpy(symbols) for symbols, _ in prompts]
    suffixes = [torch.from_numpy(suffix) for _, suffix in prompts]
    idx = pad_sequence(symbols, batch_first=True).to(device)  # (B, T)
    suffix = pad_sequence(suffixes, batch_first=True).to(device)
    states = model.states(idx, suffix, cache=cache)  # (B, T, C); nothing attends to the padding
    cache.filled = lengths
    return states[torch.arange(len(prompts), device=device), lengths - 1]


@dataclass
class Row:
    """What is written after a prompt."""
    suffix: int  # the last 7 bytes of the text so far, packed (lib/attention.py)
    rest: bytes  # what must still be written before anything else
    room: int    # how many more symbols may be written; 0: it has ended
    written: list = field(default_factory=list)

    def write(self, symbol, text):
        """Add a symbol, which stands for `text`, bytes."""
        self.written.append(symbol)
        self.room -= 1
        self.rest = self.rest[len(text):]
        for byte in text:
            self.suffix = next_suffix(self.suffix, byte)


def forbidden_before(rest, symbol_bytes):
    """bool (n_symbols + 1): True where symbol s may not come next: it writes nothing, or text that
    disagrees with `rest`. The last, the closing sentinel, never may."""
    forbidden = []
    for text in symbol_bytes:
        agrees = text[:len(rest)] == rest[:len(text)]
        forbidden.append(text == b"" or not agrees)
    return torch.tensor(forbidden + [True])


@torch.inference_mode()
def write_view(model, cache, prompts, first_id, closing, symbol_bytes, pick_one, max_symbols,
               rests=None):
    """Go on from prompts that end inside a view, each up to the `closing` sentinel, to max_symbols
    or to the end of the cache. Returns a list of symbols, counted from 0, for each.

    prompts: (symbols, suffix) of each, int64 arrays.
    first_id: of the view's first symbol.
    symbol_bytes: the bytes of each symbol, None where that is not known, as of gzip's.
    pick_one: chooses from logits (B, n_symbols + 1), the last of which is the closing sentinel's.
    rests: for each prompt the bytes that must come before anything else; then each symbol has to
        have known bytes, and each single byte a symbol.
    """
    device = model.embed.weight.device
    n_symbols = len(symbol_bytes)
    rows = []
    for (symbols, suffix), rest in zip(prompts, rests or [b""] * len(prompts)):
        room = min(max_symbols, cache.length - len(symbols))
        rows.append(Row(int(suffix[-1]), rest, room))
    states = prefill(model, cache, prompts)
    while True:
        logits = model.logits(states)
        of_view = logits[:, first_id:first_id + n_symbols]
        choices = torch.cat((of_view, logits[:, closing, None]), dim=1)  # (B, n_symbols + 1)
        for row, its_choices in zip(rows, choices):
            if row.rest:
                its_choices[forbidden_before(row.rest, symbol_bytes).to(device)] = -torch.inf
        picked = pick_one(choices)  # (B,)
        for row, symbol in zip(rows, picked.tolist()):
            if symbol == n_symbols:
                row.room = 0
            elif row.room > 0:
                row.write(symbol, symbol_bytes[symbol] or b"")
        if all(row.room == 0 for row in rows):
            return [row.written for row in rows]

        # rows that have ended read on, too: any symbol, at the cache's end where it is full
        cache.filled = cache.filled.clamp(max=cache.length - 1)
        idx = first_id + picked.clamp(max=n_symbols - 1)[:, None]  # (B, 1)
        suffix = torch.tensor([row.suffix for row in rows], device=device)[:, None]
        states = model.states(idx, suffix, cache=cache)[:, 0]
        cache.filled = cache.filled + 1


def complete_in_symbols(run, prompts, n=1, max_new=256, temperature=0.8, seed=0):
    """The texts (bytes) that a Run writes after each prompt, a list of n for each, where it reads
    and writes its proxy's symbols: what a tokenizer model does. Raises UserError if it can't.

    They are cut to max_new bytes. Of a prompt it reads at most half of a context, so that there is
    room to write.

    Token healing: the last bytes of a prompt may share a symbol with what follows. The model does
    not read these `rests` but writes them once more, in symbols as it has seen them in training.
    """
    if run.proxy.symbol_lengths is None or run.options.mode == "vanilla":
        raise UserError("--view=comp: this run can't write through its proxy; expected one with "
                        "sentinels, and a proxy whose symbols stand for known bytes")
    shown = []
    rests = []
    for prompt in prompts:
        symbols, rest = run.proxy.encode_prompt(prompt)
        view = run.view("comp", prompt[:len(prompt) - len(rest)], symbols)
        # the opening sentinel and the last half context, without the closing sentinel
        start = max(1, len(view.symbols) - run.model.config.block_size // 2)
        ids = np.append(view.symbols[0], view.symbols[start:-1])
        suffix = np.append(view.suffix[0], view.suffix[start:-1])
        shown += [(ids, suffix)] * n
        rests += [rest] * n
    max_symbols = max_new + max(map(len, rests))  # each stands for a byte at least
    written = run.continue_view(shown, "comp", max_symbols, rests, temperature, seed)
    texts = []
    for rest, symbols in zip(rests, written):
        text = run.proxy.decode(symbols)[len(rest):]  # nothing but the rest can come first
        texts.append(text[:max_new])
    return [texts[i:i + n] for i in range(0, len(texts), n)]
