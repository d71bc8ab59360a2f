"""
What train.py tells of a training: a line for each validation, the closing report, and the same to
Weights & Biases for those who ask for it.
"""
import importlib.util
import shlex
from dataclasses import asdict
from pathlib import Path

from lib.options import UserError


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
