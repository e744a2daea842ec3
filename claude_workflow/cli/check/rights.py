"""Rows of IAM: what each role may do and what it must not, by AWS's own simulation of its policies."""

from collections.abc import Iterator, Mapping

from claude_workflow.cli.check.account import AGENTS, LONG
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import compared

READERS = ("RestoreSession", "PersistSession")
KEEPERS = (*READERS, "RecordFailure")
TELLERS = ("PersistSession", "RecordFailure")
WATCHERS = ("ReadRun", "StreamRun")
SHOWS, REMOVES, OFFERS = "ReadSession", "RemoveSession", "OfferUpload"
OF_SESSIONS = (SHOWS, REMOVES)
BUCKET, SECRET, BUS, READER, OFFER = "the bucket", "the secret", "the event bus", "ReadRun", "OfferUpload"
MACHINE, LONG_MACHINE = "the machine", "the long machine"
RUN, LEG = "a version of RunClaude", "a version of RunLeg"
RIGHTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "session-1.zip": {
        "s3:GetObject": (*READERS, *WATCHERS, *OF_SESSIONS),
        "s3:GetObjectVersion": (*READERS, *OF_SESSIONS),
        "s3:PutObject": ("PersistSession",),
        "s3:AbortMultipartUpload": ("PersistSession",),
        "s3:DeleteObject": (REMOVES,),
        "s3:DeleteObjectVersion": (REMOVES,),
    },
    "runs/run-1/x": {
        "s3:GetObject": (*KEEPERS, *WATCHERS, REMOVES),
        "s3:PutObject": KEEPERS,
        "s3:DeleteObject": (REMOVES,),
        "s3:DeleteObjectVersion": (REMOVES,),
    },
    "runs/run-1/cancel": {"s3:PutObject": (*KEEPERS, "ReadRun"), "s3:DeleteObject": (REMOVES,)},
    "locks/session-1.json": {
        "s3:GetObject": (*KEEPERS, REMOVES),
        "s3:PutObject": (*KEEPERS, REMOVES),
        "s3:DeleteObject": (*KEEPERS, REMOVES),
    },
    "index/sessions/session-1/run-1": {"s3:PutObject": KEEPERS, "s3:DeleteObject": (*KEEPERS, REMOVES)},
    "ledger/2026-01-01/x": {"s3:PutObject": KEEPERS, "s3:DeleteObject": KEEPERS},
    "ledger/2026-01-01/1~run-1~x~spent~1": {"s3:PutObject": (*KEEPERS, REMOVES), "s3:DeleteObject": KEEPERS},
    "ledger/sessions/session-1/x": {"s3:PutObject": KEEPERS, "s3:DeleteObject": (*KEEPERS, REMOVES)},
    "extracts/session-1/x": {"s3:GetObject": (SHOWS,), "s3:PutObject": (SHOWS,), "s3:DeleteObject": (REMOVES,)},
    "uploads/upload-1/content": {
        "s3:GetObject": ("RestoreSession", REMOVES),
        "s3:PutObject": (OFFERS,),
        "s3:DeleteObject": (REMOVES,),
    },
    "uploads/upload-1/used": {"s3:PutObject": ("RestoreSession",), "s3:DeleteObject": (REMOVES,)},
    BUCKET: {
        "s3:ListBucket": (*KEEPERS, *WATCHERS, *OF_SESSIONS),
        "s3:ListBucketVersions": (*READERS, *OF_SESSIONS),
        "s3:PutBucketPolicy": (),
    },
    SECRET: {"secretsmanager:GetSecretValue": AGENTS, "secretsmanager:PutSecretValue": ()},
    MACHINE: {"states:StartSyncExecution": ("Door",), "states:StartExecution": (), "states:UpdateStateMachine": ()},
    LONG_MACHINE: {"states:StartExecution": ("Machine",), "states:StopExecution": (), "states:UpdateStateMachine": ()},
    RUN: {"lambda:InvokeFunction": ("Machine",), "lambda:UpdateFunctionCode": ()},
    LEG: {"lambda:InvokeFunction": (LONG,), "lambda:UpdateFunctionCode": ()},
    BUS: {"events:PutEvents": TELLERS, "events:DeleteEventBus": ()},
    READER: {"lambda:InvokeFunction": ("Door",), "lambda:UpdateFunctionCode": ()},
    OFFERS: {"lambda:InvokeFunction": ("Door",), "lambda:UpdateFunctionCode": ()},
}
"""By resource and action, who needs it. Everybody else must not have it."""


def _arn(kit: Kit, resource: str) -> str:
    machine = kit.backend.state_machine_arn
    _, partition, _, region, account, *_ = machine.split(":")
    bucket, bus = (
        f"arn:{partition}:s3:::{kit.bucket.name}",
        f"arn:{partition}:events:{region}:{account}:event-bus/default",
    )
    if resource == SECRET:
        return kit.account.environment("RunClaude")["SECRET_ARN"]
    if resource == LONG_MACHINE:
        return kit.account.id("StepFunctions::StateMachine", LONG)
    if resource in (RUN, LEG):
        return f"{kit.account.function(resource.rpartition(' ')[2])['FunctionArn']}:1"
    if resource in (READER, OFFERS):
        return str(kit.account.function(resource)["FunctionArn"])
    return {BUCKET: bucket, MACHINE: machine, BUS: bus}.get(resource, f"{bucket}/{resource}")


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
