"""The S3 client of the functions that keep the record: botocore's, since boto3 takes half as long again to start."""

from typing import Any

import botocore.session
from botocore.config import Config
from botocore.session import Session

CONFIG = Config(
    signature_version="s3v4",  # presigned URLs that pin a version or a header need it
    connect_timeout=2,
    read_timeout=5,
    retries={"mode": "standard", "total_max_attempts": 3},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    # Else botocore presigns for the global host, which redirects away from a new bucket, and a redirect is unsigned.
    s3={"addressing_style": "virtual", "us_east_1_regional_endpoint": "regional"},
)
"""Seconds short enough that a silent S3 is noticed, and asked again, within the function's own timeout; and so few
attempts that one which refuses for ever (their pauses are up to 1 s and 2 s) is named before that timeout."""


def s3_client(session: Session | None = None) -> Any:
    """A client for the region that the function's environment names, or for its endpoint, where it names one: that of
    an address, such as the local engine's, is asked for a bucket by path whatever the style. `session` is one that
    makes other clients, too."""
    return (session or botocore.session.get_session()).create_client("s3", config=CONFIG)
