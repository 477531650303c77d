"""Any net as the text of a plain PyTorch module, which needs nothing of this project: each layer's registry entry
gives its own expression.

Functions that PyTorch has not (Caffe's pooling, LRN within channels, …) are copied into the text, with what they use,
from where they are defined. So what a layer computes stands in one place for nets that run here and for such files.
"""

from __future__ import annotations

import ast
import functools
import importlib
import keyword
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repro.errors import InputError, printable
from repro.models.literals import Code, literal
from repro.models.net import CaffeNet
from repro.models.net_layer import NetLayer
from repro.models.registry import Layer

SOURCE_HEADING = b'"""The Caffe net '
"""How the files begin."""

_RESERVED = {"self", "torch", "nn", "F", "Path", "load_file", "Net", "load", "blobs", *keyword.kwlist}
_OF_MODULES = {*dir(nn.Module())}


class ModuleSource:
    """A module's text in the making; ``module``, ``blob``, ``call``, ``function`` and ``line`` are for layers."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self.attributes: dict[str, str] = {}  # name of an attribute -> the expression that makes it
        self.renamed: dict[
            str, str
        ] = {}  # name of an attribute -> Caffe's name of the layer, where they differ
        self.lines: list[str] = []
        self.functions: dict[str, Callable[..., Any]] = {}
        self._attribute_of: dict[str, str] = {}
        self._variables: dict[str, str] = {}
        self._taken = {*_RESERVED, *taken}
        self._layer: Layer

    def add(self, place: NetLayer, layer: Layer) -> None:
        """The lines of a layer."""
        self._layer = layer
        self.lines.append(f"# {printable(place.name)} ({printable(place.type)})")
        bottoms = [self.variable(bottom) for bottom in place.bottoms]
        found = layer.source(self, *bottoms)
        tops = ", ".join(self.variable(top) for top in place.tops)
        values = found if isinstance(found, str) else ", ".join(found)
        if tops:
            self.line(f"{tops} = {values}")

    def variable(self, blob: str) -> Code:
        """The name of the variable that holds a blob."""
        if blob not in self._variables:
            self._variables[blob] = _identifier(blob, self._taken | {*self._variables.values()})
        return Code(self._variables[blob])

    def line(self, text: str) -> None:
        """A statement on the way to the layer's tops."""
        self.lines.append(text)

    def module(self, constructor: str) -> Code:
        """An attribute made by ``constructor``, whose parameters are the layer's blobs under their names here."""
        name = self._attribute()
        self.attributes[name] = constructor
        return Code(f"self.{name}")

    def blob(self, name: str) -> Code:
        """One of the layer's blobs; a layer that asks for one has all of them in an attribute of its name."""
        layer = self._layer
        shapes = ", ".join(
            f"{kind}={literal(tuple(blob.shape))}" for kind, blob in layer.caffe_blobs().items()
        )
        learnt = ", learnt=False" if layer.not_learnt else ""
        return Code(f"{self.module(f'{self.function(blobs)}({shapes}{learnt})')}.{name}")

    def function(self, function: Callable[..., Any]) -> Code:
        """The name of a function; one of this project is copied into the text with all that it uses."""
        name = function.__name__
        for prefix, module in (("torch", torch), ("F", F)):
            if getattr(module, name, None) is function:
                return Code(f"{prefix}.{name}")
        self.functions[name] = function
        return Code(name)

    def call(self, function: Callable[..., Any], *values: object, **named: object) -> Code:
        """A call of a function: ``Code`` stands as it is, other values as literals."""
        inside = [*map(literal, values), *(f"{name}={literal(value)}" for name, value in named.items())]
        return Code(f"{self.function(function)}({', '.join(inside)})")

    def _attribute(self) -> str:
        layer = self._layer.caffe_name
        if layer not in self._attribute_of:
            name = _identifier(layer, _OF_MODULES | {*keyword.kwlist, *self._attribute_of.values()})
            self._attribute_of[layer] = name
            if name != layer:
                self.renamed[name] = layer
        return self._attribute_of[layer]


def _identifier(name: str, taken: set[str]) -> str:
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    text = f"_{text}" if not text or text[0].isdigit() else text
    while text in taken:
        text += "_"
    return text


def blobs(learnt: bool = True, **shapes: tuple[int, ...]) -> nn.ParameterDict:
    """A layer's parameters, to be loaded."""
    return nn.ParameterDict(
        {name: nn.Parameter(torch.empty(shape), requires_grad=learnt) for name, shape in shapes.items()}
    )


def net_source(net: CaffeNet, weights_name: str) -> str:
    """The text of a Python file with the net as a class ``Net`` and a function ``load``.

    Args:
        net: its layers all have a form in plain PyTorch.
        weights_name: of the safetensors file beside it, under Caffe's layer names.

    Raises:
        InputError: a layer that has no form here.
    """
    source = _walk(net, ModuleSource())
    helpers = _Copied(list(source.functions.values()))
    source = _walk(net, ModuleSource([*helpers.statements]))
    inputs, outputs = list(net.inputs), net.outputs
    if not inputs:
        raise InputError(f"{net.path or net.name}: the net has no input blob")
    shapes = ", ".join(f"{source.variable(name)} {net.shapes[name]}" for name in inputs)
    results = ", ".join(f"{printable(name)} {net.shapes[name]}" for name in outputs)
    arguments = ", ".join(f"{source.variable(name)}: torch.Tensor" for name in inputs)
    if len(outputs) == 1:
        returns, annotation = str(source.variable(outputs[0])), "torch.Tensor"
    else:
        returns = "{" + ", ".join(f"{name!r}: {source.variable(name)}" for name in outputs) + "}"
        annotation = "dict[str, torch.Tensor]"
    owners = _shared(net, source)
    body = [*(f"self.{name} = {made}" for name, made in source.attributes.items()), *owners]
    imports = helpers.imports | {
        "from pathlib import Path",
        "import torch",
        "import torch.nn.functional as F",
        "from safetensors.torch import load_file",
        "from torch import nn",
    }
    standard = sorted(i for i in imports if not re.search(r"torch|numpy", i))
    other = sorted(i for i in imports if i not in standard)
    about = _in_docstring(
        f"The Caffe net {printable(net.name) or 'without a name'} in plain PyTorch, as `repro convert` wrote it.\n\n"
        f"    net = load()                    # weights from {printable(weights_name)}, beside this file\n"
        f"    result = net({', '.join(source.variable(name) for name in inputs)})\n\n"
        f"Input: {shapes}, float32, as the Caffe net takes it (images mostly BGR less their mean).\n"
        f"Result: {results}.\n"
    )
    parts = [
        f'"""{about}"""',
        "from __future__ import annotations",
        "\n".join(standard) + "\n\n" + "\n".join(other),
        *helpers.statements.values(),
        "class Net(nn.Module):\n"
        '    """The layers in the order of the prototxt; comments name them as Caffe does."""\n\n'
        "    def __init__(self) -> None:\n        super().__init__()\n"
        + textwrap.indent("\n".join(body), "        ")
        + f"\n\n    def forward(self, {arguments}) -> {annotation}:\n"
        + textwrap.indent("\n".join([*source.lines, f"return {returns}"]), "        "),
        _loader(source.renamed),
    ]
    return "\n\n".join(parts[:3]) + "\n" + "".join(f"\n\n{part}\n" for part in parts[3:])


def _in_docstring(text: str) -> str:
    """``text`` as it has to stand between triple quotes, so that no name in a prototxt ends them."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _walk(net: CaffeNet, source: ModuleSource) -> ModuleSource:
    for name in net.inputs:
        source.variable(name)
    for place in net.layers:
        source.add(place, net[place.name])
    return source


def _shared(net: CaffeNet, source: ModuleSource) -> list[str]:
    """Lines that make parameters which layers share one object."""
    names = {caffe: name for name, caffe in source.renamed.items()}
    first: dict[int, str] = {}
    lines = []
    for place in net.layers:
        for kind, blob in net[place.name].caffe_blobs().items():
            own = f"self.{names.get(place.name, place.name)}.{kind}"
            if id(blob) in first:
                lines.append(f"{own} = {first[id(blob)]}")
            first.setdefault(id(blob), own)
    return lines


def _loader(renamed: dict[str, str]) -> str:
    lines = [
        "def load(path: str | Path | None = None) -> Net:",
        '    """The net with the weights of a safetensors file, by default the one beside this file, for testing."""',
        '    weights = load_file(path or Path(__file__).with_suffix(".safetensors"))',
    ]
    if renamed:
        table = "".join(f"    {caffe!r}: {name!r},\n" for name, caffe in renamed.items())
        lines = [
            "# Caffe's names of layers that are none in Python",
            f"NAMES = {{\n{table}}}",
            "",
            "",
            *lines,
        ]
        lines += [
            "    for key in list(weights):",
            '        layer, _, blob = key.rpartition(".")',
            '        weights[f"{NAMES.get(layer, layer)}.{blob}"] = weights.pop(key)',
        ]
    return "\n".join([*lines, "    net = Net()", "    net.load_state_dict(weights)", "    return net.eval()"])


class _Copied:
    """Functions and all that they use of this project, as text: ``statements`` by name, and ``imports``."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self.statements: dict[str, str] = {}
        self.imports: set[str] = set()
        self._reading: set[str] = set()
        for function in functions:
            self._copy(function.__name__, function.__module__)

    def _copy(self, name: str, module_name: str) -> None:
        """The statement that defines a module's name, behind those that it needs."""
        if name in self.statements or name in self._reading:
            return
        lines, defined = _module(module_name)
        statement = defined.get(name)
        if statement is None:
            return  # a builtin, or a name of the function's own
        if isinstance(statement, ast.Import):
            self.imports.add(ast.unparse(statement))
            return
        if isinstance(statement, ast.ImportFrom):
            if str(statement.module).split(".")[0] in ("repro", "weights_conversion"):
                self._copy(name, str(statement.module))
            else:
                self.imports.add(f"from {statement.module} import {name}")
            return
        self._reading.add(name)
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                self._copy(node.id, module_name)
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        self.statements[name] = "\n".join(lines[first - 1 : statement.end_lineno])


@functools.cache
def _module(name: str) -> tuple[list[str], dict[str, ast.stmt]]:
    """The lines of a module, and the statement that first defines each of its names."""
    text = Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8")
    defined: dict[str, ast.stmt] = {}
    for statement in ast.parse(text).body:
        for bound in _bound(statement):
            defined.setdefault(bound, statement)
    return text.splitlines(), defined


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
