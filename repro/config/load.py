"""Profiles in YAML, and overrides ``key=value`` on top of them.

Unknown keys and wrong types are errors that name the key. A stage's key without the stage, such as
``solver.max_iter=30``, means each stage that the verb runs and that has it; ``reproduce`` runs stage 0 with
``dataset.make_cues`` alone. Where it names a file and could be several stages', and with verbs that run none, it is
refused, and the full keys are named.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from repro.config.marks import Mark, shaping
from repro.config.schema import Config, FileConfig
from repro.config.validation import Typed, field_type, validated
from repro.errors import InputError, hint
from repro.profiles import profile_names, profile_text
from repro.yaml12 import load_yaml
from weights_conversion.files import read_input

STAGES = ("stage0", "stage1", "stage2")


def load_config(profile: str, overrides: Sequence[str] = (), *, stages: Iterable[str] = ()) -> Config:
    """Read a profile by name or path and apply ``key=value`` overrides in order.

    A profile with ``base: other`` (a name, or a path relative to its file) holds what differs from that one.

    Args:
        profile: a name from :func:`repro.profiles.profile_names` or the path of a YAML file.
        overrides: ``dotted.key=value`` with YAML values (``stage1.data.mirror=false``, ``stage1.init.weights=null``).
        stages: those that the calling verb runs; a key such as ``solver.max_iter`` goes to each that has it.

    Raises:
        InputError: missing or malformed profile, bases in a circle, unknown key, wrong type, malformed override.
    """
    return config_from(read_profile(profile), overrides, profile, stages=stages)


def config_from(
    fields: dict[str, Any],
    overrides: Sequence[str],
    where: str,
    *,
    stages: Iterable[str] = (),
) -> Config:
    """Apply overrides to the fields of a config, which it changes, and validate them.

    An error names ``where`` or the override that it is about.
    """
    typed = _override(Config, fields, overrides, list(stages))
    return validated(Config, fields, where, typed)


def file_config(fields: dict[str, Any], overrides: Sequence[str], where: str) -> FileConfig:
    """As :func:`config_from`, of a net from Caffe's files."""
    typed = _override(FileConfig, fields, overrides, [])
    return validated(FileConfig, fields, where, typed)


def _override(
    model: type[Config | FileConfig], fields: dict[str, Any], overrides: Sequence[str], stages: list[str]
) -> Typed:
    """Set what the overrides say; returns the keys that are theirs, and not the file's, with their texts."""
    typed = []
    # which stages run is known first
    for override in sorted(overrides, key=lambda text: not text.startswith("dataset.make_cues=")):
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: expected key=value, for example seed=1")
        # Caffe's files are one training: their keys have no stages
        targets = [key.split(".")] if model is FileConfig else _targets(key, fields, stages)
        for path in targets:
            typed.append((_set(fields, path, _value(model, text, path)), override))
    return typed


def with_changes(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """``config`` with other values at dotted keys. Raises InputError as :func:`load_config`, naming ``where``."""
    fields = config.model_dump()
    for key, value in changes.items():
        _set(fields, key.split("."), value)
    return validated(Config, fields, where)


def changed_from_profile(config: Config) -> dict[str, Any]:
    """The keys that change results and differ from the packaged profile of the config's name, with their values.

    The seed and the files that any run is given do not count (`repro.config.Mark`); a profile of one's own has no
    other to differ from.
    """
    if config.name not in profile_names():
        return {}
    apart = (Mark.REPETITION, Mark.INPUT)
    before, now = (flattened(shaping(fields, *apart)) for fields in (load_config(config.name), config))
    return {
        key: value
        for key, value in now.items()
        if value != before.get(key) and (config.dataset.make_cues or not key.startswith("stage0."))
    }


def flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, the keys joined with dots."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat = {}
    for name, child in node.items():
        flat.update(flattened(child, f"{prefix}.{name}" if prefix else name))
    return flat


def read_profile(profile: str) -> dict[str, Any]:
    """A profile's fields, those of its ``base`` below them."""
    return _with_base(profile, f"--config {profile}", ())


def _with_base(profile: str, where: str, children: tuple[str, ...]) -> dict[str, Any]:
    """``where`` names the profile in errors; ``children`` are the files that led here, by `_identity`."""
    if "\0" in profile:
        raise InputError(f"{where}: a zero byte in a profile's name or path")
    identity = _identity(profile)
    if identity in children:
        raise InputError(f"{where}: a circle of profiles: {' -> '.join((*children, identity))}")
    fields = _read_fields(profile, where)
    base = fields.pop("base", None)
    if base is None:
        return fields
    if not isinstance(base, str):
        raise InputError(f"{profile}: base: expected a profile's name or path, found {base!r}")
    if "name" not in fields:
        raise InputError(f"{profile}: name: expected, as a profile with a base is another one")
    if base not in profile_names():
        base = str(Path(profile).parent / base)
    return _merged(_with_base(base, f"{profile}: base {base}", (*children, identity)), fields)


def _identity(profile: str) -> str:
    return profile if profile in profile_names() else str(Path(profile).resolve())


def _merged(base: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The child's values over the base's, section by section; ``null`` takes a section away."""
    merged = dict(base)
    for key, value in child.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_fields(profile: str, where: str) -> dict[str, Any]:
    names = profile_names()
    if profile in names:
        fields = copy.deepcopy(_packaged(profile))
    else:
        try:
            text = read_input(profile).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "is not text" if isinstance(error, UnicodeDecodeError) else "is not a readable file"
            raise InputError(
                f"{where}: {reason}, nor one of the profiles {', '.join(names)}{hint(profile, names)}"
            ) from None
        try:
            fields = load_yaml(text)
        except yaml.YAMLError as error:
            raise InputError(f"{profile}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{profile}: expected a mapping of keys, found {type(fields).__name__}")
    return fields


@functools.cache
def _packaged(name: str) -> Any:
    """A packaged profile's fields; a run reads its own a dozen times."""
    return load_yaml(profile_text(name))


def _value(model: type[Config | FileConfig], text: str, path: list[str]) -> Any:
    """An override's text as YAML; as it stands where the key takes text, so that no path needs quotes. Shells leave
    ``~/`` behind a dotted key's ``=`` as it is: it is the user's folder."""
    if field_type(model, path) in (str, str | None):
        return (
            None if text in ("null", "~", "") else os.path.expanduser(text) if text.startswith("~/") else text
        )
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _targets(key: str, fields: dict[str, Any], stages: list[str]) -> list[list[str]]:
    """The full paths that an override's key means: itself, or that key of each stage that runs."""
    path = key.split(".")
    sections = [stage for stage in STAGES if field_type(Config, [stage, path[0]]) is not None]
    if path[0] in Config.model_fields or not sections:
        return [path]
    running = [stage for stage in stages if fields.get(stage) is not None]
    if stages and not running:
        raise InputError(f"override {key}: the profile has no section {' or '.join(stages)}")
    meant = [stage for stage in running or sections if field_type(Config, [stage, *path]) is not None]
    dataset = fields.get("dataset")
    if running and not (isinstance(dataset, dict) and dataset.get("make_cues")):
        meant = [stage for stage in meant if stage != "stage0"] or meant
    if not meant:
        return [[(running or sections)[-1], *path]]  # no such key, as validation will say
    is_file = field_type(Config, [meant[0], *path]) == (str | None)
    if not running or (is_file and len(meant) > 1):
        full = " or ".join(f"{stage}.{key}" for stage in meant)
        raise InputError(f"override {key}: of which stage? expected {full}")
    return [[stage, *path] for stage in meant]


def _set(fields: dict[str, Any], path: list[str], value: Any) -> tuple[str, ...]:
    """Returns the path as far as the first section that was not there, or whole."""
    node, own = fields, len(path)
    for depth, part in enumerate(path[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
            own = min(own, depth)
        node = node[part]
        if not isinstance(node, dict):
            raise InputError(f"override {'.'.join(path)}: {part} is a value, not a section")
    node[path[-1]] = value
    return tuple(path[:own])
