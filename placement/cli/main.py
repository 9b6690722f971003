"""The command `placement`: parses, runs a verb, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 what was to be shown could not be written, 2 bad input (one sentence on stderr), 3 no feasible
placement found (and which memory is short by how much), 130 stopped by Ctrl-C with nothing to keep, 141 whoever read
the output has gone. Start-up and the lists load no torch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import re
import sys
from collections.abc import Sequence

import tyro

from graphs.errors import InputError, NoFeasiblePlacementError, sentence, unknown_name
from placement import __version__
from placement.cli.output import standard_streams
from placement.cli.verbs import VERBS, Verb

PROGRAM = "placement"

EXIT_NOT_SHOWN, EXIT_BAD_INPUT, EXIT_INFEASIBLE, EXIT_INTERRUPTED, EXIT_NO_READER = 1, 2, 3, 130, 141

_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES)
"""What is wrong with a path that a person gave, whatever is done with it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        args: Without the program's name; by default those of this process.
    """
    with standard_streams() as streams:
        try:
            code = _run(sys.argv[1:] if args is None else args)
            sys.stdout.flush()
        except OSError as error:
            if not streams.is_failing:
                raise
            if isinstance(error, BrokenPipeError):  # `head`, for example, has seen enough
                return EXIT_NO_READER
            return _fail(f"cannot write to the standard output ({error.strerror})", EXIT_NOT_SHOWN)
        finally:
            streams.give_up()
        if streams.is_closed and code == 0:
            return _fail("cannot write to the standard output, which is closed", EXIT_NOT_SHOWN)
        return code


def _run(args: Sequence[str]) -> int:
    """Do what a command line says and return the exit code."""
    try:
        verb = parse(args)
        if verb is None:
            return 0
        from placement.cli.commands import run  # after parsing, so that help and typing errors come at once

        return run(verb)
    except InputError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except NoFeasiblePlacementError as error:
        return _fail(str(error), EXIT_INFEASIBLE)
    except OSError as error:
        if error.errno not in _NO_SUCH_NAME or error.filename is None:
            raise
        return _fail(sentence(f"'{error.filename}': {error.strerror}; give another name"), EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("stopped; nothing was kept", EXIT_INTERRUPTED)


def parse(args: Sequence[str]) -> Verb | None:
    """The verb that a command line means; None where it asked for help or the version, which has then been printed.

    Raises:
        InputError: It means none; the message is one sentence.
    """
    if list(args) == ["--version"]:
        print(f"{PROGRAM} {__version__}")
        return None
    if args and not args[0].startswith("-") and args[0] not in VERBS:
        raise unknown_name("verb", args[0], VERBS)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                VERBS,
                prog=PROGRAM,
                description="Find where each op of a neural network should run. --version prints the version.",
                args=list(args),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        plain = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())  # on a terminal the box has colours
        raise InputError(_one_sentence(plain, args)) from None


def _one_sentence(box: str, args: Sequence[str]) -> str:
    """What tyro says in a box of many lines, as one sentence that ends with where to read more."""
    rows = box.splitlines()
    if box.startswith("╭"):
        lines = [row.strip("│").rstrip() for row in rows[1:-1]]
    else:  # the terminal has no Unicode: a title, a rule, and rows that stand one column further right
        lines = [row[1:].rstrip() for row in rows[2:]]
    lines = ["" if re.fullmatch(r"\s*[─-]{5,}", line) else line for line in lines]
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n{2,}", "\n".join(lines))]
    unrecognized = [p for p in paragraphs if p.startswith("Unrecognized options:")]
    first = itertools.takewhile(bool, lines)
    missing = [line.strip() for line in first if re.match(r" {5}\S", line)]  # their help stands further right
    if unrecognized:
        said = unrecognized[0]
    elif paragraphs and paragraphs[0].startswith("Missing from") and missing:
        said = f"missing {' and '.join(missing)}"
    else:
        said = next((p for p in paragraphs if p), "the arguments are not valid").partition("Got errors:")[0]
        said = re.sub(r"no type matching .* could be instantiated from \['(.*)'\]", r"cannot read '\1'", said)
    said = said.strip().rstrip(".").replace(". Expected", "; expected")
    verb = f"{args[0]} " if args and args[0] in VERBS else ""
    return f"{said[0].lower()}{said[1:]}; see: {PROGRAM} {verb}--help"


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # where even this cannot be shown, the exit code says it
        print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
