"""
README, "Speed": how fast training and generating are on this machine. Every figure is a ratio of two things that were
timed in turns, in this process. About seven minutes on two cores.

    python runs/bench.py
    python runs/bench.py --run=out/heads      and how much faster this run's byte heads make it (trained with --n_byte_heads=4)
"""
import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
import sample  # noqa: E402
import train  # noqa: E402
from mix import PROXY0, Mixer, prepare  # noqa: E402
from model import GPT, GPTConfig, sample_mask  # noqa: E402

ROUNDS = 10


class PlainBlock(nn.Module):
    """nanoGPT's: LayerNorm, causal attention, a GELU MLP of four times the width."""
    def __init__(self, c):
        super().__init__()
        self.n_head = c.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(c.n_embd, bias=False), nn.LayerNorm(c.n_embd, bias=False)
        self.c_attn, self.c_proj = nn.Linear(c.n_embd, 3 * c.n_embd, bias=False), nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.c_fc, self.c_out = nn.Linear(c.n_embd, 4 * c.n_embd, bias=False), nn.Linear(4 * c.n_embd, c.n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class PlainGPT(nn.Module):
    """The yardstick: a step as nanoGPT makes it, all logits at once, nothing compiled."""
    def __init__(self, c):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.Sequential(*[PlainBlock(c) for _ in range(c.n_layer)])
        self.ln_f, self.lm_head = nn.LayerNorm(c.n_embd, bias=False), nn.Linear(c.n_embd, c.vocab_size, bias=False)

    def forward(self, x, y):
        x = self.wte(x) + self.wpe(torch.arange(x.size(1)))
        return F.cross_entropy(self.lm_head(self.ln_f(self.blocks(x))).flatten(0, 1), y.flatten(), ignore_index=-100)


def in_turns(rounds=ROUNDS, warm_up=1, **works):
    """{name: median seconds} of functions that are called in turns."""
    times = {name: [] for name in works}
    for i in range(rounds + warm_up):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if i >= warm_up:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def stepper(model, loss):
    """A training step of `model`: forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def show(name, value, meaning):
    print(f"{name:42} {value:>9}  {meaning}", flush=True)


def training():
    options = train.Options(proxy="tokenizer", size="small", ngram=0)
    options.resolve()
    with contextlib.redirect_stdout(io.StringIO()):
        views, proxy, _ = prepare(options, options.block_size)
    config = GPTConfig.named("small", vocab_size=PROXY0 + proxy.n_symbols)
    mixer, numbers = Mixer(views, options, options.block_size, 1000), itertools.cycle(range(5, 1000, 47))
    fixed = [mixer.batch(step, range(8)) for step in (50, 350, 650, 800, 950)]  # of the whole schedule of r
    batches = {name: itertools.cycle(fixed) for name in ("plain", "eager", "unmasked", "compiled")}

    def loss(model, batch, masked=True):
        return model(batch["x"], batch["y"], batch["tail"], sample_mask(batch["doc"]) if masked else None,
                     raw_first=batch["raw_first"]).sum() / 4096
    eager, compiled, plain = GPT(config), GPT(config), PlainGPT(config)
    compiled.compile_parts()
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    seconds = in_turns(
        warm_up=len(fixed),
        matmul=lambda: [torch.mm(a, b, out=out) for _ in range(10)],
        plain=stepper(plain, lambda: plain((batch := next(batches["plain"]))["x"], batch["y"])),
        eager=stepper(eager, lambda: loss(eager, next(batches["eager"]))),
        unmasked=stepper(eager, lambda: loss(eager, next(batches["unmasked"]), masked=False)),
        real=stepper(eager, lambda: loss(eager, mixer.batch(next(numbers), range(8)))),
        compiled=stepper(compiled, lambda: loss(compiled, next(batches["compiled"]))),
        loader=lambda: mixer.batch(next(numbers), range(8)))
    peak = 10 * 2 * 2048 ** 3 / seconds["matmul"]
    flops = 4096 * eager.flops_per_symbol(sum(batch["raw_first"][1] for batch in fixed) / len(fixed) / 4096)
    print(f"training step, small (width 384, 6 layers), 8 x 512 symbols, float32, {torch.get_num_threads()} cores; "
          f"matmul peak {peak / 1e9:.0f} GFLOP/s")
    for name in ("eager", "compiled"):
        show(f"{name}: of matmul peak", f"{flops / seconds[name] / peak:.2f}", f"{4096 / seconds[name]:,.0f} symbols/s")
        show(f"{name}: of a plain nanoGPT step", f"{seconds['plain'] / seconds[name]:.2f}",
             f"which makes {4096 / seconds['plain']:,.0f} symbols/s")
    show("sample mask: of unmasked time", f"{seconds['eager'] / seconds['unmasked']:.2f}", "the whole step")
    show("loader: of a step's time", f"{seconds['loader'] / seconds['real']:.1%}",
         f"steps on real batches take {seconds['real'] / seconds['eager']:.3f} of those on one fixed batch")
    counters = torch._dynamo.utils.counters
    show("graph breaks", sum(counters["graph_break"].values()), f"{counters['stats']['unique_graphs']} graphs in all")


def loss_memory():
    code = """
import re, sys
import torch
import torch.nn.functional as F
from model import GPT, GPTConfig
n, whole = int(sys.argv[1]) * 512, sys.argv[2] == "whole"
model = GPT(GPTConfig(vocab_size=65856, n_layer=1, n_embd=128))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
x, y = torch.randn(n, 128, requires_grad=True), torch.zeros(n, dtype=torch.long)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
before = peak()
loss = F.cross_entropy(model.head(x), y) if whole else model.loss(x[None], y[None], torch.arange(n), 0).sum()
loss.backward()
print(peak() - before)
"""
    print("memory of the loss, 65,856 symbols, contexts of 512")
    for contexts, how in ((16, "whole"), (16, "chunked"), (32, "chunked"), (64, "chunked")):
        used = float(subprocess.run(
            [sys.executable, "-c", code, str(contexts), how], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}, check=True).stdout)
        show(f"{contexts} contexts", f"{used:,.0f} MB", "all logits at once" if how == "whole" else "in chunks")


@torch.inference_mode()
def without_cache(model, prompt, n):
    """Greedy generation as it would be without a cache: the whole text again for each byte."""
    text = list(prompt)
    for _ in range(n):
        symbols = torch.tensor([[3] + [64 + byte for byte in text]])
        text.append(int(model.raw_logits(model.states(symbols)[:, -1])[0, 64:320].argmax()))
    return bytes(text[len(prompt):])


def median_step(model, prompt, **settings):
    """Seconds from one byte to the next."""
    steps, times = sample.generate(model, [prompt], **settings), []
    next(steps)
    began = time.perf_counter()
    for _ in steps:
        times.append(time.perf_counter() - began)
        began += times[-1]
    return statistics.median(times)


def generating(run):
    torch.manual_seed(0)
    model = GPT(GPTConfig.named("micro", vocab_size=PROXY0 + 4096, block_size=2560)).eval()
    with torch.no_grad():  # never the end
        model.head.weight[4] = 0
        model.head.weight[64:320] += model.embed.weight[64:320]
    greedy = dict(max_new=1024, temperature=0)
    print("generating, micro")
    outputs = {}
    seconds = in_turns(2, 0, cache=lambda: outputs.update(a=sample.complete(model, [b"def f(x):"], **greedy)[0][0]),
                       none=lambda: outputs.update(b=without_cache(model, b"def f(x):", 1024)))
    show("KV cache: of the speed without, 1,024 bytes", f"{seconds['none'] / seconds['cache']:.1f}",
         f"{1024 / seconds['cache']:,.0f} bytes/s; output identical: {outputs['a'] == outputs['b']}")
    turns = [[median_step(model, b"x" * n, max_new=129, temperature=0) for n in (128, 2048)] for _ in range(ROUNDS)]
    ratio = statistics.median(long / short for short, long in turns)
    show("a byte behind 2,048 bytes: of one behind 128", f"{ratio:.2f}", "median step, without the prefill")
    twenty, n_bytes = dict(max_new=200, temperature=0.8), {}

    def write(name, **settings):
        texts = sample.complete(model, [b"def f(x):"], **settings, **twenty)[0]
        n_bytes[name] = n_bytes.get(name, 0) + sum(map(len, texts))
    seconds = in_turns(5, 0, at_once=lambda: write("at_once", n=20), singly=lambda: [write("singly", seed=i) for i in range(20)])
    speed = {name: n_bytes[name] / 5 / seconds[name] for name in seconds}
    show("n = 20: of the speed of 20 single ones", f"{speed['at_once'] / speed['singly']:.1f}", f"{speed['at_once']:,.0f} bytes/s")
    if run:
        heads, checkpoint = sample.load_model(run)
        plain = GPT(dataclasses.replace(heads.config, n_byte_heads=0)).eval()
        plain.load_state_dict({name: p for name, p in heads.state_dict().items() if "byte_heads" not in name})
        problems = Path(__file__).parent.parent / "data/tinycode/problems.jsonl"
        prompts = [json.loads(line)["prompt"].encode() for line in problems.read_text().splitlines()][::4]
        written = {}
        seconds = in_turns(3, **{name: lambda name=name, model=model: written.update({name: [
            sample.complete(model, [prompt], max_new=200, temperature=0)[0][0] for prompt in prompts]})
            for name, model in (("plain", plain), ("heads", heads))})
        steps = sum(1 for prompt in prompts for _ in sample.generate(heads, [prompt], max_new=200, temperature=0))
        n = sum(map(len, written["heads"]))
        show(f"{heads.config.n_byte_heads} byte heads: of the speed without", f"{seconds['plain'] / seconds['heads']:.2f}",
             f"{n / seconds['heads']:,.0f} bytes/s, {n / steps:.2f} bytes a step; output identical: "
             f"{written['plain'] == written['heads']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with byte heads")
    run = parser.parse_args().run
    generating(run)
    loss_memory()
    training()  # last: its compiling leaves processes behind
