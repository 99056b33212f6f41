"""Who gets which engine when: seats, lanes, costs, and whether drafting pays."""
