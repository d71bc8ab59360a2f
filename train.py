"""
Train a byte transformer on the mixed stream, then say how well it reads and writes raw bytes.

    python train.py --proxy=neural --mix=0.9              the default: minutes on a laptop, no GPU
    python train.py --proxy=none                          the baseline: raw bytes only
    python train.py --proxy=tokenizer --mix=1.0           the proxy only: a tokenizer model
    python train.py --resume=out/neural                   goes on from the run's checkpoint
    torchrun --nproc_per_node=8 train.py --size=1.5B      the same batches on eight GPUs (DDP)
    torchrun --nproc_per_node=8 train.py --size=7B --fsdp      model and optimizer sharded over them
"""
import argparse
import gc
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import lib  # first: it says what is missing or too old
import torch
from tqdm import tqdm

import eval as evaluation
from lib import store
from lib.run import (check_folder, describe, drop_log_from, load_checkpoint, new_folder,
                            restore_checkpoint, restore_options, save_checkpoint)
from lib.parallel import fast_dtype, is_here, precision_note, resolve_device, to_device
from lib.attention import sample_mask
from lib.options import UserError, command_line, expect, flag
from lib.parallel import (Processes, StopSignals, autocast, clip_gradients, gradient_sync,
                          replicate, shard, skip_bad_step, whole_weights)
from lib.plan import expected_raw_share, flops_per_symbol
from lib.run import expect_wandb, log_line, print_report, start_wandb
from mix import Mixer, MixOptions, prepare
from model import GPT, PROXY0, SIZES, GPTConfig

BAD_STEPS = 10   # training ends after this many steps in a row that are not finite
LOOK_EVERY = 10  # steps between looks at what a GPU has computed; each makes the CPU wait for it
PLAIN_FROM = "124M"  # from this size on the default is the paper's plain recipe


@dataclass
class Options(MixOptions):
    given = ()  # names of the flags that were given: no field, `parse` of lib/options.py sets it

    # the model
    size: str = flag("micro", f"size of the model: {', '.join(SIZES)}")
    block_size: int = flag(0, "symbols in a context; 0: the size's own")
    paper: bool = flag(None, "the paper's plain recipe: no n-gram features, no alignment, no raw "
                       f"phase [from {PLAIN_FROM} up]", action=argparse.BooleanOptionalAction)
    ngram: int = flag(None, "longest byte n-gram with an embedding, 0 for none [6, with --paper 0]",
                      type=int)
    raw_phase: float = flag(None, "last share of the training, in which r falls to 0 [0.6, with "
                            "--paper 0]", type=float)
    align: bool = flag(None, "positions in bytes of text, and proxy symbols that share the "
                       "embedding of their last byte and the output row of their first [yes, with "
                       "--paper no]",
                       action=argparse.BooleanOptionalAction)
    n_byte_heads: int = flag(0, "heads that guess the bytes after the next one, for faster greedy "
                             "generation")
    # how long it is trained: one of three
    budget: float = flag(2.5e6, "symbols to train on: raw bytes, proxy symbols and sentinels alike")
    steps: int = flag(0, "steps to train for, in place of --budget")
    flops: float = flag(0.0, "FLOPs to train for, in place of --budget: methods at equal compute")
    # the optimizer
    batch_size: int = flag(8, "contexts in a step, over all devices")
    micro_batch: int = flag(0, "contexts that a device takes at once; gradients accumulate; 0: all")
    lr: float = flag(None, "peak learning rate [0.512 / width, so 8e-3 at nano and 4e-3 at micro; "
                     f"from {PLAIN_FROM} up the paper's 9e-4]", type=float)
    lr_warmup: float = flag(0.05, "share of the training in which the learning rate rises")
    decay: str = flag("cosine", "fall of the learning rate: cosine to a tenth, or linear to 0",
                      choices=("cosine", "linear"))
    weight_decay: float = flag(0.1, "weight decay of the matrices; embeddings have none")
    clip: float = flag(1.0, "norm that gradients are clipped to")
    # what is measured, and where it goes
    eval_every: int = flag(200, "steps between validations, log lines and checkpoints")
    eval_rows: int = flag(16, "contexts of either view in a validation")
    report: str = flag("all", "closing report: all that the corpus has, or none",
                       choices=("all", "none"))
    out: str = flag("", "folder of the run [out/<proxy>, or out/<proxy>-2, .. if that exists]")
    overwrite: bool = flag(False, "an earlier run in --out replaced")
    resume: str = flag("", "folder of a run to go on with, under its own options")
    wandb: str = flag("", "project on Weights & Biases to log validations to (needs wandb)")
    # the machine
    device: str = flag("auto", "cpu, cuda, mps, or auto: the best one there is")
    dtype: str = flag("auto", "precision; auto: bfloat16 where the device has matrix units for it",
                      choices=("auto", "float32", "bfloat16"))
    fsdp: bool = flag(False, "under torchrun: parameters, gradients and optimizer state sharded "
                      "over the devices (FSDP2)")
    activation_checkpointing: bool = flag(False, "activations computed twice: less memory, a third "
                                          "more time")
    compile: str = flag("auto", "torch.compile; auto: on CUDA (on a CPU it takes a minute and "
                        "gains 10 percent)", choices=("auto", "yes", "no"))

    def resolve(self):
        """Fill in what depends on other options or on the machine. Raises UserError."""
        config = GPTConfig.named(self.size)
        is_large = config.n_embd >= GPTConfig.named(PLAIN_FROM).n_embd
        # None: not given on the command line, where 0 would be an explicit choice
        if self.paper is None:
            self.paper = is_large
        if self.ngram is None:
            self.ngram = 0 if self.paper else 6
        if self.raw_phase is None:
            self.raw_phase = 0.0 if self.paper else MixOptions.raw_phase
        if self.align is None:
            self.align = not self.paper
        if self.lr is None:
            # a wider layer needs a smaller step (Yang et al. 2022, arXiv 2203.03466); at nano 8e-3
            # gave fewer bits per byte than half and than twice of it, to raw bytes and proxies
            self.lr = 9e-4 if is_large else 0.512 / config.n_embd
        super().resolve()
        self.block_size = self.block_size or config.block_size
        self.micro_batch = self.micro_batch or self.batch_size
        if self.ngram not in (0, 2, 3, 4, 5, 6, 7):
            raise UserError(f"--ngram={self.ngram}: expected 0 or 2 to 7")
        expect(self, "above 0", "batch_size", "micro_batch", "eval_every", "eval_rows", "budget",
               "lr", "clip")
        expect(self, "of 0 or more", "block_size", "n_byte_heads", "steps", "flops", "weight_decay")
        expect(self, "from 0 to 1", "lr_warmup")
        if self.steps and self.flops:
            raise UserError(f"--steps={self.steps} and --flops={self.flops:g}: expected one of "
                            "them")
        expect_wandb(self.wandb)
        self.device = resolve_device(self.device)
        if self.dtype == "auto":
            self.dtype = fast_dtype(self.device)
        if self.compile == "auto":
            self.compile = "yes" if self.device.startswith("cuda") else "no"


def resumed(options):
    """(the options of the run that --resume names, its checkpoint). Raises UserError."""
    for field in fields(options):
        # a flag at its default too, since the run may have another value
        changed = getattr(options, field.name) != field.default
        if field.name != "resume" and (changed or field.name in options.given):
            raise UserError("--resume goes on under the run's own options: leave out "
                            f"--{field.name}")
    checkpoint = load_checkpoint(options.resume)
    saved_options = restore_options(options.resume, "options", Options, checkpoint["options"])
    restore_options(options.resume, "config", GPTConfig, checkpoint["config"])  # to check it
    options = replace(saved_options, out=options.resume, resume=options.resume)
    if not is_here(options.device):  # the run comes from another machine
        options.device = options.dtype = options.compile = "auto"
    return options, checkpoint


# -----------------------------------------------------------------------------
# what a step needs


def model_config(options, proxy):
    """The GPTConfig of the model to train. proxy: None for raw bytes only."""
    n_symbols = proxy.n_symbols if proxy else 0
    stands_for_bytes = proxy is not None and proxy.symbol_lengths is not None
    return GPTConfig.named(
        options.size, vocab_size=PROXY0 + n_symbols, block_size=options.block_size,
        ngram=options.ngram, n_byte_heads=options.n_byte_heads,
        aligned=options.align and stands_for_bytes)


def build_model(config, options, processes):
    """A model on this process's device; with --fsdp sharded, and with the same weights."""
    with torch.device("meta"):  # a model that no single device could hold starts without memory
        model = GPT(config)
    model.recompute = options.activation_checkpointing
    if options.compile == "yes":
        model.compile_blocks()  # before FSDP, which then gathers a block at a time
    if options.fsdp and processes.world_size > 1:
        shard(model, options.dtype)
    model.to_empty(device=processes.device)
    model.init_weights()
    return model


def make_optimizer(model, options):
    """AdamW with the paper's settings; weight decay on the matrices only."""
    embeddings = list(model.embed.parameters())
    if model.ngram is not None:
        embeddings += model.ngram.parameters()
    is_embedding = {id(p) for p in embeddings}
    matrices = [p for p in model.parameters() if id(p) not in is_embedding]
    groups = [{"params": matrices, "weight_decay": options.weight_decay},
              {"params": embeddings, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-15, fused=True)


def lr_at(done, options):
    """The learning rate when the share `done` of the training is over."""
    if done < options.lr_warmup:  # from a hundredth of it, linearly
        return options.lr * (0.01 + 0.99 * done / options.lr_warmup)
    left = (1 - done) / max(1e-9, 1 - options.lr_warmup)  # how much of the fall is to come
    if options.decay == "linear":
        return options.lr * left
    cosine = 0.5 * (1 - math.cos(math.pi * left))
    return options.lr * (0.1 + 0.9 * cosine)


def count_steps(options, symbols_per_step, flops_per_step):
    if options.steps:
        return options.steps
    if options.flops:
        return max(1, round(options.flops / flops_per_step))
    return max(1, round(options.budget / symbols_per_step))


def batch_losses(model, batch, device, precision):
    """The losses (B, T) of a batch, in nats."""
    def move(tensor):
        return to_device(tensor, device)

    groups = tuple(move(group) for group in batch["groups"])
    with precision:
        return model(move(batch["idx"]), move(batch["targets"]), move(batch["suffix"]),
                     sample_mask(move(batch["sample"])), groups=groups)


@torch.no_grad()
def validate(model, mixer, options, processes, precision):
    """{"val_raw": bits per byte of text, "val_comp": ..} on held-out contexts of either view alone.

    val_comp is an upper bound: the model spreads its probability over all the ways to
    write a text in symbols, and only the proxy's own is counted.
    """
    results = {}
    for view in ("raw", "comp"):
        if len(mixer.pools[view]) == 0 or (view == "comp" and options.mix == 0):
            continue
        nats = text_bytes = 0.0
        rows = processes.rows(options.eval_rows)
        for start in range(0, len(rows), options.micro_batch):
            # always of step 0, so that every validation sees the same contexts
            batch = mixer.batch(0, rows[start:start + options.micro_batch], only=view)
            losses = batch_losses(model, batch, processes.device, precision)
            nats += losses.cpu().double().sum().item()  # MPS has no float64
            text_bytes += batch["text_bytes"]
        bits = processes.sum(nats) / math.log(2)
        results[f"val_{view}"] = bits / processes.sum(text_bytes)
    return results


# -----------------------------------------------------------------------------
# the training


class Training:
    """A training: what its steps need, and where it stands. saved: a checkpoint to go on from."""

    def __init__(self, options, views, proxy, processes, saved):
        self.options = options
        self.processes = processes
        self.device = processes.device
        self.out = Path(options.out)
        self.made_from = {"corpus": views.id, "proxy": proxy.id if proxy else "none"}
        if saved and saved["made_from"] != self.made_from:
            raise UserError(f"{self.out} was trained on {saved['made_from']}, but "
                            f"--data={options.data} now gives {self.made_from}; restore that "
                            "corpus and the code that prepared it, or start a new run")

        # model and optimizer
        torch.manual_seed(options.seed)
        self.config = model_config(options, proxy)
        if saved and saved["config"] != asdict(self.config):
            raise UserError(f"{self.out} has a model of {saved['config']}, but "
                            f"--size={options.size} now is {asdict(self.config)}; restore it, or "
                            "start a new run")
        self.model = build_model(self.config, options, processes)
        if self.config.aligned:
            self.model.set_symbol_bytes(proxy.symbol_bytes())
        self.ddp_model = replicate(self.model, processes)
        self.optimizer = make_optimizer(self.model, options)
        self.precision = autocast(self.model, self.device, options.dtype)

        # how long it takes
        self.symbols_per_step = options.batch_size * options.block_size
        # steps follow from FLOPs, and FLOPs from the share of positions that are expected to hold a
        # raw byte. That is a mean over the schedule, so a mixer of one step will do
        mixer_of_one_step = Mixer(views, options, options.block_size, total_steps=1)
        self.raw_share = expected_raw_share(mixer_of_one_step)
        flops = flops_per_symbol(self.model, PROXY0, self.raw_share)
        self.flops_per_step = self.symbols_per_step * flops
        self.steps = count_steps(options, self.symbols_per_step, self.flops_per_step)

        # data
        self.mixer = Mixer(views, options, options.block_size, self.steps)
        val_options = replace(options, seed=options.seed + 1)
        self.val_mixer = Mixer(views, val_options, options.block_size, self.steps, held_out=True)
        rows = processes.rows(options.batch_size)  # of each batch, this process's
        self.micro_batches = [rows[i:i + options.micro_batch]
                              for i in range(0, len(rows), options.micro_batch)]

        self.tracker = start_wandb(options) if options.wandb and processes.is_first else None

        # where it stands; text_bytes and loss are this process's part of a sum
        self.step = 0
        self.saved_step = saved["step"] if saved else None       # of the checkpoint on disk
        self.text_bytes = 0.0
        self.loss = None                                         # of the last step, 0-dimensional
        self.skipped = torch.zeros((), device=self.device)       # steps that were not finite
        self.skipped_in_a_row = torch.zeros((), device=self.device)
        self.seconds = 0.0                                       # that the training has taken
        if saved:
            self.restore(saved)
        self.began = time.time() - self.seconds  # as if it had never been interrupted

    def restore(self, saved):
        """Go on from a checkpoint. Its tensors are taken out of it, so that they can be freed."""
        restore_checkpoint(self.out, saved, self.model, self.optimizer)
        for name in ("model", "optimizer"):
            saved.pop(name, None)  # a sharded run's are elsewhere
        is_first = self.processes.is_first
        self.step = saved["step"]
        self.skipped += saved["skipped"]
        self.text_bytes = saved["text_bytes"] if is_first else 0.0
        self.loss = torch.tensor(saved["loss"] if is_first else 0.0)
        self.seconds = saved.get("seconds", 0.0)  # older checkpoints lack it

    def train(self):
        """All steps that are left. Raises KeyboardInterrupt after Ctrl-C, once it has saved."""
        options = self.options
        first_step = self.step
        with StopSignals() as stop, self.show_progress() as progress:
            while True:
                if self.step % options.eval_every == 0 or self.step == self.steps:
                    self.log(progress)
                    if self.step > first_step:
                        self.save()
                if self.step == self.steps:
                    self.stop_if_asked(stop, progress)  # Ctrl-C came in the last validation
                    break
                self.take_step()
                progress.update(self.symbols_per_step)
                # on a CPU, looking costs nothing
                if self.step % LOOK_EVERY == 0 or self.device == "cpu":
                    self.stop_if_diverged()
                self.stop_if_asked(stop, progress)
        self.seconds = time.time() - self.began

    def take_step(self):
        """Forward, backward, clip, step."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step / self.steps, options)

        self.loss = 0.0
        for number, rows in enumerate(self.micro_batches, 1):
            batch = self.mixer.batch(self.step, rows)
            self.text_bytes += batch["text_bytes"]
            is_last = number == len(self.micro_batches)
            with gradient_sync(self.ddp_model, is_last):
                losses = batch_losses(self.ddp_model, batch, self.device, self.precision)
                # divided by a constant, so that micro-batches add up to the whole batch
                loss = losses.sum() / self.symbols_per_step
                # DDP and FSDP divide by the number of processes, and this undoes it
                scale = float(self.processes.world_size)
                # a loss that is not finite becomes a NaN gradient, so every process skips the step
                loss.backward(gradient=torch.where(loss.isfinite(), scale, torch.nan))
            self.loss = self.loss + loss.detach()

        norm = clip_gradients(self.parameters(byte_heads=False), options.clip)
        if self.model.byte_heads is not None:
            # by themselves, so that they do not change how the model's gradient is clipped; the sum
            # of both norms only tells whether all is finite
            norm = norm + clip_gradients(self.parameters(byte_heads=True), options.clip)

        bad = skip_bad_step(norm, self.model.parameters(), self.optimizer)  # 1 or 0
        self.optimizer.step()  # does nothing if the step is to be skipped
        self.optimizer.zero_grad(set_to_none=True)  # frees their memory until the next step
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        self.step += 1

    def parameters(self, byte_heads):
        """The parameters of the byte heads, or all others, a list."""
        return [p for name, p in self.model.named_parameters()
                if name.startswith("byte_heads") == byte_heads]

    def stop_if_asked(self, stop, progress):
        """After Ctrl-C: save, and raise KeyboardInterrupt, in all processes at the same step."""
        if not self.processes.sum(int(stop.received)):
            return
        progress.close()
        outcome = "saved" if self.save() else "not saved"
        self.processes.print0(f"interrupted at step {self.step}, {outcome}.{self.how_to_go_on()}")
        self.processes.disconnect()
        raise KeyboardInterrupt

    def stop_if_diverged(self):
        in_a_row = int(self.skipped_in_a_row)
        if in_a_row >= BAD_STEPS:
            advice = f"a lower --lr than {self.options.lr}, or a longer --lr_warmup"
            if (self.out / "ckpt.pt").exists():
                advice += f"; {self.out}/ckpt.pt is from before"
            raise UserError(f"loss or gradient not finite in {in_a_row} steps in a row, the last "
                            f"of them {self.step}; nothing was learned in them. Try {advice}")

    def log(self, progress):
        """Validate; add a line to log.jsonl, and print it."""
        processes = self.processes
        done = self.step / self.steps
        line = {
            "step": self.step,
            "symbols": self.step * self.symbols_per_step,
            "text_bytes": round(processes.sum(self.text_bytes)),
            "flops": self.step * self.flops_per_step,
            "r": round(self.mixer.r(self.step), 4),
            "pairs": self.mixer.draws_pairs(self.step),
            "lr": lr_at(done, self.options),
            "loss": None if self.loss is None else processes.sum(self.loss.item()),
            **validate(self.ddp_model, self.val_mixer, self.options, processes, self.precision),
            "skipped": int(self.skipped),
            "seconds": round(time.time() - self.began),
        }
        if processes.is_first:
            try:
                with open(self.out / "log.jsonl", "a") as f:
                    f.write(json.dumps(line) + "\n")
            except OSError as error:  # a full disk, say, which should not end a training
                progress.write(f"not written to log.jsonl: step {self.step} ({error.strerror})")
            progress.write(log_line(line))
            if self.tracker is not None:
                self.tracker.log(line)

    def save(self):
        """Write the checkpoint. If it can't be written the old one stays, and training goes on.

        Returns whether it was written, in the first process; in the others True.
        """
        processes = self.processes
        about = {"step": self.step, "skipped": int(self.skipped), "made_from": self.made_from,
                 "text_bytes": processes.sum(self.text_bytes),
                 "loss": processes.sum(self.loss.item()), "seconds": time.time() - self.began,
                 "options": asdict(self.options), "config": asdict(self.config)}
        try:
            save_checkpoint(self.out, self.model, self.optimizer, about, self.options.fsdp,
                            processes)
        except UserError as error:
            processes.print0(f"checkpoint skipped: {error}")
            return False
        self.saved_step = self.step
        return True

    def how_to_go_on(self):
        """Part of a message; nothing where there is no checkpoint."""
        if not (self.out / "ckpt.pt").exists():
            return ""
        return f" To go on: python train.py --resume={self.out}"

    def show_progress(self):
        """A bar over all symbols; none where stderr is a file, or in processes but the first."""
        return tqdm(total=self.steps * self.symbols_per_step, desc="training", unit="sym",
                    initial=self.step * self.symbols_per_step, unit_scale=True,
                    disable=None if self.processes.is_first else True)

    def headline(self):
        """What is trained, on what, and for how long: the two lines that are printed first."""
        options = self.options
        return (f"training {options.size} in {self.out}: {self.model.n_params():,} parameters, "
                f"{self.model.n_params(embeddings=False):,} without embeddings, "
                f"{self.flops_per_step / self.symbols_per_step:.2e} FLOPs a symbol\n"
                f"on {self.processes.world_size} x {options.device}, {options.dtype}"
                f"{precision_note(self.device, options.dtype)}, compile {options.compile}: "
                f"{self.steps:,} steps of {self.symbols_per_step:,} symbols")

    def report(self):
        """What was done, {name: number}. raw_bytes and flops are expected values, the same for
        every seed; text_bytes was counted."""
        symbols = self.steps * self.symbols_per_step
        return {"symbols": symbols, "raw_bytes": round(symbols * self.raw_share),
                "text_bytes": round(self.processes.sum(self.text_bytes)),
                "flops": self.steps * self.flops_per_step, "skipped": int(self.skipped),
                "seconds": self.seconds}


def train(options):
    """One run, from the corpus to the closing report, a dict. Raises UserError."""
    started = time.time()
    saved = None
    if options.resume:
        options, saved = resumed(options)
    elif "resume" in options.given:
        raise UserError("--resume=: expected the folder of a run")
    options.resolve()
    if options.out and not saved:
        check_folder(options.out, options.overwrite)
    processes = Processes(options.device)
    processes.expect_even_shares(options, "batch_size", "eval_rows")
    with processes.quiet_others():  # under a lock: one process prepares, the others read
        views, proxy, proxy_path = prepare(options, options.block_size)
    processes.connect()
    for held_out in (False, True):  # before a folder is made: a Mixer refuses what it can't draw
        Mixer(views, options, options.block_size, total_steps=1, held_out=held_out)
    if not saved:
        options.out = processes.from_first(lambda: open_run(options, proxy_path))
    report, weights, config, is_saved = train_model(options, views, proxy, processes, saved)
    gc.collect()  # the optimizer and compiled blocks are in reference cycles
    processes.disconnect()  # the report is the first process's work alone
    if not processes.is_first:
        return {}
    if options.report == "all":
        try:
            measure(weights, config, options, proxy, processes.device, report, is_saved)
        except UserError as error:  # what was trained is worth a report all the same
            print(f"not measured: {error}")
    print_report(report, options, time.time() - started)
    store.write_file(Path(options.out) / "report.json", json.dumps(report).encode())
    return report


def train_model(options, views, proxy, processes, saved):
    """(what was done, the weights, the model's config, whether the checkpoint on disk has these
    weights). All else is freed on return."""
    training = Training(options, views, proxy, processes, saved)
    if saved:
        processes.print0(f"resuming {options.out} at step {training.step} of {training.steps}")
        if processes.is_first:
            drop_log_from(training.step, training.out / "log.jsonl")
    processes.print0(f"{training.headline()}, {len(views):,} samples, "
                     f"{views.text_bytes / 1e6:.1f} MB of text")

    def advice():
        return f"at step {training.step}; start the job again with --resume={options.out}"

    with processes.one_line_if_one_is_lost(advice):
        training.train()
    weights = whole_weights(training.model, options.fsdp)
    is_saved = training.saved_step == training.steps
    return training.report(), weights, training.config, is_saved


def open_run(options, proxy_path):
    """Make the folder of a new run; returns its name. Raises UserError."""
    out = new_folder(options.out, f"out/{options.proxy}", options.overwrite)
    if proxy_path:
        shutil.copy(proxy_path, out / "proxy.pt")
    store.write_file(out / "config.json", json.dumps(describe(options), indent=1).encode())
    return str(out)


def measure(weights, config, options, proxy, device, report, keep):
    """Add to `report`, {name: number}, what eval.py measures of the trained model by default. keep:
    for later calls of eval.py, too, which measure the checkpoint."""
    model = GPT(config).to(device).eval()  # not compiled, not sharded: shapes vary
    model.load_state_dict(weights)
    reads_symbols = (options.mix == 1 and proxy.symbol_lengths is not None
                     and options.mode != "vanilla")
    settings = evaluation.EvalOptions(device=device, view="comp" if reads_symbols else "raw")
    evaluation.evaluate(model, {"options": asdict(options)}, settings, run=options.out,
                        results=report, keep=keep)


if __name__ == "__main__":
    command_line(train, Options, description="Trains a byte transformer on raw bytes and the "
                 "symbols of a compressor.")
