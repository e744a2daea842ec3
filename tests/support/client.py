"""A client of a service: it posts, and looks at what came of it."""

import io
import json
import time
import zipfile
from typing import Any

import urllib3

from claude_workflow.local.service import Service
from lambdas.archive.format import Limits
from lambdas.strict import Json

HTTP = urllib3.PoolManager(maxsize=32, retries=False, timeout=120)


ANY = Limits(members=10**6, bytes=10**10, ratio=2000)


class Client:
    """Posts, and looks at what came of it."""

    def __init__(self, running: Service) -> None:
        self.service = running
        self.s3 = running.engine.client("s3")

    def post(self, body: object, **headers: str) -> tuple[int, Json, dict[str, str]]:
        sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        sending = {"content-type": "application/json", "x-api-key": self.service.key}
        sending |= {name.replace("_", "-"): value for name, value in headers.items()}
        response = HTTP.request("POST", self.service.url, body=sent, headers=sending)
        return response.status, response.json(), {name.lower(): value for name, value in response.headers.items()}

    def ask(self, prompt: str, session: Json | None = None, **more: Any) -> Json:
        """A request that has to succeed, in a new session or in that of an earlier answer."""
        body = {"prompt": prompt, **more} | ({"session_id": session["session_id"]} if session else {})
        status, answer, headers = self.post(body)
        while answer.get("code") == "Throttled":
            time.sleep(int(headers["retry-after"]))
            status, answer, headers = self.post(body)
        assert status == 200, answer
        return answer

    def archive(self, answer: Json) -> zipfile.ZipFile:
        got = self.s3.get_object(Bucket=self.service.deployed.bucket, Key=f"{answer['session_id']}.zip")
        return zipfile.ZipFile(io.BytesIO(got["Body"].read()))

    def metadata(self, answer: Json) -> dict[str, str]:
        head = self.s3.head_object(Bucket=self.service.deployed.bucket, Key=f"{answer['session_id']}.zip")
        return dict(head["Metadata"])

    def link(self, key: str) -> str:
        params = {"Bucket": self.service.deployed.bucket, "Key": key}
        return str(self.s3.generate_presigned_url("get_object", Params=params))

    def keys(self, prefix: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=self.service.deployed.bucket, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]
