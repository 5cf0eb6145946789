"""Single parts of the page, where the whole does not show what they do."""

import logging

import numpy as np
import pytest

from biasreg.core.errors import ImageError
from biasreg.report.features_section import read_features
from biasreg.report.page import number, percent
from biasreg.report.plotting import FigureShelf, house_style, method_colours, new_figure
from biasreg.report.training_section import read_history


def test_a_line_that_was_cut_off_leaves_the_epochs_before_it(study, caplog):
    study.add_model(folds=1)
    (path,) = study.roots.results.rglob("metrics.jsonl")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-40], encoding="utf-8")
    with caplog.at_level(logging.WARNING, "biasreg"):
        assert [record.epoch for record in read_history(path)] == list(range(1, 7))
    assert "left out of the report" in caplog.text
    assert read_history(path.with_name("nothing")) == ()


def test_feature_maps_of_unknown_kinds_are_not_taken(tmp_path):
    path = tmp_path / "a_features.npz"
    maps = np.zeros((3, 4, 4, 4), dtype=np.float16)
    np.savez(path, moving_semantic_level0=maps, fixed_other_level0=maps, notes=np.zeros(3))
    assert list(read_features(path)) == [("moving", "semantic", 0)]
    np.savez(path, notes=np.zeros(3))
    with pytest.raises(ImageError, match="holds no feature maps"):
        read_features(path)
    np.savez(path, moving_semantic_level0=np.zeros((2, 4, 4, 4)))
    with pytest.raises(ImageError, match=r"\(3, X, Y, Z\)"):
        read_features(path)


def test_feature_maps_that_hold_code_are_not_run(tmp_path):
    path = tmp_path / "a_features.npz"
    np.savez(path, moving_semantic_level0=np.array([print], dtype=object))
    with pytest.raises(ImageError, match="allow_pickle"):
        read_features(path)


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0, "0"), (1e-5, "< 0.001"), (0.0123, "0.012")])
def test_a_little_folding_does_not_look_like_none(value, text):
    assert percent(value) == text


def test_numbers_that_are_not_known_are_dashes():
    assert (number(None), number(0.12345), number(2.0, 1)) == ("–", "0.123", "2.0")


def test_each_method_has_a_colour_and_the_own_one_always_the_same():
    methods = ("identity", "mine", *(f"m{index}" for index in range(9)))
    colours = method_colours(methods, "mine", "identity")
    assert set(colours) == set(methods)
    assert colours["mine"] == method_colours(("identity", "mine"), "mine", "identity")["mine"]
    assert colours["mine"] not in {colours[name] for name in methods if name != "mine"}


def test_figures_follow_the_colours_of_the_page_and_keep_their_text():
    with house_style():
        figure = new_figure(3, 2)
        figure.subplots().set_title("50 % of $x$ <b> -->")
        html = FigureShelf().show(figure, "name", "A <caption>")
    assert "currentColor" in html
    assert "50 % of $x$ &lt;b&gt; --&gt;" in html
    assert "A &lt;caption&gt;" in html
    assert "<!--" not in html
    assert "#1c2127" not in html
