"""Call the Kubernetes API, keep a lab's objects, and judge what its Pod says of itself."""
