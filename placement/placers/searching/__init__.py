"""What the searches share: moves, starting points, and repair of placements that do not fit."""
