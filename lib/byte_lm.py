"""
The small byte LM that drives the neural proxy: the project's own GPT, over 256 bytes and a start
symbol. proxies.py calls `cached_lm` and `predictor`, to list what a window can hold.
"""
import copy
import functools

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib import store
from lib.corpus import ROOT
from lib.results import code_hash
from lib.attention import pack_suffix
from model import GPT, GPTConfig

LM_BOS = 256    # the LM's start symbol; a byte's id is its value here
LM_BYTES = 128  # the length of a stretch that it is trained on; a window is shorter
# one layer is enough: hashed n-gram look-ups do most of the predicting
LM_CONFIG = GPTConfig(vocab_size=257, n_layer=1, n_embd=64, n_head=2, mlp_hidden=128,
                      block_size=LM_BYTES, ngram=6, ngram_buckets=2 ** 15)
LM_CODE = ("lib/byte_lm.py", "lib/attention.py", "model.py")  # after an edit there it is trained anew

# -----------------------------------------------------------------------------
# training


def lm_inputs(text):
    """What the LM reads of a text (B, T) to predict each of its bytes and the one after it: symbols
    and suffixes, (B, T + 1) each, the start symbol first."""
    return F.pad(text, (1, 0), value=LM_BOS), F.pad(pack_suffix(text), (1, 0))


def train_lm(texts, steps=400, seed=1337, batch_size=64, lr=4e-3):
    """An LM of `texts`, a list of bytes, trained on random stretches of them, each of which the LM
    reads as it will read a window: from the start symbol on."""
    with torch.random.fork_rng():  # leaves the caller's random state alone
        torch.manual_seed(seed)
        lm = GPT(LM_CONFIG)
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    if len(data) <= LM_BYTES:
        data = data.repeat(LM_BYTES // len(data) + 2)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    progress = tqdm(range(steps), desc="byte LM", leave=False, disable=None)
    for step in progress:
        # a trapezoid: up for 50 steps, flat for the rest of the first third, then down to 0
        warmup = (step + 1) / 50
        decay = 1.5 * (steps - step) / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(warmup, 1.0, decay)
        start = torch.randint(len(data) - LM_BYTES, (batch_size, 1), generator=generator)
        text = data[start + torch.arange(LM_BYTES)].long()  # (B, T)
        idx, suffix = lm_inputs(text[:, :-1])
        logits = lm(idx, suffix=suffix)
        loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            progress.set_postfix_str(f"{loss.item() / np.log(2):.2f} bits a byte")
    return lm.eval()


def cached_lm(folder, texts):
    """The LM of `texts`: trained now, or read from `folder`, since it serves all --bits."""
    if folder is None:
        return train_lm(texts)
    path = folder / f"byte-lm-{code_hash(*[ROOT / name for name in LM_CODE])}.pt"
    if not path.exists():
        store.write_torch(path, train_lm(texts).state_dict())
    lm = GPT(LM_CONFIG).eval()
    lm.load_state_dict(torch.load(path, weights_only=True))
    return lm


# -----------------------------------------------------------------------------
# what it predicts


@torch.inference_mode()
def next_byte_probabilities(lm, strings):
    """The probabilities (N, 256) of the byte that follows each of `strings`, uint8 (N, length).

    Each string is the beginning of a window.
    """
    p = []
    for some_strings in torch.from_numpy(strings).long().split(8192):
        idx, suffix = lm_inputs(some_strings)
        logits = lm(idx, suffix=suffix)[:, -1, :256]  # LM_BOS never follows
        p.append(torch.softmax(logits, dim=-1))
    return torch.cat(p).numpy()


def predictor(lm):
    """`next_byte_probabilities` of a copy of the LM that computes in float64, a function of
    `strings` alone."""
    return functools.partial(next_byte_probabilities, copy.deepcopy(lm).double())
