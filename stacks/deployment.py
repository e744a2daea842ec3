"""What a deployment can choose: the context of cdk.json (or `cdk -c name=value`), read once and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lambdas import egress
from lambdas.egress import Egress
from lambdas.pricing import Prices
from lambdas.repositories import Repositories, entries
from lambdas.request import FIELDS

CDK_JSON = Path(__file__).parent / "cdk.json"
"""A link to the project's, so that a wheel has it too."""
AGENT = Path(__file__).parent / "agent"
"""Likewise a link: what the deployment gives its agent."""
MAX_EPHEMERAL_MB = 10240
"""Lambda's limit for /tmp."""
MAX_MEMORY_MB = 10240
"""Lambda's limit for a function; a new account's is 3008."""
MIN_MEMORY_MB = 1024
"""Claude Code takes some 200 MB, the handler up to 300 with a large session; what the agent starts comes on top."""
CALLER = re.compile(r"[a-z][a-z0-9-]{0,31}")


class BadContext(ValueError):
    """A context value is missing, unknown or unusable; the text says which and what would do."""


@dataclass(frozen=True)
class Deployment:
    """The choices of one deployment. cdk.json holds every one of them, so there are no defaults here."""

    stack_name: str
    architecture: Literal["x86_64", "arm64"]
    """x86_64 by default, because that is what most build machines are, and an image built for another is emulated."""
    integration_timeout: int
    """Seconds; every other time limit derives from it. Over 29 needs the account's quota L-E5AE38E3."""
    max_run_seconds: int
    """The longest that a request with `Prefer: respond-async` may ask for."""
    auth: Literal["api-key", "iam", "none"]
    callers: dict[str, tuple[int, ...]]
    """Name of a caller to the generations of its API key: one, or two while it is being rotated."""
    cors_origin: str
    requests_per_day: int
    """Per API key."""
    rate: int
    """Requests a second, per API key and for the whole stage."""
    burst: int
    cloud_watch_role: bool
    """Sets the account's (!) API Gateway logging role, which access logs need once per account and region."""
    provider: Literal["anthropic", "bedrock"]
    anthropic_base_url: str
    bedrock_models: tuple[str, ...]
    """Model or inference profile ids that the agent may invoke, with the provider `bedrock`."""
    models: tuple[str, ...] | None
    """The same with `anthropic`; None: every model that has a price."""
    supabase_url: str
    repositories: tuple[Repositories, ...]
    """What the agent's git may reach, and as whom."""
    protected_branches: tuple[str, ...]
    """Branches that it cannot push to, in which `*` is any text."""
    git_identity: dict[str, str]
    """Whose its commits are: `name` and `email`."""
    egress: Egress
    """What else the agent reaches: hosts by name, or all there is."""
    registries: dict[str, str]
    """From where it installs packages, by `lambdas.egress.KINDS`."""
    max_turns: int
    max_budget_usd: float
    """For one run, in US dollars."""
    max_session_usd: float | None
    """For all runs of a session; None: no limit, as with the two below."""
    max_caller_usd_per_day: float | None
    max_usd_per_day: float | None
    strict: bool
    """Whether a call's worst has to fit into what is left before it is made."""
    prices: dict[str, Any]
    """By model, what is over the table in lambdas/prices.toml; `*` for one that is in neither."""
    allowed_tools: tuple[str, ...] | None
    """None: every tool of Claude Code."""
    workspace_instructions: bool
    """Whether the CLAUDE.md of a session's own workspace is heard, beside that of agent/."""
    ask_before: tuple[str, ...]
    """Which calls of tools are made only once they are approved: see `lambdas.agent.approvals`."""
    max_concurrent_runs: int | None
    """Reserved concurrency of RunClaude, and of RunLeg too; None: the account's."""
    warm_runs: int
    """Provisioned concurrency of RunClaude: how many runs at once meet no cold start. It costs by the hour."""
    memory_mb: int
    """RunClaude's, and with it its processors: 1,769 MB are one."""
    max_session_mb: int
    """MiB of a session's files, unpacked."""
    max_session_files: int
    max_dead_share: float
    """How much of a session's archive may be bytes of files that are replaced or gone; more is won back."""
    session_expiry_days: int | None
    """A session is deleted so many days after its last turn; None: never."""
    retain_data: bool
    """Keep the bucket when the stack is deleted."""
    kms_key_arn: str | None
    """An existing KMS key, in the stack's region, for bucket and secret; None: S3's and Secrets Manager's own."""
    network: Literal["private"] | None
    """`private`: a VPC of the stack's own for RunClaude alone, which reaches what a run needs; None: none."""
    vpc: str | None
    """An existing VPC for RunClaude alone, whose subnets lead to S3, Secrets Manager and the model; None: none."""
    subnets: tuple[str, ...]
    security_group: str | None
    """None: one that lets nothing in and everything out, made in `vpc`."""

    @property
    def ephemeral_mb(self) -> int:
        """MiB of /tmp: a session's files, the staged changes and a checkpoint at once, and room for the agent."""
        return 3 * self.max_session_mb + 512

    @classmethod
    def read(cls, context: Mapping[str, Any]) -> "Deployment":
        """Raises `BadContext` for the first value that is missing or unusable, and for names that mean nothing."""
        take = _Context(context)
        deployment = cls(
            stack_name=take.text("stack_name", r"[A-Za-z][A-Za-z0-9-]{0,127}", "letters, digits and hyphens"),
            architecture=cast(Any, take.one_of("architecture", "x86_64", "arm64")),
            integration_timeout=take.whole("integration_timeout", 15, 300),
            max_run_seconds=take.whole("max_run_seconds", 60, 24 * 3600),
            auth=cast(Any, take.one_of("auth", "api-key", "iam", "none")),
            callers=take.callers("callers"),
            cors_origin=take.text(
                "cors_origin", r"\*|https?://[A-Za-z0-9.:-]+", "* or one origin like https://app.example"
            ),
            requests_per_day=take.whole("requests_per_day", 1),
            rate=take.whole("rate", 1),
            burst=take.whole("burst", 1),
            cloud_watch_role=take.flag("cloud_watch_role"),
            provider=cast(Any, take.one_of("provider", "anthropic", "bedrock")),
            anthropic_base_url=take.text("anthropic_base_url", r"https?://\S+", "a URL"),
            bedrock_models=take.names("bedrock_models") or (),
            models=take.names("models"),
            supabase_url=take.text("supabase_url", r"|https?://\S+", "a URL, or empty"),
            repositories=take.repositories("repositories"),
            protected_branches=take.names("protected_branches") or (),
            git_identity=take.identity("git_identity"),
            egress=take.egress("egress"),
            registries=take.registries("registries"),
            max_turns=take.whole("max_turns", 1),
            max_budget_usd=take.number("max_budget_usd"),
            max_session_usd=take.number_or_none("max_session_usd"),
            max_caller_usd_per_day=take.number_or_none("max_caller_usd_per_day"),
            max_usd_per_day=take.number_or_none("max_usd_per_day"),
            strict=take.flag("strict"),
            prices=take.prices("prices"),
            allowed_tools=_tools(take.names("allowed_tools")),
            workspace_instructions=take.flag("workspace_instructions"),
            ask_before=take.names("ask_before") or (),
            max_concurrent_runs=take.whole_or_none("max_concurrent_runs", 1),
            warm_runs=take.whole("warm_runs", 0),
            memory_mb=take.whole("memory_mb", MIN_MEMORY_MB, MAX_MEMORY_MB),
            max_session_mb=take.whole("max_session_mb", 1, (MAX_EPHEMERAL_MB - 512) // 3),
            max_session_files=take.whole("max_session_files", 1),
            max_dead_share=take.share("max_dead_share"),
            session_expiry_days=take.whole_or_none("session_expiry_days", 1, 36500),
            retain_data=take.flag("retain_data"),
            kms_key_arn=take.text_or_none("kms_key_arn", KMS_KEY_ARN, "null or the ARN of a KMS key (not of an alias)"),
            network=cast(Any, take.text_or_none("network", "private", "null or private")),
            vpc=take.text_or_none("vpc", r"vpc-[0-9a-f]{8,17}", "null or the id of a VPC"),
            subnets=take.names("subnets") or (),
            security_group=take.text_or_none(
                "security_group", r"sg-[0-9a-f]{8,17}", "null or the id of a security group"
            ),
        )
        take.refuse_the_rest()
        deployment._check_models()
        deployment._check_branches()
        deployment._check_network()
        deployment._check_warmth()
        return deployment

    def _check_models(self) -> None:
        if self.provider == "bedrock" and not self.bedrock_models:
            raise BadContext("bedrock_models must name at least one model when provider is bedrock.")
        for model in self.bedrock_models:
            if not MODEL_ID.fullmatch(model):
                raise BadContext(f"bedrock_models takes ids of models and inference profiles; {model!r} is not one.")
            if not Prices.of(self.prices).knows(model):
                raise BadContext(f"bedrock_models names {model}, which has no price: add it to prices.")
        if self.models is not None and self.provider == "bedrock":
            raise BadContext("models means nothing with bedrock, where bedrock_models has those that runs may use.")
        if self.models == ():
            raise BadContext("models must name at least one model, or be null.")
        for model in self.models or ():
            if not Prices.of(self.prices).knows(model):
                raise BadContext(f"models names {model}, which has no price: add it to prices.")

    def _check_branches(self) -> None:
        for name in self.protected_branches:
            if not BRANCH.fullmatch(name):
                raise BadContext(f"protected_branches takes names of branches, with * for any text; {name!r} is none.")

    def _check_network(self) -> None:
        if self.network and self.vpc:
            raise BadContext('network "private" makes a VPC, and vpc names one: choose one of them.')
        if self.network and self.egress.open:
            raise BadContext('egress "open" lets everything out, and network "private" does not: choose one of them.')
        if self.vpc and not self.subnets:
            raise BadContext("subnets must name at least one subnet when vpc is set.")
        if not self.vpc and (self.subnets or self.security_group):
            raise BadContext("subnets and security_group mean nothing without vpc.")
        for subnet in self.subnets:
            if not SUBNET_ID.fullmatch(subnet):
                raise BadContext(f"subnets takes the ids of subnets; {subnet!r} is not one.")

    def _check_warmth(self) -> None:
        if self.max_concurrent_runs is not None and self.warm_runs > self.max_concurrent_runs:
            raise BadContext("warm_runs must not be more than max_concurrent_runs, of which they are a part.")


MODEL_ID = re.compile(r"[A-Za-z0-9._:-]+")
"""No ARN: the agent's proxy lets no slash through in a model's name, however it is escaped."""
BRANCH = re.compile(r"[A-Za-z0-9._/*-]+")
IDENTITY = re.compile(r"[^\x00-\x1f<>]{1,200}")
REPOSITORIES_BYTES = 2000
"""A function's environment has 4 KB in all."""
EGRESS_BYTES = 800
"""Likewise: a list of some forty hosts."""
SUBNET_ID = re.compile(r"subnet-[0-9a-f]{8,17}")
KMS_KEY_ARN = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+"


class _Context:
    """Takes values out of the context by name and kind. `cdk -c` gives text only, so other kinds are read from it."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        # The CDK's own keys hold a colon or begin with @ (aws:cdk:…, @aws-cdk/…).
        self.left = {name: value for name, value in context.items() if ":" not in name and name[:1] != "@"}

    def refuse_the_rest(self) -> None:
        if self.left:
            raise BadContext(f"The context value {sorted(self.left)[0]} is unknown; cdk.json lists those that exist.")

    def text(self, name: str, pattern: str, wanted: str) -> str:
        value = self._take(name)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise BadContext(f"{name} must be {wanted}, not {json.dumps(value)}.")
        return value

    def text_or_none(self, name: str, pattern: str, wanted: str) -> str | None:
        if self.left.get(name, "") in (None, "null"):
            self._take(name)
            return None
        return self.text(name, pattern, wanted)

    def one_of(self, name: str, *choices: str) -> str:
        value = self._take(name)
        if value not in choices:
            raise BadContext(f"{name} must be one of {', '.join(choices)}, not {json.dumps(value)}.")
        return str(value)

    def flag(self, name: str) -> bool:
        value = self._parsed(name)
        if not isinstance(value, bool):
            raise BadContext(f"{name} must be true or false, not {json.dumps(value)}.")
        return value

    def number(self, name: str) -> float:
        value = self._parsed(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise BadContext(f"{name} must be a number above 0, not {json.dumps(value)}.")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        if self.left.get(name, "") in (None, "null"):
            self._take(name)
            return None
        return self.number(name)

    def prices(self, name: str) -> dict[str, Any]:
        value = self._parsed(name)
        if not isinstance(value, dict):
            raise BadContext(f"{name} must be an object of prices by model, not {json.dumps(value)}.")
        try:
            Prices.of(value)
        except ValueError as wrong:
            raise BadContext(f"{name}: {wrong}.") from None
        return value

    def repositories(self, name: str) -> tuple[Repositories, ...]:
        value = self._parsed(name)
        if len(json.dumps(value)) > REPOSITORIES_BYTES:
            raise BadContext(f"{name} has more than {REPOSITORIES_BYTES} bytes, which a function cannot be given.")
        try:
            return entries(value)
        except ValueError as wrong:
            raise BadContext(f"{name}: {wrong}.") from None

    def egress(self, name: str) -> Egress:
        value = self._take(name) if self.left.get(name) == egress.OPEN else self._parsed(name)
        if len(json.dumps(value)) > EGRESS_BYTES:
            raise BadContext(f"{name} has more than {EGRESS_BYTES} bytes, which a function cannot be given.")
        try:
            return Egress.of(value)
        except ValueError as wrong:
            raise BadContext(f"{name}: {wrong}.") from None

    def registries(self, name: str) -> dict[str, str]:
        try:
            return egress.registries(self._parsed(name))
        except ValueError as wrong:
            raise BadContext(f"{name}: {wrong}.") from None

    def identity(self, name: str) -> dict[str, str]:
        value = self._parsed(name)
        texts = list(value.values()) if isinstance(value, dict) and set(value) == {"name", "email"} else [None]
        if not all(isinstance(text, str) and IDENTITY.fullmatch(text) for text in texts):
            raise BadContext(f"{name} must be an object with name and email, not {json.dumps(value)}.")
        return {"name": value["name"], "email": value["email"]}

    def share(self, name: str) -> float:
        value = self.number(name)
        if value >= 1:
            raise BadContext(f"{name} must be a share below 1, not {json.dumps(value)}.")
        return value

    def whole(self, name: str, least: int, most: int = 10**9) -> int:
        value = self.whole_or_none(name, least, most)
        if value is None:
            raise BadContext(f"{name} must be a whole number, not null.")
        return value

    def whole_or_none(self, name: str, least: int, most: int = 10**9) -> int | None:
        value = self._parsed(name)
        if value is None:
            return None
        # jsii hands every number of the context over as a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise BadContext(f"{name} must be a whole number, not {json.dumps(value)}.")
        if not least <= value <= most:
            raise BadContext(f"{name} must be between {least} and {most}, not {json.dumps(value)}.")
        return int(value)

    def names(self, name: str) -> tuple[str, ...] | None:
        value = self._parsed(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise BadContext(f"{name} must be null or a list of names, not {json.dumps(value)}.")
        return tuple(value)

    def callers(self, name: str) -> dict[str, tuple[int, ...]]:
        value = self._parsed(name)
        if not isinstance(value, dict) or not value:
            raise BadContext(f'{name} must name at least one caller, such as {{"default": [1]}}.')
        return {caller: _generations(caller, numbers) for caller, numbers in value.items()}

    def _take(self, name: str) -> Any:
        if name not in self.left:
            raise BadContext(f"The context value {name} is missing; cdk.json lists those that are needed.")
        return self.left.pop(name)

    def _parsed(self, name: str) -> Any:
        value = self._take(name)
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise BadContext(f"{name} must not be the text {json.dumps(value)}.") from None


def _tools(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """As a request may name them: `default` would be every tool."""
    wrong = FIELDS["allowed_tools"](list(names)) if names is not None else None
    if wrong:
        raise BadContext(f"allowed_tools {wrong}.")
    return names


def _generations(caller: str, numbers: Any) -> tuple[int, ...]:
    if not CALLER.fullmatch(caller) or caller == "public":
        raise BadContext(
            f"The caller {json.dumps(caller)} needs another name: small letters, digits and hyphens, and not public."
        )
    whole = isinstance(numbers, list) and all(isinstance(n, int | float) and n == int(n) >= 1 for n in numbers)
    if not whole or not 1 <= len(numbers) <= 2 or len(set(numbers)) < len(numbers):
        raise BadContext(
            f"The caller {caller} needs the generation of its API key, such as [1], or two while rotating."
        )
    return tuple(sorted(int(n) for n in numbers))
