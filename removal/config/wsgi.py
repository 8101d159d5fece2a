"""The web server's entry point: ``gunicorn removal.config.wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
application = get_wsgi_application()
