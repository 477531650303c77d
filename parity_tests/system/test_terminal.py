"""Foreign names and texts: a terminal shows them and does nothing else, a list keeps them, hidden files are no data."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from parity_tests.finished_runs import write_run
from repro.cli import run_command
from repro.cli.shared import answer_masks
from repro.data import find_images, read_id_list, write_mask
from repro.data.image_list import list_line, read_label_list, read_pairs_list
from repro.data.labels import read_labels
from repro.errors import InputError, StoppedError, printable
from repro.fetch.archives import unpack
from repro.inference.batch_predict import FolderResult, predict_folder
from repro.report import build, formats, report_runs
from repro.report.tables import Column, Table

FORGED = "x\x1b[2J\x1b]0;title\x07\r\nrepro: all masks written\u202egnp.\x9b31m\u2028\x85\udcff"
CHARACTERS = [chr(code) for code in (*range(0x250), *range(0x2000, 0x2100), 0xFEFF, 0xD800, 0xDFFF, 0xE0001)]


def shown(capsys) -> str:
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert all(line.isprintable() for line in text.split("\n")), text
    assert not re.search(r"^repro: all masks written", text, re.MULTILINE)
    return text


def test_every_character_is_shown_or_escaped():
    for character in CHARACTERS:
        text = printable(f"a{character}b")
        assert text.isprintable()
        text.encode()
        assert printable(text) == text
        assert (text == f"a{character}b") == character.isprintable()
    assert printable("Straße 漢字 ñ") == "Straße 漢字 ñ"


@pytest.mark.parametrize("kind", [InputError, StoppedError])
def test_an_error_is_one_line(kind):
    assert str(kind(FORGED)).isprintable()
    assert str(kind("plain")) == "plain"


def test_a_log_record_is_one_line(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def command(*arguments, **options):
        logging.getLogger("repro.x").warning("%s: passed over (%s)", Path(FORGED.replace("/", "")), FORGED)
        raise OSError(2, FORGED, FORGED)

    monkeypatch.setattr("repro.cli._parser", lambda: command)
    assert run_command([]) == 2
    assert len(shown(capsys).splitlines()) == 2


# --- what the verbs print -----------------------------------------------------------------------------------


def test_failure_lists(capsys):
    failures = {name: f"{name}.png: damaged" for name in (FORGED, "b")}
    answer = answer_masks(FolderResult(written=3, failures=failures), Path("out"))
    assert answer.status == 1
    print(*map(printable, answer.lines), sep="\n")
    assert len(shown(capsys).splitlines()) == 4


def test_inspect(tmp_path, capsys):
    name = FORGED.replace("\udcff", "")
    save_file({f"{name}.weight": torch.zeros(2, 2), "b.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    run_command(["inspect", str(tmp_path / "w.safetensors")])
    plain = len(shown(capsys).splitlines())
    save_file({"a.weight": torch.zeros(2, 2), "b.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    run_command(["inspect", str(tmp_path / "w.safetensors")])
    assert len(shown(capsys).splitlines()) == plain


def test_prototxt(tmp_path, capsys):
    layer = 'layer {{ name: "{}" type: "{}" }}'
    escaped = FORGED.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode()
    (tmp_path / "a.prototxt").write_text(layer.format(escaped, escaped))
    assert run_command(["inspect", str(tmp_path / "a.prototxt")]) == 2
    shown(capsys)


@pytest.mark.parametrize("name", [FORGED, f"../{FORGED}", f"/{FORGED}"])
def test_archives(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type = tarfile.FIFOTYPE
        archive.addfile(member, io.BytesIO())
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / "a.tar", tmp_path, most_bytes=1000, most_files=10)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_labels(tmp_path, name):
    text = FORGED.replace("\udcff", "").replace("\r\n", "\x0b")
    (tmp_path / name).write_text(f'a.jpg,"{text}"\n' if name == "a.csv" else f"a.jpg {text}\n")
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / name, ["background", "cat"])
    assert str(caught.value).isprintable()


def test_profiles(tmp_path, capsys):
    profile = tmp_path / "p.yaml"
    profile.write_text(f"base: mini\n{json.dumps(FORGED, ensure_ascii=True)}: 1\n")
    assert run_command(["train", "--config", str(profile)]) == 2
    assert len(shown(capsys).splitlines()) == 1
    assert run_command(["train", "--config", "mini", f"{FORGED}=1".replace("\0", "")]) == 2
    shown(capsys)


def test_paths_that_are_printed(mini_root, tmp_path, capsys):
    target = tmp_path / "a\nrepro: all masks written\x1b[2J"
    shutil.copytree(mini_root, target)  # which the verb finds whole
    assert run_command(["data", "mini", str(target)]) == 0
    assert len(shown(capsys).splitlines()) == 1


# --- what the report writes ---------------------------------------------------------------------------------


def test_tables_in_every_format():
    row = {
        "row": f"{FORGED}| evil | <script>alert(1)</script> [a](javascript:x) \\end{{tabular}} & % 漢",
        "ours": "no run",
    }
    columns = [Column("row", "method", "text"), Column("ours", "ours", "estimate")]
    table = Table("t", "Title", [f"Measured on {FORGED}<img src=x>"], columns, [row])
    markdown, csv, latex = formats.markdown(table), formats.csv_text(table), formats.latex(table)
    for text in (markdown, csv, latex):
        assert all(line.isprintable() for line in text.split("\n"))
        text.encode()
    (line,) = (line for line in markdown.split("\n") if "evil" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert not re.search(r"(?<!\\)\[a\]", markdown)
    assert len(csv.splitlines()) == 2
    assert r"\end{tabular}" not in latex
    assert "[U+6F22]" in latex


def test_a_results_folder_of_a_hostile_run(tmp_path, capsys, monkeypatch, no_figures):
    folder, _ = write_run(tmp_path, "a", "+DSRG", changed={FORGED: FORGED})
    scores = folder / "scores_stage1.json"
    scores.write_text(scores.read_text().replace('"run": "a"', '"run": "x\\u202e<b>"'))
    (folder / "config.yaml").write_text("name: x\n")
    step = {"command": ["repro", "train", FORGED, "\n```\n# forged"], "device_name": FORGED}
    (folder / "manifest.json").write_text(json.dumps({"steps": {FORGED: step}}))
    out = report_runs([folder], tmp_path / "out")
    for name in ("README.md", "index.html", "tables/table2.md", "tables/table2.csv", "tables/table2.tex"):
        text = (out / name).read_text(encoding="utf-8")
        assert all(line.isprintable() for line in text.replace("\t", "").split("\n")), name
        assert not re.search(r"^(repro: all|# forged)", text, re.MULTILINE), name


# --- lists --------------------------------------------------------------------------------------------------

NAMES = ["a.jpg", "my cat.jpg", '"quoted".jpg', 'half".jpg', "tab\there.jpg", "line\nbreak.jpg", " both ends ",
         "back\\slash é",
         '"', '""', "nbsp\xa0x", "\u2028", "\udcff.jpg", "漢字 x", "'a b'"]  # fmt: skip


def test_a_list_gives_back_the_names_that_were_written(tmp_path):
    path = tmp_path / "list.txt"
    names = [*NAMES, *(f"a{character}b" for character in CHARACTERS if character not in "\0/")]
    path.write_bytes("".join(list_line(name, 7) for name in names).encode())
    assert [line[:2] for line in read_pairs_list(path)] == [(name, 7) for name in names]
    path.write_bytes("".join(list_line(name, f"{name}.png") for name in names).encode())
    assert [line[:2] for line in read_label_list(path)] == [(name, f"{name}.png") for name in names]
    path.write_bytes("".join(map(list_line, names)).encode())
    assert read_id_list(path) == [name.removesuffix(".jpg") for name in names]


@pytest.mark.parametrize(
    "line", ['"../a" 1', '"a\\u0000b" 1', '"a/..\\/b" 1', "my cat.jpg 1", '"a b 1', '"a b"c 1']
)
def test_quoted_names_are_checked_as_others(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"list\.txt:1: "):
        read_pairs_list(path)


# --- hidden files -------------------------------------------------------------------------------------------


def test_hidden_files_are_no_data(tmp_path):
    for name in ("a.png", "._a.png", ".b.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name, format="PNG")
    assert list(find_images(tmp_path)) == ["a"]
    annotation = "<annotation><object><name>cat</name></object></annotation>"
    for name in ("b.xml", "._b.xml"):
        (tmp_path / name).write_text(annotation if name[0] != "." else "\0\5\x16\7")
    assert read_labels(tmp_path, ["background", "cat"]) == {"b": [1]}


def test_hidden_runs_are_no_runs(tmp_path, no_figures):
    write_run(tmp_path / "runs", "a", "+DSRG")
    write_run(tmp_path / "runs", ".b", "baseline")
    (tmp_path / "runs" / "a" / "._scores_stage1.json").write_text("\0\5\x16\7")
    table = (build.report_all(tmp_path / "runs", tmp_path)[0] / "tables/table2.md").read_text()
    assert "| baseline | no run | 52.5 |" in table


# --- long names ---------------------------------------------------------------------------------------------


class Grey:
    batch_size = 2

    def masks(self, images, labels=None):
        return np.zeros(images.shape[:3], np.uint8)


def test_one_long_name_ends_nothing(tmp_path):
    names = ["a", "n" * 250, "m" * 251, "é" * 125, "b"]
    images = {}
    for name in names:
        images[name] = tmp_path / "images" / f"{name}.jpg"
        images[name].parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(images[name])
    images["z" * 254] = images["a"]  # "z….png" is longer than any file's name
    result = predict_folder(Grey(), images, tmp_path / "out", described={})
    assert result.written == 5
    assert list(result.failures) == ["z" * 254]
    assert "too long" in result.failures["z" * 254]
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(names)
    again = predict_folder(Grey(), images, tmp_path / "out", described={})
    assert (again.written, again.kept, len(again.failures)) == (0, 5, 1)


def test_a_mask_may_have_any_name_that_the_system_takes(tmp_path):
    for length in range(1, 256):
        write_mask(tmp_path / ("n" * length), np.zeros((2, 2), np.uint8))
    assert sys.getfilesystemencoding() == "utf-8"


# --- usage errors -----------------------------------------------------------------------------------------

HOSTILE = "x\x1b[2J\x1b]0;pwned\x07\nrepro: all is well\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["--debug", f"--{HOSTILE}"],
        ["inspect", f"--{HOSTILE}"],
        ["inspect", "a", HOSTILE],
        ["inspect", HOSTILE],
        ["evaluate", "--rule", HOSTILE],
        ["predict", "--device", HOSTILE, "--weights", HOSTILE, HOSTILE],
        ["data", HOSTILE],
        ["data", "fetch", "--from", HOSTILE, HOSTILE],
        ["seeds", "from-cams", HOSTILE, "--background-below", HOSTILE],
        ["train", "--config", HOSTILE, HOSTILE],
        ["tables", HOSTILE, "--out", HOSTILE],
    ],
)
def test_what_is_quoted_of_the_arguments_is_escaped(capsys, arguments):
    assert run_command(arguments) == 2
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert not any(line.startswith("repro: all is well") for line in text.splitlines())
    assert shown.err


def test_usage_errors_say_how_the_verb_is_used(capsys):
    assert run_command(["inspect", "--unknown"]) == 2
    shown = capsys.readouterr().err
    assert shown == "repro: No such option: --unknown; repro inspect --help shows what there is\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["data"], ["data", "--help"], ["--version"]])
def test_help_is_as_it_was_written(capsys, arguments):
    run_command(arguments)
    shown = capsys.readouterr()
    assert "\\n" not in shown.out + shown.err
    assert "repro" in shown.out + shown.err
