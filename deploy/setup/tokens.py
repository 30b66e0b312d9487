"""Writes the token files of a composed suite: the one token that its people know, and its own.

    GRISTMILL_TOKEN=... python setup/tokens.py HASHES GATEWAY_TOKEN FOLLOWER_TOKEN WORKER_TOKEN

What people present is kept as a hash. The tokens of the gateway, of the services that follow the
registry and of its worker are made here, known to nobody else, and kept, so that a later start
locks nobody out.
"""

import json
import os
import secrets
import sys
from pathlib import Path

from services.runtime.auth import Scope, TokenFile, token_hash

LEAST_CHARACTERS = 16
PEOPLE: list[Scope] = ["infer", "read", "admin"]
OWN: dict[str, list[Scope]] = {
    "gateway": [*PEOPLE, "delegate"],
    "follower": ["read"],
    "worker": ["read", "admin"],
}


def main(tokens: Path, own: dict[str, Path]) -> int:
    """Write the file of hashes, and the token of each of our own where it has none yet."""
    people = os.environ.get("GRISTMILL_TOKEN", "")
    if len(people) < LEAST_CHARACTERS or not people.isascii() or not people.isprintable():
        sys.stderr.write(
            f"GRISTMILL_TOKEN must have at least {LEAST_CHARACTERS} printable ASCII characters\n"
        )
        return 1
    os.umask(0o077)
    entries = [_entry("operator", people, PEOPLE)]
    entries += [_entry(name, _kept(file), OWN[name]) for name, file in own.items()]
    # JSON is YAML, and needs nobody to quote.
    _write(tokens, json.dumps({"tokens": entries}, indent=2) + "\n")
    TokenFile.read(tokens)
    sys.stdout.write(f"tokens of {', '.join(['operator', *own])} are in place\n")
    return 0


def _entry(identity: str, token: str, scopes: list[Scope]) -> dict[str, object]:
    return {"identity": identity, "sha256": token_hash(token), "scopes": scopes}


def _kept(file: Path) -> str:
    if not file.exists():
        _write(file, secrets.token_urlsafe(32) + "\n")
    return file.read_text(encoding="ascii").strip()


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="ascii")
    partial.replace(file)


if __name__ == "__main__":
    hashes, *files = map(Path, sys.argv[1:])
    sys.exit(main(hashes, dict(zip(OWN, files, strict=True))))
