"""The steps that a random graph is made of, by family. A step appends one operator, or a few that belong together.

Each picks or makes its operands; it raises Rejected where it does not go, and the graph is put back as it was.
"""
