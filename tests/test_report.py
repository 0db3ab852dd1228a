"""The report page: its numbers are the study's, it needs no network, and it does in a browser what it says."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import tracer
from tracer import Plan, Study, run_study, save_report
from tracer.errors import FileFormatError, StudyError
from tracer.facts import bundled, spread_over_relations
from tracer.studies.report import UNIT, report_data, report_page

FACTS = [dataclasses.replace(fact, answer=None) for fact in spread_over_relations(bundled())[:5]]
# A prompt that would end the page's script, or be read as a tag, were it put in as it is.
NASTY = tracer.Fact("</script><b>The Needle</b> {{data}} is in", "The Needle")
WRONG = dataclasses.replace(FACTS[0], answer="Xyzzy")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def study(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    plan = Plan(kinds=("state", "mlp"), window=2, samples=2)
    out = tmp_path_factory.mktemp("study") / "run"
    return run_study(tracer.load(model_folder), [*FACTS, NASTY, WRONG], out, plan=plan)


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_report([study], tmp_path_factory.mktemp("page") / "report.html")


class Elements(HTMLParser):
    """Tags and attributes of a page, and the text of each element with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(dict(attrs).get("id"))

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self._open):
            self.texts[name] = self.texts.get(name, "") + data


def in_browser(page: Path, state: str = "", script: str = "") -> Elements:
    """The page after its scripts ran, with no network; `script` runs after them."""
    if BROWSER is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    text = page.read_text(encoding="utf-8")
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [BROWSER, *options, "--virtual-time-budget=3000", "--dump-dom", f"file://{copy}{state}"]
    found = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()
    # Plotly's own script is no part of what is looked at, and holds tags in its strings.
    return Elements(re.sub(r"<script>.*?</script>", "", found, flags=re.S))


def test_the_page_holds_the_studys_numbers(study: Study, page: Path) -> None:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"), re.S)
    (about,) = json.loads(text)["studies"]
    traces = dict(study.traces())
    assert [fact["number"] for fact in about["facts"]] == list(traces)
    for fact in about["facts"]:
        effect = traces[fact["number"]].indirect_effect["mlp"]
        np.testing.assert_allclose(np.array(fact["maps"]["mlp"]["effect"]) / UNIT, effect, atol=0.51 / UNIT)
        assert fact["clean"] == traces[fact["number"]].clean
    last = about["average"]["state"]["rows"][-1]
    np.testing.assert_allclose(
        np.array(last["effect"]) / UNIT, study.average.indirect_effect["state"][-1], atol=0.51 / UNIT
    )
    assert last["n"] == 6 and all(low <= high for low, high in zip(last["low"], last["high"], strict=True))
    assert about["facts"][5]["prompt"] == NASTY.prompt
    assert [one["prompt"] for one in about["left_out"]] == [WRONG.prompt]


def test_tokens_that_were_not_traced_are_null(study: Study, tmp_path: Path, model_folder: Path) -> None:
    plan = Plan(kinds=("mlp",), window=2, samples=1, roles=("last token",))
    found = report_data(run_study(tracer.load(model_folder), FACTS[:2], tmp_path, plan=plan))
    assert found["facts"][0]["maps"]["mlp"]["effect"][0] == [None] * 4
    assert found["average"]["mlp"]["rows"][:-1] == [None] * 5
    report_page([found])  # NaN is no JSON, and would be an error


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(text) > 1_000_000, "plotly.js is not inside"
    own = Elements(re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    asked = [value for _, attributes in own.tags for name, value in attributes.items() if name in ("src", "href")]
    assert asked == ["data:,"]
    assert not re.search(r"@import|url\(", text.split("</style>")[0])


def test_other_suffixes_and_empty_studies_are_refused(study: Study, tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(FileFormatError, match=r"End its name in \.html"):
        save_report([study], tmp_path / "report.pdf")
    with pytest.raises(StudyError, match="No studies"):
        save_report([], tmp_path / "report.html")
    empty = run_study(tracer.load(model_folder), [WRONG], tmp_path / "empty")
    with pytest.raises(StudyError, match="no traced fact"):
        save_report([empty], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_browser_shows_the_fact_and_map_that_the_address_asks_for(study: Study, page: Path) -> None:
    shown = in_browser(page, "#fact=2&kind=mlp&sort=number")
    trace = dict(study.traces())[2]
    assert shown.texts["fact-title"] == f"{FACTS[2].prompt} → {trace.answer.strip()}"
    token, layer = divmod(int(trace.indirect_effect["mlp"].argmax()), 4)
    peak = f"{trace.indirect_effect['mlp'].max():.3f} at layer {layer}"
    assert f"largest {peak}" in shown.texts["fact-about"] and trace.tokens[token].strip() in shown.texts["fact-about"]
    pressed = [attributes["aria-pressed"] for _, attributes in shown.tags if "aria-pressed" in attributes]
    assert pressed == ["false", "true"]
    assert "1 fact left out" in shown.texts["left-title"] and "Xyzzy" in shown.texts["left"]


def test_the_browser_sorts_facts_by_effect_and_finds_words(study: Study, page: Path) -> None:
    effects = {number: trace.total_effect for number, trace in study.traces()}
    order = sorted(effects, key=lambda number: -effects[number])
    shown = in_browser(page)
    assert [int(a["data-number"] or -1) for _, a in shown.tags if "data-number" in a] == order
    script = "at('find').value = 'needle'; at('find').oninput();"
    found = in_browser(page, script=script)
    assert [a["data-number"] for _, a in found.tags if "data-number" in a] == ["5"]
    assert "</script><b>The Needle</b>" in found.texts["facts"]


def test_a_click_changes_fact_and_map_and_hovering_tells_token_layer_and_effect(study: Study, page: Path) -> None:
    trace = dict(study.traces())[1]
    token, layer = divmod(int(trace.indirect_effect["mlp"].argmax()), 4)
    script = """
      document.querySelector('[data-number="1"]').click();
      [...document.querySelectorAll('#kinds button')].find((one) => one.textContent === 'mlp').click();
      const map = at('fact-map'), pad = map.querySelector('.nsewdrag'), box = pad.getBoundingClientRect();
      const { xaxis, yaxis } = map._fullLayout;
      const place = { clientX: box.left + xaxis.d2p(LAYER), clientY: box.top + yaxis.d2p(TOKEN), bubbles: true };
      pad.dispatchEvent(new MouseEvent('mousemove', place));
    """.replace("LAYER", str(layer)).replace("TOKEN", str(token))
    shown = in_browser(page, script=script)
    told = shown.texts["fact-map"]
    assert f"indirect effect {round(trace.indirect_effect['mlp'][token, layer] * UNIT) / UNIT:.4f}" in told
    assert f"layer {layer}" in told and f"(token {token}, {trace.roles[token]})" in told
    assert FACTS[1].prompt in shown.texts["fact-title"]
    assert "last subject token" in shown.texts["average-lines"]
