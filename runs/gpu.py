"""
The CUDA path, checked on a GPU: a table of what agrees, and how fast it is. Under eight minutes.

    python runs/gpu.py

The table is also written to runs/results/gpu.txt. Without a GPU the GPU's program runs on the CPU
instead, all of it but the kernels (lib/cuda_on_cpu.py), in about three minutes of one core.
"""
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "runs")]
import bench  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402
from lib.cuda_on_cpu import Graphs, cuda_program  # noqa: E402
from lib.attention import attend, sample_mask  # noqa: E402
from lib.options import parse  # noqa: E402
from lib.parallel import Processes  # noqa: E402
from lib.plan import PlanOptions, flops_per_symbol, memory  # noqa: E402
from mix import prepare  # noqa: E402
from model import GPT, PROXY0, GPTConfig, chunk_positions, loss_groups  # noqa: E402

TABLE = ROOT / "runs" / "results" / "gpu.txt"
SHORT = ["--size=nano", "--proxy=tokenizer", "--tokenizer=1024", "--report=none"]
VOCABULARY = PROXY0 + 65536  # the paper's

# -----------------------------------------------------------------------------
# a table of checks
#
# A check is a function that returns (passed, figure). passed: whether it is as it should be; None
# for a figure that is only to be known.


class Table:
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)
        print(line, flush=True)

    def run(self, name, check, *arguments):
        """Add a line for a check. Whatever it raises is a failure, and the next one still runs."""
        began = time.perf_counter()
        try:
            passed, figure = check(*arguments)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            passed, figure = False, f"{type(error).__name__}: {first_line[:120]}"
        verdict = {True: "pass", False: "FAIL", None: "-"}[passed]
        seconds = time.perf_counter() - began
        self.write(f"{name:46} {verdict:4}  {figure}  ({seconds:.0f} s)")


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


# -----------------------------------------------------------------------------
# the GPU's program on a CPU: the same training, by the CPU's own path and by the GPU's

ON_CPU = [*SHORT, "--device=cpu", "--block_size=192", "--batch_size=4", "--eval_rows=2",
          "--steps=6", "--eval_every=2"]
VARIANTS = {
    "pairs": [],
    "parallel": ["--mode=parallel"],
    "sentinel": ["--mode=sentinel"],
    "vanilla": ["--mode=vanilla"],
    "raw bytes only": ["--mix=0"],
    "symbols only": ["--mix=1"],
    "byte heads": ["--n_byte_heads=4"],
    "the README's byte heads": ["--proxy=none", "--n_byte_heads=4"],
    "activation checkpointing": ["--activation_checkpointing"],
    "micro-batches of 3 and 1": ["--micro_batch=3"],
    "batches of 12 and 16": ["--batch_size=12", "--eval_rows=16"],
    "micro-batches of 1": ["--micro_batch=1"],
}


def both_ways(variant, folder, graphs, expected):
    """The GPU's program against `expected`, the log of the CPU's own path."""
    out = Path(folder) / "gpu"
    train_quietly(*ON_CPU, *VARIANTS[variant], f"--out={out}", "--compile=yes", "--overwrite")
    difference = worst_difference(read_log(out), expected)
    passed = difference < 1e-5 and graphs.breaks() == 0
    return passed, f"losses within {difference:.0e}, {graphs.count()} graphs so far, no break"


def in_bfloat16(folder, graphs):
    flags = [*ON_CPU, "--dtype=bfloat16", "--overwrite"]
    train_quietly(*flags, "--compile=yes", f"--out={folder}/gpu")
    difference = worst_difference(read_log(f"{folder}/gpu"), read_log(f"{folder}/bfloat16"))
    return difference < 1e-2, f"losses within {difference:.0e}, {graphs.count()} graphs"


def ten_validations(folder, graphs):
    """Whether the graphs of the second validation serve the eleventh too."""
    counts = []
    validate = train.validate

    def validate_and_count(*arguments):
        results = validate(*arguments)
        counts.append(graphs.count())
        return results

    train.validate = validate_and_count
    try:
        train_quietly(*ON_CPU, "--steps=10", "--eval_every=1", "--compile=yes",
                      f"--out={folder}/gpu", "--overwrite")
    finally:
        train.validate = validate
    return counts[1] == counts[-1], f"graphs after each validation: {counts}"


# what torchrun starts: train.py with the GPU's program; the smallest messages that DDP can send
IN_TWO_PROCESSES = """
import sys
import lib.parallel, train
from lib.cuda_on_cpu import cuda_program
from lib.options import parse

class SmallMessages(lib.parallel.DistributedDataParallel):
    def __init__(self, model):
        super().__init__(model, bucket_cap_mb=0.02)

lib.parallel.DistributedDataParallel = SmallMessages
with cuda_program() as graphs:
    train.train(parse(train.Options, sys.argv[1:]))
    assert graphs.breaks() == 0
"""


def in_two_processes(flag, folder, expected):
    program = Path(folder) / "two.py"
    program.write_text(IN_TWO_PROCESSES)
    out = f"{folder}/two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
               str(program), *ON_CPU, flag, "--compile=yes", f"--out={out}", "--overwrite"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    difference = worst_difference(read_log(out), expected)
    return difference < 1e-5, f"losses within {difference:.0e} of one process"


def check_on_cpu(table):
    table.write("no CUDA device here: the GPU's program on this CPU, without its kernels, against "
                "the CPU's own path")
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for name, flags in VARIANTS.items():
            out = f"{folder}/cpu"
            train_quietly(*ON_CPU, *flags, f"--out={out}", "--compile=no", "--overwrite")
            expected[name] = read_log(out)
        train_quietly(*ON_CPU, "--dtype=bfloat16", f"--out={folder}/bfloat16")
        with cuda_program() as graphs:
            for name in VARIANTS:
                table.run(name, both_ways, name, folder, graphs, expected[name])
        with cuda_program() as graphs:
            table.run("bfloat16", in_bfloat16, folder, graphs)
        with cuda_program() as graphs:
            table.run("ten validations", ten_validations, folder, graphs)
        for flag in ("--no-fsdp", "--fsdp"):
            table.run(f"two processes, {flag}", in_two_processes, flag, folder, expected["pairs"])


# -----------------------------------------------------------------------------
# on a GPU: is it right?


def attention_against_dense(dtype, tolerance):
    """FlexAttention against softmax(q k) v with a dense mask in float64, and its gradients."""
    torch.manual_seed(0)
    B, n_head, T, head_dim = 2, 4, 1024, 64
    sample_numbers = (torch.rand(B, T, device="cuda") < 0.01).cumsum(1)
    position = torch.arange(T, device="cuda")
    same_sample = sample_numbers[:, None, :, None] == sample_numbers[:, None, None, :]
    allowed = same_sample & (position[:, None] >= position)
    leaves = [torch.randn(B, n_head, T, head_dim, device="cuda", dtype=dtype, requires_grad=True)
              for _ in range(3)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    weight = torch.randn(B, n_head, T, head_dim, device="cuda", dtype=dtype)

    found = torch.compile(attend)(*leaves, sample_mask(sample_numbers))
    expected = F.scaled_dot_product_attention(*exact, attn_mask=allowed)
    found.backward(weight)
    expected.backward(weight.double())
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(leaves, exact))]
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    shown = ", ".join(f"{error:.0e}" for error in errors)
    return max(errors) < tolerance, f"relative error of output, dq, dk, dv: {shown}"


def compiled_against_eager(folder):
    flags = [*SHORT, "--steps=50", "--eval_every=5", "--dtype=float32", "--n_byte_heads=4"]
    counts = []
    validate = train.validate

    def validate_and_count(*arguments):
        results = validate(*arguments)
        counts.append(Graphs().count())
        return results

    train_quietly(*flags, f"--out={folder}/eager", "--compile=no")
    train.validate = validate_and_count
    torch._dynamo.utils.counters.clear()
    try:
        train_quietly(*flags, f"--out={folder}/compiled", "--compile=yes")
    finally:
        train.validate = validate
    difference = worst_difference(read_log(f"{folder}/compiled"), read_log(f"{folder}/eager"))
    passed = difference < 1e-2 and counts[1] == counts[-1] and Graphs().breaks() == 0
    return passed, (f"losses of 50 steps within {difference:.0e}; graphs after validations "
                    f"{counts[0]}, {counts[1]}, .. {counts[-1]}; {Graphs().breaks()} breaks")


def host_syncs(folder):
    """Steps between two looks, in which any wait of the CPU for the GPU raises."""
    options = parse(train.Options, [*SHORT, "--steps=100", f"--out={folder}/syncs"])
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
# on a GPU: how fast, in how much memory?

# of a card in bfloat16, dense, in TFLOP/s, from the data sheets
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "4090": 165}


def peak_flops():
    """The card's peak by its data sheet; of any other card what a large matrix product reaches."""
    name = torch.cuda.get_device_name()
    for card, tflops in PEAKS.items():
        if card in name:
            return tflops * 1e12
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192 ** 3 / seconds_of_a_step(lambda: a @ a)


def seconds_of_a_step(step, n=10):
    """The median of n, after three that warm up."""
    times = []
    for turn in range(3 + n):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_batch(config, contexts):
    """A batch of compressed samples, of 500 symbols on average."""
    shape = contexts, config.block_size
    idx = torch.randint(PROXY0, config.vocab_size, shape, device="cuda")
    starts = torch.rand(shape, device="cuda") < 1 / 500
    return {"idx": idx, "targets": idx, "suffix": None, "sample": starts.cumsum(1),
            "groups": loss_groups(idx)}


def masked_loss(model, batch):
    with torch.autocast("cuda", torch.bfloat16):
        return bench.masked_loss(model, batch)


def plain_loss(model, batch):
    with torch.autocast("cuda", torch.bfloat16):
        return bench.plain_loss(model, batch)


def seconds_of_training(model, loss, batch):
    step = bench.stepper(model, loss, iter(lambda: batch, None))
    return seconds_of_a_step(step)


def speed(size, contexts, recompute, least_mfu, least_ratio):
    """Symbols a second and MFU, against a plain step of the same width, depth and context."""
    config = GPTConfig.named(size, vocab_size=VOCABULARY)
    batch = random_batch(config, contexts)
    symbols = contexts * config.block_size

    with torch.device("cuda"):
        model = GPT(config)
    model.recompute = recompute
    model.compile_blocks()
    seconds = seconds_of_training(model, masked_loss, batch)
    mfu = symbols * flops_per_symbol(model, PROXY0) / seconds / peak_flops()
    del model

    with torch.device("cuda"):
        plain = bench.PlainGPT(config)
    plain.compile()
    ratio = seconds_of_training(plain, plain_loss, batch) / seconds
    passed = mfu >= least_mfu and ratio >= least_ratio
    return passed, (f"{symbols / seconds:,.0f} symbols/s, MFU {mfu:.2f} (goal {least_mfu:.2f}), "
                    f"{ratio:.2f} of a plain step (goal {least_ratio:.2f})")


def peak_memory(size, contexts, recompute):
    """The peak of a step of two micro-batches, eager, against the plan's."""
    config = GPTConfig.named(size, vocab_size=VOCABULARY)
    flags = PlanOptions(gpus=1, micro_batch=contexts, activation_checkpointing=recompute)
    planned = sum(memory(flags, config, GPT, chunk_positions(VOCABULARY)).values())
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
            with torch.autocast("cuda", torch.bfloat16):
                loss = bench.mean_loss(model, batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated() - before
    passed = abs(measured / planned - 1) < 0.1
    return passed, f"{measured / 1e9:.2f} GB, planned {planned / 1e9:.2f}"


# -----------------------------------------------------------------------------
# on a GPU: the whole program


def first_command(folder):
    """The README's first command."""
    out = f"{folder}/first"
    began = time.perf_counter()
    subprocess.run([sys.executable, "train.py", f"--out={out}"], cwd=ROOT, check=True,
                   capture_output=True)
    seconds = time.perf_counter() - began
    report = json.loads((Path(out) / "report.json").read_text())
    return seconds < 60, (f"{seconds:.0f} s (goal 60), bits per byte {report['bpb']:.4f}, pass@1 "
                          f"{report['pass@1']:.3f}")


def bytes_per_second(model, n=512):
    began = time.perf_counter()
    ((text,),) = sample.complete(model, [bench.PROMPT], max_new=n, temperature=0)
    return len(text) / (time.perf_counter() - began), text


def generation_and_cache():
    model = bench.endless_model().to("cuda")
    bytes_per_second(model, n=8)
    fast, text = bytes_per_second(model)
    began = time.perf_counter()
    slow_text = bench.write_without_cache(model, bench.PROMPT, 512)
    slow = 512 / (time.perf_counter() - began)
    return text == slow_text, (f"{fast:,.0f} bytes/s with the cache, {slow:,.0f} without; output "
                               f"identical: {text == slow_text}")


def generation_and_byte_heads(folder):
    train_quietly("--size=micro", "--proxy=none", "--n_byte_heads=4", "--steps=500",
                  "--report=none", f"--out={folder}/heads")
    heads, _ = sample.load_model(f"{folder}/heads", "cuda")
    plain = bench.without_heads(heads).to("cuda")
    bytes_per_second(heads, n=8)
    with_heads, text = bytes_per_second(heads)
    without, plain_text = bytes_per_second(plain)
    return text == plain_text, (f"{with_heads:,.0f} bytes/s with byte heads, {without:,.0f} "
                                f"without; output identical: {text == plain_text}")


def resume_after_kill(folder):
    flags = [*SHORT, "--steps=200", "--eval_every=20"]
    command = [sys.executable, "train.py", *flags]
    whole, killed = f"{folder}/whole", f"{folder}/killed"
    subprocess.run([*command, f"--out={whole}"], cwd=ROOT, check=True, capture_output=True)
    job = subprocess.Popen([*command, f"--out={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    while not (Path(killed) / "ckpt.pt").exists() and job.poll() is None:
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    subprocess.run([sys.executable, "train.py", f"--resume={killed}"], cwd=ROOT, check=True,
                   capture_output=True)
    # a GPU adds up in another order each time, and training magnifies it
    difference = worst_difference(read_log(killed), read_log(whole))
    return difference < 0.03, f"losses within {difference:.0e} of a training that was not killed"


def check_on_gpu(table):
    table.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA "
                f"{torch.version.cuda}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        run = table.run
        run("FlexAttention, float32", attention_against_dense, torch.float32, 2e-3)
        run("FlexAttention, bfloat16", attention_against_dense, torch.bfloat16, 2e-2)
        run("compiled against eager", compiled_against_eager, folder)
        run("waits for the GPU in a step", host_syncs, folder)
        run("124M, context 1,024", speed, "124M", 16, False, 0.0, 0.95)
        run("0.5B, context 16,384", speed, "0.5B", 1, True, 0.40, 0.0)
        run("memory, 124M", peak_memory, "124M", 8, False)
        run("memory, 124M, recomputing", peak_memory, "124M", 16, True)
        run("memory, 0.5B, recomputing", peak_memory, "0.5B", 1, True)
        run("generating", generation_and_cache)
        run("generating with byte heads", generation_and_byte_heads, folder)
        run("resume after kill -9", resume_after_kill, folder)
        run("the first command", first_command, folder)


def main():
    began = time.perf_counter()
    table = Table()
    if torch.cuda.is_available():
        check_on_gpu(table)
    else:
        check_on_cpu(table)
    table.write(f"in all {time.perf_counter() - began:.0f} s")
    if torch.cuda.is_available():
        TABLE.write_text("\n".join(table.lines) + "\n")
    if any(" FAIL " in line for line in table.lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
