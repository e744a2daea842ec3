"""A bucket in memory, as far as keys and JSON go, for tests that need thousands. S3's part is shown elsewhere."""

from collections.abc import Iterator
from typing import Any

from lambdas.bucket.objects import Bucket
from lambdas.strict import Json


class MemoryBucket(Bucket):
    """Strongly consistent, as S3 is, and without conditions."""

    def __init__(self) -> None:
        super().__init__(None, "memory")
        self._objects: dict[str, Json | None]
        object.__setattr__(self, "_objects", {})

    def head(self, key: str, **version: str) -> Any:
        """Whether it is there."""
        assert not version
        return {} if key in self._objects else None

    def read(self, key: str, most: int | None = None) -> Json | None:
        """Of whatever size."""
        assert most is not None
        return self._objects.get(key)

    def write(self, key: str, data: Json, **condition: str) -> None:
        """Without a condition."""
        assert not condition
        self._objects[key] = data

    def touch(self, key: str) -> None:
        """An empty object."""
        self._objects[key] = None

    def delete(self, key: str, **condition: str) -> None:
        """Whether or not it is there."""
        assert not condition
        self._objects.pop(key, None)

    def listed(self, prefix: str) -> Iterator[Json]:
        """In the order of the keys."""
        yield from ({"Key": key} for key in sorted(self._objects) if key.startswith(prefix))
