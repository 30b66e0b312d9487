"""Health, the page and the document, as they are served."""

import re

from tests.harness import soon
from tests.unit.gateway.stack import stack


class TestHealth:
    async def test_ready_only_when_everything_serves(self) -> None:
        async with stack() as s:
            response = await soon(s.client.get("/health/ready"))
            assert response.json() == {
                "status": "SERVING",
                "upstreams": {
                    name: {"status": "SERVING"} for name in ("registry", "classifier", "generator")
                },
            }
            s.behind.server.health.set("", serving=False)
            response = await soon(s.client.get("/health/ready"))
            assert response.status_code == 503
            assert response.json()["upstreams"]["registry"] == {"status": "NOT_SERVING"}
            assert (await s.client.get("/health/live")).status_code == 200

    async def test_one_that_is_away_is_named(self) -> None:
        async with stack(generator="127.0.0.1:1") as s:
            response = await soon(s.client.get("/health/ready"))
        assert response.status_code == 503
        assert response.json()["upstreams"]["generator"] == {"status": "UNAVAILABLE"}
        assert response.json()["upstreams"]["classifier"] == {"status": "SERVING"}


class TestDocuments:
    async def test_the_page_needs_no_other_host(self) -> None:
        async with stack() as s:
            page = await s.client.get("/docs")
            links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
            assets = {link: await s.client.get(link) for link in links if link.startswith("/")}
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert assets
        for text in (page.text, *(asset.text for asset in assets.values())):
            text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, not a link
            assert not re.search(r"https?://|[\"'(]//", text)
        assert all(asset.status_code == 200 for asset in assets.values())
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", page.text)

    async def test_the_document_is_served_with_an_etag(self) -> None:
        async with stack() as s:
            first = await s.client.get("/openapi.json")
            etag = first.headers["etag"]
            again = await s.client.get("/openapi.json", headers={"if-none-match": etag})
        assert first.json()["openapi"] == "3.1.0"
        assert again.status_code == 304

    async def test_every_answer_has_the_security_headers(self) -> None:
        async with stack() as s:
            for path in ("/docs", "/health/live", "/nothing", "/registry/v1/models/m"):
                headers = (await s.client.get(path)).headers
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["x-frame-options"] == "DENY"
                assert headers["x-request-id"]
