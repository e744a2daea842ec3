"""API Gateway's mapping templates off AWS: `airspeed` evaluates them, this gives them `$input`, `$context` and `$util`.

Values are `Text`, a string with the Java methods that our templates call; any other name is an error. What AWS does to
a character is done to it here too (`escapeJavaScript` above all), because prompts have to arrive byte for byte.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import airspeed

SHORT = {"\b": "\\b", "\n": "\\n", "\t": "\\t", "\f": "\\f", "\r": "\\r"} | {char: f"\\{char}" for char in "'\"\\/"}
"""What `StringEscapeUtils.escapeEcmaScript` of Apache Commons, which is `$util.escapeJavaScript`, shortens."""

STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\['([^']*)'\]|\[(\d+)\]")


class _Strict:
    """Has no names but its own: `airspeed` takes what it does not find for an empty text, and goes on."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions
            raise AttributeError(name)
        raise NotImplementedError(f"The local gateway does not know {name}.")


class Text(_Strict, str):
    """A string that answers to some methods of Java's `String`."""

    __slots__ = ()

    def length(self) -> int:
        """Java's `String.length`."""
        return len(self.encode("utf-16-le")) // 2

    def matches(self, pattern: str) -> bool:
        """Java's `String.matches`: of the whole."""
        return re.fullmatch(pattern, self) is not None

    def replaceAll(self, pattern: str, replacement: str) -> "Text":  # noqa: N802 (Java's name)
        """Java's `String.replaceAll`."""
        return Text(re.sub(pattern, _python_replacement(replacement), self))


def _python_replacement(java: str) -> str:
    """Java writes `$1` for a group and `\\x` for a literal x; Python `\\g<1>` and a doubled backslash."""
    parts = re.findall(r"\\(.)|\$(\d)|([^\\$])", java, re.DOTALL)
    return "".join(
        f"\\g<{group}>" if group else f"{literal}{plain}".replace("\\", "\\\\") for literal, group, plain in parts
    )


def texts(value: Any) -> Any:
    """`value` (of JSON) with every string, keys too, as `Text`."""
    match value:
        case str():
            return Text(value)
        case dict():
            return {Text(name): texts(item) for name, item in value.items()}
        case list():
            return [texts(item) for item in value]
    return value


def parsed(text: str) -> Any:
    """The value of a JSON text, as strictly as Java's parsers take it. Raises ValueError, or RecursionError.

    Python's own takes more: NaN and infinities, by name or by size (1e999), which nobody after it can carry on.
    """
    return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole_number)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole_number(text: str) -> int:
    _number(text)
    return int(text)


class Input(_Strict):
    """`$input`: the body of the request, or in response templates of the backend's answer."""

    def __init__(self, body: str, params: Mapping[str, Mapping[str, str]]) -> None:
        self.body = Text(body)
        self._params = texts(params)

    def json(self, path: str) -> Text:
        """`$input.json(path)`: JSON text."""
        return Text(json.dumps(_at(parsed(self.body), path), ensure_ascii=False, separators=(",", ":")))

    def path(self, path: str) -> Any:
        """`$input.path(path)`: a value."""
        return texts(_at(parsed(self.body), path))

    def params(self, name: str | None = None) -> Any:
        """`$input.params(name)`: a parameter of the request."""
        if name is None:
            return self._params
        found = [self._params[kind][name] for kind in ("path", "querystring", "header") if name in self._params[kind]]
        return found[0] if found else None


def _at(value: Any, path: str) -> Any:
    """The value at a JSONPath of names and indexes; None where there is nothing."""
    steps = path.removeprefix("$")
    if STEP.sub("", steps):
        raise ValueError(f"The local gateway does not evaluate the JSONPath {path}.")
    for name, quoted, index in STEP.findall(steps):
        try:
            value = value[int(index)] if index else value[name or quoted]
        except (KeyError, IndexError, TypeError):
            return None
    return value


class Util(_Strict):
    """`$util`."""

    def escapeJavaScript(self, text: str) -> Text:  # noqa: N802 (AWS's name)
        """As commons-lang escapes."""
        return Text("".join(_escaped(char) for char in text))

    def parseJson(self, text: str) -> Any:  # noqa: N802 (AWS's name)
        """The value of a JSON text."""
        return texts(parsed(text))


def _escaped(char: str) -> str:
    if char in SHORT:
        return SHORT[char]
    if " " <= char <= "\x7f":
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02X}{units[at + 1]:02X}" for at in range(0, len(units), 2))


def render(template: str, source: Input, context: dict[str, Any]) -> str:
    """The template's text. `context` is changed where the template sets `$context.responseOverride`."""
    names = {"input": source, "context": context, "util": Util(), "stageVariables": {}}
    return str(airspeed.Template(template).merge(names))
