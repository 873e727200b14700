"""Plans: a recipe for a budget, from the cost of steps, the fitted law and this machine's speed."""
