"""The tree of errors is the definition's, the gateway's and the README's table."""

import json

import pytest

from lambdas import errors
from lambdas.errors import SessionBusy, StorageUnavailable, WorkflowError


def test_an_errors_text_is_its_facts_as_json() -> None:
    """Lambda hands on nothing but text, so the text carries every fact the answer needs."""
    facts = json.loads(str(SessionBusy(retry_after=7, session_id="session-a", run_id="run-b")))
    assert facts == {
        "success": False,
        "error": "Another run is working on this session. Try again in 7 seconds.",
        "code": "SessionBusy",
        "retryable": True,
        "session_id": "session-a",
        "run_id": "run-b",
        "cost_usd": 0.0,
        "retry_after": 7,
    }


def test_the_services_own_troubles_share_one_code() -> None:
    """A caller sees Internal for every kind of it; only the operator sees the detail."""
    error = StorageUnavailable(detail="writing runs/x: SlowDown")
    assert error.facts()["code"] == "Internal"
    assert "SlowDown" not in json.dumps(error.facts())
    assert "SlowDown" in str(error)


@pytest.mark.parametrize("kind", errors.tree())
def test_every_class_is_drawn_in_the_tree_and_says_a_sentence(kind: type[WorkflowError]) -> None:
    """The drawing at the top of errors.py leaves no class out."""
    assert f" {kind.__name__} " in f" {errors.__doc__} ".replace("\n", " ")
    assert kind.sentence.endswith(".")


def test_statuses_are_those_of_the_contract() -> None:
    """What the API answers with is fixed: clients branch on it."""
    assert errors.statuses() == {
        "InvalidRequest": 400,
        "SessionNotFound": 404,
        "BudgetExhausted": 402,
        "ModelUnpriced": 422,
        "SessionBusy": 409,
        "RunInProgress": 409,
        "RequestTooLarge": 413,
        "IdempotencyMismatch": 422,
        "RunNotFound": 404,
        "FileNotFound": 404,
        "UploadNotFound": 404,
        "UploadUsed": 409,
        "MaterialsRefused": 422,
        "RunCancelled": 409,
        "SessionMoved": 409,
        "SessionTooLarge": 413,
        "RepositoryRefused": 422,
        "RepositoryUnavailable": 503,
        "ModelRejected": 422,
        "ModelRateLimited": 429,
        "ModelUnauthorized": 502,
        "ModelOverloaded": 503,
        "ToolServerUnavailable": 503,
        "AgentCrashed": 502,
        "OutputUnusable": 502,
        "RunTimedOut": 504,
        "Internal": 500,
        "Forbidden": 403,
        "MethodNotAllowed": 405,
        "UnsupportedMediaType": 415,
        "Throttled": 429,
    }


def test_every_refusal_of_the_models_api_is_mapped() -> None:
    """No status of the API's documentation that a repeat can't cure counts as an overload."""
    assert {400, 401, 402, 403, 404, 413, 422, 429} == set(errors.MODEL_STATUSES)
