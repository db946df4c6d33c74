"""TODO dispatcher/message."""
