"""Findings of cdk-nag that are meant to be so, each with its reason, beside the construct that it concerns.

The acknowledgement is aws-cdk-lib's own and ends up in no template; only the tests run cdk-nag.
"""

from collections.abc import Mapping

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def meant(construct: IConstruct, reasons: Mapping[str, str]) -> None:
    """Acknowledges rules of cdk-nag's AwsSolutions, by id and with the reason, for a construct and all below it."""
    Validations.of(construct).acknowledge(
        *(Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason) for rule, reason in reasons.items())
    )
