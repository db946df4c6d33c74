"""Manifests of the system, and the local cluster they can be tried on."""
