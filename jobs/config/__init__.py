"""Read what the environment and the object store say, and make a lab's manifests of it."""
