"""The one-message container: claim a task, run it, record it, acknowledge, exit."""
