"""The operators' side: all of `autolabs`, which needs the platform's database, broker and cluster."""
