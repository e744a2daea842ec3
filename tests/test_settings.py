"""The environment and the clocks."""

import pytest

from lambdas.settings import (
    ALONE,
    STARTED,
    AgentSettings,
    Clocks,
    CommitSettings,
    Legs,
    MissingSetting,
    RecordSettings,
    RestoreSettings,
)

RESTORE = {
    "S3_BUCKET_NAME": "sessions",
    "INTEGRATION_TIMEOUT": "29",
    "MAX_RUN_SECONDS": "3600",
    "LEG_GATE_SECONDS": "240",
    "LEG_LIMIT_SECONDS": "840",
    "MAX_TURNS": "50",
    "MAX_BUDGET_USD": "1.5",
    "ALLOWED_TOOLS": "null",
    "MAX_SESSION_USD": "null",
    "MAX_CALLER_USD_PER_DAY": "null",
    "MAX_USD_PER_DAY": "null",
    "STRICT": "false",
    "PRICES": "{}",
    "REPOSITORIES": '[{"host": "github.com", "match": ["acme/*"], "access": "push", "secret": "GIT_TOKEN"}]',
    "MODELS": "null",
}
COMMIT = {
    "S3_BUCKET_NAME": "sessions",
    "MAX_SESSION_BYTES": "1000",
    "MAX_SESSION_FILES": "10",
    "MAX_DEAD_SHARE": "0.5",
}
AGENT = {
    "MODEL_PROVIDER": "anthropic",
    "ANTHROPIC_BASE_URL": "https://model.example/",
    "SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:s",
    "MAX_SESSION_BYTES": "1000",
    "MAX_SESSION_FILES": "10",
    "SCRATCH": "/tmp/claude-agent",
    "SANDBOX": "none",
    "AGENT_NETWORK": "shared",
    "AGENT_FOLDER": "/var/task/agent",
    "WORKSPACE_INSTRUCTIONS": "false",
    "ASK_BEFORE": "[]",
    "PRICES": "{}",
    "REPOSITORIES": RESTORE["REPOSITORIES"],
    "PROTECTED_BRANCHES": '["main"]',
    "GIT_IDENTITY": '{"name": "Claude", "email": "claude@acme.example"}',
    "EGRESS": '["pypi.org"]',
    "REGISTRIES": "{}",
    "MODELS": "null",
}


@pytest.mark.parametrize("integration", range(15, 301))
def test_the_clocks_nest(integration: int) -> None:
    """agent < function < state < machine < gateway, with room to persist, for every timeout a deployment can choose."""
    clocks = Clocks(integration)
    assert 5 <= clocks.agent < clocks.run_function < clocks.run_state < clocks.machine < clocks.integration
    assert clocks.run_function - clocks.agent >= 3
    assert clocks.machine - clocks.run_state >= 3
    assert clocks.run_function <= 300
    assert clocks.restore_function < clocks.restore_state
    assert clocks.persist_function < clocks.persist_state
    assert clocks.record_function < clocks.record_state


@pytest.mark.parametrize(("gate", "limit"), [(240, 840), (1, 2), (60, 120)])
def test_a_legs_clocks_nest(gate: int, limit: int) -> None:
    """gate < limit < function < state < lease < machine; a function of Lambda's ends after 900 s at the latest."""
    legs = Legs(3600, gate, limit)
    assert legs.gate < legs.limit < legs.function <= 900
    assert legs.function < legs.state < legs.lease
    assert legs.run + legs.lease <= legs.machine


def test_a_gate_is_open_for_as_long_as_a_call_of_bash_lasts() -> None:
    """By default: the longest that Claude Code makes is 600 s, and a leg should end at its gate."""
    assert Legs(3600).limit - Legs(3600).gate >= 600


@pytest.mark.parametrize(("gate", "limit"), [(840, 840), (900, 840), (240, 841)])
def test_legs_that_do_not_nest_are_refused(gate: int, limit: int) -> None:
    """One that has no gate, or leaves Lambda no time for a checkpoint."""
    with pytest.raises(MissingSetting, match="LEG_GATE_SECONDS"):
        Legs(3600, gate, limit)


@pytest.mark.parametrize("integration", [0, 14, 301])
def test_a_timeout_that_leaves_no_room_is_refused(integration: int) -> None:
    """An express execution ends at 300 s, and below 15 s nothing is left for the agent."""
    with pytest.raises(MissingSetting, match="INTEGRATION_TIMEOUT"):
        Clocks(integration)


@pytest.mark.parametrize("name", RESTORE)
def test_a_missing_setting_stops_with_its_name(name: str) -> None:
    """No default stands in for what the deployment forgot."""
    with pytest.raises(MissingSetting, match=name):
        RestoreSettings.read({key: value for key, value in RESTORE.items() if key != name})


def test_a_failure_is_recorded_whatever_else_is_set_wrong() -> None:
    """RecordFailure asks for the bucket alone: a mistake in a cap must not hide what a run died of."""
    assert RecordSettings.read({"S3_BUCKET_NAME": "sessions", "MAX_TURNS": "many"}) == RecordSettings("sessions")
    with pytest.raises(MissingSetting, match="S3_BUCKET_NAME"):
        RecordSettings.read({})


@pytest.mark.parametrize("name", COMMIT)
def test_a_setting_that_a_commit_misses_stops_with_its_name(name: str) -> None:
    """No default stands in for what the deployment forgot."""
    with pytest.raises(MissingSetting, match=name):
        CommitSettings.read({key: value for key, value in COMMIT.items() if key != name})


@pytest.mark.parametrize("name", AGENT)
def test_a_setting_that_the_agent_misses_stops_with_its_name(name: str) -> None:
    """No default stands in for what the deployment forgot."""
    with pytest.raises(MissingSetting, match=name):
        AgentSettings.read({key: value for key, value in AGENT.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_TURNS", "many"),
        ("MAX_RUN_SECONDS", "1h"),
        ("LEG_GATE_SECONDS", "840"),
        ("LEG_LIMIT_SECONDS", "900"),
        ("ALLOWED_TOOLS", "Read"),
        ("ALLOWED_TOOLS", "[1]"),
        ("MAX_TURNS", " "),
        ("MAX_USD_PER_DAY", "0"),
        ("PRICES", '{"claude-x": {}}'),
        ("PRICES", "[]"),
        ("STRICT", "maybe"),
        ("REPOSITORIES", '[{"host": "github.com"}]'),
    ],
)
def test_a_malformed_setting_stops_with_its_name(name: str, value: str) -> None:
    """A typing error is found at the start, not in the middle of a run."""
    with pytest.raises(MissingSetting, match=name):
        RestoreSettings.read(RESTORE | {name: value})


def test_the_providers() -> None:
    """Bedrock needs a model to ask for, Anthropic has its own; others do not exist."""
    assert AgentSettings.read(AGENT | {"BEDROCK_MODEL": "anthropic.claude-x"}).bedrock_model is None
    bedrock = AGENT | {"MODEL_PROVIDER": "bedrock"}
    assert AgentSettings.read(bedrock | {"BEDROCK_MODEL": "anthropic.claude-x"}).bedrock_model == "anthropic.claude-x"
    with pytest.raises(MissingSetting, match="BEDROCK_MODEL"):
        AgentSettings.read(bedrock)
    with pytest.raises(MissingSetting, match="MODEL_PROVIDER"):
        AgentSettings.read(AGENT | {"MODEL_PROVIDER": "vertex"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROTECTED_BRANCHES", '"main"'),
        ("GIT_IDENTITY", '{"name": 1}'),
        ("AGENT_NETWORK", "none"),
        ("EGRESS", '"all"'),
        ("EGRESS", '["https://pypi.org"]'),
        ("REGISTRIES", '{"pip": "pypi.org"}'),
        ("MODELS", '"claude-x"'),
    ],
)
def test_a_malformed_setting_of_the_agents_stops_with_its_name(name: str, value: str) -> None:
    """As any other."""
    with pytest.raises(MissingSetting, match=name):
        AgentSettings.read(AGENT | {name: value})


def test_an_unknown_sandbox_is_refused() -> None:
    """A word that means nothing must not mean no sandbox."""
    with pytest.raises(MissingSetting, match="SANDBOX must be one of none, landlock"):
        AgentSettings.read(AGENT | {"SANDBOX": "yes"})


@pytest.mark.parametrize("said", [{}, {"WIPED": "/tmp"}, {"AWS_LAMBDA_FUNCTION_NAME": "f"}, {STARTED: "snap-start"}])
def test_no_directory_is_emptied_but_on_lambda(said: dict[str, str]) -> None:
    """Elsewhere /tmp is not the function's alone, whatever is set; on Lambda it is."""
    assert AgentSettings.read(AGENT | said).wiped == ()
    assert AgentSettings.read(AGENT | said | {STARTED: "on-demand"}).wiped == ALONE


def test_the_agents_settings_name_no_bucket() -> None:
    """The function that runs strangers' code does not even know where sessions lie."""
    assert not any("bucket" in name for name in AgentSettings.__dataclass_fields__)
