"""The content security policy: strict, everywhere, and nothing on a page that it would stop."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client

from removal.models import Notice
from tests.removal.admin.story import give_up, list_url, pages, tell

pytestmark = pytest.mark.django_db

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}


def policy(header: str) -> dict[str, str]:
    return dict(part.strip().split(" ", 1) for part in header.split(";"))


class Offences(HTMLParser):
    """Collects what the policy would stop: code and style in the page, and whatever lies elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.assets: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        said = dict(attributes)
        if tag == "style" or (tag == "script" and "src" not in said and said.get("type") != "application/json"):
            self.found.append(tag)
        for name, value in attributes:
            if (
                name == "style"
                or name.startswith("on")
                or str(value).strip().lower().startswith(("javascript:", "data:"))
            ):
                self.found.append(f"{tag} {name}={value}")
        asset = said.get("src") or (said.get("href") if tag == "link" else None)
        if asset:
            self.assets.add(asset)
        if tag in {"base", "iframe", "object", "embed"}:
            self.found.append(tag)


def other_pages(notice: Notice) -> list[str]:
    user = User.objects.get(username="superuser")
    return [
        "/admin/",
        "/admin/removal/",
        "/admin/glossary/",
        "/admin/exports/",
        "/admin/metrics/",
        "/admin/second-factor/",
        "/admin/password_change/",
        "/admin/removal/disclosure/who-holds/?subject=x",
        "/admin/auth/user/",
        "/admin/auth/user/add/",
        f"/admin/auth/user/{user.pk}/change/",
        f"/admin/auth/user/{user.pk}/password/",
        f"/admin/partners/partner/act/rotate/?rows={notice.stream_id}",
        f"{list_url(Notice)}?late=overdue",
    ]


def test_no_page_breaks_the_policy_and_every_page_has_it(desk: Client) -> None:
    give_up(tell())
    addresses = [*pages(), *other_pages(Notice.objects.order_by("pk").first() or Notice())]
    assets: set[str] = set()
    for url in addresses:
        response = desk.get(url)
        assert response.status_code == 200, url
        assert policy(response["Content-Security-Policy"]) == POLICY, url
        assert response["X-Frame-Options"] == "DENY"
        assert response["Referrer-Policy"] == "same-origin"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert "camera=()" in response["Permissions-Policy"]
        read = Offences(response.content.decode())
        assert read.found == [], url
        assets |= read.assets
    assert {asset for asset in assets if not asset.startswith(("/static/", "/admin/jsi18n/"))} == set()
    for asset in assets:
        path = asset.removeprefix("/static/").split("?")[0]
        if not asset.startswith("/static/") or path.startswith("ninja/"):
            continue
        file = finders.find(path)
        assert file, asset
        if path.endswith(".css"):
            outside = re.findall(r"url\(\s*['\"]?(?:https?:|//|data:)[^)]*", Path(str(file)).read_text())
            assert outside == [], asset


@pytest.mark.parametrize("url", ["/admin/login/", "/docs", "/healthz", "/no-such-page", "/.well-known/removal-notices"])
def test_strangers_pages_have_it_too(client: Client, url: str) -> None:
    response = client.get(url)
    expected = POLICY | ({"img-src": "'self' data:"} if url == "/docs" else {})
    assert policy(response["Content-Security-Policy"]) == expected
    if response["Content-Type"].startswith("text/html"):
        assert Offences(response.content.decode()).found == []


def test_refusals_of_the_desk_have_it_too(viewer_desk: Client) -> None:
    refused = viewer_desk.get("/admin/removal/notice/add/")
    assert (refused.status_code, policy(refused["Content-Security-Policy"])) == (403, POLICY)


def test_the_glossary_explains_the_words_that_pages_use(desk: Client) -> None:
    page = desk.get("/admin/glossary/").content.decode()
    for word in ("notice", "stream", "held", "silent", "attested", "waiver", "closed-by-hand", "disclosure"):
        assert f'<dt id="{word}">' in page
    assert 'href="/admin/glossary/"' in desk.get(list_url(Notice)).content.decode()
