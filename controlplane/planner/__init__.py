"""How many engines there are: demand, forecast, capacity, plan, and the scalers that act on it."""
