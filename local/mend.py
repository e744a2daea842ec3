"""Takes back a write that the engine's end cut in half.

The engine writes an object's bytes, then beside them `NAME.meta.json` with its size, version and metadata; each file
appears whole, but a kill may fall between the two. Bytes younger than what describes them were never acknowledged to
anybody. The version that they replaced was put aside before (`.versions/ACCOUNT/BUCKET/VERSION/KEY`), so it comes back;
bytes that replaced nothing go.
"""

import json
import shutil
from pathlib import Path

META = ".meta.json"
VERSIONS = ".versions"


def mend(s3: Path) -> list[Path]:
    """Makes the engine's S3 directory whole, before the engine starts. Returns the objects it touched."""
    return [path for path in _objects(s3) if _is_torn(path) and _take_back(s3, path)]


def _objects(s3: Path) -> list[Path]:
    files = [path for path in s3.rglob("*") if path.is_file() and VERSIONS not in path.parts]
    return [path for path in files if not path.name.endswith((META, ".tmp"))]


def _is_torn(path: Path) -> bool:
    meta = _meta(path)
    return not meta.exists() or path.stat().st_mtime_ns > meta.stat().st_mtime_ns


def _meta(path: Path) -> Path:
    return path.with_name(path.name + META)


def _take_back(s3: Path, path: Path) -> bool:
    meta = _meta(path)
    if not meta.exists():
        path.unlink()
        return True
    account, bucket, *_ = path.relative_to(s3).parts
    key = path.relative_to(s3 / account / bucket)
    aside = s3 / VERSIONS / account / bucket / str(json.loads(meta.read_text()).get("version_id")) / key
    if not aside.exists():
        return False
    restored = path.with_name(path.name + ".tmp")
    shutil.copyfile(aside, restored)
    restored.replace(path)
    meta.touch()
    return True
