"""A lab's life as its users see it, on a running platform: what `make demo` tells."""
