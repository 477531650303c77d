"""What the verbs share: the application, how a verb is made and answers, their common options.

The modules of this package import at their top what is light; a verb imports what it works with when it is called. So
``repro --help`` and every shell completion take a fraction of a second, without torch.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repro import __version__, distributed
from repro.constants import PRODUCER
from repro.errors import InputError, printable
from repro.files import as_json_holds
from repro.profiles import profile_names

if TYPE_CHECKING:
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
    pass  # run_command looks for --debug


# --- how a verb is made and answers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a verb has to say.

    Attributes:
        data: for ``--json``; a ``Path`` in it is printed as its text.
        lines: the same for people. They may come one by one while the verb works; ``data`` counts once all have come.
        status: the exit status.
    """

    data: Any
    lines: Iterable[object]
    status: int = 0


def verb(
    group: typer.Typer, name: str | None = None, *, examples: str
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Make a function that gives an `Answer` a verb of ``group``: its answer is printed here, as text or as JSON.

    Args:
        name: the function's by default.
        examples: calls that can be pasted, with an empty line between two; ``--help`` shows them.
    """
    # \b keeps click from filling the paragraph that follows it
    paragraphs = [f"\b\n{example}" for example in inspect.cleandoc(examples).split("\n\n")]
    epilog = "\n\n".join([f"Example{'s' if len(paragraphs) > 1 else ''}:", *paragraphs])

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        @functools.wraps(function)
        def command(*, as_json: bool, **given: Any) -> None:
            answer = function(**given)
            _print(answer, as_json)
            if answer.status:
                raise typer.Exit(answer.status)

        signature = inspect.signature(function, eval_str=True)
        option = inspect.Parameter(
            "as_json",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")],
        )
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), option], return_annotation=None
        )
        group.command(name, epilog=epilog)(command)
        return function

    return register


def _print(answer: Answer, as_json: bool) -> None:
    """Once for all ranks; each line on its own, with what is foreign in it escaped."""
    for line in answer.lines:
        if distributed.is_first() and not as_json:
            typer.echo(printable(line))
    if distributed.is_first() and as_json:
        typer.echo(json.dumps(as_json_holds(answer.data), indent=1, default=str))


# --- common options -------------------------------------------------------------------------------------------


def _profiles(incomplete: str) -> list[str]:
    return [name for name in profile_names() if name.startswith(incomplete)]


_CONFIG = typer.Option(
    "--config",
    help=f"A profile ({', '.join(profile_names())}) or the path of one.",
    autocompletion=_profiles,
    show_default=False,
)
ConfigOption = Annotated[str, _CONFIG]
ClassifierOption = Annotated[
    str | None,
    typer.Option(
        "--net", help="vgg16_cam or vgg16_bg, the classifiers of stage 0.", show_default="the profile's net"
    ),
]
OptionalConfig = Annotated[str | None, _CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings other than the profile's, e.g. device=cuda seed=1 stage1.solver.max_iter=100",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path, typer.Option("--weights", help=".safetensors, .caffemodel or any other form that is read.")
]
ImageList = Annotated[
    Path | None,
    typer.Option("--list", help="Only the images of this list: lines x, x.jpg, or a training list's."),
]
InputList = Annotated[
    Path | None, typer.Option("--input-list", help="A cue file's list, lines 'image index'.")
]
FirstClass = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1,
        help="For class indices that do not tell: 0 where they leave background out, 1 where 0 is background.",
        show_default=False,
    ),
]


# --- images in, masks out -------------------------------------------------------------------------------------


def is_exported(path: Path) -> bool:
    """Whether an ONNX file is one of ours: ``producer_name``, its second field, says so."""
    name = PRODUCER.encode()
    with path.open("rb") as file:
        return file.read(64)[2:].startswith(bytes([0x12, len(name)]) + name)


def images_of(source: Path, ids: Path | None = None) -> dict[str, Path]:
    """The images that ``--images`` names, by id: an image, a folder of them, or those of a list in it."""
    from repro.data import find_images, read_id_list

    if not source.exists():
        raise InputError(f"--images {source}: no such file or folder")
    files = find_images(source) if source.is_dir() else {source.stem: source}
    if ids is None:
        return files
    names = read_id_list(ids)
    if absent := [name for name in names if name not in files]:
        raise InputError(f"{ids}: {absent[0]} has no image in {source}")
    return {name: files[name] for name in names}


def answer_masks(result: FolderResult, out: Path) -> Answer:
    """What was done; a lone image that failed is bad input, failures among several are a list and status 1."""
    total = result.written + result.kept + len(result.failures)
    if result.failures and total == 1:
        raise InputError(next(iter(result.failures.values())))
    if result.failures and distributed.is_first():
        print(f"repro: {len(result.failures)} of {total} images failed:", file=sys.stderr)
        for reason in result.failures.values():
            print(f"  {printable(reason)}", file=sys.stderr)
    return Answer(
        {"masks": out, "written": result.written, "kept": result.kept, "failures": result.failures},
        [f"{out}: {result.written} masks written, {result.kept} were there"],
        status=1 if result.failures else 0,
    )
