"""Where the time of a stage-1 iteration and of a whole prediction goes, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from repro.bench.inputs import HEIGHT, WIDTH, Inputs, scores
from repro.bench.reference import grow_seeds_in_python
from repro.bench.timing import Timer, Timing, matmul_rate
from repro.config import Config
from repro.data import CueDataset, make_loader
from repro.inference.predict import FLOOR, predict_mask
from repro.layers import (
    CRFParams,
    balanced_seed_loss,
    caffe_softmax,
    constrain_loss,
    crf_log,
    grow_seeds,
    mean_field,
    refine,
)
from repro.layers.dense_crf import TRAINING_SCALE, images_for_crf
from repro.models import CaffeNet
from repro.precision import to_device
from repro.solver import build_solver
from repro.training.loop import update
from repro.training.objectives import Batch, Objective, stage1_objective

PYDENSECRF = "pydensecrf, one thread"
PYTHON = "plain Python"


def training_rows(config: Config, inputs: Inputs, timer: Timer, references: bool) -> Iterator[Timing]:
    """The parts of a stage-1 iteration of ``config``, then the iteration as a whole.

    Args:
        references: compare with pydensecrf and with growing in plain Python.
    """
    device, section = timer.device, config.stage1
    model = _model(config, device).train()
    solver = build_solver(model, section.solver)
    data = section.data
    grid = model.grid_size(data.new_height, data.new_width)
    dataset = CueDataset(
        inputs.folder / "images",
        inputs.lines,
        inputs.cues,
        num_classes=config.model.num_classes,
        background_label=data.background_label,
        grid=grid,
        new_height=data.new_height,
        new_width=data.new_width,
        mirror=data.mirror,
    )

    def loader(workers: int) -> Iterator[Batch]:
        return iter(make_loader(dataset, data.batch_size, True, 0, workers=workers, pin_memory=False))

    decoding = loader(0)
    row = timer.row("loader, decoding", lambda: next(decoding))
    yield _per_image(row, data.batch_size)
    dataset.keep(10**9)
    kept = loader(0)
    for _ in range(len(dataset) // data.batch_size + 1):
        host_batch = next(kept)
    loading = _per_image(timer.row("loader, images kept", lambda: next(kept)), data.batch_size)
    yield loading

    batch = {name: values.to(device) for name, values in host_batch.items()}
    images = batch["images"]
    example = scores(data.batch_size, config.model.num_classes, grid, device)
    network = _network(config, model, images, timer)
    yield from network

    probs = caffe_softmax(example)
    pictures = images_for_crf(images, *grid)
    params = CRFParams(scale=TRAINING_SCALE)
    rows, columns = grid
    yield timer.against(
        f"CRF, {data.batch_size} x {rows}x{columns}",
        partial(mean_field, pictures, probs, params),
        PYDENSECRF,
        partial(mean_field, pictures, probs, params, engine="pydensecrf") if references else None,
    )
    refined = refine(probs, images, variant="dsrg")
    labels, cues = batch["labels"], batch["cues"].to(images.dtype)
    on_host = labels.cpu().numpy(), refined.cpu().numpy(), cues.cpu().numpy()
    yield timer.against(
        "growing",
        partial(grow_seeds, labels, refined, cues),
        PYTHON,
        partial(grow_seeds_in_python, *on_host) if references else None,
    )
    yield timer.row("softmax and losses, both ways", lambda: _losses(example, images, refined, cues))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    solving = timer.row("solver", solver.step)
    yield solving

    objective = stage1_objective(section.loss)
    leaf = example.clone().requires_grad_()
    between = timer.row("between scores and their gradient", lambda: _objective(objective, leaf, batch))
    yield between
    yield Timing("all but the network", loading.seconds + between.seconds + solving.seconds)
    whole = timer.row("whole iteration", lambda: update(model, solver, objective, kept))
    metrics = {
        "images/s": data.batch_size / whole.seconds,
        "in the network": sum(row.seconds for row in network) / whole.seconds,
        f"min for {section.solver.max_iter}": whole.seconds * section.solver.max_iter / 60,
    }
    yield Timing(whole.part, whole.seconds, metrics=metrics)


def prediction_rows(config: Config, inputs: Inputs, timer: Timer, references: bool) -> Iterator[Timing]:
    """The full-size CRF, and a whole prediction by ``config.inference`` with its share of it."""
    device = timer.device
    picture = inputs.pictures[0]
    probs = torch.softmax(scores(1, config.model.num_classes, (HEIGHT, WIDTH), device), dim=1)
    unary = probs.clamp_min(FLOOR).log()
    image = torch.from_numpy(picture).to(device)[None]
    crf = timer.against(
        f"CRF, {HEIGHT}x{WIDTH}",
        partial(mean_field, image, unary, CRFParams()),
        PYDENSECRF,
        partial(mean_field, image, unary, CRFParams(), engine="pydensecrf") if references else None,
    )
    yield crf
    model = _model(config, device, one_size=False).eval()  # as `load_model` has it
    protocol = config.inference.protocol
    whole = timer.row(
        f"whole prediction, {protocol}", partial(predict_mask, model, picture, protocol=protocol)
    )
    metrics = {"images/s": 1 / whole.seconds, "CRF share": crf.seconds / whole.seconds}
    yield Timing(whole.part, whole.seconds, metrics=metrics)


def _model(config: Config, device: torch.device, *, one_size: bool = True) -> CaffeNet:
    model = config.build_net()
    model.fill("msra")  # N(0, 0.01) everywhere would leave only zeros at VGG16's depth
    return to_device(model, config, device, one_size=one_size)


def _network(config: Config, model: CaffeNet, images: torch.Tensor, timer: Timer) -> list[Timing]:
    """Forward and backward pass, and which part of the device's matrix-product rate they reach."""
    top_diff = torch.randn_like(model(images))
    tops: list[torch.Tensor] = []
    steps = {
        "forward": lambda: tops.append(model(images)),
        "backward": lambda: tops.pop().backward(top_diff),
    }
    times = timer.steps(steps)
    dtype = model.autocast or config.dtype
    rate = matmul_rate(timer, dtype, 8192 if timer.device.type == "cuda" else 2048)
    flops = network_flops(config, tuple(images.shape))
    return [
        Timing(
            f"network, {name}",
            seconds,
            metrics={
                "TFLOP/s": flops[name] / seconds / 1e12,
                "of the matmul rate": flops[name] / seconds / rate,
            },
        )
        for name, seconds in times.items()
    ]


def network_flops(config: Config, shape: tuple[int, ...]) -> dict[str, int]:
    """Of the convolutions, counted on a net without memory."""
    with torch.device("meta"):
        net = config.build_net()
        images = torch.empty(shape)
    counts = {}
    with FlopCounterMode(display=False) as counter:
        top = net(images)
        counts["forward"] = counter.get_total_flops()
        top.sum().backward()
    counts["backward"] = counter.get_total_flops() - counts["forward"]
    return counts


def _losses(scores: torch.Tensor, images: torch.Tensor, refined: torch.Tensor, cues: torch.Tensor) -> None:
    leaf = scores.detach().requires_grad_()
    log_result, probs = crf_log(caffe_softmax(leaf), images, variant="dsrg", refined=refined)
    (balanced_seed_loss(probs, cues) + constrain_loss(probs, log_result, clip=True)).backward()


def _objective(objective: Objective, leaf: torch.Tensor, batch: Batch) -> None:
    leaf.grad = None
    objective(lambda images: leaf, batch).total.backward()


def _per_image(row: Timing, batch_size: int) -> Timing:
    return Timing(row.part, row.seconds, metrics={"images/s": batch_size / row.seconds})
