"""The commands say what they did, and what is wrong with what they were given."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from partners.models import ApiKey, Endpoint, Partner, Secret
from removal.models import Dataset, LogEntry, ManifestEntry, Release, Stream
from tests.factories import make_partner, make_release, make_wish, record
from tests.receivers import Reply, listening
from tests.removal.careful import careful

pytestmark = pytest.mark.django_db(transaction=True)

URL = "https://partner.example/removal"


def run(*arguments: str) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def actions() -> list[str]:
    return list(LogEntry.objects.order_by("id").values_list("action", flat=True))


def test_partner_add_prints_its_secrets_once() -> None:
    said = run("partner", "add", "acme", "--url", URL, "--name", "Acme", "--max-notices", "10")
    partner = Partner.objects.get(slug="acme")
    assert Secret.objects.get(partner=partner).key in said
    [text] = [word for word in said.split() if word.startswith("rk_")]
    assert ApiKey.objects.get(partner=partner).digest == ApiKey.digest_of(text)
    assert (partner.endpoint.url, partner.endpoint.max_notices) == (URL, 10)
    assert Stream.objects.get(partner=partner).head == 0
    assert run("partner", "list") == f"acme\tonboarding\topen\t{URL}\tnotices 1..0, sent through 0\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["acme", "--url", URL], "already exists"),
        (["A B", "--url", URL], "A slug is"),
        (["globex", "--url", "http://partner.example/"], "https"),
        (["globex", "--url", "https://10.0.0.1/"], "10.0.0.1"),
        (["globex", "--url", URL, "--window", "0"], "greater than or equal to 1"),
    ],
)
def test_partner_add_refuses_what_cannot_be(arguments: list[str], said: str) -> None:
    make_partner("acme")
    with pytest.raises(CommandError, match=said):
        run("partner", "add", *arguments)
    assert Partner.objects.count() == Stream.objects.count() == 1


def test_partner_add_takes_what_it_is_licensed_for() -> None:
    run("partner", "add", "acme", "--url", URL, "--usages", "search,train-ai")
    run("partner", "add", "globex", "--url", URL)
    licences = Partner.objects.order_by("slug").values_list("slug", "usages")
    assert list(licences) == [("acme", ["search", "train-ai"]), ("globex", ["all"])]
    with pytest.raises(CommandError, match="There is no usage training"):
        run("partner", "add", "initech", "--url", URL, "--usages", "search,training")


def test_partner_pause_resume_rotate_and_change_url_are_logged() -> None:
    made = make_partner("acme")
    assert "is paused" in run("partner", "pause", "acme")
    assert "was paused already" in run("partner", "pause", "acme")
    assert Partner.objects.get().state == "paused"
    assert "is live again" in run("partner", "resume", "acme")
    rotated = run("partner", "rotate", "acme", "--overlap-hours", "1")
    assert made.secret not in rotated
    assert "whsec_" in rotated
    Endpoint.objects.update(state="suspended")
    run("partner", "change-url", "acme", "https://partner.example/new", "--waive", "tried by hand")
    assert Endpoint.objects.values_list("url", "state").get() == ("https://partner.example/new", "open")
    assert actions() == ["partner_added", "partner_paused", "partner_resumed", "secret_rotated", "endpoint_proposed",
                         "verification_waived"]  # fmt: skip


def test_partner_identifiers_are_chosen_and_their_key_is_shown() -> None:
    said = run("partner", "add", "acme", "--url", URL, "--identifiers", "hmac_sha256")
    [key] = [word for word in said.split() if word.startswith("idk_")]
    assert key in run("partner", "identifiers", "acme", "hmac_sha256")
    assert "idk_" not in run("partner", "identifiers", "acme", "raw")
    assert Partner.objects.get().identifiers == "raw"
    assert key in run("partner", "identifiers", "acme", "hmac_sha256")  # the same one, so old messages still match
    another = run("partner", "identifiers", "acme", "hmac_sha256", "--new-key")
    assert "idk_" in another
    assert key not in another
    assert "idk_" not in run("partner", "add", "globex", "--url", URL)
    assert actions() == [
        "partner_added",
        "identifiers_chosen",
        "identifiers_chosen",
        "identifier_key_made",
        "partner_added",
    ]
    with connection.cursor() as cursor:
        cursor.execute("select key from partners_identifierkey")
        assert all(not stored.startswith("idk_") for (stored,) in cursor.fetchall())  # encrypted


@pytest.mark.usefixtures("loopback_partners")
def test_partner_verify_prints_each_check_and_fails_where_the_endpoint_does() -> None:
    with listening(lambda _: Reply(200, b"<html>hello</html>")) as receiver:
        said = run("partner", "add", "acme", "--url", receiver.url)
        out = StringIO()
        with pytest.raises(CommandError, match=r"did not pass\. Nothing changes for acme"):
            call_command("partner", "verify", "acme", stdout=out)
        assert "FAILED  unsigned                It answered 200; delivered. <html>hello</html>\n" in out.getvalue()
        assert "        It took a message that nobody signed" in out.getvalue()
        assert "passed  good signature" in out.getvalue()
        [secret] = [word for word in said.split() if word.startswith("whsec_")]
        receiver.script = lambda message: careful(message, secret=secret)
        assert "acme is live: what it is owed is sent to" in run("partner", "verify", "acme")
        receiver.script = lambda _: Reply(200)
        with pytest.raises(CommandError, match="did not pass"):
            run("partner", "change-url", "acme", f"{receiver.url}new")
        assert f"\tpending {receiver.url}new\t" in run("partner", "list")
    assert actions() == [
        "partner_added", "verification_failed", "verification_passed", "endpoint_proposed", "verification_failed",
    ]  # fmt: skip


def test_partner_waive_needs_a_reason_and_something_to_waive() -> None:
    run("partner", "add", "acme", "--url", URL)
    with pytest.raises(CommandError, match="is in onboarding"):
        run("partner", "resume", "acme")
    with pytest.raises(CommandError, match="needs a reason"):
        run("partner", "waive", "acme", "--reason", " ")
    assert "acme is live" in run("partner", "waive", "acme", "--reason", "tested by phone")
    with pytest.raises(CommandError, match="needs no waiver"):
        run("partner", "waive", "acme", "--reason", "again")


def test_partner_revoke_secret_ends_it_and_can_give_a_new_one() -> None:
    made = make_partner("acme")
    [old] = Secret.objects.filter(partner=made.partner)
    with pytest.raises(CommandError, match="last secret that signs for acme"):
        run("partner", "revoke-secret", "acme", old.key_id)
    assert "whsec_" in run("partner", "revoke-secret", "acme", old.key_id, "--new")
    listed = run("partner", "keys", "acme").splitlines()
    assert [line.split("\t")[0] for line in listed] == [
        f"key_{pk}" for pk in Secret.objects.filter(partner=made.partner).order_by("id").values_list("pk", flat=True)
    ]
    assert "revoked -" not in listed[0]
    with pytest.raises(CommandError, match="no key key_99"):
        run("partner", "revoke-secret", "acme", "key_99")
    assert actions() == ["partner_added", "secret_revoked"]


def test_service_key_rotates_and_is_revoked() -> None:
    make_partner("acme")
    [old] = Secret.objects.filter(partner=None)
    assert "is published" in run("service_key", "rotate", "--lead-hours", "1")
    with pytest.raises(CommandError, match="has not retired yet"):
        run("service_key", "rotate")
    assert "signs nothing any more" in run("service_key", "revoke", old.key_id)
    assert run("service_key", "list").count("key_") == 1
    assert actions() == ["partner_added", "service_key_rotated", "service_key_revoked"]
    assert Endpoint.objects.get().verify_due_at is not None


@pytest.mark.parametrize("action", [["pause"], ["resume"], ["rotate"], ["verify"], ["keys"]])
def test_partner_names_the_unknown(action: list[str]) -> None:
    with pytest.raises(CommandError, match="No partner is called nobody"):
        run("partner", *action, "nobody")


def test_apikey_is_shown_once_and_revoked_at_once() -> None:
    said = run("apikey", "create", "--platform", "blogs")
    [text] = [word for word in said.split() if word.startswith("rk_") and not word.endswith(";")][-1:]
    key = ApiKey.objects.get(digest=ApiKey.digest_of(text))
    assert (key.scope, key.source) == ("platform", "blogs")
    assert text not in run("apikey", "list")
    assert "Revoked" in run("apikey", "revoke", key.prefix)
    assert "revoked already" in run("apikey", "revoke", key.prefix)
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert actions() == ["api_key_created", "api_key_revoked"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--platform", "My Blogs"], "A slug is"),
        (["create", "--partner", "nobody"], "No partner is called nobody"),
        (["revoke", "rk_nothing"], "No key starts with rk_nothing"),
    ],
)
def test_apikey_refuses_what_cannot_be(arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        run("apikey", *arguments)
    assert ApiKey.objects.count() == 0


EXPORT = """<rss xmlns:wp="http://wordpress.org/export/1.2/"><channel>
<wp:wxr_version>1.2</wp:wxr_version><wp:base_blog_url>https://blog.example</wp:base_blog_url>{}</channel></rss>"""
ITEM = (
    "<item><wp:post_id>{}</wp:post_id><wp:post_parent>0</wp:post_parent><wp:post_type>post</wp:post_type>"
    "<wp:status>{}</wp:status><wp:post_password></wp:post_password></item>"
)


def write(folder: Path, text: str) -> str:
    file = folder / "export.xml"
    file.write_text(text)
    return str(file)


def test_import_wxr_fills_a_new_release_and_can_seal_it(tmp_path: Path) -> None:
    file = write(tmp_path, EXPORT.format(ITEM.format(1, "publish") + ITEM.format(2, "draft")))
    assert run("import_wxr", file, "--release", "2024-02", "--seal") == (
        "2024-02: 1 items of site:blog.example (1 post)\nleft out post:2: draft\n1 left out (1 draft)\n"
    )
    release = Release.objects.get()
    assert (release.name, release.state, release.item_count) == ("2024-02", "sealed", 1)
    with pytest.raises(CommandError, match="is sealed"):
        run("import_wxr", file, "--release", "2024-02")


def test_import_wxr_does_not_seal_what_was_opted_out(tmp_path: Path) -> None:
    record(make_wish("site:blog.example"))
    with pytest.raises(CommandError, match=r"was filled and not sealed\. Content of 1 subject must go"):
        run("import_wxr", write(tmp_path, EXPORT.format(ITEM.format(1, "publish"))), "--release", "2024-02", "--seal")
    assert Release.objects.get().state == "building"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not xml", "Nothing was imported"),
        (EXPORT.format(ITEM.format(1, "publish"))[:-30], "Nothing was imported"),
        ('<!DOCTYPE a [<!ENTITY b "bomb">]>' + EXPORT.format("&b;"), "Nothing was imported"),
        (EXPORT.format(ITEM.format(1, "draft")), "nothing public"),
    ],
)
def test_import_wxr_of_a_broken_or_hostile_file_leaves_nothing(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        run("import_wxr", write(tmp_path, text), "--release", "2024-02")
    assert Dataset.objects.count() == Release.objects.count() == ManifestEntry.objects.count() == 0


def test_import_wxr_names_a_file_that_is_not_there_and_a_name_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        run("import_wxr", str(tmp_path / "nothing.xml"), "--release", "r")
    with pytest.raises(CommandError, match="A name is"):
        run("import_wxr", write(tmp_path, EXPORT.format(ITEM.format(1, "publish"))), "--release", "a/b")
    make_release("kept", contents={"site:1": ["post:1"]}, sealed=False)
    run("import_wxr", write(tmp_path, EXPORT.format(ITEM.format(1, "publish"))), "--release", "kept")
    assert [entry.subject.key for entry in ManifestEntry.objects.all()] == ["site:blog.example"]
