"""`autolabs` for a backend's administrator: the tables, the queues, the outbox, one lab, one task."""
