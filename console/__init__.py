"""All of `autolabs`, for operators: it needs the platform's database, broker and cluster."""
