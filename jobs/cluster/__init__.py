"""TODO jobs/cluster."""
