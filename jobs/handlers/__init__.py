"""TODO jobs/handlers."""
