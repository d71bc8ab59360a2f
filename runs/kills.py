"""
A training that is killed (kill -9) at 20 random moments and resumed each time ends in the same weights, bit for bit, as one
that was not. About ten minutes on two cores.

    python runs/kills.py
    python runs/kills.py --kills=5 --proxy=none      other flags are train.py's
"""
import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent


def start(*flags):
    return subprocess.Popen([sys.executable, "train.py", *flags], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(*flags):
    errors = start(*flags).communicate()[1].decode()
    if "error:" in errors or "Traceback" in errors:
        sys.exit(errors[-800:])


def tensors(tree):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for branch in (tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []) for t in tensors(branch)]


def log_of(out):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (out / "log.jsonl").read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    args, more = parser.parse_known_args()
    flags = ["--proxy=tokenizer", "--steps=300", "--block_size=192", "--batch_size=4", "--eval_rows=2", "--eval_every=7",
             "--report=none", *more]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(*flags, f"--out={whole}")
        rng, steps, done = random.Random(0), [], 0
        while done < args.kills:
            has_checkpoint = (killed / "ckpt.pt").exists()
            job = start(f"--resume={killed}") if has_checkpoint else start(*flags, f"--out={killed}")
            began, lasts = time.time(), rng.uniform(0.5, 9)
            while job.poll() is None and time.time() - began < lasts:
                time.sleep(0.01)
            if job.poll() is None:
                job.send_signal(signal.SIGKILL)
                job.wait()
                done += 1
                if (killed / "ckpt.pt").exists():
                    steps.append(torch.load(killed / "ckpt.pt", weights_only=True)["step"])
            elif job.returncode:
                sys.exit(job.stderr.read().decode()[-800:])
            else:  # it came to its end first: once more
                (killed / "ckpt.pt").unlink()
        finish(f"--resume={killed}") if (killed / "ckpt.pt").exists() else finish(*flags, f"--out={killed}")
        one, two = (torch.load(out / "ckpt.pt", weights_only=True) for out in (whole, killed))
        same = all(a.equal(b) for a, b in zip(tensors([one["model"], one["optimizer"]]), tensors([two["model"], two["optimizer"]])))
        print(f"{done} times kill -9, with checkpoints at steps {steps}: weights and optimizer the same, bit for bit: {same}; "
              f"log the same: {log_of(whole) == log_of(killed)}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
