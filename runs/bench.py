"""
How fast training and generating are on this machine; on one with a card, whether they are right.

    python runs/bench.py                    without a card: two minutes on two cores
    python runs/bench.py --run=out/none     also how much faster byte heads make this run

A line is a check: a name, pass or FAIL, and a figure. Every speed is a ratio of two things that are
timed in turns, so that other work on the machine meets both alike. (Without a card test_all.py runs
the card's program on the CPU.) --run needs `python runs/byte_heads.py out/none` first.
"""
import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import byte_heads  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402
from lib.attention import attend, sample_mask  # noqa: E402
from lib.data import read_log  # noqa: E402
from lib.judge import read_problems  # noqa: E402
from lib.options import parse  # noqa: E402
from lib.parallel import autocast, fast_dtype  # noqa: E402
from lib.plan import PlanOptions, flops_per_symbol, memory  # noqa: E402
from mix import END_RAW, RAW  # noqa: E402
from model import BYTE0, GPT, PROXY0, GPTConfig, chunk_positions, loss_groups  # noqa: E402

# -----------------------------------------------------------------------------
# timing


def seconds_of(work):
    """How long a call takes, on a card until its work is done."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(works, rounds=10, warm_up=3):
    """{name: median seconds} of `works`, functions by name, that are called in turns.

    The first calls compile, and fill caches: they do not count.
    """
    times = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            seconds = seconds_of(work)
            if turn >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


# -----------------------------------------------------------------------------
# generating: checks here and below are functions that return (passed, figure)

PROMPT = b"def f(x):"
LONG = 512  # bytes to write


def endless_model(device):
    """A model that never ends its text, and whose next byte is not always the same one."""
    torch.manual_seed(0)
    config = GPTConfig.named("micro", vocab_size=PROXY0 + 4096, block_size=2 * LONG)
    model = GPT(config).eval()
    a_byte = slice(BYTE0, BYTE0 + 256)
    with torch.no_grad():
        model.head.weight[END_RAW] = 0
        model.head.weight[a_byte] += model.embed.weight[a_byte]
    return model.to(device)


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


def with_and_without(fast, slow):
    """Whether two functions write the same list of texts, and how much faster the first is."""
    written = fast()
    same = written == slow()
    seconds = in_turns({"fast": fast, "slow": slow}, rounds=2, warm_up=0)
    ratio = seconds["slow"] / seconds["fast"]
    speed = sum(map(len, written)) / seconds["fast"]
    return same, f"{ratio:.1f} of the speed without; {speed:,.0f} bytes/s; same output: {same}"


def generating_with_cache(device):
    model = endless_model(device)

    def with_cache():
        (texts,) = sample.complete(model, [PROMPT], max_new=LONG, temperature=0)
        return texts

    def without_cache():
        return [write_without_cache(model, PROMPT, LONG)]

    return with_and_without(with_cache, without_cache)


def generating_with_byte_heads(folder, device):
    run = sample.Run.load(folder, device)
    heads = byte_heads.load_heads(run.folder / "byte_heads.pt", run.model)
    sentinels = run.sentinels("raw")
    problems = read_problems(ROOT / "data" / "tinycode" / "problems.jsonl")
    prompts = [problem["prompt"].encode() for problem in problems.values()][::4]

    def with_heads():
        written = []
        for prompt in prompts:
            text, _ = byte_heads.write_greedily(run.model, heads, prompt, 200, sentinels)
            written.append(text)
        return written

    def without_heads():
        written = []
        for prompt in prompts:  # one after the other, as they are written with heads
            (texts,) = sample.complete(run.model, [prompt], max_new=200, temperature=0,
                                       sentinels=sentinels)
            written += texts
        return written

    return with_and_without(with_heads, without_heads)


# -----------------------------------------------------------------------------
# training: how fast?

PAPERS = PROXY0 + 65536  # ids, with the paper's vocabulary
SAMPLE = 500             # symbols in a compressed sample, on average


def random_batch(config, contexts):
    """A batch of compressed samples, as a Mixer makes it."""
    shape = contexts, config.block_size
    idx = torch.randint(PROXY0, config.vocab_size, shape)
    starts = torch.rand(shape) < 1 / SAMPLE
    return {"idx": idx, "targets": idx, "suffix": torch.zeros_like(idx),
            "sample": starts.cumsum(1), "groups": loss_groups(idx)}


def stepper(model, batch, device, micro_batches=1):
    """A function that makes a training step: forward, backward, clipping, AdamW."""
    precision = autocast(device, fast_dtype(device))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        for _ in range(micro_batches):
            train.batch_losses(model, batch, device, precision).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def speed(device, size, vocab_size, contexts, compiled=True, recompute=False):
    """Symbols a second in training, and its FLOPs beside those of a large matrix product."""
    config = GPTConfig.named(size, vocab_size=vocab_size)
    with torch.device(device):
        model = GPT(config)
    model.recompute = recompute
    if compiled:
        model.compile_blocks()
    rows, attended = 2048, None
    if device == "cuda":
        # FlexAttention leaves out what the mask hides, so that does not count
        rows, attended = 8192, SAMPLE
    a = torch.randn(rows, rows, device=device, dtype=getattr(torch, fast_dtype(device)))
    step = stepper(model, random_batch(config, contexts), device)
    seconds = in_turns({"step": step, "product": lambda: a @ a})

    peak = 2 * rows ** 3 / seconds["product"]  # FLOPs a second
    symbols = contexts * config.block_size
    flops = symbols * flops_per_symbol(model, attended=attended)
    share = flops / seconds["step"] / peak
    return share >= 0.5, (f"{symbols / seconds['step']:,.0f} symbols/s, {share:.2f} of a matrix "
                          "product's FLOPs a second (goal 0.50)")


# -----------------------------------------------------------------------------
# training on a card: is it right, and how much memory does it take?


def attention_against_dense(dtype, tolerance):
    """FlexAttention against softmax(q k) v with a dense mask in float64, and its gradients."""
    torch.manual_seed(0)
    B, n_head, T, head_dim = 2, 4, 1024, 64
    sample_numbers = (torch.rand(B, T, device="cuda") < 0.01).cumsum(1)
    position = torch.arange(T, device="cuda")
    same_sample = sample_numbers[:, None, :, None] == sample_numbers[:, None, None, :]
    allowed = same_sample & (position[:, None] >= position)  # (B, 1, T, T)

    # queries, keys, values, and the gradient of the output
    shape = B, n_head, T, head_dim
    q, k, v, gradient = torch.randn(4, *shape, device="cuda", dtype=dtype)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    exact_inputs = [x.double().requires_grad_() for x in (q, k, v)]
    output = torch.compile(attend)(*inputs, sample_mask(sample_numbers))
    exact_output = F.scaled_dot_product_attention(*exact_inputs, attn_mask=allowed)
    output.backward(gradient)
    exact_output.backward(gradient.double())

    found = [output.detach()] + [x.grad for x in inputs]
    exact = [exact_output.detach()] + [x.grad for x in exact_inputs]
    errors = []
    for a, b in zip(found, exact):
        errors.append(float((a.double() - b).norm() / b.norm()))
    shown = ", ".join(f"{error:.0e}" for error in errors)
    return max(errors) < tolerance, f"relative error of output, dq, dk, dv: {shown}"


def losses_of_training(*flags):
    """Bits per byte at the validations of a short training."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        train.train(parse(train.Options, [*flags, f"--out={folder}"]))
        return [row["val_raw"] for row in read_log(Path(folder) / "log.jsonl")]


def compiled_against_eager():
    flags = ["--size=nano", "--proxy=tokenizer", "--steps=50", "--eval_every=5", "--dtype=float32",
             "--report=none"]
    eager = losses_of_training(*flags, "--compile=no")
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = losses_of_training(*flags, "--compile=yes")
    difference = max(abs(a / b - 1) for a, b in zip(compiled, eager, strict=True))
    breaks = sum(counters["graph_break"].values())
    graphs = counters["stats"]["unique_graphs"]
    passed = difference < 1e-2 and breaks == 0 and graphs <= 8
    return passed, f"losses of 50 steps within {difference:.0e}; {graphs} graphs, {breaks} breaks"


def peak_memory(size, contexts, recompute):
    """The peak of a step of two micro-batches, eager, against the plan's."""
    config = GPTConfig.named(size, vocab_size=PAPERS)
    flags = PlanOptions(gpus=1, micro_batch=contexts, activation_checkpointing=recompute)
    planned = sum(memory(flags, GPT, config, chunk_positions(PAPERS, "cuda")).values())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        model = GPT(config)
    model.recompute = recompute
    step = stepper(model, random_batch(config, contexts), "cuda", micro_batches=2)
    for _ in range(2):
        step()
    measured = torch.cuda.max_memory_allocated() - before
    passed = abs(measured / planned - 1) < 0.1
    return passed, f"{measured / 1e9:.2f} GB, planned {planned / 1e9:.2f}"


# -----------------------------------------------------------------------------
# the table

ON_A_CPU = [
    ("training, eager", speed, "cpu", "small", PROXY0 + 1024, 8, False),
    ("training, compiled", speed, "cpu", "small", PROXY0 + 1024, 8),
]
ON_A_CARD = [
    ("FlexAttention, float32", attention_against_dense, torch.float32, 2e-3),
    ("FlexAttention, bfloat16", attention_against_dense, torch.bfloat16, 2e-2),
    ("compiled against eager", compiled_against_eager),
    ("124M, context 1,024", speed, "cuda", "124M", PAPERS, 16),
    ("0.5B, context 16,384", speed, "cuda", "0.5B", PAPERS, 1, True, True),
    ("memory, 124M", peak_memory, "124M", 8, False),
    ("memory, 124M, recomputing", peak_memory, "124M", 16, True),
    ("memory, 0.5B, recomputing", peak_memory, "0.5B", 1, True),
]


def passes(name, check, *arguments):
    """Print a check's line. Whatever it raises is a failure, and the next one still runs."""
    try:
        passed, figure = check(*arguments)
    except Exception as error:
        first_line, _, _ = str(error).partition("\n")
        passed, figure = False, f"{type(error).__name__}: {first_line[:120]}"
    print(f"{name:30} {'pass' if passed else 'FAIL'}  {figure}", flush=True)
    return passed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with byte heads")
    folder = parser.parse_args().run
    device, checks = "cpu", ON_A_CPU
    if torch.cuda.is_available():
        device, checks = "cuda", ON_A_CARD
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    generating = [("KV cache", generating_with_cache, device)]
    if folder:
        generating.append(("byte heads", generating_with_byte_heads, folder, device))
    if not all([passes(*check) for check in generating + checks]):  # a list: all are run
        sys.exit(1)


if __name__ == "__main__":
    main()
