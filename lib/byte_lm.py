"""
The small byte LM that drives the neural proxy: an ordinary language model of 256 bytes and a start
symbol. proxies.py builds it, trains it here, and asks it for probabilities.
"""
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib.suffix import pack_suffix

LM_BOS = 256    # the LM's start symbol; a byte's id is its value here
LM_BYTES = 128  # bytes that the LM sees at once


def lm_inputs(text):
    """What the LM reads to predict each byte of `text` (B, T): symbols and suffixes before it."""
    bos = torch.full_like(text[:, :1], LM_BOS)
    no_text = torch.zeros_like(bos)
    before = text[:, :-1]
    return torch.cat((bos, before), dim=1), torch.cat((no_text, pack_suffix(before)), dim=1)


def train_byte_lm(lm, texts, steps, seed, batch_size=64, lr=4e-3):
    """Train an LM on random stretches of LM_BYTES bytes: a window may start anywhere."""
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    if len(data) <= LM_BYTES:
        data = data.repeat(LM_BYTES // len(data) + 2)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    progress = tqdm(range(steps), desc="byte LM", leave=False, disable=None)
    for step in progress:
        # a trapezoid: 50 steps up, flat for the first third, then down to 0
        warmup = (step + 1) / 50
        decay = 1.5 * (steps - step) / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(warmup, 1.0, decay)
        start = torch.randint(len(data) - LM_BYTES, (batch_size, 1), generator=generator)
        text = data[start + torch.arange(LM_BYTES)].long()  # (B, T)
        idx, suffix = lm_inputs(text)
        logits = lm(idx, suffix=suffix)
        loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            progress.set_postfix_str(f"{loss.item() / np.log(2):.2f} bits a byte")
    return lm.eval()


@torch.inference_mode()
def next_byte_probabilities(lm, strings):
    """The probabilities (N, 256) of the byte that follows each of `strings`, uint8 (N, length).

    Each string is the beginning of a window.
    """
    p = []
    for some_strings in torch.from_numpy(strings.copy()).long().split(8192):
        any_byte = some_strings.new_zeros(len(some_strings), 1)  # the one that is predicted
        idx, suffix = lm_inputs(torch.cat((some_strings, any_byte), dim=1))
        logits = lm(idx, suffix=suffix)[:, -1, :256]
        p.append(torch.softmax(logits, dim=-1))
    return torch.cat(p).numpy()
