"""Every reader on mutations of small good files: ``python -m parity_tests.fuzz --files 20000 --seed 1``.

Texts are mutated token by token (odd values, tokens left out, doubled, nested), binary files by bytes, cuts and
splices (`parity_tests.bad_input.mutated`). A reader may read what it gets or raise a ValueError of one line, within 5
seconds and 10 times the file's size and 200 MB. The files are read in processes of their own, of which a dead or
hanging one is a finding, too. Findings are printed, and kept in ``--keep FOLDER``; the exit status is 1 with any.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from parity_tests.bad_input import MIB, SEEDS, _peak, _saved, mutated
from parity_tests.conftest import ROOT
from repro.config import load_config
from repro.cues.generate import read_saliency
from repro.data import CocoInstances
from repro.data.cues import CueFile, write_cues
from repro.data.image_list import read_id_list, read_pairs_list
from repro.data.images import read_image_rgb
from repro.data.labels import read_labels
from repro.data.voc import read_mask
from repro.data.voc_xml import read_xml
from repro.fetch.archives import unpack
from repro.fetch.catalogue import read_catalogue
from repro.files import read_json
from repro.models.inspection import describe_file
from repro.parity import compare, read_recording
from repro.training.csv_log import CsvLog, read_log

CLASSES = ("background", "cat", "dog")
CUES: dict[int, tuple[Any, Any]] = {
    3: ([1, 2], [[0, 1, 2], [0, 5, 1], [0, 4, 1]]),
    4: ([1], np.zeros((3, 0), np.int64)),
}
SECONDS, MEMORY, TIMES = 5.0, 200 * MIB, 10
_BATCH = 250  # files a process


def _cue_pickle() -> bytes:
    content = {f"{index}_{kind}": np.array(values) for index, entry in CUES.items()
               for kind, values in zip(("labels", "cues"), entry, strict=True)}  # fmt: skip
    return pickle.dumps(content, protocol=2)


def _label_dict() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array({2007000032: np.array([1, 0], np.float32)}, dtype=object), allow_pickle=True)
    return buffer.getvalue()


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
XML = b'<?xml version="1.0" encoding="gb2312"?>\n<annotation><object><name>cat</name></object></annotation>'
SOURCES = {
    **SEEDS,
    "cues.h5": lambda: _saved(lambda path: write_cues(path, CUES), ".h5"),
    "cues.pickle": _cue_pickle,
    "cues.pickle.gz": lambda: gzip.compress(_cue_pickle(), mtime=0),
    "coco.json": lambda: json.dumps(COCO).encode(),
    "table.json": lambda: json.dumps({"steps": {"a": [1, 2.5, None]}}).encode(),
    "labels.csv": lambda: b'image,class\na.jpg,"cat"\nb.jpg,dog\n',
    "labels.txt": lambda: b"a.jpg cat\nb.jpg dog cat\n",
    "labels.xml": lambda: XML,
    "labels.npy": _label_dict,
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
    "saliency.npy": lambda: _saved(lambda path: np.save(path, np.random.default_rng(0).random((24, 31))), ".npy"),
    "files.tar.gz": _archive,
    "recording.h5": lambda: _saved(_write_recording, ".h5"),
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
    "saliency": lambda path: read_saliency(path, (24, 31), (3, 4)),
    "files": _unpack,
}

_ODD = [
    *(
        b"null",
        b"[]",
        b"{}",
        b"-1",
        b"0",
        b"1e300",
        b"1e-300",
        b"inf",
        b"nan",
        b"NaN",
        b"9" * 5000,
        b"1" + b"0" * 30,
    ),
    *(
        b"true",
        b'""',
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[" * 2000,
        b"{" * 100,
        b"&a [*a]",
        b"!!timestamp 9",
        b"*b",
    ),
    *(
        b"-" * 200,
        b"\r",
        b'"',
        b"'",
        b"..",
        b"/etc/passwd",
        b"\x1b[2J",
        b"2147483648",
        b"18446744073709551616",
        b"<a>",
    ),
    *(
        b"&lt;",
        b"idna",
        b"utf-7",
        b"<!DOCTYPE a>",
        b"a" * 70_000,
        b"~",
        b"? ",
        b"dim: []",
        b"${X}",
        "é".encode(),
    ),
]
_TOKEN = re.compile(rb"[A-Za-z_0-9.+-]+|\s+|.", re.DOTALL)


def mutated_text(data: bytes, seed: int) -> bytes:
    """A text with some of its tokens replaced, left out, doubled, swapped, or everything between two nested."""
    rng = random.Random(seed)
    tokens = _TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not tokens:
            break
        at = rng.randrange(len(tokens))
        match rng.randrange(6):
            case 0 | 1:
                tokens[at] = rng.choice(_ODD)
            case 2:
                del tokens[at : at + rng.choice((1, 2, 10))]
            case 3:
                tokens[at:at] = tokens[at : at + rng.choice((1, 5, 20))] * rng.choice((1, 3, 40))
            case 4:
                other = rng.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case _:
                tokens[at] = rng.choice((b"[", b"{", b"<a>", b"(")) * rng.choice((1, 60, 3000)) + tokens[at]
    return b"".join(tokens)


def files(first: int, last: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of these numbers, the kinds in turn."""
    made = {name: make() for name, make in SOURCES.items()}
    names = list(made)
    for number in range(first, last):
        name, key = names[number % len(names)], hash((seed, number))
        is_text = name.rpartition(".")[2] in ("json", "csv", "txt", "xml", "yaml", "prototxt")
        change = mutated_text if is_text and number // len(names) % 4 else mutated
        yield name, change(made[name], key)


def _read_all(first: int, last: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in SOURCES.items():  # what is imported and set up once is no file's doing
            (Path(folder) / name).write_bytes(make())
            READERS.get(name.partition(".")[0], describe_file)(Path(folder) / name)
        for number, (name, content) in enumerate(files(first, last, seed), first):
            path = Path(folder) / name
            path.write_bytes(content)
            print(json.dumps([number, name, "begun"]), flush=True)
            before, start, wrong = _peak(reset=True), time.process_time(), ""
            try:
                READERS.get(name.partition(".")[0], describe_file)(path)
            except ValueError as error:
                if "\n" in str(error) or len(str(error)) > 2000 or not str(error):
                    wrong = f"not one line: {str(error)[:200]!r}"
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error)[:200]}"
            seconds, grown = time.process_time() - start, _peak() - before
            if seconds > SECONDS or grown > TIMES * len(content) + MEMORY:
                wrong = wrong or f"{seconds:.1f} s of CPU, {grown / MIB:.0f} MB"
            print(json.dumps([number, name, wrong]), flush=True)


def run(count: int, seed: int, keep: Path | None = None) -> list[str]:
    """The findings among ``count`` files."""
    found, first = [], 0
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
        ]
        number, name, wrong, why = first, "", "begun", ""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=1200)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            why = "hangs"
        for line in output.splitlines():
            number, name, wrong = json.loads(line)
            if wrong not in ("", "begun"):
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
    parser.add_argument("--read", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        first, last = options.read
        _read_all(first, last, options.seed)
        return
    found = run(options.files, options.seed, options.keep)
    print("\n".join(found) or f"{options.files} files, seed {options.seed}: nothing found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
