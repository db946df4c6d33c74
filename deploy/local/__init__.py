"""A single-node Kubernetes cluster on this machine, without Docker; stdlib only."""
