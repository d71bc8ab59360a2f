"""
Run folders and checkpoints, whole or in the parts that sharded processes wrote. A run is never
overwritten unless its user says so.

    out/NAME/
        config.json     what the run was: command line, commit, versions, machine, options
        log.jsonl       a line for each validation
        ckpt.pt         the newest checkpoint; of --fsdp it names the folder of its parts
        proxy.pt        the compressor that the model was trained with; inference does without
        report.json     the closing report
        results.json    what eval.py has measured (lib/results.py)

train.py writes all but the last; sample.py and eval.py read checkpoints.
"""
import importlib.util
import json
import os
import pickle
import platform
import shlex
import shutil
import subprocess
import sys
import torch
import torch.distributed as dist
import warnings
import zipfile
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from lib import store
from lib.corpus import ROOT
from lib.options import UserError
from lib.rows import read_log
from dataclasses import asdict


# one process reads and writes the parts of a sharded run without torch.distributed, as it should
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

VERSION = 1  # of checkpoints: one more when what they hold gets another meaning

RUN_FILES = ("ckpt.pt", "log.jsonl")  # a folder with one of these holds a run
FIRST_FILES = ("config.json", "proxy.pt")  # written before the first validation
ALL_FILES = (*RUN_FILES, *FIRST_FILES, "report.json", "results.json")


# -----------------------------------------------------------------------------
# folders


def holds_run(folder):
    return any((folder / name).exists() for name in RUN_FILES)


def files_of_run(folder):
    """The files and folders of a run that there are in a folder, a list of paths."""
    files = [folder / name for name in ALL_FILES]
    folders = [*folder.glob("shards-*"), folder / "completions"]
    return [path for path in files + folders if path.exists()]


def was_begun(folder):
    """Whether the config.json in a folder is one that train.py wrote."""
    try:
        return {"command", "versions"} <= json.loads((folder / "config.json").read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def check_folder(out, overwrite):
    """Refuse what is no folder, and one that holds a run, or files of such names. What a run has
    left that ended before its first validation is no obstacle. Raises UserError."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={out}: is a file; expected a folder")
    if overwrite:
        return
    if holds_run(folder):
        resume = f"go on with --resume={out}, " if (folder / "ckpt.pt").exists() else ""
        raise UserError(f"--out={out}: there is a run in it; {resume}give another name, or replace "
                        "it with --overwrite")
    in_the_way = files_of_run(folder)
    if was_begun(folder):
        in_the_way = [path for path in in_the_way if path.name not in FIRST_FILES]
    if in_the_way:
        raise UserError(f"--out={out}: a run would replace {in_the_way[0].name} in it; give "
                        "another name, or say --overwrite")


def new_folder(out, default, overwrite=False):
    """Make the folder of a new run, and return it: `out`, or if that is empty the first of
    default, default-2, default-3 .. that does not exist. Raises UserError."""
    try:
        if out:
            check_folder(out, overwrite)
            folder = Path(out)
            folder.mkdir(parents=True, exist_ok=True)
            remove_run(folder)
            return folder
        Path(default).parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = Path(default if number == 1 else f"{default}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UserError(f"--out={out or default}: {error.strerror}; expected a folder that can be "
                        "made") from None


def remove_run(folder):
    """Remove what an earlier run left in a folder; other files stay."""
    for path in files_of_run(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def describe(options):
    """What a run is: a dict for config.json."""
    def git(*arguments):
        try:
            command = ["git", "-C", str(ROOT), *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            return result.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None  # no git, or no repository

    changes = git("status", "--porcelain", "--untracked-files=no")
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "tiktoken"):
        versions[package] = version(package)
    return {
        "command": sys.argv,
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": None if changes is None else changes != "",
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
    """The folder under out/ with the newest checkpoint. Raises UserError if there is none."""
    return all_runs()[-1]


# -----------------------------------------------------------------------------
# reading a checkpoint


def check_archive(path):
    """Raise a UserError where a file is not what `torch.save` writes, a whole zip archive."""
    with open(path, "rb") as file:
        begins_as_one = file.read(2) == b"PK"
        is_whole = zipfile.is_zipfile(file)  # looks for the end, which lists what is inside
    if begins_as_one and not is_whole:
        raise UserError(f"{path} is corrupt or truncated: its end is missing; restore it or train "
                        "again")
    if not is_whole:
        raise UserError(f"{path} is no checkpoint: another program wrote it")


def read_torch_file(path):
    """What `torch.save` wrote to a file. Raises UserError, in the system's or torch's words."""
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words advise to run what is in the file
        raise UserError(f"{path}: expected tensors, numbers and text, found other objects; another "
                        "program wrote it, or it is damaged") from None
    except (OSError, RuntimeError, MemoryError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None


def first_line(error):
    """An exception's own words, without the stack that torch adds; its name if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def load_checkpoint(run):
    """What train.py saved in the folder `run`, a dict. Raises UserError if there is nothing
    whole, or if another program or version wrote it."""
    path = Path(run) / "ckpt.pt"
    if not path.exists():
        raise UserError(f"{run}: no run here, expected a file ckpt.pt in it, as train.py writes")
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: expected a dict, found {type(checkpoint).__name__}; another "
                        "program wrote it")
    missing = {"config", "options", "step"} - checkpoint.keys()
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: another program wrote it")
    if checkpoint.get("version") != VERSION:
        found = f"version {checkpoint['version']}" if "version" in checkpoint else "no version"
        raise_other_version(path, f"it has {found}, expected version {VERSION}")
    return checkpoint


def raise_other_version(path, difference):
    raise UserError(f"{path} was written by another version of nanoproxy ({difference}); "
                    "train again")


def check_same(run, what, expected, found):
    """Raise a UserError if the names of `what` in a run's checkpoint are not those expected."""
    missing, unknown = expected - found, found - expected
    if missing:
        raise_other_version(Path(run) / "ckpt.pt", f"no {min(missing)} in its {what}")
    if unknown:
        raise_other_version(Path(run) / "ckpt.pt", f"{min(unknown)} in its {what}")


def restore_options(run, what, dataclass, values):
    """An instance of `dataclass` with the values, a dict, from a run's checkpoint.

    Its fields are all there, and no others: an option that one version lacks has no value that
    would do for both. what: "options" or the like. Raises UserError.
    """
    names = {field.name for field in fields(dataclass)}
    check_same(run, what, names, values.keys())
    return dataclass(**values)


def restore_weights(run, model, weights):
    """Put the weights from a run's checkpoint into a model. Raises UserError if they don't fit."""
    expected = model.state_dict()
    check_same(run, "weights", expected.keys(), weights.keys())
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise_other_version(Path(run) / "ckpt.pt", f"its {name} is {list(weight.shape)}, "
                                f"expected {list(expected[name].shape)}")
    model.load_state_dict(weights)


# -----------------------------------------------------------------------------
# writing a checkpoint, and going on from one


def save_checkpoint(out, model, optimizer, about, sharded, processes):
    """Write out/ckpt.pt, which appears in one piece or not at all. Raises UserError.

    about: what it holds besides model and optimizer, {"step": .., ..}. Sharded, each process writes
    its part into a folder that ckpt.pt names.
    """
    about = about | {"version": VERSION}
    if sharded:
        about = about | {"shards": f"shards-{about['step']:07}"}
        save_shards(out / about["shards"], model, optimizer, processes)
    else:
        about = about | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if processes.is_first:
        try:
            store.write_torch(out / "ckpt.pt", about)
        except UserError:
            if sharded:  # nothing names these
                shutil.rmtree(out / about["shards"], ignore_errors=True)
            raise
        for folder in out.glob("shards-*"):  # of earlier checkpoints
            if folder.name != about.get("shards"):
                shutil.rmtree(folder, ignore_errors=True)


def restore_checkpoint(out, checkpoint, model, optimizer):
    """Put a checkpoint into a model and its optimizer. Raises UserError."""
    if "shards" not in checkpoint:
        restore_weights(out, model, checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    model_state, optimizer_state = get_state_dict(model, optimizer)
    load_shards(out, checkpoint, {"model": model_state, "optimizer": optimizer_state})
    set_state_dict(model, optimizer, model_state_dict=model_state,
                   optim_state_dict=optimizer_state)


# torch.distributed.checkpoint takes a second to import, which sample.py can do without


def save_shards(folder, model, optimizer, processes):
    """Write this process's part of a sharded model and its optimizer. Raises UserError."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    model_state, optimizer_state = get_state_dict(model, optimizer)
    try:
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder,
                 no_dist=processes.world_size == 1)
    except (OSError, dcp.api.CheckpointException) as error:
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {cause_of(error)}") from None


def cause_of(error):
    """The words of an OSError, or of the first one that a CheckpointException collected."""
    failures = getattr(error, "failures", None)  # {process: (exception, stack)}
    if failures:
        error, _ = failures[min(failures)]
    return first_line(error)


def load_shards(run, checkpoint, state):
    """Read into `state`, {"model": a state dict, ..}, what the processes of a sharded run wrote.

    The number of processes then and now does not matter. Raises UserError.
    """
    import torch.distributed.checkpoint as dcp
    folder = Path(run) / checkpoint["shards"]
    if not (folder / ".metadata").exists():  # written last
        raise UserError(f"{folder} is corrupt or incomplete: no .metadata in it; restore it or "
                        "train again")
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except (OSError, dcp.api.CheckpointException) as error:
        raise UserError(f"{folder} is corrupt or incomplete, or cannot be read: {cause_of(error)}; "
                        "restore it or train again") from None


# -----------------------------------------------------------------------------
# the log


def drop_log_from(step, path):
    """Drop the lines of a log from `step` on: a resumed run goes on there, and writes them
    again."""
    kept = []
    if path.exists():
        kept = [line + "\n" for line, row in read_log(path) if row.get("step", step) < step]
    store.write_file(path, "".join(kept).encode())


def log_line(line):
    """A line of log.jsonl as the terminal shows it."""
    shown = [f"step {line['step']:6}"]
    for name in ("loss", "val_raw", "val_comp", "r"):
        if line.get(name) is not None:
            shown.append(f"{name} {line[name]:.3f}")
    if line["skipped"]:
        shown.append(f"skipped {line['skipped']}")
    return "  ".join(shown)


def print_report(report, options, seconds):
    """The closing report. seconds: since this program began. The training's, report["seconds"], are
    a part of it, but of a resumed run they count from its beginning."""
    read_as = "the proxy's symbols" if "bpb_comp" in report else "raw bytes"
    rows = [("trained on", f"{report['symbols']:,} symbols, {report['text_bytes']:,} bytes of "
             f"text, {report['flops']:.2e} FLOPs, in {report['seconds']:.0f} s")]
    for key in ("bpb", "bpb_comp"):
        if key in report:
            rows.append(("bits per byte", f"{report[key]:.4f} of held-out text, read as {read_as}"))
    if "pass@1" in report:
        rows.append(("pass@1, pass@10", f"{report['pass@1']:.3f}, {report['pass@10']:.3f} of "
                     f"completions in {read_as}, on problems of held-out pairs of operations"))
    shares = []
    for view, which in (("any", "that may be seen raw"), ("comp", "only seen compressed")):
        if f"facts_{view}" in report:
            shares.append(f"{report[f'facts_{view}']:.3f} of those {which}")
    if shares:
        rows.append(("fact recall", f"{', '.join(shares)}; chance 0.000"))
    rows.append(("this session" if options.resume else "whole run", f"{seconds:.0f} s"))
    print(f"\n{options.out}: proxy {options.proxy}, mix {options.mix}, {options.size}, "
          f"seed {options.seed}")
    for name, value in rows:
        print(f"  {name:16} {value}")
    print_next(options, view="comp" if "bpb_comp" in report else "raw")


# flags of a run that its baseline of raw bytes does not have
NOT_OF_A_BASELINE = ("proxy", "tokenizer", "blind", "zdict", "bits", "fuzzy", "segment", "mix",
                     "mix_start", "mix_warmup", "raw_phase", "schedule", "pairs", "mode", "out",
                     "overwrite")


def baseline_flags(options):
    """The flags that were given and that a baseline should share, as a shell takes them."""
    flags = ""
    for name in options.given:
        value = getattr(options, name)
        if name in NOT_OF_A_BASELINE:
            continue
        if isinstance(value, bool):
            flags += f" --{name}" if value else f" --no-{name}"
        else:
            text = f"{value:.12g}" if isinstance(value, float) else str(value)
            flags += f" --{name}={shlex.quote(text)}"
    return flags


def print_next(options, view):
    """Commands to go on with. view: which the report has measured."""
    is_tinycode = options.data == "tinycode"
    prompt = "def add_up(values):" if is_tinycode else "import "
    print("next:")
    out = shlex.quote(options.out)
    print(f"  python sample.py {out} --prompt='{prompt}'")
    print(f"  python eval.py {out}{' --view=comp' if view == 'comp' else ''}")
    if options.proxy != "none" and not options.resume:  # a resumed run's flags are unknown
        print(f"  python train.py --proxy=none{baseline_flags(options)}"
              "      # the baseline: raw bytes only")


# -----------------------------------------------------------------------------
# Weights & Biases, an optional package


def expect_wandb(project):
    """Check that wandb is there, if a project is named. Raises UserError."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb={project}: needs wandb; pip install wandb")


def start_wandb(options):
    """A run on Weights & Biases, named as its folder is; its `log` takes a dict of numbers."""
    import wandb
    return wandb.init(project=options.wandb, name=Path(options.out).name, config=asdict(options))
