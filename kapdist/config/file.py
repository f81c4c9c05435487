"""From a YAML file and ``section.key=value`` words to a config, with errors in the user's own words.

``base: other.yaml``, relative to the file that says so, is a file to start from; the rest is what differs. A run is
never named after its base, and the config in its directory is whole and needs none. A file that comes with the
package is ``kapdist:fashion_mnist/kap.yaml``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml
from pydantic import ValidationError

from kapdist.config.fields import NAME, opened, sections_of
from kapdist.config.plain_yaml import dump, parse
from kapdist.config.training import AnySection, Section, dotted_keys
from kapdist.errors import InputError, first_line, shown

CONFIGS = Path(__file__).parents[1] / "configs"
OWN = "kapdist:"  # before the name of a config that comes with the package: kapdist:fashion_mnist/kap.yaml
DEFAULTS = "defaults and overrides"  # where values come from when no file was named
ARGUMENTS = "arguments"  # where it comes from when a program said it
BASE = "base"
LARGEST_BYTES = 1 << 20
IN_OUR_WORDS = {"path_type": "a path", "dict_type": "a mapping, {name: value}"}  # for what pydantic says by type


class Layer(NamedTuple):
    """A file and what it says itself."""

    path: Path
    values: dict[str, Any]


class Stated(NamedTuple):
    """What is written of a config."""

    layers: list[Layer]
    """By files, the lowest first."""
    overrides: list[str]
    values: dict[str, Any]
    """By all of them together, interpolations resolved."""
    prefix: str
    """What the overrides were typed with."""


def load_config(
    model: type[AnySection],
    path: Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> AnySection:
    """Read a config: defaults, then the file on its base if there are any, then the overrides.

    Args:
        values: what a program says, nested as in a file, over the file's.
        prefix: what the overrides were typed with, where the caller took it off.

    Raises:
        InputError: for an unreadable file, bases that lead back, a duplicate or unknown key (names the nearest), a
            bad value (names the bound and the file that states it).
    """
    return config_of(model, path, read_stated(model, path, overrides, values, prefix))


def read_stated(
    model: type[Section],
    path: Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> Stated:
    """Read what is written of a config; arguments and errors as of `load_config`."""
    layers = [] if path is None else read_layers(path)
    if values is not None:
        layers.append(Layer(Path(ARGUMENTS), dict(values)))
    layers = [in_sections(layer, model) for layer in layers]
    overrides = [in_full(word, model) for word in overrides]
    container = merged(layers)
    for word in unique(overrides, prefix):
        container = merge(container, parse_override(word, model, prefix))
    return Stated(layers, overrides, resolved(container, path or DEFAULTS), prefix)


def config_of(model: type[AnySection], path: Path | None, stated: Stated) -> AnySection:
    """Return the config that is written; arguments and errors as of `load_config`."""
    named = {} if path is None else {"name": path.parent.name if path.name == "config.yaml" else path.stem}
    try:
        return model.model_validate(named | stated.values)
    except ValidationError as error:
        check_kind(model, stated)
        raise InputError(*describe(error, model, stated)) from None


def dump_config(config: Section) -> str:
    """Return the resolved config as YAML; loading it gives an equal config."""
    return dump(config.model_dump(mode="json"))


def read_layers(path: Path) -> list[Layer]:
    """Read a file and the bases under it, the lowest first.

    Raises:
        InputError: an unreadable file, a base that is none or leads back to a file above it.
    """
    path = located(path)
    layers = [Layer(path, read_yaml(path))]
    while BASE in layers[0].values:
        below = base_of(layers)
        del layers[0].values[BASE]
        layers.insert(0, Layer(below, read_yaml(below)))
        layers[0].values.pop("name", None)  # two runs would share a directory
    return layers


def in_sections(layer: Layer, model: type[Section]) -> Layer:
    """Return what a file says with each section as a mapping, though one value may stand for it."""
    known = {
        key: opened(kind, layer.values[key]) for key, kind in sections_of(model).items() if key in layer.values
    }
    return Layer(layer.path, layer.values | known)


def base_of(layers: Sequence[Layer]) -> Path:
    """Return the file that the lowest layer builds on."""
    above, named = layers[0].path, layers[0].values[BASE]
    place = f"{above}: {BASE}"
    if not isinstance(named, str):
        raise InputError(place, "the path of a config file, from this one's folder", shown(named))
    below = beside(above, named)
    if not is_file(below):
        raise InputError(place, "a config file", f"nothing at {str(below)[:200]}")
    chain = [layer.path.resolve() for layer in reversed(layers)]
    if below.resolve() in chain:
        names = [file.name for file in [*chain, below]]
        raise InputError(place, "bases that come to an end", " -> ".join(names))
    return below


def beside(path: Path, named: str | Path) -> Path:
    """Return the file that another one names, from its own folder on."""
    return located(Path(named)) if str(named).startswith(OWN) else path.parent / named


def located(path: Path) -> Path:
    """Return where a config lies: as its path says, or for kapdist:NAME in the package.

    Raises:
        InputError: the package has none of that name.
    """
    name = str(path).removeprefix(OWN)
    if name == str(path) or (CONFIGS / name).is_file():
        return CONFIGS / name if name != str(path) else path
    names = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.glob("*/*.yaml"))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0) or ["none"]
    raise InputError(path, f"one of {len(names)} configs in {CONFIGS} (nearest: {OWN}{close[0]})", "nothing")


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return what a file says in all, its bases included."""
    whole: dict[str, Any] = {}
    for layer in layers:
        whole = merge(whole, layer.values)
    return whole


def merge(below: Any, above: Any) -> Any:
    """Return what holds where two values are stated: mappings are joined, anything else is one value."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: merge(below.get(key), value) for key, value in above.items()}


def resolved(values: dict[str, Any], place: object) -> dict[str, Any]:
    """Return the values with their interpolations, as OmegaConf has them: ${train.epochs}, ${oc.env:HOME}."""
    if "${" not in str(values):
        return values
    from omegaconf import OmegaConf

    try:
        return dict(OmegaConf.to_container(OmegaConf.create(values), resolve=True))  # type: ignore[arg-type]
    except Exception as error:  # OmegaConf's own, its grammar's, and those of what it calls
        raise InputError(place, "interpolations that resolve", first_line(error)) from None


def text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_BYTES + 1).decode()
    except FileNotFoundError:
        folder, _, name = str(path).partition("/")
        own = folder == CONFIGS.name and (CONFIGS / name).is_file()
        found = f"nothing ({OWN}{name} comes with the package)" if own else "nothing"
        raise InputError(path, "a config file", found) from None
    except IsADirectoryError:
        of_run = f" (of a run, whose config is {path / 'config.yaml'})" if (path / "config.yaml").is_file() else ""
        raise InputError(path, "a readable config file", f"a folder{of_run}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(path, "a readable config file", reason) from None
    if len(text) > LARGEST_BYTES:
        raise InputError(path, "a config file", f"more than {LARGEST_BYTES:,} bytes")
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    values = parse(text_of(path), path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(path, "a mapping of keys to values", "a list or a single value")
    return values


def names_a_file(word: str) -> bool:
    """Tell the file of a config from an override; a file, or a folder above it, may have a = in its name."""
    key, equals, _ = word.partition("=")
    return not equals or os.sep in key or (word.endswith((".yaml", ".yml")) and os.path.isfile(word))


def unique(overrides: Sequence[str], prefix: str) -> Sequence[str]:
    keys = [word.partition("=")[0] for word in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"override {prefix}{key}", "one value", f"{keys.count(key)} values")
    return overrides


def in_full(word: str, model: type[Section]) -> str:
    """Return data=FILE as data.beton=FILE, where one value may stand for a section."""
    key, equals, text = word.partition("=")
    section = sections_of(model).get(key)
    if not equals or section is None or section.stands_for is None or text.lstrip().startswith("{"):
        return word
    return f"{key}.{section.stands_for}={text}"


def parse_override(word: str, model: type[Section], prefix: str = "") -> dict[str, Any]:
    place = f"override {shown(prefix + word)}"
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(place, "section.key=value", "no '='")
    if not is_key(key, model):
        raise InputError(place, f"a known key{nearest(key, model)}", shown(key))
    value = parse(text, place)
    if is_cut(text, value):
        if text[0] in "\"'[{":
            raise InputError(place, "a YAML value and nothing after it", "a comment (quote what has a #)")
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def is_key(key: str, model: type[Section]) -> bool:
    """Return whether a config class has a dotted key: a field's, or one inside of values that are free."""
    keys = dotted_keys(model)
    return key in keys or any(key.startswith(f"{free}.") for free in free_keys(model))


def free_keys(model: type[Section], prefix: str = "") -> list[str]:
    """Return the dotted keys of fields whose own keys are free."""
    found = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += free_keys(field.annotation, f"{prefix}{key}.")
        elif get_origin(field.annotation) is dict:
            found.append(prefix + key)
    return found


def is_cut(text: str, value: Any) -> bool:
    """Return whether YAML leaves out a part of a word's value: what it takes for a comment, an anchor, a margin.

    In a file these are the writer's; a word is given as a whole.
    """
    node = yaml.compose(text)
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        return node.value != (text if isinstance(value, str) else text.strip())
    named = (yaml.ScalarToken, yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)
    spans = [
        (token.start_mark.index, token.end_mark.index) for token in yaml.scan(text) if isinstance(token, named)
    ]
    return any(sign == "#" and not any(a <= n < b for a, b in spans) for n, sign in enumerate(text))


def check_kind(model: type[Section], stated: Stated) -> None:
    """Refuse a config of another kind as such; key by key nobody would see what it is."""
    from kapdist.config.kinds import mistaken  # what no config that is right has to wait for

    if stated.layers and (kinds := mistaken(stated.values, model)):
        asked, found = kinds
        raise InputError(stated.layers[-1].path, f"a config of kind {asked}", f"one of kind {found}")


def describe(error: ValidationError, model: type[Section], stated: Stated) -> tuple[str, str, str]:
    """Say the first of pydantic's findings as (place, expected, found), and how many more there are.

    What is missing comes last: another key may be a misspelt one.
    """
    first, *others = sorted(error.errors(), key=lambda found: found["type"] == "missing")
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and not part.startswith("function-"))
    override = next((word for word in stated.overrides if word.partition("=")[0] == key), None)
    path = stated_in(stated.layers, key)
    place = (
        f"override {shown(stated.prefix + override)}"
        if override
        else f"{path}: {key if len(key) < 100 else shown(key)}"
        if key
        else str(path)
    )
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return place, f"a known key{nearest(key, model)}", shown(key) + more
    if first["type"] == "missing":
        return place, "a value", "nothing" + more
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("should be ")
    expected = IN_OUR_WORDS.get(first["type"], said)
    if first.get("ctx", {}).get("pattern") == NAME:
        expected = "a name of letters, digits and . _ + -, which begins with a letter or digit"
    found = "the contrary" if first["type"] == "value_error" and not key else shown(first["input"])
    return place, expected, found + more


def stated_in(layers: Sequence[Layer], key: str) -> Path | str:
    """Return the file that a key's value comes from; the uppermost where none states it."""
    if not layers:
        return DEFAULTS
    stating = [layer.path for layer in layers if states(layer.values, key)]
    return stating[-1] if stating else layers[-1].path


def states(values: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    if not isinstance(values, Mapping) or first not in values:
        return False
    return not rest or states(values[first], rest)


def nearest(key: str, model: type[Section]) -> str:
    """Name the key that the user may have meant: by the whole name, else by its last word anywhere."""
    keys, key = dotted_keys(model), key[:100]
    close = [name for name in keys if name.endswith(f".{key}")]
    close = close or difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    last = key.rpartition(".")[2]
    close = close or [name for name in keys if name.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f" (nearest: {close[0]})" if close else ""
