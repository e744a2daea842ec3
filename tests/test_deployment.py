"""The context of cdk.json: what it may say, and what it may not."""

import json
from typing import Any

import pytest

from stacks.deployment import CDK_JSON, BadContext, Deployment

CONTEXT: dict[str, Any] = json.loads(CDK_JSON.read_text())["context"]


ENTRY = {"host": "github.com", "match": ["acme/*"], "access": "push", "secret": "GIT_TOKEN"}


def test_cdk_json_is_whole() -> None:
    """cdk.json as it stands is a deployment."""
    assert Deployment.read(CONTEXT).callers == {"default": (1,)}


def test_the_cli_gives_text() -> None:
    """`cdk -c name=value` hands over text, which is read as what the value has to be."""
    said = {"integration_timeout": "120", "retain_data": "false", "allowed_tools": '["Read"]', "max_budget_usd": "2.5"}
    read = Deployment.read(CONTEXT | said)
    assert (read.integration_timeout, read.retain_data, read.allowed_tools) == (120, False, ("Read",))
    assert read.max_budget_usd == 2.5


def test_repositories_are_written_as_json() -> None:
    """On the command line; null protects nothing."""
    said = {"repositories": json.dumps([ENTRY]), "protected_branches": "null"}
    read = Deployment.read(CONTEXT | said)
    assert [each.entry for each in read.repositories] == [ENTRY]
    assert read.protected_branches == ()


def test_what_goes_out_is_named() -> None:
    """Hosts, everything by one word, registries by their addresses; on the command line, too."""
    said = {"egress": '["pypi.org", "*.example.com"]', "registries": '{"pip": "https://pypi.org/simple/"}'}
    read = Deployment.read(CONTEXT | said | {"models": '["claude-sonnet-5-5"]'})
    assert (read.egress.hosts, read.registries) == (("pypi.org", "*.example.com"), {"pip": "https://pypi.org/simple"})
    assert read.models == ("claude-sonnet-5-5",)
    assert Deployment.read(CONTEXT | {"egress": "open"}).egress.open
    assert not Deployment.read(CONTEXT).egress.open


def test_a_network_is_named_by_ids() -> None:
    """An existing VPC and its subnets, as the CLI gives them; a subnet that is none stops with its name."""
    said = {"vpc": "vpc-0a1b2c3d", "subnets": '["subnet-0a1b2c3d"]', "security_group": "null", "kms_key_arn": "null"}
    read = Deployment.read(CONTEXT | said)
    assert (read.vpc, read.subnets, read.security_group) == ("vpc-0a1b2c3d", ("subnet-0a1b2c3d",), None)
    assert read.kms_key_arn is None
    with pytest.raises(BadContext, match="'private' is not one"):
        Deployment.read(CONTEXT | said | {"subnets": ["private"]})


def test_a_private_network_is_no_other_one() -> None:
    """Neither the account's, nor one that lets everything out."""
    assert Deployment.read(CONTEXT | {"network": "private"}).network == "private"
    for said in ({"vpc": "vpc-0a1b2c3d", "subnets": ["subnet-0a1b2c3d"]}, {"egress": "open"}):
        with pytest.raises(BadContext, match='network "private"'):
            Deployment.read(CONTEXT | said | {"network": "private"})


def test_the_cdk_has_keys_of_its_own() -> None:
    """Keys of the CDK in the same context are left alone."""
    Deployment.read(CONTEXT | {"aws:cdk:bundling-stacks": ["**"], "@aws-cdk/core:some-flag": True})


def test_ephemeral_storage_fits_the_session() -> None:
    """/tmp holds archive, files and staged changes at once, and never more than Lambda gives."""
    largest = Deployment.read(CONTEXT | {"max_session_mb": 3242})
    assert 3 * 3242 < largest.ephemeral_mb <= 10240


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("integration_timeout", 10, "between 15 and 300"),
        ("integration_timeout", "soon", "soon"),
        ("integration_timeout", 29.5, "whole number"),
        ("integration_timeout", True, "whole number"),
        ("integration_timeout", None, "null"),
        ("auth", "key", "api-key, iam, none"),
        ("provider", "vertex", "anthropic, bedrock"),
        ("provider", "bedrock", "bedrock_models"),
        ("bedrock_models", ["arn:aws:bedrock:eu-west-1:1:application-inference-profile/x"], "is not one"),
        ("architecture", "arm", "arm64"),
        ("callers", {}, "at least one caller"),
        ("callers", {"public": [1]}, "not public"),
        ("callers", {"Alice": [1]}, "small letters"),
        ("callers", {"alice": 1}, "generation"),
        ("callers", {"alice": []}, "generation"),
        ("callers", {"alice": [1, 2, 3]}, "generation"),
        ("callers", {"alice": [1, 1]}, "generation"),
        ("cors_origin", "it's mine", "one origin"),
        ("max_budget_usd", 0, "above 0"),
        ("warm_runs", -1, "between 0 and"),
        ("session_expiry_days", 0, "between 1 and"),
        ("memory_mb", 512, "between 1024 and 10240"),
        ("memory_mb", 20480, "between 1024 and 10240"),
        ("memory_mb", None, "null"),
        ("max_session_mb", 4000, "between 1 and 3242"),
        ("max_dead_share", 1, "share below 1"),
        ("max_dead_share", 0, "above 0"),
        ("allowed_tools", "Read", "Read"),
        ("allowed_tools", [1], "list of names"),
        ("allowed_tools", ["Read", "default"], "is not one"),
        ("retain_data", 1, "true or false"),
        ("stack_name", "my stack", "letters"),
        ("repositories", {}, "a list"),
        ("repositories", [{"host": "github.com", "match": ["acme/*"], "access": "push"}], "host, match, access and"),
        ("repositories", [ENTRY | {"host": "https://github.com"}], "no host"),
        ("repositories", [ENTRY | {"match": []}], "at least one"),
        ("repositories", [ENTRY | {"match": ["acme"]}], "owner/name"),
        ("repositories", [ENTRY | {"match": ["acme/(.*)"]}], "owner/name"),
        ("repositories", [ENTRY | {"access": "write"}], "read or push"),
        ("repositories", [ENTRY | {"secret": "a token"}], "names a field"),
        ("repositories", [ENTRY] * 30, "more than 2000 bytes"),
        ("protected_branches", ["my branch"], "is none"),
        ("protected_branches", "main", "main"),
        ("git_identity", {"name": "Claude"}, "name and email"),
        ("git_identity", {"name": "Claude <x>", "email": "a@b"}, "name and email"),
        ("models", [], "at least one"),
        ("models", ["claude-unheard-of"], "no price"),
        ("egress", "closed", "closed"),
        ("egress", {}, "a list of hosts"),
        *(
            ("egress", [name], "no host")
            for name in ("*", "*.com", "https://a.example", "A.example", "127.0.0.1", "a.b.")
        ),
        ("egress", ["x" * 60 + ".example"] * 12, "more than 800 bytes"),
        ("registries", {"gem": "https://rubygems.org"}, "none of pip"),
        *(
            ("registries", {"pip": url}, "needs an address")
            for url in ("http://pypi.org", "https://u:p@pypi.org", "https://pypi.org?a", None)
        ),
        ("kms_key_arn", "arn:aws:kms:eu-west-1:123456789012:alias/mine", "ARN of a KMS key"),
        ("kms_key_arn", "", "ARN of a KMS key"),
        ("network", "public", "null or private"),
        ("vpc", "my-vpc", "id of a VPC"),
        ("vpc", "vpc-0a1b2c3d", "subnets must name at least one subnet"),
        ("subnets", ["subnet-0a1b2c3d"], "nothing without vpc"),
        ("security_group", "sg-0a1b2c3d", "nothing without vpc"),
        ("security_group", "default", "id of a security group"),
        ("intergration_timeout", 29, "intergration_timeout is unknown"),
    ],
)
def test_a_bad_value_stops_with_a_sentence(name: str, value: Any, sentence: str) -> None:
    """The sentence names the value and what would do."""
    with pytest.raises(BadContext, match=sentence) as stopped:
        Deployment.read(CONTEXT | {name: value})
    assert len(str(stopped.value).splitlines()) == 1


def test_what_is_kept_warm_is_a_part_of_what_may_run() -> None:
    """Lambda refuses more provisioned concurrency than is reserved, in the middle of a deploy."""
    said = {"max_concurrent_runs": "2", "warm_runs": "2", "memory_mb": "3008"}
    read = Deployment.read(CONTEXT | said)
    assert (read.warm_runs, read.memory_mb) == (2, 3008)
    with pytest.raises(BadContext, match="warm_runs must not be more than max_concurrent_runs"):
        Deployment.read(CONTEXT | said | {"warm_runs": 3})


def test_a_missing_value_stops_with_its_name() -> None:
    """Nothing is guessed for a value that cdk.json lost."""
    with pytest.raises(BadContext, match="rate is missing"):
        Deployment.read({name: value for name, value in CONTEXT.items() if name != "rate"})
