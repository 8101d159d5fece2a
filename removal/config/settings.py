"""All settings. The only place that reads the environment; README.md documents each name.

A value may come from a file: ``SECRET_KEY_FILE=/run/secrets/key`` is read in place of ``SECRET_KEY``.
"""

import ipaddress
import os
import re
import secrets
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from partners.addresses import OwnPlaces, UrlRefused, check_url
from partners.signing import HmacSecret, KeyUnusable
from removal.config import embedded, probes

ROOT = Path(__file__).resolve().parent.parent.parent


def env(name: str, default: str = "") -> str:
    """Read a setting from ``NAME``, or from the file that ``NAME_FILE`` names; an empty value counts as unset."""
    file = os.environ.get(f"{name}_FILE")
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE names {file}, which cannot be read: {error.strerror}.") from error
    return os.environ.get(name) or default


def env_list(name: str, default: str = "") -> list[str]:
    return [part.strip() for part in env(name, default).split(",") if part.strip()]


def env_flag(name: str, default: str = "0") -> bool:
    value = env(name, default).lower()
    if value not in {"0", "1", "true", "false", "yes", "no"}:
        raise ImproperlyConfigured(f"{name} is {value!r}; write 1 or 0.")
    return value in {"1", "true", "yes"}


def env_number(name: str, default: int, *, least: int = 1) -> int:
    value = env(name, str(default))
    if not value.isdecimal() or int(value) < least:
        raise ImproperlyConfigured(f"{name} is {value!r}; write a whole number of at least {least}.")
    return int(value)


# Where the embedded servers keep their data. In production nothing is written here.
VAR = Path(env("REMOVAL_VAR", str(ROOT / "var")))

# On for `manage.py demo`, or by hand: start our own PostgreSQL and broker under VAR, and make keys there.
EMBEDDED = env_flag("REMOVAL_EMBEDDED")

DATABASE_URL = env("DATABASE_URL")
if not DATABASE_URL:
    if not EMBEDDED:
        raise ImproperlyConfigured(
            "DATABASE_URL is not set. Name the PostgreSQL that holds the ledger "
            "(postgresql://user:password@host/database), or set REMOVAL_EMBEDDED=1 to use the one in "
            f"{VAR}. Nothing was started: an empty ledger would read as 'nobody opted out'."
        )
    DATABASE_URL = embedded.ensure_running(VAR / "postgres")
    os.environ["DATABASE_URL"] = DATABASE_URL  # for the processes that this one starts


# The planner's lock works only where each statement sees what was committed before it (design §6).
# Statements here are many and short: to compile one (JIT), or to start processes beside it, costs more than it gives.
SESSION_OPTIONS = (
    r"-c default_transaction_isolation=read\ committed -c idle_in_transaction_session_timeout=60s -c jit=off"
    " -c max_parallel_workers_per_gather=0"
)


def database(url: str) -> dict[str, Any]:
    """Turn a libpq URL into Django's form. Everything that is not an address is passed on to libpq."""
    try:
        parts = conninfo_to_dict(url)
    except Exception as error:
        raise ImproperlyConfigured(f"DATABASE_URL cannot be read: {type(error).__name__}.") from error  # no password
    given_options = parts.pop("options", "")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.pop("dbname", ""),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        "HOST": parts.pop("host", ""),
        "PORT": parts.pop("port", ""),
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {**parts, "options": f"{given_options} {SESSION_OPTIONS}".strip()},
    }


DATABASES = {"default": database(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def own_secret(name: str, made: str) -> str:
    """Read a secret; only an embedded installation makes one for itself, once, readable by its owner alone."""
    value = env(name)
    if value:
        return value
    if not EMBEDDED:
        raise ImproperlyConfigured(f"{name} is not set. README.md, section Configure, says how to make one.")
    file = VAR / name.lower()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(made)
    except FileExistsError:
        return file.read_text(encoding="utf-8")
    return made


SECRET_KEY = own_secret("SECRET_KEY", secrets.token_urlsafe(50))
# Fernet keys that encrypt partners' secrets in the database, newest first; old ones stay until `manage.py reencrypt`.
ENCRYPTION_KEYS = [
    key.strip() for key in own_secret("ENCRYPTION_KEYS", Fernet.generate_key().decode()).split(",") if key.strip()
]
for number, key in enumerate(ENCRYPTION_KEYS or [""], start=1):
    try:
        Fernet(key)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"ENCRYPTION_KEYS: key {number} is no Fernet key (32 bytes in URL-safe base64). "
            "README.md, section Configure, says how to make one."
        ) from error

# The address under which partners and platforms reach this service; it stands in every message.
PUBLIC_URL = env("PUBLIC_URL", "http://127.0.0.1:8000").rstrip("/")
# In small letters: what is secure behind https:// is decided by these words below.
if not re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\s?#]*)?", PUBLIC_URL):
    raise ImproperlyConfigured(
        f"PUBLIC_URL is {PUBLIC_URL!r}; write the whole address, such as https://removal.example."
    )
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]" if EMBEDDED else "")
DEBUG = False

# Development only: `check --deploy` refuses both.
PARTNER_ALLOW_HTTP = env_flag("PARTNER_ALLOW_HTTP")
try:
    PARTNER_ALLOWED_NETWORKS = tuple(ipaddress.ip_network(n) for n in env_list("PARTNER_ALLOWED_NETWORKS"))
except ValueError as error:
    raise ImproperlyConfigured(f"PARTNER_ALLOWED_NETWORKS: {error}. Write networks such as 10.1.0.0/16.") from error

# One try at a partner: everything from name look-up to the answer's headers.
DELIVERY_DEADLINE = timedelta(seconds=env_number("DELIVERY_DEADLINE_SECONDS", 15))
# A claim lasts this long; twice the deadline and the database's own timeouts, so that only the dead lose it.
DELIVERY_LEASE = timedelta(seconds=env_number("DELIVERY_LEASE_SECONDS", 60))
if DELIVERY_LEASE < 2 * DELIVERY_DEADLINE:
    raise ImproperlyConfigured(
        "DELIVERY_LEASE_SECONDS must be at least twice DELIVERY_DEADLINE_SECONDS, or a slow partner is sent to twice."
    )
# One drain of one partner's stream ends after this long, and hints again.
DRAIN_BUDGET = timedelta(seconds=20)
# How often each worker process looks for work by itself (with jitter), and how often for missed pairs.
SWEEP_INTERVAL = timedelta(seconds=env_number("SWEEP_INTERVAL_SECONDS", 2))
RECONCILE_INTERVAL = timedelta(seconds=env_number("RECONCILE_INTERVAL_SECONDS", 60))
# A worker that took nothing from a broker that is up ends after this long (0: never); how often each of its processes
# gives it something to take.
WATCHDOG = timedelta(seconds=env_number("WATCHDOG_SECONDS", 300, least=0))
PULSE_INTERVAL = timedelta(seconds=env_number("PULSE_INTERVAL_SECONDS", 30))
# How far ahead of ours a platform's clock may run before its times count as future.
CLOCK_SKEW = timedelta(minutes=5)
# The partner's clock: from the moment a notice is planned (design §5).
NOTICE_RESPOND_WITHIN = timedelta(days=env_number("NOTICE_RESPOND_WITHIN_DAYS", 30))

# How long a rotated secret still signs beside its successor.
SECRET_OVERLAP = timedelta(hours=env_number("SECRET_OVERLAP_HOURS", 24))
# How often each worker process looks for what time runs out for.
DEADLINES_INTERVAL = timedelta(seconds=env_number("DEADLINES_INTERVAL_SECONDS", 300))
# Whom it tells: by e-mail, and by a webhook that is signed like a partner's.
ESCALATION_EMAILS = env_list("ESCALATION_EMAILS")
OPERATOR_WEBHOOK_URL = env("OPERATOR_WEBHOOK_URL")
OPERATOR_WEBHOOK_SECRET = env("OPERATOR_WEBHOOK_SECRET")
if OPERATOR_WEBHOOK_URL:
    try:
        HmacSecret.from_text(OPERATOR_WEBHOOK_SECRET)
    except KeyUnusable as error:
        raise ImproperlyConfigured(f"OPERATOR_WEBHOOK_SECRET: {error} OPERATOR_WEBHOOK_URL needs it.") from error
EMAIL_HOST = env("EMAIL_HOST", "localhost")
EMAIL_PORT = env_number("EMAIL_PORT", 25)
EMAIL_HOST_USER = env("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = env("EMAIL_HOST_PASSWORD")
EMAIL_USE_TLS = env_flag("EMAIL_USE_TLS")
EMAIL_TIMEOUT = 15  # seconds
DEFAULT_FROM_EMAIL = env("EMAIL_FROM", "removal@localhost")

# Who reads /metrics shows this; without it everybody may, but partners are not named there.
METRICS_TOKEN = env("METRICS_TOKEN")

# What holds for a subject of whom nobody has said anything (removal/preferences.py).
DEFAULT_PREFERENCE = env("DEFAULT_PREFERENCE", "allow")
if DEFAULT_PREFERENCE not in {"allow", "disallow"}:
    raise ImproperlyConfigured(f"DEFAULT_PREFERENCE is {DEFAULT_PREFERENCE!r}; write allow or disallow.")

# Tests only: "point:FILE" kills the process once at a named point (removal/crashpoints.py); `check --deploy` refuses.
CRASH_AT = env("CRASH_AT")

INSTALLED_APPS = [
    "removal",  # before the admin, whose templates its own ones build on
    "removal.config.desk.DeskConfig",  # the admin, with our login
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "ninja",  # serves its documentation page's files from here, so that it needs no outside host
    "partners",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "axes",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "removal.config.headers.permissions_policy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "removal.config.probes.answer_at_any_host",  # before CommonMiddleware, which looks at the Host header
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",  # last: it turns a lock-out into a page
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "removal.config.urls"
WSGI_APPLICATION = "removal.config.wsgi.application"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
FORMAT_MODULE_PATH = "removal.config.formats"
STATIC_URL = "/static/"
STATIC_ROOT = VAR / "static"
with suppress(OSError):  # only so that whitenoise does not warn of it; the finders below serve the files
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
WHITENOISE_USE_FINDERS = True  # serves each app's files without a collectstatic step
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # bytes; larger bodies get 413, except streams, which are never held

# Behind the TLS-terminating proxy that production has; an embedded installation speaks plain http on loopback.
if PUBLIC_URL.startswith("https://"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [rf"^{path[1:]}$" for path in probes.PATHS]  # asked from inside, past the proxy
    SECURE_HSTS_SECONDS = 31536000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"  # addresses of pages name subjects; none leaves
# No page needs more than its own files, so nothing else is loaded, run, or sent anywhere. Not "unsafe-inline" either.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
}

# Staff. A session ends so many minutes after its last page.
SESSION_COOKIE_AGE = 60 * env_number("SESSION_MINUTES", 30)  # seconds
SESSION_SAVE_EVERY_REQUEST = True
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
# What gives away, stops or ends something asks for the password again when it was last given longer ago.
CONFIRMATION_LASTS = timedelta(minutes=10)
# Everybody at the desk has a second factor; the demo lets people in without.
REQUIRE_TOTP = env_flag("REQUIRE_TOTP", "0" if EMBEDDED else "1")
OTP_TOTP_ISSUER = "Removal"
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
# How many proxies of ours stand in front, each of which adds the caller's address to X-Forwarded-For. What stands
# further left in that header is the caller's own invention.
TRUSTED_PROXIES = env_number("TRUSTED_PROXIES", 1 if PUBLIC_URL.startswith("https://") else 0, least=0)
# Lock-out: after so many wrong passwords for one name from one address, both together wait.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # or whoever tries on would never get in
AXES_CLIENT_IP_CALLABLE = "removal.config.headers.client_address"
AXES_LOCKOUT_TEMPLATE = "admin/locked_out.html"
AXES_SENSITIVE_PARAMETERS = ["username", "ip_address", "code", "password"]  # neither logged nor stored in clear
AXES_DISABLE_ACCESS_LOG = True  # our own log says who did what; this one would keep addresses for ever
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

# Celery. A message is only a hint (design §2.3), so every setting here prefers losing one to waiting for one.
# Unset, the broker is a folder under VAR: enough for one machine, since a lost hint costs one sweep.
BROKER_URL = env("BROKER_URL", "filesystem://localhost")
CELERY_BROKER_URL = BROKER_URL
# What no partner's URL may lead to, even inside an allowed network: this service, its database and its broker.
OWN_PLACES = OwnPlaces(
    sites=[PUBLIC_URL, *ALLOWED_HOSTS],
    services=[
        f"postgresql://{DATABASES['default']['HOST']}:{DATABASES['default']['PORT'] or 5432}",
        *BROKER_URL.split(";"),
    ],
)
if OPERATOR_WEBHOOK_URL:
    try:
        check_url(
            OPERATOR_WEBHOOK_URL,
            allow_http=PARTNER_ALLOW_HTTP,
            allowed_networks=PARTNER_ALLOWED_NETWORKS,
            own_places=OWN_PLACES,
        )
    except UrlRefused as error:
        raise ImproperlyConfigured(
            f"OPERATOR_WEBHOOK_URL: {error} The address must be one that a partner's could be."
        ) from error
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_REJECT_ON_WORKER_LOST = False
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_SOFT_TIME_LIMIT = 60  # seconds; a backstop only: the client's deadline and the drain's budget end before
CELERY_TASK_TIME_LIMIT = 90
if WATCHDOG and WATCHDOG.total_seconds() <= CELERY_TASK_TIME_LIMIT:
    raise ImproperlyConfigured(
        f"WATCHDOG_SECONDS must be more than a task may take ({CELERY_TASK_TIME_LIMIT}), or workers that work are "
        "ended; 0 ends none."
    )
CELERY_TASK_DEFAULT_QUEUE = env("BROKER_QUEUE", "removal")  # another one where two installations share a broker
CELERY_WORKER_CONSUMER = "removal.config.broker:CarefulConsumer"  # no message can end a worker
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 20
CELERY_WORKER_ETA_TASK_LIMIT = 100
CELERY_WORKER_MAX_TASKS_PER_CHILD = 2000
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_TIMEOUT = 1  # second
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# Celery closes the connection around every task unless this is set, whatever CONN_MAX_AGE says.
CELERY_DB_REUSE_MAX = 1000
if BROKER_URL.startswith("filesystem:"):
    for folder in ("queue", "control"):
        (VAR / "broker" / folder).mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
        "data_folder_in": str(VAR / "broker" / "queue"),
        "data_folder_out": str(VAR / "broker" / "queue"),
        "control_folder": str(VAR / "broker" / "control"),
        "polling_interval": 0.02,  # seconds; a hint waits half of it. An idle worker spends 1 % of a core on looking
    }
elif BROKER_URL.startswith("redis"):
    CELERY_WORKER_DISABLE_PREFETCH = True  # a hint behind one partner's long drain is for a worker that is idle
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "socket_timeout": 1,  # the publisher's; removal.config.celery raises it for workers
        "socket_connect_timeout": 1,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "visibility_timeout": 300,
    }
else:
    CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
    CELERY_TASK_DEFAULT_EXCHANGE_TYPE = "topic"
    CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True, "read_timeout": 2, "write_timeout": 2}
# Without these four a refused connection costs two seconds in the request that hints.
CELERY_BROKER_TRANSPORT_OPTIONS |= {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

# Logs: one JSON object a line on stderr, ids and states only.
LOG_LEVEL = env("LOG_LEVEL", "INFO").upper()
LOG_PROCESSORS: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
structlog.configure(
    processors=[*LOG_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            "foreign_pre_chain": LOG_PROCESSORS,
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"axes": {"level": "WARNING"}},  # it tells of every login
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
}
