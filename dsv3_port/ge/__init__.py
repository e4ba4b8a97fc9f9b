"""Converted GE graphs for people: layers, flow, tables, census."""
