"""The engine's S3 on its disk: what it acknowledges is there, and what it cannot read is an error.

ministack answers 200 out of its memory where it could not write, and with an empty body or 404 where it cannot read; it
says so in its log alone. So its functions that write, remove and read (`REPLACED`) are replaced by these when the
engine starts, and its dispatcher by one that answers 500 where the disk refuses, and forgets what did not come there.
All of a write is on the disk before its answer goes out (fsync): it outlives the engine, and the machine's power.

Of a version it gives a range where one is asked for, as S3 does; ministack gives the whole.

Three files appear beside an object's while it is written: see `local.mend`, which takes back what the engine's end, or
the disk, cut in half. The directory is the engine's own: where it is refused there, it takes its rights back (an agent
of the same user may have changed modes, if nothing but Landlock keeps it in) and tries once more.
"""

import errno
import inspect
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from ministack.services import s3

from claude_workflow.local.mend import HELD, META, OLD, TMP, beside, is_torn, link, take_back, take_rights
from lambdas.strict import Json

T = TypeVar("T")

ONE = threading.RLock()
"""Held while files are written or read: functions' code is read in other threads than the requests'."""


class NotOnDisk(OSError):
    """A change did not come to the disk. Any other OSError comes after a change, or from reading."""


def install() -> None:
    """Puts these functions in the place of ministack's. Raises RuntimeError if it has others by now."""
    for name, function in REPLACED.items():
        theirs = getattr(s3, name, None)
        if theirs is None or [*inspect.signature(theirs).parameters] != [*inspect.signature(function).parameters]:
            raise RuntimeError(f"ministack's S3 writes to its disk in another way than by {name}: adapt local/disk.py")
        setattr(s3, name, function)


# The dispatcher

_RANGE: ContextVar[str] = ContextVar("range", default="")
"""What a request wants of a version; empty: all of it."""

_their_dispatch = s3._dispatch
_their_delete_version = s3._delete_object_version
_their_delete_marker = s3._record_delete_marker


def _dispatch(method: str, bucket: str, key: str, headers: Json, body: bytes, query_params: Json) -> tuple[Any, ...]:
    upload = s3._qp(query_params, "uploadId")
    parts = s3._multipart_uploads.get(upload) if upload else None
    try:
        wanted = headers.get("range", "") if method == "GET" and s3._qp(query_params, "versionId") else ""
        with _remembered(bucket, key), _asking_for(wanted):
            answer: tuple[Any, ...] = _their_dispatch(method, bucket, key, headers, body, query_params)
            return _partial(answer) if wanted else answer
    except OSError as refused:
        if parts and isinstance(refused, NotOnDisk):
            s3._multipart_uploads[upload] = parts
        s3.logger.error("The disk refused: %s %s/%s: %s", method, bucket, key, refused)
        failed: tuple[Any, ...] = s3._error("InternalError", f"The disk refused: {refused.strerror}.", 500)
        return failed


@contextmanager
def _asking_for(wanted: str) -> Iterator[None]:
    before = _RANGE.set(wanted)
    try:
        yield
    finally:
        _RANGE.reset(before)


def _partial(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """The answer to a GET of a range of a version; `_version_body` gave no more than that."""
    status, headers, body = answer
    if status != 200:
        return answer
    size = int(headers["Content-Length"])
    span = _span(size)
    if span is None:
        refused: tuple[Any, ...] = s3._error("InvalidRange", "The requested range is not satisfiable", 416)
        return refused
    about = {"Content-Length": str(len(body)), "Content-Range": f"bytes {span[0]}-{span[1] - 1}/{size}"}
    of_the_whole = {name for name in headers if name.lower().startswith("x-amz-checksum-")}
    return 206, {name: value for name, value in headers.items() if name not in of_the_whole} | about, body


def _span(size: int) -> tuple[int, int] | None:
    """What a request wants of so many bytes, the end exclusive; None where there is nothing of it."""
    if not _RANGE.get():
        return 0, size
    found: tuple[int, int] | None = s3._parse_range(_RANGE.get(), size)
    return (found[0], found[1] + 1) if found else None


def _delete_object_version(bucket: Json, bucket_name: str, key: str, version_id: str) -> tuple[bool, bool]:
    """Its bytes go when the description no longer names them, or they would be gone though the deletion failed."""
    aside = Path(s3._version_disk_path(bucket_name, key, version_id))
    held = beside(aside, HELD)
    with _changing():
        _tried(lambda: aside.exists() and aside.replace(held))
    try:
        with _remembered(bucket_name, key):
            done: tuple[bool, bool] = _their_delete_version(bucket, bucket_name, key, version_id)
    except NotOnDisk:
        if held.exists():
            held.replace(aside)
        raise
    _tried(lambda: _unlink(held))
    return done


def _record_delete_marker(bucket_name: str, key: str, prior_obj: Json | None) -> str:
    with _remembered(bucket_name, key):
        return str(_their_delete_marker(bucket_name, key, prior_obj))


@contextmanager
def _remembered(bucket: str, key: str) -> Iterator[None]:
    """Puts back what the engine knew of an object before, where its change does not come to the disk."""
    held = s3._buckets.get(bucket)
    objects: Json = held["objects"] if held else {}
    record = dict(objects[key]) if key in objects else None
    versions = [dict(version) for version in s3._object_versions.get((bucket, key)) or []]
    try:
        yield
    except NotOnDisk:
        _put(objects, key, record)
        _put(s3._object_versions, (bucket, key), versions or None)
        raise


def _put(into: Any, key: Any, value: Any) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


# What is written


def _persist_object(bucket: str, key: str, obj: Json) -> None:
    meta = {**s3._object_meta_from_record(obj), **s3._key_history_meta(bucket, key), "key": key}
    with _changing():
        path = _path(bucket, key)
        _tried(lambda: _write(path, obj.get("body"), meta))
    obj["body"] = None
    for version in s3._object_versions.get((bucket, key)) or []:
        version["data"] = None  # those before it were put aside
    _tried(lambda: _sync(path.parent))
    _tried(lambda: _forget(_other(bucket, key, path)))


def _persist_delete_marker(bucket_name: str, key: str, marker: Json) -> None:
    meta = {
        "is_delete_marker": True,
        "version_id": marker.get("version_id"),
        "last_modified": marker.get("last_modified", ""),
        **s3._key_history_meta(bucket_name, key),
        "key": key,
    }
    path = _path(bucket_name, key)
    with _changing():
        _tried(lambda: _write(path, None, meta))
    _tried(lambda: _sync(path.parent))


def _persist_displaced_version(bucket_name: str, key: str, prior_obj: Json | None, versioning: str) -> None:
    if versioning == "Suspended":
        s3._delete_version_file(bucket_name, key, "null")
    version = (prior_obj or {}).get("version_id") or "null"
    if prior_obj is None or (versioning == "Suspended" and version == "null"):
        return
    with _changing():
        aside = Path(s3._version_disk_path(bucket_name, key, version))
        _tried(lambda: _put_aside(_path(bucket_name, key), aside))


def _delete_version_file(bucket_name: str, key: str, version_id: str) -> None:
    with _changing():
        _tried(lambda: _unlink(Path(s3._version_disk_path(bucket_name, key, version_id))))


def _delete_persisted_object(bucket_name: str, key: str) -> None:
    with _changing():
        path = _path(bucket_name, key)
        _tried(lambda: _forget(path))
        _tried(lambda: _forget(_other(bucket_name, key, path)))


@contextmanager
def _changing() -> Iterator[None]:
    try:
        with ONE:
            yield
    except NotOnDisk:
        raise
    except OSError as refused:
        raise NotOnDisk(refused.errno, refused.strerror, refused.filename) from refused


# What is read


def _read_body(bucket_name: str, key: str, obj: Json) -> bytes:
    body: bytes | None = obj.get("body")
    return _read(lambda: _path(bucket_name, key), obj["size"]) if body is None else body


def _version_body(bucket: Json, bucket_name: str, key: str, v: Json) -> bytes:
    start, end = _span(v["size"]) or (0, 0)
    current = bucket["objects"].get(key)
    is_current = current is not None and (current.get("version_id") or "null") == v["version_id"]
    data = v.get("data") if v.get("data") is not None else current.get("body") if is_current else None
    if data is not None:
        return bytes(data[start:end])
    aside = Path(s3._version_disk_path(bucket_name, key, v["version_id"]))
    return _read(lambda: _path(bucket_name, key) if is_current else aside, v["size"], start, end)


def _read(where: Callable[[], Path], size: int, start: int = 0, end: int | None = None) -> bytes:
    def some() -> bytes:
        path = where()
        if is_torn(path):
            take_back(path)
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            if there != size:
                raise OSError(errno.EIO, f"{there} bytes where {size} were written", str(path))
            file.seek(start)
            return file.read((size if end is None else end) - start)

    with ONE:
        return _tried(some)


# Files


def _path(bucket: str, key: str) -> Path:
    return Path(s3._object_disk_path(bucket, key))


def _other(bucket: str, key: str, path: Path) -> Path | None:
    """The other place where ministack may have put an object: under an encoded name, or under its own."""
    other = s3._other_key_disk_path(str(Path(s3.DATA_DIR, s3.get_account_id(), bucket)), key, str(path))
    return Path(other) if other else None


def _tried(action: Callable[[], T]) -> T:
    """What comes of it; where a right is missing, after taking back all rights on the engine's own directory."""
    try:
        return action()
    except (PermissionError, FileNotFoundError):
        take_rights(Path(s3.DATA_DIR))
        return action()


def _write(path: Path, data: bytes | None, meta: Json) -> None:
    """All of it, or nothing: an object with what describes it, or without `data` the description alone."""
    text = json.dumps(meta).encode()
    _make(path.parent)
    take_back(path)  # what an earlier attempt could not
    try:
        if data is None:
            _staged(beside(path, META + ".alone" + TMP), text).replace(beside(path, META))
        else:
            _write_both(path, data, text)
    except OSError:
        take_back(path)
        raise
    with suppress(OSError):  # it counts by now; the next write of the object, or the next start, removes this
        beside(path, OLD).unlink(missing_ok=True)


def _write_both(path: Path, data: bytes, text: bytes) -> None:
    fresh = _staged(beside(path, TMP), data)
    described = _staged(beside(path, META + TMP), text)
    if path.exists():
        link(path, beside(path, OLD))
    fresh.replace(path)
    described.replace(beside(path, META))


def _put_aside(path: Path, aside: Path) -> None:
    _make(aside.parent)
    if not (aside.exists() and aside.samefile(path)):
        link(path, aside)
    _sync(aside.parent)


def _make(directory: Path) -> None:
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in missing:
        _sync(place.parent)


def _staged(path: Path, data: bytes) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def _forget(path: Path | None) -> None:
    """The description first: bytes that nothing describes are dropped at the next start."""
    if path:
        _unlink(beside(path, META))
        _unlink(path)


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    _sync(path.parent)


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


REPLACED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        _dispatch,
        _delete_object_version,
        _record_delete_marker,
        _persist_object,
        _persist_delete_marker,
        _persist_displaced_version,
        _delete_version_file,
        _delete_persisted_object,
        _read_body,
        _version_body,
    )
}
