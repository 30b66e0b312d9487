"""Whose a token is and what it may do: default deny, hashes only, delegation that only narrows."""

import hashlib
import hmac
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import auth, errors
from services.runtime.auth import (
    ALL_SCOPES,
    PUBLIC,
    SCOPES,
    Authenticator,
    Credentials,
    TokenEntry,
    TokenFile,
    token_hash,
)
from services.runtime.call import Identity

INFER, READ, ADMIN = (
    "/gristmill.classifier.v1.ClassifierService/Classify",
    "/gristmill.registry.v1.RegistryService/GetModel",
    "/gristmill.registry.v1.RegistryService/DeleteModel",
)
HEALTH = "/grpc.health.v1.Health/Check"


def entry(name: str, token: str, *scopes: str) -> TokenEntry:
    """An entry of the token file."""
    return TokenEntry.model_validate(
        {"identity": name, "sha256": token_hash(token), "scopes": scopes}
    )


@pytest.fixture
def guarded() -> Authenticator:
    """Tokens of each kind."""
    return Authenticator(
        TokenFile(
            tokens=(
                entry("caller", "t-infer", "infer"),
                entry("viewer", "t-read", "read"),
                entry("root", "t-admin", "infer", "read", "admin"),
                entry("gateway", "t-gateway", "infer", "read", "delegate"),
                entry("nobody", "t-none"),
            )
        )
    )


def bearer(token: str, name: str = "", scopes: str = "") -> Credentials:
    """Credentials with a bearer token, at will on behalf of another."""
    return Credentials(f"Bearer {token}", name, scopes)


def test_a_token_is_stored_as_its_sha256() -> None:
    assert token_hash("secret") == hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize("authorization", ["Bearer t-infer", "bearer t-infer", "BEARER t-infer "])
def test_a_known_token_gives_its_identity_and_scopes(
    guarded: Authenticator, authorization: str
) -> None:
    identity = guarded.authorize(INFER, Credentials(authorization))
    assert identity == Identity("caller", frozenset({"infer"}))


@pytest.mark.parametrize("authorization", ["", "t-infer", "Basic t-infer", "Bearer", "Bearer "])
def test_no_bearer_token_is_no_credentials(guarded: Authenticator, authorization: str) -> None:
    with pytest.raises(errors.Unauthenticated) as refused:
        guarded.authorize(INFER, Credentials(authorization))
    assert refused.value.reason_given == errors.CREDENTIALS_MISSING


@pytest.mark.parametrize(
    "token", ["t-infe", "t-infer2", "T-INFER", "\xfftoken", "\ufffd", token_hash("t-infer")]
)
def test_an_unknown_token_is_refused_and_not_repeated(guarded: Authenticator, token: str) -> None:
    with pytest.raises(errors.Unauthenticated) as refused:
        guarded.authorize(INFER, bearer(token))
    assert refused.value.reason_given == errors.CREDENTIALS_INVALID
    assert token not in str(refused.value)


@pytest.mark.parametrize("token", ["t-infer", "t-none", "unknown"])
def test_every_entry_is_compared_in_constant_time(
    guarded: Authenticator, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    real = hmac.compare_digest

    def counting(ours: str, given: str) -> bool:
        compared.append(ours)
        return real(ours, given)

    monkeypatch.setattr(auth.hmac, "compare_digest", counting)
    with pytest.raises((errors.PermissionDenied, errors.Unauthenticated)):
        guarded.authorize(ADMIN, bearer(token))
    assert len(compared) == 5


def test_a_missing_scope_is_named(guarded: Authenticator) -> None:
    with pytest.raises(errors.PermissionDenied, match="caller") as refused:
        guarded.authorize(ADMIN, bearer("t-infer"))
    assert refused.value.reason_given == errors.SCOPE_MISSING
    assert refused.value.metadata == {"scope": "admin"}


@pytest.mark.parametrize(
    ("token", "allowed"),
    [
        ("t-infer", {INFER}),
        ("t-read", {READ}),
        ("t-admin", {INFER, READ, ADMIN}),
        ("t-gateway", {INFER, READ}),
        ("t-none", set()),
    ],
)
def test_scopes_allow_what_they_say_and_nothing_else(
    guarded: Authenticator, token: str, allowed: set[str]
) -> None:
    for method in (INFER, READ, ADMIN):
        if method in allowed:
            guarded.authorize(method, bearer(token))
        else:
            with pytest.raises(errors.PermissionDenied):
                guarded.authorize(method, bearer(token))


@pytest.mark.parametrize(
    "method",
    [
        "/gristmill.classifier.v1.ClassifierService/Nope",
        "/gristmill.classifier.v1.ClassifierService/classify",
        "/gristmill.classifier.v1.ClassifierService/",
        "gristmill.classifier.v1.ClassifierService/Classify",
        "",
    ],
)
def test_a_method_that_the_table_lacks_is_denied_to_everyone(
    guarded: Authenticator, method: str
) -> None:
    with pytest.raises(errors.PermissionDenied):
        guarded.authorize(method, bearer("t-admin"))


def test_only_health_is_public(guarded: Authenticator) -> None:
    public = {method for method, scope in SCOPES.items() if scope == PUBLIC}
    assert public == {f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch", "List")}
    for method in public:
        guarded.authorize(method, Credentials())
        guarded.authorize(method, bearer("unknown"))


def test_every_scope_of_the_table_can_be_granted() -> None:
    assert set(SCOPES.values()) - {PUBLIC} <= ALL_SCOPES


def test_without_a_token_file_anyone_may_call_what_there_is() -> None:
    open_door = Authenticator(None)
    assert not open_door.enabled
    for method in (INFER, READ, ADMIN, HEALTH):
        assert open_door.authorize(method, Credentials()).name == "anonymous"


def test_a_delegate_speaks_for_its_caller(guarded: Authenticator) -> None:
    identity = guarded.authorize(INFER, bearer("t-gateway", "ann@example.com", "infer,admin"))
    assert identity == Identity("ann@example.com", frozenset({"infer"}))


@given(asked=st.sets(st.sampled_from([*sorted(ALL_SCOPES), "root", "*", ""])))
def test_delegation_narrows_and_cannot_delegate_further(asked: set[str]) -> None:
    held = {"infer", "read", "delegate"}
    guarded = Authenticator(TokenFile(tokens=(entry("gateway", "t", *sorted(held)),)))
    credentials = bearer("t", "ann", ",".join(sorted(asked)))
    allowed = asked & held - {"delegate"}
    for method, scope in ((INFER, "infer"), (READ, "read"), (ADMIN, "admin")):
        if scope in allowed:
            assert guarded.authorize(method, credentials).scopes == allowed
        else:
            with pytest.raises(errors.PermissionDenied, match="ann"):
                guarded.authorize(method, credentials)


def test_who_may_not_delegate_may_not_even_name_itself(guarded: Authenticator) -> None:
    for name in ("ann", "caller"):
        with pytest.raises(errors.PermissionDenied) as refused:
            guarded.authorize(INFER, bearer("t-infer", name, "infer"))
        assert refused.value.metadata == {"scope": "delegate"}


@pytest.mark.parametrize("name", ["a b", "-a", "a\nb", "a" * 129, "a\u202eb", "é", "a/b"])
def test_a_malformed_delegated_identity_is_refused(guarded: Authenticator, name: str) -> None:
    with pytest.raises(errors.PermissionDenied, match="malformed"):
        guarded.authorize(INFER, bearer("t-gateway", name, "infer"))


TOKENS = """
tokens:
  - identity: ann
    sha256: {hash}
    scopes: [infer, read]
"""


def test_a_token_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(TOKENS.format(hash=token_hash("t")))
    (found,) = TokenFile.read(path).tokens
    assert (found.identity, found.scopes) == ("ann", {"infer", "read"})


BROKEN = {
    "empty": "",
    "no tokens": "tokens: []",
    "not yaml": "tokens: [",
    "a plain token": TOKENS.format(hash="secret"),
    "an upper-case hash": TOKENS.format(hash="A" * 64),
    "an unknown scope": TOKENS.format(hash="a" * 64).replace("read", "write"),
    "an unknown key": TOKENS.format(hash="a" * 64) + "    expires: never",
    "a hostile identity": TOKENS.format(hash="a" * 64).replace("ann", '"a\\nb"'),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_token_file_that_is_wrong_says_which_and_stops_the_start(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="tokens.yaml"):
        TokenFile.read(path)
    with pytest.raises(ValueError, match="gone.yaml"):
        TokenFile.read(tmp_path / "gone.yaml")


def test_no_scope_is_a_way_to_every_other(guarded: Authenticator) -> None:
    """Any set of scopes reaches exactly the methods that the table gives it."""
    for size in range(len(ALL_SCOPES) + 1):
        for held in itertools.combinations(sorted(ALL_SCOPES), size):
            one = Authenticator(TokenFile(tokens=(entry("x", "t", *held),)))
            reached = set()
            for method in SCOPES:
                try:
                    one.authorize(method, bearer("t"))
                except errors.PermissionDenied:
                    continue
                reached.add(method)
            assert reached == {m for m, s in SCOPES.items() if s == PUBLIC or s in held}
