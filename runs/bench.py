"""
How fast training and generating are on this machine; on one with a card, whether they are right.

    python runs/bench.py                    without a card: two minutes on two cores
    python runs/bench.py --run=out/none     also how much faster byte heads make this run

A line is a check: a name, pass or FAIL where there is a goal, and a figure. Every speed is a ratio
of two things that are timed in turns, so that other work on the machine meets both alike. (Without
a card test_all.py runs the card's program on the CPU.) --run needs `python runs/byte_heads.py
out/none` first.
"""
import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import sample  # noqa: E402
import train  # noqa: E402
from lib.attention import attend, sample_mask  # noqa: E402
from lib.options import parse  # noqa: E402
from lib.parallel import Processes  # noqa: E402
from lib.plan import PlanOptions, flops_per_symbol, memory  # noqa: E402
from mix import END_RAW, RAW, Mixer, prepare  # noqa: E402
from model import BYTE0, GPT, PROXY0, GPTConfig, chunk_positions, loss_groups  # noqa: E402

SHORT = ["--size=nano", "--proxy=tokenizer", "--tokenizer=1024", "--report=none"]

# -----------------------------------------------------------------------------
# a table of checks, functions that return (passed, figure)


class Table:
    failed = False  # whether any check has

    def run(self, name, check, *arguments):
        """Add a line for a check. Whatever it raises is a failure, and the next one still runs."""
        try:
            passed, figure = check(*arguments)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            passed, figure = False, f"{type(error).__name__}: {first_line[:120]}"
        self.add(name, passed, figure)

    def add(self, name, passed, figure):
        """passed: whether it is as it should be; None for a figure that is only to be known."""
        self.failed |= passed is False
        verdict = {True: "pass", False: "FAIL", None: "-"}[passed]
        print(f"{name:30} {verdict:4}  {figure}", flush=True)


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
# training on a CPU

CONTEXTS = 8   # in a batch
STEPS = 1000   # of the training whose batches are used
SOME_STEPS = (50, 350, 650, 800, 950)  # from the whole schedule of r
MATMUL = 2048  # rows and columns of the matrices that show the machine's peak


def stepper(model, batches):
    """A function that makes a training step: forward, backward, clipping, AdamW.

    batches: an endless iterator.
    """
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        mean_loss(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def mean_loss(model, batch):
    device = batch["idx"].device.type
    mask = sample_mask(batch["sample"])
    # as train.py does: bfloat16 on a card, float32 on a CPU
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        losses = model(batch["idx"], batch["targets"], batch["suffix"], mask,
                       groups=batch["groups"])
    return losses.mean()


def training_mixer():
    """(Mixer, config): of tinycode through the tokenizer, and of a small model for it."""
    options = train.Options(proxy="tokenizer", size="small", ngram=0)
    options.resolve()
    with contextlib.redirect_stdout(None):
        views, proxy, _ = prepare(options, options.block_size)
    config = GPTConfig.named("small", vocab_size=PROXY0 + proxy.n_symbols)
    mixer = Mixer(views, options, options.block_size, STEPS, with_suffix=config.ngram > 0)
    return mixer, config


def training_on_cpu(table):
    """How near a step comes to what this machine can multiply, and what a batch costs."""
    mixer, config = training_mixer()
    numbers = itertools.cycle(range(5, STEPS, 47))
    fixed = [mixer.batch(step, range(CONTEXTS)) for step in SOME_STEPS]
    a, b = torch.randn(2, MATMUL, MATMUL)
    eager, compiled = GPT(config), GPT(config)
    compiled.compile_blocks()
    seconds = in_turns({
        "product": lambda: a @ b,
        "eager": stepper(eager, itertools.cycle(fixed)),
        "compiled": stepper(compiled, itertools.cycle(fixed)),
        "batch": lambda: mixer.batch(next(numbers), range(CONTEXTS)),
    }, warm_up=len(fixed))

    symbols = CONTEXTS * config.block_size
    after_raw = statistics.mean(batch["groups"][0].size(1) for batch in fixed)
    flops = symbols * flops_per_symbol(eager, PROXY0, raw_share=after_raw / symbols)
    peak = 2 * MATMUL ** 3 / seconds["product"]  # FLOPs a second
    for name in ("eager", "compiled"):
        share = flops / seconds[name] / peak
        speed = symbols / seconds[name]
        table.add(f"training, {name}", None,
                  f"{share:.2f} of a matrix product's FLOPs a second; {speed:,.0f} symbols/s")
    share = seconds["batch"] / seconds["eager"]
    table.add("making a batch", share < 0.05, f"{share:.1%} of a step's time (goal 5%)")
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    table.add("graph breaks", breaks == 0, breaks)


# -----------------------------------------------------------------------------
# generating

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
    """(whether both write the same, figure) of two functions that write a list of texts."""
    written = fast()
    same = written == slow()
    seconds = in_turns({"fast": fast, "slow": slow}, rounds=2, warm_up=0)
    ratio = seconds["slow"] / seconds["fast"]
    speed = sum(map(len, written)) / seconds["fast"]
    return same, f"{ratio:.1f} of the speed without; {speed:,.0f} bytes/s; same output: {same}"


def generating_with_cache(device):
    model = endless_model(device)
    return with_and_without(
        lambda: sample.complete(model, [PROMPT], max_new=LONG, temperature=0)[0],
        lambda: [write_without_cache(model, PROMPT, LONG)])


def generating_with_byte_heads(folder, device):
    run = sample.Run.load(folder, device)
    if run.heads is None:
        return False, f"there are none; python runs/byte_heads.py {folder}"
    lines = (ROOT / "data" / "tinycode" / "problems.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"].encode() for line in lines[::4]]

    def write(heads):
        # one after the other: side by side the slowest row decides
        return [sample.complete(run.model, [prompt], max_new=200, temperature=0, heads=heads)[0][0]
                for prompt in prompts]

    return with_and_without(lambda: write(run.heads), lambda: write(None))


# -----------------------------------------------------------------------------
# on a card: is it right?


def train_quietly(*flags):
    """Train with these flags of train.py, in this process."""
    with contextlib.redirect_stdout(None):
        train.train(parse(train.Options, list(flags)))


def read_log(out):
    lines = (Path(out) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def worst_difference(log, expected):
    """The largest relative difference between the losses of two logs."""
    differences = [0.0]
    for line, expected_line in zip(log, expected, strict=True):
        for name in ("loss", "val_raw", "val_comp"):
            value = expected_line.get(name)
            if value is not None:
                differences.append(abs(line[name] - value) / value)
    return max(differences)


def attention_against_dense(dtype, tolerance):
    """FlexAttention against softmax(q k) v with a dense mask in float64, and its gradients."""
    torch.manual_seed(0)
    B, n_head, T, head_dim = 2, 4, 1024, 64
    sample_numbers = (torch.rand(B, T, device="cuda") < 0.01).cumsum(1)
    position = torch.arange(T, device="cuda")
    same_sample = sample_numbers[:, None, :, None] == sample_numbers[:, None, None, :]
    allowed = same_sample & (position[:, None] >= position)  # (B, 1, T, T)

    # queries, keys, values and what weighs the output, so that there is one number to derive
    shape = B, n_head, T, head_dim
    q, k, v, weight = torch.randn(4, *shape, device="cuda", dtype=dtype)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    exact_inputs = [x.double().requires_grad_() for x in (q, k, v)]
    output = torch.compile(attend)(*inputs, sample_mask(sample_numbers))
    exact_output = F.scaled_dot_product_attention(*exact_inputs, attn_mask=allowed)
    output.backward(weight)
    exact_output.backward(weight.double())

    found = [output.detach()] + [x.grad for x in inputs]
    exact = [exact_output.detach()] + [x.grad for x in exact_inputs]
    errors = []
    for a, b in zip(found, exact):
        errors.append(float((a.double() - b).norm() / b.norm()))
    shown = ", ".join(f"{error:.0e}" for error in errors)
    return max(errors) < tolerance, f"relative error of output, dq, dk, dv: {shown}"


def compiled_against_eager(folder):
    flags = [*SHORT, "--steps=50", "--eval_every=5", "--dtype=float32"]
    train_quietly(*flags, f"--out={folder}/eager", "--compile=no")
    counters = torch._dynamo.utils.counters
    counters.clear()
    train_quietly(*flags, f"--out={folder}/compiled", "--compile=yes")
    difference = worst_difference(read_log(f"{folder}/compiled"), read_log(f"{folder}/eager"))
    breaks = sum(counters["graph_break"].values())
    graphs = counters["stats"]["unique_graphs"]
    passed = difference < 1e-2 and breaks == 0 and graphs <= 8
    return passed, f"losses of 50 steps within {difference:.0e}; {graphs} graphs, {breaks} breaks"


def waits_in_a_step(folder):
    """Steps between two looks, in which any wait of the CPU for the card raises."""
    options = parse(train.Options, [*SHORT, "--steps=100", f"--out={folder}/waits"])
    options.resolve()
    with contextlib.redirect_stdout(None):
        views, proxy, _ = prepare(options, options.block_size)
    training = train.Training(options, views, proxy, Processes(options.device), None)
    for _ in range(3):
        training.take_step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            training.take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True, "none in 5 steps"


# -----------------------------------------------------------------------------
# on a card: how fast, in how much memory?

VOCABULARY = PROXY0 + 65536  # the paper's
SAMPLE = 500                 # symbols in a compressed sample, on average
LARGE = 8192                 # rows and columns of a product that shows the card's peak


def random_batch(config, contexts):
    """A batch of compressed samples."""
    shape = contexts, config.block_size
    idx = torch.randint(PROXY0, config.vocab_size, shape, device="cuda")
    starts = torch.rand(shape, device="cuda") < 1 / SAMPLE
    return {"idx": idx, "targets": idx, "suffix": None, "sample": starts.cumsum(1),
            "groups": loss_groups(idx)}


def speed(size, contexts, recompute):
    """Symbols a second, and the share of what a large matrix product in bfloat16 reaches."""
    config = GPTConfig.named(size, vocab_size=VOCABULARY)
    batch = random_batch(config, contexts)
    with torch.device("cuda"):
        model = GPT(config)
    model.recompute = recompute
    model.compile_blocks()
    a = torch.randn(LARGE, LARGE, device="cuda", dtype=torch.bfloat16)
    step = stepper(model, itertools.repeat(batch))
    seconds = in_turns({"step": step, "product": lambda: a @ a})

    peak = 2 * LARGE ** 3 / seconds["product"]  # FLOPs a second
    symbols = contexts * config.block_size
    # what the mask leaves out is not computed, so it does not count
    flops = symbols * flops_per_symbol(model, attended=SAMPLE)
    share = flops / seconds["step"] / peak
    return share >= 0.5, (f"{symbols / seconds['step']:,.0f} symbols/s, {share:.2f} of a matrix "
                          "product's FLOPs a second (goal 0.50)")


def peak_memory(size, contexts, recompute):
    """The peak of a step of two micro-batches, eager, against the plan's."""
    config = GPTConfig.named(size, vocab_size=VOCABULARY)
    flags = PlanOptions(gpus=1, micro_batch=contexts, activation_checkpointing=recompute)
    planned = sum(memory(flags, GPT, config, chunk_positions(VOCABULARY, "cuda")).values())
    batch = random_batch(config, contexts)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    with torch.device("cuda"):
        model = GPT(config)
    model.recompute = recompute
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        for _ in range(2):
            mean_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated() - before
    passed = abs(measured / planned - 1) < 0.1
    return passed, f"{measured / 1e9:.2f} GB, planned {planned / 1e9:.2f}"


def check_on_gpu(table):
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        run = table.run
        run("FlexAttention, float32", attention_against_dense, torch.float32, 2e-3)
        run("FlexAttention, bfloat16", attention_against_dense, torch.bfloat16, 2e-2)
        run("compiled against eager", compiled_against_eager, folder)
        run("waits for the card in a step", waits_in_a_step, folder)
        run("124M, context 1,024", speed, "124M", 16, False)
        run("0.5B, context 16,384", speed, "0.5B", 1, True)
        run("memory, 124M", peak_memory, "124M", 8, False)
        run("memory, 124M, recomputing", peak_memory, "124M", 16, True)
        run("memory, 0.5B, recomputing", peak_memory, "0.5B", 1, True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with byte heads")
    folder = parser.parse_args().run
    table = Table()
    on_card = torch.cuda.is_available()
    device = "cuda" if on_card else "cpu"
    table.run("KV cache", generating_with_cache, device)
    if folder:
        table.run("byte heads", generating_with_byte_heads, folder, device)
    if on_card:
        check_on_gpu(table)
    else:
        training_on_cpu(table)  # last: its compiling leaves processes
    if table.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
