"""
tinycode: a corpus of small Python functions with a docstring that says in words what the body does.

    def make_result(values):
        '''Keep numbers above 4, then add them up.'''
        values = [v for v in values if v > 4]
        return sum(values)

A function is a chain of one to five operations on lists, strings, words, dicts and integers, here
two: keep numbers above, add up. One *pair* of operations in three is held out: in no function of
the corpus does the second follow the first. The problems of the benchmark are chains of three to
five, in which each operation and the next are such a pair. So a right answer was composed, not
remembered. Operations that differ by no more than a number or a name, as the size of a list and the
length of a string, count as the same.

The corpus also has *facts*: functions that return an arbitrary number tied to a name. They can only
be remembered. One fact in four carries "view": "comp": training shows it compressed, never raw.
What a model recalls of it from a raw prompt has crossed from one view to the other.

    python data/tinycode.py                    writes corpus, problems and facts to data/tinycode
    python data/tinycode.py --show=5           prints some functions and facts instead

The files have the same bytes on every machine.
"""
import functools
import hashlib
import itertools
import json
import os
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from lib.options import UserError, command_line, expect, flag
from lib.views import new_file

# -----------------------------------------------------------------------------
# the words and operations that functions are made of

# (family, from type, to type): [(name, what the docstring says, what the body does)].
# Types: L list of ints, S string, W list of words, D dict of ints, N int. In both texts {x} is the
# variable, {k} a small number, {c} and {d} letters. A body of one line is an expression; one of
# several lines ends by assigning to {x}.
OPERATION_TABLE = {
    ("filter", "L", "L"): [
        ("even", "keep the even numbers", "[v for v in {x} if v % 2 == 0]"),
        ("odd", "keep the odd numbers", "[v for v in {x} if v % 2 == 1]"),
        ("above", "keep numbers above {k}", "[v for v in {x} if v > {k}]"),
        ("below", "keep numbers below {k}", "[v for v in {x} if v < {k}]"),
        ("no_multiples", "drop multiples of {k}", "[v for v in {x} if v % {k} != 0]"),
    ],
    ("map", "L", "L"): [
        ("add_each", "add {k} to each", "[v + {k} for v in {x}]"),
        ("subtract_each", "subtract {k} from each", "[v - {k} for v in {x}]"),
        ("times_each", "multiply each by {k}", "[v * {k} for v in {x}]"),
        ("square_each", "square each", "[v * v for v in {x}]"),
        ("negate_each", "negate each", "[-v for v in {x}]"),
    ],
    ("slice", "L", "L"): [
        ("first", "take the first {k}", "{x}[:{k}]"),
        ("last", "take the last {k}", "{x}[-{k}:]"),
        ("skip", "skip the first {k}", "{x}[{k}:]"),
        ("every", "take one in {k}", "{x}[::{k}]"),
    ],
    ("order", "L", "L"): [
        ("reverse", "reverse the order", "{x}[::-1]"),
        ("ascending", "sort upwards", "sorted({x})"),
        ("descending", "sort downwards", "sorted({x}, reverse=True)"),
        ("unique", "drop repeats", "list(dict.fromkeys({x}))"),
    ],
    ("loop", "L", "L"): [
        ("running", "form running totals",
         "total, out = 0, []\nfor v in {x}:\n    total += v\n    out.append(total)\n{x} = out"),
        ("changes", "take the steps between neighbours", "[b - a for a, b in zip({x}, {x}[1:])]"),
    ],
    ("reduce", "L", "N"): [
        ("sum", "add them up", "sum({x})"),
        ("max", "find the largest", "max({x}, default=0)"),
        ("min", "find the smallest", "min({x}, default=0)"),
        ("size", "count them", "len({x})"),
    ],
    ("convert", "L", "W"): [
        ("strings", "write each as text", "[str(v) for v in {x}]"),
    ],
    ("letters", "S", "S"): [
        ("upper", "make it upper case", "{x}.upper()"),
        ("lower", "make it lower case", "{x}.lower()"),
        ("swap", "replace {c} with {d}", "{x}.replace('{c}', '{d}')"),
        ("drop_letter", "remove each {c}", "{x}.replace('{c}', '')"),
    ],
    ("cut", "S", "S"): [
        ("mirror", "spell it backwards", "{x}[::-1]"),
        ("head", "keep the first {k} letters", "{x}[:{k}]"),
        ("tail", "keep the last {k} letters", "{x}[-{k}:]"),
        ("repeat", "repeat it {k} times", "{x} * {k}"),
    ],
    ("measure", "S", "N"): [
        ("length", "measure its length", "len({x})"),
        ("count_letter", "count the letter {c}", "{x}.count('{c}')"),
    ],
    ("words", "S", "W"): [
        ("split", "split it into words", "{x}.split()"),
    ],
    ("words", "W", "W"): [
        ("upper_each", "make each upper case", "[w.upper() for w in {x}]"),
        ("long_words", "keep words longer than {k}", "[w for w in {x} if len(w) > {k}]"),
        ("with_letter", "keep words with {c}", "[w for w in {x} if '{c}' in w]"),
        ("sort_words", "sort the words", "sorted({x})"),
    ],
    ("join", "W", "S"): [
        ("join_letter", "join with the letter {d}", "'{d}'.join({x})"),
        ("initials", "join the initials", "''.join(w[0] for w in {x})"),
    ],
    ("measure", "W", "L"): [
        ("lengths", "measure each word", "[len(w) for w in {x}]"),
    ],
    ("measure", "W", "N"): [
        ("word_count", "count the words", "len({x})"),
    ],
    ("dict", "W", "D"): [
        ("tally", "map each word to its length", "{{w: len(w) for w in {x}}}"),
    ],
    ("dict", "D", "D"): [
        ("raise_values", "add {k} to each value", "{{a: b + {k} for a, b in {x}.items()}}"),
        ("large_values", "keep values above {k}", "{{a: b for a, b in {x}.items() if b > {k}}}"),
    ],
    ("lookup", "D", "L"): [
        ("values", "list the values", "list({x}.values())"),
    ],
    ("lookup", "D", "W"): [
        ("keys", "list the keys in order", "sorted({x})"),
    ],
    ("lookup", "D", "N"): [
        ("get", "look up the key {c}", "{x}.get('{c}', 0)"),
    ],
    ("number", "N", "N"): [
        ("add", "add {k}", "{x} + {k}"),
        ("subtract", "subtract {k}", "{x} - {k}"),
        ("times", "multiply by {k}", "{x} * {k}"),
        ("modulo", "take the remainder by {k}", "{x} % {k}"),
        ("divide", "divide by {k}, rounding down", "{x} // {k}"),
        ("square", "square it", "{x} * {x}"),
    ],
    ("branch", "N", "N"): [
        ("clip", "lower it to at most {k}", "if {x} > {k}:\n    {x} = {k}"),
        ("floor", "raise it to at least {k}", "if {x} < {k}:\n    {x} = {k}"),
    ],
    ("digits", "N", "L"): [
        ("digits", "list its digits", "[int(c) for c in str(abs({x}))]"),
        ("count_up", "count up to it", "list(range({x}))"),
    ],
    ("convert", "N", "S"): [
        ("text", "write it as text", "str({x})"),
    ],
}


@dataclass(frozen=True)
class Operation:
    name: str
    family: str
    source: str  # the type that it takes, a letter
    target: str  # the type that it returns
    says: str
    code: str


OPERATIONS = [
    Operation(name, family, source, target, says, code)
    for (family, source, target), rows in OPERATION_TABLE.items()
    for name, says, code in rows
]

# the names of variables of each type; the first is that of a value on the way
ARGUMENTS = {
    "L": ["values", "numbers", "items", "nums", "xs", "data"],
    "S": ["text", "s", "line", "name", "word"],
    "W": ["words", "parts", "names", "terms"],
    "D": ["table", "d", "counts", "scores"],
    "N": ["n", "x", "number", "amount"],
}
VERBS = "make get build find form take compute derive pick work".split()
NOUNS = "result answer total output report view part figure score value outcome item".split()
SMALL_NUMBERS = range(2, 10)  # {k}
LETTERS = "abcdeimnorst"      # {c}, and what strings in the tests are made of
RARE_LETTERS = "uvwxyz"       # {d}

# a fact is about an attribute of a name of two words, as in height_of_amber_fox
ATTRIBUTES = "port code weight price height year depth room".split()
FIRST_WORDS = ("amber azure birch brass cedar cloud coral crimson dusk ember fern flint frost gold "
               "hazel ivory").split()
SECOND_WORDS = ("badger crane falcon fox gecko hare heron ibis lark lynx marten newt otter owl "
                "raven wren").split()
FACT_FORMS = [
    "Return the {a} of {w}.",
    "The {a} of {w}.",
    "Look up the {a} of {w}.",
    "Tell the {a} of {w}.",
    "Return the {a} that {w} has.",
    "What {a} has {w}?",
    "Say which {a} {w} has.",
    "Find the {a} of {w}.",
    "Give the {a} of {w}.",
    "The {a} that {w} has.",
]

# -----------------------------------------------------------------------------
# functions

CHAIN_LENGTHS = [1, 2, 2, 3, 3, 4, 5]  # of the corpus: one is drawn for each function
PROBLEM_LENGTHS = [3, 4, 5]            # of the benchmark, in turns
HELD_OUT_PAIRS = 1 / 3                 # share of all pairs of operations


@functools.cache
def is_held_out_pair(first, second):
    """Whether the operation `second` right after `first` is kept for the benchmark.

    A hash of their code, all numbers 0, decides.
    """
    code = f"{first.code}\n{second.code}"
    pair = re.sub("[0-9]|{k}", "0", code)
    return hashlib.sha256(pair.encode()).digest()[0] < 256 * HELD_OUT_PAIRS


def are_held_out_pairs(operations):
    """For each two neighbours in a chain, whether they are a held-out pair: a list of bool."""
    return [is_held_out_pair(first, second) for first, second in itertools.pairwise(operations)]


class Generator:
    """Draws functions and examples.

    It uses Random.random only: that sequence is the one that Python promises never to change.
    """

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, n):
        return int(self.random() * n)

    def pick(self, options):
        return options[self.below(len(options))]

    def operations(self, length):
        """A chain of `length` operations whose types fit; no operation twice."""
        chain = [self.pick(OPERATIONS)]
        while len(chain) < length:
            fitting = [operation for operation in OPERATIONS
                       if operation.source == chain[-1].target and operation not in chain]
            chain.append(self.pick(fitting))
        return chain

    def function(self, operations):
        """(prompt, body, name) of a function that does these operations."""
        argument = self.pick(ARGUMENTS[operations[0].source])
        name = f"{self.pick(VERBS)}_{self.pick(NOUNS)}"
        variable = argument
        clauses, lines = [], []
        for operation in operations:
            is_last = operation is operations[-1]
            words = {"x": variable, "k": self.pick(SMALL_NUMBERS), "c": self.pick(LETTERS),
                     "d": self.pick(RARE_LETTERS)}
            clauses.append(operation.says.format(**words))
            code = operation.code.format(**words)
            if "\n" in code:
                lines += code.split("\n")
                if is_last:
                    lines.append(f"return {variable}")
            elif is_last:
                lines.append(f"return {code}")
            else:
                if operation.source != operation.target:
                    variable = ARGUMENTS[operation.target][0]
                lines.append(f"{variable} = {code}")

        sentence = ", then ".join(clauses)
        docstring = sentence[0].upper() + sentence[1:]
        prompt = f'def {name}({argument}):\n    """{docstring}."""\n'
        body = "".join(f"    {line}\n" for line in lines)
        return prompt, body, name

    def word(self):
        length = 1 + self.below(6)
        return "".join(self.pick(LETTERS) for _ in range(length))

    def example(self, kind):
        """A Python value of the type `kind`, as an argument for a test."""
        count = self.below(9)
        if kind == "L":
            return [self.below(40) - 10 for _ in range(count)]
        if kind == "S":
            return " ".join(self.word() for _ in range(1 + count // 2))
        if kind == "W":
            return [self.word() for _ in range(count)]
        if kind == "D":
            return {self.pick(LETTERS): self.below(20) for _ in range(count)}
        return self.below(60)


# -----------------------------------------------------------------------------
# the three files


def example_cases(generator, operations, solution, name):
    """Eight pairs (argument, result) of a solution, both as Python source."""
    scope = {}
    exec(solution, scope)
    cases = []
    for _ in range(8):
        argument = generator.example(operations[0].source)
        cases.append((repr(argument), repr(scope[name](argument))))
    return cases


def problems(count, seed):
    """`count` problems in HumanEval's format, chains of held-out pairs with code of their own."""
    generator = Generator(seed)
    rows, seen = [], set()
    tries_in_vain = 0
    while len(rows) < count:
        tries_in_vain += 1
        if tries_in_vain > 100_000:
            raise UserError(f"--problems={count}: expected at most {len(rows)}, as many as there "
                            "seem to be with code of their own")
        length = PROBLEM_LENGTHS[len(rows) % len(PROBLEM_LENGTHS)]
        operations = generator.operations(length)
        composition = tuple(operation.code for operation in operations)
        if not all(are_held_out_pairs(operations)) or composition in seen:
            continue
        prompt, body, name = generator.function(operations)
        cases = example_cases(generator, operations, prompt + body, name)
        results = {result for _, result in cases}
        if len(results) < 4:  # too easy to get right by accident
            continue
        tries_in_vain = 0
        seen.add(composition)
        asserts = "".join(f"    assert candidate({argument}) == {result}\n"
                          for argument, result in cases)
        rows.append({
            "task_id": f"tinycode/{len(rows)}",
            "prompt": prompt,
            "entry_point": name,
            "canonical_solution": body,
            "test": f"def check(candidate):\n{asserts}",
            "families": [operation.family for operation in operations],
        })
    return rows


def fact_documents(attribute, who, value, view):
    """The documents of one fact, one for each of VERBS with each of FACT_FORMS. view: "comp", or
    None for any."""
    documents = []
    for number, (verb, form) in enumerate(itertools.product(VERBS, FACT_FORMS)):
        says = form.format(a=attribute, w=who)
        prompt = f'def {verb}_{attribute}_of_{who}():\n    """{says}"""\n'
        document = {
            "name": f"fact/{attribute}/{who}/{number}",
            "text": f"{prompt}    return {value}\n",
            "split": "train",
        }
        if view:
            document["view"] = view
        documents.append(document)
    return documents


def facts(count, seed):
    """(rows, documents) of `count` facts: rows {prompt, answer, view}, and what training shows."""
    generator = Generator(seed)
    names = [(attribute, f"{first}_{second}")
             for attribute in ATTRIBUTES for first in FIRST_WORDS for second in SECOND_WORDS]
    if count > len(names):
        raise UserError(f"--facts={count}: expected at most {len(names)}, as many as names")

    rows, documents = [], []
    for number in range(count):
        attribute, who = names.pop(generator.below(len(names)))
        value = 1000 + generator.below(9000)
        view = "comp" if number % 4 == 3 else None
        about_this = fact_documents(attribute, who, value, view)
        documents += about_this
        answer = str(value)
        prompt = about_this[0]["text"].removesuffix(f"    return {answer}\n")
        rows.append({"prompt": prompt, "answer": answer, "view": view or "any"})
    return rows, documents


def corpus(functions, seed):
    """`functions` documents, no two alike, so that none is both trained on and validated with.

    None has a held-out pair.
    """
    generator = Generator(seed)
    rows, seen = [], set()
    while len(rows) < functions:
        operations = generator.operations(generator.pick(CHAIN_LENGTHS))
        if any(are_held_out_pairs(operations)):
            continue
        prompt, body, _ = generator.function(operations)
        text = prompt + body
        if text not in seen:
            seen.add(text)
            rows.append({"name": f"function/{len(rows)}", "text": text})
    return rows


# -----------------------------------------------------------------------------
# python data/tinycode.py


@dataclass
class Options:
    functions: int = flag(200_000, "number of functions in the corpus")
    facts: int = flag(1000, "number of facts in the corpus, each in a hundred documents")
    problems: int = flag(164, "number of held-out problems")
    seed: int = flag(0, "seed of all that is drawn")
    out: str = flag("", "folder for the files [data/tinycode]")
    show: int = flag(0, "number of functions and facts to print, in place of writing files")


def write_jsonl(path, rows):
    with new_file(path) as file:
        for row in rows:
            file.write((json.dumps(row) + "\n").encode())
    megabytes = path.stat().st_size / 1e6
    print(f"wrote {os.path.relpath(path)}: {len(rows):,} rows, {megabytes:.1f} MB")


def write(options):
    out = Path(options.out or ROOT / "data" / "tinycode")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: expected a folder that can be written "
                        f"({error.strerror})") from None
    fact_rows, documents = facts(options.facts, options.seed + 2)
    write_jsonl(out / "problems.jsonl", problems(options.problems, options.seed + 1))
    write_jsonl(out / "facts.jsonl", fact_rows)
    # the corpus last: where it is, the others are too
    write_jsonl(out / "corpus.jsonl", corpus(options.functions, options.seed) + documents)


def show(options):
    _, documents = facts(options.facts, options.seed + 2)
    one_of_each = documents[::len(VERBS) * len(FACT_FORMS)]
    for row in corpus(options.show, options.seed) + one_of_each[:options.show]:
        print(row["text"])


def main(options):
    expect(options, "of 0 or more", "functions", "facts", "problems", "seed", "show")
    if options.show:
        show(options)
    else:
        write(options)


if __name__ == "__main__":
    command_line(main, Options, description="Writes the corpus tinycode, or shows some of it.")
