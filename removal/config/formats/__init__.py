"""How pages write dates: Django asks here first (FORMAT_MODULE_PATH)."""
