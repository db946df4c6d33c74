"""Compare database, cluster and broker, and repair what is safe: `autolabs verify`."""
