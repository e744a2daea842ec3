"""The pages and their addresses."""

import hashlib
import json
import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qsl, quote

from botocore.exceptions import BotoCoreError, ClientError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from claude_workflow.cli import ask
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Endpoint, Unusable
from claude_workflow.cli.sessions import purge
from claude_workflow.cli.sessions.held import telling
from claude_workflow.console import changes, plot, run, session
from claude_workflow.console.conversation import Conversations, picture
from claude_workflow.console.guard import Guard, Keys
from claude_workflow.console.pages import Pages, shown
from claude_workflow.console.run import Looked, Replays, Stories
from claude_workflow.console.runs import ENDINGS, SPANS, Runs, Wanted
from lambdas.bucket import removal
from lambdas.bucket.contents import Contents
from lambdas.bucket.objects import Bucket, storage
from lambdas.bucket.versions import session_key
from lambdas.errors import FileNotFound, SessionNotFound, WorkflowError
from lambdas.request import RUN_ID, SESSION_ID
from lambdas.strict import Json

STAYS = {"purge": purge.STAYS, "remove": removal.STAYS}
"""What can be done to a session, and what it leaves."""

ALONE = {"Content-Security-Policy": "default-src 'none'; sandbox"}
"""Of a stranger's bytes, wherever they are opened."""

BYTES = "application/octet-stream"

REFUSALS = (BotoCoreError, ClientError, TimeoutError, WorkflowError, Unusable)
"""What storage, the machine or the service say no with."""

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Behind:
    """What the pages are about."""

    backend: Backend
    endpoint: Endpoint | None
    """The service's API, by which one asks; None where none runs."""
    name: str
    """What to call it."""

    @property
    def acts(self) -> bool:
        """Whether executions can be started."""
        return bool(self.backend.state_machine_arn)


class Console:
    """What the pages have in common."""

    def __init__(self, behind: Behind, keys: Keys) -> None:
        self.behind = behind
        self.bucket = Bucket(behind.backend.client("s3"), behind.backend.bucket)
        self.pages = Pages(keys.place, keys.token)
        self.runs = Runs(self.bucket)
        self.conversations = Conversations(self.bucket)
        self.stories = Stories(behind.backend)
        self.replays = Replays(behind.backend, self.bucket)

    # Runs

    def list(self, request: Request) -> Response:
        """The runs."""
        return self.pages.page("runs.html", **self._listed(request), seen="", sums=None)

    def list_again(self, request: Request) -> Response:
        """Their table, where it has changed."""
        return self.pages.part("runs_table.html", request.query_params.get("seen"), **self._listed(request))

    def sums(self, request: Request) -> Response:
        """What they come to."""
        wanted = Wanted.of(dict(request.query_params))
        rows, whole = self.runs.all(wanted)
        sums = {
            "charts": plot.charts(rows),
            "callers": plot.sums(rows, plot.caller),
            "codes": plot.sums(rows, plot.code),
            "all": plot.sums(rows, lambda _: "all"),
            "whole": whole,
        }
        if request.headers.get("hx-request"):
            return self.pages.page("sums.html", sums=sums, wanted=wanted)
        return self.pages.page("runs.html", **self._listed(request), seen="", sums=sums)

    def _listed(self, request: Request) -> dict[str, object]:
        query = dict(request.query_params)
        wanted = Wanted.of(query)
        return {
            "behind": self.behind,
            "wanted": wanted,
            "page": self.runs.page(wanted, query.get("behind")),
            "place": query.get("behind"),
            "endings": ENDINGS,
            "spans": list(SPANS),
        }

    # One run

    def run(self, request: Request) -> Response:
        """A run, with its states where they are told at once."""
        found = self._looked(request)
        return self.pages.page("run.html", **self._run(request, found, quick=self.stories.quick), seen="")

    def run_again(self, request: Request) -> Response:
        """The same without what surrounds it, where it has changed."""
        found = self._looked(request)
        facts = self._run(request, found, quick=self.stories.quick)
        return self.pages.part("run_live.html", request.query_params.get("seen"), **facts)

    def states(self, request: Request) -> Response:
        """What a run went through, wherever that has to be asked for."""
        found = self._looked(request)
        facts = self._run(request, found, quick=True)
        return self.pages.page("states.html" if request.headers.get("hx-request") else "run.html", **facts, seen="")

    def message(self, request: Request) -> Response:
        """One message as it is, as text."""
        messages = self.conversations.of(self._looked(request).run.run_id)
        number = request.path_params["number"]
        if not 1 <= number <= len(messages):
            raise HTTPException(404)
        return PlainTextResponse(messages[number - 1])

    def replay(self, request: Request) -> Response:
        """Begins a replay."""
        found, verb = self._looked(request), request.scope["form"].get("verb")
        if verb not in run.VERBS or not self.behind.acts:
            raise HTTPException(400, "That is no way to replay a run here.")
        self.replays.begin(found.run.run_id, verb)
        return self._to(f"/runs/{found.run.run_id}")

    def _looked(self, request: Request) -> Looked:
        run_id = request.path_params["run_id"]
        found = run.looked(self.bucket, self.conversations, run_id) if RUN_ID.fullmatch(run_id) else None
        if found is None:
            raise HTTPException(404, "There is no such run, or it has expired: runs are kept for 30 days.")
        return found

    def _run(self, request: Request, found: Looked, *, quick: bool) -> dict[str, object]:
        begin = request.query_params.get("from", "")
        first = int(begin) if begin.isdecimal() and 1 <= int(begin[:9]) <= len(found.messages) else None
        facts = run.facts(found, first, self.replays.of(found.run.run_id), acts=self.behind.acts)
        told = run.states(found, self.stories.of(found.run, found.at_work)) if quick else None
        return {"behind": self.behind, "states": told, "changes": None, **facts}

    def changes(self, request: Request) -> Response:
        """The differences that a run made."""
        found = self._looked(request)
        if request.headers.get("hx-request"):
            return self.pages.page("changes.html", changes=list(changes.of(self.bucket, found.run)))
        facts = self._run(request, found, quick=self.stories.quick)
        return self.pages.page("run.html", **facts | {"changes": list(changes.of(self.bucket, found.run))}, seen="")

    # A session

    def session(self, request: Request) -> Response:
        """A session, with the files of one of its versions."""
        session_id = self._session_id(request)
        found = session.looked(self.bucket, self.runs, session_id)
        if found is None:
            raise HTTPException(404, "There is no such session any more, or there never was.")
        asked = _query(request)
        contents = self._contents(session_id, asked)
        return self.pages.page(
            "session.html",
            behind=self.behind,
            session=found,
            version=asked.get("version"),
            folder=session.folder(contents, asked.get("folder", "")),
        )

    def file(self, request: Request) -> Response:
        """A file of a version, as text, or as a picture."""
        session_id, asked = self._session_id(request), _query(request)
        contents = self._contents(session_id, asked)
        file = contents.file(asked.get("path", ""))
        if file.kind == "folder":
            return self._to(f"/sessions/{session_id}", **asked | {"folder": f"{file.path}/", "path": None})
        return self.pages.page(
            "file.html",
            behind=self.behind,
            session_id=session_id,
            version=asked.get("version"),
            file=file,
            text=session.text_of(contents, file),
        )

    def raw(self, request: Request) -> Response:
        """A file's bytes: to be kept; or, as a picture, to be shown, where they are one. Never as anything else."""
        session_id, asked = self._session_id(request), _query(request)
        contents = self._contents(session_id, asked)
        file = contents.file(asked.get("path", ""))
        pieces = contents.open(file.path)
        begins = next(pieces, b"")
        kind = picture(begins) if asked.get("as") == "picture" else None
        if asked.get("as") == "picture" and (kind is None or file.size > session.PICTURE_BYTES):
            raise HTTPException(404, "This is no picture that is shown here.")
        name = quote(file.path.rpartition("/")[2], errors="surrogateescape")
        keeps = {} if kind else {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
        return StreamingResponse(chain([begins], pieces), headers=keeps | ALONE, media_type=kind or BYTES)

    def archive(self, request: Request) -> Response:
        """A version's archive, to be kept."""
        session_id = self._session_id(request)
        base = session.base_of(self.bucket, session_id, _query(request).get("version"))
        with storage("reading an archive"):
            got = self.bucket.s3.get_object(
                Bucket=self.bucket.name, Key=session_key(session_id), VersionId=base.version_id
            )
        keeps = {"Content-Disposition": f"attachment; filename={session_id}.zip", "Content-Length": str(base.size)}
        return StreamingResponse(got["Body"].iter_chunks(1 << 20), headers=keeps | ALONE, media_type="application/zip")

    def sure(self, request: Request) -> Response:
        """Asks once more, before a session is purged or removed."""
        session_id, does = self._session_id(request), self._what(request)
        return self.pages.page("sure.html", behind=self.behind, session_id=session_id, does=does, stays=STAYS[does])

    def does(self, request: Request) -> Response:
        """Purges or removes a session."""
        session_id, does = self._session_id(request), self._what(request)
        if request.scope["form"].get("sure") != session_id:
            raise HTTPException(400, "Nothing was done: nobody was sure.")
        if does == "purge":
            said = purge.purged(self.bucket, session_id)
            return self._said(200, f"{said} {STAYS[does]}", "Purged")
        with telling(session_id):
            gone = removal.remove(self.bucket, session_id)
        what = f"{gone.versions:,} versions, {gone.runs:,} runs and {gone.objects:,} objects are gone."
        return self._said(200, f"{what} {STAYS[does]}", "Removed")

    def _session_id(self, request: Request) -> str:
        session_id: str = request.path_params["session_id"]
        if not SESSION_ID.fullmatch(session_id):
            raise HTTPException(404, "That is no session's id.")
        return session_id

    def _what(self, request: Request) -> str:
        """What is to be done to a session: of `STAYS`."""
        does: str = request.path_params["does"]
        if does not in STAYS:
            raise HTTPException(404)
        return does

    def _contents(self, session_id: str, asked: dict[str, str]) -> Contents:
        return Contents.of(self.bucket, session.base_of(self.bucket, session_id, asked.get("version")))

    # Asking

    def ask(self, request: Request) -> Response:
        """Asks as `ask` does, and shows the run; a form that is given twice means one."""
        form, endpoint = request.scope["form"], self.behind.endpoint
        if endpoint is None or not form.get("prompt", "").strip() or not form.get("drawn"):
            raise HTTPException(400, "There is nothing to ask, or nobody to be asked.")
        question = ask.Question(form["prompt"].replace("\r\n", "\n"), form.get("session") or None)
        body = question.body | ({"fork": True} if form.get("fork") and question.session else {})
        answer = ask.post(endpoint, body, _key(form["drawn"], body), ask.IN_THE_BACKGROUND)
        run_id = str(answer.get("run_id"))
        if RUN_ID.fullmatch(run_id):
            return self._to(f"/runs/{run_id}")
        return self._said(400, f"{answer.get('code')}: {answer.get('error')}")

    # What else there is

    def _to(self, path: str, **query: str | None) -> Response:
        return RedirectResponse(self.pages.at(path, **query), 303)

    def _said(self, status: int, sentence: str, title: str = "That did not work") -> Response:
        facts = {"behind": self.behind, "title": title, "sentence": shown(sentence, 2000)}
        return self.pages.page("said.html", status, **facts)

    def missing(self, _: Request, error: Exception) -> Response:
        """What the pages refuse themselves."""
        assert isinstance(error, HTTPException)
        return self._said(error.status_code, error.detail)

    def broken(self, _: Request, error: Exception) -> Response:
        """What storage, the machine or the service refuses, or what went wrong here."""
        if not isinstance(error, REFUSALS):
            logging.getLogger(__name__).error("The console has made a mistake.", exc_info=error)
            return self._said(500, "The console itself has made a mistake; what it was, its command has printed.")
        said = (error.detail or error.said) if isinstance(error, WorkflowError) else str(error)
        status = error.status if isinstance(error, FileNotFound | SessionNotFound) else 502
        return self._said(status, said)


def _key(drawn: str, body: Json) -> str:
    """The idempotency key of a question, from a form that was `drawn` so."""
    return hashlib.sha256(json.dumps([drawn, body], sort_keys=True).encode()).hexdigest()


def _query(request: Request) -> dict[str, str]:
    """A query in which there may be a file's name, which need not be UTF-8."""
    return dict(parse_qsl(request.url.query, errors="surrogateescape"))


def application(behind: Behind, keys: Keys, host: str) -> Guard:
    """The console behind its guard; `host` is where it listens, as browsers say it."""
    console = Console(behind, keys)
    routes = [
        Route("/", console.list),
        Route("/table", console.list_again),
        Route("/sums", console.sums),
        Route("/ask", console.ask, methods=["POST"]),
        Route("/runs/{run_id}", console.run),
        Route("/runs/{run_id}/live", console.run_again),
        Route("/runs/{run_id}/states", console.states),
        Route("/runs/{run_id}/messages/{number:int}", console.message),
        Route("/runs/{run_id}/changes", console.changes),
        Route("/sessions/{session_id}", console.session),
        Route("/sessions/{session_id}/file", console.file),
        Route("/sessions/{session_id}/raw", console.raw),
        Route("/sessions/{session_id}/archive", console.archive),
        Route("/sessions/{session_id}/sure/{does}", console.sure),
        Route("/sessions/{session_id}/sure/{does}", console.does, methods=["POST"]),
        Route("/runs/{run_id}/replay", console.replay, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers = {HTTPException: console.missing} | dict.fromkeys((*REFUSALS, Exception), console.broken)
    app = Starlette(routes=[Mount(keys.place, routes=routes)], exception_handlers=handlers)
    return Guard(app, keys, host)
