"""Input from outside that is not what it should be: bytes changed at random, and values that no
honest sender would send. Whoever reads it says what is wrong, and goes on. Played by seed, as
schedules are (`tests.schedules`).
"""
