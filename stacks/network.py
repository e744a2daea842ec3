"""A network for RunClaude alone, of which only what a run needs is reached (`network: "private"`; docs/network.md).

Four walls, each for what the others let by:

- routes: to the bucket, and where the deployment names somebody outside AWS, through a firewall (`stacks.way_out`)
- a security group: TCP to port 443
- policies of the endpoints: this bucket, this secret, these models, as asked by this account; so no other account's
  bucket is written by a link of its owner's
- a resolver that knows the names which are needed, and no other one: else any name would carry data out

Lambda itself needs nothing here: it fetches images, and takes logs and traces, by a network of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_cdk import Aws, Fn, RemovalPolicy, aws_ec2, aws_iam, aws_logs, aws_route53resolver
from constructs import Construct

from stacks.deployment import Deployment
from stacks.models import INVOKE, model_arns
from stacks.secret import ModelSecret
from stacks.storage import Storage
from stacks.way_out import WayOut

CIDR = "10.255.0.0/24"
INSIDE = ("10.255.0.0/26", "10.255.0.64/26")
"""RunClaude's subnets, in two zones: Lambda needs one address for many functions that are alike."""
NOTHING = aws_ec2.CfnSecurityGroup.EgressProperty(
    ip_protocol="icmp", from_port=252, to_port=86, cidr_ip="255.255.255.255/32", description="Nothing"
)
"""To nobody, of a kind that there is not: without any rule a security group would let everything out."""


@dataclass(frozen=True)
class Network:
    """Where RunClaude is put."""

    subnets: Sequence[str]
    """Ids."""
    group: str
    """Id of its security group."""


class PrivateNetwork(Construct):
    """It, with all that is in it. What each part costs stands in docs/network.md."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        deployment: Deployment,
        storage: Storage,
        secret: ModelSecret,
        outside: Sequence[str],
    ) -> None:
        super().__init__(scope, construct_id)
        # Names of endpoints are answered with their addresses in here only with both.
        vpc = aws_ec2.CfnVPC(self, "Vpc", cidr_block=CIDR, enable_dns_support=True, enable_dns_hostnames=True)
        self._vpc = vpc.attr_vpc_id
        self._routes = aws_ec2.CfnRouteTable(self, "Routes", vpc_id=self._vpc).attr_route_table_id
        subnets = [self._subnet(number, cidr) for number, cidr in enumerate(INSIDE)]
        # S3's addresses have no name that a template could give; the routes say which are reached at all.
        tls = _rule(aws_ec2.CfnSecurityGroup.EgressProperty, cidr_ip="0.0.0.0/0")
        group = self._group("Group", "RunClaude: nothing in, and TLS out, as far as there are routes", out=tls)
        self.network = Network(subnets, group)

        services = _services(deployment, secret)
        self._reach_the_bucket(storage)
        self._reach(services)
        if outside:
            WayOut(self, "WayOut", vpc=self._vpc, inside=INSIDE, routes=self._routes, hosts=outside)
        here = [f"{service}.{Aws.REGION}.{Aws.URL_SUFFIX}" for service in services]
        self._answer_only([storage.bucket.bucket_regional_domain_name, *here, *outside])
        self._note_what_flows()

    def _subnet(self, number: int, cidr: str) -> str:
        name = f"Inside{number + 1}"
        zone = Fn.select(number, Fn.get_azs())
        subnet = aws_ec2.CfnSubnet(self, name, vpc_id=self._vpc, cidr_block=cidr, availability_zone=zone).attr_subnet_id
        aws_ec2.CfnSubnetRouteTableAssociation(self, f"{name}Routes", subnet_id=subnet, route_table_id=self._routes)
        return subnet

    def _group(self, name: str, description: str, *, into: Sequence[Any] = (), out: Any = NOTHING) -> str:
        return aws_ec2.CfnSecurityGroup(
            self,
            name,
            group_description=description,
            vpc_id=self._vpc,
            security_group_ingress=list(into) or None,
            security_group_egress=[out],
        ).attr_group_id

    def _reach_the_bucket(self, storage: Storage) -> None:
        """As grants do: by requests that RestoreSession signed (`lambdas.bucket.grants`)."""
        bucket = storage.bucket
        ours = {"aws:ResourceAccount": Aws.ACCOUNT_ID, "aws:PrincipalAccount": Aws.ACCOUNT_ID}
        sessions, uploads, runs = (bucket.arn_for_objects(key) for key in ("session-*.zip", "uploads/*", "runs/*"))
        statements = [
            _allowing(["s3:GetObject", "s3:GetObjectVersion"], [sessions], ours),
            _allowing(["s3:GetObject"], [uploads, runs], ours),
            _allowing(["s3:PutObject"], [runs], ours),
            # Else what is not there would be forbidden, instead of missing: whether a run is cancelled is asked so.
            _allowing(["s3:ListBucket"], [bucket.bucket_arn], ours),
        ]
        aws_ec2.CfnVPCEndpoint(
            self,
            "Bucket",
            vpc_id=self._vpc,
            service_name=f"com.amazonaws.{Aws.REGION}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[self._routes],
            policy_document=aws_iam.PolicyDocument(statements=statements),
        )

    def _reach(self, services: Mapping[str, aws_iam.PolicyStatement]) -> None:
        """By endpoints that RunClaude alone connects to, each of which lets by what its statement allows."""
        asked = _rule(aws_ec2.CfnSecurityGroup.IngressProperty, source_security_group_id=self.network.group)
        group = self._group("EndpointsGroup", "Endpoints: RunClaude in, nothing out", into=[asked])
        for service, statement in services.items():
            aws_ec2.CfnVPCEndpoint(
                self,
                service.title().replace("-", ""),
                vpc_id=self._vpc,
                service_name=f"com.amazonaws.{Aws.REGION}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=list(self.network.subnets),
                security_group_ids=[group],
                policy_document=aws_iam.PolicyDocument(statements=[statement]),
            )

    def _answer_only(self, names: Iterable[str]) -> None:
        """Of an allowed name, whatever it is another name of is answered too: most are of a provider's servers."""
        listed = aws_route53resolver.CfnFirewallDomainList(self, "Names", domains=list(names))
        others = aws_route53resolver.CfnFirewallDomainList(self, "AllNames", domains=["*"])
        rule = aws_route53resolver.CfnFirewallRuleGroup.FirewallRuleProperty
        rules = [
            rule(
                priority=1,
                action="ALLOW",
                firewall_domain_list_id=listed.attr_id,
                firewall_domain_redirection_action="TRUST_REDIRECTION_DOMAIN",
            ),
            rule(priority=2, action="BLOCK", block_response="NXDOMAIN", firewall_domain_list_id=others.attr_id),
        ]
        group = aws_route53resolver.CfnFirewallRuleGroup(self, "Resolver", firewall_rules=rules)
        aws_route53resolver.CfnFirewallRuleGroupAssociation(
            self, "ResolverHere", firewall_rule_group_id=group.attr_id, vpc_id=self._vpc, priority=101
        )

    def _note_what_flows(self) -> None:
        """By addresses and ports: what was tried, too."""
        log = aws_logs.LogGroup(
            self, "Flows", retention=aws_logs.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
        )
        role = aws_iam.Role(self, "FlowsRole", assumed_by=aws_iam.ServicePrincipal("vpc-flow-logs.amazonaws.com"))
        log.grant(role, "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
        aws_ec2.CfnFlowLog(
            self,
            "FlowLog",
            resource_id=self._vpc,
            resource_type="VPC",
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=log.log_group_arn,
            deliver_logs_permission_arn=role.role_arn,
        )


def _rule(kind: Callable[..., Any], **of: str) -> Any:
    return kind(ip_protocol="tcp", from_port=443, to_port=443, description="TLS", **of)


def _services(deployment: Deployment, secret: ModelSecret) -> Mapping[str, aws_iam.PolicyStatement]:
    """AWS services that RunClaude asks by itself, and what is asked of each."""
    ours = {"aws:PrincipalAccount": Aws.ACCOUNT_ID}
    services = {
        "secretsmanager": _allowing(["secretsmanager:GetSecretValue"], [secret.secret.secret_arn], ours),
    }
    if deployment.provider == "bedrock":
        models = [arn for model in deployment.bedrock_models for arn in model_arns(model)]
        services["bedrock-runtime"] = _allowing([INVOKE], models, ours)
    return services


def _allowing(actions: list[str], resources: list[str], equal: Mapping[str, Any]) -> aws_iam.PolicyStatement:
    return aws_iam.PolicyStatement(
        principals=[aws_iam.AnyPrincipal()],
        actions=actions,
        resources=resources,
        conditions={"StringEquals": dict(equal)},
    )
