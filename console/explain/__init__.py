"""Explain what happened to a lab, who must act and what follows: `autolabs explain`."""
