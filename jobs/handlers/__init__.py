"""Do one thing to one lab: create, delete, resize, rebuild, give up."""
