"""What the proxy lets through to a deployment's MCP server: whoever of the agent's asks."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdas.agent import mcp
from lambdas.agent.approvals import Approvals, Verdict, digest
from lambdas.agent.credential import Secret
from lambdas.agent.equipment import Equipment
from lambdas.agent.mcp import Allowed
from lambdas.agent.proxy import Proxy
from lambdas.agent.witness import Witness
from tests.support.equipped import BEARER, Tracker, folder, tracking

LIST = Allowed(["Bash", "mcp__tracker__list"])


@pytest.fixture(scope="module")
def served() -> Iterator[Tracker]:
    with tracking() as tracker:
        yield tracker


@pytest.fixture
def tracker(served: Tracker) -> Tracker:
    served.calls.clear()
    served.methods.clear()
    return served


@pytest.fixture
def equipment(tmp_path: Path, tracker: Tracker) -> Equipment:
    return Equipment.read(folder(tmp_path, tracker.url))


def asked(
    equipment: Equipment,
    allowed: Allowed,
    body: str | bytes,
    method: str = "POST",
    path: str = "/mcp-tracker/mcp",
    asks: Approvals | None = None,
) -> tuple[int, str]:
    """What a program of the agent's gets that has the run's token."""
    body = body.encode() if isinstance(body, str) else body
    with Proxy(mcp.upstreams(equipment, allowed, lambda _: Secret(lambda: BEARER), asks)) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request(method, path, body, {"x-api-key": proxy.token})
        answer = connection.getresponse()
        said = answer.status, answer.read().decode()
        connection.close()
        return said


def call(tool: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}})


def test_the_bearer_is_added_and_what_is_allowed_passes(equipment: Equipment, tracker: Tracker) -> None:
    """An ordinary call; the token goes no further than the proxy."""
    status, said = asked(equipment, LIST, call("list"))
    assert (status, tracker.calls, tracker.bearers) == (200, ["list"], {f"Bearer {BEARER}"})
    assert "DEPLOYED tracker list" in said


@pytest.mark.parametrize(
    "body",
    [
        call("create"),
        f"[{call('list')}, {call('create')}]",
        '{"id": 1, "method": "ping", "Method": "tools/call", "params": {"name": "create"}}',
        '{"id": 1, "method": "ping", "method": "tools/call", "params": {"name": "create"}}',
        '{"id": 1, "METHOD": "tools/call", "params": {"name": "create"}}',
        '{"id": 1, "method": "tools/call", "params": {"name": "list", "Name": "create"}}',
        '{"id": 1, "method": "tools/call", "params": {"name": "list"}, "paramſ": {"name": "create"}}',
        '{"id": 1, "method": "tools/call", "params": {"name": ["create"]}}',
        '{"id": 1, "method": ["tools/call"], "params": {"name": "create"}}',
        '{"id": 1, "method": "resources/read", "params": {"uri": "file:///x"}}',
        '{"id": 1, "method": "tools/call"}',
        "create",
        "[" * 100_000,
        '"create"',
        call("create").encode("utf-16"),
        "",
    ],
)
def test_what_is_not_allowed_is_refused_whoever_asks(body: str, equipment: Equipment, tracker: Tracker) -> None:
    """Another tool, whatever it is wrapped in; what could be read as another one; methods that are no tools."""
    assert asked(equipment, LIST, body)[0] == 403
    assert tracker.methods == []


def test_a_server_that_is_allowed_as_a_whole_is_asked_anything(equipment: Equipment, tracker: Tracker) -> None:
    """With nothing taken away, its resources and prompts too."""
    read = '{"id": 1, "method": "resources/read", "params": {"uri": "file:///x"}}'
    assert asked(equipment, Allowed(["mcp__tracker"]), read)[0] == 200
    assert asked(equipment, Allowed(), read)[0] == 200
    assert asked(equipment, Allowed(None, ["mcp__tracker__create"]), read)[0] == 403
    assert asked(equipment, Allowed(None, ["mcp__tracker__create"]), call("create"))[0] == 403
    assert asked(equipment, Allowed(None, ["mcp__tracker__create"]), call("list"))[0] == 200
    assert tracker.calls == ["list"]


@pytest.mark.parametrize("allowed", [Allowed([]), Allowed(["Read"]), Allowed(None, ["mcp__tracker"])])
def test_of_a_server_that_is_not_allowed_there_is_nothing(
    allowed: Allowed, equipment: Equipment, tracker: Tracker
) -> None:
    """Not even the way there."""
    assert asked(equipment, allowed, call("list"))[0] == 403
    assert mcp.servers(equipment, Allowed(["Read"])) == []
    assert tracker.methods == []


@pytest.mark.parametrize("path", ["/mcp-tracker", "/mcp-tracker/", "/mcp-tracker/mcp/", "/mcp-tracker/admin"])
def test_no_other_path_of_it_can_be_asked(path: str, equipment: Equipment, tracker: Tracker) -> None:
    """The bearer is good for the one address."""
    assert asked(equipment, Allowed(), call("list"), path=path)[0] == 403
    assert asked(equipment, Allowed(), call("list"), method="PUT")[0] == 403
    assert tracker.methods == []


def test_a_call_that_is_asked_for_passes_once_it_is_approved_and_once_only(
    equipment: Equipment, tracker: Tracker
) -> None:
    """Whoever makes it: without an approval none, with one that very call."""
    given = {"tool_name": "mcp__tracker__create", "tool_input": {}, "tool_use_id": "toolu_1"}
    verdict = Verdict(digest("toolu_1", "mcp__tracker__create", {}), approved=True)
    asks = Approvals(["mcp__tracker__c*"], verdict, lambda: True)
    assert asked(equipment, Allowed(), call("create"), asks=asks)[0] == 403
    assert asked(equipment, Allowed(), call("list"), asks=asks)[0] == 200
    asks.decide(json.dumps(given).encode(), Witness(Proxy([]).meter))
    assert asked(equipment, Allowed(), call("create").replace("{}", '{"more": 1}'), asks=asks)[0] == 403
    assert asked(equipment, Allowed(), call("create").replace("arguments", "Arguments"), asks=asks)[0] == 403
    assert [asked(equipment, Allowed(), call("create"), asks=asks)[0] for _ in range(2)] == [200, 403]
    assert tracker.calls == ["list", "create"]


def test_names_of_tools_are_what_claude_code_makes_of_them() -> None:
    """A tool's own name may hold what a name to the model may not."""
    assert mcp.tool_name("tracker", "issue.create new") == "mcp__tracker__issue_create_new"
    assert not Allowed(None, ["mcp__tracker__issue_create"]).tool("tracker", "issue.create")
