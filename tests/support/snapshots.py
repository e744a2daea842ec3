"""What a scratch directory holds, as a run that changed nothing would find it again."""

from collections.abc import Mapping
from pathlib import Path

from lambdas.archive.tree import Fingerprint, fingerprint, walk


def snapshot(roots: Mapping[str, Path]) -> dict[str, Fingerprint]:
    """The fingerprints of all that is in the directories of `roots`, by its path in the archive."""
    taken = {name: fingerprint(root.lstat()) for name, root in roots.items()}
    for name, root in roots.items():
        for entries in walk(root, f"{name}/"):
            taken |= {path: fingerprint(facts) for path, facts in entries}
    return taken
