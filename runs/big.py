"""
What preparing a large corpus takes, and that nothing can spoil it. Minutes on two cores.

    python runs/big.py                            1 GB through the tokenizer, then ten times kill -9
    python runs/big.py --mb=30 --proxy=neural     the same of other sizes and proxies

It prints speed, memory and the use of the cores. The corpus is the standard library, over and over,
each time with other names in it. Needs Linux, whose /proc it reads.
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STDLIB = ROOT / "data" / "stdlib" / "corpus.jsonl"
TICKS = os.sysconf("SC_CLK_TCK")  # of /proc's clock, in a second

# -----------------------------------------------------------------------------
# the corpus


def with_other_names(text, names, rng):
    """A module in which one word, drawn from it, has a number added wherever it stands.

    names: {word: its number} of this copy of the library; words that are new to it are added.
    """
    words = sorted(set(re.findall(r"\b[a-z]{4,}\b", text)))
    word = rng.choice(words) if words else "x"
    number = names.setdefault(word, len(names))
    return re.sub(rf"\b{word}\b", f"{word}_{number}", text)


def write_corpus(path, n_bytes):
    """Write at least so many bytes of text to `path`. Returns how many."""
    rows = [json.loads(line) for line in STDLIB.read_text().splitlines()]
    rng = random.Random(0)
    written = copy = 0
    with open(path, "w") as f:
        while written < n_bytes:
            names = {}
            for row in rows:
                text = with_other_names(row["text"], names, rng)
                f.write(json.dumps({"name": f"{copy}/{row['name']}", "text": text}) + "\n")
                written += len(text)
            copy += 1
    return written


# -----------------------------------------------------------------------------
# processes and what they use


def start(options, data, cache):
    """Start preparing the corpus `data` in a cache of its own."""
    command = [sys.executable, "mix.py", f"--data={data}", f"--proxy={options.proxy}",
               "--contexts=1"]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"NANOPROXY_CACHE": str(cache)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def family(pid):
    """The process and all below it, a list of ids."""
    pids = [pid]
    for parent in pids:  # grows while it is read
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue  # it has ended
        pids += [int(child) for child in children.split()]
    return pids


def memory_of(pid):
    """MB of memory; pages that are shared count in equal parts for all that share them."""
    smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss: +(\d+)", smaps, re.M)
    return int(match[1]) / 1024 if match else 0.0


def cpu_seconds_of(pid):
    """CPU seconds of a process and of its children that have ended."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat.rsplit(")", 1)[1].split()
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS


def usage(pids):
    """(MB of memory, CPU seconds) of some processes together."""
    memory = seconds = 0.0
    for pid in pids:
        try:
            seconds += cpu_seconds_of(pid)  # first: one that has ended, unnoticed yet, still has it
            memory += memory_of(pid)
        except OSError:
            pass  # it has ended
    return memory, seconds


# -----------------------------------------------------------------------------
# the measurement


@dataclass
class Phase:
    wall: float = 0.0    # seconds
    busy: float = 0.0    # CPU seconds
    memory: float = 0.0  # the most, in MB

    def add(self, wall, busy, memory):
        self.wall += wall
        self.busy += busy
        self.memory = max(self.memory, memory)


def phase_of(cache, proxy):
    """What is being done now, by the files that are there."""
    if proxy != "none" and not list(cache.glob(f"*/{proxy}*.pt")):  # there is a byte LM before
        return "fitting, samples"  # which another process writes meanwhile
    if not list(cache.glob("*/samples-*/meta.json")):
        return "writing samples"
    return "encoding"


def watch(job, cache, proxy):
    """{name: Phase} of a preparation, from now to its end."""
    phases = {}
    whole = Phase()
    last_time, last_cpu = time.time(), 0.0
    while job.poll() is None:
        memory, cpu = usage(family(job.pid))
        now = time.time()
        busy = max(0.0, cpu - last_cpu)  # a process that has just ended is missing for a moment
        phase = phases.setdefault(phase_of(cache, proxy), Phase())
        for part in (phase, whole):
            part.add(now - last_time, busy, memory)
        last_time, last_cpu = now, max(cpu, last_cpu)
        time.sleep(0.1)
    return phases | {"all": whole}


def print_phases(phases, megabytes):
    for name, phase in phases.items():
        share = phase.busy / phase.wall / os.cpu_count()
        print(f"  {name:18} {phase.wall:6.1f} s {megabytes / phase.wall:8.2f} MB/s "
              f"{share:5.0%} of the cores, at most {phase.memory:4.0f} MB of memory")


# -----------------------------------------------------------------------------
# kill -9


def digests(cache):
    """{path: hash} of the files that a preparation has written, but for locks and proxies."""
    found = {}
    for path in sorted(cache.rglob("*")):
        if path.is_file() and path.name != "lock" and path.suffix != ".pt":
            with open(path, "rb") as f:
                found[str(path.relative_to(cache))] = hashlib.file_digest(f, "sha256").hexdigest()
    return found


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended with its parent


def prepare_with_kills(options, data, cache, longest):
    """Prepare a corpus, killed again and again within `longest` seconds. Returns the last job."""
    rng = random.Random(0)
    for number in range(options.kills):
        job = start(options, data, cache)
        time.sleep(rng.uniform(0, longest))
        workers_too = number % 2 == 1  # or the parent alone
        kill(family(job.pid) if workers_too else [job.pid])
        job.communicate()
    return start(options, data, cache)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--proxy", default="tokenizer")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    if not STDLIB.exists():
        subprocess.run([sys.executable, str(ROOT / "data" / "stdlib.py")], check=True)

    with tempfile.TemporaryDirectory() as folder:
        data, cache, other = (Path(folder) / name for name in ("big.jsonl", "cache", "again"))
        megabytes = write_corpus(data, options.mb * 1e6) / 1e6
        time.sleep(3)  # lib/files.py remembers no file that was just written
        job = start(options, data, cache)
        phases = watch(job, cache, options.proxy)
        if job.returncode:
            sys.exit(job.stderr.read().decode()[-500:])
        print(f"{megabytes:.0f} MB through {options.proxy}, {os.cpu_count()} cores:")
        print_phases(phases, megabytes)
        if options.kills:
            job = prepare_with_kills(options, data, other, longest=phases["all"].wall / 2)
            errors = job.communicate()[1].decode()
            differing = {path for path, _ in digests(other).items() ^ digests(cache).items()}
            print(f"after {options.kills} times kill -9, exit status {job.returncode}, "
                  f"files byte for byte the same: {not differing}")
            if job.returncode or differing:
                sys.exit(f"{sorted(differing)} {errors[-500:]}")


if __name__ == "__main__":
    main()
