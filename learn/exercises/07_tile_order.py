"""07_tile_order.py — exercise: the grouped map of lesson 07 in plain Python
Fill the hole, then: learn check 07 --my FILE
"""
import importlib

lesson_07 = importlib.import_module("02_matrix_multiply")


def order(tiles, group):
    """(row, column) of every program: `group` rows of tiles are walked column by column, then the next `group` rows."""
    return [(p // tiles, p % tiles) for p in range(tiles * tiles)]       # hole: plain row order whatever the group


lesson_07.order = order
lesson_07.main()
