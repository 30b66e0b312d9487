"""What headers say: identity, time, metadata, origin, host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from gateway import caller
from gateway.caller import Delegation, RequestIds
from gateway.errors import RefusalError
from gateway.guard import MAX_HEADER_BYTES, Guard, guard
from services.runtime.auth import ALL_SCOPES
from services.runtime.call import Identity
from services.runtime.errors import InvalidRequest


class TestTimeout:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, 30.0),
            ({"x-gristmill-timeout-ms": "2500"}, 2.5),
            ({"grpc-timeout": "2500m"}, 2.5),
            ({"grpc-timeout": "3S"}, 3.0),
            ({"grpc-timeout": "2M"}, 120.0),
            ({"grpc-timeout": "500000u"}, 0.5),
            ({"x-gristmill-timeout-ms": "1", "grpc-timeout": "9S"}, 0.001),
        ],
    )
    def test_taken(self, headers: dict[str, str], seconds: float) -> None:
        assert caller.timeout_s(headers, 30.0) == pytest.approx(seconds)

    @pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "x", "99999999999", "86400001", "٣"])
    def test_refused(self, value: str) -> None:
        with pytest.raises(InvalidRequest):
            caller.timeout_s({"x-gristmill-timeout-ms": value}, 30.0)

    @pytest.mark.parametrize("value", ["5", "5s", "123456789S", "0S", "25H", "-5S"])
    def test_refused_in_grpc_spelling(self, value: str) -> None:
        with pytest.raises(InvalidRequest):
            caller.timeout_s({"grpc-timeout": value}, 30.0)


class TestRequestIds:
    def test_the_callers_own_where_it_is_well_formed(self) -> None:
        ids = RequestIds()
        assert ids.of("abc-1:2/3.4_5") == "abc-1:2/3.4_5"
        made = {ids.of(bad) for bad in ("", "a b", "a\n", "x" * 129, "é")}
        assert len(made) == 5

    @given(st.text())
    def test_always_safe_to_log_and_send(self, given_id: str) -> None:
        made = RequestIds().of(given_id)
        assert made.isascii()
        assert made.isprintable()
        assert 0 < len(made) <= 128


class TestMetadata:
    def test_the_trace_and_what_is_asked_for(self) -> None:
        headers = {
            "traceparent": "00-a-b-01",
            "grpc-metadata-x-user": "u",
            "x-user": "not this",
            "cookie": "secret",
        }
        assert caller.passed_on(headers) == (("traceparent", "00-a-b-01"), ("x-user", "u"))

    @pytest.mark.parametrize(
        "key",
        [
            "authorization",
            "x-gristmill-identity",
            "x-gristmill-scopes",
            "x-request-id",
            "grpc-timeout",
            "traceparent",
            "data-bin",
            "",
            "a" * 65,
        ],
    )
    def test_reserved_keys_cannot_be_set(self, key: str) -> None:
        with pytest.raises(InvalidRequest):
            caller.passed_on({f"grpc-metadata-{key}": "v"})

    @pytest.mark.parametrize("value", ["é", "a\tb", "\x00"])
    def test_values_that_metadata_cannot_carry(self, value: str) -> None:
        with pytest.raises(InvalidRequest):
            caller.passed_on({"traceparent": value})


class TestDelegation:
    def test_with_a_token_of_its_own_it_speaks_for_the_caller(self) -> None:
        sent = dict(
            Delegation("secret").metadata(
                Identity("alice", frozenset({"infer", "delegate"})),
                {"authorization": "Bearer alices", "x-gristmill-identity": "root"},
            )
        )
        assert sent == {
            "authorization": "Bearer secret",
            "x-gristmill-identity": "alice",
            "x-gristmill-scopes": "infer",
        }

    def test_without_one_it_passes_on_what_came(self) -> None:
        headers = {"authorization": "Bearer alices", "cookie": "c"}
        sent = Delegation().metadata(Identity("anonymous", ALL_SCOPES), headers)
        assert sent == (("authorization", "Bearer alices"),)


def headers(**fields: str) -> Headers:
    return Headers(
        {"host": "localhost:8080", **{k.replace("_", "-"): v for k, v in fields.items()}}
    )


class TestGuard:
    GUARD = guard(["https://ui.example"], ["mill.example"], tokens=False)

    @pytest.mark.parametrize(
        "host",
        ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "10.1.2.3", "Mill.Example:443"],
    )
    def test_names_that_are_ours(self, host: str) -> None:
        assert self.GUARD.admit(headers(host=host)) == {"vary": "origin"}

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io"]
    )
    def test_names_that_are_not(self, host: str) -> None:
        with pytest.raises(RefusalError) as caught:
            self.GUARD.admit(headers(host=host))
        assert caught.value.http == 421

    def test_with_tokens_any_name_will_do_unless_some_are_listed(self) -> None:
        assert guard([], [], tokens=True).admit(headers(host="any.example")) == {}
        with pytest.raises(RefusalError):
            guard([], ["mill.example"], tokens=True).admit(headers(host="any.example"))

    @pytest.mark.parametrize(
        "origin",
        [
            "null",
            "https://evil.example",
            "http://localhost:8081",
            "http://localhost",
            "https://ui.example.evil",
            "",
        ],
    )
    def test_foreign_origins(self, origin: str) -> None:
        with pytest.raises(RefusalError) as caught:
            self.GUARD.admit(headers(origin=origin))
        assert caught.value.http == 403

    def test_own_and_allowed_origins(self) -> None:
        assert self.GUARD.admit(headers(origin="http://localhost:8080")) == {}
        admitted = self.GUARD.admit(headers(origin="https://ui.example"))
        assert admitted["access-control-allow-origin"] == "https://ui.example"

    def test_headers_too_large_and_doubled(self) -> None:
        with pytest.raises(RefusalError) as caught:
            self.GUARD.admit(headers(cookie="x" * MAX_HEADER_BYTES))
        assert caught.value.http == 431
        doubled = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])
        with pytest.raises(RefusalError):
            self.GUARD.admit(doubled)

    @pytest.mark.parametrize("origin", ["ui.example", "https://ui.example/path", "ftp://x", "*"])
    def test_what_is_no_origin_is_no_setting(self, origin: str) -> None:
        with pytest.raises(ValueError, match="allowed_origins"):
            guard([origin], [], tokens=True)

    def test_preflight_is_for_allowed_origins_only(self) -> None:
        asked = headers(
            origin="https://ui.example",
            access_control_request_method="POST",
            access_control_request_headers="content-type",
        )
        answer = self.GUARD.preflight(asked)
        assert answer is not None
        assert answer["access-control-allow-headers"] == "content-type"
        assert self.GUARD.preflight(headers(origin="https://ui.example")) is None
        assert Guard(frozenset(), frozenset(), any_host=True).preflight(asked) is None
