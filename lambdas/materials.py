"""What a request may bring for the workspace: in the field `files` with the body, in `workspace` by an upload."""

import base64
import io
import re
import tarfile
import time
from collections.abc import Sequence
from itertools import pairwise

from lambdas.strict import Json

FILES = 1000
"""How many `files` may be."""
NAME_BYTES, PATH_BYTES = 255, 3000
"""Of a part of a path, and of a whole one: what a session can carry (`archive.tree`)."""
UPLOAD = re.compile(r"upload-[0-9a-f]{32}")
FORMS = ("content", "content_base64")


def misplaced(path: object) -> str | None:
    """What is wrong with a path in the workspace; None if nothing is."""
    if not isinstance(path, str):
        return "a path must be a string"
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "a path holds half of a surrogate pair, which is not text"
    parts = raw.split(b"/")
    if b"\0" in raw or not {b"", b".", b".."}.isdisjoint(parts):
        return f"{path[:80]!r} is no path in the workspace, such as notes/today.txt"
    if len(raw) > PATH_BYTES or max(map(len, parts)) > NAME_BYTES:
        return f"the path {path[:80]!r} is too long"
    return None


def wrong_files(value: object) -> str | None:
    """What is wrong with the field `files`, or None."""
    if not isinstance(value, list) or not 1 <= len(value) <= FILES:
        return f"must be a list of 1 to {FILES} files"
    if wrong := next((wrong for file in value if (wrong := _wrong_file(file))), None):
        return f'must hold files such as {{"path": "a/b.txt", "content": "…"}}: {wrong}'
    paths = sorted(file["path"].split("/") for file in value)  # what is below a folder follows it
    if twice := next((one for one, two in pairwise(paths) if two[: len(one)] == one), None):
        return f"must hold each path once, as a file or as a folder: {'/'.join(twice)[:80]!r}"
    return None


def _wrong_file(file: object) -> str | None:
    if not isinstance(file, dict):
        return "one of them is no object"
    if wrong := misplaced(file.get("path")):
        return wrong
    given = [form for form in FORMS if form in file]
    if len(given) != 1 or file.keys() != {"path", *given}:
        return f"{file['path'][:80]!r} has to have a content or a content_base64, and nothing else"
    return _unfit(file[given[0]], given[0], file["path"])


def _unfit(content: object, form: str, path: str) -> str | None:
    if not isinstance(content, str):
        return f"the {form} of {path[:80]!r} must be a string"
    try:
        _bytes_of(form, content)
    except UnicodeEncodeError:
        return f"the content of {path[:80]!r} holds half of a surrogate pair, which is not text"
    except ValueError:
        return f"the content_base64 of {path[:80]!r} is not base64"
    return None


def _bytes_of(form: str, content: str) -> bytes:
    return content.encode() if form == "content" else base64.b64decode(content, validate=True)


def wrong_workspace(value: object) -> str | None:
    """What is wrong with the field `workspace`, or None."""
    if not isinstance(value, dict) or not {"upload"} <= value.keys() <= {"upload", "path"}:
        return 'must be {"upload": …}, with a path in the workspace or without'
    if not (isinstance(value["upload"], str) and UPLOAD.fullmatch(value["upload"])):
        return f"names no upload: its name must match ^{UPLOAD.pattern}$"
    return misplaced(value["path"]) if "path" in value else None


def tar(files: Sequence[Json]) -> bytes:
    """The archive of the field `files`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            form = next(form for form in FORMS if form in file)
            content = _bytes_of(form, file[form])
            entry = tarfile.TarInfo(file["path"])
            entry.size, entry.mtime = len(content), int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
