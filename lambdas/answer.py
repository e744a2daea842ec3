"""The answer to a POST: built to what Step Functions carries, stored without links, given out with them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lambdas import strict
from lambdas.bucket.grants import link
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import session_key
from lambdas.contract import ANSWER_BYTES, FORMAT, Claim, Response, Result
from lambdas.receipt import Receipt, used
from lambdas.strict import Json

LINK_SECONDS = 900
"""How long a link reads a session or a run's messages; it ends with its signer's credentials at the latest."""

LINK_ROOM = 12 * 1024
"""Bytes kept free for three links: a presigned URL carries its signer's session token."""

TEXT_BYTES = 40 * 1024
"""What a text is cut to where the whole answer does not fit: the result stands in it twice."""

OPERATORS = ("format", "execution", "messages_at", "receipt_at")
"""What the stored answer says for its operator."""

CUT = "… [cut: the whole is in messages_url]"


def build(
    claim: Claim,
    result: Result,
    messages: list[Json] | None,
    cost_usd: float,
    session_cost_usd: float,
    *,
    receipt: bool,
) -> Response:
    """The committed answer, links left out. `messages` is None where there is too much of them to be read; `receipt`
    says whether there is one."""
    answer: Response = {
        "success": True,
        "session_id": claim.session_id,
        "messages": messages or [],
        "run_id": claim.run_id,
        "result": result.result,
        "structured_output": result.structured_output,
        "stop_reason": result.stop_reason,
        "model_failure": result.model_failure,
        "num_turns": result.num_turns,
        "cost_usd": cost_usd,
        "session_cost_usd": session_cost_usd,
        "usage": result.usage,
        "duration_ms": result.duration_ms,
        "files": result.files,
        "files_total": result.files_total,
        "format": FORMAT,
        "execution": claim.execution,
    }
    if result.pending is not None:
        answer["pending"] = result.pending
    if receipt:
        answer["receipt_at"] = f"{claim.staging}receipt.json"
    answer = strict.encodable(answer)
    if messages is not None and _room(answer) >= 0:
        return answer
    at = f"{claim.staging}messages.json"
    last = [strict.encodable(result.last_message)]
    return _shortened({**answer, "messages": last, "messages_truncated": True, "messages_at": at})


def whole(result: Result, earlier: Sequence[Receipt], seconds: float) -> Result:
    """The result of all legs, or attempts, that the conversation has gone through: what ran before took so many
    `seconds`, and has left receipts. Its files are those changed since the session's version anyway."""
    if not earlier:
        return result
    return replace(
        result,
        num_turns=result.num_turns + sum(receipt.turns for receipt in earlier),
        usage=used([result.usage, *(call.usage for receipt in earlier for call in receipt.calls)]),
        duration_ms=result.duration_ms + round(1000 * seconds),
    )


def with_links(answer: Json, bucket: Bucket) -> Json:
    """The answer as a caller gets it: what is stored names objects, and links to them are signed each time."""
    given = {name: value for name, value in answer.items() if name not in OPERATORS}
    key = session_key(answer["session_id"])
    given |= {"s3_url": f"s3://{bucket.name}/{key}", "session_url": link(bucket, key, LINK_SECONDS)}
    for name in ("messages", "receipt"):
        if at := answer.get(f"{name}_at"):
            given[f"{name}_url"] = link(bucket, at, LINK_SECONDS)
    return given


def _shortened(answer: Response) -> Response:
    """What gives way after the messages, in this order: files, long texts, and what else a stranger made too long."""
    for give_way in (_fewer_files, _shorter_texts, _bare):
        if _room(answer) >= 0:
            break
        answer = give_way(answer)
    return answer


def _fewer_files(answer: Response) -> Response:
    room, files = _room(answer | {"files": []}), []
    for entry in answer["files"]:
        room -= _size(entry) + 2
        if room < 0:
            break
        files.append(entry)
    return answer | {"files": files}


def _shorter_texts(answer: Response) -> Response:
    messages = [
        message | {"result": _cut(message["result"])} if "result" in message else message
        for message in answer["messages"]
    ]
    shorter: Response = {**answer, "messages": messages, "result": _cut(answer["result"])}
    if _size(answer["structured_output"]) > TEXT_BYTES:
        shorter["structured_output"] = None
    if _size(answer.get("pending")) > TEXT_BYTES:
        shorter["pending"] = {**answer["pending"], "input": None}
    return shorter


def _bare(answer: Response) -> Response:
    return answer | {"messages": [], "usage": {}}


def _cut(text: Any) -> Any:
    if not isinstance(text, str) or _size(text) <= TEXT_BYTES:
        return text
    return text.encode()[: TEXT_BYTES // 2].decode(errors="ignore") + CUT


def _room(answer: Response) -> int:
    return ANSWER_BYTES - LINK_ROOM - _size(answer)


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
