"""What of ministack is replaced when the engine starts, and where it is asked for what it keeps to itself.

All that depends on ministack's insides is here; `replace` raises, and the engine does not start, where one is gone.

- **Runtime API.** Every worker has a port of its own on loopback, where ministack gives the function's next event, and
  takes its answer, from whoever asks. Here the asking begins with a secret in the path: only the worker knows it, from
  its environment.
- **Credentials of roles.** ministack reckons secret and token of a role from the names of function and role, which
  are no secrets. Here both go through a key that is drawn at this start.
- **Histories.** ministack forgets what executions went through when it ends. Here whoever keeps them hears of each
  execution that is over, before its end is answered.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ministack.core.iam_evaluator import ResolvedCredential, resolve_credential
from ministack.core.lambda_runtime import ProvidedWorker
from ministack.services import lambda_svc, stepfunctions, sts

from claude_workflow.local.engine import ACCOUNT

KEY = secrets.token_bytes(32)
API = "AWS_LAMBDA_RUNTIME_API"
IN_ENVIRONMENT = {"SecretAccessKey": "AWS_SECRET_ACCESS_KEY", "SessionToken": "AWS_SESSION_TOKEN"}
"""A session's fields that are nobody's to reckon, and where a function finds them."""

OWN = len(f"/{'0' * 64}/")
"""Characters of the secret in the path, with the slashes around it."""


def replace(keep: Callable[[str], None]) -> None:
    """Puts the replacements in place, once; `keep` is called with the ARN of each execution that is over. Raises
    `AttributeError` where ministack has changed."""
    ProvidedWorker._build_handler_class = _asking_who(ProvidedWorker._build_handler_class)
    lambda_svc._provided_worker_env = _telling(lambda_svc._provided_worker_env)
    sts.register_session = _keyed(sts.register_session)
    lambda_svc._execute_function_provided = _never
    stepfunctions._run_execution = _kept(stepfunctions._run_execution, keep)


def secret_of(key: str, token: str) -> str | None:
    """The secret of a role's key, if the engine issued it with this session token and it has not expired."""
    found = resolve_credential(key, ACCOUNT, token)
    return str(found.secret_access_key) if isinstance(found, ResolvedCredential) else None


def _asking_who(build: Callable[..., Any]) -> Callable[..., Any]:
    def asking(worker: Any, generation: Any, pending: Any) -> Any:
        class Asking(build(worker, generation, pending)):  # type: ignore[misc]  # ministack's own class, made at run time
            path: str

            def parse_request(self) -> bool:
                if not super().parse_request():
                    return False
                asked: str = self.path
                said, own = asked[:OWN], f"/{_secret(str(self.server.server_address[1]))}/"
                if not hmac.compare_digest(said.encode("latin-1"), own.encode()):
                    self.send_error(403)
                    return False
                self.path = asked[OWN - 1 :]
                return True

        return Asking

    return asking


def _telling(environment: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    def telling(config: Mapping[str, Any], code_dir: str, port: int) -> dict[str, str]:
        given = environment(config, code_dir, port)
        given |= {name: _secret(given[name]) for name in IN_ENVIRONMENT.values()}
        return given | {API: f"{given[API]}/{_secret(str(port))}"}

    return telling


def _keyed(register: Callable[[str, dict[str, Any]], None]) -> Callable[[str, dict[str, Any]], None]:
    def keyed(key: str, session: dict[str, Any]) -> None:
        register(key, session | {name: _secret(session[name]) for name in IN_ENVIRONMENT})

    return keyed


def _kept(run: Callable[[str], None], keep: Callable[[str], None]) -> Callable[[str], None]:
    def kept(execution: str) -> None:
        run(execution)
        keep(execution)

    return kept


def _never(*_: object) -> dict[str, Any]:
    """ministack's other way to run a function (durable ones), whose Runtime API would ask nobody."""
    raise NotImplementedError("Durable functions are not run here.")


def _secret(of: str) -> str:
    return hmac.digest(KEY, of.encode(), "sha256").hex()
