"""What makes a request one of the deployment's: secrets in headers, read when needed, and again when refused."""

import http.client
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from lambdas.errors import ModelUnauthorized


class Secret:
    """A secret that is read when it is first needed, kept, and read again when it is refused. Thread-safe."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._value: str | None = None
        self._lock = threading.Lock()

    def current(self) -> str:
        """The secret. Raises ModelUnauthorized if it is empty, and whatever `read` raises."""
        with self._lock:
            if self._value is None:
                self._value = self._read().strip()
            if not self._value:
                self._value = None
                raise ModelUnauthorized(detail="the secret is empty")
            return self._value

    def renewed(self, refused: str) -> str | None:
        """The secret read again after `refused` was; None if it has not changed. Another thread may have been first."""
        with self._lock:
            if self._value == refused:
                self._value = None
        value = self.current()
        return value if value != refused else None


class Credential(Protocol):
    """What makes a request one of the deployment's."""

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:
        """The headers to add, in lower case. They replace the agent's own of the same name."""

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """After 401 or 403 for a request with these headers: whether there is another credential to try."""


@dataclass(frozen=True)
class Key(Credential):
    """A secret in headers, such as `{"x-api-key": "{}"}`, where `{}` stands for it."""

    secret: Secret
    forms: Mapping[str, str]

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:  # noqa: ARG002 - a signature needs them
        """The secret in its forms."""
        value = self.secret.current()
        return {name: form.replace("{}", value) for name, form in self.forms.items()}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """Whether the secret was changed since; only 401 says that it is a wrong one."""
        if refusal.status != HTTPStatus.UNAUTHORIZED:
            return False
        name, form = next(iter(self.forms.items()))
        before, _, after = form.partition("{}")
        return self.secret.renewed(used[name].removeprefix(before).removesuffix(after)) is not None


@dataclass(frozen=True)
class Anonymous(Credential):
    """None: of a service that asks for none."""

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:  # noqa: ARG002 - a signature needs them
        """Nothing is added."""
        return {}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:  # noqa: ARG002 - as above
        """There is no other."""
        return False
