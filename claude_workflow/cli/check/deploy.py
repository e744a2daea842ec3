"""The row of a deploy while the service is in use."""

import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from tempfile import TemporaryFile

from claude_workflow.cli.check.contract import NO_MODEL, NOBODYS, counted
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, NotAsked
from lambdas.strict import Json

EXPECTED = {"404 SessionNotFound", "422 ModelRejected", "502 ModelUnauthorized"}
"""What the two kinds of posts are answered at any other time."""


def _deployed(kit: Kit) -> Json:
    """Runs the operator's command; meanwhile a post a second, one half refused by RestoreSession, the other half by the
    provider, so that three of the functions are called, and nothing is paid."""
    if not kit.redeploy:
        raise NotAsked("It takes a deploy that changes something: --redeploy 'npx cdk deploy -c max_turns=51'.")
    posts: list[Future[Json]] = []
    with TemporaryFile() as output, ThreadPoolExecutor(32) as pool:
        process = subprocess.Popen(kit.redeploy, shell=True, stdout=output, stderr=output)
        while process.poll() is None:
            how = {"session_id": NOBODYS} if len(posts) % 2 else {"model": NO_MODEL}
            posts.append(pool.submit(partial(kit.run, "Hello.", **how)))
            time.sleep(1)
        output.seek(0)
        said = output.read()[-500:].decode(errors="replace")
        return {"exit": process.returncode, "counts": counted([post.result() for post in posts]), "said": said}


def _went_on(raw: Json) -> str | None:
    if raw["exit"]:
        return f"The command ended with {raw['exit']}: {raw['said']}"
    others = {*raw["counts"]} - EXPECTED
    return f"Some posts were answered otherwise: {sorted(others)}" if others else None


ASKED: dict[str, Ask] = {"redeploy": _deployed}
JUDGED: dict[str, Judge] = {"redeploy": _went_on}
