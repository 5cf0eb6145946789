"""The whole page, as a program can read it; `test_browser.py` opens it."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from biasreg.core.errors import InputError
from biasreg.inference.models import ModelRequest
from biasreg.report.make_report import ReportOptions, make_report
from biasreg.report.material import ReportRequest

HOSTILE = '<script>alert(1)&"x'
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """Takes a page apart: elements with their attributes, ids, text outside scripts; checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def request_for(study, **changes) -> ReportRequest:
    given = {
        "model": ModelRequest("700"),
        "roots": study.roots,
        "predictions": study.predictions,
        "evaluation": study.evaluation,
    }
    return ReportRequest(**(given | changes))


@pytest.fixture(scope="module")
def written(whole_study, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    path = make_report(request_for(whole_study), folder / "report.html", ReportOptions(5, folder / "figures"))
    return path.read_text(encoding="utf-8"), folder / "figures"


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written[0])


def test_every_part_is_there_and_the_contents_lead_to_it(page):
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [
        *("summary", "results", "pairs", "failures", "levels", "features", "training", "plans", "dataset"),
    ]
    links = {attributes["href"] for attributes in page.all("a") if attributes.get("href", "").startswith("#")}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {f"#{name}" for name in sections} <= links
    assert {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids)), "an id stands twice"


def test_labels_and_descriptions_refer_to_what_is_there(page):
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for name in ("aria-labelledby", "for", "xlink:href", "clip-path"):
        for _, attributes in page.elements:
            value = attributes.get(name)
            if value is not None and not value.startswith("data:"):
                assert re.sub(r"^(url\()?#?|\)$", "", value) in ids, (name, value)


def test_nothing_is_loaded_from_outside(page, written):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    text = re.sub(r'xmlns(:xlink)?="[^"]*"', "", written[0])
    assert not re.search(r"https?://|@import|\beval\(|new Function|url\((?!#)", text)


def test_the_policy_allows_the_one_script_alone(page, written):
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (script,) = re.findall(r"<script>(.*?)</script>", written[0], re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_names_cannot_become_markup(page, written):
    assert HOSTILE in page.words
    assert HOSTILE not in written[0]
    assert "front & <left>" in page.words
    assert "other $x$ <b>" in page.words
    assert "a notice <b>with markup</b>" in page.words
    assert len([each for each in page.all("script") if "type" not in each]) == 1


def test_the_summary_tells_what_the_evaluation_found(page):
    assert "Registration raises the mean Dice of 7 pairs" in page.words
    assert "Doubtful by the trust checks: 1 of 7 pairs (pair_0)" in page.words
    assert "Dataset700_Kind/x (fold_0)" in page.words


def test_results_levels_trust_plans_and_curves_are_told(page):
    for text in (
        "Pair by pair against biasreg",
        "Easy and hard pairs: misalignment",
        "level 3",
        "2 % of voxels fold",
        "Refined on voxels of 1×1×1.25 mm",
        "without BIAF",
        "all cases are MRI",
        "inter-subject",
    ):
        assert text in page.words, text


def test_each_level_comes_nearer(page):
    levels = re.search(r"After Dice Longest displacement, mm Folding, % (not registered.*?) Feature maps", page.words)[
        1
    ]
    dice = [float(value) for value in re.findall(r"(?:registered|level \d(?:, the result)?) (0\.\d{3})", levels)]
    assert len(dice) == 5
    assert dice[0] < dice[1] < dice[2] < dice[3]


def test_figures_are_saved_for_papers(written):
    _, folder = written
    names = {path.name for path in folder.iterdir()}
    for name in ("boxes_dice", "boxes_hd95_mm", "scatter_dice", "training", "dataset", "worst_pairs", "levels_pair_0"):
        assert {f"{name}.svg", f"{name}.png"} <= names
    assert (folder / "boxes_dice.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_predictions_alone_says_what_is_missing(whole_study, tmp_path):
    path = make_report(ReportRequest(predictions=whole_study.predictions), tmp_path / "r.html", ReportOptions(1))
    page = Page(path.read_text(encoding="utf-8"))
    assert "as prediction measured it" in page.words
    missing = page.words.split("Not in this report")[1]
    for text in ("no dataset was named (-d)", "holds no evaluation", "which pairs are worst is told by an evaluation"):
        assert text in missing
    assert "Level by level" in page.words


def test_a_report_of_an_evaluation_alone_has_its_results(whole_study, tmp_path):
    path = make_report(ReportRequest(evaluation=whole_study.evaluation), tmp_path / "r.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert [each["id"] for each in page.all("section")] == ["summary", "results", "failures", "missing"]


def test_a_report_of_a_model_alone_has_its_curves_and_plans(whole_study, tmp_path):
    request = ReportRequest(model=ModelRequest("700"), roots=whole_study.roots)
    page = Page(make_report(request, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [each["id"] for each in page.all("section")] == ["summary", "training", "plans", "dataset", "missing"]
    assert "A model is trained" in page.words


def test_pairs_whose_images_are_gone_have_no_viewer_and_the_report_says_so(study, tmp_path):
    study.add_pair("a")
    study.references.rename(study.folder / "elsewhere")
    page = Page(make_report(ReportRequest(predictions=study.predictions), tmp_path / "r.html").read_text())
    assert "pairs" not in [each["id"] for each in page.all("section")]
    assert "no pair can be shown; a: the moving image is not at" in page.words
    request = ReportRequest(predictions=study.predictions, references=study.folder / "elsewhere")
    page = Page(make_report(request, tmp_path / "r.html").read_text())
    assert "pairs" in [each["id"] for each in page.all("section")]


def test_damaged_parts_are_left_out_with_their_reason(study, tmp_path):
    study.add_pair("a")
    study.add_levels("a")
    (study.predictions / "a_level2_warp.nii.gz").write_bytes(b"no field")
    (study.predictions / "a_features.npz").write_bytes(b"no archive")
    page = Page(make_report(ReportRequest(predictions=study.predictions), tmp_path / "r.html").read_text())
    missing = page.words.split("Not in this report")[1]
    assert "a_level2_warp.nii.gz" in missing
    assert "holds no feature maps" in missing


def test_the_same_inputs_give_the_same_page_but_for_the_time(study, tmp_path, monkeypatch):
    study.add_pair("a")
    monkeypatch.setattr("biasreg.report.make_report.now", lambda: "then")
    first, second = (
        make_report(ReportRequest(predictions=study.predictions), tmp_path / name).read_bytes() for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": None}, "nothing to report"),
        ({"predictions": Path("nowhere")}, "no such folder of predictions"),
        ({"evaluation": Path("nowhere")}, "no such evaluation"),
    ],
)
def test_what_was_named_and_is_not_there_is_an_error(study, tmp_path, changes, message):
    study.add_pair("a")
    with pytest.raises(InputError, match=message):
        make_report(ReportRequest(**({"predictions": study.predictions} | changes)), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_an_empty_folder_is_nothing_to_report(study, tmp_path):
    with pytest.raises(InputError, match=r"holds no <pair>_warp"):
        make_report(ReportRequest(predictions=study.predictions), tmp_path / "r.html")


def test_letters_that_the_plots_font_lacks_do_no_harm(study, tmp_path):
    study.add_pair("海马_1")
    study.add_pair("海马_2", share=0.5)
    study.evaluate()
    request = ReportRequest(predictions=study.predictions, evaluation=study.evaluation)
    path = make_report(request, tmp_path / "r.html", ReportOptions(1, tmp_path / "figures"))
    assert "海马_2" in path.read_text(encoding="utf-8")
