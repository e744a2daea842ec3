"""Git bundles written by hand, so that they can hold what git would not write."""

import hashlib
import stat
import struct
import zlib

COMMIT, TREE, BLOB = 1, 2, 3
NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob"}
WHO = b"A <a@example.org> 1700000000 +0000"
Tree = dict[bytes, tuple[int, bytes]]
"""Of paths, modes and contents."""


class Pack:
    """The objects of a bundle."""

    def __init__(self) -> None:
        self._objects: dict[bytes, bytes] = {}

    def add(self, kind: int, content: bytes) -> bytes:
        """Returns the object's id."""
        name = hashlib.sha1(b"%s %d\0%s" % (NAMES[kind], len(content), content)).digest()
        size, head = len(content) >> 4, bytearray([kind << 4 | len(content) & 15])
        while size:
            head[-1] |= 0x80
            head.append(size & 0x7F)
            size >>= 7
        self._objects[name] = bytes(head) + zlib.compress(content, 9)
        return name

    def tree(self, *entries: tuple[int, bytes, bytes]) -> bytes:
        """Of modes, names and ids."""
        return self.add(TREE, b"".join(b"%o %s\0%s" % entry for entry in entries))

    def bundle(self, tree: bytes, *refs: bytes) -> bytes:
        """Of one commit of this tree, by these refs."""
        lines = (b"tree " + tree.hex().encode(), b"author " + WHO, b"committer " + WHO, b"", b"One.", b"")
        commit = self.add(COMMIT, b"\n".join(lines)).hex().encode()
        head = b"# v2 git bundle\n" + b"".join(b"%s %s\n" % (commit, ref) for ref in refs) + b"\n"
        pack = b"PACK" + struct.pack(">2I", 2, len(self._objects)) + b"".join(self._objects.values())
        return head + pack + hashlib.sha1(pack).digest()


def bundle_of(files: Tree, refs: tuple[bytes, ...] = (b"refs/heads/main", b"HEAD")) -> bytes:
    """Of one commit with these files; what is between two slashes of a path is a name, whatever it is."""
    pack = Pack()

    def tree(below: Tree) -> bytes:
        folders: dict[bytes, Tree] = {}
        entries: list[tuple[int, bytes, bytes]] = []
        for path, (mode, content) in below.items():
            name, slash, rest = path.partition(b"/")
            if slash:
                folders.setdefault(name, {})[rest] = (mode, content)
            else:
                entries.append((_mode(mode), name, pack.add(BLOB, content)))
        entries += [(stat.S_IFDIR, name, tree(inside)) for name, inside in folders.items()]
        return pack.tree(*sorted(entries, key=lambda entry: entry[1] + b"/" * stat.S_ISDIR(entry[0])))

    return pack.bundle(tree(files), *refs)


def _mode(mode: int) -> int:
    return mode if not stat.S_ISREG(mode) else 0o100755 if mode & 0o100 else 0o100644


def bomb(levels: int, wide: int, size: int) -> bytes:
    """Of one file of zeros, named `wide` ** `levels` times."""
    pack = Pack()
    mode, each = 0o100644, pack.add(BLOB, bytes(size))
    for _ in range(levels):
        mode, each = 0o40000, pack.tree(*((mode, b"%d" % number, each) for number in range(wide)))
    return pack.bundle(each, b"refs/heads/main", b"HEAD")
