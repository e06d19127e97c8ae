"""A disk that forgets what was not synced, to test what a power loss may leave.

    disk.system = ForgetfulDisk(tmp_path)       # by monkeypatch
    disk.system.lose_power_after(7)             # if it is to fail in the middle of something
    ... write, sync, rename ...
    disk.system.crash(random.Random(seed))      # the power fails, and comes back
    ... read what is there now ...

The files are real: programs see what they would see on any disk. Beside them it remembers what a
power loss cannot take (content at a file's last sync, names at a folder's last sync), and every
change since. `crash` then puts back a state that a disk may be in, as adverse as POSIX allows:

- of each unsynced write any sectors (of 512 or 4096 bytes) are there, the others as they were, or
  as an earlier unsynced write left them; a size that was changed is the old, the new, or between
- of a folder's unsynced changes (files made, renamed, removed) a beginning is there and the rest is
  not; a rename is there whole or not at all. Another folder may have kept more or fewer
- syncing a file does not make its name durable, and syncing a name not what is in the file

What is changed past `disk.system` (by another library) is noticed, and counts as not synced. After
a crash descriptors from before it fail with EIO: their process is gone. Renaming from one folder to
another is refused: nothing here does it. Holds all written bytes in memory. Thread-safe.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stepwell_server.storage.disk import System


@dataclass(frozen=True)
class Write:
    """Bytes that were written at an offset."""

    offset: int
    content: bytes

    def apply(self, image: bytearray, rng: random.Random, chance: float, unit: int) -> None:
        """Put some of the sectors into a file's content."""
        start, end = self.offset, self.offset + len(self.content)
        while start < end:
            stop = min(end, (start // unit + 1) * unit)
            if rng.random() < chance:
                image.extend(bytes(max(0, stop - len(image))))
                image[start:stop] = self.content[start - self.offset : stop - self.offset]
            start = stop


@dataclass(frozen=True)
class Resize:
    """A file's size that was changed; an allocation only makes it larger."""

    nbytes: int
    is_allocation: bool

    def apply(self, image: bytearray, rng: random.Random, chance: float, unit: int) -> None:
        """Change the size, or leave it."""
        if rng.random() < chance:
            image.extend(bytes(max(0, self.nbytes - len(image))))
            if not self.is_allocation:
                del image[self.nbytes :]


@dataclass
class File:
    """A file: what is durable of it, and what came since."""

    inode: int
    image: bytes = b""
    changes: list[Write | Resize] = field(default_factory=list)

    def shown(self) -> bytes:
        """What a program reads, unless it was changed past `disk.system`."""
        return self.survivor(random.Random(0), 1.0)

    def survivor(self, rng: random.Random, chance: float) -> bytes:
        """What a power loss may leave; each change is kept by that chance."""
        image, unit = bytearray(self.image), rng.choice((512, 4096))
        for change in self.changes:
            change.apply(image, rng, chance, unit)
        return bytes(image)


@dataclass
class Folder:
    """A folder: names that are durable, names as they are, and the changes that lead there."""

    inode: int
    durable: dict[str, File | Folder] = field(default_factory=dict)
    names: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, File | Folder | None]) -> None:
        """Set or remove names, all of them or none."""
        _apply(self.names, names)
        self.changes.append(names)

    def sync(self) -> None:
        """Make the names durable."""
        self.durable, self.changes = dict(self.names), []


def _apply(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class ForgetfulDisk(System):
    """See above.

    Args:
        root: The folder that is watched; what is in it is durable. Other paths are left alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.crashes = 0
        self._calls_left: int | None = None  # until the power is off
        self._lock = threading.RLock()
        self._open: dict[int, File | Folder] = {}
        self._dead: set[int] = set()
        self._tree = self._durable_tree(root)

    def lose_power_after(self, calls: int) -> None:
        """Let so many calls that change the disk pass, and fail all later ones until `crash`."""
        self._calls_left = calls

    def crash(self, rng: random.Random) -> None:
        """Take the power away and bring it back: the files are as a disk may have kept them."""
        with self._lock:
            self._notice(self._tree, self.root, is_deep=True)
            chance = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            survivors = self._survivors(self._tree, rng, chance)
            self._dead |= set(self._open)
            self._open = {}
            for path in self.root.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            _restore(self.root, survivors)
            self._tree = self._durable_tree(self.root)
            self.crashes += 1
            self._calls_left = None

    # The system calls

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        with self._lock:
            folder = self._parent(path)
            existed = path.exists()
            descriptor = super().open(path, flags, mode)
            if folder is not None:
                if not existed:
                    folder.change({path.name: File(os.fstat(descriptor).st_ino)})
                node = self._tree if path == self.root else folder.names[path.name]
                self._open[descriptor] = node
                if flags & os.O_TRUNC and isinstance(node, File):
                    node.changes.append(Resize(0, is_allocation=False))
            return descriptor

    def pwrite(self, descriptor: int, content: bytes | memoryview, offset: int) -> int:
        with self._lock:
            node = self._node(descriptor)
            written = super().pwrite(descriptor, content, offset)
            if isinstance(node, File):
                node.changes.append(Write(offset, bytes(memoryview(content)[:written])))
            return written

    def pwritev(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        with self._lock:
            node = self._node(descriptor)
            written = super().pwritev(descriptor, parts, offset)
            if isinstance(node, File):
                node.changes.append(Write(offset, b"".join(parts)[:written]))
            return written

    def allocate(self, descriptor: int, offset: int, nbytes: int) -> None:
        with self._lock:
            node = self._node(descriptor)
            super().allocate(descriptor, offset, nbytes)
            if isinstance(node, File):
                node.changes.append(Resize(offset + nbytes, is_allocation=True))

    def truncate(self, descriptor: int, nbytes: int) -> None:
        with self._lock:
            node = self._node(descriptor)
            super().truncate(descriptor, nbytes)
            if isinstance(node, File):
                node.changes.append(Resize(nbytes, is_allocation=False))

    def sync(self, descriptor: int) -> None:
        with self._lock:
            node = self._node(descriptor)
            super().sync(descriptor)
            if isinstance(node, File):
                node.image, node.changes = _content(descriptor), []
            elif node is not None:
                self._notice(node, Path(os.readlink(f"/proc/self/fd/{descriptor}")))
                node.sync()

    def sync_content(self, descriptor: int) -> None:
        with self._lock:
            node = self._node(descriptor)
            super().sync_content(descriptor)
            if isinstance(node, File):
                node.image, node.changes = _content(descriptor), []

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            self._dead.discard(descriptor)
            super().close(descriptor)

    def give(self, path: Path, owner: tuple[int, int]) -> None:
        with self._lock:
            self._parent(path)  # the power may be off; owners are not remembered
            super().give(path, owner)

    def rename(self, path: Path, new: Path) -> None:
        with self._lock:
            if path.parent != new.parent:
                raise NotImplementedError(f"renaming {path} into another folder, {new}")
            folder = self._parent(path)
            super().rename(path, new)
            if folder is not None:
                folder.change({path.name: None, new.name: folder.names[path.name]})

    def unlink(self, path: Path) -> None:
        with self._lock:
            folder = self._parent(path)
            super().unlink(path)
            if folder is not None:
                folder.change({path.name: None})

    def make_folder(self, path: Path) -> None:
        with self._lock:
            folder = self._parent(path)
            super().make_folder(path)
            if folder is not None:
                folder.change({path.name: Folder(path.stat().st_ino)})

    def remove_tree(self, path: Path) -> None:
        with self._lock:
            folder = self._parent(path)
            if folder is not None:
                self._empty(folder.names[path.name], path)
            super().remove_tree(path)
            if folder is not None:
                folder.change({path.name: None})

    # What is remembered

    def _count(self) -> None:
        if self._calls_left == 0:
            raise OSError(errno.EIO, "the power is off")
        if self._calls_left is not None:
            self._calls_left -= 1

    def _node(self, descriptor: int) -> File | Folder | None:
        if descriptor in self._dead:
            raise OSError(errno.EIO, "the power is off")
        self._count()
        return self._open.get(descriptor)

    def _parent(self, path: Path) -> Folder | None:
        """The folder in which a path is, with whatever was changed behind our back; or None."""
        if path != self.root and self.root not in path.parents:
            return None
        self._count()
        folder, place = self._tree, self.root
        self._notice(folder, place)
        for part in path.relative_to(self.root).parts[:-1]:
            inner = folder.names[part]
            assert isinstance(inner, Folder)
            folder, place = inner, place / part
            self._notice(folder, place)
        return folder

    def _notice(self, folder: Folder, path: Path, *, is_deep: bool = False) -> None:
        """Take over what was changed past `disk.system`."""
        found = {entry.name: entry for entry in os.scandir(path)}
        for name in [name for name in folder.names if name not in found]:
            folder.change({name: None})
        for name, entry in found.items():
            known = folder.names.get(name)
            if known is None or known.inode != entry.inode():
                folder.change({name: _new(entry)})
            node = folder.names[name]
            if is_deep and isinstance(node, Folder):
                self._notice(node, path / name, is_deep=True)
            elif is_deep and isinstance(node, File):
                content = (path / name).read_bytes()
                if content != node.shown():
                    node.changes.append(Write(0, content))
                    node.changes.append(Resize(len(content), is_allocation=False))

    def _empty(self, node: File | Folder, path: Path) -> None:
        if isinstance(node, Folder):
            self._notice(node, path)
            for name, inner in list(node.names.items()):
                self._empty(inner, path / name)
                node.change({name: None})

    def _survivors(self, folder: Folder, rng: random.Random, chance: float) -> dict[str, object]:
        """Return what is left of a folder: bytes by file name, dicts by folder name."""
        names = dict(folder.durable)
        kept = rng.randint(0, len(folder.changes)) if chance else 0
        for change in folder.changes if chance == 1 else folder.changes[:kept]:
            _apply(names, change)
        return {
            name: (
                node.survivor(rng, chance)
                if isinstance(node, File)
                else self._survivors(node, rng, chance)
            )
            for name, node in names.items()
        }

    def _durable_tree(self, path: Path) -> Folder:
        folder = Folder(path.stat().st_ino)
        for entry in os.scandir(path):
            node = _new(entry)
            if isinstance(node, File):
                node.image = (path / entry.name).read_bytes()
            else:
                node = self._durable_tree(path / entry.name)
            folder.names[entry.name] = node
        folder.sync()
        return folder


def _new(entry: os.DirEntry[str]) -> File | Folder:
    is_folder = entry.is_dir(follow_symlinks=False)
    return Folder(entry.inode()) if is_folder else File(entry.inode())


def _content(descriptor: int) -> bytes:
    """What a file has, also where its descriptor cannot read, or not so."""
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:
        return file.read()


def _restore(folder: Path, survivors: dict[str, object]) -> None:
    for name, content in survivors.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            assert isinstance(content, dict)
            (folder / name).mkdir()
            _restore(folder / name, content)
