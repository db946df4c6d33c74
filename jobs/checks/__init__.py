"""Look after all labs at fixed times, by a CronJob (`python -m cronjobs`) or as a message.

Each task has a module with `run(context, payload)`, which returns what it found and did.
"""
