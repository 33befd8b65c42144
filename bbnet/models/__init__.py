"""Networks that several tasks use. Nothing here knows a task."""
