"""
Train a byte transformer on the mixed stream (mix.py), then measure it on raw bytes.

    python train.py --proxy=neural --mix=0.9              the default: minutes on a laptop, no GPU
    python train.py --proxy=none                          the baseline: raw bytes only
    python train.py --proxy=tokenizer --mix=1.0           the proxy only: a tokenizer model
    python train.py --resume=out/neural                   goes on from the run's checkpoint
    torchrun --nproc_per_node=8 train.py --size=124M --budget=1e10 --batch_size=64  on eight GPUs

(`python model.py --plan` says what larger sizes need; --fsdp shards them.)

`Training` is the loop: batch, loss, backward, clip, step, and a validation now and then. What a run
leaves in its folder, and how it goes on from there, is in lib/run.py. On CUDA these differ:

    resolve        torch.compile is the default, and bfloat16 where there are units for it
    build_model    blocks are compiled, with FlexAttention (lib/attention.py)
    batch_losses   only queues work: the copy of a batch and its pass. The CPU goes on to make the
                   next batch while the card computes, until something reads a result
    take_step      reads no result; the card itself skips a step that is not finite
    train          waits for the card every BAD_STEPS steps, and at each validation
"""
import argparse
import gc
import math
import time
from dataclasses import dataclass, replace

import lib  # first: it says what is missing or too old
import torch
from tqdm import tqdm

from eval import EvalOptions, evaluate
from lib.attention import expect_kernel_fits, sample_mask
from lib.muon import Muon
from lib.options import UserError, command_line, expect, flag
from lib.parallel import (Processes, StopSignals, autocast, clip_gradients, fast_dtype,
                          gradient_sync, replicate, resolve_device, shard, should_compile,
                          to_device)
from lib.plan import expected_raw_share, flops_per_symbol
from lib.run import (Record, check_folder, expect_made_from, expect_wandb, headline, print_report,
                     restore_checkpoint, resumed, totals)
from lib.views import file_id, write_json
from mix import Mixer, MixOptions, prepare
from model import GPT, PROXY0, SIZES, GPTConfig
from sample import Run

# every so many steps the training stops if as many in a row, up to then, were not finite
BAD_STEPS = 10
PLAIN_FROM = "124M"  # from this size on the default is the paper's plain recipe


@dataclass
class Options(MixOptions):
    # the model
    size: str = flag("nano", f"size of the model: {', '.join(SIZES)}")
    block_size: int = flag(0, "symbols in a context; 0: the size's own")
    paper: bool = flag(None, "the paper's plain recipe: no n-gram features, no alignment, no raw "
                       f"phase, AdamW alone [from {PLAIN_FROM} up]",
                       action=argparse.BooleanOptionalAction)
    ngram: int = flag(None, "longest byte n-gram with an embedding, 0 for none [6; 0 with --paper]",
                      type=int)
    raw_phase: float = flag(None, "last share of the training, in which r falls to 0 [0.6; 0 with "
                            "--paper]", type=float)
    align: bool = flag(None, "positions in bytes of text, embeddings shared by a proxy symbol and "
                       "its bytes [yes; no with --paper]", action=argparse.BooleanOptionalAction)
    # how long it is trained; --flops and --steps take the place of --budget
    budget: float = flag(3.5e6, "symbols to train on: raw bytes, proxy symbols and sentinels alike")
    steps: int = flag(0, "steps to train for, in place of --budget")
    flops: float = flag(0.0, "FLOPs to train for, in place of --budget: methods at equal compute "
                        "(counting attention over the whole context, and no optimizer's work)")
    # the optimizer
    batch_size: int = flag(2, "contexts in a step, over all devices")
    micro_batch: int = flag(0, "contexts that a device takes at once; gradients accumulate; 0: all")
    muon: bool = flag(None, "Muon for the matrices of the blocks, AdamW for the rest [yes; no with "
                      "--paper or --fsdp]", action=argparse.BooleanOptionalAction)
    lr: float = flag(None, "peak learning rate [0.512 / width, so 8e-3 at nano and 4e-3 at micro; "
                     f"from {PLAIN_FROM} up the paper's 9e-4]", type=float)
    lr_warmup: float = flag(0.05, "share of the training in which the learning rate rises")
    weight_decay: float = flag(0.1, "weight decay of the matrices; embeddings have none")
    clip: float = flag(1.0, "norm that gradients are clipped to")
    # what is measured, and where it goes
    eval_every: int = flag(500, "steps between validations, log lines and checkpoints")
    eval_rows: int = flag(16, "contexts of each view in a validation")
    report: str = flag("all", "what the closing report measures: all that the corpus allows, or "
                       "none", choices=("all", "none"))
    out: str = flag("", "folder of the run [out/<proxy>, or out/<proxy>-2, .. if that exists]")
    overwrite: bool = flag(False, "an earlier run in --out replaced")
    resume: str = flag("", "folder of a run to go on with, under its own options")
    wandb: str = flag("", "project on Weights & Biases to log validations to (needs wandb)")
    # the machine
    device: str = flag("auto", "cpu, cuda, mps, or auto: the best one there is")
    dtype: str = flag("auto", "precision; auto: bfloat16 where the device has matrix units for it",
                      choices=("auto", "float32", "bfloat16"))
    fsdp: bool = flag(False, "model and optimizer state sharded over torchrun's devices (FSDP2)")
    activation_checkpointing: bool = flag(False, "activations computed twice: less memory, slower")
    compile: str = flag("auto", "torch.compile; auto: on CUDA, with Triton and a C compiler",
                        choices=("auto", "yes", "no"))

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
        if self.muon is None:
            self.muon = not self.paper and not self.fsdp
        if self.muon and self.fsdp:
            raise UserError("--muon --fsdp: Muon needs whole matrices, of which FSDP's devices "
                            "hold parts; leave out one")
        if self.lr is None:
            # a wider layer needs a smaller step (Yang et al. 2022, arXiv 2203.03466); at nano 8e-3
            # gave raw bytes fewer bits per byte than 5e-3 and 12e-3
            self.lr = 9e-4 if is_large else 0.512 / config.n_embd
        super().resolve()
        self.block_size = self.block_size or config.block_size
        self.micro_batch = self.micro_batch or self.batch_size
        if self.ngram not in (0, 2, 3, 4, 5, 6, 7):
            raise UserError(f"--ngram={self.ngram}: expected 0 or 2 to 7")
        expect(self, "above 0", "batch_size", "micro_batch", "eval_every", "eval_rows", "budget",
               "lr", "clip")
        expect(self, "of 0 or more", "block_size", "steps", "flops", "weight_decay")
        expect(self, "from 0 to 1", "lr_warmup")
        if self.steps and self.flops:
            raise UserError(f"--steps={self.steps} and --flops={self.flops:g}: leave out one")
        expect_wandb(self.wandb)
        self.device = resolve_device(self.device)
        if self.dtype == "auto":
            self.dtype = fast_dtype(self.device)
        if self.compile == "auto":
            self.compile = "yes" if should_compile(self.device) else "no"
        if self.compile == "yes":
            expect_kernel_fits(config.n_embd // config.n_head, self.dtype, self.device)


# -----------------------------------------------------------------------------
# what a step needs


def model_config(options, proxy):
    """The GPTConfig of the model to train. proxy: None for raw bytes only."""
    vocab_size = PROXY0 + (proxy.n_symbols if proxy else 0)
    stands_for_bytes = proxy is not None and proxy.symbol_lengths is not None
    return GPTConfig.named(
        options.size, vocab_size=vocab_size, block_size=options.block_size, ngram=options.ngram,
        aligned=options.align and stands_for_bytes)


def build_model(config, options, processes):
    """A model on the process's device, sharded with --fsdp; the weights are the same either way."""
    with torch.device("meta"):  # a model that no single device could hold starts without memory
        model = GPT(config)
    model.recompute = options.activation_checkpointing
    if options.compile == "yes":
        model.compile_blocks()  # before FSDP, which then gathers a block at a time
    if options.fsdp and processes.world_size > 1:
        shard(model, options.dtype, processes)
    model.to_empty(device=processes.device)
    model.init_weights()
    return model


def make_optimizers(model, options):
    """A list: AdamW with the paper's settings; with --muon also Muon, for the blocks' matrices."""
    embeddings, matrices = model.split_parameters()
    if options.muon:
        matrices = [model.head.weight]  # what is left for AdamW
    groups = [{"params": matrices, "weight_decay": options.weight_decay},
              {"params": embeddings, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-15, fused=True)
    optimizers = [adamw]
    if options.muon:
        optimizers.append(Muon(model.blocks.parameters(), options.lr, options.weight_decay))
    return optimizers


def lr_at(done, options):
    """The factor of the learning rate when the share `done` of the training is over: it rises from
    a hundredth to 1 linearly, and falls to a tenth with a cosine."""
    if done < options.lr_warmup:
        return 0.01 + 0.99 * done / options.lr_warmup
    left = (1 - done) / max(1e-9, 1 - options.lr_warmup)  # how much of the fall is to come
    cosine = 0.5 * (1 - math.cos(math.pi * left))
    return 0.1 + 0.9 * cosine


def batch_losses(model, batch, device, precision):
    """The losses (B, T) of a batch, in nats."""
    names = ("idx", "targets", "suffix", "sample")
    idx, targets, suffix, sample = (to_device(batch[name], device) for name in names)
    # positions of raw bytes, after which the loss leaves out the proxy's symbols, and all others
    groups = [to_device(group, device) for group in batch["groups"]]
    with precision:
        return model(idx, targets, suffix, sample_mask(sample), groups=groups)


@torch.no_grad()
def validate(model, mixer, options, processes, precision):
    """{"val_raw": bits per byte of text, "val_comp": ..} on held-out contexts of each view alone.

    val_comp is an upper bound: the model spreads its probability over all the ways to
    write a text in symbols, and only the proxy's own is counted.
    """
    results = {}
    for view in ("raw", "comp"):
        if len(mixer.pools[view].samples) == 0 or (view == "comp" and options.mix == 0):
            continue  # nothing to show
        nats = text_bytes = 0.0
        for rows in processes.micro_batches(options.eval_rows, options.micro_batch):
            # always of step 0, so that every validation sees the same contexts
            batch = mixer.batch(0, rows, only=view)
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

        # model and optimizers
        torch.manual_seed(options.seed)
        self.config = saved["config"] if saved else model_config(options, proxy)
        self.model = build_model(self.config, options, processes)
        if self.config.aligned:
            self.model.set_symbol_bytes(proxy.symbol_bytes())
        # wrapped in DDP if there are several processes and no --fsdp
        self.ddp_model = replicate(self.model, processes)
        self.precision = autocast(self.device, options.dtype)  # for `with`
        self.optimizers = make_optimizers(self.model, options)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]  # which `lr_at` scales

        # data; total_steps of `mixer` is set below, val_mixer keeps 1: only step 0 is drawn
        settings = dict(block_size=options.block_size, total_steps=1,
                        with_suffix=self.config.ngram > 0)
        self.mixer = Mixer(views, options, **settings)
        val_options = replace(options, seed=options.seed + 1)
        self.val_mixer = Mixer(views, val_options, held_out=True, **settings)
        # this process's rows of each batch
        self.micro_batches = processes.micro_batches(options.batch_size, options.micro_batch)

        # how long it takes: --steps, or --flops, or --budget
        self.symbols_per_step = options.batch_size * options.block_size
        # FLOPs depend on how many positions hold a raw byte; that share follows from the schedule's
        # shape, so total_steps=1 will do here
        self.raw_share = expected_raw_share(self.mixer)
        flops = flops_per_symbol(self.model, byte_rows=PROXY0, raw_share=self.raw_share)
        self.flops_per_step = self.symbols_per_step * flops
        if options.flops:
            steps = round(options.flops / self.flops_per_step)
        else:
            steps = options.steps or round(options.budget / self.symbols_per_step)
        self.steps = max(1, steps)
        self.mixer.total_steps = self.steps

        # where it stands; text_bytes and loss are this process's part of a sum
        self.step = 0
        self.text_bytes = 0.0
        self.loss = None           # of the last step, 0-dimensional
        self.skipped = torch.zeros((), device=self.device)  # steps that were not finite
        # not saved: a resumed training gets BAD_STEPS more tries
        self.skipped_in_a_row = torch.zeros((), device=self.device)
        self.batch_seconds = 0.0                            # that making batches has taken
        self.began = time.time()
        if saved:
            restore_checkpoint(options.out, saved, self.model, self.optimizers)
            self.step = saved["step"]
            self.skipped += saved["skipped"]
            self.batch_seconds = saved["batch_seconds"]
            self.text_bytes = saved["text_bytes"] if processes.is_first else 0.0
            self.loss = torch.tensor(saved["loss"] if processes.is_first else 0.0)
            self.began -= saved["seconds"]  # as if it had never been interrupted

    def train(self, record):
        """All steps that are left; returns False after Ctrl-C, once it has saved. record: writes
        log and checkpoints."""
        options, processes = self.options, self.processes
        # a bar of the first process, where stderr is a terminal
        progress = tqdm(total=self.steps, initial=self.step, desc="training", unit="step",
                        disable=None if processes.is_first else True)
        with StopSignals() as stop, progress:
            while True:
                is_over = self.step == self.steps
                if is_over or self.step % options.eval_every == 0:
                    validation = validate(self.ddp_model, self.val_mixer, options, processes,
                                          self.precision)
                    record.log(self, validation, say=progress.write)
                    record.save(self)
                # after Ctrl-C in one of the processes all end, at the same step
                if processes.sum(int(stop.received)):
                    progress.close()
                    record.save_interrupted(self)
                    return False
                if is_over:
                    return True
                self.take_step()
                progress.update()
                if self.step % BAD_STEPS == 0:
                    self.stop_if_diverged()

    def take_step(self):
        """Forward, backward, clip, step."""
        factor = lr_at(self.step / self.steps, self.options)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

        # loss and gradient of the batch, in micro-batches
        self.loss = 0.0
        for rows in self.micro_batches:
            began = time.perf_counter()
            batch = self.mixer.batch(self.step, rows)
            self.batch_seconds += time.perf_counter() - began
            self.text_bytes += batch["text_bytes"]
            with gradient_sync(self.ddp_model, last=rows is self.micro_batches[-1]):
                losses = batch_losses(self.ddp_model, batch, self.device, self.precision)
                # divided by a constant, so that micro-batches add up to the whole batch
                loss = losses.sum() / self.symbols_per_step
                # DDP and FSDP divide gradients by the number of processes, so backward starts from
                # that number; or from NaN if the loss is not finite: then all skip the step.
                scale = float(self.processes.world_size)
                loss.backward(gradient=torch.where(loss.isfinite(), scale, torch.nan))
            self.loss = self.loss + loss.detach()
        norm = clip_gradients(self.model.parameters(), self.options.clip)

        # a step whose gradient is not finite is skipped
        is_bad = ~norm.isfinite()  # a tensor (), which nothing has to look at ..
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon) or optimizer.defaults.get("fused"):
                optimizer.found_inf = is_bad.float()  # .. with those that do nothing if this is 1
                optimizer.step()
            elif not is_bad:  # with one of your own the CPU waits for the card
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # frees their memory until the next step
        self.skipped += is_bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * is_bad
        self.step += 1

    def stop_if_diverged(self):
        if self.skipped_in_a_row >= BAD_STEPS:  # the CPU waits for the card, and looks
            raise UserError(f"loss or gradient not finite in {int(self.skipped_in_a_row)} steps in "
                            f"a row, the last of them {self.step}; nothing was learned in them. "
                            f"Try a lower --lr than {self.options.lr}, or a longer --lr_warmup")

    def learning_rate(self):
        return self.options.lr * lr_at(self.step / self.steps, self.options)


def train(options):
    """One run, from the corpus to the closing report, a dict. Raises UserError."""
    started = time.time()
    options, saved = resumed(options, GPTConfig)
    options.resolve()
    if options.out and not saved:  # here, too, before what may be a long fit
        check_folder(options.out, options.overwrite)
    processes = Processes(options.device)
    processes.expect_even_shares(options, "batch_size", "eval_rows")
    with processes.quiet_others():  # all come here: one cuts and fits, under a lock; all encode
        views, proxy, proxy_path = prepare(options, options.block_size)
    made_from = {"corpus": views.id, "proxy": file_id(proxy_path) if proxy else "none"}
    processes.connect()
    processes.expect_same(made_from)
    expect_made_from(options, saved, made_from)

    training = Training(options, views, proxy, processes, saved)
    # only now is a folder made: what can't be trained on leaves none
    record = Record(options, made_from, proxy_path, processes, saved)
    processes.print0(headline(training, options, views))
    is_finished = training.train(record)

    # raw_bytes is expected from the schedule, the same for every seed; text_bytes was counted
    report = totals(training)
    report["raw_bytes"] = round(report["symbols"] * training.raw_share)
    is_saved = record.saved_step == training.steps
    # frees the memory for the model that is measured. And DDP has to be freed before its process
    # group: freed last, it can deadlock
    del training
    gc.collect()  # the optimizer and compiled blocks are in reference cycles
    processes.disconnect()
    if not is_finished:
        raise KeyboardInterrupt  # of half a training there is no report
    if not processes.is_first:  # what follows is the first one's work alone
        return {}
    if options.report == "all" and is_saved:
        try:
            report |= measure(options, processes.device)
        except UserError as error:  # what was trained is worth a report all the same
            print(f"not measured: {error}")
    print_report(report, options, time.time() - started)
    write_json(record.out / "report.json", report)
    return report


def measure(options, device):
    """What eval.py measures of the run by default, {name: number or text}. A tokenizer model
    (--mix=1) is measured on symbols, unless with gzip or --mode=vanilla, where it can't be."""
    run = Run.load(options.out, device)
    reads_symbols = (options.mix == 1 and run.proxy.symbol_lengths is not None
                     and options.mode != "vanilla")
    asked = EvalOptions(device=device, view="comp" if reads_symbols else "raw")
    asked.resolve()
    return evaluate(run, asked)


if __name__ == "__main__":
    command_line(train, Options, description="Trains a byte transformer on raw bytes and the "
                 "symbols of a compressor.")
