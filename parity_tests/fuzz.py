"""Every reader on mutations of small good files: ``python -m parity_tests.fuzz --files 20000 --seed 1``.

Texts are mutated token by token, a quarter of all files by bytes, the others in their structure, with the check sums
and lengths around it right again (`parity_tests.fuzz_structure`). A reader may read what it gets or raise a ValueError
of one line that names the file, within 5 seconds of CPU and 10 times the file's size and 200 MB. The files are read in
processes of their own, of which a dead or hanging one is a finding, too. The files and refusals of each kind and the
findings are printed, the files found are kept in ``--keep FOLDER``; the exit status is 1 with any.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from PIL import Image

from parity_tests.bad_input import MIB, SEEDS, peak, pth_bytes, saved_bytes
from parity_tests.conftest import ROOT
from parity_tests.fuzz_structure import mutated
from parity_tests.small_voc import write_mat
from repro.config import load_config
from repro.cues.from_cams import read_maps
from repro.cues.generate import read_saliency
from repro.data import CocoInstances
from repro.data.cues import CueFile, write_cues
from repro.data.image_list import read_id_list, read_pairs_list
from repro.data.images import read_image_rgb
from repro.data.labels import read_labels
from repro.data.voc import read_mask
from repro.data.voc_xml import read_xml
from repro.export import OnnxSegmenter
from repro.fetch.archives import unpack
from repro.fetch.catalogue import read_catalogue
from repro.fetch.sbd import read_sbd_mask
from repro.files import read_json
from repro.models.inspection import describe_file
from repro.parity import compare, read_recording
from repro.report.manifest import commands, manifest
from repro.report.tables import all_tables
from repro.run.scores import Scores, read_scores
from repro.training.csv_log import CsvLog, read_log
from repro.training.snapshots import read_state
from weights_conversion.vgg16_files import CONVOLUTIONS, FEATURES, KERAS

CLASSES = ("background", "cat", "dog")
CUES: dict[int, tuple[Any, Any]] = {
    3: ([1, 2], [[0, 1, 2], [0, 5, 1], [0, 4, 1]]),
    4: ([1], np.zeros((3, 0), np.int64)),
}
SECONDS, MEMORY, TIMES = 5.0, 200 * MIB, 10
_BATCH = 1000  # files a process


def _cue_pickle() -> bytes:
    content = {f"{index}_{kind}": np.array(values) for index, entry in CUES.items()
               for kind, values in zip(("labels", "cues"), entry, strict=True)}  # fmt: skip
    return pickle.dumps(content, protocol=2)


def _image(form: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    pixels = (
        np.random.default_rng(0).integers(0, 3, (24, 31, 3) if mode == "RGB" else (24, 31)).astype(np.uint8)
    )
    Image.fromarray(pixels, mode).save(buffer, form)
    return buffer.getvalue()


def _write_recording(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["prototxt"] = (
            'input: "x" input_shape { dim: 2 } layer { name: "l" type: "ReLU" bottom: "x" top: "y" }'
        )
        file["phase"] = "TEST"
        file["inputs/x"] = file["blobs/y"] = np.float32([1, 2])


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.txt", "b/" + "c" * 150):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"hello"))
    return buffer.getvalue()


def _array_of(content: Any) -> bytes:
    """What ``np.save`` makes of a dict."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


_VGG16 = {name: (np.full((2, 2, 3, 3), 0.5, np.float32), np.zeros(2, np.float32)) for name in CONVOLUTIONS}
_VGG16["conv1_1"] = np.ones((2, 3, 3, 3), np.float32), np.zeros(2, np.float32)


def _write_keras(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for keras, name in KERAS.items():
            group = file.create_group(f"model_weights/{keras}/{keras}")
            group["kernel:0"], group["bias:0"] = _VGG16[name][0].transpose(2, 3, 1, 0), _VGG16[name][1]


def _onnx() -> bytes:
    tensors = [
        onnx.numpy_helper.from_array(values, f"features.{index}.{blob}")
        for index, name in FEATURES.items()
        for blobs in [_VGG16[name]]
        for values, blob in zip(blobs, ("weight", "bias"), strict=True)
    ]
    return onnx.helper.make_model(onnx.helper.make_graph([], "vgg", [], [], tensors)).SerializeToString()


def _segmenter() -> bytes:
    """A model as `repro export` names its ends, which takes the colours for classes."""
    tensor = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["x"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["x"], ["multiscale"], perm=[0, 3, 1, 2]),
    ]
    ends = (
        tensor("images", onnx.TensorProto.UINT8, ["n", "h", "w", 3]),
        tensor("multiscale", 1, ["n", 3, "h", "w"]),
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    metadata = {
        "graph": "multiscale",
        "parameters_sha256": "0",
        "protocol": "sec",
        "precision": "fp32",
        "classes": json.dumps(CLASSES),
    }
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def _state() -> bytes:
    history = [torch.ones(2, 3), torch.zeros(3)]
    content = {
        "iteration": 3,
        "current_step": 1,
        "history": history,
        "observed": {},
        "weights_sha256": "0" * 64,
    }
    return pth_bytes(content, True)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9.5, 1, 9]]},
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"counts": [100, 50, 250], "size": [20, 20]},
        },
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
MANIFEST = {
    "started": "2026-01-01T00:00:00+00:00",
    "versions": {"python": "3.12"},
    "steps": {
        "stage1": {"settings": {"a": 1}, "command": ["repro", "train"], "device_name": "x", "resumed": False}
    },
}
SCORES = {
    "run": "r", "family": "papers", "base": {"profile": "mini", "sha256": "0"}, "settings_sha256": "1", "changed": {},
    "seed": 0, "pretrained": True, "origin": "trained here", "method": "m", "answers": ["table2/+DSRG/val"],
    "dataset": "voc2012-val", "images": 1449, "train_images": 5, "classes": ["background", "cat"],
    "scores": {
        "mean_iou": {"released": 0.5, "voc": 0.5, "present": 0.5}, "per_class_iou": [0.5, 0.5], "pixel_accuracy": 0.5,
        "classes_counted": 2, "absent_classes": [], "matrix": [[3, 1], [1, 3]],
    },
    "seed_quality": [{"epoch": 1, "precision": 0.5, "recall": 0.5, "f1": 0.5}],
}  # fmt: skip
XML = b'<?xml version="1.0" encoding="gb2312"?>\n<annotation><object><name>cat</name></object></annotation>'
SOURCES = {
    **SEEDS,
    "cues.h5": lambda: saved_bytes(lambda path: write_cues(path, CUES), ".h5"),
    "cues.pickle": _cue_pickle,
    "cues.pickle.gz": lambda: gzip.compress(_cue_pickle(), mtime=0),
    "coco.json": lambda: json.dumps(COCO).encode(),
    "table.json": lambda: json.dumps({"steps": {"a": [1, 2.5, None]}}).encode(),
    "labels.csv": lambda: b'image,class\na.jpg,"cat"\nb.jpg,dog\n',
    "labels.txt": lambda: b"a.jpg cat\nb.jpg dog cat\n",
    "labels.xml": lambda: XML,
    "labels.npy": lambda: _array_of({2007000032: np.array([1, 0], np.float32)}),
    "labels.pkl": lambda: pickle.dumps({"a": [0, 2], "b": np.array([1])}),
    "ids.txt": lambda: b"2007_000001\n2007_000002\n",
    "pairs.txt": lambda: b"a.jpg 3\nb.jpg 4\n",
    "profile.yaml": lambda: (ROOT / "repro/profiles/mini.yaml").read_bytes(),
    "catalogue.yaml": lambda: (ROOT / "repro/fetch/sources.yaml").read_bytes(),
    "log.csv": lambda: b"iteration,lr,loss\n0,0.1,3\n1,0.1,2.5\n",
    "mask.png": lambda: _image("PNG", "L"),
    "image.png": lambda: _image("PNG", "RGB"),
    "image.jpg": lambda: _image("JPEG", "RGB"),
    "image.bmp": lambda: _image("BMP", "RGB"),
    "image.webp": lambda: _image("WEBP", "RGB"),
    "image.tif": lambda: _image("TIFF", "RGB"),
    "saliency.npy": lambda: saved_bytes(lambda path: np.save(path, np.random.default_rng(0).random((24, 31))), ".npy"),
    "files.tar.gz": _archive,
    "recording.h5": lambda: saved_bytes(_write_recording, ".h5"),
    "x.npz": lambda: saved_bytes(lambda path: np.savez(path, **{"conv1_1.weight": np.ones((2, 3))}), ".npz"),
    "vgg16.npy": lambda: _array_of({name: {"weights": w.T, "biases": b} for name, (w, b) in _VGG16.items()}),
    "vgg16.onnx": _onnx,
    "segmenter.onnx": _segmenter,
    "vgg16.h5": lambda: saved_bytes(_write_keras, ".h5"),
    "maps.npy": lambda: _array_of({"keys": np.array([0, 5]), "cam": np.ones((2, 4, 4), np.float32)}),
    "maps_irn.npy": lambda: _array_of({"keys": torch.tensor([0, 5]), "cam": torch.ones(2, 4, 4)}),
    "sbd.mat": lambda: saved_bytes(lambda path: write_mat(path, np.eye(12, dtype=np.uint8)), ".mat"),
    "snapshot.state": _state,
    "manifest.json": lambda: json.dumps(MANIFEST).encode(),
    "scores.json": lambda: json.dumps(SCORES).encode(),
}  # fmt: skip


def _coco(path: Path) -> None:
    instances = CocoInstances(path, CLASSES)
    instances.labels()
    with tempfile.TemporaryDirectory() as folder:
        list(instances.write_masks(Path(folder)))


def _recording(path: Path) -> None:
    recording = read_recording(path)
    compare(recording.blobs, recording)


def _log(path: Path) -> None:
    read_log(path)
    CsvLog(path, ("iteration", "lr", "loss"), 5, 1).file.close()


def _unpack(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder), most_bytes=MIB, most_files=10)


def _manifest(path: Path) -> None:
    (path.parent / "config.yaml").write_text("a: 1")
    (path.parent / "scores_x.json").write_text(json.dumps(SCORES))
    commands(manifest(Scores(read_scores([path.parent / "scores_x.json"]))))


def _scores(path: Path) -> None:
    all_tables(Scores(read_scores([path])))


READERS: dict[str, Callable[[Path], Any]] = {
    "cues": CueFile.open,
    "recording": _recording,
    "coco": _coco,
    "table": lambda path: read_json(path, "a table"),
    "labels": lambda path: read_xml(path) if path.suffix == ".xml" else read_labels(path, CLASSES),
    "ids": read_id_list,
    "pairs": read_pairs_list,
    "profile": lambda path: load_config(str(path)),
    "catalogue": read_catalogue,
    "log": _log,
    "mask": read_mask,
    "image": read_image_rgb,
    "maps": lambda path: read_maps(path, (21, 21)),
    "maps_irn": lambda path: read_maps(path, (21, 21)),
    "sbd": read_sbd_mask,
    "segmenter": lambda path: OnnxSegmenter(path, crf=False).masks(np.zeros((1, 8, 9, 3), np.uint8)),
    "snapshot": lambda path: read_state(path, 3),
    "manifest": _manifest,
    "scores": _scores,
    "saliency": lambda path: read_saliency(path, (24, 31), (3, 4)),
    "files": _unpack,
}


def files(first: int, last: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of these numbers, the kinds in turn."""
    made = {name: make() for name, make in SOURCES.items()}
    names = list(made)
    for number in range(first, last):
        name = names[number % len(names)]
        yield name, mutated(name, made[name], hash((seed, number)), number // len(names))


def _read_all(first: int, last: int, seed: int, timed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in SOURCES.items():  # what is imported and set up once is no file's doing
            (Path(folder) / name).write_bytes(make())
            READERS.get(name.partition(".")[0], describe_file)(Path(folder) / name)
        for number, (name, content) in enumerate(files(first, last, seed), first):
            path = Path(folder) / name
            path.write_bytes(content)
            print(json.dumps([number, name, "begun"]), flush=True)
            before, start, wrong = peak(reset=True), _cpu_seconds(), ""
            refused = False
            try:
                READERS.get(name.partition(".")[0], describe_file)(path)
            except ValueError as error:
                refused = True
                if "\n" in str(error) or len(str(error)) > 2000 or not str(error):
                    wrong = f"not one line: {str(error)[:200]!r}"
                elif name not in str(error):
                    wrong = f"without the file's name: {str(error)[:200]!r}"
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error)[:200]}"
            seconds, grown = _cpu_seconds() - start, peak() - before
            if (timed and seconds > SECONDS) or grown > TIMES * len(content) + MEMORY:
                wrong = wrong or f"{seconds:.1f} s of CPU, {grown / MIB:.0f} MB"
            print(json.dumps([number, name, wrong or ("refused" if refused else "read")]), flush=True)


def _cpu_seconds() -> float:
    """Of this process and of those that have ended; the limits of the one that reads HDF5 and pickles are its own."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run(
    count: int,
    seed: int,
    keep: Path | None = None,
    outcomes: Counter[tuple[str, str]] | None = None,
    timed: bool = True,
) -> list[str]:
    """The findings among ``count`` files; ``outcomes`` counts what came of each kind of file. Without ``timed`` only a
    file that never ends takes too long: tests assert no times."""
    found: list[str] = []
    first = 0
    outcomes = Counter() if outcomes is None else outcomes
    while first < count:
        last = min(count, first + _BATCH)
        command = [
            sys.executable,
            "-m",
            "parity_tests.fuzz",
            "--read",
            str(first),
            str(last),
            "--seed",
            str(seed),
            *([] if timed else ["--untimed"]),
        ]
        number, name, wrong, why = first, "", "begun", ""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=7200)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            why = "hangs"
        for line in output.splitlines():
            number, name, wrong = json.loads(line)
            if wrong in ("read", "refused"):
                outcomes[name, wrong] += 1
            elif wrong != "begun":
                found.append(f"{number} {name}: {wrong}")
        if process.returncode:
            found.append(
                f"{number} {name}: {why or f'the process died ({process.returncode}): {errors[-300:]}'}"
            )
            last = number + 1
        if keep and found:
            keep.mkdir(parents=True, exist_ok=True)
            for text in found:
                at = int(text.split()[0])
                for kept_name, content in files(at, at + 1, seed):
                    (keep / f"{at}.{kept_name}").write_bytes(content)
        first = last
    return found


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--untimed", action="store_true", help="take as long as it takes")
    parser.add_argument("--read", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        first, last = options.read
        _read_all(first, last, options.seed, not options.untimed)
        return
    outcomes: Counter[tuple[str, str]] = Counter()
    found = run(options.files, options.seed, options.keep, outcomes, not options.untimed)
    for name in SOURCES:
        print(f"{name}: {outcomes[name, 'read']} read, {outcomes[name, 'refused']} refused")
    print("\n".join(found) or f"{options.files} files, seed {options.seed}: nothing found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
