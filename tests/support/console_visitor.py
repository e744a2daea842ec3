"""Somebody who has opened the console's link, with a program instead of a browser."""

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import urllib3

SECONDS = 60
"""For an answer, on a busy machine."""


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.inputs: dict[str, str] = {}
        """The values of its forms' fields, by name."""
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of each tag."""
        self.tags.add(tag)
        found = {name: value or "" for name, value in attrs}
        self.attributes += found.items()
        if tag == "input":
            self.inputs[found.get("name", "")] = found.get("value", "")

    def handle_data(self, data: str) -> None:
        """Of each text."""
        self.text += data

    def values(self, name: str) -> list[str]:
        """Of every attribute of this name."""
        return [value for each, value in self.attributes if each == name]


class Visitor:
    """Has the cookie."""

    def __init__(self, link: str) -> None:
        self.origin = link.partition("/?")[0]
        self.opening = urllib3.request("GET", link, timeout=SECONDS)
        self.cookie = self.opening.headers["set-cookie"].partition(";")[0]
        goes_on = re.search('href="(/[^"]+)/"', self.opening.data.decode())
        assert goes_on
        self.place = goes_on[1]

    def ask(self, method: str, path: str, **asked: Any) -> urllib3.BaseHTTPResponse:
        """A request with the cookie, unless it is asked otherwise."""
        headers = {"Cookie": self.cookie} | asked.pop("headers", {})
        url = self.origin + self.place + path
        return urllib3.request(method, url, headers=headers, redirect=False, retries=False, timeout=SECONDS, **asked)

    def get(self, path: str, /, **query: Any) -> Page:
        """A page."""
        found = self.ask("GET", path, fields=query)
        assert found.status == 200, found.data
        return Page(found.data.decode())

    def submit(self, path: str, form: dict[str, str], **headers: str) -> urllib3.BaseHTTPResponse:
        """What is answered to a form, sent as a page of the console does."""
        sent = {"Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded"} | headers
        return self.ask("POST", path, headers=sent, body=urlencode(form))

    def post(self, path: str, form: dict[str, str], **headers: str) -> int:
        """The status that a form gets."""
        return self.submit(path, form, **headers).status

    def runs(self, **query: Any) -> list[str]:
        """The runs that the list has, in its order."""
        return [value for value in self.get("/", **query).values("id") if value.startswith("run-")]
