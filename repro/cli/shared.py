"""What the verbs share: the application, their common options, and how they read and speak.

The modules of this package import at their top what is light; a verb imports what it works with when it is called. So
``repro --help`` and every shell completion take a fraction of a second, without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repro import __version__, distributed
from repro.errors import InputError, printable
from repro.profiles import profile_names

if TYPE_CHECKING:
    from repro.config import Config
    from repro.inference.batch_predict import FolderResult

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Caffe-faithful reproduction of SEC and DSRG, from image-level labels to the papers' tables.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"repro {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass  # run_command looks for it


def _profiles(incomplete: str) -> list[str]:
    return [name for name in profile_names() if name.startswith(incomplete)]


_CONFIG = typer.Option(
    "--config",
    help=f"A profile ({', '.join(profile_names())}) or the path of one.",
    autocompletion=_profiles,
    show_default=False,
)
ConfigOption = Annotated[str, _CONFIG]
OptionalConfig = Annotated[str | None, _CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. stage1.solver.max_iter=100", show_default=False
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=False)]
SeedOption = Annotated[int | None, typer.Option(help="Random seed.", show_default=False)]


def say(*lines: object) -> None:
    """A command's result, once for all ranks, each line on its own and with what is foreign in it escaped."""
    if distributed.is_first():
        for line in lines:
            typer.echo(printable(line))


def load(
    profile: str, overrides: list[str] | None, device: str | None, seed: int | None, **stages: tuple[str, ...]
) -> Config:
    from repro.config import load_config

    return load_config(profile, with_options(overrides, device, seed), **stages)


def with_options(overrides: list[str] | None, device: str | None, seed: int | None) -> list[str]:
    options = [f"{key}={value}" for key, value in (("device", device), ("seed", seed)) if value is not None]
    return [*(overrides or []), *options]


def images_of(source: Path, ids: Path | None, option: str = "--images") -> dict[str, Path]:
    from repro.data import find_images, read_id_list

    if not source.exists():
        raise InputError(f"{option} {source}: no such file or folder")
    files = find_images(source) if source.is_dir() else {source.stem: source}
    if ids is None:
        return files
    names = read_id_list(ids)
    if absent := [name for name in names if name not in files]:
        raise InputError(f"{ids}: {absent[0]} has no image in {source}")
    return {name: files[name] for name in names}


def report_masks(result: FolderResult, out: Path) -> None:
    """Say what was done; a lone image that failed is bad input, failures among several are a list and status 1."""
    total = result.written + result.kept + len(result.failures)
    if result.failures and total == 1:
        raise InputError(next(iter(result.failures.values())))
    say(f"{out}: {result.written} masks written, {result.kept} were there")
    if result.failures:
        if distributed.is_first():
            print(f"repro: {len(result.failures)} of {total} images failed:", file=sys.stderr)
            for reason in result.failures.values():
                print(f"  {printable(reason)}", file=sys.stderr)
        raise typer.Exit(1)
