"""A run's settings as one strict model, under Caffe's own names. Unknown keys and wrong types are errors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from repro.config.marks import Mark
from repro.config.validation import validated
from repro.constants import CLASS_NAMES, VOID
from repro.errors import meant
from repro.layers.localization import BACKGROUND_SHARE, CAM_THRESHOLD, SALIENCY_THRESHOLD, MergeRule
from repro.layers.losses import Pooling
from repro.models import SEGMENTATION_NETS, CaffeNet, build_model
from repro.models.fillers import Filler
from repro.models.loss_tails import ROWS


def _threshold(value: float) -> float:
    if not (0 <= value <= 1 or value == math.inf):
        raise ValueError(
            f"expected a probability of at most 1, or .inf for a threshold never reached, not {value}"
        )
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        named = re.sub(r"gpu|nvidia", "cuda", re.sub(r"^(?=\d+$)", "cuda:", value.lower()))
        hint = meant(named, ("auto", "cpu", "cuda", named if re.fullmatch(r"cuda:\d+", named) else "cuda:0"))
        raise ValueError(f"{value!r}: {hint}")
    return value


Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Threshold = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_threshold)]
MAX_SEED = 2**63 - 1

NeutralInt = Annotated[NonNegative, Mark.NEUTRAL]
NeutralPath = Annotated[str | None, Mark.NEUTRAL]
InputPath = Annotated[str | None, Mark.INPUT]


class Section(BaseModel):
    """Settings of one subject. A field that changes no result says so by a mark (``repro/config/marks.py``)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value).partition("\n")[0]


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, sequences as lists, whole numbers as integers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class SolverConfig(Section):
    """Caffe's ``SolverParameter``, the fields that matter here; defaults are Caffe's but for ``display``, which
    shows and logs every iteration. ``snapshot_keep`` is not Caffe's: how many of the newest snapshots stay (0: all).
    ``momentum2`` is Adam's, ``rms_decay`` RMSProp's; ``delta`` is added where the last four types divide."""

    type: Literal["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"] = "SGD"
    base_lr: float = Field(gt=0)
    lr_policy: Literal["fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid"]
    gamma: float = 0.0
    power: float = 0.0
    stepsize: NonNegative = 0
    stepvalue: list[NonNegative] = []
    max_iter: NonNegative = 0
    iter_size: Positive = 1
    momentum: float = Field(default=0.0, ge=0, lt=1)
    momentum2: float = Field(default=0.999, ge=0, lt=1)
    rms_decay: float = Field(default=0.99, ge=0, lt=1)
    delta: float = Field(default=1e-8, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    regularization_type: Literal["L1", "L2"] = "L2"
    clip_gradients: float = -1.0
    display: NeutralInt = 1
    average_loss: Annotated[Positive, Mark.NEUTRAL] = 1
    snapshot: NeutralInt = 0
    snapshot_keep: NeutralInt = 5

    @model_validator(mode="after")
    def _policy_has_its_numbers(self) -> Self:
        if self.lr_policy == "step" and self.stepsize < 1:
            raise ValueError("lr_policy step needs stepsize of at least 1")
        if self.lr_policy == "poly" and self.max_iter < 1:
            raise ValueError("lr_policy poly needs max_iter of at least 1")
        if self.lr_policy == "inv" and self.gamma < 0:
            raise ValueError(f"lr_policy inv needs gamma of at least 0, not {self.gamma}")
        if self.lr_policy == "multistep" and sorted(self.stepvalue) != self.stepvalue:
            raise ValueError(f"stepvalue must ascend, not {self.stepvalue}")
        return self

    @model_validator(mode="after")
    def _type_has_its_numbers(self) -> Self:
        if self.type in ("AdaGrad", "RMSProp") and self.momentum:
            raise ValueError(f"type {self.type} has no momentum; expected momentum 0, found {self.momentum}")
        if self.type in ("SGD", "Nesterov"):
            return self
        if not np.float32(self.delta) > 0:  # as Caffe holds it
            raise ValueError(f"type {self.type} divides by delta where a gradient is 0: expected it above 0")
        for name in ("momentum", "momentum2", "rms_decay"):
            if np.float32(getattr(self, name)) == 1:
                raise ValueError(f"{name} {getattr(self, name)}: is 1 in float32, expected it below 1")
        return self

    @classmethod
    def of(cls, fields: SolverConfig | dict[str, Any]) -> SolverConfig:
        """The config itself, or one made of a dict of its fields, which code may hold as NumPy's numbers."""
        if isinstance(fields, cls):
            return fields
        return validated(cls, {name: _plain(value) for name, value in dict(fields).items()}, "solver")


class ModelConfig(Section):
    name: str
    num_classes: Annotated[int, Field(ge=2, le=VOID)] = 21
    width_divisor: Positive = 1
    dropout: Annotated[float, Field(ge=0, lt=1), Mark.TRAINING] = 0.5

    def build(self, **others: Any) -> CaffeNet:
        """The net (`build_model`); ``others`` take the place of settings."""
        return build_model(**{**self.model_dump(), **others})


class DatasetConfig(Section):
    """A data set on disk; ``reproduce`` and ``pseudo-labels`` find their images through it.

    VOC's layout: ``cues`` and ``input_list`` (image name -> cue index) are looked for beside ``VOCdevkit`` and in
    ``root`` when not given; ``train`` and ``val`` name lists in ``ImageSets/Segmentation``.
    COCO's: ``train`` and ``val`` name folders of images; ``cues`` is the folder of the cue PNGs, ``cues/<train>`` in
    ``root`` when not given; the validation masks are in ``<masks>/<val>``.
    ``pretrain`` is the embedded set's: of how many further images, each seen once, its net learns the classes first, as
    the papers' has learnt ImageNet's, where ``stage1.init.weights`` is not given (``repro/run/pretrain.py``).
    The limits take the first n. ``images`` is how many there are to train on and to validate on, for a forecast
    without the data.
    """

    kind: Literal["voc", "coco", "mini"] = "voc"
    root: NeutralPath = None
    train: str = "train_aug"
    val: str = "val"
    masks: str = "SegmentationClass"
    train_masks: NeutralPath = (
        "SegmentationClassAug"  # if all training images have one: for the log of their seeds
    )
    input_list: InputPath = None
    cues: InputPath = None
    classes: list[str] = list(CLASS_NAMES)
    make_cues: bool = False  # reproduce makes the cues itself, by stage 0
    pretrain: Positive | None = None
    train_limit: Positive | None = None
    val_limit: Positive | None = None
    images: Annotated[Annotated[list[Positive], Field(min_length=2, max_length=2)] | None, Mark.NEUTRAL] = (
        None
    )


class InitConfig(Section):
    """Where a stage's weights come from. ``filler`` fills the layers that ``weights`` does not hold.

    ``gaussian`` is the releases', ``lsuv`` for new layers over pre-trained convolutions, ``looks_linear`` for a net
    from scratch."""

    weights: InputPath = None
    solverstate: Annotated[str | None, Mark.EXTRA_INPUT] = None
    spread_branches: bool = False
    filler: Filler = "gaussian"


class Stage1Data(Section):
    """``layer`` is the original that reads the list: ``ImageData`` (with ``Annotation``) lines ``image index`` and
    a cue file, ``AnnotationCOCO`` lines ``image cue-label`` and a folder of PNGs, both as ``cues``.
    ``truth_root`` is a folder of the images' masks, ``<image>.png``: the quality of the seeds is logged with them, and
    nothing is learnt from them.
    ``background_label`` is the former's: in COCO background is present where it has a cue; so is ``keep_gb``, the
    gigabytes of temporary files for images that are decoded and resized once (all of VOC take 3.3)."""

    layer: Literal["ImageData", "AnnotationCOCO"] = "ImageData"
    image_root: NeutralPath = None  # the list names the images, wherever they lie
    list: InputPath = None
    cues: InputPath = None
    truth_root: NeutralPath = None
    batch_size: Positive = 20
    new_height: Positive = 321
    new_width: Positive = 321
    mirror: bool = True
    shuffle: bool = True
    background_label: bool = True
    workers: NeutralInt = 2
    keep_gb: Annotated[float, Field(ge=0), Mark.NEUTRAL] = 4.0


class Stage2Data(Section):
    image_root: NeutralPath = None
    label_root: InputPath = None
    list: InputPath = None
    batch_size: Positive = 10
    crop_size: Positive = 321
    label_shrink: Positive = 8
    rgb: bool = False  # swap the channels, for a net that has learnt on AnnotationCOCO
    mirror: bool = True
    shuffle: bool = True
    workers: NeutralInt = 2


# lr_mult and decay_mult by parameter (conv1_1.weight), where they are not the net's own
Multipliers = dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]


class Stage0Data(Section):
    """Images and their labels. Where they are not given, those of ``dataset`` are taken: its training list, and the
    labels of VOC's cue file, of its ``Annotations`` or of COCO's annotations. A folder of images without a list is
    taken whole."""

    image_root: NeutralPath = None
    list: InputPath = None
    labels: InputPath = None
    held_out: float = Field(default=0.05, ge=0, lt=1)  # share of the images, for average precision
    input_size: Annotated[int, Field(ge=32)] = 321
    batch_size: Positive = 15
    mirror: bool = True
    shuffle: bool = True
    workers: NeutralInt = 2


class CuesConfig(Section):
    """How cues are made of the classifiers; see ``repro/layers/localization.py``. ``saliency`` is a folder of maps that
    stands in for the classifier of the background."""

    cam_threshold: float = Field(default=CAM_THRESHOLD, ge=0, lt=1)
    background_share: float = Field(default=BACKGROUND_SHARE, ge=0, lt=1)
    saliency: Annotated[str | None, Mark.EXTRA_INPUT] = None
    saliency_threshold: float = Field(default=SALIENCY_THRESHOLD, gt=0, le=1)
    merge: MergeRule = "smaller_wins"
    batch_size: Annotated[Positive, Mark.NEUTRAL] = 16


class Stage0Config(Section):
    """The classifiers ``vgg16_cam`` and ``vgg16_bg``, both trained by one solver, and the cues made of them."""

    data: Stage0Data
    solver: SolverConfig
    init: InitConfig = InitConfig()
    test_interval: NeutralInt = 500
    cues: CuesConfig = CuesConfig()


class LossConfig(Section):
    """Which layers of the papers stage 1 trains with; Table 2's rows are combinations of these."""

    variant: Literal["dsrg", "sec"] = "dsrg"
    seed: Literal["seed", "balanced", "none"] = "balanced"
    cues: Literal["fixed", "grown"] = "grown"
    constrain: bool = True
    expand: bool = False
    pooling: Pooling = "weighted_rank"
    theta_f: Threshold = 0.85
    theta_b: Threshold = 0.99
    rule: Literal["released", "paper"] = "released"

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if self.seed == "none" and not self.constrain and not self.expand:
            raise ValueError("seed none without constrain and expand leaves nothing to minimise")
        return self


class Stage1Config(Section):
    data: Stage1Data
    solver: SolverConfig
    loss: LossConfig
    init: InitConfig = InitConfig()
    multipliers: Multipliers = {}


class Stage2Config(Section):
    data: Stage2Data
    solver: SolverConfig
    init: InitConfig = InitConfig()
    multipliers: Multipliers = {}


class PredictConfig(Section):
    """One of the releases' test scripts."""

    protocol: Literal["dsrg_stage1", "dsrg_final", "sec", "coco_stage1", "coco_final", "mini_stage1"]
    crf: bool = True


class PseudoLabelConfig(PredictConfig):
    """As above; ``use_labels`` restricts the argmax to the training image's labels, which its cues know."""

    use_labels: bool = False


class ReportConfig(Section):
    """What the results folder shows of a run; no result depends on it.

    ``pictures: false`` leaves out everything that shows an image of the data set. ``browse`` bounds the images that
    the page holds, ``growth`` names the training images whose seeds are shown growing (the first four by default).
    """

    pictures: bool = True
    browse: NonNegative = 60
    growth: list[str] | None = None


class RunConfig(Section):
    """What every run has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"), Mark.NEUTRAL]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), Mark.REPETITION] = 0
    device: Annotated[str, AfterValidator(_device), Mark.NEUTRAL] = "auto"
    precision: Literal["faithful", "fast", "double"] = "faithful"  # see repro/precision.py
    output: NeutralPath = None
    tensorboard: Annotated[bool, Mark.NEUTRAL] = (
        False  # event files beside log.csv; needs the extra tensorboard
    )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and blobs, by ``precision``."""
        return torch.float64 if self.precision == "double" else torch.float32

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``output``, or ``results/runs/<name>`` under the current folder."""
        if not self.output:
            return Path("results") / "runs" / self.name
        folder = Path(self.output)
        return folder if folder.name not in ("", "..") else folder.resolve()  # its name tells runs apart


class Config(RunConfig):
    """One experiment; see ``repro/profiles`` for examples whose every value cites its source."""

    rows: Annotated[list[Literal["baseline", "+BSL", "+DSRG", "+Retrain", "SEC"]], Mark.NEUTRAL]
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig
    stage0: Stage0Config | None = None
    stage1: Stage1Config
    pseudo_labels: PseudoLabelConfig | None = None
    stage2: Stage2Config | None = None
    inference: PredictConfig
    report: Annotated[ReportConfig, Mark.NEUTRAL] = ReportConfig()

    @property
    def pretrains(self) -> bool:
        """Whether stage 1 starts from weights that the embedded set trains first."""
        dataset = self.dataset
        return dataset.kind == "mini" and dataset.pretrain is not None and self.stage1.init.weights is None

    def build_net(self, classifier: str | None = None) -> CaffeNet:
        """The net of ``model``, or one of ``CLASSIFIERS``: for its classes without background, stage 0's image size."""
        if classifier is None:
            return self.model.build()
        size = {"input_size": self.stage0.data.input_size} if self.stage0 else {}
        return self.model.build(name=classifier, num_classes=self.model.num_classes - 1, **size)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.model.name not in SEGMENTATION_NETS:
            raise ValueError(f"model.name {self.model.name!r}: {meant(self.model.name, SEGMENTATION_NETS)}")
        if self.model.num_classes != len(self.dataset.classes):
            raise ValueError(
                f"model.num_classes is {self.model.num_classes}, dataset.classes lists {len(self.dataset.classes)}"
            )
        if "+Retrain" in self.rows and (self.stage2 is None or self.pseudo_labels is None):
            raise ValueError("row +Retrain needs the sections pseudo_labels and stage2")
        if self.dataset.make_cues and self.stage0 is None:
            raise ValueError("dataset.make_cues needs the section stage0")
        if "SEC" in self.rows and len(self.rows) > 1:
            raise ValueError(f"rows {self.rows}: SEC goes alone")
        for row in self.rows:
            if row in ("baseline", "+BSL"):
                continue  # made from the others by reproduce
            for key, value in ROWS[row].items():
                if getattr(self.stage1.loss, key) != value:
                    raise ValueError(
                        f"rows: {row} means stage1.loss.{key}={_yaml(value)}, here it is "
                        f"{_yaml(getattr(self.stage1.loss, key))}"
                    )
        return self


class FileInit(InitConfig):
    """As a stage's; ``file`` fills each layer as the net says, ``weights`` may be several files with commas between."""

    filler: Literal["file"] | Filler = "file"  # type: ignore[assignment]


class FileData(Section):
    """What the data layers of a net from a file read, where it is not what the file says.

    ``truth_root`` is as in :class:`Stage1Data`, ``label_root`` where the label maps of ImageSegDataLayer lie."""

    image_root: NeutralPath = None
    label_root: InputPath = None
    list: InputPath = None
    cues: InputPath = None
    truth_root: NeutralPath = None
    batch_size: Positive | None = None
    new_height: Positive | None = None
    new_width: Positive | None = None
    mirror: bool | None = None
    shuffle: bool | None = None
    workers: NeutralInt = 2


class FileConfig(RunConfig):
    """The training of a net from Caffe's files; ``set`` fills the ``${NAME}`` in them."""

    caffe_solver: InputPath
    set: dict[str, str] = {}
    solver: SolverConfig
    init: FileInit = FileInit()
    data: FileData = FileData()
