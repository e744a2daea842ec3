"""RunClaude as it runs in a function, in this process."""

from pathlib import Path

from lambdas.agent.credential import Secret
from lambdas.agent.transfer import Transfer
from lambdas.agent.upstream import anthropic
from lambdas.pricing import Prices
from lambdas.run_claude import RunClaude
from lambdas.settings import AgentSettings


def settings_of(model_url: str, place: Path) -> AgentSettings:
    return AgentSettings(
        provider="anthropic", model_url=model_url, bedrock_model=None, secret_arn="", supabase_url=None,
        prices=Prices.of(), max_session_bytes=1 << 30, max_session_files=1000, scratch=str(place / "agents"),
        agent_folder="", workspace_instructions=False, ask_before=(),
    )  # fmt: skip


def run_claude_of(settings: AgentSettings) -> RunClaude:
    return RunClaude(settings, Transfer(), [anthropic(Secret(lambda: "key"), settings.model_url)])
