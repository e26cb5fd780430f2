"""Who is there: the live view of workers and models that every service holds."""
