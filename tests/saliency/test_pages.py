"""What people see of maps: the page of an explanation, and the report's examples, in a real browser."""

import pytest

import medgraft
from medgraft.benchmark import execute, read_records, write_record
from medgraft.config import RunConfig
from medgraft.plugin import PluginManager
from medgraft.report import explanation_page, html_report, read_results
from medgraft.saliency import MapOptions

_EXPLANATION = """
  const words = [...document.querySelectorAll(".caption .word")];
  said.push("words " + words.map((word) => word.textContent).join(","));
  const canvas = () => document.querySelector(".pair > .frame canvas");
  said.push("size " + canvas().width + "x" + canvas().height);
  const look = () => [...canvas().getContext("2d").getImageData(0, 0, 4, 4).data].join(",");
  const first = look();
  words[1].focus();
  said.push("changed " + (look() !== first));
  said.push("current " + document.querySelector(".caption .current").textContent);
  said.push("marked " + [...document.querySelectorAll(".small button")].findIndex((b) => b.classList.contains("current")));
  const choose = document.querySelector("select");
  choose.value = "1"; choose.dispatchEvent(new Event("change"));
  said.push("label " + document.querySelector(".id").textContent);
  said.push("kept " + document.querySelector(".caption .current").textContent);
  said.push("small " + document.querySelectorAll(".small canvas").length);
  said.push("hottest " + Math.max(...[...document.querySelectorAll(".small canvas")].map((c) =>
    Math.max(...c.getContext("2d").getImageData(0, 0, 4, 4).data.filter((_, i) => i % 4 === 3)))));
"""


def test_the_page_of_an_explanation(blip_folder, phantoms_folder, browser):
    image = next((phantoms_folder / "test/radiology/images").glob("*.jpg"))
    given = {"backbone": f"blip:{blip_folder}", "caption": "a large nodule"}
    choices = [(method, medgraft.explain(image, maps=MapOptions(method), **given)) for method in ("attention", "rollout")]
    said = browser(explanation_page({"scan": choices}, "a model"), _EXPLANATION)
    assert said["words"] == "a,large,nodule" and said["size"] == "4x4"
    assert (said["changed"], said["current"], said["marked"]) == ("true", "large", "1")
    assert "rollout" in said["label"] and said["kept"] == "large"
    assert said["small"] == "3" and int(said["hottest"]) == 166  # 0.65 of 255


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
  const compare = document.querySelector(".compare");
  said.push("compare " + [...compare.options].map((option) => option.textContent).join(",") + " " + compare.value);
"""


def test_the_reports_examples_show_two_strategies_side_by_side(results, plugins, browser):
    groups = read_results(results, plugins=plugins)
    assert any(word for entry in groups[0].entries for word in entry.captions[0].predictions.values())
    said = browser(html_report("maps", read_records(results), groups, results, plugins=plugins), _REPORT)
    assert said["articles"] == "5 3"
    assert said["before"] == "0,0"
    assert said["after"].startswith("1,")  # the second has a map if it says the same word
    assert len(set(said["names"].split(","))) == 2
    assert said["alone"] == "1,0"  # it is the one to compare with
    names, chosen = said["compare"].split(" ")
    assert set(names.split(",")) == {"zero-shot", "lora"} and chosen == "1"
