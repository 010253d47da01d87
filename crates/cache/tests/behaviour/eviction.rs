//! Budgets, tiers, pins, leases.
