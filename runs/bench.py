"""
How fast training and generating are on this machine. About seven minutes on two cores.

    python runs/bench.py
    python runs/bench.py --run=out/heads     also how much faster this run's byte heads make it

The run is that of `python train.py --proxy=none --n_byte_heads=4 --out=out/heads`. Every figure is
a ratio of two things that were timed in turns, in this process, so that other work on the machine
meets both alike. Needs Linux, whose /proc says how much memory was used.
"""
import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")  # what is compiled is timed here
import sample  # noqa: E402
import train  # noqa: E402
from lib.attention import sample_mask  # noqa: E402
from lib.plan import flops_per_symbol  # noqa: E402
from mix import END_RAW, RAW, Mixer, prepare  # noqa: E402
from model import BYTE0, GPT, NO_TARGET, PROXY0, GPTConfig  # noqa: E402

ROUNDS = 10

# -----------------------------------------------------------------------------
# timing


def seconds_of(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(works, rounds=ROUNDS, warm_up=1):
    """{name: median seconds} of `works`, functions by name, that are called in turns."""
    times = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            seconds = seconds_of(work)
            if turn >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def show(name, value, meaning):
    print(f"{name:42} {value:>9}  {meaning}", flush=True)


# -----------------------------------------------------------------------------
# the yardstick: a step as nanoGPT makes it, all logits at once, nothing compiled


class PlainBlock(nn.Module):
    """LayerNorm, causal attention, a GELU MLP of four times the width."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(C, bias=False)
        self.ln_2 = nn.LayerNorm(C, bias=False)
        self.c_attn = nn.Linear(C, 3 * C, bias=False)
        self.c_proj = nn.Linear(C, C, bias=False)
        self.c_fc = nn.Linear(C, 4 * C, bias=False)
        self.c_out = nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, n_head, T, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class PlainGPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*[PlainBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, bias=False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets):
        """The mean loss of targets (B, T) after idx (B, T)."""
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)


# -----------------------------------------------------------------------------
# training

CONTEXTS = 8   # in a batch
STEPS = 1000   # of the training whose batches are used
SOME_STEPS = (50, 350, 650, 800, 950)  # from the whole schedule of r
MATMUL = 2048  # rows and columns of the matrices that show the machine's peak


def stepper(model, loss, batches):
    """A function that makes a training step: forward, backward, clipping, AdamW.

    loss(model, batch) -> a tensor (); batches: an endless iterator.
    """
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        loss(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_loss(model, batch):
    return model(batch["idx"], batch["targets"])


def mean_loss(model, batch, mask=None):
    losses = model(batch["idx"], batch["targets"], batch["suffix"], mask, groups=batch["groups"])
    return losses.mean()


def masked_loss(model, batch):
    return mean_loss(model, batch, sample_mask(batch["sample"]))


def training_mixer():
    """(Mixer, config): of tinycode through the tokenizer, and of a small model for it."""
    options = train.Options(proxy="tokenizer", size="small", ngram=0)
    options.resolve()
    with contextlib.redirect_stdout(None):
        views, proxy, _ = prepare(options, options.block_size)
    config = GPTConfig.named("small", vocab_size=PROXY0 + proxy.n_symbols)
    return Mixer(views, options, options.block_size, STEPS), config


def matmuls():
    """(a function that multiplies matrices, its floating-point operations)."""
    a, b, out = (torch.randn(MATMUL, MATMUL) for _ in range(3))

    def multiply():
        for _ in range(10):
            torch.mm(a, b, out=out)

    return multiply, 10 * 2 * MATMUL ** 3


def training():
    mixer, config = training_mixer()
    numbers = itertools.cycle(range(5, STEPS, 47))

    def next_batch():
        return mixer.batch(next(numbers), range(CONTEXTS))

    def real_batches():
        while True:
            yield next_batch()

    def fixed_batches():
        return itertools.cycle(fixed)

    fixed = [mixer.batch(step, range(CONTEXTS)) for step in SOME_STEPS]

    eager, compiled, plain = GPT(config), GPT(config), PlainGPT(config)
    compiled.compile_blocks()
    multiply, matmul_flops = matmuls()
    seconds = in_turns({
        "matmul": multiply,
        "plain": stepper(plain, plain_loss, fixed_batches()),
        "eager": stepper(eager, masked_loss, fixed_batches()),
        "unmasked": stepper(eager, mean_loss, fixed_batches()),
        "real": stepper(eager, masked_loss, real_batches()),
        "compiled": stepper(compiled, masked_loss, fixed_batches()),
        "loader": next_batch,
    }, warm_up=len(fixed))

    symbols = CONTEXTS * mixer.block_size
    after_raw = [len(batch["groups"][0]) for batch in fixed]
    raw_share = statistics.mean(after_raw) / symbols
    flops = symbols * flops_per_symbol(eager, PROXY0, raw_share)
    print_training(seconds, symbols, flops, peak=matmul_flops / seconds["matmul"])


def print_training(seconds, symbols, flops, peak):
    """seconds: of each kind of step. A step has so many symbols and FLOPs. peak: FLOPs a second."""
    print(f"training step, small (width 384, 6 layers), {symbols:,} symbols, float32, "
          f"{torch.get_num_threads()} cores; matmul peak {peak / 1e9:.0f} GFLOP/s")
    for name in ("eager", "compiled"):
        show(f"{name}: of matmul peak", f"{flops / seconds[name] / peak:.2f}",
             f"{symbols / seconds[name]:,.0f} symbols/s")
        show(f"{name}: of a plain nanoGPT step", f"{seconds['plain'] / seconds[name]:.2f}",
             f"which makes {symbols / seconds['plain']:,.0f} symbols/s")
    show("sample mask: of unmasked time", f"{seconds['eager'] / seconds['unmasked']:.2f}",
         "the whole step")
    show("loader: of a step's time", f"{seconds['loader'] / seconds['real']:.1%}",
         f"steps on real batches take {seconds['real'] / seconds['eager']:.3f} of those on five "
         "fixed ones")
    counters = torch._dynamo.utils.counters
    show("graph breaks", sum(counters["graph_break"].values()),
         f"{counters['stats']['unique_graphs']} graphs in all")


# -----------------------------------------------------------------------------
# memory of the loss

LARGE = dict(vocab_size=PROXY0 + 65536, n_layer=1, n_embd=128)


def peak_memory():
    """The most memory that this process has used so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def measure_loss(contexts, chunked):
    """The memory that one loss and its gradient take, in MB. For a process of its own."""
    n = contexts * 512
    model = GPT(GPTConfig(**LARGE))
    x = torch.randn(n, LARGE["n_embd"], requires_grad=True)
    targets = torch.zeros(n, dtype=torch.long)
    nowhere = torch.empty(0, dtype=torch.long)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = peak_memory()
    if chunked:
        losses = model.loss(x[None], targets[None], after_raw=nowhere, after_other=torch.arange(n))
        loss = losses.sum()
    else:
        loss = F.cross_entropy(model.logits(x), targets)
    loss.backward()
    return peak_memory() - before


def loss_memory():
    print("memory of the loss, 65,856 symbols, contexts of 512")
    # memory that is freed goes back to the system at once
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    for contexts, chunked in ((16, False), (16, True), (32, True), (64, True)):
        code = f"import bench; print(bench.measure_loss({contexts}, {chunked}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "runs", env=environment,
                              stdout=subprocess.PIPE, text=True, check=True)
        show(f"{contexts} contexts", f"{float(done.stdout):,.0f} MB",
             "in chunks" if chunked else "all logits at once")


# -----------------------------------------------------------------------------
# generating

PROMPT = b"def f(x):"
LONG = 1024  # bytes to write


def endless_model():
    """A model that never ends its text, and whose next byte is not always the same one."""
    torch.manual_seed(0)
    config = GPTConfig.named("micro", vocab_size=PROXY0 + 4096, block_size=2560)
    model = GPT(config).eval()
    a_byte = slice(BYTE0, BYTE0 + 256)
    with torch.no_grad():
        model.head.weight[END_RAW] = 0
        model.head.weight[a_byte] += model.embed.weight[a_byte]
    return model


def write(model, prompts, **settings):
    """The completions of some prompts, one list for all."""
    return [text for texts in sample.complete(model, prompts, **settings) for text in texts]


@torch.inference_mode()
def write_without_cache(model, prompt, n):
    """n bytes, greedily, as it would be without a cache: the whole text again for each byte."""
    text = list(prompt)
    for _ in range(n):
        idx = torch.tensor([[RAW] + [BYTE0 + byte for byte in text]],
                           device=model.embed.weight.device)
        last = model.states(idx)[:, -1]
        logits = model.raw_logits(last)[0, BYTE0:BYTE0 + 256]
        text.append(int(logits.argmax()))
    return bytes(text[len(prompt):])


def with_and_without_cache(model):
    written = {}

    def cache():
        (written["cache"],) = write(model, [PROMPT], max_new=LONG, temperature=0)

    def none():
        written["none"] = write_without_cache(model, PROMPT, LONG)

    seconds = in_turns({"cache": cache, "none": none}, rounds=2, warm_up=0)
    show("KV cache: of the speed without, 1,024 bytes", f"{seconds['none'] / seconds['cache']:.1f}",
         f"{LONG / seconds['cache']:,.0f} bytes/s; "
         f"output identical: {written['cache'] == written['none']}")


def median_step(model, prompt):
    """Seconds from one byte to the next, after the prompt has been read."""
    steps = sample.generate(model, [prompt], max_new=129, temperature=0)
    next(steps)
    times = [seconds_of(lambda: next(steps)) for _ in range(128)]
    return statistics.median(times)


def after_a_long_prompt(model):
    ratios = []
    for _ in range(ROUNDS):
        short = median_step(model, b"x" * 128)
        long = median_step(model, b"x" * 2048)
        ratios.append(long / short)
    show("a byte after 2,048 bytes: of one after 128", f"{statistics.median(ratios):.2f}",
         "median step, without reading the prompt")


def twenty_completions(model):
    settings = dict(max_new=200, temperature=0.8)
    n_bytes = {"at once": 0, "singly": 0}

    def at_once():
        texts = write(model, [PROMPT], n=20, **settings)
        n_bytes["at once"] += sum(len(text) for text in texts)

    def singly():
        for seed in range(20):
            (text,) = write(model, [PROMPT], seed=seed, **settings)
            n_bytes["singly"] += len(text)

    rounds = 5
    seconds = in_turns({"at once": at_once, "singly": singly}, rounds, warm_up=0)
    speed = {name: n_bytes[name] / rounds / seconds[name] for name in seconds}
    show("n = 20: of the speed of 20 single ones", f"{speed['at once'] / speed['singly']:.1f}",
         f"{speed['at once']:,.0f} bytes/s")


def without_heads(model):
    """The same model without its byte heads."""
    plain = GPT(replace(model.config, n_byte_heads=0)).eval()
    weights = {name: p for name, p in model.state_dict().items() if "byte_heads" not in name}
    plain.load_state_dict(weights)
    return plain


def byte_heads(run):
    heads, _ = sample.load_model(run)
    plain = without_heads(heads)
    lines = (ROOT / "data" / "tinycode" / "problems.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"].encode() for line in lines[::4]]
    greedy = dict(max_new=200, temperature=0)
    written = {}

    def write_with(name, model):
        written[name] = [write(model, [prompt], **greedy)[0] for prompt in prompts]

    seconds = in_turns({"plain": lambda: write_with("plain", plain),
                        "heads": lambda: write_with("heads", heads)}, rounds=3)
    n_steps = 0
    for prompt in prompts:
        n_steps += len(list(sample.generate(heads, [prompt], **greedy)))
    n_bytes = sum(len(text) for text in written["heads"])
    show(f"{heads.config.n_byte_heads} byte heads: of the speed without",
         f"{seconds['plain'] / seconds['heads']:.2f}",
         f"{n_bytes / seconds['heads']:,.0f} bytes/s, {n_bytes / n_steps:.2f} bytes a step; "
         f"output identical: {written['plain'] == written['heads']}")


def generating():
    print("generating, micro")
    model = endless_model()
    with_and_without_cache(model)
    after_a_long_prompt(model)
    twenty_completions(model)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with byte heads")
    run = parser.parse_args().run
    generating()
    if run:
        byte_heads(run)
    loss_memory()
    training()  # last: its compiling leaves processes


if __name__ == "__main__":
    main()
