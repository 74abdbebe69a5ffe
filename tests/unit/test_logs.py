"""Log lines are one line each, whatever they tell, and can be read back."""

import json
import logging
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import logs
from service.logs import JsonFormatter, LogfmtFormatter, configure_logging, logfmt_value


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("petseg.test", logging.WARNING, __file__, 1, message, (), None)
    made.created = 1_700_000_000.5
    made.fields = fields
    return made


def test_json_is_one_object_for_each_line() -> None:
    line = JsonFormatter().format(record("two\nlines", status=200, model="café"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500+00:00",
        "level": "warning",
        "logger": "petseg.test",
        "message": "two\nlines",
        "status": 200,
        "model": "café",
    }


def test_logfmt_quotes_only_what_needs_it() -> None:
    line = LogfmtFormatter().format(record("request", status=200, ms=1.5, path='/a b="c"\n', empty=""))
    assert line == (
        "time=2023-11-14T22:13:20.500+00:00 level=warning logger=petseg.test message=request "
        'status=200 ms=1.5 path="/a b=\\"c\\"\\n" empty=""'
    )
    assert shlex.split(line)[5] == "ms=1.5"


@given(st.text())
def test_no_value_can_begin_a_line_or_a_field_of_its_own(text: str) -> None:
    value = logfmt_value(text)
    assert json.loads(value if value.startswith('"') else json.dumps(value)) == text
    assert "\n" not in value and "\r" not in value
    if not value.startswith('"'):
        assert "=" not in value and " " not in value


@given(st.integers() | st.floats() | st.booleans() | st.none())
def test_numbers_are_written_as_json_writes_them(value: object) -> None:
    assert logfmt_value(value) == json.dumps(value)


def test_numbers_do_not_go_through_the_json_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(json, "dumps")
    assert [logfmt_value(value) for value in (200, 1.5, "timm_unet")] == ["200", "1.5", "timm_unet"]


@pytest.mark.parametrize("formatter", [JsonFormatter(), LogfmtFormatter()])
def test_a_trace_stays_on_its_line(formatter: logging.Formatter) -> None:
    failed = record("failed")
    try:
        raise ValueError("got 1,\nwanted 2")
    except ValueError:
        failed.exc_info = sys.exc_info()
    line = formatter.format(failed)
    assert len(line.splitlines()) == 1
    assert "ValueError: got 1," in line


def test_lines_within_a_request_carry_its_id() -> None:
    token = logs.request_id.set("abc")
    try:
        assert json.loads(JsonFormatter().format(record("failed")))["request_id"] == "abc"
    finally:
        logs.request_id.reset(token)
    assert "request_id" not in json.loads(JsonFormatter().format(record("failed")))


def test_level_form_and_request_lines_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info", has_request_lines=False)
    logging.getLogger("petseg.app").debug("too fine")
    logging.getLogger("petseg.requests").warning("not wanted")
    logging.getLogger("petseg.app").info("wanted")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["wanted"]
