"""
The options of eval.py, and what each of its results depends on.
"""
import re
from dataclasses import dataclass

from lib.parallel import resolve_device
from lib.options import UserError, expect, expect_one_of, flag

SAMPLES = 1000  # held-out samples that bits per byte are measured on by default

TASKS = {  # what can be measured, and the options that each depends on
    "bpb": ("view", "limit", "context", "stride", "data"),
    "pass": ("view", "n", "k", "temperature", "max_new", "timeout", "memory", "seed"),
    "robust": ("view", "perturbations", "max_new", "timeout", "memory", "limit", "seed"),
    "translate": ("timeout", "memory"),
    "facts": ("view",),
}


@dataclass
class EvalOptions:
    runs: tuple = flag((), "folders of runs [the newest under out/]", positional=True, nargs="*")
    task: str = flag("", f"what to measure, with commas: {', '.join(TASKS)}, or all [bpb, and "
                     "pass and facts for tinycode]")
    again: bool = flag(False, "results measured again that are in a run's results.json")
    view: str = flag("raw", "what is read and written: raw bytes, or the proxy's symbols, as by a "
                     "tokenizer model", choices=("raw", "comp"))
    all: bool = flag(False, "all runs under out/, the newest last, with the options in which they "
                     "differ")
    # bits per byte
    limit: int = flag(0, "most held-out samples for bpb, most problems for pass, robust and "
                      f"translate, spread evenly; 0: {SAMPLES:,} samples, all problems")
    context: int = flag(0, "bpb: symbols in a window over whole documents; training shows half "
                       "a context at once. 0: training's samples")
    stride: int = flag(0, "bpb: symbols from one window to the next [half of --context]")
    data: str = flag("", "bpb: corpora, with commas [the run's own]")
    batch_size: int = flag(64, "bpb: samples at once; the result does not depend on it")
    # completions and their tests
    problems: str = flag("", "pass, robust, translate: file in the format of HumanEval, HumanEval+ "
                         "or MBPP+ [tinycode's]")
    n: int = flag(10, "pass: completions of each problem")
    k: str = flag("1,10", "pass: the k of pass@k, with commas")
    temperature: float = flag(None, "pass: temperature; 0 is greedy [0.2, and 0 where n is 1]",
                              type=float)
    max_new: int = flag(256, "pass, robust: bytes of a completion at most")
    timeout: float = flag(3.0, "seconds for a completion's tests, more where the canonical "
                          "solution needs it")
    memory: int = flag(4096, "megabytes for a completion's tests")
    seed: int = flag(0, "pass: seed of the sampling")
    perturbations: int = flag(3, "robust: seeds of each kind; a problem must be solved under all")
    # what goes in and out
    samples: str = flag(None, "file of completions to score, JSON lines {task_id, completion}; "
                        "needs no run")
    save: str = flag(None, "pass: file for the completions and verdicts, in the same form")
    plot: str = flag(None, "PNG for bits per byte against compute, and pass@k (needs matplotlib)")
    json: bool = flag(False, "results as one line of JSON, last")
    device: str = flag("cpu", "cpu, cuda, mps or auto")

    def resolve(self):
        """Fill in what depends on other options. Raises UserError for what cannot be."""
        for task in self.tasks():
            expect_one_of("task", task, TASKS)
        expect(self, "above 0", "n", "max_new", "timeout", "memory", "batch_size",
               "perturbations")
        expect(self, "of 0 or more", "limit", "context", "stride")
        expect(self, "from 0 to 2**63 - 1", "seed")
        if self.all and (self.runs or self.samples):
            named = self.samples or self.runs[0]
            raise UserError(f"--all: expected no other run or file, found {named}; leave one out")
        if self.save and (self.all or len(self.runs) > 1):
            raise UserError(f"--save={self.save}: expected one run, whose completions go there; "
                            "name one")
        if self.plot and not self.plot.endswith(".png"):
            raise UserError(f"--plot={self.plot}: expected the name of a .png file")
        if self.samples and self.runs:
            raise UserError(f"--samples={self.samples}: is scored without a run; leave out "
                            f"{self.runs[0]}")
        if self.temperature is None:
            self.temperature = 0.0 if self.n == 1 else 0.2
        expect(self, "of 0 or more", "temperature")
        if self.stride and not self.context:
            raise UserError(f"--stride={self.stride}: expected --context too, the size of a window")
        if self.stride > self.context:
            raise UserError(f"--stride={self.stride}: expected at most --context={self.context}, "
                            "or bytes are left out")
        if self.context and self.view == "comp":
            raise UserError(f"--context={self.context} --view=comp: windows are of raw bytes; "
                            "leave one out")
        self.device = resolve_device(self.device)
        if min(self.ks()) > self.n and not self.samples:
            raise UserError(f"--k={self.k}: expected one that is not above --n={self.n}, the "
                            "number of completions")

    def tasks(self):
        if self.task == "all":
            return list(TASKS)
        return [task for task in self.task.split(",") if task]

    def ks(self):
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.k):
            raise UserError(f"--k={self.k}: expected positive numbers with commas between, such as "
                            "1,10")
        return [int(k) for k in self.k.split(",")]
