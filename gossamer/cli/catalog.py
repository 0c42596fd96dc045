"""`gossamer methods`, `gossamer models` and `gossamer recipes`: what gossamer comes with."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from gossamer.cli.console import Console
from gossamer.cli.options import JsonOption
from gossamer.cli.streams import App
from gossamer.errors import BadInput, unknown

# What a method is called with besides the network, by its `needs`.
NEEDS = {
    "weights": "nothing",
    "inputs": "example inputs",
    "samples": "samples, which need no labels",
    "labels": "training data with labels",
}
recipes = App(no_args_is_help=True, help="The recipes that come with gossamer.")


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer methods prune.channels")(methods)
    app.command(epilog="Example: gossamer models --json")(models)
    app.add_typer(recipes, name="recipes")


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A method, whose page is shown; or a scheme (prune), whose methods are listed."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List all methods or those of a scheme; show one method's page."""
    from gossamer.methods import catalogue

    console, known = Console(as_json=json), catalogue()
    if name is None or any(key.startswith(f"{name}.") for key in known):
        scheme = "" if name is None else f"{name}."
        rows = [(key, _page(cls).splitlines()[0]) for key, cls in known.items() if key.startswith(scheme)]
        console.table("", ("method", "what it is for"), rows)
        console.document(dict(rows))
        return
    if name not in known:
        raise unknown("method", name, known, listed="`gossamer methods`")
    page, options = _page(known[name]), _options(known[name])
    needs = NEEDS[known[name].needs]
    console.line("\n\n".join([name, page, *_notes(known[name]), f"Needs besides the network: {needs}."]) + "\n")
    console.table("Options", ("option", "default", "admitted"), [tuple(row.values()) for row in options])
    console.document({"name": name, "page": page, "needs": known[name].needs, "options": options})


def _page(cls: type) -> str:
    return inspect.getdoc(sys.modules[cls.__module__]) or cls.__name__


def _notes(cls: type) -> list[str]:
    """What is said of the options, its own before those that it shares with others."""
    from gossamer.methods._base import Method

    return [inspect.cleandoc(base.__doc__ or "") for base in cls.__mro__[: cls.__mro__.index(Method)]]


def _options(cls: Any) -> list[dict[str, Any]]:
    """Name, default and admitted values of a method's hyper-parameters."""
    hints = get_type_hints(cls, include_extras=True)
    rows = []
    for f in fields(cls):
        hint = hints[f.name]
        rules = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        kind = get_args(hint)[0] if rules else hint
        admitted = " ".join([_kind(kind), *(f"in {rule}" for rule in rules)])
        rows.append({"option": f.name, "default": _default(f), "admitted": admitted})
    return rows


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is Mapping:
        return f"{_kind(parts[0])}: {' | '.join(map(_kind, parts[1:]))}"
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if parts:
        return " | ".join(map(_kind, parts))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _default(field: "Field[Any]") -> Any:
    if field.default is not MISSING:
        return field.default
    return "required" if field.default_factory is MISSING else field.default_factory()


def models(json: JsonOption = False) -> None:
    """List the networks of the zoo and the trained weights they have."""
    from gossamer.models import ENTRIES, checkpoints

    console = Console(as_json=json)
    trained: dict[str, dict[str, float]] = {name: {} for name in ENTRIES}
    for one in checkpoints():
        trained[one.name][one.data] = one.top1
    sizes = {name: (entry.in_channels, entry.input_size, entry.input_size) for name, entry in ENTRIES.items()}
    rows = [
        (name, "x".join(map(str, sizes[name])), ", ".join(f"{data} {top1:.2f} %" for data, top1 in known.items()))
        for name, known in trained.items()
    ]
    console.table("", ("model", "made for", "trained weights, top-1"), rows)
    console.document({name: {"made_for": sizes[name], "trained": known} for name, known in trained.items()})


@recipes.command("list", epilog="Example: gossamer recipes list")
def list_recipes(json: JsonOption = False) -> None:
    """List the recipes with the numbers that were measured for them."""
    from gossamer.jobs.recipe import load_recipe, shipped

    console = Console(as_json=json)
    found = {name: load_recipe(path) for name, path in shipped().items()}
    rows = [
        (
            name,
            r.model,
            r.data,
            "train" if r.training else "compress",
            "; ".join(f"{k}: {v}" for k, v in r.claims.items()),
        )
        for name, r in found.items()
    ]
    console.table("", ("recipe", "model", "data", "for", "measured"), rows)
    console.document({name: {"model": r.model, "data": r.data, "claims": dict(r.claims)} for name, r in found.items()})


@recipes.command("copy", epilog="Example: gossamer recipes copy NAME mine.yaml")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `gossamer recipes list`.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write it.", show_default="(NAME.yaml)")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    from gossamer.core.folder import make_place, writing
    from gossamer.core.record import write_text
    from gossamer.jobs.recipe import shipped

    known = shipped()
    if name not in known:
        raise unknown("recipe", name, known, listed="`gossamer recipes list`")
    to = to or Path(f"{name}.yaml")
    if to.exists():
        raise BadInput(f"{to} exists already; name another file, or remove it first")
    make_place(to)
    with writing(to):
        write_text(to, known[name].read_text(encoding="utf-8"))
    Console().line(str(to))
