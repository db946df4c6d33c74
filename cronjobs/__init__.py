"""Periodic work, started by Kubernetes CronJobs."""
