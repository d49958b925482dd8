"""`make bench`: how fast Poky is, as ratios to yardsticks measured in the same minutes.

Reading order: suites (what is compared), contest (how), stack (what runs), load (the clients),
machine (CPU time), report (table, JSON, plots). docs/performance.md has the results.
"""
