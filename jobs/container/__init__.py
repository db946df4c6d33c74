"""TODO jobs/container."""
