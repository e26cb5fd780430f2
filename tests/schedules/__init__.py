"""Pure cores under seeded schedules: words that get lost, doubled, late and out of order, restarts
at any moment. One seed is one history; one that goes wrong is told word by word, and is played
again by its seed.

    python -m tests.schedules --count 1000000          # all worlds in turn, on every core
    python -m tests.schedules --world index --seed 7   # one history, word by word
"""
