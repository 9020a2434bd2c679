"""What a person sees of a run: the round line, the bar and plain lines."""

import io

import pytest

from fl_app.console import WIDTH, Progress, human_bytes, round_line

LINE = {
    "round": 7,
    "metrics": {"log_loss": 0.2311, "accuracy": 0.9141},
    "train_metrics": None,
    "expected_clients": 12,
    "good": 12,
    "dropped": [],
    "bytes_up": 612_345,
    "bytes_down": 1,
    "payload_up": 1,
    "payload_down": 1,
    "seconds": {"send": 0.1, "total": 3.12},
    "epsilon": None,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_round_is_one_line_with_accuracy_first() -> None:
    expected = "round 7/20  12 of 12 clients  accuracy 0.914  log_loss 0.231  up 0.6 MB  3.1 s"
    assert round_line(LINE, rounds=20, clients=12) == expected


def test_without_accuracy_the_first_metric_leads() -> None:
    line = {**LINE, "metrics": {"mse": 2901.5, "mae": 43.2, "r2": 0.5}}
    assert "clients  mse 2.9e+03  mae 43.200  up" in round_line(line, 20, 12)


def test_training_metrics_stand_in_and_say_so() -> None:
    line = {**LINE, "metrics": None, "train_metrics": {"accuracy": 0.5}}
    assert "before: accuracy 0.500" in round_line(line, 20, 12)


@pytest.mark.parametrize("metrics", [None, {}, {"accuracy": None}])
def test_a_round_without_a_metric_is_still_a_line(metrics: dict[str, float] | None) -> None:
    assert round_line({**LINE, "metrics": metrics}, 20, 12) == "round 7/20  12 of 12 clients  up 0.6 MB  3.1 s"


def test_a_private_cohort_is_not_counted() -> None:
    line = {**LINE, "good": None, "expected_clients": None, "epsilon": 2.314}
    assert round_line(line, 20, 12).startswith("round 7/20  accuracy 0.914  log_loss 0.231  epsilon 2.314  up")


def test_what_does_not_fit_is_left_out_but_never_the_privacy_spent() -> None:
    line = {**LINE, "round": 1000, "good": 99_999, "expected_clients": 100_000, "epsilon": 12.5}
    text = round_line(line, 1000, 100_000)
    assert text == "round 1000/1000  99999 of 100000 clients  accuracy 0.914  epsilon 12.5  3.1 s"
    assert len(text) <= WIDTH


def test_dropped_clients_are_named_with_their_reason() -> None:
    dropped = [{"client": f"hospital-{i}", "reason": "non-finite"} for i in range(14)]
    first, *rest = round_line({**LINE, "good": 10, "dropped": dropped[:2]}, 20, 12).splitlines()
    assert "10 of 12 clients" in first
    assert rest == ["  dropped: hospital-0 (non-finite), hospital-1 (non-finite)"]

    late = {"client": "hospital-3", "reason": "late"}
    assert round_line({**LINE, "dropped": [late]}, 20, 12).splitlines() == [round_line(LINE, 20, 12)]
    assert "10 of 12 clients (retried)" in round_line({**LINE, "good": 10, "attempts": 2}, 20, 12)

    many = round_line({**LINE, "dropped": dropped}, 20, 12).splitlines()
    assert all(len(line) <= WIDTH for line in many)
    assert many[-1].endswith("and 4 more, all in rounds.jsonl")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (99, "99 B"), (100, "0.1 kB"), (99_000, "99.0 kB"), (612_345, "0.6 MB"), (3 * 10**9, "3.0 GB")],
)
def test_bytes_are_readable(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_a_file_gets_plain_lines_without_control_codes() -> None:
    stream = io.StringIO()
    with Progress(20, 12, stream=stream) as progress:
        progress.status("starting Flower ...")
        progress.round(LINE)
    assert stream.getvalue() == f"starting Flower ...\n{round_line(LINE, 20, 12)}\n"


def test_a_terminal_gets_the_lines_above_a_bar() -> None:
    stream = Terminal()
    with Progress(20, 12, stream=stream) as progress:
        progress.status("starting Flower ...")
        progress.round(LINE)
    shown = stream.getvalue()
    assert round_line(LINE, 20, 12) in shown
    assert "starting Flower ..." in shown
    assert "7/20" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is left hidden"
