"""What comes in at the door, field by field."""

import functools
from typing import Any

import pytest

from lambdas.errors import InvalidRequest, RequestTooLarge
from lambdas.repositories import Repositories
from lambdas.request import BODY_BYTES, Allowance, Request, asked_run, run_id
from lambdas.settings import Caps, Clocks, Legs

CAPS = Caps(max_turns=50, max_budget_usd=2.0, allowed_tools=None)
CLOCKS, LEGS = Clocks(29), Legs(3600)
SITE = "https://github.com/acme/site"
DEEP: dict[str, Any] = functools.reduce(lambda within, _: {"a": within}, range(5000), dict[str, Any]())
"""Nested more deeply than Python goes by recursion."""


def parsed(body: object, caps: Caps = CAPS, **envelope: Any) -> Request:
    sent = {"caller": "default", "key": "k1", "key_given": True, "requested_at": 1_700_000_000_000, "body": body}
    return Request.parse(sent | envelope, caps, CLOCKS, LEGS)


def test_a_prompt_is_all_that_is_needed() -> None:
    """The smallest request is valid, and its times are seconds."""
    request = parsed({"prompt": "Hello"})
    assert (request.caller, request.key, request.requested_at) == ("default", "k1", 1_700_000_000.0)
    assert request.session_id is None
    assert not request.copies


WRONG_FILES: list[tuple[object, str]] = [
    ("a", "files must be a list of 1 to 1000"),
    ([], "files must be a list of 1 to 1000"),
    ([{"path": str(number), "content": ""} for number in range(1001)], "files must be a list of 1 to 1000"),
    (["a"], "one of them is no object"),
    ([{"content": ""}], "a path must be a string"),
    ([{"path": "", "content": ""}], "'' is no path in the workspace"),
    ([{"path": "/etc/passwd", "content": ""}], "'/etc/passwd' is no path in the workspace"),
    ([{"path": "a/../b", "content": ""}], "'a/../b' is no path in the workspace"),
    ([{"path": "a//b", "content": ""}], "'a//b' is no path in the workspace"),
    ([{"path": "a\0", "content": ""}], "is no path in the workspace"),
    ([{"path": "\ud83d", "content": ""}], "surrogate"),
    ([{"path": "n" * 256, "content": ""}], "is too long"),
    ([{"path": "n/" * 1500 + "n", "content": ""}], "is too long"),
    ([{"path": "a"}], "'a' has to have a content or a content_base64"),
    ([{"path": "a", "content": "", "content_base64": ""}], "'a' has to have a content or a content_base64"),
    ([{"path": "a", "content": "", "mode": 7}], "and nothing else"),
    ([{"path": "a", "content": 1}], "the content of 'a' must be a string"),
    ([{"path": "a", "content": "\ud83d"}], "surrogate"),
    ([{"path": "a", "content_base64": "AA=A"}], "the content_base64 of 'a' is not base64"),
    ([{"path": "a", "content_base64": "é"}], "the content_base64 of 'a' is not base64"),
    ([{"path": "a", "content": ""}] * 2, "each path once, as a file or as a folder: 'a'"),
    ([{"path": path, "content": ""} for path in ("a/b/c", "a-b", "a/b")], "as a file or as a folder: 'a/b'"),
]
WRONG_WORKSPACES: list[tuple[object, str]] = [
    ("upload-1", "workspace must be"),
    ({"path": "a"}, "workspace must be"),
    ({"upload": f"upload-{'0' * 32}", "url": "x"}, "workspace must be"),
    ({"upload": "../x"}, "workspace names no upload"),
    ({"upload": 1}, "workspace names no upload"),
    ({"upload": f"upload-{'0' * 32}", "path": "../x"}, "'../x' is no path in the workspace"),
]
WRONG = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n"}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "half \ud83d"}, "prompt"),
    ({"prompt": "nul \0"}, "prompt"),
    ({"prompt": "x", "colour": "red"}, "'colour'"),
    ({"prompt": "x", "session_id": "../etc"}, "session_id"),
    ({"prompt": "x", "session_id": "session-a\n"}, "session_id"),
    ({"prompt": "x", "session_id": "session-" + "a" * 81}, "session_id"),
    ({"prompt": "x", "fork": "yes"}, "fork"),
    ({"prompt": "x", "fork": True}, "session_id"),
    ({"prompt": "x", "model": "--dangerous"}, "model"),
    ({"prompt": "x", "append_system_prompt": "a" * 70_000}, "append_system_prompt"),
    ({"prompt": "x", "max_turns": 0}, "max_turns"),
    ({"prompt": "x", "max_turns": True}, "max_turns"),
    ({"prompt": "x", "max_turns": 1.5}, "max_turns"),
    ({"prompt": "x", "max_turns": 51}, "at most 50"),
    ({"prompt": "x", "max_budget_usd": 0}, "max_budget_usd"),
    ({"prompt": "x", "max_budget_usd": float("nan")}, "max_budget_usd"),
    ({"prompt": "x", "max_budget_usd": 2.01}, "at most 2"),
    ({"prompt": "x", "output_schema": "{}"}, "output_schema"),
    ({"prompt": DEEP}, "The field prompt is nested"),
    ({"prompt": "x", "output_schema": {"properties": DEEP}}, "The field output_schema is nested"),
    ({"prompt": "x", "output_schema": {"type": "objekt"}}, "output_schema needs one or some of array"),
    ({"approve": "0" * 64}, "approve needs the session_id"),
    ({"session_id": "session-1", "approve": "0" * 63}, "approve must match"),
    ({"session_id": "session-1", "approve": "0" * 64, "deny": {"digest": "0" * 64}}, "exclude each other"),
    ({"session_id": "session-1", "deny": "0" * 64}, "deny must be an object"),
    ({"session_id": "session-1", "deny": {"digest": "x"}}, "deny has a digest or a reason that must match"),
    ({"session_id": "session-1", "deny": {"digest": "0" * 64, "reason": 1}}, "that must be a string"),
    ({"session_id": "session-1", "deny": {"digest": "0" * 64, "why": "x"}}, "deny must be an object"),
    ({"prompt": "x", "allowed_tools": "Read"}, "allowed_tools"),
    ({"prompt": "x", "allowed_tools": ["Bash(git *)"]}, "allowed_tools"),
    ({"prompt": "x", "disallowed_tools": [1]}, "disallowed_tools"),
    ({"prompt": "x", "allowed_tools": ["default"]}, "'default' is not one"),
    ({"prompt": "x", "timeout_seconds": 22}, "at most 21"),
    ({"prompt": "x", "timeout_seconds": -1}, "timeout_seconds"),
    ({"prompt": "x", "repository": SITE}, "repository must be an object with the url"),
    ({"prompt": "x", "repository": {}}, "url of a repository"),
    ({"prompt": "x", "repository": {"url": "file:///etc"}}, "url of a repository"),
    ({"prompt": "x", "repository": {"url": f"{SITE}?x"}}, "url of a repository"),
    ({"prompt": "x", "repository": {"url": SITE, "branch": "main"}}, "'branch'; it knows url, ref and depth"),
    ({"prompt": "x", "repository": {"url": SITE, "ref": "--upload-pack=sh"}}, "ref that must match"),
    ({"prompt": "x", "repository": {"url": SITE, "ref": ""}}, "ref that must match"),
    ({"prompt": "x", "repository": {"url": SITE, "depth": 0}}, "depth that must be"),
    ({"prompt": "x", "repository": {"url": SITE}}, "not among this deployment's `repositories`"),
    *(({"prompt": "x", "files": files}, named) for files, named in WRONG_FILES),
    *(({"prompt": "x", "workspace": workspace}, named) for workspace, named in WRONG_WORKSPACES),
    ([], "JSON object"),
    ({"prompt": "x", "output_schema": {"type": "object", "half": "\ud83d"}}, "surrogate"),
    ({"prompt": "x", "output_schema": {"type": "object", "\udc00": 1}}, "surrogate"),
    ({"prompt": "x", "output_schema": {"type": "object", "maximum": float("inf")}}, "number"),
    ({"prompt": "x", "max_budget_usd": float("nan")}, "max_budget_usd"),
    ("prompt", "JSON object"),
    (None, "JSON object"),
]


@pytest.mark.parametrize(("body", "named"), WRONG)
def test_a_wrong_body_is_refused_by_the_name_of_its_field(body: object, named: str) -> None:
    """Bad input is turned away before anything is spent, with a sentence that says which field is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        parsed(body)
    assert named in refused.value.said


@pytest.mark.parametrize("letter", ["a", "é", "🎈"])
def test_a_body_over_240_kib_of_utf8_is_too_large(letter: str) -> None:
    """Bytes count, not characters: Step Functions carries 256 KiB of UTF-8."""
    fits = letter * ((BODY_BYTES - 100) // len(letter.encode()))
    assert parsed({"prompt": fits}).body["prompt"] == fits
    with pytest.raises(RequestTooLarge):
        parsed({"prompt": fits + letter * 100})


def test_the_gateway_can_say_that_a_body_was_too_large_to_hand_on() -> None:
    """It then sends no body at all."""
    with pytest.raises(RequestTooLarge):
        parsed(None, oversize=True)


@pytest.mark.parametrize("key", ["", "a" * 65, "a b", "ü", 'x","caller":"bob'])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """The header is checked, not repaired: two clients must not meet in one repaired key."""
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        parsed({"prompt": "x"}, key=key)


def test_a_key_is_taken_as_it_is_given() -> None:
    """Two keys that differ are two runs; and the API's request id, which is the key where the client sends none, is the
    same run when it is sent back."""
    keys = ["order/1", "order+1", "order_1", "ORDER/1", "aB/c+d=", "aB-c_d="]
    runs = {key: parsed({"prompt": "x"}, key=key).run_id for key in keys}
    assert len(set(runs.values())) == len(keys)
    assert runs["aB/c+d="] == parsed({"prompt": "x"}, key="aB/c+d=", key_given=False).run_id
    assert runs == {key: asked_run("default", key, None) for key in keys}


def test_no_caller_can_take_the_key_of_a_replay() -> None:
    """A fork or a rebase is a run of the caller's, under a key that no caller can send."""
    record = {"run_id": run_id("default", "k1"), "owner": "default", "key": "k1", "body": {"prompt": "x"}}
    for verb in ("fork", "rebase"):
        derived = Request.recall({"replay": verb, "requested_at": 0}, record)
        assert derived.run_id == asked_run("default", "k1", verb)
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            parsed({"prompt": "x"}, key=derived.key)


@pytest.mark.parametrize("more", [{"verb": "fork", "key": "run-1:fork"}, {"key": "run-1.fork"}])
def test_a_fork_asked_again_stays_a_fork(more: dict[str, str]) -> None:
    """Its record says so; in one that is older than that, the key does."""
    record = {"run_id": "run-2", "owner": "default", "replay_of": "run-1", "body": {"prompt": "x"}} | more
    again = Request.recall({"replay": "again", "requested_at": 0}, record)
    assert (again.verb, again.replay_of, again.copies) == ("fork", "run-1", True)


def test_another_callers_key_is_another_run() -> None:
    """A key says nothing about anybody else's runs."""
    assert run_id("alice", "k") == run_id("alice", "k")
    assert run_id("alice", "k") != run_id("bob", "k")


def test_the_order_of_fields_does_not_make_another_body() -> None:
    """Bodies are compared as canonical JSON."""
    one = parsed({"prompt": "x", "max_turns": 3})
    assert one.body_hash == parsed({"max_turns": 3, "prompt": "x"}).body_hash
    assert one.body_hash != parsed({"prompt": "x", "max_turns": 4}).body_hash


def test_the_deployments_tools_can_only_be_narrowed() -> None:
    """A request takes tools away and cannot add one."""
    caps = Caps(50, 2.0, ("Read", "Write"))
    assert Allowance.of({}, caps, 1.0, 0).allowed_tools == ["Read", "Write"]
    assert Allowance.of({"allowed_tools": ["Read"]}, caps, 1.0, 0).allowed_tools == ["Read"]
    with pytest.raises(InvalidRequest, match="Bash"):
        parsed({"prompt": "x", "allowed_tools": ["Bash"]}, caps)


def test_a_repository_is_one_of_the_deployments() -> None:
    """By its pattern, with a ref and a depth."""
    caps = Caps(50, 2.0, None, repositories=(Repositories("github.com", ("acme/*",), push=False, secret="T"),))
    asked = {"url": f"{SITE}.git", "ref": "feature/#7", "depth": 1}
    assert parsed({"prompt": "x", "repository": asked}, caps).body["repository"] == asked
    with pytest.raises(InvalidRequest, match="not among this deployment's"):
        parsed({"prompt": "x", "repository": {"url": "https://github.com/other/site"}}, caps)


def test_a_model_is_one_of_the_deployments() -> None:
    """By its id; what Claude Code resolves itself is judged where it is called."""
    caps = Caps(50, 2.0, None, models=("claude-sonnet-5-5", "claude-haiku-5-5"))
    for model in ("claude-haiku-5-5", "opus", "claude-sonnet-5-5[1m]"):
        assert parsed({"prompt": "x", "model": model}, caps).body["model"] == model
    with pytest.raises(InvalidRequest, match="names claude-opus-5-5; this deployment has claude-sonnet-5-5, claude-h"):
        parsed({"prompt": "x", "model": "claude-opus-5-5"}, caps)


def test_tools_of_servers_are_narrowed_too() -> None:
    """A server's name means all of its tools, a tool's only itself."""
    caps = Caps(50, 2.0, ("mcp__tracker", "mcp__my-clock__now"))
    for allowed in (["mcp__tracker"], ["mcp__tracker__list__all"], ["mcp__my-clock__now"]):
        assert parsed({"prompt": "x", "allowed_tools": allowed}, caps).body["allowed_tools"] == allowed
    for wider in ("mcp__my-clock", "mcp__my-clock__later", "mcp__track", "mcp__trackers__list", "Read"):
        with pytest.raises(InvalidRequest, match=wider):
            parsed({"prompt": "x", "allowed_tools": [wider]}, caps)


def test_an_answer_to_a_call_that_waits_needs_no_prompt() -> None:
    """It says which call it answers to."""
    assert parsed({"session_id": "session-1", "approve": "a" * 64}).judged == "a" * 64
    assert parsed({"session_id": "session-1", "deny": {"digest": "b" * 64, "reason": "No."}}).judged == "b" * 64
    assert parsed({"prompt": "x"}).judged is None
