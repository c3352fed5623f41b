"""What a Kaniko pod prints."""

from __future__ import annotations

from services.builder.backends.kaniko.output import Output


def test_messages_of_its_own_are_shown_without_their_frame() -> None:
    output = Output()
    assert output.read('{"level":"info","msg":"RUN a \\u003e b","time":"t"}') == "RUN a > b"
    assert output.read("what a step says\n") == "what a step says"
    assert output.read('{"level": what a step says') == '{"level": what a step says'
    assert output.step == ["what a step says", '{"level": what a step says']
    assert output.error == ""


def test_an_error_ends_what_steps_say_and_how_to_use_it_is_left_out() -> None:
    output = Output()
    assert output.read("Error: error resolving source context: x")
    for line in ("Usage:", "  executor [flags]", "Flags:"):
        assert output.read(line) == ""
    assert output.error == "error resolving source context: x"
    assert output.step == []


def test_a_step_may_say_how_something_is_used() -> None:
    output = Output()
    assert output.read("Usage:") == "Usage:"
    assert output.read("  tool [flags]") == "  tool [flags]"


def test_of_a_long_step_the_end_is_kept() -> None:
    output = Output()
    for number in range(1000):
        output.read(str(number))
    assert output.step[-1] == "999"
    assert len(output.step) == 400


def test_lines_that_overtake_the_message_of_their_step_are_kept() -> None:
    output = Output()
    for line in ("so it goes", '{"level":"info","msg":"Running: [/bin/sh -c exit 7]"}'):
        output.read(line)
    assert list(output.step) == ["so it goes"]
