"""TODO dispatcher/broker."""
