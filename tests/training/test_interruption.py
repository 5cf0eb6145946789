import os
import signal
import threading

import pytest

from biasreg.training.interruption import TrainingStoppedError, watch_signals


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGINT, "SIGINT (Ctrl-C)", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_signal_is_remembered_by_name_and_gives_the_exit_code_of_shells(number, name, code):
    former = signal.getsignal(number)
    with watch_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_number == number
        assert stop.signal_name == name
    assert signal.getsignal(number) is former
    assert TrainingStoppedError(number, "stopped").exit_code == code


def test_a_second_signal_stops_at_once():
    with watch_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone():
    former = signal.getsignal(signal.SIGTERM)
    seen = []

    def look():
        with watch_signals() as stop:
            seen.extend([bool(stop), signal.getsignal(signal.SIGTERM) is former])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [False, True]
