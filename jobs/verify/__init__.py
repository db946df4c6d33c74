"""Compare what database, cluster and broker say, and mend what is safe where they differ.

`snapshot` takes an inventory twice, `differences` compares it without any I/O, `repairs` changes things;
only `queue_walk` moves messages, each behind those that wait with it.
"""
