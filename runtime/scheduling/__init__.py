"""Decides which request goes to which engine when: reservations, lanes, costs, and whether drafting pays."""
