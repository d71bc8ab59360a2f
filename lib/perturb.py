"""
ReCode's perturbations of a prompt (Wang et al. 2022, arXiv 2212.10264): changes that keep the
meaning.

A model that has understood a prompt solves the perturbed one too: lib/probes.py measures it. (Of
ReCode's four kinds "syntax", new names for variables, is not here.)
"""
import builtins
import math
import random
import re
from dataclasses import dataclass
from functools import partial

from lib.data import meaning


@dataclass
class Program:
    """A problem while it is being perturbed."""
    prompt: str       # up to where the model takes over: signature and docstring
    solution: str     # the canonical solution, the rest of the program
    entry_point: str  # the name of the function to write
    letter: int = 0   # an index into entry_point: where a way may change the name

    def meaning(self):
        """What it does, as a string: its syntax tree, without docstrings and the function's name.
        Raises SyntaxError."""
        tree = meaning(self.prompt + self.solution)
        return re.sub(f"(id|name)='{self.entry_point}'", "the function", tree)


# A *way* is a function (program, rng) -> (prompt, solution, entry_point), changed, or None where it
# does not apply. It may hit what only looks like code, such as quotes in a string: `perturb`, which
# stands at the end, refuses what does not mean the same.


# -----------------------------------------------------------------------------
# changes of one word, at the letter with the index i where they need one

# On an American keyboard the key to the right of each letter, or to the left at a row's end.
NEXT_KEY = dict(zip("qwertyuiop" "asdfghjkl" "zxcvbnm",
                    "wertyuiopo" "sdfghjklk" "xcvbnmn"))


def camel_case(word, i):
    return re.sub(r"(?<=[^_])_+(.)", lambda match: match[1].upper(), word)  # a leading _ stays


WORD_CHANGES = {
    "swap": lambda word, i: word[:i] + word[i + 1:i + 2] + word[i] + word[i + 2:],
    "double": lambda word, i: word[:i] + word[i] + word[i:],
    "typo": lambda word, i: word[:i] + NEXT_KEY[word[i].lower()] + word[i + 1:],
    "camel": camel_case,
    "capital": lambda word, i: word.capitalize(),
    "case": lambda word, i: word.swapcase(),
    "spaces": lambda word, i: word + " ",
}


# -----------------------------------------------------------------------------
# kind "name": the function's name


def rename_function(change, program, rng):
    """Give the function a name changed by `change`, in the prompt and in the solution's calls.

    In the prompt only where a parenthesis follows: the prose may use the name as a plain word.
    """
    old, new = program.entry_point, change(program.entry_point, program.letter)
    in_use = re.search(rf"\b{new}\b", program.prompt + program.solution)
    if in_use or hasattr(builtins, new):
        return None
    prompt = re.sub(rf"(?<![\w.]){old}(?=\()", new, program.prompt)
    solution = re.sub(rf"(?<![\w.]){old}\b", new, program.solution)
    return prompt, solution, new


# -----------------------------------------------------------------------------
# kind "format": white space and quotes


def indent_by(unit, program, rng):
    """Indent by `unit` where the program indents by four spaces."""
    def reindent(text):
        return re.sub(r"^(?:    )+", lambda match: len(match[0]) // 4 * unit, text, flags=re.M)
    return reindent(program.prompt), reindent(program.solution), program.entry_point


def add_blank_line(program, rng):
    """Add a blank line at the end of the prompt or after the function's signature."""
    at_end = program.prompt + "\n"
    after_signature = re.sub(rf"(def {program.entry_point}\(.*?:)\n", r"\1\n\n", program.prompt)
    return rng.choice((at_end, after_signature)), program.solution, program.entry_point


def change_quotes(program, rng):
    """Write docstrings between ''' in place of double quotes."""
    return program.prompt.replace('"""', "'''"), program.solution, program.entry_point


def split_signature(program, rng):
    """Put the parameters on a line of their own."""
    start = f"def {program.entry_point}("
    prompt = program.prompt.replace(start, f"{start}\n        ")
    return prompt, program.solution, program.entry_point


# -----------------------------------------------------------------------------
# kind "docstring": typing errors

# Where the prose of a docstring ends: at an example, which has to stay right.
EXAMPLE = r">>>|\bassert\b|[Ee]xamples?\b|==|➞|->"
# A plain word: no part of an escape, of an expression or of something in quotes.
WORD = r"(?<![\w\\'\"(\[.])[A-Za-z]{3,}(?![\w'\"()\[\]])"
DOCSTRING = r"(\"\"\"|''')(.*?)\1"


def change_words(change, program, rng):
    """Change one word in six of the prose of the prompt's last docstring by `change`."""
    docstrings = list(re.finditer(DOCSTRING, program.prompt, re.S))
    if not docstrings:
        return None
    start, end = docstrings[-1].span(2)
    prose = re.split(EXAMPLE, program.prompt[start:end])[0]
    words = [match.span() for match in re.finditer(WORD, prose)]
    chosen = rng.sample(words, math.ceil(len(words) / 6))

    prompt = program.prompt
    for word_start, word_end in sorted(chosen, reverse=True):  # from the right: spans stay valid
        word = prose[word_start:word_end]
        letter = rng.randrange(len(word) - 1)
        prompt = prompt[:start + word_start] + change(word, letter) + prompt[start + word_end:]
    return prompt, program.solution, program.entry_point


# -----------------------------------------------------------------------------
# all of them: {kind: {way: function}}

# A new perturbation is a function and its line here. It moves the draws of its kind, and so the
# kind's results: their order in the table counts too.
PERTURBATIONS = {
    "name": {way: partial(rename_function, WORD_CHANGES[way])
             for way in ("camel", "swap", "double", "capital")},
    "format": {
        "tabs": partial(indent_by, "\t"),
        "two spaces": partial(indent_by, "  "),
        "blank line": add_blank_line,
        "quotes": change_quotes,
        "split": split_signature,
    },
    "docstring": {way: partial(change_words, WORD_CHANGES[way])
                  for way in ("swap", "typo", "case", "spaces")},
}


def perturb(problem, kind, seed):
    """(prompt, canonical solution, entry point) of a problem, perturbed in one way of a `kind`.

    The ways are tried in random order until one applies. Where none does nothing changes, as where
    a prompt has no docstring: who counts results has to count these apart.
    problem: a row in HumanEval's format. The result is a function of (task_id, kind, seed).
    """
    rng = random.Random(f"{problem['task_id']} {kind} {seed}")
    solution = problem.get("canonical_solution") or ""
    unchanged = problem["prompt"], solution, problem["entry_point"]
    ways = PERTURBATIONS[kind]
    for way in rng.sample(list(ways), len(ways)):
        # drawn here and not where it is used, so that each kind and way takes the same draws
        letter = rng.randrange(max(1, len(problem["entry_point"]) - 1))
        program = Program(*unchanged, letter)
        try:
            changed = ways[way](program, rng) or unchanged
            meaning_stays = Program(*changed).meaning() == program.meaning()
        except (SyntaxError, ValueError):  # ValueError: a null byte, in Python 3.11.0
            continue
        if meaning_stays and changed[0] != problem["prompt"]:
            return changed
    return unchanged
