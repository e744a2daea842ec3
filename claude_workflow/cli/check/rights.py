"""Rows of IAM: what each role may do and what it must not, by AWS's own simulation of its policies."""

from collections.abc import Iterator, Mapping

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import compared

READERS = ("RestoreSession", "PersistSession")
KEEPERS = (*READERS, "RecordFailure")
BUCKET, SECRET, MACHINE, FUNCTION = "the bucket", "the secret", "the machine", "a version of RunClaude"
RIGHTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "session-1.zip": {
        "s3:GetObject": READERS,
        "s3:GetObjectVersion": READERS,
        "s3:PutObject": ("PersistSession",),
        "s3:AbortMultipartUpload": ("PersistSession",),
        "s3:DeleteObject": (),
        "s3:DeleteObjectVersion": (),
    },
    "runs/run-1/x": {"s3:GetObject": KEEPERS, "s3:PutObject": KEEPERS, "s3:DeleteObject": ()},
    "locks/session-1.json": {"s3:GetObject": KEEPERS, "s3:PutObject": KEEPERS, "s3:DeleteObject": KEEPERS},
    "index/sessions/session-1/run-1": {"s3:PutObject": KEEPERS, "s3:DeleteObject": KEEPERS},
    "ledger/2026-01-01/x": {"s3:PutObject": KEEPERS, "s3:DeleteObject": KEEPERS},
    BUCKET: {"s3:ListBucket": KEEPERS, "s3:ListBucketVersions": READERS, "s3:PutBucketPolicy": ()},
    SECRET: {"secretsmanager:GetSecretValue": ("RunClaude",), "secretsmanager:PutSecretValue": ()},
    MACHINE: {"states:StartSyncExecution": ("Door",), "states:StartExecution": (), "states:UpdateStateMachine": ()},
    FUNCTION: {"lambda:InvokeFunction": ("Machine",), "lambda:UpdateFunctionCode": ()},
}
"""By resource and action, who needs it. Everybody else must not have it."""


def _arn(kit: Kit, resource: str) -> str:
    machine = kit.backend.state_machine_arn
    bucket = f"arn:{machine.split(':')[1]}:s3:::{kit.bucket.name}"
    if resource == SECRET:
        return kit.account.environment("RunClaude")["SECRET_ARN"]
    if resource == FUNCTION:
        return f"{kit.account.function('RunClaude')['FunctionArn']}:1"
    return {BUCKET: bucket, MACHINE: machine}.get(resource, f"{bucket}/{resource}")


@compared
def simulated(kit: Kit, role: str) -> Iterator[tuple[str, object, object]]:
    """Whether a role, by a part of its name, is allowed each."""
    iam = kit.client("iam")
    arn = iam.get_role(RoleName=kit.account.id("IAM::Role", f"{role}Role"))["Role"]["Arn"]
    for resource, rights in RIGHTS.items():
        asked = {"ActionNames": [*rights], "ResourceArns": [_arn(kit, resource)]}
        for one in iam.simulate_principal_policy(PolicySourceArn=arn, **asked)["EvaluationResults"]:
            action, allowed = one["EvalActionName"], one["EvalDecision"] == "allowed"
            yield f"{action} of {resource}", _word(allowed), _word(role in rights[action])


def _word(allowed: bool) -> str:
    return "allowed" if allowed else "denied"
