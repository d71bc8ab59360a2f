"""
A training that is killed (kill -9) at 20 random moments and resumed each time ends in the same
weights, optimizer and log, bit for bit, as one that was not. About ten minutes on two cores.

    python runs/kills.py
    python runs/kills.py --kills=5 --proxy=none      other flags are train.py's
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--proxy=tokenizer", "--steps=300", "--block_size=192", "--batch_size=4", "--eval_rows=2",
         "--eval_every=7", "--report=none"]
SECONDS = (0.5, 9)  # a training lives for a random time between these

# -----------------------------------------------------------------------------
# trainings


def start(flags, out):
    """Start a training in the folder `out`, or go on with the one that has a checkpoint there."""
    if (out / "ckpt.pt").exists():
        flags = [f"--resume={out}"]
    else:
        flags = [*flags, f"--out={out}", "--overwrite"]  # of one that was killed too early
    return subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(job):
    """Wait for a training to end by itself. If it failed, end with what it said."""
    errors = job.communicate()[1].decode()
    if job.returncode:
        sys.exit(errors[-800:])


def kill_after(job, seconds):
    """Kill a training if it still runs after so many seconds. Returns whether it did."""
    try:
        job.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()
        return True


def train_with_kills(flags, out, n_kills):
    """Train to the end, killed `n_kills` times. Returns the steps at which it was resumed."""
    rng = random.Random(0)
    steps = []
    killed = 0
    while killed < n_kills:
        job = start(flags, out)
        if kill_after(job, rng.uniform(*SECONDS)):
            killed += 1
            if (out / "ckpt.pt").exists():
                steps.append(torch.load(out / "ckpt.pt", weights_only=True)["step"])
        else:
            finish(job)
            (out / "ckpt.pt").unlink()  # it came to its end first: once more
    finish(start(flags, out))
    return steps


# -----------------------------------------------------------------------------
# comparing them


def tensors(tree):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if not isinstance(tree, list):
        return []
    found = []
    for branch in tree:
        found += tensors(branch)
    return found


def state_of(out):
    """The weights and the optimizer's tensors of a run."""
    checkpoint = torch.load(out / "ckpt.pt", weights_only=True)
    return tensors([checkpoint["model"], checkpoint["optimizer"]])


def log_of(out):
    """The lines of a run's log, without the time that they took."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    options, more = parser.parse_known_args()
    flags = FLAGS + more

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(start(flags, whole))
        steps = train_with_kills(flags, killed, options.kills)

        one, other = state_of(whole), state_of(killed)
        same_state = len(one) == len(other) and all(a.equal(b) for a, b in zip(one, other))
        same_log = log_of(whole) == log_of(killed)

    print(f"{options.kills} times kill -9, with checkpoints at steps {steps}")
    print(f"weights and optimizer the same, bit for bit: {same_state}; log the same: {same_log}")
    sys.exit(not (same_state and same_log))


if __name__ == "__main__":
    main()
