"""Log lines for machines and people: one line each, as logfmt or JSON, with the id of the request they belong to.

Lines hold what an operator needs and nothing of the callers': no query, no prompt, no key, no address, no image.
"""

import json
import logging
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the running code serves; empty outside of requests and on the models' threads."""

_PLAIN = re.compile(r"[^\s=\"\\\x00-\x1f\x7f-\x9f]+")
"""Values that logfmt may hold without quotation marks."""


class StructuredFormatter(logging.Formatter, ABC):
    """time, level, logger, message, then the line's own fields (`extra={"fields": {...}}`); a trace comes last."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if serving := request_id.get():
            fields["request_id"] = serving
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return self.render(fields)

    @abstractmethod
    def render(self, fields: Mapping[str, Any]) -> str:
        """`fields` in order, on one line."""


class JsonFormatter(StructuredFormatter):
    """One JSON object for each line."""

    def render(self, fields: Mapping[str, Any]) -> str:
        """`fields` as an object."""
        return json.dumps(fields, ensure_ascii=False, default=str)


class LogfmtFormatter(StructuredFormatter):
    """key=value pairs; values with blanks or control characters stand in quotation marks, escaped as in JSON."""

    def render(self, fields: Mapping[str, Any]) -> str:
        """`fields` as pairs."""
        return " ".join(f"{key}={logfmt_value(value)}" for key, value in fields.items())


def logfmt_value(value: object) -> str:
    """`value` as logfmt writes it."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)  # JSON's own text of it, at a tenth of the time: half of a request's line are numbers
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def configure_logging(form: Literal["logfmt", "json"], level: str, has_request_lines: bool = True) -> None:
    """Send every line of this process to stderr in `form`, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else LogfmtFormatter())
    # No line tells of threads and processes: finding out which takes a system call and three look-ups for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("petseg.requests").setLevel(logging.NOTSET if has_request_lines else logging.ERROR)
    for name in ("urllib3", "opentelemetry"):  # their debug lines tell of our own exports
        logging.getLogger(name).setLevel(logging.WARNING)
