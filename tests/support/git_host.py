"""A host of git repositories on loopback, behind a password: `git http-backend`, as a web server has it."""

import base64
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.foreign_programs import program
from tests.support.http_servers import Answering, listening

TOKEN = "ghp-the-token-of-the-deployment"


@dataclass
class GitHost:
    """Its repositories, and who may in."""

    root: Path
    url: str = ""
    token: str = TOKEN
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request that was let in."""
    moved: dict[str, str] = field(default_factory=dict)
    """Where a path is now."""
    fails: int = 0
    """The status of every answer, if any."""
    holds: threading.Event = field(default_factory=threading.Event)
    """Until this is set nothing is answered."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def forget(self) -> None:
        """What it was asked, and told to do; repositories stay."""
        self.asked.clear()
        self.moved.clear()
        self.fails = 0
        self.holds.set()

    def make(self, name: str, **files: str) -> str:
        """A repository with one commit on its branch main; its public address."""
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self._bare(name)))
        self.commit(name, "main", "first", **files)
        return f"{self.url}/{name}"

    def commit(self, name: str, branch: str, message: str, **files: str) -> str:
        """One more commit on a branch, by somebody else; its id."""
        with tempfile.TemporaryDirectory() as work:
            self.git("clone", "--quiet", str(self._bare(name)), work)
            if self.head(name, branch):
                self.git("-C", work, "checkout", "--quiet", branch)
            for path, text in files.items():
                Path(work, path).write_text(text)
            self.git("-C", work, "add", "--all")
            self.git("-C", work, "commit", "--quiet", "--allow-empty", f"--message={message}")
            self.git("-C", work, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
        return self.head(name, branch)

    def git(self, *arguments: str) -> str:
        """What git says, in its own world."""
        own = {"PATH": os.environ["PATH"], "HOME": str(self.root), "GIT_CONFIG_NOSYSTEM": "1"}
        people = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(["git", *arguments], env=own | people, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def head(self, name: str, branch: str) -> str:
        """The commit that a branch is at; nothing where there is none."""
        return self.heads(name).get(branch, "")

    def heads(self, name: str) -> dict[str, str]:
        """All branches, with the commits that they are at."""
        form = "--format=%(refname:lstrip=2) %(objectname)"
        listed = self.git("-C", str(self._bare(name)), "for-each-ref", form, "refs/heads")
        return dict(line.split() for line in listed.splitlines())

    def _bare(self, name: str) -> Path:
        return self.root / f"{name}.git"


class Backend(Answering):
    """The host's side of one connection."""

    host: GitHost

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, _, query = self.path.partition("?")
        pair = base64.b64decode(self.headers.get("authorization", "").removeprefix("Basic ")).decode()
        if not pair.endswith(f":{self.host.token}"):
            return self.answer(401, b"no", {"www-authenticate": 'Basic realm="git"'})
        self.host.asked.append((self.command, self.path))
        self.host.holds.wait(60)
        if self.host.fails:
            return self.answer(self.host.fails, b"down")
        for old, new in self.host.moved.items():
            if path.startswith(old):
                return self.answer(301, b"", {"location": f"{self.host.url}{self.path.replace(old, new, 1)}"})
        if not (self.host.root / path.lstrip("/").partition("/info/")[0].partition("/git-")[0]).exists():
            path = path.replace("/info/", ".git/info/").replace("/git-", ".git/git-")
        said = self._said(path, query, body)
        head, _, content = said.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return self.answer(int(headers.pop("Status", "200")[:3]), content, headers)

    do_POST = do_GET

    def _said(self, path: str, query: str, body: bytes) -> bytes:
        variables = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.host.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "somebody",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("git-protocol", ""),
        }
        return subprocess.run(["git", "http-backend"], env=variables, input=body, capture_output=True).stdout


@contextmanager
def git_host(root: Path) -> Iterator[GitHost]:
    """A host with nothing on it."""
    program("git", "git")
    made = GitHost(root)
    made.forget()
    with listening(Backend, host=made) as made.url:
        yield made
