"""The environment, read once and checked: a setting that is missing or wrong stops the function with its name."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from lambdas import egress, repositories
from lambdas.egress import CLOSED, Egress
from lambdas.pricing import Prices
from lambdas.repositories import Repositories

SANDBOXES = ("none", "landlock", "readonly", "bubblewrap", "seatbelt")
"""What can keep the agent from the rest of the machine. Behind each but `none`, a service that runs as root gives the
agent a user id of its own."""

NETWORKS = ("tried", "own", "shared", "open")
"""What network the agent has: see `lambdas.agent.sandbox.Orders`. With `tried`, RunClaude finds out by itself whether
it can have its own, and else it has the function's."""


EXPOSED_HEADERS = "Retry-After, Location, Preference-Applied"
"""What a page of another origin may read of the API's answers, beside their bodies."""

LEASE_MARGIN = 5
"""Seconds that a lease outlives the state machine, for clocks that differ."""


class MissingSetting(RuntimeError):
    """An environment variable that the function cannot work without is missing or malformed."""

    def __init__(self, name: str, reason: str = "is not set") -> None:
        super().__init__(f"The environment variable {name} {reason}.")
        self.name = name


@dataclass(frozen=True)
class Clocks:
    """Every time limit, in seconds, derived from the gateway's integration timeout.

    They nest: agent < run_function < run_state < machine < integration. The agent's deadline is counted from the
    moment the API took the request (so a cold start eats into it); the others from where they start. `tail` is what
    stays for interrupting, packing and staging, and once more for committing and recording.
    """

    integration: int
    """29 by default on a REST API; up to 300 on a regional one once the account's quota L-E5AE38E3 is raised."""

    def __post_init__(self) -> None:
        if not 15 <= self.integration <= 300:
            raise MissingSetting("INTEGRATION_TIMEOUT", "must be between 15 and 300 seconds")

    @property
    def tail(self) -> int:
        """What stays behind the agent's deadline, and once more behind the function's end."""
        return max(3, self.integration // 20)

    @property
    def machine(self) -> int:
        """The state machine's own timeout; an express execution may last 300 s at the most."""
        return self.integration - 1

    @property
    def run_state(self) -> int:
        """RunClaude's state."""
        return self.machine - self.tail

    @property
    def run_function(self) -> int:
        """RunClaude's function."""
        return self.run_state - 1

    @property
    def agent(self) -> int:
        """The deployment's deadline for the agent, from the API's request time."""
        return self.run_function - self.tail

    @property
    def restore_state(self) -> int:
        """RestoreSession's state."""
        return self.tail + 4

    @property
    def restore_function(self) -> int:
        """RestoreSession's function."""
        return self.restore_state - 1

    @property
    def persist_state(self) -> int:
        """PersistSession's state."""
        return 2 * self.tail + 2

    @property
    def persist_function(self) -> int:
        """PersistSession's function."""
        return self.persist_state - 1

    @property
    def record_state(self) -> int:
        """RecordFailure's state."""
        return 4

    @property
    def record_function(self) -> int:
        """RecordFailure's function."""
        return self.record_state - 1


@dataclass(frozen=True)
class Legs:
    """The time limits of a long run and of its legs, in seconds.

    They nest: gate < limit < function < state < lease, all counted from where RestoreSession hands a leg out. Between
    gate and limit lies the longest call of Bash that Claude Code makes (600 s), so that what a gate waits for comes.
    """

    run: int
    """The longest that a request may ask for, from when it was asked."""
    gate: int = 240
    """From then on a leg ends as soon as nothing is lost by it."""
    limit: int = 840
    """Then it is ended in any case; what stays is for its checkpoint."""

    def __post_init__(self) -> None:
        if not self.gate < self.limit <= 840:
            raise MissingSetting("LEG_GATE_SECONDS", "must be less than LEG_LIMIT_SECONDS, and that 840 at the most")

    @property
    def function(self) -> int:
        """The function's own: Lambda allows no more than 900 s."""
        return self.limit + 60

    @property
    def state(self) -> int:
        """RunClaude's state in the long machine."""
        return self.function + 5

    @property
    def lease(self) -> int:
        """How long a leg has the session: until after its commit, each state repeated as the definition does."""
        return self.state + 180

    @property
    def machine(self) -> int:
        """The long machine's own timeout: what follows on the run's deadline has the time of a leg."""
        return self.run + self.lease


@dataclass(frozen=True)
class Caps:
    """What the deployment allows at most; a request can only narrow it."""

    max_turns: int
    max_budget_usd: float
    """For one run, in US dollars."""
    allowed_tools: tuple[str, ...] | None
    """None: every tool of Claude Code."""
    max_session_usd: float | None = None
    """For all runs of one session; None: no limit, as with the two below."""
    max_caller_usd_per_day: float | None = None
    max_usd_per_day: float | None = None
    """For the whole deployment; days are UTC's."""
    strict: bool = False
    """Whether a call's worst has to fit into what is left before it is made."""
    repositories: tuple[Repositories, ...] = ()
    """What a request may name to be cloned."""
    models: tuple[str, ...] | None = None
    """The models that a request may name; None: every one."""


@dataclass(frozen=True)
class RestoreSettings:
    """What RestoreSession needs."""

    bucket: str
    clocks: Clocks
    legs: Legs
    caps: Caps
    prices: Prices

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "RestoreSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        tools = _json(environ, "ALLOWED_TOOLS")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, str) for tool in tools)):
            raise MissingSetting("ALLOWED_TOOLS", "must be null or a JSON list of tool names")
        return cls(
            bucket=_text(environ, "S3_BUCKET_NAME"),
            clocks=Clocks(int(_number(environ, "INTEGRATION_TIMEOUT"))),
            legs=Legs(
                int(_number(environ, "MAX_RUN_SECONDS")),
                int(_number(environ, "LEG_GATE_SECONDS")),
                int(_number(environ, "LEG_LIMIT_SECONDS")),
            ),
            caps=Caps(
                max_turns=int(_number(environ, "MAX_TURNS")),
                max_budget_usd=_number(environ, "MAX_BUDGET_USD"),
                allowed_tools=None if tools is None else tuple(tools),
                max_session_usd=_dollars(environ, "MAX_SESSION_USD"),
                max_caller_usd_per_day=_dollars(environ, "MAX_CALLER_USD_PER_DAY"),
                max_usd_per_day=_dollars(environ, "MAX_USD_PER_DAY"),
                strict=_flag(environ, "STRICT"),
                repositories=_repositories(environ),
                models=_models(environ),
            ),
            prices=_prices(environ),
        )


@dataclass(frozen=True)
class RecordSettings:
    """What RecordFailure needs: it has to work where whatever else is set is wrong."""

    bucket: str

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "RecordSettings":
        """Raises `MissingSetting` where the variable is missing."""
        return cls(bucket=_text(environ, "S3_BUCKET_NAME"))


@dataclass(frozen=True)
class DoorSettings:
    """What a function needs that the API hands requests to as they came."""

    bucket: str
    auth: str
    """How the API knows who asks: `api-key`, `iam` or `none`."""
    callers: Mapping[str, str]
    """The caller of each API key, by the key's id."""
    cors_origin: str

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "DoorSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        callers = _json(environ, "CALLERS")
        if not isinstance(callers, dict) or not all(isinstance(ids, list) for ids in callers.values()):
            raise MissingSetting("CALLERS", "must hold the ids of each caller's API keys")
        return DoorSettings(
            bucket=_text(environ, "S3_BUCKET_NAME"),
            auth=_text(environ, "AUTH"),
            callers={str(key): caller for caller, ids in callers.items() for key in ids},
            cors_origin=_text(environ, "CORS_ORIGIN"),
        )


@dataclass(frozen=True)
class ReaderSettings(DoorSettings):
    """What ReadRun and StreamRun need."""

    wait: float
    """The longest that a GET waits for news, in seconds: the gateway waits a little longer."""
    lease: float
    """For how long an attempt of a run can be at work, in seconds from its start."""
    long_lease: float
    """The same of a long run's."""

    def lease_of(self, asked: Mapping[str, object]) -> float:
        """That of the run in a request.json."""
        return self.long_lease if asked.get("long") else self.lease

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "ReaderSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        return cls(
            **vars(DoorSettings.read(environ)),
            wait=_number(environ, "WAIT_SECONDS"),
            lease=_number(environ, "LEASE_SECONDS"),
            long_lease=_number(environ, "LONG_LEASE_SECONDS"),
        )


@dataclass(frozen=True)
class OfferSettings(DoorSettings):
    """What OfferUpload needs."""

    max_session_bytes: int
    """The largest upload: a session could not hold more."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "OfferSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        return cls(**vars(DoorSettings.read(environ)), max_session_bytes=int(_number(environ, "MAX_SESSION_BYTES")))


@dataclass(frozen=True)
class CommitSettings:
    """What PersistSession needs."""

    bucket: str
    max_session_bytes: int
    max_session_files: int
    max_dead_share: float
    """How much of a session's archive may be bytes of files that are replaced or gone, 0 to 1."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "CommitSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        return cls(
            bucket=_text(environ, "S3_BUCKET_NAME"),
            max_session_bytes=int(_number(environ, "MAX_SESSION_BYTES")),
            max_session_files=int(_number(environ, "MAX_SESSION_FILES")),
            max_dead_share=_number(environ, "MAX_DEAD_SHARE"),
        )


ALONE = ("/tmp", "/dev/shm", "/var/tmp")
"""What programs may write to on a machine of Lambda's, which serves one request of one function at a time."""

STARTED = "AWS_LAMBDA_INITIALIZATION_TYPE"
"""Lambda itself sets this reserved variable, and no emulator in use here. Its other values are of environments that are
restored from a snapshot, or shared."""

PROVISIONED = "provisioned-concurrency"
"""Its value where the function is started ahead of any run, to be kept warm."""


@dataclass(frozen=True)
class AgentSettings:
    """What RunClaude needs. It names no bucket: the function that runs strangers' code reaches S3 by grants alone."""

    provider: str
    """`anthropic` or `bedrock`."""
    model_url: str
    """Base URL of the Messages API (without `/v1`); unused with Bedrock."""
    bedrock_model: str | None
    """The model, or inference profile, of runs that name none; None with Anthropic."""
    secret_arn: str
    """The secret holding `{"ANTHROPIC_API_KEY": …, "SUPABASE_SERVICE_KEY": …}`, and what `repositories` name."""
    supabase_url: str | None
    prices: Prices
    max_session_bytes: int
    max_session_files: int
    scratch: str
    """The directory under which a run's scratch lives; on Lambda only /tmp is writable."""
    agent_folder: str
    """What the deployment gives its agent: see `lambdas.agent.equipment`."""
    workspace_instructions: bool
    """Whether the CLAUDE.md of a session's own workspace is heard."""
    ask_before: tuple[str, ...]
    """Which calls are made only once they are approved."""
    sandbox: str = "none"
    """What keeps the agent from the rest of a machine that is not the function's alone: one of `SANDBOXES`."""
    agent_network: str = "open"
    """One of `NETWORKS`."""
    wiped: tuple[str, ...] = ()
    """Directories of the function's alone, in which whatever a run left is removed. Only on Lambda there are any: no
    setting can name one, since a mistake would empty somebody's /tmp."""
    repositories: tuple[Repositories, ...] = ()
    """What the agent's git may reach."""
    protected_branches: tuple[str, ...] = ()
    """Branches that it cannot push to, in which `*` is any text."""
    git_identity: tuple[tuple[str, str], ...] = ()
    """Whose the agent's commits are: `name` and `email`."""
    egress: Egress = CLOSED
    """What else it reaches, by TLS."""
    registries: Mapping[str, str] = field(default_factory=dict)
    """From where it installs packages: addresses by `lambdas.egress.KINDS`."""
    models: tuple[str, ...] | None = None
    """All that it may ask, the first being the usual one; None: every one that has a price."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "AgentSettings":
        """Raises `MissingSetting` for the first variable that is missing or malformed."""
        provider = _text(environ, "MODEL_PROVIDER")
        if provider not in ("anthropic", "bedrock"):
            raise MissingSetting("MODEL_PROVIDER", "must be anthropic or bedrock")
        if _text(environ, "SANDBOX") not in SANDBOXES:
            raise MissingSetting("SANDBOX", f"must be one of {', '.join(SANDBOXES)}")
        if _text(environ, "AGENT_NETWORK") not in NETWORKS:
            raise MissingSetting("AGENT_NETWORK", f"must be one of {', '.join(NETWORKS)}")
        return cls(
            provider=provider,
            model_url=_text(environ, "ANTHROPIC_BASE_URL").rstrip("/"),
            bedrock_model=_text(environ, "BEDROCK_MODEL") if provider == "bedrock" else None,
            secret_arn=_text(environ, "SECRET_ARN"),
            supabase_url=environ.get("SUPABASE_URL") or None,
            prices=_prices(environ),
            max_session_bytes=int(_number(environ, "MAX_SESSION_BYTES")),
            max_session_files=int(_number(environ, "MAX_SESSION_FILES")),
            scratch=_text(environ, "SCRATCH"),
            agent_folder=_text(environ, "AGENT_FOLDER"),
            workspace_instructions=_flag(environ, "WORKSPACE_INSTRUCTIONS"),
            ask_before=_names(environ, "ASK_BEFORE"),
            sandbox=_text(environ, "SANDBOX"),
            agent_network=_text(environ, "AGENT_NETWORK"),
            wiped=ALONE if environ.get(STARTED) in ("on-demand", PROVISIONED) else (),
            repositories=_repositories(environ),
            protected_branches=_names(environ, "PROTECTED_BRANCHES"),
            git_identity=_texts(environ, "GIT_IDENTITY"),
            egress=_egress(environ),
            registries=_registries(environ),
            models=_models(environ),
        )


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise MissingSetting(name)
    return value


def _number(environ: Mapping[str, str], name: str) -> float:
    text = _text(environ, name)
    try:
        return float(text)
    except ValueError:
        raise MissingSetting(name, "must be a number") from None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = _json(environ, name)
    if not isinstance(value, bool):
        raise MissingSetting(name, "must be true or false")
    return value


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    value = _json(environ, name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise MissingSetting(name, "must be a JSON list of texts")
    return tuple(value)


def _dollars(environ: Mapping[str, str], name: str) -> float | None:
    value = _json(environ, name)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value <= 0):
        raise MissingSetting(name, "must be null or a number above 0")
    return value


def _prices(environ: Mapping[str, str]) -> Prices:
    own = _json(environ, "PRICES")
    try:
        if not isinstance(own, dict):
            raise ValueError("they are an object, by model")
        return Prices.of(own)
    except ValueError as wrong:
        raise MissingSetting("PRICES", f"must hold prices: {wrong}") from None


def _repositories(environ: Mapping[str, str]) -> tuple[Repositories, ...]:
    try:
        return repositories.entries(_json(environ, "REPOSITORIES"))
    except ValueError as wrong:
        raise MissingSetting("REPOSITORIES", f"must hold repositories: {wrong}") from None


def _egress(environ: Mapping[str, str]) -> Egress:
    try:
        return Egress.of(_json(environ, "EGRESS"))
    except ValueError as wrong:
        raise MissingSetting("EGRESS", f"must hold hosts: {wrong}") from None


def _registries(environ: Mapping[str, str]) -> Mapping[str, str]:
    try:
        return egress.registries(_json(environ, "REGISTRIES"))
    except ValueError as wrong:
        raise MissingSetting("REGISTRIES", f"must hold registries: {wrong}") from None


def _models(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    return None if _json(environ, "MODELS") is None else _names(environ, "MODELS")


def _texts(environ: Mapping[str, str], name: str) -> tuple[tuple[str, str], ...]:
    value = _json(environ, name)
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise MissingSetting(name, "must be a JSON object of texts")
    return tuple(value.items())


def _json(environ: Mapping[str, str], name: str) -> object:
    text = _text(environ, name)
    try:
        return json.loads(text)
    except ValueError:
        raise MissingSetting(name, "must be JSON") from None
