"""Secrets Manager's part: one secret with a key for the model, for any caller."""

import json
from contextlib import AbstractContextManager

from tests.support.http_servers import Answering, listening

SECRET = json.dumps({"ANTHROPIC_API_KEY": "sk-scripted"})
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:model"


class _Vault(Answering):
    def do_POST(self) -> None:
        """GetSecretValue."""
        self.received()
        self.answer(200, json.dumps({"ARN": ARN, "Name": "model", "SecretString": SECRET}).encode())


def serving() -> AbstractContextManager[str]:
    """Its URL, on a free loopback port; ended on the way out."""
    return listening(_Vault)
