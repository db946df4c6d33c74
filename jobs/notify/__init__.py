"""Send what leaves the platform: webhooks, events on the broker, results in Redis."""
