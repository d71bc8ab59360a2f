"""
A run: its folder, its checkpoints (whole, or in the parts that sharded processes wrote), its log
and its closing report. A run is never overwritten unless its user says so.

    out/NAME/
        config.json     what the run was: command line, commit, versions, machine, options
        log.jsonl       a line for each validation
        ckpt.pt         the newest checkpoint; of --fsdp it names the folder of its parts
        proxy.pt        the compressor that the model was trained with; inference does without
        report.json     the closing report
        results.json    what eval.py has measured
        byte_heads.pt   of runs/byte_heads.py

train.py writes all but byte_heads.pt; eval.py adds to results.json.
"""
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from lib.data import ROOT, parse_data, read_log
from lib.options import UserError, warn_once
from lib.parallel import resolve_device
from lib.views import write_file, write_json, write_torch

# one process reads and writes the parts of a sharded run without torch.distributed, as it should
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

# of checkpoints: one more when what they hold gets another meaning. Older ones can be sampled from
# and evaluated, but their training can't go on
VERSION = 3

FILES = ("config.json", "log.jsonl", "ckpt.pt", "proxy.pt", "report.json", "results.json",
         "byte_heads.pt")


# -----------------------------------------------------------------------------
# folders


def files_of_run(folder):
    """The files and folders of a run that there are in a folder, a list of paths."""
    paths = [folder / name for name in FILES]
    # os.path.exists, as Path.exists raises where a folder may not be looked into
    return [path for path in [*paths, *folder.glob("shards-*")] if os.path.exists(path)]


def check_folder(out, overwrite):
    """Refuse a folder with files of a run, or of such names. Raises UserError."""
    in_the_way = files_of_run(Path(out))
    if in_the_way and not overwrite:
        raise UserError(f"--out={out}: there is a run in it ({in_the_way[0].name}); go on with "
                        f"--resume={out}, give another name, or replace it with --overwrite")


def new_folder(options):
    """Make the folder of a new run: --out, of which other files stay, or without it the first of
    out/PROXY, out/PROXY-2, out/PROXY-3 .. that does not exist. Raises UserError, and OSError."""
    if options.out:
        check_folder(options.out, options.overwrite)
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        for path in files_of_run(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return folder
    Path("out").mkdir(exist_ok=True)
    _, _, name = options.proxy.rpartition(":")  # of a proxy of one's own, FILE.py:CLASS, the class
    for number in itertools.count(1):
        folder = Path("out", name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # of two trainings that begin at once only one gets it
            return folder


def describe(options):
    """What a run is: a dict for config.json."""
    # --exclude: a commit's own number, not what a tag calls it
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # no git, or no repository
    versions = {package: version(package) for package in ("numpy", "tiktoken")}
    versions["torch"] = str(torch.__version__)  # with the build, which pip's number may lack
    versions["python"] = platform.python_version()
    return {
        "command": sys.argv,
        "commit": commit,  # with -dirty, if files have changed since
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "options": asdict(options),
    }


def all_runs():
    """The folders of the runs under out/, the newest last. Raises UserError if there are none."""
    checkpoints = sorted(Path("out").glob("*/ckpt.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError("no run under out/: train one first (python train.py), or name its folder")
    return [path.parent for path in checkpoints]


def newest_run():
    return all_runs()[-1]


# -----------------------------------------------------------------------------
# reading a checkpoint


def load_checkpoint(run):
    """What train.py saved in the folder `run`, a dict. Raises UserError if it can't be read or is
    not whole, or if another program or a newer version wrote it."""
    path = Path(run) / "ckpt.pt"
    if not os.path.exists(path):
        raise UserError(f"{run}: no run here, expected a file ckpt.pt in it, as train.py writes")
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    checkpoint = None
    with file, contextlib.suppress(Exception):  # whatever a broken file makes torch throw
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not {"config", "options", "step"} <= checkpoint.keys():
        raise UserError(f"{path} is corrupt or truncated, or another program wrote it; restore it "
                        "or train again")
    found = checkpoint.get("version", 0)
    if not 1 <= found <= VERSION:
        raise_other_version(run, f"its version is {found}, expected 1 to {VERSION}")
    return checkpoint


def raise_other_version(run, difference):
    raise UserError(f"{run}/ckpt.pt was written by another version of nanoproxy ({difference}); "
                    "train again")


# what earlier versions could do, and the value at which that changed nothing
GONE = {"n_byte_heads": 0}


def restore_options(run, what, dataclass, values):
    """An instance of `dataclass` with the values, a dict, from a run's checkpoint.

    So that old runs go on: a field that the checkpoint does not know gets its default, and so a new
    option's default has to mean what was done before. What is gone is refused only if the run made
    use of it. what: "options" or the like. Raises UserError.
    """
    names = {field.name for field in fields(dataclass)}
    known = {name: value for name, value in values.items() if name in names}
    for name in values.keys() - known.keys():
        if name not in GONE or values[name] != GONE[name]:
            raise_other_version(run, f"{name}={values[name]!r} in its {what}")
    return dataclass(**known)


def load_shards(run, checkpoint, state):
    """Read into `state`, {"model": a state dict, ..}, what the processes of a sharded run wrote.

    The number of processes then and now does not matter. Raises UserError.
    """
    import torch.distributed.checkpoint as dcp  # takes a second, which sample.py can do without
    folder = Path(run) / checkpoint["shards"]
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except (OSError, dcp.api.CheckpointException) as error:
        reason = str(error).splitlines()[-1]  # after the processes' stacks
        raise UserError(f"{folder} is corrupt, incomplete or cannot be read: {reason}; restore it "
                        "or train again") from None


def load_weights(run, checkpoint, model):
    """Put the weights of a run's checkpoint, whole or in shards, into a model. Those of a whole one
    are then removed from the checkpoint, to free their memory. Raises UserError if they don't fit.
    """
    if "shards" in checkpoint:
        load_shards(run, checkpoint, {"model": model.state_dict()})
        return
    try:
        model.load_state_dict(checkpoint.pop("model"))
    except RuntimeError as error:
        which = str(error).splitlines()[1].strip()  # the first that is missing, or the like
        raise_other_version(run, which)


# -----------------------------------------------------------------------------
# resuming


def resumed(options, config_class):
    """(the options of the run that --resume names, its checkpoint); without --resume (options,
    None). config_class: of the checkpoint's "config". Raises UserError."""
    given = getattr(options, "given", ())  # on the command line
    if not options.resume:
        if "resume" in given:
            raise UserError("--resume=: expected the folder of a run")
        return options, None
    others = [name for name in given if name != "resume"]
    if others:
        raise UserError(f"--resume goes on under the run's own options: leave out --{others[0]}")
    run = options.resume
    saved = load_checkpoint(run)
    if saved["version"] < VERSION:
        raise UserError(f"{run} was trained by an older version of nanoproxy: sample.py and "
                        "eval.py read it, but its training can't go on; start a new one")
    saved["config"] = restore_options(run, "config", config_class, saved["config"])
    options = restore_options(run, "options", type(options), saved["options"])
    options = replace(options, out=run, resume=run)
    try:
        resolve_device(options.device)
    except UserError:  # the run comes from another machine
        options.device = options.dtype = options.compile = "auto"
    return options, saved


def expect_made_from(options, saved, made_from):
    """Check that a checkpoint, if there is one, is of this corpus and proxy: the symbols of another
    mean something else, and may be more or fewer. Raises UserError."""
    if saved and saved["made_from"] != made_from:
        raise UserError(f"{options.out} was trained on {saved['made_from']}, but "
                        f"--data={options.data} now gives {made_from}; restore that corpus and the "
                        "code that prepared it, or start a new run")


def restore_checkpoint(out, saved, model, optimizers):
    """Put a checkpoint into a model and its optimizers; what has been read of a whole one is
    removed from it. Raises UserError."""
    load_weights(out, saved, model)
    if "shards" in saved:
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict, set_optimizer_state_dict)
        state = get_optimizer_state_dict(model, optimizers)
        load_shards(out, saved, {"optimizers": state})
        set_optimizer_state_dict(model, optimizers, state)
    else:
        for optimizer, state in zip(optimizers, saved.pop("optimizers"), strict=True):
            optimizer.load_state_dict(state)


def drop_log_from(step, path):
    """Drop the lines of a log from `step` on: a resumed run goes on there, and writes them
    again."""
    rows = read_log(path) if path.exists() else []
    kept = [json.dumps(row) + "\n" for row in rows if row.get("step", step) < step]
    write_file(path, "".join(kept).encode())


# -----------------------------------------------------------------------------
# what a training writes


def save_shards(folder, model, optimizers):
    """Write this process's part of a sharded model and its optimizers. Raises UserError."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    model_state, optimizer_state = get_state_dict(model, optimizers)
    try:
        dcp.save({"model": model_state, "optimizers": optimizer_state}, checkpoint_id=folder,
                 no_dist=not dist.is_initialized())
    except (OSError, dcp.api.CheckpointException) as error:
        reason = str(error).splitlines()[-1]
        raise UserError(f"cannot write {folder}: {reason}") from None


def open_run(options, proxy_path):
    """Make the folder of a new run; returns its name. Raises UserError."""
    try:
        folder = new_folder(options)
        if proxy_path:
            shutil.copy(proxy_path, folder / "proxy.pt")
    except OSError as error:
        raise UserError(f"--out={options.out or 'out'}: {error.strerror}; expected a folder that "
                        "can be written to") from None
    # by these two lib/data.py knows the folder for a run, whose files are no text of a corpus
    write_file(folder / "log.jsonl", b"")
    write_file(folder / "config.json", json.dumps(describe(options), indent=1).encode())
    return str(folder)


def expect_wandb(project):
    """Check that wandb is there, if a project is named. Raises UserError."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb={project}: needs wandb; pip install wandb")


def totals(training):
    """What a training has come to, {name: number}, over all its processes."""
    return {
        "symbols": training.step * training.symbols_per_step,
        "text_bytes": round(training.processes.sum(training.text_bytes)),
        "flops": training.step * training.flops_per_step,
        "skipped": int(training.skipped),
        "seconds": round(time.time() - training.began),
    }


class Record:
    """What is written of a training: its folder, its log, its checkpoints, and what it says.

    All processes call it, as numbers are summed over them; the first one writes. A log line or a
    checkpoint that can't be written is said, and the training goes on.
    """
    def __init__(self, options, made_from, proxy_path, processes, saved):
        """Open the folder of a new run, or that of `saved`, a checkpoint. Raises UserError.

        made_from: the ids of corpus and proxy.
        """
        self.options = options
        self.made_from = made_from
        self.processes = processes
        # of the checkpoint on disk: its step, and of --fsdp the folder of its parts
        self.saved_step = saved["step"] if saved else None
        self.saved_shards = saved.get("shards") if saved else None
        if saved is None:
            options.out = processes.from_first(lambda: open_run(options, proxy_path))
        self.out = Path(options.out)
        if processes.is_first:
            for unfinished in self.out.glob("ckpt.pt.*.tmp"):  # by one that was killed as it saved
                unfinished.unlink()
            if saved:
                drop_log_from(saved["step"], self.out / "log.jsonl")
        self.wandb = None  # a run on Weights & Biases, a new one for each session
        if options.wandb and processes.is_first:
            import wandb  # an optional package
            self.wandb = wandb.init(project=options.wandb, name=self.out.name,
                                    config=asdict(options))

    def log(self, training, validation, say):
        """Add a line to log.jsonl. validation: {name: bits per byte}. say: prints a line."""
        processes, loss = self.processes, training.loss
        line = {
            "step": training.step,
            **totals(training),
            "r": round(training.mixer.r(training.step), 4),
            "pairs": training.mixer.probabilities(training.step)["pair"] > 0,
            "lr": training.learning_rate(),
            "loss": None if loss is None else processes.sum(loss.item()),
            **validation,
            "batch_seconds": round(training.batch_seconds),
        }
        if not processes.is_first:
            return
        try:
            with open(self.out / "log.jsonl", "a") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk, say, which should not end a training
            say(f"not written to log.jsonl: step {line['step']} ({error.strerror})")
        say(log_line(line))
        if self.wandb is not None:
            self.wandb.log(line, step=line["step"])

    def save(self, training):
        """Write the checkpoint, which appears in one piece. If it can't be written the old one
        stays. With --fsdp each process writes its part, into a folder that ckpt.pt names."""
        if training.step in (0, self.saved_step):
            return  # nothing that is new
        processes = self.processes
        state = {
            "version": VERSION,
            "step": training.step,
            "skipped": int(training.skipped),
            "text_bytes": processes.sum(training.text_bytes),
            "loss": processes.sum(training.loss.item()),
            "seconds": time.time() - training.began,
            "batch_seconds": training.batch_seconds,
            "made_from": self.made_from,
            "options": asdict(self.options),
            "config": asdict(training.config),
        }
        try:
            if self.options.fsdp:
                state["shards"] = f"shards-{training.step:07}"
                save_shards(self.out / state["shards"], training.model, training.optimizers)
            else:
                state["model"] = training.model.state_dict()
                state["optimizers"] = [optimizer.state_dict() for optimizer in training.optimizers]
            # one process writes, and what goes wrong there is raised in all of them
            processes.from_first(lambda: write_torch(self.out / "ckpt.pt", state))
            self.saved_step, self.saved_shards = training.step, state.get("shards")
        except UserError as error:
            processes.print0(f"checkpoint skipped: {error}")
        if processes.is_first:  # no checkpoint names these parts: they are old, or half written
            for folder in self.out.glob("shards-*"):
                if folder.name != self.saved_shards:
                    shutil.rmtree(folder, ignore_errors=True)

    def save_interrupted(self, training):
        """Save after Ctrl-C, and say how to go on."""
        self.save(training)
        outcome = "saved" if self.saved_step == training.step else "not saved"
        line = f"interrupted at step {training.step}, {outcome}."
        if self.saved_step is not None:
            line += f" To go on: python train.py --resume={self.out}"
        self.processes.print0(line)


def log_line(line):
    """A line of log.jsonl as the terminal shows it."""
    shown = [f"step {line['step']:6}"]
    for name in ("loss", "val_raw", "val_comp", "r"):
        if line.get(name) is not None:
            shown.append(f"{name} {line[name]:.3f}")
    if line["skipped"]:
        shown.append(f"skipped {line['skipped']}")
    if line["batch_seconds"] > 0.5 * line["seconds"]:  # then a faster device would not help
        shown.append(f"waits for batches: {line['batch_seconds']} of {line['seconds']} s")
    return "  ".join(shown)


def headline(training, options, views):
    """What is trained, on what, and for how long: the lines that are printed first."""
    model = training.model
    start = f"from step {training.step} on, " if training.step else ""
    optimizers = "Muon and AdamW" if options.muon else "AdamW"
    return (f"training {start}{options.size} in {options.out}: {model.n_params():,} parameters, "
            f"{model.n_params(embeddings=False):,} without embeddings, "
            f"{training.flops_per_step / training.symbols_per_step:.2e} FLOPs a symbol\n"
            f"on {training.processes.world_size} x {options.device}, {options.dtype}, "
            f"{optimizers}, compile {options.compile}: {training.steps:,} steps of "
            f"{training.symbols_per_step:,} symbols, {len(views):,} samples, "
            f"{views.text_bytes / 1e6:.1f} MB of text")


# -----------------------------------------------------------------------------
# what eval.py has measured

# the files whose code decides a number
MEASURING = ("eval.py", "sample.py", "mix.py", "model.py", "proxies.py", "data/tinycode.py",
             "lib/attention.py", "lib/data.py", "lib/judge.py", "lib/perturb.py", "lib/probes.py",
             "lib/proxy.py", "lib/sandbox.py", "lib/views.py", "lib/write_view.py")


def modified(path):
    """When a file was last changed, in seconds; 0 if it is not there."""
    return os.path.getmtime(path) if os.path.isfile(path) else 0.0


class Results:
    """The results.json of a run's folder.

    A result counts for its task and all settings, until there is another checkpoint, or a file that
    a setting names has changed.
    """
    def __init__(self, folder):
        self.folder = Path(folder)
        self.checkpoint = modified(self.folder / "ckpt.pt")
        self.time = time.time()  # of what is measured: a file that changes meanwhile is newer

    def read(self):
        """The rows that are kept of this checkpoint: [{"task", "settings", "results", ..}]. Raises
        UserError."""
        path = self.folder / "results.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return [row for row in rows if row["checkpoint"] == self.checkpoint]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return []  # not there, damaged, or an older version's
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    def kept(self, task, settings):
        """The results {name: number} of a task, None if it is to be measured."""
        named = [name for name, _ in parse_data(settings.get("data", ""))]
        newest_file = max(map(modified, [*named, settings.get("problems", "")]))
        for row in self.read():
            same = row["task"] == task and row["settings"] == settings
            if same and row["time"] >= newest_file:
                changed = [name for name in MEASURING if modified(ROOT / name) > row["time"]]
                if changed:
                    warn_once(f"{self.folder}: {task} is kept, and {', '.join(changed)} has "
                              "changed since; --again measures anew")
                return row["results"]
        return None

    def keep(self, task, settings, results):
        """Keep what was measured. Where it can't be written, stderr says so."""
        if not results:
            return
        new = {"task": task, "settings": settings, "results": results,
               "checkpoint": self.checkpoint, "time": self.time}
        try:
            # read again: another evaluation of the run may have added to them
            others = [row for row in self.read()
                      if (row["task"], row["settings"]) != (task, settings)]
            write_json(self.folder / "results.json", [*others, new])
        except UserError as error:
            warn_once(f"results not kept: {error}")


# -----------------------------------------------------------------------------
# the closing report

# a result, how its row begins, and what the row says
ROWS = [
    ("symbols", "trained on", "{symbols:,} symbols, {text_bytes:,} bytes of text, {flops:.2e} "
     "FLOPs, in {seconds} s"),
    ("bpb", "bits per byte", "{bpb:.4f} of held-out text, read as raw bytes"),
    ("bpb_comp", "bits per byte", "{bpb_comp:.4f} of held-out text, read as the proxy's symbols"),
    ("pass@1", "pass@1, pass@10", "{pass@1:.3f}, {pass@10:.3f} of completions in {read_as}, on "
     "problems of held-out pairs of operations"),
    ("facts_any", "fact recall", "{facts_any:.3f} of those that may be seen raw; chance "
     "{facts_chance:.3f}"),
    ("facts_comp", "fact recall", "{facts_comp:.3f} of those only seen compressed; chance "
     "{facts_chance:.3f}"),
]


def print_report(report, options, seconds):
    """The closing report, and commands to go on with. seconds: since this program began."""
    print(f"\n{options.out}: proxy {options.proxy}, mix {options.mix}, {options.size}, "
          f"seed {options.seed}")
    reads_symbols = "bpb_comp" in report
    read_as = "the proxy's symbols" if reads_symbols else "raw bytes"
    for result, name, text in ROWS:
        if result in report:
            print(f"  {name:16} {text.format(read_as=read_as, **report)}")
    what = "this session" if options.resume else "whole run"
    print(f"  {what:16} {seconds:.0f} s")

    out = shlex.quote(options.out)
    prompt = "def add_up(values):" if options.data == "tinycode" else "import "
    print("next:")
    if options.mix < 1:  # else it reads no raw bytes
        print(f"  python sample.py {out} --prompt='{prompt}'")
    print(f"  python eval.py {out}" + " --view=comp" * reads_symbols)
    if options.proxy != "none" and not options.resume:
        print("  python train.py --proxy=none      # the baseline: raw bytes only, and your flags")
