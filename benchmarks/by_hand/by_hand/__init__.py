"""The benchmark's plain Flower app. benchmarks/rounds.py lays fltestbed's models beside it."""
