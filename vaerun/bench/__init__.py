"""Speed and memory, measured side by side: vaerun, the textbook form of the same algorithm, peers, the machine's floor.

A benchmark yields cases; a case has forms of one computation, timed in turn (one call of each a round), so that what
else the machine does falls on all of them alike. What is told are medians and ratios of the calls of one round.
"""
