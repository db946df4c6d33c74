"""TODO jobs/notify."""
