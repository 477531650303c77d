"""The profiles that come with the package, each a YAML file whose every value cites its source."""

from __future__ import annotations

from importlib import resources


def profile_names() -> list[str]:
    """Their names."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def profile_text(name: str) -> str:
    """A profile's YAML."""
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
