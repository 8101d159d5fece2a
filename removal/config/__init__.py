"""Settings and entry points. ``app`` is what ``celery --app removal.config`` looks for."""
