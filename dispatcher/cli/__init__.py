"""Commands of `autolabs` for a backend's administrator: tables, queues, outbox, one lab, one task."""
