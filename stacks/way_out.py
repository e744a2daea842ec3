"""The way out of the private network, to the hosts that a deployment names: a firewall, and address translation behind
it. Both are in one zone, since they cost by the hour (docs/network.md).

A connection goes on once its first words were a TLS greeting to one of the names. The firewall believes the name: it
looks into nothing, and cannot tell a server that answers to it from another one at the same address.
"""

from collections.abc import Iterable, Sequence

from aws_cdk import Fn, RemovalPolicy, Stack, aws_ec2, aws_logs, aws_networkfirewall
from constructs import Construct

PUBLIC, WALL = "10.255.0.128/28", "10.255.0.144/28"
ADDRESSES = {"api.anthropic.com": ("160.79.104.0/23", "153.61.224.0/22")}
"""Of hosts that say which are theirs, and that these change with notice only: Anthropic's of IPv4, for what comes in
(platform.claude.com/docs/en/api/ip-addresses, read in November 2026)."""
ANYWHERE = ("0.0.0.0/0",)


class WayOut(Construct):
    """It. From `inside`, by `routes`, `hosts` are reached on port 443, by TLS that names them, and nobody else."""

    def __init__(
        self, scope: Construct, construct_id: str, *, vpc: str, inside: Sequence[str], routes: str, hosts: Sequence[str]
    ) -> None:
        super().__init__(scope, construct_id)
        self._vpc = vpc
        public, public_routes = self._subnet("Public", PUBLIC)
        wall, wall_routes = self._subnet("Wall", WALL)
        firewall = self._firewall(wall, hosts)
        translation = self._translation(public, public_routes)
        self._route("Out", wall_routes, ANYWHERE[0], nat_gateway_id=translation)
        for number, cidr in enumerate(_addresses(hosts)):
            self._route(f"Through{number + 1}", routes, cidr, vpc_endpoint_id=firewall)
        for number, cidr in enumerate(inside):  # back by the way that it came: a firewall wants to see both directions
            self._route(f"Back{number + 1}", public_routes, cidr, vpc_endpoint_id=firewall)

    def _subnet(self, name: str, cidr: str) -> tuple[str, str]:
        """Its id, and that of its routes."""
        zone = Fn.select(0, Fn.get_azs())
        subnet = aws_ec2.CfnSubnet(self, name, vpc_id=self._vpc, cidr_block=cidr, availability_zone=zone).attr_subnet_id
        routes = aws_ec2.CfnRouteTable(self, f"{name}Routes", vpc_id=self._vpc).attr_route_table_id
        aws_ec2.CfnSubnetRouteTableAssociation(self, f"{name}Has", subnet_id=subnet, route_table_id=routes)
        return subnet, routes

    def _route(self, name: str, routes: str, cidr: str, **to: str) -> aws_ec2.CfnRoute:
        return aws_ec2.CfnRoute(self, name, route_table_id=routes, destination_cidr_block=cidr, **to)

    def _translation(self, public: str, routes: str) -> str:
        gateway = aws_ec2.CfnInternetGateway(self, "Internet").attr_internet_gateway_id
        attached = aws_ec2.CfnVPCGatewayAttachment(self, "Attached", vpc_id=self._vpc, internet_gateway_id=gateway)
        outward = self._route("ToInternet", routes, ANYWHERE[0], gateway_id=gateway)
        outward.add_resource_dependency(attached)
        address = aws_ec2.CfnEIP(self, "Address", domain="vpc")
        address.add_resource_dependency(attached)
        nat = aws_ec2.CfnNatGateway(self, "Nat", subnet_id=public, allocation_id=address.attr_allocation_id)
        nat.add_resource_dependency(outward)
        return nat.attr_nat_gateway_id

    def _firewall(self, wall: str, hosts: Iterable[str]) -> str:
        """The id of its endpoint in the one subnet that it has."""
        name = f"{Stack.of(self).stack_name}-way-out"
        firewall = aws_networkfirewall.CfnFirewall(
            self,
            "Firewall",
            firewall_name=name,
            firewall_policy_arn=self._policy(name, hosts),
            vpc_id=self._vpc,
            subnet_mappings=[aws_networkfirewall.CfnFirewall.SubnetMappingProperty(subnet_id=wall)],
        )
        self._note_what_is_dropped(firewall.attr_firewall_arn)
        zone_and_endpoint = Fn.select(0, firewall.attr_endpoint_ids)
        return Fn.select(1, Fn.split(":", zone_and_endpoint))

    def _policy(self, name: str, hosts: Iterable[str]) -> str:
        """What none of the rules passes is noted and dropped, as soon as it says anything."""
        group = aws_networkfirewall.CfnRuleGroup
        policy = aws_networkfirewall.CfnFirewallPolicy
        in_order = "STRICT_ORDER"
        source = group.RulesSourceProperty(rules_string=rules(hosts))
        options = group.StatefulRuleOptionsProperty(rule_order=in_order)
        named = group(
            self,
            "Hosts",
            rule_group_name=name,
            type="STATEFUL",
            capacity=1000,
            rule_group=group.RuleGroupProperty(rules_source=source, stateful_rule_options=options),
        )
        return policy(
            self,
            "Policy",
            firewall_policy_name=name,
            firewall_policy=policy.FirewallPolicyProperty(
                stateless_default_actions=["aws:forward_to_sfe"],
                stateless_fragment_default_actions=["aws:drop"],
                stateful_engine_options=policy.StatefulEngineOptionsProperty(
                    rule_order=in_order, stream_exception_policy="DROP"
                ),
                stateful_default_actions=["aws:drop_established", "aws:alert_established"],
                stateful_rule_group_references=[
                    policy.StatefulRuleGroupReferenceProperty(resource_arn=named.attr_rule_group_arn, priority=1)
                ],
            ),
        ).attr_firewall_policy_arn

    def _note_what_is_dropped(self, firewall: str) -> None:
        log = aws_logs.LogGroup(
            self,
            "Dropped",
            log_group_name=f"/aws/vendedlogs/firewall/{Stack.of(self).stack_name}",
            retention=aws_logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        logging = aws_networkfirewall.CfnLoggingConfiguration
        alerts = logging.LogDestinationConfigProperty(
            log_type="ALERT", log_destination_type="CloudWatchLogs", log_destination={"logGroup": log.log_group_name}
        )
        logging(
            self,
            "Log",
            firewall_arn=firewall,
            logging_configuration=logging.LoggingConfigurationProperty(log_destination_configs=[alerts]),
        )


def rules(hosts: Iterable[str]) -> str:
    """Suricata's, one for each host: TLS that names it, to where it is known to be."""
    return "\n".join(
        f"pass tls $HOME_NET any -> {_at(host)} 443 "
        f"(tls.sni; {_named(host)}; nocase; flow:to_server; sid:{number}; rev:1;)"
        for number, host in enumerate(hosts, start=1)
    )


def _named(host: str) -> str:
    """All of the name, or with `*.` its end."""
    return f'content:"{host[1:]}"; endswith' if host[:2] == "*." else f'content:"{host}"; startswith; endswith'


def _at(host: str) -> str:
    return f"[{','.join(ADDRESSES[host])}]" if host in ADDRESSES else "$EXTERNAL_NET"


def _addresses(hosts: Sequence[str]) -> Sequence[str]:
    """What routes lead to: where the hosts are, as far as that is known of each."""
    known = [cidr for host in hosts for cidr in ADDRESSES.get(host, ANYWHERE)]
    return ANYWHERE if ANYWHERE[0] in known else known
