"""What people see of maps: the page of an explanation, and the report's examples, in a real browser."""

import html
import re

import pytest

import medgraft
from medgraft.benchmark import execute, read_records, write_record
from medgraft.config import RunConfig
from medgraft.plugin import PluginManager
from medgraft.report import explanation_page, html_report, read_results
from medgraft.report.explanation import file_names
from medgraft.saliency import MapOptions

_EXPLANATION = """
  const words = [...document.querySelectorAll(".caption .word")];
  said.push("words " + words.map((word) => word.textContent).join(","));
  said.push("heading " + document.querySelector("h2").textContent);
  said.push("scripts " + (window.ran ?? "none"));
  const views = [...document.querySelectorAll(".views .frame")];
  said.push("views " + views.map((view) => view.querySelectorAll("img").length + "/" + view.querySelectorAll("canvas").length));
  const canvas = () => views[1].querySelector("canvas");
  said.push("size " + canvas().width + "x" + canvas().height);
  const look = () => [...canvas().getContext("2d").getImageData(0, 0, 4, 4).data].join(",");
  const first = look();
  words[0].focus();
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  press("ArrowRight");
  said.push("changed " + (look() !== first));
  said.push("current " + document.querySelector(".caption .current").textContent);
  said.push("marked " + [...document.querySelectorAll(".small button")].findIndex((b) => b.classList.contains("current")));
  said.push("likely " + document.querySelector(".views figure:last-child figcaption").textContent);
  const slider = document.querySelector("input.opacity");
  slider.value = 30;
  slider.dispatchEvent(new Event("input"));
  said.push("opacity " + getComputedStyle(canvas()).opacity);
  const choose = document.querySelector("select");
  choose.value = "1"; choose.dispatchEvent(new Event("change"));
  said.push("label " + document.querySelector(".label").textContent);
  said.push("kept " + document.querySelector(".caption .current").textContent);
  said.push("small " + document.querySelectorAll(".small canvas").length);
  const shares = [...document.querySelectorAll(".small canvas")].flatMap((c) =>
    [...c.getContext("2d").getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 3));
  said.push("hottest " + Math.max(...shares) + " " + Math.min(...shares));
  const openers = [...document.querySelectorAll(".open")];
  const dialog = document.querySelector("dialog");
  const now = () => dialog.querySelector("strong").textContent.split(" (")[1] + dialog.querySelectorAll(".stage canvas").length;
  openers[0].focus(); openers[0].click();
  said.push("opened " + dialog.open + " " + now() + " " + dialog.contains(document.activeElement));
  press("ArrowRight"); said.push("next " + now());
  press("ArrowRight"); said.push("last " + now());
  press("ArrowLeft"); press("Escape");
  said.push("closed " + dialog.open + " " + (document.activeElement === openers[0]));
"""


def test_the_page_of_an_explanation(blip_folder, phantoms_folder, browser):
    image = next((phantoms_folder / "test/radiology/images").glob("*.jpg"))
    given = {"backbone": f"blip:{blip_folder}", "caption": "a <script>ran=1</script> nodule"}
    choices = [(method, medgraft.explain(image, maps=MapOptions(method), **given)) for method in ("attention", "rollout")]
    page = explanation_page({'/of/patients/a "scan" <b onclick=1>.png': choices}, "a model")
    assert "/of/patients" not in page
    said = browser(page, _EXPLANATION)
    assert said["words"] == "a,script,ran,1,script,nodule" and said["size"] == "4x4"
    assert said["heading"] == 'a "scan" <b onclick=1>.png' and said["scripts"] == "none"
    assert said["views"] == "1/0,1/1"  # the image alone, and the map beside it
    assert (said["changed"], said["current"], said["marked"]) == ("true", "script", "1")
    assert re.fullmatch(r"script, probability (<1|\d+) %", said["likely"]) and said["opacity"] == "0.3"
    assert "rollout" in said["label"] and said["kept"] == "script"
    assert said["small"] == "6" and said["hottest"].startswith("255 ")
    assert said["opened"] == "true 1 of 2)0 true" and said["next"] == said["last"] == "2 of 2)1"
    assert said["closed"] == "false true"
    assert _width_on_a_phone(browser, page) <= 390


def _width_on_a_phone(browser, page):
    """Of the page in a window of 390 px."""
    frame = f'<html><head><title></title></head><body><iframe width="390" srcdoc="{html.escape(page)}"></iframe></body></html>'
    said = browser(frame, 'said.push("width " + document.querySelector("iframe").contentDocument.documentElement.scrollWidth);')
    return int(said["width"])


def test_files_are_named_without_the_folders_that_do_not_tell_them_apart():
    files = ["/a/b/scan.png", "/a/c/scan.png", "x/other.png", "/scan.png"]
    assert list(file_names(files).values()) == ["b/scan.png", "c/scan.png", "other.png", "/scan.png"]


@pytest.fixture(scope="module")
def results(blip_folder, phantoms_folder, tmp_path_factory):
    """Two runs of a random model that say something, with maps."""
    out, plugins = tmp_path_factory.mktemp("results"), PluginManager()
    for strategy in ("zero-shot", "lora"):
        config = RunConfig.model_validate(
            {
                "backbone": f"blip:{blip_folder}", "strategy": strategy, "metrics": ["cider", "localization"],
                "data": {"name": "phantoms", "path": str(phantoms_folder), "max_images": 5},
                "train": {"max_steps": 1, "per_device_train_batch_size": 2}, "generation": {"max_new_tokens": 6},
                "saliency": {"maps": 3},
            }
        )  # fmt: skip
        record = execute(config, out / "runs" / strategy, plugins=plugins).record
        write_record(record.model_copy(update={"adapter": f"runs/{strategy}"}), out / "records")
    return out


_REPORT = """
  const articles = [...document.querySelectorAll(".example")];
  const mapped = articles.filter((article) => article.querySelector(".word"));
  said.push("articles " + articles.length + " " + mapped.length);
  const article = mapped[0];
  said.push("likely " + article.querySelector(".word").getAttribute("aria-label"));
  const views = [...article.querySelectorAll(".pictures > div")];
  const drawn = () => views.map((view) => view.querySelectorAll("canvas").length).join(",");
  said.push("before " + drawn());
  const rows = [...article.querySelectorAll("tbody tr")];
  rows[0].querySelector(".word").focus();
  said.push("after " + drawn());
  said.push("names " + views.map((view) => view.querySelector(".id").textContent.split(":")[0]).join(","));
  const word = rows[1].querySelector(".word");
  word?.focus();
  said.push("alone " + drawn());
  const [opened, dialog] = [article.querySelector(".open"), document.querySelector("dialog")];
  opened.focus(); opened.click();
  said.push("zoom " + dialog.open + " " + dialog.querySelectorAll("canvas").length);
  dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  const after = articles[articles.indexOf(article) + 1];
  said.push("focus " + dialog.open + " " + (document.activeElement === after.querySelector(".open")));
  const compare = document.querySelector(".compare");
  said.push("compare " + [...compare.options].map((option) => option.textContent).join(",") + " " + compare.value);
"""


def test_the_reports_examples_show_two_strategies_side_by_side(results, plugins, browser):
    groups = read_results(results, plugins=plugins)
    assert any(word for entry in groups[0].entries for word in entry.captions[0].predictions.values())
    page = html_report("maps", read_records(results), groups, results, plugins=plugins)
    said = browser(page, _REPORT)
    assert said["articles"] == "5 3"
    assert said["before"] == "0,0"
    assert said["after"].startswith("1,")  # the second has a map if it says the same word
    assert len(set(said["names"].split(","))) == 2
    assert said["alone"] == "1,0"  # it is the one to compare with
    assert "probability" in said["likely"] and said["zoom"] == "true 1" and said["focus"] == "false true"
    assert _width_on_a_phone(browser, page) <= 390
    names, chosen = said["compare"].split(" ")
    assert set(names.split(",")) == {"zero-shot", "lora"} and chosen == "1"
