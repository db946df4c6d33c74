"""Dead letters: what they are, how they are looked through, and what people do with them: `autolabs dlq`."""
