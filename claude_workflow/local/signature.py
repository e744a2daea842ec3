"""AWS's signatures (Signature Version 4), verified: who signed a request, and that it is what was signed.

The sum is botocore's own, which the callers' SDK used; what a request may look like to be summed up is decided here.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SCOPE = r"(?P<key>[A-Za-z0-9]+)/(?P<day>[0-9]{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)/aws4_request"
NAMES = r"(?P<names>[a-z0-9-]+(?:;[a-z0-9-]+)*)"
SUM = r"(?P<sum>[0-9a-f]{64})"
AUTHORIZATION = re.compile(f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders={NAMES}, Signature={SUM}")
"""The one form of the header that botocore writes."""
DATE = "%Y%m%dT%H%M%SZ"

IN_QUERY = {
    "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
    "X-Amz-Credential": SCOPE,
    "X-Amz-Date": "[0-9]{8}T[0-9]{6}Z",
    "X-Amz-Expires": "[0-9]{1,6}",
    "X-Amz-SignedHeaders": NAMES,
    "X-Amz-Signature": SUM,
}
"""What a presigned URL has to say, and how."""
TOKEN = "X-Amz-Security-Token"

SKEW = timedelta(minutes=5)
"""How far from now a request may be dated; the strictest that AWS's services are."""


class Unsigned(Exception):
    """The request is not signed, or not by whom or for what it says; the text is a sentence without its content."""


@dataclass(frozen=True)
class Signed:
    """A request as the guard has read it: each name once, each value in ASCII."""

    method: str
    path: str
    """As sent, percent-encoded."""
    query: Mapping[str, str]
    """Decoded."""
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def is_link(self) -> bool:
        """Whether it carries its signature in its query, as a presigned URL does."""
        return "X-Amz-Signature" in self.query


@dataclass(frozen=True)
class Claim:
    """What a request says of its signature."""

    key: str
    region: str
    service: str
    headers: tuple[str, ...]
    """Names of the signed headers."""
    signature: str
    date: str
    token: str
    is_link: bool

    def verify(self, request: Signed, secret: str, body: bytes) -> None:
        """Raises `Unsigned` unless this is the signature of `request`, with `body`, by the key with this secret.

        Where the request names its body's hash (as all of S3 has to), the name is verified and `body` left alone.
        """
        query = {name: value for name, value in request.query.items() if name != "X-Amz-Signature"}
        encoded = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
        signed = AWSRequest(
            method=request.method,
            url=f"http://{request.headers['host']}{request.path}?{encoded}",
            headers={name: request.headers[name] for name in self.headers},
            data=body,
        )
        signed.context["timestamp"] = self.date
        auth = self._auth(Credentials(self.key, secret))
        computed = auth.signature(auth.string_to_sign(signed, auth.canonical_request(signed)), signed)
        if not hmac.compare_digest(computed, self.signature):
            raise Unsigned("The signature is not this request's.")

    def _auth(self, credentials: Credentials) -> SigV4Auth:
        if self.is_link:
            return S3SigV4QueryAuth(credentials, self.service, self.region)
        kind = S3SigV4Auth if self.service == "s3" else SigV4Auth
        return kind(credentials, self.service, self.region)


def claim(request: Signed, now: datetime | None = None) -> Claim:
    """Who says to have signed, and for when. Raises `Unsigned` where that is missing, ambiguous, or over.

    `now` is the current time, if not the clock's.
    """
    now = now or datetime.now(UTC)
    claimed = _in_query(request, now) if request.is_link else _in_header(request, now)
    missing = {"host", *(name for name in request.headers if name.startswith("x-amz-"))} - set(claimed.headers)
    if (
        missing
        or not set(claimed.headers) <= set(request.headers)
        or list(claimed.headers) != sorted({*claimed.headers})
    ):
        raise Unsigned("Host, and every header x-amz-…, has to be there once and to be signed.")
    return claimed


def _in_query(request: Signed, now: datetime) -> Claim:
    if "authorization" in request.headers:
        raise Unsigned("One signature is enough.")
    said = {name: re.fullmatch(form, request.query.get(name, "")) for name, form in IN_QUERY.items()}
    others = {name for name in request.query if _signs(name)} - {*IN_QUERY, TOKEN}
    scope, date = said["X-Amz-Credential"], request.query.get("X-Amz-Date", "")
    if not all(said.values()) or others or not scope or scope["service"] != "s3":
        raise Unsigned("This is not a presigned URL of S3.")
    since = _signed_at(date, scope["day"])
    if not since - SKEW <= now <= since + timedelta(seconds=int(request.query["X-Amz-Expires"])):
        raise Unsigned("Request has expired")
    return Claim(
        *(scope["key"], scope["region"], scope["service"], tuple(request.query["X-Amz-SignedHeaders"].split(";"))),
        *(request.query["X-Amz-Signature"], date, request.query.get(TOKEN, ""), True),
    )


def _in_header(request: Signed, now: datetime) -> Claim:
    if any(map(_signs, request.query)):
        raise Unsigned("One signature is enough.")
    said = AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if not said:
        raise Unsigned("This request has no signature of the kind that is asked for.")
    date = request.headers.get("x-amz-date", "")
    if abs(now - _signed_at(date, said["day"])) > SKEW:
        raise Unsigned("The request's date is not now.")
    if said["service"] == "s3" and not re.fullmatch("[0-9a-f]{64}", request.headers.get("x-amz-content-sha256", "")):
        raise Unsigned("The body is not signed.")
    return Claim(
        *(said["key"], said["region"], said["service"], tuple(said["names"].split(";"))),
        *(said["sum"], date, request.headers.get("x-amz-security-token", ""), False),
    )


def _signs(name: str) -> bool:
    """Whether a parameter of a query says something of a signature, of any version, or stands for a signed header."""
    return name.lower().startswith("x-amz-") or name.lower() in ("awsaccesskeyid", "signature", "expires")


def _signed_at(date: str, day: str) -> datetime:
    if not re.fullmatch(IN_QUERY["X-Amz-Date"], date) or not date.startswith(day):
        raise Unsigned("The request's date is missing, or is not its signature's.")
    try:
        return datetime.strptime(date, DATE).replace(tzinfo=UTC)
    except ValueError:
        raise Unsigned("The request's date is not a date.") from None


def of_body(request: Signed, body: bytes) -> bool:
    """Whether `body` is the one whose hash the request names, if it names one."""
    named = request.headers.get("x-amz-content-sha256")
    return named is None or hmac.compare_digest(named, hashlib.sha256(body).hexdigest())
