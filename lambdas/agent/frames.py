"""The frames that Claude Code prints, read so that nothing in one can end a run.

There are kinds of them that nobody here has heard of, known ones change their shape from one release to the next, and
the agent's code can write to the same output. So whatever looks at them in passing takes what it knows, and passes over
the rest. Every function here has an answer for every JSON object.
"""

from lambdas.strict import Json

PROTOCOL = {
    *("control_request", "control_response", "control_cancel_request", "keep_alive", "transcript_mirror"),
    "command_lifecycle",  # what becomes of a prompt that has a uuid
}
"""Types of frames between SDK and CLI that are no messages of the agent's."""


def kind(frame: Json) -> str:
    """Its type; empty where it has none."""
    found = frame.get("type")
    return found if isinstance(found, str) else ""


def is_message(frame: Json) -> bool:
    """Whether it is one of the agent's messages."""
    return kind(frame) not in {"", *PROTOCOL}


def blocks(frame: Json) -> list[Json]:
    """The content blocks of an assistant's or a user's message; none where that is text, or anything else."""
    message = frame.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def for_the_sdk(frame: Json) -> bool:
    """Whether the SDK (0.2.189) is to see it: results, and what it and the CLI say to each other.

    Its reader ends the stream at what it cannot read, and at types that are names of its own (`end`, `error`).
    """
    if kind(frame) == "control_response":
        response = frame.get("response")
        return isinstance(response, dict) and isinstance(response.get("request_id"), str)
    if kind(frame) == "control_request":
        return isinstance(frame.get("request"), dict) and isinstance(frame.get("request_id"), str)
    return kind(frame) == "result"


def ends(frame: Json, prompt: str) -> bool:
    """Whether it is the result of the turn that took in the prompt with this uuid.

    A turn may also begin with what is left of an earlier one: for a task that ran in the background when a process
    ended, the CLI puts a notification before the prompt, and both get a result. That of the notification says where it
    comes from, and does not name the prompt. So may the news that a call which waited for an approval is dropped,
    because its tool is gone.
    """
    if kind(frame) != "result" or frame.get("stop_reason") == "tool_deferred_unavailable":
        return False
    return names(frame, prompt) or not frame.get("origin")


def names(frame: Json, prompt: str) -> bool:
    """Whether a result says that its turn took in the prompt with this uuid."""
    named = frame.get("user_message_uuids")
    return prompt in [frame.get("user_message_uuid"), *(named if isinstance(named, list) else [])]
