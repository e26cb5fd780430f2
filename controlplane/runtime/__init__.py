"""What every service stands on: lifecycle, settings, telemetry."""
