"""Who may ask for what: tenants, their limits, their keys."""
