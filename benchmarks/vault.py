"""What the functions ask beside S3: Secrets Manager, of one secret with a key for the model, and EventBridge, which
takes any event; for any caller."""

import json
from contextlib import AbstractContextManager

from tests.support.http_servers import Answering, listening

SECRET = json.dumps({"ANTHROPIC_API_KEY": "sk-scripted"})
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:model"
ANSWERS = {
    "secretsmanager.GetSecretValue": {"ARN": ARN, "Name": "model", "SecretString": SECRET},
    "AWSEvents.PutEvents": {"FailedEntryCount": 0, "Entries": [{"EventId": "event"}]},
}


class _Vault(Answering):
    def do_POST(self) -> None:
        """One of `ANSWERS`."""
        self.received()
        self.answer(200, json.dumps(ANSWERS[self.headers["x-amz-target"]]).encode())


def serving() -> AbstractContextManager[str]:
    """Its URL, on a free loopback port; ended on the way out."""
    return listening(_Vault)
