"""
Generation inside a view, in that view's symbols. eval.py calls it for what sample.py does not do:
models that write a proxy's symbols, and translation from one view to the other.
"""
import torch

from lib.suffix import next_suffix


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
    cache.pos = lengths.clamp(max=cache.length - 1).to(device)  # of a full row the last: see below
    return states[torch.arange(len(prompts)), lengths - 1]


def allowed_next(symbol_bytes, rests):
    """bool (B, n_symbols + 1): the symbols that may come next in each row, whose `rest` must be
    written first. Their bytes begin with all of it, or are its beginning.

    The last is the closing sentinel, for which nothing may be left.
    """
    allowed = {}
    for rest in set(rests):
        allowed[rest] = []
        for text in symbol_bytes:
            is_beginning = text != b"" and rest.startswith(text)
            allowed[rest].append(is_beginning or text.startswith(rest))
        allowed[rest].append(rest == b"")
    return torch.tensor([allowed[rest] for rest in rests])


@torch.inference_mode()
def write_view(model, cache, prompts, first, closing, symbol_bytes, pick_one, rests=None):
    """Go on from prompts that end inside a view, each up to the `closing` sentinel or to the end of
    the context.

    cache: an empty KVCache for a whole context.
    prompts: (symbols, suffix) of each, int64 arrays.
    first: the id of the view's first symbol, BYTE0 or PROXY0.
    symbol_bytes: the bytes of each symbol, None if it stands for none.
    pick_one: chooses from logits (B, n_symbols + 1), the last of which is the closing sentinel's.
    rests: for each prompt the bytes that must be written first.

    Returns a list of symbols, counted from 0, for each prompt.
    """
    device = model.embed.weight.device
    n_symbols = len(symbol_bytes)
    states = read_prompts(model, cache, prompts)
    room = [cache.length - len(symbols) for symbols, _ in prompts]

    suffix = [int(prompt_suffix[-1]) for _, prompt_suffix in prompts]
    rests = list(rests or [b""] * len(prompts))
    written = [[] for _ in prompts]
    ended = [n == 0 for n in room]
    for _ in range(max(room)):
        logits = model.logits(states)
        of_view = logits[:, first:first + n_symbols]
        choices = torch.cat((of_view, logits[:, closing, None]), dim=1)  # (B, n_symbols + 1)
        if any(rests):
            allowed = allowed_next(symbol_bytes, rests).to(device)
            choices = choices.masked_fill(~allowed, -torch.inf)
        chosen = pick_one(choices).tolist()
        for row, symbol in enumerate(chosen):
            ended[row] = ended[row] or symbol == n_symbols
            if ended[row]:
                chosen[row] = 0  # it runs along; what it reads does not matter
                continue
            written[row].append(symbol)
            text = symbol_bytes[symbol] or b""
            rests[row] = rests[row][len(text):]
            for byte in text:
                suffix[row] = next_suffix(suffix[row], byte)
            ended[row] = len(written[row]) == room[row]
        if all(ended):
            break
        new = torch.tensor(chosen, device=device)[:, None] + first
        new_suffix = torch.tensor(suffix, device=device)[:, None]
        states = model.states(new, new_suffix, cache=cache)[:, -1]
        # a row that has ended stays where it is, and so inside of the cache
        cache.pos = cache.pos + torch.tensor([not row for row in ended], device=device)
    return written
