"""
Train a byte transformer on the mixed stream, then say how well it reads and writes raw bytes.

    python train.py --proxy=neural --mix=0.9                  the default: minutes on a laptop, no GPU, no download
    python train.py --proxy=none                              the baseline: raw bytes only
    python train.py --proxy=tokenizer --mix=1.0               the proxy only: a tokenizer model
    python train.py --resume=out/neural                       goes on from the run's checkpoint
    torchrun --nproc_per_node=8 train.py --size=1.5B          the same batches on eight GPUs (DDP)
    torchrun --nproc_per_node=8 train.py --size=7B --fsdp     the model and its optimizer sharded over them
"""
import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import eval as evaluation
from mix import PROXY0, Mixer, MixOptions, prepare
from model import GPT, SIZES, GPTConfig, UserError, command_line, expect, expect_device, flag, sample_mask
from proxies import write_atomic
from sample import load_checkpoint

BAD_STEPS = 10   # in a row: then the training stops
LOOK_EVERY = 10  # steps between looks at what a GPU has computed; each makes the host wait for it
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # --fsdp in one process is fine


@dataclass
class Options(MixOptions):
    size: str = flag("micro", f"of the model: {', '.join(SIZES)}")
    block_size: int = flag(0, "symbols in a context; 0: the size's")
    paper: bool = flag(False, "the paper's plain recipe: no n-gram features, no alignment, no raw phase; the default from 124M up")
    ngram: int = flag(None, "longest byte n-gram with an embedding, 0 for none [6, with --paper 0]", type=int)
    raw_phase: float = flag(None, "last share of the training, in which r falls to 0 [0.6, with --paper 0]", type=float)
    align: bool = flag(None, "place the proxy's symbols where their bytes stand, and let them share the rows of these "
                       "[yes, with --paper no]", action=argparse.BooleanOptionalAction)
    n_byte_heads: int = flag(0, "heads that guess the bytes behind the next one, for faster greedy generation")
    budget: float = flag(2.5e6, "symbols to train on: raw bytes, proxy symbols and sentinels alike")
    steps: int = flag(0, "steps to train for, in place of --budget")
    flops: float = flag(0.0, "FLOPs to train for, in place of --budget, so that arms can be compared at equal compute")
    batch_size: int = flag(8, "contexts in a step, over all devices")
    micro_batch: int = flag(0, "contexts that a device takes at once, gradients accumulate over them; 0: all")
    lr: float = flag(4e-3, "peak learning rate (the paper's, at its sizes: 9e-4)")
    lr_warmup: float = flag(0.05, "share of the training in which the learning rate rises")
    decay: str = flag("cosine", "of the learning rate: cosine to a tenth, or linear to 0", choices=("cosine", "linear"))
    weight_decay: float = flag(0.1, "of the matrices; tables have none")
    clip: float = flag(1.0, "norm that gradients are clipped to")
    eval_every: int = flag(200, "steps between validations, log lines and checkpoints")
    eval_rows: int = flag(16, "contexts of either view in a validation")
    report: str = flag("all", "closing report: all that the corpus has, or none", choices=("all", "none"))
    out: str = flag("", "folder of the run [out/<proxy>]")
    resume: str = flag("", "folder of a run to go on with, under its own options")
    device: str = flag("auto", "cpu, cuda, or auto: cuda where there is one")
    dtype: str = flag("auto", "auto: bfloat16 where the device has matrix units for it", choices=("auto", "float32",
                     "bfloat16"))
    fsdp: bool = flag(False, "under torchrun: shard parameters, gradients and optimizer state over the devices (FSDP2)")
    activation_checkpointing: bool = flag(False, "keep a block's input only and compute the block again for the gradient: "
                                          "less memory, a third more time")
    compile: str = flag("auto", "torch.compile; auto: on CUDA (on a CPU it takes a minute to gain 10 percent)",
                        choices=("auto", "yes", "no"))

    def resolve(self):
        """Fill in what depends on other options or on the machine. Raises UserError for what cannot be."""
        large = self.size in SIZES and list(SIZES).index(self.size) >= list(SIZES).index("124M")
        plain = self.paper or large
        self.ngram = (0 if plain else 6) if self.ngram is None else self.ngram
        self.raw_phase = (0.0 if plain else 0.6) if self.raw_phase is None else self.raw_phase
        self.align = not plain if self.align is None else self.align
        self.check()
        config = GPTConfig.named(self.size)
        self.block_size = self.block_size or config.block_size
        self.out = self.out or f"out/{self.proxy}"
        self.micro_batch = self.micro_batch or self.batch_size
        if not 0 <= self.ngram <= 7 or self.ngram == 1:
            raise UserError(f"--ngram={self.ngram}: expected 0 or 2 to 7")
        expect(self, "above 0", "batch_size", "micro_batch", "eval_every", "eval_rows", "budget", "lr", "clip")
        expect(self, "of 0 or more", "block_size", "n_byte_heads", "steps", "flops", "weight_decay")
        expect(self, "from 0 to 1", "lr_warmup")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        expect_device(self.device)
        if self.dtype == "auto":
            if self.device.startswith("cuda"):
                fast = torch.cuda.is_bf16_supported(including_emulation=False)
            else:
                fast = torch.cpu.get_capabilities().get("amx_bf16", False)
            self.dtype = "bfloat16" if fast else "float32"
        if self.compile == "auto":
            self.compile = "yes" if self.device.startswith("cuda") else "no"


class Devices:
    """This process's place among those that train together; torchrun sets the environment that it is read from."""
    def __init__(self, options):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = options.device
        if self.device == "cuda" and self.world > 1:
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(self.device)

    def connect(self):
        """Meet the other processes. What is on the CPU travels by gloo, so that small things need no wait for a GPU."""
        if self.world > 1:
            self.store, rank, world = next(dist.rendezvous("env://"))
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.startswith("cuda") else "gloo",
                                    store=self.store, rank=rank, world_size=world)

    def disconnect(self):
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def sum(self, value):
        """The sum of a number over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()


def build(config, options, devices):
    """(model, what to call in its place), on this process's device; sharded with --fsdp. The same weights either way."""
    with torch.device("meta"):  # a model that no single device could hold starts without memory
        model = GPT(config)
    model.recompute = options.activation_checkpointing
    if options.compile == "yes":
        model.compile_parts()
    sharded = options.fsdp and devices.world > 1
    if sharded:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        settings = {"mp_policy": policy} if options.dtype == "bfloat16" else {}
        for block in model.blocks:
            fully_shard(block, **settings)
        fully_shard(model, **settings)
    model.to_empty(device=devices.device)
    model.init_weights()
    return model, DistributedDataParallel(model) if devices.world > 1 and not sharded else model


def make_optimizer(model, options):
    """AdamW with the paper's settings; weight decay on the matrices only."""
    tables = {id(p) for table in (model.embed, model.ngram) if table is not None for p in table.parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) not in tables], "weight_decay": options.weight_decay},
              {"params": [p for p in model.parameters() if id(p) in tables], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-15, fused=True)


def lr_at(done, options):
    """The learning rate when the share `done` of the training is over."""
    if done < options.lr_warmup:
        return options.lr * (done / options.lr_warmup * 0.99 + 0.01)
    left = (1 - done) / max(1e-9, 1 - options.lr_warmup)
    if options.decay == "linear":
        return options.lr * left
    return options.lr * (0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * left)))


def losses(model, batch, device, autocast):
    """The losses (B, T) of a batch, in nats."""
    x, y, tail, doc = (batch[key].to(device, non_blocking=True) for key in ("x", "y", "tail", "doc"))
    order, n_raw = batch["raw_first"]
    with autocast:
        return model(x, y, tail, sample_mask(doc), raw_first=(order.to(device, non_blocking=True), n_raw))


@torch.no_grad()
def validate(model, mixer, options, devices, autocast):
    """Bits per byte of text on held-out contexts of either view alone: {"val_raw": .., "val_comp": ..}."""
    results = {}
    for view, r in (("raw", 0.0), ("comp", 1.0)):
        if len(mixer.pools[view]) == 0 or view == "comp" and options.mix == 0:
            continue
        nats, text_bytes, share = 0.0, 0.0, range(devices.rank, options.eval_rows, devices.world)
        for start in range(0, len(share), options.micro_batch):  # the training's shapes, so nothing compiles again
            batch = mixer.batch(0, share[start:start + options.micro_batch], r)
            nats += losses(model, batch, devices.device, autocast).double().sum().item()
            text_bytes += batch["text_bytes"]
        results[f"val_{view}"] = devices.sum(nats) / devices.sum(text_bytes) / math.log(2)
    return results


def save_checkpoint(out, model, optimizer, options, devices, **more):
    """Write out/ckpt.pt, which appears in one piece or not at all; with --fsdp each process writes its part of model and
    optimizer into a folder beside it, which ckpt.pt names. Raises UserError where it can't be written."""
    checkpoint = more | {"options": dataclasses.asdict(options), "config": dataclasses.asdict(model.config)}
    if options.fsdp:
        checkpoint["shards"] = f"shards-{more['step']:07}"
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        try:
            dcp.save(state, checkpoint_id=out / checkpoint["shards"], no_dist=devices.world == 1)
        except (OSError, dcp.api.CheckpointException) as error:
            if devices.rank == 0:
                shutil.rmtree(out / checkpoint["shards"], ignore_errors=True)
            raise UserError(f"cannot write {out / checkpoint['shards']}: {error}") from None
    else:
        checkpoint |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if devices.rank == 0:
        write_atomic(out / "ckpt.pt", checkpoint)
        for folder in out.glob("shards-*"):
            if folder.name != checkpoint.get("shards"):
                shutil.rmtree(folder)


def restore_checkpoint(out, model, optimizer, saved):
    """What `save_checkpoint` wrote, into model and optimizer, whatever the number of processes then and now."""
    if "shards" in saved:
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        dcp.load(state, checkpoint_id=Path(out) / saved["shards"], no_dist=not dist.is_initialized())
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    else:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])


def keep_earlier(out):
    """Put the checkpoint of an earlier run aside, as ckpt.old.pt and, of --fsdp, its shards."""
    os.replace(out / "ckpt.pt", out / "ckpt.old.pt")
    earlier = torch.load(out / "ckpt.old.pt", map_location="cpu", weights_only=True)
    if earlier.get("shards", "old/").startswith("shards"):  # and not put aside before
        shutil.rmtree(out / "old", ignore_errors=True)
        os.renames(out / earlier["shards"], out / "old" / earlier["shards"])
        write_atomic(out / "ckpt.old.pt", earlier | {"shards": f"old/{earlier['shards']}"})


def keep_log_before(step, path):
    """Drop the lines of log.jsonl from `step` on: the run goes on there, and writes them again."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    path.with_suffix(".tmp").write_text("".join(line + "\n" for line in kept))
    os.replace(path.with_suffix(".tmp"), path)


def lost_peer(error):
    """Whether a RuntimeError says that another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def train(options):
    """One run, from the corpus to the closing report. Returns the report, a dict."""
    saved = None
    if options.resume:
        given = [f.name for f in dataclasses.fields(options)
                 if f.name != "resume" and getattr(options, f.name) != f.default]
        if given:
            raise UserError(f"--resume goes on under the run's own options: leave out --{given[0]}")
        saved = load_checkpoint(options.resume)
        options = Options(**saved["options"] | {"out": options.resume})
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            options.device = options.dtype = options.compile = "auto"
    options.resolve()
    devices = Devices(options)
    for name in ("batch_size", "eval_rows"):  # what one does alone, the others would wait for
        if getattr(options, name) % devices.world:
            raise UserError(f"--{name}={getattr(options, name)}: expected a multiple of the {devices.world} processes")
    say = print if devices.rank == 0 else lambda *_: None

    started = time.time()
    with contextlib.nullcontext() if devices.rank == 0 else contextlib.redirect_stdout(None):
        views, proxy, proxy_path = prepare(options, options.block_size)  # whoever is first does it, the others wait
    devices.connect()
    n_symbols = proxy.n_symbols if proxy else 0
    made_from = {"corpus": views.id, "proxy": proxy.id if proxy else "none"}
    if saved and saved["made_from"] != made_from:
        raise UserError(f"{options.out} was trained on {saved['made_from']}, but --data={options.data} now gives "
                        f"{made_from}; restore that corpus, or start a new run")

    torch.manual_seed(options.seed)
    config = GPTConfig.named(options.size, vocab_size=PROXY0 + n_symbols, block_size=options.block_size,
                             ngram=options.ngram, n_byte_heads=options.n_byte_heads,
                             aligned=options.align and proxy is not None and proxy.n_bytes is not None)
    model, running = build(config, options, devices)
    if config.aligned:
        model.spell(proxy.spellings())
    trunk = [p for name, p in model.named_parameters() if not name.startswith("byte_heads")]
    optimizer = make_optimizer(model, options)
    symbols_a_step = options.batch_size * options.block_size
    raw_share = Mixer(views, options, options.block_size, 1000).raw_share()
    flops_a_step = symbols_a_step * model.flops_per_symbol(raw_share)
    if options.steps:
        steps = options.steps
    elif options.flops:
        steps = max(1, round(options.flops / flops_a_step))
    else:
        steps = max(1, round(options.budget / symbols_a_step))
    out, step, text_bytes, train_loss = Path(options.out), 0, 0.0, None  # the last two: this process's part
    bad_steps = torch.zeros(2, device=devices.device)  # skipped steps: in a row, and in all
    if saved:
        restore_checkpoint(out, model, optimizer, saved)
        step, bad_steps[1], first = saved["step"], saved["skipped"], devices.rank == 0
        text_bytes, train_loss = saved["text_bytes"] * first, torch.tensor(saved["loss"] * first)
        say(f"resuming {options.out} at step {step} of {steps}")

    if devices.rank == 0:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={out}: {error.strerror}; expected a folder that can be made") from None
        if saved:
            keep_log_before(step, out / "log.jsonl")
        elif (out / "ckpt.pt").exists():
            keep_earlier(out)
            say(f"the earlier checkpoint in {out} is kept as ckpt.old.pt")
        if proxy:
            shutil.copy(proxy_path, out / "proxy.pt")
    log = open(out / "log.jsonl", "a" if saved else "w") if devices.rank == 0 else None

    mixer = Mixer(views, options, options.block_size, steps)
    val_mixer = Mixer(views, dataclasses.replace(options, seed=options.seed + 1), options.block_size, steps, val=True)
    autocast = torch.autocast(devices.device.split(":")[0], dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"
                              and not isinstance(model, FSDPModule))  # which has its own policy
    say(f"training {options.size}: {model.n_params():,} parameters, {model.n_params(embeddings=False):,} without tables, "
        f"{flops_a_step / symbols_a_step:.2e} FLOPs a symbol\n"
        f"on {devices.world} x {options.device}, {options.dtype}, compile {options.compile}: {steps:,} steps of "
        f"{symbols_a_step:,} symbols, {len(views):,} samples, {views.text_bytes / 1e6:.1f} MB of text")

    def save():
        """When it can't be written, the old checkpoint stays and the training goes on."""
        sums = {"text_bytes": devices.sum(text_bytes), "loss": devices.sum(train_loss.item())}
        try:
            save_checkpoint(out, model, optimizer, options, devices, step=step, skipped=int(bad_steps[1]),
                            made_from=made_from, **sums)
        except UserError as error:
            say(f"checkpoint skipped: {error}")

    interrupted = []

    def interrupt(number, _):  # the step is finished first; a second Ctrl-C does not wait
        interrupted.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    share = range(devices.rank, options.batch_size, devices.world)  # this process's rows of each batch
    progress = tqdm(total=steps * symbols_a_step, initial=step * symbols_a_step, unit="sym", unit_scale=True,
                    desc="training", disable=devices.rank > 0)
    began, first_step = time.time(), step
    try:
        while True:
            if step % options.eval_every == 0 or step == steps:
                line = {"step": step, "symbols": step * symbols_a_step, "text_bytes": round(devices.sum(text_bytes)),
                        "flops": step * flops_a_step, "r": round(mixer.r(step), 4),
                        "pairs": mixer.draws_pairs(step), "lr": lr_at(min(1.0, step / steps), options),
                        "loss": devices.sum(train_loss.item()) if train_loss is not None else None,
                        **validate(running, val_mixer, options, devices, autocast), "skipped": int(bad_steps[1]),
                        "seconds": round(time.time() - began)}
                if devices.rank == 0:
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    values = "  ".join(f"{k} {line[k]:.3f}" for k in ("loss", "val_raw", "val_comp", "r") if line.get(k)
                                       is not None)
                    progress.write(f"step {step:6}  {values}"
                                   + (f"  skipped {line['skipped']}" if line["skipped"] else ""))
                if step > first_step:
                    save()
            if step == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step / steps, options)
            train_loss = 0.0
            for start in range(0, len(share), options.micro_batch):
                batch = mixer.batch(step, share[start:start + options.micro_batch])
                text_bytes += batch["text_bytes"]
                last = start + options.micro_batch >= len(share)
                if isinstance(model, FSDPModule):
                    model.set_requires_gradient_sync(last)
                with running.no_sync() if devices.world > 1 and running is not model and not last \
                        else contextlib.nullcontext():
                    # a sum over a constant: the same whatever the split in processes, whose gradients are averaged
                    loss = losses(running, batch, devices.device, autocast).sum() / symbols_a_step
                    # a loss that is not finite spoils the gradient on purpose: so all processes see it
                    loss.backward(torch.where(loss.isfinite(), float(devices.world), torch.nan))
                train_loss = train_loss + loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(trunk, options.clip)
            if model.byte_heads:  # on their own, so that the model's steps are the same with and without them
                norm = norm + torch.nn.utils.clip_grad_norm_(model.byte_heads.parameters(), options.clip)
            norm = norm.full_tensor() if isinstance(model, FSDPModule) else norm
            optimizer.found_inf = bad = (~norm.isfinite()).float()  # where 1 the fused AdamW does nothing, as for a GradScaler
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bad_steps = (bad_steps + bad) * torch.stack((bad, torch.ones_like(bad)))
            step += 1
            progress.update(symbols_a_step)
            if (step % LOOK_EVERY == 0 or not bad.is_cuda) and bad_steps[0] >= BAD_STEPS:
                raise UserError(f"loss or gradient not finite in {int(bad_steps[0])} steps in a row, the last of them {step}; "
                                f"nothing was learned in them. Try a lower --lr than {options.lr}, or a longer --lr_warmup"
                                + (f"; {out}/ckpt.pt is from before" if (out / "ckpt.pt").exists() else ""))
            if devices.sum(len(interrupted)):  # all processes stop at the same step
                progress.close()
                save()
                say(f"interrupted at step {step}, saved. To go on: python train.py --resume={out}")
                devices.disconnect()
                raise KeyboardInterrupt
    except RuntimeError as error:
        if devices.world == 1 or not lost_peer(error):
            raise
        progress.close()
        if devices.store.add("lost", 1) == 1:  # else another process has said it
            print(f"error: a process of this job ended at step {step}; start the job again with --resume={out}",
                  file=sys.stderr)
        sys.exit(2)
    finally:
        progress.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    seconds, text_bytes = time.time() - began, devices.sum(text_bytes)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=options.fsdp))
    devices.disconnect()
    if devices.rank > 0:
        return {}
    report = {"symbols": steps * symbols_a_step, "raw_bytes": round(steps * symbols_a_step * raw_share),
              "text_bytes": round(text_bytes), "flops": steps * flops_a_step, "skipped": int(bad_steps[1])}
    if options.report == "all":
        model = GPT(config).to(devices.device).eval()  # neither compiled nor sharded: now come shapes of every kind
        model.load_state_dict(weights)
        checkpoint = {"options": dataclasses.asdict(options)}
        reads_symbols = options.mix == 1 and proxy.n_bytes is not None and options.mode != "vanilla"
        settings = evaluation.EvalOptions(device=devices.device, view="comp" if reads_symbols else "raw")
        report |= evaluation.evaluate(model, checkpoint, settings, run=out)
    print_report(report, options, proxy, seconds, time.time() - started)
    with open(out / "report.json", "w") as f:
        json.dump(report, f)
    return report


def print_report(report, options, proxy, seconds, all_seconds):
    rows = [("trained on", f"{report['symbols']:,} symbols, {report['text_bytes']:,} bytes of text, "
             f"{report['flops']:.2e} FLOPs, in {seconds:.0f} s")]
    through = "the proxy's symbols" if "bpb_comp" in report else "raw bytes"
    for key in ("bpb", "bpb_comp"):
        if key in report:
            rows.append(("bits per byte", f"{report[key]:.4f} of held-out text, read as {through}"))
    if "pass@1" in report:
        rows.append(("pass@1, pass@10", f"{report['pass@1']:.3f}, {report['pass@10']:.3f} of completions in {through}, on "
                     "problems of held-out compositions"))
        rows.append(("fact recall", f"{report['facts_raw']:.3f} of those that may be seen raw, {report['facts_comp']:.3f} of "
                     "those only seen compressed; chance 0.000"))
    rows.append(("whole run", f"{all_seconds:.0f} s"))
    print(f"\n{options.out}: proxy {options.proxy}, mix {options.mix}, {options.size}, seed {options.seed}")
    for name, value in rows:
        print(f"  {name:16} {value}")
    prompt = "def add_up(values):" if options.data == "tinycode" else "import "
    print(f"next:\n  python sample.py {options.out} --prompt='{prompt}'\n  python eval.py {options.out}"
          + (f"\n  python train.py --proxy=none{'' if options.data == 'tinycode' else f' --data={options.data}'}"
             "      # the baseline: raw bytes only" if options.proxy != "none" else ""))


if __name__ == "__main__":
    command_line(train, Options, description="Trains a byte transformer on raw bytes and a compressor's symbols.")
