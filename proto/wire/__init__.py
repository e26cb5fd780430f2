"""How words travel: four ports, and the carriers that speak to real servers or stay in memory."""
