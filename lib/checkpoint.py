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
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from lib import store
from lib.corpus import ROOT
from lib.options import UserError

# one process reads and writes the parts of a sharded run without torch.distributed, as it should
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

RUN_FILES = ("ckpt.pt", "log.jsonl")  # a folder with one of these holds a run
ALL_FILES = (*RUN_FILES, "config.json", "proxy.pt", "report.json", "results.json")


# -----------------------------------------------------------------------------
# folders


def holds_run(folder):
    return any((folder / name).exists() for name in RUN_FILES)


def check_folder(out, overwrite):
    """Refuse a folder that holds a run. Raises UserError."""
    if not overwrite and holds_run(Path(out)):
        has_checkpoint = (Path(out) / "ckpt.pt").exists()
        resume = f"go on with --resume={out}, " if has_checkpoint else ""
        raise UserError(f"--out={out}: there is a run in it; {resume}give another name, or replace "
                        "it with --overwrite")


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
        number = 1
        while True:
            folder = Path(default if number == 1 else f"{default}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UserError(f"--out={out or default}: {error.strerror}; expected a folder that can be "
                        "made") from None


def remove_run(folder):
    """Remove what an earlier run left in a folder; other files stay."""
    for name in ALL_FILES:
        (folder / name).unlink(missing_ok=True)
    for parts in [*folder.glob("shards-*"), folder / "completions"]:
        shutil.rmtree(parts, ignore_errors=True)


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


def newest_run():
    """The folder under out/ with the newest checkpoint. Raises UserError if there is none."""
    checkpoints = sorted(Path("out").glob("*/ckpt.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError("no run under out/: train one first (python train.py), or name its folder")
    return checkpoints[-1].parent


# -----------------------------------------------------------------------------
# checkpoints


def load_checkpoint(run, device="cpu"):
    """What train.py saved in the folder `run`, a dict. Raises UserError if there is nothing
    whole."""
    path = Path(run) / "ckpt.pt"
    if not path.exists():
        raise UserError(f"{run}: no run here, expected a file ckpt.pt in it, as train.py writes")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"config", "options", "step"} - checkpoint.keys()
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is corrupt or truncated ({type(error).__name__}); restore it or "
                        "train again") from None
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: another program wrote it")
    return checkpoint


def save_checkpoint(out, model, optimizer, about, sharded, processes):
    """Write out/ckpt.pt, which appears in one piece or not at all. Raises UserError.

    about: what it holds besides model and optimizer, {"step": .., ..}. Sharded, each process writes
    its part into a folder that ckpt.pt names.
    """
    if sharded:
        about = about | {"shards": f"shards-{about['step']:07}"}
        save_shards(out / about["shards"], model, optimizer, processes)
    else:
        about = about | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if processes.is_first:
        store.write_torch(out / "ckpt.pt", about)
        for folder in out.glob("shards-*"):  # of earlier checkpoints
            if folder.name != about.get("shards"):
                shutil.rmtree(folder)


def restore_checkpoint(out, checkpoint, model, optimizer):
    """Put a checkpoint into a model and its optimizer. Raises UserError."""
    if "shards" not in checkpoint:
        model.load_state_dict(checkpoint["model"])
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
        raise UserError(f"cannot write {folder}: {error}") from None


def load_shards(run, checkpoint, state):
    """Read into `state`, {"model": a state dict, ..}, what the processes of a sharded run wrote.

    The number of processes then and now does not matter. Raises UserError.
    """
    import torch.distributed.checkpoint as dcp
    folder = Path(run) / checkpoint["shards"]
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except (OSError, dcp.api.CheckpointException) as error:
        raise UserError(f"{folder} is corrupt or incomplete ({type(error).__name__}); restore it "
                        "or train again") from None


# -----------------------------------------------------------------------------
# the log


def drop_log_from(step, path):
    """Drop the lines of a log from `step` on: a resumed run goes on there, and writes them
    again."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            is_whole = line.endswith("}")  # the last one may be half of one
            if is_whole and json.loads(line)["step"] < step:
                kept.append(line + "\n")
    store.write_file(path, "".join(kept).encode())
