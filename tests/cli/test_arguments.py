from pathlib import Path

import pytest

from biasreg.cli.arguments import add_roots, make_parser, results_from, roots_from
from biasreg.core.paths import Roots


def parse(*given: str):
    parser = make_parser("A command.")
    parser.add_argument("--epochs", type=int, default=7, help="number of epochs")
    add_roots(parser)
    return parser, parser.parse_args(given)


def test_flags_of_the_roots_come_before_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("BIASREG_ROOT", "/common")
    monkeypatch.setenv("biasreg_results", "/elsewhere")
    _, arguments = parse("--raw", "here")
    assert roots_from(arguments) == Roots(Path("here"), Path("/common/preprocessed"), Path("/elsewhere"))
    assert results_from(arguments) == Path("/elsewhere")
    assert results_from(parse("--results", "there")[1]) == Path("there")


def test_help_shows_defaults_and_options_are_not_abbreviated(capsys) -> None:
    parser, _ = parse()
    assert "number of epochs (default: 7)" in parser.format_help()
    with pytest.raises(SystemExit) as stopped:
        parse("--epoch", "3")
    assert stopped.value.code == 2
    assert "--epoch" in capsys.readouterr().err


def test_options_with_a_single_dash_cannot_be_abbreviated_either(capsys):
    parser = make_parser("Test.")
    parser.add_argument("-cfg")
    parser.add_argument("-p")
    with pytest.raises(SystemExit):
        parser.parse_args(["-c", "x"])
    assert "unrecognized arguments: -c x" in capsys.readouterr().err
    assert parser.parse_args(["-p=mine", "-cfg", "x"]).p == "mine"
