"""The templates, and how a stranger's text gets into one: escaped, without controls and marks of direction, bounded."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from claude_workflow.cli.endings import dollars, lasted
from claude_workflow.cli.history import clock
from claude_workflow.cli.printing import MARK, harmless, line
from lambdas.archive.tree import shown as readable

TEXT_CHARS = 20_000
"""Of one text in a page; behind it stands how much is left out."""


def shown(text: str, most: int = TEXT_CHARS) -> str:
    """A stranger's text, as a page may have it: its beginning, and how long it is where that is not all."""
    if len(text) <= most:
        return harmless(text)
    return f"{harmless(text[:most])}\n{MARK}… {len(text) - most:,} more characters"


def written(data: Any, most: int = TEXT_CHARS) -> str:
    """JSON for people."""
    return shown(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, indent=2), most)


def size(number: float) -> str:
    """Bytes, in the unit that fits."""
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def moment(seconds: float) -> str:
    """Epoch seconds as date and time, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


class Pages:
    """Makes answers of templates; `place` is the path at which all pages are, `token` is in each form."""

    def __init__(self, place: str, token: str) -> None:
        self._place = place
        self._templates = Environment(
            loader=PackageLoader("claude_workflow.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "clock": clock,
            "dollars": dollars,
            "lasted": lasted,
            "line": line,
            "moment": moment,
            "shown": shown,
            "size": size,
            "written": written,
            "readable": readable,
        }
        self._templates.globals |= {"at": self.at, "token": token, "drawn": secrets.token_hex}

    def at(self, path: str, /, **query: Any) -> str:
        """The address of a page; what is None in its query is left out."""
        given = {name: value for name, value in query.items() if value is not None}
        asked = urlencode(given, errors="surrogateescape")  # a file's name need not be UTF-8
        return f"{self._place}{quote(path)}{f'?{asked}' if asked else ''}"

    def text(self, template: str, facts: Mapping[str, Any]) -> str:
        """What a template makes of facts."""
        return self._templates.get_template(template).render(facts)

    def page(self, template: str, status: int = 200, /, **facts: Any) -> Response:
        """A whole page."""
        return HTMLResponse(self.text(template, facts), status)

    def part(self, template: str, seen: str | None, /, **facts: Any) -> Response:
        """A part of a page that is asked for again and again; 204 where it is what was `seen`."""
        text = self.text(template, facts | {"seen": ""})
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if digest == seen:
            return Response(status_code=204)
        return HTMLResponse(self.text(template, facts | {"seen": digest}))
