"""What is done for all labs at its times: by a CronJob (`python -m cronjobs`), or as a message.

Each task has a module with `run(context, payload)`, which returns its result: what it found and did.
"""
