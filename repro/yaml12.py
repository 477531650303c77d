"""YAML of people and of other machines: YAML 1.2's scalars, and no more nodes than a profile has."""

from __future__ import annotations

import re
from typing import Any

import yaml

_MOST_CHARACTERS = 1 << 18  # PyYAML reads some 100 kB a second
_MOST_NODES = 20_000  # every alias counts as often as it stands for something
_MOST_DEPTH = 50
_MOST_DIGITS = 400


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where ``5e-4`` is text and ``on`` is true; this follows YAML 1.2's numbers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[str, int] = {}  # of each finished anchor, in nodes

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        anchor: str | None = event.anchor
        before = self._nodes
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise yaml.YAMLError(f"*{anchor} stands inside itself")
            self._nodes += self._sizes.get(anchor or "", 1)
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES or self._depth > _MOST_DEPTH:
            limits = f"more than {_MOST_NODES} values, or nested deeper than {_MOST_DEPTH}"
            raise yaml.YAMLError(f"{limits}, at line {event.start_mark.line + 1}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._nodes - before
        return node


def _integer(loader: _Yaml12Loader, node: yaml.ScalarNode) -> int:
    """YAML 1.1 would read 010 as octal."""
    if len(node.value) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(node.value)} digits")
    return int(node.value)


_REPLACED_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
_Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$"),
    list("-+.0123456789"),
)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load_yaml(text: str) -> Any:
    """YAML with the numbers, booleans and plain scalars of YAML 1.2; dates are text.

    Raises yaml.YAMLError: for text that is not YAML, a tag that makes something else than its text says, a number of
    more than 400 digits, more than 20,000 values (aliases count for what they stand for) or a depth of more than 50.

    >>> load_yaml("{base_lr: 5e-4, mirror: on, since: 2024-01-01}")
    {'base_lr': 0.0005, 'mirror': 'on', 'since': '2024-01-01'}
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters, at most {_MOST_CHARACTERS} expected")
    try:
        return yaml.load(text, _Yaml12Loader)  # nosec B506
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors of explicit tags raise ValueError, KeyError, AttributeError, …
        raise yaml.YAMLError(" ".join(str(error).split()) or type(error).__name__) from error
