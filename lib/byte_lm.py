"""
The small byte LM that drives the neural proxy: the project's own GPT, over 256 bytes and a start
symbol. proxies.py calls `train_lm` and `predictor`, to list what a window can hold.
"""
import contextlib
import copy
import functools

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib.attention import pack_suffix

LM_BOS = 256   # the LM's start symbol; a byte's id is its value here
LM_BYTES = 48  # that a window may hold; so it is trained on stretches of that length
# of a GPTConfig; one layer is enough, as hashed n-gram look-ups do most of the predicting
LM_CONFIG = dict(vocab_size=257, n_layer=1, n_embd=64, n_head=2, mlp_hidden=128,
                 block_size=LM_BYTES, ngram=6, ngram_buckets=2 ** 15)


@contextlib.contextmanager
def one_thread():
    """A block in which torch computes with one thread. Several would wait for each other after each
    operation: for so small a model too often, on busy cores for minutes."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def lm_inputs(text):
    """What the LM reads of a text (B, T) to predict each of its bytes and the one after it: symbols
    and suffixes, (B, T + 1) each, the start symbol first."""
    return F.pad(text, (1, 0), value=LM_BOS), F.pad(pack_suffix(text), (1, 0))


@one_thread()
def train_lm(texts, GPT, GPTConfig, steps=400, seed=1337, batch_size=64, lr=4e-3):
    """An LM of `texts`, a list of bytes, trained on random stretches of them, each of which the LM
    reads as it will read a window: from the start symbol on. GPT, GPTConfig: those of model.py."""
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state alone, and all cards
        torch.manual_seed(seed)
        lm = GPT(GPTConfig(**LM_CONFIG))
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    if len(data) <= LM_BYTES:  # too short for one stretch
        data = data.repeat(LM_BYTES // len(data) + 2)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0,
                                  fused=True)
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
        logits = lm(idx, suffix=suffix)                     # (B, T, 257)
        loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            progress.set_postfix_str(f"{loss.item() / np.log(2):.2f} bits a byte")
    return lm.eval()


@torch.inference_mode()
def next_byte_probabilities(lm, strings):
    """The probabilities (N, 256) of the byte that follows each of `strings`, uint8 (N, length).

    Each string is the beginning of a window.
    """
    p = []
    for some_strings in torch.from_numpy(strings).long().split(2048):
        idx, suffix = lm_inputs(some_strings)
        logits = lm(idx, suffix=suffix)[:, -1, :256]  # LM_BOS never follows
        p.append(torch.softmax(logits, dim=-1))
    return torch.cat(p).numpy()


def predictor(lm):
    """`next_byte_probabilities` of a copy of the LM that computes in float64, a function of
    `strings` alone."""
    return functools.partial(next_byte_probabilities, copy.deepcopy(lm).double())
