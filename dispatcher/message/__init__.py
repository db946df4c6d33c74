"""Write one task as a Celery message, and read one."""
