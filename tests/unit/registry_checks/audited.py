"""Runs the checks over folders of evil files and prints what Python was asked to do meanwhile.

`python -m tests.unit.registry_checks.audited CASES.json`: made by the test beside it.
"""

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

from services.registry.checks import Policy, check

TEMPLATE = "<template>"
FORBIDDEN = (
    *("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket."),
    *("pickle.", "marshal.loads", "ctypes.", "os.remove", "os.rename", "os.mkdir", "os.rmdir"),
    *("os.link", "os.symlink", "os.truncate", "os.chmod", "os.putenv", "shutil.", "tempfile."),
    *("urllib.", "ftplib.", "smtplib.", "http.", "pty.", "signal.", "webbrowser.", "mmap."),
    *("sys.settrace", "sys.setprofile", "code.__new__", "function.__new__", "os.listdir"),
)
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    watch = _Watch()
    found: dict[str, Any] = {}
    for name, case in cases.items():
        watch.begin(case["folder"])
        policy = Policy(allow_pickle=case["allow_pickle"])
        report = check(Path(case["folder"]), case["paths"], "m", "classification", policy)
        watch.end()
        found[name] = {"rejections": len(report.rejections), "events": watch.events}
    print(json.dumps({"cases": found, "templates": watch.templates, "opened": watch.opened}))


class _Watch:
    """Keeps what is against the rules; counts what proves that it looked."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.templates = self.opened = 0
        self._folder: str | None = None
        sys.addaudithook(self._hook)

    def begin(self, folder: str) -> None:
        self.events, self._folder = [], folder

    def end(self) -> None:
        self._folder = None

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        allowed = getattr(self, f"_{event.replace('.', '_')}", None)
        if event.startswith(FORBIDDEN) or (allowed is not None and not allowed(*args)):
            # repr of what is being opened could open something itself.
            self.events.append(f"{event} {[str(arg)[:200] for arg in args]}")

    def _open(self, path: Any, mode: Any, flags: int) -> bool:
        self.opened += 1
        # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC.
        return flags & 0o1103 == 0 and self._may_read(path)

    def _os_scandir(self, path: Any) -> bool:
        return self._may_read(path)

    def _import(self, *_: Any) -> bool:
        # Not even the standard library: the process that checks may be unable to read it by then.
        return False

    def _compile(self, source: Any, filename: Any) -> bool:
        self.templates += filename == TEMPLATE
        # Jinja reads numbers by ast.literal_eval, whose text has no calls and no names.
        return filename in (TEMPLATE, "<unknown>") or self._is_library(filename)

    def _exec(self, code: Any) -> bool:
        return code.co_filename == TEMPLATE or self._is_library(code.co_filename)

    def _may_read(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        within = str(path)
        if within == TEMPLATE:
            # CPython looks for the line of a syntax error under the name that Jinja gave the code.
            return True
        inside = within == self._folder or within.startswith(f"{self._folder}/")
        return (inside and "/../" not in within) or self._is_library(within)

    def _is_library(self, path: Any) -> bool:
        return str(path).startswith(LIBRARIES) or str(path).startswith("<frozen ")


if __name__ == "__main__":
    main()
