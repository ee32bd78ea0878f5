"""What a listener hears of several trainings."""

from __future__ import annotations

from robustcli.finetuning.mode_listener import ModeListener
from tests.training.runs import Heard


def test_announcements_are_heard_once_and_results_every_time() -> None:
    heard = Heard()
    listener = ModeListener(heard)
    listener.say("Recipe.")
    for mode in ("full", "freeze"):
        listener.begin(mode)
        listener.say("Recipe.")
        listener.start(10, 0)
        listener.say("Epoch 1: loss 0.5.")
        listener.advance(4)
    assert heard.lines == ["Recipe.", "full: Epoch 1: loss 0.5.", "freeze: Epoch 1: loss 0.5."]
    assert (heard.total, heard.done) == (10, 4)


def test_without_a_mode_lines_are_as_they_are() -> None:
    heard = Heard()
    listener = ModeListener(heard)
    listener.begin("profile")
    listener.start(1, 0)
    listener.begin("")
    listener.say("Done.")
    assert heard.lines == ["Done."]
