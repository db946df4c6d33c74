"""Every SQL statement about labs, runs, restarts, cancellations and notifications, and the connection.

A statement has its title in the comment above it. Handlers and checks call the functions of these modules.
"""
