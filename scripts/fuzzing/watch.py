"""What a worker sees in its process: code that is run, files that are written, connections that are opened."""

import os
from types import CodeType
from typing import Any

from fuzzing.place import TOKEN, Place

RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "webbrowser.open",
}  # fmt: skip
CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown",
    "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """A hook for sys.addaudithook; `seen` holds (outcome, what) while it is on."""

    def __init__(self, place: Place) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        self._root, self._folder, self._out = (os.path.realpath(path) for path in (place.root, place.folder, place.out))

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event."""
        if not self.on:
            return
        if event == "open":
            self._opened(*args)
        elif event in RUNS:
            self.seen.append(("code", f"{event} {args!r:.200}"))
        elif event == "exec" and isinstance(args[0], CodeType) and _mentions(args[0]):
            self.seen.append(("code", f"exec {args[0].co_filename}"))
        elif event == "import" and TOKEN in str(args[0]):
            self.seen.append(("code", f"import {args[0]}"))
        elif event in CHANGES:
            for path in _changed_by(event, args):
                self._changed(path, event)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes):
            return
        writes = any(sign in mode for sign in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITES)
        if writes:
            self._changed(path, "open")
            return
        real = self._real(path)
        if real and _below(real, self._root) and not _below(real, self._folder) and not _below(real, self._out):
            self.seen.append(("read outside", f"open {real}"))

    def _changed(self, path: Any, event: str) -> None:
        real = self._real(path)
        # The folder of a link is what counts: to remove or to replace a link does not touch what it points to.
        if real and real != os.devnull and not _below(real, self._out) and not self._of_out(path):
            self.seen.append(("outside", f"{event} {real}"))

    def _of_out(self, path: Any) -> bool:
        parent = os.path.dirname(os.fsdecode(path))
        return os.path.islink(os.fsdecode(path)) and _below(os.path.realpath(parent), self._out)

    @staticmethod
    def _real(path: Any) -> str:
        try:
            return os.path.realpath(os.fsdecode(path))
        except (TypeError, ValueError, OSError):
            return ""


def _changed_by(event: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the paths that an event changes: of a link, only the link."""
    if event in ("os.symlink", "os.link", "shutil.copyfile"):
        return args[1:2]
    return args[:2] if event in ("os.rename", "shutil.move") else args[:1]


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _mentions(code: CodeType) -> bool:
    """Whether code names the canary: then a mutated file brought it."""
    texts = (*code.co_names, *(one for one in code.co_consts if isinstance(one, str)))
    return any(TOKEN in text for text in texts) or any(
        _mentions(one) for one in code.co_consts if isinstance(one, CodeType)
    )
