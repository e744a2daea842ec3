"""What a call of the model may ask for: the provider, too, can reach out, run code and fetch, in the agent's name.

The proxy reads a call as the provider does (`lambdas.agent.messages`), and refuses it by name before it is paid, where
it asks for what the deployment has not opened. A search of the web passes where the run has the tool WebSearch: the
provider makes it, and no address is fetched that the agent names.

**Whose call it is** can be told as far as Claude Code says it: it names its conversation in each call (CLI 2.1.332:
those of subagents, of its own small errands and of searches, too). So a program of the agent's that has nothing but the
run's token is refused. One that says the same as Claude Code is not, and the name is in its environment
(`CLAUDE_CODE_SESSION_ID`); for it hold the limits of the meter, as for all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lambdas.agent.messages import Call

DATED = re.compile(r"-\d{8}$")


@dataclass(frozen=True)
class Reach:
    """What the calls of one run may ask for."""

    outward: bool = True
    """Whether the provider may fetch, speak with others, run code, and read files that it has."""
    searches: bool = True
    """Whether it may search the web."""
    models: Sequence[str] | None = None
    """Which may be asked, with or without a date behind; None: all."""
    conversation: str | None = None
    """Claude's id of the conversation that they are of; None: any."""

    def owns(self, call: Call) -> bool:
        """Whether a call says that it is of the run's own conversation."""
        return self.conversation is None or call.conversation == self.conversation

    def refusal(self, call: Call) -> str | None:
        """Why a call may not be made, in words; None where it may."""
        if not self.owns(call):
            return "the model is there for Claude Code's own conversation, and this call is none of it"
        for model in (call.model, *call.fallbacks):
            if self.models is not None and not {model, DATED.sub("", model)} & set(self.models):
                return f"the model {model[:100]} is not in this deployment's models: {', '.join(self.models)}"
        if call.reaches and not self.outward:
            return f"the model's provider would reach out for this: {', '.join(call.reaches)}"
        if call.searches and not (self.searches or self.outward):
            return "this run has no WebSearch"
        return None


ANYTHING = Reach()
"""Whatever the provider does."""
