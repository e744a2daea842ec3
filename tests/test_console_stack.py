"""The console over a deployed stack: the same pages by the AWS path, at the endpoint of the engine of `serve`.

The engine is sealed and has no stack and no key to tell of; those two questions are answered here.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from claude_workflow.local.engine import REGION
from claude_workflow.local.guard import ROOT_KEY
from tests.support.commands import COMMAND, ENVIRONMENT, Serve
from tests.support.console_visitor import SECONDS, Page, Visitor
from tests.support.http_servers import Answering, listening
from tests.support.waiting import eventually

STACK = """<DescribeStacksResponse><DescribeStacksResult><Stacks><member>
<StackName>LookedAt</StackName><Outputs>{}</Outputs></member></Stacks></DescribeStacksResult></DescribeStacksResponse>"""
OUTPUT = "<member><OutputKey>{}</OutputKey><OutputValue>{}</OutputValue></member>"


class Described(Answering):
    """What CloudFormation says of the stack's outputs, and API Gateway of its key."""

    outputs: dict[str, str]
    key: str

    def do_POST(self) -> None:
        """DescribeStacks."""
        assert b"StackName=LookedAt" in self.received()
        told = "".join(OUTPUT.format(*each) for each in self.outputs.items())
        self.answer(200, STACK.format(told).encode(), {"content-type": "text/xml"})

    def do_GET(self) -> None:
        """GetApiKey."""
        assert self.path == f"/apikeys/{self.outputs['ApiKeyId']}?includeValue=true"
        self.answer(200, json.dumps({"value": self.key}).encode(), {"content-type": "application/json"})


@pytest.fixture
def visitor(serve: Serve) -> Iterator[Visitor]:
    """Who has opened the link of `console --stack`, of an operator whose environment names where AWS is."""
    word: dict[str, Any] = json.loads((serve.state / "service.json").read_text())
    outputs = {
        "BucketName": word["bucket"],
        "StateMachineArn": word["state_machine_arn"],
        "ApiUrl": word["url"],
        "ApiKeyId": "key1",
    }
    with listening(Described, outputs=outputs, key=serve.key) as told:
        account = {
            "AWS_ACCESS_KEY_ID": ROOT_KEY,
            "AWS_SECRET_ACCESS_KEY": word["engine_root"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": word["engine_url"],
            "AWS_ENDPOINT_URL_CLOUDFORMATION": told,
            "AWS_ENDPOINT_URL_API_GATEWAY": told,
        }
        line = [*COMMAND, "console", "--stack", "LookedAt"]
        process = subprocess.Popen(line, env=ENVIRONMENT | account, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            yield Visitor(process.stdout.readline().split()[1])
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


def ended(visitor: Visitor, run: str, says: str) -> Page:
    """A run's page, once it says so."""
    pages = list[Page]()

    def seen() -> bool:
        pages.append(visitor.get(run))
        return says in pages[-1].text

    assert eventually(seen), pages[-1].text
    return pages[-1]


def link(visitor: Visitor, page: Page, begins: str) -> str:
    """The one page of those that begin so to which this one has links."""
    links = {each.removeprefix(visitor.place) for each in page.values("href")}
    (found,) = {each for each in links if each.startswith(begins) and each.count("/") == 2}
    return found


def visited(page: Page) -> str:
    """What a page says below the machine's drawing."""
    return page.text.partition("Inputs, outputs and errors")[2]


def followed(visitor: Visitor, path: str, **form: str) -> str:
    """The page that the answer to a form leads to."""
    fields = {name: visitor.get("/").inputs[name] for name in ("token", "drawn")}
    answer = visitor.submit(path, fields | form)
    assert answer.status == 303, answer.data
    return str(answer.headers["location"]).removeprefix(visitor.place)


def test_a_deployed_stack_is_worked_with_by_the_operators_credentials(serve: Serve, visitor: Visitor) -> None:
    """A run that failed is told, and replayed; a file of its session; a copy of this is asked by the API with its key,
    and seen live; it is purged and removed."""
    asked = {"prompt": "write notes.txt: noted\nstatus 401 times 3"}
    failed = urllib3.request("POST", serve.url, json=asked, headers={"x-api-key": serve.key}, timeout=SECONDS).json()
    run = f"/runs/{failed['run_id']}"
    assert failed["run_id"] in visitor.runs()
    page = visitor.get(run)
    assert "ModelUnauthorized in RunClaude" in page.text
    assert f"{visitor.place}{run}/states" in page.values("hx-get")
    assert "RecordFailure" in visited(visitor.get(f"{run}/states"))
    assert followed(visitor, f"{run}/replay", verb="again") == run
    session = link(visitor, ended(visitor, run, "done: write"), "/sessions/")
    assert "noted" in visitor.get(f"{session}/file", path="notes.txt").text
    other = followed(visitor, "/ask", prompt="wait 1", session=session.removeprefix("/sessions/"), fork="yes")
    (again,) = visitor.get(other).values("hx-get")
    assert again.startswith(f"{visitor.place}{other}/live")
    copy = link(visitor, ended(visitor, other, "done: wait 1"), "/sessions/")
    assert copy != session
    for does in ("purge", "remove"):
        form = {"token": visitor.get("/").inputs["token"], "sure": copy.removeprefix("/sessions/")}
        assert visitor.post(f"{copy}/sure/{does}", form) == 200
    assert visitor.ask("GET", other).status == 404
    assert "turn 1" in visitor.get(session).text
