"""The gate of a leg: where a run that goes on elsewhere is stopped, so that nothing of it is lost.

**Between two steps.** A step of the conversation is a request of its own and the answer to it. Once the gate is closed,
the next one is held back before it is metered; the step before has its answer, and the calls of tools in that have
their results, or the request would not be there. Claude Code waits for it, and is ended while it does. What is under
way goes on to its end; a request that waits for a provider to come round is stopped at its next try.

**Who asks in the middle of a tool** is let through, or that tool would be cut off: a subagent, which names itself, and
whoever asks without the results of the last step's calls, such as a program of the agent's, or the sum of a web page.
"""

from lambdas.agent.messages import Answer, Call


class Gate:
    """The gate of one leg. It stands open until it is closed; every request is in a thread of its own."""

    def __init__(self) -> None:
        self.reached = False
        """Whether the conversation's next step is held back."""
        self.owed: frozenset[str] = frozenset()
        """The calls of the last step, by their ids: the next one brings their results."""
        self._closed = False
        self._began = False
        self._step: Call | None = None

    def close(self) -> None:
        """Hold the next step back, from now on; not the first one, or a leg could end that got nothing done."""
        self._closed = True

    def admits(self, call: Call, body: bytes) -> bool:
        """Whether a request may go on; one that may not, may never."""
        if not call.main or not all(each.encode() in body for each in self.owed):
            return True
        if self._closed and self._began:
            self.reached = True
            return False
        self._step = call
        return True

    def answered(self, answer: Answer) -> None:
        """To be told of every answer that is whole."""
        if answer.call is self._step:
            self._began = True
            calls = answer.blocks if answer.stop_reason == "tool_use" else []
            self.owed = frozenset(str(block["id"]) for block in calls if block.get("type") == "tool_use")
