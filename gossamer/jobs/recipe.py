"""An ordered list of methods, a seed, and what was measured for it; YAML in and out, checked whole before it runs."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from gossamer.core.record import write_text
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, unknown
from gossamer.methods import catalogue
from gossamer.methods._base import Method
from gossamer.train import Training

MOST_TEXT = 1 << 17  # characters of a recipe
MOST_NESTED = 16  # lists and mappings inside one another
MOST_SEED = (1 << 32) - 1
KINDS: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "model": (str, "text"),
    "data": (str, "text"),
    "seed": (int, "a whole number"),
    "augment": (bool, "true or false"),
    "int8": (bool, "true or false"),
    "steps": (list, "a list of methods"),
    "claims": (dict, "a mapping from names to values"),
}


class Claims(dict[str, Any]):
    """Measured numbers, and the content of the recipe that they were measured with."""

    def __init__(self, numbers: Mapping[str, Any], of: tuple[Any, ...] = ()) -> None:
        super().__init__(numbers)
        self.of = of


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(KnownArguments):
    """The steps of a job, and for which network and data they were written.

    Args:
        name: in reports.
        model: the command line's argument that it was written for; others may be given to it.
        data: the same, of the data.
        seed: of every random decision.
        augment: False where training images are taken as they are.
        training: how the dense network is trained (`gossamer train`).
        steps: the methods, in order (`gossamer compress`).
        int8: quantize the deployed network.
        claims: measured numbers by name, with their conditions as text; they hold for this recipe alone, and a copy
            that is changed (`dataclasses.replace`) in more than its name or seed has none.

    Example:
        >>> from gossamer.methods.prune.magnitude import Magnitude
        >>> Recipe(name="sparse", steps=(Magnitude(sparsity=0.75),))
        Recipe('sparse', 1 steps, int8)
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
        of = (self.model, self.data, self.augment, self.training, self.steps, self.int8)
        moved = isinstance(self.claims, Claims) and self.claims.of != of
        object.__setattr__(self, "claims", Claims({} if moved else self.claims, of))

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, {len(self.steps)} steps{', int8' if self.int8 else ''})"

    def summary(self) -> str:
        """The name, and each step with the settings that are not its defaults.

        Example:
            >>> from gossamer.methods.prune.magnitude import Magnitude
            >>> print(Recipe(name="sparse", steps=(Magnitude(sparsity=0.75),)).summary())
            recipe sparse, seed 0
              1. prune.magnitude: sparsity=0.75
              int8
        """
        lines = [f"recipe {self.name}, seed {self.seed}"]
        for number, step in enumerate(self.steps, 1):
            told = ", ".join(f"{name}={value!r}" for name, value in step.options().items() if _chosen(step, name))
            lines.append(f"  {number}. {step.name()}{': ' if told else ''}{told}")
        return "\n".join([*lines, *(["  int8"] if self.int8 else [])])

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
        return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, width=120)

    def save(self, path: Path) -> None:
        write_text(path, self.to_yaml())


def _chosen(step: Method, name: str) -> bool:
    """Whether a setting of a step is not its default."""
    one = next(f for f in fields(step) if f.name == name)
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    return bool(getattr(step, name) != default)


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


class _Dumper(yaml.SafeDumper):
    """Writes out whatever occurs twice, since aliases are not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """YAML without a key that occurs twice in one mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            keys = [str(key.value) for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[0])
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} occurs twice", node.start_mark)
        return found


def read_yaml(text: str, source: str) -> Any:
    """Plain values out of YAML. Refused are what could grow (aliases, deep nesting) and numbers that are none."""
    if len(text) > MOST_TEXT:
        raise BadInput(f"{source} has {len(text):,} characters; at most {MOST_TEXT:,} are read")
    try:
        _check_events(text, source)
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
        raise BadInput(f"{source} is not valid YAML: {str(error)[:200]}") from error
    _check_values(found, source)
    return found


def _check_events(text: str, source: str) -> None:
    """Look at the text piece by piece, before anything is made of it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{source}, line {event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"{where}: aliases (*{event.anchor}) are not read; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:
            raise BadInput(f"{where}: nested more than {MOST_NESTED} deep")


def _check_values(value: Any, where: str) -> None:
    """Only text, truth values, finite numbers of 64 bits, lists, and mappings from text."""
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise BadInput(f"{where}: the key {key!r:.80} must be text; write it in estimates")
                _check_values(item, f"{where}: {key}")
        case list():
            for item in value:
                _check_values(item, where)
        case None | bool() | str():
            pass
        case int() if -(1 << 63) <= value < 1 << 63:
            pass
        case float() if math.isfinite(value):
            pass
        case int() | float():
            raise BadInput(f"{where}: numbers must be finite and of 64 bits, got {value!r:.40}")
        case _:
            raise BadInput(f"{where}: {value!r:.80} is a {type(value).__name__}; write it in estimates")


def parse(text: str, *, source: str = "recipe") -> Recipe:
    """A recipe from YAML text. Everything is checked: names, types, ranges, order; the message says where."""
    raw = read_yaml(text, source)
    if not isinstance(raw, dict):
        raise BadInput(f"{source} must be a mapping with the keys name and steps or training")
    known = [f.name for f in fields(Recipe)]
    for key in raw:
        if key not in known:
            raise unknown(f"key in {source}", key, known)
    values = {key: value for key, value in raw.items() if value is not None}
    values.setdefault("name", source)
    for key, (kind, words) in KINDS.items():
        if key in values and type(values[key]) is not kind:
            raise BadInput(f"{source}: {key} must be {words}, got {values[key]!r:.80}")
    if not 0 <= values.get("seed", 0) <= MOST_SEED:
        raise BadInput(f"{source}: seed = {values['seed']} must be in [0, {MOST_SEED}]")
    if "training" in values:
        values["training"] = _build(Training, values["training"], f"{source}, training")
    steps = values.get("steps", [])
    values["steps"] = tuple(read_step(step, f"{source}, step {n}") for n, step in enumerate(steps, 1))
    return Recipe(**values)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name."""
    if not path.exists():
        names = shipped()
        if str(path) not in names:
            if not names:
                raise BadInput(f"{path} does not exist")
            raise unknown("recipe", str(path), names, listed="`gossamer recipes list`")
        path = names[str(path)]
    if not path.is_file():
        raise BadInput(f"{path} is no file; a recipe is a YAML file")
    try:
        with path.open("rb") as file:
            content = file.read(4 * MOST_TEXT + 1)
        return parse(content.decode(), source=path.name)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path.name}, line {line}: not UTF-8 text; save the recipe as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("gossamer"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_step(raw: Any, where: str) -> Method:
    """The method of a step as it stands in a recipe: a name, or `{name: {option: value}}`. where: for errors."""
    if isinstance(raw, str):
        raw = {raw: {}}
    if not isinstance(raw, dict) or len(raw) != 1:
        raise BadInput(f"{where}: write a step as `method: {{option: value}}`, got {raw!r:.80}")
    [(name, options)] = raw.items()
    methods = catalogue()
    if not isinstance(name, str) or name not in methods:
        raise unknown(f"method in {where},", str(name), methods, listed="`gossamer methods`")
    method: Method = _build(methods[name], options or {}, f"{where} ({name})")
    return method


def _build(cls: Any, options: Any, where: str) -> Any:
    if not isinstance(options, dict):
        raise BadInput(f"{where}: options must be a mapping, got {options!r:.80}")
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            listed = f"`gossamer methods {cls.name()}`" if issubclass(cls, Method) else ""
            raise unknown(f"option in {where},", str(key), known, listed=listed)
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        rule = rule.partition(", unable to parse")[0]
        if first["type"] == "missing":
            rule = "is missing"
        got = f", got {first['input']!r:.80}" if first["loc"] and first["type"] != "missing" else ""
        raise BadInput(f"{where}: {place}{': ' if place else ''}{rule}{got}") from error


def _changed(value: Any) -> dict[str, Any]:
    """Options as plain YAML values, all of them, so that a later default does not change an old recipe."""
    return dict(TypeAdapter(type(value)).dump_python(value, mode="json"))
