import logging
import subprocess
import sys

import pytest

from biasreg.cli.run import run_command
from biasreg.core.errors import DatasetError, TrainingError


def test_nothing_returned_is_exit_code_zero_and_a_code_is_passed_on() -> None:
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3


@pytest.mark.parametrize(("error", "code"), [(DatasetError, 2), (TrainingError, 1)])
def test_an_error_of_the_user_is_one_line_and_its_own_exit_code(error, code: int, capsys) -> None:
    def function() -> None:
        raise error("the file is missing")

    assert run_command(function) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "error: the file is missing"
    assert captured.out == ""


def test_an_interruption_ends_with_130(capsys) -> None:
    def function() -> None:
        raise KeyboardInterrupt

    assert run_command(function) == 130
    assert "interrupted" in capsys.readouterr().err
    assert run_command(function, quiet=True) == 130
    assert not capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_that_names_the_file(tmp_path, capsys) -> None:
    path = tmp_path / "missing"
    assert run_command(lambda: len(path.read_bytes())) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert "Traceback" not in error


def test_a_fault_of_the_program_is_passed_on() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_messages_of_level_info_go_to_stderr_as_plain_text() -> None:
    script = (
        "import logging; from biasreg.cli.run import run_command\n"
        "def function():\n"
        "    logging.getLogger('biasreg.x').info('hello %d', 1)\n"
        "    logging.getLogger('biasreg.x').debug('hidden')\n"
        "    logging.getLogger('other').info('foreign')\n"
        "run_command(function)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "hello 1\n"
    assert result.stdout == ""


def test_a_program_that_has_set_up_logging_keeps_its_handlers() -> None:
    before = list(logging.getLogger().handlers)
    run_command(lambda: None)
    assert [handler for handler in before if handler not in logging.getLogger().handlers] == []
