"""
Options for every script: the fields of a dataclass become its flags and its --help.

A mistake of the user's is a UserError, whose message is the one line that they see. Every file uses
this one.
"""
import argparse
import dataclasses
import difflib
import functools
import math
import os
import sys


class UserError(ValueError):
    """A mistake of the user's. The message names the value, what was expected and what to do."""


def did_you_mean(word, words):
    """The end of an error message: the one of `words` that is close to `word`, if there is one."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_first_process():
    """Whether this is the process that speaks: under torchrun all of them meet the same line."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache  # so each text is printed once
def warn_once(text):
    """Print a line on stderr, the first time that it is to be said."""
    if is_first_process():
        print(text, file=sys.stderr)


def flag(default, help, **settings):
    """A dataclass field that is a flag. settings: argparse's, such as `choices`, `nargs` or `type`.

    `help` is a noun phrase that stands alone; choices and default are added to it.
    """
    return dataclasses.field(default=default, metadata={"help": help, **settings})


# -----------------------------------------------------------------------------
# checks

# what a number has to be, in the words of the message: NaN is none of them
RULES = {
    "above 0": lambda x: 0 < x < math.inf,
    "of 0 or more": lambda x: 0 <= x < math.inf,
    "from 0 to 1": lambda x: 0 <= x <= 1,
    "from 0 to 2**63 - 1": lambda x: 0 <= x < 2 ** 63,
}


def expect(options, rule, *names):
    """Check that the numbers in the fields `names` obey `rule`, of RULES. Raises UserError."""
    for name in names:
        value = getattr(options, name)
        if not RULES[rule](value):
            finite = "finite " if math.isinf(value) else ""
            raise UserError(f"--{name}={value}: expected a {finite}number {rule}")


def expect_one_of(name, value, allowed):
    """Check that the value of the flag `name` is one of `allowed`. Raises UserError."""
    if value not in allowed:
        raise UserError(f"--{name}={value}: expected one of {', '.join(allowed)}"
                        f"{did_you_mean(value, allowed)}")


# -----------------------------------------------------------------------------
# from the command line to a dataclass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def help_format(prog):
    return argparse.HelpFormatter(prog, width=100, max_help_position=28)


def add_flag(parser, field):
    """Add the flag for one field of an options dataclass."""
    settings = dict(field.metadata)
    help = settings.pop("help")
    positional = settings.pop("positional", False)
    name = field.name if positional else f"--{field.name}"

    if isinstance(field.default, bool):
        settings["action"] = argparse.BooleanOptionalAction
    elif "action" not in settings:
        settings["metavar"] = field.name.upper()
        if field.default is not None and "nargs" not in settings:
            settings.setdefault("type", type(field.default))

    if "choices" in settings:
        help += f" ({', '.join(settings['choices'])})"
    if field.default not in (None, "", ()):
        help += f" [{field.default}]"
    # no default: the dataclass has it, and so it is known which flags were given
    parser.add_argument(name, default=argparse.SUPPRESS, help=help.replace("%", "%%"), **settings)


def parse(options, argv=None, **parser_settings):
    """An instance of the dataclass `options`, read from `--name=value` flags.

    argv: a list of strings; None for the command line. The instance has one attribute besides its
    fields, `given`: the names of those that were given. Raises UserError, which names the flag.
    """
    parser = Parser(formatter_class=help_format, allow_abbrev=False, **parser_settings)
    for field in dataclasses.fields(options):
        add_flag(parser, field)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        known = [f"--{field.name}" for field in dataclasses.fields(options)]
        raise UserError(f"unknown flag {name}{did_you_mean(name, known)} (--help lists them)")
    parsed = options(**vars(arguments))
    parsed.given = list(vars(arguments))
    return parsed


def command_line(main, options, **parser_settings):
    """Run `main(parse(options))` as a program.

    Exit status: 2 after a UserError, which is printed as one line, 130 after Ctrl-C.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None where the caller has closed it
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        # a log file shows each line at once, and any text can be printed on any terminal
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main(parse(options, **parser_settings))
    except UserError as error:
        if is_first_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has what it wanted, as in `| head`
        sys.stderr.close()
        sys.exit(0)
