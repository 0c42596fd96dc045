"""An ordered list of methods, a seed, and what was measured for it; YAML in and out, checked whole before it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from gossamer.errors import BadInput, unknown
from gossamer.methods import catalogue
from gossamer.methods.base import Method
from gossamer.record import write_text
from gossamer.train import Training


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """model and data are the command line's arguments that it was written for; others may be given to it.

    augment: False where training images are taken as they are. training: how the dense network is trained (`gossamer
    train`). steps: the methods, in order (`gossamer compress`). int8: quantize the deployed network. claims: measured
    numbers by name, with their conditions as text.
    """

    name: str
    model: str | None = None
    data: str | None = None
    seed: int = 0
    augment: bool = True
    training: Training | None = None
    steps: tuple[Method, ...] = ()
    int8: bool = True
    claims: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_order(self.steps)

    def to_yaml(self) -> str:
        """The text that `parse` reads back to an equal recipe."""
        raw: dict[str, Any] = {"name": self.name}
        for key in ("model", "data"):
            if getattr(self, key) is not None:
                raw[key] = getattr(self, key)
        raw["seed"] = self.seed
        if not self.augment:
            raw["augment"] = False
        if self.training is not None:
            raw["training"] = _changed(self.training)
        if self.steps:
            raw["steps"] = [{step.name(): _changed(step)} for step in self.steps]
            raw["int8"] = self.int8
        if self.claims:
            raw["claims"] = dict(self.claims)
        return yaml.safe_dump(raw, sort_keys=False, width=120)

    def save(self, path: Path) -> None:
        write_text(path, self.to_yaml())


def check_order(steps: tuple[Method, ...]) -> None:
    """Refuse an order that cannot work: a structural change after one that it would undo."""
    last: Method | None = None
    for step in steps:
        if step.stage is None:
            continue
        if last is not None and last.stage is not None and step.stage < last.stage:
            raise BadInput(
                f"{step.name()} cannot come after {last.name()}: it would undo what {last.name()} does to shapes or "
                f"values; put {step.name()} first"
            )
        last = step


def parse(text: str, *, source: str = "recipe") -> Recipe:
    """A recipe from YAML text. Everything is checked: names, types, ranges, order; the message says where."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{source} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise BadInput(f"{source} must be a mapping with the keys name and steps or training")
    known = [f.name for f in fields(Recipe)]
    for key in raw:
        if key not in known:
            raise unknown(f"key in {source}", str(key), known)
    values = dict(raw)
    values.setdefault("name", source)
    if raw.get("training") is not None:
        values["training"] = _build(Training, raw["training"], f"{source}, training")
    steps = raw.get("steps") or []
    if not isinstance(steps, list):
        raise BadInput(f"{source}: steps must be a list of methods")
    values["steps"] = tuple(read_step(step, f"{source}, step {n}") for n, step in enumerate(steps, 1))
    return Recipe(**values)


def load(path: Path) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name."""
    if not path.exists():
        names = shipped()
        if str(path) not in names:
            if not names:
                raise BadInput(f"{path} does not exist")
            raise unknown("recipe", str(path), names, listed="`gossamer recipes list`")
        path = names[str(path)]
    return parse(path.read_text(), source=path.name)


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("gossamer"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_step(raw: Any, where: str) -> Method:
    """The method of a step as it stands in a recipe: a name, or `{name: {option: value}}`. where: for errors."""
    if isinstance(raw, str):
        raw = {raw: {}}
    if not isinstance(raw, dict) or len(raw) != 1:
        raise BadInput(f"{where}: write a step as `method: {{option: value}}`, got {raw!r}")
    [(name, options)] = raw.items()
    methods = catalogue()
    if name not in methods:
        raise unknown(f"method in {where},", str(name), methods, listed="`gossamer methods`")
    method: Method = _build(methods[name], options or {}, f"{where} ({name})")
    return method


def _build(cls: Any, options: Any, where: str) -> Any:
    if not isinstance(options, dict):
        raise BadInput(f"{where}: options must be a mapping, got {options!r}")
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            listed = f"`gossamer methods {cls.name()}`" if issubclass(cls, Method) else ""
            raise unknown(f"option in {where},", str(key), known, listed=listed)
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        got = f", got {first['input']!r}" if first["type"] != "missing" else ""
        raise BadInput(f"{where}: {place}: {first['msg']}{got}") from error


def _changed(value: Any) -> dict[str, Any]:
    """Options as plain YAML values, all of them, so that a later default does not change an old recipe."""
    return dict(TypeAdapter(type(value)).dump_python(value, mode="json"))
