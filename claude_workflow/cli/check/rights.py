"""Rows of IAM: what each role may do and what it must not, by AWS's own simulation of its policies."""

from collections.abc import Callable, Mapping

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge
from lambdas.strict import Json

Rights = Mapping[str, tuple[str, ...]]
"""Actions by the kind of resource they are asked of."""

SESSIONS, RUNS, LOCKS, INDEX = "session-1.zip", "runs/run-1/x", "locks/session-1.json", "index/sessions/session-1/run-1"
BUCKET, SECRET, MACHINE, FUNCTION = "the bucket", "the secret", "the machine", "a version of RunClaude"
RECORD: Rights = {
    RUNS: ("s3:GetObject", "s3:PutObject"),
    LOCKS: ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
    INDEX: ("s3:PutObject", "s3:DeleteObject"),
    BUCKET: ("s3:ListBucket",),
}
"""What all three keepers of the record may do."""
NO_SECRET: Rights = {SECRET: ("secretsmanager:GetSecretValue",), FUNCTION: ("lambda:InvokeFunction",)}
NOTHING_HERE: Rights = {
    SESSIONS: ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
    RUNS: ("s3:GetObject", "s3:PutObject"),
    BUCKET: ("s3:ListBucket", "s3:PutBucketPolicy"),
}
"""Of the bucket, for whoever has no business with it."""

ROLES: Mapping[str, tuple[Rights, Rights]] = {
    "RestoreSession": (
        {
            **RECORD,
            SESSIONS: ("s3:GetObject", "s3:GetObjectVersion"),
            BUCKET: ("s3:ListBucket", "s3:ListBucketVersions"),
        },
        {
            **NO_SECRET,
            SESSIONS: ("s3:PutObject", "s3:DeleteObject"),
            RUNS: ("s3:DeleteObject",),
            BUCKET: ("s3:PutBucketPolicy",),
        },
    ),
    "RunClaude": (
        {SECRET: ("secretsmanager:GetSecretValue",)},
        {
            **NOTHING_HERE,
            SECRET: ("secretsmanager:PutSecretValue",),
            FUNCTION: ("lambda:InvokeFunction",),
            MACHINE: ("states:StartExecution", "states:StartSyncExecution"),
        },
    ),
    "PersistSession": (
        {
            **RECORD,
            SESSIONS: ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:AbortMultipartUpload"),
            BUCKET: ("s3:ListBucket", "s3:ListBucketVersions"),
        },
        {**NO_SECRET, SESSIONS: ("s3:DeleteObject", "s3:DeleteObjectVersion"), RUNS: ("s3:DeleteObject",)},
    ),
    "RecordFailure": (
        RECORD,
        {**NO_SECRET, SESSIONS: ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"), RUNS: ("s3:DeleteObject",)},
    ),
    "Machine": (
        {FUNCTION: ("lambda:InvokeFunction",)},
        {**NOTHING_HERE, SECRET: ("secretsmanager:GetSecretValue",), FUNCTION: ("lambda:UpdateFunctionCode",)},
    ),
    "Door": (
        {MACHINE: ("states:StartSyncExecution",)},
        {
            **NOTHING_HERE,
            SECRET: ("secretsmanager:GetSecretValue",),
            MACHINE: ("states:StartExecution", "states:UpdateStateMachine"),
            FUNCTION: ("lambda:InvokeFunction",),
        },
    ),
}
"""By a part of the role's name: what it needs, and some of what it must not have."""


def _arn(kit: Kit, resource: str) -> str:
    bucket = f"arn:{kit.machine.split(':')[1]}:s3:::{kit.bucket}"
    if resource == SECRET:
        return kit.account.environment("RunClaude")["SECRET_ARN"]
    if resource == FUNCTION:
        return f"{kit.account.function('RunClaude')['FunctionArn']}:1"
    return {BUCKET: bucket, MACHINE: kit.machine}.get(resource, f"{bucket}/{resource}")


def _simulated(role: str) -> Callable[[Kit], Json]:
    def ask(kit: Kit) -> Json:
        iam = kit.client("iam")
        arn = iam.get_role(RoleName=kit.account.id("IAM::Role", f"{role}Role"))["Role"]["Arn"]

        def decided(rights: Rights) -> Json:
            return {
                f"{one['EvalActionName']} of {resource}": one["EvalDecision"]
                for resource, actions in rights.items()
                for one in iam.simulate_principal_policy(
                    PolicySourceArn=arn, ActionNames=list(actions), ResourceArns=[_arn(kit, resource)]
                )["EvaluationResults"]
            }

        needed, forbidden = ROLES[role]
        return {"needed": decided(needed), "forbidden": decided(forbidden)}

    return ask


def _sufficient_and_no_more(raw: Json) -> str | None:
    lacking = [what for what, decision in raw["needed"].items() if decision != "allowed"]
    excess = [what for what, decision in raw["forbidden"].items() if decision == "allowed"]
    said = [f"It may not {', '.join(lacking)}"] * bool(lacking) + [f"It may {', '.join(excess)}"] * bool(excess)
    return "; ".join(said) or None


def _kebab(name: str) -> str:
    return "".join(f"-{char.lower()}" if char.isupper() else char for char in name)


ASKED: dict[str, Ask] = {f"rights{_kebab(role)}": _simulated(role) for role in ROLES}
JUDGED: dict[str, Judge] = dict.fromkeys(ASKED, _sufficient_and_no_more)
