"""Who we tell, where, and the keys on both sides. Nothing here knows what a removal is."""

import hashlib
import secrets
from datetime import datetime
from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import CheckConstraint, Index, Q
from django.db.models.functions import Now

from partners.encryption import EncryptedTextField

slug_validator = RegexValidator(
    r"\A[a-z0-9][a-z0-9-]{0,62}\Z", "A slug is 1 to 63 of a-z, 0-9 and -, and starts with a letter or digit."
)


def all_usages() -> list[str]:
    return ["all"]


class Partner(models.Model):
    """An organisation that receives dataset releases (GDPR Art. 4(9) "recipient")."""

    class State(models.TextChoices):
        ONBOARDING = "onboarding", "onboarding"  # its endpoint has proved nothing yet; obligations are planned and age
        LIVE = "live", "live"  # messages leave as they become due
        PAUSED = "paused", "paused"  # staff stopped the messages; obligations stay open and age

    class Identifiers(models.TextChoices):
        RAW = "raw", "raw"  # the platform's own, as in the releases
        HMAC = "hmac_sha256", "HMAC-SHA256"  # made with a key of this partner's, and times cut to the day

    slug = models.CharField(max_length=63, unique=True, validators=[slug_validator])
    name = models.CharField(max_length=200)
    state = models.CharField(max_length=10, choices=State, default=State.ONBOARDING)
    usages = ArrayField(
        models.TextField(),
        default=all_usages,
        help_text="What it is licensed to use content for; all covers everything.",
    )
    identifiers = models.CharField(
        max_length=11,
        choices=Identifiers,
        default=Identifiers.RAW,
        db_default=Identifiers.RAW,
        help_text="How its messages name subjects, items and requests.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            CheckConstraint(
                condition=Q(state__in=["onboarding", "live", "paused"]), name="a_partner_is_onboarding_live_or_paused"
            ),
            CheckConstraint(
                condition=Q(identifiers__in=["raw", "hmac_sha256"]), name="a_partners_identifiers_are_raw_or_hashed"
            ),
            CheckConstraint(condition=Q(usages__len__gt=0), name="a_partner_is_licensed_for_some_usage"),
            CheckConstraint(condition=Q(slug__regex=r"^[a-z0-9][a-z0-9-]{0,62}$"), name="a_slug_is_plain"),
        ]

    def __str__(self) -> str:
        return self.slug


class Endpoint(models.Model):
    """Where a partner's messages go, and how many at a time."""

    class State(models.TextChoices):
        OPEN = "open", "open"
        SUSPENDED = "suspended", "suspended"  # it answered 410 Gone; notices stay owed until its address is set anew

    partner = models.OneToOneField(Partner, models.PROTECT, related_name="endpoint")
    url = models.CharField("URL", max_length=2000)
    state = models.CharField(max_length=10, choices=State, default=State.OPEN)
    state_reason = models.CharField(max_length=200, blank=True)
    window = models.PositiveIntegerField(
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How many messages may be on their way at once.",
    )
    max_notices = models.PositiveIntegerField(
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="How many notices a message holds at most.",
    )
    rate_per_second = models.PositiveIntegerField(
        default=50,
        validators=[MinValueValidator(1), MaxValueValidator(10000)],
        help_text="How many messages may leave in a second.",
    )
    changed_at = models.DateTimeField(db_default=Now(), editable=False)
    pending_url = models.CharField(
        "pending URL", max_length=2000, blank=True, db_default="", help_text="Used once it has passed the checks."
    )
    verify_due_at = models.DateTimeField(
        null=True, blank=True, help_text="When a worker runs the checks, after a change of keys."
    )
    verifying_until = models.DateTimeField(
        null=True, blank=True, help_text="The lease of the verification under way: one at a time."
    )

    class Meta:
        indexes = [Index(fields=["verify_due_at"], name="endpoint_to_verify", condition=Q(verify_due_at__isnull=False))]
        constraints = [
            CheckConstraint(condition=Q(state__in=["open", "suspended"]), name="an_endpoint_is_open_or_suspended"),
            CheckConstraint(condition=Q(window__range=(1, 100)), name="a_window_is_1_to_100"),
            CheckConstraint(condition=Q(max_notices__range=(1, 1000)), name="a_message_holds_1_to_1000_notices"),
            CheckConstraint(condition=Q(rate_per_second__range=(1, 10000)), name="a_rate_is_1_to_10000"),
        ]

    def __str__(self) -> str:
        return self.url


class SecretQuerySet(models.QuerySet["Secret"]):
    def in_force(self, *, now: datetime | Now) -> Self:
        """Secrets that have not ended at ``now``: those that sign, and those that will."""
        return self.filter(Q(retire_at__isnull=True) | Q(retire_at__gt=now), revoked_at__isnull=True)

    def active(self, *, now: datetime | Now) -> Self:
        """Secrets that sign, or that a signature is checked with, at ``now``."""
        return self.in_force(now=now).filter(active_from__lte=now)


class Secret(models.Model):
    """A key of one direction: outbound ones sign our messages, inbound ones check a partner's.

    The service-wide Ed25519 key belongs to no partner. No secret is deleted while an attempt names it.
    """

    class Direction(models.TextChoices):
        OUTBOUND = "outbound", "we sign"
        INBOUND = "inbound", "the partner signs"

    class Algorithm(models.TextChoices):
        HMAC = "hmac-sha256", "HMAC-SHA256 (v1)"
        ED25519 = "ed25519", "Ed25519 (v1a)"

    partner = models.ForeignKey(Partner, models.PROTECT, null=True, blank=True, related_name="secrets")
    direction = models.CharField(max_length=10, choices=Direction)
    algorithm = models.CharField(max_length=12, choices=Algorithm)
    key = EncryptedTextField(help_text="whsec_… or whsk_…; encrypted with ENCRYPTION_KEYS.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    active_from = models.DateTimeField(db_default=Now())
    retire_at = models.DateTimeField(null=True, blank=True, help_text="Ends by itself then: rotation with overlap.")
    revoked_at = models.DateTimeField(null=True, blank=True, help_text="Ended at once, retries included.")

    objects: ClassVar = SecretQuerySet.as_manager()

    class Meta:
        constraints = [
            CheckConstraint(condition=Q(direction__in=["outbound", "inbound"]), name="a_secret_has_one_direction"),
            CheckConstraint(condition=Q(algorithm__in=["hmac-sha256", "ed25519"]), name="a_secret_has_one_algorithm"),
            CheckConstraint(
                condition=Q(partner__isnull=False) | Q(algorithm="ed25519", direction="outbound"),
                name="a_service_wide_secret_is_an_outbound_ed25519_key",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.algorithm} key {self.pk}"

    @property
    def key_id(self) -> str:
        """The public name that attempts and ``/.well-known/removal-notices`` use."""
        return f"key_{self.pk}"


class IdentifierKey(models.Model):
    """A key that a partner's hashed identifiers are made with. The newest is in force; older ones still read answers.

    No ``Secret``: it has no direction, signs nothing, and the partner may read it again.
    """

    partner = models.ForeignKey(Partner, models.PROTECT, related_name="identifier_keys")
    key = EncryptedTextField(help_text="idk_…; encrypted with ENCRYPTION_KEYS.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"identifier key {self.pk}"


class Verification(models.Model):
    """What an endpoint proved, and what followed; or a person's word in its place. Append only, no personal data."""

    class Effect(models.TextChoices):
        NONE = "none", "nothing"  # it failed, or there was nothing to change
        LIVE = "live", "went live"
        URL = "url", "new URL in use"
        OPENED = "opened", "opened again"  # it had answered 410 Gone
        INCIDENT = "incident", "an incident was opened"
        STALE = "stale", "stale"  # the URL or the keys changed meanwhile: it says nothing about those in force

    partner = models.ForeignKey(Partner, models.PROTECT, related_name="verifications")
    url = models.CharField("URL", max_length=2000)
    key_ids = ArrayField(models.TextField(), help_text="The keys that signed.")
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(db_default=Now())
    passed = models.BooleanField()
    effect = models.CharField(max_length=10, choices=Effect)
    checks = models.JSONField(help_text="A list of partners.onboarding.Check.")
    asked_by = models.CharField(max_length=100, help_text="As actors are named in the log.")
    waived_because = models.TextField(blank=True, help_text="Why a named person let it through without the checks.")

    class Meta:
        constraints = [
            CheckConstraint(
                condition=Q(waived_because="") | Q(passed=False, checks=[]), name="a_waiver_proves_nothing"
            ),
        ]
        indexes = [Index(fields=["partner", "-id"], name="verification_of_partner")]

    def __str__(self) -> str:
        return f"verification {self.pk}"


class Contact(models.Model):
    """Whom to write to, or call, at a partner. Personal data: in no log, and deleted when it is no longer needed."""

    class Role(models.TextChoices):
        ENGINEERING = "engineering", "engineering"  # its receiver, its keys
        LEGAL = "legal", "legal"  # its contract, and what it refuses
        PRIVACY = "privacy", "privacy"  # its answers to people's wishes

    partner = models.ForeignKey(Partner, models.PROTECT, related_name="contacts")
    role = models.CharField(max_length=12, choices=Role)
    name = models.CharField(max_length=200)
    email = models.EmailField("e-mail", blank=True)
    phone = models.CharField(max_length=40, blank=True)

    class Meta:
        constraints = [
            CheckConstraint(
                condition=Q(role__in=["engineering", "legal", "privacy"]), name="a_contact_has_one_of_three_roles"
            ),
            CheckConstraint(
                condition=~Q(email="", phone=""),
                name="a_contact_can_be_reached",
                violation_error_message="Give an e-mail address or a telephone number.",
            ),
        ]

    def __str__(self) -> str:
        return f"contact {self.pk}"  # never the name: this is what is logged


class ApiKey(models.Model):
    """A bearer key, shown once. 256 random bits need no slow hash: SHA-256 is what is stored."""

    class Scope(models.TextChoices):
        PLATFORM = "platform", "platform"  # records requests, fills the ledger
        PARTNER = "partner", "partner"  # reads its own stream, acknowledges

    scope = models.CharField(max_length=10, choices=Scope)
    partner = models.ForeignKey(Partner, models.PROTECT, null=True, blank=True, related_name="api_keys")
    source = models.CharField(
        max_length=63,
        blank=True,
        validators=[slug_validator],
        help_text="Whose requests these are. A new key with the same source continues its idempotency keys.",
    )
    prefix = models.CharField(max_length=12, unique=True, editable=False)
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        constraints = [
            CheckConstraint(
                condition=Q(scope="platform", partner__isnull=True) & ~Q(source="")
                | Q(scope="partner", partner__isnull=False, source=""),
                name="a_key_has_a_source_or_a_partner",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.prefix}…"

    @classmethod
    def create(cls, *, partner: Partner | None = None, source: str = "") -> tuple["ApiKey", str]:
        """Make a key for a partner, or for a platform's ``source``; returns it with its text, which is not kept."""
        text = f"rk_{secrets.token_urlsafe(32)}"
        scope = cls.Scope.PARTNER if partner else cls.Scope.PLATFORM
        key = cls(scope=scope, partner=partner, source=source, prefix=text[:11], digest=cls.digest_of(text))
        key.save()
        return key, text

    @staticmethod
    def digest_of(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()
