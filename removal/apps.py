from django.apps import AppConfig


class RemovalConfig(AppConfig):
    name = "removal"
    verbose_name = "Removal"

    def ready(self) -> None:
        # The application must exist before a web process sends its first hint; the checks register themselves.
        from removal.config import celery, checks  # noqa: F401
