"""TODO jobs/config."""
