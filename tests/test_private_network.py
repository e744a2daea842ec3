"""`network: "private"`: where RunClaude can get from its network, by the template alone.

The policies are judged by the engine's own judge. What only AWS can tell is in docs/unproven.md.
"""

import ipaddress
import json
import re
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from ministack.core.iam_evaluator import EvalContext, evaluate_resource_policy

from claude_workflow.local import deploy
from lambdas.bucket.client import s3_client
from lambdas.bucket.grants import grants
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base, Claim
from stacks.deployment import CDK_JSON, BadContext, Deployment
from tests.conftest import Template, Templates

BEDROCK = {"provider": "bedrock", "bedrock_models": ["eu.anthropic.claude-sonnet-5-v1:0"]}
REPOSITORY = {"host": "github.com", "match": ["acme/*"], "access": "read", "secret": "GIT_TOKEN"}
NAMED = {"egress": ["*.example.org"], "registries": {"pip": "https://pypi.org/simple"}, "repositories": [REPOSITORY]}
FORMS: dict[str, dict[str, Any]] = {"bedrock": BEDROCK, "anthropic": {}, "hosts": BEDROCK | NAMED}
"""Of a private network: with no way out, with one to the provider, and with one to hosts that a deployment names."""
ACCOUNT, ANOTHER, REGION = "123456789012", "210987654321", "eu-west-1"
PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Partition": "aws", "AWS::Region": REGION, "AWS::URLSuffix": "amazonaws.com"}
ANTHROPIC, STRANGER = "160.79.104.10", "1.1.1.1"


class Private:
    """The template's network, as somebody in RunClaude's subnets sees it."""

    def __init__(self, template: Template) -> None:
        self._resources = template["Resources"]

    def all(self, kind: str, part: str = "Network") -> dict[str, Any]:
        """The properties of each resource of this kind with `part` in its logical id, by that id, worked out."""
        found = {name: r for name, r in self._resources.items() if r["Type"] == f"AWS::{kind}" and part in name}
        return {name: self._worked_out(r.get("Properties", {})) for name, r in found.items()}

    def one(self, kind: str, part: str = "Network") -> Any:
        """Those of the only one."""
        (properties,) = self.all(kind, part).values()
        return properties

    @property
    def place(self) -> Any:
        """Subnets and security groups of RunClaude, which are its legs' too; nobody else's."""
        functions = self.all("Lambda::Function", "")
        placed = {name: one["VpcConfig"] for name, one in functions.items() if "VpcConfig" in one}
        assert {re.sub("^Functions|[0-9A-F]{8}$", "", name) for name in placed} == {"RunClaude", "RunLeg"}
        run, leg = placed.values()
        assert run == leg
        return run

    def routes_of(self, subnet: str) -> dict[str, str]:
        """Where a subnet's routes lead, by what for."""
        tables = self.all("EC2::SubnetRouteTableAssociation").values()
        (table,) = [one["RouteTableId"] for one in tables if one["SubnetId"] == subnet]
        routes = [dict(route) for route in self.all("EC2::Route").values() if route.pop("RouteTableId") == table]
        return {route.pop("DestinationCidrBlock"): next(iter(route.values())) for route in routes}

    def way(self, address: str, port: int = 443, protocol: str = "tcp") -> str:
        """Whereto a packet of RunClaude's goes next; nothing where its group or the routes let it go nowhere."""
        (group,) = self.place["SecurityGroupIds"]
        rules = self.all("EC2::SecurityGroup")[group]["SecurityGroupEgress"]
        if not any(_lets(rule, address, port, protocol) for rule in rules):
            return ""
        (led,) = {self._led(subnet, address) for subnet in self.place["SubnetIds"]}
        return led

    def _led(self, subnet: str, address: str) -> str:
        here = ipaddress.ip_address(address)
        return next((to for cidr, to in self.routes_of(subnet).items() if here in ipaddress.ip_network(cidr)), "")

    def _worked_out(self, value: Any) -> Any:
        match value:
            case {"Ref": name} | {"Fn::GetAtt": [name, *_]} if name in self._resources or name in PSEUDO:
                return self._called(name, value)
            case {"Fn::Join": [separator, parts]}:
                return separator.join(map(self._worked_out, parts))
            case {"Fn::Select": _}:
                return self._selected(value)
            case dict():
                return {name: self._worked_out(item) for name, item in value.items()}
            case list():
                return [self._worked_out(item) for item in value]
        return value

    def _called(self, name: str, how: dict[str, Any]) -> str:
        if name in PSEUDO:
            return PSEUDO[name]
        return {
            "Arn": f"arn:aws:s3:::{name.lower()}",
            "RegionalDomainName": f"{name.lower()}.s3.{REGION}.amazonaws.com",
        }.get(how.get("Fn::GetAtt", [name, ""])[1], name)

    @staticmethod
    def _selected(value: Any) -> str:
        """Of which zone, or of whose endpoint."""
        zone, endpoint = r'"Fn::Select": \[(\d), \{"Fn::GetAZs', r'"Fn::GetAtt": \["(\w+)", "EndpointIds"\]'
        found = re.search(f"{zone}|{endpoint}", json.dumps(value))
        assert found, value
        return found[2] or f"zone {found[1]}"


def _lets(rule: dict[str, Any], address: str, port: int, protocol: str) -> bool:
    fits = rule["IpProtocol"] in (protocol, "-1") and rule.get("FromPort", 0) <= port <= rule.get("ToPort", 65535)
    return fits and ipaddress.ip_address(address) in ipaddress.ip_network(rule["CidrIp"])


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def private(templates: Templates, form: str) -> Private:
    """The network of a form."""
    return Private(templates(network="private", **FORMS[form]))


def test_without_one_there_is_none(template: Template) -> None:
    """As cdk.json stands, the stack makes no network, and puts no function into any."""
    kinds = {one["Type"].split("::")[1] for one in template["Resources"].values()}
    assert kinds.isdisjoint({"EC2", "NetworkFirewall", "Route53Resolver"})
    assert "VpcConfig" not in json.dumps(template)


# --- ways ---


REACHED = {"bedrock": (), "anthropic": (ANTHROPIC,), "hosts": (ANTHROPIC, STRANGER)}
"""Of the two, those that a packet to port 443 gets on its way to: by the firewall."""


def test_only_what_is_named_is_reached(private: Private, form: str) -> None:
    """RunClaude and its legs are in subnets of two zones, whose routes lead to the bucket, and to the firewall where
    somebody outside is named; its security group lets out TCP to port 443. There is no address of version 6."""
    firewalls = list(private.all("NetworkFirewall::Firewall"))
    assert len(firewalls) == (form != "bedrock")
    for address in (ANTHROPIC, STRANGER):
        assert private.way(address) == (firewalls[0] if address in REACHED[form] else "")
        for port, protocol in ((80, "tcp"), (53, "udp"), (443, "udp"), (8443, "tcp"), (0, "icmp")):
            assert private.way(address, port, protocol) == ""
    networking = [private.all(f"EC2::{kind}") for kind in ("VPC", "Subnet", "Route", "SecurityGroup")]
    assert "Ipv6" not in json.dumps(networking)
    subnets = private.all("EC2::Subnet")
    inside = [subnets[name] for name in private.place["SubnetIds"]]
    assert {one["AvailabilityZone"] for one in inside} == {"zone 0", "zone 1"}
    assert not any(one.get("MapPublicIpOnLaunch") for one in subnets.values())


def test_nothing_comes_in(private: Private) -> None:
    """To RunClaude nobody connects, and to the endpoints RunClaude alone; these connect to nobody."""
    (group,) = private.place["SecurityGroupIds"]
    groups = private.all("EC2::SecurityGroup")
    assert "SecurityGroupIngress" not in groups.pop(group)
    (endpoints,) = groups.values()
    (rule,) = endpoints["SecurityGroupIngress"]
    assert (rule["SourceSecurityGroupId"], "CidrIp" in rule) == (group, False)
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 443, 443)
    assert [rule["CidrIp"] for rule in endpoints["SecurityGroupEgress"]] == ["255.255.255.255/32"]


def test_without_a_host_outside_there_is_no_way_out(templates: Templates) -> None:
    """Neither a gateway to the internet, nor address translation, nor a firewall to be paid."""
    private = Private(templates(network="private", **BEDROCK))
    for kind in ("EC2::InternetGateway", "EC2::NatGateway", "EC2::EIP", "NetworkFirewall::Firewall", "EC2::Route"):
        assert private.all(kind) == {}
    assert {one["VpcEndpointType"] for one in private.all("EC2::VPCEndpoint").values()} == {"Gateway", "Interface"}


@pytest.mark.parametrize("form", ["anthropic", "hosts"], indirect=True)
def test_the_firewall_is_passed_in_both_directions(private: Private) -> None:
    """It has nowhere to send to but the address translation, which alone is beside the gateway to the internet, and
    whose answers go back through it."""
    (firewall,), (nat,), (gateway,) = (
        private.all(kind) for kind in ("NetworkFirewall::Firewall", "EC2::NatGateway", "EC2::InternetGateway")
    )
    wall = private.one("NetworkFirewall::Firewall")["SubnetMappings"][0]["SubnetId"]
    public = private.one("EC2::NatGateway")["SubnetId"]
    assert private.routes_of(wall) == {"0.0.0.0/0": nat}
    inside = [private.all("EC2::Subnet")[name]["CidrBlock"] for name in private.place["SubnetIds"]]
    assert private.routes_of(public) == {"0.0.0.0/0": gateway} | dict.fromkeys(inside, firewall)
    assert {wall, public}.isdisjoint(private.place["SubnetIds"])


PASSED = {
    "anthropic": ['[160.79.104.0/23,153.61.224.0/22] 443 (tls.sni; content:"api.anthropic.com"; startswith; endswith'],
    "hosts": [
        '$EXTERNAL_NET 443 (tls.sni; content:"github.com"; startswith; endswith',
        '$EXTERNAL_NET 443 (tls.sni; content:".example.org"; endswith',
        '$EXTERNAL_NET 443 (tls.sni; content:"pypi.org"; startswith; endswith',
        '$EXTERNAL_NET 443 (tls.sni; content:"files.pythonhosted.org"; startswith; endswith',
    ],
}


@pytest.mark.parametrize("form", ["anthropic", "hosts"], indirect=True)
def test_the_firewall_passes_tls_that_names_a_host_and_drops_all_else(private: Private, form: str) -> None:
    """In the order of its rules, each of which passes one; what no rule passes is dropped, in pieces or not."""
    group, policy = private.one("NetworkFirewall::RuleGroup"), private.one("NetworkFirewall::FirewallPolicy")
    rules = group["RuleGroup"]["RulesSource"]["RulesString"].splitlines()
    wanted = enumerate(PASSED[form], start=1)
    assert rules == [
        f"pass tls $HOME_NET any -> {rule}; nocase; flow:to_server; sid:{number}; rev:1;)" for number, rule in wanted
    ]
    assert group["RuleGroup"]["StatefulRuleOptions"] == {"RuleOrder": "STRICT_ORDER"}
    said = policy["FirewallPolicy"]
    assert said.pop("StatefulRuleGroupReferences")[0]["Priority"] == 1
    assert said == {
        "StatelessDefaultActions": ["aws:forward_to_sfe"],
        "StatelessFragmentDefaultActions": ["aws:drop"],
        "StatefulEngineOptions": {"RuleOrder": "STRICT_ORDER", "StreamExceptionPolicy": "DROP"},
        "StatefulDefaultActions": ["aws:drop_established", "aws:alert_established"],
    }


# --- names ---


NAMES = {
    "bedrock": ["bedrock-runtime.eu-west-1.amazonaws.com"],
    "anthropic": ["api.anthropic.com"],
    "hosts": [
        "bedrock-runtime.eu-west-1.amazonaws.com",
        "github.com",
        "*.example.org",
        "pypi.org",
        "files.pythonhosted.org",
    ],
}


def test_no_other_name_is_answered(private: Private, form: str) -> None:
    """Any other one would tell its owner what is in it: a rule that answers what is needed, and behind it one that
    answers nothing else. Without an answer of the rules' there is none of the resolver's, as it comes."""
    lists = {name: one["Domains"] for name, one in private.all("Route53Resolver::FirewallDomainList").items()}
    group, here = (private.one(f"Route53Resolver::FirewallRuleGroup{what}") for what in ("", "Association"))
    first, last = sorted(group["FirewallRules"], key=lambda rule: rule["Priority"])
    bucket = f"{next(iter(private.all('S3::Bucket', '')))}.s3.eu-west-1.amazonaws.com".lower()
    answered = [bucket, "secretsmanager.eu-west-1.amazonaws.com", *NAMES[form]]
    assert (first["Action"], lists[first["FirewallDomainListId"]]) == ("ALLOW", answered)
    assert (last["Action"], last["BlockResponse"], lists[last["FirewallDomainListId"]]) == ("BLOCK", "NXDOMAIN", ["*"])
    assert len(group["FirewallRules"]) == 2
    assert (here["FirewallRuleGroupId"], here["VpcId"]) == (
        next(iter(private.all("Route53Resolver::FirewallRuleGroup"))),
        next(iter(private.all("EC2::VPC"))),
    )


# --- endpoints ---


def _may(policy: Any, action: str, resource: str, caller: str = ACCOUNT) -> bool:
    """Whether an endpoint lets a request by."""
    who = f"arn:aws:sts::{caller}:assumed-role/r/s"
    asked = EvalContext(who, "AssumedRole", caller, action, resource, REGION)
    return bool(evaluate_resource_policy(policy, asked).decision == "Allow")


def _endpoints(private: Private) -> dict[str, Any]:
    """The policy of each, by its service."""
    found = private.all("EC2::VPCEndpoint").values()
    return {one["ServiceName"].removeprefix(f"com.amazonaws.{REGION}."): one["PolicyDocument"] for one in found}


def _granted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Action and resource of every request that RestoreSession signs for RunClaude."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, name)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    base = Base("session-1", "v1", '"etag"', "2026-01-01T00:00:00+00:00", 1, 0.5, "uuid", 1000, 100)
    claim = Claim("run-1", "session-1", "alice", "e", "runs/run-1/0001-aa/", 0.0, True, "uuid", base)
    also = {"uploaded": "uploads/upload-1/content", "approves_of": "run-0"}
    signed = asdict(grants(Bucket(s3_client(), bucket), claim, "runs/run-1/0000-aa/", 60, **also))
    reads = ("request", "cancel", "session", "resumed", "upload")
    found = []
    for name, grant in signed.items():
        url = urlsplit(grant["url"])
        read = "s3:GetObjectVersion" if "versionId" in parse_qs(url.query) else "s3:GetObject"
        found.append((read if name in reads else "s3:PutObject", f"arn:aws:s3:::{bucket}{url.path}"))
    assert len(found) == 13
    return found


def test_the_bucket_is_reached_by_grants_and_no_other_bucket_is(
    templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every request that RestoreSession signs; not by what others sign, for no other bucket, whoever it belongs to,
    and for nothing that no grant asks."""
    private = Private(templates(network="private", **BEDROCK))
    policy = _endpoints(private)["s3"]
    bucket = next(iter(private.all("S3::Bucket", ""))).lower()
    for action, resource in _granted(bucket, monkeypatch):
        assert _may(policy, action, resource), (action, resource)
        assert not _may(policy, action, resource, caller=ANOTHER)
        assert not _may(policy, action, resource.replace(bucket, "another"))
    ours = {"aws:ResourceAccount": ACCOUNT, "aws:PrincipalAccount": ACCOUNT}
    for statement in policy["Statement"]:  # whose a bucket is, this judge takes from who asks
        assert statement["Condition"] == {"StringEquals": ours}
    assert _may(policy, "s3:ListBucket", f"arn:aws:s3:::{bucket}")  # what is missing is 404 to who may list it
    for key in ("session-1.zip", "locks/session-1.json", "ledger/x", "index/x", "uploads/upload-1/content"):
        assert not _may(policy, "s3:PutObject", f"arn:aws:s3:::{bucket}/{key}")
    for action in ("s3:DeleteObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload"):
        assert not _may(policy, action, f"arn:aws:s3:::{bucket}/runs/run-1/x")


SERVICES = {"bedrock": {"s3", "secretsmanager", "bedrock-runtime"}, "anthropic": {"s3", "secretsmanager"}}


def test_each_service_is_asked_what_a_run_asks(private: Private, form: str) -> None:
    """The secret is read, and with Bedrock the deployment's models are asked, by this account alone."""
    policies = _endpoints(private)
    assert set(policies) == SERVICES.get(form, SERVICES["bedrock"])
    (secret,) = private.all("SecretsManager::Secret", "")
    read = "secretsmanager:GetSecretValue"
    assert _may(policies["secretsmanager"], read, secret)
    assert not _may(policies["secretsmanager"], read, secret, caller=ANOTHER)
    assert not _may(policies["secretsmanager"], read, f"{secret}2")
    assert not _may(policies["secretsmanager"], "secretsmanager:PutSecretValue", secret)
    if "bedrock-runtime" not in policies:
        return
    ask, models = "bedrock:InvokeModelWithResponseStream", policies["bedrock-runtime"]
    profile = f"arn:aws:bedrock:{REGION}:{ACCOUNT}:inference-profile/eu.anthropic.claude-sonnet-5-v1:0"
    model = "arn:aws:bedrock:eu-north-1::foundation-model/anthropic.claude-sonnet-5-v1:0"
    for resource in (profile, model):
        assert _may(models, ask, resource)
        assert not _may(models, ask, resource, caller=ANOTHER)
        assert not _may(models, "bedrock:InvokeModel", resource)
    assert not _may(models, ask, model.replace("sonnet", "opus"))


def test_what_flows_is_noted(private: Private) -> None:
    """For thirty days, what was refused too."""
    flows = private.one("EC2::FlowLog")
    assert (flows["TrafficType"], flows["ResourceId"]) == ("ALL", next(iter(private.all("EC2::VPC"))))
    assert {one["RetentionInDays"] for one in private.all("Logs::LogGroup").values()} == {30}


# --- settings ---


CONTEXT: dict[str, Any] = json.loads(CDK_JSON.read_text())["context"] | {"network": "private"}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"anthropic_base_url": "http://gateway.example"}, "anthropic_base_url names http://gateway.example"),
        ({"supabase_url": "https://db.example:5432"}, "supabase_url names https://db.example:5432"),
        ({"repositories": [REPOSITORY | {"host": "git.example:8443"}]}, "repositories names https://git.example:8443"),
        ({"registries": {"npm": "http://127.0.0.1:4873"}}, "registries names http"),
        ({"supabase_url": "https://db.example:99999"}, "supabase_url names https://db.example:99999"),
        ({"supabase_url": "https://[::1"}, "supabase_url names https://[::1"),
        ({"anthropic_base_url": "https://[2001:db8::1]"}, "anthropic_base_url names https://[2001:db8::1]"),
        ({"repositories": [REPOSITORY | {"host": "192.0.2.1"}]}, "repositories names https://192.0.2.1"),
    ],
)
def test_who_is_spoken_to_otherwise_cannot_be_let_out(said: dict[str, Any], sentence: str) -> None:
    """By TLS, on port 443, by a name: the firewall knows no other way to tell who it is."""
    from lambdas.agent.equipment import NOTHING
    from stacks.outside import hosts

    with pytest.raises(BadContext, match=re.escape(sentence)):
        hosts(Deployment.read(CONTEXT | said), NOTHING)


def test_all_that_a_deployment_names_is_let_out() -> None:
    """The provider, Supabase, repositories, hosts, registries with where their files are, the MCP servers of agent/."""
    from lambdas.agent.equipment import Equipment, Remote
    from stacks.outside import hosts

    said = NAMED | {"supabase_url": "https://x.supabase.co", "registries": {"cargo": "https://index.crates.io"}}
    server = Remote("tracker", "https://mcp.example.com/mcp", None, required=False)
    found = hosts(Deployment.read(CONTEXT | said), Equipment(servers=(server,)))
    assert found == (
        "api.anthropic.com",
        "x.supabase.co",
        "github.com",
        "*.example.org",
        "index.crates.io",
        "static.crates.io",
        "mcp.example.com",
    )


def test_on_one_machine_nobody_is_in_it(templates: Templates, form: str) -> None:
    """The engine gets neither the network nor functions that name it: nothing is left that refers to what is not
    there."""
    fitted = json.dumps(deploy.fit(templates(network="private", **FORMS[form]), {}))
    kept = json.loads(fitted)["Resources"]
    assert set(re.findall(r'"(?:Ref|Fn::GetAtt)": \[?"(\w+)"', fitted)) <= set(kept)
    assert {one["Type"] for one in kept.values()} <= set(deploy.DEPLOYED)
