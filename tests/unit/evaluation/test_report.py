"""The page and the tables made of a result, without any model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from steerlm.attributes import STEERLM
from steerlm.evaluation.answers import JUDGE, PERPLEXITY, SECOND, Answer, Measured
from steerlm.evaluation.asks import goals, sweep
from steerlm.evaluation.charts import Line, line_chart, round_ticks
from steerlm.evaluation.figures import remove_figures, write_figures
from steerlm.evaluation.records import write_record
from steerlm.evaluation.report import report_html, write_report
from steerlm.evaluation.response_curves import RULE
from steerlm.evaluation.steering_record import condition_records
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.evaluation.steering_tables import end_contrasts, level_rows, steering_view
from steerlm.evaluation.text_measures import text_measures

NAMES = ["verbosity", "humor"]
PROMPTS = ["Why is the <b>sea</b> salty?", "And the sky?", "How so?", "Since when?", "Says who?"]


def measured(obeys: bool, seconds: Sequence[str], unread: Sequence[int]) -> Measured:
    """The answers of a condition: with the scores asked for, or of a deaf one that always has 2."""
    asks = [*sweep(STEERLM, NAMES, len(PROMPTS)), *goals(STEERLM, NAMES, len(PROMPTS), 2, 0)]
    values = [ask.values(STEERLM) for ask in asks]
    columns = {
        f"{JUDGE}{attribute}": np.array([float(value[attribute]) if obeys else 2.0 for value in values])
        for attribute in STEERLM.names
    }
    for attribute in STEERLM.names:
        columns[f"{JUDGE}{attribute}"][[value["verbosity"] in unread for value in values]] = np.nan
    columns |= {f"{SECOND}{attribute}": columns[f"{JUDGE}{attribute}"] for attribute in seconds}
    columns[PERPLEXITY] = np.full(len(asks), np.nan)
    columns |= {item.name: np.array([1.0 + value["verbosity"] for value in values]) for item in text_measures()}
    answers = tuple(Answer(f"<script>alert({k})</script>", 3, False) for k in range(len(asks)))
    return Measured(tuple(asks), answers, columns)


def result(obeys: bool, seconds: Sequence[str] = (), unread: Sequence[int] = ()) -> dict[str, Any]:
    """As `evaluate_steering` makes one; the second condition is always deaf. A second judge scores `seconds`, the first
    no answer to `unread` levels of verbosity.
    """
    conditions = condition_records(
        {"policy": measured(obeys, seconds, unread), "words": measured(False, seconds, unread)},
        STEERLM,
        SteeringSettings(attributes=NAMES, resamples=100),
        PROMPTS,
    )
    for condition in conditions.values():
        condition["consistency"] = {
            "humor": {
                "measure": f"{JUDGE}humor",
                "over_paraphrases": {"value": 0.1, "low": 0.05, "high": 0.15},
                "over_prompts": {"value": 0.2, "low": None, "high": None},
            }
        }
    return {
        "kind": "steering",
        "model": "0123456789abcdef",
        "base": "smollm2",
        "judge": "fedcba9876543210",
        "second_judge": "other" if seconds else None,
        "annotated_by": None,
        "base_digest": "ba5e",
        "date": "2024-02-29",
        "rule": RULE,
        "prompts": {"used": len(PROMPTS), "left_out": 1, "digest": "d"},
        "schema": STEERLM.to_list(),
        "conditions": conditions,
        "settings": {"attributes": NAMES, "conditions": list(conditions), "goals": 2},
        "steerlm": "0",
        "python": "3",
        "libraries": {"torch": "2"},
        "machine": {"cores": 2},
    }


class Page(HTMLParser):
    """Checks that what is opened is closed, and notes what the page would fetch."""

    VOID = frozenset({"meta", "line", "circle", "polygon", "polyline", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page


def test_the_page_stands_alone_and_says_what_was_found(tmp_path: Path) -> None:
    path = write_report(result(obeys=True), tmp_path / "steering.html", "my policy")
    html = path.read_text(encoding="utf-8")
    page = read(html)
    assert page.fetched == []
    assert not re.search(r"url\(|@import|<script", html)
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "Does my policy do what it is asked?" in page.text
    assert html.count('class="steers"') == 2
    assert html.count("<td>better</td>") == 2
    for title in ("policy", "untuned base, asked in words"):
        assert all(f"{name}: means at each level ({title})" in page.text for name in NAMES)
    assert html.count("<svg") == 8
    assert "<script>alert(0)</script>" in page.text
    assert page.text.count("1 prompts were too long") == 1
    assert "measured on2024-02-29" in re.sub(r"\n", "", page.text)
    assert "smollm2, digest ba5e" in page.text


def test_published_figures_stand_beside_ours_as_those_of_other_models() -> None:
    """The lowest and the highest level of what HelpSteer (arXiv 2311.09528) and SteerLM (arXiv 2310.05344) report; of
    ours only verbosity was swept, with one character more at each level.
    """
    part = report_html(result(obeys=True), "x").partition("<h2>Published figures of other models</h2>")[2]
    said, _, table = part.partition("<h2>")[0].partition("<table>")
    assert "figures of other, far larger models, on other prompts: no comparison of quality" in said
    heads, *rows = re.findall("<tr>(.*?)</tr>", table, flags=re.DOTALL)
    titles = ["attribute", "measure", "another model", "lowest", "highest", "policy, lowest", "highest"]
    assert re.findall("<th>(.*?)</th>", heads) == titles
    cells = [[" ".join(cell.split()) for cell in re.findall("<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]
    of_helpsteer = "Llama2-70B-SteerLM-Chat (HelpSteer, arXiv 2311.09528)"
    of_steerlm = "SteerLM-43B (values 0 and 9) (SteerLM, arXiv 2310.05344)"
    assert [[row[0], *row[2:]] for row in cells] == [
        ["verbosity", of_helpsteer, "422.300", "1125.200", "1.00 [1.00, 1.00]", "5.00 [5.00, 5.00]"],
        ["complexity", of_helpsteer, "8.489", "9.104", "–", "–"],
        ["toxicity", of_steerlm, "0.063", "0.104", "–", "–"],
    ]
    measures = ["characters", "Flesch-Kincaid grade", "toxicity by the Perspective API"]
    assert all(row[1].startswith(measure) for row, measure in zip(cells, measures, strict=True))


def test_a_deaf_policy_is_called_one() -> None:
    html = report_html(result(obeys=False), "deaf")
    assert 'class="steers"' not in html
    assert html.count("does not steer") >= 6
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(steering_view(result(obeys=False)))
    text = shown.export_text()
    assert text.count("does not steer") >= 4
    assert "humor, against the untuned base asked in words: no difference shown" in text


def test_answers_that_the_judge_cannot_read_are_counted() -> None:
    """Of 60 answers of a condition the 10 to both bottom levels of verbosity, and what goals ask for at these."""
    record = result(obeys=True, seconds=["humor"], unread=[0, 1])
    shown = Console(record=True, width=200, file=io.StringIO())
    shown.print(steering_view(record))
    page = read(report_html(record, "x"))
    for text in (" ".join(shown.export_text().split()), " ".join(page.text.split())):
        for title in ("policy", "untuned base, asked in words"):
            found = re.search(
                rf"{title}: (\d+) of 60 answers are too long for the attribute model and have no score "
                r"\(verbosity at 0: 5, at 1: 5\)",
                text,
            )
            assert found
            assert 10 <= int(found[1]) <= 20
    assert "answers too long for the attribute model55000" in re.sub(r"\s*\n", "", page.text)
    assert [row["unscored"]["score"] for row in level_rows(record)] == [5, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    whole = report_html(result(obeys=True), "x")
    assert "too long for the attribute model" not in whole


def test_leakage_has_intervals() -> None:
    record = result(obeys=True)
    record["conditions"]["policy"]["leakage"]["humor"]["quality"] = {"value": 1.5, "low": 1.25, "high": 1.75}
    leaks = report_html(record, "x").partition("<h2>Leakage</h2>")[2].partition("<h2>")[0]
    assert "<td>1.50 [1.25, 1.75]</td>" in leaks


def test_a_result_read_back_gives_the_same_page() -> None:
    """In a file what is not a number is null."""
    record = result(obeys=True)
    kept = json.loads(re.sub(r"\bNaN\b", "null", json.dumps(record)))
    assert report_html(kept, "x") == report_html(record, "x")


def test_without_a_judge_and_goals() -> None:
    record = result(obeys=True)
    record["judge"] = None
    for condition in record["conditions"].values():
        condition["leakage"] = {name: {} for name in NAMES}
        condition["goal_space"] = condition["consistency"] = None
        for row in condition["attributes"].values():
            row |= {"own": None, "verdict": "not measured", "why": "no attribute model measures it"}
            row["quality_cost"], row["length_controlled"] = None, []
    page = read(report_html(record, "x"))
    assert "No attribute model was given" in page.text
    assert "not measured" in page.text
    assert "Not measured: no attribute model scores all of them." in page.text


@pytest.mark.parametrize(
    ("annotated_by", "seconds", "said"),
    [
        (
            None,
            (),
            "on scores rest on the attribute model, of which the policy does not say whether it learnt from it.",
        ),
        (["fedcba9876543210"], (), "on scores rest on the attribute model, which annotated the data that"),
        (["fedcba9876543210"], NAMES, "on scores rest on the second attribute model, which annotated none of the data"),
        (
            ["fedcba9876543210", "other"],
            NAMES,
            "on scores rest on the second attribute model, which annotated the data",
        ),
        ([], (), "on scores rest on the attribute model, which annotated none of the data"),
        (
            ["fedcba9876543210"],
            ["verbosity"],
            "on scores of verbosity rest on the second attribute model, which annotated none of the data that the "
            "policy learnt from. Verdicts on scores of humor rest on the attribute model, which annotated the data",
        ),
    ],
)
def test_whether_the_judge_is_the_teacher(annotated_by: list[str] | None, seconds: Sequence[str], said: str) -> None:
    record = result(obeys=True, seconds=seconds) | {"annotated_by": annotated_by}
    text = " ".join(read(report_html(record, "x")).text.split())
    assert f"Verdicts {said}" in text
    assert "chosen by the very attribute model" not in text


@pytest.mark.parametrize(
    ("seconds", "by"), [(NAMES, ["first", "first", "second"]), (STEERLM.names, ["second"] * 3), ((), [])]
)
def test_whose_scores_are_joined(seconds: Sequence[str], by: list[str]) -> None:
    """In the tables of quality, of leakage and of goals: theirs who scored more of what is joined there."""
    said = {
        "first": "the attribute model, which annotated the data that",
        "second": "the second attribute model, which annotated none of the data that",
    }
    record = result(obeys=True, seconds=seconds) | {"annotated_by": ["fedcba9876543210"]}
    text = " ".join(read(report_html(record, "x")).text.split())
    parts = text.split("; these scores are those of ")[1:]
    assert len(parts) == len(by)
    for part, who in zip(parts, by, strict=True):
        assert part.startswith(said[who])


def test_verified_answers_were_chosen_by_their_judge() -> None:
    """Also where another one scores some of the attributes."""
    said = "Verified answers were chosen by the very attribute model that scores them here"
    for seconds, chosen in (((), True), (["verbosity"], True), (NAMES, False)):
        record = result(obeys=True, seconds=seconds)
        record["conditions"]["verified"] = {**record["conditions"]["policy"], "title": "policy, verified"}
        assert (said in " ".join(read(report_html(record, "x")).text.split())) is chosen


def test_rows_and_contrasts() -> None:
    record = result(obeys=True)
    rows = level_rows(record)
    assert [(row["attribute"], row["level"]) for row in rows] == [(name, level) for name in NAMES for level in range(5)]
    assert [row["mean_characters"] for row in rows[:5]] == [1, 2, 3, 4, 5]
    verbosity, humor = end_contrasts(record)
    assert verbosity["length_ratio"]["value"] == 5
    assert humor["grade_difference"]["value"] == 0
    assert verbosity["verdict"] == "steers"


def test_figures_are_png(tmp_path: Path) -> None:
    paths = write_figures(result(obeys=True), tmp_path / "figures")
    assert [path.name for path in paths] == ["verbosity.png", "humor.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_few_prompts_are_shown_without_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As values alone, in the page, the tables, the figures and the file."""
    monkeypatch.setattr(f"{__name__}.PROMPTS", PROMPTS[:4])
    found = result(obeys=True)
    for condition in found["conditions"].values():
        condition["consistency"] = None
    text = write_record(tmp_path, "steering", found).read_text()
    assert "NaN" not in text
    record = json.loads(text)
    row = record["conditions"]["policy"]["attributes"]["humor"]
    assert (row["verdict"], row["against_words"]["verdict"]) == ("too few prompts", "too few prompts")
    assert row["within_prompt"] == {"value": pytest.approx(1), "low": None, "high": None}
    shown = Console(record=True, width=200, file=io.StringIO())
    shown.print(steering_view(record))
    table = shown.export_text()
    page = report_html(record, "x")
    assert not re.search(r"\d \[-?\d", re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL) + table)
    assert "nan" not in re.sub("<[^>]*>", " ", page + table).lower().split()
    assert "polyline" in page
    assert 'class="band' not in page
    assert len(write_figures(record, tmp_path / "figures")) == 2


def test_figures_of_an_earlier_result_go(tmp_path: Path) -> None:
    write_figures(result(obeys=True), tmp_path)
    (tmp_path / "mine.png").write_bytes(b"\x89PNG")
    later = result(obeys=True)
    later["settings"]["attributes"] = ["humor"]
    write_figures(later, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"humor.png", "mine.png"}
    remove_figures(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png"}


def test_the_policy_leads_wherever_it_stands() -> None:
    record = result(obeys=True)
    record["conditions"] = dict(reversed(record["conditions"].items()))
    record["settings"]["conditions"] = list(record["conditions"])
    page = read(report_html(record, "x"))
    assert "means at each level (policy)" in page.text
    assert [row["verdict"] for row in end_contrasts(record)] == ["steers", "steers"]
    assert level_rows(record)[4]["mean_score"] == 4
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(steering_view(record))
    assert "humor: steers" in shown.export_text()


def test_the_base_alone_is_not_called_the_policy() -> None:
    record = result(obeys=False)
    del record["conditions"]["policy"]
    record["settings"]["conditions"] = ["words"]
    html = report_html(record, "x")
    assert "means at each level (untuned base, asked in words)" in html
    assert "(policy)" not in html
    assert "Against asking in words" not in html
    assert "this model" not in html


def test_chart() -> None:
    points = [{"value": value, "low": value - 1, "high": value + 1} for value in (0.0, 2.0, 4.0)]
    chart = str(line_chart("a < b", [0, 1, 2], [Line("x", points, 1)]))
    assert "<title>a &lt; b</title>" in chart
    middle = [
        tuple(map(float, pair.split(","))) for pair in re.findall(r'polyline[^>]*points="([^"]*)"', chart)[0].split()
    ]
    assert middle[1][0] - middle[0][0] == pytest.approx(middle[2][0] - middle[1][0], abs=0.11)
    assert middle[0][1] - middle[1][1] == pytest.approx(middle[1][1] - middle[2][1], abs=0.11)
    assert line_chart("none", [0, 1], [Line("x", [{"value": None, "low": None, "high": None}] * 2, 0)]) == ""


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (70.2, 595, [0, 200, 400, 600]),
        (4.37, 10.8, [4, 6, 8, 10, 12]),
        (-0.5, 0.45, [-0.5, -0.25, 0, 0.25, 0.5]),
        (0.1, 0.3, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (3, 3, [2.5, 2.75, 3, 3.25, 3.5]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)
    points = [{"value": value, "low": value, "high": value} for value in (low, high)]
    chart = str(line_chart("x", [0, 1], [Line("x", points, 0)]))
    assert re.findall(r'text-anchor="end">([^<]*)<', chart) == [f"{tick:g}" for tick in ticks]
