"""cdk-nag's AwsSolutions over the stack: every finding is mended, or acknowledged with its reason where it arises.

The CDK is imported where it is needed: that starts a process of Node's in whoever does so, and all workers read this.
"""

import json
from pathlib import Path
from typing import Any

import pytest

KEY = "arn:aws:kms:eu-west-1:123456789012:key/0f9c4e0e-0000-4000-8000-000000000000"

VARIANTS: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "bedrock": {
        "provider": "bedrock",
        "bedrock_models": ["anthropic.claude-opus-5-v1:0", "eu.anthropic.claude-sonnet-5-v1:0"],
        "network": "private",
    },
    "iam": {"auth": "iam", "cloud_watch_role": True, "network": "private"},
    "none": {"auth": "none", "kms_key_arn": KEY, "vpc": "vpc-0a1b2c3d", "subnets": ["subnet-0a1b2c3d"]},
}


def _findings(app: Any) -> set[tuple[str, str]]:
    """What is not acknowledged, by rule and construct: errors and warnings, of cdk-nag and of the CDK's own checks."""
    from aws_cdk import Validations
    from cdk_nag import AwsSolutionsChecks

    Validations.of(app).add_plugins(AwsSolutionsChecks(app, verbose=True))
    try:
        app.synth()
    except RuntimeError as stopped:
        if "ValidationFailed" not in str(stopped):
            raise
    report = json.loads((Path(app.outdir) / "validation-report.json").read_text())
    return {
        (finding["ruleName"], construct["constructPath"])
        for plugin in report["pluginReports"]
        for finding in plugin["violations"]
        for construct in finding["violatingConstructs"]
    }


def _acknowledged(app: Any) -> dict[str, str]:
    """The rules that are acknowledged somewhere in the app, with a reason of each."""
    from aws_cdk import Validations

    entries = (entry for construct in app.node.find_all() for entry in construct.node.metadata)
    kept = [entry.data for entry in entries if entry.type == Validations.ACKNOWLEDGED_RULES_METADATA_KEY]
    return {rule.removeprefix("Annotation::"): reason for rules in kept for rule, reason in rules.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_finding_is_left_without_its_reason(variant: str, tmp_path: Path) -> None:
    """For each way to open the door, each provider, and with a key and a network of the deployment's own."""
    from stacks.workflow import application

    assert _findings(application(str(tmp_path), VARIANTS[variant])) == set()


def test_every_acknowledgement_is_of_something_found(template: dict[str, Any], tmp_path: Path) -> None:
    """The same resources without the acknowledgements fail by exactly what is acknowledged: none is stale."""
    from stacks.workflow import application  # which says where Node is, before the CDK is imported
    from aws_cdk import App, Stack, cloudformation_include  # isort: skip

    resources = tmp_path / "resources.json"
    resources.write_text(json.dumps({"Resources": template["Resources"]}))
    bare = App(outdir=str(tmp_path / "bare"))
    cloudformation_include.CfnInclude(Stack(bare, "Bare"), "Template", template_file=str(resources))
    acknowledged = _acknowledged(application(str(tmp_path / "reasoned")))
    assert {rule for rule, _ in _findings(bare)} == acknowledged.keys()
    assert all(reason.endswith(".") for reason in acknowledged.values())
