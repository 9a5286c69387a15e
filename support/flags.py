"""Command lines: types that check what is typed, and a parser whose errors are one line."""

import argparse
import math
import os

from support.terminal import refuse

MOST = 2**31 - 1
DEFAULT = "default"  # the word that sets a flag back


class Flags(argparse.Namespace):
    """What was typed, by name; also as it is changed afterwards, as in a notebook."""

    recorded = ()  # names

    @property
    def config(self):
        """{flag: value} of what makes a run what it is."""
        values = {name: getattr(self, name) for name in self.recorded}
        return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}  # NumPy's


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with exit status 2.

    A flag is declared with fixed=True if it cannot change within a run, and with recorded=False if it says how a run is
    started, not what it is. One that is recorded and whose default is no value that could be typed takes the word
    DEFAULT, which sets it back on a resume.
    """

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)
        self.source = None  # the file that the flags come from, if that is not the command line

    def add_argument(self, *names, fixed=False, recorded=True, **settings):
        if settings.get("default") not in (None, argparse.SUPPRESS):
            settings["help"] = f"{settings.get('help', '')} (default: %(default)s)".strip()
        action = super().add_argument(*names, **settings)
        if hasattr(Flags, action.dest):
            raise ValueError(f"--{action.dest}: the flags have something of this name already")
        action.fixed, action.recorded = fixed, recorded and action.dest != "help"
        plain = action.default is None and action.nargs is None and settings.get("action", "store") == "store"
        action.can_be_set_back = plain and action.recorded and bool(action.option_strings)
        return action

    def _get_value(self, action, text):
        return DEFAULT if action.can_be_set_back and text == DEFAULT else super()._get_value(action, text)

    def parse_args(self, argv=None, config=None):
        """Returns the Flags of `argv`, by default the command line's, above those of `config`, a run's {flag: value}.

        A flag of `config` that this parser does not know is passed over; one that argv replaces is not even looked at,
        as a file that it names may be gone.
        """
        flags = {action.dest: action for action in self._actions if action.recorded and action.option_strings}
        held = {dest: value for dest, value in (config or {}).items() if dest in flags and value is not None}
        for dest in held:
            flags[dest].required = False
        opt = super().parse_args(argv, Flags(**dict.fromkeys(held)))
        set_back = [dest for dest, flag in flags.items() if flag.can_be_set_back and getattr(opt, dest) is DEFAULT]
        for dest, value in held.items():
            if getattr(opt, dest) is None:
                setattr(opt, dest, self.checked(flags[dest], value))
        for dest in set_back:
            setattr(opt, dest, None)
        opt.recorded = list(flags)
        return opt

    def checked(self, action, value):
        """Returns a flag's value as it was saved, text and numbers checked as if they were typed."""
        try:
            if type(value) in (str, int, float) and action.nargs != 0:
                value = self._get_value(action, str(value))
                self._check_value(action, value)
        except argparse.ArgumentError as error:
            self.error(str(error))
        return value

    def with_defaults(self, config):
        """Returns the flags of `config`, a run's {flag: value}, above this parser's defaults; nothing is checked."""
        return argparse.Namespace(**{**{action.dest: action.default for action in self._actions}, **config})

    def fixed(self):
        """Returns the names of the flags that cannot change within a run."""
        return [action.dest for action in self._actions if action.fixed]

    def error(self, message):
        refuse(f"{self.source}: {message}" if self.source else message)


def command_line(flags):
    """Returns {"--lr": 0.1, "--dropout": True, "--n": [3, 4], "--ema": None} as words: --lr 0.1 --dropout --n 3 4."""
    words = []
    for name, value in flags.items():
        values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        if len(values) == 1 and str(value).startswith("-"):  # else argparse takes it for a flag
            words.append(f"{name}={value}")
        elif value is not None and value is not False:
            words += [name, *map(str, values)]
    return words


def number(kind, holds, rule):
    """Returns an argparse type: a number of a kind for which `holds`, false of NaN, is true; errors quote `rule`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not '{text}'")
        return value

    return parse


def whole_number(least):
    rule = f"a whole number of at least {least} and at most {MOST:,}"
    return number(int, lambda value: least <= value <= MOST, rule)


positive = number(float, lambda value: 0 < value < math.inf, "a positive number, such as 0.0002")
decay_rate = number(float, lambda value: 0 <= value < 1, "a number from 0 up to but not including 1")


def whole_path(text):
    """argparse type: a whole path, which a run finds again from whatever folder it goes on."""
    return os.path.abspath(typed_path(text))


def label_text(text):
    """argparse type: labels to draw, in words and rows; \\n also stands for a new row."""
    text = "\n".join(row.rstrip() for row in text.replace("\\n", "\n").split("\n")).strip("\n")
    if not text.strip():
        raise argparse.ArgumentTypeError("must be labels, with spaces and newlines between them: at least one of them")
    return text


def typed_path(text):
    """argparse type: a path as people type it, in quotes that no shell took away, or with ~ for the home folder."""
    if os.path.lexists(text):
        return text
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return os.path.expanduser(text)


def file_path(*places):
    """Returns an argparse type: a file's path. A folder stands for the first of these places below it that is there."""

    def parse(text):
        found = typed_path(text)
        if places and os.path.isdir(found):
            inside = [os.path.join(found, place) for place in places]
            found = next(filter(os.path.exists, inside), inside[0])
        if os.path.exists(found) and not (os.path.isfile(found) or os.path.isdir(found)):
            raise argparse.ArgumentTypeError(f"must be a file, but {found} is a pipe or a device")
        return found

    return parse


run_file = file_path("results/checkpoint.npz", "checkpoint.npz", "generator.npz")  # an argparse type
log_file = file_path("results/log.json", "log.json")  # an argparse type


def file_for(read):
    """Returns an argparse type: the path of a file that `read` can read, which raises ValueError if it cannot."""

    def checked(text):
        found = file_path()(text)
        try:
            read(found)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error))
        return found

    return checked
