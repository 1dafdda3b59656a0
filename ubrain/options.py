"""Command-line options made of the functions and dataclasses that they are for.

Type hint, default and description of a parameter (of a field also the comment beside it) are those
of its option. Nothing is imported before a command is used or asked for help.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ubrain.errors import UbrainError

SECTION = re.compile(r"\n*^Parameters\n-+\n(.*?)(?=\n\n\w+\n-+\n|\Z)", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"^([\w, ]+) : (.*(?:\n .*)*)", re.MULTILINE)
FIELD = re.compile(r"(?:^    # (.*)\n)?^    (\w+): [^#\n]*(?:# *(.*))?$", re.MULTILINE)


MOST_SEED = 2**32 - 1  # scikit-learn takes no larger one


class Command(click.Command):
    """A command of which the options are made when it is used; all words are in one string.

    Parameters
    ----------
    function : what it calls, by keyword. Its parameters are options, and what its docstring says
        of a parameter comes before what the sources say.
    sources : functions and dataclasses in ubrain (`module:name`) of which the parameters are
        options.
    about : help of the command; by default the docstring of the function.
    arguments : parameters that are positional.
    names : those that are called otherwise on the command line, `parameter=name`.
    without : parameters of the sources that are no options, or come from `function`.
    only : parameters of the sources that are options; by default all.
    unset : whether what was not given is None, whatever the default of a source.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., object],
        sources: str = "",
        about: str = "",
        arguments: str = "",
        names: str = "",
        without: str = "",
        only: str = "",
        unset: bool = False,
    ) -> None:
        about = about or SECTION.sub("", inspect.getdoc(function) or "")
        about = re.sub(r"\n\n(?= )", "\n\n\b\n", about)  # \b: click keeps the lines of a block
        super().__init__(name, callback=function, help=about, short_help=about.split("\n\n")[0])
        self.function, self.sources, self.unset = function, sources.split(), unset
        self.arguments, self.without, self.only = arguments.split(), without.split(), only.split()
        self.names = dict(word.split("=") for word in names.split())

    def targets(self) -> list[Callable[..., object]]:
        """The functions and dataclasses of `sources`, imported."""
        places = (source.split(":") for source in self.sources)
        return [getattr(import_module(f"ubrain.{module}"), name) for module, name in places]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, made at first use: positional ones, required ones, all others."""
        if not self.params:
            own, texts, made = parameters(self.function), descriptions(self.function), {}
            for target in self.targets():
                texts = descriptions(target) | texts
                for key, p in parameters(target).items():
                    if key not in self.without and key in (self.only or [key]) and key not in made:
                        made[key] = self.option(p, texts.get(key, ""), self.unset)
            mine = [self.option(p, texts.get(key, "")) for key, p in own.items() if key not in made]
            order = {"argument": 0, "option": 1}
            self.params = sorted(
                [*mine, *made.values()], key=lambda p: (order[p.param_type_name], not p.required)
            )
        return super().get_params(ctx)

    def option(self, p: inspect.Parameter, text: str, unset: bool = False) -> click.Parameter:
        """The option, or positional argument, of a parameter; one that nothing describes is hidden.

        A number that is at least 1 by default has to be at least 1, a seed at least 0.
        """
        name, kind = self.names.get(p.name, p.name).replace("_", "-"), kind_of(p.annotation)
        more: dict[str, Any] = {"type": kind, "required": p.default is p.empty}
        if not more["required"]:
            more["default"] = None if unset else p.default
            if kind is int and (p.default or 0) >= 1:
                more["type"] = click.IntRange(min=1)
            elif p.name == "seed":
                more["type"] = click.IntRange(0, MOST_SEED)
        if p.name in self.arguments:
            return click.Argument([p.name], metavar=name.upper(), help=text, **more)
        words = [p.name, f"--{name}/--no-{name}" if kind is bool else f"--{name}"]
        if "list[" in str(p.annotation):
            words.append(f"-{name[0]}")
            more["multiple"] = True
        shown = more.get("default") not in (None, "") and p.default is not False
        return click.Option(words, help=text, hidden=not text, show_default=shown, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Understands `-p name value`, where -p may be repeated, as `-p name=value`."""
        repeated = [opt for p in self.get_params(ctx) if p.multiple for opt in p.opts]
        left, joined = list(args), []
        while left:
            joined.append(left.pop(0))
            if joined[-1] in repeated and len(left) > 1 and "=" not in left[0]:
                joined.append(f"{left.pop(0)}={left.pop(0)}")
        return super().parse_args(ctx, joined)


class Commas(click.ParamType):
    """Values separated by commas, as a tuple; an empty text is None."""

    def __init__(self, kind: type) -> None:
        self.kind, self.name = kind, f"{kind.__name__},..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The tuple; UbrainError if a value is not of the kind."""
        try:
            return tuple(self.kind(part.strip()) for part in value.split(",")) if value else None
        except ValueError:
            raise UbrainError(
                f"{param.opts[0]} {value!r}: expected numbers separated by commas, such as 0,5,11"
            ) from None


def parameters(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function or dataclass, their type hints resolved (none: text)."""
    hints, found = typing.get_type_hints(target), inspect.signature(target).parameters
    named = {k: p for k, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return {k: p.replace(annotation=hints.get(k, str)) for k, p in named.items()}


def kind_of(hint: Any) -> Any:
    """What click has to make of the text of an option with this type hint."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = [k for k in (typing.get_args(hint) if union else (hint,)) if k is not types.NoneType]
    if Path in kinds:
        return click.Path(path_type=str if str in kinds else Path)
    inner = typing.get_args(kinds[0])
    if typing.get_origin(kinds[0]) is list:
        return inner[0]
    return Commas(inner[0]) if inner else kinds[0]


def descriptions(target: Callable[..., object]) -> dict[str, str]:
    """First sentences of what a docstring says of parameters, or comments say of fields."""
    section = SECTION.search(inspect.getdoc(target) or "")
    if section:
        entries = ENTRY.findall(section[1])
        told = {name: text for names, text in entries for name in names.split(", ")}
    elif dataclasses.is_dataclass(target):
        fields = FIELD.findall(inspect.getsource(target))
        told = {name: beside or above for above, name, beside in fields}
    else:
        told = {}
    return {
        name: re.split(r"(?<=\.) (?=[A-Z\"`])", " ".join(text.split()))[0]
        .replace("`", "")
        .replace("None: ", "default: ")
        for name, text in told.items()
    }
