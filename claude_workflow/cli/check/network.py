"""Rows of the private network (`network: "private"`): what is kept of it, beside what the template has."""

import json
from collections.abc import Iterator
from typing import Any

from claude_workflow.cli.check.account import AGENTS
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import NotAsked, compared
from lambdas.strict import Json

PART = "Network"
"""What the logical ids of all that is in it have in them."""


def _vpc(kit: Kit) -> str:
    """Its id. Raises `NotAsked` where the stack has none."""
    if not kit.account.all("EC2::VPC", PART):
        raise NotAsked("The stack has no network of its own.")
    return kit.account.id("EC2::VPC", PART)


def _in(vpc: str) -> Json:
    """A filter of EC2's for what is in it."""
    return {"Filters": [{"Name": "vpc-id", "Values": [vpc]}]}


@compared
def groups(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What each security group lets in and out."""
    vpc, wanted = _vpc(kit), kit.account.all("EC2::SecurityGroup", PART)
    names = {kit.account.called[name]: name for name in wanted}
    for kept in kit.client("ec2").describe_security_groups(**_in(vpc))["SecurityGroups"]:
        if name := names.get(kept["GroupId"]):  # the VPC's usual one has nobody in it
            yield f"{name} in", _let(kept["IpPermissions"]), _had(wanted[name].get("SecurityGroupIngress", []))
            yield f"{name} out", _let(kept["IpPermissionsEgress"]), _had(wanted[name]["SecurityGroupEgress"])
    for state in AGENTS:
        place = kit.account.function(state).get("VpcConfig") or {}
        yield state, place.get("SecurityGroupIds", []), [kit.account.id("EC2::SecurityGroup", f"{PART}Group")]


def _let(permissions: list[Json]) -> list[str]:
    """The rules as EC2 keeps them, in short."""
    return sorted(
        f"{one['IpProtocol']} {one.get('FromPort', '')} {peer}" for one in permissions for peer in _peers(one)
    )


def _peers(permission: Json) -> Iterator[str]:
    """With whom."""
    for kind, name in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("PrefixListIds", "PrefixListId")):
        yield from (found[name] for found in permission.get(kind, []))
    yield from ("a group" for _ in permission.get("UserIdGroupPairs", []))


def _had(rules: list[Json]) -> list[str]:
    """The template's, likewise."""
    return sorted(f"{one['IpProtocol']} {one['FromPort']} {one.get('CidrIp', 'a group')}" for one in rules)


@compared
def routes(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Whereto each table leads, but for addresses inside, and for S3's, to which its endpoint is the way."""
    vpc, wanted = _vpc(kit), kit.account.all("EC2::Route", PART).values()
    placed = kit.account.all("EC2::SubnetRouteTableAssociation", PART).values()
    names = {kit.account.called[name]: name for name in kit.account.all("EC2::RouteTable", PART)}
    for kept in kit.client("ec2").describe_route_tables(**_in(vpc))["RouteTables"]:
        name = names.get(kept["RouteTableId"], "the main table")
        had = [_led(one) for one in wanted if _named(one["RouteTableId"]) == name]
        led = [_led(one) for one in kept["Routes"] if "DestinationPrefixListId" not in one]
        yield name, sorted(way for way in led if not way.endswith("to local")), sorted(had)
        subnets = [one["SubnetId"] for one in kept["Associations"] if "SubnetId" in one]
        meant = [_named(one["SubnetId"]) for one in placed if _named(one["RouteTableId"]) == name]
        yield f"{name} of", sorted(subnets), sorted(kit.account.called[subnet] for subnet in meant)


def _led(route: Json) -> str:
    """What for, and to what kind of thing, by how EC2's ids begin."""
    kinds = {"NatGatewayId": "nat", "VpcEndpointId": "vpce", "GatewayId": "igw"}
    to = next((name for name in kinds if name in route), "something else")
    kind = route[to].partition("-")[0] if isinstance(route.get(to), str) else kinds.get(to, to)
    return f"{route.get('DestinationCidrBlock') or route['DestinationIpv6CidrBlock']} to {kind}"


def _named(reference: Json) -> str:
    """The logical id that a template's `Fn::GetAtt` names."""
    return str(reference["Fn::GetAtt"][0])


@compared
def endpoints(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What each endpoint lets by."""
    vpc, wanted = _vpc(kit), kit.account.all("EC2::VPCEndpoint", PART).values()
    had = {_service(one["ServiceName"]): _outline(one["PolicyDocument"]) for one in wanted}
    found = kit.client("ec2").describe_vpc_endpoints(**_in(vpc))["VpcEndpoints"]
    kept = {_service(one["ServiceName"]): _outline(json.loads(one.get("PolicyDocument") or "{}")) for one in found}
    for service in sorted({*had, *kept}):
        yield service, kept.get(service), had.get(service)


def _service(name: Any) -> str:
    """The service's own name, of the whole one that an endpoint has."""
    whole = name if isinstance(name, str) else name["Fn::Join"][1][-1]
    return str(whole.rpartition(".")[2])


def _outline(policy: Json) -> list[str]:
    """Actions and conditions, and of how many resources; what these are called, the template leaves open."""
    return sorted(
        f"{_listed(one['Action'])} of {_number(one['Resource'])} if {_conditions(one)}"
        for one in policy.get("Statement", [])
    )


def _conditions(statement: Json) -> list[str]:
    return [f"{kind} {name}" for kind, names in statement.get("Condition", {}).items() for name in sorted(names)]


def _number(resources: Any) -> object:
    return "all" if "*" in _listed(resources) else len(_listed(resources))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@compared
def names(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What the resolver does with names, and where it cannot tell."""
    vpc, resolver = _vpc(kit), kit.client("route53resolver")
    (group,) = kit.account.all("Route53Resolver::FirewallRuleGroup", f"{PART}Resolver").values()
    lists = kit.account.all("Route53Resolver::FirewallDomainList", PART)
    had = [
        (one["Action"], len(lists[_named(one["FirewallDomainListId"])]["Domains"])) for one in group["FirewallRules"]
    ]
    kept = [(rule["Action"], _domains(resolver, rule)) for rule in _rules(resolver, vpc)]
    yield "rules", [f"{action} {len(domains)}" for action, domains in kept], [f"{action} {n}" for action, n in had]
    yield "the last one", [domains for _, domains in kept][-1:], [["*"]]
    config = resolver.get_firewall_config(ResourceId=vpc)["FirewallConfig"]
    yield "fail open", config["FirewallFailOpen"], "DISABLED"


def _rules(resolver: Any, vpc: str) -> list[Json]:
    """Those of all groups that the network has, in their order."""
    groups = resolver.list_firewall_rule_group_associations(VpcId=vpc)["FirewallRuleGroupAssociations"]
    groups = [one["FirewallRuleGroupId"] for one in sorted(groups, key=lambda one: one["Priority"])]
    rules = (resolver.list_firewall_rules(FirewallRuleGroupId=group)["FirewallRules"] for group in groups)
    return [rule for those in rules for rule in sorted(those, key=lambda one: one["Priority"])]


def _domains(resolver: Any, rule: Json) -> list[str]:
    found = resolver.list_firewall_domains(FirewallDomainListId=rule["FirewallDomainListId"])["Domains"]
    return [domain.rstrip(".") for domain in found]


@compared
def firewall(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What the firewall passes, and what it does with all else."""
    if not kit.account.all("NetworkFirewall::Firewall", PART):
        raise NotAsked("The stack has no firewall.")
    asked, account = kit.client("network-firewall"), kit.account
    had = account.properties("NetworkFirewall::RuleGroup")["RuleGroup"]["RulesSource"]["RulesString"]
    arn = account.id("NetworkFirewall::RuleGroup")
    kept = asked.describe_rule_group(RuleGroupArn=arn)["RuleGroup"]["RulesSource"]["RulesString"]
    yield "rules", kept.splitlines(), had.splitlines()
    wanted = account.properties("NetworkFirewall::FirewallPolicy")["FirewallPolicy"]
    arn = account.id("NetworkFirewall::FirewallPolicy")
    policy = asked.describe_firewall_policy(FirewallPolicyArn=arn)["FirewallPolicy"]
    for part in ("StatefulDefaultActions", "StatelessDefaultActions", "StatelessFragmentDefaultActions"):
        yield part, sorted(policy.get(part, [])), sorted(wanted[part])
    yield "groups of rules", len(policy.get("StatefulRuleGroupReferences", [])), 1
