"""What runs of Claude Code cost, call by call, to the microdollar: by the provider's words, whatever the agent says.

Dollars here are reckoned by hand from the provider's price list: a million tokens of Claude Opus 5.5 cost 4 in, 20 out,
5 and 8 to be cached for five minutes and an hour, 0.2 out of the cache; of Claude Haiku 4.5 they cost 1 and 5.
"""

import asyncio
import json
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from lambdas.agent.claude import Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.meter import Meter
from lambdas.agent.outcome import Outcome
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.scratch import Scratch
from lambdas.agent.upstream import anthropic
from lambdas.errors import ModelUnpriced, StorageUnavailable
from lambdas.receipt import Receipt
from tests.support.kept_checkpoints import Kept
from tests.support.metered import OPUS
from tests.support.waiting import eventually

POST = 'curl -so /dev/null $ANTHROPIC_BASE_URL/v1/messages -H "x-api-key: $ANTHROPIC_API_KEY" -d @asking'
PLAIN = 'usage {"input_tokens": 1000, "output_tokens": 100}'
"""$0.006."""


def first(prompt: str, **wishes: Any) -> Turn:
    return Turn(prompt, str(uuid.uuid4()), resume=False, **{"model": OPUS} | wishes)


def run(turn: Turn, scratch: Scratch, url: str, saver: Kept | None = None) -> Outcome:
    with Proxy([anthropic(Secret(lambda: "sk-the-real-key"), url)]) as proxy:
        return asyncio.run(converse(turn, scratch, proxy, saver or Kept(scratch), time.time() + 60))


CACHED = {
    "input_tokens": 10,
    "output_tokens": 100,
    "cache_creation_input_tokens": 3000,
    "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
    "cache_read_input_tokens": 50_000,
}
SEARCHED = {"input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 2}}


@pytest.mark.parametrize(
    ("prompt", "dollars"),
    [
        (f"{PLAIN}\nhello", [0.006]),
        (f"usage {json.dumps(CACHED)}\nhello", [0.03304]),
        (f"usage {json.dumps(SEARCHED)}\nhello", [0.02]),
        (f'{PLAIN}\nrun echo 1\nusage {{"input_tokens": 1, "output_tokens": 1}}\nhello', [0.006, 0.000024]),
    ],
    ids=["plain", "cached", "searched", "a tool"],
)
def test_every_call_costs_what_the_table_says(
    prompt: str, dollars: list[float], model: ScriptedModel, scratch: Scratch
) -> None:
    """And Claude Code's own total is the same, in the next turn too."""
    turn = first(prompt)
    for each in (turn, replace(turn, resume=True)):
        receipt = run(each, scratch, model.url).receipt
        assert [(call.usd, call.most, call.end) for call in receipt.calls] == [(usd, usd, "whole") for usd in dollars]
        assert receipt.claude_code_usd == pytest.approx(sum(dollars))
        assert not receipt.differs
        assert {(call.model, call.answered, call.status) for call in receipt.calls} == {(OPUS, OPUS, 200)}
        assert len({call.request_id for call in receipt.calls} - {None}) == len(dollars)


def test_a_subagent_of_another_model_is_on_the_receipt(model: ScriptedModel, scratch: Scratch) -> None:
    """Each call at its own model's price."""
    wishes = {"description": "x", "subagent_type": "general-purpose", "model": "haiku", "prompt": f"{PLAIN}\nhi"}
    receipt = run(first(f"{PLAIN}\ntool Task {json.dumps(wishes)}\n{PLAIN}\nhello"), scratch, model.url).receipt
    dear, cheap, last = receipt.calls
    assert (dear.model, dear.usd, last.model, last.usd) == (OPUS, 0.006, OPUS, 0.006)
    assert "haiku" in cheap.model
    assert cheap.usd == pytest.approx({"claude-haiku-4-5": 0.0015, "claude-haiku-5-5": 0.00015}[cheap.model[:16]])
    assert receipt.claude_code_usd == pytest.approx(receipt.usd)


def test_what_was_tried_again_is_paid_once(model: ScriptedModel, scratch: Scratch) -> None:
    """An answer of 529 costs nothing, and stands there."""
    receipt = run(first(f"{PLAIN}\nrun echo 1\nstatus 529 times 2\n{PLAIN}\nhello"), scratch, model.url).receipt
    assert [(call.status, call.end, call.usd) for call in receipt.calls] == [
        (200, "whole", 0.006),
        (529, "refused", 0.0),
        (529, "refused", 0.0),
        (200, "whole", 0.006),
    ]


def test_a_cut_stream_costs_what_it_announced(model: ScriptedModel, scratch: Scratch) -> None:
    """At its beginning: the input, and a token; more may have been generated, which the limits reckon in. Claude Code
    itself may have counted it or not, by how much of it had come."""
    receipt = run(first(f"{PLAIN}\nrun echo 1\ncut times 1\n{PLAIN}\nhello"), scratch, model.url).receipt
    cut = receipt.calls[1]
    assert (cut.end, cut.usage["input_tokens"], cut.usd) == ("cut", 1000, 0.00402)
    assert cut.most is not None
    assert cut.most > cut.usd
    assert receipt.usd == 0.01602


def test_the_agent_cannot_change_what_it_cost(model: ScriptedModel, scratch: Scratch) -> None:
    """It asks the model itself, for a dearer one, rewrites its transcript, and prints a total of its own."""
    asking = {"model": "claude-fable-5", "max_tokens": 9, "messages": [{"role": "user", "content": PLAIN}]}
    (scratch.workspace / "asking").write_text(json.dumps(asking))
    forged = json.dumps({"type": "result", "subtype": "success", "total_cost_usd": 0})
    forge = f"echo '{forged}' > /proc/$PPID/fd/1; sed -i 's/totalCostUSD.:[0-9.]*/x/' $CLAUDE_CONFIG_DIR/projects/*/*"
    turn = first(f"{PLAIN}\nrun {POST}; {forge}\n{PLAIN}\nhello")
    outcome = run(turn, scratch, model.url)
    assert [(call.model, call.usd) for call in outcome.receipt.calls] == [
        (OPUS, 0.006),
        ("claude-fable-5", 0.015),
        (OPUS, 0.006),
    ]
    assert outcome.cost_usd == 0.027
    assert outcome.receipt.differs  # from what Claude Code itself knows of


def test_a_model_without_a_price_is_never_called(model: ScriptedModel, scratch: Scratch) -> None:
    """The run fails by its name, and nothing was spent."""
    with pytest.raises(ModelUnpriced) as refused:
        run(first("hello", model="claude-unheard-of"), scratch, model.url)
    assert (refused.value.cost_usd, len(model.requests)) == (0.0, 0)


def test_a_call_waits_until_what_was_before_is_written() -> None:
    """Not only until it is being written; and where that fails, it is tried again."""
    meter, begun, go_on = Meter(), threading.Semaphore(0), threading.Semaphore(0)
    failures = [StorageUnavailable()]

    def write(_: Receipt) -> None:
        begun.release()
        assert go_on.acquire(timeout=60)
        if failures:
            raise failures.pop()

    with Receipts(meter, write) as receipts:
        for _ in range(2):
            assert begun.acquire(timeout=60)
            assert not receipts.kept()
            go_on.release()
        eventually(receipts.kept)
        receipts.changed()
        assert begun.acquire(timeout=60)
        assert not receipts.kept()
        go_on.release()


def test_what_a_killed_attempt_leaves_is_complete_up_to_its_last_call(model: ScriptedModel, scratch: Scratch) -> None:
    """The receipt is kept when a call goes out, and when it has ended; the call after it waits for that."""
    saver = Kept(scratch)
    receipt = run(first(f"{PLAIN}\nrun echo 1\n{PLAIN}\nhello"), scratch, model.url, saver).receipt
    seen = [[call.end for call in kept.calls] for kept in saver.receipts]
    assert ["open"] in seen
    assert ["whole", "open"] in seen
    assert seen[-1] == ["whole", "whole"]
    assert saver.receipts[-1].usd == receipt.usd == 0.012
