"""Reach RabbitMQ: exchanges and queues, the delay ladder, publishes that are confirmed."""
