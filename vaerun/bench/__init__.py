"""Benchmarks of speed and memory: vaerun against textbook implementations, other packages and the machine's floor.

A benchmark yields cases; a case has variants of one computation, timed in turn (one call of each per round), so that
other load on the machine affects all of them alike. Medians are reported, and ratios of calls within a round.
"""
