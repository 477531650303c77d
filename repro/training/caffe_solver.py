"""``repro train --solver``: a Caffe solver prototxt, with the train net it names, as the configuration of a run.

What the files say is taken over: the solver's fields, data layer, losses, dropout, fillers and multipliers. The net
must be one of ours: the train prototxt that our configuration stands for is written beside it and both are compared
field by field. What differs without touching a number is listed; anything else is refused, because a run that
silently trained another net would be worse than none.

Paths are Caffe's, from the working directory; where nothing is there, beside the solver file.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.nn as nn

from repro.config import (
    Config,
    ModelConfig,
    SolverConfig,
    Stage1Config,
    Stage2Config,
    config_from,
    load_config,
    validated,
)
from repro.errors import InputError
from repro.models import SEGMENTATION_NETS, CaffeNet, build_model
from repro.models.layer_types.normalisation import BatchNorm
from repro.training.prototxts import SEC_CUES, train_prototxt
from weights_conversion import Message, read_prototxt, unknown_fields
from weights_conversion.net_comparison import Difference, compare_nets
from weights_conversion.net_shapes import runs_in
from weights_conversion.prototxt import Value

_FLOATS = {
    *("base_lr", "gamma", "power", "momentum", "momentum2", "rms_decay", "delta"),
    *("weight_decay", "clip_gradients"),
}
_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")  # by their numbers in solver_type
_TAKEN = _FLOATS | {
    *("lr_policy", "stepsize", "stepvalue", "max_iter", "iter_size", "regularization_type"),
    *("average_loss", "snapshot"),
}
_NET_FIELDS = ("train_net", "net", "train_net_param", "net_param")
_USED = _TAKEN | {*_NET_FIELDS, "train_state", "random_seed", "type", "solver_type", "weights"}
_NO_USE = {  # of fields that the original has a use for and a run here has not
    "display": "log.csv has every iteration; solver.display=N thins it out",
    "snapshot_prefix": "a run writes to its folder, output=DIR",
    "snapshot_format": "snapshots are safetensors, repro convert makes Caffe's files of them",
    "solver_mode": "--device decides",
    "device_id": "--device decides",
}
# differences that leave the numbers alone, by the field's path
_HARMLESS = re.compile(
    r"(convolution|pooling|relu|softmax|lrn)_param\.engine|python_param\.(module|share_in_parallel)"
    r"|(include|exclude)(\..*)?|param \d+\.name"
    r"|name|force_backward|debug_info|param \d+\.(lr_mult|decay_mult)"
)
_REPORTS_ONLY = ("Accuracy", "SegAccuracy", "Silence")
_OF_DATA = {  # blobs that nothing learnt is behind
    *("images", "images_origin", "image_ids", "labels", "label", "label_shrink", "cues", "cues-new"),
}
_MULTIPLIER = re.compile(r"param \d+\.(lr_mult|decay_mult)")
_FILLER = re.compile(r".*_filler\..*")


@dataclasses.dataclass(frozen=True)
class SolverRun:
    """A configuration made of Caffe's files, the stage that they train, and what is to be said of it, by lines."""

    config: Config
    stage: int
    notes: list[str]


def load_solver(
    path: str, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> SolverRun:
    """Read a solver prototxt and its train net as a configuration; ``key=value`` overrides come last.

    ``variables`` are what ``${NAME}`` in the files stands for.

    Raises:
        InputError: a file that cannot be read, a solver, a net or a setting that is not among ours.
    """
    solver = read_prototxt(path, variables)
    fields = solver_fields(solver, path)
    validated(SolverConfig, fields, path)  # here, where an error names the solver's file
    unknown = unknown_fields(solver, "SolverParameter")
    notes = []
    for name in solver:
        if name not in _USED:
            reason = "unknown, ignored" if name in unknown else _NO_USE.get(name, "of no effect here")
            notes.append(f"{path}: {name}: {reason}")
    net, net_path = _train_net(solver, path, variables)
    notes += [f"{net_path}: {line}: unknown" for line in unknown_fields(net, "NetParameter")]
    reader = _NetReader(net, net_path)
    sections = reader.sections(fields)
    differences, harmless = reader.differences(sections)
    notes += [f"{net_path}: {line}" for line in harmless]
    if reader.stage == 2:
        notes.append(
            f"{net_path}: ImageSegDataLayer: its list is read in order; data.shuffle=true shuffles it"
        )
    if differences:
        more = (
            f" (and {len(differences) - 1} more: {'; '.join(differences[1:6])})"
            if len(differences) > 1
            else ""
        )
        raise InputError(f"{net_path}: not trained like this here: {differences[0]}{more}")
    content = _whole_config(path, reader, sections, solver)
    _resolve_paths(content[f"stage{reader.stage}"], Path(path).parent)
    stage = f"stage{reader.stage}"
    config = config_from(content, overrides, path, stages=(stage,))
    state = getattr(config, stage).init.solverstate
    if state and reader.is_reordered:
        raise InputError(
            f"{state}: its history is in the order of a net's layers, and {net_path} has them in another one"
        )
    return SolverRun(config, reader.stage, notes)


def _one(message: Message, name: str, where: str, default: Any = None) -> Any:
    try:
        return message.one(name, default)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _number(message: Message, name: str, where: str, default: float) -> float:
    value = _one(message, name, where, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {name}: expected a number, found {value!r}")
    return value


def solver_fields(solver: Message, path: str) -> dict[str, Any]:
    """The fields of a solver prototxt that :class:`SolverConfig` has."""
    fields: dict[str, Any] = {"type": _solver_type(solver, path)}
    for name in _TAKEN & solver.keys():
        if name == "stepvalue":
            fields[name] = list(solver[name])
            continue
        value = _one(solver, name, path)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fields[name] = float(value) if name in _FLOATS and whole else value
        if isinstance(value, str):
            fields[name] = str(value)
    return fields


def _solver_type(solver: Message, path: str) -> str:
    """``type``, or what ``solver_type``, its old form, is upgraded to (``UpgradeSolverType``)."""
    if "solver_type" not in solver:
        return str(_one(solver, "type", path, "SGD"))
    if "type" in solver:
        raise InputError(f"{path}: has type and solver_type, its old form; expected one of them")
    old = _one(solver, "solver_type", path)
    for number, kind in enumerate(_TYPES):
        if old in (number, kind.upper()):
            return kind
    names = ", ".join(kind.upper() for kind in _TYPES)
    raise InputError(f"{path}: solver_type: expected one of {names}, found {old!r}")


def _train_net(solver: Message, path: str, variables: Mapping[str, str] | None) -> tuple[Message, str]:
    """The net that the solver trains, without the layers of the other phase, and where it stands."""
    given = [name for name in _NET_FIELDS if name in solver]
    if len(given) != 1:
        raise InputError(
            f"{path}: names {len(given)} train nets ({', '.join(given) or 'none'}), expected one of net, train_net"
        )
    value = _one(solver, given[0], path)
    if isinstance(value, Message):
        net, where = value, path
    else:
        where = located(str(value), Path(path).parent)
        try:
            net = read_prototxt(where, variables)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if "layers" in net:
        raise InputError(f"{where}: a net in the old layout; upgrade it with Caffe's upgrade_net_proto_text")
    if not net.layers:
        raise InputError(f"{where}: no layers: not a net")
    level, stages = 0, set[str]()
    for holder, name, file in ((net, "state", where), (solver, "train_state", path)):
        if isinstance(state := _one(holder, name, file), Message):
            level = _one(state, "level", file, level)
            if not isinstance(level, int):
                raise InputError(f"{file}: {name}: level {level!r}: expected a whole number")
            stages |= {str(stage) for stage in state.get("stage", [])}
    layers: list[Value] = [
        layer for layer in net.layers if runs_in(layer, "TRAIN", level=level, stages=stages)
    ]
    return Message({**net, "layer": layers}), where


def located(path: str, beside: Path) -> str:
    """A path as Caffe takes it, from the working directory; or beside the solver, where that has it."""
    return str(beside / path) if not Path(path).exists() and (beside / path).exists() else path


class _NetReader:
    """A train net read as our configuration: each setting from the layer that holds it."""

    def __init__(self, net: Message, path: str) -> None:
        self.net, self.path = net, path
        self.layers: dict[str, Message] = {}
        for layer in net.layers:
            name = str(_one(layer, "name", path, ""))
            if name in self.layers:
                raise InputError(f"{path}: two layers are named {name!r}")
            self.layers[name] = layer
        self.python = {
            str(parameters.one("layer")): layer
            for layer in net.layers
            if (parameters := layer.get("python_param", [None])[-1]) and isinstance(parameters, Message)
        }
        self.stage = 2 if "ImageSegDataLayer" in self.python else 1
        self.model = self._model_settings()
        self.built = self._built()
        learnt = [layer for layer, _ in _with_weights(self.built)]
        self.is_reordered = [layer for layer in self.layers if layer in learnt] != learnt

    def fail(self, reason: str) -> InputError:
        return InputError(f"{self.path}: {reason}")

    def _types(self, type_: str) -> list[Message]:
        return [layer for layer in self.net.layers if layer.get("type") == [type_]]

    def _parameter(self, layer: Message, message: str, name: str, default: Any = None) -> Any:
        parameters = _one(layer, message, self.path)
        if not isinstance(parameters, Message):
            return default
        return _one(parameters, name, self.path, default)

    def _settings(self, layer: Message) -> dict[str, Any]:
        """``param_str``, which the releases' layers evaluate as a dict."""
        text = str(self._parameter(layer, "python_param", "param_str", "{}"))
        name = layer.get("name", ["?"])[0]
        try:
            settings = ast.literal_eval(text.replace("float('inf')", "1e999"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise self.fail(f"layer {name}: param_str is not a dict: {text[:80]}")
        return settings

    # --- the net ---

    def _model_settings(self) -> dict[str, Any]:
        for name in SEGMENTATION_NETS:
            narrow = build_model(name, width_divisor=64)
            wanted = [layer for layer, _ in _with_weights(narrow)]
            if all(layer in self.layers for layer in wanted):
                break
        else:
            raise self.fail(f"none of our nets ({', '.join(SEGMENTATION_NETS)}) has these layers")
        outputs = self._outputs(wanted[0])
        if outputs < 1 or 64 % outputs:
            raise self.fail(f"layer {wanted[0]}: num_output {outputs}, expected 64 or a divisor of it")
        ratios = {
            float(_number(parameters, "dropout_ratio", self.path, 0.5))
            for layer in self._types("Dropout")
            for parameters in _messages(layer, "dropout_param") or [Message()]
        }
        if len(ratios) > 1:
            raise self.fail(f"dropout ratios {sorted(ratios)}: expected one for all layers")
        model = {
            "name": name,
            "num_classes": self._outputs(narrow.classifiers[-1]),
            "width_divisor": 64 // outputs,
            "dropout": ratios.pop() if ratios else 0.0,
        }
        validated(ModelConfig, model, self.path)
        return model

    def _outputs(self, layer: str) -> int:
        outputs = self._parameter(self.layers[layer], "convolution_param", "num_output", 0)
        if type(outputs) is not int:
            raise self.fail(f"layer {layer}: num_output {outputs!r}: expected a whole number")
        return outputs

    def _built(self) -> CaffeNet:
        net = build_model(**self.model)
        self.multipliers = self._multipliers(net)
        net.set_multipliers(self.multipliers)
        return net

    def _multipliers(self, net: CaffeNet) -> dict[str, list[float]]:
        """``lr_mult`` and ``decay_mult`` of each parameter that has others than the net's own."""
        own = {group["name"]: [group["lr_mult"], group["decay_mult"]] for group in net.param_groups()}
        changed = {}
        names = [
            name
            for layer in self.net.layers
            for param in _messages(layer, "param")
            for name in param.get("name", [])
        ]
        if len(set(names)) < len(names):
            raise self.fail("parameters that layers share by name")
        for layer, module in _with_weights(net):
            if isinstance(module, BatchNorm):  # Caffe's learns none of its blobs, whatever the file says
                continue
            params = _messages(self.layers[layer], "param")
            for index, (kind, _) in enumerate(module.named_parameters()):
                param = params[index] if index < len(params) else Message()
                where = f"{self.path}: layer {layer}"
                pair = [float(_number(param, name, where, 1)) for name in ("lr_mult", "decay_mult")]
                if pair != own[f"{layer}.{kind}"]:
                    changed[f"{layer}.{kind}"] = pair
        return changed

    def _filler(self) -> Literal["gaussian", "msra"]:
        hidden = [
            layer for layer in self._types("Convolution") if layer.one("name") not in self.built.classifiers
        ]
        kinds = set()
        for layer in hidden:
            filler = self._parameter(layer, "convolution_param", "weight_filler")
            if isinstance(filler, Message):
                kinds.add(_one(filler, "type", self.path, "constant"))
        return "msra" if "msra" in kinds else "gaussian"

    # --- data and losses ---

    def sections(self, solver: dict[str, Any]) -> dict[str, Any]:
        """Our section of the stage, as plain fields."""
        section = {
            "solver": solver,
            "init": {"filler": self._filler()},
            "multipliers": self.multipliers,
        }
        if self.stage == 2:
            return section | {"data": self._stage2_data()}
        loss = self._losses()
        return section | {"data": self._stage1_data(loss["variant"]), "loss": loss}

    def _stage1_data(self, variant: str) -> dict[str, Any]:
        if coco := self.python.get("AnnotationLayerCOCO"):
            settings = self._settings(coco)
            size = settings.get("new_size", (321, 321))
            if not isinstance(size, (tuple, list)) or len(size) != 2:
                raise self.fail(f"layer {coco.one('name')}: new_size {size!r}: expected (height, width)")
            height, width = size
            return {
                "layer": "AnnotationCOCO",
                **_renamed(settings, source="list", root="image_root", batch_size="batch_size"),
                **_renamed(settings, root="cues"),
                "mirror": bool(settings.get("mirror", False)),
                "new_height": height,
                "new_width": width,
                "shuffle": True,
            }
        images, annotation = self._types("ImageData"), self.python.get("AnnotationLayer")
        if len(images) != 1 or annotation is None:
            names = "ImageData with AnnotationLayer, AnnotationLayerCOCO, ImageSegDataLayer"
            raise self.fail(f"no data layer of the releases ({names})")
        get = lambda name, default=None: self._parameter(images[0], "image_data_param", name, default)  # noqa: E731
        settings = self._settings(annotation)
        return {
            "image_root": get("root_folder", ""),
            "list": get("source"),
            "cues": settings.get("cues", SEC_CUES if variant == "sec" else None),
            "batch_size": get("batch_size", 1),
            "new_height": get("new_height", 0),
            "new_width": get("new_width", 0),
            "shuffle": bool(get("shuffle", False)),
            "mirror": bool(settings.get("mirror", False)),
            "background_label": variant == "dsrg",
        }

    def _stage2_data(self) -> dict[str, Any]:
        settings = self._settings(self.python["ImageSegDataLayer"])
        crop = settings.get("crop_size", (0, 0))
        shrink = [
            self._parameter(layer, "interp_param", "shrink_factor", 1) for layer in self._types("Interp")
        ]
        return {
            **_renamed(settings, root_folder="image_root", source="list", batch_size="batch_size"),
            **_renamed(settings, root_folder="label_root"),
            "crop_size": crop[0] if isinstance(crop, tuple) and len(set(crop)) == 1 else crop,
            "mirror": bool(settings.get("mirror", False)),
            "shuffle": False,  # the layer reads its list in order (recorded in retrain.h5)
            "label_shrink": shrink[0] if shrink else 1,
        }

    def _losses(self) -> dict[str, Any]:
        crf, growing = self.python.get("CRFLayer"), self.python.get("DSRGLayer")
        on_scores = crf is not None and crf.get("bottom", [None])[0] == self.built.scores_blob
        seeds = [name for name in ("SeedLossLayer", "BalancedSeedLossLayer") if name in self.python]
        loss: dict[str, Any] = {
            "variant": "sec" if on_scores else "dsrg",
            "seed": {"SeedLossLayer": "seed", "BalancedSeedLossLayer": "balanced"}[seeds[0]]
            if seeds
            else "none",
            "cues": "fixed" if growing is None else "grown",
            "constrain": "ConstrainLossLayer" in self.python,
            "expand": "ExpandLossLayer" in self.python,
        }
        if growing is not None:
            settings = self._settings(growing)
            for theirs, ours in (("th1", "theta_b"), ("th2", "theta_f")):
                if not isinstance(settings.get(theirs), (int, float)):
                    raise self.fail(f"layer {growing.one('name')}: param_str has no number {theirs!r}")
                loss[ours] = float(settings[theirs])
        return loss

    # --- the comparison ---

    def differences(self, fields: dict[str, Any]) -> tuple[list[str], list[str]]:
        """What would change the numbers, and what does not, as lines."""
        section: Stage1Config | Stage2Config
        if self.stage == 2:
            section = validated(Stage2Config, fields, self.path)
        else:
            section = validated(Stage1Config, fields, self.path)
        ours = train_prototxt(self.built, section, filler=self._filler())
        fatal, harmless, fillers = [], [], 0
        for difference in compare_nets(ours, self.net):
            reason = self._why_harmless(difference)
            if _FILLER.fullmatch(difference.field):
                fillers += 1
            elif reason is None:
                fatal.append(str(difference))
            elif reason:
                harmless.append(f"{difference} ({reason})")
        if fillers:
            harmless.append(
                f"{fillers} fields of fillers differ from init.filler={self._filler()}, "
                "which matters for layers that init.weights does not hold"
            )
        return fatal, harmless

    def _why_harmless(self, difference: Difference) -> str | None:
        """Why a difference does not matter; empty where it is not worth a word, None where it does matter."""
        layer, field, ours, theirs = difference
        if not field:
            extra = theirs.get("type", [""])[0] if isinstance(theirs, Message) else ""
            return "reports only" if extra in _REPORTS_ONLY else "" if ours and _is_report(ours) else None
        if field == "order of the layers":
            reordered = "a solver state's history is in the order here"
            return reordered if self.is_reordered else "of no effect on the numbers"
        if _MULTIPLIER.fullmatch(field) or (not layer and field == "name"):
            return ""  # taken over: the net was built with the file's; BatchNorm has none in any case
        if field == "propagate_down":
            return "of no effect on the numbers" if not self._stops_gradient(layer, theirs) else None
        if field == "phase":  # it drops no layer, and of ours Dropout alone asks for it
            is_off = theirs == "TEST" and self.layers[layer].get("type") == ["Dropout"]
            return None if is_off else "of no effect on the numbers"
        if field == "python_param.param_str" and isinstance(ours, dict) and isinstance(theirs, dict):
            # the layers take a setting that is not there as off
            left = {
                key for key in ours.keys() | theirs.keys() if (ours.get(key) or 0) != (theirs.get(key) or 0)
            }
            return "" if not left else None
        if (
            field in ("loss_weight", "top")
            and theirs is None
            and self.layers[layer].get("type") == ["SoftmaxWithLoss"]
        ):
            return ""  # Caffe's default for this layer; a top that is not named gets a name
        return "of no effect on the numbers" if _HARMLESS.fullmatch(field) else None

    def _stops_gradient(self, layer: str, propagate_down: Any) -> bool:
        """Whether ``propagate_down: false`` keeps a gradient that is not zero anyhow from a bottom."""
        python = self._parameter(self.layers[layer], "python_param", "layer")
        on_scores = self.layers[layer].get("bottom", [None])[0] == self.built.scores_blob
        if python == "DSRGLayer" or (python == "CRFLayer" and on_scores):  # their backward passes 0
            return False
        values = propagate_down if isinstance(propagate_down, tuple) else (propagate_down,)
        bottoms = self.layers[layer].get("bottom", [])
        return any(
            not value and bottom not in _OF_DATA
            for bottom, value in zip(bottoms, values, strict=False)
            if value is not None
        )


def _messages(layer: Message, name: str) -> list[Message]:
    return [value for value in layer.get(name, []) if isinstance(value, Message)]


def _is_report(layer: Message) -> bool:
    return layer.get("type", [""])[0] in _REPORTS_ONLY


def _with_weights(net: CaffeNet) -> list[tuple[str, nn.Module]]:
    pairs = ((layer.name, net.get_submodule(layer.name)) for layer in net.layers)
    return [(name, module) for name, module in pairs if any(True for _ in module.parameters())]


def _renamed(settings: dict[str, Any], **names: str) -> dict[str, Any]:
    return {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}


def _whole_config(path: str, reader: _NetReader, section: dict[str, Any], solver: Message) -> dict[str, Any]:
    """A whole configuration around the section: what the files do not say comes from the profile of the net."""
    sec = section.get("loss", {}).get("variant") == "sec"
    backbone = reader.model["name"].partition("_")[0]
    profile = "sec_vgg16_voc" if sec else f"dsrg_{backbone}_voc"
    content = load_config(profile, ["rows=[]"]).model_dump()
    classes = reader.model["num_classes"]
    if classes != len(content["dataset"]["classes"]):
        content["dataset"]["classes"] = ["background", *(f"class {index}" for index in range(1, classes))]
    seed = int(_number(solver, "random_seed", path, -1))
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(path).stem).lstrip("-._+") or "solver"
    del content["report"]
    content |= {"name": name, "model": reader.model, f"stage{reader.stage}": section}
    content["seed"] = seed if seed >= 0 else 0  # -1, Caffe's default, is the clock
    if weights := _one(solver, "weights", path):
        section["init"]["weights"] = located(str(weights), Path(path).parent)
    return content


def _resolve_paths(section: dict[str, Any], beside: Path) -> None:
    data = section["data"]
    for key in ("image_root", "label_root", "list", "cues"):
        if isinstance(data.get(key), str) and data[key]:
            data[key] = located(data[key], beside)
