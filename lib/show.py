"""
What the terminal shows besides plain lines: texts, views and symbols in colour for mix.py and
proxies.py, and a progress bar for eval.py.
"""
from tqdm import tqdm

BOLD, GREEN, PURPLE, PLAIN = "\033[1m", "\033[32m", "\033[35m", "\033[0m"
COLOUR = {"raw": GREEN, "comp": PURPLE}


def show_context(title, samples):
    """Print the samples of a context, (view, text) each, text as bytes; None if it is cut short."""
    print(f"\n{BOLD}{title}{PLAIN}")
    for view, text in samples:
        shown = "(cut short, so it can't be decoded)"
        if text is not None:
            shown = text.decode("utf-8", "replace").rstrip("\n")
        print(f"{BOLD}<{view}>{PLAIN}{COLOUR[view]}{shown}{PLAIN}{BOLD}</{view}>{PLAIN}")


def with_progress(steps, what):
    """The steps, with a progress bar where stderr is a terminal."""
    return tqdm(steps, desc=what, leave=False, disable=None)
