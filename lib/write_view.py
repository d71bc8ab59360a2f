"""
Generation inside a view, in that view's symbols. sample.py's Run calls it for what inference on raw
bytes does not need: models that write a proxy's symbols, and translation from one view to the
other.
"""
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.attention import next_suffix
from lib.options import UserError


def pad(arrays):
    """int64 arrays (n,) as the rows of one tensor (B, longest), with zeros after the shorter."""
    rows = [torch.from_numpy(array) for array in arrays]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def read_prompts(model, cache, prompts):
    """Read all prompts into the cache. Returns the model's states (B, C) after each of them."""
    device = model.embed.weight.device
    lengths = torch.tensor([len(symbols) for symbols, _ in prompts])
    idx = pad([symbols for symbols, _ in prompts])
    suffix = pad([suffix for _, suffix in prompts])
    states = model.states(idx.to(device), suffix.to(device), cache=cache)
    cache.filled = lengths.clamp(max=cache.length - 1).to(device)  # a full row has no room
    return states[torch.arange(len(prompts)), lengths - 1]


@dataclass
class Row:
    """What is written after a prompt."""
    suffix: int       # the last 7 bytes of the text so far, packed (lib/attention.py)
    rest: bytes       # what must still be written before anything else
    max_symbols: int  # how many fit into the context after the prompt
    written: list = field(default_factory=list)
    closed: bool = False

    @property
    def ended(self):
        return self.closed or len(self.written) >= self.max_symbols

    def write(self, symbol, text):
        """Add a symbol, which stands for the bytes `text`."""
        self.written.append(symbol)
        self.rest = self.rest[len(text):]
        for byte in text:
            self.suffix = next_suffix(self.suffix, byte)


def may_come(text, rest):
    """Whether a symbol of the bytes `text` may come where `rest` must be written first: it writes
    all of it and perhaps more, or the beginning of it."""
    writes_all = text.startswith(rest)
    writes_beginning = text != b"" and rest.startswith(text)
    return writes_all or writes_beginning


def allowed_next(symbol_bytes, rests):
    """bool (B, n_symbols + 1): which symbols may come next in each row, whose `rest` must be
    written first. The last is the closing sentinel, which may come when nothing is left."""
    allowed = {}  # by rest: the rows of a batch that have the same share it
    for rest in set(rests):
        allowed[rest] = [may_come(text, rest) for text in symbol_bytes]
        allowed[rest].append(rest == b"")
    return torch.tensor([allowed[rest] for rest in rests])


@torch.inference_mode()
def write_view(model, cache, prompts, first_id, closing, symbol_bytes, pick_one, rests=None):
    """Go on from prompts that end inside a view, each up to the `closing` sentinel or to the end of
    the context.

    cache: an empty KVCache for a whole context.
    prompts: (symbols, suffix) of each, int64 arrays.
    first_id: of the view's first symbol.
    symbol_bytes: the bytes of each symbol, None if it stands for none.
    pick_one: chooses from logits (B, n_symbols + 1), the last of which is the closing sentinel's.
    rests: for each prompt the bytes that must come before anything else; then each symbol has to
        stand for bytes, and each single byte has to have a symbol.

    Returns a list of symbols, counted from 0, for each prompt.
    """
    device = model.embed.weight.device
    n_symbols = len(symbol_bytes)
    rows = []
    for (symbols, suffix), rest in zip(prompts, rests or [b""] * len(prompts)):
        rows.append(Row(int(suffix[-1]), rest, max_symbols=cache.length - len(symbols)))

    states = read_prompts(model, cache, prompts)
    while True:
        logits = model.logits(states)
        of_view = logits[:, first_id:first_id + n_symbols]
        choices = torch.cat((of_view, logits[:, closing, None]), dim=1)  # (B, n_symbols + 1)
        if any(row.rest for row in rows):
            allowed = allowed_next(symbol_bytes, [row.rest for row in rows])
            choices = choices.masked_fill(~allowed.to(device), -torch.inf)

        for row, symbol in zip(rows, pick_one(choices).tolist()):
            if symbol == n_symbols:
                row.closed = True
            elif not row.ended:
                row.write(symbol, symbol_bytes[symbol] or b"")
        if all(row.ended for row in rows):
            return [row.written for row in rows]

        # what a row that has ended reads does not matter; it stays where it is, inside of the cache
        new = [first_id if row.ended else first_id + row.written[-1] for row in rows]
        suffix = [row.suffix for row in rows]
        states = model.states(torch.tensor(new, device=device)[:, None],
                              torch.tensor(suffix, device=device)[:, None], cache=cache)[:, -1]
        cache.filled = cache.filled + torch.tensor([not row.ended for row in rows], device=device)


def complete_in_symbols(run, prompts, n=1, max_new=256, temperature=0.8, seed=0):
    """The texts (bytes) that a Run writes after each prompt, a list of n for each, where it reads
    and writes its proxy's symbols: what a tokenizer model does. Raises UserError if it can't.

    Each view is written to its end, and only then cut, to max_new bytes. Of a prompt it reads at
    most half of a context, so that there is room to write.

    Token healing: the last bytes of a prompt may share a symbol with what follows. The model does
    not read these `rests` but writes them once more, in symbols as it has seen them in training.
    """
    if run.proxy.symbol_lengths is None or run.options.mode == "vanilla":
        raise UserError("--view=comp: this run can't write through its proxy; expected one with "
                        "sentinels, and a proxy whose symbols stand for known bytes")
    shown, rests = [], []
    for prompt in prompts:
        symbols, rest = run.proxy.encode_prompt(prompt)
        view = run.view("comp", prompt[:len(prompt) - len(rest)], symbols)
        # the opening sentinel and the last half context, without the closing sentinel
        start = max(1, len(view.symbols) - run.model.config.block_size // 2)
        ids = np.append(view.symbols[0], view.symbols[start:-1])
        suffix = np.append(view.suffix[0], view.suffix[start:-1])
        shown += [(ids, suffix)] * n
        rests += [rest] * n
    texts = []
    written = run.continue_view(shown, "comp", rests, temperature, seed)
    for rest, symbols in zip(rests, written):
        text = run.proxy.decode(symbols)[len(rest):]  # nothing but the rest can come first
        texts.append(text[:max_new])
    return [texts[i:i + n] for i in range(0, len(texts), n)]
