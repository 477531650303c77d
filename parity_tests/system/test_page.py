"""The results folder's page in headless Chromium: as a reader meets it, on a phone, in the dark, by keyboard, with axe.

Needs Chromium and the Python package playwright (no browser of its own is downloaded). Where there is none the tests
skip, but never in CI.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.conftest import REPRODUCE_MINI, without_figures
from repro.cli import run_command
from repro.data import read_mask, write_mask
from repro.metrics import confusion_matrix, per_class_iou
from repro.report import pictures, report_runs, score_figures, write_index
from repro.run.scores import Entry, Scores, read_scores
from weights_conversion.files import temporary_name

SHORT = [
    *("solver.max_iter=4", "stage1.solver.snapshot=2", "data.batch_size=2", "data.workers=0"),
    *("inference.crf=false", "dataset.train_limit=5", "dataset.val_limit=6"),
]


@pytest.fixture(scope="module")
def runs(mini_root, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("page")
    arguments = [
        *REPRODUCE_MINI,
        f"dataset.root={mini_root}",
        f"output={root}/r",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["/somewhere/bin/repro", *arguments, *SHORT])
        with without_figures():
            assert run_command([*arguments, *SHORT]) == 0
    return [root / "r", root / "r-baseline", root / "r-bsl"]


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory) -> Path:
    return report_runs(runs, tmp_path_factory.mktemp("out") / "results")


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: .ci/run installs it")
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, results):
    """``open_page(**context)`` opens index.html from disk without a network; what goes wrong fails the test."""
    contexts, complaints = [], []

    def open_it(**context):
        contexts.append(chromium.new_context(offline=True, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda request: complaints.extend(
                [] if request.url.startswith(("file:", "data:")) else [request.url]
            ),
        )
        page.goto((results / "index.html").as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not complaints


SCROLL_TO_EACH_IMAGE = """async () => {
    const shown = [...document.images].filter(image => image.checkVisibility() && image.getClientRects().length);
    const undrawn = [];
    for (const image of shown) {
        image.scrollIntoView();
        const end = performance.now() + 10000;
        while (!(image.complete && image.naturalWidth > 0) && performance.now() < end)
            await new Promise(requestAnimationFrame);
        if (!(image.complete && image.naturalWidth > 0)) undrawn.push(image.src);
    }
    return [shown.length, undrawn];
}"""


def test_everything_is_there(results):
    names = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert {
        "index.html",
        "README.md",
        "manifest.json",
        "verdict.json",
        "tables/table2.tex",
        "tables/tables.tex",
    } <= names
    for figure in (
        "curves_stage1",
        "curves_stage2",
        "supervision_quality",
        "per_class",
        *("confusion_baseline", "confusion_bsl", "confusion_dsrg", "confusion_retrain"),
        "growth",
        "qualitative",
    ):
        assert {f"figures/{figure}.png", f"figures/{figure}.svg"} <= names
    assert len([name for name in names if re.fullmatch(r"images/\d{3}\.jpg", name)]) == 6
    page = (results / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert link == "data:," or link in names, link
    assert "http" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.S)


def test_the_same_bytes_twice(runs, results, tmp_path):
    again = report_runs(list(reversed(runs)), tmp_path / "again")
    first, second = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (results, again)
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_command_is_named(results):
    for name in ("README.md", "index.html"):
        assert "solver.max_iter=4" in (results / name).read_text(encoding="utf-8").partition("Made by")[2], (
            name
        )


def test_the_manifest(results):
    manifest = json.loads((results / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["runs"]) == set(manifest["measured"]) == {"r", "r-baseline", "r-bsl"}
    run = manifest["runs"]["r"]
    assert run["config"]["stage1"]["solver"]["max_iter"] == 4
    assert set(run["steps"]) == {
        *("stage1", "growth", "predictions/stage1", "pseudo_labels", "stage2", "predictions/stage2"),
    }
    for name, step in run["steps"].items():
        assert {
            "commit",
            "dirty",
            "command",
            "versions",
            "device",
            "device_name",
            "seed",
            "arithmetic",
        } <= step.keys()
        took = manifest["measured"]["r"][name]
        assert took["seconds_last_call"] >= 0
        assert took["peak_memory_bytes"]["process"] > 50e6
        assert "energy_joules" in took
    assert {"list", "cues"} <= run["steps"]["stage1"]["settings"]["inputs_sha256"].keys()
    assert "weights_sha256" in run["steps"]["predictions/stage2"]["settings"]
    assert set(manifest["files"]) == {
        path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()
    } - {"manifest.json"}


def test_a_class_that_does_not_occur_is_not_the_lowest(monkeypatch):
    entry = {
        "classes": ["background", "aeroplane", "bird"],
        "method": "+DSRG",
        "answers": [],
        "scores": {"per_class_iou": [0.8, None, 0.1]},
    }
    shown = [Entry(entry, Path(), "stage1")]
    monkeypatch.setattr(score_figures, "principal", lambda scores: shown)
    (drawing, _figure), *rest = score_figures.classes(Scores([]))
    assert not rest
    assert drawing.alt.endswith("Lowest: bird 10.0; highest: background 80.0.")


def test_what_is_no_longer_made_goes_and_what_is_not_ours_stays(runs, results, tmp_path, blank_figures):
    out = tmp_path / "out"
    shutil.copytree(results, out)
    (out / "notes.txt").write_text("mine")
    leftover = out / temporary_name() / "half"
    leftover.parent.mkdir()
    leftover.write_text("of a call that was cut off")
    report_runs([runs[1]], out)
    assert not (out / "figures/growth.png").exists()
    assert (out / "figures/per_class.png").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert not leftover.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_numbers_only(runs, tmp_path, blank_figures):
    """``report.pictures=false``: nothing shows an image of the data set."""
    copies = []
    for run in runs:
        copies.append(tmp_path / "runs" / run.name)
        shutil.copytree(run, copies[-1])
        config = copies[-1] / "config.yaml"
        config.write_text(config.read_text().replace("pictures: true", "pictures: false"))
    out = report_runs(copies, tmp_path / "out")
    assert not (out / "images").exists()
    assert {path.stem for path in (out / "figures").iterdir()} == {
        *("curves_stage1", "curves_stage2", "supervision_quality", "per_class"),
        *("confusion_baseline", "confusion_bsl", "confusion_dsrg", "confusion_retrain"),
    }
    assert '<section id="images">' not in (out / "index.html").read_text(encoding="utf-8")


def test_names_are_escaped(runs, tmp_path, no_figures):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs[2], folder)
    scores = json.loads((folder / "scores_stage1.json").read_text())
    (folder / "scores_stage1.json").write_text(json.dumps({**scores, "run": folder.name, "method": "<b>&"}))
    page = (report_runs([folder], tmp_path / "out") / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 360)]
)  # colours do not ask the width
def test_axe_finds_nothing(open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out on a phone


def test_tables_sort_by_keyboard(open_page):
    page = open_page()
    page.locator("#table2 > summary").focus()
    page.keyboard.press("Enter")
    table = page.locator("#table2 table.sortable")
    titles = [text.split()[0] for text in table.locator("thead th").all_inner_texts()]
    cells = table.locator(f"tbody tr > :nth-child({titles.index('paper') + 1})")

    def values() -> list[float]:
        return [float(text) for text in cells.all_inner_texts()]

    button = table.locator("thead th button").nth(titles.index("paper"))
    before = values()
    for order, wanted in (
        ("descending", sorted(before, reverse=True)),
        (None, before),
        ("ascending", sorted(before)),
    ):
        while button.locator("..").get_attribute("aria-sort") != order:
            button.focus()
            page.keyboard.press("Enter")
        assert values() == wanted
    assert table.locator("[aria-sort]").count() == 1


def test_images_can_be_leafed_through(open_page):
    page = open_page()
    items = page.locator("#gallery > li")
    assert items.count() == 6
    first = items.first
    page.locator("#beside").select_option("")
    assert first.locator("img[data-method]:visible").get_attribute("data-method") == "+Retrain"
    page.locator("#mask").select_option("ground truth")
    assert first.locator("img[data-method]:visible").get_attribute("data-method") == "ground truth"
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    assert first.locator("img[data-method]:visible").evaluate("image => image.style.opacity") == "0"
    page.locator("#opacity").press("End")
    assert first.locator("img[data-method]:visible").evaluate("image => image.style.opacity") == "1"
    held = [(item.get_attribute("data-classes") or "").split() for item in items.all()]
    some = next(name for name in "123456" if 0 < sum(name in classes for classes in held) < 6)
    page.locator("#class").select_option(some)
    shown = items.filter(visible=True)
    assert shown.count() == sum(some in classes for classes in held)
    assert all(some in (item.get_attribute("data-classes") or "").split() for item in shown.all())
    assert page.locator("#count").inner_text() == f"{shown.count()} images"
    page.locator("#class").select_option("")
    assert page.locator("#ordered").inner_text() == "from the worst to the best"
    page.locator("#order").select_option("name")
    assert page.locator("#ordered").inner_text() == "by name"
    page.locator("#order").select_option("best")
    assert page.locator("#ordered").inner_text() == "from the best to the worst"
    scores = [float(item.get_attribute("data-iou") or 0) for item in items.all()]
    assert scores == sorted(scores, reverse=True)
    seen, undrawn = page.evaluate(SCROLL_TO_EACH_IMAGE)
    assert seen > 6
    assert not undrawn


@pytest.fixture(scope="module")
def unequal(runs, mini_root, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A page of two methods of very different scores, baseline's masks being the truth, and the masks' folders."""
    folder = tmp_path_factory.mktemp("unequal")
    for run in runs:
        shutil.copytree(run, folder / run.name)
    truth = mini_root / "SegmentationClass"
    masks = {
        "baseline": folder / "r-baseline/predictions/stage1",
        "+Retrain": folder / "r/predictions/stage2",
    }
    for path in masks["baseline"].glob("*.png"):
        shutil.copy(truth / path.name, path)
        mask = np.array(Image.open(path))
        write_mask(path, np.where(mask == 255, 0, mask).astype(np.uint8))
    with without_figures():
        return report_runs([folder / run.name for run in runs], folder / "results"), masks


def shown_scores(page: str) -> list[tuple[str, dict[str, str], str]]:
    """Name, scores by method and caption of each image, in the page's order."""
    return [
        (name, json.loads(ious), caption)
        for ious, name, caption in re.findall(
            r"data-ious='(.*?)' data-name=\"(.*?)\".*?<span class=\"score\">(.*?)</span>", page, flags=re.S
        )
    ]


def test_score_order_and_mask_are_one_methods(unequal, mini_root):
    page, masks = unequal
    shown = shown_scores((page / "index.html").read_text(encoding="utf-8"))
    assert len(shown) == 6
    truth = mini_root / "SegmentationClass"
    for name, ious, caption in shown:
        assert ious["baseline"] == "100.0"
        matrix = confusion_matrix(
            read_mask(truth / f"{name}.png", 7), read_mask(masks["+Retrain"] / f"{name}.png", 7), 7
        )
        assert ious["+Retrain"] == f"{100 * np.nanmean(per_class_iou(matrix)):.1f}"
        assert float(ious["+Retrain"]) < 60
        assert caption == f"+Retrain {ious['+Retrain']}"
    order = [float(ious["+Retrain"]) for _, ious, _ in shown]
    assert order == sorted(order)


def test_the_judge_is_last_though_its_run_answers_an_earlier_row(runs, monkeypatch):
    entries = {entry["method"]: entry for entry in read_scores(runs)}
    twice = [entries["+Retrain"], entries["baseline"], entries["+Retrain"]]
    monkeypatch.setattr(pictures, "principal", lambda scores: twice)
    album = pictures.open_album(Scores(entries.values()))
    assert album.methods == ["baseline", "+Retrain"]
    assert album.method == "+Retrain"
    for picture in album.pictures:
        assert album.ious(picture)["+Retrain"] == picture.iou


def test_another_mask_brings_its_score_and_order(chromium, unequal):
    page = chromium.new_page()
    page.goto((unequal[0] / "index.html").as_uri())
    items = page.locator("#gallery > li")
    page.locator("#beside").select_option("")
    page.locator("#mask").select_option("baseline")
    assert {item.locator(".score").first.inner_text() for item in items.all()} == {"baseline 100.0"}
    assert page.locator("#judge").inner_text() == "baseline"
    page.locator("#mask").select_option("+Retrain")
    assert all(item.locator(".score").first.inner_text().startswith("+Retrain ") for item in items.all())
    scores = [float(item.get_attribute("data-iou") or 0) for item in items.all()]
    assert scores == sorted(scores)
    page.locator("#mask").select_option("ground truth")
    assert page.locator("#judge").inner_text() == "+Retrain"
    page.close()


def test_two_methods_side_by_side_each_with_its_score(chromium, unequal):
    page = chromium.new_page()
    page.goto((unequal[0] / "index.html").as_uri())
    page.locator("#mask").select_option("+Retrain")
    page.locator("#beside").select_option("baseline")
    for item in page.locator("#gallery > li").all():
        scores = item.locator(".score").all_inner_texts()
        assert scores[0].startswith("+Retrain ")
        assert scores[1] == "baseline 100.0"
        shown = item.locator("img[data-method]:visible")
        assert [image.get_attribute("data-method") for image in shown.all()] == ["+Retrain", "baseline"]
    page.locator("#view").select_option("divided")
    stack = page.locator("#gallery .stack:visible").first
    assert page.locator("#gallery .stack:visible").count() == 6

    def edges() -> dict[str, str]:
        return {
            image.get_attribute("data-method") or "": image.evaluate("image => image.style.clipPath")
            for image in stack.locator("img[data-method]:visible").all()
        }

    assert edges() == {"+Retrain": "inset(0px 50% 0px 0px)", "baseline": "inset(0px 0px 0px 50%)"}
    page.locator("#divider").focus()
    page.keyboard.press("End")
    assert edges() == {"+Retrain": "inset(0px 0% 0px 0px)", "baseline": "inset(0px 0px 0px 100%)"}
    box = stack.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert page.locator("#divider").input_value() == "25"
    page.close()


def test_seeds_grow_by_the_slider(open_page):
    page = open_page()
    strip = page.locator(".strip").filter(visible=True)
    assert strip.count() == 1
    seeds = strip.locator("img[data-step]:visible")
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert seeds.get_attribute("data-step") == "cues"
    page.keyboard.press("ArrowRight")
    assert seeds.get_attribute("data-step") == "seeds, iteration 2"
    assert re.fullmatch(
        r"seeds, iteration 2 \(epoch 0\.8\): \d+ % of the cells are labelled",
        page.locator("#grown").inner_text(),
    )
    assert strip.locator("figcaption").all_inner_texts() == [
        "image",
        "cues",
        "seeds, iteration 2",
        "mask",
        "truth",
    ]
    page.locator("#trained").select_option(index=1)
    assert strip.locator("img").first.get_attribute("src") == "images/growth-1.jpg"


def test_a_confusion_matrix_of_each_row(open_page):
    page = open_page()
    shown = page.locator(".group figure").filter(visible=True)
    assert shown.locator("img").get_attribute("src") == "figures/confusion_retrain.svg"
    page.locator(".group select").select_option("baseline")
    assert shown.locator("img").get_attribute("src") == "figures/confusion_baseline.svg"


@pytest.mark.parametrize(("scheme", "ground"), [("light", (255, 255, 255)), ("dark", (21, 23, 26))])
def test_figures_stand_on_the_ground_of_the_page(open_page, scheme, ground):
    page = open_page(color_scheme=scheme)
    figures = page.locator("figure.drawing img").filter(visible=True)
    assert figures.count() == 5
    for figure in figures.all():
        figure.evaluate("image => { image.loading = 'eager'; return image.decode(); }")
        with Image.open(io.BytesIO(figure.screenshot())) as shown:
            pixels = np.asarray(shown.convert("RGB")).astype(int)
        assert (abs(pixels - ground).max(axis=2) <= 1).mean() > 0.3
        assert abs(pixels[:20] - ground).max() > 150, "the title"
        # numbers in light cells are black in both
        if scheme == "dark" and "confusion" not in str(figure.get_attribute("src")):
            assert pixels.max(axis=2).min() >= max(ground) - 1, "a black line"


def test_the_page_opens_with_the_picture_and_the_rows(results, open_page):
    page = open_page()
    assert [section.get_attribute("id") for section in page.locator("main > section").all()] == [
        *("method", "summary", "cells", "images", "figures", "tables", "manifest"),
    ]
    summary = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in summary["rows"]] == ["baseline", "+BSL", "+DSRG", "+Retrain"]
    assert summary["generated"]
    for row, shown in zip(summary["rows"], page.locator("#summary tbody tr").all(), strict=True):
        assert row["seconds"] > 0
        assert not row["comparable"]
        assert shown.inner_text().split("\t")[:3] == [row["row"], f"{row['ours']:.1f}", f"{row['paper']:.1f}"]
    retrain, dsrg = summary["rows"][3], summary["rows"][2]
    assert retrain["seconds"] > dsrg["seconds"] - 1, "what retraining learns from is part of its cost"
    assert not page.locator("#incomparable table").is_visible()
    assert page.title() == page.locator("h1").inner_text() == "SEC and DSRG, reproduced: The embedded set"
    for heading in page.locator("#method h2, #summary h2, #images h2, #figures h2, h3").all_inner_texts():
        assert "(generated images)" in heading
    assert "From cues to masks (generated images)" in (results / "figures/growth.svg").read_text(
        encoding="utf-8"
    )
    colours = page.locator("#images .legend li").all_inner_texts()
    assert colours == ["background", "fish", "mushroom", "house", "tree", "wheel", "bottle", "void"]


def test_a_phone_need_not_scroll_for_ever(open_page):
    page = open_page(viewport={"width": 390, "height": 800})
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("document.documentElement.scrollHeight") < 9000
    page.locator("details").evaluate_all("all => { for (const one of all) one.open = true; }")
    for table in page.locator(".scroll table").all():
        titles = [title.split(" ↕")[0] for title in table.locator("thead th").all_inner_texts()]
        for number in (titles.index(name) for name in ("ours", "paper", "published") if name in titles):
            box = table.locator("thead th").nth(number).bounding_box()
            assert box
            assert box["x"] + box["width"] <= 390, titles


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_index_shows_each_folder(chromium, results, tmp_path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    shutil.copytree(results, tmp_path / "mini")
    write_index(tmp_path)
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 360, "height": 800})
    page.goto((tmp_path / "index.html").as_uri())
    assert page.locator(".cards img").evaluate("image => image.src").endswith("mini/figures/growth.svg")
    assert page.locator(".cards h2").inner_text() == "The embedded set mini"
    assert page.locator(".cards tbody th").all_inner_texts() == ["baseline", "+BSL", "+DSRG", "+Retrain"]
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_without_script_all_is_there(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#verdict").is_visible()
    page.locator("#table2 > summary").click()
    assert page.locator("#table2 table").is_visible()
    assert page.locator("#summary table").is_visible()
    assert page.locator(".strip").count() == page.locator(".strip").filter(visible=True).count() > 1
    assert (
        page.locator(".group figure").count()
        == page.locator(".group figure").filter(visible=True).count()
        == 4
    )
    assert page.locator("#gallery img").first.is_visible()


def test_masks_lie_on_their_images(results):
    for photo in sorted((results / "images").glob("???.jpg")):
        for mask in (results / "images").glob(f"{photo.stem}-*.png"):
            with Image.open(photo) as below, Image.open(mask) as above:
                assert above.size == below.size
                assert above.mode == "P"
                assert above.convert("RGBA").getpixel((0, 0))[3] in (0, 160, 255)
