"""
README, "Your own data": what preparing a large corpus takes, and that nothing can spoil it. Minutes on two cores.

    python runs/big.py                            1 GB through the tokenizer: speed, memory, cores; then ten times kill -9
    python runs/big.py --mb=30 --proxy=neural     the same of other sizes and proxies

The corpus is the standard library, over and over, each time with other names in it.
"""
import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def write_corpus(path, n_bytes):
    rows = [json.loads(line) for line in (HERE / "data/stdlib/corpus.jsonl").read_text().splitlines()]
    rng, written, copy = random.Random(0), 0, 0
    with open(path, "w") as f:
        while written < n_bytes:
            names = {}
            for row in rows:
                words = set(rng.sample(sorted(set(re.findall(r"\b[a-z]{4,}\b", row["text"]))) or ["x"], 1))
                text = re.sub(r"\b(%s)\b" % "|".join(words), lambda m: f"{m[0]}_{names.setdefault(m[0], len(names))}", row["text"])
                f.write(json.dumps({"name": f"{copy}/{row['name']}", "text": text}) + "\n")
                written += len(text)
            copy += 1
    return written


def tree(pid):
    """The process and all below it."""
    below = [pid]
    for parent in below:
        try:
            below += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except OSError:
            pass
    return below


def usage(pids):
    """(memory in MB, shared pages counted once; CPU seconds)"""
    memory = seconds = 0
    for pid in pids:
        try:
            memory += int(re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) / 1024
            seconds += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15])) / 100
        except (OSError, TypeError):
            pass
    return memory, seconds


def start(args, data, cache):
    return subprocess.Popen([sys.executable, "mix.py", f"--data={data}", f"--proxy={args.proxy}", "--contexts=1"], cwd=HERE,
                            env=os.environ | {"NANOPROXY_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def phase(cache):
    if not list(cache.glob("*/*.pt")):
        return "fitting the proxy"
    return "encoding" if list(cache.glob("*/samples-*/meta.json")) else "writing samples"


def digests(cache):
    return {str(path.relative_to(cache)): hashlib.file_digest(open(path, "rb"), "sha256").hexdigest()
            for path in sorted(cache.rglob("*")) if path.is_file() and path.name != "lock" and path.suffix != ".pt"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--proxy", default="tokenizer")
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    if not (HERE / "data/stdlib/corpus.jsonl").exists():
        subprocess.run([sys.executable, str(HERE / "data/stdlib.py")], check=True)
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "big.jsonl", Path(folder) / "cache"
        size = write_corpus(data, args.mb * 1e6) / 1e6
        job, began, last, spent = start(args, data, cache), time.time(), (0.0, 0.0), {}
        while job.poll() is None:
            memory, cpu = usage(tree(job.pid))
            now, name = time.time() - began, phase(cache)
            for name in (name, "all"):
                wall, busy, peak = spent.get(name, (0.0, 0.0, 0.0))
                spent[name] = wall + now - last[0], busy + max(0.0, cpu - last[1]), max(peak, memory)
            last = now, max(cpu, last[1])
            time.sleep(0.1)
        print(f"{size:.0f} MB through {args.proxy}, {os.cpu_count()} cores:")
        spent["all"] = spent.pop("all")
        for name, (wall, busy, peak) in spent.items():
            print(f"  {name:18} {wall:6.1f} s {size / wall:8.2f} MB/s {busy / wall / os.cpu_count():5.0%} of the cores, at most "
                  f"{peak:4.0f} MB of memory")
        whole, rng, other = digests(cache), random.Random(0), Path(folder) / "again"
        for kill in range(args.kills):
            job = start(args, data, other)
            time.sleep(rng.uniform(0, 0.5 * last[0]))
            for pid in tree(job.pid) if kill % 2 else [job.pid]:  # the workers, too, or the parent alone
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            job.wait()
        if args.kills:
            job = start(args, data, other)
            error = job.communicate()[1]
            same = digests(other) == whole
            print(f"after {args.kills} times kill -9, exit status {job.returncode}, files byte for byte the same: {same}")
            if job.returncode or not same:
                sys.exit(error.decode()[-500:])


if __name__ == "__main__":
    main()
