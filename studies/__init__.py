"""Studies: grids of arms and what can be concluded from them."""
