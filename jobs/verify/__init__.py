"""Whether database, cluster and broker say the same, and what to do where they do not.

`look` takes an inventory, `differences` compares it without any I/O, `repairs` mends what is safe. Nothing
here changes anything but `repairs`; only `queues` moves messages, each behind those that wait with it.
"""
